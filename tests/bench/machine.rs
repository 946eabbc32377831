//! What the figures were measured on, and who runs on which CPU.

use std::fs;
use std::path::Path;
use std::process::Command;

use rustix::thread::CpuSet;
use rustix::thread::sched_getaffinity;
use rustix::thread::sched_setaffinity;

use crate::Result;

/// The CPUs this process was allowed to use when it started.
pub(crate) struct Cpus {
    all: CpuSet,
    numbers: Vec<usize>,
}

impl Cpus {
    /// Reads the affinity of this process.
    pub(crate) fn allowed() -> Result<Self> {
        let all = sched_getaffinity(None)?;
        let numbers: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|&cpu| all.is_set(cpu)).collect();
        if numbers.is_empty() {
            return Err("this process is allowed no CPU".into());
        }
        Ok(Self { all, numbers })
    }

    /// All of them.
    pub(crate) fn numbers(&self) -> &[usize] {
        &self.numbers
    }

    /// The CPU the measured work runs on: the last.
    pub(crate) fn work(&self) -> usize {
        *self.numbers.last().unwrap_or(&0)
    }

    /// The CPU everything else runs on: the first, which is another one unless
    /// there is only one.
    pub(crate) fn aside(&self) -> usize {
        *self.numbers.first().unwrap_or(&0)
    }

    /// Moves this process, and what it starts from now on, out of the way of
    /// the measured work until the result is dropped.
    pub(crate) fn step_aside(&self) -> Result<Aside<'_>> {
        pin(self.aside())?;
        Ok(Aside(self))
    }
}

/// While this lives, the benchmark and its children keep to one CPU.
pub(crate) struct Aside<'cpus>(&'cpus Cpus);

impl Drop for Aside<'_> {
    fn drop(&mut self) {
        // It was allowed before.
        let _ = sched_setaffinity(None, &self.0.all);
    }
}

/// Pins this process to one CPU.
pub(crate) fn pin(cpu: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu);
    Ok(sched_setaffinity(None, &set)?)
}

/// The hook that `mem_watcher doctor` names for a command.
pub(crate) fn hook(program: &Path, command: &str) -> Result<String> {
    // Its exit code tells about all commands; this is about one.
    let output = Command::new(program).args(["doctor", "-o", "json"]).output()?;
    for line in String::from_utf8(output.stdout)?.lines() {
        let finding: serde_json::Value = serde_json::from_str(line)?;
        if finding["subject"] == command {
            return match (finding["verdict"].as_str(), finding["how"].as_str()) {
                (Some("works" | "fallback"), Some(hook)) => Ok(hook.to_owned()),
                _ => Err(format!("{command} does not work here: {}", finding["detail"]).into()),
            };
        }
    }
    Err(format!("mem_watcher doctor does not mention {command}").into())
}

/// One line about the machine.
pub(crate) fn describe(cpus: &Cpus) -> Result<String> {
    let uname = rustix::system::uname();
    let model = field("/proc/cpuinfo", "model name").unwrap_or_else(|| "unknown".into());
    let memory = field("/proc/meminfo", "MemTotal").unwrap_or_else(|| "unknown".into());
    Ok(format!(
        "kernel {} {}, {} CPUs ({model}), memory {memory}",
        uname.release().to_str()?,
        uname.machine().to_str()?,
        cpus.numbers.len(),
    ))
}

/// The load averages: what else went on.
pub(crate) fn load() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').take(3).collect::<Vec<_>>().join(" ")
}

/// The first `key : value` of a file in `/proc`.
fn field(path: &str, key: &str) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let line = text.lines().find(|line| line.starts_with(key))?;
    Some(line.split_once(':')?.1.trim().to_owned())
}

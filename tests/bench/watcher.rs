//! mem_watcher as a child process: start, wait until it works, look at it, stop.

use std::collections::BTreeSet;
use std::fs;
use std::io::Read as _;
use std::path::Path;
use std::process::Child;
use std::process::ChildStdout;
use std::process::Command;
use std::process::Stdio;
use std::thread::sleep;
use std::time::Duration;
use std::time::Instant;

use procfs::process::Process;
use rustix::process::Pid;
use rustix::process::Signal;
use rustix::process::kill_process;

use crate::Result;

/// Longer than any start should take; beyond it something is wrong.
const PATIENCE: Duration = Duration::from_secs(20);

/// Longer than any watcher is needed.
const LIFETIME_S: &str = "120";

/// A running mem_watcher whose rows go to `/dev/null`.
pub(crate) struct Watcher {
    child: Child,
}

/// What a watcher says when it ends.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Summary {
    pub(crate) rows: u64,
    pub(crate) events: u64,
    pub(crate) lost: u64,
}

impl Watcher {
    /// Starts `program` with these arguments.
    pub(crate) fn start(program: &Path, args: &[&str]) -> Result<Self> {
        Self::start_writing(program, args, Stdio::null())
    }

    /// The same, with its rows to be read.
    pub(crate) fn start_read(program: &Path, args: &[&str]) -> Result<(Self, ChildStdout)> {
        let mut watcher = Self::start_writing(program, args, Stdio::piped())?;
        let rows = watcher.child.stdout.take().ok_or("no pipe from mem_watcher")?;
        Ok((watcher, rows))
    }

    fn start_writing(program: &Path, args: &[&str], rows: Stdio) -> Result<Self> {
        let child = Command::new(program)
            .args(args)
            // Should the benchmark be killed, it ends by itself.
            .args(["-d", LIFETIME_S])
            .stdin(Stdio::null())
            .stdout(rows)
            .stderr(Stdio::piped())
            .spawn()?;
        Ok(Self { child })
    }

    /// Waits until its programs are attached.
    pub(crate) fn wait_attached(&mut self) -> Result<()> {
        self.wait_until("attached nothing", |watcher| {
            let fds = watcher.described()?;
            // The iterators it reads from do not count.
            let mut links = fds.iter().filter_map(|fd| value(fd, "link_type:"));
            Ok(links.any(|link| link != "iter"))
        })?;
        // What it does once, such as the first list, is not what is measured.
        sleep(Duration::from_millis(200));
        Ok(())
    }

    /// Waits until it is attached to all functions it attaches to.
    pub(crate) fn wait_probing(&mut self) -> Result<()> {
        let mut links = Settled::default();
        self.wait_until("attached to no function", |watcher| {
            Ok(links.at(watcher.described()?.iter().filter(|fd| fd.contains("link_type:")).count()))
        })
    }

    /// Waits until it has written something.
    pub(crate) fn wait_written(&mut self) -> Result<()> {
        self.wait_until("wrote nothing", |watcher| {
            let io = fs::read_to_string(format!("/proc/{}/io", watcher.child.id()))?;
            Ok(io.lines().find_map(|line| line.strip_prefix("wchar: ")) != Some("0"))
        })
    }

    fn wait_until(
        &mut self,
        failure: &str,
        mut ready: impl FnMut(&Self) -> Result<bool>,
    ) -> Result<()> {
        let begin = Instant::now();
        while begin.elapsed() < PATIENCE {
            if self.child.try_wait()?.is_some() {
                return Err(format!("mem_watcher ended: {}", self.said()?).into());
            }
            if ready(self)? {
                return Ok(());
            }
            sleep(Duration::from_millis(5));
        }
        Err(format!("mem_watcher {failure} in {} s", PATIENCE.as_secs()).into())
    }

    /// The kernel's numbers of the programs it has loaded.
    pub(crate) fn programs(&self) -> Result<BTreeSet<u32>> {
        let fds = self.described()?;
        Ok(fds
            .iter()
            .filter(|fd| fd.contains("prog_jited:"))
            .filter_map(|fd| value(fd, "prog_id:")?.parse().ok())
            .collect())
    }

    /// What the kernel says about each of its file descriptors.
    fn described(&self) -> Result<Vec<String>> {
        let dir = fs::read_dir(format!("/proc/{}/fdinfo", self.child.id()))?;
        // One may be closed between the listing and the look.
        Ok(dir.flatten().filter_map(|fd| fs::read_to_string(fd.path()).ok()).collect())
    }

    /// What the kernel holds for it in BPF maps, in KiB (since Linux 6.4 that is
    /// what is really allocated, before that what was set aside).
    pub(crate) fn maps_kib(&self) -> Result<u64> {
        let fds = self.described()?;
        let maps = fds.iter().filter(|fd| fd.contains("map_id:"));
        let bytes: u64 = maps.filter_map(|fd| value(fd, "memlock:")?.parse::<u64>().ok()).sum();
        Ok(bytes / 1024)
    }

    /// The most memory it has had resident so far, in KiB.
    pub(crate) fn peak_kib(&self) -> Result<u64> {
        let status = self.process()?.status()?;
        status.vmhwm.ok_or_else(|| "the watcher has no memory: it has ended".into())
    }

    /// Time it has spent on CPUs so far.
    pub(crate) fn cpu(&self) -> Result<Duration> {
        Ok(Duration::from_nanos(self.process()?.schedstat()?.sum_exec_runtime))
    }

    /// Keeps it off the CPU for a while.
    pub(crate) fn pause(&self, time: Duration) -> Result<()> {
        let pid = Pid::from_child(&self.child);
        kill_process(pid, Signal::STOP)?;
        sleep(time);
        Ok(kill_process(pid, Signal::CONT)?)
    }

    fn process(&self) -> Result<Process> {
        Ok(Process::new(self.child.id().try_into()?)?)
    }

    /// Ends it as Ctrl-C would, and returns its summary.
    pub(crate) fn stop(self) -> Result<Summary> {
        self.interrupt()?;
        self.finish()
    }

    /// Tells it to end.
    pub(crate) fn interrupt(&self) -> Result<()> {
        Ok(kill_process(Pid::from_child(&self.child), Signal::INT)?)
    }

    /// Waits for its end, and returns its summary.
    pub(crate) fn finish(mut self) -> Result<Summary> {
        let said = self.said()?;
        let status = self.child.wait()?;
        if !status.success() {
            return Err(format!("mem_watcher failed ({status}): {said}").into());
        }
        summary(&said).ok_or_else(|| format!("mem_watcher gave no summary: {said}").into())
    }

    /// Everything on its standard error until it ends.
    fn said(&mut self) -> Result<String> {
        let mut said = String::new();
        if let Some(stderr) = &mut self.child.stderr {
            stderr.read_to_string(&mut said)?;
        }
        Ok(said.trim_end().to_owned())
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        // Both fail if it has ended, which is as well.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Tells when a number that grows has come to rest.
#[derive(Default)]
pub(crate) struct Settled {
    last: usize,
    since: Option<Instant>,
}

impl Settled {
    /// Longer than loading and attaching ever pauses.
    const REST: Duration = Duration::from_millis(500);

    /// Whether it is at rest: not 0, and the same for a while.
    pub(crate) fn at(&mut self, number: usize) -> bool {
        if number != self.last {
            self.last = number;
            self.since = Some(Instant::now());
        }
        number > 0 && self.since.is_some_and(|since| since.elapsed() >= Self::REST)
    }
}

/// The value of a `key:\tvalue` line.
fn value<'text>(text: &'text str, key: &str) -> Option<&'text str> {
    text.lines().find_map(|line| line.strip_prefix(key)).map(str::trim)
}

/// `mem_watcher: procstat: 2 rows, 3 events, 0 lost, 0.512 s`, the last line.
fn summary(said: &str) -> Option<Summary> {
    let parts: Vec<&str> = said.lines().last()?.rsplit_once(": ")?.1.split(", ").collect();
    let count =
        |what| parts.iter().find_map(|part| part.strip_suffix(what))?.trim().parse::<u64>().ok();
    Some(Summary { rows: count("rows")?, events: count("events")?, lost: count("lost")? })
}

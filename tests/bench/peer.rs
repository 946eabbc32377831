//! Another tool that traces allocations, to compare with.

use std::fs;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;
use std::thread::sleep;
use std::time::Duration;
use std::time::Instant;

use rustix::process::Pid;
use rustix::process::Signal;
use rustix::process::kill_process;

use crate::Result;
use crate::watcher::Settled;

/// Some tools compile their programs when they start.
const PATIENCE: Duration = Duration::from_secs(60);

/// A running tool. Dropping it kills it.
pub(crate) struct Peer {
    child: Child,
    command: String,
}

impl Peer {
    /// Starts `command`, in which `{pid}` stands for the process to trace, and
    /// waits until its probes are in.
    pub(crate) fn attach(command: &str, pid: u32) -> Result<Self> {
        let command = command.replace("{pid}", &pid.to_string());
        let child = Command::new("sh")
            .args(["-c", &format!("exec {command}")])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        let mut peer = Self { child, command };
        let (begin, mut links) = (Instant::now(), Settled::default());
        while begin.elapsed() < PATIENCE {
            if let Some(status) = peer.child.try_wait()? {
                return Err(format!("`{}` ended at once: {status}", peer.command).into());
            }
            if links.at(peer.probes()?) {
                return Ok(peer);
            }
            sleep(Duration::from_millis(10));
        }
        Err(format!("`{}` attached nothing in {} s", peer.command, PATIENCE.as_secs()).into())
    }

    /// Its descriptors of links and of perf events, which older ways of
    /// attaching use.
    fn probes(&self) -> Result<usize> {
        let fds = fs::read_dir(format!("/proc/{}/fd", self.child.id()))?;
        let names = fds.flatten().filter_map(|fd| fs::read_link(fd.path()).ok());
        Ok(names
            .filter(|name| {
                let name = name.to_string_lossy();
                ["bpf_link", "bpf-link", "perf_event"].iter().any(|kind| name.contains(kind))
            })
            .count())
    }

    /// Ends it as Ctrl-C would, and waits until it has.
    pub(crate) fn stop(mut self) -> Result<()> {
        kill_process(Pid::from_child(&self.child), Signal::INT)?;
        let begin = Instant::now();
        while begin.elapsed() < PATIENCE {
            if self.child.try_wait()?.is_some() {
                return Ok(());
            }
            sleep(Duration::from_millis(5));
        }
        Err(format!("`{}` does not end", self.command).into())
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // Both fail if it has ended, which is as well.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

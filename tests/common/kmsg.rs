//! What the kernel itself says of a kill, in its log.

use std::fs::File;
use std::fs::OpenOptions;
use std::io::ErrorKind;
use std::io::Read as _;
use std::io::Seek as _;
use std::io::SeekFrom;
use std::os::unix::fs::OpenOptionsExt as _;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use super::watcher::PATIENCE;

/// The kernel's log from a moment on.
pub struct Kmsg(File);

/// One `Killed process` line, and the report that came before it, if one did:
/// the kernel prints ten in five seconds (`oom_rs`, mm/oom_kill.c).
#[derive(Clone, Debug, Default)]
pub struct Killed {
    pub pid: u64,
    pub comm: String,
    /// KiB, as the others.
    pub total_vm: u64,
    pub anon: u64,
    pub file: u64,
    pub shmem: u64,
    pub page_tables: u64,
    pub uid: u64,
    pub score_adj: i64,
    pub report: Option<Report>,
}

/// What was said before the kill.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// Who ran out of memory.
    pub comm: String,
    pub pid: u64,
    /// As `0xcc0`.
    pub gfp: String,
    /// As `GFP_KERNEL`.
    pub gfp_words: String,
    pub order: i64,
    /// As `CONSTRAINT_MEMCG`.
    pub constraint: String,
    pub oom_memcg: Option<String>,
    pub task_memcg: Option<String>,
    pub cpuset: String,
    pub mems_allowed: String,
    pub nodemask: String,
}

impl Kmsg {
    /// The log from now on; `None`: it may not be read.
    pub fn from_now() -> Option<Self> {
        let mut file =
            OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open("/dev/kmsg").ok()?;
        file.seek(SeekFrom::End(0)).ok()?;
        Some(Self(file))
    }

    /// The kills of these processes, each process once and in that order; fewer if
    /// they do not come in time.
    pub fn killed(&mut self, pids: &[u32]) -> Vec<Killed> {
        let end = Instant::now() + PATIENCE;
        let (mut kills, mut report, mut record) = (Vec::new(), None, [0; 8192]);
        let of = |kills: &[Killed], pid: u32| -> Option<Killed> {
            kills.iter().find(|killed| killed.pid == u64::from(pid)).cloned()
        };
        while pids.iter().any(|&pid| of(&kills, pid).is_none()) && Instant::now() < end {
            match self.0.read(&mut record) {
                Ok(length) => {
                    let text = String::from_utf8_lossy(&record[..length]).into_owned();
                    let line = text.split_once(';').map_or("", |(_, line)| line);
                    read(line.lines().next().unwrap_or_default(), &mut report, &mut kills);
                }
                // Overwritten before it was read: the next one is there.
                Err(error) if error.raw_os_error() == Some(libc::EPIPE) => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    thread::sleep(Duration::from_millis(20));
                }
                Err(error) => panic!("/dev/kmsg: {error}"),
            }
        }
        pids.iter().filter_map(|&pid| of(&kills, pid)).collect()
    }
}

/// The word behind `key`, up to one of `ends`.
fn word<'line>(line: &'line str, key: &str, ends: &[char]) -> Option<&'line str> {
    let rest = line.split_once(key)?.1;
    rest.split(ends).next()
}

fn read(line: &str, report: &mut Option<Report>, kills: &mut Vec<Killed>) {
    let number = |key| word(line, key, &['k', ' ', ',']).and_then(|text| text.parse().ok());
    if let Some((comm, rest)) = line.split_once(" invoked oom-killer: ") {
        *report = Some(Report {
            comm: comm.into(),
            gfp: word(rest, "gfp_mask=", &['(']).unwrap_or_default().into(),
            gfp_words: word(rest, "(", &[')']).unwrap_or_default().into(),
            order: word(rest, "order=", &[',']).and_then(|text| text.parse().ok()).unwrap_or(-99),
            ..Report::default()
        });
    } else if let (true, Some(report)) = (line.starts_with("CPU: "), report.as_mut()) {
        report.pid = word(line, " PID: ", &[' ']).and_then(|pid| pid.parse().ok()).unwrap_or(0);
    } else if let (Some(rest), Some(report)) = (line.strip_prefix("oom-kill:"), report.as_mut()) {
        let value = |key| word(rest, key, &[',']).map(str::to_owned);
        report.constraint = value("constraint=").unwrap_or_default();
        report.oom_memcg = value("oom_memcg=");
        report.task_memcg = value("task_memcg=");
        report.cpuset = value("cpuset=").unwrap_or_default();
        report.mems_allowed = value("mems_allowed=").unwrap_or_default();
        report.nodemask = value("nodemask=").unwrap_or_default();
    } else if line.contains("Killed process ") {
        kills.push(Killed {
            pid: number("Killed process ").unwrap_or(0),
            comm: word(line, " (", &[')']).unwrap_or_default().into(),
            total_vm: number("total-vm:").unwrap_or(0),
            anon: number("anon-rss:").unwrap_or(0),
            file: number("file-rss:").unwrap_or(0),
            shmem: number("shmem-rss:").unwrap_or(0),
            page_tables: number("pgtables:").unwrap_or(0),
            uid: number("UID:").unwrap_or(u64::MAX),
            score_adj: word(line, "oom_score_adj:", &[' '])
                .and_then(|text| text.parse().ok())
                .unwrap_or(-9999),
            report: report.take(),
        });
    }
}

//! What mmapsnoop, brkstack and shmsnoop cost at the calls they show, and at one
//! they do not, beside an empty program on the same trace events.

use rustix::time::ClockId;
use rustix::time::clock_gettime;

use crate::Bench;
use crate::Result;
use crate::empty::Empty;
use crate::figures::Series;
use crate::figures::Table;
use crate::figures::figure;
use crate::figures::none;
use crate::figures::order;
use crate::machine;
use crate::watcher::Watcher;
use crate::worker::Sleepers;

/// Rounds of one batch (two calls each), and batches of one figure, which is
/// their median.
const ROUNDS: u64 = 2000;
const BATCHES: usize = 7;

/// One command with the work it watches.
struct Subject {
    command: &'static str,
    options: &'static [&'static str],
    /// The trace events it is on, entry and return of each call.
    calls: &'static [&'static str],
    work: fn(u64) -> Result<()>,
    what: &'static str,
}

const SUBJECTS: [Subject; 3] = [
    Subject {
        command: "mmapsnoop",
        options: &["--all"],
        calls: &["mmap", "munmap", "mremap"],
        work: maps,
        what: "mmap and munmap of a page",
    },
    Subject {
        command: "brkstack",
        options: &[],
        calls: &["brk"],
        work: brks,
        what: "brk up and down by a page",
    },
    Subject {
        command: "shmsnoop",
        options: &[],
        calls: &["shmget", "shmat", "shmdt", "shmctl"],
        work: attaches,
        what: "shmat and shmdt of a page",
    },
];

/// Measures and prints.
pub(crate) fn run(bench: &Bench) -> Result<()> {
    let other = Sleepers::start(1)?;
    for subject in &SUBJECTS {
        measure(bench, subject, &other.first())?;
    }
    Ok(())
}

enum Attached {
    Nothing,
    Empty(#[expect(dead_code, reason = "held attached")] Empty),
    Ours(Watcher),
}

fn measure(bench: &Bench, subject: &Subject, other: &str) -> Result<()> {
    let events: Vec<String> = subject
        .calls
        .iter()
        .flat_map(|call| ["enter", "exit"].map(|side| format!("syscalls:sys_{side}_{call}")))
        .collect();
    let events: Vec<&str> = events.iter().map(String::as_str).collect();
    let raw = ["raw_syscalls:sys_enter", "raw_syscalls:sys_exit"];
    let ours = |more: &[&str]| -> Result<Attached> {
        machine::pin(bench.cpus.aside())?;
        let args = [&[subject.command], subject.options, more].concat();
        let mut watcher = Watcher::start(&bench.program, &args)?;
        watcher.wait_attached()?;
        Ok(Attached::Ours(watcher))
    };
    let attach = |variant: usize| -> Result<Attached> {
        Ok(match variant {
            0 => Attached::Nothing,
            1 => Attached::Empty(Empty::attach_to_events(&events)?),
            2 => ours(&[])?,
            3 => ours(&["-P", other])?,
            4 => Attached::Empty(Empty::attach_to_events(&raw)?),
            _ => ours(&["--hook", "raw_syscalls"])?,
        })
    };
    let names = [
        "untraced",
        "empty programs",
        "ours",
        "ours, -P another",
        "empty, raw_syscalls",
        "ours, raw_syscalls",
    ];
    let mut pairs = vec![Series::default(); names.len()];
    let mut strangers = pairs.clone();
    for round in 0..bench.rounds {
        for variant in order(names.len(), round) {
            let attached = attach(variant)?;
            machine::pin(bench.cpus.work())?;
            pairs[variant].0.push(ns(subject.work)?);
            strangers[variant].0.push(ns(nothing)?);
            if let Attached::Ours(watcher) = attached {
                watcher.stop()?;
            }
        }
    }
    let _aside = bench.cpus.step_aside()?;
    let title = format!(
        "{}: {}, and getppid, on CPU {}, {} rounds; CPU time in ns",
        subject.command,
        subject.what,
        bench.cpus.work(),
        bench.rounds
    );
    let mut table = Table::new(
        title,
        &["VARIANT", "PAIR", "MIN", "RATIO", "ABOVE EMPTY", "GETPPID", "ABOVE UNTRACED"],
    );
    for (i, name) in names.iter().enumerate() {
        let empty = if i < 4 { 1 } else { 4 };
        let above = pairs[i].minus(&pairs[empty]).median();
        table.row([
            (*name).into(),
            figure(pairs[i].median(), 0),
            figure(pairs[i].min(), 0),
            figure(pairs[i].over(&pairs[0]).median(), 3),
            if i == 0 || i == empty { none() } else { figure(above, 0) },
            figure(strangers[i].median(), 0),
            if i == 0 { none() } else { figure(strangers[i].minus(&strangers[0]).median(), 0) },
        ]);
    }
    table.print()
}

/// CPU time of one round of the work.
fn ns(work: fn(u64) -> Result<()>) -> Result<f64> {
    let mut batches = Series::default();
    for _ in 0..BATCHES {
        let before = cpu_ns();
        work(ROUNDS)?;
        batches.0.push((cpu_ns() - before) / ROUNDS as f64);
    }
    Ok(batches.median())
}

fn cpu_ns() -> f64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as f64 * 1e9 + time.tv_nsec as f64
}

fn last_error() -> Box<dyn std::error::Error> {
    std::io::Error::last_os_error().into()
}

fn maps(rounds: u64) -> Result<()> {
    for _ in 0..rounds {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a new mapping, given back at once.
        let done = unsafe {
            let at = libc::mmap(std::ptr::null_mut(), 4096, libc::PROT_READ, flags, -1, 0);
            at != libc::MAP_FAILED && libc::munmap(at, 4096) == 0
        };
        if !done {
            return Err(last_error());
        }
    }
    Ok(())
}

fn brks(rounds: u64) -> Result<()> {
    // SAFETY: asks where the end of the heap is.
    let end = unsafe { libc::syscall(libc::SYS_brk, 0) };
    for _ in 0..rounds {
        // SAFETY: nothing is allocated between moving it up and back.
        let at = unsafe {
            libc::syscall(libc::SYS_brk, end + 4096);
            libc::syscall(libc::SYS_brk, end)
        };
        if at != end {
            return Err("the heap does not move".into());
        }
    }
    Ok(())
}

fn attaches(rounds: u64) -> Result<()> {
    // SAFETY: a new segment, removed when it is detached for the last time.
    let id = unsafe { libc::shmget(libc::IPC_PRIVATE, 4096, libc::IPC_CREAT | 0o600) };
    if id < 0 {
        return Err(last_error());
    }
    let mut result = Ok(());
    for _ in 0..rounds {
        // SAFETY: attached at an address of the kernel's choice, and detached.
        let done = unsafe {
            let at = libc::shmat(id, std::ptr::null(), 0);
            at as isize != -1 && libc::shmdt(at) == 0
        };
        if !done {
            result = Err(last_error());
            break;
        }
    }
    // SAFETY: our own segment.
    unsafe { libc::shmctl(id, libc::IPC_RMID, std::ptr::null_mut()) };
    result
}

fn nothing(rounds: u64) -> Result<()> {
    for _ in 0..rounds {
        // SAFETY: no arguments.
        unsafe { libc::syscall(libc::SYS_getppid) };
    }
    Ok(())
}

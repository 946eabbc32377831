//! How long `pages` takes over 64 GiB of addresses, and what the process it
//! looks at feels of it: the time its page faults take, and its calls of mmap,
//! which must wait for whoever reads its page tables. Beside it, the same while
//! smaps is read.

use std::fs;
use std::process::Command;
use std::process::Stdio;
use std::ptr;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use rustix::mm::Advice;
use rustix::mm::MapFlags;
use rustix::mm::ProtFlags;

use crate::Bench;
use crate::Result;
use crate::figures::Series;
use crate::figures::Table;
use crate::figures::figure;
use crate::figures::none;
use crate::figures::order;
use crate::machine;
use crate::worker::Worker;
use crate::worker::obey;

/// Of addresses, one page in every 4 MiB of them there.
const SPARSE: usize = 64 << 30;
const APART: usize = 4 << 20;
/// Of memory besides.
const DENSE: usize = 1 << 30;
/// What is touched, given back and touched again.
const TOUCHED: usize = 64 << 20;
/// Touches between two calls of mmap.
const BETWEEN: usize = 64;
/// How long the process is watched in a round.
const SECONDS: u64 = 2;

/// Who looks at the process meanwhile.
const VARIANTS: [(&str, Option<&[&str]>); 4] = [
    ("nobody", None),
    ("pages, again and again", Some(&["pages", "{pid}", "-o", "csv"])),
    ("pages --hook proc:pagemap", Some(&["pages", "{pid}", "-o", "csv", "--hook", "proc:pagemap"])),
    ("cat smaps", Some(&[])),
];

/// Measures and prints.
pub(crate) fn run(bench: &Bench) -> Result<()> {
    let _aside = bench.cpus.step_aside()?;
    let mut target = Worker::start(&["fault", &bench.cpus.work().to_string()])?;
    target.ask("0")?;
    let pid = target.pid();
    let mut took = vec![Series::default(); VARIANTS.len()];
    let mut felt = vec![vec![Series::default(); 4]; VARIANTS.len()];
    for round in 0..bench.rounds {
        for i in order(VARIANTS.len(), round) {
            let look = VARIANTS[i].1.map(|args| looker(bench, args, pid));
            let ended = AtomicBool::new(false);
            let answer = thread::scope(|scope| -> Result<String> {
                let watcher = look.map(|look| {
                    let ended = &ended;
                    scope.spawn(move || again_and_again(&look, ended))
                });
                let answer = target.ask(&SECONDS.to_string());
                ended.store(true, Ordering::Relaxed);
                if let Some(watcher) = watcher {
                    let times = watcher.join().map_err(|_| "the watcher's thread died")?;
                    took[i].0.extend(times?);
                }
                answer
            })?;
            for (series, figure) in felt[i].iter_mut().zip(answer.split(' ')) {
                series.0.push(figure.parse()?);
            }
        }
    }
    let title = format!(
        "pages: a process with {} GiB of addresses, {} MiB resident, that takes page faults; {} rounds of {SECONDS} s",
        SPARSE >> 30,
        (DENSE + SPARSE / APART * rustix::param::page_size()) >> 20,
        bench.rounds
    );
    let head = [
        "WHO LOOKS AT IT",
        "RUN ms",
        "FAULT us",
        "RATIO",
        "LONGEST us",
        "MMAP us",
        "LONGEST us",
        "BAR",
    ];
    let mut table = Table::new(title, &head);
    for (i, (name, args)) in VARIANTS.iter().enumerate() {
        let us = |series: &Series| figure(series.median() / 1e3, 2);
        table.row([
            (*name).into(),
            figure(took[i].median() * 1e3, 1),
            us(&felt[i][0]),
            figure(felt[i][0].over(&felt[0][0]).median(), 3),
            us(&felt[i][1]),
            us(&felt[i][2]),
            us(&felt[i][3]),
            if args.is_some_and(|args| !args.is_empty()) {
                "run below 1000 ms".into()
            } else {
                none()
            },
        ]);
    }
    table.print()
}

/// Something that is done to a process.
type Look = Box<dyn Fn() -> std::result::Result<(), String> + Send>;

fn looker(bench: &Bench, args: &[&str], pid: u32) -> Look {
    if args.is_empty() {
        return Box::new(move || {
            fs::read(format!("/proc/{pid}/smaps")).map(drop).map_err(|error| error.to_string())
        });
    }
    let args: Vec<String> = args.iter().map(|arg| arg.replace("{pid}", &pid.to_string())).collect();
    let program = bench.program.clone();
    Box::new(move || {
        let mut command = Command::new(&program);
        command.args(&args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        match command.status() {
            Ok(status) if status.success() => Ok(()),
            Ok(status) => Err(format!("mem_watcher {args:?}: {status}")),
            Err(error) => Err(error.to_string()),
        }
    })
}

/// How long each took, in seconds.
fn again_and_again(look: &Look, ended: &AtomicBool) -> std::result::Result<Vec<f64>, String> {
    let mut took = Vec::new();
    while !ended.load(Ordering::Relaxed) {
        let begin = Instant::now();
        look()?;
        took.push(begin.elapsed().as_secs_f64());
    }
    Ok(took)
}

/// The process: touches pages for as many seconds as each order says. Answers
/// with median and longest time of a fault, then of a call of mmap and its
/// munmap, in nanoseconds.
pub(crate) fn fault(cpu: &str) -> Result<()> {
    machine::pin(cpu.parse()?)?;
    let page = rustix::param::page_size();
    let sparse = map(SPARSE)?;
    (0..SPARSE).step_by(APART).for_each(|at| touch(sparse, at));
    let dense = map(DENSE)?;
    (0..DENSE).step_by(page).for_each(|at| touch(dense, at));
    let touched = map(TOUCHED)?;
    obey(|order| {
        let end = Instant::now() + Duration::from_secs(order.parse()?);
        let (mut faults, mut calls) = (Vec::new(), Vec::new());
        while Instant::now() < end {
            // SAFETY: a mapping of ours that nobody reads.
            unsafe { rustix::mm::madvise(touched.cast(), TOUCHED, Advice::LinuxDontNeed)? };
            for (n, at) in (0..TOUCHED).step_by(page).enumerate() {
                let begin = Instant::now();
                touch(touched, at);
                faults.push(begin.elapsed().as_nanos() as f64);
                if n % BETWEEN == 0 {
                    let begin = Instant::now();
                    let some = map(page)?;
                    // SAFETY: just mapped, and nothing refers to it.
                    unsafe { rustix::mm::munmap(some.cast(), page)? };
                    calls.push(begin.elapsed().as_nanos() as f64);
                }
            }
        }
        let (faults, calls) = (Series(faults), Series(calls));
        Ok(format!("{} {} {} {}", faults.median(), faults.max(), calls.median(), calls.max()))
    })
}

fn map(bytes: usize) -> Result<*mut u8> {
    let protection = ProtFlags::READ | ProtFlags::WRITE;
    let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
    // SAFETY: a new private mapping at an address of the kernel's choice.
    let memory = unsafe { rustix::mm::mmap_anonymous(ptr::null_mut(), bytes, protection, flags)? };
    // SAFETY: the mapping is ours, and the advice does not change what it holds.
    unsafe { rustix::mm::madvise(memory, bytes, Advice::LinuxNoHugepage)? };
    Ok(memory.cast())
}

fn touch(memory: *mut u8, at: usize) {
    // SAFETY: callers stay within their mapping, which is writable. Volatile,
    // because nobody reads it.
    unsafe { memory.add(at).write_volatile(1) };
}

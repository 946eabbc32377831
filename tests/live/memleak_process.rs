//! memleak and the lives of processes: fork, exec, exit, libraries that come
//! late, and ends that nobody wanted.

use std::fs;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::process::Output;
use std::thread;
use std::time::Duration;

use libtest_mimic::Trial;
use rustix::process::Signal;
use serde_json::Value;

use crate::check;
use crate::check_eq;
use crate::common::Outcome;
use crate::common::PASS;
use crate::common::kernels::is_guest;
use crate::common::leak::Amount;
use crate::common::leak::Report;
use crate::common::leak::number;
use crate::common::leak::passes;
use crate::common::leak::report;
use crate::common::leak::watch;
use crate::common::target::Target;
use crate::common::target::program;
use crate::common::test;
use crate::common::watcher::PATIENCE;
use crate::common::watcher::Watcher;
use crate::common::watcher::run;

pub fn tests() -> Vec<Trial> {
    let cycles = if is_guest() { 5 } else { 200 };
    vec![
        test("memleak: a forked child's frees are not the parent's", fork),
        test("memleak: a forked child's blocks are not the parent's", fork_leak),
        test("memleak: --follow counts for a child once it is noticed", follow),
        test("memleak: a program with a root and mounts of its own", own_root),
        test("memleak: exec starts the account over", exec),
        test("memleak: a process that exited still has names", exited),
        test("memleak: a process killed between reports is no error", killed_target),
        test("memleak: two processes at once stay apart", two_processes),
        test("memleak: a library loaded later, and gone again", library),
        test("memleak: an allocator loaded later", late_allocator),
        test("memleak: -- CMD sees what constructors allocate", command),
        test("memleak: -- CMD passes the exit status on", exit_status),
        test("memleak: kill -9 of the watcher leaves the target as it was", killed_watcher),
        test(format!("memleak: {cycles} times attached and gone, threads busy"), move || {
            cycles_of(cycles)
        }),
        test("memleak: programs that cannot be watched are refused with a reason", refusals),
    ]
}

fn fork() -> Outcome {
    for name in ["glibc", "glibc-static", "musl-static"] {
        let mut target = Target::start(name);
        let watcher = watch(&[target.pid()], &[]);
        target.ask("malloc 23 101");
        target.ask("fork");
        target.ask("malloc 7 53");
        let report = report(watcher);
        let held = Amount { bytes: 23 * 101 + 7 * 53, count: 30 };
        check_eq!(report.called_by(target.pid(), "leak_malloc"), held, "{name}");
        report.agrees(target.pid(), target.account)?;
    }
    PASS
}

fn fork_leak() -> Outcome {
    let mut target = Target::start("glibc");
    let watcher = watch(&[target.pid()], &[]);
    target.ask("malloc 23 101");
    target.ask("fork-leak 7 64");
    let child = target.ask("fork-stay 19 80").extra;
    let report = report(watcher);
    report.agrees(target.pid(), target.account)?;
    let child = u32::try_from(child).map_err(|error| error.to_string())?;
    // Followed or not, its blocks are its own.
    check_eq!(report.through(target.pid(), "leak_child"), Amount::default(), "of the parent");
    if report.of_kind(child, "total").next().is_some() {
        check_eq!(report.through(child, "leak_child"), Amount::of(19, 80), "of the child");
    }
    target.ask("reap");
    PASS
}

fn follow() -> Outcome {
    for name in ["glibc", "musl-static"] {
        let mut target = Target::start(name);
        let parent = target.pid();
        let args = ["-i", "0.2", "--top", "100000", "--follow"];
        let watcher = Watcher::start(&[&["memleak", "-P", &parent.to_string()], &args[..]].concat());
        target.ask("malloc 23 101");
        let child = target.ask("fork-over").extra;
        let child = u32::try_from(child).map_err(|error| error.to_string())?;
        let noticed = watcher.wait_for(|row| row["kind"] == "total" && row["pid"] == child);
        check!(noticed.is_ok(), "{name}: no report of the child");
        target.ask("malloc 19 80");
        target.ask("free-last 2");
        let report = report(watcher);
        check!(report.stderr.contains(&format!("follows {child} ")), "{name}: {}", report.stderr);
        check_eq!(report.called_by(parent, "leak_malloc"), Amount::of(23, 101), "{name}: parent");
        check_eq!(report.heap(parent), Amount::of(23, 101), "{name}: parent");
        check_eq!(report.called_by(child, "leak_malloc"), Amount::of(17, 80), "{name}: child");
        check_eq!(report.heap(child), Amount::of(17, 80), "{name}: what it inherited is not its");
    }
    PASS
}

fn own_root() -> Outcome {
    let mut target = Target::start_in_own_root("glibc");
    let watcher = watch(&[target.pid()], &[]);
    target.ask("malloc 23 101");
    target.ask("free 3");
    let report = report(watcher);
    check_eq!(report.called_by(target.pid(), "leak_malloc"), Amount::of(20, 101), "held");
    report.agrees(target.pid(), target.account)
}

fn exec() -> Outcome {
    let mut target = Target::start("glibc");
    let watcher = watch(&[target.pid()], &[]);
    target.ask("malloc 23 101");
    let empty = target.ask("exec");
    check_eq!(empty.blocks, 0, "another program");
    target.ask("calloc 7 53");
    let report = report(watcher);
    check_eq!(report.called_by(target.pid(), "leak_calloc"), Amount::of(7, 159), "since then");
    check_eq!(report.called_by(target.pid(), "leak_malloc"), Amount::default(), "before");
    report.agrees(target.pid(), target.account)
}

fn exited() -> Outcome {
    for name in ["glibc", "musl-static"] {
        let mut target = Target::start(name);
        let pid = target.pid();
        let watcher = watch(&[pid], &[]);
        target.ask("malloc 23 101");
        let account = target.account;
        target.end();
        // By itself: nobody is left to watch.
        let (code, rows, stderr) = watcher.finish();
        check_eq!(code, Some(0), "{name}: {stderr}");
        let report = Report::of(rows, stderr);
        check_eq!(report.called_by(pid, "leak_malloc"), Amount::of(23, 101), "{name}");
        report.agrees(pid, account)?;
    }
    PASS
}

fn killed_target() -> Outcome {
    let mut target = Target::start("glibc");
    let pid = target.pid().to_string();
    target.ask("pool 2");
    let watcher = Watcher::start(&["memleak", "-P", &pid, "-i", "0.01", "--top", "3"]);
    target.ask("stacks 1000 24");
    target.ask("background 64");
    // A few reports while all goes on, then it is gone.
    for _ in 0..3 {
        let found = watcher.wait_for(|row| row["kind"] == "total");
        check!(found.is_ok(), "no report: {found:?}");
    }
    target.kill();
    let (code, rows, stderr) = watcher.finish();
    check_eq!(code, Some(0), "{stderr}");
    check!(!stderr.contains("rror"), "{stderr}");
    check!(rows.iter().all(|row| row["pid"].as_u64().is_some()), "{rows:?}");
    PASS
}

fn two_processes() -> Outcome {
    let mut one = Target::start("glibc");
    let mut other = Target::start("glibc");
    let watcher = watch(&[one.pid(), other.pid()], &[]);
    // A process that is not asked about calls the same functions.
    let mut third = Target::start("glibc");
    one.ask("malloc 23 101");
    other.ask("malloc 7 53");
    third.ask("malloc 31 61");
    one.ask("free 2");
    let report = report(watcher);
    check_eq!(report.called_by(one.pid(), "leak_malloc"), Amount::of(21, 101), "one");
    check_eq!(report.called_by(other.pid(), "leak_malloc"), Amount::of(7, 53), "the other");
    report.agrees(one.pid(), one.account)?;
    report.agrees(other.pid(), other.account)?;
    let strange = u64::from(third.pid());
    check!(report.rows.iter().all(|row| row["pid"] != strange), "{:?}", report.rows);
    PASS
}

fn library() -> Outcome {
    let mut target = Target::start("glibc");
    let pid = target.pid().to_string();
    let watcher = Watcher::start(&["memleak", "-P", &pid, "-i", "0.2", "--top", "100000"]);
    target.ask("dlopen");
    target.ask("plugin 23 101");
    // Names are there if the watcher came to see the file before it was unmapped.
    let named = watcher.wait_for(|row| row["kind"] == "heap" && passes(row, "plugin_malloc"));
    check!(named.is_ok(), "no row of the library");
    target.ask("dlclose");
    let report = report(watcher);
    let held = report.called_by(target.pid(), "plugin_malloc");
    check_eq!(held, Amount::of(23, 101), "{:?}", report.rows);
    PASS
}

fn late_allocator() -> Outcome {
    let mut target = Target::start("glibc");
    let pid = target.pid().to_string();
    let watcher = Watcher::start(&["memleak", "-P", &pid, "-i", "0.2", "--top", "100000"]);
    target.ask("dlopen-allocator");
    // It may be called before it is found; from then on everything counts.
    let mut tries = 0;
    let found = loop {
        target.ask("other 1 61");
        tries += 1;
        let mut others = Amount::default();
        let total = watcher.wait_for(|row| {
            if row["kind"] == "heap" && passes(row, "leak_other") {
                others.bytes = number(row, "bytes");
                others.count = number(row, "count");
            }
            row["kind"] == "total"
        });
        check!(total.is_ok(), "no report");
        if others.count > 0 || tries == 300 {
            break others;
        }
    };
    check!(found.count > 0, "the allocator was never found");
    target.ask("other 23 61");
    let (code, rows, stderr) = watcher.stop();
    check_eq!(code, Some(0), "{stderr}");
    let end = Report::of(rows, stderr).through(target.pid(), "leak_other");
    check!(end.count >= found.count + 23 && end.count <= tries + 23, "{end:?} after {found:?}");
    check_eq!(end.bytes, end.count * 61, "{end:?}");
    PASS
}

/// A run of memleak that starts the target itself.
fn run_target(args: &[&str], name: &str, orders: &[&str]) -> (Output, Vec<Value>) {
    let target = program(name);
    let all =
        [&["memleak", "-o", "json", "--top", "100000"], args, &["--", &target], orders].concat();
    let output = run(&all);
    let rows = String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect();
    (output, rows)
}

fn command() -> Outcome {
    for name in ["constructor", "glibc-static", "musl", "musl-static", "jemalloc"] {
        let (output, rows) = run_target(&[], name, &["calloc 7 53", "exit 0"]);
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        check_eq!(output.status.code(), Some(0), "{name}: {stderr}");
        let report = Report::of(rows, stderr);
        let pid = report.rows.iter().find_map(|row| row["pid"].as_u64()).ok_or("no process")?;
        let pid = u32::try_from(pid).map_err(|error| error.to_string())?;
        let held = report.called_by(pid, "leak_calloc");
        check_eq!(held, Amount::of(7, 159), "{name}: main: {:?}", report.rows);
        let wanted = if name == "constructor" { 23 } else { 0 };
        let constructed = report.called_by(pid, "leak_constructor");
        check_eq!(constructed, Amount::of(wanted, 101), "{name}: before main");
        check_eq!(number(report.total(pid), "unknown_frees"), 0, "{name}: all was seen");
    }
    PASS
}

fn exit_status() -> Outcome {
    for code in [0, 7, 255] {
        let (output, _) = run_target(&[], "glibc", &["malloc 7 53", &format!("exit {code}")]);
        check_eq!(output.status.code(), Some(code), "{}", String::from_utf8_lossy(&output.stderr));
    }
    let nothing = run(&["memleak", "--", "/nonexistent/program"]);
    let stderr = String::from_utf8_lossy(&nothing.stderr);
    check_eq!(nothing.status.code(), Some(1), "{stderr}");
    check!(stderr.contains("/nonexistent/program"), "{stderr}");
    PASS
}

/// How many bytes of a process's code are not those of the files they are
/// from.
fn changed_code(pid: u32) -> Result<usize, std::io::Error> {
    let memory = File::open(format!("/proc/{pid}/mem"))?;
    let mut changed = 0;
    for line in fs::read_to_string(format!("/proc/{pid}/maps"))?.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let [range, "r-xp", offset, _, _, path] = words[..] else { continue };
        if !path.starts_with('/') {
            continue;
        }
        let (start, end) = range.split_once('-').expect("a range");
        let start = u64::from_str_radix(start, 16).expect("hexadecimal");
        let end = u64::from_str_radix(end, 16).expect("hexadecimal");
        let offset = u64::from_str_radix(offset, 16).expect("hexadecimal");
        let mut now = vec![0; usize::try_from(end - start).expect("a length")];
        memory.read_exact_at(&mut now, start)?;
        // What is behind the end of the file reads as 0.
        let mut file = vec![0; now.len()];
        let code = fs::read(path)?;
        let code = &code[usize::try_from(offset).expect("an offset")..];
        let length = code.len().min(file.len());
        file[..length].copy_from_slice(&code[..length]);
        // The linker leaves the section that follows in the last page of the code.
        changed += now.iter().zip(&file).filter(|(now, file)| now != file).count();
    }
    Ok(changed)
}

/// Threads that allocate without a pause. An emulated machine has time for little
/// else beside eight of them.
fn busy() -> &'static str {
    if is_guest() { "pool 2" } else { "pool 8" }
}

fn killed_watcher() -> Outcome {
    for name in ["glibc", "glibc-static", "usdt"] {
        let mut target = Target::start(name);
        target.ask(busy());
        check_eq!(changed_code(target.pid())?, 0, "{name} before");
        let watcher = watch(&[target.pid()], &[]);
        target.ask("background 64");
        check!(changed_code(target.pid())? > 0, "{name}: probes are instructions in its code");
        watcher.signal(Signal::KILL);
        watcher.finish();
        // The kernel takes the probes out when the last reference has gone, soon.
        let mut left = changed_code(target.pid())?;
        for _ in 0..PATIENCE.as_millis() / 10 {
            if left == 0 {
                break;
            }
            thread::sleep(Duration::from_millis(10));
            left = changed_code(target.pid())?;
        }
        check_eq!(left, 0, "{name}: bytes of code that are not the file's");
        target.ask("stop");
        target.ask("malloc 23 101");
        target.ask("verify");
        check_eq!(target.ask("free-all").blocks, 0, "{name} goes on");
        target.end();
    }
    PASS
}

fn cycles_of(cycles: usize) -> Outcome {
    let mut target = Target::start("glibc");
    target.ask(busy());
    target.ask("background 64");
    let pid = target.pid().to_string();
    let belongings = || -> Result<(usize, usize), std::io::Error> {
        let files = fs::read_dir(format!("/proc/{pid}/fd"))?.count();
        let maps = fs::read_to_string(format!("/proc/{pid}/maps"))?.lines().count();
        Ok((files, maps))
    };
    let mut first = None;
    for cycle in 0..cycles {
        let output = run(&["memleak", "-P", &pid, "-d", "0.05", "-o", "json"]);
        let stderr = String::from_utf8_lossy(&output.stderr);
        check_eq!(output.status.code(), Some(0), "cycle {cycle}: {stderr}");
        // The first probe gives a process a page for instructions moved, which stays.
        match first {
            None => first = Some(belongings()?),
            Some(first) => check_eq!(belongings()?, first, "files and maps in cycle {cycle}"),
        }
    }
    target.ask("stop");
    target.ask("verify");
    target.end();
    PASS
}

fn refusals() -> Outcome {
    for (name, reason) in [("glibc-stripped", "symbol"), ("go", "Go"), ("jvm", "Java")] {
        let target = Target::start(name);
        let output = run(&["memleak", "-P", &target.pid().to_string()]);
        let stderr = String::from_utf8_lossy(&output.stderr);
        check_eq!(output.status.code(), Some(1), "{name}: {stderr}");
        check_eq!(stderr.trim_end().lines().count(), 1, "{name}: {stderr}");
        check!(stderr.contains(reason), "{name}: the reason is in {stderr}");
        check!(stderr.contains("--mappings"), "{name}: another way is in {stderr}");
        check_eq!(output.stdout.len(), 0, "{name}: no row");
    }
    PASS
}

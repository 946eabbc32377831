//! mmapsnoop against a worker that says what it asked for and what it was given.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use libtest_mimic::Trial;
use rustix::process::Signal;
use serde_json::Value;

use crate::check;
use crate::check_eq;
use crate::common::Outcome;
use crate::common::PASS;
use crate::common::kernels;
use crate::common::kernels::if_supported;
use crate::common::test;
use crate::common::watcher::PATIENCE;
use crate::common::watcher::Totals;
use crate::common::watcher::Watcher;
use crate::common::worker::Worker;
use crate::common::worker::snoops::MARK;

/// Hooks, and the feature of `tests/kernels.txt` each depends on.
pub const HOOKS: [(&str, &str); 2] =
    [("syscalls", "syscall_tracepoints"), ("raw_syscalls", "syscall_tracepoints")];

pub fn tests() -> Vec<Trial> {
    let mut tests = Vec::new();
    for (hook, feature) in HOOKS {
        tests.push(test(format!("mmapsnoop: 23 calls of mmap, through {hook}"), move || {
            if_supported(feature, has(hook), || mappings(hook))
        }));
        tests.push(test(format!("mmapsnoop: 23 of munmap and mremap, through {hook}"), move || {
            if_supported(feature, has(hook), || the_others(hook))
        }));
        tests.push(test(format!("mmapsnoop: two threads at once, through {hook}"), move || {
            if_supported(feature, has(hook), || two_threads(hook))
        }));
    }
    tests.extend([
        test("mmapsnoop: only calls that fail, only large ones, only of some", filters),
        test("mmapsnoop: every call arrives or is counted as lost", losses),
        test("mmapsnoop: calls of 32-bit programs", narrow),
    ]);
    tests
}

/// Whether this kernel has the tracepoint a hook of the three commands is on.
pub fn has(hook: &str) -> bool {
    let place = if hook == "syscalls" { "syscalls/sys_enter_mmap" } else { "raw_syscalls/sys_enter" };
    ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"]
        .iter()
        .any(|root| Path::new(root).join("events").join(place).join("id").exists())
}

/// Starts a watcher of one process.
pub fn watch(command: &str, pid: u32, args: &[&str]) -> Watcher {
    Watcher::start(&[&[command, "-P", &pid.to_string()], args].concat())
}

/// Ends a watcher, which must have lost nothing, and returns its rows.
pub fn rows_of(watcher: Watcher) -> Result<Vec<Value>, libtest_mimic::Failed> {
    let (code, rows, stderr) = watcher.stop();
    check_eq_result(code == Some(0), &stderr)?;
    check_eq_result(Totals::parse(&stderr).is_some_and(|totals| totals.lost == 0), &stderr)?;
    Ok(rows)
}

fn check_eq_result(holds: bool, stderr: &str) -> Result<(), libtest_mimic::Failed> {
    if holds { Ok(()) } else { Err(stderr.to_owned().into()) }
}

/// The list in a worker's answer.
pub fn list(answer: &str) -> Vec<Value> {
    serde_json::from_str(answer).unwrap_or_else(|error| panic!("{error}: {answer}"))
}

/// What an address, or an error's name, is shown as.
pub fn result(ret: i64) -> String {
    match ret {
        -1 => "EPERM".into(),
        -2 => "ENOENT".into(),
        -9 => "EBADF".into(),
        -12 => "ENOMEM".into(),
        -13 => "EACCES".into(),
        -14 => "EFAULT".into(),
        -17 => "EEXIST".into(),
        -19 => "ENODEV".into(),
        -22 => "EINVAL".into(),
        -28 => "ENOSPC".into(),
        -43 => "EIDRM".into(),
        -75 => "EOVERFLOW".into(),
        -95 => "EOPNOTSUPP".into(),
        ret => {
            assert!(ret >= 0, "an error this test does not know: {ret}");
            format!("{ret:#x}")
        }
    }
}

fn optional(value: Option<Value>) -> Value {
    value.unwrap_or(Value::Null)
}

/// That each row is the call the worker says it made, in order.
fn same(rows: &[Value], made: &[Value], pid: u32) -> Outcome {
    let start = rows.iter().position(|row| row["bytes"].as_u64() == Some(MARK));
    let start = start.ok_or("the first call is missing")?;
    let rows = &rows[start..];
    check!(rows.len() >= made.len(), "{} rows for {} calls", rows.len(), made.len());
    let mut failed = 0;
    for (number, (row, made)) in rows.iter().zip(made).enumerate() {
        let name = made["call"].as_str().ok_or("a name")?;
        let argument = |at: usize| made["args"][at].as_u64().expect("a number");
        let ret = made["ret"].as_i64().ok_or("a result")?;
        let what = |field: &str| format!("{field} of call {number}, {made}, in {row}");
        let hex = |number: u64| Value::from(format!("{number:#x}"));
        check_eq!(row["pid"], pid, "{}", what("pid"));
        check_eq!(row["tid"], pid, "{}", what("tid"));
        check_eq!(row["bits"], 64, "{}", what("bits"));
        if !row["call"].is_null() || name != "mmap" {
            check_eq!(row["call"], name, "{}", what("call"));
        }
        let anonymous = argument(3) & 0x20 != 0;
        let of_file = name == "mmap" && !anonymous;
        check_eq!(row["offset"], optional(of_file.then(|| argument(5).into())), "{}", what("offset"));
        let fd = i64::from(argument(4) as u32 as i32);
        check_eq!(row["fd"], optional(of_file.then(|| fd.into())), "{}", what("fd"));
        check_eq!(row["file"], made["file"], "{}", what("file"));
        let words = |at: usize| Some(made["words"][at].clone()).filter(|word| word != "");
        check_eq!(row["prot"], optional(words(0).filter(|_| name == "mmap")), "{}", what("prot"));
        check_eq!(row["flags"], optional(words(1)), "{}", what("flags"));
        let bytes = argument(if name == "mremap" { 2 } else { 1 });
        check_eq!(row["bytes"], bytes, "{}", what("bytes"));
        let shown = if name == "munmap" && ret == 0 { "0".into() } else { result(ret) };
        check_eq!(row["result"], shown, "{}", what("result"));
        check_eq!(row["returned"], ret, "{}", what("returned"));
        check_eq!(row["failed"], u64::from(ret < 0), "{}", what("failed"));
        failed += u64::from(ret < 0);
        if name == "mremap" {
            check_eq!(row["old_bytes"], argument(1), "{}", what("old_bytes"));
            check_eq!(row["address"], hex(argument(0)), "{}", what("address"));
            let fixed = argument(3) & 6 != 0;
            check_eq!(row["new_address"], optional(fixed.then(|| hex(argument(4)))), "{}", what("new"));
        } else if name == "munmap" {
            check_eq!(row["address"], hex(argument(0)), "{}", what("address"));
        }
    }
    check!(failed >= 5, "only {failed} calls failed");
    PASS
}

fn mappings(hook: &str) -> Outcome {
    let mut worker = Worker::start();
    let watcher = watch("mmapsnoop", worker.pid(), &["--hook", hook]);
    check!(watcher.header["hook"].as_str().is_some_and(|name| name.starts_with(hook)), "{hook}");
    let made = list(&worker.ask("mmaps"));
    let rows = rows_of(watcher)?;
    check_eq!(made.len(), 24, "the mark and 23 calls");
    check!(rows.iter().all(|row| row["call"].is_null()), "others without --all: {rows:?}");
    let kinds: Vec<&str> = made.iter().filter_map(|made| made["file"].as_str()).collect();
    for part in ["/memfd:snoop it (deleted)", "-gone (deleted)", "/dev/shm/", "socket:[", "/b/c/d/xx"] {
        check!(kinds.iter().any(|name| name.contains(part)), "no {part} in {kinds:?}");
    }
    same(&rows, &made, worker.pid())
}

fn the_others(hook: &str) -> Outcome {
    let mut worker = Worker::start();
    let watcher = watch("mmapsnoop", worker.pid(), &["--all", "--hook", hook]);
    let made = list(&worker.ask("remaps"));
    let rows = rows_of(watcher)?;
    for name in ["munmap", "mremap"] {
        check_eq!(made.iter().filter(|made| made["call"] == name).count(), 23, "{name}");
    }
    same(&rows, &made, worker.pid())
}

fn two_threads(hook: &str) -> Outcome {
    let mut worker = Worker::start();
    let watcher =
        watch("mmapsnoop", worker.pid(), &["--hook", hook, "--min-size", &(1u64 << 30).to_string()]);
    let threads = list(&worker.ask("pair 211"));
    // Where threads are preempted in a program, it is skipped for calls of others, whom
    // nobody asked for: they count as lost all the same.
    let others = hook == "syscalls" && kernels::name() == "newest";
    let (code, rows, stderr) = watcher.stop();
    let lost = Totals::parse(&stderr).map(|totals| totals.lost);
    check!(code == Some(0) && lost.is_some_and(|lost| lost <= if others { 10 } else { 0 }), "{stderr}");
    check_eq!(rows.len(), 2 * 211, "rows of both");
    let mut by_tid: HashMap<u64, Vec<&Value>> = HashMap::new();
    for row in &rows {
        by_tid.entry(row["tid"].as_u64().ok_or("a tid")?).or_default().push(row);
    }
    for thread in &threads {
        let tid = thread["tid"].as_u64().ok_or("a tid")?;
        let calls = thread["calls"].as_array().ok_or("calls")?;
        let rows = &by_tid[&tid];
        check_eq!(rows.len(), calls.len(), "rows of thread {tid}");
        for (row, made) in rows.iter().zip(calls) {
            check_eq!(row["bytes"], made["bytes"], "{row}");
            check_eq!(row["returned"], made["ret"], "{row}");
        }
    }
    PASS
}

fn filters() -> Outcome {
    let (mut one, mut two) = (Worker::start(), Worker::start());
    let failed = watch("mmapsnoop", one.pid(), &["--failed", "--all"]);
    let large = watch("mmapsnoop", two.pid(), &["--min-size", "268435456"]);
    let list_of = format!("{},{}", one.pid(), two.pid());
    let both = Watcher::start(&["mmapsnoop", "--min-size", "268435456", "-P", &list_of]);
    let name = "a-name-longer-";
    two.ask("name");
    let named = Watcher::start(&["mmapsnoop", "--comm", name, "--min-size", "268435456"]);
    let made = list(&one.ask("remaps"));
    one.ask("maps 7 536870912");
    two.ask("maps 11 268435456");
    two.ask("maps 3 268431360");
    let rows = rows_of(failed)?;
    let wrong: Vec<&Value> =
        made.iter().filter(|made| made["ret"].as_i64().is_some_and(|ret| ret < 0)).collect();
    check_eq!(rows.len(), wrong.len(), "those that failed: {rows:?}");
    for (row, made) in rows.iter().zip(wrong) {
        check_eq!(row["returned"], made["ret"], "{made}");
    }
    check_eq!(rows_of(large)?.len(), 11, "--min-size");
    check_eq!(rows_of(both)?.len(), 7 + 11, "two processes");
    let rows = rows_of(named)?;
    check_eq!(rows.len(), 11, "--comm");
    check!(rows.iter().all(|row| row["comm"] == name), "--comm: {rows:?}");
    PASS
}

fn losses() -> Outcome {
    let mut worker = Worker::start();
    let watcher =
        watch("mmapsnoop", worker.pid(), &["--ring-kib", "4", "--min-size", "268435456"]);
    worker.ask("maps 3 268435456");
    let mut arrived = 0;
    for _ in 0..3 {
        watcher.next(PATIENCE).ok_or("no row came")?;
        arrived += 1;
    }
    watcher.signal(Signal::STOP);
    worker.ask("maps 509 268435456");
    watcher.signal(Signal::CONT);
    worker.ask("maps 2 268435456");
    let (_, rows, stderr) = watcher.stop();
    let totals = Totals::parse(&stderr).ok_or_else(|| stderr.clone())?;
    arrived += rows.len() as u64;
    check!(totals.lost > 400, "4 KiB cannot hold 509 records: {stderr}");
    check_eq!(arrived, totals.events, "rows and events: {stderr}");
    check_eq!(arrived + totals.lost, 514, "arrived and lost: {stderr}");
    PASS
}

/// Whether this kernel runs 32-bit programs.
pub fn runs_narrow() -> bool {
    cfg!(target_arch = "x86_64") && fs::metadata("/proc/sys/abi/vsyscall32").is_ok()
}

/// A worker that calls as a 32-bit program does, and a watcher of `command`:
/// the rows, what was called, and where `ipc()` put an address.
pub fn narrow_calls(
    command: &str,
    args: &[&str],
) -> Result<(Vec<Value>, Vec<Value>, u64), libtest_mimic::Failed> {
    let mut worker = Worker::start();
    let watcher =
        watch(command, worker.pid(), &[&["--hook", "raw_syscalls"], args].concat());
    // What the other hook says, it keeps.
    let blind = watch(command, worker.pid(), &[&["--hook", "syscalls"], args].concat());
    let said: Value = serde_json::from_str(&worker.ask("narrow"))?;
    let rows = rows_of(watcher)?;
    let (_, seen, stderr) = blind.stop();
    check_eq_result(stderr.contains("32-bit programs are not seen"), &stderr)?;
    let none = seen.iter().all(|row| row["bits"] == 64);
    check_eq_result(none, "the tracepoints of single calls show 32-bit calls")?;
    let narrow = rows.into_iter().filter(|row| row["bits"] == 32).collect();
    let calls = said["calls"].as_array().cloned().unwrap_or_default();
    Ok((narrow, calls, said["place"].as_u64().unwrap_or(0)))
}

fn narrow() -> Outcome {
    if_supported("ia32", runs_narrow() && has("syscalls"), || {
        let (mut rows, made, _) = narrow_calls("mmapsnoop", &["--all"])?;
        let made: Vec<&Value> = made
            .iter()
            .filter(|made| made["call"].as_str().is_some_and(|name| name.contains('m') && !name.contains("shm")))
            .collect();
        check_eq!(made.len(), 6, "{made:?}");
        // Room the worker made for a later call, which is not in its list.
        check_eq!(rows.len(), 7, "{rows:?}");
        rows.pop();
        let page = rustix::param::page_size() as u64;
        let sizes = [31, 1, 37, 41, 41, 1].map(|pages| pages * page);
        for (number, (row, made)) in rows.iter().zip(made).enumerate() {
            let name = made["call"].as_str().ok_or("a name")?.trim_end_matches('2');
            check_eq!(row["call"], name, "{made}");
            check_eq!(row["bytes"], sizes[number], "{made}: {row}");
            check_eq!(row["returned"], made["ret"], "{made}: {row}");
            let words = |at: usize| Some(made["words"][at].clone()).filter(|word| word != "");
            check_eq!(row["prot"], optional(words(0)), "{made}: {row}");
            check_eq!(row["flags"], optional(words(1)), "{made}: {row}");
        }
        check_eq!(rows[1]["offset"], 3 * 4096, "mmap2 counts in 4096 bytes");
        check!(rows[1]["file"].as_str().is_some_and(|name| name.ends_with("-narrow")), "{}", rows[1]);
        PASS
    })
}

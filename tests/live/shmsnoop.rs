//! shmsnoop against a worker that says what it asked for and what it was given,
//! and the inventory against objects of known sizes.

use std::fs;

use libtest_mimic::Trial;
use rustix::process::Signal;
use serde_json::Value;

use crate::check;
use crate::check_eq;
use crate::common::Outcome;
use crate::common::PASS;
use crate::common::kernels::if_supported;
use crate::common::test;
use crate::common::watcher::PATIENCE;
use crate::common::watcher::Totals;
use crate::common::watcher::rows;
use crate::common::watcher::run;
use crate::common::worker::Worker;
use crate::mmapsnoop::HOOKS;
use crate::mmapsnoop::has;
use crate::mmapsnoop::list;
use crate::mmapsnoop::narrow_calls;
use crate::mmapsnoop::result;
use crate::mmapsnoop::rows_of;
use crate::mmapsnoop::runs_narrow;
use crate::mmapsnoop::watch;

pub fn tests() -> Vec<Trial> {
    let mut tests = Vec::new();
    for (hook, feature) in HOOKS {
        tests.push(test(format!("shmsnoop: 23 calls of each kind, through {hook}"), move || {
            if_supported(feature, has(hook), || calls(hook))
        }));
    }
    tests.extend([
        test("shmsnoop: only calls that fail", failed),
        test("shmsnoop: every call arrives or is counted as lost", losses),
        test("shmsnoop: calls of 32-bit programs", narrow),
        test("shmsnoop: an inventory of every kind, with holders", inventory),
        test("shmsnoop: what the inventory leaves out is said", left_out),
    ]);
    tests
}

/// Keys that no other test uses at the same time.
fn shms(worker: &mut Worker) -> (u64, Vec<Value>) {
    let base = 0x5e00_0000 | u64::from(worker.pid() & 0xffff) << 7;
    let answer = worker.ask(&format!("shms {base}"));
    (base, list(&answer))
}

/// What a call is about, followed through a list of calls.
#[derive(Default)]
struct Segments(Vec<(u64, u64, u64)>);

impl Segments {
    fn of(&self, id: u64) -> Option<(u64, u64)> {
        self.0.iter().find(|(found, _, _)| *found == id).map(|(_, bytes, key)| (*bytes, *key))
    }
}

fn key(key: u64) -> Value {
    if key == 0 { "PRIVATE".into() } else { format!("{key:#x}").into() }
}

fn calls(hook: &str) -> Outcome {
    let mut worker = Worker::start();
    let watcher = watch("shmsnoop", worker.pid(), &["--hook", hook]);
    let (_, made) = shms(&mut worker);
    let rows = rows_of(watcher)?;
    for name in ["shmget", "shmat", "shmdt", "shmctl"] {
        let of_kind: Vec<&Value> = made.iter().filter(|made| made["call"] == name).collect();
        let wrong = of_kind.iter().filter(|made| made["ret"].as_i64() < Some(0)).count();
        check!(of_kind.len() >= 23, "{} calls of {name}", of_kind.len());
        check!(wrong >= 4, "only {wrong} calls of {name} fail");
    }
    check_eq!(rows.len(), made.len(), "one row each");
    let mut segments = Segments::default();
    for (row, made) in rows.iter().zip(&made) {
        let name = made["call"].as_str().ok_or("a name")?;
        let argument = |at: usize| made["args"][at].as_u64().expect("a number");
        let words = |at: usize| made["words"][at].clone();
        let ret = made["ret"].as_i64().ok_or("a result")?;
        let what = |field: &str| format!("{field} of {made} in {row}");
        let hex = |number: u64| Value::from(format!("{number:#x}"));
        check_eq!(row["sys"], name, "{}", what("sys"));
        check_eq!((&row["pid"], &row["tid"]), (&worker.pid().into(), &worker.pid().into()), "{row}");
        check_eq!(row["returned"], ret, "{}", what("returned"));
        check_eq!(row["failed"], u64::from(ret < 0), "{}", what("failed"));
        check_eq!(row["bits"], 64, "{}", what("bits"));
        let shown = if ret < 0 || name == "shmat" { result(ret) } else { ret.to_string() };
        check_eq!(row["ret"], shown, "{}", what("ret"));
        let args = row["args"].as_str().ok_or("args")?;
        let id = i64::from(argument(0) as u32 as i32);
        match name {
            "shmget" => {
                check_eq!(row["key"], key(argument(0)), "{}", what("key"));
                check_eq!(row["bytes"], argument(1), "{}", what("bytes"));
                check_eq!(row["flags"], words(1), "{}", what("flags"));
                let id = if ret < 0 { Value::Null } else { ret.into() };
                check_eq!(row["id"], id, "{}", what("id"));
                if ret >= 0 && segments.of(ret as u64).is_none() {
                    segments.0.push((ret as u64, argument(1), argument(0)));
                }
                let real = segments.of(ret as u64).map(|(bytes, _)| bytes);
                check_eq!(row["segment_bytes"].as_u64(), real, "{}", what("segment"));
                check!(args.contains(&format!("size={}", argument(1))), "{}", what("args"));
            }
            "shmat" => {
                check_eq!(row["id"], id, "{}", what("id"));
                check_eq!(row["flags"], words(1), "{}", what("flags"));
                let given = argument(1);
                let given = if given == 0 { Value::Null } else { hex(given) };
                check_eq!(row["address"], given, "{}", what("address"));
                // Of what was not attached, nothing is known.
                let real = segments.of(argument(0)).filter(|_| ret >= 0);
                check_eq!(row["segment_bytes"].as_u64(), real.map(|real| real.0), "{}", what("size"));
                let its = real.map_or(Value::Null, |real| key(real.1));
                check_eq!(row["key"], its, "{}", what("key"));
                check!(args.starts_with(&format!("id={id} ")), "{}", what("args"));
            }
            "shmctl" => {
                check_eq!(row["id"], id, "{}", what("id"));
                check_eq!(row["cmd"], words(0), "{}", what("cmd"));
                let real = segments.of(argument(0));
                check_eq!(row["segment_bytes"].as_u64(), real.map(|real| real.0), "{}", what("size"));
                if argument(1) == 0 && ret == 0 {
                    segments.0.retain(|(found, _, _)| *found != argument(0));
                }
            }
            _ => check_eq!(row["address"], hex(argument(0)), "{}", what("address")),
        }
    }
    PASS
}

fn failed() -> Outcome {
    let (mut worker, mut other) = (Worker::start(), Worker::start());
    let watcher = watch("shmsnoop", worker.pid(), &["--failed"]);
    let (_, made) = shms(&mut worker);
    shms(&mut other);
    let rows = rows_of(watcher)?;
    let wrong: Vec<&Value> =
        made.iter().filter(|made| made["ret"].as_i64() < Some(0)).collect();
    check_eq!(rows.len(), wrong.len(), "{rows:?}");
    for (row, made) in rows.iter().zip(wrong) {
        check_eq!((&row["sys"], &row["returned"]), (&made["call"], &made["ret"]), "{row}");
    }
    PASS
}

fn losses() -> Outcome {
    let mut worker = Worker::start();
    let watcher = watch("shmsnoop", worker.pid(), &["--ring-kib", "4"]);
    worker.ask("badshms 3");
    for _ in 0..3 {
        watcher.next(PATIENCE).ok_or("no row came")?;
    }
    watcher.signal(Signal::STOP);
    worker.ask("badshms 509");
    watcher.signal(Signal::CONT);
    worker.ask("badshms 2");
    let (_, rows, stderr) = watcher.stop();
    let totals = Totals::parse(&stderr).ok_or_else(|| stderr.clone())?;
    check!(totals.lost > 400, "4 KiB cannot hold 509 records: {stderr}");
    check_eq!(rows.len() as u64 + 3, totals.events, "rows and events: {stderr}");
    check_eq!(totals.events + totals.lost, 514, "arrived and lost: {stderr}");
    PASS
}

fn narrow() -> Outcome {
    if_supported("ia32", runs_narrow() && has("syscalls"), || {
        let (rows, made, place) = narrow_calls("shmsnoop", &[])?;
        let made: Vec<&Value> = made
            .iter()
            .filter(|made| made["call"].as_str().is_some_and(|name| name.contains("shm")))
            .collect();
        check_eq!((rows.len(), made.len()), (8, 8), "{rows:?}");
        for (row, made) in rows.iter().zip(&made) {
            let name = made["call"].as_str().ok_or("a name")?;
            check_eq!(row["sys"], name.trim_start_matches("ipc-"), "{made}: {row}");
            let returned = if name == "ipc-shmat" { place.into() } else { made["ret"].clone() };
            check_eq!(row["returned"], returned, "{made}: {row}");
        }
        let sizes = [0, 1, 3, 4, 5, 7].map(|at| rows[at]["segment_bytes"].as_u64());
        let (first, second) = (Some(10_007), Some(20_011));
        check_eq!(sizes, [first, first, first, second, second, second], "sizes: {rows:?}");
        check_eq!(rows[0]["bytes"], 10_007, "{}", rows[0]);
        check_eq!(rows[4]["bytes"], 20_011, "{}", rows[4]);
        let detached = Value::from(format!("{place:#x}"));
        check_eq!(rows[6]["address"], detached, "{}", rows[6]);
        check_eq!(rows[7]["cmd"], "IPC_RMID", "{}", rows[7]);
        PASS
    })
}

fn inventory() -> Outcome {
    const PAGES: u64 = 31;
    let page = rustix::param::page_size() as u64;
    let mut worker = Worker::start();
    let said: Value = serde_json::from_str(&worker.ask(&format!("hold {PAGES}")))?;
    let bytes = said["bytes"].as_u64().ok_or("a size")?;
    let pid = worker.pid();
    let of_one = rows(&["shmsnoop", "--inventory", "-P", &pid.to_string()]);
    worker.ask("fork 2");
    let all = rows(&["shmsnoop", "--inventory"]);
    let on_disk = format!("snoop-disk-{pid} (deleted)");
    let wanted = [
        ("memfd", format!("/memfd:snoop-mapped-{pid} (deleted)"), "map"),
        ("memfd", format!("/memfd:snoop-open-{pid} (deleted)"), "fd"),
        ("memfd", format!("/memfd:snoop-both-{pid} (deleted)"), "map+fd"),
        ("posix", format!("/dev/shm/snoop-posix-{pid}"), "map"),
        ("posix", format!("/dev/shm/snoop-lost-{pid} (deleted)"), "map"),
        ("", on_disk, "map"),
        ("shared", "/dev/zero (deleted)".to_owned(), "map"),
        ("sysv", String::new(), "map"),
    ];
    let swap = fs::read_to_string("/proc/meminfo")?;
    let swaps = |key: &str| swap.lines().find(|line| line.starts_with(key)).map(|line| {
        line.split_whitespace().nth(1).map(str::to_owned)
    });
    let no_swap = swaps("SwapTotal:") == swaps("SwapFree:");
    let folder = rustix::fs::statfs(&std::env::current_dir()?)?;
    for (list, holders) in [(&of_one, 1), (&all, 3)] {
        let sizes: Vec<Option<u64>> = list.iter().map(|row| row["size_bytes"].as_u64()).collect();
        check!(sizes.windows(2).all(|pair| pair[0] >= pair[1]), "not by size: {sizes:?}");
        for (kind, name, how) in &wanted {
            let holder = format!("{pid}/");
            let found: Vec<&Value> = list
                .iter()
                .filter(|row| match *kind {
                    "sysv" => row["id"] == said["id"],
                    "" => row["name"].as_str().is_some_and(|shown| shown.ends_with(name)),
                    _ => row["name"] == **name,
                })
                .filter(|row| row["who"].as_str().is_some_and(|who| who.contains(&holder)))
                .collect();
            check_eq!(found.len(), 1, "{kind} {name} once: {found:?} of {list:?}");
            let row = found[0];
            let size = if *kind == "sysv" { bytes - 11 } else { bytes };
            check_eq!(row["size_bytes"], size, "{row}");
            check_eq!(row["holders"], holders, "{row}");
            let who = row["who"].as_str().ok_or("who")?;
            let mine = who.split(' ').find(|word| word.starts_with(&holder)).unwrap_or_default();
            check!(mine.ends_with(&format!(":{how}")), "{how}: {row}");
            let amount = PAGES * page;
            match *kind {
                // 0x858458f6 is ramfs, which counts no blocks; tmpfs is memory.
                "" if folder.f_type as u64 & 0xffff_ffff == 0x0102_1994 => {
                    check_eq!(row["kind"], "tmpfs", "{row}");
                    check_eq!(row["allocated_bytes"], amount, "{row}");
                }
                "" => {
                    check_eq!(row["kind"], "deleted", "{row}");
                    check!(row["resident_bytes"].is_null(), "not on a disk: {row}");
                }
                "sysv" => {
                    check_eq!(row["kind"], "sysv", "{row}");
                    let sum = ["resident_bytes", "swapped_bytes"].map(|key| row[key].as_u64());
                    check_eq!(sum[0].zip(sum[1]).map(|(a, b)| a + b), Some(amount), "{row}");
                    check_eq!(row["attached"], 2 * holders, "twice each: {row}");
                    check_eq!(row["creator_pid"], pid, "{row}");
                    check_eq!(row["key"], "PRIVATE", "{row}");
                }
                kind => {
                    check_eq!(row["kind"], kind, "{row}");
                    check_eq!(row["allocated_bytes"], amount, "{row}");
                    if no_swap {
                        check_eq!(row["resident_bytes"], amount, "{row}");
                    }
                }
            }
        }
    }
    check_eq!(of_one.len(), wanted.len(), "nothing else is held: {of_one:?}");
    worker.ask("reap");
    fs::remove_file(said["posix"].as_str().ok_or("a path")?)?;
    worker.end();
    let after = rows(&["shmsnoop", "--inventory"]);
    let left = after.iter().any(|row| row["id"] == said["id"] && row["kind"] == "sysv");
    check!(!left, "still there: {after:?}");
    PASS
}

fn left_out() -> Outcome {
    let mut worker = Worker::start();
    let said: Value = serde_json::from_str(&worker.ask("hold 3"))?;
    let pid = worker.pid().to_string();
    let output = run(&["shmsnoop", "--inventory", "-P", &pid, "--top", "3"]);
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    fs::remove_file(said["posix"].as_str().ok_or("a path")?)?;
    check!(output.status.success(), "{stderr}");
    check!(stderr.contains("5 more objects are not listed (--top)"), "{stderr}");
    check!(stderr.contains("3 rows"), "{stderr}");
    PASS
}

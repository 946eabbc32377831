//! brkstack against a worker that moves its break by known amounts, from known
//! stacks.

use std::collections::BTreeMap;

use libtest_mimic::Failed;
use libtest_mimic::Trial;
use rustix::process::Signal;
use serde_json::Value;

use crate::check;
use crate::check_eq;
use crate::common::Outcome;
use crate::common::PASS;
use crate::common::kernels::if_supported;
use crate::common::test;
use crate::common::watcher;
use crate::common::watcher::PATIENCE;
use crate::common::watcher::Totals;
use crate::common::watcher::Watcher;
use crate::common::worker::Worker;
use crate::mmapsnoop::HOOKS;
use crate::mmapsnoop::has;
use crate::mmapsnoop::list;
use crate::mmapsnoop::narrow_calls;
use crate::mmapsnoop::rows_of;
use crate::mmapsnoop::runs_narrow;
use crate::mmapsnoop::watch;

pub fn tests() -> Vec<Trial> {
    let mut tests = Vec::new();
    for (hook, feature) in HOOKS {
        tests.push(test(format!("brkstack: 23 calls, by stack, through {hook}"), move || {
            if_supported(feature, has(hook), || by_stack(hook))
        }));
        tests.push(test(format!("brkstack: each of 23 calls, through {hook}"), move || {
            if_supported(feature, has(hook), || each_call(hook))
        }));
    }
    tests.extend([
        test("brkstack: folded stacks, flame graph and pprof", profiles),
        test("brkstack: a program that has ended, and one after exec", ended),
        test("brkstack: what --top leaves out is summed up", top),
        test("brkstack: every call arrives or is counted as lost", losses),
        test("brkstack: calls of 32-bit programs", narrow),
    ]);
    tests
}

/// The functions of a stack, the last of their names: those behind the one
/// that made the call.
fn callers(row: &Value) -> Option<String> {
    let stack = row["stack"].as_array()?;
    let names: Vec<&str> = stack
        .iter()
        .map(|frame| frame["symbol"].as_str().unwrap_or("?"))
        .map(|name| name.rsplit("::").next().unwrap_or(name))
        .collect();
    let (first, rest) = names.split_first()?;
    (*first == "brk_here").then(|| rest.join(" "))
}

/// calls, grown, shrunk, failed
type Sums = BTreeMap<String, [u64; 4]>;

/// What the worker says it did, by stack.
fn expected(made: &[Value]) -> Sums {
    let mut sums = Sums::new();
    for made in made {
        let number = |key: &str| made[key].as_u64().expect("a number");
        let (old, asked, now) = (number("old"), number("asked"), number("now"));
        let sum = sums.entry(made["stack"].as_str().expect("a stack").to_owned()).or_default();
        sum[0] += 1;
        if asked != now {
            sum[3] += 1;
        } else if now > old {
            sum[1] += now - old;
        } else {
            sum[2] += old - now;
        }
    }
    sums
}

fn reported(rows: &[Value]) -> Sums {
    let mut sums = Sums::new();
    for row in rows.iter().filter(|row| row["kind"].is_null()) {
        let Some(stack) = callers(row) else { continue };
        let sum = sums.entry(stack).or_default();
        for (at, key) in ["calls", "grown_bytes", "shrunk_bytes", "failed"].iter().enumerate() {
            sum[at] += row[key].as_u64().expect("a number");
        }
    }
    sums
}

/// The rows up to one of that stack.
fn rows_until(watcher: &Watcher, stack: &str) -> Result<Vec<Value>, Failed> {
    let mut rows = Vec::new();
    let found = watcher.wait_for(|row| {
        rows.push(row.clone());
        callers(row).as_deref() == Some(stack)
    });
    match found {
        Ok(_) => Ok(rows),
        Err(_) => Err(format!("no row of {stack}: {rows:?}").into()),
    }
}

fn by_stack(hook: &str) -> Outcome {
    let mut worker = Worker::start();
    let watcher = watch("brkstack", worker.pid(), &["--hook", hook, "-i", "0.3"]);
    let first = list(&worker.ask("brks"));
    // Over several intervals: each counts what was new in it.
    let mut rows = rows_until(&watcher, "brk_first")?;
    let second = list(&worker.ask("brks"));
    rows.extend(rows_of(watcher)?);
    check_eq!(first.len(), 23, "calls");
    let wanted = expected(&[first, second].concat());
    check_eq!(wanted.len(), 3, "stacks");
    check_eq!(reported(&rows), wanted, "by stack: {rows:?}");
    check!(rows.iter().filter(|row| callers(row).is_some()).count() > 3, "one report for all");
    // Since the start.
    let last = rows.iter().rev().find(|row| callers(row).as_deref() == Some("brk_first"));
    check_eq!(last.ok_or("no such row")?["total_bytes"], wanted["brk_first"][1], "total");
    // The totals hold every stack, ours and the C library's.
    let sum = |kind: bool, key: &str| -> u64 {
        let rows = rows.iter().filter(|row| row["kind"].is_null() != kind);
        rows.map(|row| row[key].as_u64().expect("a number")).sum()
    };
    for key in ["calls", "grown_bytes", "shrunk_bytes", "failed"] {
        check_eq!(sum(true, key), sum(false, key), "the totals of {key}");
    }
    PASS
}

fn each_call(hook: &str) -> Outcome {
    let mut worker = Worker::start();
    let watcher = watch("brkstack", worker.pid(), &["--hook", hook, "--events"]);
    let made = list(&worker.ask("brks"));
    let rows = rows_of(watcher)?;
    let rows: Vec<&Value> = rows.iter().filter(|row| callers(row).is_some()).collect();
    check_eq!(rows.len(), made.len(), "one row each, none for a question");
    for (row, made) in rows.into_iter().zip(&made) {
        let number = |key: &str| made[key].as_u64().expect("a number");
        let hex = |key: &str| Value::from(format!("{:#x}", number(key)));
        check_eq!(row["pid"], worker.pid(), "{row}");
        check_eq!(row["tid"], worker.pid(), "{row}");
        check_eq!(callers(row).unwrap_or_default(), made["stack"], "{row}");
        check_eq!(row["old_break"], hex("old"), "{row} {made}");
        check_eq!(row["asked_break"], hex("asked"), "{row} {made}");
        check_eq!(row["break"], hex("now"), "{row} {made}");
        let failed = number("asked") != number("now");
        check_eq!(row["result"], if failed { "failed" } else { "ok" }, "{row} {made}");
        let change = if failed { 0 } else { number("now") as i64 - number("old") as i64 };
        check_eq!(row["change_bytes"], change, "{row} {made}");
    }
    PASS
}

fn profiles() -> Outcome {
    for format in ["folded", "flamegraph", "pprof"] {
        let mut worker = Worker::start();
        let pid = worker.pid().to_string();
        let path = std::env::temp_dir().join(format!("brkstack-{pid}.{format}"));
        let path_text = path.to_str().ok_or("a path")?;
        let args = ["brkstack", "-P", &pid, "-o", format, "--file", path_text, "-v", "-d", "30"];
        let mut child = watcher::command(&args)
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::piped())
            .spawn()?;
        // Nothing is printed before the end: attached is what the kernel says.
        crate::common::worker::snoops::until_attached(child.id());
        let made = list(&worker.ask("brks"));
        // Ended while the worker lives, so that its functions can be named.
        rustix::process::kill_process(rustix::process::Pid::from_child(&child), Signal::INT)?;
        let status = child.wait()?;
        worker.end();
        check!(status.success(), "{format}: {status}");
        let text = std::fs::read(&path)?;
        std::fs::remove_file(&path)?;
        match format {
            "folded" => {
                let text = String::from_utf8(text)?;
                for (stack, [_, grown, _, _]) in expected(&made) {
                    // Outermost first.
                    let mut names: Vec<&str> = stack.split(' ').collect();
                    names.reverse();
                    let found = text.lines().any(|line| {
                        let Some((frames, value)) = line.rsplit_once(' ') else { return false };
                        let short: Vec<&str> = frames
                            .split(';')
                            .map(|name| name.rsplit("::").next().unwrap_or(name))
                            .collect();
                        short == [names.as_slice(), &["brk_here"]].concat()
                            && value.parse() == Ok(grown)
                    });
                    check!(found, "no {stack} with {grown} in {text}");
                }
            }
            "flamegraph" => {
                let text = String::from_utf8(text)?;
                check!(text.contains("<svg") && text.contains("brk_second"), "{text}");
            }
            _ => {
                check!(text.starts_with(&[0x1f, 0x8b]), "pprof is compressed: {:?}", text.first());
            }
        }
    }
    PASS
}

fn ended() -> Outcome {
    let mut worker = Worker::start();
    let watcher = watch("brkstack", worker.pid(), &["-i", "0.2"]);
    let first = list(&worker.ask("brks"));
    // The watcher has to look at the program while it lives.
    let mut rows = rows_until(&watcher, "brk_second")?;
    check_eq!(worker.ask("exec"), "ready", "the same program anew");
    let second = list(&worker.ask("brks"));
    rows.extend(rows_until(&watcher, "brk_second")?);
    worker.end();
    let (code, more, stderr) = watcher.finish();
    check_eq!(code, Some(0), "{stderr}");
    rows.extend(more);
    // Each program has its own rows.
    let last = rows.iter().rev().find(|row| callers(row).as_deref() == Some("brk_second"));
    let anew = expected(&second)["brk_second"][1];
    check_eq!(last.ok_or("no such row")?["total_bytes"], anew, "since exec: {rows:?}");
    let wanted = expected(&[first, second].concat());
    check_eq!(reported(&rows), wanted, "named after its end: {rows:?}");
    PASS
}

fn top() -> Outcome {
    let mut worker = Worker::start();
    let watcher = watch("brkstack", worker.pid(), &["-i", "30", "--top", "1"]);
    let made = list(&worker.ask("brks"));
    let rows = rows_of(watcher)?;
    let (totals, rows): (Vec<Value>, Vec<Value>) =
        rows.into_iter().partition(|row| row["kind"] == "total");
    check_eq!((totals.len(), rows.len()), (1, 1), "{totals:?} {rows:?}");
    let largest = expected(&made).into_values().map(|sums| sums[1]).max();
    check!(rows[0]["grown_bytes"].as_u64() >= largest, "the largest first: {rows:?}");
    for (all, listed, left_out) in
        [("calls", "calls", "unlisted_calls"), ("grown_bytes", "grown_bytes", "unlisted_grown_bytes")]
    {
        let number = |row: &Value, key: &str| row[key].as_u64().expect("a number");
        let sum = number(&rows[0], listed) + number(&totals[0], left_out);
        check_eq!(number(&totals[0], all), sum, "{all}");
    }
    check!(totals[0]["stacks"].as_u64() >= Some(3), "{totals:?}");
    PASS
}

fn losses() -> Outcome {
    let mut worker = Worker::start();
    let watcher = watch("brkstack", worker.pid(), &["--events", "--ring-kib", "4"]);
    let mine = |row: &Value| row["asked_break"] == "0x1";
    worker.ask("badbrks 3");
    let mut arrived = 0;
    while arrived < 3 {
        let row = watcher.next(PATIENCE).ok_or("no row came")?;
        arrived += u64::from(mine(&row));
    }
    watcher.signal(Signal::STOP);
    worker.ask("badbrks 509");
    watcher.signal(Signal::CONT);
    worker.ask("badbrks 2");
    let (_, rows, stderr) = watcher.stop();
    let totals = Totals::parse(&stderr).ok_or_else(|| stderr.clone())?;
    arrived += rows.iter().filter(|row| mine(row)).count() as u64;
    check!(totals.lost > 400, "4 KiB cannot hold 509 records: {stderr}");
    check_eq!(arrived + totals.lost, 514, "arrived and lost: {stderr}");

    // The table needs no ring: counts are whole without it.
    let watcher = watch("brkstack", worker.pid(), &["--ring-kib", "4", "-i", "30"]);
    watcher.signal(Signal::STOP);
    worker.ask("badbrks 509");
    watcher.signal(Signal::CONT);
    let rows = rows_of(watcher)?;
    let failed: u64 = rows
        .iter()
        .filter(|row| row["kind"].is_null())
        .filter_map(|row| row["failed"].as_u64())
        .sum();
    check_eq!(failed, 509, "{rows:?}");
    PASS
}

fn narrow() -> Outcome {
    if_supported("ia32", runs_narrow() && has("syscalls"), || {
        let (rows, _, _) = narrow_calls("brkstack", &["--events"])?;
        check_eq!(rows.len(), 1, "{rows:?}");
        check_eq!(rows[0]["asked_break"], "0x1003", "{rows:?}");
        check_eq!(rows[0]["result"], "failed", "far below the heap: {rows:?}");
        PASS
    })
}

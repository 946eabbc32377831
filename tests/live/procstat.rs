//! procstat against `/proc/PID/status`.
//!
//! A process at rest has one true value for each column. Since 6.2 the file
//! shows it; before, the file shows the counters without the part each thread
//! still keeps, and the page tables (`smaps_rollup`) tell the truth. A thread
//! hands its part over after 66 faults (`check_sync_rss_stat()`, mm/memory.c:
//! `events++ > 64`); a fault brings one anonymous page or, around the address,
//! up to 16 pages of a file (`fault_around_bytes`, 64 KiB).

use std::collections::BTreeSet;
use std::collections::HashMap;
use std::fs;
use std::time::Duration;

use libtest_mimic::Failed;
use libtest_mimic::Trial;
use rustix::process::Pid;
use rustix::process::Signal;
use serde_json::Value;

use crate::check;
use crate::check_eq;
use crate::common::Outcome;
use crate::common::PASS;
use crate::common::kernels::if_supported;
use crate::common::kernels::is_guest;
use crate::common::kernels::zram_swap;
use crate::common::oracle;
use crate::common::oracle::Status;
use crate::common::test;
use crate::common::watcher::PATIENCE;
use crate::common::watcher::Totals;
use crate::common::watcher::Watcher;
use crate::common::watcher::rows;
use crate::common::watcher::run;
use crate::common::worker::Worker;

/// Hooks, and the feature of `tests/kernels.txt` each depends on.
const HOOKS: [(&str, &str); 4] = [
    ("fentry:finish_task_switch", "plain_finish_task_switch"),
    ("tp_btf:sched_switch", "tp_btf"),
    ("iter:task", "iter"),
    ("proc:status", "iter"),
];

pub fn tests() -> Vec<Trial> {
    let mut tests = Vec::new();
    for (hook, feature) in HOOKS {
        tests.push(test(format!("procstat: memory of every kind, through {hook}"), move || {
            with_hook(hook, feature, || every_kind_of_memory(hook))
        }));
        tests.push(test(format!("procstat: 61 threads, through {hook}"), move || {
            with_hook(hook, feature, || many_threads(hook))
        }));
    }
    tests.extend([
        test("procstat: the default hook is at the context switch", default_hook),
        test("procstat: swapped out and in again", swap),
        test("procstat: huge pages", huge_pages),
        test("procstat: 2000 processes, each with its own count", two_thousand),
        test("procstat: processes that exit at once", short_lived),
        test("procstat: more threads than are walked before 6.2", crowd),
        test("procstat: memory shared with a process that is no thread", sharers),
        test("procstat: a process whose first thread has left", leader_left),
        test("procstat: a CPU that comes online while running", cpu_hotplug),
        test("procstat: kernel threads only when asked for", kernel_threads),
        test("procstat: every context switch is a row", every_switch),
        test("procstat: a full ring loses events and says how many", losses_are_exact),
        test("procstat: -P, --comm and --cgroup select in the kernel", filters),
        test("procstat: rows are sorted and cut", sorting),
        test("procstat: nothing unchanged is repeated", only_changes),
        test("procstat: ends when its target exits", target_exits),
    ]);
    tests
}

/// Runs `body` if this kernel has the hook; its own refusal is the probe.
fn with_hook(hook: &'static str, feature: &str, body: impl FnOnce() -> Outcome) -> Outcome {
    let probe = run(&["procstat", "--hook", hook, "-n", "1", "-P", "1"]);
    if probe.status.code() == Some(4) {
        return if_supported(feature, false, body);
    }
    check!(probe.status.success(), "{}", String::from_utf8_lossy(&probe.stderr));
    body()
}

/// One column: its key, its line in `/proc/PID/status`, and whether it is one
/// of the counters that may lag there before 6.2.
const COLUMNS: [(&str, &str, bool); 11] = [
    ("size_kib", "VmRSS", true),
    ("rss_anon_kib", "RssAnon", true),
    ("rss_file_kib", "RssFile", true),
    ("rss_shmem_kib", "RssShmem", true),
    ("vm_swap_kib", "VmSwap", true),
    ("vm_size_kib", "VmSize", false),
    ("vm_peak_kib", "VmPeak", false),
    ("rss_peak_kib", "VmHWM", true),
    ("vm_data_kib", "VmData", false),
    ("vm_stack_kib", "VmStk", false),
    ("vm_pte_kib", "VmPTE", false),
];

/// What is wrong with a row of a process at rest; `None`: nothing.
fn disagreement(row: &Value, status: &Status, split: bool) -> Option<String> {
    let threads = status["Threads"];
    for (key, line, may_lag) in COLUMNS {
        let Some(ours) = row[key].as_u64() else {
            return Some(format!("{key} is missing in {row}"));
        };
        let theirs = status[line];
        let mut bound = 0;
        if split && may_lag {
            let pages = if matches!(line, "RssAnon" | "VmSwap") { 1 } else { 16 };
            bound = 66 * pages * threads * oracle::page_kib();
        }
        if ours.abs_diff(theirs) > bound {
            return Some(format!("{key} {ours}, {line} {theirs}, allowed {bound}"));
        }
    }
    if row["rss_error_kib"].as_u64() != Some(0) && row["hook"].is_null() && !split {
        return Some(format!("not exact: {row}"));
    }
    let parts = ["rss_anon_kib", "rss_file_kib", "rss_shmem_kib"];
    let sum: u64 = parts.iter().filter_map(|key| row[key].as_u64()).sum();
    (row["size_kib"].as_u64() != Some(sum)).then(|| format!("SIZE is not the sum in {row}"))
}

/// The newest row of `pid`, once it agrees with the kernel.
///
/// With `exact` it must also agree with the page tables: a row that is still on
/// its way lies within the bound of a file that lags.
fn settle(
    watcher: &Watcher,
    pid: u32,
    (split, exact): (bool, bool),
    stage: &str,
) -> Result<Value, Failed> {
    let mut why = String::from("no row came");
    let found = watcher.wait_for(|row| {
        if row["pid"].as_u64() != Some(pid.into()) {
            return false;
        }
        let status = oracle::status(pid).expect("the worker lives");
        let wrong = disagreement(row, &status, split)
            .or_else(|| exact.then(|| against_page_tables(row, pid, stage))?.err()?.message().map(str::to_owned));
        match wrong {
            None => true,
            Some(text) => {
                why = text;
                false
            }
        }
    });
    found.map_err(|_| Failed::from(format!("{stage}: {why}")))
}

/// What the page tables say of the same process.
fn against_page_tables(row: &Value, pid: u32, stage: &str) -> Outcome {
    let truth = oracle::smaps_rollup(pid).expect("smaps_rollup");
    check_eq!(row["size_kib"].as_u64(), Some(truth["Rss"]), "{stage}: VmRSS");
    check_eq!(row["rss_anon_kib"].as_u64(), Some(truth["Anonymous"]), "{stage}: RssAnon");
    check_eq!(row["vm_swap_kib"].as_u64(), Some(truth["Swap"]), "{stage}: VmSwap");
    PASS
}

fn every_kind_of_memory(hook: &str) -> Outcome {
    let split = oracle::counters_are_split();
    // /proc lags where the counters are split; the other hooks never do.
    let exact = !split || hook != "proc:status";
    let mut worker = Worker::start();
    let pid = worker.pid();
    let text = pid.to_string();
    let watcher =
        Watcher::start(&["procstat", "--hook", hook, "-R", "-i", "0.1", "-P", text.as_str()]);
    check_eq!(watcher.header["hook"].as_str(), Some(hook), "the header names the hook");

    let mut before = settle(&watcher, pid, (split, exact), "at start")?;
    // Prime numbers of pages, and what each stage must add, in pages.
    let stages: [(&str, &str, i64); 8] = [
        ("anon 7919", "rss_anon_kib", 7919),
        ("file 1009", "rss_file_kib", 1009),
        ("shared 503", "rss_shmem_kib", 503),
        ("stack 211", "rss_anon_kib", 211),
        ("locked 101", "rss_anon_kib", 101),
        ("reserve 40009", "vm_size_kib", 40009),
        ("halve", "rss_anon_kib", -3959),
        ("unmap", "rss_anon_kib", 3959 - 7919),
    ];
    for (stage, column, pages) in stages {
        worker.ask(stage);
        let row = settle(&watcher, pid, (split, exact), stage)?;
        let kib = |row: &Value| row[column].as_i64().expect("a number");
        let grown = kib(&row) - kib(&before);
        // Page tables, the heap of the answer and its stack frames come along:
        // a few pages beside hundreds.
        let slack = (24 + if exact { 0 } else { 2 * 66 * 16 }) * oracle::page_kib() as i64;
        let wanted = pages * oracle::page_kib() as i64;
        check!(
            (grown - wanted).abs() <= slack,
            "{stage}: {column} changed by {grown} KiB, due {wanted}"
        );
        before = row;
    }
    worker.end();
    let (code, _, stderr) = watcher.finish();
    check_eq!(code, Some(0), "{stderr}");
    check_eq!(Totals::parse(&stderr).map(|totals| totals.lost), Some(0), "{stderr}");
    PASS
}

fn many_threads(hook: &str) -> Outcome {
    let split = oracle::counters_are_split();
    let mut worker = Worker::start();
    worker.ask("threads 61");
    let text = worker.pid().to_string();
    let all = rows(&["procstat", "--hook", hook, "-R", "-n", "1", "-P", text.as_str()]);
    check_eq!(all.len(), 1, "one row a process, not one a thread: {all:?}");
    let status = oracle::status(worker.pid()).expect("the worker lives");
    check_eq!(status["Threads"], 62, "threads");
    if let Some(why) = disagreement(&all[0], &status, split) {
        return Err(why.into());
    }
    // These move with every switch, so only a snapshot can be compared.
    for (key, line) in
        [("nvcsw", "voluntary_ctxt_switches"), ("nivcsw", "nonvoluntary_ctxt_switches")]
    {
        check_eq!(all[0][key].as_u64(), Some(status[line]), "{key}");
    }
    if !split || hook != "proc:status" {
        against_page_tables(&all[0], worker.pid(), "61 threads")?;
    }
    worker.end();
    PASS
}

fn default_hook() -> Outcome {
    let watcher = Watcher::start(&["procstat", "-n", "1", "-P", "1"]);
    let hook = watcher.header["hook"].as_str().unwrap_or_default().to_owned();
    let plain = fs::read_to_string("/proc/kallsyms")
        .is_ok_and(|text| text.lines().any(|line| line.ends_with(" finish_task_switch")));
    if plain {
        return if_supported("fentry", hook == "fentry:finish_task_switch", || PASS);
    }
    check_eq!(hook, "tp_btf:sched_switch", "finish_task_switch is a clone here");
    PASS
}

fn swap() -> Outcome {
    let ready = is_guest() && zram_swap();
    if_supported("swap", ready, || {
        let split = oracle::counters_are_split();
        let mut worker = Worker::start();
        let pid = worker.pid();
        let text = pid.to_string();
        let watcher = Watcher::start(&["procstat", "-R", "-i", "0.1", "-P", text.as_str()]);
        worker.ask("anon 4003");
        let full = settle(&watcher, pid, (split, true), "before")?;
        check_eq!(full["vm_swap_kib"].as_u64(), Some(0), "nothing is swapped out yet");
        worker.ask("pageout");
        let out = settle(&watcher, pid, (split, true), "swapped out")?;
        let swapped = out["vm_swap_kib"].as_u64().unwrap_or(0) / oracle::page_kib();
        // Pages still in the CPUs' batches for the LRU lists (at most 31 each,
        // PAGEVEC_SIZE and later FOLIO_BATCH_SIZE) cannot be taken yet.
        check!(swapped >= 4003 - 4 * 31, "only {swapped} of 4003 pages went");
        worker.ask("pagein");
        settle(&watcher, pid, (split, true), "swapped in")?;
        worker.end();
        PASS
    })
}

fn huge_pages() -> Outcome {
    let path = "/sys/kernel/mm/transparent_hugepage/enabled";
    let enabled = fs::read_to_string(path).is_ok_and(|text| !text.contains("[never]"))
        || (is_guest() && fs::write(path, "madvise").is_ok());
    if !enabled {
        return if_supported("thp", false, || PASS);
    }
    let mut worker = Worker::start();
    worker.ask("huge 8192");
    let text = worker.pid().to_string();
    let all = rows(&["procstat", "-R", "-n", "1", "-P", text.as_str()]);
    let status = oracle::status(worker.pid()).expect("the worker lives");
    if let Some(why) = disagreement(&all[0], &status, oracle::counters_are_split()) {
        return Err(why.into());
    }
    against_page_tables(&all[0], worker.pid(), "huge pages")?;
    worker.end();
    PASS
}

fn two_thousand() -> Outcome {
    let split = oracle::counters_are_split();
    let mut worker = Worker::start();
    worker.ask("fork 2000");
    let path = format!("/proc/{0}/task/{0}/children", worker.pid());
    let children: BTreeSet<u32> = fs::read_to_string(path)
        .expect("children")
        .split_whitespace()
        .map(|pid| pid.parse().expect("a PID"))
        .collect();
    check_eq!(children.len(), 2000, "children");
    let by_pid: HashMap<u64, Value> = rows(&["procstat", "-R", "-n", "1"])
        .into_iter()
        .map(|row| (row["pid"].as_u64().expect("a PID"), row))
        .collect();
    for &child in &children {
        let Some(row) = by_pid.get(&child.into()) else {
            return Err(format!("{child} is not in the first list").into());
        };
        let status = oracle::status(child).expect("the child lives");
        if let Some(why) = disagreement(row, &status, split) {
            return Err(format!("{child}: {why}").into());
        }
    }
    worker.ask("reap");
    worker.end();
    PASS
}

fn short_lived() -> Outcome {
    let name = "mw-short-lived";
    let link = std::env::temp_dir().join(name);
    let _ = fs::remove_file(&link);
    fs::copy(std::env::current_exe()?, &link)?;
    let watcher = Watcher::start(&["procstat", "--no-initial", "-i", "0.2", "--comm", name]);
    let mut seen = BTreeSet::new();
    let mut started = BTreeSet::new();
    for _ in 0..23 {
        // Leaves the CPU at least twice after exec, then exits well within the
        // interval.
        let mut worker = Worker::start_as(&link);
        started.insert(u64::from(worker.pid()));
        worker.ask("sleep 1");
        worker.end();
    }
    let end = std::time::Instant::now() + PATIENCE;
    while seen != started {
        let Some(row) = watcher.next(end.saturating_duration_since(std::time::Instant::now()))
        else {
            return Err(format!("saw {seen:?} of {started:?}").into());
        };
        check!(row["rss_anon_kib"].as_u64().is_some_and(|kib| kib > 0), "an empty row: {row}");
        check_eq!(row["comm"].as_str(), Some(name), "comm");
        seen.insert(row["pid"].as_u64().expect("a PID"));
    }
    let (code, _, stderr) = watcher.stop();
    fs::remove_file(&link)?;
    check_eq!(code, Some(0), "{stderr}");
    PASS
}

/// RSS_MAX_THREADS of rss.bpf.h is 768: beyond, a row says how far off it may be.
fn crowd() -> Outcome {
    let mut worker = Worker::start();
    worker.ask("crowd 907");
    within_the_stated_bound(worker)
}

/// Before 6.2 another process with the same memory keeps counts of its own.
fn sharers() -> Outcome {
    let mut worker = Worker::start();
    worker.ask("anon 997");
    worker.ask("share");
    within_the_stated_bound(worker)
}

/// Where not every part of a counter is added, the row says how far off it may
/// be, and is no further off; elsewhere it is exact.
fn within_the_stated_bound(worker: Worker) -> Outcome {
    let text = worker.pid().to_string();
    let row = rows(&["procstat", "-n", "1", "-P", text.as_str()]).remove(0);
    let truth = oracle::smaps_rollup(worker.pid()).ok_or("smaps_rollup")?["Anonymous"];
    worker.end();
    let error = row["rss_error_kib"].as_u64().ok_or("no bound")?;
    check_eq!(error > 0, oracle::counters_are_split(), "the bound is stated where due: {row}");
    let anon = row["rss_anon_kib"].as_u64().ok_or("no number")?;
    check!(anon.abs_diff(truth) <= error, "RSSANON {anon} is off by more than {error}: {truth}");
    PASS
}

fn leader_left() -> Outcome {
    let mut worker = Worker::start();
    worker.ask("second 97");
    worker.tell("leave");
    let status = format!("/proc/{}/status", worker.pid());
    let end = std::time::Instant::now() + PATIENCE;
    while !fs::read_to_string(&status)?.contains("(zombie)") {
        check!(std::time::Instant::now() < end, "the first thread does not leave");
        std::thread::sleep(Duration::from_millis(5));
    }
    let tasks = format!("/proc/{}/task", worker.pid());
    let other = fs::read_dir(tasks)?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok())
        .find(|&tid| tid != worker.pid())
        .ok_or("no other thread")?;
    let text = worker.pid().to_string();
    let all = rows(&["procstat", "-n", "1", "-P", text.as_str()]);
    check_eq!(all.len(), 1, "one row a process: {all:?}");
    // The file of the first thread is empty; that of any other is the process's.
    against_page_tables(&all[0], other, "leader left")
}

fn cpu_hotplug() -> Outcome {
    let switch = "/sys/devices/system/cpu/cpu1/online";
    // Only a guest's CPUs may be switched.
    let off = is_guest() && fs::write(switch, "0").is_ok();
    if !off {
        return if_supported("cpu_hotplug", false, || PASS);
    }
    let split = oracle::counters_are_split();
    let mut worker = Worker::start();
    let pid = worker.pid();
    let text = pid.to_string();
    let watcher = Watcher::start(&["procstat", "-R", "-i", "0.1", "-P", text.as_str()]);
    settle(&watcher, pid, (split, true), "with one CPU")?;
    fs::write(switch, "1")?;
    // Its pages are counted on the CPU that was not there.
    worker.pin(1);
    // A report passes, in which the watcher sees the new CPU.
    std::thread::sleep(Duration::from_millis(500));
    worker.ask("anon 2003");
    settle(&watcher, pid, (split, true), "with two CPUs")?;
    worker.end();
    PASS
}

fn kernel_threads() -> Outcome {
    let kthreadd = |args: &[&str]| rows(args).into_iter().find(|row| row["pid"] == 2);
    let without = kthreadd(&["procstat", "-n", "1"]);
    check!(without.is_none(), "a kernel thread without --kthreads: {without:?}");
    let Some(row) = kthreadd(&["procstat", "-n", "1", "--kthreads"]) else {
        return Err("kthreadd is missing with --kthreads".into());
    };
    check_eq!(row["comm"].as_str(), Some("kthreadd"), "comm");
    check!(row["size_kib"].is_null(), "no memory is null, not a number: {row}");

    // A process that exits has lost its memory too, and is no kernel thread.
    let watcher = Watcher::start(&["procstat", "--kthreads", "--no-initial", "-i", "0.1"]);
    let mut worker = Worker::start();
    let pid = u64::from(worker.pid());
    worker.ask("anon 997");
    worker.end();
    std::thread::sleep(Duration::from_millis(300));
    let (_, rows, stderr) = watcher.stop();
    let empty = |row: &&Value| row["pid"] == pid && row["size_kib"].is_null();
    check!(!rows.iter().any(|row| empty(&row)), "an exited process is shown: {stderr}");
    PASS
}

fn every_switch() -> Outcome {
    let mut worker = Worker::start();
    let text = worker.pid().to_string();
    let watcher = Watcher::start(&["procstat", "--every-switch", "-R", "-P", text.as_str()]);
    let before = worker.ask("usage");
    worker.ask("sleep 1009");
    let after = worker.ask("usage");
    // Its last answer was followed by the wait for the next order.
    worker.end();
    let (code, rows, stderr) = watcher.finish();
    check_eq!(code, Some(0), "{stderr}");
    check_eq!(Totals::parse(&stderr).map(|totals| totals.lost), Some(0), "{stderr}");

    let pair = |text: &str| -> Vec<u64> {
        text.split(' ').map(|word| word.parse().expect("a number")).collect()
    };
    let (before, after) = (pair(&before), pair(&after));
    // A sleep that is over before it begins is no switch.
    check!(after[0] - before[0] >= 809, "the workload switched {before:?} to {after:?}");
    let switches = |row: &Value| {
        row["nvcsw"].as_u64().expect("a number") + row["nivcsw"].as_u64().expect("a number")
    };
    // The kernel numbers the switches: none may be missing, none may be twice.
    for pair in rows.windows(2) {
        check_eq!(switches(&pair[1]), switches(&pair[0]) + 1, "successive rows");
    }
    let (first, last) = (switches(&rows[0]), switches(&rows[rows.len() - 1]));
    check!(first <= before[0] + before[1] + 1, "began at {first}, after {before:?}");
    check!(last >= after[0] + after[1], "ended at {last}, before {after:?}");
    PASS
}

fn losses_are_exact() -> Outcome {
    let mut worker = Worker::start();
    let text = worker.pid().to_string();
    let args = ["procstat", "--every-switch", "-R", "--ring-kib", "4", "-P", text.as_str()];
    let watcher = Watcher::start(&args);
    // Makes sure that it is running before it is stopped.
    worker.ask("sleep 3");
    let first = watcher.next(PATIENCE).ok_or("no row came")?;
    watcher.signal(Signal::STOP);
    worker.ask("sleep 1009");
    watcher.signal(Signal::CONT);
    worker.ask("sleep 100");
    let after = worker.ask("usage");
    worker.end();
    let (_, rows, stderr) = watcher.finish();
    let totals = Totals::parse(&stderr).ok_or_else(|| stderr.clone())?;
    check!(totals.lost > 0, "4 KiB cannot hold 1009 records: {stderr}");
    let switches = |row: &Value| {
        row["nvcsw"].as_u64().expect("a number") + row["nivcsw"].as_u64().expect("a number")
    };
    // What arrived and what was lost are together what the kernel counted,
    // from the first row to the last.
    let last = rows.iter().rev().map(switches).next().unwrap_or_else(|| switches(&first));
    let spanned = last - switches(&first) + 1;
    let arrived = rows.len() as u64 + 1;
    check_eq!(arrived, totals.events, "rows and events: {stderr}");
    let wanted: u64 =
        after.split(' ').map(|word| word.parse::<u64>().expect("a number")).sum();
    check!(last >= wanted, "the end was not seen: {last} of {wanted}");
    check_eq!(arrived + totals.lost, spanned, "arrived and lost against the kernel: {stderr}");
    PASS
}

fn pids(all: &[Value]) -> BTreeSet<u64> {
    all.iter().filter_map(|row| row["pid"].as_u64()).collect()
}

fn filters() -> Outcome {
    let mut workers: Vec<Worker> = (0..3).map(|_| Worker::start()).collect();
    let ids: Vec<u64> = workers.iter().map(|worker| worker.pid().into()).collect();

    let list = format!("{},{}", ids[0], ids[2]);
    check_eq!(
        pids(&rows(&["procstat", "-n", "1", "-P", &list])),
        BTreeSet::from([ids[0], ids[2]]),
        "-P with two"
    );

    workers[1].ask("name");
    // The kernel keeps 15 characters; users may give the whole name.
    let by_name = rows(&["procstat", "-n", "1", "--comm", "a-name-longer-"]);
    check_eq!(pids(&by_name), BTreeSet::from([ids[1]]), "--comm");
    check!(rows(&["procstat", "-n", "1", "--comm", "no-such-name"]).is_empty(), "--comm unknown");

    // The same while switching, not only in the first list.
    let watcher =
        Watcher::start(&["procstat", "--no-initial", "-i", "0.2", "-P", &ids[0].to_string()]);
    for worker in &mut workers {
        worker.ask("anon 997");
    }
    let row = watcher
        .wait_for(|_| true)
        .map_err(|_| Failed::from("no row of the one that was asked for"))?;
    check_eq!(row["pid"].as_u64(), Some(ids[0]), "-P while running");
    let (_, rest, _) = watcher.stop();
    check!(rest.iter().all(|row| row["pid"].as_u64() == Some(ids[0])), "others came: {rest:?}");

    let Some(mount) = cgroup2() else {
        return if_supported("cgroup2", false, || PASS);
    };
    let folder = format!("{mount}/mem_watcher_test");
    let below = format!("{folder}/below");
    fs::create_dir_all(&below)?;
    fs::write(format!("{folder}/cgroup.procs"), ids[0].to_string())?;
    fs::write(format!("{below}/cgroup.procs"), ids[2].to_string())?;
    let found = pids(&rows(&["procstat", "-n", "1", "--cgroup", &folder]));
    let in_proc = pids(&rows(&["procstat", "--hook", "proc", "-n", "1", "--cgroup", &folder]));
    for worker in workers {
        worker.end();
    }
    fs::remove_dir(&below)?;
    fs::remove_dir(&folder)?;
    check_eq!(found, BTreeSet::from([ids[0], ids[2]]), "--cgroup holds what is below it");
    check_eq!(found, in_proc, "--cgroup, in the kernel and from /proc");
    PASS
}

fn cgroup2() -> Option<String> {
    let text = fs::read_to_string("/proc/self/mounts").ok()?;
    let line = text.lines().find(|line| line.split(' ').nth(2) == Some("cgroup2"))?;
    line.split(' ').nth(1).map(str::to_owned)
}

fn sorting() -> Outcome {
    let by = |sort: &str, key: &str| -> Vec<i64> {
        rows(&["procstat", "-n", "1", "--sort", sort, "--top", "7"])
            .iter()
            .filter_map(|row| row[key].as_i64())
            .collect()
    };
    for (sort, key) in [("rss", "size_kib"), ("anon", "rss_anon_kib"), ("growth", "size_kib")] {
        let values = by(sort, key);
        check!(values.len() <= 7, "--top 7 gave {}", values.len());
        check!(values.windows(2).all(|pair| pair[0] >= pair[1]), "--sort {sort}: {values:?}");
    }
    growth_is_what_a_process_gained()?;
    let values = by("pid", "pid");
    check!(values.windows(2).all(|pair| pair[0] < pair[1]), "--sort pid: {values:?}");
    PASS
}

fn growth_is_what_a_process_gained() -> Outcome {
    let mut workers = [Worker::start(), Worker::start()];
    workers[0].ask("anon 4001");
    let list = format!("{},{}", workers[0].pid(), workers[1].pid());
    let args = ["procstat", "--sort", "growth", "--top", "1", "-i", "0.2", "-P", &list];
    let watcher = Watcher::start(&args);
    let first = watcher.next(PATIENCE).ok_or("no first list")?;
    check_eq!(first["pid"].as_u64(), Some(workers[0].pid().into()), "the larger one: {first}");
    check!(first["growth_kib"].is_null(), "not seen before: {first}");
    // The smaller one was cut off by --top and still counts as seen.
    workers[1].ask("anon 1511");
    let grown = watcher
        .wait_for(|row| row["growth_kib"].as_i64().is_some_and(|kib| kib > 0))
        .map_err(|rows| Failed::from(format!("no growth in {rows:?}")))?;
    check_eq!(grown["pid"].as_u64(), Some(workers[1].pid().into()), "who grew: {grown}");
    let mut gained = grown["growth_kib"].as_u64().expect("a number");
    let wanted = 1511 * oracle::page_kib();
    // On the way, it may be seen more than once.
    while gained < wanted {
        let row = watcher.next(PATIENCE).ok_or_else(|| format!("{gained} of {wanted} KiB"))?;
        gained += row["growth_kib"].as_u64().unwrap_or(0);
    }
    check!(gained <= wanted + 64 * oracle::page_kib(), "{gained} KiB where {wanted} are due");
    PASS
}

fn only_changes() -> Outcome {
    let mut worker = Worker::start();
    let text = worker.pid().to_string();
    let watcher = Watcher::start(&["procstat", "-i", "0.1", "-P", text.as_str()]);
    // Runs again and again without a change, then changes once.
    for _ in 0..5 {
        worker.ask("sleep 3");
        std::thread::sleep(Duration::from_millis(120));
    }
    let quiet = oracle::status(worker.pid()).expect("the worker lives")["RssAnon"];
    worker.ask("anon 1511");
    let split = oracle::counters_are_split();
    let row = watcher
        .wait_for(|row| row["rss_anon_kib"].as_u64().is_some_and(|kib| kib > quiet + 1511))
        .map_err(|rows| Failed::from(format!("the change was not shown: {rows:?}")))?;
    let (_, rest, _) = watcher.stop();
    let status = oracle::status(worker.pid()).expect("the worker lives");
    let newest = rest.last().unwrap_or(&row);
    let slack = if split { 66 * oracle::page_kib() } else { 0 };
    let shown = newest["rss_anon_kib"].as_u64().expect("a number");
    check!(shown.abs_diff(status["RssAnon"]) <= slack, "last shown {shown}, {status:?}");
    let mut all: Vec<&Value> = rest.iter().collect();
    all.insert(0, &row);
    let key = |row: &Value| (row["rss_anon_kib"].clone(), row["rss_file_kib"].clone());
    check!(all.windows(2).all(|pair| key(pair[0]) != key(pair[1])), "a row was repeated: {all:?}");
    worker.end();
    PASS
}

fn target_exits() -> Outcome {
    let worker = Worker::start();
    let text = worker.pid().to_string();
    let watcher = Watcher::start(&["procstat", "-i", "30", "-P", text.as_str()]);
    let _ = watcher.next(PATIENCE).ok_or("no first row")?;
    rustix::process::kill_process(
        Pid::from_raw(worker.pid() as i32).ok_or("a PID")?,
        Signal::KILL,
    )?;
    worker.end();
    let (code, _, stderr) = watcher.finish();
    check_eq!(code, Some(0), "{stderr}");
    check!(stderr.contains("has exited"), "it did not say why it ended: {stderr}");
    PASS
}

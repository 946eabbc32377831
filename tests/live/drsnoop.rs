//! drsnoop against the kernel's own counts: `memory.stat` and `memory.events` of a
//! cgroup, `allocstall_*`, `pgsteal_direct` and `compact_stall` of `/proc/vmstat`,
//! and the time the stalled calls took.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::time::Instant;

use libtest_mimic::Failed;
use libtest_mimic::Trial;
use rustix::process::Signal;
use serde_json::Value;

use crate::check;
use crate::check_eq;
use crate::common::Outcome;
use crate::common::PASS;
use crate::common::kernels;
use crate::common::kernels::if_supported;
use crate::common::kernels::is_guest;
use crate::common::kernels::zram_swap;
use crate::common::leak::number;
use crate::common::oracle::vmstat;
use crate::common::pressure::Cgroup;
use crate::common::pressure::Setting;
use crate::common::pressure::drop_caches;
use crate::common::test;
use crate::common::trace;
use crate::common::trace::Trace;
use crate::common::watcher::Totals;
use crate::common::watcher::Watcher;
use crate::common::watcher::run;
use crate::common::worker::Worker;

const FENTRY: &str = "fentry:try_to_free_mem_cgroup_pages";
const KPROBE: &str = "kprobe:try_to_free_mem_cgroup_pages";
const EVENTS: &str = "vmscan:mm_vmscan_direct_reclaim_begin";
const TP_BTF: &str = "tp_btf:mm_vmscan_direct_reclaim_begin";

/// How many huge pages there are to be.
const POOL: &str = "/proc/sys/vm/nr_hugepages";

/// Hooks, and the feature of `tests/kernels.txt` each depends on.
const HOOKS: [(&str, &str); 4] = [
    (FENTRY, "fentry"),
    (KPROBE, "kprobe"),
    (EVENTS, "syscall_tracepoints"),
    (TP_BTF, "tp_btf"),
];

pub fn tests() -> Vec<Trial> {
    let mut tests = Vec::new();
    for (hook, feature) in HOOKS {
        let each = |what: &str, body: fn(&str) -> Outcome| {
            test(format!("drsnoop: {what}, through {hook}"), move || {
                if_supported(feature, usable(hook), || body(hook))
            })
        };
        tests.push(each("a cgroup's limit", limit));
        tests.push(each("memory.high", high));
        tests.push(each("a memory node", node));
        if hook == FENTRY || hook == KPROBE {
            tests.push(each("compaction", compaction));
        }
    }
    tests.push(test("drsnoop: the machine's memory, through each hook", direct));
    tests.push(test("drsnoop: what is asked of a cgroup", proactive));
    tests.push(test("drsnoop: who is asked for", filters));
    tests.push(test("drsnoop: the shortest stall shown, and the histogram of all", shortest));
    tests.push(test("drsnoop: rows and losses are all there was", losses));
    tests.push(test("drsnoop: the functions of a stall", stacks));
    tests.push(test("drsnoop: what is wrong on the command line", wrong));
    tests
}

/// Whether this kernel has the hook; fails on another error.
fn usable(hook: &str) -> bool {
    // With -n it would wait for a row.
    let probe = run(&["drsnoop", "--hook", hook, "-d", "0.01"]);
    let lacks = probe.status.code() == Some(4);
    assert!(probe.status.success() || lacks, "{}", String::from_utf8_lossy(&probe.stderr));
    !lacks
}

/// A cgroup with a worker in it that has a file to read.
fn scarce(name: &str, body: impl FnOnce(&Cgroup, &mut Worker) -> Outcome) -> Outcome {
    let group = Cgroup::create(name);
    if_supported("memcg", group.is_some(), || {
        let group = group.ok_or("a cgroup")?;
        if is_guest() {
            drop_caches();
        }
        let mut worker = Worker::start();
        worker.ask("stall-file 6007");
        if is_guest() {
            drop_caches();
        }
        group.add(worker.pid())?;
        let outcome = body(&group, &mut worker);
        worker.end();
        outcome
    })
}

fn limit_of(group: &Cgroup) -> Result<(), Failed> {
    Ok(group.limit(8 << 20)?)
}

fn micros(answer: &str) -> Result<u64, Failed> {
    answer.parse().map_err(|_| Failed::from(format!("not a time: {answer}")))
}

fn sum(rows: &[Value], key: &str) -> u64 {
    rows.iter().map(|row| number(row, key)).sum()
}

fn of_cause(rows: &[Value], cause: &str) -> Vec<Value> {
    rows.iter().filter(|row| row["cause"] == cause).cloned().collect()
}

/// The rows of stalls, the figures behind them, and what was lost.
fn finished(watcher: Watcher) -> Result<(Vec<Value>, Vec<Value>, u64), Failed> {
    let (code, rows, stderr) = watcher.stop();
    if code != Some(0) {
        return Err(format!("exit code {code:?}: {stderr}").into());
    }
    let lost = Totals::parse(&stderr).map(|totals| totals.lost).ok_or("no totals")?;
    let (figures, rows) = rows.into_iter().partition(|row| row["kind"].is_string());
    Ok((rows, figures, lost))
}

/// Of one thread: no stall took longer than all calls, nor did all of them together.
/// Latencies are rounded up to microseconds, the calls' time is rounded down.
fn took(rows: &[Value], wall_us: u64) -> Result<(), Failed> {
    for row in rows {
        let latency = number(row, "latency_us");
        if latency == 0 || latency > wall_us + 1 {
            return Err(format!("{latency} us of {wall_us}: {row}").into());
        }
    }
    let (all, slack) = (sum(rows, "latency_us"), rows.len() as u64 + 1);
    if all > wall_us + slack {
        return Err(format!("{all} us of {wall_us} in {} stalls", rows.len()).into());
    }
    Ok(())
}

/// Whether the kernel or the hook says which cgroup is reclaimed.
fn knows_target(watcher: &Watcher) -> bool {
    !watcher.header["notes"].to_string().contains("TARGET")
}

/// What was reclaimed for a cgroup is `pgsteal` of its `memory.stat`. Before 6.4 slabs
/// count too, of 8 pages at most (slub_max_order), each of which held an object that was
/// `scanned`.
fn stolen(rows: &[Value], pgsteal: u64, scanned: u64) -> Outcome {
    let with_slabs = ["5.10", "6.1"].contains(&&*kernels::name());
    let most = pgsteal + if with_slabs { 8 * scanned } else { 0 };
    let ours = sum(rows, "reclaimed_pages");
    check!((pgsteal..=most).contains(&ours), "{ours}, by pgsteal {pgsteal} to {most}");
    PASS
}

fn limit(hook: &str) -> Outcome {
    scarce("limit", |group, worker| {
        limit_of(group)?;
        let pid = worker.pid().to_string();
        let watcher = Watcher::start(&["drsnoop", "--hook", hook, "--unit", "pages", "-P", &pid]);
        check_eq!(watcher.header["hook"].as_str(), Some(hook), "the header names the hook");
        let target = knows_target(&watcher).then(|| group.path());
        let before = (group.number("memory.stat", "pgsteal"), group.number("memory.events", "max"));
        let shrunk = vmstat("/proc/vmstat")["slabs_scanned"];
        let wall = micros(&worker.ask("stall-read 6007"))?;
        let shrunk = vmstat("/proc/vmstat")["slabs_scanned"] - shrunk;
        let after = (group.number("memory.stat", "pgsteal"), group.number("memory.events", "max"));
        let (rows, _, lost) = finished(watcher)?;
        check_eq!(lost, 0, "{} rows", rows.len());
        // 6007 pages through 2048: at least so many have to go, SWAP_CLUSTER_MAX or more at a time.
        check!(rows.len() > 1 && sum(&rows, "reclaimed_pages") > 6007 - 2048, "{rows:?}");
        let cgroup = group.path();
        for row in &rows {
            check_eq!(row["pid"], worker.pid(), "{row}");
            check_eq!(row["tid"], worker.pid(), "{row}");
            check_eq!(row["cause"], "limit", "{row}");
            check_eq!(row["cgroup"].as_str(), Some(&*cgroup), "{row}");
            check_eq!(row["target"].as_str(), target.as_deref(), "{row}");
            check_eq!(row["order"], 0, "{row}");
        }
        took(&rows, wall)?;
        if let (Some(before), Some(after)) = (before.0, after.0) {
            stolen(&rows, after - before, shrunk)?;
        }
        if let (Some(before), Some(after)) = (before.1, after.1) {
            check_eq!(rows.len() as u64, after - before, "max of memory.events");
        }
        PASS
    })
}

/// Anonymous memory without swap: nothing can be reclaimed, and the thread sleeps.
fn high(hook: &str) -> Outcome {
    let sleeps = hook == FENTRY || hook == KPROBE;
    scarce("high", |group, worker| {
        if !group.is_v2() {
            return if_supported("cgroup2", false, || PASS);
        }
        group.set("memory.high", 4 << 20)?;
        let swap = group.set("memory.swap.max", 0);
        check!(swap.is_ok() || !zram(), "memory.swap.max: {swap:?}");
        let watcher = Watcher::start(&["drsnoop", "--hook", hook, "--unit", "pages"]);
        let knows = knows_target(&watcher);
        let before = group.number("memory.events", "high").ok_or("memory.events")?;
        let wall = micros(&worker.ask("stall-anon 1103"))?;
        let after = group.number("memory.events", "high").ok_or("memory.events")?;
        let (rows, _, lost) = finished(watcher)?;
        check_eq!(lost, 0, "{} rows", rows.len());
        let path = group.path();
        let (reclaims, delays) = (of_cause(&rows, "high"), of_cause(&rows, "high-delay"));
        check_eq!(reclaims.len() as u64, after - before, "high of memory.events");
        check!(!reclaims.is_empty(), "{rows:?}");
        check_eq!(!delays.is_empty(), sleeps, "{} stalls", rows.len());
        let own = |row: &&Value| row["pid"] == worker.pid();
        let mine: Vec<Value> = reclaims.iter().chain(&delays).filter(own).cloned().collect();
        took(&mine, wall)?;
        for row in &mine {
            check_eq!(row["cgroup"].as_str(), Some(&*path), "{row}");
        }
        for row in reclaims.iter().chain(&delays) {
            let known = knows || row["cause"] == "high-delay";
            check_eq!(row["target"].as_str(), known.then_some(&*path), "{row}");
        }
        for row in &delays {
            check_eq!(row["pid"], worker.pid(), "{row}");
            check!(row["reclaimed_pages"].is_null() && row["order"].is_null(), "{row}");
        }
        PASS
    })
}

fn zram() -> bool {
    fs::read_to_string("/proc/swaps").is_ok_and(|text| text.lines().count() > 1)
}

fn total_of(counters: &HashMap<String, u64>, begin: &str) -> u64 {
    counters.iter().filter(|(name, _)| name.starts_with(begin)).map(|(_, value)| value).sum()
}

/// Asks for huge pages until none is to be had, a few at a time: an emulated kernel
/// takes long to clear many. Answers how long it took, in microseconds.
fn fill_pool() -> Result<u64, Failed> {
    let begin = Instant::now();
    let mut refused = 0;
    for wanted in (16..2000).step_by(16).map(|wanted: u32| wanted.to_string()) {
        fs::write(POOL, &wanted)?;
        refused += u32::from(fs::read_to_string(POOL)?.trim() != wanted);
        if refused == 3 {
            return Ok(begin.elapsed().as_micros() as u64);
        }
    }
    Err("there were pages for all".into())
}

/// Huge pages are asked for until none is to be had, in front of a watcher for each
/// hook. Nothing is killed for their sake.
fn direct() -> Outcome {
    if_supported("zram", is_guest() && zram_swap(), || {
        let mut worker = Worker::start();
        worker.ask("stall-anon 60013");
        let hooks = HOOKS.iter().filter(|(hook, _)| usable(hook));
        let watchers: Vec<Watcher> = hooks
            .map(|(hook, _)| Watcher::start(&["drsnoop", "--hook", hook, "--unit", "pages"]))
            .collect();
        check!(!watchers.is_empty(), "no hook");
        let before = vmstat("/proc/vmstat");
        let asked = fill_pool();
        fs::write(POOL, "0")?;
        let after = vmstat("/proc/vmstat");
        let wall = asked?;
        let since = |name: &str| total_of(&after, name) - total_of(&before, name);
        for watcher in watchers {
            let hook = watcher.header["hook"].to_string();
            let (rows, figures, lost) = finished(watcher)?;
            check_eq!(lost, 0, "{hook}: {} rows", rows.len());
            let direct = of_cause(&rows, "direct");
            check!(!direct.is_empty(), "{hook}: no direct reclaim in {wall} us");
            // do_try_to_free_pages() counts once more each time it starts over: three times at most.
            let (stalls, counted) = (direct.len() as u64, since("allocstall"));
            check!(stalls <= counted && counted <= 4 * stalls, "{hook}: {stalls}, allocstall {counted}");
            // What a thread reclaims also counts page cache that goes with its inode, and
            // slabs, of 8 pages at most (slub_max_order), each of which held an object that
            // was scanned; pgsteal_direct has pages of the LRU lists only.
            let (had, stolen) = (sum(&direct, "reclaimed_pages"), since("pgsteal_direct"));
            let beside = since("pginodesteal") + 8 * since("slabs_scanned");
            check!(
                had >= stolen && had - stolen <= beside,
                "{hook}: {had} pages; pgsteal_direct {stolen}, beside it at most {beside}"
            );
            let own = |row: &&Value| row["pid"] == std::process::id();
            let mine: Vec<Value> = direct.iter().filter(own).cloned().collect();
            check!(!mine.is_empty(), "{hook}: {direct:?}");
            took(&mine, wall)?;
            for row in &mine {
                check!(row["target"].is_null() && number(row, "free_pages") > 0, "{hook}: {row}");
            }
            let total = figures.iter().find(|figure| figure["kind"] == "total").ok_or("a total")?;
            check_eq!(number(total, "stalls"), rows.len() as u64, "{hook}: {total}");
            check!(total["psi_some_percent"].is_number(), "{hook}: {total}");
        }
        PASS
    })
}

/// One node full of page cache, which is reclaimed before the other node is used.
fn node(hook: &str) -> Outcome {
    const BEGIN: &str = "mm_vmscan_node_reclaim_begin";
    const END: &str = "mm_vmscan_node_reclaim_end";
    let two = Path::new("/sys/devices/system/node/node1").exists();
    if_supported("numa", is_guest() && two, || {
        drop_caches();
        let (mut worker, mut reader) = (Worker::start(), Worker::start());
        // A thread reclaims the node it runs on only.
        worker.pin(1);
        reader.pin(1);
        let per_mib = 256;
        let free = || vmstat("/sys/devices/system/node/node1/vmstat")["nr_free_pages"];
        reader.ask(&format!("reclaim-hold {}", free() / per_mib + 64));
        let pid = worker.pid().to_string();
        let watcher = Watcher::start(&["drsnoop", "--hook", hook, "--unit", "pages", "-P", &pid]);
        let events = [BEGIN, END].map(|event| format!("vmscan/{event}"));
        let trace = Trace::start(&events.each_ref().map(|event| &**event), &format!("common_pid == {pid}"))
            .ok_or("no instance of tracefs in a guest")?;
        // Also mapped and dirty pages: lists by generation are left alone otherwise.
        let mode = Setting::of("/proc/sys/vm/zone_reclaim_mode", "7").ok_or("zone_reclaim_mode")?;
        // kswapd may have made room again.
        let more = format!("stall-anon {}", free() + 4099);
        let begin = Instant::now();
        worker.ask(&more);
        let wall = begin.elapsed().as_micros() as u64;
        drop(mode);
        let lines = trace.stop();
        let (rows, figures, lost) = finished(watcher)?;
        check_eq!(lost, 0, "{} rows", rows.len());
        let of = |event: &str| lines.iter().filter(|line| line.contains(event)).collect::<Vec<_>>();
        let (begun, ended) = (of(BEGIN), of(END));
        check_eq!(begun.len(), ended.len(), "{lines:?}");
        check!(!begun.is_empty(), "nothing was reclaimed of the node: {rows:?}");
        let nodes = of_cause(&rows, "node");
        check_eq!(nodes.len(), ended.len(), "rows and what the kernel recorded: {rows:?}");
        for (row, (begin, end)) in nodes.iter().zip(begun.iter().zip(&ended)) {
            check_eq!(number(row, "order"), trace::number(begin, "order"), "{row}: {begin}");
            let reclaimed = trace::number(end, "nr_reclaimed");
            check_eq!(number(row, "reclaimed_pages"), reclaimed, "{row}: {end}");
            check_eq!(row["tid"], worker.pid(), "{row}");
            check!(row["target"].is_null(), "{row}");
        }
        check!(sum(&nodes, "reclaimed_pages") > 0, "{} rows", nodes.len());
        took(&rows, wall)?;
        let classes = figures.iter().filter(|f| f["kind"] == "histogram" && f["of"] == "node");
        let counted: u64 = classes.map(|class| number(class, "stalls")).sum();
        check_eq!(counted, nodes.len() as u64, "{figures:?}");
        worker.end();
        reader.end();
        PASS
    })
}

fn compaction(hook: &str) -> Outcome {
    if !is_guest() {
        return if_supported("hugetlb", false, || PASS);
    }
    // Page cache, that there is something to move.
    let mut worker = Worker::start();
    worker.ask("stall-file 0");
    worker.ask("stall-read 60013");
    let watcher =
        Watcher::start(&["drsnoop", "--hook", hook, "--compaction", "--unit", "pages"]);
    let before = vmstat("/proc/vmstat");
    let asked = fill_pool();
    fs::write(POOL, "0")?;
    let after = vmstat("/proc/vmstat");
    let (rows, _, lost) = finished(watcher)?;
    let wall = asked?;
    check_eq!(lost, 0, "{} rows", rows.len());
    let rows = of_cause(&rows, "compaction");
    // Since 5.13 what was skipped is not counted (06dac2f467fe "mm: compaction: update the
    // COMPACT[STALL|FAIL] events properly"), and what was deferred in newer ones.
    let uncounted: &[&str] = match &*kernels::name() {
        "5.10" => &[],
        "newest" => &["skipped", "deferred"],
        _ => &["skipped"],
    };
    let results: Vec<&str> = rows.iter().filter_map(|row| row["result"].as_str()).collect();
    let stalls = results.iter().filter(|result| !uncounted.contains(result)).count() as u64;
    check_eq!(results.len(), rows.len(), "results");
    check!(!rows.is_empty(), "no compaction");
    let counted = after["compact_stall"] - before["compact_stall"];
    check_eq!(stalls, counted, "compact_stall: {results:?}");
    let mine: Vec<Value> =
        rows.iter().filter(|row| row["pid"] == std::process::id()).cloned().collect();
    took(&mine, wall)?;
    for row in &mine {
        check_eq!(row["order"], 9, "a huge page: {row}");
        check!(row["reclaimed_pages"].is_null() && row["result"].is_string(), "{row}");
    }
    PASS
}

/// Through `memory.reclaim`, which the test itself writes.
fn proactive() -> Outcome {
    scarce("proactive", |group, worker| {
        let there = group.folder().join("memory.reclaim").exists();
        if !there {
            return if_supported("memory_reclaim", false, || PASS);
        }
        worker.ask("stall-read 6007");
        let pid = std::process::id().to_string();
        let watcher = Watcher::start(&["drsnoop", "--unit", "pages", "-P", &pid]);
        let before = group.number("memory.stat", "pgsteal").ok_or("pgsteal")?;
        let shrunk = vmstat("/proc/vmstat")["slabs_scanned"];
        group.set("memory.reclaim", 4 << 20)?;
        let shrunk = vmstat("/proc/vmstat")["slabs_scanned"] - shrunk;
        let after = group.number("memory.stat", "pgsteal").ok_or("pgsteal")?;
        let (rows, _, _) = finished(watcher)?;
        check!(!rows.is_empty() && rows.iter().all(|row| row["cause"] == "proactive"), "{rows:?}");
        stolen(&rows, after - before, shrunk)?;
        check!(rows.iter().all(|row| row["cgroup"].as_str() != Some(&group.path())), "{rows:?}");
        PASS
    })
}

fn filters() -> Outcome {
    scarce("filters", |group, worker| {
        limit_of(group)?;
        let other = Worker::start();
        let (pid, other) = (worker.pid().to_string(), other.pid().to_string());
        let folder = group.folder().to_str().ok_or("a plain path")?.to_owned();
        let comm = fs::read_to_string(format!("/proc/{pid}/comm"))?;
        let mut cases: Vec<(Vec<&str>, bool)> = vec![
            (vec!["-P", &pid], true),
            (vec!["-P", &other], false),
            (vec!["--comm", comm.trim()], true),
            (vec!["--comm", "nobody"], false),
        ];
        if group.is_v2() {
            cases.push((vec!["--cgroup", &folder], true));
        }
        for (filter, expected) in cases {
            let watcher = Watcher::start(&[&["drsnoop"], &*filter].concat());
            worker.ask("stall-read 6007");
            let (rows, figures, _) = finished(watcher)?;
            check_eq!(!rows.is_empty(), expected, "{filter:?}");
            let total = figures.iter().find(|figure| figure["kind"] == "total").ok_or("a total")?;
            check_eq!(number(total, "stalls") > 0, expected, "{filter:?}: {total}");
        }
        PASS
    })
}

fn shortest() -> Outcome {
    scarce("shortest", |group, worker| {
        limit_of(group)?;
        let pid = worker.pid().to_string();
        let all = Watcher::start(&["drsnoop", "-P", &pid]);
        let none = Watcher::start(&["drsnoop", "-P", &pid, "--min", "1h"]);
        worker.ask("stall-read 6007");
        let (rows, figures, _) = finished(all)?;
        let (hidden, behind, _) = finished(none)?;
        check!(hidden.is_empty() && !rows.is_empty(), "{hidden:?}");
        for figures in [&figures, &behind] {
            let classes: Vec<&Value> =
                figures.iter().filter(|figure| figure["kind"] == "histogram").collect();
            let counted: u64 = classes.iter().map(|class| number(class, "stalls")).sum();
            check_eq!(counted, rows.len() as u64, "{figures:?}");
        }
        // Each row is in its class. Rows are rounded up, which may lift one into the next.
        for class in figures.iter().filter(|figure| figure["kind"] == "histogram") {
            let (from, below) = (number(class, "from_us"), class["below_us"].as_u64());
            let within = |row: &&Value| {
                let latency = number(row, "latency_us");
                latency > from && below.is_none_or(|below| latency <= below)
            };
            let found = rows.iter().filter(within).count() as u64;
            check_eq!(found, number(class, "stalls"), "{class}");
        }
        PASS
    })
}

/// A watcher that does not read: the ring has room for a few only.
fn losses() -> Outcome {
    scarce("losses", |group, worker| {
        limit_of(group)?;
        let pid = worker.pid().to_string();
        let watcher = Watcher::start(&["drsnoop", "-P", &pid, "--ring-kib", "4"]);
        watcher.signal(Signal::STOP);
        // File systems with large folios stall seldom.
        for _ in 0..if is_guest() { 4 } else { 20 } {
            worker.ask("stall-read 6007");
        }
        watcher.signal(Signal::CONT);
        let (rows, figures, lost) = finished(watcher)?;
        let total = figures.iter().find(|figure| figure["kind"] == "total").ok_or("a total")?;
        check!(lost > 0 && !rows.is_empty(), "{} rows, {lost} lost", rows.len());
        check_eq!(rows.len() as u64 + lost, number(total, "stalls"), "{total}");
        PASS
    })
}

fn stacks() -> Outcome {
    scarce("stacks", |group, worker| {
        limit_of(group)?;
        let pid = worker.pid().to_string();
        let watcher = Watcher::start(&["drsnoop", "-P", &pid, "--stack"]);
        worker.ask("stall-read 6007");
        let (rows, _, _) = finished(watcher)?;
        check!(!rows.is_empty(), "no stall");
        for row in &rows {
            let names = row["stack"].to_string();
            check!(names.contains("try_to_free_mem_cgroup_pages"), "{row}");
            check!(names.contains("\"module\":\"kernel\""), "{row}");
        }
        // The program's functions are there too.
        let binary = std::env::current_exe()?;
        let own = binary.file_name().and_then(|name| name.to_str()).ok_or("a name")?;
        check!(rows.iter().any(|row| row["stack"].to_string().contains(own)), "{}", rows[0]);
        PASS
    })
}

fn wrong() -> Outcome {
    for (args, code, words) in [
        (vec!["drsnoop", "--min", "soon"], 2, "250us"),
        (vec!["drsnoop", "--min=-1s"], 2, "250us"),
        (vec!["drsnoop", "--hook", "nonsense"], 2, TP_BTF),
        (vec!["drsnoop", "--hook", TP_BTF, "--compaction"], 4, "--compaction"),
        (vec!["drsnoop", "-P", "0"], 2, "positive"),
    ] {
        let output = run(&args);
        let stderr = String::from_utf8_lossy(&output.stderr);
        check_eq!(output.status.code(), Some(code), "{args:?}: {stderr}");
        check!(stderr.contains(words), "{args:?}: {stderr}");
    }
    PASS
}

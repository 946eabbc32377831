//! vmscan against `/proc/vmstat`, `memory.events`, the wall time of what was stalled,
//! and the kernel's own record of trace events.

use std::collections::HashMap;
use std::fs;
use std::time::Instant;

use libtest_mimic::Failed;
use libtest_mimic::Trial;
use serde_json::Value;

use crate::check;
use crate::check_eq;
use crate::common::Outcome;
use crate::common::PASS;
use crate::common::kernels::if_supported;
use crate::common::kernels::is_guest;
use crate::common::kernels::zram_swap;
use crate::common::leak::number;
use crate::common::oracle;
use crate::common::pressure::Cgroup;
use crate::common::pressure::drop_caches;
use crate::common::scarce::at_rest;
use crate::common::scarce::scarce;
use crate::common::scarce::started_at_rest;
use crate::common::test;
use crate::common::trace::Trace;
use crate::common::watcher::Totals;
use crate::common::watcher::Watcher;
use crate::common::watcher::run;
use crate::common::worker::Worker;

/// Hooks that see memory.high, and the one that does not.
const HIGH: [&str; 2] =
    ["fexit:__mem_cgroup_handle_over_high", "fexit:mem_cgroup_handle_over_high"];
const EVENTS: &str = "tp:vmscan";

pub fn tests() -> Vec<Trial> {
    vec![
        test("vmscan: a cgroup's reclaim, span by span", || guest_only(memcg)),
        test("vmscan: kswapd, direct reclaim and writes as vmstat has them", || guest_only(machine)),
        test("vmscan: what memory.high costs", || guest_only(high)),
        test("vmscan: every event as the kernel records it", || guest_only(every_event)),
        test("vmscan: only those asked for, by name and by cgroup", || guest_only(filters)),
        test("vmscan: a table that is full", || guest_only(full_table)),
        test("vmscan: a row for each interval, and pressure", intervals),
        test("vmscan: bad input", bad_input),
    ]
}

fn guest_only(body: fn() -> Outcome) -> Outcome {
    if_supported("memcg", is_guest(), body)
}

fn limited(name: &str, file: &str, mib: u64) -> Result<(Cgroup, Worker), Failed> {
    // What is in the page cache already is charged to others.
    drop_caches();
    let cgroup = Cgroup::create(name).ok_or("no memory cgroup")?;
    cgroup.set(file, mib << 20)?;
    let worker = Worker::start();
    cgroup.add(worker.pid())?;
    Ok((cgroup, worker))
}

fn finish(watcher: Watcher) -> Result<Vec<Value>, Failed> {
    let (code, rows, stderr) = watcher.stop();
    if code != Some(0) || Totals::parse(&stderr).map(|totals| totals.lost) != Some(0) {
        return Err(Failed::from(format!("exit code {code:?}: {stderr}")));
    }
    Ok(rows)
}

fn sum(rows: &[Value], key: &str) -> u64 {
    rows.iter().map(|row| number(row, key)).sum()
}

fn ms(rows: &[Value], key: &str) -> f64 {
    rows.iter().map(|row| row[key].as_f64().unwrap_or_else(|| panic!("no {key} in {row}"))).sum()
}

/// How often each event is in a record, of one thread or of all.
fn counted(lines: &[String], tid: Option<u32>) -> HashMap<String, u64> {
    let mut counts = HashMap::new();
    for line in lines {
        let (head, rest) = line.split_once(": ").expect("a line of a trace");
        if tid.is_some_and(|tid| !head.contains(&format!("-{tid} "))) {
            continue;
        }
        let event = rest.split(':').next().expect("an event").trim();
        *counts.entry(event.to_owned()).or_insert(0) += 1;
    }
    counts
}

/// All of tracefs' events of reclaim.
fn all_events() -> Vec<String> {
    let entries = fs::read_dir("/sys/kernel/tracing/events/vmscan").expect("events");
    let entries = entries.flatten().filter(|entry| entry.path().is_dir());
    let mut names: Vec<String> =
        entries.map(|entry| entry.file_name().into_string().expect("a name")).collect();
    names.sort_unstable();
    names
}

fn record() -> Result<Trace, Failed> {
    let events: Vec<String> = all_events().iter().map(|name| format!("vmscan/{name}")).collect();
    let events: Vec<&str> = events.iter().map(String::as_str).collect();
    Trace::start(&events, "").ok_or_else(|| "no trace".into())
}

fn memcg() -> Outcome {
    let (_cgroup, mut worker) = limited("vmscan-limit", "memory.max", 16)?;
    let pid = worker.pid();
    let watcher = Watcher::start(&["vmscan", "-i", "0.5", "-P", &pid.to_string()]);
    let recorded = record()?;
    let started = Instant::now();
    worker.ask("reclaim-read 47");
    let wall = started.elapsed().as_secs_f64() * 1e3;
    let counts = counted(&recorded.stop(), Some(pid));
    let rows = finish(watcher)?;
    let of = |event: &str| counts.get(event).copied().unwrap_or(0);
    check!(of("mm_vmscan_memcg_reclaim_begin") > 0, "there was reclaim: {counts:?}");
    check_eq!(sum(&rows, "memcg_reclaims"), of("mm_vmscan_memcg_reclaim_end"), "{rows:?}");
    check_eq!(sum(&rows, "slab_shrinks"), of("mm_shrink_slab_end"), "{rows:?}");
    check_eq!(sum(&rows, "direct_reclaims"), 0, "no direct reclaim: {rows:?}");
    let (memcg, slab) = (ms(&rows, "memcg_ms"), ms(&rows, "slab_ms"));
    check!(memcg > 0.0 && memcg <= wall, "{memcg} of {wall} ms");
    // Slabs are shrunk within reclaim here, and nowhere else.
    check!(slab <= memcg, "{slab} of {memcg} ms");
    check_eq!(slab > 0.0, sum(&rows, "slab_shrinks") > 0, "{rows:?}");
    worker.end();
    PASS
}

/// What vmstat counts of it.
fn reclaims(stat: &HashMap<String, u64>) -> [u64; 3] {
    let stalls = stat.iter().filter(|(name, _)| name.starts_with("allocstall_"));
    [stat["pageoutrun"], stalls.map(|(_, n)| n).sum(), stat["nr_vmscan_write"]]
}

fn machine() -> Outcome {
    if_supported("zram", zram_swap(), || {
        drop_caches();
        let write = ["vmscan/mm_vmscan_write_folio", "vmscan/mm_vmscan_writepage"];
        let write = write.into_iter().find(|name| {
            fs::exists(format!("/sys/kernel/tracing/events/{name}")).unwrap_or(false)
        });
        let write = write.ok_or("no event of writes")?;
        let (before, (recorded, watcher)) = started_at_rest(reclaims, || {
            let recorded = Trace::start(&[write], "").ok_or("no trace")?;
            Ok((recorded, Watcher::start(&["vmscan", "-i", "0.5"])))
        })?;
        let mut own = None;
        let stalled = scarce(|pid| {
            own = Some(Watcher::start(&["vmscan", "-i", "0.5", "-P", &pid.to_string()]));
        });
        let wall = stalled.wall.as_secs_f64() * 1e3;
        let own = finish(own.ok_or("a watcher")?)?;
        // Somebody has to be swapped out.
        let mut more = Worker::start();
        more.ask(&format!("anon {}", oracle::meminfo()["MemAvailable"] / oracle::page_kib() + 4099));
        more.kill();
        drop(stalled);
        let after = at_rest(reclaims)?;
        let rows = finish(watcher)?;
        let written = recorded.stop().len() as u64;
        let [runs, stalls, writes] = [0, 1, 2].map(|at| after[at] - before[at]);
        check!(runs > 0 && writes > 0, "{before:?} {after:?}");
        check_eq!(sum(&rows, "kswapd_runs"), runs, "pageoutrun: {rows:?}");
        // A large folio is several of the kernel's writes, and one event.
        check_eq!(sum(&rows, "page_writes"), written, "as recorded: {rows:?}");
        check!(written <= writes, "{written} events, nr_vmscan_write {writes}");
        // A reclaim that has to begin again with less regard (do_try_to_free_pages,
        // mm/vmscan.c) counts as a stall once more.
        let direct = sum(&rows, "direct_reclaims");
        check_eq!(direct > 0, stalls > 0, "{direct} of {stalls}");
        check!(direct <= stalls, "{direct} of {stalls} allocstall: {rows:?}");
        check!(sum(&rows, "kswapd_wakeups") > 0, "{rows:?}");
        // One thread cannot have been stalled for longer than its order took.
        let time = ms(&own, "direct_ms");
        check!(time <= wall, "{time} of {wall} ms");
        check_eq!(time > 0.0, sum(&own, "direct_reclaims") > 0, "{own:?}");
        check!(sum(&own, "direct_reclaims") <= direct, "{own:?}");
        check!(ms(&own, "direct_ms") <= ms(&rows, "direct_ms"), "a part of all");
        PASS
    })
}

fn high() -> Outcome {
    let usable = |hook: &str| run(&["vmscan", "--hook", hook, "-n", "1", "-i", "0.01"]).status.success();
    let hook = HIGH.into_iter().find(|hook| usable(hook));
    if_supported("fentry", hook.is_some(), || {
        let hook = hook.ok_or("none")?;
        let (cgroup, mut worker) = limited("vmscan-high", "memory.high", 16)?;
        let pid = worker.pid().to_string();
        let start = |hook| Watcher::start(&["vmscan", "-i", "0.5", "-P", &pid, "--hook", hook]);
        let (watcher, without) = (start(hook), start(EVENTS));
        check_eq!(watcher.header["hook"].as_str(), Some(hook), "the header names the hook");
        let started = Instant::now();
        worker.ask("reclaim-read 31");
        let wall = started.elapsed().as_secs_f64() * 1e3;
        let events = cgroup.number("memory.events", "high").ok_or("no events")?;
        let (rows, without) = (finish(watcher)?, finish(without)?);
        let spent = ms(&rows, "high_ms");
        check!(events > 0, "memory.high was reached");
        check!(spent > 0.0 && spent <= wall, "{spent} of {wall} ms");
        let delays = sum(&rows, "high_delays");
        check!(delays > 0 && delays <= events, "{delays} of {events} events");
        check!(without.iter().all(|row| row["high_ms"].is_null()), "not known: {without:?}");
        check!(without.iter().all(|row| row["high_delays"].is_null()), "not known: {without:?}");
        // The reclaim within is the same for both.
        check_eq!(sum(&rows, "memcg_reclaims"), sum(&without, "memcg_reclaims"), "{rows:?}");
        check!(ms(&rows, "memcg_ms") <= spent, "reclaim for memory.high is part of it: {rows:?}");
        PASS
    })
}

fn every_event() -> Outcome {
    let (_cgroup, mut worker) = limited("vmscan-count", "memory.max", 16)?;
    let watcher = Watcher::start(&["vmscan", "--count", "-i", "0.5"]);
    let recorded = record()?;
    worker.ask("reclaim-read 31");
    let counts = counted(&recorded.stop(), None);
    let rows = finish(watcher)?;
    let mut found: HashMap<String, u64> = HashMap::new();
    for row in &rows {
        *found.entry(row["event"].as_str().ok_or("a name")?.into()).or_insert(0) += number(row, "count");
    }
    for event in all_events() {
        let due = counts.get(&event).copied().unwrap_or(0);
        check_eq!(found.get(&event), Some(&due), "{event}");
    }
    check_eq!(found.len(), all_events().len(), "{found:?}");
    check!(counts.len() >= 4, "there were some: {counts:?}");
    PASS
}

fn filters() -> Outcome {
    let (cgroup, mut worker) = limited("vmscan-filter", "memory.max", 16)?;
    let path = cgroup.path();
    let comm = fs::read_to_string(format!("/proc/{}/comm", worker.pid()))?;
    let comm = comm.trim();
    let start = |args: &[&str]| Watcher::start(&[&["vmscan", "-i", "0.5"], args].concat());
    let all = start(&["-P", &worker.pid().to_string()]);
    let by_comm = start(&["--by", "comm", "--comm", comm]);
    let by_cgroup = start(&["--by", "cgroup", "--cgroup", &path]);
    let another = start(&["--by", "comm", "--comm", "another"]);
    worker.ask("reclaim-read 31");
    let all = sum(&finish(all)?, "memcg_reclaims");
    let (by_comm, by_cgroup) = (finish(by_comm)?, finish(by_cgroup)?);
    check!(all > 0, "there was reclaim");
    check_eq!(sum(&by_comm, "memcg_reclaims"), all, "{by_comm:?}");
    check!(by_comm.iter().all(|row| row["comm"] == comm), "{by_comm:?}");
    check!(by_comm.iter().all(|row| row.get("pressure_some_percent").is_none()), "{by_comm:?}");
    check_eq!(sum(&by_cgroup, "memcg_reclaims"), all, "{by_cgroup:?}");
    check!(by_cgroup.iter().all(|row| row["cgroup"] == path.as_str()), "{by_cgroup:?}");
    check!(finish(another)?.is_empty(), "nobody of that name");
    PASS
}

fn full_table() -> Outcome {
    let (_first, mut worker) = limited("vmscan-one", "memory.max", 16)?;
    let (_second, mut other) = limited("vmscan-two", "memory.max", 16)?;
    let watcher = Watcher::start(&["vmscan", "--by", "cgroup", "-i", "0.5", "--max-entries", "1"]);
    worker.ask("reclaim-read 23");
    other.ask("reclaim-read 23");
    let (code, rows, stderr) = watcher.stop();
    check_eq!(code, Some(0), "{stderr}");
    check!(Totals::parse(&stderr).is_some_and(|totals| totals.lost > 0), "{stderr}");
    check!(rows.iter().all(|row| row["cgroup"] == rows[0]["cgroup"]), "one has room: {rows:?}");
    PASS
}

fn intervals() -> Outcome {
    if_supported("vmscan_events", fs::exists("/sys/kernel/tracing/events/vmscan/enable")?, || {
        let output = run(&["vmscan", "-n", "3", "-i", "0.1", "-o", "json"]);
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        check_eq!(output.status.code(), Some(0), "{stderr}");
        let text = String::from_utf8(output.stdout).map_err(|error| error.to_string())?;
        let rows: Vec<Value> = text
            .lines()
            .map(|line| serde_json::from_str(line).expect("JSON"))
            .filter(|row: &Value| row["time"].is_string())
            .collect();
        check_eq!(rows.len(), 3, "a row for each interval, whatever happens: {text}");
        let psi = fs::exists("/proc/pressure/memory")?;
        for row in &rows {
            check_eq!(row["pressure_some_percent"].is_number(), psi, "{row}");
            check!(row["slab_ms"].is_number() && row["direct_ms"].is_number(), "{row}");
            let writes = ["write_folio", "writepage"].iter().any(|name| {
                fs::exists(format!("/sys/kernel/tracing/events/vmscan/mm_vmscan_{name}")).unwrap_or(false)
            });
            check_eq!(row["page_writes"].is_number(), writes, "{row}");
            let throttled = fs::exists("/sys/kernel/tracing/events/vmscan/mm_vmscan_throttled")?;
            check_eq!(row["throttled_ms"].is_number(), throttled, "{row}");
        }
        let count = run(&["vmscan", "--count", "-n", "1", "-i", "0.1", "-o", "csv"]);
        let text = String::from_utf8(count.stdout).map_err(|error| error.to_string())?;
        check_eq!(text.lines().count(), all_events().len() + 1, "a line for each event: {text}");
        PASS
    })
}

fn bad_input() -> Outcome {
    for (args, code) in [
        (&["vmscan", "--count", "--by", "comm"][..], 2),
        (&["vmscan", "--count", "--hook", "tp"], 2),
        (&["vmscan", "--by", "nothing"], 2),
        (&["vmscan", "--max-entries", "0"], 2),
        (&["vmscan", "--hook", "nonsense"], 2),
        (&["vmscan", "-n", "0"], 2),
        (&["vmscan", "-P", "4194305"], 1),
        (&["vmscan", "--cgroup", "/nonexistent"], 1),
    ] {
        let output = run(args);
        let stderr = String::from_utf8_lossy(&output.stderr);
        check_eq!(output.status.code(), Some(code), "{args:?}: {stderr}");
        check!(!stderr.is_empty() && output.stdout.is_empty(), "{args:?}: {stderr}");
    }
    PASS
}

//! pr against pgscan and pgsteal, of a cgroup's `memory.stat` and of `/proc/vmstat`,
//! and against what the kernel's own record of trace events says of single calls.

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::fs;
use std::thread;

use libtest_mimic::Failed;
use libtest_mimic::Trial;
use rustix::process::Signal;
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
use crate::common::pressure::NoSwap;
use crate::common::pressure::Setting;
use crate::common::pressure::drop_caches;
use crate::common::scarce::at_rest;
use crate::common::scarce::scarce;
use crate::common::scarce::slow_writeback;
use crate::common::scarce::started_at_rest;
use crate::common::test;
use crate::common::trace;
use crate::common::trace::Trace;
use crate::common::watcher::Totals;
use crate::common::watcher::Watcher;
use crate::common::watcher::run;
use crate::common::worker::Worker;

/// Kinds of hooks, the feature of `tests/kernels.txt` each depends on, and their names.
const KINDS: [(&str, &str, &[&str]); 3] = [
    ("fexit", "fentry", &["fexit:shrink_folio_list", "fexit:shrink_page_list"]),
    ("kprobe", "kprobe", &["kprobe:shrink_folio_list", "kprobe:shrink_page_list"]),
    ("tp", "vmscan_events", &["tp:mm_vmscan_lru_shrink_inactive"]),
];

/// Whether lists are by generation.
const LISTS: [(&str, bool); 2] = [("classical", false), ("by generation", true)];

type Body = fn(&'static str) -> Outcome;

pub fn tests() -> Vec<Trial> {
    let mut tests = Vec::new();
    for kind in KINDS {
        for (lists, by_generation) in LISTS {
            let mut each = |what: &str, body: Body| {
                let name = format!("pr: {what}, lists {lists}, through {}", kind.0);
                tests.push(test(name, move || with_hook(kind, by_generation, body)));
            };
            each("a cgroup's limit as memory.stat has it", limit);
            // The functions are the same for both of their hooks.
            if kind.0 != "kprobe" || !by_generation {
                each("kswapd and direct reclaim as vmstat has them", machine);
                each("proactive reclaim as memory.stat has it", proactive);
                each("pages a process wants out", pageout);
            }
        }
        let name = format!("pr: single calls as the kernel records them, through {}", kind.0);
        tests.push(test(name, move || with_hook(kind, false, single_calls)));
        let name = format!("pr: kswapd among pages in writeback, through {}", kind.0);
        tests.push(test(name, move || with_hook(kind, false, in_writeback)));
    }
    tests.push(test("pr: rows and losses add up in a tiny ring", tiny_ring));
    tests.push(test("pr: only those asked for", filters));
    tests.push(test("pr: a table that is full", full_table));
    tests.push(test("pr: bad input", bad_input));
    tests.push(test("pr: a limit on this machine", limit_here));
    tests
}

const GENERATIONS: &str = "/sys/kernel/mm/lru_gen/enabled";

/// How lists are kept for the time of a test.
struct Lists {
    before: Option<String>,
}

impl Lists {
    /// `None`: this kernel cannot.
    fn keep(by_generation: bool) -> Option<Self> {
        match fs::read_to_string(GENERATIONS) {
            Ok(before) => {
                fs::write(GENERATIONS, if by_generation { "y" } else { "n" }).ok()?;
                Some(Self { before: Some(before) })
            }
            Err(_) => (!by_generation).then_some(Self { before: None }),
        }
    }
}

impl Drop for Lists {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            let _ = fs::write(GENERATIONS, before.trim());
        }
    }
}

/// Whether a hook can be used, as the lists are.
fn usable(hook: &str) -> Result<bool, Failed> {
    let probe = run(&["pr", "--hook", hook, "-n", "1", "-i", "0.01"]);
    let stderr = String::from_utf8_lossy(&probe.stderr);
    let usable = probe.status.code() != Some(4);
    check_that(probe.status.success() || !usable, || stderr.into_owned())?;
    Ok(usable)
}

fn check_that(holds: bool, why: impl FnOnce() -> String) -> Result<(), Failed> {
    if holds { Ok(()) } else { Err(Failed::from(why())) }
}

fn with_hook(kind: (&str, &str, &[&'static str]), by_generation: bool, body: Body) -> Outcome {
    let (_, feature, names) = kind;
    if !is_guest() {
        return if_supported("memcg", false, || PASS);
    }
    let feature_of_lists = if by_generation { "mglru" } else { "memcg" };
    let lists = Lists::keep(by_generation);
    if_supported(feature_of_lists, lists.is_some(), || {
        for &name in names {
            if usable(name)? {
                return body(name);
            }
        }
        // The one thing that is refused by design: old events with these lists.
        let refused = run(&["pr", "--hook", names[0], "-n", "1"]);
        if by_generation && String::from_utf8_lossy(&refused.stderr).contains("by generation") {
            return if_supported("generation_events", false, || PASS);
        }
        if_supported(feature, false, || PASS)
    })
}

fn guest_only(body: impl FnOnce() -> Outcome) -> Outcome {
    if_supported("memcg", is_guest(), body)
}

/// A worker in a cgroup of its own, with a limit in MiB.
fn limited(name: &str, mib: u64) -> Result<(Cgroup, Worker), Failed> {
    // What is in the page cache already is charged to others.
    drop_caches();
    let cgroup = Cgroup::create(name).ok_or("no memory cgroup")?;
    cgroup.limit(mib << 20)?;
    let worker = Worker::start();
    cgroup.add(worker.pid())?;
    Ok((cgroup, worker))
}

fn sum(rows: &[Value], who: &str, key: &str) -> u64 {
    rows.iter().filter(|row| row["who"] == who).map(|row| number(row, key)).sum()
}

fn finish(watcher: Watcher) -> Result<(Vec<Value>, u64), Failed> {
    let may_lose = watcher.header["hook"].as_str().is_some_and(|hook| !hook.starts_with("tp:"));
    let (code, rows, stderr) = watcher.stop();
    check_that(code == Some(0), || format!("exit code {code:?}: {stderr}"))?;
    let lost = Totals::parse(&stderr).map(|totals| totals.lost).ok_or("no totals")?;
    check_that(lost == 0 || may_lose, || format!("lost {lost}: {stderr}"))?;
    Ok((rows, lost))
}

/// Most pages that one call can be about: a batch of lists by generation (64) of
/// the largest folios (512 pages).
const PAGES_OF_A_CALL: u64 = 64 * 512;

/// Equal, unless a run of a program was skipped, which says so.
fn agrees(found: u64, due: u64, lost: u64) -> bool {
    found == due || (found < due && due - found <= lost * PAGES_OF_A_CALL)
}

fn of_stat(cgroup: &Cgroup) -> Result<(u64, u64), Failed> {
    let line = |name| cgroup.number("memory.stat", name).ok_or("no such line in memory.stat");
    Ok((line("pgscan")?, line("pgsteal")?))
}

/// Of a cgroup each CPU keeps up to MEMCG_CHARGE_BATCH (64, 32 before 5.16) of what it
/// counts to itself (`__count_memcg_events()`, and since 5.16 what is not worth a
/// flush of `cgroup_rstat`; mm/memcontrol.c).
fn agrees_with_stat(found: u64, due: u64, lost: u64) -> bool {
    let cpus = thread::available_parallelism().map_or(1, |n| n.get() as u64);
    found.abs_diff(due) <= 64 * cpus || agrees(found, due, lost)
}

/// Before 6.7 no event tells what lists by generation take: SCANNED leaves out locked
/// folios there.
fn leaves_out_locked() -> bool {
    let on = fs::read_to_string(GENERATIONS).is_ok_and(|text| text.trim().ends_with(['1', '3', '5', '7']));
    let format = "/sys/kernel/tracing/events/vmscan/mm_vmscan_lru_isolate/format";
    on && fs::read_to_string(format).is_ok_and(|text| text.contains("isolate_mode"))
}

fn limit(hook: &'static str) -> Outcome {
    let (cgroup, mut worker) = limited("pr-limit", 16)?;
    check!(cgroup.is_v2(), "v1 does not count it");
    let pid = worker.pid().to_string();
    let watcher = Watcher::start(&["pr", "--hook", hook, "-i", "0.5", "-P", &pid]);
    check_eq!(watcher.header["hook"].as_str(), Some(hook), "the header names the hook");
    let before = of_stat(&cgroup)?;
    worker.ask("reclaim-read 47");
    let after = of_stat(&cgroup)?;
    let (rows, lost) = finish(watcher)?;
    let (scanned, reclaimed) = (sum(&rows, "memcg", "scanned"), sum(&rows, "memcg", "reclaimed"));
    let due = after.0 - before.0;
    let less = leaves_out_locked() && scanned < due;
    check!(less || agrees_with_stat(scanned, due, lost), "pgscan {before:?} {after:?}: {rows:?}");
    check!(agrees_with_stat(reclaimed, after.1 - before.1, lost), "pgsteal {before:?} {after:?}: {rows:?}");
    // What was read and has no room.
    check!(reclaimed + lost * PAGES_OF_A_CALL >= (47 - 16) << 8, "{reclaimed} pages reclaimed");
    for row in &rows {
        check_eq!(row["who"], "memcg", "the limit is the cause: {row}");
        check_eq!(row["pid"], worker.pid(), "{row}");
        check!(number(row, "node") <= 1, "{row}");
        check!(number(row, "priority") <= 12, "{row}");
        if hook.starts_with("tp:") {
            check!(row["cgroup"].is_null() && row["wanted"].is_null(), "not known here: {row}");
            check!(row["unqueued"].is_null(), "not known here: {row}");
        } else {
            check_eq!(row["cgroup"], cgroup.path(), "{row}");
            check!(number(row, "wanted") >= 32, "SWAP_CLUSTER_MAX: {row}");
        }
    }
    worker.end();
    PASS
}

/// What vmstat says of reclaim.
fn reclaimed(stat: &HashMap<String, u64>) -> [u64; 6] {
    let sum = |names: &[&str]| names.iter().filter_map(|name| stat.get(*name)).sum();
    [
        sum(&["pgscan_kswapd"]),
        sum(&["pgsteal_kswapd"]),
        sum(&["pgscan_direct", "pgscan_khugepaged"]),
        sum(&["pgsteal_direct", "pgsteal_khugepaged"]),
        sum(&["pgscan_anon", "pgscan_file"]),
        sum(&["pgsteal_anon", "pgsteal_file"]),
    ]
}

fn machine(hook: &'static str) -> Outcome {
    if_supported("zram", zram_swap(), || {
        drop_caches();
        let (before, watcher) = started_at_rest(reclaimed, || {
            Ok(Watcher::start(&["pr", "--hook", hook, "-i", "0.5"]))
        })?;
        drop(scarce(|_| ()));
        let after = at_rest(reclaimed)?;
        let (rows, lost) = finish(watcher)?;
        let due: Vec<u64> = after.iter().zip(before).map(|(after, before)| after - before).collect();
        let of = |who: &[&str], key| who.iter().map(|who| sum(&rows, who, key)).sum::<u64>();
        // What a cgroup's limit causes counts as direct too, since 7.x; there is none here.
        let direct = ["direct", "khugepaged", "other"];
        let all = ["kswapd", "direct", "khugepaged", "other", "memcg", "proactive"];
        for (who, at) in [(&["kswapd"][..], 0), (&direct[..], 2), (&all[..], 4)] {
            let scanned = of(who, "scanned");
            check!(
                (agrees(scanned, due[at], lost) || (leaves_out_locked() && scanned < due[at]))
                    && agrees(of(who, "reclaimed"), due[at + 1], lost),
                "{who:?}: {} {} is not {due:?}, lost {lost}: {rows:?}",
                of(who, "scanned"),
                of(who, "reclaimed")
            );
        }
        check!(due[0] > 0, "kswapd has worked: {due:?}");
        check_eq!(of(&["memcg", "proactive", "pageout"], "scanned"), 0, "no limit: {rows:?}");
        let named = |who: &str, comm: &str| {
            rows.iter().filter(|row| row["who"] == who).all(|row| {
                row["comm"].as_str().is_some_and(|name| name.starts_with(comm))
            })
        };
        check!(named("kswapd", "kswapd"), "{rows:?}");
        PASS
    })
}

fn proactive(hook: &'static str) -> Outcome {
    let (cgroup, mut worker) = limited("pr-proactive", 64)?;
    let found = cgroup.get("memory.reclaim").is_ok() || cgroup.folder().join("memory.reclaim").exists();
    if_supported("memory_reclaim", found, || {
        worker.ask("reclaim-hold 23");
        let before = of_stat(&cgroup)?;
        let pid = std::process::id().to_string();
        let watcher = Watcher::start(&["pr", "--hook", hook, "-i", "0.5", "-P", &pid]);
        // More than asked for may come, less does not.
        let done = cgroup.set("memory.reclaim", 11 << 20);
        let after = of_stat(&cgroup)?;
        let (rows, lost) = finish(watcher)?;
        let got = sum(&rows, "proactive", "reclaimed") + sum(&rows, "memcg", "reclaimed");
        check!(done.is_ok(), "there was enough to be had: {done:?}, {got} pages: {rows:?}");
        check!(got + lost * PAGES_OF_A_CALL >= 11 << 8, "{got} pages, {lost} lost: {rows:?}");
        // The events cannot tell the one from the other.
        let who = if hook.starts_with("tp:") { "memcg" } else { "proactive" };
        let (scanned, due) = (sum(&rows, who, "scanned"), after.0 - before.0);
        let less = leaves_out_locked() && scanned < due;
        check!(less || agrees_with_stat(scanned, due, lost), "{before:?} {after:?}: {rows:?}");
        check!(agrees_with_stat(sum(&rows, who, "reclaimed"), after.1 - before.1, lost), "{before:?} {after:?}: {rows:?}");
        check!(rows.iter().all(|row| row["who"] == who), "{rows:?}");
        if who == "proactive" {
            check!(rows.iter().all(|row| row["cgroup"] == cgroup.path()), "{rows:?}");
        }
        worker.end();
        PASS
    })
}

fn pageout(hook: &'static str) -> Outcome {
    const EVENT: &str = "/sys/kernel/tracing/events/vmscan/mm_vmscan_reclaim_pages";
    if hook.starts_with("tp:") && !fs::exists(EVENT)? {
        return if_supported("pageout_event", false, || PASS);
    }
    if_supported("zram", zram_swap(), || {
        let mut worker = Worker::start();
        worker.ask("anon 1009");
        let pid = worker.pid().to_string();
        let (before, watcher) = started_at_rest(reclaimed, || {
            Ok(Watcher::start(&["pr", "--hook", hook, "-i", "0.5", "-P", &pid]))
        })?;
        worker.ask("pageout");
        let (rows, lost) = finish(watcher)?;
        let swapped = oracle::smaps_rollup(worker.pid()).ok_or("gone")?["Swap"] / oracle::page_kib();
        check!(agrees(sum(&rows, "pageout", "reclaimed"), swapped, lost), "{swapped}: {rows:?}");
        check!(sum(&rows, "pageout", "scanned") >= swapped.saturating_sub(lost * PAGES_OF_A_CALL), "{rows:?}");
        check!(swapped > 0, "something has gone to swap");
        check!(rows.iter().all(|row| row["who"] == "pageout" && row["cgroup"].is_null()), "{rows:?}");
        // The kernel does not count it as reclaim.
        check_eq!(at_rest(reclaimed)?, before, "pgscan and pgsteal");
        PASS
    })
}

const INACTIVE: &str = "vmscan/mm_vmscan_lru_shrink_inactive";

/// Dirty pages in a cgroup's limit, whose every call the kernel records as well.
fn single_calls(hook: &'static str) -> Outcome {
    // What is written stays dirty until reclaim meets it.
    let _dirty = [("dirty_ratio", "95"), ("dirty_background_ratio", "90")]
        .map(|(name, percent)| Setting::of(format!("/proc/sys/vm/{name}"), percent));
    let (_cgroup, mut worker) = limited("pr-calls", 16)?;
    let pid = worker.pid();
    let recorded = Trace::start(&[INACTIVE], "");
    if_supported("vmscan_events", recorded.is_some(), || {
        let recorded = recorded.ok_or("none")?;
        let watcher = Watcher::start(&["pr", "--events", "--hook", hook, "-P", &pid.to_string()]);
        worker.ask("reclaim-write 61");
        let lines = recorded.stop();
        let (rows, lost) = finish(watcher)?;
        let own = |line: &&String| line.contains(&format!("-{pid} "));
        let due: Vec<[u64; 6]> = lines
            .iter()
            .filter(own)
            .map(|line| {
                ["nr_reclaimed", "nr_dirty", "nr_writeback", "nr_congested", "nr_immediate", "nid"]
                    .map(|name| trace::number(line, name))
            })
            .collect();
        // A scan that found nothing to hand over is no call.
        let calls = rows.iter().filter(|row| !row["dirty"].is_null());
        let found: Vec<[u64; 6]> = calls
            .map(|row| {
                ["reclaimed", "dirty", "writeback", "congested", "immediate", "node"]
                    .map(|key| number(row, key))
            })
            .collect();
        if lost == 0 {
            check_eq!(found, due, "call by call");
        }
        check!(!due.is_empty() && found.len() + lost as usize >= due.len(), "{found:?}: {due:?}");
        if !hook.starts_with("tp:") {
            check!(rows.iter().all(|row| row["unqueued"].as_u64() <= row["dirty"].as_u64()), "{rows:?}");
        }
        worker.end();
        PASS
    })
}

/// What the kernel's record and the rows both have of what is in the way.
const IN_THE_WAY: [&str; 4] = ["dirty", "writeback", "congested", "immediate"];

/// A slow disk, which kswapd has to wait for.
fn in_writeback(hook: &'static str) -> Outcome {
    let recorded = Trace::start(&[INACTIVE], "").is_some();
    if_supported("vmscan_events", recorded, || {
        let _no_swap = NoSwap::begin()?;
        for _ in 0..3 {
            if met_writeback(hook)? {
                return PASS;
            }
            eprintln!("pages in writeback again: kswapd came too late for them");
        }
        Err("in the kernel's own record kswapd met none of them".into())
    })
}

/// Whether kswapd met pages in writeback, as the kernel has it. What it met, if only
/// pages without, is in the rows all the same.
fn met_writeback(hook: &'static str) -> Result<bool, Failed> {
    drop_caches();
    let (_, (recorded, watcher)) = started_at_rest(reclaimed, || {
        let recorded = Trace::start(&[INACTIVE], "").ok_or("no record")?;
        Ok((recorded, Watcher::start(&["pr", "--hook", hook, "-i", "0.5"])))
    })?;
    slow_writeback()?;
    at_rest(reclaimed)?;
    let lines = recorded.stop();
    let (rows, lost) = finish(watcher)?;

    let mut due: BTreeMap<u64, [u64; 4]> = BTreeMap::new();
    let mut kswapd = [0; 4];
    for line in &lines {
        // `    kswapd0-47      [001] .....    21.605: mm_vmscan_...`
        let (task, _) = line.split_once(" [").ok_or_else(|| line.clone())?;
        let (comm, pid) = task.trim().rsplit_once('-').ok_or_else(|| line.clone())?;
        let sums = due.entry(pid.parse()?).or_default();
        for (i, key) in IN_THE_WAY.iter().enumerate() {
            let pages = trace::number(line, &format!("nr_{key}"));
            sums[i] += pages;
            kswapd[i] += if comm.starts_with("kswapd") { pages } else { 0 };
        }
    }
    let mut found: BTreeMap<u64, [u64; 4]> = BTreeMap::new();
    for row in rows.iter().filter(|row| number(row, "calls") > 0) {
        let sums = found.entry(number(row, "pid")).or_default();
        for (i, key) in IN_THE_WAY.iter().enumerate() {
            sums[i] += number(row, key);
        }
    }
    for who in found.keys().chain(due.keys()) {
        let of = |sums: &BTreeMap<u64, [u64; 4]>| sums.get(who).copied().unwrap_or_default();
        for (found, due) in of(&found).into_iter().zip(of(&due)) {
            check_that(agrees(found, due, lost), || {
                format!("{who}: {found} is not {due}, lost {lost}: {rows:?}")
            })?;
        }
    }
    let met = kswapd.iter().all(|&pages| pages > 0);
    for key in IN_THE_WAY {
        let pages = sum(&rows, "kswapd", key);
        check_that(!met || pages > 0, || format!("{key}: {rows:?}"))?;
    }
    Ok(met)
}

fn tiny_ring() -> Outcome {
    guest_only(|| {
        let (_cgroup, mut worker) = limited("pr-ring", 16)?;
        let pid = worker.pid().to_string();
        let events = |more: &[&str]| {
            Watcher::start(&[&["pr", "--events", "--hook", "tp", "-P", &pid], more].concat())
        };
        let _lists = Lists::keep(false);
        let (tiny, whole) = (events(&["--ring-kib", "4"]), events(&[]));
        // Nobody empties the ring meanwhile.
        tiny.signal(Signal::STOP);
        worker.ask("reclaim-read 31");
        tiny.signal(Signal::CONT);
        let (code, rows, stderr) = tiny.stop();
        check_eq!(code, Some(0), "{stderr}");
        let totals = Totals::parse(&stderr).ok_or("no totals")?;
        let (all, lost) = finish(whole)?;
        check_eq!(lost, 0, "the ring is large enough");
        check!(totals.lost > 0, "the ring is too small: {stderr}");
        check_eq!(rows.len() as u64, totals.rows, "{stderr}");
        check_eq!(totals.rows + totals.lost, all.len() as u64, "{stderr}");
        PASS
    })
}

fn filters() -> Outcome {
    guest_only(|| {
        let (cgroup, mut worker) = limited("pr-filter", 16)?;
        let path = cgroup.path();
        let comm = fs::read_to_string(format!("/proc/{}/comm", worker.pid()))?;
        let start = |args: &[&str]| Watcher::start(&[&["pr", "-i", "0.5"], args].concat());
        let watchers = [
            start(&["--comm", comm.trim()]),
            start(&["--cgroup", &path]),
            start(&["--by", "who"]),
            start(&["--comm", "another"]),
            start(&["-P", &std::process::id().to_string()]),
        ];
        let before = of_stat(&cgroup)?;
        worker.ask("reclaim-read 31");
        let after = of_stat(&cgroup)?;
        for (i, watcher) in watchers.into_iter().enumerate() {
            let (rows, lost) = finish(watcher)?;
            if i > 2 {
                check!(rows.is_empty(), "nobody else has reclaimed: {rows:?}");
                continue;
            }
            let reclaimed = sum(&rows, "memcg", "reclaimed");
            check!(agrees_with_stat(reclaimed, after.1 - before.1, lost), "{i}: {before:?} {after:?} {rows:?}");
            check_eq!(rows.iter().all(|row| row.get("pid").is_none()), i == 2, "{i}: {rows:?}");
        }
        PASS
    })
}

fn full_table() -> Outcome {
    guest_only(|| {
        let (_first, mut worker) = limited("pr-one", 16)?;
        let (_second, mut other) = limited("pr-two", 16)?;
        let watcher = Watcher::start(&["pr", "-i", "0.5", "--max-entries", "1"]);
        worker.ask("reclaim-read 31");
        other.ask("reclaim-read 31");
        let (code, rows, stderr) = watcher.stop();
        check_eq!(code, Some(0), "{stderr}");
        let lost = Totals::parse(&stderr).map(|totals| totals.lost).ok_or("no totals")?;
        // Of each call that found no room; a call is about 64 pages at most here.
        check!(lost >= (31 - 16) << 8 >> 6, "lost {lost}: {rows:?}");
        let pids: Vec<u64> = rows.iter().map(|row| number(row, "pid")).collect();
        check!(!pids.is_empty() && pids.iter().all(|&pid| pid == pids[0]), "one has room: {rows:?}");
        PASS
    })
}

fn bad_input() -> Outcome {
    for (args, code) in [
        (&["pr", "--events", "--top", "3"][..], 2),
        (&["pr", "--events", "--by", "who"], 2),
        (&["pr", "--max-entries", "0"], 2),
        (&["pr", "--by", "nothing"], 2),
        (&["pr", "--hook", "nonsense"], 2),
        (&["pr", "--ring-kib", "3"], 2),
        (&["pr", "-P", "4194305"], 1),
        (&["pr", "--cgroup", "/nonexistent"], 1),
    ] {
        let output = run(args);
        let stderr = String::from_utf8_lossy(&output.stderr);
        check_eq!(output.status.code(), Some(code), "{args:?}: {stderr}");
        check!(!stderr.is_empty() && output.stdout.is_empty(), "{args:?}: {stderr}");
    }
    PASS
}

/// Outside of guests, in a small cgroup: what is read beyond the limit is reclaimed.
fn limit_here() -> Outcome {
    let made = if is_guest() { None } else { Cgroup::create("pr-here") };
    let limited = made.as_ref().is_some_and(|cgroup| cgroup.limit(16 << 20).is_ok());
    let swaps = fs::read_to_string("/proc/swaps")?.lines().count() > 1;
    if is_guest() || !limited || swaps {
        return if_supported("memcg_here", false, || PASS);
    }
    let cgroup = made.ok_or("a cgroup")?;
    let mut worker = Worker::start();
    cgroup.add(worker.pid())?;
    let pid = worker.pid().to_string();
    let before = oracle::vmstat("/proc/vmstat");
    let watcher = Watcher::start(&["pr", "-i", "0.5", "-P", &pid]);
    worker.ask("reclaim-read 47");
    let (rows, lost) = finish(watcher)?;
    let after = oracle::vmstat("/proc/vmstat");
    let reclaimed = sum(&rows, "memcg", "reclaimed");
    if reclaimed == 0 {
        // Where temporary files have no page cache of this cgroup.
        return if_supported("memcg_here", false, || PASS);
    }
    let due = |line: &str| after[line] - before[line];
    check_eq!(lost, 0, "{rows:?}");
    check!(reclaimed <= due("pgsteal_anon") + due("pgsteal_file"), "{reclaimed}: {rows:?}");
    check!(reclaimed <= sum(&rows, "memcg", "scanned"), "{rows:?}");
    check!(sum(&rows, "memcg", "scanned") <= due("pgscan_anon") + due("pgscan_file"), "{rows:?}");
    worker.end();
    PASS
}

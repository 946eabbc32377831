//! paf against the kernel's own record of `kmem:mm_page_alloc`, in an instance of
//! tracefs of the test's own, against `/proc/zoneinfo` and `/proc/vmstat`.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::fs;

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
use crate::common::leak::number;
use crate::common::oracle;
use crate::common::pressure::Cgroup;
use crate::common::pressure::Setting;
use crate::common::test;
use crate::common::trace::Trace;
use crate::common::watcher::PATIENCE;
use crate::common::watcher::Totals;
use crate::common::watcher::Watcher;
use crate::common::watcher::run;
use crate::common::worker::Worker;
use crate::faults::agrees;
use crate::faults::with_hook_of;

#[derive(Clone, Copy)]
struct Hook {
    name: &'static str,
    /// Of `tests/kernels.txt`.
    feature: &'static str,
    /// Whether it sees attempts, and charges that are refused.
    attempts: bool,
}

const HOOKS: [Hook; 3] = [
    Hook { name: "fentry:get_page_from_freelist", feature: "fentry", attempts: true },
    Hook { name: "kprobe:get_page_from_freelist", feature: "kprobe", attempts: true },
    Hook { name: "tp_btf:mm_page_alloc", feature: "tp_btf", attempts: false },
];

const EVENT: &str = "kmem/mm_page_alloc";

/// Huge pages kept for hugetlbfs: those of the second node, so that everybody else has
/// the first one's memory to go on with; without, those of the machine.
const POOLS: [&str; 2] = [
    "/sys/devices/system/node/node1/hugepages/hugepages-2048kB/nr_hugepages",
    "/proc/sys/vm/nr_hugepages",
];
const THP: &str = "/sys/kernel/mm/transparent_hugepage";

pub fn tests() -> Vec<Trial> {
    let mut tests = Vec::new();
    for hook in HOOKS {
        let name = hook.name;
        let each = |what: &str, body: fn(Hook) -> Outcome| {
            test(format!("paf: {what}, through {name}"), move || {
                with_hook_of("paf", name, hook.feature, || body(hook))
            })
        };
        tests.push(each("each request of a process, as the kernel records them", each_request));
        tests.push(each("requests counted, and zones as /proc/zoneinfo", counted));
        tests.push(each("huge pages that are not to be had in a guest in pieces", in_pieces));
        tests.push(each("atomic requests below the watermark", atomic));
        tests.push(each("a pool that takes all memory", all_memory));
        tests.push(each("a block that a memory cgroup refuses", block_refused));
        if hook.attempts {
            tests.push(each("pages of CMA, which are for movable memory only", movable_only));
            tests.push(each("what a memory cgroup refuses", cgroup_limit));
        }
    }
    tests.extend([
        test("paf: flags in the kernel's own words", words),
        test("paf: a full buffer loses events and says how many", full_ring),
        test("paf: only some processes", filters),
        test("paf: failures as folded stacks", folded),
        test("paf: bad input", bad_input),
    ]);
    tests
}

/// A request: its order and its flags in words.
type Asked = (u64, String);

/// What the kernel printed of an event.
fn asked(line: &str) -> Asked {
    let field = |name: &str| {
        let (_, rest) = line.split_once(name).unwrap_or_else(|| panic!("no {name} in {line}"));
        rest.split_whitespace().next().unwrap_or_default()
    };
    (field(" order=").parse().expect("an order"), field("gfp_flags=").to_owned())
}

/// Whether the kernel's line is of a request that got nothing.
fn got_nothing(line: &str) -> bool {
    line.contains(" pfn=0 ") || line.contains(" pfn=0x0 ")
}

fn of_row(row: &Value) -> Asked {
    (number(row, "order"), row["gfp"].as_str().expect("flags").to_owned())
}

fn tally(all: impl Iterator<Item = Asked>) -> BTreeMap<Asked, u64> {
    let mut sums = BTreeMap::new();
    for one in all {
        *sums.entry(one).or_default() += 1;
    }
    sums
}

/// Pages of anonymous memory that were touched for the first time.
fn touched(sums: &BTreeMap<Asked, u64>) -> u64 {
    let is_it = |(order, gfp): &Asked| {
        *order == 0 && gfp.starts_with("GFP_HIGHUSER_MOVABLE|") && gfp.contains("__GFP_ZERO")
    };
    sums.iter().filter(|(asked, _)| is_it(asked)).map(|(_, n)| n).sum()
}

/// Ends a watcher and returns its rows, and how many more there may have been: the
/// program is skipped in interrupts of its own runs, whosoever's they are.
fn rows_and_lost(watcher: Watcher) -> Result<(Vec<Value>, u64), Failed> {
    let (code, rows, stderr) = watcher.stop();
    match Totals::parse(&stderr) {
        Some(totals) if code == Some(0) => Ok((rows, totals.lost)),
        _ => Err(format!("exit code {code:?}: {stderr}").into()),
    }
}

/// Runs `body` with the kernel's record of what a process asks for.
fn recorded<T>(
    filter: &str,
    body: impl FnOnce() -> Result<T, Failed>,
) -> Result<(T, Option<Vec<String>>), Failed> {
    let trace = Trace::start(&[EVENT], filter);
    if trace.is_none() && is_guest() {
        return Err("no instance of tracefs in a guest".into());
    }
    let done = body()?;
    Ok((done, trace.map(Trace::stop)))
}

fn start(hook: Hook, args: &[&str]) -> Watcher {
    let watcher = Watcher::start(
        &[&["paf", "--hook", hook.name, "--unit", "pages", "--ring-kib", "8192"], args].concat(),
    );
    assert_eq!(watcher.header["hook"].as_str(), Some(hook.name), "the header names the hook");
    watcher
}

/// The zones of `/proc/zoneinfo`: name, and node, to what it says.
type Zones = BTreeMap<(u64, String), BTreeMap<String, u64>>;

fn zoneinfo() -> Zones {
    let text = fs::read_to_string("/proc/zoneinfo").expect("zoneinfo");
    let mut zones = Zones::new();
    let mut at = None;
    for line in text.lines() {
        if let Some((node, zone)) = line.strip_prefix("Node ").and_then(|it| it.split_once(", zone"))
        {
            at = Some((node.parse().expect("a node"), zone.trim().to_owned()));
            continue;
        }
        let Some(zone) = &at else { continue };
        let words: Vec<&str> = line.trim().trim_start_matches("pages ").split_whitespace().collect();
        if let [name, value] = words[..]
            && let Ok(value) = value.parse()
        {
            // The first one counts: CPUs have a "high" of their own.
            let numbers = zones.entry(zone.clone()).or_default();
            numbers.entry(name.to_owned()).or_insert(value);
        }
    }
    zones.retain(|_, numbers| numbers.get("present").is_some_and(|&present| present > 0));
    zones
}

/// That the zone of a row is one of the kernel's, with its watermarks.
fn check_zone(row: &Value, zones: &Zones) -> Outcome {
    let zone = row["zone"].as_str().ok_or_else(|| format!("no zone in {row}"))?;
    let numbers = zones
        .get(&(number(row, "node"), zone.to_owned()))
        .ok_or_else(|| format!("the kernel has no such zone: {row}"))?;
    for name in ["min", "low", "high", "present"] {
        check_eq!(row[format!("{name}_pages")], numbers[name], "{name} of {zone}: {row}");
    }
    check!(number(row, "free_pages") <= numbers["managed"], "{row}");
    PASS
}

const PAGES: u64 = 7919;

fn each_request(hook: Hook) -> Outcome {
    let mut worker = Worker::start();
    worker.ask("anon 7");
    let pid = worker.pid().to_string();
    let watcher = start(hook, &["--events", "-P", &pid]);
    let filter = format!("common_pid == {pid}");
    // Within the record, whose own buffers would be missed otherwise.
    let ((zones, after), record) = recorded(&filter, || {
        let before = zoneinfo();
        worker.ask(&format!("anon {PAGES}"));
        Ok((before, zoneinfo()))
    })?;
    let (rows, lost) = rows_and_lost(watcher)?;
    if zones == zoneinfo_watermarks(&zones) {
        for row in rows.iter().filter(|row| row["failed"] == 0).step_by(97) {
            check_zone(row, &zones)?;
        }
    }
    let ours = tally(rows.iter().map(of_row));
    check!(agrees(touched(&ours), PAGES, lost), "pages touched, {lost} lost: {ours:?}");
    if let Some(lines) = record {
        // What is in both windows; the watcher's is the longer one.
        let kernels = tally(lines.iter().map(|line| asked(line)));
        check_eq!(touched(&kernels), PAGES, "the kernel's record: {kernels:?}");
        for (asked, &times) in &kernels {
            let found = ours.get(asked).copied().unwrap_or(0);
            check!(
                found + lost >= times && found <= times + 4,
                "{asked:?}: {found} for {times}, {lost} lost: {ours:?}"
            );
        }
    }
    check!(rows.iter().all(|row| row["pid"] == worker.pid() && row["tid"] == worker.pid()), "PID");
    if is_guest() {
        // Only the test itself, which takes the rows, and the watcher are at work beside
        // the worker: 16 MiB are more than both take meanwhile.
        let beside = (16 << 10) / oracle::page_kib();
        for row in rows.iter().filter(|row| row["zone"] == "DMA32").step_by(97) {
            let zone = (number(row, "node"), "DMA32".to_owned());
            let (one, two) = (zones[&zone]["free"], after[&zone]["free"]);
            let free = number(row, "free_pages");
            check!(
                free + beside >= one.min(two) && free <= one.max(two) + beside,
                "{one}, {two}: {row}"
            );
        }
    }
    let known = rows.iter().filter(|row| row["alloc"].is_string()).count();
    if hook.attempts {
        // An interrupt that asks for pages too hides an attempt.
        check!(known * 100 >= rows.len() * 99, "{known} of {} attempts", rows.len());
        let first = rows.iter().find(|row| row["alloc"].is_string()).ok_or("none")?;
        let alloc = first["alloc"].as_str().unwrap_or_default();
        check!(alloc.starts_with("WMARK_LOW") && alloc.contains("KSWAPD"), "{first}");
    } else {
        check_eq!(known, 0, "attempts are not seen");
    }
    PASS
}

/// The zones now, with free pages and counters as they were: only what a row is
/// compared with can make a difference.
fn zoneinfo_watermarks(before: &Zones) -> Zones {
    let mut now = zoneinfo();
    for (zone, numbers) in &mut now {
        for (name, value) in numbers.iter_mut() {
            if !["min", "low", "high", "present"].contains(&name.as_str()) {
                *value = before.get(zone).and_then(|it| it.get(name)).copied().unwrap_or(0);
            }
        }
    }
    now
}

fn counted(hook: Hook) -> Outcome {
    let mut worker = Worker::start();
    worker.ask("anon 7");
    let pid = worker.pid().to_string();
    let watcher = start(hook, &["-i", "0.3", "-P", &pid]);
    let before = (zoneinfo(), allocated());
    let filter = format!("common_pid == {pid}");
    let ((), record) = recorded(&filter, || {
        worker.ask(&format!("anon {PAGES}"));
        Ok(())
    })?;
    let after = (zoneinfo(), allocated());
    let (rows, lost) = rows_and_lost(watcher)?;
    let mut sums: BTreeMap<Asked, u64> = BTreeMap::new();
    for row in &rows {
        *sums.entry(of_row(row)).or_default() += number(row, "count");
    }
    check!(agrees(touched(&sums), PAGES, lost), "{lost} lost: {sums:?}");
    check_eq!(rows.iter().map(|row| number(row, "failed")).sum::<u64>(), 0, "{rows:?}");
    if let Some(lines) = record {
        let all: u64 = sums.values().sum();
        let kernels = lines.len() as u64;
        check!(all + lost >= kernels && all <= kernels + 8, "{all} for {kernels}: {sums:?}");
    }
    // The watermarks did not move while the rows were made.
    if before.0 == zoneinfo_watermarks(&before.0) {
        rows.iter().try_for_each(|row| check_zone(row, &after.0).map(drop))?;
    }
    // No more in a zone than the kernel counted there, and nearly all of it.
    let mut by_zone: BTreeMap<String, u64> = BTreeMap::new();
    for row in &rows {
        let zone = row["zone"].as_str().unwrap_or_default().to_lowercase();
        *by_zone.entry(zone).or_default() += number(row, "count") << number(row, "order");
    }
    for (zone, pages) in &by_zone {
        let counted = after.1.get(zone).unwrap_or(&0) - before.1.get(zone).unwrap_or(&0);
        check!(*pages <= counted + 64, "{pages} pages from {zone}, the kernel counted {counted}");
    }
    check!(by_zone.values().sum::<u64>() + lost >= PAGES, "{by_zone:?}");
    PASS
}

/// Pages allocated so far, by zone (`pgalloc_*` of /proc/vmstat).
fn allocated() -> BTreeMap<String, u64> {
    oracle::vmstat("/proc/vmstat")
        .into_iter()
        .filter_map(|(name, pages)| Some((name.strip_prefix("pgalloc_")?.to_owned(), pages)))
        .collect()
}

/// Every row's reason is what its own figures say: one large zone, and a request
/// of 2^order pages.
fn check_reason(row: &Value, hook: Hook) -> Outcome {
    let reason = row["reason"].as_str().ok_or("no reason")?;
    let atomic = !row["gfp"].as_str().is_some_and(may_reclaim);
    check_eq!(reason.ends_with(", atomic context"), atomic, "{row}");
    let reason = reason.trim_end_matches(", atomic context");
    // Without attempts it is not known which node a request was bound to.
    let known = ["below watermark", "fragmentation"].contains(&reason);
    check!(known || (!hook.attempts && reason == "room again"), "{row}");
    if hook.attempts && row["zone"] == "DMA32" {
        // What it was allowed to use up differs by at most the whole reserve.
        let (free, high) = (number(row, "free_pages"), number(row, "high_pages"));
        let block = 1u64 << number(row, "order");
        if free > 2 * high + block {
            check_eq!(reason, "fragmentation", "{row}");
        }
        if free < block {
            check_eq!(reason, "below watermark", "{row}");
        }
    }
    let stack: Vec<&str> = row["stack"]
        .as_array()
        .ok_or("no stack")?
        .iter()
        .filter_map(|frame| frame["symbol"].as_str())
        .collect();
    check!(stack.iter().take(3).any(|name| name.contains("alloc")), "{stack:?}");
    check!(!stack.iter().any(|name| name.starts_with("bpf_")), "{stack:?}");
    PASS
}

/// Whether flags in words include direct reclaim.
fn may_reclaim(words: &str) -> bool {
    const WITH: [&str; 9] = [
        "GFP_TRANSHUGE", "GFP_HIGHUSER_MOVABLE", "GFP_HIGHUSER", "GFP_USER", "GFP_KERNEL",
        "GFP_KERNEL_ACCOUNT", "GFP_NOFS", "GFP_NOIO", "__GFP_DIRECT_RECLAIM",
    ];
    words.split('|').any(|word| WITH.contains(&word) || word == "__GFP_RECLAIM")
}

/// Free memory in pieces, and huge pages wanted at once (no direct reclaim).
fn in_pieces(hook: Hook) -> Outcome {
    let set = is_guest().then(|| {
        (
            Setting::of(format!("{THP}/enabled"), "madvise"),
            Setting::of(format!("{THP}/defrag"), "never"),
            Setting::of(format!("{THP}/khugepaged/defrag"), "0"),
            // Huge pages that are to move want others as well, and do not count as faults
            // (do_huge_pmd_numa_page(), mm/huge_memory.c).
            Setting::of("/proc/sys/kernel/numa_balancing", "0"),
        )
    });
    if_supported("thp", matches!(set, Some((Some(_), Some(_), ..))), || {
        // The memory of each node, if there are two: huge pages come from the own.
        let _broken: Vec<Worker> = [0, 1].into_iter().map(in_pieces_at).collect();
        let mut worker = Worker::start();
        // More than can be had; of each only one page is touched.
        let wanted = oracle::meminfo()["MemTotal"] / 2048;
        let pid = worker.pid().to_string();
        let watcher = start(hook, &["--failed", "-P", &pid]);
        let before = oracle::vmstat("/proc/vmstat");
        let filter = format!("common_pid == {pid} && pfn == 18446744073709551615");
        let ((), record) = recorded(&filter, || {
            worker.ask(&format!("fault-huge {wanted}"));
            Ok(())
        })?;
        let after = oracle::vmstat("/proc/vmstat");
        let (rows, lost) = rows_and_lost(watcher)?;
        let lines = record.ok_or("no record")?;
        check!(lines.iter().all(|line| got_nothing(line)), "{lines:?}");
        check!(!rows.is_empty(), "{wanted} huge pages fit in: {lines:?}");
        let ours = tally(rows.iter().map(of_row));
        let kernels = tally(lines.iter().map(|line| asked(line)));
        check_eq!(ours.keys().collect::<Vec<_>>(), kernels.keys().collect::<Vec<_>>(), "kinds");
        for (asked, &due) in &kernels {
            check!(agrees(ours[asked], due, lost), "{asked:?}: {} of {due}, {lost} lost", ours[asked]);
        }
        let huge = rows.iter().filter(|row| row["order"] == 9).count() as u64;
        let fallbacks = after["thp_fault_fallback"] - before["thp_fault_fallback"];
        let mut stacks: BTreeMap<String, u64> = BTreeMap::new();
        rows.iter().for_each(|row| *stacks.entry(row["stack"].to_string()).or_default() += 1);
        check!(
            agrees(huge, fallbacks, lost),
            "{huge}, {lost} lost; thp_fault_fallback {fallbacks}: {ours:?}, {stacks:#?}"
        );
        rows.iter().try_for_each(|row| check_reason(row, hook).map(drop))?;
        let words = |text: &str| rows.iter().filter(|row| row["reason"] == text).count();
        check!(
            !hook.attempts || words("fragmentation, atomic context") > 0,
            "{:?}",
            rows.iter().map(|row| row["reason"].as_str()).collect::<BTreeSet<_>>()
        );
        // The program's own frames follow the kernel's.
        let ends = |row: &Value| {
            let stack = row["stack"].as_array().cloned().unwrap_or_default();
            stack.last().is_some_and(|frame| frame["module"] != "kernel")
        };
        check!(rows.iter().all(ends), "frames of the program: {}", rows[0]);
        worker.end();
        PASS
    })
}

/// A process on one CPU that holds every other of many pages.
fn in_pieces_at(cpu: usize) -> Worker {
    let mut worker = Worker::start();
    worker.pin(cpu);
    worker.ask("pepper 30011");
    worker
}

fn pool() -> Option<&'static str> {
    POOLS.into_iter().find(|path| fs::metadata(path).is_ok())
}

/// Asks for more huge pages than there can be, and gives them back.
fn use_up_pool() -> std::io::Result<()> {
    let pool = pool().ok_or(std::io::ErrorKind::NotFound)?;
    fs::write(pool, "200000")?;
    fs::write(pool, "0")
}

/// Signals a process queues to itself, and is refused.
const REFUSED: usize = 503;

/// What [`REFUSED`] refused signals asked for while so many KiB are to be left free, for
/// a moment: the rows and the kernel's record, which are the same.
fn signals(hook: Hook, least: impl Fn() -> u64) -> Result<(Vec<Value>, Vec<Asked>), Failed> {
    // Ten reports of the kernel's, on a slow console, would take too long.
    let _quiet = Setting::of("/proc/sys/kernel/printk", "3").ok_or("printk")?;
    let mut worker = Worker::start();
    let pid = worker.pid().to_string();
    let watcher = start(hook, &["--failed", "-P", &pid]);
    let kills = oracle::vmstat("/proc/vmstat")["oom_kill"];
    let filter = format!("common_pid == {pid} && pfn == 18446744073709551615");
    let ((), record) = recorded(&filter, || {
        worker.ask(&format!("signals {REFUSED} {}", least()));
        Ok(())
    })?;
    let (rows, lost) = rows_and_lost(watcher)?;
    let lines = record.ok_or("no record")?;
    check_eq!(oracle::vmstat("/proc/vmstat")["oom_kill"], kills, "killed for want of memory");
    check!(lines.iter().all(|line| got_nothing(line)), "{lines:?}");
    let requests: Vec<Asked> = lines.iter().map(|line| asked(line)).collect();
    let kernels = tally(requests.iter().cloned());
    check_eq!(tally(rows.iter().map(of_row)), kernels, "{lost} lost");
    let last = requests.iter().filter(|asked| is_last(asked)).count();
    check_eq!(last, REFUSED, "signals refused: {kernels:?}");
    worker.end();
    Ok((rows, requests))
}

fn has_flag((_, gfp): &Asked, name: &str) -> bool {
    gfp.split('|').any(|word| word == name)
}

fn is_atomic(asked: &Asked) -> bool {
    has_flag(asked, "GFP_ATOMIC")
}

/// For a signal that is refused SLUB asks twice: for the slab it likes best, which it can
/// do without, and for the smallest one, with the flags it was given. What 7.3 asks for
/// before that, to fill a sheaf, may not touch all reserves.
fn is_last(asked: &Asked) -> bool {
    is_atomic(asked) && !has_flag(asked, "__GFP_NOWARN")
}

/// Less is free than even atomic requests may use: more than there is is to be left.
fn atomic(hook: Hook) -> Outcome {
    if_supported("tracefs", is_guest(), || {
        const REASON: &str = "below watermark, atomic context";
        // Atomic requests may use five eighths of it.
        let (rows, requests) = signals(hook, || 4 * oracle::meminfo()["MemTotal"])?;
        for two in requests.windows(2).filter(|two| is_last(&two[1])) {
            let first = is_atomic(&two[0])
                && has_flag(&two[0], "__GFP_NOWARN")
                && has_flag(&two[0], "__GFP_NORETRY")
                && !has_flag(&two[0], "__GFP_NOMEMALLOC");
            check!(first, "before the last request of a signal: {two:?}");
        }

        for row in rows.iter().filter(|row| is_atomic(&of_row(row))) {
            check_reason(row, hook)?;
            check_eq!(row["reason"], REASON, "{row}");
            let frames = row["stack"].as_array().ok_or_else(|| format!("no stack: {row}"))?;
            let through = |name: &str| {
                let is_it = |frame: &Value| {
                    frame["symbol"].as_str().is_some_and(|symbol| symbol.contains(name))
                };
                frames.iter().any(is_it)
            };
            check!(through("send_signal") && through("rt_sigqueueinfo"), "{row}");
            check!(frames.iter().any(|frame| frame["module"] != "kernel"), "the program: {row}");
            let alloc = row["alloc"].as_str();
            check!(alloc.is_none_or(|words| words.starts_with("WMARK_MIN")), "{row}");
        }
        PASS
    })
}

/// Enough is free, but some of it is for movable memory only, and the rest is too little.
fn movable_only(hook: Hook) -> Outcome {
    let has_cma =
        |zone: &BTreeMap<String, u64>| zone.get("nr_free_cma").is_some_and(|&free| free > 0);
    if_supported("cma", is_guest() && zoneinfo().values().any(has_cma), || {
        // What lies low is for nobody.
        let lowest = "/proc/sys/vm/lowmem_reserve_ratio";
        let _lowest = Setting::of(lowest, "1").ok_or(lowest)?;
        // Zones share what is to be left by their size, and atomic requests may use five
        // eighths of it (__zone_watermark_ok(), mm/page_alloc.c).
        let least = || {
            let zones = zoneinfo();
            let zone = zones.values().find(|zone| has_cma(zone)).expect("it was there");
            let left = zone["free"] - zone["nr_free_cma"] / 2;
            let managed: u64 = zones.values().map(|zone| zone["managed"]).sum();
            left * managed / zone["managed"] * 8 / 3 * oracle::page_kib()
        };
        let (rows, _) = signals(hook, least)?;
        for row in rows.iter().filter(|row| is_last(&of_row(row))) {
            check_eq!(row["reason"], "CMA excluded, atomic context", "{row}");
        }
        PASS
    })
}

/// The pool of hugetlbfs grows until there is no more: requests that may reclaim.
fn all_memory(hook: Hook) -> Outcome {
    if_supported("hugetlb", is_guest() && pool().is_some(), || {
        let pid = std::process::id().to_string();
        let watcher = start(hook, &["--failed", "-P", &pid]);
        let filter =
            format!("common_pid == {pid} && pfn == 18446744073709551615 && order == 9");
        let ((), record) = recorded(&filter, || {
            use_up_pool()?;
            Ok(())
        })?;
        let (rows, lost) = rows_and_lost(watcher)?;
        let lines = record.ok_or("no record")?;
        check!(!lines.is_empty(), "all of it was to be had");
        let huge: Vec<&Value> = rows.iter().filter(|row| row["order"] == 9).collect();
        let (found, due) = (huge.len() as u64, lines.len() as u64);
        check!(agrees(found, due, lost), "{found} of {due} failures, {lost} lost: {lines:?}");
        for row in huge {
            check_reason(row, hook)?;
            check_eq!(row["pid"].as_u64(), Some(std::process::id().into()), "{row}");
        }
        PASS
    })
}

/// Kernel memory that is charged: a table of descriptors, for which there is no room in
/// the cgroup, neither as one block nor as pages, and nobody who could be killed for it.
fn block_refused(hook: Hook) -> Outcome {
    let group = is_guest().then(|| Cgroup::create("block")).flatten();
    let Some(group) = group.filter(Cgroup::is_v2) else {
        return if_supported("memcg", false, || PASS);
    };
    group.set("memory.swap.max", 0).or_else(|error| match error.kind() {
        // Without swap there is no such file.
        std::io::ErrorKind::NotFound | std::io::ErrorKind::PermissionDenied => Ok(()),
        _ => Err(error),
    })?;
    // The kernel reports it with a stack, which else looks like a complaint about itself.
    let _quiet = Setting::of("/proc/sys/kernel/printk", "3").ok_or("printk")?;
    let mut worker = Worker::start();
    let pid = worker.pid().to_string();
    fs::write(format!("/proc/{pid}/oom_score_adj"), "-1000")?;
    let watcher = start(hook, &["--failed", "-P", &pid]);
    group.add(worker.pid())?;
    worker.ask("anon 1009");
    let held: u64 = group.get("memory.current")?.trim().parse()?;
    group.limit(held + (200 << 10))?;
    let filter = format!("common_pid == {pid} && pfn == 18446744073709551615");
    let ((), record) = recorded(&filter, || {
        // 65536 pointers in 512 KiB.
        worker.ask("descriptors 40009");
        Ok(())
    })?;
    fs::write("/sys/fs/cgroup/cgroup.procs", &pid)?;
    let (rows, lost) = rows_and_lost(watcher)?;
    let lines = record.ok_or("no record")?;
    // Of the pages a newer kernel tries blocks too.
    let due: Vec<Asked> = lines.iter().map(|line| asked(line)).collect();
    let orders = |all: &[Asked]| all.iter().map(|(order, _)| *order).collect::<Vec<_>>();
    let ours: Vec<Asked> = rows.iter().map(of_row).collect();
    check_eq!(orders(&ours), orders(&due), "{lost} lost: {rows:?}");
    check_eq!(ours.first().map(|(order, _)| *order), Some(7), "{lines:?}");
    for (row, asked) in rows.iter().zip(&due) {
        let reason = row["reason"].as_str().unwrap_or_default();
        let reason = reason.trim_end_matches(", atomic context");
        if hook.attempts {
            check_eq!(reason, "cgroup limit", "{row}");
            check_eq!(row["cgroup"], group.path(), "{row}");
            check!(row["zone"].is_null(), "no zone was asked: {row}");
        } else {
            check_eq!(&of_row(row), asked, "{row}");
            check_eq!(reason, "cgroup limit, probably", "{row}");
        }
        let frames = row["stack"].as_array().ok_or_else(|| format!("no stack: {row}"))?;
        // 5.10 cannot look beyond a function whose return has a probe.
        let within = |name: &str| {
            let is_it = |frame: &Value| frame["symbol"].as_str().is_some_and(|s| s.contains(name));
            frames.iter().any(is_it)
        };
        check!(within("alloc_fdtable") || within("kretprobe_trampoline"), "{row}");
    }
    worker.end();
    PASS
}

/// A memory cgroup that has no room for a huge page.
fn cgroup_limit(hook: Hook) -> Outcome {
    let set = is_guest().then(|| Setting::of(format!("{THP}/enabled"), "madvise")).flatten();
    let group = is_guest().then(|| Cgroup::create("paf")).flatten();
    let Some((group, _set)) = group.zip(set).filter(|(group, _)| group.limit(1 << 20).is_ok()) else {
        return if_supported("memcg", false, || PASS);
    };
    let mut worker = Worker::start();
    let pid = worker.pid().to_string();
    let watcher = start(hook, &["--failed", "-P", &pid]);
    group.add(worker.pid())?;
    let before = oracle::vmstat("/proc/vmstat");
    worker.ask("fault-huge 5");
    let after = oracle::vmstat("/proc/vmstat");
    fs::write("/sys/fs/cgroup/cgroup.procs", &pid)?;
    let (rows, lost) = rows_and_lost(watcher)?;
    let refused = after["thp_fault_fallback_charge"] - before["thp_fault_fallback_charge"];
    check_eq!(refused, 5, "thp_fault_fallback_charge");
    let huge: Vec<&Value> = rows.iter().filter(|row| row["order"] == 9).collect();
    check!(agrees(huge.len() as u64, 5, lost), "{lost} lost: {rows:?}");
    for row in huge {
        let reason = row["reason"].as_str().unwrap_or_default();
        check!(reason.starts_with("cgroup limit"), "{row}");
        check_eq!(row["cgroup"], group.path(), "{row}");
        check!(row["zone"].is_null(), "no zone was asked: {row}");
    }
    worker.end();
    PASS
}

/// All requests of the machine, with whatever flags come.
fn words() -> Outcome {
    let mut worker = Worker::start();
    let name = "paf";
    let (rows, record) = recorded("", || {
        let watcher = Watcher::start(&[name, "--events", "--ring-kib", "16384"]);
        for order in ["anon 101", "tmpfs 101", "filled 101", "names 211", "threads 11"] {
            worker.ask(order);
        }
        let mut other = Worker::start();
        other.ask("stack 11");
        other.end();
        let (code, rows, stderr) = watcher.stop();
        if code == Some(0) { Ok(rows) } else { Err(stderr.into()) }
    })?;
    let ours: BTreeSet<Asked> = rows.iter().map(of_row).collect();
    check!(ours.len() >= 8, "only {ours:?}");
    for row in &rows {
        let number = row["flag"].as_str().and_then(|flag| flag.strip_prefix("0x"));
        check!(number.is_some_and(|hex| u32::from_str_radix(hex, 16).is_ok()), "{row}");
    }
    let Some(lines) = record else {
        return if_supported("tracefs", false, || PASS);
    };
    let kernels: BTreeSet<Asked> = lines.iter().map(|line| asked(line)).collect();
    let wrong: Vec<&Asked> = ours.difference(&kernels).collect();
    check!(wrong.is_empty(), "the kernel never said {wrong:?}; it said {kernels:?}");
    PASS
}

fn full_ring() -> Outcome {
    let mut worker = Worker::start();
    worker.ask("anon 7");
    let pid = worker.pid().to_string();
    let watcher = Watcher::start(&["paf", "--events", "--ring-kib", "4", "-P", &pid]);
    worker.ask("anon 3");
    watcher.signal(Signal::STOP);
    worker.ask("anon 1009");
    watcher.signal(Signal::CONT);
    let (code, rows, stderr) = watcher.stop();
    check_eq!(code, Some(0), "{stderr}");
    let totals = Totals::parse(&stderr).ok_or_else(|| stderr.clone())?;
    check!(totals.lost > 500, "4 KiB cannot hold 1009 records: {stderr}");
    check_eq!(rows.len() as u64, totals.events, "rows and events: {stderr}");
    // Page tables and the worker's own come beside them.
    let all = rows.len() as u64 + totals.lost;
    check!((1012..1012 + 64).contains(&all), "{all} arrived or were lost: {stderr}");
    PASS
}

fn filters() -> Outcome {
    let (mut one, mut two) = (Worker::start(), Worker::start());
    one.ask("anon 7");
    two.ask("anon 7");
    two.ask("name");
    let named = Watcher::start(&["paf", "--events", "--comm", "a-name-longer-"]);
    let list = format!("{},{}", one.pid(), two.pid());
    let both = Watcher::start(&["paf", "-i", "0.2", "-P", &list]);
    let most = Watcher::start(&["paf", "-i", "0.2", "--top", "1", "-P", &list]);
    one.ask("anon 211");
    two.ask("anon 101");
    let (rows, lost) = rows_and_lost(named)?;
    let found = touched(&tally(rows.iter().map(of_row)));
    check!(agrees(found, 101, lost), "--comm: {found}, {lost} lost: {rows:?}");
    check!(rows.iter().all(|row| row["pid"] == two.pid()), "--comm: {rows:?}");
    let mut by_pid: BTreeMap<u64, u64> = BTreeMap::new();
    let (rows, lost) = rows_and_lost(both)?;
    for row in &rows {
        if touched(&tally([of_row(row)].into_iter())) > 0 {
            *by_pid.entry(number(row, "pid")).or_default() += number(row, "count");
        }
    }
    for (worker, due) in [(&one, 211), (&two, 101)] {
        let found = by_pid.remove(&worker.pid().into()).unwrap_or(0);
        check!(agrees(found, due, lost), "-P with two: {found} of {due}, {lost} lost: {rows:?}");
    }
    check!(by_pid.is_empty(), "others: {by_pid:?}");
    let (rows, _) = rows_and_lost(most)?;
    let times: BTreeSet<&str> = rows.iter().filter_map(|row| row["time"].as_str()).collect();
    check_eq!(times.len(), rows.len(), "--top 1: a row a report: {rows:?}");
    PASS
}

/// The same failures as rows and as folded stacks.
fn folded() -> Outcome {
    if_supported("hugetlb", is_guest() && pool().is_some(), || {
        let file = std::env::temp_dir().join(format!("paf-{}.folded", std::process::id()));
        let path = file.to_str().ok_or("a path")?;
        let pid = std::process::id().to_string();
        let rows = Watcher::start(&["paf", "--failed", "-P", &pid]);
        let mut stacks = std::process::Command::new(crate::common::watcher::binary())
            .args(["paf", "--failed", "-P", &pid, "-o", "folded", "--file", path])
            .stderr(std::process::Stdio::piped())
            .spawn()?;
        // It is attached when it is listed among those who hold programs.
        let fds = format!("/proc/{}/fdinfo", stacks.id());
        let attached = || {
            let links = |entry: std::io::Result<fs::DirEntry>| {
                let text = fs::read_to_string(entry.ok()?.path()).ok()?;
                text.contains("link_type:").then_some(())
            };
            fs::read_dir(&fds).is_ok_and(|list| list.filter_map(links).count() >= 2)
        };
        let end = std::time::Instant::now() + PATIENCE;
        while !attached() && std::time::Instant::now() < end {
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        std::thread::sleep(std::time::Duration::from_millis(500));
        use_up_pool()?;
        let (found, lost) = rows_and_lost(rows)?;
        let found = found.len() as u64;
        rustix::process::kill_process(rustix::process::Pid::from_child(&stacks), Signal::INT)?;
        check!(stacks.wait()?.success(), "the profile");
        let text = fs::read_to_string(&file)?;
        fs::remove_file(&file)?;
        let count = |line: &str| line.rsplit_once(' ')?.1.parse::<u64>().ok();
        let sum: u64 = text.lines().filter_map(count).sum();
        check!(found > 0, "something failed");
        // Each of the two is skipped where its own program is interrupted.
        check!(sum.abs_diff(found) <= lost + 16 && sum > 0, "{sum}, {found}, {lost} lost: {text}");
        check!(text.contains("alloc"), "{text}");
        PASS
    })
}

fn bad_input() -> Outcome {
    for (args, word) in [
        (&["-o", "folded"][..], "--failed"),
        (&["--events", "--failed"], "cannot be used with"),
        (&["--events", "--top", "3"], "cannot be used with"),
        (&["--hook", "nonsense"], "get_page_from_freelist"),
        (&["--ring-kib", "3"], "power of two"),
        (&["--max-entries", "0"], "invalid value"),
        (&["-P", "x"], "whole number"),
    ] {
        let output = run(&[&["paf", "-n", "1"], args].concat());
        let stderr = String::from_utf8_lossy(&output.stderr);
        check_eq!(output.status.code(), Some(2), "{args:?}: {stderr}");
        check!(stderr.contains(word), "{args:?}: {stderr}");
        check!(output.stdout.is_empty(), "{args:?} printed rows");
    }
    PASS
}

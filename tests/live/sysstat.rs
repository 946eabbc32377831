//! sysstat against `/proc/vmstat`, `/proc/meminfo` and the nodes' `vmstat`.
//!
//! While a watcher prints rows, the test reads the file over and over. A row's
//! value must lie between the values read just before and just after it; where
//! those agree, it must be the same.

use std::collections::BTreeSet;
use std::collections::HashMap;
use std::fs;
use std::thread;
use std::time::Duration;
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
use crate::common::kernels::must_support;
use crate::common::kernels::zram_swap;
use crate::common::oracle;
use crate::common::test;
use crate::common::watcher::PATIENCE;
use crate::common::watcher::Watcher;
use crate::common::watcher::rows;
use crate::common::watcher::run;
use crate::common::worker::Worker;

/// Hooks, and the feature of `tests/kernels.txt` each depends on.
const HOOKS: [(&str, &str); 5] = [
    ("fentry:get_page_from_freelist", "fentry"),
    ("kprobe:get_page_from_freelist", "kprobe"),
    ("memcg:nodeinfo", "raw_test_run"),
    ("ksym:node_data", "kallsyms_data"),
    ("proc:vmstat", "raw_test_run"),
];

pub fn tests() -> Vec<Trial> {
    let mut tests: Vec<Trial> = HOOKS
        .into_iter()
        .map(|(hook, feature)| {
            test(format!("sysstat: every column is /proc/vmstat's, through {hook}"), move || {
                let probe = run(&["sysstat", "--hook", hook, "-n", "1"]);
                if probe.status.code() == Some(4) {
                    return if_supported(feature, false, || PASS);
                }
                check!(probe.status.success(), "{}", String::from_utf8_lossy(&probe.stderr));
                against_vmstat(hook)
            })
        })
        .collect();
    tests.extend([
        test("sysstat: the default is the hook it is named for", default_hook),
        test("sysstat: a hook that attaches and never fires is told", silent_hook),
        test("sysstat: every column is /proc/meminfo's", against_meminfo),
        test("sysstat: every column moves with what it counts", columns_move),
        test("sysstat: a row for each node, of that node", per_node),
        test("sysstat: rates are those of /proc/vmstat", rates),
        test("sysstat: what a cgroup's limit reclaims is counted", limited_cgroup),
        test("sysstat: the swap cache moves its column", swap_cache),
        test("sysstat: nothing stays attached to the allocator", nothing_attached),
    ]);
    tests
}

/// A key of a row, and the lines of vmstat it is the sum of. `H` before a name:
/// the line counts huge pages; `K`: it is in KiB.
const COLUMNS: [(&str, &[&str]); 25] = [
    ("free", &["nr_free_pages"]),
    ("active", &["nr_active_anon", "nr_active_file"]),
    ("inactive", &["nr_inactive_anon", "nr_inactive_file"]),
    ("anon_active", &["nr_active_anon"]),
    ("anon_inactive", &["nr_inactive_anon"]),
    ("file_active", &["nr_active_file"]),
    ("file_inactive", &["nr_inactive_file"]),
    ("unevictable", &["nr_unevictable"]),
    ("dirty", &["nr_dirty"]),
    ("writeback", &["nr_writeback"]),
    ("anon_pages", &["nr_anon_pages"]),
    ("mapped", &["nr_mapped"]),
    ("shmem", &["nr_shmem"]),
    ("kreclaimable", &["nr_slab_reclaimable", "nr_kernel_misc_reclaimable"]),
    ("slab", &["nr_slab_reclaimable", "nr_slab_unreclaimable"]),
    ("slab_reclaimable", &["nr_slab_reclaimable"]),
    ("slab_unreclaimable", &["nr_slab_unreclaimable"]),
    // The line nr_unstable is a constant since 5.8: no kernel here counts it.
    ("nfs_unstable", &["no such line"]),
    ("writeback_tmp", &["nr_writeback_temp"]),
    ("anon_huge", &["Hnr_anon_transparent_hugepages"]),
    ("shmem_huge", &["Hnr_shmem_hugepages"]),
    ("pmd_mapped", &["Hnr_shmem_pmdmapped"]),
    ("kernel_stack", &["Knr_kernel_stack"]),
    ("page_tables", &["nr_page_table_pages"]),
    ("swap_cached", &["nr_swapcached"]),
];

/// One column of vmstat in KiB; `None` where this kernel has no such line.
fn kib(vmstat: &HashMap<String, u64>, lines: &[&str]) -> Option<u64> {
    lines
        .iter()
        .map(|line| {
            let (unit, name) = match line.split_at(1) {
                ("H", name) => (2048, name),
                ("K", name) => (1, name),
                _ => (oracle::page_kib(), *line),
            };
            Some(vmstat.get(name)? * unit)
        })
        .sum()
}

/// A reading of a file between two moments.
type Read = (Instant, Instant, HashMap<String, u64>);

/// Rows of a running watcher, each with what `read` gave around it.
fn bracketed(
    args: &[&str],
    read: impl Fn() -> HashMap<String, u64>,
    wanted: usize,
) -> Result<Vec<(Value, Vec<Read>)>, Failed> {
    let watcher = Watcher::start(args);
    let mut reads: Vec<Read> = Vec::new();
    let mut found: Vec<(Value, Vec<Read>)> = Vec::new();
    let mut arrived: Vec<(Instant, Value)> = Vec::new();
    let end = Instant::now() + PATIENCE;
    while arrived.len() <= wanted {
        check!(Instant::now() < end, "only {} rows came", arrived.len());
        let before = Instant::now();
        let values = read();
        reads.push((before, Instant::now(), values));
        while let Some(row) = watcher.next_at(Duration::ZERO) {
            arrived.push(row);
        }
    }
    reads.push((Instant::now(), Instant::now(), read()));
    for pair in arrived.windows(2) {
        // A row was read after the one before it arrived, and before it arrived.
        let (from, to) = (pair[0].0, pair[1].0);
        let first = reads.iter().rposition(|read| read.1 <= from).unwrap_or(0);
        let last = reads.iter().position(|read| read.0 >= to).unwrap_or(reads.len() - 1);
        found.push((pair[1].1.clone(), reads[first..=last].to_vec()));
    }
    let (code, _, stderr) = watcher.stop();
    check_eq!(code, Some(0), "{stderr}");
    Ok(found)
}

/// What may come and go between two readings: what the CPUs keep before they
/// hand it to the global counter, at most 125 pages each (calculate_normal_
/// threshold(), mm/vmstat.c), in every zone.
fn slack_kib() -> u64 {
    let cpus = thread::available_parallelism().map_or(1, usize::from) as u64;
    125 * cpus * 4 * oracle::page_kib()
}

/// What may be on no list for a moment: each CPU can have taken the pages of one huge
/// page off theirs, to collapse (khugepaged) or to move them.
fn off_lists_kib(lines: &[&str]) -> u64 {
    let cpus = thread::available_parallelism().map_or(1, usize::from) as u64;
    if lines.iter().any(|line| line.contains("active_")) { 2048 * cpus } else { 0 }
}

fn compare(found: &[(Value, Vec<Read>)], columns: &[(&str, &[&str])]) -> Outcome {
    for (key, lines) in columns {
        let key = format!("{key}_kib");
        let mut same = 0;
        for (row, reads) in found {
            let values: Vec<u64> =
                reads.iter().filter_map(|(_, _, vmstat)| kib(vmstat, lines)).collect();
            let (Some(&low), Some(&high)) = (values.iter().min(), values.iter().max()) else {
                check!(row[&key].is_null(), "{key} is {} where the kernel has none", row[&key]);
                same += 1;
                continue;
            };
            let ours = row[&key].as_u64().ok_or_else(|| format!("{key} is missing in {row}"))?;
            // What moved by much between two readings may have moved back, too.
            let slack = slack_kib() + off_lists_kib(lines) + (high - low) / 2;
            check!(
                ours + slack >= low && ours <= high + slack,
                "{key} is {ours}, the kernel says {low} to {high}"
            );
            same += usize::from((low..=high).contains(&ours));
        }
        check!(2 * same > found.len(), "{key} agreed in {same} of {} rows only", found.len());
    }
    PASS
}

fn against_vmstat(hook: &str) -> Outcome {
    let args = ["sysstat", "-R", "-i", "0.1", "--hook", hook];
    let found = bracketed(&args, || oracle::vmstat("/proc/vmstat"), 20)?;
    // Kept by the swap code alone before 5.12; then read from /proc/meminfo.
    let counted = oracle::vmstat("/proc/vmstat").contains_key("nr_swapcached");
    let columns: Vec<(&str, &[&str])> =
        COLUMNS.into_iter().filter(|(key, _)| counted || *key != "swap_cached").collect();
    compare(&found, &columns)
}

fn default_hook() -> Outcome {
    let watcher = Watcher::start(&["sysstat", "-n", "1"]);
    let hook = watcher.header["hook"].as_str().unwrap_or_default().to_owned();
    if must_support("fentry") {
        check_eq!(hook, "fentry:get_page_from_freelist", "default hook");
    } else {
        check!(HOOKS.iter().any(|(name, _)| *name == hook), "odd hook {hook}");
    }
    PASS
}

fn silent_hook() -> Outcome {
    // Disarmed, kprobes attach and never fire.
    let disarm = "/sys/kernel/debug/kprobes/enabled";
    let disarmed = is_guest() && fs::write(disarm, "0").is_ok();
    if !disarmed {
        return if_supported("kprobe", false, || PASS);
    }
    let output = run(&["sysstat", "-n", "1", "--hook", "kprobe"]);
    fs::write(disarm, "1")?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    check_eq!(output.status.code(), Some(4), "{stderr}");
    check!(stderr.contains("led to no memory node"), "{stderr}");
    PASS
}

fn against_meminfo() -> Outcome {
    const LINES: [(&str, &str); 20] = [
        ("free", "MemFree"),
        ("active", "Active"),
        ("inactive", "Inactive"),
        ("anon_active", "Active(anon)"),
        ("anon_inactive", "Inactive(anon)"),
        ("file_active", "Active(file)"),
        ("file_inactive", "Inactive(file)"),
        ("unevictable", "Unevictable"),
        ("dirty", "Dirty"),
        ("anon_pages", "AnonPages"),
        ("mapped", "Mapped"),
        ("shmem", "Shmem"),
        ("kreclaimable", "KReclaimable"),
        ("slab", "Slab"),
        ("slab_reclaimable", "SReclaimable"),
        ("slab_unreclaimable", "SUnreclaim"),
        ("anon_huge", "AnonHugePages"),
        ("kernel_stack", "KernelStack"),
        ("page_tables", "PageTables"),
        ("swap_cached", "SwapCached"),
    ];
    let read = || {
        let mut values = oracle::meminfo();
        if !is_guest() {
            // There are builds of the kernel whose two files differ, by always the same.
            let free = oracle::vmstat("/proc/vmstat")["nr_free_pages"] * oracle::page_kib();
            values.insert("MemFree".into(), free);
        }
        values
    };
    let found = bracketed(&["sysstat", "-R", "-i", "0.2"], read, 40)?;
    for (key, line) in LINES {
        let agreed = found.iter().filter(|(row, reads)| {
            let values = || reads.iter().map(|(_, _, meminfo)| meminfo[line]);
            let (low, high) = (values().min(), values().max());
            let ours = row[format!("{key}_kib")].as_u64();
            ours.is_some() && low <= ours && ours <= high
        });
        let (agreed, seen) = (agreed.count(), found.len());
        check!(2 * agreed > seen, "{key} agreed with {line} in {agreed} of {seen} rows only");
    }
    PASS
}

/// What a worker is told, and by how many KiB which column must change.
const MOVES: [(&str, &[(&str, i64)]); 13] = [
    ("anon 16384", &[("anon_pages", 60 << 10), ("free", -(60 << 10))]),
    ("sparse 1024", &[("page_tables", 3 << 10)]),
    ("tmpfs 4096", &[("shmem", 15 << 10)]),
    ("locked 2048", &[("unevictable", 7 << 10)]),
    ("file 4096", &[("mapped", 15 << 10)]),
    ("cache 4096", &[]),
    ("names 20000", &[("slab_reclaimable", 2 << 10), ("kreclaimable", 2 << 10), ("slab", 2 << 10)]),
    ("pipes 1500", &[("slab_unreclaimable", 1 << 10)]),
    ("filled 300", &[("unaccounted", 15 << 10)]),
    ("dirty 8192", &[("dirty", 24 << 10)]),
    ("threads 61", &[("kernel_stack", 700)]),
    ("huge 8192", &[("anon_huge", 24 << 10)]),
    ("shared 4096", &[("shmem_huge", 12 << 10), ("pmd_mapped", 12 << 10)]),
];

/// Columns that some order above must move by 4 MiB, whichever it is: which
/// list a page goes to depends on the LRU design.
const LISTS: [&str; 6] =
    ["active", "inactive", "anon_active", "anon_inactive", "file_active", "file_inactive"];

fn columns_move() -> Outcome {
    let shmem_huge = "/sys/kernel/mm/transparent_hugepage/shmem_enabled";
    let anon_huge = "/sys/kernel/mm/transparent_hugepage/enabled";
    if is_guest() {
        fs::write(shmem_huge, "always")?;
        fs::write(anon_huge, "madvise")?;
    }
    let says = |path: &str, word: &str| fs::read_to_string(path).is_ok_and(|t| t.contains(word));
    let mut moved: BTreeSet<&str> = BTreeSet::new();
    for (order, expected) in MOVES {
        if order.starts_with("shared") && !says(shmem_huge, "[always]") {
            continue;
        }
        if order.starts_with("huge") && says(anon_huge, "[never]") {
            continue;
        }
        let mut why = String::new();
        // Others use memory too, but not each time; and what one try holds the
        // next cannot reuse.
        let mut held = Vec::new();
        let done = (0..8).any(|_| match once_moved(order, expected, &mut moved, &mut held) {
            Ok(()) => true,
            Err(text) => {
                why = text;
                false
            }
        });
        check!(done, "{order}: {why}");
    }
    if is_guest() {
        fs::write(shmem_huge, "never")?;
    }
    age_lists(&mut moved)?;
    for list in LISTS {
        check!(moved.contains(list), "{list} did not move; {moved:?} did");
    }
    writeback_moves()
}

/// On multi-generational lists a page is active while it is in one of the two
/// youngest generations: making new ones moves what is not used to the
/// inactive lists and what is mapped and used to the active ones
/// (Documentation/admin-guide/mm/multigen_lru.rst).
fn age_lists(moved: &mut BTreeSet<&'static str>) -> Outcome {
    const CONTROL: &str = "/sys/kernel/debug/lru_gen";
    if !is_guest() || !fs::read_to_string(CONTROL).is_ok_and(|text| text.contains("memcg")) {
        return PASS;
    }
    let mut worker = Worker::start();
    worker.ask("anon 4096");
    worker.ask("file 4096");
    let before = rows(&["sysstat", "-n", "1"]).remove(0);
    for _ in 0..4 {
        let text = fs::read_to_string(CONTROL)?;
        let (mut memcg, mut node) = ("", "");
        let mut youngest: Vec<(&str, &str, &str)> = Vec::new();
        for words in text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>()) {
            match words.as_slice() {
                ["memcg", id, ..] => memcg = id,
                ["node", id, ..] => {
                    node = id;
                    youngest.push((memcg, node, ""));
                }
                [generation, ..] => {
                    if let Some(last) = youngest.last_mut() {
                        *last = (memcg, node, generation);
                    }
                }
                [] => {}
            }
        }
        for (memcg, node, generation) in youngest {
            // Refused for a group that has gone meanwhile.
            let _ = fs::write(CONTROL, format!("+ {memcg} {node} {generation} 1 1"));
        }
        let after = rows(&["sysstat", "-n", "1"]).remove(0);
        note_moved(&before, &after, moved);
    }
    worker.end();
    PASS
}

fn note_moved(before: &Value, after: &Value, moved: &mut BTreeSet<&'static str>) {
    let value = |row: &Value, key: &str| row[format!("{key}_kib")].as_i64().unwrap_or(0);
    for list in LISTS {
        if (value(after, list) - value(before, list)).abs() >= 4 << 10 {
            moved.insert(list);
        }
    }
}

fn once_moved(
    order: &str,
    expected: &[(&'static str, i64)],
    moved: &mut BTreeSet<&'static str>,
    held: &mut Vec<Worker>,
) -> Result<(), String> {
    let read = || rows(&["sysstat", "-R", "-n", "1"]).remove(0);
    let value = |row: &Value, key: &str| row[format!("{key}_kib")].as_i64().unwrap_or(0);
    let mut worker = Worker::start();
    if is_guest() {
        // The disk is always the same: its pages must not be cached already.
        let _ = fs::write("/proc/sys/vm/drop_caches", "3");
    }
    let (before, kept_before) = (read(), oracle::kept_by_cpus_kib());
    worker.ask(order);
    let (after, kept_after) = (read(), oracle::kept_by_cpus_kib());
    held.push(worker);
    note_moved(&before, &after, moved);
    for (key, least) in expected {
        let mut change = value(&after, key) - value(&before, key);
        // What a CPU keeps at hand, up to an eighth of a zone, is taken first, and is not free.
        if *key == "free" {
            change += kept_after - kept_before;
        }
        if change.signum() != least.signum() || change.abs() < least.abs() {
            return Err(format!("{key} changed by {change} KiB, due {least}"));
        }
    }
    Ok(())
}

/// Pages are under writeback for a moment only: look often while they are.
fn writeback_moves() -> Outcome {
    let watcher = Watcher::start(&["sysstat", "-i", "0.002"]);
    let mut worker = Worker::start();
    for _ in 0..8 {
        worker.ask("dirty 4096");
        worker.ask("sync");
    }
    worker.end();
    let (_, rows, stderr) = watcher.stop();
    let seen = rows.iter().any(|row| row["writeback_kib"].as_u64().is_some_and(|kib| kib > 0));
    check!(seen, "no writeback in {} rows; {stderr}", rows.len());
    PASS
}

fn per_node() -> Outcome {
    let nodes: Vec<u64> = fs::read_dir("/sys/devices/system/node")?
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.strip_prefix("node")?.parse().ok())
        .collect();
    if nodes.len() < 2 && must_support("numa") {
        return Err("must have two nodes".into());
    }
    let mut seen = BTreeSet::new();
    for &node in &nodes {
        let path = format!("/sys/devices/system/node/node{node}/vmstat");
        let found = bracketed(&["sysstat", "-R", "--per-node", "-i", "0.1"], || oracle::vmstat(&path), 41)?;
        // With several nodes their rows alternate; each arrives with its report.
        let mine: Vec<(Value, Vec<Read>)> = {
            let mut mine = Vec::new();
            let mut reads: Vec<Read> = Vec::new();
            for (row, around) in found {
                seen.insert(row["node"].as_u64().ok_or("a node")?);
                reads.extend(around);
                if row["node"].as_u64() == Some(node) {
                    mine.push((row, std::mem::take(&mut reads)));
                }
            }
            mine
        };
        check!(mine.len() >= 10, "{} rows of node {node}", mine.len());
        let columns: Vec<(&str, &[&str])> = COLUMNS
            .into_iter()
            .filter(|(key, _)| !matches!(*key, "swap_cached"))
            .collect();
        compare(&mine, &columns)?;
    }
    check_eq!(seen.into_iter().collect::<Vec<_>>(), { let mut n = nodes; n.sort_unstable(); n }, "nodes");
    PASS
}

fn rates() -> Outcome {
    let mut worker = Worker::start();
    let faults = || oracle::vmstat("/proc/vmstat")["pgfault"];
    // The first row is read at once.
    let mut before_first = faults();
    let watcher = Watcher::start(&["sysstat", "--rates", "-i", "1"]);
    let first = watcher.next(PATIENCE).ok_or("no row")?;
    check!(first["faults_per_s"].is_null(), "nothing to compare the first row with: {first}");
    let mut time = moment(&first);
    let mut after_first = faults();
    for _ in 0..3 {
        worker.ask("anon 7919");
        let before_second = faults();
        let row = watcher.next(PATIENCE).ok_or("no row")?;
        let after_second = faults();
        let now = moment(&row);
        let span = now - time;
        let counted = row["faults_per_s"].as_f64().ok_or("no rate")? * span;
        let (least, most) = (
            before_second.saturating_sub(after_first) as f64,
            after_second.saturating_sub(before_first) as f64,
        );
        // The two clocks of a row differ by the time a reading takes.
        check!(
            counted >= least * 0.95 && counted <= most * 1.05,
            "{counted} faults in {span} s, the kernel counted {least} to {most}: {row}"
        );
        check!(counted >= 7919.0 * 0.95, "the worker alone had 7919, not {counted}");
        let pressure = fs::read_to_string("/proc/pressure/memory").is_ok();
        check_eq!(row["pressure_some_percent"].is_number(), pressure, "PSI in {row}");
        (before_first, after_first, time) = (before_second, after_second, now);
    }
    worker.end();
    drop(watcher);
    PASS
}

/// A cgroup of 40 MiB in which 80 MiB are written: its own accounting says how
/// many pages were taken from it.
fn limited_cgroup() -> Outcome {
    let folder = "/sys/fs/cgroup/mem_watcher_limited";
    let ready = is_guest()
        && zram_swap()
        && fs::create_dir(folder).is_ok()
        && fs::write(format!("{folder}/memory.max"), "40M").is_ok();
    if_supported("memcg", ready, || {
        let stolen = || {
            let text = fs::read_to_string(format!("{folder}/memory.stat"))?;
            let line = text.lines().find_map(|line| line.strip_prefix("pgsteal "));
            line.and_then(|n| n.parse::<f64>().ok()).ok_or(std::io::ErrorKind::NotFound.into())
        };
        let mut worker = Worker::start();
        fs::write(format!("{folder}/cgroup.procs"), worker.pid().to_string())?;
        let watcher = Watcher::start(&["sysstat", "--rates", "-i", "0.5"]);
        let mut time = moment(&watcher.next(PATIENCE).ok_or("no row")?);
        worker.ask("anon 20480");
        let truth: f64 = stolen().map_err(|error: std::io::Error| error.to_string())?;
        check!(truth > 8192.0, "the limit took {truth} pages only");
        let mut counted = 0.0;
        let end = Instant::now() + PATIENCE;
        while counted < truth * 0.95 {
            check!(Instant::now() < end, "{counted} pages of {truth} in {folder}");
            let row = watcher.next(PATIENCE).ok_or("no row")?;
            let now = moment(&row);
            counted += row["pages_reclaimed_per_s"].as_f64().ok_or("no rate")? * (now - time);
            time = now;
        }
        check!(counted <= truth * 1.10 + 512.0, "{counted} pages, the cgroup lost {truth}");
        worker.end();
        drop(watcher);
        fs::remove_dir(folder)?;
        PASS
    })
}

/// Pages that two processes share leave for swap when their cgroup is squeezed;
/// read back by one of them, they stay in the swap cache for the other.
fn swap_cache() -> Outcome {
    let folder = "/sys/fs/cgroup/mem_watcher_squeezed";
    let ready = is_guest() && zram_swap() && fs::create_dir(folder).is_ok();
    if_supported("swap", ready, || {
        let cached = || {
            let row = rows(&["sysstat", "-R", "-n", "1"]).remove(0);
            row["swap_cached_kib"].as_u64().ok_or(format!("no number in {row}"))
        };
        let before = cached()?;
        let mut worker = Worker::start();
        fs::write(format!("{folder}/cgroup.procs"), worker.pid().to_string())?;
        worker.ask("anon 8192");
        worker.ask("fork 1");
        fs::write(format!("{folder}/memory.max"), "16M")?;
        worker.ask("pagein");
        let (low, ours, high) =
            (oracle::meminfo()["SwapCached"], cached()?, oracle::meminfo()["SwapCached"]);
        worker.ask("reap");
        worker.end();
        fs::remove_dir(folder)?;
        check!(ours >= before + 256, "{before} KiB before, {ours} after; the kernel says {low}");
        let slack = slack_kib();
        check!(
            ours + slack >= low.min(high) && ours <= low.max(high) + slack,
            "{ours} KiB, the kernel says {low} to {high}"
        );
        PASS
    })
}

/// Seconds of the day of a row's time, which is RFC 3339.
fn moment(row: &Value) -> f64 {
    let text = row["time"].as_str().unwrap_or_default();
    let clock: Vec<f64> =
        text[11..26].split(':').map(|part| part.parse().expect("a number")).collect();
    clock[0] * 3600.0 + clock[1] * 60.0 + clock[2]
}

/// The allocation path carries no probe: no program of ours is linked to it.
fn nothing_attached() -> Outcome {
    let watcher = Watcher::start(&["sysstat", "-i", "0.2"]);
    let _ = watcher.next(PATIENCE).ok_or("no row")?;
    let links: Vec<String> = libbpf_rs::query::LinkInfoIter::default()
        .map(|link| format!("{:?}", link.info))
        .collect();
    let programs: Vec<String> = libbpf_rs::query::ProgInfoIter::default()
        .map(|program| program.name.to_string_lossy().into_owned())
        .collect();
    let (_, _, stderr) = watcher.stop();
    check!(programs.iter().any(|name| name == "read_nodes"), "{programs:?} {stderr}");
    let attached = links.iter().filter(|link| link.contains("Tracing") || link.contains("Perf"));
    check_eq!(attached.count(), 0, "{links:?}");
    PASS
}

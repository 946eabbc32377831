//! frag against `/proc/buddyinfo` and the kernel's own indexes in debugfs.
//!
//! While a watcher reports, the test reads the file over and over. A report was
//! made between two moments; it must be one of the readings around it.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
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
use crate::common::leak::number;
use crate::common::test;
use crate::common::watcher::PATIENCE;
use crate::common::watcher::Watcher;
use crate::common::watcher::rows;
use crate::common::watcher::run;
use crate::common::worker::Worker;

/// Hooks, and the feature of `tests/kernels.txt` each depends on.
const HOOKS: [(&str, &str); 3] = [
    ("memcg:nodeinfo", "raw_test_run"),
    ("ksym:node_data", "kallsyms_data"),
    ("proc:buddyinfo", "raw_test_run"),
];

const BUDDYINFO: &str = "/proc/buddyinfo";
const DEBUGFS: &str = "/sys/kernel/debug/extfrag";

pub fn tests() -> Vec<Trial> {
    let mut tests: Vec<Trial> = HOOKS
        .into_iter()
        .map(|(hook, feature)| {
            test(format!("frag: every zone as /proc/buddyinfo, through {hook}"), move || {
                let probe = run(&["frag", "--hook", hook, "-n", "1"]);
                if probe.status.code() == Some(4) {
                    return if_supported(feature, false, || PASS);
                }
                check!(probe.status.success(), "{}", String::from_utf8_lossy(&probe.stderr));
                against(hook, BUDDYINFO, |row| number(row, "blocks") as i64)
            })
        })
        .collect();
    tests.extend([
        test("frag: the fragmentation index is the kernel's", || {
            index("extfrag_index", "extfrag_index")
        }),
        test("frag: the unusable-space index is the kernel's", || {
            index("unusable_index", "unusable_index")
        }),
        test("frag: memory that is broken up on purpose", broken_up),
        test("frag: only some orders and zones, and bad input", filters),
    ]);
    tests
}

/// The numbers of each zone, one for each order.
type Zones = BTreeMap<(u64, String), Vec<i64>>;

/// `Node 0, zone    DMA32  1 2 …` of buddyinfo; debugfs has fractions of three
/// digits, below zero too: `-1.000`, `0.-500`.
fn read(path: &str) -> Zones {
    let thousandths = |field: &str| match field.split_once('.') {
        Some((whole, rest)) => {
            whole.parse::<i64>().expect("a number") * 1000 + rest.parse::<i64>().expect("a number")
        }
        None => field.parse().expect("a number"),
    };
    let text = fs::read_to_string(path).expect("a list of zones");
    text.lines()
        .map(|line| {
            let (node, rest) = line.split_once(", zone").expect("a zone");
            let nid = node.trim_start_matches("Node ").parse().expect("a node");
            let mut fields = rest.split_whitespace();
            let zone = fields.next().expect("a name").to_owned();
            ((nid, zone), fields.map(thousandths).collect())
        })
        .collect()
}

fn zones_of(rows: &[Value], of: impl Fn(&Value) -> i64) -> Zones {
    let mut zones = Zones::new();
    for row in rows {
        let zone = row["zone"].as_str().expect("a zone").to_owned();
        let numbers = zones.entry((number(row, "node"), zone)).or_default();
        assert_eq!(numbers.len() as u64, number(row, "order"), "orders in a row: {row}");
        numbers.push(of(row));
    }
    zones
}

/// The indexes computed once more, from the free blocks of a zone: of
/// fragmentation and of unusable space, in thousandths.
fn computed(blocks: &[i64], order: usize) -> (i64, i64) {
    let free: i64 = blocks.iter().enumerate().map(|(o, n)| n << o).sum();
    let total: i64 = blocks.iter().sum();
    let suitable: i64 = blocks.iter().enumerate().skip(order).map(|(o, n)| n << (o - order)).sum();
    let extfrag = if total == 0 {
        0
    } else if suitable > 0 {
        -1000
    } else {
        1000 - (1000 + free * 1000 / (1 << order)) / total
    };
    let unusable = if free == 0 { 1000 } else { (free - (suitable << order)) * 1000 / free };
    (extfrag, unusable)
}

fn thousandths(row: &Value, key: &str) -> i64 {
    (row[key].as_f64().unwrap_or_else(|| panic!("no {key} in {row}")) * 1000.0).round() as i64
}

/// Reports until every zone was found three times just as `path` has it.
fn against(hook: &str, path: &str, of: impl Fn(&Value) -> i64) -> Outcome {
    let watcher = Watcher::start(&["frag", "--hook", hook, "-i", "0.05"]);
    check_eq!(watcher.header["hook"].as_str(), Some(hook), "the header names the hook");
    let mut reads: Vec<(Instant, Zones)> = vec![(Instant::now(), read(path))];
    let mut same: BTreeMap<(u64, String), u32> =
        reads[0].1.keys().map(|zone| (zone.clone(), 0)).collect();
    let mut different: BTreeMap<(u64, String), Vec<String>> = BTreeMap::new();
    let mut report = Vec::<Value>::new();
    let end = Instant::now() + PATIENCE;
    while same.values().any(|&times| times < 3) {
        check!(Instant::now() < end, "found {same:?} times; not {different:?}");
        reads.push((Instant::now(), read(path)));
        while let Some((at, row)) = watcher.next_at(Duration::ZERO) {
            if report.first().is_some_and(|first| first["time"] != row["time"]) {
                let whole = std::mem::take(&mut report);
                compare(&whole, &reads, &of, &mut same, &mut different)?;
                // Readings of before this report are of no more use.
                let keep = reads.iter().rposition(|read| read.0 < at).unwrap_or(0);
                reads.drain(..keep);
            }
            report.push(row);
        }
    }
    let (code, _, stderr) = watcher.stop();
    check_eq!(code, Some(0), "{stderr}");
    PASS
}

fn compare(
    report: &[Value],
    reads: &[(Instant, Zones)],
    of: &impl Fn(&Value) -> i64,
    same: &mut BTreeMap<(u64, String), u32>,
    different: &mut BTreeMap<(u64, String), Vec<String>>,
) -> Result<(), Failed> {
    let ours = zones_of(report, of);
    let kernels: Vec<&(u64, String)> = reads[0].1.keys().collect();
    if ours.keys().collect::<Vec<_>>() != kernels {
        return Err(format!("zones {:?}, the kernel has {kernels:?}", ours.keys()).into());
    }
    let blocks = zones_of(report, |row| number(row, "blocks") as i64);
    for row in report {
        let zone = (number(row, "node"), row["zone"].as_str().unwrap_or_default().to_owned());
        let order = number(row, "order") as usize;
        let (extfrag, unusable) = computed(&blocks[&zone], order);
        let shown = (thousandths(row, "extfrag_index"), thousandths(row, "unusable_index"));
        if shown != (extfrag, unusable) {
            return Err(format!("{row} is {extfrag} and {unusable} of {:?}", blocks[&zone]).into());
        }
        let free = (number(row, "blocks") * (rustix::param::page_size() as u64 / 1024)) << order;
        if number(row, "free_kib") != free {
            return Err(format!("{row}: {free} KiB are free").into());
        }
    }
    for (zone, numbers) in ours {
        if reads.iter().any(|(_, zones)| zones[&zone] == numbers) {
            *same.entry(zone).or_default() += 1;
        } else if let [(_, first), .., (_, last)] = reads
            && first[&zone] == last[&zone]
            && reads.iter().all(|(_, zones)| zones[&zone] == first[&zone])
        {
            // It may have changed and changed back; not each time.
            let text = format!("{numbers:?} where the kernel has {:?}", first[&zone]);
            let list = different.entry(zone).or_default();
            list.push(text);
            if list.len() > 20 {
                return Err(format!("{list:?}").into());
            }
        }
    }
    Ok(())
}

fn index(file: &str, key: &'static str) -> Outcome {
    let path = format!("{DEBUGFS}/{file}");
    let hook = rows(&["frag", "-n", "1"]).len();
    check!(hook > 0, "no rows");
    if_supported("extfrag", Path::new(&path).exists(), || {
        let default = Watcher::start(&["frag", "-n", "1"]);
        let name = default.header["hook"].as_str().unwrap_or_default().to_owned();
        if must_support("raw_test_run") && must_support("memcg") {
            check_eq!(name, "memcg:nodeinfo", "the default hook");
        }
        against(&name, &path, move |row| thousandths(row, key))
    })
}

/// Pages between pages that are held cannot be joined to larger blocks.
fn broken_up() -> Outcome {
    if !is_guest() {
        // Others' memory comes and goes too much here.
        return if_supported("quiet", false, || PASS);
    }
    let pages = 20_011;
    let mut worker = Worker::start();
    let state = || -> (i64, i64) {
        let rows = rows(&["frag", "-n", "1"]);
        let blocks = zones_of(&rows, |row| number(row, "blocks") as i64);
        let unusable = zones_of(&rows, |row| thousandths(row, "unusable_index"));
        let smallest = blocks.values().map(|blocks| blocks[0]).sum();
        (smallest, unusable.values().map(|zone| zone[4]).max().unwrap_or(0))
    };
    let before = state();
    worker.ask(&format!("pepper {pages}"));
    let after = state();
    // Pages just freed are kept for each CPU, and in no block. Where a page's
    // neighbour came from elsewhere it is joined; few do.
    let kept = kept_for_cpus();
    check!(after.0 - before.0 + kept > i64::from(pages) * 3 / 4, "{before:?}, {after:?}, {kept}");
    check!(after.0 - before.0 > i64::from(pages) / 8, "{before:?}, {after:?}, {kept}");
    check!(after.1 > before.1, "the share of no use grows: {before:?}, {after:?}");
    worker.end();
    PASS
}

/// Pages on the lists of CPUs, of all zones.
fn kept_for_cpus() -> i64 {
    let text = fs::read_to_string("/proc/zoneinfo").expect("zoneinfo");
    let count = |line: &str| line.trim().strip_prefix("count:")?.trim().parse::<i64>().ok();
    text.lines().filter_map(count).sum()
}

fn filters() -> Outcome {
    let all = rows(&["frag", "-n", "1"]);
    let zone = all[0]["zone"].as_str().ok_or("a zone")?;
    let some = rows(&["frag", "-n", "2", "-i", "0.01", "--order", "9,0", "--zone", zone]);
    let orders: Vec<u64> = some.iter().map(|row| number(row, "order")).collect();
    let nodes = all.iter().filter(|row| row["zone"] == zone && row["order"] == 0).count();
    check_eq!(orders, [0, 9].repeat(2 * nodes), "{some:?}");
    check!(some.iter().all(|row| row["zone"] == zone), "{some:?}");
    for (args, word) in [
        (["--order", "31"], "orders 0 to"),
        (["--order", "x"], "invalid value"),
        (["--zone", "Nowhere"], "no such zone"),
        (["--hook", "nonsense"], "proc:buddyinfo"),
    ] {
        let output = run(&[&["frag", "-n", "1"], &args[..]].concat());
        let stderr = String::from_utf8_lossy(&output.stderr);
        check_eq!(output.status.code(), Some(2), "{args:?}: {stderr}");
        check!(stderr.contains(word), "{args:?}: {stderr}");
        check!(output.stdout.is_empty(), "{args:?} printed rows");
    }
    PASS
}

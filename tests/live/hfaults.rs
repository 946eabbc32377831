//! hfaults against `thp_fault_alloc` and `thp_fault_fallback` of `/proc/vmstat`,
//! and the worker's own count.

use std::fs;

use libtest_mimic::Failed;
use libtest_mimic::Trial;
use serde_json::Value;

use crate::check;
use crate::check_eq;
use crate::common::Outcome;
use crate::common::PASS;
use crate::common::kernels::if_supported;
use crate::common::kernels::is_guest;
use crate::common::leak::number;
use crate::common::oracle;
use crate::common::test;
use crate::common::watcher::Watcher;
use crate::common::worker::Worker;
use crate::faults::agrees;
use crate::faults::stop;
use crate::faults::with_hook_of;

/// Hooks, the feature of `tests/kernels.txt` each depends on, and whether it
/// follows the function itself.
const HOOKS: [(&str, &str, bool); 3] = [
    ("fexit:do_huge_pmd_anonymous_page", "fentry", true),
    ("kprobe:do_huge_pmd_anonymous_page", "kprobe", true),
    ("perf:mm_page_alloc", "find_vma", false),
];

const THP: &str = "/sys/kernel/mm/transparent_hugepage/enabled";

pub fn tests() -> Vec<Trial> {
    let mut tests = Vec::new();
    for (hook, feature, exact) in HOOKS {
        let each = |what: &str, body: fn(&'static str) -> Outcome| {
            test(format!("hfaults: {what}, through {hook}"), move || {
                with_hook_of("hfaults", hook, feature, || {
                    if_supported("thp", has_thp(), || body(hook))
                })
            })
        };
        tests.push(each("huge pages as the kernel counts them", huge));
        tests.push(each("pages of hugetlbfs", hugetlb));
        if exact {
            tests.push(each("fallbacks as the kernel counts them", fallback));
            tests.push(each("the huge zero page", zero));
        }
    }
    tests.push(test("hfaults: every call of madvise for huge pages", calls));
    tests
}

fn has_thp() -> bool {
    fs::read_to_string(THP).is_ok_and(|text| !text.contains("[never]"))
        || (is_guest() && fs::write(THP, "madvise").is_ok())
}

struct Watched {
    watcher: Watcher,
    worker: Worker,
}

impl Watched {
    fn start(hook: &str) -> Self {
        let worker = Worker::start();
        let pid = worker.pid().to_string();
        let watcher = Watcher::start(&["hfaults", "--hook", hook, "-i", "0.2", "-P", &pid]);
        assert_eq!(watcher.header["hook"].as_str(), Some(hook), "the header names the hook");
        Self { watcher, worker }
    }

    fn rows(self) -> Result<(Vec<Value>, u64), Failed> {
        stop(self.watcher)
    }
}

fn sum(rows: &[Value], key: &str) -> u64 {
    rows.iter().map(|row| number(row, key)).sum()
}

/// The kernel's own counts.
fn vmstat() -> (u64, u64) {
    let counters = oracle::vmstat("/proc/vmstat");
    (counters["thp_fault_alloc"], counters["thp_fault_fallback"])
}

fn huge(hook: &str) -> Outcome {
    let mut watched = Watched::start(hook);
    let before = vmstat();
    watched.worker.ask("fault-huge 23");
    let after = vmstat();
    let (rows, lost) = watched.rows()?;
    // Where memory is scarce, some are not to be had.
    check!(agrees(sum(&rows, "huge") + sum(&rows, "fallback"), 23, lost), "{rows:?}");
    check_eq!(sum(&rows, "calls"), 1, "the advice: {rows:?}");
    if is_guest() {
        // Nobody else uses them there.
        check!(agrees(sum(&rows, "huge"), after.0 - before.0, lost), "thp_fault_alloc: {rows:?}");
        check!(agrees(sum(&rows, "fallback"), after.1 - before.1, lost), "thp_fault_fallback: {rows:?}");
        check!(agrees(sum(&rows, "huge"), 23, lost), "there is memory enough: {rows:?}");
    }
    PASS
}

/// A memory cgroup that has no room for a huge page.
fn fallback(hook: &str) -> Outcome {
    let group = "/sys/fs/cgroup/hfaults";
    let possible = is_guest() && fs::create_dir(group).is_ok();
    if_supported("memcg", possible && fs::write(format!("{group}/memory.max"), "1M").is_ok(), || {
        let mut watched = Watched::start(hook);
        fs::write(format!("{group}/cgroup.procs"), watched.worker.pid().to_string())?;
        let before = vmstat();
        watched.worker.ask("fault-huge 5");
        let after = vmstat();
        fs::write("/sys/fs/cgroup/cgroup.procs", watched.worker.pid().to_string())?;
        let (rows, lost) = watched.rows()?;
        fs::remove_dir(group)?;
        check!(agrees(sum(&rows, "fallback"), 5, lost), "{rows:?}");
        check_eq!(after.1 - before.1, 5, "thp_fault_fallback: {rows:?}");
        check!(agrees(sum(&rows, "huge"), after.0 - before.0, lost), "thp_fault_alloc: {rows:?}");
        PASS
    })
}

fn zero(hook: &str) -> Outcome {
    let mut watched = Watched::start(hook);
    let before = vmstat();
    watched.worker.ask("fault-zero 7");
    let after = vmstat();
    let (rows, lost) = watched.rows()?;
    check!(agrees(sum(&rows, "zero"), 7, lost), "{rows:?}");
    check!(agrees(sum(&rows, "huge"), 0, lost), "{rows:?}");
    if is_guest() {
        check_eq!(after, before, "thp_fault_alloc and thp_fault_fallback");
    }
    PASS
}

fn hugetlb(hook: &str) -> Outcome {
    let pool = "/proc/sys/vm/nr_hugepages";
    if !is_guest() {
        return if_supported("hugetlb", false, || PASS);
    }
    fs::write(pool, "8")?;
    let found = fs::read_to_string(pool)?.trim() == "8";
    let result = if_supported("hugetlb", found, || {
        let mut watched = Watched::start(hook);
        let answer = watched.worker.ask("fault-hugetlb 7");
        let (rows, lost) = watched.rows()?;
        check!(agrees(sum(&rows, "hugetlb"), 7, lost), "the worker counted {answer}: {rows:?}");
        check!(agrees(sum(&rows, "huge"), 0, lost), "{rows:?}");
        PASS
    });
    fs::write(pool, "0")?;
    result
}

fn calls() -> Outcome {
    let mut worker = Worker::start();
    let pid = worker.pid().to_string();
    let watcher = Watcher::start(&["hfaults", "--calls", "-P", &pid]);
    let answer = worker.ask("fault-advise 5 3");
    let (code, rows, stderr) = watcher.stop();
    check_eq!(code, Some(0), "{stderr}");
    let (start, codes) = answer.split_once(' ').ok_or("an address and results")?;
    let mut wanted: Vec<(&str, u64, &str)> = Vec::new();
    wanted.extend([("HUGEPAGE", 4 << 20, "ok"); 5]);
    wanted.extend([("NOHUGEPAGE", 2 << 20, "ok"); 3]);
    // Not aligned, and of nothing.
    wanted.push(("HUGEPAGE", 4096, "EINVAL"));
    wanted.push(("COLLAPSE", 2 << 20, codes));
    let seen: Vec<(&str, u64, &str)> = rows
        .iter()
        .map(|row| {
            let text = |key: &str| row[key].as_str().unwrap_or_default();
            (text("advice"), number(row, "bytes"), text("result"))
        })
        .collect();
    check_eq!(seen, wanted, "{rows:?}");
    check!(rows.iter().all(|row| row["pid"] == worker.pid() && row["tid"] == worker.pid()), "{rows:?}");
    check!(rows.iter().take(5).all(|row| row["start"] == start), "{start}: {rows:?}");
    PASS
}

//! The kernel's own accounting, read from /proc.

use std::collections::HashMap;
use std::fs;

/// The numbers of `/proc/PID/status`, by name; sizes in KiB.
pub type Status = HashMap<String, u64>;

/// Reads `/proc/PID/status`; `None` if the process has gone.
pub fn status(pid: u32) -> Option<Status> {
    Some(numbers(&fs::read_to_string(format!("/proc/{pid}/status")).ok()?))
}

/// Reads `/proc/PID/smaps_rollup`, which walks the page tables; sizes in KiB.
pub fn smaps_rollup(pid: u32) -> Option<Status> {
    Some(numbers(&fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?))
}

/// Reads `/proc/meminfo`; sizes in KiB.
pub fn meminfo() -> Status {
    numbers(&fs::read_to_string("/proc/meminfo").expect("/proc/meminfo"))
}

/// Reads `/proc/vmstat` or a node's `vmstat`.
pub fn vmstat(path: &str) -> HashMap<String, u64> {
    let text = fs::read_to_string(path).expect("vmstat");
    text.lines()
        .filter_map(|line| {
            let (name, value) = line.split_once(' ')?;
            Some((name.to_owned(), value.parse().ok()?))
        })
        .collect()
}

/// Free pages that the CPUs keep for themselves and no counter calls free, in KiB
/// (`per_cpu_pages.count`, in `/proc/zoneinfo`).
pub fn kept_by_cpus_kib() -> i64 {
    let text = fs::read_to_string("/proc/zoneinfo").expect("/proc/zoneinfo");
    let counts = text.lines().filter_map(|line| line.trim().strip_prefix("count:"));
    counts.filter_map(|count| count.trim().parse::<i64>().ok()).sum::<i64>() * page_kib() as i64
}

fn numbers(text: &str) -> Status {
    text.lines()
        .filter_map(|line| {
            let (name, rest) = line.split_once(':')?;
            let number = rest.split_whitespace().next()?.parse().ok()?;
            Some((name.trim().to_owned(), number))
        })
        .collect()
}

/// Whether this kernel keeps resident counters per thread (until 6.1), in which
/// case `/proc/PID/status` itself lags by what each thread keeps.
pub fn counters_are_split() -> bool {
    // percpu_counter made /proc/PID/status exact; no other trace of the change
    // is visible from user space but the structure's name in BTF.
    let btf = fs::read("/sys/kernel/btf/vmlinux").expect("BTF");
    let name = b"\0mm_rss_stat\0";
    btf.windows(name.len()).any(|window| window == name)
}

/// Page size in KiB.
pub fn page_kib() -> u64 {
    rustix::param::page_size() as u64 / 1024
}

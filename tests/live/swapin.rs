//! swapin against pswpin, pswpout, zswpin and swpin_zero of `/proc/vmstat`, the major
//! faults of a worker, and the time its reads took.

use std::ffi::CString;
use std::fs;
use std::process::Command;
use std::process::Stdio;
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
use crate::common::kernels::zram_swap;
use crate::common::leak::number;
use crate::common::oracle;
use crate::common::oracle::vmstat;
use crate::common::pressure::Cgroup;
use crate::common::pressure::DISK;
use crate::common::test;
use crate::common::watcher::PATIENCE;
use crate::common::watcher::Watcher;
use crate::common::watcher::run;
use crate::common::worker::Worker;
use crate::faults::agrees;
use crate::faults::stop;
use crate::faults::with_hook_of;

/// Hooks, and the feature of `tests/kernels.txt` each depends on.
const HOOKS: [(&str, &str); 5] = [
    ("fexit:swap_read_folio", "swap_read_folio"),
    ("fexit:swap_readpage", "swap_readpage"),
    ("kprobe:swap_read_folio", "swap_read_folio"),
    ("kprobe:swap_readpage", "swap_readpage"),
    ("perf:page_faults_maj", "find_vma"),
];

pub fn tests() -> Vec<Trial> {
    let mut tests = Vec::new();
    for (hook, feature) in HOOKS {
        let each = |what: &str, body: fn(&str) -> Outcome| {
            test(format!("swapin: {what}, through {hook}"), move || {
                with_hook_of("swapin", hook, feature, || {
                    if_supported("zram", is_guest() && zram_swap(), || body(hook))
                })
            })
        };
        if hook.starts_with("perf") {
            tests.push(each("faults as the kernel counts them", faults));
            continue;
        }
        tests.push(each("zram", zram));
        tests.push(each("a disk", disk));
        tests.push(each("zswap", zswap));
        tests.push(each("zeroes", zeroes));
    }
    tests.push(test("swapin: who is asked for", filters));
    tests.push(test("swapin: what is wrong on the command line", wrong));
    tests
}

struct Watched {
    watcher: Watcher,
    worker: Worker,
    /// In which the worker is, where pages do not leave by themselves.
    group: Option<Cgroup>,
}

/// What the kernel counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Counts {
    read: u64,
    written: u64,
    zswap_in: u64,
    zswap_out: u64,
    zero_in: u64,
}

fn counts() -> Counts {
    let counters = vmstat("/proc/vmstat");
    let of = |name: &str| counters.get(name).copied().unwrap_or(0);
    Counts {
        read: of("pswpin"),
        written: of("pswpout"),
        zswap_in: of("zswpin"),
        zswap_out: of("zswpout"),
        zero_in: of("swpin_zero"),
    }
}

impl Counts {
    fn since(self, before: Self) -> Self {
        Self {
            read: self.read - before.read,
            written: self.written - before.written,
            zswap_in: self.zswap_in - before.zswap_in,
            zswap_out: self.zswap_out - before.zswap_out,
            zero_in: self.zero_in - before.zero_in,
        }
    }
}

impl Watched {
    /// Unfiltered: the sum is to be the machine's.
    fn start(hook: &str) -> Self {
        let worker = Worker::start();
        let watcher = Watcher::start(&["swapin", "--hook", hook, "-i", "0.2", "--unit", "pages"]);
        assert_eq!(watcher.header["hook"].as_str(), Some(hook), "the header names the hook");
        Self { watcher, worker, group: None }
    }

    /// Writes the worker's memory to swap until little of it is left in memory.
    fn page_out(&mut self) -> Result<(), Failed> {
        let end = Instant::now() + PATIENCE;
        loop {
            self.worker.ask("pageout");
            let cached = oracle::meminfo()["SwapCached"];
            let here = oracle::status(self.worker.pid()).ok_or("the worker has gone")?["RssAnon"];
            if cached < 2048 && here < 2048 {
                return Ok(());
            }
            if Instant::now() > end {
                return Err(format!("{cached} KiB in the swap cache, {here} KiB here").into());
            }
            thread::sleep(Duration::from_millis(20));
            // What was being written is in the swap cache until somebody reclaims it.
            if let Some(group) = &self.group {
                group.set("memory.high", "1M")?;
                group.set("memory.high", "max")?;
            }
        }
    }
}

fn sum(rows: &[Value], key: &str) -> u64 {
    rows.iter().map(|row| number(row, key)).sum()
}

fn of(rows: &[Value], pid: u32) -> Vec<Value> {
    rows.iter().filter(|row| row["pid"] == pid).cloned().collect()
}

/// Major faults so far, of the process itself.
fn major(pid: u32) -> Result<u64, Failed> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let rest = text.rsplit(')').next().ok_or("a stat line")?;
    // From the state, which is field 3; maj_flt is field 12.
    Ok(rest.split_whitespace().nth(9).ok_or("maj_flt")?.parse()?)
}

/// Out, and back in: what came of it.
struct Trip {
    out: Counts,
    back: Counts,
    major: u64,
    wall_us: u64,
}

fn trip(watched: &mut Watched, order: &str) -> Result<Trip, Failed> {
    watched.worker.ask(order);
    let begin = counts();
    watched.page_out()?;
    let between = counts();
    let faults = major(watched.worker.pid())?;
    let wall_us = watched.worker.ask("stall-pagein").parse().map_err(|_| "a time")?;
    Ok(Trip {
        out: between.since(begin),
        back: counts().since(between),
        major: major(watched.worker.pid())? - faults,
        wall_us,
    })
}

fn zram(hook: &str) -> Outcome {
    // Nothing of others is left in swap, to come back meanwhile.
    swapoff(ZRAM);
    swapon(ZRAM)?;
    let mut watched = Watched::start(hook);
    let pid = watched.worker.pid();
    let trip = trip(&mut watched, "anon 4001")?;
    let (rows, lost) = stop(watched.watcher)?;
    let mine = of(&rows, pid);
    check!(trip.back.read > 3900, "{:?}", trip.back);
    check!(agrees(sum(&rows, "swapped_in_pages"), trip.back.read, lost), "{:?}: {rows:?}", trip.back);
    check!(agrees(sum(&rows, "swapped_out_pages"), trip.out.written, lost), "{:?}: {rows:?}", trip.out);
    // Nobody else swaps in a guest at rest.
    check!(agrees(sum(&mine, "swapped_in_pages"), trip.back.read, lost), "{:?}: {rows:?}", trip.back);
    check_eq!(sum(&mine, "swapped_in_ram_pages"), sum(&mine, "swapped_in_pages"), "{rows:?}");
    check_eq!(sum(&mine, "swapped_out_ram_pages"), sum(&mine, "swapped_out_pages"), "{rows:?}");
    check!(agrees(sum(&mine, "faults"), trip.major, lost), "{} major faults: {mine:?}", trip.major);
    let wait = sum(&mine, "wait_us");
    // Each row is rounded up.
    check!(wait > 0 && wait <= trip.wall_us + mine.len() as u64, "{} us: {mine:?}", trip.wall_us);
    PASS
}

/// A swap area on the guest's disk, and no other meanwhile: each CPU keeps places
/// that it was given elsewhere before.
struct DiskSwap;

const ZRAM: &str = "/dev/zram0";

fn swapon(device: &str) -> Result<(), Failed> {
    let path = CString::new(device)?;
    // SAFETY: a path, of a device of the guest that holds nothing else.
    match unsafe { libc::swapon(path.as_ptr(), 0) } {
        0 => Ok(()),
        _ => Err(format!("swapon {device}: {}", std::io::Error::last_os_error()).into()),
    }
}

fn swapoff(device: &str) {
    let Ok(path) = CString::new(device) else { return };
    // SAFETY: a path.
    unsafe { libc::swapoff(path.as_ptr()) };
}

impl DiskSwap {
    fn begin() -> Result<Self, Failed> {
        if !Command::new("mkswap").arg(DISK).stdout(Stdio::null()).status()?.success() {
            return Err("mkswap".into());
        }
        swapoff(ZRAM);
        let area = Self;
        swapon(DISK)?;
        Ok(area)
    }
}

impl Drop for DiskSwap {
    fn drop(&mut self) {
        swapoff(DISK);
        let _ = swapon(ZRAM);
    }
}

fn disk(hook: &str) -> Outcome {
    let _area = DiskSwap::begin()?;
    let mut watched = Watched::start(hook);
    let pid = watched.worker.pid();
    let group = Cgroup::create("swapin").ok_or("no memory cgroup")?;
    group.add(pid)?;
    watched.group = Some(group);
    let trip = trip(&mut watched, "anon 2003")?;
    let Watched { watcher, worker, group: _group } = watched;
    let (rows, lost) = stop(watcher)?;
    worker.end();
    let mine = of(&rows, pid);
    // A few pages may have stayed, or been in the swap cache (page_out).
    check!(trip.back.read > 1003, "{:?}", trip.back);
    check!(agrees(sum(&rows, "swapped_in_pages"), trip.back.read, lost), "{:?}: {rows:?}", trip.back);
    check!(agrees(sum(&rows, "swapped_out_pages"), trip.out.written, lost), "{:?}: {rows:?}", trip.out);
    check!(agrees(sum(&mine, "swapped_in_pages"), trip.back.read, lost), "{:?}: {rows:?}", trip.back);
    check_eq!(sum(&rows, "swapped_in_ram_pages"), 0, "a disk is no memory: {rows:?}");
    check_eq!(sum(&rows, "swapped_out_ram_pages"), 0, "a disk is no memory: {rows:?}");
    let faults = sum(&mine, "faults");
    check!(agrees(faults, trip.major, lost), "{} major faults: {mine:?}", trip.major);
    check!(faults < trip.back.read, "read ahead: {faults} faults for {}", trip.back.read);
    let wait = sum(&mine, "wait_us");
    check!(wait > 0 && wait <= trip.wall_us + mine.len() as u64, "{} us: {mine:?}", trip.wall_us);
    PASS
}

const ZSWAP: &str = "/sys/module/zswap/parameters/enabled";

fn zswap(hook: &str) -> Outcome {
    let on = fs::write(ZSWAP, "Y").is_ok()
        && fs::read_to_string(ZSWAP).is_ok_and(|text| text.trim() == "Y");
    let outcome = if_supported("zswap", on, || {
        let mut watched = Watched::start(hook);
        let pid = watched.worker.pid();
        let trip = trip(&mut watched, "anon 1009")?;
        let Watched { watcher, worker, .. } = watched;
        let (rows, lost) = stop(watcher)?;
        worker.end();
        let mine = of(&rows, pid);
        check!(trip.back.zswap_in > 0, "{:?}", trip.back);
        check!(agrees(sum(&mine, "zswapped_in_pages"), trip.back.zswap_in, lost), "{:?}: {rows:?}", trip.back);
        check!(agrees(sum(&mine, "zswapped_out_pages"), trip.out.zswap_out, lost), "{:?}: {rows:?}", trip.out);
        check!(agrees(sum(&rows, "swapped_in_pages"), trip.back.read, lost), "{:?}: {rows:?}", trip.back);
        PASS
    });
    let _ = fs::write(ZSWAP, "N");
    outcome
}

fn zeroes(hook: &str) -> Outcome {
    let counted = vmstat("/proc/vmstat").contains_key("swpin_zero");
    if_supported("swpin_zero", counted, || {
        let mut watched = Watched::start(hook);
        let pid = watched.worker.pid();
        let trip = trip(&mut watched, "stall-zeroes 1511")?;
        let (rows, lost) = stop(watched.watcher)?;
        check!(trip.back.zero_in > 1400, "{:?}", trip.back);
        check!(agrees(sum(&of(&rows, pid), "zeroes_in_pages"), trip.back.zero_in, lost), "{rows:?}");
        check!(agrees(sum(&rows, "swapped_in_pages"), trip.back.read, lost), "{:?}: {rows:?}", trip.back);
        PASS
    })
}

fn faults(hook: &str) -> Outcome {
    let mut watched = Watched::start(hook);
    let pid = watched.worker.pid();
    let trip = trip(&mut watched, "anon 4001")?;
    let (rows, lost) = stop(watched.watcher)?;
    let mine = of(&rows, pid);
    check!(trip.major > 0, "{} major faults", trip.major);
    check!(agrees(sum(&mine, "faults"), trip.major, lost), "{} major faults: {mine:?}", trip.major);
    check!(mine.iter().all(|row| row["swapped_in_pages"].is_null()), "{mine:?}");
    PASS
}

fn filters() -> Outcome {
    if_supported("zram", is_guest() && zram_swap(), || {
        let other = Worker::start();
        let mut worker = Worker::start();
        let (pid, other) = (worker.pid().to_string(), other.pid().to_string());
        let comm = fs::read_to_string(format!("/proc/{pid}/comm"))?;
        worker.ask("anon 503");
        for (filter, expected) in [
            (["-P", &pid], true),
            (["-P", &other], false),
            (["--comm", comm.trim()], true),
            (["--comm", "nobody"], false),
            (["--cgroup", "/sys/fs/cgroup"], true),
        ] {
            let watcher = Watcher::start(&["swapin", filter[0], filter[1]]);
            worker.ask("pageout");
            worker.ask("stall-pagein");
            let (rows, _) = stop(watcher)?;
            check_eq!(!rows.is_empty(), expected, "{filter:?}: {rows:?}");
            check!(rows.iter().all(|row| row["pid"] == worker.pid()), "{filter:?}: {rows:?}");
        }
        // Room for one process: the others are lost, and that is said.
        let watcher = Watcher::start(&["swapin", "--max-entries", "1"]);
        let mut second = Worker::start();
        second.ask("anon 503");
        for worker in [&mut worker, &mut second] {
            worker.ask("pageout");
            worker.ask("stall-pagein");
        }
        let (code, rows, stderr) = watcher.stop();
        check_eq!(code, Some(0), "{stderr}");
        let pids: std::collections::BTreeSet<String> =
            rows.iter().map(|row| row["pid"].to_string()).collect();
        check_eq!(pids.len(), 1, "{rows:?}");
        check!(!stderr.contains(" 0 lost"), "{stderr}");
        PASS
    })
}

fn wrong() -> Outcome {
    for (args, code, words) in [
        (vec!["swapin", "--hook", "nonsense"], 2, "perf:page_faults_maj"),
        (vec!["swapin", "--max-entries", "0"], 2, "--max-entries"),
        (vec!["swapin", "-i", "0"], 2, "seconds"),
    ] {
        let output = run(&args);
        let stderr = String::from_utf8_lossy(&output.stderr);
        check_eq!(output.status.code(), Some(code), "{args:?}: {stderr}");
        check!(stderr.contains(words), "{args:?}: {stderr}");
    }
    PASS
}

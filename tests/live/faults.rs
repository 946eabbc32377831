//! faults against the kernel's own counts, `ru_minflt` and `ru_majflt`.
//!
//! A worker at rest has faulted so many times; asked twice, it answers the same.
//! What it is told to do in between is exactly what is to be seen.

use std::collections::BTreeMap;
use std::fs;
use std::sync::Mutex;
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
use crate::common::leak::symbol;
use crate::common::test;
use crate::common::watcher::PATIENCE;
use crate::common::watcher::Totals;
use crate::common::watcher::Watcher;
use crate::common::watcher::command;
use crate::common::watcher::run;
use crate::common::worker::Worker;
use crate::common::worker::pin;

/// Hooks, the feature of `tests/kernels.txt` each depends on, whether it tells
/// sorts, and whether it sees what the kernel faults in on a process's behalf.
const HOOKS: [Hook; 5] = [
    Hook { name: "fexit:handle_mm_fault", feature: "fentry", sorts: true, all: true },
    Hook { name: "kprobe:handle_mm_fault", feature: "kprobe", sorts: true, all: true },
    Hook { name: "perf:page-faults", feature: "find_vma", sorts: true, all: false },
    Hook { name: "perf.count:page-faults", feature: "perf_events", sorts: false, all: false },
    Hook { name: "proc:stat", feature: "iter", sorts: false, all: true },
];

#[derive(Clone, Copy)]
struct Hook {
    name: &'static str,
    feature: &'static str,
    sorts: bool,
    all: bool,
}

pub fn tests() -> Vec<Trial> {
    let mut tests = Vec::new();
    for hook in HOOKS {
        let name = hook.name;
        let each = |what: &str, body: fn(Hook) -> Outcome| {
            test(format!("faults: {what}, through {name}"), move || {
                with_hook(hook, || body(hook))
            })
        };
        tests.push(each("every sort, as the kernel counts", every_sort));
        if hook.all {
            tests.push(each("what the kernel faults in for a process", locked));
        }
        if name != "proc:stat" {
            tests.push(each("by stack", by_stack));
        }
        if hook.all && name != "proc:stat" {
            tests.push(each("a whole life, as wait4 tells", whole_life));
        }
        if hook.sorts {
            tests.push(each("swapped in", swap));
        }
    }
    tests.extend([
        test("faults: a burst of 50021 faults, none lost", burst),
        test("faults: a full table loses faults and says so", full_table),
        test("faults: folded stacks and a flame graph", profiles),
        test("faults: a CPU that comes online while running", cpu_hotplug),
        test("faults: wrong options", wrong_options),
    ]);
    tests
}

fn with_hook(hook: Hook, body: impl FnOnce() -> Outcome) -> Outcome {
    with_hook_of("faults", hook.name, hook.feature, body)
}

/// Hooks that were asked for before, by command, and whether they are there.
static PROBED: Mutex<BTreeMap<String, bool>> = Mutex::new(BTreeMap::new());

/// Runs `body` if this kernel has the hook of a command; the command's own refusal
/// is the probe.
pub fn with_hook_of(
    command: &str,
    hook: &str,
    feature: &str,
    body: impl FnOnce() -> Outcome,
) -> Outcome {
    let name = format!("{command} {hook}");
    let known = PROBED.lock().map_err(|_| "a test has panicked")?.get(&name).copied();
    let found = match known {
        Some(found) => found,
        None => {
            let probe = run(&[command, "--hook", hook, "-n", "1", "-i", "0.01", "-P", "1"]);
            let found = probe.status.code() != Some(4);
            check!(
                probe.status.success() || !found,
                "{}",
                String::from_utf8_lossy(&probe.stderr)
            );
            PROBED.lock().map_err(|_| "a test has panicked")?.insert(name, found);
            found
        }
    };
    if found { body() } else { if_supported(feature, false, body) }
}

/// A worker that does not fault any more when it is asked.
fn rested() -> (Worker, Counts) {
    let mut worker = Worker::start();
    let mut last = Counts::asked(&mut worker, "faults");
    for _ in 0..20 {
        let now = Counts::asked(&mut worker, "faults");
        if now == last {
            return (worker, now);
        }
        last = now;
    }
    panic!("the worker faults whenever it is asked");
}

/// Minor and major faults.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    minor: u64,
    major: u64,
}

impl Counts {
    fn asked(worker: &mut Worker, order: &str) -> Self {
        let answer = worker.ask(order);
        let mut words = answer.split(' ').map(|word| word.parse().expect(&answer));
        Self { minor: words.next().expect("two numbers"), major: words.next().expect("two numbers") }
    }

    fn since(self, before: Self) -> Self {
        Self { minor: self.minor - before.minor, major: self.major - before.major }
    }

    fn all(self) -> u64 {
        self.minor + self.major
    }

    fn agrees(self, due: Self, lost: u64) -> bool {
        agrees(self.minor, due.minor, lost) && agrees(self.major, due.major, lost)
    }
}

/// What the rows of a process say together.
#[derive(Debug, Default)]
struct Seen {
    counts: Counts,
    faults: u64,
    sorts: BTreeMap<&'static str, u64>,
}

const SORTS: [&str; 6] = ["anon", "file", "cow", "swap", "shmem", "other"];

fn seen(rows: &[Value], pid: u32) -> Seen {
    let mut seen = Seen::default();
    for row in rows.iter().filter(|row| row["pid"] == pid) {
        seen.counts.minor += number(row, "minor");
        seen.counts.major += number(row, "major");
        seen.faults += number(row, "faults");
        for sort in SORTS {
            if !row[sort].is_null() {
                *seen.sorts.entry(sort).or_default() += number(row, sort);
            }
        }
    }
    seen
}

fn watch(hook: &str, pid: u32, more: &[&str]) -> Watcher {
    let pid = pid.to_string();
    let watcher =
        Watcher::start(&[&["faults", "--hook", hook, "-i", "0.2", "-P", pid.as_str()], more].concat());
    assert_eq!(watcher.header["hook"].as_str(), Some(hook), "the header names the hook");
    watcher
}

/// Ends a watcher, and says what it lost: nothing, but for one case. A program at
/// a function's exit is skipped while it is already running on that CPU, which it
/// can be where the kernel preempts it; each one skipped is counted.
pub fn stop(watcher: Watcher) -> Result<(Vec<Value>, u64), Failed> {
    let may_lose = watcher.header["hook"].as_str().is_some_and(|hook| hook.starts_with("fexit:"));
    let (code, rows, stderr) = watcher.stop();
    check_eq_or(code == Some(0), || format!("exit code {code:?}: {stderr}"))?;
    let lost = Totals::parse(&stderr).map(|totals| totals.lost).ok_or("no totals")?;
    check_eq_or(lost == 0 || may_lose, || format!("lost {lost}: {stderr}"))?;
    Ok((rows, lost))
}

/// Whether a number is the one that is due, less at most what was lost.
pub fn agrees(found: u64, due: u64, lost: u64) -> bool {
    found <= due && found + lost >= due
}

fn check_eq_or(holds: bool, why: impl FnOnce() -> String) -> Result<(), Failed> {
    if holds { Ok(()) } else { Err(Failed::from(why())) }
}

/// Orders, the sort of their faults, and how many there must be.
const STAGES: [(&str, &str, u64); 6] = [
    ("fault-anon 1009", "anon", 1009),
    ("fault-shmem 503", "shmem", 503),
    ("fault-cow 211", "cow", 211),
    ("fault-cold 23", "file", 23),
    ("fault-file 101", "file", 101),
    ("fault-threads 307", "anon", 614),
];

/// What else a stage may fault: the worker's own stack, heap and code.
const BESIDE: u64 = 64;

fn every_sort(hook: Hook) -> Outcome {
    let (mut worker, before) = rested();
    let watcher = watch(hook.name, worker.pid(), &[]);
    let mut wanted: BTreeMap<&str, u64> = BTreeMap::new();
    for (order, sort, faults) in STAGES {
        let counted = Counts::asked(&mut worker, order);
        check!(
            counted.all() >= faults && counted.all() <= faults + BESIDE,
            "{order}: the kernel counted {counted:?}"
        );
        if sort == "file" {
            let cold = order.starts_with("fault-cold");
            check_eq!(counted.major > 0, cold, "{order}: {counted:?}");
        }
        *wanted.entry(sort).or_default() += faults;
    }
    let due = Counts::asked(&mut worker, "faults").since(before);
    let (rows, lost) = stop(watcher)?;
    let seen = seen(&rows, worker.pid());
    check!(seen.counts.agrees(due, lost), "{lost} lost, {seen:?} is not {due:?}");
    check_eq!(seen.faults, seen.counts.all(), "both together");
    if hook.name == "proc:stat" {
        return PASS;
    }
    check_eq!(seen.sorts.values().sum::<u64>(), seen.faults, "all sorts: {seen:?}");
    if !hook.sorts {
        check_eq!(seen.sorts["other"], seen.faults, "no sort is known: {seen:?}");
        return PASS;
    }
    // Anonymous memory is also what the worker needs to set the stages up.
    let beside = due.all() - wanted.values().sum::<u64>();
    for (sort, faults) in wanted {
        let found = seen.sorts[sort];
        let most = faults + if sort == "anon" { beside } else { BESIDE };
        check!(found + lost >= faults && found <= most, "{sort}: {found} of {faults}: {seen:?}");
    }
    PASS
}

fn locked(hook: Hook) -> Outcome {
    let (mut worker, before) = rested();
    let watcher = watch(hook.name, worker.pid(), &[]);
    let counted = Counts::asked(&mut worker, "fault-locked 701");
    check!(counted.all() >= 701, "mlock: {counted:?}");
    let due = Counts::asked(&mut worker, "faults").since(before);
    let (rows, lost) = stop(watcher)?;
    let seen = seen(&rows, worker.pid());
    check!(seen.counts.agrees(due, lost), "{lost} lost, {seen:?} is not {due:?}");
    PASS
}

fn swap(hook: Hook) -> Outcome {
    // Memory is only made scarce in a guest.
    if !is_guest() {
        return if_supported("zram", false, || PASS);
    }
    if_supported("zram", zram_swap(), || {
        let (mut worker, before) = rested();
        let watcher = watch(hook.name, worker.pid(), &[]);
        let counted = Counts::asked(&mut worker, "fault-swap 401");
        let due = Counts::asked(&mut worker, "faults").since(before);
        let (rows, lost) = stop(watcher)?;
    let seen = seen(&rows, worker.pid());
        check!(seen.counts.agrees(due, lost), "{lost} lost, {seen:?} is not {due:?}");
        check!(counted.all() >= 401 && counted.all() <= 401 + BESIDE, "{counted:?}");
        let found = seen.sorts["swap"];
        check!(found + lost >= 401 && found <= counted.all(), "{found} swapped in, {counted:?}: {seen:?}");
        PASS
    })
}

fn by_stack(hook: Hook) -> Outcome {
    let (mut worker, before) = rested();
    let watcher = watch(hook.name, worker.pid(), &["--by", "stack"]);
    let counted = Counts::asked(&mut worker, "fault-ways 499 151");
    check!(counted.all() >= 650, "{counted:?}");
    let due = Counts::asked(&mut worker, "faults").since(before);
    let (rows, lost) = stop(watcher)?;
    let seen = seen(&rows, worker.pid());
    check!(seen.counts.agrees(due, lost), "{lost} lost, {seen:?} is not {due:?}");
    // The innermost function is the one that touched the page. Its own code may be a
    // page that is touched for the first time: of another sort, where it is told.
    let touched_by = |name: &str| -> u64 {
        let named = rows.iter().filter(|row| symbol(row, 0).ends_with(name));
        let anon = named.filter(|row| !hook.sorts || row["type"] == "anon");
        anon.map(|row| number(row, "faults")).sum()
    };
    let code = if hook.sorts { 0 } else { 2 };
    let is = |found: u64, due: u64| found <= due + code && found + lost >= due;
    check!(is(touched_by("::one_way"), 499), "{lost} lost, one way: {rows:?}");
    check!(is(touched_by("::another_way"), 151), "{lost} lost, another way: {rows:?}");
    if hook.sorts {
        let anon: u64 =
            rows.iter().filter(|row| row["type"] == "anon").map(|row| number(row, "faults")).sum();
        check!(anon + lost >= 650, "{anon} of anonymous memory: {rows:?}");
    }
    PASS
}

/// From the fork to the end: also what the kernel faults in for exec.
fn whole_life(hook: Hook) -> Outcome {
    let path = std::env::current_exe()?;
    let copy = std::env::temp_dir().join("faults-life");
    fs::copy(&path, &copy)?;
    let watcher = Watcher::start(&["faults", "--hook", hook.name, "-i", "0.2"]);
    let mut worker = Worker::start_as(&copy);
    let pid = worker.pid();
    let _ = Counts::asked(&mut worker, "fault-anon 1013");
    worker.tell("fault-leave");
    let usage = wait4(pid)?;
    drop(worker);
    let (rows, lost) = stop(watcher)?;
    let _ = fs::remove_file(&copy);
    let seen = seen(&rows, pid);
    check!(seen.counts.agrees(usage, lost), "{lost} lost, {seen:?} is not {usage:?}");
    check!(usage.all() > 1013, "{usage:?}");
    // One PID, two programs: before exec and after it.
    let named = |life: bool| {
        rows.iter().any(|row| row["pid"] == pid && (row["comm"] == "faults-life") == life)
    };
    check!(named(true) && named(false), "the names around exec: {rows:?}");
    PASS
}

/// Waits for a child, and what it used.
fn wait4(pid: u32) -> Result<Counts, Failed> {
    let mut status = 0;
    // SAFETY: all-zero is a valid rusage; the call fills it and the status.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        let waited = libc::wait4(pid.cast_signed(), &raw mut status, 0, &raw mut usage);
        check_eq_or(waited == pid.cast_signed(), || "wait4 failed".into())?;
        usage
    };
    Ok(Counts { minor: usage.ru_minflt.cast_unsigned(), major: usage.ru_majflt.cast_unsigned() })
}

/// More than perf's limit of samples a tick, which does not hold for these.
fn burst() -> Outcome {
    let (mut worker, before) = rested();
    let pid = worker.pid().to_string();
    let watcher = Watcher::start(&["faults", "--hook", "perf.count", "-P", &pid]);
    let counted = Counts::asked(&mut worker, "fault-anon 50021");
    check!(counted.all() >= 50_021, "{counted:?}");
    let due = Counts::asked(&mut worker, "faults").since(before);
    let (rows, lost) = stop(watcher)?;
    let seen = seen(&rows, worker.pid());
    check!(seen.counts.agrees(due, lost), "{lost} lost, {seen:?} is not {due:?}");
    PASS
}

fn full_table() -> Outcome {
    let (mut worker, before) = rested();
    let pid = worker.pid().to_string();
    let watcher = Watcher::start(&["faults", "--max-entries", "1", "-P", &pid]);
    Counts::asked(&mut worker, "fault-anon 307");
    Counts::asked(&mut worker, "fault-shmem 211");
    Counts::asked(&mut worker, "fault-cow 101");
    let due = Counts::asked(&mut worker, "faults").since(before);
    let (code, rows, stderr) = watcher.stop();
    check_eq!(code, Some(0), "{stderr}");
    let lost = Totals::parse(&stderr).map_or(0, |totals| totals.lost);
    let seen = seen(&rows, worker.pid());
    check!(lost >= 211, "{lost} lost of {due:?}");
    // What a skipped program lost may have been of others.
    check!(seen.faults + lost >= due.all(), "{seen:?} and {lost} lost of {due:?}");
    PASS
}

fn profiles() -> Outcome {
    for (format, sign) in [("folded", "touch_anew"), ("flamegraph", "</svg>")] {
        let (mut worker, _) = rested();
        let pid = worker.pid().to_string();
        let path = std::env::temp_dir().join(format!("faults-profile.{format}"));
        let file = path.to_str().ok_or("a plain path")?;
        let args = ["faults", "--by", "stack", "-P", &pid, "-i", "0.2", "-o", format, "--file", file];
        let mut child = command(&args).spawn()?;
        wait_attached(child.id())?;
        let counted = Counts::asked(&mut worker, "fault-anon 607");
        rustix::process::kill_process(
            rustix::process::Pid::from_child(&child),
            rustix::process::Signal::INT,
        )?;
        check!(child.wait()?.success(), "{format}");
        let text = fs::read_to_string(&path)?;
        let _ = fs::remove_file(&path);
        check!(text.contains(sign), "{format}: no {sign} in {text}");
        if format == "folded" {
            let lines = text.lines().filter(|line| line.contains("touch_anew"));
            let sum: u64 = lines
                .filter_map(|line| line.rsplit_once(' ')?.1.parse::<u64>().ok())
                .sum();
            check!(sum >= 600 && sum <= counted.all(), "{sum} of {counted:?} in {text}");
        }
    }
    PASS
}

/// A profile has no first line to wait for: until the links are all there.
fn wait_attached(pid: u32) -> Result<(), Failed> {
    let end = Instant::now() + PATIENCE;
    let mut since = (0, Instant::now());
    while Instant::now() < end {
        let fds = fs::read_dir(format!("/proc/{pid}/fdinfo"))?.flatten();
        let links = fds
            .filter(|fd| fs::read_to_string(fd.path()).is_ok_and(|text| text.contains("link_type")))
            .count();
        if links != since.0 {
            since = (links, Instant::now());
        } else if links > 0 && since.1.elapsed() > Duration::from_secs(1) {
            return Ok(());
        }
        thread::sleep(Duration::from_millis(20));
    }
    Err("nothing was attached".into())
}

fn cpu_hotplug() -> Outcome {
    let switch = "/sys/devices/system/cpu/cpu1/online";
    let possible = is_guest() && fs::write(switch, "0").is_ok();
    if_supported("cpu_hotplug", possible, || {
        let (mut worker, _) = rested();
        let pid = worker.pid();
        let watcher = watch("perf.count:page-faults", pid, &[]);
        fs::write(switch, "1")?;
        // From the next report on it is seen there.
        while watcher.next(Duration::from_millis(700)).is_some() {}
        let before = Counts::asked(&mut worker, "faults");
        pin(&worker, 1)?;
        Counts::asked(&mut worker, "fault-anon 809");
        let due = Counts::asked(&mut worker, "faults").since(before);
        let (rows, lost) = stop(watcher)?;
        let seen = seen(&rows, pid);
        check!(due.all() >= 809, "{due:?}");
        check!(seen.faults + lost >= due.all(), "{seen:?} of {due:?} on the new CPU");
        PASS
    })
}

fn wrong_options() -> Outcome {
    let cases: [(&[&str], i32); 3] = [
        (&["-o", "folded"], 2),
        (&["--by", "nothing"], 2),
        (&["--hook", "proc:stat", "--by", "type", "-n", "1"], 4),
    ];
    for (args, code) in cases {
        let output = run(&[&["faults"], args].concat());
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        check_eq!(output.status.code(), Some(code), "{args:?}: {stderr}");
    }
    PASS
}

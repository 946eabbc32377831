//! anon against the kernel's own count of a process at rest.
//!
//! Since 6.2 `/proc/PID/status` (RssAnon) is exact; before, it lacks what each
//! thread still keeps, and the page tables as `smaps_rollup` adds them up
//! (Anonymous) are the judge. Where both are exact, both are compared.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;
use std::time::Instant;

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
use crate::common::kernels::must_support;
use crate::common::kernels::zram_swap;
use crate::common::oracle;
use crate::common::test;
use crate::common::watcher::PATIENCE;
use crate::common::watcher::Totals;
use crate::common::watcher::Watcher;
use crate::common::watcher::run;
use crate::common::worker::Worker;

/// Hooks, the feature of `tests/kernels.txt` each depends on, and whether it
/// sees a program end.
const HOOKS: [(&str, &str, bool); 7] = [
    ("fexit:do_anonymous_page", "do_anonymous_page", true),
    ("kprobe:do_anonymous_page", "do_anonymous_page", true),
    ("fentry:exit_mmap", "fentry", true),
    ("kprobe:exit_mmap", "kprobe", true),
    ("tp_btf:sched_process_exit", "exit_with_memory", true),
    ("iter:task", "iter", false),
    ("proc:status", "iter", false),
];

/// Pages of one step.
const STEP: u64 = 257;

pub fn tests() -> Vec<Trial> {
    let mut tests = Vec::new();
    for (hook, feature, sees_ends) in HOOKS {
        let name = |what: &str| format!("anon: {what}, through {hook}");
        tests.push(test(name("every step of 257 pages"), move || {
            with_hook(hook, feature, || every_step(hook))
        }));
        if sees_ends {
            tests.push(test(name("programs that start and end within an interval"), move || {
                with_hook(hook, feature, || short_lived(hook))
            }));
            tests.push(test(name("exec"), move || with_hook(hook, feature, || exec(hook))));
        }
    }
    tests.extend([
        test("anon: the default hook is the best there is", default_hook),
        test("anon: programs of one name, before and after the watcher", by_name),
        test("anon: fork and copy on write", fork),
        test("anon: a name that changes", rename),
        test("anon: 61 threads", threads),
        test("anon: swapped out and in again", swap),
        test("anon: huge pages", huge_pages),
        test("anon: pages of middle size", middle_pages),
        test("anon: faults are counted one by one", faults),
        test("anon: a program it starts itself", command),
        test("anon: a full ring loses last lines and says how many", losses),
        test("anon: what it is asked for", asked_for),
    ]);
    tests
}

/// Runs `body` if this kernel has the hook; its own refusal is the probe.
fn with_hook(hook: &'static str, feature: &str, body: impl FnOnce() -> Outcome) -> Outcome {
    let probe = run(&["anon", "--hook", hook, "-n", "1", "-P", "1"]);
    if probe.status.code() == Some(4) {
        return if_supported(feature, false, body);
    }
    check!(probe.status.success(), "{}", String::from_utf8_lossy(&probe.stderr));
    body()
}

fn start() -> Worker {
    at_rest(Worker::start())
}

/// A worker says that it is ready before it has what it needs to take orders.
fn at_rest(mut worker: Worker) -> Worker {
    ask(&mut worker, "figure 0");
    worker
}

/// A copy of this program under another name, removed when dropped.
struct Program(PathBuf);

impl Program {
    fn named(name: &str) -> Self {
        let path = std::env::temp_dir().join(name);
        let _ = fs::remove_file(&path);
        fs::copy(std::env::current_exe().expect("own path"), &path).expect("copying");
        Self(path)
    }

    fn start(&self) -> Worker {
        at_rest(Worker::start_as(&self.0))
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// Anonymous memory of a process at rest, in KiB.
fn truth(pid: u32) -> u64 {
    let tables = || oracle::smaps_rollup(pid).expect("smaps_rollup")["Anonymous"];
    let deadline = Instant::now() + PATIENCE;
    loop {
        let before = tables();
        let count = oracle::status(pid).expect("status")["RssAnon"];
        // It may be on its way to rest.
        if tables() == before && (oracle::counters_are_split() || count == before) {
            return before;
        }
        assert!(Instant::now() < deadline, "the kernel disagrees with itself, or no rest");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// An order that is answered with a figure in KiB; by the page tables where
/// the counters lag.
fn ask(worker: &mut Worker, order: &str) -> u64 {
    let lagging = u8::from(oracle::counters_are_split());
    let answer = worker.ask(&format!("{order} {lagging}"));
    answer.parse().unwrap_or_else(|_| panic!("{order}: {answer:?}"))
}

fn is_of(row: &Value, pid: u32) -> bool {
    row["pid"].as_u64() == Some(pid.into())
}

/// Waits for the row of a process that shows `kib`.
fn shows(watcher: &Watcher, pid: u32, kib: u64, stage: &str) -> Result<Value, Failed> {
    let found = watcher.wait_for(|row| is_of(row, pid) && row["anon_kib"].as_u64() == Some(kib));
    found.map_err(|others| Failed::from(format!("{stage}: no {kib} KiB in {others:?}")))
}

/// Waits for the last row of a process.
fn last(watcher: &Watcher, pid: u32, end: &str) -> Result<Value, Failed> {
    let found = watcher.wait_for(|row| is_of(row, pid) && row["end"].is_string());
    let row = found.map_err(|others| Failed::from(format!("no end of {pid} in {others:?}")))?;
    if row["end"] != end {
        return Err(format!("not `{end}`: {row}").into());
    }
    Ok(row)
}

/// The rows of one process. A report may come in the middle of a step, which
/// then is in two rows: what is compared is where they lead, and their sums.
struct Rows {
    watcher: Watcher,
    pid: u32,
    last: Option<Value>,
}

/// What the rows of a stage add up to.
#[derive(Debug, PartialEq)]
struct Sum {
    kib: i64,
    /// `None`: not counted.
    faults: Option<u64>,
}

impl Rows {
    /// Watches a process and takes its first row.
    fn of(worker: &Worker, args: &[&str]) -> Result<Self, Failed> {
        let pid = worker.pid();
        let text = pid.to_string();
        let args = [&["anon", "-i", "0.1", "-P", text.as_str()], args].concat();
        let mut rows = Self { watcher: Watcher::start(&args), pid, last: None };
        if args.contains(&"proc:status") && oracle::counters_are_split() {
            return Ok(rows);
        }
        rows.until(truth(pid), "at start")?;
        Ok(rows)
    }

    /// Waits for the row that shows `kib`, and adds up what led there.
    fn until(&mut self, kib: u64, stage: &str) -> Result<Sum, Failed> {
        let mut sum = Sum { kib: 0, faults: Some(0) };
        let mut wrong = None;
        let last = &mut self.last;
        let pid = self.pid;
        let found = self.watcher.wait_for(|row| {
            if !is_of(row, pid) {
                wrong = Some(format!("of another process: {row}"));
                return true;
            }
            if let Err(error) = check_row(row, last.as_ref()) {
                wrong = Some(error);
                return true;
            }
            sum.kib += row["delta_kib"].as_i64().unwrap_or(0);
            sum.faults = sum.faults.and_then(|sum| Some(sum + row["faults"].as_u64()?));
            *last = Some(row.clone());
            row["anon_kib"].as_u64() == Some(kib)
        });
        match (found, wrong) {
            (Ok(_), None) => Ok(sum),
            (_, Some(wrong)) => Err(format!("{stage}: {wrong}").into()),
            (Err(_), None) => {
                Err(format!("{stage}: not {kib} KiB, {:?}", self.last).into())
            }
        }
    }

    /// Waits for the last row, which must show `kib`, exactly, where this hook
    /// sees ends.
    fn end(self, kib: u64) -> Outcome {
        let ends = sees_ends(&self.watcher);
        let row = last(&self.watcher, self.pid, if ends { "exit" } else { "gone" })?;
        check_eq!(row["anon_kib"].as_u64(), Some(kib), "the last row: {row}");
        check_eq!(row["anon_error_kib"].as_u64(), ends.then_some(0), "{row}");
        let (code, rows, stderr) = self.watcher.finish();
        check_eq!(code, Some(0), "{stderr}");
        check!(rows.is_empty(), "after the last row: {rows:?}");
        check_eq!(Totals::parse(&stderr).map(|totals| totals.lost), Some(0), "{stderr}");
        PASS
    }
}

/// What is wrong in a row by itself, or behind the one before it.
fn check_row(row: &Value, before: Option<&Value>) -> Result<(), String> {
    let (pages, kib) = (row["pages"].as_u64(), row["anon_kib"].as_i64());
    if pages.map(|pages| pages * oracle::page_kib()) != row["anon_kib"].as_u64() {
        return Err(format!("PAGES is not ANON in {row}"));
    }
    let due = before.and_then(|before| Some(kib? - before["anon_kib"].as_i64()?));
    if row["delta_kib"].as_i64() != due || due == Some(0) {
        return Err(format!("not a change of {due:?}: {row}"));
    }
    Ok(())
}

fn every_step(hook: &'static str) -> Outcome {
    let mut worker = start();
    // Five steps lie in its first half, once it is twice as big.
    ask(&mut worker, "field 1400");
    let mut rows = Rows::of(&worker, &["--hook", hook])?;
    check_eq!(rows.watcher.header["hook"].as_str(), Some(hook), "the header names the hook");
    if rows.last.is_none() {
        return lagging_steps(worker, rows.watcher);
    }
    let pid = worker.pid();
    let (order, step) = (format!("touch {STEP}"), STEP * oracle::page_kib());
    let mut before = truth(pid);
    for round in 0..5 {
        let kib = ask(&mut worker, &order);
        // What the program says, what is seen from outside, and the rows.
        check_eq!(truth(pid), kib, "round {round}");
        check_eq!(kib, before + step, "round {round}");
        check_eq!(rows.until(kib, "a step")?.kib.unsigned_abs(), step, "round {round}");
        // Where threads keep parts, our own look at smaps counts as one more.
        let error = &rows.last.as_ref().ok_or("no row")?["anon_error_kib"];
        check!(*error == 0 || oracle::counters_are_split(), "not exact: {error}");
        before = kib;
    }
    // Neither the page of zeroes nor a move is memory: only what comes next shows.
    check_eq!(ask(&mut worker, "zero 1009"), before, "zeroes");
    check_eq!(ask(&mut worker, "remap 0"), before, "a move");
    let kib = ask(&mut worker, &order);
    check_eq!(kib, before + step, "after the move");
    check_eq!(rows.until(kib, "after the move")?.kib.unsigned_abs(), step, "the move");

    worker.ask("halve");
    let half = truth(pid);
    check!(half <= kib - 5 * step, "MADV_DONTNEED: {half} of {kib} KiB are left");
    rows.until(half, "MADV_DONTNEED")?;
    worker.ask("unmap");
    let rest = truth(pid);
    check!(rest < half, "munmap gave nothing back");
    rows.until(rest, "munmap")?;
    worker.ask("anon 503");
    let kib = ask(&mut worker, "figure 0");
    rows.until(kib, "before the end")?;
    worker.tell("quit");
    // Not waited for: a zombie's PID cannot be used again.
    rows.end(kib)
}

/// Where the file lags, a row says by how much at most, and keeps to that.
fn lagging_steps(mut worker: Worker, watcher: Watcher) -> Outcome {
    for _ in 0..5 {
        let kib = ask(&mut worker, "touch 257");
        let found = watcher.wait_for(|row| {
            let error = row["anon_error_kib"].as_u64().expect("a bound");
            assert_eq!(error, 66 * oracle::page_kib(), "one thread");
            row["anon_kib"].as_u64().is_some_and(|ours| ours.abs_diff(kib) <= error)
        });
        check!(found.is_ok(), "nothing near {kib} KiB in {:?}", found.err());
    }
    PASS
}

fn short_lived(hook: &'static str) -> Outcome {
    let program = Program::named("mw-anon-brief-too-long");
    // No report comes by itself but the first.
    let watcher = Watcher::start(&[
        "--anon",
        "mw-anon-brief-too-long",
        "--hook",
        hook,
        "-i",
        "1000",
    ]);
    let mut due = BTreeMap::new();
    for i in 0..23 {
        let mut worker = program.start();
        worker.ask("field 512");
        let kib = ask(&mut worker, &format!("touch {}", 101 + i));
        due.insert(u64::from(worker.pid()), kib);
        // Half of them by themselves, half by force.
        if i % 2 == 0 {
            worker.tell("quit");
            worker.end();
        } else {
            worker.kill();
        }
    }
    let (code, rows, stderr) = watcher.stop();
    check_eq!(code, Some(0), "{stderr}");
    let mut seen = BTreeMap::new();
    let mut before = BTreeMap::new();
    for row in &rows {
        let pid = row["pid"].as_u64().ok_or("no PID")?;
        // The report at the start may come late enough to see the first of them.
        check_row(row, before.get(&pid))?;
        check_eq!(row["comm"], "mw-anon-brief-t", "15 characters");
        check_eq!(row["anon_error_kib"], 0, "{row}");
        if row["end"].is_null() {
            before.insert(pid, row.clone());
            continue;
        }
        check_eq!(row["end"], "exit", "{row}");
        let kib = row["anon_kib"].as_u64().ok_or("no figure")?;
        check!(seen.insert(pid, kib).is_none(), "two last lines: {rows:?}");
    }
    check!(before.len() <= 1, "reports that nobody asked for: {rows:?}");
    check_eq!(seen, due, "each with its last figure");
    PASS
}

fn exec(hook: &'static str) -> Outcome {
    let program = Program::named("mw-anon-exec");
    let watcher =
        Watcher::start(&["anon", "mw-anon-exec", "--hook", hook, "-i", "0.1"]);
    let mut worker = program.start();
    let pid = worker.pid();
    worker.ask("field 2048");
    let kib = ask(&mut worker, "touch 1009");
    shows(&watcher, pid, kib, "the first program")?;
    check_eq!(worker.ask("exec 0"), "ready", "the second program");
    let end = last(&watcher, pid, "exec")?;
    // What the exec itself needs of the old memory is on top.
    let was = end["anon_kib"].as_u64().ok_or("no figure")?;
    check!((kib..kib + 16 * oracle::page_kib()).contains(&was), "{kib} KiB before {end}");
    let fresh = ask(&mut worker, "figure 0");
    check_eq!(truth(pid), fresh, "the second program");
    check!(fresh < kib, "the second program has {fresh} KiB");
    let row = shows(&watcher, pid, fresh, "the second program")?;
    check!(row["end"].is_null(), "{row}");
    // Its memory begins anew: the first row has nothing to be compared with.
    worker.ask("field 512");
    let kib = ask(&mut worker, "touch 211");
    let row = shows(&watcher, pid, kib, "the second program grows")?;
    check!(row["delta_kib"].as_i64() > Some(0), "{row}");
    worker.tell("quit");
    let end = last(&watcher, pid, "exit")?;
    check_eq!(end["anon_kib"].as_u64(), Some(kib), "the last line");
    let (code, _, stderr) = watcher.stop();
    check_eq!(code, Some(0), "{stderr}");
    PASS
}

fn default_hook() -> Outcome {
    let watcher = Watcher::start(&["anon", "-n", "1", "-P", "1"]);
    let hook = watcher.header["hook"].as_str().unwrap_or_default().to_owned();
    let symbols = fs::read_to_string("/proc/kallsyms")?;
    let plain = symbols.lines().any(|line| line.ends_with(" do_anonymous_page"));
    let due = match (must_support("fentry"), plain) {
        (true, true) => "fexit:do_anonymous_page",
        (true, false) => "fentry:exit_mmap",
        // A machine that is what it is: but the chain ends in something.
        (false, _) => {
            check!(HOOKS.iter().any(|(name, ..)| *name == hook), "{hook}");
            return PASS;
        }
    };
    check_eq!(hook, due, "the default hook");
    PASS
}

fn by_name() -> Outcome {
    let program = Program::named("mw-anon-name");
    let mut early = program.start();
    early.ask("field 4096");
    let before = ask(&mut early, "touch 1009");
    let mut other = start();
    other.ask("field 512");
    ask(&mut other, "touch 409");
    let watcher = Watcher::start(&["--anon", "mw-anon-name", "-i", "0.1"]);
    shows(&watcher, early.pid(), before, "started before the watcher")?;
    let mut late = program.start();
    late.ask("field 4096");
    for round in 0..3 {
        for (worker, pages) in [(&mut early, 257), (&mut late, 263)] {
            let kib = ask(worker, &format!("touch {pages}"));
            check_eq!(truth(worker.pid()), kib, "round {round}");
            shows(&watcher, worker.pid(), kib, "a step")?;
        }
    }
    ask(&mut other, "touch 61");
    let (early, late, other) = (
        { early.tell("quit"); early.pid() },
        { late.tell("quit"); late.pid() },
        other.pid(),
    );
    let mut ends = Vec::new();
    let deadline = Instant::now() + PATIENCE;
    while ends.len() < 2 {
        let row = watcher.next(deadline.saturating_duration_since(Instant::now()));
        let row = row.ok_or("an end is missing")?;
        check!(!is_of(&row, other), "a program of another name: {row}");
        if row["end"].is_string() {
            ends.push(row["pid"].as_u64().ok_or("no PID")?);
        }
    }
    ends.sort_unstable();
    let mut due = vec![u64::from(early), u64::from(late)];
    due.sort_unstable();
    check_eq!(ends, due, "the ends");
    let (_, rows, _) = watcher.stop();
    check!(!rows.iter().any(|row| is_of(row, other)), "{rows:?}");
    PASS
}

fn fork() -> Outcome {
    let program = Program::named("mw-anon-fork");
    let mut worker = program.start();
    worker.ask("field 4096");
    ask(&mut worker, "touch 2003");
    let watcher = Watcher::start(&["--anon", "mw-anon-fork", "-i", "0.1"]);
    let pid = worker.pid();
    shows(&watcher, pid, truth(pid), "alone")?;
    // Writes 499 pages it shares, which are copied, and 499 of its own.
    let child: u32 = worker.ask("cow 499").parse()?;
    let row = shows(&watcher, child, truth(child), "the child")?;
    check!(row["anon_kib"].as_u64() > Some((2003 + 499) * oracle::page_kib()), "{row}");
    let before = ask(&mut worker, "figure 0");
    // Copies replace what was shared: the count stays.
    check_eq!(ask(&mut worker, "rewrite 1201"), before, "copy on write");
    let kib = ask(&mut worker, "touch 257");
    check_eq!(kib, before + 257 * oracle::page_kib(), "the parent");
    shows(&watcher, pid, kib, "the parent")?;
    let of_child = truth(child);
    worker.ask("reap");
    let end = last(&watcher, child, "exit");
    ends_exactly(end, of_child, &watcher)?;
    PASS
}

/// The last line has this figure, where ends are seen.
fn ends_exactly(end: Result<Value, Failed>, kib: u64, watcher: &Watcher) -> Result<(), Failed> {
    if !sees_ends(watcher) {
        return Ok(());
    }
    let end = end?;
    if end["anon_kib"].as_u64() != Some(kib) || end["anon_error_kib"] != 0 {
        return Err(format!("not {kib} KiB at the end: {end}").into());
    }
    Ok(())
}

fn sees_ends(watcher: &Watcher) -> bool {
    HOOKS.iter().any(|(name, _, ends)| *ends && watcher.header["hook"] == **name)
}

fn rename() -> Outcome {
    let program = Program::named("mw-anon-rename");
    let mut worker = program.start();
    let pid = worker.pid();
    let watcher = Watcher::start(&["--anon", "mw-anon-rename", "-i", "0.1"]);
    let before = shows(&watcher, pid, truth(pid), "by its first name")?;
    let after = Watcher::start(&["--anon", "a-name-longer-", "-i", "0.1"]);
    worker.ask("name");
    let end = last(&watcher, pid, "left")?;
    check_eq!(end["anon_kib"], before["anon_kib"], "the last reading");
    check!(end["anon_error_kib"].is_null(), "not known to be exact: {end}");
    shows(&after, pid, truth(pid), "by its second name")?;
    PASS
}

fn threads() -> Outcome {
    let mut worker = start();
    let mut rows = Rows::of(&worker, &[])?;
    worker.ask("threads 61");
    let kib = truth(worker.pid());
    check!(kib > 61 * 31 * oracle::page_kib(), "{kib} KiB");
    rows.until(kib, "61 threads")?;
    worker.tell("quit");
    rows.end(kib)
}

fn swap() -> Outcome {
    let ready = is_guest() && zram_swap();
    if_supported("swap", ready, || {
        let mut worker = start();
        let pid = worker.pid();
        let mut rows = Rows::of(&worker, &[])?;
        let swapped = |rows: &Rows| rows.last.as_ref().and_then(|row| row["swap_kib"].as_u64());
        worker.ask("anon 4003");
        rows.until(truth(pid), "before")?;
        check_eq!(swapped(&rows), Some(0), "nothing is swapped out yet");
        worker.ask("pageout");
        rows.until(truth(pid), "swapped out")?;
        let out = oracle::smaps_rollup(pid).ok_or("gone")?["Swap"];
        check_eq!(swapped(&rows), Some(out), "swapped out");
        // Pages still in the CPUs' batches for the LRU lists (at most 31 each,
        // PAGEVEC_SIZE and later FOLIO_BATCH_SIZE) cannot be taken yet.
        check!(out >= (4003 - 4 * 31) * oracle::page_kib(), "only {out} KiB went");
        worker.ask("pagein");
        let back = rows.until(truth(pid), "swapped in")?;
        check!(back.kib.unsigned_abs() >= out, "{out} KiB were out: {back:?}");
        PASS
    })
}

fn huge_pages() -> Outcome {
    let path = "/sys/kernel/mm/transparent_hugepage/enabled";
    let enabled = fs::read_to_string(path).is_ok_and(|text| !text.contains("[never]"))
        || (is_guest() && fs::write(path, "madvise").is_ok());
    if !enabled {
        return if_supported("thp", false, || PASS);
    }
    let mut worker = start();
    let pid = worker.pid();
    let mut rows = Rows::of(&worker, &[])?;
    worker.ask("huge 4099");
    let kib = truth(pid);
    check!(oracle::smaps_rollup(pid).ok_or("gone")?["AnonHugePages"] > 0, "no huge page came");
    let sum = rows.until(kib, "huge pages")?;
    check!(sum.kib.unsigned_abs() >= 4099 * oracle::page_kib(), "{sum:?}");
    // In the middle of a huge page.
    worker.ask("halve");
    rows.until(truth(pid), "half of them")?;
    PASS
}

/// mTHP: 64 KiB at a time (6.8).
fn middle_pages() -> Outcome {
    let folder = "/sys/kernel/mm/transparent_hugepage";
    let (big, middle) = (
        format!("{folder}/hugepages-2048kB/enabled"),
        format!("{folder}/hugepages-64kB/enabled"),
    );
    if !fs::exists(&middle)? || !is_guest() {
        return if_supported("mthp", false, || PASS);
    }
    fs::write(&big, "never")?;
    fs::write(&middle, "madvise")?;
    let done = in_middle_pages();
    fs::write(&big, "inherit")?;
    fs::write(&middle, "never")?;
    done
}

fn in_middle_pages() -> Outcome {
    let mut worker = start();
    let pid = worker.pid();
    worker.ask("anon 11");
    let mut rows = Rows::of(&worker, &[])?;
    worker.ask("huge 1009");
    let sum = rows.until(truth(pid), "64 KiB at a time")?;
    check!(sum.kib.unsigned_abs() >= 1009 * oracle::page_kib(), "{sum:?}");
    if rows.watcher.header["hook"] == "fexit:do_anonymous_page" {
        // Sixteen pages a fault, but for the ends of the region (15 pages each
        // at most), and a few of the program's own.
        let least = (1009 - 30) / 16;
        check!(sum.faults.is_some_and(|n| (least..=least + 40).contains(&n)), "{sum:?}");
    }
    worker.ask("halve");
    rows.until(truth(pid), "half of them")?;
    PASS
}

fn faults() -> Outcome {
    with_hook("fexit:do_anonymous_page", "do_anonymous_page", || {
        let mut worker = start();
        worker.ask("field 8192");
        ask(&mut worker, "touch 1");
        let mut rows = Rows::of(&worker, &["--hook", "fexit:do_anonymous_page"])?;
        let first = rows.last.clone().ok_or("no row")?;
        check!(first["faults"].is_null(), "what came before is not known: {first}");
        let step = |pages: u64, faults| Sum {
            kib: (pages * oracle::page_kib()).cast_signed(),
            faults: Some(faults),
        };
        for pages in [257, 1009, 31] {
            let kib = ask(&mut worker, &format!("touch {pages}"));
            check_eq!(rows.until(kib, "a step")?, step(pages, pages), "{pages} pages");
        }
        // Reading untouched memory is a fault that brings no memory.
        ask(&mut worker, "zero 503");
        let kib = ask(&mut worker, "touch 101");
        check_eq!(rows.until(kib, "zeroes")?, step(101, 503 + 101), "zeroes and a step");
        // Twice the same page: no fault. And another process is not counted here.
        let mut other = start();
        other.ask("anon 2003");
        ask(&mut worker, "rewrite 1009");
        let kib = ask(&mut worker, "touch 11");
        check_eq!(rows.until(kib, "again")?, step(11, 11), "the same pages again");
        PASS
    })
}

fn command() -> Outcome {
    let args = ["anon", "-o", "json", "-i", "0.1", "--", "sh", "-c", "sleep 0.3; exit 7"];
    let output = run(&args);
    let stderr = String::from_utf8_lossy(&output.stderr);
    check_eq!(output.status.code(), Some(7), "the program's own exit code: {stderr}");
    let lines = String::from_utf8(output.stdout)?;
    let rows: Vec<Value> =
        lines.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    let rows: Vec<Value> = rows.into_iter().filter(|row| row["pid"].is_u64()).collect();
    let ends: Vec<&Value> = rows.iter().filter(|row| row["end"].is_string()).collect();
    check_eq!(ends.len(), 1, "{rows:?}");
    check_eq!(ends[0]["end"], "exit", "{rows:?}");
    check!(rows.iter().all(|row| row["pid"] == ends[0]["pid"]), "one process: {rows:?}");
    check!(rows.len() >= 2, "before its first instruction, and its end: {rows:?}");
    let grown = ends[0]["anon_kib"].as_u64() > rows[0]["anon_kib"].as_u64();
    check!(grown, "it had touched next to nothing then: {rows:?}");
    PASS
}

fn losses() -> Outcome {
    let program = Program::named("mw-anon-losses");
    // 4096 bytes hold 46 records of 88 bytes: eight of them are the header of
    // each, and one byte is never used.
    let watcher =
        Watcher::start(&["--anon", "mw-anon-losses", "--ring-kib", "4", "-i", "1000"]);
    if !sees_ends(&watcher) {
        return if_supported("exit_with_memory", false, || PASS);
    }
    let workers: Vec<Worker> = (0..61).map(|_| program.start()).collect();
    watcher.signal(Signal::STOP);
    workers.into_iter().for_each(Worker::kill);
    watcher.signal(Signal::CONT);
    let (code, rows, stderr) = watcher.stop();
    check_eq!(code, Some(0), "{stderr}");
    let totals = Totals::parse(&stderr).ok_or("no totals")?;
    let delivered = rows.iter().filter(|row| row["end"] == "exit").count() as u64;
    check!(totals.lost > 0, "a ring of 4 KiB held them all: {stderr}");
    check_eq!(delivered + totals.lost, 61, "delivered and lost: {stderr}");
    check_eq!(totals.events, delivered, "{stderr}");
    PASS
}

fn asked_for() -> Outcome {
    for (args, says) in [
        (&["anon"][..], "which program?"),
        (&["anon", "x", "--comm", "y"], "cannot be used with"),
        (&["anon", "x", "--", "true"], "cannot be used with"),
        (&["--anon", ""], "a value is required"),
    ] {
        let output = run(args);
        let stderr = String::from_utf8_lossy(&output.stderr);
        check_eq!(output.status.code(), Some(2), "{args:?}: {stderr}");
        check!(stderr.contains(says) && stderr.lines().count() == 1, "{args:?}: {stderr}");
    }
    PASS
}

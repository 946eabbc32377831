//! memleak --kernel against kernel objects whose number is known.

use std::fs;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;
use std::time::Instant;

use libbpf_rs::MapHandle;
use libbpf_rs::MapType;
use libbpf_rs::libbpf_sys;
use libtest_mimic::Failed;
use libtest_mimic::Trial;
use rustix::pipe::PipeFlags;
use serde_json::Value;

use crate::check;
use crate::check_eq;
use crate::common::Outcome;
use crate::common::PASS;
use crate::common::kernels::if_supported;
use crate::common::kernels::is_guest;
use crate::common::test;
use crate::common::watcher::PATIENCE;
use crate::common::watcher::Watcher;
use crate::common::watcher::run;
use crate::common::worker::Worker;

pub fn tests() -> Vec<Trial> {
    vec![
        test("memleak --kernel: objects of a cache, exactly", || tried(objects_of_a_cache)),
        test("memleak --kernel: kmalloc blocks of a size, exactly", || tried(kmalloc_blocks)),
        test("memleak --kernel: pages, exactly, and none of the slab allocator's", || tried(pages)),
        test("memleak --kernel: a large kmalloc block counts once", || tried(large_blocks)),
        test("memleak --kernel: per-CPU memory, exactly", || tried(percpu)),
        test("memleak --kernel: what code of a module allocates", module),
        test("memleak --kernel: wrong names are refused", wrong_names),
    ]
}

/// The rows of one report: the one that adds up, and the others.
struct Report {
    total: Value,
    rows: Vec<Value>,
}

impl Report {
    /// Blocks and bytes of the rows of one sort whose stack passes through a
    /// function with one of these words in its name.
    fn through(&self, kind: &str, words: &[&str]) -> (u64, u64) {
        let rows = self.rows.iter().filter(|row| row["kind"] == kind && passes(row, words));
        rows.fold((0, 0), |(count, bytes), row| {
            (
                count + row["count"].as_u64().unwrap_or(0),
                bytes + row["bytes"].as_u64().unwrap_or(0),
            )
        })
    }
}

fn passes(row: &Value, words: &[&str]) -> bool {
    row["stack"].as_array().is_some_and(|stack| {
        let symbols = stack.iter().filter_map(|frame| frame["symbol"].as_str());
        symbols.into_iter().any(|symbol| words.iter().any(|word| symbol.contains(word)))
    })
}

/// The reports of a running watcher. Rows of one report carry the same time.
struct Reports {
    watcher: Watcher,
    /// The first row of the report that follows.
    next: Option<Value>,
}

impl Reports {
    fn start(args: &[&str]) -> Self {
        let args = [&["memleak", "--kernel", "-i", "0.3"], args].concat();
        Self { watcher: Watcher::start(&args), next: None }
    }

    fn next(&mut self) -> Result<Report, Failed> {
        let mut rows: Vec<Value> = Vec::from_iter(self.next.take());
        while let Some(row) = self.watcher.next(PATIENCE) {
            if rows.first().is_some_and(|first| first["time"] != row["time"]) {
                self.next = Some(row);
                let at = rows.iter().position(|row| row["kind"] == "total");
                let total = rows.remove(at.ok_or("a report without a total")?);
                return Ok(Report { total, rows });
            }
            rows.push(row);
        }
        Err("no report came".into())
    }

    /// Reads reports until one is as it should be. What is at rest must come to
    /// that and stay; others on this machine may do the same thing meanwhile.
    fn until(
        &mut self,
        what: &str,
        mut wanted: impl FnMut(&Report) -> (u64, u64),
        due: (u64, u64),
    ) -> Result<Report, Failed> {
        let end = Instant::now() + patience();
        loop {
            let report = self.next()?;
            let found = wanted(&report);
            if found == due {
                return Ok(report);
            }
            check_or(Instant::now() < end, || format!("{what}: {found:?} where {due:?} are due"))?;
        }
    }

    /// Reads reports until nearly nothing of it is left; in a guest, nothing.
    fn until_gone(
        &mut self,
        what: &str,
        mut wanted: impl FnMut(&Report) -> (u64, u64),
        due: u64,
    ) -> Result<(), Failed> {
        let left = if is_guest() { 0 } else { due / 2 };
        let end = Instant::now() + patience();
        loop {
            let found = wanted(&self.next()?);
            if found.0 <= left {
                return Ok(());
            }
            check_or(Instant::now() < end, || format!("{what}: {found:?} are left"))?;
        }
    }

    fn stop(self) -> Outcome {
        let (code, _, stderr) = self.watcher.stop();
        check_eq!(code, Some(0), "{stderr}");
        PASS
    }
}

/// Other programs of a machine in use make pipes, too, but not each time.
fn tried(body: fn() -> Outcome) -> Outcome {
    let tries = if is_guest() { 1 } else { 5 };
    let mut outcome = body();
    for _ in 1..tries {
        if outcome.is_ok() {
            break;
        }
        outcome = body();
    }
    outcome
}

/// How long to wait for numbers to be as they should.
fn patience() -> Duration {
    if is_guest() { PATIENCE } else { PATIENCE / 4 }
}

fn check_or(holds: bool, text: impl FnOnce() -> String) -> Result<(), Failed> {
    if holds { Ok(()) } else { Err(text().into()) }
}

/// Nothing that was asked for was lost, and the counters agree.
fn check_total(total: &Value) -> Outcome {
    let number = |key: &str| total[key].as_u64().ok_or_else(|| format!("no {key} in {total}"));
    check_eq!(number("lost_count")?, 0, "{total}");
    check_eq!(number("lost_stack_bytes")?, 0, "{total}");
    check_eq!(number("tracked_count")?, number("seen_count")?, "{total}");
    check!(number("seen_bytes")? >= number("seen_count")?, "{total}");
    number("missed_frees")?;
    PASS
}

/// Size of an object of a cache, with what lies between two of them. `/proc/slabinfo`
/// shows it without; so take it from the number of objects in a slab.
fn object_bytes(cache: &str, found: (u64, u64)) -> Result<u64, Failed> {
    let text = fs::read_to_string("/proc/slabinfo")?;
    let line = text.lines().find(|line| line.split_whitespace().next() == Some(cache));
    let words: Vec<u64> = line
        .ok_or_else(|| format!("no cache {cache}"))?
        .split_whitespace()
        .filter_map(|word| word.parse().ok())
        .collect();
    // name <active_objs> <num_objs> <objsize> <objperslab> <pagesperslab>
    let [_, _, size, per_slab, pages, ..] = words.as_slice() else {
        return Err("an odd line in slabinfo".into());
    };
    let each = found.1 / found.0;
    let slab = pages * rustix::param::page_size() as u64;
    check_or(each >= *size && each * per_slab <= slab, || {
        format!("{each} bytes an object, {size} by slabinfo")
    })?;
    Ok(each)
}

fn objects_of_a_cache() -> Outcome {
    const PIPES: u64 = 1009;
    let through = |report: &Report| report.through("slab", &["pipe2", "create_pipe"]);
    let mut worker = Worker::start();
    let mut reports = Reports::start(&["--cache", "filp"]);
    let before = through(&reports.next()?);
    worker.ask(&format!("pipes {PIPES}"));
    // Two open files each.
    let count = |report: &Report| (through(report).0, 0);
    let due = (before.0 + 2 * PIPES, 0);
    let report = reports.until("open files", count, due)?;
    let found = through(&report);
    check_eq!(found.1, found.0 * object_bytes("filp", found)?, "bytes");
    for row in &report.rows {
        check_eq!(row["what"].as_str(), Some("slab filp"), "{row}");
    }
    check_total(&report.total)?;
    worker.end();
    reports.until_gone("open files", through, due.0)?;
    reports.stop()
}

fn kmalloc_blocks() -> Outcome {
    const PIPES: u64 = 1009;
    // 16 buffers of 40 bytes (struct pipe_buffer) for each pipe.
    let through = |report: &Report| report.through("slab", &["alloc_pipe_info"]);
    let mut worker = Worker::start();
    let mut reports = Reports::start(&["--cache", "kmalloc-1k"]);
    let before = through(&reports.next()?);
    worker.ask(&format!("pipes {PIPES}"));
    let due = (before.0 + PIPES, before.1 + PIPES * 1024);
    let report = reports.until("arrays of pipe buffers", through, due)?;
    for row in &report.rows {
        check_eq!(row["what"].as_str(), Some("slab kmalloc-1k"), "{row}");
    }
    check_total(&report.total)?;
    worker.end();
    reports.until_gone("arrays of pipe buffers", through, due.0)?;
    reports.stop()
}

fn pages() -> Outcome {
    const PIPES: u64 = 211;
    let page = rustix::param::page_size() as u64;
    let through = |report: &Report| report.through("pages", &["pipe_write"]);
    let mut worker = Worker::start();
    // Its own pipes keep a page each from now on.
    worker.ask("sleep 1");
    let mut reports = Reports::start(&[]);
    let before = through(&reports.next()?);
    worker.ask(&format!("filled {PIPES}"));
    let due = (before.0 + 16 * PIPES, before.1 + 16 * PIPES * page);
    let report = reports.until("pages in pipes", through, due)?;
    check_total(&report.total)?;
    let in_pipes = report.rows.iter().filter(|row| passes(row, &["pipe_write"]));
    for row in in_pipes.filter(|row| row["kind"] == "pages") {
        check_eq!(row["what"].as_str(), Some("pages order 0"), "{row}");
    }
    // Many new slabs: their pages are in no row, their objects are.
    worker.ask("names 4001");
    let names = |report: &Report| (report.through("slab", &["d_alloc"]).0.min(4001), 0);
    let report = reports.until("names of files", names, (4001, 0))?;
    for row in report.rows.iter().filter(|row| row["kind"] == "pages") {
        check!(!passes(row, &["allocate_slab", "new_slab"]), "a page of the slab allocator: {row}");
    }
    worker.end();
    reports.until_gone("pages in pipes", through, due.0)?;
    reports.stop()
}

/// Pipes whose array of buffers, 256 of 40 bytes, is more than two pages.
fn large_blocks() -> Outcome {
    const PIPES: u64 = 101;
    let words = ["pipe_fcntl", "pipe_set_size", "pipe_resize"];
    let page = rustix::param::page_size() as u64;
    let slots = (2 * page / 40 + 1).next_power_of_two();
    let block = (slots * 40).next_power_of_two();
    let size = usize::try_from(slots * page)?;
    for (args, kind, what) in [
        (&[][..], "pages", format!("pages order {}", (block / page).trailing_zeros())),
        (&["--cache", "kmalloc-large"][..], "slab", "slab kmalloc-large".to_owned()),
    ] {
        let pipes: Vec<(OwnedFd, OwnedFd)> =
            (0..PIPES).map(|_| rustix::pipe::pipe_with(PipeFlags::CLOEXEC)).collect::<Result<_, _>>()?;
        let mut reports = Reports::start(args);
        let through = |report: &Report| report.through(kind, &words);
        let before = through(&reports.next()?);
        for (_, to) in &pipes {
            rustix::pipe::fcntl_setpipe_size(to, size)?;
        }
        let due = (before.0 + PIPES, before.1 + PIPES * block);
        let report = reports.until("large arrays of pipe buffers", through, due)?;
        let other = if kind == "pages" { "slab" } else { "pages" };
        check_eq!(report.through(other, &words), (0, 0), "{what} counted twice");
        for row in report.rows.iter().filter(|row| passes(row, &words)) {
            check_eq!(row["what"].as_str(), Some(what.as_str()), "{row}");
        }
        drop(pipes);
        reports.until_gone("large arrays of pipe buffers", through, due.0)?;
        reports.stop()?;
    }
    PASS
}

/// BPF maps of one value for each CPU.
fn percpu() -> Outcome {
    const MAPS: u64 = 53;
    let cpus = libbpf_rs::num_possible_cpus()? as u64;
    let through = |report: &Report| report.through("percpu", &["array_map_alloc", "map_create"]);
    let mut reports = Reports::start(&["--percpu"]);
    let before = through(&reports.next()?);
    let options = libbpf_sys::bpf_map_create_opts {
        sz: size_of::<libbpf_sys::bpf_map_create_opts>() as u64,
        ..Default::default()
    };
    let maps: Vec<MapHandle> = (0..MAPS)
        .map(|_| MapHandle::create(MapType::PercpuArray, Some("test"), 4, 8, 1, &options))
        .collect::<Result<_, _>>()?;
    let due = (before.0 + MAPS, before.1 + MAPS * 8 * cpus);
    let report = reports.until("per-CPU values", through, due)?;
    check_total(&report.total)?;
    drop(maps);
    reports.until_gone("per-CPU values", through, due.0)?;
    reports.stop()
}

fn module() -> Outcome {
    let add = "/sys/class/zram-control/hot_add";
    if !is_guest() || !Path::new(add).exists() {
        return if_supported("zram", false, || PASS);
    }
    let mut reports = Reports::start(&["--module", "zram"]);
    let report = reports.next()?;
    check_eq!(report.rows.len(), 0, "before zram was asked for anything");
    let device = fs::read_to_string(add)?;
    let added = |report: &Report| (u64::from(!report.rows.is_empty()), 0);
    let report = reports.until("a device of zram", added, (1, 0))?;
    for row in &report.rows {
        check!(passes(row, &["zram", "hot_add"]), "not from zram: {row}");
    }
    fs::write("/sys/class/zram-control/hot_remove", device.trim())?;
    reports.stop()
}

fn wrong_names() -> Outcome {
    for (args, words) in [
        (["--cache", "kmalloc-cg-64"], "kmalloc-cg-64"),
        (["--module", "no_such_module"], "no_such_module"),
    ] {
        let output = run(&[&["memleak", "--kernel", "-n", "1"], &args[..]].concat());
        let stderr = String::from_utf8_lossy(&output.stderr);
        check_eq!(output.status.code(), Some(2), "{stderr}");
        check!(stderr.contains(words), "{stderr}");
    }
    PASS
}

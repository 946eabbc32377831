//! Time and memory of a big report of memleak. Bars: 1 s, 300 MiB.

use std::io::Read as _;
use std::path::Path;
use std::process::ChildStdout;
use std::thread;
use std::thread::JoinHandle;
use std::thread::sleep;
use std::time::Duration;
use std::time::Instant;

use crate::Bench;
use crate::Result;
use crate::allocate::Allocator;
use crate::figures::Series;
use crate::figures::Table;
use crate::figures::figure;
use crate::figures::none;
use crate::watcher::Watcher;

const BLOCKS: u64 = 1_000_000;
const STACKS: u64 = 10_000;

/// How often each variant is run.
const RUNS: usize = 3;

/// Later reports that are averaged.
const LATER: u32 = 4;

const VARIANTS: [&[&str]; 5] = [
    &["-o", "table"],
    &["-o", "json"],
    &["-o", "json", "--no-lines"],
    &["-o", "json", "--top", "20000"],
    &["-o", "pprof"],
];

/// What was written, and when the last of it came.
struct Written {
    text: Vec<u8>,
    last: Option<Instant>,
}

/// One run.
struct Report {
    first_ms: f64,
    peak_mib: f64,
    maps_mib: f64,
}

/// Measures and prints. `program` is that of `allocate.c`.
pub(crate) fn run(bench: &Bench, program: &Path) -> Result<()> {
    let title = format!(
        "memleak: a report over {BLOCKS} blocks of {STACKS} stacks, {RUNS} runs; FIRST: from Ctrl-C \
         to the last row in ms, MOST: the slowest; LATER: CPU time of a further report in ms; PEAK: \
         most resident (VmHWM) in MiB; MAPS: what the kernel holds in MiB"
    );
    let head = ["OPTIONS", "FIRST", "MOST", "LATER", "PEAK", "MAPS", "BAR"];
    let mut table = Table::new(title, &head);
    for options in VARIANTS {
        let (mut first, mut peak, mut maps) =
            (Series::default(), Series::default(), Series::default());
        for _ in 0..RUNS {
            let report = first_report(bench, program, options)?;
            first.0.push(report.first_ms);
            peak.0.push(report.peak_mib);
            maps.0.push(report.maps_mib);
        }
        let later = later_report(bench, program, options)?;
        if let Some((_, peak_mib)) = later {
            peak.0.push(peak_mib);
        }
        table.row([
            options.join(" "),
            figure(first.median(), 0),
            figure(first.max(), 0),
            later.map_or_else(none, |(ms, _)| figure(ms, 0)),
            figure(peak.max(), 0),
            figure(maps.median(), 0),
            "1000, 300 MiB".into(),
        ]);
    }
    table.print()
}

/// A program that holds the blocks, and a watcher that has seen all of it.
fn watched(
    bench: &Bench,
    program: &Path,
    options: &[&str],
    interval: &str,
) -> Result<(Allocator, Watcher, JoinHandle<std::io::Result<Written>>)> {
    let mut allocator = Allocator::start(program, 1, bench.cpus.numbers())?;
    let pid = allocator.pid().to_string();
    let stacks = (2 * STACKS).to_string();
    let mut args = vec!["memleak", "-P", &pid, "-i", interval, "--max-stacks", &stacks];
    args.extend(options);
    let (mut watcher, rows) = Watcher::start_read(&bench.program, &args)?;
    let reader = thread::spawn(|| read(rows));
    watcher.wait_probing()?;
    allocator.hold(BLOCKS, STACKS)?;
    Ok((allocator, watcher, reader))
}

/// The only report is that at the end: nothing is known yet of the stacks and
/// of the files they lead through.
fn first_report(bench: &Bench, program: &Path, options: &[&str]) -> Result<Report> {
    let (allocator, watcher, reader) = watched(bench, program, options, "3600")?;
    let maps_kib = watcher.maps_kib()?;
    let begin = Instant::now();
    watcher.interrupt()?;
    // It only grows, and is gone when the watcher is.
    let mut peak_kib = 0;
    while let Ok(kib) = watcher.peak_kib() {
        peak_kib = kib;
        sleep(Duration::from_millis(1));
    }
    let summary = watcher.finish()?;
    let written = reader.join().map_err(|_| "the reader panicked")??;
    let last = written.last.ok_or("memleak wrote nothing")?;
    drop(allocator);
    if summary.lost > 0 {
        return Err(format!("memleak lost {}", summary.lost).into());
    }
    if options.contains(&"json") {
        check(&written.text)?;
    }
    Ok(Report {
        first_ms: last.duration_since(begin).as_secs_f64() * 1e3,
        peak_mib: peak_kib as f64 / 1024.0,
        maps_mib: maps_kib as f64 / 1024.0,
    })
}

/// CPU time in ms of a report that is not the first, and the peak in MiB.
/// Profiles have none.
fn later_report(bench: &Bench, program: &Path, options: &[&str]) -> Result<Option<(f64, f64)>> {
    if options.contains(&"pprof") {
        return Ok(None);
    }
    // Long enough for any of the reports, so that none is skipped.
    let seconds = 3;
    let (allocator, watcher, reader) = watched(bench, program, options, &seconds.to_string())?;
    let interval = Duration::from_secs(seconds);
    sleep(interval * 2);
    let before = watcher.cpu()?;
    sleep(interval * LATER);
    let spent = watcher.cpu()? - before;
    let peak_kib = watcher.peak_kib()?;
    watcher.stop()?;
    reader.join().map_err(|_| "the reader panicked")??;
    drop(allocator);
    Ok(Some((spent.as_secs_f64() * 1e3 / f64::from(LATER), peak_kib as f64 / 1024.0)))
}

fn read(mut rows: ChildStdout) -> std::io::Result<Written> {
    let mut written = Written { text: Vec::new(), last: None };
    let mut buffer = vec![0; 1 << 16];
    loop {
        match rows.read(&mut buffer)? {
            0 => return Ok(written),
            bytes => {
                written.last = Some(Instant::now());
                written.text.extend_from_slice(&buffer[..bytes]);
            }
        }
    }
}

/// A report that leaves something out is quick, and worth nothing.
fn check(text: &[u8]) -> Result<()> {
    for line in str::from_utf8(text)?.lines() {
        let row: serde_json::Value = serde_json::from_str(line)?;
        if row["kind"] == "total" {
            let count = row["count"].as_u64().unwrap_or(0);
            // The C library has a few of its own.
            return if (BLOCKS..BLOCKS + 100).contains(&count) {
                Ok(())
            } else {
                Err(format!("memleak reports {count} blocks of {BLOCKS}").into())
            };
        }
    }
    Err("memleak reports no total".into())
}

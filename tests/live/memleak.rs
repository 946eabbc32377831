//! memleak's reports and their forms. What it counts is in the files beside
//! this one: calls, threads, maps, process, limits.

use std::process::Stdio;
use std::io::BufReader;
use std::io::BufRead as _;
use std::fs;
use std::io::Read as _;
use std::path::PathBuf;
use std::process;

use flate2::read::GzDecoder;
use libtest_mimic::Trial;
use prost::Message;
use rustix::process::Signal;
use serde_json::Value;

use crate::check;
use crate::check_eq;
use crate::common::kernels::must_support;
use crate::common::Outcome;
use crate::common::PASS;
use crate::common::leak::number;
use crate::common::leak::report;
use crate::common::leak::watch;
use crate::common::oracle;
use crate::common::target::Target;
use crate::common::test;
use crate::common::watcher::Watcher;
use crate::common::watcher::command;

pub fn tests() -> Vec<Trial> {
    vec![
        test("memleak: -n reports, and -l is its short form", reports),
        test("memleak: --top and --sort", sorted),
        test("memleak: resident memory is explained by its parts", explained),
        test("memleak: --trace has a row for each call", trace),
        test("memleak: folded stacks add up to the total", folded),
        test("memleak: a flame graph shows the total", flamegraph),
        test("memleak: a pprof profile adds up to the total", pprof),
    ]
}

fn reports() -> Outcome {
    let mut target = Target::start("glibc");
    let pid = target.pid().to_string();
    let watcher = Watcher::start(&["-l", &pid, "-i", "0.5", "-n", "3", "--top", "7"]);
    target.ask("stacks 101 24");
    let (code, rows, stderr) = watcher.finish();
    check_eq!(code, Some(0), "{stderr}");
    let totals: Vec<&Value> = rows.iter().filter(|row| row["kind"] == "total").collect();
    check_eq!(totals.len(), 3, "reports: {stderr}");
    check_eq!(number(totals[2], "bytes"), 101 * 24, "{}", totals[2]);
    let last = rows.iter().filter(|row| row["kind"] == "heap" && row["time"] == totals[2]["time"]);
    check_eq!(last.count(), 7, "the top of them");
    PASS
}

fn sorted() -> Outcome {
    for (key, wanted) in [("bytes", [4099, 19 * 64, 23 * 3]), ("count", [23 * 3, 19 * 64, 2 * 3])] {
        let mut target = Target::start("glibc");
        let pid = target.pid().to_string();
        let args = ["memleak", "-P", &pid, "-i", "1000", "--top", "3", "--sort", key];
        let watcher = Watcher::start(&args);
        for order in ["malloc 23 3", "reuse 19 64", "calloc 2 1", "memalign 1 4099"] {
            target.ask(order);
        }
        let report = report(watcher);
        let shown: Vec<u64> =
            report.of_kind(target.pid(), "heap").map(|row| number(row, "bytes")).collect();
        check_eq!(shown, wanted, "by {key}");
        check_eq!(report.heap(target.pid()).bytes, target.account.bytes, "the total is of all");
    }
    PASS
}

fn explained() -> Outcome {
    let mut target = Target::start("glibc");
    let watcher = watch(&[target.pid()], &[]);
    target.ask("malloc 10007 1009");
    target.ask("map 1009");
    target.ask("touch 0 1009");
    let before = oracle::status(target.pid()).ok_or("the target has gone")?;
    let report = report(watcher);
    let total = report.total(target.pid());
    // Before 6.2 the file shows the counters without what each thread still keeps: 66 faults of
    // up to 16 pages. The walk over the page tables, which ours is, always shows the truth.
    let lag = if must_support("split_rss") { 66 * 16 * oracle::page_kib() * 1024 } else { 0 };
    let resident = before["VmRSS"] * 1024;
    let found = number(total, "rss_bytes");
    check!(found.abs_diff(resident) <= lag, "{found} for {resident}");
    let tables = number(total, "page_table_bytes");
    check!(tables.abs_diff(before["VmPTE"] * 1024) <= 16 * 1024, "{tables}: {before:?}");
    // Every page of the mapping was touched, and no other was mapped directly.
    check_eq!(number(total, "direct_rss_bytes"), 1009 * oracle::page_kib() * 1024, "{total}");
    let parts = ["direct_rss", "file_rss", "shmem_rss", "stack_rss", "unexplained"];
    let parts: u64 = parts.iter().map(|part| number(total, &format!("{part}_bytes"))).sum();
    let retained = total["retained_bytes"].as_i64().ok_or("no retained_bytes")?;
    let allocator = i64::try_from(number(total, "bytes")).map_err(|_| "large")? + retained;
    check_eq!(i64::try_from(found - parts).map_err(|_| "large")?, allocator, "{total}");
    // The heap was written to as it was given out, so nothing of it can be missing.
    check!(retained >= 0, "{total}");
    check_eq!(number(total, "map_bytes"), target.account.map_bytes, "{total}");
    PASS
}

fn trace() -> Outcome {
    let mut target = Target::start("glibc");
    let pid = target.pid().to_string();
    let watcher = Watcher::start(&["memleak", "-P", &pid, "--trace"]);
    target.ask("malloc 23 101");
    let address = target.ask("last").extra;
    target.ask("calloc 7 53");
    target.ask("free-all");
    let (code, rows, stderr) = watcher.stop();
    check_eq!(code, Some(0), "{stderr}");
    let of = |kind: &str| rows.iter().filter(|row| row["kind"] == kind).collect::<Vec<_>>();
    check_eq!(of("malloc").len(), 23, "{stderr}");
    check_eq!(of("calloc").len(), 7, "{stderr}");
    check_eq!(of("free").len(), 30, "{stderr}");
    check!(of("malloc").iter().all(|row| number(row, "bytes") == 101), "{rows:?}");
    check!(of("calloc").iter().all(|row| number(row, "bytes") == 159), "{rows:?}");
    let wanted = format!("{address:#x}");
    let there = of("malloc").iter().filter(|row| row["address"] == *wanted).count();
    check_eq!(there, 1, "one block was at {wanted}");
    check!(rows.iter().all(|row| row["tid"] == u64::from(target.pid())), "{rows:?}");
    PASS
}

/// Runs memleak into a file while the target holds blocks of 1009 stacks and
/// one caller more; the file's content.
fn written(format: &str) -> Result<(Vec<u8>, Target), String> {
    let mut target = Target::start("glibc");
    let path = PathBuf::from(format!("/tmp/memleak-{}.{format}", process::id()));
    let file = path.to_str().ok_or("a plain path")?;
    let pid = target.pid().to_string();
    let args = ["memleak", "-P", &pid, "-i", "1000", "-o", format, "--file", file];
    let mut child =
        command(&args).stderr(Stdio::piped()).spawn().map_err(|error| error.to_string())?;
    // No row says that it is ready: the notes do, which come when all is attached.
    let mut errors = BufReader::new(child.stderr.take().ok_or("piped")?).lines();
    let ready = errors.any(|line| line.is_ok_and(|line| line.contains("OLDER counts")));
    if !ready {
        return Err(format!("memleak {args:?} ended: {:?}", child.wait()));
    }
    target.ask("stacks 1009 24");
    target.ask("malloc 23 101");
    let id = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(id, Signal::INT).map_err(|error| error.to_string())?;
    let rest: Vec<String> = errors.map_while(Result::ok).collect();
    let status = child.wait().map_err(|error| error.to_string())?;
    if !status.success() {
        return Err(format!("memleak {args:?}: {status}: {rest:?}"));
    }
    let content = fs::read(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    fs::remove_file(&path).map_err(|error| error.to_string())?;
    Ok((content, target))
}

fn folded() -> Outcome {
    let (content, target) = written("folded")?;
    let text = String::from_utf8(content)?;
    let mut sum = 0;
    let mut of_malloc = 0;
    for line in text.lines() {
        let (stack, bytes) = line.rsplit_once(' ').ok_or("no number")?;
        let bytes: u64 = bytes.parse()?;
        sum += bytes;
        if stack.contains("leak_malloc") {
            of_malloc += bytes;
        }
    }
    check_eq!(sum, target.account.bytes, "all lines together");
    check_eq!(of_malloc, 23 * 101, "of one caller");
    check_eq!(text.lines().count(), 1010, "one line a stack");
    PASS
}

fn flamegraph() -> Outcome {
    let (content, target) = written("flamegraph")?;
    let text = String::from_utf8(content)?;
    check!(text.contains("<svg") && text.trim_end().ends_with("</svg>"), "no picture");
    check!(text.contains("leak_malloc"), "no name");
    let digits = target.account.bytes.to_string();
    let (thousands, rest) = digits.split_at(digits.len() - 3);
    let total = format!("{thousands},{rest}");
    check!(text.contains(&total), "no total of {total}");
    PASS
}

/// The parts of a profile (profile.proto of pprof) that hold amounts.
#[derive(Clone, PartialEq, Message)]
struct Profile {
    #[prost(message, repeated, tag = "1")]
    sample_type: Vec<ValueType>,
    #[prost(message, repeated, tag = "2")]
    sample: Vec<Sample>,
    #[prost(string, repeated, tag = "6")]
    string_table: Vec<String>,
}

#[derive(Clone, PartialEq, Message)]
struct ValueType {
    #[prost(int64, tag = "1")]
    name: i64,
    #[prost(int64, tag = "2")]
    unit: i64,
}

#[derive(Clone, PartialEq, Message)]
struct Sample {
    #[prost(uint64, repeated, tag = "1")]
    location_id: Vec<u64>,
    #[prost(int64, repeated, tag = "2")]
    value: Vec<i64>,
}

fn pprof() -> Outcome {
    let (content, target) = written("pprof")?;
    let mut plain = Vec::new();
    GzDecoder::new(&content[..]).read_to_end(&mut plain)?;
    let profile = Profile::decode(&plain[..])?;
    let sum = |name: &str| -> Result<i64, String> {
        let index = profile
            .sample_type
            .iter()
            .position(|sort| {
                let name_of = usize::try_from(sort.name).unwrap_or_default();
                profile.string_table.get(name_of).is_some_and(|text| text == name)
            })
            .ok_or_else(|| format!("no `{name}` in {:?}", profile.string_table))?;
        Ok(profile.sample.iter().map(|sample| sample.value[index]).sum())
    };
    check_eq!(sum("inuse_space")?, target.account.bytes.cast_signed(), "bytes");
    check_eq!(sum("inuse_objects")?, target.account.blocks.cast_signed(), "blocks");
    check!(sum("alloc_space")? >= sum("inuse_space")?, "allocated");
    check!(profile.string_table.iter().any(|text| text == "leak_malloc"), "names");
    PASS
}

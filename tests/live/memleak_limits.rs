//! memleak with full tables, filters, ages and samples: what is left out is
//! counted.

use std::collections::BTreeSet;
use std::thread;
use std::time::Duration;

use libtest_mimic::Trial;
use serde_json::Value;

use crate::check;
use crate::check_eq;
use crate::common::Outcome;
use crate::common::PASS;
use crate::common::kernels::is_guest;
use crate::common::leak::Amount;
use crate::common::leak::number;
use crate::common::leak::report;
use crate::common::leak::symbol;
use crate::common::leak::watch;
use crate::common::target::Target;
use crate::common::test;

pub fn tests() -> Vec<Trial> {
    vec![
        test("memleak: a full block table loses exactly what it says", full_blocks),
        test("memleak: a full stack table loses stacks, not bytes", full_stacks),
        test("memleak: --min-size and --max-size", sizes),
        test("memleak: --older tells old blocks from new ones", ages),
        test("memleak: --show-allocs lists each block", blocks),
        test("memleak: --sample-bytes estimates within six sigma", sampled),
        test("memleak: the direct caller is frame 1, with frame pointers or without", callers),
        test("memleak: --stack-depth cuts, and says so", depth),
        test("memleak: --no-stack keeps the totals", no_stack),
    ]
}

fn full_blocks() -> Outcome {
    let mut target = Target::start("glibc");
    let watcher = watch(&[target.pid()], &["--max-blocks", "64"]);
    target.ask("malloc 1009 48");
    let report = report(watcher);
    let total = report.total(target.pid());
    let tracked = number(total, "tracked_count");
    let lost = number(total, "lost_count");
    check!((1..=64).contains(&tracked), "{total}");
    check_eq!(tracked + lost, 1009, "tracked and lost");
    check_eq!(number(total, "seen_count"), 1009, "seen");
    check_eq!(number(total, "lost_bytes"), lost * 48, "{total}");
    check_eq!(number(total, "complete"), 0, "{total}");
    check_eq!(report.heap(target.pid()), Amount::of(tracked, 48), "what is known to be held");
    check_eq!(report.sum(target.pid(), "heap", |_| true), Amount::of(tracked, 48), "by stack");
    PASS
}

fn full_stacks() -> Outcome {
    let mut target = Target::start("glibc");
    let watcher = watch(&[target.pid()], &["--max-stacks", "64"]);
    target.ask("stacks 1009 24");
    let report = report(watcher);
    let total = report.total(target.pid());
    check_eq!(report.heap(target.pid()), Amount::of(1009, 24), "every block is held");
    check_eq!(report.sum(target.pid(), "heap", |_| true), Amount::of(1009, 24), "in all rows");
    let without = report.sum(target.pid(), "heap", |row| {
        row["stack"].as_array().is_none_or(Vec::is_empty)
    });
    check!(without.count >= 1009 - 64, "64 stacks have room: {total}");
    let lost = Amount {
        bytes: number(total, "lost_stack_bytes"),
        count: number(total, "lost_stack_count"),
    };
    check_eq!(lost, without, "what has no stack");
    PASS
}

fn sizes() -> Outcome {
    let mut target = Target::start("glibc");
    let watcher = watch(&[target.pid()], &["--min-size", "100", "--max-size", "200"]);
    for order in ["malloc 3 99", "calloc 5 34", "realloc-null 7 200", "memalign 11 201"] {
        target.ask(order);
    }
    // Into the range and out of it.
    target.ask("malloc 2 10");
    target.ask("realloc 1 150");
    target.ask("malloc 2 120");
    target.ask("realloc 1 300");
    let report = report(watcher);
    check_eq!(report.called_by(target.pid(), "leak_calloc"), Amount::of(5, 102), "3 times 34");
    let resized = Amount { bytes: 7 * 200 + 150, count: 8 };
    check_eq!(report.called_by(target.pid(), "leak_realloc"), resized, "200, and 10 to 150");
    check_eq!(report.called_by(target.pid(), "leak_malloc"), Amount::of(1, 120), "120");
    check_eq!(report.called_by(target.pid(), "leak_memalign"), Amount::default(), "201");
    let held = Amount { bytes: 510 + resized.bytes + 120, count: 5 + 8 + 1 };
    check_eq!(report.heap(target.pid()), held, "in all");
    check_eq!(number(report.total(target.pid()), "missed_frees"), 0, "missed");
    PASS
}

fn ages() -> Outcome {
    for (age, old) in [("1h", 0), ("1ms", 23)] {
        let mut target = Target::start("glibc");
        let watcher = watch(&[target.pid()], &["--older", age]);
        target.ask("malloc 23 101");
        thread::sleep(Duration::from_millis(20));
        let report = report(watcher);
        let total = report.total(target.pid());
        check_eq!(number(total, "older_bytes"), old * 101, "{age}: {total}");
        check_eq!(report.heap(target.pid()), Amount::of(23, 101), "{age}: of any age");
        let by_stack: u64 =
            report.of_kind(target.pid(), "heap").map(|row| number(row, "older_bytes")).sum();
        check_eq!(by_stack, old * 101, "{age}: by stack");
    }
    PASS
}

fn blocks() -> Outcome {
    let mut target = Target::start("glibc");
    let watcher = watch(&[target.pid()], &["--show-allocs"]);
    let mut addresses = BTreeSet::new();
    for size in [101, 53, 4099, 7, 0] {
        target.ask(&format!("malloc 1 {size}"));
        addresses.insert((target.ask("last").extra, size));
    }
    target.ask("churn 5 64");
    let report = report(watcher);
    let address = |row: &Value| {
        let text = row["address"].as_str().and_then(|text| text.strip_prefix("0x"));
        text.and_then(|text| u64::from_str_radix(text, 16).ok()).expect("an address")
    };
    let shown: Vec<&Value> = report.of_kind(target.pid(), "block").collect();
    check_eq!(shown.len(), 5, "one row a block");
    let listed: BTreeSet<(u64, u64)> =
        shown.iter().map(|row| (address(row), number(row, "bytes"))).collect();
    check_eq!(listed, addresses, "where and how large");
    check!(shown.iter().all(|row| row["age_s"].as_f64().is_some()), "{shown:?}");
    PASS
}

fn sampled() -> Outcome {
    const SIZE: u64 = 100;
    const EVERY: u64 = 4096;
    let count: u64 = if is_guest() { 50_021 } else { 200_003 };
    let mut target = Target::start("glibc");
    let watcher = watch(&[target.pid()], &["--sample-bytes", "4096"]);
    target.ask(&format!("malloc {count} {SIZE}"));
    target.ask(&format!("free {}", count / 2));
    let report = report(watcher);
    let total = report.total(target.pid());
    check_eq!(number(total, "sampled"), 1, "labelled");
    // Each byte is picked with 1/EVERY, a block if any of its bytes is; those picked stand for
    // 1/p blocks each.
    let held = (count - count / 2) as f64;
    let p = 1.0 - (-(SIZE as f64) / EVERY as f64).exp();
    let sigma = SIZE as f64 * (held * (1.0 - p) / p).sqrt();
    let truth = held * SIZE as f64;
    let found = number(total, "bytes") as f64;
    check!((found - truth).abs() <= 6.0 * sigma, "{found} for {truth}, sigma {sigma}: {total}");
    let found = number(total, "count") as f64;
    let off = (found - held).abs() * SIZE as f64;
    check!(off <= 6.0 * sigma, "{found} blocks for {held}: {total}");
    // Blocks much larger than that are sure to be picked, and then exact.
    target.ask("free-all");
    let watcher = watch(&[target.pid()], &["--sample-bytes", "4096"]);
    target.ask("malloc 7 1000003");
    let report = crate::common::leak::report(watcher);
    check_eq!(report.heap(target.pid()), Amount::of(7, 1_000_003), "large blocks");
    PASS
}

fn callers() -> Outcome {
    for name in ["glibc", "glibc-nofp", "glibc-static", "musl", "musl-static"] {
        let mut target = Target::start(name);
        let watcher = watch(&[target.pid()], &[]);
        target.ask("malloc 23 101");
        target.ask("calloc 7 53");
        let report = report(watcher);
        for (allocator, caller) in [("malloc", "leak_malloc"), ("calloc", "leak_calloc")] {
            let rows: Vec<&Value> = report
                .of_kind(target.pid(), "heap")
                .filter(|row| symbol(row, 1) == caller)
                .collect();
            check_eq!(rows.len(), 1, "{name}: stacks of {caller}");
            let first = symbol(rows[0], 0);
            check!(first.ends_with(allocator), "{name}: {first} is no {allocator}");
            if name != "glibc-nofp" {
                let wanted = format!("order_{allocator}");
                check_eq!(symbol(rows[0], 2), wanted, "{name}: who called {caller}");
            }
        }
    }
    PASS
}

fn depth() -> Outcome {
    let mut target = Target::start("glibc");
    let watcher = watch(&[target.pid()], &["--stack-depth", "16"]);
    target.ask("deep 100 24");
    let report = report(watcher);
    let rows: Vec<&Value> = report.of_kind(target.pid(), "heap").collect();
    check_eq!(rows.len(), 1, "one stack");
    check_eq!(rows[0]["stack"].as_array().map(Vec::len), Some(16), "{}", rows[0]);
    check!((1..16).all(|i| symbol(rows[0], i) == "leak_deep"), "{}", rows[0]);
    let cut = report.total(target.pid())["truncated_percent"].as_f64();
    check_eq!(cut, Some(100.0), "all of them are cut");
    PASS
}

fn no_stack() -> Outcome {
    let mut target = Target::start("glibc");
    let watcher = watch(&[target.pid()], &["--no-stack"]);
    target.ask("malloc 23 101");
    target.ask("calloc 7 53");
    target.ask("free 2");
    let report = report(watcher);
    let held = Amount { bytes: target.account.bytes, count: target.account.blocks };
    check_eq!(report.heap(target.pid()), held, "as with stacks");
    PASS
}

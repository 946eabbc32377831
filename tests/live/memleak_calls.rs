//! memleak against every function of every allocator: what each caller holds,
//! exactly.

use std::collections::BTreeMap;

use libtest_mimic::Trial;

use crate::check;
use crate::check_eq;
use crate::common::Outcome;
use crate::common::PASS;
use crate::common::leak::Amount;
use crate::common::leak::number;
use crate::common::leak::report;
use crate::common::leak::symbol;
use crate::common::leak::watch;
use crate::common::target::Target;
use crate::common::test;
use crate::common::worker::Worker;
use crate::memleak_targets::FORMS;
use crate::memleak_targets::throws;

/// Targets, what memleak must be told about them, and how.
const ALLOCATORS: [(&str, &str, &[&str]); 12] = [
    ("glibc", "the C library of GNU", &[]),
    ("glibc-nofp", "a program without frame pointers", &[]),
    ("glibc-static", "the C library of GNU, static", &[]),
    ("musl", "musl", &[]),
    ("musl-static", "musl, static", &[]),
    ("jemalloc", "jemalloc", &[]),
    ("jemalloc-inside", "jemalloc, static in a dynamic program", &[]),
    ("tcmalloc", "tcmalloc", &[]),
    ("mimalloc", "mimalloc", &[]),
    ("wrapped", "an allocator on top of another: the outer one owns", &[]),
    ("prefixed", "an allocator with names of its own", &["--symbol-prefix", "my_"]),
    ("usdt", "an allocator that announces what it does", &[]),
];

pub fn tests() -> Vec<Trial> {
    let mut tests: Vec<Trial> = ALLOCATORS
        .into_iter()
        .map(|(name, what, args)| {
            test(format!("memleak: every function of {what}"), move || functions(name, args))
        })
        .collect();
    for name in ["cxx", "cxx-jemalloc", "cxx-tcmalloc", "cxx-mimalloc"] {
        tests.push(test(format!("memleak: every form of new and delete, {name}"), move || {
            operators(name)
        }));
    }
    tests.extend([
        test("memleak: everything freed leaves nothing", all_freed),
        test("memleak: an address used again belongs to who has it now", reuse),
        test("memleak: a static Rust program", rust),
        test("memleak: blocks from before the watcher are not its own", from_before),
    ]);
    tests
}

/// Orders in turn, and who holds what they change.
const ORDERS: [(&str, &str); 25] = [
    ("malloc 23 101", "leak_malloc"),
    ("malloc 2 0", "leak_malloc"),
    ("malloc-fail 3", "leak_malloc"),
    ("calloc 19 33", "leak_calloc"),
    ("calloc-overflow 3", "leak_calloc"),
    ("realloc-null 17 47", "leak_realloc"),
    ("realloc-fail 5", "leak_realloc"),
    ("realloc 11 100003", "leak_realloc"),
    ("realloc 7 300007", "leak_realloc"),
    ("realloc 5 4099", "leak_realloc"),
    ("realloc 3 7", "leak_realloc"),
    ("realloc-zero 2", "leak_realloc"),
    ("memalign 13 100", "leak_memalign"),
    ("posix_memalign 11 100", "leak_posix_memalign"),
    ("posix_memalign-fail 2", "leak_posix_memalign"),
    ("aligned_alloc 7 128", "leak_aligned_alloc"),
    ("valloc 5 5003", "leak_valloc"),
    ("pvalloc 3 5003", "leak_pvalloc"),
    ("reallocarray 29 11", "leak_reallocarray"),
    ("reallocarray-overflow 2", "leak_reallocarray"),
    ("churn 101 48", "leak_malloc"),
    ("reuse 37 64", "leak_reuse"),
    ("free-null 4", "leak_malloc"),
    // The oldest, and those of `reuse`.
    ("free 7", "leak_malloc"),
    ("free-last 5", "leak_reuse"),
];

fn functions(name: &str, args: &[&str]) -> Outcome {
    let mut target = Target::start(name);
    let watcher = watch(&[target.pid()], args);
    let mut callers: BTreeMap<&str, [i64; 2]> = BTreeMap::new();
    for (order, caller) in ORDERS {
        let before = target.account;
        // The program's own allocator has no blocks as large.
        let large = order.contains("100003") || order.contains("300007");
        if large && matches!(name, "prefixed" | "usdt") {
            continue;
        }
        if let Some(after) = target.try_ask(order) {
            let held = callers.entry(caller).or_default();
            held[0] += after.bytes.wrapping_sub(before.bytes).cast_signed();
            held[1] += after.blocks.wrapping_sub(before.blocks).cast_signed();
        }
    }
    // A block whose direct caller is in the C library.
    let held = target.account;
    let through_strdup = target.try_ask("strdup 31 29").is_some();
    let report = report(watcher);

    for (caller, [bytes, count]) in callers {
        let wanted = Amount { bytes: bytes.cast_unsigned(), count: count.cast_unsigned() };
        // A probe in the middle of an allocator has the allocator's own frames on top.
        let found = if name == "usdt" {
            report.through(target.pid(), caller)
        } else {
            report.called_by(target.pid(), caller)
        };
        check_eq!(found, wanted, "{name}: {caller}");
    }
    if through_strdup {
        let strdup = |row: &_| matches!(symbol(row, 1), "strdup" | "__strdup");
        check_eq!(report.sum(target.pid(), "heap", strdup), Amount::of(31, 29), "{name}: strdup");
    }
    report.agrees(target.pid(), target.account)?;
    let total = report.total(target.pid());
    check_eq!(number(total, "unknown_frees"), 0, "{name}: every free is of a known block");
    check!(number(total, "tracked_count") >= held.blocks, "{name}: {total}");
    PASS
}

fn operators(name: &str) -> Outcome {
    let mut target = Target::start(name);
    let watcher = watch(&[target.pid()], &[]);
    for (size, form) in (101..).zip(FORMS) {
        target.ask(&format!("{form} 23 {size}"));
    }
    if throws(name) {
        let caught = target.ask("new-throws 3").extra;
        check_eq!(caught, 3, "{name}: exceptions find their way through a watched operator");
        target.ask("new-fails 3");
    }
    let first = report(watcher);
    for (size, form) in (101..).zip(FORMS) {
        let caller = format!("leak_{}", form.replace('-', "_"));
        let found = first.called_by(target.pid(), &caller);
        check_eq!(found, Amount::of(23, size), "{name}: {caller}");
    }
    first.agrees(target.pid(), target.account)?;

    target.ask("free-all");
    let watcher = watch(&[target.pid()], &[]);
    for form in FORMS {
        target.ask(&format!("{form} 23 101"));
    }
    target.ask("free-all");
    report(watcher).agrees(target.pid(), target.account)
}

fn all_freed() -> Outcome {
    let mut target = Target::start("glibc");
    let watcher = watch(&[target.pid()], &[]);
    for (order, _) in ORDERS {
        target.ask(order);
    }
    let seen = target.ask("free-all");
    let report = report(watcher);
    check_eq!(report.heap(target.pid()), Amount::default(), "all is freed");
    report.agrees(target.pid(), target.account)?;
    let total = report.total(target.pid());
    check_eq!(number(total, "seen_count"), seen.seen_blocks, "blocks seen");
    check_eq!(number(total, "seen_bytes"), seen.seen_bytes, "bytes seen");
    PASS
}

fn reuse() -> Outcome {
    let mut target = Target::start("glibc");
    let watcher = watch(&[target.pid()], &[]);
    let reused = target.ask("reuse 101 64");
    check_eq!(reused.extra, 101, "glibc gives an address out again at once");
    let report = report(watcher);
    check_eq!(report.called_by(target.pid(), "leak_reuse"), Amount::of(101, 64), "the new owner");
    let before = report.called_by(target.pid(), "leak_malloc");
    check_eq!(before, Amount::default(), "the owner before");
    report.agrees(target.pid(), target.account)
}

fn rust() -> Outcome {
    let mut worker = Worker::start();
    let watcher = watch(&[worker.pid()], &[]);
    let answer = worker.ask("boxes 101 53");
    let first = report(watcher);
    let numbers: Vec<u64> = answer.split(' ').map_while(|word| word.parse().ok()).collect();
    let wanted = Amount { bytes: numbers[0], count: numbers[1] };
    check_eq!(wanted.count, 102, "the boxes and their list");
    check_eq!(first.heap(worker.pid()), wanted, "{:?}", first.rows);
    check_eq!(number(first.total(worker.pid()), "complete"), 1, "complete");

    let watcher = watch(&[worker.pid()], &[]);
    worker.ask("unbox");
    let second = report(watcher);
    check_eq!(second.heap(worker.pid()), Amount::default(), "nothing new");
    check_eq!(number(second.total(worker.pid()), "unknown_frees"), 102, "blocks of before");
    PASS
}

fn from_before() -> Outcome {
    let mut target = Target::start("glibc");
    target.ask("malloc 23 101");
    let watcher = watch(&[target.pid()], &[]);
    target.ask("malloc 7 53");
    // 19 of before and none of these.
    target.ask("free 19");
    // One of before becomes one of now.
    target.ask("realloc 8 61");
    let report = report(watcher);
    check_eq!(report.called_by(target.pid(), "leak_malloc"), Amount::default(), "resized");
    check_eq!(report.called_by(target.pid(), "leak_realloc"), Amount::of(8, 61), "resized");
    check_eq!(report.heap(target.pid()), Amount::of(8, 61), "those since the start");
    let total = report.total(target.pid());
    check_eq!(number(total, "unknown_frees"), 19 + 1, "freed or resized from before");
    check_eq!(number(total, "missed_frees"), 0, "{total}");
    PASS
}

//! memleak and mappings: those a program makes itself, never those of its
//! allocator.

use libtest_mimic::Trial;
use serde_json::Value;

use crate::check_eq;
use crate::common::Outcome;
use crate::common::PASS;
use crate::common::leak::Amount;
use crate::common::leak::Report;
use crate::common::leak::number;
use crate::common::leak::passes;
use crate::common::leak::report;
use crate::common::leak::symbol;
use crate::common::leak::watch;
use crate::common::target::Account;
use crate::common::target::Target;
use crate::common::test;

pub fn tests() -> Vec<Trial> {
    vec![
        test("memleak: mmap, a partial munmap and a map over a map", parts),
        test("memleak: mremap grows, moves and shrinks", resized),
        test("memleak: what is only reserved stands apart until it is used", reserved),
        test("memleak: mapped files stand apart", files),
        test("memleak: the program break", the_break),
        test("memleak: an allocator's own mappings are never listed", allocators),
        test("memleak: everything unmapped leaves nothing", all_unmapped),
        test("memleak: --mappings needs no allocator", without_allocator),
    ]
}

const LIBRARIES: [&str; 4] = ["glibc", "glibc-static", "musl", "musl-static"];

fn page() -> u64 {
    rustix::param::page_size() as u64
}

/// That the totals are the target's, and the stacks add up to them.
fn agrees(report: &Report, target: &Target) -> Outcome {
    let Account { map_bytes, file_bytes, reserved_bytes, .. } = target.account;
    let total = report.total(target.pid());
    for (kind, key, wanted) in [
        ("map", "map_bytes", map_bytes),
        ("file", "file_bytes", file_bytes),
        ("reserved", "reserved_bytes", reserved_bytes),
    ] {
        check_eq!(number(total, key), wanted, "`{key}` in {total}");
        let stacks = report.sum(target.pid(), kind, |_| true);
        check_eq!(stacks.bytes, wanted, "the stacks of `{kind}` together");
    }
    PASS
}

fn pages_of(report: &Report, target: &Target, kind: &str, caller: &str) -> u64 {
    report.sum(target.pid(), kind, |row| symbol(row, 1) == caller).bytes / page()
}

fn parts() -> Outcome {
    for name in LIBRARIES {
        let mut target = Target::start(name);
        let watcher = watch(&[target.pid()], &[]);
        for order in ["map 11", "unmap 3 2", "unmap 10 1", "map-fixed 6 2", "map-fixed 3 1"] {
            target.ask(order);
        }
        let report = report(watcher);
        check_eq!(pages_of(&report, &target, "map", "leak_mmap"), 6, "{name}: 11 - 2 - 1 - 2");
        check_eq!(pages_of(&report, &target, "map", "leak_fixed"), 3, "{name}: 2 + 1");
        agrees(&report, &target)?;
        check_eq!(report.heap(target.pid()), Amount::default(), "{name}: no block of the heap");
    }
    PASS
}

fn resized() -> Outcome {
    for orders in [&["map 5", "block", "remap 23"][..], &["map 23", "remap 5"]] {
        let mut target = Target::start("glibc");
        let watcher = watch(&[target.pid()], &[]);
        for order in orders {
            target.ask(order);
        }
        let report = report(watcher);
        let mapped = report.sum(target.pid(), "map", |row| passes(row, "order_remap"));
        let before = report.sum(target.pid(), "map", |row| passes(row, "order_map"));
        // Whether what was there before changes hands is the kernel's affair: it may have moved.
        check_eq!(mapped.bytes + before.bytes, target.account.map_bytes, "{orders:?}");
        check_eq!(number(report.total(target.pid()), "map_bytes"), target.account.map_bytes, "all");
    }
    PASS
}

fn reserved() -> Outcome {
    let mut target = Target::start("glibc");
    let watcher = watch(&[target.pid()], &[]);
    target.ask("reserve 101");
    let first = report(watcher);
    check_eq!(pages_of(&first, &target, "reserved", "leak_reserve"), 101, "all of it");
    agrees(&first, &target)?;

    let mut target = Target::start("glibc");
    let watcher = watch(&[target.pid()], &[]);
    for order in ["reserve 101", "commit 10 20", "decommit 10 5"] {
        target.ask(order);
    }
    agrees(&report(watcher), &target)
}

fn files() -> Outcome {
    let mut target = Target::start("glibc");
    let watcher = watch(&[target.pid()], &[]);
    target.ask("map-file 7");
    target.ask("unmap 1 1");
    target.ask("map-fixed 0 1");
    let report = report(watcher);
    check_eq!(pages_of(&report, &target, "file", "leak_file"), 5, "7 - 1 - 1");
    check_eq!(pages_of(&report, &target, "map", "leak_fixed"), 1, "over the file");
    agrees(&report, &target)
}

fn the_break() -> Outcome {
    // musl lets nobody else move it.
    for name in ["glibc", "glibc-static"] {
        let mut target = Target::start(name);
        let watcher = watch(&[target.pid()], &[]);
        target.ask("sbrk 409600");
        target.ask("sbrk -40960");
        let report = report(watcher);
        check_eq!(pages_of(&report, &target, "map", "leak_sbrk"), 90, "{name}");
        agrees(&report, &target)?;
    }
    PASS
}

fn allocators() -> Outcome {
    for name in [
        "glibc",
        "glibc-static",
        "musl",
        "musl-static",
        "jemalloc",
        "jemalloc-inside",
        "tcmalloc",
        "mimalloc",
    ] {
        let mut target = Target::start(name);
        let watcher = watch(&[target.pid()], &[]);
        // From the allocator's pools, and each a mapping of its own where it does that.
        target.ask("malloc 10007 1009");
        target.ask("malloc 3 67108864");
        target.ask("realloc 1 100000000");
        target.ask("free-last 1");
        let report = report(watcher);
        report.agrees(target.pid(), target.account)?;
        for kind in ["map", "file", "reserved"] {
            let rows: Vec<&Value> = report.of_kind(target.pid(), kind).collect();
            check_eq!(rows.len(), 0, "{name}: {rows:?}");
        }
        agrees(&report, &target)?;
        let own = number(report.total(target.pid()), "allocator_bytes");
        check_eq!(own >= target.account.bytes, true, "{name}: {own} bytes are the allocator's");
    }
    PASS
}

fn all_unmapped() -> Outcome {
    let mut target = Target::start("glibc");
    let watcher = watch(&[target.pid()], &[]);
    for order in ["map 11", "unmap 3 2", "map-file 7", "reserve 101", "commit 3 5", "unmap-all"] {
        target.ask(order);
    }
    let report = report(watcher);
    check_eq!(target.account.map_bytes, 0, "unmapped");
    agrees(&report, &target)
}

fn without_allocator() -> Outcome {
    let mut target = Target::start("glibc-stripped");
    let watcher = watch(&[target.pid()], &["--mappings"]);
    target.ask("map 11");
    target.ask("unmap 3 2");
    let report = report(watcher);
    check_eq!(number(report.total(target.pid()), "map_bytes"), 9 * page(), "11 - 2");
    PASS
}

//! memleak and many threads, many blocks and many calls.

use libtest_mimic::Trial;

use crate::check;
use crate::check_eq;
use crate::common::Outcome;
use crate::common::PASS;
use crate::common::kernels::is_guest;
use crate::common::leak::Amount;
use crate::common::leak::number;
use crate::common::leak::report;
use crate::common::leak::watch;
use crate::common::target::Target;
use crate::common::test;

pub fn tests() -> Vec<Trial> {
    let mut tests: Vec<Trial> = [1, 2, 32]
        .into_iter()
        .map(|threads| {
            test(format!("memleak: {threads} threads, exactly"), move || many_threads(threads))
        })
        .collect();
    tests.extend([
        test("memleak: threads that free each other's blocks, in each allocator", cross_free),
        test("memleak: threads that start and end under the watcher", spawned),
        test("memleak: 50 021 short-lived blocks leave nothing", short_lived),
    ]);
    // Each call of an emulated processor's program takes long.
    let many: u64 = if is_guest() { 100_003 } else { 1_000_003 };
    tests.push(test(format!("memleak: {many} live blocks"), move || live_blocks(many)));
    tests
}

fn many_threads(threads: u64) -> Outcome {
    let mut target = Target::start("glibc");
    target.ask(&format!("pool {threads}"));
    let before = target.account;
    let watcher = watch(&[target.pid()], &[]);
    target.ask("threads 331 64");
    let account = target.account;
    let first = report(watcher);
    check_eq!(first.called_by(target.pid(), "leak_thread"), Amount::of(threads * 166, 64), "held");
    first.agrees(target.pid(), account)?;
    let total = first.total(target.pid());
    check_eq!(number(total, "seen_count"), account.seen_blocks - before.seen_blocks, "{total}");

    target.ask("free-all");
    let watcher = watch(&[target.pid()], &[]);
    target.ask("threads 331 64");
    target.ask("cross-free");
    report(watcher).agrees(target.pid(), target.account)
}

fn cross_free() -> Outcome {
    for name in ["glibc", "musl", "jemalloc", "tcmalloc", "mimalloc"] {
        let mut target = Target::start(name);
        target.ask("pool 7");
        let watcher = watch(&[target.pid()], &[]);
        target.ask("exchange 1009 80");
        let report = report(watcher);
        let held = report.called_by(target.pid(), "leak_exchange");
        check_eq!(held, Amount::of(7, 80), "{name}: one block a thread remains");
        report.agrees(target.pid(), target.account)?;
        check_eq!(number(report.total(target.pid()), "seen_count"), 7 * 1009, "{name}");
    }
    PASS
}

fn spawned() -> Outcome {
    let mut target = Target::start("glibc");
    let watcher = watch(&[target.pid()], &[]);
    target.ask("spawn 23 331 64");
    let report = report(watcher);
    check_eq!(report.called_by(target.pid(), "leak_thread"), Amount::of(23 * 166, 64), "held");
    let total = report.total(target.pid());
    check_eq!(number(total, "lost_count") + number(total, "missed_frees"), 0, "{total}");
    PASS
}

fn short_lived() -> Outcome {
    let mut target = Target::start("glibc");
    let watcher = watch(&[target.pid()], &[]);
    target.ask("churn 50021 48");
    let report = report(watcher);
    report.agrees(target.pid(), target.account)?;
    let total = report.total(target.pid());
    check_eq!(number(total, "seen_count"), 50_021, "{total}");
    check_eq!(number(total, "seen_bytes"), 50_021 * 48, "{total}");
    PASS
}

fn live_blocks(many: u64) -> Outcome {
    let mut target = Target::start("glibc");
    let watcher = watch(&[target.pid()], &[]);
    target.ask(&format!("malloc {many} 24"));
    target.ask("free 3");
    let report = report(watcher);
    check_eq!(report.called_by(target.pid(), "leak_malloc"), Amount::of(many - 3, 24), "held");
    report.agrees(target.pid(), target.account)?;
    check!(number(report.total(target.pid()), "tracked_count") >= many - 3, "tracked");
    PASS
}

//! That the targets are what the tests of memleak take them for: their
//! accounts are right, by their allocators' and the kernel's own figures.

use std::fs;
use std::process::Command;

use libtest_mimic::Trial;

use crate::check;
use crate::check_eq;
use crate::common::Outcome;
use crate::common::PASS;
use crate::common::target::Target;
use crate::common::target::program;
use crate::common::test;

/// Those that obey; the others are there to be refused, and obey too.
pub const ALL: [&str; 20] = [
    "glibc",
    "glibc-nofp",
    "glibc-static",
    "glibc-stripped",
    "constructor",
    "musl",
    "musl-static",
    "jemalloc",
    "jemalloc-inside",
    "tcmalloc",
    "mimalloc",
    "cxx",
    "cxx-jemalloc",
    "cxx-tcmalloc",
    "cxx-mimalloc",
    "wrapped",
    "prefixed",
    "usdt",
    "go",
    "jvm",
];

pub fn tests() -> Vec<Trial> {
    vec![
        test("memleak targets: what each says of its heap is right", heaps),
        test("memleak targets: what each says of its threads is right", threads),
        test("memleak targets: what each says of its mappings is the kernel's figure", mappings),
        test("memleak targets: processes and libraries", processes),
        test("memleak targets: every form of new and delete", operators),
    ]
}

/// Order, and by how many bytes and blocks it changes what is held, and how
/// many were seen. 0 bytes and 1 block per `realloc-zero` where that frees not.
const HEAP: [(&str, i64, i64, u64); 31] = [
    ("malloc 23 101", 2323, 23, 23),
    ("malloc-fail 3", 0, 0, 0),
    ("calloc 7 33", 693, 7, 7),
    ("calloc-overflow 3", 0, 0, 0),
    ("realloc-null 5 19", 95, 5, 5),
    ("realloc 5 4099", 5 * (4099 - 19), 0, 5),
    ("realloc 3 7", 3 * (7 - 4099), 0, 3),
    ("realloc-fail 5", 0, 0, 0),
    ("memalign 13 100", 1300, 13, 13),
    ("posix_memalign 11 100", 1100, 11, 11),
    ("posix_memalign-fail 2", 0, 0, 0),
    ("aligned_alloc 7 128", 896, 7, 7),
    ("valloc 3 5003", 15_009, 3, 3),
    ("pvalloc 3 5003", 15_009, 3, 3),
    ("reallocarray 5 11", 165, 5, 5),
    ("reallocarray-overflow 2", 0, 0, 0),
    ("strdup 31 29", 899, 31, 31),
    ("churn 101 48", 0, 0, 101),
    ("reuse 37 64", 37 * 64, 37, 74),
    ("stacks 1024 24", 1024 * 24, 1024, 1024),
    ("deep 199 24", 24, 1, 1),
    ("free-null 3", 0, 0, 0),
    ("verify", 0, 0, 0),
    ("free 7", -707, -7, 0),
    ("free-last 2", -48, -2, 0),
    ("new 7 53", 371, 7, 7),
    ("new-throws 3", 0, 0, 0),
    ("new-fails 3", 0, 0, 0),
    ("new-array-aligned-nothrow 7 53", 371, 7, 7),
    ("last", 0, 0, 0),
    ("verify", 0, 0, 0),
];

fn heaps() -> Outcome {
    for name in ALL {
        let mut target = Target::start(name);
        let at_start = target.account;
        let (bytes, blocks) = if name == "constructor" { (2323, 23) } else { (0, 0) };
        check_eq!((at_start.bytes, at_start.blocks), (bytes, blocks), "{name} at its start");
        let mut known = 0;
        for (order, bytes, blocks, seen) in HEAP {
            let before = target.account;
            if order.starts_with("new-throws") && !throws(name) {
                continue;
            }
            let Some(after) = target.try_ask(order) else { continue };
            let changes = (
                after.bytes.wrapping_sub(before.bytes).cast_signed(),
                after.blocks.wrapping_sub(before.blocks).cast_signed(),
                after.seen_blocks - before.seen_blocks,
            );
            check_eq!(changes, (bytes, blocks, seen), "{name}: {order}");
            known += 1;
        }
        // The smallest set of functions is that of the allocator of its own.
        check!(known >= 18, "{name} knows only {known} orders");
        let sizes = target.ask("verify");
        let has_sizes = !matches!(name, "prefixed" | "usdt");
        check!(!has_sizes || sizes.extra >= sizes.bytes, "{name}: {sizes:?}");
        let freed = target.ask("realloc-zero 3");
        check_eq!(freed.bytes, sizes.bytes - 3 * last_sizes(name), "{name}: realloc to 0");
        let end = target.ask("free-all");
        check_eq!((end.bytes, end.blocks), (0, 0), "{name} after freeing all");
        target.end();
    }
    PASS
}

/// The size of the blocks that [`HEAP`] leaves last.
fn last_sizes(name: &str) -> u64 {
    if name.starts_with("cxx") { 53 } else { 24 }
}

fn threads() -> Outcome {
    for name in ALL {
        let mut target = Target::start(name);
        let start = target.account;
        target.ask("pool 7");
        let half = target.ask("threads 331 64");
        check_eq!(half.blocks - start.blocks, 7 * 166, "{name}: 331 blocks less every second one");
        check_eq!(half.bytes - start.bytes, 7 * 166 * 64, "{name}");
        check_eq!(half.seen_blocks - start.seen_blocks, 7 * 331, "{name}");
        let none = target.ask("cross-free");
        check_eq!((none.bytes, none.blocks), (start.bytes, start.blocks), "{name}: cross-free");
        let slots = target.ask("exchange 331 80");
        check_eq!(slots.blocks - start.blocks, 7, "{name}: one for each thread");
        check_eq!(slots.seen_blocks - none.seen_blocks, 7 * 331, "{name}");
        target.ask("background 64");
        target.ask("stop");
        target.ask("verify");
        let end = target.ask("free-all");
        check_eq!((end.bytes, end.blocks), (0, 0), "{name} after freeing all");
        target.end();

        let mut target = Target::start(name);
        let start = target.account;
        let half = target.ask("spawn 7 331 64");
        check_eq!(half.blocks - start.blocks, 7 * 166, "{name}: new threads");
        target.end();
    }
    PASS
}

/// What the kernel has mapped in a range: anonymous, of a file, reserved.
fn mapped(pid: u32, from: u64, bytes: u64) -> Result<[u64; 3], std::io::Error> {
    let text = fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let mut found = [0; 3];
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        let (start, end) = words[0].split_once('-').expect("a range");
        let start = u64::from_str_radix(start, 16).expect("hexadecimal").max(from);
        let end = u64::from_str_radix(end, 16).expect("hexadecimal").min(from + bytes);
        if start < end {
            let reserved = usize::from(words[1].starts_with('-')) * 2;
            found[if words[4] == "0" { reserved } else { 1 }] += end - start;
        }
    }
    Ok(found)
}

/// Orders of which each acts on one mapping until `unmap-all`.
const MAPPINGS: [&str; 21] = [
    "map 11",
    "touch 0 11",
    "unmap 3 2",
    "unmap 10 1",
    "map-fixed 6 2",
    "map-fixed 3 1",
    "unmap-all",
    "map 5",
    "block",
    "remap 23",
    "touch 5 18",
    "remap 3",
    "unmap-all",
    "map-file 3",
    "unmap 1 1",
    "map-fixed 0 1",
    "unmap-all",
    "reserve 101",
    "commit 10 20",
    "decommit 10 5",
    "unmap-all",
];

fn mappings() -> Outcome {
    let page = rustix::param::page_size() as u64;
    for name in ["glibc", "glibc-static", "musl", "musl-static"] {
        let mut target = Target::start(name);
        for order in MAPPINGS {
            let held = target.ask(order);
            let held = [held.map_bytes, held.file_bytes, held.reserved_bytes];
            if order == "unmap-all" {
                check_eq!(held, [0; 3], "{name}: {order}");
                continue;
            }
            let (at, pages) = (target.ask("region").extra, target.ask("pages").extra);
            let kernel = mapped(target.pid(), at, pages * page)?;
            check_eq!(held, kernel, "{name}: {order}");
            check!(held != [0; 3], "{name}: {order}");
        }
        // musl has no sbrk for others.
        if !name.starts_with("musl") {
            check_eq!(target.ask("sbrk 81920").map_bytes, 81_920, "{name}");
            check_eq!(target.ask("sbrk -40960").map_bytes, 40_960, "{name}");
        }
        target.end();
    }
    PASS
}

fn processes() -> Outcome {
    for name in ["glibc", "glibc-static", "musl", "musl-static", "jemalloc", "tcmalloc"] {
        let mut target = Target::start(name);
        let held = target.ask("malloc 23 101");
        for order in ["fork", "fork-leak 7 64", "fork-stay 7 64", "reap"] {
            let after = target.ask(order);
            check_eq!((after.bytes, after.blocks), (held.bytes, held.blocks), "{name}: {order}");
        }
        check_eq!(target.ask("exec").blocks, 0, "{name}: a new program");
        check_eq!(target.ask("malloc 7 53").bytes, 371, "{name}: after exec");
        if target.try_ask("dlopen").is_some() {
            check_eq!(target.ask("plugin 19 31").bytes, 371 + 589, "{name}: a library");
            check_eq!(target.ask("dlclose").blocks, 26, "{name}: its blocks stay");
            target.ask("verify");
        }
        if target.try_ask("dlopen-allocator").is_some() {
            check_eq!(target.ask("other 17 61").blocks, 26 + 17, "{name}: another allocator");
        }
        check_eq!(target.ask("free-all").blocks, 0, "{name}");
        target.end();
    }
    let done = Command::new(program("constructor")).args(["malloc 7 53", "exit 7"]).output()?;
    check_eq!(done.status.code(), Some(7), "orders as arguments");
    check_eq!(done.stdout, b"", "are obeyed in silence");
    PASS
}

/// mimalloc's library is written in C, and ends the program instead.
pub fn throws(name: &str) -> bool {
    name != "cxx-mimalloc"
}

/// The forms of `new`, as orders and as callers.
pub const FORMS: [&str; 8] = [
    "new",
    "new-array",
    "new-nothrow",
    "new-array-nothrow",
    "new-aligned",
    "new-array-aligned",
    "new-aligned-nothrow",
    "new-array-aligned-nothrow",
];

fn operators() -> Outcome {
    for name in ["cxx", "cxx-jemalloc", "cxx-tcmalloc", "cxx-mimalloc"] {
        let mut target = Target::start(name);
        for (i, form) in (1..).zip(FORMS) {
            let held = target.ask(&format!("{form} 23 101"));
            check_eq!((held.blocks, held.bytes), (23 * i, 2323 * i), "{name}: {form}");
        }
        if throws(name) {
            check_eq!(target.ask("new-throws 3").extra, 3, "{name}: caught as often");
        }
        target.ask("verify");
        check_eq!(target.ask("free-all").blocks, 0, "{name}: every form of delete");
        target.end();
    }
    PASS
}

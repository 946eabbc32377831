//! pages against smaps and pagemap, of processes that are at rest.

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::fs;
use std::io::Read as _;
use std::os::unix::fs::FileExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::process::Stdio;

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
use crate::common::oracle;
use crate::common::oracle::page_kib;
use crate::common::test;
use crate::common::watcher::command;
use crate::common::watcher::rows;
use crate::common::watcher::run;
use crate::common::worker::Worker;

const SCAN: &str = "ioctl:PAGEMAP_SCAN";
const READ: &str = "proc:pagemap";

/// A user without any right.
const NOBODY: u32 = 65534;

pub fn tests() -> Vec<Trial> {
    let mut tests = Vec::new();
    for hook in [SCAN, READ] {
        let mut add = |name: &str, body: fn(&'static str) -> Outcome| {
            tests.push(test(format!("pages: {name}, {hook}"), move || on(hook, body)));
        };
        add("every sort of mapping is as in smaps", sorts);
        add("huge pages", huge_pages);
        add("huge pages of shared memory", huge_shared);
        add("swapped out, shared memory too", swapped);
        add("hugetlb is in memory and not in the resident set", hugetlb);
        add("4 GiB with a few pages", sparse);
        add("--physical is what pagemap says", physical);
        add("without rights: everything but where it is", few_rights);
        add("a target that ends meanwhile", ends);
    }
    tests.extend([
        test("pages: guard regions are holes", guards),
        test("pages: each page is on the node it was bound to", nodes),
        test("pages: a range, a name, a sum", narrowed),
        test("pages: what is no process with memory is refused", refused),
        test("pages: a process whose first thread has ended", left_behind),
        test("pages: mappings that change meanwhile are said", changes),
        test("pages: --budget ends a run", budget),
    ]);
    tests
}

fn on(hook: &'static str, body: fn(&'static str) -> Outcome) -> Outcome {
    let own = std::process::id().to_string();
    let usable = run(&["pages", &own, "--summary", "--hook", hook]).status.success();
    // Every kernel has the file.
    if hook == READ {
        check!(usable, "{hook} cannot be used");
        return body(hook);
    }
    if_supported("pagemap_scan", usable, || body(hook))
}

/// One mapping of `/proc/PID/smaps`, in pages; values by name.
type Smaps = BTreeMap<u64, HashMap<String, u64>>;

fn smaps(pid: u32) -> Smaps {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps")).expect("smaps");
    let mut all = Smaps::new();
    let mut start = 0;
    for line in text.lines() {
        let first = line.split_whitespace().next().unwrap_or_default();
        let address = first.split_once('-').and_then(|(a, _)| u64::from_str_radix(a, 16).ok());
        if let Some(address) = address {
            start = address;
        } else if let Some(kib) = line.strip_suffix(" kB") {
            let (name, kib) = kib.split_once(':').expect("a name");
            let pages = kib.trim().parse::<u64>().expect("a number") / page_kib();
            all.entry(start).or_default().insert(name.to_owned(), pages);
        }
    }
    all
}

/// The rows of a run in pages, and what smaps said before and after it, which
/// was the same.
fn settled(pid: u32, args: &[&str]) -> Result<(Vec<Value>, Smaps), Failed> {
    let id = pid.to_string();
    let mut before = smaps(pid);
    for _ in 0..20 {
        let rows = rows(&[&["pages", &id, "--unit", "pages"], args].concat());
        let after = smaps(pid);
        if after == before {
            return Ok((rows, after));
        }
        before = after;
    }
    Err("smaps never came to rest".into())
}

fn number(row: &Value, key: &str) -> u64 {
    row[key].as_u64().unwrap_or_else(|| panic!("no `{key}` in {row}"))
}

/// `rss`, `swap`, `not_present` and `not_mapped`.
fn split(row: &Value) -> [u64; 4] {
    ["rss_pages", "swap_pages", "not_present_pages", "not_mapped_pages"].map(|key| number(row, key))
}

fn of_kind<'rows>(rows: &'rows [Value], kind: &str) -> Vec<&'rows Value> {
    rows.iter().filter(|row| row["kind"] == kind).collect()
}

fn at<'rows>(rows: &'rows [Value], address: &str) -> &'rows Value {
    let found = rows.iter().find(|row| row["kind"] == "mapping" && row["start"] == *address);
    found.unwrap_or_else(|| panic!("no mapping at {address}"))
}

/// Every mapping is there once and says what smaps says. `dirty` is compared
/// where the kernel shows it.
fn agree(rows: &[Value], smaps: &Smaps) -> Outcome {
    let mappings = of_kind(rows, "mapping");
    check_eq!(mappings.len(), smaps.len(), "mappings");
    let mut sum = [0; 5];
    for row in &mappings {
        let start = u64::from_str_radix(row["start"].as_str().ok_or("no start")?, 16)?;
        let known = smaps.get(&start).ok_or_else(|| format!("not in smaps: {row}"))?;
        let of = |names: &[&str]| names.iter().map(|name| known[*name]).sum::<u64>();
        let hugetlb = of(&["Private_Hugetlb", "Shared_Hugetlb"]);
        let parts = split(row);
        check_eq!(number(row, "total_pages"), of(&["Size"]), "TOTAL of {row}");
        check_eq!(parts.iter().sum::<u64>(), of(&["Size"]), "the four parts of {row}");
        check_eq!(parts[0], of(&["Rss"]) + hugetlb, "RSS of {row}: {known:?}");
        check_eq!(parts[1], of(&["Swap"]), "SWAP of {row}: {known:?}");
        let huge = of(&["AnonHugePages", "ShmemPmdMapped", "FilePmdMapped"]) + hugetlb;
        check_eq!(number(row, "huge_pages"), huge, "HUGE of {row}: {known:?}");
        let dirty = of(&["Private_Dirty", "Shared_Dirty"]);
        check_eq!(number(row, "dirty_pages"), dirty, "DIRTY of {row}: {known:?}");
        check!(number(row, "zero_pages") <= parts[2] + parts[3], "ZERO of {row}");
        for (sum, part) in sum.iter_mut().zip(parts.into_iter().chain([of(&["Size"])])) {
            *sum += part;
        }
    }
    let totals = of_kind(rows, "total");
    check_eq!(totals.len(), 1, "one total");
    check_eq!(split(totals[0]), sum[..4], "the total");
    check_eq!(number(totals[0], "total_pages"), sum[4], "the total");
    PASS
}

fn with_hook<'args>(hook: &'args str, more: &[&'args str]) -> Vec<&'args str> {
    [&["--hook", hook], more].concat()
}

fn sorts(hook: &'static str) -> Outcome {
    let mut worker = Worker::start();
    worker.ask("stack 37");
    // The order, and RSS, NOTPRESENT, NOTMAPPED and DIRTY of the mapping.
    let wanted = [
        ("map-anon 1009 499", [499, 510, 0, 499]),
        ("map-zero 211", [0, 211, 0, 0]),
        ("map-none 307 101", [101, 0, 206, 101]),
        ("map-short 223 109", [110, 0, 113, 110]),
        ("map-memfd 127 67", [67, 60, 0, 67]),
        ("map-shared 131 71", [71, 60, 0, 71]),
        ("map-sysv 137 73", [73, 64, 0, 73]),
        ("map-cow 139 79", [139, 0, 0, 139]),
    ];
    let places = wanted.map(|(order, _)| worker.ask(order));
    // Of a file on a disk others may be dirty, or be written back meanwhile.
    let file = worker.ask("map-file 149 83");
    let (rows, smaps) = settled(worker.pid(), &with_hook(hook, &[]))?;
    agree(&rows, &smaps)?;
    for ((order, [rss, not_present, not_mapped, dirty]), place) in wanted.iter().zip(&places) {
        let row = at(&rows, place);
        check_eq!(split(row), [*rss, 0, *not_present, *not_mapped], "{order}: {row}");
        check_eq!(number(row, "dirty_pages"), *dirty, "{order}: {row}");
    }
    check_eq!(number(at(&rows, &places[1]), "zero_pages"), 211, "the zero page");
    check_eq!(split(at(&rows, &file)), [149, 0, 0, 0], "the file");
    // smaps counts [vsyscall], which is no memory of the process.
    let status = oracle::status(worker.pid()).ok_or("the worker has gone")?;
    let gate = rows.iter().filter(|row| row["name"] == "[vsyscall]").count() as u64;
    let total = number(of_kind(&rows, "total")[0], "total_pages");
    check_eq!((total - gate) * page_kib(), status["VmSize"], "VmSize");
    let figures = rows.iter().find(|row| row["mappings"].is_u64()).ok_or("no figures")?;
    check_eq!(number(figures, "rss_kib"), oracle::smaps_rollup(worker.pid()).ok_or("gone")?["Rss"], "Rss");
    check_eq!(number(figures, "size_pages"), total, "{figures}");
    check_eq!(number(figures, "size_kib"), total * page_kib(), "{figures}");
    worker.end();
    PASS
}

fn huge_pages(hook: &'static str) -> Outcome {
    let had = setting("enabled");
    if is_guest() {
        set("enabled", "madvise")?;
    }
    let outcome = if_supported("thp", !["", "never"].contains(&&*setting("enabled")), || {
        let mut worker = Worker::start();
        let place = worker.ask("map-huge 5 3");
        let (rows, smaps) = settled(worker.pid(), &with_hook(hook, &[]))?;
        agree(&rows, &smaps)?;
        let row = at(&rows, &place);
        // Pages that were read are the huge zero page, or the small one where
        // that is switched off.
        check_eq!(split(row), [3 * 512, 0, 2 * 512, 0], "{row}");
        check_eq!(number(row, "zero_pages"), 2 * 512, "{row}");
        check_eq!(number(row, "huge_pages"), 3 * 512, "{row}");
        worker.end();
        PASS
    });
    if is_guest() {
        set("enabled", &had)?;
    }
    outcome
}

/// What is chosen in a file for huge pages; empty: there is none.
fn setting(name: &str) -> String {
    let text = fs::read_to_string(format!("/sys/kernel/mm/transparent_hugepage/{name}"));
    text.unwrap_or_default().split(['[', ']']).nth(1).unwrap_or_default().to_owned()
}

fn set(name: &str, word: &str) -> std::io::Result<()> {
    fs::write(format!("/sys/kernel/mm/transparent_hugepage/{name}"), word)
}

/// Shared memory in huge pages.
fn huge_shared(hook: &'static str) -> Outcome {
    let had = setting("shmem_enabled");
    let on = is_guest() && set("shmem_enabled", "force").is_ok();
    let outcome = if_supported("thp_shmem", on, || {
        let mut worker = Worker::start();
        let place = worker.ask("map-shared 2048 1024");
        let (rows, smaps) = settled(worker.pid(), &with_hook(hook, &[]))?;
        agree(&rows, &smaps)?;
        let row = at(&rows, &place);
        check!(number(row, "huge_pages") > 0, "no huge page was given: {row}");
        check_eq!(number(row, "rss_pages") % 512, 0, "{row}");
        worker.end();
        PASS
    });
    if on {
        set("shmem_enabled", &had)?;
    }
    outcome
}

fn swapped(hook: &'static str) -> Outcome {
    if_supported("zram", is_guest() && zram_swap(), || {
        let mut worker = Worker::start();
        let mut places = Vec::new();
        for (order, out) in [
            ("map-anon 1009 499", "swap-out 251"),
            ("map-memfd 521 263", "swap-out 131"),
            ("map-sysv 257 127", "swap-out 61"),
            ("map-shared 263 137", "swap-out 59"),
        ] {
            places.push(worker.ask(order));
            worker.ask(out);
        }
        let (rows, smaps) = settled(worker.pid(), &with_hook(hook, &[]))?;
        agree(&rows, &smaps)?;
        let parts: Vec<[u64; 4]> = places.iter().map(|place| split(at(&rows, place))).collect();
        check_eq!(
            parts,
            [[248, 251, 510, 0], [132, 131, 258, 0], [66, 61, 130, 0], [78, 59, 126, 0]],
            "in memory, swapped out, never there"
        );
        worker.end();
        PASS
    })
}

fn hugetlb(hook: &'static str) -> Outcome {
    let pool = Path::new("/proc/sys/vm/nr_hugepages");
    let had = fs::read_to_string(pool).unwrap_or_default();
    let filled = is_guest() && fs::write(pool, "7").is_ok();
    let seven = || fs::read_to_string(pool).is_ok_and(|text| text.trim() == "7");
    let outcome = if_supported("hugetlb", filled && seven(), || {
        let mut worker = Worker::start();
        let place = worker.ask("map-hugetlb 5 3");
        let (rows, smaps) = settled(worker.pid(), &with_hook(hook, &[]))?;
        agree(&rows, &smaps)?;
        let row = at(&rows, &place);
        check_eq!(split(row), [3 * 512, 0, 2 * 512, 0], "{row}");
        check_eq!(number(row, "huge_pages"), 3 * 512, "{row}");
        check_eq!(number(of_kind(&rows, "hugetlb")[0], "rss_pages"), 3 * 512, "its sum");
        let figures = rows.iter().find(|row| row["mappings"].is_u64()).ok_or("no figures")?;
        check_eq!(number(figures, "hugetlb_pages"), 3 * 512, "{figures}");
        let rollup = oracle::smaps_rollup(worker.pid()).ok_or("gone")?;
        check_eq!(number(figures, "rss_kib"), rollup["Rss"], "Rss without hugetlb");
        worker.end();
        PASS
    });
    if filled {
        fs::write(pool, had.trim())?;
    }
    outcome
}

fn sparse(hook: &'static str) -> Outcome {
    let mut worker = Worker::start();
    let place = worker.ask("map-sparse 4096 1013");
    let (rows, smaps) = settled(worker.pid(), &with_hook(hook, &[]))?;
    agree(&rows, &smaps)?;
    let pages = (4096 << 10) / page_kib();
    let row = at(&rows, &place);
    check_eq!(split(row), [1013, 0, pages - 1013, 0], "{row}");
    worker.end();
    PASS
}

/// The entries of pagemap of these addresses.
fn entries(pid: u32, start: u64, end: u64) -> std::io::Result<Vec<u64>> {
    let page = page_kib() * 1024;
    let mut bytes = vec![0; usize::try_from((end - start) / page).expect("fits") * 8];
    // There are none for [vsyscall].
    let file = fs::File::open(format!("/proc/{pid}/pagemap"))?;
    let read = file.read_at(&mut bytes, start / page * 8)?;
    assert!(read == bytes.len() || start >= 1 << 63, "pagemap of {start:x}");
    let (words, _) = bytes.as_chunks::<8>();
    Ok(words.iter().map(|word| u64::from_ne_bytes(*word)).collect())
}

/// Where each page of a process is, by its own pagemap.
fn frames(pid: u32) -> Result<BTreeMap<u64, u64>, Failed> {
    let page = page_kib() * 1024;
    let maps = fs::read_to_string(format!("/proc/{pid}/maps"))?;
    let mut frames = BTreeMap::new();
    for line in maps.lines() {
        let (start, rest) = line.split_once('-').ok_or("a range")?;
        let end = rest.split(' ').next().ok_or("an end")?;
        let (start, end) = (u64::from_str_radix(start, 16)?, u64::from_str_radix(end, 16)?);
        let found = (0..).zip(entries(pid, start, end)?).filter(|(_, entry)| entry >> 63 == 1);
        frames.extend(found.map(|(n, entry)| (start + n * page, entry & ((1 << 55) - 1))));
    }
    Ok(frames)
}

fn physical(hook: &'static str) -> Outcome {
    let mut worker = Worker::start();
    for order in ["map-anon 1009 499", "map-zero 211", "map-cow 139 79", "map-memfd 127 67"] {
        worker.ask(order);
    }
    let zero = worker.ask("map-zero 307");
    let place = worker.ask("map-anon 13 11");
    let pid = worker.pid().to_string();
    let page = page_kib() * 1024;
    let hex = |row: &Value, key: &str| {
        u64::from_str_radix(row[key].as_str().unwrap_or_default(), 16)
            .map_err(|_| format!("no `{key}` in {row}"))
    };
    let before = frames(worker.pid())?;
    let rows = rows(&["pages", &pid, "--physical", "--unit", "pages", "--hook", hook]);
    check_eq!(frames(worker.pid())?, before, "pages moved meanwhile");
    let mut seen = BTreeMap::new();
    for row in &rows {
        check_eq!(row["kind"].as_str(), Some("extent"), "{row}");
        let (start, end) = (hex(row, "start")?, hex(row, "end")?);
        let (from, to) = (hex(row, "physical")?, hex(row, "physical_end")?);
        check_eq!(number(row, "size_pages"), (end - start) / page, "{row}");
        let flags = row["flags"].as_str().ok_or("no flags")?;
        let is_zero = flags.split(',').any(|flag| flag == "zero_page");
        check!(to - from == if is_zero { page } else { end - start }, "{row}");
        for (n, address) in (0..).zip((start..end).step_by(page as usize)) {
            let frame = from / page + if is_zero { 0 } else { n };
            check!(seen.insert(address, frame).is_none(), "{address:x} twice");
        }
    }
    check_eq!(seen.len(), before.len(), "pages");
    check!(seen == before, "not the frames of pagemap");
    let of = |place: &str| -> Vec<&Value> {
        let start = u64::from_str_radix(place, 16).expect("an address");
        let inside = |row: &&Value| hex(row, "start").is_ok_and(|at| (start..start + (1 << 20)).contains(&at));
        rows.iter().filter(inside).collect()
    };
    // However often, it is the same page: one row.
    let extents = of(&zero);
    check!(extents.iter().any(|row| number(row, "size_pages") == 307), "{extents:?}");
    for row in of(&place).into_iter().take(1) {
        let flags: Vec<&str> = row["flags"].as_str().unwrap_or_default().split(',').collect();
        for flag in ["mmap", "anonymous", "swapbacked"] {
            check!(flags.contains(&flag), "no `{flag}` in {row}");
        }
    }
    worker.end();
    PASS
}

/// A copy of a program that anybody may run.
fn for_anybody(program: &Path, name: &str) -> PathBuf {
    let copy = std::env::temp_dir().join(format!("{name}-{}", std::process::id()));
    fs::copy(program, &copy).expect("a copy");
    fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).expect("permissions");
    copy
}

fn few_rights(hook: &'static str) -> Outcome {
    let program = for_anybody(&std::env::current_exe()?, "pages-worker");
    let watcher = for_anybody(&crate::common::watcher::binary(), "pages-watcher");
    let (mut worker, _) =
        Worker::spawn(Command::new(&program).arg("--worker").current_dir("/").uid(NOBODY).gid(NOBODY));
    let run = |args: &[&str]| {
        let mut command = Command::new(&watcher);
        command.args(args).current_dir("/").uid(NOBODY).gid(NOBODY).stdin(Stdio::null());
        command.output().expect("running mem_watcher")
    };
    let anon = worker.ask("map-anon 1009 499");
    let none = worker.ask("map-none 307 101");
    let memfd = worker.ask("map-memfd 127 67");
    let pid = worker.pid().to_string();
    let smaps = smaps(worker.pid());
    let output = run(&["pages", &pid, "--unit", "pages", "-o", "json", "--hook", hook]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    let refused = run(&["pages", &pid, "--physical", "--hook", hook]);
    let other = run(&["pages", "1"]);
    worker.end();
    fs::remove_file(program)?;
    fs::remove_file(watcher)?;
    check_eq!(output.status.code(), Some(0), "{said}");
    check!(said.contains("without CAP_SYS_ADMIN"), "says nothing: {said}");
    let rows: Vec<Value> = String::from_utf8(output.stdout)?
        .lines()
        .map(serde_json::from_str)
        .collect::<Result<_, _>>()?;
    for row in of_kind(&rows, "mapping") {
        let start = u64::from_str_radix(row["start"].as_str().ok_or("no start")?, 16)?;
        let known = &smaps[&start];
        check_eq!(number(row, "total_pages"), known["Size"], "{row}");
        check_eq!(number(row, "rss_pages"), known["Rss"], "{row}");
        // Unknown, or right.
        let dirty = known["Private_Dirty"] + known["Shared_Dirty"];
        check!(row["dirty_pages"].is_null() || row["dirty_pages"] == dirty, "{row}: {known:?}");
    }
    check_eq!(split(at(&rows, &anon)), [499, 0, 510, 0], "anonymous");
    check_eq!(number(at(&rows, &anon), "dirty_pages"), 499, "anonymous");
    check_eq!(split(at(&rows, &none)), [101, 0, 0, 206], "without any right");
    let memfd = at(&rows, &memfd);
    check!(memfd["dirty_pages"].is_null(), "not 0 but unknown: {memfd}");
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    check_eq!(refused.status.code(), Some(3), "{said}");
    check!(refused.stdout.is_empty() && said.contains("CAP_SYS_ADMIN"), "{said}");
    let said = String::from_utf8_lossy(&other.stderr).into_owned();
    check_eq!(other.status.code(), Some(3), "{said}");
    check!(said.contains("no right to look at process 1"), "{said}");
    PASS
}

/// Runs `pages` until its output fills the pipe that nobody reads, does
/// something, and then reads on: exit code, rows, and what it said.
fn interrupted(
    pid: u32,
    args: &[&str],
    meanwhile: impl FnOnce(),
) -> Result<(Option<i32>, Vec<Value>, String), Failed> {
    let pid = pid.to_string();
    let mut child = command(&[&["pages", &pid, "-o", "json"], args].concat())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let mut stdout = child.stdout.take().ok_or("piped")?;
    // So much is read, and less than all of the rows fits into the pipe.
    let mut first = vec![0; 100_000];
    stdout.read_exact(&mut first)?;
    let mut text = String::from_utf8(first)?;
    meanwhile();
    stdout.read_to_string(&mut text)?;
    let output = child.wait_with_output()?;
    let rows = text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    Ok((output.status.code(), rows, String::from_utf8_lossy(&output.stderr).into_owned()))
}

/// More rows of JSON than a pipe and two buffers hold.
const MANY: &str = "map-many 3001";

fn ends(hook: &'static str) -> Outcome {
    let mut worker = Worker::start();
    worker.ask(MANY);
    let (code, rows, said) = interrupted(worker.pid(), &["--hook", hook], || worker.kill())?;
    check_eq!(code, Some(1), "{said}");
    check!(said.contains("has ended or runs another program"), "{said}");
    let mappings = of_kind(&rows, "mapping").len();
    check!(said.contains(&format!("after {mappings} of ")), "{mappings} rows: {said}");
    check!((1..3001).contains(&mappings), "{mappings} rows");
    check!(of_kind(&rows, "total").is_empty(), "no sum of a part");
    PASS
}

fn changes() -> Outcome {
    let mut worker = Worker::start();
    worker.ask(MANY);
    let (code, rows, said) =
        interrupted(worker.pid(), &["--unit", "pages"], || drop(worker.ask("unmap-newest")))?;
    check_eq!(code, Some(0), "{said}");
    check!(said.contains("mappings changed while they were read"), "{said}");
    for row in of_kind(&rows, "mapping") {
        check_eq!(split(row).iter().sum::<u64>(), number(row, "total_pages"), "{row}");
    }
    worker.end();
    PASS
}

fn guards() -> Outcome {
    let mut worker = Worker::start();
    let place = worker.ask("map-guard 211 101");
    if_supported("guard_regions", place != "none", || {
        let (rows, smaps) = settled(worker.pid(), &[])?;
        agree(&rows, &smaps)?;
        check_eq!(split(at(&rows, &place)), [110, 0, 0, 101], "101 guards");
        worker.end();
        PASS
    })
}

fn nodes() -> Outcome {
    let two = Path::new("/sys/devices/system/node/node1").exists();
    if_supported("numa", two, || {
        let mut worker = Worker::start();
        let wanted = [("map-bound 307 0", 0, 307), ("map-bound 211 1", 1, 211)];
        let places = wanted.map(|(order, ..)| worker.ask(order));
        let pid = worker.pid().to_string();
        for ((order, node, pages), place) in wanted.iter().zip(&places) {
            let start = u64::from_str_radix(place, 16)?;
            let range = format!("{start:x}-{:x}", start + pages * page_kib() * 1024);
            let rows =
                rows(&["pages", &pid, "--physical", "--range", &range, "--unit", "pages"]);
            check!(rows.iter().all(|row| row["node"] == *node), "{order}: {rows:?}");
            let sum: u64 = rows.iter().map(|row| number(row, "size_pages")).sum();
            check_eq!(sum, *pages, "{order}");
        }
        worker.end();
        PASS
    })
}

fn narrowed() -> Outcome {
    let mut worker = Worker::start();
    let place = worker.ask("map-anon 1009 499");
    worker.ask("map-memfd 127 67");
    let pid = worker.pid().to_string();
    let start = u64::from_str_radix(&place, 16)?;
    let page = page_kib() * 1024;
    // From page 401 on to page 601, not quite to their borders.
    let range = format!("0x{:x}-{:x}", start + 401 * page + 1, start + 600 * page + 1);
    let pages = |args: &[&str]| rows(&[&["pages", &pid, "--unit", "pages"], args].concat());
    let part = pages(&["--range", &range]);
    let mappings = of_kind(&part, "mapping");
    check_eq!(mappings.len(), 1, "{part:?}");
    check_eq!(split(mappings[0]), [98, 0, 102, 0], "{part:?}");
    check_eq!(split(of_kind(&part, "total")[0]), [98, 0, 102, 0], "{part:?}");
    for name in ["memfd:pages", "/memfd:pages"] {
        let named = pages(&["--mapping", name]);
        check_eq!(of_kind(&named, "mapping").len(), 1, "{name}: {named:?}");
        check_eq!(split(of_kind(&named, "total")[0]), [67, 0, 60, 0], "{name}: {named:?}");
    }
    let summary = pages(&["--summary"]);
    check!(of_kind(&summary, "mapping").is_empty(), "{summary:?}");
    let all = pages(&[]);
    check_eq!(of_kind(&summary, "total"), of_kind(&all, "total"), "the sum");
    let csv = run(&["pages", &pid, "-o", "csv"]);
    let lines = String::from_utf8(csv.stdout)?.lines().count();
    check_eq!(lines, of_kind(&all, "mapping").len() + 2, "a heading, and the total");
    let nothing = run(&["pages", &pid, "--mapping", "nobody-maps-this"]);
    check_eq!(nothing.status.code(), Some(1), "{nothing:?}");
    worker.end();
    PASS
}

fn refused() -> Outcome {
    let said = |args: &[&str], code: i32, words: &str| -> Outcome {
        let output = run(args);
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        check_eq!(output.status.code(), Some(code), "{args:?}: {stderr}");
        check!(stderr.contains(words), "{args:?}: {stderr}");
        check_eq!(stderr.lines().count(), 1, "{args:?}: {stderr}");
        check!(output.stdout.is_empty(), "{args:?}");
        PASS
    };
    said(&["pages", "4194305"], 1, "no process has PID 4194305")?;
    // kthreadd has number 2 wherever this is not a container.
    let second = fs::read_to_string("/proc/2/comm").unwrap_or_default();
    check_eq!(second.trim(), "kthreadd", "the second process");
    said(&["pages", "2"], 1, "2 is a thread of the kernel (kthreadd)")?;
    let mut worker = Worker::start();
    worker.ask("threads 1");
    let pid = worker.pid();
    let threads = fs::read_dir(format!("/proc/{pid}/task"))?;
    let thread = threads
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .find(|thread| *thread != pid.to_string())
        .ok_or("no second thread")?;
    said(&["pages", &thread], 1, &format!("{thread} is a thread of process {pid}"))?;
    // A zombie: a child of ours that nobody has waited for yet.
    let mut child = Command::new("true").spawn()?;
    let zombie = child.id().to_string();
    while !fs::read_to_string(format!("/proc/{zombie}/stat"))?.contains(") Z ") {
        std::thread::yield_now();
    }
    let outcome = said(&["pages", &zombie], 1, "has exited and waits for its parent");
    child.wait()?;
    worker.end();
    outcome
}

fn budget() -> Outcome {
    let mut worker = Worker::start();
    worker.ask("map-sparse 16384 17");
    let pid = worker.pid().to_string();
    // 4 Mi entries take any kernel longer than a millisecond.
    let args = ["pages", &pid, "-o", "json", "--hook", READ, "--budget", "0.001"];
    let output = run(&args);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    check_eq!(output.status.code(), Some(0), "{said}");
    check!(said.contains("--budget is over: not all has been read"), "{said}");
    let text = String::from_utf8(output.stdout)?;
    let rows: Vec<Value> =
        text.lines().map(serde_json::from_str).collect::<Result<_, _>>()?;
    let figures = rows.iter().find(|row| row["mappings"].is_u64()).ok_or("no figures")?;
    check_eq!(number(figures, "complete"), 0, "{figures}");
    check_eq!(number(figures, "mappings"), of_kind(&rows, "mapping").len() as u64, "{figures}");
    worker.end();
    PASS
}

/// The first thread has ended, and is a zombie as long as there are others.
fn left_behind() -> Outcome {
    let mut worker = Worker::start();
    let place = worker.ask("map-anon 1009 499");
    worker.ask("threads 1");
    worker.tell("leave");
    let pid = worker.pid();
    while !fs::read_to_string(format!("/proc/{pid}/stat"))?.contains(") Z ") {
        std::thread::yield_now();
    }
    let rows = rows(&["pages", &pid.to_string(), "--unit", "pages"]);
    check_eq!(split(at(&rows, &place)), [499, 0, 510, 0], "its memory");
    PASS
}

//! A machine short of memory: kswapd has to work, and then processes as well.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use libtest_mimic::Failed;

use super::kernels::is_guest;
use super::oracle;
use super::pressure::Cgroup;
use super::pressure::Setting;
use super::pressure::drop_caches;
use super::watcher::PATIENCE;
use super::worker::Worker;

/// The least the kernel keeps free.
pub const MIN_FREE: &str = "/proc/sys/vm/min_free_kbytes";

/// One process that has to reclaim for itself.
pub struct Stalled {
    _worker: Worker,
    /// How long it took to touch its memory.
    pub wall: Duration,
    _hog: Worker,
}

/// Fills memory, has kswapd make room for page cache, and then has a process
/// allocate while less is free than the kernel keeps for emergencies: it reclaims
/// for itself. `watch` is told of the process before that.
pub fn scarce(watch: impl FnOnce(u32)) -> Stalled {
    assert!(is_guest(), "only in a guest");
    let mut late = Worker::start();
    watch(late.pid());
    let mut hog = Worker::start();
    let free = oracle::meminfo()["MemFree"];
    hog.ask(&format!("anon {}", free.saturating_sub(400 << 10) / oracle::page_kib()));
    let mut reader = Worker::start();
    reader.ask("reclaim-read 431");
    let more = oracle::meminfo()["MemFree"] + (8 << 10);
    let _min_free = Setting::of(MIN_FREE, &more.to_string()).expect("raising it");
    let started = Instant::now();
    late.ask("anon 4099");
    Stalled { wall: started.elapsed(), _worker: late, _hog: hog }
}

/// What a slow disk is given, and what stays free then, in MiB.
const WRITTEN: u64 = 40;
const SPARE: u64 = 24;

/// kswapd finds next to nothing on its lists but pages in writeback, again and again: a
/// node is to have more free memory than all that a slow disk has been given. Returns
/// when it is written, with the machine as it was. Without swap, and with classical
/// lists.
pub fn slow_writeback() -> Result<(), Failed> {
    assert!(is_guest(), "only in a guest");
    let set = |path: String, value: u64| {
        Setting::of(path.as_str(), &value.to_string()).ok_or(format!("setting {path}"))
    };
    let vm = |name: &str| format!("/proc/sys/vm/{name}");
    // Who writes is not held up, and nobody writes back before. The ratios take the
    // place of the bytes again at the end, and so have to be put back last.
    let _ratio = set(vm("dirty_ratio"), 95)?;
    let _background = set(vm("dirty_background_ratio"), 90)?;
    let _bytes = set(vm("dirty_bytes"), 1 << 30)?;
    let _background_bytes = set(vm("dirty_background_bytes"), 1 << 29)?;
    // What lies low is for nobody, or kswapd would be content with that.
    let _lowest = set(vm("lowmem_reserve_ratio"), 1)?;
    let node = u64::from(Path::new("/sys/devices/system/node/node1").exists());
    if has_given_up(node)? {
        try_again(node)?;
        drop_caches();
    }
    let mut worker = bound(node);
    // Taken but not written to, which takes no time; the rest page by page.
    let huge = format!("/sys/devices/system/node/node{node}/hugepages/hugepages-2048kB");
    let _pool =
        set(format!("{huge}/nr_hugepages"), spare(node)?.saturating_sub(SPARE + WRITTEN) / 2)?;
    let more = spare(node)?.saturating_sub(SPARE + WRITTEN);
    worker.ask(&format!("locked {}", (more.max(1) << 10) / oracle::page_kib()));
    worker.ask(&format!("reclaim-slow {WRITTEN}"));
    // A tenth of the node between each two watermarks. The lowest, below which processes
    // have to reclaim, stays where it is.
    let apart = set(vm("watermark_scale_factor"), 1000)?;
    // What has been freed since is above that still.
    worker.ask(&format!("anon {}", above(node, "low")? + 11));
    worker.ask("sync");
    drop(apart);
    worker.end();
    try_again(node)
}

/// A process that takes its memory from one node.
fn bound(node: u64) -> Worker {
    let mut worker = Worker::start();
    worker.ask(&format!("bind {node}"));
    worker
}

/// kswapd may have given up. It tries again when somebody gets something, and, in 7.x,
/// enough is free: for a limit's sake, for instance.
fn try_again(node: u64) -> Result<(), Failed> {
    let mut limited = bound(node);
    let cgroup = Cgroup::create("limited").ok_or("no memory cgroup")?;
    cgroup.limit(16 << 20)?;
    cgroup.add(limited.pid())?;
    limited.ask("reclaim-read 31");
    limited.end();
    // It remembers what it met until it has made enough room once.
    bound(node).ask(&format!("reclaim-read {}", spare(node)? + SPARE));
    if has_given_up(node)? { Err("kswapd has given up".into()) } else { Ok(()) }
}

/// Whether kswapd leaves a node to those who want its memory, as after an OOM kill.
fn has_given_up(node: u64) -> Result<bool, Failed> {
    let text = fs::read_to_string("/proc/zoneinfo")?;
    let own = text.split("Node ").filter(|zone| zone.starts_with(&format!("{node},")));
    let given_up = |line: &str| line.split_whitespace().eq(["node_unreclaimable:", "1"]);
    Ok(own.flat_map(str::lines).any(given_up))
}

/// What a node has free above its lowest watermarks, in MiB.
fn spare(node: u64) -> Result<u64, Failed> {
    Ok((above(node, "min")? * oracle::page_kib()) >> 10)
}

/// How many pages the zones of a node have free above a watermark, the lowest zone left
/// out.
fn above(node: u64, watermark: &str) -> Result<u64, Failed> {
    let text = fs::read_to_string("/proc/zoneinfo")?;
    let (mut all, mut free, mut here) = (0, 0, false);
    for line in text.lines() {
        match line.split_whitespace().collect::<Vec<_>>()[..] {
            ["Node", number, "zone", zone] => {
                here = number == format!("{node},") && zone != "DMA";
            }
            ["pages", "free", pages] => free = pages.parse::<u64>()?,
            [name, pages] if here && name == watermark => {
                all += free.saturating_sub(pages.parse()?);
            }
            _ => {}
        }
    }
    Ok(all)
}

/// Whether every kswapd sleeps (`kswapd_try_to_sleep()`, mm/vmscan.c, the only place
/// where it does so in state S). In the middle of a batch it has counted what it
/// scanned, and not yet what it reclaims.
fn kswapd_sleeps() -> Result<bool, Failed> {
    for entry in fs::read_dir("/proc")? {
        // What is no process, or has gone, has no such file.
        let Ok(stat) = fs::read_to_string(entry?.path().join("stat")) else { continue };
        let Some((head, rest)) = stat.split_once(") ") else { continue };
        if head.contains("(kswapd") && !rest.starts_with('S') {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Counters of reclaim, of `/proc/vmstat`, once they have come to rest.
pub fn at_rest<const N: usize>(
    counters: impl Fn(&HashMap<String, u64>) -> [u64; N],
) -> Result<[u64; N], Failed> {
    let read = || -> Result<[u64; N], Failed> {
        // Counters that each CPU keeps for itself are handed over.
        fs::write("/proc/sys/vm/stat_refresh", "1")?;
        Ok(counters(&oracle::vmstat("/proc/vmstat")))
    };
    let end = Instant::now() + PATIENCE;
    let (mut last, mut rests) = (read()?, 0);
    while Instant::now() < end {
        thread::sleep(Duration::from_millis(300));
        let sleeps = kswapd_sleeps()?;
        let now = read()?;
        rests = if now == last && sleeps { rests + 1 } else { 0 };
        // Where a machine stands still for longer than that, kswapd may just not have
        // got a processor: it has had one while this slept again.
        if rests == 3 {
            return Ok(now);
        }
        last = now;
    }
    Err(Failed::from("reclaim does not come to rest"))
}

/// What `start` gives, and the counters at that time: they are the same before and
/// after. Starting a watcher takes kernel memory, and where that mixes kinds of pages
/// kswapd makes room for a while (`boost_watermark()`, mm/page_alloc.c), with nobody
/// watching yet.
pub fn started_at_rest<const N: usize, T>(
    counters: impl Fn(&HashMap<String, u64>) -> [u64; N],
    start: impl Fn() -> Result<T, Failed>,
) -> Result<([u64; N], T), Failed> {
    for _ in 0..5 {
        let before = at_rest(&counters)?;
        let started = start()?;
        let after = at_rest(&counters)?;
        if before == after {
            return Ok((after, started));
        }
        eprintln!("starting a watcher again: reclaim went on, {before:?} to {after:?}");
    }
    Err(Failed::from("something is reclaimed each time a watcher starts"))
}

//! A machine short of memory: kswapd has to work, and then processes as well.

use std::collections::HashMap;
use std::fs;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use libtest_mimic::Failed;

use super::kernels::is_guest;
use super::oracle;
use super::pressure::Setting;
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
    let mut last = read()?;
    while Instant::now() < end {
        thread::sleep(Duration::from_millis(300));
        let now = read()?;
        if now == last {
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
    }
    Err(Failed::from("something is reclaimed each time a watcher starts"))
}

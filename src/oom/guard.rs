//! Keeps this process alive and at work while the machine has no memory: its
//! pages stay, its heap has room, and the OOM killer passes it over.

use std::fs;
use std::hint::black_box;

use rustix::thread::CapabilitySet;

use crate::output::note;
use crate::rights;

/// The lowest oom_score_adj (`OOM_SCORE_ADJ_MIN`, include/uapi/linux/oom.h):
/// never chosen.
const NEVER: &str = "-1000";

const SCORE: &str = "/proc/self/oom_score_adj";

/// Room in the heap for what is made of records, beside what a full ring needs.
const ROOM: usize = 1 << 20;

/// The ring's contents are copied, the copies grow by doubling, and are then
/// decoded.
const COPIES: usize = 4;

/// No more than this is set aside, however large the ring.
const MOST_ROOM: usize = 16 << 20;

/// Protects this process from now on, and says how on standard error. To be
/// called when everything has been set up: what is not needed any more is given
/// back first.
pub fn protect(ring_bytes: u32, keep_score: bool) {
    let room = (ring_bytes as usize).saturating_mul(COPIES).saturating_add(ROOM).min(MOST_ROOM);
    keep_heap(room);
    let lock = lock();
    // What was set aside is touched now, and stays.
    drop(black_box(vec![1u8; room]));
    let score = if keep_score { Err("left as it was".to_owned()) } else { lower_score() };
    let own = match lock {
        Ok(()) => format!("{} KiB of own memory, locked", resident_kib().unwrap_or_default()),
        Err(why) => format!("own memory is not locked: {why}"),
    };
    match score {
        Ok(()) => note(&format!("oomkill: {own}; oom_score_adj {NEVER}")),
        Err(why) => note(&format!("oomkill: {own}; oom_score_adj {}: {why}", score_now())),
    }
}

/// Has the allocator take everything from one heap and never give it back.
#[cfg(target_env = "gnu")]
fn keep_heap(room: usize) {
    let never = libc::c_int::MAX;
    let at_most = libc::c_int::try_from(room.saturating_mul(2)).unwrap_or(never);
    // SAFETY: these only set parameters of the allocator, or return free memory
    // to the kernel; no pointer is passed.
    unsafe {
        libc::malloc_trim(0);
        libc::mallopt(libc::M_TRIM_THRESHOLD, never);
        libc::mallopt(libc::M_MMAP_THRESHOLD, at_most);
    }
}

/// Other allocators have parameters of their own.
#[cfg(not(target_env = "gnu"))]
fn keep_heap(_: usize) {}

/// Keeps all pages of now and of later in memory.
fn lock() -> Result<(), String> {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Memlock).current;
    let may_exceed = rights::effective().is_ok_and(|have| have.contains(CapabilitySet::IPC_LOCK));
    // With a limit, a later allocation would fail instead of being locked.
    if limit.is_some() && !may_exceed {
        return Err("needs CAP_IPC_LOCK, or no limit on locked memory (ulimit -l)".into());
    }
    rustix::mm::mlockall(rustix::mm::MlockAllFlags::CURRENT | rustix::mm::MlockAllFlags::FUTURE)
        .map_err(|errno| errno.to_string())
}

fn lower_score() -> Result<(), String> {
    fs::write(SCORE, NEVER).map_err(|error| match error.kind() {
        std::io::ErrorKind::PermissionDenied => "lowering it needs CAP_SYS_RESOURCE".into(),
        _ => error.to_string(),
    })
}

fn score_now() -> String {
    fs::read_to_string(SCORE).map_or_else(|_| "unknown".into(), |text| text.trim().to_owned())
}

fn resident_kib() -> Option<u64> {
    let text = fs::read_to_string("/proc/self/status").ok()?;
    text.lines()
        .find_map(|line| line.strip_prefix("VmRSS:")?.split_whitespace().next()?.parse().ok())
}

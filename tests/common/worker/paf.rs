//! Orders of the tests of `frag` and `paf`: memory in pieces, and requests that may
//! not wait.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::thread;

use nix::errno::Errno;
use rustix::mm::Advice;
use rustix::mm::ProtFlags;
use rustix::process::Resource;
use rustix::process::Rlimit;

use super::Region;
use super::State;
use super::page;
use crate::common::scarce::MIN_FREE;

impl State {
    pub(super) fn paf(&mut self, order: &str, n: usize, size: usize) -> Option<String> {
        match order {
            // Keeps n pages, and gives back as many that lie between them.
            "pepper" => {
                let region = Region::map(2 * n, ProtFlags::READ | ProtFlags::WRITE, None);
                region.no_huge_pages();
                region.write();
                for at in (0..region.bytes).step_by(2 * page()) {
                    // SAFETY: a page of a range this worker mapped and reads no more.
                    unsafe {
                        rustix::mm::madvise(
                            region.at.add(at).cast(),
                            page(),
                            Advice::LinuxDontNeed,
                        )
                        .expect("MADV_DONTNEED");
                    }
                }
                self.others.push(region);
            }
            "signals" => signals(n, size),
            // A table of n descriptors, which there is no room for.
            "descriptors" => descriptors(n),
            _ => return None,
        }
        Some("done".into())
    }
}

fn descriptors(n: usize) {
    let limit = Rlimit { current: Some(n as u64), maximum: Some(n as u64) };
    rustix::process::setrlimit(Resource::Nofile, limit).expect("more descriptors");
    // SAFETY: no memory is handed over; the new descriptor would be nobody else's.
    let last = unsafe { libc::fcntl(0, libc::F_DUPFD_CLOEXEC, n - 1) };
    assert_eq!((last, Errno::last()), (-1, Errno::ENOMEM), "there is to be no room");
}

/// Signals to try at most, and before: what others left in slabs is used up then.
const SIGNALS: usize = 100_000;

/// Queues signals to itself, each of which takes a slab object that must be there at
/// once (`GFP_ATOMIC`), until `n` were refused, while `min_free_kib` are to be left
/// free. Whatever else takes memory is done before or after, and all CPUs are held
/// meanwhile, so that nobody else finds too little.
fn signals(n: usize, min_free_kib: usize) {
    let signal = libc::SIGRTMIN();
    // SAFETY: an all-zero set and an all-zero siginfo_t are valid; both are then filled.
    let info = unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut set);
        libc::sigaddset(&raw mut set, signal);
        let done = libc::pthread_sigmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
        assert_eq!(done, 0, "blocking a signal");
        let mut info: libc::siginfo_t = std::mem::zeroed();
        info.si_signo = signal;
        info.si_code = libc::SI_QUEUE;
        info
    };
    // They stay pending: only memory is to limit them.
    rustix::process::setrlimit(Resource::Sigpending, Rlimit { current: None, maximum: None })
        .expect("more pending signals");
    let pid = std::process::id();
    // SAFETY: the kernel reads `info`; the signal is blocked.
    let queue = || match unsafe {
        libc::syscall(libc::SYS_rt_sigqueueinfo, pid, signal, &raw const info)
    } {
        0 => Ok(()),
        _ => Err(Errno::last()),
    };
    let least = File::options().write(true).open(MIN_FREE).expect(MIN_FREE);
    let old = std::fs::read(MIN_FREE).expect(MIN_FREE);
    let new = min_free_kib.to_string();
    let ready = (0..SIGNALS).try_for_each(|_| queue());
    let held = HeldCpus::hold();
    let raised = least.write_at(new.as_bytes(), 0);
    let (mut tried, mut refused, mut wrong) = (0, 0, None);
    while refused < n && tried < SIGNALS && wrong.is_none() {
        tried += 1;
        match queue() {
            Ok(()) => {}
            Err(Errno::EAGAIN) => refused += 1,
            Err(error) => wrong = Some(error),
        }
    }
    let restored = least.write_at(&old, 0);
    drop(held);
    assert_eq!(ready, Ok(()), "signals while there is memory");
    raised.and(restored).expect(MIN_FREE);
    assert_eq!(wrong, None, "rt_sigqueueinfo");
    assert_eq!(refused, n, "refused, of {tried}");
}

/// The first CPU is this thread's, each other one another thread's, before all that
/// is not real-time; for less than the 950 ms in a second that the kernel lets them
/// (`sched_rt_runtime_us`).
struct HeldCpus {
    free: Arc<AtomicBool>,
    holders: Vec<thread::JoinHandle<()>>,
}

impl HeldCpus {
    fn hold() -> Self {
        let cpus = thread::available_parallelism().expect("how many CPUs").get();
        let (free, held) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(1)));
        let hold = |cpu| {
            let (free, held) = (Arc::clone(&free), Arc::clone(&held));
            thread::spawn(move || {
                keep(cpu);
                held.fetch_add(1, Ordering::Relaxed);
                while !free.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            })
        };
        let holders = (1..cpus).map(hold).collect();
        // Not yet held itself: one of the others may have started here.
        while held.load(Ordering::Relaxed) < cpus {
            thread::yield_now();
        }
        keep(0);
        Self { free, holders }
    }
}

impl Drop for HeldCpus {
    fn drop(&mut self) {
        self.free.store(true, Ordering::Relaxed);
        schedule(libc::SCHED_OTHER, 0);
        for holder in self.holders.drain(..) {
            holder.join().expect("a thread that holds a CPU");
        }
    }
}

/// Keeps this thread on one CPU, and others off it.
fn keep(cpu: usize) {
    let mut set = rustix::thread::CpuSet::new();
    set.set(cpu);
    rustix::thread::sched_setaffinity(None, &set).expect("one CPU");
    schedule(libc::SCHED_FIFO, 1);
}

fn schedule(policy: libc::c_int, priority: libc::c_int) {
    let parameters = libc::sched_param { sched_priority: priority };
    // SAFETY: the kernel reads the parameters.
    let done = unsafe { libc::sched_setscheduler(0, policy, &raw const parameters) };
    assert_eq!(done, 0, "scheduling: {}", Errno::last());
}

//! Orders of the tests of `anon`: anonymous memory step by step, each answered
//! with what the kernel then says of it, in KiB.

use std::env;
use std::io::Read as _;
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;

use rustix::mm::ProtFlags;

use super::File;
use super::Region;
use super::State;
use super::page;

/// Pages of the last region that were touched with `touch`.
static TOUCHED: AtomicUsize = AtomicUsize::new(0);

impl State {
    /// `size`: 1 where the page tables must be asked, as the counters lag.
    pub(super) fn anon(&mut self, order: &str, n: usize, size: usize) -> Option<String> {
        match order {
            "figure" => {}
            // Memory that nobody has touched.
            "field" => {
                let region = Region::map(n, ProtFlags::READ | ProtFlags::WRITE, None);
                region.no_huge_pages();
                self.anon.push(region);
                TOUCHED.store(0, Ordering::Relaxed);
            }
            // The next n pages of it.
            "touch" => {
                let from = TOUCHED.fetch_add(n, Ordering::Relaxed);
                self.last().write_pages(from, n);
            }
            // The first n pages of it, again.
            "rewrite" => self.last().write_pages(0, n),
            // Read, never written: the page of zeroes.
            "zero" => {
                let region = Region::map(n, ProtFlags::READ | ProtFlags::WRITE, None);
                region.no_huge_pages();
                region.read();
                self.others.push(region);
            }
            // Moved elsewhere, and twice as big there.
            "remap" => self.remap(),
            // A child that writes n pages of the last region and n of its own.
            // Answers with its PID.
            "cow" => return Some(self.cow(n).to_string()),
            // Answers as the new program, which says that it is ready.
            "exec" => {
                let own = env::current_exe().expect("own path");
                panic!("exec: {}", Command::new(own).arg(super::FLAG).exec());
            }
            // SAFETY: ends the process, without touching memory again.
            "quit" => unsafe { libc::_exit(0) },
            _ => return None,
        }
        Some(figure(size != 0))
    }

    fn last(&self) -> &Region {
        self.anon.last().expect("a field first")
    }

    fn remap(&mut self) {
        let region = self.anon.last_mut().expect("a field first");
        let twice = 2 * region.bytes;
        let place = Region::map(twice / page(), ProtFlags::empty(), None);
        // SAFETY: both ranges are ours, and nothing points into them.
        let moved = unsafe {
            libc::mremap(
                region.at.cast(),
                region.bytes,
                twice,
                libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED,
                place.at,
            )
        };
        assert_eq!(moved.cast(), place.at, "mremap");
        // What was there is mapped over now, and belongs to the region.
        (region.at, region.bytes) = (place.at, twice);
        std::mem::forget(place);
    }

    fn cow(&mut self, n: usize) -> libc::pid_t {
        assert_eq!(self.threads, 0, "a forked child has only the forking thread");
        let (ready, tell) = rustix::pipe::pipe().expect("a pipe");
        // SAFETY: this process has one thread, so the child may do anything.
        let pid = unsafe { libc::fork() };
        match pid {
            0 => {
                self.last().write_pages(0, n);
                let own = Region::map(n, ProtFlags::READ | ProtFlags::WRITE, None);
                own.no_huge_pages();
                own.write_pages(0, n);
                rustix::io::write(&tell, b"!").expect("telling the parent");
                loop {
                    // SAFETY: no arguments, no memory.
                    unsafe { libc::pause() };
                }
            }
            pid if pid > 0 => self.children.push(pid),
            _ => panic!("fork: {}", std::io::Error::last_os_error()),
        }
        drop(tell);
        File::from(ready).read_exact(&mut [0]).expect("the child has died");
        pid
    }
}

impl Region {
    fn write_pages(&self, from: usize, n: usize) {
        assert!((from + n) * page() <= self.bytes, "beyond the region");
        for i in from..from + n {
            // SAFETY: within the region.
            unsafe { self.at.add(i * page()).write_volatile(7) };
        }
    }
}

/// The kernel's own figure of this process, once asking for it and saying it
/// does not change it any more.
fn figure(lagging: bool) -> String {
    let mut answer = String::new();
    loop {
        let now = if lagging {
            own_line("/proc/self/smaps_rollup", "Anonymous:")
        } else {
            own_line("/proc/self/status", "RssAnon:")
        };
        if answer == now {
            return answer;
        }
        answer = now;
    }
}

fn own_line(path: &'static str, name: &str) -> String {
    let mut text = [0; 4096];
    let mut have = 0;
    let mut file = File::open(path).expect("own accounting");
    while have < text.len() {
        match file.read(&mut text[have..]).expect("own accounting") {
            0 => break,
            more => have += more,
        }
    }
    let text = std::str::from_utf8(&text[..have]).expect("plain text");
    let line = text.lines().find_map(|line| line.strip_prefix(name)).expect("the line");
    let number = line.split_whitespace().next().expect("a number");
    let mut answer = String::with_capacity(32);
    answer.push_str(number);
    answer
}

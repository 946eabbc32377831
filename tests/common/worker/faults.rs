//! Page faults of known sorts. Each order answers with the minor and major
//! faults that the kernel counted for this process around the touching alone.

use std::env;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::ptr;
use std::sync::Arc;
use std::sync::Barrier;
use std::thread;
use std::time::Duration;

use rustix::mm::Advice;
use rustix::mm::MapFlags;
use rustix::mm::ProtFlags;

use super::Region;
use super::State;
use super::disk_file;
use super::page;

const BOTH: ProtFlags = ProtFlags::READ.union(ProtFlags::WRITE);

/// Mapped pages of a file lie so far apart in it. Each is a mapping of its own:
/// around a fault the kernel maps what it has of the file, 64 KiB or a large
/// folio, but nothing outside of the mapping.
const APART: usize = 2;

impl State {
    pub(super) fn faults(&mut self, order: &str, n: usize, size: usize) -> Option<String> {
        Some(match order {
            // Asked twice in a row, nothing more has happened.
            "faults" => said(counted()),
            "fault-anon" => {
                let region = small(n);
                let answer = around(|| touch_anew(&region));
                self.others.push(region);
                answer
            }
            "fault-locked" => {
                let region = small(n);
                let answer = around(|| {
                    // SAFETY: the range was just mapped.
                    unsafe { rustix::mm::mlock(region.at.cast(), region.bytes).expect("mlock") };
                });
                self.others.push(region);
                answer
            }
            "fault-cow" => {
                let region = small(n);
                region.write();
                self.fork(1);
                let answer = around(|| touch_anew(&region));
                self.reap();
                self.others.push(region);
                answer
            }
            "fault-shmem" => {
                let fd = rustix::fs::memfd_create("worker-faults", rustix::fs::MemfdFlags::empty())
                    .expect("memfd");
                rustix::fs::ftruncate(&fd, (n * page()) as u64).expect("ftruncate");
                let region = Region::map(n, BOTH, Some(fd));
                let answer = around(|| touch_anew(&region));
                self.others.push(region);
                answer
            }
            "fault-swap" => {
                let region = small(n);
                region.write();
                // SAFETY: only asks for reclaim; contents are kept.
                let done =
                    unsafe { libc::madvise(region.at.cast(), region.bytes, libc::MADV_PAGEOUT) };
                assert_eq!(done, 0, "MADV_PAGEOUT");
                thread::sleep(Duration::from_millis(300));
                let answer = around(|| region.read());
                self.others.push(region);
                answer
            }
            "fault-file" => {
                let file = disk_file(n * APART);
                warm(&file, n * APART);
                let region = one_by_one(n, file);
                let answer = around(|| region.read());
                self.others.push(region);
                answer
            }
            // Not in memory, and nothing is read ahead.
            "fault-cold" => {
                let fd = disk_file(n * APART);
                rustix::fs::fsync(&fd).expect("fsync");
                rustix::fs::fadvise(&fd, 0, None, rustix::fs::Advice::DontNeed).expect("fadvise");
                let region = one_by_one(n, fd);
                // SAFETY: only advice on a range of ours.
                unsafe {
                    rustix::mm::madvise(region.at.cast(), region.bytes, Advice::Random)
                        .expect("MADV_RANDOM");
                }
                let answer = around(|| region.read());
                self.others.push(region);
                answer
            }
            // A file of a name, which is gone before it is touched.
            "fault-deleted" => {
                let path = env::temp_dir().join(format!("worker-deleted-{size}"));
                let file = named_file(&path, n * APART);
                let region = one_by_one(n, file.into());
                std::fs::remove_file(&path).expect("removing its name");
                let answer = around(|| region.read());
                self.others.push(region);
                answer
            }
            // In another mount namespace, below another root.
            "fault-inside" => match enter_another_root(size) {
                Ok(()) => {
                    std::fs::create_dir("/folder").expect("a folder");
                    let file = named_file("/folder/inside".as_ref(), n * APART);
                    let region = one_by_one(n, file.into());
                    let answer = around(|| region.read());
                    self.others.push(region);
                    answer
                }
                Err(error) => format!("refused: {error}"),
            },
            // In a folder below so many others.
            "fault-deep" => {
                let mut path = env::temp_dir().join(format!("worker-deep-{}", std::process::id()));
                std::fs::create_dir(&path).expect("a folder");
                self.folders.push(path.clone());
                for _ in 0..size {
                    path.push("d");
                    std::fs::create_dir(&path).expect("a folder");
                }
                let file = named_file(&path.join("file"), n * APART);
                let region = one_by_one(n, file.into());
                let answer = around(|| region.read());
                self.others.push(region);
                answer
            }
            // As many in each of two threads.
            "fault-threads" => {
                let gate = Arc::new(Barrier::new(3));
                let threads: Vec<_> = (0..2)
                    .map(|_| {
                        let gate = Arc::clone(&gate);
                        thread::spawn(move || {
                            let region = small(n);
                            gate.wait();
                            touch_anew(&region);
                            gate.wait();
                        })
                    })
                    .collect();
                let answer = around(|| {
                    gate.wait();
                    gate.wait();
                });
                threads.into_iter().for_each(|thread| thread.join().expect("a thread"));
                answer
            }
            // Two ways to the same touches, to be told apart by their stacks.
            "fault-ways" => {
                let (first, second) = (small(n), small(size));
                let answer = around(|| {
                    one_way(&first);
                    another_way(&second);
                });
                self.others.extend([first, second]);
                answer
            }
            // A word in each huge page of so many, which were asked for.
            "fault-huge" | "fault-zero" => {
                let (region, first) = huge_region(n);
                // SAFETY: the range is within the region.
                unsafe { rustix::mm::madvise(first.cast(), n * HUGE, Advice::LinuxHugepage) }
                    .expect("MADV_HUGEPAGE");
                let answer = around(|| {
                    for i in 0..n {
                        // SAFETY: within the region, aligned.
                        unsafe {
                            let word = first.add(i * HUGE).cast::<u64>();
                            match order {
                                "fault-huge" => word.write_volatile(7),
                                _ => drop(std::hint::black_box(word.read_volatile())),
                            };
                        }
                    }
                });
                self.others.push(region);
                answer
            }
            "fault-hugetlb" => {
                // SAFETY: a new mapping at an address of the kernel's choice.
                let at = unsafe {
                    let flags = MapFlags::PRIVATE | MapFlags::HUGETLB;
                    rustix::mm::mmap_anonymous(ptr::null_mut(), n * HUGE, BOTH, flags)
                }
                .expect("huge pages of the pool");
                let answer = around(|| {
                    for i in 0..n {
                        // SAFETY: within the mapping, aligned.
                        unsafe { at.cast::<u8>().add(i * HUGE).cast::<u64>().write_volatile(7) };
                    }
                });
                // SAFETY: nothing points into it any more.
                unsafe { rustix::mm::munmap(at, n * HUGE) }.expect("munmap");
                answer
            }
            // So many calls for huge pages, so many against them, one that fails,
            // and one that collapses, or fails.
            "fault-advise" => {
                let (region, first) = huge_region(2);
                let advise = |at: *mut u8, bytes: usize, advice: libc::c_int| {
                    // SAFETY: only advice; what is not ours is refused.
                    match unsafe { libc::madvise(at.cast(), bytes, advice) } {
                        0 => "ok".to_owned(),
                        _ => format!("{:?}", nix::errno::Errno::last()),
                    }
                };
                (0..n).for_each(|_| drop(advise(first, 2 * HUGE, libc::MADV_HUGEPAGE)));
                (0..size).for_each(|_| drop(advise(first, HUGE, libc::MADV_NOHUGEPAGE)));
                advise(first.wrapping_add(1), page(), libc::MADV_HUGEPAGE);
                // Not about huge pages.
                advise(first, HUGE, libc::MADV_DONTNEED);
                let result = advise(first, HUGE, 25);
                let answer = format!("{:#x} {result}", first as usize);
                self.others.push(region);
                answer
            }
            "fault-leave" => std::process::exit(0),
            _ => return None,
        })
    }
}

/// A huge page, as x86-64 has it.
const HUGE: usize = 2 << 20;

/// A region with so many huge pages in it, and the first of them.
fn huge_region(n: usize) -> (Region, *mut u8) {
    let region = Region::map((n + 1) * HUGE / page(), BOTH, None);
    let before = region.at.align_offset(HUGE);
    let first = region.at.wrapping_add(before);
    (region, first)
}

fn small(pages: usize) -> Region {
    let region = Region::map(pages, BOTH, None);
    region.no_huge_pages();
    region
}

// Not alike, so that the compiler does not make one of them.
#[inline(never)]
fn one_way(region: &Region) {
    for offset in (0..region.bytes).step_by(page()) {
        // SAFETY: within the region, aligned.
        unsafe { region.at.add(offset).cast::<u64>().write_volatile(offset as u64 | 1) };
    }
}

#[inline(never)]
fn another_way(region: &Region) {
    for offset in (8..region.bytes).step_by(page()) {
        // SAFETY: within the region, aligned.
        unsafe { region.at.add(offset).cast::<u32>().write_volatile(2) };
    }
}

/// Writes a word to each page.
#[inline(never)]
fn touch_anew(region: &Region) {
    for offset in (0..region.bytes).step_by(page()) {
        // SAFETY: within the region, aligned.
        unsafe { region.at.add(offset).cast::<u64>().write_volatile(offset as u64 | 1) };
    }
    std::hint::black_box(());
}

/// `pages` pages side by side, each a mapping of its own of every other page of
/// a file.
fn one_by_one(pages: usize, file: OwnedFd) -> Region {
    let mut region = Region::map(pages, ProtFlags::empty(), None);
    for i in 0..pages {
        // SAFETY: in place of a page of the region, which is ours.
        unsafe {
            rustix::mm::mmap(
                region.at.add(i * page()).cast(),
                page(),
                ProtFlags::READ,
                MapFlags::SHARED | MapFlags::FIXED,
                &file,
                (i * APART * page()) as u64,
            )
            .expect("mmap");
        }
    }
    region._backing = Some(file);
    region
}

/// Has the file in memory, without mapping it.
fn warm(file: &OwnedFd, pages: usize) {
    let mut buffer = vec![0; pages * page()];
    let mut read = 0;
    while read < buffer.len() {
        match rustix::io::pread(file, &mut buffer[read..], read as u64).expect("reading a file") {
            0 => break,
            more => read += more,
        }
    }
}

fn named_file(path: &std::path::Path, pages: usize) -> File {
    let mut file = File::options()
        .create_new(true)
        .read(true)
        .write(true)
        .open(path)
        .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    std::io::Write::write_all(&mut file, &vec![7; pages * page()]).expect("filling it");
    file
}

/// A tmpfs of its own, whose folder becomes the root.
fn enter_another_root(number: usize) -> std::io::Result<()> {
    // Asked for the first time it may be read from /proc, which is not there then.
    page();
    let folder = env::temp_dir().join(format!("worker-root-{number}"));
    std::fs::create_dir_all(&folder)?;
    let path = std::ffi::CString::new(folder.as_os_str().as_bytes()).expect("a plain path");
    let done = |code: libc::c_int| match code {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    };
    // SAFETY: all pointers are to strings that outlive the calls.
    unsafe {
        done(libc::unshare(libc::CLONE_NEWNS))?;
        let private = libc::MS_REC | libc::MS_PRIVATE;
        done(libc::mount(ptr::null(), c"/".as_ptr(), ptr::null(), private, ptr::null()))?;
        let (tmpfs, none) = (c"tmpfs".as_ptr(), c"none".as_ptr());
        done(libc::mount(none, path.as_ptr(), tmpfs, 0, ptr::null()))?;
    }
    std::os::unix::fs::chroot(&folder)?;
    env::set_current_dir("/")
}

/// Minor and major faults of this process so far.
fn counted() -> (i64, i64) {
    // SAFETY: all-zero is a valid rusage; the call fills it.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_SELF, &mut usage);
        usage
    };
    (usage.ru_minflt, usage.ru_majflt)
}

fn around(body: impl FnOnce()) -> String {
    let before = counted();
    body();
    let after = counted();
    said((after.0 - before.0, after.1 - before.1))
}

fn said((minor, major): (i64, i64)) -> String {
    format!("{minor} {major}")
}

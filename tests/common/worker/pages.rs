//! Mappings of every sort, for `pages`. Each order answers with the address of
//! the mapping, in hexadecimal, or `none` where the kernel has no such thing.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::ptr;

use rustix::mm::Advice;
use rustix::mm::MapFlags;
use rustix::mm::MprotectFlags;
use rustix::mm::ProtFlags;

use super::Region;
use super::State;
use super::disk_file;
use super::page;

const HUGE: usize = 2 << 20;
/// include/uapi/asm-generic/mman-common.h, since 6.13.
const MADV_GUARD_INSTALL: libc::c_int = 102;

const WRITABLE: ProtFlags = ProtFlags::READ.union(ProtFlags::WRITE);

impl State {
    /// `n` is the size of the mapping, `size` how much of it is written, in
    /// pages, unless said otherwise.
    pub(super) fn pages(&mut self, order: &str, n: usize, size: usize) -> Option<String> {
        let region = match order {
            "map-anon" => {
                let region = Region::alone(n);
                region.no_huge_pages();
                region.write_first(size);
                region
            }
            // Read and never written: the zero page is mapped.
            "map-zero" => {
                let region = Region::alone(n);
                region.no_huge_pages();
                region.read();
                region
            }
            // `n` and `size` are huge pages; the others are read.
            "map-huge" => {
                let region = Region::aligned(n * HUGE);
                // SAFETY: a range of ours; only advice.
                unsafe {
                    rustix::mm::madvise(region.at.cast(), region.bytes, Advice::LinuxHugepage)
                        .expect("MADV_HUGEPAGE");
                }
                region.write_first(size * HUGE / page());
                region.read();
                region
            }
            // Written and then without any right.
            "map-none" => {
                let region = Region::alone(n);
                region.no_huge_pages();
                region.write_first(size);
                region.protect(0, n, MprotectFlags::empty());
                region
            }
            // Every other page may not be written: as many mappings.
            "map-many" => {
                let region = Region::alone(n);
                region.no_huge_pages();
                region.write();
                (0..n).step_by(2).for_each(|at| region.protect(at, 1, MprotectFlags::READ));
                region
            }
            "map-guard" => {
                let region = Region::alone(n);
                region.no_huge_pages();
                region.write();
                // SAFETY: drops the contents of pages of ours, which nobody
                // reads any more.
                let done =
                    unsafe { libc::madvise(region.at.cast(), size * page(), MADV_GUARD_INSTALL) };
                if done != 0 {
                    return Some("none".into());
                }
                region
            }
            // A file of `size` pages and a byte more behind the mapping's first pages.
            "map-short" => {
                let fd = memfd(size * page() + 1);
                let region = Region::map(n, WRITABLE, Some(fd));
                region.write_first(size + 1);
                region
            }
            "map-memfd" => {
                let region = Region::map(n, WRITABLE, Some(memfd(n * page())));
                region.write_first(size);
                region
            }
            "map-shared" => Region::shared(n, size),
            "map-sysv" => Region::sysv(n, size),
            // A file on a disk: all of it read, a part written.
            "map-file" => {
                let region = Region::map(n, WRITABLE, Some(disk_file(n)));
                region.read();
                File::from(region._backing.as_ref()?.try_clone().expect("dup"))
                    .sync_all()
                    .expect("fsync");
                region.write_first(size);
                region
            }
            // Private copies of some pages of a file.
            "map-cow" => {
                let region = Region::private(n, memfd_full(n));
                region.read();
                region.write_first(size);
                region
            }
            // `n` and `size` are huge pages.
            "map-hugetlb" => Region::hugetlb(n, size)?,
            // On memory node `size`.
            "map-bound" => {
                let region = Region::alone(n);
                region.no_huge_pages();
                let nodes = 1u64 << size;
                // SAFETY: a range of ours, and a mask of 64 bits that is read only.
                let done = unsafe {
                    let (bind, bits) = (2, 64);
                    libc::syscall(
                        libc::SYS_mbind,
                        region.at,
                        region.bytes,
                        bind,
                        &raw const nodes,
                        bits,
                        0,
                    )
                };
                assert_eq!(done, 0, "mbind: {}", std::io::Error::last_os_error());
                region.write();
                region
            }
            // `n` MiB of which every 2 MiB one page is written, `size` in all.
            "map-sparse" => {
                let region = Region::alone((n << 20) / page());
                region.no_huge_pages();
                for i in 0..size {
                    // SAFETY: within the region, as the test asks for no more.
                    unsafe { region.at.add(i * HUGE).write_volatile(1) };
                }
                region
            }
            // Pages out the first `n` pages of the newest mapping.
            "swap-out" => {
                let region = self.others.last()?;
                let bytes = n * page();
                // SAFETY: only asks for reclaim; contents are kept.
                let done = unsafe { libc::madvise(region.at.cast(), bytes, libc::MADV_PAGEOUT) };
                assert_eq!(done, 0, "MADV_PAGEOUT");
                return Some("done".into());
            }
            "unmap-newest" => {
                self.others.pop();
                return Some("done".into());
            }
            _ => return None,
        };
        let answer = format!("{:x}", region.at as usize);
        self.others.push(region);
        Some(answer)
    }
}

impl Region {
    fn protect(&self, first: usize, pages: usize, rights: MprotectFlags) {
        // SAFETY: pages of ours, which nobody touches against these rights.
        unsafe {
            let at = self.at.add(first * page());
            rustix::mm::mprotect(at.cast(), pages * page(), rights).expect("mprotect");
        }
    }

    /// Anonymous memory that is no part of its neighbours' mappings.
    fn alone(pages: usize) -> Self {
        let fence = ProtFlags::READ | ProtFlags::EXEC;
        let mut region = Region::map(pages + 2, fence, None);
        region.at = region.at.wrapping_add(page());
        region.bytes -= 2 * page();
        region.protect(0, pages, MprotectFlags::READ | MprotectFlags::WRITE);
        region
    }

    fn write_first(&self, pages: usize) {
        let part = Region { at: self.at, bytes: pages * page(), _backing: None };
        part.write();
        // Not unmapped: it belongs to the whole.
        std::mem::forget(part);
    }

    /// Anonymous memory that begins where a huge page can.
    fn aligned(bytes: usize) -> Self {
        let mut region = Region::alone((bytes + HUGE) / page());
        let before = region.at.align_offset(HUGE);
        let behind = region.bytes - before - bytes;
        region.protect(0, before / page(), MprotectFlags::READ);
        region.at = region.at.wrapping_add(before);
        region.bytes = bytes;
        region.protect(bytes / page(), behind / page(), MprotectFlags::READ);
        region
    }

    fn private(pages: usize, fd: OwnedFd) -> Self {
        let bytes = pages * page();
        // SAFETY: a new mapping at an address of the kernel's choice.
        let at = unsafe {
            rustix::mm::mmap(ptr::null_mut(), bytes, WRITABLE, MapFlags::PRIVATE, &fd, 0)
        };
        Self { at: at.expect("mmap").cast(), bytes, _backing: Some(fd) }
    }

    /// Shared memory without a name.
    fn shared(pages: usize, written: usize) -> Self {
        let bytes = pages * page();
        // SAFETY: a new mapping at an address of the kernel's choice.
        let at = unsafe {
            rustix::mm::mmap_anonymous(ptr::null_mut(), bytes, WRITABLE, MapFlags::SHARED)
        };
        let region = Self { at: at.expect("mmap").cast(), bytes, _backing: None };
        region.write_first(written);
        region
    }

    fn sysv(pages: usize, written: usize) -> Self {
        let bytes = pages * page();
        // SAFETY: a new segment, attached at an address of the kernel's choice
        // and removed with its last user.
        let at = unsafe {
            let id = libc::shmget(libc::IPC_PRIVATE, bytes, 0o600);
            assert!(id >= 0, "shmget: {}", std::io::Error::last_os_error());
            let at = libc::shmat(id, ptr::null(), 0);
            libc::shmctl(id, libc::IPC_RMID, ptr::null_mut());
            at
        };
        assert_ne!(at as isize, -1, "shmat: {}", std::io::Error::last_os_error());
        let region = Self { at: at.cast(), bytes, _backing: None };
        region.write_first(written);
        region
    }

    fn hugetlb(pages: usize, written: usize) -> Option<Self> {
        let bytes = pages * HUGE;
        let flags = MapFlags::PRIVATE | MapFlags::HUGETLB;
        // SAFETY: a new mapping at an address of the kernel's choice.
        let at =
            unsafe { rustix::mm::mmap_anonymous(ptr::null_mut(), bytes, WRITABLE, flags) }.ok()?;
        let region = Self { at: at.cast(), bytes, _backing: None };
        region.write_first(written * HUGE / page());
        Some(region)
    }
}

fn memfd(bytes: usize) -> OwnedFd {
    let fd = rustix::fs::memfd_create("pages", rustix::fs::MemfdFlags::empty()).expect("memfd");
    rustix::fs::ftruncate(&fd, bytes as u64).expect("ftruncate");
    fd
}

fn memfd_full(pages: usize) -> OwnedFd {
    let fd = memfd(0);
    let data = vec![5; pages * page()];
    assert_eq!(rustix::io::write(&fd, &data), Ok(data.len()), "filling a memfd");
    fd
}

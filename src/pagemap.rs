//! The pages of a process, as the kernel tells of them: `/proc/PID/pagemap`,
//! the PAGEMAP_SCAN request and `/proc/kpageflags`
//! (Documentation/admin-guide/mm/pagemap.rst). Nothing of the process's memory
//! is touched, and its lock is never held for long: see [`Pagemap`].

mod count;
mod entry;
mod flags;
mod mapping;
mod nodes;
mod physical;
mod report;
mod shmem;

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

pub use self::count::Counter;
pub use self::count::Sort;
pub use self::count::Tally;
pub use self::entry::Entry;
pub use self::entry::Held;
pub use self::flags::PageFlags;
pub use self::flags::names;
pub use self::mapping::Account;
pub use self::mapping::Place;
pub use self::nodes::Nodes;
pub use self::physical::Extent;
pub use self::physical::Physical;
pub use self::report::HELD;
pub use self::report::PLACE;
pub use self::report::Totals;
pub use self::report::What;
pub use self::report::rights;
pub use self::report::shown;
pub use self::shmem::swapped;

use crate::error::Context as _;
use crate::error::Error;
use crate::error::Kind;
use crate::error::Result;
use crate::procfs::ProcFs;
use crate::units::page_size;

/// How much is looked at with one PAGEMAP_SCAN. The kernel holds the lock of
/// the address space for reading that long (do_pagemap_scan,
/// fs/proc/task_mmu.c): at most 4096 page-table entries of 4 KiB.
///
/// Of a read of pagemap the kernel itself makes pieces of one page table each
/// (`PAGEMAP_WALK_SIZE`, 2 MiB on x86) and drops the lock between them.
pub const CHUNK: u64 = 16 << 20;

/// What PAGEMAP_SCAN says of a page (`PAGE_IS_...`, include/uapi/linux/fs.h).
const FILE: u64 = 1 << 2;
const PRESENT: u64 = 1 << 3;
const SWAPPED: u64 = 1 << 4;
const PFNZERO: u64 = 1 << 5;
const HUGE: u64 = 1 << 6;

/// `struct pm_scan_arg` (include/uapi/linux/fs.h).
#[repr(C)]
#[derive(Default)]
struct ScanArg {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

/// `PAGEMAP_SCAN`: _IOWR('f', 16, struct pm_scan_arg).
const PAGEMAP_SCAN: u64 =
    (3 << 30) | ((size_of::<ScanArg>() as u64) << 16) | ((b'f' as u64) << 8) | 16;

/// Neighbouring pages of one sort (`struct page_region`).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Region {
    start: u64,
    end: u64,
    categories: u64,
}

impl Region {
    fn is(&self, category: u64) -> bool {
        self.categories & category != 0
    }
}

/// Regions asked for with one request; if there are more, it is asked again.
const REGIONS: usize = 256;

/// The pagemap file of a process, held open: it stays that of the address space
/// it was opened for, also after an exec.
pub struct Pagemap {
    file: File,
    pid: u32,
}

impl Pagemap {
    /// Opens it.
    ///
    /// # Errors
    /// The process has gone, or there is no right to look at it
    /// (`PTRACE_MODE_READ`, ptrace(2)).
    pub fn open(procfs: &ProcFs, pid: u32) -> Result<Self> {
        let path = procfs.process(pid, "pagemap");
        match File::open(&path) {
            Ok(file) => Ok(Self { file, pid }),
            Err(error) => Err(why(pid, &path, error)),
        }
    }

    /// Reads the entries of the pages from `start` on.
    ///
    /// # Errors
    /// The process has ended, or runs another program.
    pub fn read(&self, start: u64, entries: &mut [Entry]) -> Result<()> {
        let at = start / page_size() * size_of::<Entry>() as u64;
        match self.file.read_exact_at(entry::as_bytes(entries), at) {
            Ok(()) => Ok(()),
            // Without users of its memory left, a process has no entries any
            // more (pagemap_read, fs/proc/task_mmu.c).
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(self.gone()),
            Err(error) => Err(error).context(|| format!("reading the pagemap of {}", self.pid)),
        }
    }

    /// Fails if the process has ended or runs another program.
    ///
    /// # Errors
    /// As said.
    pub fn check(&self, address: u64) -> Result<()> {
        self.read(address, &mut [Entry::default()])
    }

    fn gone(&self) -> Error {
        Error::failure(format!("process {} has ended or runs another program now", self.pid))
    }

    /// Adds the regions of `range` in which there is something. The range is no
    /// longer than [`CHUNK`], so that the process need not wait.
    fn scan(&self, range: Range<u64>, found: &mut Vec<Region>) -> io::Result<()> {
        let mut regions = [Region::default(); REGIONS];
        let mut start = range.start;
        while start < range.end {
            let mut arg = ScanArg {
                size: size_of::<ScanArg>() as u64,
                start,
                end: range.end,
                vec: regions.as_mut_ptr() as u64,
                vec_len: regions.len() as u64,
                category_anyof_mask: PRESENT | SWAPPED,
                return_mask: PRESENT | SWAPPED | FILE | PFNZERO | HUGE,
                ..ScanArg::default()
            };
            // SAFETY: the structure has the layout and size the kernel expects,
            // and both it and the vector outlive the call.
            let filled =
                unsafe { libc::ioctl(self.file.as_raw_fd(), PAGEMAP_SCAN as _, &raw mut arg) };
            let filled = usize::try_from(filled).map_err(|_| io::Error::last_os_error())?;
            found.extend(regions.iter().take(filled));
            if arg.walk_end <= start {
                return Err(io::Error::other("PAGEMAP_SCAN got nowhere"));
            }
            start = arg.walk_end;
        }
        Ok(())
    }
}

fn why(pid: u32, path: &Path, error: io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::PermissionDenied => Error::rights(format!(
            "no right to look at process {pid}: run it as root (sudo) or as the user of that \
             process, or grant CAP_SYS_PTRACE"
        )),
        io::ErrorKind::NotFound => Error::failure(format!("no process has PID {pid}")),
        _ => Error::new(Kind::Failure, format!("opening {}: {error}", path.display())),
    }
}

/// The pieces of a range, none of which goes beyond a multiple of `size`.
fn pieces(range: Range<u64>, size: u64) -> impl Iterator<Item = Range<u64>> {
    let mut start = range.start;
    std::iter::from_fn(move || {
        if start >= range.end {
            return None;
        }
        let end = (start / size + 1).saturating_mul(size).min(range.end);
        let piece = start..end;
        start = end;
        Some(piece)
    })
}

/// Tries a PAGEMAP_SCAN on this process itself.
///
/// # Errors
/// The kernel has none, or there is no pagemap.
pub fn try_scan() -> Result<()> {
    let own = Pagemap { file: File::open("/proc/self/pagemap")?, pid: std::process::id() };
    let here = std::ptr::from_ref(&own) as u64 / page_size() * page_size();
    Ok(own.scan(here..here + page_size(), &mut Vec::new())?)
}

/// Whether the kernel tells us which frames of memory pages are in:
/// `CAP_SYS_ADMIN` in the first user namespace (pagemap_read,
/// fs/proc/task_mmu.c). Tried on a page of our own.
///
/// # Errors
/// There is no pagemap.
pub fn frames_are_shown() -> Result<bool> {
    let own = Pagemap::open(&ProcFs::default(), std::process::id())?;
    let touched = std::hint::black_box(1u8);
    let mut entries = [Entry::default()];
    own.read(std::ptr::from_ref(&touched) as u64, &mut entries)?;
    Ok(entries.iter().all(|entry| entry.frame() != 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_request_has_the_number_of_the_kernels_header() {
        assert_eq!(PAGEMAP_SCAN, 0xc060_6610);
        assert_eq!(size_of::<Region>(), 24);
    }

    #[test]
    fn pieces_end_at_multiples() {
        let all: Vec<Range<u64>> = pieces(3..27, 10).collect();
        assert_eq!(all, [3..10, 10..20, 20..27]);
        assert_eq!(pieces(20..30, 10).count(), 1);
        assert_eq!(pieces(5..5, 10).count(), 0);
        let mut last = pieces(u64::MAX - 3..u64::MAX, 10);
        assert_eq!((last.next(), last.next()), (Some(u64::MAX - 3..u64::MAX), None));
    }

    #[test]
    fn own_pages_are_found_the_same_both_ways() {
        let own = Pagemap::open(&ProcFs::default(), std::process::id()).unwrap();
        let page = page_size();
        let memory = vec![7u8; 11 * page as usize];
        let start = (memory.as_ptr() as u64).next_multiple_of(page);
        let mut entries = [Entry::default(); 10];
        own.read(start, &mut entries).unwrap();
        assert!(entries.iter().all(|entry| entry.held() == Held::Memory), "{entries:?}");
        if try_scan().is_ok() {
            let mut found = Vec::new();
            own.scan(start..start + 10 * page, &mut found).unwrap();
            let pages: u64 = found.iter().map(|region| (region.end - region.start) / page).sum();
            assert_eq!(pages, 10, "{found:?}");
            assert!(found.iter().all(|region| region.is(PRESENT) && !region.is(FILE)));
        }
    }
}

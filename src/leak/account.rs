//! Where the resident memory of a process is, so that what an allocator was
//! asked for can be held against what the kernel counts.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::time::Duration;
use std::time::Instant;

use ::procfs::process::MMapPath;
use ::procfs::process::MemoryMap;
use ::procfs::process::MemoryMaps;

use super::ledger::Ledger;
use super::ledger::Mapped;
use crate::procfs::ProcFs;
use crate::ranges::Range;
use crate::units::page_size;

/// The resident memory of a process, in bytes. The parts add up to `rss`, with
/// `unexplained` as the rest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Account {
    /// All of it (`Rss` of `/proc/PID/smaps`).
    pub rss: u64,
    /// In the heap and in mappings made by an allocator: live blocks, what it
    /// keeps for later, and its own records.
    pub allocator: u64,
    /// In mappings the program made itself since it is watched.
    pub direct: u64,
    /// In mapped files, private copies of their pages included.
    pub file: u64,
    /// In shared memory.
    pub shmem: u64,
    /// In the stack of the first thread.
    pub stack: u64,
    /// Anonymous memory mapped before the watch began, whoever asked for it.
    pub unexplained: u64,
    /// Page tables (`VmPTE`), which are not part of `rss`.
    pub page_tables: u64,
}

/// Reading takes the kernel a walk over the page tables, and holds a lock of the
/// process meanwhile: it is done seldom enough to cost this share of the time.
const SHARE: u32 = 100;

/// The account of one process, read anew when it is due.
#[derive(Default)]
pub struct Accountant {
    last: Option<Account>,
    took: Duration,
    at: Option<Instant>,
}

impl Accountant {
    /// The newest account; `None` if there never was one. A process that has
    /// gone keeps its last one.
    pub fn account(&mut self, procfs: &ProcFs, tgid: u32, ledger: &Ledger) -> Option<Account> {
        let due = self.at.is_none_or(|at| at.elapsed() >= self.took * SHARE);
        if due {
            let begin = Instant::now();
            if let Some(account) = read(procfs, tgid, ledger) {
                self.last = Some(account);
            }
            self.took = begin.elapsed();
            self.at = Some(begin);
        }
        self.last
    }
}

fn read(procfs: &ProcFs, tgid: u32, ledger: &Ledger) -> Option<Account> {
    let pid = i32::try_from(tgid).ok()?;
    let maps: MemoryMaps = procfs.task(pid)?.smaps().ok()?;
    let status = procfs.status(pid)?;
    let ranges: Vec<Range<Mapped>> = ledger.iter().collect();
    let pagemap = File::open(format!("/proc/{tgid}/pagemap")).ok();
    let mut account =
        Account { page_tables: status.vmpte.unwrap_or(0) << 10, ..Account::default() };
    for map in &maps {
        add(&mut account, map, &ranges, pagemap.as_ref());
    }
    // A process without mappings has exited.
    (account.rss > 0).then_some(account)
}

fn add(account: &mut Account, map: &MemoryMap, ranges: &[Range<Mapped>], pagemap: Option<&File>) {
    let rss = map.extension.map.get("Rss").copied().unwrap_or(0);
    account.rss += rss;
    let of_map = overlapping(ranges, map.address);
    match &map.pathname {
        MMapPath::Stack | MMapPath::TStack(_) => account.stack += rss,
        MMapPath::Path(path) if is_shared_memory(path) => account.shmem += rss,
        MMapPath::Vsys(_) | MMapPath::Rollup => account.shmem += rss,
        MMapPath::Path(_) | MMapPath::Vdso | MMapPath::Vvar | MMapPath::Vsyscall => {
            account.file += rss;
        }
        MMapPath::Heap | MMapPath::Anonymous | MMapPath::Other(_) => {
            let heap = map.pathname == MMapPath::Heap;
            let mut rest = rss;
            for range in of_map {
                let (start, end) = (range.start.max(map.address.0), range.end.min(map.address.1));
                // Neighbours of one kind are one mapping to the kernel.
                let whole = (start, end) == map.address;
                let resident = if whole { Some(rss) } else { present(pagemap, start, end) };
                let resident = resident.unwrap_or(0).min(rest);
                rest -= resident;
                if range.value.allocator {
                    account.allocator += resident
                } else {
                    account.direct += resident
                }
            }
            if heap { account.allocator += rest } else { account.unexplained += rest }
        }
    }
}

fn overlapping(ranges: &[Range<Mapped>], map: (u64, u64)) -> &[Range<Mapped>] {
    let first = ranges.partition_point(|range| range.end <= map.0);
    let after = ranges.partition_point(|range| range.start < map.1);
    ranges.get(first..after.max(first)).unwrap_or_default()
}

/// tmpfs, System V and memfd files, which have no disk behind them.
fn is_shared_memory(path: &std::path::Path) -> bool {
    let path = path.to_string_lossy();
    path.starts_with("/dev/shm/")
        || path.starts_with("/memfd:")
        || path.starts_with("/SYSV")
        || path.starts_with("/dev/zero")
}

/// Bytes present in a range (`/proc/PID/pagemap`, bit 63, Documentation/admin-guide/mm/pagemap.rst).
fn present(pagemap: Option<&File>, start: u64, end: u64) -> Option<u64> {
    const PRESENT: u64 = 1 << 63;
    let page = page_size();
    let mut buffer = vec![0u8; 1 << 16];
    let mut at = start / page * 8;
    let until = end / page * 8;
    let mut pages = 0;
    while at < until {
        let want = usize::try_from(until - at).ok()?.min(buffer.len());
        let read = pagemap?.read_at(buffer.get_mut(..want)?, at).ok()?;
        if read < 8 {
            break;
        }
        let entries = buffer.get(..read)?.chunks_exact(8);
        pages += entries
            .filter_map(|entry| Some(u64::from_ne_bytes(entry.try_into().ok()?)))
            .filter(|entry| entry & PRESENT != 0)
            .count() as u64;
        at += read as u64 / 8 * 8;
    }
    Some(pages * page)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_of_this_process_add_up() {
        let account = read(&ProcFs::default(), std::process::id(), &Ledger::default()).unwrap();
        let parts = [
            account.allocator,
            account.direct,
            account.file,
            account.shmem,
            account.stack,
            account.unexplained,
        ];
        assert_eq!(parts.iter().sum::<u64>(), account.rss);
        assert!(account.stack > 0 && account.file > 0, "{account:?}");
    }

    #[test]
    fn pages_of_a_part_are_counted() {
        let page = usize::try_from(page_size()).unwrap();
        let memory = vec![1u8; 64 * page];
        let start = (memory.as_ptr() as u64).div_ceil(page_size()) * page_size();
        let pagemap = File::open("/proc/self/pagemap").unwrap();
        assert_eq!(
            present(Some(&pagemap), start, start + 23 * page_size()),
            Some(23 * page_size())
        );
        assert!(memory.iter().all(|&byte| byte == 1));
    }
}

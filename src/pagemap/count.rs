//! What the pages of a mapping are, counted.

use std::io;
use std::ops::Range;

use super::CHUNK;
use super::Entry;
use super::FILE;
use super::HUGE;
use super::Held;
use super::PFNZERO;
use super::PRESENT;
use super::PageFlags;
use super::Pagemap;
use super::Region;
use super::SWAPPED;
use super::flags;
use super::pieces;
use crate::error::Context as _;
use crate::error::Result;
use crate::units::page_size;

/// What sort of memory is mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sort {
    /// Private memory without a file: what looks like a page of a file there
    /// can only be the huge zero page.
    Anonymous,
    /// Huge pages set aside for that (hugetlbfs).
    Hugetlb,
    /// Anything else.
    Other,
}

/// Pages of a range, by what they are. What is in none of `memory`, `swap` and
/// `guard` is not there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// In memory, without the shared zero page.
    pub memory: u64,
    /// Swapped out.
    pub swap: u64,
    /// Guard regions and poisoned pages.
    pub guard: u64,
    /// Of what is not there: the shared zero page is mapped in its place.
    pub zero: u64,
    /// Of `memory`: the process's own, of no file (`Anonymous` in smaps).
    pub own: u64,
    /// Of `memory`: pages of files that have changed.
    pub dirty: u64,
    /// Of `memory`: mapped as huge pages.
    pub huge: u64,
    /// Pages in memory that may be the zero page.
    pub zero_unknown: u64,
    /// Pages of files of which nobody says whether they have changed.
    pub dirty_unknown: u64,
    /// Pages of which nobody says whether they are mapped as huge pages.
    pub huge_unknown: u64,
}

impl Tally {
    fn add_own(&mut self, pages: u64) {
        self.memory += pages;
        self.own += pages;
    }

    fn add_file(&mut self, pages: u64) {
        self.memory += pages;
        self.dirty_unknown += pages;
    }
}

/// Addresses from here on are the kernel's. One page of them is listed among
/// those of a process, `[vsyscall]`; no process has page tables for it.
const KERNEL_SPACE: u64 = 1 << 63;

/// Entries read from pagemap at once.
const ENTRIES: usize = 4096;

/// Counts the pages of one process.
pub struct Counter<'run> {
    pagemap: &'run Pagemap,
    /// With PAGEMAP_SCAN, or by reading every entry.
    scan: bool,
    /// `None` if frames or their flags are hidden from us.
    flags: Option<PageFlags>,
    /// Whether entries have the frame.
    frames: bool,
    /// Asked between two pieces: whether to stop.
    halt: &'run mut dyn FnMut(u64) -> bool,
    /// The size of a huge page in pages; 0: there are none.
    huge: u64,
    entries: Vec<Entry>,
    asks: Asks,
}

/// Is given the flags of frames, an address, and the entries from there on.
pub(super) type Visit<'visit> =
    dyn FnMut(&mut Option<PageFlags>, u64, &[Entry]) -> Result<()> + 'visit;

/// Frames whose flags must be looked up.
#[derive(Default)]
struct Asks {
    /// Pages of files: dirty?
    files: Vec<u64>,
    /// Pages of no file that others may have too: the zero page?
    shared: Vec<u64>,
}

impl<'run> Counter<'run> {
    /// A counter of the pages in `pagemap`. `halt` is told how many bytes it
    /// has got on and says whether to stop; `huge` is the size of a huge page in
    /// bytes.
    pub fn new(
        pagemap: &'run Pagemap,
        scan: bool,
        frames: bool,
        huge: Option<u64>,
        halt: &'run mut dyn FnMut(u64) -> bool,
    ) -> Self {
        Self {
            pagemap,
            scan,
            flags: if frames { PageFlags::open() } else { None },
            frames,
            halt,
            huge: huge.map_or(0, |bytes| bytes / page_size()),
            entries: vec![Entry::default(); ENTRIES],
            asks: Asks::default(),
        }
    }

    /// Whether the flags of frames can be read.
    pub fn sees_flags(&self) -> bool {
        self.flags.is_some()
    }

    /// Counts a range of one mapping; `None`: told to stop.
    ///
    /// # Errors
    /// The process has ended or runs another program.
    pub fn count(&mut self, range: Range<u64>, sort: Sort) -> Result<Option<Tally>> {
        let mut tally = Tally::default();
        let start = range.start;
        if start >= KERNEL_SPACE {
            return Ok(Some(tally));
        }
        for piece in pieces(range, CHUNK) {
            if (self.halt)(piece.end - piece.start) {
                return Ok(None);
            }
            if !self.scan {
                self.read(&piece, &mut |counter, at, entries| {
                    counter.entries(at, entries, sort, &mut tally);
                })?;
                continue;
            }
            for region in self.scan(&piece)? {
                self.region(&region, sort, &mut tally)?;
            }
        }
        // Of a process that has ended a scan finds nothing, without an error.
        self.pagemap.check(start)?;
        Ok(Some(tally))
    }

    /// Calls `each` with the entries of the range that are not empty, and with
    /// some that are; false: told to stop.
    ///
    /// # Errors
    /// The process has ended or runs another program.
    pub fn visit(&mut self, range: Range<u64>, each: &mut Visit<'_>) -> Result<bool> {
        let start = range.start;
        if start >= KERNEL_SPACE {
            return Ok(true);
        }
        for piece in pieces(range, CHUNK) {
            if (self.halt)(piece.end - piece.start) {
                return Ok(false);
            }
            let parts = if self.scan {
                self.scan(&piece)?.iter().map(|region| region.start..region.end).collect()
            } else {
                vec![piece]
            };
            for part in parts {
                let mut done = Ok(());
                self.read(&part, &mut |counter, at, entries| {
                    if done.is_ok() {
                        done = each(&mut counter.flags, at, entries);
                    }
                })?;
                done?;
            }
        }
        self.pagemap.check(start)?;
        Ok(true)
    }

    /// How many pages of a range have nothing.
    ///
    /// # Errors
    /// The process has ended or runs another program.
    pub fn empty(&mut self, range: Range<u64>) -> Result<u64> {
        let mut empty = 0;
        self.read(&range, &mut |_, _, entries| {
            empty += entries.iter().filter(|entry| entry.is_empty()).count() as u64;
        })?;
        Ok(empty)
    }

    fn scan(&self, piece: &Range<u64>) -> Result<Vec<Region>> {
        let mut found = Vec::new();
        match self.pagemap.scan(piece.clone(), &mut found) {
            Ok(()) => Ok(found),
            Err(error) if error.raw_os_error() == Some(libc::ESRCH) => Err(self.pagemap.gone()),
            Err(error) => {
                Err::<_, io::Error>(error).context(|| format!("scanning {:#x}", piece.start))
            }
        }
    }

    /// Reads the entries of a range, so many at a time that no huge page is cut.
    fn read(
        &mut self,
        range: &Range<u64>,
        each: &mut dyn FnMut(&mut Self, u64, &[Entry]),
    ) -> Result<()> {
        let mut entries = std::mem::take(&mut self.entries);
        let mut done = Ok(());
        for part in pieces(range.clone(), ENTRIES as u64 * page_size()) {
            let pages = usize::try_from((part.end - part.start) / page_size()).unwrap_or(0);
            let Some(wanted) = entries.get_mut(..pages) else { break };
            done = self.pagemap.read(part.start, wanted);
            if done.is_err() {
                break;
            }
            each(self, part.start, wanted);
        }
        self.entries = entries;
        done
    }

    /// Counts a region that a scan found. Only what it does not tell is looked
    /// at page by page.
    fn region(&mut self, region: &Region, sort: Sort, tally: &mut Tally) -> Result<()> {
        let range = region.start..region.end;
        let pages = (range.end - range.start) / page_size();
        let before = tally.memory;
        if region.is(SWAPPED) || !region.is(PRESENT) {
            // Swap, or something else that takes the place of a page.
            return self.read(&range, &mut |counter, _, entries| {
                counter.pages(entries, sort, tally);
            });
        }
        match sort {
            Sort::Hugetlb => tally.memory += pages,
            _ if region.is(PFNZERO) => tally.zero += pages,
            Sort::Anonymous if region.is(HUGE) => self.huge_region(&range, tally)?,
            _ if !region.is(FILE) => tally.add_own(pages),
            _ if self.flags.is_some() => self.read(&range, &mut |counter, _, entries| {
                counter.pages(entries, sort, tally);
            })?,
            _ => tally.add_file(pages),
        }
        if region.is(HUGE) || sort == Sort::Hugetlb {
            tally.huge += tally.memory - before;
        }
        Ok(())
    }

    /// A scan takes the huge zero page for memory (until 6.17 PAGE_IS_PFNZERO
    /// is of the small one only), pagemap for the page of a file.
    fn huge_region(&mut self, range: &Range<u64>, tally: &mut Tally) -> Result<()> {
        let size = self.huge.max(1) * page_size();
        for block in pieces(range.clone(), size) {
            let mut first = [Entry::default()];
            self.pagemap.read(block.start, &mut first)?;
            let pages = (block.end - block.start) / page_size();
            if first.iter().any(|entry| entry.is_present() && entry.is_file()) {
                tally.zero += pages;
            } else {
                tally.add_own(pages);
            }
        }
        Ok(())
    }

    /// Counts entries without the help of a scan.
    fn entries(&mut self, at: u64, entries: &[Entry], sort: Sort, tally: &mut Tally) {
        let before = tally.memory;
        self.pages(entries, sort, tally);
        if sort == Sort::Hugetlb {
            tally.huge += tally.memory - before;
        } else if tally.memory > before {
            self.huge_pages(at, entries, tally);
        }
    }

    fn pages(&mut self, entries: &[Entry], sort: Sort, tally: &mut Tally) {
        let mut asks = std::mem::take(&mut self.asks);
        for entry in entries.iter().filter(|entry| !entry.is_empty()) {
            match entry.held() {
                Held::Nothing => {}
                Held::Swap => tally.swap += 1,
                Held::Guard => tally.guard += 1,
                Held::Memory if sort == Sort::Hugetlb => tally.memory += 1,
                // Being moved: in no frame right now.
                Held::Memory if !entry.is_present() && entry.is_file() => tally.add_file(1),
                Held::Memory if !entry.is_present() => tally.add_own(1),
                Held::Memory if entry.is_file() && sort == Sort::Anonymous => tally.zero += 1,
                Held::Memory if entry.is_file() && self.flags.is_none() => tally.add_file(1),
                Held::Memory if entry.is_file() => asks.files.push(entry.frame()),
                Held::Memory if entry.is_exclusive() => tally.add_own(1),
                Held::Memory if self.flags.is_none() => {
                    tally.add_own(1);
                    tally.zero_unknown += 1;
                }
                Held::Memory => asks.shared.push(entry.frame()),
            }
        }
        if let Some(flags) = &mut self.flags {
            flags.each(&asks.files, |_, flags| match flags {
                Some(flags) if flags & flags::ZERO_PAGE != 0 => tally.zero += 1,
                Some(flags) => {
                    tally.memory += 1;
                    tally.dirty += u64::from(flags & flags::DIRTY != 0);
                }
                None => tally.add_file(1),
            });
            flags.each(&asks.shared, |_, flags| match flags {
                Some(flags) if flags & flags::ZERO_PAGE != 0 => tally.zero += 1,
                _ => tally.add_own(1),
            });
        }
        asks.files.clear();
        asks.shared.clear();
        self.asks = asks;
    }

    /// Finds the huge pages among entries by their frames: aligned in both
    /// senses, one behind the other, and of one page.
    fn huge_pages(&mut self, at: u64, entries: &[Entry], tally: &mut Tally) {
        let Ok(size) = usize::try_from(self.huge) else { return };
        if size < 2 {
            return;
        }
        let skip = (at / page_size()).next_multiple_of(self.huge) - at / page_size();
        let blocks = entries.get(usize::try_from(skip).unwrap_or(usize::MAX)..).unwrap_or_default();
        for block in blocks.chunks_exact(size) {
            if !block.iter().all(|entry| entry.is_present()) {
                continue;
            }
            if !self.frames {
                tally.huge_unknown += self.huge;
                continue;
            }
            let first = block.first().map_or(0, |entry| entry.frame());
            let in_row = (first..).zip(block).all(|(frame, entry)| entry.frame() == frame);
            if first % self.huge != 0 || !in_row {
                continue;
            }
            match self.flags.as_mut().and_then(|flags| flags.of(first)) {
                Some(flags) if flags & flags::ZERO_PAGE != 0 => {}
                Some(flags) if flags & flags::THP != 0 => tally.huge += self.huge,
                Some(_) => {}
                None => tally.huge_unknown += self.huge,
            }
        }
    }
}

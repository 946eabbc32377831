//! What one mapping holds: in memory, swapped out, not there yet, and what can
//! never be there.

use std::ops::Range;

use super::Counter;
use super::Sort;
use super::Tally;
use super::swapped;
use crate::error::Result;
use crate::maps::Backing;
use crate::maps::Mapping;
use crate::procfs::ProcFs;
use crate::units::page_size;

/// Pages of a mapping, by what they are. `None`: could not be read.
/// `memory`, `swap`, `not_present` and `not_mapped` add up to `total`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Account {
    /// All of them.
    pub total: u64,
    /// In memory: Rss in smaps; of hugetlb mappings, which have no Rss,
    /// Private_Hugetlb + Shared_Hugetlb.
    pub memory: u64,
    /// Of `memory`: hugetlb pages.
    pub hugetlb: u64,
    /// Swapped out (Swap in smaps).
    pub swap: Option<u64>,
    /// Can be touched and never was, or was given back.
    pub not_present: Option<u64>,
    /// Touching it is a signal: behind the end of the file, guard regions, and
    /// memory without any right that holds nothing.
    pub not_mapped: Option<u64>,
    /// To be written somewhere before the memory is free: pages of its own and
    /// changed pages of files.
    pub dirty: Option<u64>,
    /// Mapped as huge pages.
    pub huge: Option<u64>,
    /// Of `not_present`: the shared zero page is mapped in its place.
    pub zero: Option<u64>,
}

impl Default for Account {
    /// Of nothing.
    fn default() -> Self {
        let none = Some(0);
        Self {
            total: 0,
            memory: 0,
            hugetlb: 0,
            swap: none,
            not_present: none,
            not_mapped: none,
            dirty: none,
            huge: none,
            zero: none,
        }
    }
}

impl Account {
    /// Adds another one; what is unknown of one is unknown of both.
    pub fn add(&mut self, other: &Account) {
        let sum = |a: Option<u64>, b: Option<u64>| Some(a? + b?);
        self.total += other.total;
        self.memory += other.memory;
        self.hugetlb += other.hugetlb;
        self.swap = sum(self.swap, other.swap);
        self.not_present = sum(self.not_present, other.not_present);
        self.not_mapped = sum(self.not_mapped, other.not_mapped);
        self.dirty = sum(self.dirty, other.dirty);
        self.huge = sum(self.huge, other.huge);
        self.zero = sum(self.zero, other.zero);
    }

    /// Of a part of a mapping. With `hole` nobody can touch what is empty;
    /// `None`: unknown.
    fn of_part(pages: u64, tally: &Tally, hole: Option<bool>, sort: Sort) -> Self {
        // A page may come between two looks at a process that runs.
        let empty = pages.saturating_sub(tally.memory + tally.swap + tally.guard);
        let (not_present, not_mapped) = match hole {
            _ if empty == 0 => (Some(0), Some(tally.guard)),
            Some(true) => (Some(0), Some(tally.guard + empty)),
            Some(false) => (Some(empty), Some(tally.guard)),
            None => (None, None),
        };
        let known = |value: u64, unknown: u64| (unknown == 0).then_some(value);
        let hugetlb = sort == Sort::Hugetlb;
        Self {
            total: pages,
            memory: tally.memory,
            hugetlb: if hugetlb { tally.memory } else { 0 },
            swap: Some(tally.swap),
            not_present,
            not_mapped,
            // hugetlb pages stay where they are until they are unmapped.
            dirty: if hugetlb {
                Some(0)
            } else {
                known(tally.own + tally.dirty, tally.dirty_unknown)
            },
            huge: known(tally.huge, tally.huge_unknown),
            zero: known(tally.zero, tally.zero_unknown),
        }
    }

    /// Of `empty` pages, so many are swapped out.
    fn found_swapped(&mut self, pages: u64) {
        let from = self.not_present.map(|empty| empty.min(pages)).unwrap_or(pages);
        self.swap = self.swap.map(|swap| swap + from);
        self.not_present = self.not_present.map(|empty| empty - from);
    }
}

/// Where a mapping is and what is known beforehand.
pub struct Place<'run> {
    /// `/proc`.
    pub procfs: &'run ProcFs,
    /// The process, or a thread of it.
    pub pid: u32,
    /// Whether anything at all is swapped out on this machine.
    pub swap_in_use: bool,
}

impl Place<'_> {
    /// The account of the part of a mapping that is in `range`; `None`: told to
    /// stop.
    ///
    /// # Errors
    /// The process has ended or runs another program.
    pub fn account(
        &self,
        counter: &mut Counter<'_>,
        mapping: &Mapping,
        range: Range<u64>,
    ) -> Result<Option<Account>> {
        let pages = |range: &Range<u64>| (range.end - range.start) / page_size();
        let backing = Backing::of(self.procfs, self.pid, mapping);
        let sort = sort(mapping, backing.as_ref().ok().and_then(Option::as_ref));
        let no_right = !(mapping.readable || mapping.writable || mapping.executable);
        let file_end = match &backing {
            Ok(backing) => Some(backing.as_ref().and_then(Backing::size)),
            Err(_) => None,
        };
        let end = file_end.flatten().map_or(range.end, |size| end_of_file(mapping, size));
        let end = end.clamp(range.start, range.end);
        let mut account = Account::default();
        for (part, behind) in [(range.start..end, false), (end..range.end, true)] {
            if part.is_empty() {
                continue;
            }
            let Some(tally) = counter.count(part.clone(), sort)? else { return Ok(None) };
            let hole = if no_right { Some(true) } else { file_end.map(|_| behind) };
            account.add(&Account::of_part(pages(&part), &tally, hole, sort));
        }
        if self.swap_in_use && sort == Sort::Other && mapping.file.is_some() {
            match backing {
                Ok(Some(backing)) if backing.is_shmem() => {
                    self.find_swapped(counter, &backing, mapping, range.start..end, &mut account)?;
                }
                Ok(_) => {}
                Err(_) => account.swap = None,
            }
        }
        Ok(Some(account))
    }

    /// Adds what of shared memory is swapped out.
    fn find_swapped(
        &self,
        counter: &mut Counter<'_>,
        backing: &Backing,
        mapping: &Mapping,
        range: Range<u64>,
        account: &mut Account,
    ) -> Result<()> {
        let offsets = mapping.file_offset(range.start)..mapping.file_offset(range.end);
        let found: Result<()> = match backing.open() {
            Ok(file) => swapped(&file, offsets.clone(), |part| {
                let at = |offset: u64| range.start + (offset - offsets.start);
                // A private copy may be in its place.
                let pages = counter.empty(at(part.start)..at(part.end))?;
                account.found_swapped(pages);
                Ok(())
            }),
            Err(errno) => Err(errno.into()),
        };
        if found.is_err() {
            account.swap = None;
            account.not_present = None;
        }
        Ok(())
    }
}

/// What is mapped.
fn sort(mapping: &Mapping, backing: Option<&Backing>) -> Sort {
    // Without the right to look at the file, its name must do.
    let hugetlb = backing.map_or(&*mapping.name == "/anon_hugepage", Backing::is_hugetlb);
    if hugetlb {
        return Sort::Hugetlb;
    }
    let name = &*mapping.name;
    // Others in brackets are of the kernel: [vdso], [uprobes] ...
    let plain = matches!(name, "" | "[heap]" | "[stack]" | "/dev/zero")
        || name.starts_with("[anon:")
        || name.starts_with("[stack:");
    let private = !mapping.shared && (mapping.file.is_none() || name == "/dev/zero");
    if plain && private { Sort::Anonymous } else { Sort::Other }
}

/// The first address behind the last page of the file.
fn end_of_file(mapping: &Mapping, size: u64) -> u64 {
    let page = page_size();
    let behind = size.div_ceil(page).saturating_mul(page).saturating_sub(mapping.offset);
    mapping.start.saturating_add(behind)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn four_parts_make_a_mapping() {
        let tally =
            Tally { memory: 7, swap: 3, guard: 2, zero: 5, own: 6, dirty: 1, ..Tally::default() };
        let sum = |account: &Account| {
            account.memory
                + account.swap.unwrap()
                + account.not_present.unwrap()
                + account.not_mapped.unwrap()
        };
        let open = Account::of_part(100, &tally, Some(false), Sort::Other);
        assert_eq!((sum(&open), open.not_mapped, open.not_present), (100, Some(2), Some(88)));
        assert_eq!((open.dirty, open.zero, open.hugetlb), (Some(7), Some(5), 0));
        let closed = Account::of_part(100, &tally, Some(true), Sort::Other);
        assert_eq!((sum(&closed), closed.not_mapped), (100, Some(90)));
        let mut both = open;
        both.add(&closed);
        assert_eq!((sum(&both), both.total, both.memory), (200, 200, 14));
        let unknown = Account::of_part(100, &tally, None, Sort::Hugetlb);
        assert_eq!((unknown.not_present, unknown.not_mapped), (None, None));
        assert_eq!((unknown.dirty, unknown.hugetlb), (Some(0), 7));
        both.add(&unknown);
        assert_eq!((both.not_present, both.swap), (None, Some(9)));
    }

    #[test]
    fn a_full_mapping_has_no_unknown_parts() {
        let tally = Tally { memory: 9, dirty_unknown: 9, huge_unknown: 9, ..Tally::default() };
        let full = Account::of_part(9, &tally, None, Sort::Other);
        assert_eq!((full.not_present, full.not_mapped), (Some(0), Some(0)));
        assert_eq!((full.dirty, full.huge, full.zero), (None, None, Some(0)));
    }

    #[test]
    fn what_is_swapped_was_not_present() {
        let mut account = Account::of_part(
            10,
            &Tally { memory: 4, ..Tally::default() },
            Some(false),
            Sort::Other,
        );
        account.found_swapped(5);
        assert_eq!((account.swap, account.not_present), (Some(5), Some(1)));
        account.found_swapped(5);
        assert_eq!((account.swap, account.not_present), (Some(6), Some(0)));
    }
}

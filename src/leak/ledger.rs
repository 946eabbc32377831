//! What a process has mapped since it is watched, range by range, from the
//! system calls it made in the kernel's order (`memleak.bpf.c`).

use std::collections::HashMap;

use crate::ranges::Range;
use crate::ranges::Ranges;
use crate::units::page_size;

/// What lies behind a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Backing {
    /// Memory of its own, or shared with relatives.
    Anonymous,
    /// A file.
    File,
    /// The area the program break ends.
    Brk,
}

/// One piece of address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapped {
    /// What lies behind it.
    pub backing: Backing,
    /// No access at all: address space that is reserved, not used.
    pub reserved: bool,
    /// Mapped inside an allocator's function, for blocks to come.
    pub allocator: bool,
    /// The stack that asked for it; 0: none.
    pub stack: u64,
    /// When, on the kernel's monotonic clock.
    pub time_ns: u64,
}

/// What happened to the address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// `mmap` gave this range.
    Map,
    /// `munmap` begins.
    Unmap,
    /// The `munmap` of this thread failed: all is as it was.
    UnmapFailed,
    /// `mremap` of this range begins.
    Remap,
    /// The `mremap` of this thread gave this range instead.
    Remapped,
    /// The `mremap` of this thread failed.
    RemapFailed,
    /// `mprotect` changed this range.
    Protect {
        /// No access from now on.
        none: bool,
    },
    /// The program break is at `start` now.
    Brk,
}

/// One change, with the thread that made it.
#[derive(Clone, Copy, Debug)]
pub struct Event {
    /// What happened.
    pub change: Change,
    /// The thread.
    pub tid: u32,
    /// First address.
    pub start: u64,
    /// Length in bytes, as the caller gave it.
    pub bytes: u64,
    /// What is there from now on, for changes that bring something.
    pub mapped: Mapped,
}

/// The mappings of one process that were made since it is watched.
#[derive(Default)]
pub struct Ledger {
    ranges: Ranges<Mapped>,
    /// Taken out by a call that has not ended yet, by thread.
    leaving: HashMap<u32, Vec<Range<Mapped>>>,
    program_break: Option<u64>,
}

impl Ledger {
    /// A ledger of a process whose program break is at `program_break`; `None`:
    /// the first call tells.
    pub fn new(program_break: Option<u64>) -> Self {
        Self { program_break, ..Self::default() }
    }

    /// Enters a change. Changes must come in the order in which they happened.
    pub fn enter(&mut self, event: &Event) {
        let start = event.start;
        let end = start.saturating_add(page_up(event.bytes));
        match event.change {
            Change::Map => drop(self.ranges.insert(start, end, event.mapped)),
            Change::Unmap => {
                let pieces = self.ranges.remove(start, end);
                self.leaving.insert(event.tid, pieces);
            }
            Change::Remap => {
                let pieces = self.ranges.remove(start, end);
                self.leaving.insert(event.tid, pieces);
            }
            Change::UnmapFailed | Change::RemapFailed => {
                let pieces = self.leaving.remove(&event.tid).unwrap_or_default();
                self.ranges.restore(pieces);
            }
            Change::Remapped => {
                // What was not ours before (older than the watch) stays so.
                let pieces = self.leaving.remove(&event.tid).unwrap_or_default();
                if let Some(before) = pieces.first() {
                    let mapped = Mapped {
                        backing: before.value.backing,
                        reserved: before.value.reserved,
                        ..event.mapped
                    };
                    self.ranges.insert(start, end, mapped);
                }
            }
            Change::Protect { none } => {
                self.ranges.map_range(start, end, |mapped| mapped.reserved = none);
            }
            Change::Brk => self.set_break(start, event.mapped),
        }
    }

    fn set_break(&mut self, now: u64, mapped: Mapped) {
        // The kernel maps whole pages up to the break (brk(), mm/mmap.c).
        let before = self.program_break.replace(now).map_or(now, page_up);
        let now = page_up(now);
        if now > before {
            self.ranges.insert(before, now, mapped);
        } else {
            self.ranges.remove(now, before);
        }
    }

    /// Everything mapped now.
    pub fn iter(&self) -> impl Iterator<Item = Range<Mapped>> + '_ {
        self.ranges.iter().map(|range| Range {
            start: range.start,
            end: range.end,
            value: *range.value,
        })
    }
}

/// Up to the next page boundary.
fn page_up(bytes: u64) -> u64 {
    let page = page_size();
    bytes.div_ceil(page).saturating_mul(page)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapped(stack: u64) -> Mapped {
        let backing = Backing::Anonymous;
        Mapped { backing, reserved: false, allocator: false, stack, time_ns: 1 }
    }

    fn event(change: Change, start: u64, pages: u64, stack: u64) -> Event {
        let bytes = pages * page_size();
        Event { change, tid: 1, start: start * page_size(), bytes, mapped: mapped(stack) }
    }

    /// Pages held by each stack.
    fn held(ledger: &Ledger) -> Vec<(u64, u64)> {
        ledger
            .iter()
            .map(|range| (range.value.stack, (range.end - range.start) / page_size()))
            .collect()
    }

    #[test]
    fn a_part_that_is_unmapped_leaves_two() {
        let mut ledger = Ledger::new(None);
        ledger.enter(&event(Change::Map, 16, 7, 1));
        ledger.enter(&event(Change::Unmap, 18, 2, 0));
        assert_eq!(held(&ledger), [(1, 2), (1, 3)]);
    }

    #[test]
    fn a_failed_call_changes_nothing() {
        let mut ledger = Ledger::new(None);
        ledger.enter(&event(Change::Map, 16, 7, 1));
        ledger.enter(&event(Change::Unmap, 16, 7, 0));
        ledger.enter(&event(Change::UnmapFailed, 16, 7, 0));
        assert_eq!(held(&ledger), [(1, 7)]);
        ledger.enter(&event(Change::Remap, 16, 7, 0));
        ledger.enter(&event(Change::RemapFailed, 16, 7, 0));
        assert_eq!(held(&ledger), [(1, 7)]);
    }

    #[test]
    fn what_is_mapped_over_is_gone() {
        let mut ledger = Ledger::new(None);
        ledger.enter(&event(Change::Map, 16, 7, 1));
        ledger.enter(&event(Change::Map, 17, 3, 2));
        assert_eq!(held(&ledger), [(1, 1), (2, 3), (1, 3)]);
    }

    #[test]
    fn another_thread_may_get_the_addresses_before_munmap_returns() {
        let mut ledger = Ledger::new(None);
        ledger.enter(&event(Change::Map, 16, 7, 1));
        ledger.enter(&event(Change::Unmap, 16, 7, 0));
        ledger.enter(&Event { tid: 2, ..event(Change::Map, 16, 7, 2) });
        assert_eq!(held(&ledger), [(2, 7)]);
    }

    #[test]
    fn a_mapping_that_moves_belongs_to_who_moved_it() {
        let mut ledger = Ledger::new(None);
        ledger.enter(&event(Change::Map, 16, 7, 1));
        ledger.enter(&event(Change::Remap, 16, 7, 0));
        ledger.enter(&event(Change::Remapped, 64, 11, 3));
        assert_eq!(held(&ledger), [(3, 11)]);
        // A mapping from before the watch stays unknown.
        ledger.enter(&event(Change::Remap, 256, 7, 0));
        ledger.enter(&event(Change::Remapped, 512, 11, 4));
        assert_eq!(held(&ledger), [(3, 11)]);
    }

    #[test]
    fn the_break_grows_and_shrinks_by_pages() {
        let page = page_size();
        let mut ledger = Ledger::new(None);
        let mut brk = |at: u64, stack: u64| {
            let bytes = 0;
            let mut mapped = mapped(stack);
            mapped.backing = Backing::Brk;
            ledger.enter(&Event { change: Change::Brk, tid: 1, start: at, bytes, mapped });
            held(&ledger)
        };
        assert_eq!(brk(16 * page, 1), []);
        assert_eq!(brk(19 * page + 1, 2), [(2, 4)]);
        assert_eq!(brk(21 * page, 3), [(2, 4), (3, 1)]);
        assert_eq!(brk(17 * page, 4), [(2, 1)]);
    }

    #[test]
    fn reserved_space_becomes_memory_piece_by_piece() {
        let mut ledger = Ledger::new(None);
        let mut reserve = event(Change::Map, 16, 100, 1);
        reserve.mapped.reserved = true;
        ledger.enter(&reserve);
        ledger.enter(&event(Change::Protect { none: false }, 16, 3, 0));
        let reserved: u64 = ledger
            .iter()
            .filter(|range| range.value.reserved)
            .map(|range| (range.end - range.start) / page_size())
            .sum();
        assert_eq!(reserved, 97);
    }
}

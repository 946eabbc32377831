//! From the addresses of a process to frames of memory, neighbours together.

use std::ops::Range;

use super::Entry;
use super::Held;
use super::Nodes;
use super::PageFlags;
use super::flags::ZERO_PAGE;
use crate::error::Result;
use crate::units::page_size;

/// Pages that follow one another, here and in memory, and are of one sort.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Addresses.
    pub range: Range<u64>,
    /// The frame of the first page; `None`: swapped out.
    pub frame: Option<u64>,
    /// Frames: 1 where the zero page is mapped again and again.
    pub frames: u64,
    /// The memory node; `None`: unknown, or not in memory.
    pub node: Option<u32>,
    /// Flags as in `/proc/kpageflags`; `None`: hidden, or not in memory.
    pub flags: Option<u64>,
}

/// Puts pages together to extents.
pub struct Physical<'run> {
    nodes: &'run Nodes,
    current: Option<Extent>,
    frames: Vec<u64>,
    flags: Vec<Option<u64>>,
}

impl<'run> Physical<'run> {
    /// Nothing seen yet.
    pub fn new(nodes: &'run Nodes) -> Self {
        Self { nodes, current: None, frames: Vec::new(), flags: Vec::new() }
    }

    /// Adds the entries of the pages from `at` on, and calls `done` with each
    /// extent that is complete.
    ///
    /// # Errors
    /// Those of `done`.
    pub fn add(
        &mut self,
        flags: &mut Option<PageFlags>,
        at: u64,
        entries: &[Entry],
        done: &mut dyn FnMut(Extent) -> Result<()>,
    ) -> Result<()> {
        self.look_up(flags, entries);
        let pages = entries.iter().zip(std::mem::take(&mut self.flags));
        for (page, (entry, flags)) in (0..).zip(pages) {
            let start = at + page * page_size();
            let frame = match entry.held() {
                Held::Memory if entry.is_present() => Some(entry.frame()),
                Held::Swap => None,
                _ => continue,
            };
            let node = frame.and_then(|frame| self.nodes.of(frame));
            let extent = Extent {
                range: start..start + page_size(),
                frame,
                frames: u64::from(frame.is_some()),
                node,
                flags,
            };
            self.push(extent, done)?;
        }
        Ok(())
    }

    /// Calls `done` with what is left.
    ///
    /// # Errors
    /// Those of `done`.
    pub fn finish(&mut self, done: &mut dyn FnMut(Extent) -> Result<()>) -> Result<()> {
        self.current.take().map_or(Ok(()), done)
    }

    fn look_up(&mut self, flags: &mut Option<PageFlags>, entries: &[Entry]) {
        self.flags.clear();
        self.flags.resize(entries.len(), None);
        let Some(flags) = flags else { return };
        let present = || entries.iter().enumerate().filter(|(_, entry)| entry.is_present());
        self.frames.clear();
        self.frames.extend(present().map(|(_, entry)| entry.frame()));
        let mut places = present().map(|(at, _)| at);
        flags.each(&self.frames, |_, found| {
            if let Some(place) = places.next().and_then(|at| self.flags.get_mut(at)) {
                *place = found;
            }
        });
    }

    fn push(&mut self, extent: Extent, done: &mut dyn FnMut(Extent) -> Result<()>) -> Result<()> {
        if let Some(current) = &mut self.current {
            if current.take_in(&extent) {
                return Ok(());
            }
            if let Some(complete) = self.current.take() {
                done(complete)?;
            }
        }
        self.current = Some(extent);
        Ok(())
    }
}

impl Extent {
    /// Grows by a page if it continues this extent.
    fn take_in(&mut self, page: &Extent) -> bool {
        if self.range.end != page.range.start || self.node != page.node {
            return false;
        }
        let zero = |flags: Option<u64>| flags.is_some_and(|flags| flags & ZERO_PAGE != 0);
        if self.flags != page.flags {
            return false;
        }
        // The zero page may be mapped again and again.
        let again = zero(page.flags) && self.frames == 1 && self.frame == page.frame;
        let next = match (self.frame, page.frame) {
            (None, None) => true,
            (Some(first), Some(frame)) => again || first.checked_add(self.frames) == Some(frame),
            _ => false,
        };
        if next {
            self.range.end = page.range.end;
            self.frames += if again { 0 } else { page.frames };
        }
        next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(at: u64, frame: Option<u64>, flags: u64) -> Extent {
        let range = at * page_size()..(at + 1) * page_size();
        let frames = u64::from(frame.is_some());
        Extent { range, frame, frames, node: Some(0), flags: frame.map(|_| flags) }
    }

    /// First and last page, first frame, frames, flags.
    type Joined = (u64, u64, Option<u64>, u64, Option<u64>);

    fn joined(pages: &[Extent]) -> Vec<Joined> {
        let nodes = Nodes::read(&crate::procfs::ProcFs::new("/nonexistent"));
        let mut physical = Physical::new(&nodes);
        let mut extents = Vec::new();
        let mut done = |extent: Extent| {
            let (start, end) = (extent.range.start / page_size(), extent.range.end / page_size());
            extents.push((start, end, extent.frame, extent.frames, extent.flags));
            Ok(())
        };
        for page in pages {
            physical.push(page.clone(), &mut done).unwrap();
        }
        physical.finish(&mut done).unwrap();
        extents
    }

    #[test]
    fn neighbours_in_both_senses_are_one() {
        let pages = [page(1, Some(7), 4), page(2, Some(8), 4), page(3, Some(10), 4)];
        assert_eq!(joined(&pages), [(1, 3, Some(7), 2, Some(4)), (3, 4, Some(10), 1, Some(4))]);
        // A gap between the addresses, other flags, swapped out.
        let pages = [
            page(1, Some(7), 4),
            page(3, Some(8), 4),
            page(4, Some(9), 5),
            page(5, None, 0),
            page(6, None, 0),
        ];
        assert_eq!(
            joined(&pages),
            [
                (1, 2, Some(7), 1, Some(4)),
                (3, 4, Some(8), 1, Some(4)),
                (4, 5, Some(9), 1, Some(5)),
                (5, 7, None, 0, None),
            ]
        );
    }

    #[test]
    fn the_zero_page_counts_once() {
        let zero = |at| page(at, Some(99), ZERO_PAGE);
        assert_eq!(joined(&[zero(1), zero(2), zero(3)]), [(1, 4, Some(99), 1, Some(ZERO_PAGE))]);
    }
}

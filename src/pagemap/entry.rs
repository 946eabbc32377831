//! One entry of `/proc/PID/pagemap`.

/// Swap types from here on stand for something else than a swap area: pages
/// that are being moved, memory of devices, poisoned pages, markers
/// (`MAX_SWAPFILES`, include/linux/swap.h: 23 at least, where all of these are
/// built in). Areas are numbered from 0, the lowest free number first.
const FIRST_SPECIAL: u64 = 23;

/// Markers have these bits where others have a frame, and nobody's page is in
/// frames 0 to 7 (`PTE_MARKER_...`, include/linux/swapops.h).
const MARKER_BITS: u64 = 7;
const MARKER_POISONED: u64 = 1 << 1;
const MARKER_GUARD: u64 = 1 << 2;

/// What the kernel says of one page.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Entry(pub u64);

/// What is at an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Held {
    /// Nothing.
    Nothing,
    /// A page in memory; it may be the shared zero page.
    Memory,
    /// A page that has been swapped out.
    Swap,
    /// Something that makes touching it a signal: a guard region
    /// (`MADV_GUARD_INSTALL`, madvise(2)) or a poisoned page.
    Guard,
}

// SAFETY: a wrapped integer, of which every bit pattern is valid.
unsafe impl plain::Plain for Entry {}

/// The memory of entries, to be read into.
pub(super) fn as_bytes(entries: &mut [Entry]) -> &mut [u8] {
    // SAFETY: entries are plain integers without padding, so that any bytes may
    // be written to them.
    unsafe { plain::as_mut_bytes(entries) }
}

impl Entry {
    const PRESENT: u64 = 1 << 63;
    const SWAPPED: u64 = 1 << 62;
    const FILE: u64 = 1 << 61;
    const GUARD: u64 = 1 << 58;
    const EXCLUSIVE: u64 = 1 << 56;
    const FRAME: u64 = (1 << 55) - 1;

    /// Whether there is nothing at all.
    pub fn is_empty(self) -> bool {
        self.0 & (Self::PRESENT | Self::SWAPPED) == 0
    }

    /// Whether the page is mapped.
    pub fn is_present(self) -> bool {
        self.0 & Self::PRESENT != 0
    }

    /// Whether the page is one of a file or of shared memory.
    pub fn is_file(self) -> bool {
        self.0 & Self::FILE != 0
    }

    /// Whether nobody else maps the page.
    pub fn is_exclusive(self) -> bool {
        self.0 & Self::EXCLUSIVE != 0
    }

    /// The frame the page is in; 0 if that is hidden from us.
    pub fn frame(self) -> u64 {
        if self.is_present() { self.0 & Self::FRAME } else { 0 }
    }

    /// What is there. Without the right to see frames, swap types are hidden
    /// too: a page that is being moved then looks swapped out.
    pub fn held(self) -> Held {
        if self.is_present() {
            return Held::Memory;
        }
        if self.0 & Self::SWAPPED == 0 {
            return Held::Nothing;
        }
        if self.0 & Self::GUARD != 0 {
            return Held::Guard;
        }
        let (area, offset) = (self.0 & 31, (self.0 & Self::FRAME) >> 5);
        match offset {
            _ if area < FIRST_SPECIAL => Held::Swap,
            offset if offset > MARKER_BITS => Held::Memory,
            offset if offset & (MARKER_POISONED | MARKER_GUARD) != 0 => Held::Guard,
            // Remembers that a page is write-protected (userfaultfd(2)).
            _ => Held::Nothing,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn swapped(area: u64, offset: u64) -> Entry {
        Entry(Entry::SWAPPED | area | offset << 5)
    }

    #[test]
    fn an_entry_says_what_is_there() {
        assert_eq!(Entry(0).held(), Held::Nothing);
        // A new mapping is soft-dirty all over (bit 55), and still empty.
        assert_eq!(Entry(1 << 55).held(), Held::Nothing);
        assert!(Entry(1 << 55).is_empty());
        let page = Entry(1 << 63 | 1 << 61 | 1 << 56 | 0x1_2345);
        assert_eq!((page.held(), page.frame()), (Held::Memory, 0x1_2345));
        assert!(page.is_file() && page.is_exclusive() && !page.is_empty());
    }

    #[test]
    fn only_swap_areas_are_swap() {
        assert_eq!(swapped(0, 0).held(), Held::Swap, "what is hidden");
        assert_eq!(swapped(22, 1 << 40).held(), Held::Swap);
        assert_eq!(swapped(22, 1 << 40).frame(), 0);
        // Being moved from frame 0x1234.
        assert_eq!(swapped(29, 0x1234).held(), Held::Memory);
        assert_eq!(swapped(31, 1).held(), Held::Nothing, "write-protected");
        assert_eq!(swapped(31, 2).held(), Held::Guard, "poisoned");
        assert_eq!(swapped(31, 4).held(), Held::Guard, "a guard, before bit 58");
        assert_eq!(Entry(Entry::SWAPPED | Entry::GUARD).held(), Held::Guard);
    }
}

//! A ledger of address ranges: what a process has mapped, fed by the kernel's
//! events in their order. Ranges are half-open and never overlap; a newer one
//! replaces what it covers, as `MAP_FIXED` does. Rounding to pages is up to the
//! caller.

use std::collections::BTreeMap;

/// The addresses from `start` up to, but without, `end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Range<T> {
    /// First address.
    pub start: u64,
    /// The address after the last.
    pub end: u64,
    /// What is known of it.
    pub value: T,
}

impl<T> Range<T> {
    /// Its size.
    pub fn bytes(&self) -> u64 {
        self.end.saturating_sub(self.start)
    }
}

/// Ranges, each with a value. One that is cut in two gives its value to both
/// parts; parts are not joined again.
#[derive(Clone, Debug)]
pub struct Ranges<T> {
    /// By start: end and value. Never empty, never overlapping.
    ranges: BTreeMap<u64, (u64, T)>,
    /// The sum of all sizes. It cannot overflow: addresses are 64 bits.
    bytes: u64,
}

impl<T> Default for Ranges<T> {
    fn default() -> Self {
        Self { ranges: BTreeMap::new(), bytes: 0 }
    }
}

impl<T: Clone> Ranges<T> {
    /// Gives the addresses a value and returns what they had, lowest first.
    /// Does nothing when `end` is not above `start`.
    pub fn insert(&mut self, start: u64, end: u64, value: T) -> Vec<Range<T>> {
        let replaced = self.remove(start, end);
        self.put(start, end, value);
        replaced
    }

    /// Takes the addresses out and returns what they had, lowest first, cut at
    /// the borders.
    pub fn remove(&mut self, start: u64, end: u64) -> Vec<Range<T>> {
        if start >= end {
            return Vec::new();
        }
        self.cut(start);
        self.cut(end);
        let mut removed = Vec::new();
        while let Some((&first, _)) = self.ranges.range(start..end).next()
            && let Some((last, value)) = self.ranges.remove(&first)
        {
            removed.push(Range { start: first, end: last, value });
        }
        self.bytes -= removed.iter().map(Range::bytes).sum::<u64>();
        removed
    }

    /// The range that an address lies in.
    pub fn get(&self, address: u64) -> Option<Range<&T>> {
        let (&start, (end, value)) = self.ranges.range(..=address).next_back()?;
        (address < *end).then_some(Range { start, end: *end, value })
    }

    /// All ranges, lowest first.
    pub fn iter(&self) -> impl Iterator<Item = Range<&T>> {
        self.ranges.iter().map(|(&start, (end, value))| Range { start, end: *end, value })
    }

    /// The size of all ranges together.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Changes the values of the addresses, as `mprotect` does; ranges that
    /// reach over a border are cut there.
    pub fn map_range(&mut self, start: u64, end: u64, mut change: impl FnMut(&mut T)) {
        if start >= end {
            return;
        }
        self.cut(start);
        self.cut(end);
        for (_, (_, value)) in self.ranges.range_mut(start..end) {
            change(value);
        }
    }

    /// Puts back what [`Ranges::insert`] or [`Ranges::remove`] returned, for a
    /// call that turns out to have failed; only where nothing newer is.
    pub fn restore(&mut self, pieces: impl IntoIterator<Item = Range<T>>) {
        for piece in pieces {
            // The free parts of the piece, between what is there.
            let mut from = match self.get(piece.start) {
                Some(over) => over.end,
                None => piece.start,
            };
            let mut gaps = Vec::new();
            for (&start, (end, _)) in self.ranges.range(piece.start..) {
                if start >= piece.end {
                    break;
                }
                gaps.push((from, start));
                from = from.max(*end);
            }
            gaps.push((from, piece.end));
            for (start, end) in gaps {
                self.put(start, end, piece.value.clone());
            }
        }
    }

    /// Adds a range where there is none.
    fn put(&mut self, start: u64, end: u64, value: T) {
        if start < end {
            self.bytes += end - start;
            self.ranges.insert(start, (end, value));
        }
    }

    /// Cuts the range that reaches over an address in two.
    fn cut(&mut self, at: u64) {
        let Some((_, (end, value))) = self.ranges.range_mut(..at).next_back() else { return };
        if *end > at {
            let upper = (std::mem::replace(end, at), value.clone());
            self.ranges.insert(at, upper);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn range(start: u64, end: u64, value: char) -> Range<char> {
        Range { start, end, value }
    }

    fn all(ranges: &Ranges<char>) -> Vec<Range<char>> {
        ranges.iter().map(|r| range(r.start, r.end, *r.value)).collect()
    }

    #[test]
    fn a_hole_leaves_both_ends() {
        let mut ranges = Ranges::default();
        assert_eq!(ranges.insert(10, 100, 'a'), []);
        assert_eq!(ranges.remove(40, 50), [range(40, 50, 'a')]);
        assert_eq!(all(&ranges), [range(10, 40, 'a'), range(50, 100, 'a')]);
        assert_eq!(ranges.bytes(), 80);
        assert_eq!(ranges.get(39).map(|r| r.end), Some(40));
        assert_eq!(ranges.get(40), None);
        assert_eq!(ranges.get(9), None);
        assert_eq!(ranges.get(50), Some(Range { start: 50, end: 100, value: &'a' }));
        assert_eq!(ranges.remove(0, 1000), [range(10, 40, 'a'), range(50, 100, 'a')]);
        assert_eq!((all(&ranges), ranges.bytes()), (vec![], 0));
    }

    #[test]
    fn a_newer_range_replaces_what_it_covers() {
        let mut ranges = Ranges::default();
        ranges.insert(0, 10, 'a');
        ranges.insert(20, 30, 'b');
        assert_eq!(ranges.insert(5, 25, 'c'), [range(5, 10, 'a'), range(20, 25, 'b')]);
        assert_eq!(all(&ranges), [range(0, 5, 'a'), range(5, 25, 'c'), range(25, 30, 'b')]);
        assert_eq!(ranges.insert(5, 25, 'd'), [range(5, 25, 'c')]);
        assert_eq!(ranges.bytes(), 30);
    }

    #[test]
    fn the_whole_address_space_fits() {
        let mut ranges = Ranges::default();
        ranges.insert(0, u64::MAX, 'a');
        assert_eq!(ranges.bytes(), u64::MAX);
        ranges.insert(u64::MAX - 4096, u64::MAX, 'b');
        assert_eq!(ranges.bytes(), u64::MAX);
        assert_eq!(ranges.get(u64::MAX), None);
        assert_eq!(ranges.get(u64::MAX - 1).map(|r| *r.value), Some('b'));
        assert_eq!(ranges.remove(1, u64::MAX).len(), 2);
        assert_eq!(all(&ranges), [range(0, 1, 'a')]);
    }

    #[test]
    fn nothing_happens_to_an_empty_or_reversed_range() {
        let mut ranges = Ranges::default();
        ranges.insert(10, 20, 'a');
        assert_eq!(ranges.insert(15, 15, 'b'), []);
        assert_eq!(ranges.insert(18, 12, 'b'), []);
        assert_eq!(ranges.remove(15, 15), []);
        assert_eq!(ranges.remove(18, 12), []);
        ranges.map_range(15, 15, |value| *value = 'c');
        ranges.map_range(18, 12, |value| *value = 'c');
        ranges.restore([range(30, 30, 'd'), range(40, 35, 'd'), range(15, 12, 'd')]);
        assert_eq!(all(&ranges), [range(10, 20, 'a')]);
    }

    #[test]
    fn protection_changes_within_its_borders() {
        let mut ranges = Ranges::default();
        ranges.insert(0, 10, 'a');
        ranges.insert(20, 30, 'b');
        ranges.map_range(5, 22, |value| value.make_ascii_uppercase());
        let expected =
            [range(0, 5, 'a'), range(5, 10, 'A'), range(20, 22, 'B'), range(22, 30, 'b')];
        assert_eq!(all(&ranges), expected);
        assert_eq!(ranges.bytes(), 20);
    }

    #[test]
    fn an_undone_call_leaves_newer_ranges_alone() {
        let mut ranges = Ranges::default();
        ranges.insert(0, 100, 'a');
        let removed = ranges.remove(10, 90);
        ranges.insert(5, 15, 'n');
        ranges.insert(40, 50, 'n');
        ranges.insert(80, 95, 'n');
        ranges.restore(removed);
        let expected = [
            range(0, 5, 'a'),
            range(5, 15, 'n'),
            range(15, 40, 'a'),
            range(40, 50, 'n'),
            range(50, 80, 'a'),
            range(80, 95, 'n'),
            range(95, 100, 'a'),
        ];
        assert_eq!(all(&ranges), expected);
        assert_eq!(ranges.bytes(), 100);
    }

    const PAGES: u64 = 24;

    #[derive(Clone, Debug)]
    enum Step {
        Insert(u64, u64, u32),
        Remove(u64, u64),
        Map(u64, u64),
        /// Undoes an earlier step, by its number.
        Restore(usize),
    }

    fn step() -> impl Strategy<Value = Step> {
        let page = || 0..=PAGES;
        prop_oneof![
            3 => (page(), page(), any::<u32>()).prop_map(|(a, b, v)| Step::Insert(a, b, v)),
            2 => (page(), page()).prop_map(|(a, b)| Step::Remove(a, b)),
            1 => (page(), page()).prop_map(|(a, b)| Step::Map(a, b)),
            1 => (0_usize..8).prop_map(Step::Restore),
        ]
    }

    type Pages = [Option<u32>; PAGES as usize];

    fn set(pages: &mut Pages, start: u64, end: u64, value: impl Fn(Option<u32>) -> Option<u32>) {
        for page in start..end {
            pages[page as usize] = value(pages[page as usize]);
        }
    }

    proptest! {
        #[test]
        fn it_agrees_with_a_table_of_pages(steps in prop::collection::vec(step(), 0..60)) {
            // At the very end of the address space, where arithmetic is hardest.
            let address = |page: u64| u64::MAX - PAGES + page;
            let mut ranges = Ranges::default();
            let mut pages: Pages = [None; PAGES as usize];
            let mut taken: Vec<Vec<Range<u32>>> = Vec::new();
            for step in steps {
                let before = pages;
                let pieces = match step {
                    Step::Insert(start, end, value) => {
                        set(&mut pages, start, end, |_| Some(value));
                        ranges.insert(address(start), address(end), value)
                    }
                    Step::Remove(start, end) => {
                        set(&mut pages, start, end, |_| None);
                        ranges.remove(address(start), address(end))
                    }
                    Step::Map(start, end) => {
                        set(&mut pages, start, end, |old| old.map(|v| v.wrapping_mul(3)));
                        ranges.map_range(address(start), address(end), |v| *v = v.wrapping_mul(3));
                        continue;
                    }
                    Step::Restore(which) => {
                        if let Some(pieces) = taken.get(which) {
                            for piece in pieces {
                                let page = |address: u64| address - (u64::MAX - PAGES);
                                let (start, end) = (page(piece.start), page(piece.end));
                                set(&mut pages, start, end, |old| old.or(Some(piece.value)));
                            }
                            ranges.restore(pieces.clone());
                        }
                        continue;
                    }
                };
                // What was returned is what was there, in order and without overlap.
                let (start, end) = match step {
                    Step::Insert(start, end, _) | Step::Remove(start, end) => (start, end),
                    _ => (0, 0),
                };
                let mut returned: Pages = [None; PAGES as usize];
                let mut last = 0;
                for piece in &pieces {
                    prop_assert!(last <= piece.start && piece.start < piece.end);
                    last = piece.end;
                    let first = piece.start - address(0);
                    set(&mut returned, first, first + piece.bytes(), |_| Some(piece.value));
                }
                let mut expected: Pages = [None; PAGES as usize];
                for page in start..end {
                    expected[page as usize] = before[page as usize];
                }
                prop_assert_eq!(returned, expected);
                taken.push(pieces);
            }
            let mut last = 0;
            for range in ranges.iter() {
                prop_assert!(last <= range.start && range.start < range.end);
                last = range.end;
            }
            let found: Vec<Option<u32>> =
                (0..PAGES).map(|page| ranges.get(address(page)).map(|r| *r.value)).collect();
            prop_assert_eq!(&found[..], &pages[..]);
            prop_assert_eq!(ranges.bytes(), pages.iter().flatten().count() as u64);
            prop_assert_eq!(ranges.iter().map(|r| r.bytes()).sum::<u64>(), ranges.bytes());
        }
    }
}

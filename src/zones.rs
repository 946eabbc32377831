//! Zones of memory: what they hold, their watermarks, and how broken up their
//! free memory is, by the kernel's own formulas.

use crate::error::Error;
use crate::error::Result;

/// A zone at one moment, from `zone_read()` of zones.bpf.h. Sizes in pages.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Zone {
    /// Its node.
    pub nid: u32,
    /// Which of its node's zones.
    pub index: u32,
    /// Its name: `DMA32`, `Normal`, …
    pub name: String,
    /// The watermarks, boost included, as `/proc/zoneinfo` shows them.
    pub min: u64,
    /// See `min`.
    pub low: u64,
    /// See `min`.
    pub high: u64,
    /// What the watermarks are raised by for the moment.
    pub boost: u64,
    /// Free pages.
    pub free: u64,
    /// Of those, for movable memory only.
    pub free_cma: u64,
    /// Pages the allocator manages.
    pub managed: u64,
    /// Pages there are.
    pub present: u64,
    /// Free blocks of each order.
    pub free_blocks: Vec<u64>,
}

/// Makes a [`Zone`] of a skeleton's `zone_state`; each has a type of its own.
#[macro_export]
macro_rules! zone {
    ($raw:expr) => {{
        let raw = $raw;
        let orders = (raw.orders as usize).min(raw.free_blocks.len());
        $crate::zones::Zone {
            nid: raw.nid,
            index: raw.index,
            name: $crate::event::text(&raw.name),
            min: raw.min,
            low: raw.low,
            high: raw.high,
            boost: raw.boost,
            free: raw.free,
            free_cma: raw.free_cma,
            managed: raw.managed,
            present: raw.present,
            free_blocks: raw.free_blocks[..orders].to_vec(),
        }
    }};
}

/// The free blocks of a zone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FreeBlocks {
    /// Its node.
    pub nid: u32,
    /// Its name.
    pub zone: String,
    /// How many of each order, the smallest first.
    pub blocks: Vec<u64>,
}

impl From<Zone> for FreeBlocks {
    fn from(zone: Zone) -> Self {
        Self { nid: zone.nid, zone: zone.name, blocks: zone.free_blocks }
    }
}

impl FreeBlocks {
    /// All free pages.
    pub fn pages(&self) -> u64 {
        self.each().map(|(order, blocks)| blocks << order).sum()
    }

    /// How many blocks of an order could be had from what is free, larger blocks
    /// broken up.
    pub fn suitable(&self, order: u32) -> u64 {
        self.each().filter(|(of, _)| *of >= order).map(|(of, blocks)| blocks << (of - order)).sum()
    }

    fn each(&self) -> impl Iterator<Item = (u32, u64)> {
        (0u32..).zip(self.blocks.iter().copied())
    }

    /// Why a request of that order would fail, in thousandths: towards 0 for want
    /// of memory, towards 1000 because it is broken up; -1000: it would not fail
    /// (`__fragmentation_index()`, mm/vmstat.c).
    pub fn fragmentation(&self, order: u32) -> i64 {
        let total: u64 = self.blocks.iter().sum();
        if total == 0 {
            return 0;
        }
        if self.suitable(order) > 0 {
            return -1000;
        }
        let requests = (self.pages() * 1000) >> order;
        // At most two thousand, as no free block is as large as the request.
        1000 - ((1000 + requests) / total).cast_signed()
    }

    /// The share of free memory that is of no use for an order, in thousandths
    /// (`unusable_free_index()`, mm/vmstat.c). With nothing free all of it is.
    pub fn unusable(&self, order: u32) -> u64 {
        let pages = self.pages();
        if pages == 0 {
            return 1000;
        }
        (pages - (self.suitable(order) << order)) * 1000 / pages
    }
}

/// From `/proc/buddyinfo`: `Node 0, zone    DMA32   1   2 …`.
///
/// # Errors
/// A line is not of that form.
pub fn from_buddyinfo(text: &str) -> Result<Vec<FreeBlocks>> {
    let line = |line: &str| {
        let (node, rest) = line.strip_prefix("Node ")?.split_once(", zone")?;
        let mut fields = rest.split_ascii_whitespace();
        let zone = fields.next()?.to_owned();
        let blocks = fields.map(|field| field.parse().ok()).collect::<Option<Vec<u64>>>()?;
        (!blocks.is_empty()).then_some(FreeBlocks { nid: node.parse().ok()?, zone, blocks })
    };
    text.lines()
        .map(|text| {
            line(text).ok_or_else(|| Error::failure(format!("/proc/buddyinfo has a line `{text}`")))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(blocks: &[u64]) -> FreeBlocks {
        FreeBlocks { nid: 0, zone: "Normal".into(), blocks: blocks.to_vec() }
    }

    #[test]
    fn indexes_are_those_of_the_kernel() {
        let zone = of(&[8, 4, 2, 0]);
        assert_eq!((zone.pages(), zone.suitable(1), zone.suitable(3)), (24, 8, 0));
        assert_eq!(zone.fragmentation(2), -1000);
        // 1000 - (1000 + 24 * 1000 / 8) / 14
        assert_eq!(zone.fragmentation(3), 715);
        assert_eq!(zone.unusable(0), 0);
        assert_eq!(zone.unusable(1), 333);
        assert_eq!(zone.unusable(3), 1000);
    }

    #[test]
    fn the_ends_of_the_scale() {
        let nothing = of(&[0, 0]);
        assert_eq!((nothing.fragmentation(1), nothing.unusable(0)), (0, 1000));
        // A single block that is nearly large enough: the kernel goes below 0 too.
        assert_eq!(of(&[0, 1, 0]).fragmentation(2), -500);
    }

    #[test]
    fn buddyinfo_is_read_line_by_line() {
        let text = "Node 0, zone      DMA      1      0 \nNode 1, zone   Normal   7919     23 \n";
        let zones = from_buddyinfo(text).unwrap();
        assert_eq!(zones[1], FreeBlocks { nid: 1, zone: "Normal".into(), blocks: vec![7919, 23] });
        for bad in ["Node x, zone DMA 1", "Node 0, zone DMA", "Node 0, zone DMA 1 x", "pages"] {
            assert!(from_buddyinfo(bad).is_err(), "{bad}");
        }
    }
}

//! The machine's memory counters: which there are, where this kernel keeps
//! them, and in which unit.
//!
//! Indexes into the kernel's arrays differ by release and build options, so
//! they are resolved by name from BTF (`enum node_stat_item` and
//! `enum zone_stat_item`, include/linux/mmzone.h).

use crate::kernel::KernelFacts;
use crate::procfs::Counters;
use crate::procfs::ProcFs;
use crate::units::page_size;

/// How the kernel counts an item.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kept {
    Pages,
    Kib,
    /// In pages since 5.12 (69473e5de873 "mm: memcontrol: convert NR_ANON_THPS
    /// account to pages" and its siblings), in huge pages before.
    /// `/proc/vmstat` shows huge pages on every release.
    Huge,
}

/// One counter and its names.
struct Item {
    /// Its enumerator, newest name first.
    names: &'static [&'static str],
    /// Its line in `/proc/vmstat` and in a node's `vmstat`.
    line: &'static str,
    kept: Kept,
}

macro_rules! counters {
    ($($(#[$doc:meta])* $field:ident: $kept:ident [$($name:literal),+] $line:literal,)+) => {
        /// A counter.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Counter { $($(#[$doc])* $field,)+ }

        impl Counter {
            /// Every counter.
            pub const ALL: &'static [Counter] = &[$(Counter::$field,)+];
        }

        const ITEMS: &[Item] = &[
            $(Item { names: &[$($name),+], line: $line, kept: Kept::$kept },)+
        ];
    };
}

counters! {
    /// Free pages.
    Free: Pages ["NR_FREE_PAGES"] "nr_free_pages",
    /// Active anonymous list.
    ActiveAnon: Pages ["NR_ACTIVE_ANON"] "nr_active_anon",
    /// Inactive anonymous list.
    InactiveAnon: Pages ["NR_INACTIVE_ANON"] "nr_inactive_anon",
    /// Active file list.
    ActiveFile: Pages ["NR_ACTIVE_FILE"] "nr_active_file",
    /// Inactive file list.
    InactiveFile: Pages ["NR_INACTIVE_FILE"] "nr_inactive_file",
    /// Mlocked and otherwise pinned.
    Unevictable: Pages ["NR_UNEVICTABLE"] "nr_unevictable",
    /// Waiting to be written back.
    Dirty: Pages ["NR_FILE_DIRTY"] "nr_dirty",
    /// Being written back.
    Writeback: Pages ["NR_WRITEBACK"] "nr_writeback",
    /// Mapped anonymous.
    Anon: Pages ["NR_ANON_MAPPED"] "nr_anon_pages",
    /// Mapped files.
    Mapped: Pages ["NR_FILE_MAPPED"] "nr_mapped",
    /// tmpfs and shared memory.
    Shmem: Pages ["NR_SHMEM"] "nr_shmem",
    /// Reclaimable slab; the unit is pages whatever the name says.
    SlabReclaimable: Pages ["NR_SLAB_RECLAIMABLE_B", "NR_SLAB_RECLAIMABLE"] "nr_slab_reclaimable",
    /// Unreclaimable slab.
    SlabUnreclaimable: Pages ["NR_SLAB_UNRECLAIMABLE_B", "NR_SLAB_UNRECLAIMABLE"]
        "nr_slab_unreclaimable",
    /// Other reclaimable kernel memory.
    MiscReclaimable: Pages ["NR_KERNEL_MISC_RECLAIMABLE"] "nr_kernel_misc_reclaimable",
    /// Sent to an NFS server and not yet committed. Counted until 5.8
    /// (8d92890bd6b8 "mm/writeback: discard NR_UNSTABLE_NFS"); the line that
    /// `/proc/vmstat` still has is a constant 0, so it is not read.
    NfsUnstable: Pages ["NR_UNSTABLE_NFS"] "",
    /// FUSE writeback copies (until 6.16).
    WritebackTemp: Pages ["NR_WRITEBACK_TEMP"] "nr_writeback_temp",
    /// Anonymous huge pages.
    AnonHuge: Huge ["NR_ANON_THPS"] "nr_anon_transparent_hugepages",
    /// Huge pages of shared memory.
    ShmemHuge: Huge ["NR_SHMEM_THPS"] "nr_shmem_hugepages",
    /// Of those, mapped as huge pages.
    ShmemPmdMapped: Huge ["NR_SHMEM_PMDMAPPED"] "nr_shmem_pmdmapped",
    /// Kernel stacks.
    KernelStack: Kib ["NR_KERNEL_STACK_KB"] "nr_kernel_stack",
    /// Page tables; an item of zones until 5.10.
    PageTables: Pages ["NR_PAGETABLE"] "nr_page_table_pages",
    /// In memory and in swap (since 5.12).
    SwapCached: Pages ["NR_SWAPCACHE"] "nr_swapcached",
}

/// Where a counter is in the kernel's arrays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Node(usize),
    Zone(usize),
}

/// Where this kernel keeps each counter, and its units in bytes.
#[derive(Clone, Debug)]
pub struct Layout {
    places: Vec<Option<Place>>,
    /// Bytes of one [`Kept::Huge`] in the kernel's arrays.
    huge_in_arrays: Option<i64>,
    /// Bytes of one [`Kept::Huge`] in `/proc/vmstat`.
    huge_in_files: Option<i64>,
}

impl Layout {
    /// Resolves every counter by name. What this kernel has not stays missing.
    pub fn resolve(facts: &KernelFacts, procfs: &ProcFs) -> Self {
        let index = |enumeration: &str, name: &str| {
            facts.enumerator(enumeration, name).and_then(|value| usize::try_from(value).ok())
        };
        let places = ITEMS
            .iter()
            .map(|item| {
                item.names.iter().find_map(|name| {
                    index("node_stat_item", name)
                        .map(Place::Node)
                        .or_else(|| index("zone_stat_item", name).map(Place::Zone))
                })
            })
            .collect();
        let huge = procfs.huge_page_size().and_then(|bytes| i64::try_from(bytes).ok());
        // NR_SWAPCACHE (b6038942480e) and the conversion to pages are both of
        // 5.12, so the one tells whether the other is there.
        let in_pages = index("node_stat_item", "NR_SWAPCACHE").is_some();
        let huge_in_arrays = if in_pages { Some(page_size() as i64) } else { huge };
        Self { places, huge_in_arrays, huge_in_files: huge }
    }

    /// A reading from the arrays of a node and of its zones added up.
    pub fn from_arrays(&self, node: &[i64], zone: &[i64]) -> Reading {
        self.reading(self.huge_in_arrays, |i| match self.places[i]? {
            Place::Node(at) => node.get(at).copied(),
            Place::Zone(at) => zone.get(at).copied(),
        })
    }

    /// A reading from `/proc/vmstat` or from a node's `vmstat`.
    pub fn from_counters(&self, counters: &Counters) -> Reading {
        self.reading(self.huge_in_files, |i| {
            counters.get(ITEMS[i].line).and_then(|&value| i64::try_from(value).ok())
        })
    }

    fn reading(&self, huge: Option<i64>, raw: impl Fn(usize) -> Option<i64>) -> Reading {
        let bytes = |i: usize| {
            let unit = match ITEMS[i].kept {
                Kept::Pages => page_size() as i64,
                Kept::Kib => 1024,
                Kept::Huge => huge?,
            };
            Some(raw(i)? * unit)
        };
        Reading((0..ITEMS.len()).map(bytes).collect())
    }
}

/// The counters of a node or of the machine, in bytes. One can be negative for
/// a moment, as the kernel's own are before it prints them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Reading(Vec<Option<i64>>);

impl Reading {
    /// A counter in bytes; `None`: not on this kernel.
    pub fn get(&self, counter: Counter) -> Option<u64> {
        self.sum(&[counter])
    }

    /// The sum of counters in bytes; `None` if one is missing.
    pub fn sum(&self, counters: &[Counter]) -> Option<u64> {
        counters
            .iter()
            .map(|&counter| {
                // Clamped each, as global_node_page_state() does.
                self.0.get(counter as usize).copied().flatten().map(|n| n.max(0).unsigned_abs())
            })
            .sum()
    }

    /// Sets a counter that this kernel keeps elsewhere.
    pub fn set_if_missing(&mut self, counter: Counter, bytes: impl FnOnce() -> Option<u64>) {
        if let Some(slot @ None) = self.0.get_mut(counter as usize) {
            *slot = bytes().and_then(|bytes| i64::try_from(bytes).ok());
        }
    }

    /// The counters of all nodes together.
    pub fn total<'node>(nodes: impl Iterator<Item = &'node Reading>) -> Reading {
        let mut total = Reading(vec![None; ITEMS.len()]);
        for node in nodes {
            for (to, from) in total.0.iter_mut().zip(&node.0) {
                *to = match (*to, *from) {
                    (Some(a), Some(b)) => Some(a + b),
                    (a, b) => a.or(b),
                };
            }
        }
        total
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout() -> Layout {
        let mut places = vec![None; ITEMS.len()];
        places[Counter::Free as usize] = Some(Place::Zone(1));
        places[Counter::Anon as usize] = Some(Place::Node(0));
        places[Counter::KernelStack as usize] = Some(Place::Node(2));
        places[Counter::AnonHuge as usize] = Some(Place::Node(1));
        Layout { places, huge_in_arrays: Some(2 << 20), huge_in_files: Some(2 << 20) }
    }

    #[test]
    fn each_item_is_read_in_its_unit_and_a_missing_one_stays_missing() {
        let reading = layout().from_arrays(&[7, 3, 48], &[0, 11]);
        assert_eq!(reading.get(Counter::Anon), Some(7 * page_size()));
        assert_eq!(reading.get(Counter::Free), Some(11 * page_size()));
        assert_eq!(reading.get(Counter::KernelStack), Some(48 * 1024));
        assert_eq!(reading.get(Counter::AnonHuge), Some(3 << 21));
        assert_eq!(reading.get(Counter::Dirty), None);
        assert_eq!(reading.sum(&[Counter::Anon, Counter::Dirty]), None);
    }

    #[test]
    fn the_machine_is_the_sum_of_its_nodes_clamped_at_zero() {
        let nodes = [layout().from_arrays(&[7, 0, 0], &[0, 11]), layout().from_arrays(&[-9], &[0])];
        let total = Reading::total(nodes.iter());
        assert_eq!(total.get(Counter::Anon), Some(0));
        assert_eq!(total.get(Counter::Free), Some(11 * page_size()));
    }

    #[test]
    fn files_are_read_by_line() {
        let counters =
            Counters::from([("nr_anon_pages".into(), 5), ("nr_kernel_stack".into(), 16)]);
        let reading = layout().from_counters(&counters);
        assert_eq!(reading.get(Counter::Anon), Some(5 * page_size()));
        assert_eq!(reading.get(Counter::KernelStack), Some(16 * 1024));
    }
}

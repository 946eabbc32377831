//! Where the kernel keeps its page structures and its mapping of all memory.
//!
//! Both lie at random addresses that only symbols tell, which a kernel may lack
//! (`CONFIG_KALLSYMS_ALL`). So they are learnt from allocations of our own: a
//! program sees the address of the page structure, `/proc/self/pagemap` tells
//! the number of the page.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::ptr;

use rustix::mm::Advice;
use rustix::mm::MapFlags;
use rustix::mm::ProtFlags;

/// Pages touched to learn from.
const TRIES: usize = 16;

/// Where things are, as the BPF side uses it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Places {
    /// Where the structure of page 0 is or would be.
    pub(super) pages: Option<u64>,
    /// Where page 0 is or would be mapped.
    pub(super) direct: Option<u64>,
}

/// What the programs saw of one allocation of ours.
#[derive(Clone, Debug, Default)]
pub(super) struct Seen {
    /// Address of each page structure and the order, oldest first.
    pub(super) pages: Vec<(u64, u32)>,
    /// A large kmalloc block, and its bytes.
    pub(super) block: Option<(u64, u64)>,
    /// Size of a page structure.
    pub(super) struct_bytes: u64,
}

/// Learns. `look` empties the programs' notes, runs the given action and returns
/// what they saw of it.
pub(super) fn learn(
    mut look: impl FnMut(&mut dyn FnMut() -> Option<()>) -> Seen,
    with_direct: bool,
) -> Places {
    let page = rustix::param::page_size() as u64;
    let Some(pages) = page_base(&mut look) else { return Places::default() };
    if !with_direct {
        return Places { pages: Some(pages), direct: None };
    }
    let bases: Vec<u64> = (0..3)
        .filter_map(|_| direct_base(&look(&mut || make_large_block(page)), pages, page))
        .collect();
    let direct = most_named(bases.into_iter().map(|base| vec![base]).collect(), 3);
    Places { pages: Some(pages), direct }
}

fn page_base(look: &mut impl FnMut(&mut dyn FnMut() -> Option<()>) -> Seen) -> Option<u64> {
    let page = rustix::param::page_size();
    let pagemap = File::open("/proc/self/pagemap").ok()?;
    let bytes = TRIES * page;
    // SAFETY: a new mapping at an address of the kernel's choice.
    let at = unsafe {
        let prot = ProtFlags::READ | ProtFlags::WRITE;
        rustix::mm::mmap_anonymous(ptr::null_mut(), bytes, prot, MapFlags::PRIVATE).ok()?
    };
    // Only advice; kernels without huge pages refuse it, which is as good.
    // SAFETY: the range was just mapped.
    let _ = unsafe { rustix::mm::madvise(at, bytes, Advice::LinuxNoHugepage) };
    let mut candidates = Vec::new();
    for i in 0..TRIES {
        let here = at.cast::<u8>().wrapping_add(i * page);
        let seen = look(&mut || {
            // SAFETY: within the mapping.
            unsafe { here.write_volatile(1) };
            Some(())
        });
        if let Some(number) = page_number(&pagemap, here as u64 / page as u64) {
            let base = |&(of, _): &(u64, u32)| of.wrapping_sub(number * seen.struct_bytes);
            candidates.push(seen.pages.iter().map(base).collect());
        }
    }
    // SAFETY: the mapping is ours and nothing points into it any more.
    let _ = unsafe { rustix::mm::munmap(at, bytes) };
    most_named(candidates, TRIES / 2)
}

/// Documentation/admin-guide/mm/pagemap.rst: bits 0-54 are the page's number,
/// zero without CAP_SYS_ADMIN; bit 63: present.
fn page_number(pagemap: &File, virtual_page: u64) -> Option<u64> {
    let mut word = [0; 8];
    pagemap.read_exact_at(&mut word, virtual_page * 8).ok()?;
    let word = u64::from_ne_bytes(word);
    let number = word & ((1 << 55) - 1);
    (word >> 63 == 1 && number != 0).then_some(number)
}

/// Makes the kernel allocate more than two pages with kmalloc: the array of a
/// pipe's buffers, 40 bytes each (`struct pipe_buffer`).
fn make_large_block(page: u64) -> Option<()> {
    let slots = (2 * page / 40 + 1).next_power_of_two();
    let (_from, to) = rustix::pipe::pipe().ok()?;
    rustix::pipe::fcntl_setpipe_size(&to, usize::try_from(slots * page).ok()?).ok()?;
    Some(())
}

/// The block is the last page allocation of its size.
fn direct_base(seen: &Seen, pages: u64, page: u64) -> Option<u64> {
    let (block, bytes) = seen.block?;
    let mut own = seen.pages.iter().rev();
    let (of, _) = own.find(|&&(_, order)| page.checked_shl(order) == Some(bytes))?;
    let number = of.checked_sub(pages)?.checked_div(seen.struct_bytes)?;
    block.checked_sub(number * page)
}

/// What at least `least` lists name, more than any other value.
fn most_named(lists: Vec<Vec<u64>>, least: usize) -> Option<u64> {
    let mut votes: HashMap<u64, usize> = HashMap::new();
    for mut list in lists {
        list.sort_unstable();
        list.dedup();
        for value in list {
            *votes.entry(value).or_default() += 1;
        }
    }
    let (value, count) = votes.into_iter().max_by_key(|&(_, count)| count)?;
    (count >= least).then_some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_most_name_is_believed() {
        // Each touch also allocates page tables, whose bases differ from each other.
        let lists = (0..8).map(|i| vec![0xea00, 0x1000 + i, 0xea00]).collect();
        assert_eq!(most_named(lists, 8), Some(0xea00));
        assert_eq!(most_named(vec![vec![1], vec![2], vec![3]], 2), None);
        assert_eq!(most_named(Vec::new(), 0), None);
    }

    #[test]
    fn a_block_leads_to_the_mapping_of_all_memory() {
        let (pages, direct) = (0xffff_ea00_0000_0000, 0xffff_8880_0000_0000);
        let seen = Seen {
            pages: vec![(pages + 64 * 0x77, 2), (pages + 64 * 0x1234, 2), (pages + 64 * 5, 0)],
            block: Some((direct + 0x1234 * 4096, 16384)),
            struct_bytes: 64,
        };
        assert_eq!(direct_base(&seen, pages, 4096), Some(direct));
        let other = Seen { block: Some((direct, 32768)), ..seen.clone() };
        assert_eq!(direct_base(&other, pages, 4096), None);
        assert_eq!(direct_base(&Seen { block: None, ..seen }, pages, 4096), None);
    }
}

//! The way to the kernel's memory nodes: what programs that use nodes.bpf.h need
//! from user space.

use libbpf_rs::MapCore;
use libbpf_rs::MapFlags;
use libbpf_rs::ProgramInput;
use libbpf_rs::ProgramMut;

use crate::error::Context as _;
use crate::error::Error;
use crate::error::Result;
use crate::event::Event;
use crate::event::decode;
use crate::kernel::KernelFacts;
use crate::procfs::ProcFs;
use crate::units::page_size;

/// Zones a node can have (`MAX_NR_ZONES` is at most 6, include/linux/mmzone.h).
pub const ZONES_PER_NODE: u32 = 8;

/// Pages to touch so that some allocation passes a hook: more than the per-CPU
/// lists hold (pcp batch, mm/page_alloc.c).
const LURE_PAGES: usize = 512;

/// How many nodes this machine can have, those that may come included.
pub fn possible(procfs: &ProcFs) -> u32 {
    procfs.nodes("possible").into_iter().max().unwrap_or(0) + 1
}

/// The address of the kernel's array `node_data`, for programs that start from it.
///
/// # Errors
/// It is hidden from us.
pub fn table(kernel: &KernelFacts) -> Result<u64> {
    kernel.address("node_data").ok_or_else(|| {
        Error::rights("the address of node_data is hidden: needs CAP_SYSLOG, or another --hook")
    })
}

/// Runs a program that waits for nothing, now.
///
/// # Errors
/// The kernel refuses.
pub fn run_once(program: &ProgramMut<'_>) -> Result<()> {
    program.test_run(ProgramInput::default()).context(|| "running a BPF program")?;
    Ok(())
}

/// Allocates fresh pages until `caught` says that one passed the hook, or it is
/// clear that none will.
pub fn lure(caught: impl Fn() -> bool) {
    for _ in 0..8 {
        let mut pages = vec![0u8; LURE_PAGES * page_size() as usize];
        for page in pages.chunks_mut(page_size() as usize) {
            page[0] = 1;
        }
        // Keeps the writes, which are the point.
        std::hint::black_box(&pages);
        if caught() {
            return;
        }
    }
}

/// All entries of an array map.
///
/// # Errors
/// The kernel refuses, or entries have another size than `T`.
pub fn entries<T: Event>(map: &impl MapCore) -> Result<Vec<T>> {
    (0..map.max_entries())
        .map(|i| {
            let bytes = map.lookup(&i.to_ne_bytes(), MapFlags::ANY)?;
            decode(&bytes.ok_or_else(|| Error::failure("an array map lacks an entry"))?)
        })
        .collect()
}

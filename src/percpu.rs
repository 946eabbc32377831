//! Where each CPU keeps its copy of per-CPU data, measured with a small BPF
//! object (see `src/bpf/percpu.bpf.c` for how and why).

use std::io::Read as _;
use std::mem::MaybeUninit;

use libbpf_rs::Iter;
use libbpf_rs::MapCore as _;
use libbpf_rs::ProgramInput;
use libbpf_rs::skel::OpenSkel as _;
use libbpf_rs::skel::SkelBuilder as _;

use crate::error::Context as _;
use crate::error::Error;
use crate::error::Result;
use crate::event::read_shared;
use crate::kernel::KernelFacts;
use crate::procfs::ProcFs;

#[allow(missing_docs, clippy::all, clippy::restriction, unreachable_pub)]
mod skel {
    include!(concat!(env!("OUT_DIR"), "/percpu.skel.rs"));
}

/// For each possible CPU, what to add to a per-CPU pointer to get that CPU's
/// copy. `None` for a CPU that is not online: it cannot be asked, and its part
/// of a counter was folded into the total when it went (`percpu_counter.c`).
pub type Offsets = Vec<Option<u64>>;

/// Measures the offsets of the online CPUs.
///
/// # Errors
/// The kernel refuses to load or run the measuring programs.
pub fn offsets(facts: &KernelFacts, procfs: &ProcFs) -> Result<Offsets> {
    measure(facts, procfs).context(|| "locating per-CPU data")
}

fn measure(facts: &KernelFacts, procfs: &ProcFs) -> Result<Offsets> {
    let mut storage = MaybeUninit::uninit();
    let builder = skel::PercpuSkelBuilder { obj_builder: facts.object_builder()? };
    let mut skel = builder.open(&mut storage)?.load()?;

    let map_id = skel.maps.mw_percpu.info()?.info.id;
    let link = skel.progs.find_base.attach()?;
    let shared = skel.maps.bss_data.as_deref_mut().ok_or_else(no_data)?;
    shared.map_id = map_id;
    // Running the iterator to its end is all that is wanted of it.
    Iter::new(&link)?.read_to_end(&mut Vec::new())?;
    let base = read_shared(&shared.base_ptr);
    if base == 0 {
        return Err(Error::kernel("the map iterator did not show our map"));
    }

    let mut offsets = vec![None; procfs.possible_cpus()? as usize];
    for cpu in procfs.online_cpus()? {
        shared.local_ptr = 0;
        let input = ProgramInput {
            cpu,
            flags: libbpf_rs::libbpf_sys::BPF_F_TEST_RUN_ON_CPU,
            ..ProgramInput::default()
        };
        // A CPU may go offline between the list and the run: it has no part then.
        if skel.progs.find_local.test_run(input).is_err() {
            continue;
        }
        let local = read_shared(&shared.local_ptr);
        if let (Some(slot), true) = (offsets.get_mut(cpu as usize), local != 0) {
            *slot = Some(local.wrapping_sub(base));
        }
    }
    if offsets.iter().all(Option::is_none) {
        return Err(Error::kernel("no CPU could be asked"));
    }
    Ok(offsets)
}

fn no_data() -> Error {
    Error::failure("the BPF object's data is not mapped")
}

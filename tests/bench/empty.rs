//! The empty programs of `empty.bpf.c`, attached while an [`Empty`] lives.

use std::mem::MaybeUninit;

use libbpf_rs::Link;
use libbpf_rs::skel::OpenSkel as _;
use libbpf_rs::skel::SkelBuilder as _;

use crate::Result;

#[allow(warnings, clippy::all, clippy::restriction)]
mod skel {
    include!(concat!(env!("OUT_DIR"), "/empty.skel.rs"));
}

/// An attached program that does nothing. Dropping it detaches it.
pub(crate) struct Empty {
    _link: Link,
    /// The kernel's number of the program.
    pub(crate) id: u32,
}

impl Empty {
    /// Attaches the empty program that belongs to `hook`, a hook of procstat
    /// as `mem_watcher doctor` names it.
    pub(crate) fn attach(hook: &str) -> Result<Self> {
        let mut storage = MaybeUninit::uninit();
        let mut open = skel::EmptySkelBuilder::default().open(&mut storage)?;
        open.progs.empty_finish.set_autoload(hook == "fentry:finish_task_switch");
        open.progs.empty_switch.set_autoload(hook == "tp_btf:sched_switch");
        let skel = open.load()?;
        let program = match hook {
            "fentry:finish_task_switch" => &skel.progs.empty_finish,
            "tp_btf:sched_switch" => &skel.progs.empty_switch,
            _ => return Err(format!("no empty program is made for the hook {hook}").into()),
        };
        let link = program.attach_trace()?;
        // The link keeps the program, so the rest of the object can go.
        Ok(Self { _link: link, id: program_id(program)? })
    }
}

fn program_id(program: &libbpf_rs::ProgramMut<'_>) -> Result<u32> {
    Ok(libbpf_rs::Program::id_from_fd(std::os::fd::AsFd::as_fd(program))?)
}

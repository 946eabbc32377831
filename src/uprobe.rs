//! Putting BPF programs on the functions of a program's files, the cheapest way
//! the kernel has.

use std::path::Path;

use libbpf_rs::AsRawLibbpf as _;
use libbpf_rs::Link;
use libbpf_rs::Object;
use libbpf_rs::OpenProgramMut;
use libbpf_rs::ProgramMut;
use libbpf_rs::UprobeMultiOpts;
use libbpf_rs::UprobeOpts;
use libbpf_rs::libbpf_sys;

use crate::error::Context as _;
use crate::error::Error;
use crate::error::Result;

/// How probes are attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    /// One link for all places, one program for entry and return.
    Session,
    /// One link for all places of a program.
    Multi,
    /// One link for each place.
    Single,
}

/// What is to be seen of a function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Its entry.
    Entry,
    /// Its return, by a program of its own.
    Return,
    /// Both, by one program ([`Method::Session`]).
    Both,
}

/// One place to probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Offset in the file.
    pub offset: u64,
    /// What the program reads with `bpf_get_attach_cookie()`; kernels before
    /// 5.15 have no such thing.
    pub cookie: u64,
}

/// Sets what a program that is not yet loaded will be attached as. libbpf-rs has
/// no name for sessions.
pub fn set_attach_type(program: &OpenProgramMut<'_>, kind: libbpf_sys::bpf_attach_type) {
    // SAFETY: the pointer is valid as long as the program, and the call only
    // stores a number. It fails for loaded programs, which these are not.
    unsafe {
        libbpf_sys::bpf_program__set_expected_attach_type(
            program.as_libbpf_object().as_ptr(),
            kind,
        );
    }
}

impl Method {
    /// The type a program is loaded with to be attached this way.
    pub fn attach_type(self, side: Side) -> libbpf_sys::bpf_attach_type {
        match (self, side) {
            (Method::Session, Side::Both) => libbpf_sys::BPF_TRACE_UPROBE_SESSION,
            (Method::Single, _) => 0,
            _ => libbpf_sys::BPF_TRACE_UPROBE_MULTI,
        }
    }

    /// Attaches `program` to `places` of the file at `path`, in the process
    /// `pid` only: others that map the file are neither slowed nor seen.
    ///
    /// # Errors
    /// The kernel refuses; what was attached until then is detached.
    pub fn attach(
        self,
        program: &ProgramMut<'_>,
        side: Side,
        pid: u32,
        path: &Path,
        places: &[Place],
    ) -> Result<Vec<Link>> {
        if places.is_empty() {
            return Ok(Vec::new());
        }
        let pid = i32::try_from(pid).map_err(|_| Error::failure(format!("no such PID: {pid}")))?;
        let what = || format!("attaching {} to {}", program.name().display(), path.display());
        if self != Method::Single {
            let opts = UprobeMultiOpts {
                offsets: places.iter().map(|place| offset(place.offset)).collect(),
                cookies: places.iter().map(|place| place.cookie).collect(),
                retprobe: side == Side::Return,
                session: side == Side::Both,
                ..UprobeMultiOpts::default()
            };
            let link = program.attach_uprobe_multi_with_opts(pid, path, "", opts);
            return Ok(vec![link.context(what)?]);
        }
        places
            .iter()
            .map(|place| {
                // No cookie: kernels that need this method may not have them.
                let opts = UprobeOpts { retprobe: side == Side::Return, ..UprobeOpts::default() };
                let offset = offset(place.offset);
                program.attach_uprobe_with_opts(pid, path, offset, opts).context(what)
            })
            .collect()
    }
}

fn offset(offset: u64) -> usize {
    // Files are not larger than what can be addressed.
    usize::try_from(offset).unwrap_or(usize::MAX)
}

/// A program of a loaded object, by name.
///
/// # Errors
/// The object has none of that name.
pub fn program<'obj>(object: &'obj Object, name: &str) -> Result<ProgramMut<'obj>> {
    object
        .progs_mut()
        .find(|program| program.name() == name)
        .ok_or_else(|| Error::failure(format!("no BPF program `{name}`")))
}

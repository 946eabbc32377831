//! What the kernel itself says BPF programs cost.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::FromRawFd as _;
use std::os::fd::OwnedFd;

use libbpf_rs::query::ProgInfoIter;

use crate::Result;

/// While this lives, the kernel measures every run of every BPF program
/// (bpf(2), BPF_ENABLE_STATS), which makes each run dearer.
pub(crate) struct Measured(#[expect(dead_code, reason = "held open")] OwnedFd);

impl Measured {
    pub(crate) fn begin() -> Result<Self> {
        // SAFETY: takes a number and returns a descriptor or a negative error.
        let fd = unsafe { libbpf_sys::bpf_enable_stats(libbpf_sys::BPF_STATS_RUN_TIME) };
        if fd < 0 {
            return Err(format!("BPF_ENABLE_STATS: {}", io::Error::from_raw_os_error(-fd)).into());
        }
        // SAFETY: a new descriptor that nobody else has.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }
}

/// One program's cost while it was measured.
pub(crate) struct Runs {
    pub(crate) name: String,
    pub(crate) count: u64,
    pub(crate) ns: u64,
}

/// The costs of those of `programs` that have run.
pub(crate) fn runs(programs: &BTreeSet<u32>) -> Vec<Runs> {
    ProgInfoIter::default()
        .filter(|info| programs.contains(&info.id) && info.run_cnt > 0)
        .map(|info| Runs {
            name: info.name.to_string_lossy().into_owned(),
            count: info.run_cnt,
            ns: info.run_time_ns,
        })
        .collect()
}

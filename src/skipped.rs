//! Runs of a BPF program that did not take place, because it was at work on that
//! CPU already.

use std::os::fd::AsFd as _;
use std::os::fd::AsRawFd as _;

use libbpf_rs::ProgramMut;
use libbpf_rs::libbpf_sys;

/// How often the kernel skipped a program: `recursion_misses` of
/// `struct bpf_prog_info`, since 5.12 (9ed9e9ba2337 "bpf: Count the number of
/// times recursion was prevented"), of trace events since 6.7. A kernel that
/// does not count says 0, as does a program that is not loaded.
pub fn runs(program: &ProgramMut<'_>) -> u64 {
    if !program.autoload() {
        return 0;
    }
    let mut info = libbpf_sys::bpf_prog_info::default();
    let mut size = size_of_val(&info) as u32;
    // SAFETY: `info` is writable and of the size given, and asks for no arrays.
    let code = unsafe {
        libbpf_sys::bpf_obj_get_info_by_fd(
            program.as_fd().as_raw_fd(),
            (&raw mut info).cast(),
            &raw mut size,
        )
    };
    if code == 0 { info.recursion_misses } else { 0 }
}

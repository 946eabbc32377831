//! What the commands that watch system calls share: setting up the kernel side
//! (`src/bpf/include/syscall.bpf.h`), and results in words.

use std::path::Path;

use libbpf_rs::Link;
use libbpf_rs::Object;
use libbpf_rs::OpenObject;

use crate::attach::Plan;
use crate::error::Context as _;
use crate::error::Error;
use crate::error::Kind;
use crate::error::Result;
use crate::kernel::KernelFacts;
use crate::kernel::Need;
use crate::skipped;

/// Threads whose calls can be under way at once where the kernel has no task
/// storage; a call beyond that is counted as lost.
pub const THREADS: u32 = 8192;

/// The program that forgets the call of a thread that ends.
pub const FORGET: &str = "on_exit";

/// The hook that sees the calls of 32-bit programs too.
pub const ALL_CALLS: &str = "raw_syscalls:sys_enter";

/// Whether calls under way are kept in task storage (5.11).
pub fn has_storage(kernel: &KernelFacts) -> bool {
    kernel.has(Need::TaskStorage)
}

/// How the name of a program's second ends (`TWICE()`, syscall.bpf.h).
const SECOND: &str = "_2";

/// How system calls are followed on this kernel.
#[derive(Clone, Copy, Debug)]
pub struct Way {
    /// Calls under way are kept in task storage.
    pub storage: bool,
    /// Each program has a second, for what the first is skipped for: a thread may be
    /// preempted in it.
    pub second: bool,
}

impl Way {
    /// With the hook of a plan.
    pub fn of(kernel: &KernelFacts, plan: &Plan) -> Self {
        let preempted = kernel.has(Need::Func("trace_call_bpf_faultable"));
        Self {
            storage: has_storage(kernel),
            second: preempted && plan.hook.name.starts_with("syscalls:"),
        }
    }
}

/// Loads what the plan attaches, `also` those programs of the hook that an
/// option asks for, the seconds of both, and what keeps the table of calls clean.
pub fn select(plan: &Plan, object: &mut OpenObject, also: bool, way: Way) {
    for mut program in object.progs_mut() {
        let load = program.name().to_str().is_some_and(|name| match name {
            FORGET => !way.storage,
            _ => {
                let (first, fits) = match name.strip_suffix(SECOND) {
                    Some(first) => (first, way.second),
                    None => (name, true),
                };
                let of_option = also && plan.hook.programs.contains(&first);
                fits && (of_option || plan.hook.attach.contains(&first))
            }
        });
        program.set_autoload(load);
    }
}

/// Attaches what [`select`] has loaded. Dropping the links detaches it.
///
/// # Errors
/// The kernel refuses, or tracefs may not be read.
pub fn attach(plan: &Plan, object: &Object) -> Result<Vec<Link>> {
    let mut links = plan.attach(object).map_err(explain_tracefs)?;
    for program in object.progs_mut().filter(|program| program.autoload()) {
        if program.name().to_str().is_some_and(|name| !plan.hook.attach.contains(&name)) {
            let link = program.attach().map_err(|error| explain_tracefs(error.into()));
            links.push(link.context(|| format!("attaching {}", plan.hook.name))?);
        }
    }
    Ok(links)
}

/// Hands over how calls under way are kept, before the skeleton `$open` is
/// loaded.
#[macro_export]
macro_rules! set_flights {
    ($open:expr, $with_storage:expr) => {{
        let with_storage: bool = $with_storage;
        $open.maps.flights.set_autocreate(with_storage)?;
        let threads = if with_storage { 1 } else { $crate::syscalls::THREADS };
        $open.maps.flights_by_tid.set_max_entries(threads)?;
        if let Some(constants) = $open.maps.rodata_data.as_deref_mut() {
            constants.with_storage = with_storage;
        }
    }};
}

/// Tracepoints are found through tracefs, which is root's alone.
pub fn explain_tracefs(error: Error) -> Error {
    if error.kind() != Kind::Rights {
        return error;
    }
    Error::rights(format!(
        "{error}; tracepoints take reading /sys/kernel/tracing: run it as root, or grant \
         CAP_DAC_READ_SEARCH too"
    ))
}

/// What this hook does not see on this machine: the tracepoints of single calls
/// leave 32-bit programs out (`ARCH_TRACE_IGNORE_COMPAT_SYSCALLS`,
/// kernel/trace/trace_syscalls.c).
pub fn unseen(plan: &Plan) -> Option<String> {
    // There only if the kernel runs such programs (CONFIG_COMPAT;
    // arch/x86/entry/vdso/vdso32-setup.c).
    let runs_narrow = Path::new("/proc/sys/abi/vsyscall32").exists();
    (plan.hook.name != ALL_CALLS && runs_narrow).then(|| {
        format!(
            "calls of 32-bit programs are not seen; --hook {ALL_CALLS} shows them, and costs more"
        )
    })
}

/// How often programs were skipped ([`skipped::runs`]), as far as their seconds did
/// not take over: so much of it as `taken_over` of the skeleton says. A call lost at
/// both its ends counts twice, and calls nobody asked for count too: as a loss it is
/// an upper bound.
pub fn missed(object: &Object, taken_over: u64) -> u64 {
    let (mut firsts, mut seconds, mut has_seconds) = (0, 0, false);
    for program in object.progs_mut().filter(|program| program.autoload()) {
        let runs = skipped::runs(&program);
        match program.name().to_string_lossy().ends_with(SECOND) {
            true => (seconds, has_seconds) = (seconds + runs, true),
            false => firsts += runs,
        }
    }
    lost_at_most(firsts, has_seconds.then_some(seconds), taken_over)
}

/// What is lost is what both were skipped for.
fn lost_at_most(firsts: u64, seconds: Option<u64>, taken_over: u64) -> u64 {
    let left = firsts.saturating_sub(taken_over);
    seconds.map_or(left, |seconds| left.min(seconds))
}

/// The error of a call as the kernel returns it; `None`: it succeeded
/// (`IS_ERR_VALUE()`, include/linux/err.h).
pub fn failure(result: i64) -> Option<String> {
    if !(-4095..0).contains(&result) {
        return None;
    }
    let number = i32::try_from(-result).unwrap_or(0);
    Some(match nix::errno::Errno::from_raw(number) {
        nix::errno::Errno::UnknownErrno => format!("errno {number}"),
        known => format!("{known:?}"),
    })
}

/// An address, or the name of the error that came instead.
pub fn address_or_error(result: i64) -> String {
    failure(result).unwrap_or_else(|| format!("{:#x}", result.cast_unsigned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_second_program_took_over_is_not_lost() {
        assert_eq!(lost_at_most(7, None, 0), 7);
        assert_eq!(lost_at_most(7, Some(11), 4), 3);
        assert_eq!(lost_at_most(7, Some(2), 4), 2);
        assert_eq!(lost_at_most(7, Some(11), 8), 0);
    }

    #[test]
    fn results_are_addresses_or_errors() {
        assert_eq!(address_or_error(-12), "ENOMEM");
        assert_eq!(address_or_error(-17), "EEXIST");
        assert_eq!(address_or_error(-4095), "errno 4095");
        assert_eq!(address_or_error(0x7f00_0000_1000), "0x7f0000001000");
        assert_eq!(failure(0), None);
        // Addresses of the kernel's half are no errors.
        assert_eq!(failure(-4096), None);
    }
}

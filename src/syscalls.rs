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

/// Loads what the plan attaches, `also` those programs of the hook that an
/// option asks for, and what keeps the table of calls clean.
pub fn select(plan: &Plan, object: &mut OpenObject, also: bool, with_storage: bool) {
    plan.select(object);
    for mut program in object.progs_mut() {
        match program.name().to_str() {
            Some(FORGET) => {
                program.set_autoload(!with_storage);
            }
            Some(name) if plan.hook.programs.contains(&name) => {
                program.set_autoload(also);
            }
            _ => {}
        }
    }
}

/// Attaches what [`select`] has loaded. Dropping the links detaches it.
///
/// # Errors
/// The kernel refuses, or tracefs may not be read.
pub fn attach(plan: &Plan, object: &Object, also: bool, with_storage: bool) -> Result<Vec<Link>> {
    let mut links = plan.attach(object).map_err(explain_tracefs)?;
    for program in object.progs_mut() {
        let wanted = program.name().to_str().is_some_and(|name| match name {
            FORGET => !with_storage,
            name => also && plan.hook.programs.contains(&name),
        });
        if wanted {
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

/// How often programs were skipped ([`skipped::runs`]). A call lost at both its
/// ends counts twice, and raw_syscalls counts other calls too: as a loss it is
/// an upper bound.
pub fn missed(object: &Object) -> u64 {
    object.progs_mut().map(|program| skipped::runs(&program)).sum()
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

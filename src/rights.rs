//! What we are allowed to do, and the message when it is not enough.

use rustix::thread::CapabilitySet;
use rustix::thread::capabilities;

use crate::error::Error;
use crate::error::Kind;
use crate::error::Result;

/// The capabilities that tracing with BPF takes since 5.8 (`capabilities(7)`).
/// `CAP_SYS_ADMIN` contains both.
const TRACING: [(CapabilitySet, &str); 2] =
    [(CapabilitySet::BPF, "CAP_BPF"), (CapabilitySet::PERFMON, "CAP_PERFMON")];

/// The effective capabilities of this process.
///
/// # Errors
/// `capget(2)` fails.
pub fn effective() -> Result<CapabilitySet> {
    Ok(capabilities(None)?.effective)
}

/// The capabilities tracing needs and this process has not.
///
/// # Errors
/// `capget(2)` fails.
pub fn missing_for_tracing() -> Result<Vec<&'static str>> {
    Ok(missing(effective()?))
}

fn missing(have: CapabilitySet) -> Vec<&'static str> {
    if have.contains(CapabilitySet::SYS_ADMIN) {
        return Vec::new();
    }
    TRACING.iter().filter(|(cap, _)| !have.contains(*cap)).map(|(_, name)| *name).collect()
}

/// Fails unless BPF tracing programs may be loaded.
///
/// # Errors
/// A capability is missing; the message names it and what to do.
pub fn require_tracing() -> Result<()> {
    match missing_for_tracing()?.as_slice() {
        [] => Ok(()),
        missing => Err(Error::rights(format!(
            "needs {}: run it as root (sudo) or grant the capabilities",
            missing.join(" and ")
        ))),
    }
}

/// Says what to do where rights that suffice elsewhere did not: before 5.11 the
/// kernel counts BPF maps against the limit on locked memory.
pub fn explain_refusal(error: Error) -> Error {
    let limit = rustix::process::getrlimit(rustix::process::Resource::Memlock).current;
    let may_raise = effective().is_ok_and(|caps| caps.contains(CapabilitySet::SYS_RESOURCE));
    match limit {
        Some(bytes) if error.kind() == Kind::Rights && !may_raise => Error::rights(format!(
            "{error}; kernels before 5.11 count BPF maps against the locked-memory limit, here \
             {} KiB: raise it (ulimit -l unlimited) or grant CAP_SYS_RESOURCE",
            bytes >> 10
        )),
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_missing_capability_is_named() {
        assert_eq!(missing(CapabilitySet::empty()), ["CAP_BPF", "CAP_PERFMON"]);
        assert_eq!(missing(CapabilitySet::BPF), ["CAP_PERFMON"]);
        assert!(missing(CapabilitySet::BPF | CapabilitySet::PERFMON).is_empty());
        assert!(missing(CapabilitySet::SYS_ADMIN).is_empty());
    }
}

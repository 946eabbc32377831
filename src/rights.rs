//! What we are allowed to do, and the message when it is not enough.

use rustix::thread::CapabilitySet;
use rustix::thread::capabilities;

use crate::error::Error;
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

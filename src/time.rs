//! Kernel clock to wall clock. The only user of chrono.

use std::time::Duration;

use chrono::DateTime;
use chrono::FixedOffset;
use chrono::Local;
use chrono::SecondsFormat;
use rustix::time::ClockId;
use rustix::time::clock_gettime;

/// A moment of wall-clock time in the machine's time zone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WallTime(DateTime<FixedOffset>);

impl WallTime {
    /// The present moment.
    pub fn now() -> Self {
        Self(Local::now().fixed_offset())
    }

    /// A moment for tests: the same on every machine.
    #[cfg(test)]
    pub(crate) fn fixed() -> Self {
        Self(DateTime::parse_from_rfc3339("2026-01-02T03:04:05.678901+01:00").unwrap())
    }

    /// `HH:MM:SS`, for tables.
    pub fn short(&self) -> String {
        self.0.format("%H:%M:%S").to_string()
    }

    /// RFC 3339 with microseconds and offset, for machines.
    pub fn rfc3339(&self) -> String {
        self.0.to_rfc3339_opts(SecondsFormat::Micros, false)
    }
}

/// Nanoseconds of `CLOCK_MONOTONIC`, the clock of `bpf_ktime_get_ns(7)`.
pub fn monotonic_ns() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    (now.tv_sec as u64).saturating_mul(1_000_000_000).saturating_add(now.tv_nsec as u64)
}

/// When something happened that BPF stamped with `bpf_ktime_get_ns()`.
///
/// Both clocks are read at each call, so a wall clock that is set while we run
/// shows in later rows, as it does in every other log of the machine.
pub fn wall_time(ktime_ns: u64) -> WallTime {
    let age = Duration::from_nanos(monotonic_ns().saturating_sub(ktime_ns));
    WallTime((Local::now() - age).fixed_offset())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stamp_of_the_past_lies_in_the_past() {
        let then = wall_time(monotonic_ns() - 5_000_000_000);
        let age = WallTime::now().0 - then.0;
        assert_eq!(age.num_seconds(), 5);
    }
}

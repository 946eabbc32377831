//! What the machine's memory does in a second: paging, faults, allocations,
//! scans and steals from `/proc/vmstat`, and pressure.

use crate::error::Result;
use crate::procfs::Pressure;
use crate::procfs::ProcFs;
use crate::time::WallTime;
use crate::time::monotonic_ns;
use crate::time::wall_time;

/// Rates taken from `/proc/vmstat`.
pub const RATES: usize = 10;

/// How one rate is made of lines of `/proc/vmstat`.
struct Lines {
    plus: &'static [&'static str],
    minus: &'static [&'static str],
}

const fn plus(plus: &'static [&'static str]) -> Lines {
    Lines { plus, minus: &[] }
}

/// In the order of the columns. pgpgin and pgpgout are counted in KiB, the rest
/// in events or pages. Scans and steals are taken by kind of page: the lines by
/// cause leave out what a cgroup's limit causes, until 7.x.
const RATE_LINES: [Lines; RATES] = [
    plus(&["pgpgin"]),
    plus(&["pgpgout"]),
    plus(&["pgfault"]),
    plus(&["pgmajfault"]),
    plus(&["pgfree"]),
    plus(&[
        "pgalloc_dma",
        "pgalloc_dma32",
        "pgalloc_normal",
        "pgalloc_movable",
        "pgalloc_high",
        "pgalloc_device",
    ]),
    plus(&["pgscan_kswapd"]),
    Lines { plus: &["pgscan_anon", "pgscan_file"], minus: &["pgscan_kswapd"] },
    plus(&["pgsteal_anon", "pgsteal_file"]),
    plus(&["pswpout"]),
];

/// What changes between two readings.
#[derive(Debug)]
pub struct Moving {
    at_ns: u64,
    counters: [Option<u64>; RATES],
    pressure: Option<Pressure>,
}

impl Moving {
    /// Reads `/proc/vmstat` and `/proc/pressure/memory`.
    ///
    /// # Errors
    /// `/proc/vmstat` cannot be read.
    pub fn read(procfs: &ProcFs) -> Result<Self> {
        let at_ns = monotonic_ns();
        let vmstat = procfs.vmstat()?;
        let total =
            |lines: &[&str]| -> u64 { lines.iter().filter_map(|line| vmstat.get(*line)).sum() };
        let sum = |lines: &Lines| {
            let present = lines.plus.iter().any(|line| vmstat.contains_key(*line));
            present.then(|| total(lines.plus).saturating_sub(total(lines.minus)))
        };
        Ok(Self { at_ns, counters: RATE_LINES.each_ref().map(sum), pressure: procfs.pressure() })
    }

    /// When it was read.
    pub fn time(&self) -> WallTime {
        wall_time(self.at_ns)
    }

    /// What happened a second since `before`.
    pub fn since(&self, before: &Moving) -> Rates {
        let seconds = self.at_ns.saturating_sub(before.at_ns).max(1000) as f64 / 1e9;
        let mut per_second = [None; RATES];
        for (i, rate) in per_second.iter_mut().enumerate() {
            *rate = self.counters[i]
                .zip(before.counters[i])
                .map(|(now, then)| now.saturating_sub(then) as f64 / seconds);
        }
        let share = |of: fn(&Pressure) -> u64| {
            let (now, then) = (self.pressure.as_ref()?, before.pressure.as_ref()?);
            Some(100.0 * of(now).saturating_sub(of(then)) as f64 / (seconds * 1e6))
        };
        Rates { per_second, some: share(|psi| psi.some_us), full: share(|psi| psi.full_us) }
    }
}

/// What happened a second, and the share of time lost to pressure. `None`: this
/// kernel does not count it, or there is nothing to compare with.
#[derive(Clone, Debug, Default)]
pub struct Rates {
    /// In the order of the columns of `sysstat --rates`.
    pub per_second: [Option<f64>; RATES],
    /// Percent of the time in which at least one task was stalled (PSI).
    pub some: Option<f64>,
    /// Percent of the time in which all tasks were (PSI).
    pub full: Option<f64>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_per_second_and_missing_where_one_reading_is() {
        let moving = |at_ns, pgfault, some_us| Moving {
            at_ns,
            counters: {
                let mut counters = [None; RATES];
                counters[2] = Some(pgfault);
                counters
            },
            pressure: Some(Pressure { some_us, full_us: 0 }),
        };
        let before = moving(3, 1000, 5);
        let rates = moving(2_000_000_003, 1014, 500_005).since(&before);
        assert_eq!(rates.per_second[2], Some(7.0));
        assert_eq!(rates.per_second[0], None);
        assert_eq!(rates.some, Some(25.0));
    }
}

//! Owners of counters that have gone: what makes room in tables that never evict.

use std::collections::HashSet;
use std::hash::Hash;

/// Reports between two looks for owners that have gone.
const SWEEP: u64 = 16;

/// Which owners of counters have gone for good, so that their counters may go.
///
/// That a counter was idle at a report and its owner is gone now is not enough: it
/// may have been at work in between, and that would be lost. An owner that is found
/// gone adds nothing any more, so what is idle at the report after that stays so.
#[derive(Debug)]
pub struct Departed<O> {
    may_tell: bool,
    reports: u64,
    gone: HashSet<O>,
}

impl<O: Copy + Eq + Hash> Departed<O> {
    /// `may_tell`: whether who is there can be told at all. It cannot in a container
    /// of which the numbers of processes are not the kernel's own.
    pub fn new(may_tell: bool) -> Self {
        Self { may_tell, reports: 0, gone: HashSet::new() }
    }

    /// After a report: of the owners of what was idle in it, those whose idle counters
    /// may go now; mostly none. `lives` is asked about each owner once.
    pub fn after_report(
        &mut self,
        idle: impl Iterator<Item = O>,
        lives: impl Fn(O) -> bool,
    ) -> HashSet<O> {
        self.reports += 1;
        let mut departed = std::mem::take(&mut self.gone);
        // A number may have been given to another process.
        departed.retain(|&owner| !lives(owner));
        if self.may_tell && self.reports.is_multiple_of(SWEEP) {
            self.gone = idle.collect();
            self.gone.retain(|&owner| !lives(owner));
        }
        departed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_owner_departs_a_report_after_it_was_found_gone() {
        let mut departed = Departed::new(true);
        let mut at = Vec::new();
        for report in 1..=2 * SWEEP + 2 {
            let owners = departed.after_report([5, 7].into_iter(), |owner| owner != 7);
            if !owners.is_empty() {
                assert_eq!(owners, HashSet::from([7]));
                at.push(report);
            }
        }
        assert_eq!(at, [SWEEP + 1, 2 * SWEEP + 1]);
    }

    #[test]
    fn a_number_that_is_used_again_does_not_depart() {
        let mut departed = Departed::new(true);
        for _ in 0..SWEEP {
            assert!(departed.after_report([7].into_iter(), |_| false).is_empty());
        }
        assert!(departed.after_report([7].into_iter(), |_| true).is_empty());
        assert!(departed.after_report([7].into_iter(), |_| false).is_empty());
    }

    #[test]
    fn where_it_cannot_be_told_nobody_departs() {
        let mut departed = Departed::new(false);
        for _ in 0..3 * SWEEP {
            assert!(departed.after_report([7].into_iter(), |_| false).is_empty());
        }
    }
}

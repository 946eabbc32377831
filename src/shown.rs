//! What was last printed of each process, for tools that print changes only.

use std::collections::HashMap;

/// Which process, and when it was looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// Thread group.
    pub tgid: u32,
    /// When it started; with the thread group, identifies it: a PID that is
    /// used again is another process.
    pub start_ns: u64,
    /// `CLOCK_MONOTONIC` of the look, to tell the newer of two.
    pub time_ns: u64,
}

/// Something that was seen of a process at a moment.
pub trait Timed {
    /// Which process, and when.
    fn moment(&self) -> Moment;
}

/// The newest sample of each process: a ring and an iterator tell of the same
/// one in no certain order.
pub struct Newest<T>(HashMap<u32, T>);

impl<T> Default for Newest<T> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<T: Timed> Newest<T> {
    /// Keeps a sample unless a newer one is here.
    pub fn keep(&mut self, sample: T) {
        let at = sample.moment();
        match self.0.get(&at.tgid) {
            Some(other) if other.moment().time_ns > at.time_ns => {}
            _ => {
                self.0.insert(at.tgid, sample);
            }
        }
    }

    /// Takes them all out.
    pub fn take(&mut self) -> impl Iterator<Item = T> {
        self.0.drain().map(|(_, sample)| sample)
    }
}

/// What was last printed of each process.
pub struct Shown<V>(HashMap<u32, (Moment, V)>);

impl<V> Default for Shown<V> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<V: PartialEq + Clone> Shown<V> {
    /// `None` if there is nothing to print: nothing changed, or the sample is
    /// older than what was printed. Else what was printed before, if anything.
    pub fn before_change(&mut self, at: Moment, value: &V) -> Option<Option<V>> {
        match self.0.get_mut(&at.tgid) {
            Some((last, shown)) if last.start_ns == at.start_ns => {
                if at.time_ns < last.time_ns {
                    return None;
                }
                if shown == value {
                    last.time_ns = at.time_ns;
                    return None;
                }
                Some(Some(shown.clone()))
            }
            _ => Some(None),
        }
    }

    /// Remembers what has been printed.
    pub fn set(&mut self, at: Moment, value: V) {
        self.0.insert(at.tgid, (at, value));
    }

    /// Forgets the processes that are not among the living.
    pub fn keep_only(&mut self, living: impl Iterator<Item = Moment>) {
        let living: HashMap<u32, u64> = living.map(|at| (at.tgid, at.start_ns)).collect();
        self.0.retain(|tgid, (at, _)| living.get(tgid) == Some(&at.start_ns));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(tgid: u32, start_ns: u64, time_ns: u64) -> Moment {
        Moment { tgid, start_ns, time_ns }
    }

    impl Timed for Moment {
        fn moment(&self) -> Moment {
            *self
        }
    }

    #[test]
    fn only_changes_are_shown_and_a_reused_pid_is_new() {
        let mut shown = Shown::default();
        assert_eq!(shown.before_change(at(7, 1, 10), &100), Some(None));
        shown.set(at(7, 1, 10), 100);
        assert_eq!(shown.before_change(at(7, 1, 10), &100), None);
        assert_eq!(shown.before_change(at(7, 1, 11), &60), Some(Some(100)));
        assert_eq!(shown.before_change(at(7, 2, 12), &100), Some(None));
        shown.keep_only([at(8, 1, 0)].into_iter());
        assert!(shown.0.is_empty());
    }

    #[test]
    fn a_sample_that_comes_late_is_not_taken_for_a_change() {
        let mut shown = Shown::default();
        shown.set(at(7, 1, 20), 100);
        assert_eq!(shown.before_change(at(7, 1, 19), &60), None);
        // Seen again unchanged: what is older than that is late, too.
        assert_eq!(shown.before_change(at(7, 1, 30), &100), None);
        assert_eq!(shown.before_change(at(7, 1, 25), &60), None);
    }

    #[test]
    fn of_two_samples_the_newer_one_stays() {
        let mut newest = Newest::default();
        newest.keep(at(7, 1, 20));
        newest.keep(at(7, 1, 19));
        assert_eq!(newest.take().collect::<Vec<_>>(), [at(7, 1, 20)]);
    }
}

//! What was last printed of each program and whether it is still there, for
//! tools that print changes and a last line.

use std::collections::BTreeMap;

/// One program of a process: until it ends or executes another. A PID alone
/// does not do: it is used again, and it outlives an `exec`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Life {
    /// Thread group.
    pub tgid: u32,
    /// When it began, or was first seen; differs between the programs of a PID.
    pub born_ns: u64,
}

struct Kept<T> {
    last: T,
    /// Sweeps it was not seen before; 0: it was.
    absent: u32,
}

/// The programs that are followed, each with what was last printed of it.
pub struct Lives<T> {
    kept: BTreeMap<Life, Kept<T>>,
    patience: u32,
}

impl<T> Lives<T> {
    /// `patience`: after how many sweeps without a sign of it a program counts
    /// as gone. More than 1 where its end may be told a little later.
    pub fn new(patience: u32) -> Self {
        Self { kept: BTreeMap::new(), patience }
    }

    /// A program was seen. Calls `print` with what was last printed of it, and
    /// keeps what that returns as printed now; `None`: nothing was, as nothing
    /// had changed.
    ///
    /// # Errors
    /// That of `print`.
    pub fn seen<E>(
        &mut self,
        life: Life,
        print: impl FnOnce(Option<&T>) -> Result<Option<T>, E>,
    ) -> Result<(), E> {
        let printed = print(self.kept.get(&life).map(|kept| &kept.last))?;
        match (printed, self.kept.get_mut(&life)) {
            (Some(last), _) => drop(self.kept.insert(life, Kept { last, absent: 0 })),
            (None, Some(kept)) => kept.absent = 0,
            (None, None) => {}
        }
        Ok(())
    }

    /// A program has ended: what was last printed of it, if anything.
    pub fn ended(&mut self, life: Life) -> Option<T> {
        self.kept.remove(&life).map(|kept| kept.last)
    }

    /// After every program that is still there has been seen: those that have
    /// not been for too long.
    pub fn sweep(&mut self) -> Vec<(Life, T)> {
        let patience = self.patience;
        let gone: Vec<Life> = self
            .kept
            .iter_mut()
            .filter_map(|(&life, kept)| {
                kept.absent += 1;
                // Seen in this round: 1 by now.
                (kept.absent > patience).then_some(life)
            })
            .collect();
        self.take(&gone)
    }

    /// At the end of a run: those that were not seen in the last round.
    pub fn missing(&mut self) -> Vec<(Life, T)> {
        let gone: Vec<Life> =
            self.kept.iter().filter(|(_, kept)| kept.absent > 1).map(|(&life, _)| life).collect();
        self.take(&gone)
    }

    fn take(&mut self, lives: &[Life]) -> Vec<(Life, T)> {
        lives.iter().filter_map(|&life| Some((life, self.ended(life)?))).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    const A: Life = Life { tgid: 7, born_ns: 1 };
    const B: Life = Life { tgid: 7, born_ns: 2 };

    fn see(lives: &mut Lives<u64>, life: Life, now: u64) -> Option<u64> {
        let mut before = None;
        let print = |last: Option<&u64>| -> Result<Option<u64>, Infallible> {
            before = last.copied();
            Ok((last != Some(&now)).then_some(now))
        };
        lives.seen(life, print).unwrap();
        before
    }

    #[test]
    fn each_program_of_a_process_has_a_count_of_its_own() {
        let mut lives = Lives::new(1);
        assert_eq!(see(&mut lives, A, 100), None);
        assert_eq!(see(&mut lives, A, 60), Some(100));
        assert_eq!(see(&mut lives, B, 60), None);
        assert_eq!(lives.ended(A), Some(60));
        assert_eq!(lives.ended(A), None);
        assert_eq!(see(&mut lives, B, 61), Some(60));
    }

    #[test]
    fn who_is_not_seen_is_given_up_after_the_patience() {
        let mut lives = Lives::new(1);
        see(&mut lives, A, 100);
        assert_eq!(lives.sweep(), []);
        assert_eq!(lives.sweep(), [(A, 100)]);
        assert_eq!(lives.sweep(), []);

        let mut lives = Lives::new(2);
        see(&mut lives, A, 100);
        see(&mut lives, B, 50);
        assert_eq!(lives.sweep(), []);
        see(&mut lives, B, 50);
        assert_eq!(lives.sweep(), []);
        // Back again: nothing happened.
        see(&mut lives, A, 100);
        see(&mut lives, B, 50);
        assert_eq!(lives.sweep(), []);
        see(&mut lives, B, 50);
        assert_eq!(lives.sweep(), []);
        see(&mut lives, B, 50);
        assert_eq!(lives.sweep(), [(A, 100)]);
    }

    #[test]
    fn at_the_end_nobody_waits_any_more() {
        let mut lives = Lives::new(2);
        see(&mut lives, A, 100);
        see(&mut lives, B, 50);
        assert_eq!(lives.sweep(), []);
        see(&mut lives, B, 50);
        assert_eq!(lives.sweep(), []);
        assert_eq!(lives.missing(), [(A, 100)]);
        assert_eq!(lives.missing(), []);
    }
}

//! Leak or cache: how what a stack holds develops over the run.
//!
//! A working set goes up and down, and a leak goes up and down with it, but
//! its lows rise. So the run is divided into quarters of equally many reports,
//! and the lowest values of these are compared. See [`Verdict`] for the rules.

use std::fmt;

/// Points kept for one stack. When they are full, each two become one.
const POINTS: usize = 64;
/// Reports below which there is no verdict.
const FEWEST: u64 = 3;
/// Parts of the run that are compared.
const PARTS: usize = 4;
/// Reports below which each is a part of its own.
const FEW: usize = 2 * PARTS;
/// The slope must be this many times its standard error: noise alone gets there
/// in fewer than 1 of 1000 runs, except very short ones.
const CERTAIN: f64 = 4.0;
/// The lows must rise by more than this share of the greatest swing within a
/// part, so that where the parts cut a saw-tooth does not matter.
const SWING_SHARE: f64 = 0.1;
/// The last part must move by more than this share of what a part rose on
/// average; else what rose is full.
const PACE_SHARE: f64 = 0.25;
/// Of what is held, the share that may be old in a stack that only churns.
const OLD_SHARE: f64 = 0.01;

/// How what a stack holds develops.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Fewer than three reports.
    New,
    /// It rises and has not stopped. All of: the slope over the run is positive
    /// and at least four times its standard error; no quarter's lowest value is
    /// below the one before, the last is above the third and the third above
    /// the first; these lows have risen by more than a tenth of the greatest
    /// swing within a quarter; and within the last quarter the values still
    /// spread over more than a fourth of what a quarter rose on average. With
    /// fewer than eight reports each counts as a quarter, and the last quarter
    /// is the step to the last report.
    Growing,
    /// None of the others: it stays about level, as a cache that has filled.
    /// Recognised once it has been level for the last quarter of the run.
    Plateau,
    /// In the second half of the run it allocated, but at no report more than a
    /// hundredth of the most it held was older than the age asked for.
    Churn,
    /// It falls and has not stopped: the mirror image of growing.
    Shrinking,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Verdict::New => "new",
            Verdict::Growing => "growing",
            Verdict::Plateau => "plateau",
            Verdict::Churn => "churn",
            Verdict::Shrinking => "shrinking",
        })
    }
}

/// One report, or several in a row.
#[derive(Clone, Copy, Debug)]
struct Point {
    reports: u64,
    lowest: u64,
    highest: u64,
    older: u64,
    allocated: u64,
}

impl Point {
    /// Together with the one after it.
    fn and(self, next: Point) -> Point {
        Point {
            reports: self.reports + next.reports,
            lowest: self.lowest.min(next.lowest),
            highest: self.highest.max(next.highest),
            older: self.older.max(next.older),
            allocated: next.allocated,
        }
    }
}

/// What one stack held, report by report, in bounded memory.
#[derive(Clone, Debug, Default)]
pub struct Trend {
    /// Oldest first. All but the last stand for `stride` reports.
    points: Vec<Point>,
    /// Times by which the points have been halved.
    halved: u32,
    line: Line,
}

impl Trend {
    /// Adds a report. `time_s` is in seconds since any fixed moment and must
    /// not fall; a report whose time is not a number is left out. `live_bytes`
    /// is what the stack holds, `older_bytes` the part of it that is older than
    /// the age asked for, `allocated_blocks` counts all blocks it ever
    /// allocated.
    pub fn add(&mut self, time_s: f64, live_bytes: u64, older_bytes: u64, allocated_blocks: u64) {
        if !time_s.is_finite() {
            return;
        }
        self.line.add(time_s, live_bytes as f64);
        let point = Point {
            reports: 1,
            lowest: live_bytes,
            highest: live_bytes,
            older: older_bytes,
            allocated: allocated_blocks,
        };
        let stride = 1_u64.checked_shl(self.halved).unwrap_or(u64::MAX);
        match self.points.last_mut() {
            Some(last) if last.reports < stride => *last = last.and(point),
            _ => {
                self.halve();
                self.points.push(point);
            }
        }
    }

    /// Makes room if there is none.
    fn halve(&mut self) {
        if self.points.len() >= POINTS {
            let pairs = self.points.chunks(2);
            self.points =
                pairs.filter_map(|pair| pair.iter().copied().reduce(Point::and)).collect();
            self.halved += 1;
        }
    }

    /// Bytes per second over the whole run: the least-squares line through all
    /// reports. None before there are two different times.
    pub fn slope(&self) -> Option<f64> {
        self.line.slope()
    }

    /// The verdict on the run so far.
    pub fn verdict(&self) -> Verdict {
        if self.line.reports < FEWEST as f64 {
            return Verdict::New;
        }
        let certain = self.line.slope().filter(|slope| slope.abs() > CERTAIN * self.line.error());
        let parts = self.parts();
        match certain {
            Some(slope) if slope > 0.0 && rises(&parts, |part| part.lowest as f64) => {
                Verdict::Growing
            }
            _ if self.churns() => Verdict::Churn,
            // Upside down: the highs are the lows.
            Some(slope) if slope < 0.0 && rises(&parts, |part| -(part.highest as f64)) => {
                Verdict::Shrinking
            }
            _ => Verdict::Plateau,
        }
    }

    /// The run in parts of about equally many reports.
    fn parts(&self) -> Vec<Point> {
        if self.points.len() < FEW {
            return self.points.clone();
        }
        // Points that stand for several reports are as good: only the last can
        // be smaller than the others.
        let count = self.points.len();
        let bounds = (0..PARTS).map(|part| part * count / PARTS..(part + 1) * count / PARTS);
        bounds
            .filter_map(|bounds| self.points.get(bounds))
            .filter_map(|points| points.iter().copied().reduce(Point::and))
            .collect()
    }

    fn churns(&self) -> bool {
        let (first, second) = self.points.split_at(self.points.len() / 2);
        let (Some(middle), Some(second)) =
            (first.last(), second.iter().copied().reduce(Point::and))
        else {
            return false;
        };
        second.allocated > middle.allocated
            && second.older as f64 <= second.highest as f64 * OLD_SHARE
    }
}

/// Whether the lows of the parts rise, up to the last.
fn rises(parts: &[Point], low: impl Fn(&Point) -> f64) -> bool {
    let lows: Vec<f64> = parts.iter().map(low).collect();
    let &[first, .., before, last] = &lows[..] else { return false };
    let swing = |part: &Point| (part.highest - part.lowest) as f64;
    let greatest = parts.iter().map(swing).fold(0.0, f64::max);
    let pace = (last - first) / (lows.len() - 1) as f64;
    let moved = match parts.last() {
        Some(part) if part.reports > 1 => swing(part),
        _ => last - before,
    };
    last > before
        && before > first
        && lows.is_sorted()
        && last - first > greatest * SWING_SHARE
        && moved > pace * PACE_SHARE
}

/// A least-squares line, kept up with each value (Welford's method, which does
/// not lose digits to the size of the numbers).
#[derive(Clone, Copy, Debug, Default)]
struct Line {
    reports: f64,
    mean_x: f64,
    mean_y: f64,
    /// Sums of products of the distances from the means.
    xx: f64,
    xy: f64,
    yy: f64,
}

impl Line {
    fn add(&mut self, x: f64, y: f64) {
        self.reports += 1.0;
        let (dx, dy) = (x - self.mean_x, y - self.mean_y);
        self.mean_x += dx / self.reports;
        self.mean_y += dy / self.reports;
        self.xx += dx * (x - self.mean_x);
        self.xy += dx * (y - self.mean_y);
        self.yy += dy * (y - self.mean_y);
    }

    fn slope(&self) -> Option<f64> {
        let slope = self.xy / self.xx;
        (self.xx > 0.0 && slope.is_finite()).then_some(slope)
    }

    /// Standard error of the slope, if what is left over were noise.
    fn error(&self) -> f64 {
        let Some(slope) = self.slope() else { return 0.0 };
        let left = (self.yy - slope * self.xy).max(0.0);
        (left / (self.reports - 2.0).max(1.0) / self.xx).sqrt()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One report a second: live and old bytes and all blocks allocated so far.
    fn trend(reports: impl IntoIterator<Item = (u64, u64, u64)>) -> Trend {
        let mut trend = Trend::default();
        for (second, (live, older, allocated)) in reports.into_iter().enumerate() {
            trend.add(1000.0 + second as f64, live, older, allocated);
        }
        trend
    }

    /// Verdict on a stack that holds old blocks and goes on allocating.
    fn verdict(live: impl IntoIterator<Item = u64>) -> Verdict {
        let reports = live.into_iter().enumerate();
        trend(reports.map(|(i, live)| (live, live / 2 + 1, i as u64))).verdict()
    }

    /// For runs of many lengths, short ones and ones whose points were halved.
    fn lengths() -> impl Iterator<Item = u64> {
        [3, 4, 5, 7, 8, 9, 13, 20, 63, 64, 65, 66, 100, 127, 129, 200, 1000, 5000].into_iter()
    }

    /// Numbers that look random and are always the same (Knuth's MMIX).
    fn noise(seed: u64) -> impl Iterator<Item = u64> + Clone {
        let mut state = seed;
        std::iter::repeat_with(move || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            state >> 40
        })
    }

    #[test]
    fn a_linear_leak_grows() {
        for n in lengths() {
            assert_eq!(verdict((0..n).map(|i| i * 4096)), Verdict::Growing, "{n}");
            assert_eq!(verdict((0..n).map(|i| (1 << 50) + i)), Verdict::Growing, "{n}");
            assert_eq!(verdict((0..n).rev().map(|i| i * 4096)), Verdict::Shrinking, "{n}");
        }
        let steady = trend((0..5000).map(|i| (7 + i * 4096, i, i)));
        assert!((steady.slope().unwrap() - 4096.0).abs() < 1e-6);
    }

    #[test]
    fn fewer_than_three_reports_are_new() {
        assert_eq!(trend([]).verdict(), Verdict::New);
        assert_eq!(trend([(1, 0, 1), (2, 0, 2)]).verdict(), Verdict::New);
        assert_eq!(trend([(1, 0, 1), (2, 0, 2), (3, 0, 3)]).verdict(), Verdict::Growing);
    }

    #[test]
    fn what_has_filled_is_a_plateau() {
        for n in lengths() {
            assert_eq!(verdict((0..n).map(|_| 1 << 20)), Verdict::Plateau, "level, {n}");
            assert_eq!(verdict((0..n).map(|i| u64::from(i > 0) << 20)), Verdict::Plateau, "{n}");
            assert_eq!(verdict((0..n).map(|i| u64::from(i > n / 2) << 20)), Verdict::Plateau);
        }
        // Filled over the first 70 % of the run, then full; and while it fills.
        for n in [100, 1000, 5000] {
            let fill = |i: u64| i.min(n * 7 / 10) * 4096;
            assert_eq!(verdict((0..n).map(fill)), Verdict::Plateau, "{n}");
            assert_eq!(verdict((0..n * 7 / 10).map(fill)), Verdict::Growing, "{n}");
            assert_eq!(verdict((0..n).map(|i| (1 << 30) - fill(i))), Verdict::Plateau, "{n}");
        }
    }

    #[test]
    fn waves_are_a_plateau() {
        for n in [40, 100, 128, 500, 1000, 4096] {
            for periods in [2.0, 3.0, 5.5, 10.0] {
                for phase in [0.0, 1.5, 3.0, 4.5] {
                    let wave = |i: u64| {
                        let angle = i as f64 / n as f64 * periods * std::f64::consts::TAU + phase;
                        ((angle.sin() + 2.0) * 1e6) as u64
                    };
                    assert_eq!(
                        verdict((0..n).map(wave)),
                        Verdict::Plateau,
                        "{n} {periods} {phase}"
                    );
                }
            }
        }
    }

    #[test]
    fn of_two_saw_teeth_the_one_whose_lows_rise_grows() {
        for n in [80, 100, 200, 1000, 5000] {
            for period in [5, 7, 10, 17] {
                let flat = |i: u64| (1 << 20) + i % period * 10_000;
                assert_eq!(verdict((0..n).map(flat)), Verdict::Plateau, "{n} {period}");
                // As much again over the run as a tooth is high.
                let rising = |i: u64| flat(i) + i * period * 10_000 / n;
                assert_eq!(verdict((0..n).map(rising)), Verdict::Growing, "{n} {period}");
            }
        }
    }

    #[test]
    fn all_young_is_churn_and_old_is_not() {
        for n in lengths() {
            let young =
                |older: u64| trend((0..n).map(|i| (100_000 + i % 2 * 50_000, older, i * 9)));
            assert_eq!(young(0).verdict(), Verdict::Churn, "{n}");
            assert_eq!(young(999).verdict(), Verdict::Churn, "{n}");
            assert_eq!(young(2000).verdict(), Verdict::Plateau, "{n}");
            // Freed before each report.
            assert_eq!(trend((0..n).map(|i| (0, 0, i * 1000))).verdict(), Verdict::Churn, "{n}");
            // Nothing is old yet, but nothing is allocated either.
            assert_eq!(trend((0..n).map(|_| (4096, 0, 1))).verdict(), Verdict::Plateau, "{n}");
            // A leak is a leak before any of it is old.
            assert_eq!(trend((0..n).map(|i| (i * 100, 0, i))).verdict(), Verdict::Growing, "{n}");
        }
    }

    #[test]
    fn a_slow_leak_grows_once_every_quarter_has_a_block() {
        for every in [2, 10, 30, 100] {
            for n in [4 * every + 8, 5 * every, 7 * every, 20 * every] {
                let live = |i: u64| 640 + i / every * 64;
                let n = n.max(8);
                assert_eq!(verdict((0..n).map(live)), Verdict::Growing, "{every} {n}");
            }
            // One block is no leak.
            let one = |i: u64| 640 + u64::from(i >= every) * 64;
            assert_eq!(verdict((0..every * 3 / 2 + 8).map(one)), Verdict::Plateau, "{every}");
        }
    }

    #[test]
    fn a_leak_under_noise_grows_and_noise_does_not() {
        let mut wrong = 0;
        for seed in 0..500 {
            for n in [12, 50, 300] {
                let level = noise(seed * 7919 + n).take(n as usize).map(|x| x % 100_000);
                wrong += u32::from(verdict(level.clone()) != Verdict::Plateau);
                if n == 300 {
                    let leak = level.enumerate().map(|(i, x)| x + i as u64 * 1000);
                    assert_eq!(verdict(leak), Verdict::Growing, "{seed}");
                }
            }
        }
        assert!(wrong <= 3, "{wrong} of 1500");
    }

    #[test]
    fn a_start_that_is_freed_again_does_not_hide_a_leak() {
        let live = |i: u64| if i < 20 { 5_000_000 } else { 1_000_000 + i * 10_000 };
        assert_eq!(verdict((0..2000).map(live)), Verdict::Growing);
    }

    #[test]
    fn times_without_meaning_do_no_harm() {
        let mut trend = Trend::default();
        assert_eq!(trend.slope(), None);
        for live in [1, 5, 2, 9] {
            trend.add(3.0, live, live, live);
        }
        assert_eq!((trend.slope(), trend.verdict()), (None, Verdict::Plateau));
        trend.add(f64::NAN, 1, 1, 1);
        trend.add(f64::INFINITY, 1, 1, 1);
        assert_eq!((trend.slope(), trend.points.len()), (None, 4));
        trend.add(4.0, u64::MAX, u64::MAX, u64::MAX);
        trend.add(f64::MAX, 0, 0, 0);
        assert!(trend.slope().is_none_or(f64::is_finite));
        trend.verdict();
    }

    #[test]
    fn memory_is_bounded_and_extremes_are_kept() {
        let mut trend = Trend::default();
        for i in 0..100_000_u64 {
            let live = if i == 31_415 {
                3
            } else if i == 27_182 {
                999
            } else {
                500
            };
            trend.add(i as f64, live, 0, i);
            assert!(trend.points.len() <= POINTS);
        }
        assert_eq!(trend.points.iter().map(|p| p.reports).sum::<u64>(), 100_000);
        assert_eq!(trend.points.iter().map(|p| p.lowest).min(), Some(3));
        assert_eq!(trend.points.iter().map(|p| p.highest).max(), Some(999));
        let (last, rest) = trend.points.split_last().unwrap();
        assert!(rest.iter().all(|p| p.reports == 2048) && last.reports <= 2048);
    }

    #[test]
    fn a_verdict_is_a_word() {
        let all =
            [Verdict::New, Verdict::Growing, Verdict::Plateau, Verdict::Churn, Verdict::Shrinking];
        let words: Vec<String> = all.iter().map(Verdict::to_string).collect();
        assert_eq!(words, ["new", "growing", "plateau", "churn", "shrinking"]);
        assert_eq!(format!("{:>9}", Verdict::New), "      new");
    }
}

//! Figures of repeated runs, and the tables they are printed in.

use std::io;
use std::io::Write as _;

use crate::Result;

/// The figures of one variant, one a round.
#[derive(Clone, Debug, Default)]
pub(crate) struct Series(pub(crate) Vec<f64>);

impl Series {
    pub(crate) fn median(&self) -> f64 {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        match sorted.len() {
            0 => f64::NAN,
            n if n % 2 == 1 => sorted[n / 2],
            n => f64::midpoint(sorted[n / 2 - 1], sorted[n / 2]),
        }
    }

    pub(crate) fn min(&self) -> f64 {
        self.0.iter().copied().fold(f64::NAN, f64::min)
    }

    pub(crate) fn max(&self) -> f64 {
        self.0.iter().copied().fold(f64::NAN, f64::max)
    }

    /// This minus `other`, round by round: what changes from one round to the
    /// next, and is not the variant's doing, drops out.
    pub(crate) fn minus(&self, other: &Self) -> Self {
        self.paired(other, |mine, theirs| mine - theirs)
    }

    /// This divided by `other`, round by round.
    pub(crate) fn over(&self, other: &Self) -> Self {
        self.paired(other, |mine, theirs| mine / theirs)
    }

    fn paired(&self, other: &Self, of: impl Fn(f64, f64) -> f64) -> Self {
        Self(self.0.iter().zip(&other.0).map(|(&mine, &theirs)| of(mine, theirs)).collect())
    }
}

/// The order of `n` variants in a round: each begins one further, so that no
/// variant always runs first, or always behind the same other one.
pub(crate) fn order(n: usize, round: usize) -> impl Iterator<Item = usize> {
    (0..n).map(move |i| (i + round) % n)
}

/// A table under a title. The first and the last column are words, those
/// between are figures.
pub(crate) struct Table {
    title: String,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn new(title: impl Into<String>, head: &[&str]) -> Self {
        let head = head.iter().map(|&cell| cell.to_owned()).collect();
        Self { title: title.into(), rows: vec![head] }
    }

    /// Adds a row with as many cells as the heading has.
    pub(crate) fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.rows.push(cells.into());
    }

    /// Prints it to standard output.
    pub(crate) fn print(&self) -> Result<()> {
        let columns = self.rows[0].len();
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut out = io::stdout().lock();
        writeln!(out, "\n{}", self.title)?;
        for row in &self.rows {
            let mut line = String::new();
            for (column, cell) in row.iter().enumerate() {
                let width = widths[column];
                line += &if column == 0 || column == columns - 1 {
                    format!("  {cell:<width$}")
                } else {
                    format!("  {cell:>width$}")
                };
            }
            writeln!(out, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

/// Prints a line to standard output.
pub(crate) fn say(line: &str) -> Result<()> {
    Ok(writeln!(io::stdout().lock(), "{line}")?)
}

/// A figure with `digits` behind the point; what could not be measured is `-`.
pub(crate) fn figure(value: f64, digits: usize) -> String {
    if value.is_finite() { format!("{value:.digits$}") } else { "-".into() }
}

/// Nothing to show, or no bar.
pub(crate) fn none() -> String {
    "-".into()
}

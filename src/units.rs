//! Page size, and the units sizes are shown in. The only place that multiplies
//! by the page size.

use clap::ValueEnum;

/// The page size of the running system, in bytes (`getpagesize(2)`).
pub fn page_size() -> u64 {
    rustix::param::page_size() as u64
}

/// Pages of the running system, in bytes.
pub fn pages_to_bytes(pages: u64) -> u64 {
    pages.saturating_mul(page_size())
}

/// The unit in which sizes are shown (`--unit`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum SizeUnit {
    /// Pages of the running system.
    Pages,
    /// Kibibytes, the unit of `/proc`.
    #[default]
    Kib,
    /// Mebibytes, with one decimal.
    Mib,
    /// Gibibytes, with two decimals.
    Gib,
    /// The largest unit that keeps three digits, with its letter; bytes in JSON and CSV.
    Auto,
}

impl SizeUnit {
    /// What is appended to the key of a size in JSON and CSV.
    pub fn suffix(self) -> &'static str {
        match self {
            SizeUnit::Pages => "pages",
            SizeUnit::Kib => "kib",
            SizeUnit::Mib => "mib",
            SizeUnit::Gib => "gib",
            SizeUnit::Auto => "bytes",
        }
    }

    /// `bytes` as people read it in this unit.
    pub fn text(self, bytes: u64) -> String {
        match self {
            SizeUnit::Pages => (bytes / page_size()).to_string(),
            SizeUnit::Kib => (bytes >> 10).to_string(),
            SizeUnit::Mib => format!("{:.1}", bytes as f64 / f64::from(1 << 20)),
            SizeUnit::Gib => format!("{:.2}", bytes as f64 / f64::from(1 << 30)),
            SizeUnit::Auto => auto(bytes),
        }
    }

    /// `bytes` as a number for machines: exact where the unit is a whole number.
    pub fn number(self, bytes: u64) -> Number {
        match self {
            SizeUnit::Pages => Number::Whole(bytes / page_size()),
            SizeUnit::Kib => Number::Whole(bytes >> 10),
            SizeUnit::Mib => Number::Fraction(bytes as f64 / f64::from(1 << 20)),
            SizeUnit::Gib => Number::Fraction(bytes as f64 / f64::from(1 << 30)),
            SizeUnit::Auto => Number::Whole(bytes),
        }
    }
}

/// A number for machine-readable output.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Number {
    /// A whole number.
    Whole(u64),
    /// A number with a fraction.
    Fraction(f64),
}

fn auto(bytes: u64) -> String {
    let mut value = bytes as f64;
    let mut letters = "BKMGTPE".chars();
    let mut letter = letters.next().unwrap_or('B');
    // 999.95 would print as "1000.0": move on before rounding does.
    while value >= 999.5 {
        let Some(next) = letters.next() else { break };
        value /= 1024.0;
        letter = next;
    }
    if letter == 'B' || value >= 99.95 {
        format!("{value:.0}{letter}")
    } else {
        format!("{value:.1}{letter}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kib_is_exact() {
        assert_eq!(SizeUnit::Kib.text(7919 * 4096), "31676");
        assert_eq!(SizeUnit::Kib.number(7919 * 4096), Number::Whole(31676));
    }

    #[test]
    fn auto_keeps_three_digits() {
        let shown = [0, 999, 1000, 1024, 102_297, 1 << 20, 1_048_051_712, 1 << 40, u64::MAX]
            .map(|bytes| SizeUnit::Auto.text(bytes));
        assert_eq!(shown, ["0B", "999B", "1.0K", "1.0K", "99.9K", "1.0M", "1.0G", "1.0T", "16.0E"]);
    }

    #[test]
    fn fractions_are_kept() {
        assert_eq!(SizeUnit::Mib.text(3 << 19), "1.5");
        assert_eq!(SizeUnit::Gib.number(1 << 29), Number::Fraction(0.5));
    }
}

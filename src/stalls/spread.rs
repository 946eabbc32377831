//! How stalls are spread over latencies, by powers of two.

use crate::output::ALWAYS;
use crate::output::Column;
use crate::output::Row;
use crate::output::Unit;
use crate::output::Value;

/// Classes of latency: `BUCKETS` of drsnoop.bpf.c.
pub const BUCKETS: usize = 32;

/// Characters of the longest bar.
const BAR: u64 = 40;

/// The stalls of one kind and order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spread {
    /// What they were stalled in.
    pub kind: &'static str,
    /// Pages asked for, as a power of two; the highest also stands for larger
    /// ones.
    pub order: u64,
    /// All latencies together, in nanoseconds.
    pub total_ns: u64,
    /// How many were below 1 us, below 2 us, below 4 us and so on; the last
    /// class has no end.
    pub stalls: [u64; BUCKETS],
}

impl Spread {
    /// How many there were.
    pub fn count(&self) -> u64 {
        self.stalls.iter().sum()
    }

    /// The classes from the lowest to the highest in use.
    pub fn classes(&self) -> Vec<Class> {
        let used = |&(_, &stalls): &(usize, &u64)| stalls > 0;
        let first = self.stalls.iter().enumerate().find(used).map(|(i, _)| i);
        let last = self.stalls.iter().enumerate().rfind(used).map(|(i, _)| i);
        let (Some(first), Some(last)) = (first, last) else { return Vec::new() };
        (first..=last)
            .map(|i| Class {
                of: self.kind,
                order: self.order,
                from_us: if i == 0 { 0 } else { 1 << (i - 1) },
                below_us: (i + 1 < BUCKETS).then_some(1 << i),
                stalls: self.stalls[i],
            })
            .collect()
    }

    /// The same for people: a heading and a line for each class.
    pub fn lines(&self) -> Vec<String> {
        let count = self.count();
        let mut lines = vec![format!(
            "{}, order {}: {count} stalls, {:.3} s together, {:.0} us on average",
            self.kind,
            self.order,
            self.total_ns as f64 / 1e9,
            self.total_ns as f64 / 1e3 / count.max(1) as f64
        )];
        let most = self.stalls.iter().max().copied().unwrap_or(0).max(1);
        lines.extend(self.classes().iter().map(|class| {
            // At least one character for what is not nothing.
            let bar = (class.stalls * BAR).div_ceil(most) as usize;
            let below = class.below_us.map_or_else(|| "-".to_owned(), |us| us.to_string());
            let line = format!(
                "{:>10} .. {below:>10} us {:>8} {}",
                class.from_us,
                class.stalls,
                "*".repeat(bar)
            );
            line.trim_end().to_owned()
        }));
        lines
    }
}

/// One class of a [`Spread`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Class {
    /// What they were stalled in.
    pub of: &'static str,
    /// Pages asked for, as a power of two.
    pub order: u64,
    /// Not below.
    pub from_us: u64,
    /// Below; `None`: no end.
    pub below_us: Option<u64>,
    /// How many.
    pub stalls: u64,
}

impl Row<6> for Class {
    const COLUMNS: [Column; 6] = [
        Column::new("KIND", "kind", Unit::Text, 9, ALWAYS, "histogram"),
        Column::new("OF", "of", Unit::Text, 10, ALWAYS, "what they were stalled in"),
        Column::new("ORDER", "order", Unit::Count, 5, ALWAYS, "pages asked for: 2 to the power of"),
        Column::new("FROM", "from_us", Unit::Count, 10, ALWAYS, "microseconds, not below"),
        Column::new("BELOW", "below_us", Unit::Count, 10, ALWAYS, "microseconds, below"),
        Column::new("STALLS", "stalls", Unit::Count, 8, ALWAYS, "how many"),
    ];

    fn values(&self) -> [Value<'_>; 6] {
        [
            Value::Text("histogram".into()),
            Value::Text(self.of.into()),
            Value::Count(self.order),
            Value::Count(self.from_us),
            Value::count(self.below_us),
            Value::Count(self.stalls),
        ]
    }
}

/// All stalls of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct Total {
    /// How many.
    pub stalls: u64,
    /// Together, in nanoseconds.
    pub total_ns: u64,
    /// Share of the run in which some task was stalled for memory, in percent.
    pub some: Option<f64>,
    /// Share of the run in which all tasks were.
    pub full: Option<f64>,
}

impl Total {
    /// The same in words.
    pub fn remark(&self) -> String {
        let share = |percent: Option<f64>| percent.map_or("-".to_owned(), |p| format!("{p:.1}%"));
        format!(
            "all: {} stalls, {:.3} s together; memory pressure of the machine: some {}, full {}",
            self.stalls,
            self.total_ns as f64 / 1e9,
            share(self.some),
            share(self.full)
        )
    }
}

impl Row<5> for Total {
    const COLUMNS: [Column; 5] = [
        Column::new("KIND", "kind", Unit::Text, 5, ALWAYS, "total"),
        Column::new("STALLS", "stalls", Unit::Count, 8, ALWAYS, "how many"),
        Column::new("TOTAL", "total_us", Unit::Count, 10, ALWAYS, "together, in microseconds"),
        Column::new(
            "SOME",
            "psi_some",
            Unit::Percent,
            6,
            ALWAYS,
            "of the time some task was stalled for memory (PSI)",
        ),
        Column::new(
            "FULL",
            "psi_full",
            Unit::Percent,
            6,
            ALWAYS,
            "of the time all tasks were (PSI)",
        ),
    ];

    fn values(&self) -> [Value<'_>; 5] {
        [
            Value::Text("total".into()),
            Value::Count(self.stalls),
            Value::Count(self.total_ns.div_ceil(1000)),
            Value::real(self.some),
            Value::real(self.full),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spread(of: &[(usize, u64)]) -> Spread {
        let mut stalls = [0; BUCKETS];
        for &(class, count) in of {
            stalls[class] = count;
        }
        Spread { kind: "direct", order: 0, total_ns: 7_919_000, stalls }
    }

    #[test]
    fn classes_are_powers_of_two_without_gaps() {
        let classes = spread(&[(0, 3), (2, 7)]).classes();
        let shown: Vec<_> = classes.iter().map(|c| (c.from_us, c.below_us, c.stalls)).collect();
        assert_eq!(shown, [(0, Some(1), 3), (1, Some(2), 0), (2, Some(4), 7)]);
        let last = spread(&[(BUCKETS - 1, 1)]).classes();
        assert_eq!((last[0].from_us, last[0].below_us), (1 << (BUCKETS - 2), None));
        assert!(spread(&[]).classes().is_empty());
    }

    #[test]
    fn for_people_it_is_a_picture() {
        let lines = spread(&[(3, 80), (4, 1)]).lines();
        assert_eq!(lines[0], "direct, order 0: 81 stalls, 0.008 s together, 98 us on average");
        assert_eq!(lines[1], format!("         4 ..          8 us       80 {}", "*".repeat(40)));
        assert_eq!(lines[2], "         8 ..         16 us        1 *");
        let total = Total { stalls: 81, total_ns: 7_919_000, some: Some(1.25), full: None };
        assert_eq!(
            total.remark(),
            "all: 81 stalls, 0.008 s together; memory pressure of the machine: some 1.2%, full -"
        );
    }
}

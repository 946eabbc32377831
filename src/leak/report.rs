//! What is printed of what processes hold: one row a stack, one summary a
//! process and report.

use std::collections::HashMap;
use std::rc::Rc;

use super::Amount;
use super::account::Account;
use super::sample;
use super::trend::Verdict;
use super::user::Trouble;
use crate::frame::Frame;
use crate::output::ALWAYS;
use crate::output::Column;
use crate::output::Group;
use crate::output::MACHINE;
use crate::output::Row;
use crate::output::Unit;
use crate::output::Value;
use crate::time::WallTime;

/// The sorts of memory a row can be about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// Blocks of an allocator.
    Heap,
    /// Anonymous memory the program mapped by itself.
    Map,
    /// Files the program mapped by itself.
    File,
    /// Address space without access.
    Reserved,
    /// Objects of a slab cache.
    Slab,
    /// Pages.
    Pages,
    /// Per-CPU memory.
    Percpu,
    /// Pages of the kernel's virtually mapped memory.
    Vmalloc,
    /// A single block (`--show-allocs`).
    Block,
}

impl Kind {
    /// Its name in the output.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Heap => "heap",
            Kind::Map => "map",
            Kind::File => "file",
            Kind::Reserved => "reserved",
            Kind::Slab => "slab",
            Kind::Pages => "pages",
            Kind::Percpu => "percpu",
            Kind::Vmalloc => "vmalloc",
            Kind::Block => "block",
        }
    }
}

/// What one stack holds of one kind.
#[derive(Clone, Debug)]
pub struct Holding {
    /// When it was read.
    pub time: WallTime,
    /// PID; `None`: the kernel's own.
    pub tgid: Option<u32>,
    /// Name of the process.
    pub comm: Rc<str>,
    /// Sort of memory.
    pub kind: Kind,
    /// More exactly: a slab cache, an order.
    pub what: Rc<str>,
    /// Not freed.
    pub live: Amount,
    /// The part older than the age asked for.
    pub older: Amount,
    /// Everything ever allocated here.
    pub allocated: Option<Amount>,
    /// Change of `live` since the last report, in bytes.
    pub growth: Option<i64>,
    /// Bytes a second over the run.
    pub slope: Option<f64>,
    /// Judgement over the run.
    pub verdict: Option<Verdict>,
    /// Age of the oldest piece in seconds.
    pub oldest_s: Option<f64>,
    /// Standard error of a sampled `live`, in bytes.
    pub error: Option<u64>,
    /// Address of a single block.
    pub address: Option<u64>,
    /// The stack; empty: it could not be kept.
    pub frames: Rc<[Frame]>,
    /// Whether frames are there to print.
    pub with_frames: bool,
}

/// The columns of `--show-allocs`.
pub const BLOCKS: Group = 1;

impl Row<20> for Holding {
    const COLUMNS: [Column; 20] = [
        Column::new("TIME", "time", Unit::Time, 8, ALWAYS, "when the table was read"),
        Column::new("PID", "pid", Unit::Id, 7, ALWAYS, "process; - : the kernel"),
        Column::new("COMM", "comm", Unit::Text, 11, ALWAYS, "name of the process, or slab cache"),
        Column::new(
            "KIND",
            "kind",
            Unit::Text,
            8,
            ALWAYS,
            "heap, map, file, reserved; slab, pages, percpu",
        ),
        Column::new(
            "BYTES",
            "bytes",
            Unit::Count,
            11,
            ALWAYS,
            "allocated and not freed, as asked for",
        ),
        Column::new("COUNT", "count", Unit::Count, 8, ALWAYS, "the same in blocks"),
        Column::new(
            "OLDER",
            "older_bytes",
            Unit::Count,
            11,
            ALWAYS,
            "the part of BYTES older than --older",
        ),
        Column::new(
            "VERDICT",
            "verdict",
            Unit::Text,
            9,
            ALWAYS,
            "over the run: new, growing, plateau, churn, shrinking",
        ),
        Column::new("WHAT", "what", Unit::Text, 12, MACHINE, "the slab cache or page order"),
        Column::new(
            "OLDERCOUNT",
            "older_count",
            Unit::Count,
            8,
            MACHINE,
            "the part of COUNT older than --older",
        ),
        Column::new(
            "ALLOCATED",
            "allocated_bytes",
            Unit::Count,
            12,
            MACHINE,
            "ever allocated, freed or not",
        ),
        Column::new("ALLOCCOUNT", "allocated_count", Unit::Count, 8, MACHINE, "the same in blocks"),
        Column::new(
            "GROWTH",
            "growth_bytes",
            Unit::Count,
            10,
            MACHINE,
            "change of BYTES since the last report",
        ),
        Column::new(
            "SLOPE",
            "slope_bytes_per_s",
            Unit::Count,
            10,
            MACHINE,
            "trend of BYTES over the run",
        ),
        Column::new("OLDEST", "oldest_s", Unit::Count, 8, MACHINE, "age of the oldest block"),
        Column::new(
            "ERROR",
            "error_bytes",
            Unit::Count,
            10,
            MACHINE,
            "standard error of a sampled BYTES",
        ),
        Column::new("ADDRESS", "address", Unit::Text, 14, BLOCKS, "of a single block"),
        Column::new("AGE", "age_s", Unit::Count, 8, BLOCKS, "of a single block"),
        Column::new(
            "LOST",
            "stack_lost",
            Unit::Count,
            4,
            MACHINE,
            "1: these have no stack, because there was no room for it",
        ),
        Column::new(
            "STACK",
            "stack",
            Unit::Stack,
            0,
            ALWAYS,
            "the calls that allocated, innermost first",
        ),
    ];

    fn values(&self) -> [Value<'_>; 20] {
        let signed = |value: Option<i64>| value.map_or(Value::Missing, Value::Signed);
        let block = self.kind == Kind::Block;
        let kernel = self.tgid.is_none();
        [
            Value::Time(self.time),
            Value::count(self.tgid.map(u64::from)),
            Value::Text(if kernel { &self.what } else { &self.comm }.as_ref().into()),
            Value::Text(self.kind.name().into()),
            Value::Count(self.live.bytes),
            Value::Count(self.live.blocks),
            Value::Count(self.older.bytes),
            self.verdict.map_or(Value::Missing, |verdict| Value::Text(verdict.to_string().into())),
            if kernel { Value::Text((&*self.what).into()) } else { Value::Missing },
            Value::Count(self.older.blocks),
            Value::count(self.allocated.map(|allocated| allocated.bytes)),
            Value::count(self.allocated.map(|allocated| allocated.blocks)),
            signed(self.growth),
            Value::real(self.slope),
            Value::real(self.oldest_s.filter(|_| !block)),
            Value::count(self.error),
            self.address
                .map_or(Value::Missing, |address| Value::Text(format!("{address:#x}").into())),
            self.oldest_s
                .filter(|_| block)
                .map_or(Value::Missing, |age| Value::Real((age * 1e3).round() / 1e3)),
            Value::Count(u64::from(self.with_frames && self.frames.is_empty())),
            if self.with_frames { Value::Stack((&*self.frames).into()) } else { Value::Missing },
        ]
    }
}

/// The figures of one process, or of the kernel, at one report.
#[derive(Clone, Debug)]
pub struct Total {
    /// When.
    pub time: WallTime,
    /// PID; `None`: the kernel.
    pub tgid: Option<u32>,
    /// Name.
    pub comm: Rc<str>,
    /// Blocks not freed.
    pub live: Amount,
    /// The part older than the age asked for.
    pub older: Amount,
    /// The age asked for, in seconds.
    pub older_s: f64,
    /// All that was allocated, sampled or filtered ones left out.
    pub seen: Amount,
    /// Blocks without a stack.
    pub lost_stack: Amount,
    /// Share of the live bytes whose stack does not reach its beginning.
    pub truncated_percent: Option<f64>,
    /// What went wrong in the whole run.
    pub trouble: Trouble,
    /// Whether these are estimates.
    pub sampled: bool,
    /// Direct mappings.
    pub map: Amount,
    /// Mapped files.
    pub file: Amount,
    /// Reserved address space, in bytes.
    pub reserved: u64,
    /// Address space mapped by the allocator, in bytes.
    pub allocator: u64,
    /// Where the resident memory is.
    pub account: Option<Account>,
    /// Children that were not followed.
    pub children: u64,
}

impl Total {
    /// Whether every block and event that should be in the figures is.
    pub fn is_complete(&self) -> bool {
        let trouble = &self.trouble;
        trouble.lost.blocks == 0
            && trouble.lost_events == 0
            && trouble.lost_calls == 0
            && trouble.missed_returns == 0
    }

    /// The resident memory of the allocator beyond its live blocks; negative
    /// where blocks were never touched.
    pub fn retained(&self) -> Option<i64> {
        let live = i64::try_from(self.live.bytes).ok()?;
        Some(i64::try_from(self.account?.allocator).ok()? - live)
    }

    /// The lines people read before the rows.
    pub fn remarks(&self) -> Vec<String> {
        let who = match self.tgid {
            Some(tgid) => format!("{} ({tgid})", self.comm),
            None => "kernel".into(),
        };
        let trouble = &self.trouble;
        let about = if self.sampled { "about " } else { "" };
        let mut lines = vec![format!(
            "{} {who}: {about}{} bytes in {} blocks not freed, {} older than {} s; seen {}, lost {}, \
             missed frees {}, unknown frees {}, stacks lost {} truncated {}{}",
            self.time.short(),
            self.live.bytes,
            self.live.blocks,
            self.older.bytes,
            self.older_s,
            self.seen.blocks,
            trouble.lost.blocks,
            trouble.missed_frees.blocks,
            trouble.unknown_frees,
            trouble.lost_stacks,
            self.truncated_percent.map_or("-".into(), |share| format!("{share:.0}%")),
            if self.is_complete() { "" } else { "; INCOMPLETE" },
        )];
        if self.children > 0 {
            lines.push(format!(
                "{} children were started and are not followed (--follow)",
                self.children
            ));
        }
        if let (Some(account), Some(retained)) = (&self.account, self.retained()) {
            let kib = |bytes: u64| bytes >> 10;
            lines.push(format!(
                "RSS {} KiB = live blocks {} + allocator-retained {} + direct mappings {} + file {} + \
                 shmem {} + stack {} + unexplained {}; page tables {}",
                kib(account.rss),
                kib(self.live.bytes),
                retained >> 10,
                kib(account.direct),
                kib(account.file),
                kib(account.shmem),
                kib(account.stack),
                kib(account.unexplained),
                kib(account.page_tables),
            ));
        }
        lines
    }
}

impl Row<38> for Total {
    const COLUMNS: [Column; 38] = [
        Column::new("TIME", "time", Unit::Time, 8, ALWAYS, "when the tables were read"),
        Column::new("PID", "pid", Unit::Id, 7, ALWAYS, "process"),
        Column::new("COMM", "comm", Unit::Text, 15, ALWAYS, "name of the process"),
        Column::new("KIND", "kind", Unit::Text, 8, ALWAYS, "total"),
        Column::new("BYTES", "bytes", Unit::Count, 12, ALWAYS, "in blocks not freed"),
        Column::new("COUNT", "count", Unit::Count, 8, ALWAYS, "blocks not freed"),
        Column::new("OLDER", "older_bytes", Unit::Count, 12, ALWAYS, "older than --older"),
        Column::new("", "older_count", Unit::Count, 8, ALWAYS, "blocks older than --older"),
        Column::new("", "older_s", Unit::Count, 8, ALWAYS, "that age"),
        Column::new("", "seen_bytes", Unit::Count, 8, ALWAYS, "ever allocated"),
        Column::new("", "seen_count", Unit::Count, 8, ALWAYS, "blocks ever allocated"),
        Column::new("", "tracked_count", Unit::Count, 8, ALWAYS, "those that found room"),
        Column::new("", "lost_bytes", Unit::Count, 8, ALWAYS, "those that did not, of the run"),
        Column::new("", "lost_count", Unit::Count, 8, ALWAYS, "the same in blocks"),
        Column::new("", "missed_frees", Unit::Count, 8, ALWAYS, "frees not seen, corrected"),
        Column::new("", "missed_free_bytes", Unit::Count, 8, ALWAYS, "the same in bytes"),
        Column::new("", "unknown_frees", Unit::Count, 8, ALWAYS, "frees of blocks not known"),
        Column::new("", "missed_returns", Unit::Count, 8, ALWAYS, "calls whose end was not seen"),
        Column::new("", "lost_events", Unit::Count, 8, ALWAYS, "mapping events without room"),
        Column::new("", "lost_stack_bytes", Unit::Count, 8, ALWAYS, "live bytes without a stack"),
        Column::new("", "lost_stack_count", Unit::Count, 8, ALWAYS, "the same in blocks"),
        Column::new(
            "",
            "truncated_percent",
            Unit::Count,
            8,
            ALWAYS,
            "live bytes with half a stack",
        ),
        Column::new("", "complete", Unit::Count, 8, ALWAYS, "1: nothing was lost"),
        Column::new("", "sampled", Unit::Count, 8, ALWAYS, "1: these are estimates"),
        Column::new("", "map_bytes", Unit::Count, 8, ALWAYS, "direct mappings"),
        Column::new("", "map_count", Unit::Count, 8, ALWAYS, "how many ranges"),
        Column::new("", "file_bytes", Unit::Count, 8, ALWAYS, "mapped files"),
        Column::new("", "reserved_bytes", Unit::Count, 8, ALWAYS, "address space without access"),
        Column::new("", "allocator_bytes", Unit::Count, 8, ALWAYS, "mapped by the allocator"),
        Column::new("", "rss_bytes", Unit::Count, 8, ALWAYS, "resident memory"),
        Column::new(
            "",
            "retained_bytes",
            Unit::Count,
            8,
            ALWAYS,
            "resident in the allocator beyond live blocks",
        ),
        Column::new("", "direct_rss_bytes", Unit::Count, 8, ALWAYS, "resident in direct mappings"),
        Column::new("", "file_rss_bytes", Unit::Count, 8, ALWAYS, "resident in mapped files"),
        Column::new("", "shmem_rss_bytes", Unit::Count, 8, ALWAYS, "resident in shared memory"),
        Column::new("", "stack_rss_bytes", Unit::Count, 8, ALWAYS, "resident in the first stack"),
        Column::new(
            "",
            "unexplained_bytes",
            Unit::Count,
            8,
            ALWAYS,
            "resident in memory mapped before the watch",
        ),
        Column::new("", "page_table_bytes", Unit::Count, 8, ALWAYS, "page tables, not resident"),
        Column::new("", "children", Unit::Count, 8, ALWAYS, "processes it started, not followed"),
    ];

    fn values(&self) -> [Value<'_>; 38] {
        let trouble = &self.trouble;
        let account = |part: fn(&Account) -> u64| Value::count(self.account.as_ref().map(part));
        let tracked = self.seen.blocks.saturating_sub(trouble.lost.blocks);
        [
            Value::Time(self.time),
            Value::count(self.tgid.map(u64::from)),
            Value::Text((&*self.comm).into()),
            Value::Text("total".into()),
            Value::Count(self.live.bytes),
            Value::Count(self.live.blocks),
            Value::Count(self.older.bytes),
            Value::Count(self.older.blocks),
            Value::Real(self.older_s),
            Value::Count(self.seen.bytes),
            Value::Count(self.seen.blocks),
            Value::Count(tracked),
            Value::Count(trouble.lost.bytes),
            Value::Count(trouble.lost.blocks),
            Value::Count(trouble.missed_frees.blocks),
            Value::Count(trouble.missed_frees.bytes),
            Value::Count(trouble.unknown_frees),
            Value::Count(trouble.missed_returns),
            Value::Count(trouble.lost_events),
            Value::Count(self.lost_stack.bytes),
            Value::Count(self.lost_stack.blocks),
            Value::real(self.truncated_percent),
            Value::Count(self.is_complete().into()),
            Value::Count(self.sampled.into()),
            Value::Count(self.map.bytes),
            Value::Count(self.map.blocks),
            Value::Count(self.file.bytes),
            Value::Count(self.reserved),
            Value::Count(self.allocator),
            account(|account| account.rss),
            self.retained().map_or(Value::Missing, Value::Signed),
            account(|account| account.direct),
            account(|account| account.file),
            account(|account| account.shmem),
            account(|account| account.stack),
            account(|account| account.unexplained),
            account(|account| account.page_tables),
            Value::Count(self.children),
        ]
    }
}

/// Sums blocks by stack: what is held, or what sampled blocks stand for.
#[derive(Clone, Debug, Default)]
pub struct Sum {
    live: Amount,
    older: Amount,
    estimate: Option<(sample::Estimate, sample::Estimate)>,
    /// When the oldest piece was allocated.
    pub oldest_ns: Option<u64>,
}

impl Sum {
    /// Adds one block. `mean`: bytes between two samples; 0: every block is here.
    pub fn add(&mut self, bytes: u64, time_ns: u64, older: bool, mean: u64) {
        self.oldest_ns = Some(self.oldest_ns.map_or(time_ns, |oldest| oldest.min(time_ns)));
        if mean > 0 {
            let (all, old) = self.estimate.get_or_insert_default();
            all.add(bytes, mean);
            if older {
                old.add(bytes, mean);
            }
            return;
        }
        self.live.add_block(bytes);
        if older {
            self.older.add_block(bytes);
        }
    }

    /// Everything.
    pub fn live(&self) -> Amount {
        self.estimate.as_ref().map_or(self.live, |(all, _)| rounded(all))
    }

    /// The part that is old.
    pub fn older(&self) -> Amount {
        self.estimate.as_ref().map_or(self.older, |(_, old)| rounded(old))
    }

    /// The standard error of the bytes, for estimates.
    pub fn error(&self) -> Option<u64> {
        Some(self.estimate.as_ref()?.0.bytes_error().round() as u64)
    }
}

fn rounded(estimate: &sample::Estimate) -> Amount {
    Amount { bytes: estimate.bytes.round() as u64, blocks: estimate.blocks.round() as u64 }
}

/// What is held, by stack and kind.
pub type Sums = HashMap<(Kind, u64), Sum>;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::Symbol;
    use crate::output::tests::golden;

    fn holding(kind: Kind, frames: Vec<Frame>) -> Holding {
        Holding {
            time: WallTime::fixed(),
            tgid: Some(4711),
            comm: "nginx".into(),
            kind,
            what: kind.name().into(),
            live: Amount { bytes: 2323, blocks: 23 },
            older: Amount { bytes: 101, blocks: 1 },
            allocated: Some(Amount { bytes: 10_100, blocks: 100 }),
            growth: Some(-303),
            slope: Some(12.5),
            verdict: Some(Verdict::Growing),
            oldest_s: Some(61.25),
            error: None,
            address: None,
            frames: frames.into(),
            with_frames: true,
        }
    }

    fn frame(address: u64, name: &str) -> Frame {
        let symbol = Symbol { name: name.into(), offset: 9, source: None };
        Frame {
            address,
            symbol: Some(symbol),
            module: Some("/usr/sbin/nginx".into()),
            ..Frame::default()
        }
    }

    #[test]
    fn the_output_is_the_documented_one() {
        let stack = vec![frame(0x5555_0009, "malloc"), frame(0x5555_1009, "ngx_alloc")];
        let mut block = holding(Kind::Block, Vec::new());
        block.with_frames = false;
        block.live = Amount { bytes: 101, blocks: 1 };
        block.address = Some(0x7f00_1234);
        let mut kernel = holding(Kind::Slab, Vec::new());
        kernel.tgid = None;
        kernel.what = "slab dentry".into();
        golden::<Holding, 20>("memleak", BLOCKS, &[holding(Kind::Heap, stack), block, kernel]);
    }

    #[test]
    fn rows_fit_eighty_columns() {
        let widths: usize = <Holding as Row<20>>::COLUMNS
            .iter()
            .filter(|column| column.group == ALWAYS && column.unit != Unit::Stack)
            .map(|column| column.width.max(column.head.len()) + 1)
            .sum();
        assert!(widths - 1 <= 80, "{widths}");
    }

    fn total(allocator: u64, live: u64) -> Total {
        let account = Account { rss: allocator, allocator, ..Account::default() };
        Total {
            time: WallTime::fixed(),
            tgid: Some(1),
            comm: "x".into(),
            live: Amount { bytes: live, blocks: 1 },
            older: Amount::default(),
            older_s: 10.0,
            seen: Amount::default(),
            lost_stack: Amount::default(),
            truncated_percent: None,
            trouble: Trouble::default(),
            sampled: false,
            map: Amount::default(),
            file: Amount::default(),
            reserved: 0,
            allocator: 0,
            account: Some(account),
            children: 0,
        }
    }

    #[test]
    fn what_was_never_touched_makes_the_retained_part_negative() {
        assert_eq!(total(4096, 1000).retained(), Some(3096));
        assert_eq!(total(4096, 10_000).retained(), Some(-5904));
    }

    #[test]
    fn a_loss_of_any_kind_makes_a_report_incomplete() {
        assert!(total(0, 0).is_complete());
        let losses: [fn(&mut Trouble); 4] = [
            |trouble| trouble.lost.blocks = 1,
            |trouble| trouble.lost_events = 1,
            |trouble| trouble.lost_calls = 1,
            |trouble| trouble.missed_returns = 1,
        ];
        for lose in losses {
            let mut total = total(0, 0);
            lose(&mut total.trouble);
            assert!(!total.is_complete());
            assert!(total.remarks().iter().any(|line| line.contains("INCOMPLETE")));
        }
    }

    #[test]
    fn sampled_blocks_stand_for_more_than_themselves() {
        let mut sum = Sum::default();
        sum.add(1000, 5, true, 1_000_000);
        assert_eq!(sum.live(), sum.older());
        // 1 / (1 - exp(-0.001)) blocks of 1000 bytes.
        assert_eq!(sum.live(), Amount { bytes: 1_000_500, blocks: 1001 });
        let mut exact = Sum::default();
        exact.add(1000, 5, false, 0);
        assert_eq!((exact.live().bytes, exact.older().bytes, exact.error()), (1000, 0, None));
    }
}

//! From what the kernel side has gathered to rows, report by report.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::collections::HashSet;
use std::rc::Rc;
use std::time::Duration;
use std::time::Instant;
use std::time::SystemTime;

use clap::ValueEnum;

use super::Amount;
use super::account::Accountant;
use super::ledger::Backing;
use super::report::Holding;
use super::report::Kind;
use super::report::Sum;
use super::report::Sums;
use super::report::Total;
use super::traced::Traced;
use super::trend::Trend;
use super::user::Block;
use super::user::Known;
use super::user::Process;
use super::user::RawEvent;
use super::user::Tracer;
use crate::context::Context;
use crate::error::Result;
use crate::frame::Frame;
use crate::output::Printer;
use crate::output::note;
use crate::output::profile::Profile;
use crate::output::profile::Sample;
use crate::symbols::Symbols;
use crate::symbols::is_complete;
use crate::time::monotonic_ns;
use crate::time::wall_time;

/// What counts as old where the user does not say.
pub const OLD: Duration = Duration::from_secs(10);

/// After this long without a call it is said why that may be.
const SILENCE: Duration = Duration::from_secs(5);

/// Order of the stacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Sort {
    /// Bytes not freed.
    Bytes,
    /// Blocks not freed.
    Count,
    /// Growth since the last report.
    Growth,
}

/// What of it is printed.
#[derive(Clone, Debug)]
pub struct View {
    /// Only what is older than this.
    pub older: Option<Duration>,
    /// Stacks a report.
    pub top: usize,
    /// Their order.
    pub sort: Sort,
    /// Single blocks too.
    pub show_blocks: bool,
    /// Source files and lines.
    pub lines: bool,
    /// Stacks were recorded.
    pub stacks: bool,
    /// Mean bytes between two samples; 0: all blocks are recorded.
    pub sample_bytes: u64,
}

impl View {
    /// What counts as old.
    pub fn age(&self) -> Duration {
        self.older.unwrap_or(OLD)
    }
}

/// What a stack is known by, over the whole run.
type Place = (u64, Kind, u64);

/// Turns tables into reports.
pub struct Reporter {
    view: View,
    symbols: Symbols,
    stacks: HashMap<u64, Known>,
    history: HashMap<Place, History>,
    accountants: HashMap<u64, Accountant>,
    profile: Vec<Sample>,
    begin: Instant,
    heard: bool,
}

/// What was held by a stack at earlier reports.
#[derive(Default)]
pub struct History {
    /// Over the run.
    pub trend: Trend,
    last: u64,
}

impl History {
    /// Enters a report; returns the growth since the last one.
    pub fn add(&mut self, time_s: f64, live: u64, older: u64, allocated: u64) -> Option<i64> {
        self.trend.add(time_s, live, older, allocated);
        let before = std::mem::replace(&mut self.last, live);
        i64::try_from(i128::from(live) - i128::from(before)).ok()
    }
}

/// What one process holds at one moment.
#[derive(Default)]
struct Figures {
    sums: Sums,
    allocator: u64,
}

impl Reporter {
    /// One that has seen nothing yet.
    pub fn new(view: View) -> Self {
        Self {
            symbols: Symbols::new(view.lines),
            view,
            stacks: HashMap::new(),
            history: HashMap::new(),
            accountants: HashMap::new(),
            profile: Vec::new(),
            begin: Instant::now(),
            heard: false,
        }
    }

    /// One report of all processes. Those that have ended are reported for the
    /// last time, and forgotten.
    ///
    /// # Errors
    /// The tables cannot be read, or standard output cannot be written.
    pub fn report(
        &mut self,
        ctx: &Context,
        tracer: &mut Tracer<'_>,
        printer: &mut Printer,
    ) -> Result<()> {
        let ended = tracer.processes().values().any(|process| process.ended.is_some());
        if !printer.wants_rows() && !ended {
            return Ok(());
        }
        let (figures, blocks) = self.read(tracer)?;
        self.explain_silence(tracer, &figures);
        let processes: Vec<u64> = tracer.processes().keys().copied().collect();
        for id in processes {
            let Some(process) = tracer.processes().get(&id) else { continue };
            let mine = figures.get(&id);
            if printer.wants_rows() {
                let empty = Figures::default();
                let mine = mine.unwrap_or(&empty);
                self.print(ctx, tracer, (id, process), mine, &blocks, printer)?;
            } else if let (Some(mine), true) = (mine, process.ended.is_some()) {
                let samples = self.samples(id, process, mine);
                self.profile.extend(samples);
            }
            if process.ended.is_some() {
                tracer.forget(id)?;
                self.forget(id);
            }
        }
        Ok(())
    }

    /// Writes what is written once, at the end.
    ///
    /// # Errors
    /// The tables cannot be read.
    pub fn end(&mut self, tracer: &Tracer<'_>, printer: &mut Printer) -> Result<()> {
        if !printer.wants_profile() {
            return Ok(());
        }
        let (figures, _) = self.read(tracer)?;
        for (id, process) in tracer.processes() {
            if let Some(mine) = figures.get(id) {
                let samples = self.samples(*id, process, mine);
                self.profile.extend(samples);
            }
        }
        let samples = std::mem::take(&mut self.profile);
        printer.profile(profile_of(self.begin.elapsed(), samples));
        Ok(())
    }

    /// A traced call with its stack.
    pub fn call(&mut self, tracer: &Tracer<'_>, raw: &RawEvent) -> Traced {
        let process = tracer.processes().get(&raw.process);
        let stack = tracer.stack(raw.stack).filter(|_| raw.stack != 0);
        let frames = match (process, stack) {
            (Some(process), Some(stack)) => self.symbols.user(&process.maps, &stack),
            _ => Vec::new(),
        };
        Traced::new(tracer, raw, frames)
    }

    fn forget(&mut self, id: u64) {
        self.history.retain(|(process, _, _), _| *process != id);
        self.accountants.remove(&id);
    }

    /// What every process holds.
    fn read(&mut self, tracer: &Tracer<'_>) -> Result<(HashMap<u64, Figures>, Vec<Block>)> {
        let now = monotonic_ns();
        let old = u64::try_from(self.view.age().as_nanos()).unwrap_or(u64::MAX);
        let mean = self.view.sample_bytes;
        let mut figures: HashMap<u64, Figures> = HashMap::new();
        let mut blocks = Vec::new();
        tracer.each_block(|block| {
            let older = now.saturating_sub(block.time_ns) > old;
            let mine = figures.entry(block.process).or_default();
            let sum = mine.sums.entry((Kind::Heap, block.stack)).or_default();
            sum.add(block.bytes, block.time_ns, older, mean);
            if self.view.show_blocks {
                blocks.push(block);
            }
        })?;
        for (id, process) in tracer.processes() {
            let mine = figures.entry(*id).or_default();
            for range in process.ledger.iter() {
                let mapped = range.value;
                let bytes = range.end - range.start;
                let kind = match mapped.backing {
                    _ if mapped.allocator => {
                        mine.allocator += bytes;
                        continue;
                    }
                    _ if mapped.reserved => Kind::Reserved,
                    Backing::File => Kind::File,
                    Backing::Anonymous | Backing::Brk => Kind::Map,
                };
                let older = now.saturating_sub(mapped.time_ns) > old;
                let sum = mine.sums.entry((kind, mapped.stack)).or_default();
                sum.add(bytes, mapped.time_ns, older, 0);
            }
        }
        // After the blocks: a stack is in its table before its first block is.
        tracer.read_stacks(&mut self.stacks)?;
        Ok((figures, blocks))
    }

    fn print(
        &mut self,
        ctx: &Context,
        tracer: &Tracer<'_>,
        (id, process): (u64, &Process),
        figures: &Figures,
        blocks: &[Block],
        printer: &mut Printer,
    ) -> Result<()> {
        let total = self.total(ctx, tracer, (id, process), figures);
        for line in total.remarks() {
            printer.remark(&line)?;
        }
        printer.figures(&total)?;

        let now = monotonic_ns();
        let mut holdings: Vec<(u64, Holding)> = Vec::new();
        let comm: Rc<str> = process.comm.as_str().into();
        let time_s = self.begin.elapsed().as_secs_f64();
        // Those that hold nothing any more have a history too.
        let mut places: HashSet<(Kind, u64)> = figures.sums.keys().copied().collect();
        places.extend(
            self.history.keys().filter(|place| place.0 == id).map(|place| (place.1, place.2)),
        );
        for (kind, stack) in places {
            let sum = figures.sums.get(&(kind, stack)).cloned().unwrap_or_default();
            let allocated = match (kind, self.stacks.get(&stack)) {
                (Kind::Heap, Some(known)) => Some(known.seen),
                (Kind::Heap, None) => Some(tracer.stackless()),
                _ => None,
            };
            let allocated = allocated.filter(|_| self.view.sample_bytes == 0);
            let (live, older) = (sum.live(), sum.older());
            let history = self.history.entry((id, kind, stack)).or_default();
            let blocks_seen = allocated.map_or(live.blocks, |allocated| allocated.blocks);
            let growth = history.add(time_s, live.bytes, older.bytes, blocks_seen);
            let listed = if self.view.older.is_some() { older } else { live };
            if listed.blocks == 0 {
                continue;
            }
            let holding = Holding {
                time: total.time,
                tgid: Some(process.tgid),
                comm: Rc::clone(&comm),
                kind,
                what: kind.name().into(),
                live: listed,
                older,
                allocated,
                growth,
                slope: history.trend.slope(),
                verdict: Some(history.trend.verdict()),
                oldest_s: sum.oldest_ns.map(|oldest| seconds(now, oldest)),
                error: sum.error(),
                address: None,
                frames: Rc::from([]),
                with_frames: self.view.stacks,
            };
            holdings.push((stack, holding));
        }
        for (stack, mut holding) in self.select(holdings) {
            holding.frames = self.frames(process, stack).into();
            printer.row(&holding)?;
            if self.view.show_blocks && holding.kind == Kind::Heap {
                let mut mine: Vec<&Block> = blocks
                    .iter()
                    .filter(|block| block.process == id && block.stack == stack)
                    .filter(|block| {
                        let age = Duration::from_nanos(now.saturating_sub(block.time_ns));
                        self.view.older.is_none_or(|older| age > older)
                    })
                    .collect();
                mine.sort_by_key(|block| (Reverse(block.bytes), block.address));
                for block in mine {
                    printer.row(&single(&holding, block, now))?;
                }
            }
        }
        Ok(())
    }

    fn select(&self, mut holdings: Vec<(u64, Holding)>) -> Vec<(u64, Holding)> {
        let sort = self.view.sort;
        holdings.sort_by_key(|(stack, holding)| {
            (Reverse(sort.key(holding)), Reverse(holding.live.bytes), holding.kind, *stack)
        });
        // Reserved space is no memory: it is listed after what is.
        let (reserved, mut rest): (Vec<_>, Vec<_>) =
            holdings.into_iter().partition(|(_, holding)| holding.kind == Kind::Reserved);
        rest.extend(reserved);
        rest.truncate(self.view.top);
        rest
    }

    fn total(
        &mut self,
        ctx: &Context,
        tracer: &Tracer<'_>,
        (id, process): (u64, &Process),
        figures: &Figures,
    ) -> Total {
        let mut total = Total {
            time: wall_time(monotonic_ns()),
            tgid: Some(process.tgid),
            comm: process.comm.as_str().into(),
            live: Amount::default(),
            older: Amount::default(),
            older_s: self.view.age().as_secs_f64(),
            seen: Amount::default(),
            lost_stack: Amount::default(),
            truncated_percent: None,
            trouble: tracer.trouble(),
            sampled: self.view.sample_bytes > 0,
            map: Amount::default(),
            file: Amount::default(),
            reserved: 0,
            allocator: figures.allocator,
            account: None,
            children: process.children,
        };
        let mut truncated = 0;
        for ((kind, stack), sum) in &figures.sums {
            let live = sum.live();
            match kind {
                Kind::Heap => {
                    total.live += live;
                    total.older += sum.older();
                    if !self.stacks.contains_key(stack) {
                        total.lost_stack += live;
                    } else if self.is_truncated(process, *stack) {
                        truncated += live.bytes;
                    }
                }
                Kind::Map => total.map += live,
                Kind::File => total.file += live,
                _ => total.reserved += live.bytes,
            }
        }
        if self.view.stacks && total.live.bytes > 0 {
            total.truncated_percent = Some(100.0 * truncated as f64 / total.live.bytes as f64);
        }
        total.seen = tracer.stackless();
        for known in self.stacks.values().filter(|known| known.process == id) {
            total.seen += known.seen;
        }
        let accountant = self.accountants.entry(id).or_default();
        total.account = accountant.account(&ctx.procfs, process.tgid, &process.ledger);
        total
    }

    /// Whether a stack ends before the function that begins a thread.
    fn is_truncated(&mut self, process: &Process, stack: u64) -> bool {
        let Some(known) = self.stacks.get(&stack) else { return true };
        // The outermost with its neighbour, so that it is taken as a caller.
        let from = known.stack.len().saturating_sub(2);
        let ends = Rc::clone(&known.stack);
        !is_complete(&self.symbols.user(&process.maps, &ends[from..]))
    }

    fn frames(&mut self, process: &Process, stack: u64) -> Vec<Frame> {
        let Some(known) = self.stacks.get(&stack) else { return Vec::new() };
        self.symbols.user(&process.maps, &known.stack)
    }

    /// All stacks of a process, for a profile: what was allocated and what is held.
    fn samples(&mut self, id: u64, process: &Process, figures: &Figures) -> Vec<Sample> {
        let mut samples = Vec::new();
        let heap = |stack: &u64| figures.sums.get(&(Kind::Heap, *stack));
        let mut stacks: Vec<u64> = self
            .stacks
            .iter()
            .filter(|(_, known)| known.process == id && known.seen.blocks > 0)
            .map(|(stack, _)| *stack)
            .collect();
        if heap(&0).is_some() {
            stacks.push(0);
        }
        stacks.sort_unstable();
        for stack in stacks {
            let live = heap(&stack).map(Sum::live).unwrap_or_default();
            let seen = self.stacks.get(&stack).map_or(live, |known| known.seen);
            let frames = self.frames(process, stack);
            samples.push(sample_of(frames, seen, live, process));
        }
        samples
    }

    /// An empty report must say why it is empty.
    fn explain_silence(&mut self, tracer: &Tracer<'_>, figures: &HashMap<u64, Figures>) {
        if self.heard || self.begin.elapsed() < SILENCE {
            return;
        }
        self.heard = true;
        let calls = self.stacks.values().any(|known| known.seen.blocks > 0)
            || tracer.stackless().blocks > 0
            || tracer.trouble().unknown_frees > 0;
        if calls || tracer.attached().is_empty() {
            return;
        }
        let maps = figures.values().any(|figures| !figures.sums.is_empty());
        let probed: Vec<&str> = tracer.attached().iter().map(|file| &*file.object).collect();
        let why = if maps {
            "it maps memory by itself (the rows of kind `map`), which speaks for an allocator of its \
             own: name its functions with --symbol-prefix"
        } else {
            "it may be idle, or use an allocator that is not known by name (--symbol-prefix)"
        };
        note(&format!(
            "no call to an allocator in {} s; probed: {}; {why}",
            SILENCE.as_secs(),
            probed.join(" ")
        ));
    }
}

impl Sort {
    /// What is ordered by.
    pub fn key(self, holding: &Holding) -> i128 {
        match self {
            Sort::Bytes => holding.live.bytes.into(),
            Sort::Count => holding.live.blocks.into(),
            Sort::Growth => holding.growth.unwrap_or(0).into(),
        }
    }
}

fn single(of: &Holding, block: &Block, now: u64) -> Holding {
    Holding {
        kind: Kind::Block,
        live: Amount { bytes: block.bytes, blocks: 1 },
        allocated: None,
        growth: None,
        slope: None,
        verdict: None,
        oldest_s: Some(seconds(now, block.time_ns)),
        error: None,
        address: Some(block.address),
        frames: Rc::from([]),
        with_frames: false,
        ..of.clone()
    }
}

/// What heap profilers call these figures, in their order.
const TYPES: [(&str, &str); 4] = [
    ("alloc_objects", "count"),
    ("alloc_space", "bytes"),
    ("inuse_objects", "count"),
    ("inuse_space", "bytes"),
];

/// A profile of memory.
pub fn profile_of(duration: Duration, samples: Vec<Sample>) -> Profile {
    Profile {
        command: "memleak".into(),
        title: "Memory allocated and not freed".into(),
        types: TYPES.to_vec(),
        default_type: TYPES.len() - 1,
        time: SystemTime::now().checked_sub(duration).unwrap_or(SystemTime::UNIX_EPOCH),
        duration,
        samples,
    }
}

fn sample_of(frames: Vec<Frame>, seen: Amount, live: Amount, process: &Process) -> Sample {
    let values = [seen.blocks, seen.bytes, live.blocks, live.bytes];
    Sample {
        frames,
        values: values.iter().map(|&value| i64::try_from(value).unwrap_or(i64::MAX)).collect(),
        labels: vec![
            ("pid".into(), process.tgid.to_string()),
            ("comm".into(), process.comm.clone()),
        ],
    }
}

fn seconds(now_ns: u64, then_ns: u64) -> f64 {
    now_ns.saturating_sub(then_ns) as f64 / 1e9
}

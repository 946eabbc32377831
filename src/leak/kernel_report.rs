//! Reports of the kernel's own allocations.

use std::cell::Cell;
use std::collections::HashMap;
use std::mem::MaybeUninit;
use std::rc::Rc;
use std::time::Instant;

use super::Amount;
use super::Held;
use super::Stack;
use super::kernel::Snapshot;
use super::kernel::Tracer;
use super::kernel::Wanted;
use super::report::Holding;
use super::report::Kind;
use super::report::Total;
use super::reporter::History;
use super::reporter::View;
use super::reporter::profile_of;
use super::user::Trouble;
use crate::context::Context;
use crate::engine::Pace;
use crate::engine::Run;
use crate::engine::every;
use crate::error::Result;
use crate::output::ALWAYS;
use crate::output::Printer;
use crate::output::StackStyle;
use crate::output::profile::Profile;
use crate::output::profile::Sample;
use crate::symbols::Symbols;
use crate::symbols::is_complete;
use crate::time::monotonic_ns;
use crate::time::wall_time;

/// The hook's name, for the header.
const HOOK: &str = "raw_tp:kmem";

/// Traces until the end.
///
/// # Errors
/// The kernel refuses, or standard output cannot be written.
pub fn run(ctx: &Context, wanted: &Wanted, view: View, style: &StackStyle) -> Result<()> {
    let mut storage = MaybeUninit::uninit();
    let mut tracer = Tracer::start(ctx, wanted, &mut storage)?;
    let mut notes = tracer.notes();
    notes.push(format!("tracing {}", tracer.hooks().join(", ")));
    let lost_so_far = Cell::new(0);
    let lost = || lost_so_far.get();
    let pace = Pace { at_start: false, at_end: true, by_row: false };
    let printer = Printer::of_stacks::<Holding, 20>(style, ALWAYS)?;
    let mut reporter = Reporter::new(view);
    every(ctx, Run { hook: HOOK, notes, pace, lost: &lost }, printer, |printer| {
        let old = u64::try_from(reporter.view.age().as_nanos()).unwrap_or(u64::MAX);
        let snapshot = tracer.read(old)?;
        lost_so_far.set(snapshot.lost.blocks + snapshot.failed_frees + snapshot.missed_runs);
        if printer.wants_profile() {
            printer.profile(reporter.profile(&snapshot));
            return Ok(());
        }
        reporter.report(&snapshot, printer)
    })
}

struct Reporter {
    view: View,
    symbols: Symbols,
    history: HashMap<(Rc<str>, Stack), History>,
    begin: Instant,
}

impl Reporter {
    fn new(view: View) -> Self {
        let symbols = Symbols::new(view.lines);
        Self { view, symbols, history: HashMap::new(), begin: Instant::now() }
    }

    fn report(&mut self, snapshot: &Snapshot, printer: &mut Printer) -> Result<()> {
        let total = self.total(snapshot);
        for line in total.remarks().into_iter().chain(left_out(snapshot)) {
            printer.remark(&line)?;
        }
        printer.figures(&total)?;
        let mut holdings: Vec<(&Held, Holding)> = Vec::new();
        let time_s = self.begin.elapsed().as_secs_f64();
        for held in &snapshot.held {
            let key = (Rc::clone(&held.what), Rc::clone(&held.stack));
            let history = self.history.entry(key).or_default();
            let growth =
                history.add(time_s, held.live.bytes, held.older.bytes, held.allocated.blocks);
            let listed = if self.view.older.is_some() { held.older } else { held.live };
            if listed.blocks == 0 {
                continue;
            }
            let holding = Holding {
                time: total.time,
                tgid: None,
                comm: Rc::clone(&total.comm),
                kind: kind_of(&held.what),
                what: Rc::clone(&held.what),
                live: listed,
                older: held.older,
                allocated: Some(held.allocated),
                growth,
                slope: history.trend.slope(),
                verdict: Some(history.trend.verdict()),
                oldest_s: Some(held.oldest_ns as f64 / 1e9),
                error: None,
                address: None,
                frames: Rc::from([]),
                with_frames: self.view.stacks,
            };
            holdings.push((held, holding));
        }
        holdings.sort_by(|a, b| {
            let order = |holding: &Holding| (self.view.sort.key(holding), holding.live.bytes);
            order(&b.1).cmp(&order(&a.1)).then_with(|| a.0.stack.cmp(&b.0.stack))
        });
        holdings.truncate(self.view.top);
        for (held, mut holding) in holdings {
            holding.frames = self.symbols.kernel(&held.stack).into();
            printer.row(&holding)?;
        }
        Ok(())
    }

    fn total(&mut self, snapshot: &Snapshot) -> Total {
        let mut live = Amount::default();
        let mut older = Amount::default();
        let mut truncated = 0;
        for held in &snapshot.held {
            live += held.live;
            older += held.older;
            if !held.stack.is_empty() && !self.is_complete(&held.stack) {
                truncated += held.live.bytes;
            }
        }
        let share = (live.bytes > 0).then(|| 100.0 * truncated as f64 / live.bytes as f64);
        let lost_stack = snapshot.held.iter().filter(|held| held.stack.is_empty());
        Total {
            time: wall_time(monotonic_ns()),
            tgid: None,
            comm: "kernel".into(),
            live,
            older,
            older_s: self.view.age().as_secs_f64(),
            seen: snapshot.seen,
            lost_stack: lost_stack.fold(Amount::default(), |mut sum, held| {
                sum += held.live;
                sum
            }),
            truncated_percent: share,
            trouble: Trouble {
                lost: snapshot.lost,
                missed_frees: snapshot.missed_frees,
                unknown_frees: snapshot.unknown_frees,
                lost_stacks: snapshot.lost_stacks.blocks,
                lost_calls: snapshot.missed_runs,
                ..Trouble::default()
            },
            sampled: false,
            map: Amount::default(),
            file: Amount::default(),
            reserved: 0,
            allocator: 0,
            account: None,
            children: 0,
        }
    }

    fn is_complete(&mut self, stack: &Stack) -> bool {
        let from = stack.len().saturating_sub(2);
        let ends = stack.get(from..).unwrap_or_default();
        is_complete(&self.symbols.kernel(ends))
    }

    fn profile(&mut self, snapshot: &Snapshot) -> Profile {
        let samples = snapshot
            .held
            .iter()
            .map(|held| Sample {
                frames: self.symbols.kernel(&held.stack),
                values: [
                    held.allocated.blocks,
                    held.allocated.bytes,
                    held.live.blocks,
                    held.live.bytes,
                ]
                .iter()
                .map(|&value| i64::try_from(value).unwrap_or(i64::MAX))
                .collect(),
                labels: vec![("what".into(), held.what.to_string())],
            })
            .collect();
        profile_of(self.begin.elapsed(), samples)
    }
}

/// `slab dentry`, `pages order 3`, `percpu`, `vmalloc`.
fn kind_of(what: &str) -> Kind {
    match what.split(' ').next() {
        Some("pages") => Kind::Pages,
        Some("percpu") => Kind::Percpu,
        Some("vmalloc") => Kind::Vmalloc,
        _ => Kind::Slab,
    }
}

/// What is not in the figures, because it is there under another name.
fn left_out(snapshot: &Snapshot) -> Option<String> {
    let mut parts = Vec::new();
    let mut add = |name: &str, amount: Amount| {
        if amount.blocks > 0 {
            parts.push(format!("{} bytes of {name}", amount.bytes));
        }
    };
    add("pages behind slab objects", snapshot.slab_pages.unwrap_or_default());
    add("pages below vmalloc", snapshot.vmalloc_pages);
    add("address space that maps memory of others", snapshot.mappings);
    (!parts.is_empty()).then(|| format!("left out, counted elsewhere: {}", parts.join(", ")))
}

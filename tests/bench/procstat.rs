//! What procstat costs at a context switch, beside an empty program on the
//! same hook. Bar: 60 ns a switch.

use std::collections::BTreeSet;

use crate::Bench;
use crate::Result;
use crate::empty::Empty;
use crate::figures::Series;
use crate::figures::Table;
use crate::figures::figure;
use crate::figures::none;
use crate::figures::order;
use crate::machine;
use crate::programs;
use crate::programs::Measured;
use crate::watcher::Watcher;
use crate::worker::Pair;
use crate::worker::Sleepers;

/// Round trips of one batch (two switches each), and batches of one figure,
/// which is their median: a batch that was disturbed does not count.
const TRIPS: u64 = 20_000;
const BATCHES: usize = 7;

/// What is attached while the pair plays.
enum Variant {
    Untraced,
    Empty,
    Ours(Vec<String>),
}

/// Keeps it attached.
enum Attached {
    Nothing,
    Empty(Empty),
    Ours(Watcher),
}

impl Variant {
    fn attach(&self, bench: &Bench, hook: &str) -> Result<Attached> {
        Ok(match self {
            Variant::Untraced => Attached::Nothing,
            Variant::Empty => Attached::Empty(Empty::attach(hook)?),
            Variant::Ours(options) => {
                let mut args = vec!["procstat"];
                args.extend(options.iter().map(String::as_str));
                let mut watcher = Watcher::start(&bench.program, &args)?;
                watcher.wait_attached()?;
                Attached::Ours(watcher)
            }
        })
    }
}

impl Attached {
    fn programs(&self) -> Result<BTreeSet<u32>> {
        match self {
            Attached::Nothing => Ok(BTreeSet::new()),
            Attached::Empty(empty) => Ok(empty.ids.clone()),
            Attached::Ours(watcher) => watcher.programs(),
        }
    }

    fn detach(self) -> Result<()> {
        match self {
            Attached::Ours(watcher) => watcher.stop().map(drop),
            Attached::Nothing | Attached::Empty(_) => Ok(()),
        }
    }
}

/// Measures and prints.
pub(crate) fn run(bench: &Bench) -> Result<()> {
    let hook = machine::hook(&bench.program, "procstat")?;
    let _aside = bench.cpus.step_aside()?;
    let other = Sleepers::start(1)?;
    let ours = |options: &[&str]| Variant::Ours(options.iter().map(|&o| o.to_owned()).collect());
    let variants = [
        ("untraced", Variant::Untraced),
        ("empty program", Variant::Empty),
        ("procstat", ours(&[])),
        ("procstat --every-switch", ours(&["--every-switch"])),
        ("procstat -P another", ours(&["-P", &other.first()])),
    ];
    let mut pair = Pair::on(bench.cpus.work())?;
    pair.trips(TRIPS)?;

    let mut figures = vec![Series::default(); variants.len()];
    for round in 0..bench.rounds {
        for i in order(variants.len(), round) {
            let attached = variants[i].1.attach(bench, &hook)?;
            figures[i].0.push(ns_per_switch(&mut pair)?);
            attached.detach()?;
        }
    }
    let title = format!(
        "procstat: pipe ping-pong of two processes on CPU {}, hook {hook}, {} rounds; CPU time in ns",
        bench.cpus.work(),
        bench.rounds
    );
    let mut table = Table::new(
        title,
        &["VARIANT", "MEDIAN", "MIN", "ABOVE EMPTY", "LEAST", "MOST", "RATIO", "BAR"],
    );
    for (i, (name, _)) in variants.iter().enumerate() {
        let above = figures[i].minus(&figures[1]);
        let ratio = figures[i].over(&figures[1]);
        let shown = |value: f64, digits| if i > 1 { figure(value, digits) } else { none() };
        table.row([
            (*name).into(),
            figure(figures[i].median(), 0),
            figure(figures[i].min(), 0),
            shown(above.median(), 0),
            shown(above.min(), 0),
            shown(above.max(), 0),
            shown(ratio.median(), 3),
            if i == 2 { "60 above the empty program".into() } else { none() },
        ]);
    }
    table.print()?;

    let mut table = Table::new(
        "procstat: the same, as the kernel measures its programs (which costs time itself)",
        &["VARIANT", "PROGRAM", "RUNS", "NS/RUN", "BAR"],
    );
    for (name, variant) in &variants {
        let attached = variant.attach(bench, &hook)?;
        let measured = Measured::begin()?;
        ns_per_switch(&mut pair)?;
        drop(measured);
        for runs in programs::runs(&attached.programs()?) {
            table.row([
                (*name).into(),
                runs.name,
                runs.count.to_string(),
                figure(runs.ns as f64 / runs.count as f64, 1),
                none(),
            ]);
        }
        attached.detach()?;
    }
    table.print()
}

fn ns_per_switch(pair: &mut Pair) -> Result<f64> {
    let mut batches = Series::default();
    let mut before = pair.cost()?;
    for _ in 0..BATCHES {
        pair.trips(TRIPS)?;
        let now = pair.cost()?;
        batches.0.push(now.since(before).ns_per_switch());
        before = now;
    }
    Ok(batches.median())
}

//! What memleak costs the program it watches, beside empty programs on the same
//! functions and beside other tools. Bars: 1.6 times the empty programs, 0.35
//! times the best other tool.

use std::collections::BTreeSet;

use crate::Bench;
use crate::Result;
use crate::allocate;
use crate::allocate::Allocator;
use crate::allocate::Language;
use crate::empty::Empty;
use crate::figures::Series;
use crate::figures::Table;
use crate::figures::figure;
use crate::figures::none;
use crate::figures::order;
use crate::figures::say;
use crate::machine;
use crate::memleak_report;
use crate::peer::Peer;
use crate::programs;
use crate::programs::Measured;
use crate::watcher::Watcher;

/// Pairs of one batch, and batches of one figure, which is their median: a
/// batch that was disturbed does not count.
const PAIRS: u64 = 10_000;
const BATCHES: usize = 7;

/// What memleak is run with, beside the process. The first has a bar.
const OURS: [&[&str]; 4] =
    [&[], &["--sample-bytes", "524288"], &["--no-stack"], &["--stack-depth", "3"]];

/// What is attached while the program allocates.
enum Variant {
    Untraced,
    Empty,
    Ours(&'static [&'static str]),
    Peer(String),
}

/// Keeps it attached.
enum Attached {
    Nothing,
    Empty(Empty),
    Ours(Watcher),
    Peer(Peer),
}

impl Variant {
    fn attach(&self, bench: &Bench, hook: &str, pid: u32) -> Result<Attached> {
        Ok(match self {
            Variant::Untraced => Attached::Nothing,
            Variant::Empty => Attached::Empty(Empty::attach_to_allocators(hook, pid)?),
            Variant::Ours(options) => {
                let pid = pid.to_string();
                let mut args = vec!["memleak", "-P", &pid];
                args.extend(*options);
                let mut watcher = Watcher::start(&bench.program, &args)?;
                watcher.wait_probing()?;
                Attached::Ours(watcher)
            }
            Variant::Peer(command) => Attached::Peer(Peer::attach(command, pid)?),
        })
    }

    fn name(&self) -> String {
        match self {
            Variant::Untraced => "untraced".into(),
            Variant::Empty => "empty programs".into(),
            Variant::Ours([]) => "memleak".into(),
            Variant::Ours(options) => format!("memleak {}", options.join(" ")),
            // Where it was installed is of no interest.
            Variant::Peer(command) => {
                let (program, options) = command.split_once(' ').unwrap_or((command, ""));
                let name = program.rsplit('/').next().unwrap_or(program);
                format!("{name} {options}").trim_end().to_owned()
            }
        }
    }
}

impl Attached {
    /// The kernel's numbers of our programs.
    fn programs(&self) -> Result<BTreeSet<u32>> {
        match self {
            Attached::Nothing | Attached::Peer(_) => Ok(BTreeSet::new()),
            Attached::Empty(empty) => Ok(empty.ids.clone()),
            Attached::Ours(watcher) => watcher.programs(),
        }
    }

    fn detach(self) -> Result<()> {
        match self {
            Attached::Ours(watcher) => match watcher.stop()?.lost {
                0 => Ok(()),
                lost => Err(format!("memleak lost {lost}: what it costs says nothing").into()),
            },
            Attached::Peer(peer) => peer.stop(),
            Attached::Nothing | Attached::Empty(_) => Ok(()),
        }
    }
}

/// Measures and prints.
pub(crate) fn run(bench: &Bench) -> Result<()> {
    let hook = machine::hook(&bench.program, "memleak")?;
    let c = allocate::build(Language::C)?;
    {
        let _aside = bench.cpus.step_aside()?;
        let one = [bench.cpus.work()];
        pairs(bench, &hook, Language::C, Allocator::start(&c, 1, &one)?, 1)?;
        pairs(bench, &hook, Language::C, Allocator::start(&c, 4, bench.cpus.numbers())?, 4)?;
        match allocate::build(Language::Cxx) {
            Ok(cxx) => pairs(bench, &hook, Language::Cxx, Allocator::start(&cxx, 1, &one)?, 1)?,
            Err(error) => say(&format!("\nmemleak: nothing about C++: {error}"))?,
        }
    }
    memleak_report::run(bench, &c)
}

/// One kind of pair, in a program that lives through all rounds.
fn pairs(
    bench: &Bench,
    hook: &str,
    language: Language,
    mut allocator: Allocator,
    threads: usize,
) -> Result<()> {
    let mut variants = vec![Variant::Untraced, Variant::Empty];
    variants.extend(OURS.map(Variant::Ours));
    let first_peer = variants.len();
    variants.extend(bench.peers.iter().cloned().map(Variant::Peer));

    let mut figures = vec![Series::default(); variants.len()];
    for round in 0..bench.rounds {
        for i in order(variants.len(), round) {
            let attached = variants[i].attach(bench, hook, allocator.pid())?;
            figures[i].0.push(ns_per_pair(&mut allocator)?);
            attached.detach()?;
        }
    }
    let best = figures[first_peer..].iter().min_by(|a, b| a.median().total_cmp(&b.median()));
    let title = format!(
        "memleak: {} in turns, {threads} {}, hook {hook}, {} rounds; CPU time of a pair in ns",
        language.pair(),
        if threads == 1 { "thread" } else { "threads" },
        bench.rounds
    );
    let head = ["VARIANT", "MEDIAN", "MIN", "/EMPTY", "LEAST", "MOST", "/PEER", "LEAST", "MOST"];
    let mut table = Table::new(title, &[&head[..], &["BAR"]].concat());
    for (i, variant) in variants.iter().enumerate() {
        let over = |other: Option<&Series>| other.map(|other| figures[i].over(other));
        let empty = over((i > 1).then(|| &figures[1]));
        let peer = over(best.filter(|_| (1..first_peer).contains(&i)));
        let shown = |ratio: &Option<Series>, of: fn(&Series) -> f64| {
            ratio.as_ref().map_or_else(none, |ratio| figure(of(ratio), 2))
        };
        table.row([
            variant.name(),
            figure(figures[i].median(), 0),
            figure(figures[i].min(), 0),
            shown(&empty, Series::median),
            shown(&empty, Series::min),
            shown(&empty, Series::max),
            shown(&peer, Series::median),
            shown(&peer, Series::min),
            shown(&peer, Series::max),
            if i == 2 { "1.6 times empty, 0.35 times the best peer".into() } else { none() },
        ]);
    }
    table.print()?;

    let title = "memleak: the same, as the kernel measures its programs (which costs time itself)";
    let mut table = Table::new(title, &["VARIANT", "PROGRAM", "RUNS", "NS/RUN", "BAR"]);
    for variant in &variants[..first_peer] {
        let attached = variant.attach(bench, hook, allocator.pid())?;
        let measured = Measured::begin()?;
        ns_per_pair(&mut allocator)?;
        drop(measured);
        // What runs at mappings, forks and exits has no part in it.
        let runs = programs::runs(&attached.programs()?);
        for runs in runs.into_iter().filter(|runs| runs.count >= PAIRS) {
            table.row([
                variant.name(),
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

fn ns_per_pair(allocator: &mut Allocator) -> Result<f64> {
    let mut batches = Series::default();
    for _ in 0..BATCHES {
        batches.0.push(allocator.ns_per_pair(PAIRS)?);
    }
    Ok(batches.median())
}

//! What faults, ffaults and hfaults cost at a page fault, beside an empty program
//! on the same hook: the first touch of anonymous memory, page by page.

use crate::Bench;
use crate::Result;
use crate::empty::Empty;
use crate::figures::Series;
use crate::figures::Table;
use crate::figures::figure;
use crate::figures::none;
use crate::figures::order;
use crate::machine;
use crate::watcher::Watcher;
use crate::worker::Toucher;

/// Touched in one go, and how often for one figure, which is the median.
const BYTES: usize = 64 << 20;
const TOUCHES: usize = 5;

/// What is attached while memory is touched; the empty program comes first.
const VARIANTS: [(&str, &[&str]); 7] = [
    ("empty program", &[]),
    ("untraced", &[]),
    ("faults", &["faults"]),
    ("faults -P another", &["faults", "-P", "1"]),
    ("faults --by stack", &["faults", "--by", "stack"]),
    ("ffaults", &["ffaults"]),
    ("hfaults", &["hfaults"]),
];

/// Measures and prints.
pub(crate) fn run(bench: &Bench) -> Result<()> {
    let hook = machine::hook(&bench.program, "faults")?;
    let _aside = bench.cpus.step_aside()?;
    let mut toucher = Toucher::on(bench.cpus.work())?;
    toucher.touch(BYTES)?;

    let mut figures = vec![Series::default(); VARIANTS.len()];
    for round in 0..bench.rounds {
        for i in order(VARIANTS.len(), round) {
            let (name, args) = VARIANTS[i];
            let empty = (name == "empty program").then(|| Empty::attach(&hook)).transpose()?;
            let mut watcher = None;
            if !args.is_empty() {
                let mut started = Watcher::start(&bench.program, args)?;
                started.wait_attached()?;
                watcher = Some(started);
            }
            figures[i].0.push(ns_per_fault(&mut toucher)?);
            drop(empty);
            if let Some(watcher) = watcher {
                watcher.stop()?;
            }
        }
    }
    let title = format!(
        "faults: first touch of {} MiB on CPU {}, hook {hook}, {} rounds; CPU time of a fault in ns",
        BYTES >> 20,
        bench.cpus.work(),
        bench.rounds
    );
    let head = ["VARIANT", "MEDIAN", "MIN", "ABOVE EMPTY", "LEAST", "MOST", "RATIO", "BAR"];
    let mut table = Table::new(title, &head);
    for (i, (name, _)) in VARIANTS.iter().enumerate() {
        let above = figures[i].minus(&figures[0]);
        let shown = |value: f64, digits| if i > 0 { figure(value, digits) } else { none() };
        table.row([
            (*name).into(),
            figure(figures[i].median(), 0),
            figure(figures[i].min(), 0),
            shown(above.median(), 0),
            shown(above.min(), 0),
            shown(above.max(), 0),
            shown(figures[i].over(&figures[1]).median(), 3),
            none(),
        ]);
    }
    table.print()
}

fn ns_per_fault(toucher: &mut Toucher) -> Result<f64> {
    let faults = BYTES / rustix::param::page_size();
    let mut touches = Series::default();
    for _ in 0..TOUCHES {
        touches.0.push(1e9 * toucher.touch(BYTES)? / faults as f64);
    }
    Ok(touches.median())
}

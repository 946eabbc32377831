//! What paf costs those who ask for pages, beside an empty program on the same
//! hook: touching 1 GiB of fresh anonymous memory. Bar: 10 %.

use crate::Bench;
use crate::Result;
use crate::empty::Empty;
use crate::figures::Series;
use crate::figures::Table;
use crate::figures::figure;
use crate::figures::none;
use crate::figures::order;
use crate::machine;
use crate::sysstat::amount;
use crate::watcher::Watcher;
use crate::worker::Toucher;

/// What is attached while memory is touched; nothing comes first.
const VARIANTS: [(&str, &[&str]); 6] = [
    ("untraced", &[]),
    ("empty program", &[]),
    ("paf", &["paf"]),
    ("paf -P another", &["paf", "-P", "1"]),
    ("paf --failed", &["paf", "--failed"]),
    ("paf --events > null", &["paf", "--events", "-o", "csv"]),
];

/// Measures and prints.
pub(crate) fn run(bench: &Bench) -> Result<()> {
    let hook = machine::hook(&bench.program, "paf")?;
    let bytes = amount()?;
    let _aside = bench.cpus.step_aside()?;
    let mut toucher = Toucher::on(bench.cpus.work())?;
    toucher.touch(bytes)?;

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
            figures[i].0.push(toucher.touch(bytes)?);
            drop(empty);
            if let Some(watcher) = watcher {
                watcher.stop()?;
            }
        }
    }
    let title = format!(
        "paf: touching {} MiB of fresh anonymous memory on CPU {}, hook {hook}, {} rounds; CPU time",
        bytes >> 20,
        bench.cpus.work(),
        bench.rounds
    );
    let head = ["VARIANT", "MS", "NS A PAGE", "RATIO", "LEAST", "MOST", "NS ABOVE EMPTY", "BAR"];
    let pages = (bytes / rustix::param::page_size()) as f64;
    let mut table = Table::new(title, &head);
    for (i, (name, _)) in VARIANTS.iter().enumerate() {
        let ratio = figures[i].over(&figures[0]);
        let above = figures[i].minus(&figures[1]);
        let shown = |value: f64| if i > 0 { figure(value, 3) } else { none() };
        table.row([
            (*name).into(),
            figure(1e3 * figures[i].median(), 1),
            figure(1e9 * figures[i].median() / pages, 0),
            shown(ratio.median()),
            shown(ratio.min()),
            shown(ratio.max()),
            if i > 1 { figure(1e9 * above.median() / pages, 0) } else { none() },
            if *name == "paf" { "ratio 1.100".into() } else { none() },
        ]);
    }
    table.print()
}

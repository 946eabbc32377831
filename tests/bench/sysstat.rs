//! What sysstat costs those who allocate: nothing may be measurable. Bar: 1 %.

use std::fs;
use std::time::Instant;

use crate::Bench;
use crate::Result;
use crate::figures::Series;
use crate::figures::Table;
use crate::figures::figure;
use crate::figures::none;
use crate::figures::order;
use crate::watcher::Watcher;
use crate::worker::Toucher;

const GIB: usize = 1 << 30;

/// One figure is the mean of this many touches: long enough for a reading to
/// fall into it even with an interval of a second.
const TOUCHES: usize = 4;

/// Without, twice (their difference is the noise), and with two intervals.
const VARIANTS: [(&str, &[&str]); 4] = [
    ("without", &[]),
    ("without, again", &[]),
    ("sysstat -i 0.1", &["sysstat", "-R", "--rates", "-i", "0.1"]),
    ("sysstat -i 1", &["sysstat", "-R", "--rates", "-i", "1"]),
];

/// Measures and prints.
pub(crate) fn run(bench: &Bench) -> Result<()> {
    let bytes = amount()?;
    let _aside = bench.cpus.step_aside()?;
    let mut toucher = Toucher::on(bench.cpus.work())?;
    toucher.touch(bytes)?;

    let mut figures = vec![Series::default(); VARIANTS.len()];
    let mut shares = vec![Series::default(); VARIANTS.len()];
    for round in 0..bench.rounds {
        for i in order(VARIANTS.len(), round) {
            let args = VARIANTS[i].1;
            if args.is_empty() {
                figures[i].0.push(seconds(&mut toucher, bytes)?);
                continue;
            }
            let mut watcher = Watcher::start(&bench.program, args)?;
            watcher.wait_written()?;
            let (begin, cpu) = (Instant::now(), watcher.cpu()?);
            figures[i].0.push(seconds(&mut toucher, bytes)?);
            let spent = watcher.cpu()?.saturating_sub(cpu);
            shares[i].0.push(100.0 * spent.as_secs_f64() / begin.elapsed().as_secs_f64());
            watcher.stop()?;
        }
    }
    let title = format!(
        "sysstat: touching {} MiB of fresh anonymous memory on CPU {}, {} rounds; CPU time in ms",
        bytes >> 20,
        bench.cpus.work(),
        bench.rounds
    );
    let head =
        ["VARIANT", "MEDIAN", "MIN", "MAX", "RATIO", "LEAST", "MOST", "WATCHER'S CPU %", "BAR"];
    let mut table = Table::new(title, &head);
    for (i, (name, args)) in VARIANTS.iter().enumerate() {
        let ratio = figures[i].over(&figures[0]);
        let shown = |value: f64| if i > 0 { figure(value, 3) } else { none() };
        table.row([
            (*name).into(),
            figure(1e3 * figures[i].median(), 1),
            figure(1e3 * figures[i].min(), 1),
            figure(1e3 * figures[i].max(), 1),
            shown(ratio.median()),
            shown(ratio.min()),
            shown(ratio.max()),
            figure(shares[i].median(), 2),
            if args.is_empty() { none() } else { "ratio 1.010".into() },
        ]);
    }
    table.print()
}

fn seconds(toucher: &mut Toucher, bytes: usize) -> Result<f64> {
    let mut sum = 0.0;
    for _ in 0..TOUCHES {
        sum += toucher.touch(bytes)?;
    }
    Ok(sum / TOUCHES as f64)
}

/// 1 GiB, or half of what is available where that is less.
pub(crate) fn amount() -> Result<usize> {
    let meminfo = fs::read_to_string("/proc/meminfo")?;
    let available = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:")?.strip_suffix("kB"))
        .ok_or("/proc/meminfo lacks MemAvailable")?;
    let available: usize = available.trim().parse()?;
    Ok(GIB.min((available / 2) << 10))
}

//! procstat --every-switch as fast as the machine can switch. Bar: nothing is
//! lost, or exactly what is lost is said.

use std::thread::sleep;
use std::time::Duration;

use crate::Bench;
use crate::Result;
use crate::figures::Table;
use crate::figures::figure;
use crate::watcher::Watcher;
use crate::worker::Pair;

const SECONDS: u64 = 5;

/// Long enough to fill the ring many times over.
const PAUSE: Duration = Duration::from_secs(1);

/// Measures and prints. `NS/EVENT` is the watcher's own CPU time: a CPU of its
/// own can serve as many events a second as that goes into one.
pub(crate) fn run(bench: &Bench) -> Result<()> {
    let title = format!(
        "rate: procstat --every-switch -o json, pipe ping-pong of two processes for {SECONDS} s"
    );
    let head = [
        "PAIRS",
        "SWITCHES",
        "EVENTS",
        "ROWS",
        "LOST",
        "UNACCOUNTED",
        "EVENTS/S",
        "LOST %",
        "NS/EVENT",
        "VMHWM MIB",
        "BAR",
    ];
    let mut table = Table::new(title, &head);
    let cpus = bench.cpus.numbers();
    if cpus.len() > 1 {
        let _aside = bench.cpus.step_aside()?;
        let work = &[bench.cpus.work()];
        table.row(measure(bench, "one, watcher elsewhere", work, false)?);
        table.row(measure(bench, "one, watcher stopped for 1 s", work, true)?);
    }
    table.row(measure(bench, "one on each CPU", cpus, false)?);
    table.print()
}

fn measure(bench: &Bench, name: &str, cpus: &[usize], pause: bool) -> Result<[String; 11]> {
    let mut pairs = cpus.iter().map(|&cpu| Pair::on(cpu)).collect::<Result<Vec<Pair>>>()?;
    let pids: Vec<String> = pairs.iter().flat_map(Pair::pids).map(|pid| pid.to_string()).collect();
    // Only the workers: their switches are known from elsewhere.
    let args = ["procstat", "--every-switch", "-o", "json", "-P", &pids.join(",")];
    let mut watcher = Watcher::start(&bench.program, &args)?;
    watcher.wait_attached()?;
    let (before, cpu) = (switches(&pairs)?, watcher.cpu()?);
    for pair in &mut pairs {
        pair.begin(SECONDS)?;
    }
    if pause {
        watcher.pause(PAUSE)?;
    }
    for pair in &mut pairs {
        pair.finish()?;
    }
    let truth = switches(&pairs)? - before;
    // The reader comes by once an interval.
    sleep(Duration::from_millis(1500));
    let (peak, cpu) = (watcher.peak_kib()?, watcher.cpu()? - cpu);
    let summary = watcher.stop()?;
    let unaccounted = i128::from(truth) - i128::from(summary.events) - i128::from(summary.lost);
    Ok([
        name.into(),
        truth.to_string(),
        summary.events.to_string(),
        summary.rows.to_string(),
        summary.lost.to_string(),
        unaccounted.to_string(),
        figure(summary.events as f64 / SECONDS as f64, 0),
        figure(100.0 * summary.lost as f64 / truth as f64, 2),
        figure(cpu.as_secs_f64() * 1e9 / summary.events as f64, 0),
        figure(peak as f64 / 1024.0, 1),
        "unaccounted 0".into(),
    ])
}

/// How often the processes of all pairs have left a CPU so far.
fn switches(pairs: &[Pair]) -> Result<u64> {
    let mut sum = 0;
    for pair in pairs {
        sum += pair.cost()?.switches;
    }
    Ok(sum)
}

//! Time from exec to the first row. Bar: 300 ms.

use std::io::BufRead as _;
use std::io::BufReader;
use std::process::Command;
use std::process::Stdio;
use std::time::Instant;

use crate::Bench;
use crate::Result;
use crate::figures::Series;
use crate::figures::Table;
use crate::figures::figure;

const RUNS: usize = 20;
const COMMANDS: [&[&str]; 4] = [
    &["procstat", "-n", "1"],
    &["sysstat", "-n", "1"],
    // Another program's end would be another figure: this one does nothing.
    &["memleak", "--", "true"],
    &["doctor"],
];

/// Measures and prints.
pub(crate) fn run(bench: &Bench) -> Result<()> {
    let title = format!("start: exec to first row, warm, {RUNS} runs; ms");
    let mut table = Table::new(title, &["COMMAND", "MEDIAN", "MIN", "MAX", "BAR"]);
    for args in COMMANDS {
        first_row_ms(bench, args)?;
        let mut figures = Series::default();
        for _ in 0..RUNS {
            figures.0.push(first_row_ms(bench, args)?);
        }
        table.row([
            args.join(" "),
            figure(figures.median(), 1),
            figure(figures.min(), 1),
            figure(figures.max(), 1),
            "300".into(),
        ]);
    }
    table.print()
}

fn first_row_ms(bench: &Bench, args: &[&str]) -> Result<f64> {
    let begin = Instant::now();
    let mut child = Command::new(&bench.program)
        .args(args)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()?;
    let rows = child.stdout.take().ok_or("no pipe from mem_watcher")?;
    // The first line is the heading.
    let mut lines = BufReader::new(rows).lines();
    let row = lines.nth(1).transpose()?;
    let passed = begin.elapsed();
    // It must not find its pipe closed.
    for line in lines {
        line?;
    }
    child.wait()?;
    match row {
        Some(_) => Ok(passed.as_secs_f64() * 1e3),
        None => Err(format!("mem_watcher {} printed no row", args.join(" ")).into()),
    }
}

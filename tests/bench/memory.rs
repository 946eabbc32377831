//! Memory of the watcher itself. Bar: 32 MiB.

use std::thread::sleep;
use std::time::Duration;

use crate::Bench;
use crate::Result;
use crate::figures::Table;
use crate::figures::figure;
use crate::watcher::Watcher;
use crate::worker::Sleepers;

const SLEEPERS: usize = 2000;
const AFTER: Duration = Duration::from_secs(5);

/// Measures and prints.
pub(crate) fn run(bench: &Bench) -> Result<()> {
    let title = format!("memory: most resident (VmHWM) after {} s; MiB", AFTER.as_secs());
    let mut table = Table::new(title, &["COMMAND", "MIB", "BAR"]);
    let mut measure = |name: &str, args: &[&str]| -> Result<()> {
        let mut watcher = Watcher::start(&bench.program, args)?;
        watcher.wait_written()?;
        sleep(AFTER);
        let peak = watcher.peak_kib()?;
        watcher.stop()?;
        table.row([name.into(), figure(peak as f64 / 1024.0, 1), "32".into()]);
        Ok(())
    };
    measure("procstat", &["procstat"])?;
    measure("sysstat -R --rates -i 0.1", &["sysstat", "-R", "--rates", "-i", "0.1"])?;
    let sleepers = Sleepers::start(SLEEPERS)?;
    measure(&format!("procstat, {SLEEPERS} more processes"), &["procstat"])?;
    drop(sleepers);
    table.print()
}

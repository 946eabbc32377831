//! `ffaults`: page faults by file.

use std::process::ExitCode;

use clap::Args;

use super::Tool;
use crate::attach::Choice;
use crate::cli::FormatArgs;
use crate::cli::KernelArgs;
use crate::cli::LimitArgs;
use crate::cli::TargetArgs;
use crate::context::Context;
use crate::error::Result;
use crate::faults::files;
use crate::faults::files::Counted;
use crate::faults::files::Wanted;
use crate::output::Column;
use crate::output::Printer;
use crate::output::Row;
use crate::output::describe;

/// Page faults by file
///
/// Each interval: which mapped files were faulted in, and how often that had to
/// wait for a device. Deleted files and those of containers are named too.
#[derive(Args, Debug)]
#[command(after_long_help = describe(Ffaults::COLUMNS))]
pub struct Ffaults {
    /// A row for each process and file
    #[arg(long)]
    per_process: bool,
    /// At most this many rows a report, those with the most faults
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    top: Option<u32>,
    /// Files (with --per-process: of each process) there is room for
    #[arg(long, value_name = "N", default_value_t = 32_768)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=1 << 24))]
    max_entries: u32,
    #[command(flatten)]
    targets: TargetArgs,
    #[command(flatten)]
    limits: LimitArgs,
    #[command(flatten)]
    output: FormatArgs,
    #[command(flatten)]
    kernel: KernelArgs,
}

impl Tool for Ffaults {
    const CHOICE: Option<&'static Choice> = Some(&files::CHOICE);
    const COLUMNS: &'static [Column] = &<Counted as Row<7>>::COLUMNS;

    fn run(self) -> Result<ExitCode> {
        let limits = (&self.limits).into();
        let ctx =
            Context::new("ffaults", &self.kernel, limits, |procfs| self.targets.resolve(procfs))?;
        let groups = files::groups(self.per_process);
        let printer = Printer::stdout::<Counted, 7>((&self.output).into(), groups)?;
        let top = self.top.map(|top| top as usize);
        let wanted = Wanted { by_process: self.per_process, top, room: self.max_entries };
        files::run(&ctx, printer, wanted)?;
        Ok(ExitCode::SUCCESS)
    }
}

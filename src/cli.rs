//! The shared options: same letter, same meaning in every command. The only
//! place that turns what users call PID into a thread group.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use clap::Parser;
use clap::ValueHint;

use crate::cmd::Command;
use crate::context::Limits;
use crate::error::Result;
use crate::output::Format;
use crate::output::StackFormat;
use crate::output::StackStyle;
use crate::output::Style;
use crate::procfs::ProcFs;
use crate::target::Target;
use crate::units::SizeUnit;

/// Shows what Linux memory is doing, with eBPF.
#[derive(Debug, Parser)]
#[command(name = "mem_watcher", version, max_term_width = 100, infer_subcommands = false)]
#[command(after_help = "Exit codes: 0 ok, 1 failure, 2 usage, 3 missing rights, 4 the kernel \
                        lacks something.\nRows go to standard output, everything else to \
                        standard error.")]
pub struct Cli {
    /// What to show.
    #[command(subcommand)]
    pub command: Command,
}

/// Which processes.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Processes")]
pub struct TargetArgs {
    /// Only these processes; may be repeated and comma-separated
    #[arg(short = 'P', long, value_name = "PID", value_delimiter = ',', value_parser = pid)]
    #[arg(allow_negative_numbers = true)]
    pub pid: Vec<u32>,
    /// Only processes of this name (the kernel keeps 15 characters)
    #[arg(long, value_name = "NAME", value_parser = comm)]
    pub comm: Option<String>,
    /// Only processes in this cgroup v2 folder or below it
    #[arg(long, value_name = "PATH", value_hint = ValueHint::DirPath)]
    pub cgroup: Option<PathBuf>,
}

impl TargetArgs {
    /// Checks that what was asked for exists.
    ///
    /// # Errors
    /// It does not.
    pub fn resolve(&self, procfs: &ProcFs) -> Result<Target> {
        Target::resolve(&self.pid, self.comm.as_deref(), self.cgroup.as_deref(), procfs)
    }
}

/// When to report and when to end.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Time")]
pub struct LimitArgs {
    /// Time between two reports; fractions allowed
    #[arg(short, long, value_name = "SECONDS", default_value = "1", value_parser = seconds)]
    #[arg(allow_negative_numbers = true)]
    pub interval: Duration,
    /// End after this many reports
    #[arg(short = 'n', long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    #[arg(allow_negative_numbers = true)]
    pub count: Option<u64>,
    /// End after this time
    #[arg(short, long, value_name = "SECONDS", value_parser = seconds)]
    #[arg(allow_negative_numbers = true)]
    pub duration: Option<Duration>,
}

impl From<&LimitArgs> for Limits {
    fn from(args: &LimitArgs) -> Self {
        Self { interval: args.interval, count: args.count, duration: args.duration }
    }
}

/// The same for a command whose `--count` means something else.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Time")]
pub struct ShortLimitArgs {
    /// Time between two reports; fractions allowed
    #[arg(short, long, value_name = "SECONDS", default_value = "1", value_parser = seconds)]
    #[arg(allow_negative_numbers = true)]
    interval: Duration,
    /// End after this many reports
    #[arg(short = 'n', value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    #[arg(allow_negative_numbers = true)]
    reports: Option<u64>,
    /// End after this time
    #[arg(short, long, value_name = "SECONDS", value_parser = seconds)]
    #[arg(allow_negative_numbers = true)]
    duration: Option<Duration>,
}

impl From<&ShortLimitArgs> for Limits {
    fn from(args: &ShortLimitArgs) -> Self {
        Self { interval: args.interval, count: args.reports, duration: args.duration }
    }
}

/// How to print.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Output")]
pub struct FormatArgs {
    /// Format of the rows
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value = "table")]
    pub output: Format,
}

impl From<&FormatArgs> for Style {
    fn from(args: &FormatArgs) -> Self {
        Self { format: args.output, ..Self::default() }
    }
}

/// How to print sizes.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Output")]
pub struct OutputArgs {
    #[command(flatten)]
    format: FormatArgs,
    /// Unit of sizes
    #[arg(long, value_enum, value_name = "UNIT", default_value = "kib")]
    unit: SizeUnit,
}

impl From<&OutputArgs> for Style {
    fn from(args: &OutputArgs) -> Self {
        Self { unit: args.unit, ..(&args.format).into() }
    }
}

/// How a command that counts by stack prints.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Output")]
pub struct StackFormatArgs {
    /// Format of the rows, or of the profile written at the end instead
    #[arg(short, long, value_enum, value_name = "FORMAT", default_value = "table")]
    pub output: StackFormat,
    /// Write there and not to standard output
    #[arg(long, value_name = "PATH", value_hint = ValueHint::FilePath)]
    pub file: Option<PathBuf>,
    /// Unit of sizes
    #[arg(long, value_enum, value_name = "UNIT", default_value = "auto")]
    pub unit: SizeUnit,
}

impl From<&StackFormatArgs> for StackStyle {
    fn from(args: &StackFormatArgs) -> Self {
        Self { format: args.output, unit: SizeUnit::Auto, file: args.file.clone() }
    }
}

/// How to reach the kernel.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Kernel")]
pub struct KernelArgs {
    /// Use this hook of the command's chain (tests, benchmarks, bug reports)
    #[arg(long, value_name = "NAME")]
    pub hook: Option<String>,
    /// Type information for a kernel that has none built in
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub btf: Option<PathBuf>,
    /// Say which hook was chosen, and why
    #[arg(short, long)]
    pub verbose: bool,
}

/// How events get here.
#[derive(Args, Clone, Debug)]
#[command(next_help_heading = "Kernel")]
pub struct RingArgs {
    /// Size of the event buffer in KiB, a power of two; a full one loses events, which is shown
    #[arg(long, value_name = "KIB", default_value = "1024", value_parser = ring_kib)]
    ring_kib: u32,
}

impl RingArgs {
    /// The size in bytes, which is what the kernel wants of a ring's map.
    pub fn bytes(&self) -> u32 {
        self.ring_kib << 10
    }
}

fn ring_kib(text: &str) -> std::result::Result<u32, String> {
    match text.trim().parse::<u32>() {
        Ok(kib) if kib.is_power_of_two() && (4..=1 << 20).contains(&kib) => Ok(kib),
        _ => Err("a power of two from 4 to 1048576".into()),
    }
}

/// A PID as users give it.
pub(crate) fn pid(text: &str) -> std::result::Result<u32, String> {
    match text.trim().parse::<u32>() {
        Ok(pid) if pid > 0 && i32::try_from(pid).is_ok() => Ok(pid),
        _ => Err("a PID is a positive whole number".into()),
    }
}

fn comm(text: &str) -> std::result::Result<String, String> {
    if text.is_empty() {
        return Err("a process name has at least one character".into());
    }
    Ok(text.to_owned())
}

/// Shorter would be a busy loop, longer overflows a timer.
const SECONDS: std::ops::RangeInclusive<f64> = 0.001..=31_536_000.0;

/// A time as users give it.
pub(crate) fn seconds(text: &str) -> std::result::Result<Duration, String> {
    let wanted = format!("give seconds from {} to {}", SECONDS.start(), SECONDS.end());
    let value: f64 = text.trim().parse().map_err(|_| wanted.clone())?;
    if !SECONDS.contains(&value) {
        return Err(wanted);
    }
    Ok(Duration::from_secs_f64(value))
}

/// A time with its unit: `250us`, `5ms`, `30s`, `1.5m`, `2h`, `1d`; without one,
/// seconds.
pub(crate) fn span(text: &str) -> std::result::Result<Duration, String> {
    let wrong = || "give a time such as 250us, 5ms, 30s, 5m or 2h".to_owned();
    let split = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let number: f64 = number.trim().parse().map_err(|_| wrong())?;
    let seconds = match unit {
        "us" => number / 1e6,
        "ms" => number / 1000.0,
        "s" | "" => number,
        "m" => number * 60.0,
        "h" => number * 3600.0,
        "d" => number * 86_400.0,
        _ => return Err(wrong()),
    };
    if !(0.0..=1e9).contains(&seconds) {
        return Err(wrong());
    }
    Ok(Duration::from_secs_f64(seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definitions_are_sound() {
        use clap::CommandFactory as _;
        Cli::command().debug_assert();
    }

    #[test]
    fn seconds_are_positive_and_may_be_fractions() {
        assert_eq!(seconds("0.25"), Ok(Duration::from_millis(250)));
        for bad in ["", "x", "-1", "0", "nan", "inf", "1e300", "0.0001"] {
            assert!(seconds(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn spans_have_units() {
        assert_eq!(span("10"), Ok(Duration::from_secs(10)));
        assert_eq!(span("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(span("17us"), Ok(Duration::from_micros(17)));
        assert_eq!(span("1.5m"), Ok(Duration::from_secs(90)));
        for bad in ["", "x", "-1s", "5w", "nan", "1e300s", "ms"] {
            assert!(span(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn rings_are_powers_of_two() {
        assert_eq!(ring_kib("1024"), Ok(1024));
        for bad in ["0", "3", "6", "-4", "x", "2097152"] {
            assert!(ring_kib(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn stack_formats_come_with_a_file() {
        #[derive(Parser)]
        struct Options {
            #[command(flatten)]
            format: StackFormatArgs,
        }
        let style = |arguments: &[&str]| {
            let arguments = [&["x"], arguments].concat();
            Options::try_parse_from(arguments).map(|options| StackStyle::from(&options.format))
        };
        let default = style(&[]).unwrap();
        assert_eq!((default.format, default.file), (StackFormat::Table, None));
        let pprof = style(&["-o", "pprof", "--file", "a.pb.gz"]).unwrap();
        assert_eq!((pprof.format, pprof.file), (StackFormat::Pprof, Some("a.pb.gz".into())));
        // What is counted by stack is counted exactly.
        assert_eq!((default.unit, pprof.unit), (SizeUnit::Auto, SizeUnit::Auto));
        assert!(style(&["-o", "svg"]).is_err());
    }

    #[test]
    fn pids_are_positive() {
        assert_eq!(pid("17"), Ok(17));
        for bad in ["", "0", "-1", "x", "4294967296", "1.5"] {
            assert!(pid(bad).is_err(), "{bad}");
        }
    }
}

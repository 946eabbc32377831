//! Measures what mem_watcher costs and prints it beside the bars the project
//! has set itself. Nothing is asserted: how long something takes is a matter
//! of the machine and of what else it does. Run by `tools/bench`.

mod allocate;
mod anon;
mod empty;
mod faults;
mod figures;
mod machine;
mod memleak;
mod memleak_report;
mod memory;
mod paf;
mod pages;
mod peer;
mod procstat;
mod programs;
mod rate;
mod snoops;
mod start;
mod sysstat;
mod watcher;
mod worker;

use std::error::Error;
use std::io;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use clap::ValueEnum;

use crate::figures::say;
use crate::machine::Cpus;

/// An error is only for reading: no one here decides by its kind.
type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// Measures what mem_watcher costs, beside the project's bars.
#[derive(Debug, Parser)]
#[command(name = "bench")]
struct Options {
    /// What to measure
    #[arg(value_enum, default_value = "all")]
    subject: Subject,
    /// How often each variant is measured; ratios and differences are taken within a round
    #[arg(long, value_name = "N", default_value = "15")]
    #[arg(value_parser = clap::value_parser!(u16).range(1..))]
    rounds: u16,
    /// Another tool to measure memleak beside; repeatable. {pid} stands for the process to trace
    #[arg(long = "peer", value_name = "COMMAND")]
    peers: Vec<String>,
    /// The mem_watcher to measure
    #[arg(long, value_name = "PATH", default_value = env!("CARGO_BIN_EXE_mem_watcher"))]
    program: PathBuf,
    /// `cargo bench` adds this
    #[arg(long, hide = true)]
    bench: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Subject {
    /// Cost at a context switch
    Procstat,
    /// Cost at a page allocation
    Sysstat,
    /// Cost of an allocation, and time and memory of a big report
    Memleak,
    /// Cost at a page fault, of anon
    Anon,
    /// Time of a run over 64 GiB, and what the process feels of it
    Pages,
    /// Cost at a page fault, by process and by stack
    Faults,
    /// Cost at a request for a page, of paf
    Paf,
    /// Cost at the system calls of mmapsnoop, brkstack and shmsnoop
    Snoops,
    /// Time to the first row
    Start,
    /// Resident memory of the watcher
    Memory,
    /// Every context switch, at full rate
    Rate,
    /// All of these
    All,
}

/// What every benchmark needs.
struct Bench {
    program: PathBuf,
    rounds: usize,
    peers: Vec<String>,
    cpus: Cpus,
}

/// Measures one subject and prints its tables.
type Measure = fn(&Bench) -> Result<()>;

fn main() -> ExitCode {
    let done = match worker::run_if_asked() {
        Ok(true) => Ok(()),
        Ok(false) => run(Options::parse()),
        Err(error) => Err(error),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "bench: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(options: Options) -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        return Err("run me as root: mem_watcher needs it".into());
    }
    let bench = Bench {
        program: options.program,
        rounds: options.rounds.into(),
        peers: options.peers,
        cpus: Cpus::allowed()?,
    };
    let load = machine::load();
    let wanted = |subject| options.subject == subject || options.subject == Subject::All;
    let subjects: [(Subject, Measure); 11] = [
        (Subject::Procstat, procstat::run),
        (Subject::Sysstat, sysstat::run),
        (Subject::Memleak, memleak::run),
        (Subject::Anon, anon::run),
        (Subject::Pages, pages::run),
        (Subject::Faults, faults::run),
        (Subject::Paf, paf::run),
        (Subject::Snoops, snoops::run),
        (Subject::Start, start::run),
        (Subject::Memory, memory::run),
        (Subject::Rate, rate::run),
    ];
    let mut failed = false;
    for (subject, measure) in subjects.into_iter().filter(|(subject, _)| wanted(*subject)) {
        if let Err(error) = measure(&bench) {
            failed = true;
            let _ = writeln!(io::stderr(), "bench: {subject:?}: {error}");
        }
    }
    say(&format!("\n{}", machine::describe(&bench.cpus)?))?;
    for command in ["procstat", "sysstat", "memleak", "anon", "pages", "faults", "paf", "mmapsnoop"]
    {
        say(&format!("{command}: {}", machine::hook(&bench.program, command)?))?;
    }
    say(&format!("load average {load} before, {} after", machine::load()))?;
    if failed { Err("not everything could be measured".into()) } else { Ok(()) }
}

//! `memleak` (`-l PID`): allocations that were not freed, by stack.

use std::cell::Cell;
use std::ffi::OsString;
use std::mem::MaybeUninit;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

use super::Tool;
use crate::attach::Choice;
use crate::attach::Hook;
use crate::attach::prepare;
use crate::child;
use crate::cli::KernelArgs;
use crate::cli::LimitArgs;
use crate::cli::RingArgs;
use crate::cli::StackFormatArgs;
use crate::cli::TargetArgs;
use crate::cli::span;
use crate::context::Context;
use crate::engine::Pace;
use crate::engine::Run;
use crate::engine::Step;
use crate::engine::stream;
use crate::error::Context as _;
use crate::error::Error;
use crate::error::Result;
use crate::kernel::Answer;
use crate::kernel::Need;
use crate::leak::kernel;
use crate::leak::kernel_report;
use crate::leak::probes::PROGRAMS;
use crate::leak::report::BLOCKS;
use crate::leak::report::Holding;
use crate::leak::reporter::Reporter;
use crate::leak::reporter::Sort;
use crate::leak::reporter::View;
use crate::leak::traced::Traced;
use crate::leak::user::RawEvent;
use crate::leak::user::Tracer;
use crate::leak::user::Wanted;
use crate::output::ALWAYS;
use crate::output::Column;
use crate::output::Printer;
use crate::output::Row;
use crate::output::describe;
use crate::output::note;
use crate::procfs::ProcFs;
use crate::rights;
use crate::target::Target;
use crate::uprobe::Method;

/// Type information, built in or given with `--btf`.
const TYPES: Need = Need::Field("task_struct", "tgid");

static CHOICE: Choice = Choice {
    purpose: "to see calls of an allocator",
    hooks: &[
        Hook {
            name: "uprobe.session:malloc",
            programs: PROGRAMS,
            attach: &[],
            needs: &[TYPES, Need::ReadKernel, Need::UprobeSession],
            loses: "",
        },
        Hook {
            name: "uprobe.multi:malloc",
            programs: PROGRAMS,
            attach: &[],
            needs: &[TYPES, Need::ReadKernel, Need::UprobeMulti],
            loses: "",
        },
        Hook {
            name: "uprobe:malloc",
            programs: PROGRAMS,
            attach: &[],
            needs: &[TYPES, Need::ReadKernel, Need::Uprobe],
            loses: "",
        },
    ],
};

/// Allocations that were not freed, by stack
///
/// Traces the allocators a process uses, wherever they are: malloc and its
/// relatives of any C library, C++ new, jemalloc, tcmalloc, mimalloc. Direct
/// mappings are a ledger of their own. With --kernel: the kernel's allocations.
#[derive(Args, Debug)]
#[command(short_flag = 'l', after_long_help = describe(Memleak::COLUMNS))]
pub struct Memleak {
    /// The processes to trace
    #[arg(value_name = "PID", value_delimiter = ',', conflicts_with_all = ["pid", "kernel_side"])]
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    pids: Vec<u32>,
    /// Start this program and trace it from its first allocation on
    #[arg(last = true, value_name = "COMMAND", conflicts_with_all = ["pids", "pid", "comm", "cgroup", "kernel_side"])]
    command: Vec<OsString>,
    /// The kernel's allocations: slab objects and pages
    #[arg(long = "kernel")]
    kernel_side: bool,
    #[command(flatten)]
    what: What,
    #[command(flatten)]
    show: Show,
    #[command(flatten)]
    of_kernel: OfKernel,
    #[command(flatten)]
    targets: TargetArgs,
    #[command(flatten)]
    limits: LimitArgs,
    #[command(flatten)]
    output: StackFormatArgs,
    #[command(flatten)]
    kernel: KernelArgs,
    #[command(flatten)]
    ring: RingArgs,
}

/// What is recorded.
#[derive(Args, Debug)]
#[command(next_help_heading = "What is recorded")]
struct What {
    /// Only blocks of at least this many bytes
    #[arg(long, value_name = "BYTES", default_value_t = 0, hide_default_value = true)]
    min_size: u64,
    /// Only blocks of at most this many bytes
    #[arg(long, value_name = "BYTES")]
    max_size: Option<u64>,
    /// Record one block about every so many bytes, and print estimates: cheaper
    #[arg(long, value_name = "BYTES", conflicts_with = "kernel_side")]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=1 << 40))]
    sample_bytes: Option<u64>,
    /// No stacks: only totals, cheaper
    #[arg(long)]
    no_stack: bool,
    /// Frames of a stack to record
    #[arg(long, value_name = "N", default_value_t = 127)]
    #[arg(value_parser = clap::value_parser!(u32).range(3..=127))]
    stack_depth: u32,
    /// Different stacks there is room for
    #[arg(long, value_name = "N", default_value_t = 16_384)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=1 << 24))]
    max_stacks: u32,
    /// Live blocks there is room for
    #[arg(long, value_name = "N", default_value_t = 1 << 20)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=1 << 28))]
    max_blocks: u32,
    /// Only the allocator in the file of this name (libc.so.6)
    #[arg(long, value_name = "NAME", conflicts_with = "kernel_side")]
    object: Option<String>,
    /// Also functions called <PREFIX>malloc, <PREFIX>free and so on; repeatable
    #[arg(long, value_name = "PREFIX", conflicts_with = "kernel_side")]
    symbol_prefix: Vec<String>,
    /// No allocators: only what the program maps by itself
    #[arg(long, conflicts_with_all = ["sample_bytes", "object", "symbol_prefix", "trace", "kernel_side"])]
    mappings: bool,
    /// Children of the processes too, from the moment they are noticed
    #[arg(short, long, conflicts_with = "kernel_side")]
    follow: bool,
}

/// What is printed.
#[derive(Args, Debug)]
#[command(next_help_heading = "What is printed")]
struct Show {
    /// List only blocks older than this (10s, 5m, 2h); without it, all are
    /// listed, and OLDER counts those older than 10 s
    #[arg(long, value_name = "AGE", value_parser = span)]
    older: Option<Duration>,
    /// Stacks a report
    #[arg(long, value_name = "N", default_value_t = 10)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    top: u32,
    /// Order of the stacks, largest first
    #[arg(long, value_enum, default_value = "bytes")]
    sort: Sort,
    /// Each block below its stack: address, size, age
    #[arg(long, conflicts_with = "kernel_side")]
    show_allocs: bool,
    /// A row for each call as it happens, no reports
    #[arg(long, conflicts_with_all = ["show_allocs", "kernel_side"])]
    trace: bool,
    /// No source files, lines and inlined functions: quicker, less memory
    #[arg(long)]
    no_lines: bool,
}

/// What of the kernel.
#[derive(Args, Debug)]
#[command(next_help_heading = "With --kernel")]
struct OfKernel {
    /// Only objects of this slab cache (/proc/slabinfo)
    #[arg(long, value_name = "NAME", requires = "kernel_side")]
    cache: Option<String>,
    /// Only allocations made by this module
    #[arg(long, value_name = "NAME", requires = "kernel_side")]
    module: Option<String>,
    /// Per-CPU allocations too
    #[arg(long, requires = "kernel_side")]
    percpu: bool,
}

impl Tool for Memleak {
    const CHOICE: Option<&'static Choice> = Some(&CHOICE);
    const COLUMNS: &'static [Column] = &<Holding as Row<20>>::COLUMNS;

    fn run(mut self) -> Result<ExitCode> {
        self.targets.pid.append(&mut self.pids);
        if self.kernel_side {
            return self.run_on_kernel();
        }
        if self.command.is_empty() {
            let target = |procfs: &ProcFs| self.processes(procfs);
            let ctx = Context::new("memleak", &self.kernel, (&self.limits).into(), target)?;
            return self.run_on_processes(ctx, None);
        }
        // What cannot be traced is refused before the program is started.
        let limits = (&self.limits).into();
        let ctx = Context::new("memleak", &self.kernel, limits, |_| Ok(Target::default()))?;
        prepare(&ctx, &CHOICE)?;
        let held = child::start(&self.command)?;
        self.run_on_processes(ctx, Some(held))
    }
}

impl Memleak {
    /// The processes asked for, by number or as they are found now.
    fn processes(&self, procfs: &ProcFs) -> Result<Target> {
        let mut target = self.targets.resolve(procfs)?;
        if target.tgids.is_empty() {
            if target.comm.is_none() && target.cgroup.is_none() {
                return Err(Error::usage(
                    "which process? give -P PID, --comm NAME, --cgroup PATH, -- COMMAND, or --kernel",
                ));
            }
            let own = std::process::id();
            let found: Vec<u32> = procfs
                .pids()?
                .into_iter()
                .filter(|&pid| {
                    let comm = procfs.status(pid).map(|status| status.name);
                    comm.is_some_and(|comm| {
                        target.matches(pid.unsigned_abs(), &comm, || procfs.cgroup(pid))
                    })
                })
                .map(i32::unsigned_abs)
                .filter(|&pid| pid != own)
                .collect();
            if found.is_empty() {
                return Err(Error::failure("no such process runs now"));
            }
            target = Target::resolve(&found, None, None, procfs)?;
        }
        Ok(target)
    }

    fn wanted(&self) -> Wanted {
        Wanted {
            stacks: !self.what.no_stack,
            depth: self.what.stack_depth,
            follow: self.what.follow,
            trace: self.show.trace,
            min_bytes: self.what.min_size,
            max_bytes: self.what.max_size.unwrap_or(u64::MAX),
            sample_bytes: self.what.sample_bytes.unwrap_or(0),
            max_blocks: self.what.max_blocks,
            max_stacks: self.what.max_stacks,
            object: self.what.object.clone(),
            prefixes: self.what.symbol_prefix.clone(),
            mappings_only: self.what.mappings,
            ring_bytes: self.ring.bytes(),
        }
    }

    fn view(&self) -> View {
        View {
            older: self.show.older,
            top: self.show.top as usize,
            sort: self.show.sort,
            show_blocks: self.show.show_allocs,
            lines: !self.show.no_lines,
            stacks: !self.what.no_stack,
            sample_bytes: self.what.sample_bytes.unwrap_or(0),
        }
    }

    fn run_on_processes(&self, mut ctx: Context, held: Option<child::Held>) -> Result<ExitCode> {
        let plan = prepare(&ctx, &CHOICE)?;
        let method = method(plan.hook);
        let mut storage = MaybeUninit::uninit();
        let mut tracer = Tracer::start(&ctx, method, self.wanted(), &mut storage)?;
        let started = match held {
            None => {
                for &tgid in &ctx.target.tgids {
                    tracer.watch(&ctx.procfs, tgid)?;
                    tracer.require_allocator(tgid)?;
                }
                None
            }
            Some(held) => {
                let tgid = held.pid();
                tracer.watch(&ctx.procfs, tgid)?;
                let child = held.run_to_entry(|| tracer.rescan(&ctx.procfs, tgid))?;
                if let Err(error) = tracer.require_allocator(tgid) {
                    child.kill();
                    return Err(error);
                }
                let pidfd = child.pidfd().try_clone_to_owned();
                ctx.target.pidfds.push(pidfd.context(|| "watching the program")?);
                ctx.target.tgids.push(tgid);
                Some(child)
            }
        };
        for text in attached(&tracer) {
            note(&text);
        }
        warn(&mut tracer);
        for text in tracer.take_notes() {
            ctx.say(|| text);
        }
        let ring = tracer.ring()?;
        let mut notes = plan.notes();
        notes.extend(self.about());
        let lost_so_far = Cell::new(0);
        let lost = || lost_so_far.get();
        let pace = Pace { at_start: false, at_end: true, by_row: self.show.trace };
        let run = Run { hook: plan.hook.name, notes, pace, lost: &lost };
        let mut reporter = Reporter::new(self.view());
        let style = (&self.output).into();
        let printer = match self.show.trace {
            true => Printer::of_stacks::<Traced, 9>(&style, ALWAYS)?,
            false => Printer::of_stacks::<Holding, 20>(&style, if self.show.show_allocs { BLOCKS } else { ALWAYS })?,
        };
        stream::<RawEvent>(&ctx, run, &ring, printer, |step, printer| {
            match step {
                Step::Event(raw) => {
                    let traced = tracer.enter(&ctx.procfs, &raw)?;
                    // New code may hold what cannot be probed.
                    warn(&mut tracer);
                    if traced {
                        return printer.row(&reporter.call(&tracer, &raw));
                    }
                    return Ok(());
                }
                Step::Report if self.show.trace => {}
                Step::Report => reporter.report(&ctx, &mut tracer, printer)?,
                Step::End => reporter.end(&tracer, printer)?,
            }
            lost_so_far.set(tracer.trouble().lost());
            Ok(())
        })?;
        match started {
            // Detached first: the program runs on without us if it has to.
            Some(child) => {
                drop(tracer);
                child.wait()
            }
            None => Ok(ExitCode::SUCCESS),
        }
    }

    /// What a reader of the figures must know.
    fn about(&self) -> Vec<String> {
        let mut notes = Vec::new();
        if let Some(bytes) = self.what.sample_bytes {
            notes.push(format!(
                "sampled: one block about every {bytes} bytes is recorded, and all figures of the \
                 heap are estimates with their standard error"
            ));
        }
        if self.show.older.is_none() && !self.show.trace {
            notes.push("OLDER counts what is older than 10 s (--older lists only that)".into());
        }
        notes
    }

    fn run_on_kernel(&self) -> Result<ExitCode> {
        let limits = (&self.limits).into();
        let ctx = Context::new("memleak", &self.kernel, limits, |_| Ok(Target::default()))?;
        rights::require_tracing()?;
        if let Answer::No(why) | Answer::Unknown(why) = ctx.kernel.answer(Need::ReadKernel) {
            return Err(Error::kernel(format!(
                "--kernel: {}: {why}; sysstat --hook proc shows what the kernel counts by itself",
                Need::ReadKernel
            )));
        }
        let wanted = kernel::Wanted {
            slab: true,
            pages: self.of_kernel.cache.is_none(),
            percpu: self.of_kernel.percpu,
            cache: self.of_kernel.cache.clone(),
            module: self.of_kernel.module.clone(),
            min_bytes: self.what.min_size,
            max_bytes: self.what.max_size.unwrap_or(u64::MAX),
            max_blocks: self.what.max_blocks,
            max_stacks: self.what.max_stacks,
            depth: self.what.stack_depth,
        };
        kernel_report::run(&ctx, &wanted, self.view(), &(&self.output).into())?;
        Ok(ExitCode::SUCCESS)
    }
}

fn method(hook: &Hook) -> Method {
    match hook.name.split(':').next() {
        Some("uprobe.session") => Method::Session,
        Some("uprobe.multi") => Method::Multi,
        _ => Method::Single,
    }
}

/// Says what is missing from the figures.
fn warn(tracer: &mut Tracer<'_>) {
    for text in tracer.take_warnings() {
        note(&text);
    }
}

/// What was found, file by file.
fn attached(tracer: &Tracer<'_>) -> Vec<String> {
    tracer
        .attached()
        .iter()
        .map(|file| {
            let slow = match file.slow.as_slice() {
                [] => String::new(),
                names => format!(" (single-stepped, dearer: {})", names.join(" ")),
            };
            format!("{}: {}{slow}", file.object, file.functions.join(" "))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hooks_are_attached_as_their_names_say() {
        let methods: Vec<Method> = CHOICE.hooks.iter().map(method).collect();
        assert_eq!(methods, [Method::Session, Method::Multi, Method::Single]);
    }
}

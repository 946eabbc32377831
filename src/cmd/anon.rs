//! `anon` (`--anon`): anonymous memory of a program, exact, to its last line.

use std::cell::Cell;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::mem::MaybeUninit;
use std::process::ExitCode;

use clap::Args;
use clap::builder::NonEmptyStringValueParser;
use libbpf_rs::MapCore;
use libbpf_rs::MapFlags;
use libbpf_rs::skel::OpenSkel as _;
use libbpf_rs::skel::Skel as _;
use libbpf_rs::skel::SkelBuilder as _;

use super::Tool;
use super::skeleton;
use crate::attach::Choice;
use crate::attach::Hook;
use crate::attach::Plan;
use crate::attach::prepare;
use crate::child;
use crate::child::Child;
use crate::child::Held;
use crate::cli::KernelArgs;
use crate::cli::LimitArgs;
use crate::cli::OutputArgs;
use crate::cli::RingArgs;
use crate::cli::TargetArgs;
use crate::context::Context;
use crate::engine::Pace;
use crate::engine::Ring;
use crate::engine::Run;
use crate::engine::Step;
use crate::engine::every;
use crate::engine::read_iterator;
use crate::engine::stream;
use crate::error::Context as _;
use crate::error::Error;
use crate::error::Result;
use crate::event::read_shared;
use crate::event::text;
use crate::kernel::Need;
use crate::lives::Life;
use crate::lives::Lives;
use crate::output::ALWAYS;
use crate::output::Column;
use crate::output::Format;
use crate::output::Group;
use crate::output::MACHINE;
use crate::output::Printer;
use crate::output::Row;
use crate::output::Style;
use crate::output::Unit;
use crate::output::Value;
use crate::output::describe;
use crate::output::note;
use crate::rights;
use crate::rss;
use crate::rss::Parts;
use crate::set_target;
use crate::target;
use crate::target::Target;
use crate::time::WallTime;
use crate::time::monotonic_ns;
use crate::time::wall_time;
use crate::units::page_size;
use crate::units::pages_to_bytes;

skeleton!("anon");
use skel::types::anon_sample as RawSample;

// SAFETY: fixed-width integers and a byte array, the one gap is named `pad`
// (the size is asserted in anon.bpf.c), so every bit pattern is a valid value.
unsafe impl plain::Plain for RawSample {}

/// `SAMPLE_END` and its like of anon.bpf.c.
const SAMPLE_END: u32 = 1;
const SAMPLE_EXEC: u32 = 2;
const SAMPLE_OTHER: u32 = 4;
const SAMPLE_WATCHED: u32 = 8;
const SAMPLE_SINCE_START: u32 = 16;

/// What a thread keeps to itself before 6.2, in anonymous pages: 66 faults
/// (`check_sync_rss_stat()`, mm/memory.c: `events++ > 64`), each of which brings
/// one at most. Huge pages are not kept back.
const THREAD_CACHE_PAGES: u64 = 66;


const NO_FAULTS: &str = "no FAULTS: do_anonymous_page cannot be attached to here";

static CHOICE: Choice = Choice {
    purpose: "to see the anonymous memory of processes",
    hooks: &[
        Hook {
            name: "fexit:do_anonymous_page",
            programs: &["visit"],
            attach: &["on_fork", "on_exec", "on_unmap", "on_fault"],
            needs: &[
                Need::KernelBtf,
                Need::ReadKernel,
                Need::TaskIter,
                Need::Func("do_anonymous_page"),
                Need::Func("exit_mmap"),
                Need::Fentry,
            ],
            loses: "",
        },
        Hook {
            name: "kprobe:do_anonymous_page",
            programs: &["visit"],
            attach: &["on_fork", "on_exec", "on_unmap_kp", "on_fault_kp"],
            needs: &[
                Need::KernelBtf,
                Need::ReadKernel,
                Need::TaskIter,
                Need::Func("do_anonymous_page"),
                Need::Func("exit_mmap"),
                Need::Kprobe,
            ],
            loses: "FAULTS counts a fault twice that had to be tried twice",
        },
        Hook {
            name: "fentry:exit_mmap",
            programs: &["visit"],
            attach: &["on_fork", "on_exec", "on_unmap"],
            needs: &[
                Need::KernelBtf,
                Need::ReadKernel,
                Need::TaskIter,
                Need::Func("exit_mmap"),
                Need::Fentry,
            ],
            loses: NO_FAULTS,
        },
        Hook {
            name: "kprobe:exit_mmap",
            programs: &["visit"],
            attach: &["on_fork", "on_exec", "on_unmap_kp"],
            needs: &[
                Need::KernelBtf,
                Need::ReadKernel,
                Need::TaskIter,
                Need::Func("exit_mmap"),
                Need::Kprobe,
            ],
            loses: NO_FAULTS,
        },
        Hook {
            name: "tp_btf:sched_process_exit",
            programs: &["visit"],
            attach: &["on_fork", "on_exec", "on_exit", "on_replace"],
            needs: &[
                Need::KernelBtf,
                Need::ReadKernel,
                Need::TaskIter,
                // Where this is, the memory is still there, too (6.16).
                Need::Field("trace_event_raw_sched_process_exit", "group_dead"),
                Need::BtfTracepoint("sched_process_exit"),
                Need::BtfTracepoint("sched_prepare_exec"),
            ],
            loses: NO_FAULTS,
        },
        Hook {
            name: "iter:task",
            programs: &["visit"],
            attach: &[],
            needs: &[Need::KernelBtf, Need::ReadKernel, Need::TaskIter],
            loses: "no FAULTS; the last line of a program repeats its last reading, and who lives \
                    shorter than an interval is not seen",
        },
        Hook {
            name: "proc:status",
            programs: &[],
            attach: &[],
            needs: &[Need::Path("/proc/self/status")],
            loses: "no FAULTS; the last line of a program repeats its last reading, who lives \
                    shorter than an interval is not seen, an exec is not noticed; before 6.2 the \
                    amounts lag by what each thread's last 66 faults brought",
        },
    ],
};

/// Anonymous memory of a program, exact, live
///
/// A row for each process whose anonymous memory (RssAnon) has changed within
/// an interval, and a last one when the program ends. Programs that start later
/// are picked up by themselves.
#[derive(Args, Debug)]
#[command(long_flag = "anon", after_long_help = describe(Anon::COLUMNS))]
pub struct Anon {
    /// Name of the program (the kernel keeps 15 characters)
    #[arg(value_name = "COMM", conflicts_with = "comm")]
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    name: Option<String>,
    /// Start this program and watch it from its first page on
    #[arg(last = true, value_name = "COMMAND", conflicts_with_all = ["name", "pid", "comm", "cgroup"])]
    command: Vec<OsString>,
    /// Also what is swapped out, and the page faults that brought memory
    #[arg(short = 'R', long)]
    all_fields: bool,
    #[command(flatten)]
    targets: TargetArgs,
    #[command(flatten)]
    limits: LimitArgs,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    kernel: KernelArgs,
    #[command(flatten)]
    ring: RingArgs,
}

/// How a program's last line came about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// The process ended.
    Exit,
    /// The process executed another program.
    Exec,
    /// It lives on, but is no longer asked for: its name or cgroup has changed.
    Left,
    /// It ended, or executed another program, unseen.
    Gone,
}

impl End {
    fn word(self) -> &'static str {
        match self {
            End::Exit => "exit",
            End::Exec => "exec",
            End::Left => "left",
            End::Gone => "gone",
        }
    }
}

/// What a run can know.
struct Known {
    /// Faults are counted.
    faults: bool,
    /// By how many pages every amount may be off.
    inexact_pages: u64,
}

/// One process at one moment.
#[derive(Clone, Debug, PartialEq)]
struct Sample {
    life: Life,
    time: WallTime,
    comm: String,
    pages: u64,
    /// In bytes.
    swap: Option<u64>,
    /// Since it is watched.
    faults: Option<u64>,
    /// It is watched since it began.
    since_start: bool,
    /// By how many bytes the amounts may be off; `None`: nobody knows.
    error: Option<u64>,
    /// The kernel's entry for it; 0: there is none.
    key: u64,
}

impl Sample {
    fn new(raw: &RawSample, known: &Known) -> Self {
        let watched = raw.flags & SAMPLE_WATCHED != 0;
        Self {
            life: Life { tgid: raw.tgid, born_ns: raw.born_ns },
            time: wall_time(raw.time_ns),
            comm: text(&raw.comm),
            pages: raw.anon_pages,
            swap: Some(pages_to_bytes(raw.swap_pages)),
            faults: (watched && known.faults).then_some(raw.faults),
            since_start: raw.flags & SAMPLE_SINCE_START != 0,
            error: Some(pages_to_bytes(u64::from(raw.error_pages) + known.inexact_pages)),
            key: if watched { raw.mm } else { 0 },
        }
    }
}

/// A row: a sample beside the one before.
#[derive(Clone, Debug, PartialEq)]
struct Line {
    sample: Sample,
    /// In bytes.
    delta: Option<i64>,
    faults: Option<u64>,
    end: Option<End>,
}

impl Line {
    fn new(sample: Sample, before: Option<&Sample>, end: Option<End>) -> Self {
        let signed = |pages| i64::try_from(pages_to_bytes(pages)).unwrap_or(i64::MAX);
        let delta = before.map(|before| signed(sample.pages) - signed(before.pages));
        let faults = sample.faults.and_then(|faults| match before {
            Some(before) => faults.checked_sub(before.faults?),
            None => sample.since_start.then_some(faults),
        });
        Self { sample, delta, faults, end }
    }

    /// For a program that has gone unseen: its last reading again, which says
    /// nothing about what came after it.
    fn last_reading(mut last: Sample, end: End) -> Self {
        last.error = None;
        last.time = WallTime::now();
        Self { sample: last, delta: None, faults: None, end: Some(end) }
    }
}

/// The columns of `-R`.
const ALL: Group = 1;

impl Row<10> for Line {
    const COLUMNS: [Column; 10] = [
        Column::new("TIME", "time", Unit::Time, 8, ALWAYS, "when the counters were read"),
        Column::new("PID", "pid", Unit::Id, 7, ALWAYS, "process (thread group)"),
        Column::new("COMM", "comm", Unit::Text, 15, ALWAYS, "name of the process"),
        Column::new("PAGES", "pages", Unit::Count, 7, ALWAYS, "anonymous memory, in pages"),
        Column::new("ANON", "anon", Unit::Size, 9, ALWAYS, "the same as a size (RssAnon)"),
        Column::new("DELTA", "delta", Unit::Size, 9, ALWAYS, "change since the row before"),
        Column::new("SWAP", "swap", Unit::Size, 7, ALL, "swapped-out anonymous (VmSwap)"),
        Column::new(
            "FAULTS",
            "faults",
            Unit::Count,
            6,
            ALL,
            "first touches of anonymous pages since the row before",
        ),
        Column::new(
            "END",
            "end",
            Unit::Text,
            4,
            ALWAYS,
            "last row: exit, exec, left (not asked for any more), gone (unseen; the last reading)",
        ),
        Column::new(
            "ERROR",
            "anon_error",
            Unit::Size,
            7,
            MACHINE,
            "ANON and SWAP may be off by this; 0: exact; none: the last reading, repeated",
        ),
    ];

    fn values(&self) -> [Value<'_>; 10] {
        let sample = &self.sample;
        [
            Value::Time(sample.time),
            Value::Count(sample.life.tgid.into()),
            Value::Text((&sample.comm).into()),
            Value::Count(sample.pages),
            Value::Bytes(pages_to_bytes(sample.pages)),
            self.delta.map_or(Value::Missing, Value::Change),
            Value::bytes(sample.swap),
            Value::count(self.faults),
            self.end.map_or(Value::Missing, |end| Value::Text(end.word().into())),
            Value::bytes(sample.error),
        ]
    }
}

impl Tool for Anon {
    const CHOICE: Option<&'static Choice> = Some(&CHOICE);
    const COLUMNS: &'static [Column] = &<Line as Row<10>>::COLUMNS;

    fn run(mut self) -> Result<ExitCode> {
        if let Some(name) = self.name.take() {
            self.targets.comm = Some(name);
        }
        let TargetArgs { pid, comm, cgroup } = &self.targets;
        if self.command.is_empty() && pid.is_empty() && comm.is_none() && cgroup.is_none() {
            return Err(Error::usage(
                "which program? give its name, -P PID, --cgroup PATH or -- COMMAND; procstat \
                 shows every process",
            ));
        }
        let limits = (&self.limits).into();
        let mut ctx =
            Context::new("anon", &self.kernel, limits, |procfs| self.targets.resolve(procfs))?;
        let plan = prepare(&ctx, &CHOICE)?;
        // What cannot be watched is refused before the program is started.
        let held = match self.command.is_empty() {
            true => None,
            false => Some(child::start(&self.command)?),
        };
        if let Some(held) = &held {
            ctx.target = Target::resolve(&[held.pid()], None, None, &ctx.procfs)?;
        }
        let started = if plan.hook.needs_rights() {
            self.run_on_bpf(&ctx, &plan, held)?
        } else {
            self.run_on_proc(&ctx, &plan, held)?
        };
        started.map_or(Ok(ExitCode::SUCCESS), Child::wait)
    }
}

impl Anon {
    /// Programs get all columns there are.
    fn printer(&self) -> Result<Printer> {
        let style = Style::from(&self.output);
        let all = self.all_fields || style.format != Format::Table;
        Printer::stdout::<Line, 10>(style, if all { ALL } else { 0 })
    }

    fn run_on_bpf(
        &self,
        ctx: &Context,
        plan: &Plan,
        held: Option<Held>,
    ) -> Result<Option<Child>> {
        let parts = Parts::find(ctx)?;
        let mut notes = plan.notes();
        notes.extend(parts.note.clone());

        let mut storage = MaybeUninit::uninit();
        let builder = skel::AnonSkelBuilder { obj_builder: ctx.kernel.object_builder()? };
        let mut open = builder.open(&mut storage)?;
        plan.select(open.open_object_mut());
        open.maps.events.set_max_entries(self.ring.bytes())?;
        if let Ok(count @ 1..=2048) = u32::try_from(ctx.target.tgids.len()) {
            // An exec has two at a time.
            open.maps.watched.set_max_entries((count * 2).max(64))?;
        }
        set_target!(open, &ctx.target);
        if let Some(constants) = open.maps.rodata_data.as_deref_mut() {
            constants.ring_half_bytes = u64::from(self.ring.bytes()) / 2;
            constants.rss_cpus = ctx.procfs.possible_cpus()?;
        }
        if let Some(shared) = open.maps.bss_data.as_deref_mut() {
            parts.store(&mut shared.rss_cpu_offset, &mut shared.rss_cpu_known);
        }
        let mut skel = open
            .load()
            .context(|| format!("loading the programs of {}", plan.hook.name))
            .map_err(rights::explain_refusal)?;
        target::fill_set(&skel.maps.target_set, &ctx.target)?;
        let ring = Ring::new(&skel.maps.events)?;
        let visit = skel.progs.visit.attach().context(|| "attaching the task iterator")?;
        let links = plan.attach(skel.object())?;
        // Who is here is watched from now on, so that none can end unseen.
        drop(read_iterator::<RawSample>(&visit)?);
        let mut start = Start::of(held);

        let shared = RefCell::new(
            skel.maps.bss_data.take().ok_or_else(|| Error::failure("no data section is mapped"))?,
        );
        let lost = || shared.try_borrow().map_or(0, |shared| read_shared(&shared.lost_events));
        let pace = Pace { at_start: true, at_end: true, by_row: false };
        let run = Run { hook: plan.hook.name, notes, pace, lost: &lost };
        // An end is told through the ring, which may come after the look.
        let mut lives = Lives::new(2);
        let without_room = Cell::new(0);
        let known = Known {
            faults: plan.hook.name.ends_with(":do_anonymous_page"),
            inexact_pages: parts.error_pages,
        };

        stream::<RawSample>(ctx, run, &ring, self.printer()?, |step, printer| {
            match step {
                Step::Event(raw) => {
                    let sample = Sample::new(&raw, &known);
                    let before = lives.ended(sample.life);
                    forget(&skel.maps.watched, &sample)?;
                    let end = how_it_ended(ctx, &raw);
                    return printer.row(&Line::new(sample, before.as_ref(), Some(end)));
                }
                Step::End => {
                    return lives.missing().into_iter().try_for_each(|(_, last)| {
                        let end = how_it_went(ctx, &last);
                        printer.row(&Line::last_reading(last, end))
                    });
                }
                Step::Report => {}
            }
            let samples = read_iterator::<RawSample>(&visit)?;
            let samples = samples.iter().map(|raw| Sample::new(raw, &known));
            for gone in report(&mut lives, samples, printer)? {
                forget(&skel.maps.watched, &gone)?;
                let end = how_it_went(ctx, &gone);
                printer.row(&Line::last_reading(gone, end))?;
            }
            let refused = shared.try_borrow().map_or(0, |shared| read_shared(&shared.no_room));
            if refused > 0 && without_room.replace(refused) == 0 {
                note("anon: too many processes at a time: some have no FAULTS, and their end is not seen");
            }
            start.release()?;
            parts.refresh(ctx, |store| {
                let mut shared = shared.borrow_mut();
                let shared = &mut **shared;
                store(&mut shared.rss_cpu_offset, &mut shared.rss_cpu_known);
            })
        })?;
        drop(links);
        Ok(start.child)
    }

    fn run_on_proc(
        &self,
        ctx: &Context,
        plan: &Plan,
        held: Option<Held>,
    ) -> Result<Option<Child>> {
        let mut start = Start::of(held);
        let pace = Pace { at_start: true, at_end: true, by_row: false };
        let run = Run { hook: plan.hook.name, notes: plan.notes(), pace, lost: &|| 0 };
        let split = rss::is_split(&ctx.kernel);
        let mut lives = Lives::new(1);
        every(ctx, run, self.printer()?, |printer| {
            let samples = read_proc(ctx, split)?;
            for gone in report(&mut lives, samples.into_iter(), printer)? {
                let end = how_it_went(ctx, &gone);
                printer.row(&Line::last_reading(gone, end))?;
            }
            start.release()
        })?;
        Ok(start.child)
    }
}

/// A program of our own: held until its first row is there.
struct Start {
    held: Option<Held>,
    child: Option<Child>,
}

impl Start {
    fn of(held: Option<Held>) -> Self {
        Self { held, child: None }
    }

    fn release(&mut self) -> Result<()> {
        if let Some(held) = self.held.take() {
            self.child = Some(held.release()?);
        }
        Ok(())
    }
}

/// Prints the samples whose amount has changed. Returns those of programs that
/// are not there any more.
fn report(
    lives: &mut Lives<Sample>,
    samples: impl Iterator<Item = Sample>,
    printer: &mut Printer,
) -> Result<Vec<Sample>> {
    // A process whose first thread has left is seen once a thread: the last one counts.
    let latest: BTreeMap<Life, Sample> = samples.map(|sample| (sample.life, sample)).collect();
    for (life, sample) in latest {
        lives.seen(life, |before| -> Result<Option<Sample>> {
            if before.is_some_and(|before| before.pages == sample.pages) {
                return Ok(None);
            }
            let line = Line::new(sample, before, None);
            printer.row(&line)?;
            Ok(Some(line.sample))
        })?;
    }
    Ok(lives.sweep().into_iter().map(|(_, last)| last).collect())
}

/// What the kernel said of an end, and what it could not know: someone else let
/// go of the memory last.
fn how_it_ended(ctx: &Context, raw: &RawSample) -> End {
    debug_assert!(raw.flags & SAMPLE_END != 0);
    let replaced = if raw.flags & SAMPLE_OTHER != 0 {
        has_memory(ctx, raw.tgid)
    } else {
        raw.flags & SAMPLE_EXEC != 0
    };
    if replaced { End::Exec } else { End::Exit }
}

/// Why a program is not seen any more.
fn how_it_went(ctx: &Context, last: &Sample) -> End {
    let tgid = last.life.tgid;
    let pid = tgid.cast_signed();
    let Some(status) = ctx.procfs.status(pid) else { return End::Gone };
    let asked_for = ctx.target.matches(tgid, &status.name, || ctx.procfs.cgroup(pid));
    if asked_for || status.rssanon.is_none() { End::Gone } else { End::Left }
}

/// Whether a process is there and no zombie.
fn has_memory(ctx: &Context, tgid: u32) -> bool {
    ctx.procfs.status(tgid.cast_signed()).is_some_and(|status| status.rssanon.is_some())
}

/// Removes the kernel's entry of a program, unless another has it by now.
fn forget(watched: &impl MapCore, last: &Sample) -> Result<()> {
    if last.key == 0 {
        return Ok(());
    }
    let key = last.key.to_ne_bytes();
    let entry = watched.lookup(&key, MapFlags::ANY)?;
    // born_ns is the entry's first member.
    if entry.is_some_and(|entry| entry.starts_with(&last.life.born_ns.to_ne_bytes())) {
        match watched.delete(&key) {
            Err(error) if error.kind() != libbpf_rs::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
    }
    Ok(())
}

fn read_proc(ctx: &Context, split: bool) -> Result<Vec<Sample>> {
    let mut samples = Vec::new();
    let pids = match ctx.target.tgids.as_slice() {
        [] => ctx.procfs.pids()?,
        tgids => tgids.iter().map(|tgid| tgid.cast_signed()).collect(),
    };
    for pid in pids {
        // Gone between the listing and the look: not an error.
        let Some(status) = ctx.procfs.status(pid) else { continue };
        let tgid = pid.unsigned_abs();
        if !ctx.target.matches(tgid, &status.name, || ctx.procfs.cgroup(pid)) {
            continue;
        }
        let (Some(kib), Some(born_ns)) = (status.rssanon, ctx.procfs.start_ns(pid)) else {
            continue;
        };
        let lag = if split { THREAD_CACHE_PAGES * status.threads } else { 0 };
        samples.push(Sample {
            life: Life { tgid, born_ns },
            time: wall_time(monotonic_ns()),
            comm: status.name,
            pages: (kib << 10) / page_size(),
            swap: status.vmswap.map(|kib| kib << 10),
            faults: None,
            since_start: false,
            error: Some(pages_to_bytes(lag)),
            key: 0,
        });
    }
    Ok(samples)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attach::plan;
    use crate::kernel::KernelFacts;
    use crate::output::tests::golden;

    fn sample(pages: u64, faults: u64) -> Sample {
        Sample {
            life: Life { tgid: 4711, born_ns: 1 },
            time: WallTime::fixed(),
            comm: "leaky".into(),
            pages,
            swap: Some(844 << 10),
            faults: Some(faults),
            since_start: false,
            error: Some(0),
            key: 1,
        }
    }

    #[test]
    fn the_output_is_the_documented_one() {
        let first = Line::new(sample(7919, 1009), None, None);
        let next = Line::new(sample(7662, 1020), Some(&first.sample), None);
        let last = Line::new(sample(8176, 1534), Some(&next.sample), Some(End::Exit));
        let mut gone = Line::last_reading(sample(31, 0), End::Gone);
        gone.sample.time = WallTime::fixed();
        golden::<Line, 10>("anon", ALL, &[first, next, last, gone]);
    }

    #[test]
    fn rows_fit_eighty_columns_with_all_fields_too() {
        let widths: usize = Line::COLUMNS
            .iter()
            .filter(|column| column.group != MACHINE)
            .map(|column| column.width.max(column.head.len()) + 1)
            .sum();
        assert!(widths - 1 <= 81, "{widths}");
    }

    #[test]
    fn faults_count_from_the_row_before_or_from_the_start() {
        let before = sample(100, 40);
        assert_eq!(Line::new(sample(120, 57), Some(&before), None).faults, Some(17));
        // Here before the watcher: what it did then is not known.
        assert_eq!(Line::new(sample(120, 57), None, None).faults, None);
        let mut young = sample(120, 57);
        young.since_start = true;
        assert_eq!(Line::new(young, None, None).faults, Some(57));
        let mut unknown = sample(120, 0);
        unknown.faults = None;
        assert_eq!(Line::new(unknown, Some(&before), None).faults, None);
    }

    #[test]
    fn changes_have_a_sign() {
        let page = i64::try_from(page_size()).unwrap();
        let before = sample(100, 0);
        assert_eq!(Line::new(sample(43, 0), Some(&before), None).delta, Some(-57 * page));
        assert_eq!(Line::new(sample(143, 0), Some(&before), None).delta, Some(43 * page));
        assert_eq!(Line::new(sample(143, 0), None, None).delta, None);
    }

    #[test]
    fn the_best_hook_a_kernel_has_is_used() {
        let base = [Need::KernelBtf, Need::ReadKernel, Need::TaskIter];
        let exit = [Need::Func("exit_mmap"), Need::Fentry, Need::Kprobe];
        let late = [
            Need::Field("trace_event_raw_sched_process_exit", "group_dead"),
            Need::BtfTracepoint("sched_process_exit"),
            Need::BtfTracepoint("sched_prepare_exec"),
        ];
        let chosen = |has: &[&[Need]]| {
            plan(&KernelFacts::fake(&has.concat()), &CHOICE, None).unwrap().hook.name
        };
        let function = [Need::Func("do_anonymous_page")];
        assert_eq!(chosen(&[&base, &exit, &late, &function]), "fexit:do_anonymous_page");
        assert_eq!(chosen(&[&base, &exit, &late]), "fentry:exit_mmap");
        let kprobes = [Need::Func("exit_mmap"), Need::Kprobe];
        assert_eq!(chosen(&[&base, &kprobes, &function]), "kprobe:do_anonymous_page");
        assert_eq!(chosen(&[&base, &kprobes]), "kprobe:exit_mmap");
        assert_eq!(chosen(&[&base, &late]), "tp_btf:sched_process_exit");
        assert_eq!(chosen(&[&base]), "iter:task");
        assert_eq!(chosen(&[&[Need::Path("/proc/self/status")]]), "proc:status");
    }
}

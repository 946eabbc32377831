//! `faults`: page faults by process, sort, stack or file.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::collections::HashMap;
use std::mem::MaybeUninit;
use std::mem::offset_of;
use std::process::ExitCode;
use std::rc::Rc;
use std::time::Duration;
use std::time::Instant;
use std::time::SystemTime;

use clap::Args;
use clap::ValueEnum;
use libbpf_rs::MapCore as _;
use libbpf_rs::skel::OpenSkel as _;
use libbpf_rs::skel::Skel as _;
use libbpf_rs::skel::SkelBuilder as _;

use super::Tool;
use super::skeleton;
use crate::attach::Choice;
use crate::attach::Hook;
use crate::attach::Plan;
use crate::attach::prepare;
use crate::batch;
use crate::cli::KernelArgs;
use crate::cli::LimitArgs;
use crate::cli::StackFormatArgs;
use crate::cli::TargetArgs;
use crate::context::Context;
use crate::departed::Departed;
use crate::engine::Pace;
use crate::engine::Ring;
use crate::engine::Run;
use crate::engine::Step;
use crate::engine::every;
use crate::engine::stream;
use crate::error::Context as _;
use crate::error::Error;
use crate::error::Result;
use crate::event::read_shared;
use crate::event::text;
use crate::faults::Faulter;
use crate::faults::Faults as Amount;
use crate::faults::KINDS;
use crate::faults::Kind;
use crate::faults::Place;
use crate::faults::files;
use crate::faults::hooks::Attached;
use crate::faults::stacks::Layout;
use crate::faults::stacks::Names;
use crate::faults::stacks::Stack;
use crate::frame::Frame;
use crate::kernel::Need;
use crate::output::ALWAYS;
use crate::output::Column;
use crate::output::Group;
use crate::output::Printer;
use crate::output::Row;
use crate::output::StackFormat;
use crate::output::Unit;
use crate::output::Value;
use crate::output::describe;
use crate::output::profile::Profile;
use crate::output::profile::Sample;
use crate::rights;
use crate::set_target;
use crate::target;
use crate::time::WallTime;
use crate::time::monotonic_ns;
use crate::time::wall_time;

skeleton!("faults");
use skel::types::faults_count as RawCount;
use skel::types::faults_seen as RawSeen;
use skel::types::stack as RawStack;

// SAFETY: integers and byte arrays without implicit padding (the sizes are
// asserted in faults.bpf.c), so every bit pattern is a valid value.
unsafe impl plain::Plain for RawCount {}
// SAFETY: one integer.
unsafe impl plain::Plain for RawSeen {}

/// Where the members of a stack are.
const LAYOUT: Layout = Layout {
    size: size_of::<RawStack>(),
    owner: offset_of!(RawStack, owner),
    depth: offset_of!(RawStack, depth),
    seen: offset_of!(RawStack, seen),
    ips: offset_of!(RawStack, ips),
};

/// Type information, built in or given with `--btf`.
const TYPES: Need = Need::Field("task_struct", "tgid");

/// Without an option, a table shows so many stacks a report.
const STACKS_SHOWN: usize = 20;

static CHOICE: Choice = Choice {
    purpose: "to see page faults",
    hooks: &[
        Hook {
            name: "fexit:handle_mm_fault",
            programs: &[],
            attach: &["on_fault", "on_swap", "on_copy"],
            needs: &[
                Need::KernelBtf,
                Need::ReadKernel,
                Need::Func("handle_mm_fault"),
                Need::Params("handle_mm_fault", 4),
                Need::Func("do_swap_page"),
                Need::Func("do_wp_page"),
                Need::Fentry,
            ],
            loses: "",
        },
        Hook {
            name: "kprobe:handle_mm_fault",
            programs: &[],
            attach: &["leave_fault", "enter_fault", "enter_swap", "enter_copy"],
            needs: &[
                TYPES,
                Need::ReadKernel,
                Need::Symbol("handle_mm_fault"),
                Need::Symbol("do_swap_page"),
                Need::Symbol("do_wp_page"),
                Need::Kprobe,
            ],
            loses: "",
        },
        Hook {
            name: "perf:page-faults",
            programs: &["on_minor", "on_major"],
            attach: &["on_user_fault", "on_kernel_fault", "on_rss", "on_exit"],
            needs: &[
                Need::KernelBtf,
                Need::ReadKernel,
                Need::Helper("find_vma"),
                Need::BtfTracepoint("page_fault_user"),
                Need::BtfTracepoint("page_fault_kernel"),
                Need::BtfTracepoint("rss_stat"),
                Need::BtfTracepoint("sched_process_exit"),
                Need::PerfEvents,
            ],
            loses: "faults the kernel makes on a process's behalf (mlock, MAP_POPULATE, reading \
                    another process) are not seen, nor those on a CPU that comes online until the \
                    next report",
        },
        Hook {
            name: "perf.count:page-faults",
            programs: &["plain_minor", "plain_major"],
            attach: &[],
            needs: &[TYPES, Need::ReadKernel, Need::PerfEvents],
            loses: "the sort of a fault is not known (other); faults the kernel makes on a \
                    process's behalf (mlock, MAP_POPULATE, reading another process) are not seen, \
                    nor those on a CPU that comes online until the next report",
        },
        Hook {
            name: "proc:stat",
            programs: &[],
            attach: &[],
            needs: &[Need::Path("/proc/self/stat")],
            loses: "counts by process only; what a process did after the last report before its \
                    end is not seen",
        },
    ],
};

/// Page faults by process, sort, stack or file
///
/// Each interval: how many page faults there were, minor and major, as the
/// kernel counts them for each process. By stack: which code touches new memory.
#[derive(Args, Debug)]
#[command(after_long_help = describe(Faults::COLUMNS))]
pub struct Faults {
    /// What a row is about
    #[arg(long, value_enum, default_value = "process")]
    by: By,
    /// Also the sorts of a process's faults (in JSON and CSV always)
    #[arg(short = 'R', long)]
    all_fields: bool,
    /// At most this many rows a report, those with the most faults (a table of
    /// stacks: 20)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    top: Option<u32>,
    /// Processes and sorts, or files, there is room for
    #[arg(long, value_name = "N", default_value_t = 32_768)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=1 << 24))]
    max_entries: u32,
    #[command(flatten)]
    stacks: OfStacks,
    #[command(flatten)]
    targets: TargetArgs,
    #[command(flatten)]
    limits: LimitArgs,
    #[command(flatten)]
    output: StackFormatArgs,
    #[command(flatten)]
    kernel: KernelArgs,
}

/// What of the stacks.
#[derive(Args, Debug)]
#[command(next_help_heading = "With --by stack")]
struct OfStacks {
    /// Frames of a stack to record
    #[arg(long, value_name = "N", default_value_t = 127)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=127))]
    stack_depth: u32,
    /// Different stacks there is room for
    #[arg(long, value_name = "N", default_value_t = 16_384)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=1 << 24))]
    max_stacks: u32,
    /// No source files, lines and inlined functions: quicker, less memory
    #[arg(long)]
    no_lines: bool,
}

/// What a row is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum By {
    /// A process.
    Process,
    /// A sort of fault.
    Type,
    /// A stack of a process.
    Stack,
    /// A file, as `ffaults` shows it.
    File,
}

/// Columns of processes.
const PROCESS: Group = 1;
/// Columns of sorts.
const TYPE: Group = 2;
/// Columns of stacks.
const STACK: Group = 4;
/// The sorts of a process's faults.
const SORTS: Group = 8;

/// Page faults in an interval.
#[derive(Clone, Debug)]
struct Counted {
    time: WallTime,
    tgid: Option<u32>,
    comm: Option<Rc<str>>,
    kind: Option<Kind>,
    /// `None`: a hook that only knows their sum does not tell.
    faults: u64,
    amount: Option<Amount>,
    kinds: Option<[u64; KINDS]>,
    frames: Option<Vec<Frame>>,
}

impl Row<14> for Counted {
    const COLUMNS: [Column; 14] = [
        Column::new("TIME", "time", Unit::Time, 8, ALWAYS, "when they were counted up to"),
        Column::new("PID", "pid", Unit::Id, 7, PROCESS | STACK, "process (thread group)"),
        Column::new("COMM", "comm", Unit::Text, 15, PROCESS | STACK, "name of the process"),
        Column::new(
            "TYPE",
            "type",
            Unit::Text,
            6,
            TYPE | STACK,
            "anon, file, cow, swap, shmem; other: none of these, or not known",
        ),
        Column::new("FAULTS", "faults", Unit::Count, 8, ALWAYS, "page faults in the interval"),
        Column::new("MINOR", "minor", Unit::Count, 8, ALWAYS, "those that waited for no device"),
        Column::new("MAJOR", "major", Unit::Count, 7, ALWAYS, "those that did"),
        Column::new("ANON", "anon", Unit::Count, 8, SORTS, "first touches of anonymous memory"),
        Column::new("FILE", "file", Unit::Count, 8, SORTS, "pages of files"),
        Column::new("COW", "cow", Unit::Count, 8, SORTS, "writes to a write-protected private page"),
        Column::new("SWAP", "swap", Unit::Count, 8, SORTS, "anonymous memory from swap"),
        Column::new("SHMEM", "shmem", Unit::Count, 8, SORTS, "tmpfs, shared anonymous and SysV memory"),
        Column::new("OTHER", "other", Unit::Count, 8, SORTS, "none of these, or not known"),
        Column::new("STACK", "stack", Unit::Stack, 0, STACK, "the code that touched the memory"),
    ];

    fn values(&self) -> [Value<'_>; 14] {
        let words = |words: Option<&'static str>| {
            words.map_or(Value::Missing, |words| Value::Text(words.into()))
        };
        let comm = self.comm.as_deref().map_or(Value::Missing, |comm| Value::Text(comm.into()));
        let sort = |kind: Kind| Value::count(self.kinds.map(|kinds| kinds[kind as usize]));
        [
            Value::Time(self.time),
            Value::count(self.tgid.map(u64::from)),
            comm,
            words(self.kind.map(Kind::name)),
            Value::Count(self.faults),
            Value::count(self.amount.map(|amount| amount.minor)),
            Value::count(self.amount.map(|amount| amount.major)),
            sort(Kind::Anon),
            sort(Kind::File),
            sort(Kind::Cow),
            sort(Kind::Swap),
            sort(Kind::Shmem),
            sort(Kind::Other),
            Value::Stack(self.frames.as_deref().unwrap_or_default().into()),
        ]
    }
}

impl Tool for Faults {
    const CHOICE: Option<&'static Choice> = Some(&CHOICE);
    const COLUMNS: &'static [Column] = &<Counted as Row<14>>::COLUMNS;

    fn run(self) -> Result<ExitCode> {
        let profile = !matches!(
            self.output.output,
            StackFormat::Table | StackFormat::Json | StackFormat::Csv
        );
        if profile && self.by != By::Stack {
            return Err(Error::usage("this format is for stacks: give --by stack too"));
        }
        let limits = (&self.limits).into();
        let ctx =
            Context::new("faults", &self.kernel, limits, |procfs| self.targets.resolve(procfs))?;
        if self.by == By::File {
            let printer = Printer::of_stacks::<files::Counted, 7>(
                &(&self.output).into(),
                files::groups(false),
            )?;
            let top = self.top.map(|top| top as usize);
            files::run(&ctx, printer, files::Wanted { by_process: false, top, room: self.max_entries })?;
            return Ok(ExitCode::SUCCESS);
        }
        let plan = prepare(&ctx, &CHOICE)?;
        if plan.hook.needs_rights() {
            self.run_on_bpf(&ctx, &plan)?;
        } else {
            self.run_on_proc(&ctx, &plan)?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// A report at the end of each interval, and of what the last one held.
const PACE: Pace = Pace { at_start: false, at_end: true, by_row: false };

impl Faults {
    fn printer(&self) -> Result<Printer> {
        let sorts = if self.all_fields || self.output.output != StackFormat::Table { SORTS } else { 0 };
        let groups = match self.by {
            By::Process => PROCESS | sorts,
            By::Type | By::File => TYPE,
            By::Stack => STACK,
        };
        Printer::of_stacks::<Counted, 14>(&(&self.output).into(), groups)
    }

    fn run_on_bpf(&self, ctx: &Context, plan: &Plan) -> Result<()> {
        let mut storage = MaybeUninit::uninit();
        let builder = skel::FaultsSkelBuilder { obj_builder: ctx.kernel.object_builder()? };
        let mut open = builder.open(&mut storage)?;
        plan.select(open.open_object_mut());
        let by_stack = self.by == By::Stack;
        open.maps.counts.set_max_entries(self.max_entries)?;
        open.maps.stacks.set_max_entries(if by_stack { self.stacks.max_stacks } else { 1 })?;
        set_target!(open, &ctx.target);
        if let Some(constants) = open.maps.rodata_data.as_deref_mut() {
            constants.by_stack = by_stack.into();
            constants.stack_bytes = self.stacks.stack_depth * size_of::<u64>() as u32;
            constants.fault_page_size = rustix::param::page_size() as u64;
        }
        let mut skel = open
            .load()
            .context(|| format!("loading the programs of {}", plan.hook.name))
            .map_err(rights::explain_refusal)?;
        target::fill_set(&skel.maps.target_set, &ctx.target)?;
        let ring = Ring::new(&skel.maps.events)?;
        let shared = skel.maps.bss_data.take().ok_or_else(|| Error::failure("no data section"))?;
        // What a hook has to load beside what attaches by itself is for events.
        let attached = Attached::new(skel.object(), plan, &ctx.procfs, plan.hook.programs)?;
        let lost =
            || read_shared(&shared.lost_events) + attached.missed(&skel.maps.fault_runs);
        let run = Run { hook: plan.hook.name, notes: plan.notes(), pace: PACE, lost: &lost };
        let mut counter = Counter::new(self, ctx.procfs.in_first_pid_namespace());
        stream::<RawSeen>(ctx, run, &ring, self.printer()?, |step, printer| match step {
            Step::Event(raw) => {
                counter.names.begin(&ctx.procfs, Faulter(raw.id));
                Ok(())
            }
            Step::Report => {
                attached.refresh(&ctx.procfs)?;
                let stackless = || shared.stackless.iter().map(|slot| read_shared(&slot.blocks)).sum();
                counter.report(ctx, &skel.maps, stackless, printer)
            }
            Step::End => {
                if printer.wants_profile() {
                    printer.profile(counter.profile(ctx));
                }
                Ok(())
            }
        })
    }

    fn run_on_proc(&self, ctx: &Context, plan: &Plan) -> Result<()> {
        if self.by != By::Process {
            return Err(Error::kernel(format!(
                "{} counts by process only: leave --by out, or see `mem_watcher doctor` for what \
                 the other hooks lack",
                plan.hook.name
            )));
        }
        let known = RefCell::new(read_proc(ctx)?);
        let run = Run { hook: plan.hook.name, notes: plan.notes(), pace: PACE, lost: &|| 0 };
        every(ctx, run, self.printer()?, |printer| {
            let now = read_proc(ctx)?;
            let mut rows = Vec::new();
            for (who, (comm, amount)) in &now {
                // What began after the last reading had none then.
                let before = known.borrow().get(who).map_or(Amount::default(), |it| it.1);
                let amount = Amount {
                    minor: amount.minor.saturating_sub(before.minor),
                    major: amount.major.saturating_sub(before.major),
                };
                rows.push(row(Some(who.0), Some(Rc::clone(comm)), amount));
            }
            known.replace(now);
            self.print(rows, printer)
        })
    }

    /// Prints the rows with faults, the most first.
    fn print(&self, mut rows: Vec<Counted>, printer: &mut Printer) -> Result<()> {
        rows.retain(|row| row.faults > 0);
        rows.sort_by(|a, b| (b.faults, a.tgid, a.kind).cmp(&(a.faults, b.tgid, b.kind)));
        let long = self.by == By::Stack && self.output.output == StackFormat::Table;
        let usual = if long { STACKS_SHOWN } else { usize::MAX };
        let top = self.top.map_or(usual, |top| top as usize);
        let rest = rows.split_off(top.min(rows.len()));
        rows.iter().try_for_each(|row| printer.row(row))?;
        if !rest.is_empty() {
            let faults: u64 = rest.iter().map(|row| row.faults).sum();
            printer.remark(&format!("{} more with {faults} faults (--top)", rest.len()))?;
        }
        Ok(())
    }
}

fn row(tgid: Option<u32>, comm: Option<Rc<str>>, amount: Amount) -> Counted {
    Counted {
        time: wall_time(monotonic_ns()),
        tgid,
        comm,
        kind: None,
        faults: amount.all(),
        amount: Some(amount),
        kinds: None,
        frames: None,
    }
}

/// The faults of every process so far, by PID and start (proc_pid_stat(5)).
type ByProcess = BTreeMap<(u32, u64), (Rc<str>, Amount)>;

fn read_proc(ctx: &Context) -> Result<ByProcess> {
    let mut found = ByProcess::new();
    for pid in ctx.procfs.pids()? {
        // Gone between the listing and the look: not an error.
        let Some(stat) = ctx.procfs.task(pid).and_then(|task| task.stat().ok()) else { continue };
        let tgid = pid.unsigned_abs();
        if ctx.target.matches(tgid, &stat.comm, || ctx.procfs.cgroup(pid)) {
            let amount = Amount { minor: stat.minflt, major: stat.majflt };
            found.insert((tgid, stat.starttime), (stat.comm.as_str().into(), amount));
        }
    }
    Ok(found)
}

/// What was counted since the last report, from the tables of the kernel side.
struct Counter<'run> {
    options: &'run Faults,
    names: Names,
    comms: HashMap<Faulter, Rc<str>>,
    counts: HashMap<u64, u64>,
    stacks: HashMap<u64, u64>,
    stackless: u64,
    samples: Vec<Sample>,
    /// The stacks of the whole run, for a profile.
    totals: HashMap<u64, Stack>,
    begin: Instant,
    departed: Departed<Faulter>,
}

impl<'run> Counter<'run> {
    fn new(options: &'run Faults, may_forget: bool) -> Self {
        Self {
            options,
            names: Names::new(!options.stacks.no_lines),
            comms: HashMap::new(),
            counts: HashMap::new(),
            stacks: HashMap::new(),
            stackless: 0,
            samples: Vec::new(),
            totals: HashMap::new(),
            begin: Instant::now(),
            departed: Departed::new(may_forget),
        }
    }

    fn report(
        &mut self,
        ctx: &Context,
        maps: &skel::FaultsMaps<'_>,
        stackless: impl FnOnce() -> u64,
        printer: &mut Printer,
    ) -> Result<()> {
        self.names.new_report();
        let mut counted: Vec<(Place, u64)> = Vec::new();
        let mut idle: Vec<u64> = Vec::new();
        batch::for_each(&maps.counts, |key: u64, raw: RawCount| {
            let place = Place::from(key);
            self.comms.entry(place.who).or_insert_with(|| text(&raw.comm).into());
            let before = self.counts.insert(key, raw.faults).unwrap_or(0);
            match raw.faults.saturating_sub(before) {
                0 => idle.push(key),
                faults => counted.push((place, faults)),
            }
        })?;
        let rows = match self.options.by {
            By::Stack => self.by_stack(ctx, maps, stackless, printer.wants_profile())?,
            By::Type => by_type(&counted),
            By::Process | By::File => self.by_process(&counted),
        };
        self.options.print(rows, printer)?;
        self.forget(ctx, maps, &idle)
    }

    fn by_process(&self, counted: &[(Place, u64)]) -> Vec<Counted> {
        let mut sums: BTreeMap<Faulter, (Amount, [u64; KINDS])> = BTreeMap::new();
        for &(place, faults) in counted {
            let (amount, kinds) = sums.entry(place.who).or_default();
            amount.add(faults, place.major);
            kinds[place.kind as usize] += faults;
        }
        let rows = sums.into_iter().map(|(who, (amount, kinds))| Counted {
            kinds: Some(kinds),
            ..row(Some(who.tgid()), self.comms.get(&who).cloned(), amount)
        });
        rows.collect()
    }

    fn by_stack(
        &mut self,
        ctx: &Context,
        maps: &skel::FaultsMaps<'_>,
        stackless: impl FnOnce() -> u64,
        for_profile: bool,
    ) -> Result<Vec<Counted>> {
        let mut sums: HashMap<(Faulter, Kind, Rc<[u64]>), Amount> = HashMap::new();
        batch::for_each_raw(&maps.stacks, |id, value| {
            let id = id.first_chunk().copied().map(u64::from_ne_bytes);
            let (Some(id), Some(stack)) = (id, LAYOUT.read(value)) else { return };
            let before = self.stacks.insert(id, stack.faults).unwrap_or(0);
            let faults = stack.faults.saturating_sub(before);
            if faults > 0 {
                let key = (stack.place.who, stack.place.kind, Rc::clone(&stack.addresses));
                sums.entry(key).or_default().add(faults, stack.place.major);
            }
            if for_profile {
                self.totals.insert(id, stack);
            }
        })?;
        let mut rows = Vec::new();
        for ((who, kind, addresses), amount) in sums {
            rows.push(Counted {
                kind: Some(kind),
                frames: Some(self.names.frames(&ctx.procfs, who, &addresses)),
                ..row(Some(who.tgid()), self.comms.get(&who).cloned(), amount)
            });
        }
        let stackless = stackless();
        let without = stackless.saturating_sub(std::mem::replace(&mut self.stackless, stackless));
        if without > 0 {
            rows.push(Counted {
                faults: without,
                amount: None,
                ..row(None, None, Amount::default())
            });
            self.samples.push(Sample {
                frames: Vec::new(),
                values: vec![i64::try_from(without).unwrap_or(i64::MAX), 0],
                labels: Vec::new(),
            });
        }
        Ok(rows)
    }

    /// Makes room: what has gone will not fault again.
    fn forget(&mut self, ctx: &Context, maps: &skel::FaultsMaps<'_>, idle: &[u64]) -> Result<()> {
        let owner = |key: &u64| Place::from(*key).who;
        let lives = |who: Faulter| who.lives(&ctx.procfs);
        let gone = self.departed.after_report(idle.iter().map(owner), lives);
        for key in idle.iter().filter(|key| gone.contains(&owner(key))) {
            maps.counts.delete(&key.to_ne_bytes())?;
            self.counts.remove(key);
        }
        if self.options.by == By::Stack && !gone.is_empty() {
            let mut ids = Vec::new();
            batch::for_each_raw(&maps.stacks, |id, value| {
                let id = id.first_chunk().copied().map(u64::from_ne_bytes);
                let (Some(id), Some(stack)) = (id, LAYOUT.read(value)) else { return };
                // All of it is in reports: one that came since stays for the next.
                if gone.contains(&stack.place.who) && self.stacks.get(&id) == Some(&stack.faults) {
                    ids.push(id);
                }
            })?;
            for id in ids {
                maps.stacks.delete(&id.to_ne_bytes())?;
                self.stacks.remove(&id);
                if let Some(stack) = self.totals.remove(&id) {
                    let sample = self.sample(ctx, &stack);
                    self.samples.push(sample);
                }
            }
        }
        for who in gone {
            self.names.forget(who);
            self.comms.remove(&who);
        }
        Ok(())
    }

    fn sample(&mut self, ctx: &Context, stack: &Stack) -> Sample {
        let place = stack.place;
        let faults = i64::try_from(stack.faults).unwrap_or(i64::MAX);
        let comm = self.comms.get(&place.who).map_or("", |comm| comm);
        let labels = vec![
            ("pid".into(), place.who.tgid().to_string()),
            ("comm".into(), comm.to_owned()),
            ("type".into(), place.kind.name().to_owned()),
        ];
        let frames = self.names.frames(&ctx.procfs, place.who, &stack.addresses);
        Sample { frames, values: vec![faults, if place.major { faults } else { 0 }], labels }
    }

    fn profile(&mut self, ctx: &Context) -> Profile {
        let mut totals: Vec<(u64, Stack)> = self.totals.drain().collect();
        totals.sort_by_key(|(id, _)| *id);
        for (_, stack) in totals {
            let sample = self.sample(ctx, &stack);
            self.samples.push(sample);
        }
        let duration: Duration = self.begin.elapsed();
        Profile {
            command: "faults".into(),
            title: "Page faults".into(),
            types: vec![("faults", "count"), ("major_faults", "count")],
            default_type: 0,
            time: SystemTime::now().checked_sub(duration).unwrap_or(SystemTime::UNIX_EPOCH),
            duration,
            samples: std::mem::take(&mut self.samples),
        }
    }
}

fn by_type(counted: &[(Place, u64)]) -> Vec<Counted> {
    let mut sums: BTreeMap<Kind, Amount> = BTreeMap::new();
    for &(place, faults) in counted {
        sums.entry(place.kind).or_default().add(faults, place.major);
    }
    let row = |(kind, amount)| Counted { kind: Some(kind), ..row(None, None, amount) };
    sums.into_iter().map(row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attach::plan;
    use crate::kernel::KernelFacts;
    use crate::output::tests::golden;

    #[test]
    fn the_output_is_the_documented_one() {
        let full = Counted {
            time: WallTime::fixed(),
            kind: Some(Kind::Anon),
            kinds: Some([1, 7919, 101, 23, 7, 11]),
            frames: None,
            ..row(Some(4711), Some("x".into()), Amount { minor: 8055, major: 7 })
        };
        let coarse = Counted { kind: None, kinds: None, comm: None, ..full.clone() };
        golden::<Counted, 14>("faults", PROCESS | TYPE | SORTS, &[full, coarse]);
    }

    #[test]
    fn rows_fit_eighty_columns() {
        for group in [PROCESS, TYPE] {
            let shown = Counted::COLUMNS
                .iter()
                .filter(|column| column.group == ALWAYS || column.group & group != 0);
            let widths: usize = shown.map(|it| it.width.max(it.head.len()) + 1).sum();
            assert!(widths - 1 <= 80, "{group}: {widths}");
        }
    }

    #[test]
    fn the_sums_by_process_and_by_sort_are_the_same() {
        let place = |tgid: u64, rest: u64| Place::from(tgid << 42 | 5 << 10 | rest);
        let counted =
            [(place(7, 1 << 1), 101), (place(7, 4 << 1 | 1), 3), (place(11, 1 << 1), 23)];
        let rows = by_type(&counted);
        assert_eq!(rows.iter().map(|row| row.faults).sum::<u64>(), 127);
        assert_eq!(rows[0].amount, Some(Amount { minor: 124, major: 0 }));
        assert_eq!(rows[1].amount, Some(Amount { minor: 0, major: 3 }));
    }

    #[test]
    fn the_function_comes_first_and_proc_last() {
        let every: Vec<Need> =
            CHOICE.hooks.iter().flat_map(|hook| hook.needs.iter().copied()).collect();
        let chosen = |has: &[Need]| plan(&KernelFacts::fake(has), &CHOICE, None).unwrap().hook.name;
        assert_eq!(chosen(&every), "fexit:handle_mm_fault");
        let without = |lacks: &[Need]| -> Vec<Need> {
            every.iter().copied().filter(|need| !lacks.contains(need)).collect()
        };
        assert_eq!(chosen(&without(&[Need::Fentry])), "kprobe:handle_mm_fault");
        assert_eq!(chosen(&without(&[Need::Fentry, Need::Kprobe])), "perf:page-faults");
        let plain = [Need::Fentry, Need::Kprobe, Need::Helper("find_vma")];
        assert_eq!(chosen(&without(&plain)), "perf.count:page-faults");
        assert_eq!(chosen(&[Need::Path("/proc/self/stat")]), "proc:stat");
    }
}

//! `brkstack`: growth of the heap through brk, by stack.

use std::mem::MaybeUninit;
use std::process::ExitCode;
use std::rc::Rc;
use std::time::Instant;
use std::time::SystemTime;

use clap::Args;
use libbpf_rs::MapCore as _;
use libbpf_rs::MapFlags;
use libbpf_rs::skel::OpenSkel as _;
use libbpf_rs::skel::Skel as _;
use libbpf_rs::skel::SkelBuilder as _;

use super::Tool;
use super::skeleton;
use crate::attach::Choice;
use crate::attach::Hook;
use crate::attach::prepare;
use crate::batch;
use crate::cli::KernelArgs;
use crate::cli::LimitArgs;
use crate::cli::RingArgs;
use crate::cli::StackFormatArgs;
use crate::cli::TargetArgs;
use crate::context::Context;
use crate::engine::Pace;
use crate::engine::Ring;
use crate::engine::Run;
use crate::engine::Step;
use crate::engine::stream;
use crate::error::Context as _;
use crate::error::Error;
use crate::error::Result;
use crate::event::decode;
use crate::event::read_shared;
use crate::event::text;
use crate::frame::Frame;
use crate::growth;
use crate::growth::Moves;
use crate::growth::Programs;
use crate::growth::Table;
use crate::kernel::Need;
use crate::output::ALWAYS;
use crate::output::Column;
use crate::output::MACHINE;
use crate::output::Printer;
use crate::output::Row;
use crate::output::Unit;
use crate::output::Value;
use crate::output::describe;
use crate::output::profile::Profile;
use crate::output::profile::Sample;
use crate::rights;
use crate::set_flights;
use crate::set_target;
use crate::syscalls;
use crate::target;
use crate::time::WallTime;
use crate::time::wall_time;

skeleton!("brkstack");
use skel::types::brkstack_event as RawEvent;
use skel::types::site as RawSite;
use skel::types::site_key as RawKey;
use skel::types::stack as RawStack;

// SAFETY: fixed-width integers and a byte array without implicit padding (the
// size is asserted in brkstack.bpf.c), so every bit pattern is a valid value.
unsafe impl plain::Plain for RawEvent {}
// SAFETY: the same: five 64-bit integers and 16 bytes.
unsafe impl plain::Plain for RawSite {}
// SAFETY: the same: two 64-bit integers.
unsafe impl plain::Plain for RawKey {}
// SAFETY: the same: the one gap of its structure is named `pad`.
unsafe impl plain::Plain for RawStack {}

/// `EVENT_*` of brkstack.bpf.c.
const NEW: u32 = 1;
const FAILED: u32 = 2;
const NARROW: u32 = 4;

static CHOICE: Choice = Choice {
    purpose: "to see the heap grow",
    hooks: &[
        Hook {
            name: "syscalls:sys_enter_brk",
            programs: &[],
            attach: &["enter_brk", "exit_brk"],
            needs: &[
                // Type information, built in or given with --btf.
                Need::Field("task_struct", "tgid"),
                Need::ReadKernel,
                Need::Tracepoint("syscalls/sys_enter_brk"),
            ],
            loses: "",
        },
        Hook {
            name: syscalls::ALL_CALLS,
            programs: &[],
            attach: &["on_enter", "on_return"],
            needs: &[
                Need::Field("task_struct", "tgid"),
                Need::ReadKernel,
                Need::Tracepoint("raw_syscalls/sys_enter"),
            ],
            loses: "",
        },
    ],
};

/// Growth of the heap through brk, by stack
///
/// Each report lists the stacks that moved the end of the heap since the last
/// one. The C library asks for memory rarely and in large steps, so this costs
/// next to nothing: a first look at a leak. What malloc maps is in mmapsnoop.
#[derive(Args, Debug)]
#[command(after_long_help = describe(Brkstack::COLUMNS))]
pub struct Brkstack {
    /// A row for each call as it returns, no reports
    #[arg(long)]
    events: bool,
    /// Stacks a report
    #[arg(long, value_name = "N", default_value_t = 10)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    top: u32,
    /// Frames of a stack to record
    #[arg(long, value_name = "N", default_value_t = 127)]
    #[arg(value_parser = clap::value_parser!(u32).range(3..=127))]
    stack_depth: u32,
    /// Different stacks there is room for
    #[arg(long, value_name = "N", default_value_t = 4096)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=1 << 24))]
    max_stacks: u32,
    /// No source files, lines and inlined functions: quicker, less memory
    #[arg(long)]
    no_lines: bool,
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

/// What one stack did in one interval. Sizes in bytes.
struct Site {
    time: WallTime,
    pid: u32,
    comm: Rc<str>,
    moves: Moves,
    /// Grown since the run began.
    total: u64,
    frames: Vec<Frame>,
}

impl Row<9> for Site {
    const COLUMNS: [Column; 9] = [
        Column::new("TIME", "time", Unit::Time, 8, ALWAYS, "when the table was read"),
        Column::new("PID", "pid", Unit::Id, 7, ALWAYS, "process (thread group)"),
        Column::new("COMM", "comm", Unit::Text, 15, ALWAYS, "name of the process"),
        Column::new("CALLS", "calls", Unit::Count, 7, ALWAYS, "calls of brk that ask for a place"),
        Column::new("GROWN", "grown_bytes", Unit::Count, 11, ALWAYS, "bytes the heap grew"),
        Column::new("SHRUNK", "shrunk_bytes", Unit::Count, 9, ALWAYS, "bytes it shrank"),
        Column::new("FAILED", "failed", Unit::Count, 6, ALWAYS, "calls that failed"),
        Column::new("TOTAL", "total_bytes", Unit::Count, 11, ALWAYS, "grown since the start"),
        Column::new("STACK", "stack", Unit::Stack, 0, ALWAYS, "who called, innermost first"),
    ];

    fn values(&self) -> [Value<'_>; 9] {
        [
            Value::Time(self.time),
            Value::Count(self.pid.into()),
            Value::Text((&*self.comm).into()),
            Value::Count(self.moves.calls),
            Value::Count(self.moves.grown),
            Value::Count(self.moves.shrunk),
            Value::Count(self.moves.failed),
            Value::Count(self.total),
            Value::Stack((&*self.frames).into()),
        ]
    }
}

/// What all stacks did in one interval.
struct Total {
    time: WallTime,
    moves: Moves,
    stacks: usize,
    left_out: Moves,
    stackless: Moves,
    nameless: usize,
}

impl Row<11> for Total {
    const COLUMNS: [Column; 11] = [
        Column::new("KIND", "kind", Unit::Text, 5, ALWAYS, "total"),
        Column::new("TIME", "time", Unit::Time, 8, ALWAYS, "when the table was read"),
        Column::new("CALLS", "calls", Unit::Count, 7, ALWAYS, "calls of brk"),
        Column::new("GROWN", "grown_bytes", Unit::Count, 11, ALWAYS, "bytes heaps grew"),
        Column::new("SHRUNK", "shrunk_bytes", Unit::Count, 9, ALWAYS, "bytes they shrank"),
        Column::new("FAILED", "failed", Unit::Count, 6, ALWAYS, "calls that failed"),
        Column::new("STACKS", "stacks", Unit::Count, 6, ALWAYS, "stacks that called"),
        Column::new("UNLISTED", "unlisted_calls", Unit::Count, 6, ALWAYS, "calls beyond --top"),
        Column::new(
            "UNLISTEDGROWN",
            "unlisted_grown_bytes",
            Unit::Count,
            6,
            ALWAYS,
            "bytes grown by those",
        ),
        Column::new(
            "STACKLESS",
            "stackless_calls",
            Unit::Count,
            6,
            ALWAYS,
            "calls whose stack found no room (--max-stacks)",
        ),
        Column::new(
            "NAMELESS",
            "nameless_programs",
            Unit::Count,
            6,
            ALWAYS,
            "programs that ended before their functions could be named",
        ),
    ];

    fn values(&self) -> [Value<'_>; 11] {
        [
            Value::Text("total".into()),
            Value::Time(self.time),
            Value::Count(self.moves.calls),
            Value::Count(self.moves.grown),
            Value::Count(self.moves.shrunk),
            Value::Count(self.moves.failed),
            Value::Count(self.stacks as u64),
            Value::Count(self.left_out.calls),
            Value::Count(self.left_out.grown),
            Value::Count(self.stackless.calls),
            Value::Count(self.nameless as u64),
        ]
    }
}

impl Total {
    /// The same in words.
    fn remark(&self) -> String {
        let moves = &self.moves;
        let mut words = format!(
            "{} stacks, {} calls ({} failed): {} bytes grown, {} shrunk",
            self.stacks, moves.calls, moves.failed, moves.grown, moves.shrunk
        );
        if self.left_out.calls > 0 {
            words += &format!(
                "; not listed (--top): {} calls, {} bytes grown",
                self.left_out.calls, self.left_out.grown
            );
        }
        if self.stackless.calls > 0 {
            words += &format!("; {} calls without a stack (--max-stacks)", self.stackless.calls);
        }
        if self.nameless > 0 {
            words += &format!("; {} programs ended too soon to be named", self.nameless);
        }
        words
    }
}

/// One call (`--events`).
struct Call {
    time: WallTime,
    pid: u32,
    comm: String,
    raw: RawEvent,
    frames: Vec<Frame>,
}

impl Row<11> for Call {
    const COLUMNS: [Column; 11] = [
        Column::new("TIME", "time", Unit::Time, 8, ALWAYS, "when the call returned"),
        Column::new("PID", "pid", Unit::Id, 7, ALWAYS, "process (thread group)"),
        Column::new("TID", "tid", Unit::Id, 7, ALWAYS, "thread"),
        Column::new("COMM", "comm", Unit::Text, 15, ALWAYS, "name of the process"),
        Column::new("BREAK", "break", Unit::Text, 14, ALWAYS, "where the heap ends now"),
        Column::new("CHANGE", "change_bytes", Unit::Count, 11, ALWAYS, "by how many bytes it moved"),
        Column::new("RESULT", "result", Unit::Text, 6, ALWAYS, "ok or failed"),
        Column::new("STACK", "stack", Unit::Stack, 0, ALWAYS, "who called, innermost first"),
        Column::new("OLD", "old_break", Unit::Text, 14, MACHINE, "where it ended before"),
        Column::new("ASKED", "asked_break", Unit::Text, 14, MACHINE, "where it was to end"),
        Column::new("BITS", "bits", Unit::Count, 4, MACHINE, "32: a call of a 32-bit program"),
    ];

    fn values(&self) -> [Value<'_>; 11] {
        let raw = &self.raw;
        let hex = |number: u64| Value::Text(format!("{number:#x}").into());
        let failed = raw.flags & FAILED != 0;
        let change = if failed { 0 } else { raw.now.wrapping_sub(raw.old).cast_signed() };
        [
            Value::Time(self.time),
            Value::Count(self.pid.into()),
            Value::Count(raw.tid.into()),
            Value::Text((&self.comm).into()),
            hex(raw.now),
            Value::Signed(change),
            Value::Text(if failed { "failed" } else { "ok" }.into()),
            Value::Stack((&*self.frames).into()),
            hex(raw.old),
            hex(raw.asked),
            Value::Count(if raw.flags & NARROW != 0 { 32 } else { 64 }),
        ]
    }
}

/// The tables of the kernel side, and what was made of them so far.
struct Reporter<'run, 'obj> {
    ctx: &'run Context,
    maps: &'run skel::BrkstackMaps<'obj>,
    top: usize,
    programs: Programs,
    before: Table,
    profile: Vec<Sample>,
    begin: Instant,
    /// Found ended at the last sweep.
    dying: Vec<u64>,
}

impl Reporter<'_, '_> {
    /// The addresses of a stack; none: it found no room.
    fn stack(&self, id: u64) -> Vec<u64> {
        let value = self.maps.stacks.lookup(&id.to_ne_bytes(), MapFlags::ANY);
        let Ok(Some(value)) = value else { return Vec::new() };
        let Ok(raw) = decode::<RawStack>(&value) else { return Vec::new() };
        raw.ips.iter().take(raw.depth as usize).copied().collect()
    }

    /// Looks at whoever has called for the first time, or with a new stack.
    fn meet(&mut self, event: &RawEvent) -> Vec<u64> {
        let (program, procfs) = (event.key.program, &self.ctx.procfs);
        let stack = self.stack(event.key.stack);
        self.programs.meet(procfs, program, &text(&event.comm), event.start);
        if event.flags & NEW != 0 {
            self.programs.catch_up(procfs, program, event.start, &stack);
        }
        stack
    }

    fn call(&mut self, raw: RawEvent) -> Call {
        let stack = self.meet(&raw);
        Call {
            time: wall_time(raw.time_ns),
            pid: growth::tgid(raw.key.program),
            comm: text(&raw.comm),
            frames: self.programs.frames(raw.key.program, &stack),
            raw,
        }
    }

    /// Reads the table. Programs are met late whose announcement was lost.
    fn read(&mut self) -> Result<Table> {
        let mut table = Table::new();
        let mut unknown = Vec::new();
        batch::for_each(&self.maps.sites, |key: RawKey, site: RawSite| {
            let moves = Moves {
                calls: site.calls,
                grown: site.grown,
                shrunk: site.shrunk,
                failed: site.failed,
            };
            table.insert((key.program, key.stack), moves);
            if self.programs.get(key.program).is_none() {
                unknown.push((key.program, text(&site.comm), site.start));
            }
        })?;
        for (program, comm, start) in unknown {
            self.programs.meet(&self.ctx.procfs, program, &comm, start);
        }
        Ok(table)
    }

    fn report(&mut self, printer: &mut Printer) -> Result<()> {
        // Before the table is read: who has ended calls no more.
        let ended = self.programs.ended(&self.ctx.procfs);
        if !printer.wants_rows() && ended.is_empty() {
            return Ok(());
        }
        let now = self.read()?;
        if printer.wants_rows() {
            self.print(&now, printer)?;
        }
        for program in ended {
            self.forget(program, &now, printer.wants_profile());
        }
        self.before = now;
        Ok(())
    }

    /// Gives the room of programs that have ended back. Not before the second
    /// time they are found so: their last calls may still be in the ring.
    fn sweep(&mut self) -> Result<()> {
        let ended = self.programs.ended(&self.ctx.procfs);
        let gone: Vec<u64> =
            ended.iter().copied().filter(|program| self.dying.contains(program)).collect();
        if !gone.is_empty() {
            let now = self.read()?;
            for program in gone {
                self.forget(program, &now, false);
            }
        }
        self.dying = ended;
        Ok(())
    }

    fn print(&mut self, now: &Table, printer: &mut Printer) -> Result<()> {
        let changes = growth::changes(now, &self.before);
        if changes.is_empty() {
            return Ok(());
        }
        let mut total = Total {
            time: WallTime::now(),
            moves: Moves::default(),
            stacks: changes.len(),
            left_out: Moves::default(),
            stackless: Moves::default(),
            nameless: self.programs.nameless(),
        };
        for (place, (site, moves)) in changes.iter().enumerate() {
            total.moves += *moves;
            if place >= self.top {
                total.left_out += *moves;
            }
            if site.1 == 0 {
                total.stackless += *moves;
            }
        }
        printer.remark(&total.remark())?;
        printer.figures(&total)?;
        for ((program, stack), moves) in changes.into_iter().take(self.top) {
            let addresses = self.stack(stack);
            let frames = self.programs.frames(program, &addresses);
            printer.row(&Site {
                time: total.time,
                pid: growth::tgid(program),
                comm: self.comm(program),
                moves,
                total: now.get(&(program, stack)).map_or(0, |moves| moves.grown),
                frames,
            })?;
        }
        Ok(())
    }

    fn comm(&self, program: u64) -> Rc<str> {
        self.programs.get(program).map_or_else(|| "".into(), |program| Rc::clone(&program.comm))
    }

    /// A program that has ended is shown for the last time, and gives its room
    /// back. It makes no calls meanwhile.
    fn forget(&mut self, program: u64, now: &Table, keep: bool) {
        for ((_, stack), moves) in now.range((program, 0)..=(program, u64::MAX)) {
            if keep {
                let sample = self.sample(program, *stack, *moves);
                self.profile.push(sample);
            }
            let key = RawKey { program, stack: *stack };
            // SAFETY: plain integers without padding, as said above.
            let _ = self.maps.sites.delete(unsafe { plain::as_bytes(&key) });
            let _ = self.maps.stacks.delete(&stack.to_ne_bytes());
        }
        self.programs.forget(program);
    }

    fn sample(&mut self, program: u64, stack: u64, moves: Moves) -> Sample {
        let addresses = self.stack(stack);
        let frames = self.programs.frames(program, &addresses);
        let values = [moves.calls, moves.grown];
        Sample {
            frames,
            values: values.iter().map(|&value| i64::try_from(value).unwrap_or(i64::MAX)).collect(),
            labels: vec![
                ("pid".into(), growth::tgid(program).to_string()),
                ("comm".into(), self.comm(program).to_string()),
            ],
        }
    }

    /// Writes what is written once, at the end.
    fn end(&mut self, printer: &mut Printer) -> Result<()> {
        if !printer.wants_profile() {
            return Ok(());
        }
        let now = self.read()?;
        for ((program, stack), moves) in now {
            let sample = self.sample(program, stack, moves);
            self.profile.push(sample);
        }
        let duration = self.begin.elapsed();
        printer.profile(Profile {
            command: "brkstack".into(),
            title: "Growth of the heap (brk)".into(),
            types: vec![("calls", "count"), ("grown", "bytes")],
            default_type: 1,
            time: SystemTime::now().checked_sub(duration).unwrap_or(SystemTime::UNIX_EPOCH),
            duration,
            samples: std::mem::take(&mut self.profile),
        });
        Ok(())
    }
}

impl Tool for Brkstack {
    const CHOICE: Option<&'static Choice> = Some(&CHOICE);
    const COLUMNS: &'static [Column] = &<Site as Row<9>>::COLUMNS;

    fn run(self) -> Result<ExitCode> {
        let limits = (&self.limits).into();
        let ctx =
            Context::new("brkstack", &self.kernel, limits, |procfs| self.targets.resolve(procfs))?;
        let plan = prepare(&ctx, &CHOICE)?;
        let way = syscalls::Way::of(&ctx.kernel, &plan);

        let mut storage = MaybeUninit::uninit();
        let builder = skel::BrkstackSkelBuilder { obj_builder: ctx.kernel.object_builder()? };
        let mut open = builder.open(&mut storage)?;
        syscalls::select(&plan, open.open_object_mut(), false, way);
        open.maps.events.set_max_entries(self.ring.bytes())?;
        open.maps.stacks.set_max_entries(self.max_stacks)?;
        open.maps.sites.set_max_entries(self.max_stacks)?;
        set_target!(open, &ctx.target);
        set_flights!(open, way.storage);
        if let Some(constants) = open.maps.rodata_data.as_deref_mut() {
            constants.with_second = way.second;
            constants.ring_half_bytes = u64::from(self.ring.bytes()) / 2;
            constants.every_call = self.events;
            constants.depth_max = self.stack_depth;
        }
        let mut skel = open
            .load()
            .context(|| format!("loading the programs of {}", plan.hook.name))
            .map_err(rights::explain_refusal)?;
        target::fill_set(&skel.maps.target_set, &ctx.target)?;
        let ring = Ring::new(&skel.maps.events)?;
        let _links = syscalls::attach(&plan, skel.object())?;

        let shared = skel.maps.bss_data.take().ok_or_else(|| Error::failure("no data section"))?;
        let lost = || {
            let taken_over = read_shared(&shared.taken_over);
            read_shared(&shared.lost_events) + syscalls::missed(skel.object(), taken_over)
        };
        let style = (&self.output).into();
        let printer = match self.events {
            true => Printer::of_stacks::<Call, 11>(&style, ALWAYS)?,
            false => Printer::of_stacks::<Site, 9>(&style, ALWAYS)?,
        };
        let mut reporter = Reporter {
            ctx: &ctx,
            maps: &skel.maps,
            top: self.top as usize,
            programs: Programs::new(!self.no_lines),
            before: Table::new(),
            profile: Vec::new(),
            begin: Instant::now(),
            dying: Vec::new(),
        };
        let mut notes = plan.notes();
        notes.extend(syscalls::unseen(&plan));
        let pace = Pace { at_start: false, at_end: true, by_row: self.events };
        let run = Run { hook: plan.hook.name, notes, pace, lost: &lost };
        stream::<RawEvent>(&ctx, run, &ring, printer, |step, printer| match step {
            Step::Event(raw) if self.events => printer.row(&reporter.call(raw)),
            Step::Event(raw) => {
                reporter.meet(&raw);
                Ok(())
            }
            Step::Report if self.events => reporter.sweep(),
            Step::Report => reporter.report(printer),
            Step::End => reporter.end(printer),
        })?;
        Ok(ExitCode::SUCCESS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::Symbol;
    use crate::output::tests::golden;

    fn frame(address: u64, name: &str) -> Frame {
        Frame {
            address,
            symbol: Some(Symbol { name: name.into(), offset: 11, source: None }),
            module: Some("/usr/lib/libc.so.6".into()),
            module_offset: Some(0x1000),
            ..Frame::default()
        }
    }

    #[test]
    fn the_output_is_the_documented_one() {
        let site = |moves, frames| Site {
            time: WallTime::fixed(),
            pid: 4711,
            comm: "x".into(),
            moves,
            total: 31_676 << 10,
            frames,
        };
        let grown = Moves { calls: 23, grown: 3_112_960, shrunk: 0, failed: 1 };
        let shrunk = Moves { calls: 1, grown: 0, shrunk: 4096, failed: 0 };
        let rows = [
            site(grown, vec![frame(0x7f00_0000_100b, "brk"), frame(0x7f00_0000_200b, "sbrk")]),
            site(shrunk, Vec::new()),
        ];
        golden::<Site, 9>("brkstack", ALWAYS, &rows);
    }

    #[test]
    fn single_calls_say_by_how_much_and_whether_they_failed() {
        let raw = |asked, now, flags| RawEvent {
            old: 0x1000,
            asked,
            now,
            flags,
            tid: 23,
            ..RawEvent::default()
        };
        let call = |raw| Call {
            time: WallTime::fixed(),
            pid: 23,
            comm: "x".into(),
            raw,
            frames: Vec::new(),
        };
        let shown = |raw| {
            let call = call(raw);
            let values = call.values();
            (format!("{:?}", values[5]), format!("{:?}", values[6]))
        };
        let ok = "Text(\"ok\")".to_owned();
        assert_eq!(shown(raw(0x3000, 0x3000, 0)), ("Signed(8192)".into(), ok.clone()));
        assert_eq!(shown(raw(0x800, 0x800, 0)), ("Signed(-2048)".into(), ok));
        let failed = shown(raw(1 << 60, 0x1000, FAILED));
        assert_eq!(failed, ("Signed(0)".into(), "Text(\"failed\")".into()));
    }
}

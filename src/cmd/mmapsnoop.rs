//! `mmapsnoop`: calls that map memory, as they return.

use std::mem::MaybeUninit;
use std::process::ExitCode;

use clap::Args;
use libbpf_rs::skel::OpenSkel as _;
use libbpf_rs::skel::Skel as _;
use libbpf_rs::skel::SkelBuilder as _;

use super::Tool;
use super::skeleton;
use crate::attach::Choice;
use crate::attach::Hook;
use crate::attach::prepare;
use crate::cli::FormatArgs;
use crate::cli::KernelArgs;
use crate::cli::LimitArgs;
use crate::cli::RingArgs;
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
use crate::event::read_shared;
use crate::event::text;
use crate::flags;
use crate::kernel::Need;
use crate::names::Named;
use crate::output::ALWAYS;
use crate::output::Column;
use crate::output::Group;
use crate::output::MACHINE;
use crate::output::Printer;
use crate::output::Row;
use crate::output::Unit;
use crate::output::Value;
use crate::output::describe;
use crate::rights;
use crate::set_flights;
use crate::set_target;
use crate::syscalls;
use crate::target;
use crate::time::WallTime;
use crate::time::wall_time;

skeleton!("mmapsnoop");
use skel::types::mmapsnoop_event as RawCall;

// SAFETY: fixed-width integers and byte arrays without implicit padding (the
// size is asserted in mmapsnoop.bpf.c), so every bit pattern is a valid value.
unsafe impl plain::Plain for RawCall {}

/// `EVENT_NARROW` of mmapsnoop.bpf.c.
const NARROW: u32 = 1;
/// `EVENT_FILE` of mmapsnoop.bpf.c.
const FILE: u32 = 2;

static CHOICE: Choice = Choice {
    purpose: "to see calls that map memory",
    hooks: &[
        Hook {
            name: "syscalls:sys_enter_mmap",
            programs: &["enter_munmap", "exit_munmap", "enter_mremap", "exit_mremap"],
            attach: &["enter_mmap", "exit_mmap"],
            needs: &[
                // Type information, built in or given with --btf.
                Need::Field("task_struct", "tgid"),
                Need::ReadKernel,
                Need::Tracepoint("syscalls/sys_enter_mmap"),
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

/// New mappings, system wide: each call of mmap, as it returns
///
/// With its arguments in words, its result and the file. Calls that fail too.
#[derive(Args, Debug)]
#[command(after_long_help = describe(Mmapsnoop::COLUMNS))]
pub struct Mmapsnoop {
    /// Calls of munmap and mremap too
    #[arg(short, long)]
    all: bool,
    /// Only calls that fail
    #[arg(long)]
    failed: bool,
    /// Only calls about at least this many bytes
    #[arg(long, value_name = "BYTES", default_value_t = 0, hide_default_value = true)]
    min_size: u64,
    #[command(flatten)]
    targets: TargetArgs,
    #[command(flatten)]
    limits: LimitArgs,
    #[command(flatten)]
    output: FormatArgs,
    #[command(flatten)]
    kernel: KernelArgs,
    #[command(flatten)]
    ring: RingArgs,
}

/// Which call (`enum call` of mmapsnoop.bpf.c).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Mmap,
    Munmap,
    Mremap,
}

/// One call. Sizes and offsets in bytes.
struct Call {
    time: WallTime,
    pid: u32,
    tid: u32,
    comm: String,
    kind: Kind,
    narrow: bool,
    /// As given: their meaning depends on the call (mmap(2), mremap(2)).
    args: [u64; 6],
    result: i64,
    file: Option<String>,
}

impl TryFrom<&RawCall> for Call {
    type Error = Error;

    fn try_from(raw: &RawCall) -> Result<Self> {
        let kind = match raw.call {
            1 => Kind::Mmap,
            2 => Kind::Munmap,
            3 => Kind::Mremap,
            other => return Err(Error::failure(format!("call {other} from the kernel side"))),
        };
        let file = Named {
            names: raw.path.get(..raw.path_bytes as usize).unwrap_or_default(),
            flags: raw.path_flags,
            magic: raw.path_magic,
            inode: raw.path_inode,
        };
        Ok(Self {
            time: wall_time(raw.time_ns),
            pid: raw.tgid,
            tid: raw.tid,
            comm: text(&raw.comm),
            kind,
            narrow: raw.flags & NARROW != 0,
            args: raw.args,
            result: raw.ret,
            file: (raw.flags & FILE != 0).then(|| file.path()),
        })
    }
}

impl Call {
    /// The protection, for calls that have one.
    fn prot(&self) -> Option<String> {
        (self.kind == Kind::Mmap).then(|| flags::prot(self.args[2]))
    }

    fn flags(&self) -> Option<String> {
        match self.kind {
            Kind::Mmap => Some(flags::map(self.args[3])),
            Kind::Munmap => None,
            Kind::Mremap => Some(flags::mremap(self.args[3])),
        }
    }

    /// An anonymous mapping has neither descriptor nor offset.
    fn of_file(&self) -> bool {
        self.kind == Kind::Mmap && self.args[3] & MAP_ANONYMOUS == 0
    }

    /// Where a mapping is to move.
    fn new_address(&self) -> Option<u64> {
        (self.kind == Kind::Mremap && self.args[3] & MREMAP_PLACES != 0).then_some(self.args[4])
    }
}

/// `MAP_ANONYMOUS`, include/uapi/asm-generic/mman-common.h.
const MAP_ANONYMOUS: u64 = 0x20;
/// `MREMAP_FIXED` and `MREMAP_DONTUNMAP`: the fifth argument is used
/// (include/uapi/linux/mman.h).
const MREMAP_PLACES: u64 = 2 | 4;

/// The columns of `--all`.
const ALL: Group = 1;

impl Row<18> for Call {
    const COLUMNS: [Column; 18] = [
        Column::new("TIME", "time", Unit::Time, 8, ALWAYS, "when the call returned"),
        Column::new("PID", "pid", Unit::Id, 7, ALWAYS, "process (thread group)"),
        Column::new("COMM", "comm", Unit::Text, 15, ALWAYS, "name of the process"),
        Column::new("CALL", "call", Unit::Text, 6, ALL, "mmap, munmap or mremap"),
        Column::new("PROT", "prot", Unit::Text, 4, ALWAYS, "what is allowed: rwx"),
        Column::new("FLAGS", "flags", Unit::Text, 17, ALWAYS, "MAP_ or MREMAP_ flags"),
        Column::new("ADDRESS", "address", Unit::Text, 14, ALL, "the address given; - : none"),
        Column::new("OLDSIZE", "old_bytes", Unit::Count, 9, ALL, "mremap: size before, in bytes"),
        Column::new("SIZE", "bytes", Unit::Count, 9, ALWAYS, "size asked for, in bytes"),
        Column::new("OFFSET", "offset", Unit::Count, 8, ALWAYS, "where in the file, in bytes"),
        Column::new(
            "RESULT",
            "result",
            Unit::Text,
            14,
            ALWAYS,
            "the address of the mapping, or the error",
        ),
        Column::new("FILE", "file", Unit::Text, 4, ALWAYS, "the file, as the process sees it"),
        Column::new("TID", "tid", Unit::Id, 7, MACHINE, "thread"),
        Column::new("FD", "fd", Unit::Count, 4, MACHINE, "the descriptor of the file"),
        Column::new(
            "NEWADDRESS",
            "new_address",
            Unit::Text,
            14,
            MACHINE,
            "mremap: where it is to move",
        ),
        Column::new("RETURNED", "returned", Unit::Count, 8, MACHINE, "the result as a number"),
        Column::new("FAILED", "failed", Unit::Count, 6, MACHINE, "1: the call failed"),
        Column::new("BITS", "bits", Unit::Count, 4, MACHINE, "32: a call of a 32-bit program"),
    ];

    fn values(&self) -> [Value<'_>; 18] {
        let words = |words: Option<String>| words.map_or(Value::Missing, |w| Value::Text(w.into()));
        let hex = |number: u64| Value::Text(format!("{number:#x}").into());
        let of_file = |value: Value<'static>| if self.of_file() { value } else { Value::Missing };
        let [address, second, third, _, fd, offset] = self.args;
        let (old, size) = match self.kind {
            Kind::Mremap => (Value::Count(second), third),
            Kind::Mmap | Kind::Munmap => (Value::Missing, second),
        };
        let failed = syscalls::failure(self.result);
        [
            Value::Time(self.time),
            Value::Count(self.pid.into()),
            Value::Text((&self.comm).into()),
            Value::Text(
                match self.kind {
                    Kind::Mmap => "mmap",
                    Kind::Munmap => "munmap",
                    Kind::Mremap => "mremap",
                }
                .into(),
            ),
            words(self.prot()),
            words(self.flags()),
            if address == 0 && self.kind == Kind::Mmap { Value::Missing } else { hex(address) },
            old,
            Value::Count(size),
            of_file(Value::Count(offset)),
            match (&failed, self.kind) {
                (None, Kind::Munmap) => Value::Text("0".into()),
                _ => Value::Text(syscalls::address_or_error(self.result).into()),
            },
            self.file.as_ref().map_or(Value::Missing, |file| Value::Text(file.into())),
            Value::Count(self.tid.into()),
            // The kernel takes the lower 32 bits, with a sign.
            of_file(Value::Signed(i64::from(fd as u32 as i32))),
            self.new_address().map_or(Value::Missing, hex),
            Value::Signed(self.result),
            Value::Count(failed.is_some().into()),
            Value::Count(if self.narrow { 32 } else { 64 }),
        ]
    }
}

impl Tool for Mmapsnoop {
    const CHOICE: Option<&'static Choice> = Some(&CHOICE);
    const COLUMNS: &'static [Column] = &<Call as Row<18>>::COLUMNS;

    fn run(self) -> Result<ExitCode> {
        let limits = (&self.limits).into();
        let ctx =
            Context::new("mmapsnoop", &self.kernel, limits, |procfs| self.targets.resolve(procfs))?;
        let plan = prepare(&ctx, &CHOICE)?;
        let way = syscalls::Way::of(&ctx.kernel, &plan);

        let mut storage = MaybeUninit::uninit();
        let builder = skel::MmapsnoopSkelBuilder { obj_builder: ctx.kernel.object_builder()? };
        let mut open = builder.open(&mut storage)?;
        syscalls::select(&plan, open.open_object_mut(), self.all, way);
        open.maps.events.set_max_entries(self.ring.bytes())?;
        set_target!(open, &ctx.target);
        set_flights!(open, way.storage);
        if let Some(constants) = open.maps.rodata_data.as_deref_mut() {
            constants.with_second = way.second;
            constants.ring_half_bytes = u64::from(self.ring.bytes()) / 2;
            constants.all_calls = self.all;
            constants.only_failed = self.failed;
            constants.min_bytes = self.min_size;
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
        let groups = if self.all { ALL } else { ALWAYS };
        let printer = Printer::stdout::<Call, 18>((&self.output).into(), groups)?;
        let mut notes = plan.notes();
        notes.extend(syscalls::unseen(&plan));
        let pace = Pace { at_start: false, at_end: true, by_row: true };
        let run = Run { hook: plan.hook.name, notes, pace, lost: &lost };
        stream::<RawCall>(&ctx, run, &ring, printer, |step, printer| match step {
            Step::Event(raw) => printer.row(&Call::try_from(&raw)?),
            Step::Report | Step::End => Ok(()),
        })?;
        Ok(ExitCode::SUCCESS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::tests::golden;

    fn call(kind: Kind, args: [u64; 6], result: i64) -> Call {
        Call {
            time: WallTime::fixed(),
            pid: 4711,
            tid: 4712,
            comm: "x".into(),
            kind,
            narrow: false,
            args,
            result,
            file: None,
        }
    }

    #[test]
    fn the_output_is_the_documented_one() {
        let at = 0x7f12_3456_7000;
        let mut file = call(Kind::Mmap, [0, 10_007, 5, 2, 3, 8192], at);
        file.file = Some("/usr/lib/libc.so.6".into());
        let narrow = Call {
            narrow: true,
            ..call(Kind::Mmap, [0x1000, 4096, 3, 0x32, 0xffff_ffff, 0], 0x1000)
        };
        let rows = [
            call(Kind::Mmap, [0, 31_676 << 10, 3, 0x22, u64::MAX, 0], at),
            file,
            call(Kind::Mmap, [0, 0, 0, 1, 99, 0], -22),
            narrow,
            call(Kind::Munmap, [at as u64, 4096, 0, 0, 0, 0], 0),
            call(Kind::Munmap, [1, 4096, 0, 0, 0, 0], -22),
            call(Kind::Mremap, [at as u64, 4096, 8192, 3, 0x7000_0000, 0], 0x7000_0000),
            call(Kind::Mremap, [at as u64, 4096, 1 << 50, 1, 0, 0], -12),
        ];
        golden::<Call, 18>("mmapsnoop", ALL, &rows);
    }
}

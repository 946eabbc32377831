//! `shmsnoop`: calls of System V shared memory, and who holds memory that
//! belongs to no single process.

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
use crate::engine::every;
use crate::engine::stream;
use crate::error::Context as _;
use crate::error::Error;
use crate::error::Result;
use crate::event::read_shared;
use crate::event::text;
use crate::flags;
use crate::kernel::Need;
use crate::output::ALWAYS;
use crate::output::Column;
use crate::output::Format;
use crate::output::MACHINE;
use crate::output::Printer;
use crate::output::Row;
use crate::output::Style;
use crate::output::Unit;
use crate::output::Value;
use crate::output::describe;
use crate::output::note;
use crate::rights;
use crate::set_flights;
use crate::set_target;
use crate::shm;
use crate::shm::Object;
use crate::syscalls;
use crate::target;
use crate::time::WallTime;
use crate::time::wall_time;
use crate::units::SizeUnit;

skeleton!("shmsnoop");
use skel::types::shmsnoop_event as RawCall;

// SAFETY: fixed-width integers and a byte array without implicit padding (the
// size is asserted in shmsnoop.bpf.c), so every bit pattern is a valid value.
unsafe impl plain::Plain for RawCall {}

/// `EVENT_NARROW` of shmsnoop.bpf.c.
const NARROW: u32 = 1;

/// Holders a table names before it only counts them.
const HOLDERS_IN_TABLE: usize = 4;

static CHOICE: Choice = Choice {
    purpose: "to see calls of shared memory",
    hooks: &[
        Hook {
            name: "syscalls:sys_enter_shmget",
            programs: &[],
            attach: &[
                "enter_shmget",
                "exit_shmget",
                "enter_shmat",
                "exit_shmat",
                "enter_shmdt",
                "exit_shmdt",
                "enter_shmctl",
                "exit_shmctl",
            ],
            needs: &[
                // Type information, built in or given with --btf.
                Need::Field("task_struct", "tgid"),
                Need::ReadKernel,
                Need::Tracepoint("syscalls/sys_enter_shmget"),
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

/// Calls of System V shared memory, as they return
///
/// With --inventory: what shared memory there is and who holds it. System V
/// segments, POSIX shared memory, memfds, shared anonymous memory, and files
/// that are mapped and deleted.
#[derive(Args, Debug)]
#[command(after_long_help = help())]
pub struct Shmsnoop {
    /// List shared memory with its holders, once or as often as -n says
    #[arg(long, conflicts_with_all = ["failed", "hook"])]
    inventory: bool,
    /// At most this many objects a list, the largest
    #[arg(long, value_name = "N", requires = "inventory")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    top: Option<u32>,
    /// Only calls that fail
    #[arg(long)]
    failed: bool,
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

fn help() -> String {
    let listed = describe(&<Listed as Row<17>>::COLUMNS);
    format!("{}\nWith --inventory:\n{listed}", describe(Shmsnoop::COLUMNS))
}

/// Which call (`enum call` of shmsnoop.bpf.c).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Get,
    At,
    Dt,
    Ctl,
}

/// One call.
struct Call {
    time: WallTime,
    pid: u32,
    tid: u32,
    comm: String,
    kind: Kind,
    narrow: bool,
    /// As given: their meaning depends on the call (shmop(2)).
    args: [u64; 3],
    result: i64,
    /// Size and key of the segment, as the kernel has it.
    segment: Option<(u64, u32)>,
}

impl TryFrom<&RawCall> for Call {
    type Error = Error;

    fn try_from(raw: &RawCall) -> Result<Self> {
        let kind = match raw.call {
            1 => Kind::Get,
            2 => Kind::At,
            3 => Kind::Dt,
            4 => Kind::Ctl,
            other => return Err(Error::failure(format!("call {other} from the kernel side"))),
        };
        let segment = &raw.segment;
        Ok(Self {
            time: wall_time(raw.time_ns),
            pid: raw.tgid,
            tid: raw.tid,
            comm: text(&raw.comm),
            kind,
            narrow: raw.flags & NARROW != 0,
            args: raw.args,
            result: raw.ret,
            segment: (segment.found != 0).then_some((segment.bytes, segment.key)),
        })
    }
}

fn key(key: u32) -> String {
    // IPC_PRIVATE, include/uapi/linux/ipc.h.
    if key == 0 { "PRIVATE".into() } else { format!("{key:#x}") }
}

impl Call {
    fn name(&self) -> &'static str {
        match self.kind {
            Kind::Get => "shmget",
            Kind::At => "shmat",
            Kind::Dt => "shmdt",
            Kind::Ctl => "shmctl",
        }
    }

    fn result(&self) -> String {
        match self.kind {
            Kind::At => syscalls::address_or_error(self.result),
            _ => syscalls::failure(self.result).unwrap_or_else(|| self.result.to_string()),
        }
    }

    fn key(&self) -> Option<String> {
        match self.kind {
            Kind::Get => Some(key(self.args[0] as u32)),
            Kind::At | Kind::Ctl => self.segment.map(|(_, found)| key(found)),
            Kind::Dt => None,
        }
    }

    /// The number of the segment: of a call that fails too, where it was given.
    fn id(&self) -> Option<i64> {
        match self.kind {
            Kind::Get => (self.result >= 0).then_some(self.result),
            Kind::At | Kind::Ctl => Some((self.args[0] as u32 as i32).into()),
            Kind::Dt => None,
        }
    }

    fn flags(&self) -> Option<String> {
        match self.kind {
            Kind::Get => Some(flags::shmget(self.args[2] as u32)),
            Kind::At => Some(flags::shmat(self.args[2] as u32)),
            Kind::Dt | Kind::Ctl => None,
        }
    }

    fn command(&self) -> Option<String> {
        (self.kind == Kind::Ctl).then(|| flags::shmctl(self.args[1] as u32))
    }

    /// The address given; 0 lets the kernel choose.
    fn address(&self) -> Option<String> {
        match self.kind {
            Kind::At => Some(self.args[1]).filter(|&address| address != 0),
            Kind::Dt => Some(self.args[0]),
            Kind::Get | Kind::Ctl => None,
        }
        .map(|address| format!("{address:#x}"))
    }

    /// All arguments in words, and what is known of the segment in brackets.
    fn arguments(&self) -> String {
        let shown = |text: Option<String>| text.unwrap_or_else(|| "-".into());
        let found = self.segment.map(|(bytes, found)| (bytes, key(found)));
        let of = |found: Option<(u64, String)>| {
            found.map_or(String::new(), |(bytes, key)| format!(" (size={bytes} key={key})"))
        };
        match self.kind {
            Kind::Get => {
                let larger = found.filter(|(bytes, _)| *bytes != self.args[1]);
                let real = larger.map_or(String::new(), |(bytes, _)| format!(" (size={bytes})"));
                format!(
                    "key={} size={} flags={}{real}",
                    shown(self.key()),
                    self.args[1],
                    shown(self.flags())
                )
            }
            Kind::At => format!(
                "id={} address={} flags={}{}",
                self.args[0] as u32 as i32,
                shown(self.address()),
                shown(self.flags()),
                of(found)
            ),
            Kind::Dt => format!("address={}", shown(self.address())),
            Kind::Ctl => format!(
                "id={} cmd={}{}",
                self.args[0] as u32 as i32,
                shown(self.command()),
                of(found)
            ),
        }
    }
}

impl Row<17> for Call {
    const COLUMNS: [Column; 17] = [
        Column::new("TIME", "time", Unit::Time, 8, ALWAYS, "when the call returned"),
        Column::new("PID", "pid", Unit::Id, 7, ALWAYS, "process (thread group)"),
        Column::new("COMM", "comm", Unit::Text, 15, ALWAYS, "name of the process"),
        Column::new("SYS", "sys", Unit::Text, 6, ALWAYS, "shmget, shmat, shmdt or shmctl"),
        Column::new("RET", "ret", Unit::Text, 14, ALWAYS, "id, address or value; or the error"),
        Column::new(
            "ARGS",
            "args",
            Unit::Text,
            24,
            ALWAYS,
            "the arguments; in brackets: the segment, as the kernel has it",
        ),
        Column::new("TID", "tid", Unit::Id, 7, MACHINE, "thread"),
        Column::new("KEY", "key", Unit::Text, 10, MACHINE, "the segment's key"),
        Column::new("ID", "id", Unit::Id, 10, MACHINE, "the segment's number"),
        Column::new("SIZE", "bytes", Unit::Count, 10, MACHINE, "shmget: size asked for, in bytes"),
        Column::new("SEGMENT", "segment_bytes", Unit::Count, 10, MACHINE, "the segment's size"),
        Column::new("ADDRESS", "address", Unit::Text, 14, MACHINE, "the address given"),
        Column::new("FLAGS", "flags", Unit::Text, 14, MACHINE, "permissions, IPC_ and SHM_ flags"),
        Column::new("CMD", "cmd", Unit::Text, 8, MACHINE, "shmctl: the command"),
        Column::new("RETURNED", "returned", Unit::Count, 8, MACHINE, "the result as a number"),
        Column::new("FAILED", "failed", Unit::Count, 6, MACHINE, "1: the call failed"),
        Column::new("BITS", "bits", Unit::Count, 4, MACHINE, "32: a call of a 32-bit program"),
    ];

    fn values(&self) -> [Value<'_>; 17] {
        let words = |words: Option<String>| words.map_or(Value::Missing, |w| Value::Text(w.into()));
        [
            Value::Time(self.time),
            Value::Count(self.pid.into()),
            Value::Text((&self.comm).into()),
            Value::Text(self.name().into()),
            Value::Text(self.result().into()),
            Value::Text(self.arguments().into()),
            Value::Count(self.tid.into()),
            words(self.key()),
            self.id().map_or(Value::Missing, Value::Signed),
            Value::count((self.kind == Kind::Get).then_some(self.args[1])),
            Value::count(self.segment.map(|(bytes, _)| bytes)),
            words(self.address()),
            words(self.flags()),
            words(self.command()),
            Value::Signed(self.result),
            Value::Count(syscalls::failure(self.result).is_some().into()),
            Value::Count(if self.narrow { 32 } else { 64 }),
        ]
    }
}

/// An object of the inventory, as it is shown.
struct Listed {
    time: WallTime,
    object: Object,
    /// Holders to name.
    named: usize,
}

impl Listed {
    fn who(&self) -> String {
        let holders = &self.object.holders;
        let mut words: Vec<String> = holders
            .iter()
            .take(self.named)
            .map(|holder| {
                let how = match (holder.maps, holder.opens) {
                    (true, true) => "map+fd",
                    (true, false) => "map",
                    _ => "fd",
                };
                format!("{}/{}:{how}", holder.pid, holder.comm)
            })
            .collect();
        if let Some(more) = holders.len().checked_sub(self.named).filter(|&more| more > 0) {
            words.push(format!("and {more} more"));
        }
        words.join(" ")
    }
}

impl Row<17> for Listed {
    const COLUMNS: [Column; 17] = [
        Column::new("TIME", "time", Unit::Time, 8, ALWAYS, "when it was looked at"),
        Column::new(
            "KIND",
            "kind",
            Unit::Text,
            7,
            ALWAYS,
            "sysv, posix, memfd, shared, huge, tmpfs or deleted",
        ),
        Column::new("SIZE", "size", Unit::Size, 7, ALWAYS, "how large it says it is"),
        Column::new(
            "ALLOC",
            "allocated",
            Unit::Size,
            7,
            ALWAYS,
            "allocated: in memory or swapped out; kind deleted: on the disk",
        ),
        Column::new("RESIDENT", "resident", Unit::Size, 8, ALWAYS, "in memory, if known exactly"),
        Column::new("SWAP", "swapped", Unit::Size, 7, ALWAYS, "swapped out, if known exactly"),
        Column::new("HOLDERS", "holders", Unit::Count, 7, ALWAYS, "processes that hold it"),
        Column::new("NAME", "name", Unit::Text, 24, ALWAYS, "its name, as in /proc/PID/maps"),
        Column::new("WHO", "who", Unit::Text, 4, ALWAYS, "PID/COMM:how, map or fd"),
        Column::new("UID", "uid", Unit::Id, 6, MACHINE, "user it belongs to"),
        Column::new("KEY", "key", Unit::Text, 10, MACHINE, "sysv: key"),
        Column::new("ID", "id", Unit::Id, 10, MACHINE, "sysv: number"),
        Column::new("MODE", "mode", Unit::Text, 5, MACHINE, "sysv: permissions, octal"),
        Column::new("ATTACHED", "attached", Unit::Count, 8, MACHINE, "sysv: times it is attached"),
        Column::new("CREATOR", "creator_pid", Unit::Id, 7, MACHINE, "sysv: PID of its creator"),
        Column::new("LAST", "last_pid", Unit::Id, 7, MACHINE, "sysv: last to attach or detach"),
        Column::new("DELETED", "deleted", Unit::Count, 7, MACHINE, "1: its name is gone"),
    ];

    fn values(&self) -> [Value<'_>; 17] {
        let object = &self.object;
        let segment = object.segment.as_ref();
        let number = |of: fn(&shm::Segment) -> u64| Value::count(segment.map(of));
        let who = self.who();
        // What the kernel calls segments and memfds says nothing.
        let deleted = !matches!(object.kind, shm::Kind::Sysv | shm::Kind::Memfd)
            && object.name.ends_with(" (deleted)");
        [
            Value::Time(self.time),
            Value::Text(object.kind.name().into()),
            Value::bytes(object.size),
            Value::bytes(object.allocated),
            Value::bytes(object.resident),
            Value::bytes(object.swapped),
            Value::Count(object.holders.len() as u64),
            Value::Text((&object.name).into()),
            if who.is_empty() { Value::Missing } else { Value::Text(who.into()) },
            Value::count(object.uid.map(u64::from)),
            segment.map_or(Value::Missing, |segment| Value::Text(key(segment.key).into())),
            number(|segment| segment.id.into()),
            segment.map_or(Value::Missing, |s| Value::Text(format!("{:04o}", s.mode).into())),
            number(|segment| segment.attached),
            number(|segment| segment.creator.into()),
            number(|segment| segment.last.into()),
            Value::Count(deleted.into()),
        ]
    }
}

impl Tool for Shmsnoop {
    const CHOICE: Option<&'static Choice> = Some(&CHOICE);
    const COLUMNS: &'static [Column] = &<Call as Row<17>>::COLUMNS;

    fn run(self) -> Result<ExitCode> {
        let limits = (&self.limits).into();
        let ctx =
            Context::new("shmsnoop", &self.kernel, limits, |procfs| self.targets.resolve(procfs))?;
        if self.inventory {
            self.take_stock(ctx)?;
        } else {
            self.watch(&ctx)?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Shmsnoop {
    fn watch(&self, ctx: &Context) -> Result<()> {
        let plan = prepare(ctx, &CHOICE)?;
        let way = syscalls::Way::of(&ctx.kernel, &plan);

        let mut storage = MaybeUninit::uninit();
        let builder = skel::ShmsnoopSkelBuilder { obj_builder: ctx.kernel.object_builder()? };
        let mut open = builder.open(&mut storage)?;
        syscalls::select(&plan, open.open_object_mut(), false, way);
        open.maps.events.set_max_entries(self.ring.bytes())?;
        set_target!(open, &ctx.target);
        set_flights!(open, way.storage);
        if let Some(constants) = open.maps.rodata_data.as_deref_mut() {
            constants.with_second = way.second;
            constants.ring_half_bytes = u64::from(self.ring.bytes()) / 2;
            constants.only_failed = self.failed;
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
        let printer = Printer::stdout::<Call, 17>((&self.output).into(), ALWAYS)?;
        let mut notes = plan.notes();
        notes.extend(syscalls::unseen(&plan));
        let pace = Pace { at_start: false, at_end: true, by_row: true };
        let run = Run { hook: plan.hook.name, notes, pace, lost: &lost };
        stream::<RawCall>(ctx, run, &ring, printer, |step, printer| match step {
            Step::Event(raw) => printer.row(&Call::try_from(&raw)?),
            Step::Report | Step::End => Ok(()),
        })
    }

    fn take_stock(&self, mut ctx: Context) -> Result<()> {
        if ctx.limits.count.is_none() && ctx.limits.duration.is_none() {
            ctx.limits.count = Some(1);
        }
        let style = Style { unit: SizeUnit::Auto, ..(&self.output).into() };
        let named = match style.format {
            Format::Table => HOLDERS_IN_TABLE,
            Format::Json | Format::Csv => usize::MAX,
        };
        let printer = Printer::stdout::<Listed, 17>(style, ALWAYS)?;
        let pace = Pace { at_start: true, at_end: false, by_row: false };
        let run = Run { hook: "proc", notes: Vec::new(), pace, lost: &|| 0 };
        every(&ctx, run, printer, |printer| {
            let stock = shm::inventory(&ctx.procfs, &ctx.target)?;
            let time = WallTime::now();
            let shown = self.top.map_or(usize::MAX, |top| top as usize);
            let left_out = stock.objects.len().saturating_sub(shown);
            for object in stock.objects.into_iter().take(shown) {
                printer.row(&Listed { time, object, named })?;
            }
            if left_out > 0 {
                note(&format!("{left_out} more objects are not listed (--top)"));
            }
            if stock.unreadable > 0 {
                note(&format!(
                    "processes that may not be looked at: {}; what they hold is missing",
                    stock.unreadable
                ));
            }
            if stock.elsewhere > 0 {
                note(&format!(
                    "processes in other IPC namespaces: {}; of their System V segments only those \
                     that are attached are listed",
                    stock.elsewhere
                ));
            }
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::tests::golden;

    fn call(kind: Kind, args: [u64; 3], result: i64, segment: Option<(u64, u32)>) -> Call {
        Call {
            time: WallTime::fixed(),
            pid: 4711,
            tid: 4712,
            comm: "x".into(),
            kind,
            narrow: false,
            args,
            result,
            segment,
        }
    }

    #[test]
    fn the_output_is_the_documented_one() {
        let segment = Some((65_537, 0x1234));
        let rows = [
            call(Kind::Get, [0x1234, 65_537, 0o3640], 32_769, segment),
            call(Kind::Get, [0x1234, 11, 0], 32_769, segment),
            call(Kind::Get, [0, 0, 0o1600], -22, None),
            call(Kind::At, [32_769, 0, 0o10000], 0x7f12_3456_7000, segment),
            call(Kind::At, [u64::MAX, 0x1001, 0], -22, None),
            call(Kind::Dt, [0x7f12_3456_7000, 0, 0], 0, None),
            Call { narrow: true, ..call(Kind::Ctl, [32_769, 0x100, 0], 0, segment) },
            call(Kind::Ctl, [3, 14, 0x7000], 0, None),
        ];
        golden::<Call, 17>("shmsnoop", ALWAYS, &rows);
    }

    #[test]
    fn an_inventory_names_holders_and_says_when_it_stops() {
        let holder = |pid, maps, opens| shm::Holder { pid, comm: "x".into(), maps, opens };
        let memfd = Object {
            kind: shm::Kind::Memfd,
            name: "/memfd:pool (deleted)".into(),
            size: Some(31_676 << 10),
            allocated: Some(4096),
            resident: None,
            swapped: None,
            uid: Some(0),
            segment: None,
            holders: vec![holder(1, true, true), holder(2, true, false), holder(3, false, true)],
        };
        let sysv = Object {
            kind: shm::Kind::Sysv,
            name: "/SYSV00001234 (deleted)".into(),
            resident: Some(4096),
            swapped: Some(0),
            segment: Some(shm::Segment {
                key: 0x1234,
                id: 32_769,
                mode: 0o1600,
                attached: 2,
                creator: 23,
                last: 29,
            }),
            holders: Vec::new(),
            ..memfd.clone()
        };
        let rows =
            [memfd, sysv].map(|object| Listed { time: WallTime::fixed(), object, named: 2 });
        assert_eq!(rows[0].who(), "1/x:map+fd 2/x:map and 1 more");
        golden::<Listed, 17>("shmsnoop-inventory", ALWAYS, &rows);
    }
}

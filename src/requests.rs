//! Requests for pages, as `paf` shows them: counted, one by one, or those that
//! got nothing.

use std::rc::Rc;

use crate::frame::Frame;
use crate::gfp::AllocNames;
use crate::gfp::GfpNames;
use crate::output::ALWAYS;
use crate::output::Column;
use crate::output::Group;
use crate::output::MACHINE;
use crate::output::Row;
use crate::output::Unit;
use crate::output::Value;
use crate::time::WallTime;
use crate::units::pages_to_bytes;

/// Columns of counted requests.
pub const COUNTED: Group = 1;
/// Columns of single requests.
pub const EVENT: Group = 2;
/// Columns of requests that got nothing.
pub const FAILURE: Group = 4;
/// The columns of `--all-fields`.
pub const ALL: Group = 8;

/// `GFP_DIRECT_RECLAIM` and `GFP_ACCOUNT`, the same on every kernel since 5.8
/// (include/linux/gfp.h).
const DIRECT_RECLAIM: u32 = 0x400;
const ACCOUNT: u32 = 0x40_0000;

/// What stood in the way of a request, in the order of `REASON_ROOM` and so on in
/// src/bpf/paf.bpf.c.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Nothing that could be seen just afterwards: some zone had room.
    Room,
    /// No zone had more free pages than its watermark asks to be left.
    Watermark,
    /// One had, counted with pages that are for movable memory only.
    Cma,
    /// One had, in blocks too small.
    Fragmentation,
    /// The memory cgroup was at its limit.
    Cgroup,
}

impl Reason {
    /// From its number.
    pub fn of(number: u32) -> Option<Self> {
        use Reason::*;
        [Room, Watermark, Cma, Fragmentation, Cgroup].get(number as usize).copied()
    }

    /// In words. Whoever may not wait for reclaim cannot help it; what a request
    /// charged to a cgroup met where zones had room, is the cgroup's limit.
    pub fn words(self, gfp: u32) -> String {
        let words = match self {
            Reason::Room if gfp & ACCOUNT != 0 => "cgroup limit, probably",
            Reason::Room => "room again",
            Reason::Watermark => "below watermark",
            Reason::Cma => "CMA excluded",
            Reason::Fragmentation => "fragmentation",
            Reason::Cgroup => "cgroup limit",
        };
        if gfp & DIRECT_RECLAIM == 0 { format!("{words}, atomic context") } else { words.into() }
    }
}

/// A zone as it was at the request or at the report; in pages.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ZoneThen {
    /// Its node.
    pub nid: u32,
    /// Its name.
    pub name: Rc<str>,
    /// Watermarks, boost included.
    pub min: u64,
    /// See `min`.
    pub low: u64,
    /// See `min`.
    pub high: u64,
    /// Free pages.
    pub free: u64,
    /// Pages there are.
    pub present: u64,
}

/// What the kernel calls flags here.
#[derive(Clone, Debug, Default)]
pub struct Names {
    /// Of the request.
    pub gfp: GfpNames,
    /// Of the attempt.
    pub alloc: AllocNames,
}

/// A request, or as many of one kind as were counted.
#[derive(Clone, Debug, Default)]
pub struct Request {
    /// When it was made; of counted ones, up to when.
    pub time: Option<WallTime>,
    /// How many.
    pub count: Option<u64>,
    /// Process.
    pub tgid: u32,
    /// Thread.
    pub tid: Option<u32>,
    /// Name of the process.
    pub comm: Rc<str>,
    /// `None`: not known.
    pub zone: Option<ZoneThen>,
    /// Size of the block: 2^order pages.
    pub order: u32,
    /// How many of them got nothing.
    pub failed: u64,
    /// Why.
    pub reason: Option<Reason>,
    /// Whose limit.
    pub cgroup: Option<String>,
    /// Flags of the request.
    pub gfp: u32,
    /// The same in words.
    pub gfp_words: Rc<str>,
    /// Flags of the last attempt; `None`: not known.
    pub alloc_flags: Option<u32>,
    /// The same in words.
    pub alloc_words: Option<Rc<str>>,
    /// Of the kernel and then of the program, innermost first.
    pub frames: Vec<Frame>,
}

impl Row<21> for Request {
    const COLUMNS: [Column; 21] = [
        Column::new("TIME", "time", Unit::Time, 8, ALWAYS, "when it was made; counted: up to when"),
        Column::new("COUNT", "count", Unit::Count, 7, COUNTED, "requests in the interval"),
        Column::new("PID", "pid", Unit::Id, 7, ALWAYS, "process (thread group)"),
        Column::new("TID", "tid", Unit::Id, 7, MACHINE, "thread, of single requests"),
        Column::new("COMM", "comm", Unit::Text, 15, ALWAYS, "name of the process"),
        Column::new("NODE", "node", Unit::Id, 4, ALL, "memory node"),
        Column::new(
            "ZONE",
            "zone",
            Unit::Text,
            7,
            ALWAYS,
            "zone of the page; of none: zone wished for",
        ),
        Column::new("ORDER", "order", Unit::Id, 5, ALWAYS, "size asked for: 2^ORDER pages"),
        Column::new("MIN", "min", Unit::Size, 6, ALWAYS, "the zone's watermarks, boost included:"),
        Column::new("LOW", "low", Unit::Size, 6, ALL, "below LOW kswapd is woken,"),
        Column::new("HIGH", "high", Unit::Size, 6, ALL, "and sleeps again above HIGH"),
        Column::new("FREE", "free", Unit::Size, 6, ALWAYS, "free in the zone"),
        Column::new("PRESENT", "present", Unit::Size, 7, ALL, "memory of the zone"),
        Column::new(
            "FAILED",
            "failed",
            Unit::Count,
            6,
            ALL | EVENT,
            "how many of them got nothing",
        ),
        Column::new("REASON", "reason", Unit::Text, 18, FAILURE, "what stood in the way"),
        Column::new(
            "FLAG",
            "flag",
            Unit::Text,
            8,
            ALL,
            "flags of the request (gfp_t), hexadecimal",
        ),
        Column::new("GFP", "gfp", Unit::Text, 11, ALWAYS, "the same, as this kernel names them"),
        Column::new(
            "ALLOC",
            "alloc",
            Unit::Text,
            11,
            ALL,
            "what the last attempt was allowed (ALLOC_*)",
        ),
        Column::new("ALLOCFLAG", "alloc_flag", Unit::Text, 9, MACHINE, "the same, hexadecimal"),
        Column::new("CGROUP", "cgroup", Unit::Text, 6, FAILURE, "whose charge was refused"),
        Column::new("STACK", "stack", Unit::Stack, 0, FAILURE, "who asked: kernel, then program"),
    ];

    fn values(&self) -> [Value<'_>; 21] {
        let zone = self.zone.as_ref();
        let size = |of: fn(&ZoneThen) -> u64| Value::bytes(zone.map(of).map(pages_to_bytes));
        let text = |text: Option<&'_ str>| match text {
            Some(text) => Value::Text(text.to_owned().into()),
            None => Value::Missing,
        };
        let hex = |flags: u32| Value::Text(format!("{flags:#x}").into());
        [
            self.time.map_or(Value::Missing, Value::Time),
            Value::count(self.count),
            Value::Count(self.tgid.into()),
            Value::count(self.tid.map(u64::from)),
            Value::Text((&*self.comm).into()),
            Value::count(zone.map(|zone| zone.nid.into())),
            text(zone.map(|zone| &*zone.name)),
            Value::Count(self.order.into()),
            size(|zone| zone.min),
            size(|zone| zone.low),
            size(|zone| zone.high),
            size(|zone| zone.free),
            size(|zone| zone.present),
            Value::Count(self.failed),
            self.reason.map_or(Value::Missing, |reason| Value::Text(reason.words(self.gfp).into())),
            hex(self.gfp),
            Value::Text((&*self.gfp_words).into()),
            text(self.alloc_words.as_deref()),
            self.alloc_flags.map_or(Value::Missing, hex),
            text(self.cgroup.as_deref()),
            Value::Stack(self.frames.as_slice().into()),
        ]
    }
}

/// Frames between an event and its program.
const MACHINERY: [&str; 5] =
    ["bpf_prog_", "bpf_trampoline_", "bpf_trace_run", "__bpf_trace_", "__traceiter_"];

/// They are looked for among so many innermost frames.
const INNERMOST: usize = 8;

/// Leaves out what only captured the stack.
pub fn trim(mut frames: Vec<Frame>) -> Vec<Frame> {
    let ours = |frame: &Frame| {
        let name = frame.symbol.as_ref().map(|symbol| &*symbol.name);
        name.is_some_and(|name| MACHINERY.iter().any(|prefix| name.starts_with(prefix)))
    };
    let skip = frames.iter().take(INNERMOST).rposition(ours).map_or(0, |last| last + 1);
    // A stack of nothing else says nothing, but it is no lost one either.
    if skip < frames.len() {
        frames.drain(..skip);
    }
    frames
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::Symbol;

    #[test]
    fn reasons_are_in_words() {
        assert_eq!(Reason::of(1).unwrap().words(0xcc0), "below watermark");
        assert_eq!(Reason::of(2).unwrap().words(0x820), "CMA excluded, atomic context");
        assert_eq!(Reason::of(0).unwrap().words(0x40_0cc0), "cgroup limit, probably");
        assert_eq!(Reason::of(0).unwrap().words(0xcc0), "room again");
        assert_eq!(Reason::of(5), None);
    }

    #[test]
    fn frames_of_the_tracing_itself_are_left_out() {
        let frame = |name: &str| Frame {
            symbol: Some(Symbol { name: name.into(), offset: 0, source: None }),
            ..Frame::default()
        };
        let stack = |names: &[&str]| names.iter().map(|name| frame(name)).collect::<Vec<_>>();
        let whole = stack(&["bpf_prog_1", "bpf_trace_run4", "__alloc_pages", "alloc_pages"]);
        assert_eq!(trim(whole), stack(&["__alloc_pages", "alloc_pages"]));
        assert_eq!(trim(stack(&["bpf_prog_1"])), stack(&["bpf_prog_1"]));
        assert_eq!(trim(stack(&["x", "y"])), stack(&["x", "y"]));
        assert_eq!(trim(Vec::new()), Vec::new());
    }
}

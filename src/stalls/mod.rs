//! What `drsnoop` shows: a stall as a row, why it happened, and how stalls are
//! spread over latencies ([`spread`]).

pub mod spread;

use std::borrow::Cow;

use crate::frame::Frame;
use crate::output::ALWAYS;
use crate::output::Column;
use crate::output::Group;
use crate::output::MACHINE;
use crate::output::Row;
use crate::output::Unit;
use crate::output::Value;
use crate::time::WallTime;

/// The column of `--stack`.
pub const STACKS: Group = 1;

/// What a thread was stalled in, in the order of `enum kind` of drsnoop.bpf.c.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Reclaim for the whole machine.
    Direct,
    /// Reclaim of a memory cgroup.
    Memcg,
    /// Reclaim of one memory node (`vm.zone_reclaim_mode`).
    Node,
    /// Compaction for a larger block of pages.
    Compaction,
    /// The sleep after a cgroup grew above `memory.high`.
    HighDelay,
}

impl Kind {
    /// All of them, by number.
    pub const ALL: [Kind; 5] =
        [Kind::Direct, Kind::Memcg, Kind::Node, Kind::Compaction, Kind::HighDelay];

    /// Its name in the output.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Direct => "direct",
            Kind::Memcg => "memcg",
            Kind::Node => "node",
            Kind::Compaction => "compaction",
            Kind::HighDelay => "high-delay",
        }
    }
}

/// Functions whose frame tells why a memory cgroup is reclaimed, by the beginning
/// of their names: a compiler may add to it (`.constprop.0`).
const REASONS: [(&str, &str); 14] = [
    ("reclaim_high", "high"),
    ("mem_cgroup_handle_over_high", "high"),
    ("__mem_cgroup_handle_over_high", "high"),
    ("high_work_func", "high"),
    ("memory_high_write", "high"),
    ("user_proactive_reclaim", "proactive"),
    ("memory_reclaim", "proactive"),
    ("mem_cgroup_force_empty", "proactive"),
    ("memory_max_write", "limit"),
    ("mem_cgroup_resize_max", "limit"),
    ("mem_cgroup_resize_limit", "limit"),
    ("try_charge", "limit"),
    ("obj_cgroup_charge", "limit"),
    ("__mem_cgroup_charge", "limit"),
];

/// Why a memory cgroup was reclaimed, by the kernel functions that led there, the
/// innermost first; `memcg`: they do not tell.
pub fn reason(frames: &[Frame]) -> &'static str {
    let names = frames.iter().filter_map(|frame| frame.symbol.as_ref());
    let told = |name: &str| REASONS.iter().find(|(begin, _)| name.starts_with(begin));
    names.filter_map(|symbol| told(&symbol.name)).next().map_or(Kind::Memcg.name(), |found| found.1)
}

/// A stall, as it is shown. Sizes in bytes.
#[derive(Clone, Debug)]
pub struct Stall {
    /// When it was over.
    pub time: WallTime,
    /// Thread group.
    pub pid: u32,
    /// Thread.
    pub tid: u32,
    /// Name of the process.
    pub comm: String,
    /// Pages asked for, as a power of two; `None`: it was no request for pages.
    pub order: Option<u64>,
    /// In nanoseconds.
    pub latency_ns: u64,
    /// What the thread itself reclaimed; `None`: it did not reclaim.
    pub reclaimed: Option<u64>,
    /// Free on the machine when it began.
    pub free: Option<u64>,
    /// Why, in a word.
    pub cause: &'static str,
    /// The stalled thread's cgroup.
    pub cgroup: Option<String>,
    /// The cgroup whose memory is the matter.
    pub target: Option<String>,
    /// Pauses within reclaim, in microseconds; `None`: not known here.
    pub paused_us: Option<u64>,
    /// Flags of the request, as the kernel has them.
    pub gfp: Option<u64>,
    /// What came of a compaction.
    pub result: Option<Cow<'static, str>>,
    /// The kernel's frames, and then the program's.
    pub stack: Vec<Frame>,
}

impl Row<15> for Stall {
    const COLUMNS: [Column; 15] = [
        Column::new("TIME", "time", Unit::Time, 8, ALWAYS, "when it was over"),
        Column::new("PID", "pid", Unit::Id, 7, ALWAYS, "stalled process (thread group)"),
        Column::new("COMM", "comm", Unit::Text, 15, ALWAYS, "its name"),
        Column::new("ORDER", "order", Unit::Count, 5, ALWAYS, "pages asked for: 2 to the power of"),
        Column::new(
            "LAT",
            "latency_us",
            Unit::Count,
            8,
            ALWAYS,
            "how long it took, in microseconds",
        ),
        Column::new("RECLAIMED", "reclaimed", Unit::Size, 9, ALWAYS, "what the thread reclaimed"),
        Column::new("FREE", "free", Unit::Size, 9, ALWAYS, "free on the machine when it began"),
        Column::new(
            "CAUSE",
            "cause",
            Unit::Text,
            10,
            ALWAYS,
            "direct, limit, high, high-delay, proactive, memcg, node, compaction",
        ),
        Column::new("CGROUP", "cgroup", Unit::Text, 12, ALWAYS, "cgroup of the stalled process"),
        Column::new(
            "TARGET",
            "target",
            Unit::Text,
            12,
            ALWAYS,
            "cgroup that is reclaimed, or above its limit",
        ),
        Column::new(
            "STACK",
            "stack",
            Unit::Stack,
            0,
            STACKS,
            "kernel functions, then those of the program (--stack)",
        ),
        Column::new("TID", "tid", Unit::Id, 7, MACHINE, "stalled thread"),
        Column::new(
            "PAUSED",
            "paused_us",
            Unit::Count,
            8,
            MACHINE,
            "of LAT: pauses while others write or reclaim, in microseconds",
        ),
        Column::new("GFP", "gfp", Unit::Text, 8, MACHINE, "flags of the request, hexadecimal"),
        Column::new("RESULT", "result", Unit::Text, 8, MACHINE, "what came of a compaction"),
    ];

    fn values(&self) -> [Value<'_>; 15] {
        let text = |text: Option<&'_ str>| {
            text.map_or(Value::Missing, |t| Value::Text(t.to_owned().into()))
        };
        [
            Value::Time(self.time),
            Value::Count(self.pid.into()),
            Value::Text((&self.comm).into()),
            Value::count(self.order),
            // Rounded up: none took no time at all.
            Value::Count(self.latency_ns.div_ceil(1000)),
            Value::bytes(self.reclaimed),
            Value::bytes(self.free),
            Value::Text(self.cause.into()),
            text(self.cgroup.as_deref()),
            text(self.target.as_deref()),
            Value::Stack((&*self.stack).into()),
            Value::Count(self.tid.into()),
            Value::count(self.paused_us),
            self.gfp.map_or(Value::Missing, |gfp| Value::Text(format!("{gfp:#x}").into())),
            text(self.result.as_deref()),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::Symbol;
    use crate::output::tests::golden;

    fn frames(names: &[&str]) -> Vec<Frame> {
        let symbol = |name: &&str| Symbol { name: (*name).into(), offset: 1, source: None };
        names.iter().map(|name| Frame { symbol: Some(symbol(name)), ..Frame::default() }).collect()
    }

    #[test]
    fn the_innermost_function_tells_why_a_cgroup_is_reclaimed() {
        let told = |names: &[&str]| reason(&frames(names));
        let free = "try_to_free_mem_cgroup_pages";
        assert_eq!(told(&[free, "try_charge_memcg", "charge_memcg"]), "limit");
        assert_eq!(
            told(&[free, "reclaim_high.constprop.0", "mem_cgroup_handle_over_high"]),
            "high"
        );
        // A large charge looks at memory.high at once.
        assert_eq!(told(&[free, "__mem_cgroup_handle_over_high", "try_charge_memcg"]), "high");
        assert_eq!(told(&[free, "user_proactive_reclaim", "memory_reclaim"]), "proactive");
        assert_eq!(told(&[free, "damon_something"]), "memcg");
        assert_eq!(reason(&[Frame::default()]), "memcg");
    }

    #[test]
    fn the_output_is_the_documented_one() {
        let direct = Stall {
            time: WallTime::fixed(),
            pid: 4711,
            tid: 4713,
            comm: "x".into(),
            order: Some(3),
            latency_ns: 7_919_001,
            reclaimed: Some(47 << 12),
            free: Some(7919 << 12),
            cause: "direct",
            cgroup: Some("/a".into()),
            target: None,
            paused_us: Some(17),
            gfp: Some(0xcc0),
            result: None,
            stack: Vec::new(),
        };
        let limit = Stall {
            order: Some(0),
            cause: "limit",
            target: Some("/a/b".into()),
            paused_us: None,
            stack: frames(&["try_to_free_mem_cgroup_pages"]),
            ..direct.clone()
        };
        let delay = Stall {
            order: None,
            latency_ns: 1,
            reclaimed: None,
            free: None,
            cause: "high-delay",
            gfp: None,
            ..limit.clone()
        };
        let compaction = Stall {
            cause: "compaction",
            reclaimed: None,
            result: Some("success".into()),
            ..direct.clone()
        };
        golden::<Stall, 15>("drsnoop", STACKS, &[direct, limit, delay, compaction]);
    }
}

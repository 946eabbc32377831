//! A kill, as it is shown.

use super::history::Big;
use super::history::Moment;
use crate::output::ALWAYS;
use crate::output::BELOW;
use crate::output::Column;
use crate::output::MACHINE;
use crate::output::Row;
use crate::output::Rows;
use crate::output::Unit;
use crate::output::Value;
use crate::time::WallTime;

/// Who sent the signal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sender {
    /// The kernel's OOM killer.
    Kernel,
    /// A process that is known to kill for memory.
    Daemon,
    /// Whoever wrote to `cgroup.kill`.
    Cgroup,
}

impl Sender {
    /// From `enum sender` of oomkill.bpf.c.
    pub fn of(number: u32) -> Option<Self> {
        [Sender::Kernel, Sender::Daemon, Sender::Cgroup].get(number as usize).copied()
    }

    fn name(self) -> &'static str {
        match self {
            Sender::Kernel => "kernel",
            Sender::Daemon => "daemon",
            Sender::Cgroup => "cgroup.kill",
        }
    }
}

/// Why this process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It was chosen.
    Chosen,
    /// It shares the memory of one that was killed.
    Shares,
    /// Its cgroup is killed as a whole (`memory.oom.group`).
    Group,
}

impl Role {
    /// From `enum role` of oomkill.bpf.c.
    pub fn of(number: u32) -> Option<Self> {
        [Role::Chosen, Role::Shares, Role::Group].get(number as usize).copied()
    }

    fn name(self) -> &'static str {
        match self {
            Role::Chosen => "chosen",
            Role::Shares => "shares",
            Role::Group => "group",
        }
    }
}

/// What kind of limit was hit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Constraint {
    /// All memory of the machine.
    Global,
    /// The limit of a cgroup.
    Memcg,
    /// The nodes a cpuset allows.
    Cpuset,
    /// The nodes a memory policy allows (mbind(2), set_mempolicy(2)).
    Mempolicy,
}

impl Constraint {
    /// From `enum constraint` of oomkill.bpf.c; 0 is none.
    pub fn of(number: u32) -> Option<Self> {
        let all =
            [Constraint::Global, Constraint::Memcg, Constraint::Cpuset, Constraint::Mempolicy];
        all.get((number as usize).checked_sub(1)?).copied()
    }

    fn name(self) -> &'static str {
        match self {
            Constraint::Global => "global",
            Constraint::Memcg => "memcg",
            Constraint::Cpuset => "cpuset",
            Constraint::Mempolicy => "mempolicy",
        }
    }
}

/// A process of a kill.
#[derive(Clone, Debug, Default)]
pub struct Party {
    /// Thread group.
    pub pid: u32,
    /// Name of the process.
    pub comm: String,
    /// Command line.
    pub command: Option<String>,
    /// Its cgroup, in the hierarchy that has the memory controller.
    pub cgroup: String,
    /// User, as the first user namespace numbers them.
    pub uid: u32,
}

/// The victim's memory, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Memory {
    /// Resident anonymous.
    pub anon: u64,
    /// Resident file-backed.
    pub file: u64,
    /// Resident shared.
    pub shmem: u64,
    /// Swapped out.
    pub swap: u64,
    /// Page tables.
    pub page_tables: u64,
    /// Address space.
    pub vm: u64,
    /// Each of the first four may be off by this much.
    pub error: u64,
}

/// What ran out. Sizes in bytes.
#[derive(Clone, Debug)]
pub struct Limit {
    /// What kind of limit.
    pub constraint: Constraint,
    /// What it is the limit of, in words.
    pub of: &'static str,
    /// The limit; `None`: there is none.
    pub bytes: Option<u64>,
    /// What was in use.
    pub used: Option<u64>,
    /// The limit of swap beside it; v1: of memory and swap together.
    pub swap: Option<u64>,
    /// What was in use of that.
    pub swap_used: Option<u64>,
    /// The cgroup whose limit it is.
    pub cgroup: Option<String>,
    /// The nodes that were allowed, as `0-1`.
    pub nodes: Option<String>,
    /// Flags of the allocation that failed.
    pub gfp: u64,
    /// The same in words.
    pub gfp_words: String,
    /// log2 of the pages that were asked for; -1: somebody asked for the kill (SysRq).
    pub order: i64,
    /// How bad the process was that was chosen, in pages.
    pub points: Option<i64>,
}

/// A zone of memory at the moment of a kill. Sizes in bytes.
#[derive(Clone, Debug, PartialEq)]
pub struct Zone {
    /// Memory node.
    pub node: u32,
    /// Where in its node it stands.
    pub index: u32,
    /// Name.
    pub name: String,
    /// Free.
    pub free: u64,
    /// Watermarks, boost included.
    pub min: u64,
    /// See `min`.
    pub low: u64,
    /// See `min`.
    pub high: u64,
    /// The boost.
    pub boost: u64,
    /// What the allocator manages.
    pub managed: u64,
    /// What is there.
    pub present: u64,
    /// The order of the largest free block.
    pub largest: Option<u32>,
}

impl Row<10> for Zone {
    const COLUMNS: [Column; 10] = [
        Column::new("NODE", "node", Unit::Id, 4, ALWAYS, "memory node"),
        Column::new("ZONE", "zone", Unit::Text, 7, ALWAYS, "zone of the node"),
        Column::new("FREE", "free", Unit::Size, 8, ALWAYS, "free"),
        Column::new(
            "MIN",
            "min",
            Unit::Size,
            8,
            ALWAYS,
            "watermark; below it only those may take who must",
        ),
        Column::new("LOW", "low", Unit::Size, 8, ALWAYS, "watermark; below it kswapd is woken"),
        Column::new("HIGH", "high", Unit::Size, 8, ALWAYS, "watermark; above it kswapd sleeps"),
        Column::new("BOOST", "boost", Unit::Size, 8, ALWAYS, "of each watermark, for a while"),
        Column::new("MANAGED", "managed", Unit::Size, 8, ALWAYS, "what the allocator gives from"),
        Column::new("PRESENT", "present", Unit::Size, 8, ALWAYS, "memory of the zone"),
        Column::new(
            "LARGEST",
            "largest_order",
            Unit::Count,
            7,
            ALWAYS,
            "order of the largest free block",
        ),
    ];

    fn values(&self) -> [Value<'_>; 10] {
        [
            Value::Count(self.node.into()),
            Value::Text((&self.name).into()),
            Value::Bytes(self.free),
            Value::Bytes(self.min),
            Value::Bytes(self.low),
            Value::Bytes(self.high),
            Value::Bytes(self.boost),
            Value::Bytes(self.managed),
            Value::Bytes(self.present),
            Value::count(self.largest.map(u64::from)),
        ]
    }
}

/// One process that was killed.
#[derive(Clone, Debug)]
pub struct Kill {
    /// When the signal was sent.
    pub time: WallTime,
    /// Number of the OOM; `None`: none of the kernel's.
    pub number: Option<u64>,
    /// Who sent the signal.
    pub sender: Sender,
    /// Why this process.
    pub role: Role,
    /// Who was killed.
    pub victim: Party,
    /// Its parent.
    pub parent: (u32, String),
    /// What it had; `None`: it was gone already.
    pub memory: Option<Memory>,
    /// Its oom_score_adj.
    pub score_adj: i64,
    /// Who ran out of memory, or sent the signal.
    pub trigger: Party,
    /// The thread of it.
    pub thread: (u32, String),
    /// What ran out; `None`: not known with this hook.
    pub limit: Option<Limit>,
    /// Load averages over 1, 5 and 15 minutes.
    pub load: Option<[f64; 3]>,
    /// Zones that there was no room for.
    pub zones_left_out: u64,
    /// Zones of memory; of the first victim only.
    pub zones: Vec<Zone>,
    /// The moments before; of the first victim only.
    pub history: Vec<Moment>,
    /// The biggest processes at the last of them.
    pub biggest: Vec<Big>,
}

impl Row<46> for Kill {
    const COLUMNS: [Column; 46] = [
        Column::new("TIME", "time", Unit::Time, 8, ALWAYS, "when the signal was sent"),
        Column::new(
            "CONSTRAINT",
            "constraint",
            Unit::Text,
            10,
            ALWAYS,
            "which kind of limit was hit: global, memcg, cpuset, mempolicy",
        ),
        Column::new("PID", "pid", Unit::Id, 7, ALWAYS, "the victim: process (thread group)"),
        Column::new("COMM", "comm", Unit::Text, 15, ALWAYS, "its name"),
        Column::new(
            "RSS",
            "rss",
            Unit::Size,
            9,
            ALWAYS,
            "its resident memory: anon + file + shmem",
        ),
        Column::new(
            "BYPID",
            "trigger_pid",
            Unit::Id,
            7,
            ALWAYS,
            "the trigger: who ran out of memory, or sent the signal",
        ),
        Column::new("BYCOMM", "trigger_comm", Unit::Text, 15, ALWAYS, "its name"),
        Column::new("SENDER", "sender", Unit::Text, 6, BELOW, "kernel, daemon or cgroup.kill"),
        Column::new(
            "OOM",
            "oom",
            Unit::Count,
            3,
            BELOW,
            "number of the OOM since the start; its victims share it",
        ),
        Column::new(
            "ROLE",
            "role",
            Unit::Text,
            4,
            BELOW,
            "chosen; shares the memory of a victim; group (memory.oom.group)",
        ),
        Column::new("LIMIT", "limit", Unit::Size, 5, BELOW, "the limit that was hit"),
        Column::new("OF", "limit_of", Unit::Text, 2, BELOW, "what it is the limit of"),
        Column::new("IN", "limit_cgroup", Unit::Text, 2, BELOW, "the cgroup whose limit it is"),
        Column::new("USED", "limit_used", Unit::Size, 4, BELOW, "what was in use of it"),
        Column::new(
            "SWAPLIMIT",
            "swap_limit",
            Unit::Size,
            9,
            BELOW,
            "limit of swap in that cgroup; v1: of memory and swap",
        ),
        Column::new("SWAPUSED", "swap_used", Unit::Size, 8, BELOW, "what was in use of that"),
        Column::new("NODES", "nodes", Unit::Text, 5, BELOW, "memory nodes that were allowed"),
        Column::new(
            "ORDER",
            "order",
            Unit::Count,
            5,
            BELOW,
            "log2 of the pages asked for; -1: SysRq",
        ),
        Column::new("GFP", "gfp", Unit::Text, 3, BELOW, "flags of the allocation"),
        Column::new("FLAGS", "gfp_flags", Unit::Text, 5, BELOW, "the same in words"),
        Column::new("ANON", "anon", Unit::Size, 4, BELOW, "the victim's resident anonymous memory"),
        Column::new("FILE", "file", Unit::Size, 4, BELOW, "its resident file-backed memory"),
        Column::new("SHMEM", "shmem", Unit::Size, 5, BELOW, "its resident shared memory"),
        Column::new("SWAP", "swap", Unit::Size, 4, BELOW, "its memory that is swapped out"),
        Column::new("PAGETABLES", "page_tables", Unit::Size, 10, BELOW, "its page tables"),
        Column::new("VMSIZE", "vm_size", Unit::Size, 6, BELOW, "its address space (total-vm)"),
        Column::new("ADJ", "oom_score_adj", Unit::Count, 3, BELOW, "its oom_score_adj"),
        Column::new(
            "POINTS",
            "points",
            Unit::Count,
            6,
            BELOW,
            "badness of the process that was chosen, in pages",
        ),
        Column::new("UID", "uid", Unit::Id, 3, BELOW, "its user"),
        Column::new("PPID", "parent_pid", Unit::Id, 4, BELOW, "its parent"),
        Column::new("PCOMM", "parent_comm", Unit::Text, 5, BELOW, "name of its parent"),
        Column::new("CGROUP", "cgroup", Unit::Text, 6, BELOW, "its cgroup"),
        Column::new("COMMAND", "command", Unit::Text, 7, BELOW, "its command line"),
        Column::new("BYTID", "trigger_tid", Unit::Id, 5, BELOW, "the trigger's thread"),
        Column::new("BYTHREAD", "trigger_thread", Unit::Text, 8, BELOW, "name of that thread"),
        Column::new("BYUID", "trigger_uid", Unit::Id, 5, BELOW, "the trigger's user"),
        Column::new("BYCGROUP", "trigger_cgroup", Unit::Text, 8, BELOW, "the trigger's cgroup"),
        Column::new(
            "BYCOMMAND",
            "trigger_command",
            Unit::Text,
            9,
            BELOW,
            "the trigger's command line",
        ),
        Column::new("LOAD1", "load_one", Unit::Fraction, 5, BELOW, "load average over one minute"),
        Column::new("LOAD5", "load_five", Unit::Fraction, 5, BELOW, "over five"),
        Column::new("LOAD15", "load_fifteen", Unit::Fraction, 6, BELOW, "over fifteen"),
        Column::new(
            "ERROR",
            "rss_error",
            Unit::Size,
            5,
            MACHINE,
            "each resident counter may be off by this; 0: exact",
        ),
        Column::new(
            "LEFTOUT",
            "zones_left_out",
            Unit::Count,
            7,
            MACHINE,
            "zones there was no room for",
        ),
        Column::new(
            "ZONES",
            "zones",
            Unit::Rows,
            5,
            BELOW,
            "free memory of each zone against its watermarks",
        ),
        Column::new(
            "HISTORY",
            "history",
            Unit::Rows,
            7,
            BELOW,
            "the machine in the moments before",
        ),
        Column::new(
            "BIGGEST",
            "biggest",
            Unit::Rows,
            7,
            BELOW,
            "the biggest processes at the last of these moments",
        ),
    ];

    fn values(&self) -> [Value<'_>; 46] {
        fn words(text: Option<&str>) -> Value<'_> {
            text.map_or(Value::Missing, |text| Value::Text(text.into()))
        }
        let memory = |of: fn(&Memory) -> u64| Value::bytes(self.memory.as_ref().map(of));
        let limit = self.limit.as_ref();
        let size = |of: fn(&Limit) -> Option<u64>| Value::bytes(limit.and_then(of));
        let signed = |number: Option<i64>| number.map_or(Value::Missing, Value::Signed);
        let load = |i: usize| Value::real(self.load.map(|load| load[i]));
        [
            Value::Time(self.time),
            words(limit.map(|limit| limit.constraint.name())),
            Value::Count(self.victim.pid.into()),
            words(Some(&self.victim.comm)),
            memory(|m| m.anon + m.file + m.shmem),
            Value::Count(self.trigger.pid.into()),
            words(Some(&self.trigger.comm)),
            words(Some(self.sender.name())),
            Value::count(self.number),
            words(Some(self.role.name())),
            size(|limit| limit.bytes),
            words(limit.map(|limit| limit.of)),
            words(limit.and_then(|limit| limit.cgroup.as_deref())),
            size(|limit| limit.used),
            size(|limit| limit.swap),
            size(|limit| limit.swap_used),
            words(limit.and_then(|limit| limit.nodes.as_deref())),
            signed(limit.map(|limit| limit.order)),
            limit.map_or(Value::Missing, |limit| Value::Text(format!("{:#x}", limit.gfp).into())),
            words(limit.map(|limit| &*limit.gfp_words)),
            memory(|m| m.anon),
            memory(|m| m.file),
            memory(|m| m.shmem),
            memory(|m| m.swap),
            memory(|m| m.page_tables),
            memory(|m| m.vm),
            Value::Signed(self.score_adj),
            signed(limit.and_then(|limit| limit.points)),
            Value::Count(self.victim.uid.into()),
            Value::Count(self.parent.0.into()),
            words(Some(&self.parent.1)),
            words(Some(&self.victim.cgroup)),
            words(self.victim.command.as_deref()),
            Value::Count(self.thread.0.into()),
            words(Some(&self.thread.1)),
            Value::Count(self.trigger.uid.into()),
            words(Some(&self.trigger.cgroup)),
            words(self.trigger.command.as_deref()),
            load(0),
            load(1),
            load(2),
            memory(|m| m.error),
            Value::Count(self.zones_left_out),
            Value::Rows(Rows::of::<Zone, 10>(self.zones.iter())),
            Value::Rows(Rows::of::<Moment, 13>(self.history.iter())),
            Value::Rows(Rows::of::<Big, 10>(self.biggest.iter())),
        ]
    }
}

/// The bits of a node mask, as the kernel writes lists: `0-1,4`.
pub fn nodes(words: &[u64]) -> Option<String> {
    let is_set = |bit: usize| words.get(bit / 64).is_some_and(|word| word >> (bit % 64) & 1 == 1);
    let mut list = String::new();
    let mut bit = 0;
    while bit < words.len() * 64 {
        if !is_set(bit) {
            bit += 1;
            continue;
        }
        let first = bit;
        while is_set(bit) {
            bit += 1;
        }
        list.push_str(if list.is_empty() { "" } else { "," });
        list.push_str(&first.to_string());
        if bit - first > 1 {
            list.push_str(&format!("-{}", bit - 1));
        }
    }
    (!list.is_empty()).then_some(list)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oom::history;
    use crate::output::tests::golden;

    fn party(pid: u32, comm: &str) -> Party {
        Party {
            pid,
            comm: comm.into(),
            command: Some(format!("/usr/bin/{comm} --threads 4 --listen 0.0.0.0")),
            cgroup: format!("/system.slice/{comm}.service"),
            uid: 33,
        }
    }

    fn full() -> Kill {
        let zone = |node, name: &str, pages: u64| Zone {
            node,
            index: 1,
            name: name.into(),
            free: pages << 12,
            min: 1009 << 12,
            low: 1511 << 12,
            high: 2003 << 12,
            boost: 0,
            managed: 99_991 << 12,
            present: 104_729 << 12,
            largest: Some(3),
        };
        let (history, biggest) = history::tests::fixed();
        Kill {
            time: WallTime::fixed(),
            number: Some(2),
            sender: Sender::Kernel,
            role: Role::Chosen,
            victim: party(4611, "batch"),
            parent: (4000, "bash".into()),
            memory: Some(Memory {
                anon: 31_676 << 10,
                file: 4036 << 10,
                shmem: 2012 << 10,
                swap: 844 << 10,
                page_tables: 120 << 10,
                vm: 163_840 << 10,
                error: 0,
            }),
            score_adj: 500,
            trigger: party(4613, "web"),
            thread: (4615, "web-io".into()),
            limit: Some(Limit {
                constraint: Constraint::Memcg,
                of: "memory.max",
                bytes: Some(40 << 20),
                used: Some(40 << 20),
                swap: Some(0),
                swap_used: Some(0),
                cgroup: Some("/system.slice".into()),
                nodes: None,
                gfp: 0xcc0,
                gfp_words: "GFP_KERNEL".into(),
                order: 0,
                points: Some(9491),
            }),
            load: Some([0.52, 0.58, 12.0]),
            zones_left_out: 0,
            zones: vec![zone(0, "DMA32", 997), zone(1, "Normal", 50_021)],
            history,
            biggest,
        }
    }

    #[test]
    fn the_output_is_the_documented_one() {
        let group = Kill {
            role: Role::Group,
            memory: None,
            zones: vec![],
            history: vec![],
            biggest: vec![],
            load: None,
            ..full()
        };
        let mut daemon = Kill {
            sender: Sender::Daemon,
            number: None,
            limit: None,
            zones: vec![],
            history: vec![],
            biggest: vec![],
            ..full()
        };
        daemon.trigger = Party { command: None, ..party(321, "earlyoom") };
        golden::<Kill, 46>("oomkill", 0, &[full(), group, daemon]);
    }

    #[test]
    fn rows_fit_eighty_columns() {
        let width = |column: &Column| column.width.max(column.head.len()) + 1;
        let widths: usize =
            Kill::COLUMNS.iter().filter(|column| column.group == ALWAYS).map(width).sum();
        assert!(widths <= 81, "{widths}");
    }

    #[test]
    fn nodes_are_ranges_and_numbers() {
        assert_eq!(nodes(&[0b1_0011, 0]).as_deref(), Some("0-1,4"));
        assert_eq!(nodes(&[1 << 63, 1]).as_deref(), Some("63-64"));
        assert_eq!(nodes(&[u64::MAX]).as_deref(), Some("0-63"));
        assert_eq!(nodes(&[0, 0]), None);
    }

    #[test]
    fn numbers_of_the_kernel_side_have_names() {
        assert_eq!(Sender::of(2).map(Sender::name), Some("cgroup.kill"));
        assert_eq!(Role::of(1).map(Role::name), Some("shares"));
        assert_eq!(Constraint::of(4).map(Constraint::name), Some("mempolicy"));
        assert_eq!(
            (Sender::of(3), Role::of(3), Constraint::of(0), Constraint::of(5)),
            (None, None, None, None)
        );
    }
}

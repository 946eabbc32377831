//! `sysstat` (`-s`): memory of the machine.

use std::mem::MaybeUninit;
use std::process::ExitCode;

use ::procfs::Meminfo;
use clap::Args;
use libbpf_rs::MapCore;
use libbpf_rs::skel::OpenSkel as _;
use libbpf_rs::skel::Skel as _;
use libbpf_rs::skel::SkelBuilder as _;

use super::Tool;
use super::skeleton;
use crate::attach::Choice;
use crate::attach::Hook;
use crate::attach::Plan;
use crate::attach::instead;
use crate::attach::prepare;
use crate::cli::KernelArgs;
use crate::cli::LimitArgs;
use crate::cli::OutputArgs;
use crate::context::Context;
use crate::engine::Pace;
use crate::engine::Run;
use crate::engine::every;
use crate::error::Context as _;
use crate::error::Error;
use crate::error::Result;
use crate::event::read_shared;
use crate::kernel::Need;
use crate::nodes;
use crate::nodes::ZONES_PER_NODE;
use crate::nodes::entries;
use crate::nodes::lure;
use crate::nodes::run_once;
use crate::output::ALWAYS;
use crate::output::Column;
use crate::output::Group;
use crate::output::Printer;
use crate::output::Row;
use crate::output::Unit;
use crate::output::Value;
use crate::output::describe;
use crate::output::note;
use crate::procfs::ProcFs;
use crate::rates::Moving;
use crate::rates::Rates;
use crate::rights;
use crate::target::Target;
use crate::time::WallTime;
use crate::vmstat::Counter;
use crate::vmstat::Layout;
use crate::vmstat::Reading;

skeleton!("sysstat");
use skel::types::sysstat_node as RawNode;
use skel::types::sysstat_zone as RawZone;

// SAFETY: fixed-width integers without implicit padding, so every bit pattern
// is a valid value.
unsafe impl plain::Plain for RawNode {}
// SAFETY: as above; the one gap is named `pad`.
unsafe impl plain::Plain for RawZone {}

/// The reader finds its way through the nodes with type information.
const TYPES: Need = Need::Field("pglist_data", "node_zonelists");

static CHOICE: Choice = Choice {
    purpose: "to reach the kernel's memory counters",
    hooks: &[
        Hook {
            name: "fentry:get_page_from_freelist",
            programs: &["read_nodes"],
            attach: &["learn_fentry"],
            needs: &[
                Need::KernelBtf,
                Need::Func("get_page_from_freelist"),
                Need::Fentry,
                Need::TestRun,
            ],
            loses: "",
        },
        Hook {
            name: "kprobe:get_page_from_freelist",
            programs: &["read_nodes"],
            attach: &["learn_kprobe"],
            needs: &[TYPES, Need::Func("get_page_from_freelist"), Need::Kprobe, Need::TestRun],
            loses: "",
        },
        Hook {
            name: "memcg:nodeinfo",
            programs: &["read_nodes", "learn_memcg"],
            attach: &[],
            needs: &[TYPES, Need::Field("mem_cgroup", "nodeinfo"), Need::TestRun],
            loses: "",
        },
        Hook {
            name: "ksym:node_data",
            programs: &["read_nodes", "learn_ksym"],
            attach: &[],
            needs: &[TYPES, Need::Symbol("node_data"), Need::TestRun],
            loses: "",
        },
        Hook {
            name: "proc:vmstat",
            programs: &[],
            attach: &[],
            needs: &[Need::Path("/proc/vmstat")],
            loses: "the counters of a row are not read at one moment",
        },
    ],
};

/// Memory of the machine: LRU lists, dirty, slab, free
#[derive(Args, Debug)]
#[command(short_flag = 's', after_long_help = describe(Sysstat::COLUMNS))]
pub struct Sysstat {
    /// Also slab, kernel stacks, page tables, huge pages and swap cache
    #[arg(short = 'R', long)]
    all_fields: bool,
    /// One row per memory node
    #[arg(long)]
    per_node: bool,
    /// Also paging, faults, allocations, scans and steals per second, and pressure
    #[arg(long, conflicts_with = "per_node")]
    rates: bool,
    #[command(flatten)]
    limits: LimitArgs,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    kernel: KernelArgs,
}

struct Sample {
    time: WallTime,
    node: Option<u32>,
    reading: Reading,
    unaccounted: Option<u64>,
    rates: Rates,
}

impl Sample {
    fn new(time: WallTime, node: Option<u32>, reading: Reading) -> Self {
        Self { time, node, reading, unaccounted: None, rates: Rates::default() }
    }

    /// Adds what only `/proc/meminfo` knows.
    fn complete(&mut self, meminfo: &Meminfo) {
        // Before 5.12 only the swap code itself counts its cache.
        self.reading.set_if_missing(Counter::SwapCached, || Some(meminfo.swap_cached));
        let elsewhere = meminfo.per_cpu.unwrap_or(0) + meminfo.hugetlb.unwrap_or(0);
        self.unaccounted = self.reading.sum(&ACCOUNTED).map(|known| {
            // The counters are not read at one moment with MemTotal's changes.
            meminfo.mem_total.saturating_sub(known + elsewhere)
        });
    }
}

/// Counters that name each page at most once. Every other counter is a part of
/// these (dirty, mapped, shmem ...) or is not memory.
const ACCOUNTED: [Counter; 10] = [
    Counter::Free,
    Counter::ActiveAnon,
    Counter::InactiveAnon,
    Counter::ActiveFile,
    Counter::InactiveFile,
    Counter::Unevictable,
    Counter::SlabReclaimable,
    Counter::SlabUnreclaimable,
    Counter::KernelStack,
    Counter::PageTables,
];

/// Column groups.
const ALL: Group = 1;
const NODE: Group = 2;
const RATE: Group = 4;

impl Row<40> for Sample {
    const COLUMNS: [Column; 40] = [
        Column::new("TIME", "time", Unit::Time, 8, ALWAYS, "when the counters were read"),
        Column::new("NODE", "node", Unit::Id, 4, NODE, "memory node"),
        size("FREE", "free", ALWAYS, "free pages (MemFree)"),
        size("ACTIVE", "active", ALWAYS, "ANON_ACT + FILE_ACT (Active)"),
        size("INACTIVE", "inactive", ALWAYS, "ANON_INA + FILE_INA (Inactive)"),
        size("ANON_ACT", "anon_active", ALWAYS, "active anonymous list (Active(anon))"),
        size("ANON_INA", "anon_inactive", ALWAYS, "inactive anonymous list (Inactive(anon))"),
        size("FILE_ACT", "file_active", ALWAYS, "active file list (Active(file))"),
        size("FILE_INA", "file_inactive", ALWAYS, "inactive file list (Inactive(file))"),
        size("UNEVICT", "unevictable", ALWAYS, "mlocked and otherwise pinned (Unevictable)"),
        size("DIRTY", "dirty", ALWAYS, "waiting to be written back (Dirty)"),
        size("WRITEBK", "writeback", ALWAYS, "being written back (Writeback)"),
        size("ANONPAGES", "anon_pages", ALWAYS, "mapped anonymous (AnonPages)"),
        size("MAPPED", "mapped", ALWAYS, "mapped files (Mapped)"),
        size("SHMEM", "shmem", ALWAYS, "tmpfs and shared memory (Shmem)"),
        size("KRECLAIM", "kreclaimable", ALL, "reclaimable kernel memory (KReclaimable)"),
        size("SLAB", "slab", ALL, "SRECLAIM + SUNRECLAIM (Slab)"),
        size("SRECLAIM", "slab_reclaimable", ALL, "reclaimable slab (SReclaimable)"),
        size("SUNRECLAIM", "slab_unreclaimable", ALL, "unreclaimable slab (SUnreclaim)"),
        size("NFS_UNSTABLE", "nfs_unstable", ALL, "sent to an NFS server, not yet committed"),
        size("WRITEBACKTMP", "writeback_tmp", ALL, "FUSE writeback copies (WritebackTmp)"),
        size("ANONHUGE", "anon_huge", ALL, "anonymous huge pages (AnonHugePages)"),
        size("SHMEMHUGE", "shmem_huge", ALL, "huge pages of shared memory (ShmemHugePages)"),
        size("PMDMAPPED", "pmd_mapped", ALL, "of those, mapped as such (ShmemPmdMapped)"),
        size("KSTACK", "kernel_stack", ALL, "kernel stacks (KernelStack)"),
        size("PAGETABLES", "page_tables", ALL, "page tables (PageTables)"),
        size("SWAPCACHED", "swap_cached", ALL, "in memory and in swap (SwapCached)"),
        size("UNACCOUNTED", "unaccounted", ALL, "in no counter: drivers, vmalloc, per-CPU free lists"),
        rate("PGIN/s", "page_in_kib", "read from block devices, KiB"),
        rate("PGOUT/s", "page_out_kib", "written to block devices, KiB"),
        rate("FAULT/s", "faults", "page faults, minor and major"),
        rate("MAJFLT/s", "major_faults", "page faults that read from a device"),
        rate("FREE/s", "pages_freed", "pages freed"),
        rate("ALLOC/s", "pages_allocated", "pages allocated"),
        rate("SCANK/s", "pages_scanned_kswapd", "pages scanned by kswapd"),
        rate("SCAND/s", "pages_scanned_direct", "pages scanned by others than kswapd"),
        rate("STEAL/s", "pages_reclaimed", "pages reclaimed"),
        rate("SWPOUT/s", "pages_swapped_out", "pages swapped out"),
        Column::new("SOME%", "pressure_some", Unit::Percent, 6, RATE, "some task stalled (PSI)"),
        Column::new("FULL%", "pressure_full", Unit::Percent, 6, RATE, "all tasks stalled (PSI)"),
    ];

    fn values(&self) -> [Value<'_>; 40] {
        use Counter as C;
        let one = |field| Value::bytes(self.reading.get(field));
        let sum = |fields: &[Counter]| Value::bytes(self.reading.sum(fields));
        let rate = |i: usize| Value::real(self.rates.per_second[i]);
        [
            Value::Time(self.time),
            Value::count(self.node.map(u64::from)),
            one(C::Free),
            sum(&[C::ActiveAnon, C::ActiveFile]),
            sum(&[C::InactiveAnon, C::InactiveFile]),
            one(C::ActiveAnon),
            one(C::InactiveAnon),
            one(C::ActiveFile),
            one(C::InactiveFile),
            one(C::Unevictable),
            one(C::Dirty),
            one(C::Writeback),
            one(C::Anon),
            one(C::Mapped),
            one(C::Shmem),
            sum(&[C::SlabReclaimable, C::MiscReclaimable]),
            sum(&[C::SlabReclaimable, C::SlabUnreclaimable]),
            one(C::SlabReclaimable),
            one(C::SlabUnreclaimable),
            one(C::NfsUnstable),
            one(C::WritebackTemp),
            one(C::AnonHuge),
            one(C::ShmemHuge),
            one(C::ShmemPmdMapped),
            one(C::KernelStack),
            one(C::PageTables),
            one(C::SwapCached),
            Value::bytes(self.unaccounted),
            rate(0),
            rate(1),
            rate(2),
            rate(3),
            rate(4),
            rate(5),
            rate(6),
            rate(7),
            rate(8),
            rate(9),
            Value::real(self.rates.some),
            Value::real(self.rates.full),
        ]
    }
}

const fn size(head: &'static str, key: &'static str, group: Group, help: &'static str) -> Column {
    Column::new(head, key, Unit::Size, 8, group, help)
}

const fn rate(head: &'static str, key: &'static str, help: &'static str) -> Column {
    Column::new(head, key, Unit::PerSecond, 8, RATE, help)
}

impl Tool for Sysstat {
    const CHOICE: Option<&'static Choice> = Some(&CHOICE);
    const COLUMNS: &'static [Column] = &<Sample as Row<40>>::COLUMNS;

    fn run(self) -> Result<ExitCode> {
        let limits = (&self.limits).into();
        let ctx = Context::new("sysstat", &self.kernel, limits, |_| Ok(Target::default()))?;
        let mut plan = prepare(&ctx, &CHOICE)?;
        let layout = Layout::resolve(&ctx.kernel, &ctx.procfs);
        while plan.hook.needs_rights() {
            if self.run_on_bpf(&ctx, &plan, &layout)? {
                return Ok(ExitCode::SUCCESS);
            }
            // Memory cgroups or kprobes can be switched off, which only shows
            // when nothing comes of them.
            let (name, why) = (plan.hook.name, "led to no memory node");
            plan = instead(&ctx.kernel, &CHOICE, ctx.hook.is_some(), plan, why)?;
            note(&format!("sysstat: {name} {why}; using {}", plan.hook.name));
        }
        self.report(&ctx, &plan, || from_proc(&ctx.procfs, &layout, self.per_node))?;
        Ok(ExitCode::SUCCESS)
    }
}

/// The nodes' counters, by node number.
type Nodes = Vec<(u32, Reading)>;

impl Sysstat {
    /// Whether it ran: `false` if the hook led to no memory node.
    fn run_on_bpf(&self, ctx: &Context, plan: &Plan, layout: &Layout) -> Result<bool> {
        let mut storage = MaybeUninit::uninit();
        let builder = skel::SysstatSkelBuilder { obj_builder: ctx.kernel.object_builder()? };
        let mut open = builder.open(&mut storage)?;
        plan.select(open.open_object_mut());
        let possible = nodes::possible(&ctx.procfs);
        open.maps.nodes.set_max_entries(possible)?;
        open.maps.zones.set_max_entries(possible * ZONES_PER_NODE)?;
        if let Some(constants) = open.maps.rodata_data.as_deref_mut() {
            constants.zone_slots = possible * ZONES_PER_NODE;
            if plan.hook.programs.contains(&"learn_ksym") {
                constants.node_data_addr = nodes::table(&ctx.kernel)?;
            }
        }
        let mut skel = open
            .load()
            .context(|| format!("loading the programs of {}", plan.hook.name))
            .map_err(rights::explain_refusal)?;

        let shared = skel.maps.bss_data.take().ok_or_else(|| Error::failure("no data section"))?;
        match plan.hook.name {
            "memcg:nodeinfo" => run_once(&skel.progs.learn_memcg)?,
            "ksym:node_data" => run_once(&skel.progs.learn_ksym)?,
            _ => {
                // Detached again as soon as one allocation has passed.
                let _links = plan.attach(skel.object())?;
                lure(|| read_shared(&shared.first_node) != 0);
            }
        }
        if read_shared(&shared.first_node) == 0 {
            return Ok(false);
        }
        self.report(ctx, plan, || {
            run_once(&skel.progs.read_nodes)?;
            let round = read_shared(&shared.rounds);
            from_maps(layout, round, &skel.maps.nodes, &skel.maps.zones)
        })?;
        Ok(true)
    }

    fn report(
        &self,
        ctx: &Context,
        plan: &Plan,
        read: impl Fn() -> Result<Nodes>,
    ) -> Result<()> {
        let mut groups = 0;
        for (on, group) in [(self.all_fields, ALL), (self.per_node, NODE), (self.rates, RATE)] {
            groups |= if on { group } else { 0 };
        }
        let printer = Printer::stdout::<Sample, 40>((&self.output).into(), groups)?;
        let pace = Pace { at_start: true, at_end: false, by_row: false };
        let run = Run { hook: plan.hook.name, notes: plan.notes(), pace, lost: &|| 0 };
        let mut before: Option<Moving> = None;
        every(ctx, run, printer, |printer| {
            let now = if self.rates { Some(Moving::read(&ctx.procfs)?) } else { None };
            // Rates are for the time between rows.
            let time = now.as_ref().map_or_else(WallTime::now, Moving::time);
            let nodes = read()?;
            if self.per_node {
                for (node, reading) in nodes {
                    printer.row(&Sample::new(time, Some(node), reading))?;
                }
                return Ok(());
            }
            let total = Reading::total(nodes.iter().map(|(_, reading)| reading));
            let mut sample = Sample::new(time, None, total);
            if self.all_fields {
                sample.complete(&ctx.procfs.meminfo()?);
            }
            if let Some(now) = now {
                if let Some(before) = &before {
                    sample.rates = now.since(before);
                }
                before = Some(now);
            }
            printer.row(&sample)
        })
    }
}

fn from_proc(procfs: &ProcFs, layout: &Layout, per_node: bool) -> Result<Nodes> {
    if !per_node {
        return Ok(vec![(0, layout.from_counters(&procfs.vmstat()?))]);
    }
    procfs
        .nodes("online")
        .into_iter()
        .map(|nid| Ok((nid, layout.from_counters(&procfs.node_vmstat(nid)?))))
        .collect()
}

fn from_maps(
    layout: &Layout,
    round: u64,
    nodes: &impl MapCore,
    zones: &impl MapCore,
) -> Result<Nodes> {
    let zones: Vec<RawZone> = entries(zones)?;
    let nodes: Vec<RawNode> = entries(nodes)?;
    let fresh = (0u32..).zip(&nodes).filter(|(_, node)| node.round == round);
    Ok(fresh
        .map(|(nid, node)| {
            let mut sum = RawZone::default().stat;
            for zone in zones.iter().filter(|zone| zone.round == round && zone.nid == nid) {
                for (to, from) in sum.iter_mut().zip(zone.stat) {
                    *to += from;
                }
            }
            (nid, layout.from_arrays(&node.stat, &sum))
        })
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attach::plan;
    use crate::kernel::KernelFacts;
    use crate::output::tests::golden;
    use crate::procfs::Counters;

    #[test]
    fn the_output_is_the_documented_one() {
        let facts = KernelFacts::fake(&[]);
        let layout = Layout::resolve(&facts, &ProcFs::new("/nonexistent"));
        let counters = Counters::from([
            ("nr_free_pages".into(), 7919),
            ("nr_active_anon".into(), 1009),
            ("nr_active_file".into(), 503),
            ("nr_kernel_stack".into(), 2864),
        ]);
        let mut sample = Sample::new(WallTime::fixed(), None, layout.from_counters(&counters));
        sample.unaccounted = Some(97 << 20);
        sample.rates.per_second[2] = Some(1511.0);
        sample.rates.some = Some(0.25);
        golden::<Sample, 40>("sysstat", ALL | RATE, &[sample]);
    }

    #[test]
    fn the_hook_it_is_named_for_comes_first() {
        let function = [
            TYPES,
            Need::KernelBtf,
            Need::Func("get_page_from_freelist"),
            Need::Fentry,
            Need::Kprobe,
            Need::TestRun,
        ];
        let memcg = [TYPES, Need::Field("mem_cgroup", "nodeinfo"), Need::TestRun];
        let chosen = |has: &[Need]| plan(&KernelFacts::fake(has), &CHOICE, None).unwrap().hook.name;
        assert_eq!(chosen(&function), "fentry:get_page_from_freelist");
        let refused: Vec<Need> =
            function.into_iter().filter(|need| *need != Need::Fentry).collect();
        assert_eq!(chosen(&refused), "kprobe:get_page_from_freelist");
        assert_eq!(chosen(&memcg), "memcg:nodeinfo");
        assert_eq!(chosen(&[TYPES, Need::Symbol("node_data"), Need::TestRun]), "ksym:node_data");
        let untyped = [Need::Symbol("node_data"), Need::TestRun, Need::Path("/proc/vmstat")];
        assert_eq!(chosen(&untyped), "proc:vmstat");
        assert_eq!(chosen(&[Need::Path("/proc/vmstat")]), "proc:vmstat");
    }
}

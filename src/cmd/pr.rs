//! `pr` (`-p`): progress of page reclaim.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::mem::MaybeUninit;
use std::process::ExitCode;
use std::rc::Rc;

use clap::Args;
use clap::ValueEnum;
use libbpf_rs::Link;
use libbpf_rs::MapCore as _;
use libbpf_rs::skel::OpenSkel as _;
use libbpf_rs::skel::Skel as _;
use libbpf_rs::skel::SkelBuilder as _;

use super::Tool;
use super::skeleton;
use crate::attach::Choice;
use crate::attach::Extras;
use crate::attach::Hook;
use crate::attach::Plan;
use crate::attach::prepare;
use crate::batch;
use crate::cgroups::Cgroups;
use crate::cli::FormatArgs;
use crate::cli::KernelArgs;
use crate::cli::LimitArgs;
use crate::cli::RingArgs;
use crate::cli::TargetArgs;
use crate::context::Context;
use crate::departed::Departed;
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
use crate::kernel::KernelFacts;
use crate::kernel::Need;
use crate::output::ALWAYS;
use crate::output::Column;
use crate::output::Group;
use crate::output::Printer;
use crate::output::Row;
use crate::output::Unit;
use crate::output::Value;
use crate::output::describe;
use crate::procfs::ProcFs;
use crate::rights;
use crate::set_target;
use crate::skipped;
use crate::target;
use crate::time::WallTime;
use crate::time::monotonic_ns;
use crate::time::wall_time;

skeleton!("pr");
use skel::types::pr_event as RawCall;
use skel::types::pr_key as RawKey;
use skel::types::pr_sums as RawSums;

// SAFETY: integers and byte arrays without implicit padding (the sizes are
// asserted in pr.bpf.c), so every bit pattern is a valid value.
unsafe impl plain::Plain for RawCall {}
// SAFETY: as above.
unsafe impl plain::Plain for RawKey {}
// SAFETY: as above.
unsafe impl plain::Plain for RawSums {}

/// Priorities a reclaim can have (`DEF_PRIORITY`, include/linux/mmzone.h); what
/// is above is none.
const HIGHEST_PRIORITY: u32 = 12;

/// `NO_NODE` of pr.bpf.c.
const NO_NODE: u32 = u32::MAX;

/// The first hook; its function takes five arguments or, since a cgroup is one, six.
const FOLIOS: &str = "fexit:shrink_folio_list";

/// The hook without functions.
const TRACEPOINT: &str = "tp:mm_vmscan_lru_shrink_inactive";

/// Where lists are by generation, this is what takes pages off them.
const EVICT: Need = Need::Func("evict_folios");

/// Since the tracepoints tell of lists by generation, they do not tell how a scan
/// isolates. Both came with 6.7 (8c2214fc9a47 "mm: multi-gen LRU: reuse some legacy
/// trace events", 3dfbb555c98a "mm, vmscan: remove ISOLATE_UNMAPPED").
const OLD_ISOLATE: Need = Need::Field("trace_event_raw_mm_vmscan_lru_isolate", "isolate_mode");

/// Events that depend on how the kernel was built, or came later (reclaim_pages).
const EVENTS: [(&str, Need); 7] = [
    ("tp_pages", Need::Tracepoint("vmscan/mm_vmscan_reclaim_pages")),
    ("tp_memcg", Need::Tracepoint("vmscan/mm_vmscan_memcg_reclaim_begin")),
    ("tp_memcg_end", Need::Tracepoint("vmscan/mm_vmscan_memcg_reclaim_end")),
    ("tp_soft", Need::Tracepoint("vmscan/mm_vmscan_memcg_softlimit_reclaim_begin")),
    ("tp_soft_end", Need::Tracepoint("vmscan/mm_vmscan_memcg_softlimit_reclaim_end")),
    ("tp_node", Need::Tracepoint("vmscan/mm_vmscan_node_reclaim_begin")),
    ("tp_node_end", Need::Tracepoint("vmscan/mm_vmscan_node_reclaim_end")),
];

static CHOICE: Choice = Choice {
    purpose: "to see page reclaim",
    hooks: &[
        Hook {
            name: FOLIOS,
            programs: &[],
            attach: &["on_scan_folios", "on_scan", "on_folios_begin"],
            needs: &[
                Need::KernelBtf,
                Need::ReadKernel,
                Need::Func("shrink_folio_list"),
                Need::Func("isolate_lru_folios"),
                Need::Params("isolate_lru_folios", 6),
                Need::Tracepoint("vmscan/mm_vmscan_lru_isolate"),
                Need::Fentry,
            ],
            loses: "",
        },
        Hook {
            name: "fexit:shrink_page_list",
            programs: &[],
            attach: &["on_pages_done", "on_scan_pages", "on_scan", "on_pages_begin"],
            needs: &[
                Need::KernelBtf,
                Need::ReadKernel,
                Need::Func("shrink_page_list"),
                Need::Params("shrink_page_list", 5),
                Need::Func("isolate_lru_pages"),
                Need::Params("isolate_lru_pages", 6),
                Need::Tracepoint("vmscan/mm_vmscan_lru_isolate"),
                Need::Fentry,
            ],
            loses: "",
        },
        Hook {
            name: "kprobe:shrink_folio_list",
            programs: &[],
            attach: &["kr_folios", "k_folios", "kr_scan_folios", "k_scan_folios", "on_scan"],
            needs: &[
                Need::Field("scan_control", "nr_scanned"),
                Need::ReadKernel,
                Need::Func("shrink_folio_list"),
                Need::Func("isolate_lru_folios"),
                Need::Tracepoint("vmscan/mm_vmscan_lru_isolate"),
                Need::Kprobe,
            ],
            loses: "",
        },
        Hook {
            name: "kprobe:shrink_page_list",
            programs: &[],
            attach: &["kr_pages", "k_pages", "kr_scan_pages", "k_scan_pages", "on_scan"],
            needs: &[
                Need::Field("scan_control", "nr_scanned"),
                Need::ReadKernel,
                Need::Func("shrink_page_list"),
                Need::Func("isolate_lru_pages"),
                Need::Tracepoint("vmscan/mm_vmscan_lru_isolate"),
                Need::Kprobe,
            ],
            loses: "",
        },
        Hook {
            name: TRACEPOINT,
            programs: &[],
            attach: &["tp_isolate", "tp_inactive", "tp_direct", "tp_direct_end"],
            needs: &[
                Need::Field("trace_event_raw_mm_vmscan_lru_shrink_inactive", "nr_reclaimed"),
                Need::ReadKernel,
                Need::Tracepoint("vmscan/mm_vmscan_lru_isolate"),
                Need::Tracepoint("vmscan/mm_vmscan_lru_shrink_inactive"),
                Need::Tracepoint("vmscan/mm_vmscan_direct_reclaim_begin"),
            ],
            loses: "how much a reclaim wants, its cgroup and unqueued dirty pages are not known; \
                    memory.reclaim and changes of a limit are told as memcg",
        },
    ],
};

/// Progress of page reclaim
///
/// Who takes memory back, kswapd or processes that had to wait for it, how many
/// pages that looked at and how many it got, and what was in the way.
#[derive(Args, Debug)]
#[command(short_flag = 'p', after_long_help = describe(Pr::COLUMNS))]
pub struct Pr {
    /// A row for each call of the kernel's function that shrinks a list, instead
    /// of sums over an interval; -n counts rows
    #[arg(long, conflicts_with_all = ["top", "by"])]
    events: bool,
    /// What a row adds up
    #[arg(long, value_enum, default_value = "process")]
    by: By,
    /// At most this many rows a report, those that scanned most
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    top: Option<u32>,
    /// Rows there is room for
    #[arg(long, value_name = "N", default_value_t = 8192)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    max_entries: u32,
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

/// What a row adds up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum By {
    /// What a process reclaims, of each sort, for each cgroup and on each node.
    Process,
    /// What all processes do together.
    Who,
}

/// Columns of sums.
const SUMS: Group = 1;
/// Columns of processes.
const PROCESS: Group = 2;

/// Who reclaims; the numbers are those of pr.bpf.c.
fn who(number: u32) -> &'static str {
    match number {
        1 => "kswapd",
        2 => "direct",
        3 => "memcg",
        4 => "proactive",
        5 => "khugepaged",
        6 => "pageout",
        _ => "other",
    }
}

/// One call, or sums over an interval. In pages unless said otherwise.
#[derive(Clone, Debug)]
struct Reclaim {
    time: WallTime,
    who: &'static str,
    process: Option<(u32, Rc<str>)>,
    cgroup: Option<String>,
    node: Option<u32>,
    priority: Option<u32>,
    amounts: Amounts,
    /// Whether the hook knows what a reclaim wants, and unqueued dirty pages.
    whole: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Amounts {
    calls: u64,
    wanted: u64,
    /// Calls and scans, each of which adds to `wanted`.
    asked: u64,
    scanned: u64,
    reclaimed: u64,
    dirty: u64,
    unqueued: u64,
    congested: u64,
    writeback: u64,
    immediate: u64,
}

impl Row<17> for Reclaim {
    const COLUMNS: [Column; 17] = [
        Column::new("TIME", "time", Unit::Time, 8, ALWAYS, "when it was counted up to; of a call, when it returned"),
        Column::new("WHO", "who", Unit::Text, 10, ALWAYS, "kswapd, direct, memcg, proactive, khugepaged, pageout"),
        Column::new("PID", "pid", Unit::Id, 7, PROCESS, "process (thread group) that reclaims"),
        Column::new("COMM", "comm", Unit::Text, 15, PROCESS, "its name"),
        Column::new("CGROUP", "cgroup", Unit::Text, 16, ALWAYS, "whose limit, or memory.reclaim, is the cause"),
        Column::new("NODE", "node", Unit::Id, 4, ALWAYS, "memory node"),
        Column::new("PRIO", "priority", Unit::Count, 4, ALWAYS, "priority, 12 to 0: the lower, the more urgent; of sums the lowest"),
        Column::new("CALLS", "calls", Unit::Count, 6, SUMS, "lists that were shrunk"),
        Column::new("RECLAIM", "wanted", Unit::Count, 7, ALWAYS, "pages a reclaim wants; of sums the average"),
        Column::new("SCANNED", "scanned", Unit::Count, 8, ALWAYS, "pages it looked at (pgscan)"),
        Column::new("RECLAIMED", "reclaimed", Unit::Count, 9, ALWAYS, "pages it got (pgsteal)"),
        Column::new("EFF%", "efficiency", Unit::Percent, 6, ALWAYS, "RECLAIMED of SCANNED"),
        Column::new("DIRTY", "dirty", Unit::Count, 7, ALWAYS, "found dirty"),
        Column::new("UNQUEUED", "unqueued", Unit::Count, 8, ALWAYS, "of those, not yet given to a device"),
        Column::new("CONGESTED", "congested", Unit::Count, 9, ALWAYS, "in writeback a second time, or dirty on a device that cannot keep up"),
        Column::new("WRITEBACK", "writeback", Unit::Count, 9, ALWAYS, "found in writeback"),
        Column::new("IMMEDIATE", "immediate", Unit::Count, 9, ALWAYS, "in writeback a second time, met by a kswapd that found little else: it pauses"),
    ];

    fn values(&self) -> [Value<'_>; 17] {
        let n = self.amounts;
        let comm = self.process.as_ref().map(|(_, comm)| &**comm);
        let words = |words: Option<&str>| words.map_or(Value::Missing, |w| Value::Text(w.to_owned().into()));
        // A scan that found nothing to hand over is no call.
        let of_calls = |count| Value::count((n.calls > 0).then_some(count));
        [
            Value::Time(self.time),
            Value::Text(self.who.into()),
            Value::count(self.process.as_ref().map(|(tgid, _)| u64::from(*tgid))),
            words(comm),
            words(self.cgroup.as_deref()),
            Value::count(self.node.map(u64::from)),
            Value::count(self.priority.map(u64::from)),
            Value::Count(n.calls),
            Value::count((self.whole && n.asked > 0).then(|| n.wanted / n.asked)),
            Value::Count(n.scanned),
            Value::Count(n.reclaimed),
            Value::real((n.scanned > 0).then(|| 100.0 * n.reclaimed as f64 / n.scanned as f64)),
            of_calls(n.dirty),
            Value::count((self.whole && n.calls > 0).then_some(n.unqueued)),
            of_calls(n.congested),
            of_calls(n.writeback),
            of_calls(n.immediate),
        ]
    }
}

impl Tool for Pr {
    const CHOICE: Option<&'static Choice> = Some(&CHOICE);
    const COLUMNS: &'static [Column] = &<Reclaim as Row<17>>::COLUMNS;

    fn run(self) -> Result<ExitCode> {
        let limits = (&self.limits).into();
        let ctx = Context::new("pr", &self.kernel, limits, |procfs| self.targets.resolve(procfs))?;
        let plan = prepare(&ctx, &CHOICE)?;
        let on_functions = plan.hook.name != TRACEPOINT;
        if !on_functions {
            generations_are_told(&ctx.kernel, &ctx.procfs)?;
        }

        let mut storage = MaybeUninit::uninit();
        let builder = skel::PrSkelBuilder { obj_builder: ctx.kernel.object_builder()? };
        let mut open = builder.open(&mut storage)?;
        plan.select(open.open_object_mut());
        let extras = extras(&plan, &ctx.kernel);
        if plan.hook.name == FOLIOS && !extras.has("on_five_done") && !extras.has("on_six_done") {
            return Err(Error::kernel(format!(
                "{FOLIOS}: the function has other arguments here; use another --hook"
            )));
        }
        extras.select(open.open_object_mut());
        open.maps.sums.set_max_entries(self.max_entries)?;
        open.maps.events.set_max_entries(self.ring.bytes())?;
        set_target!(open, &ctx.target);
        if let Some(constants) = open.maps.rodata_data.as_deref_mut() {
            constants.ring_half_bytes = u64::from(self.ring.bytes()) / 2;
            constants.every_call = self.events.into();
            constants.by_process = (self.by == By::Process).into();
            constants.sees_evict = (extras.has("on_evict_begin") || extras.has("k_evict")).into();
            if let [node] = ctx.procfs.nodes("online")[..] {
                constants.only_node = node;
            }
        }
        if let Some(data) = open.maps.data_data.as_deref_mut() {
            data.by_generation = by_generation(&ctx.procfs).into();
        }
        let mut skel = open
            .load()
            .context(|| format!("loading the programs of {}", plan.hook.name))
            .map_err(rights::explain_refusal)?;
        target::fill_set(&skel.maps.target_set, &ctx.target)?;
        let ring = Ring::new(&skel.maps.events)?;
        let shared = skel.maps.bss_data.take().ok_or_else(|| Error::failure("no data section"))?;
        let mode = skel.maps.data_data.take().ok_or_else(|| Error::failure("no data section"))?;
        let mut links: Vec<Link> = extras.attach(skel.object())?;
        links.extend(plan.attach(skel.object())?);

        let missed = || -> u64 { skel.object().progs_mut().map(|it| skipped::runs(&it)).sum() };
        let lost = || read_shared(&shared.lost_events) + missed();
        let pace = Pace { at_start: false, at_end: true, by_row: self.events };
        let run = Run { hook: plan.hook.name, notes: plan.notes(), pace, lost: &lost };
        let groups = match (self.events, self.by) {
            (true, _) => PROCESS,
            (false, By::Process) => SUMS | PROCESS,
            (false, By::Who) => SUMS,
        };
        let printer = Printer::stdout::<Reclaim, 17>((&self.output).into(), groups)?;
        let mut reporter = Reporter {
            cgroups: Cgroups::new(&ctx.procfs),
            whole: on_functions,
            before: HashMap::new(),
            departed: Departed::new(ctx.procfs.in_first_pid_namespace()),
        };
        stream::<RawCall>(&ctx, run, &ring, printer, |step, printer| match step {
            Step::Event(raw) => printer.row(&reporter.call(&raw)),
            Step::Report => {
                mode.by_generation = by_generation(&ctx.procfs).into();
                if self.events {
                    return Ok(());
                }
                reporter.report(&self, &ctx, &skel.maps.sums, printer)
            }
            Step::End => Ok(()),
        })?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Whether lists are by generation (MGLRU): bit 0 of
/// `/sys/kernel/mm/lru_gen/enabled`; `false` where the kernel has none.
fn by_generation(procfs: &ProcFs) -> bool {
    let text = std::fs::read_to_string(procfs.file("sys/kernel/mm/lru_gen/enabled"));
    let number = text.ok().and_then(|text| {
        u32::from_str_radix(text.trim().trim_start_matches("0x"), 16).ok()
    });
    number.is_some_and(|number| number & 1 == 1)
}

/// Before 6.7 the tracepoints are silent where lists are by generation.
fn generations_are_told(facts: &KernelFacts, procfs: &ProcFs) -> Result<()> {
    if facts.has(OLD_ISOLATE) && by_generation(procfs) {
        return Err(Error::kernel(format!(
            "{TRACEPOINT} says nothing on this kernel while its lists are by generation \
             (/sys/kernel/mm/lru_gen/enabled): use another --hook"
        )));
    }
    Ok(())
}

/// Programs of a hook for what only some kernels have.
fn extras(plan: &Plan, facts: &KernelFacts) -> Extras {
    let candidates: &[(&str, Need)] = match plan.hook.name.split(':').next() {
        Some("fexit") if plan.hook.name == FOLIOS => &[
            ("on_evict_begin", EVICT),
            ("on_evict_done", EVICT),
            ("on_five_done", Need::Params("shrink_folio_list", 5)),
            ("on_six_done", Need::Params("shrink_folio_list", 6)),
        ],
        Some("fexit") => &[("on_evict_begin", EVICT), ("on_evict_done", EVICT)],
        Some("kprobe") => &[("k_evict", EVICT), ("kr_evict", EVICT)],
        _ => &EVENTS,
    };
    Extras::found(facts, candidates)
}

/// A key, as one that can be compared.
type Key = (u64, u32, u32, u32);

fn key(raw: &RawKey) -> Key {
    (raw.cgroup, raw.tgid, raw.nid, raw.who)
}

/// What was counted up to the last report.
struct Reporter {
    cgroups: Cgroups,
    whole: bool,
    before: HashMap<Key, RawSums>,
    departed: Departed<u32>,
}

impl Reporter {
    fn call(&mut self, raw: &RawCall) -> Reclaim {
        let shrinks = raw.calls > 0;
        Reclaim {
            time: wall_time(raw.time_ns),
            who: who(raw.who),
            process: Some((raw.tgid, text(&raw.comm).into())),
            cgroup: self.cgroups.shown(raw.cgroup),
            node: (raw.nid != NO_NODE).then_some(raw.nid),
            priority: (raw.priority <= HIGHEST_PRIORITY).then_some(raw.priority),
            amounts: Amounts {
                calls: shrinks.into(),
                wanted: raw.wanted,
                asked: u64::from(raw.wanted > 0),
                scanned: raw.scanned,
                reclaimed: raw.reclaimed,
                dirty: raw.dirty,
                unqueued: raw.unqueued,
                congested: raw.congested,
                writeback: raw.writeback,
                immediate: raw.immediate,
            },
            whole: self.whole,
        }
    }

    fn report(
        &mut self,
        options: &Pr,
        ctx: &Context,
        sums: &libbpf_rs::MapMut<'_>,
        printer: &mut Printer,
    ) -> Result<()> {
        let time = wall_time(monotonic_ns());
        let mut rows: Vec<Reclaim> = Vec::new();
        let mut idle: Vec<RawKey> = Vec::new();
        batch::for_each(sums, |raw: RawKey, now: RawSums| {
            let before = self.before.insert(key(&raw), now).unwrap_or_default();
            let amounts = since(&now, &before);
            if amounts == Amounts::default() {
                idle.push(raw);
                return;
            }
            let process = (options.by == By::Process).then(|| (raw.tgid, text(&now.comm).into()));
            rows.push(Reclaim {
                time,
                who: who(raw.who),
                process,
                cgroup: self.cgroups.shown(raw.cgroup),
                node: (raw.nid != NO_NODE).then_some(raw.nid),
                priority: lowest(&now, &before),
                amounts,
                whole: self.whole,
            });
        })?;
        rows.sort_by_key(|row| (Reverse(row.amounts.scanned), row.who, row.node));
        let rest = rows.split_off(options.top.map_or(usize::MAX, |n| n as usize).min(rows.len()));
        rows.iter().try_for_each(|row| printer.row(row))?;
        if !rest.is_empty() {
            let scanned: u64 = rest.iter().map(|row| row.amounts.scanned).sum();
            printer.remark(&format!("{} more with {scanned} pages scanned (--top)", rest.len()))?;
        }
        // All processes together (0) have no end.
        let lives = |tgid: u32| {
            tgid == 0 || tgid.try_into().is_ok_and(|pid| ctx.procfs.task(pid).is_some())
        };
        let gone = self.departed.after_report(idle.iter().map(|raw| raw.tgid), lives);
        for raw in idle.into_iter().filter(|raw| gone.contains(&raw.tgid)) {
            // SAFETY: a value without padding, as its size says (pr.bpf.c).
            let bytes = unsafe { plain::as_bytes(&raw) };
            sums.delete(bytes)?;
            self.before.remove(&key(&raw));
        }
        Ok(())
    }
}

fn since(now: &RawSums, before: &RawSums) -> Amounts {
    let asked = |sums: &RawSums| -> u64 { sums.priorities.iter().sum() };
    Amounts {
        calls: now.calls.saturating_sub(before.calls),
        wanted: now.wanted.saturating_sub(before.wanted),
        asked: asked(now).saturating_sub(asked(before)),
        scanned: now.scanned.saturating_sub(before.scanned),
        reclaimed: now.reclaimed.saturating_sub(before.reclaimed),
        dirty: now.dirty.saturating_sub(before.dirty),
        unqueued: now.unqueued.saturating_sub(before.unqueued),
        congested: now.congested.saturating_sub(before.congested),
        writeback: now.writeback.saturating_sub(before.writeback),
        immediate: now.immediate.saturating_sub(before.immediate),
    }
}

/// The most urgent priority of an interval; `None`: none is known.
fn lowest(now: &RawSums, before: &RawSums) -> Option<u32> {
    (0..=HIGHEST_PRIORITY)
        .find(|&priority| now.priorities[priority as usize] > before.priorities[priority as usize])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attach::plan;
    use crate::output::tests::golden;

    #[test]
    fn the_output_is_the_documented_one() {
        let amounts = Amounts {
            calls: 23,
            wanted: 23 * 32,
            asked: 23,
            scanned: 7919,
            reclaimed: 1009,
            dirty: 503,
            unqueued: 17,
            congested: 0,
            writeback: 101,
            immediate: 11,
        };
        let whole = Reclaim {
            time: WallTime::fixed(),
            who: who(3),
            process: Some((4711, "x".into())),
            cgroup: Some("/a/b".into()),
            node: Some(0),
            priority: Some(9),
            amounts,
            whole: true,
        };
        let coarse = Reclaim { who: who(1), cgroup: None, whole: false, ..whole.clone() };
        let fruitless = Reclaim {
            amounts: Amounts { wanted: 32, asked: 1, scanned: 31, ..Amounts::default() },
            priority: None,
            ..whole.clone()
        };
        golden::<Reclaim, 17>("pr", SUMS | PROCESS, &[whole, coarse, fruitless]);
    }

    #[test]
    fn the_priority_of_an_interval_is_the_most_urgent_one_in_it() {
        let mut before = RawSums::default();
        before.priorities[3] = 5;
        before.priorities[15] = 1;
        let mut now = before;
        assert_eq!(lowest(&now, &before), None);
        now.priorities[15] = 2;
        assert_eq!(lowest(&now, &before), None);
        now.priorities[12] = 1;
        now.priorities[10] = 1;
        assert_eq!(lowest(&now, &before), Some(10));
    }

    #[test]
    fn the_function_comes_first() {
        let every: Vec<Need> =
            CHOICE.hooks.iter().flat_map(|hook| hook.needs.iter().copied()).collect();
        let chosen = |lacks: &[Need]| {
            let has: Vec<Need> =
                every.iter().copied().filter(|need| !lacks.contains(need)).collect();
            plan(&KernelFacts::fake(&has), &CHOICE, None).unwrap().hook.name
        };
        let folios = Need::Func("shrink_folio_list");
        assert_eq!(chosen(&[]), "fexit:shrink_folio_list");
        assert_eq!(chosen(&[folios]), "fexit:shrink_page_list");
        assert_eq!(chosen(&[Need::Fentry]), "kprobe:shrink_folio_list");
        assert_eq!(chosen(&[Need::Fentry, folios]), "kprobe:shrink_page_list");
        assert_eq!(chosen(&[Need::Fentry, Need::Kprobe]), TRACEPOINT);
    }

    #[test]
    fn old_tracepoints_are_refused_only_where_lists_are_by_generation() {
        let root = std::env::temp_dir().join(format!("pr-{}", std::process::id()));
        let folder = root.join("sys/kernel/mm/lru_gen");
        std::fs::create_dir_all(&folder).unwrap();
        let procfs = ProcFs::new(&root);
        let (old, new) = (KernelFacts::fake(&[OLD_ISOLATE]), KernelFacts::fake(&[]));
        assert!(!by_generation(&procfs));
        for (text, on) in [("0x0000\n", false), ("0x0007\n", true), ("0x0006\n", false)] {
            std::fs::write(folder.join("enabled"), text).unwrap();
            assert_eq!(by_generation(&procfs), on);
            assert_eq!(generations_are_told(&old, &procfs).is_err(), on);
            assert!(generations_are_told(&new, &procfs).is_ok());
        }
        std::fs::remove_dir_all(root).unwrap();
    }
}

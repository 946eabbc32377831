//! `drsnoop`: threads stalled for memory: reclaim they did themselves, compaction,
//! and the sleep that memory.high prescribes.

use std::borrow::Cow;
use std::collections::HashMap;
use std::mem::MaybeUninit;
use std::process::ExitCode;
use std::rc::Rc;
use std::time::Duration;

use clap::Args;
use libbpf_rs::Link;
use libbpf_rs::MapCore as _;
use libbpf_rs::MapFlags;
use libbpf_rs::Object;
use libbpf_rs::OpenObject;
use libbpf_rs::skel::OpenSkel as _;
use libbpf_rs::skel::Skel as _;
use libbpf_rs::skel::SkelBuilder as _;

use super::Tool;
use super::skeleton;
use crate::attach::Choice;
use crate::attach::Hook;
use crate::attach::Plan;
use crate::attach::prepare;
use crate::cgroups::Cgroups;
use crate::cli::KernelArgs;
use crate::cli::LimitArgs;
use crate::cli::OutputArgs;
use crate::cli::RingArgs;
use crate::cli::TargetArgs;
use crate::cli::span;
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
use crate::faults::Faulter;
use crate::faults::stacks::Names;
use crate::frame::Frame;
use crate::kernel::KernelFacts;
use crate::kernel::Need;
use crate::output::ALWAYS;
use crate::output::Column;
use crate::output::Printer;
use crate::output::Row;
use crate::output::describe;
use crate::rates::Moving;
use crate::rights;
use crate::set_flights;
use crate::set_target;
use crate::stalls::Kind;
use crate::stalls::STACKS;
use crate::stalls::Stall;
use crate::stalls::reason;
use crate::stalls::spread::BUCKETS;
use crate::stalls::spread::Spread;
use crate::stalls::spread::Total;
use crate::symbols::Symbols;
use crate::syscalls;
use crate::target;
use crate::time::wall_time;
use crate::units::pages_to_bytes;

skeleton!("drsnoop");
use skel::types::drsnoop_event as RawEvent;
use skel::types::spread as RawSpread;
use skel::types::stack as RawStack;

// SAFETY: fixed-width integers and a byte array without implicit padding (the
// size is asserted in drsnoop.bpf.c), so every bit pattern is a valid value.
unsafe impl plain::Plain for RawEvent {}
// SAFETY: the same: 64-bit integers.
unsafe impl plain::Plain for RawSpread {}
// SAFETY: the same: the one gap of its structure is named `pad`.
unsafe impl plain::Plain for RawStack {}

/// `ORDERS` of drsnoop.bpf.c.
const ORDERS: u32 = 12;

/// The function that makes a thread sleep for `memory.high`, newest name first.
const HIGH: [&str; 2] = ["__mem_cgroup_handle_over_high", "mem_cgroup_handle_over_high"];

/// What every hook stands on: the tracepoints of reclaim.
const BASE: Need = Need::Tracepoint("vmscan/mm_vmscan_direct_reclaim_begin");
const MEMCG: Need = Need::Tracepoint("vmscan/mm_vmscan_memcg_reclaim_begin");

static CHOICE: Choice = Choice {
    purpose: "to see threads stalled for memory",
    hooks: &[
        Hook {
            name: "fentry:try_to_free_mem_cgroup_pages",
            programs: &["node_begin", "node_end", "paused", "compact_enter", "compact_leave"],
            attach: &[
                "direct_begin",
                "direct_end",
                "memcg_begin",
                "memcg_end",
                "for_memcg",
                "high_enter",
                "high_leave",
                "sleep_enter",
                "sleep_leave",
            ],
            needs: &[
                Need::KernelBtf,
                Need::ReadKernel,
                BASE,
                MEMCG,
                Need::Func("try_to_free_mem_cgroup_pages"),
                Need::OneOf(&[Need::Func(HIGH[0]), Need::Func(HIGH[1])]),
                Need::Func("schedule_timeout_killable"),
                Need::Params("schedule_timeout_killable", 1),
                Need::Fentry,
            ],
            loses: "",
        },
        Hook {
            name: "kprobe:try_to_free_mem_cgroup_pages",
            programs: &["node_begin", "node_end", "paused", "compact_enter_k", "compact_leave_k"],
            attach: &[
                "direct_begin",
                "direct_end",
                "memcg_begin",
                "memcg_end",
                "for_memcg_k",
                "high_enter_k",
                "high_leave_k",
                "sleep_enter_k",
                "sleep_leave_k",
            ],
            needs: &[
                Need::Field("task_struct", "tgid"),
                Need::ReadKernel,
                BASE,
                MEMCG,
                Need::Symbol("try_to_free_mem_cgroup_pages"),
                Need::OneOf(&[Need::Symbol(HIGH[0]), Need::Symbol(HIGH[1])]),
                Need::Symbol("schedule_timeout_killable"),
                Need::Kprobe,
            ],
            loses: "",
        },
        Hook {
            name: "vmscan:mm_vmscan_direct_reclaim_begin",
            programs: &["memcg_begin", "memcg_end", "node_begin", "node_end", "paused"],
            attach: &["direct_begin", "direct_end"],
            needs: &[Need::Field("task_struct", "tgid"), Need::ReadKernel, BASE],
            loses: "neither the sleep that memory.high prescribes nor compaction is seen",
        },
        Hook {
            name: "tp_btf:mm_vmscan_direct_reclaim_begin",
            programs: &["memcg_begin_b", "memcg_end_b", "node_begin_b", "node_end_b", "paused_b"],
            attach: &["direct_begin_b", "direct_end_b"],
            needs: &[
                Need::KernelBtf,
                Need::ReadKernel,
                Need::BtfTracepoint("mm_vmscan_direct_reclaim_begin"),
            ],
            loses: "neither the sleep that memory.high prescribes nor compaction is seen",
        },
    ],
};

/// Programs for what a kernel may lack, and what they need.
const OPTIONAL: [(&str, Need); 14] = [
    ("memcg_begin", MEMCG),
    ("memcg_end", MEMCG),
    ("node_begin", Need::Tracepoint("vmscan/mm_vmscan_node_reclaim_begin")),
    ("node_end", Need::Tracepoint("vmscan/mm_vmscan_node_reclaim_begin")),
    ("paused", Need::Tracepoint("vmscan/mm_vmscan_throttled")),
    ("memcg_begin_b", Need::BtfTracepoint("mm_vmscan_memcg_reclaim_begin")),
    ("memcg_end_b", Need::BtfTracepoint("mm_vmscan_memcg_reclaim_begin")),
    ("node_begin_b", Need::BtfTracepoint("mm_vmscan_node_reclaim_begin")),
    ("node_end_b", Need::BtfTracepoint("mm_vmscan_node_reclaim_begin")),
    ("paused_b", Need::BtfTracepoint("mm_vmscan_throttled")),
    ("compact_enter", Need::Func(COMPACT)),
    ("compact_leave", Need::Params(COMPACT, 6)),
    ("compact_enter_k", Need::Symbol(COMPACT)),
    ("compact_leave_k", Need::Symbol(COMPACT)),
];
const COMPACT: &str = "try_to_compact_pages";

/// Threads stalled for memory: direct and cgroup reclaim, compaction, memory.high
///
/// A row for each stall, at its end: who waited, how long, why, and for which
/// cgroup's sake. At the end of the run a histogram of all stalls, the shorter
/// and the lost ones included.
#[derive(Args, Debug)]
#[command(after_long_help = describe(Drsnoop::COLUMNS))]
pub struct Drsnoop {
    /// Compaction stalls too
    #[arg(long)]
    compaction: bool,
    /// Only stalls of at least this time: 250us, 5ms, 1s
    #[arg(long, value_name = "LATENCY", value_parser = span)]
    #[arg(default_value = "0", hide_default_value = true, allow_negative_numbers = true)]
    min: Duration,
    /// The functions that led to each stall, of the kernel and of the program
    #[arg(long)]
    stack: bool,
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

/// Turns events into rows.
struct Reporter<'run, 'obj> {
    ctx: &'run Context,
    maps: &'run skel::DrsnoopMaps<'obj>,
    cgroups: Cgroups,
    symbols: Symbols,
    names: Names,
    /// Why a cgroup is reclaimed, by the kernel's stack.
    reasons: HashMap<u64, &'static str>,
    results: HashMap<u32, &'static str>,
    with_stacks: bool,
    sees_pauses: bool,
    at_start: Option<Moving>,
}

impl Reporter<'_, '_> {
    /// The addresses of a stack; none: it was lost, or not asked for.
    fn addresses(&self, id: u64) -> Rc<[u64]> {
        let value = self.maps.stacks.lookup(&id.to_ne_bytes(), MapFlags::ANY);
        let Ok(Some(value)) = value else { return Rc::default() };
        let Ok(raw) = decode::<RawStack>(&value) else { return Rc::default() };
        raw.ips.iter().take(raw.depth as usize).copied().collect()
    }

    fn cause(&mut self, kind: Kind, stack: u64) -> &'static str {
        if kind != Kind::Memcg {
            return kind.name();
        }
        if let Some(known) = self.reasons.get(&stack) {
            return known;
        }
        let frames = self.symbols.kernel(&self.addresses(stack));
        let found = reason(&frames);
        self.reasons.insert(stack, found);
        found
    }

    fn stack(&mut self, raw: &RawEvent) -> Vec<Frame> {
        if !self.with_stacks {
            return Vec::new();
        }
        let mut frames = self.symbols.kernel(&self.addresses(raw.kernel_stack));
        let user = self.addresses(raw.user_stack);
        frames.extend(self.names.frames(&self.ctx.procfs, Faulter(raw.who), &user));
        frames
    }

    fn stall(&mut self, raw: &RawEvent) -> Result<Stall> {
        let kind = usize::try_from(raw.kind).ok().and_then(|kind| Kind::ALL.get(kind).copied());
        let kind = kind
            .ok_or_else(|| Error::failure(format!("stall {} from the kernel side", raw.kind)))?;
        let reclaims = matches!(kind, Kind::Direct | Kind::Memcg | Kind::Node);
        let asks = kind != Kind::HighDelay;
        let result = (kind == Kind::Compaction).then(|| match self.results.get(&raw.result) {
            Some(name) => Cow::Borrowed(*name),
            None => raw.result.to_string().into(),
        });
        Ok(Stall {
            time: wall_time(raw.time_ns),
            pid: raw.tgid,
            tid: raw.tid,
            comm: text(&raw.comm),
            order: asks.then(|| u64::try_from(raw.order).unwrap_or(0)),
            latency_ns: raw.latency_ns,
            reclaimed: reclaims.then(|| pages_to_bytes(raw.reclaimed)),
            free: u64::try_from(raw.free).ok().map(pages_to_bytes),
            cause: self.cause(kind, raw.kernel_stack),
            cgroup: self.cgroups.shown(raw.cgroup),
            target: self.cgroups.shown(raw.target),
            paused_us: (reclaims && self.sees_pauses).then_some(raw.throttled_us),
            gfp: asks.then_some(raw.gfp),
            result,
            stack: self.stack(raw),
        })
    }

    /// All stalls, whether they were shown or not.
    fn spreads(&self) -> Result<Vec<Spread>> {
        let mut spreads = Vec::new();
        for (number, kind) in (0..).zip(Kind::ALL) {
            for order in 0..ORDERS {
                let key: u32 = number * ORDERS + order;
                let value = self.maps.spreads.lookup(&key.to_ne_bytes(), MapFlags::ANY)?;
                let Some(value) = value else { continue };
                let raw: RawSpread = decode(&value)?;
                let mut stalls = [0; BUCKETS];
                stalls.copy_from_slice(&raw.stalls);
                let spread =
                    Spread { kind: kind.name(), order: order.into(), total_ns: raw.total_ns, stalls };
                if spread.count() > 0 {
                    spreads.push(spread);
                }
            }
        }
        Ok(spreads)
    }

    fn end(&self, printer: &mut Printer) -> Result<()> {
        let spreads = self.spreads()?;
        for spread in &spreads {
            spread.lines().iter().try_for_each(|line| printer.remark(line))?;
            spread.classes().iter().try_for_each(|class| printer.figures(class))?;
        }
        let now = Moving::read(&self.ctx.procfs).ok();
        let rates = now.zip(self.at_start.as_ref()).map(|(now, then)| now.since(then));
        let total = Total {
            stalls: spreads.iter().map(Spread::count).sum(),
            total_ns: spreads.iter().map(|spread| spread.total_ns).sum(),
            some: rates.as_ref().and_then(|rates| rates.some),
            full: rates.as_ref().and_then(|rates| rates.full),
        };
        printer.remark(&total.remark())?;
        printer.figures(&total)
    }
}

/// The words of `enum compact_result` for what `try_to_compact_pages` returns.
fn results(kernel: &KernelFacts) -> HashMap<u32, &'static str> {
    const NAMES: [(&str, &str); 7] = [
        ("COMPACT_SKIPPED", "skipped"),
        ("COMPACT_DEFERRED", "deferred"),
        ("COMPACT_NO_SUITABLE_PAGE", "no-page"),
        ("COMPACT_COMPLETE", "complete"),
        ("COMPACT_PARTIAL_SKIPPED", "partial"),
        ("COMPACT_CONTENDED", "contended"),
        ("COMPACT_SUCCESS", "success"),
    ];
    let number = |name| u32::try_from(kernel.enumerator("compact_result", name)?).ok();
    NAMES.into_iter().filter_map(|(name, word)| Some((number(name)?, word))).collect()
}

/// The programs that show compaction.
fn compacts(name: &str) -> bool {
    name.starts_with("compact_")
}

impl Drsnoop {
    /// Loads what the plan attaches, what this kernel has of the rest, and what
    /// keeps the table of stalls under way clean. Answers whether pauses within
    /// reclaim are seen.
    fn select(&self, ctx: &Context, plan: &Plan, object: &mut OpenObject, storage: bool) -> Result<bool> {
        plan.select(object);
        let mut pauses = false;
        for mut program in object.progs_mut() {
            let Some(name) = program.name().to_str().map(str::to_owned) else { continue };
            if name == syscalls::FORGET {
                program.set_autoload(!storage);
            }
            if !plan.hook.programs.contains(&&*name) && !plan.hook.attach.contains(&&*name) {
                continue;
            }
            let need = OPTIONAL.iter().find(|(program, _)| *program == name).map(|(_, need)| *need);
            let found = need.is_none_or(|need| ctx.kernel.has(need));
            program.set_autoload(found && (self.compaction || !compacts(&name)));
            pauses |= found && name.starts_with("paused");
            if compacts(&name) && self.compaction && !found {
                return Err(Error::kernel(format!("--compaction: `{COMPACT}` is no function of this kernel")));
            }
            if name == "high_enter" || name == "high_leave" {
                let func = HIGH.into_iter().find(|func| ctx.kernel.has(Need::Func(func)));
                program.set_attach_target(0, func.map(str::to_owned))?;
            }
        }
        if self.compaction && !plan.hook.programs.iter().any(|name| compacts(name)) {
            return Err(Error::kernel(format!(
                "--compaction takes fentry or kprobes, which this kernel, or --hook {}, does not use; \
                 the tracepoints of compaction tell the zones and not the stalls",
                plan.hook.name
            )));
        }
        Ok(pauses)
    }
}

/// Attaches what was loaded. Dropping the links detaches it.
fn attach(ctx: &Context, plan: &Plan, object: &Object) -> Result<Vec<Link>> {
    let mut links = Vec::new();
    for program in object.progs_mut().filter(|program| program.autoload()) {
        let name = program.name().to_str().unwrap_or_default().to_owned();
        let link = if name == "high_enter_k" || name == "high_leave_k" {
            let func = HIGH.into_iter().find(|func| ctx.kernel.has(Need::Symbol(func)));
            program.attach_kprobe(name == "high_leave_k", func.unwrap_or(HIGH[0]))
        } else {
            program.attach()
        };
        let link = link.map_err(|error| syscalls::explain_tracefs(error.into()));
        links.push(link.context(|| format!("attaching {}", plan.hook.name))?);
    }
    Ok(links)
}

impl Tool for Drsnoop {
    const CHOICE: Option<&'static Choice> = Some(&CHOICE);
    const COLUMNS: &'static [Column] = &<Stall as Row<15>>::COLUMNS;

    fn run(self) -> Result<ExitCode> {
        let limits = (&self.limits).into();
        let ctx =
            Context::new("drsnoop", &self.kernel, limits, |procfs| self.targets.resolve(procfs))?;
        let plan = prepare(&ctx, &CHOICE)?;
        let with_storage = syscalls::has_storage(&ctx.kernel);
        let with_functions = plan.hook.attach.iter().any(|name| name.starts_with("for_memcg"));
        let free_pages = ctx.kernel.address("vm_zone_stat");

        let mut storage = MaybeUninit::uninit();
        let builder = skel::DrsnoopSkelBuilder { obj_builder: ctx.kernel.object_builder()? };
        let mut open = builder.open(&mut storage)?;
        let sees_pauses = self.select(&ctx, &plan, open.open_object_mut(), with_storage)?;
        open.maps.events.set_max_entries(self.ring.bytes())?;
        set_target!(open, &ctx.target);
        set_flights!(open, with_storage);
        if let Some(constants) = open.maps.rodata_data.as_deref_mut() {
            constants.ring_half_bytes = u64::from(self.ring.bytes()) / 2;
            constants.min_ns = u64::try_from(self.min.as_nanos()).unwrap_or(u64::MAX);
            constants.free_pages_addr = free_pages.unwrap_or(0);
            constants.with_stacks = self.stack;
            constants.finds_target = with_functions;
        }
        let mut skel = open
            .load()
            .context(|| format!("loading the programs of {}", plan.hook.name))
            .map_err(rights::explain_refusal)?;
        target::fill_set(&skel.maps.target_set, &ctx.target)?;
        let ring = Ring::new(&skel.maps.events)?;
        let _links = attach(&ctx, &plan, skel.object())?;

        let shared = skel.maps.bss_data.take().ok_or_else(|| Error::failure("no data section"))?;
        let lost = || read_shared(&shared.lost_events) + syscalls::missed(skel.object(), 0);
        let groups = if self.stack { STACKS } else { ALWAYS };
        let printer = Printer::stdout::<Stall, 15>((&self.output).into(), groups)?;
        let mut notes = plan.notes();
        if free_pages.is_none() {
            notes.push("FREE is not known: the kernel hides vm_zone_stat (CONFIG_KALLSYMS_ALL)".into());
        }
        let named = ctx.kernel.has(Need::Field(BEGIN_EVENT, "memcg_id"));
        if !with_functions && !named {
            notes.push("TARGET is not known without the function that reclaims a cgroup".into());
        }
        let pace = Pace { at_start: false, at_end: true, by_row: true };
        let run = Run { hook: plan.hook.name, notes, pace, lost: &lost };
        let mut reporter = Reporter {
            ctx: &ctx,
            maps: &skel.maps,
            cgroups: Cgroups::new(&ctx.procfs),
            symbols: Symbols::new(false),
            names: Names::new(false),
            reasons: HashMap::new(),
            results: results(&ctx.kernel),
            with_stacks: self.stack,
            sees_pauses,
            at_start: Moving::read(&ctx.procfs).ok(),
        };
        stream::<RawEvent>(&ctx, run, &ring, printer, |step, printer| match step {
            Step::Event(raw) => printer.row(&reporter.stall(&raw)?),
            Step::Report => {
                reporter.names.new_report();
                Ok(())
            }
            Step::End => reporter.end(printer),
        })?;
        Ok(ExitCode::SUCCESS)
    }
}

/// The trace event that names a cgroup where the kernel does so.
const BEGIN_EVENT: &str = "trace_event_raw_mm_vmscan_direct_reclaim_begin_template";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attach::plan;

    #[test]
    fn functions_come_before_tracepoints_alone() {
        let every: Vec<Need> =
            CHOICE.hooks.iter().flat_map(|hook| hook.needs.iter().copied()).collect();
        let without = |lacks: &[Need]| -> Vec<Need> {
            every.iter().copied().filter(|need| !lacks.contains(need)).collect()
        };
        let chosen = |has: &[Need]| plan(&KernelFacts::fake(has), &CHOICE, None).unwrap().hook.name;
        assert_eq!(chosen(&every), CHOICE.hooks[0].name);
        assert_eq!(chosen(&without(&[Need::Fentry])), CHOICE.hooks[1].name);
        assert_eq!(chosen(&without(&[Need::Fentry, Need::Kprobe])), CHOICE.hooks[2].name);
        let restricted = without(&[Need::Fentry, Need::Kprobe, BASE]);
        assert_eq!(chosen(&restricted), CHOICE.hooks[3].name);
    }

    #[test]
    fn what_may_be_missing_is_a_program_of_a_hook() {
        for (program, _) in OPTIONAL {
            let of = |hook: &&Hook| hook.programs.contains(&program) || hook.attach.contains(&program);
            assert!(CHOICE.hooks.iter().any(|hook| of(&hook)), "{program}");
        }
    }
}

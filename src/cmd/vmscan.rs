//! `vmscan`: time spent in reclaim, wake-ups of kswapd, page writes.

use std::cmp::Reverse;
use std::collections::HashMap;
use std::fs;
use std::mem::MaybeUninit;
use std::process::ExitCode;
use std::time::Duration;
use std::time::Instant;

use clap::Args;
use clap::ValueEnum;
use libbpf_rs::Link;
use libbpf_rs::MapMut;
use libbpf_rs::TracepointCategory;
use libbpf_rs::skel::OpenSkel as _;
use libbpf_rs::skel::Skel as _;
use libbpf_rs::skel::SkelBuilder as _;

use super::Tool;
use super::skeleton;
use crate::attach::Choice;
use crate::attach::Extras;
use crate::attach::Hook;
use crate::attach::prepare;
use crate::batch;
use crate::cgroups::Cgroups;
use crate::cli::FormatArgs;
use crate::cli::KernelArgs;
use crate::cli::ShortLimitArgs;
use crate::cli::TargetArgs;
use crate::context::Context;
use crate::engine::Pace;
use crate::engine::Run;
use crate::engine::every;
use crate::error::Context as _;
use crate::error::Error;
use crate::error::Result;
use crate::event::read_shared;
use crate::event::text;
use crate::kernel::Need;
use crate::output::ALWAYS;
use crate::output::Column;
use crate::output::Group;
use crate::output::MACHINE;
use crate::output::Printer;
use crate::output::Row;
use crate::output::Unit;
use crate::output::Value;
use crate::output::describe;
use crate::output::note;
use crate::procfs::Pressure;
use crate::rights;
use crate::set_target;
use crate::skipped;
use crate::target;
use crate::time::WallTime;
use crate::time::monotonic_ns;
use crate::time::wall_time;

skeleton!("vmscan");
use skel::types::vmscan_key as RawKey;
use skel::types::vmscan_sums as RawSums;

// SAFETY: integers and a byte array without implicit padding (the sizes are
// asserted in vmscan.bpf.c), so every bit pattern is a valid value.
unsafe impl plain::Plain for RawKey {}
// SAFETY: as above.
unsafe impl plain::Plain for RawSums {}

/// Events that depend on how the kernel was built, or on its age: write_folio was
/// writepage (seen in 5.10, not in 6.1), throttled came between the two.
const EVENTS: [(&str, Need); 5] = [
    ("memcg_begins", Need::Tracepoint("vmscan/mm_vmscan_memcg_reclaim_begin")),
    ("memcg_ends", Need::Tracepoint("vmscan/mm_vmscan_memcg_reclaim_end")),
    ("folio_written", Need::Tracepoint("vmscan/mm_vmscan_write_folio")),
    ("page_written", Need::Tracepoint("vmscan/mm_vmscan_writepage")),
    ("throttled", Need::Tracepoint("vmscan/mm_vmscan_throttled")),
];

/// What every hook attaches to, and needs.
const SLAB: Need = Need::Tracepoint("vmscan/mm_shrink_slab_start");
const DIRECT: Need = Need::Tracepoint("vmscan/mm_vmscan_direct_reclaim_begin");
const TYPES: Need = Need::Field("task_struct", "tgid");

static CHOICE: Choice = Choice {
    purpose: "to see reclaim",
    hooks: &[
        Hook {
            name: "fexit:__mem_cgroup_handle_over_high",
            programs: &[],
            attach: &[
                "slab_begins",
                "slab_ends",
                "direct_begins",
                "direct_ends",
                "kswapd_runs",
                "kswapd_wakes",
                "high_begins",
                "high_ends",
            ],
            needs: &[
                Need::KernelBtf,
                Need::ReadKernel,
                SLAB,
                DIRECT,
                Need::Func("__mem_cgroup_handle_over_high"),
                Need::Fentry,
            ],
            loses: "",
        },
        Hook {
            name: "fexit:mem_cgroup_handle_over_high",
            programs: &[],
            attach: &[
                "slab_begins",
                "slab_ends",
                "direct_begins",
                "direct_ends",
                "kswapd_runs",
                "kswapd_wakes",
                "old_high_begins",
                "old_high_ends",
            ],
            needs: &[
                Need::KernelBtf,
                Need::ReadKernel,
                SLAB,
                DIRECT,
                Need::Func("mem_cgroup_handle_over_high"),
                Need::Field("task_struct", "memcg_nr_pages_over_high"),
                Need::Fentry,
            ],
            loses: "",
        },
        Hook {
            name: "tp:vmscan",
            programs: &[],
            attach: &[
                "slab_begins",
                "slab_ends",
                "direct_begins",
                "direct_ends",
                "kswapd_runs",
                "kswapd_wakes",
            ],
            needs: &[TYPES, Need::ReadKernel, SLAB, DIRECT],
            loses: "time that memory.high costs is not known",
        },
    ],
};

/// Time spent in reclaim, wake-ups of kswapd and page writes
///
/// Each interval: how long processes shrank slabs, reclaimed for themselves or for
/// their cgroup's limit and were held up, beside what kswapd did and memory pressure.
#[derive(Args, Debug)]
#[command(after_long_help = about())]
pub struct Vmscan {
    /// A row for each cgroup, or name of a process, that did something
    #[arg(long, value_enum)]
    by: Option<By>,
    /// How often each of the kernel's reclaim events (vmscan:*) came instead
    #[arg(long = "count", conflicts_with_all = ["by", "hook"])]
    events: bool,
    /// At most this many rows a report, those that took longest or had most events
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    top: Option<u32>,
    /// Cgroups, or names, there is room for
    #[arg(long, value_name = "N", default_value_t = 4096)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=1 << 20))]
    max_entries: u32,
    #[command(flatten)]
    targets: TargetArgs,
    #[command(flatten)]
    limits: ShortLimitArgs,
    #[command(flatten)]
    output: FormatArgs,
    #[command(flatten)]
    kernel: KernelArgs,
}

fn about() -> String {
    format!("{}\nWith --count:\n{}", describe(Vmscan::COLUMNS), describe(&Counted::COLUMNS))
}

/// What a row is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum By {
    /// A cgroup: the one of the process that did it.
    Cgroup,
    /// A name of processes.
    Comm,
}

/// Columns of rows by cgroup and by name, and of those that are not by name.
const CGROUP: Group = 1;
const COMM: Group = 2;
const PRESSURE: Group = 4;

/// What this kernel can tell.
#[derive(Clone, Copy, Debug)]
struct Known {
    memcg: bool,
    high: bool,
    throttled: bool,
    writes: bool,
}

/// What happened in an interval.
#[derive(Clone, Debug)]
struct Scan {
    time: WallTime,
    cgroup: Option<String>,
    comm: Option<String>,
    sums: RawSums,
    known: Known,
    some: Option<f64>,
    full: Option<f64>,
}

impl Row<18> for Scan {
    const COLUMNS: [Column; 18] = [
        Column::new("TIME", "time", Unit::Time, 8, ALWAYS, "when it was counted up to"),
        Column::new("CGROUP", "cgroup", Unit::Text, 24, CGROUP, "cgroup of the processes"),
        Column::new("COMM", "comm", Unit::Text, 15, COMM, "name of the processes"),
        millis("SLABms", "slab", "time in slab shrinking"),
        millis("DIRECTms", "direct", "time in direct reclaim, slab shrinking included"),
        millis("MEMCGms", "memcg", "time in reclaim for a cgroup, slab shrinking included"),
        millis("HIGHms", "high", "time held up by memory.high, reclaim for it included"),
        millis("THROTms", "throttled", "time reclaim slept to wait for others"),
        count("KSWAPD", "kswapd_runs", ALWAYS, "kswapd set to work (pageoutrun)"),
        count("ASKED", "kswapd_wakeups", ALWAYS, "times it was asked to"),
        count("WRITES", "page_writes", ALWAYS, "pages or folios that reclaim wrote out"),
        count("SLABS", "slab_shrinks", MACHINE, "spans in SLABms"),
        count("DIRECTS", "direct_reclaims", MACHINE, "spans in DIRECTms"),
        count("MEMCGS", "memcg_reclaims", MACHINE, "spans in MEMCGms"),
        count("HIGHS", "high_delays", MACHINE, "spans in HIGHms"),
        count("THROTS", "throttles", MACHINE, "spans in THROTms"),
        Column::new("SOME%", "pressure_some", Unit::Percent, 5, PRESSURE, "some task stalled (PSI)"),
        Column::new("FULL%", "pressure_full", Unit::Percent, 5, PRESSURE, "all tasks stalled (PSI)"),
    ];

    fn values(&self) -> [Value<'_>; 18] {
        let sums = &self.sums;
        let known = self.known;
        let words = |words: &Option<String>| {
            words.as_ref().map_or(Value::Missing, |words| Value::Text(words.clone().into()))
        };
        let ms = |known: bool, sort: usize| Value::real(known.then(|| sums.ns[sort] as f64 / 1e6));
        let spans = |known: bool, sort: usize| Value::count(known.then(|| sums.spans[sort]));
        [
            Value::Time(self.time),
            words(&self.cgroup),
            words(&self.comm),
            ms(true, 0),
            ms(true, 1),
            ms(known.memcg, 2),
            ms(known.high, 3),
            Value::real(known.throttled.then(|| sums.throttled_us as f64 / 1e3)),
            Value::Count(sums.runs),
            Value::Count(sums.wakes),
            Value::count(known.writes.then_some(sums.writes)),
            spans(true, 0),
            spans(true, 1),
            spans(known.memcg, 2),
            spans(known.high, 3),
            Value::count(known.throttled.then_some(sums.throttles)),
            Value::real(self.some),
            Value::real(self.full),
        ]
    }
}


const fn millis(head: &'static str, key: &'static str, help: &'static str) -> Column {
    Column::new(head, key, Unit::Millis, 8, ALWAYS, help)
}

const fn count(head: &'static str, key: &'static str, group: Group, help: &'static str) -> Column {
    Column::new(head, key, Unit::Count, 6, group, help)
}

/// How often an event came.
#[derive(Clone, Debug)]
struct Counted {
    time: WallTime,
    event: String,
    count: u64,
}

impl Row<3> for Counted {
    const COLUMNS: [Column; 3] = [
        Column::new("TIME", "time", Unit::Time, 8, ALWAYS, "when it was counted up to"),
        Column::new("COUNT", "count", Unit::Count, 9, ALWAYS, "how often the event came"),
        Column::new("EVENT", "event", Unit::Text, 34, ALWAYS, "name below events/vmscan of tracefs"),
    ];

    fn values(&self) -> [Value<'_>; 3] {
        [Value::Time(self.time), Value::Count(self.count), Value::Text((&self.event).into())]
    }
}

impl Tool for Vmscan {
    const CHOICE: Option<&'static Choice> = Some(&CHOICE);
    const COLUMNS: &'static [Column] = &<Scan as Row<18>>::COLUMNS;

    fn run(self) -> Result<ExitCode> {
        let limits = (&self.limits).into();
        let ctx =
            Context::new("vmscan", &self.kernel, limits, |procfs| self.targets.resolve(procfs))?;
        let plan = prepare(&ctx, &CHOICE)?;

        let mut storage = MaybeUninit::uninit();
        let builder = skel::VmscanSkelBuilder { obj_builder: ctx.kernel.object_builder()? };
        let mut open = builder.open(&mut storage)?;
        let events = if self.events { tracepoints()? } else { Vec::new() };
        let extras = Extras::found(&ctx.kernel, if self.events { &[] } else { &EVENTS });
        if self.events {
            for mut program in open.open_object_mut().progs_mut() {
                let wanted = program.name().to_str().and_then(counter).is_some_and(|i| i < events.len());
                program.set_autoload(wanted);
            }
        } else {
            plan.select(open.open_object_mut());
            extras.select(open.open_object_mut());
        }
        // Nothing is sent one by one.
        open.maps.events.set_autocreate(false)?;
        open.maps.sums.set_max_entries(if self.by.is_some() { self.max_entries } else { 1 })?;
        set_target!(open, &ctx.target);
        if let Some(constants) = open.maps.rodata_data.as_deref_mut() {
            constants.by_cgroup = (self.by == Some(By::Cgroup)).into();
            constants.by_comm = (self.by == Some(By::Comm)).into();
        }
        let mut skel = open
            .load()
            .context(|| format!("loading the programs of {}", plan.hook.name))
            .map_err(rights::explain_refusal)?;
        target::fill_set(&skel.maps.target_set, &ctx.target)?;
        let shared = skel.maps.bss_data.take().ok_or_else(|| Error::failure("no data section"))?;
        let mut links: Vec<Link> = Vec::new();
        if self.events {
            for program in skel.object().progs_mut() {
                let number = program.name().to_str().and_then(counter);
                let Some(event) = number.and_then(|i| events.get(i)) else { continue };
                let category = TracepointCategory::Custom("vmscan".into());
                let link = program.attach_tracepoint(category, event);
                links.push(link.context(|| format!("attaching to vmscan:{event}"))?);
            }
        } else {
            links.extend(plan.attach(skel.object())?);
            links.extend(extras.attach(skel.object())?);
        }

        let missed = || -> u64 { skel.object().progs_mut().map(|it| skipped::runs(&it)).sum() };
        let lost = || read_shared(&shared.lost_events) + missed();
        let pace = Pace { at_start: false, at_end: true, by_row: false };
        let (hook, notes) = if self.events {
            ("tp:vmscan", Vec::new())
        } else {
            (plan.hook.name, plan.notes())
        };
        let run = Run { hook, notes, pace, lost: &lost };
        let style = (&self.output).into();
        if self.events {
            if events.len() > shared.counts.len() {
                note(&format!("vmscan: only {} of {} events are counted", shared.counts.len(), events.len()));
            }
            let mut before = shared.counts.map(|_| 0);
            every(&ctx, run, Printer::stdout::<Counted, 3>(style, ALWAYS)?, |printer| {
                let time = wall_time(monotonic_ns());
                let mut rows: Vec<Counted> = Vec::new();
                for ((event, now), before) in events.iter().zip(&shared.counts).zip(&mut before) {
                    let now = read_shared(now);
                    let count = now.saturating_sub(*before);
                    rows.push(Counted { time, event: event.clone(), count });
                    *before = now;
                }
                rows.sort_by_key(|row| Reverse(row.count));
                rows.truncate(self.top.map_or(usize::MAX, |n| n as usize));
                rows.iter().try_for_each(|row| printer.row(row))
            })?;
            return Ok(ExitCode::SUCCESS);
        }
        let known = Known {
            memcg: extras.has("memcg_begins") && extras.has("memcg_ends"),
            high: plan.hook.name != "tp:vmscan",
            throttled: extras.has("throttled"),
            writes: extras.has("folio_written") || extras.has("page_written"),
        };
        let groups = match self.by {
            None => PRESSURE,
            Some(By::Cgroup) => CGROUP | PRESSURE,
            Some(By::Comm) => COMM,
        };
        let printer = Printer::stdout::<Scan, 18>(style, groups)?;
        let mut reporter = Reporter {
            known,
            by: self.by,
            top: self.top.map_or(usize::MAX, |n| n as usize),
            cgroups: Cgroups::new(&ctx.procfs),
            before: HashMap::new(),
            at: Instant::now(),
            pressure: HashMap::new(),
        };
        if self.by.is_none() {
            reporter.pressure.extend(ctx.procfs.pressure().map(|psi| (0, psi)));
        }
        every(&ctx, run, printer, |printer| reporter.report(&ctx, &skel.maps.sums, printer))?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Every event of reclaim that this kernel has, by name.
fn tracepoints() -> Result<Vec<String>> {
    let folders = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];
    let found = folders.iter().find_map(|root| fs::read_dir(format!("{root}/events/vmscan")).ok());
    let entries = found.ok_or_else(|| Error::kernel("no events/vmscan: tracefs is not mounted"))?;
    let mut names: Vec<String> = entries
        .flatten()
        .filter(|entry| entry.path().join("id").exists())
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect();
    names.sort_unstable();
    Ok(names)
}

/// Which counter a program of the BPF side is.
fn counter(program: &str) -> Option<usize> {
    program.strip_prefix("count_")?.parse().ok()
}

/// A key, as one that can be compared.
type Key = (u64, [u8; 16]);

/// What was counted up to the last report.
struct Reporter {
    known: Known,
    by: Option<By>,
    top: usize,
    cgroups: Cgroups,
    before: HashMap<Key, RawSums>,
    at: Instant,
    /// By cgroup; 0: the machine.
    pressure: HashMap<u64, Pressure>,
}

impl Reporter {
    fn report(&mut self, ctx: &Context, sums: &MapMut<'_>, printer: &mut Printer) -> Result<()> {
        let time = wall_time(monotonic_ns());
        let elapsed = self.at.elapsed();
        self.at = Instant::now();
        let mut rows: Vec<(u64, Scan)> = Vec::new();
        batch::for_each(sums, |raw: RawKey, now: RawSums| {
            let before = self.before.insert((raw.cgroup, raw.comm), now).unwrap_or_default();
            let sums = since(&now, &before);
            if self.by.is_some() && is_zero(&sums) {
                return;
            }
            let cgroup = self.cgroups.shown(raw.cgroup);
            let comm = (self.by == Some(By::Comm)).then(|| text(&raw.comm));
            let known = self.known;
            rows.push((raw.cgroup, Scan { time, cgroup, comm, sums, known, some: None, full: None }));
        })?;
        if rows.is_empty() && self.by.is_none() {
            // Nothing has happened yet, which is worth a row as well.
            let (sums, known) = (RawSums::default(), self.known);
            rows.push((0, Scan { time, cgroup: None, comm: None, sums, known, some: None, full: None }));
        }
        for (id, row) in &mut rows {
            let now = match self.by {
                None => ctx.procfs.pressure(),
                Some(By::Cgroup) => row.cgroup.as_deref().and_then(|p| ctx.procfs.cgroup_pressure(p)),
                Some(By::Comm) => None,
            };
            let Some(now) = now else { continue };
            if let Some(before) = self.pressure.insert(*id, now) {
                row.some = Some(percent(now.some_us, before.some_us, elapsed));
                row.full = Some(percent(now.full_us, before.full_us, elapsed));
            }
        }
        rows.sort_by_key(|(_, row)| Reverse(row.sums.ns.iter().sum::<u64>()));
        let rest = rows.split_off(self.top.min(rows.len()));
        rows.iter().try_for_each(|(_, row)| printer.row(row))?;
        if !rest.is_empty() {
            printer.remark(&format!("{} more (--top)", rest.len()))?;
        }
        Ok(())
    }
}

/// The share of a time that has passed between two readings in microseconds.
fn percent(now: u64, before: u64, elapsed: Duration) -> f64 {
    100.0 * now.saturating_sub(before) as f64 / elapsed.as_micros().max(1) as f64
}

fn since(now: &RawSums, before: &RawSums) -> RawSums {
    let mut spans = *now;
    let arrays = spans.ns.iter_mut().chain(&mut spans.spans);
    for (to, from) in arrays.zip(before.ns.iter().chain(&before.spans)) {
        *to = to.saturating_sub(*from);
    }
    RawSums {
        throttled_us: now.throttled_us.saturating_sub(before.throttled_us),
        throttles: now.throttles.saturating_sub(before.throttles),
        runs: now.runs.saturating_sub(before.runs),
        wakes: now.wakes.saturating_sub(before.wakes),
        writes: now.writes.saturating_sub(before.writes),
        ..spans
    }
}

fn is_zero(sums: &RawSums) -> bool {
    sums.spans.iter().sum::<u64>() + sums.throttles + sums.runs + sums.wakes + sums.writes == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attach::plan;
    use crate::kernel::KernelFacts;
    use crate::output::tests::golden;

    fn sums() -> RawSums {
        RawSums {
            ns: [1_009_000, 503_250_000, 0, 17_000],
            spans: [23, 7, 0, 1],
            throttled_us: 4000,
            throttles: 1,
            runs: 2,
            wakes: 11,
            writes: 7919,
        }
    }

    #[test]
    fn the_output_is_the_documented_one() {
        let known = Known { memcg: true, high: true, throttled: true, writes: true };
        let row = Scan {
            time: WallTime::fixed(),
            cgroup: Some("/a/b".into()),
            comm: None,
            sums: sums(),
            known,
            some: Some(12.5),
            full: Some(0.25),
        };
        let unknown = Known { memcg: false, high: false, throttled: false, writes: false };
        let coarse = Scan { cgroup: None, known: unknown, some: None, full: None, ..row.clone() };
        golden::<Scan, 18>("vmscan", CGROUP | PRESSURE, &[row, coarse]);
        let counted = Counted { time: WallTime::fixed(), event: "mm_shrink_slab_end".into(), count: 23 };
        golden::<Counted, 3>("vmscan-count", ALWAYS, &[counted]);
    }

    #[test]
    fn an_interval_is_what_two_readings_differ_by() {
        let before = sums();
        let mut now = before;
        assert!(is_zero(&since(&now, &before)));
        now.ns[1] += 5;
        now.spans[1] += 1;
        now.writes += 3;
        let between = since(&now, &before);
        assert!(!is_zero(&between));
        assert_eq!((between.ns, between.spans), ([0, 5, 0, 0], [0, 1, 0, 0]));
        assert_eq!((between.writes, between.runs), (3, 0));
        assert_eq!(percent(1_500_000, 500_000, Duration::from_secs(4)), 25.0);
    }

    #[test]
    fn counters_are_found_by_their_number() {
        assert_eq!(counter("count_47"), Some(47));
        assert_eq!(counter("slab_ends"), None);
    }

    #[test]
    fn memory_high_is_seen_where_its_function_can_be_followed() {
        let every: Vec<Need> =
            CHOICE.hooks.iter().flat_map(|hook| hook.needs.iter().copied()).collect();
        let chosen = |lacks: &[Need]| {
            let has: Vec<Need> =
                every.iter().copied().filter(|need| !lacks.contains(need)).collect();
            plan(&KernelFacts::fake(&has), &CHOICE, None).unwrap().hook.name
        };
        assert_eq!(chosen(&[]), "fexit:__mem_cgroup_handle_over_high");
        let new = Need::Func("__mem_cgroup_handle_over_high");
        assert_eq!(chosen(&[new]), "fexit:mem_cgroup_handle_over_high");
        assert_eq!(chosen(&[Need::Fentry]), "tp:vmscan");
    }
}

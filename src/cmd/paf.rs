//! `paf` (`-a`): requests for pages, by process, zone, order and flags; those
//! that got nothing, and why.

use std::collections::HashMap;
use std::mem::MaybeUninit;
use std::process::ExitCode;
use std::rc::Rc;
use std::time::Instant;
use std::time::SystemTime;

use clap::Args;
use libbpf_rs::Link;
use libbpf_rs::MapCore;
use libbpf_rs::Object;
use libbpf_rs::OpenObject;
use libbpf_rs::ProgramMut;
use libbpf_rs::skel::OpenSkel as _;
use libbpf_rs::skel::Skel as _;
use libbpf_rs::skel::SkelBuilder as _;

use super::Tool;
use super::skeleton;
use crate::attach::Choice;
use crate::attach::Hook;
use crate::attach::Plan;
use crate::attach::prepare;
use crate::batch;
use crate::cgroups::Cgroups;
use crate::cli::KernelArgs;
use crate::cli::LimitArgs;
use crate::cli::RingArgs;
use crate::cli::StackFormatArgs;
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
use crate::faults::Faulter;
use crate::faults::stacks;
use crate::gfp::AllocNames;
use crate::gfp::GfpNames;
use crate::kernel::KernelFacts;
use crate::kernel::Need;
use crate::nodes;
use crate::nodes::ZONES_PER_NODE;
use crate::nodes::lure;
use crate::nodes::run_once;
use crate::output::Column;
use crate::output::Group;
use crate::output::Printer;
use crate::output::Row;
use crate::output::StackFormat;
use crate::output::StackStyle;
use crate::output::describe;
use crate::output::profile::Profile;
use crate::output::profile::Sample;
use crate::requests::ALL;
use crate::requests::COUNTED;
use crate::requests::EVENT;
use crate::requests::FAILURE;
use crate::requests::Names;
use crate::requests::Reason;
use crate::requests::Request;
use crate::requests::ZoneThen;
use crate::requests::trim;
use crate::rights;
use crate::set_target;
use crate::skipped;
use crate::target;
use crate::time::WallTime;
use crate::time::monotonic_ns;
use crate::time::wall_time;
use crate::zone;

skeleton!("paf");
use skel::types::paf_count as RawCount;
use skel::types::paf_event as RawEvent;
use skel::types::paf_failure as RawFailure;
use skel::types::paf_key as RawKey;
use skel::types::paf_zone as RawZone;

// SAFETY: integers and byte arrays without implicit padding (the sizes are
// asserted in paf.bpf.c), so every bit pattern is a valid value.
unsafe impl plain::Plain for RawCount {}
// SAFETY: as above.
unsafe impl plain::Plain for RawEvent {}
// SAFETY: as above.
unsafe impl plain::Plain for RawFailure {}
// SAFETY: as above.
unsafe impl plain::Plain for RawKey {}
// SAFETY: as above.
unsafe impl plain::Plain for RawZone {}

/// Type information, built in or given with `--btf`.
const TYPES: Need = Need::Field("pglist_data", "node_zonelists");

/// The function every attempt to get a page goes through.
const ATTEMPT: &str = "get_page_from_freelist";

/// What refuses pages to a memory cgroup: the name since 5.13, and before
/// (seen in 6.1 and in 5.10).
const CHARGES: [&str; 2] = ["try_charge_memcg", "try_charge"];

/// `ZONE_UNKNOWN` and `FLAGS_UNKNOWN` of paf.bpf.c.
const ZONE_UNKNOWN: u16 = 0xffff;
const FLAGS_UNKNOWN: u32 = 0xffff_ffff;

static CHOICE: Choice = Choice {
    purpose: "to see requests for pages",
    hooks: &[
        Hook {
            name: "fentry:get_page_from_freelist",
            programs: &["read_zones", "learn_memcg", "fexit_charge", "fexit_trycharge"],
            attach: &["fentry_attempt", "on_alloc"],
            needs: &[
                Need::KernelBtf,
                Need::ReadKernel,
                Need::BtfTracepoint("mm_page_alloc"),
                Need::Func(ATTEMPT),
                Need::Params(ATTEMPT, 4),
                Need::Fentry,
                Need::TestRun,
            ],
            loses: "",
        },
        Hook {
            name: "kprobe:get_page_from_freelist",
            programs: &["read_zones", "learn_memcg", "enter_charge", "leave_charge"],
            attach: &["kprobe_attempt", "on_alloc"],
            needs: &[
                Need::KernelBtf,
                Need::ReadKernel,
                Need::BtfTracepoint("mm_page_alloc"),
                Need::Symbol(ATTEMPT),
                Need::Params(ATTEMPT, 4),
                Need::Kprobe,
                Need::TestRun,
            ],
            loses: "",
        },
        Hook {
            name: "tp_btf:mm_page_alloc",
            programs: &["read_zones", "learn_memcg", "learn_ksym"],
            attach: &["on_alloc"],
            needs: &[
                TYPES,
                Need::KernelBtf,
                Need::ReadKernel,
                Need::BtfTracepoint("mm_page_alloc"),
                Need::TestRun,
            ],
            loses: "what an attempt was allowed (ALLOC) is not known, nor the zone of a request \
                    that got nothing",
        },
    ],
};

/// Requests for pages: watermarks, flags, and those that fail
///
/// Each interval: how many pages, or blocks of pages, each process asked the
/// kernel for, from which zone, of which order, with which flags, and how far the
/// zone is from its watermarks. With --failed: each request that got nothing, with
/// the reason and the stack.
#[derive(Args, Debug)]
#[command(short_flag = 'a', after_long_help = describe(Paf::COLUMNS))]
pub struct Paf {
    /// A row for each request; -n counts rows
    #[arg(long, conflicts_with = "top")]
    events: bool,
    /// A row for each request that got nothing, with the reason and the stack; -n
    /// counts rows
    #[arg(long, conflicts_with_all = ["top", "events"])]
    failed: bool,
    /// Also the node, all watermarks, and flags as numbers (in JSON and CSV always)
    #[arg(short = 'R', long)]
    all_fields: bool,
    /// At most this many rows a report, those with the most requests
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    top: Option<u32>,
    /// Kinds of requests there is room for
    #[arg(long, value_name = "N", default_value_t = 32_768)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=1 << 24))]
    max_entries: u32,
    /// No source files, lines and inlined functions in stacks: quicker, less memory
    #[arg(long, requires = "failed")]
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

impl Tool for Paf {
    const CHOICE: Option<&'static Choice> = Some(&CHOICE);
    const COLUMNS: &'static [Column] = &<Request as Row<21>>::COLUMNS;

    fn run(self) -> Result<ExitCode> {
        if self.for_profile() && !self.failed {
            return Err(Error::usage("this format is for stacks: give --failed too"));
        }
        let limits = (&self.limits).into();
        let ctx =
            Context::new("paf", &self.kernel, limits, |procfs| self.targets.resolve(procfs))?;
        let plan = prepare(&ctx, &CHOICE)?;
        let charge = Charge::find(&self, &ctx.kernel, &plan);

        let mut storage = MaybeUninit::uninit();
        let builder = skel::PafSkelBuilder { obj_builder: ctx.kernel.object_builder()? };
        let mut open = builder.open(&mut storage)?;
        plan.select(open.open_object_mut());
        charge.select(open.open_object_mut());
        let possible = nodes::possible(&ctx.procfs);
        open.maps.zones.set_max_entries(possible * ZONES_PER_NODE)?;
        open.maps.counts.set_max_entries(if self.counts() { self.max_entries } else { 1 })?;
        open.maps.events.set_max_entries(self.ring.bytes())?;
        set_target!(open, &ctx.target);
        if let Some(constants) = open.maps.rodata_data.as_deref_mut() {
            constants.mode = if self.failed { 2 } else { self.events.into() };
            constants.zone_slots = possible * ZONES_PER_NODE;
            constants.node_data_addr = ctx.kernel.address("node_data").unwrap_or(0);
            constants.ring_half_bytes = u64::from(self.ring.bytes()) / 2;
        }
        let mut skel = open
            .load()
            .context(|| format!("loading the programs of {}", plan.hook.name))
            .map_err(rights::explain_refusal)?;
        target::fill_set(&skel.maps.target_set, &ctx.target)?;
        let ring = Ring::new(&skel.maps.events)?;
        let shared = skel.maps.bss_data.take().ok_or_else(|| Error::failure("no data section"))?;
        let found = || read_shared(&shared.first_node) != 0;

        // Where a page's flags hold its zone must be known before pages are seen.
        run_once(&skel.progs.learn_memcg)?;
        if !found() && plan.hook.programs.contains(&"learn_ksym") {
            run_once(&skel.progs.learn_ksym)?;
        }
        run_once(&skel.progs.read_zones)?;
        let _links = plan.attach(skel.object())?;
        let _charges = charge.attach(skel.object())?;
        if !found() && plan.hook.attach.len() > 1 {
            lure(found);
            run_once(&skel.progs.read_zones)?;
        }
        let mut notes = plan.notes();
        notes.extend(charge.unseen);
        if !found() {
            notes.push("no memory node was found: nodes, zones and watermarks are not known".into());
        }

        let lost = || read_shared(&shared.lost_events) + missed(skel.object());
        let pace = Pace { at_start: false, at_end: true, by_row: !self.counts() };
        let run = Run { hook: plan.hook.name, notes, pace, lost: &lost };
        let names = GfpNames::of(&ctx.kernel);
        let alloc = AllocNames::of(&ctx.kernel, &names);
        let zones = || {
            run_once(&skel.progs.read_zones)?;
            read_zones(&skel.maps.zones, read_shared(&shared.rounds))
        };
        let departed = Departed::new(ctx.procfs.in_first_pid_namespace());
        let names = Names { gfp: names, alloc };
        let mut reporter = Reporter::new(&self, names, zones()?, departed);
        if self.failed {
            let mut failures = Failures::new(&ctx, self.no_lines);
            stream::<RawFailure>(&ctx, run, &ring, self.printer()?, |step, printer| match step {
                Step::Event(raw) => failures.event(&mut reporter, &raw, printer),
                Step::Report => Ok(()),
                Step::End => {
                    if printer.wants_profile() {
                        printer.profile(failures.profile());
                    }
                    Ok(())
                }
            })?;
        } else {
            stream::<RawEvent>(&ctx, run, &ring, self.printer()?, |step, printer| match step {
                Step::Event(raw) => printer.row(&reporter.request(&raw)),
                Step::Report if self.counts() => {
                    reporter.zones = zones()?;
                    reporter.report(&ctx, &skel.maps.counts, printer)
                }
                Step::Report | Step::End => Ok(()),
            })?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Paf {
    /// Whether requests are counted, not shown one by one.
    fn counts(&self) -> bool {
        !self.events && !self.failed
    }

    fn for_profile(&self) -> bool {
        !matches!(self.output.output, StackFormat::Table | StackFormat::Json | StackFormat::Csv)
    }

    /// Whether every column is shown.
    fn all(&self) -> bool {
        self.all_fields || self.output.output != StackFormat::Table
    }

    fn printer(&self) -> Result<Printer> {
        let mode: Group = match (self.events, self.failed) {
            (true, _) => EVENT,
            (_, true) => FAILURE,
            _ => COUNTED,
        };
        let groups = if self.all() { mode | ALL } else { mode };
        let style =
            StackStyle { unit: self.output.unit, ..(&self.output).into() };
        Printer::of_stacks::<Request, 21>(&style, groups)
    }
}

/// How refused charges of memory cgroups are seen.
struct Charge {
    /// The programs, and the function if they must be told it.
    programs: Vec<&'static str>,
    probed: Option<&'static str>,
    unseen: Option<String>,
}

impl Charge {
    fn find(options: &Paf, kernel: &KernelFacts, plan: &Plan) -> Self {
        let none = |unseen| Self { programs: Vec::new(), probed: None, unseen };
        if !options.failed {
            return none(None);
        }
        let by_fexit = plan.hook.programs.contains(&"fexit_charge");
        let by_kprobe = plan.hook.programs.contains(&"enter_charge");
        let there = |name: &&&'static str| {
            let plain = if by_fexit { Need::Func(name) } else { Need::Symbol(name) };
            kernel.has(plain) && kernel.has(Need::Params(name, 3))
        };
        match CHARGES.iter().find(there).filter(|_| by_fexit || by_kprobe) {
            Some(&name) if by_fexit => {
                let program = if name == CHARGES[0] { "fexit_charge" } else { "fexit_trycharge" };
                Self { programs: vec![program], probed: None, unseen: None }
            }
            Some(&name) => Self {
                programs: vec!["enter_charge", "leave_charge"],
                probed: Some(name),
                unseen: None,
            },
            None => none(Some(
                "what memory cgroups refuse is only seen where it ends in a request that got \
                 nothing: slab objects and memory of programs are not among that"
                    .into(),
            )),
        }
    }

    fn select(&self, object: &mut OpenObject) {
        for mut program in object.progs_mut() {
            let name = program.name().to_str().unwrap_or_default().to_owned();
            if name.contains("charge") {
                program.set_autoload(self.programs.contains(&name.as_str()));
            }
        }
    }

    fn attach(&self, object: &Object) -> Result<Vec<Link>> {
        let mut links = Vec::new();
        for program in object.progs_mut() {
            let name = program.name().to_str().unwrap_or_default().to_owned();
            if self.programs.contains(&name.as_str()) {
                let link = match self.probed {
                    Some(function) => program.attach_kprobe(name == "leave_charge", function),
                    None => program.attach(),
                };
                links.push(link.context(|| format!("attaching {name}"))?);
            }
        }
        Ok(links)
    }
}

/// Runs of the counting program that did not take place: an interrupt asked for
/// pages while it was at work on that CPU.
fn missed(object: &Object) -> u64 {
    let counting = |program: &ProgramMut<'_>| program.name() == "on_alloc";
    object.progs_mut().filter(counting).map(|program| skipped::runs(&program)).sum()
}

/// By their place in the table.
type Zones = HashMap<u16, ZoneThen>;

fn read_zones(map: &impl MapCore, round: u64) -> Result<Zones> {
    let mut zones = Zones::new();
    for (place, raw) in (0u32..).zip(nodes::entries::<RawZone>(map)?) {
        if let (Ok(place), true) = (u16::try_from(place), raw.round == round && round > 0) {
            let zone = zone!(raw.state);
            let then = ZoneThen {
                nid: zone.nid,
                name: zone.name.into(),
                min: zone.min,
                low: zone.low,
                high: zone.high,
                free: zone.free,
                present: zone.present,
            };
            zones.insert(place, then);
        }
    }
    Ok(zones)
}

/// Requests that are the same but for the process's own time.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Kind {
    who: Faulter,
    gfp: u32,
    alloc_flags: u32,
    zone: u16,
    order: u8,
}

#[derive(Clone, Copy, Default, PartialEq, Eq)]
struct Amount {
    requests: u64,
    failed: u64,
}

/// Makes rows of what the kernel side has.
struct Reporter<'run> {
    options: &'run Paf,
    names: Names,
    zones: Zones,
    gfp_words: HashMap<u32, Rc<str>>,
    alloc_words: HashMap<u32, Rc<str>>,
    before: HashMap<Kind, Amount>,
    departed: Departed<Faulter>,
}

impl<'run> Reporter<'run> {
    fn new(options: &'run Paf, names: Names, zones: Zones, departed: Departed<Faulter>) -> Self {
        Self {
            options,
            names,
            zones,
            gfp_words: HashMap::new(),
            alloc_words: HashMap::new(),
            before: HashMap::new(),
            departed,
        }
    }

    fn with_flags(&mut self, gfp: u32, alloc_flags: u32) -> Request {
        let names = &self.names;
        let words = |gfp: &u32| names.gfp.words(u64::from(*gfp)).into();
        let gfp_words = Rc::clone(self.gfp_words.entry(gfp).or_insert_with_key(words));
        let known = Some(alloc_flags).filter(|&flags| flags != FLAGS_UNKNOWN);
        let words = |flags: &u32| names.alloc.words(u64::from(*flags)).into();
        let alloc_words =
            known.map(|it| Rc::clone(self.alloc_words.entry(it).or_insert_with_key(words)));
        Request { gfp, gfp_words, alloc_flags: known, alloc_words, ..Request::default() }
    }

    /// A single request, with its zone as it was then.
    fn request(&mut self, raw: &RawEvent) -> Request {
        let zone = self.zones.get(&raw.zone).map(|zone| ZoneThen {
            min: raw.min,
            low: raw.low,
            high: raw.high,
            free: raw.free,
            present: raw.present,
            ..zone.clone()
        });
        Request {
            time: Some(wall_time(raw.time_ns)),
            tgid: raw.tgid,
            tid: Some(raw.tid),
            comm: text(&raw.comm).into(),
            zone,
            order: raw.order.into(),
            failed: raw.failed.into(),
            ..self.with_flags(raw.gfp, raw.alloc_flags)
        }
    }

    fn report(
        &mut self,
        ctx: &Context,
        counts: &libbpf_rs::MapMut<'_>,
        printer: &mut Printer,
    ) -> Result<()> {
        let time = wall_time(monotonic_ns());
        let mut idle: Vec<(RawKey, Kind)> = Vec::new();
        let mut sums: HashMap<(Kind, Rc<str>), Amount> = HashMap::new();
        let before = &mut self.before;
        let all = self.options.all();
        batch::for_each(counts, |raw: RawKey, count: RawCount| {
            let mut kind = Kind {
                who: Faulter(raw.who),
                gfp: raw.gfp,
                alloc_flags: raw.alloc_flags,
                zone: raw.zone,
                order: raw.order,
            };
            let now = Amount { requests: count.requests, failed: count.failed };
            let then = before.insert(kind, now).unwrap_or_default();
            if now == then {
                idle.push((raw, kind));
                return;
            }
            // Where they are not shown, they do not tell rows apart; nor does what
            // a process executes, beyond its name.
            if !all {
                kind.alloc_flags = FLAGS_UNKNOWN;
            }
            kind.who = kind.who.whatever_it_runs();
            let sum = sums.entry((kind, text(&count.comm).into())).or_default();
            sum.requests += now.requests.saturating_sub(then.requests);
            sum.failed += now.failed.saturating_sub(then.failed);
        })?;
        let mut rows: Vec<Request> = Vec::with_capacity(sums.len());
        for ((kind, comm), amount) in sums {
            rows.push(Request { comm, ..self.counted(time, kind, amount) });
        }
        rows.sort_by_cached_key(|row| {
            let place = row.zone.as_ref().map(|zone| (zone.nid, Rc::clone(&zone.name)));
            (std::cmp::Reverse(row.count), row.tgid, place, row.order, row.gfp, row.alloc_flags)
        });
        let top = self.options.top.map_or(usize::MAX, |top| top as usize);
        let rest = rows.split_off(top.min(rows.len()));
        rows.iter().try_for_each(|row| printer.row(row))?;
        if !rest.is_empty() {
            let requests: u64 = rest.iter().filter_map(|row| row.count).sum();
            printer.remark(&format!("{} more with {requests} requests (--top)", rest.len()))?;
        }
        let owners = idle.iter().map(|(_, kind)| kind.who);
        let gone = self.departed.after_report(owners, |who| who.lives(&ctx.procfs));
        for (raw, kind) in idle.into_iter().filter(|(_, kind)| gone.contains(&kind.who)) {
            // SAFETY: a plain structure without padding, read as bytes.
            counts.delete(unsafe { plain::as_bytes(&raw) })?;
            self.before.remove(&kind);
        }
        Ok(())
    }

    fn counted(&mut self, time: WallTime, kind: Kind, amount: Amount) -> Request {
        Request {
            time: Some(time),
            count: Some(amount.requests),
            tgid: kind.who.tgid(),
            zone: self.zones.get(&kind.zone).filter(|_| kind.zone != ZONE_UNKNOWN).cloned(),
            order: kind.order.into(),
            failed: amount.failed,
            ..self.with_flags(kind.gfp, kind.alloc_flags)
        }
    }
}

/// Requests that got nothing.
struct Failures<'run> {
    ctx: &'run Context,
    stacks: stacks::Names,
    cgroups: Cgroups,
    begin: Instant,
    /// For a profile: by process, reason and addresses.
    totals: HashMap<(Faulter, String, Vec<u64>), Sample>,
}

impl<'run> Failures<'run> {
    fn new(ctx: &'run Context, no_lines: bool) -> Self {
        Self {
            ctx,
            stacks: stacks::Names::new(!no_lines),
            cgroups: Cgroups::new(&ctx.procfs),
            begin: Instant::now(),
            totals: HashMap::new(),
        }
    }

    fn event(
        &mut self,
        reporter: &mut Reporter<'_>,
        raw: &RawFailure,
        printer: &mut Printer,
    ) -> Result<()> {
        let reason = Reason::of(raw.reason)
            .ok_or_else(|| Error::failure(format!("reason {} from the kernel side", raw.reason)))?;
        let kernel = &raw.kernel[..(raw.kernel_frames as usize).min(raw.kernel.len())];
        let user = &raw.user[..(raw.user_frames as usize).min(raw.user.len())];
        let who = Faulter(raw.who);
        let request = reporter.request(&raw.event);
        if printer.wants_profile() {
            let words = reason.words(request.gfp);
            let key = (who, words.clone(), [kernel, user].concat());
            if let Some(sample) = self.totals.get_mut(&key) {
                sample.values[0] += 1;
                return Ok(());
            }
            let labels = vec![
                ("pid".into(), request.tgid.to_string()),
                ("comm".into(), request.comm.to_string()),
                ("reason".into(), words),
            ];
            let frames = self.frames(who, kernel, user);
            self.totals.insert(key, Sample { frames, values: vec![1], labels });
            return Ok(());
        }
        printer.row(&Request {
            reason: Some(reason),
            cgroup: self.cgroups.shown(raw.cgroup),
            frames: self.frames(who, kernel, user),
            ..request
        })
    }

    fn frames(
        &mut self,
        who: Faulter,
        kernel: &[u64],
        user: &[u64],
    ) -> Vec<crate::frame::Frame> {
        // A program may have mapped more since the last failure.
        self.stacks.new_report();
        let mut frames = trim(self.stacks.kernel_frames(kernel));
        if !user.is_empty() {
            frames.extend(self.stacks.frames(&self.ctx.procfs, who, user));
        }
        frames
    }

    fn profile(&mut self) -> Profile {
        let duration = self.begin.elapsed();
        Profile {
            command: "paf --failed".into(),
            title: "Requests for pages that got nothing".into(),
            types: vec![("failures", "count")],
            default_type: 0,
            time: SystemTime::now().checked_sub(duration).unwrap_or(SystemTime::UNIX_EPOCH),
            duration,
            samples: self.totals.drain().map(|(_, sample)| sample).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attach::plan;
    use crate::frame::Frame;
    use crate::frame::Symbol;
    use crate::output::tests::golden;

    fn request() -> Request {
        Request {
            time: Some(WallTime::fixed()),
            tgid: 4711,
            comm: "x".into(),
            zone: Some(ZoneThen {
                nid: 0,
                name: "Normal".into(),
                min: 11_081,
                low: 13_851,
                high: 16_621,
                free: 212_705,
                present: 258_013,
            }),
            gfp: 0x14_0dca,
            gfp_words: "GFP_HIGHUSER_MOVABLE|__GFP_ZERO|__GFP_COMP".into(),
            alloc_flags: Some(0x841),
            alloc_words: Some("WMARK_LOW|CPUSET|KSWAPD".into()),
            ..Request::default()
        }
    }

    #[test]
    fn the_output_is_the_documented_one() {
        let counted = Request { count: Some(7919), failed: 23, ..request() };
        let unknown = Request {
            count: Some(1),
            zone: None,
            alloc_flags: None,
            alloc_words: None,
            order: 9,
            ..request()
        };
        golden::<Request, 21>("paf", COUNTED | ALL, &[counted, unknown]);
        let event = Request { tid: Some(4713), ..request() };
        golden::<Request, 21>("paf-events", EVENT, &[event]);
        let symbol = Some(Symbol { name: "__alloc_pages".into(), offset: 0x1d, source: None });
        let failure = Request {
            tid: Some(4713),
            failed: 1,
            reason: Some(Reason::Fragmentation),
            order: 9,
            frames: vec![Frame { address: 0xffff_ffff_8100_0000, symbol, ..Frame::default() }],
            ..request()
        };
        let refused = Request {
            zone: None,
            reason: Some(Reason::Cgroup),
            cgroup: Some("/batch".into()),
            ..failure.clone()
        };
        golden::<Request, 21>("paf-failed", FAILURE, &[failure, refused]);
    }

    #[test]
    fn rows_fit_eighty_columns() {
        for mode in [COUNTED, EVENT, FAILURE] {
            let shown = Request::COLUMNS
                .iter()
                .filter(|column| column.group == 0 || column.group & mode != 0)
                .filter(|column| column.group != crate::output::MACHINE && column.unit != crate::output::Unit::Stack);
            let widths: usize = shown.map(|column| column.width.max(column.head.len()) + 1).sum();
            assert!(widths - 1 <= 98, "{mode}: {widths}");
            assert!(mode != COUNTED || widths - 1 <= 80, "{widths}");
        }
    }

    #[test]
    fn the_function_comes_first() {
        let every: Vec<Need> =
            CHOICE.hooks.iter().flat_map(|hook| hook.needs.iter().copied()).collect();
        let without = |lacks: &[Need]| -> Vec<Need> {
            every.iter().copied().filter(|need| !lacks.contains(need)).collect()
        };
        let chosen = |has: &[Need]| plan(&KernelFacts::fake(has), &CHOICE, None).unwrap().hook.name;
        assert_eq!(chosen(&every), "fentry:get_page_from_freelist");
        assert_eq!(chosen(&without(&[Need::Fentry])), "kprobe:get_page_from_freelist");
        assert_eq!(chosen(&without(&[Need::Fentry, Need::Kprobe])), "tp_btf:mm_page_alloc");
    }
}

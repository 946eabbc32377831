//! `swapin`: pages that come back from swap and the wait for them, by process, and
//! pages written out beside them.

use std::collections::HashMap;
use std::mem::MaybeUninit;
use std::process::ExitCode;
use std::rc::Rc;

use clap::Args;
use libbpf_rs::Link;
use libbpf_rs::MapCore as _;
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
use crate::batch;
use crate::cli::KernelArgs;
use crate::cli::LimitArgs;
use crate::cli::OutputArgs;
use crate::cli::TargetArgs;
use crate::context::Context;
use crate::departed::Departed;
use crate::engine::Pace;
use crate::engine::Run;
use crate::engine::every;
use crate::error::Context as _;
use crate::error::Error;
use crate::error::Result;
use crate::event::read_shared;
use crate::event::text;
use crate::faults::Faulter;
use crate::faults::hooks::Attached;
use crate::kernel::KernelFacts;
use crate::kernel::Need;
use crate::output::ALWAYS;
use crate::output::Column;
use crate::output::MACHINE;
use crate::output::Printer;
use crate::output::Row;
use crate::output::Unit;
use crate::output::Value;
use crate::output::describe;
use crate::perf;
use crate::rights;
use crate::set_flights;
use crate::set_target;
use crate::syscalls;
use crate::target;
use crate::time::WallTime;
use crate::time::monotonic_ns;
use crate::time::wall_time;
use crate::units::page_size;
use crate::units::pages_to_bytes;

skeleton!("swapin");
use skel::types::swap_count as RawCount;

// SAFETY: integers and a byte array without implicit padding (the size is asserted
// in swapin.bpf.c), so every bit pattern is a valid value.
unsafe impl plain::Plain for RawCount {}

/// Programs that say how long a process waits and what it wrote. They are at
/// functions that may be missing, renamed or inlined.
const BESIDE: &[&str] = &[
    "fault_leave",
    "lock_enter",
    "lock_leave",
    "submit_enter",
    "submit_leave",
    "device_enter",
    "load_leave",
    "store_leave",
];
const BESIDE_K: &[&str] = &[
    "fault_leave_k",
    "lock_enter_k",
    "lock_leave_k",
    "submit_enter_k",
    "submit_leave_k",
    "device_enter_k",
    "load_leave_k",
    "store_enter_k",
    "store_leave_k",
];
const READ_WRITE: &[&str] = &["read_enter", "read_leave", "write_enter"];
const READ_WRITE_K: &[&str] = &["read_enter_k", "read_leave_k", "write_enter_k"];

/// The program of the hook that sees faults only.
const ON_MAJOR: &str = "on_major";

static CHOICE: Choice = Choice {
    purpose: "to see pages read from swap",
    hooks: &[
        Hook {
            name: "fexit:swap_read_folio",
            programs: BESIDE,
            attach: READ_WRITE,
            needs: &[
                Need::KernelBtf,
                Need::ReadKernel,
                Need::Func("swap_read_folio"),
                Need::Func("__swap_writepage"),
                Need::Fentry,
            ],
            loses: "",
        },
        Hook {
            name: "fexit:swap_readpage",
            programs: BESIDE,
            attach: READ_WRITE,
            needs: &[
                Need::KernelBtf,
                Need::ReadKernel,
                Need::Func("swap_readpage"),
                Need::Func("__swap_writepage"),
                Need::Fentry,
            ],
            loses: "",
        },
        Hook {
            name: "kprobe:swap_read_folio",
            programs: BESIDE_K,
            attach: READ_WRITE_K,
            needs: &[
                Need::Field("task_struct", "tgid"),
                Need::ReadKernel,
                Need::Symbol("swap_read_folio"),
                Need::Symbol("__swap_writepage"),
                Need::Kprobe,
            ],
            loses: "",
        },
        Hook {
            name: "kprobe:swap_readpage",
            programs: BESIDE_K,
            attach: READ_WRITE_K,
            needs: &[
                Need::Field("task_struct", "tgid"),
                Need::ReadKernel,
                Need::Symbol("swap_readpage"),
                Need::Symbol("__swap_writepage"),
                Need::Kprobe,
            ],
            loses: "",
        },
        Hook {
            name: "perf:page_faults_maj",
            programs: &[ON_MAJOR],
            attach: &[],
            needs: &[
                Need::KernelBtf,
                Need::ReadKernel,
                Need::Helper("find_vma"),
                Need::PerfEvents,
            ],
            loses: "only faults are seen, and only those of anonymous memory: no pages, no wait, \
                    nothing that is written out",
        },
    ],
};

/// What each program beside the reads stands at: the newest name first.
const PLACES: [(&str, &[&str]); 7] = [
    ("read", &["swap_read_folio", "swap_readpage"]),
    ("fault", &["do_swap_page"]),
    ("lock", &["__folio_lock_or_retry", "__lock_page_or_retry"]),
    ("submit", &["swap_read_submit"]),
    ("device", &["swap_add_folio"]),
    ("load", &["zswap_load", "__frontswap_load"]),
    ("store", &["zswap_store", "__frontswap_store"]),
];

/// Pages read from swap by process, the wait for them, and pages written out
///
/// Each interval: how many pages a process had read back, from which sort of
/// swap, how long it waited, and how many pages it wrote out itself, as whoever
/// reclaims memory does.
#[derive(Args, Debug)]
#[command(after_long_help = describe(Swapin::COLUMNS))]
pub struct Swapin {
    /// At most this many rows a report, those with the longest wait
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    top: Option<u32>,
    /// Processes there is room for
    #[arg(long, value_name = "N", default_value_t = 32_768)]
    #[arg(value_parser = clap::value_parser!(u32).range(1..=1 << 24))]
    max_entries: u32,
    #[command(flatten)]
    targets: TargetArgs,
    #[command(flatten)]
    limits: LimitArgs,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    kernel: KernelArgs,
}

/// Pages, and nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Amounts {
    faults: u64,
    read: u64,
    read_ram: u64,
    zswap: u64,
    zero: u64,
    wait_ns: u64,
    written: u64,
    written_ram: u64,
    stored: u64,
}

impl Amounts {
    fn since(self, before: Self) -> Self {
        Self {
            faults: self.faults.saturating_sub(before.faults),
            read: self.read.saturating_sub(before.read),
            read_ram: self.read_ram.saturating_sub(before.read_ram),
            zswap: self.zswap.saturating_sub(before.zswap),
            zero: self.zero.saturating_sub(before.zero),
            wait_ns: self.wait_ns.saturating_sub(before.wait_ns),
            written: self.written.saturating_sub(before.written),
            written_ram: self.written_ram.saturating_sub(before.written_ram),
            stored: self.stored.saturating_sub(before.stored),
        }
    }
}

impl From<&RawCount> for Amounts {
    fn from(raw: &RawCount) -> Self {
        Self {
            faults: raw.faults,
            read: raw.r#in,
            read_ram: raw.in_ram,
            zswap: raw.in_zswap,
            zero: raw.in_zero,
            wait_ns: raw.wait_ns,
            written: raw.out,
            written_ram: raw.out_ram,
            stored: raw.out_zswap,
        }
    }
}

/// What can be told on this kernel through this hook.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Sees {
    /// Pages read and written, and the time it took.
    pages: bool,
    /// Whether a device is memory.
    ram: bool,
    /// What zswap held.
    zswap: bool,
    /// What zswap took.
    stores: bool,
    /// Pages that are all zeroes and never read.
    zero: bool,
    /// Faults.
    faults: bool,
}

/// Of one process in an interval.
#[derive(Clone, Debug)]
struct Swapped {
    time: WallTime,
    tgid: u32,
    comm: Rc<str>,
    amounts: Amounts,
    sees: Sees,
}

impl Row<12> for Swapped {
    const COLUMNS: [Column; 12] = [
        Column::new("TIME", "time", Unit::Time, 8, ALWAYS, "when it was counted up to"),
        Column::new("PID", "pid", Unit::Id, 7, ALWAYS, "process (thread group)"),
        Column::new("COMM", "comm", Unit::Text, 15, ALWAYS, "name of the process"),
        Column::new("FAULTS", "faults", Unit::Count, 7, ALWAYS, "faults for which something had to be read"),
        Column::new("WAIT", "wait_us", Unit::Count, 9, ALWAYS, "time it waited, in microseconds"),
        Column::new("IN", "swapped_in", Unit::Size, 8, ALWAYS, "read from swap areas for it, readahead too (pswpin)"),
        Column::new("INRAM", "swapped_in_ram", Unit::Size, 8, ALWAYS, "of IN: from a device in memory (zram)"),
        Column::new("ZSWAP", "zswapped_in", Unit::Size, 8, ALWAYS, "found in zswap, not read (zswpin)"),
        Column::new("OUT", "swapped_out", Unit::Size, 8, ALWAYS, "written to swap areas by it, whosever (pswpout)"),
        Column::new("ZERO", "zeroes_in", Unit::Size, 8, MACHINE, "known to be zeroes, not read (swpin_zero)"),
        Column::new("OUTRAM", "swapped_out_ram", Unit::Size, 8, MACHINE, "of OUT: to a device in memory"),
        Column::new("ZSWAPOUT", "zswapped_out", Unit::Size, 8, MACHINE, "stored in zswap by it (zswpout)"),
    ];

    fn values(&self) -> [Value<'_>; 12] {
        let (amounts, sees) = (self.amounts, self.sees);
        let pages = |seen: bool, pages: u64| {
            Value::bytes((sees.pages && seen).then(|| pages_to_bytes(pages)))
        };
        [
            Value::Time(self.time),
            Value::Count(self.tgid.into()),
            Value::Text((&*self.comm).into()),
            Value::count(sees.faults.then_some(amounts.faults)),
            // Rounded up: no wait took no time at all.
            Value::count(sees.pages.then(|| amounts.wait_ns.div_ceil(1000))),
            pages(true, amounts.read),
            pages(sees.ram, amounts.read_ram),
            pages(sees.zswap, amounts.zswap),
            pages(true, amounts.written),
            pages(sees.zero, amounts.zero),
            pages(sees.ram, amounts.written_ram),
            pages(sees.stores, amounts.stored),
        ]
    }
}

/// The part of a program's name that says where it is (`PLACES`), and whether it is
/// a kprobe.
fn place(program: &str) -> (&str, bool) {
    let stem = program.split('_').next().unwrap_or(program);
    (stem, program.ends_with("_k"))
}

/// The function of this kernel that a program is for.
fn function(kernel: &KernelFacts, program: &str) -> Option<&'static str> {
    let (stem, kprobe) = place(program);
    let (_, names) = PLACES.iter().find(|(of, _)| *of == stem)?;
    let found = |name: &&'static str| match kprobe {
        true => kernel.has(Need::Symbol(name)),
        false => kernel.has(Need::Func(name)),
    };
    names.iter().copied().find(found)
}

impl Swapin {
    /// Loads the programs of the plan that have a function here.
    fn select(ctx: &Context, plan: &Plan, object: &mut OpenObject, storage: bool) -> Result<Sees> {
        plan.select(object);
        let reads = !plan.hook.attach.is_empty();
        let mut sees = Sees { pages: reads, faults: !reads, ..Sees::default() };
        for mut program in object.progs_mut() {
            let Some(name) = program.name().to_str().map(str::to_owned) else { continue };
            if name == syscalls::FORGET {
                program.set_autoload(reads && !storage);
                continue;
            }
            if name == ON_MAJOR {
                program.set_autoload(!reads);
                continue;
            }
            let (stem, kprobe) = place(&name);
            let chosen = plan.hook.programs.contains(&&*name) || plan.hook.attach.contains(&&*name);
            if !chosen || stem == "write" {
                continue;
            }
            let func = function(&ctx.kernel, &name);
            program.set_autoload(func.is_some());
            if func.is_some() && !kprobe {
                program.set_attach_target(0, func.map(str::to_owned))?;
            }
            if func.is_some() {
                match stem {
                    "fault" => sees.faults = true,
                    "load" => sees.zswap = true,
                    "store" => sees.stores = true,
                    "device" => sees.zero = true,
                    _ => {}
                }
            }
        }
        Ok(sees)
    }
}

/// Attaches what was loaded. Dropping the links detaches it.
fn attach(ctx: &Context, plan: &Plan, object: &Object) -> Result<Vec<Link>> {
    let mut links = Vec::new();
    for program in object.progs_mut() {
        let name = program.name().to_str().unwrap_or_default().to_owned();
        if !program.autoload() || name == ON_MAJOR {
            continue;
        }
        let link = match (place(&name), function(&ctx.kernel, &name)) {
            ((_, true), Some(func)) => program.attach_kprobe(!name.ends_with("_enter_k"), func),
            _ => program.attach(),
        };
        links.push(link.context(|| format!("attaching {} ({name})", plan.hook.name))?);
    }
    Ok(links)
}

impl Tool for Swapin {
    const CHOICE: Option<&'static Choice> = Some(&CHOICE);
    const COLUMNS: &'static [Column] = &<Swapped as Row<12>>::COLUMNS;

    fn run(self) -> Result<ExitCode> {
        let limits = (&self.limits).into();
        let ctx =
            Context::new("swapin", &self.kernel, limits, |procfs| self.targets.resolve(procfs))?;
        let plan = prepare(&ctx, &CHOICE)?;
        let with_storage = syscalls::has_storage(&ctx.kernel);
        let areas = ctx.kernel.address("swap_info");

        let mut storage = MaybeUninit::uninit();
        let builder = skel::SwapinSkelBuilder { obj_builder: ctx.kernel.object_builder()? };
        let mut open = builder.open(&mut storage)?;
        let mut sees = Self::select(&ctx, &plan, open.open_object_mut(), with_storage)?;
        let sees_device = sees.zero;
        let marks_zeroes = ctx.kernel.has(Need::Field("swap_info_struct", "zeromap"));
        sees.ram = areas.is_some();
        sees.zero |= areas.is_some() && marks_zeroes;
        open.maps.counts.set_max_entries(self.max_entries)?;
        set_target!(open, &ctx.target);
        set_flights!(open, with_storage);
        if let Some(constants) = open.maps.rodata_data.as_deref_mut() {
            constants.swap_info_addr = areas.unwrap_or(0);
            constants.huge_pages = ctx.procfs.huge_page_size().unwrap_or(0) / page_size();
            constants.load_says_true = ctx.kernel.returns("zswap_load").as_deref() == Some("bool");
            constants.sees_device = sees_device;
            constants.fault_page_size = page_size();
        }
        let mut skel = open
            .load()
            .context(|| format!("loading the programs of {}", plan.hook.name))
            .map_err(rights::explain_refusal)?;
        target::fill_set(&skel.maps.target_set, &ctx.target)?;
        let shared = skel.maps.bss_data.take().ok_or_else(|| Error::failure("no data section"))?;
        let links = attach(&ctx, &plan, skel.object())?;
        let events: &[_] = match sees.pages {
            true => &[],
            false => &[(ON_MAJOR, perf::PAGE_FAULTS_MAJ)],
        };
        let attached = Attached::with_links(skel.object(), &plan, &ctx.procfs, links, events)?;
        let missed = || match sees.pages {
            true => syscalls::missed(skel.object(), 0),
            false => attached.missed(&skel.maps.fault_runs),
        };
        let lost = || read_shared(&shared.lost_events) + missed();
        let mut notes = plan.notes();
        if sees.pages && areas.is_none() {
            notes.push(
                "INRAM is not known: the kernel hides swap_info (CONFIG_KALLSYMS_ALL)".into(),
            );
        }
        if sees.pages && marks_zeroes && areas.is_none() {
            notes.push("pages known to be zeroes count as read".into());
        }
        let pace = Pace { at_start: false, at_end: true, by_row: false };
        let run = Run { hook: plan.hook.name, notes, pace, lost: &lost };
        let printer = Printer::stdout::<Swapped, 12>((&self.output).into(), ALWAYS)?;
        let departed = Departed::new(ctx.procfs.in_first_pid_namespace());
        let mut counter = Counter { before: HashMap::new(), departed, sees };
        every(&ctx, run, printer, |printer| {
            counter.report(&self, &ctx, &skel.maps.counts, printer)?;
            attached.refresh(&ctx.procfs)
        })?;
        Ok(ExitCode::SUCCESS)
    }
}

/// What was counted up to the last report.
struct Counter {
    before: HashMap<u64, Amounts>,
    departed: Departed<u64>,
    sees: Sees,
}

impl Counter {
    fn report(
        &mut self,
        options: &Swapin,
        ctx: &Context,
        counts: &libbpf_rs::MapMut<'_>,
        printer: &mut Printer,
    ) -> Result<()> {
        let time = wall_time(monotonic_ns());
        let mut rows: Vec<Swapped> = Vec::new();
        let mut idle: Vec<u64> = Vec::new();
        batch::for_each(counts, |key: u64, raw: RawCount| {
            let now = Amounts::from(&raw);
            let before = self.before.insert(key, now).unwrap_or_default();
            if now == before {
                idle.push(key);
                return;
            }
            rows.push(Swapped {
                time,
                tgid: Faulter(key).tgid(),
                comm: text(&raw.comm).into(),
                amounts: now.since(before),
                sees: self.sees,
            });
        })?;
        rows.sort_by_key(|row| {
            let amounts = row.amounts;
            (std::cmp::Reverse((amounts.wait_ns, amounts.faults, amounts.written)), row.tgid)
        });
        let rest = rows.split_off(options.top.map_or(usize::MAX, |n| n as usize).min(rows.len()));
        rows.iter().try_for_each(|row| printer.row(row))?;
        if !rest.is_empty() {
            let wait: u64 = rest.iter().map(|row| row.amounts.wait_ns).sum();
            let us = wait.div_ceil(1000);
            printer.remark(&format!("{} more that waited {us} us (--top)", rest.len()))?;
        }
        let owners = idle.iter().copied();
        let gone = self.departed.after_report(owners, |key| Faulter(key).lives(&ctx.procfs));
        for key in idle.into_iter().filter(|key| gone.contains(key)) {
            counts.delete(&key.to_ne_bytes())?;
            self.before.remove(&key);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attach::plan;
    use crate::output::tests::golden;

    #[test]
    fn the_output_is_the_documented_one() {
        let amounts = Amounts {
            faults: 7919,
            read: 8009,
            read_ram: 1009,
            zswap: 101,
            zero: 23,
            wait_ns: 7_919_001,
            written: 503,
            written_ram: 211,
            stored: 17,
        };
        let all =
            Sees { pages: true, ram: true, zswap: true, stores: true, zero: true, faults: true };
        let known = Swapped {
            time: WallTime::fixed(),
            tgid: 4711,
            comm: "x".into(),
            amounts,
            sees: all,
        };
        let old = Swapped { sees: Sees { pages: true, faults: true, ..Sees::default() }, ..known.clone() };
        let faults = Swapped { sees: Sees { faults: true, ..Sees::default() }, ..known.clone() };
        golden::<Swapped, 12>("swapin", ALWAYS, &[known, old, faults]);
    }

    #[test]
    fn every_program_has_its_place() {
        for program in BESIDE.iter().chain(BESIDE_K) {
            let (stem, kprobe) = place(program);
            assert!(PLACES.iter().any(|(of, _)| *of == stem), "{program}");
            assert_eq!(kprobe, BESIDE_K.contains(program));
        }
    }

    #[test]
    fn functions_come_before_faults_alone() {
        let every: Vec<Need> =
            CHOICE.hooks.iter().flat_map(|hook| hook.needs.iter().copied()).collect();
        let without = |lacks: &[Need]| -> Vec<Need> {
            every.iter().copied().filter(|need| !lacks.contains(need)).collect()
        };
        let chosen = |has: &[Need]| plan(&KernelFacts::fake(has), &CHOICE, None).unwrap().hook.name;
        assert_eq!(chosen(&every), "fexit:swap_read_folio");
        assert_eq!(chosen(&without(&[Need::Func("swap_read_folio")])), "fexit:swap_readpage");
        assert_eq!(chosen(&without(&[Need::Fentry])), "kprobe:swap_read_folio");
        assert_eq!(chosen(&without(&[Need::Fentry, Need::Kprobe])), "perf:page_faults_maj");
    }
}

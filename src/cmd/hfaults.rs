//! `hfaults`: huge-page faults by process, and calls of madvise for huge pages.

use std::borrow::Cow;
use std::collections::HashMap;
use std::fs;
use std::mem::MaybeUninit;
use std::process::ExitCode;
use std::rc::Rc;

use clap::Args;
use libbpf_rs::MapCore as _;
use libbpf_rs::skel::OpenSkel as _;
use libbpf_rs::skel::Skel as _;
use libbpf_rs::skel::SkelBuilder as _;
use nix::errno::Errno;

use super::Tool;
use super::skeleton;
use crate::attach::Choice;
use crate::attach::Hook;
use crate::attach::prepare;
use crate::batch;
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
use crate::faults::Faulter;
use crate::faults::hooks::Attached;
use crate::kernel::Need;
use crate::output::ALWAYS;
use crate::output::Column;
use crate::output::Printer;
use crate::output::Row;
use crate::output::Unit;
use crate::output::Value;
use crate::output::describe;
use crate::rights;
use crate::set_target;
use crate::target;
use crate::time::WallTime;
use crate::time::monotonic_ns;
use crate::time::wall_time;

skeleton!("hfaults");
use skel::types::hfaults_call as RawCall;
use skel::types::hfaults_count as RawCount;

// SAFETY: integers and byte arrays without implicit padding (the sizes are
// asserted in hfaults.bpf.c), so every bit pattern is a valid value.
unsafe impl plain::Plain for RawCall {}
// SAFETY: as above.
unsafe impl plain::Plain for RawCount {}

/// Calls of madvise, from their tracepoints.
const MADVISE: Need = Need::Path("/sys/kernel/tracing/events/syscalls/sys_enter_madvise");

/// Without one no huge page is ever mapped by a fault.
const THP: Need = Need::Path("/sys/kernel/mm/transparent_hugepage/hpage_pmd_size");

static CHOICE: Choice = Choice {
    purpose: "to see huge-page faults",
    hooks: &[
        Hook {
            name: "fexit:do_huge_pmd_anonymous_page",
            programs: &[],
            attach: &["on_huge", "on_hugetlb", "leave_madvise", "enter_madvise"],
            needs: &[
                Need::KernelBtf,
                Need::ReadKernel,
                THP,
                MADVISE,
                Need::Func("do_huge_pmd_anonymous_page"),
                Need::Params("do_huge_pmd_anonymous_page", 1),
                Need::Func("hugetlb_fault"),
                Need::Params("hugetlb_fault", 4),
                Need::Fentry,
            ],
            loses: "",
        },
        Hook {
            name: "kprobe:do_huge_pmd_anonymous_page",
            programs: &[],
            attach: &["leave_huge", "leave_hugetlb", "enter_huge", "leave_madvise", "enter_madvise"],
            needs: &[
                Need::Field("vm_fault", "flags"),
                Need::ReadKernel,
                THP,
                MADVISE,
                Need::Symbol("do_huge_pmd_anonymous_page"),
                Need::Symbol("hugetlb_fault"),
                Need::Kprobe,
            ],
            loses: "",
        },
        Hook {
            name: "perf:mm_page_alloc",
            programs: &["on_minor"],
            attach: &[
                "on_alloc",
                "on_user_fault",
                "on_kernel_fault",
                "on_exit",
                "enter_madvise",
                "leave_madvise",
            ],
            needs: &[
                Need::KernelBtf,
                Need::ReadKernel,
                THP,
                MADVISE,
                Need::Helper("find_vma"),
                Need::BtfTracepoint("mm_page_alloc"),
                Need::BtfTracepoint("page_fault_user"),
                Need::BtfTracepoint("page_fault_kernel"),
                Need::BtfTracepoint("sched_process_exit"),
                Need::PerfEvents,
            ],
            loses: "told from a fault that allocated a page of that size: the huge zero page and \
                    faults the kernel makes on a process's behalf are not seen, and a huge page a \
                    memory cgroup refuses counts as one that was had",
        },
    ],
};

/// Huge-page faults by process, and calls of madvise for huge pages
///
/// Each interval: how many faults brought a huge page, and how many wanted one
/// and got small pages. With --calls: each madvise that asks for huge pages,
/// refuses them or collapses small ones.
#[derive(Args, Debug)]
#[command(after_long_help = about())]
pub struct Hfaults {
    /// A row for each call of madvise with MADV_HUGEPAGE, MADV_NOHUGEPAGE or
    /// MADV_COLLAPSE instead; -n counts rows
    #[arg(long, conflicts_with = "top")]
    calls: bool,
    /// At most this many rows a report, those with the most faults
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
    output: FormatArgs,
    #[command(flatten)]
    kernel: KernelArgs,
    #[command(flatten)]
    ring: RingArgs,
}

fn about() -> String {
    format!("{}\nWith --calls:\n{}", describe(Hfaults::COLUMNS), describe(&Call::COLUMNS))
}

/// Of one process in an interval.
#[derive(Clone, Debug)]
struct Counted {
    time: WallTime,
    tgid: u32,
    comm: Rc<str>,
    amounts: Amounts,
    zero_known: bool,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Amounts {
    huge: u64,
    fallback: u64,
    zero: u64,
    hugetlb: u64,
    calls: u64,
}

impl Amounts {
    fn since(self, before: Self) -> Self {
        Self {
            huge: self.huge.saturating_sub(before.huge),
            fallback: self.fallback.saturating_sub(before.fallback),
            zero: self.zero.saturating_sub(before.zero),
            hugetlb: self.hugetlb.saturating_sub(before.hugetlb),
            calls: self.calls.saturating_sub(before.calls),
        }
    }

    fn faults(self) -> u64 {
        self.huge + self.fallback + self.zero + self.hugetlb
    }
}

impl From<&RawCount> for Amounts {
    fn from(raw: &RawCount) -> Self {
        Self {
            huge: raw.huge,
            fallback: raw.fallback,
            zero: raw.zero,
            hugetlb: raw.hugetlb,
            calls: raw.calls,
        }
    }
}

impl Row<8> for Counted {
    const COLUMNS: [Column; 8] = [
        Column::new("TIME", "time", Unit::Time, 8, ALWAYS, "when they were counted up to"),
        Column::new("PID", "pid", Unit::Id, 7, ALWAYS, "process (thread group)"),
        Column::new("COMM", "comm", Unit::Text, 15, ALWAYS, "name of the process"),
        Column::new("HUGE", "huge", Unit::Count, 8, ALWAYS, "faults that brought a huge page (thp_fault_alloc)"),
        Column::new("FALLBACK", "fallback", Unit::Count, 8, ALWAYS, "none was to be had: small pages instead (thp_fault_fallback)"),
        Column::new("ZERO", "zero", Unit::Count, 7, ALWAYS, "reads that got the huge zero page"),
        Column::new("HUGETLB", "hugetlb", Unit::Count, 8, ALWAYS, "faults in memory of hugetlbfs"),
        Column::new("CALLS", "calls", Unit::Count, 6, ALWAYS, "calls of madvise for huge pages (--calls)"),
    ];

    fn values(&self) -> [Value<'_>; 8] {
        let amounts = self.amounts;
        [
            Value::Time(self.time),
            Value::Count(self.tgid.into()),
            Value::Text((&*self.comm).into()),
            Value::Count(amounts.huge),
            Value::Count(amounts.fallback),
            Value::count(self.zero_known.then_some(amounts.zero)),
            Value::Count(amounts.hugetlb),
            Value::Count(amounts.calls),
        ]
    }
}

/// A call of madvise.
#[derive(Clone, Debug)]
struct Call {
    time: WallTime,
    tgid: u32,
    tid: u32,
    comm: String,
    advice: u32,
    start: u64,
    bytes: u64,
    result: i64,
}

impl From<&RawCall> for Call {
    fn from(raw: &RawCall) -> Self {
        Self {
            time: wall_time(raw.time_ns),
            tgid: raw.tgid,
            tid: raw.tid,
            comm: text(&raw.comm),
            advice: raw.advice,
            start: raw.start,
            bytes: raw.bytes,
            result: raw.result,
        }
    }
}

impl Row<8> for Call {
    const COLUMNS: [Column; 8] = [
        Column::new("TIME", "time", Unit::Time, 8, ALWAYS, "when it returned"),
        Column::new("PID", "pid", Unit::Id, 7, ALWAYS, "process (thread group)"),
        Column::new("TID", "tid", Unit::Id, 7, ALWAYS, "thread"),
        Column::new("COMM", "comm", Unit::Text, 15, ALWAYS, "name of the process"),
        Column::new("ADVICE", "advice", Unit::Text, 10, ALWAYS, "HUGEPAGE, NOHUGEPAGE or COLLAPSE"),
        Column::new("START", "start", Unit::Text, 14, ALWAYS, "first address"),
        Column::new("BYTES", "bytes", Unit::Count, 10, ALWAYS, "length in bytes"),
        Column::new("RESULT", "result", Unit::Text, 7, ALWAYS, "ok, or the error (madvise(2))"),
    ];

    fn values(&self) -> [Value<'_>; 8] {
        [
            Value::Time(self.time),
            Value::Count(self.tgid.into()),
            Value::Count(self.tid.into()),
            Value::Text((&self.comm).into()),
            Value::Text(advice(self.advice)),
            Value::Text(format!("{:#x}", self.start).into()),
            Value::Count(self.bytes),
            Value::Text(result(self.result)),
        ]
    }
}

/// include/uapi/asm-generic/mman-common.h.
fn advice(number: u32) -> Cow<'static, str> {
    match number {
        14 => "HUGEPAGE".into(),
        15 => "NOHUGEPAGE".into(),
        25 => "COLLAPSE".into(),
        other => other.to_string().into(),
    }
}

fn result(code: i64) -> Cow<'static, str> {
    match i32::try_from(code) {
        Ok(0) => "ok".into(),
        Ok(code) => match Errno::from_raw(code.wrapping_neg()) {
            Errno::UnknownErrno => code.to_string().into(),
            errno => format!("{errno:?}").into(),
        },
        Err(_) => code.to_string().into(),
    }
}

impl Tool for Hfaults {
    const CHOICE: Option<&'static Choice> = Some(&CHOICE);
    const COLUMNS: &'static [Column] = &<Counted as Row<8>>::COLUMNS;

    fn run(self) -> Result<ExitCode> {
        let limits = (&self.limits).into();
        let ctx =
            Context::new("hfaults", &self.kernel, limits, |procfs| self.targets.resolve(procfs))?;
        let plan = prepare(&ctx, &CHOICE)?;

        let mut storage = MaybeUninit::uninit();
        let builder = skel::HfaultsSkelBuilder { obj_builder: ctx.kernel.object_builder()? };
        let mut open = builder.open(&mut storage)?;
        plan.select(open.open_object_mut());
        open.maps.counts.set_max_entries(self.max_entries)?;
        open.maps.events.set_max_entries(self.ring.bytes())?;
        set_target!(open, &ctx.target);
        let page = rustix::param::page_size() as u64;
        let size = ctx
            .procfs
            .huge_page_size()
            .filter(|size| size.is_power_of_two() && *size > page)
            .ok_or_else(|| Error::kernel("this kernel has no transparent huge pages"))?;
        if let Some(constants) = open.maps.rodata_data.as_deref_mut() {
            constants.every_call = self.calls.into();
            constants.zero_pages = zero_pages().into();
            constants.huge_size = size;
            constants.huge_order = (size / page).ilog2();
            constants.fault_page_size = page;
        }
        let mut skel = open
            .load()
            .context(|| format!("loading the programs of {}", plan.hook.name))
            .map_err(rights::explain_refusal)?;
        target::fill_set(&skel.maps.target_set, &ctx.target)?;
        let ring = Ring::new(&skel.maps.events)?;
        let shared = skel.maps.bss_data.take().ok_or_else(|| Error::failure("no data section"))?;
        let on_events = !plan.hook.programs.is_empty();
        let attached = Attached::new(skel.object(), &plan, &ctx.procfs, plan.hook.programs)?;
        let lost = || read_shared(&shared.lost_events) + attached.missed(&skel.maps.fault_runs);
        let pace = Pace { at_start: false, at_end: true, by_row: self.calls };
        let run = Run { hook: plan.hook.name, notes: plan.notes(), pace, lost: &lost };
        let style = (&self.output).into();
        let printer = match self.calls {
            true => Printer::stdout::<Call, 8>(style, ALWAYS)?,
            false => Printer::stdout::<Counted, 8>(style, ALWAYS)?,
        };
        let departed = Departed::new(ctx.procfs.in_first_pid_namespace());
        let mut counter = Counter { before: HashMap::new(), departed, zero_known: !on_events };
        stream::<RawCall>(&ctx, run, &ring, printer, |step, printer| match step {
            Step::Event(raw) => printer.row(&Call::from(&raw)),
            Step::Report => {
                if !self.calls {
                    counter.report(&self, &ctx, &skel.maps.counts, printer)?;
                }
                attached.refresh(&ctx.procfs)
            }
            Step::End => Ok(()),
        })?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Whether a read may map the huge zero page; the kernel's default is that it
/// may (Documentation/admin-guide/mm/transhuge.rst).
fn zero_pages() -> bool {
    fs::read_to_string("/sys/kernel/mm/transparent_hugepage/use_zero_page")
        .map_or(true, |text| text.trim() != "0")
}

/// What was counted up to the last report.
struct Counter {
    before: HashMap<u64, Amounts>,
    departed: Departed<u64>,
    zero_known: bool,
}

impl Counter {
    fn report(
        &mut self,
        options: &Hfaults,
        ctx: &Context,
        counts: &libbpf_rs::MapMut<'_>,
        printer: &mut Printer,
    ) -> Result<()> {
        let time = wall_time(monotonic_ns());
        let mut rows: Vec<Counted> = Vec::new();
        let mut idle: Vec<u64> = Vec::new();
        batch::for_each(counts, |key: u64, raw: RawCount| {
            let now = Amounts::from(&raw);
            let before = self.before.insert(key, now).unwrap_or_default();
            if now == before {
                idle.push(key);
                return;
            }
            rows.push(Counted {
                time,
                tgid: Faulter(key).tgid(),
                comm: text(&raw.comm).into(),
                amounts: now.since(before),
                zero_known: self.zero_known,
            });
        })?;
        rows.sort_by_key(|row| (std::cmp::Reverse(row.amounts.faults()), row.tgid));
        let rest = rows.split_off(options.top.map_or(usize::MAX, |n| n as usize).min(rows.len()));
        rows.iter().try_for_each(|row| printer.row(row))?;
        if !rest.is_empty() {
            let faults: u64 = rest.iter().map(|row| row.amounts.faults()).sum();
            printer.remark(&format!("{} more with {faults} faults (--top)", rest.len()))?;
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
    use crate::kernel::KernelFacts;
    use crate::output::tests::golden;

    #[test]
    fn the_output_is_the_documented_one() {
        let amounts = Amounts { huge: 7919, fallback: 23, zero: 7, hugetlb: 11, calls: 5 };
        let known = Counted {
            time: WallTime::fixed(),
            tgid: 4711,
            comm: "x".into(),
            amounts,
            zero_known: true,
        };
        let coarse = Counted { zero_known: false, ..known.clone() };
        golden::<Counted, 8>("hfaults", ALWAYS, &[known, coarse]);
        let call = Call {
            time: WallTime::fixed(),
            tgid: 4711,
            tid: 4713,
            comm: "x".into(),
            advice: 14,
            start: 0x7f00_0020_0000,
            bytes: 23 << 21,
            result: 0,
        };
        let failed = Call { advice: 25, result: -22, ..call.clone() };
        golden::<Call, 8>("hfaults-calls", ALWAYS, &[call, failed]);
    }

    #[test]
    fn rows_fit_eighty_columns() {
        for columns in [&Counted::COLUMNS, &Call::COLUMNS] {
            let widths: usize =
                columns.iter().map(|column| column.width.max(column.head.len()) + 1).sum();
            assert!(widths - 1 <= 88, "{widths}");
        }
    }

    #[test]
    fn what_has_no_name_keeps_its_number() {
        assert_eq!(advice(15), "NOHUGEPAGE");
        assert_eq!(advice(4), "4");
        assert_eq!(result(0), "ok");
        assert_eq!(result(-12), "ENOMEM");
        assert_eq!(result(-4000), "-4000");
        assert_eq!(result(i64::MIN), i64::MIN.to_string());
    }

    #[test]
    fn the_function_comes_first() {
        let every: Vec<Need> =
            CHOICE.hooks.iter().flat_map(|hook| hook.needs.iter().copied()).collect();
        let without = |lacks: &[Need]| -> Vec<Need> {
            every.iter().copied().filter(|need| !lacks.contains(need)).collect()
        };
        let chosen = |has: &[Need]| plan(&KernelFacts::fake(has), &CHOICE, None).unwrap().hook.name;
        assert_eq!(chosen(&every), "fexit:do_huge_pmd_anonymous_page");
        assert_eq!(chosen(&without(&[Need::Fentry])), "kprobe:do_huge_pmd_anonymous_page");
        assert_eq!(chosen(&without(&[Need::Fentry, Need::Kprobe])), "perf:mm_page_alloc");
    }
}

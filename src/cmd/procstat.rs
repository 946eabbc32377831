//! `procstat` (`-r`): memory of each process, as it leaves the CPU.

use std::cell::RefCell;
use std::cmp::Reverse;
use std::mem::MaybeUninit;
use std::process::ExitCode;

use clap::Args;
use clap::ValueEnum;
use libbpf_rs::skel::OpenSkel as _;
use libbpf_rs::skel::Skel as _;
use libbpf_rs::skel::SkelBuilder as _;

use super::Tool;
use super::skeleton;
use crate::attach::Choice;
use crate::attach::Hook;
use crate::attach::Plan;
use crate::attach::prepare;
use crate::cli::KernelArgs;
use crate::cli::LimitArgs;
use crate::cli::OutputArgs;
use crate::cli::RingArgs;
use crate::cli::TargetArgs;
use crate::context::Context;
use crate::engine::Pace;
use crate::engine::Ring;
use crate::engine::Run;
use crate::engine::Step;
use crate::engine::every;
use crate::engine::read_iterator;
use crate::engine::stream;
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
use crate::procfs::ProcFs;
use crate::rights;
use crate::rss;
use crate::rss::Parts;
use crate::set_target;
use crate::shown::Moment;
use crate::shown::Newest;
use crate::shown::Shown;
use crate::shown::Timed;
use crate::target;
use crate::time::WallTime;
use crate::time::monotonic_ns;
use crate::time::wall_time;
use crate::units::pages_to_bytes;

skeleton!("procstat");
use skel::types::procstat_sample as RawSample;

// SAFETY: fixed-width integers and byte arrays without implicit padding (the
// size is asserted in procstat.bpf.c), so every bit pattern is a valid value.
unsafe impl plain::Plain for RawSample {}

/// `SAMPLE_NO_MM` of procstat.bpf.c.
const NO_MM: u32 = 1;

/// `MARKS_PER_SLOT` of procstat.bpf.c.
const MARKS_PER_SLOT: u32 = 64;

/// The kernel thread that starts all others (rest_init(), init/main.c).
const KTHREADD: i32 = 2;

/// Reports between two sweeps that forget processes which have gone.
const SWEEP: u64 = 64;

const EXITS_UNSEEN: &str = "processes that live shorter than an interval are not seen";

static CHOICE: Choice = Choice {
    purpose: "to see the memory of processes",
    hooks: &[
        Hook {
            name: "fentry:finish_task_switch",
            programs: &["visit_marked", "visit_all"],
            attach: &["on_finish", "on_exit", "on_exec"],
            needs: &[
                Need::KernelBtf,
                Need::ReadKernel,
                Need::Func("finish_task_switch"),
                Need::Fentry,
                Need::TaskIter,
            ],
            loses: "",
        },
        Hook {
            name: "tp_btf:sched_switch",
            programs: &["visit_marked", "visit_all"],
            attach: &["on_switch", "on_exit", "on_exec"],
            needs: &[
                Need::KernelBtf,
                Need::ReadKernel,
                Need::BtfTracepoint("sched_switch"),
                Need::TaskIter,
            ],
            loses: "",
        },
        Hook {
            name: "iter:task",
            programs: &["visit_all"],
            attach: &[],
            needs: &[Need::KernelBtf, Need::ReadKernel, Need::TaskIter],
            loses: EXITS_UNSEEN,
        },
        Hook {
            name: "proc:status",
            programs: &[],
            attach: &[],
            needs: &[Need::Path("/proc/self/status")],
            loses: "processes that live shorter than an interval are not seen; before 6.2 the \
                    resident counters lag by what each thread's last 66 faults brought",
        },
    ],
};

/// Memory of each process, as it leaves the CPU
///
/// Lists every process once, then each process that ran and whose memory
/// changed, at most once an interval.
#[derive(Args, Debug)]
#[command(short_flag = 'r', after_long_help = describe(Procstat::COLUMNS))]
pub struct Procstat {
    /// A row at every context switch; -n counts rows
    #[arg(long, conflicts_with_all = ["sort", "top", "initial"])]
    every_switch: bool,
    /// First list every existing process (the default)
    #[arg(long, overrides_with = "no_initial")]
    initial: bool,
    /// Leave out the first list
    #[arg(long, overrides_with = "initial")]
    no_initial: bool,
    /// Also virtual size, peaks, data, stack, page tables and context switches
    #[arg(short = 'R', long)]
    all_fields: bool,
    /// Kernel threads too
    #[arg(long)]
    kthreads: bool,
    /// Order of the rows of a report, largest first (pid: smallest first)
    #[arg(long, value_enum, default_value = "rss")]
    sort: Sort,
    /// At most this many rows a report
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    top: Option<u32>,
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

/// Order of the rows of a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Sort {
    /// Resident size.
    Rss,
    /// Anonymous memory.
    Anon,
    /// Swapped out.
    Swap,
    /// PID, smallest first.
    Pid,
    /// Growth of the resident size since the process was last seen.
    Growth,
}

/// One process at one moment. Sizes in bytes.
#[derive(Clone, Debug, PartialEq)]
struct Sample {
    who: Moment,
    time: WallTime,
    comm: String,
    /// `None`: a kernel thread, which has none.
    memory: Option<Memory>,
    nvcsw: Option<u64>,
    nivcsw: Option<u64>,
    /// Change of the resident size since the process was last seen; `None`: it
    /// was not seen before.
    growth: Option<i64>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
struct Memory {
    anon: u64,
    file: u64,
    shmem: u64,
    swap: u64,
    vm: u64,
    vm_peak: u64,
    rss_peak: u64,
    data: u64,
    stack: u64,
    page_tables: u64,
    /// Each of the first four may be off by this much.
    error: u64,
}

impl Memory {
    fn resident(&self) -> u64 {
        self.anon + self.file + self.shmem
    }
}

impl Timed for Sample {
    fn moment(&self) -> Moment {
        self.who
    }
}

/// A process without memory has no size to grow from.
fn resident(memory: &Option<Memory>) -> i64 {
    memory.as_ref().map_or(0, |memory| i64::try_from(memory.resident()).unwrap_or(i64::MAX))
}

fn moment(raw: &RawSample) -> Moment {
    Moment { tgid: raw.tgid, start_ns: raw.start_ns, time_ns: raw.time_ns }
}

impl Sample {
    fn new(raw: &RawSample, inexact_pages: u64) -> Self {
        let bytes = pages_to_bytes;
        let memory = (raw.flags & NO_MM == 0).then(|| Memory {
            anon: bytes(raw.anon_pages),
            file: bytes(raw.file_pages),
            shmem: bytes(raw.shmem_pages),
            swap: bytes(raw.swap_pages),
            vm: bytes(raw.vm_pages),
            vm_peak: bytes(raw.vm_peak_pages),
            rss_peak: bytes(raw.rss_peak_pages),
            data: bytes(raw.data_pages),
            stack: bytes(raw.stack_pages),
            page_tables: raw.pgtable_bytes,
            error: bytes(u64::from(raw.error_pages) + inexact_pages),
        });
        Self {
            who: moment(raw),
            time: wall_time(raw.time_ns),
            comm: text(&raw.comm),
            memory,
            nvcsw: Some(raw.nvcsw),
            nivcsw: Some(raw.nivcsw),
            growth: None,
        }
    }

    fn key(&self, sort: Sort) -> i64 {
        let size = |of: fn(&Memory) -> u64| {
            self.memory.as_ref().map_or(-1, |memory| i64::try_from(of(memory)).unwrap_or(i64::MAX))
        };
        match sort {
            Sort::Rss => size(Memory::resident),
            Sort::Anon => size(|memory| memory.anon),
            Sort::Swap => size(|memory| memory.swap),
            Sort::Pid => -i64::from(self.who.tgid),
            // A new process has grown by all it has.
            Sort::Growth => self.growth.unwrap_or_else(|| size(Memory::resident)),
        }
    }
}

/// The columns of `-R`.
const ALL: Group = 1;
/// The column of `--sort growth`.
const GROWTH: Group = 2;

impl Row<18> for Sample {
    const COLUMNS: [Column; 18] = [
        Column::new("TIME", "time", Unit::Time, 8, ALWAYS, "when the counters were read"),
        Column::new("PID", "pid", Unit::Id, 7, ALWAYS, "process (thread group)"),
        Column::new("COMM", "comm", Unit::Text, 15, ALWAYS, "name of the process"),
        Column::new("SIZE", "size", Unit::Size, 9, ALWAYS, "resident: anon + file + shmem (VmRSS)"),
        Column::new("RSSANON", "rss_anon", Unit::Size, 9, ALWAYS, "resident anonymous (RssAnon)"),
        Column::new("RSSFILE", "rss_file", Unit::Size, 9, ALWAYS, "resident file-backed (RssFile)"),
        Column::new("RSSSHMEM", "rss_shmem", Unit::Size, 8, ALWAYS, "resident shared (RssShmem)"),
        Column::new("VMSWAP", "vm_swap", Unit::Size, 8, ALWAYS, "swapped-out anonymous (VmSwap)"),
        Column::new("VMSIZE", "vm_size", Unit::Size, 10, ALL, "address space (VmSize)"),
        Column::new("VMPEAK", "vm_peak", Unit::Size, 10, ALL, "largest address space (VmPeak)"),
        Column::new("RSSPEAK", "rss_peak", Unit::Size, 9, ALL, "largest resident size (VmHWM)"),
        Column::new("VMDATA", "vm_data", Unit::Size, 9, ALL, "private writable (VmData)"),
        Column::new("VMSTK", "vm_stack", Unit::Size, 7, ALL, "stack (VmStk)"),
        Column::new("VMPTE", "vm_pte", Unit::Size, 7, ALL, "page tables (VmPTE)"),
        Column::new("NVCSW", "nvcsw", Unit::Count, 8, ALL, "voluntary switches of the first thread"),
        Column::new("NIVCSW", "nivcsw", Unit::Count, 8, ALL, "involuntary switches of the first thread"),
        Column::new("GROWTH", "growth", Unit::Size, 9, GROWTH, "change of SIZE since last seen"),
        Column::new(
            "ERROR",
            "rss_error",
            Unit::Size,
            7,
            MACHINE,
            "each resident counter may be off by this; 0: exact",
        ),
    ];

    fn values(&self) -> [Value<'_>; 18] {
        let memory = self.memory.as_ref();
        let size = |of: fn(&Memory) -> u64| Value::bytes(memory.map(of));
        [
            Value::Time(self.time),
            Value::Count(self.who.tgid.into()),
            Value::Text((&self.comm).into()),
            size(Memory::resident),
            size(|m| m.anon),
            size(|m| m.file),
            size(|m| m.shmem),
            size(|m| m.swap),
            size(|m| m.vm),
            size(|m| m.vm_peak),
            size(|m| m.rss_peak),
            size(|m| m.data),
            size(|m| m.stack),
            size(|m| m.page_tables),
            Value::count(self.nvcsw),
            Value::count(self.nivcsw),
            self.growth.map_or(Value::Missing, Value::Change),
            size(|m| m.error),
        ]
    }
}

impl Tool for Procstat {
    const CHOICE: Option<&'static Choice> = Some(&CHOICE);
    const COLUMNS: &'static [Column] = &<Sample as Row<18>>::COLUMNS;

    fn run(self) -> Result<ExitCode> {
        let limits = (&self.limits).into();
        let ctx =
            Context::new("procstat", &self.kernel, limits, |procfs| self.targets.resolve(procfs))?;
        let plan = prepare(&ctx, &CHOICE)?;
        if self.every_switch && plan.hook.attach.is_empty() {
            return Err(Error::usage(format!(
                "--every-switch needs a hook at the context switch, and {} is none",
                plan.hook.name
            )));
        }
        if !plan.hook.needs_rights() {
            self.run_on_proc(&ctx, &plan)?;
        } else {
            self.run_on_bpf(&ctx, &plan)?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Procstat {
    fn groups(&self) -> Group {
        let all = if self.all_fields { ALL } else { 0 };
        let growth = if self.sort == Sort::Growth { GROWTH } else { 0 };
        all | growth
    }

    fn pace(&self) -> Pace {
        Pace {
            at_start: !self.no_initial && !self.every_switch,
            at_end: true,
            by_row: self.every_switch,
        }
    }

    fn run_on_bpf(&self, ctx: &Context, plan: &Plan) -> Result<()> {
        let parts = Parts::find(ctx)?;
        let mut notes = plan.notes();
        notes.extend(parts.note.clone());

        let mut storage = MaybeUninit::uninit();
        let builder = skel::ProcstatSkelBuilder { obj_builder: ctx.kernel.object_builder()? };
        let mut open = builder.open(&mut storage)?;
        plan.select(open.open_object_mut());
        let slots = ctx.procfs.pid_max()?.div_ceil(MARKS_PER_SLOT);
        open.maps.marks.set_max_entries(slots)?;
        open.maps.events.set_max_entries(self.ring.bytes())?;
        set_target!(open, &ctx.target);
        if let Some(constants) = open.maps.rodata_data.as_deref_mut() {
            constants.ring_half_bytes = u64::from(self.ring.bytes()) / 2;
            constants.rss_cpus = ctx.procfs.possible_cpus()?;
            constants.every_switch = self.every_switch.into();
            constants.with_kthreads = self.kthreads.into();
        }
        if let Some(shared) = open.maps.bss_data.as_deref_mut() {
            parts.store(&mut shared.rss_cpu_offset, &mut shared.rss_cpu_known);
        }
        let mut skel = open
            .load()
            .context(|| format!("loading the programs of {}", plan.hook.name))
            .map_err(rights::explain_refusal)?;
        target::fill_set(&skel.maps.target_set, &ctx.target)?;
        let ring = Ring::new(&skel.maps.events)?;
        let all = skel.progs.visit_all.attach().context(|| "attaching the task iterator")?;
        let marked = if plan.hook.attach.is_empty() {
            None
        } else {
            Some(skel.progs.visit_marked.attach().context(|| "attaching the task iterator")?)
        };
        let _links = plan.attach(skel.object())?;

        let shared = RefCell::new(
            skel.maps.bss_data.take().ok_or_else(|| Error::failure("no data section is mapped"))?,
        );
        let lost = || shared.try_borrow().map_or(0, |shared| read_shared(&shared.lost_events));
        let printer = Printer::stdout::<Sample, 18>((&self.output).into(), self.groups())?;
        let run = Run { hook: plan.hook.name, notes, pace: self.pace(), lost: &lost };
        let mut shown = Shown::default();
        let mut fresh = Newest::default();
        let mut reports = 0u64;

        stream::<RawSample>(ctx, run, &ring, printer, |step, printer| {
            let raw = match step {
                Step::Event(raw) if self.every_switch => {
                    return printer.row(&Sample::new(&raw, parts.error_pages));
                }
                Step::Event(raw) => {
                    fresh.keep(Sample::new(&raw, parts.error_pages));
                    return Ok(());
                }
                Step::Report if self.every_switch => return Ok(()),
                Step::End => return Ok(()),
                Step::Report => {
                    let first = reports == 0 && !self.no_initial;
                    let sweep = reports % SWEEP == SWEEP - 1;
                    let link = match &marked {
                        Some(marked) if !first => marked,
                        _ => &all,
                    };
                    let raw: Vec<RawSample> = read_iterator(link)?;
                    if sweep {
                        let living: Vec<RawSample> = read_iterator(&all)?;
                        shown.keep_only(living.iter().map(moment));
                    }
                    raw
                }
            };
            for raw in &raw {
                fresh.keep(Sample::new(raw, parts.error_pages));
            }
            reports += 1;
            self.report(&mut shown, fresh.take(), printer)?;

            parts.refresh(ctx, |store| {
                let mut shared = shared.borrow_mut();
                let shared = &mut **shared;
                store(&mut shared.rss_cpu_offset, &mut shared.rss_cpu_known);
            })
        })
    }

    fn run_on_proc(&self, ctx: &Context, plan: &Plan) -> Result<()> {
        let printer = Printer::stdout::<Sample, 18>((&self.output).into(), self.groups())?;
        let run =
            Run { hook: plan.hook.name, notes: plan.notes(), pace: self.pace(), lost: &|| 0 };
        let split = rss::is_split(&ctx.kernel);
        let mut shown = Shown::default();
        every(ctx, run, printer, |printer| {
            let samples = self.read_proc(&ctx.procfs, &ctx.target, split)?;
            shown.keep_only(samples.iter().map(|sample| sample.who));
            self.report(&mut shown, samples.into_iter(), printer)
        })
    }

    fn read_proc(
        &self,
        procfs: &ProcFs,
        target: &target::Target,
        split: bool,
    ) -> Result<Vec<Sample>> {
        let mut samples = Vec::new();
        for pid in procfs.pids()? {
            // Gone between the listing and the look: not an error.
            let Some(status) = procfs.status(pid) else { continue };
            let tgid = pid.unsigned_abs();
            if !target.matches(tgid, &status.name, || procfs.cgroup(pid)) {
                continue;
            }
            let Some(start_ns) = procfs.start_ns(pid) else { continue };
            let kib = |value: Option<u64>| value.map(|kib| kib << 10);
            let memory = (|| {
                Some(Memory {
                    anon: kib(status.rssanon)?,
                    file: kib(status.rssfile)?,
                    shmem: kib(status.rssshmem)?,
                    swap: kib(status.vmswap)?,
                    vm: kib(status.vmsize)?,
                    vm_peak: kib(status.vmpeak)?,
                    rss_peak: kib(status.vmhwm)?,
                    data: kib(status.vmdata)?,
                    stack: kib(status.vmstk)?,
                    page_tables: kib(status.vmpte)?,
                    error: if split { pages_to_bytes(rss::THREAD_CACHE_PAGES * status.threads) } else { 0 },
                })
            })();
            // Children of kthreadd; a zombie has no memory either and is left out.
            let kthread = pid == KTHREADD || status.ppid == KTHREADD;
            if memory.is_none() && !(self.kthreads && kthread) {
                continue;
            }
            let time_ns = monotonic_ns();
            samples.push(Sample {
                who: Moment { tgid, start_ns, time_ns },
                time: wall_time(time_ns),
                comm: status.name,
                memory,
                nvcsw: status.voluntary_ctxt_switches,
                nivcsw: status.nonvoluntary_ctxt_switches,
                growth: None,
            });
        }
        Ok(samples)
    }

    /// Prints the samples whose memory is not what was last seen.
    fn report(
        &self,
        shown: &mut Shown<Option<Memory>>,
        samples: impl Iterator<Item = Sample>,
        printer: &mut Printer,
    ) -> Result<()> {
        let mut rows = Vec::new();
        for mut sample in samples {
            let Some(before) = shown.before_change(sample.who, &sample.memory) else { continue };
            sample.growth = before.map(|before| resident(&sample.memory) - resident(&before));
            // What --top cuts off has been seen all the same.
            shown.set(sample.who, sample.memory);
            rows.push(sample);
        }
        rows.sort_by_key(|sample| (Reverse(sample.key(self.sort)), sample.who.tgid));
        rows.truncate(self.top.map_or(usize::MAX, |top| top as usize));
        rows.iter().try_for_each(|sample| printer.row(sample))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attach::plan;
    use crate::kernel::KernelFacts;
    use crate::output::tests::golden;

    fn sample(tgid: u32, anon: u64) -> Sample {
        let memory = Memory {
            anon,
            file: 0,
            shmem: 0,
            swap: 0,
            vm: 0,
            vm_peak: 0,
            rss_peak: 0,
            data: 0,
            stack: 0,
            page_tables: 0,
            error: 0,
        };
        Sample {
            who: Moment { tgid, start_ns: 1, time_ns: 10 },
            time: WallTime::fixed(),
            comm: "x".into(),
            memory: Some(memory),
            nvcsw: None,
            nivcsw: None,
            growth: None,
        }
    }

    #[test]
    fn the_output_is_the_documented_one() {
        let mut full = sample(4711, 31_676 << 10);
        full.memory = Some(Memory {
            anon: 31_676 << 10,
            file: 4036 << 10,
            shmem: 2012 << 10,
            swap: 844 << 10,
            vm: 163_840 << 10,
            vm_peak: 180_224 << 10,
            rss_peak: 40_000 << 10,
            data: 35_000 << 10,
            stack: 132 << 10,
            page_tables: 120 << 10,
            error: 0,
        });
        full.nvcsw = Some(1009);
        full.nivcsw = Some(23);
        full.growth = Some(-(12 << 10));
        let mut kthread = sample(2, 0);
        kthread.comm = "kthreadd".into();
        kthread.memory = None;
        golden::<Sample, 18>("procstat", ALL | GROWTH, &[full, kthread]);
    }

    #[test]
    fn rows_fit_eighty_columns() {
        let widths: usize = Sample::COLUMNS
            .iter()
            .filter(|column| column.group == ALWAYS)
            .map(|column| column.width.max(column.head.len()) + 1)
            .sum();
        assert_eq!(widths - 1, 80);
    }

    #[test]
    fn the_switch_is_preferred_wherever_it_can_be_hooked() {
        let old = [
            Need::KernelBtf,
            Need::ReadKernel,
            Need::Func("finish_task_switch"),
            Need::Fentry,
            Need::TaskIter,
            Need::BtfTracepoint("sched_switch"),
            Need::Path("/proc/self/status"),
        ];
        let chosen = |has: &[Need]| plan(&KernelFacts::fake(has), &CHOICE, None).unwrap().hook.name;
        assert_eq!(chosen(&old), "fentry:finish_task_switch");
        let cloned: Vec<Need> =
            old.into_iter().filter(|need| !matches!(need, Need::Func(_))).collect();
        assert_eq!(chosen(&cloned), "tp_btf:sched_switch");
        assert_eq!(chosen(&[Need::KernelBtf, Need::ReadKernel, Need::TaskIter]), "iter:task");
        assert_eq!(chosen(&[Need::Path("/proc/self/status")]), "proc:status");
    }
}

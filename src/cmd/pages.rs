//! `pages`: what the mappings of a process hold, and where in memory that is.

use std::io::IsTerminal as _;
use std::ops::Range;
use std::process::ExitCode;
use std::time::Duration;
use std::time::Instant;

use clap::Args;

use super::Tool;
use crate::attach::Choice;
use crate::attach::Hook;
use crate::attach::prepare;
use crate::cli::KernelArgs;
use crate::cli::OutputArgs;
use crate::cli::pid;
use crate::cli::seconds;
use crate::context::Context;
use crate::context::Limits;
use crate::context::Stop;
use crate::engine::Pace;
use crate::engine::Run;
use crate::engine::once;
use crate::error::Context as _;
use crate::error::Error;
use crate::error::Result;
use crate::kernel::Need;
use crate::maps;
use crate::maps::Mapping;
use crate::maps::base_name;
use crate::output::Column;
use crate::output::Printer;
use crate::output::Row;
use crate::output::describe;
use crate::output::note;
use crate::pagemap::Account;
use crate::pagemap::Counter;
use crate::pagemap::HELD;
use crate::pagemap::Nodes;
use crate::pagemap::PLACE;
use crate::pagemap::Pagemap;
use crate::pagemap::Physical;
use crate::pagemap::Place;
use crate::pagemap::Totals;
use crate::pagemap::What;
use crate::pagemap::frames_are_shown;
use crate::pagemap::rights;
use crate::pagemap::shown;
use crate::procfs::ProcFs;
use crate::target::Target;
use crate::units::page_size;

static CHOICE: Choice = Choice {
    purpose: "to see the pages of a process",
    hooks: &[
        Hook {
            name: "ioctl:PAGEMAP_SCAN",
            programs: &[],
            attach: &[],
            needs: &[Need::PagemapScan],
            loses: "",
        },
        Hook {
            name: "proc:pagemap",
            programs: &[],
            attach: &[],
            needs: &[Need::Path("/proc/self/pagemap")],
            loses: "HUGE includes huge pages that are mapped piece by piece",
        },
    ],
};

/// Mappings of a process: resident, swapped, not present, physical addresses
///
/// Nothing of the process is touched, and it never waits for long: its page
/// tables are read in small pieces.
#[derive(Args, Debug)]
#[command(after_long_help = describe(Pages::COLUMNS))]
pub struct Pages {
    /// The process
    #[arg(value_name = "PID", value_parser = pid, allow_negative_numbers = true)]
    pid: u32,
    /// Where in memory the pages are: neighbours together, with node and flags
    #[arg(long, conflicts_with = "summary")]
    physical: bool,
    /// Only these addresses, hexadecimal; whole pages
    #[arg(long, value_name = "A-B", value_parser = range)]
    range: Option<(u64, u64)>,
    /// Only mappings of this file or name: whole, or the last part of a path
    #[arg(long, value_name = "NAME")]
    mapping: Option<String>,
    /// Only the totals
    #[arg(long)]
    summary: bool,
    /// End after this time with what there is by then
    #[arg(long, value_name = "SECONDS", value_parser = seconds, allow_negative_numbers = true)]
    budget: Option<Duration>,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    kernel: KernelArgs,
}

fn range(text: &str) -> std::result::Result<(u64, u64), String> {
    let hex = |text: &str| {
        let digits = text.trim();
        let digits = digits.strip_prefix("0x").unwrap_or(digits);
        u64::from_str_radix(digits, 16).ok()
    };
    let wanted = || "two addresses, the first below the second: 7f0012340000-7f0012345000".into();
    let (start, end) = text.split_once('-').ok_or_else(wanted)?;
    let (start, end) = hex(start).zip(hex(end)).ok_or_else(wanted)?;
    let page = page_size();
    // To whole pages, outwards.
    let (start, end) = (start / page * page, end.div_ceil(page).saturating_mul(page));
    if start < end { Ok((start, end)) } else { Err(wanted()) }
}

impl Tool for Pages {
    const CHOICE: Option<&'static Choice> = Some(&CHOICE);
    const COLUMNS: &'static [Column] = &<What<'static> as Row<18>>::COLUMNS;

    fn run(self) -> Result<ExitCode> {
        let limits = Limits { interval: Duration::from_secs(1), count: None, duration: None };
        let ctx = Context::new("pages", &self.kernel, limits, |procfs| {
            Target::resolve(&[self.pid], None, None, procfs)
        })?;
        let plan = prepare(&ctx, &CHOICE)?;
        let task = task_with_memory(&ctx.procfs, self.pid)?;
        let pagemap = Pagemap::open(&ctx.procfs, task)?;
        let wanted = self.wanted(&ctx.procfs, task)?;
        let frames = frames_are_shown()?;
        if self.physical && !frames {
            return Err(Error::rights(
                "--physical: the kernel hides where pages are: needs CAP_SYS_ADMIN outside of \
                 any user namespace, run it as root (sudo)",
            ));
        }
        let bytes = wanted.iter().map(|(_, range)| range.end - range.start).sum();
        let mut watch = Watch::new(&ctx.stop, self.budget, bytes);
        let mut halt = |done| watch.halt(done);
        let huge = ctx.procfs.huge_page_size();
        let scan = plan.hook.name == "ioctl:PAGEMAP_SCAN";
        let mut counter = Counter::new(&pagemap, scan, frames, huge, &mut halt);
        let mut notes = plan.notes();
        notes.extend(hidden(frames, counter.sees_flags(), scan));

        let groups = if self.physical { PLACE } else { HELD };
        let printer = Printer::stdout::<What<'_>, 18>((&self.output).into(), groups)?;
        let pace = Pace { at_start: true, at_end: false, by_row: false };
        let run = Run { hook: plan.hook.name, notes, pace, lost: &|| 0 };
        once(&ctx, run, printer, |printer| {
            let mut report =
                Report { procfs: &ctx.procfs, pid: self.pid, task, wanted: &wanted, done: 0 };
            let read = if self.physical {
                report.physical(&mut counter, printer)
            } else {
                report.held(&mut counter, printer, self.summary)
            };
            read.context(|| format!("after {} of {} mappings", report.done, wanted.len()))?;
            report.changes()
        })?;
        if let Some(why) = watch.why {
            note(&format!("pages: {why}: not all has been read"));
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Pages {
    /// The mappings asked for, each with the part of it.
    fn wanted(&self, procfs: &ProcFs, task: u32) -> Result<Vec<(Mapping, Range<u64>)>> {
        let all = maps::list(procfs, task)?;
        if all.is_empty() {
            return Err(Error::failure(format!("process {} maps no memory", self.pid)));
        }
        let (from, to) = self.range.unwrap_or((0, u64::MAX));
        let named = |mapping: &Mapping| {
            let name = shown(mapping);
            self.mapping.as_deref().is_none_or(|wanted| wanted == name || wanted == base_name(name))
        };
        let wanted: Vec<(Mapping, Range<u64>)> = all
            .into_iter()
            .filter(named)
            .map(|mapping| {
                let range = mapping.start.max(from)..mapping.end.min(to);
                (mapping, range)
            })
            .filter(|(_, range)| !range.is_empty())
            .collect();
        if wanted.is_empty() {
            return Err(Error::failure(format!(
                "process {} maps nothing of that; see `mem_watcher pages {}` for what it maps",
                self.pid, self.pid
            )));
        }
        Ok(wanted)
    }
}

/// The thread of a process through which its memory is seen: the first one,
/// also known as the process, unless that has left the others behind.
///
/// # Errors
/// It has no memory; the message says why.
fn task_with_memory(procfs: &ProcFs, pid: u32) -> Result<u32> {
    // PF_KTHREAD, include/linux/sched.h.
    const KERNEL_THREAD: u32 = 0x0020_0000;
    let ended = |state| matches!(state, 'Z' | 'X');
    let Some((task, stat)) = procfs.task(pid.cast_signed()).and_then(|task| {
        let stat = task.stat().ok()?;
        Some((task, stat))
    }) else {
        return Err(Error::failure(format!("no process has PID {pid}")));
    };
    if stat.flags & KERNEL_THREAD != 0 {
        let name = stat.comm;
        let text = format!("{pid} is a thread of the kernel ({name}): it maps no memory");
        return Err(Error::failure(text));
    }
    if !ended(stat.state) {
        return Ok(pid);
    }
    let threads = task.tasks().into_iter().flatten().filter_map(|thread| thread.ok());
    let alive = |tid: &u32| {
        let stat = procfs.task(tid.cast_signed()).and_then(|thread| thread.stat().ok());
        stat.is_some_and(|stat| !ended(stat.state))
    };
    threads.map(|thread| thread.tid.cast_unsigned()).find(alive).ok_or_else(|| {
        Error::failure(format!(
            "process {pid} has exited and waits for its parent: it maps no memory any more"
        ))
    })
}

/// What cannot be known without more rights.
fn hidden(frames: bool, flags: bool, scan: bool) -> Option<String> {
    let mut lost = vec!["DIRTY of files"];
    if !scan {
        lost.extend(["HUGE", "ZERO (RSS includes it)"]);
    }
    if !frames {
        return Some(format!(
            "without CAP_SYS_ADMIN the kernel hides where pages are: no --physical, no {}, and \
             pages that are being moved count as swapped",
            lost.join(", no ")
        ));
    }
    (!flags).then(|| format!("/proc/kpageflags cannot be read: no {}", lost.join(", no ")))
}

/// Prints the rows.
struct Report<'run> {
    procfs: &'run ProcFs,
    pid: u32,
    /// The thread through which its memory is seen.
    task: u32,
    wanted: &'run [(Mapping, Range<u64>)],
    /// Mappings read so far.
    done: usize,
}

impl Report<'_> {
    fn held(
        &mut self,
        counter: &mut Counter<'_>,
        printer: &mut Printer,
        summary: bool,
    ) -> Result<()> {
        let swap_in_use = self.procfs.meminfo().is_ok_and(|m| m.swap_free < m.swap_total);
        let place = Place { procfs: self.procfs, pid: self.task, swap_in_use };
        let (mut total, mut hugetlb) = (Account::default(), Account::default());
        for (mapping, range) in self.wanted {
            let Some(account) = place.account(counter, mapping, range.clone())? else { break };
            total.add(&account);
            if account.hugetlb > 0 {
                hugetlb.add(&account);
            }
            if !summary {
                printer.row(&What::Mapping(mapping, range.clone(), account))?;
            }
            self.done += 1;
        }
        if hugetlb.hugetlb > 0 {
            printer.row(&What::Total("hugetlb", hugetlb))?;
        }
        printer.row(&What::Total("total", total))?;
        let complete = self.done == self.wanted.len();
        let mappings = self.done as u64;
        let totals = Totals { pid: self.pid, mappings, complete, account: total };
        printer.figures(&totals)?;
        printer.remark(&totals.text())
    }

    fn physical(&mut self, counter: &mut Counter<'_>, printer: &mut Printer) -> Result<()> {
        let nodes = Nodes::read(self.procfs);
        for (mapping, range) in self.wanted {
            let mut physical = Physical::new(&nodes);
            let mut print = |extent| printer.row(&What::Extent(mapping, extent));
            let whole = counter.visit(range.clone(), &mut |flags, at, entries| {
                physical.add(flags, at, entries, &mut print)
            })?;
            physical.finish(&mut print)?;
            if !whole {
                break;
            }
            self.done += 1;
        }
        Ok(())
    }

    /// Says so if the mappings are others by now.
    fn changes(&self) -> Result<()> {
        let now = maps::list(self.procfs, self.task).unwrap_or_default();
        let same = |mapping: &Mapping| {
            let found = now.binary_search_by_key(&mapping.start, |other| other.start);
            found.ok().and_then(|at| now.get(at)).is_some_and(|other| {
                (other.end, other.file, rights(other))
                    == (mapping.end, mapping.file, rights(mapping))
            })
        };
        let changed = self.wanted.iter().filter(|(mapping, _)| !same(mapping)).count();
        if changed > 0 {
            note(&format!(
                "pages: {changed} of {} mappings changed while they were read; their rows may \
                 show neither how it was nor how it is",
                self.wanted.len()
            ));
        }
        Ok(())
    }
}

/// When to stop, and how far it is.
struct Watch<'run> {
    stop: &'run Stop,
    end: Option<Instant>,
    said: Instant,
    done: u64,
    all: u64,
    /// Why it was stopped.
    why: Option<&'static str>,
}

/// How often a long run says how far it is.
const PROGRESS: Duration = Duration::from_secs(2);

impl<'run> Watch<'run> {
    fn new(stop: &'run Stop, budget: Option<Duration>, all: u64) -> Self {
        let now = Instant::now();
        let end = budget.and_then(|budget| now.checked_add(budget));
        Self { stop, end, said: now, done: 0, all, why: None }
    }

    fn halt(&mut self, bytes: u64) -> bool {
        let now = Instant::now();
        if self.stop.is_set() {
            self.why = Some("interrupted");
        } else if self.end.is_some_and(|end| now >= end) {
            self.why = Some("the time given with --budget is over");
        }
        if now.duration_since(self.said) >= PROGRESS && std::io::stderr().is_terminal() {
            self.said = now;
            let percent = u128::from(self.done) * 100 / u128::from(self.all.max(1));
            note(&format!("pages: {percent} % of the addresses read"));
        }
        self.done = self.done.saturating_add(bytes);
        self.why.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_hexadecimal_and_grow_to_whole_pages() {
        assert_eq!(range("1000-3000"), Ok((0x1000, 0x3000)));
        let page = page_size();
        assert_eq!(range(&format!("{:x}-0x{:x}", page + 1, page + 2)), Ok((page, 2 * page)));
        for bad in ["", "-", "1000", "3000-1000", "x-y", "1000-", "1000-1000"] {
            assert!(range(bad).is_err(), "{bad}");
        }
    }
}

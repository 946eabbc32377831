//! `oomkill`: who was killed for memory, by whom, and for which limit.

use std::cell::RefCell;
use std::mem::MaybeUninit;
use std::process::ExitCode;

use clap::Args;
use libbpf_rs::Object;
use libbpf_rs::skel::OpenSkel as _;
use libbpf_rs::skel::Skel as _;
use libbpf_rs::skel::SkelBuilder as _;

use super::Tool;
use super::skeleton;
use crate::attach::Choice;
use crate::attach::Hook;
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
use crate::engine::stream;
use crate::engine::visit_iterator;
use crate::error::Context as _;
use crate::error::Error;
use crate::error::Result;
use crate::event::read_shared;
use crate::event::text;
use crate::gfp::GfpNames;
use crate::kernel::Need;
use crate::names::Named;
use crate::oom::commands;
use crate::oom::commands::Commands;
use crate::oom::commands::Who;
use crate::oom::guard;
use crate::oom::history;
use crate::oom::history::History;
use crate::oom::kill;
use crate::oom::kill::Constraint;
use crate::oom::kill::Kill;
use crate::oom::kill::Limit;
use crate::oom::kill::Memory;
use crate::oom::kill::Party;
use crate::oom::kill::Role;
use crate::oom::kill::Sender;
use crate::oom::kill::Zone;
use crate::output::ALWAYS;
use crate::output::Column;
use crate::output::Printer;
use crate::output::Row;
use crate::output::describe;
use crate::output::note;
use crate::rights;
use crate::rss::Parts;
use crate::set_target;
use crate::skipped;
use crate::target;
use crate::target::COMM_LEN;
use crate::time::wall_time;
use crate::units::page_size;
use crate::units::pages_to_bytes;

skeleton!("oomkill");
use skel::types::cgroup_names as RawNames;
use skel::types::oomkill_kill as RawKill;
use skel::types::oomkill_process as RawProcess;
use skel::types::zone_state as RawZone;

// SAFETY: fixed-width integers and arrays of them without implicit padding (the
// sizes are asserted in oomkill.bpf.c), so every bit pattern is a valid value.
unsafe impl plain::Plain for RawKill {}
// SAFETY: as above.
unsafe impl plain::Plain for RawProcess {}

/// Flags of oomkill.bpf.c, `KILL_*`.
const NO_MM: u32 = 1;
const CALL: u32 = 2;
const V2: u32 = 4;
const KTHREAD: u32 = 8;
const COMMAND: u32 = 16;

/// `KILLERS` of oomkill.bpf.c.
const KILLERS: usize = 16;

/// Programs that kill for memory.
const DAEMONS: [&str; 4] = ["systemd-oomd", "earlyoom", "nohang", "oomd"];

/// What a write to `cgroup.kill` runs (kernel/cgroup/cgroup.c, since 5.14).
const KILL_WRITE: &str = "cgroup_kill_write";

/// What the iterator's records are read into.
const ITERATOR_BYTES: usize = 64 << 10;

static CHOICE: Choice = Choice {
    purpose: "to see processes killed for memory",
    hooks: &[
        Hook {
            name: "fentry:oom_kill_process",
            programs: &["visit_tasks"],
            attach: &["enter_fentry", "leave_fexit", "on_signal"],
            needs: &[
                Need::KernelBtf,
                Need::ReadKernel,
                Need::Func("oom_kill_process"),
                Need::Fentry,
                Need::BtfTracepoint("signal_generate"),
                Need::TaskIter,
            ],
            loses: "",
        },
        Hook {
            name: "kprobe:oom_kill_process",
            programs: &["visit_tasks"],
            attach: &["enter_kprobe", "leave_kretprobe", "on_signal"],
            needs: &[
                Need::KernelBtf,
                Need::ReadKernel,
                Need::Func("oom_kill_process"),
                Need::Kprobe,
                Need::BtfTracepoint("signal_generate"),
                Need::TaskIter,
            ],
            loses: "",
        },
        Hook {
            name: "raw_tp:mark_victim",
            programs: &["visit_tasks"],
            attach: &["on_mark", "on_signal"],
            needs: &[
                Need::KernelBtf,
                Need::ReadKernel,
                Need::BtfTracepoint("mark_victim"),
                Need::BtfTracepoint("signal_generate"),
                Need::TaskIter,
            ],
            loses: "neither the limit that was hit nor the allocation that failed are seen, and \
                    each member of a group (memory.oom.group) counts as an OOM of its own",
        },
    ],
};

/// OOM kills: who triggered, who died, which limit was hit
///
/// A row for each process that is killed, with all that was known at that moment
/// and what the machine looked like before. -i is the time between two looks at
/// the machine, -n counts rows, -P, --comm and --cgroup choose victims.
#[derive(Args, Debug)]
#[command(after_long_help = describe(Oomkill::COLUMNS))]
pub struct Oomkill {
    /// Kills by user-space OOM daemons and through cgroup.kill too
    #[arg(long)]
    all_kills: bool,
    /// Processes of this name are such daemons too; may be repeated and comma-separated
    #[arg(long, value_name = "NAME", value_delimiter = ',', requires = "all_kills")]
    #[arg(value_parser = daemon)]
    daemon: Vec<String>,
    /// How many looks at the machine before a kill are shown with it
    #[arg(long, value_name = "N", default_value_t = 10)]
    #[arg(value_parser = clap::value_parser!(u8).range(0..=history::TICKS as i64))]
    history: u8,
    /// Leave mem_watcher's own oom_score_adj as it is, instead of -1000: never killed
    #[arg(long)]
    keep_oom_score: bool,
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

fn daemon(text: &str) -> std::result::Result<String, String> {
    match text.len() {
        0 => Err("a process name has at least one character".into()),
        length if length > COMM_LEN => Err(format!("the kernel keeps {COMM_LEN} characters")),
        _ => Ok(text.to_owned()),
    }
}

/// What a record is completed with.
struct Reporter {
    history: History,
    commands: Commands,
    gfp: GfpNames,
    moments: usize,
    error_pages: u64,
    room: Vec<u8>,
    /// Looks at the machine that failed.
    blind: u64,
}

impl Reporter {
    /// Looks at the machine, for a kill to come. Without memory it cannot always:
    /// that is no reason to end.
    fn look(&mut self, link: &libbpf_rs::Link) {
        let Self { history, room, .. } = self;
        let noted = history
            .note(|each| visit_iterator::<RawProcess>(link, room, |raw| each(process(&raw))));
        match noted {
            Ok(()) => self.history.learn(&mut self.commands),
            Err(_) => self.blind += 1,
        }
    }

    fn kill(&mut self, raw: &RawKill) -> Result<Kill> {
        let odd = |what: &str| Error::failure(format!("an odd {what} came from the kernel side"));
        let role = Role::of(raw.role).ok_or_else(|| odd("role"))?;
        let victim = Who { pid: raw.pid, start_ns: raw.start_ns, comm: raw.comm };
        let trigger =
            Who { pid: raw.trigger_pid, start_ns: raw.trigger_start_ns, comm: raw.trigger_comm };
        let first = role == Role::Chosen;
        let moments = if first { self.moments } else { 0 };
        let mut zones: Vec<Zone> = raw.zones.iter().take(raw.zone_count.into()).map(zone).collect();
        zones.sort_by_key(|zone| (zone.node, zone.index));
        Ok(Kill {
            time: wall_time(raw.time_ns),
            number: (raw.number != 0).then_some(raw.number),
            sender: Sender::of(raw.sender).ok_or_else(|| odd("sender"))?,
            role,
            parent: (raw.parent_pid, text(&raw.parent_comm)),
            memory: (raw.flags & NO_MM == 0).then(|| self.memory(raw)),
            score_adj: raw.score_adj.into(),
            thread: (raw.trigger_tid, text(&raw.thread_comm)),
            limit: self.limit(raw),
            load: if first { self.history.load() } else { None },
            zones_left_out: raw.zones_left_out.into(),
            zones,
            history: self.history.moments(raw.time_ns, moments, &self.commands),
            biggest: match first && self.moments > 0 {
                true => self.history.biggest(raw.time_ns, self.moments, &self.commands),
                false => Vec::new(),
            },
            victim: Party {
                pid: raw.pid,
                comm: text(&raw.comm),
                command: self.commands.get(victim),
                cgroup: path(&raw.cgroup),
                uid: raw.uid,
            },
            trigger: Party {
                pid: raw.trigger_pid,
                comm: text(&raw.trigger_comm),
                command: if raw.flags & COMMAND != 0 {
                    raw.command.get(..raw.command_bytes as usize).map(commands::shown)
                } else if raw.flags & KTHREAD != 0 {
                    None
                } else {
                    self.commands.get(trigger)
                },
                cgroup: path(&raw.trigger_cgroup),
                uid: raw.trigger_uid,
            },
        })
    }

    fn memory(&self, raw: &RawKill) -> Memory {
        Memory {
            anon: pages_to_bytes(raw.anon_pages),
            file: pages_to_bytes(raw.file_pages),
            shmem: pages_to_bytes(raw.shmem_pages),
            swap: pages_to_bytes(raw.swap_pages),
            page_tables: raw.pgtable_bytes,
            vm: pages_to_bytes(raw.vm_pages),
            error: pages_to_bytes(u64::from(raw.error_pages) + self.error_pages),
        }
    }

    fn limit(&self, raw: &RawKill) -> Option<Limit> {
        if raw.flags & CALL == 0 {
            return None;
        }
        let constraint = Constraint::of(raw.constraint)?;
        let mut limit = Limit {
            constraint,
            of: "memory and swap",
            bytes: Some(pages_to_bytes(raw.domain_pages)),
            used: None,
            swap: None,
            swap_used: None,
            cgroup: None,
            nodes: kill::nodes(&raw.nodes),
            gfp: raw.gfp.into(),
            gfp_words: self.gfp.words(raw.gfp.into()),
            order: raw.order.into(),
            // A kill of whoever asks (vm.oom_kill_allocating_task) chooses nobody.
            points: (raw.points != i64::MIN).then_some(raw.points),
        };
        match constraint {
            Constraint::Global => {}
            Constraint::Cpuset => {
                limit.of = "memory of the cpuset's nodes, and swap";
                limit.cgroup = Some(path(&raw.limit_cgroup));
            }
            Constraint::Mempolicy => limit.of = "memory of the policy's nodes, and swap",
            Constraint::Memcg => {
                limit.cgroup = Some(path(&raw.limit_cgroup));
                limit.swap = counter_limit(raw.swap_limit_pages);
                limit.swap_used = Some(pages_to_bytes(raw.swap_usage_pages));
                // v1 has a limit of both together, which may be the one.
                let left = raw.limit_pages.saturating_sub(raw.usage_pages);
                let both_left = raw.swap_limit_pages.saturating_sub(raw.swap_usage_pages);
                let (of, pages, used) = match raw.flags & V2 != 0 {
                    true => ("memory.max", raw.limit_pages, raw.usage_pages),
                    false if both_left < left => {
                        ("memory.memsw.limit_in_bytes", raw.swap_limit_pages, raw.swap_usage_pages)
                    }
                    false => ("memory.limit_in_bytes", raw.limit_pages, raw.usage_pages),
                };
                limit.of = of;
                limit.bytes = counter_limit(pages);
                limit.used = Some(pages_to_bytes(used));
            }
        }
        Some(limit)
    }
}

/// A limit of a cgroup in pages, to bytes; `None`: unlimited. `PAGE_COUNTER_MAX`
/// is `LONG_MAX / PAGE_SIZE` (include/linux/page_counter.h).
fn counter_limit(pages: u64) -> Option<u64> {
    (pages < i64::MAX as u64 / page_size()).then(|| pages_to_bytes(pages))
}

fn path(names: &RawNames) -> String {
    let used = names.names.get(..names.bytes as usize).unwrap_or_default();
    Named { names: used, flags: names.flags, ..Named::default() }.path()
}

fn zone(raw: &RawZone) -> Zone {
    let mut orders = raw.free_blocks.iter().take(raw.orders as usize);
    let largest = orders.rposition(|&blocks| blocks > 0);
    Zone {
        node: raw.nid,
        index: raw.index,
        name: text(&raw.name),
        free: pages_to_bytes(raw.free),
        min: pages_to_bytes(raw.min),
        low: pages_to_bytes(raw.low),
        high: pages_to_bytes(raw.high),
        boost: pages_to_bytes(raw.boost),
        managed: pages_to_bytes(raw.managed),
        present: pages_to_bytes(raw.present),
        largest: largest.and_then(|order| u32::try_from(order).ok()),
    }
}

fn process(raw: &RawProcess) -> history::Process {
    history::Process {
        who: Who { pid: raw.pid, start_ns: raw.start_ns, comm: raw.comm },
        anon: raw.anon_pages,
        file: raw.file_pages,
        shmem: raw.shmem_pages,
        swap: raw.swap_pages,
        score_adj: raw.score_adj,
    }
}

impl Tool for Oomkill {
    const CHOICE: Option<&'static Choice> = Some(&CHOICE);
    const COLUMNS: &'static [Column] = &<Kill as Row<46>>::COLUMNS;

    fn run(self) -> Result<ExitCode> {
        let limits = (&self.limits).into();
        let daemons: Vec<&str> = match self.all_kills {
            true => DAEMONS.into_iter().chain(self.daemon.iter().map(String::as_str)).collect(),
            false => Vec::new(),
        };
        if daemons.len() > KILLERS {
            let most = KILLERS - DAEMONS.len();
            return Err(Error::usage(format!("--daemon: give at most {most} names")));
        }
        let mut ctx =
            Context::new("oomkill", &self.kernel, limits, |procfs| self.targets.resolve(procfs))?;
        let plan = prepare(&ctx, &CHOICE)?;
        let parts = Parts::find(&ctx)?;
        let mut notes = plan.notes();
        notes.extend(parts.note.clone());

        let kill_write = self.all_kills.then(|| ctx.kernel.code_of(KILL_WRITE)).flatten();
        if self.all_kills && kill_write.is_none() {
            notes.push(format!(
                "kills through cgroup.kill are not seen: no `{KILL_WRITE}` in /proc/kallsyms"
            ));
        }

        let mut storage = MaybeUninit::uninit();
        let builder = skel::OomkillSkelBuilder { obj_builder: ctx.kernel.object_builder()? };
        let mut open = builder.open(&mut storage)?;
        plan.select(open.open_object_mut());
        open.maps.events.set_max_entries(self.ring.bytes())?;
        set_target!(open, &ctx.target);
        if let Some(constants) = open.maps.rodata_data.as_deref_mut() {
            constants.ring_half_bytes = u64::from(self.ring.bytes()) / 2;
            constants.rss_cpus = ctx.procfs.possible_cpus()?;
            constants.by_mark = plan.hook.attach.contains(&"on_mark");
            constants.all_kills = self.all_kills;
            constants.killers = daemons.len() as u32;
            if let Some(code) = &kill_write {
                (constants.kill_write_start, constants.kill_write_end) = (code.start, code.end);
            }
            for (to, from) in constants.killer_names.iter_mut().zip(&daemons) {
                to[..from.len()].copy_from_slice(from.as_bytes());
            }
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
        let tasks = skel.progs.visit_tasks.attach().context(|| "attaching the task iterator")?;
        let _links = plan.attach(skel.object())?;

        let shared = RefCell::new(
            skel.maps.bss_data.take().ok_or_else(|| Error::failure("no data section is mapped"))?,
        );
        let object = skel.object();
        let lost = || {
            shared.try_borrow().map_or(0, |shared| read_shared(&shared.lost_events))
                + missed(object)
        };
        let printer = Printer::stdout::<Kill, 46>((&self.output).into(), ALWAYS)?;
        let pace = Pace { at_start: true, at_end: true, by_row: true };
        let run = Run { hook: plan.hook.name, notes, pace, lost: &lost };
        let mut reporter = Reporter {
            history: History::new(&ctx.procfs),
            commands: Commands::new(ctx.procfs.clone()),
            gfp: GfpNames::of(&ctx.kernel),
            moments: self.history.into(),
            error_pages: parts.error_pages,
            room: vec![0; ITERATOR_BYTES],
            blind: 0,
        };
        ctx.kernel.release_sources();
        guard::protect(self.ring.bytes(), self.keep_oom_score);

        stream::<RawKill>(&ctx, run, &ring, printer, |step, printer| match step {
            Step::Event(raw) => printer.row(&reporter.kill(&raw)?),
            Step::Report => {
                reporter.look(&tasks);
                let again = parts.refresh(&ctx, |store| {
                    let mut shared = shared.borrow_mut();
                    let shared = &mut **shared;
                    store(&mut shared.rss_cpu_offset, &mut shared.rss_cpu_known);
                });
                if again.is_err() {
                    reporter.blind += 1;
                }
                Ok(())
            }
            Step::End => {
                if reporter.blind > 0 {
                    note(&format!("oomkill: {} looks at the machine failed", reporter.blind));
                }
                Ok(())
            }
        })?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Runs of the programs at the kill that the kernel skipped.
fn missed(object: &Object) -> u64 {
    let counts = |name: &str| name.starts_with("on_") || name.starts_with("enter_");
    let programs = object.progs_mut().filter(|p| p.name().to_str().is_some_and(counts));
    programs.map(|program| skipped::runs(&program)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_without_a_limit_has_none() {
        assert_eq!(counter_limit(10_240), Some(10_240 * page_size()));
        assert_eq!(counter_limit(i64::MAX as u64 / page_size()), None);
    }

    #[test]
    fn daemons_have_names_the_kernel_keeps() {
        assert!(DAEMONS.iter().all(|name| daemon(name).is_ok()));
        assert!(daemon("").is_err());
        assert!(daemon("sixteen-letters-").is_err());
    }
}

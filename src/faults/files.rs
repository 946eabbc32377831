//! Page faults by file: what `ffaults` and `faults --by file` do.

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::mem::MaybeUninit;
use std::rc::Rc;

use libbpf_rs::MapCore as _;
use libbpf_rs::skel::OpenSkel as _;
use libbpf_rs::skel::Skel as _;
use libbpf_rs::skel::SkelBuilder as _;

use super::Faulter;
use super::Faults;
use super::hooks::Attached;
use crate::attach::Choice;
use crate::attach::Hook;
use crate::attach::prepare;
use crate::batch;
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
use crate::kernel::Need;
use crate::names;
use crate::names::Named;
use crate::output::ALWAYS;
use crate::output::Column;
use crate::output::Group;
use crate::output::MACHINE;
use crate::output::Printer;
use crate::output::Row;
use crate::output::Unit;
use crate::output::Value;
use crate::rights;
use crate::set_target;
use crate::target;
use crate::time::WallTime;
use crate::time::monotonic_ns;
use crate::time::wall_time;

#[allow(missing_docs, clippy::all, clippy::restriction, unreachable_pub, unused)]
mod skel {
    include!(concat!(env!("OUT_DIR"), "/ffaults.skel.rs"));
}
use skel::types::ffaults_count as RawCount;
use skel::types::ffaults_key as RawKey;

// SAFETY: integers and byte arrays without implicit padding (the sizes are
// asserted in ffaults.bpf.c), so every bit pattern is a valid value.
unsafe impl plain::Plain for RawCount {}
// SAFETY: as above.
unsafe impl plain::Plain for RawKey {}

/// `struct ffaults_path` of ffaults.bpf.c.
#[derive(Clone, Copy)]
#[repr(C)]
struct RawPath {
    inode: u64,
    device: u32,
    generation: u32,
    /// `struct path_names` of path.bpf.h.
    bytes: u32,
    flags: u32,
    magic: u64,
    path_inode: u64,
    names: [u8; NAMES_LEN],
}

/// `PATH_BYTES` + `PATH_NAME` of ffaults.bpf.c.
const NAMES_LEN: usize = 4096 + 256;

const _: () = assert!(size_of::<RawPath>() == size_of::<skel::types::ffaults_path>());

impl Default for RawPath {
    fn default() -> Self {
        Self {
            inode: 0,
            device: 0,
            generation: 0,
            bytes: 0,
            flags: 0,
            magic: 0,
            path_inode: 0,
            names: [0; NAMES_LEN],
        }
    }
}

// SAFETY: fixed-width integers and a byte array without padding (the size is
// asserted above), so every bit pattern is a valid value.
unsafe impl plain::Plain for RawPath {}

/// `FILE_DELETED` of ffaults.bpf.c.
const FILE_DELETED: u32 = 2;

/// How faults are seen with their file.
pub static CHOICE: Choice = Choice {
    purpose: "to see the file of a page fault",
    hooks: &[
        Hook {
            name: "fexit:handle_mm_fault",
            programs: &[],
            attach: &["on_fault"],
            needs: &[
                Need::KernelBtf,
                Need::ReadKernel,
                Need::Func("handle_mm_fault"),
                Need::Params("handle_mm_fault", 4),
                Need::Fentry,
            ],
            loses: "",
        },
        Hook {
            name: "kprobe:handle_mm_fault",
            programs: &[],
            attach: &["leave_fault", "enter_fault"],
            needs: &[
                Need::Field("task_struct", "tgid"),
                Need::ReadKernel,
                Need::Symbol("handle_mm_fault"),
                Need::Kprobe,
            ],
            loses: "",
        },
        Hook {
            name: "perf:page-faults",
            programs: &["on_minor", "on_major"],
            attach: &[],
            needs: &[
                Need::Field("task_struct", "tgid"),
                Need::ReadKernel,
                Need::Helper("find_vma"),
                Need::PerfEvents,
            ],
            loses: "faults the kernel makes on a process's behalf (mlock, MAP_POPULATE, reading \
                    another process) are not seen, nor those on a CPU that comes online until the \
                    next report",
        },
    ],
};

/// What is asked for.
#[derive(Clone, Copy, Debug)]
pub struct Wanted {
    /// A row for each process and file.
    pub by_process: bool,
    /// Rows a report.
    pub top: Option<usize>,
    /// Files there is room for.
    pub room: u32,
}

/// Columns of processes.
const PROCESS: Group = 1;

/// The columns to show.
pub fn groups(by_process: bool) -> Group {
    if by_process { PROCESS } else { ALWAYS }
}

/// A file, as the kernel tells it from others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct FileId {
    device: u32,
    inode: u64,
    generation: u32,
}

/// Page faults in a file in an interval.
#[derive(Clone, Debug)]
pub struct Counted {
    time: WallTime,
    who: Option<(u32, Rc<str>)>,
    amount: Faults,
    /// `None`: there was no room to send it.
    path: Option<String>,
}

impl Row<7> for Counted {
    const COLUMNS: [Column; 7] = [
        Column::new("TIME", "time", Unit::Time, 8, ALWAYS, "when they were counted up to"),
        Column::new("PID", "pid", Unit::Id, 7, PROCESS, "process (thread group)"),
        Column::new("COMM", "comm", Unit::Text, 15, PROCESS, "name of the process"),
        Column::new("FAULTS", "faults", Unit::Count, 8, MACHINE, "page faults in the interval"),
        Column::new("MINOR", "minor", Unit::Count, 8, ALWAYS, "faults that waited for no device"),
        Column::new("MAJOR", "major", Unit::Count, 8, ALWAYS, "faults that did"),
        Column::new(
            "FILE",
            "file",
            Unit::Text,
            10,
            ALWAYS,
            "path in the root of the process that faulted first; (deleted): no name leads to it",
        ),
    ];

    fn values(&self) -> [Value<'_>; 7] {
        let who = self.who.as_ref();
        [
            Value::Time(self.time),
            Value::count(who.map(|(tgid, _)| u64::from(*tgid))),
            who.map_or(Value::Missing, |(_, comm)| Value::Text((&**comm).into())),
            Value::Count(self.amount.all()),
            Value::Count(self.amount.minor),
            Value::Count(self.amount.major),
            self.path.as_deref().map_or(Value::Missing, |path| Value::Text(path.into())),
        ]
    }
}

/// Counts until the end of the run.
///
/// # Errors
/// The kernel refuses, or the output cannot be written.
pub fn run(ctx: &Context, printer: Printer, wanted: Wanted) -> Result<()> {
    let plan = prepare(ctx, &CHOICE)?;
    let mut storage = MaybeUninit::uninit();
    let builder = skel::FfaultsSkelBuilder { obj_builder: ctx.kernel.object_builder()? };
    let mut open = builder.open(&mut storage)?;
    plan.select(open.open_object_mut());
    open.maps.counts.set_max_entries(wanted.room)?;
    set_target!(open, &ctx.target);
    if let Some(constants) = open.maps.rodata_data.as_deref_mut() {
        constants.by_process = wanted.by_process.into();
    }
    let mut skel = open
        .load()
        .context(|| format!("loading the programs of {}", plan.hook.name))
        .map_err(rights::explain_refusal)?;
    target::fill_set(&skel.maps.target_set, &ctx.target)?;
    let ring = Ring::new(&skel.maps.events)?;
    let shared = skel.maps.bss_data.take().ok_or_else(|| Error::failure("no data section"))?;
    let attached = Attached::new(skel.object(), &plan, &ctx.procfs, plan.hook.programs)?;
    let lost = || read_shared(&shared.lost_events) + attached.missed(&skel.maps.fault_runs);
    let pace = Pace { at_start: false, at_end: true, by_row: false };
    let run = Run { hook: plan.hook.name, notes: plan.notes(), pace, lost: &lost };
    let mut files = Files::new(wanted, ctx.procfs.in_first_pid_namespace());
    stream::<RawPath>(ctx, run, &ring, printer, |step, printer| match step {
        Step::Event(raw) => {
            files.name(&raw);
            Ok(())
        }
        Step::Report => {
            files.report(ctx, &skel.maps.counts, printer)?;
            attached.refresh(&ctx.procfs)
        }
        Step::End => Ok(()),
    })
}

/// What is known of files.
struct Files {
    wanted: Wanted,
    paths: HashMap<FileId, String>,
    before: HashMap<(FileId, u64), Faults>,
    departed: Departed<Faulter>,
}

impl Files {
    fn new(wanted: Wanted, may_forget: bool) -> Self {
        let (paths, before) = (HashMap::new(), HashMap::new());
        // Without processes there are none to depart.
        let departed = Departed::new(may_forget && wanted.by_process);
        Self { wanted, paths, before, departed }
    }

    fn name(&mut self, raw: &RawPath) {
        let id = FileId { device: raw.device, inode: raw.inode, generation: raw.generation };
        self.paths.entry(id).or_insert_with(|| path_of(raw));
    }

    fn report(
        &mut self,
        ctx: &Context,
        counts: &libbpf_rs::MapMut<'_>,
        printer: &mut Printer,
    ) -> Result<()> {
        let time = wall_time(monotonic_ns());
        let mut rows: BTreeMap<(FileId, u64), Counted> = BTreeMap::new();
        let mut idle: Vec<(RawKey, FileId)> = Vec::new();
        batch::for_each(counts, |key: RawKey, raw: RawCount| {
            let file = &key.file;
            let id = FileId { device: file.device, inode: file.inode, generation: file.generation };
            let now = Faults { minor: raw.minor, major: raw.major };
            let before = self.before.insert((id, key.who), now).unwrap_or_default();
            let amount = Faults {
                minor: now.minor.saturating_sub(before.minor),
                major: now.major.saturating_sub(before.major),
            };
            if amount.all() == 0 {
                idle.push((key, id));
                return;
            }
            let deleted = if raw.flags & FILE_DELETED != 0 { " (deleted)" } else { "" };
            let path = self.paths.get(&id).map(|path| format!("{path}{deleted}"));
            let comm = || Rc::from(text(&raw.comm));
            let who = (key.who != 0).then(|| (Faulter(key.who).tgid(), comm()));
            rows.insert((id, key.who), Counted { time, who, amount, path });
        })?;
        let mut rows: Vec<Counted> = rows.into_values().collect();
        // Stable: equals stay in the order of their files.
        rows.sort_by_key(|row| std::cmp::Reverse(row.amount.all()));
        let rest = rows.split_off(self.wanted.top.unwrap_or(usize::MAX).min(rows.len()));
        rows.iter().try_for_each(|row| printer.row(row))?;
        if !rest.is_empty() {
            let faults: u64 = rest.iter().map(|row| row.amount.all()).sum();
            printer.remark(&format!("{} more with {faults} faults (--top)", rest.len()))?;
        }
        let owners = idle.iter().map(|(key, _)| Faulter(key.who));
        let gone = self.departed.after_report(owners, |who| who.lives(&ctx.procfs));
        for (key, id) in idle.into_iter().filter(|(key, _)| gone.contains(&Faulter(key.who))) {
            // SAFETY: the key is plain data.
            counts.delete(unsafe { plain::as_bytes(&key) })?;
            self.before.remove(&(id, key.who));
        }
        Ok(())
    }
}

/// Whether it is deleted is said by what is counted: a file can lose its name
/// later.
fn path_of(raw: &RawPath) -> String {
    let names = raw.names.get(..raw.bytes as usize).unwrap_or_default();
    let flags = raw.flags & !names::UNLINKED;
    let path = Named { names, flags, magic: raw.magic, inode: raw.path_inode }.path();
    match path.strip_suffix(" (deleted)") {
        Some(name) if flags & names::PSEUDO != 0 => name.to_owned(),
        _ => path,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::tests::golden;

    #[test]
    fn the_output_is_the_documented_one() {
        let named = Counted {
            time: WallTime::fixed(),
            who: Some((4711, "x".into())),
            amount: Faults { minor: 7919, major: 23 },
            path: Some("/var/lib/data (deleted)".into()),
        };
        let nameless = Counted { who: None, path: None, ..named.clone() };
        golden::<Counted, 7>("ffaults", PROCESS, &[named, nameless]);
    }

    #[test]
    fn a_path_is_known_without_its_deletion() {
        let mut raw = RawPath { bytes: 4, ..RawPath::default() };
        raw.names[..4].copy_from_slice(b"b\0a\0");
        assert_eq!(path_of(&raw), "/a/b");
        for (flags, path) in [(names::PSEUDO, "/a/b"), (names::UNLINKED, "/a/b"), (4, ".../a/b")] {
            raw.flags = flags;
            assert_eq!(path_of(&raw), path);
        }
        // No number of a kernel side leads out of the text.
        raw.bytes = u32::MAX;
        assert_eq!(path_of(&raw), ".../");
    }
}

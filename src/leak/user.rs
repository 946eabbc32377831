//! Tracing the allocations of processes: which processes, which of their files
//! hold an allocator, and what the kernel side has gathered.

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::fs;
use std::mem::MaybeUninit;
use std::rc::Rc;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use libbpf_rs::Link;
use libbpf_rs::MapCore as _;
use libbpf_rs::MapFlags;
use libbpf_rs::OpenObject;
use libbpf_rs::skel::OpenSkel as _;
use libbpf_rs::skel::Skel as _;
use libbpf_rs::skel::SkelBuilder as _;

use super::Amount;
use super::Stack;
use super::ledger::Backing;
use super::ledger::Change;
use super::ledger::Event;
use super::ledger::Ledger;
use super::ledger::Mapped;
use super::probes;
pub use super::probes::Attached;
use super::probes::Search;
use super::tables::StackView;
use super::tables::number;
use crate::batch;
use crate::cmd::skeleton;
use crate::context::Context;
use crate::engine::Ring;
use crate::error::Context as _;
use crate::error::Error;
use crate::error::Kind;
use crate::error::Result;
use crate::event::read_shared;
use crate::kernel::KernelFacts;
use crate::kernel::Need;
use crate::maps::FileId;
use crate::maps::Maps;
use crate::maps::Object;
use crate::maps::Objects;
use crate::procfs::ProcFs;
use crate::rights;
use crate::time::monotonic_ns;
use crate::uprobe;
use crate::uprobe::Method;
use crate::uprobe::Side;

skeleton!("memleak");
use skel::types::block as RawBlock;
use skel::types::block_key as RawKey;
pub use skel::types::memleak_event as RawEvent;
pub(super) use skel::types::stack as RawStack;

// SAFETY: fixed-width integers without implicit padding (the size is asserted
// in memleak.bpf.c), so every bit pattern is a valid value.
unsafe impl plain::Plain for RawEvent {}
// SAFETY: the same: three 64-bit integers.
unsafe impl plain::Plain for RawBlock {}
// SAFETY: the same: two 64-bit integers.
unsafe impl plain::Plain for RawKey {}

/// `FLAG_ALLOCATOR` of memleak.bpf.c.
const FLAG_ALLOCATOR: u32 = 1;
/// `MAP_ANONYMOUS`, include/uapi/asm-generic/mman-common.h.
const MAP_ANONYMOUS: u32 = 0x20;
/// `PROT_EXEC`, same file.
const PROT_EXEC: u32 = 4;

/// `enum event_kind` of memleak.bpf.c.
mod kind {
    pub(super) const FORK: u32 = 1;
    pub(super) const EXEC: u32 = 2;
    pub(super) const EXIT: u32 = 3;
    pub(super) const MAP: u32 = 4;
    pub(super) const UNMAP: u32 = 5;
    pub(super) const UNMAP_FAILED: u32 = 6;
    pub(super) const REMAP: u32 = 7;
    pub(super) const REMAPPED: u32 = 8;
    pub(super) const REMAP_FAILED: u32 = 9;
    pub(super) const PROTECT: u32 = 10;
    pub(super) const BRK: u32 = 11;
    pub(super) const ALLOC: u32 = 12;
    pub(super) const FREE: u32 = 13;
}

/// Threads whose state is kept where the kernel has no task storage.
const THREADS: u32 = 8192;

/// What to trace, and how much of it to keep.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Take stacks.
    pub stacks: bool,
    /// Frames to keep of each.
    pub depth: u32,
    /// Children of the processes too.
    pub follow: bool,
    /// Every call is an event.
    pub trace: bool,
    /// Blocks of this many bytes at least.
    pub min_bytes: u64,
    /// And at most.
    pub max_bytes: u64,
    /// Mean number of bytes between two sampled blocks; 0: every block.
    pub sample_bytes: u64,
    /// Live blocks there is room for.
    pub max_blocks: u32,
    /// Stacks there is room for.
    pub max_stacks: u32,
    /// Only allocators in files of this name.
    pub object: Option<String>,
    /// Allocators whose functions are called `<prefix>malloc` and so on.
    pub prefixes: Vec<String>,
    /// No allocators: direct mappings alone.
    pub mappings_only: bool,
    /// Bytes of the event ring.
    pub ring_bytes: u32,
}

/// How the program of a process came to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The process has exited.
    Exit,
    /// It runs another program now.
    Exec,
}

/// One program run by one process.
pub struct Process {
    /// PID.
    pub tgid: u32,
    /// Name.
    pub comm: String,
    /// What it maps, and did.
    pub maps: Maps,
    /// Direct mappings since it is watched.
    pub ledger: Ledger,
    /// Where it has ended.
    pub ended: Option<End>,
    /// Children it has had since, not followed.
    pub children: u64,
}

/// What the kernel side could not do, for the whole run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Trouble {
    /// Blocks that found no room.
    pub lost: Amount,
    /// Blocks whose free was not seen, corrected when the address came again.
    pub missed_frees: Amount,
    /// Frees of blocks that are not in the table: older than the watch, left
    /// out, or inherited.
    pub unknown_frees: u64,
    /// Blocks without a stack, because there was no room for it.
    pub lost_stacks: u64,
    /// Calls whose return was not seen.
    pub missed_returns: u64,
    /// Calls of threads for which there was no memory.
    pub lost_calls: u64,
    /// Events that did not fit in the ring.
    pub lost_events: u64,
}

impl Trouble {
    /// How many things are missing from the figures.
    pub fn lost(&self) -> u64 {
        self.lost.blocks + self.lost_events + self.lost_calls
    }
}

/// One block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Block {
    /// The process ([`Tracer::processes`]).
    pub process: u64,
    /// Where it is.
    pub address: u64,
    /// What was asked for.
    pub bytes: u64,
    /// When, on the kernel's monotonic clock.
    pub time_ns: u64,
    /// The stack's id; 0: lost.
    pub stack: u64,
}

/// A stack, and what was ever allocated by it.
#[derive(Clone, Debug)]
pub struct Known {
    /// The process.
    pub process: u64,
    /// Addresses.
    pub stack: Stack,
    /// Freed or not.
    pub seen: Amount,
}

/// The kernel side at work. Dropping it detaches everything.
pub struct Tracer<'obj> {
    // Links first: fields are dropped in order, and those of static probes look
    // into the object when they are.
    /// Probes by PID and file; they outlive an exec.
    probes: HashMap<u32, HashMap<FileId, Vec<Link>>>,
    _links: Vec<Link>,
    skel: skel::MemleakSkel<'obj>,
    method: Method,
    wanted: Wanted,
    files: Files,
    /// By the kernel side's number of the process.
    processes: BTreeMap<u64, Process>,
    attached: Vec<Attached>,
    notes: Vec<String>,
    warnings: Vec<String>,
}

/// Files, each read once.
#[derive(Default)]
struct Files {
    objects: Objects,
    searched: HashMap<FileId, Rc<Search>>,
}

impl<'obj> Tracer<'obj> {
    /// Loads the programs and watches processes come and go, none of them ours
    /// so far.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn start(
        ctx: &Context,
        method: Method,
        wanted: Wanted,
        storage: &'obj mut MaybeUninit<OpenObject>,
    ) -> Result<Self> {
        let builder = skel::MemleakSkelBuilder { obj_builder: ctx.kernel.object_builder()? };
        let mut open = builder.open(storage)?;
        let with_storage = has_storage(&ctx.kernel);
        for mut program in open.open_object_mut().progs_mut() {
            let Some(side) = program.name().to_str().and_then(probes::side) else { continue };
            uprobe::set_attach_type(&program, method.attach_type(probes::given_side(method, side)));
            let loaded =
                !wanted.mappings_only && (side != Side::Return || method != Method::Session);
            program.set_autoload(loaded);
        }
        open.maps.threads.set_autocreate(with_storage)?;
        open.maps.threads_by_tid.set_max_entries(if with_storage { 1 } else { THREADS })?;
        open.maps.blocks.set_max_entries(wanted.max_blocks)?;
        open.maps.stacks.set_max_entries(wanted.max_stacks)?;
        open.maps.events.set_max_entries(wanted.ring_bytes)?;
        if let Some(constants) = open.maps.rodata_data.as_deref_mut() {
            constants.ring_half_bytes = u64::from(wanted.ring_bytes) / 2;
            constants.with_storage = with_storage;
            constants.in_session = method == Method::Session;
            constants.with_stack = wanted.stacks;
            constants.follow = wanted.follow;
            constants.trace = wanted.trace;
            constants.depth_max = wanted.depth;
            constants.min_bytes = wanted.min_bytes;
            constants.max_bytes = wanted.max_bytes;
            constants.sample_bytes = wanted.sample_bytes;
        }
        let skel =
            open.load().context(|| "loading the programs").map_err(rights::explain_refusal)?;
        let mut links = Vec::new();
        for program in skel.object().progs_mut() {
            if program.name().to_str().is_some_and(|name| !probes::is_placed(name)) {
                let link = program.attach().map_err(|error| explain_tracefs(error.into()));
                links.push(link.context(|| format!("attaching {}", program.name().display()))?);
            }
        }
        Ok(Self {
            skel,
            method,
            wanted,
            files: Files::default(),
            processes: BTreeMap::new(),
            probes: HashMap::new(),
            attached: Vec::new(),
            notes: Vec::new(),
            warnings: Vec::new(),
            _links: links,
        })
    }

    /// The reading end of the events.
    ///
    /// # Errors
    /// The ring cannot be mapped.
    pub fn ring(&self) -> Result<Ring> {
        Ring::new(&self.skel.maps.events)
    }

    /// Watches a process from now on.
    ///
    /// # Errors
    /// It has gone, or nothing in it can be probed; the message says what to
    /// run instead.
    pub fn watch(&mut self, procfs: &ProcFs, tgid: u32) -> Result<()> {
        let id = u64::from(tgid) << 32;
        let key = tgid.to_ne_bytes();
        self.skel
            .maps
            .processes
            .update(&key, &id.to_ne_bytes(), MapFlags::ANY)
            .context(|| format!("watching process {tgid}"))?;
        self.new_epoch();
        self.add(procfs, tgid, id)
    }

    /// Fails if the process has no allocator that can be traced.
    ///
    /// # Errors
    /// As said, with the reason and what to run instead.
    pub fn require_allocator(&self, tgid: u32) -> Result<()> {
        let process = self.processes.values().find(|process| process.tgid == tgid);
        let (Some(process), false) = (process, self.wanted.mappings_only) else { return Ok(()) };
        match self.refusal(process) {
            None => Ok(()),
            Some(why) => Err(Error::failure(format!(
                "{} ({tgid}): {why}; memleak --mappings -P {tgid} shows what it maps directly, by \
                 stack, and procstat -P {tgid} how it grows",
                process.comm
            ))),
        }
    }

    fn refusal(&self, process: &Process) -> Option<String> {
        let searches = || {
            process
                .maps
                .executables()
                .filter_map(|object| Some((object, self.files.searched.get(&object.id)?)))
        };
        let named = self.wanted.object.is_some();
        let Some((_, main)) = searches().next() else {
            return Some(match process.maps.unopened().next() {
                Some((name, why)) => format!("`{name}` cannot be opened: {why}"),
                None => "it maps no program: a kernel thread, or it has exited".into(),
            });
        };
        if main.go && !named {
            return Some(
                "a Go program: its memory is given out by the Go runtime, whose functions must not \
                 be given return probes"
                    .into(),
            );
        }
        if searches().any(|(object, _)| object.name() == "libjvm.so") && !named {
            return Some(
                "a Java virtual machine: its objects live in a heap of its own; name a library \
                 with --object to trace the native part (libc.so.6, libjemalloc.so.2)"
                    .into(),
            );
        }
        if searches().any(|(object, search)| self.is_wanted(object) && search.gives_memory()) {
            return None;
        }
        Some(match &self.wanted.object {
            Some(name) => format!("no file called `{name}` with an allocator is mapped"),
            None if !main.dynamic && !main.symbols => {
                "linked statically and stripped: no symbol says where its allocator is".into()
            }
            None if !main.dynamic => "linked statically, with an allocator of unknown name; name \
                                      its functions with --symbol-prefix"
                .into(),
            None => "no allocator known by name is in the files it maps; name its functions with \
                     --symbol-prefix"
                .into(),
        })
    }

    fn is_wanted(&self, object: &Object) -> bool {
        self.wanted.object.as_ref().is_none_or(|name| object.name() == name)
    }

    fn add(&mut self, procfs: &ProcFs, tgid: u32, id: u64) -> Result<()> {
        let maps = Maps::read(procfs, tgid, &mut self.files.objects)?;
        let heap = maps.mappings().iter().find(|mapping| &*mapping.name == "[heap]");
        let ledger = Ledger::new(heap.map(|heap| heap.end));
        let comm = comm(tgid).unwrap_or_default();
        let process = Process { tgid, comm, maps, ledger, ended: None, children: 0 };
        self.processes.insert(id, process);
        self.attach_new(id)
    }

    /// Looks for files the process has mapped since, and probes them.
    ///
    /// # Errors
    /// The kernel refuses a probe.
    pub fn rescan(&mut self, procfs: &ProcFs, tgid: u32) -> Result<()> {
        let Some((&id, _)) = self.living(tgid) else { return Ok(()) };
        // It may have gone meanwhile: what is known of it stays.
        let Ok(maps) = Maps::read(procfs, tgid, &mut self.files.objects) else { return Ok(()) };
        if let Some(process) = self.processes.get_mut(&id) {
            process.maps.update(maps);
            process.comm = comm(tgid).unwrap_or_else(|| std::mem::take(&mut process.comm));
        }
        self.attach_new(id)
    }

    fn living(&self, tgid: u32) -> Option<(&u64, &Process)> {
        let mut of_pid = self.processes.iter().rev();
        of_pid.find(|(_, process)| process.tgid == tgid && process.ended.is_none())
    }

    fn attach_new(&mut self, id: u64) -> Result<()> {
        let Some(process) = self.processes.get(&id) else { return Ok(()) };
        let tgid = process.tgid;
        let probes = self.probes.entry(tgid).or_default();
        let new: Vec<Rc<Object>> = process
            .maps
            .executables()
            .filter(|object| !probes.contains_key(&object.id))
            .map(Rc::clone)
            .collect();
        if self.wanted.mappings_only {
            return Ok(());
        }
        let mut searches = Vec::new();
        for object in new {
            let search = self.search(&object);
            searches.push((object, search));
        }
        // Sampling may skip the returns of `malloc` only if no other file's
        // allocator can be called by it.
        let alone = searches.iter().filter(|(_, search)| search.defines_malloc()).count() <= 1;
        let jvm = searches.iter().any(|(object, _)| object.name() == "libjvm.so");
        let known = self.attached.len();
        for (object, search) in searches {
            let refused = (search.go || jvm) && self.wanted.object.is_none();
            let mut links = Vec::new();
            if self.is_wanted(&object) && !refused && !search.go {
                let bpf = self.skel.object();
                let file = probes::attach(bpf, self.method, tgid, &object, &search.found, alone)?;
                self.warnings.extend(file.warnings);
                if let Some(attached) = file.attached
                    && !self.attached.iter().any(|known| known.object == attached.object)
                {
                    self.attached.push(attached);
                }
                links = file.links;
            }
            self.probes.entry(tgid).or_default().insert(object.id, links);
        }
        if known > 0 || self.attached.len() > 1 {
            self.frees_may_nest();
        }
        Ok(())
    }

    fn search(&mut self, object: &Rc<Object>) -> Rc<Search> {
        if let Some(known) = self.files.searched.get(&object.id) {
            return Rc::clone(known);
        }
        let search = Search::new(object, &self.wanted.prefixes).unwrap_or_else(|error| {
            self.notes.push(format!("{}: not searched: {error}", object.path));
            Search::default()
        });
        let search = Rc::new(search);
        self.files.searched.insert(object.id, Rc::clone(&search));
        search
    }

    /// Enters an event. Returns whether it is a traced call, which is the
    /// caller's to print.
    ///
    /// # Errors
    /// A probe in new code cannot be attached.
    pub fn enter(&mut self, procfs: &ProcFs, raw: &RawEvent) -> Result<bool> {
        let change = match raw.kind {
            kind::ALLOC | kind::FREE => return Ok(true),
            kind::FORK => {
                self.forked(procfs, raw)?;
                return Ok(false);
            }
            kind::EXEC => {
                self.end(raw.process, End::Exec);
                // A program that has ended already needs no probes.
                let _ = self.add(procfs, raw.tid, raw.other);
                return Ok(false);
            }
            kind::EXIT => {
                self.end(raw.process, End::Exit);
                self.probes.remove(&raw.tid);
                return Ok(false);
            }
            kind::MAP => Change::Map,
            kind::UNMAP => Change::Unmap,
            kind::UNMAP_FAILED => Change::UnmapFailed,
            kind::REMAP => Change::Remap,
            kind::REMAPPED => Change::Remapped,
            kind::REMAP_FAILED => Change::RemapFailed,
            kind::PROTECT => Change::Protect { none: raw.prot == 0 },
            kind::BRK => Change::Brk,
            other => return Err(Error::failure(format!("event {other} from the kernel side"))),
        };
        let Some(process) = self.processes.get_mut(&raw.process) else { return Ok(false) };
        let anonymous = raw.map_flags & MAP_ANONYMOUS != 0;
        let mapped = Mapped {
            backing: match change {
                Change::Brk => Backing::Brk,
                _ if anonymous => Backing::Anonymous,
                _ => Backing::File,
            },
            reserved: change == Change::Map && raw.prot == 0,
            allocator: raw.flags & FLAG_ALLOCATOR != 0,
            stack: raw.stack,
            time_ns: raw.time_ns,
        };
        let event = Event { change, tid: raw.tid, start: raw.address, bytes: raw.bytes, mapped };
        process.ledger.enter(&event);
        if change == Change::Map && raw.prot & PROT_EXEC != 0 && !anonymous {
            let tgid = process.tgid;
            self.rescan(procfs, tgid)?;
        }
        Ok(false)
    }

    fn forked(&mut self, procfs: &ProcFs, raw: &RawEvent) -> Result<()> {
        if !self.wanted.follow {
            if let Some(parent) = self.processes.get_mut(&raw.process) {
                parent.children += 1;
            }
            return Ok(());
        }
        match self.add(procfs, raw.tid, raw.other) {
            Ok(()) => {
                let late_ms = monotonic_ns().saturating_sub(raw.time_ns) / 1_000_000;
                let name = comm(raw.tid).unwrap_or_default();
                self.warnings.push(format!(
                    "follows {} ({name}) from {late_ms} ms after its fork: what it allocated \
                     before is not seen",
                    raw.tid
                ));
                Ok(())
            }
            // It may have exited before we came.
            Err(_) if comm(raw.tid).is_none() => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn end(&mut self, id: u64, end: End) {
        if let Some(process) = self.processes.get_mut(&id) {
            process.ended = Some(end);
        }
    }

    /// Forgets a process that has ended, and frees the room its blocks take.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn forget(&mut self, id: u64) -> Result<()> {
        self.processes.remove(&id);
        let mut keys = Vec::new();
        batch::for_each(&self.skel.maps.blocks, |key: RawKey, _: RawBlock| {
            if key.process == id {
                keys.push(key);
            }
        })?;
        for key in keys {
            // Nobody else deletes it: the process has gone.
            // SAFETY: plain integers without padding, as said above.
            let _ = self.skel.maps.blocks.delete(unsafe { plain::as_bytes(&key) });
        }
        Ok(())
    }

    /// All processes, the ended ones that are not forgotten too.
    pub fn processes(&self) -> &BTreeMap<u64, Process> {
        &self.processes
    }

    /// What is probed, file by file.
    pub fn attached(&self) -> &[Attached] {
        &self.attached
    }

    /// What is missing from the figures, said once.
    pub fn take_warnings(&mut self) -> Vec<String> {
        std::mem::take(&mut self.warnings)
    }

    /// What explains the figures, said once.
    pub fn take_notes(&mut self) -> Vec<String> {
        std::mem::take(&mut self.notes)
    }

    /// Every live block.
    ///
    /// # Errors
    /// The table cannot be read.
    pub fn each_block(&self, mut each: impl FnMut(Block)) -> Result<()> {
        batch::for_each(&self.skel.maps.blocks, |key: RawKey, block: RawBlock| {
            each(Block {
                process: key.process,
                address: key.address,
                bytes: block.bytes,
                time_ns: block.time_ns,
                stack: block.stack,
            });
        })
    }

    /// Every stack, by its id. `known` has those of earlier calls: addresses
    /// never change, only counters are read anew.
    ///
    /// # Errors
    /// The table cannot be read.
    pub fn read_stacks(&self, known: &mut HashMap<u64, Known>) -> Result<()> {
        batch::for_each_raw(&self.skel.maps.stacks, |key, value| {
            let (Some(id), Some(raw)) = (number(key, 0), StackView::of(value)) else { return };
            let seen = raw.seen();
            known.entry(id).and_modify(|known| known.seen = seen).or_insert_with(|| Known {
                process: raw.owner(),
                stack: raw.addresses(),
                seen,
            });
        })
    }

    /// One stack, by its id; `None`: there is none of that id.
    pub fn stack(&self, id: u64) -> Option<Stack> {
        let value = self.skel.maps.stacks.lookup(&id.to_ne_bytes(), MapFlags::ANY).ok()??;
        Some(StackView::of(&value)?.addresses())
    }

    /// What was allocated without a stack.
    pub fn stackless(&self) -> Amount {
        let Some(shared) = self.skel.maps.bss_data.as_deref() else { return Amount::default() };
        let mut sum = Amount::default();
        for slot in &shared.stackless {
            sum += Amount { bytes: read_shared(&slot.bytes), blocks: read_shared(&slot.blocks) };
        }
        sum
    }

    /// What could not be done so far.
    pub fn trouble(&self) -> Trouble {
        let Some(shared) = self.skel.maps.bss_data.as_deref() else { return Trouble::default() };
        let trouble = &shared.trouble;
        let read = |bytes: &u64, blocks: &u64| Amount {
            bytes: read_shared(bytes),
            blocks: read_shared(blocks),
        };
        Trouble {
            lost: read(&trouble.full.bytes, &trouble.full.blocks),
            missed_frees: read(&trouble.missed.bytes, &trouble.missed.blocks),
            unknown_frees: shared.unknown.iter().map(|slot| read_shared(&slot.count)).sum(),
            lost_stacks: read_shared(&trouble.stacks),
            missed_returns: read_shared(&trouble.returns),
            lost_calls: read_shared(&trouble.threads),
            lost_events: read_shared(&shared.lost_events),
        }
    }

    /// There is more than one allocator: the frees of one may be calls of another's.
    fn frees_may_nest(&mut self) {
        if let Some(shared) = self.skel.maps.bss_data.as_deref_mut() {
            // SAFETY: aligned, in the mapped data section as long as the
            // skeleton; the kernel side only reads it.
            unsafe { AtomicU64::from_ptr(&mut shared.frees_nest) }.store(1, Ordering::Relaxed);
        }
    }

    /// Has threads look again whose they are.
    fn new_epoch(&mut self) {
        if let Some(data) = self.skel.maps.data_data.as_deref_mut() {
            // SAFETY: the variable is aligned and lives in the mapped data
            // section as long as the skeleton; the kernel side only ever adds
            // to it, atomically.
            unsafe { AtomicU64::from_ptr(&mut data.epoch) }.fetch_add(1, Ordering::SeqCst);
        }
    }
}

/// Tracepoints are found through tracefs, which is root's alone.
fn explain_tracefs(error: Error) -> Error {
    if error.kind() != Kind::Rights {
        return error;
    }
    Error::rights(format!(
        "{error}; tracepoints take reading /sys/kernel/tracing: run it as root, or grant \
         CAP_DAC_READ_SEARCH too"
    ))
}

fn has_storage(kernel: &KernelFacts) -> bool {
    kernel.has(Need::TaskStorage)
}

fn comm(tgid: u32) -> Option<String> {
    let text = fs::read(format!("/proc/{tgid}/comm")).ok()?;
    Some(String::from_utf8_lossy(&text).trim_end().to_owned())
}

/// Whether a traced call gave a block; else it took one.
pub fn gives(raw: &RawEvent) -> bool {
    raw.kind == kind::ALLOC
}

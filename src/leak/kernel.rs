//! The kernel's own allocations: slab objects by cache, pages by order, per-CPU
//! memory and `vmalloc()`, each by the stack that allocated it.
//!
//! Nothing is counted twice. Pages that the slab allocator took for its objects
//! are left out by what the kernel says of each page at the time of the report
//! (`/proc/kpageflags`). A kmalloc block of more than two pages comes right from
//! the page allocator: it is shown among the pages where those are wanted, and as
//! `slab kmalloc-large` where they are not. Pages below `vmalloc()` are left out
//! where `vmalloc()` itself is seen.
//!
//! ```text
//! seen = lost + tracked        tracked = live + freed + missed_frees
//! ```

mod code;
mod learn;
mod pageflags;

use std::collections::HashMap;
use std::fs;
use std::fs::File;
use std::mem::MaybeUninit;
use std::rc::Rc;

use libbpf_rs::Link;
use libbpf_rs::MapCore as _;
use libbpf_rs::MapFlags;
use libbpf_rs::OpenObject;
use libbpf_rs::skel::OpenSkel as _;
use libbpf_rs::skel::Skel as _;
use libbpf_rs::skel::SkelBuilder as _;

use super::Amount;
use super::Held;
use super::Stack;
use crate::batch;
use crate::context::Context;
use crate::error::Context as _;
use crate::error::Error;
use crate::error::Result;
use crate::event::decode;
use crate::event::read_shared;
use crate::event::text;
use crate::kernel::KernelFacts;
use crate::kernel::Need;
use crate::skipped;
use crate::time::monotonic_ns;

#[allow(missing_docs, clippy::all, clippy::restriction, unreachable_pub, unused)]
mod skel {
    include!(concat!(env!("OUT_DIR"), "/memleak_kernel.skel.rs"));
}
use skel::types::leak_amount as RawAmount;
use skel::types::leak_block as RawBlock;
use skel::types::leak_key as RawKey;
use skel::types::leak_stack as RawStack;
use skel::types::leak_totals as RawTotals;

// SAFETY: two 64-bit integers (asserted by their use as a key of 16 bytes).
unsafe impl plain::Plain for RawKey {}
// SAFETY: four 64-bit integers, the size is asserted in memleak_kernel.bpf.c.
unsafe impl plain::Plain for RawBlock {}
// SAFETY: integers and a byte array without gaps, the size is asserted in
// memleak_kernel.bpf.c, so every bit pattern is a valid value.
unsafe impl plain::Plain for RawStack {}

// As in memleak_kernel.bpf.c.
const SPACE_SLAB: u64 = 1;
const SPACE_PAGES: u64 = 2;
const SPACE_PERCPU: u64 = 3;
const SPACE_VMAP: u64 = 4;
const KIND_CACHE: u32 = 1;
const KIND_KMALLOC: u32 = 2;
const KIND_PAGES: u32 = 3;
const KIND_PERCPU: u32 = 4;
const KIND_VMAP: u32 = 5;
const MAX_DEPTH: u32 = 127;
const NAME_LEN: usize = 48;

/// What to watch.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Slab objects: `kmalloc()` and caches.
    pub slab: bool,
    /// Pages and `vmalloc()`.
    pub pages: bool,
    /// Per-CPU memory.
    pub percpu: bool,
    /// Only objects of this cache, named as in `/proc/slabinfo`; `kmalloc-SIZE` is every kmalloc
    /// block of that size, whichever of the kernel's variants it comes from. Nothing but slab
    /// objects is watched then.
    pub cache: Option<String>,
    /// Only what code of this module allocates, or causes others to.
    pub module: Option<String>,
    /// Only blocks of at least so many bytes.
    pub min_bytes: u64,
    /// Only blocks of at most so many bytes.
    pub max_bytes: u64,
    /// Blocks that can be tracked at a time.
    pub max_blocks: u32,
    /// Stacks that can be kept, for each sort of memory.
    pub max_stacks: u32,
    /// Frames of a stack, at most 127. `kernel.perf_event_max_stack` may allow fewer.
    pub depth: u32,
}

/// One reading.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// What is held by each stack and sort of memory.
    pub held: Vec<Held>,
    /// Allocations since the start that were looked for.
    pub seen: Amount,
    /// Those of them that were recorded.
    pub tracked: Amount,
    /// Those that were not: the table of blocks was full.
    pub lost: Amount,
    /// Recorded blocks that were freed.
    pub freed: Amount,
    /// Recorded blocks that are alive, those left out below included.
    pub live: Amount,
    /// Recorded blocks that were freed unseen: their address was handed out again.
    pub missed_frees: Amount,
    /// Frees of what was not recorded, mostly blocks from before the start.
    pub unknown_frees: u64,
    /// Frees that the table refused: these blocks stay listed.
    pub failed_frees: u64,
    /// Allocations whose stack could not be captured or kept.
    pub lost_stacks: Amount,
    /// Live pages that back slab objects, left out of `held`; `None`: the kernel
    /// does not tell, and they are in `held`.
    pub slab_pages: Option<Amount>,
    /// Live pages below `vmalloc()`, left out of `held`, which has it as `vmalloc`.
    pub vmalloc_pages: Amount,
    /// Live kernel address space that maps memory of others (I/O, files, stacks of
    /// pages), left out of `held`: it holds nothing.
    pub mappings: Amount,
    /// Live blocks whose stack has one frame: this kernel captures no real ones.
    pub shallow: Amount,
    /// Events that the kernel did not show, at most: each program for them was
    /// running on that CPU already.
    pub missed_runs: u64,
}

/// How a program is attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// On a tracepoint of that name.
    RawTracepoint,
    /// On entry of a function of that name, where the kernel lets us.
    Function,
}

/// One program.
struct Part {
    program: &'static str,
    place: Place,
    at: &'static str,
    space: u64,
    /// The sort of memory cannot be watched without it.
    vital: bool,
    /// The program that does what this one is skipped for, see [`choose`].
    second: Option<&'static str>,
}

const fn alone(program: &'static str, at: &'static str, space: u64) -> Part {
    Part { program, place: Place::RawTracepoint, at, space, vital: false, second: None }
}

const fn pair(programs: [&'static str; 2], at: &'static str, space: u64) -> Part {
    let [program, second] = programs;
    let vital = space != SPACE_VMAP;
    Part { program, place: Place::RawTracepoint, at, space, vital, second: Some(second) }
}

/// All programs, those that see frees first: what is allocated from the moment on
/// that the last one is attached must be seen freed.
static PARTS: [Part; 14] = [
    pair(["kmalloc_free", "kmalloc_free2"], "kfree", SPACE_SLAB),
    pair(["cache_free", "cache_free2"], "kmem_cache_free", SPACE_SLAB),
    Part { place: Place::Function, ..alone("rcu_free", "kvfree_call_rcu", SPACE_SLAB) },
    Part { place: Place::Function, ..alone("bulk_free", "kmem_cache_free_bulk", SPACE_SLAB) },
    pair(["page_free", "page_free2"], "mm_page_free", SPACE_PAGES),
    pair(["percpu_free", "percpu_free2"], "percpu_free_percpu", SPACE_PERCPU),
    pair(["vmap_free", "vmap_free2"], "free_vmap_area_noflush", SPACE_VMAP),
    pair(["kmalloc_alloc", "kmalloc_alloc2"], "kmalloc", SPACE_SLAB),
    pair(["cache_alloc", "cache_alloc2"], "kmem_cache_alloc", SPACE_SLAB),
    // Until 6.0.
    alone("kmalloc_alloc_n", "kmalloc_node", SPACE_SLAB),
    alone("cache_alloc_nod", "kmem_cache_alloc_node", SPACE_SLAB),
    pair(["page_alloc", "page_alloc2"], "mm_page_alloc", SPACE_PAGES),
    pair(["percpu_alloc", "percpu_alloc2"], "percpu_alloc_percpu", SPACE_PERCPU),
    // From 6.2 on.
    pair(["vmap_alloc", "vmap_alloc2"], "alloc_vmap_area", SPACE_VMAP),
];

impl Part {
    /// Whether this kernel has what it is attached to.
    fn is_here(&self, facts: &KernelFacts) -> bool {
        match self.place {
            Place::RawTracepoint => facts.has(Need::BtfTracepoint(self.at)),
            Place::Function => facts.has(Need::Func(self.at)) && facts.has(Need::Fentry),
        }
    }

    /// As the header shows it.
    fn name(&self) -> String {
        match self.place {
            Place::RawTracepoint => format!("raw_tp:{}", self.at),
            Place::Function => format!("fentry:{}", self.at),
        }
    }
}

impl Wanted {
    /// Whether anything of `space` is to be watched.
    fn has(&self, space: u64) -> bool {
        match space {
            SPACE_SLAB => self.slab || self.cache.is_some(),
            SPACE_PERCPU => self.percpu && self.cache.is_none(),
            _ => self.pages && self.cache.is_none(),
        }
    }
}

/// Whether the kernel may skip a raw tracepoint program that is running already,
/// so that the second one is needed. It does since 6.1; up to 6.0, which the events
/// tell, it is not only of no use: `kmem_cache_free` there comes after the free (until
/// 5.12), when the address may be somebody else's already.
fn needs_seconds(facts: &KernelFacts) -> bool {
    !facts.has(Need::BtfTracepoint("kmem_cache_alloc_node"))
}

/// Which programs to load, and what is missing without the others.
fn choose(facts: &KernelFacts, wanted: &Wanted) -> Result<(Vec<&'static Part>, Vec<String>)> {
    let mut chosen = Vec::new();
    let mut notes = Vec::new();
    let asked = PARTS.iter().filter(|part| wanted.has(part.space));
    for part in asked {
        if part.is_here(facts) {
            chosen.push(part);
        } else if part.vital {
            return Err(Error::kernel(format!(
                "this kernel ({}) has no tracepoint `{}`, without which its allocations cannot be \
                 told from its frees",
                facts.release(),
                part.at
            )));
        }
    }
    if chosen.is_empty() {
        return Err(Error::usage(
            "nothing to watch: neither slab objects, pages nor per-CPU memory",
        ));
    }
    let uses = |program: &str| chosen.iter().any(|part| part.program == program);
    let slab = wanted.has(SPACE_SLAB);
    if slab && !(uses("rcu_free") && uses("bulk_free")) {
        notes.push(
            "slab objects freed with kfree_rcu() or in bulk are listed until their address is \
             used again: no tracepoint shows it, and fentry programs cannot be used here"
                .to_owned(),
        );
    }
    if wanted.has(SPACE_PAGES) && !(uses("vmap_alloc") && uses("vmap_free")) {
        notes.push("vmalloc() is seen only where it allocates its pages one by one".to_owned());
    }
    Ok((chosen, notes))
}

/// The filter for `--cache`.
#[derive(Clone, Debug, PartialEq, Eq)]
enum CacheFilter {
    /// By name.
    Named([u8; NAME_LEN]),
    /// kmalloc blocks of that many bytes; 0: of more than two pages.
    Kmalloc(u64),
}

/// What `--cache NAME` asks for.
///
/// # Errors
/// Too long a name, or a variant of kmalloc, which the kernel's events do not tell.
fn cache_filter(name: &str) -> Result<CacheFilter> {
    if let Some(class) = name.strip_prefix("kmalloc-") {
        if class == "large" {
            return Ok(CacheFilter::Kmalloc(0));
        }
        let (digits, unit) = match class.strip_suffix('k') {
            Some(digits) => (digits, 1024),
            None => (class, 1),
        };
        return match digits.parse::<u64>() {
            Ok(number) if number > 0 => Ok(CacheFilter::Kmalloc(number * unit)),
            _ => Err(Error::usage(format!(
                "--cache `{name}`: the kernel's events tell kmalloc blocks apart by size only; \
                 give kmalloc-SIZE as in kmalloc-64 or kmalloc-1k, or kmalloc-large"
            ))),
        };
    }
    let mut bytes = [0; NAME_LEN];
    match bytes.get_mut(..name.len()) {
        // One byte stays for the terminator.
        Some(room) if !name.is_empty() && name.len() < NAME_LEN => {
            room.copy_from_slice(name.as_bytes());
            Ok(CacheFilter::Named(bytes))
        }
        _ => Err(Error::usage(format!("--cache `{name}`: no name of a slab cache"))),
    }
}

/// What `Held::what` says.
fn what(kind: u32, what: u64, name: &str) -> String {
    match kind {
        KIND_CACHE if name.is_empty() => format!("slab - {what}"),
        KIND_CACHE => format!("slab {name}"),
        KIND_KMALLOC if what == 0 => "slab kmalloc-large".to_owned(),
        // As the kernel names them (kmalloc_info[], mm/slab_common.c).
        KIND_KMALLOC if what >= 1024 && what.is_multiple_of(1024) => {
            format!("slab kmalloc-{}k", what / 1024)
        }
        KIND_KMALLOC => format!("slab kmalloc-{what}"),
        KIND_PAGES => format!("pages order {what}"),
        KIND_PERCPU => "percpu".to_owned(),
        _ => "vmalloc".to_owned(),
    }
}

/// The same where the stack, and with it the cache, is lost.
fn what_of_lost(space: u64, order: u64) -> String {
    match space {
        SPACE_SLAB => "slab".to_owned(),
        SPACE_PAGES => what(KIND_PAGES, order, ""),
        SPACE_PERCPU => what(KIND_PERCPU, 0, ""),
        _ => what(KIND_VMAP, 0, ""),
    }
}

/// The loaded and attached programs. Dropping it detaches them.
pub struct Tracer<'obj> {
    skel: skel::MemleakKernelSkel<'obj>,
    links: Vec<Link>,
    hooks: Vec<String>,
    notes: Vec<String>,
    code: code::Code,
    page_flags: Option<File>,
    sees_vmalloc: bool,
    known: HashMap<u64, Known>,
}

/// What does not change of a stack.
#[derive(Clone)]
struct Known {
    kind: u32,
    what: Rc<str>,
    stack: Stack,
    vmalloc: bool,
}

/// What the blocks of one stack add up to.
#[derive(Clone, Copy, Default)]
struct Sum {
    live: Amount,
    older: Amount,
    first_ns: u64,
}

impl Sum {
    fn add(&mut self, bytes: u64, time_ns: u64, now: u64, older_ns: u64) {
        if self.live.blocks == 0 || time_ns < self.first_ns {
            self.first_ns = time_ns;
        }
        self.live.add_block(bytes);
        if now.saturating_sub(time_ns) >= older_ns {
            self.older.add_block(bytes);
        }
    }
}

/// Stack, space and order (the latter two matter where the stack is lost).
type Group = (u64, u64, u64);

impl<'obj> Tracer<'obj> {
    /// Loads, attaches and starts counting. `storage` is where the programs live.
    ///
    /// # Errors
    /// `wanted` names no cache or module (usage); this kernel lacks a tracepoint
    /// that is vital (kernel), or refuses the programs.
    pub fn start(
        ctx: &Context,
        wanted: &Wanted,
        storage: &'obj mut MaybeUninit<OpenObject>,
    ) -> Result<Self> {
        let (parts, mut notes) = choose(&ctx.kernel, wanted)?;
        let filter = wanted.cache.as_deref().map(cache_filter).transpose()?;
        // Hidden from us or unreadable: stacks keep the tracing's own frames.
        let symbols = fs::read("/proc/kallsyms").unwrap_or_default();
        let module = match &wanted.module {
            Some(name) => Some(code::module_code(&symbols, name).ok_or_else(|| {
                Error::usage(format!("--module `{name}`: no such module is loaded (see lsmod)"))
            })?),
            None => None,
        };
        // Until 6.0, events do not name the cache of an object.
        let seconds = needs_seconds(&ctx.kernel);
        let cache_by_page = wanted.has(SPACE_SLAB) && !seconds;
        let with_places = wanted.has(SPACE_PAGES) || cache_by_page;

        let builder = skel::MemleakKernelSkelBuilder { obj_builder: ctx.kernel.object_builder()? };
        let mut open = builder.open(storage)?;
        for mut program in open.open_object_mut().progs_mut() {
            let name = program.name().to_str().unwrap_or_default();
            let chosen = parts.iter().any(|part| part.program == name)
                || (seconds && parts.iter().any(|part| part.second == Some(name)))
                || (name == "learn_page" && with_places)
                || (name == "learn_block" && cache_by_page);
            program.set_autoload(chosen);
        }
        open.maps.blocks.set_max_entries(wanted.max_blocks.max(1))?;
        open.maps.stacks.set_max_entries(wanted.max_stacks.max(1))?;
        if let Some(constants) = open.maps.rodata_data.as_deref_mut() {
            constants.self_tgid = std::process::id();
            constants.stack_depth = wanted.depth.clamp(1, MAX_DEPTH);
            constants.page_shift = rustix::param::page_size().trailing_zeros();
            constants.cpus = ctx.procfs.possible_cpus()?;
            constants.min_bytes = wanted.min_bytes;
            constants.max_bytes = wanted.max_bytes;
            constants.with_pages = u8::from(wanted.has(SPACE_PAGES));
            match filter {
                Some(CacheFilter::Named(name)) => {
                    constants.by_cache = 1;
                    constants.cache_name = name;
                }
                Some(CacheFilter::Kmalloc(class)) => {
                    constants.by_kmalloc = 1;
                    constants.kmalloc_class = class;
                }
                None => {}
            }
            if let Some(range) = module {
                constants.module_from = range.start;
                constants.module_to = range.end;
            }
        }
        let mut skel = open.load().context(|| "loading the programs of memleak --kernel")?;

        let mut page_flags = None;
        if with_places {
            let places = find_places(&mut skel, cache_by_page)?;
            ctx.say(|| format!("memleak: {places:x?}"));
            if let Some(shared) = skel.maps.bss_data.as_deref_mut() {
                shared.page_base = places.pages.unwrap_or(0);
                shared.direct_base = places.direct.unwrap_or(0);
            }
            if places.pages.is_some() {
                page_flags = File::open("/proc/kpageflags").ok();
            }
            if wanted.has(SPACE_PAGES) && page_flags.is_none() {
                notes.push(
                    "pages that back slab objects are listed too: the kernel does not tell them \
                     apart here (/proc/kpageflags, /proc/self/pagemap)"
                        .to_owned(),
                );
            }
            if cache_by_page && places.direct.is_none() {
                if wanted.cache.is_some() {
                    return Err(Error::kernel(
                        "--cache: on this kernel the cache of an object cannot be found out",
                    ));
                }
                notes.push("slab objects are shown by size: their cache is not known".to_owned());
            }
        }

        let mut links = Vec::with_capacity(parts.len());
        for part in &parts {
            links.push(attach(&skel, part.program, part.at)?);
            if let Some(second) = part.second.filter(|_| seconds) {
                links.push(attach(&skel, second, part.at)?);
            }
        }
        if let Some(shared) = skel.maps.bss_data.as_deref_mut() {
            shared.armed = 1;
        }
        let code = code::Code::parse(&symbols);
        Ok(Self {
            sees_vmalloc: parts.iter().any(|part| part.program == "vmap_alloc")
                && code.knows_vmalloc(),
            skel,
            links,
            hooks: parts.iter().map(|part| part.name()).collect(),
            notes,
            code,
            page_flags,
            known: HashMap::new(),
        })
    }

    /// What is attached, for the header.
    pub fn hooks(&self) -> Vec<String> {
        self.hooks.clone()
    }

    /// What cannot be seen or told apart on this kernel, for the user.
    pub fn notes(&self) -> Vec<String> {
        self.notes.clone()
    }

    /// What is held now, and everything since the start. `older` of each stack is
    /// what was allocated at least `older_ns` nanoseconds ago.
    ///
    /// The table is read while the kernel goes on: blocks that come and go
    /// meanwhile may be in it or not, so the sums of the module's documentation
    /// hold exactly only for what is at rest.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn read(&mut self, older_ns: u64) -> Result<Snapshot> {
        let mut snapshot = self.totals()?;
        snapshot.missed_runs = self.missed_runs();
        let now = monotonic_ns();
        let mut sums: HashMap<Group, Sum> = HashMap::new();
        let mut pages: Vec<(u64, RawBlock)> = Vec::new();
        let mut live = Amount::default();
        let apart = self.page_flags.is_some();
        batch::for_each(&self.skel.maps.blocks, |key: RawKey, block: RawBlock| {
            live.add_block(block.bytes);
            if apart && key.space == SPACE_PAGES {
                pages.push((key.addr, block));
                return;
            }
            let sum = sums.entry((block.stack, key.space, block.order)).or_default();
            sum.add(block.bytes, block.time_ns, now, older_ns);
        })?;
        snapshot.live = live;

        if let Some(flags) = &self.page_flags {
            pages.sort_unstable_by_key(|page| page.0);
            let numbers: Vec<u64> = pages.iter().map(|page| page.0).collect();
            let mut slab = Amount::default();
            for ((_, block), is_slab) in pages.iter().zip(pageflags::are_slab(flags, &numbers)) {
                if is_slab {
                    slab.add_block(block.bytes);
                    continue;
                }
                let sum = sums.entry((block.stack, SPACE_PAGES, block.order)).or_default();
                sum.add(block.bytes, block.time_ns, now, older_ns);
            }
            snapshot.slab_pages = Some(slab);
        }
        self.hold(&sums, now, &mut snapshot)?;
        Ok(snapshot)
    }

    /// Names what the sums belong to. Stacks that differ only in frames of the
    /// tracing become one.
    fn hold(
        &mut self,
        sums: &HashMap<Group, Sum>,
        now: u64,
        snapshot: &mut Snapshot,
    ) -> Result<()> {
        let mut held: HashMap<(Rc<str>, Stack), Held> = HashMap::new();
        for (&(key, space, order), sum) in sums {
            let found = if key == 0 { None } else { self.look_up(key)? };
            let mut allocated = Amount::default();
            let known = match found {
                Some((known, so_far)) => {
                    allocated = so_far;
                    known
                }
                None => Known {
                    kind: if space == SPACE_VMAP { KIND_VMAP } else { 0 },
                    what: what_of_lost(space, order).into(),
                    stack: Rc::from([]),
                    vmalloc: false,
                },
            };
            if known.kind == KIND_VMAP && !known.vmalloc {
                snapshot.mappings += sum.live;
                continue;
            }
            if known.kind == KIND_PAGES && known.vmalloc && self.sees_vmalloc {
                snapshot.vmalloc_pages += sum.live;
                continue;
            }
            if known.stack.len() == 1 {
                snapshot.shallow += sum.live;
            }
            let entry = held
                .entry((Rc::clone(&known.what), Rc::clone(&known.stack)))
                .or_insert_with(|| Held {
                    what: known.what,
                    stack: known.stack,
                    live: Amount::default(),
                    older: Amount::default(),
                    allocated: Amount::default(),
                    oldest_ns: 0,
                });
            entry.live += sum.live;
            entry.older += sum.older;
            entry.allocated += allocated;
            entry.oldest_ns = entry.oldest_ns.max(now.saturating_sub(sum.first_ns));
        }
        snapshot.held = held.into_values().collect();
        Ok(())
    }

    /// A stack, and everything it allocated so far.
    fn look_up(&mut self, key: u64) -> Result<Option<(Known, Amount)>> {
        let found = self
            .skel
            .maps
            .stacks
            .lookup(&key.to_ne_bytes(), MapFlags::ANY)
            .context(|| "reading a stack")?;
        let Some(bytes) = found else { return Ok(None) };
        let raw: RawStack = decode(&bytes)?;
        let mut allocated = Amount::default();
        for slot in &raw.allocated {
            allocated += amount(slot);
        }
        if let Some(known) = self.known.get(&key) {
            return Ok(Some((known.clone(), allocated)));
        }
        let depth = (raw.depth as usize).min(raw.ips.len());
        let ips = raw.ips.get(..depth).unwrap_or_default();
        let known = Known {
            kind: raw.kind,
            what: what(raw.kind, raw.what, &text(&raw.name)).into(),
            stack: self.code.trim(ips).into(),
            vmalloc: self.code.is_vmalloc(ips),
        };
        self.known.insert(key, known.clone());
        Ok(Some((known, allocated)))
    }

    /// The counters, summed over the CPUs.
    fn totals(&self) -> Result<Snapshot> {
        let shared = self.skel.maps.bss_data.as_deref().ok_or_else(no_data)?;
        Ok(sum_up(&shared.totals))
    }

    fn missed_runs(&self) -> u64 {
        let missed: HashMap<String, u64> = self
            .skel
            .object()
            .progs_mut()
            .filter(|program| program.autoload())
            .map(|program| (program.name().to_string_lossy().into_owned(), skipped::runs(&program)))
            .collect();
        missed_events(&missed)
    }
}

impl Drop for Tracer<'_> {
    fn drop(&mut self) {
        // What comes from now on is not counted, even while the links go one by one.
        if let Some(shared) = self.skel.maps.bss_data.as_deref_mut() {
            shared.armed = 0;
        }
        self.links.clear();
    }
}

/// How many events no program saw, at most: of two programs for one event, both
/// must have been skipped.
fn missed_events(missed: &HashMap<String, u64>) -> u64 {
    PARTS
        .iter()
        .filter_map(|part| {
            let first = *missed.get(part.program)?;
            let second = part.second.and_then(|name| missed.get(name));
            Some(second.map_or(first, |&second| first.min(second)))
        })
        .sum()
}

fn attach(skel: &skel::MemleakKernelSkel<'_>, name: &str, at: &str) -> Result<Link> {
    let mut programs = skel.object().progs_mut();
    let program = programs
        .find(|program| program.name() == name)
        .ok_or_else(|| Error::failure(format!("no program `{name}`")))?;
    program.attach().context(|| format!("attaching to `{at}`"))
}

/// Runs the learning programs for a moment.
fn find_places(skel: &mut skel::MemleakKernelSkel<'_>, with_direct: bool) -> Result<learn::Places> {
    let mut links = vec![attach(skel, "learn_page", "mm_page_alloc")?];
    if with_direct {
        links.push(attach(skel, "learn_block", "kmalloc")?);
    }
    let shared = skel.maps.bss_data.as_deref_mut().ok_or_else(no_data)?;
    let places = learn::learn(
        |act| {
            shared.learnt = 0;
            shared.learnt_block = 0;
            if act().is_none() {
                return learn::Seen::default();
            }
            let count = read_shared(&shared.learnt) as usize;
            let noted = shared.learnt_pages.iter().zip(&shared.learnt_orders).take(count);
            let block = read_shared(&shared.learnt_block);
            learn::Seen {
                pages: noted.map(|(page, order)| (read_shared(page), read_shared(order))).collect(),
                block: (block != 0).then(|| (block, read_shared(&shared.learnt_bytes))),
                struct_bytes: read_shared(&shared.page_struct_bytes),
            }
        },
        with_direct,
    );
    drop(links);
    Ok(places)
}

fn amount(raw: &RawAmount) -> Amount {
    Amount { bytes: read_shared(&raw.bytes), blocks: read_shared(&raw.blocks) }
}

/// The counters of all CPUs. `tracked` is what was seen and not lost.
fn sum_up(slots: &[RawTotals]) -> Snapshot {
    let mut sum = Snapshot::default();
    for slot in slots {
        sum.seen += amount(&slot.seen);
        sum.lost += amount(&slot.lost);
        sum.freed += amount(&slot.freed);
        sum.missed_frees += amount(&slot.missed);
        sum.lost_stacks += amount(&slot.lost_stacks);
        sum.unknown_frees += read_shared(&slot.unknown_frees);
        sum.failed_frees += read_shared(&slot.failed_frees);
    }
    sum.tracked = Amount {
        bytes: sum.seen.bytes.saturating_sub(sum.lost.bytes),
        blocks: sum.seen.blocks.saturating_sub(sum.lost.blocks),
    };
    sum
}

fn no_data() -> Error {
    Error::failure("the BPF object's data is not mapped")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    const NEWEST: [Need; 13] = [
        Need::BtfTracepoint("kfree"),
        Need::BtfTracepoint("kmem_cache_free"),
        Need::BtfTracepoint("mm_page_free"),
        Need::BtfTracepoint("percpu_free_percpu"),
        Need::BtfTracepoint("free_vmap_area_noflush"),
        Need::BtfTracepoint("kmalloc"),
        Need::BtfTracepoint("kmem_cache_alloc"),
        Need::BtfTracepoint("mm_page_alloc"),
        Need::BtfTracepoint("percpu_alloc_percpu"),
        Need::BtfTracepoint("alloc_vmap_area"),
        Need::Func("kvfree_call_rcu"),
        Need::Func("kmem_cache_free_bulk"),
        Need::Fentry,
    ];

    fn all() -> Wanted {
        Wanted {
            slab: true,
            pages: true,
            percpu: true,
            cache: None,
            module: None,
            min_bytes: 0,
            max_bytes: u64::MAX,
            max_blocks: 1,
            max_stacks: 1,
            depth: 127,
        }
    }

    fn programs(has: &[Need], wanted: &Wanted) -> Vec<&'static str> {
        let (parts, _) = choose(&KernelFacts::fake(has), wanted).unwrap();
        parts.iter().map(|part| part.program).collect()
    }

    #[test]
    fn frees_are_watched_before_allocations() {
        let chosen = programs(&NEWEST, &all());
        assert_eq!(chosen.len(), 12, "all but the events for a node: {chosen:?}");
        let frees = chosen.iter().take_while(|name| name.ends_with("_free")).count();
        assert_eq!(frees, 7, "{chosen:?}");
        assert!(!chosen[frees..].iter().any(|name| name.ends_with("_free")), "{chosen:?}");
        let older = [&NEWEST[..], &[Need::BtfTracepoint("kmalloc_node")]].concat();
        assert!(programs(&older, &all()).contains(&"kmalloc_alloc_n"));
    }

    #[test]
    fn only_what_is_asked_for_is_attached() {
        let one = Wanted { slab: false, pages: false, ..all() };
        assert_eq!(programs(&NEWEST, &one), ["percpu_free", "percpu_alloc"]);
        let pages = Wanted { slab: false, percpu: false, ..all() };
        let expected = ["page_free", "vmap_free", "page_alloc", "vmap_alloc"];
        assert_eq!(programs(&NEWEST, &pages), expected);
        let cache = Wanted { cache: Some("filp".into()), ..all() };
        let expected = ["kmalloc_free", "cache_free", "rcu_free", "bulk_free"];
        assert_eq!(programs(&NEWEST, &cache)[..4], expected);
        assert_eq!(programs(&NEWEST, &cache)[4..], ["kmalloc_alloc", "cache_alloc"]);
        let none = Wanted { slab: false, pages: false, percpu: false, ..all() };
        let error = choose(&KernelFacts::fake(&NEWEST), &none).err().unwrap();
        assert_eq!(error.kind(), Kind::Usage);
    }

    #[test]
    fn what_a_kernel_cannot_show_is_said() {
        let notes = |has: &[Need]| choose(&KernelFacts::fake(has), &all()).unwrap().1;
        assert_eq!(notes(&NEWEST), Vec::<String>::new());
        let no_fentry = notes(&NEWEST[..12]);
        assert!(no_fentry.len() == 1 && no_fentry[0].contains("kfree_rcu"), "{no_fentry:?}");
        let no_vmap: Vec<Need> =
            NEWEST.into_iter().filter(|&n| n != Need::BtfTracepoint("alloc_vmap_area")).collect();
        assert!(notes(&no_vmap)[0].contains("vmalloc()"));
        let error = choose(&KernelFacts::fake(&NEWEST[1..]), &all()).err().unwrap();
        assert_eq!(error.kind(), Kind::Kernel);
        assert!(error.to_string().contains("`kfree`"), "{error}");
    }

    #[test]
    fn programs_have_names_the_kernel_shows_whole() {
        let source = include_str!("../bpf/memleak_kernel.bpf.c");
        let named = PARTS.iter().flat_map(|part| {
            [Some(part.program), part.second].into_iter().flatten().map(move |name| (part, name))
        });
        for (part, program) in named {
            assert!(program.len() <= 15, "{program}");
            let place = match part.place {
                Place::RawTracepoint => "raw_tp",
                Place::Function => "fentry",
            };
            let sections = format!("SEC(\"{place}/{}\")\nint {program}(", part.at);
            assert!(source.contains(&sections), "{sections}");
        }
    }

    #[test]
    fn memory_is_named_as_slabinfo_names_it() {
        assert_eq!(what(KIND_CACHE, 0xffff_8880_0000_1000, "dentry"), "slab dentry");
        assert_eq!(what(KIND_CACHE, 256, ""), "slab - 256");
        assert_eq!(what(KIND_KMALLOC, 96, ""), "slab kmalloc-96");
        assert_eq!(what(KIND_KMALLOC, 1024, ""), "slab kmalloc-1k");
        assert_eq!(what(KIND_KMALLOC, 8192, ""), "slab kmalloc-8k");
        assert_eq!(what(KIND_KMALLOC, 0, ""), "slab kmalloc-large");
        assert_eq!(what(KIND_PAGES, 3, ""), "pages order 3");
        assert_eq!(what_of_lost(SPACE_SLAB, 0), "slab");
        assert_eq!(what_of_lost(SPACE_PAGES, 2), "pages order 2");
        assert_eq!(what_of_lost(SPACE_PERCPU, 0), "percpu");
    }

    #[test]
    fn a_cache_is_named_or_a_size_of_kmalloc() {
        let mut name = [0; NAME_LEN];
        name[..4].copy_from_slice(b"filp");
        assert_eq!(cache_filter("filp").unwrap(), CacheFilter::Named(name));
        assert_eq!(cache_filter("kmalloc-64").unwrap(), CacheFilter::Kmalloc(64));
        assert_eq!(cache_filter("kmalloc-4k").unwrap(), CacheFilter::Kmalloc(4096));
        assert_eq!(cache_filter("kmalloc-large").unwrap(), CacheFilter::Kmalloc(0));
        let too_long = "x".repeat(NAME_LEN);
        for wrong in ["", "kmalloc-", "kmalloc-0", "kmalloc-cg-64", "kmalloc-rcl-1k", &too_long] {
            assert_eq!(cache_filter(wrong).unwrap_err().kind(), Kind::Usage, "{wrong}");
        }
        assert!(cache_filter(&too_long[1..]).is_ok());
    }

    #[test]
    fn counters_of_all_cpus_add_up() {
        let one = |bytes, blocks| RawAmount { bytes, blocks };
        let slot = RawTotals {
            seen: one(700, 7),
            lost: one(100, 1),
            freed: one(300, 3),
            missed: one(50, 1),
            lost_stacks: one(20, 1),
            unknown_frees: 5,
            failed_frees: 1,
            ..RawTotals::default()
        };
        let sum = sum_up(&[slot, RawTotals::default(), slot]);
        assert_eq!(sum.seen, Amount { bytes: 1400, blocks: 14 });
        assert_eq!(sum.tracked, Amount { bytes: 1200, blocks: 12 });
        assert_eq!(sum.freed, Amount { bytes: 600, blocks: 6 });
        assert_eq!(sum.missed_frees, Amount { bytes: 100, blocks: 2 });
        assert_eq!(sum.lost_stacks, Amount { bytes: 40, blocks: 2 });
        assert_eq!((sum.unknown_frees, sum.failed_frees), (10, 2));
    }

    #[test]
    fn an_event_is_missed_when_both_of_its_programs_were_skipped() {
        let missed = [("cache_free", 100), ("cache_free2", 3), ("page_free", 7), ("rcu_free", 2)];
        let missed = missed.map(|(name, count)| (name.to_owned(), count));
        assert_eq!(missed_events(&HashMap::from(missed)), 3 + 7 + 2);
        assert_eq!(missed_events(&HashMap::new()), 0);
    }

    #[test]
    fn age_is_measured_from_the_allocation() {
        let mut sum = Sum::default();
        sum.add(10, 5_000, 9_000, 4_000);
        sum.add(20, 5_001, 9_000, 4_000);
        sum.add(40, 2_000, 9_000, 4_000);
        assert_eq!(sum.live, Amount { bytes: 70, blocks: 3 });
        assert_eq!(sum.older, Amount { bytes: 50, blocks: 2 });
        assert_eq!(sum.first_ns, 2_000);
    }
}

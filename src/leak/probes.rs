//! Which of our programs is put where in a file, and what a file is searched for.

use std::collections::HashMap;
use std::path::Path;
use std::rc::Rc;

use libbpf_rs::Link;

use crate::allocators;
use crate::allocators::Call;
use crate::allocators::Found;
use crate::allocators::Point;
use crate::elf::Elf;
use crate::error::Context as _;
use crate::error::Error;
use crate::error::Result;
use crate::maps::Object;
use crate::uprobe;
use crate::uprobe::Method;
use crate::uprobe::Place;
use crate::uprobe::Side;

/// `COOKIE_LEAF` of memleak.bpf.c.
const COOKIE_LEAF: u64 = 1;

/// What a file holds for us.
pub(super) struct Search {
    /// Its allocator.
    pub(super) found: Found,
    /// It is a Go program.
    pub(super) go: bool,
    /// It has names of functions.
    pub(super) symbols: bool,
    /// It is a program that needs other files, or a library.
    pub(super) dynamic: bool,
}

impl Default for Search {
    /// Nothing is known of the file.
    fn default() -> Self {
        Self { found: Found::default(), go: false, symbols: false, dynamic: true }
    }
}

impl Search {
    /// Searches a file.
    ///
    /// # Errors
    /// It cannot be read, or is no program of this machine.
    pub(super) fn new(object: &Object, prefixes: &[String]) -> Result<Self> {
        let data = object.data()?;
        let elf = Elf::parse(&data)?;
        Ok(Self {
            found: allocators::search(&elf, prefixes),
            go: elf.is_go(),
            symbols: elf.has_symbols(),
            dynamic: elf.needs_loader(),
        })
    }

    /// Whether it has functions that give memory.
    pub(super) fn gives_memory(&self) -> bool {
        self.found.usdt || self.found.points.iter().any(|point| gives_memory(point.call))
    }

    /// Whether it has a function called `malloc`.
    pub(super) fn defines_malloc(&self) -> bool {
        self.found.points.iter().any(|point| point.name == "malloc")
    }
}

/// Functions that are probed in one file.
#[derive(Clone, Debug)]
pub struct Attached {
    /// The file.
    pub object: Rc<str>,
    /// The functions.
    pub functions: Vec<String>,
    /// Those whose probe costs a single step ([`Point::emulated`] is false).
    pub slow: Vec<String>,
}

/// The probes in one file of one process.
#[derive(Default)]
pub(super) struct Probes {
    /// Dropping them takes the probes out.
    pub(super) links: Vec<Link>,
    /// What was found; `None`: nothing.
    pub(super) attached: Option<Attached>,
    /// What could not be probed.
    pub(super) warnings: Vec<String>,
}

/// Puts the programs of `bpf` on the functions found in a file. `alone`: no
/// other file of the process has an allocator, so `malloc` calls no other one.
///
/// # Errors
/// None of the functions can be probed.
pub(super) fn attach(
    bpf: &libbpf_rs::Object,
    method: Method,
    tgid: u32,
    object: &Object,
    found: &Found,
    alone: bool,
) -> Result<Probes> {
    let mut probes = Probes::default();
    let path = object.fd_path();
    if found.usdt {
        probes.links = attach_told(bpf, tgid, &path)?;
    } else {
        let places = places(object, found, alone, &mut probes.warnings);
        let mut refused = None;
        for &name in PROGRAMS {
            let (Some(places), Some(side)) = (places.get(name), side(name)) else { continue };
            if side == Side::Return && method == Method::Session {
                continue;
            }
            let program = uprobe::program(bpf, name)?;
            match method.attach(&program, given_side(method, side), tgid, &path, places) {
                Ok(links) => probes.links.extend(links),
                Err(error) => {
                    probes.warnings.push(format!("{}: {error}", object.path));
                    refused = Some(error);
                }
            }
        }
        if let (Some(error), true) = (refused, probes.links.is_empty()) {
            return Err(error);
        }
    }
    if !probes.links.is_empty() {
        probes.attached = Some(Attached::new(object, found));
    }
    Ok(probes)
}

/// Where each program goes.
fn places(
    object: &Object,
    found: &Found,
    alone: bool,
    warnings: &mut Vec<String>,
) -> HashMap<&'static str, Vec<Place>> {
    let mut places: HashMap<&str, Vec<Place>> = HashMap::new();
    for point in &found.points {
        if point.harmful {
            warnings.push(format!(
                "{}: {} is left out: it may throw an exception, which a probe on its return would \
                 turn into the program's end, and its other ways out are not known",
                object.path, point.name
            ));
            continue;
        }
        let leaf = alone && matches!(point.name.as_str(), "malloc" | "__libc_malloc");
        let place = Place { offset: point.probe, cookie: if leaf { COOKIE_LEAF } else { 0 } };
        places.entry(program_of(point)).or_default().push(place);
        for &offset in &point.returns {
            let place = Place { offset, cookie: 0 };
            let known = places.entry("on_ret").or_default();
            if !known.contains(&place) {
                known.push(place);
            }
        }
        if gives_memory(point.call) && !point.wrapper && point.returns.is_empty() {
            places.entry("on_given").or_default().push(place);
        }
    }
    places
}

/// An allocator with probes of its own is asked, not watched.
fn attach_told(bpf: &libbpf_rs::Object, tgid: u32, path: &Path) -> Result<Vec<Link>> {
    let pid = i32::try_from(tgid).map_err(|_| Error::failure(format!("no PID {tgid}")))?;
    TOLD.iter()
        .map(|(program, name)| {
            uprobe::program(bpf, program)?
                .attach_usdt(pid, path, PROVIDER, name)
                .context(|| format!("attaching to {PROVIDER}:{name} of {}", path.display()))
        })
        .collect()
}

impl Attached {
    fn new(object: &Object, found: &Found) -> Self {
        let points = || found.points.iter().filter(|point| !found.usdt && !point.harmful);
        let told = TOLD.iter().map(|(_, name)| format!("{PROVIDER}:{name}"));
        Self {
            object: Rc::clone(&object.path),
            functions: points()
                .map(|point| point.name.clone())
                .chain(told.filter(|_| found.usdt))
                .collect(),
            slow: points()
                .filter(|point| !point.emulated)
                .map(|point| point.name.clone())
                .collect(),
        }
    }
}

/// Whether a program is put on functions or static probes; others attach by
/// themselves.
pub(super) fn is_placed(program: &str) -> bool {
    side(program).is_some() || TOLD.iter().any(|told| told.0 == program)
}

/// Programs that are put on functions, in the order in which they are attached:
/// a free that is seen too early is counted as unknown, an entry whose return
/// is not probed yet would never end.
pub(crate) const PROGRAMS: &[&str] = &[
    "on_given",
    "on_ret",
    "on_throwing",
    "on_release",
    "on_outer",
    "on_new",
    "on_size",
    "on_second_size",
    "on_product",
    "on_out_pointer",
    "on_resize",
    "on_resize_array",
];

/// The probes that OpenTelemetry proposes for allocators, and our programs.
const PROVIDER: &str = "otel_memory";
const TOLD: [(&str, &str); 2] = [("on_told_alloc", "alloc"), ("on_told_free", "free")];

/// What side of a function a program is for; `None`: it is on no function.
pub(super) fn side(program: &str) -> Option<Side> {
    let side = match program {
        "on_given" => Side::Return,
        "on_release" | "on_outer" | "on_new" | "on_throwing" | "on_ret" => Side::Entry,
        _ => Side::Both,
    };
    PROGRAMS.contains(&program).then_some(side)
}

/// Without sessions, one program cannot serve both sides.
pub(super) fn given_side(method: Method, side: Side) -> Side {
    if side == Side::Both && method != Method::Session { Side::Entry } else { side }
}

fn program_of(point: &Point) -> &'static str {
    match point.call {
        _ if point.wrapper => "on_new",
        _ if !point.returns.is_empty() => "on_throwing",
        Call::Map => "on_outer",
        Call::Size => "on_size",
        Call::SecondSize => "on_second_size",
        Call::Product => "on_product",
        Call::OutPointer => "on_out_pointer",
        Call::Resize => "on_resize",
        Call::ResizeArray => "on_resize_array",
        Call::Release => "on_release",
    }
}

fn gives_memory(call: Call) -> bool {
    !matches!(call, Call::Release | Call::Map)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use object::Object as _;
    use object::ObjectSection as _;
    use object::SectionKind;

    /// From this many bytes of stack on, rounded up to [`ROUNDED`], the kernel
    /// may give a program one for each CPU, which does for no program that can
    /// be preempted (`BPF_PRIV_STACK_MIN_SIZE`, `round_up_stack_depth()`,
    /// kernel/bpf/verifier.c since 6.13).
    const SHARED: u64 = 64;
    const ROUNDED: u64 = 16;

    /// The stack that the functions of a section use at most.
    fn stack(code: &[u8]) -> u64 {
        const FRAME: u8 = 10;
        let mut copies = [false; 11];
        let mut deepest = 0;
        // struct bpf_insn, Documentation/bpf/standardization/instruction-set.rst
        for insn in code.chunks_exact(8) {
            let (opcode, dst, src) = (insn[0], insn[1] & 0xf, insn[1] >> 4);
            let offset = i64::from(i16::from_le_bytes([insn[2], insn[3]]));
            let number = i64::from(i32::from_le_bytes([insn[4], insn[5], insn[6], insn[7]]));
            let used = match opcode & 7 {
                1 if src == FRAME => -offset,
                2 | 3 if dst == FRAME => -offset,
                7 if opcode == 0x07 && copies[usize::from(dst)] => -number,
                _ => 0,
            };
            deepest = deepest.max(used);
            copies[usize::from(dst)] = opcode == 0xbf && src == FRAME;
        }
        u64::try_from(deepest).unwrap()
    }

    #[test]
    fn no_probe_needs_a_stack_that_threads_would_share() {
        let data = include_bytes!(concat!(env!("OUT_DIR"), "/memleak.bpf.o"));
        let file = object::File::parse(&data[..]).unwrap();
        let depths: BTreeMap<&str, u64> = file
            .sections()
            .filter(|section| section.kind() == SectionKind::Text)
            .map(|section| (section.name().unwrap(), stack(section.data().unwrap())))
            .collect();
        for section in [".text", "uprobe", "uretprobe", "usdt"] {
            let depth = depths[section];
            assert!(depth > 0, "{section} uses no stack at all");
            assert!(depth.next_multiple_of(ROUNDED) < SHARED, "{section}: {depth} bytes");
        }
    }
}

//! The functions of a file that give memory and take it back, by their names.
//!
//! The names are those of the C and C++ standards, of glibc, musl, jemalloc,
//! tcmalloc and mimalloc, with the prefixes these are built with.

mod names;

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::collections::HashMap;
use std::collections::btree_map::Entry;

use crate::elf::Elf;
use crate::elf::Function;
use crate::prologue;
use crate::prologue::Jump;
use crate::prologue::Needs;

use names::Meaning;

/// How a function takes a size and gives a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Call {
    /// `f(size)` gives a block: `malloc`, `operator new`.
    Size,
    /// `f(x, size)` gives a block: `aligned_alloc`, `mi_heap_malloc`.
    SecondSize,
    /// `f(count, size)` gives a block: `calloc`.
    Product,
    /// `f(&block, alignment, size)` gives 0 or an error: `posix_memalign`.
    OutPointer,
    /// `f(block, size)` gives a block: `realloc`.
    Resize,
    /// `f(block, count, size)` gives a block: `reallocarray`.
    ResizeArray,
    /// `f(block)` takes it back, and nothing happens when it is null: `free`,
    /// `operator delete`.
    Release,
    /// `mmap` and its kin of the C library, which differ in their arguments.
    Map,
}

impl Call {
    /// How many argument registers the probe needs unchanged.
    fn arguments(self) -> usize {
        match self {
            Call::Size | Call::Release => 1,
            Call::SecondSize | Call::Product | Call::Resize => 2,
            Call::OutPointer | Call::ResizeArray | Call::Map => 3,
        }
    }

    /// What must hold where the probe is.
    pub fn needs(self) -> Needs {
        Needs { arguments: self.arguments(), null_is_nothing: self == Call::Release }
    }
}

/// One function to probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Point {
    /// Its name; the best known one where it has several.
    pub name: String,
    /// How it is called.
    pub call: Call,
    /// Offset in the file of its first byte.
    pub entry: u64,
    /// Offset in the file of the instruction to probe.
    pub probe: u64,
    /// Whether every kernel emulates that instruction: the probe is cheap.
    pub emulated: bool,
    /// An operator of C++ that passes its call on to another function that
    /// gives memory, so that a look at its entry is enough.
    pub wrapper: bool,
    /// File offsets of the instructions it returns by, if it may throw an
    /// exception: that cannot pass a probe on the return (the unwinder finds the
    /// kernel's trampoline where the return address was, and ends the program).
    /// Empty: it does not throw, or the ways out of it are not known.
    pub returns: Vec<u64>,
    /// It may throw, and only a probe on its return can see it give memory.
    pub harmful: bool,
    /// Bytes of code.
    pub size: u64,
}

/// What a file has of allocators.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// What to probe, in the order of the addresses.
    pub points: Vec<Point>,
    /// Whose functions they are: `C`, `C++`, `jemalloc`, `my_*`.
    pub families: Vec<String>,
    /// Functions of these families that are not probed, and why.
    pub skipped: Vec<(String, &'static str)>,
    /// Whether it has the static probes `otel_memory:alloc` and `:free`, with
    /// which an allocator reports samples by itself.
    pub usdt: bool,
}

/// Code read of a function whose size is unknown.
const UNKNOWN_SIZE: u64 = 4096;
/// Code read of a function at most. The largest real one, jemalloc's `realloc`
/// with all it inlines, has a tenth of that.
const MAX_SIZE: usize = 1 << 16;

/// Functions looked at. All families together have fewer names; damaged or
/// hostile files may repeat them without end.
const MAX_FUNCTIONS: usize = 1024;

/// Looks for the allocation functions that `elf` defines. `prefixes` are put
/// before the names of C (`my_`: `my_malloc`), beside those known.
pub fn search(elf: &Elf<'_>, prefixes: &[String]) -> Found {
    let mut found = Found::default();
    if elf.is_loader() {
        let name = elf.soname().unwrap_or_default().to_owned();
        found.skipped.push((name, "the loader's own allocator, unused once the program runs"));
        return found;
    }
    found.usdt = ["alloc", "free"].iter().all(|name| elf.has_static_probe("otel_memory", name));

    let candidates = candidates(elf, prefixes, &mut found.skipped);
    let forwarders = forwarders(elf, prefixes, &candidates);
    let wrappers = wrappers(elf, prefixes, &candidates);
    // Calls of a library's own functions go through its linkage table too.
    let throwing = candidates.values().any(|candidate| names::may_throw(candidate.name));
    let imports = if throwing { elf.imports() } else { HashMap::new() };
    let own_functions: HashMap<&str, u64> = match imports.is_empty() {
        true => HashMap::new(),
        false => elf.functions().map(|function| (function.name, function.address)).collect(),
    };
    let starts = starts(elf, &candidates);
    let mut families = BTreeSet::new();
    for (&address, candidate) in &candidates {
        if forwarders.contains(&address) {
            found.skipped.push((candidate.name.to_owned(), "only hands on to another of these"));
        } else if let Some(mut point) = point(elf, address, candidate, &starts) {
            point.wrapper = wrappers.contains(&address);
            if !point.wrapper && names::may_throw(candidate.name) {
                let code = |at| elf.code(at, MAX_SIZE);
                let linked = |slot| own_functions.get(imports.get(&slot)?).copied();
                let stub = |at| prologue::tail_jump(elf.code(at, 64), at, elf.arch());
                let ends = |at| match stub(at) {
                    Some(Jump::Through(slot)) => {
                        imports.get(&slot).is_some_and(|name| names::never_returns(name))
                    }
                    _ => false,
                };
                let returns = prologue::returns(address, elf.arch(), code, linked, ends);
                let places = returns.iter().flatten().map(|&at| elf.file_offset(at));
                point.returns = places.collect::<Option<_>>().unwrap_or_default();
                point.harmful = point.returns.is_empty();
            }
            families.insert(candidate.family.clone());
            found.points.push(point);
        }
    }
    found.families = families.into_iter().collect();
    found.skipped.sort();
    found.skipped.dedup();
    found
}

/// A function found, under the best of its names.
struct Candidate<'data> {
    name: &'data str,
    call: Call,
    family: String,
    rank: u8,
    size: u64,
}

impl<'data> Candidate<'data> {
    /// The least is the best name for the function.
    fn order(&self) -> (u8, usize, &'data str) {
        (self.rank, self.name.len(), self.name)
    }
}

/// The functions with a known name and call, by virtual address.
fn candidates<'data>(
    elf: &Elf<'data>,
    prefixes: &[String],
    skipped: &mut Vec<(String, &'static str)>,
) -> BTreeMap<u64, Candidate<'data>> {
    let known: Vec<(Function<'data>, names::Known)> = elf
        .functions()
        .filter_map(|function| Some((function, names::known(function.name, prefixes)?)))
        .take(MAX_FUNCTIONS)
        .collect();
    // `mi_new`, `tc_free` or a static `brk` are also what others call things of
    // their own. An allocator has more of these names.
    let present = |start: &str| known.iter().any(|(function, _)| function.name.starts_with(start));
    let (tcmalloc, mimalloc) = (present("tc_malloc"), present("mi_malloc") || present("mi_zalloc"));
    let whole = present("malloc") && present("free");

    let mut candidates: BTreeMap<u64, Candidate<'data>> = BTreeMap::new();
    for (function, known) in known {
        let size = function.size;
        let genuine = match known.family.as_str() {
            names::TCMALLOC => tcmalloc,
            names::MIMALLOC => mimalloc,
            _ => known.prefixed || !function.private || whole,
        };
        let call = match known.meaning {
            _ if !genuine => continue,
            Meaning::Skipped(reason) => {
                skipped.push((function.name.to_owned(), reason));
                continue;
            }
            Meaning::Call(call) => call,
        };
        let mut candidate =
            Candidate { name: function.name, call, family: known.family, rank: known.rank, size };
        match candidates.entry(function.address) {
            Entry::Vacant(vacant) => {
                vacant.insert(candidate);
            }
            Entry::Occupied(mut taken) => {
                candidate.size = size.max(taken.get().size);
                if candidate.order() < taken.get().order() {
                    taken.insert(candidate);
                } else {
                    taken.get_mut().size = candidate.size;
                }
            }
        }
    }
    candidates
}

/// The addresses of those that release a block by doing nothing but jump to
/// another function that does. A probe there would cost a trap and tell nothing.
fn forwarders(
    elf: &Elf<'_>,
    prefixes: &[String],
    candidates: &BTreeMap<u64, Candidate<'_>>,
) -> BTreeSet<u64> {
    // Longer than any code that only jumps.
    let jump = |address| prologue::tail_jump(elf.code(address, 64), address, elf.arch());
    let mut leads_to = Leads { elf, prefixes, candidates, imports: None };
    let own = candidates.iter().filter(|(_, candidate)| candidate.call == Call::Release);
    own.filter(|&(&address, candidate)| {
        leads_to.another(jump(address), (address, candidate), |call| call == Call::Release)
    })
    .map(|(&address, _)| address)
    .collect()
}

/// The addresses of those C++ operators that give memory by calling another
/// function that does, before they can return.
fn wrappers(
    elf: &Elf<'_>,
    prefixes: &[String],
    candidates: &BTreeMap<u64, Candidate<'_>>,
) -> BTreeSet<u64> {
    let calls = |address| prologue::calls(elf.code(address, 256), address, elf.arch());
    let mut leads_to = Leads { elf, prefixes, candidates, imports: None };
    let own = candidates.iter().filter(|(_, candidate)| candidate.name.starts_with("_Zn"));
    own.filter(|&(&address, candidate)| {
        calls(address).into_iter().any(|jump| {
            leads_to.another(Some(jump), (address, candidate), |call| {
                !matches!(call, Call::Release | Call::Map)
            })
        })
    })
    .map(|(&address, _)| address)
    .collect()
}

/// Which function a jump reaches.
struct Leads<'search, 'data> {
    elf: &'search Elf<'data>,
    prefixes: &'search [String],
    candidates: &'search BTreeMap<u64, Candidate<'data>>,
    imports: Option<HashMap<u64, &'data str>>,
}

impl<'data> Leads<'_, 'data> {
    /// Whether `jump` reaches another function of a wanted call, directly or
    /// through a stub of the procedure linkage table.
    fn another(
        &mut self,
        jump: Option<Jump>,
        (address, own): (u64, &Candidate<'_>),
        wanted: impl Fn(Call) -> bool,
    ) -> bool {
        let stub = |at| prologue::tail_jump(self.elf.code(at, 64), at, self.elf.arch());
        match jump {
            Some(Jump::To(target)) => match self.candidates.get(&target) {
                Some(candidate) => target != address && wanted(candidate.call),
                None => match stub(target) {
                    Some(Jump::Through(slot)) => self.by_name(slot, own.name, wanted),
                    _ => false,
                },
            },
            Some(Jump::Through(slot)) => self.by_name(slot, own.name, wanted),
            None => false,
        }
    }

    fn by_name(&mut self, slot: u64, own: &str, wanted: impl Fn(Call) -> bool) -> bool {
        let imports = self.imports.get_or_insert_with(|| self.elf.imports());
        imports.get(&slot).is_some_and(|name| {
            let meaning = names::known(name, self.prefixes).map(|known| known.meaning);
            *name != own && matches!(meaning, Some(Meaning::Call(call)) if wanted(call))
        })
    }
}

/// The addresses at which functions begin, in order, if any candidate's size is
/// unknown.
fn starts(elf: &Elf<'_>, candidates: &BTreeMap<u64, Candidate<'_>>) -> Vec<u64> {
    if candidates.values().all(|candidate| candidate.size > 0) {
        return Vec::new();
    }
    let mut starts: Vec<u64> = elf.functions().map(|function| function.address).collect();
    starts.sort_unstable();
    starts
}

/// Where to probe a function.
fn point(elf: &Elf<'_>, address: u64, candidate: &Candidate<'_>, starts: &[u64]) -> Option<Point> {
    let entry = elf.file_offset(address)?;
    let length = match candidate.size {
        0 => {
            let next = starts.get(starts.partition_point(|&start| start <= address));
            next.map_or(UNKNOWN_SIZE, |next| (next - address).min(UNKNOWN_SIZE))
        }
        size => size,
    };
    let code = elf.code(address, usize::try_from(length).map_or(MAX_SIZE, |it| it.min(MAX_SIZE)));
    let place = prologue::place(code, elf.arch(), candidate.call.needs());
    Some(Point {
        name: candidate.name.to_owned(),
        call: candidate.call,
        entry,
        probe: entry.checked_add(place.offset)?,
        emulated: place.emulated,
        wrapper: false,
        returns: Vec::new(),
        harmful: false,
        size: candidate.size,
    })
}

/// The call of a function with one of the known names.
#[cfg(test)]
pub(crate) fn call_of(name: &str) -> Option<Call> {
    match names::known(name, &[])?.meaning {
        Meaning::Call(call) => Some(call),
        Meaning::Skipped(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::elf::made;
    use crate::elf::made::Made;
    use crate::elf::made::Symbol;

    /// ret
    const RETURN: &[u8] = &[0xc3];
    /// push %rbx; ret
    const WORK: &[u8] = &[0x53, 0xc3];

    fn found(made: &Made, prefixes: &[&str]) -> Found {
        let prefixes: Vec<String> = prefixes.iter().map(|it| (*it).to_owned()).collect();
        search(&Elf::parse(&made.bytes()).unwrap(), &prefixes)
    }

    fn names(found: &Found) -> Vec<&str> {
        found.points.iter().map(|point| point.name.as_str()).collect()
    }

    fn skipped(found: &Found) -> Vec<&str> {
        found.skipped.iter().map(|(name, _)| name.as_str()).collect()
    }

    /// Functions that each have one name and do some work.
    fn with(symbols: &[Symbol]) -> Made {
        let code = symbols.iter().map(|_| WORK.to_vec()).collect();
        Made { code, symbols: symbols.to_vec(), ..Made::default() }
    }

    #[test]
    fn the_c_library_of_this_process_is_found_where_it_runs() {
        let maps = procfs::process::Process::myself().unwrap().maps().unwrap();
        let address = libc::malloc as *const () as u64;
        let map =
            maps.iter().find(|map| (map.address.0..map.address.1).contains(&address)).unwrap();
        let procfs::process::MMapPath::Path(path) = &map.pathname else { panic!("{map:?}") };
        let data = fs::read(path).unwrap();
        let found = search(&Elf::parse(&data).unwrap(), &[]);
        let functions = [
            ("malloc", Call::Size, libc::malloc as *const ()),
            ("calloc", Call::Product, libc::calloc as *const ()),
            ("realloc", Call::Resize, libc::realloc as *const ()),
            ("free", Call::Release, libc::free as *const ()),
            ("posix_memalign", Call::OutPointer, libc::posix_memalign as *const ()),
            ("aligned_alloc", Call::SecondSize, libc::aligned_alloc as *const ()),
        ];
        for (name, call, function) in functions {
            let entry = function as u64 - map.address.0 + map.offset;
            let point = found.points.iter().find(|point| point.entry == entry).unwrap();
            assert_eq!((point.name.as_str(), point.call), (name, call));
            assert!((entry..entry + point.size).contains(&point.probe), "{point:?}");
        }
        assert_eq!(found.families, ["C"]);
        assert!(!found.usdt);
    }

    #[test]
    fn a_function_with_many_names_is_one_point_under_the_best() {
        let mut made = with(&[]);
        made.code = vec![WORK.to_vec(), [&[0x48, 0x89, 0xf8], WORK].concat()];
        made.symbols = ["__libc_free", "cfree", "_ZdaPv", "_ZdlPv", "free", "tc_free"]
            .map(|name| Symbol::global(name, 0))
            .to_vec();
        made.symbols.extend(["_Znam", "_Znwm"].map(|name| Symbol::global(name, 1)));
        let found = found(&made, &[]);
        let (first, second) = (made::offset(0), made::offset(1));
        let expected =
            [("free", Call::Release, first, first), ("_Znwm", Call::Size, second, second + 3)];
        let points: Vec<_> =
            found.points.iter().map(|it| (it.name.as_str(), it.call, it.entry, it.probe)).collect();
        assert_eq!(points, expected);
        assert!(found.points.iter().all(|it| it.emulated && it.size == 32));
        assert_eq!(found.families, ["C", "C++"]);
    }

    #[test]
    fn a_release_that_only_jumps_to_another_is_left_out() {
        let made = Made {
            code: vec![
                made::jmp(made::address(0), made::address(3)),
                made::jmp(made::address(1), made::address(0)),
                // Something else is done first.
                [&[0x53][..], &made::jmp(made::address(2) + 1, made::address(3))].concat(),
                WORK.to_vec(),
                // Gives memory: its caller would be missing from the stack.
                made::jmp(made::address(4), made::address(5)),
                WORK.to_vec(),
            ],
            symbols: vec![
                Symbol::global("_ZdlPv", 0),
                Symbol::global("_ZdlPvm", 1),
                Symbol::global("_ZdaPv", 2),
                Symbol::global("free", 3),
                Symbol::global("_Znwm", 4),
                Symbol::global("malloc", 5),
            ],
            ..Made::default()
        };
        let found = found(&made, &[]);
        assert_eq!(names(&found), ["_ZdaPv", "free", "_Znwm", "malloc"]);
        assert_eq!(skipped(&found), ["_ZdlPv", "_ZdlPvm"]);
    }

    #[test]
    fn a_release_that_jumps_to_another_file_is_left_out_by_the_name_there() {
        let made = Made {
            code: vec![
                // Through a stub, and without one.
                made::jmp(made::address(0), made::address(4)),
                made::jmp_through(made::address(1), made::slot(0)),
                // To what is no release, and to its own name elsewhere.
                made::jmp_through(made::address(2), made::slot(1)),
                made::jmp_through(made::address(3), made::slot(2)),
                made::jmp_through(made::address(4), made::slot(0)),
            ],
            symbols: vec![
                Symbol::global("_ZdlPv", 0),
                Symbol::global("_ZdlPvm", 1),
                Symbol::global("_ZdaPv", 2),
                Symbol::global("_ZdaPvm", 3),
            ],
            imports: vec!["free", "recycle", "_ZdaPvm"],
            ..Made::default()
        };
        let found = found(&made, &[]);
        assert_eq!(names(&found), ["_ZdaPv", "_ZdaPvm"]);
        assert_eq!(skipped(&found), ["_ZdlPv", "_ZdlPvm"]);
    }

    #[test]
    fn the_same_on_aarch64() {
        let words = |code: &[u32]| code.iter().flat_map(|word| word.to_le_bytes()).collect();
        let made = Made {
            code: vec![
                words(&[0xd503245f, 0x1400000f]), // bti c; b to the stub
                words(&[0xaa0003e1, 0x14000007]), // mov x1, x0; b to the stub
                // adrp x16; ldr x17, [x16]; br x17
                words(&[0x90000810, 0xf9400211, 0xd61f0220]),
            ],
            symbols: vec![Symbol::global("_ZdlPv", 0), Symbol::global("_ZdlPvm", 1)],
            imports: vec!["free"],
            aarch64: true,
            ..Made::default()
        };
        let found = found(&made, &[]);
        assert_eq!(names(&found), [""; 0]);
        assert_eq!(skipped(&found), ["_ZdlPv", "_ZdlPvm"]);
    }

    #[test]
    fn a_static_function_counts_only_beside_a_whole_allocator() {
        let alone = with(&[Symbol::local("free", 0), Symbol::local("brk", 1)]);
        assert_eq!(names(&found(&alone, &[])), [""; 0]);
        // As linkers leave them in static programs.
        let whole = with(&[Symbol::local("malloc", 0), Symbol::global("free", 1)]);
        assert_eq!(names(&found(&whole, &[])), ["malloc", "free"]);
    }

    #[test]
    fn names_others_use_too_count_only_beside_their_allocator() {
        let others = with(&[Symbol::global("mi_new", 0), Symbol::global("tc_free", 1)]);
        assert_eq!(names(&found(&others, &[])), [""; 0]);
        let genuine = with(&[
            Symbol::global("mi_new", 0),
            Symbol::global("mi_malloc", 1),
            Symbol::global("tc_free", 2),
            Symbol::global("tc_malloc", 3),
        ]);
        let found = found(&genuine, &[]);
        assert_eq!(names(&found), ["mi_new", "mi_malloc", "tc_free", "tc_malloc"]);
        assert_eq!(found.families, ["mimalloc", "tcmalloc"]);
    }

    #[test]
    fn prefixes_of_the_user_come_before_the_names_of_c() {
        let made = with(&[
            Symbol::global("my_malloc", 0),
            Symbol::local("my_free", 1),
            Symbol::global("my_own", 2),
            Symbol::global("your_free", 3),
        ]);
        let found = found(&made, &["my_"]);
        assert_eq!(names(&found), ["my_malloc", "my_free"]);
        assert_eq!(found.families, ["my_*"]);
    }

    #[test]
    fn what_cannot_be_followed_is_named_with_the_reason() {
        let made = with(&[Symbol::global("xallocx", 0), Symbol::global("malloc", 1)]);
        let found = found(&made, &[]);
        assert_eq!(names(&found), ["malloc"]);
        assert_eq!(
            found.skipped,
            [("xallocx".to_owned(), "resizes in place and gives a size, not a block")]
        );
    }

    #[test]
    fn the_loader_is_not_searched() {
        let mut made = with(&[Symbol::global("malloc", 0), Symbol::global("free", 1)]);
        made.soname = Some("ld-linux-x86-64.so.2");
        assert_eq!(names(&found(&made, &[])), [""; 0]);
        assert_eq!(skipped(&found(&made, &[])), ["ld-linux-x86-64.so.2"]);
        made.soname = Some("libc.musl-x86_64.so.1");
        assert_eq!(names(&found(&made, &[])), ["malloc", "free"]);
    }

    #[test]
    fn both_static_probes_make_it_report_by_itself() {
        let note = |name: &str| {
            let content = [&[0; 24][..], b"otel_memory\0", name.as_bytes(), b"\0\0"].concat();
            ("stapsdt", 3, content)
        };
        let one = Made { notes: vec![note("alloc")], ..Made::default() };
        assert!(!found(&one, &[]).usdt);
        let both = Made { notes: vec![note("alloc"), note("free")], ..Made::default() };
        assert!(found(&both, &[]).usdt);
    }

    #[test]
    fn a_function_of_unknown_size_ends_where_the_next_begins() {
        // mov %rdi,%rax; push %rbx. The next function jumps to that push.
        let mut made = Made {
            code: vec![
                [&[0x48, 0x89, 0xf8], WORK].concat(),
                made::jmp(made::address(1), made::address(0) + 3),
            ],
            symbols: vec![Symbol::global("malloc", 0), Symbol::global("other", 1)],
            ..Made::default()
        };
        made.symbols[0].size = 0;
        assert_eq!(found(&made, &[]).points[0].probe, made::offset(0) + 3);
        // Without a symbol it is taken for a part of the first.
        made.symbols.truncate(1);
        assert_eq!(found(&made, &[]).points[0].probe, made::offset(0));
    }

    #[test]
    fn repeated_names_are_read_to_a_limit() {
        let mut made = with(&[]);
        made.code = vec![RETURN.to_vec(); 2000];
        made.symbols = (0..2000).map(|number| Symbol::global("malloc", number)).collect();
        assert_eq!(found(&made, &[]).points.len(), MAX_FUNCTIONS);
    }
}

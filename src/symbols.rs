//! Addresses to frames: names, source lines and inlined functions, through
//! blazesym for programs and kallsyms for the kernel. What cannot be named says
//! why.

mod kernel;
mod outermost;

use std::cell::Cell;
use std::collections::HashMap;
use std::collections::HashSet;
use std::panic;
use std::panic::AssertUnwindSafe;
use std::path::Path;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Once;

use blazesym::symbolize;
use blazesym::symbolize::CodeInfo;
use blazesym::symbolize::Input;
use blazesym::symbolize::Symbolized;
use blazesym::symbolize::Symbolizer;
use blazesym::symbolize::source;
use object::Object as _;
use object::ObjectSymbol;
use object::SegmentFlags;
use object::SymbolKind;
use object::elf::PF_X;

pub use self::outermost::is_complete;
pub use self::outermost::is_outermost;
use crate::frame::Frame;
use crate::frame::Inlined;
use crate::frame::Source;
use crate::frame::Symbol;
use crate::maps::Mapping;
use crate::maps::Maps;
use crate::maps::Object;

/// The file is known, but no function of it.
const NO_SYMBOL: &str = "no symbol covers it";

/// blazesym keeps what it parsed for ever: it is started anew when the files it
/// parsed have more bytes than this together.
const PARSED_LIMIT: u64 = 192 << 20;
/// Places kept with their names; they are forgotten all at once.
const PLACES_LIMIT: usize = 1 << 18;
/// After so many failures in a row a file's debug information is left alone.
const FAILURES_LIMIT: u32 = 4;
/// Where distributions put separate debug files by build id.
const DEBUG_FILES: &str = "/usr/lib/debug/.build-id";

/// Names addresses. Each place of a file is looked up once.
pub struct Symbols {
    lines: bool,
    symbolizer: Option<Symbolizer>,
    /// Files the present symbolizer was asked about, by serial, and their sizes
    /// with those of their debug files.
    parsed: HashMap<u64, u64>,
    files: HashMap<u64, Rc<File>>,
    /// How often in a row the debug information of a file could not be read.
    failures: HashMap<u64, u32>,
    /// By serial of the file and address in it.
    places: HashMap<(u64, u64), Rc<Place>>,
    texts: HashSet<Rc<str>>,
    kernel: kernel::Kernel,
}

/// What is needed of a file's headers.
struct File {
    /// Parts of the file that are mapped to be executed.
    segments: Vec<Segment>,
    /// Names without leading underscores that programs know a function by.
    exported: HashMap<u64, Rc<str>>,
    build_id: Option<Rc<str>>,
    /// Bytes of the file and of its debug file.
    size: u64,
    /// Whether to look into debug information.
    debug: bool,
    broken: Option<&'static str>,
}

struct Segment {
    offset: u64,
    size: u64,
    address: u64,
}

impl File {
    fn read(object: &Object, lines: bool) -> Self {
        let mut file = Self {
            segments: Vec::new(),
            exported: HashMap::new(),
            build_id: None,
            size: object.size,
            debug: lines,
            broken: None,
        };
        let Ok(data) = object.data() else {
            file.broken = Some("the file cannot be read");
            return file;
        };
        let Ok(elf) = object::File::parse(&*data) else {
            file.broken = Some("not an ELF file");
            return file;
        };
        file.segments = elf.segments().filter_map(|segment| executable(&segment)).collect();
        let build_id = elf.build_id().ok().flatten();
        file.build_id = build_id.map(|id| hex(id).into());
        // A static program exports nothing: all its names are in one table.
        file.export(elf.dynamic_symbols());
        if file.exported.is_empty() {
            file.export(elf.symbols());
        }
        // A stripped file has its names in the debug file only.
        file.debug |= elf.symbols().all(|symbol| symbol.is_undefined());
        if file.debug {
            let debug_file = file.build_id.as_deref().and_then(debug_file);
            let more = debug_file.and_then(|path| path.metadata().ok());
            file.size += more.map_or(0, |more| more.len());
        }
        file
    }

    fn export<'data>(&mut self, symbols: impl Iterator<Item = impl ObjectSymbol<'data>>) {
        for symbol in symbols {
            let plain = |name: &&str| !name.starts_with('_') && !name.is_empty();
            let Some(name) = symbol.name().ok().filter(plain) else { continue };
            if symbol.is_definition() && symbol.is_global() && symbol.kind() == SymbolKind::Text {
                self.exported.entry(symbol.address()).or_insert_with(|| name.into());
            }
        }
    }

    /// The address before relocation of what is at `offset`.
    fn address(&self, offset: u64) -> Option<u64> {
        self.segments.iter().find_map(|segment| {
            let within = offset.checked_sub(segment.offset).filter(|&at| at < segment.size)?;
            segment.address.checked_add(within)
        })
    }
}

fn executable<'data>(segment: &impl object::ObjectSegment<'data>) -> Option<Segment> {
    let SegmentFlags::Elf { p_flags, .. } = segment.flags() else { return None };
    let (offset, size) = segment.file_range();
    let executable = p_flags.contains(PF_X);
    executable.then(|| Segment { offset, size, address: segment.address() })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn debug_file(build_id: &str) -> Option<PathBuf> {
    let (folder, name) = build_id.split_at_checked(2)?;
    Some(Path::new(DEBUG_FILES).join(folder).join(format!("{name}.debug")))
}

/// What is known of one place of a file.
#[derive(Default)]
struct Place {
    /// The function's name, its first address, and the line there.
    symbol: Option<(Rc<str>, u64, Option<Source>)>,
    inlined: Vec<Inlined>,
    reason: Option<&'static str>,
}

impl Place {
    fn nameless(reason: &'static str) -> Self {
        Self { reason: Some(reason), ..Self::default() }
    }
}

impl Symbols {
    /// Names functions; with `lines` also source lines and inlined functions,
    /// which costs time and memory where programs have debug information.
    pub fn new(lines: bool) -> Self {
        Self {
            lines,
            symbolizer: None,
            parsed: HashMap::new(),
            files: HashMap::new(),
            failures: HashMap::new(),
            places: HashMap::new(),
            texts: HashSet::new(),
            kernel: kernel::Kernel::default(),
        }
    }

    /// The frames of a stack of the process that maps `maps`, innermost first.
    pub fn user(&mut self, maps: &Maps, stack: &[u64]) -> Vec<Frame> {
        looked_up(stack).map(|(address, code)| self.user_frame(maps, address, code)).collect()
    }

    /// The frames of a kernel stack, innermost first.
    pub fn kernel(&mut self, stack: &[u64]) -> Vec<Frame> {
        looked_up(stack).map(|(address, code)| self.kernel.frame(address, code)).collect()
    }

    fn user_frame(&mut self, maps: &Maps, address: u64, code: u64) -> Frame {
        let nameless = |reason| Frame { address, reason: Some(reason), ..Frame::default() };
        let Some(mapping) = maps.find(code) else { return nameless("nothing is mapped there") };
        let module = self.intern(&mapping.name);
        let Some(object) = &mapping.object else {
            let reason = mapping.reason.unwrap_or_else(|| without_file(mapping));
            let module = (!module.is_empty()).then_some(module);
            // In a file that could not be opened, at least the place in it.
            let module_offset = mapping.file.map(|_| mapping.file_offset(address));
            return Frame { module, module_offset, ..nameless(reason) };
        };
        let file = self.file(object);
        let offset = mapping.file_offset(code);
        let Some(code_address) = file.address(offset) else {
            let reason = file.broken.unwrap_or("not code of the file");
            let module_offset = Some(mapping.file_offset(address));
            return Frame {
                module: Some(module),
                module_offset,
                build_id: file.build_id.clone(),
                ..nameless(reason)
            };
        };
        // Both addresses are one byte apart at most.
        let module_offset = code_address.wrapping_add(address.wrapping_sub(code));
        let place = self.place(object, &file, code_address);
        Frame {
            address,
            symbol: place.symbol.clone().map(|(name, start, source)| Symbol {
                name,
                offset: module_offset.wrapping_sub(start),
                source,
            }),
            inlined: place.inlined.clone(),
            module: Some(module),
            module_offset: Some(module_offset),
            build_id: file.build_id.clone(),
            reason: place.reason,
        }
    }

    fn file(&mut self, object: &Object) -> Rc<File> {
        let lines = self.lines;
        let read = || Rc::new(File::read(object, lines));
        Rc::clone(self.files.entry(object.serial).or_insert_with(read))
    }

    fn place(&mut self, object: &Object, file: &File, address: u64) -> Rc<Place> {
        let key = (object.serial, address);
        if let Some(place) = self.places.get(&key) {
            return Rc::clone(place);
        }
        if self.places.len() >= PLACES_LIMIT {
            self.places.clear();
            self.files.clear();
            self.failures.clear();
            self.texts.clear();
        }
        let place = Rc::new(self.look_up(object, file, address));
        self.places.insert(key, Rc::clone(&place));
        place
    }

    fn look_up(&mut self, object: &Object, file: &File, address: u64) -> Place {
        self.make_room(object.serial, file.size);
        // Debug information can be damaged, or a debug file another build's.
        let failures = self.failures.get(&object.serial).copied().unwrap_or(0);
        if file.debug && failures < FAILURES_LIMIT {
            let place = self.ask(object, file, address, true);
            let failures = if place.is_some() { 0 } else { failures + 1 };
            self.failures.insert(object.serial, failures);
            if let Some(place) = place.filter(|place| place.symbol.is_some()) {
                return place;
            }
        }
        self.ask(object, file, address, false)
            .unwrap_or_else(|| Place::nameless("its symbols cannot be read"))
    }

    /// Starts blazesym anew when it holds too much. Two files as large as the
    /// largest always have room: stacks go to and fro between files.
    fn make_room(&mut self, serial: u64, size: u64) {
        if self.parsed.contains_key(&serial) {
            return;
        }
        let largest = self.parsed.values().copied().fold(size, u64::max);
        let limit = PARSED_LIMIT.max(largest.saturating_mul(2));
        let held = self.parsed.values().fold(size, |sum, &more| sum.saturating_add(more));
        if held > limit {
            self.restart();
        }
        self.parsed.insert(serial, size);
    }

    fn restart(&mut self) {
        self.symbolizer = None;
        self.parsed.clear();
    }

    /// `None`: the file's symbols, or its debug information, cannot be read.
    fn ask(&mut self, object: &Object, file: &File, address: u64, debug: bool) -> Option<Place> {
        let lines = self.lines;
        let symbolizer = self.symbolizer.get_or_insert_with(|| {
            Symbolizer::builder().enable_code_info(lines).enable_inlined_fns(lines).build()
        });
        let mut elf = source::Elf::new(object.fd_path());
        elf.debug_syms = debug;
        let source = source::Source::Elf(elf);
        let found = contained(|| {
            let found = symbolizer.symbolize_single(&source, Input::VirtOffset(address)).ok()?;
            Some(match found {
                Symbolized::Sym(symbol) => Some(Found::from(symbol)),
                Symbolized::Unknown(_) => None,
            })
        });
        let Some(found) = found else {
            self.restart();
            return None;
        };
        let Some(found) = found? else { return Some(Place::nameless(NO_SYMBOL)) };
        // A symbol without a size names its first byte only: what follows may
        // be anything.
        let covers = found.offset < found.size.unwrap_or(1);
        if !covers || found.name.is_empty() {
            return Some(Place::nameless(NO_SYMBOL));
        }
        let start = address.saturating_sub(found.offset);
        let source = found.source.map(|at| self.source(at));
        // From the innermost; blazesym begins with the outermost.
        let mut inlined = Vec::with_capacity(found.inlined.len());
        for (name, at) in found.inlined.into_iter().rev() {
            let source = at.map(|at| self.source(at));
            inlined.push(Inlined { name: self.intern(&name), source });
        }
        // `malloc`, not `__libc_malloc`, which is the same function.
        let name = match file.exported.get(&start) {
            Some(name) if found.name.starts_with('_') => Rc::clone(name),
            _ => self.intern(&found.name),
        };
        Some(Place { symbol: Some((name, start, source)), inlined, reason: None })
    }

    fn source(&mut self, (file, line): (String, u32)) -> Source {
        Source { file: self.intern(&file), line }
    }

    fn intern(&mut self, text: &str) -> Rc<str> {
        if let Some(known) = self.texts.get(text) {
            return Rc::clone(known);
        }
        let text: Rc<str> = text.into();
        self.texts.insert(Rc::clone(&text));
        text
    }
}

thread_local! {
    static CONTAINED: Cell<bool> = const { Cell::new(false) };
}

/// Runs what reads files of strangers: damaged debug information can make
/// blazesym panic (0.2.7: an unwrap in dwarf/lines.rs), which must neither end
/// the run nor be printed. `None`: it did; what it worked on is to be dropped.
fn contained<T>(work: impl FnOnce() -> T) -> Option<T> {
    static QUIET: Once = Once::new();
    QUIET.call_once(|| {
        let usual = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !CONTAINED.get() {
                usual(info);
            }
        }));
    });
    CONTAINED.set(true);
    let result = panic::catch_unwind(AssertUnwindSafe(work));
    CONTAINED.set(false);
    result.ok()
}

/// What blazesym found, copied.
struct Found {
    name: String,
    offset: u64,
    size: Option<u64>,
    source: Option<(String, u32)>,
    inlined: Vec<(String, Option<(String, u32)>)>,
}

impl From<symbolize::Sym<'_>> for Found {
    fn from(symbol: symbolize::Sym<'_>) -> Self {
        let inlined = symbol.inlined.iter();
        Self {
            name: symbol.name.into_owned(),
            offset: symbol.offset as u64,
            size: symbol.size.map(|size| size as u64),
            source: symbol.code_info.as_deref().and_then(line),
            inlined: inlined
                .map(|inlined| {
                    (inlined.name.to_string(), inlined.code_info.as_ref().and_then(line))
                })
                .collect(),
        }
    }
}

fn line(at: &CodeInfo<'_>) -> Option<(String, u32)> {
    // Line 0 stands for code that belongs to no line (DWARF 5, 6.2.2).
    let line = at.line.filter(|&line| line != 0)?;
    Some((at.to_path().to_string_lossy().into_owned(), line))
}

/// Each address with that of the instruction to look up: an outer frame holds
/// the address behind its call, which may be behind its function.
fn looked_up(stack: &[u64]) -> impl Iterator<Item = (u64, u64)> {
    let before = |at: usize| u64::from(at > 0);
    stack
        .iter()
        .enumerate()
        .map(move |(at, &address)| (address, address.saturating_sub(before(at))))
}

fn without_file(mapping: &Mapping) -> &'static str {
    match &*mapping.name {
        "[vdso]" | "[vsyscall]" => "code of the kernel for programs",
        _ if !mapping.executable => "not executable",
        _ => "code made at run time",
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::process::Command;
    use std::process::Stdio;
    use std::sync::OnceLock;
    use std::time::Duration;

    use object::ObjectSection as _;
    use proptest::prelude::*;

    use super::*;
    use crate::maps::Objects;
    use crate::procfs::ProcFs;

    /// Lines of the functions in it are used below.
    const SOURCE: &str = "\
static int counter;
static inline __attribute__((always_inline)) int deepest(int x) {
    return counter += x * 7;
}
static inline __attribute__((always_inline)) int inner(int x) {
    return deepest(x) ^ x;
}
__attribute__((noinline)) int outer(int x) {
    return inner(x) + 1;
}
static __attribute__((noinline, used)) int hidden(int x) {
    return x * counter;
}
int last(int x) { return hidden(x) - 1; }
__asm__(\".text\\n.globl sizeless\\n.type sizeless,@function\\nsizeless: nop; nop; ret\\n\");
";

    /// A folder of one test.
    struct Folder(PathBuf);

    impl Folder {
        fn new(test: &str) -> Self {
            let name = format!("mw-symbols-{}-{test}", std::process::id());
            let path = std::env::temp_dir().join(name);
            fs::create_dir_all(&path).unwrap();
            Self(path)
        }

        fn write(&self, name: &str, data: &[u8]) -> PathBuf {
            let path = self.0.join(name);
            fs::write(&path, data).unwrap();
            path
        }

        /// Compiles [`SOURCE`].
        fn library(&self, name: &str, options: &[&str]) -> PathBuf {
            let source = self.write("source.c", SOURCE.as_bytes());
            let path = self.0.join(name);
            let mut cc = Command::new("cc");
            cc.args(["-g", "-O1", "-shared", "-fPIC"]).args(options);
            assert!(cc.arg("-o").arg(&path).arg(&source).status().unwrap().success());
            path
        }

        /// The library with all symbols and debug information.
        fn full(&self) -> PathBuf {
            self.write("full.so", full())
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn full() -> &'static [u8] {
        static DATA: OnceLock<Vec<u8>> = OnceLock::new();
        DATA.get_or_init(|| fs::read(Folder::new("full").library("full.so", &[])).unwrap())
    }

    /// Address and size of a function in [`full`], before relocation.
    fn function(name: &str) -> (u64, u64) {
        let elf = object::File::parse(full()).unwrap();
        let symbol = elf.symbols().find(|symbol| symbol.name() == Ok(name)).unwrap();
        (symbol.address(), symbol.size())
    }

    /// Where [`Maps::of_file`] is told to put files.
    const BASE: u64 = 0x7f00_0000_0000;

    /// `address` of [`full`] where [`BASE`] puts it: its offset in the file. A
    /// stripped copy has its code at the same place.
    fn mapped(address: u64) -> u64 {
        let elf = object::File::parse(full()).unwrap();
        let segment = elf.segments().filter_map(|segment| executable(&segment)).next().unwrap();
        BASE + address - segment.address + segment.offset
    }

    fn frames(path: &Path, lines: bool, addresses: &[u64]) -> Vec<Frame> {
        let maps = Maps::of_file(path, BASE);
        let stack: Vec<u64> = addresses.iter().map(|&at| mapped(at)).collect();
        Symbols::new(lines).user(&maps, &stack)
    }

    fn name(frame: &Frame) -> Option<&str> {
        frame.symbol.as_ref().map(|symbol| &*symbol.name)
    }

    #[test]
    fn the_innermost_address_is_taken_as_it_is_and_others_as_returned_to() {
        let folder = Folder::new("returned");
        let (outer, size) = function("outer");
        let frames = frames(&folder.full(), true, &[outer, outer + size, outer + size, outer]);
        assert_eq!(name(&frames[0]), Some("outer"));
        assert_eq!(frames[0].symbol.as_ref().unwrap().offset, 0);
        // Behind the function's end, where a call at its end returns to.
        assert_eq!(name(&frames[1]), Some("outer"));
        assert_eq!(frames[1].symbol.as_ref().unwrap().offset, size);
        assert_eq!(frames[1].module_offset, Some(outer + size));
        assert_eq!(frames[1].address, mapped(outer + size));
        assert_ne!(name(&frames[3]), Some("outer"));
    }

    #[test]
    fn inlined_functions_have_their_lines_innermost_first() {
        let folder = Folder::new("inlined");
        let (outer, size) = function("outer");
        let maps = Maps::of_file(&folder.full(), BASE);
        let mut symbols = Symbols::new(true);
        let all = (outer..outer + size)
            .map(|at| symbols.user(&maps, &[mapped(at)]).remove(0))
            .filter(|frame| frame.inlined.len() == 2);
        let frame = all.max_by_key(|frame| frame.address).unwrap();
        let line = |at: &Option<Source>| {
            let at = at.as_ref().unwrap();
            assert!(at.file.ends_with("source.c"), "{}", at.file);
            at.line
        };
        assert_eq!((&*frame.inlined[0].name, line(&frame.inlined[0].source)), ("deepest", 3));
        assert_eq!((&*frame.inlined[1].name, line(&frame.inlined[1].source)), ("inner", 6));
        let symbol = frame.symbol.unwrap();
        assert_eq!((&*symbol.name, line(&symbol.source)), ("outer", 9));

        let plain = frames(&folder.full(), false, &[frame.module_offset.unwrap()]).remove(0);
        assert_eq!(name(&plain), Some("outer"));
        assert!(plain.inlined.is_empty() && plain.symbol.unwrap().source.is_none());
    }

    #[test]
    fn no_name_is_used_beyond_the_size_of_its_function() {
        let folder = Folder::new("stripped");
        let stripped = folder.library("stripped.so", &["-s"]);
        let (hidden, _) = function("hidden");
        let (last, _) = function("last");
        let (sizeless, _) = function("sizeless");
        for lines in [false, true] {
            let frames: Vec<Frame> = [hidden, last, sizeless, sizeless + 1]
                .iter()
                .flat_map(|&at| frames(&stripped, lines, &[at]))
                .collect();
            let names: Vec<Option<&str>> = frames.iter().map(name).collect();
            assert_eq!(names, [None, Some("last"), Some("sizeless"), None]);
            assert_eq!(frames[0].reason, Some("no symbol covers it"));
            assert_eq!(frames[0].module_offset, Some(hidden));
            assert_eq!(frames[0].module.as_deref(), stripped.to_str());
        }
        // Not stripped, the names are the same and `hidden` has one.
        let full = frames(&folder.full(), false, &[hidden]);
        assert_eq!(name(&full[0]), Some("hidden"));
        assert_eq!(frames(&folder.full(), false, &[sizeless + 1])[0].symbol, None);
    }

    #[test]
    fn a_stripped_file_is_named_by_its_debug_file() {
        let folder = Folder::new("linked");
        let path = folder.library("linked.so", &[]);
        let debug = path.with_extension("debug");
        let run = |arguments: &[&str]| {
            assert!(Command::new("objcopy").args(arguments).status().unwrap().success());
        };
        let (path_text, debug_text) = (path.to_str().unwrap(), debug.to_str().unwrap());
        run(&["--only-keep-debug", path_text, debug_text]);
        run(&["--strip-all", &format!("--add-gnu-debuglink={debug_text}"), path_text]);
        let (hidden, _) = function("hidden");
        for lines in [false, true] {
            let frame = frames(&path, lines, &[hidden]).remove(0);
            assert_eq!(name(&frame), Some("hidden"));
            let source = frame.symbol.unwrap().source;
            // The line of the function, or that of its first statement.
            assert_eq!(source.map(|at| (11..=12).contains(&at.line)), lines.then_some(true));
        }
        // Another build's debug file is worth nothing, and takes nothing away.
        fs::write(&debug, "not the one").unwrap();
        let (last, _) = function("last");
        let names: Vec<Frame> =
            [hidden, last].iter().flat_map(|&at| frames(&path, true, &[at])).collect();
        assert_eq!(names.iter().map(name).collect::<Vec<_>>(), [None, Some("last")]);
    }

    #[inline(never)]
    fn of_this_program() -> u64 {
        std::hint::black_box(23)
    }

    #[test]
    fn own_functions_are_named_demangled_with_their_file() {
        let maps = Maps::read(&ProcFs::default(), std::process::id(), &mut Objects::default());
        let address = of_this_program as fn() -> u64 as usize as u64;
        let frame = Symbols::new(true).user(&maps.unwrap(), &[address]).remove(0);
        assert_eq!(name(&frame), Some("mem_watcher::symbols::tests::of_this_program"));
        let symbol = frame.symbol.unwrap();
        assert_eq!(symbol.offset, 0);
        // A release build has no lines, and then none are made up.
        let exe = std::env::current_exe().unwrap();
        let file = fs::read(&exe).unwrap();
        let has_lines =
            object::File::parse(&*file).unwrap().section_by_name(".debug_line").is_some();
        let own = symbol.source.map(|source| source.file.ends_with("src/symbols.rs"));
        assert_eq!(own, has_lines.then_some(true));
        assert_eq!(frame.module.as_deref(), exe.to_str());
    }

    #[test]
    fn a_process_that_has_exited_still_has_names() {
        let mut child = Command::new("sleep").arg("1000").stdin(Stdio::null()).spawn().unwrap();
        let mut objects = Objects::default();
        let maps = loop {
            let maps = Maps::read(&ProcFs::default(), child.id(), &mut objects).unwrap();
            if maps.executables().any(|object| object.name().starts_with("libc.so")) {
                break maps;
            }
            std::thread::sleep(Duration::from_millis(1));
        };
        child.kill().unwrap();
        child.wait().unwrap();
        let libc = maps.executables().find(|object| object.name().starts_with("libc.so")).unwrap();
        let data = libc.data().unwrap();
        let elf = object::File::parse(&*data).unwrap();
        let segment = elf.segments().filter_map(|segment| executable(&segment)).next().unwrap();
        let code = maps.mappings().iter().find(|m| m.executable && m.name == libc.path).unwrap();
        let mut symbols = Symbols::new(true);
        let mut found = 0;
        for symbol in elf.dynamic_symbols().filter(|s| s.size() > 0 && s.name() == Ok("getenv")) {
            let offset = symbol.address() - segment.address + segment.offset;
            let frame = symbols.user(&maps, &[code.start + offset - code.offset]).remove(0);
            assert_eq!(name(&frame), Some("getenv"));
            assert_eq!(frame.module.as_deref(), Some(&*libc.path));
            assert_eq!(frame.module_offset, Some(symbol.address()));
            let build_id = elf.build_id().unwrap().map(hex);
            assert_eq!(frame.build_id.as_deref(), build_id.as_deref());
            found += 1;
        }
        assert_eq!(found, 1);
    }

    #[test]
    fn memory_without_a_file_says_what_it_is() {
        let maps = Maps::read(&ProcFs::default(), std::process::id(), &mut Objects::default());
        let maps = maps.unwrap();
        let mut symbols = Symbols::new(false);
        let mut reason = |wanted: &str| {
            let mapping = maps.mappings().iter().find(|mapping| &*mapping.name == wanted).unwrap();
            let frame = symbols.user(&maps, &[mapping.start + 1]).remove(0);
            assert_eq!(frame.module.as_deref(), Some(wanted));
            frame.reason
        };
        assert_eq!(reason("[vdso]"), Some("code of the kernel for programs"));
        assert_eq!(reason("[stack]"), Some("not executable"));
        let frame = symbols.user(&maps, &[1]).remove(0);
        assert_eq!((frame.module, frame.reason), (None, Some("nothing is mapped there")));

        let folder = Folder::new("text");
        let text = folder.write("text", b"some text, mapped as if it were code");
        let frame = symbols.user(&Maps::of_file(&text, BASE), &[BASE + 5]).remove(0);
        assert_eq!(frame.reason, Some("not an ELF file"));
        assert_eq!(frame.module_offset, Some(5));
    }

    #[test]
    fn what_was_parsed_is_bounded_and_a_large_file_does_not_evict_its_neighbour() {
        let mut symbols = Symbols::new(false);
        symbols.make_room(1, 2 * PARSED_LIMIT);
        symbols.make_room(2, PARSED_LIMIT);
        symbols.make_room(1, 2 * PARSED_LIMIT);
        assert_eq!(symbols.parsed.len(), 2);
        symbols.make_room(3, PARSED_LIMIT + 1);
        assert_eq!(symbols.parsed.keys().collect::<Vec<_>>(), [&3]);
    }

    #[test]
    fn a_panic_is_contained_and_the_next_one_outside_is_not() {
        assert_eq!(contained(|| 23), Some(23));
        assert_eq!(contained(|| -> u32 { panic!("damaged") }), None);
        assert!(!CONTAINED.get());
    }

    #[test]
    fn debug_information_that_cannot_be_read_is_left_alone() {
        let folder = Folder::new("alone");
        let maps = Maps::of_file(&folder.full(), BASE);
        let mut symbols = Symbols::new(true);
        let serial = maps.executables().next().unwrap().serial;
        symbols.failures.insert(serial, FAILURES_LIMIT);
        let (outer, _) = function("outer");
        let frame = symbols.user(&maps, &[mapped(outer)]).remove(0);
        assert_eq!(name(&frame), Some("outer"));
        assert_eq!(frame.symbol.unwrap().source, None);
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

        /// Damaged files lose names, never the run.
        #[test]
        fn damaged_files_are_survived(
            damage in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..24),
            cut in proptest::option::of(any::<prop::sample::Index>()),
        ) {
            let mut data = full().to_vec();
            for (at, byte) in &damage {
                let worth = worth_damaging();
                data[worth[at.index(worth.len())]] = *byte;
            }
            if let Some(cut) = cut {
                data.truncate(cut.index(data.len()));
            }
            let folder = Folder::new("damaged");
            let maps = Maps::of_file(&folder.write("damaged.so", &data), BASE);
            for frame in Symbols::new(true).user(&maps, places()) {
                prop_assert_eq!(frame.symbol.is_none(), frame.reason.is_some());
            }
        }
    }

    /// Offsets in [`full`] of what is read to name an address.
    fn worth_damaging() -> &'static [usize] {
        static OFFSETS: OnceLock<Vec<usize>> = OnceLock::new();
        OFFSETS.get_or_init(|| {
            let data = full();
            let elf = object::File::parse(data).unwrap();
            let named = |name: &str| name.starts_with(".debug") || name.contains("sym");
            let sections = elf.sections().filter(|s| s.name().is_ok_and(named));
            let ranges = sections.filter_map(|section| section.file_range());
            // The file's header and program headers, and the section headers.
            let tables = [(0, 0x400), (data.len() as u64 - 0x800, 0x800)];
            let ranges = ranges.chain(tables);
            ranges.flat_map(|(at, size)| at as usize..(at + size) as usize).collect()
        })
    }

    /// Addresses in the functions of [`full`] where [`BASE`] puts it.
    fn places() -> &'static [u64] {
        static PLACES: OnceLock<Vec<u64>> = OnceLock::new();
        PLACES.get_or_init(|| {
            let functions = ["outer", "hidden", "last", "sizeless"].map(function);
            let places = functions.iter().flat_map(|&(start, size)| [start, start + size / 2]);
            places.map(mapped).collect()
        })
    }
}

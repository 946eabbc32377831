//! What an ELF file says about itself: its functions, its code, its notes.
//!
//! A thin layer over the `object` crate. The files are those of traced
//! processes, so they may be damaged or made to harm: a table that cannot be
//! read counts as absent, and nothing here panics.

use std::collections::HashMap;
use std::str;

use object::LittleEndian as LE;
use object::elf;
use object::elf::FileHeader64;
use object::elf::ProgramHeader64;
use object::elf::Sym64;
use object::read::StringTable;
use object::read::elf::Dyn as _;
use object::read::elf::FileHeader as _;
use object::read::elf::Note;
use object::read::elf::ProgramHeader as _;
use object::read::elf::Rela as _;
use object::read::elf::SectionHeader as _;
use object::read::elf::SectionTable;
use object::read::elf::Sym as _;

use crate::error::Error;
use crate::error::Result;

type Header = FileHeader64<LE>;

/// Note and relocation sections read of a file. Real ones have a handful;
/// damaged or hostile ones may list the same bytes thousands of times.
const MAX_SECTIONS: usize = 64;

/// An instruction set whose code is understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arch {
    /// 64-bit x86 (not x32, whose pointers have 32 bits).
    X86_64,
    /// 64-bit Arm.
    Aarch64,
}

/// A function the file defines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Function<'data> {
    /// Its name in the symbol table, without the version after `@`.
    pub name: &'data str,
    /// Virtual address of its first byte, as linked.
    pub address: u64,
    /// Bytes of code; 0 where the symbol table does not say.
    pub size: u64,
    /// Whether the symbol is local without being hidden. C's `static` functions
    /// are, which may bear any name; but linkers also make global functions so
    /// that no other file is to see.
    pub private: bool,
}

/// One 64-bit little-endian ELF file.
pub struct Elf<'data> {
    data: &'data [u8],
    header: &'data Header,
    segments: &'data [ProgramHeader64<LE>],
    sections: SectionTable<'data, Header>,
    arch: Arch,
}

impl<'data> Elf<'data> {
    /// Reads the headers of the file whose content is `data`, which starts at a
    /// multiple of 8 in memory, as every mapped or allocated file does.
    ///
    /// # Errors
    /// It is not an ELF file, or one of another machine than [`Arch`] names.
    pub fn parse(data: &'data [u8]) -> Result<Self> {
        if !data.starts_with(&elf::ELFMAG) {
            return Err(Error::failure("not an ELF file"));
        }
        let header =
            Header::parse(data).map_err(|_| Error::failure("not a 64-bit ELF file, or damaged"))?;
        if !header.is_little_endian() {
            return Err(Error::failure("an ELF file of a big-endian machine"));
        }
        let arch = match header.e_machine(LE) {
            elf::EM_X86_64 => Arch::X86_64,
            elf::EM_AARCH64 => Arch::Aarch64,
            machine => {
                let number = machine.0;
                return Err(Error::failure(format!("an ELF file of another machine ({number})")));
            }
        };
        let segments = header.program_headers(LE, data).unwrap_or_default();
        // The names of the sections are of little use, and may be damaged alone.
        let headers = header.section_headers(LE, data).unwrap_or_default();
        let names = header.section_strings(LE, data, headers).unwrap_or_default();
        let sections = SectionTable::new(headers, names);
        Ok(Self { data, header, segments, sections, arch })
    }

    /// The instruction set of its code.
    pub fn arch(&self) -> Arch {
        self.arch
    }

    /// Virtual address of the first instruction of a program; 0 in most libraries.
    pub fn entry(&self) -> u64 {
        self.header.e_entry(LE)
    }

    /// The linker's identification of the build (`ld --build-id`).
    pub fn build_id(&self) -> Option<&'data [u8]> {
        self.notes()
            .find(|note| {
                note.name() == elf::ELF_NOTE_GNU && note.n_type(LE) == elf::NT_GNU_BUILD_ID
            })
            .map(|note| note.desc())
    }

    /// The functions the file defines, those of `.symtab` first. One that is in
    /// `.dynsym` too comes twice. Left out are functions resolved at load time
    /// (`STT_GNU_IFUNC`: the address is that of the resolver) and those at
    /// address 0, as which some libraries list what they do not have.
    pub fn functions(&self) -> impl Iterator<Item = Function<'data>> {
        [elf::SHT_SYMTAB, elf::SHT_DYNSYM]
            .into_iter()
            .filter_map(|kind| self.sections.symbols(LE, self.data, kind).ok())
            .flat_map(|table| {
                let strings = table.strings();
                table.iter().filter_map(move |symbol| function(symbol, strings))
            })
    }

    /// Whether any function has a name here.
    pub fn has_symbols(&self) -> bool {
        self.functions().next().is_some()
    }

    /// The name of each function or object of another file that this one
    /// reaches through its global offset table, by the virtual address of the
    /// entry the loader fills.
    pub fn imports(&self) -> HashMap<u64, &'data str> {
        let parts = self.sections.iter().filter_map(|section| self.imports_of(section));
        parts.take(MAX_SECTIONS).flatten().collect()
    }

    /// The part of [`Elf::imports`] that one relocation section describes.
    fn imports_of(
        &self,
        section: &elf::SectionHeader64<LE>,
    ) -> Option<impl Iterator<Item = (u64, &'data str)>> {
        let (relocations, link) = section.rela(LE, self.data).ok()??;
        let symbols = self.sections.symbol_table_by_index(LE, self.data, link).ok()?;
        let arch = self.arch;
        Some(relocations.iter().filter_map(move |relocation| {
            let kind = relocation.r_type(LE, false);
            let by_name = match arch {
                Arch::X86_64 => [elf::R_X86_64_GLOB_DAT, elf::R_X86_64_JUMP_SLOT],
                Arch::Aarch64 => [elf::R_AARCH64_GLOB_DAT, elf::R_AARCH64_JUMP_SLOT],
            };
            if !by_name.contains(&kind) {
                return None;
            }
            let symbol = symbols.symbol(relocation.symbol(LE, false)?).ok()?;
            let name = plain_name(symbol, symbols.strings())?;
            Some((relocation.r_offset(LE), name))
        }))
    }

    /// Where in the file the byte at a virtual address lies; [`None`] when it
    /// is not loaded from the file.
    pub fn file_offset(&self, address: u64) -> Option<u64> {
        self.loaded(address).map(|(offset, _)| offset)
    }

    /// At most `max` bytes from the virtual address on, as the file has them;
    /// fewer, or none, where its loaded part ends.
    pub fn code(&self, address: u64, max: usize) -> &'data [u8] {
        let Some((offset, length)) = self.loaded(address) else { return &[] };
        let rest = usize::try_from(offset).ok().and_then(|offset| self.data.get(offset..));
        let length = usize::try_from(length).unwrap_or(usize::MAX).min(max);
        rest.map_or(&[], |rest| rest.get(..length).unwrap_or(rest))
    }

    /// The file offset of a virtual address, and how many bytes of its segment
    /// the file holds from there.
    fn loaded(&self, address: u64) -> Option<(u64, u64)> {
        let segments = self.segments.iter().filter(|segment| segment.p_type(LE) == elf::PT_LOAD);
        segments.into_iter().find_map(|segment| {
            let into = address.checked_sub(segment.p_vaddr(LE))?;
            let rest = segment.p_filesz(LE).checked_sub(into).filter(|&rest| rest > 0)?;
            let offset = segment.p_offset(LE).checked_add(into)?;
            (offset < u64::try_from(self.data.len()).ok()?).then_some((offset, rest))
        })
    }

    /// Whether a program asks for the dynamic loader; one that does not is
    /// linked statically and brings its own allocator.
    pub fn needs_loader(&self) -> bool {
        self.segments.iter().any(|segment| segment.p_type(LE) == elf::PT_INTERP)
    }

    /// The name a library gives itself (`DT_SONAME`).
    pub fn soname(&self) -> Option<&'data str> {
        let dynamic =
            self.segments.iter().find_map(|it| it.dynamic(LE, self.data).ok().flatten())?;
        let value = |tag| dynamic.iter().find(|it| it.d_tag(LE) == tag).map(|it| it.d_val(LE));
        let address = value(elf::DT_STRTAB)?.checked_add(value(elf::DT_SONAME)?)?;
        // A path's limit is ample for a file name.
        str::from_utf8(self.code(address, 4096).split(|&byte| byte == 0).next()?).ok()
    }

    /// Whether this is the dynamic loader of glibc. It has a small `malloc` of
    /// its own, in use only until the C library's is loaded. The loader of musl
    /// is its C library and does not count.
    pub fn is_loader(&self) -> bool {
        self.soname().is_some_and(|name| {
            ["ld-linux", "ld64.so", "ld.so"].iter().any(|loader| name.starts_with(loader))
        })
    }

    /// Whether the Go toolchain linked it. Go moves its stacks and must not meet
    /// a return probe in its own functions.
    pub fn is_go(&self) -> bool {
        let go_sections: [&[u8]; 3] = [b".go.buildinfo", b".gopclntab", b".note.go.buildid"];
        let mut names =
            self.sections.iter().filter_map(|it| self.sections.section_name(LE, it).ok());
        let has_section = names.any(|name| go_sections.contains(&name));
        // The build id's note (cmd/internal/buildid): type 4, owner "Go".
        has_section || self.notes().any(|note| note.name() == b"Go" && note.n_type(LE).0 == 4)
    }

    /// Whether it holds the static probe `name` of `provider`
    /// (`.note.stapsdt`, SystemTap's wiki, `UserSpaceProbeImplementation`).
    pub fn has_static_probe(&self, provider: &str, name: &str) -> bool {
        self.notes().filter(|note| note.name() == b"stapsdt" && note.n_type(LE).0 == 3).any(
            |note| {
                // Three addresses come before the names.
                let mut texts = note.desc().get(24..).unwrap_or_default().split(|&byte| byte == 0);
                texts.next() == Some(provider.as_bytes()) && texts.next() == Some(name.as_bytes())
            },
        )
    }

    /// All notes; those that are loaded come twice.
    fn notes(&self) -> impl Iterator<Item = Note<'data, Header>> {
        let loaded = self.segments.iter().filter_map(|it| it.notes(LE, self.data).ok().flatten());
        let named = self.sections.iter().filter_map(|it| it.notes(LE, self.data).ok().flatten());
        loaded
            .take(MAX_SECTIONS)
            .chain(named.take(MAX_SECTIONS))
            .flat_map(|notes| notes.map_while(|note| note.ok()))
    }
}

/// A symbol as a function, if it is one that has code here.
fn function<'data>(
    symbol: &'data Sym64<LE>,
    strings: StringTable<'data>,
) -> Option<Function<'data>> {
    let address = symbol.st_value(LE);
    if symbol.st_type() != elf::STT_FUNC || symbol.is_undefined(LE) || address == 0 {
        return None;
    }
    // The linker makes what is hidden local, and keeps the word "hidden".
    let private = symbol.is_local() && symbol.st_visibility() == elf::STV_DEFAULT;
    let name = plain_name(symbol, strings)?;
    Some(Function { name, address, size: symbol.st_size(LE), private })
}

/// A symbol's name up to the version that `.symtab` may carry.
fn plain_name<'data>(symbol: &Sym64<LE>, strings: StringTable<'data>) -> Option<&'data str> {
    let name = str::from_utf8(symbol.name(LE, strings).ok()?).ok()?;
    name.split('@').next().filter(|name| !name.is_empty())
}

#[cfg(test)]
pub(crate) mod made;

#[cfg(test)]
mod tests {
    use std::fs;

    use proptest::prelude::*;

    use super::made;
    use super::made::Made;
    use super::made::Symbol;
    use super::*;

    fn named(functions: &[Function<'_>]) -> Vec<(String, u64)> {
        functions.iter().map(|it| (it.name.to_owned(), it.address)).collect()
    }

    #[test]
    fn functions_are_those_with_code_of_their_own() {
        let mut made = Made { code: vec![vec![0xc3]; 2], ..Made::default() };
        let mut resolver = Symbol::global("memcpy", 1);
        resolver.info = 0x1a;
        let mut variable = Symbol::global("environ", 1);
        variable.info = 0x11;
        made.symbols = vec![
            Symbol::global("malloc@@GLIBC_2.2.5", 0),
            resolver,
            variable,
            Symbol::local("helper", 1),
        ];
        made.imports = vec!["free"];
        let bytes = made.bytes();
        let elf = Elf::parse(&bytes).unwrap();
        let functions: Vec<_> = elf.functions().collect();
        let expected =
            [("malloc".to_owned(), made::address(0)), ("helper".to_owned(), made::address(1))];
        assert_eq!(named(&functions), expected);
        assert_eq!(functions.iter().map(|it| it.private).collect::<Vec<_>>(), [false, true]);
        assert_eq!(elf.imports(), HashMap::from([(made::slot(0), "free")]));
        assert!(elf.has_symbols());
    }

    #[test]
    fn what_is_hidden_is_local_and_not_private() {
        let mut symbol = Symbol::local("__libc_free", 0);
        symbol.other = 2;
        let made = Made { code: vec![vec![0xc3]], symbols: vec![symbol], ..Made::default() };
        let bytes = made.bytes();
        assert!(Elf::parse(&bytes).unwrap().functions().all(|it| !it.private));
    }

    #[test]
    fn code_is_found_through_the_segments() {
        let made = Made { code: vec![vec![0x90], vec![1, 2, 3, 4]], ..Made::default() };
        let bytes = made.bytes();
        let elf = Elf::parse(&bytes).unwrap();
        assert_eq!(elf.entry(), made::address(0));
        assert_eq!(elf.file_offset(made::address(1) + 2), Some(made::offset(1) + 2));
        assert_eq!(elf.code(made::address(1), 3), [1, 2, 3]);
        let end = made::address(0) - made::offset(0) + bytes.len() as u64;
        assert_eq!(elf.code(end - 2, 100).len(), 2);
        assert_eq!(elf.file_offset(end), None);
        assert_eq!(elf.file_offset(made::offset(1)), None);
        assert!(elf.code(u64::MAX, 8).is_empty());
        assert!(!elf.has_symbols());
    }

    #[test]
    fn notes_tell_the_build_go_and_static_probes() {
        let probe = [&[0; 24][..], b"otel_memory\0alloc\08@%rdi\0"].concat();
        let made = Made {
            notes: vec![("GNU", 3, vec![0xab; 20]), ("stapsdt", 3, probe)],
            ..Made::default()
        };
        let bytes = made.bytes();
        let elf = Elf::parse(&bytes).unwrap();
        assert_eq!(elf.build_id(), Some(&[0xab; 20][..]));
        assert!(elf.has_static_probe("otel_memory", "alloc"));
        assert!(!elf.has_static_probe("otel_memory", "free"));
        assert!(!elf.has_static_probe("otel", "alloc"));
        assert!(!elf.is_go());

        let made = Made { notes: vec![("Go", 4, b"id".to_vec())], ..Made::default() };
        assert!(Elf::parse(&made.bytes()).unwrap().is_go());
    }

    #[test]
    fn only_the_loader_of_glibc_is_a_loader() {
        let loader = |soname| {
            let made = Made { soname, ..Made::default() };
            let bytes = made.bytes();
            let elf = Elf::parse(&bytes).unwrap();
            assert_eq!(elf.soname(), soname);
            elf.is_loader()
        };
        assert!(loader(Some("ld-linux-x86-64.so.2")));
        assert!(loader(Some("ld-linux-aarch64.so.1")));
        assert!(!loader(Some("libc.musl-x86_64.so.1")));
        assert!(!loader(Some("libc.so.6")));
        assert!(!loader(None));
    }

    #[test]
    fn files_of_other_kinds_are_refused_in_words() {
        let refused = |bytes: &[u8]| Elf::parse(bytes).err().unwrap().to_string();
        let good = Made::default().bytes();
        let with = |at: usize, byte: u8| {
            let mut bytes = good.clone();
            bytes[at] = byte;
            bytes
        };
        assert_eq!(refused(b"#!/bin/sh\n"), "not an ELF file");
        assert_eq!(refused(&good[..32]), "not a 64-bit ELF file, or damaged");
        assert_eq!(refused(&with(4, 1)), "not a 64-bit ELF file, or damaged");
        assert_eq!(refused(&with(5, 2)), "an ELF file of a big-endian machine");
        assert_eq!(refused(&with(18, 243)), "an ELF file of another machine (243)");
        let arm = Made { aarch64: true, ..Made::default() }.bytes();
        assert_eq!(Elf::parse(&arm).unwrap().arch(), Arch::Aarch64);
    }

    /// To be found by its name: whatever is only called here may be inlined.
    #[inline(never)]
    fn function_with_a_name_of_its_own() -> u32 {
        std::hint::black_box(7919)
    }

    #[test]
    fn agrees_with_another_reader_on_this_program() {
        let path = std::env::current_exe().unwrap();
        let data = fs::read(&path).unwrap();
        let elf = Elf::parse(&data).unwrap();
        let build_id = blazesym::helper::read_elf_build_id(&path).unwrap();
        assert_eq!(elf.build_id(), build_id.as_deref());
        assert!(elf.has_symbols());
        assert!(!elf.is_go());
        assert_eq!(function_with_a_name_of_its_own(), 7919);
        assert!(elf.functions().any(|it| it.name.contains("function_with_a_name_of_its_own")));
    }

    /// Calls everything; only whether it returns matters.
    fn read_all(data: &[u8]) {
        let Ok(elf) = Elf::parse(data) else { return };
        for function in elf.functions() {
            elf.file_offset(function.address);
            elf.code(function.address, 64);
        }
        elf.imports();
        elf.build_id();
        elf.soname();
        elf.is_go();
        elf.needs_loader();
        elf.has_static_probe("otel_memory", "alloc");
        crate::allocators::search(&elf, &["my_".to_owned()]);
    }

    fn rich() -> Vec<u8> {
        let code =
            vec![vec![0x55, 0xc3], made::jmp(made::address(1), made::address(2)), vec![0xc3]];
        Made {
            code,
            symbols: vec![
                Symbol::global("malloc", 0),
                Symbol::global("cfree", 1),
                Symbol::global("free", 2),
            ],
            imports: vec!["free"],
            notes: vec![("GNU", 3, vec![7; 20]), ("stapsdt", 3, vec![0; 40])],
            soname: Some("libc.so.6"),
            aarch64: false,
        }
        .bytes()
    }

    proptest! {
        #[test]
        fn damaged_files_do_no_harm(
            changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..12),
            length in any::<prop::sample::Index>(),
            cut in any::<bool>(),
        ) {
            let mut data = rich();
            for (at, byte) in changes {
                let at = at.index(data.len());
                data[at] = byte;
            }
            if cut {
                data.truncate(length.index(data.len()));
            }
            read_all(&data);
        }

        #[test]
        fn damaged_headers_do_no_harm(
            changes in prop::collection::vec((0usize..176, any::<u8>()), 1..6),
            sections in prop::collection::vec((0usize..320, any::<u8>()), 0..6),
        ) {
            let mut data = rich();
            let length = data.len();
            for (at, byte) in sections {
                data[length - 320 + at] = byte;
            }
            for (at, byte) in changes {
                data[at] = byte;
            }
            read_all(&data);
        }

        #[test]
        fn noise_after_a_header_does_no_harm(
            noise in prop::collection::vec(any::<u8>(), 0..2048),
        ) {
            let mut data = rich();
            data.truncate(64);
            data.extend(noise);
            read_all(&data);
        }
    }
}

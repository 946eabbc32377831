//! Small ELF files made for tests, with what the test says and nothing else.

use object::elf;

/// Where the file is loaded, so that addresses differ from offsets.
const BASE: u64 = 0x10_0000;
/// Where the first function is in the file; each has [`ROOM`] bytes.
const TEXT: usize = 0x200;
const ROOM: usize = 32;
/// The address of the first entry of the global offset table, which is not in
/// the file.
const TABLE: u64 = 0x20_0000;

/// A symbol to have.
#[derive(Clone)]
pub(crate) struct Symbol {
    pub(crate) name: &'static str,
    /// Which function's code it names, by number.
    pub(crate) function: usize,
    /// `st_info`: binding and type.
    pub(crate) info: u8,
    /// `st_other`: visibility.
    pub(crate) other: u8,
    pub(crate) size: u64,
}

impl Symbol {
    /// A global function.
    pub(crate) fn global(name: &'static str, function: usize) -> Self {
        Self { name, function, info: 0x12, other: 0, size: ROOM as u64 }
    }

    /// A function that only its source file names.
    pub(crate) fn local(name: &'static str, function: usize) -> Self {
        Self { info: 0x02, ..Self::global(name, function) }
    }
}

/// A file to make.
#[derive(Clone, Default)]
pub(crate) struct Made {
    /// The code of each function.
    pub(crate) code: Vec<Vec<u8>>,
    pub(crate) symbols: Vec<Symbol>,
    /// The names in the entries of the global offset table.
    pub(crate) imports: Vec<&'static str>,
    /// Owner, type and content.
    pub(crate) notes: Vec<(&'static str, u32, Vec<u8>)>,
    pub(crate) soname: Option<&'static str>,
    pub(crate) aarch64: bool,
}

/// The file offset of function `number`.
pub(crate) fn offset(number: usize) -> u64 {
    (TEXT + number * ROOM) as u64
}

/// The virtual address of function `number`.
pub(crate) fn address(number: usize) -> u64 {
    BASE + offset(number)
}

/// The virtual address of entry `number` of the global offset table.
pub(crate) fn slot(number: usize) -> u64 {
    TABLE + 8 * number as u64
}

/// x86-64's `jmp` at `from` to `to`.
pub(crate) fn jmp(from: u64, to: u64) -> Vec<u8> {
    let distance = to.wrapping_sub(from + 5) as u32;
    [&[0xe9], &distance.to_le_bytes()[..]].concat()
}

/// x86-64's `jmp *slot(%rip)` at `from`.
pub(crate) fn jmp_through(from: u64, slot: u64) -> Vec<u8> {
    let distance = slot.wrapping_sub(from + 6) as u32;
    [&[0xff, 0x25], &distance.to_le_bytes()[..]].concat()
}

/// A section to write: type, content, link, size of an entry.
struct Section(u32, Vec<u8>, u32, u64);

impl Made {
    /// The file's bytes.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut strings = vec![0];
        let mut string = |text: &str| {
            let at = strings.len() as u32;
            strings.extend(text.bytes().chain([0]));
            at
        };

        let mut symbols = vec![0; 24];
        let mut symbol = |name: u32, info: u8, other: u8, section: u16, value: u64, size: u64| {
            symbols.extend(name.to_le_bytes());
            symbols.extend([info, other]);
            symbols.extend(section.to_le_bytes());
            symbols.extend([value.to_le_bytes(), size.to_le_bytes()].concat());
        };
        for it in &self.symbols {
            symbol(string(it.name), it.info, it.other, 1, address(it.function), it.size);
        }
        let mut relocations = Vec::new();
        for (number, name) in self.imports.iter().enumerate() {
            symbol(string(name), 0x12, 0, 0, 0, 0);
            let kind =
                if self.aarch64 { elf::R_AARCH64_JUMP_SLOT } else { elf::R_X86_64_JUMP_SLOT };
            let index = (1 + self.symbols.len() + number) as u64;
            let fields = [slot(number), index << 32 | u64::from(kind.0), 0];
            relocations.extend(fields.map(u64::to_le_bytes).concat());
        }
        let soname = self.soname.map(&mut string);

        let mut notes = Vec::new();
        for (owner, kind, content) in &self.notes {
            let sizes = [owner.len() as u32 + 1, content.len() as u32, *kind];
            notes.extend(sizes.map(u32::to_le_bytes).concat());
            for part in [[owner.as_bytes(), &[0]].concat(), content.clone()] {
                notes.extend(part);
                notes.resize(notes.len().next_multiple_of(4), 0);
            }
        }

        // Between functions are breakpoints, of one byte each.
        let mut file = vec![0xcc; offset(self.code.len()) as usize];
        file[..TEXT].fill(0);
        for (number, code) in self.code.iter().enumerate() {
            assert!(code.len() <= ROOM, "the code of function {number} is too long");
            let at = offset(number) as usize;
            file[at..at + code.len()].copy_from_slice(code);
        }
        let mut place = |content: &[u8]| {
            file.resize(file.len().next_multiple_of(8), 0);
            file.extend(content);
            (file.len() - content.len()) as u64
        };
        let strings_at = BASE + place(&strings);
        let dynamic: Vec<u8> = soname.map_or(Vec::new(), |soname| {
            let name = [elf::DT_SONAME.0 as u64, u64::from(soname)];
            let table = [elf::DT_STRTAB.0 as u64, strings_at];
            [name, table, [0, 0]].concat().into_iter().flat_map(u64::to_le_bytes).collect()
        });
        let dynamic_at = place(&dynamic);

        let sections = [
            Section(elf::SHT_NULL.0, Vec::new(), 0, 0),
            Section(elf::SHT_STRTAB.0, strings, 0, 0),
            Section(elf::SHT_SYMTAB.0, symbols, 1, 24),
            Section(elf::SHT_RELA.0, relocations, 2, 24),
            Section(elf::SHT_NOTE.0, notes, 0, 0),
        ];
        let mut headers = Vec::new();
        for Section(kind, content, link, entry) in &sections {
            let at = place(content);
            headers.extend([0, *kind].map(u32::to_le_bytes).concat());
            headers.extend([0, 0, at, content.len() as u64].map(u64::to_le_bytes).concat());
            headers.extend([*link, 0].map(u32::to_le_bytes).concat());
            headers.extend([4, *entry].map(u64::to_le_bytes).concat());
        }
        let headers_at = place(&headers);

        let size = file.len() as u64;
        let segment = |kind: u32, at: u64, size: u64| {
            let flags = [kind, 5].map(u32::to_le_bytes).concat();
            let rest = [at, BASE + at, BASE + at, size, size, 8].map(u64::to_le_bytes).concat();
            [flags, rest].concat()
        };
        let segments = [
            segment(elf::PT_LOAD.0, 0, size),
            segment(elf::PT_DYNAMIC.0, dynamic_at, dynamic.len() as u64),
        ]
        .concat();
        file[64..64 + segments.len()].copy_from_slice(&segments);

        let machine = if self.aarch64 { elf::EM_AARCH64 } else { elf::EM_X86_64 };
        let header = [
            &b"\x7fELF\x02\x01\x01"[..],
            &[0; 9],
            &[3, 0],
            &machine.0.to_le_bytes(),
            &1u32.to_le_bytes(),
            &[address(0), 64, headers_at].map(u64::to_le_bytes).concat(),
            &[0; 4],
            &[64u16, 56, 2, 64, sections.len() as u16, 0].map(u16::to_le_bytes).concat(),
        ]
        .concat();
        file[..header.len()].copy_from_slice(&header);
        file
    }
}

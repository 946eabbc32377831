//! Names of kernel addresses, from `/proc/kallsyms` and `/proc/modules`.
//!
//! Read here and not through blazesym, whose kallsyms names no module and knows
//! no end of a symbol: an address behind the last function would get its name.

use std::fs;
use std::ops::Range;
use std::rc::Rc;

use crate::frame::Frame;
use crate::frame::Symbol;

/// No function of the kernel is longer; bounds those that nothing follows.
const LONGEST: u64 = 1 << 20;

/// The module of what is linked into the kernel image.
const CORE: &str = "kernel";

/// The kernel's symbols at one moment.
#[derive(Default)]
pub(super) struct Kernel {
    text: String,
    /// Ordered by address; of several names at one address, the first is used.
    symbols: Vec<Entry>,
    /// `/proc/modules` when the symbols were read.
    modules: Vec<Module>,
    loaded: bool,
}

struct Entry {
    address: u64,
    /// Where in `text` the name is.
    name: Range<u32>,
    /// Where the module's name is; empty: the kernel image.
    module: Range<u32>,
    /// A symbol of data ends a function and names none.
    code: bool,
    /// Of several names at an address the lowest rank is the one to show.
    rank: u8,
}

#[derive(PartialEq, Eq)]
struct Module {
    name: Rc<str>,
    range: Range<u64>,
}

impl Kernel {
    /// The frame of `address`, whose instruction is at `code` (one byte less
    /// for a return address).
    pub(super) fn frame(&mut self, address: u64, code: u64) -> Frame {
        if !self.loaded {
            self.load();
        }
        let frame = self.known(address, code);
        if frame.symbol.is_none() && !self.symbols.is_empty() && self.modules != modules() {
            // A module was loaded since.
            self.load();
            return self.known(address, code);
        }
        frame
    }

    fn load(&mut self) {
        let text = fs::read_to_string("/proc/kallsyms").unwrap_or_default();
        *self = Self { modules: modules(), loaded: true, ..Self::parse(text) };
    }

    fn parse(text: String) -> Self {
        let mut symbols: Vec<Entry> = text.lines().filter_map(|line| entry(&text, line)).collect();
        symbols.sort_by_key(|symbol| (symbol.address, symbol.rank));
        Self { text, symbols, ..Self::default() }
    }

    fn known(&self, address: u64, code: u64) -> Frame {
        let nameless = |reason| Frame { address, reason: Some(reason), ..Frame::default() };
        if self.symbols.is_empty() {
            let hidden = "the kernel hides its symbols (kptr_restrict)";
            return nameless(if self.text.is_empty() { "no /proc/kallsyms" } else { hidden });
        }
        let within = self.modules.iter().find(|module| module.range.contains(&code));
        let after = self.symbols.partition_point(|symbol| symbol.address <= code);
        let (before, behind) = self.symbols.split_at(after);
        let Some(last) = before.last() else { return nameless("not an address of the kernel") };
        let first = before.partition_point(|symbol| symbol.address < last.address);
        let end = behind.first().map_or(u64::MAX, |next| next.address);
        let end = end.min(last.address.saturating_add(LONGEST));
        let symbol = before.get(first).filter(|symbol| symbol.code && code < end);
        let Some(symbol) = symbol else {
            let module = within.map(|module| Rc::clone(&module.name));
            let module_offset = within.map(|module| address.wrapping_sub(module.range.start));
            return Frame { module, module_offset, ..nameless("no symbol covers it") };
        };
        let module = match self.slice(&symbol.module) {
            "" => CORE,
            name => name,
        };
        // Offsets are from the start of a module's code; those of the kernel
        // image are of no use with its addresses randomized.
        let start = within.filter(|within| &*within.name == module).map(|m| m.range.start);
        Frame {
            address,
            symbol: Some(Symbol {
                name: self.slice(&symbol.name).into(),
                offset: address.wrapping_sub(symbol.address),
                source: None,
            }),
            module: Some(module.into()),
            module_offset: start.map(|start| address.wrapping_sub(start)),
            ..Frame::default()
        }
    }

    fn slice(&self, range: &Range<u32>) -> &str {
        self.text.get(range.start as usize..range.end as usize).unwrap_or_default()
    }
}

/// `ffffffffc0279010 t fuse_dev_init\t[fuse]` (proc_kallsyms(5)); addresses are
/// 0 for readers without the right to see them.
fn entry(text: &str, line: &str) -> Option<Entry> {
    let mut fields = line.split_ascii_whitespace();
    let address = u64::from_str_radix(fields.next()?, 16).ok().filter(|&address| address != 0)?;
    let kind = fields.next()?;
    let name = fields.next()?;
    let module = fields.next().map(|module| module.trim_matches(['[', ']'])).unwrap_or_default();
    // Both are parts of `text`, or empty.
    let place = |part: &str| {
        let start = (part.as_ptr() as usize).checked_sub(text.as_ptr() as usize);
        let start = start.and_then(|start| u32::try_from(start).ok()).unwrap_or(0);
        start..start.saturating_add(part.len() as u32)
    };
    let module = if module.is_empty() { 0..0 } else { place(module) };
    let (code, rank) = match kind {
        // Absolute symbols are no places: offsets into per-CPU data, mostly.
        "A" | "a" => return None,
        // As nm(1): text, weak, and whether other files can see them.
        "T" => (true, 0),
        "W" | "w" => (true, 1),
        "t" => (true, 2),
        _ => (false, 3),
    };
    Some(Entry { address, name: place(name), module, code, rank })
}

/// `fuse 176128 1 - Live 0xffffffffc0270000` (proc_modules(5)). Since 6.4 the
/// parts of a module lie apart; the address is that of its code, the size that
/// of all parts.
fn modules() -> Vec<Module> {
    let text = fs::read_to_string("/proc/modules").unwrap_or_default();
    text.lines().filter_map(module).collect()
}

fn module(line: &str) -> Option<Module> {
    let mut fields = line.split_ascii_whitespace();
    let name = fields.next()?;
    let size: u64 = fields.next()?.parse().ok()?;
    let start = u64::from_str_radix(fields.nth(3)?.strip_prefix("0x")?, 16).ok()?;
    let range = start..start.checked_add(size)?;
    (start != 0).then(|| Module { name: name.into(), range })
}

#[cfg(test)]
mod tests {
    use super::*;

    const KALLSYMS: &str = "\
0000000000001000 A fixed_percpu_data
ffffffff81000000 T _text
ffffffff81000100 t helper.constprop.0
ffffffff81000100 T kmalloc_trace
ffffffff81000200 W weak_one
ffffffff81000200 d data_there
ffffffff81000300 D jiffies
ffffffffc0270000 t fuse_dev_alloc\t[fuse]
ffffffffc0270080 t fuse_last\t[fuse]
";

    fn kernel() -> Kernel {
        let modules = vec![module("fuse 176128 1 - Live 0xffffffffc0270000").unwrap()];
        Kernel { modules, loaded: true, ..Kernel::parse(KALLSYMS.into()) }
    }

    fn shown(address: u64) -> (Option<String>, Option<Rc<str>>, Option<&'static str>) {
        let frame = kernel().known(address, address);
        let symbol = frame.symbol.map(|symbol| format!("{}+{:#x}", symbol.name, symbol.offset));
        (symbol, frame.module, frame.reason)
    }

    #[test]
    fn an_address_gets_the_function_it_is_in_and_its_module() {
        let known = |name: &str, module: &str| (Some(name.to_owned()), Some(module.into()), None);
        assert_eq!(shown(0xffff_ffff_8100_0110), known("kmalloc_trace+0x10", "kernel"));
        assert_eq!(shown(0xffff_ffff_8100_02ff), known("weak_one+0xff", "kernel"));
        assert_eq!(shown(0xffff_ffff_c027_0010), known("fuse_dev_alloc+0x10", "fuse"));
        assert_eq!(shown(0xffff_ffff_c027_0081), known("fuse_last+0x1", "fuse"));
    }

    #[test]
    fn what_no_function_covers_gets_no_name() {
        let none = |reason| (None, None, Some(reason));
        assert_eq!(shown(0xffff_ffff_8100_0300), none("no symbol covers it"));
        assert_eq!(shown(0x1000), none("not an address of the kernel"));
        // Behind the last symbol there is nothing to bound it but this.
        assert_eq!(shown(0xffff_ffff_c027_0080 + LONGEST), none("no symbol covers it"));
        assert_eq!(shown(u64::MAX), none("no symbol covers it"));
    }

    #[test]
    fn a_return_address_behind_the_end_belongs_to_the_call() {
        let frame = kernel().known(0xffff_ffff_8100_0200, 0xffff_ffff_8100_01ff);
        let symbol = frame.symbol.unwrap();
        assert_eq!((&*symbol.name, symbol.offset), ("kmalloc_trace", 0x100));
        assert_eq!(frame.address, 0xffff_ffff_8100_0200);
    }

    #[test]
    fn hidden_addresses_are_said_to_be_hidden() {
        let hidden = Kernel::parse("0000000000000000 T _text\n0000000000000000 t x\n".into());
        let reason = hidden.known(0xffff_ffff_8100_0000, 0xffff_ffff_8100_0000).reason;
        assert_eq!(reason, Some("the kernel hides its symbols (kptr_restrict)"));
        let missing = Kernel::parse(String::new()).known(1, 1).reason;
        assert_eq!(missing, Some("no /proc/kallsyms"));
    }

    /// The running kernel agrees with itself: every function it lists is found
    /// at its own address, by its own name or by another one it lists there.
    #[test]
    fn the_running_kernels_functions_are_found() {
        let text = fs::read_to_string("/proc/kallsyms").unwrap();
        let wanted: Vec<(u64, &str)> = text
            .lines()
            .filter_map(|line| {
                let mut fields = line.split_ascii_whitespace();
                let address = u64::from_str_radix(fields.next()?, 16).ok()?;
                let code = matches!(fields.next()?, "T" | "t" | "W" | "w");
                Some((address, fields.next()?)).filter(|_| code && address != 0)
            })
            .collect();
        if wanted.is_empty() {
            return; // They are hidden: what is said then is tested above.
        }
        let mut kernel = Kernel::default();
        let mut same = 0;
        for &(address, name) in wanted.iter().step_by(97) {
            let frame = kernel.frame(address, address);
            let symbol = frame.symbol.unwrap_or_else(|| panic!("{name} at {address:x}"));
            assert_eq!(symbol.offset, 0, "{name}");
            assert!(wanted.contains(&(address, &symbol.name)), "{} for {name}", symbol.name);
            same += usize::from(&*symbol.name == name);
        }
        assert!(same * 2 > wanted.len() / 97, "{same} of {}", wanted.len() / 97);
    }
}

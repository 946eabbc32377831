//! The stacks of faults: from the kernel's table to frames with names.

use std::collections::HashMap;
use std::collections::HashSet;
use std::rc::Rc;

use super::Faulter;
use super::Place;
use crate::frame::Frame;
use crate::maps::Maps;
use crate::maps::Objects;
use crate::procfs::ProcFs;
use crate::symbols::Symbols;

/// A stack of the table `stacks`, and how often it faulted so far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stack {
    /// Whose, and what for.
    pub place: Place,
    /// Faults so far.
    pub faults: u64,
    /// Innermost address first; empty: it could not be captured.
    pub addresses: Rc<[u64]>,
}

/// Where the members of `struct stack` (src/bpf/include/stack.bpf.h) are.
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    /// Of all of it, in bytes.
    pub size: usize,
    /// The members.
    pub owner: usize,
    /// Number of addresses, 32 bits.
    pub depth: usize,
    /// Pairs of bytes and blocks, up to `ips`.
    pub seen: usize,
    /// The addresses.
    pub ips: usize,
}

impl Layout {
    /// Reads a value of the table; `None`: it has another size.
    pub fn read(self, value: &[u8]) -> Option<Stack> {
        if value.len() != self.size {
            return None;
        }
        let number = |at: usize| Some(u64::from_ne_bytes(*value.get(at..)?.first_chunk()?));
        let depth = u32::from_ne_bytes(*value.get(self.depth..)?.first_chunk()?);
        let blocks = (self.seen..self.ips).step_by(16).filter_map(|at| number(at + 8));
        Some(Stack {
            place: Place::from(number(self.owner)?),
            faults: blocks.sum(),
            addresses: (0..depth as usize).map_while(|n| number(self.ips + 8 * n)).collect(),
        })
    }
}

/// The programs whose stacks are to be named.
pub struct Names {
    symbols: Symbols,
    objects: Objects,
    programs: HashMap<Faulter, Maps>,
    /// The program each process runs now.
    latest: HashMap<u64, Faulter>,
    read: HashSet<Faulter>,
}

impl Names {
    /// With `lines` also source lines and inlined functions.
    pub fn new(lines: bool) -> Self {
        Self {
            symbols: Symbols::new(lines),
            objects: Objects::default(),
            programs: HashMap::new(),
            latest: HashMap::new(),
            read: HashSet::new(),
        }
    }

    /// A program was seen for the first time.
    pub fn begin(&mut self, procfs: &ProcFs, who: Faulter) {
        self.latest.insert(who.process(), who);
        self.read(procfs, who);
    }

    /// Reads what the program maps now, unless it is no longer the one its
    /// process runs.
    fn read(&mut self, procfs: &ProcFs, who: Faulter) {
        if *self.latest.entry(who.process()).or_insert(who) != who || !who.lives(procfs) {
            return;
        }
        // It may have gone meanwhile: its addresses stay without names.
        if let Ok(maps) = Maps::read(procfs, who.tgid(), &mut self.objects) {
            match self.programs.get_mut(&who) {
                Some(known) => known.update(maps),
                None => {
                    self.programs.insert(who, maps);
                }
            }
        }
    }

    /// A new report: mappings are read anew where they are asked for.
    pub fn new_report(&mut self) {
        self.read.clear();
    }

    /// The frames of a stack, innermost first.
    pub fn frames(&mut self, procfs: &ProcFs, who: Faulter, addresses: &[u64]) -> Vec<Frame> {
        let known = |maps: &Maps| addresses.iter().all(|&address| maps.find(address).is_some());
        let is_known = self.programs.get(&who).is_some_and(known);
        if !is_known && self.read.insert(who) {
            self.read(procfs, who);
        }
        match self.programs.get(&who) {
            Some(maps) => self.symbols.user(maps, addresses),
            None => {
                let reason = Some("the process was gone before it was looked at");
                addresses
                    .iter()
                    .map(|&address| Frame { address, reason, ..Frame::default() })
                    .collect()
            }
        }
    }

    /// The frames of a kernel stack, innermost first.
    pub fn kernel_frames(&mut self, addresses: &[u64]) -> Vec<Frame> {
        self.symbols.kernel(addresses)
    }

    /// A process has gone, or runs another program, and everything is said.
    pub fn forget(&mut self, who: Faulter) {
        self.programs.remove(&who);
        if self.latest.get(&who.process()) == Some(&who) {
            self.latest.remove(&who.process());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::faults::Kind;

    #[test]
    fn a_value_of_the_table_is_read_in_place() {
        let layout = Layout { size: 72, owner: 0, depth: 8, seen: 16, ips: 48 };
        let words = [0x10 << 4 | 1 << 1 | 1, 2, 7, 3, 0, 5, 0xa, 0xb, 0xc_u64];
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        let stack = layout.read(&bytes).unwrap();
        assert_eq!(stack.faults, 8);
        assert_eq!(*stack.addresses, [0xa, 0xb]);
        assert_eq!(stack.place, Place { who: Faulter(0x100), kind: Kind::Anon, major: true });
        assert_eq!(layout.read(&bytes[1..]), None);
    }
}

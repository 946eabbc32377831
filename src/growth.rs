//! Who moves the end of the heap: programs and their stacks as `brkstack`
//! gathers them, from the tables of the kernel side to figures and frames.

use std::collections::BTreeMap;
use std::collections::HashMap;
use std::rc::Rc;

use crate::error::Result;
use crate::frame::Frame;
use crate::maps::Maps;
use crate::maps::Objects;
use crate::procfs::ProcFs;
use crate::symbols::Symbols;

/// What a stack has done to the break.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Moves {
    /// Calls that asked for a new place, failing ones too.
    pub calls: u64,
    /// Bytes the break went up.
    pub grown: u64,
    /// Bytes it came down.
    pub shrunk: u64,
    /// Calls that failed.
    pub failed: u64,
}

impl Moves {
    /// What was added since `before`.
    pub fn since(self, before: Moves) -> Moves {
        Moves {
            calls: self.calls.saturating_sub(before.calls),
            grown: self.grown.saturating_sub(before.grown),
            shrunk: self.shrunk.saturating_sub(before.shrunk),
            failed: self.failed.saturating_sub(before.failed),
        }
    }
}

impl std::ops::AddAssign for Moves {
    fn add_assign(&mut self, more: Moves) {
        self.calls += more.calls;
        self.grown += more.grown;
        self.shrunk += more.shrunk;
        self.failed += more.failed;
    }
}

/// A program one process runs; its number is the kernel side's.
pub struct Program {
    /// PID.
    pub tgid: u32,
    /// Name of the process.
    pub comm: Rc<str>,
    /// What it maps; `Err`: why that is not known.
    maps: Result<Maps, &'static str>,
    /// Nanoseconds since boot; `None`: it had gone already.
    started: Option<u64>,
}

/// The programs that have been seen to move their break.
pub struct Programs {
    symbols: Symbols,
    objects: Objects,
    known: HashMap<u64, Program>,
}

/// Where a program's mappings could not be had.
const TOO_LATE: &str = "the program had ended before its mappings could be read";
const NO_RIGHT: &str = "its mappings cannot be read";

impl Programs {
    /// None yet; `lines`: name source lines too.
    pub fn new(lines: bool) -> Self {
        Self { symbols: Symbols::new(lines), objects: Objects::default(), known: HashMap::new() }
    }

    /// Looks at a program, if it has not been looked at before. `heap` is where
    /// its heap begins, as the kernel side saw it.
    pub fn meet(&mut self, procfs: &ProcFs, number: u64, comm: &str, heap: u64) {
        if self.known.contains_key(&number) {
            return;
        }
        let tgid = tgid(number);
        let started = procfs.start_ns(tgid.cast_signed());
        let maps = read(procfs, tgid, heap, &mut self.objects);
        self.known.insert(number, Program { tgid, comm: comm.into(), maps, started });
    }

    /// Reads a program's mappings again if the stack has been in code that was
    /// mapped since.
    pub fn catch_up(&mut self, procfs: &ProcFs, number: u64, heap: u64, stack: &[u64]) {
        let Some(program) = self.known.get_mut(&number) else { return };
        let Ok(maps) = &mut program.maps else { return };
        if stack.iter().all(|&address| maps.find(address).is_some()) {
            return;
        }
        if let Ok(newer) = read(procfs, program.tgid, heap, &mut self.objects) {
            maps.update(newer);
        }
    }

    /// A program by its number.
    pub fn get(&self, number: u64) -> Option<&Program> {
        self.known.get(&number)
    }

    /// How many there are whose functions cannot be named.
    pub fn nameless(&self) -> usize {
        self.known.values().filter(|program| program.maps.is_err()).count()
    }

    /// The numbers of programs that have ended.
    pub fn ended(&self, procfs: &ProcFs) -> Vec<u64> {
        let ended = |program: &Program| match program.started {
            None => true,
            started => procfs.start_ns(program.tgid.cast_signed()) != started,
        };
        // What a process ran before its last exec cannot be told from what it
        // runs: it is kept until the process ends.
        self.known.iter().filter(|(_, program)| ended(program)).map(|(number, _)| *number).collect()
    }

    /// Forgets a program.
    pub fn forget(&mut self, number: u64) {
        self.known.remove(&number);
    }

    /// The frames of a stack, innermost first.
    pub fn frames(&mut self, number: u64, stack: &[u64]) -> Vec<Frame> {
        match self.known.get(&number).map(|program| &program.maps) {
            Some(Ok(maps)) => self.symbols.user(maps, stack),
            Some(Err(reason)) => nameless(stack, reason),
            None => nameless(stack, TOO_LATE),
        }
    }
}

/// The PID in a program's number (`program_of()` of brkstack.bpf.c).
pub fn tgid(number: u64) -> u32 {
    u32::try_from(number >> 32).unwrap_or(0)
}

fn nameless(stack: &[u64], reason: &'static str) -> Vec<Frame> {
    let frame = |&address| Frame { address, reason: Some(reason), ..Frame::default() };
    stack.iter().map(frame).collect()
}

/// The mappings of a program, if it is still the one whose heap begins there:
/// between its call and this look it may have run another one, whose functions
/// would be the wrong names. Each program has its heap elsewhere
/// (arch_randomize_brk(); without randomization two programs may not be told
/// apart).
fn read(
    procfs: &ProcFs,
    tgid: u32,
    heap: u64,
    objects: &mut Objects,
) -> Result<Maps, &'static str> {
    let maps = Maps::read(procfs, tgid, objects)
        .map_err(|_| if procfs.task(tgid.cast_signed()).is_some() { NO_RIGHT } else { TOO_LATE })?;
    match maps.find(heap) {
        Some(mapping) if &*mapping.name == "[heap]" => Ok(maps),
        _ => Err(TOO_LATE),
    }
}

/// What each stack of each program has done, at one moment.
pub type Table = BTreeMap<(u64, u64), Moves>;

/// What changed since the last report, the largest growth first.
pub fn changes(now: &Table, before: &Table) -> Vec<((u64, u64), Moves)> {
    let mut changes: Vec<((u64, u64), Moves)> = now
        .iter()
        .map(|(site, moves)| (*site, moves.since(before.get(site).copied().unwrap_or_default())))
        .filter(|(_, moves)| moves.calls > 0)
        .collect();
    let order = |(site, moves): &((u64, u64), Moves)| {
        (std::cmp::Reverse((moves.grown, moves.shrunk, moves.calls)), *site)
    };
    changes.sort_by_key(order);
    changes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_differences_in_order_of_growth() {
        let moves = |calls, grown| Moves { calls, grown, ..Moves::default() };
        let before = Table::from([((1, 1), moves(3, 100)), ((1, 2), moves(1, 7))]);
        let now = Table::from([
            ((1, 1), moves(5, 110)),
            ((1, 2), moves(1, 7)),
            ((2, 9), moves(1, 4096)),
            ((3, 1), Moves { calls: 2, shrunk: 8, failed: 1, ..Moves::default() }),
        ]);
        let changed: Vec<_> =
            changes(&now, &before).into_iter().map(|(site, m)| (site, m.calls, m.grown)).collect();
        assert_eq!(changed, [((2, 9), 1, 4096), ((1, 1), 2, 10), ((3, 1), 2, 0)]);
    }

    #[test]
    fn a_program_that_is_gone_or_another_has_no_names_but_says_why() {
        let mut programs = Programs::new(false);
        let procfs = ProcFs::default();
        let gone = 0x3fff_ffff << 32;
        programs.meet(&procfs, gone, "x", 0);
        let own = u64::from(std::process::id()) << 32;
        // No heap begins there: it is not the program that made the call.
        programs.meet(&procfs, own, "y", 0x1000);
        assert_eq!(programs.nameless(), 2);
        assert_eq!(programs.ended(&procfs), [gone]);
        for number in [gone, own, 7] {
            let frames = programs.frames(number, &[0x42]);
            assert_eq!(frames[0].reason, Some(TOO_LATE));
        }
        programs.forget(gone);
        assert!(programs.get(gone).is_none() && programs.get(own).is_some());
    }
}

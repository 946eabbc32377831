//! What `faults` and `ffaults` are made of: sorts of page faults, whose they
//! are, and how their programs are attached.

pub mod files;
pub mod hooks;
pub mod stacks;

use crate::procfs::ProcFs;

/// Sorts of page faults, in the order of `FAULT_OTHER` and so on in
/// src/bpf/include/fault.bpf.h.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// A device, the vdso, hugetlbfs, or what the hook cannot tell.
    Other,
    /// Anonymous memory touched for the first time.
    Anon,
    /// A page of a file.
    File,
    /// A write to a private page that was there, write-protected.
    Cow,
    /// Anonymous memory that had been swapped out.
    Swap,
    /// tmpfs, shared anonymous and SysV memory.
    Shmem,
}

/// How many sorts there are.
pub const KINDS: usize = 6;

impl Kind {
    /// All of them, by number.
    pub const ALL: [Kind; KINDS] =
        [Kind::Other, Kind::Anon, Kind::File, Kind::Cow, Kind::Swap, Kind::Shmem];

    /// Its name in the output.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Other => "other",
            Kind::Anon => "anon",
            Kind::File => "file",
            Kind::Cow => "cow",
            Kind::Swap => "swap",
            Kind::Shmem => "shmem",
        }
    }
}

/// A program a process runs; another one after exec, and another one when the
/// PID is used again. The number is that of `faulter_id()` in fault.bpf.h.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Faulter(pub u64);

impl Faulter {
    /// The bits that are not part of it.
    const SHIFT: u32 = 4;

    /// Process (thread group).
    pub fn tgid(self) -> u32 {
        (self.0 >> 42) as u32
    }

    /// The process, without which program it runs.
    pub fn process(self) -> u64 {
        self.0 >> 10
    }

    /// The same process as if it had never executed another program.
    pub fn whatever_it_runs(self) -> Self {
        Self(self.process() << 10)
    }

    /// Whether the process lives. A machine's PID is looked for here: in a
    /// container nothing can be said, and it counts as living.
    pub fn lives(self, procfs: &ProcFs) -> bool {
        let start = i32::try_from(self.tgid()).ok().and_then(|pid| procfs.start_ns(pid));
        // In ticks, of which the number has 32 bits.
        let ticks = |ns: u64| (ns / NS_PER_TICK) as u32;
        start.is_some_and(|start| u64::from(ticks(start)) == (self.0 >> 10) & 0xffff_ffff)
    }
}

/// `USER_HZ` is 100 (include/asm-generic/param.h).
const NS_PER_TICK: u64 = 10_000_000;

/// What is counted in one place: a program's faults of one sort, minor or major.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Place {
    /// Whose.
    pub who: Faulter,
    /// Which sort.
    pub kind: Kind,
    /// Whether they had to wait for a device.
    pub major: bool,
}

impl From<u64> for Place {
    fn from(key: u64) -> Self {
        let kind = (key >> 1 & 7) as usize;
        Self {
            who: Faulter(key >> Faulter::SHIFT << Faulter::SHIFT),
            kind: Kind::ALL.get(kind).copied().unwrap_or(Kind::Other),
            major: key & 1 == 1,
        }
    }
}

/// Faults, minor and major.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    /// Without waiting for a device.
    pub minor: u64,
    /// With.
    pub major: u64,
}

impl Faults {
    /// Adds faults that were all minor or all major.
    pub fn add(&mut self, faults: u64, major: bool) {
        let sum = if major { &mut self.major } else { &mut self.minor };
        *sum = sum.saturating_add(faults);
    }

    /// Both together.
    pub fn all(self) -> u64 {
        self.minor.saturating_add(self.major)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_says_who_what_and_how() {
        let process = 4_194_303u64 << 42 | 0xdead_beef << 10;
        let place = Place::from(process | 63 << 4 | 5 << 1 | 1);
        assert_eq!(place.who.tgid(), 4_194_303);
        assert_eq!(place.who.process(), process >> 10);
        assert_eq!(place.who, Faulter(process | 63 << 4));
        assert_eq!((place.kind, place.major), (Kind::Shmem, true));
        // Numbers no kernel side of ours gives.
        assert_eq!(Place::from(7 << 1).kind, Kind::Other);
    }

    #[test]
    fn a_process_is_known_by_its_start() {
        let me = std::process::id();
        let procfs = ProcFs::default();
        let start = procfs.start_ns(me.cast_signed()).unwrap() / NS_PER_TICK;
        let faulter =
            |start: u64| Faulter(u64::from(me) << 42 | (start & 0xffff_ffff) << 10 | 17u64 << 4);
        assert!(faulter(start).lives(&procfs));
        assert!(!faulter(start + 1).lives(&procfs));
    }
}

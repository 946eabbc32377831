//! Command lines of processes that may be gone, or may not be disturbed, when
//! somebody asks: read while there is memory, kept in a table of fixed size.

use std::fs::File;
use std::io::Read as _;

use crate::procfs::ProcFs;

/// Bytes of a command line that are kept: `COMMAND_BYTES` of oomkill.bpf.c.
pub const BYTES: usize = 256;

/// Processes remembered.
const KNOWN: usize = 128;

/// A process and the program it runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Who {
    /// Thread group.
    pub pid: u32,
    /// When it started, CLOCK_MONOTONIC.
    pub start_ns: u64,
    /// The name changes when it executes another program.
    pub comm: [u8; 16],
}

#[derive(Clone, Copy)]
struct Entry {
    who: Who,
    bytes: [u8; BYTES],
    length: usize,
}

/// The table. Takes no memory after it was made.
pub struct Commands {
    procfs: ProcFs,
    entries: Vec<Entry>,
    next: usize,
}

impl Commands {
    /// An empty table.
    pub fn new(procfs: ProcFs) -> Self {
        Self { procfs, entries: Vec::with_capacity(KNOWN), next: 0 }
    }

    /// Reads the command line of a process unless it is known.
    pub fn learn(&mut self, who: Who) {
        if self.find(who).is_some() {
            return;
        }
        let mut bytes = [0; BYTES];
        let Some(length) = self.read(who.pid, &mut bytes) else { return };
        let entry = Entry { who, bytes, length };
        if self.entries.len() < KNOWN {
            self.entries.push(entry);
        } else {
            self.entries[self.next] = entry;
            self.next = (self.next + 1) % KNOWN;
        }
    }

    /// The command line as it is known, `None`: it is not.
    pub fn known(&self, who: Who) -> Option<String> {
        self.find(who).map(|entry| shown(&entry.bytes[..entry.length]))
    }

    /// The command line, from the process itself if it is not known.
    pub fn get(&mut self, who: Who) -> Option<String> {
        self.learn(who);
        self.known(who)
    }

    fn find(&self, who: Who) -> Option<&Entry> {
        self.entries.iter().find(|entry| entry.who == who)
    }

    fn read(&self, pid: u32, bytes: &mut [u8]) -> Option<usize> {
        let mut file = File::open(self.procfs.process(pid, "cmdline")).ok()?;
        file.read(bytes).ok().filter(|&length| length > 0)
    }
}

/// A command line as people write it: arguments end in a NUL.
pub fn shown(bytes: &[u8]) -> String {
    let cut = if bytes.len() >= BYTES { "..." } else { "" };
    let end = bytes.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
    let mut text = String::from_utf8_lossy(&bytes[..end]).replace('\0', " ");
    text.push_str(cut);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_separated_and_the_end_is_marked_where_it_was_cut() {
        assert_eq!(shown(b"sleep\x005\0"), "sleep 5");
        assert_eq!(shown(b"a\0\0b\0\0"), "a  b");
        assert_eq!(shown(b""), "");
        let long = [b'x'; BYTES];
        assert_eq!(shown(&long), format!("{}...", "x".repeat(BYTES)));
    }

    #[test]
    fn a_program_is_read_once_and_known_when_it_is_gone() {
        let mut commands = Commands::new(ProcFs::default());
        let me = Who { pid: std::process::id(), start_ns: 1, comm: [7; 16] };
        let own = commands.get(me).unwrap();
        assert!(own.contains("mem_watcher"), "{own}");
        assert_eq!(commands.known(me), Some(own));
        // The same PID with another program is somebody else.
        assert_eq!(commands.known(Who { comm: [8; 16], ..me }), None);
        assert_eq!(commands.get(Who { pid: 4_194_305, ..me }), None);
    }

    #[test]
    fn the_table_does_not_grow() {
        let mut commands = Commands::new(ProcFs::default());
        let pid = std::process::id();
        for start_ns in 0..3 * KNOWN as u64 {
            commands.learn(Who { pid, start_ns, comm: [0; 16] });
        }
        assert_eq!(commands.entries.len(), KNOWN);
        assert_eq!(commands.entries.capacity(), KNOWN);
        assert!(commands.known(Who { pid, start_ns: 2 * KNOWN as u64, comm: [0; 16] }).is_some());
    }
}

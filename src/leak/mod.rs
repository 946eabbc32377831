//! What `memleak` is made of: who allocates, what is still held, by which stack.

pub mod account;
pub mod kernel;
pub mod kernel_report;
pub mod ledger;
pub(crate) mod probes;
pub mod report;
pub mod reporter;
pub mod sample;
mod tables;
pub mod traced;
pub mod trend;
pub mod user;

use std::rc::Rc;

/// How much, and in how many pieces.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amount {
    /// Bytes asked for.
    pub bytes: u64,
    /// Blocks.
    pub blocks: u64,
}

impl Amount {
    /// Adds one block of `bytes`.
    pub fn add_block(&mut self, bytes: u64) {
        self.bytes = self.bytes.saturating_add(bytes);
        self.blocks = self.blocks.saturating_add(1);
    }
}

impl std::ops::AddAssign for Amount {
    fn add_assign(&mut self, other: Self) {
        self.bytes = self.bytes.saturating_add(other.bytes);
        self.blocks = self.blocks.saturating_add(other.blocks);
    }
}

/// A call stack as captured, innermost address first; empty: it could not be
/// captured or kept, and what it holds is shown as `[stack lost]`.
pub type Stack = Rc<[u64]>;

/// What one stack holds at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// What sort of memory: `heap`, `map`, `file`, `reserved` of a process; for
    /// the kernel a slab cache (`slab dentry`), `pages order 3`, `percpu`.
    pub what: Rc<str>,
    /// The stack that allocated it.
    pub stack: Stack,
    /// All of it.
    pub live: Amount,
    /// The part that is older than the age asked for.
    pub older: Amount,
    /// Everything this stack allocated since the start, freed or not.
    pub allocated: Amount,
    /// Age of the oldest piece in nanoseconds.
    pub oldest_ns: u64,
}

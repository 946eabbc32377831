//! mem_watcher shows what Linux memory is doing, with eBPF.
//!
//! The way of a run, down once and then only up:
//!
//! ```text
//! options (cli) -> facts (kernel) -> plan (attach) -> open, constants, load, attach   (cmd)
//! kernel hook -> filter -> reserve or count the loss -> fill -> submit                (src/bpf)
//!   -> batch (engine) -> typed event (event) -> row (cmd) -> printer (output) -> stdout
//! ```
//!
//! Each command is one file in [`cmd`] and one in `src/bpf`; everything it
//! shares with others lives in a module named after what it does.

pub mod allocators;
pub mod attach;
pub mod batch;
pub mod cgroups;
pub mod child;
pub mod cli;
pub mod cmd;
pub mod context;
pub mod departed;
pub mod elf;
pub mod engine;
pub mod error;
pub mod event;
pub mod faults;
pub mod flags;
pub mod frame;
pub mod gfp;
pub mod growth;
pub mod kernel;
pub mod leak;
pub mod lives;
pub mod maps;
pub mod names;
pub mod nodes;
pub mod oom;
pub mod output;
pub mod pagemap;
pub mod percpu;
pub mod perf;
pub mod procfs;
pub mod prologue;
pub mod ranges;
pub mod rates;
pub mod requests;
pub mod rights;
pub mod rss;
pub mod shm;
pub mod shown;
pub mod skipped;
pub mod stalls;
pub mod symbols;
pub mod syscalls;
pub mod target;
pub mod time;
pub mod units;
pub mod uprobe;
pub mod vmstat;
pub mod zones;

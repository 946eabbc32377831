//! The program of `allocate.c`, on which memleak is measured. It is no part of
//! the benchmark's own: that is linked statically, and what is measured should
//! use the C library as most programs do.

use std::env;
use std::io::Write as _;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::process::Stdio;

use crate::Result;
use crate::worker::Worker;

const SOURCE: &str = include_str!("allocate.c");

/// What it allocates with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Language {
    /// malloc and free.
    C,
    /// new and delete.
    Cxx,
}

impl Language {
    /// What a pair is called.
    pub(crate) fn pair(self) -> &'static str {
        match self {
            Language::C => "malloc and free",
            Language::Cxx => "new and delete",
        }
    }
}

/// Builds the program beside the benchmark, and returns where it is.
pub(crate) fn build(language: Language) -> Result<PathBuf> {
    let (compiler, kind, name) = match language {
        Language::C => ("cc", "c", "allocate"),
        Language::Cxx => ("c++", "c++", "allocate-cxx"),
    };
    let path = env::current_exe()?.with_file_name(name);
    let mut child = Command::new(compiler)
        .args(["-O2", "-g", "-fno-omit-frame-pointer", "-fno-builtin", "-pthread"])
        .args(["-x", kind, "-", "-o"])
        .arg(&path)
        .stdin(Stdio::piped())
        .spawn()
        .map_err(|error| format!("{compiler}: {error}"))?;
    child.stdin.take().ok_or("no pipe to the compiler")?.write_all(SOURCE.as_bytes())?;
    match child.wait()? {
        status if status.success() => Ok(path),
        status => Err(format!("{compiler} failed: {status}").into()),
    }
}

/// The running program.
pub(crate) struct Allocator(Worker);

impl Allocator {
    /// Starts it with so many threads, on these CPUs only.
    pub(crate) fn start(program: &Path, threads: usize, cpus: &[usize]) -> Result<Self> {
        let mut command = Command::new(program);
        command.arg(threads.to_string()).args(cpus.iter().map(ToString::to_string));
        let mut allocator = Self(Worker::of(&mut command)?);
        // All threads run, and the allocator's first steps are done.
        allocator.ns_per_pair(1000)?;
        Ok(allocator)
    }

    /// The process id.
    pub(crate) fn pid(&self) -> u32 {
        self.0.pid()
    }

    /// Has each thread allocate and free so many blocks. Returns the CPU time
    /// that one of each took.
    pub(crate) fn ns_per_pair(&mut self, pairs: u64) -> Result<f64> {
        Ok(self.0.ask(&format!("pairs {pairs}"))?.parse()?)
    }

    /// Has it allocate so many blocks from so many stacks, and keep them.
    pub(crate) fn hold(&mut self, blocks: u64, stacks: u64) -> Result<()> {
        self.0.ask(&format!("live {blocks} {stacks}")).map(drop)
    }
}

//! What a tool may use, gathered in one place. Nothing global except the flag
//! a signal sets.

use std::os::fd::AsFd;
use std::os::fd::BorrowedFd;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rustix::event::EventfdFlags;

use crate::cli::KernelArgs;
use crate::error::Context as _;
use crate::error::Result;
use crate::kernel::KernelFacts;
use crate::output::note;
use crate::procfs::ProcFs;
use crate::target::Target;

/// When a run reports and when it ends.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Time between two reports.
    pub interval: Duration,
    /// Reports after which to end; `None`: no end.
    pub count: Option<u64>,
    /// Time after which to end; `None`: no end.
    pub duration: Option<Duration>,
}

/// Says when to stop: set by SIGINT, SIGTERM and SIGHUP.
#[derive(Clone)]
pub struct Stop {
    flag: Arc<AtomicBool>,
    /// Becomes readable with the flag, so that a wait ends at once.
    wake: Arc<OwnedFd>,
}

impl Stop {
    /// Installs the signal handlers.
    ///
    /// # Errors
    /// The handlers cannot be installed.
    pub fn on_signals() -> Result<Self> {
        let wake = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .context(|| "creating an eventfd")?;
        let stop = Self { flag: Arc::new(AtomicBool::new(false)), wake: Arc::new(wake) };
        let handler = stop.clone();
        ctrlc::set_handler(move || handler.set())
            .map_err(|error| crate::error::Error::failure(error.to_string()))
            .context(|| "installing the signal handler")?;
        Ok(stop)
    }

    /// Asks for the end.
    fn set(&self) {
        self.flag.store(true, Ordering::Relaxed);
        // Cannot fill up: each signal adds one to a 64-bit counter.
        let _ = rustix::io::write(&*self.wake, &1u64.to_ne_bytes());
    }

    /// Whether the end was asked for.
    pub fn is_set(&self) -> bool {
        self.flag.load(Ordering::Relaxed)
    }
}

impl AsFd for Stop {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}

/// What a tool may use.
pub struct Context {
    /// The command's name.
    pub command: &'static str,
    /// The running kernel.
    pub kernel: KernelFacts,
    /// `/proc` and `/sys`.
    pub procfs: ProcFs,
    /// The processes asked for.
    pub target: Target,
    /// When to report and to end.
    pub limits: Limits,
    /// Set when a signal asks for the end.
    pub stop: Stop,
    /// The hook the user forced.
    pub hook: Option<String>,
    /// How much to say about oneself.
    pub verbose: bool,
}

impl Context {
    /// Gathers it all. `limits` of a command that reports once are unused.
    ///
    /// # Errors
    /// `--btf` is unusable, or the signal handlers cannot be installed.
    pub fn new(
        command: &'static str,
        kernel: &KernelArgs,
        limits: Limits,
        target: impl FnOnce(&ProcFs) -> Result<Target>,
    ) -> Result<Self> {
        quiet_libbpf(kernel.verbose);
        let procfs = ProcFs::default();
        Ok(Self {
            command,
            target: target(&procfs)?,
            kernel: KernelFacts::probe(kernel.btf.as_deref())?,
            procfs,
            limits,
            stop: Stop::on_signals()?,
            hook: kernel.hook.clone(),
            verbose: kernel.verbose,
        })
    }

    /// Prints a line on standard error if `-v` was given.
    pub fn say(&self, text: impl FnOnce() -> String) {
        if self.verbose {
            note(&text());
        }
    }
}

/// libbpf explains every failed trial at length; that is for `-v` only. What a
/// user must know comes back as an error.
fn quiet_libbpf(verbose: bool) {
    let print: Option<(libbpf_rs::PrintLevel, libbpf_rs::PrintCallback)> = if verbose {
        Some((libbpf_rs::PrintLevel::Warn, |_, text| note(text.trim_end())))
    } else {
        None
    };
    libbpf_rs::set_print(print);
}

//! Starting a program and holding it until everything is attached.
//!
//! The program is traced with `ptrace(2)` from its `exec` to its entry point,
//! and no longer. On that way the kernel maps the program and the dynamic
//! linker, and the dynamic linker maps the libraries and runs their
//! constructors; whoever wants to see all of it is called after each mapping
//! of code, while the program stands still.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::io::Read as _;
use std::marker::PhantomData;
use std::os::fd::AsFd as _;
use std::os::fd::BorrowedFd;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::process::ExitCode;

use nix::errno::Errno;
use nix::sys::ptrace;
use nix::sys::ptrace::Options;
use nix::sys::signal::SigSet;
use nix::sys::signal::Signal;
use rustix::process::Pid;
use rustix::process::PidfdFlags;
use rustix::process::WaitOptions;
use rustix::process::WaitStatus;

use crate::error::Context as _;
use crate::error::Error;
use crate::error::Result;

/// Added to the error number when the child cannot be traced, to tell it from
/// an `exec` that failed. Numbers of the kernel end at 4095 (`MAX_ERRNO`,
/// include/linux/err.h).
const NOT_TRACED: i32 = 4096;
/// In the signal number of a stop at a system call (`PTRACE_O_TRACESYSGOOD`).
const AT_SYSCALL: i32 = libc::SIGTRAP | 0x80;
/// A program of 32 bits, in the fifth byte of its file (elf(5)). The kernel's
/// own idea of the architecture is not set yet after an `exec`.
const ELFCLASS32: u8 = 1;
/// `op` of `struct ptrace_syscall_info` (include/uapi/linux/ptrace.h).
const SYSCALL_ENTRY: u8 = 1;
const SYSCALL_EXIT: u8 = 2;

/// A program right after its `exec`, before its first instruction, so that the
/// dynamic linker has not run either. Dropping it kills the program.
///
/// The kernel takes `ptrace` requests only from the thread that forked: the
/// thread that called [`start`] must do the rest too, and end last.
#[derive(Debug)]
pub struct Held {
    pidfd: OwnedFd,
    guard: Guard,
    same_thread: PhantomData<*const ()>,
}

/// A program that runs freely, or has ended. Dropping it leaves it alone.
#[derive(Debug)]
pub struct Child {
    pid: Pid,
    pidfd: OwnedFd,
    ended: Option<WaitStatus>,
}

/// Starts a program and stops it before its first instruction. It is found and
/// started as a shell would, with our terminal, files and process group: Ctrl-C
/// reaches it too. No signal is blocked in it.
///
/// # Errors
/// No program is given (usage), it cannot be executed, or this system does not
/// let its parent trace it.
pub fn start(command: &[OsString]) -> Result<Held> {
    let (program, arguments) =
        command.split_first().ok_or_else(|| Error::usage("no program to run is given"))?;
    let name = program.to_string_lossy();
    let mut command = Command::new(program);
    command.args(arguments);
    // SAFETY: the closure runs between fork and exec; it only calls sigprocmask
    // and ptrace, takes no lock and does not allocate.
    unsafe { command.pre_exec(become_traced) };
    let started = command.spawn().map_err(|error| match error.raw_os_error() {
        Some(number) if number > NOT_TRACED => refused(Errno::from_raw(number - NOT_TRACED)),
        _ => Error::from(error),
    });
    let what = || format!("starting `{name}`");
    let started = started.context(what)?;
    let pid = i32::try_from(started.id()).ok().and_then(Pid::from_raw);
    let pid = pid.ok_or_else(|| Error::failure("a process without a number")).context(what)?;
    let mut guard = Guard { pid, armed: true };
    let status = wait(pid).context(what)?;
    if !status.stopped() {
        guard.armed = false;
        return Err(Error::failure(format!("`{name}` was killed when it started")));
    }
    let pidfd = rustix::process::pidfd_open(pid, PidfdFlags::empty()).context(what)?;
    let options = Options::PTRACE_O_EXITKILL
        | Options::PTRACE_O_TRACEEXEC
        | Options::PTRACE_O_TRACEFORK
        | Options::PTRACE_O_TRACESYSGOOD;
    ptrace::setoptions(number(pid), options)
        .and_then(|()| unblock_signals(pid))
        .map_err(io::Error::from)
        .context(what)?;
    Ok(Held { pidfd, guard, same_thread: PhantomData })
}

/// What the child does before its `exec`. A signal would stop it there for its
/// tracer, who still waits for the `exec`: all are blocked until then, except
/// the one that the `exec` itself raises.
fn become_traced() -> io::Result<()> {
    let mut blocked = SigSet::all();
    blocked.remove(Signal::SIGTRAP);
    blocked
        .thread_set_mask()
        .and_then(|()| ptrace::traceme())
        .map_err(|errno| io::Error::from_raw_os_error(NOT_TRACED + errno as i32))
}

fn refused(errno: Errno) -> Error {
    let text = "ptrace is refused, which holding a new program needs (kernel.yama.ptrace_scope \
                is 3, or a container's seccomp profile forbids it)";
    match errno {
        Errno::EPERM | Errno::EACCES => Error::rights(text),
        _ => Error::failure(format!("{text}: {}", errno.desc())),
    }
}

impl Held {
    /// Its PID, as we see it.
    pub fn pid(&self) -> u32 {
        self.guard.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// Lets it go as it is, no longer traced.
    ///
    /// # Errors
    /// A failure of `ptrace(2)`; the program is killed then.
    pub fn release(self) -> Result<Child> {
        let pid = self.guard.pid;
        match ptrace::detach(number(pid), None) {
            // Killed meanwhile: whoever waits for it will learn it.
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(errno) => {
                return Err(io::Error::from(errno)).context(|| format!("releasing process {pid}"));
            }
        }
        let Held { pidfd, mut guard, .. } = self;
        guard.armed = false;
        Ok(Child { pid, pidfd, ended: None })
    }

    /// Lets it run up to its entry point (`AT_ENTRY`) and then go, no longer
    /// traced.
    ///
    /// `mapped` is called before the first instruction, and again whenever a
    /// file's code has been mapped, before any of that code can run; the
    /// program stands still during the call. What it maps later (`dlopen`), and
    /// what its children do, is not followed. Blocks the calling thread. A
    /// program that ends before its entry point is a [`Child`] that has ended.
    ///
    /// # Errors
    /// That of `mapped`, a program of 32 bits, or a failure of `ptrace(2)`; the
    /// program is killed then.
    pub fn run_to_entry(self, mapped: impl FnMut() -> Result<()>) -> Result<Child> {
        let ended = follow(self.guard.pid, mapped)?;
        let Held { pidfd, mut guard, .. } = self;
        guard.armed = false;
        Ok(Child { pid: guard.pid, pidfd, ended })
    }
}

impl Child {
    /// Its PID, as we see it.
    pub fn pid(&self) -> u32 {
        self.pid.as_raw_nonzero().get().unsigned_abs()
    }

    /// Readable when it has ended (`pidfd_open(2)`).
    pub fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// Ends it at once: what it was started for cannot be done.
    pub fn kill(self) {
        // It may have ended by itself.
        let _ = rustix::process::pidfd_send_signal(&self.pidfd, rustix::process::Signal::KILL);
        let _ = self.wait();
    }

    /// Waits for its end and gives its exit code; 128 + the signal, as a shell
    /// does, when a signal killed it.
    ///
    /// # Errors
    /// Its status is not kept, as when we were started with SIGCHLD ignored.
    pub fn wait(self) -> Result<ExitCode> {
        let status = match self.ended {
            Some(status) => status,
            None => wait(self.pid)
                .context(|| format!("waiting for the end of process {}", self.pid()))?,
        };
        Ok(ExitCode::from(code(status)))
    }
}

/// The exit code a shell gives.
fn code(status: WaitStatus) -> u8 {
    let code = match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => code,
        (None, Some(signal)) => 128 + signal,
        (None, None) => 1,
    };
    // wait(2): the low 8 bits of what the program gave, or a signal up to 64.
    u8::try_from(code).unwrap_or(u8::MAX)
}

/// Kills a program that nobody will let go, and takes it off the process table.
#[derive(Debug)]
struct Guard {
    pid: Pid,
    armed: bool,
}

impl Drop for Guard {
    fn drop(&mut self) {
        if self.armed {
            // Not reaped yet, so the number is still its own.
            let _ = rustix::process::kill_process(self.pid, rustix::process::Signal::KILL);
            while wait(self.pid).is_ok_and(WaitStatus::stopped) {}
        }
    }
}

/// What a stop means.
enum Seen {
    /// Nothing of interest.
    Nothing,
    /// New code is mapped and has not run.
    Mapped,
    /// The entry point is reached.
    Entry,
    /// This signal is to be delivered.
    Signal(i32),
}

/// Runs a held program to its entry point. Some: how it ended before.
fn follow(pid: Pid, mut mapped: impl FnMut() -> Result<()>) -> Result<Option<WaitStatus>> {
    let what = || format!("following process {pid} to its entry point");
    let mut mapping = false;
    let mut breakpoint = Breakpoint::at_entry(pid).context(what)?;
    let mut seen = Ok(Seen::Mapped);
    loop {
        let signal = match seen {
            Ok(Seen::Mapped) => {
                mapped()?;
                0
            }
            Ok(Seen::Entry) => match ptrace::detach(number(pid), None) {
                // Killed meanwhile: whoever waits for it will learn it.
                Ok(()) | Err(Errno::ESRCH) => return Ok(None),
                Err(errno) => return Err(io::Error::from(errno)).context(what),
            },
            Ok(Seen::Signal(signal)) => signal,
            // A process that was killed answers nothing: `wait` tells.
            Ok(Seen::Nothing) | Err(Errno::ESRCH) => 0,
            Err(errno) => return Err(io::Error::from(errno)).context(what),
        };
        match resume(pid, signal) {
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(errno) => return Err(io::Error::from(errno)).context(what),
        }
        let status = wait(pid).context(what)?;
        let Some(signal) = status.stopping_signal() else { return Ok(Some(status)) };
        seen = match (signal, status.as_raw() >> 16) {
            (_, libc::PTRACE_EVENT_EXEC) => {
                mapping = false;
                breakpoint = Breakpoint::at_entry(pid).context(what)?;
                Ok(Seen::Mapped)
            }
            (_, libc::PTRACE_EVENT_FORK) => forked(pid, &breakpoint).map(|()| Seen::Nothing),
            (AT_SYSCALL, _) => syscall(pid, &mut mapping),
            (libc::SIGTRAP, _) => trapped(pid, &breakpoint),
            _ => Ok(Seen::Signal(signal)),
        };
    }
}

/// At a system call's entry or exit. `mapping` is kept between the two.
fn syscall(pid: Pid, mapping: &mut bool) -> nix::Result<Seen> {
    let info = ptrace::syscall_info(number(pid))?;
    match info.op {
        SYSCALL_ENTRY => {
            // SAFETY: `op` says that this member of the union is filled.
            let entry = unsafe { info.u.entry };
            let [_, _, prot, flags, ..] = entry.args;
            *mapping = entry.nr == libc::SYS_mmap.unsigned_abs()
                && prot & libc::PROT_EXEC as u64 != 0
                && flags & libc::MAP_ANONYMOUS as u64 == 0;
        }
        SYSCALL_EXIT if std::mem::take(mapping) => {
            // SAFETY: as above.
            let failed = unsafe { info.u.exit }.is_error != 0;
            if !failed {
                return Ok(Seen::Mapped);
            }
        }
        _ => {}
    }
    Ok(Seen::Nothing)
}

/// At a SIGTRAP: ours, or the program's own.
fn trapped(pid: Pid, breakpoint: &Breakpoint) -> nix::Result<Seen> {
    let info = ptrace::syscall_info(number(pid))?;
    if info.instruction_pointer != breakpoint.address.wrapping_add(instruction::PC_AFTER) {
        return Ok(Seen::Signal(libc::SIGTRAP));
    }
    breakpoint.lift(pid)?;
    instruction::go_to(pid, breakpoint.address)?;
    Ok(Seen::Entry)
}

/// After a fork: the new process is let go, without the breakpoint that it
/// would die of if it came to its entry point.
fn forked(pid: Pid, breakpoint: &Breakpoint) -> nix::Result<()> {
    let new = i32::try_from(ptrace::getevent(number(pid))?).ok().and_then(Pid::from_raw);
    if let Some(new) = new
        && wait(new).is_ok_and(WaitStatus::stopped)
    {
        let let_go = breakpoint.lift(new).and_then(|()| ptrace::detach(number(new), None));
        // It may have been killed.
        let_go.or_else(|errno| if errno == Errno::ESRCH { Ok(()) } else { Err(errno) })?;
    }
    // Again, in case they share their memory (`CLONE_VM`).
    breakpoint.set(pid)
}

/// An instruction that traps, in place of the program's first one. The page
/// that holds it becomes the program's own: 4 KiB more of anonymous memory.
struct Breakpoint {
    /// Where the program's own code begins.
    address: u64,
    /// The aligned word that held it, as it was.
    word: libc::c_long,
}

impl Breakpoint {
    /// Puts one at the entry point of a program that has just been executed.
    fn at_entry(pid: Pid) -> Result<Self> {
        let raw = pid.as_raw_nonzero().get();
        let mut start = [0; 5];
        fs::File::open(format!("/proc/{raw}/exe"))
            .and_then(|mut file| file.read_exact(&mut start))
            .context(|| format!("reading `/proc/{raw}/exe`"))?;
        if let [.., ELFCLASS32] = start {
            return Err(Error::failure("a program of 32 bits cannot be held"));
        }
        let auxv = ::procfs::process::Process::new(raw)
            .and_then(|process| process.auxv())
            .map_err(|error| Error::failure(error.to_string()))
            .context(|| format!("reading `/proc/{raw}/auxv`"))?;
        let address = *auxv
            .get(&libc::AT_ENTRY)
            .ok_or_else(|| Error::failure(format!("no AT_ENTRY in `/proc/{raw}/auxv`")))?;
        let mut breakpoint = Self { address, word: 0 };
        ptrace::read(number(pid), breakpoint.place())
            .and_then(|word| {
                breakpoint.word = word;
                breakpoint.set(pid)
            })
            .map_err(io::Error::from)
            .context(|| format!("setting a breakpoint at {address:#x}"))?;
        Ok(breakpoint)
    }

    /// Aligned, so that the word does not reach into another page.
    fn place(&self) -> ptrace::AddressType {
        std::ptr::without_provenance_mut((self.address & !7) as usize)
    }

    fn set(&self, pid: Pid) -> nix::Result<()> {
        self.change(pid, instruction::TRAP << self.shift())
    }

    fn lift(&self, pid: Pid) -> nix::Result<()> {
        self.change(pid, self.word)
    }

    fn shift(&self) -> u64 {
        (self.address & 7) * 8
    }

    /// Only the instruction: probes may have come into the same word.
    fn change(&self, pid: Pid, to: libc::c_long) -> nix::Result<()> {
        let mask = instruction::TRAP_MASK << self.shift();
        let now = ptrace::read(number(pid), self.place())?;
        ptrace::write(number(pid), self.place(), now & !mask | to & mask)
    }
}

/// The trapping instruction of x86-64.
#[cfg(target_arch = "x86_64")]
mod instruction {
    use nix::sys::ptrace;
    use rustix::process::Pid;

    /// `int3`.
    pub(super) const TRAP: libc::c_long = 0xcc;
    pub(super) const TRAP_MASK: libc::c_long = 0xff;
    /// A trap: the program counter is past it (Intel SDM volume 3, 7.5).
    pub(super) const PC_AFTER: u64 = 1;

    pub(super) fn go_to(pid: Pid, address: u64) -> nix::Result<()> {
        let mut registers = ptrace::getregs(super::number(pid))?;
        registers.rip = address;
        ptrace::setregs(super::number(pid), registers)
    }
}

/// The trapping instruction of arm64.
#[cfg(target_arch = "aarch64")]
mod instruction {
    use rustix::process::Pid;

    /// `brk #0`.
    pub(super) const TRAP: libc::c_long = 0xd420_0000;
    pub(super) const TRAP_MASK: libc::c_long = 0xffff_ffff;
    /// The program counter stays at it (Arm ARM, D1.3).
    pub(super) const PC_AFTER: u64 = 0;

    pub(super) fn go_to(_: Pid, _: u64) -> nix::Result<()> {
        Ok(())
    }
}

/// The same number in nix's type.
fn number(pid: Pid) -> nix::unistd::Pid {
    nix::unistd::Pid::from_raw(pid.as_raw_nonzero().get())
}

/// The next stop or the end of a process.
fn wait(pid: Pid) -> Result<WaitStatus> {
    loop {
        match rustix::process::waitpid(Some(pid), WaitOptions::empty()) {
            Ok(Some((_, status))) => return Ok(status),
            Ok(None) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Runs up to the next system call. nix knows no real-time signals.
fn resume(pid: Pid, signal: i32) -> nix::Result<()> {
    let pid = pid.as_raw_nonzero().get();
    let none = std::ptr::null_mut::<libc::c_void>();
    // SAFETY: PTRACE_SYSCALL takes a signal's number and touches no memory of ours.
    let result = unsafe { libc::ptrace(libc::PTRACE_SYSCALL, pid, none, i64::from(signal)) };
    Errno::result(result).map(drop)
}

/// Undoes the blocking of [`become_traced`].
fn unblock_signals(pid: Pid) -> nix::Result<()> {
    let pid = pid.as_raw_nonzero().get();
    let mut none = 0_u64;
    let size = size_of_val(&none);
    // SAFETY: PTRACE_SETSIGMASK reads `size` bytes at the last argument.
    let result = unsafe { libc::ptrace(libc::PTRACE_SETSIGMASK, pid, size, &raw mut none) };
    Errno::result(result).map(drop)
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::path::Path;

    use super::*;
    use crate::error::Kind;

    fn words(command: &[&str]) -> Vec<OsString> {
        command.iter().map(OsString::from).collect()
    }

    /// Runs it to its end: how it ended, and how often it was seen to map.
    fn run(command: &[&str]) -> (u8, usize) {
        run_with(command, |_| {})
    }

    fn run_with(command: &[&str], mut look: impl FnMut(u32)) -> (u8, usize) {
        let held = start(&words(command)).unwrap();
        let pid = held.pid();
        let mut calls = 0;
        let child = held
            .run_to_entry(|| {
                calls += 1;
                assert!(state(pid).starts_with('t'), "{}", state(pid));
                look(pid);
                Ok(())
            })
            .unwrap();
        assert_eq!(child.pid(), pid);
        let status = child.ended.unwrap_or_else(|| wait(child.pid).unwrap());
        (code(status), calls)
    }

    /// State of a process as /proc shows it; t: stopped by its tracer.
    fn state(pid: u32) -> String {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        stat.rsplit(") ").next().unwrap().to_owned()
    }

    fn maps(pid: u32) -> String {
        fs::read_to_string(format!("/proc/{pid}/maps")).unwrap()
    }

    /// A folder of its own for a test, gone at its end.
    struct Folder(std::path::PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("mw-{name}-{}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            Self(path)
        }

        fn path(&self, name: &str) -> String {
            self.0.join(name).to_str().unwrap().to_owned()
        }

        fn compile(&self, name: &str, source: &str, options: &[&str]) -> String {
            let (output, input) = (self.path(name), self.path(&format!("{name}.c")));
            fs::write(&input, source).unwrap();
            let mut cc = Command::new("cc");
            cc.args(["-o", &output, &input]).args(options);
            assert!(cc.status().unwrap().success());
            output
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn the_exit_code_is_the_programs() {
        assert_eq!(run(&["/bin/true"]).0, 0);
        assert_eq!(run(&["sh", "-c", "exit 7"]).0, 7);
        assert_eq!(run(&["sh", "-c", "kill -9 $$"]).0, 128 + 9);
        // The last real-time signal, which nix has no name for.
        assert_eq!(run(&["sh", "-c", "kill -64 $$"]).0, 128 + 64);
        let child = start(&words(&["false"])).unwrap().run_to_entry(|| Ok(())).unwrap();
        assert_eq!(format!("{:?}", child.wait().unwrap()), format!("{:?}", ExitCode::from(1)));
    }

    #[test]
    fn what_cannot_start_says_why() {
        let error = start(&words(&["/no/such/program"])).unwrap_err();
        assert_eq!(error.to_string(), "starting `/no/such/program`: No such file or directory");
        assert_eq!(error.kind(), Kind::Failure);
        let error = start(&words(&["/etc/passwd"])).unwrap_err();
        assert_eq!(error.to_string(), "starting `/etc/passwd`: Permission denied");
        assert_eq!(start(&[]).unwrap_err().kind(), Kind::Usage);
        assert_eq!(refused(Errno::EPERM).kind(), Kind::Rights);
        assert_eq!(refused(Errno::ENOSYS).kind(), Kind::Failure);
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn a_program_of_32_bits_is_refused() {
        let folder = Folder::new("class");
        let source = "void _start(void) { for (;;); }";
        let program = folder.compile("program", source, &["-m32", "-nostdlib", "-static"]);
        let error = start(&words(&[&program])).unwrap().run_to_entry(|| Ok(())).unwrap_err();
        assert!(error.to_string().ends_with(": a program of 32 bits cannot be held"), "{error}");
    }

    #[test]
    fn libc_is_seen_before_any_code_of_it_has_run() {
        let seen = RefCell::new(Vec::new());
        let (code, calls) = run_with(&["/bin/true"], |pid| {
            // The last word is the program counter (proc_pid_syscall(5)).
            let syscall = fs::read_to_string(format!("/proc/{pid}/syscall")).unwrap();
            let pc = syscall.split_whitespace().next_back().unwrap().trim_start_matches("0x");
            let pc = u64::from_str_radix(pc, 16).unwrap();
            let maps = maps(pid);
            let at = maps.lines().find(|line| {
                let (start, end) = line.split_once(' ').unwrap().0.split_once('-').unwrap();
                let hex = |text| u64::from_str_radix(text, 16).unwrap();
                (hex(start)..hex(end)).contains(&pc)
            });
            let at = at.unwrap().rsplit('/').next().unwrap().to_owned();
            let libc = maps.lines().any(|line| line.contains("libc.so") && line.contains("r-xp"));
            seen.borrow_mut().push((libc, at));
        });
        let seen = seen.into_inner();
        assert_eq!((code, calls), (0, seen.len()));
        assert!(!seen.first().unwrap().0, "only the kernel has mapped: {seen:?}");
        assert!(seen.last().unwrap().0, "{seen:?}");
        // The dynamic linker is still the one that runs.
        assert!(seen.iter().all(|(_, at)| at.starts_with("ld-")), "{seen:?}");
    }

    const LIBRARY: &str = r#"
        #include <fcntl.h>
        #include <stdlib.h>
        #include <unistd.h>
        void mark(const char *name) { close(open(name, O_CREAT | O_WRONLY, 0600)); }
        __attribute__((constructor)) static void before(int count, char **arguments)
        {
            mark(arguments[1]);
            if (count > 3)
                execl(arguments[0], arguments[0], arguments[1], arguments[2], NULL);
            fork();
        }
    "#;
    const PROGRAM: &str = r#"
        #include <sys/wait.h>
        void mark(const char *);
        int main(int count, char **arguments)
        {
            int status = 0;
            mark(arguments[2]);
            if (wait(&status) < 0)
                return 5;
            return status == 5 << 8 ? 6 : 99;
        }
    "#;

    #[test]
    fn constructors_run_after_the_last_mapping_and_may_fork_and_exec() {
        let folder = Folder::new("constructors");
        folder.compile("libmark.so", LIBRARY, &["-shared", "-fPIC"]);
        let directory = folder.0.to_str().unwrap();
        let rpath = format!("-Wl,-rpath,{directory}");
        let program = folder.compile("program", PROGRAM, &["-L", directory, "-lmark", &rpath]);

        let (before, after) = (folder.path("before"), folder.path("after"));
        let (code, once) = run_with(&[&program, &before, &after], |_| {
            assert!(!Path::new(&before).exists() && !Path::new(&after).exists());
        });
        // 5: the forked one has passed its entry point too.
        assert_eq!(code, 6);
        assert!(Path::new(&before).exists() && Path::new(&after).exists());

        let (before, after) = (folder.path("before2"), folder.path("after2"));
        let (code, twice) = run_with(&[&program, &before, &after, "exec"], |_| {
            assert!(!Path::new(&after).exists());
        });
        assert_eq!((code, twice), (6, 2 * once));
    }

    #[test]
    fn static_programs_and_scripts_are_held_too() {
        let folder = Folder::new("static");
        let program = folder.compile("program", "int main() { return 3; }", &["-static"]);
        let (code, calls) = run_with(&[&program], |pid| {
            assert!(maps(pid).lines().any(|line| line.contains("r-xp") && line.contains(&program)));
        });
        assert_eq!((code, calls), (3, 1), "the first call is the only one");

        let script = folder.path("script");
        // Written by another process: while this one has it open for writing, a
        // process that another test forks may hold it busy.
        let write = "printf '#!/bin/sh\\nexit $1\\n' > \"$0\" && chmod 700 \"$0\"";
        assert!(Command::new("sh").args(["-c", write, &script]).status().unwrap().success());
        let (code, calls) = run(&[&script, "9"]);
        assert_eq!((code, calls), (9, run(&["sh", "-c", "exit"]).1));
    }

    #[test]
    fn this_test_runs_as_a_held_program() {
        let own = std::env::current_exe().unwrap();
        let list = ["--list", "--format=terse", "--exact", "no::such::test"];
        let command = [&[own.to_str().unwrap()][..], &list].concat();
        let (code, calls) = run(&command);
        assert_eq!(code, 0);
        // The C library and the unwinder at least, unless it is linked statically.
        let libraries = cfg!(not(target_feature = "crt-static"));
        assert_eq!(calls > 2, libraries, "{calls}");
    }

    #[test]
    fn no_breakpoint_and_no_tracer_is_left() {
        let held = start(&words(&["sleep", "1000"])).unwrap();
        let child = held.run_to_entry(|| Ok(())).unwrap();
        let pid = child.pid();
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        assert!(status.contains("TracerPid:\t0\n"), "{status}");

        let memory = fs::File::open(format!("/proc/{pid}/mem")).unwrap();
        let process = ::procfs::process::Process::new(pid.cast_signed()).unwrap();
        let entry = process.auxv().unwrap()[&libc::AT_ENTRY];
        let mut running = [0; 16];
        std::os::unix::fs::FileExt::read_exact_at(&memory, &mut running, entry).unwrap();
        let base = process
            .maps()
            .unwrap()
            .into_iter()
            .find(|map| (map.address.0..map.address.1).contains(&entry));
        let base = base.unwrap();
        let file = fs::read(format!("/proc/{pid}/exe")).unwrap();
        let offset = (entry - base.address.0 + base.offset) as usize;
        assert_eq!(running, file[offset..offset + 16]);

        rustix::process::pidfd_send_signal(child.pidfd(), rustix::process::Signal::TERM).unwrap();
        assert_eq!(code(wait(child.pid).unwrap()), 128 + 15);
    }

    #[test]
    fn who_is_let_go_runs_to_its_own_end() {
        let child = start(&words(&["sh", "-c", "exit 7"])).unwrap().release().unwrap();
        let status = fs::read_to_string(format!("/proc/{}/status", child.pid())).unwrap();
        assert!(status.contains("TracerPid:\t0\n"), "{status}");
        assert_eq!(code(wait(child.pid).unwrap()), 7);
    }

    #[test]
    fn no_signal_is_blocked_in_it() {
        let mut blocked = SigSet::empty();
        blocked.add(Signal::SIGUSR1);
        blocked.add(Signal::SIGTERM);
        let before = blocked.thread_swap_mask(nix::sys::signal::SigmaskHow::SIG_BLOCK).unwrap();
        let (code, _) = run(&["grep", "-q", "^SigBlk:.0000000000000000$", "/proc/self/status"]);
        before.thread_set_mask().unwrap();
        assert_eq!(code, 0);
    }

    #[test]
    fn a_signal_before_the_entry_point_is_delivered() {
        let own = |signal: i32| {
            run_with(&["sleep", "1000"], |pid| {
                let pid = rustix::process::Pid::from_raw(pid.cast_signed()).unwrap();
                // SAFETY: only a number is passed.
                unsafe { libc::kill(pid.as_raw_nonzero().get(), signal) };
            })
            .0
        };
        // Not SIGINT: what a shell runs in the background ignores it.
        for signal in [libc::SIGTERM, libc::SIGTRAP, libc::SIGKILL, 64] {
            assert_eq!(i32::from(own(signal)), 128 + signal);
        }
    }

    #[test]
    fn who_is_not_let_go_is_killed() {
        let held = start(&words(&["sleep", "1000"])).unwrap();
        let path = format!("/proc/{}", held.pid());
        assert!(Path::new(&path).exists());
        drop(held);
        assert!(!Path::new(&path).exists());

        let held = start(&words(&["sleep", "1000"])).unwrap();
        let path = format!("/proc/{}", held.pid());
        let error = held.run_to_entry(|| Err(Error::failure("no"))).unwrap_err();
        assert_eq!(error.to_string(), "no");
        assert!(!Path::new(&path).exists());
    }

    #[test]
    fn the_breakpoint_fits_any_alignment() {
        // `place` and `set` use the word that holds the address.
        for address in 0x1000_u64..0x1010 {
            let breakpoint = Breakpoint { address, word: 0 };
            let place = breakpoint.place().addr() as u64;
            assert!(place.is_multiple_of(8) && place <= address && address < place + 8);
        }
    }
}

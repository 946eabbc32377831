//! The work that is measured, in processes of its own: the benchmark runs
//! itself again with `worker` as the first argument. A worker reads one order
//! a line, answers each with a line, and ends when its orders end, so none
//! outlives the benchmark, however that ends.

use std::env;
use std::io;
use std::io::BufRead as _;
use std::io::BufReader;
use std::io::Read;
use std::io::Write;
use std::process::Child;
use std::process::ChildStdin;
use std::process::ChildStdout;
use std::process::Command;
use std::process::Stdio;
use std::ptr;
use std::thread::sleep;
use std::time::Duration;
use std::time::Instant;

use procfs::process::Process;
use rustix::mm::Advice;
use rustix::mm::MapFlags;
use rustix::mm::ProtFlags;
use rustix::time::ClockId;
use rustix::time::clock_gettime;

use crate::Result;
use crate::machine;

/// Round trips between two looks at the clock.
const TRIPS_A_LOOK: u64 = 256;

/// A worker process, seen from the benchmark.
pub(crate) struct Worker {
    child: Child,
    orders: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Worker {
    /// Starts this program as a worker with these arguments.
    pub(crate) fn start(args: &[&str]) -> Result<Self> {
        Self::of(&mut myself(args)?)
    }

    /// Starts a program that takes orders as workers do.
    pub(crate) fn of(command: &mut Command) -> Result<Self> {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let orders = child.stdin.take();
        let answers = BufReader::new(child.stdout.take().ok_or("the worker has no output")?);
        Ok(Self { child, orders, answers })
    }

    /// The process id.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Gives an order and waits for its answer.
    pub(crate) fn ask(&mut self, order: &str) -> Result<String> {
        if let Some(orders) = &mut self.orders {
            writeln!(orders, "{order}")?;
        }
        self.answer()
    }

    fn answer(&mut self) -> Result<String> {
        let mut answer = String::new();
        if self.answers.read_line(&mut answer)? == 0 {
            return Err("a worker ended without an answer".into());
        }
        Ok(answer.trim_end().to_owned())
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // The end of its orders ends it.
        drop(self.orders.take());
        let _ = self.child.wait();
    }
}

fn myself(args: &[&str]) -> Result<Command> {
    let mut command = Command::new(env::current_exe()?);
    command.arg("worker").args(args);
    Ok(command)
}

/// Two processes on one CPU that hand a byte to and fro through two pipes:
/// nearly all they do is switch.
pub(crate) struct Pair {
    first: Worker,
    second: i32,
}

/// What two processes have cost so far.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Cost {
    /// Times they left the CPU.
    pub(crate) switches: u64,
    /// Time they were on it. Unlike the time that passed, it does not grow
    /// when someone else wants the same CPU.
    pub(crate) cpu: Duration,
}

impl Cost {
    /// What was added since `before`.
    pub(crate) fn since(self, before: Self) -> Self {
        Self { switches: self.switches - before.switches, cpu: self.cpu - before.cpu }
    }

    /// Nanoseconds a switch.
    pub(crate) fn ns_per_switch(self) -> f64 {
        self.cpu.as_secs_f64() * 1e9 / self.switches as f64
    }
}

impl Pair {
    /// Starts both, pinned to `cpu`.
    pub(crate) fn on(cpu: usize) -> Result<Self> {
        let mut first = Worker::start(&["ping", &cpu.to_string()])?;
        let second = first.answer()?.parse()?;
        Ok(Self { first, second })
    }

    /// The process ids.
    pub(crate) fn pids(&self) -> [i32; 2] {
        [self.first.pid().cast_signed(), self.second]
    }

    /// Hands the byte to and fro this many times.
    pub(crate) fn trips(&mut self, trips: u64) -> Result<()> {
        self.first.ask(&format!("trips {trips}")).map(drop)
    }

    /// Hands the byte to and fro for this long; the work goes on until the
    /// result is asked for with [`Pair::finish`].
    pub(crate) fn begin(&mut self, seconds: u64) -> Result<()> {
        match &mut self.first.orders {
            Some(orders) => Ok(writeln!(orders, "seconds {seconds}")?),
            None => Err("the workers have ended".into()),
        }
    }

    /// Waits for the end of what [`Pair::begin`] began.
    pub(crate) fn finish(&mut self) -> Result<()> {
        self.first.answer().map(drop)
    }

    /// What they have cost so far. Waits until both are at rest, so that every
    /// switch is counted.
    pub(crate) fn cost(&self) -> Result<Cost> {
        let processes = self.pids().map(Process::new);
        let mut before = None;
        loop {
            let mut cost = Cost { switches: 0, cpu: Duration::ZERO };
            for process in &processes {
                let process = process.as_ref().map_err(|error| error.to_string())?;
                let status = process.status()?;
                let switches = |count: Option<u64>| count.ok_or("/proc lacks context switches");
                cost.switches += switches(status.voluntary_ctxt_switches)?
                    + switches(status.nonvoluntary_ctxt_switches)?;
                cost.cpu += Duration::from_nanos(process.schedstat()?.sum_exec_runtime);
            }
            if before.replace(cost.switches) == Some(cost.switches) {
                return Ok(cost);
            }
            sleep(Duration::from_millis(2));
        }
    }
}

/// A process on one CPU that touches fresh anonymous memory.
pub(crate) struct Toucher(Worker);

impl Toucher {
    /// Starts it, pinned to `cpu`.
    pub(crate) fn on(cpu: usize) -> Result<Self> {
        Ok(Self(Worker::start(&["touch", &cpu.to_string()])?))
    }

    /// The process id.
    pub(crate) fn pid(&self) -> u32 {
        self.0.pid()
    }

    /// Maps this much memory, without huge pages, writes to each page of it
    /// and unmaps it. Returns the CPU time that the writes took, in seconds.
    pub(crate) fn touch(&mut self, bytes: usize) -> Result<f64> {
        Ok(self.0.ask(&bytes.to_string())?.parse()?)
    }
}

/// Processes that only exist.
pub(crate) struct Sleepers {
    children: Vec<Child>,
    /// Its end ends those that are left, should the benchmark be killed.
    _until: io::PipeWriter,
}

impl Sleepers {
    /// Starts this many.
    pub(crate) fn start(count: usize) -> Result<Self> {
        let (read, write) = io::pipe()?;
        let mut sleepers = Self { children: Vec::with_capacity(count), _until: write };
        for _ in 0..count {
            let child =
                myself(&["sleep"])?.stdin(read.try_clone()?).stdout(Stdio::null()).spawn()?;
            sleepers.children.push(child);
        }
        Ok(sleepers)
    }

    /// The id of the first one.
    pub(crate) fn first(&self) -> String {
        self.children.first().map_or_else(String::new, |child| child.id().to_string())
    }
}

impl Drop for Sleepers {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
        }
        for child in &mut self.children {
            let _ = child.wait();
        }
    }
}

/// Runs as a worker and returns true, if the command line says so.
pub(crate) fn run_if_asked() -> Result<bool> {
    let args: Vec<String> = env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args[..] {
        ["worker", "ping", cpu] => ping(cpu)?,
        ["worker", "pong", cpu] => pong(cpu)?,
        ["worker", "touch", cpu] => touch(cpu)?,
        ["worker", "fault", cpu] => crate::pages::fault(cpu)?,
        ["worker", "sleep"] => drop(io::stdin().read(&mut [0])?),
        _ => return Ok(false),
    }
    Ok(true)
}

/// Calls `each` with every order and sends back its answer.
pub(crate) fn obey(mut each: impl FnMut(&str) -> Result<String>) -> Result<()> {
    let mut answers = io::stdout().lock();
    for order in io::stdin().lock().lines() {
        writeln!(answers, "{}", each(&order?)?)?;
        answers.flush()?;
    }
    Ok(())
}

/// The first of a pair: serves the byte, and keeps count.
fn ping(cpu: &str) -> Result<()> {
    machine::pin(cpu.parse()?)?;
    let mut other = myself(&["pong", cpu])?.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let mut there = other.stdin.take().ok_or("no pipe to the other")?;
    let mut back = other.stdout.take().ok_or("no pipe from the other")?;
    writeln!(io::stdout(), "{}", other.id())?;
    obey(|order| {
        let (unit, amount) = order.split_once(' ').ok_or("an order has two words")?;
        let amount: u64 = amount.parse()?;
        if unit == "trips" {
            trips(&mut there, &mut back, amount)?;
        } else {
            let begin = Instant::now();
            while begin.elapsed() < Duration::from_secs(amount) {
                trips(&mut there, &mut back, TRIPS_A_LOOK)?;
            }
        }
        Ok("done".into())
    })?;
    drop(there);
    other.wait()?;
    Ok(())
}

fn trips(there: &mut impl Write, back: &mut impl Read, count: u64) -> Result<()> {
    let mut byte = [0];
    for _ in 0..count {
        there.write_all(&byte)?;
        back.read_exact(&mut byte)?;
    }
    Ok(())
}

/// The second of a pair: returns each byte.
fn pong(cpu: &str) -> Result<()> {
    machine::pin(cpu.parse()?)?;
    // Not the buffered standard streams: one byte is one system call.
    let (stdin, stdout) = (rustix::stdio::stdin(), rustix::stdio::stdout());
    let mut byte = [0];
    while rustix::io::read(stdin, &mut byte)? == 1 {
        rustix::io::write(stdout, &byte)?;
    }
    Ok(())
}

/// Touches as much memory as each order says.
fn touch(cpu: &str) -> Result<()> {
    machine::pin(cpu.parse()?)?;
    let page = rustix::param::page_size();
    obey(|order| {
        let bytes: usize = order.parse()?;
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: a new private mapping at an address of the kernel's choice.
        let memory = unsafe {
            rustix::mm::mmap_anonymous(ptr::null_mut(), bytes, protection, MapFlags::PRIVATE)?
        };
        // SAFETY: the mapping is ours, and the advice does not change what it holds.
        unsafe { rustix::mm::madvise(memory, bytes, Advice::LinuxNoHugepage)? };
        let begin = clock_gettime(ClockId::ThreadCPUTime);
        for offset in (0..bytes).step_by(page) {
            // SAFETY: within the mapping, which is writable. Volatile, because
            // nobody reads it.
            unsafe { memory.cast::<u8>().add(offset).write_volatile(1) };
        }
        let end = clock_gettime(ClockId::ThreadCPUTime);
        // SAFETY: nothing refers to the mapping any more.
        unsafe { rustix::mm::munmap(memory, bytes)? };
        let seconds =
            (end.tv_sec - begin.tv_sec) as f64 + (end.tv_nsec - begin.tv_nsec) as f64 / 1e9;
        Ok(seconds.to_string())
    })
}

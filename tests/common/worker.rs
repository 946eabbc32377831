//! Processes with known memory. The test binary runs itself again as a worker
//! that obeys one word a line on its standard input and answers each with a
//! line, so that it is at rest whenever the test looks.

mod anon;
mod faults;
mod oom;
mod paf;
mod pages;
mod reclaim;
pub mod snoops;
mod stalls;

use std::env;
use std::fs::File;
use std::hint::black_box;
use std::io::BufRead as _;
use std::io::BufReader;
use std::io::Read as _;
use std::io::Seek as _;
use std::io::Write as _;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::path::PathBuf;
use std::process::Child;
use std::process::ChildStdin;
use std::process::ChildStdout;
use std::process::Command;
use std::process::Stdio;
use std::ptr;
use std::sync::Arc;
use std::sync::Barrier;
use std::thread;
use std::time::Duration;

use rustix::mm::Advice;
use rustix::mm::MapFlags;
use rustix::mm::ProtFlags;

use super::kernels::is_guest;

/// The first argument that makes the test binary a worker.
const FLAG: &str = "--worker";

/// A worker, as the test holds it. Ended when dropped.
pub struct Worker {
    child: Child,
    to: Option<ChildStdin>,
    from: BufReader<ChildStdout>,
}

impl Worker {
    /// Starts one and waits until it is ready.
    pub fn start() -> Self {
        Self::start_as(&env::current_exe().expect("own path"))
    }

    /// The same, from a copy of this program under another name.
    pub fn start_as(program: &Path) -> Self {
        Self::spawn(Command::new(program).arg(FLAG)).0
    }

    /// Starts any program that obeys and answers alike; with what it said
    /// first.
    pub fn spawn(command: &mut Command) -> (Self, String) {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|error| panic!("starting {command:?}: {error}"));
        let to = child.stdin.take();
        let from = BufReader::new(child.stdout.take().expect("piped"));
        let mut worker = Self { child, to, from };
        let greeting = worker.hear();
        (worker, greeting)
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Has it do something and returns its answer.
    pub fn ask(&mut self, order: &str) -> String {
        self.tell(order);
        self.hear()
    }

    /// Has it start something.
    pub fn tell(&mut self, order: &str) {
        let to = self.to.as_mut().expect("not closed");
        writeln!(to, "{order}").expect("writing to the worker");
    }

    /// Its next answer.
    pub fn hear(&mut self) -> String {
        let mut line = String::new();
        self.from.read_line(&mut line).expect("reading from the worker");
        assert!(line.ends_with('\n'), "the worker has died after {line:?}");
        line.trim_end().to_owned()
    }

    /// Kills it and waits for its end.
    pub fn kill(mut self) {
        self.child.kill().expect("killing the worker");
        self.child.wait().expect("waiting for the worker");
    }

    /// Lets it exit and waits for that.
    pub fn end(mut self) {
        self.to.take();
        self.child.wait().expect("waiting for the worker");
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Keeps a worker on one CPU.
pub fn pin(worker: &Worker, cpu: usize) -> rustix::io::Result<()> {
    let mut set = rustix::thread::CpuSet::new();
    set.set(cpu);
    rustix::thread::sched_setaffinity(
        rustix::process::Pid::from_raw(worker.pid().cast_signed()),
        &set,
    )
}

/// If the command line says so, becomes a worker and never returns.
pub fn become_one_if_asked() {
    let mut args = env::args().skip(1);
    if args.next().as_deref() != Some(FLAG) {
        return;
    }
    map_own_code();
    let mut state = State::default();
    let mut out = std::io::stdout();
    // Whoever hears the answer may count what this program holds: nothing of the
    // order or of the answer must be left then.
    let mut said = [0; 4096];
    let mut say = move |text: String| {
        let done = match said.get_mut(..text.len()) {
            Some(copy) => {
                copy.copy_from_slice(text.as_bytes());
                drop(text);
                out.write_all(copy).and_then(|()| out.write_all(b"\n"))
            }
            None => writeln!(out, "{text}"),
        };
        done.and_then(|()| out.flush()).expect("answering");
    };
    say("ready".into());
    for line in std::io::stdin().lines() {
        let line = line.expect("an order");
        let mut words = line.split_whitespace();
        let order = words.next().unwrap_or_default();
        let n = words.next().map_or(0, |word| word.parse().expect("a number"));
        let size = words.next().map_or(0, |word| word.parse().expect("a number"));
        let answer = state.obey(order, n, size);
        drop(line);
        say(answer);
    }
    drop(state);
    std::process::exit(0);
}

/// Maps all of this program's code and constants, so that obeying an order for
/// the first time brings no file pages but those of the order.
fn map_own_code() {
    let program = env::current_exe().expect("own path");
    let maps = std::fs::read_to_string("/proc/self/maps").expect("own mappings");
    for line in maps.lines().filter(|line| line.ends_with(program.to_str().expect("a plain path")))
    {
        let mut words = line.split_whitespace();
        let (range, rights) = (words.next().expect("a range"), words.next().expect("rights"));
        let (start, end) = range.split_once('-').expect("two ends");
        let number = |text| usize::from_str_radix(text, 16).expect("hexadecimal");
        if rights.starts_with("r-") {
            for at in (number(start)..number(end)).step_by(page()) {
                // SAFETY: a readable page of a mapping that stays.
                unsafe { (at as *const u8).read_volatile() };
            }
        }
    }
}

/// Memory this worker holds on purpose.
#[derive(Default)]
struct State {
    anon: Vec<Region>,
    others: Vec<Region>,
    children: Vec<libc::pid_t>,
    threads: usize,
    files: Vec<File>,
    folders: Vec<PathBuf>,
    pipes: Vec<(OwnedFd, OwnedFd)>,
    boxes: Vec<Box<[u8]>>,
}

struct Region {
    at: *mut u8,
    bytes: usize,
    _backing: Option<OwnedFd>,
}

impl State {
    fn obey(&mut self, order: &str, n: usize, size: usize) -> String {
        match order {
            "anon" => {
                let region = Region::map(n, ProtFlags::READ | ProtFlags::WRITE, None);
                region.no_huge_pages();
                region.write();
                self.anon.push(region);
            }
            // One page in each 2 MiB: each takes a page table of its own.
            "sparse" => {
                let apart = 2 << 20;
                let region =
                    Region::map(n * apart / page(), ProtFlags::READ | ProtFlags::WRITE, None);
                region.no_huge_pages();
                for offset in (0..region.bytes).step_by(apart) {
                    // SAFETY: within the region.
                    unsafe { region.at.add(offset).write_volatile(1) };
                }
                self.others.push(region);
            }
            "huge" => {
                let region = Region::map(n, ProtFlags::READ | ProtFlags::WRITE, None);
                // SAFETY: the range was just mapped and belongs to nobody else.
                unsafe {
                    rustix::mm::madvise(region.at.cast(), region.bytes, Advice::LinuxHugepage)
                        .expect("MADV_HUGEPAGE");
                }
                region.write();
                self.anon.push(region);
            }
            "file" => {
                let region = Region::map(n, ProtFlags::READ, Some(disk_file(n)));
                region.read();
                self.others.push(region);
            }
            "shared" => {
                let fd = rustix::fs::memfd_create("worker", rustix::fs::MemfdFlags::empty())
                    .expect("memfd");
                rustix::fs::ftruncate(&fd, (n * page()) as u64).expect("ftruncate");
                let region = Region::map(n, ProtFlags::READ | ProtFlags::WRITE, Some(fd));
                region.write();
                self.others.push(region);
            }
            "locked" => {
                let region = Region::map(n, ProtFlags::READ | ProtFlags::WRITE, None);
                region.no_huge_pages();
                // SAFETY: the range was just mapped.
                unsafe { rustix::mm::mlock(region.at.cast(), region.bytes).expect("mlock") };
                self.others.push(region);
            }
            "stack" => {
                black_box(deeper(n));
            }
            "reserve" => {
                self.others.push(Region::map(n, ProtFlags::empty(), None));
            }
            "unmap" => {
                self.anon.clear();
            }
            // Gives half of each anonymous region back (MADV_DONTNEED).
            "halve" => {
                for region in &self.anon {
                    let half = region.bytes / page() / 2 * page();
                    // SAFETY: a part of a range this worker mapped and does not
                    // read before it writes it again.
                    unsafe {
                        rustix::mm::madvise(region.at.cast(), half, Advice::LinuxDontNeed)
                            .expect("MADV_DONTNEED");
                    }
                }
            }
            "pageout" => {
                for region in &self.anon {
                    // SAFETY: only asks for reclaim; contents are kept.
                    let done = unsafe {
                        libc::madvise(region.at.cast(), region.bytes, libc::MADV_PAGEOUT)
                    };
                    assert_eq!(done, 0, "MADV_PAGEOUT");
                }
            }
            "pagein" => self.anon.iter().for_each(Region::read),
            "threads" => self.start_threads(n, |i| i + 1),
            "crowd" => self.start_threads(n, |_| 1),
            "fork" => self.fork(n),
            "reap" => self.reap(),
            // Written and read twice, which makes a page active on the classical lists.
            "tmpfs" => {
                let fd = rustix::fs::memfd_create("worker", rustix::fs::MemfdFlags::empty())
                    .expect("memfd");
                let mut file = File::from(fd);
                file.write_all(&vec![7; n * page()]).expect("writing to memory");
                read_twice(&mut file, n);
                self.files.push(file);
            }
            "cache" => {
                let mut file = File::from(disk_file(n));
                read_twice(&mut file, n);
                self.files.push(file);
            }
            "dirty" => {
                let mut file = File::from(disk_file(n));
                file.rewind().expect("seeking");
                file.write_all(&vec![9; n * page()]).expect("writing to a disk");
                self.files.push(file);
            }
            "sync" => self.files.iter().for_each(|file| file.sync_all().expect("fsync")),
            // Directory entries and inodes.
            "names" => {
                let folder = env::temp_dir().join(format!("worker-{}", std::process::id()));
                std::fs::create_dir(&folder).expect("a folder");
                for i in 0..n {
                    File::create(folder.join(i.to_string())).expect("a file");
                }
                self.folders.push(folder);
            }
            "pipes" => {
                let limit = rustix::process::Rlimit {
                    current: Some(2 * n as u64 + 64),
                    maximum: Some(2 * n as u64 + 64),
                };
                rustix::process::setrlimit(rustix::process::Resource::Nofile, limit)
                    .expect("more files");
                self.pipes.extend((0..n).map(|_| rustix::pipe::pipe().expect("a pipe")));
            }
            // Pages that no counter of the kernel names: 16 in each pipe.
            "filled" => {
                self.obey("pipes", n, 0);
                for (_, to) in &self.pipes {
                    let data = vec![3; 16 * page()];
                    assert_eq!(rustix::io::write(to, &data), Ok(data.len()), "filling a pipe");
                }
            }
            // A second thread that holds the memory when the first one leaves.
            "share" => self.share(),
            "second" => self.start_threads(n, |i| i + 1),
            "leave" => {
                // SAFETY: ends this thread only; the others never touch its stack.
                unsafe { libc::syscall(libc::SYS_exit, 0) };
            }
            // As many voluntary context switches.
            "sleep" => (0..n).for_each(|_| thread::sleep(Duration::from_micros(50))),
            "name" => rustix::thread::set_name(c"a-name-longer-").expect("name"),
            // Answers with the bytes and blocks of the heap that it now holds
            // for this.
            "boxes" => {
                assert!(self.boxes.is_empty(), "boxes once at a time");
                self.boxes = Vec::with_capacity(n);
                self.boxes.extend((0..n).map(|_| leak_box(size)));
                let list = self.boxes.capacity() * size_of::<Box<[u8]>>();
                return format!("{} {}", n * size + list, n + 1);
            }
            "unbox" => self.boxes = Vec::new(),
            "usage" => {
                let usage = usage();
                return format!("{} {}", usage.0, usage.1);
            }
            other => {
                let known = self
                    .anon(other, n, size)
                    .or_else(|| self.pages(other, n, size))
                    .or_else(|| self.faults(other, n, size))
                    .or_else(|| self.snoops(other, n, size))
                    .or_else(|| self.paf(other, n, size))
                    .or_else(|| self.stalls(other, n))
                    .or_else(|| self.reclaim(other, n))
                    .or_else(|| self.oom(other, n));
                return known.unwrap_or_else(|| panic!("unknown order {other:?}"));
            }
        }
        "done".into()
    }

    /// Threads that touch `pages(their number)` pages and then wait for ever.
    fn start_threads(&mut self, n: usize, pages: fn(usize) -> usize) {
        let touched = Arc::new(Barrier::new(n + 1));
        for i in 0..n {
            let touched = Arc::clone(&touched);
            thread::Builder::new()
                .stack_size(256 << 10)
                .spawn(move || {
                    let region = Region::map(pages(i), ProtFlags::READ | ProtFlags::WRITE, None);
                    region.no_huge_pages();
                    region.write();
                    touched.wait();
                    loop {
                        thread::park();
                    }
                })
                .expect("a thread");
        }
        touched.wait();
        // The barrier opens before its last waiter sleeps.
        thread::sleep(Duration::from_millis(50));
        self.threads += n;
    }

    fn fork(&mut self, n: usize) {
        assert_eq!(self.threads, 0, "a forked child has only the forking thread");
        for _ in 0..n {
            // SAFETY: this process has one thread, so the child may do anything;
            // it only waits for the signal that ends it.
            let pid = unsafe { libc::fork() };
            match pid {
                0 => loop {
                    // SAFETY: no arguments, no memory.
                    unsafe { libc::pause() };
                },
                pid if pid > 0 => self.children.push(pid),
                _ => panic!("fork: {}", std::io::Error::last_os_error()),
            }
        }
    }

    /// Another process with the same memory, which is no thread of this one.
    fn share(&mut self) {
        extern "C" fn wait_for_ever(_: *mut libc::c_void) -> libc::c_int {
            loop {
                // SAFETY: no arguments, no memory.
                unsafe { libc::pause() };
            }
        }
        let stack = Region::map(16, ProtFlags::READ | ProtFlags::WRITE, None);
        // SAFETY: the child has a stack of its own, which stays mapped until it
        // has been reaped, and does nothing but wait.
        let pid = unsafe {
            libc::clone(
                wait_for_ever,
                stack.at.add(stack.bytes).cast(),
                libc::CLONE_VM | libc::SIGCHLD,
                ptr::null_mut(),
            )
        };
        assert!(pid > 0, "clone: {}", std::io::Error::last_os_error());
        self.children.push(pid);
        self.others.push(stack);
    }

    fn reap(&mut self) {
        for pid in self.children.drain(..) {
            // SAFETY: our own children, not waited for yet.
            unsafe {
                libc::kill(pid, libc::SIGKILL);
                libc::waitpid(pid, ptr::null_mut(), 0);
            }
        }
    }
}

impl Drop for State {
    fn drop(&mut self) {
        self.reap();
        for folder in &self.folders {
            let _ = std::fs::remove_dir_all(folder);
        }
    }
}

/// A name to look for in stacks.
#[inline(never)]
fn leak_box(size: usize) -> Box<[u8]> {
    black_box(vec![7; size].into_boxed_slice())
}

fn read_twice(file: &mut File, pages: usize) {
    let mut buffer = vec![0; pages * page()];
    for _ in 0..2 {
        file.rewind().expect("seeking");
        file.read_exact(&mut buffer).expect("reading back");
    }
}

impl Region {
    fn map(pages: usize, prot: ProtFlags, backing: Option<OwnedFd>) -> Self {
        let bytes = pages * page();
        // SAFETY: a new mapping at an address of the kernel's choice.
        let at = unsafe {
            match &backing {
                None => {
                    let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
                    rustix::mm::mmap_anonymous(ptr::null_mut(), bytes, prot, flags)
                }
                Some(fd) => rustix::mm::mmap(ptr::null_mut(), bytes, prot, MapFlags::SHARED, fd, 0),
            }
        }
        .expect("mmap");
        Self { at: at.cast(), bytes, _backing: backing }
    }

    /// Exact counts need single pages.
    fn no_huge_pages(&self) {
        // SAFETY: only advice on a range of ours. Kernels without huge pages
        // answer EINVAL, which is as good.
        let _ = unsafe { rustix::mm::madvise(self.at.cast(), self.bytes, Advice::LinuxNoHugepage) };
    }

    /// Writes something no compressor makes small, one word a page or more.
    fn write(&self) {
        let mut seed = self.at as u64 | 1;
        for offset in (0..self.bytes).step_by(64) {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            // SAFETY: within the region, aligned to eight bytes.
            unsafe { self.at.add(offset).cast::<u64>().write_volatile(seed) };
        }
    }

    fn read(&self) {
        for offset in (0..self.bytes).step_by(page()) {
            // SAFETY: within the region.
            unsafe { self.at.add(offset).read_volatile() };
        }
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: the region is ours and nothing points into it any more.
        let _ = unsafe { rustix::mm::munmap(self.at.cast(), self.bytes) };
    }
}

fn page() -> usize {
    rustix::param::page_size()
}

/// A file of at least that size on something that is not memory: in a guest,
/// whose every file system is in memory, the disk itself.
fn disk_file(pages: usize) -> OwnedFd {
    if is_guest() {
        return File::options().read(true).write(true).open("/dev/vda").expect("a disk").into();
    }
    let path = env::temp_dir().join(format!("worker-{}-{pages}", std::process::id()));
    let mut file = File::options()
        .create_new(true)
        .read(true)
        .write(true)
        .open(&path)
        .expect("a temporary file");
    std::fs::remove_file(&path).expect("removing its name");
    // In pieces: this process may have less memory than that.
    let piece = vec![7; 256 * page()];
    let mut left = pages * page();
    while left > 0 {
        let bytes = left.min(piece.len());
        file.write_all(&piece[..bytes]).expect("filling it");
        left -= bytes;
    }
    file.into()
}

/// Grows the stack by `pages`.
fn deeper(pages: usize) -> u64 {
    let mut frame = [0u8; 4096];
    black_box(&mut frame)[pages % 4096] = 1;
    if pages == 0 { 0 } else { deeper(pages - 1) + u64::from(frame[pages % 4096]) }
}

/// Voluntary and involuntary context switches so far.
fn usage() -> (i64, i64) {
    // SAFETY: all-zero is a valid rusage; the call fills it.
    let usage = unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        libc::getrusage(libc::RUSAGE_SELF, &mut usage);
        usage
    };
    (usage.ru_nvcsw, usage.ru_nivcsw)
}

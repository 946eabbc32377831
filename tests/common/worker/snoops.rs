//! Orders about single system calls: each is made here by itself, and the answer
//! is a JSON list of what was asked for and what came of it, in order.

use std::arch::asm;
use std::ffi::CString;
use std::fs;
use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::thread;

use serde_json::Value;
use serde_json::json;

use super::super::watcher::PATIENCE;
use super::Region;
use super::State;
use super::page;

/// Tells the beginning of a list of mappings: nobody else maps so many bytes.
pub const MARK: u64 = 15_485_863;

/// Waits until a watcher has its ring open and so, soon after, its probes: for
/// formats that print nothing before the end.
pub fn until_attached(pid: u32) {
    let end = std::time::Instant::now() + PATIENCE;
    let links = || {
        let Ok(fds) = fs::read_dir(format!("/proc/{pid}/fd")) else { return 0 };
        let names = fds.filter_map(|fd| fs::read_link(fd.ok()?.path()).ok());
        names.filter(|name| name.to_string_lossy().contains("[perf_event]")).count()
    };
    // Entry and return.
    while links() < 2 {
        assert!(std::time::Instant::now() < end, "the watcher attaches nothing");
        thread::sleep(std::time::Duration::from_millis(20));
    }
    thread::sleep(std::time::Duration::from_millis(200));
}

/// What is asked of the kernel; the result of an error is its negative number.
fn call(number: libc::c_long, args: [u64; 6]) -> i64 {
    // SAFETY: the callers below pass addresses of their own memory, or such
    // that the kernel refuses.
    let result =
        unsafe { libc::syscall(number, args[0], args[1], args[2], args[3], args[4], args[5]) };
    match result {
        -1 => -i64::from(std::io::Error::last_os_error().raw_os_error().unwrap_or(0)),
        result => result,
    }
}

/// Calls in order. Nothing is allocated while they are made.
struct List(Vec<Made>);

struct Made {
    name: &'static str,
    args: [u64; 6],
    words: [&'static str; 2],
    result: i64,
}

impl List {
    fn new() -> Self {
        Self(Vec::with_capacity(256))
    }

    fn make(
        &mut self,
        (name, number): (&'static str, libc::c_long),
        args: &[u64],
        words: [&'static str; 2],
    ) -> i64 {
        assert!(self.0.len() < self.0.capacity(), "no room");
        let mut all = [0; 6];
        all[..args.len()].copy_from_slice(args);
        let result = call(number, all);
        self.0.push(Made { name, args: all, words, result });
        result
    }

    fn answer(&self, file: impl Fn(&Made) -> Option<String>) -> String {
        let list = self.0.iter().map(|made| {
            json!({
                "call": made.name, "args": made.args, "words": made.words, "ret": made.result,
                "file": file(made),
            })
        });
        list.collect::<Value>().to_string()
    }
}

const MMAP: (&str, libc::c_long) = ("mmap", libc::SYS_mmap);
const MUNMAP: (&str, libc::c_long) = ("munmap", libc::SYS_munmap);
const MREMAP: (&str, libc::c_long) = ("mremap", libc::SYS_mremap);
const NO_FD: u64 = u64::MAX;

const R: u64 = libc::PROT_READ as u64;
const W: u64 = libc::PROT_WRITE as u64;
const X: u64 = libc::PROT_EXEC as u64;
const PRIVATE: u64 = libc::MAP_PRIVATE as u64;
const SHARED: u64 = libc::MAP_SHARED as u64;
const ANON: u64 = libc::MAP_ANONYMOUS as u64;

impl State {
    pub(super) fn snoops(&mut self, order: &str, n: usize, size: usize) -> Option<String> {
        Some(match order {
            "mmaps" => mmaps(),
            "remaps" => remaps(),
            "maps" => many_maps(n, size),
            "pair" => pair(n),
            "brks" => brks(),
            "badbrks" => {
                (0..n).for_each(|_| assert!(brk_here(1, 0) > 1, "brk(1) must fail"));
                "done".into()
            }
            "exec" => return exec(),
            "shms" => shms(n as u64),
            "badshms" => {
                for _ in 0..n {
                    assert_eq!(call(libc::SYS_shmdt, [1, 0, 0, 0, 0, 0]), -22, "shmdt(1)");
                }
                "done".into()
            }
            "hold" => self.hold(n),
            #[cfg(target_arch = "x86_64")]
            "narrow" => narrow(),
            _ => return None,
        })
    }
}

fn temporary(name: &str) -> PathBuf {
    std::env::temp_dir().join(format!("snoops-{}-{name}", std::process::id()))
}

fn file_of(path: &PathBuf, bytes: usize) -> File {
    fs::write(path, vec![7; bytes]).expect("a file");
    File::options().read(true).write(true).open(path).expect("it was just made")
}

fn memfd(name: &str, pages: usize) -> File {
    let name = CString::new(name).expect("no zero in it");
    let fd = rustix::fs::memfd_create(&name, rustix::fs::MemfdFlags::empty()).expect("memfd");
    rustix::fs::ftruncate(&fd, (pages * page()) as u64).expect("ftruncate");
    File::from(fd)
}

/// 23 calls of mmap behind the mark, with every kind of file.
fn mmaps() -> String {
    let pg = page() as u64;
    let (disk_path, folder) = (temporary("disk"), temporary("folder"));
    let disk = file_of(&disk_path, 5 * page());
    let read_only = File::open(&disk_path).expect("it was just made");
    let gone_path = temporary("gone");
    let gone = file_of(&gone_path, page());
    fs::remove_file(&gone_path).expect("removing it");
    let deep = folder.join("a name with blanks/b/c/d");
    fs::create_dir_all(&deep).expect("folders");
    let nested = file_of(&deep.join("x".repeat(200)), page());
    let posix_path = PathBuf::from(format!("/dev/shm/snoops-{}", std::process::id()));
    let posix = file_of(&posix_path, page());
    let memfd = memfd("snoop it", 13);
    let zero = File::open("/dev/zero").expect("/dev/zero");
    let root = File::open("/").expect("/");
    let (socket, _other) = UnixStream::pair().expect("a pair of sockets");
    let fd = |file: &dyn std::os::fd::AsRawFd| file.as_raw_fd() as u64;

    let mut list = List::new();
    list.make(MMAP, &[0, MARK, 0, 0, NO_FD, 0], ["---", "0"]);
    let mut map = |address, bytes, prot, flags, fd, offset, words| {
        list.make(MMAP, &[address, bytes, prot, flags, fd, offset], words) as u64
    };
    map(0, 3 * pg, R | W, PRIVATE | ANON, NO_FD, 0, ["rw-", "PRIVATE|ANONYMOUS"]);
    map(0, 5 * pg, R | W, SHARED | ANON, NO_FD, 0, ["rw-", "SHARED|ANONYMOUS"]);
    let noreserve = libc::MAP_NORESERVE as u64;
    let reserved = map(
        0,
        7 * pg,
        0,
        PRIVATE | ANON | noreserve,
        NO_FD,
        0,
        ["---", "PRIVATE|ANONYMOUS|NORESERVE"],
    );
    map(0, 10_007, R, PRIVATE, fd(&disk), 0, ["r--", "PRIVATE"]);
    map(0, 2 * pg, R | W, SHARED, fd(&disk), 3 * pg, ["rw-", "SHARED"]);
    map(0, 13 * pg, R | W, SHARED, fd(&memfd), 0, ["rw-", "SHARED"]);
    map(0, 17 * pg, R | W, PRIVATE, fd(&zero), 0, ["rw-", "PRIVATE"]);
    map(0, pg, R, PRIVATE, fd(&gone), 0, ["r--", "PRIVATE"]);
    map(0, pg, R | X, PRIVATE, fd(&nested), 0, ["r-x", "PRIVATE"]);
    let stack = libc::MAP_STACK as u64;
    map(0, 19 * pg, R | W, PRIVATE | ANON | stack, NO_FD, 0, ["rw-", "PRIVATE|ANONYMOUS|STACK"]);
    let populate = libc::MAP_POPULATE as u64;
    map(
        0,
        23 * pg,
        R | W,
        PRIVATE | ANON | populate,
        NO_FD,
        0,
        ["rw-", "PRIVATE|ANONYMOUS|POPULATE"],
    );
    let fixed = libc::MAP_FIXED as u64;
    map(reserved, pg, R, PRIVATE | ANON | fixed, NO_FD, 0, ["r--", "PRIVATE|FIXED|ANONYMOUS"]);
    let careful = libc::MAP_FIXED_NOREPLACE as u64;
    map(
        reserved,
        pg,
        R,
        PRIVATE | ANON | careful,
        NO_FD,
        0,
        ["r--", "PRIVATE|ANONYMOUS|FIXED_NOREPLACE"],
    );
    map(0, 0, R, PRIVATE | ANON, NO_FD, 0, ["r--", "PRIVATE|ANONYMOUS"]);
    map(0, pg, R, PRIVATE, 999, 0, ["r--", "PRIVATE"]);
    map(0, 1 << 62, R, PRIVATE | ANON, NO_FD, 0, ["r--", "PRIVATE|ANONYMOUS"]);
    map(0, pg, R | W, SHARED, fd(&read_only), 0, ["rw-", "SHARED"]);
    map(0, pg, R, PRIVATE, fd(&disk), 1, ["r--", "PRIVATE"]);
    map(0, pg, R, SHARED, fd(&root), 0, ["r--", "SHARED"]);
    map(0, pg, R, SHARED, fd(&socket), 0, ["r--", "SHARED"]);
    map(0, pg, R | W | X, SHARED, fd(&posix), 0, ["rwx", "SHARED"]);
    let huge = (libc::MAP_HUGETLB | libc::MAP_HUGE_2MB) as u64;
    map(
        0,
        2 << 20,
        R,
        PRIVATE | ANON | huge,
        NO_FD,
        0,
        ["r--", "PRIVATE|ANONYMOUS|HUGETLB|HUGE_2MB"],
    );
    map(
        0,
        29 * pg,
        0x40,
        0x200 | PRIVATE | ANON,
        NO_FD,
        0,
        ["---|0x40", "PRIVATE|ANONYMOUS|0x200"],
    );
    // What the kernel calls these files, while they are open.
    let answer = list.answer(|made| {
        let link = fs::read_link(format!("/proc/self/fd/{}", made.args[4] as i32)).ok();
        link.filter(|_| made.args[3] & ANON == 0).map(|link| link.to_string_lossy().into_owned())
    });
    for made in list.0.iter().filter(|made| made.result >= 0) {
        call(libc::SYS_munmap, [made.result as u64, made.args[1], 0, 0, 0, 0]);
    }
    for path in [disk_path, posix_path] {
        let _ = fs::remove_file(path);
    }
    let _ = fs::remove_dir_all(folder);
    answer
}

/// 23 calls of mremap and as many of munmap, each kind with failing ones.
fn remaps() -> String {
    let pg = page() as u64;
    let may_move = libc::MREMAP_MAYMOVE as u64;
    let fixed = libc::MREMAP_FIXED as u64;
    let mut list = List::new();
    list.make(MMAP, &[0, MARK, 0, 0, NO_FD, 0], ["---", "0"]);
    let words = ["rw-", "PRIVATE|ANONYMOUS"];
    for i in 0..18 {
        let bytes = (i + 3) * pg;
        let at = list.make(MMAP, &[0, bytes, R | W, PRIVATE | ANON, NO_FD, 0], words) as u64;
        let new = match i % 3 {
            // grows, shrinks, moves
            0 => list.make(MREMAP, &[at, bytes, bytes + 31 * pg, may_move, 0], ["", "MAYMOVE"]),
            1 => list.make(MREMAP, &[at, bytes, 2 * pg, 0, 0], ["", "0"]),
            _ => {
                let room = list.make(
                    MMAP,
                    &[0, bytes, 0, PRIVATE | ANON, NO_FD, 0],
                    ["---", "PRIVATE|ANONYMOUS"],
                ) as u64;
                list.make(
                    MREMAP,
                    &[at, bytes, bytes, may_move | fixed, room],
                    ["", "MAYMOVE|FIXED"],
                )
            }
        };
        let bytes = match i % 3 {
            0 => bytes + 31 * pg,
            1 => 2 * pg,
            _ => bytes,
        };
        list.make(MUNMAP, &[new as u64, bytes], ["", ""]);
    }
    for wrong in 0..5 {
        // Not mapped, unaligned, no size, flags that do not go together.
        let args = [
            [8 * pg, pg, 2 * pg, may_move, 0],
            [8 * pg + 1, pg, 2 * pg, may_move, 0],
            [8 * pg, pg, 0, may_move, 0],
            [8 * pg, pg, pg, fixed, 9 * pg],
            [8 * pg, pg, 2 * pg, 0x100, 0],
        ][wrong];
        list.make(MREMAP, &args, ["", ["MAYMOVE", "MAYMOVE", "MAYMOVE", "FIXED", "0x100"][wrong]]);
        let args = [[1, pg], [pg, 0], [1 << 63, pg], [3, 3], [pg, 1 << 62]][wrong];
        list.make(MUNMAP, &args, ["", ""]);
    }
    list.answer(|_| None)
}

/// So many mappings of so many bytes; made and given back.
fn many_maps(n: usize, bytes: usize) -> String {
    for _ in 0..n {
        let flags = PRIVATE | ANON | libc::MAP_NORESERVE as u64;
        let at = call(libc::SYS_mmap, [0, bytes as u64, 0, flags, NO_FD, 0]);
        assert!(at > 0, "mmap: {at}");
        assert_eq!(call(libc::SYS_munmap, [at as u64, bytes as u64, 0, 0, 0, 0]), 0, "munmap");
    }
    "done".into()
}

/// Two threads at once, with sizes that tell them apart: what each was given.
fn pair(n: usize) -> String {
    let lists = [1u64, 2].map(|which| {
        thread::spawn(move || {
            let mut results = Vec::with_capacity(n);
            for i in 0..n as u64 {
                let bytes = (which << 30) + (i + 1) * page() as u64;
                let flags = PRIVATE | ANON | libc::MAP_NORESERVE as u64;
                let at = call(libc::SYS_mmap, [0, bytes, 0, flags, NO_FD, 0]);
                results.push(json!({ "bytes": bytes, "ret": at }));
                call(libc::SYS_munmap, [at as u64, bytes, 0, 0, 0, 0]);
            }
            // SAFETY: no arguments.
            json!({ "tid": unsafe { libc::gettid() }, "calls": results })
        })
    });
    lists.map(|list| list.join().expect("a thread")).into_iter().collect::<Value>().to_string()
}

/// Where a list of return addresses begins: as `brk_here` was called by them.
fn chain(callers: &[u64]) -> Vec<[u64; 2]> {
    let mut frames: Vec<[u64; 2]> = callers.iter().map(|&caller| [0, caller]).collect();
    for i in 1..frames.len() {
        frames[i - 1][0] = &raw const frames[i] as u64;
    }
    frames
}

/// brk from this very function, as the frame pointer says it was called.
#[inline(never)]
fn brk_here(to: u64, frames: u64) -> u64 {
    let result: u64;
    // SAFETY: the callers move the end of the heap up, and back to where it
    // was. The frame pointer is what it was again when the code ends.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        asm!(
            "xchg rbp, {frames}",
            "syscall",
            "xchg rbp, {frames}",
            frames = inout(reg) frames => _,
            inlateout("rax") libc::SYS_brk => result,
            in("rdi") to,
            out("rcx") _,
            out("r11") _,
        );
    }
    // SAFETY: the same.
    #[cfg(target_arch = "aarch64")]
    unsafe {
        asm!(
            "mov {kept}, x29", "mov x29, {frames}", "svc 0", "mov x29, {kept}",
            kept = out(reg) _, frames = in(reg) frames,
            in("x8") libc::SYS_brk, inlateout("x0") to => result,
        );
    }
    result
}

#[inline(never)]
fn brk_first(n: u64) -> u64 {
    std::hint::black_box(n) + 1
}

#[inline(never)]
fn brk_second(n: u64) -> u64 {
    std::hint::black_box(n) + 2
}

/// Whatever the two are called from, their code is there.
fn callers() -> [u64; 2] {
    let first = std::hint::black_box(brk_first as fn(u64) -> u64) as usize as u64;
    let second = std::hint::black_box(brk_second as fn(u64) -> u64) as usize as u64;
    [first + 1, second + 1]
}

/// 23 calls of brk that ask for a place, from three stacks, and some that only
/// ask where it is. The heap ends where it ended before.
fn brks() -> String {
    let [first, second] = callers();
    let chains = [chain(&[first]), chain(&[second]), chain(&[first, second, first])];
    let names = ["brk_first", "brk_second", "brk_first brk_second brk_first"];
    let mut made = Vec::with_capacity(32);
    let mut ask = |stack: usize, to: u64, old: u64| {
        let now = brk_here(to, chains[stack].as_ptr() as u64);
        made.push((names[stack], old, to, now));
        now
    };
    let base = brk_here(0, 0);
    let mut at = base;
    for i in 0..17u64 {
        let to = if i % 4 == 3 { at - 1009 } else { at + 4099 * (i + 1) };
        at = ask((i % 3) as usize, to, at);
        if i % 5 == 0 {
            assert_eq!(brk_here(0, 0), at, "only asked");
        }
    }
    for (i, wrong) in [1 << 60, 1, 1 << 46, u64::MAX, 4096].into_iter().enumerate() {
        ask(i % 3, wrong, at);
    }
    ask(1, base, at);
    assert_eq!(made.len(), 23);
    let list = made.iter().map(|(stack, old, asked, now)| {
        json!({ "stack": stack, "old": old, "asked": asked, "now": now })
    });
    list.collect::<Value>().to_string()
}

/// The same program anew, as a worker.
fn exec() -> Option<String> {
    use std::os::unix::process::CommandExt as _;
    let error = std::process::Command::new("/proc/self/exe").arg(super::FLAG).exec();
    panic!("exec: {error}")
}

const SHMGET: (&str, libc::c_long) = ("shmget", libc::SYS_shmget);
const SHMAT: (&str, libc::c_long) = ("shmat", libc::SYS_shmat);
const SHMDT: (&str, libc::c_long) = ("shmdt", libc::SYS_shmdt);
const SHMCTL: (&str, libc::c_long) = ("shmctl", libc::SYS_shmctl);

/// 23 calls of each kind at least; `base`: of the keys.
fn shms(base: u64) -> String {
    let mut list = List::new();
    let mut room = [0u8; 512];
    let buffer = room.as_mut_ptr() as u64;
    let id_of = |result: i64| result as u64;
    let mut ids = [0u64; 18];
    for i in 0..18u64 {
        let (key, flags, words) = match i % 3 {
            0 => (0, 0o600, ["PRIVATE", "0600"]),
            1 => (base + i, 0o1640, ["", "0640|CREAT"]),
            _ => (base + i, 0o3604, ["", "0604|CREAT|EXCL"]),
        };
        ids[i as usize] = id_of(list.make(SHMGET, &[key, 10_007 * (i + 1), flags], words));
    }
    // There already; no such; larger than it is; no size; too large.
    list.make(SHMGET, &[base + 2, 1, 0o3600], ["", "0600|CREAT|EXCL"]);
    list.make(SHMGET, &[base + 99, 1, 0], ["", "0000"]);
    list.make(SHMGET, &[base + 1, 1 << 40, 0], ["", "0000"]);
    list.make(SHMGET, &[0, 0, 0o1600], ["PRIVATE", "0600|CREAT"]);
    list.make(SHMGET, &[0, 1 << 62, 0o1600], ["PRIVATE", "0600|CREAT"]);
    // There, and smaller than asked for: what it really has is told.
    list.make(SHMGET, &[base + 1, 5, 0o400], ["", "0400"]);

    let mut places = [0u64; 18];
    for (i, id) in ids.iter().enumerate() {
        let (flags, word) = if i % 2 == 0 { (0, "0") } else { (0o10000, "RDONLY") };
        places[i] = list.make(SHMAT, &[*id, 0, flags], ["", word]) as u64;
    }
    let odd = places[0] + 1;
    list.make(SHMAT, &[u32::MAX.into(), 0, 0], ["", "0"]);
    list.make(SHMAT, &[ids[0], odd, 0], ["", "0"]);
    list.make(SHMAT, &[ids[0], 0, 0o40000], ["", "REMAP"]);
    list.make(SHMAT, &[0x7fff_fff0, 0, 0o20000], ["", "RND"]);
    list.make(SHMAT, &[ids[0], places[1], 0o100000], ["", "EXEC"]);

    for id in &ids {
        list.make(SHMCTL, &[*id, 0x102, buffer], ["IPC_STAT", ""]);
    }
    list.make(SHMCTL, &[ids[3], 11, 0], ["SHM_LOCK", ""]);
    list.make(SHMCTL, &[ids[3], 12, 0], ["SHM_UNLOCK", ""]);
    list.make(SHMCTL, &[0, 14, buffer], ["SHM_INFO", ""]);
    list.make(SHMCTL, &[ids[0], 77, buffer], ["77", ""]);
    list.make(SHMCTL, &[u32::MAX.into(), 2, buffer], ["IPC_STAT", ""]);
    list.make(SHMCTL, &[ids[0], 2, 1], ["IPC_STAT", ""]);

    for place in places {
        list.make(SHMDT, &[place], ["", ""]);
    }
    for wrong in [0, odd, places[0], 1 << 63, buffer & !0xfff] {
        list.make(SHMDT, &[wrong], ["", ""]);
    }
    for id in &ids {
        list.make(SHMCTL, &[*id, 0, 0], ["IPC_RMID", ""]);
    }
    list.make(SHMCTL, &[ids[5], 0, 0], ["IPC_RMID", ""]);
    list.answer(|_| None)
}

impl State {
    /// One object of each kind, of which `n` pages are written; until it ends.
    fn hold(&mut self, n: usize) -> String {
        let pages = n + 7;
        let bytes = (pages * page()) as u64;
        let pid = std::process::id();
        let fill = |file: &File| {
            use std::os::unix::fs::FileExt as _;
            file.write_all_at(&vec![7; n * page()], 0).expect("writing");
            file.set_len(bytes).expect("its size");
        };
        let mut keep = |file: &File, fd: bool| {
            let at = call(libc::SYS_mmap, [0, bytes, R, SHARED, file.as_raw_fd() as u64, 0]);
            assert!(at > 0, "mmap: {at}");
            if fd {
                self.files.push(file.try_clone().expect("dup"));
            }
        };
        let name = |what: &str| format!("snoop-{what}-{pid}");
        let mapped = memfd(&name("mapped"), 1);
        fill(&mapped);
        keep(&mapped, false);
        let open = memfd(&name("open"), 1);
        fill(&open);
        let both = memfd(&name("both"), 1);
        fill(&both);
        keep(&both, true);
        let posix_path = PathBuf::from("/dev/shm").join(name("posix"));
        let posix = file_of(&posix_path, 1);
        fill(&posix);
        keep(&posix, false);
        let lost_path = PathBuf::from("/dev/shm").join(name("lost"));
        let lost = file_of(&lost_path, 1);
        fill(&lost);
        fs::remove_file(&lost_path).expect("removing it");
        keep(&lost, false);
        let disk_path = std::env::current_dir().unwrap_or_default().join(name("disk"));
        let disk = file_of(&disk_path, 1);
        fill(&disk);
        fs::remove_file(&disk_path).expect("removing it");
        keep(&disk, false);
        self.files.push(open);

        let shared = call(libc::SYS_mmap, [0, bytes, R | W, SHARED | ANON, NO_FD, 0]);
        let id = call(libc::SYS_shmget, [0, bytes - 11, 0o1600, 0, 0, 0]);
        let at = [0, 1].map(|_| call(libc::SYS_shmat, [id as u64, 0, 0, 0, 0, 0]));
        assert!(shared > 0 && id >= 0 && at.iter().all(|&at| at > 0), "{shared} {id} {at:?}");
        for start in [shared, at[0]] {
            let region = Region { at: start as *mut u8, bytes: n * page(), _backing: None };
            region.write();
            // It stays mapped until the process ends.
            std::mem::forget(region);
        }
        // Goes with the last process that has it attached.
        assert_eq!(call(libc::SYS_shmctl, [id as u64, 0, 0, 0, 0, 0]), 0, "IPC_RMID");
        json!({ "bytes": bytes, "id": id, "posix": posix_path }).to_string()
    }
}

/// Calls as a 32-bit program makes them: what was asked for and what came.
#[cfg(target_arch = "x86_64")]
fn narrow() -> String {
    let mut list = List::new();
    let mut make = |name, number, args: [u32; 6], words| {
        assert!(list.0.len() < list.0.capacity());
        let result = int80(number, args);
        list.0.push(Made { name, args: args.map(u64::from), words, result });
        result
    };
    let pg = page() as u32;
    let rw = (R | W) as u32;
    let flags = (PRIVATE | ANON) as u32;
    // mmap2: the offset in pages
    let disk_path = temporary("narrow");
    let disk = file_of(&disk_path, 5 * page());
    let at = make("mmap2", 192, [0, 31 * pg, rw, flags, u32::MAX, 0], ["rw-", "PRIVATE|ANONYMOUS"]);
    let fd = disk.as_raw_fd() as u32;
    make("mmap2", 192, [0, pg, 1, PRIVATE as u32, fd, 3], ["r--", "PRIVATE"]);
    // The old call takes its arguments from memory.
    let given = [0, 37 * pg, 1, flags, u32::MAX, 0];
    // SAFETY: the mapping made above, which is as long and below 4 GiB.
    unsafe { (at as u32 as usize as *mut [u32; 6]).write_volatile(given) };
    make("mmap", 90, [at as u32, 0, 0, 0, 0, 0], ["r--", "PRIVATE|ANONYMOUS"]);
    let at = make("mremap", 163, [at as u32, 31 * pg, 41 * pg, 1, 0, 0], ["", "MAYMOVE"]);
    make("munmap", 91, [at as u32, 41 * pg, 0, 0, 0, 0], ["", ""]);
    make("munmap", 91, [1, pg, 0, 0, 0, 0], ["", ""]);
    make("brk", 45, [4099, 0, 0, 0, 0, 0], ["", ""]);
    let id = make("shmget", 395, [0, 10_007, 0o1600, 0, 0, 0], ["PRIVATE", "0600|CREAT"]) as u32;
    let place = make("shmat", 397, [id, 0, 0, 0, 0, 0], ["", "0"]) as u32;
    make("shmdt", 398, [place, 0, 0, 0, 0, 0], ["", ""]);
    make("shmctl", 396, [id, 0, 0, 0, 0, 0], ["IPC_RMID", ""]);
    // The same through one call, whose shmat puts the address into memory.
    let flags = (PRIVATE | ANON) as u32;
    let out = int80(192, [0, pg, rw, flags, u32::MAX, 0]) as u32;
    let id =
        make("ipc-shmget", 117, [23, 0, 20_011, 0o1600, 0, 0], ["PRIVATE", "0600|CREAT"]) as u32;
    make("ipc-shmat", 117, [21, id, 0, out, 0, 0], ["", "0"]);
    // SAFETY: the mapping made above.
    let place = unsafe { (out as usize as *const u32).read_volatile() };
    make("ipc-shmdt", 117, [22, 0, 0, 0, place, 0], ["", ""]);
    make("ipc-shmctl", 117, [24, id, 0, 0, 0, 0], ["IPC_RMID", ""]);
    let _ = fs::remove_file(disk_path);
    let answer: Value = serde_json::from_str(&list.answer(|_| None)).expect("our own");
    json!({ "calls": answer, "place": place }).to_string()
}

/// `int $0x80`: a system call with the numbers and registers of 32-bit programs.
#[cfg(target_arch = "x86_64")]
fn int80(number: u32, args: [u32; 6]) -> i64 {
    let given = [number, args[0], args[1], args[2], args[3], args[4], args[5]];
    let result: i32;
    // SAFETY: registers are restored; the calls only map new memory or give back
    // what they mapped.
    unsafe {
        asm!(
            "push rbx",
            "push rbp",
            "mov eax, [r12]",
            "mov ebx, [r12 + 4]",
            "mov ecx, [r12 + 8]",
            "mov edx, [r12 + 12]",
            "mov esi, [r12 + 16]",
            "mov edi, [r12 + 20]",
            "mov ebp, [r12 + 24]",
            "int 0x80",
            "pop rbp",
            "pop rbx",
            in("r12") given.as_ptr(),
            out("eax") result,
            out("ecx") _,
            out("edx") _,
            out("esi") _,
            out("edi") _,
            out("r8") _,
            out("r9") _,
            out("r10") _,
            out("r11") _,
        );
    }
    // An address may have the highest bit of 32.
    if (-4095..0).contains(&result) { result.into() } else { result.cast_unsigned().into() }
}

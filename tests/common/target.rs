//! The programs of `tests/targets`: one set of orders over every kind of
//! allocator. Each answer says what the program then holds.

use std::collections::BTreeSet;
use std::env;
use std::fs;
use std::os::unix::fs::chroot;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::path::PathBuf;
use std::process;
use std::process::Command;

use rustix::mount::MountFlags;
use rustix::mount::MountPropagationFlags;
use rustix::mount::UnmountFlags;
use rustix::mount::mount;
use rustix::mount::mount_change;
use rustix::mount::unmount;
use rustix::thread::UnshareFlags;
use rustix::thread::unshare_unsafe;

use super::worker::Worker;

/// What a target holds by its own account.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Account {
    /// On the heap, in bytes asked for.
    pub bytes: u64,
    pub blocks: u64,
    /// Everything allocated since it started, freed or not.
    pub seen_bytes: u64,
    pub seen_blocks: u64,
    /// Mappings of its own, by sort.
    pub map_bytes: u64,
    pub file_bytes: u64,
    pub reserved_bytes: u64,
    /// What the last order answered besides.
    pub extra: u64,
}

impl Account {
    fn parse(answer: &str) -> Self {
        let numbers: Vec<u64> = answer.split(' ').map_while(|word| word.parse().ok()).collect();
        let [bytes, blocks, seen_bytes, seen_blocks, map_bytes, file_bytes, reserved_bytes, extra] =
            numbers[..]
        else {
            panic!("the target answered {answer:?}")
        };
        Self {
            bytes,
            blocks,
            seen_bytes,
            seen_blocks,
            map_bytes,
            file_bytes,
            reserved_bytes,
            extra,
        }
    }
}

/// The folder of the built targets.
pub fn folder() -> PathBuf {
    env::var_os("MEM_WATCHER_TARGETS")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("target/targets"), PathBuf::from)
}

/// The program of that name.
pub fn program(name: &str) -> String {
    let path = folder().join(name);
    assert!(path.exists(), "no {}: tools/test builds it", path.display());
    path.to_str().expect("a plain path").to_owned()
}

/// A running target. Ended when dropped.
pub struct Target {
    worker: Worker,
    /// What it held after its last order.
    pub account: Account,
}

impl Target {
    /// Starts one and waits until it is ready.
    pub fn start(name: &str) -> Self {
        let (worker, greeting) = Worker::spawn(&mut Command::new(program(name)));
        Self { worker, account: Account::parse(&greeting) }
    }

    /// Starts one where nobody else can see its files: below a root in a file
    /// system that is mounted for it alone, as in a container.
    pub fn start_in_own_root(name: &str) -> Self {
        let files = {
            let model = Self::start(name);
            let maps = fs::read_to_string(format!("/proc/{}/maps", model.pid())).expect("maps");
            maps.lines()
                .filter_map(|line| line.find('/').map(|from| PathBuf::from(&line[from..])))
                .collect::<BTreeSet<_>>()
        };
        let root = env::temp_dir().join(format!("root-{}-{name}", process::id()));
        fs::create_dir(&root).expect("a folder");
        mount("root", &root, "tmpfs", MountFlags::empty(), None).expect("a file system");
        let loader = PathBuf::from("/lib64/ld-linux-x86-64.so.2");
        for file in files.into_iter().chain([loader]) {
            let copy = root.join(file.strip_prefix("/").expect("a whole path"));
            fs::create_dir_all(copy.parent().expect("a folder")).expect("folders");
            fs::copy(&file, &copy).expect("a copy");
        }
        let mut command = Command::new(program(name));
        let inside = root.clone();
        let isolate = move || {
            // SAFETY: only the file systems are unshared, before anything else runs.
            unsafe { unshare_unsafe(UnshareFlags::NEWNS)? };
            mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
            chroot(&inside)?;
            env::set_current_dir("/")
        };
        // SAFETY: nothing but system calls between fork and exec.
        unsafe { command.pre_exec(isolate) };
        let (worker, greeting) = Worker::spawn(&mut command);
        unmount(&root, UnmountFlags::DETACH).expect("unmounting");
        fs::remove_dir(&root).expect("an empty folder");
        Self { worker, account: Account::parse(&greeting) }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.worker.pid()
    }

    /// Has it do something it can.
    pub fn ask(&mut self, order: &str) -> Account {
        self.try_ask(order).unwrap_or_else(|| panic!("the target knows no {order:?}"))
    }

    /// The same; `None`: what the order needs is not in that allocator.
    pub fn try_ask(&mut self, order: &str) -> Option<Account> {
        match self.worker.ask(order).as_str() {
            "unknown" => None,
            answer => {
                self.account = Account::parse(answer);
                Some(self.account)
            }
        }
    }

    /// Kills it and waits for its end.
    pub fn kill(self) {
        self.worker.kill();
    }

    /// Lets it exit and waits for that.
    pub fn end(self) {
        self.worker.end();
    }
}

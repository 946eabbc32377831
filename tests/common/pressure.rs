//! Scarce memory, for guests and small cgroups only: cgroups with a limit, and
//! pages of the guest's disk.

use std::ffi::CString;
use std::fs;
use std::fs::File;
use std::fs::OpenOptions;
use std::io;
use std::io::Write as _;
use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::path::PathBuf;
use std::process;

use super::kernels::is_guest;

/// The blank disk of a guest, twice as large as its memory.
pub const DISK: &str = "/dev/vda";

/// A second one, which takes no more than 8 MiB of writes a second.
pub const SLOW_DISK: &str = "/dev/vdb";

/// A memory cgroup of the test's own. Removed when dropped, if it is empty.
pub struct Cgroup {
    folder: PathBuf,
    /// cgroup v1, on some of the machines the tests run on themselves.
    v1: bool,
}

impl Cgroup {
    /// Makes one; `None`: this machine has no memory controller, or lets nobody
    /// use it.
    pub fn create(name: &str) -> Option<Self> {
        let name = format!("mem_watcher-{}-{name}", process::id());
        let (root, v1) = [("/sys/fs/cgroup", false), ("/sys/fs/cgroup/memory", true)]
            .into_iter()
            .find(|(root, v1)| {
            let files = ["memory.limit_in_bytes", "cgroup.subtree_control"];
            let file = files[usize::from(!v1)];
            let text = fs::read_to_string(Path::new(root).join(file));
            text.is_ok_and(|text| *v1 || text.split_whitespace().any(|word| word == "memory"))
        })?;
        let folder = Path::new(root).join(name);
        fs::create_dir(&folder).ok()?;
        Some(Self { folder, v1 })
    }

    /// Its folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Its path as `/proc/PID/cgroup` shows it.
    pub fn path(&self) -> String {
        let root = if self.v1 { "/sys/fs/cgroup/memory" } else { "/sys/fs/cgroup" };
        format!("/{}", self.folder.strip_prefix(root).expect("below the root").display())
    }

    /// Whether it is one of v2, which has more to set and to read.
    pub fn is_v2(&self) -> bool {
        !self.v1
    }

    /// Writes one of its files.
    pub fn set(&self, file: &str, value: impl ToString) -> io::Result<()> {
        fs::write(self.folder.join(file), value.to_string())
    }

    /// Reads one of its files.
    pub fn get(&self, file: &str) -> io::Result<String> {
        fs::read_to_string(self.folder.join(file))
    }

    /// The most memory it may have.
    pub fn limit(&self, bytes: u64) -> io::Result<()> {
        self.set(if self.v1 { "memory.limit_in_bytes" } else { "memory.max" }, bytes)
    }

    /// Moves a process into it.
    pub fn add(&self, pid: u32) -> io::Result<()> {
        self.set("cgroup.procs", pid)
    }

    /// A line of `memory.stat` or `memory.events`; `None`: there is no such line.
    pub fn number(&self, file: &str, name: &str) -> Option<u64> {
        let text = self.get(file).ok()?;
        text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok())
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.folder);
    }
}

/// Sets a file of the kernel, and puts it back.
pub struct Setting(String, String);

impl Setting {
    /// `None`: there is no such file, or it may not be written.
    pub fn of(path: impl Into<String>, value: &str) -> Option<Self> {
        let path = path.into();
        let text = fs::read_to_string(&path).ok()?;
        // The choice in force is in brackets.
        let old = match text.split_once('[') {
            Some((_, rest)) => rest.split(']').next()?.to_owned(),
            None => text.trim().to_owned(),
        };
        fs::write(&path, value).ok()?;
        Some(Self(path, old))
    }
}

impl Drop for Setting {
    fn drop(&mut self) {
        let _ = fs::write(&self.0, &self.1);
    }
}

/// No swap for a while.
pub struct NoSwap(Vec<String>);

impl NoSwap {
    /// Switches off what there is.
    pub fn begin() -> io::Result<Self> {
        assert!(is_guest(), "only in a guest");
        let areas = fs::read_to_string("/proc/swaps")?;
        let mut off = Self(Vec::new());
        for area in areas.lines().skip(1).filter_map(|line| line.split_whitespace().next()) {
            let path = CString::new(area)?;
            // SAFETY: a path.
            if unsafe { libc::swapoff(path.as_ptr()) } != 0 {
                return Err(io::Error::last_os_error());
            }
            off.0.push(area.to_owned());
        }
        Ok(off)
    }
}

impl Drop for NoSwap {
    fn drop(&mut self) {
        for area in &self.0 {
            let path = CString::new(area.as_str()).expect("it came from one");
            // SAFETY: a path, of what was an area before.
            unsafe { libc::swapon(path.as_ptr(), 0) };
        }
    }
}

/// Writes so much of the guest's disk, without waiting for it: dirty pages.
pub fn write_disk(mib: usize) {
    assert!(is_guest(), "only in a guest");
    let mut disk = OpenOptions::new().write(true).open(DISK).expect("the disk");
    let piece = vec![0xa5; 1 << 20];
    for _ in 0..mib {
        disk.write_all(&piece).expect("writing the disk");
    }
}

/// Writes so much of the guest's slow disk and has all of it given to the device at
/// once, without waiting for that: pages in writeback, as long as the file is open.
/// They are marked to be reclaimed as soon as that ends.
pub fn write_slow_disk(mib: usize) -> File {
    assert!(is_guest(), "only in a guest");
    let mut disk = OpenOptions::new().write(true).open(SLOW_DISK).expect("the slow disk");
    let piece = vec![0x5a; 1 << 20];
    for _ in 0..mib {
        disk.write_all(&piece).expect("writing the slow disk");
    }
    // The mark is for what is dirty and so cannot be dropped (deactivate_file_folio(),
    // mm/swap.c; since 5.11 only before writeback, find_lock_entries(), mm/filemap.c).
    drop_caches();
    // SAFETY: no memory; 0 to 0 is all of the file.
    let begun =
        unsafe { libc::sync_file_range(disk.as_raw_fd(), 0, 0, libc::SYNC_FILE_RANGE_WRITE) };
    assert_eq!(begun, 0, "sync_file_range: {}", io::Error::last_os_error());
    disk
}

/// Forgets clean page cache, so that what follows starts alike.
pub fn drop_caches() {
    assert!(is_guest(), "only in a guest");
    fs::write("/proc/sys/vm/drop_caches", "3").expect("drop_caches");
}

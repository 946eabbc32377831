//! Readers of /proc and /sys with an injectable root. Parsing only; where the
//! procfs crate has a parser, that one is used.

use std::collections::HashMap;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::path::PathBuf;

use ::procfs::FromRead as _;
use ::procfs::process::Process;
use ::procfs::process::Status;

use crate::error::Context as _;
use crate::error::Error;
use crate::error::Result;

/// Where `/proc` and `/sys` are.
#[derive(Clone, Debug)]
pub struct ProcFs {
    root: PathBuf,
}

impl Default for ProcFs {
    fn default() -> Self {
        Self::new("/")
    }
}

/// Counters by name, as `/proc/vmstat` lists them.
pub type Counters = HashMap<String, u64>;

/// Time lost to memory pressure since boot (`/proc/pressure/memory`,
/// Documentation/accounting/psi.rst), in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pressure {
    /// At least one task was stalled.
    pub some_us: u64,
    /// All tasks that were not idle were stalled.
    pub full_us: u64,
}

impl ProcFs {
    /// Readers below `root`, which holds `proc` and `sys`.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    fn read(&self, path: &str) -> Result<String> {
        fs::read_to_string(self.root.join(path)).context(|| format!("reading /{path}"))
    }

    /// `/proc/vmstat`; units are those of each counter (mostly pages).
    ///
    /// # Errors
    /// It cannot be read.
    pub fn vmstat(&self) -> Result<Counters> {
        Ok(counters(&self.read("proc/vmstat")?))
    }

    /// `/sys/devices/system/node/node<nid>/vmstat`.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn node_vmstat(&self, nid: u32) -> Result<Counters> {
        Ok(counters(&self.read(&format!("sys/devices/system/node/node{nid}/vmstat"))?))
    }

    /// `/proc/meminfo`, in bytes.
    ///
    /// # Errors
    /// It cannot be read or parsed.
    pub fn meminfo(&self) -> Result<::procfs::Meminfo> {
        let path = self.root.join("proc/meminfo");
        ::procfs::Meminfo::from_file(&path).map_err(|error| other(&path, &error))
    }

    /// `/proc/pressure/memory`; `None` where the kernel has no PSI, or has it
    /// switched off.
    pub fn pressure(&self) -> Option<Pressure> {
        pressure(&self.read("proc/pressure/memory").ok()?)
    }

    /// `memory.pressure` of a cgroup v2, by the path `/proc/PID/cgroup` shows.
    pub fn cgroup_pressure(&self, path: &str) -> Option<Pressure> {
        let folder = self.cgroup2_mount()?.join(path.trim_start_matches('/'));
        pressure(&fs::read_to_string(folder.join("memory.pressure")).ok()?)
    }

    /// The numbers in a list such as `0-3,8`, from a file below `/sys`.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn list(&self, path: &str) -> Result<Vec<u32>> {
        Ok(list(&self.read(path)?))
    }

    /// One more than the highest CPU number this machine can have.
    ///
    /// # Errors
    /// `/sys` cannot be read.
    pub fn possible_cpus(&self) -> Result<u32> {
        let cpus = self.list("sys/devices/system/cpu/possible")?;
        Ok(cpus.into_iter().max().map_or(1, |highest| highest + 1))
    }

    /// The CPUs in use.
    ///
    /// # Errors
    /// `/sys` cannot be read.
    pub fn online_cpus(&self) -> Result<Vec<u32>> {
        self.list("sys/devices/system/cpu/online")
    }

    /// The memory nodes in use, `[0]` on a machine without NUMA.
    pub fn nodes(&self, which: &str) -> Vec<u32> {
        match self.list(&format!("sys/devices/system/node/{which}")) {
            Ok(nodes) if !nodes.is_empty() => nodes,
            _ => vec![0],
        }
    }

    /// How many bytes one of the blocks has that memory is switched on and off
    /// by, and on which node each is (Documentation/admin-guide/mm/memory-hotplug.rst).
    /// `None` on a kernel without them.
    pub fn memory_blocks(&self) -> Option<(u64, Vec<(u64, u32)>)> {
        let size = self.read("sys/devices/system/memory/block_size_bytes").ok()?;
        let size = u64::from_str_radix(size.trim(), 16).ok().filter(|&size| size > 0)?;
        let mut blocks = Vec::new();
        for node in self.nodes("online") {
            let folder = self.root.join(format!("sys/devices/system/node/node{node}"));
            let names = fs::read_dir(folder).ok()?.filter_map(|entry| entry.ok());
            blocks.extend(names.filter_map(|entry| {
                let number = entry.file_name().to_str()?.strip_prefix("memory")?.parse().ok()?;
                Some((number, node))
            }));
        }
        Some((size, blocks))
    }

    /// The size of a huge page that a page-table entry of the second level
    /// maps, in bytes; `None` without transparent huge pages.
    pub fn huge_page_size(&self) -> Option<u64> {
        let text = self.read("sys/kernel/mm/transparent_hugepage/hpage_pmd_size").ok()?;
        text.trim().parse().ok()
    }

    /// The highest PID plus one (`/proc/sys/kernel/pid_max`).
    ///
    /// # Errors
    /// It cannot be read.
    pub fn pid_max(&self) -> Result<u32> {
        let text = self.read("proc/sys/kernel/pid_max")?;
        text.trim().parse().map_err(|_| Error::failure(format!("odd pid_max `{}`", text.trim())))
    }

    /// `/proc/<pid>`; `None` if the process has gone.
    pub fn task(&self, pid: i32) -> Option<Process> {
        Process::new_with_root(self.root.join(format!("proc/{pid}"))).ok()
    }

    /// `/proc/<pid>/status`; `None` if the process has gone.
    pub fn status(&self, pid: i32) -> Option<Status> {
        Process::new_with_root(self.root.join(format!("proc/{pid}"))).ok()?.status().ok()
    }

    /// When a process started, in nanoseconds since boot, to the clock tick;
    /// `None` if it has gone.
    pub fn start_ns(&self, pid: i32) -> Option<u64> {
        let stat =
            Process::new_with_root(self.root.join(format!("proc/{pid}"))).ok()?.stat().ok()?;
        let ticks = rustix::param::clock_ticks_per_second().max(1);
        Some(stat.starttime.saturating_mul(1_000_000_000 / ticks))
    }

    /// The path of an entry below `/proc/<pid>`.
    pub fn process(&self, pid: u32, entry: &str) -> PathBuf {
        self.root.join(format!("proc/{pid}/{entry}"))
    }

    /// The path of a file below the root, such as `proc/sysvipc/shm`.
    pub fn file(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    /// The cgroup v2 path of a process; `None` if it has gone.
    pub fn cgroup(&self, pid: i32) -> Option<String> {
        let text = self.read(&format!("proc/{pid}/cgroup")).ok()?;
        text.lines().find_map(|line| line.strip_prefix("0::")).map(str::to_owned)
    }

    /// Whether PIDs here are those of the machine. Unknown counts as yes.
    pub fn in_first_pid_namespace(&self) -> bool {
        // PROC_PID_INIT_INO, include/linux/proc_ns.h: part of the ABI.
        const FIRST: u64 = 0xEFFF_FFFC;
        fs::metadata(self.root.join("proc/self/ns/pid"))
            .map_or(true, |namespace| namespace.ino() == FIRST)
    }

    /// All PIDs.
    ///
    /// # Errors
    /// `/proc` cannot be read.
    pub fn pids(&self) -> Result<Vec<i32>> {
        let proc = self.root.join("proc");
        let entries = fs::read_dir(&proc).context(|| "reading /proc")?;
        let mut pids: Vec<i32> =
            entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok()).collect();
        pids.sort_unstable();
        Ok(pids)
    }

    /// Where the cgroup v2 hierarchy is mounted, and which of its folders is
    /// the root there (not `/` in a container).
    pub fn cgroup2_mount(&self) -> Option<PathBuf> {
        self.mount_of(|kind, _| kind == "cgroup2")
    }

    /// Where the cgroup hierarchy with the memory controller is mounted: a v1
    /// hierarchy that has it, else v2.
    pub fn memory_cgroup_mount(&self) -> Option<PathBuf> {
        let has_memory = |options: &str| options.split(',').any(|option| option == "memory");
        self.mount_of(|kind, options| kind == "cgroup" && has_memory(options))
            .or_else(|| self.cgroup2_mount())
    }

    /// The first mount whose file system and options are the wanted ones
    /// (proc_pid_mountinfo(5)).
    fn mount_of(&self, wanted: impl Fn(&str, &str) -> bool) -> Option<PathBuf> {
        let text = self.read("proc/self/mountinfo").ok()?;
        text.lines().find_map(|line| {
            let (left, right) = line.split_once(" - ")?;
            let mount = left.split(' ').nth(4)?;
            let mut right = right.split(' ');
            let (kind, options) = (right.next()?, right.nth(1).unwrap_or_default());
            wanted(kind, options).then(|| PathBuf::from(mount))
        })
    }
}

fn other(path: &Path, error: &::procfs::ProcError) -> Error {
    Error::failure(format!("reading {}: {error}", path.display()))
}

fn counters(text: &str) -> Counters {
    text.lines()
        .filter_map(|line| {
            let (name, value) = line.split_once(' ')?;
            Some((name.to_owned(), value.trim().parse().ok()?))
        })
        .collect()
}

fn pressure(text: &str) -> Option<Pressure> {
    let total = |kind: &str| {
        let line = text.lines().find(|line| line.starts_with(kind))?;
        line.split_once("total=")?.1.trim().parse().ok()
    };
    Some(Pressure { some_us: total("some")?, full_us: total("full")? })
}

/// `0-2,5` is `[0, 1, 2, 5]` (cpumask_print_to_pagebuf, lib/cpumask.c).
fn list(text: &str) -> Vec<u32> {
    text.trim()
        .split(',')
        .filter_map(|part| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            Some(first.parse::<u32>().ok()?..=last.parse().ok()?)
        })
        .flatten()
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_ranges_and_numbers() {
        assert_eq!(list("0-2,5\n"), [0, 1, 2, 5]);
        assert_eq!(list("0"), [0]);
        assert!(list("\n").is_empty());
    }

    #[test]
    fn counters_are_name_and_number() {
        let counters = counters("nr_free_pages 7919\nodd line here\npgfault 3\n");
        assert_eq!(counters.get("nr_free_pages"), Some(&7919));
        assert_eq!(counters.len(), 2);
    }

    #[test]
    fn a_root_can_be_injected() {
        let root = std::env::temp_dir().join(format!("mw-procfs-{}", std::process::id()));
        fs::create_dir_all(root.join("proc/pressure")).unwrap();
        fs::write(
            root.join("proc/pressure/memory"),
            "some avg10=0.00 avg60=0.00 avg300=0.00 total=17\n\
             full avg10=0.00 avg60=0.00 avg300=0.00 total=11\n",
        )
        .unwrap();
        let fake = ProcFs::new(&root);
        assert_eq!(fake.pressure(), Some(Pressure { some_us: 17, full_us: 11 }));
        assert!(fake.vmstat().is_err());
        fs::remove_dir_all(root).unwrap();
    }
}

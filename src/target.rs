//! Which processes the user asked for. Resolved and checked here, filtered in
//! the kernel (`src/bpf/include/target.bpf.h`).

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::path::PathBuf;

use rustix::process::Pid;
use rustix::process::PidfdFlags;

use crate::error::Context as _;
use crate::error::Error;
use crate::error::Result;
use crate::procfs::ProcFs;

/// Bytes of a process name the kernel keeps, without the terminator
/// (`TASK_COMM_LEN`, include/linux/sched.h).
pub const COMM_LEN: usize = 15;

/// `CGROUP2_SUPER_MAGIC`, include/uapi/linux/magic.h.
const CGROUP2_MAGIC: i128 = 0x6367_7270;

/// What the user asked for; nothing set means every process.
#[derive(Debug, Default)]
pub struct Target {
    /// Thread groups, which is what `ps` calls PID. Sorted, without doubles.
    pub tgids: Vec<u32>,
    /// Process name as the kernel truncates it: bytes, which need not be UTF-8.
    pub comm: Option<Vec<u8>>,
    /// Id of the cgroup v2 folder, which contains the processes below it too.
    pub cgroup: Option<Cgroup>,
    /// One per thread group; readable when it has exited (`pidfd_open(2)`).
    pub pidfds: Vec<OwnedFd>,
}

/// A cgroup v2 folder.
#[derive(Clone, Debug)]
pub struct Cgroup {
    /// The kernel's id, the inode number of the folder.
    pub id: u64,
    /// Path below the mount point, as `/proc/PID/cgroup` shows it.
    pub path: String,
}

impl Target {
    /// Checks that what was asked for exists.
    ///
    /// # Errors
    /// No such process, a name that is empty, or no such cgroup v2 folder.
    pub fn resolve(
        pids: &[u32],
        comm: Option<&str>,
        cgroup: Option<&Path>,
        procfs: &ProcFs,
    ) -> Result<Self> {
        let mut target = Self { comm: comm.map(truncated), ..Self::default() };
        target.tgids = pids.to_vec();
        target.tgids.sort_unstable();
        target.tgids.dedup();
        for &tgid in &target.tgids {
            target.pidfds.push(open_process(tgid, procfs)?);
        }
        if let Some(path) = cgroup {
            target.cgroup = Some(open_cgroup(path, procfs)?);
        }
        Ok(target)
    }

    /// Whether nothing was asked for in particular: every process is meant.
    pub fn is_everything(&self) -> bool {
        self.tgids.is_empty() && self.comm.is_none() && self.cgroup.is_none()
    }

    /// Whether a process is asked for; for hooks that have no kernel side.
    pub fn matches(&self, tgid: u32, comm: &str, cgroup: impl FnOnce() -> Option<String>) -> bool {
        if !self.tgids.is_empty() && self.tgids.binary_search(&tgid).is_err() {
            return false;
        }
        if self.comm.as_ref().is_some_and(|wanted| crate::event::text(wanted) != comm) {
            return false;
        }
        self.cgroup
            .as_ref()
            .is_none_or(|wanted| cgroup().is_some_and(|path| is_below(&path, &wanted.path)))
    }
}

/// A name as the kernel keeps it.
fn truncated(comm: &str) -> Vec<u8> {
    comm.bytes().take(COMM_LEN).collect()
}

fn is_below(path: &str, ancestor: &str) -> bool {
    path.strip_prefix(ancestor.trim_end_matches('/'))
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

fn open_process(tgid: u32, procfs: &ProcFs) -> Result<OwnedFd> {
    let gone = || Error::failure(format!("no process has PID {tgid}"));
    let raw = i32::try_from(tgid).map_err(|_| gone())?;
    let pid = Pid::from_raw(raw).ok_or_else(gone)?;
    match rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
        Ok(fd) => Ok(fd),
        Err(rustix::io::Errno::SRCH) => Err(gone()),
        // What is not a thread group's leader: EINVAL, ENOENT since 6.15.
        Err(errno) => match procfs.status(raw) {
            Some(status) if status.tgid != raw => Err(Error::failure(format!(
                "{tgid} is a thread of process {}: give the process",
                status.tgid
            ))),
            Some(_) => Err(Error::from(errno)).context(|| format!("opening process {tgid}")),
            None => Err(gone()),
        },
    }
}

fn open_cgroup(given: &Path, procfs: &ProcFs) -> Result<Cgroup> {
    let mount = procfs.cgroup2_mount().ok_or_else(|| {
        Error::kernel("--cgroup: no cgroup v2 hierarchy is mounted on this machine")
    })?;
    // Both the folder itself and the path /proc/PID/cgroup shows are accepted.
    let below = given.strip_prefix("/").unwrap_or(given);
    let candidates = [given.to_owned(), mount.join(below)];
    let path: &PathBuf = candidates.iter().find(|path| is_cgroup2(path)).ok_or_else(|| {
        let why = if given.exists() { "not a cgroup v2 folder" } else { "no such cgroup" };
        Error::failure(format!(
            "--cgroup `{}`: {why}; give a folder below {}",
            given.display(),
            mount.display()
        ))
    })?;
    let path = fs::canonicalize(path).context(|| format!("--cgroup `{}`", given.display()))?;
    let id = fs::metadata(&path).context(|| format!("--cgroup `{}`", given.display()))?.ino();
    let below = path.strip_prefix(&mount).unwrap_or(&path);
    Ok(Cgroup { id, path: format!("/{}", below.display()) })
}

fn is_cgroup2(path: &Path) -> bool {
    path.is_dir() && rustix::fs::statfs(path).is_ok_and(|fs| i128::from(fs.f_type) == CGROUP2_MAGIC)
}

/// Hands a [`Target`] to the constants and the map that `target.bpf.h` defines
/// in the skeleton `$open`, before it is loaded.
#[macro_export]
macro_rules! set_target {
    ($open:expr, $target:expr) => {{
        let target: &$crate::target::Target = $target;
        let count = u32::try_from(target.tgids.len()).unwrap_or(u32::MAX);
        $open.maps.target_set.set_max_entries(count.max(1))?;
        if let Some(constants) = $open.maps.rodata_data.as_deref_mut() {
            constants.target_tgids = count;
            constants.target_tgid = target.tgids.first().copied().unwrap_or(0);
            if let Some(comm) = &target.comm {
                constants.target_by_comm = 1;
                for (to, from) in constants.target_comm.iter_mut().zip(comm) {
                    *to = *from;
                }
            }
            constants.target_cgroup = target.cgroup.as_ref().map_or(0, |cgroup| cgroup.id);
        }
    }};
}

/// Fills the map of wanted processes of a loaded skeleton.
///
/// # Errors
/// The kernel refuses.
pub fn fill_set(map: &impl libbpf_rs::MapCore, target: &Target) -> Result<()> {
    // With one PID, or none, the constant says it all.
    if target.tgids.len() > 1 {
        for tgid in &target.tgids {
            map.update(&tgid.to_ne_bytes(), &[1], libbpf_rs::MapFlags::ANY)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_cut_as_the_kernel_cuts_them() {
        assert_eq!(truncated("a-very-long-program-name"), b"a-very-long-pro");
        assert_eq!(truncated("sh"), b"sh");
    }

    #[test]
    fn a_cgroup_contains_itself_and_what_is_below_it() {
        assert!(is_below("/a/b", "/a"));
        assert!(is_below("/a", "/a"));
        assert!(is_below("/anything", "/"));
        assert!(!is_below("/ab", "/a"));
    }

    #[test]
    fn a_process_that_does_not_exist_is_an_error() {
        let error = Target::resolve(&[4_194_305], None, None, &ProcFs::default()).unwrap_err();
        assert_eq!(error.to_string(), "no process has PID 4194305");
    }

    #[test]
    fn criteria_are_combined() {
        let me = std::process::id();
        let target = Target::resolve(&[me, me], Some("x"), None, &ProcFs::default()).unwrap();
        assert_eq!(target.tgids, [me]);
        assert!(target.matches(me, "x", || None));
        assert!(!target.matches(me, "y", || None));
        assert!(!target.matches(me + 1, "x", || None));
    }
}

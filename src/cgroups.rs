//! Cgroups by the ids the kernel side hands over (`src/bpf/include/cgroup.bpf.h`):
//! those of the hierarchy that has the memory controller.

use std::collections::HashMap;
use std::fs;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::fd::FromRawFd as _;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirEntryExt as _;
use std::path::Path;
use std::path::PathBuf;

use crate::procfs::ProcFs;

/// `FILEID_KERNFS`, include/linux/exportfs.h: such a handle is the node's id.
const FILEID_KERNFS: i32 = 0xfe;

/// Paths remembered at most; a machine that makes more starts over.
const KNOWN: usize = 4096;

/// Paths by id. A path once found is known after the cgroup has gone.
pub struct Cgroups {
    mount: Option<PathBuf>,
    known: HashMap<u64, String>,
}

impl Cgroups {
    /// Those of this machine.
    pub fn new(procfs: &ProcFs) -> Self {
        Self { mount: procfs.memory_cgroup_mount(), known: HashMap::new() }
    }

    /// The path below the mount point, as `/proc/PID/cgroup` shows it; `None`:
    /// the cgroup has gone, or its hierarchy is not mounted here.
    pub fn path(&mut self, id: u64) -> Option<&str> {
        let mount = self.mount.as_deref().filter(|_| id != 0)?;
        if !self.known.contains_key(&id) {
            let path = match by_handle(mount, id) {
                Ok(path) => path,
                // Takes CAP_DAC_READ_SEARCH; looking at every folder does not.
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                    by_inode(mount, id)?
                }
                Err(_) => return None,
            };
            let below = path.strip_prefix(mount).ok()?;
            if self.known.len() == KNOWN {
                self.known.clear();
            }
            self.known.insert(id, format!("/{}", below.display()));
        }
        self.known.get(&id).map(String::as_str)
    }

    /// The path, or the id where there is none any more. `None`: no cgroup.
    pub fn shown(&mut self, id: u64) -> Option<String> {
        if id == 0 {
            return None;
        }
        Some(self.path(id).map_or_else(|| format!("(gone: {id})"), str::to_owned))
    }
}

/// `struct file_handle` with the id in it (name_to_handle_at(2)).
#[repr(C)]
struct Handle {
    bytes: u32,
    kind: i32,
    id: u64,
}

/// Opens the folder by its id, which the kernel finds at once.
fn by_handle(mount: &Path, id: u64) -> io::Result<PathBuf> {
    let root = File::open(mount)?;
    let mut handle = Handle { bytes: size_of::<u64>() as u32, kind: FILEID_KERNFS, id };
    // SAFETY: `handle` begins as the kernel expects and is followed by as many
    // bytes as it says.
    let fd = unsafe {
        libc::open_by_handle_at(
            root.as_raw_fd(),
            (&raw mut handle).cast(),
            libc::O_PATH | libc::O_CLOEXEC,
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: just opened, and nobody else's.
    let folder = unsafe { OwnedFd::from_raw_fd(fd) };
    fs::read_link(format!("/proc/self/fd/{}", folder.as_raw_fd()))
}

fn by_inode(folder: &Path, inode: u64) -> Option<PathBuf> {
    use std::os::unix::fs::MetadataExt as _;
    if fs::metadata(folder).ok()?.ino() == inode {
        return Some(folder.to_owned());
    }
    fs::read_dir(folder).ok()?.flatten().find_map(|entry| {
        if !entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            return None;
        }
        if entry.ino() == inode {
            return Some(entry.path());
        }
        by_inode(&entry.path(), inode)
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    fn below(mount: &Path) -> Option<PathBuf> {
        let entries = fs::read_dir(mount).ok()?.flatten();
        entries.map(|entry| entry.path()).find(|path| path.is_dir())
    }

    #[test]
    fn a_folder_is_found_by_its_number() {
        let dir = std::env::temp_dir().join(format!("cgroups-{}", std::process::id()));
        let inner = dir.join("a/b");
        fs::create_dir_all(&inner).unwrap();
        let inode = fs::metadata(&inner).unwrap().ino();
        let found = by_inode(&dir, inode);
        let none = by_inode(&dir, u64::MAX);
        fs::remove_dir_all(&dir).unwrap();
        assert_eq!(found, Some(inner));
        assert_eq!(none, None);
    }

    #[test]
    fn both_ways_find_the_same_cgroup() {
        let mut cgroups = Cgroups::new(&ProcFs::default());
        assert_eq!(cgroups.path(0), None);
        assert_eq!(cgroups.shown(0), None);
        let Some(mount) = cgroups.mount.clone() else { return };
        let root = fs::metadata(&mount).unwrap().ino();
        assert_eq!(cgroups.path(root), Some("/"));
        if let Some(folder) = below(&mount) {
            let id = fs::metadata(&folder).unwrap().ino();
            assert_eq!(by_inode(&mount, id), Some(folder.clone()));
            let path = format!("/{}", folder.strip_prefix(&mount).unwrap().display());
            assert_eq!(cgroups.path(id), Some(path.as_str()));
        }
        assert_eq!(cgroups.shown(u64::MAX), Some(format!("(gone: {})", u64::MAX)));
    }
}

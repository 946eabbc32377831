//! Memory that belongs to no single process: System V segments, POSIX shared
//! memory, memfds, shared anonymous memory and files that are mapped and
//! deleted, with whoever holds them. Read from `/proc`; page tables are not
//! walked and no file is opened.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::io::ErrorKind;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::path::PathBuf;

use crate::error::Context as _;
use crate::error::Result;
use crate::procfs::ProcFs;
use crate::target::Target;

/// What sort of memory it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A System V segment (shmget(2)).
    Sysv,
    /// POSIX shared memory: a file below `/dev/shm` (shm_overview(7)).
    Posix,
    /// memfd_create(2).
    Memfd,
    /// Anonymous memory mapped `MAP_SHARED`, or from `/dev/zero`.
    Shared,
    /// Anonymous memory in huge pages of hugetlbfs.
    Huge,
    /// A deleted file of another tmpfs, or of the kernel's own.
    Tmpfs,
    /// A deleted file of a disk.
    Deleted,
}

impl Kind {
    /// Its name in the output.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Sysv => "sysv",
            Kind::Posix => "posix",
            Kind::Memfd => "memfd",
            Kind::Shared => "shared",
            Kind::Huge => "huge",
            Kind::Tmpfs => "tmpfs",
            Kind::Deleted => "deleted",
        }
    }
}

/// A process that holds an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// PID.
    pub pid: u32,
    /// Name.
    pub comm: String,
    /// It maps it.
    pub maps: bool,
    /// It has it open.
    pub opens: bool,
}

/// What only System V segments have (`/proc/sysvipc/shm`, proc_sysvipc(5)).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Segment {
    /// The key; 0: `IPC_PRIVATE`.
    pub key: u32,
    /// The number.
    pub id: u32,
    /// Permissions and `SHM_DEST`, `SHM_LOCKED`.
    pub mode: u32,
    /// Times it is attached.
    pub attached: u64,
    /// PID of its creator, in our PID namespace.
    pub creator: u32,
    /// PID of the last that attached or detached it.
    pub last: u32,
}

/// One object. Sizes in bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Object {
    /// Its sort.
    pub kind: Kind,
    /// Its name, as in `/proc/PID/maps`.
    pub name: String,
    /// How large it says it is; `None`: not known.
    pub size: Option<u64>,
    /// Allocated, in memory or swapped out; of a file on a disk: on the disk.
    pub allocated: Option<u64>,
    /// In memory; `None`: not known exactly.
    pub resident: Option<u64>,
    /// Swapped out; `None`: not known exactly.
    pub swapped: Option<u64>,
    /// The user it belongs to.
    pub uid: Option<u32>,
    /// Of System V segments of our own IPC namespace.
    pub segment: Option<Segment>,
    /// By PID.
    pub holders: Vec<Holder>,
}

/// Everything found, the largest first.
#[derive(Debug, Default)]
pub struct Inventory {
    /// The objects.
    pub objects: Vec<Object>,
    /// Processes whose mappings or files may not be read.
    pub unreadable: usize,
    /// Processes in other IPC namespaces, whose segments are seen only where
    /// they are attached.
    pub elsewhere: usize,
}

/// `TMPFS_MAGIC`, include/uapi/linux/magic.h.
const TMPFS: u64 = 0x0102_1994;
/// `HUGETLBFS_MAGIC`, same file.
const HUGETLBFS: u64 = 0x9584_58f6;
/// Where the C library puts POSIX shared memory.
const POSIX_FOLDER: &str = "/dev/shm";

/// What tells objects apart: a file by device and inode, a segment by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    Segment(u32),
    File { device: u64, inode: u64 },
}

/// A line of `/proc/PID/maps` about a file.
#[derive(Debug, PartialEq, Eq)]
struct Line {
    start: u64,
    end: u64,
    device: u64,
    inode: u64,
    name: String,
}

impl Line {
    fn parse(line: &[u8]) -> Option<Self> {
        let mut fields = line.splitn(6, |&byte| byte == b' ');
        let mut field = || std::str::from_utf8(fields.next()?).ok();
        let (start, end) = field()?.split_once('-')?;
        let hex = |text| u64::from_str_radix(text, 16).ok();
        let (start, end) = (hex(start)?, hex(end)?);
        let _permissions = field()?;
        let _offset = field()?;
        let (major, minor) = field()?.split_once(':')?;
        let number = |text| u32::from_str_radix(text, 16).ok();
        let device = rustix::fs::makedev(number(major)?, number(minor)?);
        let inode: u64 = field()?.parse().ok()?;
        let name = String::from_utf8_lossy(fields.next()?.trim_ascii_start()).into_owned();
        // The first System V segment has number 0, and its file that inode.
        let is_file = inode != 0 || name.starts_with("/SYSV");
        is_file.then_some(Self { start, end, device, inode, name })
    }
}

/// The key in the name the kernel gives a segment (newseg(), ipc/shm.c).
fn segment_key(name: &str) -> Option<u32> {
    let digits = name.strip_prefix("/SYSV")?.strip_suffix(" (deleted)")?;
    (digits.len() == 8).then(|| u32::from_str_radix(digits, 16).ok())?
}

/// The kind a name speaks for; `None`: an ordinary file that is still there.
fn kind_of(name: &str) -> Option<Kind> {
    let deleted = name.ends_with(" (deleted)");
    let below_posix = |rest: &str| rest.starts_with('/');
    Some(match name {
        _ if segment_key(name).is_some() => Kind::Sysv,
        _ if name.strip_prefix(POSIX_FOLDER).is_some_and(below_posix) => Kind::Posix,
        _ if !deleted => return None,
        _ if name.starts_with("/memfd:") => Kind::Memfd,
        "/dev/zero (deleted)" => Kind::Shared,
        "/anon_hugepage (deleted)" => Kind::Huge,
        _ => Kind::Deleted,
    })
}

/// What stat(2) says of a file.
#[derive(Clone, Copy)]
struct Facts {
    key: Key,
    size: u64,
    allocated: u64,
    links: u64,
    uid: u32,
    file_system: u64,
}

/// Follows `path`, which may be a link of `/proc`; nothing is opened.
fn facts(path: &Path) -> io::Result<Facts> {
    let meta = fs::metadata(path)?;
    // The type is a C long, the magic numbers have 32 bits.
    let file_system = rustix::fs::statfs(path).map_or(0, |stat| stat.f_type as u64 & 0xffff_ffff);
    Ok(Facts {
        key: Key::File { device: meta.dev(), inode: meta.ino() },
        size: meta.len(),
        // Always in units of 512 bytes: stat(3type).
        allocated: meta.blocks().saturating_mul(512),
        links: meta.nlink(),
        uid: meta.uid(),
        file_system,
    })
}

/// Objects while they are gathered.
struct Gathering<'run> {
    procfs: &'run ProcFs,
    /// The machine swaps nothing out: all that is allocated is resident.
    no_swap: bool,
    objects: BTreeMap<Key, Object>,
    unreadable: usize,
    elsewhere: usize,
}

/// Takes stock.
///
/// # Errors
/// `/proc` cannot be read.
pub fn inventory(procfs: &ProcFs, target: &Target) -> Result<Inventory> {
    let meminfo = procfs.meminfo()?;
    let mut gathering = Gathering {
        procfs,
        no_swap: meminfo.swap_total == meminfo.swap_free,
        objects: BTreeMap::new(),
        unreadable: 0,
        elsewhere: 0,
    };
    gathering.segments()?;
    gathering.posix(Path::new(POSIX_FOLDER));
    let own = namespace(procfs, std::process::id());
    let mut processes = Vec::new();
    for pid in procfs.pids()? {
        let Some(status) = procfs.status(pid) else { continue };
        let pid = pid.unsigned_abs();
        if !target.matches(pid, &status.name, || procfs.cgroup(pid.cast_signed())) {
            continue;
        }
        let here = namespace(procfs, pid).is_none_or(|its| Some(its) == own);
        if !here {
            gathering.elsewhere += 1;
        }
        processes.push((pid, status.name, here));
    }
    // First what is mapped: of files that are only open, deleted ones are
    // no memory.
    let mut refused = std::collections::BTreeSet::new();
    for (pid, comm, here) in &processes {
        if gathering.mapped(*pid, comm, *here).is_err() {
            refused.insert(*pid);
        }
    }
    for (pid, comm, _) in &processes {
        if gathering.opened(*pid, comm).is_err() {
            refused.insert(*pid);
        }
    }
    gathering.unreadable = refused.len();
    Ok(gathering.finish(target.is_everything()))
}

/// The IPC namespace of a process; `None`: it may not be looked at.
fn namespace(procfs: &ProcFs, pid: u32) -> Option<u64> {
    fs::metadata(procfs.process(pid, "ns/ipc")).ok().map(|meta| meta.ino())
}

/// Only a missing right is of interest: a process that has gone holds nothing.
fn refusal(error: io::Error) -> io::Result<()> {
    if error.kind() == ErrorKind::PermissionDenied { Err(error) } else { Ok(()) }
}

impl Gathering<'_> {
    /// All segments of our IPC namespace.
    fn segments(&mut self) -> Result<()> {
        let path = self.procfs.file("proc/sysvipc/shm");
        let text = match fs::read_to_string(&path) {
            // A kernel without System V IPC.
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            text => text.context(|| format!("reading {}", path.display()))?,
        };
        for (segment, object) in text.lines().skip(1).filter_map(parse_segment) {
            self.objects.insert(Key::Segment(segment.id), object);
        }
        Ok(())
    }

    /// All files below `/dev/shm`, held or not.
    fn posix(&mut self, folder: &Path) {
        let Ok(entries) = fs::read_dir(folder) else { return };
        for entry in entries.filter_map(|entry| entry.ok()) {
            let path = entry.path();
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => self.posix(&path),
                Ok(kind) if kind.is_file() => {
                    if let Ok(facts) = facts(&path) {
                        let name = path.to_string_lossy().into_owned();
                        self.file(Kind::Posix, name, facts);
                    }
                }
                _ => {}
            }
        }
    }

    /// An object of a file, made at first sight.
    fn file(&mut self, kind: Kind, name: String, facts: Facts) -> &mut Object {
        let kind = match kind {
            Kind::Deleted if facts.file_system == TMPFS => Kind::Tmpfs,
            Kind::Deleted if facts.file_system == HUGETLBFS => Kind::Huge,
            kind => kind,
        };
        // What is never swapped out is resident: huge pages; and on a machine
        // that swaps nothing, all that is not on a disk.
        let in_memory = match kind {
            Kind::Deleted => false,
            Kind::Huge => true,
            _ => self.no_swap || facts.file_system == HUGETLBFS,
        };
        self.objects.entry(facts.key).or_insert_with(|| Object {
            kind,
            name,
            size: Some(facts.size),
            allocated: Some(facts.allocated),
            resident: in_memory.then_some(facts.allocated),
            swapped: in_memory.then_some(0),
            uid: Some(facts.uid),
            segment: None,
            holders: Vec::new(),
        })
    }

    /// What a process maps.
    fn mapped(&mut self, pid: u32, comm: &str, here: bool) -> io::Result<()> {
        let text = match fs::read(self.procfs.process(pid, "maps")) {
            Ok(text) => text,
            Err(error) => return refusal(error),
        };
        for line in text.split(|&byte| byte == b'\n').filter_map(Line::parse) {
            let Some(kind) = kind_of(&line.name) else { continue };
            if kind == Kind::Sysv && here && self.attached(&line, pid, comm) {
                continue;
            }
            let link = format!("map_files/{:x}-{:x}", line.start, line.end);
            let found = match facts(&self.procfs.process(pid, &link)) {
                Ok(found) => found,
                // Without the right to follow it (proc_pid_map_files(5)), or
                // unmapped meanwhile: what maps says must do.
                Err(_) => {
                    self.unmeasured(kind, &line, pid, comm);
                    continue;
                }
            };
            // A file may be called "x (deleted)" and be there.
            if kind == Kind::Deleted && found.links > 0 {
                continue;
            }
            hold(self.file(kind, line.name, found), pid, comm, |holder| holder.maps = true);
        }
        Ok(())
    }

    /// A segment of our namespace; its inode is its number (newseg(), ipc/shm.c).
    fn attached(&mut self, line: &Line, pid: u32, comm: &str) -> bool {
        let Ok(id) = u32::try_from(line.inode) else { return false };
        match self.objects.get_mut(&Key::Segment(id)) {
            Some(object) if object.segment.map(|s| s.key) == segment_key(&line.name) => {
                hold(object, pid, comm, |holder| holder.maps = true);
                true
            }
            _ => false,
        }
    }

    fn unmeasured(&mut self, kind: Kind, line: &Line, pid: u32, comm: &str) {
        let key = Key::File { device: line.device, inode: line.inode };
        let object = self.objects.entry(key).or_insert_with(|| Object {
            kind,
            name: line.name.clone(),
            size: None,
            allocated: None,
            resident: None,
            swapped: None,
            uid: None,
            segment: None,
            holders: Vec::new(),
        });
        hold(object, pid, comm, |holder| holder.maps = true);
    }

    /// What a process has open.
    fn opened(&mut self, pid: u32, comm: &str) -> io::Result<()> {
        let entries = match fs::read_dir(self.procfs.process(pid, "fd")) {
            Ok(entries) => entries,
            Err(error) => return refusal(error),
        };
        for entry in entries.filter_map(|entry| entry.ok()) {
            let path: PathBuf = entry.path();
            let Ok(link) = fs::read_link(&path) else { continue };
            let name = lossy(link.as_os_str());
            // Devices are called so too; `/dev/zero` is no memory until mapped.
            let Some(kind) = kind_of(&name) else { continue };
            let Ok(found) = facts(&path) else { continue };
            let known = self.objects.contains_key(&found.key);
            let memory = kind != Kind::Deleted || (found.file_system == TMPFS && found.links == 0);
            if known || memory {
                hold(self.file(kind, name, found), pid, comm, |holder| holder.opens = true);
            }
        }
        Ok(())
    }

    fn finish(self, everything: bool) -> Inventory {
        let mut objects: Vec<Object> = self.objects.into_values().collect();
        // Of chosen processes, what they hold.
        objects.retain(|object| everything || !object.holders.is_empty());
        objects.sort_by(|a, b| {
            (b.size, b.allocated, a.kind, &a.name).cmp(&(a.size, a.allocated, b.kind, &b.name))
        });
        for object in &mut objects {
            object.holders.sort_by_key(|holder| holder.pid);
        }
        Inventory { objects, unreadable: self.unreadable, elsewhere: self.elsewhere }
    }
}

fn lossy(text: &OsStr) -> String {
    String::from_utf8_lossy(text.as_bytes()).into_owned()
}

fn hold(object: &mut Object, pid: u32, comm: &str, how: impl FnOnce(&mut Holder)) {
    let place = object.holders.iter().position(|holder| holder.pid == pid);
    let place = place.unwrap_or_else(|| {
        let holder = Holder { pid, comm: comm.to_owned(), maps: false, opens: false };
        object.holders.push(holder);
        object.holders.len() - 1
    });
    if let Some(holder) = object.holders.get_mut(place) {
        how(holder);
    }
}

/// A line of `/proc/sysvipc/shm` (sysvipc_shm_proc_show(), ipc/shm.c).
fn parse_segment(line: &str) -> Option<(Segment, Object)> {
    let mut words = line.split_whitespace();
    let mut word = || words.next();
    let key = word()?.parse::<i32>().ok()?.cast_unsigned();
    let id: u32 = word()?.parse().ok()?;
    let mode = u32::from_str_radix(word()?, 8).ok()?;
    let mut number = || word().and_then(|word| word.parse::<u64>().ok());
    let size = number()?;
    let creator = u32::try_from(number()?).ok()?;
    let last = u32::try_from(number()?).ok()?;
    let attached = number()?;
    let uid = u32::try_from(number()?).ok()?;
    // gid, cuid, cgid, atime, dtime, ctime
    let mut rest = (0..8).map(|_| number());
    let resident = rest.nth(6).flatten();
    let swapped = rest.next().flatten();
    let segment = Segment { key, id, mode, attached, creator, last };
    let object = Object {
        kind: Kind::Sysv,
        name: format!("/SYSV{key:08x} (deleted)"),
        size: Some(size),
        allocated: resident.zip(swapped).map(|(resident, swapped)| resident + swapped),
        resident,
        swapped,
        uid: Some(uid),
        segment: Some(segment),
        holders: Vec::new(),
    };
    Some((segment, object))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_the_kind() {
        let kinds = [
            ("/SYSV00001234 (deleted)", Some(Kind::Sysv)),
            ("/SYSV1234 (deleted)", Some(Kind::Deleted)),
            ("/SYSV00001234", None),
            ("/dev/shm/x", Some(Kind::Posix)),
            ("/dev/shm/x (deleted)", Some(Kind::Posix)),
            ("/dev/shmx", None),
            ("/memfd:x (deleted)", Some(Kind::Memfd)),
            ("/memfd:x", None),
            ("/dev/zero (deleted)", Some(Kind::Shared)),
            ("/dev/zero", None),
            ("/anon_hugepage (deleted)", Some(Kind::Huge)),
            ("/usr/lib/libc.so.6 (deleted)", Some(Kind::Deleted)),
            ("/usr/lib/libc.so.6", None),
            ("[heap]", None),
            ("", None),
        ];
        for (name, kind) in kinds {
            assert_eq!(kind_of(name), kind, "{name}");
        }
    }

    #[test]
    fn lines_about_files_are_read() {
        let line =
            Line::parse(b"7f00-8000 rw-s 00000000 00:01 23    /memfd:a b (deleted)").unwrap();
        assert_eq!((line.start, line.end, line.inode), (0x7f00, 0x8000, 23));
        assert_eq!(line.name, "/memfd:a b (deleted)");
        assert_eq!(line.device, rustix::fs::makedev(0, 1));
        let first = Line::parse(b"7f00-8000 rw-s 00000000 00:01 0    /SYSV00004d57 (deleted)");
        assert_eq!(first.map(|line| line.inode), Some(0));
        assert_eq!(Line::parse(b"1000-2000 rw-p 00000000 00:00 0    [heap]"), None);
        assert_eq!(Line::parse(b"nonsense"), None);
    }

    #[test]
    fn segments_are_read_with_negative_keys_too() {
        let text = "  -559038737     983040  1600     10007937   4711   4712      3  1000  1000  \
                    1000  1000 1700000000          0 1700000000             31676             844";
        let (segment, object) = parse_segment(text).unwrap();
        assert_eq!(
            segment,
            Segment {
                key: 0xdead_beef,
                id: 983_040,
                mode: 0o1600,
                attached: 3,
                creator: 4711,
                last: 4712
            }
        );
        assert_eq!((object.size, object.uid), (Some(10_007_937), Some(1000)));
        let sizes = (object.resident, object.swapped, object.allocated);
        assert_eq!(sizes, (Some(31_676), Some(844), Some(32_520)));
        assert_eq!(object.name, "/SYSVdeadbeef (deleted)");
        assert!(parse_segment("       key      shmid perms").is_none());
    }

    #[test]
    fn a_holder_is_listed_once_with_all_it_does() {
        let (_, mut object) = parse_segment(&format!("1 2 600{}", " 3".repeat(13))).unwrap();
        hold(&mut object, 23, "x", |holder| holder.maps = true);
        hold(&mut object, 23, "x", |holder| holder.opens = true);
        hold(&mut object, 7, "y", |holder| holder.opens = true);
        assert_eq!(object.holders.len(), 2);
        assert!(object.holders[0].maps && object.holders[0].opens && !object.holders[1].maps);
    }
}

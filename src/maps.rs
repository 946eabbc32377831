//! What a process maps, captured while it lives: the files stay open, so that
//! its stacks can be named after it has exited or the files were replaced.

use std::collections::HashMap;
use std::collections::HashSet;
use std::fs;
use std::fs::File;
use std::ops::Deref;
use std::ops::Range;
use std::os::fd::AsFd;
use std::os::fd::AsRawFd as _;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::path::PathBuf;
use std::ptr;
use std::ptr::NonNull;
use std::rc::Rc;
use std::rc::Weak;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use rustix::fs::FileType;
use rustix::fs::Mode;
use rustix::fs::OFlags;
use rustix::fs::Stat;
use rustix::io::Errno;
use rustix::mm::MapFlags;
use rustix::mm::ProtFlags;
use rustix::process::Resource;

use crate::error::Context as _;
use crate::error::Error;
use crate::error::Result;
use crate::procfs::ProcFs;

/// A file as the kernel tells them apart.
///
/// The numbers are those of `/proc/PID/maps`, except on file systems where
/// these are not unique: see [`FileId::of`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FileId {
    /// The device, as makedev(3) packs major and minor number; or what takes its
    /// place.
    pub device: u64,
    /// The inode on that device.
    pub inode: u64,
}

/// File systems whose stat(2) gives another device than `/proc/PID/maps`
/// (linux/magic.h; bcachefs_ioctl.h).
const OVERLAYFS: u64 = 0x794c_7630;
const BTRFS: u64 = 0x9123_683e;
const BCACHEFS: u64 = 0xca45_1a4e;
/// File systems whose files are memory (linux/magic.h).
const TMPFS: u64 = 0x0102_1994;
const HUGETLBFS: u64 = 0x9584_58f6;

impl FileId {
    /// On btrfs and bcachefs each subvolume numbers its inodes from the start,
    /// and maps shows one device for all of them: there stat(2) tells files
    /// apart.
    ///
    /// On overlayfs it is the other way round: containers share the files of an
    /// image, and a probe on one of them is a probe on all. Older kernels list
    /// the file below, newer ones (seen in 6.18) that of each mount, as stat(2)
    /// does. The time of the last change of the inode is that of the file below;
    /// nobody can set it, and it takes the place of the device.
    fn of(listed: FileId, stat: &Stat, file_system: u64) -> FileId {
        let by_stat = FileId { device: stat.st_dev, inode: stat.st_ino };
        match file_system {
            BTRFS | BCACHEFS => by_stat,
            OVERLAYFS if listed == by_stat => {
                let seconds = stat.st_ctime as u64;
                let changed = seconds.wrapping_mul(1_000_000_000).wrapping_add(stat.st_ctime_nsec);
                FileId { device: changed | NO_DEVICE, inode: stat.st_ino }
            }
            _ => listed,
        }
    }
}

/// Above every device number (32 bits in the kernel, linux/kdev_t.h).
const NO_DEVICE: u64 = 1 << 63;

/// A mapped file, held open; usable after the process or the path has gone.
#[derive(Debug)]
pub struct Object {
    /// Which file.
    pub id: FileId,
    /// Its path as the process that mapped it first names it, without
    /// ` (deleted)`; the path may not exist for us.
    pub path: Rc<str>,
    /// Its size in bytes when it was opened.
    pub size: u64,
    /// A number no other object has or had: inode numbers are used again.
    pub serial: u64,
    file: File,
}

impl Object {
    fn new(id: FileId, path: &str, file: File, size: u64) -> Self {
        static SERIAL: AtomicU64 = AtomicU64::new(0);
        let serial = SERIAL.fetch_add(1, Ordering::Relaxed);
        Self { id, path: path.into(), size, serial, file }
    }

    /// Opens a file by its path, for files no process maps.
    ///
    /// # Errors
    /// It cannot be opened or is no regular file.
    pub fn open(path: &Path) -> Result<Self> {
        let what = || format!("opening `{}`", path.display());
        let (found, stat) = Found::at(path).context(what)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(Error::failure(format!("`{}` is not a file", path.display())));
        }
        let file = found.read().context(what)?;
        let id = FileId { device: stat.st_dev, inode: stat.st_ino };
        Ok(Self::new(id, &path.to_string_lossy(), file, size(&stat)))
    }

    /// A path that names the held file, for libraries that want one. Valid as
    /// long as this object lives.
    pub fn fd_path(&self) -> PathBuf {
        fd_path(&self.file)
    }

    /// The contents, read as they are touched.
    ///
    /// # Errors
    /// The file is empty or cannot be mapped.
    pub fn data(&self) -> Result<Data> {
        Data::map(&self.file).context(|| format!("reading `{}`", self.path))
    }

    /// The last part of the path.
    pub fn name(&self) -> &str {
        base_name(&self.path)
    }
}

/// What follows the last slash, or all of it.
pub fn base_name(path: &str) -> &str {
    path.rsplit('/').next().filter(|name| !name.is_empty()).unwrap_or(path)
}

fn fd_path(fd: impl AsFd) -> PathBuf {
    format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd()).into()
}

fn size(stat: &Stat) -> u64 {
    u64::try_from(stat.st_size).unwrap_or(0)
}

/// The bytes of a file, mapped read-only.
#[derive(Debug)]
pub struct Data {
    start: NonNull<u8>,
    len: usize,
}

impl Data {
    fn map(file: &File) -> Result<Self> {
        let len = usize::try_from(file.metadata()?.len()).unwrap_or(0);
        if len == 0 {
            return Err(Error::failure("the file is empty"));
        }
        // SAFETY: a new mapping at an address of the kernel's choice: nothing
        // of ours is replaced.
        let start = unsafe {
            rustix::mm::mmap(ptr::null_mut(), len, ProtFlags::READ, MapFlags::PRIVATE, file, 0)
        }?;
        let start = NonNull::new(start.cast()).ok_or_else(|| Error::failure("mapped at 0"))?;
        Ok(Self { start, len })
    }
}

impl Deref for Data {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: `start` and `len` are those of a mapping that lives as long
        // as `self`, readable, and never written through.
        unsafe { std::slice::from_raw_parts(self.start.as_ptr(), self.len) }
    }
}

impl Drop for Data {
    fn drop(&mut self) {
        // SAFETY: the mapping made in `map`; no slice of it outlives `self`.
        let _ = unsafe { rustix::mm::munmap(self.start.as_ptr().cast(), self.len) };
    }
}

/// One line of `/proc/PID/maps` (proc_pid_maps(5)).
#[derive(Clone, Debug)]
pub struct Mapping {
    /// First address.
    pub start: u64,
    /// First address behind it.
    pub end: u64,
    /// Where in the file it begins, in bytes.
    pub offset: u64,
    /// Whether it may be read.
    pub readable: bool,
    /// Whether it may be written.
    pub writable: bool,
    /// Whether it may be executed.
    pub executable: bool,
    /// Whether writes go to the file or to other processes.
    pub shared: bool,
    /// The file, as listed in maps; `None`: anonymous memory.
    pub file: Option<FileId>,
    /// The file held open: of executable mappings only.
    pub object: Option<Rc<Object>>,
    /// Why an executable file mapping has no object.
    pub reason: Option<&'static str>,
    /// The file's path without ` (deleted)`, or a name such as `[heap]`;
    /// empty for anonymous memory without one.
    pub name: Rc<str>,
}

impl Mapping {
    fn parse(line: &[u8]) -> Option<Self> {
        let mut fields = line.splitn(6, |&byte| byte == b' ');
        let mut field = || std::str::from_utf8(fields.next()?).ok();
        let (start, end) = field()?.split_once('-')?;
        let hex = |text| u64::from_str_radix(text, 16).ok();
        let (start, end) = (hex(start)?, hex(end)?);
        let permissions = field()?.as_bytes();
        let offset = hex(field()?)?;
        let (major, minor) = field()?.split_once(':')?;
        let number = |text| u32::from_str_radix(text, 16).ok();
        let device = rustix::fs::makedev(number(major)?, number(minor)?);
        let inode: u64 = field()?.parse().ok()?;
        let name = fields.next().unwrap_or_default().trim_ascii_start();
        let allows = |at: usize, letter| permissions.get(at) == Some(&letter);
        Some(Self {
            start,
            end,
            offset,
            readable: allows(0, b'r'),
            writable: allows(1, b'w'),
            executable: allows(2, b'x'),
            shared: allows(3, b's'),
            file: (inode != 0).then_some(FileId { device, inode }),
            object: None,
            reason: None,
            name: without_deleted(&String::from_utf8_lossy(name)).into(),
        })
    }

    /// Where in the file an address of this mapping is.
    pub fn file_offset(&self, address: u64) -> u64 {
        self.offset.wrapping_add(address.wrapping_sub(self.start))
    }

    /// The part of it in `range`.
    fn part(&self, range: Range<u64>) -> Self {
        let offset = self.file_offset(range.start);
        Self { start: range.start, end: range.end, offset, ..self.clone() }
    }

    fn keeps_names(&self) -> bool {
        self.executable && self.file.is_some()
    }
}

fn without_deleted(name: &str) -> &str {
    name.strip_suffix(" (deleted)").unwrap_or(name)
}

/// A file found but not opened: nothing happens to a device or a pipe by that.
struct Found(OwnedFd);

impl Found {
    fn at(path: &Path) -> rustix::io::Result<(Self, Stat)> {
        let fd = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
        let stat = rustix::fs::fstat(&fd)?;
        Ok((Self(fd), stat))
    }

    fn file_system(&self) -> u64 {
        // The type is a C long of 32 or 64 bits, the numbers have 32.
        rustix::fs::fstatfs(&self.0).map_or(0, |stat| stat.f_type as u64 & 0xffff_ffff)
    }

    fn read(&self) -> rustix::io::Result<File> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        rustix::fs::open(fd_path(&self.0), flags, Mode::empty()).map(File::from)
    }
}

/// The files held open, shared by all processes. A file is closed when the last
/// [`Maps`] that holds it is gone.
#[derive(Debug)]
pub struct Objects {
    open: HashMap<FileId, Weak<Object>>,
    limit: usize,
}

/// Never hold fewer files than this, whatever the limit of the process.
const LEAST_FILES: usize = 64;
/// More files than this are never executed by the processes looked at.
const MOST_FILES: usize = 1 << 14;

impl Default for Objects {
    /// Holds at most half as many files as this process may open.
    fn default() -> Self {
        let allowed = rustix::process::getrlimit(Resource::Nofile).current;
        let half = allowed.map_or(MOST_FILES, |n| usize::try_from(n / 2).unwrap_or(MOST_FILES));
        Self::with_limit(half.clamp(LEAST_FILES, MOST_FILES))
    }
}

impl Objects {
    /// Holds at most `limit` files open.
    pub fn with_limit(limit: usize) -> Self {
        Self { open: HashMap::new(), limit }
    }

    /// The file of a mapping, opened.
    fn get(
        &mut self,
        procfs: &ProcFs,
        pid: u32,
        mapping: &Mapping,
        listed: FileId,
    ) -> Result<Rc<Object>, &'static str> {
        let Backing { found, stat, file_system } = Backing::reach(procfs, pid, mapping, listed)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err("not a regular file");
        }
        let id = FileId::of(listed, &stat, file_system);
        if let Some(object) = self.open.get(&id).and_then(Weak::upgrade) {
            return Ok(object);
        }
        if self.open.len() >= self.limit {
            self.open.retain(|_, object| object.strong_count() > 0);
            if self.open.len() >= self.limit {
                return Err("too many files held open");
            }
        }
        let file = found.read().map_err(|errno| match errno {
            Errno::ACCESS | Errno::PERM => "no right to read the file",
            Errno::MFILE | Errno::NFILE => "too many files held open",
            _ => "the file cannot be read",
        })?;
        let object = Rc::new(Object::new(id, &mapping.name, file, size(&stat)));
        self.open.insert(id, Rc::downgrade(&object));
        Ok(object)
    }
}

/// The file of a mapping, found and not opened.
pub struct Backing {
    found: Found,
    stat: Stat,
    file_system: u64,
}

impl Backing {
    /// Finds the file of a mapping; `None`: there is none.
    ///
    /// # Errors
    /// It cannot be reached, in words.
    pub fn of(procfs: &ProcFs, pid: u32, mapping: &Mapping) -> Result<Option<Self>, &'static str> {
        mapping.file.map(|listed| Self::reach(procfs, pid, mapping, listed)).transpose()
    }

    /// Through `map_files`, which names exactly the mapped file even if it is
    /// deleted or in another container and needs `CAP_CHECKPOINT_RESTORE` or
    /// `CAP_SYS_ADMIN` (proc_pid_map_files(5)), else by its path below the
    /// process's root if the same file is still there.
    fn reach(
        procfs: &ProcFs,
        pid: u32,
        mapping: &Mapping,
        listed: FileId,
    ) -> Result<Self, &'static str> {
        let exact =
            procfs.process(pid, &format!("map_files/{:x}-{:x}", mapping.start, mapping.end));
        if let Ok((found, stat)) = Found::at(&exact) {
            let file_system = found.file_system();
            return Ok(Self { found, stat, file_system });
        }
        let root = procfs.process(pid, "root");
        let (found, stat, file_system) = by_path(root, &mapping.name, listed)?;
        Ok(Self { found, stat, file_system })
    }

    /// Its size in bytes; `None` of what is no regular file and has no size.
    pub fn size(&self) -> Option<u64> {
        let regular = FileType::from_raw_mode(self.stat.st_mode) == FileType::RegularFile;
        regular.then(|| size(&self.stat))
    }

    /// Whether it is memory: tmpfs, a memfd, SysV or shared anonymous memory.
    /// A device in `/dev` is none, though its name is in a tmpfs.
    pub fn is_shmem(&self) -> bool {
        self.file_system == TMPFS && self.size().is_some()
    }

    /// Whether it is made of huge pages set aside for that (hugetlbfs).
    pub fn is_hugetlb(&self) -> bool {
        self.file_system == HUGETLBFS
    }

    /// Opens it for reading.
    ///
    /// # Errors
    /// There is no right to.
    pub fn open(&self) -> rustix::io::Result<File> {
        self.found.read()
    }
}

/// The mappings of a process, by address; no file is opened.
///
/// # Errors
/// The process has gone, or there is no right to look at it.
pub fn list(procfs: &ProcFs, pid: u32) -> Result<Vec<Mapping>> {
    let path = procfs.process(pid, "maps");
    let text = fs::read(&path).context(|| format!("reading {}", path.display()))?;
    Ok(Maps::parse(&text).now)
}

fn by_path(root: PathBuf, name: &str, listed: FileId) -> Result<(Found, Stat, u64), &'static str> {
    let below = name.strip_prefix('/').ok_or("the file has no path")?;
    // The kernel writes a newline as \012 (seq_path, fs/seq_file.c).
    let path = root.join(below.replace("\\012", "\n"));
    let (found, stat) = Found::at(&path).map_err(|errno| match errno {
        Errno::ACCESS | Errno::PERM => "no right to reach the file",
        Errno::NOENT | Errno::NOTDIR | Errno::SRCH => "the file has gone",
        _ => "the file cannot be reached",
    })?;
    let file_system = found.file_system();
    // Never the wrong file: elsewhere the device must be the same too.
    let device_differs = matches!(file_system, OVERLAYFS | BTRFS | BCACHEFS);
    let same = stat.st_ino == listed.inode && (device_differs || stat.st_dev == listed.device);
    if same { Ok((found, stat, file_system)) } else { Err("another file has its path now") }
}

/// What one process maps, and executable files it mapped earlier.
#[derive(Debug, Default)]
pub struct Maps {
    /// Ordered by address, never overlapping.
    now: Vec<Mapping>,
    /// Executable file mappings that are gone, oldest first; none overlaps `now`.
    gone: Vec<Mapping>,
}

/// A process that maps and unmaps code without end must not fill our memory.
const MOST_GONE: usize = 4096;

impl Maps {
    /// Reads the mappings of a process and opens the files it can execute.
    ///
    /// # Errors
    /// The process has gone, or there is no right to look at it.
    pub fn read(procfs: &ProcFs, pid: u32, objects: &mut Objects) -> Result<Self> {
        let path = procfs.process(pid, "maps");
        let text = fs::read(&path).context(|| format!("reading {}", path.display()))?;
        let mut maps = Self::parse(&text);
        for mapping in maps.now.iter_mut().filter(|mapping| mapping.executable) {
            let Some(listed) = mapping.file else { continue };
            match objects.get(procfs, pid, mapping, listed) {
                Ok(object) => mapping.object = Some(object),
                Err(reason) => mapping.reason = Some(reason),
            }
        }
        Ok(maps)
    }

    /// Our own parser: that of the procfs crate gives up on a path that is not
    /// UTF-8, and panics on a file called `/SYSV`.
    fn parse(text: &[u8]) -> Self {
        let lines = text.split(|&byte| byte == b'\n');
        let mut now: Vec<Mapping> = lines.filter_map(Mapping::parse).collect();
        // A maps file that changes while it is read can repeat a range.
        now.retain(|mapping| mapping.start < mapping.end);
        now.sort_by_key(|mapping| mapping.start);
        now.dedup_by(|later, earlier| later.start < earlier.end);
        Self { now, gone: Vec::new() }
    }

    /// As if a process mapped all of a file at `start`, to be executed.
    #[cfg(test)]
    pub(crate) fn of_file(path: &Path, start: u64) -> Self {
        let object = Rc::new(Object::open(path).unwrap());
        let mapping = Mapping {
            start,
            end: start + (1 << 32),
            offset: 0,
            readable: true,
            writable: false,
            executable: true,
            shared: false,
            file: Some(object.id),
            name: Rc::clone(&object.path),
            object: Some(object),
            reason: None,
        };
        Self { now: vec![mapping], gone: Vec::new() }
    }

    /// Takes over a newer reading of the same process. Executable file ranges
    /// that are not in it are kept, except where it maps something else: a
    /// stack captured before still finds its names. A file that cannot be opened
    /// any more is still held from then: the last reading may be of a process
    /// that was ending.
    pub fn update(&mut self, newer: Maps) {
        let earlier = std::mem::replace(&mut self.now, newer.now);
        for mapping in self.now.iter_mut().filter(|mapping| mapping.reason.is_some()) {
            let mut held = earlier.iter().chain(&self.gone).filter(|one| one.object.is_some());
            if let Some(one) = held.find(|one| one.file == mapping.file) {
                mapping.object.clone_from(&one.object);
                mapping.reason = None;
            }
        }
        let mut gone = std::mem::take(&mut self.gone);
        gone.extend(earlier.into_iter().filter(Mapping::keeps_names));
        for mapping in gone {
            for range in uncovered(&self.now, mapping.start..mapping.end) {
                self.gone.push(mapping.part(range));
            }
        }
        let excess = self.gone.len().saturating_sub(MOST_GONE);
        self.gone.drain(..excess);
    }

    /// The mapping of an address: today's, or the latest that was there.
    pub fn find(&self, address: u64) -> Option<&Mapping> {
        let holds = |mapping: &&Mapping| (mapping.start..mapping.end).contains(&address);
        let after = self.now.partition_point(|mapping| mapping.start <= address);
        let now = after.checked_sub(1).and_then(|at| self.now.get(at));
        now.filter(holds).or_else(|| self.gone.iter().rev().find(holds))
    }

    /// Today's mappings, by address.
    pub fn mappings(&self) -> &[Mapping] {
        &self.now
    }

    /// The distinct files mapped executable, those of earlier readings too.
    pub fn executables(&self) -> impl Iterator<Item = &Rc<Object>> {
        let mut seen = HashSet::new();
        self.now
            .iter()
            .chain(&self.gone)
            .filter_map(|mapping| mapping.object.as_ref())
            .filter(move |object| seen.insert(object.serial))
    }

    /// Executable files that could not be opened, each with the reason.
    pub fn unopened(&self) -> impl Iterator<Item = (&str, &'static str)> {
        self.now.iter().filter_map(|mapping| Some((&*mapping.name, mapping.reason?)))
    }
}

/// The parts of `range` that none of the ordered `mappings` covers.
fn uncovered(mappings: &[Mapping], range: Range<u64>) -> Vec<Range<u64>> {
    let mut free = Vec::new();
    let mut start = range.start;
    let first = mappings.partition_point(|mapping| mapping.end <= range.start);
    for mapping in mappings.iter().skip(first) {
        if mapping.start >= range.end {
            break;
        }
        if start < mapping.start {
            free.push(start..mapping.start);
        }
        start = start.max(mapping.end);
    }
    if start < range.end {
        free.push(start..range.end);
    }
    free
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;
    use std::io::Write as _;

    use super::*;

    const TEXT: &[u8] = b"\
1000-3000 r-xp 00002000 fd:01 42                         /usr/lib/lib a.so (deleted)\n\
3000-4000 rw-s 00004000 00:10 0 \n\
4000-5000 r-xp 00000000 fd:01 7                          /SYSV\n\
5000-6000 r-xp 00000000 fd:01 8                          /lib/\xff.so\n\
6000-7000 rw-p 00000000 00:00 0                          [heap]\n\
not a line\n\
ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0                  [vsyscall]\n";

    fn ranges(mappings: &[Mapping]) -> Vec<(u64, u64, u64, &str)> {
        mappings.iter().map(|m| (m.start, m.end, m.offset, &*m.name)).collect()
    }

    #[test]
    fn lines_are_read_with_odd_names_too() {
        let maps = Maps::parse(TEXT);
        assert_eq!(
            ranges(maps.mappings()),
            [
                (0x1000, 0x3000, 0x2000, "/usr/lib/lib a.so"),
                (0x3000, 0x4000, 0x4000, ""),
                (0x4000, 0x5000, 0, "/SYSV"),
                (0x5000, 0x6000, 0, "/lib/\u{fffd}.so"),
                (0x6000, 0x7000, 0, "[heap]"),
                (0xffff_ffff_ff60_0000, 0xffff_ffff_ff60_1000, 0, "[vsyscall]"),
            ]
        );
        let first = &maps.mappings()[0];
        assert!(first.readable && first.executable && !first.writable && !first.shared);
        assert_eq!(first.file, Some(FileId { device: rustix::fs::makedev(0xfd, 1), inode: 42 }));
        assert_eq!(first.file_offset(0x1010), 0x2010);
        assert_eq!(maps.mappings()[1].file, None);
        assert!(maps.mappings()[1].shared && maps.mappings()[1].writable);
    }

    #[test]
    fn an_address_is_found_in_its_half_open_range() {
        let maps = Maps::parse(TEXT);
        let name = |address| maps.find(address).map(|mapping| mapping.start);
        assert_eq!(name(0xfff), None);
        assert_eq!(name(0x1000), Some(0x1000));
        assert_eq!(name(0x2fff), Some(0x1000));
        assert_eq!(name(0x3000), Some(0x3000));
        assert_eq!(name(0x7000), None);
        assert_eq!(name(u64::MAX), None);
    }

    #[test]
    fn files_that_are_gone_keep_what_nothing_newer_covers() {
        let mut maps = Maps::parse(b"1000-9000 r-xp 00002000 fd:01 42   /a\n");
        maps.update(Maps::parse(
            b"3000-4000 r-xp 00000000 fd:01 7   /b\n5000-6000 rw-p 00000000 00:00 0 \n",
        ));
        let kept = [(0x1000, 0x3000, 0x2000), (0x4000, 0x5000, 0x5000), (0x6000, 0x9000, 0x7000)];
        assert_eq!(ranges(&maps.gone), kept.map(|(start, end, offset)| (start, end, offset, "/a")));
        assert_eq!(&*maps.find(0x3500).unwrap().name, "/b");
        assert_eq!(maps.find(0x6010).unwrap().file_offset(0x6010), 0x7010);
        // The data mapping goes and leaves nothing; /b stays known.
        maps.update(Maps::parse(b"6000-7000 r-xp 00000000 fd:01 9   /c\n"));
        assert_eq!(&*maps.find(0x3500).unwrap().name, "/b");
        assert!(maps.find(0x5500).is_none());
        assert_eq!(&*maps.find(0x6010).unwrap().name, "/c");
        assert_eq!(maps.find(0x7010).unwrap().file_offset(0x7010), 0x8010);
    }

    #[test]
    fn a_reading_of_a_process_that_is_ending_loses_no_file() {
        let mut objects = Objects::default();
        let mut maps = own(&mut objects);
        let before: Vec<u64> = maps.executables().map(|object| object.serial).collect();
        assert!(!before.is_empty());
        let mut later = own(&mut objects);
        for mapping in &mut later.now {
            mapping.reason = mapping.object.take().map(|_| "the file has gone");
        }
        maps.update(later);
        assert_eq!(maps.unopened().next(), None);
        assert_eq!(maps.executables().map(|object| object.serial).collect::<Vec<_>>(), before);
    }

    #[test]
    fn the_latest_of_what_is_gone_wins_and_their_number_is_bounded() {
        let mut maps = Maps::default();
        for inode in 1..=3 {
            maps.update(Maps::parse(
                format!("1000-2000 r-xp 00000000 fd:01 {inode}   /{inode}\n").as_bytes(),
            ));
            maps.update(Maps::default());
        }
        assert_eq!(&*maps.find(0x1000).unwrap().name, "/3");
        let many: String = (1..=2 * MOST_GONE)
            .map(|at| format!("{:x}-{:x} r-xp 00000000 fd:01 9   /x\n", at << 16, (at << 16) + 1))
            .collect();
        maps.update(Maps::parse(many.as_bytes()));
        maps.update(Maps::default());
        assert_eq!(maps.gone.len(), MOST_GONE);
        assert!(maps.find((2 * MOST_GONE as u64) << 16).is_some());
        assert!(maps.find((MOST_GONE as u64) << 16).is_none());
    }

    fn own(objects: &mut Objects) -> Maps {
        Maps::read(&ProcFs::default(), std::process::id(), objects).unwrap()
    }

    #[test]
    fn own_executables_are_opened_once_and_are_the_right_files() {
        let mut objects = Objects::default();
        let first = own(&mut objects);
        let second = own(&mut objects);
        let exe = std::env::current_exe().unwrap();
        let find = |maps: &Maps| {
            maps.executables().find(|object| Path::new(&*object.path) == exe).cloned().unwrap()
        };
        let object = find(&first);
        assert!(Rc::ptr_eq(&object, &find(&second)));
        assert_eq!(object.size, fs::metadata(&exe).unwrap().len());
        let data = object.data().unwrap();
        assert_eq!(data.len() as u64, object.size);
        assert_eq!(&data[..4], b"\x7fELF");
        let mut start = [0; 64];
        File::open(object.fd_path()).unwrap().read_exact(&mut start).unwrap();
        assert_eq!(start, data[..64]);
        assert_eq!(first.unopened().count(), 0);
        // The path leads to the same file, where map_files may not be read.
        let mapping = first.mappings().iter().find(|m| m.name == object.path).unwrap();
        let stat = by_path("/proc/self/root".into(), &mapping.name, mapping.file.unwrap());
        assert_eq!(stat.unwrap().1.st_ino, object.id.inode);
        let distinct: HashSet<FileId> = first.executables().map(|object| object.id).collect();
        assert_eq!(distinct.len(), first.executables().count());
    }

    #[test]
    fn no_more_files_are_held_than_allowed_and_gone_ones_are_closed() {
        let mut none = Objects::with_limit(0);
        let maps = own(&mut none);
        assert_eq!(maps.executables().count(), 0);
        assert!(maps.unopened().all(|(_, reason)| reason == "too many files held open"));
        assert!(maps.unopened().count() > 0);

        let mut objects = Objects::default();
        let count = own(&mut objects).executables().count();
        let mut exact = Objects::with_limit(count);
        drop(own(&mut exact));
        // What the first reading held is closed by now and makes room.
        assert_eq!(own(&mut exact).unopened().count(), 0);
    }

    #[test]
    fn a_path_is_believed_only_with_the_right_inode() {
        let folder = std::env::temp_dir().join(format!("mw-maps-{}", std::process::id()));
        fs::create_dir_all(&folder).unwrap();
        let path = folder.join("lib.so");
        fs::write(&path, "one").unwrap();
        let stat = Found::at(&path).unwrap().1;
        let listed = FileId { device: stat.st_dev, inode: stat.st_ino };
        let name = path.to_str().unwrap();
        let try_it = |name, listed| by_path("/".into(), name, listed).map(|found| found.1.st_ino);
        assert_eq!(try_it(name, listed), Ok(stat.st_ino));
        let other = FileId { inode: stat.st_ino + 1, ..listed };
        assert_eq!(try_it(name, other), Err("another file has its path now"));
        // The old file is kept, so that its inode is not given to the new one.
        fs::rename(&path, folder.join("old")).unwrap();
        assert_eq!(try_it(name, listed), Err("the file has gone"));
        File::create(&path).unwrap().write_all(b"two").unwrap();
        assert_eq!(try_it(name, listed), Err("another file has its path now"));
        assert_eq!(try_it("memfd:x", listed), Err("the file has no path"));
        fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn subvolumes_are_told_apart_and_overlays_of_one_file_are_not() {
        let mut stat = Found::at(Path::new("/proc/self/exe")).unwrap().1;
        let listed = FileId { device: stat.st_dev + 1, inode: 5 };
        let by_stat = FileId { device: stat.st_dev, inode: stat.st_ino };
        assert_eq!(FileId::of(listed, &stat, BTRFS), by_stat);
        // Listed as the file below, or as that of one of two mounts.
        assert_eq!(FileId::of(listed, &stat, OVERLAYFS), listed);
        let first = FileId::of(by_stat, &stat, OVERLAYFS);
        assert_ne!(first, by_stat);
        stat.st_dev += 1;
        let second = FileId { device: stat.st_dev, ..by_stat };
        assert_eq!(FileId::of(second, &stat, OVERLAYFS), first);
        stat.st_ctime_nsec += 1;
        assert_ne!(FileId::of(second, &stat, OVERLAYFS), first);
    }

    #[test]
    fn a_process_that_is_gone_is_an_error() {
        let error = Maps::read(&ProcFs::default(), i32::MAX as u32, &mut Objects::default());
        assert!(error.unwrap_err().to_string().starts_with("reading /proc/2147483647/maps: "));
    }

    #[test]
    fn the_last_part_of_a_path_is_its_name() {
        let names = ["/usr/lib/libc.so.6", "kernel", "/", ""].map(base_name);
        assert_eq!(names, ["libc.so.6", "kernel", "/", ""]);
    }
}

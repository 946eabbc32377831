//! Paths as the kernel side hands them over (`src/bpf/include/path.bpf.h`): names
//! from the last to the first, each with its terminator.

/// `PATH_PSEUDO` of path.bpf.h.
pub(crate) const PSEUDO: u32 = 1;
/// `PATH_UNLINKED` of path.bpf.h.
pub(crate) const UNLINKED: u32 = 2;
/// `PATH_CUT` of path.bpf.h.
const CUT: u32 = 4;

/// Who a file is, as the kernel side hands it over.
#[derive(Clone, Copy, Debug, Default)]
pub struct Named<'names> {
    /// The names.
    pub names: &'names [u8],
    /// `PATH_*` of path.bpf.h.
    pub flags: u32,
    /// The file system's magic number (include/uapi/linux/magic.h).
    pub magic: u64,
    /// The inode's number.
    pub inode: u64,
}

/// File systems whose files have names of their own kind
/// (include/uapi/linux/magic.h).
const ANON_INODE: u64 = 0x0904_1934;
const PIPEFS: u64 = 0x5049_5045;
const SOCKFS: u64 = 0x534f_434b;
const DMA_BUF: u64 = 0x444d_4142;

impl Named<'_> {
    /// The path, written as in `/proc/PID/maps`: a file that has lost its name,
    /// and one that never had any, ends in ` (deleted)` (d_path(),
    /// simple_dname(), fs/d_path.c); pipes, sockets and their like are called
    /// what their file systems call them. What was too long begins with `...`.
    pub fn path(&self) -> String {
        let names = self.names.strip_suffix(&[0]).unwrap_or(self.names);
        let mut parts: Vec<&[u8]> = match names.is_empty() {
            true => Vec::new(),
            false => names.split(|&byte| byte == 0).collect(),
        };
        parts.reverse();
        let mut path = String::from(if self.flags & CUT != 0 { "..." } else { "" });
        for part in &parts {
            path.push('/');
            path.push_str(&String::from_utf8_lossy(part));
        }
        if parts.is_empty() {
            path.push('/');
        }
        if self.flags & PSEUDO != 0 {
            let name = path.trim_start_matches('/');
            // anon_inodefs_dname(), pipefs_dname(), sockfs_dname(), dmabuffs_dname()
            return match self.magic {
                ANON_INODE => format!("anon_inode:{name}"),
                PIPEFS => format!("pipe:[{}]", self.inode),
                SOCKFS => format!("socket:[{}]", self.inode),
                DMA_BUF => format!("/dmabuf:{name}"),
                _ => path + " (deleted)",
            };
        }
        if self.flags & UNLINKED != 0 {
            path.push_str(" (deleted)");
        }
        path
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_put_in_order() {
        let path = |names, flags| Named { names, flags, ..Named::default() }.path();
        assert_eq!(path(b"libc.so.6\0lib\0usr\0", 0), "/usr/lib/libc.so.6");
        assert_eq!(path(b"x\0", UNLINKED), "/x (deleted)");
        assert_eq!(path(b"memfd:a b\0", PSEUDO), "/memfd:a b (deleted)");
        assert_eq!(path(b"\xff\0b\0", CUT), ".../b/\u{fffd}");
        // Cut in the middle of a name.
        assert_eq!(path(b"x\0hal", CUT), ".../hal/x");
        assert_eq!(path(b"", 0), "/");
    }

    #[test]
    fn files_without_a_path_are_called_by_their_kind() {
        let name = |names, magic| Named { names, flags: PSEUDO, magic, inode: 23 }.path();
        assert_eq!(name(b"bpf-map\0", ANON_INODE), "anon_inode:bpf-map");
        assert_eq!(name(b"\0", SOCKFS), "socket:[23]");
        assert_eq!(name(b"\0", PIPEFS), "pipe:[23]");
        assert_eq!(name(b"x\0", DMA_BUF), "/dmabuf:x");
    }
}

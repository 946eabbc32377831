//! What the kernel keeps about each frame of memory: `/proc/kpageflags`.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

/// Bits of `/proc/kpageflags` and their names, as the kernel's own
/// tools/mm/page-types calls them (include/uapi/linux/kernel-page-flags.h,
/// include/linux/kernel-page-flags.h).
const NAMES: [(u32, &str); 38] = [
    (0, "locked"),
    (1, "error"),
    (2, "referenced"),
    (3, "uptodate"),
    (4, "dirty"),
    (5, "lru"),
    (6, "active"),
    (7, "slab"),
    (8, "writeback"),
    (9, "reclaim"),
    (10, "buddy"),
    (11, "mmap"),
    (12, "anonymous"),
    (13, "swapcache"),
    (14, "swapbacked"),
    (15, "compound_head"),
    (16, "compound_tail"),
    (17, "huge"),
    (18, "unevictable"),
    (19, "hwpoison"),
    (20, "nopage"),
    (21, "ksm"),
    (22, "thp"),
    (23, "offline"),
    (24, "zero_page"),
    (25, "idle_page"),
    (26, "pgtable"),
    (32, "reserved"),
    (33, "mlocked"),
    (34, "owner_2"),
    (35, "private"),
    (36, "private_2"),
    (37, "owner_private"),
    (38, "arch"),
    (39, "uncached"),
    (40, "softdirty"),
    (41, "arch_2"),
    (42, "arch_3"),
];

/// The page has changed since it was read from its file.
pub(super) const DIRTY: u64 = 1 << 4;
/// The first page of several that are one.
pub(super) const HEAD: u64 = 1 << 15;
/// Another page of these.
pub(super) const TAIL: u64 = 1 << 16;
/// A transparent huge page.
pub(super) const THP: u64 = 1 << 22;
/// The zero page that everybody shares, small or huge.
pub(super) const ZERO_PAGE: u64 = 1 << 24;

/// The names of the flags, in the order of their bits.
pub fn names(flags: u64) -> String {
    let mut text = String::new();
    let mut rest = flags;
    for (bit, name) in NAMES {
        if flags & (1 << bit) != 0 {
            if !text.is_empty() {
                text.push(',');
            }
            text.push_str(name);
            rest &= !(1 << bit);
        }
    }
    if rest != 0 {
        // A newer kernel has more of them.
        let separator = if text.is_empty() { "" } else { "," };
        text.push_str(&format!("{separator}{rest:#x}"));
    }
    text
}

/// Frames read at once.
const AT_ONCE: usize = 512;

/// `/proc/kpageflags`. Reading it takes no lock of any process.
pub struct PageFlags {
    file: File,
    last: Option<(u64, u64)>,
}

impl PageFlags {
    /// Opens it; `None` if this kernel has it not (`CONFIG_PROC_PAGE_MONITOR`)
    /// or does not let us: it is root's.
    pub fn open() -> Option<Self> {
        Self::at(Path::new("/proc/kpageflags"))
    }

    fn at(path: &Path) -> Option<Self> {
        Some(Self { file: File::open(path).ok()?, last: None })
    }

    /// The flags of one frame; `None`: there is no such frame.
    pub fn of(&mut self, frame: u64) -> Option<u64> {
        if let Some((known, flags)) = self.last
            && known == frame
        {
            return Some(flags);
        }
        let mut bytes = [0; 8];
        self.file.read_exact_at(&mut bytes, frame.checked_mul(8)?).ok()?;
        let flags = u64::from_ne_bytes(bytes);
        self.last = Some((frame, flags));
        Some(flags)
    }

    /// Calls `each` with the flags of every frame, in order. Frames that follow
    /// one another are read together.
    pub fn each(&mut self, frames: &[u64], mut each: impl FnMut(usize, Option<u64>)) {
        let mut bytes = [0; AT_ONCE * 8];
        let mut at = 0;
        while let Some(&first) = frames.get(at) {
            let follows = |(n, frame): (u64, &u64)| *frame == first.wrapping_add(n);
            let run = frames.iter().skip(at).take(AT_ONCE);
            let run = (0..).zip(run).take_while(|pair| follows(*pair)).count();
            if run == 1 {
                each(at, self.of(first));
                at += 1;
                continue;
            }
            let part = bytes.get_mut(..run * 8).unwrap_or_default();
            let read = first.checked_mul(8).and_then(|from| self.file.read_at(part, from).ok());
            let (words, _) = part.as_chunks::<8>();
            for (n, word) in words.iter().enumerate() {
                let there = read.is_some_and(|read| read >= (n + 1) * 8);
                each(at + n, there.then(|| u64::from_ne_bytes(*word)));
            }
            at += run;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn flags_have_the_names_of_page_types() {
        assert_eq!(names(0), "");
        assert_eq!(names(1 << 2 | 1 << 11 | 1 << 12), "referenced,mmap,anonymous");
        assert_eq!(names(ZERO_PAGE | THP), "thp,zero_page");
        assert_eq!(names(1 << 63 | 1), "locked,0x8000000000000000");
        assert!(NAMES.is_sorted_by_key(|(bit, _)| *bit));
    }

    #[test]
    fn frames_are_read_one_by_one_and_in_runs_alike() {
        let path = std::env::temp_dir().join(format!("mw-flags-{}", std::process::id()));
        let words: Vec<u8> = (0..1000u64).flat_map(|frame| (frame * 3).to_ne_bytes()).collect();
        fs::write(&path, words).unwrap();
        let mut flags = PageFlags::at(&path).unwrap();
        fs::remove_file(&path).unwrap();
        assert_eq!((flags.of(7), flags.of(7), flags.of(1000)), (Some(21), Some(21), None));
        let frames: Vec<u64> =
            [5, 5, 5].into_iter().chain(100..800).chain([3]).chain(997..1003).collect();
        let mut seen = Vec::new();
        flags.each(&frames, |at, flags| seen.push((at, flags)));
        let wanted: Vec<(usize, Option<u64>)> =
            frames.iter().map(|&frame| (frame < 1000).then_some(frame * 3)).enumerate().collect();
        assert_eq!(seen, wanted);
    }
}

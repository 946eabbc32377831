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
    /// The last page looked at that is part of a larger one, and the flags of
    /// the first page there.
    part: Option<(u64, u64)>,
}

impl PageFlags {
    /// Opens it; `None` if this kernel has it not (`CONFIG_PROC_PAGE_MONITOR`)
    /// or does not let us: it is root's.
    pub fn open() -> Option<Self> {
        Self::at(Path::new("/proc/kpageflags"))
    }

    fn at(path: &Path) -> Option<Self> {
        Some(Self { file: File::open(path).ok()?, last: None, part: None })
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

    /// The flags of a page that is perhaps one of several that are one: most
    /// belong to all of them, and older kernels show them with the first page
    /// only (stable_page_flags, fs/proc/page.c).
    fn of_all(&mut self, frame: u64, flags: u64) -> u64 {
        if flags & TAIL == 0 {
            return flags;
        }
        let first = match self.part {
            Some((last, first)) if frame.wrapping_sub(last) <= 1 => Some(first),
            _ => self.first_of(frame),
        };
        let Some(first) = first else { return flags };
        self.part = Some((frame, first));
        first | flags & !TAIL
    }

    /// The flags of the first of several pages that are one. These are a power
    /// of two, and aligned: what lies between them at a smaller power is no
    /// first page.
    fn first_of(&mut self, frame: u64) -> Option<u64> {
        let mut seen = frame;
        for order in 0..u64::BITS {
            let candidate = frame >> order << order;
            if candidate == seen {
                continue;
            }
            seen = candidate;
            let flags = self.of(candidate)?;
            if flags & HEAD != 0 {
                return Some(flags);
            }
            if flags & TAIL == 0 {
                return None;
            }
        }
        None
    }

    /// Calls `each` with the flags of every frame, in order; with those of the
    /// first page too where several are one. Frames that follow one another are
    /// read together.
    pub fn each(&mut self, frames: &[u64], mut each: impl FnMut(usize, Option<u64>)) {
        let mut bytes = [0; AT_ONCE * 8];
        let mut at = 0;
        while let Some(&first) = frames.get(at) {
            let follows = |(n, frame): (u64, &u64)| *frame == first.wrapping_add(n);
            let run = frames.iter().skip(at).take(AT_ONCE);
            let run = (0..).zip(run).take_while(|pair| follows(*pair)).count();
            if run == 1 {
                let flags = self.of(first).map(|flags| self.of_all(first, flags));
                each(at, flags);
                at += 1;
                continue;
            }
            let part = bytes.get_mut(..run * 8).unwrap_or_default();
            let read = first.checked_mul(8).and_then(|from| self.file.read_at(part, from).ok());
            let (words, _) = part.as_chunks::<8>();
            for (n, word) in words.iter().enumerate() {
                let there = read.is_some_and(|read| read >= (n + 1) * 8);
                let frame = first + n as u64;
                each(at + n, there.then(|| self.of_all(frame, u64::from_ne_bytes(*word))));
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
        let words: Vec<u8> = (0..1000u64).flat_map(|frame| (frame % 7).to_ne_bytes()).collect();
        fs::write(&path, words).unwrap();
        let mut flags = PageFlags::at(&path).unwrap();
        fs::remove_file(&path).unwrap();
        assert_eq!((flags.of(7), flags.of(7), flags.of(1000)), (Some(0), Some(0), None));
        let frames: Vec<u64> =
            [5, 5, 5].into_iter().chain(100..800).chain([3]).chain(997..1003).collect();
        let mut seen = Vec::new();
        flags.each(&frames, |at, flags| seen.push((at, flags)));
        let wanted: Vec<(usize, Option<u64>)> =
            frames.iter().map(|&frame| (frame < 1000).then_some(frame % 7)).enumerate().collect();
        assert_eq!(seen, wanted);
    }

    #[test]
    fn the_first_of_several_pages_speaks_for_all() {
        let path = std::env::temp_dir().join(format!("mw-parts-{}", std::process::id()));
        let of = |frame: u64| match frame {
            64 => HEAD | DIRTY,
            65..96 => TAIL | 1 << 11,
            96 => HEAD,
            97..128 => TAIL,
            _ => 1 << 11,
        };
        let words: Vec<u8> = (0..200).flat_map(|frame| of(frame).to_ne_bytes()).collect();
        fs::write(&path, words).unwrap();
        let mut flags = PageFlags::at(&path).unwrap();
        fs::remove_file(&path).unwrap();
        // From the middle on, over the border, one out of the middle, others.
        let frames: Vec<u64> = (77..111).chain([70, 127, 128, 95]).collect();
        let mut seen = Vec::new();
        flags.each(&frames, |_, flags| seen.push(flags.unwrap()));
        let wanted: Vec<u64> = frames
            .iter()
            .map(|frame| match frame {
                64..96 => HEAD | DIRTY | 1 << 11,
                96..128 => HEAD,
                _ => 1 << 11,
            })
            .collect();
        assert_eq!(seen, wanted);
    }
}

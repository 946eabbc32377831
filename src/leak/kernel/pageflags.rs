//! What pages are used for, from `/proc/kpageflags`.

use std::fs::File;
use std::os::unix::fs::FileExt as _;

/// Documentation/admin-guide/mm/pagemap.rst. Of a block of pages the first has it.
const KPF_SLAB: u64 = 1 << 7;

/// Pages whose flags are read at a time.
const WINDOW: u64 = 512;

/// For each page number of an ascending list, whether the slab allocator has the
/// page. A page that cannot be read is not its.
pub(super) fn are_slab(flags: &File, numbers: &[u64]) -> Vec<bool> {
    let mut window = vec![0; WINDOW as usize * 8];
    let mut start = None;
    let mut have = 0;
    let mut answers = Vec::with_capacity(numbers.len());
    for &number in numbers {
        let first = number / WINDOW * WINDOW;
        if start != Some(first) {
            start = Some(first);
            // Short at the end of memory.
            have = first.checked_mul(8).map_or(0, |at| flags.read_at(&mut window, at).unwrap_or(0));
        }
        let at = (number - first) as usize * 8;
        let word = window.get(at..at + 8).filter(|_| at + 8 <= have);
        let word = word.and_then(|word| word.try_into().ok()).map_or(0, u64::from_ne_bytes);
        answers.push(word & KPF_SLAB != 0);
    }
    answers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_found_by_page_number() {
        let path = std::env::temp_dir().join(format!("kpageflags-{}", std::process::id()));
        let slab = [3u64, 511, 512, 700];
        let words: Vec<u8> = (0..701u64)
            .flat_map(|page| {
                let other = 0x0101_0000 | (page % 2) << 6;
                (if slab.contains(&page) { other | 1 << 7 } else { other }).to_ne_bytes()
            })
            .collect();
        std::fs::write(&path, words).unwrap();
        let file = File::open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let asked = [0, 3, 4, 510, 511, 512, 699, 700, 701, 40_000, u64::MAX];
        let found: Vec<u64> = asked
            .into_iter()
            .zip(are_slab(&file, &asked))
            .filter_map(|(page, is_slab)| is_slab.then_some(page))
            .collect();
        assert_eq!(found, slab);
    }
}

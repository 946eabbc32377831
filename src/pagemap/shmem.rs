//! Which pages of shared memory are swapped out. Page tables do not say:
//! a page of tmpfs that is swapped out leaves nothing in them.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::ptr;

use rustix::fs::SeekFrom;
use rustix::io::Errno;
use rustix::mm::MapFlags;
use rustix::mm::ProtFlags;

use crate::units::page_size;

/// How much is mapped and asked for at a time.
const WINDOW: u64 = 64 << 20;

/// Calls `each` with the ranges of a tmpfs file, in bytes within `range`, that
/// are swapped out: data (`SEEK_DATA` counts what is in swap,
/// mapping_seek_hole_data, mm/filemap.c) that is not in memory (mincore(2)). The
/// file is mapped for that and no page of it touched.
///
/// # Errors
/// The file cannot be asked, or those of `each`.
pub fn swapped<E: From<io::Error>>(
    file: &File,
    range: Range<u64>,
    mut each: impl FnMut(Range<u64>) -> Result<(), E>,
) -> Result<(), E> {
    let mut at = range.start;
    while at < range.end {
        let data = match rustix::fs::seek(file, SeekFrom::Data(at)) {
            Ok(data) => data,
            // Nothing but a hole follows.
            Err(Errno::NXIO) => return Ok(()),
            Err(errno) => return Err(io::Error::from(errno).into()),
        };
        if data >= range.end {
            return Ok(());
        }
        let hole = rustix::fs::seek(file, SeekFrom::Hole(data)).map_err(io::Error::from)?;
        let end = hole.next_multiple_of(page_size()).min(range.end);
        let mut start = data / page_size() * page_size();
        while start < end {
            let stop = end.min(start + WINDOW);
            for absent in absent(file, start..stop)? {
                each(absent)?;
            }
            start = stop;
        }
        at = end;
    }
    Ok(())
}

/// The pages of a part of a file that are not in memory.
fn absent(file: &File, range: Range<u64>) -> io::Result<Vec<Range<u64>>> {
    let bytes = usize::try_from(range.end - range.start).map_err(io::Error::other)?;
    let mut core = vec![0u8; bytes.div_ceil(page_size() as usize)];
    // SAFETY: a new mapping at an address of the kernel's choice, of which
    // nothing is read; `core` has a byte for each of its pages.
    let asked = unsafe {
        let (read, shared) = (ProtFlags::READ, MapFlags::SHARED);
        let mapped = rustix::mm::mmap(ptr::null_mut(), bytes, read, shared, file, range.start)?;
        let asked = libc::mincore(mapped, bytes, core.as_mut_ptr().cast());
        let error = io::Error::last_os_error();
        rustix::mm::munmap(mapped, bytes)?;
        if asked == 0 { Ok(()) } else { Err(error) }
    };
    asked?;
    let mut found: Vec<Range<u64>> = Vec::new();
    for (page, _) in (0..).zip(&core).filter(|(_, core)| **core & 1 == 0) {
        let start = range.start + page * page_size();
        match found.last_mut() {
            Some(last) if last.end == start => last.end += page_size(),
            _ => found.push(start..start + page_size()),
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt as _;

    use super::*;

    #[test]
    fn what_is_in_memory_or_a_hole_is_not_swapped() {
        let page = page_size();
        let fd = rustix::fs::memfd_create("test", rustix::fs::MemfdFlags::empty()).unwrap();
        rustix::fs::ftruncate(&fd, 64 * page).unwrap();
        let file = File::from(fd);
        file.write_all_at(&vec![1; 3 * page as usize], 20 * page).unwrap();
        let mut found = Vec::new();
        swapped(&file, 0..64 * page, |range| -> io::Result<()> {
            found.push(range);
            Ok(())
        })
        .unwrap();
        assert_eq!(found, []);
        // Data begins where it was written.
        assert_eq!(rustix::fs::seek(&file, SeekFrom::Data(0)), Ok(20 * page));
        // A hole is what nobody asks about; asked, it is not in memory.
        assert_eq!(
            absent(&file, 18 * page..24 * page).unwrap(),
            [18 * page..20 * page, 23 * page..24 * page]
        );
    }
}

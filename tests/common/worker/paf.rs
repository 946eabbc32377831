//! Orders of the tests of `frag` and `paf`: memory in pieces.

use rustix::mm::Advice;
use rustix::mm::ProtFlags;

use super::Region;
use super::State;
use super::page;

impl State {
    pub(super) fn paf(&mut self, order: &str, n: usize, _size: usize) -> Option<String> {
        match order {
            // Keeps n pages, and gives back as many that lie between them.
            "pepper" => {
                let region = Region::map(2 * n, ProtFlags::READ | ProtFlags::WRITE, None);
                region.no_huge_pages();
                region.write();
                for at in (0..region.bytes).step_by(2 * page()) {
                    // SAFETY: a page of a range this worker mapped and reads no more.
                    unsafe {
                        rustix::mm::madvise(
                            region.at.add(at).cast(),
                            page(),
                            Advice::LinuxDontNeed,
                        )
                        .expect("MADV_DONTNEED");
                    }
                }
                self.others.push(region);
            }
            _ => return None,
        }
        Some("done".into())
    }
}

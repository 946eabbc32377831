//! Orders of the tests of `drsnoop` and `swapin`: work that has to wait for memory,
//! each answered with how long it took, in microseconds.

use std::hint::black_box;
use std::io::Read as _;
use std::io::Seek as _;
use std::time::Instant;

use rustix::mm::ProtFlags;

use super::File;
use super::Region;
use super::State;
use super::disk_file;
use super::page;

impl State {
    pub(super) fn stalls(&mut self, order: &str, n: usize) -> Option<String> {
        // The file for what follows, made before anything is counted.
        if order == "stall-file" {
            let file = File::from(disk_file(n));
            file.sync_all().expect("fsync");
            // Whoever reads it next is charged for its pages.
            rustix::fs::fadvise(&file, 0, None, rustix::fs::Advice::DontNeed).expect("fadvise");
            self.files.push(file);
            return Some("done".into());
        }
        let begin = Instant::now();
        match order {
            "stall-read" => {
                let file = self.files.last_mut().expect("stall-file first");
                file.rewind().expect("seeking");
                let mut piece = vec![0; page()];
                for _ in 0..n {
                    file.read_exact(&mut piece).expect("reading");
                    black_box(&piece);
                }
            }
            "stall-anon" => {
                let region = Region::map(n, ProtFlags::READ | ProtFlags::WRITE, None);
                region.no_huge_pages();
                region.write();
                self.anon.push(region);
            }
            // Written, with zeroes.
            "stall-zeroes" => {
                let region = Region::map(n, ProtFlags::READ | ProtFlags::WRITE, None);
                region.no_huge_pages();
                for offset in (0..region.bytes).step_by(page()) {
                    // SAFETY: within the region.
                    unsafe { region.at.add(offset).write_volatile(0) };
                }
                self.anon.push(region);
            }
            "stall-pagein" => self.anon.iter().for_each(Region::read),
            _ => return None,
        }
        Some(begin.elapsed().as_micros().to_string())
    }
}

//! Work that makes a limit, or the machine, short of memory.

use std::fs::File;
use std::io::Read as _;
use std::io::Seek as _;

use super::State;
use super::disk_file;
use super::page;
use crate::common::pressure::write_disk;
use crate::common::pressure::write_slow_disk;

impl State {
    /// `n` is in MiB.
    pub(super) fn reclaim(&mut self, order: &str, n: usize) -> Option<String> {
        match order {
            // Page cache, clean in a guest. A disk loses it when nobody has it open.
            "reclaim-read" | "reclaim-hold" => {
                let mut file = File::from(disk_file((n << 20) / page()));
                file.rewind().expect("seeking");
                let mut piece = vec![0; 1 << 20];
                for _ in 0..n {
                    file.read_exact(&mut piece).expect("reading the disk");
                }
                if order == "reclaim-hold" {
                    self.files.push(file);
                }
            }
            // Dirty pages.
            "reclaim-write" => write_disk(n),
            // Pages in writeback for seconds; "sync" waits for its end.
            "reclaim-slow" => self.files.push(write_slow_disk(n)),
            _ => return None,
        }
        Some("done".into())
    }
}

//! Work that makes a limit, or the machine, short of memory.

use std::fs::File;
use std::io::Read as _;
use std::io::Seek as _;
use std::os::unix::fs::FileExt as _;
use std::thread;

use super::State;
use super::disk_file;
use super::page;
use crate::common::pressure::DISK;

impl State {
    /// `n` is in MiB.
    pub(super) fn reclaim(&mut self, order: &str, n: usize) -> Option<String> {
        match order {
            // Page cache, clean in a guest.
            "reclaim-read" => {
                let mut file = File::from(disk_file((n << 20) / page()));
                file.rewind().expect("seeking");
                let mut piece = vec![0; 1 << 20];
                for _ in 0..n {
                    file.read_exact(&mut piece).expect("reading the disk");
                }
            }
            // Dirty pages, and pages on their way to the disk, while others are
            // wanted: `n` times.
            "reclaim-write" => {
                let piece = vec![0x5a; 1 << 20];
                for round in 0..n as u64 {
                    let disk = File::options().read(true).write(true).open(DISK).expect("the disk");
                    let at = |mib: u64| (64 * round + mib) << 20;
                    for mib in 0..11 {
                        disk.write_all_at(&piece, at(mib)).expect("writing the disk");
                    }
                    thread::scope(|scope| {
                        scope.spawn(|| disk.sync_data().expect("fdatasync"));
                        let mut piece = vec![0; 1 << 20];
                        for mib in 20..51 {
                            disk.read_exact_at(&mut piece, at(mib)).expect("reading the disk");
                        }
                    });
                }
            }
            _ => return None,
        }
        Some("done".into())
    }
}

//! Reading big hash maps while the kernel fills them.

use std::io;
use std::os::fd::AsRawFd as _;
use std::ptr;

use libbpf_rs::MapCore;
use libbpf_rs::libbpf_sys;
use plain::Plain;

use crate::error::Context as _;
use crate::error::Error;
use crate::error::Result;

/// Entries copied at a time. A bucket is copied as a whole, so there is a least
/// number; these maps have as many buckets as entries.
const BATCH: usize = 4096;

/// The buffers of a walk, kept from one to the next.
#[derive(Default)]
pub(super) struct Walk<K, V> {
    keys: Vec<K>,
    values: Vec<V>,
}

impl<K: Plain + Copy + Default, V: Plain + Copy + Default> Walk<K, V> {
    /// Hands each entry of a hash map to `each`. What is added or removed
    /// meanwhile may be met or not; no entry is met twice, since each bucket is
    /// copied under its lock.
    ///
    /// # Errors
    /// The kernel refuses, or the map is not one of `K` and `V`.
    pub(super) fn over(&mut self, map: &impl MapCore, mut each: impl FnMut(&K, &V)) -> Result<()> {
        if map.key_size() as usize != size_of::<K>() || map.value_size() as usize != size_of::<V>()
        {
            return Err(Error::failure("a map whose entries are not what was expected"));
        }
        if self.keys.is_empty() {
            self.keys.resize(BATCH, K::default());
            self.values.resize(BATCH, V::default());
        }
        // The kernel's mark of where it was: four bytes for a hash map.
        let mut place = 0u64;
        let mut first = true;
        loop {
            let mut count = self.keys.len() as u32;
            let from = if first { ptr::null_mut() } else { (&raw mut place).cast() };
            // SAFETY: both buffers hold `count` entries of the sizes checked
            // above; `place` is larger than the mark. All outlive the call.
            let code = unsafe {
                libbpf_sys::bpf_map_lookup_batch(
                    map.as_fd().as_raw_fd(),
                    from,
                    (&raw mut place).cast(),
                    self.keys.as_mut_ptr().cast(),
                    self.values.as_mut_ptr().cast(),
                    &raw mut count,
                    ptr::null(),
                )
            };
            let errno = if code < 0 { -code } else { 0 };
            // A bucket that does not fit: nothing of it was copied, try with more room.
            if errno == rustix::io::Errno::NOSPC.raw_os_error() {
                let more = self.keys.len() * 2;
                self.keys.resize(more, K::default());
                self.values.resize(more, V::default());
                continue;
            }
            // The end has an error code of its own, and entries all the same.
            let end = errno == rustix::io::Errno::NOENT.raw_os_error();
            if errno != 0 && !end {
                return Err(io::Error::from_raw_os_error(errno)).context(|| "reading a BPF map");
            }
            for (key, value) in self.keys.iter().zip(&self.values).take(count as usize) {
                each(key, value);
            }
            if end {
                return Ok(());
            }
            first = false;
        }
    }
}

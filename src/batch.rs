//! Reading a whole hash map of a BPF object, many entries a system call.

use std::os::fd::AsRawFd as _;
use std::ptr;

use libbpf_rs::MapCore;
use libbpf_rs::libbpf_sys;
use rustix::io::Errno;

use crate::error::Context as _;
use crate::error::Error;
use crate::error::Result;
use crate::event::Event;
use crate::event::decode;

/// Entries asked for at a time. A batch ends between two buckets, so a bucket
/// must fit: with a good hash they hold a handful.
const BATCH: u32 = 8192;

/// Calls `each` with the key and the value of every entry of a hash map of `K`
/// and `V`; see [`for_each_raw`].
///
/// # Errors
/// The kernel refuses, or the map has entries of other sizes.
pub fn for_each<K: Event, V: Event>(map: &impl MapCore, mut each: impl FnMut(K, V)) -> Result<()> {
    let sizes = (map.key_size() as usize, map.value_size() as usize);
    if sizes != (size_of::<K>(), size_of::<V>()) {
        let name = name(map);
        return Err(Error::failure(format!("the map `{name}` has entries of other sizes")));
    }
    for_each_raw(map, |key, value| {
        // The sizes are those checked above.
        if let (Ok(key), Ok(value)) = (decode(key), decode(value)) {
            each(key, value);
        }
    })
}

/// Calls `each` with the key and the value of every entry of a hash map.
///
/// An entry that stays in the map the whole time is seen exactly once: entries
/// never change their bucket, and a bucket is read under its lock
/// (`__htab_map_lookup_and_delete_batch()`, kernel/bpf/hashtab.c). One that
/// comes or goes meanwhile may or may not be seen.
///
/// # Errors
/// The kernel refuses.
pub fn for_each_raw(map: &impl MapCore, mut each: impl FnMut(&[u8], &[u8])) -> Result<()> {
    let key_size = map.key_size() as usize;
    let value_size = map.value_size() as usize;
    // The kernel pads values to eight bytes in the map, not in the batch.
    let mut room = BATCH;
    let mut keys = vec![0u8; room as usize * key_size];
    let mut values = vec![0u8; room as usize * value_size];
    // Where to go on: a bucket's number, for hash maps.
    let mut at = vec![0u8; key_size.max(4)];
    let mut next = at.clone();
    let mut first = true;
    loop {
        let mut count = room;
        // SAFETY: the buffers hold `room` keys and values, and a key of at
        // least four bytes each; all live until the call returns.
        let code = unsafe {
            libbpf_sys::bpf_map_lookup_batch(
                map.as_fd().as_raw_fd(),
                if first { ptr::null_mut() } else { at.as_mut_ptr().cast() },
                next.as_mut_ptr().cast(),
                keys.as_mut_ptr().cast(),
                values.as_mut_ptr().cast(),
                &mut count,
                ptr::null(),
            )
        };
        let errno = (code < 0).then(|| std::io::Error::from_raw_os_error(-code));
        let is = |number: Errno| {
            errno.as_ref().is_some_and(|errno| errno.raw_os_error() == Some(number.raw_os_error()))
        };
        if is(Errno::NOSPC) {
            // A bucket larger than the buffers.
            room = room.saturating_mul(2);
            keys.resize(room as usize * key_size, 0);
            values.resize(room as usize * value_size, 0);
            continue;
        }
        // The end of the map is ENOENT, with entries to read all the same.
        let end = is(Errno::NOENT);
        if let (Some(errno), false) = (errno, end) {
            return Err(errno).context(|| format!("reading the map `{}`", name(map)));
        }
        let entries = keys.chunks_exact(key_size).zip(values.chunks_exact(value_size));
        for (key, value) in entries.take(count as usize) {
            each(key, value);
        }
        if end {
            return Ok(());
        }
        std::mem::swap(&mut at, &mut next);
        first = false;
    }
}

fn name(map: &impl MapCore) -> String {
    map.name().to_string_lossy().into_owned()
}

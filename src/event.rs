//! Bytes from the kernel to typed events and text. Never fails on odd data.

use plain::Plain;

use crate::error::Error;
use crate::error::Result;

/// A record type generated from a BPF object's type information. Its layout is
/// written once, in the `.bpf.c` file.
pub trait Event: Plain + Copy + Default {}

impl<T: Plain + Copy + Default> Event for T {}

/// Copies one record out of `bytes`, which must have exactly its size.
///
/// # Errors
/// The size differs: the kernel side and this side disagree.
pub fn decode<E: Event>(bytes: &[u8]) -> Result<E> {
    let mut event = E::default();
    let size = size_of::<E>();
    if bytes.len() != size || plain::copy_from_bytes(&mut event, bytes).is_err() {
        return Err(Error::failure(format!(
            "a record of {} bytes came from the kernel where {size} were due",
            bytes.len()
        )));
    }
    Ok(event)
}

/// A kernel string: up to the first NUL; bytes that are not UTF-8 are replaced.
pub fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

/// Reads a variable that a BPF program may be changing at this moment.
pub fn read_shared<T: Copy>(variable: &T) -> T {
    // SAFETY: a reference is valid and aligned. The variable lies in the memory
    // mapped from the BPF object's data section; volatile, because the kernel
    // writes it behind the compiler's back. Used for integers of at most eight
    // bytes, which no supported machine reads in parts.
    unsafe { std::ptr::read_volatile(variable) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_ends_at_nul_and_survives_any_bytes() {
        assert_eq!(text(b"cat\0garbage"), "cat");
        assert_eq!(text(b"\xff\xfeok"), "\u{fffd}\u{fffd}ok");
        assert_eq!(text(b""), "");
    }

    #[test]
    fn a_record_of_another_size_is_an_error() {
        assert_eq!(decode::<u32>(&7u32.to_ne_bytes()).unwrap(), 7);
        assert!(decode::<u32>(&[0; 8]).is_err());
        assert!(decode::<u32>(&[0; 3]).is_err());
    }
}

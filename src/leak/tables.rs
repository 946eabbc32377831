//! Reading the tables of the kernel side in place.

use super::Amount;
use super::Stack;
use super::user::RawStack;

/// The value of the map `stacks`, read in place: it is large, and mostly empty.
pub(super) struct StackView<'raw>(&'raw [u8]);

impl<'raw> StackView<'raw> {
    const SEEN: usize = std::mem::offset_of!(RawStack, seen);
    const IPS: usize = std::mem::offset_of!(RawStack, ips);

    pub(super) fn of(bytes: &'raw [u8]) -> Option<Self> {
        (bytes.len() == size_of::<RawStack>()).then_some(Self(bytes))
    }

    pub(super) fn owner(&self) -> u64 {
        number(self.0, std::mem::offset_of!(RawStack, owner)).unwrap_or(0)
    }

    pub(super) fn seen(&self) -> Amount {
        let mut sum = Amount::default();
        for at in (Self::SEEN..Self::IPS).step_by(16) {
            let read = |at| number(self.0, at).unwrap_or(0);
            sum += Amount { bytes: read(at), blocks: read(at + 8) };
        }
        sum
    }

    pub(super) fn addresses(&self) -> Stack {
        let depth = self
            .0
            .get(std::mem::offset_of!(RawStack, depth)..)
            .and_then(|bytes| Some(u32::from_ne_bytes(bytes.first_chunk().copied()?) as usize));
        (0..depth.unwrap_or(0)).map_while(|n| number(self.0, Self::IPS + 8 * n)).collect()
    }
}

/// The 64-bit number at a place.
pub(super) fn number(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(*bytes.get(at..)?.first_chunk()?))
}

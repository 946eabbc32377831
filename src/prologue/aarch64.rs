//! aarch64: the few instructions that matter, by their bits (Arm Architecture
//! Reference Manual, C4 "A64 instruction set encoding").

use std::collections::HashSet;

use super::BEFORE_JUMP;
use super::Jump;
use super::Needs;
use super::Place;

pub(super) fn place(code: &[u8], needs: Needs) -> Place {
    let targets = branch_targets(code);
    let mut at_null_check = None;
    for (offset, word) in words(code) {
        let null_check = needs.null_is_nothing && is_null_check(word);
        if is_simulated(word) && !targets.contains(&offset) {
            if !null_check {
                return Place::emulated(offset);
            }
            at_null_check.get_or_insert(offset);
        }
        if !null_check && !is_harmless(word, needs.arguments) {
            break;
        }
    }
    match at_null_check {
        Some(offset) => Place::emulated(offset),
        None => Place {
            offset: 0,
            emulated: words(code).next().is_some_and(|(_, word)| is_simulated(word)),
        },
    }
}

pub(super) fn tail_jump(code: &[u8], address: u64) -> Option<Jump> {
    // A stub of the procedure linkage table (AAELF64, "Dynamic linking") takes
    // a page, loads an entry of it, and jumps there.
    let mut page = None;
    let mut entry = None;
    for (offset, word) in words(code).take(BEFORE_JUMP + 1) {
        let here = address.wrapping_add(offset);
        let (to, from) = (word & 31, word >> 5 & 31);
        let of = |known: Option<(u32, u64)>| known.filter(|&(register, _)| register == from);
        if is_branch(word) {
            return target(here, word).filter(|_| !links(word)).map(Jump::To);
        }
        if word & 0xffff_fc1f == 0xd61f_0000 {
            return of(entry).map(|(_, slot)| Jump::Through(slot));
        }
        let (mut loaded, mut taken) = (None, None);
        if word & 0x9f00_0000 == 0x9000_0000 {
            let pages = immediate(word, 5, 19) << 2 | i64::from(word >> 29 & 3);
            taken = Some((to, (here & !0xfff).wrapping_add_signed(pages << 12)));
        } else if word & 0xffc0_0000 == 0xf940_0000 {
            let (_, start) = of(page)?;
            loaded = Some((to, start.wrapping_add(u64::from(word >> 10 & 0xfff) * 8)));
        }
        if !is_harmless(word, 1) || (is_load(word) && loaded.is_none()) {
            return None;
        }
        // What was in the register is gone.
        page = taken.or(page.filter(|&(register, _)| register != to));
        entry = loaded.or(entry.filter(|&(register, _)| register != to));
    }
    None
}

/// The instructions, with their offsets.
fn words(code: &[u8]) -> impl Iterator<Item = (u64, u32)> {
    let words = code.as_chunks::<4>().0.iter().map(|bytes| u32::from_le_bytes(*bytes));
    (0..).step_by(4).zip(words)
}

/// A signed field of an instruction.
fn immediate(word: u32, low: u32, bits: u32) -> i64 {
    let value = word >> low & ((1 << bits) - 1);
    let unused = 64 - bits;
    (i64::from(value) << unused) >> unused
}

fn is_compare_and_branch(word: u32) -> bool {
    word & 0x7e00_0000 == 0x3400_0000
}

fn is_test_and_branch(word: u32) -> bool {
    word & 0x7e00_0000 == 0x3600_0000
}

fn is_conditional_branch(word: u32) -> bool {
    word & 0xff00_0010 == 0x5400_0000
}

/// `b` or `bl`.
fn is_branch(word: u32) -> bool {
    word & 0x7c00_0000 == 0x1400_0000
}

/// Whether such a branch is a call.
fn links(word: u32) -> bool {
    word >> 31 == 1
}

/// Where an instruction at `offset` may go, if that is fixed.
fn target(offset: u64, word: u32) -> Option<u64> {
    let distance = if is_branch(word) {
        immediate(word, 0, 26)
    } else if is_conditional_branch(word) || is_compare_and_branch(word) {
        immediate(word, 5, 19)
    } else if is_test_and_branch(word) {
        immediate(word, 5, 14)
    } else {
        return None;
    };
    Some(offset.wrapping_add_signed(distance * 4))
}

fn branch_targets(code: &[u8]) -> HashSet<u64> {
    words(code).filter_map(|(offset, word)| target(offset, word)).collect()
}

fn is_simulated(word: u32) -> bool {
    let is_address = word & 0x1f00_0000 == 0x1000_0000;
    let is_register_branch = matches!(word & 0xffff_fc1f, 0xd61f_0000 | 0xd63f_0000 | 0xd65f_0000);
    target(0, word).is_some() || is_address || is_register_branch
}

/// `cbz x0`.
fn is_null_check(word: u32) -> bool {
    word & 0xff00_001f == 0xb400_0000
}

/// `nop` and the forms of `bti`: they change nothing.
fn is_landing_hint(word: u32) -> bool {
    matches!(word, 0xd503_201f | 0xd503_241f | 0xd503_245f | 0xd503_249f | 0xd503_24df)
}

/// `ldr`, `ldrb`, `ldrh`, `ldrsw` of an address plus a constant.
fn is_load(word: u32) -> bool {
    word & 0x3f40_0000 == 0x3940_0000 || word & 0x3fc0_0000 == 0x3980_0000
}

/// Whether an instruction only computes into, or loads, a register that is
/// not needed. What is not known to be so is taken to do harm.
fn is_harmless(word: u32, arguments: usize) -> bool {
    if is_landing_hint(word) {
        return true;
    }
    // Data processing, immediate and register (A64 index by encoding), but
    // no floating point.
    let computes = matches!(word >> 25 & 0xf, 0b1000 | 0b1001 | 0b0101 | 0b1101);
    // mrs: the thread pointer is often fetched early.
    let reads_system = word & 0xfff0_0000 == 0xd530_0000;
    let to = word & 31;
    // Register 31 is the stack pointer where an immediate is added or a
    // mask applied, and nothing where the flags are set.
    let is_flags_only = to == 31
        && (word & 0x7f80_0000 == 0x7100_0000
            || word & 0x7f80_0000 == 0x7200_0000
            || word & 0x7fe0_0000 == 0x6b00_0000
            || word & 0x7fe0_0000 == 0x6a00_0000);
    // ccmp, ccmn: these bits are flags, not a register.
    let is_conditional_compare = word & 0x3fe0_0410 == 0x3a40_0000;
    let is_needed = usize::try_from(to).is_ok_and(|to| to < arguments) || to >= 29;
    let is_free = !is_needed || is_flags_only || is_conditional_compare;
    (computes || is_load(word) || reads_system) && is_free
}

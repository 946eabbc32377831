//! x86-64: decoded by iced-x86.

use std::collections::BTreeSet;
use std::collections::HashSet;

use iced_x86::Code;
use iced_x86::Decoder;
use iced_x86::DecoderOptions;
use iced_x86::FlowControl;
use iced_x86::Instruction;
use iced_x86::InstructionInfo;
use iced_x86::InstructionInfoFactory;
use iced_x86::OpAccess;
use iced_x86::OpKind;
use iced_x86::Register;

use super::BEFORE_JUMP;
use super::Jump;
use super::Needs;
use super::Place;

/// The first three of System V's argument registers (psABI, 3.2.3).
const ARGUMENTS: [Register; 3] = [Register::RDI, Register::RSI, Register::RDX];

pub(super) fn place(code: &[u8], needs: Needs) -> Place {
    let targets = branch_targets(code);
    let mut kept = vec![Register::RSP, Register::RBP];
    kept.extend(ARGUMENTS.iter().take(needs.arguments));
    let mut infos = InstructionInfoFactory::new();
    let mut null_tested = false;
    let mut at_null_check = None;
    for instruction in &mut Decoder::with_ip(64, code, 0, DecoderOptions::NONE) {
        let offset = instruction.ip();
        if instruction.is_invalid() {
            break;
        }
        let null_check = needs.null_is_nothing && null_tested && jumps_if_zero(&instruction);
        if is_emulated(bytes_of(&instruction, code)) && !targets.contains(&offset) {
            if !null_check {
                return Place::emulated(offset);
            }
            at_null_check.get_or_insert(offset);
        }
        if null_check {
            continue;
        }
        let info = infos.info(&instruction);
        if instruction.flow_control() != FlowControl::Next || !is_harmless(info, &kept) {
            break;
        }
        if tests_for_null(&instruction) {
            null_tested = true;
        } else if instruction.rflags_modified() != 0 {
            null_tested = false;
        }
    }
    match at_null_check {
        Some(offset) => Place::emulated(offset),
        None => Place { offset: 0, emulated: is_emulated(code) },
    }
}

pub(super) fn calls(code: &[u8], address: u64) -> Vec<Jump> {
    let mut found = Vec::new();
    for instruction in Decoder::with_ip(64, code, address, DecoderOptions::NONE).iter() {
        match instruction.flow_control() {
            FlowControl::Call => found.push(Jump::To(instruction.near_branch_target())),
            FlowControl::UnconditionalBranch => {
                found.push(Jump::To(instruction.near_branch_target()));
                break;
            }
            FlowControl::IndirectCall if instruction.is_ip_rel_memory_operand() => {
                found.push(Jump::Through(instruction.ip_rel_memory_address()));
            }
            FlowControl::IndirectBranch if instruction.is_ip_rel_memory_operand() => {
                found.push(Jump::Through(instruction.ip_rel_memory_address()));
                break;
            }
            FlowControl::Next | FlowControl::ConditionalBranch if !instruction.is_invalid() => {}
            _ => break,
        }
    }
    found
}

/// Instructions looked at for the ways out of a function. What has more is not
/// the short way round an allocator's own fast path that this is for.
const MAX_WALK: usize = 20_000;

pub(super) fn returns<'code>(
    entry: u64,
    code: impl Fn(u64) -> &'code [u8],
    mut linked: impl FnMut(u64) -> Option<u64>,
    mut ends: impl FnMut(u64) -> bool,
) -> Option<BTreeSet<u64>> {
    let mut returns = BTreeSet::new();
    let mut seen = HashSet::new();
    let mut ways = vec![entry];
    while let Some(way) = ways.pop() {
        if !seen.insert(way) {
            continue;
        }
        let mut decoder = Decoder::with_ip(64, code(way), way, DecoderOptions::NONE);
        loop {
            let instruction = decoder.can_decode().then(|| decoder.decode())?;
            if instruction.ip() != way && !seen.insert(instruction.ip()) {
                break;
            }
            if instruction.is_invalid() || seen.len() > MAX_WALK {
                return None;
            }
            match instruction.flow_control() {
                FlowControl::Return => {
                    returns.insert(instruction.ip());
                    break;
                }
                FlowControl::UnconditionalBranch => {
                    ways.push(instruction.near_branch_target());
                    break;
                }
                FlowControl::IndirectBranch if instruction.is_ip_rel_memory_operand() => {
                    ways.push(linked(instruction.ip_rel_memory_address())?);
                    break;
                }
                FlowControl::ConditionalBranch => ways.push(instruction.near_branch_target()),
                FlowControl::Call if ends(instruction.near_branch_target()) => break,
                FlowControl::Next | FlowControl::Call | FlowControl::IndirectCall => {}
                // ud2: never passed.
                FlowControl::Exception => break,
                _ => return None,
            }
        }
    }
    Some(returns)
}

pub(super) fn tail_jump(code: &[u8], address: u64) -> Option<Jump> {
    let mut infos = InstructionInfoFactory::new();
    let kept = [Register::RSP, Register::RBP, Register::RDI];
    let mut decoder = Decoder::with_ip(64, code, address, DecoderOptions::NONE);
    for instruction in decoder.iter().take(BEFORE_JUMP + 1) {
        match instruction.flow_control() {
            FlowControl::UnconditionalBranch => {
                return Some(Jump::To(instruction.near_branch_target()));
            }
            FlowControl::IndirectBranch if instruction.is_ip_rel_memory_operand() => {
                return Some(Jump::Through(instruction.ip_rel_memory_address()));
            }
            FlowControl::Next if !instruction.is_invalid() => {
                let info = infos.info(&instruction);
                if !info.used_memory().is_empty() || !is_harmless(info, &kept) {
                    return None;
                }
            }
            _ => return None,
        }
    }
    None
}

/// The bytes of an instruction decoded from `code` at address 0.
fn bytes_of<'code>(instruction: &Instruction, code: &'code [u8]) -> &'code [u8] {
    let start = usize::try_from(instruction.ip()).unwrap_or(usize::MAX);
    code.get(start..start.saturating_add(instruction.len())).unwrap_or_default()
}

/// Where the jumps and calls in the code lead, as offsets.
fn branch_targets(code: &[u8]) -> HashSet<u64> {
    let decoded = &mut Decoder::with_ip(64, code, 0, DecoderOptions::NONE);
    let branches = decoded.iter().filter(|it| {
        let operands = [OpKind::NearBranch16, OpKind::NearBranch32, OpKind::NearBranch64];
        it.op_count() > 0 && operands.contains(&it.op0_kind())
    });
    branches.map(|it| it.near_branch_target()).collect()
}

/// Whether every kernel emulates the instruction that begins here. By its
/// bytes, as the kernel decides: it takes no prefix before a push but 0x41,
/// and refuses probes on branches with an operand-size prefix.
fn is_emulated(instruction: &[u8]) -> bool {
    match instruction {
        // nop; push; push of r8 to r15
        [0x90 | 0x50..=0x57, ..] | [0x41, 0x50..=0x57, ..] => true,
        // With and without the `bnd` prefix: call, jmp, conditional jumps.
        [0xf2, branch @ ..] | branch => {
            matches!(branch, [0xe8 | 0xe9 | 0xeb | 0x70..=0x7f, ..] | [0x0f, 0x80..=0x8f, ..])
        }
    }
}

/// Whether an instruction leaves memory and the registers to keep alone.
fn is_harmless(info: &InstructionInfo, kept: &[Register]) -> bool {
    // The other values are of reads, and of addresses only computed.
    let writes = |access| {
        use OpAccess::*;
        matches!(access, Write | CondWrite | ReadWrite | ReadCondWrite)
    };
    info.used_memory().iter().all(|it| !writes(it.access()))
        && info
            .used_registers()
            .iter()
            .all(|it| !writes(it.access()) || !kept.contains(&it.register().full_register()))
}

/// Compares the first argument with zero.
fn tests_for_null(instruction: &Instruction) -> bool {
    match instruction.code() {
        Code::Test_rm64_r64 => {
            instruction.op0_register() == Register::RDI
                && instruction.op1_register() == Register::RDI
        }
        Code::Cmp_rm64_imm8 => {
            instruction.op0_register() == Register::RDI && instruction.immediate(1) == 0
        }
        _ => false,
    }
}

/// Goes elsewhere if the last comparison found zero.
fn jumps_if_zero(instruction: &Instruction) -> bool {
    matches!(instruction.code(), Code::Je_rel8_64 | Code::Je_rel32_64)
}

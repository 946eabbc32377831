//! Where in a function a probe is cheapest.
//!
//! A uprobe costs one trap when the kernel can do the work of the instruction
//! under it by itself, and a second trap, many times dearer, when it must run
//! a copy of the instruction with a single step. So the probe goes on the first
//! instruction that every kernel emulates and every call worth seeing reaches,
//! with the arguments still in their registers.

mod aarch64;
mod x86;

use std::collections::BTreeSet;

use crate::elf::Arch;

/// Where to put a probe.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Bytes from the function's first byte.
    pub offset: u64,
    /// Whether every supported kernel emulates the instruction there.
    pub emulated: bool,
}

impl Place {
    fn emulated(offset: u64) -> Self {
        Self { offset, emulated: true }
    }
}

/// What must still hold where the probe is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Needs {
    /// How many argument registers must be as the caller set them; up to 3.
    pub arguments: usize,
    /// Whether a call with a null first argument may be missed, because it does
    /// nothing: `free(NULL)`.
    pub null_is_nothing: bool,
}

/// The best place for a probe in the function that begins with `code`.
///
/// `code` should be the whole function: a place that is jumped to from further
/// down would be hit more than once by a call, and is not taken.
///
/// On x86-64 these are emulated by every kernel from 5.8 on
/// (`branch_setup_xol_ops` and `push_setup_xol_ops` in
/// `arch/x86/kernel/uprobes.c`): near `call`, `jmp` and conditional jumps to a
/// fixed target, `push` of a register, and the one-byte `nop`. Longer nops,
/// `endbr64` and `sub` on the stack pointer only newer kernels emulate, and
/// they do not count. Neither the stack nor frame pointer has changed at the
/// place, so the return address is on top of the stack, and nothing has been
/// stored: no other thread can have got the block that is being freed.
///
/// On aarch64 (`arm_probe_decode_insn` in
/// `arch/arm64/kernel/probes/decode-insn.c`): `b`, `bl`, `b.cond`, `cbz`,
/// `cbnz`, `tbz`, `tbnz`, `adr`, `adrp`, `br`, `blr` and `ret`. `nop` and `stp`
/// only newer kernels simulate. The link register still holds the return
/// address, neither signed (`paciasp`) nor saved: a return probe changes it.
pub fn place(code: &[u8], arch: Arch, needs: Needs) -> Place {
    match arch {
        Arch::X86_64 => x86::place(code, needs),
        Arch::Aarch64 => aarch64::place(code, needs),
    }
}

/// How a function that only hands on to another one does so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Jump {
    /// To the function at this virtual address.
    To(u64),
    /// To the function whose address is in the memory at this virtual address:
    /// an entry of the global offset table.
    Through(u64),
}

/// Where the code at virtual address `address` jumps, if that is all it does:
/// before the jump it neither touches memory nor changes the first argument.
pub fn tail_jump(code: &[u8], address: u64, arch: Arch) -> Option<Jump> {
    match arch {
        Arch::X86_64 => x86::tail_jump(code, address),
        Arch::Aarch64 => aarch64::tail_jump(code, address),
    }
}

/// Where the code at virtual address `address` calls, and last jumps, before its
/// first return.
pub fn calls(code: &[u8], address: u64, arch: Arch) -> Vec<Jump> {
    match arch {
        Arch::X86_64 => x86::calls(code, address),
        // Not looked for: such functions are probed at both ends there.
        Arch::Aarch64 => Vec::new(),
    }
}

/// The addresses of all instructions by which the function at virtual address
/// `entry` returns, those of functions it jumps to included. `None`: it may also
/// return elsewhere, as by a jump to an address not known beforehand.
///
/// `code` gives the bytes at an address, `linked` the function whose address an
/// entry of the global offset table will hold, `ends` whether a function at an
/// address never returns: what follows a call of it is not reached by it.
pub fn returns<'code>(
    entry: u64,
    arch: Arch,
    code: impl Fn(u64) -> &'code [u8],
    linked: impl FnMut(u64) -> Option<u64>,
    ends: impl FnMut(u64) -> bool,
) -> Option<BTreeSet<u64>> {
    match arch {
        Arch::X86_64 => x86::returns(entry, code, linked, ends),
        Arch::Aarch64 => None,
    }
}

/// Instructions a function that only jumps on may have before the jump.
const BEFORE_JUMP: usize = 4;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::allocators;

    const X86_SIZE: Needs = Needs { arguments: 1, null_is_nothing: false };
    const X86_FREE: Needs = Needs { arguments: 1, null_is_nothing: true };

    fn x86(code: &[u8], needs: Needs) -> (u64, bool) {
        let place = place(code, Arch::X86_64, needs);
        (place.offset, place.emulated)
    }

    fn aarch64(code: &[u32], needs: Needs) -> (u64, bool) {
        let code: Vec<u8> = code.iter().flat_map(|word| word.to_le_bytes()).collect();
        let place = place(&code, Arch::Aarch64, needs);
        (place.offset, place.emulated)
    }

    #[test]
    fn real_functions_are_probed_where_objdump_shows_it_is_cheapest() {
        let samples = include_str!("../tests/data/prologues.txt");
        let mut count = 0;
        for line in samples.lines().filter(|line| !line.starts_with('#')) {
            let fields: Vec<&str> = line.split(' ').collect();
            let [arch, function, package, offset, how, code] = fields[..] else {
                panic!("not six fields: {line}");
            };
            let arch = if arch == "x86_64" { Arch::X86_64 } else { Arch::Aarch64 };
            let needs = allocators::call_of(function).unwrap().needs();
            let code: Vec<u8> = code
                .as_bytes()
                .chunks(2)
                .map(|digits| u8::from_str_radix(str::from_utf8(digits).unwrap(), 16).unwrap())
                .collect();
            let expected = Place { offset: offset.parse().unwrap(), emulated: how == "emulated" };
            assert_eq!(place(&code, arch, needs), expected, "{function} of {package}");
            count += 1;
        }
        assert_eq!(count, 225);
    }

    #[test]
    fn calls_before_the_return_are_found() {
        let calls = |code: &[u8]| calls(code, 0x1000, Arch::X86_64);
        // push %rbx; mov %rdi,%rbx; call +0x10; je +1; ret; call
        let code = [0x53, 0x48, 0x89, 0xfb, 0xe8, 0x10, 0, 0, 0, 0x74, 1, 0xc3, 0xe8, 0, 0, 0, 0];
        assert_eq!(calls(&code), [Jump::To(0x1019)]);
        // jmp *0x100(%rip)
        assert_eq!(calls(&[0xff, 0x25, 0, 1, 0, 0]), [Jump::Through(0x1106)]);
        assert_eq!(calls(&[0xc3, 0xe8, 0, 0, 0, 0]), []);
    }

    #[test]
    fn every_way_out_of_a_function_is_found() {
        let out = |code: &[u8]| {
            let code = |at: u64| code.get(at as usize..).unwrap_or_default();
            let linked = |slot| (slot == 0x1006).then_some(3);
            returns(0, Arch::X86_64, code, linked, |at| at == 0x100).map(Vec::from_iter)
        };
        // je +2; nop; ret; nop; jmp +1; ud2's first byte; ret
        let code = [0x74, 2, 0x90, 0xc3, 0x90, 0xeb, 1, 0x0f, 0xc3];
        assert_eq!(out(&code), Some(vec![3, 8]));
        // A loop: jmp to itself never returns.
        assert_eq!(out(&[0xeb, 0xfe]), Some(vec![]));
        // je +4; nop; ret; and jmp through the slot 0x1006, which leads to that ret.
        assert_eq!(out(&[0x74, 2, 0x90, 0xc3, 0xff, 0x25, 0xfc, 0x0f, 0, 0]), Some(vec![3]));
        assert_eq!(out(&[0x74, 2, 0x90, 0xc3, 0xff, 0x25, 0xfd, 0x0f, 0, 0]), None);
        // je +5; call 0x100, which never returns; ret.
        assert_eq!(out(&[0x74, 5, 0xe8, 0xf9, 0, 0, 0, 0xc3]), Some(vec![7]));
        assert_eq!(out(&[0xe8, 0xfb, 0, 0, 0, 0xff, 0xe0]), Some(vec![]));
        // jmp *%rax: who knows.
        assert_eq!(out(&[0x74, 1, 0xc3, 0xff, 0xe0]), None);
        // Code that ends in the middle.
        assert_eq!(out(&[0x90, 0x90]), None);
    }

    #[test]
    fn only_what_every_kernel_emulates_counts() {
        // After `mov %rdi,%rax`, so that the entry is no candidate; `ret` follows.
        let emulated = |instruction: &[u8]| {
            let code = [&[0x48, 0x89, 0xf8], instruction, &[0xc3]].concat();
            x86(&code, X86_SIZE) == (3, true)
        };
        assert!(emulated(&[0x53])); // push %rbx
        assert!(emulated(&[0x41, 0x57])); // push %r15
        assert!(emulated(&[0x90])); // nop
        assert!(emulated(&[0xe8, 0, 1, 0, 0])); // call
        assert!(emulated(&[0xe9, 0, 1, 0, 0])); // jmp
        assert!(emulated(&[0xeb, 0x70])); // jmp, short
        assert!(emulated(&[0x74, 0x70])); // je, short
        assert!(emulated(&[0x0f, 0x8f, 0, 1, 0, 0])); // jg
        assert!(emulated(&[0xf2, 0xe9, 0, 1, 0, 0])); // bnd jmp

        assert!(!emulated(&[0x40, 0x53])); // rex push %rbx
        assert!(!emulated(&[0x66, 0x90])); // two-byte nop
        assert!(!emulated(&[0x0f, 0x1f, 0x00])); // three-byte nop
        assert!(!emulated(&[0xf3, 0x0f, 0x1e, 0xfa])); // endbr64
        assert!(!emulated(&[0x48, 0x83, 0xec, 0x08])); // sub $8,%rsp
        assert!(!emulated(&[0x6a, 0x01])); // push $1
        assert!(!emulated(&[0xff, 0x77, 0x08])); // push 8(%rdi)
        assert!(!emulated(&[0xff, 0x25, 0, 1, 0, 0])); // jmp *(%rip)
        assert!(!emulated(&[0x2e, 0x74, 0x70])); // je with a segment prefix
        assert!(!emulated(&[0xe3, 0x70])); // jrcxz
        assert!(!emulated(&[0x41, 0x90])); // xchg %r8,%rax
    }

    #[test]
    fn the_walk_ends_where_something_needed_changes() {
        // push %rbx after the given instruction.
        let reached = |instruction: &[u8], arguments| {
            let code = [instruction, &[0x53, 0xc3]].concat();
            let needs = Needs { arguments, null_is_nothing: false };
            x86(&code, needs) == (instruction.len() as u64, true)
        };
        assert!(reached(&[0x48, 0x8b, 0x07], 3)); // mov (%rdi),%rax
        assert!(reached(&[0x48, 0x8d, 0x47, 0x10], 3)); // lea 0x10(%rdi),%rax
        assert!(!reached(&[0x48, 0x8b, 0x3f], 1)); // mov (%rdi),%rdi
        assert!(!reached(&[0x89, 0xff], 1)); // mov %edi,%edi
        assert!(reached(&[0x31, 0xf6], 1)); // xor %esi,%esi
        assert!(!reached(&[0x31, 0xf6], 2));
        assert!(reached(&[0x31, 0xd2], 2)); // xor %edx,%edx
        assert!(!reached(&[0x31, 0xd2], 3));
        assert!(!reached(&[0x48, 0x83, 0xec, 0x08], 0)); // sub $8,%rsp
        assert!(!reached(&[0x48, 0x89, 0xe5], 0)); // mov %rsp,%rbp
        assert!(!reached(&[0x48, 0x89, 0x06], 0)); // mov %rax,(%rsi)
        assert!(!reached(&[0x0f, 0x05], 0)); // syscall
        assert!(!reached(&[0xff, 0xd0], 0)); // call *%rax
    }

    #[test]
    fn a_null_check_is_passed_only_where_null_is_nothing() {
        // test %rdi,%rdi; je +0x40; push %rbp; ret
        let code = [0x48, 0x85, 0xff, 0x74, 0x40, 0x55, 0xc3];
        assert_eq!(x86(&code, X86_FREE), (5, true));
        assert_eq!(x86(&code, X86_SIZE), (3, true));
        // sub $8,%rsp in place of the push: the check is the best there is.
        let code = [0x48, 0x85, 0xff, 0x74, 0x40, 0x48, 0x83, 0xec, 0x08, 0xc3];
        assert_eq!(x86(&code, X86_FREE), (3, true));
        // test %rsi,%rsi; test %rdi,%rdi and then test %eax,%eax; jne.
        for other in
            [&[0x48, 0x85, 0xf6, 0x74, 0x40, 0x55][..], &[0x48, 0x85, 0xff, 0x75, 0x40, 0x55]]
        {
            assert_eq!(x86(other, X86_FREE), (3, true));
        }
        let code = [0x48, 0x85, 0xff, 0x85, 0xc0, 0x74, 0x40, 0x55];
        assert_eq!(x86(&code, X86_FREE), (5, true));
        // cmp $0,%rdi; je
        let code = [0x48, 0x83, 0xff, 0x00, 0x74, 0x40, 0x55];
        assert_eq!(x86(&code, X86_FREE), (6, true));
    }

    #[test]
    fn a_place_that_the_function_jumps_back_to_is_not_taken() {
        // mov %rdi,%rax; nop; push %rbx; ...; jmp to the nop
        let code = [0x48, 0x89, 0xf8, 0x90, 0x53, 0xc3, 0xeb, 0xfb];
        assert_eq!(x86(&code, X86_SIZE), (4, true));
        // The same, to the push: nothing is left but the entry.
        let code = [0x48, 0x89, 0xf8, 0x53, 0xc3, 0xeb, 0xfc];
        assert_eq!(x86(&code, X86_SIZE), (0, false));
        // The branch lies beyond the code that belongs to the function.
        assert_eq!(x86(&code[..5], X86_SIZE), (3, true));
        // mov x3,x0; cbz x1; ...; b to the cbz
        assert_eq!(aarch64(&[0xaa0003e3, 0xb4000041, 0xd65f03c0], X86_SIZE), (4, true));
        assert_eq!(aarch64(&[0xaa0003e3, 0xb4000041, 0x17ffffff], X86_SIZE), (0, false));
    }

    #[test]
    fn without_a_place_it_is_the_entry_as_it_is() {
        assert_eq!(x86(&[0xf3, 0x0f, 0x1e, 0xfa, 0xc3], X86_SIZE), (0, false));
        assert_eq!(x86(&[], X86_SIZE), (0, false));
        // A push that is jumped to, alone.
        assert_eq!(x86(&[0x53, 0xeb, 0xfd], X86_SIZE), (0, true));
        assert_eq!(aarch64(&[], X86_SIZE), (0, false));
        assert_eq!(aarch64(&[0xa9be7bfd], X86_SIZE), (0, false));
    }

    #[test]
    fn the_link_register_must_hold_the_return_address() {
        // cbz x0 after the given instruction.
        let reached = |word| aarch64(&[word, 0xb4000040, 0xd65f03c0], X86_SIZE) == (4, true);
        assert!(reached(0xd503245f)); // bti c
        assert!(reached(0xd503201f)); // nop
        assert!(reached(0xaa0003e3)); // mov x3, x0
        assert!(reached(0xf9400403)); // ldr x3, [x0, #8]
        assert!(!reached(0xf1400400)); // subs x0, x0, #0x1000
        assert!(reached(0xf140041f)); // cmp x0, #0x1000
        assert!(!reached(0xd503233f)); // paciasp
        assert!(!reached(0xa9be7bfd)); // stp x29, x30, [sp, #-32]!
        assert!(!reached(0xd10083ff)); // sub sp, sp, #32
        assert!(!reached(0x910003fd)); // mov x29, sp
        assert!(!reached(0xf9000001)); // str x1, [x0]
        assert!(!reached(0x58000043)); // ldr x3, literal: refused by the kernel
        assert!(!reached(0xc85f7c03)); // ldxr x3, [x0]
    }

    #[test]
    fn a_function_that_only_jumps_on_is_seen_through() {
        let x86 = |code: &[u8]| tail_jump(code, 0x1000, Arch::X86_64);
        assert_eq!(x86(&[0xe9, 0xfb, 0, 0, 0]), Some(Jump::To(0x1100)));
        assert_eq!(x86(&[0xf3, 0x0f, 0x1e, 0xfa, 0xeb, 0x10]), Some(Jump::To(0x1016)));
        assert_eq!(x86(&[0xff, 0x25, 0xfa, 0, 0, 0]), Some(Jump::Through(0x1100)));
        // xor %esi,%esi first; then xor %edi,%edi; then a store; then a call.
        assert_eq!(x86(&[0x31, 0xf6, 0xeb, 0x10]), Some(Jump::To(0x1014)));
        assert_eq!(x86(&[0x31, 0xff, 0xeb, 0x10]), None);
        assert_eq!(x86(&[0x48, 0x89, 0x06, 0xeb, 0x10]), None);
        assert_eq!(x86(&[0xe8, 0, 1, 0, 0, 0xeb, 0x10]), None);
        assert_eq!(x86(&[0x74, 0x02, 0xeb, 0x10]), None);

        let aarch64 = |code: &[u32]| {
            let code: Vec<u8> = code.iter().flat_map(|word| word.to_le_bytes()).collect();
            tail_jump(&code, 0x1000, Arch::Aarch64)
        };
        assert_eq!(aarch64(&[0xd503245f, 0x17ffffff]), Some(Jump::To(0x1000)));
        assert_eq!(aarch64(&[0x94000010]), None); // bl
        // bti c; adrp x16, +0x20000; ldr x17, [x16, #8]; add x16, x16, #8; br x17
        let stub = [0xd503245f, 0x90000110, 0xf9400611, 0x91002210, 0xd61f0220];
        assert_eq!(aarch64(&stub), Some(Jump::Through(0x21008)));
        // The loaded register is overwritten before the jump.
        let mut other = stub;
        other[3] = 0x91002211;
        assert_eq!(aarch64(&other), None);
    }

    proptest! {
        #[test]
        fn any_bytes_have_a_place_within_them(
            code in prop::collection::vec(any::<u8>(), 0..200),
            arguments in 0usize..5,
            null_is_nothing in any::<bool>(),
            address in any::<u64>(),
        ) {
            for arch in [Arch::X86_64, Arch::Aarch64] {
                let place = place(&code, arch, Needs { arguments, null_is_nothing });
                prop_assert!(place.offset < code.len().max(1) as u64);
                prop_assert!(!place.emulated || !code.is_empty());
                tail_jump(&code, address, arch);
            }
        }

        #[test]
        fn likely_prologues_have_a_place_within_them(
            parts in prop::collection::vec(
                prop::sample::select(vec![
                    &[0xf3, 0x0f, 0x1e, 0xfa][..],
                    &[0x48, 0x85, 0xff],
                    &[0x74, 0xf0],
                    &[0xeb, 0xf8],
                    &[0x48, 0x89, 0xf8],
                    &[0x55],
                    &[0x41],
                ]),
                0..24,
            ),
        ) {
            let code = parts.concat();
            let place = place(&code, Arch::X86_64, X86_FREE);
            prop_assert!(place.offset < code.len().max(1) as u64);
            prop_assert!(!place.emulated || !code.is_empty());
        }
    }
}

//! Arguments of memory system calls in words: protections, flags and commands,
//! with the values of the kernel's user interface, which never change.
//! A bit without a name is shown in hexadecimal digits, never dropped.

/// The bits of a call and their names.
type Names = &'static [(u64, &'static str)];

/// Bits 26 to 31 of a huge mapping: the logarithm of the page size
/// (`MAP_HUGE_SHIFT`, include/uapi/asm-generic/hugetlb_encode.h).
const HUGE_SHIFT: u32 = 26;
const HUGE_MASK: u64 = 0x3f;

/// `PROT_*` beside read, write and execute
/// (include/uapi/asm-generic/mman-common.h).
const PROT: Names = &[(0x8, "SEM"), (0x0100_0000, "GROWSDOWN"), (0x0200_0000, "GROWSUP")];

/// `MAP_TYPE` of include/uapi/asm-generic/mman-common.h, include/uapi/linux/mman.h.
const MAP_TYPE: u64 = 0xf;

/// `MAP_*` (include/uapi/asm-generic/mman-common.h and mman.h;
/// arch/x86/include/uapi/asm/mman.h).
const MAP: Names = &[
    (0x10, "FIXED"),
    (0x20, "ANONYMOUS"),
    #[cfg(target_arch = "x86_64")]
    (0x40, "32BIT"),
    #[cfg(target_arch = "x86_64")]
    (0x80, "ABOVE4G"),
    (0x100, "GROWSDOWN"),
    (0x800, "DENYWRITE"),
    (0x1000, "EXECUTABLE"),
    (0x2000, "LOCKED"),
    (0x4000, "NORESERVE"),
    (0x8000, "POPULATE"),
    (0x1_0000, "NONBLOCK"),
    (0x2_0000, "STACK"),
    (MAP_HUGETLB, "HUGETLB"),
    (0x8_0000, "SYNC"),
    (0x10_0000, "FIXED_NOREPLACE"),
    (0x400_0000, "UNINITIALIZED"),
];
const MAP_HUGETLB: u64 = 0x4_0000;

/// `MREMAP_*` (include/uapi/linux/mman.h).
const MREMAP: Names = &[(1, "MAYMOVE"), (2, "FIXED"), (4, "DONTUNMAP")];

/// Flags of shmget(2) (include/uapi/linux/ipc.h, shm.h).
const SHMGET: Names =
    &[(0o1000, "CREAT"), (0o2000, "EXCL"), (SHM_HUGETLB, "HUGETLB"), (0o10000, "NORESERVE")];
const SHM_HUGETLB: u64 = 0o4000;

/// Flags of shmat(2) (include/uapi/linux/shm.h).
const SHMAT: Names =
    &[(0o10000, "RDONLY"), (0o20000, "RND"), (0o40000, "REMAP"), (0o100000, "EXEC")];

/// Commands of shmctl(2) (include/uapi/linux/ipc.h, shm.h).
const SHMCTL: Names = &[
    (0, "IPC_RMID"),
    (1, "IPC_SET"),
    (2, "IPC_STAT"),
    (3, "IPC_INFO"),
    (11, "SHM_LOCK"),
    (12, "SHM_UNLOCK"),
    (13, "SHM_STAT"),
    (14, "SHM_INFO"),
    (15, "SHM_STAT_ANY"),
];
/// Old C libraries ask for the 64-bit form of a structure so (`IPC_64`,
/// include/uapi/linux/ipc.h); the kernel takes it away (`ipc_parse_version()`).
const IPC_64: u64 = 0x100;

/// Appends the names of the bits of `value`, and what has none.
fn name(words: &mut Vec<String>, mut value: u64, names: Names) {
    for (bit, name) in names {
        if value & bit != 0 {
            words.push((*name).to_owned());
            value &= !bit;
        }
    }
    if value != 0 {
        words.push(format!("{value:#x}"));
    }
}

fn joined(words: Vec<String>) -> String {
    if words.is_empty() { "0".into() } else { words.join("|") }
}

/// The page size a huge mapping asks for, and `value` without it.
fn huge(words: &mut Vec<String>, value: u64) -> u64 {
    let log = value >> HUGE_SHIFT & HUGE_MASK;
    if log == 0 {
        return value;
    }
    words.push(match log {
        10..20 => format!("HUGE_{}KB", 1u64 << (log - 10)),
        20..30 => format!("HUGE_{}MB", 1u64 << (log - 20)),
        30..40 => format!("HUGE_{}GB", 1u64 << (log - 30)),
        _ => format!("HUGE_2^{log}"),
    });
    value & !(HUGE_MASK << HUGE_SHIFT)
}

/// `rw-`, as in `/proc/PID/maps`; what else is asked for follows.
pub fn prot(value: u64) -> String {
    let letter = |bit, letter| if value & bit != 0 { letter } else { '-' };
    let letters: String = [letter(1, 'r'), letter(2, 'w'), letter(4, 'x')].iter().collect();
    let mut words = vec![letters];
    name(&mut words, value & !7, PROT);
    words.join("|")
}

/// `PRIVATE|ANONYMOUS`: `MAP_*` without that prefix.
pub fn map(value: u64) -> String {
    let mut words = Vec::new();
    let kind = value & MAP_TYPE;
    match kind {
        0 => {}
        1 => words.push("SHARED".to_owned()),
        2 => words.push("PRIVATE".to_owned()),
        3 => words.push("SHARED_VALIDATE".to_owned()),
        // Since 6.11: 9651fcedf7b9 "mm: add MAP_DROPPABLE".
        8 => words.push("DROPPABLE".to_owned()),
        other => words.push(format!("{other:#x}")),
    }
    let mut rest = value & !MAP_TYPE;
    let mut size = Vec::new();
    if rest & MAP_HUGETLB != 0 {
        rest = huge(&mut size, rest);
    }
    name(&mut words, rest, MAP);
    words.extend(size);
    joined(words)
}

/// `MAYMOVE|FIXED`: `MREMAP_*` without that prefix.
pub fn mremap(value: u64) -> String {
    let mut words = Vec::new();
    name(&mut words, value, MREMAP);
    joined(words)
}

/// `0600|CREAT|EXCL`: the permissions in octal digits, then `IPC_*` and `SHM_*`
/// without their prefixes.
pub fn shmget(value: u32) -> String {
    let mut words = vec![format!("{:04o}", value & 0o777)];
    let mut rest = u64::from(value & !0o777);
    let mut size = Vec::new();
    if rest & SHM_HUGETLB != 0 {
        rest = huge(&mut size, rest);
    }
    name(&mut words, rest, SHMGET);
    words.extend(size);
    words.join("|")
}

/// `RDONLY|RND`: `SHM_*` without that prefix.
pub fn shmat(value: u32) -> String {
    let mut words = Vec::new();
    name(&mut words, value.into(), SHMAT);
    joined(words)
}

/// `IPC_STAT`; an unknown command is its number.
pub fn shmctl(value: u32) -> String {
    let plain = u64::from(value) & !IPC_64;
    let found = SHMCTL.iter().find(|(number, _)| *number == plain);
    found.map_or_else(|| value.cast_signed().to_string(), |(_, name)| (*name).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn protections_are_letters_as_in_maps() {
        let shown = [0, 1, 3, 7, 5 | 0x8, 0x0100_0003, 0x40].map(prot);
        assert_eq!(shown, ["---", "r--", "rw-", "rwx", "r-x|SEM", "rw-|GROWSDOWN", "---|0x40"]);
    }

    #[test]
    fn map_flags_have_a_type_and_bits() {
        let shown = [
            0,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            libc::MAP_SHARED | libc::MAP_POPULATE,
            libc::MAP_SHARED_VALIDATE | libc::MAP_SYNC,
            libc::MAP_ANONYMOUS,
            libc::MAP_PRIVATE | libc::MAP_FIXED_NOREPLACE | libc::MAP_STACK | libc::MAP_NORESERVE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_HUGETLB | libc::MAP_HUGE_2MB,
        ]
        .map(|flags| map(u64::from(flags.cast_unsigned())));
        assert_eq!(
            shown,
            [
                "0",
                "PRIVATE|ANONYMOUS",
                "SHARED|POPULATE",
                "SHARED_VALIDATE|SYNC",
                "ANONYMOUS",
                "PRIVATE|NORESERVE|STACK|FIXED_NOREPLACE",
                "PRIVATE|ANONYMOUS|HUGETLB|HUGE_2MB",
            ]
        );
        // What is not known is not hidden, nor what lies above 32 bits.
        assert_eq!(map(0x6 | 0x200 | 1 << 40), "0x6|0x10000000200");
        assert_eq!(map(8 | 0x20), "DROPPABLE|ANONYMOUS");
        // Without HUGETLB these bits are no page size.
        assert_eq!(map(0x400_0002), "PRIVATE|UNINITIALIZED");
    }

    #[test]
    fn shared_memory_flags_begin_with_the_permissions() {
        let create = (libc::IPC_CREAT | libc::IPC_EXCL | 0o640).cast_unsigned();
        assert_eq!(shmget(create), "0640|CREAT|EXCL");
        assert_eq!(shmget(0), "0000");
        assert_eq!(shmget(0o4600 | 30 << 26), "0600|HUGETLB|HUGE_1GB");
        assert_eq!(shmat((libc::SHM_RDONLY | libc::SHM_RND).cast_unsigned()), "RDONLY|RND");
        assert_eq!(shmat(0), "0");
        assert_eq!(mremap(5), "MAYMOVE|DONTUNMAP");
    }

    #[test]
    fn commands_are_known_with_and_without_the_64_bit_mark() {
        assert_eq!(shmctl(libc::IPC_RMID.cast_unsigned()), "IPC_RMID");
        assert_eq!(shmctl(0x102), "IPC_STAT");
        assert_eq!(shmctl(15), "SHM_STAT_ANY");
        assert_eq!(shmctl(77), "77");
        assert_eq!(shmctl(u32::MAX), "-1");
    }
}

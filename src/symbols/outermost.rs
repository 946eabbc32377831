//! Whether a stack goes back to where its thread began.

use crate::frame::Frame;
use crate::maps::base_name;

/// Functions that begin a thread or a program: a stack that does not end in one
/// of them is truncated.
const OUTERMOST: &[&str] = &[
    // Programs: the C runtime's entry, and what it calls (glibc, musl).
    "_start",
    "_start_c",
    "__libc_start_main",
    "__libc_start_main_impl",
    "__libc_start_call_main",
    "libc_start_main_stage2",
    // The dynamic linker, which runs constructors before that.
    "_dl_start",
    "_dl_start_user",
    "_dlstart",
    "_dlstart_c",
    // Threads: glibc, musl, Go.
    "start_thread",
    "clone",
    "__clone",
    "clone3",
    "__clone3",
    "thread_start",
    "runtime.goexit",
    "runtime.rt0_go",
];

/// The same in the kernel; what follows differs between kernels and machines.
const OUTERMOST_KERNEL: &[&str] = &[
    "ret_from_fork",
    "ret_from_kernel_thread",
    "entry_SYSCALL",
    "entry_SYSENTER",
    "entry_INT80",
    "asm_",
    "el0t_",
    "el1h_",
    "secondary_startup",
    "x86_64_start_",
    "__primary_switched",
    "__secondary_switched",
];

/// Whether a function begins a thread or a program, so that nothing is missing
/// behind it.
pub fn is_outermost(frame: &Frame) -> bool {
    let Some(symbol) = &frame.symbol else { return false };
    // A symbol table that was not stripped has names like `clone@@GLIBC_2.2.5`.
    let name = symbol.name.split('@').next().unwrap_or_default();
    if frame.address >> 63 == 1 {
        return OUTERMOST_KERNEL.iter().any(|prefix| name.starts_with(prefix));
    }
    match name {
        // musl's own; programs use such names too.
        "start" | "start_c11" => frame.module.as_deref().is_some_and(is_c_library),
        _ => OUTERMOST.contains(&name),
    }
}

/// Whether a stack goes back to where its thread began. Distributions strip the
/// C library of the names of its own beginnings (`start_thread`,
/// `__libc_start_call_main`): there, a nameless last frame of the library that
/// called something outside of it counts as one.
pub fn is_complete(stack: &[Frame]) -> bool {
    let Some(last) = stack.last() else { return false };
    if is_outermost(last) {
        return true;
    }
    let caller = last.symbol.is_none() && last.module.as_deref().is_some_and(is_c_library);
    let called = stack.len().checked_sub(2).and_then(|at| stack.get(at));
    caller && called.is_some_and(|called| called.module != last.module)
}

/// By the names of glibc's and musl's files, dynamic linker included.
fn is_c_library(module: &str) -> bool {
    let name = base_name(module);
    ["libc.so", "libc-", "libc.musl", "libpthread", "ld-linux", "ld-musl", "ld-2", "ld.so"]
        .iter()
        .any(|prefix| name.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::Symbol;

    fn frame(address: u64, name: Option<&str>, module: &str) -> Frame {
        let symbol = |name: &str| Symbol { name: name.into(), offset: 1, source: None };
        let module = Some(module.into());
        Frame { address, symbol: name.map(symbol), module, ..Frame::default() }
    }

    #[test]
    fn stacks_end_where_threads_begin() {
        const LIBC: &str = "/lib/x86_64-linux-gnu/libc.so.6";
        let user = |name| is_outermost(&frame(4096, Some(name), LIBC));
        assert!(["_start", "clone3", "__clone@@GLIBC_2.2.5", "start"].map(user).iter().all(|&x| x));
        assert!(["main", "malloc", "asm_exc_page_fault"].map(user).iter().all(|&x| !x));
        assert!(!is_outermost(&frame(4096, Some("start"), "/usr/bin/server")));
        let kernel = |name| is_outermost(&frame(u64::MAX - 9, Some(name), "kernel"));
        assert!(
            ["ret_from_fork_asm", "entry_SYSCALL_64_after_hwframe", "asm_exc_page_fault"]
                .map(kernel)
                .iter()
                .all(|&x| x)
        );
        assert!(!kernel("_start") && !kernel("do_syscall_64"));

        let main = frame(4096, Some("main"), "/usr/bin/server");
        let nameless = frame(4096, None, LIBC);
        assert!(is_complete(&[main.clone(), nameless.clone()]));
        assert!(!is_complete(&[frame(4096, Some("malloc"), LIBC), nameless.clone()]));
        assert!(!is_complete(&[nameless, main]));
        assert!(!is_complete(&[]));
    }
}

//! Orders that run a worker out of memory, or let it kill.

use super::State;

/// `MPOL_BIND`, include/uapi/linux/mempolicy.h.
const MPOL_BIND: libc::c_int = 2;

impl State {
    /// `None`: not an order of these.
    pub(super) fn oom(&mut self, order: &str, n: usize) -> Option<String> {
        match order {
            // Memory from one node only, from now on.
            "bind" => {
                let nodes = 1u64 << n;
                // SAFETY: the mask is a readable word, and 64 bits of it are used
                // (the call counts one more).
                let code = unsafe {
                    libc::syscall(libc::SYS_set_mempolicy, MPOL_BIND, &raw const nodes, 65)
                };
                assert_eq!(code, 0, "set_mempolicy: {}", std::io::Error::last_os_error());
            }
            "kill" => {
                let pid = libc::pid_t::try_from(n).expect("a PID");
                // SAFETY: a process of the test's own.
                assert_eq!(unsafe { libc::kill(pid, libc::SIGKILL) }, 0, "kill");
            }
            _ => return None,
        }
        Some("done".into())
    }
}

//! Which kernel this is and what it must support (`tests/kernels.txt`). A skip
//! must be earned by a probe, and fails where the feature must exist.

use std::env;
use std::fs;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;

use libtest_mimic::Completion;
use libtest_mimic::Failed;

use super::Outcome;

/// The name of this kernel in `tests/kernels.txt`.
pub fn name() -> String {
    env::var("MEM_WATCHER_KERNEL").unwrap_or_else(|_| "native".into())
}

/// Whether this is one of the guests, where memory may be made scarce.
pub fn is_guest() -> bool {
    name() != "native"
}

fn list() -> PathBuf {
    env::var_os("MEM_WATCHER_KERNELS").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/kernels.txt"),
        PathBuf::from,
    )
}

/// Whether the list says that this kernel must support `feature`.
pub fn must_support(feature: &str) -> bool {
    let text = fs::read_to_string(list()).expect("the list of kernels");
    let line = text
        .lines()
        .find(|line| line.split_whitespace().next() == Some(name().as_str()))
        .unwrap_or_else(|| panic!("no line for kernel `{}` in {}", name(), list().display()));
    line.split_whitespace().skip(2).any(|word| word == feature)
}

/// Runs `body` if the probe found `feature`; else skips, or fails if this
/// kernel must support it.
pub fn if_supported(feature: &str, found: bool, body: impl FnOnce() -> Outcome) -> Outcome {
    match (found, must_support(feature)) {
        (true, _) => body(),
        (false, true) => {
            Err(Failed::from(format!("{} must support `{feature}`; the probe found none", name())))
        }
        (false, false) => Ok(Completion::ignored_with(format!("{} has no `{feature}`", name()))),
    }
}

/// Swaps to zram from now on; once for all tests.
pub fn zram_swap() -> bool {
    let swapping = || fs::read_to_string("/proc/swaps").is_ok_and(|text| text.contains("zram"));
    if swapping() {
        return true;
    }
    let shell = "echo 268435456 > /sys/block/zram0/disksize && \
                 mkswap /dev/zram0 >/dev/null && swapon /dev/zram0";
    Path::new("/sys/block/zram0").exists()
        && Command::new("sh").args(["-c", shell]).status().is_ok_and(|status| status.success())
        && swapping()
}

//! Tests against a real kernel, as root: each runs a workload whose memory is
//! known, runs mem_watcher, and compares with the kernel's own accounting.
//! `tools/test` runs them here and in the guests; each file beside this one
//! holds the tests of one command.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used)]
#![allow(missing_docs, unreachable_pub)]

#[path = "../common/mod.rs"]
mod common;

include!(concat!(env!("OUT_DIR"), "/live_tests.rs"));

fn main() {
    common::worker::become_one_if_asked();
    let mut args = libtest_mimic::Arguments::from_args();
    // The machine's memory is what is measured: one test at a time.
    args.test_threads = Some(1);
    libtest_mimic::run(&args, all()).exit();
}

//! doctor against what the commands then really do.

use std::fs;

use libtest_mimic::Trial;
use serde_json::Value;

use crate::check;
use crate::check_eq;
use crate::common::Outcome;
use crate::common::PASS;
use crate::common::kernels::is_guest;
use crate::common::kernels::must_support;
use crate::common::test;
use crate::common::watcher::Watcher;
use crate::common::watcher::rows;

pub fn tests() -> Vec<Trial> {
    vec![
        test("doctor: names the hook each command then uses", agrees_with_the_commands),
        test("doctor: states the facts of this machine", facts),
    ]
}

fn finding(all: &[Value], subject: &str) -> Value {
    all.iter().find(|row| row["subject"] == subject).cloned().unwrap_or_default()
}

fn agrees_with_the_commands() -> Outcome {
    let all = rows(&["doctor"]);
    for entry in mem_watcher::cmd::ENTRIES.iter().filter(|entry| entry.choice.is_some()) {
        let command = entry.name;
        let row = finding(&all, command);
        // A machine may lack the better hooks; the guests have them.
        let fallback = row["verdict"] == "fallback" && row["detail"].is_string() && !is_guest();
        check!(row["verdict"] == "works" || fallback, "{command}: {row}");
        // This one wants to know whose allocations: ours, which go through a C library.
        let own = std::process::id().to_string();
        let whose: &[&str] = if command == "memleak" { &["-P", &own] } else { &[] };
        let watcher = Watcher::start(&[&[command, "-n", "1"], whose].concat());
        check_eq!(watcher.header["hook"], row["how"], "{command}");
    }
    PASS
}

fn facts() -> Outcome {
    let all = rows(&["doctor"]);
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    check_eq!(finding(&all, "kernel")["how"].as_str(), Some(release.trim()), "kernel");
    check_eq!(finding(&all, "btf")["how"].as_str(), Some("built in"), "btf");
    for (subject, feature) in [("fentry", "fentry"), ("kprobes", "kprobe")] {
        let row = finding(&all, subject);
        if must_support(feature) {
            check_eq!(row["how"].as_str(), Some("yes"), "{subject}: {row}");
        } else {
            check!(row["how"] == "yes" || row["detail"].is_string(), "no reason: {row}");
        }
    }
    for subject in ["lockdown", "capabilities", "cgroups"] {
        check!(finding(&all, subject)["how"].is_string(), "{subject} is missing");
    }
    PASS
}

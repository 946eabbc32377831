//! The command line, without root: help, bad options, missing rights. Each
//! mistake gets one line that says what was wrong, and the right exit code.

#![allow(clippy::unwrap_used)]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::Command;
use std::process::Output;
use std::process::Stdio;
use std::sync::OnceLock;

/// A user without any right.
const NOBODY: u32 = 65534;

/// A copy of the program where anybody can run it, wherever the build is.
fn binary() -> &'static PathBuf {
    static COPY: OnceLock<PathBuf> = OnceLock::new();
    COPY.get_or_init(|| {
        // One name for all runs, put in place in one step: nothing piles up.
        let copy = std::env::temp_dir().join("mem_watcher-cli-test");
        let fresh = copy.with_extension(std::process::id().to_string());
        fs::copy(env!("CARGO_BIN_EXE_mem_watcher"), &fresh).unwrap();
        fs::set_permissions(&fresh, fs::Permissions::from_mode(0o755)).unwrap();
        fs::rename(&fresh, &copy).unwrap();
        copy
    })
}

fn run(args: &[&str]) -> Output {
    Command::new(binary()).args(args).stdin(Stdio::null()).output().unwrap()
}

/// The same without rights, whoever runs the tests.
fn run_as_nobody(args: &[&str]) -> Output {
    let mut command = Command::new(binary());
    command.args(args).stdin(Stdio::null()).current_dir("/");
    if rustix::process::geteuid().is_root() {
        command.uid(NOBODY).gid(NOBODY);
    }
    command.output().unwrap()
}

/// Checks the exit code, that nothing went to standard output, and that one
/// line on standard error holds all of `words`.
#[track_caller]
fn refuses(output: &Output, code: i32, words: &[&str]) {
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{stderr}");
    assert!(output.stdout.is_empty(), "{}", String::from_utf8_lossy(&output.stdout));
    assert_eq!(stderr.lines().count(), 1, "not one line: {stderr}");
    for word in words {
        assert!(stderr.contains(word), "no `{word}` in: {stderr}");
    }
}

#[test]
fn help_names_every_command_and_short_form() {
    let output = run(&["--help"]);
    assert_eq!(output.status.code(), Some(0));
    let text = String::from_utf8(output.stdout).unwrap();
    for word in ["procstat, -r", "sysstat, -s", "doctor", "Exit codes"] {
        assert!(text.contains(word), "no `{word}` in:\n{text}");
    }
}

#[test]
fn the_short_form_is_the_command() {
    let short = run(&["-r", "--help"]);
    let long = run(&["procstat", "--help"]);
    assert_eq!(short.status.code(), Some(0));
    assert_eq!(short.stdout, long.stdout);
    let text = String::from_utf8(long.stdout).unwrap();
    for option in ["--pid", "--comm", "--cgroup", "--interval", "--count", "--duration"] {
        assert!(text.contains(option), "no `{option}` in:\n{text}");
    }
}

#[test]
fn unknown_commands_and_options_are_usage_errors() {
    refuses(&run(&["nonsense"]), 2, &["nonsense"]);
    refuses(&run(&["procstat", "--nonsense"]), 2, &["--nonsense"]);
    refuses(&run(&["-s", "surplus"]), 2, &["surplus"]);
}

#[test]
fn nothing_asked_shows_the_help_and_is_a_usage_error() {
    let output = run(&[]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("procstat"));
}

#[test]
fn intervals_are_positive_numbers() {
    for bad in ["abc", "-1", "0", "nan", "inf", "1e99", ""] {
        refuses(&run(&["-s", "-i", bad]), 2, &["--interval", "give seconds"]);
        refuses(&run(&["-r", "-d", bad]), 2, &["--duration", "give seconds"]);
    }
    for bad in ["abc", "-1", "0", "1.5"] {
        refuses(&run(&["-s", "-n", bad]), 2, &["--count", bad]);
    }
}

#[test]
fn targets_are_checked() {
    for bad in ["abc", "0", "-5", "1.5", "99999999999", ""] {
        refuses(&run(&["-r", "-P", bad]), 2, &["--pid", "positive whole number"]);
    }
    refuses(&run(&["-r", "--comm", ""]), 2, &["--comm", "at least one character"]);
    refuses(&run(&["-r", "-P", "4194305"]), 1, &["no process has PID 4194305"]);
    refuses(&run(&["-r", "--cgroup", "/nonexistent"]), 1, &["--cgroup", "/nonexistent"]);
}

#[test]
fn formats_units_and_orders_list_what_there_is() {
    refuses(&run(&["-s", "-o", "xml"]), 2, &["xml", "table", "json", "csv"]);
    refuses(&run(&["-s", "--unit", "kb"]), 2, &["kb", "pages", "kib", "mib", "gib", "auto"]);
    refuses(&run(&["-r", "--sort", "x"]), 2, &["rss", "anon", "swap", "pid", "growth"]);
    refuses(&run(&["-r", "--top", "0"]), 2, &["--top"]);
    refuses(&run(&["-s", "--per-node", "--rates"]), 2, &["--per-node", "--rates"]);
    refuses(&run(&["-r", "--every-switch", "--top", "3"]), 2, &["--every-switch", "--top"]);
    refuses(&run(&["-r", "--ring-kib", "5"]), 2, &["--ring-kib", "power of two"]);
}

#[test]
fn an_unknown_hook_lists_the_hooks() {
    let hooks = ["finish_task_switch", "tp_btf:sched_switch", "iter:task", "proc:status"];
    refuses(&run_as_nobody(&["-r", "--hook", "nonsense"]), 2, &hooks);
    refuses(&run(&["-s", "--hook", ""]), 2, &["get_page_from_freelist", "proc:vmstat"]);
}

#[test]
fn type_information_must_be_type_information() {
    refuses(&run(&["-r", "--btf", "/nonexistent"]), 1, &["--btf", "/nonexistent", "No such file"]);
    refuses(&run(&["-r", "--btf", "/proc/self/status"]), 1, &["--btf", "not BTF"]);
}

#[test]
fn missing_rights_are_named() {
    let words = ["CAP_BPF", "CAP_PERFMON", "sudo"];
    refuses(&run_as_nobody(&["-r"]), 3, &words);
    refuses(&run_as_nobody(&["-s"]), 3, &words);
}

#[test]
fn what_needs_no_rights_works_without() {
    let output = run_as_nobody(&["-s", "--hook", "proc", "-n", "1", "-o", "csv"]);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{stderr}");
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(text.lines().count(), 2, "{text}");
    assert!(text.starts_with("time,free_kib,"), "{text}");
    assert!(stderr.contains("1 rows"), "{stderr}");
}

#[test]
fn doctor_without_rights_says_so_for_each_command() {
    let output = run_as_nobody(&["doctor"]);
    assert_eq!(output.status.code(), Some(3));
    let text = String::from_utf8(output.stdout).unwrap();
    for command in ["procstat", "sysstat"] {
        let line = text.lines().find(|line| line.starts_with(command)).unwrap();
        assert!(line.contains("cannot") && line.contains("CAP_BPF"), "{line}");
    }
}

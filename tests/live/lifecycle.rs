//! How a run begins and ends, whichever the command: signals, limits, outputs
//! that close or fill up, too few rights, and what is left behind.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::BufRead as _;
use std::io::BufReader;
use std::io::Read as _;
use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::process::Output;
use std::process::Stdio;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use libtest_mimic::Trial;
use rustix::process::Signal;
use rustix::thread::CapabilitySet;
use rustix::thread::CapabilitySets;

use crate::check;
use crate::check_eq;
use crate::common::Outcome;
use crate::common::PASS;
use crate::common::kernels::if_supported;
use crate::common::kernels::is_guest;
use crate::common::kernels::must_support;
use crate::common::test;
use crate::common::watcher::PATIENCE;
use crate::common::watcher::Totals;
use crate::common::watcher::Watcher;
use crate::common::watcher::command;
use crate::common::watcher::rows;
use crate::common::watcher::run;
use crate::common::worker::Worker;

/// Commands that run until told to end, with an interval that never comes.
const ENDLESS: [&[&str]; 3] = [
    &["procstat", "-i", "1000"],
    &["procstat", "-i", "1000", "--every-switch", "--comm", "nobody-has-this"],
    &["sysstat", "-i", "1000"],
];

pub fn tests() -> Vec<Trial> {
    vec![
        test("lifecycle: SIGINT, SIGTERM and SIGHUP end a run at once", signals),
        test("lifecycle: -n and -d end a run", limits),
        test("lifecycle: a closed pipe ends a run, even one with nothing to say", closed_pipe),
        test("lifecycle: a full device is an error", full_device),
        test("lifecycle: a closed standard output is no crash", closed_stdout),
        test("lifecycle: kill -9 leaves nothing attached", killed),
        test("lifecycle: CAP_BPF and CAP_PERFMON are enough", two_capabilities),
        test("lifecycle: one of them alone is not, and is told apart", one_capability),
        test("lifecycle: a hook that cannot attach here names those that can", wrong_hook),
        test("lifecycle: in a container, PIDs that mean others are refused", container),
        test("lifecycle: without built-in type information", no_btf),
        test("lifecycle: --btf takes the kernel's own information as a file", btf_file),
    ]
}

fn signals() -> Outcome {
    for args in ENDLESS {
        for signal in [Signal::INT, Signal::TERM, Signal::HUP] {
            let watcher = Watcher::start(args);
            watcher.signal(signal);
            let (code, _, stderr) = watcher.finish();
            check_eq!(code, Some(0), "{args:?} on {signal:?}: {stderr}");
            check!(Totals::parse(&stderr).is_some(), "{args:?}: no summary in {stderr}");
        }
    }
    PASS
}

fn limits() -> Outcome {
    check_eq!(rows(&["sysstat", "-n", "3", "-i", "0.05"]).len(), 3, "-n 3");
    let worker = Worker::start();
    let pid = worker.pid().to_string();
    // Asleep all the time: only the first list shows it.
    let all = rows(&["procstat", "-n", "4", "-i", "0.05", "-P", &pid]);
    check_eq!(all.len(), 1, "the first list and three quiet reports: {all:?}");
    let begun = Instant::now();
    let by_time = rows(&["sysstat", "-d", "0.55", "-i", "0.1"]);
    check!(begun.elapsed() >= Duration::from_millis(550), "-d 0.55 ended early");
    // At 0, 0.1 ... 0.5; a busy machine may skip beats, never add one.
    check!((1..=6).contains(&by_time.len()), "{} rows in 0.55 s", by_time.len());
    worker.end();
    PASS
}

fn closed_pipe() -> Outcome {
    for args in ENDLESS {
        let mut child =
            command(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("start");
        let mut stdout = BufReader::new(child.stdout.take().expect("piped"));
        let mut stderr = child.stderr.take().expect("piped");
        let mut line = String::new();
        let heard = if args.contains(&"--every-switch") {
            // Says nothing: nothing to wait for but the programs' arrival.
            thread::sleep(Duration::from_millis(300));
            Ok(0)
        } else {
            stdout.read_line(&mut line)
        };
        drop(stdout);
        let mut text = String::new();
        let said = stderr.read_to_string(&mut text);
        let status = child.wait()?;
        heard.and(said)?;
        check_eq!(status.code(), Some(0), "{args:?}: {text}");
        check!(Totals::parse(&text).is_some(), "{args:?}: no summary in {text}");
    }
    PASS
}

fn output_to(args: &[&str], stdout: Stdio) -> Output {
    command(args).stdout(stdout).stderr(Stdio::piped()).output().expect("running mem_watcher")
}

fn full_device() -> Outcome {
    for args in [&["sysstat", "-n", "1"][..], &["procstat", "-n", "1"], &["doctor"]] {
        let full = File::options().write(true).open("/dev/full")?;
        let output = output_to(args, full.into());
        let stderr = String::from_utf8_lossy(&output.stderr);
        check_eq!(output.status.code(), Some(1), "{args:?}: {stderr}");
        check!(stderr.contains("No space left on device"), "{args:?}: {stderr}");
        check!(!stderr.contains("panicked"), "{args:?}: {stderr}");
    }
    PASS
}

fn closed_stdout() -> Outcome {
    let script = "exec \"$0\" \"$@\" >&-";
    for args in [&["sysstat", "-n", "1"][..], &["procstat", "-n", "1"], &["doctor"]] {
        let output = Command::new("sh")
            .args(["-c", script])
            .arg(crate::common::watcher::binary())
            .args(args)
            .stdin(Stdio::null())
            .output()?;
        let stderr = String::from_utf8_lossy(&output.stderr);
        check!(matches!(output.status.code(), Some(0 | 1)), "{args:?}: {:?}", output.status);
        check!(!stderr.contains("panicked"), "{args:?}: {stderr}");
    }
    PASS
}

/// Ids of the loaded BPF programs that are ours by name. Another watcher may
/// run on this machine, so ids and not names tell what a test left behind.
fn programs() -> BTreeSet<u32> {
    libbpf_rs::query::ProgInfoIter::default()
        .filter(|program| {
            let name = program.name.to_string_lossy();
            matches!(name.as_ref(), "on_switch" | "on_finish" | "read_nodes")
        })
        .map(|program| program.id)
        .collect()
}

fn killed() -> Outcome {
    for args in [&["procstat"][..], &["sysstat"]] {
        let before = programs();
        let watcher = Watcher::start(args);
        let _ = watcher.next(PATIENCE).ok_or("no row")?;
        let ours: BTreeSet<u32> = programs().difference(&before).copied().collect();
        check!(!ours.is_empty(), "{args:?}: its program is not listed while it runs");
        watcher.signal(Signal::KILL);
        let (code, _, _) = watcher.finish();
        check_eq!(code, None, "{args:?} was killed");
        // The kernel frees a program after a grace period.
        let end = Instant::now() + PATIENCE;
        while programs().intersection(&ours).next().is_some() {
            check!(Instant::now() < end, "{args:?}: left behind: {ours:?}");
            thread::sleep(Duration::from_millis(20));
        }
    }
    PASS
}

/// Runs it as nobody with these capabilities and no other.
fn with_capabilities(caps: CapabilitySet, args: &[&str]) -> Output {
    let mut command = command(args);
    // SAFETY: only system calls between fork and exec.
    unsafe {
        command.pre_exec(move || {
            rustix::thread::set_keep_capabilities(true)?;
            let nobody = rustix::process::Uid::from_raw(65534);
            rustix::thread::set_thread_res_uid(nobody, nobody, nobody)?;
            let sets = CapabilitySets { effective: caps, permitted: caps, inheritable: caps };
            rustix::thread::set_capabilities(None, sets)?;
            for cap in caps.iter() {
                rustix::thread::configure_capability_in_ambient_set(cap, true)?;
            }
            Ok(())
        });
    }
    command.output().expect("running mem_watcher")
}

fn two_capabilities() -> Outcome {
    for args in [&["procstat", "-n", "1", "-o", "json"][..], &["sysstat", "-n", "1", "-o", "json"]] {
        let output = with_capabilities(CapabilitySet::BPF | CapabilitySet::PERFMON, args);
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        if output.status.success() {
            let rows = String::from_utf8_lossy(&output.stdout).lines().count();
            check!(rows >= 3, "{args:?}: {rows} lines; {stderr}");
            continue;
        }
        check_eq!(output.status.code(), Some(3), "{args:?}: {stderr}");
        check!(stderr.contains("locked-memory limit"), "does not say what to do: {stderr}");
        return if_supported("two_caps", false, || PASS);
    }
    PASS
}

fn one_capability() -> Outcome {
    for (cap, missing) in
        [(CapabilitySet::BPF, "CAP_PERFMON"), (CapabilitySet::PERFMON, "CAP_BPF")]
    {
        let output = with_capabilities(cap, &["procstat", "-n", "1"]);
        let stderr = String::from_utf8_lossy(&output.stderr);
        check_eq!(output.status.code(), Some(3), "{stderr}");
        check!(stderr.contains(&format!("needs {missing}:")), "{stderr}");
    }
    PASS
}

fn wrong_hook() -> Outcome {
    let mut refused = 0;
    for hook in ["fentry:finish_task_switch", "tp_btf:sched_switch"] {
        let output = run(&["procstat", "-n", "1", "--hook", hook]);
        let stderr = String::from_utf8_lossy(&output.stderr);
        match output.status.code() {
            Some(0) => {}
            Some(4) => {
                refused += 1;
                check!(stderr.contains("usable here: "), "{stderr}");
                check!(stderr.contains("iter:task"), "{stderr}");
            }
            code => return Err(format!("{hook}: {code:?} {stderr}").into()),
        }
    }
    if must_support("plain_finish_task_switch") {
        check_eq!(refused, 0, "both attach here, so none is refused");
        return PASS;
    }
    check_eq!(refused, 1, "the clone is refused, the tracepoint is not");
    PASS
}

fn container() -> Outcome {
    let inside = |args: &[&str]| {
        Command::new("unshare")
            .args(["--pid", "--fork", "--mount-proc"])
            .arg(crate::common::watcher::binary())
            .args(args)
            .stdin(Stdio::null())
            .output()
    };
    let refused = inside(&["procstat", "-n", "1", "-P", "1"])?;
    let stderr = String::from_utf8_lossy(&refused.stderr);
    check_eq!(refused.status.code(), Some(1), "{stderr}");
    check!(stderr.contains("--pid=host"), "{stderr}");
    let from_proc = inside(&["procstat", "-n", "1", "-P", "1", "--hook", "proc"])?;
    check_eq!(from_proc.status.code(), Some(0), "{}", String::from_utf8_lossy(&from_proc.stderr));
    let all = inside(&["procstat", "-n", "1"])?;
    let stderr = String::from_utf8_lossy(&all.stderr);
    check!(stderr.contains("those of the host"), "{stderr}");
    PASS
}

/// A kernel without BTF is one whose file is not there: a guest's is covered up.
fn no_btf() -> Outcome {
    let folder = "/sys/kernel/btf";
    let kept = "/tmp/kept.btf";
    let hidden = is_guest()
        && std::fs::copy("/sys/kernel/btf/vmlinux", kept).is_ok()
        && Command::new("mount").args(["-t", "tmpfs", "none", folder]).status()?.success();
    if !hidden {
        return if_supported("btf_hiding", false, || PASS);
    }
    let hook = |args: &[&str]| Watcher::start(args).header["hook"].clone();
    let procstat = hook(&["procstat", "-n", "1"]);
    let sysstat = hook(&["sysstat", "-n", "1"]);
    let with_file = hook(&["sysstat", "-n", "1", "--btf", kept]);
    let shown = Command::new("umount").arg(folder).status()?.success();
    check!(shown, "the kernel's own file is back");
    check_eq!(procstat, "proc:status", "procstat");
    check_eq!(sysstat, "proc:vmstat", "sysstat");
    check_eq!(with_file, "kprobe:get_page_from_freelist", "sysstat with --btf");
    PASS
}

fn btf_file() -> Outcome {
    let file = ["--btf", "/sys/kernel/btf/vmlinux"];
    for command in ["procstat", "sysstat"] {
        let with = rows(&[&[command, "-n", "1"], &file[..]].concat());
        check!(!with.is_empty(), "{command} with --btf printed nothing");
    }
    PASS
}

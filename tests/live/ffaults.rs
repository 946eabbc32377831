//! ffaults against the kernel's own counts, `ru_minflt` and `ru_majflt`.

use libtest_mimic::Failed;
use libtest_mimic::Trial;
use serde_json::Value;

use crate::check;
use crate::check_eq;
use crate::common::Outcome;
use crate::common::PASS;
use crate::common::kernels::if_supported;
use crate::common::leak::number;
use crate::common::test;
use crate::common::watcher::Watcher;
use crate::common::worker::Worker;
use crate::faults::agrees;
use crate::faults::stop;
use crate::faults::with_hook_of;

/// Hooks, and the feature of `tests/kernels.txt` each depends on.
const HOOKS: [(&str, &str); 3] = [
    ("fexit:handle_mm_fault", "fentry"),
    ("kprobe:handle_mm_fault", "kprobe"),
    ("perf:page-faults", "find_vma"),
];

/// `PATH_DEPTH` of ffaults.bpf.c.
const DEPTH: usize = 64;

pub fn tests() -> Vec<Trial> {
    let mut tests = Vec::new();
    for (hook, feature) in HOOKS {
        let each = |what: &str, body: fn(&'static str) -> Outcome| {
            test(format!("ffaults: {what}, through {hook}"), move || {
                with_hook_of("ffaults", hook, feature, || body(hook))
            })
        };
        tests.push(each("a deleted file", deleted));
        tests.push(each("a file in another root and mount namespace", inside));
        tests.push(each("a memfd", memfd));
        tests.push(each("a file not in memory", cold));
    }
    tests.extend([
        test("ffaults: a path that is too deep is cut, and says so", deep),
        test("ffaults: two processes and one name of two files", same_name),
        test("ffaults: faults --by file is the same", the_same),
    ]);
    tests
}

struct Watched {
    watcher: Watcher,
    worker: Worker,
}

impl Watched {
    fn start(args: &[&str]) -> Self {
        let worker = Worker::start();
        let pid = worker.pid().to_string();
        let watcher = Watcher::start(&[args, &["-P", &pid]].concat());
        Self { watcher, worker }
    }

    /// Has the worker fault, and returns what it counted, the rows, and what was lost.
    fn fault(mut self, order: &str) -> Result<(String, Vec<Value>, u64), Failed> {
        let answer = self.worker.ask(order);
        let (rows, lost) = stop(self.watcher)?;
        Ok((answer, rows, lost))
    }
}

/// Minor and major faults of the file of that path.
fn of_file(rows: &[Value], path: &str) -> (u64, u64) {
    let found: Vec<&Value> = rows.iter().filter(|row| row["file"] == path).collect();
    let sum = |key: &str| found.iter().map(|row| number(row, key)).sum::<u64>();
    (sum("minor"), sum("major"))
}

/// What the worker counted; beside the file's faults nothing happens there.
fn counted(answer: &str) -> Result<(u64, u64), Failed> {
    let words: Vec<u64> = answer.split(' ').filter_map(|word| word.parse().ok()).collect();
    match words[..] {
        [minor, major] => Ok((minor, major)),
        _ => Err(Failed::from(format!("the worker answered {answer:?}"))),
    }
}

fn deleted(hook: &str) -> Outcome {
    let number = std::process::id();
    let (answer, rows, lost) =
        Watched::start(&["ffaults", "--hook", hook]).fault(&format!("fault-deleted 101 {number}"))?;
    let path = format!("{}/worker-deleted-{number} (deleted)", temp());
    let (minor, major) = of_file(&rows, &path);
    check!(agrees(minor + major, 101, lost), "{path}, the worker counted {answer}: {rows:?}");
    PASS
}

fn temp() -> String {
    let path = std::fs::canonicalize(std::env::temp_dir()).expect("a folder");
    path.to_str().expect("a plain path").to_owned()
}

fn inside(hook: &str) -> Outcome {
    let number = std::process::id();
    let (answer, rows, lost) =
        Watched::start(&["ffaults", "--hook", hook]).fault(&format!("fault-inside 103 {number}"))?;
    let _ = std::fs::remove_dir(std::env::temp_dir().join(format!("worker-root-{number}")));
    if answer.starts_with("refused") {
        return if_supported("mount", false, || PASS);
    }
    let (minor, major) = of_file(&rows, "/folder/inside");
    check!(agrees(minor + major, 103, lost), "the worker counted {answer}: {rows:?}");
    PASS
}

fn memfd(hook: &str) -> Outcome {
    let (answer, rows, lost) =
        Watched::start(&["ffaults", "--hook", hook, "--per-process"]).fault("fault-shmem 503")?;
    let (minor, major) = of_file(&rows, "/memfd:worker-faults (deleted)");
    check!(agrees(minor + major, 503, lost), "the worker counted {answer}: {rows:?}");
    check!(rows.iter().all(|row| row["pid"].is_u64() && row["comm"].is_string()), "{rows:?}");
    PASS
}

fn cold(hook: &str) -> Outcome {
    let (answer, rows, lost) = Watched::start(&["ffaults", "--hook", hook]).fault("fault-cold 29")?;
    let (minor, major) = counted(&answer)?;
    // Those of the file, which is the only one that is not in memory.
    let seen: u64 = rows.iter().map(|row| number(row, "major")).sum();
    check!(agrees(seen, major, lost), "major faults, the worker counted {answer}: {rows:?}");
    let path = rows.iter().find(|row| number(row, "major") > 0);
    let path = path.and_then(|row| row["file"].as_str()).ok_or("no file")?;
    check!(path == "/dev/vda" || path.contains("/worker-"), "{path}");
    let (minor_seen, major_seen) = of_file(&rows, path);
    check!(
        minor_seen + major_seen + lost >= 29 && minor_seen + major_seen <= minor + major,
        "{minor_seen} and {major_seen}, the worker counted {answer}"
    );
    PASS
}

fn deep() -> Outcome {
    let watched = Watched::start(&["ffaults"]);
    let (answer, rows, lost) = watched.fault(&format!("fault-deep 31 {}", DEPTH + 3))?;
    let cut = format!("...{}/file", "/d".repeat(DEPTH - 1));
    let (minor, major) = of_file(&rows, &cut);
    check!(agrees(minor + major, 31, lost), "{cut}, the worker counted {answer}: {rows:?}");
    PASS
}

/// One name, one after the other: two files, and two rows.
fn same_name() -> Outcome {
    let number = std::process::id();
    let mut watched = Watched::start(&["ffaults", "-i", "100"]);
    watched.worker.ask(&format!("fault-deleted 37 {number}"));
    let (_, rows, lost) = watched.fault(&format!("fault-deleted 41 {number}"))?;
    let path = format!("{}/worker-deleted-{number} (deleted)", temp());
    let mut counts: Vec<u64> = rows
        .iter()
        .filter(|row| row["file"] == path.as_str())
        .map(|row| crate::common::leak::number(row, "faults"))
        .collect();
    counts.sort_unstable();
    check_eq!(counts.len(), 2, "two files of one name: {rows:?}");
    check!(agrees(counts[0], 37, lost) && agrees(counts[1], 41, lost), "{lost} lost: {rows:?}");
    PASS
}

fn the_same() -> Outcome {
    let watched = Watched::start(&["faults", "--by", "file"]);
    let (answer, rows, lost) = watched.fault("fault-shmem 307")?;
    let (minor, major) = of_file(&rows, "/memfd:worker-faults (deleted)");
    check!(agrees(minor + major, 307, lost), "the worker counted {answer}: {rows:?}");
    PASS
}

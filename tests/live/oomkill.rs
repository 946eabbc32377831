//! oomkill against what the kernel says of each kill in its log, and what it
//! said of the victim before. Victim and trigger are always different processes.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Mutex;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use libtest_mimic::Failed;
use libtest_mimic::Trial;
use rustix::process::Signal;
use serde_json::Value;

use crate::check;
use crate::check_eq;
use crate::common::Outcome;
use crate::common::PASS;
use crate::common::kernels::if_supported;
use crate::common::kernels::is_guest;
use crate::common::kernels::must_support;
use crate::common::kmsg::Killed;
use crate::common::kmsg::Kmsg;
use crate::common::leak::number;
use crate::common::oracle;
use crate::common::pressure::Cgroup;
use crate::common::pressure::drop_caches;
use crate::common::test;
use crate::common::watcher::PATIENCE;
use crate::common::watcher::Totals;
use crate::common::watcher::Watcher;
use crate::common::watcher::run;
use crate::common::worker::Worker;

/// Hooks, the feature of `tests/kernels.txt` each depends on, and whether it sees
/// what was asked for.
const HOOKS: [(&str, &str, bool); 3] = [
    ("fentry:oom_kill_process", "fentry", true),
    ("kprobe:oom_kill_process", "kprobe", true),
    ("raw_tp:mark_victim", "tp_btf", false),
];

pub fn tests() -> Vec<Trial> {
    let mut tests = Vec::new();
    for (hook, feature, full) in HOOKS {
        let each = |what: &str, body: fn(&'static str, bool) -> Outcome| {
            test(format!("oomkill: {what}, through {hook}"), move || {
                if_supported(feature, works(hook), || {
                    if_supported("memcg", has_memcg(), || body(hook, full))
                })
            })
        };
        tests.push(each("a cgroup at its limit", memcg));
        tests.push(each("SysRq", sysrq));
        tests.push(each("all members of a group", group));
        tests.push(each("who shares the victim's memory", shares));
        tests.push(each("several at once", burst));
    }
    tests.extend([
        test("oomkill: a machine without memory, and itself in it", exhausted),
        test("oomkill: a cpuset without memory", cpuset),
        test("oomkill: a memory policy without memory", mempolicy),
        test("oomkill: the limit of a cgroup above", nested),
        test("oomkill: kills by daemons", daemons),
        test("oomkill: kills through cgroup.kill", cgroup_kill),
        test("oomkill: only some victims", filters),
        test("oomkill: every kill arrives or is counted as lost", losses),
        test("oomkill: table and CSV", formats),
        test("oomkill: what it does with its own score and memory", protection),
        test("oomkill: bad input", bad_input),
    ]);
    tests
}

/// Whether this kernel has what the hook is of; that it attaches is the test.
fn works(hook: &'static str) -> bool {
    static KNOWN: Mutex<Vec<(&str, bool)>> = Mutex::new(Vec::new());
    let mut known = KNOWN.lock().expect("one test at a time");
    if let Some((_, works)) = known.iter().find(|(name, _)| *name == hook) {
        return *works;
    }
    // A list of all processes at each OOM says nothing that is asked here.
    let _ = if is_guest() { fs::write("/proc/sys/vm/oom_dump_tasks", "0") } else { Ok(()) };
    let output = run(&["oomkill", "--keep-oom-score", "--hook", hook, "-d", "0.01"]);
    known.push((hook, output.status.success()));
    output.status.success()
}

fn has_memcg() -> bool {
    Cgroup::create("probe").is_some()
}

/// The default hook sees what ran out.
fn full() -> bool {
    works(HOOKS[0].0) || works(HOOKS[1].0)
}

/// A cgroup of so many pages without swap.
fn limited(name: &str, pages: u64) -> Result<Cgroup, Failed> {
    let group = Cgroup::create(name).ok_or("no memory cgroup")?;
    let bytes = pages * oracle::page_kib() * 1024;
    group.limit(bytes)?;
    // Without swap there is no such file.
    let file = if group.is_v2() { "memory.swap.max" } else { "memory.memsw.limit_in_bytes" };
    let _ = group.set(file, if group.is_v2() { 0 } else { bytes });
    Ok(group)
}

/// A worker in a cgroup.
fn member(group: &Cgroup) -> Result<Worker, Failed> {
    let worker = Worker::start();
    group.add(worker.pid())?;
    Ok(worker)
}

/// The worker that is to be killed.
fn doom(worker: &Worker) -> Result<(), Failed> {
    Ok(fs::write(format!("/proc/{}/oom_score_adj", worker.pid()), "1000")?)
}

/// A user that owns nothing: in a guest, where everybody may run the tests.
fn other_user() -> (Worker, u64) {
    use std::os::unix::process::CommandExt as _;
    let mut command = Command::new(std::env::current_exe().expect("own path"));
    command.arg("--worker");
    let uid = if is_guest() { 65534 } else { 0 };
    command.uid(uid);
    (Worker::spawn(&mut command).0, uid.into())
}

/// Waits until the process is no more than a zombie: its memory is free.
fn wait_for_death(pid: u32) {
    let end = Instant::now() + PATIENCE;
    while Instant::now() < end {
        let alive = fs::read_to_string(format!("/proc/{pid}/status"))
            .is_ok_and(|text| !text.contains("State:\tZ"));
        if !alive {
            return;
        }
        thread::sleep(Duration::from_millis(20));
    }
}

fn start(hook: &str, args: &[&str]) -> Watcher {
    // The tests' own score is not to be inherited by anything.
    Watcher::start(&[&["oomkill", "--hook", hook], args].concat())
}

fn row_of(watcher: &Watcher, pid: u32) -> Result<Value, Failed> {
    watcher
        .wait_for(|row| row["pid"] == pid)
        .map_err(|others| format!("no row of {pid}, but {others:?}").into())
}

/// Ends a watcher that has shown the kill it was for. The trigger may have been
/// killed too: the kernel counts a victim's memory as free a moment before it is.
fn only(watcher: Watcher, trigger: &Worker) -> Outcome {
    let rows = stop(watcher)?;
    check!(rows.iter().all(|row| row["pid"] == trigger.pid()), "more than one kill: {rows:?}");
    PASS
}

/// Ends a watcher that must have lost nothing; the rows left.
fn stop(watcher: Watcher) -> Result<Vec<Value>, Failed> {
    let (code, rows, stderr) = watcher.stop();
    check_eq_or_fail(code == Some(0), &stderr)?;
    check_eq_or_fail(Totals::parse(&stderr).is_some_and(|totals| totals.lost == 0), &stderr)?;
    Ok(rows)
}

fn check_eq_or_fail(holds: bool, text: &str) -> Result<(), Failed> {
    if holds { Ok(()) } else { Err(text.to_owned().into()) }
}

fn command_line(pid: u32) -> String {
    let bytes = fs::read(format!("/proc/{pid}/cmdline")).expect("a living process");
    String::from_utf8_lossy(&bytes).trim_end_matches('\0').replace('\0', " ")
}

/// That a row says what the kernel's log says, within what the log itself may be
/// off: it prints the counters without the parts that CPUs (batches of
/// max(32, 2 CPUs) pages, lib/percpu_counter.c) or threads (66 faults of up to 16
/// pages of files, see rss.bpf.h) keep.
fn same(row: &Value, log: &Killed, full: bool) -> Outcome {
    let cpus = std::thread::available_parallelism()?.get() as u64;
    let page = oracle::page_kib();
    let split = oracle::counters_are_split();
    let most = |faults: u64| if split { 66 * faults } else { cpus * (2 * cpus).max(32) } * page;
    let what = |what: &str| format!("{what}: {log:?} in {row}");
    check_eq!(row["pid"], log.pid, "{}", what("pid"));
    check_eq!(row["comm"], log.comm.as_str(), "{}", what("comm"));
    check_eq!(number(row, "vm_size_kib"), log.total_vm, "{}", what("total-vm"));
    check_eq!(number(row, "page_tables_kib"), log.page_tables, "{}", what("pgtables"));
    check_eq!(number(row, "uid"), log.uid, "{}", what("UID"));
    check_eq!(row["oom_score_adj"], log.score_adj, "{}", what("oom_score_adj"));
    check!(number(row, "anon_kib").abs_diff(log.anon) <= most(1), "{}", what("anon-rss"));
    check!(number(row, "file_kib").abs_diff(log.file) <= most(16), "{}", what("file-rss"));
    check!(number(row, "shmem_kib").abs_diff(log.shmem) <= most(16), "{}", what("shmem-rss"));
    let Some(report) = &log.report else { return PASS };
    check_eq!(row["trigger_tid"], report.pid, "{}", what("who ran out"));
    check_eq!(row["trigger_thread"], report.comm.as_str(), "{}", what("its name"));
    if !full {
        check!(row["limit_kib"].is_null() && row["gfp"].is_null(), "{}", what("not to be seen"));
        return PASS;
    }
    check_eq!(row["gfp"], report.gfp.as_str(), "{}", what("gfp_mask"));
    check_eq!(row["gfp_flags"], report.gfp_words.as_str(), "{}", what("gfp_mask in words"));
    check_eq!(row["order"], report.order, "{}", what("order"));
    let constraint = match report.constraint.as_str() {
        "CONSTRAINT_NONE" => "global",
        "CONSTRAINT_MEMCG" => "memcg",
        "CONSTRAINT_CPUSET" => "cpuset",
        "CONSTRAINT_MEMORY_POLICY" => "mempolicy",
        other => other,
    };
    check_eq!(row["constraint"], constraint, "{}", what("constraint"));
    if let Some(memcg) = &report.oom_memcg {
        check_eq!(row["limit_cgroup"], memcg.as_str(), "{}", what("oom_memcg"));
    }
    if let Some(memcg) = &report.task_memcg {
        check_eq!(row["cgroup"], memcg.as_str(), "{}", what("task_memcg"));
    }
    PASS
}

/// That a row has what the victim had at rest, and says so.
fn had(row: &Value, truth: &oracle::Status) -> Outcome {
    had_about(row, truth)?;
    check_eq!(number(row, "rss_error_kib"), 0, "exact: {row}");
    PASS
}

/// That a row has what the victim had at rest. While another watcher looks at it, the
/// memory has one more user, who might have pages that are not counted yet (6.1).
fn had_about(row: &Value, truth: &oracle::Status) -> Outcome {
    check_eq!(number(row, "rss_kib"), truth["Rss"], "resident: {row}");
    check_eq!(number(row, "anon_kib"), truth["Anonymous"], "anonymous: {row}");
    check_eq!(number(row, "swap_kib"), truth["Swap"], "swapped: {row}");
    PASS
}

fn rows_in<'row>(row: &'row Value, key: &str) -> &'row [Value] {
    row[key].as_array().map_or(&[], Vec::as_slice)
}

/// 7919 + 211 + 101 pages of the victim and 12007 of the trigger do not fit
/// into 16384; without the victim the trigger's do.
fn memcg(hook: &'static str, full: bool) -> Outcome {
    let group = limited("limit", 16_384)?;
    let (mut victim, uid) = other_user();
    group.add(victim.pid())?;
    let mut trigger = member(&group)?;
    let watcher = start(hook, &["-i", "0.1"]);
    check_eq!(watcher.header["hook"], hook, "the hook");
    victim.ask("anon 7919");
    victim.ask("shared 211");
    victim.ask("sparse 101");
    doom(&victim)?;
    let truth = oracle::smaps_rollup(victim.pid()).ok_or("smaps_rollup")?;
    let commands = [command_line(victim.pid()), command_line(trigger.pid())];
    let mut log = Kmsg::from_now().ok_or("/dev/kmsg")?;
    // Some looks at the machine with the victim as it is.
    thread::sleep(Duration::from_millis(500));
    trigger.tell("anon 12007");
    let row = row_of(&watcher, victim.pid())?;
    let killed = log.killed(&[victim.pid()]).pop().ok_or("nothing in the kernel's log")?;
    only(watcher, &trigger)?;

    same(&row, &killed, full)?;
    had(&row, &truth)?;
    check_eq!(number(&row, "uid"), uid, "the victim's user: {row}");
    check_eq!(number(&row, "trigger_uid"), 0, "the trigger's user: {row}");
    check_eq!(row["trigger_pid"], trigger.pid(), "{row}");
    check_eq!(row["parent_pid"], std::process::id(), "{row}");
    check_eq!(row["command"], commands[0].as_str(), "{row}");
    check_eq!(row["trigger_command"], commands[1].as_str(), "{row}");
    check_eq!(row["sender"], "kernel", "{row}");
    check_eq!(row["role"], "chosen", "{row}");
    check_eq!(row["oom"], 1, "{row}");
    check_eq!(row["cgroup"], group.path(), "{row}");
    check_eq!(row["trigger_cgroup"], group.path(), "{row}");
    if full {
        let page = oracle::page_kib();
        let (limit, used) = (number(&row, "limit_kib"), number(&row, "limit_used_kib"));
        check_eq!(limit, 16_384 * page, "{row}");
        let of = if group.is_v2() { "memory.max" } else { "memory.limit_in_bytes" };
        check_eq!(row["limit_of"], of, "{row}");
        check_eq!(row["limit_cgroup"], group.path(), "{row}");
        if !group.is_v2() {
            check_eq!(number(&row, "swap_limit_kib"), limit, "memory.memsw: {row}");
        }
        // What was charged ahead (MEMCG_CHARGE_BATCH, 64 pages a CPU) comes back.
        check!(used <= limit && limit - used <= 64 * 3 * page, "{used} of {limit}: {row}");
        check!(row["nodes"].is_null(), "all nodes: {row}");
    }
    check!(row["load_one"].as_f64().is_some_and(|load| load > 0.0), "{row}");
    zones(&row)?;
    before(&row, &victim, truth["Rss"])
}

/// What cannot change of a zone while the machine runs, against /proc/zoneinfo.
fn zones(row: &Value) -> Outcome {
    let text = fs::read_to_string("/proc/zoneinfo")?;
    let mut wanted = Vec::new();
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            ["Node", node, "zone", name] => {
                wanted.push((node.trim_end_matches(',').parse::<u64>()?, (*name).to_owned(), 0, 0));
            }
            ["present", pages] => wanted.last_mut().ok_or("a zone")?.2 = pages.parse()?,
            ["managed", pages] => wanted.last_mut().ok_or("a zone")?.3 = pages.parse()?,
            _ => {}
        }
    }
    wanted.retain(|zone| zone.3 > 0);
    let page = oracle::page_kib();
    let seen: Vec<(u64, String, u64, u64)> = rows_in(row, "zones")
        .iter()
        .map(|zone| {
            let name = zone["zone"].as_str().unwrap_or_default().to_owned();
            let pages = |key| number(zone, key) / page;
            (number(zone, "node"), name, pages("present_kib"), pages("managed_kib"))
        })
        .collect();
    check_eq!(seen, wanted, "zones");
    for zone in rows_in(row, "zones") {
        let pages = |key| number(zone, key);
        check!(
            pages("min_kib") <= pages("low_kib") && pages("low_kib") <= pages("high_kib"),
            "{zone}"
        );
        check!(pages("free_kib") > 0 && pages("free_kib") <= pages("managed_kib"), "{zone}");
    }
    check_eq!(number(row, "zones_left_out"), 0, "{row}");
    PASS
}

/// The victim is in the history as it was at rest.
fn before(row: &Value, victim: &Worker, rss: u64) -> Outcome {
    let history = rows_in(row, "history");
    check!(history.len() >= 2 && history.len() <= 10, "{} moments: {row}", history.len());
    let time = |row: &Value| row["time"].as_str().unwrap_or_default().to_owned();
    check!(history.windows(2).all(|two| time(&two[0]) < time(&two[1])), "in order: {row}");
    check!(history.iter().all(|moment| number(moment, "free_kib") > 0), "{row}");
    let last = history.last().ok_or("no moment")?;
    check!(time(last) <= time(row), "before the kill: {row}");
    check!(last["kills"].as_u64() == Some(0), "no kill before: {row}");
    check!(last["pages_scanned_per_s"].is_number(), "{row}");
    let victim = Value::from(victim.pid());
    for list in [rows_in(last, "processes"), rows_in(row, "biggest")] {
        check!(!list.is_empty() && list.len() <= 10, "{row}");
        let sizes: Vec<u64> =
            list.iter().map(|big| number(big, "rss_kib") + number(big, "swap_kib")).collect();
        check!(sizes.windows(2).all(|two| two[0] >= two[1]), "the biggest first: {sizes:?}");
        let found = list.iter().find(|big| big["pid"] == victim);
        let found = found.ok_or_else(|| format!("the victim is not in {list:?}"))?;
        check_eq!(number(found, "rss_kib"), rss, "{found}");
        check_eq!(found["command"], row["command"], "{found}");
        check_eq!(found["oom_score_adj"], 1000, "{found}");
    }
    PASS
}

fn guests_only(body: impl FnOnce() -> Outcome) -> Outcome {
    // The machine the tests run on is somebody's.
    if is_guest() {
        body()
    } else {
        Ok(libtest_mimic::Completion::ignored_with(
            "only in a guest: the machine runs out of memory",
        ))
    }
}

fn sysrq(hook: &'static str, full: bool) -> Outcome {
    guests_only(|| {
        let mut victim = Worker::start();
        victim.ask("anon 1009");
        doom(&victim)?;
        let truth = oracle::smaps_rollup(victim.pid()).ok_or("smaps_rollup")?;
        let watcher = start(hook, &[]);
        let mut log = Kmsg::from_now().ok_or("/dev/kmsg")?;
        let memory = oracle::meminfo();
        fs::write("/proc/sysrq-trigger", "f")?;
        let row = row_of(&watcher, victim.pid())?;
        let killed = log.killed(&[victim.pid()]).pop().ok_or("nothing in the kernel's log")?;
        check_eq!(stop(watcher)?.len(), 0, "one kill, one row");
        same(&row, &killed, full)?;
        had(&row, &truth)?;
        check!(
            row["trigger_comm"].as_str().is_some_and(|name| name.starts_with("kworker")),
            "{row}"
        );
        check!(row["trigger_command"].is_null(), "a kernel thread has none: {row}");
        if full {
            check_eq!(row["order"], -1, "{row}");
            check_eq!(row["constraint"], "global", "{row}");
            let all = memory["MemTotal"] + memory["SwapTotal"];
            check_eq!(number(&row, "limit_kib"), all, "all memory and swap: {row}");
        }
        zones(&row)
    })
}

fn group(hook: &'static str, full: bool) -> Outcome {
    let group = limited("group", 8192)?;
    if !group.is_v2() {
        return if_supported("cgroup2", false, || PASS);
    }
    group.set("memory.oom.group", 1)?;
    let mut members: Vec<Worker> = (0..5).map(|_| member(&group)).collect::<Result<_, _>>()?;
    for (n, worker) in members.iter_mut().enumerate() {
        worker.ask(&format!("anon {}", 101 * (n + 1)));
    }
    let truths: Vec<(u32, oracle::Status)> = members
        .iter()
        .take(4)
        .filter_map(|worker| Some((worker.pid(), oracle::smaps_rollup(worker.pid())?)))
        .collect();
    let watcher = start(hook, &[]);
    let mut log = Kmsg::from_now().ok_or("/dev/kmsg")?;
    let trigger = members[4].pid();
    members[4].tell("anon 12007");
    let mut rows = Vec::new();
    for _ in 0..5 {
        rows.push(watcher.next(PATIENCE).ok_or_else(|| format!("only {rows:?}"))?);
    }
    members.iter().for_each(|worker| wait_for_death(worker.pid()));
    check_eq!(stop(watcher)?.len(), 0, "each once");
    let wanted: BTreeSet<u64> = members.iter().map(|worker| worker.pid().into()).collect();
    let seen: BTreeSet<u64> = rows.iter().map(|row| number(row, "pid")).collect();
    check_eq!(seen, wanted, "every member: {rows:?}");
    let pids: Vec<u32> = members.iter().map(Worker::pid).collect();
    let killed = log.killed(&pids);
    check_eq!(killed.len(), 5, "{killed:?}");
    for log in &killed {
        let row =
            rows.iter().find(|row| row["pid"] == log.pid).ok_or_else(|| format!("{log:?}"))?;
        same(row, log, full)?;
        check_eq!(row["trigger_pid"], trigger, "{row}");
    }
    for (pid, truth) in &truths {
        had(rows.iter().find(|row| row["pid"] == *pid).ok_or("a row")?, truth)?;
    }
    let roles: Vec<&str> = rows.iter().filter_map(|row| row["role"].as_str()).collect();
    if full {
        check_eq!(roles, ["chosen", "group", "group", "group", "group"], "{rows:?}");
        check!(rows.iter().all(|row| row["oom"] == 1), "one OOM: {rows:?}");
        check!(rows.iter().all(|row| row["limit_cgroup"] == group.path()), "{rows:?}");
    }
    check!(!rows_in(&rows[0], "zones").is_empty(), "the first has them: {}", rows[0]);
    drop(members);
    PASS
}

fn shares(hook: &'static str, full: bool) -> Outcome {
    let group = limited("shares", 8192)?;
    let mut victim = member(&group)?;
    victim.ask("anon 5003");
    victim.ask("share");
    let child = children(victim.pid())?.pop().ok_or("no other process")?;
    doom(&victim)?;
    // Those that share their memory have one score.
    let mut trigger = member(&group)?;
    let watcher = start(hook, &[]);
    trigger.tell("anon 4001");
    // The kernel may take either of them first.
    let first = watcher.next(PATIENCE).ok_or("no row")?;
    let second = watcher.next(PATIENCE).ok_or_else(|| format!("only {first}"))?;
    let pids = BTreeSet::from([number(&first, "pid"), number(&second, "pid")]);
    check_eq!(pids, BTreeSet::from([victim.pid().into(), child.into()]), "{first} {second}");
    check_eq!(second["role"], "shares", "{second}");
    check_eq!(first["role"], "chosen", "{first}");
    check_eq!(first["oom"], second["oom"], "one OOM");
    // Until 6.1 threads keep parts, and those of the other process are not added.
    let (one, other) = (number(&first, "anon_kib"), number(&second, "anon_kib"));
    let error = number(&first, "rss_error_kib");
    check_eq!(error > 0, oracle::counters_are_split(), "the bound is stated where due: {first}");
    check!(one.abs_diff(other) <= error, "one memory: {first} {second}");
    check_eq!(second["trigger_pid"], trigger.pid(), "{second}");
    if full {
        check_eq!(second["limit_cgroup"], group.path(), "{second}");
    }
    PASS
}

fn children(pid: u32) -> Result<Vec<u32>, Failed> {
    let text = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
    Ok(text.split_whitespace().filter_map(|word| word.parse().ok()).collect())
}

/// 1511 pages of a victim and 3001 of a trigger do not fit into 4096.
fn burst(hook: &'static str, full: bool) -> Outcome {
    let mut scenes = Vec::new();
    for n in 0..7 {
        let group = limited(&format!("burst{n}"), 4096)?;
        let (mut victim, trigger) = (member(&group)?, member(&group)?);
        victim.ask("anon 1511");
        doom(&victim)?;
        // In the order in which they may go.
        scenes.push((victim, trigger, group));
    }
    let watcher = start(hook, &[]);
    let mut log = Kmsg::from_now().ok_or("/dev/kmsg")?;
    scenes.iter_mut().for_each(|(_, trigger, _)| trigger.tell("anon 3001"));
    let victims: Vec<u32> = scenes.iter().map(|(victim, _, _)| victim.pid()).collect();
    let mut rows = Vec::new();
    for _ in &victims {
        let all = |row: &Value| victims.iter().any(|victim| row["pid"] == *victim);
        rows.push(watcher.wait_for(all).map_err(|others| format!("only {rows:?}, {others:?}"))?);
    }
    stop(watcher)?;
    for (victim, trigger, group) in &scenes {
        let row = rows.iter().find(|row| row["pid"] == victim.pid());
        let row = row.ok_or_else(|| format!("no row of {}: {rows:?}", victim.pid()))?;
        check_eq!(row["trigger_pid"], trigger.pid(), "its own trigger: {row}");
        check_eq!(row["cgroup"], group.path(), "{row}");
        if full {
            check_eq!(row["limit_cgroup"], group.path(), "{row}");
        }
    }
    let killed = log.killed(&victims);
    check_eq!(killed.len(), 7, "{killed:?}");
    for log in killed {
        let row =
            rows.iter().find(|row| row["pid"] == log.pid).ok_or_else(|| format!("{log:?}"))?;
        same(row, &log, full)?;
    }
    let numbers: BTreeSet<u64> = rows.iter().map(|row| number(row, "oom")).collect();
    check_eq!(numbers.len(), 7, "seven OOMs: {numbers:?}");
    PASS
}

/// Page faults of a process so far that had to wait for a disk (proc_pid_stat(5)).
fn major_faults(pid: u32) -> Result<u64, Failed> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let rest = text.rsplit_once(") ").ok_or("a name")?.1;
    let words: Vec<&str> = rest.split(' ').collect();
    Ok(words[9].parse()?)
}

fn exhausted() -> Outcome {
    guests_only(|| {
        let watcher = start(HOOKS[0].0, &["-i", "0.2"]);
        let free = oracle::meminfo();
        let pages = (free["MemAvailable"] + free["SwapFree"]) / oracle::page_kib();
        let mut victim = Worker::start();
        victim.ask(&format!("anon {}", pages * 55 / 100));
        doom(&victim)?;
        let mut trigger = Worker::start();
        // Minor faults tell nothing: locked pages are moved, between nodes and by compaction.
        let locked = || oracle::status(watcher.pid()).map(|status| status["VmLck"]);
        let before = (locked(), major_faults(watcher.pid())?);
        let mut log = Kmsg::from_now().ok_or("/dev/kmsg")?;
        trigger.tell(&format!("anon {}", pages * 80 / 100));
        let row = row_of(&watcher, victim.pid())?;
        let after = (locked(), major_faults(watcher.pid())?);
        let killed = log.killed(&[victim.pid()]).pop().ok_or("nothing in the kernel's log")?;
        let status = oracle::status(watcher.pid()).ok_or("the watcher has died")?;
        check!(status["VmLck"] >= status["VmRSS"], "locked: {status:?}");
        check!(status["VmHWM"] <= 32 << 10, "32 MiB at most: {status:?}");
        check_eq!(after, before, "the watcher had all it needed, in memory");
        only(watcher, &trigger)?;
        same(&row, &killed, true)?;
        check_eq!(row["constraint"], "global", "{row}");
        check_eq!(number(&row, "limit_kib"), free["MemTotal"] + free["SwapTotal"], "{row}");
        check!(row["trigger_pid"] != row["pid"], "{row}");
        // Below its watermarks in some zone, or it would have had memory.
        let short = |zone: &Value| number(zone, "free_kib") < number(zone, "high_kib");
        check!(rows_in(&row, "zones").iter().any(short), "{row}");
        let last = rows_in(&row, "history").last().ok_or("no moment")?;
        // The trigger wants more than the victim has, and may have got it by then.
        let big = rows_in(last, "processes").iter().find(|process| process["pid"] != trigger.pid());
        check!(big.is_some_and(|big| big["pid"] == victim.pid()), "the biggest: {last}");
        trigger.kill();
        wait_for_death(victim.pid());
        PASS
    })
}

fn present_kib(node: u64) -> Result<u64, Failed> {
    let mut pages = 0;
    let mut here = false;
    for line in fs::read_to_string("/proc/zoneinfo")?.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            ["Node", number, "zone", _] => here = *number == format!("{node},"),
            ["present", count] if here => pages += count.parse::<u64>()?,
            _ => {}
        }
    }
    Ok(pages * oracle::page_kib())
}

/// Free memory of a node in pages.
fn free_of(node: u64) -> Result<usize, Failed> {
    let text = fs::read_to_string(format!("/sys/devices/system/node/node{node}/meminfo"))?;
    let line = text.lines().find(|line| line.contains("MemFree:")).ok_or("MemFree")?;
    let kib: u64 = line.split_whitespace().nth(3).ok_or("a number")?.parse()?;
    Ok((kib / oracle::page_kib()) as usize)
}

fn on_node_one(body: impl FnOnce() -> Outcome) -> Outcome {
    let two = Path::new("/sys/devices/system/node/node1").exists();
    // Full swap is one more reason for the kernel to go on.
    if_supported("numa", is_guest() && two, body)
}

/// A victim with half of a node, a trigger that wants all of it.
fn run_out(victim: &mut Worker, trigger: &mut Worker, constraint: &str) -> Result<Value, Failed> {
    // Cached pages would be room too.
    drop_caches();
    let pages = free_of(1)?;
    victim.ask(&format!("anon {}", pages * 55 / 100));
    doom(victim)?;
    let watcher = start("fentry", &["-i", "0.2"]);
    let mut log = Kmsg::from_now().ok_or("/dev/kmsg")?;
    let memory = oracle::meminfo();
    let swap = memory["SwapFree"] / oracle::page_kib();
    trigger.tell(&format!("anon {}", pages * 80 / 100 + swap as usize));
    let row = row_of(&watcher, victim.pid())?;
    let killed = log.killed(&[victim.pid()]).pop().ok_or("nothing in the kernel's log")?;
    stop(watcher)?;
    same(&row, &killed, true)?;
    let holds = row["constraint"] == constraint
        && row["nodes"] == "1"
        && row["trigger_pid"] == trigger.pid()
        && number(&row, "limit_kib") == present_kib(1)? + memory["SwapTotal"];
    check_eq_or_fail(holds, &format!("node 1 has {} KiB: {row}", present_kib(1)?))?;
    wait_for_death(victim.pid());
    Ok(row)
}

fn cpuset() -> Outcome {
    on_node_one(|| {
        fs::write("/sys/fs/cgroup/cgroup.subtree_control", "+cpuset")?;
        let group = Cgroup::create("cpuset").ok_or("no cgroup")?;
        group.set("cpuset.mems", 1)?;
        let (mut victim, mut trigger) = (member(&group)?, member(&group)?);
        let row = run_out(&mut victim, &mut trigger, "cpuset")?;
        check_eq!(row["limit_cgroup"], group.path(), "{row}");
        trigger.kill();
        drop(victim);
        PASS
    })
}

fn mempolicy() -> Outcome {
    on_node_one(|| {
        let (mut victim, mut trigger) = (Worker::start(), Worker::start());
        victim.ask("bind 1");
        trigger.ask("bind 1");
        let row = run_out(&mut victim, &mut trigger, "mempolicy")?;
        check!(row["limit_cgroup"].is_null(), "{row}");
        trigger.kill();
        PASS
    })
}

/// The limit is the parent's; victim and trigger are in two cgroups below it.
fn nested() -> Outcome {
    if_supported("memcg", has_memcg() && is_guest() && full(), || {
        let above = limited("above", 16_384)?;
        above.set("cgroup.subtree_control", "+memory")?;
        let below = ["one", "two"].map(|name| above.folder().join(name));
        below.iter().try_for_each(fs::create_dir)?;
        let (mut victim, mut trigger) = (Worker::start(), Worker::start());
        for (folder, worker) in below.iter().zip([&victim, &trigger]) {
            fs::write(folder.join("cgroup.procs"), worker.pid().to_string())?;
        }
        fs::write(below[0].join("memory.max"), (64u64 << 20).to_string())?;
        victim.ask("anon 7919");
        doom(&victim)?;
        let watcher = Watcher::start(&["oomkill"]);
        trigger.tell("anon 12007");
        let row = row_of(&watcher, victim.pid())?;
        stop(watcher)?;
        check_eq!(row["limit_cgroup"], above.path(), "whose limit: {row}");
        check_eq!(number(&row, "limit_kib"), 16_384 * oracle::page_kib(), "{row}");
        check_eq!(row["cgroup"], format!("{}/one", above.path()), "{row}");
        check_eq!(row["trigger_cgroup"], format!("{}/two", above.path()), "{row}");
        check_eq!(row["trigger_pid"], trigger.pid(), "{row}");
        wait_for_death(victim.pid());
        drop((victim, trigger));
        // A cgroup can be removed when the last process in it is gone.
        below.iter().for_each(|folder| drop(fs::remove_dir(folder)));
        PASS
    })
}

/// A worker under another name.
fn worker_called(name: &str) -> Result<(Worker, std::path::PathBuf), Failed> {
    let path = std::env::temp_dir().join(name);
    fs::copy(std::env::current_exe()?, &path)?;
    Ok((Worker::start_as(&path), path))
}

fn daemons() -> Outcome {
    let (mut known, path) = worker_called("earlyoom")?;
    let (mut named, other_path) = worker_called("killer-of-mine")?;
    let mut nobody = Worker::start();
    let mut victims: Vec<Worker> = (0..4).map(|_| Worker::start()).collect();
    victims.iter_mut().for_each(|victim| drop(victim.ask("anon 997")));
    let truth = oracle::smaps_rollup(victims[0].pid()).ok_or("smaps_rollup")?;
    let all = Watcher::start(&["oomkill", "--all-kills", "--daemon", "killer-of-mine"]);
    let some = Watcher::start(&["oomkill", "--all-kills"]);
    let none = Watcher::start(&["oomkill"]);
    known.ask(&format!("kill {}", victims[0].pid()));
    nobody.ask(&format!("kill {}", victims[1].pid()));
    named.ask(&format!("kill {}", victims[2].pid()));
    known.ask(&format!("kill {}", victims[3].pid()));
    victims.iter().for_each(|victim| wait_for_death(victim.pid()));
    let pids = |rows: &[Value]| -> Vec<u64> { rows.iter().map(|row| number(row, "pid")).collect() };
    let victims: Vec<u64> = victims.iter().map(|victim| victim.pid().into()).collect();
    let rows = stop(all)?;
    check_eq!(pids(&rows), [victims[0], victims[2], victims[3]], "{rows:?}");
    check_eq!(pids(&stop(some)?), [victims[0], victims[3]], "without --daemon");
    check_eq!(stop(none)?.len(), 0, "without --all-kills");
    match must_support("split_rss") {
        true => had_about(&rows[0], &truth)?,
        false => had(&rows[0], &truth)?,
    };
    let killers = [&known, &named, &known];
    for (row, killer) in rows.iter().zip(killers) {
        check_eq!(row["sender"], "daemon", "{row}");
        check_eq!(row["trigger_pid"], killer.pid(), "{row}");
        check_eq!(row["trigger_command"], command_line(killer.pid()).as_str(), "{row}");
        check!(row["constraint"].is_null() && row["oom"].is_null(), "{row}");
    }
    check_eq!(rows[0]["trigger_comm"], "earlyoom", "{rows:?}");
    fs::remove_file(path)?;
    fs::remove_file(other_path)?;
    PASS
}

fn cgroup_kill() -> Outcome {
    let group = Cgroup::create("kill");
    let found = group.as_ref().is_some_and(|group| group.folder().join("cgroup.kill").exists());
    if_supported("cgroup_kill", found, || {
        let group = group.ok_or("no cgroup")?;
        let victims: Vec<Worker> = (0..3).map(|_| member(&group)).collect::<Result<_, _>>()?;
        let watcher = Watcher::start(&["oomkill", "--all-kills", "--cgroup", &group.path()]);
        group.set("cgroup.kill", 1)?;
        victims.iter().for_each(|victim| wait_for_death(victim.pid()));
        let rows = stop(watcher)?;
        let seen: BTreeSet<u64> = rows.iter().map(|row| number(row, "pid")).collect();
        let wanted: BTreeSet<u64> = victims.iter().map(|victim| victim.pid().into()).collect();
        check_eq!(rows.len(), 3, "each once: {rows:?}");
        check_eq!(seen, wanted, "{rows:?}");
        for row in &rows {
            check_eq!(row["sender"], "cgroup.kill", "{row}");
            check_eq!(row["trigger_pid"], std::process::id(), "{row}");
            check_eq!(row["cgroup"], group.path(), "{row}");
        }
        drop(victims);
        PASS
    })
}

fn filters() -> Outcome {
    if_supported("memcg", has_memcg(), || {
        let (mut other, path) = worker_called("another-victim")?;
        let groups = [limited("these", 4096)?, limited("those", 4096)?];
        groups[1].add(other.pid())?;
        let mut first = member(&groups[0])?;
        let (mut one, mut two) = (member(&groups[0])?, member(&groups[1])?);
        for victim in [&mut first, &mut other] {
            victim.ask("anon 1511");
            doom(victim)?;
        }
        let by_comm = Watcher::start(&["oomkill", "--comm", "another-victim"]);
        let by_pid = Watcher::start(&["oomkill", "-P", &first.pid().to_string()]);
        let both = format!("{},{}", first.pid(), other.pid());
        let by_pids = Watcher::start(&["oomkill", "-P", &both]);
        let by_cgroup =
            groups[1].is_v2().then(|| Watcher::start(&["oomkill", "--cgroup", &groups[1].path()]));
        one.tell("anon 3001");
        two.tell("anon 3001");
        let first_pid = first.pid();
        let wanted = [u64::from(first_pid), other.pid().into()];
        wait_for_death(first.pid());
        wait_for_death(other.pid());
        // The two may be killed in any order.
        let pids = |rows: Vec<Value>| -> Vec<u64> {
            let mut pids: Vec<u64> = rows.iter().map(|row| number(row, "pid")).collect();
            pids.sort_by_key(|&pid| pid != u64::from(first_pid));
            pids
        };
        check_eq!(pids(stop(by_comm)?), wanted[1..], "--comm");
        // These end by themselves when the victims are reaped.
        first.kill();
        other.kill();
        for (watcher, wanted) in [(by_pid, &wanted[..1]), (by_pids, &wanted[..])] {
            let (code, rows, stderr) = watcher.finish();
            check_eq!(code, Some(0), "{stderr}");
            check_eq!(pids(rows), wanted, "-P: {stderr}");
        }
        if let Some(watcher) = by_cgroup {
            // Who asked can be killed as well, before the victim's memory is free.
            let mut killed = pids(stop(watcher)?);
            killed.retain(|&pid| pid != u64::from(two.pid()));
            check_eq!(killed, wanted[1..], "--cgroup");
        }
        fs::remove_file(path)?;
        PASS
    })
}

fn losses() -> Outcome {
    let mut killer = worker_called("earlyoom")?;
    let victims: Vec<Worker> = (0..13).map(|_| Worker::start()).collect();
    let watcher = Watcher::start(&["oomkill", "--all-kills", "--ring-kib", "32"]);
    watcher.signal(Signal::STOP);
    for victim in &victims {
        killer.0.ask(&format!("kill {}", victim.pid()));
    }
    watcher.signal(Signal::CONT);
    victims.iter().for_each(|victim| wait_for_death(victim.pid()));
    let (code, rows, stderr) = watcher.stop();
    check_eq!(code, Some(0), "{stderr}");
    let totals = Totals::parse(&stderr).ok_or_else(|| stderr.clone())?;
    check!(totals.lost >= 9, "32 KiB cannot hold 13 records: {stderr}");
    check_eq!(rows.len() as u64, totals.rows, "{stderr}");
    check!(totals.rows > 0, "{stderr}");
    check_eq!(totals.rows + totals.lost, 13, "arrived and lost: {stderr}");
    fs::remove_file(killer.1)?;
    PASS
}

fn formats() -> Outcome {
    let (mut killer, path) = worker_called("earlyoom")?;
    let victims = [Worker::start(), Worker::start()];
    let start = |format: &str| {
        let mut command = crate::common::watcher::command(&[
            "oomkill",
            "--all-kills",
            "--history",
            "3",
            "-n",
            "2",
            "-i",
            "0.1",
            "-v",
            "-o",
            format,
        ]);
        command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
        command.spawn()
    };
    let watchers = [start("table")?, start("csv")?];
    // Their notes come when everything is attached.
    let mut notes = Vec::new();
    let mut watchers = watchers.map(|mut child| {
        use std::io::BufRead as _;
        let stderr = child.stderr.take().expect("piped");
        let mut lines = std::io::BufReader::new(stderr).lines();
        notes.push(
            lines.find(|line| line.as_ref().is_ok_and(|line| line.contains("oom_score_adj"))),
        );
        (child, lines)
    });
    thread::sleep(Duration::from_millis(500));
    for victim in &victims {
        killer.ask(&format!("kill {}", victim.pid()));
    }
    let texts: Vec<String> = watchers
        .iter_mut()
        .map(|(child, _)| {
            use std::io::Read as _;
            let mut text = String::new();
            let _ = child.stdout.take().expect("piped").read_to_string(&mut text);
            child.wait().expect("its end");
            text
        })
        .collect();
    let (table, csv) = (&texts[0], &texts[1]);
    check!(table.contains("    SENDER daemon  ROLE chosen"), "{table}");
    check!(table.contains("    BIGGEST\n") && table.contains("    HISTORY\n"), "{table}");
    check!(table.lines().filter(|line| !line.starts_with(' ')).count() >= 2, "{table}");
    let lines: Vec<&str> = csv.lines().collect();
    check_eq!(lines.len(), 3, "a header and two rows: {csv}");
    check!(lines[0].contains("rss_kib") && !lines[0].contains("history"), "{csv}");
    let pid = victims[0].pid().to_string();
    check!(lines[1].split(',').nth(2) == Some(pid.as_str()), "{csv}");
    fs::remove_file(path)?;
    PASS
}

/// Whether this process, and so what it starts, has a capability (capability.h).
fn may(capability: u32) -> bool {
    let text = fs::read_to_string("/proc/self/status").expect("own status");
    let line = text.lines().find_map(|line| line.strip_prefix("CapEff:")).expect("capabilities");
    u64::from_str_radix(line.trim(), 16).expect("hexadecimal") >> capability & 1 == 1
}

const CAP_IPC_LOCK: u32 = 14;
const CAP_SYS_RESOURCE: u32 = 24;

fn protection() -> Outcome {
    let score =
        |watcher: &Watcher| fs::read_to_string(format!("/proc/{}/oom_score_adj", watcher.pid()));
    let own = fs::read_to_string("/proc/self/oom_score_adj")?;
    let watcher = Watcher::start(&["oomkill"]);
    let (now, status) = (score(&watcher)?, oracle::status(watcher.pid()).ok_or("gone")?);
    let (_, _, stderr) = watcher.stop();
    if may(CAP_SYS_RESOURCE) {
        check_eq!(now.trim(), "-1000", "never killed: {stderr}");
        check!(stderr.contains("; oom_score_adj -1000\n"), "{stderr}");
    } else {
        check_eq!(now, own, "as it was: {stderr}");
        check!(stderr.contains("lowering it needs CAP_SYS_RESOURCE"), "{stderr}");
    }
    check_eq!(status["VmLck"] >= status["VmRSS"], may(CAP_IPC_LOCK), "{status:?}");
    check_eq!(stderr.contains("KiB of own memory, locked"), may(CAP_IPC_LOCK), "{stderr}");
    let watcher = Watcher::start(&["oomkill", "--keep-oom-score"]);
    check_eq!(score(&watcher)?, own, "as it was");
    let (_, _, stderr) = watcher.stop();
    check!(stderr.contains("left as it was"), "{stderr}");
    PASS
}

fn bad_input() -> Outcome {
    let cases: [(&[&str], &str); 6] = [
        (&["--daemon", "x"], "--all-kills"),
        (&["--all-kills", "--daemon", ""], "at least one character"),
        (&["--all-kills", "--daemon", "sixteen-letters-"], "15 characters"),
        (&["--all-kills", "--daemon", "a,b,c,d,e,f,g,h,i,j,k,l,m"], "at most 12"),
        (&["--history", "61"], "61"),
        (&["--hook", "nonsense"], "mark_victim"),
    ];
    for (args, words) in cases {
        let output = run(&[&["oomkill"], args].concat());
        let stderr = String::from_utf8_lossy(&output.stderr);
        check_eq!(output.status.code(), Some(2), "{args:?}: {stderr}");
        check!(stderr.contains(words), "{args:?}: no `{words}` in {stderr}");
        check!(output.stdout.is_empty(), "{args:?}");
    }
    PASS
}

//! The program under test, run as users run it.

use std::env;
use std::io::BufRead as _;
use std::io::BufReader;
use std::io::Read as _;
use std::path::PathBuf;
use std::process::Child;
use std::process::Command;
use std::process::Output;
use std::process::Stdio;
use std::sync::mpsc;
use std::sync::mpsc::Receiver;
use std::thread;
use std::thread::JoinHandle;
use std::time::Duration;
use std::time::Instant;

use rustix::process::Pid;
use rustix::process::Signal;
use serde_json::Value;

/// How long to wait for what must come; emulated kernels are slow.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The binary under test.
pub fn binary() -> PathBuf {
    env::var_os("MEM_WATCHER")
        .map_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_mem_watcher")), PathBuf::from)
}

/// A command line of the binary.
pub fn command(args: &[&str]) -> Command {
    let mut command = Command::new(binary());
    command.args(args).stdin(Stdio::null()).env_remove("COLUMNS");
    command
}

/// Runs it to its end.
pub fn run(args: &[&str]) -> Output {
    command(args).output().expect("running mem_watcher")
}

/// The rows of a finished run with `-o json`; fails on an exit code but 0.
pub fn rows(args: &[&str]) -> Vec<Value> {
    let output = run(&[args, &["-o", "json"]].concat());
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "mem_watcher {args:?}: {} {stderr}", output.status);
    let text = String::from_utf8(output.stdout).expect("JSON is UTF-8");
    let lines: Vec<Value> =
        text.lines().map(|line| serde_json::from_str(line).expect("a JSON object")).collect();
    assert_eq!(lines.first().map(|line| &line["schema"]), Some(&1.into()), "schema comes first");
    assert!(lines.last().is_some_and(|line| line["summary"].is_object()), "summary comes last");
    lines[1..lines.len() - 1].to_vec()
}

/// The closing figures on standard error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Totals {
    pub rows: u64,
    pub events: u64,
    pub lost: u64,
}

impl Totals {
    /// From `procstat: 3 rows, 5 events, 0 lost, 1.000 s`.
    pub fn parse(stderr: &str) -> Option<Self> {
        let line = stderr.lines().rev().find(|line| line.contains(" rows, "))?;
        let number = |unit: &str| {
            let before = line.split(unit).next()?;
            before.rsplit([' ', ',']).find(|word| !word.is_empty())?.parse().ok()
        };
        Some(Self { rows: number(" rows")?, events: number(" events")?, lost: number(" lost")? })
    }
}

/// A watcher that runs beside the test and whose rows arrive as they come.
pub struct Watcher {
    child: Child,
    lines: Receiver<(Instant, Value)>,
    reader: Option<JoinHandle<()>>,
    errors: Option<JoinHandle<String>>,
    /// The object that came first.
    pub header: Value,
}

impl Watcher {
    /// Starts it with `-o json` and waits for its first line, so that what the
    /// test does from now on is seen.
    pub fn start(args: &[&str]) -> Self {
        let mut child = command(&[args, &["-o", "json"]].concat())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("starting mem_watcher");
        let stdout = child.stdout.take().expect("piped");
        let mut stderr = child.stderr.take().expect("piped");
        let (sender, lines) = mpsc::channel();
        let reader = thread::spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                let value = serde_json::from_str(&line).expect("a JSON object");
                if sender.send((Instant::now(), value)).is_err() {
                    break;
                }
            }
        });
        let errors = thread::spawn(move || {
            let mut text = String::new();
            let _ = stderr.read_to_string(&mut text);
            text
        });
        let mut watcher =
            Self { child, lines, reader: Some(reader), errors: Some(errors), header: Value::Null };
        match watcher.next(PATIENCE) {
            Some(header) => watcher.header = header,
            None => {
                let _ = watcher.child.kill();
                let _ = watcher.child.wait();
                let text = watcher.errors.take().map(|errors| errors.join().expect("reader"));
                panic!("mem_watcher {args:?} printed nothing: {}", text.unwrap_or_default());
            }
        }
        watcher
    }

    /// The next line, if one comes in time.
    pub fn next(&self, patience: Duration) -> Option<Value> {
        self.lines.recv_timeout(patience).ok().map(|(_, value)| value)
    }

    /// The next line and when it arrived.
    pub fn next_at(&self, patience: Duration) -> Option<(Instant, Value)> {
        self.lines.recv_timeout(patience).ok()
    }

    /// Reads rows until one satisfies `wanted`; returns the rows that did not
    /// if none comes in time.
    pub fn wait_for(&self, mut wanted: impl FnMut(&Value) -> bool) -> Result<Value, Vec<Value>> {
        let end = Instant::now() + PATIENCE;
        let mut others = Vec::new();
        while let Some(row) = self.next(end.saturating_duration_since(Instant::now())) {
            if wanted(&row) {
                return Ok(row);
            }
            others.push(row);
        }
        Err(others)
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        let pid = Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).expect("signalling mem_watcher");
    }

    /// Ends it with SIGINT and returns its exit code, the rows not yet read
    /// (without the summary) and what it wrote on standard error.
    pub fn stop(self) -> (Option<i32>, Vec<Value>, String) {
        self.signal(Signal::INT);
        self.finish()
    }

    /// Waits for its end by itself.
    pub fn finish(mut self) -> (Option<i32>, Vec<Value>, String) {
        let status = self.child.wait().expect("waiting for mem_watcher");
        if let Some(reader) = self.reader.take() {
            reader.join().expect("the reader of rows");
        }
        let errors = self.errors.take().map(|errors| errors.join().expect("the reader of errors"));
        let mut rows: Vec<Value> = self.lines.try_iter().map(|(_, value)| value).collect();
        rows.retain(|row| row["summary"].is_null());
        (status.code(), rows, errors.unwrap_or_default())
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        // Only a failed test gets here with the child alive.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

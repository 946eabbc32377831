//! What `memleak` reports, as the tests compare it.

use std::collections::BTreeMap;

use serde_json::Value;

use super::Outcome;
use super::PASS;
use super::target::Account;
use super::watcher::Watcher;
use crate::check;
use crate::check_eq;

/// How much, and in how many pieces.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amount {
    pub bytes: u64,
    pub count: u64,
}

impl Amount {
    /// `count` pieces of `size` bytes each.
    pub fn of(count: u64, size: u64) -> Self {
        Self { bytes: count * size, count }
    }

    fn add(&mut self, row: &Value, bytes: &str, count: &str) {
        self.bytes += number(row, bytes);
        self.count += number(row, count);
    }
}

/// A number of a row; a missing one fails the test.
pub fn number(row: &Value, key: &str) -> u64 {
    row[key].as_u64().unwrap_or_else(|| panic!("no number `{key}` in {row}"))
}

/// The name of a frame; empty where there is none.
pub fn symbol(row: &Value, frame: usize) -> &str {
    row["stack"][frame]["symbol"].as_str().unwrap_or_default()
}

/// Whether any frame has that name.
pub fn passes(row: &Value, name: &str) -> bool {
    row["stack"].as_array().is_some_and(|stack| stack.iter().any(|frame| frame["symbol"] == name))
}

/// Watches these processes and reports once, at its end.
pub fn watch(pids: &[u32], args: &[&str]) -> Watcher {
    let pids: Vec<String> = pids.iter().map(u32::to_string).collect();
    let pids = pids.join(",");
    Watcher::start(&[&["memleak", "-P", &pids, "-i", "1000", "--top", "100000"], args].concat())
}

/// Ends a watcher, which must succeed, and returns its last report.
pub fn report(watcher: Watcher) -> Report {
    let (code, rows, stderr) = watcher.stop();
    assert_eq!(code, Some(0), "memleak: {stderr}");
    Report::of(rows, stderr)
}

/// The last report of each process.
pub struct Report {
    pub rows: Vec<Value>,
    pub stderr: String,
}

impl Report {
    /// Of what a run printed.
    pub fn of(mut rows: Vec<Value>, stderr: String) -> Self {
        let mut last = BTreeMap::new();
        for row in rows.iter().filter(|row| row["kind"] == "total") {
            last.insert(number(row, "pid"), row["time"].clone());
        }
        assert!(!last.is_empty(), "no totals in {rows:?}: {stderr}");
        rows.retain(|row| {
            row["pid"].as_u64().is_some_and(|pid| last.get(&pid) == Some(&row["time"]))
        });
        Self { rows, stderr }
    }

    /// The totals of a process.
    pub fn total(&self, pid: u32) -> &Value {
        let mut totals = self.of_kind(pid, "total");
        let total = totals.next().unwrap_or_else(|| panic!("no total of {pid}: {}", self.stderr));
        assert!(totals.next().is_none(), "two totals of {pid} in one report");
        total
    }

    /// What a process holds on the heap in all.
    pub fn heap(&self, pid: u32) -> Amount {
        let total = self.total(pid);
        Amount { bytes: number(total, "bytes"), count: number(total, "count") }
    }

    /// The rows of a process of one kind.
    pub fn of_kind(&self, pid: u32, kind: &str) -> impl Iterator<Item = &Value> {
        self.rows.iter().filter(move |row| row["kind"] == kind && row["pid"] == pid)
    }

    /// The sum of the rows of that kind that satisfy `wanted`.
    pub fn sum(&self, pid: u32, kind: &str, mut wanted: impl FnMut(&Value) -> bool) -> Amount {
        let mut sum = Amount::default();
        for row in self.of_kind(pid, kind).filter(|row| wanted(row)) {
            sum.add(row, "bytes", "count");
        }
        sum
    }

    /// What a function holds that called the allocator itself.
    pub fn called_by(&self, pid: u32, name: &str) -> Amount {
        self.sum(pid, "heap", |row| symbol(row, 1) == name)
    }

    /// What a function holds, whoever called the allocator for it.
    pub fn through(&self, pid: u32, name: &str) -> Amount {
        self.sum(pid, "heap", |row| passes(row, name))
    }

    /// That the heap is the one the target says, nothing went missing, and the
    /// stacks add up to the total.
    pub fn agrees(&self, pid: u32, account: Account) -> Outcome {
        let total = self.total(pid);
        let held = Amount { bytes: account.bytes, count: account.blocks };
        check_eq!(self.heap(pid), held, "the heap in {total}");
        check_eq!(self.sum(pid, "heap", |_| true), held, "the stacks together, {total}");
        for key in ["lost_count", "lost_bytes", "missed_frees", "lost_stack_count"] {
            check_eq!(number(total, key), 0, "`{key}` in {total}");
        }
        check!(number(total, "complete") == 1, "not complete: {total}");
        PASS
    }
}

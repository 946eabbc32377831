//! The programs of `tests/targets`: one set of orders over every kind of
//! allocator. Each answer says what the program then holds.

use std::env;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;

use super::worker::Worker;

/// What a target holds by its own account.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Account {
    /// On the heap, in bytes asked for.
    pub bytes: u64,
    pub blocks: u64,
    /// Everything allocated since it started, freed or not.
    pub seen_bytes: u64,
    pub seen_blocks: u64,
    /// Mappings of its own, by sort.
    pub map_bytes: u64,
    pub file_bytes: u64,
    pub reserved_bytes: u64,
    /// What the last order answered besides.
    pub extra: u64,
}

impl Account {
    fn parse(answer: &str) -> Self {
        let numbers: Vec<u64> = answer.split(' ').map_while(|word| word.parse().ok()).collect();
        let [bytes, blocks, seen_bytes, seen_blocks, map_bytes, file_bytes, reserved_bytes, extra] =
            numbers[..]
        else {
            panic!("the target answered {answer:?}")
        };
        Self {
            bytes,
            blocks,
            seen_bytes,
            seen_blocks,
            map_bytes,
            file_bytes,
            reserved_bytes,
            extra,
        }
    }
}

/// The folder of the built targets.
pub fn folder() -> PathBuf {
    env::var_os("MEM_WATCHER_TARGETS")
        .map_or_else(|| Path::new(env!("CARGO_MANIFEST_DIR")).join("target/targets"), PathBuf::from)
}

/// The program of that name.
pub fn program(name: &str) -> String {
    let path = folder().join(name);
    assert!(path.exists(), "no {}: tools/test builds it", path.display());
    path.to_str().expect("a plain path").to_owned()
}

/// A running target. Ended when dropped.
pub struct Target {
    worker: Worker,
    /// What it held after its last order.
    pub account: Account,
}

impl Target {
    /// Starts one and waits until it is ready.
    pub fn start(name: &str) -> Self {
        let (worker, greeting) = Worker::spawn(&mut Command::new(program(name)));
        Self { worker, account: Account::parse(&greeting) }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.worker.pid()
    }

    /// Has it do something it can.
    pub fn ask(&mut self, order: &str) -> Account {
        self.try_ask(order).unwrap_or_else(|| panic!("the target knows no {order:?}"))
    }

    /// The same; `None`: what the order needs is not in that allocator.
    pub fn try_ask(&mut self, order: &str) -> Option<Account> {
        match self.worker.ask(order).as_str() {
            "unknown" => None,
            answer => {
                self.account = Account::parse(answer);
                Some(self.account)
            }
        }
    }

    /// Kills it and waits for its end.
    pub fn kill(self) {
        self.worker.kill();
    }

    /// Lets it exit and waits for that.
    pub fn end(self) {
        self.worker.end();
    }
}

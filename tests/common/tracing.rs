//! The kernel's own record of trace events, in an instance that nobody else uses.

use std::fs;
use std::path::PathBuf;
use std::process;

/// An instance of tracefs. Removed when dropped.
pub struct Tracing {
    folder: PathBuf,
}

impl Tracing {
    /// Records these events, `category/name`, from now on. `None`: there is no
    /// tracefs, or no such event.
    pub fn start(events: &[&str]) -> Option<Self> {
        let root = PathBuf::from("/sys/kernel/tracing/instances");
        let folder = root.join(format!("mem_watcher-{}", process::id()));
        fs::create_dir(&folder).ok()?;
        let tracing = Self { folder };
        tracing.set("buffer_size_kb", "16384")?;
        for event in events {
            tracing.set(&format!("events/{event}/enable"), "1")?;
        }
        Some(tracing)
    }

    fn set(&self, file: &str, value: &str) -> Option<()> {
        fs::write(self.folder.join(file), value).ok()
    }

    /// Stops and returns the record, a line for each event.
    pub fn stop(self) -> Vec<String> {
        self.set("tracing_on", "0").expect("stopping");
        let text = fs::read_to_string(self.folder.join("trace")).expect("the trace");
        assert!(!text.contains("LOST"), "the buffer is too small");
        text.lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect()
    }
}

impl Drop for Tracing {
    fn drop(&mut self) {
        let _ = self.set("events/enable", "0");
        let _ = fs::remove_dir(&self.folder);
    }
}

/// The number behind `name=` in a line.
pub fn number(line: &str, name: &str) -> u64 {
    let word = line.split_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
    word.and_then(|word| word.parse().ok()).unwrap_or_else(|| panic!("no {name} in {line}"))
}

//! The kernel's own record of events, in an instance of tracefs of the test's own.

use std::fs;
use std::io;
use std::path::Path;
use std::path::PathBuf;
use std::process;

/// Where tracefs may be.
const ROOTS: [&str; 2] = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];

/// A record under way. Removed when dropped.
pub struct Trace {
    folder: PathBuf,
}

impl Trace {
    /// Records these events, `category/name`, where `filter` holds (empty: always),
    /// from now on; `None`: no tracefs here, no right to it, or no such event.
    pub fn start(events: &[&str], filter: &str) -> Option<Self> {
        let root = ROOTS.into_iter().find(|root| Path::new(root).join("instances").exists())?;
        let folder = Path::new(root).join(format!("instances/mem_watcher-{}", process::id()));
        fs::create_dir(&folder).ok()?;
        let trace = Self { folder };
        trace.set("buffer_size_kb", "16384").ok()?;
        for event in events {
            if !filter.is_empty() {
                trace.set(&format!("events/{event}/filter"), filter).ok()?;
            }
            trace.set(&format!("events/{event}/enable"), "1").ok()?;
        }
        Some(trace)
    }

    fn set(&self, file: &str, value: &str) -> io::Result<()> {
        fs::write(self.folder.join(file), value)
    }

    /// Ends it and returns a line for each event; fails if some were overwritten.
    pub fn stop(self) -> Vec<String> {
        self.set("tracing_on", "0").expect("stopping");
        let text = fs::read(self.folder.join("trace")).expect("the trace");
        let text = String::from_utf8_lossy(&text).into_owned();
        assert!(!text.contains("LOST"), "the trace lost events");
        // `# entries-in-buffer/entries-written: 7/7   #P:2`
        let counts = text.lines().find_map(|line| line.split_once("entries-written: "));
        let (kept, written) = counts
            .and_then(|(_, rest)| rest.split_whitespace().next()?.split_once('/'))
            .expect("how many were written");
        assert_eq!(kept, written, "the trace is too short");
        text.lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect()
    }
}

impl Drop for Trace {
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

//! The kernel's own record of an event: an instance of tracefs of the test's own.

use std::fs;
use std::path::Path;
use std::path::PathBuf;
use std::process;

/// Where tracefs may be.
const ROOTS: [&str; 2] = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];

/// An instance with one event. Removed when dropped.
pub struct Trace {
    folder: PathBuf,
    event: String,
}

impl Trace {
    /// Records `event`, `category/name`, where `filter` holds (empty: always),
    /// from now on; `None`: no tracefs here, or no right to it.
    pub fn start(event: &str, filter: &str) -> Option<Self> {
        let root = ROOTS.into_iter().find(|root| Path::new(root).join("instances").exists())?;
        let name = format!("mem_watcher-{}-{}", process::id(), event.replace('/', "-"));
        let folder = Path::new(root).join("instances").join(name);
        fs::create_dir(&folder).ok()?;
        let trace = Self { folder, event: event.to_owned() };
        trace.set("buffer_size_kb", "8192").ok()?;
        if !filter.is_empty() {
            trace.set(&format!("events/{event}/filter"), filter).ok()?;
        }
        trace.set(&format!("events/{event}/enable"), "1").ok()?;
        Some(trace)
    }

    fn set(&self, file: &str, value: &str) -> std::io::Result<()> {
        fs::write(self.folder.join(file), value)
    }

    /// Ends it and returns what each event says behind its name; fails if some
    /// were overwritten.
    pub fn stop(self) -> Vec<String> {
        self.set(&format!("events/{}/enable", self.event), "0").expect("switching it off");
        let text = fs::read(self.folder.join("trace")).expect("the trace");
        let text = String::from_utf8_lossy(&text).into_owned();
        assert!(!text.contains("LOST"), "the trace lost events");
        let name = self.event.split('/').next_back().unwrap_or_default();
        let mark = format!(" {name}: ");
        let entries = text.lines().filter(|line| !line.starts_with('#'));
        let lines: Vec<String> =
            entries.filter_map(|line| Some(line.split_once(&mark)?.1.to_owned())).collect();
        // `# entries-in-buffer/entries-written: 7/7   #P:2`
        let counts = text.lines().find_map(|line| line.split_once("entries-written: "));
        let (kept, written) = counts
            .and_then(|(_, rest)| rest.split_whitespace().next()?.split_once('/'))
            .expect("how many were written");
        assert_eq!(kept, written, "the trace is too short");
        lines
    }
}

impl Drop for Trace {
    fn drop(&mut self) {
        let _ = self.set(&format!("events/{}/enable", self.event), "0");
        let _ = fs::remove_dir(&self.folder);
    }
}

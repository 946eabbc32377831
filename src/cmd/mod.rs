//! The commands. To add one: `src/bpf/x.bpf.c` if a hook of it takes BPF,
//! `src/cmd/x.rs`, one line in [`commands!`], `docs/tools/x.md` and `tests/live/x.rs`
//! (docs/adding-a-tool.md). The registry test misses whichever is forgotten.

use std::process::ExitCode;

use crate::attach::Choice;
use crate::error::Result;
use crate::output::Column;

/// A command: the options structure that clap fills.
pub trait Tool {
    /// Where its data come from, best first; `None`: it attaches nothing.
    const CHOICE: Option<&'static Choice>;

    /// What its rows hold.
    const COLUMNS: &'static [Column];

    /// Runs it to its end.
    ///
    /// # Errors
    /// Anything that kept it from running; the kind decides the exit code.
    fn run(self) -> Result<ExitCode>;
}

/// A command as `doctor` and the documentation see it.
pub struct Entry {
    /// What users type.
    pub name: &'static str,
    /// Its hooks.
    pub choice: Option<&'static Choice>,
    /// Its columns.
    pub columns: &'static [Column],
}

macro_rules! commands {
    ($($module:ident => $Options:ident,)+) => {
        $(mod $module;)+

        /// What to show.
        #[derive(Debug, clap::Subcommand)]
        // One of them is made, once.
        #[allow(clippy::large_enum_variant)]
        pub enum Command {
            $(
                #[allow(missing_docs)]
                $Options($module::$Options),
            )+
        }

        impl Command {
            /// Runs the command.
            ///
            /// # Errors
            /// Anything that kept it from running.
            pub fn run(self) -> Result<ExitCode> {
                match self {
                    $(Command::$Options(tool) => tool.run(),)+
                }
            }
        }

        /// Every command, in the order of the help text.
        pub const ENTRIES: &[Entry] = &[
            $(Entry {
                name: stringify!($module),
                choice: <$module::$Options as Tool>::CHOICE,
                columns: <$module::$Options as Tool>::COLUMNS,
            },)+
        ];
    };
}

commands! {
    procstat => Procstat,
    sysstat => Sysstat,
    paf => Paf,
    pr => Pr,
    memleak => Memleak,
    anon => Anon,
    pages => Pages,
    oomkill => Oomkill,
    drsnoop => Drsnoop,
    vmscan => Vmscan,
    swapin => Swapin,
    faults => Faults,
    ffaults => Ffaults,
    hfaults => Hfaults,
    mmapsnoop => Mmapsnoop,
    brkstack => Brkstack,
    shmsnoop => Shmsnoop,
    frag => Frag,
    doctor => Doctor,
}

/// The skeleton that the build made of `src/bpf/<name>.bpf.c`.
macro_rules! skeleton {
    ($name:literal) => {
        #[allow(missing_docs, clippy::all, clippy::restriction, unreachable_pub, unused)]
        mod skel {
            include!(concat!(env!("OUT_DIR"), "/", $name, ".skel.rs"));
        }
    };
}
pub(crate) use skeleton;

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;
    use std::path::Path;

    use super::*;

    /// BPF objects that are not named after a command.
    const OTHERS: [&str; 3] = ["memleak_kernel", "percpu", "trial"];

    fn stems(folder: &str, suffix: &str) -> BTreeSet<String> {
        let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
        fs::read_dir(dir)
            .unwrap()
            .filter_map(|entry| {
                let name = entry.unwrap().file_name().into_string().unwrap();
                name.strip_suffix(suffix).map(str::to_owned)
            })
            .collect()
    }

    #[test]
    fn a_command_is_found_by_its_name_everywhere() {
        let names: BTreeSet<String> = ENTRIES.iter().map(|entry| entry.name.to_owned()).collect();
        let with_bpf: BTreeSet<String> = ENTRIES
            .iter()
            .filter(|entry| entry.choice.is_some_and(Choice::takes_bpf))
            .map(|entry| entry.name.to_owned())
            .chain(OTHERS.map(str::to_owned))
            .collect();
        let mut modules = stems("src/cmd", ".rs");
        modules.remove("mod");
        assert_eq!(modules, names, "src/cmd");
        assert_eq!(stems("docs/tools", ".md"), names, "docs/tools");
        assert_eq!(stems("src/bpf", ".bpf.c"), with_bpf, "src/bpf");
        let mut live = stems("tests/live", ".rs");
        live.remove("main");
        assert!(live.is_superset(&names), "tests/live has {live:?}");
    }

    fn page(name: &str) -> String {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("docs/tools/{name}.md"));
        fs::read_to_string(path).unwrap()
    }

    #[test]
    fn each_page_says_what_readers_look_for() {
        const HEADINGS: [&str; 7] = [
            "## What it measures",
            "## Hooks and fallbacks",
            "## Columns",
            "## What is approximate",
            "## Overhead",
            "## Example",
            "## Oracle",
        ];
        for entry in ENTRIES {
            let page = page(entry.name);
            for heading in HEADINGS {
                let found = page.lines().any(|line| line == heading);
                assert!(found, "docs/tools/{}.md has no `{heading}`", entry.name);
            }
            for column in entry.columns {
                let head = format!("`{}`", column.head);
                assert!(page.contains(&head), "docs/tools/{}.md: no {head}", entry.name);
            }
            for hook in entry.choice.iter().flat_map(|choice| choice.hooks) {
                assert!(page.contains(hook.name), "docs/tools/{}.md: {}", entry.name, hook.name);
            }
        }
    }

    #[test]
    fn keys_are_unique_and_stable_names() {
        for entry in ENTRIES {
            let keys: BTreeSet<&str> = entry.columns.iter().map(|column| column.key).collect();
            assert_eq!(keys.len(), entry.columns.len(), "{}", entry.name);
            for column in entry.columns {
                let named = |c: char| c.is_ascii_lowercase() || c == '_';
                assert!(column.key.chars().all(named), "{}: {}", entry.name, column.key);
                assert!(!column.help.is_empty(), "{}: {}", entry.name, column.key);
            }
        }
    }

    #[test]
    fn programs_named_by_hooks_exist_and_are_short() {
        for entry in ENTRIES {
            let choice = entry.choice.filter(|choice| choice.takes_bpf());
            for hook in choice.iter().flat_map(|choice| choice.hooks) {
                let path = format!("src/bpf/{}.bpf.c", entry.name);
                let source =
                    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap();
                for program in hook.programs.iter().chain(hook.attach) {
                    // The kernel shows 15 characters (BPF_OBJ_NAME_LEN).
                    assert!(program.len() <= 15, "{program}");
                    assert!(source.contains(program), "{}: {program}", entry.name);
                }
            }
        }
    }
}

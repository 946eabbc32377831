//! Profiles: all stacks of a run at once, as folded stacks, as a flame graph or
//! for the tools that read pprof.

use std::collections::BTreeMap;
use std::io;
use std::io::Write;
use std::time::Duration;
use std::time::SystemTime;

use inferno::flamegraph;
use inferno::flamegraph::color::BasicPalette;
use inferno::flamegraph::color::Palette;

use super::Header;
use super::Summary;
use super::Value;
use super::Writer;
use super::note;
use super::pprof;
use super::stack;
use crate::frame::Frame;

/// What a command counted, by stack.
#[derive(Clone, Debug, PartialEq)]
pub struct Profile {
    /// The command, with what it was asked to look at.
    pub command: String,
    /// A title for people.
    pub title: String,
    /// What each value of a sample is: name and unit, such as `inuse_space` in
    /// `bytes`, in the order of the values.
    pub types: Vec<(&'static str, &'static str)>,
    /// Which of the types is shown where only one can be.
    pub default_type: usize,
    /// When the run began.
    pub time: SystemTime,
    /// How long it took.
    pub duration: Duration,
    /// The stacks with their values.
    pub samples: Vec<Sample>,
}

/// One stack and what was counted for it.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    /// The stack, innermost frame first; empty: it is not known.
    pub frames: Vec<Frame>,
    /// As many values as the profile has types.
    pub values: Vec<i64>,
    /// What else tells samples apart, such as `pid`; kept by pprof only.
    pub labels: Vec<(String, String)>,
}

impl Profile {
    /// The default type's value of each distinct stack, in order of the stacks.
    /// What is not positive has no place in a picture of shares.
    fn folded(&self) -> BTreeMap<String, i64> {
        let mut stacks = BTreeMap::new();
        for sample in &self.samples {
            let value = sample.values.get(self.default_type).copied().unwrap_or(0);
            if value > 0 {
                let sum: &mut i64 = stacks.entry(stack::folded(&sample.frames)).or_default();
                *sum = sum.saturating_add(value);
            }
        }
        stacks
    }

    fn unit(&self) -> &'static str {
        self.types.get(self.default_type).map_or("", |&(_, unit)| unit)
    }
}

/// How a profile is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Folded,
    Flamegraph,
    Pprof,
}

/// Writes no rows; at the end the profile it was given.
pub(super) struct ProfileWriter {
    kind: Kind,
    profile: Option<Profile>,
}

impl ProfileWriter {
    pub(super) fn new(kind: Kind) -> Self {
        Self { kind, profile: None }
    }
}

impl Writer for ProfileWriter {
    fn begin(&mut self, _: &mut dyn Write, _: &Header) -> io::Result<()> {
        Ok(())
    }

    fn row(&mut self, _: &mut dyn Write, _: &[&Value<'_>]) -> io::Result<()> {
        Ok(())
    }

    fn wants_rows(&self) -> bool {
        false
    }

    fn profile(&mut self, profile: Profile) {
        self.profile = Some(profile);
    }

    fn end(&mut self, out: &mut dyn Write, _: &Summary) -> io::Result<()> {
        let Some(profile) = self.profile.take() else { return Ok(()) };
        match self.kind {
            Kind::Folded => folded(out, &profile),
            Kind::Flamegraph => flamegraph(out, &profile),
            Kind::Pprof => pprof::write(out, &profile),
        }
    }
}

fn folded(out: &mut dyn Write, profile: &Profile) -> io::Result<()> {
    profile.folded().iter().try_for_each(|(stack, value)| writeln!(out, "{stack} {value}"))
}

fn flamegraph(out: &mut dyn Write, profile: &Profile) -> io::Result<()> {
    let stacks = profile.folded();
    if stacks.is_empty() {
        note("the flame graph is empty: no stack holds anything");
        return empty_picture(out, &profile.title);
    }
    let lines: Vec<String> =
        stacks.iter().map(|(stack, value)| format!("{stack} {value}")).collect();
    let mut options = flamegraph::Options::default();
    options.title.clone_from(&profile.title);
    options.count_name = profile.unit().to_owned();
    options.colors = Palette::Basic(BasicPalette::Mem);
    // The same profile gives the same picture.
    options.hash = true;
    options.deterministic = true;
    flamegraph::from_lines(&mut options, lines.iter().map(String::as_str), out)
}

/// A picture that says so: inferno takes an empty profile for an error.
fn empty_picture(out: &mut dyn Write, title: &str) -> io::Result<()> {
    let mut escaped = String::new();
    for c in title.chars().filter(|c| !c.is_control()) {
        match c {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            c => escaped.push(c),
        }
    }
    writeln!(
        out,
        "<?xml version=\"1.0\" standalone=\"no\"?>\n\
         <svg version=\"1.1\" width=\"1200\" height=\"60\" xmlns=\"http://www.w3.org/2000/svg\">\n\
         <text x=\"600\" y=\"36\" text-anchor=\"middle\" font-family=\"monospace\">{escaped}: \
         nothing to show</text>\n\
         </svg>"
    )
}

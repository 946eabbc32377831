//! Rows to text. One table of columns per tool gives the table for people, CSV
//! and JSON; commands that count by stack can write profiles instead. Nothing
//! here knows a tool, BPF or a kernel.

mod csv;
mod json;
mod pprof;
pub mod profile;
mod stack;
mod table;

use std::borrow::Cow;
use std::fs::File;
use std::io::BufWriter;
use std::io::IsTerminal as _;
use std::io::Write;
use std::path::PathBuf;

use clap::ValueEnum;

use self::profile::Kind;
use self::profile::Profile;
use self::profile::ProfileWriter;
use crate::error::Context as _;
use crate::error::Error;
use crate::error::Result;
use crate::frame::Frame;
use crate::time::WallTime;
use crate::units::SizeUnit;

/// The version of the JSON and CSV layout. Keys are only ever added.
pub const SCHEMA: u32 = 1;

/// How rows are written (`-o`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Aligned columns for people.
    #[default]
    Table,
    /// One JSON object a line.
    Json,
    /// Comma-separated values with a header line.
    Csv,
}

/// How a command that counts by stack writes (`-o`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum StackFormat {
    /// Aligned columns for people, each stack below its row.
    #[default]
    Table,
    /// One JSON object a line.
    Json,
    /// Comma-separated values with a header line.
    Csv,
    /// One line for each stack, for flame graph programs; at the end.
    Folded,
    /// A flame graph, as SVG for a browser; at the end.
    Flamegraph,
    /// A profile for `pprof` and viewers that read its format; at the end.
    Pprof,
}

impl StackFormat {
    /// The format of rows; `None`: none are written.
    fn rows(self) -> Option<Format> {
        match self {
            StackFormat::Table => Some(Format::Table),
            StackFormat::Json => Some(Format::Json),
            StackFormat::Csv => Some(Format::Csv),
            StackFormat::Folded | StackFormat::Flamegraph | StackFormat::Pprof => None,
        }
    }

    /// What must not be written to this terminal.
    fn refuse_terminal(self) -> Result<()> {
        let name = match self {
            StackFormat::Flamegraph => "flamegraph",
            StackFormat::Pprof => "pprof",
            _ => return Ok(()),
        };
        Err(Error::usage(format!(
            "`-o {name}` is not for a terminal: give `--file PATH` or redirect the output"
        )))
    }
}

/// What a column holds; decides its alignment, its text and its key's suffix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// A moment.
    Time,
    /// Words, left-aligned.
    Text,
    /// A name that is a number: a PID, a node.
    Id,
    /// How many.
    Count,
    /// A size, given in bytes, shown in the chosen [`SizeUnit`].
    Size,
    /// A rate; the key ends in `_per_s`.
    PerSecond,
    /// A share of one hundred; the key ends in `_percent`.
    Percent,
    /// A number with three decimals that measures nothing: an index.
    Index,
    /// A time in milliseconds; the key ends in `_ms`.
    Millis,
    /// A number with two decimals.
    Fraction,
    /// A stack: below the row in a table, folded in CSV, an array in JSON.
    Stack,
    /// Rows of their own: an indented table below the row, an array of objects
    /// in JSON, not in CSV.
    Rows,
}

/// Which selection of columns a column belongs to. Tools combine these.
pub type Group = u8;

/// Shown always.
pub const ALWAYS: Group = 0;
/// Never shown in a table, always in JSON and CSV.
pub const MACHINE: Group = 1 << 7;
/// Shown always: in a table below the row, as the heading and the value.
pub const BELOW: Group = 1 << 6;

/// One column of a tool.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Column {
    /// Heading in the table.
    pub head: &'static str,
    /// Stable key in JSON and CSV, without the unit's suffix.
    pub key: &'static str,
    /// What it holds.
    pub unit: Unit,
    /// Least width in the table; a longer value is never cut.
    pub width: usize,
    /// [`ALWAYS`], [`MACHINE`], [`BELOW`] or a group of the tool.
    pub group: Group,
    /// Meaning, for the documentation.
    pub help: &'static str,
}

impl Column {
    /// A column, in the order of its fields.
    pub const fn new(
        head: &'static str,
        key: &'static str,
        unit: Unit,
        width: usize,
        group: Group,
        help: &'static str,
    ) -> Self {
        Self { head, key, unit, width, group, help }
    }

    /// The key with the unit in it.
    pub fn full_key(&self, size: SizeUnit) -> String {
        match self.unit {
            Unit::Size => format!("{}_{}", self.key, size.suffix()),
            Unit::PerSecond => format!("{}_per_s", self.key),
            Unit::Percent => format!("{}_percent", self.key),
            Unit::Millis => format!("{}_ms", self.key),
            _ => self.key.to_owned(),
        }
    }
}

/// The columns and their meaning, for `--help`.
pub fn describe(columns: &[Column]) -> String {
    let mut text = String::from("Columns:\n");
    let width = columns.iter().map(|column| column.head.len()).max().unwrap_or(0);
    for column in columns.iter().filter(|column| column.group != MACHINE) {
        text.push_str(&format!("  {:width$}  {}\n", column.head, column.help));
    }
    text
}

/// One value of a row.
#[derive(Clone, Debug, PartialEq)]
pub enum Value<'row> {
    /// It could not be read, or does not exist here. Never shown as 0.
    Missing,
    /// A whole number.
    Count(u64),
    /// A whole number that can be negative.
    Signed(i64),
    /// A size in bytes.
    Bytes(u64),
    /// A change of size in bytes.
    Change(i64),
    /// A number with a fraction.
    Real(f64),
    /// Words.
    Text(Cow<'row, str>),
    /// A moment.
    Time(WallTime),
    /// A stack, innermost frame first; empty: it was lost.
    Stack(Cow<'row, [Frame]>),
    /// Rows of their own.
    Rows(Rows<'row>),
}

/// Rows within a row.
#[derive(Clone, Debug, PartialEq)]
pub struct Rows<'row> {
    columns: &'static [Column],
    rows: Vec<Vec<Value<'row>>>,
}

impl<'row> Rows<'row> {
    /// Rows of one kind, in order.
    pub fn of<R: Row<N> + 'row, const N: usize>(rows: impl Iterator<Item = &'row R>) -> Self {
        Self { columns: &R::COLUMNS, rows: rows.map(|row| row.values().into()).collect() }
    }
}

impl Value<'_> {
    /// A size given in bytes, or [`Value::Missing`].
    pub fn bytes(bytes: Option<u64>) -> Self {
        bytes.map_or(Value::Missing, Value::Bytes)
    }

    /// A whole number, or [`Value::Missing`].
    pub fn count(count: Option<u64>) -> Self {
        count.map_or(Value::Missing, Value::Count)
    }

    /// A number with a fraction, or [`Value::Missing`].
    pub fn real(value: Option<f64>) -> Self {
        value.map_or(Value::Missing, Value::Real)
    }
}

/// A row: its columns and as many values. A forgotten value does not compile.
pub trait Row<const N: usize> {
    /// The columns, in order.
    const COLUMNS: [Column; N];

    /// The values, in the order of the columns.
    fn values(&self) -> [Value<'_>; N];
}

/// What a run says about itself, beside its rows.
#[derive(Clone, Debug, Default)]
pub struct Header {
    /// The command.
    pub command: &'static str,
    /// The kernel's release, as `uname -r` prints it.
    pub kernel: String,
    /// The hook in use.
    pub hook: String,
    /// What is approximate, in words.
    pub notes: Vec<String>,
}

/// The closing figures of a run.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Summary {
    /// Rows written.
    pub rows: u64,
    /// Events received through a ring.
    pub events: u64,
    /// Events that happened and could not be delivered.
    pub lost: u64,
    /// Duration in seconds.
    pub elapsed_s: f64,
}

/// One format's way of writing.
trait Writer {
    fn begin(&mut self, out: &mut dyn Write, header: &Header) -> std::io::Result<()>;
    fn row(&mut self, out: &mut dyn Write, values: &[&Value<'_>]) -> std::io::Result<()>;
    fn end(&mut self, out: &mut dyn Write, summary: &Summary) -> std::io::Result<()>;

    /// A line for people between rows.
    fn remark(&mut self, _out: &mut dyn Write, _text: &str) -> std::io::Result<()> {
        Ok(())
    }

    /// Figures beside the rows, with columns of their own.
    fn figures(
        &mut self,
        _out: &mut dyn Write,
        _columns: &[Column],
        _values: &[Value<'_>],
    ) -> std::io::Result<()> {
        Ok(())
    }

    /// Whether rows are written at all.
    fn wants_rows(&self) -> bool {
        true
    }

    /// Takes what is written at the end.
    fn profile(&mut self, _profile: Profile) {}
}

/// How the printer was asked to write.
#[derive(Clone, Copy, Debug, Default)]
pub struct Style {
    /// Table, JSON or CSV.
    pub format: Format,
    /// The unit of sizes.
    pub unit: SizeUnit,
}

/// How the printer of a command that counts by stack was asked to write.
#[derive(Clone, Debug, Default)]
pub struct StackStyle {
    /// Rows or a profile.
    pub format: StackFormat,
    /// The unit of sizes.
    pub unit: SizeUnit,
    /// Where to; `None`: standard output.
    pub file: Option<PathBuf>,
}

/// Writes rows to one output in one format.
pub struct Printer {
    out: Box<dyn Write>,
    /// What is being done with `out`, for errors.
    writing: String,
    writer: Box<dyn Writer>,
    shown: Vec<usize>,
    rows: u64,
}

impl Printer {
    /// A printer to standard output for rows of `R`, with the columns of the
    /// groups in `groups`.
    ///
    /// # Errors
    /// Standard output is not usable.
    pub fn stdout<R: Row<N>, const N: usize>(style: Style, groups: Group) -> Result<Self> {
        Ok(Self::new::<R, N>(buffered(stdout()?), style, groups, table::Screen::of_stdout()))
    }

    /// The same for a command that counts by stack, which may write a profile
    /// instead of rows, and to a file.
    ///
    /// # Errors
    /// The file cannot be made, or the format is not for a terminal.
    pub fn of_stacks<R: Row<N>, const N: usize>(style: &StackStyle, groups: Group) -> Result<Self> {
        let (out, screen) = match &style.file {
            Some(path) => {
                let file = File::create(path).context(|| format!("making `{}`", path.display()))?;
                (file, table::Screen::of_file())
            }
            None => {
                if std::io::stdout().is_terminal() {
                    style.format.refuse_terminal()?;
                }
                (stdout()?, table::Screen::of_stdout())
            }
        };
        let mut printer = Self::of_stacks_to::<R, N>(buffered(out), style, groups, screen);
        if let Some(path) = &style.file {
            printer.writing = format!("writing `{}`", path.display());
        }
        Ok(printer)
    }

    fn of_stacks_to<R: Row<N>, const N: usize>(
        out: Box<dyn Write>,
        style: &StackStyle,
        groups: Group,
        screen: table::Screen,
    ) -> Self {
        let rows = style.format.rows().unwrap_or_default();
        let rows = Style { format: rows, unit: style.unit };
        let mut printer = Self::new::<R, N>(out, rows, groups, screen);
        let kind = match style.format {
            StackFormat::Folded => Kind::Folded,
            StackFormat::Flamegraph => Kind::Flamegraph,
            StackFormat::Pprof => Kind::Pprof,
            StackFormat::Table | StackFormat::Json | StackFormat::Csv => return printer,
        };
        printer.writer = Box::new(ProfileWriter::new(kind));
        printer
    }

    fn new<R: Row<N>, const N: usize>(
        out: Box<dyn Write>,
        style: Style,
        groups: Group,
        screen: table::Screen,
    ) -> Self {
        let for_machines = style.format != Format::Table;
        let shown: Vec<usize> = (0..N)
            .filter(|&i| match R::COLUMNS[i].group {
                _ if style.format == Format::Csv && R::COLUMNS[i].unit == Unit::Rows => false,
                ALWAYS | BELOW => true,
                MACHINE => for_machines,
                group => groups & group != 0,
            })
            .collect();
        let columns: Vec<Column> = shown.iter().map(|&i| R::COLUMNS[i]).collect();
        let writer: Box<dyn Writer> = match style.format {
            Format::Table => Box::new(table::Table::new(columns, style.unit, screen)),
            Format::Json => Box::new(json::Json::new(columns, style.unit)),
            Format::Csv => Box::new(csv::Csv::new(columns, style.unit)),
        };
        let writing = "writing to standard output".to_owned();
        Self { out, writing, writer, shown, rows: 0 }
    }

    /// Writes what comes before the first row.
    ///
    /// # Errors
    /// Standard output cannot be written.
    pub fn begin(&mut self, header: &Header) -> Result<()> {
        self.writer.begin(&mut self.out, header).context(|| &*self.writing)
    }

    /// Writes one row.
    ///
    /// # Errors
    /// Standard output cannot be written.
    pub fn row<R: Row<N>, const N: usize>(&mut self, row: &R) -> Result<()> {
        if !self.wants_rows() {
            return Ok(());
        }
        let values = row.values();
        let shown: Vec<&Value<'_>> = self.shown.iter().map(|&i| &values[i]).collect();
        self.writer.row(&mut self.out, &shown).context(|| &*self.writing)?;
        self.rows += 1;
        Ok(())
    }

    /// Writes a line for people between rows. Tables only: for programs,
    /// everything is in columns.
    ///
    /// # Errors
    /// The output cannot be written.
    pub fn remark(&mut self, text: &str) -> Result<()> {
        self.writer.remark(&mut self.out, text).context(|| &*self.writing)
    }

    /// Writes figures that are no row of the table and have columns of their own:
    /// a JSON object. For people the same is a [`Printer::remark`].
    ///
    /// # Errors
    /// The output cannot be written.
    pub fn figures<R: Row<N>, const N: usize>(&mut self, row: &R) -> Result<()> {
        let values = row.values();
        self.writer.figures(&mut self.out, &R::COLUMNS, &values).context(|| &*self.writing)
    }

    /// Whether rows are written: where they are not, they are ignored, and need
    /// not be made.
    pub fn wants_rows(&self) -> bool {
        self.writer.wants_rows()
    }

    /// Whether a profile is written at the end instead of rows.
    pub fn wants_profile(&self) -> bool {
        !self.wants_rows()
    }

    /// Gives what is written at the end; the last one counts. Ignored where
    /// rows are written.
    pub fn profile(&mut self, profile: Profile) {
        self.writer.profile(profile);
    }

    /// Hands everything written so far to the reader.
    ///
    /// # Errors
    /// Standard output cannot be written.
    pub fn flush(&mut self) -> Result<()> {
        self.out.flush().context(|| &*self.writing)
    }

    /// Rows written so far.
    pub fn rows(&self) -> u64 {
        self.rows
    }

    /// Writes what comes after the last row.
    ///
    /// # Errors
    /// Standard output cannot be written.
    pub fn end(&mut self, summary: &Summary) -> Result<()> {
        self.writer.end(&mut self.out, summary).context(|| &*self.writing)?;
        self.flush()
    }
}

fn stdout() -> Result<File> {
    let out = rustix::io::dup(rustix::stdio::stdout()).context(|| "opening standard output")?;
    Ok(File::from(out))
}

fn buffered(out: File) -> Box<dyn Write> {
    Box::new(BufWriter::with_capacity(1 << 16, out))
}

/// Prints one line on standard error. Notes, warnings and the summary go here;
/// a standard error that cannot be written is not worth failing for.
pub fn note(text: &str) {
    // In one piece, so that lines of several writers do not mix.
    let _ = std::io::stderr().write_all(format!("mem_watcher: {text}\n").as_bytes());
}

#[cfg(test)]
pub(crate) mod tests;

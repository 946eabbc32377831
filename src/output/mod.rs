//! Rows to text. One table of columns per tool gives the table for people, CSV
//! and JSON; nothing here knows a tool, BPF or a kernel.

mod csv;
mod json;
mod table;

use std::borrow::Cow;
use std::fs::File;
use std::io::BufWriter;
use std::io::Write;

use clap::ValueEnum;

use crate::error::Context as _;
use crate::error::Result;
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
}

/// Which selection of columns a column belongs to. Tools combine these.
pub type Group = u8;

/// Shown always.
pub const ALWAYS: Group = 0;
/// Never shown in a table, always in JSON and CSV.
pub const MACHINE: Group = 1 << 7;

/// One column of a tool.
#[derive(Clone, Copy, Debug)]
pub struct Column {
    /// Heading in the table.
    pub head: &'static str,
    /// Stable key in JSON and CSV, without the unit's suffix.
    pub key: &'static str,
    /// What it holds.
    pub unit: Unit,
    /// Least width in the table; a longer value is never cut.
    pub width: usize,
    /// [`ALWAYS`], [`MACHINE`] or a group of the tool.
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
}

/// How the printer was asked to write.
#[derive(Clone, Copy, Debug, Default)]
pub struct Style {
    /// Table, JSON or CSV.
    pub format: Format,
    /// The unit of sizes.
    pub unit: SizeUnit,
}

/// Writes rows to one output in one format.
pub struct Printer {
    out: Box<dyn Write>,
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
        let out = rustix::io::dup(rustix::stdio::stdout()).context(|| "opening standard output")?;
        Ok(Self::new::<R, N>(
            Box::new(BufWriter::with_capacity(1 << 16, File::from(out))),
            style,
            groups,
            table::Screen::of_stdout(),
        ))
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
                ALWAYS => true,
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
        Self { out, writer, shown, rows: 0 }
    }

    /// Writes what comes before the first row.
    ///
    /// # Errors
    /// Standard output cannot be written.
    pub fn begin(&mut self, header: &Header) -> Result<()> {
        self.writer.begin(&mut self.out, header).context(|| "writing to standard output")
    }

    /// Writes one row.
    ///
    /// # Errors
    /// Standard output cannot be written.
    pub fn row<R: Row<N>, const N: usize>(&mut self, row: &R) -> Result<()> {
        let values = row.values();
        let shown: Vec<&Value<'_>> = self.shown.iter().map(|&i| &values[i]).collect();
        self.writer.row(&mut self.out, &shown).context(|| "writing to standard output")?;
        self.rows += 1;
        Ok(())
    }

    /// Hands everything written so far to the reader.
    ///
    /// # Errors
    /// Standard output cannot be written.
    pub fn flush(&mut self) -> Result<()> {
        self.out.flush().context(|| "writing to standard output")
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
        self.writer.end(&mut self.out, summary).context(|| "writing to standard output")?;
        self.flush()
    }
}

/// Prints one line on standard error. Notes, warnings and the summary go here;
/// a standard error that cannot be written is not worth failing for.
pub fn note(text: &str) {
    // In one piece, so that lines of several writers do not mix.
    let _ = std::io::stderr().write_all(format!("mem_watcher: {text}\n").as_bytes());
}

#[cfg(test)]
pub(crate) mod tests;

//! Aligned columns for people. The heading is repeated once a screenful, as
//! vmstat does. On a terminal narrower than the row, each row is folded into
//! several lines under an equally folded heading; elsewhere a row is one line.
//! What does not stand beside one another follows its row, indented: columns of
//! [`BELOW`] with their headings, rows within the row as a table of their own, a
//! stack with a line for each function.

use std::io;
use std::io::IsTerminal;
use std::io::Write;
use std::ops::Range;

use super::BELOW;
use super::Column;
use super::Header;
use super::MACHINE;
use super::Rows;
use super::Summary;
use super::Unit;
use super::Value;
use super::Writer;
use super::stack;
use crate::units::SizeUnit;

/// What the table is printed on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Screen {
    /// Columns to fold at; `None`: never fold.
    pub(super) width: Option<usize>,
    /// Lines between two headings.
    pub(super) height: usize,
    /// Whether the heading may be bold.
    pub(super) colour: bool,
}

/// Used where nothing says how high the screen is, as in vmstat(8).
const DEFAULT_HEIGHT: usize = 24;
const DEFAULT_WIDTH: usize = 80;
/// What stands below a row is indented.
const INDENT: &str = "    ";
/// Less than this cannot hold a column of each kind; fold no tighter.
const LEAST_WIDTH: usize = 40;

impl Screen {
    pub(super) fn of_stdout() -> Self {
        let terminal = std::io::stdout().is_terminal();
        let size = rustix::termios::tcgetwinsize(rustix::stdio::stdout()).ok();
        // A terminal that does not know its size says 0.
        let known = |n: u16| (n > 0).then_some(usize::from(n));
        let forced = std::env::var("COLUMNS").ok().and_then(|columns| columns.parse().ok());
        let width = size
            .and_then(|size| known(size.ws_col))
            .or(forced)
            .or(terminal.then_some(DEFAULT_WIDTH))
            .map(|width| width.max(LEAST_WIDTH));
        let height = size.and_then(|size| known(size.ws_row)).unwrap_or(DEFAULT_HEIGHT);
        let colour = terminal && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
        Self { width, height, colour }
    }

    /// A file: never folded, no colour.
    pub(super) fn of_file() -> Self {
        Self { width: None, height: DEFAULT_HEIGHT, colour: false }
    }
}

pub(super) struct Table {
    /// Those beside one another.
    columns: Vec<Column>,
    /// Which value of a row each of them shows.
    places: Vec<usize>,
    /// Those below the row, and which value each of them shows.
    below: Vec<(usize, Column)>,
    unit: SizeUnit,
    screen: Screen,
    /// Which columns stand on each line of a row.
    lines: Vec<Range<usize>>,
    /// Lines printed since the last heading; `None`: none printed yet.
    since_heading: Option<usize>,
}

impl Table {
    pub(super) fn new(columns: Vec<Column>, unit: SizeUnit, screen: Screen) -> Self {
        let (below, beside): (Vec<_>, Vec<_>) =
            columns.into_iter().enumerate().partition(|(_, column)| {
                column.group == BELOW || matches!(column.unit, Unit::Stack | Unit::Rows)
            });
        let (places, columns): (Vec<usize>, Vec<Column>) = beside.into_iter().unzip();
        let lines = fold(&columns, screen.width);
        Self { columns, places, below, unit, screen, lines, since_heading: None }
    }

    fn heading(&self, out: &mut dyn Write) -> io::Result<()> {
        for line in &self.lines {
            let text = self.line(line, |i| self.columns[i].head.to_owned()).trim_end().to_owned();
            if self.screen.colour {
                writeln!(out, "\x1b[1m{text}\x1b[0m")?;
            } else {
                writeln!(out, "{text}")?;
            }
        }
        Ok(())
    }

    fn line(&self, columns: &Range<usize>, cell: impl Fn(usize) -> String) -> String {
        let mut text = String::new();
        for i in columns.clone() {
            let column = &self.columns[i];
            let cell = cell(i);
            let pad = " ".repeat(width(column).saturating_sub(cell.chars().count()));
            if i > columns.start {
                text.push(' ');
            } else if columns.start > 0 {
                text.push_str("  ");
            }
            if column.unit == Unit::Text {
                text.push_str(&cell);
                text.push_str(&pad);
            } else {
                text.push_str(&pad);
                text.push_str(&cell);
            }
        }
        text
    }

    fn cell(&self, column: &Column, value: &Value<'_>) -> String {
        match value {
            Value::Missing => "-".to_owned(),
            Value::Count(n) => n.to_string(),
            Value::Signed(n) => n.to_string(),
            Value::Bytes(n) => self.unit.text(*n),
            Value::Change(n) => {
                let sign = if *n < 0 { "-" } else { "+" };
                format!("{sign}{}", self.unit.text(n.unsigned_abs()))
            }
            Value::Real(x) if column.unit == Unit::Index => format!("{x:.3}"),
            Value::Real(x) if matches!(column.unit, Unit::Percent | Unit::Millis) => {
                format!("{x:.1}")
            }
            Value::Real(x) if column.unit == Unit::Fraction => format!("{x:.2}"),
            Value::Real(x) => format!("{x:.0}"),
            Value::Text(text) => printable(text),
            Value::Time(time) => time.short(),
            // Below the row; in a column of its own it would break the table.
            Value::Stack(_) | Value::Rows(_) => String::new(),
        }
    }

    /// The values below a row, as many on a line as fit.
    fn details(&self, values: &[&Value<'_>]) -> Vec<String> {
        let limit = self.screen.width.unwrap_or(DEFAULT_WIDTH) - INDENT.len();
        let mut lines: Vec<String> = Vec::new();
        for (place, column) in &self.below {
            let value = values[*place];
            if matches!(value, Value::Missing | Value::Stack(_) | Value::Rows(_)) {
                continue;
            }
            let text = format!("{} {}", column.head, self.cell(column, value));
            match lines.last_mut() {
                Some(line) if line.chars().count() + 2 + text.chars().count() <= limit => {
                    line.push_str("  ");
                    line.push_str(&text);
                }
                _ => lines.push(text),
            }
        }
        lines
    }

    /// Rows within a row, each column as wide as it has to be.
    fn nested(&self, rows: &Rows<'_>) -> Vec<String> {
        let shown = |column: &Column| column.group != MACHINE && column.unit != Unit::Rows;
        let shown: Vec<usize> =
            (0..rows.columns.len()).filter(|&i| shown(&rows.columns[i])).collect();
        let heading = shown.iter().map(|&i| rows.columns[i].head.to_owned()).collect();
        let cells = |row: &Vec<Value<'_>>| {
            shown.iter().map(|&i| self.cell(&rows.columns[i], &row[i])).collect()
        };
        let table: Vec<Vec<String>> =
            std::iter::once(heading).chain(rows.rows.iter().map(cells)).collect();
        let length = |at: usize| table.iter().map(move |line| line[at].chars().count());
        let widths: Vec<usize> =
            (0..shown.len()).map(|at| length(at).max().unwrap_or_default()).collect();
        let line = |cells: &Vec<String>| {
            let mut text = String::new();
            for ((&i, cell), width) in shown.iter().zip(cells).zip(&widths) {
                let pad = " ".repeat(width - cell.chars().count());
                text.push_str(if text.is_empty() { "" } else { " " });
                if rows.columns[i].unit == Unit::Text {
                    text.push_str(cell);
                    text.push_str(&pad);
                } else {
                    text.push_str(&pad);
                    text.push_str(cell);
                }
            }
            text
        };
        table.iter().map(|cells| line(cells).trim_end().to_owned()).collect()
    }
}

impl Writer for Table {
    fn begin(&mut self, _: &mut dyn Write, _: &Header) -> io::Result<()> {
        Ok(())
    }

    fn row(&mut self, out: &mut dyn Write, values: &[&Value<'_>]) -> io::Result<()> {
        let per_row = self.lines.len();
        let page = self.screen.height.saturating_sub(per_row).max(per_row);
        let printed = match self.since_heading {
            Some(printed) if printed + per_row <= page => printed,
            _ => {
                self.heading(out)?;
                0
            }
        };
        for line in &self.lines {
            let text = self.line(line, |i| self.cell(&self.columns[i], values[self.places[i]]));
            writeln!(out, "{}", text.trim_end())?;
        }
        // Not counted for the heading: between long stacks it would only be in
        // the way.
        for line in self.details(values) {
            writeln!(out, "{INDENT}{line}")?;
        }
        for (place, column) in &self.below {
            match values[*place] {
                Value::Stack(frames) => {
                    for line in stack::lines(frames) {
                        writeln!(out, "{INDENT}{line}")?;
                    }
                }
                Value::Rows(rows) if !rows.rows.is_empty() => {
                    writeln!(out, "{INDENT}{}", column.head)?;
                    for line in self.nested(rows) {
                        writeln!(out, "{INDENT}  {line}")?;
                    }
                }
                _ => {}
            }
        }
        self.since_heading = Some(printed + per_row);
        Ok(())
    }

    fn end(&mut self, _: &mut dyn Write, _: &Summary) -> io::Result<()> {
        Ok(())
    }

    fn remark(&mut self, out: &mut dyn Write, text: &str) -> io::Result<()> {
        writeln!(out, "# {}", printable(text))
    }
}

fn width(column: &Column) -> usize {
    column.width.max(column.head.len())
}

/// Splits the columns into lines no wider than `limit`, as evenly as order allows.
fn fold(columns: &[Column], limit: Option<usize>) -> Vec<Range<usize>> {
    let mut lines = Vec::new();
    let (mut start, mut used) = (0, 0);
    for (i, column) in columns.iter().enumerate() {
        // Continuation lines are indented by two.
        let indent = if start > 0 && used == 0 { 2 } else { 0 };
        let needed = width(column) + if used > 0 { 1 } else { indent };
        if used > 0 && limit.is_some_and(|limit| used + needed > limit) {
            lines.push(start..i);
            start = i;
            used = 2 + width(column);
        } else {
            used += needed;
        }
    }
    lines.push(start..columns.len());
    lines
}

/// A process may choose any name; control characters must not reach a terminal.
pub(super) fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '?' } else { c }).collect()
}

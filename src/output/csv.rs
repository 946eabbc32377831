//! Comma-separated values: a header line with the keys, then one line a row.
//! Quoting is the csv crate's (RFC 4180). A missing value is an empty field.

use std::io;
use std::io::Write;

use super::Column;
use super::Header;
use super::Summary;
use super::Value;
use super::Writer;
use super::stack;
use crate::units::Number;
use crate::units::SizeUnit;

pub(super) struct Csv {
    columns: Vec<Column>,
    unit: SizeUnit,
}

impl Csv {
    pub(super) fn new(columns: Vec<Column>, unit: SizeUnit) -> Self {
        Self { columns, unit }
    }
}

impl Writer for Csv {
    fn begin(&mut self, out: &mut dyn Write, _: &Header) -> io::Result<()> {
        record(out, self.columns.iter().map(|column| column.full_key(self.unit)))
    }

    fn row(&mut self, out: &mut dyn Write, values: &[&Value<'_>]) -> io::Result<()> {
        let unit = self.unit;
        record(
            out,
            values.iter().map(|value| match value {
                Value::Missing => String::new(),
                Value::Count(n) => n.to_string(),
                Value::Signed(n) => n.to_string(),
                Value::Bytes(n) => size(unit, *n),
                Value::Change(n) if *n < 0 => format!("-{}", size(unit, n.unsigned_abs())),
                Value::Change(n) => size(unit, n.unsigned_abs()),
                Value::Real(x) => x.to_string(),
                Value::Text(text) => text.to_string(),
                Value::Time(time) => time.rfc3339(),
                Value::Stack(frames) => stack::folded(frames),
                // A table within a field: those columns are left out.
                Value::Rows(_) => String::new(),
            }),
        )
    }

    fn end(&mut self, _: &mut dyn Write, _: &Summary) -> io::Result<()> {
        Ok(())
    }
}

fn size(unit: SizeUnit, bytes: u64) -> String {
    match unit.number(bytes) {
        Number::Whole(n) => n.to_string(),
        Number::Fraction(x) => x.to_string(),
    }
}

fn record(out: &mut dyn Write, fields: impl Iterator<Item = String>) -> io::Result<()> {
    let mut line = csv::Writer::from_writer(Vec::new());
    line.write_record(fields)?;
    let line = line.into_inner().map_err(|error| io::Error::other(error.to_string()))?;
    out.write_all(&line)
}

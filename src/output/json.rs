//! JSON, one object a line. The first line carries `schema`, the last one
//! `summary`; every line between is a row.

use std::io;
use std::io::Write;

use serde_json::json;

use super::Column;
use super::Header;
use super::Rows;
use super::SCHEMA;
use super::Summary;
use super::Value;
use super::Writer;
use super::stack;
use crate::units::Number;
use crate::units::SizeUnit;

pub(super) struct Json {
    /// Each key as it stands in a row: quoted, with what separates it.
    keys: Vec<String>,
    columns: Vec<String>,
    unit: SizeUnit,
}

impl Json {
    pub(super) fn new(columns: Vec<Column>, unit: SizeUnit) -> Self {
        let columns: Vec<String> = columns.iter().map(|column| column.full_key(unit)).collect();
        // Keys are lower-case letters and underscores: nothing to escape.
        let quoted =
            |(i, key): (usize, &String)| format!("{}\"{key}\":", if i == 0 { '{' } else { ',' });
        let keys = columns.iter().enumerate().map(quoted).collect();
        Self { keys, columns, unit }
    }

    fn size(&self, out: &mut dyn Write, bytes: u64) -> io::Result<()> {
        match self.unit.number(bytes) {
            Number::Whole(n) => write!(out, "{n}"),
            Number::Fraction(x) => real(out, x),
        }
    }

    fn value(&self, out: &mut dyn Write, value: &Value<'_>) -> io::Result<()> {
        match value {
            Value::Missing => out.write_all(b"null"),
            Value::Count(n) => write!(out, "{n}"),
            Value::Signed(n) => write!(out, "{n}"),
            Value::Bytes(n) => self.size(out, *n),
            Value::Change(n) => {
                if *n < 0 {
                    out.write_all(b"-")?;
                }
                self.size(out, n.unsigned_abs())
            }
            Value::Real(x) => real(out, *x),
            Value::Text(text) => Ok(serde_json::to_writer(out, text)?),
            Value::Time(time) => write!(out, "\"{}\"", time.rfc3339()),
            Value::Stack(frames) => Ok(serde_json::to_writer(out, &stack::json(frames))?),
            Value::Rows(rows) => self.rows(out, rows),
        }
    }

    fn rows(&self, out: &mut dyn Write, rows: &Rows<'_>) -> io::Result<()> {
        for (i, row) in rows.rows.iter().enumerate() {
            out.write_all(if i == 0 { b"[{" } else { b",{" })?;
            for (j, (column, value)) in rows.columns.iter().zip(row).enumerate() {
                let comma = if j == 0 { "" } else { "," };
                write!(out, "{comma}\"{}\":", column.full_key(self.unit))?;
                self.value(out, value)?;
            }
            out.write_all(b"}")?;
        }
        out.write_all(if rows.rows.is_empty() { b"[]" } else { b"]" })
    }
}

/// Not every number of the machine is one of JSON's: infinities become null.
fn real(out: &mut dyn Write, x: f64) -> io::Result<()> {
    Ok(serde_json::to_writer(out, &x)?)
}

impl Writer for Json {
    fn begin(&mut self, out: &mut dyn Write, header: &Header) -> io::Result<()> {
        let line = json!({
            "schema": SCHEMA,
            "command": header.command,
            "version": env!("CARGO_PKG_VERSION"),
            "kernel": header.kernel,
            "hook": header.hook,
            "notes": header.notes,
            "columns": self.columns,
        });
        writeln!(out, "{line}")
    }

    /// Written piece by piece: a stream of events has no time to build maps.
    fn row(&mut self, out: &mut dyn Write, values: &[&Value<'_>]) -> io::Result<()> {
        for (key, value) in self.keys.iter().zip(values) {
            out.write_all(key.as_bytes())?;
            self.value(out, value)?;
        }
        out.write_all(b"}\n")
    }

    /// What is missing is left out: these objects are seldom and mixed.
    fn figures(
        &mut self,
        out: &mut dyn Write,
        columns: &[Column],
        values: &[Value<'_>],
    ) -> io::Result<()> {
        let there = columns.iter().zip(values).filter(|(_, value)| **value != Value::Missing);
        for (i, (column, value)) in there.enumerate() {
            write!(out, "{}\"{}\":", if i == 0 { '{' } else { ',' }, column.full_key(self.unit))?;
            self.value(out, value)?;
        }
        out.write_all(b"}\n")
    }

    fn end(&mut self, out: &mut dyn Write, summary: &Summary) -> io::Result<()> {
        let line = json!({
            "summary": {
                "rows": summary.rows,
                "events": summary.events,
                "lost": summary.lost,
                "elapsed_s": summary.elapsed_s,
            }
        });
        writeln!(out, "{line}")
    }
}

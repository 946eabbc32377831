//! Single calls, as they happen (`memleak --trace`).

use super::user::RawEvent;
use super::user::Tracer;
use crate::frame::Frame;
use crate::output::ALWAYS;
use crate::output::Column;
use crate::output::Row;
use crate::output::Unit;
use crate::output::Value;
use crate::time::WallTime;
use crate::time::wall_time;

/// One call that gave or took a block.
#[derive(Clone, Debug)]
pub struct Traced {
    time: WallTime,
    tgid: u32,
    tid: u32,
    comm: String,
    gives: bool,
    address: u64,
    bytes: u64,
    /// The block a resize replaced.
    old: Option<u64>,
    frames: Vec<Frame>,
}

impl Traced {
    /// From an event of the kernel side.
    pub fn new(tracer: &Tracer<'_>, raw: &RawEvent, frames: Vec<Frame>) -> Self {
        let process = tracer.processes().get(&raw.process);
        Self {
            time: wall_time(raw.time_ns),
            tgid: u32::try_from(raw.process >> 32).unwrap_or(0),
            tid: raw.tid,
            comm: process.map_or_else(String::new, |process| process.comm.clone()),
            gives: super::user::gives(raw),
            address: raw.address,
            bytes: raw.bytes,
            old: Some(raw.other).filter(|&old| old != 0),
            frames,
        }
    }
}

impl Row<9> for Traced {
    const COLUMNS: [Column; 9] = [
        Column::new("TIME", "time", Unit::Time, 8, ALWAYS, "when the call ended"),
        Column::new("PID", "pid", Unit::Id, 7, ALWAYS, "process"),
        Column::new("TID", "tid", Unit::Id, 7, ALWAYS, "thread"),
        Column::new("COMM", "comm", Unit::Text, 15, ALWAYS, "name of the process"),
        Column::new(
            "CALL",
            "kind",
            Unit::Text,
            5,
            ALWAYS,
            "the function that gave the block, or free",
        ),
        Column::new("ADDRESS", "address", Unit::Text, 14, ALWAYS, "the block"),
        Column::new("BYTES", "bytes", Unit::Count, 10, ALWAYS, "its size, as asked for"),
        Column::new("OLD", "old_address", Unit::Text, 14, ALWAYS, "the block a resize replaced"),
        Column::new(
            "STACK",
            "stack",
            Unit::Stack,
            0,
            ALWAYS,
            "the calls that allocated, innermost first",
        ),
    ];

    fn values(&self) -> [Value<'_>; 9] {
        let hex = |number: u64| Value::Text(format!("{number:#x}").into());
        [
            Value::Time(self.time),
            Value::Count(self.tgid.into()),
            Value::Count(self.tid.into()),
            Value::Text((&self.comm).into()),
            Value::Text(match self.frames.first().and_then(|frame| frame.symbol.as_ref()) {
                Some(symbol) if self.gives => (&*symbol.name).into(),
                _ if self.gives => "alloc".into(),
                _ => "free".into(),
            }),
            hex(self.address),
            Value::Count(self.bytes),
            self.old.map_or(Value::Missing, hex),
            Value::Stack((&*self.frames).into()),
        ]
    }
}

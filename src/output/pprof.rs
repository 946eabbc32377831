//! Profiles in the format of pprof: a gzipped protocol buffer, as defined by
//! proto/profile.proto of github.com/google/pprof.

use std::collections::HashMap;
use std::io;
use std::io::Write;
use std::time::Duration;
use std::time::UNIX_EPOCH;

use flate2::Compression;
use flate2::write::GzEncoder;
use prost::Message;

use super::profile::Profile;
use super::stack;
use crate::frame::Frame;
use crate::frame::Source;

/// The messages, with the numbers of the definition; fields not written here
/// are left out.
mod proto {
    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Profile {
        #[prost(message, repeated, tag = "1")]
        pub(super) sample_type: Vec<ValueType>,
        #[prost(message, repeated, tag = "2")]
        pub(super) sample: Vec<Sample>,
        #[prost(message, repeated, tag = "3")]
        pub(super) mapping: Vec<Mapping>,
        #[prost(message, repeated, tag = "4")]
        pub(super) location: Vec<Location>,
        #[prost(message, repeated, tag = "5")]
        pub(super) function: Vec<Function>,
        #[prost(string, repeated, tag = "6")]
        pub(super) string_table: Vec<String>,
        #[prost(int64, tag = "9")]
        pub(super) time_nanos: i64,
        #[prost(int64, tag = "10")]
        pub(super) duration_nanos: i64,
        #[prost(int64, repeated, tag = "13")]
        pub(super) comment: Vec<i64>,
        #[prost(int64, tag = "14")]
        pub(super) default_sample_type: i64,
    }

    #[derive(Clone, Copy, PartialEq, prost::Message)]
    pub(super) struct ValueType {
        #[prost(int64, tag = "1")]
        pub(super) kind: i64,
        #[prost(int64, tag = "2")]
        pub(super) unit: i64,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Sample {
        #[prost(uint64, repeated, tag = "1")]
        pub(super) location_id: Vec<u64>,
        #[prost(int64, repeated, tag = "2")]
        pub(super) value: Vec<i64>,
        #[prost(message, repeated, tag = "3")]
        pub(super) label: Vec<Label>,
    }

    #[derive(Clone, Copy, PartialEq, prost::Message)]
    pub(super) struct Label {
        #[prost(int64, tag = "1")]
        pub(super) key: i64,
        #[prost(int64, tag = "2")]
        pub(super) str: i64,
        #[prost(int64, tag = "3")]
        pub(super) num: i64,
    }

    #[derive(Clone, Copy, PartialEq, prost::Message)]
    pub(super) struct Mapping {
        #[prost(uint64, tag = "1")]
        pub(super) id: u64,
        #[prost(uint64, tag = "2")]
        pub(super) memory_start: u64,
        #[prost(uint64, tag = "3")]
        pub(super) memory_limit: u64,
        #[prost(int64, tag = "5")]
        pub(super) filename: i64,
        #[prost(int64, tag = "6")]
        pub(super) build_id: i64,
        #[prost(bool, tag = "7")]
        pub(super) has_functions: bool,
        #[prost(bool, tag = "8")]
        pub(super) has_filenames: bool,
        #[prost(bool, tag = "9")]
        pub(super) has_line_numbers: bool,
        #[prost(bool, tag = "10")]
        pub(super) has_inline_frames: bool,
    }

    #[derive(Clone, PartialEq, prost::Message)]
    pub(super) struct Location {
        #[prost(uint64, tag = "1")]
        pub(super) id: u64,
        #[prost(uint64, tag = "2")]
        pub(super) mapping_id: u64,
        #[prost(uint64, tag = "3")]
        pub(super) address: u64,
        #[prost(message, repeated, tag = "4")]
        pub(super) line: Vec<Line>,
    }

    #[derive(Clone, Copy, PartialEq, prost::Message)]
    pub(super) struct Line {
        #[prost(uint64, tag = "1")]
        pub(super) function_id: u64,
        #[prost(int64, tag = "2")]
        pub(super) line: i64,
    }

    #[derive(Clone, Copy, PartialEq, prost::Message)]
    pub(super) struct Function {
        #[prost(uint64, tag = "1")]
        pub(super) id: u64,
        #[prost(int64, tag = "2")]
        pub(super) name: i64,
        #[prost(int64, tag = "3")]
        pub(super) system_name: i64,
        #[prost(int64, tag = "4")]
        pub(super) filename: i64,
    }
}

/// Writes a profile.
pub(super) fn write(out: &mut dyn Write, profile: &Profile) -> io::Result<()> {
    let mut gzip = GzEncoder::new(out, Compression::default());
    gzip.write_all(&Builder::build(profile).encode_to_vec())?;
    gzip.finish()?.flush()
}

/// Gives everything its number. Ids begin at 1: 0 stands for none.
#[derive(Default)]
struct Builder<'profile> {
    profile: proto::Profile,
    strings: HashMap<String, i64>,
    functions: HashMap<(i64, i64), u64>,
    mappings: HashMap<(&'profile str, Option<&'profile str>), u64>,
    locations: HashMap<(u64, u64), u64>,
}

impl<'profile> Builder<'profile> {
    fn build(profile: &'profile Profile) -> proto::Profile {
        let mut builder = Self::default();
        // The first string is empty by definition.
        builder.string("");
        for (name, unit) in &profile.types {
            let (kind, unit) = (builder.string(name), builder.string(unit));
            builder.profile.sample_type.push(proto::ValueType { kind, unit });
        }
        for sample in &profile.samples {
            let location_id = match &sample.frames[..] {
                [] => vec![builder.lost()],
                frames => frames.iter().map(|frame| builder.location(frame)).collect(),
            };
            let label = sample.labels.iter().map(|(key, text)| builder.label(key, text)).collect();
            let value = sample.values.clone();
            builder.profile.sample.push(proto::Sample { location_id, value, label });
        }
        let since_epoch = profile.time.duration_since(UNIX_EPOCH).unwrap_or_default();
        let nanoseconds = |time: Duration| i64::try_from(time.as_nanos()).unwrap_or(0);
        builder.profile.time_nanos = nanoseconds(since_epoch);
        builder.profile.duration_nanos = nanoseconds(profile.duration);
        let comments = [builder.string(&profile.title), builder.string(&profile.command)];
        builder.profile.comment = comments.to_vec();
        let default = profile.types.get(profile.default_type).map_or("", |&(name, _)| name);
        builder.profile.default_sample_type = builder.string(default);
        builder.profile
    }

    /// A number as such, so that `pprof -tagfocus` takes it for one.
    fn label(&mut self, key: &str, text: &str) -> proto::Label {
        let key = self.string(key);
        match text.parse() {
            Ok(num) if num != 0 => proto::Label { key, str: 0, num },
            _ => proto::Label { key, str: self.string(text), num: 0 },
        }
    }

    fn string(&mut self, text: &str) -> i64 {
        if let Some(&known) = self.strings.get(text) {
            return known;
        }
        let index = self.profile.string_table.len() as i64;
        self.profile.string_table.push(text.to_owned());
        self.strings.insert(text.to_owned(), index);
        index
    }

    fn function(&mut self, name: &str, source: Option<&Source>) -> proto::Line {
        let name = self.string(name);
        let filename = self.string(source.map_or("", |source| &source.file));
        let next = self.profile.function.len() as u64 + 1;
        let id = *self.functions.entry((name, filename)).or_insert(next);
        if id == next {
            let function = proto::Function { id, name, system_name: name, filename };
            self.profile.function.push(function);
        }
        proto::Line { function_id: id, line: source.map_or(0, |source| source.line.into()) }
    }

    /// Addresses in a mapping are those of the file before relocation, where they
    /// are known: the same place of several processes is one location. A mapping of the whole
    /// address space says so (GetBase, internal/elfexec of pprof).
    fn mapping(&mut self, frame: &'profile Frame) -> u64 {
        let Some(module) = frame.module.as_deref() else { return 0 };
        let next = self.profile.mapping.len() as u64 + 1;
        let key = (module, frame.build_id.as_deref());
        let id = *self.mappings.entry(key).or_insert(next);
        if id == next {
            let filename = self.string(module);
            let build_id = self.string(frame.build_id.as_deref().unwrap_or_default());
            self.profile.mapping.push(proto::Mapping {
                id,
                memory_limit: u64::MAX,
                filename,
                build_id,
                ..proto::Mapping::default()
            });
        }
        id
    }

    fn location(&mut self, frame: &'profile Frame) -> u64 {
        let mapping_id = self.mapping(frame);
        let address = frame.module_offset.unwrap_or(frame.address);
        if let Some(&known) = self.locations.get(&(mapping_id, address)) {
            return known;
        }
        let mut line: Vec<proto::Line> = frame
            .inlined
            .iter()
            .map(|inlined| self.function(&inlined.name, inlined.source.as_ref()))
            .collect();
        let source = frame.symbol.as_ref().and_then(|symbol| symbol.source.as_ref());
        line.push(self.function(&stack::name(frame), source));
        if let Some(mapping) = self.profile.mapping.get_mut((mapping_id as usize).wrapping_sub(1)) {
            // Tells readers not to look for names themselves.
            mapping.has_functions = true;
            mapping.has_filenames |= source.is_some();
            mapping.has_line_numbers |= source.is_some();
            mapping.has_inline_frames |= !frame.inlined.is_empty();
        }
        let id = self.profile.location.len() as u64 + 1;
        self.profile.location.push(proto::Location { id, mapping_id, address, line });
        self.locations.insert((mapping_id, address), id);
        id
    }

    /// A place for samples without a stack.
    fn lost(&mut self) -> u64 {
        // No mapping has this id.
        let nowhere = (u64::MAX, 0);
        if let Some(&known) = self.locations.get(&nowhere) {
            return known;
        }
        let line = vec![self.function(stack::LOST, None)];
        let id = self.profile.location.len() as u64 + 1;
        self.profile.location.push(proto::Location { id, line, ..proto::Location::default() });
        self.locations.insert(nowhere, id);
        id
    }
}

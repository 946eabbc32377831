//! A stack in words, for all formats.

use serde_json::Map;
use serde_json::Value;
use serde_json::json;

use super::table::printable;
use crate::frame::Frame;
use crate::frame::Source;
use crate::frame::Symbol;
use crate::maps::base_name;

/// Shown where a stack could not be captured or kept.
pub(super) const LOST: &str = "[stack lost]";

/// One line for each function, innermost first, as below a row of a table.
pub(super) fn lines(stack: &[Frame]) -> Vec<String> {
    if stack.is_empty() {
        return vec![LOST.to_owned()];
    }
    stack.iter().enumerate().flat_map(|(number, frame)| of_frame(number, frame)).collect()
}

fn of_frame(number: usize, frame: &Frame) -> Vec<String> {
    let head = format!("#{number:<2} {:#018x}", frame.address);
    let module = frame.module.as_deref().map(base_name);
    let Some(symbol) = &frame.symbol else {
        let place = match (module, frame.module_offset) {
            (Some(module), Some(offset)) => format!(" {module}+{offset:#x}"),
            (Some(module), None) => format!(" {module}"),
            (None, _) => String::new(),
        };
        let reason = frame.reason.map(|reason| format!(" ({reason})")).unwrap_or_default();
        return vec![printable(&format!("{head}{place}{reason}"))];
    };
    let indent = " ".repeat(head.len());
    let mut lines: Vec<String> = frame
        .inlined
        .iter()
        .map(|inlined| format!("{} (inlined){}", inlined.name, at(inlined.source.as_ref())))
        .collect();
    let module = module.map(|module| format!(" ({module})")).unwrap_or_default();
    let source = at(symbol.source.as_ref());
    lines.push(format!("{}+{:#x}{module}{source}", symbol.name, symbol.offset));
    // The address stands once, at the code that is there.
    let numbered = |(place, line)| {
        let start = if place == 0 { &head } else { &indent };
        printable(&format!("{start} {line}"))
    };
    lines.into_iter().enumerate().map(numbered).collect()
}

fn at(source: Option<&Source>) -> String {
    source.map(|source| format!(" {}:{}", source.file, source.line)).unwrap_or_default()
}

/// An array of objects, innermost first. A key without a value is left out.
pub(super) fn json(stack: &[Frame]) -> Value {
    stack.iter().map(frame_json).collect()
}

fn frame_json(frame: &Frame) -> Value {
    let mut object = Map::new();
    let mut put = |key: &str, value: Value| object.insert(key.to_owned(), value);
    // As text: not every reader of JSON keeps 64 bits of a number.
    put("address", json!(format!("{:#x}", frame.address)));
    if let Some(Symbol { name, offset, source }) = &frame.symbol {
        put("symbol", json!(**name));
        put("offset", json!(offset));
        if let Some(source) = source {
            put("file", json!(*source.file));
            put("line", json!(source.line));
        }
    }
    if let Some(module) = &frame.module {
        put("module", json!(**module));
    }
    if let Some(offset) = frame.module_offset {
        put("module_offset", json!(offset));
    }
    if !frame.inlined.is_empty() {
        let inlined = frame.inlined.iter().map(|inlined| {
            let mut object = Map::new();
            object.insert("symbol".to_owned(), json!(*inlined.name));
            if let Some(source) = &inlined.source {
                object.insert("file".to_owned(), json!(*source.file));
                object.insert("line".to_owned(), json!(source.line));
            }
            Value::Object(object)
        });
        put("inlined", inlined.collect());
    }
    if let Some(reason) = frame.reason {
        put("reason", json!(reason));
    }
    Value::Object(object)
}

/// The functions from the outermost to the innermost, joined by `;`: the first
/// part of a line of folded stacks.
pub(super) fn folded(stack: &[Frame]) -> String {
    if stack.is_empty() {
        return LOST.to_owned();
    }
    let mut names = Vec::new();
    for frame in stack.iter().rev() {
        names.push(foldable(&name(frame)));
        names.extend(frame.inlined.iter().rev().map(|inlined| foldable(&inlined.name)));
    }
    names.join(";")
}

/// A name for a frame even where no function is known.
pub(super) fn name(frame: &Frame) -> String {
    match (&frame.symbol, frame.module.as_deref().map(base_name), frame.module_offset) {
        (Some(symbol), ..) => symbol.name.to_string(),
        (None, Some(module), Some(offset)) => format!("{module}+{offset:#x}"),
        (None, Some(module), None) => module.to_owned(),
        (None, None, _) => format!("{:#x}", frame.address),
    }
}

/// Neither a separator nor, at its end, something that reads as the value.
fn foldable(name: &str) -> String {
    let mut name = printable(name).replace(';', ":");
    if let Some(space) = name.rfind(' ') {
        let number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
        if name.get(space + 1..).is_some_and(number) {
            name.replace_range(space..=space, "_");
        }
    }
    name
}

//! One place in a program or the kernel, with whatever is known of it.

use std::rc::Rc;

/// A place in a stack. Frames of a stack go from the innermost to the
/// outermost.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Frame {
    /// The address as it was captured: of the instruction that ran (innermost
    /// frame) or the one to return to (all others).
    pub address: u64,
    /// The function whose code is there; `None`: unknown, [`Frame::reason`]
    /// says why.
    pub symbol: Option<Symbol>,
    /// Functions whose code was put inline there, innermost first.
    pub inlined: Vec<Inlined>,
    /// The file the code is from, as the process names it; a kernel module's
    /// name, or `kernel`.
    pub module: Option<Rc<str>>,
    /// Where in that file: the address before relocation.
    pub module_offset: Option<u64>,
    /// The build id of that file in hexadecimal digits.
    pub build_id: Option<Rc<str>>,
    /// Why there is no symbol.
    pub reason: Option<&'static str>,
}

/// A function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Symbol {
    /// Its name, demangled.
    pub name: Rc<str>,
    /// How far into it, in bytes.
    pub offset: u64,
    /// Where in the source.
    pub source: Option<Source>,
}

/// A function put inline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Inlined {
    /// Its name, demangled.
    pub name: Rc<str>,
    /// Where in the source.
    pub source: Option<Source>,
}

/// A line of source code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// The file.
    pub file: Rc<str>,
    /// The line, from 1.
    pub line: u32,
}

//! The one error type: what was attempted, why it failed, and the exit code.

use std::error::Error as StdError;
use std::fmt;
use std::io;
use std::process::ExitCode;

/// The result of anything in this crate that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What sort of failure it is; decides the exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Something that should work did not. Exit code 1.
    Failure,
    /// The command line is wrong. Exit code 2.
    Usage,
    /// A capability is missing. Exit code 3.
    Rights,
    /// This kernel lacks something the command cannot do without. Exit code 4.
    Kernel,
    /// The reader of our output has gone: a normal end. Exit code 0.
    ClosedPipe,
}

impl Kind {
    /// The process exit code of this kind.
    pub fn code(self) -> u8 {
        match self {
            Kind::ClosedPipe => 0,
            Kind::Failure => 1,
            Kind::Usage => 2,
            Kind::Rights => 3,
            Kind::Kernel => 4,
        }
    }
}

/// An error with its kind and the chain of what was being done.
#[derive(Debug)]
pub struct Error {
    kind: Kind,
    message: String,
    source: Option<Box<dyn StdError + Send + Sync>>,
}

impl Error {
    /// An error of `kind` that says `message`.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), source: None }
    }

    /// Something that should work did not.
    pub fn failure(message: impl Into<String>) -> Self {
        Self::new(Kind::Failure, message)
    }

    /// The command line is wrong.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(Kind::Usage, message)
    }

    /// A capability is missing.
    pub fn rights(message: impl Into<String>) -> Self {
        Self::new(Kind::Rights, message)
    }

    /// This kernel lacks something.
    pub fn kernel(message: impl Into<String>) -> Self {
        Self::new(Kind::Kernel, message)
    }

    /// The kind of this error.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The same error, with what was being attempted in front.
    fn wrapped(self, message: String) -> Self {
        Self { kind: self.kind, message, source: Some(Box::new(self)) }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        let mut source = self.source();
        while let Some(cause) = source {
            // Our own errors print their whole chain already.
            if let Some(own) = cause.downcast_ref::<Error>() {
                return write!(f, ": {own}");
            }
            write!(f, ": {cause}")?;
            source = cause.source();
        }
        Ok(())
    }
}

impl StdError for Error {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        self.source.as_ref().map(|source| source.as_ref() as &(dyn StdError + 'static))
    }
}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        let kind = match error.kind() {
            io::ErrorKind::BrokenPipe => Kind::ClosedPipe,
            _ => Kind::Failure,
        };
        Self::new(kind, without_number(&error.to_string()))
    }
}

impl From<rustix::io::Errno> for Error {
    fn from(errno: rustix::io::Errno) -> Self {
        io::Error::from(errno).into()
    }
}

impl From<libbpf_rs::Error> for Error {
    fn from(error: libbpf_rs::Error) -> Self {
        let kind = match error.kind() {
            libbpf_rs::ErrorKind::PermissionDenied => Kind::Rights,
            _ => Kind::Failure,
        };
        Self::new(kind, without_number(&format!("{error:#}")))
    }
}

impl From<Error> for ExitCode {
    fn from(error: Error) -> Self {
        ExitCode::from(error.kind().code())
    }
}

/// The operating system's words, without Rust's "(os error N)".
fn without_number(text: &str) -> String {
    text.split(" (os error").next().unwrap_or_default().to_owned()
}

/// Adds what was being attempted to a failed result.
pub trait Context<T> {
    /// Puts `what` in front of the error; evaluated only on failure.
    ///
    /// # Errors
    /// The original error, its kind kept.
    fn context<S: Into<String>>(self, what: impl FnOnce() -> S) -> Result<T>;
}

impl<T, E: Into<Error>> Context<T> for Result<T, E> {
    fn context<S: Into<String>>(self, what: impl FnOnce() -> S) -> Result<T> {
        self.map_err(|error| error.into().wrapped(what().into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_chain_is_printed_outermost_first_and_once() {
        let inner: Result<()> =
            Err(io::Error::from_raw_os_error(rustix::io::Errno::NOENT.raw_os_error()).into());
        let error = inner.context(|| "reading `x`").context(|| "starting").unwrap_err();
        assert_eq!(error.to_string(), "starting: reading `x`: No such file or directory");
        assert_eq!(error.kind(), Kind::Failure);
    }

    #[test]
    fn a_closed_pipe_is_a_normal_end_whatever_wraps_it() {
        let error: Error = io::Error::from(io::ErrorKind::BrokenPipe).into();
        let error = Err::<(), _>(error).context(|| "printing").unwrap_err();
        assert_eq!(error.kind().code(), 0);
    }

    #[test]
    fn exit_codes_are_the_documented_ones() {
        let codes = [Kind::Failure, Kind::Usage, Kind::Rights, Kind::Kernel].map(Kind::code);
        assert_eq!(codes, [1, 2, 3, 4]);
    }
}

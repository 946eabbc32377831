//! A second try for a test that failed in a guest. One thread of the emulator runs
//! all processors of a guest by turns: a watcher, kswapd or a worker can stand still
//! for longer than any workload can allow for. A defect fails twice.

use std::any::Any;
use std::io;
use std::io::Write as _;
use std::panic::AssertUnwindSafe;
use std::panic::catch_unwind;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;

use super::Outcome;
use super::kernels::is_guest;

/// How many tests of a run may have one. More is no accident.
const MOST: usize = 3;

/// Runs a test, and again if that failed; says so on a line of its own, which
/// `tools/test` shows.
pub fn run(name: &str, body: &impl Fn() -> Outcome) -> Outcome {
    static TRIED: AtomicUsize = AtomicUsize::new(0);
    let first = once(body);
    let Err(failed) = &first else { return first };
    if !is_guest() || TRIED.fetch_add(1, Ordering::Relaxed) >= MOST {
        return first;
    }
    let why = failed.message().unwrap_or("no message");
    let second = once(body);
    let outcome = if second.is_ok() { "passed" } else { "failed again" };
    let why = why.replace('\n', "\n    ");
    // Standard output has the results; a closed one is theirs to report.
    let _ = writeln!(io::stdout(), "\nsecond try: {name}: {outcome}, after: {why}");
    second
}

/// A panic is a failure, and no reason to leave the others out.
fn once(body: &impl Fn() -> Outcome) -> Outcome {
    catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|panic| Err(message(&*panic).into()))
}

fn message(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied());
    format!("panicked: {}", text.unwrap_or("without a message"))
}

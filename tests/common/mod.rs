//! What the live tests share: the watcher under test, workloads with known
//! memory, the kernel's own accounting, and the rules for skipping.

pub mod kernels;
pub mod kmsg;
pub mod leak;
pub mod oracle;
pub mod pressure;
pub mod scarce;
mod second_try;
pub mod target;
pub mod trace;
pub mod watcher;
pub mod worker;

use libtest_mimic::Completion;
use libtest_mimic::Failed;
use libtest_mimic::Trial;

/// What a test returns: done, skipped for an earned reason, or failed.
pub type Outcome = Result<Completion, Failed>;

/// A test that passed.
pub const PASS: Outcome = Ok(Completion::Completed);

/// A test by name.
pub fn test(name: impl Into<String>, body: impl Fn() -> Outcome + Send + 'static) -> Trial {
    let name = name.into();
    let known = name.clone();
    Trial::ignorable_test(name, move || second_try::run(&known, &body))
}

/// Fails with the formatted text unless the condition holds.
#[macro_export]
macro_rules! check {
    ($condition:expr, $($text:tt)+) => {
        let holds: bool = $condition;
        if !holds {
            return Err(libtest_mimic::Failed::from(format!($($text)+)));
        }
    };
}

/// Fails unless both are equal, and shows both.
#[macro_export]
macro_rules! check_eq {
    ($left:expr, $right:expr, $($text:tt)+) => {
        // A match, so that what the expressions borrow lives long enough.
        match (&$left, &$right) {
            (left, right) if left == right => {}
            (left, right) => {
                return Err(libtest_mimic::Failed::from(
                    format!("{}: {left:?} is not {right:?}", format_args!($($text)+)),
                ));
            }
        }
    };
}

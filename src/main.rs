//! Parse, run, turn the result into an exit code.

use std::process::ExitCode;

use clap::Parser as _;
use clap::error::ErrorKind;
use mem_watcher::cli::Cli;
use mem_watcher::error::Kind;
use mem_watcher::output::note;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            let _ = error.print();
            return ExitCode::from(Kind::Usage.code());
        }
        Err(error) if error.use_stderr() => {
            note(&one_line(&error.to_string()));
            return ExitCode::from(Kind::Usage.code());
        }
        // --help and --version; a closed pipe is not worth failing for.
        Err(text) => {
            let _ = text.print();
            return ExitCode::SUCCESS;
        }
    };
    match cli.command.run() {
        Ok(code) => code,
        Err(error) if error.kind() == Kind::ClosedPipe => ExitCode::SUCCESS,
        Err(error) => {
            note(&error.to_string());
            error.into()
        }
    }
}

/// clap explains over several lines; users and logs get one: what was wrong,
/// and where the right words are.
fn one_line(text: &str) -> String {
    let until = text.find("\n\nUsage:").or_else(|| text.find("\n\nFor more")).unwrap_or(text.len());
    let words: Vec<&str> = text[..until].split_whitespace().collect();
    let what = words.join(" ");
    let what = what.strip_prefix("error: ").unwrap_or(&what);
    format!("{what}; see --help")
}

//! Writes the manual pages and the shell completions into the folder given as argument. Both come from the
//! definitions the program itself is made of: options, columns, hooks.

use std::env;
use std::error::Error;
use std::fs;
use std::io;
use std::path::Path;
use std::path::PathBuf;

use clap::Command;
use clap::CommandFactory as _;
use clap_complete::Shell;
use clap_mangen::Man;
use clap_mangen::roff::Roff;
use clap_mangen::roff::bold;
use clap_mangen::roff::italic;
use clap_mangen::roff::roman;
use mem_watcher::cli::Cli;
use mem_watcher::cmd::ENTRIES;
use mem_watcher::cmd::Entry;
use mem_watcher::error::Kind;
use mem_watcher::units::SizeUnit;

const PROGRAM: &str = "mem_watcher";
const SECTION: &str = "1";

const EXITS: [(Option<Kind>, &str); 5] = [
    (
        None,
        "The run ended as asked: by -n, by -d, by a signal, or because the reader of the output went away.",
    ),
    (Some(Kind::Failure), "Something that should work did not."),
    (Some(Kind::Usage), "The command line is wrong."),
    (Some(Kind::Rights), "A capability is missing; the message names it."),
    (Some(Kind::Kernel), "This kernel lacks something; the message says what."),
];

const ENVIRONMENT: [(&str, &str); 3] = [
    ("NO_COLOR", "If set and not empty, headings are not bold."),
    ("COLUMNS", "Width to fold tables at where the output is not a terminal that knows its own."),
    ("TZ", "Time zone of the TIME column."),
];

fn main() -> Result<(), Box<dyn Error>> {
    let folder: PathBuf = env::args_os().nth(1).ok_or("usage: manual FOLDER")?.into();
    fs::create_dir_all(&folder)?;
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        clap_complete::generate_to(shell, &mut with_short_forms(Cli::command()), PROGRAM, &folder)?;
    }
    let mut command = Cli::command().disable_help_subcommand(true);
    command.build();
    page(&command, &folder)?;
    for command in command.get_subcommands() {
        page(command, &folder)?;
    }
    Ok(())
}

/// The completion scripts know a command by its names; `-r` is one to them.
fn with_short_forms(command: Command) -> Command {
    command.mut_subcommands(|command| match command.get_short_flag() {
        // clap keeps names for ever; this program ends at once.
        Some(letter) => command.visible_alias(&*format!("-{letter}").leak()),
        None => command,
    })
}

fn page(command: &Command, folder: &Path) -> io::Result<()> {
    let entry = ENTRIES.iter().find(|entry| entry.name == command.get_name());
    let name = match entry {
        Some(entry) => format!("{PROGRAM}-{}", entry.name),
        None => PROGRAM.to_owned(),
    };
    let man = Man::new(command.clone().override_usage(usage(command)))
        .title(name.to_uppercase())
        .section(SECTION)
        .source(concat!("mem_watcher ", env!("CARGO_PKG_VERSION")))
        .manual("User Commands");
    let mut text = Vec::new();
    man.render_title(&mut text)?;
    man.render_name_section(&mut text)?;
    man.render_synopsis_section(&mut text)?;
    man.render_description_section(&mut text)?;
    man.render_options_section(&mut text)?;
    let mut rest = Roff::new();
    match entry {
        Some(entry) => of_command(&mut rest, entry),
        None => commands(&mut rest, command),
    }
    closing(&mut rest, entry);
    rest.to_writer(&mut text)?;
    fs::write(folder.join(format!("{name}.{SECTION}")), text)
}

fn usage(command: &Command) -> String {
    if command.get_name() == PROGRAM {
        return format!("{PROGRAM} COMMAND [OPTIONS]");
    }
    let mut forms = format!("{PROGRAM} {} [OPTIONS]", command.get_name());
    if let Some(letter) = command.get_short_flag() {
        forms += &format!("\n{PROGRAM} -{letter} [OPTIONS]");
    }
    forms
}

fn commands(roff: &mut Roff, command: &Command) {
    roff.control("SH", ["COMMANDS"]);
    for command in command.get_subcommands() {
        let mut name = vec![bold(command.get_name())];
        if let Some(letter) = command.get_short_flag() {
            name.extend([roman(", "), bold(format!("-{letter}"))]);
        }
        let about = command.get_about().map(ToString::to_string).unwrap_or_default();
        item(roff, name, &format!("{about}. See {PROGRAM}-{}({SECTION}).", command.get_name()));
    }
}

fn of_command(roff: &mut Roff, entry: &Entry) {
    roff.control("SH", ["COLUMNS"]);
    roff.text([roman("Heading in the table, and key in JSON and CSV with the default unit.")]);
    for column in entry.columns {
        let name = [bold(column.head), roman(" "), italic(column.full_key(SizeUnit::default()))];
        item(roff, name, &sentence(column.help));
    }
    let Some(choice) = entry.choice else { return };
    roff.control("SH", ["HOOKS"]);
    roff.text([roman(
        "Best first; the first one that this kernel has is used. --hook names another.",
    )]);
    for hook in choice.hooks {
        let loses = if hook.loses.is_empty() { "nothing is lost" } else { hook.loses };
        item(roff, [bold(hook.name)], &sentence(loses));
    }
}

fn closing(roff: &mut Roff, entry: Option<&Entry>) {
    roff.control("SH", ["EXIT STATUS"]);
    for (kind, meaning) in EXITS {
        item(roff, [bold(kind.map_or(0, Kind::code).to_string())], meaning);
    }
    roff.control("SH", ["ENVIRONMENT"]);
    for (name, meaning) in ENVIRONMENT {
        item(roff, [bold(name)], meaning);
    }
    roff.control("SH", ["SEE ALSO"]);
    let others = ENTRIES.iter().filter(|other| entry.is_none_or(|entry| entry.name != other.name));
    let mut pages: Vec<String> =
        others.map(|other| format!("{PROGRAM}-{}({SECTION})", other.name)).collect();
    if entry.is_some() {
        pages.insert(0, format!("{PROGRAM}({SECTION})"));
    }
    pages.extend(["proc(5)".to_owned(), "capabilities(7)".to_owned()]);
    roff.text([roman(pages.join(", "))]);
}

fn item(roff: &mut Roff, name: impl Into<Vec<clap_mangen::roff::Inline>>, text: &str) {
    roff.control("TP", []);
    roff.text(name);
    roff.text([roman(text)]);
}

fn sentence(text: &str) -> String {
    let mut letters = text.chars();
    let first = letters.next().map(|letter| letter.to_uppercase().to_string());
    format!("{}{}.", first.unwrap_or_default(), letters.as_str())
}

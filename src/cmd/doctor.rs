//! `doctor`: what works on this kernel, through which hook, and what to do
//! about what does not.

use std::fs;
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;

use super::ENTRIES;
use super::Tool;
use crate::attach::Choice;
use crate::attach::plan;
use crate::cli::FormatArgs;
use crate::cli::KernelArgs;

use crate::context::Context;
use crate::context::Limits;
use crate::engine::Pace;
use crate::engine::Run;
use crate::engine::once;
use crate::error::Error;
use crate::error::Kind;
use crate::error::Result;
use crate::kernel::Answer;
use crate::kernel::Need;
use crate::output::ALWAYS;
use crate::output::Column;
use crate::output::Printer;
use crate::output::Row;
use crate::output::Unit;
use crate::output::Value;
use crate::output::describe;
use crate::procfs::ProcFs;
use crate::rights;
use crate::target::Target;

/// What works on this kernel, and what to do about what does not
///
/// Exit code 0 if every command works, 4 if one cannot, 3 if rights are missing.
#[derive(Args, Debug)]
#[command(after_long_help = describe(Doctor::COLUMNS))]
pub struct Doctor {
    #[command(flatten)]
    output: FormatArgs,
    #[command(flatten)]
    kernel: KernelArgs,
}

/// One line of the report.
struct Finding {
    subject: &'static str,
    verdict: Verdict,
    how: String,
    detail: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// A fact about the machine.
    Fact,
    Works,
    Fallback,
    Cannot,
}

impl Verdict {
    fn word(self) -> &'static str {
        match self {
            Verdict::Fact => "-",
            Verdict::Works => "works",
            Verdict::Fallback => "fallback",
            Verdict::Cannot => "cannot",
        }
    }
}

impl Row<4> for Finding {
    const COLUMNS: [Column; 4] = [
        column("SUBJECT", "subject", 12, "a command, or a fact about the machine"),
        column("VERDICT", "verdict", 8, "works, fallback or cannot"),
        column("HOW", "how", 29, "the hook in use, or the fact"),
        column("DETAIL", "detail", 0, "what is approximate, or what to do"),
    ];

    fn values(&self) -> [Value<'_>; 4] {
        let verdict = match self.verdict {
            Verdict::Fact => Value::Missing,
            other => Value::Text(other.word().into()),
        };
        let detail = match self.detail.as_str() {
            "" => Value::Missing,
            detail => Value::Text(detail.into()),
        };
        [Value::Text(self.subject.into()), verdict, Value::Text((&self.how).into()), detail]
    }
}

const fn column(
    head: &'static str,
    key: &'static str,
    width: usize,
    help: &'static str,
) -> Column {
    Column::new(head, key, Unit::Text, width, ALWAYS, help)
}

impl Tool for Doctor {
    const CHOICE: Option<&'static Choice> = None;
    const COLUMNS: &'static [Column] = &<Finding as Row<4>>::COLUMNS;

    fn run(self) -> Result<ExitCode> {
        let limits = Limits { interval: Duration::from_secs(1), count: None, duration: None };
        let ctx = Context::new("doctor", &self.kernel, limits, |_| Ok(Target::default()))?;
        if ctx.hook.is_some() {
            return Err(Error::usage("--hook is for the other commands: doctor tries them all"));
        }
        let missing = rights::missing_for_tracing()?;
        let mut findings = machine(&ctx, &missing)?;
        findings.extend(ENTRIES.iter().filter_map(|entry| {
            let choice = entry.choice?;
            Some(command(&ctx, entry.name, choice, &missing))
        }));
        let worst = if findings.iter().all(|finding| finding.verdict != Verdict::Cannot) {
            None
        } else if missing.is_empty() {
            Some(Kind::Kernel)
        } else {
            Some(Kind::Rights)
        };
        let printer = Printer::stdout::<Finding, 4>((&self.output).into(), ALWAYS)?;
        let pace = Pace { at_start: true, at_end: false, by_row: false };
        let run = Run { hook: "", notes: Vec::new(), pace, lost: &|| 0 };
        once(&ctx, run, printer, |printer| {
            findings.iter().try_for_each(|finding| printer.row(finding))
        })?;
        Ok(worst.map_or(ExitCode::SUCCESS, |kind| ExitCode::from(kind.code())))
    }
}

/// What one command can do here.
fn command(
    ctx: &Context,
    name: &'static str,
    choice: &'static Choice,
    missing: &[&str],
) -> Finding {
    if !missing.is_empty() && choice.takes_bpf() {
        let usable = choice.hooks.iter().find(|hook| !hook.needs_rights());
        return Finding {
            subject: name,
            verdict: Verdict::Cannot,
            how: "-".into(),
            detail: format!(
                "needs {}: run as root (sudo){}",
                missing.join(" and "),
                usable.map_or(String::new(), |hook| format!("; without: --hook {}", hook.name))
            ),
        };
    }
    match plan(&ctx.kernel, choice, None) {
        Ok(plan) => {
            let verdict =
                if plan.hook.loses.is_empty() { Verdict::Works } else { Verdict::Fallback };
            Finding {
                subject: name,
                verdict,
                how: plan.hook.name.into(),
                detail: plan.hook.loses.into(),
            }
        }
        Err(error) => Finding {
            subject: name,
            verdict: Verdict::Cannot,
            how: "-".into(),
            detail: error.to_string(),
        },
    }
}

/// Facts every command depends on.
fn machine(ctx: &Context, missing: &[&str]) -> Result<Vec<Finding>> {
    let fact = |subject, how: String, detail: &str| Finding {
        subject,
        verdict: Verdict::Fact,
        how,
        detail: detail.into(),
    };
    let (btf, btf_advice) = match (ctx.kernel.btf_file(), ctx.kernel.answer(Need::KernelBtf)) {
        (Some(file), _) => (format!("from {}", file.display()), ""),
        (None, Answer::Yes) => ("built in".to_owned(), ""),
        (None, _) => (
            "none".to_owned(),
            "needs a kernel with CONFIG_DEBUG_INFO_BTF=y, or --btf FILE for this very build",
        ),
    };
    let (lockdown, lockdown_advice) = lockdown();
    let capabilities = if missing.is_empty() {
        ("CAP_BPF CAP_PERFMON".to_owned(), "")
    } else {
        (format!("without {}", missing.join(" ")), "run as root (sudo), or grant them")
    };
    let (cgroup, cgroup_advice) = cgroups(&ctx.procfs);
    let trial = |need| match ctx.kernel.answer(need) {
        Answer::Yes => ("yes".to_owned(), String::new()),
        Answer::No(why) => ("no".to_owned(), why),
        Answer::Unknown(why) => ("unknown".to_owned(), why),
    };
    let mut findings = vec![
        fact("kernel", ctx.kernel.release().to_owned(), ""),
        fact("btf", btf, btf_advice),
        fact("lockdown", lockdown, lockdown_advice),
        fact("capabilities", capabilities.0, capabilities.1),
        fact("cgroups", cgroup, cgroup_advice),
    ];
    if missing.is_empty() {
        for (subject, need) in [("fentry", Need::Fentry), ("kprobes", Need::Kprobe)] {
            let (how, why) = trial(need);
            findings.push(fact(subject, how, &why));
        }
    }
    Ok(findings)
}

/// The lockdown mode (`kernel_lockdown(7)`): the word in brackets.
fn lockdown() -> (String, &'static str) {
    let folder = Path::new("/sys/kernel/security");
    let Ok(text) = fs::read_to_string(folder.join("lockdown")) else {
        return match folder.join("lsm").exists() {
            true => ("none (not built in)".into(), ""),
            false => ("unknown".into(), "securityfs is not mounted on /sys/kernel/security"),
        };
    };
    let mode = text.split_once('[').and_then(|(_, rest)| rest.split_once(']'));
    match mode.map(|(mode, _)| mode) {
        Some("confidentiality") => (
            "confidentiality".into(),
            "BPF may not read kernel memory: boot with lockdown=integrity or none",
        ),
        Some(mode) => (mode.to_owned(), ""),
        None => ("unknown".into(), ""),
    }
}

fn cgroups(procfs: &ProcFs) -> (String, &'static str) {
    match procfs.cgroup2_mount() {
        Some(mount) if mount == Path::new("/sys/fs/cgroup") => ("v2".into(), ""),
        Some(mount) => (
            format!("v1 and v2 ({})", mount.display()),
            "--cgroup takes folders of the v2 hierarchy only",
        ),
        None => ("v1 or none".into(), "--cgroup needs a mounted cgroup v2 hierarchy"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::tests::golden;

    #[test]
    fn the_output_is_the_documented_one() {
        let finding = |subject, verdict, how: &str, detail: &str| Finding {
            subject,
            verdict,
            how: how.into(),
            detail: detail.into(),
        };
        let findings = [
            finding("kernel", Verdict::Fact, "6.1.0", ""),
            finding("procstat", Verdict::Works, "tp_btf:sched_switch", ""),
            finding("sysstat", Verdict::Fallback, "proc:vmstat", "not read at one moment"),
            finding("other", Verdict::Cannot, "-", "needs CAP_BPF: run as root (sudo)"),
        ];
        golden::<Finding, 4>("doctor", ALWAYS, &findings);
    }
}

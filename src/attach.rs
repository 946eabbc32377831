//! The rules: which hook serves a purpose on a kernel. [`plan`] is pure;
//! [`Plan::select`] and [`Plan::attach`] apply its decision.

use libbpf_rs::Link;
use libbpf_rs::Object;
use libbpf_rs::OpenObject;

use crate::context::Context;
use crate::error::Context as _;
use crate::error::Error;
use crate::error::Result;
use crate::kernel::Answer;
use crate::kernel::KernelFacts;
use crate::kernel::Need;
use crate::output::note;
use crate::rights;

/// One way to serve a purpose.
#[derive(Debug)]
pub struct Hook {
    /// What users name with `--hook`: `kind:place`.
    pub name: &'static str,
    /// BPF programs to load; those the tool attaches are in `attach`.
    pub programs: &'static [&'static str],
    /// BPF programs that stay attached while the tool runs, in the order in which
    /// they are attached: what sees an end comes before what sees its begin, or a
    /// begin in between would seem to have no end.
    pub attach: &'static [&'static str],
    /// What the kernel must have.
    pub needs: &'static [Need],
    /// What is approximate or missing with this hook; empty: nothing.
    pub loses: &'static str,
}

impl Hook {
    /// Whether it takes BPF, and so the capabilities for it.
    pub fn needs_rights(&self) -> bool {
        !(self.programs.is_empty() && self.attach.is_empty())
    }
}

/// The hooks that can serve one tool, best first.
#[derive(Debug)]
pub struct Choice {
    /// What the hook is for, in words.
    pub purpose: &'static str,
    /// Candidates, best first.
    pub hooks: &'static [Hook],
}

impl Choice {
    /// Whether any of its hooks takes BPF.
    pub fn takes_bpf(&self) -> bool {
        self.hooks.iter().any(Hook::needs_rights)
    }
}

/// The decision for one tool on one kernel.
#[derive(Debug)]
pub struct Plan {
    /// The hook to use.
    pub hook: &'static Hook,
    /// Better hooks that could not be used, and why.
    pub rejected: Vec<(&'static str, String)>,
}

/// Settles on a hook before anything is loaded: a wrong `--hook` is refused
/// first, then missing rights, then what this kernel lacks.
///
/// # Errors
/// As said, each with its kind.
pub fn prepare(ctx: &Context, choice: &'static Choice) -> Result<Plan> {
    let forced = ctx.hook.as_deref();
    let named = forced.map(|name| find(choice, name)).transpose()?;
    if named.map_or_else(|| choice.takes_bpf(), Hook::needs_rights) {
        rights::require_tracing().map_err(|error| {
            match choice.hooks.iter().find(|hook| !hook.needs_rights()) {
                Some(hook) => Error::new(
                    error.kind(),
                    format!("{error}; --hook {} needs no rights", hook.name),
                ),
                None => error,
            }
        })?;
    }
    let plan = plan(&ctx.kernel, choice, forced)?;
    if plan.hook.needs_rights() && !ctx.procfs.in_first_pid_namespace() {
        // The kernel side knows the machine's PIDs only, not a container's.
        if !ctx.target.tgids.is_empty() {
            return Err(Error::failure(
                "-P: this is a container, whose PIDs the kernel side does not know; start it in \
                 the host's PID namespace (--pid=host), or use --hook proc",
            ));
        }
        note("this is a container: the PIDs shown are those of the host");
    }
    for (hook, why) in &plan.rejected {
        ctx.say(|| format!("{}: not {hook}: {why}", ctx.command));
    }
    ctx.say(|| format!("{}: using {}", ctx.command, plan.hook.name));
    Ok(plan)
}

/// Picks the first hook whose needs are met, or the one the user forced.
///
/// # Errors
/// `forced` names no hook (usage) or one that cannot be used here, or no hook
/// can be used (kernel).
pub fn plan(facts: &KernelFacts, choice: &'static Choice, forced: Option<&str>) -> Result<Plan> {
    if let Some(name) = forced {
        return force(facts, choice, name);
    }
    first_usable(facts, choice, choice.hooks, Vec::new())
}

/// The next best hook after one that its needs allowed and that did not do its
/// work all the same.
///
/// # Errors
/// The user `forced` that hook, or none is left (kernel).
pub fn instead(
    facts: &KernelFacts,
    choice: &'static Choice,
    forced: bool,
    failed: Plan,
    why: &str,
) -> Result<Plan> {
    let name = failed.hook.name;
    if forced {
        return Err(Error::kernel(format!("--hook `{name}`: {why}; try another one")));
    }
    let after = choice.hooks.iter().position(|hook| hook.name == name).map_or(0, |i| i + 1);
    let mut rejected = failed.rejected;
    rejected.push((name, why.to_owned()));
    first_usable(facts, choice, &choice.hooks[after..], rejected)
}

fn first_usable(
    facts: &KernelFacts,
    choice: &Choice,
    hooks: &'static [Hook],
    mut rejected: Vec<(&'static str, String)>,
) -> Result<Plan> {
    for hook in hooks {
        match missing(facts, hook) {
            None => return Ok(Plan { hook, rejected }),
            Some(why) => rejected.push((hook.name, why)),
        }
    }
    let reasons: Vec<String> =
        rejected.iter().map(|(name, why)| format!("{name}: {why}")).collect();
    Err(Error::kernel(format!(
        "this kernel ({}) offers no way {}: {}",
        facts.release(),
        choice.purpose,
        reasons.join("; ")
    )))
}

fn force(facts: &KernelFacts, choice: &'static Choice, name: &str) -> Result<Plan> {
    let hook = find(choice, name)?;
    match missing(facts, hook) {
        None => Ok(Plan { hook, rejected: Vec::new() }),
        Some(why) => {
            let usable = choice.hooks.iter().filter(|hook| missing(facts, hook).is_none());
            Err(Error::kernel(format!(
                "--hook `{}` cannot be used on this kernel: {why}; usable here: {}",
                hook.name,
                names(usable)
            )))
        }
    }
}

/// The hook a user names; `iter` means `iter:task` as long as no other hook of
/// the command is of that kind.
fn find(choice: &'static Choice, name: &str) -> Result<&'static Hook> {
    let kind = |hook: &&Hook| hook.name.split(':').next() == Some(name);
    let mut of_kind = choice.hooks.iter().filter(kind);
    let exact = choice.hooks.iter().find(|hook| hook.name == name);
    match (exact, of_kind.next(), of_kind.next()) {
        (Some(hook), _, _) | (None, Some(hook), None) => Ok(hook),
        _ => Err(Error::usage(format!(
            "--hook `{name}`: no such hook; the hooks of this command are {}",
            names(choice.hooks.iter())
        ))),
    }
}

fn names<'hook>(hooks: impl Iterator<Item = &'hook Hook>) -> String {
    let names: Vec<&str> = hooks.map(|hook| hook.name).collect();
    if names.is_empty() { "none".into() } else { names.join(", ") }
}

/// The first unmet need, in words.
fn missing(facts: &KernelFacts, hook: &Hook) -> Option<String> {
    hook.needs.iter().find_map(|&need| match facts.answer(need) {
        Answer::Yes => None,
        Answer::No(why) => Some(format!("{need}: {why}")),
        Answer::Unknown(why) => Some(format!("{need}: cannot tell, {why}")),
    })
}

impl Plan {
    /// What is approximate, for the user.
    pub fn notes(&self) -> Vec<String> {
        match self.hook.loses {
            "" => Vec::new(),
            loses => vec![format!("{}: {loses}", self.hook.name)],
        }
    }

    /// Loads only the programs this plan uses.
    pub fn select(&self, object: &mut OpenObject) {
        for mut program in object.progs_mut() {
            let chosen = program.name().to_str().is_some_and(|name| {
                self.hook.programs.contains(&name) || self.hook.attach.contains(&name)
            });
            program.set_autoload(chosen);
        }
    }

    /// Attaches the programs that run by themselves, in their order. Dropping the
    /// links detaches them.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn attach(&self, object: &Object) -> Result<Vec<Link>> {
        let mut links = Vec::new();
        for &name in self.hook.attach {
            for program in object.progs_mut().filter(|program| program.name() == name) {
                let link = program.attach().context(|| format!("attaching {}", self.hook.name))?;
                links.push(link);
            }
        }
        Ok(links)
    }
}

/// Programs beside those of a hook, for what only some kernels have.
#[derive(Debug)]
pub struct Extras(Vec<&'static str>);

impl Extras {
    /// Those of `candidates` whose need is met.
    pub fn found(facts: &KernelFacts, candidates: &[(&'static str, Need)]) -> Self {
        let met = candidates.iter().filter(|(_, need)| facts.has(*need));
        Self(met.map(|(program, _)| *program).collect())
    }

    /// Whether a program is among them.
    pub fn has(&self, program: &str) -> bool {
        self.0.contains(&program)
    }

    /// Loads them too.
    pub fn select(&self, object: &mut OpenObject) {
        for mut program in object.progs_mut() {
            if program.name().to_str().is_some_and(|name| self.has(name)) {
                program.set_autoload(true);
            }
        }
    }

    /// Attaches them.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn attach(&self, object: &Object) -> Result<Vec<Link>> {
        let mut links = Vec::new();
        for program in object.progs_mut() {
            let Some(name) = program.name().to_str().filter(|name| self.has(name)) else {
                continue;
            };
            links.push(program.attach().context(|| format!("attaching `{name}`"))?);
        }
        Ok(links)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    static CHOICE: Choice = Choice {
        purpose: "to test",
        hooks: &[
            Hook {
                name: "fentry:f",
                programs: &[],
                attach: &["on_f"],
                needs: &[Need::Fentry, Need::Func("f")],
                loses: "",
            },
            Hook {
                name: "tp_btf:t",
                programs: &[],
                attach: &["on_t"],
                needs: &[Need::BtfTracepoint("t")],
                loses: "",
            },
            Hook { name: "iter:task", programs: &[], attach: &[], needs: &[], loses: "history" },
        ],
    };

    #[test]
    fn the_best_usable_hook_wins_and_the_better_ones_are_explained() {
        let both = [Need::Fentry, Need::Func("f"), Need::BtfTracepoint("t")];
        let chosen = |has: &[Need]| plan(&KernelFacts::fake(has), &CHOICE, None).unwrap();
        assert_eq!(chosen(&both).hook.name, "fentry:f");
        let second = chosen(&[Need::Fentry, Need::BtfTracepoint("t")]);
        assert_eq!(second.hook.name, "tp_btf:t");
        assert_eq!(second.rejected, [("fentry:f", "function `f`: not here".to_owned())]);
        assert_eq!(chosen(&[]).hook.name, "iter:task");
    }

    #[test]
    fn a_hook_that_does_nothing_gives_way_to_the_next_unless_it_was_forced() {
        let facts = KernelFacts::fake(&[Need::Fentry, Need::Func("f"), Need::BtfTracepoint("t")]);
        let first = plan(&facts, &CHOICE, None).unwrap();
        let second = instead(&facts, &CHOICE, false, first, "never fired").unwrap();
        assert_eq!(second.hook.name, "tp_btf:t");
        assert_eq!(second.rejected, [("fentry:f", "never fired".to_owned())]);
        let third = instead(&facts, &CHOICE, false, second, "nor this").unwrap();
        assert_eq!(third.hook.name, "iter:task");
        let error = instead(&facts, &CHOICE, false, third, "nor this").unwrap_err();
        assert_eq!(error.kind(), Kind::Kernel);
        let forced = plan(&facts, &CHOICE, Some("tp_btf:t")).unwrap();
        let error = instead(&facts, &CHOICE, true, forced, "never fired").unwrap_err();
        assert!(error.to_string().contains("`tp_btf:t`: never fired"), "{error}");
    }

    #[test]
    fn a_hook_can_be_forced_by_name_or_by_kind() {
        let facts = KernelFacts::fake(&[Need::BtfTracepoint("t")]);
        assert_eq!(plan(&facts, &CHOICE, Some("tp_btf:t")).unwrap().hook.name, "tp_btf:t");
        assert_eq!(plan(&facts, &CHOICE, Some("iter")).unwrap().hook.name, "iter:task");
    }

    #[test]
    fn a_wrong_hook_is_a_usage_error_that_lists_the_right_ones() {
        let error = plan(&KernelFacts::fake(&[]), &CHOICE, Some("nonsense")).unwrap_err();
        assert_eq!(error.kind(), Kind::Usage);
        assert!(error.to_string().contains("fentry:f, tp_btf:t, iter:task"), "{error}");
    }

    #[test]
    fn a_hook_that_cannot_attach_here_names_those_that_can() {
        let error = plan(&KernelFacts::fake(&[]), &CHOICE, Some("fentry")).unwrap_err();
        assert_eq!(error.kind(), Kind::Kernel);
        assert!(error.to_string().ends_with("usable here: iter:task"), "{error}");
    }
}

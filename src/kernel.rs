//! Facts about the running kernel. Reads BTF, tracefs and the symbol table and
//! makes trial loads; decides nothing (see [`crate::attach`] for the rules).

use std::cell::OnceCell;
use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::CString;
use std::fmt;
use std::fs;
use std::mem::MaybeUninit;
use std::path::Path;
use std::path::PathBuf;

use libbpf_rs::AsRawLibbpf as _;
use libbpf_rs::ObjectBuilder;
use libbpf_rs::OpenProgramMut;
use libbpf_rs::ProgramMut;
use libbpf_rs::UprobeMultiOpts;
use libbpf_rs::btf::Btf;
use libbpf_rs::btf::BtfType;
use libbpf_rs::btf::ReferencesType as _;
use libbpf_rs::btf::types;
use libbpf_rs::libbpf_sys;
use libbpf_rs::skel::OpenSkel as _;
use libbpf_rs::skel::Skel as _;
use libbpf_rs::skel::SkelBuilder as _;

use crate::error::Context as _;
use crate::error::Error;
use crate::error::Result;
use crate::pagemap;
use crate::perf;
use crate::uprobe;

#[allow(missing_docs, clippy::all, clippy::restriction, unreachable_pub)]
mod trial {
    include!(concat!(env!("OUT_DIR"), "/trial.skel.rs"));
}

/// The kernel's own type information (`CONFIG_DEBUG_INFO_BTF`).
pub const VMLINUX_BTF: &str = "/sys/kernel/btf/vmlinux";

/// One thing a hook may need of the kernel. Answered by presence or by trial,
/// never by version number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Need {
    /// Type information built into the kernel; BTF tracepoints, fentry and
    /// iterators are verified against it and cannot use a file.
    KernelBtf,
    /// A function under its plain name: in BTF, so its arguments are known, and
    /// in the symbol table, so it was neither inlined nor cloned (`.isra.0`).
    Func(&'static str),
    /// A function takes so many arguments, according to BTF.
    Params(&'static str, u32),
    /// A function BPF programs may call (`BPF_FUNC_<name>`).
    Helper(&'static str),
    /// A raw tracepoint with BTF (`btf_trace_<name>`).
    BtfTracepoint(&'static str),
    /// A tracepoint of tracefs, `category/name`.
    Tracepoint(&'static str),
    /// A member of a structure.
    Field(&'static str, &'static str),
    /// A kernel symbol in kallsyms; data symbols need `CONFIG_KALLSYMS_ALL`.
    Symbol(&'static str),
    /// BPF programs may read kernel memory (not under lockdown=confidentiality).
    ReadKernel,
    /// Attaching to a function's entry through BPF trampolines works.
    Fentry,
    /// Attaching a kprobe works.
    Kprobe,
    /// Raw tracepoint programs can be run on demand (`BPF_PROG_TEST_RUN`, 5.10).
    TestRun,
    /// The task iterator (5.8).
    TaskIter,
    /// Software events of perf (`perf_event_open(2)`).
    PerfEvents,
    /// A probe on an instruction of a program (perf's `uprobe`).
    Uprobe,
    /// One link for many such probes (6.6).
    UprobeMulti,
    /// The same, with one program for a function's entry and return (6.13).
    UprobeSession,
    /// Memory of a BPF program's own beside each thread (5.11).
    TaskStorage,
    /// Asking for the pages of a range by what they hold (`PAGEMAP_SCAN`, 6.7).
    PagemapScan,
    /// A file or folder, for example of `/proc`.
    Path(&'static str),
    /// Any one of them.
    OneOf(&'static [Need]),
}

impl fmt::Display for Need {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Need::KernelBtf => f.write_str("built-in type information (BTF)"),
            Need::Func(name) => write!(f, "function `{name}`"),
            Need::Params(name, count) => write!(f, "`{name}` with {count} arguments"),
            Need::Helper(name) => write!(f, "the BPF helper `bpf_{name}`"),
            Need::BtfTracepoint(name) => write!(f, "BTF tracepoint `{name}`"),
            Need::Tracepoint(name) => write!(f, "tracepoint `{name}`"),
            Need::Field(of, name) => write!(f, "`{of}.{name}`"),
            Need::Symbol(name) => write!(f, "symbol `{name}`"),
            Need::ReadKernel => f.write_str("reading kernel memory with BPF"),
            Need::Fentry => f.write_str("fentry programs"),
            Need::Kprobe => f.write_str("kprobes"),
            Need::TestRun => f.write_str("running a BPF program on demand"),
            Need::TaskIter => f.write_str("the task iterator"),
            Need::PerfEvents => f.write_str("software events of perf"),
            Need::Uprobe => f.write_str("uprobes"),
            Need::UprobeMulti => f.write_str("uprobe links of many places"),
            Need::UprobeSession => f.write_str("uprobe sessions"),
            Need::TaskStorage => f.write_str("task storage"),
            Need::PagemapScan => f.write_str("the PAGEMAP_SCAN request"),
            Need::Path(path) => write!(f, "`{path}`"),
            Need::OneOf(needs) => {
                let words: Vec<String> = needs.iter().map(Need::to_string).collect();
                f.write_str(&words.join(" or "))
            }
        }
    }
}

/// Three answers: a failed look-up is not a no.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It is there and works.
    Yes,
    /// It is not there, or was refused; why.
    No(String),
    /// Could not tell; why.
    Unknown(String),
}

impl Answer {
    fn of(found: bool, otherwise: impl FnOnce() -> String) -> Self {
        if found { Answer::Yes } else { Answer::No(otherwise()) }
    }
}

/// Queries about one kernel, each answered at most once.
pub struct KernelFacts {
    release: String,
    btf_file: Option<PathBuf>,
    btf: OnceCell<Option<Btf<'static>>>,
    symbols: OnceCell<Option<Vec<u8>>>,
    known: RefCell<HashMap<Need, Answer>>,
    live: bool,
}

impl KernelFacts {
    /// Facts about the running kernel. Nothing is read before it is asked for.
    ///
    /// # Errors
    /// `btf_file` is given and cannot be used.
    pub fn probe(btf_file: Option<&Path>) -> Result<Self> {
        let facts = Self::empty(rustix::system::uname().release().to_string_lossy(), true);
        let Some(path) = btf_file else { return Ok(facts) };
        fs::metadata(path).context(|| format!("--btf `{}`", path.display()))?;
        let btf = Btf::from_path(path).map_err(|_| {
            Error::failure(format!(
                "--btf `{}`: not BTF; give a raw .BTF file (as /sys/kernel/btf/vmlinux is one) \
                 or an ELF file with a .BTF section",
                path.display()
            ))
        })?;
        if find::<types::Struct<'_>>(&btf, "task_struct", libbpf_sys::BTF_KIND_STRUCT).is_none() {
            return Err(Error::failure(format!(
                "--btf `{}`: has no `task_struct`, so it does not describe a kernel",
                path.display()
            )));
        }
        let _ = facts.btf.set(Some(btf));
        Ok(Self { btf_file: Some(path.to_owned()), ..facts })
    }

    /// An invented kernel, for testing rules without one.
    pub fn fake(has: &[Need]) -> Self {
        let facts = Self::empty("0.0.0-fake".into(), false);
        facts.known.borrow_mut().extend(has.iter().map(|&need| (need, Answer::Yes)));
        facts
    }

    fn empty(release: std::borrow::Cow<'_, str>, live: bool) -> Self {
        Self {
            release: release.into_owned(),
            btf_file: None,
            btf: OnceCell::new(),
            symbols: OnceCell::new(),
            known: RefCell::default(),
            live,
        }
    }

    /// The kernel's release, for messages only.
    pub fn release(&self) -> &str {
        &self.release
    }

    /// Gives back what facts are read from, which takes many MiB; what was asked
    /// is remembered, and what is asked later is read again.
    pub fn release_sources(&mut self) {
        if self.btf_file.is_none() {
            self.btf.take();
        }
        self.symbols.take();
    }

    /// How to open a BPF object so that it fits this kernel.
    ///
    /// # Errors
    /// The path given with `--btf` cannot be a C string.
    pub fn object_builder(&self) -> Result<ObjectBuilder> {
        let mut builder = ObjectBuilder::default();
        if let Some(path) = &self.btf_file {
            builder.btf_custom_path(path)?;
        }
        Ok(builder)
    }

    /// The file given with `--btf`.
    pub fn btf_file(&self) -> Option<&Path> {
        self.btf_file.as_deref()
    }

    /// Whether this kernel has what `need` names.
    pub fn answer(&self, need: Need) -> Answer {
        if let Some(known) = self.known.borrow().get(&need) {
            return known.clone();
        }
        let answer = if self.live { self.look(need) } else { Answer::No("not here".into()) };
        self.known.borrow_mut().insert(need, answer.clone());
        answer
    }

    /// Whether `need` is surely met.
    pub fn has(&self, need: Need) -> bool {
        self.answer(need) == Answer::Yes
    }

    /// The value of an enumerator, by name. `None` if this kernel has it not.
    pub fn enumerator(&self, enumeration: &str, name: &str) -> Option<i64> {
        let btf = self.btf()?;
        let named = |found: Option<&std::ffi::OsStr>| found.is_some_and(|found| found == name);
        let plain: Option<types::Enum<'_>> = find(btf, enumeration, libbpf_sys::BTF_KIND_ENUM);
        if let Some(plain) = plain {
            return plain.iter().find(|member| named(member.name)).map(|member| member.value);
        }
        let wide: types::Enum64<'_> = find(btf, enumeration, libbpf_sys::BTF_KIND_ENUM64)?;
        wide.iter().find(|member| named(member.name)).and_then(|m| i64::try_from(m.value).ok())
    }

    /// The enumerators of an enumeration without a name, by what its first one
    /// begins and ends with; their own names come without both. Empty: there is
    /// none.
    pub fn enumerators(&self, prefix: &str, suffix: &str) -> Vec<(String, i64)> {
        let inner = |name: Option<&std::ffi::OsStr>| {
            let name = name?.to_str()?.strip_prefix(prefix)?.strip_suffix(suffix)?;
            Some(name.to_owned())
        };
        let found = self.btf().filter(|_| self.live).and_then(|btf| {
            (1..u32::try_from(btf.len()).ok()?).find_map(|id| {
                let candidate: types::Enum<'_> = btf.type_by_id(id.into())?;
                let is_it = candidate.name().is_none_or(|name| name.is_empty())
                    && candidate.iter().next().is_some_and(|first| inner(first.name).is_some());
                is_it.then(|| {
                    candidate.iter().filter_map(|it| Some((inner(it.name)?, it.value))).collect()
                })
            })
        });
        found.unwrap_or_default()
    }

    /// What tracefs says of a tracepoint, `category/name`: its fields and how they
    /// are printed. `None` if there is none, or it may not be read.
    pub fn event_format(&self, name: &str) -> Option<String> {
        let read =
            |root| fs::read_to_string(Path::new(root).join("events").join(name).join("format"));
        TRACEFS.into_iter().filter(|_| self.live).find_map(|root| read(root).ok())
    }

    /// The name of the type a function returns, according to BTF.
    pub fn returns(&self, func: &str) -> Option<String> {
        let func: types::Func<'_> = find(self.btf()?, func, libbpf_sys::BTF_KIND_FUNC)?;
        let proto = types::FuncProto::try_from(func.referenced_type()).ok()?;
        Some(proto.referenced_type().name()?.to_str()?.to_owned())
    }

    fn btf(&self) -> Option<&Btf<'static>> {
        self.btf.get_or_init(|| Btf::from_vmlinux().ok()).as_ref()
    }

    fn look(&self, need: Need) -> Answer {
        match need {
            Need::KernelBtf => Answer::of(Path::new(VMLINUX_BTF).exists(), || {
                format!("no {VMLINUX_BTF}: the kernel was built without CONFIG_DEBUG_INFO_BTF")
            }),
            Need::Func(name) => self.func(name),
            Need::Params(name, count) => self.in_btf(|btf| {
                let found = params(btf, name);
                Answer::of(found == Some(count), || match found {
                    Some(other) => format!("it takes {other} here"),
                    None => "not in BTF".into(),
                })
            }),
            Need::Helper(name) => match self.enumerator("bpf_func_id", &helper(name)) {
                Some(_) => Answer::Yes,
                None => self.in_btf(|_| Answer::No("not on this kernel".into())),
            },
            Need::BtfTracepoint(name) => self.in_btf(|btf| {
                let name = format!("btf_trace_{name}");
                let found: Option<types::Typedef<'_>> =
                    find(btf, &name, libbpf_sys::BTF_KIND_TYPEDEF);
                Answer::of(found.is_some(), || "not on this kernel".into())
            }),
            Need::Tracepoint(name) => tracepoint(name),
            Need::Field(of, name) => self.in_btf(|btf| {
                let ty: Option<types::Struct<'_>> = find(btf, of, libbpf_sys::BTF_KIND_STRUCT);
                Answer::of(ty.is_some_and(|ty| has_member(btf, &ty, name, 0)), || {
                    "not on this kernel".into()
                })
            }),
            Need::Symbol(name) => self.symbol(name),
            Need::PerfEvents => match perf::try_open() {
                Ok(()) => Answer::Yes,
                Err(error) => Answer::No(format!("refused on trial ({error})")),
            },
            Need::Uprobe => trial(
                "try_uprobe",
                |_| (),
                |program| {
                    let (path, offset) = landmark()?;
                    drop(program.attach_uprobe(false, own_pid(), path, offset)?);
                    Ok(())
                },
            ),
            Need::UprobeMulti => try_many(libbpf_sys::BPF_TRACE_UPROBE_MULTI),
            Need::UprobeSession => try_many(libbpf_sys::BPF_TRACE_UPROBE_SESSION),
            Need::TaskStorage => trial(
                "try_storage",
                |_| (),
                |program| {
                    // It loads where storage is known, and finds some where the
                    // kernel can also allocate it.
                    match program.test_run(libbpf_rs::ProgramInput::default())?.return_value {
                        1 => Ok(()),
                        _ => Err(Error::failure("the kernel allocates none")),
                    }
                },
            ),
            Need::ReadKernel => trial("try_read", |_| (), |_| Ok(())),
            Need::TestRun => trial(
                "try_read",
                |_| (),
                |program| {
                    program.test_run(libbpf_rs::ProgramInput::default())?;
                    Ok(())
                },
            ),
            Need::Fentry => trial("try_fentry", |_| (), attach_once),
            Need::Kprobe => {
                if Path::new("/sys/bus/event_source/devices/kprobe/type").exists() {
                    trial("try_kprobe", |_| (), attach_once)
                } else {
                    Answer::No("the kernel was built without kprobes".into())
                }
            }
            Need::TaskIter => self.in_btf(|btf| {
                Answer::of(has_func(btf, "bpf_iter_task"), || "came with 5.8".into())
            }),
            Need::PagemapScan => match pagemap::try_scan() {
                Ok(()) => Answer::Yes,
                Err(error) => Answer::No(format!("came with 6.7 ({})", brief(&error))),
            },
            Need::Path(path) => Answer::of(Path::new(path).exists(), || "not there".into()),
            Need::OneOf(needs) => Answer::of(needs.iter().any(|&need| self.has(need)), || {
                "none of them is on this kernel".into()
            }),
        }
    }

    fn in_btf(&self, look: impl FnOnce(&Btf<'static>) -> Answer) -> Answer {
        self.btf().map_or_else(|| Answer::Unknown("no type information (BTF)".into()), look)
    }

    fn func(&self, name: &'static str) -> Answer {
        let in_btf = self.in_btf(|btf| {
            Answer::of(has_func(btf, name), || {
                "inlined, cloned or renamed by this kernel's build (not in BTF)".into()
            })
        });
        if in_btf == Answer::Yes { self.symbol(name) } else { in_btf }
    }

    /// The address of a kernel symbol; `None` if there is none, or it is hidden
    /// from us (`kptr_restrict`).
    pub fn address(&self, name: &str) -> Option<u64> {
        let line = symbol_line(self.symbols()?, name)?;
        let digits = std::str::from_utf8(line.split(|&byte| byte == b' ').next()?).ok()?;
        u64::from_str_radix(digits, 16).ok().filter(|&address| address != 0)
    }

    /// Where the code of a function of the kernel is; `None` as for [`Self::address`].
    pub fn code_of(&self, name: &str) -> Option<std::ops::Range<u64>> {
        let start = self.address(name)?;
        let lines = self.symbols()?.split(|&byte| byte == b'\n');
        let addresses = lines.filter_map(|line| {
            let digits = std::str::from_utf8(line.get(..16)?).ok()?;
            u64::from_str_radix(digits, 16).ok()
        });
        Some(start..addresses.filter(|&address| address > start).min()?)
    }

    fn symbol(&self, name: &str) -> Answer {
        let Some(symbols) = self.symbols() else {
            return Answer::Unknown("/proc/kallsyms cannot be read".into());
        };
        Answer::of(symbol_line(symbols, name).is_some(), || {
            "no such symbol in /proc/kallsyms".into()
        })
    }

    /// Some 9 MB, read only if a hook depends on it.
    fn symbols(&self) -> Option<&[u8]> {
        self.symbols.get_or_init(|| fs::read("/proc/kallsyms").ok()).as_deref()
    }
}

/// Where tracefs is, on its own or within debugfs; libbpf looks at both.
const TRACEFS: [&str; 2] = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"];

fn tracepoint(name: &str) -> Answer {
    let folders = TRACEFS.map(|root| Path::new(root).join("events"));
    let Some(events) = folders.iter().find(|folder| folder.exists()) else {
        return Answer::No("tracefs is not mounted, or may not be read".into());
    };
    Answer::of(events.join(name).join("id").exists(), || "not on this kernel".into())
}

/// The line "address type name" of a symbol of the kernel itself; a module's
/// has "\t[module]" behind the name.
fn symbol_line<'text>(symbols: &'text [u8], name: &str) -> Option<&'text [u8]> {
    let wanted = [b" ", name.as_bytes()].concat();
    symbols.split(|&byte| byte == b'\n').find(|line| line.ends_with(&wanted))
}

/// The type of a name and kind. A name alone does not do: a function and a
/// structure may share it (`bpf_iter_task` since 6.7).
fn find<'btf, T: TryFrom<BtfType<'btf>>>(
    btf: &'btf Btf<'static>,
    name: &str,
    kind: u32,
) -> Option<T> {
    let name = CString::new(name).ok()?;
    // SAFETY: both pointers are valid for the call, which keeps neither.
    let id = unsafe {
        libbpf_sys::btf__find_by_name_kind(btf.as_libbpf_object().as_ptr(), name.as_ptr(), kind)
    };
    btf.type_by_id(u32::try_from(id).ok()?.into())
}

/// The enumerator of a function BPF programs may call.
fn helper(name: &str) -> String {
    format!("BPF_FUNC_{name}")
}

/// How many arguments a function takes.
fn params(btf: &Btf<'static>, name: &str) -> Option<u32> {
    let func: types::Func<'_> = find(btf, name, libbpf_sys::BTF_KIND_FUNC)?;
    let proto = types::FuncProto::try_from(func.referenced_type()).ok()?;
    u32::try_from(proto.iter().count()).ok()
}

fn has_func(btf: &Btf<'static>, name: &str) -> bool {
    find::<types::Func<'_>>(btf, name, libbpf_sys::BTF_KIND_FUNC).is_some()
}

/// Whether a structure has a member, also inside unnamed structures.
fn has_member(btf: &Btf<'_>, ty: &types::Struct<'_>, name: &str, depth: u32) -> bool {
    ty.iter().any(|member| match member.name {
        Some(found) if !found.is_empty() => found == name,
        _ => {
            depth < 8
                && btf
                    .type_by_id::<types::Struct<'_>>(member.ty)
                    .is_some_and(|inner| has_member(btf, &inner, name, depth + 1))
        }
    })
}

/// Loads one program of the trial object, after `before` has set it up, and has
/// `then` do something with it.
fn trial(
    name: &str,
    before: impl FnOnce(&OpenProgramMut<'_>),
    then: impl FnOnce(&ProgramMut<'_>) -> Result<()>,
) -> Answer {
    let tried = || -> Result<()> {
        let mut storage = MaybeUninit::uninit();
        let mut skel = trial::TrialSkelBuilder::default().open(&mut storage)?;
        let mut before = Some(before);
        skel.maps.try_threads.set_autocreate(name == "try_storage")?;
        for mut candidate in skel.open_object_mut().progs_mut() {
            let chosen = candidate.name() == name;
            candidate.set_autoload(chosen);
            if let (true, Some(before)) = (chosen, before.take_if(|_| chosen)) {
                before(&candidate);
            }
        }
        let skel = skel.load()?;
        let mut programs = skel.object().progs_mut();
        let program = programs
            .find(|program| program.name() == name)
            .ok_or_else(|| Error::failure(format!("no trial program `{name}`")))?;
        then(&program)
    };
    match tried() {
        Ok(()) => Answer::Yes,
        Err(error) => Answer::No(format!("refused on trial ({})", brief(&error))),
    }
}

/// That it attached is all there is to learn.
fn attach_once(program: &ProgramMut<'_>) -> Result<()> {
    drop(program.attach()?);
    Ok(())
}

/// One link of many probes, here one, of the given type of attachment.
fn try_many(kind: libbpf_sys::bpf_attach_type) -> Answer {
    trial(
        "try_uprobe",
        |program| uprobe::set_attach_type(program, kind),
        |program| {
            let (path, offset) = landmark()?;
            let session = kind == libbpf_sys::BPF_TRACE_UPROBE_SESSION;
            let opts = UprobeMultiOpts { offsets: vec![offset], session, ..Default::default() };
            drop(program.attach_uprobe_multi_with_opts(own_pid(), path, "", opts)?);
            Ok(())
        },
    )
}

/// A function of this program that nobody calls, to put probes on: its file
/// and where in it.
fn landmark() -> Result<(PathBuf, usize)> {
    #[inline(never)]
    extern "C" fn nobody_calls_this() {
        std::hint::black_box(());
    }
    let path = PathBuf::from("/proc/self/exe");
    let address = std::hint::black_box(nobody_calls_this as extern "C" fn()) as usize as u64;
    let maps = procfs::process::Process::myself().and_then(|me| me.maps());
    let maps = maps.map_err(|error| Error::failure(format!("reading own mappings: {error}")))?;
    let map = maps.iter().find(|map| (map.address.0..map.address.1).contains(&address));
    let offset = map.map(|map| address - map.address.0 + map.offset);
    let offset = offset.ok_or_else(|| Error::failure("own code is not mapped"))?;
    Ok((path, usize::try_from(offset).unwrap_or(usize::MAX)))
}

fn own_pid() -> i32 {
    rustix::process::getpid().as_raw_nonzero().get()
}

/// The innermost cause, which is the kernel's own word.
fn brief(error: &Error) -> String {
    let text = error.to_string();
    let last = text.rsplit(": ").next().unwrap_or_default();
    last.split(" (os error").next().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_invented_kernel_has_what_it_was_given_and_nothing_else() {
        let facts = KernelFacts::fake(&[Need::Fentry]);
        assert!(facts.has(Need::Fentry));
        assert!(!facts.has(Need::Kprobe));
    }

    #[test]
    fn a_symbol_is_found_only_under_its_whole_name() {
        let text =
            b"ffff10 t finish_task_switch.isra.0\n0 T my_finish\t[mod]\nffff20 D node_data\n";
        assert_eq!(symbol_line(text, "finish_task_switch"), None);
        assert_eq!(symbol_line(text, "my_finish"), None);
        assert_eq!(symbol_line(text, "data"), None);
        assert_eq!(symbol_line(text, "node_data"), Some(&b"ffff20 D node_data"[..]));
    }

    #[test]
    fn a_file_that_is_not_btf_is_refused_by_name() {
        let error = KernelFacts::probe(Some(Path::new("/proc/self/status"))).err().unwrap();
        assert!(error.to_string().contains("/proc/self/status"), "{error}");
        let error = KernelFacts::probe(Some(Path::new("/nonexistent"))).err().unwrap();
        assert!(error.to_string().contains("No such file"), "{error}");
    }
}

//! The empty programs of `empty.bpf.c`, attached while an [`Empty`] lives.

use std::collections::BTreeSet;
use std::mem::MaybeUninit;
use std::os::fd::AsFd as _;

use libbpf_rs::Link;
use libbpf_rs::OpenObject;
use libbpf_rs::Program;
use libbpf_rs::ProgramMut;
use libbpf_rs::TracepointCategory;
use libbpf_rs::skel::OpenSkel as _;
use libbpf_rs::skel::Skel as _;
use libbpf_rs::skel::SkelBuilder as _;
use mem_watcher::allocators;
use mem_watcher::allocators::Call;
use mem_watcher::elf::Elf;
use mem_watcher::maps::Maps;
use mem_watcher::maps::Objects;
use mem_watcher::perf;
use mem_watcher::perf::Events;
use mem_watcher::procfs::ProcFs;
use mem_watcher::uprobe;
use mem_watcher::uprobe::Method;
use mem_watcher::uprobe::Place;
use mem_watcher::uprobe::Side;

use crate::Result;

#[allow(warnings, clippy::all, clippy::restriction)]
mod skel {
    include!(concat!(env!("OUT_DIR"), "/empty.skel.rs"));
}

/// Attached programs that do nothing. Dropping it detaches them.
pub(crate) struct Empty {
    /// A link keeps its program, so the rest of the object can go.
    _links: Vec<Link>,
    _events: Option<Events>,
    /// The kernel's numbers of the programs.
    pub(crate) ids: BTreeSet<u32>,
}

impl Empty {
    /// Attaches the empty program that belongs to `hook`, a hook of procstat,
    /// anon, faults or paf as `mem_watcher doctor` names it.
    pub(crate) fn attach(hook: &str) -> Result<Self> {
        let name = match hook {
            "fentry:finish_task_switch" => "empty_finish",
            "tp_btf:sched_switch" => "empty_switch",
            "fexit:do_anonymous_page" => "empty_anon",
            "tp_btf:rss_stat" => "empty_rss_stat",
            "fexit:handle_mm_fault" => "empty_fault",
            "fentry:get_page_from_freelist" => "empty_attempt",
            "tp_btf:mm_page_alloc" => "empty_alloc",
            "perf:page-faults" => "empty_event",
            _ => return Err(format!("no empty program is made for the hook {hook}").into()),
        };
        let mut storage = MaybeUninit::uninit();
        let skel = load(&mut storage, None, &[name])?;
        let program = uprobe::program(skel.object(), name)?;
        let ids = BTreeSet::from([id(&program)?]);
        if name == "empty_event" {
            let faults = [(name, perf::PAGE_FAULTS_MIN), (name, perf::PAGE_FAULTS_MAJ)];
            let events = Events::attach(skel.object(), &ProcFs::default(), &faults)?;
            return Ok(Self { _links: Vec::new(), _events: Some(events), ids });
        }
        Ok(Self { _links: vec![program.attach_trace()?], _events: None, ids })
    }

    /// Attaches the empty program to trace events, `category:name` each.
    pub(crate) fn attach_to_events(events: &[&str]) -> Result<Self> {
        let mut storage = MaybeUninit::uninit();
        let skel = load(&mut storage, None, &["empty_call"])?;
        let program = uprobe::program(skel.object(), "empty_call")?;
        let mut links = Vec::new();
        for event in events {
            let (category, name) = event.split_once(':').ok_or("no category")?;
            let category = TracepointCategory::Custom(category.to_owned());
            links.push(program.attach_tracepoint(category, name)?);
        }
        Ok(Self { _links: links, _events: None, ids: BTreeSet::from([id(&program)?]) })
    }

    /// Attaches empty programs to the functions of a process that memleak
    /// attaches to, in the way of `hook`, a hook of memleak.
    pub(crate) fn attach_to_allocators(hook: &str, pid: u32) -> Result<Self> {
        let method = match hook.split(':').next() {
            Some("uprobe.session") => Method::Session,
            Some("uprobe.multi") => Method::Multi,
            Some("uprobe") => Method::Single,
            _ => return Err(format!("no empty program is made for the hook {hook}").into()),
        };
        let entry = ("empty_entry", Side::Entry);
        let given = match method {
            Method::Session => vec![("empty_both", Side::Both)],
            _ => vec![entry, ("empty_return", Side::Return)],
        };
        let mut storage = MaybeUninit::uninit();
        let names: Vec<&str> = given.iter().chain([&entry]).map(|(name, _)| *name).collect();
        let skel = load(&mut storage, Some(method), &names)?;
        let (mut links, mut ids) = (Vec::new(), BTreeSet::new());
        let maps = Maps::read(&ProcFs::new("/"), pid, &mut Objects::default())?;
        for object in maps.executables() {
            let data = object.data()?;
            // The vdso and their like are no files to search.
            let Ok(elf) = Elf::parse(&data) else { continue };
            let points = allocators::search(&elf, &[]).points;
            let (seen_twice, seen_once): (Vec<_>, Vec<_>) = points.iter().partition(|point| {
                !point.wrapper && !matches!(point.call, Call::Release | Call::Map)
            });
            let attached = given.iter().map(|how| (how, &seen_twice));
            for (&(name, side), points) in attached.chain([(&entry, &seen_once)]) {
                let places: Vec<Place> =
                    points.iter().map(|point| Place { offset: point.probe, cookie: 0 }).collect();
                let program = uprobe::program(skel.object(), name)?;
                links.extend(method.attach(&program, side, pid, &object.fd_path(), &places)?);
                ids.insert(id(&program)?);
            }
        }
        Ok(Self { _links: links, _events: None, ids })
    }
}

/// Loads the programs of these names, those for functions to be attached with
/// `method`.
fn load<'obj>(
    storage: &'obj mut MaybeUninit<OpenObject>,
    method: Option<Method>,
    names: &[&str],
) -> Result<skel::EmptySkel<'obj>> {
    let mut open = skel::EmptySkelBuilder::default().open(storage)?;
    for mut program in open.open_object_mut().progs_mut() {
        let name = program.name().to_string_lossy().into_owned();
        program.set_autoload(names.contains(&name.as_str()));
        let side = match name.as_str() {
            "empty_entry" => Side::Entry,
            "empty_return" => Side::Return,
            "empty_both" => Side::Both,
            _ => continue,
        };
        if let Some(method) = method {
            uprobe::set_attach_type(&program, method.attach_type(side));
        }
    }
    Ok(open.load()?)
}

fn id(program: &ProgramMut<'_>) -> Result<u32> {
    Ok(Program::id_from_fd(program.as_fd())?)
}

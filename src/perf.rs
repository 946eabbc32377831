//! Software events of perf with a BPF program on every CPU.

use std::collections::BTreeMap;
use std::io;
use std::io::Read as _;
use std::os::fd::AsRawFd as _;
use std::os::fd::FromRawFd as _;
use std::os::fd::IntoRawFd as _;
use std::os::fd::OwnedFd;

use libbpf_rs::Link;
use libbpf_rs::Object;
use libbpf_rs::libbpf_sys;

use crate::error::Context as _;
use crate::error::Error;
use crate::error::Result;
use crate::procfs::ProcFs;

/// `enum perf_sw_ids` (include/uapi/linux/perf_event.h): page faults that did
/// not have to wait for a device.
pub const PAGE_FAULTS_MIN: u64 = 5;
/// Those that had to.
pub const PAGE_FAULTS_MAJ: u64 = 6;

/// `PERF_TYPE_SOFTWARE`, of the same file, as what follows.
const TYPE_SOFTWARE: u32 = 1;
/// `PERF_SAMPLE_ADDR`: the program is told the address.
const SAMPLE_ADDR: u64 = 1 << 3;
/// `PERF_FLAG_FD_CLOEXEC`.
const FD_CLOEXEC: libc::c_ulong = 1 << 3;

/// Opens a software event that occurs on a CPU (`perf_event_open(2)`), each
/// time it does. Events of period 1 are never throttled: `perf_swevent_overflow()`
/// (kernel/events/core.c) asks for that only from the second overflow of one
/// occurrence on.
fn open(config: u64, pid: libc::pid_t, cpu: i32) -> io::Result<OwnedFd> {
    let mut attr = libbpf_sys::perf_event_attr {
        type_: TYPE_SOFTWARE,
        size: size_of::<libbpf_sys::perf_event_attr>() as u32,
        config,
        sample_type: SAMPLE_ADDR,
        ..Default::default()
    };
    attr.__bindgen_anon_1.sample_period = 1;
    // It begins to count when its program is attached.
    attr.set_disabled(1);
    // SAFETY: `attr` has the size it names and lives until the call returns; what
    // an older kernel does not know of it is zero, which it accepts.
    let fd = unsafe {
        libc::syscall(libc::SYS_perf_event_open, &raw const attr, pid, cpu, -1, FD_CLOEXEC)
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a new descriptor that nobody else has; descriptors are ints.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Whether such events can be opened at all.
///
/// # Errors
/// They cannot.
pub fn try_open() -> io::Result<()> {
    open(PAGE_FAULTS_MIN, 0, -1).map(drop)
}

/// An event on one CPU.
struct Event {
    _link: Link,
    /// The same event, to read how often it occurred.
    counter: std::fs::File,
}

impl Event {
    fn count(&self) -> u64 {
        let mut bytes = [0; 8];
        // Eight bytes, as no read format is set.
        match (&self.counter).read_exact(&mut bytes) {
            Ok(()) => u64::from_ne_bytes(bytes),
            Err(_) => 0,
        }
    }
}

/// Programs on software events of all CPUs. Dropping it detaches them.
pub struct Events {
    programs: Vec<(&'static str, u64)>,
    cpus: BTreeMap<u32, Vec<Event>>,
    /// What CPUs counted that have gone.
    before: u64,
}

impl Events {
    /// Attaches each program to its event on the CPUs that are online.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn attach(
        object: &Object,
        procfs: &ProcFs,
        programs: &[(&'static str, u64)],
    ) -> Result<Self> {
        let mut events = Self { programs: programs.to_vec(), cpus: BTreeMap::new(), before: 0 };
        events.refresh(object, procfs)?;
        Ok(events)
    }

    /// Attaches to CPUs that have come online, and lets those go that went.
    /// What happened on a new CPU before this is not seen.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn refresh(&mut self, object: &Object, procfs: &ProcFs) -> Result<()> {
        let online = procfs.online_cpus()?;
        let before = &mut self.before;
        self.cpus.retain(|cpu, events| {
            let stays = online.contains(cpu);
            if !stays {
                *before += events.iter().map(Event::count).sum::<u64>();
            }
            stays
        });
        for cpu in online {
            if self.cpus.contains_key(&cpu) {
                continue;
            }
            match on_cpu(object, cpu, &self.programs) {
                Ok(events) => {
                    self.cpus.insert(cpu, events);
                }
                // It has gone again.
                Err(_) if !procfs.online_cpus()?.contains(&cpu) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// How often the events occurred, whether or not a program ran.
    pub fn count(&self) -> u64 {
        self.before + self.cpus.values().flatten().map(Event::count).sum::<u64>()
    }
}

fn on_cpu(object: &Object, cpu: u32, programs: &[(&'static str, u64)]) -> Result<Vec<Event>> {
    let number = i32::try_from(cpu).unwrap_or(i32::MAX);
    let attach = |&(name, config): &(&'static str, u64)| {
        let program = object
            .progs_mut()
            .find(|program| program.name() == name)
            .ok_or_else(|| Error::failure(format!("no program `{name}`")))?;
        let fd = open(config, -1, number)?;
        let counter = std::fs::File::from(fd.try_clone()?);
        let link = program.attach_perf_event(fd.as_raw_fd())?;
        // The link closes it.
        let _ = fd.into_raw_fd();
        Ok(Event { _link: link, counter })
    };
    let events: Result<Vec<Event>> = programs.iter().map(attach).collect();
    events.context(|| format!("attaching to the page-fault events of CPU {cpu}"))
}

//! Attaching the programs of a plan, and counting what they did not see.

use std::cell::Cell;
use std::cell::RefCell;
use std::time::Duration;

use libbpf_rs::Link;
use libbpf_rs::MapCore;
use libbpf_rs::MapFlags;
use libbpf_rs::Object;
use libbpf_rs::ProgramMut;

use crate::attach::Plan;
use crate::error::Result;
use crate::perf;
use crate::procfs::ProcFs;
use crate::skipped;

/// What is attached. Dropping it detaches it.
pub struct Attached<'obj> {
    object: &'obj Object,
    _links: Vec<Link>,
    /// The names of the programs that must see every fault.
    counting: &'static [&'static str],
    events: Option<RefCell<perf::Events>>,
    /// What is known to be missed of the events.
    missed: Cell<u64>,
}

/// How often, and how long, to wait for a program that may just be running.
const WAITS: u32 = 200;
const WAIT: Duration = Duration::from_millis(1);

impl<'obj> Attached<'obj> {
    /// Attaches the programs of `plan`; `on_events` are those for the page-fault
    /// events, for minor faults and, if there is one, for major ones.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn new(
        object: &'obj Object,
        plan: &Plan,
        procfs: &ProcFs,
        on_events: &[&'static str],
    ) -> Result<Self> {
        let numbers = [perf::PAGE_FAULTS_MIN, perf::PAGE_FAULTS_MAJ];
        let programs: Vec<_> = on_events.iter().copied().zip(numbers).collect();
        Self::with_links(object, plan, procfs, plan.attach(object)?, &programs)
    }

    /// The same for programs that are attached already, and others, each for the
    /// event of that number.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn with_links(
        object: &'obj Object,
        plan: &Plan,
        procfs: &ProcFs,
        links: Vec<Link>,
        programs: &[(&'static str, u64)],
    ) -> Result<Self> {
        let events = if programs.is_empty() {
            None
        } else {
            Some(RefCell::new(perf::Events::attach(object, procfs, programs)?))
        };
        Ok(Self { object, _links: links, counting: plan.hook.attach, events, missed: Cell::new(0) })
    }

    /// Attaches to CPUs that have come online.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn refresh(&self, procfs: &ProcFs) -> Result<()> {
        match &self.events {
            Some(events) => events.borrow_mut().refresh(self.object, procfs),
            None => Ok(()),
        }
    }

    /// How many faults no program saw: it was running already on that CPU. Of the
    /// page-fault events that is known on every kernel, since they count by
    /// themselves; of other programs see [`skipped::runs`].
    pub fn missed(&self, runs: &impl MapCore) -> u64 {
        let Some(events) = &self.events else {
            let counting = |program: &ProgramMut<'_>| {
                program.name().to_str().is_some_and(|name| self.counting.contains(&name))
            };
            return self.object.progs_mut().filter(counting).map(|it| skipped::runs(&it)).sum();
        };
        // An event is counted before its program runs: read in this order, and
        // waited for those in between, none seems missed that is not.
        let occurred = events.borrow().count();
        let mut missed = 0;
        for _ in 0..WAITS {
            missed = occurred.saturating_sub(ran(runs));
            if missed <= self.missed.get() {
                break;
            }
            std::thread::sleep(WAIT);
        }
        self.missed.set(missed);
        missed
    }
}

/// How often the programs of the events ran, on all CPUs.
fn ran(runs: &impl MapCore) -> u64 {
    let parts = runs.lookup_percpu(&0u32.to_ne_bytes(), MapFlags::ANY).ok().flatten();
    let number = |part: &Vec<u8>| Some(u64::from_ne_bytes(*part.first_chunk()?));
    parts.unwrap_or_default().iter().filter_map(number).sum()
}

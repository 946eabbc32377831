//! The three ways to run: a stream of events, a reading every interval, once.
//! The only caller of the ring-buffer API; also decides when a run ends and
//! prints its summary.

use std::cell::RefCell;
use std::io::Read as _;
use std::os::fd::AsFd as _;
use std::os::fd::BorrowedFd;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::time::Duration;
use std::time::Instant;

use libbpf_rs::Iter;
use libbpf_rs::Link;
use libbpf_rs::MapCore;
use libbpf_rs::RingBuffer;
use libbpf_rs::RingBufferBuilder;
use rustix::event::PollFd;
use rustix::event::PollFlags;
use rustix::event::Timespec;

use crate::context::Context;
use crate::error::Context as _;
use crate::error::Error;
use crate::error::Kind;
use crate::error::Result;
use crate::event::Event;
use crate::event::decode;
use crate::output::Header;
use crate::output::Printer;
use crate::output::Summary;
use crate::output::note;

/// Records copied out of the ring at a time; between two batches the stop flag
/// and the clock are looked at.
const BATCH: usize = 4096;

/// How long a run that ends goes on emptying a ring that is still being filled.
const LAST_DRAIN: Duration = Duration::from_millis(200);

/// What the closure of [`stream`] is called with.
pub enum Step<E> {
    /// An event, in the order of the ring.
    Event(E),
    /// An interval is over.
    Report,
    /// The run is over; what it was for can be written.
    End,
}

/// How reports are timed and counted.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// The first report comes at once, not after the first interval.
    pub at_start: bool,
    /// A run that ends within an interval reports what that interval held.
    pub at_end: bool,
    /// `-n` counts rows: each event is a report of its own.
    pub by_row: bool,
}

/// How a tool's run describes itself.
pub struct Run<'run> {
    /// The hook's name.
    pub hook: &'static str,
    /// What is approximate, in words.
    pub notes: Vec<String>,
    /// When to report.
    pub pace: Pace,
    /// Counts what happened and could not be delivered, so far.
    pub lost: &'run dyn Fn() -> u64,
}

/// The reading end of a BPF ring buffer of records `E`.
pub struct Ring {
    ring: RingBuffer<'static>,
    batch: Rc<RefCell<Batch>>,
}

/// Records of one size or another, end to end.
#[derive(Default)]
struct Batch {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl Ring {
    /// Opens the reading end of `map`.
    ///
    /// # Errors
    /// The map is not a ring buffer, or cannot be mapped.
    pub fn new(map: &dyn MapCore) -> Result<Self> {
        let batch = Rc::new(RefCell::new(Batch::default()));
        let filled = Rc::clone(&batch);
        let mut builder = RingBufferBuilder::new();
        // Runs inside a C function, where a panic would abort: it only copies.
        builder
            .add(map, move |bytes| {
                if let Ok(mut batch) = filled.try_borrow_mut() {
                    batch.bytes.extend_from_slice(bytes);
                    let end = batch.bytes.len();
                    batch.ends.push(end);
                }
                0
            })
            .context(|| "opening the ring buffer")?;
        let ring = builder.build().context(|| "opening the ring buffer")?;
        Ok(Self { ring, batch })
    }

    /// Takes at most [`BATCH`] records; fewer means the ring is empty.
    fn take<E: Event>(&self) -> Result<Vec<E>> {
        let taken = self.ring.consume_raw_n(BATCH);
        if taken < 0 {
            return Err(std::io::Error::from_raw_os_error(-taken))
                .context(|| "reading the ring buffer");
        }
        let mut batch = self.batch.borrow_mut();
        let mut events = Vec::with_capacity(batch.ends.len());
        let mut start = 0;
        for &end in &batch.ends {
            events.push(decode(&batch.bytes[start..end])?);
            start = end;
        }
        batch.bytes.clear();
        batch.ends.clear();
        Ok(events)
    }

    fn fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the descriptor belongs to the ring buffer and stays open as
        // long as it lives, which the returned lifetime ensures.
        unsafe { BorrowedFd::borrow_raw(self.ring.epoll_fd()) }
    }
}

/// Runs until the end with events from a ring, and a report every interval.
///
/// # Errors
/// Whatever `each` returns, or the ring or standard output fails.
pub fn stream<E: Event>(
    ctx: &Context,
    run: Run<'_>,
    ring: &Ring,
    printer: Printer,
    mut each: impl FnMut(Step<E>, &mut Printer) -> Result<()>,
) -> Result<()> {
    Session::begin(ctx, run, printer)?.finish(|session| {
        session.drive(Some(ring), &mut each)?;
        each(Step::End, &mut session.printer)
    })
}

/// Runs until the end with a reading every interval.
///
/// # Errors
/// Whatever `each` returns, or standard output fails.
pub fn every(
    ctx: &Context,
    run: Run<'_>,
    printer: Printer,
    mut each: impl FnMut(&mut Printer) -> Result<()>,
) -> Result<()> {
    Session::begin(ctx, run, printer)?
        .finish(|session| session.drive::<u8>(None, |_, printer| each(printer)))
}

/// One report.
///
/// # Errors
/// Whatever `report` returns, or standard output fails.
pub fn once(
    ctx: &Context,
    run: Run<'_>,
    printer: Printer,
    report: impl FnOnce(&mut Printer) -> Result<()>,
) -> Result<()> {
    Session::begin(ctx, run, printer)?.finish(|session| report(&mut session.printer))
}

/// Runs a BPF iterator to its end and returns the records it wrote.
///
/// # Errors
/// The iterator cannot be read, or wrote something else.
pub fn read_iterator<E: Event>(link: &Link) -> Result<Vec<E>> {
    let mut bytes = Vec::new();
    Iter::new(link)
        .and_then(|mut iterator| Ok(iterator.read_to_end(&mut bytes)?))
        .context(|| "reading a BPF iterator")?;
    bytes.chunks(size_of::<E>()).map(decode).collect()
}

/// Runs a BPF iterator to its end and hands each record over, without memory of
/// its own: `room` holds what is read at a time, some records at least.
///
/// # Errors
/// The iterator cannot be read, or wrote something else.
pub fn visit_iterator<E: Event>(
    link: &Link,
    room: &mut [u8],
    mut each: impl FnMut(E),
) -> Result<()> {
    let reading = || "reading a BPF iterator";
    let mut iterator = Iter::new(link).context(reading)?;
    let mut filled = 0;
    loop {
        match iterator.read(&mut room[filled..]) {
            Ok(0) => break,
            Ok(more) => filled += more,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error).context(reading),
        }
        let whole = filled / size_of::<E>() * size_of::<E>();
        for bytes in room[..whole].chunks_exact(size_of::<E>()) {
            each(decode(bytes)?);
        }
        // A reading may end within a record.
        room.copy_within(whole..filled, 0);
        filled -= whole;
    }
    if filled == 0 { Ok(()) } else { Err(Error::failure("a BPF iterator wrote half a record")) }
}

struct Session<'run> {
    ctx: &'run Context,
    run: Run<'run>,
    printer: Printer,
    started: Instant,
    events: u64,
    lost_shown: u64,
}

impl<'run> Session<'run> {
    fn begin(ctx: &'run Context, run: Run<'run>, printer: Printer) -> Result<Self> {
        for text in &run.notes {
            note(text);
        }
        let mut session =
            Self { ctx, run, printer, started: Instant::now(), events: 0, lost_shown: 0 };
        let header = Header {
            command: ctx.command,
            kernel: ctx.kernel.release().to_owned(),
            hook: session.run.hook.to_owned(),
            notes: session.run.notes.clone(),
        };
        session.printer.begin(&header)?;
        // Whoever reads learns now that everything is attached.
        session.printer.flush()?;
        Ok(session)
    }

    /// Runs `body`, then prints what closes the output, whatever happened.
    fn finish(mut self, body: impl FnOnce(&mut Self) -> Result<()>) -> Result<()> {
        let result = body(&mut self);
        let summary = Summary {
            rows: self.printer.rows(),
            events: self.events,
            lost: (self.run.lost)(),
            elapsed_s: self.started.elapsed().as_secs_f64(),
        };
        let closed = self.printer.end(&summary);
        note(&format!(
            "{}: {} rows, {} events, {} lost, {:.3} s",
            self.ctx.command, summary.rows, summary.events, summary.lost, summary.elapsed_s
        ));
        match result.and(closed) {
            // The reader has seen enough: a normal end.
            Err(error) if error.kind() == Kind::ClosedPipe => Ok(()),
            other => other,
        }
    }

    fn drive<E: Event>(
        &mut self,
        ring: Option<&Ring>,
        mut each: impl FnMut(Step<E>, &mut Printer) -> Result<()>,
    ) -> Result<()> {
        let limits = self.ctx.limits;
        let end = limits.duration.and_then(|duration| self.started.checked_add(duration));
        let mut due = self.started;
        if !self.run.pace.at_start {
            due += limits.interval;
        }
        let mut targets: Vec<&OwnedFd> = self.ctx.target.pidfds.iter().collect();
        let followed = !targets.is_empty();
        let mut reports = 0;
        loop {
            let until = end.map_or(due, |end| end.min(due));
            let ready = self.wait(ring, &targets, until)?;
            if let Some(ring) = ring {
                self.drain(ring, until, &mut each)?;
            }
            if self.run.pace.by_row && self.has_rows(limits.count) {
                return Ok(());
            }
            let now = Instant::now();
            if now >= due {
                each(Step::Report, &mut self.printer)?;
                self.after_report()?;
                reports += 1;
                if !self.run.pace.by_row && limits.count.is_some_and(|count| reports >= count) {
                    return Ok(());
                }
                // A report that took longer than the interval skips beats.
                while due <= Instant::now() {
                    due += limits.interval;
                }
            } else {
                self.printer.flush()?;
            }
            if ready.reader_gone {
                return Ok(());
            }
            targets.retain(|fd| !has_exited(fd));
            let stopped = self.ctx.stop.is_set();
            let exited = followed && targets.is_empty();
            if stopped || exited || end.is_some_and(|end| now >= end) {
                if exited && !stopped {
                    note("every process asked for has exited");
                }
                if self.run.pace.at_end && now < due {
                    if let Some(ring) = ring {
                        self.drain(ring, Instant::now() + LAST_DRAIN, &mut each)?;
                    }
                    each(Step::Report, &mut self.printer)?;
                    self.after_report()?;
                }
                return Ok(());
            }
        }
    }

    /// Empties the ring, batch by batch, unless a signal asks for the end or
    /// `until` comes: a ring that fills as fast as it is read has no end.
    fn drain<E: Event>(
        &mut self,
        ring: &Ring,
        until: Instant,
        each: &mut impl FnMut(Step<E>, &mut Printer) -> Result<()>,
    ) -> Result<()> {
        loop {
            let events = ring.take::<E>()?;
            let full = events.len() >= BATCH;
            self.events += events.len() as u64;
            for event in events {
                each(Step::Event(event), &mut self.printer)?;
                if self.run.pace.by_row && self.has_rows(self.ctx.limits.count) {
                    return Ok(());
                }
            }
            if !full || self.ctx.stop.is_set() || Instant::now() >= until {
                return Ok(());
            }
        }
    }

    fn has_rows(&self, count: Option<u64>) -> bool {
        count.is_some_and(|count| self.printer.rows() >= count)
    }

    fn after_report(&mut self) -> Result<()> {
        self.printer.flush()?;
        let lost = (self.run.lost)();
        if lost > self.lost_shown {
            note(&format!("{}: {lost} events lost so far", self.ctx.command));
            self.lost_shown = lost;
        }
        Ok(())
    }

    /// Sleeps until `until`, or something happens before.
    fn wait(&self, ring: Option<&Ring>, targets: &[&OwnedFd], until: Instant) -> Result<Ready> {
        let stdout = rustix::stdio::stdout();
        let mut fds = vec![
            PollFd::from_borrowed_fd(self.ctx.stop.as_fd(), PollFlags::IN),
            // No event asked for: only the reader's going away is reported.
            PollFd::from_borrowed_fd(stdout, PollFlags::empty()),
        ];
        fds.extend(targets.iter().map(|fd| PollFd::new(*fd, PollFlags::IN)));
        fds.extend(ring.map(|ring| PollFd::from_borrowed_fd(ring.fd(), PollFlags::IN)));
        let timeout = timespec(until.saturating_duration_since(Instant::now()));
        match rustix::event::poll(&mut fds, Some(&timeout)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno).context(|| "waiting for events"),
        }
        let gone = PollFlags::ERR | PollFlags::HUP | PollFlags::NVAL;
        Ok(Ready { reader_gone: fds[1].revents().intersects(gone) })
    }
}

struct Ready {
    reader_gone: bool,
}

fn timespec(duration: Duration) -> Timespec {
    // A year at most (see cli.rs), so neither conversion can overflow.
    Timespec {
        tv_sec: duration.as_secs().try_into().unwrap_or(i64::from(i32::MAX)),
        tv_nsec: duration.subsec_nanos().into(),
    }
}

fn has_exited(fd: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(fd, PollFlags::IN)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    rustix::event::poll(&mut fds, Some(&now)).is_ok_and(|ready| ready > 0)
}

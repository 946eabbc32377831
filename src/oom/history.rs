//! What the machine looked like in the moments before a kill: noted at each
//! interval into a ring of fixed size, so that a kill costs no look around.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;

use super::commands::Commands;
use super::commands::Who;
use crate::event::text;
use crate::output::ALWAYS;
use crate::output::Column;
use crate::output::MACHINE;
use crate::output::Row;
use crate::output::Rows;
use crate::output::Unit;
use crate::output::Value;
use crate::procfs::ProcFs;
use crate::time::WallTime;
use crate::time::monotonic_ns;
use crate::time::wall_time;
use crate::units::pages_to_bytes;

/// Moments that are kept.
pub const TICKS: usize = 60;

/// Processes kept of each moment.
pub const TOP: usize = 10;

/// `/proc/vmstat` has 10 KiB on the largest kernels.
const TEXT_BYTES: usize = 32 << 10;

/// A process at one moment. Sizes in pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Process {
    /// Which process.
    pub who: Who,
    /// Resident anonymous memory.
    pub anon: u64,
    /// Resident memory of files.
    pub file: u64,
    /// Resident shared memory.
    pub shmem: u64,
    /// Swapped out.
    pub swap: u64,
    /// Its oom_score_adj.
    pub score_adj: i32,
}

impl Process {
    /// What a kill would free, but for page tables.
    fn size(&self) -> u64 {
        self.anon + self.file + self.shmem + self.swap
    }
}

/// The lines of `/proc/vmstat` that are kept, in the order of [`Counter`]; those
/// that begin alike are added up.
const LINES: [&[&str]; 9] = [
    &["nr_free_pages"],
    &["pgscan_anon", "pgscan_file"],
    &["pgsteal_anon", "pgsteal_file"],
    &["pswpin"],
    &["pswpout"],
    &["pgmajfault"],
    &["workingset_refault_anon", "workingset_refault_file"],
    &["allocstall_*"],
    &["oom_kill"],
];

/// Names for the places in [`LINES`].
#[derive(Clone, Copy)]
enum Counter {
    Free,
    Scan,
    Steal,
    SwapIn,
    SwapOut,
    MajorFault,
    Refault,
    Stall,
    OomKill,
}

/// What is noted at each interval.
#[derive(Clone, Copy)]
struct Tick {
    time_ns: u64,
    counters: [Option<u64>; LINES.len()],
    some_us: Option<u64>,
    full_us: Option<u64>,
    /// The biggest first.
    top: [Process; TOP],
    processes: usize,
}

const NO_TICK: Tick = Tick {
    time_ns: 0,
    counters: [None; LINES.len()],
    some_us: None,
    full_us: None,
    top: [Process {
        who: Who { pid: 0, start_ns: 0, comm: [0; 16] },
        anon: 0,
        file: 0,
        shmem: 0,
        swap: 0,
        score_adj: 0,
    }; TOP],
    processes: 0,
};

/// A file that is opened once and read again and again.
struct Source(Option<File>);

impl Source {
    fn open(path: PathBuf) -> Self {
        Self(File::open(path).ok())
    }

    fn read<'room>(&self, room: &'room mut [u8]) -> Option<&'room str> {
        let file = self.0.as_ref()?;
        let mut length = 0;
        while length < room.len() {
            match file.read_at(&mut room[length..], length as u64) {
                Ok(0) => break,
                Ok(more) => length += more,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(_) => return None,
            }
        }
        std::str::from_utf8(&room[..length]).ok()
    }
}

/// The ring, and where it is filled from. Takes no memory after it was made.
pub struct History {
    ticks: Vec<Tick>,
    /// Moments noted so far.
    noted: usize,
    vmstat: Source,
    pressure: Source,
    load: Source,
    room: Vec<u8>,
}

impl History {
    /// An empty ring.
    pub fn new(procfs: &ProcFs) -> Self {
        Self {
            ticks: vec![NO_TICK; TICKS],
            noted: 0,
            vmstat: Source::open(procfs.file("proc/vmstat")),
            pressure: Source::open(procfs.file("proc/pressure/memory")),
            load: Source::open(procfs.file("proc/loadavg")),
            room: vec![0; TEXT_BYTES],
        }
    }

    /// Notes the present moment; `visit` hands over each process that has memory.
    ///
    /// # Errors
    /// Those of `visit`: the moment is left out then.
    pub fn note<E>(
        &mut self,
        visit: impl FnOnce(&mut dyn FnMut(Process)) -> Result<(), E>,
    ) -> Result<(), E> {
        let place = self.noted % TICKS;
        let tick = &mut self.ticks[place];
        *tick = NO_TICK;
        visit(&mut |process| keep(tick, process))?;
        tick.time_ns = monotonic_ns();
        if let Some(text) = self.vmstat.read(&mut self.room) {
            count(text, &mut tick.counters);
        }
        if let Some(text) = self.pressure.read(&mut self.room) {
            (tick.some_us, tick.full_us) = (stalled(text, "some"), stalled(text, "full"));
        }
        self.noted += 1;
        Ok(())
    }

    /// Has the command lines of the biggest processes read while they live.
    pub fn learn(&self, commands: &mut Commands) {
        if let Some(tick) = self.noted.checked_sub(1).map(|last| &self.ticks[last % TICKS]) {
            tick.top[..tick.processes].iter().for_each(|process| commands.learn(process.who));
        }
    }

    /// The load averages of now.
    pub fn load(&mut self) -> Option<[f64; 3]> {
        averages(self.load.read(&mut self.room)?)
    }

    /// The last `most` moments before `time_ns`, the oldest first.
    fn before(&self, time_ns: u64, most: usize) -> impl Iterator<Item = (&Tick, Option<&Tick>)> {
        let kept = self.noted.min(TICKS);
        let end = (self.noted - kept..self.noted)
            .rev()
            .find(|&n| self.ticks[n % TICKS].time_ns <= time_ns)
            .map_or(self.noted - kept, |last| last + 1);
        let first = (self.noted - kept).max(end.saturating_sub(most));
        let oldest = self.noted - kept;
        (first..end).map(move |n| {
            let earlier = (n > oldest).then(|| &self.ticks[(n - 1) % TICKS]);
            (&self.ticks[n % TICKS], earlier)
        })
    }

    /// The moments before a kill, for its row.
    pub fn moments(&self, time_ns: u64, most: usize, commands: &Commands) -> Vec<Moment> {
        self.before(time_ns, most)
            .map(|(tick, earlier)| Moment::new(tick, earlier, commands))
            .collect()
    }

    /// The biggest processes at the last of them, and how they grew since the first.
    pub fn biggest(&self, time_ns: u64, most: usize, commands: &Commands) -> Vec<Big> {
        let first = self.before(time_ns, most.max(1)).next().map(|(tick, _)| tick);
        let last = self.before(time_ns, 1).next().map(|(tick, _)| tick);
        let Some((first, last)) = first.zip(last) else { return Vec::new() };
        bigs(last, Some(first), commands)
    }
}

/// Keeps a process if it is among the biggest.
fn keep(tick: &mut Tick, process: Process) {
    let top = &mut tick.top;
    // Threads of a process whose first one has left come one by one.
    if let Some(same) =
        top[..tick.processes].iter_mut().find(|kept| kept.who.pid == process.who.pid)
    {
        *same = process;
        return;
    }
    let place = top[..tick.processes].partition_point(|kept| kept.size() >= process.size());
    if place == TOP {
        return;
    }
    tick.processes = (tick.processes + 1).min(TOP);
    top[place..tick.processes].rotate_right(1);
    top[place] = process;
}

/// Lines of `/proc/vmstat` to counters.
fn count(text: &str, counters: &mut [Option<u64>; LINES.len()]) {
    for line in text.lines() {
        let Some((name, value)) = line.split_once(' ') else { continue };
        for (names, counter) in LINES.iter().zip(counters.iter_mut()) {
            let wanted = |wanted: &&str| match wanted.strip_suffix('*') {
                Some(start) => name.starts_with(start),
                None => name == *wanted,
            };
            if names.iter().any(wanted)
                && let Ok(value) = value.trim().parse::<u64>()
            {
                *counter = Some(counter.unwrap_or(0) + value);
            }
        }
    }
}

/// A line of `/proc/pressure/memory`: `some avg10=… total=17`.
fn stalled(text: &str, kind: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.starts_with(kind))?;
    line.split_once("total=")?.1.trim().parse().ok()
}

/// The first three words of `/proc/loadavg`.
fn averages(text: &str) -> Option<[f64; 3]> {
    let mut words = text.split_whitespace().map(|word| word.parse().ok());
    Some([words.next()??, words.next()??, words.next()??])
}

/// A moment before a kill, as it is shown.
#[derive(Clone, Debug)]
pub struct Moment {
    time: WallTime,
    /// Bytes.
    free: Option<u64>,
    /// Since the moment before.
    per_second: [Option<f64>; LINES.len()],
    some: Option<f64>,
    full: Option<f64>,
    kills: Option<u64>,
    top: Vec<Big>,
}

impl Moment {
    fn new(tick: &Tick, earlier: Option<&Tick>, commands: &Commands) -> Self {
        let ns = earlier.map_or(0, |earlier| tick.time_ns.saturating_sub(earlier.time_ns));
        let seconds = ns as f64 / 1e9;
        let change = |i: usize| Some(tick.counters[i]?.saturating_sub(earlier?.counters[i]?));
        let share = |of: fn(&Tick) -> Option<u64>| {
            let stalled = of(tick)?.saturating_sub(of(earlier?)?) as f64;
            (ns > 0).then(|| (stalled * 1e5 / ns as f64).min(100.0))
        };
        let per_second = std::array::from_fn(|i| {
            change(i).filter(|_| ns > 0).map(|change| change as f64 / seconds)
        });
        Self {
            time: wall_time(tick.time_ns),
            free: tick.counters[Counter::Free as usize].map(pages_to_bytes),
            per_second,
            some: share(|tick| tick.some_us),
            full: share(|tick| tick.full_us),
            kills: change(Counter::OomKill as usize),
            top: bigs(tick, earlier, commands),
        }
    }
}

fn bigs(tick: &Tick, earlier: Option<&Tick>, commands: &Commands) -> Vec<Big> {
    let size = |tick: &Tick, who: Who| {
        let mut top = tick.top[..tick.processes].iter();
        top.find(|process| process.who == who).map(Process::size)
    };
    let big = |process: &Process| Big {
        process: *process,
        comm: text(&process.who.comm),
        growth: earlier.and_then(|earlier| size(earlier, process.who)).map(|before| {
            let bytes = |pages| i64::try_from(pages_to_bytes(pages)).unwrap_or(i64::MAX);
            bytes(process.size()) - bytes(before)
        }),
        command: commands.known(process.who),
    };
    tick.top[..tick.processes].iter().map(big).collect()
}

/// Rates of a moment, from the one before.
impl Row<13> for Moment {
    const COLUMNS: [Column; 13] = [
        Column::new("TIME", "time", Unit::Time, 8, ALWAYS, "when it was noted"),
        Column::new("FREE", "free", Unit::Size, 9, ALWAYS, "free memory of the machine"),
        Column::new("SOME%", "pressure_some", Unit::Percent, 5, ALWAYS, "some task stalled (PSI)"),
        Column::new("FULL%", "pressure_full", Unit::Percent, 5, ALWAYS, "all tasks stalled (PSI)"),
        Column::new("SCAN/s", "pages_scanned", Unit::PerSecond, 6, ALWAYS, "pages scanned"),
        Column::new("STEAL/s", "pages_reclaimed", Unit::PerSecond, 7, ALWAYS, "pages reclaimed"),
        Column::new("SWIN/s", "pages_swapped_in", Unit::PerSecond, 6, ALWAYS, "pages swapped in"),
        Column::new(
            "SWOUT/s",
            "pages_swapped_out",
            Unit::PerSecond,
            7,
            ALWAYS,
            "pages swapped out",
        ),
        Column::new("MAJFLT/s", "major_faults", Unit::PerSecond, 8, ALWAYS, "major page faults"),
        Column::new(
            "REFLT/s",
            "refaults",
            Unit::PerSecond,
            7,
            ALWAYS,
            "evicted pages that came back",
        ),
        Column::new("STALL/s", "stalls", Unit::PerSecond, 7, ALWAYS, "direct reclaims begun"),
        Column::new("KILLS", "kills", Unit::Count, 5, ALWAYS, "OOM kills since the moment before"),
        Column::new("PROCESSES", "processes", Unit::Rows, 9, MACHINE, "the biggest processes"),
    ];

    fn values(&self) -> [Value<'_>; 13] {
        let rate = |counter: Counter| Value::real(self.per_second[counter as usize]);
        [
            Value::Time(self.time),
            Value::bytes(self.free),
            Value::real(self.some),
            Value::real(self.full),
            rate(Counter::Scan),
            rate(Counter::Steal),
            rate(Counter::SwapIn),
            rate(Counter::SwapOut),
            rate(Counter::MajorFault),
            rate(Counter::Refault),
            rate(Counter::Stall),
            Value::count(self.kills),
            Value::Rows(Rows::of::<Big, 10>(self.top.iter())),
        ]
    }
}

/// One of the biggest processes, as it is shown.
#[derive(Clone, Debug)]
pub struct Big {
    process: Process,
    comm: String,
    /// Bytes.
    growth: Option<i64>,
    command: Option<String>,
}

impl Row<10> for Big {
    const COLUMNS: [Column; 10] = [
        Column::new("PID", "pid", Unit::Id, 7, ALWAYS, "process (thread group)"),
        Column::new("COMM", "comm", Unit::Text, 15, ALWAYS, "name of the process"),
        Column::new("RSS", "rss", Unit::Size, 9, ALWAYS, "resident: anon + file + shmem"),
        Column::new("ANON", "anon", Unit::Size, 9, ALWAYS, "resident anonymous"),
        Column::new("FILE", "file", Unit::Size, 9, ALWAYS, "resident file-backed"),
        Column::new("SHMEM", "shmem", Unit::Size, 8, ALWAYS, "resident shared"),
        Column::new("SWAP", "swap", Unit::Size, 8, ALWAYS, "swapped out"),
        Column::new("ADJ", "oom_score_adj", Unit::Count, 5, ALWAYS, "its oom_score_adj"),
        Column::new(
            "GROWTH",
            "growth",
            Unit::Size,
            9,
            ALWAYS,
            "of RSS + SWAP, since the first moment shown",
        ),
        Column::new("COMMAND", "command", Unit::Text, 7, ALWAYS, "command line"),
    ];

    fn values(&self) -> [Value<'_>; 10] {
        let p = &self.process;
        let size = |pages| Value::Bytes(pages_to_bytes(pages));
        [
            Value::Count(p.who.pid.into()),
            Value::Text((&self.comm).into()),
            size(p.anon + p.file + p.shmem),
            size(p.anon),
            size(p.file),
            size(p.shmem),
            size(p.swap),
            Value::Signed(p.score_adj.into()),
            self.growth.map_or(Value::Missing, Value::Change),
            self.command.as_ref().map_or(Value::Missing, |command| Value::Text(command.into())),
        ]
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    fn process(pid: u32, anon: u64) -> Process {
        let who = Who { pid, start_ns: pid.into(), comm: *b"x\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0" };
        Process { who, anon, file: 3, shmem: 5, swap: 7, score_adj: -17 }
    }

    fn history(moments: &[&[Process]]) -> History {
        let mut history = History::new(&ProcFs::new("/nowhere"));
        for moment in moments {
            let visit = |each: &mut dyn FnMut(Process)| {
                moment.iter().for_each(|&process| each(process));
                Ok::<(), ()>(())
            };
            history.note(visit).unwrap();
        }
        history
    }

    /// A history for the output's test.
    pub(crate) fn fixed() -> (Vec<Moment>, Vec<Big>) {
        let commands = Commands::new(ProcFs::new("/nowhere"));
        let history = history(&[&[process(11, 997)], &[process(11, 1009), process(12, 23)]]);
        let mut moments = history.moments(u64::MAX, 2, &commands);
        for (at, moment) in moments.iter_mut().enumerate() {
            moment.time = WallTime::fixed();
            moment.free = Some(7919 << 12);
            moment.some = (at > 0).then_some(12.5);
            moment.per_second[Counter::Scan as usize] = (at > 0).then_some(1013.0);
        }
        (moments, history.biggest(u64::MAX, 2, &commands))
    }

    #[test]
    fn the_biggest_are_kept_in_order() {
        let all: Vec<Process> = (1..=30).map(|n| process(n, u64::from(n * 7 % 31))).collect();
        let history = history(&[&all]);
        let mut sizes: Vec<u64> = all.iter().map(Process::size).collect();
        sizes.sort_unstable_by(|a, b| b.cmp(a));
        let kept: Vec<u64> = history.ticks[0].top.iter().map(Process::size).collect();
        assert_eq!(kept, sizes[..TOP]);
        assert_eq!(history.ticks[0].processes, TOP);
    }

    #[test]
    fn a_process_seen_twice_is_kept_once() {
        let history = history(&[&[process(1, 5), process(1, 6)]]);
        assert_eq!(history.ticks[0].processes, 1);
        assert_eq!(history.ticks[0].top[0].anon, 6);
    }

    #[test]
    fn moments_are_those_before_the_kill_and_the_ring_forgets_the_oldest() {
        let one = [process(1, 5)];
        let moments: Vec<&[Process]> = vec![&one; TICKS + 7];
        let mut history = history(&moments);
        for (n, tick) in history.ticks.iter_mut().enumerate() {
            // As they were noted: the last seven lie at the beginning.
            let age = if n < 7 { n + TICKS } else { n };
            tick.time_ns = age as u64;
        }
        let times = |time_ns, most| -> Vec<u64> {
            history.before(time_ns, most).map(|(tick, _)| tick.time_ns).collect()
        };
        assert_eq!(times(u64::MAX, 3), [64, 65, 66]);
        assert_eq!(times(50, 2), [49, 50]);
        assert_eq!(times(8, 5), [7, 8]);
        assert_eq!(times(3, 5), [0; 0]);
        assert_eq!(times(u64::MAX, 0), [0; 0]);
        assert_eq!(times(u64::MAX, 1000).len(), TICKS);
        let first = history.before(7, 1).next().map(|(_, earlier)| earlier.is_none());
        assert_eq!(first, Some(true), "nothing is known of before the oldest");
    }

    #[test]
    fn growth_is_since_the_first_moment_shown() {
        let (_, bigs) = fixed();
        let growth: Vec<Option<i64>> = bigs.iter().map(|big| big.growth).collect();
        assert_eq!(growth, [Some(12 * pages_to_bytes(1) as i64), None]);
    }

    #[test]
    fn lines_that_belong_together_are_added_and_what_is_not_there_is_missing() {
        let mut counters = [None; LINES.len()];
        count(
            "allocstall_dma 3\nallocstall_normal 4\npswpin 11\nodd\npgscan_anon x\n",
            &mut counters,
        );
        assert_eq!(counters[Counter::Stall as usize], Some(7));
        assert_eq!(counters[Counter::SwapIn as usize], Some(11));
        assert_eq!(counters[Counter::Scan as usize], None);
        assert_eq!(stalled("some avg10=0.00 total=17\nfull avg10=0 total=11\n", "full"), Some(11));
        assert_eq!(averages("0.52 0.58 1.59 2/300 4711"), Some([0.52, 0.58, 1.59]));
        assert_eq!(averages("0.52"), None);
    }
}

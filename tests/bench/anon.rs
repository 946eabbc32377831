//! What anon costs those who fault memory in, beside an empty program where the
//! fault is counted. Where it cannot be (the function is inlined, or attaching
//! is refused), anon has nothing there, and the empty program shows what the
//! tracepoint of the resident counters would cost instead.

use crate::Bench;
use crate::Result;
use crate::empty::Empty;
use crate::figures::Series;
use crate::figures::Table;
use crate::figures::figure;
use crate::figures::none;
use crate::figures::order;
use crate::machine;
use crate::watcher::Watcher;
use crate::worker::Sleepers;
use crate::worker::Toucher;

/// Touched at a time, and how often for one figure.
const BYTES: usize = 64 << 20;
const TOUCHES: usize = 4;

/// What is attached meanwhile.
enum Variant {
    Nothing,
    Empty(&'static str),
    Ours(Vec<String>),
}

/// Measures and prints.
pub(crate) fn run(bench: &Bench) -> Result<()> {
    let hook = machine::hook(&bench.program, "anon")?;
    let _aside = bench.cpus.step_aside()?;
    let sleeper = Sleepers::start(1)?;
    let other = sleeper.first();
    let mut toucher = Toucher::on(bench.cpus.work())?;
    toucher.touch(BYTES)?;

    let ours = |args: &[&str]| {
        let args = [&["anon"], args].concat();
        Variant::Ours(args.into_iter().map(str::to_owned).collect())
    };
    let itself = toucher.pid().to_string();
    let place = match hook.as_str() {
        "fexit:do_anonymous_page" => "fexit:do_anonymous_page",
        _ => "tp_btf:rss_stat",
    };
    let variants = [
        ("without".to_owned(), Variant::Nothing),
        ("without, again".to_owned(), Variant::Nothing),
        (format!("empty program, {place}"), Variant::Empty(place)),
        ("anon -P itself".to_owned(), ours(&["-P", &itself])),
        ("anon -P itself -i 0.1".to_owned(), ours(&["-i", "0.1", "-P", &itself])),
        ("anon -P another".to_owned(), ours(&["-P", &other])),
    ];
    let mut figures = vec![Series::default(); variants.len()];
    for round in 0..bench.rounds {
        for i in order(variants.len(), round) {
            let mut measure = || -> Result<()> {
                figures[i].0.push(ns_per_page(&mut toucher)?);
                Ok(())
            };
            match &variants[i].1 {
                Variant::Nothing => measure()?,
                Variant::Empty(place) => {
                    let _attached = Empty::attach(place)?;
                    measure()?;
                }
                Variant::Ours(args) => {
                    let args: Vec<&str> = args.iter().map(String::as_str).collect();
                    let mut watcher = Watcher::start(&bench.program, &args)?;
                    watcher.wait_attached()?;
                    measure()?;
                    watcher.stop()?;
                }
            }
        }
    }
    let title = format!(
        "anon: touching fresh anonymous memory on CPU {}, hook {hook}, {} rounds; CPU time in ns a page",
        bench.cpus.work(),
        bench.rounds
    );
    let head = ["VARIANT", "MEDIAN", "MIN", "MAX", "ABOVE", "RATIO", "LEAST", "MOST", "BAR"];
    let mut table = Table::new(title, &head);
    for (i, (name, _)) in variants.iter().enumerate() {
        let above = figures[i].minus(&figures[0]);
        let ratio = figures[i].over(&figures[0]);
        let shown = |value: f64, digits| if i > 0 { figure(value, digits) } else { none() };
        table.row([
            name.clone(),
            figure(figures[i].median(), 0),
            figure(figures[i].min(), 0),
            figure(figures[i].max(), 0),
            shown(above.median(), 0),
            shown(ratio.median(), 3),
            shown(ratio.min(), 3),
            shown(ratio.max(), 3),
            none(),
        ]);
    }
    table.print()
}

fn ns_per_page(toucher: &mut Toucher) -> Result<f64> {
    let pages = BYTES / rustix::param::page_size();
    let mut seconds = Series::default();
    for _ in 0..TOUCHES {
        seconds.0.push(toucher.touch(BYTES)?);
    }
    Ok(seconds.median() * 1e9 / pages as f64)
}

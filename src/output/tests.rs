use std::cell::RefCell;
use std::rc::Rc;

use super::table::Screen;
use super::*;

struct Sample {
    comm: &'static str,
    size: Option<u64>,
    rate: Option<f64>,
}

impl Row<5> for Sample {
    const COLUMNS: [Column; 5] = [
        Column::new("PID", "pid", Unit::Id, 7, ALWAYS, ""),
        Column::new("COMM", "comm", Unit::Text, 15, ALWAYS, ""),
        Column::new("SIZE", "size", Unit::Size, 9, ALWAYS, ""),
        Column::new("FAULTS/s", "faults", Unit::PerSecond, 8, 1, ""),
        Column::new("ERR", "error", Unit::Size, 3, MACHINE, ""),
    ];

    fn values(&self) -> [Value<'_>; 5] {
        [
            Value::Count(4711),
            Value::Text(self.comm.into()),
            Value::bytes(self.size),
            Value::real(self.rate),
            Value::Bytes(0),
        ]
    }
}

const ROWS: [Sample; 2] = [
    Sample { comm: "a,\"b\" \u{1b}[31m", size: Some(31_676 << 10), rate: Some(12.5) },
    Sample { comm: "sshd", size: None, rate: None },
];

#[derive(Clone, Default)]
struct Shared(Rc<RefCell<Vec<u8>>>);

impl Write for Shared {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.borrow_mut().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn print(format: Format, unit: SizeUnit, groups: Group, screen: Screen, rows: &[Sample]) -> String {
    render::<Sample, 5>("procstat", Style { format, unit }, groups, screen, rows)
}

fn render<R: Row<N>, const N: usize>(
    command: &'static str,
    style: Style,
    groups: Group,
    screen: Screen,
    rows: &[R],
) -> String {
    let out = Shared::default();
    let mut printer = Printer::new::<R, N>(Box::new(out.clone()), style, groups, screen);
    let header =
        Header { command, kernel: "6.1.0".into(), hook: "iter:task".into(), notes: vec![] };
    printer.begin(&header).unwrap();
    for row in rows {
        printer.row(row).unwrap();
    }
    printer.end(&Summary { rows: 2, events: 3, lost: 1, elapsed_s: 0.5 }).unwrap();
    let bytes = out.0.borrow().clone();
    String::from_utf8(bytes).unwrap()
}

/// Compares what a command prints of invented rows, in each format, with the
/// files in `tests/golden`: they are the contract with whoever parses it.
/// `UPDATE_GOLDEN=1` writes them anew.
pub(crate) fn golden<R: Row<N>, const N: usize>(command: &'static str, groups: Group, rows: &[R]) {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    for (format, ending) in [(Format::Table, "txt"), (Format::Json, "json"), (Format::Csv, "csv")] {
        let style = Style { format, unit: SizeUnit::Kib };
        let text = render::<R, N>(command, style, groups, PIPE, rows);
        let path = folder.join(format!("{command}.{ending}"));
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::create_dir_all(&folder).unwrap();
            std::fs::write(&path, &text).unwrap();
        }
        let golden = std::fs::read_to_string(&path).unwrap();
        // The version is the one thing that may change.
        let golden = golden.replace(
            "\"version\":\"0.1.0\"",
            concat!("\"version\":\"", env!("CARGO_PKG_VERSION"), "\""),
        );
        assert_eq!(text, golden, "{}", path.display());
    }
}

const PIPE: Screen = Screen { width: None, height: 24, colour: false };

#[test]
fn table_aligns_marks_missing_values_and_hides_control_characters() {
    assert_eq!(
        print(Format::Table, SizeUnit::Kib, 1, PIPE, &ROWS),
        "    PID COMM                 SIZE FAULTS/s\n   \
         4711 a,\"b\" ?[31m         31676       12\n   \
         4711 sshd                    -        -\n"
    );
}

#[test]
fn csv_quotes_and_leaves_missing_values_empty() {
    assert_eq!(
        print(Format::Csv, SizeUnit::Pages, 1, PIPE, &ROWS),
        "pid,comm,size_pages,faults_per_s,error_pages\n\
         4711,\"a,\"\"b\"\" \u{1b}[31m\",7919,12.5,0\n\
         4711,sshd,,,0\n"
    );
}

#[test]
fn json_has_schema_first_numbers_as_numbers_and_the_losses() {
    assert_eq!(
        print(Format::Json, SizeUnit::Auto, 0, PIPE, &ROWS[1..]),
        format!(
            "{{\"schema\":1,\"command\":\"procstat\",\"version\":\"{}\",\"kernel\":\"6.1.0\",\
             \"hook\":\"iter:task\",\"notes\":[],\
             \"columns\":[\"pid\",\"comm\",\"size_bytes\",\"error_bytes\"]}}\n\
             {{\"pid\":4711,\"comm\":\"sshd\",\"size_bytes\":null,\"error_bytes\":0}}\n\
             {{\"summary\":{{\"rows\":2,\"events\":3,\"lost\":1,\"elapsed_s\":0.5}}}}\n",
            env!("CARGO_PKG_VERSION")
        )
    );
}

#[test]
fn a_narrow_terminal_folds_rows_and_heading_alike() {
    let screen = Screen { width: Some(40), height: 24, colour: false };
    assert_eq!(
        print(Format::Table, SizeUnit::Kib, 1, screen, &ROWS[1..]),
        "    PID COMM                 SIZE\n  FAULTS/s\n   4711 sshd                    -\n         -\n"
    );
}

#[test]
fn the_heading_returns_every_screenful() {
    let screen = Screen { width: None, height: 4, colour: false };
    let rows: Vec<Sample> =
        (0..7).map(|_| Sample { comm: "x", size: Some(0), rate: None }).collect();
    let text = print(Format::Table, SizeUnit::Kib, 0, screen, &rows);
    let headings: Vec<usize> =
        text.lines().enumerate().filter(|(_, l)| l.contains("COMM")).map(|(i, _)| i).collect();
    assert_eq!(headings, [0, 4, 8]);
}

#[test]
fn only_a_terminal_gets_colour() {
    let screen = Screen { width: None, height: 24, colour: true };
    let text = print(Format::Table, SizeUnit::Kib, 0, screen, &ROWS[1..]);
    assert!(text.starts_with("\u{1b}[1m"), "{text:?}");
    assert!(!print(Format::Table, SizeUnit::Kib, 0, PIPE, &ROWS[1..]).contains('\u{1b}'));
}

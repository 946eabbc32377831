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

mod stacks {
    use std::io::Read as _;
    use std::time::Duration;
    use std::time::UNIX_EPOCH;

    use super::*;
    use crate::frame::Inlined;
    use crate::frame::Source;
    use crate::frame::Symbol;
    use crate::output::profile;

    struct Leak {
        bytes: u64,
        stack: Vec<Frame>,
    }

    impl Row<3> for Leak {
        const COLUMNS: [Column; 3] = [
            Column::new("STACK", "stack", Unit::Stack, 0, ALWAYS, ""),
            Column::new("KIND", "kind", Unit::Text, 5, ALWAYS, ""),
            Column::new("SIZE", "live", Unit::Size, 9, ALWAYS, ""),
        ];

        fn values(&self) -> [Value<'_>; 3] {
            [
                Value::Stack((&self.stack).into()),
                Value::Text("heap".into()),
                Value::Bytes(self.bytes),
            ]
        }
    }

    fn source(file: &str, line: u32) -> Option<Source> {
        Some(Source { file: file.into(), line })
    }

    fn known(name: &str, address: u64, module: &str, at: Option<Source>) -> Frame {
        Frame {
            address: 0x7f00_0000_0000 + address,
            symbol: Some(Symbol { name: name.into(), offset: 9, source: at }),
            module: Some(module.into()),
            module_offset: Some(address),
            build_id: Some("c0ffee".into()),
            ..Frame::default()
        }
    }

    /// Innermost first: a library's function, one with inlined functions and a
    /// hostile name, one without a name.
    fn stack() -> Vec<Frame> {
        let malloc = known("malloc", 0x9_7000, "/lib/libc.so.6", None);
        let mut parse = known("parse;\n\u{1b}[31m 12", 0x1150, "/srv/app", source("app.c", 23));
        parse.inlined = vec![
            Inlined { name: "grow".into(), source: source("vec.h", 7) },
            Inlined { name: "push<a, b>".into(), source: None },
        ];
        let mut unknown = known("", 0x2_7249, "/lib/libc.so.6", None);
        unknown.symbol = None;
        unknown.reason = Some("no symbol covers it");
        vec![malloc, parse, unknown]
    }

    fn rows() -> Vec<Leak> {
        let jit =
            Frame { address: 0x1000, reason: Some("nothing is mapped there"), ..Frame::default() };
        vec![
            Leak { bytes: 31_676 << 10, stack: stack() },
            Leak { bytes: 4096, stack: vec![jit] },
            Leak { bytes: 17, stack: vec![] },
        ]
    }

    fn profile() -> Profile {
        let sample = |frames, bytes: i64, pid: &str| profile::Sample {
            frames,
            values: vec![bytes / 16, bytes],
            labels: vec![("pid".into(), pid.into()), ("comm".into(), "app".into())],
        };
        Profile {
            command: "memleak -P 4711".into(),
            title: "memory <not> freed".into(),
            types: vec![("inuse_objects", "count"), ("inuse_space", "bytes")],
            default_type: 1,
            time: UNIX_EPOCH + Duration::from_nanos(1_700_000_000_000_000_023),
            duration: Duration::from_millis(1500),
            samples: vec![
                sample(stack(), 4096, "4711"),
                sample(vec![], 160, "4711"),
                sample(stack(), 8192, "4712"),
                sample(stack()[..1].to_vec(), 0, "4711"),
                sample(stack()[..1].to_vec(), -32, "4711"),
            ],
        }
    }

    fn write(format: StackFormat, profile: Option<Profile>) -> Vec<u8> {
        let out = Shared::default();
        let style = StackStyle { format, unit: SizeUnit::Auto, file: None };
        let mut printer =
            Printer::of_stacks_to::<Leak, 3>(Box::new(out.clone()), &style, ALWAYS, PIPE);
        printer.begin(&Header { command: "memleak", ..Header::default() }).unwrap();
        printer.remark("seen 3 blocks\u{7}").unwrap();
        for row in rows() {
            printer.row(&row).unwrap();
        }
        assert_eq!(printer.rows(), if printer.wants_rows() { 3 } else { 0 });
        assert_ne!(printer.wants_rows(), printer.wants_profile());
        if let Some(profile) = profile {
            printer.profile(profile);
        }
        printer.end(&Summary { rows: 3, events: 0, lost: 0, elapsed_s: 0.5 }).unwrap();
        out.0.borrow().clone()
    }

    fn text(format: StackFormat) -> String {
        String::from_utf8(write(format, Some(profile()))).unwrap()
    }

    #[test]
    fn rows_with_stacks_are_the_documented_ones() {
        golden::<Leak, 3>("stacks", ALWAYS, &rows());
    }

    #[test]
    fn remarks_are_for_people() {
        assert!(text(StackFormat::Table).starts_with("# seen 3 blocks?\nKIND "));
        assert!(!text(StackFormat::Json).contains("seen 3"));
        assert!(!text(StackFormat::Csv).contains("seen 3"));
    }

    #[test]
    fn folded_stacks_are_merged_sorted_and_one_line_each() {
        assert_eq!(
            text(StackFormat::Folded),
            "[stack lost] 160\n\
             libc.so.6+0x27249;parse:??[31m_12;push<a, b>;grow;malloc 12288\n"
        );
    }

    #[test]
    fn a_flame_graph_has_all_functions_with_their_sums() {
        let svg = text(StackFormat::Flamegraph);
        assert!(svg.contains("memory &lt;not&gt; freed"), "{svg}");
        for title in [
            "<title>all (12,448 bytes, 100%)</title>",
            "<title>[stack lost] (160 bytes, 1.29%)</title>",
            "<title>push&lt;a, b&gt; (12,288 bytes, 98.71%)</title>",
            "<title>malloc (12,288 bytes, 98.71%)</title>",
        ] {
            assert!(svg.contains(title), "{title}: {svg}");
        }
        assert_eq!(svg, text(StackFormat::Flamegraph));
    }

    #[test]
    fn an_empty_profile_is_no_error_in_any_format() {
        let mut empty = profile();
        empty.samples.clear();
        assert_eq!(write(StackFormat::Folded, Some(empty.clone())), b"");
        let svg = String::from_utf8(write(StackFormat::Flamegraph, Some(empty.clone()))).unwrap();
        assert!(svg.ends_with("memory &lt;not&gt; freed: nothing to show</text>\n</svg>\n"));
        let pprof = decode(&write(StackFormat::Pprof, Some(empty)));
        assert_eq!((messages(&pprof, 1).len(), messages(&pprof, 2).len()), (2, 0));
        // A run that ended before it had a profile.
        assert_eq!(write(StackFormat::Pprof, None), b"");
    }

    #[test]
    fn pictures_are_not_for_terminals() {
        for format in [StackFormat::Flamegraph, StackFormat::Pprof] {
            let error = format.refuse_terminal().unwrap_err();
            assert_eq!(error.kind(), crate::error::Kind::Usage);
            assert!(error.to_string().contains("--file"), "{error}");
        }
        StackFormat::Folded.refuse_terminal().unwrap();
    }

    #[test]
    fn a_file_is_written_instead_of_standard_output() {
        let path = std::env::temp_dir().join(format!("mw-output-{}", std::process::id()));
        let style = |path: &std::path::Path| StackStyle {
            format: StackFormat::Pprof,
            unit: SizeUnit::Auto,
            file: Some(path.into()),
        };
        let mut printer = Printer::of_stacks::<Leak, 3>(&style(&path), ALWAYS).unwrap();
        printer.profile(profile());
        printer.end(&Summary::default()).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), write(StackFormat::Pprof, Some(profile())));
        std::fs::remove_file(&path).unwrap();
        let error = Printer::of_stacks::<Leak, 3>(&style(&path.join("x")), ALWAYS).err().unwrap();
        let wanted = format!("making `{}/x`: No such file or directory", path.display());
        assert_eq!(error.to_string(), wanted);
    }

    /// A field of a protocol buffer, read without the library that wrote it
    /// (protobuf.dev/programming-guides/encoding).
    #[derive(Clone, Debug, PartialEq)]
    enum Field {
        Number(u64),
        Bytes(Vec<u8>),
    }

    fn varint(bytes: &mut &[u8]) -> u64 {
        let mut value = 0;
        for shift in (0..).step_by(7) {
            let (first, rest) = bytes.split_first().unwrap();
            *bytes = rest;
            value |= u64::from(first & 0x7f) << shift;
            if first & 0x80 == 0 {
                break;
            }
        }
        value
    }

    fn fields(mut bytes: &[u8]) -> Vec<(u64, Field)> {
        let mut found = Vec::new();
        while !bytes.is_empty() {
            let key = varint(&mut bytes);
            let value = varint(&mut bytes);
            let field = match key & 7 {
                0 => Field::Number(value),
                2 => {
                    let (content, rest) = bytes.split_at(value as usize);
                    bytes = rest;
                    Field::Bytes(content.to_vec())
                }
                other => panic!("wire type {other}"),
            };
            found.push((key >> 3, field));
        }
        found
    }

    fn decode(gzipped: &[u8]) -> Vec<(u64, Field)> {
        let mut bytes = Vec::new();
        flate2::read::GzDecoder::new(gzipped).read_to_end(&mut bytes).unwrap();
        fields(&bytes)
    }

    fn messages(of: &[(u64, Field)], number: u64) -> Vec<Vec<(u64, Field)>> {
        let wanted = of.iter().filter(|(found, _)| *found == number);
        wanted
            .map(|(_, field)| match field {
                Field::Bytes(bytes) => fields(bytes),
                Field::Number(_) => panic!("field {number} is a number"),
            })
            .collect()
    }

    fn number(of: &[(u64, Field)], wanted: u64) -> u64 {
        match of.iter().find(|(found, _)| *found == wanted) {
            Some((_, Field::Number(number))) => *number,
            Some(_) => panic!("field {wanted} is no number"),
            None => 0,
        }
    }

    /// Repeated numbers are packed.
    fn numbers(of: &[(u64, Field)], wanted: u64) -> Vec<u64> {
        let Some((_, Field::Bytes(bytes))) = of.iter().find(|(found, _)| *found == wanted) else {
            panic!("no field {wanted}");
        };
        let mut bytes = &bytes[..];
        std::iter::from_fn(|| (!bytes.is_empty()).then(|| varint(&mut bytes))).collect()
    }

    #[test]
    fn pprof_has_every_sample_with_its_stack_and_labels() {
        let profile = decode(&write(StackFormat::Pprof, Some(profile())));
        let strings: Vec<String> = profile
            .iter()
            .filter(|(number, _)| *number == 6)
            .map(|(_, field)| match field {
                Field::Bytes(bytes) => String::from_utf8(bytes.clone()).unwrap(),
                Field::Number(_) => panic!("a string is a number"),
            })
            .collect();
        let text = |index: u64| strings[index as usize].as_str();
        assert_eq!(strings[0], "");
        let types: Vec<(&str, &str)> = messages(&profile, 1)
            .iter()
            .map(|of| (text(number(of, 1)), text(number(of, 2))))
            .collect();
        assert_eq!(types, [("inuse_objects", "count"), ("inuse_space", "bytes")]);
        assert_eq!(text(number(&profile, 14)), "inuse_space");
        assert_eq!(number(&profile, 9), 1_700_000_000_000_000_023);
        assert_eq!(number(&profile, 10), 1_500_000_000);
        let comments: Vec<&str> = numbers(&profile, 13).into_iter().map(text).collect();
        assert_eq!(comments, ["memory <not> freed", "memleak -P 4711"]);

        let mappings = messages(&profile, 3);
        let shown: Vec<(u64, &str, &str, [u64; 6])> = mappings
            .iter()
            .map(|of| {
                let rest = [2, 3, 7, 8, 9, 10].map(|field| number(of, field));
                (number(of, 1), text(number(of, 5)), text(number(of, 6)), rest)
            })
            .collect();
        assert_eq!(
            shown,
            [
                (1, "/lib/libc.so.6", "c0ffee", [0, u64::MAX, 1, 0, 0, 0]),
                (2, "/srv/app", "c0ffee", [0, u64::MAX, 1, 1, 1, 1]),
            ]
        );

        let functions = messages(&profile, 5);
        let locations = messages(&profile, 4);
        let location = |id: u64| {
            let of = locations.iter().find(|of| number(of, 1) == id).unwrap();
            let lines: Vec<String> = messages(of, 4)
                .iter()
                .map(|line| {
                    let id = number(line, 1);
                    let function = functions.iter().find(|of| number(of, 1) == id).unwrap();
                    assert_eq!(number(function, 2), number(function, 3));
                    let (name, file) = (text(number(function, 2)), text(number(function, 4)));
                    format!("{name} {file}:{}", number(line, 2))
                })
                .collect();
            (number(of, 2), number(of, 3), lines)
        };
        let samples: Vec<(Vec<u64>, Vec<i64>, String)> = messages(&profile, 2)
            .iter()
            .map(|of| {
                let values = numbers(of, 2).into_iter().map(|value| value as i64).collect();
                let labels: Vec<String> = messages(of, 3)
                    .iter()
                    .map(|label| {
                        let (key, words) = (text(number(label, 1)), text(number(label, 2)));
                        format!("{key}={words}{}", number(label, 3))
                    })
                    .collect();
                (numbers(of, 1), values, labels.join(" "))
            })
            .collect();
        assert_eq!(samples.len(), 5);
        assert_eq!(samples[0].1, [256, 4096]);
        assert_eq!(samples[4].1, [-2, -32]);
        assert_eq!((&*samples[0].2, &*samples[2].2), ("pid=4711 comm=app0", "pid=4712 comm=app0"));
        assert_eq!(samples[0].0, samples[2].0);
        let stack: Vec<_> = samples[0].0.iter().map(|&id| location(id)).collect();
        let lines = |lines: &[&str]| lines.iter().map(|&line| line.to_owned()).collect();
        assert_eq!(
            stack,
            [
                (1, 0x9_7000, lines(&["malloc :0"])),
                (
                    2,
                    0x1150,
                    lines(&["grow vec.h:7", "push<a, b> :0", "parse;\n\u{1b}[31m 12 app.c:23"])
                ),
                (1, 0x2_7249, lines(&["libc.so.6+0x27249 :0"])),
            ]
        );
        assert_eq!(location(samples[1].0[0]), (0, 0, lines(&["[stack lost] :0"])));
    }
}

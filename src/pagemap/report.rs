//! The rows of `pages`: what a mapping holds, or where in memory it is.

use std::ops::Range;

use super::Account;
use super::Extent;
use super::names;
use crate::maps::Mapping;
use crate::output::ALWAYS;
use crate::output::Column;
use crate::output::Group;
use crate::output::MACHINE;
use crate::output::Row;
use crate::output::Unit;
use crate::output::Value;
use crate::units::pages_to_bytes;

/// What a row is about.
pub enum What<'run> {
    /// A mapping, or its part in the range asked for.
    Mapping(&'run Mapping, Range<u64>, Account),
    /// A sum; its name.
    Total(&'static str, Account),
    /// Pages and where they are.
    Extent(&'run Mapping, Extent),
}

/// What a mapping holds.
pub const HELD: Group = 1;
/// Where it is.
pub const PLACE: Group = 2;

impl Row<18> for What<'_> {
    const COLUMNS: [Column; 18] = [
        Column::new("KIND", "kind", Unit::Text, 7, MACHINE, "mapping, hugetlb, total or extent"),
        Column::new("START", "start", Unit::Text, 12, ALWAYS, "first address"),
        Column::new("END", "end", Unit::Text, 12, ALWAYS, "first address behind it"),
        Column::new("PERM", "perm", Unit::Text, 4, HELD, "rights; p: private, s: shared"),
        size(
            "RSS",
            "rss",
            8,
            HELD,
            "in memory (Rss; of hugetlb mappings Private_ + Shared_Hugetlb)",
        ),
        size("SWAP", "swap", 7, HELD, "swapped out (Swap)"),
        size("NOTPRESENT", "not_present", 10, HELD, "can be touched, never was or was given back"),
        size("NOTMAPPED", "not_mapped", 9, HELD, "touching it is a signal: a hole"),
        size("TOTAL", "total", 9, HELD, "RSS + SWAP + NOTPRESENT + NOTMAPPED (Size)"),
        size(
            "DIRTY",
            "dirty",
            8,
            HELD,
            "of no file (Anonymous), or changed since it was read from one",
        ),
        size("HUGE", "huge", 8, HELD, "mapped as huge pages"),
        size("ZERO", "zero", 8, MACHINE, "part of NOTPRESENT: the zero page is there instead"),
        Column::new("PHYSICAL", "physical", Unit::Text, 12, PLACE, "first address in memory"),
        Column::new("PHYSEND", "physical_end", Unit::Text, 12, PLACE, "first one behind it"),
        size("SIZE", "size", 8, PLACE, "addresses from START to END"),
        Column::new("NODE", "node", Unit::Id, 4, PLACE, "memory node"),
        Column::new(
            "FLAGS",
            "flags",
            Unit::Text,
            40,
            PLACE,
            "page flags, as page-types names them",
        ),
        Column::new("NAME", "name", Unit::Text, 0, ALWAYS, "file, or what the kernel calls it"),
    ];

    fn values(&self) -> [Value<'_>; 18] {
        let text = |text: String| Value::Text(text.into());
        let address = |address: u64| text(format!("{address:x}"));
        let pages = |pages: Option<u64>| Value::bytes(pages.map(pages_to_bytes));
        let mut values = [const { Value::Missing }; 18];
        let [kind, start, end, perm, held @ .., name] = &mut values;
        let [rss, swap, not_present, not_mapped, total, dirty, huge, zero, place @ ..] = held;
        let [physical, physical_end, size, node, flags] = place;
        let account = match self {
            What::Mapping(mapping, range, account) => {
                (*kind, *name) =
                    (Value::Text("mapping".into()), Value::Text(shown(mapping).into()));
                (*start, *end) = (address(range.start), address(range.end));
                *perm = text(rights(mapping));
                Some(account)
            }
            What::Total(of, account) => {
                *kind = Value::Text((*of).into());
                *name = Value::Text((*of).into());
                Some(account)
            }
            What::Extent(mapping, extent) => {
                (*kind, *name) = (Value::Text("extent".into()), Value::Text(shown(mapping).into()));
                let range = &extent.range;
                (*start, *end) = (address(range.start), address(range.end));
                *size = Value::Bytes(range.end - range.start);
                if let Some(frame) = extent.frame {
                    *physical = address(pages_to_bytes(frame));
                    *physical_end = address(pages_to_bytes(frame + extent.frames));
                }
                *node = Value::count(extent.node.map(u64::from));
                *flags = match (extent.frame, extent.flags) {
                    (None, _) => Value::Text("swapped".into()),
                    (_, Some(flags)) => text(names(flags)),
                    (_, None) => Value::Missing,
                };
                None
            }
        };
        if let Some(account) = account {
            *rss = pages(Some(account.memory));
            *swap = pages(account.swap);
            *not_present = pages(account.not_present);
            *not_mapped = pages(account.not_mapped);
            *total = pages(Some(account.total));
            *dirty = pages(account.dirty);
            *huge = pages(account.huge);
            *zero = pages(account.zero);
        }
        values
    }
}

const fn size(
    head: &'static str,
    key: &'static str,
    width: usize,
    group: Group,
    help: &'static str,
) -> Column {
    Column::new(head, key, Unit::Size, width, group, help)
}

/// The name of a mapping: the file, or what the kernel calls it.
pub fn shown(mapping: &Mapping) -> &str {
    if mapping.name.is_empty() { "[anon]" } else { &mapping.name }
}

/// The rights, as maps has them.
pub fn rights(mapping: &Mapping) -> String {
    let letter = |on: bool, letter| if on { letter } else { '-' };
    [
        letter(mapping.readable, 'r'),
        letter(mapping.writable, 'w'),
        letter(mapping.executable, 'x'),
        if mapping.shared { 's' } else { 'p' },
    ]
    .iter()
    .collect()
}

/// The totals once more, in pages and in KiB.
pub struct Totals {
    /// The process.
    pub pid: u32,
    /// How many mappings were read.
    pub mappings: u64,
    /// Whether these are all.
    pub complete: bool,
    /// Their sum.
    pub account: Account,
}

impl Row<9> for Totals {
    const COLUMNS: [Column; 9] = [
        Column::new("PID", "pid", Unit::Id, 7, ALWAYS, "process (thread group)"),
        count("MAPPINGS", "mappings", "how many were read"),
        count("COMPLETE", "complete", "1 if all were"),
        count("RSS", "rss_pages", "pages in memory (VmRSS: without hugetlb)"),
        count("RSSK", "rss_kib", "the same in KiB"),
        count("HUGETLB", "hugetlb_pages", "hugetlb pages in memory, in normal pages"),
        count("HUGETLBK", "hugetlb_kib", "the same in KiB"),
        count("SIZE", "size_pages", "mapped, in pages"),
        count("SIZEK", "size_kib", "the same in KiB"),
    ];

    fn values(&self) -> [Value<'_>; 9] {
        let rss = self.account.memory - self.account.hugetlb;
        let pages = Value::Count;
        let kib = |pages| Value::Count(pages_to_bytes(pages) >> 10);
        [
            Value::Count(self.pid.into()),
            Value::Count(self.mappings),
            Value::Count(self.complete.into()),
            pages(rss),
            kib(rss),
            pages(self.account.hugetlb),
            kib(self.account.hugetlb),
            pages(self.account.total),
            kib(self.account.total),
        ]
    }
}

const fn count(head: &'static str, key: &'static str, help: &'static str) -> Column {
    Column::new(head, key, Unit::Count, 8, ALWAYS, help)
}

impl Totals {
    /// The same for people.
    pub fn text(&self) -> String {
        let both = |pages| format!("{pages} pages ({} KiB)", pages_to_bytes(pages) >> 10);
        let part = if self.complete { "" } else { "so far, " };
        let resident = self.account.memory - self.account.hugetlb;
        let mut text = format!("{part}resident: {}", both(resident));
        if self.account.hugetlb > 0 {
            text += &format!(", and hugetlb: {}", both(self.account.hugetlb));
        }
        text + &format!(", mapped: {}", both(self.account.total))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::output::tests::golden;
    use crate::units::page_size;

    fn mapping(name: &str) -> Mapping {
        Mapping {
            start: 0x7f00_1234_0000,
            end: 0x7f00_1635_b000,
            offset: 0,
            readable: true,
            writable: true,
            executable: false,
            shared: false,
            file: None,
            object: None,
            reason: None,
            name: name.into(),
        }
    }

    #[test]
    fn the_output_is_the_documented_one() {
        let (anon, file) = (mapping(""), mapping("/usr/lib/a b.so"));
        let range = anon.start..anon.end;
        let account = Account {
            total: 16411,
            memory: 7919,
            hugetlb: 0,
            swap: Some(1009),
            not_present: Some(7476),
            not_mapped: Some(7),
            dirty: Some(7907),
            huge: Some(1024),
            zero: Some(13),
        };
        let unknown = Account {
            swap: None,
            not_present: None,
            not_mapped: None,
            dirty: None,
            huge: None,
            zero: None,
            ..account
        };
        let rows = [
            What::Mapping(&anon, range.clone(), account),
            What::Mapping(&file, range.clone(), unknown),
            What::Total("total", account),
        ];
        golden::<What<'_>, 18>("pages", HELD, &rows);
        let extent = Extent {
            range,
            frame: Some(0x1_2345),
            frames: 16411,
            node: Some(1),
            flags: Some(1 << 2 | 1 << 11 | 1 << 12),
        };
        let swapped = Extent { frame: None, frames: 0, node: None, flags: None, ..extent.clone() };
        let rows = [What::Extent(&anon, extent), What::Extent(&file, swapped)];
        golden::<What<'_>, 18>("pages-physical", PLACE, &rows);
    }

    #[test]
    fn a_row_is_named_and_has_its_rights() {
        assert_eq!((shown(&mapping("")), shown(&mapping("[heap]"))), ("[anon]", "[heap]"));
        assert_eq!(rights(&mapping("")), "rw-p");
        let other = Mapping { executable: true, writable: false, shared: true, ..mapping("") };
        assert_eq!(rights(&other), "r-xs");
    }

    #[test]
    fn totals_are_in_pages_and_kib_without_hugetlb_in_rss() {
        let account = Account { total: 11, memory: 7, hugetlb: 2, ..Account::default() };
        let totals = Totals { pid: 1, mappings: 3, complete: true, account };
        let kib = page_size() / 1024;
        assert_eq!(
            totals.text(),
            format!(
                "resident: 5 pages ({} KiB), and hugetlb: 2 pages ({} KiB), mapped: 11 pages ({} KiB)",
                5 * kib,
                2 * kib,
                11 * kib
            )
        );
        assert_eq!(totals.values()[3], Value::Count(5));
    }
}

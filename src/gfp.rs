//! Flags of page allocations in words, with the bits of the running kernel: what
//! a bit means has changed, and so have the names made of several bits.

use crate::kernel::KernelFacts;
use crate::kernel::Need;

/// Where the kernel itself says how it prints such flags.
const EVENT: &str = "kmem/mm_page_alloc";

/// The enumerators that number the bits, `___GFP_IO_BIT` (since 6.10).
const BIT_PREFIX: &str = "___GFP_";
const BIT_SUFFIX: &str = "_BIT";

/// Bits that have been the same since 5.8 (include/linux/gfp.h), for a kernel
/// that tells nothing.
const STABLE: [(u32, &str); 22] = [
    (0, "DMA"),
    (1, "HIGHMEM"),
    (2, "DMA32"),
    (3, "MOVABLE"),
    (4, "RECLAIMABLE"),
    (5, "HIGH"),
    (6, "IO"),
    (7, "FS"),
    (8, "ZERO"),
    (10, "DIRECT_RECLAIM"),
    (11, "KSWAPD_RECLAIM"),
    (12, "WRITE"),
    (13, "NOWARN"),
    (14, "RETRY_MAYFAIL"),
    (15, "NOFAIL"),
    (16, "NORETRY"),
    (17, "MEMALLOC"),
    (18, "COMP"),
    (19, "NOMEMALLOC"),
    (20, "HARDWALL"),
    (21, "THISNODE"),
    (22, "ACCOUNT"),
];

/// Names of several bits whose meaning is the same on every kernel, longest
/// first. `GFP_NOWAIT` and `GFP_ATOMIC` are not among them: they have changed.
const COMBINED: [(&str, &[&str]); 10] = [
    (
        "GFP_TRANSHUGE",
        &[
            "DIRECT_RECLAIM",
            "IO",
            "FS",
            "HARDWALL",
            "HIGHMEM",
            "MOVABLE",
            "COMP",
            "NOMEMALLOC",
            "NOWARN",
        ],
    ),
    (
        "GFP_TRANSHUGE_LIGHT",
        &["IO", "FS", "HARDWALL", "HIGHMEM", "MOVABLE", "COMP", "NOMEMALLOC", "NOWARN"],
    ),
    (
        "GFP_HIGHUSER_MOVABLE",
        &["DIRECT_RECLAIM", "KSWAPD_RECLAIM", "IO", "FS", "HARDWALL", "HIGHMEM", "MOVABLE"],
    ),
    ("GFP_HIGHUSER", &["DIRECT_RECLAIM", "KSWAPD_RECLAIM", "IO", "FS", "HARDWALL", "HIGHMEM"]),
    ("GFP_USER", &["DIRECT_RECLAIM", "KSWAPD_RECLAIM", "IO", "FS", "HARDWALL"]),
    ("GFP_KERNEL_ACCOUNT", &["DIRECT_RECLAIM", "KSWAPD_RECLAIM", "IO", "FS", "ACCOUNT"]),
    ("GFP_KERNEL", &["DIRECT_RECLAIM", "KSWAPD_RECLAIM", "IO", "FS"]),
    ("GFP_NOFS", &["DIRECT_RECLAIM", "KSWAPD_RECLAIM", "IO"]),
    ("GFP_NOIO", &["DIRECT_RECLAIM", "KSWAPD_RECLAIM"]),
    ("GFP_DMA", &["DMA"]),
];

/// How the running kernel names the flags a page is asked for with (`gfp_t`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GfpNames {
    /// In the order in which they are tried.
    names: Vec<(u64, String)>,
}

impl GfpNames {
    /// As the kernel's own trace event prints them; without tracefs by the bits
    /// that are in type information, and without those only the bits that never
    /// changed have names.
    pub fn of(facts: &KernelFacts) -> Self {
        facts
            .event_format(EVENT)
            .and_then(|format| Self::from_format(&format))
            .unwrap_or_else(|| Self::from_bits(&facts.enumerators(BIT_PREFIX, BIT_SUFFIX)))
    }

    /// From the format of a trace event: `{expression, "name"}, …`.
    fn from_format(format: &str) -> Option<Self> {
        let list = format.split_once("__print_flags(")?.1;
        let mut names = Vec::new();
        for pair in list.split('{').skip(1) {
            // The last pair ends the list and has no name.
            let Some((expression, rest)) = pair.split_once(", \"") else { continue };
            let (name, _) = rest.split_once('"')?;
            let mask = Expression::evaluate(expression)?;
            if mask != 0 {
                names.push((mask, name.to_owned()));
            }
        }
        (!names.is_empty()).then_some(Self { names })
    }

    /// From the number of each bit, by name without its prefix; none given: the
    /// bits that are the same everywhere.
    fn from_bits(bits: &[(String, i64)]) -> Self {
        let mut singles: Vec<(u64, &str)> = bits
            .iter()
            .filter(|(name, _)| !matches!(name.as_str(), "UNUSED" | "LAST"))
            .filter_map(|(name, bit)| Some((1u64.checked_shl(u32::try_from(*bit).ok()?)?, &**name)))
            .collect();
        if singles.is_empty() {
            singles = STABLE.iter().map(|&(bit, name)| (1 << bit, name)).collect();
        }
        let mask = |parts: &[&str]| {
            parts.iter().try_fold(0, |sum, part| {
                singles.iter().find(|(_, name)| name == part).map(|(bit, _)| sum | bit)
            })
        };
        let combined =
            COMBINED.iter().filter_map(|&(name, parts)| Some((mask(parts)?, name.to_owned())));
        let single = singles.iter().map(|&(bit, name)| (bit, format!("__GFP_{name}")));
        Self { names: combined.chain(single).collect() }
    }

    /// The flags in words, as the kernel prints them: `GFP_KERNEL|__GFP_ZERO`.
    /// What has no name stays a number.
    pub fn words(&self, flags: u64) -> String {
        let names = self.names.iter().map(|(mask, name)| (*mask, name.as_str()));
        in_words(flags, names, "none")
    }

    /// The value of a flag, such as `__GFP_DIRECT_RECLAIM`; `None`: not known here.
    pub fn flag(&self, name: &str) -> Option<u64> {
        self.names.iter().find(|(_, known)| known == name).map(|(mask, _)| *mask)
    }
}

/// As `trace_print_flags_seq()` does (kernel/trace/trace_output.c).
fn in_words<'name>(
    mut flags: u64,
    names: impl Iterator<Item = (u64, &'name str)>,
    none: &str,
) -> String {
    if flags == 0 {
        return none.to_owned();
    }
    let mut words: Vec<String> = Vec::new();
    for (mask, name) in names {
        if flags & mask == mask {
            words.push(name.to_owned());
            flags &= !mask;
        }
    }
    if flags != 0 {
        words.push(format!("{flags:#x}"));
    }
    words.join("|")
}

/// How the running kernel names the flags of an attempt to take a page
/// (`ALLOC_*`, mm/internal.h). They are macros, so nothing of the running kernel
/// tells them; a bit never got another meaning since 5.8, but names changed and
/// bits were added, together with things that can be seen.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AllocNames {
    /// Whether the reserves have the names of 6.3; `None`: not to be told.
    renamed: Option<bool>,
    trylock: bool,
}

/// The watermark that has to be left, `ALLOC_WMARK_MASK`.
const WATERMARKS: [&str; 3] = ["WMARK_MIN", "WMARK_LOW", "WMARK_HIGH"];
const WATERMARK_MASK: u64 = 3;

impl AllocNames {
    /// `__GFP_ATOMIC` went in 6.3 with the series that named the reserves anew
    /// (2973d8229b78 "mm: discard __GFP_ATOMIC", 1ebbb21811b7 "mm/page_alloc:
    /// explicitly define how __GFP_HIGH non-blocking allocations accesses
    /// reserves"). `ALLOC_TRYLOCK` came in 6.15 with allocations from any context.
    pub fn of(facts: &KernelFacts, gfp: &GfpNames) -> Self {
        let known = gfp.flag("__GFP_ZEROTAGS").is_some() || gfp.flag("__GFP_ATOMIC").is_some();
        Self {
            renamed: known.then(|| gfp.flag("__GFP_ATOMIC").is_none()),
            trylock: ["try_alloc_pages_noprof", "alloc_frozen_pages_nolock_noprof"]
                .into_iter()
                .any(|name| facts.has(Need::Func(name))),
        }
    }

    /// The flags in words: `WMARK_LOW|CPUSET|NOFRAGMENT|KSWAPD`. What has no name
    /// stays a number.
    pub fn words(&self, flags: u64) -> String {
        let mark = WATERMARKS.get((flags & WATERMARK_MASK) as usize);
        let (harder, high) = match self.renamed {
            Some(true) => (Some("NON_BLOCK"), Some("MIN_RESERVE")),
            Some(false) => (Some("HARDER"), Some("HIGH")),
            None => (None, None),
        };
        let names = [
            (0x4, Some("NO_WATERMARKS")),
            (0x8, Some("OOM")),
            (0x10, harder),
            (0x20, high),
            (0x40, Some("CPUSET")),
            (0x80, Some("CMA")),
            (0x100, Some("NOFRAGMENT")),
            (0x200, Some("HIGHATOMIC").filter(|_| self.renamed == Some(true))),
            (0x400, Some("TRYLOCK").filter(|_| self.trylock)),
            (0x800, Some("KSWAPD")),
        ];
        let names = names.iter().filter_map(|&(mask, name)| Some((mask, name?)));
        // Whoever ignores watermarks has none.
        let mark = mark.filter(|_| flags & 0x4 == 0);
        let rest = if mark.is_some() { flags & !WATERMARK_MASK } else { flags };
        match mark {
            Some(mark) if rest == 0 => (*mark).to_owned(),
            Some(mark) => format!("{mark}|{}", in_words(rest, names, "")),
            None => in_words(rest, names, ""),
        }
    }
}

/// A constant expression of C as formats of trace events have them:
/// `((( gfp_t)(0x400u|0x800u)) & ~(( gfp_t)((((1UL))) << (10))))`.
struct Expression<'text> {
    rest: &'text str,
}

/// Deeper than any that exists: a bound for what is no expression.
const DEEPEST: u32 = 64;

impl<'text> Expression<'text> {
    fn evaluate(text: &'text str) -> Option<u64> {
        let mut expression = Self { rest: text };
        let value = expression.alternatives(0)?;
        expression.skip_blanks();
        expression.rest.is_empty().then_some(value)
    }

    fn skip_blanks(&mut self) {
        self.rest = self.rest.trim_start();
    }

    fn accept(&mut self, token: &str) -> bool {
        self.skip_blanks();
        match self.rest.strip_prefix(token) {
            Some(rest) => {
                self.rest = rest;
                true
            }
            None => false,
        }
    }

    /// `|` binds less than `&`, and that less than `<<`.
    fn alternatives(&mut self, depth: u32) -> Option<u64> {
        let mut value = self.intersection(depth)?;
        while self.accept("|") {
            value |= self.intersection(depth)?;
        }
        Some(value)
    }

    fn intersection(&mut self, depth: u32) -> Option<u64> {
        let mut value = self.shifted(depth)?;
        while self.accept("&") {
            value &= self.shifted(depth)?;
        }
        Some(value)
    }

    fn shifted(&mut self, depth: u32) -> Option<u64> {
        let mut value = self.operand(depth)?;
        while self.accept("<<") {
            let by = u32::try_from(self.operand(depth)?).ok()?;
            value = value.checked_shl(by)?;
        }
        Some(value)
    }

    fn operand(&mut self, depth: u32) -> Option<u64> {
        if depth > DEEPEST {
            return None;
        }
        if self.accept("~") {
            return Some(!self.operand(depth + 1)?);
        }
        if self.cast() {
            return self.operand(depth + 1);
        }
        if self.accept("(") {
            let value = self.alternatives(depth + 1)?;
            return self.accept(")").then_some(value);
        }
        self.number()
    }

    /// Skips a type in parentheses, which changes no flag.
    fn cast(&mut self) -> bool {
        self.skip_blanks();
        let inner = self.rest.strip_prefix('(').and_then(|rest| rest.split_once(')'));
        let Some((inner, rest)) = inner else { return false };
        let inner = inner.trim();
        let is_type = inner.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_')
            && inner.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == ' ');
        if is_type {
            self.rest = rest;
        }
        is_type
    }

    fn number(&mut self) -> Option<u64> {
        self.skip_blanks();
        let end = self.rest.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest;
        let digits = word.trim_end_matches(['u', 'U', 'l', 'L']);
        match digits.strip_prefix("0x") {
            Some(hex) => u64::from_str_radix(hex, 16).ok(),
            None => digits.parse().ok(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As 5.10 has it, abridged.
    const OLD: &str = r#"print fmt: "page=%p gfp_flags=%s", REC->pfn, (REC->gfp_flags) ? __print_flags(REC->gfp_flags, "|", {(unsigned long)((((((( gfp_t)(0x400u|0x800u)) | (( gfp_t)0x40u) | (( gfp_t)0x80u) | (( gfp_t)0x100000u)) | (( gfp_t)0x02u)) | (( gfp_t)0x08u)) | (( gfp_t)0x2000u)) & ~(( gfp_t)(0x400u|0x800u))), "GFP_LIGHT"}, {(unsigned long)((( gfp_t)(0x400u|0x800u)) | (( gfp_t)0x40u) | (( gfp_t)0x80u)), "GFP_KERNEL"}, {(unsigned long)((( gfp_t)0x20u)|(( gfp_t)0x200u)|(( gfp_t)0x800u)), "GFP_ATOMIC"}, {(unsigned long)(( gfp_t)0x200u), "__GFP_ATOMIC"}, {(unsigned long)(( gfp_t)0x100u), "__GFP_ZERO"} ) : "none""#;

    /// As 7.x has it, abridged.
    const NEW: &str = r#"print fmt: "gfp_flags=%s", (REC->gfp_flags) ? __print_flags(REC->gfp_flags, "|", {( unsigned long)((( gfp_t)((((1UL))) << (5)))|(( gfp_t)((((1UL))) << (11)))), "GFP_ATOMIC"}, {( unsigned long)((( gfp_t)((((1UL))) << (11))) | (( gfp_t)0)), "GFP_NOWAIT"}, {( unsigned long)(( gfp_t)((((1UL))) << (23))), "__GFP_ZEROTAGS"}, { 0, ((void *)0) } ) : "none""#;

    #[test]
    fn the_kernels_own_list_decides() {
        let old = GfpNames::from_format(OLD).unwrap();
        assert_eq!(old.words(0xa20), "GFP_ATOMIC");
        assert_eq!(old.words(0xcc0 | 0x100), "GFP_KERNEL|__GFP_ZERO");
        assert_eq!(old.words(0x10_20ca | 0x4000_0000), "GFP_LIGHT|0x40000000");
        assert_eq!(old.words(0), "none");
        let new = GfpNames::from_format(NEW).unwrap();
        assert_eq!(new.words(0x820), "GFP_ATOMIC");
        assert_eq!(new.words(0x80_0a00), "GFP_NOWAIT|__GFP_ZEROTAGS|0x200");
        assert_eq!((new.flag("GFP_NOWAIT"), new.flag("__GFP_IO")), (Some(0x800), None));
    }

    #[test]
    fn what_is_no_list_is_refused() {
        for text in ["", "__print_flags(", r#"__print_flags(x, "|", {f(3), "GFP_X"})"#] {
            assert_eq!(GfpNames::from_format(text), None, "{text}");
        }
        let deep = format!(r#"__print_flags(x, "|", {{{}1, "GFP_X"}})"#, "(".repeat(100_000));
        assert_eq!(GfpNames::from_format(&deep), None);
    }

    #[test]
    fn expressions_are_those_of_c() {
        let value = Expression::evaluate;
        assert_eq!(value("1UL << 3 | 0x10u"), Some(0x18));
        assert_eq!(value("(( gfp_t)(0x400u|0x800u)) & ~(( gfp_t)0x400u)"), Some(0x800));
        assert_eq!(value("(1) << (64)"), None);
        assert_eq!(value("(1"), None);
        assert_eq!(value("1 2"), None);
        assert_eq!(value("REC->x"), None);
    }

    #[test]
    fn bits_of_type_information_serve_without_tracefs() {
        let bits: Vec<(String, i64)> = [
            ("HIGH", 5),
            ("IO", 6),
            ("FS", 7),
            ("UNUSED", 9),
            ("DIRECT_RECLAIM", 10),
            ("KSWAPD_RECLAIM", 11),
            ("ZEROTAGS", 23),
            ("LAST", 25),
        ]
        .map(|(name, bit)| (name.to_owned(), bit))
        .into();
        let names = GfpNames::from_bits(&bits);
        assert_eq!(names.words(0xcc0), "GFP_KERNEL");
        assert_eq!(names.words(0x820), "__GFP_HIGH|__GFP_KSWAPD_RECLAIM");
        assert_eq!(names.words(1 << 9 | 1 << 23 | 1 << 25), "__GFP_ZEROTAGS|0x2000200");
    }

    #[test]
    fn a_kernel_that_tells_nothing_has_what_never_changed() {
        let names = GfpNames::of(&KernelFacts::fake(&[]));
        assert_eq!(names.words(0x14_0cca), "GFP_HIGHUSER_MOVABLE|__GFP_COMP");
        assert_eq!(names.words(0xa20), "__GFP_HIGH|__GFP_KSWAPD_RECLAIM|0x200");
        let alloc = AllocNames::of(&KernelFacts::fake(&[]), &names);
        assert_eq!(alloc.words(0x871), "WMARK_LOW|CPUSET|KSWAPD|0x30");
    }

    #[test]
    fn reserves_have_the_names_of_their_kernel() {
        let facts = KernelFacts::fake(&[Need::Func("alloc_frozen_pages_nolock_noprof")]);
        let new = AllocNames::of(&facts, &GfpNames::from_format(NEW).unwrap());
        assert_eq!(new.words(0x941), "WMARK_LOW|CPUSET|NOFRAGMENT|KSWAPD");
        assert_eq!(new.words(0x630), "WMARK_MIN|NON_BLOCK|MIN_RESERVE|HIGHATOMIC|TRYLOCK");
        assert_eq!(new.words(0x0), "WMARK_MIN");
        assert_eq!(new.words(0x3), "0x3");
        let old = AllocNames::of(&KernelFacts::fake(&[]), &GfpNames::from_format(OLD).unwrap());
        assert_eq!(old.words(0x834), "NO_WATERMARKS|HARDER|HIGH|KSWAPD");
        assert_eq!(old.words(0x600), "WMARK_MIN|0x600");
    }
}

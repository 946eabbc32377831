//! Which addresses are whose, from `/proc/kallsyms`.

use std::ops::Range;

/// No function is longer; bounds the last one before a gap.
const LONGEST: u64 = 64 << 10;

/// Frames of the tracing itself are looked for among the innermost ones only.
const INNERMOST: usize = 8;

/// Address ranges of a few functions of the kernel.
#[derive(Debug, Default)]
pub(super) struct Code {
    /// What lies between a tracepoint and its program.
    machinery: Vec<Range<u64>>,
    /// `vmalloc()` and its like.
    vmalloc: Vec<Range<u64>>,
}

impl Code {
    /// From the text of `/proc/kallsyms`: lines "address type name", ascending,
    /// those of modules with "\t[module]" behind. Addresses that are hidden from
    /// us (`kptr_restrict`) are zero, and nothing is found then.
    pub(super) fn parse(text: &[u8]) -> Self {
        let mut code = Self::default();
        let mut open: Option<(u64, bool)> = None;
        for (address, name, _) in lines(text) {
            if let Some((start, machinery)) = open.take() {
                let end = if address > start { address } else { u64::MAX };
                let range = start..end.min(start.saturating_add(LONGEST));
                if machinery {
                    code.machinery.push(range);
                } else {
                    code.vmalloc.push(range);
                }
            }
            let tracing = [&b"bpf_trace_run"[..], b"__bpf_trace_", b"__traceiter_", b"bpf_prog_"];
            let machinery = tracing.iter().any(|prefix| name.starts_with(prefix));
            // Everything that ends in vmalloc's core; `.cold` parts are apart.
            let vmalloc = name.starts_with(b"__vmalloc_node_range");
            if address != 0 && (machinery || vmalloc) {
                open = Some((address, machinery));
            }
        }
        code
    }

    /// The stack from the allocating function on, without the frames of the
    /// tracing that captured it.
    pub(super) fn trim<'ips>(&self, ips: &'ips [u64]) -> &'ips [u64] {
        let ours = |ip: &u64| self.machinery.iter().any(|range| range.contains(ip));
        let skip = ips.iter().take(INNERMOST).rposition(ours).map_or(0, |last| last + 1);
        // A stack of nothing else says nothing, but it is no lost one either.
        if skip < ips.len() { &ips[skip..] } else { ips }
    }

    /// Whether the memory was taken for `vmalloc()`.
    pub(super) fn is_vmalloc(&self, ips: &[u64]) -> bool {
        // A return address may be the first one behind a function that never returns.
        ips.iter().any(|ip| self.vmalloc.iter().any(|range| range.contains(&ip.saturating_sub(1))))
    }

    /// Whether `vmalloc()` can be told from other users of address space.
    pub(super) fn knows_vmalloc(&self) -> bool {
        !self.vmalloc.is_empty()
    }
}

/// Where the functions of a loaded module are; `None`: it is not loaded, or
/// addresses are hidden from us.
///
/// `/proc/modules` does not say: since 6.4 (ac3b43283923 "module: replace module_layout
/// with module_memory") its size is that of several separate areas.
pub(super) fn module_code(text: &[u8], module: &str) -> Option<Range<u64>> {
    // Modules' names have `_` where their files may have `-`.
    let wanted = [b"[", module.replace('-', "_").as_bytes(), b"]"].concat();
    let is_code = |kind: u8| matches!(kind, b't' | b'T' | b'w' | b'W');
    let mut found: Option<(u64, u64)> = None;
    for (address, name, kind) in lines(text) {
        if address != 0 && is_code(kind) && name.ends_with(&wanted) {
            let (low, high) = found.unwrap_or((address, address));
            found = Some((low.min(address), high.max(address)));
        }
    }
    let (low, last) = found?;
    // The last function ends at the next symbol, if there is one nearby.
    let next = lines(text).map(|line| line.0).filter(|&address| address > last).min();
    let limit = last.saturating_add(LONGEST);
    Some(low..next.map_or(limit, |next| next.min(limit)))
}

/// Address, the rest of the line from the name on, and type.
fn lines(text: &[u8]) -> impl Iterator<Item = (u64, &[u8], u8)> {
    text.split(|&byte| byte == b'\n').filter_map(|line| {
        let mut words = line.splitn(3, |&byte| byte == b' ');
        let address = std::str::from_utf8(words.next()?).ok()?;
        let address = u64::from_str_radix(address, 16).ok()?;
        let kind = *words.next()?.first()?;
        Some((address, words.next()?, kind))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &[u8] = b"0 A fixed_percpu_data\n\
        ffffffff81000000 T _stext\n\
        ffffffff81000100 T bpf_trace_run3\n\
        ffffffff81000180 t __bpf_trace_kmalloc\n\
        ffffffff810001c0 T __kmalloc\n\
        ffffffff81000200 T __vmalloc_node_range_noprof\n\
        ffffffff81000900 T vfree\n\
        ffffffffc0001000 t start_dev\t[my_mod]\n\
        ffffffffc0001080 t stop_dev\t[my_mod]\n\
        ffffffffc0009000 d table\t[my_mod]\n\
        ffffffffc0001200 t other\t[my_mod2]\n\
        ffffffffc0005000 t bpf_prog_0123_kmalloc_alloc\t[bpf]\n";

    #[test]
    fn a_stack_begins_with_the_allocator() {
        let code = Code::parse(TEXT);
        let (program, run, caller) = (0xffff_ffff_c000_5010, 0xffff_ffff_8100_0120, 0x1234);
        let site = 0xffff_ffff_8100_01d0;
        assert_eq!(code.trim(&[program, run, site, caller]), [site, caller]);
        // Programs may have no symbols (bpf_jit_kallsyms); what called them has.
        assert_eq!(code.trim(&[0x77, run, site, caller]), [site, caller]);
        assert_eq!(code.trim(&[site, caller]), [site, caller]);
        assert_eq!(code.trim(&[program, run]), [program, run]);
        // Far out, such a frame is what was interrupted.
        let mut deep = vec![site; 9];
        deep.push(run);
        assert_eq!(code.trim(&deep), deep);
    }

    #[test]
    fn vmalloc_is_known_by_its_core() {
        let code = Code::parse(TEXT);
        assert!(code.knows_vmalloc());
        assert!(code.is_vmalloc(&[1, 0xffff_ffff_8100_0900]));
        assert!(!code.is_vmalloc(&[1, 0xffff_ffff_8100_0200]));
        assert!(!code.is_vmalloc(&[1, 0xffff_ffff_8100_0901]));
    }

    #[test]
    fn hidden_addresses_are_no_addresses() {
        let code = Code::parse(b"0000000000000000 T bpf_trace_run3\n0 T __vmalloc_node_range\n");
        assert!(!code.knows_vmalloc());
        assert_eq!(code.trim(&[0, 1]), [0, 1]);
        assert_eq!(module_code(b"0000000000000000 t f\t[m]\n", "m"), None);
    }

    #[test]
    fn a_module_ends_where_the_next_symbol_begins() {
        let range = 0xffff_ffff_c000_1000..0xffff_ffff_c000_1200;
        assert_eq!(module_code(TEXT, "my_mod"), Some(range.clone()));
        assert_eq!(module_code(TEXT, "my-mod"), Some(range));
        let alone = 0xffff_ffff_c000_1200..0xffff_ffff_c000_5000;
        assert_eq!(module_code(TEXT, "my_mod2"), Some(alone));
        assert_eq!(module_code(TEXT, "my"), None);
        let last = b"ffffffffc0001000 t f\t[m]\n";
        assert_eq!(module_code(last, "m"), Some(0xffff_ffff_c000_1000..0xffff_ffff_c001_1000));
    }
}

//! Which names mean what.

use super::Call;

/// The family of gperftools' own names.
pub(super) const TCMALLOC: &str = "tcmalloc";
/// The family of mimalloc's own names.
pub(super) const MIMALLOC: &str = "mimalloc";

/// What a name stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Meaning {
    /// A function called in this way.
    Call(Call),
    /// A function that gives or takes memory and cannot be followed.
    Skipped(&'static str),
}

/// What is known of a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Known {
    pub(super) meaning: Meaning,
    /// Whose name it is.
    pub(super) family: String,
    /// Which name to show when a function has several: the lowest.
    pub(super) rank: u8,
    /// Whether the name has a prefix that nobody uses by accident.
    pub(super) prefixed: bool,
}

/// What the name means, if it is one of an allocator's.
pub(super) fn known(name: &str, prefixes: &[String]) -> Option<Known> {
    let found = |meaning, family: &str, rank, prefixed| {
        Some(Known { meaning, family: family.to_owned(), rank, prefixed })
    };
    if let Some(call) = c(name) {
        // The same function as a name of the standard, where there is both.
        let old = matches!(name, "cfree" | "memalign" | "mmap64");
        return found(Meaning::Call(call), "C", u8::from(old), false);
    }
    if let Some(call) = cpp(name) {
        let array = strip_any(name, &["_Zna", "_Zda"]).is_some();
        return found(Meaning::Call(call), "C++", 2 + u8::from(array), false);
    }
    if let Some(meaning) = extended(name) {
        return found(meaning, "jemalloc", 4, false);
    }
    if let Some(call) = name.strip_prefix("__libc_").and_then(c).or_else(|| internal(name)) {
        return found(Meaning::Call(call), "C", 6, true);
    }
    for prefix in ["_rjem_", "jemalloc_", "je_"] {
        if let Some(meaning) = name.strip_prefix(prefix).and_then(c_or_extended) {
            return found(meaning, "jemalloc", 5, true);
        }
    }
    if let Some(call) = name.strip_prefix("tc_").and_then(tcmalloc) {
        return found(Meaning::Call(call), TCMALLOC, 5, true);
    }
    if let Some(meaning) = name.strip_prefix("mi_").and_then(mimalloc) {
        return found(meaning, MIMALLOC, 5, true);
    }
    prefixes.iter().find_map(|prefix| {
        let meaning = name.strip_prefix(prefix.as_str()).and_then(c_or_extended)?;
        found(meaning, &format!("{prefix}*"), 5, true)
    })
}

/// The names of C, POSIX, and of the C libraries beyond these.
fn c(name: &str) -> Option<Call> {
    Some(match name {
        "malloc" | "valloc" | "pvalloc" => Call::Size,
        "calloc" => Call::Product,
        "realloc" => Call::Resize,
        "reallocarray" => Call::ResizeArray,
        "aligned_alloc" | "memalign" => Call::SecondSize,
        "posix_memalign" => Call::OutPointer,
        "free" | "cfree" | "free_sized" | "free_aligned_sized" => Call::Release,
        "mmap" | "mmap64" | "mremap" | "brk" | "sbrk" => Call::Map,
        _ => return None,
    })
}

/// What the C libraries call these among themselves.
fn internal(name: &str) -> Option<Call> {
    Some(match name {
        "__posix_memalign" => Call::OutPointer,
        "__mmap" | "__mmap64" | "__mremap" | "__brk" | "__sbrk" => Call::Map,
        _ => return None,
    })
}

/// The global `operator new` and `operator delete` (Itanium C++ ABI, 5.1.5),
/// in all forms but those for placement, which allocate nothing, and those of a
/// class or with arguments of the program's own, which mean what it likes.
fn cpp(name: &str) -> Option<Call> {
    let (call, mut rest) = if let Some(rest) = strip_any(name, &["_Znwm", "_Znam"]) {
        (Call::Size, rest)
    } else {
        let rest = strip_any(name, &["_ZdlPv", "_ZdaPv"])?;
        (Call::Release, rest.strip_prefix('m').unwrap_or(rest))
    };
    // std::align_val_t, std::nothrow_t const&, and tcmalloc's __hot_cold_t.
    let more = ["St11align_val_t", "RKSt9nothrow_t", "12__hot_cold_t"];
    while let Some(shorter) = strip_any(rest, &more) {
        rest = shorter;
    }
    rest.is_empty().then_some(call)
}

/// jemalloc's calls with flags (jemalloc(3), "Non-standard API").
fn extended(name: &str) -> Option<Meaning> {
    Some(match name {
        "mallocx" => Meaning::Call(Call::Size),
        "rallocx" => Meaning::Call(Call::Resize),
        "dallocx" | "sdallocx" => Meaning::Call(Call::Release),
        "xallocx" => Meaning::Skipped("resizes in place and gives a size, not a block"),
        _ => return None,
    })
}

/// A name after an allocator's prefix.
fn c_or_extended(name: &str) -> Option<Meaning> {
    // Mapping is the C library's.
    let call = c(name).filter(|&call| call != Call::Map);
    call.map(Meaning::Call).or_else(|| extended(name))
}

/// gperftools' own names (`gperftools/tcmalloc.h`), after `tc_`.
fn tcmalloc(name: &str) -> Option<Call> {
    let names_of_cpp = |rest: &str| {
        let words = ["array", "_sized", "_aligned", "_nothrow"];
        let mut rest = rest;
        while let Some(shorter) = strip_any(rest, &words) {
            rest = shorter;
        }
        rest.is_empty()
    };
    match name {
        "malloc_skip_new_handler" => Some(Call::Size),
        _ if name.strip_prefix("new").is_some_and(names_of_cpp) => Some(Call::Size),
        _ if name.strip_prefix("delete").is_some_and(names_of_cpp) => Some(Call::Release),
        _ => c(name).filter(|&call| call != Call::Map),
    }
}

/// mimalloc's own names (`mimalloc.h`), after `mi_`.
fn mimalloc(name: &str) -> Option<Meaning> {
    let call = match name {
        "malloc"
        | "zalloc"
        | "malloc_small"
        | "zalloc_small"
        | "malloc_aligned"
        | "zalloc_aligned"
        | "malloc_aligned_at"
        | "zalloc_aligned_at"
        | "umalloc"
        | "uzalloc"
        | "umalloc_small"
        | "uzalloc_small"
        | "new"
        | "new_nothrow"
        | "new_aligned"
        | "new_aligned_nothrow"
        | "valloc"
        | "pvalloc" => Call::Size,
        "calloc" | "ucalloc" | "mallocn" | "calloc_aligned" | "calloc_aligned_at" | "new_n" => {
            Call::Product
        }
        "realloc"
        | "urealloc"
        | "reallocf"
        | "rezalloc"
        | "realloc_aligned"
        | "realloc_aligned_at"
        | "rezalloc_aligned"
        | "rezalloc_aligned_at"
        | "new_realloc" => Call::Resize,
        "reallocn"
        | "reallocarray"
        | "recalloc"
        | "recalloc_aligned"
        | "recalloc_aligned_at"
        | "new_reallocn" => Call::ResizeArray,
        "memalign" | "aligned_alloc" => Call::SecondSize,
        "posix_memalign" => Call::OutPointer,
        "free" | "cfree" | "ufree" | "free_size" | "free_size_aligned" | "free_aligned"
        | "free_small" => Call::Release,
        "expand" => return Some(Meaning::Skipped("resizes in place")),
        "reallocarr" => return Some(Meaning::Skipped("takes the address of the pointer")),
        "strdup" | "strndup" | "realpath" | "wcsdup" | "mbsdup" | "dupenv_s" | "wdupenv_s" => {
            return Some(Meaning::Skipped(NO_SIZE));
        }
        _ => return name.strip_prefix("heap_").or(name.strip_prefix("theap_")).and_then(heap),
    };
    Some(Meaning::Call(call))
}

const NO_SIZE: &str = "takes a text, not a size";

/// mimalloc's calls that name a heap as their first argument, after `heap_`.
fn heap(name: &str) -> Option<Meaning> {
    Some(match name {
        "malloc" | "zalloc" | "malloc_small" | "zalloc_small" | "malloc_aligned"
        | "zalloc_aligned" | "malloc_aligned_at" | "zalloc_aligned_at" | "alloc_new" => {
            Meaning::Call(Call::SecondSize)
        }
        "calloc" | "mallocn" | "calloc_aligned" | "calloc_aligned_at" | "alloc_new_n" => {
            Meaning::Skipped("takes a heap, a count and a size")
        }
        "realloc"
        | "reallocf"
        | "rezalloc"
        | "realloc_aligned"
        | "realloc_aligned_at"
        | "rezalloc_aligned"
        | "rezalloc_aligned_at"
        | "reallocn"
        | "recalloc"
        | "recalloc_aligned"
        | "recalloc_aligned_at" => Meaning::Skipped("takes a heap before the block"),
        "strdup" | "strndup" | "realpath" => Meaning::Skipped(NO_SIZE),
        "destroy" => Meaning::Skipped("releases many blocks at once: they seem to stay"),
        _ => return None,
    })
}

/// What follows the first of the prefixes that the name begins with.
fn strip_any<'name>(name: &'name str, prefixes: &[&str]) -> Option<&'name str> {
    prefixes.iter().find_map(|prefix| name.strip_prefix(prefix))
}

/// Whether a function of the C or the C++ library never returns, among those
/// that compilers call from inside others.
pub(super) fn never_returns(name: &str) -> bool {
    const NAMES: [&str; 9] = [
        "__stack_chk_fail",
        "_Unwind_Resume",
        "__cxa_throw",
        "__cxa_rethrow",
        "__cxa_throw_bad_array_new_length",
        "abort",
        "exit",
        "_exit",
        "__assert_fail",
    ];
    // std::__throw_bad_alloc() and its like, std::terminate()
    NAMES.contains(&name)
        || name.starts_with("_ZSt") && name.contains("__throw_")
        || name == "_ZSt9terminatev"
}

/// Whether a function that gives memory says by an exception that it cannot:
/// `operator new` but for its `nothrow` forms, and what allocators call theirs.
pub(super) fn may_throw(name: &str) -> bool {
    let operator = name.starts_with("_Zn");
    let own = ["tc_new", "mi_new"].iter().any(|prefix| name.starts_with(prefix));
    (operator || own) && !name.contains("nothrow")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn calls(names: &str) -> Vec<Option<Call>> {
        let call = |name| match known(name, &[])?.meaning {
            Meaning::Call(call) => Some(call),
            Meaning::Skipped(_) => None,
        };
        names.split_whitespace().map(call).collect()
    }

    /// That each of the names is called in this way.
    fn all(names: &str, call: Call) {
        for name in names.split_whitespace() {
            assert_eq!(calls(name), [Some(call)], "{name}");
        }
    }

    #[test]
    fn c_libraries() {
        all("malloc valloc pvalloc __libc_malloc __libc_valloc __libc_pvalloc", Call::Size);
        all("calloc __libc_calloc", Call::Product);
        all("realloc __libc_realloc", Call::Resize);
        all("reallocarray __libc_reallocarray", Call::ResizeArray);
        all("aligned_alloc memalign __libc_memalign", Call::SecondSize);
        all("posix_memalign __posix_memalign", Call::OutPointer);
        all("free cfree __libc_free free_sized free_aligned_sized", Call::Release);
        all("mmap mmap64 __mmap mremap brk sbrk __sbrk", Call::Map);
        let others = "malloc_usable_size malloc_trim free_list __libc_malloc_impl Free xmalloc";
        assert!(calls(others).iter().all(Option::is_none));
    }

    #[test]
    fn cpp_operators_but_those_for_placement_or_of_classes() {
        all("_Znwm _Znam _ZnwmRKSt9nothrow_t _ZnamSt11align_val_t", Call::Size);
        all("_ZnwmSt11align_val_tRKSt9nothrow_t _Znwm12__hot_cold_t", Call::Size);
        all("_ZdlPv _ZdaPv _ZdlPvm _ZdaPvRKSt9nothrow_t _ZdlPvSt11align_val_t", Call::Release);
        all("_ZdlPvmSt11align_val_t _ZdaPvSt11align_val_tRKSt9nothrow_t", Call::Release);
        let others = "_ZnwmPv _ZdlPvS_ _ZN3FoonwEm _ZN3FoodlEPv _ZnwmR5Arena _ZnwmRKSt9nothrow_tX";
        assert!(calls(others).iter().all(Option::is_none));
    }

    #[test]
    fn jemalloc() {
        all("je_malloc _rjem_malloc jemalloc_malloc mallocx _rjem_mallocx", Call::Size);
        all("rallocx je_rallocx je_realloc", Call::Resize);
        all("dallocx sdallocx _rjem_sdallocx je_free", Call::Release);
        all("_rjem_posix_memalign", Call::OutPointer);
        let others = "je_malloc_default je_sdallocx_default je_arena_malloc_hard nallocx je_mmap";
        assert!(calls(others).iter().all(Option::is_none));
    }

    #[test]
    fn tcmalloc() {
        all("tc_malloc tc_new tc_newarray tc_new_nothrow tc_new_aligned_nothrow", Call::Size);
        all("tc_free tc_cfree tc_free_sized tc_delete tc_deletearray_sized", Call::Release);
        all("tc_deletearray_sized_aligned tc_delete_nothrow", Call::Release);
        all("tc_memalign", Call::SecondSize);
        assert!(calls("tc_malloc_size tc_mallopt tc_version tc_news").iter().all(Option::is_none));
    }

    #[test]
    fn mimalloc() {
        all("mi_malloc mi_zalloc mi_malloc_small mi_new mi_new_aligned mi_valloc", Call::Size);
        all("mi_calloc mi_mallocn mi_new_n", Call::Product);
        all("mi_realloc mi_reallocf mi_new_realloc mi_realloc_aligned", Call::Resize);
        all("mi_reallocn mi_recalloc mi_reallocarray", Call::ResizeArray);
        all("mi_memalign mi_heap_malloc mi_heap_zalloc mi_theap_malloc", Call::SecondSize);
        all("mi_posix_memalign", Call::OutPointer);
        all("mi_free mi_free_size mi_free_size_aligned mi_cfree", Call::Release);
        for name in ["mi_heap_calloc", "mi_heap_realloc", "mi_expand", "mi_strdup", "mi_reallocarr"]
        {
            let meaning = known(name, &[]).unwrap().meaning;
            assert!(matches!(meaning, Meaning::Skipped(_)), "{name}");
        }
        let others = "mi_usable_size mi_heap_new mi_heap_delete mi_collect mi_good_size";
        assert!(others.split_whitespace().all(|name| known(name, &[]).is_none()));
    }
}

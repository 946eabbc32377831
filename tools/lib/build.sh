# shellcheck shell=bash
# Sourced: the one way this project is built. Everything (program, tests, lints) shares target, profile and flags, and so
# all of its artifacts. The program is linked statically: the same file runs on a machine without any library, and in
# the bare system of the test guests.

MW_TARGET=$(uname -m)-unknown-linux-gnu

need_toolchain() {
    need_packages build
    command -v cargo >/dev/null || PATH=$PATH:${CARGO_HOME:-$HOME/.cargo}/bin
    command -v cargo >/dev/null || die "there is no cargo: install a Rust toolchain first (with rustup, or the packages cargo and rustc if they are new enough)"
}

# mw_cargo COMMAND [ARGUMENT...]
mw_cargo() {
    local command=$1
    shift
    (
        cd "$MW_ROOT" || exit
        RUSTFLAGS="$(mw_rustflags)" cargo "$command" --release --target "$MW_TARGET" "$@"
    )
}

mw_rustflags() {
    local flags='-C target-feature=+crt-static' libelf
    # Newer libelf.a can compress with zstd and then does not link without it. It comes last: only what precedes an
    # archive is looked up in it.
    libelf=$(gcc -print-file-name=libelf.a)
    if nm "$libelf" 2>/dev/null | grep -q ' U ZSTD_'; then flags+=' -C link-arg=-l:libzstd.a'; fi
    echo "${RUSTFLAGS:+$RUSTFLAGS }$flags"
}

# mw_build: builds the program and prints its path. Cargo is heard only when it has something to do.
mw_build() {
    mw_artifact '"kind":\["bin"\]' build --bin mem_watcher
}

# mw_build_tests: the same for the live tests.
mw_build_tests() {
    mw_artifact '"kind":\["test"\]' test --no-run --test live
}

mw_artifact() {
    local kind=$1 messages path
    shift
    # Messages go to a file: cargo's own words must reach the terminal as they come.
    messages=$(mktemp)
    if ! mw_cargo "$@" --message-format=json-render-diagnostics 2> >(grep --line-buffered -v '^ *Finished ' >&2) >"$messages"; then
        rm -f "$messages"
        return 1
    fi
    path=$(sed -n "/$kind/s/.*\"executable\":\"\([^\"]*\)\".*/\1/p" "$messages" | tail -1)
    rm -f "$messages"
    [ -n "$path" ] || { say "cargo built no such program"; return 1; }
    echo "$path"
}

# mw_build_targets: builds the programs of tests/targets, and prints their folder. Heard only when something is wrong.
mw_build_targets() {
    local folder=$MW_ROOT/target/targets
    need_packages build targets
    (cd "$MW_ROOT/tests/targets" && make --silent OUT="$folder") >&2 || return
    echo "$folder"
}

# mw_targets_are_built: whether building them again would do nothing.
mw_targets_are_built() {
    (cd "$MW_ROOT/tests/targets" && make --question OUT="$MW_ROOT/target/targets")
}

# mw_libraries_of FILE...: every library these programs and libraries are linked with and the dynamic linkers that load
# them, as the paths they are looked for at.
mw_libraries_of() {
    local file loader
    for file in "$@"; do
        # A library names no dynamic linker: those here are made for the C library's own.
        loader=$(readelf --program-headers "$file" 2>/dev/null | sed -n 's/.*program interpreter: \(.*\)]/\1/p')
        if [ -n "$loader" ]; then
            echo "$loader"
            "$loader" --list "$file"
        elif [[ $file == *.so ]]; then
            ldd "$file"
        fi
    done | sed -nE 's/^([^ ]+)$/\1/p; s/.* => (\/[^ ]+) .*/\1/p' | sort -u
}

# A toolchain of the minimal kind lacks these two.
need_lints() {
    local part
    for part in fmt clippy; do
        cargo "$part" --version >/dev/null 2>&1 && continue
        command -v rustup >/dev/null || die "there is no cargo $part: install it"
        say "installing: cargo $part"
        rustup component add "${part/#fmt/rustfmt}" >/dev/null 2>&1 || die "could not install cargo $part"
    done
}

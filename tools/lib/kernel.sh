# shellcheck shell=bash
# Sourced: the newest cloud kernel of a Debian suite, by plain apt with private state: the machine's own package
# lists, sources and installed packages are neither used nor changed, and no root is needed.
# The mirror is the machine's own (MEM_WATCHER_DEBIAN_MIRROR=URL names another one, for machines that are not Debian).

# kernel_line NAME: its line in tests/kernels.txt.
kernel_line() { grep -E "^$1[[:space:]]" "$MW_ROOT/tests/kernels.txt"; }

# fetch_kernel SUITE [ARCH]: prints a directory holding `vmlinuz`, `modules/` (the modules' tree), `release` (what
# uname -r will say) and `packages` (name and version of each package). Looks for a newer kernel once a day.
fetch_kernel() {
    local suite=$1 arch=${2:-amd64} top
    top=$MW_CACHE/kernels/$suite-$arch
    mkdir -p "$top"
    (
        flock 9 # two guests may want the same kernel at once
        if [ -z "$(find "$top/resolved" -mmin -1440 2>/dev/null)" ]; then
            if kernel_resolve "$suite" "$arch" "$top"; then
                touch "$top/resolved"
            elif [ -e "$top/current/vmlinuz" ]; then
                say "note: no package lists for $suite: using the kernel fetched earlier"
            else
                exit 1
            fi
        fi
    ) 9>"$top/lock" || { say "could not fetch the $suite kernel for $arch"; return 1; }
    readlink -f "$top/current"
}

# kernel_resolve SUITE ARCH TOP: fills TOP/VERSION and points TOP/current at it.
kernel_resolve() {
    local suite=$1 arch=$2 top=$3 work=$3/work
    rm -rf "$work"
    mkdir -p "$work/lists/partial" "$work/cache/archives/partial" "$work/debs" "$work/root"
    touch "$work/status" "$work/error"
    local apt=(-o "Dir::Etc::SourceList=$work/sources.list" -o Dir::Etc::SourceParts=/dev/null
        -o "Dir::State::Lists=$work/lists" -o "Dir::State::status=$work/status" -o "Dir::Cache=$work/cache"
        -o Acquire::Languages=none -o APT::Update::Error-Mode=any -o APT::Sandbox::User="$(id -un)"
        -o "APT::Architecture=$arch" -o "APT::Architectures=$arch")
    kernel_sources "$suite" "$work" "${apt[@]}" || return 1

    # linux-image-cloud-ARCH -> linux-image-VERSION -> (newest kernels only) linux-binary-VERSION, linux-modules-VERSION
    local todo=("linux-image-cloud-$arch") found=() p deps
    while [ ${#todo[@]} -gt 0 ]; do
        p=${todo[0]}
        todo=("${todo[@]:1}")
        deps=$(apt-cache "${apt[@]}" show --no-all-versions "$p" | sed -n 's/^Depends: //p' |
            grep -oE '\<linux-(image|binary|modules)-[^ ,]+') || true
        for p in $deps; do
            found+=("$p")
            todo+=("$p")
        done
    done
    [ ${#found[@]} -gt 0 ] || return 1

    local version
    version=$(apt-cache "${apt[@]}" show --no-all-versions "linux-image-cloud-$arch" | sed -n 's/^Version: //p')
    if [ ! -e "$top/$version/vmlinuz" ]; then
        say "fetching the $suite kernel for $arch: ${found[0]#linux-image-} ($version)"
        (cd "$work/debs" && apt-get "${apt[@]}" -qq download "${found[@]}" >&2) || return 1
        local deb
        for deb in "$work"/debs/*.deb; do
            dpkg-deb --field "$deb" Package Version | sed 's/^[^:]*: //' | paste -sd ' ' >>"$work/root/packages"
            dpkg-deb --extract "$deb" "$work/root" || return 1
        done
        kernel_tidy "$work/root" || return 1
        mv "$work/root" "$top/$version"
    fi
    ln -sfn "$version" "$top/current"
    rm -rf "$work"
    find "$top" -mindepth 1 -maxdepth 1 -type d ! -name "$version" -exec rm -rf {} + # older ones
}

# kernel_sources SUITE WORK APT-OPTION...: the first mirror of this machine that has the suite, with its security updates
# where there are any.
kernel_sources() {
    local suite=$1 work=$2 mirror security keyring mirrors
    shift 2
    for keyring in /usr/share/keyrings/debian-archive-keyring.{gpg,pgp}; do [ ! -e "$keyring" ] || break; done
    mirrors=${MEM_WATCHER_DEBIAN_MIRROR:-$(machine_mirrors)}
    for mirror in $mirrors; do
        case $mirror in *-security | *-security/) continue ;; esac
        echo "deb [signed-by=$keyring] $mirror $suite main" >"$work/sources.list"
        for security in $mirrors; do
            case $security in *-security | *-security/)
                echo "deb [signed-by=$keyring] $security $suite-security main" ;;
            esac
        done >>"$work/sources.list"
        apt-get "$@" -qq update >/dev/null 2>&1 && return 0
        sed -i 1q "$work/sources.list" # that suite may have no security updates there
        apt-get "$@" -qq update >/dev/null 2>>"$work/error" && return 0
    done
    cat "$work/error" >&2
    say "no mirror of this machine has Debian $suite: MEM_WATCHER_DEBIAN_MIRROR=URL names one that does"
    return 1
}

# machine_mirrors: a line each. Apt knows only those whose package lists it has fetched.
machine_mirrors() {
    local try mirrors
    for try in 1 2; do
        # shellcheck disable=SC2016 # that variable is apt's
        mirrors=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | sort -u)
        if [ -n "$mirrors" ] || [ $try = 2 ]; then break; fi
        as_root apt-get update -qq >&2
    done
    echo "$mirrors"
}

# kernel_tidy DIR: the same places for every kernel, whichever way its packages lay it out; nothing else is kept.
kernel_tidy() {
    local dir=$1 release
    release=$(find "$dir" -type d -path '*/modules/*/kernel' -print -quit)
    release=$(basename "$(dirname "$release")")
    echo "$release" >"$dir/release"
    mv "$(find "$dir" -type d -path "*/modules/$release/kernel" -print -quit)" "$dir/modules"
    mv "$(find "$dir" -name vmlinuz -o -name "vmlinuz-$release" | head -1)" "$dir/vmlinuz" || return 1
    find "$dir" -mindepth 1 -maxdepth 1 -type d ! -name modules -exec rm -rf {} +
}

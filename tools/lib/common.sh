# shellcheck shell=bash
# Sourced by every tool: messages, directories and the packages a job needs.

MW_ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)
MW_CACHE=${MEM_WATCHER_CACHE:-${XDG_CACHE_HOME:-${HOME:?HOME is not set}/.cache}/mem_watcher}
export MW_ROOT MW_CACHE
PATH=$PATH:/usr/sbin:/sbin # modinfo and bpftool live there, and a user's PATH may lack it

say() { printf '%s\n' "$*" >&2; }
die() { say "${0##*/}: $*"; exit 1; }

# The comment at the top of a tool is its help text.
usage() { sed -n '2,/^[^#]/{s/^# \{0,1\}//p;}' "$0"; }

# as_root COMMAND...: sudo only where it is needed.
as_root() {
    if [ "$(id -u)" = 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo "$@"
    else
        die "this needs root, and there is no sudo: $*"
    fi
}

# need_packages JOB...: installs what these jobs lack, saying so in one line; silent when nothing is missing.
need_packages() {
    local job wanted missing
    command -v apt-get >/dev/null || return 0 # not a Debian: the programs themselves will be missed soon enough
    wanted=$(for job in "$@"; do packages_of "$job"; done | tr ' ' '\n' | sort -u)
    # shellcheck disable=SC2086 # one package a word
    missing=$(comm -23 <(echo "$wanted") <(installed $wanted) | paste -sd ' ')
    [ -n "$missing" ] || return 0
    say "installing: $missing"
    # The package lists of a fresh machine may be absent or old: fetch them when the first attempt fails.
    # shellcheck disable=SC2086
    apt_install $missing 2>/dev/null || { as_root apt-get update -qq >&2 && apt_install $missing; } ||
        die "could not install: $missing"
}

packages_of() {
    case $1 in
        build) echo clang make gcc libc6-dev pkg-config libelf-dev zlib1g-dev ;; # where libelf.a needs zstd, libelf-dev brings it
        targets) echo g++ libjemalloc-dev libgoogle-perftools-dev libmimalloc-dev musl-tools systemtap-sdt-dev ;;
        lint) echo clang-format shellcheck ;;
        kernel) echo xz-utils debian-archive-keyring ;;
        vm) echo qemu-system-x86 busybox-static cpio kmod ;;
        vmlinux) echo gzip lz4 zstd "$(bpftool_package)" ;;
        *) die "no such job: $1" ;;
    esac
}

# Debian and new Ubuntu releases have a package of that name; in older ones bpftool comes with the kernel's tools.
bpftool_package() {
    if [ -n "$(apt-cache search --names-only '^bpftool$')" ]; then echo bpftool; else echo linux-tools-generic; fi
}

# installed PACKAGE...: those of them that are.
installed() {
    dpkg-query -W -f '${db:Status-Status} ${Package}\n' "$@" 2>/dev/null | sed -n 's/^installed //p' | sort -u
}

apt_install() {
    as_root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
        -o DPkg::Lock::Timeout=120 "$@" >/dev/null </dev/null
}

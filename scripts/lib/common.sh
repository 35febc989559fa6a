# shellcheck shell=bash
# Shared by the scripts of this folder: where we are, what we say, and what must be installed. Sourced, not run.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)

# What cargo prints and keeps when nobody watches.
if [ ! -t 2 ]; then
    export CARGO_TERM_COLOR=${CARGO_TERM_COLOR:-never} CARGO_TERM_PROGRESS_WHEN=${CARGO_TERM_PROGRESS_WHEN:-never}
fi
if [ -n "${CI:-}" ]; then
    export CARGO_INCREMENTAL=0 # a clean checkout gains nothing from it, and it takes space
fi
export GIT_TERMINAL_PROMPT=0 # nobody is there to answer

say() { printf '%s\n' "$*" >&2; }

die() {
    say "error: $*"
    exit 2
}

# Where tools that we build for ourselves stay between runs, outside the checkout.
tools_cache() { printf '%s\n' "${PEERAGE_TOOLS:-${XDG_CACHE_HOME:-${HOME:-/tmp}/.cache}/peerage/tools}"; }

# The Debian package that brings $1: mostly a command.
package_of() {
    case "$1" in
        cc) echo gcc ;;
        libc-headers) echo libc6-dev ;;
        ip) echo iproute2 ;;
        nft) echo nftables ;;
        setpriv | unshare) echo util-linux ;;
        sysctl) echo procps ;;
        pip3) echo python3-pip ;;
        cni-plugins) echo containernetworking-plugins ;;
        musl-gcc) echo musl-tools ;;
        busybox) echo busybox-static ;;
        systemd-analyze) echo systemd ;;
        miniupnpd) echo miniupnpd-nftables ;;
        *) echo "$1" ;;
    esac
}

has() {
    case "$1" in
        libc-headers) [ -e /usr/include/stdlib.h ] ;;
        ca-certificates) [ -e /etc/ssl/certs/ca-certificates.crt ] ;;
        binutils) command -v strip >/dev/null 2>&1 && command -v readelf >/dev/null 2>&1 ;;
        cni-plugins) [ -x /usr/lib/cni/ptp ] ;;
        # Administrators' programs: they need not be in a user's PATH.
        ip | nft | runc | sysctl) PATH=$PATH:/usr/sbin:/sbin command -v "$1" >/dev/null 2>&1 ;;
        *) command -v "$1" >/dev/null 2>&1 ;;
    esac
}

# Makes the commands in $@ available: by apt as root, otherwise by saying what to install.
need() {
    local name missing=()
    for name; do
        has "$name" || missing+=("$(package_of "$name")")
    done
    [ "${#missing[@]}" -gt 0 ] || return 0
    command -v apt-get >/dev/null 2>&1 || die "please install what brings: ${missing[*]} (Debian's package names)"
    if [ "$(id -u)" != 0 ]; then
        say "missing: ${missing[*]}"
        die "please run:  sudo apt-get update && sudo apt-get install -y --no-install-recommends ${missing[*]}"
    fi
    say "installing ${missing[*]}"
    apt_install "${missing[@]}" || die "apt-get could not install ${missing[*]}"
}

apt_install() {
    if [ -z "${apt_updated:-}" ]; then
        apt-get update -qq >&2 || return 1
        apt_updated=1
    fi
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq -o Dpkg::Use-Pty=0 --no-install-recommends "$@" >&2 </dev/null
}

rust_wanted() { sed -n 's/^rust-version = "\(.*\)"/\1/p' "$root/Cargo.toml"; }

# Makes a Rust toolchain available that is new enough for Cargo.toml's rust-version. "$@": components it must have.
need_rust() {
    local wanted found component
    wanted=$(rust_wanted)
    has cargo || PATH=${CARGO_HOME:-${HOME:-}/.cargo}/bin:$PATH
    cargo --version >/dev/null 2>&1 || install_rust "$wanted"
    found=$(cargo --version | cut -d' ' -f2)
    if [ "$(printf '%s\n%s\n' "$wanted" "$found" | sort -V | head -n 1)" != "$wanted" ]; then
        die "cargo is $found, and Peerage needs $wanted or newer. $(rust_advice "$wanted")"
    fi
    for component; do
        "cargo-$component" --version >/dev/null 2>&1 ||
            die "the Rust toolchain has no $component. Please run:  rustup component add clippy rustfmt"
    done
}

rust_advice() {
    echo "Please run (Rust $1 or newer is needed):"
    if has rustup; then
        echo "  rustup toolchain install $1 --component clippy,rustfmt && rustup default $1"
    else
        echo "  curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh -s -- -y --default-toolchain $1"
    fi
}

# Debian 13 and newer bring rustup; Debian 12 does not, and its rustc is too old. Somebody else's home is left alone:
# only root, whose machine this is, gets a toolchain unasked.
install_rust() {
    [ "$(id -u)" = 0 ] || die "there is no working cargo. $(rust_advice "$1")"
    if ! has rustup; then
        say "there is no cargo: trying Debian's rustup"
        apt_install rustup ca-certificates || die "there is no cargo, and no rustup in this Debian. $(rust_advice "$1")"
    fi
    if ! rustup toolchain install "$1" --profile minimal --component clippy,rustfmt >&2 </dev/null ||
        ! rustup default "$1" >&2 || ! cargo --version >/dev/null 2>&1; then
        die "rustup could not install a toolchain. $(rust_advice "$1")"
    fi
}

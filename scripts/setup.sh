# Sourced by ./demo, ./test and .ci/run: finds what they need and installs what is missing, saying so first.
# Works on Debian and Ubuntu with Rust installed; anything else is asked to bring the programs itself.

say() { printf '\033[1m==>\033[0m %s\n' "$*" >&2; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }

# Build output stays outside the clone, so that a second clone builds quickly and the tree stays clean.
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/skep/target}
SKEP_TARGET=$(rustc -vV 2>/dev/null | sed -n 's/^host: //p')
[ -n "$SKEP_TARGET" ] || die "Rust is not installed: see https://rustup.rs"
export SKEP_BIN=$CARGO_TARGET_DIR/$SKEP_TARGET/release/skep

[ "$(id -u)" = 0 ] || die "run this as root: it makes network namespaces, mounts and cgroups"

# setup [extra packages]: installs the Debian packages behind the commands that are missing.
setup() {
    local missing=() package
    command -v cc >/dev/null || missing+=(build-essential)
    [ -e /usr/include/seccomp.h ] || missing+=(libseccomp-dev)
    command -v curl >/dev/null || missing+=(curl)
    if ! command -v docker >/dev/null; then
        # Only the client is used. Debian 13 and Ubuntu have it apart from the daemon.
        if apt-cache show docker-cli >/dev/null 2>&1; then missing+=(docker-cli); else missing+=(docker.io); fi
    fi
    for package in "$@"; do dpkg -s "$package" >/dev/null 2>&1 || missing+=("$package"); done
    [ ${#missing[@]} = 0 ] && return 0
    command -v apt-get >/dev/null || die "please install: ${missing[*]}"
    say "installing ${missing[*]} (apt-get)"
    apt-get update -q >/dev/null
    # policy-rc.d: a package that brings a service must not start it here.
    local policy=/usr/sbin/policy-rc.d made=
    if [ ! -e $policy ]; then printf '#!/bin/sh\nexit 101\n' >$policy; chmod +x $policy; made=1; fi
    DEBIAN_FRONTEND=noninteractive apt-get install -qy --no-install-recommends "${missing[@]}" >/dev/null
    [ -z "$made" ] || rm -f $policy
}

build() {
    say "building skep (release, static) into $CARGO_TARGET_DIR"
    cargo build --release --locked --package skep
    say "$(stat -c %s "$SKEP_BIN" | awk '{printf "skep is %.1f MiB", $1/1048576}'), $(file -b "$SKEP_BIN" 2>/dev/null | grep -o 'static[a-z-]*' | head -1)"
}

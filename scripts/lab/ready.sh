# shellcheck shell=sh disable=SC2034,SC2154
# Makes a Debian or Ubuntu machine ready to build, try and test. Sourced by demo, test and bench;
# wants $here (the folder scripts) and lib.sh.

# packages NAME…: installs what is missing, without starting the services that come with it.
packages() {
    [ "$(id -u)" = 0 ] || fail 77 "run it as root"
    missing=''
    for package in "$@"; do
        dpkg-query -W -f '${db:Status-Abbrev}' "$package" 2>/dev/null | grep -q '^ii' || missing="$missing $package"
    done
    [ -n "$missing" ] || return 0
    say "installing$missing"
    policy=/usr/sbin/policy-rc.d
    if [ -e $policy ]; then policy=''; else printf '#!/bin/sh\nexit 101\n' >$policy && chmod 0755 $policy; fi
    installed=0
    # shellcheck disable=SC2086  # one word for each package
    { DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $missing ||
        { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $missing; }
    } </dev/null >/dev/null || installed=$?
    [ -z "$policy" ] || rm -f "$policy"
    [ $installed = 0 ] || fail 69 "apt-get could not install$missing"
}

# What the tools need to run, and what the lab needs besides.
RUN_PACKAGES='rsync openssh-client curl jq php-cli postgresql-client sshfs cryptsetup-bin e2fsprogs'
LAB_PACKAGES="$RUN_PACKAGES php-pgsql openssh-server postgresql iproute2 util-linux kmod procps gcc libc6-dev"

# Finds cargo, new enough for this workspace.
find_cargo() {
    PATH=$PATH:${CARGO_HOME:-${HOME:-/root}/.cargo}/bin
    export PATH
    wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$here/../Cargo.toml")
    cure="Rust $wanted or newer is needed: see https://rustup.rs (distributions' packages are often older)"
    command -v cargo >/dev/null || fail 69 "there is no cargo. $cure"
    have=$(cd "$here/.." && cargo --version | cut -d' ' -f2)
    [ "$(printf '%s\n%s\n' "$wanted" "$have" | sort -V | head -n 1)" = "$wanted" ] ||
        fail 69 "cargo is $have. $cure"
}

# Builds the tools for real use and sets $bin, unless it is set.
build() {
    [ -z "$bin" ] || return 0
    find_cargo
    (cd "$here/.." && cargo build --release --locked --quiet --workspace --bins)
    bin=$(cd "$here/.." && cargo metadata --format-version 1 --no-deps --locked | jq -r .target_directory)/release
}

# A free port on 127.0.0.1, as far as one can know.
free_port() {
    # shellcheck disable=SC2016  # PHP's variables
    php -r '$s = stream_socket_server("tcp://127.0.0.1:0"); echo explode(":", stream_socket_get_name($s, false))[1];'
}

# shellcheck shell=sh disable=SC2034,SC2154
# Makes a Debian or Ubuntu machine ready to build, try and test. Sourced by demo, test and bench;
# wants $repo (the checkout) and scripts/lib.sh.

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
RUN_PACKAGES='rsync openssh-client curl jq php-cli postgresql-client sshfs cryptsetup-bin e2fsprogs squashfs-tools btrfs-progs'
LAB_PACKAGES="$RUN_PACKAGES php-pgsql openssh-server postgresql iproute2 util-linux kmod procps gcc libc6-dev"

# Whether cargo is here, and new enough for this workspace; sets $wanted and $have.
cargo_is_new() {
    PATH=$PATH:${CARGO_HOME:-${HOME:-/root}/.cargo}/bin
    export PATH
    wanted=$(sed -n 's/^rust-version = "\(.*\)"/\1/p' "$repo/Cargo.toml")
    have=$(cd "$repo" && cargo --version 2>/dev/null | cut -d' ' -f2) || have=''
    [ -n "$have" ] && [ "$(printf '%s\n%s\n' "$wanted" "$have" | sort -V | head -n 1)" = "$wanted" ]
}

# Finds cargo; where it is missing or too old, asks whether to fetch Rust with the distribution's rustup, or says the
# one line that does it. (Rust of Debian 13 is 1.85: too old. Debian 12 has no rustup.)
find_cargo() {
    ! cargo_is_new || return 0
    problem="Rust $wanted or newer is needed, and here is ${have:-none}"
    # What is needed of it, and no documentation.
    install="rustup toolchain install stable --profile minimal --component clippy,rustfmt && rustup default stable"
    if ! command -v rustup >/dev/null; then
        if apt-cache policy rustup 2>/dev/null | grep -q 'Candidate: [0-9]'; then
            install="apt-get install rustup && $install"
        else
            install="curl --proto '=https' --tlsv1.2 -sSf https://sh.rustup.rs | sh"
        fi
    fi
    case $install in
        curl*) ;;
        *)
            if [ -t 0 ]; then
                say "$problem. Fetch it now? It takes about 300 MB, and the place of a Rust that the distribution brought:"
                say "  $install"
                say "[Y/n]"
                read -r answer || answer=n
                case $answer in
                    '' | [Yy]*)
                        case $install in apt-get*) packages rustup ;; esac
                        { rustup toolchain install stable --profile minimal --component clippy,rustfmt &&
                            rustup default stable; } >&2 || fail 69 "rustup could not fetch Rust"
                        hash -r
                        ! cargo_is_new || return 0
                        fail 69 "cargo is still ${have:-not there}: $(command -v cargo || echo 'is it on PATH?')"
                        ;;
                esac
            fi
            ;;
    esac
    fail 69 "$problem. This brings it: $install"
}

# Builds the tools as for real use and sets $bin, unless it is set. (Without link-time optimisation: it makes them smaller, and
# takes minutes.)
build() {
    [ -z "$bin" ] || return 0
    find_cargo
    (cd "$repo" && CARGO_PROFILE_RELEASE_LTO=off cargo build --release --locked --quiet --workspace --bins)
    bin=$(cd "$repo" && cargo metadata --format-version 1 --no-deps --locked | jq -r .target_directory)/release
}

# A free port on 127.0.0.1, as far as one can know.
free_port() {
    # shellcheck disable=SC2016  # PHP's variables
    php -r '$s = stream_socket_server("tcp://127.0.0.1:0"); echo explode(":", stream_socket_get_name($s, false))[1];'
}

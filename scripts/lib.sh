# shellcheck shell=sh disable=SC2034,SC2154
# What the scripts that compose the tools share. Sourced; wants $here, the folder of the script.

VERSION=0.1.0
umask 077

say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }
fail() { code=$1; shift; say "$*"; exit "$code"; }
# The comment at the top of the script, without its marks.
usage() { sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"; }
need() { [ "$1" -gt 1 ] || fail 2 "$2 needs a value (see --help)"; }

# The folder of the tools: beside the script, of a build in this checkout, or where install puts them.
find_bin() {
    for bin in "$here" "$here/../target/release" /usr/sbin; do
        [ ! -x "$bin/link-sync" ] || return 0
    done
    fail 69 "the tools are not found: install them (scripts/install), or give --bin DIR"
}

# Before a tool that needs root's rights: nothing, or sudo, with a rule that has exactly these words.
if [ "$(id -u)" = 0 ]; then
    sudo=''
    # Started by `sudo backup-local`: nc-maint shall not hand its command back to the one who typed that.
    unset SUDO_UID SUDO_GID SUDO_USER SUDO_COMMAND
else
    sudo='sudo -n --'
fi

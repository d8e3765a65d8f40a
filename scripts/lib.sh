# shellcheck shell=sh disable=SC2034,SC2154
# What the scripts that compose the tools share. Sourced; wants $here, the folder of the script.

VERSION=0.1.0
umask 077

say() { printf '%s: %s\n' "${0##*/}" "$*" >&2; }
fail() { code=$1; shift; say "$*"; exit "$code"; }
# refuse CODE MESSAGE: fail with a status object, as everything does that is not wrong options. Needs no jq: the
# message loses its quotes and backslashes.
refuse() {
    case $1 in 69) word=unavailable ;; 77) word=denied ;; *) word=failed ;; esac
    printf '{"schema":1,"tool":"%s","version":"%s","action":"run","profile":null,"status":"%s","exit_code":%s,"changed":false,"started_at":"%s","duration_ms":0,"data":{},"warnings":[],"error":{"kind":"%s","message":"%s","causes":[],"hint":null,"command":null},"left_behind":[]}\n' \
        "${0##*/}" "$VERSION" "$word" "$1" "$(date -u +%Y-%m-%dT%H:%M:%SZ)" "$word" "$(printf %s "$2" | tr -d '\042\134')"
    fail "$1" "$2"
}
# The comment at the top of the script, without its marks.
usage() { sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"; }
need() { [ "$1" -gt 1 ] || fail 2 "$2 needs a value (see --help)"; }

# The folder of the tools: beside the script, of a build in this checkout, or where install puts them.
find_bin() {
    for bin in "$here" "$here/../target/release" /usr/sbin; do
        [ ! -x "$bin/link-sync" ] || return 0
    done
    refuse 69 "the tools are not found: install them (scripts/install), or give --bin DIR"
}

# Before a tool that needs root's rights: nothing, or sudo, with a rule that has exactly these words.
if [ "$(id -u)" = 0 ]; then
    sudo=''
    # Started by `sudo backup-local`: nc-maint shall not hand its command back to the one who typed that.
    unset SUDO_UID SUDO_GID SUDO_USER SUDO_COMMAND
else
    sudo='sudo -n --'
fi

# For scripts that run tools as steps: $work, the moment of the start, and signals that are passed on. (backup-local
# has the same of its own, with a lock besides.)
begin_steps() {
    command -v jq >/dev/null || refuse 69 "jq is missing: apt-get install jq"
    started_at=$(date -u +%Y-%m-%dT%H:%M:%SZ)
    started=$(date +%s%3N)
    work=$(mktemp -d) || refuse 1 "cannot make a folder in ${TMPDIR:-/tmp}"
    trap 'rm -rf "$work"' EXIT
    signal='' child=''
    : >"$work/steps"
    trap 'stop 1' HUP
    trap 'stop 2' INT
    trap 'stop 15' TERM
}
# shellcheck disable=SC2317  # called by the traps
stop() { signal=$1; [ -z "$child" ] || kill -TERM "$child" 2>/dev/null || true; }

# await COMMAND…: runs it so that a signal reaches it; its stdin is ours. Sets $rc.
await() {
    "$@" <&3 &
    child=$!
    rc=0
    wait "$child" || rc=$?
    # A signal ends `wait`, not the child.
    while [ -n "$signal" ] && [ "$rc" -gt 128 ] && [ -d "/proc/$child" ]; do
        rc=0
        wait "$child" || rc=$?
    done
    child=''
}

# note_step NAME COMMAND…: runs a tool and notes its status object. Sets $rc.
note_step() {
    name=$1 before=$(date +%s%3N)
    shift
    await "$@" 3</dev/null >"$work/out"
    jq -cn --arg step "$name" --argjson code "$rc" --argjson ms $(($(date +%s%3N) - before)) \
        --rawfile out "$work/out" '{step: $step, exit_code: $code, duration_ms: $ms,
            output: ($out | split("\n") | map(fromjson? | objects) | last)}' >>"$work/steps"
}

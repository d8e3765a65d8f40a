# shellcheck shell=sh disable=SC2034,SC2154
# What the scripts that compose the tools share. Sourced; wants $here, the folder of the script.
#
# Nothing that only tells may change what happens: a message that nobody can read, a full disk, a status object that
# nobody takes. And the other way round: however a script ends, `ended` undoes what must be undone, and tells it.

VERSION=0.1.0
umask 077
# What of the caller's could change the meaning of a command below.
case ${0##*/} in
    backup-local | settle-and-hold | drill | restore | push-offsite)
        for variable in $(env -0 | sed -z 's/=.*//' | tr '\0' '\n' | LC_ALL=C grep -axE '[A-Za-z_][A-Za-z0-9_]*'); do
            case $variable in
                HOME | LOGNAME | PATH | PWD | SUDO_COMMAND | SUDO_GID | SUDO_UID | SUDO_USER | TERM | TMPDIR | USER | here) ;;
                *) unset "$variable" ;;
            esac
        done
        ;;
esac
unset CDPATH ENV BASH_ENV POSIXLY_CORRECT GREP_OPTIONS LANGUAGE LOCPATH NLSPATH GCONV_PATH JQ_COLORS NC_BACKUP_TOOLS
LC_ALL=C.UTF-8
export LC_ALL
# As far as may be: the answers of the tools are files.
# shellcheck disable=SC3045  # every sh of Debian has them
ulimit -S -f "$(ulimit -H -f)" 2>/dev/null || true
# Closed ones would be what the next file that is opened gets.
{ true <&0; } 2>/dev/null || exec </dev/null
{ true >&1; } 2>/dev/null || exec >/dev/null
{ true >&2; } 2>/dev/null || exec 2>/dev/null

# Names and foreign messages reach root's terminal: nothing in them is a command to it.
show() { LC_ALL=C tr '\000-\037\177' '?' | LC_ALL=C sed 's/\xc2[\x80-\x9f]/?/g'; }
say() { printf '%s: %s\n' "${0##*/}" "$(printf %s "$*" | show)" >&2 2>/dev/null || true; }
fail() { code=$1; shift; say "$*"; exit "$code"; }
# bare CODE CHANGED MESSAGE: a status object made without jq: the message keeps its plain characters.
bare() {
    told=$(printf %s "$3" | LC_ALL=C tr -cd '\040\041\043-\133\135-\176')
    case $1 in
        0 | 3) warned="{\"kind\":\"not-told\",\"message\":\"$told\"}" error=null ;;
        *) warned='' error="{\"kind\":\"$(kind "$1")\",\"message\":\"$told\",\"causes\":[],\"hint\":null,\"command\":null}" ;;
    esac
    printf '{"schema":1,"tool":"%s","version":"%s","action":"run","profile":null,"status":"%s","exit_code":%s,"changed":%s,"started_at":"%s","duration_ms":0,"data":{},"warnings":[%s],"error":%s,"left_behind":[]}\n' \
        "${0##*/}" "$VERSION" "$(word "$1")" "$1" "$2" "$(date -u +%Y-%m-%dT%H:%M:%SZ)" "$warned" "$error"
}
word() {
    case $1 in
        0) echo ok ;; 2) echo usage ;; 3) echo partial ;; 4) echo dirty ;; 69) echo unavailable ;; 75) echo busy ;;
        77) echo denied ;; 78) echo config ;; *) if [ "$1" -gt 128 ]; then echo interrupted; else echo failed; fi ;;
    esac
}
kind() { case $1 in 4) echo failed ;; *) word "$1" ;; esac }
# refuse CODE MESSAGE: fail with a status object, as everything does that is not wrong options.
refuse() {
    trap - EXIT
    bare "$1" false "$2" 2>/dev/null || true
    clear_work
    fail "$1" "$2"
}
# The comment at the top of the script, without its marks.
usage() { sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"; }
need() { [ "$1" -gt 1 ] || fail 2 "$2 needs a value (see --help)"; }

# check_name: whether $profile is a name that the tools take, too.
check_name() {
    case $profile in
        -* | *[!a-z0-9-]* | ?????????????????????????????????*)
            fail 2 "'$(printf %.40s "$profile")' is not the name of a profile: a-z, 0-9 and -, at most 32 of them (see --help)"
            ;;
    esac
}

# The folder of the tools: beside the script, of a build in this checkout, or where install puts them.
find_bin() {
    for bin in "$here" "$here/../target/release" /usr/sbin; do
        [ ! -x "$bin/link-sync" ] || return 0
    done
    refuse 69 "the tools are not found: install them (scripts/install), or give --bin DIR"
}

# hold_tools: from here on $bin has the tools of now, whatever an upgrade puts in their place or takes away, and $beside
# the scripts. The tools find one another there, too. (Without root that cannot be: sudo runs what lies under the names
# of its rules.) Wants $work.
hold_tools() {
    beside=$here held=''
    [ -z "$sudo" ] && [ -n "$work" ] || return 0
    [ -r "$bin/link-sync" ] && [ -r "$bin/pg-snap" ] && [ -r "$bin/nc-maint" ] || return 0
    { mkdir "$work/bin" && cp "$here/settle-and-hold" "$here/lib.sh" "$work/bin"; } 2>/dev/null || return 0
    exec 5<"$bin/link-sync" 6<"$bin/pg-snap" 7<"$bin/nc-maint"
    ln -s "/proc/$$/fd/5" "$work/bin/link-sync" || return 0
    ln -s "/proc/$$/fd/6" "$work/bin/pg-snap" || return 0
    ln -s "/proc/$$/fd/7" "$work/bin/nc-maint" || return 0
    bin=$work/bin beside=$work/bin held=1
    export NC_BACKUP_TOOLS="$bin"
}

# Before a tool that needs root's rights: nothing, or sudo, with a rule that has exactly these words.
if [ "$(id -u)" = 0 ]; then
    sudo=''
    # Started by `sudo backup-local`: nc-maint shall not hand its command back to the one who typed that.
    unset SUDO_UID SUDO_GID SUDO_USER SUDO_COMMAND
else
    sudo='sudo -n --'
fi
# denied COMMAND…: whether it is sudo that does not let this account run it. (A tool that has run has printed an
# object; without one, sudo is asked.)
denied() {
    [ "$1" = sudo ] || return 1
    shift 3
    ! sudo -n -l -- "$@" >/dev/null 2>&1
}
rules='README has them'
case ${0##*/} in
    backup-local) rules="$here/setup prints them" ;;
    push-offsite | drill) rules="$0 --help has them" ;;
esac
no_rule() { printf 'sudo does not let %s run "%s" without a password: it needs a rule with exactly these words (%s)' "$(id -un)" "$*" "$rules"; }

# Parts of a profile, for setup and for a restore that begins with nothing.
toml() { jq -cn --arg v "$1" '$v'; }
# store_tables STORE IDENTITY RESTORE_IDENTITY PORT KNOWN_HOSTS
store_tables() {
    printf '[snapshot]\nstore = %s\n' "$(toml "$1")"
    case $1 in
        /*)
            # A store on a disk of its own: that disk has to be there, or a backup would fill the one below.
            above=$1
            while [ ! -d "$above" ]; do above=$(dirname "$above"); done
            mount=$(df --output=target "$above" | tail -n 1)
            printf '\n[store]\npath = %s\n' "$(toml "$1")"
            [ "$mount" = / ] || printf 'mount = %s\n' "$(toml "$mount")"
            ;;
        *)
            [ -z "$2$3$4$5" ] || printf '\n[snapshot.ssh]\n'
            [ -z "$2" ] || printf 'identity = %s\n' "$(toml "$2")"
            [ -z "$3" ] || printf 'restore_identity = %s\n' "$(toml "$3")"
            [ -z "$4" ] || printf 'port = %s\n' "$4"
            [ -z "$5" ] || printf 'known_hosts = %s\n' "$(toml "$5")"
            ;;
    esac
}
# source_table NAME [PATH]
source_table() {
    printf '\n[[snapshot.source]]\nname = %s\n' "$(toml "$1")"
    [ -z "${2-}" ] || printf 'path = %s\n' "$(toml "$2")"
}

# For scripts that run tools as steps. The script has a function `conclude`, which is run once, however the script
# ends: signals are ignored then, $code and $failed say how it went. It undoes, and calls `report`.
begin_steps() {
    PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
    export PATH
    check_name
    command -v jq >/dev/null || refuse 69 "jq is missing: apt-get install jq"
    started_at=$(date -u +%Y-%m-%dT%H:%M:%SZ)
    started=$(date +%s%3N)
    signal='' child='' steps='' name='' answered='' code=0 failed='' problem='' finished=''
    # Where the tools have their locks and sockets.
    runtime=/run/nc-backup/$profile
    [ "$(id -u)" = 0 ] || runtime=$(getent passwd "$(id -u)" | cut -d: -f6)/.local/state/nc-backup/$profile/run
    mkdir -p "$runtime" 2>/dev/null || true
    trap ended EXIT
    trap '' PIPE
    trap 'stop 1' HUP
    trap 'stop 2' INT
    trap 'stop 15' TERM
    begin_work
}
# shellcheck disable=SC2317  # called by the traps
stop() { signal=$1; [ -z "$child" ] || kill -TERM "$child" 2>/dev/null || true; }

# The one way out.
# shellcheck disable=SC2317
ended() {
    last=$?
    trap - EXIT
    trap '' HUP INT TERM
    set +eu
    if [ -z "$finished" ] && [ -z "$failed" ]; then
        # A command of the script's own failed that never should.
        failed=${name:-begin} code=1
        [ -z "$signal" ] || code=$((128 + signal))
        problem="the script ended unexpectedly at the step $failed (exit code $last)"
        say "$problem"
    fi
    conclude
    clear_work
    exit "$code"
}

# One answer of a tool, in a file: $work/answer. Its room is taken at once, so that no disk that fills up later can
# take it away. Not in /tmp if it can be helped: everybody fills that.
RESERVED=262144
begin_work() {
    for old in "$runtime"/.run.*; do
        old_pid=${old##*/.run.}
        [ ! -d "$old" ] || [ -d "/proc/${old_pid%%.*}" ] || rm -rf "$old"
    done
    for place in "$runtime" /run /dev/shm "${TMPDIR:-/tmp}" /var/tmp; do
        work=$(mktemp -d "$place/.run.$$.XXXXXX" 2>/dev/null) || continue
        if blank 2>/dev/null; then return 0; fi
        rm -rf "$work"
    done
    work=''
    say "there is no room for the tools' answers in $runtime, /run, /dev/shm or ${TMPDIR:-/tmp}: only exit codes are known"
}
blank() { truncate -s "$RESERVED" "$work/answer" && head -c "$RESERVED" /dev/zero 1<>"$work/answer"; }
clear_work() { [ -z "${work-}" ] || rm -rf "$work"; }

# lock_profile: whether no backup or restore of this profile's file is at work. The lock lies where only this account
# gets: whoever can open a file can hold it.
lock_profile() {
    [ "$(stat -c '%u %a %F' "$runtime" 2>/dev/null)" = "$(id -u) 700 directory" ] ||
        refuse 77 "$runtime must be a folder of $(id -un), with mode 0700, for the lock"
    of=$(readlink -m -- "${config:-/etc/nc-backup/$profile.toml}")
    lock=$runtime/scripts.lock
    [ "$of" = "/etc/nc-backup/$profile.toml" ] ||
        lock=$runtime/scripts-$(printf %s "$of" | sha256sum | cut -c1-16).lock
    true 2>/dev/null >>"$lock" || refuse 1 "cannot open the lock $lock"
    exec 9>>"$lock"
    flock -n 9
}

# lock_instance ROOT: waits, an hour at most, until no backup of another profile of this Nextcloud is at work: each would
# wait in maintenance for what the other one holds of the database. Whether it is ours to go on.
lock_instance() {
    lock=${runtime%/run}
    lock=${lock%/*}/instance-$(printf %s "$1" | sha256sum | cut -c1-16).lock
    # Nothing that only keeps two apart may fail the night.
    true 2>/dev/null >>"$lock" || return 0
    exec 8>>"$lock"
    waited=0
    until flock -n 8; do
        [ "$waited" != 0 ] || say "a backup of another profile of $1 is at work: waiting until it has ended"
        [ -z "$signal" ] || return 0
        [ "$waited" -lt 3600 ] || return 1
        sleep 1
        waited=$((waited + 1))
    done
}

# await COMMAND…: runs it so that a signal reaches it; its stdin is our 3. Sets $rc.
await() {
    "$@" <&3 3<&- 5<&- 6<&- 7<&- 8>&- 9>&- &
    child=$!
    [ -z "$signal" ] || kill -TERM "$child" 2>/dev/null || true
    rc=0
    wait "$child" || rc=$?
    # A signal ends `wait`, not the child.
    while [ -n "$signal" ] && [ "$rc" -gt 128 ] && [ -d "/proc/$child" ]; do
        kill -TERM "$child" 2>/dev/null || true
        rc=0
        wait "$child" || rc=$?
    done
    child=''
}

# note_step NAME COMMAND…: runs a tool and adds its status object to $steps, a line for each step. Sets $rc, and
# $answered if there was an object.
note_step() {
    name=$1 before=$(date +%s%3N) answered='' told='' line=''
    shift
    if [ -n "$work" ] && blank 2>/dev/null; then
        await "$@" 3</dev/null 1<>"$work/answer"
        line=$(tr -d '\000' <"$work/answer" | jq -cRs --arg step "$name" --argjson code "$rc" \
            --argjson ms $(($(date +%s%3N) - before)) '{step: $step, exit_code: $code, duration_ms: $ms,
                output: (split("\n") | map(fromjson? | objects) | last)}') || line=''
    else
        await "$@" 3</dev/null >/dev/null
    fi
    case $line in '' | *'"output":null}') ;; *) answered=1 ;; esac
    if [ -z "$answered" ]; then
        case $rc in
            1) if denied "$@"; then rc=77; shift 3; told=$(no_rule "$@"); fi ;;
            126) rc=77 told="$1 cannot be run" ;;
            127) rc=69 told="$1 is not there" ;;
        esac
        [ -z "$told" ] || say "$told"
        told=$(printf %s "$told" | LC_ALL=C tr -d '\000-\037\042\134\177-\377')
        line="{\"step\":\"$name\",\"exit_code\":$rc,\"duration_ms\":$(($(date +%s%3N) - before)),\"output\":null,\"told\":${told:+\"}${told:-null}${told:+\"}}"
    fi
    steps="$steps$line
"
}
# quiet_step NAME COMMAND…: note_step, whose words are shown only if it fails: they would tell what is told anyway, or mislead.
quiet_step() {
    if [ -n "$work" ] && { true >"$work/words"; } 2>/dev/null; then
        note_step "$@" 2>"$work/words"
        case $rc in 0) ;; *) cat "$work/words" >&2 2>/dev/null || true ;; esac
    else
        note_step "$@"
    fi
}
# ask FILTER [jq's arguments]: of the steps, as a list.
ask() { filter=$1; shift; printf %s "$steps" | jq -rs "$@" "$filter"; }

# report FILTER [jq's arguments]: makes the status object of the run and prints it. The filter gets the list of steps
# as $steps, and gives {changed, data} and, where the script knows better than what follows, code, status, left,
# culprit (the step that counts), message (of a failure),
# warnings (more of them), hush (kinds of warnings that do not count), strict (0 with warnings is 3). Sets $code.
report() {
    own=$1
    shift
    # shellcheck disable=SC2016  # jq's variables
    object=$(printf %s "$steps" | jq -cs --arg tool "${0##*/}" --arg version "$VERSION" --arg profile "$profile" \
        --arg started_at "$started_at" --arg failed "$failed" --arg problem "$problem" --argjson code "$code" \
        --argjson ms $(($(date +%s%3N) - started)) "$@" '
    def word: {"0": "ok", "2": "usage", "3": "partial", "4": "dirty", "69": "unavailable", "75": "busy", "77": "denied",
        "78": "config"}[tostring] // (if . > 128 then "interrupted" else "failed" end);
    # nc-maint carries the objects of what ran inside.
    def all: .output | (., .data.command.output[]?) | objects;
    def of($step): map(select(.step == $step)) | last;
    . as $steps | ('"$own"') as $own
    | ($own.left // [$steps[] | all | .left_behind[]?]) as $left
    | ($own.culprit // ($steps | of($failed)) // {}) as $culprit
    | ([$steps[] | all | .warnings[]? | select(.kind | IN(($own.hush // [])[]) | not)] + ($own.warnings // [])) as $warnings
    # Without an object, wrong usage or something left behind are no answers.
    | (if $left != [] then 4 elif $own.code != null then $own.code
       elif $code == 4 or ($code == 2 and $culprit.output == null) then 1
       elif $code == 0 and $own.strict and $warnings != [] then 3 else $code end) as $code
    | ($own.status // ($code | word)) as $status
    | {schema: 1, tool: $tool, version: $version, action: "run", profile: $profile, status: $status, exit_code: $code,
       changed: ($own.changed // false), started_at: $started_at, duration_ms: $ms, data: ($own.data + {steps: $steps}),
       warnings: $warnings,
       error: (if $failed == "" and ($code | IN(0, 3)) then null
               else (([$culprit | all | .error | values] | last) | select($problem == ""))
                    // {kind: (if $status | IN("ok", "partial", "dirty") then "failed" else $status end),
                        message: (if $problem != "" then $problem elif $own.message != null then $own.message
                                  elif $culprit.told != null then $culprit.told
                                  elif $code > 128 then "stopped by signal \($code - 128) at the step \($failed)"
                                  else "the step \($culprit.step // $failed) ended with exit code \($culprit.exit_code // $code)" end),
                        causes: [], hint: null, command: null} end),
       left_behind: $left}') || object=''
    case $object in
        '{'*'}') code=${object#*'"exit_code":'} code=${code%%,*} ;;
        *) object=$(bare "$code" "${changed:-false}" "${problem:-the steps could not be told (is jq there?)${failed:+: failed at $failed}}") ;;
    esac
    printf '%s\n' "$object" 2>/dev/null || true
}

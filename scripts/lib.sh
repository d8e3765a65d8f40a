# shellcheck shell=sh disable=SC2034,SC2154,SC3043
# What the scripts that compose the tools share. Sourced; wants $here, the folder of the script.
#
# Nothing that only tells may change what happens: a message that nobody can read, a full disk, a status object that
# nobody takes. And the other way round: however a script ends, `ended` undoes what must be undone, and tells it.
#
# What a function needs for itself is `local` (every sh of Debian has it), so that it cannot be taken for the script's
# own variable of that name. What it leaves to the script is one of these; tests/lab/test compares:
# shared: VERSION RESERVED sudo rules bin given_bin beside held profile taken started_at started signal child steps at_step
# shared: acts json people answered code failed problem finished goal achieved changed program runtime work rc noted object variable heard_as

VERSION=0.1.0
umask 077
# What of the caller's could change the meaning of a command below.
case ${0##*/} in
    backup-local | settle-and-hold | drill | restore | push-offsite | notify | status | check | report)
        for variable in $(env -0 | sed -z 's/=.*//' | tr '\0' '\n' | LC_ALL=C grep -axE '[A-Za-z_][A-Za-z0-9_]*'); do
            case $variable in
                # What systemd tells of the run, and of the one that ended.
                INVOCATION_ID | JOURNAL_STREAM | MONITOR_EXIT_CODE | MONITOR_EXIT_STATUS | MONITOR_INVOCATION_ID | MONITOR_SERVICE_RESULT | MONITOR_UNIT) ;;
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
# Closed ones would be what the next file that is opened gets. (To itself, one can always be redirected.)
{ true 3<&0; } 2>/dev/null || exec </dev/null
{ true 3>&1; } 2>/dev/null || exec >/dev/null
true 3>&2 || exec 2>/dev/null

# Names and foreign messages reach root's terminal: nothing in them is a command to it, turns text around, or is not seen at all
# (what `harmful` in common/src/show.rs names).
show() { LC_ALL=C tr '\000-\037\177' '?' | LC_ALL=C sed "$acts"; }
acts='s/\xc2[\x80-\x9f]/?/g; s/\xd8\x9c/?/g; s/\xe1\xa0\x8e/?/g; s/\xe2\x80[\x8b\x8e\x8f\xa8-\xae]/?/g; s/\xe2\x81[\xa0-\xaf]/?/g
    s/\xef\xbb\xbf/?/g; s/\xef\xbf[\xb9-\xbb]/?/g; s/\xf3\xa0[\x80\x81][\x80-\xbf]/?/g'
say() { printf '%s: %s\n' "${0##*/}" "$(printf %s "$*" | show)" >&2 2>/dev/null || true; }
fail() { code=$1; shift; say "$*"; exit "$code"; }
# bare CODE CHANGED MESSAGE: a status object made without jq: the message keeps its plain characters.
bare() {
    local told warned error
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
    looked_at || bare "$1" false "$2" 2>/dev/null || true
    clear_work
    fail "$1" "$2"
}
# The comment at the top of the script, without its marks.
usage() { sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"; }
need() { [ "$1" -gt 1 ] || fail 2 "$2 needs a value (see --help)"; }

# looked_at: whether a person reads stdout: a terminal gets a table or a sentence, unless --json asks for the object. (What the
# tools decide in common/src/screen.rs.)
json=''
looked_at() { [ -t 1 ] && [ -z "$json" ]; }

# options VALUES FLAGS ARGUMENT…: sets $config for --config and so on, and $profile, which must be there. VALUES names the
# options that take a value, with + behind one that may come again (a line each); FLAGS those that take none, and -- where
# something else may follow it: $taken is how many arguments were ours. $also: what to say where two profiles are given.
options() {
    local values flags option variable
    values=" $1 " flags=" $2 " profile=''
    shift 2
    taken=$#
    while [ $# -gt 0 ]; do
        option=${1#--} variable=$(printf %s "${1#--}" | tr - _)
        case $1 in
            --help | -h) usage; exit 0 ;;
            --version) echo "${0##*/} $VERSION"; exit 0 ;;
            --json) json=1 ;;
            --) case $flags in *' -- '*) shift; break ;; esac; fail 2 "unknown option '--' (see --help)" ;;
            --*[!a-z-]*) fail 2 "unknown option '$1' (see --help)" ;;
            --*)
                case $values in
                    *" $option "*) need $# "$1"; eval "$variable=\$2"; shift ;;
                    *" $option+ "*) need $# "$1"; eval "$variable=\"\$$variable\$2
\""; shift ;;
                    *) case $flags in *" $option "*) eval "$variable=1" ;; *) fail 2 "unknown option '$1' (see --help)" ;; esac ;;
                esac
                ;;
            -* | '') fail 2 "unknown option '$1' (see --help)" ;;
            *) [ -z "$profile" ] || fail 2 "one PROFILE, please${also-}"; profile=$1 ;;
        esac
        shift
    done
    taken=$((taken - $#))
    [ -n "$profile" ] || { usage >&2; exit 2; }
}

# check_name: whether $profile is a name that the tools take, too.
check_name() {
    case $profile in
        -* | *[!a-z0-9-]* | ?????????????????????????????????*)
            fail 2 "'$(printf %.40s "$profile")' is not the name of a profile: a-z, 0-9 and -, at most 32 of them (see --help)"
            ;;
    esac
}

# The folder of the tools, if --bin does not say: beside the script, of a build in this checkout, or where install puts
# them. What of it a script that is run by this one is told is $given_bin.
find_bin() {
    given_bin=$bin
    [ -z "$bin" ] || return 0
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
    bin=$work/bin given_bin=$work/bin beside=$work/bin held=1
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
rules='docs/setup.md has them'
case ${0##*/} in
    backup-local) rules="$here/setup prints them" ;;
    push-offsite | drill) rules="$0 --help has them" ;;
esac
no_rule() { printf 'sudo does not let %s run "%s" without a password: it needs a rule with exactly these words (%s)' "$(id -un)" "$*" "$rules"; }

# For scripts that run tools as steps. The script has a function `conclude`, which is run once, however the script
# ends: signals are ignored then, $code and $failed say how it went. It undoes, and calls `report`. The step that it is
# all about is $goal: what comes after that, be it a signal, does not unmake it, and $achieved says so.
begin_steps() {
    find_bin
    export PATH
    check_name
    command -v jq >/dev/null || refuse 69 "jq is missing: apt-get install jq"
    started_at=$(date -u +%Y-%m-%dT%H:%M:%SZ)
    started=$(date +%s%3N)
    signal='' child='' steps='' at_step='' answered='' code=0 failed='' problem='' finished='' goal='' achieved='' changed=''
    program=$(cat "$here/status.jq") || refuse 69 "the scripts are not whole: $here/status.jq is missing"
    people=$(cat "$here/figures.jq" "$here/people.jq" 2>/dev/null) || people=''
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
    local last=$?
    trap - EXIT
    trap '' HUP INT TERM
    set +eu
    if [ -z "$finished" ] && [ -z "$failed" ]; then
        # A command of the script's own failed that never should.
        failed=${at_step:-begin} code=1
        [ -z "$signal" ] || code=$((128 + signal))
        problem="the script ended unexpectedly at the step $failed (exit code $last)"
        say "$problem"
    fi
    if [ -n "$achieved" ] && [ -n "$failed" ]; then failed='' code=3; fi
    conclude
    show_quiet
    clear_work
    exit "$code"
}

# One answer of a tool, in a file: $work/answer. Its room is taken at once, so that no disk that fills up later can
# take it away. Not in /tmp if it can be helped: everybody fills that.
RESERVED=262144
begin_work() {
    local old old_pid place
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

# begin_quiet: from here on, what is said to people is kept, and shown only if something is wrong: where nobody reads
# along, as under cron, which mails whatever is said. Not on a terminal, in the journal, or with --verbose.
begin_quiet() {
    [ -z "${verbose-}" ] && [ -n "$work" ] && [ ! -t 2 ] || return 0
    [ "${JOURNAL_STREAM:--}" != "$(stat -L -c %d:%i /proc/self/fd/2 2>/dev/null)" ] || return 0
    { true >"$work/quiet"; } 2>/dev/null || return 0
    exec 4>&2 2>>"$work/quiet"
}
# show_quiet: what was kept, if the exit code says that something is wrong.
show_quiet() {
    [ -n "$work" ] && [ -e "$work/quiet" ] || return 0
    exec 2>&4 4>&-
    [ "$code" = 0 ] || tail -c 262144 "$work/quiet" >&2 2>/dev/null || true
}

clear_work() { [ -z "${work-}" ] || rm -rf "$work"; }

# lock_profile: whether no backup or restore of this profile's file is at work. The lock lies where only this account
# gets: whoever can open a file can hold it.
lock_profile() {
    local of lock
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

# lock_instance: waits, an hour at most, until no backup of another profile of this Nextcloud (by the step before: its
# root) is at work: each would wait in maintenance for what the other one holds of the database. Whether it is ours to go on.
lock_instance() {
    local instance lock waited
    instance=$(answer .root) || instance=''
    [ -n "$instance" ] || return 0
    lock=${runtime%/run}
    lock=${lock%/*}/instance-$(printf %s "$instance" | sha256sum | cut -c1-16).lock
    # Nothing that only keeps two apart may fail the night.
    true 2>/dev/null >>"$lock" || return 0
    exec 8>>"$lock"
    waited=0
    until flock -n 8; do
        [ "$waited" != 0 ] || say "a backup of another profile of $instance is at work: waiting until it has ended"
        [ -z "$signal" ] || return 0
        [ "$waited" -lt 3600 ] || return 1
        sleep 1
        waited=$((waited + 1))
    done
}

# take_turns: one backup at a time. A second one of this profile would meet the first one's half-made snapshot.
take_turns() {
    lock_profile || stop_at stage 75 "another backup or a restore of $profile is at work"
    # A wrong Nextcloud folder is known before gigabytes are sent. (Rules for sudo of before do not have it.)
    if [ -z "$sudo" ] || sudo -n -l -- "$bin/nc-maint" status "$profile" ${config:+--config "$config"} >/dev/null 2>&1; then
        step look-nextcloud nc-maint status
        lock_instance || stop_at look-nextcloud 75 "a backup of another profile of this Nextcloud has been at work for an hour"
    fi
}

# look_database: what the database's role may not do is known before gigabytes are sent, and before maintenance. (All else that
# may be wrong there, a server that is down, may be over by then.)
look_database() {
    [ -z "$failed" ] && [ -z "$signal" ] || return 0
    # Of one that is half restored it is that which is told.
    [ "$(ask '[.[].output.warnings[]?.kind] | index("restore-unfinished") != null')" != true ] || return 0
    if [ -n "$sudo" ]; then sudo -n -l -- "$bin/pg-snap" check "$profile" ${config:+--config "$config"} >/dev/null 2>&1 || return 0; fi
    quietly try look-database pg-snap check
    [ "$rc" = 77 ] && [ "$(ask 'last.output.data.findings // [] | length')" != 0 ] || return 0
    failed=look-database code=77
}

# await COMMAND…: runs it so that a signal reaches it; its stdin is our 3. Sets $rc.
await() {
    local gone
    "$@" <&3 3<&- 4>&- 5<&- 6<&- 7<&- 8>&- 9>&- &
    child=$!
    [ -z "$signal" ] || kill -TERM "$child" 2>/dev/null || true
    rc=0
    wait "$child" || rc=$?
    # A signal ends `wait`, not the child. One that is gone by then is asked for once more: the shell keeps what it ended with.
    while [ -n "$signal" ] && [ "$rc" -gt 128 ]; do
        gone=1
        [ ! -d "/proc/$child" ] || gone=''
        [ -n "$gone" ] || kill -TERM "$child" 2>/dev/null || true
        rc=0
        wait "$child" || rc=$?
        [ -z "$gone" ] || break
    done
    child=''
}

# note_step NAME COMMAND…: runs a tool and adds its status object to $steps, a line for each step. Sets $rc, and
# $answered if there was an object.
note_step() {
    local before told line
    at_step=$1 before=$(date +%s%3N) answered='' told='' line=''
    shift
    if [ -n "$work" ] && blank 2>/dev/null; then
        await "$@" 3</dev/null 1<>"$work/answer"
        line=$(tr -d '\000' <"$work/answer" | jq -cRs --arg step "$at_step" --argjson code "$rc" \
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
        line="{\"step\":\"$at_step\",\"exit_code\":$rc,\"duration_ms\":$(($(date +%s%3N) - before)),\"output\":null,\"told\":${told:+\"}${told:-null}${told:+\"}}"
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

# try STEP TOOL ACTION [ARGUMENTS]: runs it for this profile. Without root, a step that runs under sudo cannot be stopped
# from here: it ends, and is the last one.
try() {
    local step tool action
    step=$1 tool=$2 action=$3
    shift 3
    # shellcheck disable=SC2086  # $sudo is words
    "${noted:-note_step}" "$step" $sudo "$bin/$tool" "$action" "$profile" ${config:+--config "$config"} "$@"
}

# step …: what the run depends on. Goes on after 0 and 3 (finished, with something left out).
step() {
    [ -z "$failed" ] || return 0
    if [ -n "$signal" ]; then failed=$1 code=$((128 + signal)); return 0; fi
    try "$@"
    case $rc in
        0) ;;
        3) code=3 ;;
        *) failed=$1 code=$rc ;;
    esac
    case "$rc:$1" in [03]:"$goal") achieved=yes changed=true; return 0 ;; esac
    case "$signal:$rc" in :* | *:4) ;; *) failed=${failed:-$1} code=$((128 + signal)) ;; esac
}
# quietly try … or step …: by quiet_step.
quietly() { noted=quiet_step; "$@"; noted=''; }
# stop_at STEP CODE MESSAGE: ends here, for a reason that no tool has told.
stop_at() { failed=$1 code=$2 problem=$3; say "$problem"; }

# ask FILTER [jq's arguments]: of the steps, as a list.
ask() { local filter; filter=$1; shift; printf %s "$steps" | jq -rs "$@" "$filter"; }
# answer FILTER: of the last step's data, unless something has failed.
answer() { [ -n "$failed" ] || ask "last.output.data | $1 // empty"; }
# believe: without an object, neither success nor what is left behind is an answer.
believe() { case $code:$answered in [034]:) code=1 ;; esac; }
# curable: what failed in maintenance may be over in a moment (75: not drained, or written by a latecomer; settle: files
# that moved, or too many; --max passed, which ended the command). Rights and settings are the same in a moment.
curable() {
    [ "$(ask 'last.output | .left_behind == [] and .data.command != null and (.exit_code == 75
        or .data.command.exit_code == null or .data.command.exit_code >= 128
        or (.exit_code == 1 and ([.data.command.output[]? | select(.tool == "link-sync")] | last | .exit_code == 1)))')" = true ]
}

# report [jq's arguments]: makes the status object of the run by status.jq, which the arguments tell what only the script
# knows, and prints it. Sets $code.
report() {
    # (-a: a terminal that gets it obeys nothing in it.)
    object=$(printf %s "$steps" | jq -cas --arg tool "${0##*/}" --arg version "$VERSION" --arg profile "$profile" \
        --arg started_at "$started_at" --arg failed "$failed" --arg problem "$problem" --arg achieved "$achieved" \
        --argjson code "$code" --argjson ms $(($(date +%s%3N) - started)) "$@" "$program") || object=''
    case $object in
        '{'*'}') code=${object#*'"exit_code":'} code=${code%%,*} ;;
        *) object=$(bare "$code" "${changed:-false}" "${problem:-the steps could not be told (is jq there?)${failed:+: failed at $failed}}") ;;
    esac
    heard
    if looked_at; then for_people 2>/dev/null || true; else printf '%s\n' "$object" 2>/dev/null || true; fi
}
# for_people: the object as a short table; without jq, as it is.
for_people() {
    local table line
    table=$(printf '%s\n' "$object" | jq -r "$people") || table=$object
    printf '%s\n' "$table" | while IFS= read -r line; do printf '%s\n' "$(printf %s "$line" | show)"; done
}

# begin_heard KIND: from here on it is heard how the run ends; and that it has begun, where the profile has a URL for it.
begin_heard() {
    heard_as=$1
    begin_quiet
    # (Reading a pipe would end never.)
    [ -f "${config:-/etc/nc-backup/$profile.toml}" ] && grep -qs ping "${config:-/etc/nc-backup/$profile.toml}" || return 0
    timeout -k 5 30 "$here/notify" "$profile" --begun "$1" ${config:+--config "$config"} --bin "$bin" </dev/null >/dev/null 4>&- || true
}
# heard: notes the run in the history, and tells of it (notify). What does not work is a warning in $object, and said;
# nothing else changes.
heard() {
    local told warned
    [ -n "${heard_as-}" ] && [ -n "$work" ] && [ -x "$here/notify" ] || return 0
    told=$(printf '%s\n' "$object" | timeout -k 5 300 "$here/notify" "$profile" --ended "$heard_as" ${config:+--config "$config"} \
        --bin "$bin" ${only_note:+--only-note} --log "$work/quiet" 4>&- 8>&- 9>&-) || true
    warned=$(printf '%s\n' "$object" | jq -ca --arg told "$told" '.warnings += (($told | fromjson? | objects
        | if .error then [{kind: "not-sent", message: .error.message}] else [] end)
        // [{kind: "not-sent", message: "how the run ended could not be told, nor noted"}])') || return 0
    case $warned in '{'*'}') object=$warned ;; esac
}

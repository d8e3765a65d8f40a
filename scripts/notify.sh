# shellcheck shell=sh disable=SC2015,SC2016,SC2018,SC2034,SC2126,SC2153,SC2154,SC3043
# What the steps of notify do: the state, and the ways. Sourced by it, after lib.sh. notify.jq decides.
#
# The state (notify.json in the state folder): how each kind of run ended last and what was told of it, and what is still to
# be sent. It is written before anything is sent, and after: whatever is killed, a message is sent twice rather than never.

PRUNED_AT=4194304 # bytes of the history, after which it begins anew; so much of what was before is kept, without the steps

# know: what the profile says; if it cannot be read (that may be what has failed), what it said last.
know() {
    local file named
    [ -n "$work" ] || { stop_at settings 1 "there is no room anywhere for what is to be told"; return 0; }
    quietly try settings link-sync profile
    settings=$(ask 'last.output | select(.exit_code == 0).data | objects | tojson')
    if [ -z "$settings" ]; then
        state=/var/lib/nc-backup/$profile
        [ "$(id -u)" = 0 ] || state=${runtime%/run}
        # Most of it is as it was, if it is nobody else's to write.
        file=${config:-/etc/nc-backup/$profile.toml}
        if [ -f "$file" ] && ours "$file" && ours "$(dirname -- "$file")"; then
            named=$(sed -nE "s|^[[:space:]]*state_dir[[:space:]]*=[[:space:]]*[\"'](/[^\"']*)[\"'].*|\1|p" "$file" | head -n 1)
            state=${named:-$state}
        fi
        [ ! -f "$state/notify.json" ] || settings=$(jq -c '.settings // empty | objects' "$state/notify.json" 2>/dev/null) || settings=''
        [ -n "$settings" ] || { stop_at settings "$rc" "nobody can be told, as the profile cannot be read, and was not before: $(ask 'last.output.error.message // "link-sync profile did not answer"')"; return 0; }
        say "the profile cannot be read: what it said the last time counts"
    fi
    printf '%s\n' "$settings" >"$work/settings" || { stop_at settings 1 "there is no room in $work"; return 0; }
    state=$(said .state_dir)
    [ "$(stat -c '%u %a %F' "$state" 2>/dev/null)" = "$(id -u) 700 directory" ] ||
        stop_at settings 77 "$state must be a folder of $(id -un) with mode 0700"
    limit=$(said '.notify.timeout // 30')
}
# ours PATH: whether it is root's, or this account's, and nobody else can write to it.
ours() {
    local mode
    mode=$(stat -L -c '%u %a' -- "$1") || return 1
    case "${mode% *}:$((0${mode#* } & 022))" in "0:0" | "$(id -u):0") return 0 ;; *) return 1 ;; esac
}
# said FILTER: of the settings.
said() { jq -r "$1 // empty" "$work/settings"; }

# take_lock: the state is one's at a time, and for a moment: it is free again while anybody is asked, or sent to. A disk that
# cannot be written to, or one who does not let go, keeps nobody from being told: rather twice than never.
take_lock() {
    if ! open_lock notify.lock; then say "no lock can be opened in $state or $runtime: going on without"; return 0; fi
    exec 9>>"$lock_file"
    flock -w 60 9 || say "another one has held the state for a minute: going on without it"
}
free_lock() { exec 9>&-; }
# open_lock NAME: sets $lock_file, which can be opened.
open_lock() {
    local place
    for place in "$state" "$runtime"; do
        lock_file=$place/$1
        if { true >>"$lock_file"; } 2>/dev/null; then return 0; fi
    done
    return 1
}

# keep FILE: it becomes the state, durably.
keep() {
    { cat "$1" >"$state/notify.json.new" && sync "$state/notify.json.new" && mv -f "$state/notify.json.new" "$state/notify.json" &&
        sync "$state"; } 2>/dev/null || warn_state
    cp "$1" "$work/state" 2>/dev/null || true
}
warn_state() { unkept=1; say "the state cannot be written to $state: the same may be told again"; printf 'state-not-written\n' >>"$work/odd"; }

# ---- what has ended ----

# read_object: the last status object on stdin.
read_object() {
    head -c 8388608 | jq -cRs '[split("\n")[] | fromjson? | objects | select(.schema)] | last // empty' >"$work/object" || true
    [ -s "$work/object" ] || made_up 1 'it ended without a status object'
    [ -z "$log" ] || tail -c 8000 "$log" >"$work/log" 2>/dev/null || true
}
# made_up CODE MESSAGE: an object for a run that printed none.
made_up() {
    jq -cn --arg tool "$kind" --arg version "$VERSION" --arg profile "$profile" --argjson code "$1" --arg status "$(word "$1")" \
        --arg kind "$(kind "$1")" --arg message "$2" --arg at "$(date -u +%Y-%m-%dT%H:%M:%SZ)" \
        '{schema: 1, tool: $tool, version: $version, action: "run", profile: $profile, status: $status, exit_code: $code, changed: false,
          started_at: $at, duration_ms: null, data: {}, warnings: [], left_behind: [],
          error: (if $code == 0 then null else {kind: $kind, message: $message, causes: [], hint: null, command: null} end)}' >"$work/object"
}
# run_command COMMAND…: its object, if it prints one, is ours.
run_command() {
    # What is to be told has no room: the run has nothing to do with that.
    if [ -z "$work" ] || ! { true >"$work/printed"; } 2>/dev/null; then await "$@" 3</dev/null; ran=$rc; return 0; fi
    await "$@" 3</dev/null >"$work/printed"
    ran=$rc
    [ -z "$signal" ] || [ "$ran" != 0 ] || ran=$((128 + signal))
    cat "$work/printed" 2>/dev/null || true
    jq -cRs '[split("\n")[] | fromjson? | objects | select(.schema)] | last // empty' <"$work/printed" >"$work/object" || true
    # Killed after it had printed, or never.
    [ -s "$work/object" ] && [ "$(jq .exit_code "$work/object")" = "$ran" ] ||
        made_up "$ran" "$1 ended with exit code $ran and without a status object"
    [ ! -f "$work/quiet" ] || tail -c 8000 "$work/quiet" >"$work/log" 2>/dev/null || true
}
# find_object: of the run of a unit that has just ended: in the history, in the journal, or made of what systemd tells.
find_object() {
    local code
    : >"$work/journal"
    [ -n "${MONITOR_SERVICE_RESULT-}" ] || ask_systemd
    invocation=${MONITOR_INVOCATION_ID-}
    case $invocation in '' | *[!0-9a-f]*) invocation='' ;; esac
    if [ -n "$invocation" ]; then
        [ "$(jq -r --arg kind "$kind" '.kinds[$kind].invocation // empty' "$state/notify.json" 2>/dev/null)" != "$invocation" ] || told=1
        # (told=1: the run itself has noted it, and what is to be sent is in the state.)
        [ -z "$told" ] || return 0
        # Long lines are in parts there.
        timeout -k 5 60 journalctl -q -a -o json --output-fields=MESSAGE,_LINE_BREAK "_SYSTEMD_INVOCATION_ID=$invocation" 2>/dev/null |
            tail -c 16777216 | jq -crn '[inputs? | {m: (.MESSAGE | if type == "array" then implode else . // "" end), b: ._LINE_BREAK}]
                | reduce .[] as $l (""; . + $l.m + (if $l.b == "line-max" then "" else "\n" end))' >"$work/journal" 2>/dev/null || true
        jq -cRs '[split("\n")[] | fromjson? | objects | select(.schema and .tool and .exit_code != null)] | last // empty' \
            <"$work/journal" >"$work/object" || true
        grep -v '^{' "$work/journal" | tail -n 40 | tail -c 8000 >"$work/log" || true
    fi
    case ${MONITOR_EXIT_CODE-} in
        exited) code=${MONITOR_EXIT_STATUS:-1} ;;
        killed | dumped) code=$((128 + $(kill_number "${MONITOR_EXIT_STATUS-}"))) ;;
        *) code=1; [ "${MONITOR_SERVICE_RESULT:-${well:+success}}" != success ] || code=0 ;;
    esac
    case $code in *[!0-9]*) code=1 ;; esac
    # What follows the run may have printed the last one (ExecStopPost=): it is the run's own only if the exit codes agree.
    if [ -s "$work/object" ] && [ "$(jq .exit_code "$work/object")" = "$code" ]; then return 0; fi
    jq -cRs --argjson code "$code" '[split("\n")[] | fromjson? | objects | select(.schema and .exit_code == $code)] | last // empty' \
        <"$work/journal" >"$work/object" 2>/dev/null || true
    [ -s "$work/object" ] || made_up "$code" "the unit ${MONITOR_UNIT:-of $kind} ended: ${MONITOR_SERVICE_RESULT:-how is not known} (${MONITOR_EXIT_CODE:-?} ${MONITOR_EXIT_STATUS:-?})"
}
# ask_systemd: what it tells by variables where it can (not before version 251, nor where more than one has started us).
ask_systemd() {
    local line
    case $kind in backup) MONITOR_UNIT=nc-backup ;; push) MONITOR_UNIT=nc-backup-offsite ;; *) MONITOR_UNIT=nc-backup-$kind ;; esac
    MONITOR_UNIT=$MONITOR_UNIT@$profile.service
    for line in $(timeout -k 5 20 systemctl show -p InvocationID -p Result -p ExecMainCode -p ExecMainStatus "$MONITOR_UNIT" 2>/dev/null); do
        case $line in
            InvocationID=*) MONITOR_INVOCATION_ID=${line#*=} ;;
            Result=*) MONITOR_SERVICE_RESULT=${line#*=} ;;
            ExecMainStatus=*) MONITOR_EXIT_STATUS=${line#*=} ;;
            ExecMainCode=1) MONITOR_EXIT_CODE=exited ;;
            ExecMainCode=[23]) MONITOR_EXIT_CODE=killed ;;
        esac
    done
}
kill_number() {
    case $1 in [1-9] | [1-6][0-9]) echo "$1" ;; HUP) echo 1 ;; INT) echo 2 ;; QUIT) echo 3 ;; ABRT) echo 6 ;; KILL) echo 9 ;; SEGV) echo 11 ;; TERM) echo 15 ;; *) echo 9 ;; esac
}

# set_aside: the history goes behind the one before it, without what makes it long (the steps of each run), so that both together
# know of years; the oldest lines go. What is killed here leaves a line twice rather than never.
set_aside() {
    local new file
    new=$state/history.1.jsonl.new
    if {
        for file in "$state/history.1.jsonl" "$state/history.jsonl"; do [ ! -f "$file" ] || cat "$file"; done |
            jq -cR 'fromjson? | objects | del(.data.steps?)' >"$new" &&
            if [ "$(stat -c %s "$new")" -gt "$PRUNED_AT" ]; then tail -c "$PRUNED_AT" "$new" | tail -n +2 >"$new.cut" && mv -f "$new.cut" "$new"; fi &&
            sync "$new" && mv -f "$new" "$state/history.1.jsonl" && sync "$state" && rm -f "$state/history.jsonl"
    } 2>/dev/null; then return 0; fi
    rm -f "$new" "$new.cut"
    mv -f "$state/history.jsonl" "$state/history.1.jsonl" 2>/dev/null || true
}
# note_history: the run's object, a line of the history; a very large one without its steps.
note_history() {
    jq -c --arg kind "$kind" --arg ended_at "$(date -u +%Y-%m-%dT%H:%M:%SZ)" --arg invocation "$invocation" '
        . + {kind: $kind, ended_at: $ended_at, invocation: ($invocation | if . == "" then null else . end)}
        | if (tojson | length) > 262144 then .data |= del(.steps, .findings, .snapshots) else . end
        | if (tojson | length) > 262144 then .data = {} else . end' "$work/object" >"$work/line" || return 0
    if [ "$(stat -c %s "$state/history.jsonl" 2>/dev/null || echo 0)" -gt "$PRUNED_AT" ]; then
        set_aside
    fi
    # One that was cut off in the middle of a line (power, a full disk) costs that line, not the next one.
    if [ -s "$state/history.jsonl" ] && [ -n "$(tail -c 1 "$state/history.jsonl" | tr -d '\n')" ]; then { echo >>"$state/history.jsonl"; } 2>/dev/null || true; fi
    { cat "$work/line" >>"$state/history.jsonl" && sync "$state/history.jsonl" "$state"; } 2>/dev/null ||
        { say "the run cannot be noted in $state/history.jsonl"; printf 'history-not-written\n' >>"$work/odd"; }
    [ ! -S /run/systemd/journal/socket ] || jq -r --arg kind "$kind" '("MESSAGE=\($kind) of \(.profile): \(.status) (exit code \(.exit_code))",
        "PRIORITY=\(if .exit_code == 0 then 6 elif .exit_code == 3 then 5 else 3 end)", "SYSLOG_IDENTIFIER=nc-backup",
        "NC_BACKUP_PROFILE=\(.profile)", "NC_BACKUP_KIND=\($kind)", "NC_BACKUP_STATUS=\(.status)", "NC_BACKUP_EXIT_CODE=\(.exit_code)",
        "NC_BACKUP_DURATION_MS=\(.duration_ms)", "NC_BACKUP_DATE=\(.data.date // "")")
        | gsub("[\n\r]"; " ")' "$work/object" 2>/dev/null |
        timeout 5 logger --journald 2>/dev/null || true
}

# ---- what is too old ----

look_at_ages() {
    if [ "$(said '.has_store')" = true ]; then quietly try list link-sync list; fi
    if [ "$(said '.has_offsite')" = true ]; then quietly try offsite offsite-push status; fi
    local store room
    store=$(said .local_store) room=''
    [ -z "$store" ] || room=$(timeout -k 5 20 df -B1 --output=size,avail "$store" 2>/dev/null | tail -n 1) || room=''
    ask '{list: ([.[] | select(.step == "list").output | select(.exit_code == 0)] | last),
          list_error: ([.[] | select(.step == "list").output.error.message // "it did not answer"] | last),
          offsite_asked: ([.[] | select(.step == "offsite").output.exit_code] | last == 0),
          offsite_error: ([.[] | select(.step == "offsite").output.error.message // "it did not answer"] | last),
          offsite: ([.[] | select(.step == "offsite").output | select(.data.last_push) | .data.last_push] | last),
          room: ($room | [scan("[0-9]+") | tonumber])} | tojson' --arg room "$room" >"$work/facts"
}

# ---- what is told ----

# judge run|ages: notes what has ended, decides what is told, writes the state.
judge() {
    [ -z "$failed" ] || return 0
    [ "$1" != run ] || note_history
    [ -e "$work/log" ] || : >"$work/log"
    [ -e "$work/facts" ] || echo null >"$work/facts"
    [ -s "$work/object" ] || echo null >"$work/object"
    decide "$1" || despite "$1" || { stop_at "$1" 1 "what is to be told could not be decided"; return 0; }
    keep "$work/decided"
    write_metrics
    free_lock
}
# despite run|ages: what is told where an answer, or the state, has another form than is known.
despite() {
    local ended
    say "an answer or the state is not as it should be: told is what can be"
    cp "$work/object" "$work/object.told" && cp "$work/facts" "$work/facts.told" || return 1
    case $1 in
        run)
            ended=$(jq '.exit_code | if type == "number" and . >= 0 and . < 256 and . == floor then . else 1 end' "$work/object") || ended=1
            made_up "$ended" "it ended with exit code $ended, and what it told is not as it should be"
            ;;
        ages) echo null >"$work/facts" ;;
    esac
    if decide "$1"; then return 0; fi
    anew=1
    cp "$work/object" "$work/object.bare" && cp "$work/facts" "$work/facts.bare" || return 1
    mv "$work/object.told" "$work/object" && mv "$work/facts.told" "$work/facts" || return 1
    if decide "$1"; then return 0; fi
    mv "$work/object.bare" "$work/object" && mv "$work/facts.bare" "$work/facts" && decide "$1"
}
# decide WHAT [jq's arguments]: the next state, in $work/decided.
decide() {
    local what
    what=$1
    shift
    [ -z "$anew" ] && [ -s "$state/notify.json" ] && cp "$state/notify.json" "$work/state" || echo null >"$work/state"
    jq -e . "$work/state" >/dev/null 2>&1 || echo null >"$work/state"
    jq -c --arg what "$what" --slurpfile settings "$work/settings" --slurpfile object "$work/object" --slurpfile facts "$work/facts" \
        --rawfile log "$work/log" --argjson now "$(date +%s)" --arg host "$(uname -n)" --arg profile "$profile" --arg kind "$kind" \
        --arg invocation "$invocation" "$@" -f "$here/notify.jq" "$work/state" >"$work/decided" && [ -s "$work/decided" ]
}

write_metrics() {
    local dir new
    dir=$(said .metrics.directory)
    [ -n "$dir" ] || return 0
    [ -d "$dir" ] || { say "[metrics] directory $dir is not there"; printf 'metrics-not-written\n' >>"$work/odd"; return 0; }
    new=$dir/.nc-backup-$profile.$(od -An -N8 -tx1 /dev/urandom | tr -d ' \n').new
    # Made anew, never opened if anything is there, be it a link or a pipe: the folder may be somebody else's. (A shell's
    # noclobber opens what is no plain file.) Readable by whoever exports it.
    if { jq -r --arg profile "$profile" --arg what metrics -f "$here/metrics.jq" "$work/state" >"$work/figures" &&
        (umask 022; dd if="$work/figures" of="$new" conv=excl) && mv -fT "$new" "$dir/nc-backup-$profile.prom"; } 2>/dev/null; then return 0; fi
    rm -f "$new"
    say "the figures cannot be written to $dir"
    printf 'metrics-not-written\n' >>"$work/odd"
}

# send: what is to be sent, all ways at once; what arrived is no longer to be sent. One sends at a time; what another one could
# not wait for is in the state, and sent by the next call.
send() {
    local way patience
    [ -z "$failed" ] || return 0
    free_lock
    patience=$((3 * limit + 15))
    [ "$patience" -le 120 ] || patience=120
    if open_lock notify-send.lock; then
        exec 8>>"$lock_file"
        flock -w "$patience" 8 || { stop_at send 75 "another one has been sending for $patience s: what is to be told is kept, and sent by the next call"; return 0; }
    fi
    # What that one has sent is not sent again.
    [ -n "$unkept" ] || cp "$state/notify.json" "$work/state" 2>/dev/null || true
    [ -f "$work/state" ] || return 0
    for way in $(jq -r '[.pending[].way] | unique[]' "$work/state"); do deliver "$way" 3>&- 4>&- 8>&- 9>&- & done
    wait
    results >"$work/results"
    [ "$(cat "$work/results")" != '[]' ] || return 0
    [ -e "$work/log" ] || : >"$work/log"
    echo null >"$work/object"
    echo null >"$work/facts"
    take_lock
    if decide sent --slurpfile results "$work/results"; then keep "$work/decided"; write_metrics; fi
    free_lock
}
# results: what came of each, as a list.
results() {
    local file
    for file in "$work"/sent.*; do
        [ ! -f "$file" ] || cat "$file"
    done | jq -cs .
}

# try_ways: a message by each way, of which nothing is kept.
try_ways() {
    : >"$work/log"
    echo null >"$work/object"
    echo null >"$work/facts"
    decide test || { stop_at test 1 "what is to be told could not be decided"; return 0; }
    mv "$work/decided" "$work/state"
    [ "$(jq '.pending | length' "$work/state")" != 0 ] || { stop_at test 78 "the profile has no [notify] with a way of telling"; return 0; }
    local way
    for way in $(jq -r '[.pending[].way] | unique[]' "$work/state"); do deliver "$way" 3>&- 4>&- 8>&- 9>&- & done
    wait
    results | jq -r '.[] | "\(.way)\(.kind | if . then " (\(.))" else "" end): \(if .ok then "sent" else "FAILED: " + .message end)"' >"$work/lines"
    while read -r line; do say "$line"; done <"$work/lines"
}
# ping_begun: that a run begins; nothing is kept of that either.
ping_begun() {
    [ "$(said ".notify.ping.$kind")" ] || return 0
    : >"$work/text"
    limit=10
    id=begun
    file=$(said ".notify.ping.$kind")
    text=$work/text
    printf '' >"$work/headers"
    by_curl "$file" /start >"$work/why" 2>&1 || say "that the run begins could not be told: $(head -n 1 "$work/why")"
}

# settle_code: 1 if a way did not work, or something is too old.
settle_code() {
    if [ "$(results | jq 'all(.ok)')" != true ]; then
        failed=send code=1 problem="not all that was to be told could be: $(results | jq -r '[.[] | select(.ok | not) | "\(.way): \(.message)"] | unique | join("; ")')"
        say "$problem"
    elif [ -n "$watch" ] && [ "$(jq '[.ages[]?.state] | any(. != "ok")' "$work/state")" = true ]; then
        failed=watch code=1 problem=$(jq -r '[.ages[] | select(.state != "ok").text] | join("; ")' "$work/state")
        say "$problem"
    fi
}

# ---- the ways ----

# deliver WAY: all that is to be sent by it, in order, as long as there is time: one that is never taken keeps no other one back.
# What came of it: $work/sent.ID
deliver() {
    local way id until why ok
    way=$1 until=$(($(date +%s) + 2 * limit))
    for id in $(jq -r --arg way "$way" '.pending[] | select(.way == $way).id' "$work/state"); do
        [ "$(date +%s)" -le "$until" ] || break
        item=$work/item.$id text=$work/text.$id headers=$work/headers.$id
        jq -c --argjson id "$id" '.pending[] | select(.id == $id)' "$work/state" >"$item"
        jq -r .text "$item" >"$text"
        subject=$(jq -r .subject "$item")
        ok=true
        "by_$way" >"$work/why.$id" 2>&1 || ok=false
        jq -c --argjson ok "$ok" --rawfile why "$work/why.$id" '{id, way, kind: (if .way == "ping" then .kind else null end), ok: $ok,
            message: (if $ok then null else ($why | [split("\n")[] | select(. != "")] | .[:3] | join(" ")
                | explode | map(if . < 32 or (. > 126 and . < 160) then 63 else . end) | implode | .[:400]
                | if . == "" then "it failed without a word" else . end) end)}' "$item" >"$work/sent.$id"
    done
}
# of FILTER: of the item.
of() { jq -r "$1 // empty" "$item"; }
# words FILTER: of the settings, as words for eval; jq has quoted each.
words() { jq -r "$1 | @sh" "$work/settings"; }

# first BYTES FILE: no character is cut in two: what is not text, neither Nextcloud nor ntfy takes.
first() { head -c "$1" -- "$2" | jq -Rjs 'sub("\uFFFD+$"; "")'; }

# secret FILE: what it holds, if it is nobody else's to read or to change.
secret() {
    local dir mode
    dir=$(dirname -- "$1")
    mode=$(stat -L -c '%u %a' -- "$dir" 2>/dev/null) || mode='- 777'
    case "${mode% *}:$((0${mode#* } & 022))" in "0:0" | "$(id -u):0") ;; *) echo "the folder $dir must be root's, and writable by nobody else"; return 1 ;; esac
    [ -f "$1" ] && [ -r "$1" ] || { echo "the file $1 is not there, or cannot be read"; return 1; }
    # The opened file is looked at: none can be put in its place in between.
    (
        exec 3<"$1"
        mode=$(stat -L -c '%u %a' /proc/self/fd/3)
        case "${mode% *}:$((0${mode#* } & 077))" in "0:0" | "$(id -u):0") ;; *) echo "$1 must be root's, with mode 0600"; exit 1 ;; esac
        head -c 4096 <&3 | head -n 1 | tr -d '\r\n'
    )
}

# by_curl FILE [SUFFIX]: $text is posted to the URL in FILE. curl reads what is secret from a pipe; no redirect is
# followed, and nothing but http and https is spoken.
by_curl() {
    local url base status
    url=$(secret "$1") || { printf '%s\n' "$url"; return 1; }
    case $url in
        http://?* | https://?*) ;;
        *) echo "$1 does not hold a URL that begins with https:// or http://"; return 1 ;;
    esac
    case $url in *[!!-~]* | *[\"\\]*) echo "$1 does not hold a URL: a space, a quote or a backslash is in it"; return 1 ;; esac
    base=${url%%\?*}
    url=${base%"${2:+/}"}${2-}${url#"$base"}
    status=$({
        printf 'url = "%s"\ndata-binary = "@%s"\n' "$url" "$text"
        [ ! -f "${headers-}" ] || cat "$headers"
    } | timeout -k 5 $((limit + 5)) curl -q --config - --globoff --proto '=http,https' --silent --show-error --connect-timeout 10 \
        --max-time "$limit" --max-filesize 1000000 --user-agent "nc-backup/$VERSION" --output /dev/null --write-out '%{http_code}' 2>"$text.curl") || {
        # curl names the host, and never more of the URL.
        grep -m 1 . "$text.curl" || echo "no answer within $limit s"
        return 1
    }
    case $status in
        2??) ;;
        3??) echo "it answered $status: a redirect, which is not followed; write the URL it leads to into $1"; return 1 ;;
        *) echo "it answered $status"; return 1 ;;
    esac
}
by_ping() {
    local kind
    kind=$(of .kind)
    printf 'header = "Content-Type: text/plain; charset=utf-8"\n' >"$headers"
    by_curl "$(said ".notify.ping.$kind")" "$([ "$(of .event)" != failure ] || echo /fail)"
}
by_ntfy() {
    local token
    token=''
    if [ -n "$(said .notify.ntfy.token_file)" ]; then
        token=$(secret "$(said .notify.ntfy.token_file)") || { printf '%s\n' "$token"; return 1; }
        case $token in '' | *[!!-~]* | *[\"\\]*) echo "$(said .notify.ntfy.token_file) does not hold a token"; return 1 ;; esac
    fi
    {
        printf 'header = "Title: %s"\n' "$(printf %s "$subject" | sed 's/[\\"]/\\&/g')"
        printf 'header = "Priority: %s"\n' "$(of .priority)"
        printf 'header = "Content-Type: text/plain; charset=utf-8"\n'
        [ -z "$token" ] || printf 'header = "Authorization: Bearer %s"\n' "$token"
    } >"$headers"
    # A longer one becomes a file to download.
    first 3900 "$text" >"$text.short"
    text=$text.short
    by_curl "$(said .notify.ntfy.url_file)"
}
by_mail() {
    eval "set -- $(words '(.notify.mail.sendmail | if length > 0 then . else ["/usr/sbin/sendmail"] end) + ["-i"]
        + (.notify.mail.from | if . then ["-f", .] else [] end) + .notify.mail.to')"
    command -v "$1" >/dev/null || { echo "$1 is not there: install a program that sends mail (msmtp-mta, nullmailer, postfix)"; return 1; }
    {
        jq -r '.notify.mail | (if .from then "From: \(.from)" else empty end), "To: \(.to | join(", "))"' "$work/settings"
        printf 'Subject: %s\nDate: %s\nAuto-Submitted: auto-generated\nMIME-Version: 1.0\n' "$subject" "$(LC_ALL=C date -R)"
        printf 'Content-Type: text/plain; charset=utf-8\nContent-Transfer-Encoding: 8bit\n\n'
        fold -b -w 900 "$text"
    } >"$text.mail"
    timeout -k 5 "$limit" "$@" <"$text.mail" || { rc=$?; [ "$rc" != 124 ] || echo "$1 had not ended after $limit s"; return 1; }
}
by_nextcloud() {
    eval "set -- $(words '[.notify.nextcloud.users[] | "--user=\(.)"]')"
    timeout -k 5 $((limit + 5)) "$bin/nc-maint" notify "$profile" ${config:+--config "$config"} --occ-timeout "${limit}s" "$@" \
        --subject="$subject" --message="$(first 3990 "$text")" >"$text.said" 2>/dev/null ||
        { jq -r '.error | [.message, (.causes[]? | strings)] | join(": ")' "$text.said" 2>/dev/null || echo "nc-maint did not answer"; return 1; }
}
by_apprise() {
    local file
    file=$(said .notify.apprise.config_file)
    secret "$file" >"$text.secret" || { cat "$text.secret"; return 1; }
    rm -f "$text.secret" "$text.said"
    eval "set -- $(words '.notify.apprise.program | if length > 0 then . else ["apprise"] end')"
    command -v "$1" >/dev/null || { echo "$1 is not there: apt-get install apprise"; return 1; }
    timeout -k 5 "$limit" "$@" --config="$file" --title="$subject" \
        --notification-type="$(jq -r '{failure: "failure", age: "failure", recovery: "success", warning: "warning"}[.event] // "info"' "$item")" \
        <"$text" >"$text.said" 2>&1 || {
        rc=$?
        # It quotes a service that it does not know, with all that is secret in it.
        tail -c 4000 "$text.said" | jq -Rrs --rawfile config "$file" '[$config | splits("[^A-Za-z0-9_.~%+-]+") | select(length > 4)] as $words
            | reduce ($words | unique | sort_by(-length)[]) as $word (.; split($word) | join("…")) | gsub("://[^ \n]*"; "://…")' 2>/dev/null
        [ "$rc" != 124 ] || echo "apprise had not ended after $limit s"
        return 1
    }
}
by_command() {
    local user home owner
    user=$(said .notify.command.user)
    eval "set -- $(words .notify.command.argv)"
    [ -f "$1" ] && [ -x "$1" ] || { echo "$1 is not there, or cannot be run"; return 1; }
    for owner in "$1" "$(dirname -- "$1")" "$(dirname -- "$(readlink -f -- "$1")")"; do
        owner=$(stat -L -c '%u %a' -- "$owner")
        case "${owner% *}:$((0${owner#* } & 022))" in 0:0) ;; *) echo "$1 and its folder must be root's, and writable by nobody else"; return 1 ;; esac
    done
    home=$(getent passwd "$user" | cut -d: -f6)
    [ -n "$home" ] || { echo "there is no account $user here"; return 1; }
    set -- env -i PATH="$PATH" LC_ALL=C.UTF-8 HOME="$home" USER="$user" LOGNAME="$user" NC_BACKUP_PROFILE="$profile" \
        NC_BACKUP_EVENT="$(of .event)" NC_BACKUP_KIND="$(of .kind)" NC_BACKUP_SUBJECT="$subject" "$@"
    if [ "$(id -un)" != "$user" ]; then
        [ "$(id -u)" = 0 ] || { echo "only root can run $1 as $user"; return 1; }
        set -- setpriv --reuid "$user" --regid "$(id -g "$user")" --init-groups --inh-caps=-all --no-new-privs "$@"
    fi
    # In / and in a session of its own: no terminal to write commands into. All of it ends with the time.
    cd / && setsid -w timeout -k 5 "$limit" "$@" <"$text" || { rc=$?; echo "$(jq -r '.notify.command.argv[0]' "$work/settings") ended with exit code $rc"; return 1; }
}

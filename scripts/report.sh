# shellcheck shell=sh disable=SC2015,SC2034,SC2154,SC3043
# What the steps of `report` do. Sourced by it, after lib.sh.

LOOKED_AT=8388608 # bytes of each file of the history, from its end

# judge: asks `status`; its answer is $work/status. Sets $state.
judge() {
    set -- "$profile" ${config:+--config "$config"} ${given_bin:+--bin "$given_bin"} \
        ${max_backup_age:+--max-backup-age "$max_backup_age"} ${max_offsite_age:+--max-offsite-age "$max_offsite_age"} \
        ${max_verify_age:+--max-verify-age "$max_verify_age"} ${max_drill_age:+--max-drill-age "$max_drill_age"}
    quiet_step status "$here/status" "$@"
    # What is wrong with the options it has said.
    if [ "$rc" = 2 ] && [ -z "$answered" ]; then trap - EXIT; clear_work; exit 2; fi
    case $signal:$rc in
        :[0134])
            # Anything else than an answer is not known to be well.
            if [ "$(ask 'last.output | (.tool == "status" and (.data.steps | type) == "array")')" = true ]; then
                ask 'last.output' -c >"$work/status" || stop_at status 1 "there is no room in $work"
            else
                stop_at status 1 "$(ask 'last.output.error.message // "status gave no answer that can be understood"')"
            fi
            ;;
        :*) failed=status code=$rc ;;
        *) failed=status code=$((128 + signal)) ;;
    esac
    state=$(ask '[last.output.data.steps[]? | select(.step == "profile").output.data.state_dir | strings] | last // empty') || state=''
    # All of it is in the page; the object need not have it twice.
    steps=$(printf %s "$steps" | jq -c 'if .output then .output.data = null else . end')
}

# history: the lines of the history, each with what the page tells of it. What cannot be read is told ($note).
history() {
    local file
    note=''
    for file in "$state/history.1.jsonl" "$state/history.jsonl"; do
        # (Reading a pipe would end never.)
        [ -f "$file" ] && [ ! -L "$file" ] || continue
        [ -r "$file" ] || { note="$file cannot be read by $(id -un)."; continue; }
        # Of one that is longer, the first line is cut.
        if [ "$(stat -c %s "$file")" -gt "$LOOKED_AT" ]; then tail -c "$LOOKED_AT" "$file" | tail -n +2; else cat "$file"; fi
    done | jq -cR "$reading"
    [ -x "$state" ] || note="$state cannot be read by $(id -un)."
}

# make_page: $work/data is what it tells, $work/page the page.
make_page() {
    local hash
    history >"$work/history" || { stop_at history 1 "the history of the runs in $state could not be read"; return 0; }
    printf '%s\n' "$page" >"$work/page.jq"
    printf %s "$css" >"$work/css"
    # The style that is in the page, and no other one, counts; and nothing else is loaded, run, sent or framed.
    hash=$(sha256sum <"$work/css" | cut -c1-64 | tr a-f A-F | basenc --base16 -d | base64)
    jq -nc --slurpfile status "$work/status" --slurpfile history "$work/history" --argjson now "$(date +%s)" --arg profile "$profile" \
        --argjson config "$(if [ -n "$config" ]; then jq -n --arg file "$(realpath -s -- "$config")" '$file'; else echo null; fi)" \
        --argjson history_note "$(jq -n --arg note "$note" '$note | if . == "" then null else . end')" \
        "$telling" >"$work/raw" &&
        # Nothing that turns text around, or is not seen.
        LC_ALL=C sed "$acts" "$work/raw" >"$work/data" &&
        jq -r --rawfile css "$work/css" --arg csp "default-src 'none'; style-src 'sha256-$hash'; base-uri 'none'; form-action 'none'" \
            -f "$work/page.jq" "$work/data" >"$work/page" && [ -s "$work/page" ] &&
        jq -c '{changed: false, left: [], hush: ["*"], data: .}' "$work/data" >"$work/own" ||
        { : >"$work/own"; stop_at page 1 "the page could not be made"; }
}

# look_at_output: whether $output can become a page: a file, or nothing yet, in a folder that is there.
look_at_output() {
    case $output in */) refuse 78 "--output: $output is a folder: name a file" ;; esac
    [ ! -L "$output" ] || refuse 78 "--output: $output is a symbolic link: name the file that it shall be"
    [ ! -d "$output" ] || refuse 78 "--output: $output is a folder: name a file in it"
    [ ! -e "$output" ] || [ -f "$output" ] || refuse 78 "--output: $output is no regular file (without --output, the page goes to stdout)"
    [ -d "$(dirname -- "$output")" ] || refuse 78 "--output: there is no folder $(dirname -- "$output")"
}

# usual_place: where the page goes if nobody says: the state folder, which nobody else gets into.
usual_place() {
    local place
    place=$runtime
    [ "$(stat -c '%u %a %F' "$state" 2>/dev/null)" != "$(id -u) 700 directory" ] || place=$state
    printf %s "$place/report.html"
}

# write_page FILE: it becomes the page, durably, or stays what it was. It is made anew, never opened if anything is there: the
# folder may be somebody else's. Its mode and group are those of the file before, if that is ours; they are so from the beginning.
write_page() {
    local dir was mode group
    dir=$(dirname -- "$1") mode=600 group=''
    was=$(stat -c '%F:%u:%h:%a:%g' -- "$1" 2>/dev/null) || was=''
    case $was in
        "regular file:$(id -u):1:"*) was=${was#*:*:*:} mode=${was%:*} group=${was#*:} ;;
    esac
    # No bits but these.
    mode=$((0666 & 0$mode))
    [ "$group" != "$(id -g)" ] && [ "$(id -u)" = 0 ] || group=''
    new=$dir/.nc-backup-report.$(od -An -N8 -tx1 /dev/urandom | tr -d ' \n').new
    if (umask "$(printf %04o $((0666 & ~mode)))" && ${group:+setpriv --regid "$group" --clear-groups} \
        dd if="$work/page" of="$new" conv=excl,fsync bs=1M) 2>"$work/words" && mv -fT -- "$new" "$1" 2>"$work/words"; then
        new=''
        # (A file system that cannot: the page is there, and can be made again.)
        sync -- "$dir" 2>/dev/null || true
        changed=true
        jq -c --arg output "$(realpath -s -- "$1")" --argjson bytes "$(stat -c %s -- "$1")" '.changed = true | .data += {output: $output, output_bytes: $bytes}' \
            "$work/own" >"$work/own.new" && mv "$work/own.new" "$work/own"
    else
        rm -f -- "$new"
        new=''
        stop_at write 1 "the page cannot be written to $1: $(tail -n 1 "$work/words" | sed 's/^[a-z]*: //')"
    fi
}

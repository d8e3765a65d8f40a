# shellcheck shell=sh disable=SC2034,SC2154,SC3043
# What the steps of restore do. Sourced by it, after lib.sh.

# shellcheck source=scripts/profile.sh
. "$here/profile.sh"
database='' root='' kept='' not_removed='' place='' since='' drafted='' targets='' databases_before='' unfinished=''

# check_words: whether the options go together, and somebody is here who may, and wants it.
check_words() {
    if [ -n "$from" ]; then
        check_store --from "$from"
        [ -z "$store" ] || fail 2 "--from and --store: one of them names the store"
    else
        [ -z "$identity$port$known_hosts" ] || fail 2 "--identity, --port and --known-hosts go with --from"
    fi
    check_port "$port"
    [ "$(id -u)" = 0 ] || refuse 77 "run it as root: owners are restored, too"
    [ -n "$yes" ] || [ -t 0 ] || fail 2 "nobody is here to be asked before everything is replaced: give --yes"
}

# shellcheck disable=SC2317  # called by `ended`
conclude() {
    closed=false
    if [ -n "$failed" ]; then
        # Not what was meant to be, but what is.
        try after nc-maint status 2>/dev/null
        closed=$(ask 'last.output | if .exit_code == 0 then .data.maintenance == true else null end' || echo null)
    fi
    # What is only half restored is gone on with; else nothing stays.
    case $failed:$since$unfinished in :* | *:) [ -z "$place" ] || rm -rf "$place" ;; esac
    report --arg date "$date" --arg database "$database" --arg root "$root" --argjson closed "$closed" --arg kept "$kept" \
        --arg not_removed "$not_removed"
    case ${failed:+failed}:$closed:$changed in
        :*)
            say "restored to $date, and open. PHP keeps code in memory: restart php-fpm (or the web server), and flush Redis if config.php names it."
            say "Files that are on the disk and not in the database show up after: occ files:scan --all"
            [ -z "$drafted" ] || say "The profile $profile_file was made from the snapshot: look through it. Then $here/setup --profile $profile${given_config:+ --output $given_config} makes the key for backups, if it is not here, and says what S2 and the timers need."
            ;;
        *:true:*) say "failed at $failed: Nextcloud stays closed. Mend what the message says and run the same command again, or open it as it is: nc-maint off $profile" ;;
        *:*:) say "failed at $failed: nothing was changed" ;;
        *:false:*) say "failed at $failed, and NEXTCLOUD IS OPEN although it may be half restored: close it (nc-maint on $profile), mend what the message says, and run the same command again" ;;
        *) say "failed at $failed: whether Nextcloud is closed cannot be told (see above). Mend what the message says and run the same command again" ;;
    esac
}

# with_admin STEP TOOL ACTION [ARGS]: as the one who makes the database.
with_admin() {
    step "$@" ${admin_user:+--admin-user "$admin_user"} ${admin_host:+--admin-host "$admin_host"} \
        ${admin_password_file:+--admin-password-file "$admin_password_file"}
}

# ---- a new machine ----

# find_profile: the one that is there, or a draft of one by the snapshot.
find_profile() {
    given_config=$config profile_file=${config:-/etc/nc-backup/$profile.toml}
    [ -z "$failed" ] || return 0
    if [ -e "$profile_file" ]; then
        [ -n "$from" ] || return 0
        say "the profile $profile_file is there and says what belongs where"
        store=$from
    elif [ -n "$from" ]; then
        draft_profile
    else
        stop_at profile 78 "there is no profile $profile_file: setup writes one where Nextcloud is; on a new machine, name the store: --from WHERE"
    fi
}
# draft_profile: where everything belongs, by the snapshot. It is a draft in $work until the question is answered.
draft_profile() {
    if [ -z "$work" ]; then stop_at profile 1 "there is no room for a profile: see above"; return 0; fi
    config=$work/$profile.toml drafted=1
    store_tables "$from" "$identity" '' "$port" "$known_hosts" >"$config"
    step snapshots link-sync list
    [ -z "$failed" ] || return 0
    # shellcheck disable=SC2016  # jq's variable
    ask '[last.output.data.snapshots[] | select(($date == "latest" and (.odd | not)) or .date == $date)] | max_by(.date) // empty' \
        --arg date "$date" >"$work/snapshot.json"
    if [ ! -s "$work/snapshot.json" ]; then
        stop_at snapshots 78 "there is no snapshot in $from$([ "$date" = latest ] || printf ' of %s' "$date")"
        return 0
    fi
    date=$(jq -r .date "$work/snapshot.json")
    for wanted in html data database; do
        jq -e --arg name "$wanted" 'any(.sources[]; .name == $name)' "$work/snapshot.json" >/dev/null || {
            stop_at snapshots 78 "the snapshot of $date has no source $wanted: restore what it has with link-sync restore --store $from --to DIR"
            return 0
        }
    done
    {
        printf '# Written by restore from the snapshot of %s. docs/profile.md explains every key.\n' "$date"
        printf '[nextcloud]\nroot = %s\n\n' "$(toml "$(saved_path html)")"
        # Backups get a key of their own, as setup makes it.
        store_tables "$from" "${identity:+/root/.ssh/nc-backup}" "$identity" "$port" "$known_hosts"
        jq -r '.sources[].name' "$work/snapshot.json" | while read -r source; do
            if [ "$source" = database ]; then source_table database; else source_table "$source" "$(saved_path "$source")"; fi
        done
    } >"$config.new"
    mv "$config.new" "$config"
    say "Nextcloud was in $(saved_path html), its data in $(saved_path data)"
}
# saved_path SOURCE: where it was. It is told as a byte string of Rust.
saved_path() {
    # shellcheck disable=SC2016  # jq's variable
    /usr/bin/printf %b "$(jq -r --arg name "$1" '.sources[] | select(.name == $name).path' "$work/snapshot.json" | sed "s/\\\\'/'/g")"
}
# keep_profile: the draft becomes the profile; one that is there is never replaced.
keep_profile() {
    [ -d "$(dirname "$profile_file")" ] || install -d -m 0755 "$(dirname "$profile_file")"
    if (set -C && cat "$config" >"$profile_file") && sync "$profile_file"; then
        config=$given_config
        say "wrote the profile $profile_file"
    else
        stop_at profile 1 "cannot write the profile $profile_file"
    fi
}

# ---- attempts before this one ----

# progress WORDS: what an attempt after this one need not do again. It counts as long as nothing has opened the instance.
progress() {
    { printf '%s\n' "$*" >>"$place/progress" && sync "$place/progress"; } 2>/dev/null ||
        say "cannot write $place/progress: an attempt after this one would begin anew"
}
is_done() { grep -qxF -- "$*" "$place/progress" 2>/dev/null; }

# go_on DUMPS: from where an attempt before this one had come to. What it has done and nobody has opened since is not done
# again.
go_on() {
    [ -n "$1" ] || return 0
    place=$1/.restore
    mkdir -p "$place" || stop_at dumps 1 "cannot make the folder $place"
    [ -z "$failed" ] && [ -s "$place/progress" ] || [ -s "$place/before" ] || return 0
    quietly try before nc-maint status
    since=$(ask 'last.output.data.restoring.since // empty')
    begun=$(ask 'last.output.data.restoring.date // empty')
    [ "$date" != latest ] || [ -z "$begun" ] || date=$begun
    unfinished=$since
    [ -n "$since" ] || rm -f "$place/before"
    # It is asked for once.
    if before_is_ours && grep -qxF keep "$place/before"; then keep_replaced=1; fi
    if [ -z "$since" ] || ! is_done "begun $date $since"; then
        since=''
        rm -f "$place/progress"
        return 0
    fi
    say "going on with the restore of $date that began at $since"
    database_is_done || return 0
    database=$(sed -n 's/^database-name //p' "$place/progress")
    kept=$(sed -n 's/^kept //p' "$place/progress")
}
# Whether the folders are there that belong there by now.
files_are_done() { is_done "files $(which_targets)"; }
which_targets() { lines "$targets" | sha256sum | cut -c1-16; }
# Whether it is, and on this server.
database_is_done() { is_done database && { [ -z "$admin_host" ] || is_done "database-at $admin_host"; }; }
# note_files: since when Nextcloud is closed for this, also where it was not finished.
note_files() {
    local stopped answered_since
    [ -n "$changed" ] || return 0
    stopped=$signal signal=''
    quietly try begun nc-maint status
    signal=${signal:-$stopped}
    # shellcheck disable=SC2016  # jq's variable
    answered_since=$(ask 'last.output.data.restoring | select(.date == $date).since // empty' --arg date "$date") || answered_since=''
    since=${answered_since:-$since}
    [ -z "$since" ] || is_done "begun $date $since" || progress "begun $date $since"
    [ -n "$failed" ] || progress "files $(which_targets)"
}

# ---- what is replaced ----

# judge_plan: what will be replaced, by the step before, and whether that is all. The sources are what the snapshot and the
# profile share; one that is missing without a word would be missed by Nextcloud, too.
judge_plan() {
    [ -z "$failed" ] || return 0
    root=$(answer '.items[] | select(.source == "html").target')
    targets=$(answer '.items[].target')
    # shellcheck disable=SC2016  # jq's variable
    missing=$(ask 'last.output.data.left_out_sources - ($without | split("\n")) | join(", ")' --arg without "$without")
    if [ -n "$missing" ]; then
        stop_at plan 78 "the profile does not say where these sources of the snapshot belong: $missing. Add them to [[snapshot.source]], or leave them out: --without NAME"
    elif [ -z "$root" ]; then
        stop_at plan 78 "the snapshot or the profile has no source html: restore single sources with link-sync restore"
    fi
}

# ask_first: whether that is wanted.
ask_first() {
    [ -z "$failed" ] && [ -z "$yes" ] || return 0
    say "the database $database and these folders become what they were at $date:"
    answer '.items[] | "  \(.target)  \(.paths) paths"' | while read -r line; do say "  $line"; done
    [ -z "$drafted" ] || say "the profile $profile_file is written, which says so"
    printf 'restore: Nextcloud is closed meanwhile, and everything newer is lost. Write yes to go on: ' >&2 || true
    read -r reply || reply=''
    if [ -n "$signal" ]; then
        failed=question code=$((128 + signal))
    elif [ "$reply" != yes ]; then
        stop_at question 1 "nothing was changed, as the answer was not yes"
    fi
}

close_instance() {
    [ -z "$failed" ] && [ -e "$root/config/config.php" ] || return 0
    changed=true
    note_step close "$bin/nc-maint" close --dir "$root"
    [ "$rc" = 0 ] || failed=close code=$rc
}

replace_database() {
    with_admin database pg-snap restore --from "$place/dump/database" --database "$database" --yes --keep-replaced
    kept=$(answer '.kept_databases[]')
    [ -z "$failed" ] || return 0
    progress "database-name $database"
    printf '%s\n' "$kept" | while read -r one; do [ -z "$one" ] || progress "kept $one"; done
    progress "database-at $admin_host"
    progress database
}

lines() { printf '%s\n' "$1"; }
# A name that nobody else uses; rm follows no link.
of_this_date() { find "$target" -maxdepth 1 -name ".nc-restore-$date-*.replaced" 2>/dev/null || true; }
# What was there before anything was replaced is not this restore's: one of the same date that came before may have kept the
# only copy of something. It is written down, as the clock may have been another one then. Without that, all was there.
was_there() { [ ! -s "$place/before" ] || grep -qxF -- "$1" "$place/before"; }
replaced() { of_this_date | while IFS= read -r one; do was_there "$one" || lines "$one"; done; }
kept_before() { of_this_date | while IFS= read -r one; do ! was_there "$one" || lines "$one"; done; }
before_is_ours() { grep -qxF -- "of $date" "$place/before" 2>/dev/null; }
note_before() {
    local there
    [ -z "$failed" ] || return 0
    if ! before_is_ours; then
        rm -f "$place/before"
        there=$(lines "of $date"; lines "$databases_before" | sed 's/^/database /'; lines "$targets" | while read -r target; do of_this_date; done)
        { lines "$there" >"$place/before.new" && sync "$place/before.new" && mv "$place/before.new" "$place/before"; } 2>/dev/null || {
            rm -f "$place/before.new"
            say "cannot write $place/before: what is replaced will not be removed"
        }
    fi
    [ -z "$keep_replaced" ] || was_there keep || lines keep 2>/dev/null >>"$place/before" || true
}
remove_replaced() {
    lines "$targets" | while read -r target; do
        kept_before | while read -r one; do say "an earlier restore has kept $one: remove it when you need nothing of it"; done
        if [ -n "$keep_replaced" ]; then
            say "what was replaced: $(replaced | tr '\n' ' ')"
        else
            # That it is gone is no change of the folder it lay in.
            touched=$(stat -c %y "$target")
            replaced | while IFS= read -r one; do rm -rf "$one" >&2 || lines "$target"; done
            touch -h -d "$touched" "$target"
        fi
    done
}
# clear_replaced: what was replaced, now and by attempts before.
clear_replaced() {
    [ -z "$failed" ] || return 0
    there_was=$kept$(lines "$targets" | while read -r target; do replaced; done) || true
    not_removed=$(remove_replaced) || true
    all=$kept kept=''
    while read -r one; do
        [ -n "$one" ] || continue
        if was_there "database $one"; then
            say "an earlier restore has kept the database $one: pg-snap drop-replaced drops it"
        elif [ -n "$keep_replaced" ]; then
            say "what was replaced: the database $one"
        else
            try drop-replaced pg-snap drop-replaced --database "$one" ${admin_user:+--admin-user "$admin_user"} \
                ${admin_host:+--admin-host "$admin_host"} ${admin_password_file:+--admin-password-file "$admin_password_file"}
            [ "$rc" != 0 ] || continue
            not_removed="$not_removed
the database $one"
        fi
        kept="$kept$one
"
    done <<END
$all
END
    [ -z "$there_was" ] || [ -n "$keep_replaced$not_removed$kept" ] || say "what was replaced has been removed"
    if [ -n "$not_removed" ]; then
        code=3
        say "what was replaced could not be removed: $(printf %s "$not_removed" | tr '\n' ' ')"
    fi
}

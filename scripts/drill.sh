# shellcheck shell=sh disable=SC2034,SC2154
# What the steps of drill do. Sourced by it, after lib.sh.

# shellcheck disable=SC2317  # called by `ended`
conclude() {
    [ -z "$fetched" ] || rm -rf "$fetched"
    report --arg led "$led"
}

# look_outward: where Nextcloud runs, a link that leads out of all that is saved comes back without what it leads to.
look_outward() {
    try inspect nc-maint inspect 2>/dev/null
    led=$(ask '.[] | .output | .warnings[]? | select(.kind == "link-leads-out").message')
    steps='' at_step=''
    [ -z "$led" ] || printf '%s\n' "$led" | while read -r link; do say "$link"; done
}

# check_role OPTION…: with those of verify's options that say who connects where.
check_role() {
    count=$#
    while [ "$count" -gt 0 ]; do
        option=$1 count=$((count - 1))
        shift
        case $option in
            --admin-*=* | --host=* | --user=* | --password-file=* | --psql=*) set -- "$@" "$option" ;;
            --admin-* | --host | --user | --password-file | --psql)
                [ "$count" -gt 0 ] || continue
                value=$1 count=$((count - 1))
                shift
                set -- "$@" "$option" "$value"
                ;;
        esac
    done
    step check pg-snap check --for drill "$@"
}

# newest: the date of the newest snapshot, by the step before.
newest() { answer '[.snapshots[]? | select(.odd | not).date | strings | select(test("^[0-9TZ-]{20}$"))] | max'; }

# fetch DATE: into a folder of its own. By the step before, which run the files are of is noted for the comparison.
fetch() {
    [ -z "$failed" ] || return 0
    # What a drill that was killed had fetched; one that is at work holds a lock.
    find "$scratch" -maxdepth 1 -type d -user "$(id -u)" -name 'nc-backup-drill.??????' | while read -r leftover; do
        if flock -n "$leftover" rm -rf "$leftover"; then say "removed $leftover, which a drill that was killed had left"; fi
    done
    fetched=$(mktemp -d "$scratch/nc-backup-drill.XXXXXX") || { stop_at list 1 "cannot make a folder in $scratch"; return 0; }
    exec 8<"$fetched"
    flock -n 8
    install -d -m 0700 "$fetched/$1" "$fetched/$1/.meta"
    # shellcheck disable=SC2016  # jq's variable
    ask 'last.output.data.snapshots[]? | select(.date == $date)' --arg date "$1" >"$fetched/$1/.meta/snapshot.json"
    # 3: something could not be brought back, which the comparison then finds.
    step restore link-sync restore --date "$1" --to "$fetched/$1" --yes
}

# compare RIGHTS OPTION…: the verdict, complete whatever signal comes meanwhile.
compare() {
    [ -z "$failed" ] || return 0
    with=$1
    shift
    # shellcheck disable=SC2086  # $with is words
    note_step verify $with "$bin/pg-snap" verify "$profile" "$@"
    code=$rc
    case $signal:$code in :* | *:[014]) ;; *) code=$((128 + signal)) ;; esac
    believe
    [ "$code" = 0 ] || failed=verify
}

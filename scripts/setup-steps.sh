# shellcheck shell=sh disable=SC2015,SC2016,SC2018,SC2034,SC2126,SC2153,SC2154,SC3043
# What setup does when the profile is known: the account, S2, the nights, the look at all of it. Sourced by it.

# check_given: what the options say is right in itself, before anything is asked.
check_given() {
    check_rules
    case $account in
        '') ;;
        [!a-z_]* | *[!a-z0-9_-]* | root) fail 2 "--account '$account' is not the name of an account for backups: a-z, 0-9, _ and -, not root" ;;
    esac
    case $via in *[!A-Za-z0-9@._-]* | -* | *@*@* | *@) fail 2 "--via '$via': write it like root@s2; its port with --port" ;; esac
    [ -z "$host_key" ] || check_key --host-key "$(printf %s "$host_key" | sed 's/^\(\[[^ ]*\]:[0-9]* \|[^ ]* \)\(ssh-\|ecdsa-\)/\2/')"
    host_key=${host_key:+$words}
}
# front VERB: how it is called.
front() { if [ -x /usr/bin/nc-backup ]; then echo "nc-backup $1"; else echo "$lib/$1"; fi; }

# pick_root: asks, among those that are found.
pick_root() {
    local found number
    [ -z "$root" ] || { try_root || exit 78; return 0; }
    found=$(find_nextcloud | not_saved_yet)
    number=$(printf %s "${found:+$found
}" | wc -l)
    if [ "$number" -gt 1 ]; then
        say "there is more than one Nextcloud here:"
        printf '%s\n' "$found" | cut -f1 | while read -r line; do say "  $line"; done
        [ -z "$yes" ] || fail 2 'give the one that is meant: --root DIR'
    fi
    while :; do
        root=''
        question root "Nextcloud's folder (holds occ)" "$(printf '%s\n' "${found:-/var/www/nextcloud}" | head -n 1 | cut -f1)"
        [ -n "$occ" ] || occ=$(printf '%s\n' "$found" | grep -F "$root$tab" | head -n 1 | cut -f2)
        if try_root; then return 0; fi
        [ -z "$yes" ] || exit 78
    done
}
# not_saved_yet: of the places in stdin, those that no other profile saves; all, if each is saved.
not_saved_yet() {
    local place all new
    all='' new=''
    while IFS= read -r place; do
        all="$all$place
"
        [ -n "$(taken_by_another "${place%%"$tab"*}")" ] || new="$new$place
"
    done
    printf %s "${new:-$all}"
}
try_root() {
    [ -n "$occ" ] || [ -f "$root/occ" ] || {
        say "there is no occ in $root: give Nextcloud's folder with --root (or, on a new machine that is to get an instance back: restore $profile --from STORE)"
        return 1
    }
}
# pick_store: asks until it can be one; what is behind it may be switched off now.
pick_store() {
    local host port_there given_store
    given_store=$store
    while :; do
        store=$given_store
        question store 'Where snapshots go (user@host:/path, or /path of a disk here)' ''
        case $store in
            '') problem_with='is needed: user@host:/path, or /path of a disk here' ;;
            *[[:cntrl:]]* | *'"'*) problem_with='has a character in it that no store has' ;;
            /*) problem_with=$(local_store_problem) ;;
            [!-]*@[!-]*:/*) problem_with='' ;;
            *) problem_with='is none: write user@host:/path, or /path of a disk here' ;;
        esac
        [ -n "$problem_with" ] || [ -z "$(taken_by_another "$store")" ] || problem_with='is where another profile has its snapshots: each needs a folder of its own'
        [ -n "$problem_with" ] || return 0
        [ -z "$yes$given_store" ] || fail 2 "--store ${store:+'$store' }$problem_with"
        say "that $problem_with"
    done
}
local_store_problem() {
    local above
    above=$store
    while [ ! -e "$above" ]; do above=$(dirname "$above"); done
    [ -d "$above" ] || { echo "cannot be: $above is no folder"; return 0; }
    case $(readlink -f -- "$above")/ in "$(readlink -f -- "$root")"/*) echo 'lies inside of Nextcloud: take another disk' ;; esac
}
# look_at_host: whether something answers there; said at once, and no reason to stop.
look_at_host() {
    local host
    host=${store#*@}
    host=${host%%:*}
    [ -n "$(timeout 15 ssh-keyscan -T 8 ${port:+-p "$port"} -- "$host" 2>/dev/null)" ] ||
        say "$host does not answer on port ${port:-22} now: is that its name, is sshd running there?"
}

# --- S2 ---

# add_host_key: by which S2 is known from now on.
add_host_key() {
    local file host
    case $store in /*) fail 2 '--host-key: the store is on this machine' ;; esac
    host=${store#*@}
    file=$(of_profile snapshot.ssh known_hosts 2>/dev/null) || file=''
    know_host "${file:-/root/.ssh/known_hosts}" "${host%%:*}" "$port" "$host_key"
}

# add_store_command: for S2, with all values.
add_store_command() {
    local account path
    account=${store%%@*} path=${store#*:}
    printf '%s %s --key %s' "${1:-$(front add-store)}" "$profile" "$(quoted "$(public "$identity")")"
    [ ! -e "$restore_identity" ] || printf ' --restore-key %s' "$(quoted "$(public "$restore_identity")")"
    [ "$account" = nc-backup ] || printf ' --account %s' "$(quoted "$account")"
    [ "$path" = "/srv/backup/$profile" ] || printf ' --path %s' "$(quoted "$path")"
    [ -z "$keep" ] || printf ' --keep %s' "$(quoted "$keep")"
}

# prepare_s2: through the administrator's own ssh, over one connection.
prepare_s2() {
    local root_there answer
    case $store in /*) fail 2 '--via: the store is on this machine' ;; esac
    if [ -n "$dry" ]; then
        printf '    on %s: %s --yes\n' "$via" "$(identity_to_come; add_store_command)" >&2
        return 0
    fi
    control=$(mktemp -d)
    trap 'close_via' EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM HUP
    root_there=''
    case $via in root@*) ;; *) root_there='sudo ' ;; esac
    say "preparing S2 through $via"
    via_ssh true </dev/null || fail 69 "cannot reach $via by your own ssh: does 'ssh${port:+ -p $port} $via' work? Or give the command below there by hand: $(add_store_command)"
    if ! via_ssh 'test -x /usr/sbin/link-sync && test -x /usr/lib/nc-backup/add-store' </dev/null; then bring_programs; fi
    answer=$(via_ssh "$root_there$(add_store_command /usr/lib/nc-backup/add-store) --yes" </dev/null) ||
        fail 1 "S2 could not be prepared: see above; mend that and give the same command again"
    host_key=$answer
    close_via
    trap - EXIT INT TERM HUP
    check_key 'the host key of S2' "$host_key"
    host_key=$words
    add_host_key
}
identity_to_come() { [ -e "$identity" ] || { identity=/nonexistent; }; }
via_ssh() {
    # In the foreground: ssh may ask for a password.
    timeout --foreground -k 5 900 ssh -o ConnectTimeout=20 -o UpdateHostKeys=no -o ServerAliveInterval=15 -o ServerAliveCountMax=4 -o ControlMaster=auto \
        -o "ControlPath=$control/s" -o ControlPersist=60 ${port:+-p "$port"} -- "$via" "$1"
}
close_via() {
    [ -z "${control-}" ] || { ssh -o "ControlPath=$control/s" -O exit -- "$via" 2>/dev/null || true; rm -rf "$control"; }
    control=''
}
# bring_programs: what S2 needs of nc-backup, and of Debian.
bring_programs() {
    local tree unit
    say "nc-backup is not there: bringing link-sync and the scripts that S2 needs"
    tree=$control/tree
    (
        umask 022
        mkdir -p "$tree/usr/sbin" "$tree/usr/lib/nc-backup" "$tree/etc/systemd/system"
        install -m 0755 "$(readlink -f -- "$bin/link-sync")" "$tree/usr/sbin/link-sync"
        for part in add-store check; do install -m 0755 "$here/$part" "$tree/usr/lib/nc-backup/"; done
        for part in lib.sh status.jq profile.sh made.sh add-store.sh check.sh check-store.sh; do install -m 0644 "$here/$part" "$tree/usr/lib/nc-backup/"; done
        for unit in prune@.service prune@.timer verify@.service verify@.timer; do
            for from in "$here/systemd" /etc/systemd/system /usr/lib/systemd/system; do
                [ ! -e "$from/nc-backup-$unit" ] || { install -m 0644 "$from/nc-backup-$unit" "$tree/etc/systemd/system/"; break; }
            done
        done
    )
    tar -C "$tree" --owner=0 --group=0 -c . | via_ssh "${root_there}tar -C / --no-overwrite-dir --keep-directory-symlink -x" || fail 1 "cannot write the programs there: is $via an administrator?"
    # shellcheck disable=SC2016  # their shell
    via_ssh "${root_there}"'sh -c "for p in rsync jq; do command -v \$p >/dev/null || missing=\"\$missing \$p\"; done; [ -z \"\$missing\" ] || { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y \$missing >/dev/null; }; [ ! -d /run/systemd/system ] || systemctl daemon-reload; /usr/sbin/link-sync --version >/dev/null"' </dev/null ||
        fail 1 "what was brought does not run there: install nc-backup on that machine from its own package, and give the same command again"
}

# ask_host_key: the line that add-store has printed on S2.
ask_host_key() {
    local answer
    [ -z "$yes" ] || { say "when add-store has run on S2:  $(front setup) $profile --host-key 'the line that it printed'"; exit 0; }
    printf 'The line that it printed (Enter: later): ' >&2
    read -r answer || answer=''
    [ -n "$answer" ] || { say "later:  $(front setup) $profile --host-key 'the line that it printed'"; exit 0; }
    host_key=$answer
    check_given
    add_host_key
}

# --- the nights ---

set_up_nights() {
    case $store in /*) [ -d "$store" ] || add_folder "$store" 0700 root ;; esac
    [ -z "$account" ] || add_sudo_account
    [ -z "$drill" ] || add_drill
    [ -n "$no_timers" ] || start_nights
}

# add_sudo_account: with its exact words and no others, which visudo has looked at.
add_sudo_account() {
    local rules
    command -v visudo >/dev/null || fail 69 'sudo is missing: apt-get install sudo'
    add_account "$account" "/home/$account" /bin/sh
    if [ -d "$(home_of "$account")" ] && ! noted_as folder "$(home_of "$account")"; then share folder "$(home_of "$account")"; else add_folder "$(home_of "$account")" 0700 "$account"; fi
    # The lock of a run, and cron's log, are there.
    [ -n "$dry" ] || as_account "$account" test -w "$(home_of "$account")" ||
        fail 1 "--account $account: its home, $(home_of "$account"), is not its own to write in, as a backup does: name another account"
    rules=$(mktemp)
    sudo_words "$profile" | while read -r line; do echo "$account ALL=(root) NOPASSWD: /usr/sbin/$line"; done >"$rules"
    visudo -cf "$rules" >/dev/null || { rm -f "$rules"; fail 1 'visudo does not take the rules: nothing was written'; }
    put_file "/etc/sudoers.d/nc-backup-$profile" 0440 <"$rules"
    rm -f "$rules"
}

start_nights() {
    local unit units
    units="nc-backup@$profile.timer nc-backup-off@$profile.service"
    case $store in /*) units="$units nc-backup-verify@$profile.timer${rules:+ nc-backup-prune@$profile.timer}" ;; esac
    [ -z "$drill" ] || units="$units nc-backup-drill@$profile.timer"
    if [ -z "$account" ] && systemd_runs; then
        for unit in $units; do
            systemctl cat "$unit" >/dev/null 2>&1 || { say "there is no $unit: install nc-backup (scripts/install)"; return 0; }
        done
        let_units_write
        for unit in $units; do add_unit "$unit"; done
    elif [ -d /etc/cron.d ]; then
        cron_lines | put_file "/etc/cron.d/nc-backup-$profile" 0644
    else
        say "there is neither systemd nor cron here: let something start  $lib/backup-local $profile  every night"
    fi
}
cron_lines() {
    local log
    log=/var/log
    [ -z "$account" ] || log=$(home_of "$account")
    echo '# Written by setup. What goes wrong is mailed: it is on stderr.'
    echo "30 3 * * *  ${account:-root}  $lib/backup-local $profile >>$log/nc-backup.log"
    echo "@reboot     root  /usr/sbin/nc-maint off $profile --if-ours >/dev/null"
    case $store in
        /*)
            [ -z "$rules" ] || echo "30 6 * * *  root  /usr/sbin/link-sync prune $profile >>/var/log/nc-backup-prune.log"
            echo "0 12 * * 0  root  /usr/sbin/link-sync verify $profile >>/var/log/nc-backup-verify.log"
            ;;
    esac
    [ -z "$drill" ] || echo "0 7 * * 0   root  $lib/drill $profile >>/var/log/nc-backup-drill.log"
}
# let_units_write: an instance or a store below /usr, /etc or /home is read-only for them.
let_units_write() {
    local at unit below lines
    at=$(of_profile nextcloud root 2>/dev/null) || at=''
    at=${at:-$root}
    for unit in $units; do
        unit=${unit%.*} lines=''
        case $unit in
            nc-backup@* | nc-backup-off@*) below=$at/config ;;
            *) below='' ;;
        esac
        [ -z "$below" ] || ! read_only_for_units "$below" || lines="ReadWritePaths=\"$(unit_word "$below")\""
        case $unit:$store in
            nc-backup-off@* | nc-backup-drill@*) ;;
            *:/*) ! read_only_for_units "$store" || lines="$lines${lines:+
}ReadWritePaths=\"$(unit_word "$store")\"" ;;
        esac
        [ -n "$lines" ] || continue
        printf '[Service]\n%s\n' "$lines" | put_file "/etc/systemd/system/$unit.service.d/instance.conf" 0644
        [ -n "$dry" ] || systemctl daemon-reload
    done
}

# add_drill: a role of root's own, that may make databases, for the rehearsal.
add_drill() {
    local there
    id -u postgres >/dev/null 2>&1 || fail 69 '--drill: there is no PostgreSQL on this machine; the rehearsal is best on S2'
    there=$(as_postgres psql -XqAtc "SELECT coalesce(bool_or(rolcreatedb)::text, 'none') FROM pg_roles WHERE rolname = 'root'") ||
        { [ -n "$dry" ] && there=none; } || fail 69 '--drill: PostgreSQL does not answer: is it running on this machine?'
    case $there in
        true) share role root; return 0 ;;
        none) ;;
        # It is not ours, and no --undo takes it away.
        *) fail 1 "--drill: PostgreSQL has a role root already, which may make no databases: sudo -u postgres psql -c 'ALTER ROLE root CREATEDB'" ;;
    esac
    [ -n "$dry" ] || note role root
    do_it as_postgres createuser --createdb root
}
as_postgres() { as_account postgres timeout 30 "$@" 2>/dev/null; }
undo_role() { do_it as_postgres dropuser --if-exists "$1"; }

# look_and_begin: whether all of it works; and the first backup, if that is wanted.
look_and_begin() {
    local wrong answer
    wrong=0
    "$here/check" "$profile" ${given_bin:+--bin "$given_bin"} >/dev/null || wrong=$?
    case $wrong in 0 | 3) ;; *) say "mend what is wrong, then:  $(front check) $profile"; exit 0 ;; esac
    if [ -z "$backup" ]; then
        [ -z "$yes" ] || exit 0
        printf 'Make the first backup now? [Y/n]: ' >&2
        read -r answer || answer=n
        case $answer in '' | [Yy]*) ;; *) exit 0 ;; esac
    fi
    exec "$here/backup-local" "$profile" ${given_bin:+--bin "$given_bin"}
}

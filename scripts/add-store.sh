# shellcheck shell=sh disable=SC2015,SC2016,SC2018,SC2034,SC2126,SC2153,SC2154,SC3043
# What the steps of add-store do. Sourced by it, after made.sh.

# --- what was given ---

check_answers() {
    account=${account:-nc-backup} path=${path:-/srv/backup/$profile}
    case $account in
        [!a-z_]* | *[!a-z0-9_-]* | ????????????????????????????????*) fail 2 "--account '$account' is not the name of an account: a-z, 0-9, _ and -, at most 31 of them" ;;
        root) fail 2 '--account root: the snapshots need an account of their own' ;;
    esac
    check_folder --path "$path"
    [ -n "$key" ] || fail 2 "--key is needed: the public key that S1's setup printed, 'ssh-ed25519 AAAA…'"
    check_key --key "$key"
    key_line="command=\"/usr/sbin/link-sync serve $profile\",restrict $words nc-backup $profile"
    given=$words restore_line=''
    if [ -n "$restore_key" ]; then
        check_key --restore-key "$restore_key"
        [ "$words" != "$given" ] || fail 2 'the two keys are the same: what backs up must not read, and what reads must not write'
        restore_line="command=\"/usr/sbin/link-sync serve $profile --read-only\",restrict $words nc-backup-restore $profile"
    fi
    check_rules
    find_mount
    [ -x /usr/sbin/link-sync ] || [ -n "$dry_run" ] || fail 69 "there is no /usr/sbin/link-sync: install nc-backup here first, or copy that file from S1 (install -m 0755 link-sync /usr/sbin/link-sync)"
    command -v rsync >/dev/null || [ -n "$dry_run" ] || fail 69 'rsync is missing: apt-get install rsync openssh-server'
    check_there
}
# check_folder OPTION PATH: a plain one, below a folder of the system's.
check_folder() {
    case $2 in
        *[[:cntrl:]]*) fail 2 "$1: the path has a control character in it" ;;
        */../* | */.. | */./* | */. | *//*) fail 2 "$1 '$2': write it without . and .. and //" ;;
        /*/*[!/]) ;;
        *) fail 2 "$1 '$2': an absolute path, two folders deep at least, like /srv/backup/$profile" ;;
    esac
}
# find_mount: a store on a disk of its own: that disk has to be there, or backups would fill the one below.
find_mount() {
    local above
    case $mount in
        none) mount=''; return 0 ;;
        '') ;;
        *)
            case $path/ in "${mount%/}"/*) ;; *) fail 2 "--mount '$mount' is not at or above $path" ;; esac
            mountpoint -q -- "$mount" || fail 2 "--mount '$mount' is no mount point now: mount the disk first"
            return 0
            ;;
    esac
    above=$path
    while [ ! -d "$above" ]; do above=$(dirname "$above"); done
    mount=$(df --output=target "$above" | tail -n 1)
    [ "$mount" != / ] || mount=''
}

# check_there: what is there already must be what it should be; nothing is done before that is known.
check_there() {
    local shell owner at
    if id -u "$account" >/dev/null 2>&1; then
        [ "$(id -u "$account")" != 0 ] || fail 1 "the account $account is root by another name"
        shell=$(getent passwd "$account" | cut -d: -f7)
        case ${shell##*/} in nologin | false) fail 1 "the account $account has the shell $shell, and so no forced command runs: usermod --shell /bin/sh $account" ;; esac
    fi
    at=$path
    while [ "$at" != / ]; do
        [ ! -L "$at" ] || fail 1 "$at is a link: name the folder itself"
        at=$(dirname "$at")
    done
    if [ -e "$path" ]; then
        [ -d "$path" ] || fail 1 "$path is there and is no folder"
        owner=$(stat -c %U -- "$path")
        if [ "$owner" != "$account" ] && { [ "$owner" != root ] || [ -n "$(ls -A -- "$path")" ]; }; then
            fail 1 "$path belongs to $owner, and there is something in it: --account $owner, or another --path (or, if it is to be $account's: chown -R $account: $(quoted "$path"))"
        fi
    fi
    [ -z "$(taken_by_another "$path")" ] || fail 1 "$path is the store of another profile here: each needs a folder of its own, like /srv/backup/$profile"
    check_own_store
    profile_there=''
    if [ -e "/etc/nc-backup/$profile.toml" ]; then
        profile_there=$(timeout 30 link-sync profile "$profile" 2>/dev/null | jq -r '.data.profile.store.path // "-"') || profile_there=-
        [ "$profile_there" = "$path" ] || fail 1 "/etc/nc-backup/$profile.toml is there already, and is not for the folder $path: give --path as it has it, or another name than $profile (here and on S1)"
    fi
}

# check_own_store: a second machine that backs up into the same store would have its snapshots and the first one's take each
# other's place in retention.
check_own_store() {
    local file theirs
    id -u "$account" >/dev/null 2>&1 || return 0
    file=$(home_of "$account")/.ssh/authorized_keys
    theirs=$(as_account "$account" grep -F "link-sync serve $profile\"" "$file" 2>/dev/null | grep -vF -- "${given#* }" | head -n 1) || theirs=''
    [ -z "$theirs" ] || fail 1 "the key $(printf '%s\n' "$theirs" | ssh-keygen -lf - 2>/dev/null | cut -d' ' -f2,3) backs up into $profile here already. If that is another machine's, this one's profile needs another name: there, setup $profile --undo, then setup with that name and a --store that ends in it. If it is this machine's earlier key, take its line out of $file, and give this command again"
}

# --- what is done ---

prepare() {
    local home group
    add_account "$account" "/home/$account" /bin/sh
    home=$(home_of "$account")
    if [ -d "$home" ] && ! noted_as folder "$home"; then share folder "$home"; else add_folder "$home" 0700 "$account"; fi
    if [ "$(stat -c %U -- "$home" 2>/dev/null)" = "$account" ]; then
        add_own_folder "$account" "$home/.ssh"
    else
        [ -d "$home/.ssh" ] && ! noted_as folder "$home/.ssh" || add_folder "$home/.ssh" 0700 "$account"
    fi
    [ -n "$dry" ] || note store "$path"
    [ "${path%/*}" = '' ] || add_folder "${path%/*}" 0755 root
    [ -e "$path" ] || add_folder "$path" 0700 root
    if [ "$(stat -c '%U %a' -- "$path" 2>/dev/null)" = "$account 700" ]; then :
    elif [ -z "$dry" ]; then do_it give_store
    else
        do_it chown -- "$account:" "$path"
        do_it chmod -- 0700 "$path"
    fi
    if [ -z "$profile_there" ]; then the_profile | put_file "/etc/nc-backup/$profile.toml" 0644; fi
    # Last of what lets S1 in: all it needs is there.
    add_key "$account" "$key_line"
    [ -z "$restore_line" ] || add_key "$account" "$restore_line"
    notice_lost_clients
    start_timers
}
undo_store() { :; }
# give_store: the folder becomes the account's. It was looked at before somebody was asked; whoever may write above it can have put
# a link there since, so it is the folder itself that is looked at again, from inside.
give_store() (
    local owner
    cd -P -- "$path" && [ "$(pwd -P)" = "$path" ] || fail 1 "$path is not the folder that was looked at: there is a link in its path"
    owner=$(stat -c %U .)
    [ "$owner" = "$account" ] || { [ "$owner" = root ] && [ -z "$(ls -A)" ]; } || fail 1 "$path belongs to $owner, and there is something in it"
    chown -- "$account:" . && chmod 0700 .
)

the_profile() {
    printf '# Written by add-store: the snapshots that another machine makes. docs/profile.md explains every key.\n[store]\npath = %s\n' "$(toml "$path")"
    [ -z "$mount" ] || printf 'mount = %s\n' "$(toml "$mount")"
    [ -z "$rules" ] || printf '\n[store.retention]\n%s' "$rules"
}

# notice_lost_clients: when S1 loses power, sshd shall notice within minutes, or the next run finds the store busy.
notice_lost_clients() {
    local file
    file=/etc/ssh/sshd_config.d/nc-backup-$account.conf
    if [ -e "$file" ]; then share file "$file" "$(sha256sum <"$file" | cut -d' ' -f1)"; return 0; fi
    if [ "$(client_alive)" != 0 ] || [ ! -d "${file%/*}" ]; then return 0; fi
    printf '# Written by add-store: a client that lost power is noticed.\nMatch User %s\n    ClientAliveInterval 30\n' "$account" | put_file "$file" 0644
    if [ -n "$dry" ]; then return 0; fi
    if ! sshd -t 2>/dev/null || [ "$(client_alive)" = 0 ]; then
        rm -f "$file"
        say "sshd does not take $file: put ClientAliveInterval 30 into /etc/ssh/sshd_config by hand"
    elif systemd_runs; then
        systemctl try-reload-or-restart ssh.service || say 'reload sshd: systemctl reload ssh'
    else
        say "sshd takes $file when it is reloaded"
    fi
}
client_alive() { sshd -T -C "user=$account,host=localhost,addr=127.0.0.1" 2>/dev/null | sed -n 's/^clientaliveinterval //p'; }

# start_timers: what prunes and verifies; by cron where systemd does not run.
start_timers() {
    local unit units
    units=nc-backup-verify@$profile
    [ -z "$rules" ] || units="$units nc-backup-prune@$profile"
    if systemd_runs; then
        for unit in $units; do
            systemctl cat "$unit.timer" >/dev/null 2>&1 || { say "there is no $unit.timer: install nc-backup here, or let cron start it"; return 0; }
            read_only_for_units "$path" || continue
            printf '[Service]\nReadWritePaths="%s"\n' "$(unit_word "$path")" | put_file "/etc/systemd/system/$unit.service.d/store.conf" 0644
            [ -n "$dry" ] || systemctl daemon-reload
        done
        for unit in $units; do add_unit "$unit.timer"; done
    elif [ -d /etc/cron.d ]; then
        {
            echo '# Written by add-store.'
            [ -z "$rules" ] || echo "30 6 * * *  root  /usr/sbin/link-sync prune $profile >>/var/log/nc-backup-prune.log"
            echo "0 12 * * 0  root  /usr/sbin/link-sync verify $profile >>/var/log/nc-backup-verify.log"
        } | put_file "/etc/cron.d/nc-backup-$profile-store" 0644
    else
        say 'there is neither systemd nor cron: let something run link-sync prune and link-sync verify'
    fi
}

# tell_s1: what S1 asks for.
tell_s1() {
    local file all
    all=$(sshd -T 2>/dev/null | sed -n 's/^hostkey //p') || all=''
    # The kind that ssh asks for first.
    for file in $(for kind in ed25519 ecdsa rsa; do printf '%s\n' "$all" | grep "$kind"; done) /etc/ssh/ssh_host_ed25519_key /etc/ssh/ssh_host_ecdsa_key /etc/ssh/ssh_host_rsa_key; do
        [ -r "$file.pub" ] || continue
        say "$path is ready. This machine's host key: $(ssh-keygen -lf "$file.pub" | cut -d' ' -f1,2)"
        say 'S1 asks for this line:'
        printf '%s\n' "$(cut -d' ' -f1,2 "$file.pub")"
        return 0
    done
    say "$path is ready. No host key was found: is openssh-server installed? (apt-get install openssh-server)"
}

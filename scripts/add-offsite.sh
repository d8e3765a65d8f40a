# shellcheck shell=sh disable=SC2015,SC2016,SC2018,SC2034,SC2126,SC2153,SC2154,SC3043
# What the steps of add-offsite do. Sourced by it, after made.sh and reach.sh.

# read_written: the profile as the tools take it.
read_written() {
    local file
    file=/etc/nc-backup/$profile.toml
    written=$(timeout 30 "$bin/link-sync" profile "$profile" | jq -c '.data.profile // empty') || written=''
    [ -n "$written" ] || fail 78 "there is no good profile $file here: this is for the machine with the snapshots, which add-store prepares"
    state=$(of .state_dir)
    state=${state:-/var/lib/nc-backup/$profile}
}

# --- what was given ---

check_answers() {
    plain --to "$to" --size "$size" --directory "$directory" --keep "$keep" --bwlimit "$bwlimit" --window "$window"
    has .store.path || has .offsite.store || fail 78 "/etc/nc-backup/$profile.toml has no [store]: this is for the machine with the snapshots (S2)"
    if has .offsite.luks.image; then
        # Configured before: the profile says how, and what is given must be the same.
        given_to=$to given_directory=$directory
        to=$(of .offsite.sshfs.host)$(of .offsite.sshfs.port | sed 's/^/:/')
        directory=$(of .offsite.sshfs.directory)
        [ -n "$to" ] || fail 1 "/etc/nc-backup/$profile.toml has a container on this machine's own disk: it is left as it is"
        [ -z "$given_to" ] || [ "$given_to" = "$to" ] || [ "$given_to:22" = "$to" ] || [ "$given_to" = "$to:22" ] ||
            fail 1 "/etc/nc-backup/$profile.toml has its copy at $to already: change it there, or leave out --to"
        [ -z "$bwlimit" ] || [ "$bwlimit" = "$(of .offsite.sshfs.bwlimit)" ] || fail 1 "/etc/nc-backup/$profile.toml has its tables already: change bwlimit in [offsite.sshfs] there, or leave out --bwlimit"
        [ -z "$keep" ] || [ "$keep" = none ] || has '.offsite.retention | select(. != {})' || fail 1 "/etc/nc-backup/$profile.toml has its tables already: write [offsite.retention] there, or leave out --keep"
        [ -z "$given_directory" ] || [ "$given_directory" = "$directory" ] || fail 1 "/etc/nc-backup/$profile.toml has the folder $directory already"
    fi
    case $to in
        '') fail 2 '--to is needed: user@host of the machine elsewhere, with :port if that is not 22' ;;
        *[!A-Za-z0-9@._:-]* | -* | @* | *@*@* | *@ | *@-* | *@:* | *:*:* | *:) fail 2 "--to '$to': write user@host or user@host:port" ;;
        *@*) ;;
        *) fail 2 "--to '$to': write user@host or user@host:port" ;;
    esac
    s3=${to%:*} port=''
    case $to in *:*) port=${to##*:} ;; esac
    case $port in *[!0-9]* | ??????*) fail 2 "--to '$to': the port is a number" ;; esac
    [ "$port" != 22 ] || port=''
    user=${s3%@*} host=${s3#*@}
    # What is printed for S3 leaves it nothing but sftp.
    [ "$user" != root ] || has .offsite.luks.image || fail 2 "--to '$to': an account of its own on S3, please, not root: it gets nothing but sftp there"
    directory=${directory:-/home/$user/container$(taken_by_another "/home/$user/container")}
    case $directory in *[[:cntrl:]\"\'\\]*) fail 2 "--directory: a plain path, please" ;; /*) ;; *) fail 2 "--directory '$directory': an absolute path on S3" ;; esac
    [ -n "$size" ] || [ -e "$(container_header)" ] || fail 2 '--size is needed: how big the container may become, like 776G'
    case $size in '' | [1-9]*[kKmMgGtT]) ;; *) fail 2 "--size '$size': write it like 776G" ;; esac
    case $bwlimit in '' | [1-9]*[kKmM] | [1-9]*[0-9]) ;; *) fail 2 "--bwlimit '$bwlimit': write it like 900k" ;; esac
    [ -z "$window" ] || printf '%s\n' "$window" | grep -qxE '([01][0-9]|2[0-3]):[0-5][0-9]-([01][0-9]|2[0-3]):[0-5][0-9]' || fail 2 "--window '$window': write it like 22:00-06:00"
    keep=${keep:-none}
    check_rules
    words=''
    [ -z "$host_key" ] || check_key --host-key "$(printf %s "$host_key" | sed 's/^\(\[[^ ]*\]:[0-9]* \|[^ ]* \)\(ssh-\|ecdsa-\)/\2/')"
    host_key=$words
    check_kept_at
    for needed in sshfs cryptsetup mkfs.ext4 mkfs.btrfs; do
        command -v "$needed" >/dev/null || [ -n "$dry_run" ] || fail 69 "$needed is missing: apt-get install sshfs cryptsetup-bin e2fsprogs btrfs-progs squashfs-tools"
    done
    identity=$(of .offsite.sshfs.identity)
    identity=${identity:-/root/.ssh/nc-backup-s3}
    known=$(of .offsite.sshfs.known_hosts)
    known=${known:-/root/.ssh/known_hosts}
}
# plain OPTION VALUE…: one line each.
plain() {
    while [ $# -gt 0 ]; do
        case $2 in *[[:cntrl:]]*) fail 2 "$1: one line, and no control characters" ;; esac
        shift 2
    done
}
check_kept_at() {
    case $kept_at in *[[:cntrl:]]*) fail 2 '--kept-at: one line, please' ;; esac
    [ -z "$keep_in" ] || [ -z "$kept_at" ] || fail 2 'one of --keep-in and --kept-at'
    [ -z "$keep_in" ] || [ -d "$keep_in" ] || fail 1 "--keep-in: there is no folder $keep_in: is the stick mounted?"
}

# --- what is made here ---

prepare() {
    if [ -n "$dry" ]; then
        [ -s "$identity" ] || do_it ssh-keygen -t ed25519 -f "$identity"
    else
        make_key "$identity" "nc-backup offsite $profile"
    fi
    [ -z "$host_key" ] || know_host "$known" "$host" "$port" "$host_key"
    has .offsite.luks.image || add_tables
    make_container_key
    if [ -n "$dry" ]; then
        printf '    through the link: a container of %s, %s in %s at %s\n' "$size" container.img "$directory" "$s3" >&2
    fi
    start_timer
}

# make_container_key: random, whole or not at all. One that is there is the key of a container, and is never replaced.
make_container_key() {
    local file
    file=/etc/nc-backup/$profile.key
    [ -z "$(container_key)" ] || file=$(container_key)
    [ ! -e "$file" ] || return 0
    [ ! -e "$(container_header)" ] || fail 1 "there is a container, and its key $file is not here: bring it back from where it is kept$(kept_at | sed 's/^/: /')"
    if [ -n "$dry" ]; then printf '    %s: 64 random bytes (mode 0600)\n' "$file" >&2; return 0; fi
    note containerkey "$file"
    ( umask 077; head -c 64 /dev/urandom >"$file.new" ) && [ "$(stat -c %s "$file.new")" = 64 ] && sync "$file.new" && mv "$file.new" "$file" && sync /etc/nc-backup ||
        fail 1 "cannot make the key $file"
}
undo_containerkey() {
    [ -e "$1" ] || return 0
    if [ -e "$(container_header)" ]; then stayed "$1, the key of the container that was made"; else do_it rm -f -- "$1"; fi
}

tables() {
    [ -z "$until$rules" ] || [ -z "$until" ] || printf '\n[offsite]\nuntil = "%s"\n' "$until"
    [ -z "$rules" ] || printf '\n[offsite.retention]\n%s' "$rules"
    printf '\n[offsite.sshfs]\nhost = %s\n' "$(toml "$s3")"
    [ -z "$port" ] || printf 'port = %s\n' "$port"
    printf 'directory = %s\nidentity = %s\n' "$(toml "$directory")" "$(toml "$identity")"
    [ -z "$bwlimit" ] || printf 'bwlimit = %s\n' "$(toml "$bwlimit")"
    printf '\n[offsite.luks]\nimage = "container.img"\nkey_file = "/etc/nc-backup/%s.key"\n' "$profile"
}
# add_tables: to the end of the profile, as the tools accept it, or not at all.
add_tables() {
    local file draft
    file=/etc/nc-backup/$profile.toml
    if [ -n "$dry" ]; then
        until=''
        printf '    %s, at its end:\n' "$file" >&2
        tables | while IFS= read -r line; do printf '        %s\n' "$line"; done >&2
        return 0
    fi
    draft=/etc/nc-backup/.$profile.toml.nc-backup-new
    note draft "$draft"
    # Tools that know no end of a window refuse the word; then it is the timer's alone.
    for until in "${window#*-}" ''; do
        # What is in the profile, an address with a password, is nobody else's meanwhile.
        rm -f "$draft"
        ( umask 077; { cat "$file" && tables; } >"$draft" )
        ! timeout 30 "$bin/link-sync" profile "$profile" --config "$draft" >/dev/null 2>&1 || break
    done
    if ! timeout 30 "$bin/link-sync" profile "$profile" --config "$draft" >/dev/null; then
        rm -f "$draft"
        fail 78 "the tools do not accept the profile with these tables: nothing was written"
    fi
    chmod --reference="$file" "$draft"
    chown --reference="$file" "$draft"
    cp -p "$file" "$made.before"
    note tables "$file" "$(sha256sum <"$draft" | cut -d' ' -f1)"
    sync "$draft" "$made.before"
    mv "$draft" "$file"
    read_written
}
undo_tables() {
    [ -e "$made.before" ] && [ -e "$1" ] || return 0
    if cmp -s "$1" "$made.before"; then :
    elif [ "$(sha256sum <"$1" | cut -d' ' -f1)" != "$2" ]; then stayed "$1, which was changed since"; return 0
    else do_it cp -p "$made.before" "$1"; fi
    [ -n "$dry" ] || rm -f "$made.before"
}

# --- S3 ---

# tell_s3: what is to be given there, as one piece, to paste; it ends with the line that is asked for here.
tell_s3() {
    local q
    q=$(quoted "$directory")
    cat <<END

On S3 ($host), as root (where the account is given to you: only the line of the key, into its authorized_keys):

id -u $user >/dev/null 2>&1 || useradd --create-home --shell /usr/sbin/nologin --password '*' $user
install -d -o $user -g $user -m 0700 /home/$user/.ssh $q
grep -qsF '$(public "$identity" | cut -d' ' -f2)' /home/$user/.ssh/authorized_keys || echo $(quoted "restrict $(public "$identity")") >>/home/$user/.ssh/authorized_keys
chown $user: /home/$user/.ssh/authorized_keys
printf 'Match User $user\\n    ForceCommand internal-sftp\\n    DisableForwarding yes\\n    ClientAliveInterval 30\\n' >/etc/ssh/sshd_config.d/nc-backup-$user.conf
sshd -t && { systemctl reload ssh || service ssh reload; }; cut -d' ' -f1,2 /etc/ssh/ssh_host_ed25519_key.pub

END
}
# reach_s3: until it lets us in; each try has its limit.
reach_s3() {
    local tries answer reason
    tries=0
    while :; do
        reason=$(try_s3) && { say "S3 lets us in, and has the folder $directory"; return 0; }
        say "S3 ($to): $reason"
        [ "$tries" != 0 ] || tell_s3
        tries=$((tries + 1))
        if [ -n "$yes" ] || [ "$tries" -gt 20 ]; then
            fail 69 "when that was given there:  $0 $profile --to $to --size ${size:-SIZE} --host-key 'the line that it printed'"
        fi
        printf 'The line that it printed (Enter: try again): ' >&2
        read -r answer || fail 69 'give the same command again, later'
        if [ -n "$answer" ]; then
            check_key --host-key "$(printf %s "$answer" | sed 's/^\(\[[^ ]*\]:[0-9]* \|[^ ]* \)\(ssh-\|ecdsa-\)/\2/')"
            host_key=$words
            know_host "$known" "$host" "$port" "$host_key"
        fi
    done
}
# try_s3: whether it answers, and has a folder that takes files; else, why not.
try_s3() {
    local answer code
    if ! ssh-keygen -F "$(host_name "$host" "$port")" -f "$known" >/dev/null 2>&1; then
        if [ -z "$(timeout 20 ssh-keyscan -T 10 ${port:+-p "$port"} -- "$host" 2>/dev/null)" ]; then
            echo "does not answer on port ${port:-22}"
        else
            echo 'its host key is not known here yet'
        fi
        return 1
    fi
    code=0
    answer=$(s3_sftp "cd $(sftp_word "$directory")" "-rmdir .nc-backup-try" "mkdir .nc-backup-try" "rmdir .nc-backup-try" 2>&1 </dev/null) || code=$?
    case $code:$answer in
        0:*) return 0 ;;
        124:* | 137:*) echo "does not answer within 40 s" ;;
        *'Permission denied ('*) echo "does not let the key $identity in" ;;
        *"stat remote: No such file"* | *"Can't change directory"* | *"Couldn't canonicalize"*) echo "has no folder $directory that $user may enter" ;;
        *) printf '%s\n' "$answer" | s3_reason ;;
    esac
    return 1
}

# make_container: through the link; about a megabyte, whatever its size. What was mounted is unmounted, however that ends.
make_container() {
    local rc
    if [ -e "$(container_header)" ]; then say 'the container was made before'; return 0; fi
    note container "$directory/container.img"
    "$bin/sshfs-mount" mount "$profile" >/dev/null || exit $?
    rc=0
    "$bin/luks-mount" create "$profile" --size "$size" >/dev/null || rc=$?
    "$bin/sshfs-mount" unmount "$profile" >/dev/null || say "S3 is still mounted: sshfs-mount unmount $profile"
    [ "$rc" = 0 ] || exit "$rc"
    say "made the container, $size, at $to"
}
undo_container() { [ ! -e "$(container_header)" ] || stayed "the container $1 at S3, its header $(container_header), and what is in it"; }

# --- where else the key is ---

keep_elsewhere() {
    local key header answer folder
    key=$(container_key) header=$(container_header)
    check_kept_at
    [ -e "$key" ] && [ -e "$header" ] || fail 78 "there is no container yet: $key and $header are not both here"
    if [ -z "$keep_in$kept_at" ]; then
        [ "$(sed -n '$s/^[^ ]* \([^ ]*\) .*/\1/p' "$state/kept-elsewhere" 2>/dev/null)" != "$(kept_fingerprint "$key" "$header")" ] || return 0
        if [ -z "$yes" ]; then
            printf 'Without its key and its header the container is lost, and both are only here. A folder of a USB stick to copy them to (Enter: later): ' >&2
            read -r answer || answer=''
            [ -z "$answer" ] || { [ -d "$answer" ] && keep_in=$answer || say "there is no folder $answer"; }
        fi
    fi
    if [ -n "$keep_in" ]; then
        [ "$(df --output=target "$keep_in" | tail -n 1)" != "$(df --output=target "$key" | tail -n 1)" ] || fail 1 "--keep-in: $keep_in is on the same disk as the key itself: mount a USB stick"
        folder=$keep_in/nc-backup-$profile-$(date -u +%Y-%m-%d-%H%M%S)
        mkdir -m 0700 "$folder" && cp "$key" "$folder/$profile.key" && cp "$header" "$folder/$profile.header" && note_for_finder >"$folder/README.txt" &&
            sync "$folder/$profile.key" "$folder/$profile.header" "$folder/README.txt" "$folder" &&
            cmp -s "$key" "$folder/$profile.key" && cmp -s "$header" "$folder/$profile.header" || fail 1 "could not write all of it into $folder"
        kept_at="$folder, on $(df --output=source "$folder" | tail -n 1)"
        say "key and header are in $folder: take it away, and make a second one"
    fi
    if [ -n "$kept_at" ]; then
        printf '%s %s %s\n' "$(date -u +%Y-%m-%dT%H:%M:%SZ)" "$(kept_fingerprint "$key" "$header")" "$kept_at" >>"$state/kept-elsewhere"
        sync "$state/kept-elsewhere"
    else
        say "key and header are nowhere but here: without them the copy is lost. Soon:  $0 $profile --keep-in /media/usb"
    fi
}
note_for_finder() {
    local facts
    facts=$("$bin/luks-mount" status "$profile" 2>/dev/null | jq -r '.data | "LUKS\(.luks_version // "2"), cipher \(.cipher // "?"), data from sector \(.data_offset_sectors // "?"), UUID \(.uuid // "?")"') || facts=''
    printf 'Key and header of the encrypted copy of a Nextcloud (profile %s, made on %s).\nThe container is container.img in %s at %s.\n%s\nHow all of it comes back with nothing but these and that file: docs/disaster-recovery.md of nc-backup.\n' \
        "$profile" "$(date -u +%Y-%m-%d)" "$directory$(of .offsite.sshfs.directory)" "$(of .offsite.sshfs.host)" "$facts"
}

# --- every night ---

start_timer() {
    local unit begin
    unit=nc-backup-offsite@$profile.timer begin=${window%-*}
    if systemd_runs; then
        systemctl cat "$unit" >/dev/null 2>&1 || { say "there is no $unit: install nc-backup here"; return 0; }
        if [ -n "$begin" ]; then
            printf '[Timer]\nOnCalendar=\nOnCalendar=*-*-* %s\n' "$begin" | put_file "/etc/systemd/system/$unit.d/window.conf" 0644
            [ -n "$dry" ] || systemctl daemon-reload
        fi
        add_unit "$unit"
    elif [ -d /etc/cron.d ]; then
        begin=${begin:-05:00}
        printf '# Written by add-offsite.\n%d %d * * *  root  /usr/lib/nc-backup/push-offsite %s >>/var/log/nc-backup-offsite.log\n' "$(number "${begin#*:}")" "$(number "${begin%:*}")" "$profile" |
            put_file "/etc/cron.d/nc-backup-$profile-offsite" 0644
    fi
}
number() { case $1 in 0?) echo "${1#0}" ;; *) echo "$1" ;; esac; }

# start_pushes: the first one, if there is something to push and its time is now.
start_pushes() {
    [ -z "$no_push" ] || return 0
    if ! ls -d "$(of .store.path)"/20[0-9][0-9]-* >/dev/null 2>&1; then
        say "there is no snapshot yet: the first push comes after the first backup, by the timer, or:  $here/push-offsite $profile"
        return 0
    fi
    if [ -n "$window" ] && ! in_window "$(date +%H:%M)"; then
        say "the first push begins at ${window%-*}"
        return 0
    fi
    say 'the first push begins'
    exec "$here/push-offsite" "$profile" ${given_bin:+--bin "$given_bin"}
}
# in_window TIME: whether it lies in --window, which may go over midnight.
in_window() {
    local begin end now
    begin=$(minutes "${window%-*}") end=$(minutes "${window#*-}") now=$(minutes "$1")
    if [ "$begin" -le "$end" ]; then [ "$now" -ge "$begin" ] && [ "$now" -lt "$end" ]; else [ "$now" -ge "$begin" ] || [ "$now" -lt "$end" ]; fi
}
minutes() { echo $(($(number "${1%:*}") * 60 + $(number "${1#*:}"))); }

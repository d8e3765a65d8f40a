# shellcheck shell=sh disable=SC2015,SC2016,SC2018,SC2034,SC2126,SC2153,SC2154,SC3043
# What check looks at where the snapshots are (S2), and of the copy elsewhere (S3). Sourced by it, after check.sh.

check_store_here() {
    local path owner s2
    s2=S2
    ! has .nextcloud || s2='the store, here'
    path=$(of .store.path)
    if [ -d "$path" ]; then
        owner=$(stat -c %U "$path")
        check_place "$s2" "$path"
        case $(stat -f -c %T "$path") in
            ext2/ext3 | xfs | btrfs | zfs) ;;
            *) [ "$owner" = root ] || found warning file-system "$s2" "$path is on $(stat -f -c %T "$path"): owners of files are kept in user.* attributes, which it may not have" '' ;;
        esac
        if [ "$owner" != root ]; then check_account "$owner"; fi
    else
        found error no-store "$s2" "there is no folder $path" "install -d -m 0700 $(quoted "$path")   # and its account's: chown ACCOUNT: $(quoted "$path")"
    fi
    if has '.store.retention | select(. != {})'; then
        scheduled warning "$s2" "nc-backup-prune@$profile.timer" "link-sync prune $profile" 'pruning' '' '30 6 * * *' "/usr/sbin/link-sync prune $profile"
    else
        retention_missing "$s2"
    fi
    scheduled warning "$s2" "nc-backup-verify@$profile.timer" "link-sync verify $profile" 'the weekly verification' '' '0 12 * * 0' "/usr/sbin/link-sync verify $profile"
    has .nextcloud || check_drill "$s2"
}

# check_account OWNER: how S1 gets in.
check_account() {
    local home shell keys both words alive
    home=$(getent passwd "$1" | cut -d: -f6)
    shell=$(getent passwd "$1" | cut -d: -f7)
    keys=$home/.ssh/authorized_keys
    case ${shell##*/} in
        nologin | false) found error no-shell S2 "the account $1 has the shell $shell, so its forced commands do not run" "usermod --shell /bin/sh $1" ;;
    esac
    [ -x /usr/sbin/link-sync ] || found error no-link-sync S2 'there is no /usr/sbin/link-sync, which the key for backups starts' "install -m 0755 link-sync /usr/sbin/link-sync"
    command -v rsync >/dev/null || found error no-rsync S2 'rsync is missing' 'apt-get install rsync'
    # Read as the account: what it points to is its own affair.
    words=$(as_account "$1" head -c 1000000 "$keys" 2>/dev/null) || words=''
    for both in "serve $profile" "serve $profile --read-only"; do
        if printf '%s\n' "$words" | grep -qE "^command=\"[^\"]*link-sync $both\",restrict (ssh-|ecdsa-|sk-)"; then
            well S2 "$keys has a line for \"$both\""
        else
            found "$(case $both in *only) echo warning ;; *) echo error ;; esac)" no-key S2 "$keys has no line whose command is \"link-sync $both\", with restrict" \
                "$here/add-store $profile --key 'the public key that setup made on S1'$(case $both in *only) echo " --restore-key 'the other one'" ;; esac)"
        fi
    done
    # What is quoted may have anything in it, and so may the comment behind the key: only its options say what a key may do.
    both=$(printf '%s\n' "$words" | sed 's/^[[:space:]]*//; /^#/d; /^$/d; s/"\(\\.\|[^"\\]\)*"/""/g; s/[[:space:]].*//' |
        grep -cvxE '([^,]+,)*(command="",([^,]+,)*restrict|restrict,([^,]+,)*command="")(,[^,]+)*') || true
    [ "$both" = 0 ] || found warning free-key S2 "$keys has $both lines without a forced command and restrict: such a key may do all that $1 may, also remove snapshots" "\${EDITOR:-vi} $keys"
    if [ -z "$config" ] && ! as_account "$1" test -r "/etc/nc-backup/$profile.toml"; then
        found error profile-not-readable S2 "$1 may not read /etc/nc-backup/$profile.toml, by which it serves" "chmod 0755 /etc/nc-backup; chmod 0644 /etc/nc-backup/$profile.toml"
    fi
    alive=$(sshd -T -C "user=$1,host=localhost,addr=127.0.0.1" 2>/dev/null | sed -n 's/^clientaliveinterval //p') || alive=''
    [ "$alive" != 0 ] || found warning client-alive S2 'sshd does not notice when S1 loses power, and the store stays busy for the next run' \
        "printf 'Match User $1\\n    ClientAliveInterval 30\\n' >/etc/ssh/sshd_config.d/nc-backup-$1.conf && systemctl reload ssh"
}
# --- the copy elsewhere ---

check_offsite() {
    local key header needed
    key=$(container_key) header=$(container_header)
    for needed in cryptsetup mount $(has .offsite.sshfs && echo sshfs) $([ "$(of .offsite.layout)" = hardlink ] || echo mksquashfs); do
        command -v "$needed" >/dev/null || found error no-program S2 "$needed is missing" 'apt-get install sshfs cryptsetup-bin e2fsprogs btrfs-progs squashfs-tools'
    done
    [ -z "$(of .offsite.sshfs.host)" ] || check_s3
    if [ ! -e "$key" ]; then
        found error no-container-key S2 "the container's key, $key, is not here" "bring it back from where it is kept$(kept_at | sed 's/^/: /')"
    elif case $(stat -c '%u %a' "$key") in '0 600' | '0 400') false ;; esac; then
        found error container-key-open S2 "$key can be read by others" "chown root: $(quoted "$key") && chmod 0600 $(quoted "$key")"
    fi
    if [ ! -e "$header" ]; then
        found error no-container S2 "there is no container yet: $header is missing" "$here/add-offsite $profile --to $(of .offsite.sshfs.host) --size SIZE   # its header was lost? luks-mount adopt $profile"
    elif [ -e "$key" ]; then
        check_opens "$key" "$header"
        check_kept "$key" "$header"
    fi
    scheduled warning S2 "nc-backup-offsite@$profile.timer" "push-offsite $profile" 'the copy elsewhere' '' '0 5 * * *' "/usr/lib/nc-backup/push-offsite $profile"
    look offsite 60 offsite-push status
    if [ "$rc" != 0 ]; then
        found error offsite S2 "$(why)" "$(hint)"
    elif [ "$(ask 'last.output.data.last_push')" = null ]; then
        found warning not-pushed-yet S3 'nothing was pushed yet' "$here/push-offsite $profile"
    else
        well S3 "the last push was of $(ask 'last.output.data.last_push.date // "?"')"
        [ "$(ask 'last.output.data.damaged // [] | length')" = 0 ] ||
            found error damaged S3 'dates in the container are not whole' "offsite-push verify $profile"
    fi
}

# check_opens KEY HEADER: whether the key opens it. (It takes as long as it was made to: seconds.)
check_opens() {
    if timeout -k 5 180 cryptsetup open --test-passphrase --key-file "$1" --header "$2" "$2" </dev/null >/dev/null 2>&1 ||
        timeout -k 5 180 cryptsetup open --test-passphrase --key-file "$1" "$2" </dev/null >/dev/null 2>&1; then
        well S2 'the key opens the header of the container'
    else
        found error key-does-not-open S2 "$1 does not open $2" "bring both back from where they are kept$(kept_at | sed 's/^/: /')"
    fi
}

# check_kept KEY HEADER: whether somebody has said where else they are.
check_kept() {
    local noted
    noted=$(sed -n '$s/^[^ ]* \([^ ]*\) .*/\1/p' "$state/kept-elsewhere" 2>/dev/null) || noted=''
    if [ -z "$noted" ]; then
        found warning key-only-here S2 'the key and the header of the container are nowhere but here: if this machine is lost, so is the copy' \
            "$here/add-offsite $profile --keep-in /media/usb   # or, if you have done it: add-offsite $profile --kept-at 'where'"
    elif [ "$noted" != "$(kept_fingerprint "$1" "$2")" ]; then
        found warning kept-is-old S2 "key or header have changed since they were kept ($(kept_at))" "$here/add-offsite $profile --keep-in /media/usb"
    else
        well S2 "key and header are kept elsewhere: $(kept_at)"
    fi
}

# check_s3: whether it answers, within a limit, and has the folder.
check_s3() {
    local host where answer image
    host=$(of .offsite.sshfs.host)
    where="S3 ($host)"
    answer=$(s3_sftp "ls -l $(sftp_word "$(of .offsite.sshfs.directory)")" 2>&1) && rc=0 || rc=$?
    case $rc:$answer in
        0:*)
            image=$(of .offsite.luks.image)
            # The command itself, which sftp repeats, has the folder only.
            if [ -e "$(container_header)" ] && [ "${image#*/}" = "$image" ] && ! printf '%s\n' "$answer" | grep -v '^sftp>' | grep -qF -- "$image"; then
                found error no-image "$where" "has no $image in $(of .offsite.sshfs.directory)" "ls -l $(quoted "$(of .offsite.sshfs.directory)")   # on that machine: is its disk mounted, was the file moved?"
            else
                well "$where" 'answers, and has the folder'
            fi
            ;;
        124:* | 137:*) found error s3-silent "$where" 'does not answer within 40 s' "ssh -v$(of .offsite.sshfs.port | sed 's/^/ -p /') $host   # is it on, and this its port?" ;;
        *'Host key verification failed'* | *'host key is known'*)
            found error s3-host-key "$where" 'its host key is not known here' "$here/add-offsite $profile --host-key 'the line that S3 printed'" ;;
        *'Permission denied'*) found error s3-key "$where" "does not let $(of .offsite.sshfs.identity) in" "$here/add-offsite $profile   # says again what S3 needs" ;;
        *) found error s3 "$where" "$(printf %s "$answer" | s3_reason)" "$here/add-offsite $profile" ;;
    esac
}

#!/bin/sh
# Stands in for luks-mount where this kernel has no dm-crypt: the same words, objects, checks and mounts of an ext4, which
# lies in the image as it is. What luks-mount itself does is run in the guest.
w='@WORLD@'
action=$1
image=$w/s3/container.img target=$w/run/container
object() {
    case $1 in 0) status=ok error=null ;; *) status=failed error='{"kind":"failed","message":"'$3'","causes":[],"hint":null,"command":null}' ;; esac
    printf '{"schema":1,"tool":"luks-mount","version":"@VERSION@","action":"%s","profile":"home","status":"%s","exit_code":%s,"changed":true,"started_at":"2026-11-22T23:12:22Z","duration_ms":1,"data":{%s},"warnings":[%s],"error":%s,"left_behind":[]}\n' \
        "$action" "$status" "$1" "$2" "${4-}" "$error"
    exit "$1"
}
checked() { dumpe2fs -h "$image" 2>/dev/null | sed -n 's/^Last checked: *//p'; }
case $action in
    --version) echo "luks-mount @VERSION@" ;;
    status)
        if mountpoint -q "$target"; then state=attached; else state=detached; fi
        object 0 "\"state\":\"$state\"" ;;
    attach)
        head=$(dumpe2fs -h "$image" 2>/dev/null) || object 1 '' 'the file system in the container cannot be read'
        before=$(checked) fsck=not-needed options=loop,nosuid,nodev,noexec,noatime
        case " $* " in
            *' --read-only '*)
                options=$options,ro
                case $head in *needs_recovery*) options=$options,noload ;; esac ;;
            *)
                marked=''
                echo "$head" | grep -qE '^Filesystem state: +clean$' || marked=1
                ! echo "$head" | grep -qE '^(Journal errno|FS Error count): +[^0 ]' || marked=1
                if [ -n "$marked" ] || [ -e "$w/check-needed" ]; then
                    rc=0
                    e2fsck -f -p "$image" >"$w/fsck.out" 2>&1 || rc=$?
                    case $rc in 0 | 1) ;; *) object 1 '' 'the file system in the container is damaged' ;; esac
                    fsck=checked
                    if [ -n "$marked" ] || [ "$rc" = 1 ]; then fsck=repaired; fi
                    rm -f "$w/check-needed"
                fi
                options=$options,noinit_itable,errors=remount-ro,data_err=abort ;;
        esac
        mkdir -p "$target"
        mount -t ext4 -o "$options" "$image" "$target" 2>/dev/null || object 1 '' 'cannot mount the container'
        after=$(checked)
        case " $* " in *' --read-only '*) rm -f "$w/writing" ;; *) : >"$w/writing" ;; esac
        object 0 "\"state\":\"attached\",\"uuid\":\"plain\",\"fsck\":\"$fsck\",\"checked_before\":\"$before\",\"checked_at\":\"$after\"" ;;
    detach)
        mountpoint -q "$target" || object 0 '"state":"detached"'
        sync -f "$target" 2>/dev/null
        lost=''
        dev=$(findmnt -n -o SOURCE "$target")
        count=$(cat "/sys/fs/ext4/${dev##*/}/errors_count" 2>/dev/null || echo 0)
        if [ ! -e "$w/writing" ]; then :
        elif [ "$count" != 0 ] || findmnt -n -o FS-OPTIONS "$target" | grep -qE '^ro|emergency_ro|shutdown'; then
            lost='{"kind":"sync-failed","message":"not all that was written has reached the image"}'
            : >"$w/check-needed"
        fi
        umount "$target" || object 1 '' 'cannot unmount'
        object 0 '"state":"detached","written_bytes":1' '' "$lost" ;;
    *) exit 2 ;;
esac

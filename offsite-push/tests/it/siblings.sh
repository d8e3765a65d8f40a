#!/bin/sh
# Stands in for sshfs-mount, luks-mount and link-sync: same words, same objects, same states, on plain folders.
# $w/plan/TOOL-ACTION, if it is there, is sourced first: what goes wrong.
w='@WORLD@'
tool='@TOOL@' action=$1
[ "$1" != --version ] || { echo "$tool 0.1.0"; exit 0; }
echo "$tool $*" >>"$w/log"
# object CODE CHANGED DATA [WARNINGS] [LEFT]
object() {
    case $1 in
        0) status=ok ;; 1) status=failed ;; 3) status=partial ;; 4) status=dirty ;; 69) status=unavailable ;;
        75) status=busy ;; 77) status=denied ;; 78) status=config ;; *) status=interrupted ;;
    esac
    case $1 in
        0 | 3) error=null ;;
        *) kind=$status; [ "$1" != 4 ] || kind=failed
           error='{"kind":"'$kind'","message":"'$tool' '$action' said '$1'","causes":[],"hint":"a hint","command":null}' ;;
    esac
    printf '{"schema":1,"tool":"%s","version":"0.1.0","action":"%s","profile":"home","status":"%s","exit_code":%s,"changed":%s,"started_at":"2026-11-22T23:12:22Z","duration_ms":1,"data":%s,"warnings":%s,"error":%s,"left_behind":%s}\n' \
        "$tool" "$action" "$status" "$1" "$2" "$3" "${4:-[]}" "$error" "${5:-[]}"
}
state() { cat "$w/$1" 2>/dev/null || echo "$2"; }
# Waits to be ended, and says so.
pause() {
    trap 'object 143 false "{}"; exit 143' TERM
    echo $$ >"$w/paused"
    while :; do sleep 0.05; done
}
s3() { state s3 unmounted; }
luks() { state luks detached; }
[ ! -e "$w/plan/$tool-$action" ] || . "$w/plan/$tool-$action"
case $tool-$action in
    sshfs-mount-status) object 0 false "{\"state\":\"$(s3)\"}" ;;
    sshfs-mount-mount) echo healthy >"$w/s3"; object 0 true '{"state":"healthy"}' ;;
    sshfs-mount-unmount)
        if [ "$(luks)" != detached ]; then
            object 4 false '{"state":"healthy"}' '[]' '[{"what":"the container is open","clear":"luks-mount detach"}]'
            exit 4
        fi
        if [ "$(s3)" = unmounted ]; then object 0 false '{"state":"unmounted"}'; exit 0; fi
        echo unmounted >"$w/s3"
        object 0 true '{"state":"unmounted","sent_bytes":1234567,"received_bytes":7654}' ;;
    luks-mount-status) object 0 false "{\"state\":\"$(luks)\"}" ;;
    luks-mount-attach)
        [ ! -e "$w/needs-s3" ] || [ "$(s3)" = healthy ] || { object 69 false '{}'; exit 69; }
        mkdir -p "$w/run/container"
        mount --bind "$w/disk" "$w/run/container"
        echo attached >"$w/luks"
        checked=$(state checked yesterday)
        object 0 true "{\"state\":\"attached\",\"uuid\":\"$(cat "$w/uuid")\",\"fsck\":\"$(state fsck not-needed)\",\"checked_before\":\"$checked\",\"checked_at\":\"$checked\",\"accepted_at\":$(state accepted null)}" '[{"kind":"header-differs","message":"seen"}]' ;;
    luks-mount-detach)
        if [ "$(luks)" = detached ]; then object 0 false '{"state":"detached"}'; exit 0; fi
        umount "$w/run/container" 2>/dev/null
        echo detached >"$w/luks"
        object 0 true '{"state":"detached","written_bytes":2000000}' ;;
    link-sync-copy)
        shift
        while [ $# -gt 0 ]; do
            case $1 in --to) to=$2; shift ;; --store) store=$2; shift ;; --date) date=$2; shift ;; esac
            shift
        done
        if [ -e "$to/$date" ]; then object 0 false "{\"date\":\"$date\",\"base_date\":null,\"copied_bytes\":0}"; exit 0; fi
        rm -rf "$to/.partial"
        cp -a "$store/$date" "$to/.partial"
        [ ! -e "$w/plan/copying" ] || . "$w/plan/copying"
        mv "$to/.partial" "$to/$date"
        object 0 true "{\"date\":\"$date\",\"base_date\":null,\"copied_bytes\":42}" ;;
    link-sync-verify)
        object 0 false '{"dates":["d"],"sample_percent":5,"bytes_read":99,"findings_total":0}' ;;
    link-sync-prune)
        # All but the newest two go, and what is to stay.
        shift
        dry='' keep=' '
        while [ $# -gt 0 ]; do
            case $1 in --store) store=$2; shift ;; --keep) keep="$keep$2 "; shift ;; --dry-run) dry=1 ;; esac
            shift
        done
        removed=''
        for date in $(ls "$store" | grep '^20' | head -n -2); do
            case $keep in *" $date "*) continue ;; esac
            removed="$removed${removed:+,}\"$date\""
            [ -n "$dry" ] || rm -rf "${store:?}/$date"
            [ ! -e "$w/plan/pruning" ] || [ -n "$dry" ] || . "$w/plan/pruning"
        done
        changed=true
        [ -n "$removed" ] && [ -z "$dry" ] || changed=false
        object 0 $changed "{\"removed\":[$removed],\"kept\":2,\"skipped\":[],\"snapshots\":[],\"paths\":1}" ;;
    *) echo "what is $tool $action?" >&2; exit 2 ;;
esac

# shellcheck shell=sh disable=SC2154
# Parts of a profile, for setup and for a restore that begins with nothing. Sourced after lib.sh.

toml() { jq -cn --arg v "$1" '$v'; }
# store_tables STORE IDENTITY RESTORE_IDENTITY PORT KNOWN_HOSTS
store_tables() {
    printf '[snapshot]\nstore = %s\n' "$(toml "$1")"
    case $1 in
        /*)
            # A store on a disk of its own: that disk has to be there, or a backup would fill the one below.
            above=$1
            while [ ! -d "$above" ]; do above=$(dirname "$above"); done
            mount=$(df --output=target "$above" | tail -n 1)
            printf '\n[store]\npath = %s\n' "$(toml "$1")"
            [ "$mount" = / ] || printf 'mount = %s\n' "$(toml "$mount")"
            ;;
        *)
            [ -z "$2$3$4$5" ] || printf '\n[snapshot.ssh]\n'
            [ -z "$2" ] || printf 'identity = %s\n' "$(toml "$2")"
            [ -z "$3" ] || printf 'restore_identity = %s\n' "$(toml "$3")"
            [ -z "$4" ] || printf 'port = %s\n' "$4"
            [ -z "$5" ] || printf 'known_hosts = %s\n' "$(toml "$5")"
            ;;
    esac
}
# source_table NAME [PATH]
source_table() {
    printf '\n[[snapshot.source]]\nname = %s\n' "$(toml "$1")"
    [ -z "${2-}" ] || printf 'path = %s\n' "$(toml "$2")"
}
# check_store OPTION WHERE, check_port PORT: whether they can be in one.
check_store() { case $2 in /* | *@*:/*) ;; *) fail 2 "$1 '$2': write user@host:/path, or /path of a disk here" ;; esac; }
check_port() { case $1 in *[!0-9]*) fail 2 "--port '$1' is not a number" ;; esac; }

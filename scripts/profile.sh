# shellcheck shell=sh disable=SC2015,SC2016,SC2018,SC2034,SC2126,SC2153,SC2154,SC3043
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
# taken_by_another VALUE: -PROFILE, if another profile on this machine has it; a key opens one store, a folder holds one container.
taken_by_another() {
    local other
    for other in /etc/nc-backup/*.toml; do
        [ "$other" != "/etc/nc-backup/$profile.toml" ] && grep -qsF "= \"$1\"" "$other" || continue
        echo "-$profile"
        return 0
    done
}
# check_store OPTION WHERE, check_port PORT: whether they can be in one.
check_store() { case $2 in /* | *@*:/*) ;; *) fail 2 "$1 '$2': write user@host:/path, or /path of a disk here" ;; esac; }
check_port() { case $1 in *[!0-9]*) fail 2 "--port '$1' is not a number" ;; esac; }

# sudo_words PROFILE: what an account needs root for in a backup; each is the whole of a rule.
sudo_words() {
    sed "s|PROFILE|$1|g" <<'END'
nc-maint status PROFILE
pg-snap check PROFILE
link-sync stage PROFILE
pg-snap drain PROFILE --look
nc-maint run PROFILE -- /usr/lib/nc-backup/settle-and-hold PROFILE
pg-snap drain PROFILE
pg-snap hold PROFILE
link-sync settle PROFILE
pg-snap confirm PROFILE
pg-snap dump PROFILE --held
pg-snap release PROFILE
link-sync stage PROFILE --source database
link-sync publish PROFILE
pg-snap prune PROFILE
nc-maint off PROFILE --if-ours
link-sync abort PROFILE
END
}

# check_rules: sets $rules, the lines of a table of retention, by $keep.
check_rules() {
    rules=''
    [ "$keep" != none ] || return 0
    for rule in ${keep:-daily=14 weekly=8 monthly=12 yearly=3}; do
        value=${rule#*=}
        case $rule in
            last=* | hourly=* | daily=* | weekly=* | monthly=* | yearly=*) case $value in '' | *[!0-9]* | ?????*) value='' ;; esac ;;
            within=*) case $value in [1-9]*[dmwy] | [1-9]*mo) value=$(toml "$value") ;; *) value='' ;; esac ;;
            *) value='' ;;
        esac
        [ -n "$value" ] || fail 2 "--keep '$rule': write like 'daily=14 weekly=8 monthly=12 yearly=3'"
        rules="${rules}keep_${rule%%=*} = $value
"
    done
}

# check_key OPTION TEXT: sets $words, type and key; no options of its own, no second line.
check_key() {
    case $2 in *[[:cntrl:]]*) fail 2 "$1: one line, and only that: $(printf %s "$2" | tr '[:cntrl:]' '?' | cut -c1-60)" ;; esac
    words=$(printf '%s\n' "$2" | LC_ALL=C sed -n 's/^ *\(\(ssh-ed25519\|ssh-rsa\|ecdsa-sha2-nistp[0-9]*\|sk-[a-z0-9-]*@openssh[.]com\) [A-Za-z0-9+/]*=*\)\( .*\)\{0,1\}$/\1/p')
    if [ -z "$words" ] || ! printf '%s\n' "$words" | timeout 10 ssh-keygen -l -f - >/dev/null 2>&1; then
        fail 2 "$1 '$(printf %.60s "$2")' is not a public key: the whole line of the file that ends in .pub, 'ssh-ed25519 AAAA…'"
    fi
}

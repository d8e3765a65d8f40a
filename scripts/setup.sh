# shellcheck shell=sh disable=SC2034,SC2154,SC3043
# What the steps of setup do. Sourced by it, after lib.sh.

# shellcheck source=scripts/profile.sh
. "$here/profile.sh"

# question VARIABLE TEXT DEFAULT: keeps what an option gave.
question() {
    eval "given=\$$1"
    if [ -z "$given" ]; then
        given=$3
        if [ -z "$yes" ]; then
            printf '%s%s: ' "$2" "${3:+ [$3]}" >&2
            read -r answer || fail 1 "no answer"
            given=${answer:-$3}
        fi
    fi
    eval "$1=\$given"
}

# fact FILTER: of what Nextcloud says about itself.
fact() { printf '%s' "$facts" | jq -r "$1 // empty"; }
# with_occ COMMAND…: with --occ for each word of $occ.
with_occ() {
    for word in $occ; do set -- "$@" --occ "$word"; done
    "$@"
}

# ask_url: whether maintenance is real, as clients see it.
ask_url() {
    [ "$url" = unset ] || return 0
    url=$(fact .data.url)
    # Proposed only if it leads to this instance from here: else every backup would wait for it in vain.
    seen=$(with_occ "$bin/nc-maint" status --root "$root" --url "${url:-http://localhost}" 2>/dev/null |
        jq -r .data.clients_maintenance) || seen=null
    [ "$seen" != null ] || url=-
    proposed=$url url=''
    question url "Clients' address, to check that maintenance is real (- for none)" "$proposed"
    [ "$url" != - ] || url=''
}

# make_profile: asks, and writes it.
make_profile() {
    pick_root
    # What Nextcloud says about itself; it also refuses what cannot be backed up.
    facts=$(with_occ "$bin/nc-maint" inspect --root "$root") || exit $?
    translate
    pick_store
    ask_url
    case $store in
        /*)
            identity='' port=''
            question keep 'What is kept (none, or like what is in brackets)' 'daily=14 weekly=8 monthly=12 yearly=3'
            check_rules
            ;;
        *)
            check_port "$port"
            look_at_host
            question identity 'Key for S2' "/root/.ssh/nc-backup$(taken_by_another /root/.ssh/nc-backup)"
            [ -n "$yes$via" ] || question via 'Prepare S2 now by your own ssh, like root@s2 (- to do it there by hand)' -
            [ "$via" != - ] || via=''
            check_given
            ;;
    esac
    write_profile
    # Where all is looked at afterwards, that is, too.
    [ "$output" = "$standard" ] || check_database
}

# mounted_sources: what else is mounted in Nextcloud's folder, themes or apps in volumes of their own, each under a name.
mounted_sources() {
    local there place name
    printf '%s' "${inside:+$inside
}" | while IFS=$tab read -r there place; do
        [ "$place" != "$data" ] || continue
        name=mounted-$(printf %s "$there" | tr '[:upper:]' '[:lower:]' | tr -c 'a-z0-9' - | cut -c1-20)
        source_table "$name" "$place"
    done
}

# translate: what Nextcloud says of its places, as this machine sees them, if it runs in a container: sets $data, $inside,
# what else is mounted there, $contained, if config/ is the same folder, and $database, how that is reached.
translate() {
    local html
    data=$(fact .data.data_directory) inside='' contained='' database=''
    look_into_container || return 0
    data=$(outside "$data")
    [ -n "$data" ] || fail 78 "the data directory $(fact .data.data_directory) is in the container alone: keep it in a volume or a folder of this machine"
    html=$(printf '%s\n' "$described" | jq -r --arg root "$root" '[.Mounts[]? | select(.Source == $root)][0].Destination // empty')
    if [ -n "$html" ] && [ "$(outside "$html/config")" = "$root/config" ]; then contained=1; fi
    inside=$(mounts_inside | while IFS=$tab read -r there place; do [ ! -d "$place" ] || printf '%s\t%s\n' "$there" "$place"; done)
    database=$(database_outside "$(fact .data.database.host)")
    [ -z "$database" ] || say "the database is in a container, too: $database"
}

# of_profile TABLE KEY: what the profile that is there says; a list, as words.
of_profile() {
    "$bin/link-sync" profile "$profile" --config "$output" 2>/dev/null |
        jq -r ".data.profile.$1.$2 // empty | if type == \"array\" then join(\" \") else . end"
}
same() { [ "$1" = "$2" ]; }
# read_profile: the keys, and what is told, by the profile that is there.
read_profile() {
    "$bin/link-sync" profile "$profile" --config "$output" >/dev/null 2>&1 ||
        fail 1 "$output exists already, and is no profile that the tools take: it is left as it is"
    [ "$url" != unset ] || url=$(of_profile nextcloud url)
    argv=$(of_profile nextcloud occ)
    if ! { same "$url" "$(of_profile nextcloud url)" && { [ -z "$root" ] || same "$root" "$(of_profile nextcloud root)"; } &&
        { [ -z "$store" ] || same "$store" "$(of_profile snapshot store)"; } && { [ -z "$occ" ] || same "$occ" "$argv"; } &&
        { [ -z "$identity" ] || same "$identity" "$(of_profile snapshot.ssh identity)"; } &&
        { [ -z "$port" ] || [ "$port" = 22 ] || same "$port" "$(of_profile snapshot.ssh port)"; }; }; then
        fail 1 "$output exists already, and has other answers: it is left as it is. Without --root, --store and the like, setup goes on with it"
    fi
    say "$output exists already: it is left as it is"
    store=$(of_profile snapshot store)
    identity=$(of_profile snapshot.ssh identity)
    restore_identity=$(of_profile snapshot.ssh restore_identity)
    port=$(of_profile snapshot.ssh port)
    case $store in
        /*) identity='' ;;
        *@*:/*) [ -n "$identity" ] || fail 78 "$output: there is no identity = \"…\" in [snapshot.ssh], so no key to make" ;;
        *) fail 78 "$output: there is no store = \"…\" in [snapshot]" ;;
    esac
    existed=1
}

# write_profile: whole, and as the tools accept it, or not at all.
write_profile() {
    restore_identity=${identity:+$identity-restore}
    folder=$(dirname "$output")
    if [ -n "$dry_run" ]; then folder=$(mktemp -d); elif [ "$output" = "$standard" ]; then add_folder "$folder" 0755 root; else install -d -m 0755 "$folder"; fi
    argv=$(jq -cn --arg words "$occ" '$words | split(" ") | map(select(. != ""))')
    if [ -n "$made" ] && [ -z "$dry_run" ]; then
        draft=$folder/.$profile.toml.nc-backup-new
        note draft "$draft.says"
        note draft "$draft"
        rm -f "$draft"
    else
        draft=$(mktemp "$folder/.setup.XXXXXX")
    fi
    trap 'rm -f "$draft" "$draft.says"; [ -z "$dry_run" ] || rmdir "$folder"' EXIT
    trap 'exit 129' HUP
    trap 'exit 130' INT
    trap 'exit 143' TERM
    {
        # What Nextcloud's account wrote into its config.php ends no comment.
        printf '# Written by setup for Nextcloud %s. docs/profile.md explains every key.\n' "$(fact .data.version | tr -cd '0-9.' | cut -c1-32)"
        printf '[nextcloud]\nroot = %s\n' "$(toml "$root")"
        [ -z "$occ" ] || printf 'occ = %s\n' "$argv"
        [ -z "$url" ] || printf 'url = %s\n' "$(toml "$url")"
        [ -z "$contained" ] || printf 'method = "drop-in"\n'
        [ -z "$database" ] || printf '\n[database]\nhost = %s\n' "$(toml "$database")"
        echo
        store_tables "$store" "$identity" "$restore_identity" "$port" ''
        case $store in /*) [ -z "$rules" ] || printf '\n[store.retention]\n%s' "$rules" ;; esac
        [ -z "$drill" ] || printf '\n[drill]\nhost = "/run/postgresql"\nuser = "root"\n'
        source_table data "$data"
        source_table html "$root"
        # Where others are mounted, this one has empty folders. A restore must leave them in place, or what is mounted goes with them.
        [ -z "$inside" ] || printf '%s\n' "$inside" | jq -Rrcn '"exclude = \([inputs | "/\(split("\t")[0])/"])"'
        printf '%s' "$facts" | jq -r --arg root "$root/" '[.data.apps_paths[].path | select(startswith($root) | not)]
            | to_entries[] | "\n[[snapshot.source]]\nname = \"apps-\(.key + 1)\"\npath = \(.value | tojson)"'
        mounted_sources
        source_table database
    } >"$draft"
    chmod 0600 "$draft"
    # Once more, as the places that are saved are known now: what leads out of them is told.
    judged=$("$bin/nc-maint" inspect "$profile" --config "$draft" 2>"$draft.says") || {
        code=$?
        while read -r line; do say "$line"; done <"$draft.says"
        fail $code "the tools do not accept this profile: nothing was written"
    }
    # shellcheck disable=SC2016  # jq's variables
    jq -nr --argjson before "$facts" --argjson now "$judged" '($now.warnings - $before.warnings)[].message' |
        while read -r line; do say "warning: $line"; done
    if [ -n "$dry_run" ]; then
        dry=1
        say 'this is what would be done (nothing that is there already is changed):'
        put_file "$output" 0600 <"$draft"
        for key_file in $identity $restore_identity; do [ -s "$key_file" ] || do_it ssh-keygen -t ed25519 -f "$key_file"; done
        return 0
    fi
    # Before the profile: where that is, the key for restoring is one that is kept elsewhere.
    make_keys
    sync "$draft"
    [ -z "$made" ] || note file "$output" "$(sha256sum <"$draft" | cut -d' ' -f1)"
    ln "$draft" "$output" || fail 1 "$output could not be made"
    rm -f "$draft" "$draft.says"
    trap - EXIT HUP INT TERM
    say "wrote $output"
    say "maintenance is switched by $(printf %s "$judged" | jq -r '"\(.data.method): \(.data.method_reason)"')"
}

# check_database: what its role may not do, or why it does not get in: known now, not at night.
check_database() {
    checked=$("$bin/pg-snap" check "$profile" --config "$output" --for backup 2>/dev/null) || true
    printf %s "$checked" | jq -r 'if (.data.findings // []) != [] then .data.findings[] | .message, "    \(.cure // empty)"
        elif .error != null then .error.message, (.error.hint // empty) else empty end' |
        while IFS= read -r line; do
            # What is to be pasted stands alone.
            case $line in '    '*) printf '%s\n' "$(printf %s "$line" | show)" >&2 ;; *) say "the database: $line" ;; esac
        done
}

# tell_rules: how it is run every night, and by an account that is not root.
tell_rules() {
    echo "Every night, with systemd:  systemctl enable --now nc-backup@$profile.timer nc-backup-off@$profile.service"
    echo "or with cron, as root:      30 3 * * *  $lib/backup-local $profile$config >>/var/log/nc-backup.log"
    echo
    echo "To run it as the account nc-backup instead of root, in /etc/sudoers.d/nc-backup (check it with visudo -c):"
    sudo_words "$profile$config" | while read -r words; do
        echo "nc-backup ALL=(root) NOPASSWD: /usr/sbin/$words"
    done
}

# make_keys: one writes snapshots and cannot read them, the other one reads and cannot write. That one may be kept
# elsewhere, and is not made anew then.
make_keys() {
    [ -z "$identity" ] || make_key "$identity" "nc-backup $profile"
    [ -z "$restore_identity" ] || [ -n "$existed" ] || make_key "$restore_identity" "nc-backup-restore $profile"
}

# tell_s2: what is to be done there.
tell_s2() {
    account=${store%%@*}
    host=${store#*@}
    path=${host#*:}
    host=${host%%:*}
    line="    command=\"/usr/sbin/link-sync serve $profile\",restrict $(public "$identity")"
    reach="  ssh -n -o IdentitiesOnly=yes${port:+ -p $port} -i $identity $account@$host"
    if [ -e "$restore_identity" ]; then
        line="$line
    command=\"/usr/sbin/link-sync serve $profile --read-only\",restrict $(public "$restore_identity")"
        reach="$reach
  ssh -n -o IdentitiesOnly=yes${port:+ -p $port} -i $restore_identity $account@$host"
    elif [ -n "$restore_identity" ]; then
        say "the key for restoring, $restore_identity, is not here: bring it when it is needed"
    fi
    cat <<END

On S2 ($host), as root, where nc-backup is installed, this one command:

  $(add_store_command)

It prints a line that is asked for here. Or by hand, with link-sync in /usr/sbin and rsync installed (what is there already stays):
  useradd --create-home --shell /bin/sh --password '*' $account
  install -d -o $account -g $account -m 0700 $(quoted "$path") /home/$account/.ssh
  /home/$account/.ssh/authorized_keys, a line for each key (the one with --read-only is for restoring):
$line
  /etc/nc-backup/$profile.toml, root's, mode 0644 (mount: the disk that must be there; leave it out if there is none):
    [store]
    path = $(toml "$path")
    mount = $(toml "$(dirname "$path")")
    [store.retention]
    keep_daily = 14
    keep_weekly = 8
    keep_monthly = 12
    keep_yearly = 3
Then, here, compare S2's host key with what S2 itself says (ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub);
each key gets "link-sync serve: ready" as the answer, and what it is for:
$reach
and try it:
  $lib/backup-local $profile$config
END
}

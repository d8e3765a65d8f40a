# shellcheck shell=sh disable=SC2015,SC2016,SC2018,SC2034,SC2126,SC2153,SC2154,SC3043
# What check looks at where Nextcloud runs, and how it says what it found. Sourced by it, after lib.sh.

# --- how it is said ---

# add ITEMS: JSON objects, a line each, are noted and told.
add() {
    [ -n "$1" ] || return 0
    items="$items$1
"
    printf '%s\n' "$1" | jq -r '"\({ok: "ok     ", error: "WRONG  ", warning: "look at"}[.level])  \(.where): \(.message | gsub("\n"; " "))",
        (.cure // empty | split("\n")[] | "\t\(.)")' | while IFS= read -r line; do
        # What is to be pasted stands alone.
        case $line in "$tab"*) printf '    %s\n' "$(printf %s "${line#?}" | show)" >&2 ;; *) say "$line" ;; esac
    done
}
# found LEVEL KIND WHERE MESSAGE [CURE]; well WHERE MESSAGE.
found() {
    add "$(jq -cn --arg level "$1" --arg kind "$2" --arg where "$3" --arg message "$4" --arg cure "${5-}" \
        '{level: $level, kind: $kind, where: $where, message: $message, cure: ($cure | select(. != "") // null)}')"
}
well() { found ok ok "$1" "$2"; }

# look STEP SECONDS TOOL ACTION [ARGUMENTS]: a step with a deadline, whose words are not shown: why and hint have them.
look() {
    local step seconds tool action
    step=$1 seconds=$2 tool=$3 action=$4
    shift 4
    mute_step "$step" timeout -k 10 "$seconds" "$bin/$tool" "$action" "$profile" ${config:+--config "$config"} "$@"
}
mute_step() { note_step "$@" 2>/dev/null; }
# Of the last step: what was wrong, and what it says is to be done.
why() {
    ask 'last | .output.error.message // .told // (if .exit_code == 124 or .exit_code == 137 then "no answer in time: \(.step)"
        else "\(.step) ended with exit code \(.exit_code)" end)'
}
hint() { ask 'last.output.error.hint // empty'; }
# warned WHERE: the warnings of the last step.
warned() { add "$(ask 'last.output.warnings[]? | select(.kind != "data-directory-in-root") | {level: "warning", kind, where: $where, message, cure: null}' -c --arg where "$1")"; }

# gb BYTES: for people.
gb() { numfmt --to=iec --suffix=B "$1"; }

# --- Nextcloud and its database ---

check_nextcloud() {
    local root
    look status 90 nc-maint status
    if [ "$rc" = 0 ]; then
        [ "$(ask 'last.output.data.maintenance')" != true ] ||
            found warning maintenance-on S1 'Nextcloud is in maintenance now, and a backup leaves that as it finds it' "nc-maint off $profile"
        [ "$(ask 'last.output.data.restoring')" = null ] ||
            found error restoring S1 'a restore was not finished: nothing is backed up until it is' "$beside/restore $profile"
        well S1 "maintenance is switched by $(ask 'last.output.data | "\(.method): \(.method_reason)"')"
    else
        found error nextcloud S1 "$(why)" "$(hint)"
    fi
    look inspect 120 nc-maint inspect
    if [ "$rc" = 0 ]; then
        root=$(ask 'last.output.data.root')
        well S1 "Nextcloud $(ask 'last.output.data.version') in $root; occ answers"
        warned S1
    else
        found error occ S1 "$(why)" "$(hint)"
    fi
    server=$(ask 'last.output.data.database.host // ""')
    check_database
}

# check_database: the cure is SQL; on this machine, the command that runs it.
check_database() {
    local needed free dumps
    look database 60 pg-snap check --for backup
    # shellcheck disable=SC2016  # jq's variables
    add "$(ask 'last.output.data | (.database // "postgres") as $db | .findings[]? | {level: "error", kind, where: "S1", message: "the database: \(.message)",
        cure: (if .cure == null then null elif (.cure | test("^(GRANT|ALTER|CREATE) ")) and ($server | test("^$|^/|^:/|^localhost|^127[.]"))
               then "sudo -u postgres psql\($server | capture(":(?<port>[0-9]+)$") // {port: ""} | if .port == "" then "" else " -p \(.port)" end) -d \($db | @sh) -c \(.cure | @sh)"
               else .cure end)}' -c --arg server "$server")"
    case $rc:$(ask 'last.output.data.findings // [] | length') in
        0:*) well S1 "the database $(ask 'last.output.data | "\(.database), PostgreSQL \(.server_version): the role \(.role) may do what a backup needs"')" ;;
        *:0) found error database S1 "the database: $(why)" "$(hint)" ;;
    esac
    needed=$(ask 'last.output.data.database_bytes // 0')
    dumps=$(of .database.dumps)
    dumps=${dumps:-$state/dumps}
    free=$(free_at "$dumps")
    # A dump is smaller than its database; the one before stays until the new one is whole.
    if [ "$free" -lt "$((needed + 268435456))" ]; then
        found error no-room-for-dump S1 "$(gb "$free") are free where dumps are kept ($dumps), and the database has $(gb "$needed")" \
            "df -h $(quoted "$dumps")"
    else
        well S1 "room for dumps: $(gb "$free") free at $dumps"
    fi
}
# free_at PATH: bytes free there, or where it will be.
free_at() {
    local at
    at=$1
    while [ ! -d "$at" ]; do at=$(dirname "$at"); done
    df -B1 --output=avail "$at" | tail -n 1 | tr -d ' '
}

# --- the way to the store ---

check_far() {
    local store where
    store=$(of .snapshot.store)
    case $store in
        /*) has .store || check_place here "$store" ;;
        *)
            where="S2 (${store%%:*})"
            look key 120 link-sync list
            if [ "$rc" = 0 ]; then
                if [ "$(ask 'last.output.data.door // "backup"')" = backup ]; then
                    well "$where" "lets the key for backups in, and serves $(ask 'last.output.data.store')"
                else
                    found error wrong-door "$where" 'the key for backups may only read there' \
                        "in authorized_keys on that machine, the line of $(of .snapshot.ssh.identity).pub begins with: command=\"/usr/sbin/link-sync serve $profile\",restrict"
                fi
                check_place "$where"
            else
                found error s2 "$where" "$(why)" "$(hint)"
            fi
            check_restore_key "$where"
            ;;
    esac
}

# check_restore_key WHERE: it may be kept elsewhere; if it is here, it reads and does not write.
check_restore_key() {
    local key
    key=$(of .snapshot.ssh.restore_identity)
    if [ -z "$key" ]; then
        found warning no-restore-key "$1" 'the profile names no key for restoring, and the one for backups cannot read what it wrote' \
            "ssh-keygen -t ed25519 -N '' -C 'nc-backup-restore $profile' -f /root/.ssh/nc-backup-restore   # and restore_identity in [snapshot.ssh]; its public part for add-store --restore-key on S2"
    elif [ ! -e "$key" ]; then
        well "$1" "the key for restoring, $key, is not here: bring it when it is needed"
    else
        look restore-key 120 link-sync list --identity "$key"
        case "$rc:$(ask 'last.output.data.door // "read"')" in
            0:read) well "$1" 'lets the key for restoring in, to read' ;;
            0:*)
                found error restore-key-writes "$1" 'the key for restoring may write there, and so not read' \
                    "in authorized_keys on that machine, the line of $key.pub begins with: command=\"/usr/sbin/link-sync serve $profile --read-only\",restrict"
                ;;
            *) found warning restore-key "$1" "the key for restoring: $(why)" "$(hint)" ;;
        esac
    fi
}

# check_place WHERE [PATH]: what the store says of itself, by the step before, which listed it; with a path, it is asked first.
check_place() {
    local free reserve ahead newest first
    if [ $# -gt 1 ]; then
        look store 120 link-sync list
        if [ "$rc" != 0 ]; then found error store "$1" "$(why)" "$(hint)"; return 0; fi
        well "$1" "the store $2 is there"
    fi
    warned "$1"
    version=$(ask 'last.output.data.store_version // ""')
    [ -z "$version" ] || [ "$version" = "$VERSION" ] ||
        found warning versions-differ "$1" "link-sync $version there, nc-backup $VERSION here" 'install the same version on both machines'
    ahead=$(ask 'last.output.data.store_clock_ahead_ms // 0')
    if [ "${ahead#-}" -gt 60000 ]; then
        found error clocks-differ "$1" "its clock is $((ahead / 1000)) s ahead of this one's, and the dates are its" \
            'timedatectl set-ntp true   # on the machine whose clock is wrong'
    fi
    free=$(ask 'last.output.data.room.free_bytes // ""')
    reserve=$(ask 'last.output.data.room.reserve_bytes // 0')
    newest=$(ask 'last.output.data.newest_age_seconds // ""')
    first=''
    [ -n "$newest" ] || ! has .nextcloud || first=$(first_bytes)
    if [ -n "$free" ]; then
        if [ "$free" -lt "$((reserve + ${first:-0}))" ]; then
            found error no-room "$1" "$(gb "$free") are free, of which $(gb "$reserve") stay so${first:+, and the first snapshot needs $(gb "$first")}" \
                "make room there, or let another disk be the store"
        else
            well "$1" "room: $(gb "$free") free${first:+; the first snapshot needs about $(gb "$first")}"
        fi
    fi
    case $(ask 'last.output.data.store_has_retention') in
        false) has .store || retention_missing "$1" ;;
        true) well "$1" 'has rules of what is kept' ;;
    esac
    if [ -z "$newest" ]; then
        found warning no-snapshot-yet "$1" 'there is no snapshot yet' "$here/backup-local $profile"
    elif [ "$newest" -gt 129600 ]; then
        found warning old "$1" "the newest snapshot is $((newest / 3600)) hours old" "journalctl -u nc-backup@$profile"
    fi
}
retention_missing() {
    found warning no-retention "$1" 'no rules say what is kept, so nothing is ever removed, and the disk fills up' \
        "printf '\\n[store.retention]\\nkeep_daily = 14\\nkeep_weekly = 8\\nkeep_monthly = 12\\nkeep_yearly = 3\\n' >>/etc/nc-backup/$profile.toml   # on the machine of the store"
}
# first_bytes: what the sources hold, if that is known within seconds.
first_bytes() {
    printf %s "$written" | jq -r '.snapshot.source[]? | .path // empty' | tr '\n' '\0' |
        timeout 20 du -scB1 --files0-from=- 2>/dev/null | tail -n 1 | cut -f1
}

# --- what happens at night ---

check_night() {
    local root unit store
    root=$(of .nextcloud.root)
    unit=nc-backup@$profile
    store=$(of .snapshot.store)
    units_write S1 "$root/config" 'where the switch is' "$unit" "nc-backup-off@$profile"
    case $store in /*) units_write S1 "$store" 'where the snapshots are' "$unit" ;; esac
    scheduled error S1 "$unit.timer" "backup-local $profile" 'the backup' "nc-backup-off@$profile.service" "30 3 * * *" "/usr/lib/nc-backup/backup-local $profile"
    check_sudo
    if has .drill || { has .store && has .nextcloud; }; then check_drill S1; fi
    if systemd_runs && [ "$(timedatectl show -p NTPSynchronized --value 2>/dev/null)" = no ]; then
        found warning clock-not-kept here "nothing keeps this machine's clock right" 'timedatectl set-ntp true'
    fi
}

# units_write WHERE PATH WHAT UNIT…: whether the units may write there.
units_write() {
    local where path what unit
    where=$1 path=$2 what=$3
    shift 3
    systemd_runs && read_only_for_units "$path" || return 0
    for unit in "$@"; do
        ! may_write "$unit.service" "$path" || continue
        found error unit-cannot-write "$where" "$unit may not write to $path, $what" \
            "mkdir -p /etc/systemd/system/$unit.service.d; printf '[Service]\\nReadWritePaths=\"%s\"\\n' $(quoted "$(unit_word "$path")") >/etc/systemd/system/$unit.service.d/write-$(printf %s "$path" | sha256sum | cut -c1-8).conf; systemctl daemon-reload"
    done
}
# may_write UNIT PATH: by its ReadWritePaths=, one a line as setup writes them, or words.
may_write() {
    local word
    systemctl cat "$1" 2>/dev/null | sed -n 's/^ReadWritePaths=//p' | sed 's/%%/%/g; s/\\\(.\)/\1/g; s/^"\(.*\)"$/\1/; t; s/ /\n/g' | sed 's/^[-+]*//; s:/*$::' |
        while IFS= read -r word; do case $2/ in "${word:-/nonexistent}"/*) echo yes ;; esac; done | grep -q yes
}

# scheduled LEVEL WHERE TIMER WORDS WHAT OTHER-UNIT CRON-TIME CRON-COMMAND: whether systemd or cron starts it.
scheduled() {
    local state cron
    state=$(systemctl is-enabled "$3" 2>/dev/null) || true
    cron=$(crontabs | grep -vE '^[[:space:]]*#' | grep -E "(^|[[:space:]/])$4([^A-Za-z0-9-]|\$)" | head -n 1) || true
    if systemd_runs && [ "$state" = enabled ] && systemctl -q is-active "$3"; then
        well "$2" "$5 is started by $3"
        [ -z "$6" ] || [ "$(systemctl is-enabled "$6" 2>/dev/null)" = enabled ] ||
            found warning no-boot-unit "$2" "after a power cut nothing ends maintenance at boot" "systemctl enable $6"
    elif [ -n "$cron" ] && cron_runs; then
        well "$2" "$5 is started by cron: $(printf %.60s "$cron")"
    elif [ -n "$cron" ]; then
        found "$1" cron-not-running "$2" "cron has a line for $5, and does not run" "$(if systemd_runs; then echo 'systemctl enable --now cron'; else echo 'apt-get install cron && service cron start'; fi)"
    elif systemd_runs; then
        found "$1" not-scheduled "$2" "nothing starts $5: $3 is ${state:-not installed}" "systemctl enable --now $3${6:+ $6}"
    else
        found "$1" not-scheduled "$2" "nothing starts $5, neither systemd nor cron" "echo '$7 root $8' >>/etc/cron.d/nc-backup-$profile"
    fi
}
# crontabs: what cron reads: of /etc, no file whose name has a dot in it, that is not root's, or that others can write; of accounts,
# those of root and of who may use sudo for it.
crontabs() {
    local file name
    for file in /etc/crontab /etc/cron.d/* /var/spool/cron/crontabs/*; do
        name=${file##*/}
        [ -f "$file" ] || continue
        case $file in
            /var/spool/*) [ "$name" = root ] || grep -qsF -- "$name ALL=(root)" /etc/sudoers /etc/sudoers.d/* || continue ;;
            *)
                case $name in *[!A-Za-z0-9_-]*) continue ;; esac
                [ "$(stat -L -c %u -- "$file")" = 0 ] && [ -z "$(find -H "$file" -prune -perm /022)" ] || continue
                ;;
        esac
        head -c 1000000 -- "$file"
        echo
    done 2>/dev/null
}
cron_runs() { cat /proc/[0-9]*/comm 2>/dev/null | grep -qxE 'cron|crond|anacron|busybox'; }

# check_sudo: where an account runs the scripts, its words must be exactly these; sudo itself is asked.
check_sudo() {
    local rules account lacks list
    rules=/etc/sudoers.d/nc-backup-$profile
    [ -e "$rules" ] || rules=/etc/sudoers.d/nc-backup
    [ -e "$rules" ] || return 0
    if ! visudo -cf "$rules" >/dev/null 2>&1 || [ "$(stat -c '%a %u' "$rules")" != '440 0' ]; then
        found error sudoers S1 "$rules is not a file that sudo takes" "chmod 0440 $rules && chown root: $rules && visudo -cf $rules"
        return 0
    fi
    account=$(sed -n 's/^\([a-z_][a-z0-9_-]*\) ALL=(root).*/\1/p' "$rules" | head -n 1)
    [ -n "$account" ] && grep -q "link-sync stage $profile$" "$rules" || return 0
    as_account "$account" test -w "$(home_of "$account")" 2>/dev/null ||
        found error home-not-writable S1 "$account may not write in its home, $(home_of "$account"), where a run has its lock" "usermod --home /home/$account --move-home $account"
    list=$(sudo -n -ll -U "$account" 2>/dev/null) || list=''
    lacks=$(sudo_words "$profile${config:+ --config $config}" | while read -r words; do
        # shellcheck disable=SC2086  # they are words
        { sudo -n -l -U "$account" -- /usr/sbin/$words >/dev/null 2>&1 && asks_nobody "/usr/sbin/$words"; } || echo "$words"
    done)
    if [ -z "$lacks" ]; then
        well S1 "sudo lets $account run the $(sudo_words "$profile${config:+ --config $config}" | wc -l) commands of a backup"
    else
        found error sudo-words S1 "sudo does not let $account run, without a password: $(printf %s "$lacks" | head -n 1)" \
            "$here/setup --profile $profile --account $account --yes"
    fi
}
# asks_nobody COMMAND: by $list, what sudo says of the account: `sudo -l` lists a command, too, for which it asks for a password.
asks_nobody() {
    local rule
    case $list in
        *'Sudoers entry:'*) ;;
        # Another sudo, which says it in other words.
        *) return 0 ;;
    esac
    case ${list%%'Sudoers entry:'*} in *'!authenticate'*) return 0 ;; esac
    printf '%s\n' "$list" | awk '/^Sudoers entry:/ { free = 0 } /^ *Options:.*!authenticate/ { free = 1 } /^\t/ && free { sub(/^\t/, ""); print }' |
        while IFS= read -r rule; do
            # As in sudo, they may be patterns.
            # shellcheck disable=SC2254
            case $1 in $rule | "$rule "*) echo yes ;; *) [ "$rule" != ALL ] || echo yes ;; esac
        done | grep -q yes
}
# drill_cure: a role of its own, where there is none yet.
drill_cure() {
    if has '.drill | select(. != {})' || ! [ -S "/run/postgresql/.s.PGSQL.5432" ]; then
        ask 'last.output.data.findings[0].cure? // last.output.error.hint // empty'
    else
        printf '%s\n' "sudo -u postgres createuser --createdb root; printf '\\n[drill]\\nhost = \"/run/postgresql\"\\nuser = \"root\"\\n' >>/etc/nc-backup/$profile.toml"
    fi
}

# check_drill WHERE: the rehearsal's role. No night fails without it.
check_drill() {
    if ! command -v psql >/dev/null; then
        found warning no-drill "$1" 'the rehearsal needs PostgreSQL here (or let another machine do it)' 'apt-get install postgresql'
        return 0
    fi
    look drill-role 60 pg-snap check --for drill
    if [ "$rc" = 0 ]; then
        well "$1" 'the rehearsal may make its scratch database'
        scheduled warning "$1" "nc-backup-drill@$profile.timer" "drill $profile" 'the rehearsal' '' '0 7 * * 0' "/usr/lib/nc-backup/drill $profile"
    else
        found warning drill-role "$1" "the rehearsal: $(why)" "$(drill_cure)"
    fi
}

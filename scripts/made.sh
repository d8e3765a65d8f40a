# shellcheck shell=sh disable=SC2015,SC2016,SC2018,SC2034,SC2126,SC2153,SC2154,SC3043
# How the scripts that set up a machine make things: shown first (--dry-run), noted before they are made, so that --undo
# takes back exactly these, also after a kill in the middle. Sourced after lib.sh.
#
# The record is a file of lines, KIND and values with tabs between them, in the order in which things were made. What was
# there before is never in it, and so never taken back; what others have changed since stays, and that is said. What several
# profiles need (an account, a host's key) is in the record of each, and goes with the last one.

made='' dry=''
# begin_made SCRIPT: the record of what this script makes for $profile; one at a time.
begin_made() {
    local folder
    folder=/var/lib/nc-backup/$profile
    made=$folder/made-by-$1
    [ -z "$dry_run" ] || return 0
    [ -d "$folder" ] || install -d -m 0700 /var/lib/nc-backup "$folder"
    exec 9>>"$made.lock"
    # What one that was killed has started may still be ending.
    flock -w 30 9 || fail 75 "another $1 of $profile is at work"
}
# note KIND VALUE…: unless it is noted already.
note() {
    local line
    [ -n "$made" ] || return 0
    line=$(printf '%s\t' "$@")
    grep -qxF -- "${line%"$tab"}" "$made" 2>/dev/null && return 0
    printf '%s\n' "${line%"$tab"}" >>"$made"
    sync "$made"
}
tab=$(printf '\t')
# needed_by KIND VALUE…: the other profile in whose record it is.
needed_by() {
    local line record
    line=$(printf '%s\t' "$@")
    for record in /var/lib/nc-backup/*/made-by-setup /var/lib/nc-backup/*/made-by-add-store /var/lib/nc-backup/*/made-by-add-offsite; do
        [ "$record" != "$made" ] && grep -qsxF -- "${line%"$tab"}" "$record" || continue
        record=${record%/*}
        echo "${record##*/}"
        return 0
    done
}
# share KIND VALUE…: it is there; if it was made for another profile, it is ours, too.
share() { [ -n "$dry" ] || [ -z "$(needed_by "$@")" ] || note "$@"; }
# noted_as KIND VALUE: whether it is this script that has made it.
noted_as() { grep -q "^$1$tab$(printf %s "$2" | sed 's/[].[*^$\\]/\\&/g')\(\$\|$tab\)" "$made" 2>/dev/null; }

# quoted WORD: for a shell, if it needs that.
quoted() { case $1 in *[!A-Za-z0-9/._@:+=,-]* | '') jq -rn --arg w "$1" '$w | @sh' ;; *) printf %s "$1" ;; esac; }
# do_it COMMAND…: runs it, or shows it.
do_it() {
    local word line
    if [ -n "$dry" ]; then
        line=''
        for word in "$@"; do line="$line $(quoted "$word")"; done
        printf '   %s\n' "$(printf %s "$line" | show)" >&2
    else
        "$@" >&2 || fail 1 "failed: $*"
    fi
}
# put_file PATH MODE: its content is stdin. One that is there, and has another content, is not touched, unless it is as we made it.
put_file() {
    local content draft
    content=$(cat; echo .)
    content=${content%.}
    if [ -e "$1" ] || [ -L "$1" ]; then
        if [ "$(sha256sum <"$1")" = "$(printf %s "$content" | sha256sum)" ]; then
            share file "$1" "$(sha256sum <"$1" | cut -d' ' -f1)"
            return 0
        fi
        grep -qxF "file$tab$1$tab$(sha256sum <"$1" | cut -d' ' -f1)" "$made" 2>/dev/null ||
            fail 1 "$1 is there already, with another content: it is left as it is. Compare it with what --dry-run shows of a new one, or move it away"
    fi
    if [ -n "$dry" ]; then
        printf '    %s (mode %s):\n' "$1" "$2" >&2
        printf %s "$content" | while IFS= read -r line; do printf '        %s\n' "$(printf %s "$line" | show)"; done >&2
        return 0
    fi
    add_folder "${1%/*}" 0755 root
    note file "$1" "$(printf %s "$content" | sha256sum | cut -d' ' -f1)"
    # Of a fixed name: what a killed run leaves is written over, or taken back.
    draft=${1%/*}/.${1##*/}.nc-backup-new
    { printf %s "$content" >"$draft" && chmod "$2" "$draft" && sync "$draft" && mv "$draft" "$1"; } || { rm -f "$draft"; fail 1 "cannot write $1"; }
}
# add_folder PATH MODE OWNER: and root's, what is missing above it. Only a folder that was not there is given a mode and an
# owner: what somebody puts in its place meanwhile, a link to a folder of the system's, is in the way.
add_folder() {
    if [ -d "$1" ] && [ ! -L "$1" ]; then
        # One that was cut off may have left it to root.
        if [ "$3" != root ] && [ "$(stat -c %U -- "$1")" = root ] && noted_as folder "$1"; then do_it chown -h -- "$3:" "$1"; fi
        share folder "$1"
        return 0
    fi
    [ ! -e "$1" ] && [ ! -L "$1" ] || fail 1 "$1 is there and is no folder"
    [ "${1%/*}" = '' ] || add_folder "${1%/*}" 0755 root
    [ -n "$dry" ] || note folder "$1"
    do_it mkdir -m "$2" -- "$1"
    [ "$3" = root ] || do_it chown -h -- "$3:" "$1"
}
# add_own_folder ACCOUNT PATH: in what is the account's, with its rights: no link there leads root elsewhere.
add_own_folder() {
    if as_account "$1" test -d "$2"; then share folder "$2"; return 0; fi
    [ -n "$dry" ] || note folder "$2"
    do_it as_account "$1" mkdir -m 0700 -- "$2"
}
# add_unit UNIT…: started by systemd from now on.
add_unit() {
    local unit
    for unit in "$@"; do
        [ "$(systemctl is-enabled "$unit" 2>/dev/null)" != enabled ] || continue
        [ -n "$dry" ] || note unit "$unit"
        do_it systemctl enable --now "$unit"
    done
}
# read_only_for_units PATH: whether it is for them, unless they are told otherwise; unit_word TEXT: within quotes in a unit.
read_only_for_units() { case $1/ in /home/* | /root/* | /usr/* | /etc/* | /boot/*) ;; *) return 1 ;; esac }
unit_word() { printf %s "$1" | sed 's/[\\"]/\\&/g; s/%/%%/g'; }
systemd_runs() { [ -d /run/systemd/system ]; }
# as_account NAME COMMAND…: with its rights, not in our terminal, without what we have open, and not for ever: what is a file
# there may be a pipe.
as_account() {
    local who
    who=$1
    shift
    timeout -k 5 60 setsid -w setpriv --reuid "$who" --regid "$(id -g "$who")" --init-groups --no-new-privs -- "$@" </dev/null 3<&- 9>&-
}

# confirm TEXT: whether that is wanted.
confirm() {
    local answer
    [ -z "$yes" ] || return 0
    printf '%s [Y/n]: ' "$1" >&2
    read -r answer || answer=n
    case $answer in '' | [Yy]*) ;; *) fail 1 'nothing was done' ;; esac
}
# shown_and_done FUNCTION: what it does is shown, asked about, done.
shown_and_done() {
    if [ -n "$dry_run" ] || [ -z "$yes" ]; then
        say 'this is what will be done (nothing that is there already is changed):'
        dry=1
        "$1"
        dry=''
        [ -z "$dry_run" ] || exit 0
        confirm 'Do it?'
    fi
    "$1"
}

# undo_made: takes back what was noted, the last first; what is not ours any more stays.
undo_made() {
    local kind first second other
    [ -s "$made" ] || { say "there is nothing that it has made for $profile"; return 0; }
    stays=''
    tac "$made" >"$made.undo"
    while IFS=$tab read -r kind first second <&3; do
        other=$(needed_by "$kind" "$first" ${second:+"$second"})
        if [ -n "$other" ]; then
            case $kind in
                folder | blank) ;;
                line) stayed "the line of ${second%% *} in $first, which $other needs, too" ;;
                *) stayed "$kind $first, which $other needs, too" ;;
            esac
            continue
        fi
        case $kind in
            unit) do_it systemctl disable --now "$first" ;;
            draft) [ ! -e "$first" ] || do_it rm -f -- "$first" ;;
            file)
                [ -n "$dry" ] || rm -f -- "${first%/*}/.${first##*/}.nc-backup-new"
                if [ ! -e "$first" ]; then :
                elif [ "$(sha256sum <"$first" | cut -d' ' -f1)" = "$second" ]; then do_it rm -f -- "$first"
                else stayed "$first, which was changed since"; fi
                ;;
            folder)
                if [ ! -d "$first" ]; then :
                elif [ -n "$(find "$first" -mindepth 1 -maxdepth 1 2>/dev/null | head -n 1)" ] && [ -z "$dry" ]; then stayed "$first, in which there is something"
                else do_it rmdir -- "$first"; fi
                ;;
            key) undo_key "$first" "$second" ;;
            account) undo_account "$first" "$second" ;;
            *) "undo_$(printf %s "$kind" | tr -cd a-z)" "$first" "$second" ;;
        esac
    done 3<"$made.undo"
    rm -f "$made.undo"
    [ -n "$dry" ] || rm -f "$made"
}
stayed() { say "stays: $1"; stays=1; }

# add_key ACCOUNT LINE: into its authorized_keys, with its own rights; the lines of others stay as they are, also those that
# another profile's add-store writes at the same time.
add_key() {
    local file home data
    home=$(home_of "$1")
    file=$home/.ssh/authorized_keys
    if [ -n "$dry" ]; then
        # shellcheck disable=SC2016  # the account's shell
        ! as_account "$1" grep -qxF -- "$2" "$file" 2>/dev/null || return 0
        printf '    %s, one more line:\n        %s\n' "$file" "$2" >&2
        return 0
    fi
    data=$(printf %s "$2" | grep -oE '(ssh|ecdsa|sk)-[a-z0-9@.-]+ [A-Za-z0-9+/=]+' | tail -n 1)
    ! as_account "$1" grep -qxF -- "$2" "$file" 2>/dev/null || return 0
    if as_account "$1" grep -qF -- "${data#* }" "$file" 2>/dev/null; then
        fail 1 "$file has this key already, with other words before it: $(as_account "$1" grep -F -- "${data#* }" "$file" | head -n 1). Take that line out, or give another key"
    fi
    note key "$1" "$2"
    # shellcheck disable=SC2016  # the account's shell
    as_account "$1" flock -w 30 "$home/.ssh" sh -c 'umask 077
        [ ! -L "$1" ] || { echo "it is a link" >&2; exit 1; }
        { [ ! -e "$1" ] || { cat "$1" && { [ ! -s "$1" ] || [ -z "$(tail -c 1 "$1")" ] || echo; }; } && printf "%s\n" "$2"; } >"$1.new" &&
            sync "$1.new" && mv "$1.new" "$1"' sh "$file" "$2" || fail 1 "cannot write $file as $1"
}
# undo_key ACCOUNT LINE
undo_key() {
    local file
    id -u "$1" >/dev/null 2>&1 || return 0
    file=$(home_of "$1")/.ssh/authorized_keys
    as_account "$1" grep -qxF -- "$2" "$file" 2>/dev/null || return 0
    if [ -n "$dry" ]; then printf '    %s, without the line:\n        %s\n' "$file" "$2" >&2; return 0; fi
    # shellcheck disable=SC2016  # the account's shell
    as_account "$1" flock -w 30 "${file%/*}" sh -c 'umask 077; grep -vxF -- "$2" "$1" >"$1.new" || [ $? = 1 ] || exit 1
        if [ -s "$1.new" ]; then sync "$1.new" && mv "$1.new" "$1"; else rm -f "$1.new" "$1"; fi' sh "$file" "$2" || fail 1 "cannot write $file as $1"
}
home_of() { local home; home=$(getent passwd "$1" | cut -d: -f6); echo "${home:-/home/$1}"; }

# add_account NAME HOME SHELL: one that nobody logs in to with a password.
add_account() {
    if id -u "$1" >/dev/null 2>&1; then share account "$1" "$2"; return 0; fi
    [ -n "$dry" ] || note account "$1" "$2"
    # Its home is made by add_folder, so that no file of a skeleton is in the way of taking it back.
    do_it useradd --system --user-group --no-create-home --home-dir "$2" --shell "$3" --password '*' -- "$1"
}
# undo_account NAME HOME: not as long as something of it stays. Wants $keeps_account, the folder that may; beside it may be
# those of other profiles.
undo_account() {
    local kept
    id -u "$1" >/dev/null 2>&1 || return 0
    kept=$2
    [ -d "$kept" ] || kept=$([ -z "${keeps_account-}" ] || find "${keeps_account%/*}" -maxdepth 1 -user "$1" -print -quit 2>/dev/null) || kept=''
    if [ -z "$dry" ] && [ -n "$kept" ]; then
        stayed "the account $1, which owns $kept"
    else
        do_it userdel -- "$1"
    fi
}

# --- keys ---

# make_key FILE COMMENT: unless it is there.
make_key() {
    [ ! -s "$1" ] || return 0
    if [ -n "$made" ]; then add_folder "$(dirname "$1")" 0700 root; note keypair "$1"; else [ -d "$(dirname "$1")" ] || install -d -m 0700 "$(dirname "$1")"; fi
    # Whole, or not at all: a full disk leaves half of one.
    rm -f "$1.new" "$1.new.pub"
    if ! { ssh-keygen -q -t ed25519 -N '' -C "$2" -f "$1.new" && sync "$1.new" && mv "$1.new.pub" "$1.pub" && mv "$1.new" "$1"; }; then
        rm -f "$1.new" "$1.new.pub"
        fail 1 "cannot make the key $1 (is ssh-keygen there, and room?): mend that and give the same command again"
    fi
    say "made the key $1"
}
undo_keypair() {
    [ -z "$(taken_by_another "$1")" ] || { stayed "$1, which another profile names"; return 0; }
    do_it rm -f -- "$1" "$1.pub"
}
# public FILE: the line of its public part.
public() { [ -e "$1" ] || { echo "the public part of $1"; return 0; }; cat "$1.pub" 2>/dev/null || ssh-keygen -y -f "$1"; }

# host_name HOST PORT: as known_hosts has it.
host_name() { case $2 in '' | 22) echo "$1" ;; *) echo "[$1]:$2" ;; esac; }
# know_host FILE HOST PORT KEY: by which it is known from now on; one that is known otherwise is not taken for it.
know_host() {
    local name there
    name=$(host_name "$2" "$3")
    there=$(ssh-keygen -F "$name" -f "$1" 2>/dev/null | grep -v '^#' | grep -F " ${4%% *} ") || there=''
    case $there in
        '') ;;
        *" $4"*) share blank "$1"; share line "$1" "$name $4"; return 0 ;;
        *) fail 1 "$1 knows $name by another key of this kind. If that machine was made anew: ssh-keygen -R '$name' -f $(quoted "$1"), and this again" ;;
    esac
    if [ -n "$dry" ]; then printf '    %s, one more line:\n        %s\n' "$1" "$name $4" >&2; return 0; fi
    add_folder "${1%/*}" 0700 root
    [ -e "$1" ] || note blank "$1"
    note line "$1" "$name $4"
    [ ! -s "$1" ] || [ -z "$(tail -c 1 "$1")" ] || echo >>"$1"
    printf '%s\n' "$name $4" >>"$1"
    sync "$1"
    say "$name is known by $(printf '%s\n' "$4" | ssh-keygen -lf - | cut -d' ' -f2)"
}
# names_host HOST: whether another profile does.
names_host() {
    local other
    for other in /etc/nc-backup/*.toml; do
        [ "$other" = "/etc/nc-backup/$profile.toml" ] || ! grep -qsF "@$1" "$other" || return 0
    done
    return 1
}
# undo_blank FILE: one that we have made, if nobody else has written into it.
undo_blank() { [ ! -e "$1" ] || [ -s "$1" ] || do_it rm -f -- "$1"; }
undo_line() {
    local host
    [ -e "$1" ] && grep -qxF -- "$2" "$1" || return 0
    host=${2%% *}
    host=${host#[}
    # Without it, a profile that was written by hand would not reach its machine any more.
    if names_host "${host%%]*}"; then stayed "the line of ${2%% *} in $1, as another profile names that machine"; return 0; fi
    if [ -n "$dry" ]; then printf '    %s, without the line:\n        %s\n' "$1" "$2" >&2; return 0; fi
    # The other lines are somebody else's: a full disk takes none of them.
    { grep -vxF -- "$2" "$1" >"$1.new" || [ $? = 1 ]; } && sync "$1.new" || { rm -f "$1.new"; fail 1 "cannot write $1.new: $1 is left as it is"; }
    cat "$1.new" >"$1" || fail 1 "cannot write $1: what belongs there is in $1.new"
    rm -f "$1.new"
}

# shellcheck shell=sh disable=SC2015,SC2016,SC2018,SC2034,SC2126,SC2153,SC2154,SC3043
# How S3 is reached by hand, for check and add-offsite: by the profile's own settings, and never for longer than a limit.
# Sourced after lib.sh; wants $written, the profile as JSON.

# of FILTER, has FILTER: of the profile.
of() { printf %s "$written" | jq -r "$1 // empty"; }
has() { [ -n "$(of "$1")" ]; }

# s3_sftp LINE…: what sftp says to these commands.
s3_sftp() {
    local port identity known
    port=$(of .offsite.sshfs.port) identity=$(of .offsite.sshfs.identity) known=$(of .offsite.sshfs.known_hosts)
    printf '%s\n' "$@" | timeout -k 5 40 sftp -b - -o BatchMode=yes -o StrictHostKeyChecking=yes -o UpdateHostKeys=no -o ConnectTimeout=20 -o ServerAliveInterval=10 \
        -o ForwardAgent=no -o ClearAllForwardings=yes ${port:+-P "$port"} ${identity:+-o IdentitiesOnly=yes -i "$identity"} \
        ${known:+-o "UserKnownHostsFile=\"$known\""} -- "$(of .offsite.sshfs.host)"
}
# s3_reason: of what it said, the line that has the reason.
s3_reason() { tr -d '\r' | grep -vE '^(sftp>|Connection closed)|^$' | tail -n 1; }
# sftp_word TEXT: quoted for sftp's own line.
sftp_word() { printf '"%s"' "$(printf %s "$1" | sed 's/[\\"*?[]/\\&/g')"; }

# What is kept elsewhere, and where that is: kept-elsewhere in the state folder, a line for each time it was told. The
# fingerprint is that of key and header, so that a new one asks again.
kept_fingerprint() { cat -- "$1" "$2" | sha256sum | cut -c1-32; }
kept_at() { sed -n '$s/^[^ ]* [^ ]* //p' "$state/kept-elsewhere" 2>/dev/null | show; }
container_key() { of .offsite.luks.key_file; }
container_header() {
    local header
    header=$(of .offsite.luks.header)
    echo "${header:-$state/container.header}"
}

# shellcheck shell=sh disable=SC2015,SC2016,SC2018,SC2034,SC2126,SC2153,SC2154,SC3043
# Where Nextcloud may be: the usual places, the configuration of the web server, containers. Sourced by setup, after lib.sh.

# find_nextcloud: each place once, a line each: the folder, and behind a tab how occ is run in a container ('' if it is not in
# one). Only a folder that has occ, version.php and config/config.php is one.
find_nextcloud() {
    {
        printf '%s\n' /var/www/nextcloud /var/www/html/nextcloud /var/www/html /srv/nextcloud /srv/www/nextcloud /srv/http/nextcloud \
            /usr/share/nginx/nextcloud /usr/share/webapps/nextcloud /usr/share/nextcloud /opt/nextcloud /var/lib/nextcloud/html
        roots_of_web_servers
    } | while IFS= read -r place; do
        for inside in "$place" "$place/nextcloud"; do
            if is_nextcloud "$inside"; then printf '%s\t\n' "$(readlink -f -- "$inside")"; fi
        done
    done | sort -u
    in_containers | sort -u
}
is_nextcloud() { [ -f "$1/occ" ] && [ -f "$1/version.php" ] && [ -f "$1/config/config.php" ]; }

# roots_of_web_servers: what nginx, Apache, lighttpd and Caddy serve, as their files say it, and what of it is variable is not.
roots_of_web_servers() {
    cat /etc/nginx/nginx.conf /etc/nginx/sites-enabled/* /etc/nginx/conf.d/*.conf /etc/apache2/sites-enabled/* /etc/apache2/conf-enabled/* \
        /etc/apache2/apache2.conf /etc/httpd/conf/httpd.conf /etc/httpd/conf.d/*.conf /etc/lighttpd/lighttpd.conf /etc/lighttpd/conf-enabled/* \
        /etc/caddy/Caddyfile 2>/dev/null | head -c 4000000 | tr -d '"'"'" |
        sed -nE 's/^[[:space:]]*(root|alias|DocumentRoot|server[.]document-root[[:space:]]*=)[[:space:]]+(\*[[:space:]]+)?([^;[:space:]]+).*/\3/p
            s/^[[:space:]]*Alias[[:space:]]+[^[:space:]]+[[:space:]]+([^[:space:]]+).*/\1/p
            s/^[[:space:]]*<Directory[[:space:]]+([^>]+)>.*/\1/p' | sed 's:/*$::' | grep '^/' | grep -v '[$*]'
}

# in_containers: those of docker and podman that have Nextcloud's folder mounted from here. Several may have the same one, a web
# server or cron beside it: of these the first in which occ runs, or else that has PHP; those that may not write come last.
in_containers() {
    local engine id rank source words found_in instead
    for engine in docker podman; do
        command -v "$engine" >/dev/null || continue
        timeout 20 "$engine" ps --format '{{.ID}}' 2>/dev/null | head -n 200 | while IFS= read -r id; do
            timeout 20 "$engine" inspect "$id" 2>/dev/null | jq -r --arg engine "$engine" '.[0] | (.Name | ltrimstr("/")) as $name
                | "\(.Config.Labels["com.docker.compose.service"] // "") \($name)" as $called
                | .Mounts[]? | select(.Destination | IN("/var/www/html", "/var/www/nextcloud", "/app/www/public"))
                | [.Source, (if .RW == false then 2 elif $called | test("cron") then 1 else 0 end), "\($engine) exec -u www-data \($name) php \(.Destination)/occ"]
                | @tsv' 2>/dev/null
        done
    done | sort | {
        found_in='' instead=''
        while IFS=$(printf '\t') read -r source rank words; do
            [ "$source" != "$found_in" ] && is_nextcloud "$source" || continue
            if [ -n "$instead" ] && [ "$source" != "${instead%%"$tab"*}" ]; then printf '%s\n' "$instead"; instead=''; fi
            # shellcheck disable=SC2086  # words
            if timeout 60 $words status </dev/null >/dev/null 2>&1; then
                found_in=$source instead=''
                printf '%s\t%s\n' "$source" "$words"
            elif [ -z "$instead" ] && timeout 20 ${words% *} -v </dev/null >/dev/null 2>&1; then
                instead=$source$tab$words
            fi
        done
        [ -z "$instead" ] || printf '%s\n' "$instead"
    }
}

# look_into_container: whether occ runs in a container, by its words; sets $engine and $described, what the engine tells of it.
look_into_container() {
    local word container
    engine='' described='' container=''
    case $occ in 'docker exec '* | 'podman exec '*) ;; *) return 1 ;; esac
    engine=${occ%% *}
    for word in $occ; do
        case $word in php* | */php* | occ | */occ) break ;; esac
        container=$word
    done
    described=$(timeout 20 "$engine" inspect --type container -- "$container" 2>/dev/null | jq -c '.[0] | objects') || described=''
    [ -n "$described" ] || fail 69 "$engine tells nothing of the container $container, in which occ is to run: is it running?"
}
# outside PATH: where that of the container lies on this machine, by the innermost mount that has it; '' if none has.
outside() {
    printf '%s\n' "$described" | jq -r --arg path "$1" '[.Mounts[]? | select(.Destination as $at | $path == $at or ($path | startswith($at + "/")))]
        | max_by(.Destination | length) | objects | .Source + $path[(.Destination | length):]'
}
# mounts_inside: what else is mounted below Nextcloud's folder in there: a line each, where there, and where it lies here.
mounts_inside() {
    printf '%s\n' "$described" | jq -r --arg root "$root" '([.Mounts[]? | select(.Source == $root)][0].Destination // "") as $html
        | select($html != "") | .Mounts[] | select(.Destination | startswith($html + "/")) | [.Destination[($html | length + 1):], .Source] | @tsv'
}
# database_outside DBHOST: how this machine reaches what Nextcloud in its container calls that; '' where it is the same.
database_outside() {
    local host port
    case $1 in
        /* | :/*) outside "/${1#*/}"; return 0 ;;
        *:*) host=${1%:*} port=:${1##*:} ;;
        *) host=$1 port='' ;;
    esac
    timeout 20 "$engine" ps --format '{{.ID}}' 2>/dev/null | head -n 200 | while IFS= read -r id; do
        timeout 20 "$engine" inspect "$id" 2>/dev/null | jq -c '.[0]'
    done | jq -rs --argjson ours "$described" --arg host "$host" '[.[] | select(.Id != $ours.Id)
        | select([(.NetworkSettings.Networks // {} | keys[]) as $net | $ours.NetworkSettings.Networks[$net] | objects] != [])
        | select([.Name[1:], .Config.Labels["com.docker.compose.service"], (.NetworkSettings.Networks[] | .Aliases[]?, .IPAddress)] | index($host))
        | .Name | ltrimstr("/")] | select(length == 1)[0]' | while IFS= read -r name; do echo "$engine:$name$port"; done
}

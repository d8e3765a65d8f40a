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

# in_containers: those of docker and podman that have Nextcloud's folder mounted from here.
in_containers() {
    local engine id
    for engine in docker podman; do
        command -v "$engine" >/dev/null || continue
        timeout 20 "$engine" ps --format '{{.ID}}' 2>/dev/null | head -n 200 | while IFS= read -r id; do
            timeout 20 "$engine" inspect "$id" 2>/dev/null | jq -r --arg engine "$engine" '.[0] | (.Name | ltrimstr("/")) as $name
                | .Mounts[]? | select(.Destination | IN("/var/www/html", "/var/www/nextcloud", "/app/www/public"))
                | [.Source, "\($engine) exec -u www-data \($name) php \(.Destination)/occ"] | @tsv' 2>/dev/null
        done
    done | while IFS=$(printf '\t') read -r source words; do
        if is_nextcloud "$source"; then printf '%s\t%s\n' "$source" "$words"; fi
    done
}

# scripts/notify.sh
s/^    new=\$dir\/.*$/    new=$dir\/nc-backup-$profile.prom/
s/set -C; jq/jq/
s/mv -fT "\$new".*; then return 0/true; then return 0/

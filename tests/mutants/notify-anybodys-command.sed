# scripts/notify.sh
s/^        case "${owner% \*}.*$/        :/

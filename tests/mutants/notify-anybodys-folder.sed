# scripts/notify.sh
s/^    case "${mode% \*}:$((0${mode#\* } & 022))" in .*$/    :/

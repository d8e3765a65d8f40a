# scripts/report.sh
s/^    new=\$dir.*$/    new=$1/
s/conv=excl,fsync/conv=fsync/
s/ && mv -fT -- "\$new" "\$1" 2>"\$work\/words"; then/; then/

# scripts/restore.sh
s/^replaced() .*/replaced() { [ -z "$since" ] || find "$target" -maxdepth 1 -name ".nc-restore-$date-*.replaced" -newermt "$since"; }/

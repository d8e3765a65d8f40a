# scripts/restore.sh
s/^        closed=.*/        closed=true/

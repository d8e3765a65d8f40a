# scripts/restore
s/^        closed=.*/        closed=true/

# scripts/lib.sh
s/^true 3>&2 .*/true/

# scripts/lib.sh
s/^\(say() .*\) >&2 2>\/dev\/null || true; }/\1 >\&2; }/

# scripts/status
/failed=look code=1 problem=/d

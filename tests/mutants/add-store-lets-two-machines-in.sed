# scripts/add-store.sh
s/^    check_own_store$/    true/

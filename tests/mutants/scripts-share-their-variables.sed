# scripts/lib.sh
s/^    local old old_pid place$/    local old old_pid/

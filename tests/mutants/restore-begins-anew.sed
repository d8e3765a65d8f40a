# scripts/restore.sh
s/^is_done() .*/is_done() { false; }/

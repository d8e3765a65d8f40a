# scripts/restore
s/^is_done() .*/is_done() { false; }/

# scripts/backup-local
s/^hold_tools$/beside=$here held=/

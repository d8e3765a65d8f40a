# scripts/backup-local
s/ \&\& curable; then$/; then/

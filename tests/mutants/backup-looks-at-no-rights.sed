# scripts/backup-local
/^look_database$/d

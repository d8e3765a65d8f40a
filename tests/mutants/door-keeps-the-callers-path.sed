# scripts/nc-backup
/^PATH=/d

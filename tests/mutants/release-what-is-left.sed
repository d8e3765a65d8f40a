# scripts/backup-local
/release-earlier/d

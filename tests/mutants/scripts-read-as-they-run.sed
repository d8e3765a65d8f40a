# scripts/backup-local
/^{$/d
/^}$/{
$d
}

# scripts/systemd/nc-backup-verify@.service
s/^LockPersonality=yes$/&\nRestrictSUIDSGID=yes/

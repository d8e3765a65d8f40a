# scripts/systemd/nc-backup-off@.service
/^ExecStopPost=/d

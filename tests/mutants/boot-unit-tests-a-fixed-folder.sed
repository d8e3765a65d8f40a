# scripts/systemd/nc-backup-off@.service
s/^ConditionPathExists=.*/ConditionPathExists=\/var\/lib\/nc-backup\/%i/

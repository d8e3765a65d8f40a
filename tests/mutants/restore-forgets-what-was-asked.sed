# scripts/restore.sh
s/then keep_replaced=1; fi$/then :; fi/

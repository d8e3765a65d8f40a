# scripts/restore.sh
s/|| keep_replaced=1$/|| true/

# scripts/restore.sh
s/ -newermt "$since"//

# scripts/made.sh
/it is a link/d

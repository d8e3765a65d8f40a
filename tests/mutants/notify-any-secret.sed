# scripts/notify.sh
s/& 077))" in "0:0"/\& 0))" in "0:0"/

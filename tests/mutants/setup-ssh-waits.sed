# scripts/setup.sh
s/ssh -n -o/ssh -o/

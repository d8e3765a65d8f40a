# scripts/setup
s/ssh -n -o/ssh -o/

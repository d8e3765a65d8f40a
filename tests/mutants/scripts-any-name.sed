# scripts/lib.sh
s/^        -[*] | [*].*$/        -*)/

# scripts/made.sh
s/^        other=\$(needed_by .*$/        other=/

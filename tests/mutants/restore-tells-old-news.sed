# scripts/status.jq
s/\["restore-unfinished", /[/

# scripts/notify.jq
s/select(.ok).id\]) as \$done/select(.id).id]) as $done/

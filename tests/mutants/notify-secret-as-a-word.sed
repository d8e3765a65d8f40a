# scripts/notify.sh
s/curl -q --config -/curl -q --referer "$url" --config -/

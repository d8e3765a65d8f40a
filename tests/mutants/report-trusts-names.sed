# scripts/page.jq
s/^def h: .*/def h: tostring;/

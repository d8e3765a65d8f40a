# scripts/setup.sh
s/^    make_keys$/    true/

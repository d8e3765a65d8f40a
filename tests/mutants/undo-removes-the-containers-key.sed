# scripts/add-offsite.sh
s/if \[ -e "\$(container_header)" \]; then stayed "\$1, the key/if false; then stayed "$1, the key/

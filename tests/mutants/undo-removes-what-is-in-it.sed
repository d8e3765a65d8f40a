# scripts/made.sh
s/stayed "\$first, in which there is something"/rm -rf -- "$first"/

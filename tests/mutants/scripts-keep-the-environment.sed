# scripts/lib.sh
/^case \${0##\*\/} in$/,/^esac$/d
s/ LANGUAGE LOCPATH NLSPATH / /

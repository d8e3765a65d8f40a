# scripts/profile.sh
s/^    case \$2 in \*\[\[:cntrl:\]\]\*) fail 2 "\$1: one line, and only that.*$/    true/

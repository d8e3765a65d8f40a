# fish: completes nc-backup by what it and its verbs say with --help, and by the names of profiles.
function __nc_backup_offered
    set -l words (commandline -opc)
    switch (count $words)
        case 1
            nc-backup --help 2>/dev/null | sed -n '/^Verbs:/,$s/^  \([a-z-]*\)   *\(.*\)/\1\t\2/p'
        case '*'
            if string match -q -- '-*' (commandline -ct)
                nc-backup $words[2] --help 2>/dev/null | grep -oE -- '(^|[[:space:][(,])--[a-z][a-z-]*' | tr -d ' \t[(,'
            else if test (count $words) = 2
                find /etc/nc-backup -maxdepth 1 -name '*.toml' -printf '%f\n' 2>/dev/null | sed 's/[.]toml$//'
            end
    end
end
complete -c nc-backup -n 'test (count (commandline -opc)) -le 2' -f
complete -c nc-backup -a '(__nc_backup_offered)'

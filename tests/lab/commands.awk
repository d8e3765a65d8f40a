# Of the helps of one tool and its actions (a file each, named TOOL or TOOL_ACTION): what several actions have in
# common is said once, with the tool; what only one has, with that one. Used by tests/lab/commands.

# Words into lines that begin with `indent`.
function wrapped(text, indent,    words, n, i, line, out) {
    n = split(text, words, " ")
    line = indent words[1]
    for (i = 2; i <= n; i++)
        if (length(line) + 1 + length(words[i]) > 100) { out = out line "\n"; line = indent words[i] }
        else line = line " " words[i]
    return out line
}
# An option or an argument begins: `--name <VALUE>  what it is`, or that on the next line.
function begin(line,    at) {
    sub(/^ +/, "", line)
    at = match(line, /  +/)
    entry = at ? substr(line, 1, at - 1) : line
    count[file]++
    spec[file, count[file]] = entry
    about[file, count[file]] = at ? substr(line, at + RLENGTH) : ""
}
function go_on(line) { gsub(/^ +| +$/, "", line); about[file, count[file]] = about[file, count[file]] " " line }
function entry_of(name, i) { return spec[name, i] "\n" about[name, i] }
# In two columns, if what stands in the first one leaves room.
function show(what,    of, lines) {
    split(what, of, "\n")
    if (length(of[1]) > 22) { print "  " of[1]; of[1] = "" }
    lines = wrapped(of[2], COLUMN)
    printf "  %-22s  %s\n", of[1], substr(lines, length(COLUMN) + 1)
}
function title(name) { sub(/_/, " ", name); return name }
function action(name) { sub(/.*_/, "", name); return name }

BEGIN { COLUMN = sprintf("%26s", "") }
FNR == 1 { file = FILENAME; sub(/.*\//, "", file); files[++n] = file; part = "head" }
/^Commands:$/ { part = "commands"; next }
/^(Options|Arguments):$/ { part = "entries"; next }
part == "commands" && /^$/ { part = "head" }
part == "entries" && /^[^ ]/ { part = "tail" }
part == "commands" { next }
part == "entries" {
    # An argument stands at two columns, an option at two or six.
    if ($0 ~ /^  (    )?(-|\[|<)/) begin($0)
    else if ($0 !~ /^ *$/) go_on($0)
    next
}
# What is said of all of them (commands) need not be said of each.
/^Usage: [a-z-]+ ([a-z-]+ \[OPTIONS\] \[PROFILE\]|<COMMAND>)$/ { next }
{ text[file, part] = text[file, part] $0 "\n" }

END {
    for (f = 1; f <= n; f++) for (i = 1; i <= count[files[f]]; i++) {
        gsub(/ +/, " ", about[files[f], i]); sub(/^ /, "", about[files[f], i])
        if (spec[files[f], i] ~ /--(help|version)/) { spec[files[f], i] = ""; continue }
        if (!(entry_of(files[f], i) in times)) order[++kinds] = entry_of(files[f], i)
        times[entry_of(files[f], i)]++
        takers[entry_of(files[f], i)] = takers[entry_of(files[f], i)] ", " action(files[f])
    }
    for (f = 1; f <= n; f++) {
        name = files[f]
        printf "\n## %s\n```text\n", title(name)
        body = text[name, "head"] "\n" text[name, "tail"]
        gsub(/\n\n\n+/, "\n\n", body); sub(/\n+$/, "", body)
        print body
        own = ""
        for (i = 1; i <= count[name]; i++) {
            if (spec[name, i] == "" || times[entry_of(name, i)] > 1) continue
            if (own == "") print ""
            own = 1
            show(entry_of(name, i))
        }
        # What has the same takers, together.
        if (f == 1) for (i = 1; i <= kinds; i++) if (times[order[i]] > 1 && !(takers[order[i]] in told)) {
            told[takers[order[i]]]
            print "\n" wrapped((times[order[i]] == n - 1 ? "Every action:" : substr(takers[order[i]], 3) ":"), "")
            for (k = i; k <= kinds; k++) if (takers[order[k]] == takers[order[i]]) show(order[k])
        }
        print "```"
    }
}

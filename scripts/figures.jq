# Numbers and spans of time as people read them: what people.jq and page.jq share. Put before them.

def rounded: . * 10 | round / 10;
def bytes: if . == null then "?" else . as $n
    | ["B", "KiB", "MiB", "GiB", "TiB"] as $units
    | [1, 1024, 1048576, 1073741824, 1099511627776] as $sizes
    | (last(range(0; 5) | select($n >= $sizes[.])) // 0) as $i
    | "\(if $i == 0 then $n else ($n / $sizes[$i] | rounded) end) \($units[$i])" end;
def time: if . == null then "?" elif . < 1000 then "\(.) ms" elif . < 60000 then "\(. / 1000 | rounded) s"
    elif . < 3600000 then "\(. / 60000 | floor) min \(. % 60000 / 1000 | floor) s"
    else "\(. / 3600000 | floor) h \(. % 3600000 / 60000 | floor) min" end;
def many($what): "\(.) \($what)\(if . == 1 then "" else "s" end)";
def cut($width): if length > $width then .[0:$width - 1] + "…" else . end;
def age: if . == null then "never" elif . < 0 then "to come" elif . < 7200 then "\(. / 60 | floor) min ago" elif . < 172800 then "\(. / 3600 | floor) h ago"
    else "\(. / 86400 | floor) days ago" end;
def proven($note; $old): if $note == null then "never" else "\($old | age): \(if $note.ok == false then "IT FAILED" else "all was well" end)" end;

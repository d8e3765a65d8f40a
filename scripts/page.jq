# The page of `report`, as HTML. Input: what report.jq tells. Variables: $css, $csp. figures.jq stands before it. No name and no
# message gets into it but through `h`.

# ---- text ----
# (What turns text around, or is not seen, is gone already: lib.sh, $acts.)
def h: tostring | if test("[\\x00-\\x1f\\x7f]") then explode | map(if . < 32 or . == 127 then 63 else . end) | implode else . end | @html;
# What others named keeps its direction to itself.
def foreign: "<bdi>\(h)</bdi>";
# A word of a command, as it can be pasted.
def word: if test("^[A-Za-z0-9/._-]+$") then . else @sh end;
def code: "<code>\(h)</code>";
def commands: "<pre><code>\(map(h) | join("\n"))</code></pre>";
def minutes: if . == null then "?" else "\(.[0:10]) \(.[11:16]) UTC" end;
def cell: if . == null then "–" else . end;
def size: if . == null then null else bytes end;
def span_of: if . == null then null else time end;
def plain: if . == null then "?" elif . < 1000 then tostring else tostring | [while(length > 0; .[:-3])] | map(.[-3:]) | reverse | join(",") end;
def two: . * 100 | round / 100;
def tag($class; $text): "<span class=\"tag \($class)\">\($text)</span>";

# ---- marks: shapes, not only colours ----
def mark($state): "<svg class=\"mark \($state)\" viewBox=\"0 0 24 24\" aria-hidden=\"true\"><circle cx=\"12\" cy=\"12\" r=\"11\"/><path d=\"\({well: "M6.5 12.5l3.6 3.7 7.4-8",
    look: "M12 6v7.2M12 16.6v.9", "not-well": "M8 8l8 8M16 8l-8 8"}[$state] // "M9 9.2a3 3 0 1 1 3.8 2.9c-.6.3-.8.7-.8 1.5M12 16.8v.8")\"/></svg>";

# ---- tables ----
def table($summary; $named; $heads; $rows):
    "<details class=\"data\"><summary>\($summary)</summary><div class=\"scroll\" tabindex=\"0\" role=\"region\" aria-label=\"\($named)\"><table><thead><tr>"
    + ([$heads[] | "<th scope=\"col\">\(.)</th>"] | join("")) + "</tr></thead><tbody>"
    + ([$rows[] | "<tr><th scope=\"row\">\(.[0])</th>" + ([.[1:][] | "<td>\(cell)</td>"] | join("")) + "</tr>"] | join("\n")) + "</tbody></table></div></details>";

# ---- charts ----
# The next round number above.
def ceiling_of($units): . as $n | if $n <= 0 then 1 else first($units[] as $u | (1, 2, 3, 4, 6, 8, 10, 12, 16, 20, 30, 40, 60, 80, 100, 120, 160, 200, 300, 400, 600, 800) | . * $u | select(. >= $n)) // $n end;
def byte_units: [1, 1024, 1048576, 1073741824, 1099511627776, 1125899906842624];
def time_units: [1, 1000, 60000, 3600000, 86400000];
def median: sort | .[length / 2 | floor];
def axes($top; f; $from; $middle; $to; $svg):
    "<div class=\"plot\"><div class=\"y\" aria-hidden=\"true\"><span>\($top | f)</span><span>\($top / 2 | f)</span><span>0</span></div>\($svg)"
    + "<div class=\"x\" aria-hidden=\"true\"><span>\($from)</span><span>\($middle)</span><span>\($to)</span></div></div>";
def grid($width): "<path class=\"grid\" d=\"M0 .5H\($width)M0 50H\($width)M0 99.5H\($width)\"/>";
# bars ID TITLE UNITS: of [{night, value}], one each night.
def bars($id; $title; $units; f; $say): . as $all
    | [$all[] | select(.value != null)] as $known
    | if $known == [] then empty else
        ([$known[].value] | sort) as $sorted | ($sorted | last) as $most | $sorted[($sorted | length) * 95 / 100 | floor] as $usual
        # What is far above all others (a first upload) would make the rest invisible: it is cut off, and said.
        | (if ($known | length) >= 10 and $most > 4 * $usual and $usual > 0 then $usual * 1.5 else $most end | ceiling_of($units)) as $top
        | [$known[] | select(.value > $top)] as $over | ($all | length) as $n | (if $n > 150 then 1 else 0.76 end) as $wide
        | ($known | max_by(.value)) as $peak
        | "<figure id=\"\($id)\"><figcaption><h3>\($title)</h3><p>Median \([$known[].value] | median | f); most \($peak.value | f), on \($peak.night)."
        + (if $over == [] then "" else " \($over | length | many("bar")) would be higher than this chart (marked)." end) + " \($say)</p></figcaption>"
        + axes($top; f; $all[0].night; $all[$n / 2 | floor].night; $all[-1].night;
            "<svg viewBox=\"0 0 \($n) 100\" preserveAspectRatio=\"none\" role=\"img\" aria-label=\"\($title), \($all[0].night) to \($all[-1].night); the table below has the numbers\">\(grid($n))"
            + ([range($n) as $i | $all[$i] | select(.value != null and .value > 0) | ([.value / $top * 100, 100] | min | [., 1] | max) as $height
                | "<rect\(if .value > $top then " class=\"over\"" else "" end) x=\"\($i + (1 - $wide) / 2 | two)\" y=\"\(100 - $height | two)\" width=\"\($wide)\" height=\"\($height | two)\"><title>\(.night): \(.value | f)</title></rect>"] | join(""))
            + "</svg>")
        + table("As a table"; "\($title), as a table"; ["Night", $title]; [$known | reverse[] | [.night, (.value | f)]]) + "</figure>" end;
def number_of: "\(.)T00:00:00Z" | fromdate / 86400;
def line($id; $title; $say): . as $all
    | if length < 2 then empty else
        ([$all[].bytes] | max | ceiling_of(byte_units)) as $top | ($all[0].night | number_of) as $from | (($all[-1].night | number_of) - $from) as $width
        | ([$all[] | "\((.night | number_of) - $from) \(100 - .bytes / $top * 100 | two)"] | join("L")) as $path
        | "<figure id=\"\($id)\"><figcaption><h3>\($title)</h3><p>\($say)</p></figcaption>"
        + axes($top; bytes; $all[0].night; ($from + ($width / 2 | floor)) * 86400 | todate[0:10]; $all[-1].night;
            "<svg viewBox=\"0 0 \($width) 100\" preserveAspectRatio=\"none\" role=\"img\" aria-label=\"\($title), \($all[0].night) to \($all[-1].night); the table below has the numbers\">\(grid($width))"
            + "<path class=\"area\" d=\"M0 100L\($path)L\($width) 100Z\"/><path class=\"line\" d=\"M\($path)\"/></svg>")
        + table("As a table"; "\($title), as a table"; ["Night", "Size"]; [$all | reverse[] | [.night, (.bytes | bytes)]]) + "</figure>" end;

# ---- the calendar ----
def month_name: {"01": "January", "02": "February", "03": "March", "04": "April", "05": "May", "06": "June", "07": "July", "08": "August", "09": "September",
    "10": "October", "11": "November", "12": "December"}[.[5:7]] + " " + .[0:4];
def state_words: {ok: "ok", warned: "with warnings", failed: "failed", nothing: "nothing ran", unknown: "not known", "to-come": "not yet"};
def night_title: "\(.night): \(state_words[.state])" + (if .downtime_ms != null then ", closed for \(.downtime_ms | time)" else "" end)
    + (if .store_sent_bytes != null then ", \(.store_sent_bytes | bytes) sent" else "" end);
def month($of): .[0].night[0:7] as $month | ("\($month)-01" | number_of) as $first
    | [range($first; $first + 31) | . as $day | ($day * 86400 | todate[0:10]) | select(startswith($month))] as $days
    | ([range(($first + 3) % 7) | "<td></td>"] + [$days[] | . as $day | $of[$day] as $night | ($day[8:10] | tonumber) as $number
        | if $night == null then "<td></td>"
          else "<td class=\"\($night.state)\" title=\"\($night | night_title | h)\">"
            + (if $night.what != [] then "<a href=\"#n-\($day)\">\($number)<span class=\"vh\"> \(state_words[$night.state])</span></a>"
               else "<span>\($number)<span class=\"vh\"> \(state_words[$night.state])</span></span>" end) + "</td>" end]) as $cells
    | "<table class=\"month\"><caption>\($month | month_name)</caption><thead><tr>"
    + ([["Mo", "Monday"], ["Tu", "Tuesday"], ["We", "Wednesday"], ["Th", "Thursday"], ["Fr", "Friday"], ["Sa", "Saturday"], ["Su", "Sunday"]] | map("<th scope=\"col\" abbr=\"\(.[1])\">\(.[0])</th>") | join(""))
    + "</tr></thead><tbody>" + ([range(0; $cells | length; 7) as $i | $cells[$i:$i + 7] | select(any(. != "<td></td>")) | "<tr>\(join(""))</tr>"] | join("\n")) + "</tbody></table>";
def legend: "<ul class=\"legend\">" + (["ok", "warned", "failed", "nothing", "unknown"] | map(. as $s | "<li><span class=\"key \(.)\" aria-hidden=\"true\">\({failed: "×", warned: "!"}[.] // "")</span>\(state_words[$s])</li>") | join("")) + "</ul>";
def kind_title: {backup: "Backup", push: "Off-site push", verify: "Verification", drill: "Drill", prune: "Prune", off: "Ending maintenance at boot"}[.] // .;
def trouble: "<li id=\"n-\(.night)\"><time datetime=\"\(.night)\">\(.night)</time> \(tag(.state; state_words[.state]))<ul>"
    + ([.what[] | "<li><b>\(.kind | kind_title | h)</b> \(if .grade == "failed" then "failed (exit code \(.exit_code))" else "with warnings" end): \(.text | cut(400) | foreign)</li>"] | join("")) + "</ul></li>";

# ---- getting it back ----
def profile_words($d): "\($d.profile | word)" + (if $d.config == null then "" else " --config \($d.config | word)" end);
def file_back($d; $date): if $d.machine.nextcloud then "nc-backup restore \(profile_words($d)) --date \($date) --path alice/files/letter.odt --in-place"
    else "nc-backup restore \(profile_words($d)) --date \($date) --path alice/files/letter.odt --to /root/back" end;
def all_back($d; $date): "nc-backup restore \(if $d.machine.nextcloud then profile_words($d) else $d.profile | word end) --date \($date) --admin-user postgres --admin-host /run/postgresql";
def ways_back($d; $date):
    "<p>One file or folder\(if $d.machine.nextcloud then ", put back where it was" else ", into <code>/root/back</code>" end):</p>\([file_back($d; $date)] | commands)"
    + "<p>All of it\(if $d.machine.nextcloud then "" else ", <strong>on the machine that runs Nextcloud</strong>" end):</p>\([all_back($d; $date)] | commands)";
def from_elsewhere($d; $date): ["nc-backup view \(profile_words($d))",
    "link-sync restore \(profile_words($d)) --store /run/nc-backup/\($d.profile)/view/snapshots --date \($date) --path alice/files/letter.odt --to /root/back",
    "offsite-push unview \(profile_words($d))"];
def date_row($d; $now): "<li><details class=\"date\"><summary><span class=\"when\">\(.date | h)</span> <span class=\"age\">\($now - .at | age)</span> "
    + (if .odd != null then tag("failed"; "odd, counts for nothing") elif .consistency == "sealed" then tag("ok"; "sealed") else tag("warned"; "not sealed") end)
    + (if .elsewhere then " " + tag("plain"; "also elsewhere") else "" end)
    + "<span class=\"much\">\(.bytes | size // "?"), \(.paths | plain) paths</span></summary>"
    + (if .odd != null then "<p>Why it is odd: \(.odd | foreign)</p>" else "" end) + ways_back($d; .date) + "</details></li>";
def folded($n; $what): if length <= $n then "<ul class=\"dates\">\(join("\n"))</ul>" else "<ul class=\"dates\">\(.[0:$n] | join("\n"))</ul><details class=\"more\"><summary>\(length - $n | many($what))</summary><ul class=\"dates\">\(.[$n:] | join("\n"))</ul></details>" end;

# ---- cards ----
def card($title; $state; $big; $lines): "<li class=\"card \($state)\"><h3>\($title)</h3><p class=\"big\">\($big)</p>" + ([$lines[] | values | "<p>\(.)</p>"] | join("")) + "</li>";
def how($note): if $note == null then "" elif $note.ok then "ok" else "failed" end;
def meter($used; $title): "<svg class=\"meter\" viewBox=\"0 0 100 4\" preserveAspectRatio=\"none\" role=\"img\" aria-label=\"\($title)\"><rect class=\"all\" width=\"100\" height=\"4\"/><rect class=\"\(if $used >= 95 then "full" else "used" end)\" width=\"\($used | two)\" height=\"4\"/></svg>";

. as $d | (.made_at | fromdate) as $now
| ([.findings[] | select(.severity == "critical")]) as $critical
| (if .verdict == "well" then "All is well."
   elif .verdict == "look" then "Nothing is broken, but \(.findings | length | many("thing")) should be looked at soon."
   elif .verdict == "not-well" then "Not well: \(.left_behind[0].what // ($critical[0] | "\(.where): \(.what)") | cut(300) | foreign)\(if ($critical | length) + (.left_behind | length) > 1 then ", and more" else "" end)."
   else "Whether all is well is not known\(if .why != null then ": " + (.why | cut(300) | foreign) else "" end)." end) as $sentence
| ([.nights[] | select(.what != [])] | reverse) as $trouble
| (.nights | map({key: .night, value: .}) | from_entries) as $of
| (if .machine.store_here then "the store" else "S2" end) as $store
| "<!DOCTYPE html>
<html lang=\"en\">
<head>
<meta charset=\"utf-8\">
<meta http-equiv=\"Content-Security-Policy\" content=\"\($csp)\">
<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">
<meta name=\"color-scheme\" content=\"light dark\">
<meta name=\"referrer\" content=\"no-referrer\">
<meta name=\"robots\" content=\"noindex\">
<title>\(.profile | h) on \(.host // "?" | h): \({well: "all is well", look: "to be looked at", "not-well": "NOT WELL"}[.verdict] // "not known")</title>
<style>\($css)</style>
</head>
<body>
<header class=\"top\">
<p class=\"eyebrow\">Backup of <b>\(.profile | foreign)</b>, as <b>\(.host // "?" | foreign)</b> knows it</p>
<div class=\"verdict \(.verdict)\">\(mark(.verdict))<h1>\($sentence)</h1></div>
<p class=\"made\">Made <time datetime=\"\(.made_at)\">\(.made_at | minutes)</time>; all ages are as of then, all times UTC.</p>
<nav aria-label=\"On this page\"><a href=\"#now\">Now</a> <a href=\"#nights\">Nights</a> <a href=\"#charts\">Charts</a> <a href=\"#back\">Getting it back</a> <a href=\"#runs\">Runs</a></nav>
</header>
<main>
<section id=\"now\" aria-labelledby=\"now-h\"><h2 id=\"now-h\">Now</h2>",
(if .findings == [] and .left_behind == [] then empty else
"<ul class=\"findings\">" + ([.left_behind[] | "<li class=\"critical\"><p><b>Left behind</b> \(.what | foreign)</p><p class=\"cure\">To clear it: \(.clear | code)</p></li>"]
  + [.findings[] | "<li class=\"\(if .severity == "critical" then "critical" else "warning" end)\"><p>\(tag(if .severity == "critical" then "failed" else "warned" end; .where | h)) \(.what | foreign)</p>\(if .cure then "<p class=\"cure\">What helps: \(.cure | foreign)</p>" else "" end)</li>"] | join("\n")) + "</ul>" end),
"<ul class=\"cards\">",
(if .s1 == null then empty else card("Nextcloud"; if .s1.restoring != null then "failed" elif .s1.maintenance == false then "ok" else "warned" end;
    if .s1.restoring != null then "being restored" elif .s1.maintenance == true then "in maintenance" elif .s1.maintenance == false then "open" else "not known" end;
    [if .s1.maintenance == true and .s1.run_active then "a backup is at work" else null end, if .s1.root != null then "in \(.s1.root | code)" else null end]) end),
(if .s2 == null or .s2.snapshots == null then card("Newest snapshot"; "failed"; "not known"; ["the store could not be asked"])
 elif .s2.newest == null then card("Newest snapshot"; "failed"; "none yet"; ["the first backup: " + ("nc-backup backup \(profile_words($d))" | code)])
 else card("Newest snapshot"; ""; .s2.newest_age_seconds | age; ["\(.s2.newest | code), \(.s2.bytes | size // "?")", "\(if .s2.consistency == "sealed" then "sealed: files and database of one moment" else "not sealed" end)",
    "\(.s2.snapshots | many("date")) in all"]) end),
(if .s3 == null then (if .machine.offsite or .s2 == null then empty else card("Copy elsewhere"; ""; "not known here"; ["if there is one, the machine that makes it knows"]) end)
 else card("Copy elsewhere"; ""; if .s3.last_push == null then "nothing yet" else .s3.age_seconds | age end;
    [(.s3.last_push | values | code), if .s3.pushing then "a push is at work" else null end, if (.s3.behind // 0) > 0 then "\(.s3.behind | many("newer date")) wait" else null end,
     if .s3.free_bytes != null then "\(.s3.free_bytes | bytes) free in the container" else null end,
     if .s3.last_verify != null then "verified \(.s3.last_verify.at | minutes): \(if .s3.last_verify.ok then "all as pushed" else "something was wrong" end)" else null end,
     if .s3.told_by == "the store" then "by what the store says" else null end]) end),
(if .s2 == null then empty else
 (.s2.last_verify as $v | card("Last verification"; how($v); if $v == null then "never" else .s2.verify_age_seconds | age end;
    if $v == null then ["compares all files with their checksums"] else
    [if $v.ok then "all was well" elif $v.unresolved then "damage was found, and not found well since" else "\($v.findings // 0 | many("thing")) were wrong" end, ($v.at | minutes),
     if $v.bytes_read != null then "\($v.bytes_read | bytes) read\(if $v.sample_percent != null and $v.sample_percent < 100 then ", a sample of \($v.sample_percent) %" else "" end)" else null end] end)),
 (.s2.last_drill as $v | card("Last drill"; how($v); if $v == null then "none known here" else .s2.drill_age_seconds | age end;
    if $v == null then ["rehearses a restore of the newest snapshot"] else
    [if $v.ok then "all was well: it would come back" else "it failed\(if ($v.findings // 0) > 0 then ": \($v.findings | many("finding"))" else "" end)\(if ($v.lost_files // 0) > 0 then ", \($v.lost_files | many("file")) would be lost" else "" end)" end,
     ($v.error | values | foreign), ($v.at | minutes), if $v.date != null then "of \($v.date | code)" else null end] end)),
 (.s2.room as $room | if $room == null or ($room.size_bytes // 0) == 0 or $room.free_bytes == null then empty else
    ([100 - $room.free_bytes * 100 / $room.size_bytes, 0] | max) as $used
    | card("Room"; if .s2.full_in_days != null and .s2.full_in_days < 30 then "warned" else "" end; "\($room.free_bytes | bytes) free";
        [meter($used; "\($used | round) % used"), "of \($room.size_bytes | bytes); \($used | round) % used",
         if .s2.full_in_days != null then (if .s2.full_in_days < 1000 then "full in about \(.s2.full_in_days | plain) days, on \($now + .s2.full_in_days * 86400 | todate[0:10])"
            else "full in about \(.s2.full_in_days / 365 | floor | plain) years" end) + ", at \(.s2.growth_bytes_per_day | bytes) a day"
         elif .s2.growth_bytes_per_day != null then "not growing" else "too few dates to say when it will be full" end]) end) end),
"</ul></section>

<section id=\"nights\" aria-labelledby=\"nights-h\"><h2 id=\"nights-h\">Nights</h2>",
(if .nights == [] then "<p class=\"none\">There is no history yet: nothing was backed up, or nothing was noted on this machine. The first night will be here after it.</p>" else
 ([.nights[] | select(.state == "ok" or .state == "warned")] | length) as $good | ([.nights[] | select(.state == "failed")] | length) as $bad | ([.nights[] | select(.state == "nothing")] | length) as $none
 | "<p>\(.nights | length | many("night")) to \(.nights[-1].night): \($good) succeeded, \($bad) failed\(if $none > 0 then ", in \($none) nothing ran" else "" end). A night is a day in UTC; what ran again that day and succeeded counts as a warning.</p>"
 + legend + "<div class=\"months\">" + ([.nights | group_by(.night[0:7]) | reverse[] | month($of)] | join("\n")) + "</div>",
 (if $trouble == [] then "<p>No night had anything to tell.</p>" else "<h3>What happened</h3>" + ([$trouble[0:200][] | trouble] | "<ul class=\"trouble\">\(.[0:5] | join("\n"))</ul>" + (if length > 5 then "<details class=\"more\"><summary>\(length - 5 | many("earlier night"))</summary><ul class=\"trouble\">\(.[5:] | join("\n"))</ul></details>" else "" end)) end),
 table("All nights as a table"; "All nights"; ["Night", "How it was", "Closed for", "Sent to \($store)", "Sent elsewhere", "Size"];
    [.nights | reverse[] | [.night, state_words[.state], (.downtime_ms | span_of), (.store_sent_bytes | size), (.offsite_sent_bytes | size), (.size_bytes | size)]]) end),
"</section>

<section id=\"charts\" aria-labelledby=\"charts-h\"><h2 id=\"charts-h\">Charts</h2>",
([(.nights | map({night, value: .downtime_ms}) | bars("downtime"; "Closed to users"; time_units; time; "How long Nextcloud was in maintenance each night.")),
  (.nights | map({night, value: .store_sent_bytes}) | bars("sent"; "Sent to \($store)"; byte_units; bytes; "What each night's backup sent.")),
  (.nights | map({night, value: .offsite_sent_bytes}) | bars("pushed"; "Sent elsewhere (S3)"; byte_units; bytes; "What each push into the encrypted copy sent.")),
  (.sizes | line("size"; "Size"; "What one date holds, all files and the database: \(.[-1].bytes? // null | bytes) at the end. Dates share what did not change."))] as $figures
 | if $figures == [] then "<p class=\"none\">Charts need nights to show.</p>" else "<div class=\"figures\">\($figures | join("\n"))</div>"
   + (if .machine.nightly == "backup" and (.machine.offsite | not) then "<p class=\"hint\">What is sent to S3 is known on the machine that sends it: <code>nc-backup report</code> there.</p>"
      elif .machine.nightly == "push" then "<p class=\"hint\">Downtime, and what is sent to this machine, is known on the machine that runs Nextcloud: <code>nc-backup report</code> there.</p>" else "" end) end),
"</section>

<section id=\"back\" aria-labelledby=\"back-h\"><h2 id=\"back-h\">Getting it back</h2>",
([.dates[] | select(.odd == null)] as $can
 | if $can == [] then "<p class=\"none\">There is no date to restore from\(if .s2.snapshots == null then ", as far as this machine could ask" else "" end).</p>" else
 "<p>As root, \(if .machine.nextcloud then "on this machine" else "here, into a folder" end). Which dates hold a file, and where it changed:</p>" + (["nc-backup find \(profile_words($d)) --name 'letter*'"] | commands)
 + "<p>Each date below opens to its own commands; put the path that <code>find</code> prints in the place of <code>alice/files/letter.odt</code>. They ask before anything is replaced; with <code>--dry-run</code> the first only says what it would do."
 + (if .machine.nextcloud then " After files came back in place, Nextcloud is told by <code>occ files:scan --path=/alice</code>." else "" end) + "</p>"
 + "<h3>\($can | length | many("date")) can be restored</h3>" end),
 (if .dates == [] then empty else ([.dates[0:500][] | date_row($d; $now)] | folded(8; "earlier date")) end),
 (if (.dates | length) > 500 then "<p>… and \((.dates | length) - 500) more: <code>nc-backup list \(profile_words($d) | h) --all</code></p>" else empty end),
 (if .dates_elsewhere == [] then empty else "<h3>\(.dates_elsewhere | length | many("date")) only in the copy elsewhere</h3><p>The container is opened to be read, the file fetched, the container closed:</p>"
    + (from_elsewhere($d; .dates_elsewhere[0]) | commands) + "<p>Dates: \([.dates_elsewhere[0:500][] | code] | join(" "))</p>" end),
"</section>

<section id=\"runs\" aria-labelledby=\"runs-h\"><h2 id=\"runs-h\">Runs</h2>",
(if .runs == {} then "<p class=\"none\">No run is known to this machine yet.</p>" else
 "<ul class=\"runs\">" + ([.runs | to_entries[] | "<li><b>\(.key | kind_title | h)</b> <span class=\"age\">\(if .value.running then "" else .value.age_seconds | age end)</span> "
    + (if .value.running then tag("plain"; "at work") elif .value.exit_code == null then tag("plain"; "not known") elif .value.exit_code == 0 then tag("ok"; "ok") elif .value.exit_code == 3 then tag("warned"; "with warnings")
       else tag("failed"; "failed, exit code \(.value.exit_code)") end) + (if .value.error then " <span class=\"why\">\(.value.error | cut(400) | foreign)</span>" else "" end) + "</li>"] | join("\n")) + "</ul>" end),
"<p class=\"hint\">" + ([if .history.runs > 0 then "The history has \(.history.runs | plain) runs, from \(.history.from | minutes)." else "The history is empty." end, (.history.note | values | foreign),
  if .history.unreadable > 0 then "\(.history.unreadable | many("line")) of it could not be read." else empty end,
  if .history.ahead > 0 then "\(.history.ahead | many("run")) of it lie in the future by this clock, and are not counted." else empty end] | join(" ")) + "</p>
</section>
</main>
<footer><p>Made by <code>nc-backup report \(profile_words($d) | h)</code>. This page is one file: it loads nothing, runs nothing, and tells nobody that it was opened.</p></footer>
</body>
</html>"

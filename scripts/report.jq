# What the page of `report` tells, as one object: of the answer of `status`, and of the history of the runs. Input: nothing.
# Variables: $status (of `status`), $history (lines of `history_line`), $now, $profile, $history_note, $config.

def count: if type == "number" and . >= 0 and . < 1e18 then floor else null end;
def text($most): if type == "string" then cut($most) else null end;
def stamp: if type == "string" then (sub("\\.[0-9]+"; "") | (try fromdate catch null)) else null end;
def moment: if type == "string" then (sub("T(?<h>..)-(?<m>..)-(?<s>..)Z$"; "T\(.h):\(.m):\(.s)Z") | stamp) else null end;
def day: . / 86400 | floor;
def name_of_day: . * 86400 | todate[0:10];
def number: if type == "number" and . > -1e18 and . < 1e18 then . else null end;
def flag: if type == "boolean" then . else null end;
def of(f): if type == "object" then f else null end;
def sum: map(values) | if . == [] then null else add end;

$status[0] as $s | ($s.data // {}) as $d
| ([$d.steps[]? | select(.step == "profile").output.data] | last // {}) as $own
| ([$d.steps[]? | select(.step == "snapshots").output.data] | last // {}) as $list
| ([$d.steps[]? | select(.step == "offsite").output.data] | last // {}) as $off
| ($own.has_offsite == true) as $pushes
| ($now | day) as $today
# ---- the runs ----
# (One may be there twice, of a history that was just set aside.)
| [$history | map(select(.unreadable | not)) | unique_by([.kind, .started_at, .ended_at])[] | .at = ((.started_at // .ended_at) | stamp)
    | select(.at != null and .at >= 0) | .grade = (if .exit_code == 0 and (.warnings | length) == 0 then "ok"
        elif .exit_code == 0 or .exit_code == 3 then "warned" else "failed" end) | .day = (.at | day)] as $all
# What is to come by this clock proves nothing.
| [$all[] | select(.at <= $now + 3600)] as $past
| (if $own.nextcloud_root != null or any($past[]; .kind == "backup") then "backup" elif $pushes then "push" else null end) as $nightly
| ([$past[] | select(.kind == $nightly).day] | min) as $known_from
# ---- the dates ----
| ([$d.s3.last_push] | map(values)) as $pushed
| ([$off.dates[]? | strings]) as $elsewhere
| ([$list.pinned[]? | objects | select(.by | strings | startswith("offsite-")).date]) as $pinned
| [$list.snapshots[]? | objects | {date, consistency: (.consistency | text(40)), odd: (.odd | text(300)), at: (.date | moment)}
    + {paths: ([.sources[]?.paths | count] | sum), bytes: ([.sources[]?.bytes | count] | sum)} | select(.at != null)
    | .elsewhere = (.date as $date | any($elsewhere[], $pinned[]; . == $date))] as $dates
| ([$dates[].date] | map({key: ., value: true}) | from_entries) as $here
| ([$dates[] | select(.odd == null and .at <= $now + 3600)]) as $counted
| ($counted | map({key: "\(.at | day)", value: .}) | from_entries) as $of_day
# ---- the nights ----
| ([$past[].day, ($counted[].at | day)] | min) as $first
| (if $first == null then [] else [range([$first, $today - 370] | max; $today + 1)] end) as $days
| ($past | map(select(.day > $today - 371)) | group_by(.day) | map({key: "\(.[0].day)", value: .}) | from_entries) as $runs_of
| [$days[] | . as $day | ($runs_of["\($day)"] // [] | sort_by(.at)) as $rs | $of_day["\($day)"] as $snapshot
    | [$rs | group_by(.kind)[] | last] as $last
    | any($rs[]; .kind == $nightly) as $had
    | [$rs[] | select(.kind == "backup")] as $backups | [$rs[] | select(.kind == "push")] as $pushes
    | {night: ($day | name_of_day),
       state: (if any($last[]; .grade == "failed") then "failed"
            elif $known_from != null and $day >= $known_from and ($had | not) and ($snapshot == null or $nightly != "backup")
                then (if $day == $today then "to-come" else "nothing" end)
            elif $rs == [] and $snapshot == null then (if $day == $today then "to-come" else "unknown" end)
            elif any($rs[]; .grade != "ok") then "warned" else "ok" end),
       runs: ($rs | length),
       downtime_ms: ([$backups[].maintenance_ms] | sum), store_sent_bytes: ([$backups[].sent_bytes] | sum),
       offsite_sent_bytes: ([$pushes[].pushed_bytes] | sum), duration_ms: ([$backups[].duration_ms] | sum),
       size_bytes: ($snapshot.bytes // ([$backups[].bytes | values] | last)),
       what: [$rs[] | select(.grade != "ok") | {kind, grade, at: (.at | todate), exit_code,
            text: (.error // .left // .warnings[0] // "exit code \(.exit_code)")}][0:8]}] as $nights
# ---- size ----
| ([$counted[] | {day: (.at | day), bytes}] + [$past[] | select(.bytes != null) | {day, bytes}] | map(select(.bytes != null))
    | group_by(.day) | map(first)) as $sizes
# (Of many, so many as can be told apart.)
| (($sizes | length) / 500 | ceil) as $each
| {made_at: ($now | todate), host: ($d.host | text(80)), profile: $profile, config: $config,
   verdict: (if $s.exit_code == 0 and $d.well == true then "well" elif $s.exit_code == 3 and $d.findings then "look" elif ($s.exit_code == 1 or $s.exit_code == 4) and $d.findings then "not-well" else "unknown" end),
   why: ($s.error.message? | text(800)),
   well: ($d.well == true), findings: ([$d.findings[]? | objects | {severity, where: (.where | text(40)), what: (.what | text(800)), cure: (.cure | text(400))}] | sort_by(.severity != "critical") | .[0:50]),
   left_behind: [$s.left_behind[]? | {what: (.what | text(800)), clear: (.clear | text(400))}],
   machine: {nextcloud: ($own.nextcloud_root != null), offsite: $pushes, store: ($own.has_store == true), store_here: ($own.local_store != null), nightly: $nightly},
   s1: ($d.s1 | of({maintenance: (.maintenance | flag), run_active: (.run_active | flag), restoring: (.restoring.date? // .restoring | text(40)), root: (.root | text(300))})),
   s2: ($d.s2 | of({store: (.store | text(300)), snapshots: (.snapshots | count), newest: (.newest | text(40)), newest_age_seconds: (.newest_age_seconds | number),
        consistency: (.consistency | text(40)), bytes: (.bytes | count), growth_bytes_per_day: (.growth_bytes_per_day | count), full_in_days: (.full_in_days | count),
        verify_age_seconds: (.verify_age_seconds | number), drill_age_seconds: (.drill_age_seconds | number),
        room: (.room | of({size_bytes: (.size_bytes | count), free_bytes: (.free_bytes | count), inodes: (.inodes | count), inodes_free: (.inodes_free | count)})),
        last_verify: (.last_verify | of({at: (.at | text(40)), ok: (.ok == true), findings: (.findings | count), dates: (.dates | count), bytes_read: (.bytes_read | count),
            sample_percent: (.sample_percent | number), unresolved: (.unresolved != null)})),
        last_drill: (.last_drill | of({at: (.at | text(40)), ok: (.ok == true), date: (.date | text(40)), findings: (.findings | count), lost_files: (.lost_files | count),
            error: (.error | text(500))}))})),
   s3: ($d.s3 | of({last_push: (.last_push | text(40)), age_seconds: (.age_seconds | number), behind: (.behind | count), pushing: (.pushing == true), container: (.container | text(40)),
        free_bytes: (.free_bytes | count), told_by: (.told_by | text(40)), last_verify: (.last_verify | of({at: (.verified_at | text(40)), ok: (.fresh == true and .findings == 0),
            findings: (.findings | count), bytes_read: (.bytes_read | count)}))})),
   runs: ($d.runs // {} | map_values(objects | {running: (.running == true), at: (.at | text(40)), age_seconds: (.age_seconds | number), exit_code: (.exit_code | count), error: (.error | text(500))})),
   history: {note: $history_note, runs: ($all | length), unreadable: ([$history[] | select(.unreadable)] | length),
        ahead: ($all | length - ($past | length)), from: ([$past[].at] | min | if . == null then null else todate end)},
   nights: $nights,
   dates: ($dates | reverse),
   dates_elsewhere: [$elsewhere | reverse[] | select(moment != null and $here[.] == null)],
   sizes: [$sizes | to_entries[] | select(.key % $each == 0 or .key == ($sizes | length) - 1).value | {night: (.day | name_of_day), bytes}]}

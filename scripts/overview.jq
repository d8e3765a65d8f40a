# Whether all is well, of the steps of `status`. Input: the steps, as `try` in lib.sh notes them. Output: what the script
# tells besides ($own in status.jq). Variables: $now, $max (ages in seconds), $roles, $units, $history, $profile.

def step($name): map(select(.step == $name)) | last;
def seconds: if type == "string" then (sub("\\.[0-9]+Z$"; "Z") | try fromdate catch null) else null end;
# The moment of a snapshot's name.
def moment: if type == "string" then (sub("T(?<h>..)-(?<m>..)-(?<s>..)Z$"; "T\(.h):\(.m):\(.s)Z") | seconds) else null end;
def days: . / 86400;
def age: if . == null then "never" elif . < 7200 then "\(. / 60 | floor) min" elif . < 172800 then "\(. / 3600 | floor) h"
    else "\(. / 86400 | floor) days" end;
def bad($where; $what; $cure): {severity: "critical", where: $where, what: $what, cure: $cure};
def warn($where; $what; $cure): {severity: "warning", where: $where, what: $what, cure: $cure};
def unreachable($where; $cure): bad($where; .output.error.message // .told // "it could not be asked (exit code \(.exit_code))"; .output.error.hint // $cure);

# What systemd tells: blocks of NAME=VALUE.
def unit_kinds: {"nc-backup": "backup", "nc-backup-offsite": "push", "nc-backup-verify": "verify", "nc-backup-drill": "drill", "nc-backup-prune": "prune"};
def from_units: [$units | split("\n\n")[] | split("\n") | map(capture("^(?<key>[^=]+)=(?<value>.*)$")) | from_entries
    | select(.LoadState == "loaded") | {kind: unit_kinds[.Id | split("@")[0]], running: (.ActiveState == "activating"),
        at: (.ExecMainExitTimestamp | ltrimstr("@") | tonumber? // null), exit_code: (.ExecMainStatus | tonumber? // null)}
    | select(.kind != null and (.at != null and .at > 0 or .running))];
def from_history: [$history | group_by(.kind)[] | max_by(.ended_at // .started_at)
    | {kind, running: false, at: (.ended_at // .started_at | seconds), exit_code, error: .error}];
# The later of the two of each kind.
def runs: [from_units[], from_history[]] | group_by(.kind) | map(max_by([(if .running then 1 else 0 end), .at // 0]))
    | map(. + {age_seconds: (if .at == null then null else $now - .at end), at: (if .at == null then null else (.at | todate) end), error: (.error // null)})
    | map({key: .kind, value: del(.kind)}) | from_entries;

step("nextcloud") as $n | step("snapshots") as $l | step("offsite") as $o
| ($n.output.data // {}) as $nc | ($l.output.data // {}) as $list | ($o.output.data // {}) as $off
| ([$list.snapshots[]? | select(.odd == null)]) as $counted
| ([$counted[] | select(.consistency == "sealed")]) as $sealed
| (if $roles.nextcloud or $sealed != [] then $sealed else $counted end | last) as $newest
| ($newest.date | moment) as $taken
| ($list.now // null | seconds // $now) as $there
| (if $taken == null then null else $there - $taken end) as $snapshot_age
# How fast what is backed up grows, over the last month: what changes and goes is not in it.
| ([$counted[] | {at: (.date | moment), bytes: ([.sources[]?.bytes] | add // 0)} | select(.at >= ($taken // 0) - 31 * 86400)]) as $month
| (if ($month | length) > 1 and ($month | last.at - first.at) >= 86400
   then [0, ($month | (last.bytes - first.bytes) / ((last.at - first.at) | days))] | max | floor else null end) as $growth
| ($list.room // null) as $room
| (if $room == null or $growth == null or $growth == 0 then null else ($room.free_bytes / $growth | floor) end) as $full_in
| ([$list.pinned[]? | select(.by | startswith("offsite-")).date] | min) as $pinned
| (if $o.output == null then $pinned else $off.last_push.date end) as $pushed
| (if $pushed == null then null else $now - ($pushed | moment) end) as $push_age
| ($list.last_verify // null) as $verify | ($list.last_drill // null) as $drill
| (if $verify == null then null else $now - ($verify.at | seconds // 0) end) as $verify_age
| (if $drill == null then null else $now - ($drill.at | seconds // 0) end) as $drill_age
| ([$n.output.warnings[]?.kind] | index("run-killed") != null) as $killed
| runs as $runs
| [
    # S1
    (if $n == null then empty
     elif $n.output.data.maintenance == null then $n | unreachable("S1"; "nc-maint status \($profile)")
     else
        (if $nc.restoring != null then bad("S1"; "a restore of \($nc.restoring.date) is not finished: nothing is backed up"; "give the same restore again, or nc-maint off \($profile)") else empty end),
        (if $nc.maintenance and ($nc.run_active | not) and ($killed | not) then warn("S1"; "somebody has switched maintenance on"; "nc-maint status \($profile) says who; nc-maint off \($profile) ends it") else empty end),
        (if $nc.clients_maintenance != null and $nc.clients_maintenance != $nc.maintenance then warn("S1"; "clients see another state of maintenance than Nextcloud's configuration says"; "nc-maint status \($profile)") else empty end)
     end),
    # S2
    (if $l.output.data.snapshots == null then $l | unreachable("S2"; "link-sync list \($profile)")
     else
        (if $newest == null then bad("S2"; "there is no \(if $counted != [] then "sealed " else "" end)snapshot yet"; "nc-backup backup \($profile)")
         elif $snapshot_age > $max.backup then bad("S2"; "the newest snapshot is \($snapshot_age | age) old"; "see why backups fail: journalctl -u nc-backup@\($profile), or the log that cron writes") else empty end),
        ($list.damaged[]? | warn("S2"; "\(.) is not a complete snapshot"; "link-sync prune \($profile) --date \(.) --yes removes it")),
        ($list.odd[]? | warn("S2"; "the snapshot \(.) cannot be what it seems"; "link-sync list \($profile) says why")),
        (if $verify.unresolved != null or $verify.ok == false then bad("S2"; "a verification found damage that has not been found well since"; "on S2: link-sync verify \($profile) --repair")
         elif $verify == null then (if ($counted | length) > 7 then warn("S2"; "the snapshots were never verified"; "on S2: link-sync verify \($profile)") else empty end)
         elif $verify_age > $max.verify then warn("S2"; "the last verification is \($verify_age | age) old"; "on S2: link-sync verify \($profile), or its timer") else empty end),
        (if $drill == null then empty elif $drill.ok == false then bad("S2"; "the last drill failed: a restore would not be whole"; "nc-backup drill \($profile)")
         elif $drill_age > $max.drill then warn("S2"; "the last drill is \($drill_age | age) old"; "nc-backup drill \($profile), or its timer") else empty end),
        (if $room == null then empty
         elif $room.free_bytes * 100 < $room.size_bytes then bad("S2"; "the disk of the store is full to \(100 - $room.free_bytes * 100 / $room.size_bytes | floor) %"; "a larger disk, or fewer dates: [store.retention]")
         elif $full_in != null and $full_in < 30 then warn("S2"; "the disk of the store will be full in about \($full_in) days"; "a larger disk, or fewer dates: [store.retention]")
         elif $room.inodes > 0 and $room.inodes_free * 100 < $room.inodes * 5 then warn("S2"; "the disk of the store has few inodes left"; "fewer dates: [store.retention]") else empty end)
     end),
    # S3
    (if $o == null then (if $push_age != null and $push_age > $max.offsite then warn("S3"; "by what the store says, the off-site copy is \($push_age | age) old"; "on S2: nc-backup status \($profile)") else empty end)
     elif $o.output.data.behind == null and $o.exit_code != 0 then $o | unreachable("S3"; "offsite-push status \($profile)")
     else
        (if $pushed == null then bad("S3"; "nothing was pushed yet"; "nc-backup push \($profile)")
         elif $push_age > $max.offsite and $off.pushing then warn("S3"; "the off-site copy is \($push_age | age) old, and a push is at work"; "offsite-push status \($profile) says how far it is")
         elif $push_age > $max.offsite then bad("S3"; "the off-site copy is \($push_age | age) old"; "see why pushes fail: journalctl -u nc-backup-offsite@\($profile)") else empty end),
        (($off.damaged // {}) | keys[]? | bad("S3"; "in the container \(.) is not whole"; "offsite-push verify \($profile)")),
        (if $off.last_verify != null and ($off.last_verify.findings > 0 or $off.last_verify.fresh == false) then bad("S3"; "the last verification of the container found something wrong"; "offsite-push verify \($profile)") else empty end),
        (if $off.s3_fsync == false then warn("S3"; "S3 does not make durable what is pushed until it likes"; "another sftp server there (docs)") else empty end)
     end),
    # runs
    # A failure that a later snapshot has made up for is over.
    ($runs | to_entries[] | select(.value.running | not) | select(.key != "backup" or $taken == null or $now - .value.age_seconds > $taken) | select(.value.exit_code != null and (.value.exit_code | IN(0, 3) | not))
     | bad(if .key == "backup" or .key == "off" then "S1" elif .key == "push" then "S3" else "S2" end;
           "the last \(.key) failed\(if .value.age_seconds != null then " \(.value.age_seconds | age) ago" else "" end) (exit code \(.value.exit_code))\(if .value.error then ": \(.value.error)" else "" end)";
           "journalctl -u nc-backup\({"backup": "", "push": "-offsite"}[.key] // "-\(.key)")@\($profile)"))
  ] as $findings
| ([ (if $nc.maintenance == true and $killed
      then {what: "Nextcloud is in maintenance by a run that was killed", clear: "nc-maint off \($profile) --if-ours"} else empty end),
     (if ($off.container.state // "detached" | IN("attached", "mapped", "loop-only")) and ($off.pushing | not) and $off.view == null
      then {what: "the container is open, and neither a push nor a view is at work", clear: "offsite-push unview \($profile) --if-killed"} else empty end) ]) as $left
| ($findings | map(select(.severity == "critical"))) as $critical
| {left: $left,
   code: (if $left != [] then 4 elif $critical != [] then 1 elif $findings != [] then 3 else 0 end),
   message: ([$left[].what, ($critical[] | "\(.where): \(.what)")] | join("; ") | if . == "" then null else . end),
   data: {
     well: ($findings == [] and $left == []), host: $host,
     s1: (if $n == null then null else {maintenance: $nc.maintenance, run_active: $nc.run_active, restoring: $nc.restoring, root: $nc.root} end),
     s2: {store: $list.store, snapshots: ($list.snapshots | if . == null then null else length end), newest: $newest.date, newest_age_seconds: $snapshot_age,
          consistency: $newest.consistency, bytes: ([$newest.sources[]?.bytes] | add), last_verify: $verify, verify_age_seconds: $verify_age,
          last_drill: $drill, drill_age_seconds: $drill_age, room: $room, growth_bytes_per_day: $growth, full_in_days: $full_in},
     s3: (if $o == null and $pinned == null then null
          else {last_push: $pushed, age_seconds: $push_age, behind: $off.behind, pushing: $off.pushing, view: ($off.view != null), last_verify: $off.last_verify,
                container: $off.container.state, free_bytes: $off.container.free_bytes, told_by: (if $o == null then "the store" else "offsite-push" end)} end),
     runs: $runs, max_ages_seconds: $max, findings: $findings},
   warnings: ($findings | map({kind: "not-well", message: "\(.where): \(.what)"}))}

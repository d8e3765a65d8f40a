# What is told, and when. Input: the state (notify.json, or null). Output: the next state, with what is to be sent under
# `pending`. Variables: as `decide` in notify.sh gives them; $what is run, ages, sent, or test.
#
# How a kind of run is (`state`): ok, warned, failed, dirty (something is left behind). It is told when that gets worse, and
# when it is well again; what stays wrong, after `remind`. A clock that went back makes nothing that was told untold.

def own: $settings[0];
def notify: own.notify // {};
def day: 86400;
# Of what others wrote: no command to a terminal, no line of a mail's head.
def acts: (. < 32 and . != 10 and . != 9) or (. > 126 and . < 160) or . == 1564 or . == 6158 or . == 8203 or . == 8206 or . == 8207
    or (. > 8231 and . < 8239) or (. > 8287 and . < 8304) or . == 65279 or (. > 65528 and . < 65532) or (. > 917503 and . < 917632);
def clean: explode | map(if acts then 63 else . end) | implode;
def cut($n): if length > $n then .[:$n - 1] + "…" else . end;
def headline: clean | gsub("[\n\t ]+"; " ") | explode | map(if . > 126 then 63 else . end) | implode | .[:180];
def indented: split("\n") | map("  " + .) | join("\n");
def span: if . == null then "an unknown time" elif . < 120 then "\(. | floor) s" elif . < 7200 then "\(. / 60 | floor) min"
    elif . < 2 * day then "\(. / 3600 | floor) h" else "\(. / day | floor) days" end;
def time: if . == null then "never" else todate end;
# DATE of a snapshot, 2026-11-22T03-30-00Z.
def taken: (capture("^(?<d>[0-9-]{10})T(?<h>[0-9]{2})-(?<m>[0-9]{2})-(?<s>[0-9]{2})Z$") | "\(.d)T\(.h):\(.m):\(.s)Z" | fromdate) // null;
def stamp: if type == "string" then (sub("\\.[0-9]+"; "") | (try fromdate catch null)) else null end;

def rank: {ok: 0, warned: 1, failed: 2, dirty: 3}[.] // 0;
def title: {backup: "backup", push: "off-site push", verify: "verification", drill: "rehearsal", prune: "prune", off: "ending maintenance at boot"}[.] // .;
def unit: {backup: "nc-backup", push: "nc-backup-offsite"}[.] // "nc-backup-\(.)";

# ---- what is sent ----

def ways: ["mail", "ntfy", "nextcloud", "command", "apprise"] | map(select(. as $way | notify[$way] != null));
def numbered($new): .next as $next | .pending += [$new | to_entries[] | .value + {id: ($next + .key), at: $now}] | .next += ($new | length)
    # What nobody took for long is news no more.
    | .pending |= (sort_by(.id) | .[-100:]);
def tell($event; $priority; $kind; $subject; $text):
    "[nc-backup] \($profile) on \($host): \($subject)" as $subject
    | numbered([ways[] | {way: ., event: $event, priority: $priority, kind: $kind, subject: ($subject | headline),
        text: ("\($subject)\n\n\($text)\n" | clean | cut(16000))}]);
# A later one takes the place of one that did not arrive.
def ping($kind; $failed; $text): if notify.ping[$kind] == null then . else
    .pending |= map(select((.way == "ping" and .kind == $kind) | not))
    | numbered([{way: "ping", event: (if $failed then "failure" else "success" end), priority: "default", kind: $kind, subject: "",
        text: ("\($text)\n" | clean | cut(16000))}]) end;

# ---- a run ----

def grade: if .exit_code == 4 or (.left_behind | length) > 0 then "dirty" elif .exit_code == 3 then "warned"
    elif .exit_code != 0 then "failed" elif (.warnings | length) > 0 then "warned" else "ok" end;
def told_of($o): [
    "exit code \($o.exit_code), \($o.status); began \($o.started_at), took \($o.duration_ms | if . then . / 1000 | span else "an unknown time" end)",
    ($o.error | objects | "\n" + .message, (.causes[]? | strings | "because: " + .), (.hint | strings | "what helps: " + .),
        (.command | objects | "of \(.program | if type == "array" then join(" ") else . end): \(.stderr_tail // "" | .[-3000:])")),
    ($o.left_behind[]? | "\nleft behind: \(.what)\nto clear it: \(.clear)"),
    ($o.warnings[:20][]? | "\nwarning: \(.message)"),
    ($o.data.findings | numbers | "\nfindings: \(.)"),
    (if $log != "" then "\nThe end of what it said:\n" + ($log | .[-6000:] | indented) else empty end),
    "\nMore: journalctl -u \($kind | unit)@\($profile), or \(own.state_dir)/history.jsonl"] | join("\n");

def run: $object[0] as $o | ($o | grade) as $grade
    | (if $grade == "warned" and notify.warnings != true then "ok" else $grade end) as $is
    | (.kinds[$kind] // {}) as $was | ($was.state // "ok") as $before
    | ([$o.warnings[]?.kind] | unique | join(", ")) as $of
    | (notify.remind // (7 * day)) as $remind
    | (if ($is | rank) > ($before | rank) then (if $is == "warned" then "warning" else "failure" end)
       elif ($is | rank) < 2 and ($before | rank) >= 2 then (if notify.recovery == false then "" else "recovery" end)
       elif $is == "warned" and $before == "warned" and $of != ($was.of // "") then "warning"
       elif ($is | rank) >= 2 and $remind > 0 and $now - ($was.told_at // 0) >= $remind then "failure"
       else "" end) as $event
    # Stopped by whoever sat at the terminal: no news to anybody.
    | if $o.exit_code == 130 then . else
        ($o | told_of(.)) as $text
        | .kinds[$kind] = {state: $is, of: $of, since: (if $is == $before and $was.since then $was.since else $now end),
            told_at: (if $event != "" then $now else $was.told_at end),
            failures: (if ($is | rank) >= 2 then ($was.failures // 0) + 1 else 0 end),
            last_success_at: (if ($is | rank) < 2 then $now else $was.last_success_at end), last_at: $now,
            exit_code: $o.exit_code, duration_ms: $o.duration_ms, warnings: ($o.warnings | length),
            maintenance_ms: ($o.data.maintenance_ms | numbers // null),
            sent_bytes: ([$o.data.sources[]?.sent_bytes | numbers] | if . == [] then ($o.data.push.sent_bytes? | numbers // null) else add end),
            findings: ($o.data.findings_total // $o.data.findings | numbers // null),
            invocation: ($invocation | if . == "" then null else . end)}
        | .kinds[$kind] as $k
        | ping($kind; ($is | rank) >= 2; $text)
        | if $event == "" then .
          elif $event == "recovery" then tell("recovery"; "default"; $kind; "\($kind | title) is well again";
            "It had failed since \($was.since | time) (\($was.failures // 1) times).\n\($text)")
          elif $event == "warning" then tell("warning"; "default"; $kind; "\($kind | title) succeeded, with warnings"; $text)
          else tell("failure"; "high"; $kind;
            "\($kind | title) \(if $is == "dirty" then "left something behind" elif $k.failures > 1 and $before == $is then "fails still" else "FAILED" end): \($o.error.message // $o.left_behind[0].what? // "exit code \($o.exit_code)")";
            "The last one that succeeded: \($k.last_success_at | time).\n\($text)") end
    end;

# ---- ages ----

# Of each: when it was, if that is known; whether it was well; how old it may be.
def facts: $facts[0] as $f | ($f.list.data // null) as $list
    | ([$list.snapshots[]? | select(.odd == null and .consistency == "sealed").date | taken | numbers] | max) as $sealed
    | (notify.ages // {}) as $max | .ages as $seen
    | {snapshot: (if own.has_store then {at: $sealed, asked: ($list != null), own: .kinds.backup.last_success_at,
            max: ($max.snapshot // (36 * 3600)), title: "the newest sealed snapshot"} else null end),
       offsite: (if own.has_offsite then {at: ($f.offsite.date // "" | taken), asked: ($f.offsite != null or $f.offsite_asked == true),
            why: $f.offsite_error, own: null,
            max: ($max.offsite // (3 * day)), title: "the off-site copy"} else null end),
       verify: (({at: ($list.last_verify.at | stamp), open: ($list.last_verify.unresolved != null),
            ok: ($list.last_verify | if .unresolved != null then false else .ok end), asked: ($list != null), own: null, max: $max.verify,
            title: "the last verification"} | select(.max != null or .at != null or $seen.verify.at != null) | .max //= 16 * day) // null),
       drill: (({at: ($list.last_drill.at | stamp), ok: $list.last_drill.ok, asked: ($list != null), own: null, max: $max.drill,
            title: "the last rehearsal"} | select(.max != null or .at != null or $seen.drill.at != null) | .max //= 16 * day) // null)}
    | map_values(values);

def ages: facts as $all | $facts[0] as $f
    | .watching_since //= $now
    | (if (.watched_at // 0) > $now + 3600 then .clock_went_back = true else .clock_went_back = false end)
    | .watched_at = $now
    | .room = (if ($f.room | length) == 2 then {size_bytes: $f.room[0], free_bytes: $f.room[1]} else null end)
    | .snapshots = ($f.list.data.snapshots | if . then length else null end)
    | (.ages // {}) as $before | (.kinds // {}) as $kinds | .watching_since as $since
    | .ages = ($all | with_entries(.key as $key | .value |= (
        . as $a | ($before[$key] // {}) as $was
        # What is not known now was known before; what never was counts from the day on which one began to look.
        # (What is to come by this clock proves nothing: it counts as of when it was seen first.)
        | (if .asked | not then [$was.at, $a.own] | map(values) | max elif (.at // 0) > $now + 3600 then $was.at // $now else .at end) as $at
        | ($now - ([$at, (if $at == null then $since else null end)] | map(values) | max)) as $age
        | ($a.max > 0 and $age > $a.max) as $old
        # The run that found it has told it itself. What cannot be asked is as it was.
        | (if .asked then .ok == false and ((($kinds[$key].state // "ok") | rank) < 2 or ($kinds[$key].last_at // 0) + 3600 < ($at // 0))
           else $was.state == "bad" end) as $bad
        | (if $old then "old" elif $bad then "bad" else "ok" end) as $is
        | (if $is == "bad" and .open == true then "damage that a verification has found was not found well since (the last one: \($at | time))"
           elif $is == "bad" then "\(.title), of \($at | time), found something wrong"
           elif $is == "old" and $at == null then "there is no \(.title | ltrimstr("the ")) yet"
           elif $is == "old" then "\(.title) is \($age | span) old (\($at | time)); \($a.max | span) were allowed"
           else "\(.title): \($at | time)" end) as $text
        | ($text + (if .asked or $is == "ok" then "" else " (it could not be asked now: \(.why // $f.list_error // "no answer"))" end)) as $text
        | {at: $at, asked, max: .max, state: $is, text: $text, told_at: $was.told_at,
           since: (if $is == ($was.state // "ok") and $was.since then $was.since else $now end),
           event: (if $is != "ok" and $is != ($was.state // "ok") then "age"
                elif $is == "ok" and ($was.state // "ok") != "ok" then (if notify.recovery == false then "" else "recovery" end)
                elif $is != "ok" and (notify.remind // (7 * day)) > 0 and $now - ($was.told_at // 0) >= (notify.remind // (7 * day)) then "age"
                else "" end)}
        | if .event != "" then .told_at = $now else . end)))
    | ([.ages[] | select(.event == "age")]) as $alarms | ([.ages[] | select(.event == "recovery")]) as $well
    | ([.ages[].text] | join("\n")) as $overview
    | .ages |= map_values(del(.event))
    | (if $alarms == [] then . else tell("age"; "high"; "watch"; $alarms | map(.text) | join("; ");
        ($alarms | map(.text + ".") | join("\n")) + "\n\nBackups, pushes, verifications or rehearsals fail, or do not run any more: see nc-backup status, systemctl list-timers 'nc-backup*', or the crontab.\n\n\($overview)") end)
    | (if $well == [] then . else tell("recovery"; "default"; "watch"; "well again: " + ($well | map(.text) | join("; ")); $overview) end)
    | ping("watch"; [.ages[].state] | any(. != "ok"); $overview);

# ---- what came of it ----

# A week long it is tried; what has been told by no way then is over.
def sent: $ARGS.named.results[0] as $results
    | ([$results[] | select(.ok).id]) as $done | ([$results[] | select(.ok | not) | {key: "\(.id)", value: .message}] | from_entries) as $failed
    | .pending |= map(select(.id as $id | $done | index($id) | not) | select(.at > $now - 7 * day)
        | if $failed["\(.id)"] then .tries = (.tries // 0) + 1 | .problem = $failed["\(.id)"] else . end);

def test: .pending = [] | .next = 1
    | tell("test"; "default"; "watch"; "a test"; "This is a test of nc-backup: whoever reads it is told when a backup fails.")
    | numbered([notify.ping // {} | to_entries[] | select(.value != null) | {way: "ping", event: "test", priority: "default", kind: .key, subject: "",
        text: "a test of nc-backup on \($host)\n"}]);

# ----

(if type == "object" and .schema == 1 then . else {} end)
| {schema: 1, kinds: {}, ages: {}, pending: [], next: 1} + .
# What is to come by this clock was just now.
| def past: if type == "number" and . > $now then $now else . end;
  .kinds |= map_values(.told_at |= past | .since |= past | .last_at |= past | .last_success_at |= past)
| .ages |= map_values(.told_at |= past | .since |= past | .at |= past)
| .watching_since |= past
| .pending |= map(.at |= past)
| .settings = own
| if $what == "run" then run elif $what == "ages" then ages elif $what == "sent" then sent else test end

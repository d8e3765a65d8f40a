# A status object of the scripts as people read it, where stdout is a terminal: a few lines of at most 80 columns. Input: the
# object. What is foreign in it is escaped by lib.sh, `show`. figures.jq stands before it.

def left($width): tostring | .[0:$width] + (" " * ([$width - length, 0] | max));
def right($width): tostring | (" " * ([$width - length, 0] | max)) + .;

def output($step): [.data.steps[]? | select(.step == $step).output.data] | last;

# ---- what each script tells ----
def backup_local:
    .data as $d
    | (if $d.date != null then "published \($d.date) in \(.duration_ms | time); Nextcloud was closed for \($d.maintenance_ms | time)"
       else "nothing was published: failed at \($d.failed_step // "?") after \(.duration_ms | time)" end),
      ($d.sources[]? | "  \(.name | left(12))\(.paths // 0 | right(10)) paths \(.bytes // 0 | bytes | right(11))"
          + (if .sent_bytes != null then "  \(.sent_bytes | bytes | right(11)) sent" else "" end));
def push_offsite:
    .data.push as $p
    | if .error != null then "nothing was pushed, after \(.duration_ms | time)"
      elif $p == null then "\(.data.date // "the newest snapshot") is in the container already"
      else "pushed \($p.date // .data.date) in \(.duration_ms | time): \($p.sent_bytes | bytes) sent" end;
def drill:
    .data as $d
    | if $d.findings == null then "the drill did not come to its end (\(.duration_ms | time))"
      else "the snapshot \($d.date // "?") came back in \(.duration_ms | time): \($d.rows // 0) rows, \($d.files // 0) files",
           (([$d.findings[]? | numbers] | add // 0) as $n
            | if $n == 0 then "nothing would be lost" else "\($n | many("thing")) do not fit:",
                  ($d.findings | to_entries[] | select(.value | numbers > 0) | "  \(.key): \(.value)"),
                  ($d.examples[:5][]? | "  \(.path // .message // .kind // tostring)" | cut(80)) end) end;
def restore:
    .data as $d
    | if .error == null then "restored to \($d.date) in \(.duration_ms | time), and open: \($d.root // "")"
      else "not restored; failed at \($d.failed_step // "?")\(if $d.closed == true then ": Nextcloud stays closed" else "" end)" end;
def view_offsite:
    if .data.path == null then "not opened" else "\(.data.date) was open at \(.data.path)" end;

def page:
    if .data.output == null then "there is no page" else "the page of \(.profile) is \(.data.output) (\(.data.output_bytes | bytes))",
        "to look at it elsewhere: scp \(.data.host // "HOST"):\(.data.output) ." end;

# One screen: is all well, on which machine not, since when, and what to do.
def row($where; $what; $text): "\($where | left(5))\($what | left(11))\($text | cut(64))";
def overview:
    .data as $d | .profile as $profile | ($d.findings // []) as $f
    | ([$f[] | select(.severity == "critical")] | length) as $critical
    | (if .left_behind != [] or $critical > 0 then "NOT WELL" elif $f != [] then "to be looked at" elif $d.well then "all is well" else "not known" end) as $verdict
    | "\("\(.profile // "") on \($d.host // "?"): \($verdict)" | cut(59) | left(60))\(.started_at)",
      (if $d.s1 == null then row("S1"; "Nextcloud"; "not on this machine")
       else row("S1"; "Nextcloud"; (if $d.s1.restoring != null then "being restored" elif $d.s1.maintenance == true then "in maintenance\(if $d.s1.run_active then ": a backup is at work" else "" end)"
            elif $d.s1.maintenance == false then "open, in \($d.s1.root // "?")" else "NOT KNOWN" end)) end),
      (if $d.s2.snapshots == null then row("S2"; "snapshots"; "NOT KNOWN")
       else row("S2"; "snapshots"; "\($d.s2.snapshots) in \($d.s2.store)"),
            (if $d.s2.newest != null then row(""; "newest"; "\($d.s2.newest), \($d.s2.newest_age_seconds | age), \($d.s2.consistency), \($d.s2.bytes | bytes)") else empty end),
            row(""; "verified"; proven($d.s2.last_verify; $d.s2.verify_age_seconds)),
            row(""; "drill"; if $d.s2.last_drill == null then "none is known to this machine" else proven($d.s2.last_drill; $d.s2.drill_age_seconds) end),
            (if $d.s2.room == null then empty else row(""; "room"; "\($d.s2.room.free_bytes | bytes) of \($d.s2.room.size_bytes | bytes) free"
                + (if $d.s2.full_in_days != null then ", full in \($d.s2.full_in_days) days at \($d.s2.growth_bytes_per_day | bytes) a day"
                   elif $d.s2.growth_bytes_per_day != null then ", not growing" else "" end)) end) end),
      (if $d.s3 == null then row("S3"; "off-site"; "nothing is known of a copy here")
       else row("S3"; "pushed"; (if $d.s3.last_push == null then "nothing yet" else "\($d.s3.last_push), \($d.s3.age_seconds | age)" end)
                + (if ($d.s3.behind // 0) > 0 then "; \($d.s3.behind | many("newer one")) wait" else "" end) + (if $d.s3.pushing then "; a push is at work" else "" end)),
            (if $d.s3.container == null then empty else row(""; "container"; "\($d.s3.container)\(if $d.s3.view then ", open to be looked at" else "" end)"
                + (if $d.s3.free_bytes != null then ", \($d.s3.free_bytes | bytes) free" else "" end)
                + (if $d.s3.last_verify == null then "; never verified" elif $d.s3.last_verify.fresh and $d.s3.last_verify.findings == 0 then "; all was as pushed at \($d.s3.last_verify.verified_at)" else "; SOMETHING WAS WRONG" end)) end) end),
      ($d.runs // {} | to_entries | to_entries[] | .key as $n | .value
          | row(if $n == 0 then "runs" else "" end; .key; if .value.running then "at work" else "\(.value.age_seconds | age): \(if .value.exit_code == null then "?" elif .value.exit_code == 0 then "ok"
              elif .value.exit_code == 3 then "ok, with warnings" else "FAILED (exit code \(.value.exit_code))" end)" end)),
      (.left_behind[]? | "LEFT BEHIND: \(.what)" | cut(80)), (.left_behind[]? | "     do: \(.clear)" | cut(80)),
      ($f[:3][] | ("\(if .severity == "critical" then "!! " else "!  " end)\(.where): \(.what)" | cut(80)), ("     do: \(.cure)" | cut(80))),
      ($f | length - 3 | select(. > 0) | "   … and \(.) more: --json has all");

# How a run ended.
def ended:
(if .tool == "backup-local" then backup_local elif .tool == "push-offsite" then push_offsite elif .tool == "drill" then drill
 elif .tool == "restore" then restore elif .tool == "view-offsite" then view_offsite elif .tool == "report" then page else empty end),
((.warnings // [])[:5][] | "  warning: \(.message)"),
((.warnings // []) | length - 5 | select(. > 0) | "  … and \(many("more warning"))"),
((.left_behind // [])[] | "  LEFT BEHIND: \(.what); to clear it: \(.clear)"),
(if .error != null then "  \(.error.message)" else empty end),
(if .error.hint? then "  hint: \(.error.hint)" else empty end),
"\(.tool) \(.profile // ""): \(.status)\(if .exit_code != 0 then " (exit code \(.exit_code))" else "" end)";

if .tool == "status" and .data.findings != null then overview else ended end

# The status object of a run that a script has composed of steps (docs/status.schema.json). Input: the steps, as `try`
# in lib.sh notes them. Variables: what `report` there gives; in $ARGS.named what the script adds to that.

def word: {"0": "ok", "2": "usage", "3": "partial", "4": "dirty", "69": "unavailable", "75": "busy", "77": "denied",
    "78": "config"}[tostring] // (if . > 128 then "interrupted" else "failed" end);
def filled: select(. != "") // null;
def of($step): map(select(.step == $step)) | last;
# The objects of a step: nc-maint carries those of what ran inside.
def all: .output | (., .data.command.output[]?) | objects;
def given: $ARGS.named;

# What each script tells besides: {changed, data} and, where it knows better than what follows, code, status, left,
# culprit (the step that counts), message (of a failure), warnings (more of them), hush (kinds of warnings that do not
# count), strict (0 with warnings is 3).

def backup_local:
    of("publish").output.data as $published | of("maintenance").output.data as $down | of("maintenance-off").exit_code as $off
    | def inside($tool; $action): [$down.command.output[]? | select(.tool == $tool and .action == $action)] | last;
    # What a later step has cleared no longer counts as left.
    {left: [.[] | select((.step == "maintenance" and $off == 0) | not) | all | .left_behind[]?],
     changed: ($achieved != ""),
     data: {date: $published.date, path: $published.path, sources: $published.sources,
            maintenance_ms: ([.[] | select(.step == "maintenance").output.data.maintenance_ms | values] | add),
            failed_step: ($failed | filled),
            downtime: (if $down == null then null else
                {on_ms: $down.on_ms, drain_ms: inside("pg-snap"; "drain").duration_ms, hold_ms: inside("pg-snap"; "hold").duration_ms,
                 settle_ms: inside("link-sync"; "settle").duration_ms, off_ms: $down.off_ms, command_ms: $down.command.duration_ms} end)},
     warnings: [.[] | select(.step == "prune" and .exit_code != 0)
         | {kind: "prune-failed", message: "the snapshot is published, but old dumps could not be pruned"}]};

def restore:
    {changed: ([.[] | select(.step | IN("close", "files", "database", "open")) | .output.changed] | any), strict: true,
     # That a restore was not finished is no news of one that is.
     hush: (if $failed == "" then ["restore-unfinished", "dump-ahead"] else [] end),
     data: {date: given.date, root: given.root, database: given.database,
            kept_databases: (given.kept | split("\n") | map(select(. != ""))),
            closed: (if $failed == "" then false else given.closed end), failed_step: ($failed | filled)},
     warnings: [given.not_removed | split("\n")[] | select(. != "")
         | {kind: "not-removed", message: "what was replaced is still there: \(.)"}]};

def drill:
    last as $last | (if $last.step == "verify" then $last.output.data // {} else {} end) as $seen
    | {data: {date: ($seen.snapshot_date // $seen.date), rows: $seen.rows, files: $seen.files, findings: $seen.findings,
              examples: ($seen.examples // []), would_lose: $seen.would_lose, unchecked: ($seen.unchecked // []),
              failed_step: ($failed | filled)},
       warnings: [given.led | split("\n")[] | select(. != "") | {kind: "link-leads-out", message: .}]};

def push_offsite:
    of("push").output.data as $pushed
    | {left: (last.output.left_behind // []), changed: ([.[].output.changed] | any),
       data: {date: $pushed.date, push: $pushed.push,
              failed_step: (if $failed == "" then null else $pushed.failed_step // "push" end)}};

def check:
    [given.items | split("\n")[] | fromjson?] as $items
    | {changed: false, strict: false, hush: ["*"],
       message: ([$items[] | select(.level == "error").message] | if . == [] then null else "\(length) things are wrong; the first: \(.[0])" end),
       culprit: {}, left: [],
       data: {findings: [$items[] | select(.level != "ok")], passed: [$items[] | select(.level == "ok") | {where, message}],
              failed_step: ($failed | filled | select(. != "check") // null)},
       warnings: [$items[] | select(.level == "warning") | {kind, message: "\(.where): \(.message)"}]};

# The command may end with whatever it likes; only what is left behind makes it "dirty".
def view_offsite:
    of("view") as $view | last as $last | ($last.output.left_behind // []) as $left | given.ran as $ran
    | (if $last.exit_code != 0 and $code == 0 then $last.exit_code else $code end) as $code
    | {left: $left, code: $code,
       status: (if $left != [] then "dirty" elif $code == 0 then "ok" elif $ran != "" and $code < 128 then "failed"
                else ($code | word | if . == "dirty" then "failed" else . end) end),
       culprit: (if $view.output.error != null then $view elif $last.output.error != null then $last else {} end),
       message: (if $ran != "" then "the command ended with exit code \($code)" else null end),
       data: {date: $view.output.data.date, path: $view.output.data.path, dates: $view.output.data.dates}};

# What was told is in `told`; the steps' own warnings are no news of notify's.
def notify:
    {left: [], changed: (given.told | any(.ok)), hush: [.[] | all | .warnings[]?.kind],
     data: {told: given.told, failed_step: ($failed | filled)},
     warnings: [given.told[] | select(.ok | not) | {kind: "not-sent", message: "\(.way): \(.message)"}]};
# overview.jq has looked at the steps; what they warn of is in its findings.
def status: given.own + {changed: false, hush: [.[] | all | .warnings[]?.kind]};
def report: given.own[0];

(if $tool == "backup-local" then backup_local elif $tool == "restore" then restore elif $tool == "drill" then drill
 elif $tool == "push-offsite" then push_offsite elif $tool == "check" then check elif $tool == "status" then status
 elif $tool == "notify" then notify elif $tool == "report" then report else view_offsite end) as $own
| ($own.left // [.[] | all | .left_behind[]?]) as $left
| ($own.culprit // of($failed) // {}) as $culprit
| ([.[] | all | .warnings[]? | select(($own.hush // []) as $hush | (.kind | IN($hush[])) or $hush == ["*"] | not)] + ($own.warnings // [])
   + [$problem | select(. != "" and $failed == "") | {kind: "script-failed", message: .}]) as $warnings
# Without an object, wrong usage or something left behind are no answers.
| (if $left != [] then 4 elif $own.code != null then $own.code
   elif $code == 4 or ($code == 2 and $culprit.output == null) then 1
   elif $code == 0 and $own.strict and $warnings != [] then 3 else $code end) as $code
| ($own.status // ($code | word)) as $status
| {schema: 1, tool: $tool, version: $version, action: "run", profile: $profile, status: $status, exit_code: $code,
   changed: ($own.changed // false), started_at: $started_at, duration_ms: $ms, data: ($own.data + {steps: .}),
   warnings: $warnings,
   error: (if $failed == "" and ($code | IN(0, 3)) then null
           else (([$culprit | all | .error | values] | last) | select($problem == ""))
                // {kind: (if $status | IN("ok", "partial", "dirty") then "failed" else $status end),
                    message: (if $problem != "" then $problem elif $own.message != null then $own.message
                              elif $culprit.told != null then $culprit.told
                              elif $code > 128 then "stopped by signal \($code - 128) at the step \($failed)"
                              else "the step \($culprit.step // $failed) ended with exit code \($culprit.exit_code // $code)" end),
                    causes: [], hint: null, command: null} end),
   left_behind: $left}

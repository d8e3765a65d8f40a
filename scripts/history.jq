# A line of the history of the runs, with what the page of `report` tells of it; one that cannot be read is counted. Input: the line, raw.

def count: if type == "number" and . >= 0 and . < 1e18 then floor else null end;
def text($most): if type == "string" then .[0:$most] else null end;
def sum: map(count | values) | if . == [] then null else add end;
select(test("[^ \t\r]"))
| ((fromjson? | objects | select(.kind | type == "string")
    | {kind: .kind[0:20], started_at: (.started_at | text(40)), ended_at: (.ended_at | text(40)),
       exit_code: (.exit_code | if type == "number" and . >= 0 and . < 256 then floor else 1 end), duration_ms: (.duration_ms | count),
       maintenance_ms: (.data.maintenance_ms? | count), sent_bytes: ([.data.sources[]?.sent_bytes?] | sum),
       bytes: ([.data.sources[]?.bytes?] | sum), pushed_bytes: (.data.push.sent_bytes? | count),
       error: (.error.message? | text(500)), left: ([.left_behind[]?.what? | strings] | first | text(500)),
       warnings: [.warnings[]? | .message? | strings | .[0:500]][0:3]}) // {unreadable: true})

# The state (notify.json) as a text file for Prometheus: scripts/monitoring has rules and a dashboard for it.

def bool: if . then 1 else 0 end;
def labels: to_entries | map("\(.key)=\"\(.value)\"") | "{" + join(",") + "}";
# family NAME HELP: of a list of {labels, value}, those that have a value.
def family($name; $help): map(select(.value != null)) | if . == [] then empty else
    "# HELP \($name) \($help)", "# TYPE \($name) gauge", (.[] | "\($name)\({profile: $profile} + .labels | labels) \(.value)") end;
def of_kinds(f): [.kinds | to_entries[] | {labels: {kind: .key}, value: (.value | f)}];
def of_ages(f): [.ages | to_entries[] | {labels: {what: .key}, value: (.value | f)}];
def one(f): [{labels: {}, value: f}];
def seconds: if . == null then null else . / 1000 end;

(of_kinds(.last_at) | family("nc_backup_run_timestamp_seconds"; "When a run of this kind ended last.")),
(of_kinds(.last_success_at) | family("nc_backup_run_success_timestamp_seconds"; "When a run of this kind succeeded last.")),
(of_kinds(.exit_code) | family("nc_backup_run_exit_code"; "Exit code of the last run: 0 well, 3 with something left out, 4 something is left behind.")),
(of_kinds(.state == "failed" or .state == "dirty" | bool) | family("nc_backup_run_failed"; "Whether the last run of this kind failed.")),
(of_kinds(.warnings) | family("nc_backup_run_warnings"; "Warnings of the last run.")),
(of_kinds(.duration_ms | seconds) | family("nc_backup_run_duration_seconds"; "How long the last run took.")),
(of_kinds(.maintenance_ms | seconds) | family("nc_backup_run_maintenance_seconds"; "How long Nextcloud was in maintenance in the last run.")),
(of_kinds(.sent_bytes) | family("nc_backup_run_sent_bytes"; "Bytes that the last run sent.")),
(of_kinds(.findings) | family("nc_backup_run_findings"; "What the last run found wrong.")),
(of_ages(.at) | family("nc_backup_newest_timestamp_seconds"; "When the newest sealed snapshot, off-site copy, verification or rehearsal was made.")),
(of_ages(.max) | family("nc_backup_newest_max_age_seconds"; "How old it may become; 0: as old as it likes.")),
(of_ages(.state != "ok" | bool) | family("nc_backup_newest_alarm"; "Whether it is too old, or found something wrong.")),
(one(.snapshots) | family("nc_backup_snapshots"; "Snapshots in the store.")),
(one(.room.size_bytes) | family("nc_backup_store_size_bytes"; "Size of the store's file system.")),
(one(.room.free_bytes) | family("nc_backup_store_free_bytes"; "Room on the store's file system.")),
(one(.pending | length) | family("nc_backup_notifications_pending"; "Messages that could not be sent yet.")),
(one(.watched_at) | family("nc_backup_watch_timestamp_seconds"; "When ages were looked at last."))

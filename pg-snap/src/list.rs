//! `pg-snap list` and `pg-snap prune`: which dumps there are, and which go.

use std::path::Path;

use anyhow::Result;
use common::figures;
use common::screen::End;
use common::signals;
use common::status::Report;
use serde_json::{Value, json};

use crate::dumps::{Dumps, is_ahead};
use crate::manifest::Manifest;

/// Lists the dumps, newest last, each as `complete`, `damaged` or `incomplete`.
pub(crate) fn list(dumps: &Path, report: &mut Report) -> Result<()> {
    let folder = Dumps::open(dumps)?;
    report.set_text("dumps", dumps.as_os_str());
    let Some(folder) = folder else {
        report.set("list", json!([]));
        report.set("newest", Value::Null);
        report.show(format!("pg-snap: no dumps: {} does not exist yet", dumps.display()));
        return Ok(());
    };
    let (dates, partial) = folder.dates()?;
    let ahead = ahead(&dates, report);
    let mut rows: Vec<Value> = Vec::new();
    let mut newest = Value::Null;
    for date in &dates {
        signals::check()?;
        let row = match read(&folder, date) {
            Ok(manifest) => {
                if !ahead.contains(date) || newest.is_null() {
                    newest = json!(date);
                }
                complete(&manifest)
            }
            Err(e) => {
                report.warn("damaged-dump", format!("the dump {date} is damaged: {e:#}"));
                other(date, "damaged", &format!("{e:#}"))
            }
        };
        rows.push(row);
    }
    for date in &partial {
        let why = "being written, or left by a killed run (the next dump or prune clears it then)";
        rows.push(other(date, "incomplete", why));
    }
    table(&rows, report);
    report.set("list", rows);
    report.set("newest", newest);
    Ok(())
}

/// Those of a time to come, with a warning: they were made when the clock was ahead, and by their names would be the newest
/// until then.
fn ahead(dates: &[String], report: &mut Report) -> Vec<String> {
    let ahead: Vec<String> = dates.iter().filter(|d| is_ahead(d)).cloned().collect();
    if !ahead.is_empty() {
        let message = "dumps of a time to come, as the clock was ahead, count for nothing until then:";
        report.warn("dump-ahead", format!("{message} {}", ahead.join(", ")));
    }
    ahead
}

/// Reads the dump `date`; it must be what its folder says.
pub(crate) fn read(folder: &Dumps, date: &str) -> Result<Manifest> {
    let manifest = Manifest::read(&folder.path().join(date))?;
    if manifest.date != date {
        anyhow::bail!("it was made as {} and renamed", manifest.date);
    }
    Ok(manifest)
}

fn complete(manifest: &Manifest) -> Value {
    json!({
        "date": manifest.date, "state": "complete", "problem": null, "database": manifest.database,
        "run_id": manifest.run_id, "size_bytes": manifest.size_bytes,
        "database_size_bytes": manifest.database_size_bytes, "tables": manifest.tables,
        "dump_ms": manifest.duration_ms, "server_version": manifest.server_version,
        "client_version": manifest.client_version,
    })
}

fn other(date: &str, state: &str, problem: &str) -> Value {
    json!({
        "date": date, "state": state, "problem": problem, "database": null, "run_id": null,
        "size_bytes": null, "database_size_bytes": null, "tables": null, "dump_ms": null,
        "server_version": null, "client_version": null,
    })
}

fn table(rows: &[Value], report: &mut Report) {
    if rows.is_empty() {
        report.show("pg-snap: no dumps");
        return;
    }
    report.show(format!("{:<22}{:<12}{:>12}{:>8}  DATABASE", "DATE", "STATE", "SIZE", "TABLES"));
    let line = |row: &Value| {
        let text = |key: &str| row[key].as_str().unwrap_or("-").to_owned();
        format!(
            "{:<22}{:<12}{:>12}{:>8}  {}",
            text("date"),
            text("state"),
            row["size_bytes"].as_u64().map_or("-".into(), figures::bytes),
            row["tables"].as_u64().map_or("-".into(), |n| n.to_string()),
            if row["problem"].is_null() { text("database") } else { text("problem") }
        )
    };
    let lines: Vec<String> = rows.iter().map(line).collect();
    report.show_list(&lines, End::Last, "dumps", false);
}

/// Keeps the newest `keep` complete dumps and what is younger than the oldest of them; removes the rest.
/// With fewer complete ones than that, nothing goes: a damaged one may be all there is.
pub(crate) fn prune(dumps: &Path, keep: usize, report: &mut Report) -> Result<()> {
    report.set_text("dumps", dumps.as_os_str());
    let mut removed: Vec<String> = Vec::new();
    let mut kept: Vec<String> = Vec::new();
    if let Some(folder) = Dumps::open(dumps)? {
        let lock = folder.lock()?;
        let cleared = folder.sweep(&lock)?;
        report.changed = !cleared.is_empty();
        report.set("cleared", cleared);
        let (dates, _) = folder.dates()?;
        let ahead = ahead(&dates, report);
        let counts = |d: &&String| !ahead.contains(d) && read(&folder, d).is_ok();
        let whole: Vec<&String> = dates.iter().filter(counts).collect();
        let oldest_kept = whole.len().checked_sub(keep).and_then(|n| whole.get(n)).copied();
        for date in &dates {
            if oldest_kept.is_some_and(|oldest| date < oldest) {
                signals::check()?;
                folder.remove(date, &lock)?;
                report.changed = true;
                common::say!("pg-snap", "removed {date}");
                removed.push(date.clone());
                report.set("removed", removed.clone());
            } else {
                kept.push(date.clone());
            }
        }
    } else {
        report.set("cleared", json!([]));
    }
    report.set("removed", removed);
    report.set("kept", kept);
    Ok(())
}

//! `link-sync list`: what there is, how old the newest is, and when it was last proven.

use std::fs::File;

use anyhow::Result;
use common::drill::{self, DrillRecord};
use common::fault::Fault;
use common::figures;
use common::retention::Retention;
use common::screen::End;
use common::status::Report;
use jiff::Timestamp;
use nix::sys::statvfs::fstatvfs;
use serde_json::{Value, json};

use crate::cli::List;
use crate::far::Far;
use crate::meant;
use crate::protocol::{BackupIdle, Door, ReadIdle};
use crate::settings::Place;
use crate::store::meta::{is_date, taken};
use crate::store::odd::{Known, Why};
use crate::store::verified::Verifications;
use crate::store::{Store, pins, shown, sizes};

/// Does it.
pub fn list(args: &List, report: &mut Report) -> Result<()> {
    let settings = args.profile.options().settings()?;
    // To add up sizes is to read; and a store here that is an account's is only read by root.
    let reading = args.sizes || matches!(settings.store, Place::Local(_));
    let mut far = if reading { Far::connect_reading(&settings)? } else { Far::connect_anywhere(&settings)? };
    let asked = Timestamp::now();
    let mut answer = ask(&mut far, args.sizes)?;
    // The store's clock, as the dates are of it; an older far end does not tell.
    let theirs: Option<Timestamp> = answer["now"].as_str().and_then(|t| t.parse().ok());
    let now = theirs.unwrap_or_else(Timestamp::now);
    report.set("store", far.hello.store.as_str());
    report.set("door", serde_json::to_value(far.hello.door)?);
    report.set("store_version", far.hello.version.as_str());
    report.set("store_clock_ahead_ms", json!(theirs.map(|theirs| ahead(theirs, asked, Timestamp::now()))));
    report.set("store_has_retention", answer["has_retention"].clone());
    let (mut newest, mut lines) = (None, Vec::new());
    let odd: Vec<String> = serde_json::from_value(answer["odd"].clone()).unwrap_or_default();
    // Scripts make paths of them, and the far end may be anybody's.
    if let Some(all) = answer["snapshots"].as_array_mut() {
        all.retain(|snapshot| snapshot["date"].as_str().is_some_and(is_date));
    }
    let wanted = args.date.as_deref().map(|date| meant::of(&answer, date, &far.hello.store)).transpose()?;
    report.set("date", json!(wanted));
    for snapshot in answer["snapshots"].as_array_mut().into_iter().flatten() {
        let date = snapshot["date"].as_str().unwrap_or("?").to_owned();
        let age = taken(&date).map(|t| now.duration_since(t).as_secs()).ok();
        snapshot["age_seconds"] = json!(age);
        // What cannot be what it seems proves no backup.
        let is_odd = odd.contains(&date);
        newest = age.filter(|_| !is_odd).map(|age| (date.clone(), age)).or(newest);
        if wanted.as_ref().is_none_or(|wanted| *wanted == date) {
            lines.push(line(snapshot, &date));
        }
    }
    if !lines.is_empty() {
        let alone = if args.sizes { "       ALONE" } else { "" };
        report.show(format!("DATE                       AGE      FILES        SIZE{alone}  STATE"));
    }
    report.show_list(&lines, End::Last, "dates", args.all);
    let age = newest.as_ref().map_or(String::new(), |n| format!(", the newest {} old", figures::age(n.1)));
    report.show(format!("{} in {}{age}", figures::count(lines.len() as u64, "snapshot"), far.hello.store));
    for name in answer["damaged"].as_array().into_iter().flatten() {
        report
            .warn("damaged-snapshot", format!("{} is not a complete snapshot", name.as_str().unwrap_or("?")));
    }
    for warning in answer["warnings"].as_array().into_iter().flatten() {
        report.warn_value(warning.clone());
    }
    if let (Some(wanted), Some(all)) = (&wanted, answer["snapshots"].as_array_mut()) {
        all.retain(|snapshot| snapshot["date"] == **wanted);
        if all.is_empty() {
            return Err(Fault::config(format!("there is no snapshot {wanted} in {}", far.hello.store)).into());
        }
    }
    report.set("snapshots", answer["snapshots"].clone());
    report.set("odd", odd);
    report.set("room", answer["room"].clone());
    report.set("pinned", answer["pinned"].clone());
    report.set("now", now.to_string());
    report.set("damaged", answer["damaged"].clone());
    report.set("newest_age_seconds", json!(newest.as_ref().map(|n| n.1)));
    let (last, open) = (&answer["verified"]["last"], &answer["verified"]["unresolved"]);
    let verify = match last["verified_at"].as_str() {
        Some(at) => {
            let mut verify = last.clone();
            verify["at"] = at.into();
            verify["ok"] = (last["findings"] == 0 && open.is_null()).into();
            verify["unresolved"] = open.clone();
            verify
        }
        None => Value::Null,
    };
    let drill = DrillRecord::load(&settings.state.join(drill::FILE)).unwrap_or_else(|e| {
        report.warn("drill-unknown", format!("how the last drill went cannot be read: {e:#}"));
        None
    });
    let drill = serde_json::to_value(drill)?;
    for (what, note) in [("verify", &verify), ("drill", &drill)] {
        if let Some(at) = note["at"].as_str() {
            let how = match note["ok"].as_bool() {
                Some(true) => "all was well",
                Some(false) => "IT FAILED",
                None => "",
            };
            let old = at
                .parse()
                .map(|at| now.duration_since(at).as_secs())
                .map_or(String::new(), |age: i64| format!("{} ago, ", figures::age(age)));
            report.show(format!("last {what}: {old}{at} {how}"));
        }
    }
    if let Some(at) = open["verified_at"].as_str().filter(|_| last["verified_at"] != open["verified_at"]) {
        report.show(format!("what was found wrong at {at} was not found well since: link-sync verify"));
    }
    report.set("last_verify", verify);
    report.set("last_drill", drill);
    let Some(limit) = args.max_age else { return Ok(()) };
    let Some((date, _)) = newest else {
        return Err(Fault::failed("there is no snapshot").hint("make one: backup-local").into());
    };
    let oldest = now.to_zoned(jiff::tz::TimeZone::UTC).checked_sub(limit.0)?.timestamp();
    if taken(&date)? < oldest {
        return Err(Fault::failed(format!("the newest snapshot, {date}, is older than {limit}"))
            .hint("see why the last backups failed: journalctl -u nc-backup@PROFILE, or the log that cron writes")
            .into());
    }
    Ok(())
}

/// The answer of the far end, at whichever door: a machine that only rehearses has the key for reading alone.
pub fn ask(far: &mut Far, sizes: bool) -> Result<Value> {
    match far.hello.door {
        Door::Read => far.ask_in_parts(&ReadIdle::List { sizes }, "snapshots", |_, _| ()),
        _ => far.ask_in_parts(&BackupIdle::List {}, "snapshots", |_, _| ()),
    }
}

/// How far their clock is ahead of ours, in milliseconds; 0 if it fits what passed between question and answer.
fn ahead(theirs: Timestamp, asked: Timestamp, answered: Timestamp) -> i64 {
    let nearest = theirs.clamp(asked, answered.max(asked));
    theirs.as_millisecond() - nearest.as_millisecond()
}

/// A line for people.
fn line(snapshot: &Value, date: &str) -> String {
    let sources = snapshot["sources"].as_array().into_iter().flatten();
    let (paths, bytes) = sources.fold((0, 0), |(p, b), s| {
        (p + s["paths"].as_u64().unwrap_or(0), b + s["bytes"].as_u64().unwrap_or(0))
    });
    let alone = snapshot["alone_bytes"].as_u64().map(|bytes| format!("  {:>10}", figures::bytes(bytes)));
    let age = snapshot["age_seconds"].as_i64().map_or_else(|| "?".to_owned(), figures::age);
    let consistency = match snapshot["consistency"].as_str() {
        Some("crash-consistent") => "not sealed",
        other => other.unwrap_or("?"),
    };
    let alone = alone.unwrap_or_default();
    let odd = snapshot["odd"].as_str().map_or(String::new(), |why| format!(", but odd: {why}"));
    format!("{date}  {age:>8}  {paths:>9}  {:>10}{alone}  {consistency}{odd}", figures::bytes(bytes))
}

/// For the far end; `retention`: whether its profile has rules of what is kept, where it is asked for.
pub fn answer(store: &Store, with_sizes: bool, retention: Option<&Retention>) -> Result<Value> {
    let dir = store.check()?;
    let now = Timestamp::now();
    let known = Known::of(store, now)?;
    let (damaged, mut warnings) = (&known.damaged, known.warnings());
    let odd: Vec<_> = known.odd.iter().map(|o| o.0.date.clone()).collect();
    let counted = known.counted.into_iter().map(|meta| (meta, None));
    let mut all: Vec<_> = counted.chain(known.odd.into_iter().map(|(meta, why)| (meta, Some(why)))).collect();
    all.sort_by(|a, b| a.0.date.cmp(&b.0.date));
    let mut snapshots = Vec::new();
    let mut unknown = 0;
    for (meta, why) in all {
        // Of images nobody can see here what they are made of, and each file in them has one name.
        let is_shown = with_sizes && shown::is_shown(&store.path.join(&meta.date)).unwrap_or(false);
        let counted = with_sizes && !is_shown;
        let alone = if counted { Some(sizes::alone(&dir, &meta.date)?) } else { None };
        unknown += u64::from(is_shown);
        let mut snapshot = serde_json::to_value(meta)?;
        snapshot["alone_bytes"] = json!(alone);
        snapshot["odd"] = json!(why.map(Why::text));
        snapshots.push(snapshot);
    }
    if unknown > 0 {
        let message =
            format!("{unknown} dates are shown by images: what one of them holds alone cannot be told");
        warnings.push(json!({"kind": "sizes-unknown", "message": message}));
    }
    let verified = Verifications::load(store);
    Ok(
        json!({"snapshots": snapshots, "damaged": damaged, "odd": odd, "warnings": warnings, "verified": verified,
            "now": now.to_string(), "room": room(store, &dir), "pinned": pinned(&dir),
            "has_retention": retention.map(Retention::has_rule)}),
    )
}

/// How much room there is where the store lies, and what of it stays free; what cannot be told is no reason not to list.
fn room(store: &Store, dir: &File) -> Option<Value> {
    let room = fstatvfs(dir).ok()?;
    let block = room.fragment_size();
    Some(json!({
        "size_bytes": room.blocks().saturating_mul(block), "free_bytes": room.blocks_available().saturating_mul(block),
        "reserve_bytes": store.reserve_bytes, "inodes": room.files(), "inodes_free": room.files_available(),
    }))
}

/// The dates that somebody needs, and who: the newest of `offsite` was pushed last.
fn pinned(dir: &File) -> Option<Value> {
    let pins = pins::read(dir).ok()?;
    Some(pins.into_iter().map(|(date, by)| json!({"date": date, "by": by})).collect())
}

//! `link-sync list`: what there is, how old the newest is, and when it was last proven.

use anyhow::Result;
use common::drill::{self, DrillRecord};
use common::fault::Fault;
use common::status::{self, Report};
use jiff::Timestamp;
use serde_json::{Value, json};

use crate::cli::List;
use crate::far::Far;
use crate::protocol::{BackupIdle, Door, ReadIdle};
use crate::settings::Place;
use crate::store::meta::{is_date, taken};
use crate::store::odd::{Known, Why};
use crate::store::verified::Verifications;
use crate::store::{Store, shown, sizes};

/// Does it.
pub fn list(args: &List, report: &mut Report) -> Result<()> {
    let settings = args.profile.options().settings()?;
    // To add up sizes is to read; and a store here that is an account's is only read by root.
    let reading = args.sizes || matches!(settings.store, Place::Local(_));
    let mut far = if reading { Far::connect_reading(&settings)? } else { Far::connect_anywhere(&settings)? };
    // A machine that only rehearses has the key for reading alone.
    let mut answer = match far.hello.door {
        Door::Read => far.ask_in_parts(&ReadIdle::List { sizes: args.sizes }, "snapshots", |_, _| ()),
        _ => far.ask_in_parts(&BackupIdle::List {}, "snapshots", |_, _| ()),
    }?;
    // The store's clock, as the dates are of it; an older far end does not tell.
    let now = answer["now"].as_str().and_then(|t| t.parse().ok()).unwrap_or_else(Timestamp::now);
    report.set("store", far.hello.store.as_str());
    let mut newest = None;
    let odd: Vec<String> = serde_json::from_value(answer["odd"].clone()).unwrap_or_default();
    // Scripts make paths of them, and the far end may be anybody's.
    if let Some(all) = answer["snapshots"].as_array_mut() {
        all.retain(|snapshot| snapshot["date"].as_str().is_some_and(is_date));
    }
    for snapshot in answer["snapshots"].as_array_mut().into_iter().flatten() {
        let date = snapshot["date"].as_str().unwrap_or("?").to_owned();
        let age = taken(&date).map(|t| now.duration_since(t).as_secs()).ok();
        snapshot["age_seconds"] = json!(age);
        // What cannot be what it seems proves no backup.
        let is_odd = odd.contains(&date);
        newest = age.filter(|_| !is_odd).map(|age| (date.clone(), age)).or(newest);
        tell(snapshot, &date);
    }
    for name in answer["damaged"].as_array().into_iter().flatten() {
        report
            .warn("damaged-snapshot", format!("{} is not a complete snapshot", name.as_str().unwrap_or("?")));
    }
    for warning in answer["warnings"].as_array().into_iter().flatten() {
        report.warn_value(warning.clone());
    }
    report.set("snapshots", answer["snapshots"].clone());
    report.set("odd", odd);
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
            status::tell(format_args!("last {what}: {at} {how}"));
        }
    }
    if let Some(at) = open["verified_at"].as_str() {
        status::tell(format_args!(
            "what the verification of {at} found wrong has not been found well since: link-sync verify"
        ));
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

/// A line for people.
fn tell(snapshot: &Value, date: &str) {
    let sources = snapshot["sources"].as_array().into_iter().flatten();
    let (paths, bytes) = sources.fold((0, 0), |(p, b), s| {
        (p + s["paths"].as_u64().unwrap_or(0), b + s["bytes"].as_u64().unwrap_or(0))
    });
    let alone = snapshot["alone_bytes"].as_u64().map(|bytes| format!("  {:>10} alone", size(bytes)));
    let consistency = snapshot["consistency"].as_str().unwrap_or("?");
    let alone = alone.unwrap_or_default();
    let odd = snapshot["odd"].as_str().map_or(String::new(), |why| format!(", but odd: {why}"));
    status::tell(format_args!("{date}  {paths:>9} paths  {:>10}{alone}  {consistency}{odd}", size(bytes)));
}

fn size(bytes: u64) -> String {
    indicatif::BinaryBytes(bytes).to_string()
}

/// For the far end.
pub fn answer(store: &Store, with_sizes: bool) -> Result<Value> {
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
            "now": now.to_string()}),
    )
}

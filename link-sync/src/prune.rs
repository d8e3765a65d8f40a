//! `link-sync prune`: on the store's own machine, or asked of it through ssh.

use std::path::Path;

use anyhow::{Context as _, Result};
use common::fault::Fault;
use common::retention::Retention;
use common::status::{self, Report};
use jiff::Timestamp;
use jiff::tz::TimeZone;

use crate::account::become_owner;
use crate::cli::Prune;
use crate::far::Far;
use crate::protocol::BackupIdle;
use crate::retention::Rules;
use crate::settings::{Place, Settings};
use crate::store::Store;
use crate::store::prune::{Order, Pruned, Removal, prune as prune_store};

/// What to write when no rule says what is kept.
const EXAMPLE: &str = "in [store.retention] of the profile: keep_daily = 14, keep_weekly = 8, keep_monthly = 12, keep_yearly = 3";

/// Does it.
pub fn prune(args: &Prune, report: &mut Report) -> Result<()> {
    let settings = args.profile.options().settings()?;
    report.set("dry_run", args.dry_run);
    let pruned = match &settings.store {
        Place::Local(path) => local(args, &settings, path, report)?,
        Place::Ssh { host, .. } => {
            if args.rules.retention() != Retention::default() || args.date.is_some() || !args.keep.is_empty()
            {
                return Err(Fault::usage("through ssh, only the rules in the profile of the store's machine count")
                    .hint(format!("give the options to link-sync prune on {host}, or write them into [store.retention] there"))
                    .into());
            }
            let mut far = Far::connect(&settings)?;
            report.set("store", far.hello.store.as_str());
            let request = BackupIdle::Prune { dry_run: args.dry_run };
            let answer =
                far.ask_in_parts(&request, "snapshots", |_, _| ()).map_err(|e| crate::ssh::on(host, e))?;
            serde_json::from_value(answer).context("an answer that is not understood")?
        }
    };
    tell(&pruned, args, report)
}

/// A store on this machine, whose own account or root may do what the rules say.
fn local(args: &Prune, settings: &Settings, path: &Path, report: &mut Report) -> Result<Pruned> {
    report.set_text("store", path.as_os_str());
    let table = settings.profile.store.as_ref().filter(|t| t.path == path);
    let store = Store {
        path: path.to_owned(),
        mount: table.and_then(|t| t.mount.clone()),
        reserve_bytes: 0,
        rsync: Vec::new(),
        read_only: false,
        flush_bytes: args.flush_bytes.map(|b| b.0),
    };
    let what = match &args.date {
        Some(date) if args.yes || args.dry_run => Removal::Date(date.clone()),
        Some(date) => {
            return Err(Fault::usage(format!("{date} would be removed for good: nothing was done"))
                .hint("give --yes, too")
                .into());
        }
        None => {
            let of_profile = table.map(|t| t.retention.clone()).unwrap_or_default();
            Removal::Rules(Box::new(rules(args.rules.retention().or(&of_profile), false)?))
        }
    };
    // Who is on the store's machine is limited only if he says so.
    let limit = match &what {
        Removal::Rules(rules) if args.rules.max_removals_per_day.is_some() => Some(rules.max_removals()),
        _ => None,
    };
    // What lies in the store of an account is handled with its rights, as it could have put anything there.
    become_owner(&store)?;
    let needed = args.keep.iter().map(|date| (date.clone(), "needed (--keep)".to_owned())).collect();
    let listed = args.listed.clone();
    prune_store(&store, &Order { what, dry_run: args.dry_run, needed, listed, limit }, Timestamp::now())
}

/// For the far end: what this machine's profile says, counted so that a client cannot do harm.
pub fn for_client(store: &Store, retention: &Retention, dry_run: bool) -> Result<Pruned> {
    let rules = rules(retention.clone(), true)?;
    let limit = Some(rules.max_removals());
    let what = Removal::Rules(Box::new(rules));
    prune_store(
        store,
        &Order { what, dry_run, needed: Vec::new(), listed: Vec::new(), limit },
        Timestamp::now(),
    )
}

fn rules(written: Retention, for_client: bool) -> Result<Rules> {
    if !written.has_rule() {
        return Err(Fault::config("nothing says which snapshots are to be kept, so none is removed")
            .hint(format!("write, {EXAMPLE}"))
            .into());
    }
    // Where the machine's own zone cannot be told, UTC is as good as any: days only have to be the same ones.
    Ok(Rules::new(written, TimeZone::try_system().unwrap_or(TimeZone::UTC), for_client))
}

/// For people, and into the report.
fn tell(pruned: &Pruned, args: &Prune, report: &mut Report) -> Result<()> {
    let dry_run = args.dry_run;
    for snapshot in &pruned.snapshots {
        let text = |key: &str| snapshot[key].as_str().unwrap_or("?");
        let reasons: Vec<_> =
            snapshot["reasons"].as_array().into_iter().flatten().filter_map(|r| r.as_str()).collect();
        if dry_run || text("action") != "keep" {
            status::tell(format_args!("{:<8} {}  {}", text("action"), text("date"), reasons.join("; ")));
        }
    }
    for name in &pruned.damaged {
        report.warn("damaged-snapshot", format!("{name} is not a complete snapshot: it is neither counted nor removed; `prune --date {name} --yes` does"));
    }
    for warning in &pruned.warnings {
        report.warn_value(warning.clone());
    }
    for date in &pruned.skipped {
        report.warn("in-use", format!("{date} is in use and stays for now"));
        report.set_partial();
    }
    if !pruned.postponed.is_empty() {
        report.warn(
            "removal-limit",
            format!(
                "{} more dates are to go, but max_removals_per_day is reached: they go later (from a store, also at once by \
                 `link-sync prune` on its machine)",
                pruned.postponed.len()
            ),
        );
    }
    for (date, why) in &pruned.unlisted {
        let what =
            "files that other dates share with it may be in no list any more that can be checked by hand";
        report.warn(
            "list-not-handed-on",
            format!("the checksums in {date} could not all be kept: {what}: {why}"),
        );
        report.set_partial();
    }
    let would = if dry_run { "would be " } else { "" };
    let kept = pruned.snapshots.iter().filter(|s| s["action"] == "keep").count();
    // One that is named is the only one that was looked at.
    let stay = if args.date.is_some() { String::new() } else { format!("{kept} kept, ") };
    status::tell(format_args!("link-sync: {stay}{} {would}removed", pruned.removed.len()));
    let idle = pruned.removed.is_empty() && pruned.completed.is_empty();
    report.changed = !dry_run && !idle;
    report.set("kept", kept);
    if let serde_json::Value::Object(fields) =
        serde_json::to_value(pruned).context("cannot encode the report")?
    {
        report.data.extend(fields);
    }
    Ok(())
}

//! `offsite-push prune`: in the container, what the rules of `[offsite.retention]` do not keep.
//!
//! `link-sync prune` decides and removes; the generation changes as with a push. The date that the next push begins
//! with, the newest that both stores hold, always stays. After a push the container is opened a second time for it: what
//! was copied counts only when the container was closed cleanly, and until then nothing else may go.
//!
//! Of dates that lie there as lists of layers the lists go, after link-sync has noted it, and then what no list needs. What lies
//! below a list stays: a tree as well as an image.

use std::ffi::OsString;

use anyhow::Result;
use common::fault::Fault;
use common::lock::Lock;
use common::mutant;
use common::offsite;
use common::profile::Bytes;
use common::retention::Retention;
use common::status::Report;
use serde_json::{Value, json};

use crate::generation::{Change, Known, Stamp, objection, refusal};
use crate::inside;
use crate::layered::merging;
use crate::layered::pruning::{self, Listed};
use crate::layers::Up;
use crate::leftovers::{self, Look};
use crate::open_view::Record;
use crate::settings::{PATIENCE, Settings};
use crate::siblings::{Answer, Call, Siblings, option};
use crate::store::{self, Snapshot};
use crate::whole;

/// So many go within 24 hours, unless `max_removals_per_day` says otherwise.
const MAX_REMOVALS: u32 = 10;

/// What the command line says.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Options {
    /// Upload limit, instead of the profile's.
    pub(crate) bwlimit: Option<Bytes>,
    /// Only tell.
    pub(crate) dry_run: bool,
    /// Nothing is sent any more after this.
    pub(crate) until: Option<jiff::Timestamp>,
}

/// Does it.
pub(crate) fn run(settings: &Settings, options: Options, report: &mut Report) -> Result<()> {
    report.set("prune", Value::Null);
    report.set("failed_step", Value::Null);
    report.set("dry_run", options.dry_run);
    report.set("steps", json!([]));
    if !settings.profile.offsite.retention.has_rule() {
        return Err(Fault::config("nothing says which snapshots are to be kept in the container, so none is removed")
            .hint("write, in [offsite.retention]: keep_daily = 14, keep_weekly = 8, keep_monthly = 12, keep_yearly = 3")
            .into());
    }
    let _lock: Lock = settings.lock(PATIENCE)?;
    let mut siblings = Siblings::find(settings)?;
    let result = (|| {
        let list = store::list(settings.store()?, report)?;
        let look = Look::take(&mut siblings, false)?;
        if let Some(view) = leftovers::open_view(&look, Record::load(settings)?) {
            return Err(leftovers::view_is_open(&view, &siblings));
        }
        report.changed = leftovers::clear(&look, &mut siblings, report)?;
        round(settings, options, &list, &mut siblings, report)
    })();
    if result.is_err() {
        report.set("failed_step", siblings.doing);
    }
    siblings.finish(false, report);
    result
}

/// Opens the container, prunes, closes it, and confirms. Nothing of it is up before or after.
pub(crate) fn round(
    settings: &Settings,
    options: Options,
    list: &[Snapshot],
    siblings: &mut Siblings,
    report: &mut Report,
) -> Result<()> {
    let known = Known::load(&settings.record())?.filter(|k| k.generation.is_some());
    let known = known.ok_or_else(|| {
        Fault::config("this machine has pushed nothing yet, so there is nothing to prune")
            .hint("`offsite-push push` first")
    })?;
    let mut up = Up::new(siblings);
    let done = work(&mut up, settings, options, &known, list, report);
    let at = up.siblings.doing;
    let down = up.down();
    drop(up);
    match done {
        Err(error) => {
            siblings.doing = at;
            return Err(error);
        }
        Ok(Some(done)) if down.closed => {
            done.change.confirm(&settings.record(), done.stamped, None, done.dates.clone())?;
            pruning::forget(settings, &done.uuid, &done.dates)?;
        }
        Ok(Some(_)) => report.warn(
            "not-confirmed",
            "the container was not closed cleanly; the next push or prune looks again",
        ),
        Ok(None) => {}
    }
    down.error.map_or(Ok(()), Err)
}

/// What was done in the open container.
struct Done {
    change: Change,
    uuid: String,
    stamped: bool,
    dates: Vec<String>,
}

fn work(
    up: &mut Up,
    settings: &Settings,
    options: Options,
    known: &Known,
    list: &[Snapshot],
    report: &mut Report,
) -> Result<Option<Done>> {
    up.mount(options.bwlimit)?;
    let attached = up.attach(options.dry_run)?;
    up.siblings.doing = "check";
    let uuid = attached.data("uuid").as_str().unwrap_or_default();
    let content = inside::read(&settings.container, settings.patience)?;
    if let Some(why) = objection(Some(known), uuid, &content) {
        return Err(refusal(&why));
    }
    whole::note_unread(settings, &content)?;
    let path = settings.record();
    let mut known = Some(known.clone());
    if !options.dry_run
        && let Some(why) = whole::doubt(&path, &mut known, &attached, false)?
    {
        // What is damaged now may be whole in just the date that would go.
        return Err(Fault::unavailable(format!(
            "nothing is removed before the names in the container are compared: {why}"
        ))
        .hint("`offsite-push push` compares them")
        .into());
    }
    let listed = Listed::read(up.siblings, uuid, list)?;
    let whole = whole_date(&content.dates, known.as_ref());
    let keep = common_date(&content.dates, list).into_iter().chain(whole).chain(listed.trees());
    let keep: Vec<&str> = keep.collect();
    let look = call(up, settings, &keep, &listed, true)?.checked()?;
    if options.dry_run {
        report.set("prune", facts(&look, &look, &[]));
        return Ok(None);
    }
    let going: Vec<&String> = content.dates.iter().filter(|d| removes(&look, d)).collect();
    let keep: Vec<&str> = content.dates.iter().filter(|d| !going.contains(d)).map(String::as_str).collect();
    let mut change = Change::begin(&path, known.as_ref(), uuid, &content, false)?;
    // Before anything goes, so that a cut in between does not look like a loss.
    change.note(&path, |known| {
        known.checked_at = whole::checked_at(&attached).or(known.checked_at.take());
        if !mutant::active("what-is-to-go-is-noted-before") {
            known.going = going.into_iter().cloned().collect();
        }
    })?;
    let answer = call(up, settings, &keep, &listed, false)?.checked()?;
    report.changed |= answer.changed();
    let removed: Vec<String> = content.dates.iter().filter(|d| removes(&answer, d)).cloned().collect();
    merging::note_dropped(settings, uuid, &removed)?;
    let layers = listed.drop(up.siblings, &removed)?;
    report.set("prune", facts(&look, &answer, &layers));
    let job = merging::Job { uuid, list, reserve: settings.reserve_bytes(), until: options.until };
    let merged = merging::merge(up.siblings, &job, report)?;
    report.data["prune"]["merged"] = json!(merged);
    if answer.code == 3 {
        report.set_partial();
    }
    report.changed |= !merged.is_empty();
    let stamped = change.needed(answer.changed() || !merged.is_empty());
    if let Some(stamp) = content.stamp.filter(|_| stamped) {
        up.siblings.doing = "generation";
        let stamp = Stamp { generation: change.next.clone(), ..stamp };
        inside::write(&settings.container, settings.patience, &stamp)?;
    }
    let dates = inside::read(&settings.container, settings.patience)?.dates;
    Ok(Some(Done { change, uuid: uuid.to_owned(), stamped, dates }))
}

/// Whether anything in the open container would go. An error of the rules does not make a copy worthless: it is told.
pub(crate) fn due(
    up: &mut Up,
    settings: &Settings,
    uuid: &str,
    dates: &[String],
    list: &[Snapshot],
    report: &mut Report,
) -> Result<bool> {
    if !settings.profile.offsite.retention.has_rule() {
        return Ok(false);
    }
    let listed = match Listed::read(up.siblings, uuid, list) {
        Ok(listed) => listed,
        Err(error) => {
            not_pruned(&error, report);
            return Ok(false);
        }
    };
    let known = Known::load(&settings.record())?;
    let whole = whole_date(dates, known.as_ref());
    let keep: Vec<&str> = common_date(dates, list).into_iter().chain(whole).chain(listed.trees()).collect();
    let answer = call(up, settings, &keep, &listed, true)?;
    if !answer.done() {
        not_pruned(&answer.fault(), report);
        return Ok(false);
    }
    Ok(answer.data("removed").as_array().is_some_and(|r| !r.is_empty()) || merging::is_due(settings, uuid)?)
}

/// After a push that is confirmed, failing to prune is no failure of the push; but a person should see it.
pub(crate) fn not_pruned(error: &anyhow::Error, report: &mut Report) {
    report.warn("not-pruned", format!("nothing was removed from the container: {error:#}"));
    report.set_partial();
}

/// The newest date that both hold: the next push compares with it.
pub(crate) fn common_date<'d>(dates: &'d [String], list: &[Snapshot]) -> Option<&'d str> {
    dates.iter().rfind(|d| list.iter().any(|s| s.date == **d)).map(String::as_str)
}

/// The newest date of which no damage is known: however few are to stay, a whole one is among them.
fn whole_date<'d>(dates: &'d [String], known: Option<&Known>) -> Option<&'d str> {
    let damaged = |date: &str| known.is_some_and(|known| known.damaged.contains_key(date));
    let mut newest_first = dates.iter().rev().map(String::as_str);
    newest_first.find(|date| !damaged(date)).filter(|_| !mutant::active("a-whole-date-stays"))
}

/// Whether `date` is one of those that go.
fn removes(look: &Answer, date: &str) -> bool {
    look.data("removed").as_array().is_some_and(|removed| removed.iter().any(|r| r == date))
}

fn call(up: &mut Up, settings: &Settings, keep: &[&str], listed: &Listed, dry_run: bool) -> Result<Answer> {
    let mut args: Vec<OsString> = option("--store", offsite::store(&settings.container)).into();
    args.extend(rules(&settings.profile.offsite.retention));
    args.extend(listed.options());
    for date in keep {
        args.extend(option("--keep", date));
    }
    if dry_run {
        args.push("--dry-run".into());
    } else {
        args.extend(option("--flush-bytes", "4m"));
    }
    let step = if dry_run { "prune-look" } else { "prune" };
    up.siblings.run(&Call {
        step,
        tool: "link-sync",
        action: "prune",
        args: &args,
        limit: None,
        cleanup: false,
    })
}

/// The rules as options of link-sync: all there are, so that none that the profile takes is without effect.
fn rules(retention: &Retention) -> Vec<OsString> {
    let Retention {
        keep_last,
        keep_hourly,
        keep_daily,
        keep_weekly,
        keep_monthly,
        keep_yearly,
        keep_within,
        min_age,
        max_gap,
        max_removals_per_day,
        timezone,
    } = retention;
    let counts = [
        ("--keep-last", *keep_last),
        ("--keep-hourly", *keep_hourly),
        ("--keep-daily", *keep_daily),
        ("--keep-weekly", *keep_weekly),
        ("--keep-monthly", *keep_monthly),
        ("--keep-yearly", *keep_yearly),
        ("--max-removals-per-day", Some(max_removals_per_day.unwrap_or(MAX_REMOVALS))),
    ];
    let lengths = [("--keep-within", keep_within), ("--min-age", min_age), ("--max-gap", max_gap)];
    let counts = counts.into_iter().filter_map(|(name, n)| Some((name, n?.to_string())));
    let lengths = lengths.into_iter().filter_map(|(name, n)| Some((name, n.as_ref()?.to_string())));
    let zone = timezone.iter().map(|zone| ("--timezone", zone.to_string()));
    counts.chain(lengths).chain(zone).flat_map(|(name, value)| option(name, value)).collect()
}

/// For the report: why, as the look before has told it, and what was done.
fn facts(look: &Answer, done: &Answer, layers: &[String]) -> Value {
    let (why, data) = (look.all_data(), done.all_data());
    json!({"kept": data["kept"], "removed": data["removed"], "skipped": data["skipped"],
        "postponed": why["postponed"], "snapshots": why["snapshots"], "paths": data["paths"],
        "layers_removed": layers})
}

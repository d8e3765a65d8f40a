//! `offsite-push push`: the newest snapshot into the container, and everything down again.

use std::ffi::OsString;
use std::time::{Duration, Instant};

use anyhow::Result;
use common::fault::{Fault, Kind, kind_of};
use common::offsite;
use common::profile::Bytes;
use common::say;
use common::status::{Report, now};
use serde_json::{Value, json};

use crate::TOOL;
use crate::generation::{Change, Known, Last, Stamp, objection, refusal};
use crate::layers::{Down, Up};
use crate::leftovers::{self, Look};
use crate::open_view::Record;
use crate::settings::{PATIENCE, Settings};
use crate::siblings::{Answer, Call, Siblings, option};
use crate::store::{self, Snapshot};
use crate::{inside, pins, prune, room, tell, whole};

/// What the command line says.
#[derive(Debug)]
pub(crate) struct Options {
    /// Upload limit, instead of the profile's.
    pub(crate) bwlimit: Option<Bytes>,
    /// Which snapshot.
    pub(crate) date: String,
    /// Room that stays free, instead of the profile's.
    pub(crate) reserve_bytes: Option<Bytes>,
    /// The container is taken as it is.
    pub(crate) accept_container: bool,
}

impl Options {
    /// Room that stays free.
    fn reserve(&self, settings: &Settings) -> u64 {
        self.reserve_bytes.map_or(settings.reserve_bytes(), |b| b.0)
    }
}

/// Does it.
pub(crate) fn run(settings: &Settings, options: &Options, report: &mut Report) -> Result<()> {
    if options.bwlimit.is_some() && settings.s3.is_none() {
        let message = "--bwlimit limits the link to S3, but the container lies on this machine";
        return Err(Fault::usage(message).into());
    }
    for key in ["store", "date", "id", "failed_step", "push", "prune"] {
        report.set(key, Value::Null);
    }
    report.set("steps", json!([]));
    let _lock = settings.lock(PATIENCE)?;
    let mut siblings = Siblings::find(settings)?;
    let result = work(settings, options, &mut siblings, report);
    if result.is_err() {
        report.set("failed_step", siblings.doing);
    }
    siblings.finish(false, report);
    result
}

fn work(settings: &Settings, options: &Options, siblings: &mut Siblings, report: &mut Report) -> Result<()> {
    let begun = Instant::now();
    let store = settings.store()?;
    report.set_text("store", store.as_os_str());
    let list = store::list(store, report)?;
    let wanted = store::pick(&list, &options.date, store)?;
    report.set("date", wanted.date.clone());
    report.set("id", wanted.id.clone());

    let look = Look::take(siblings, false)?;
    let known = Known::load(&settings.record())?;
    let nothing_new = !options.accept_container && known.as_ref().is_some_and(|k| k.holds(&wanted.id));
    if let Some(view) = leftovers::open_view(&look, Record::load(settings)?) {
        if !nothing_new {
            return Err(leftovers::view_is_open(&view, siblings));
        }
    } else {
        report.changed = leftovers::clear(&look, siblings, report)?;
    }
    if nothing_new {
        let facts = json!({"date": wanted.date, "id": wanted.id, "base_date": null, "sent_bytes": 0,
            "received_bytes": 0, "copied_bytes": 0, "written_bytes": 0, "duration_ms": 0,
            "behind": store::newer_than(&list, known.as_ref().and_then(|k| k.date.as_deref()))});
        report.set("push", facts);
        pins::write(settings, store, &[&wanted.date], report);
        if let Some(known) = &known {
            whole::tell(known, report);
        }
        say!(TOOL, "nothing new: {} was pushed before", wanted.date);
        return Ok(());
    }

    let mut up = Up::new(siblings);
    let filled = fill(&mut up, settings, options, known, &wanted, &list, report);
    let at = up.siblings.doing;
    let down = up.down();
    drop(up);
    let facts = Last {
        date: wanted.date.clone(),
        id: wanted.id.clone(),
        pushed_at: now(),
        duration_ms: u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX),
        sent_bytes: down.sent_bytes,
        received_bytes: down.received_bytes,
        copied_bytes: filled.as_ref().ok().and_then(|f| f.copy.data("copied_bytes").as_u64()),
    };
    let base_date = filled.as_ref().map_or(Value::Null, |f| f.copy.data("base_date").clone());
    let prune = filled.as_ref().is_ok_and(|f| f.prune);
    let result = match filled {
        Err(error) => {
            siblings.doing = at;
            Err(error)
        }
        Ok(filled) => confirm(&filled, &down, facts.clone(), settings, report),
    };
    let known = Known::load(&settings.record())?;
    if let Some(known) = &known {
        whole::tell(known, report);
    }
    let date = known.and_then(|k| k.date);
    report.set(
        "push",
        json!({"date": facts.date, "id": facts.id, "base_date": base_date, "sent_bytes": facts.sent_bytes,
            "received_bytes": facts.received_bytes, "copied_bytes": facts.copied_bytes,
            "written_bytes": down.written_bytes, "duration_ms": facts.duration_ms,
            "behind": store::newer_than(&list, date.as_deref())}),
    );
    result?;
    // S3 may still be mounted, or the container was not closed cleanly: the copy itself did not fail.
    if let Some(error) = down.error {
        return Err(error);
    }
    if prune && down.closed {
        let options = prune::Options { bwlimit: options.bwlimit, dry_run: false };
        match prune::round(settings, options, &list, siblings, report) {
            Err(error) if !matches!(kind_of(&error), Kind::Interrupted(_)) => {
                prune::not_pruned(&error, report);
            }
            other => other?,
        }
    }
    let time = Duration::from_millis(facts.duration_ms);
    match facts.sent_bytes {
        Some(sent) => say!(
            TOOL,
            "pushed {}: {} sent in {} ({})",
            facts.date,
            tell::bytes(sent),
            tell::time(time),
            tell::rate(sent, time)
        ),
        None => say!(TOOL, "pushed {} in {}", facts.date, tell::time(time)),
    }
    Ok(())
}

/// What was put into the open container.
#[derive(Debug)]
struct Filled {
    change: Change,
    copy: Answer,
    /// The container has the new generation.
    stamped: bool,
    /// The dates in it.
    dates: Vec<String>,
    /// What the next push begins with.
    needed: Option<String>,
    /// Some of them are to go.
    prune: bool,
}

/// Puts everything up and copies. Nothing is written in a container that is not the one left behind.
fn fill(
    up: &mut Up,
    settings: &Settings,
    options: &Options,
    mut known: Option<Known>,
    wanted: &Snapshot,
    list: &[Snapshot],
    report: &mut Report,
) -> Result<Filled> {
    up.accept_container = options.accept_container;
    up.mount(options.bwlimit)?;
    let attached = up.attach(false)?;
    up.siblings.doing = "check";
    let uuid = attached.data("uuid").as_str().filter(|u| !u.is_empty());
    let uuid = uuid.ok_or_else(|| Fault::failed("luks-mount attach did not tell the container's UUID"))?;
    let content = inside::read(&settings.container, settings.patience)?;
    let why = objection(known.as_ref(), uuid, &content);
    match &why {
        Some(why) if options.accept_container => {
            report.warn("container-accepted", format!("the container is taken as it is: {why}"));
        }
        Some(why) => return Err(refusal(why)),
        None => {}
    }
    let path = settings.record();
    let accepted = why.is_some() && !content.dates.is_empty();
    known = known.filter(|k| k.container_uuid == uuid);
    let doubt = whole::doubt(&path, &mut known, &attached, accepted)?;
    up.siblings.doing = "room";
    room::check(settings, wanted, &content, options.reserve(settings), report)?;
    up.siblings.doing = "check";
    let mut change = Change::begin(&path, known.as_ref(), uuid, &content, why.is_some())?;
    change.note(&path, |known| known.compare.clone_from(&doubt))?;
    inside::prepare(&settings.container, settings.patience)?;
    let needed: Vec<_> =
        prune::common_date(&content.dates, list).into_iter().chain([wanted.date.as_str()]).collect();
    pins::write(settings, settings.store()?, &needed, report);
    say!(TOOL, "copying {}", wanted.date);
    let copy = copy(up, settings, options, wanted)?;
    report.changed |= copy.changed();
    let mut damaged = whole::noticed(&copy, settings)?;
    if doubt.is_some() {
        damaged.extend(whole::compare(up, settings, report)?);
    }
    change.note(&path, |known| {
        known.compare = None;
        known.checked_at = whole::checked_at(&attached).or(known.checked_at.take());
        known.accepted_at = whole::accepted_at(&attached);
        known.damaged.extend(damaged);
    })?;
    whole::forget_noticed(settings)?;
    let stamped = change.needed(copy.changed());
    if stamped {
        up.siblings.doing = "generation";
        let stamp = Stamp {
            schema: 1,
            generation: change.next.clone(),
            container_uuid: uuid.to_owned(),
            date: wanted.date.clone(),
            id: wanted.id.clone(),
            pushed_at: now(),
        };
        inside::write(&settings.container, settings.patience, &stamp)?;
    }
    let mut dates = content.dates;
    dates.push(wanted.date.clone());
    dates.sort_unstable();
    dates.dedup();
    let prune = prune::due(up, settings, uuid, &dates, list, report)?;
    Ok(Filled {
        change,
        copy,
        stamped,
        needed: prune::common_date(&dates, list).map(str::to_owned),
        dates,
        prune,
    })
}

fn copy(up: &mut Up, settings: &Settings, options: &Options, wanted: &Snapshot) -> Result<Answer> {
    let reserve = options.reserve(settings);
    let args: Vec<OsString> = [
        option("--to", offsite::store(&settings.container)),
        option("--store", settings.store()?),
        option("--date", &wanted.date),
        option("--reserve-bytes", reserve.to_string()),
    ]
    .into_iter()
    .flatten()
    .collect();
    let call =
        Call { step: "copy", tool: "link-sync", action: "copy", args: &args, limit: None, cleanup: false };
    up.siblings.run(&call)?.checked().map_err(|error| larger(error, &settings.profile.name))
}

/// link-sync tells how to make room in a store; this one is a file that can grow.
fn larger(error: anyhow::Error, name: &str) -> anyhow::Error {
    match error.downcast::<Fault>() {
        Ok(mut fault) => {
            if fault.hint.as_ref().is_some_and(|hint| hint.contains("reserve_bytes")) {
                fault.said = false;
                fault.hint = Some(format!(
                    "the container is full. Let less stay in it: [offsite.retention], then `offsite-push prune {name}`. Or make \
                     it larger: `sshfs-mount mount {name}`, `luks-mount grow {name} --size SIZE`, `sshfs-mount unmount {name}`"
                ));
            }
            fault.into()
        }
        Err(other) => other,
    }
}

/// S2 believes in the copy once the container was closed cleanly.
fn confirm(filled: &Filled, down: &Down, last: Last, settings: &Settings, report: &mut Report) -> Result<()> {
    if !down.closed {
        let why =
            "the copy is not confirmed, as the container was not closed cleanly; the next push looks again";
        report.warn("not-confirmed", why);
        return Ok(());
    }
    filled.change.confirm(&settings.record(), filled.stamped, Some(last), filled.dates.clone())?;
    if let Some(needed) = &filled.needed {
        pins::write(settings, settings.store()?, &[needed], report);
    }
    report.changed |= filled.stamped;
    if filled.copy.code == 3 {
        report.set_partial();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_that_is_full_can_grow() {
        let full = Fault::failed("as full as it may be").hint("or set another reserve_bytes").already_said();
        let error = larger(full.into(), "home");
        let fault = error.downcast_ref::<Fault>().unwrap();
        assert!(fault.hint.as_ref().unwrap().contains("luks-mount grow home") && !fault.said);
        let other = larger(Fault::busy("held").hint("wait").already_said().into(), "home");
        assert!(other.downcast_ref::<Fault>().is_some_and(|f| f.said && f.hint.as_deref() == Some("wait")));
    }
}

//! `offsite-push push`: the newest snapshot into the container, and everything down again.

use std::time::{Duration, Instant};

use anyhow::Result;
use common::fault::{Fault, Kind, kind_of};
use common::profile::{Bytes, Layout};
use common::status::{Report, now};
use common::{mutant, say};
use serde_json::{Value, json};

use crate::TOOL;
use crate::copying::{self, Copied};
use crate::generation::{Change, Content, Known, Last, Stamp, objection, refusal};
use crate::layered::Sizes;
use crate::layered::record::Record as Layers;
use crate::layered::sending::Job;
use crate::layers::{Down, Up};
use crate::leftovers::{self, Look};
use crate::open_view::Record;
use crate::settings::{PATIENCE, Settings};
use crate::siblings::Siblings;
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
    /// No image is begun after this.
    pub(crate) until: Option<jiff::Timestamp>,
    /// Of images.
    pub(crate) sizes: Sizes,
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
    let layers =
        known.as_ref().map(|known| Layers::load(&settings.state, &known.container_uuid)).transpose()?;
    let on_its_way = layers.flatten().is_some_and(|layers| layers.unfinished.is_some());
    let nothing_new =
        !options.accept_container && !on_its_way && known.as_ref().is_some_and(|k| k.holds(&wanted.id));
    if let Some(view) = leftovers::open_view(&look, Record::load(settings)?) {
        if !nothing_new {
            return Err(leftovers::view_is_open(&view, siblings));
        }
    } else {
        report.changed = leftovers::clear(&look, siblings, report)?;
    }
    if nothing_new {
        let facts = json!({"date": wanted.date, "id": wanted.id, "base_date": null, "base_by_manifest": false, "sent_bytes": 0,
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

    if settings.profile.offsite.layout == Layout::Layers
        && common::run::program("mksquashfs".as_ref()).is_err()
    {
        return Err(Fault::unavailable("mksquashfs, which makes the images, is not there")
            .hint("apt-get install squashfs-tools")
            .into());
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
        copied_bytes: filled.as_ref().ok().and_then(|f| f.copied.bytes),
    };
    // With layers it may be another one: what was begun goes first.
    let ended = filled.as_ref().ok().and_then(|f| f.copied.ended.clone());
    let facts = match ended.clone() {
        Some((date, id)) => Last { date, id, ..facts },
        None => facts,
    };
    let base_date = filled.as_ref().map_or(Value::Null, |f| json!(f.copied.base_date));
    let by_manifest = filled.as_ref().is_ok_and(|f| f.copied.base_by_manifest);
    let layers = filled.as_ref().map_or(Value::Null, |f| f.copied.layers.clone());
    let unfinished = filled.as_ref().map_or(Value::Null, |f| f.copied.unfinished.clone());
    let prune = filled.as_ref().is_ok_and(|f| f.prune);
    let result = match filled {
        Err(error) => {
            siblings.doing = at;
            Err(error)
        }
        Ok(filled) => confirm(&filled, &down, ended.map(|_| facts.clone()), settings, report),
    };
    let known = Known::load(&settings.record())?;
    if let Some(known) = &known {
        whole::tell(known, report);
    }
    let date = known.and_then(|k| k.date);
    report.set(
        "push",
        json!({"date": facts.date, "id": facts.id, "base_date": base_date, "base_by_manifest": by_manifest, "sent_bytes": facts.sent_bytes,
            "received_bytes": facts.received_bytes, "copied_bytes": facts.copied_bytes,
            "written_bytes": down.written_bytes, "duration_ms": facts.duration_ms, "layers": layers,
            "unfinished": unfinished, "behind": store::newer_than(&list, date.as_deref())}),
    );
    result?;
    // S3 may still be mounted, or the container was not closed cleanly: the copy itself did not fail.
    if let Some(error) = down.error {
        return Err(error);
    }
    if prune && down.closed {
        let options = prune::Options { bwlimit: options.bwlimit, dry_run: false, until: options.until };
        match prune::round(settings, options, &list, siblings, report) {
            Err(error) if !matches!(kind_of(&error), Kind::Interrupted(_)) => {
                prune::not_pruned(&error, report);
            }
            other => other?,
        }
    }
    let time = Duration::from_millis(facts.duration_ms);
    if let Some(date) = unfinished["date"].as_str() {
        let images = &unfinished["images"];
        let message = format!(
            "the time is over: {images} images of {date} are made, and the next push goes on with it"
        );
        report.warn("unfinished", message);
        report.set_partial();
        return Ok(());
    }
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
    copied: Copied,
    /// The container has the new generation.
    stamped: bool,
    /// The dates in it.
    dates: Vec<String>,
    /// What the next push needs here.
    needed: Vec<String>,
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
    let layout = settings.profile.offsite.layout;
    let content = content(settings, known.as_ref(), uuid)?;
    let why = objection(known.as_ref(), uuid, &content);
    match &why {
        Some(why) if options.accept_container => {
            report.warn("container-accepted", format!("the container is taken as it is: {why}"));
        }
        Some(why) => return Err(refusal(why)),
        None => {}
    }
    if layout == Layout::Hardlink && !(content.layered.is_empty() && content.unread.is_empty()) {
        return Err(Fault::config("the container holds dates as lists of images, and takes no more trees")
            .hint("write layout = \"layers\" in [offsite]; for trees, make another container")
            .into());
    }
    let path = settings.record();
    let accepted = why.is_some() && !content.dates.is_empty();
    known = known.filter(|k| k.container_uuid == uuid);
    let doubt = whole::doubt(&path, &mut known, &attached, accepted)?;
    up.siblings.doing = "room";
    room::check(settings, wanted, &content, options.reserve(settings), report)?;
    up.siblings.doing = "check";
    let record = || -> Result<Option<Layers>> {
        Ok(match layout {
            Layout::Hardlink => None,
            Layout::Layers => Some(Layers::load(&settings.state, uuid)?.unwrap_or_else(|| Layers::new(uuid))),
        })
    };
    let layers = record()?;
    let mut change = Change::begin(&path, known.as_ref(), uuid, &content, why.is_some())?;
    change.note(&path, |known| known.compare.clone_from(&doubt))?;
    let unfinished = layers.as_ref().map(Layers::needed).unwrap_or_default();
    let needed: Vec<_> = prune::common_date(&content.dates, list)
        .into_iter()
        .chain([wanted.date.as_str()])
        .chain(unfinished.iter().map(String::as_str))
        .collect();
    pins::write(settings, settings.store()?, &needed, report);
    // Of either layout: what prunes counts in it.
    inside::prepare(&settings.container, settings.patience)?;
    // Before something is laid upon it.
    let compared = match layers.is_some() && doubt.is_some() {
        true => Some(whole::compare(up, settings, uuid, &content, report)?),
        false => None,
    };
    let mut copied = match record()? {
        None => {
            say!(TOOL, "copying {}", wanted.date);
            copying::as_tree(up, options.reserve(settings), wanted, &content.dates)?
        }
        Some(layers) => {
            let (reserve, until) = (options.reserve(settings), options.until);
            let job = Job { wanted, list, reserve, until, sizes: options.sizes };
            copying::as_layers(up, &job, &content, layers, report)?
        }
    };
    report.changed |= copied.changed;
    let mut damaged = std::mem::take(&mut copied.damaged);
    let mended = std::mem::take(&mut copied.mended);
    if doubt.is_some() {
        damaged.extend(match compared {
            Some(compared) => compared,
            None => whole::compare(up, settings, uuid, &content, report)?,
        });
    }
    change.note(&path, |known| {
        known.compare = None;
        known.checked_at = whole::checked_at(&attached).or(known.checked_at.take());
        known.accepted_at = whole::accepted_at(&attached);
        known.damaged.retain(|date, _| !mended.contains(date));
        known.damaged.extend(damaged);
    })?;
    whole::forget_noticed(settings)?;
    let stamped = change.needed(copied.changed);
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
    let dates = std::mem::take(&mut copied.dates);
    let prune = prune::due(up, settings, uuid, &dates, list, report)?;
    let mut needed = std::mem::take(&mut copied.needed);
    needed.extend(prune::common_date(&dates, list).map(str::to_owned));
    Ok(Filled { change, copied, stamped, needed, dates, prune })
}

/// What is in the container. The lists that this machine has noted are not read, if the container is the one left behind, as this
/// machine left it: there may be hundreds, and each costs a round trip.
fn content(settings: &Settings, known: Option<&Known>, uuid: &str) -> Result<Content> {
    let noted = match (settings.profile.offsite.layout, known) {
        (Layout::Layers, Some(known))
            if known.is_settled() && !mutant::active("what-is-noted-is-not-read") =>
        {
            Layers::load(&settings.state, uuid)?
        }
        _ => None,
    };
    let mut noted = noted.map(|record| record.dates).unwrap_or_default();
    noted.retain(|date, _| !known.is_some_and(|known| known.damaged.contains_key(date)));
    let dates: Vec<&String> = noted.keys().collect();
    let mut content = inside::read_but(&settings.container, settings.patience, &dates)?;
    if !content.not_read.is_empty() && objection(known, uuid, &content).is_some() {
        return inside::read(&settings.container, settings.patience);
    }
    for date in std::mem::take(&mut content.not_read) {
        let layers = noted.get(&date).map(|dated| dated.layers.clone());
        content.layered.insert(date, layers.unwrap_or_default());
    }
    Ok(content)
}

/// S2 believes in the copy once the container was closed cleanly.
fn confirm(
    filled: &Filled,
    down: &Down,
    last: Option<Last>,
    settings: &Settings,
    report: &mut Report,
) -> Result<()> {
    if !down.closed {
        let why =
            "the copy is not confirmed, as the container was not closed cleanly; the next push looks again";
        report.warn("not-confirmed", why);
        return Ok(());
    }
    filled.change.confirm(&settings.record(), filled.stamped, last, filled.dates.clone())?;
    let needed: Vec<&str> = filled.needed.iter().map(String::as_str).collect();
    if !needed.is_empty() {
        pins::write(settings, settings.store()?, &needed, report);
    }
    report.changed |= filled.stamped;
    if filled.copied.partial {
        report.set_partial();
    }
    Ok(())
}

//! `offsite-push view` and `unview`: the container open read-only, to look and to restore.
//!
//! `view.json` in the runtime folder says that a view is being opened, then that it is open. It is written before
//! anything is mounted, so that what a killed `view` left is told from a view that somebody uses.

use std::time::Duration;

use anyhow::Result;
use common::fault::{Fault, Kind, kind_of};
use common::say;
use common::status::{Report, now};
use serde_json::{Value, json};

use crate::generation::{Known, objection};
use crate::layers::Up;
use crate::leftovers::{self, Look};
use crate::open_view::{Record, State};
use crate::settings::{PATIENCE, Settings};
use crate::siblings::Siblings;
use crate::{TOOL, inside, shown};

/// How long `unview` waits for a `view` that is being opened.
const OPENING: Duration = Duration::from_secs(60);

/// Opens it.
pub(crate) fn open(settings: &Settings, date: Option<&str>, report: &mut Report) -> Result<()> {
    for key in ["path", "store", "date", "dates", "mount_point", "view"] {
        report.set(key, Value::Null);
    }
    report.set("steps", json!([]));
    let _lock = settings.lock(PATIENCE)?;
    let mut siblings = Siblings::find(settings)?;
    let result = work(settings, date, &mut siblings, report);
    siblings.finish(result.is_ok(), report);
    result
}

fn work(settings: &Settings, date: Option<&str>, siblings: &mut Siblings, report: &mut Report) -> Result<()> {
    let look = Look::take(siblings, false)?;
    let record = Record::load(settings)?;
    if record.as_ref().is_some_and(Record::is_open) && look.serves_a_view() {
        return tell(settings, date, report);
    }
    if let Some(view) = leftovers::open_view(&look, record) {
        return Err(leftovers::view_is_open(&view, siblings));
    }
    leftovers::clear(&look, siblings, report)?;
    let mut record = Record { state: State::Opening, since: now() };
    record.save(settings)?;
    let mut up = Up::new(siblings);
    let opened = (|| {
        up.mount(None)?;
        let attached = up.attach(true)?;
        judge(settings, attached.data("uuid").as_str().unwrap_or_default(), report)?;
        tell(settings, date, report)?;
        record.state = State::Open;
        record.save(settings)
    })();
    match opened {
        Ok(()) => up.keep(),
        Err(error) => {
            if up.down().nothing_up {
                Record::remove(settings)?;
            }
            return Err(error);
        }
    }
    report.changed = true;
    Ok(())
}

/// An older container may be just what somebody wants to see: told, not refused.
fn judge(settings: &Settings, uuid: &str, report: &mut Report) -> Result<()> {
    let content = inside::read(&settings.container, settings.patience)?;
    // A record that is damaged must not keep anybody from looking.
    let known = Known::load(&settings.record()).ok().flatten();
    if let Some(why) = objection(known.as_ref(), uuid, &content) {
        report.warn("container-not-known", format!("this is not the container that was left behind: {why}"));
    }
    Ok(())
}

/// Shows what has to be shown: `date`, or all dates. Says where it is.
fn tell(settings: &Settings, date: Option<&str>, report: &mut Report) -> Result<()> {
    let content = inside::read(&settings.container, settings.patience)?;
    let found = match date {
        None | Some("latest") => content.dates.last(),
        Some(date) => content.dates.iter().find(|d| *d == date),
    };
    let Some(found) = found.cloned() else {
        let dates = if content.dates.is_empty() { "none at all".into() } else { content.dates.join(", ") };
        return Err(Fault::config(match date {
            None | Some("latest") => "the container holds no snapshot".into(),
            Some(date) => format!("the container holds no snapshot {date}: there are {dates}"),
        })
        .into());
    };
    let store = shown::store(settings, &content);
    let (found, seen) = match content.has_layers() {
        false => (found, content.dates.clone()),
        true => show(settings, found, date.is_none(), report)?,
    };
    let path = store.join(&found);
    report.set("date", found.clone());
    report.set_text("path", path.as_os_str());
    report.set_text("store", store.as_os_str());
    report.set_text("mount_point", settings.container.as_os_str());
    for date in &seen {
        say!(TOOL, "{}", store.join(date).display());
    }
    say!(TOOL, "open read-only at {}; `{}` closes it", path.display(), settings.command(TOOL, "unview"));
    let name = &settings.profile.name;
    say!(TOOL, "`link-sync restore {name} --store {} --path … --to …` brings back from it", store.display());
    report.set("dates", content.dates);
    Ok(())
}

/// Shows the date, or all of them; the newest that can be seen, and all of these. One of many that cannot be shown is told.
fn show(settings: &Settings, date: String, all: bool, report: &mut Report) -> Result<(String, Vec<String>)> {
    let wanted = if all { Vec::new() } else { vec![date.clone()] };
    let shown = shown::show(settings, &wanted)?;
    report.set("view", shown.describe());
    for (date, why) in &shown.failed {
        report.warn("not-shown", format!("{date} cannot be shown: {why}"));
    }
    let Some(newest) = shown.dates.last() else {
        let why = shown.failed.get(&date).map_or("nothing is there", String::as_str);
        return Err(Fault::failed(format!("{date} cannot be shown: {why}"))
            .hint("`offsite-push verify` tells which images are damaged; other dates may do without them")
            .into());
    };
    if !shown.failed.is_empty() {
        report.set_partial();
    }
    Ok((if all { newest.clone() } else { date }, shown.dates))
}

/// Closes it; with `if_killed` only what nobody is there for any more.
pub(crate) fn close(settings: &Settings, if_killed: bool, report: &mut Report) -> Result<()> {
    report.set("steps", json!([]));
    let opening = Record::load(settings)?.is_some();
    let patience = if opening && !if_killed { OPENING } else { Duration::from_secs(1) };
    let _lock = match settings.lock(patience) {
        // Without a record there is no view: what is up belongs to a push that lives.
        Err(e) if kind_of(&e) == Kind::Busy && (!opening || if_killed) => {
            say!(TOOL, "a push is at work: nothing to close");
            return Ok(());
        }
        other => other?,
    };
    let mut siblings = Siblings::find(settings)?;
    let result = clear(settings, if_killed, &mut siblings, report);
    siblings.finish(false, report);
    result
}

fn clear(settings: &Settings, if_killed: bool, siblings: &mut Siblings, report: &mut Report) -> Result<()> {
    let look = Look::take(siblings, true)?;
    let view = Record::load(settings)?;
    if if_killed && leftovers::open_view(&look, view.clone()).is_some() {
        say!(TOOL, "a view is open and stays open");
        return Ok(());
    }
    if view.is_some_and(|v| v.is_open()) {
        let container = look.container_up() || shown::is_up(settings)?;
        let down = Up::found(siblings, look.s3_up(), container).down();
        if let Some(error) = down.error.filter(|_| !down.nothing_up) {
            return Err(error);
        }
        Record::remove(settings)?;
        report.changed = true;
        say!(TOOL, "closed");
        return Ok(());
    }
    report.changed = leftovers::clear(&look, siblings, report)?;
    if !report.changed {
        say!(TOOL, "nothing is open");
    }
    Ok(())
}

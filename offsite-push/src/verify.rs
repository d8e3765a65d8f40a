//! `offsite-push verify`: is the container the one left behind, and is what is in it what S2 published?
//!
//! The container is opened read-only, so a verification changes nothing in it, and everything is taken down again.
//! Contents are compared with the checksums on S2, never with ones inside: whoever holds the image can put an older
//! one back, which is right in itself. Only for dates that S2 no longer has, the container's own lines have to do.

use std::ffi::OsString;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use common::fault::Fault;
use common::status::{Report, now};
use common::{dates, durable, say};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::generation::{Known, objection};
use crate::layered::checking::{self, Checked, Wrong};
use crate::layers::Up;
use crate::leftovers::{self, Look};
use crate::open_view::Record;
use crate::settings::{PATIENCE, Settings};
use crate::siblings::{Answer, Call, Siblings, option};
use crate::whole::{self, NO_CONTENTS};
use crate::{TOOL, inside, shown};

/// What the command line says.
#[derive(Debug)]
pub(crate) struct Options {
    /// A date, `latest`, or `all`.
    pub(crate) date: String,
    /// The share of files that is read, as link-sync takes it.
    pub(crate) sample: String,
    /// Which ones.
    pub(crate) seed: Option<u64>,
    /// Files of layers are read where they are shown, too.
    pub(crate) contents: bool,
}

/// The last verification, `offsite-verify.json` in the state folder. Keys are only ever added.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub(crate) struct Verified {
    /// When it ended, RFC 3339 UTC.
    pub(crate) verified_at: String,
    /// `all`, or the one date.
    pub(crate) date: String,
    /// How many snapshots that were.
    pub(crate) dates: u64,
    /// Of 100 distinct files, so many were read.
    pub(crate) sample_percent: f64,
    /// Bytes read.
    pub(crate) bytes_read: u64,
    /// What was wrong.
    pub(crate) findings: u64,
    /// It was the container that was left behind.
    pub(crate) fresh: bool,
}

impl Verified {
    fn path(settings: &Settings) -> PathBuf {
        settings.state.join("offsite-verify.json")
    }

    /// The record, if there is one that can be read.
    pub(crate) fn load(settings: &Settings) -> Option<Verified> {
        std::fs::read(Verified::path(settings)).ok().and_then(|text| serde_json::from_slice(&text).ok())
    }

    fn save(&self, settings: &Settings) -> Result<()> {
        durable::write(&Verified::path(settings), &serde_json::to_vec(self)?, 0o600)
            .context("the verification could not be recorded")
    }
}

/// Does it.
pub(crate) fn run(settings: &Settings, options: &Options, report: &mut Report) -> Result<()> {
    for key in ["store", "fresh", "not_fresh_because", "verify", "layers", "seed", "view", "received_bytes"] {
        report.set(key, Value::Null);
    }
    report.set("steps", json!([]));
    let _lock = settings.lock(PATIENCE)?;
    let mut siblings = Siblings::find(settings)?;
    let result = work(settings, options, &mut siblings, report);
    siblings.finish(false, report);
    result
}

fn work(settings: &Settings, options: &Options, siblings: &mut Siblings, report: &mut Report) -> Result<()> {
    let store = settings.store()?;
    report.set_text("store", store.as_os_str());
    let look = Look::take(siblings, false)?;
    if let Some(view) = leftovers::open_view(&look, Record::load(settings)?) {
        return Err(leftovers::view_is_open(&view, siblings));
    }
    report.changed = leftovers::clear(&look, siblings, report)?;
    let mut up = Up::new(siblings);
    let looked = look_inside(&mut up, settings, options, report);
    let down = up.down();
    drop(up);
    report.set("received_bytes", down.received_bytes);
    let Looked { why, answer, layers, date, dates } = looked?;
    report.set("fresh", why.is_none());
    report.set("not_fresh_because", why.clone());
    let data = answer.as_ref().map_or(Value::Null, Answer::all_data);
    let wrong = layers.as_ref().map_or(0, |layers| layers.wrong.len() as u64);
    if data["dates"].is_array() || layers.is_some() {
        report.set("verify", data.clone());
        let number = |key: &str| data[key].as_u64().unwrap_or(0);
        let verified = Verified {
            verified_at: now(),
            date,
            dates: data["dates"].as_array().map_or(dates, |d| d.len() as u64),
            sample_percent: data["sample_percent"]
                .as_f64()
                .filter(|_| layers.is_none())
                .unwrap_or(options.percent()),
            bytes_read: number("bytes_read"),
            findings: number("findings_total") + wrong,
            fresh: why.is_none(),
        };
        verified.save(settings)?;
        let whole = answer.as_ref().is_some_and(Answer::done) && !report.is_partial();
        if options.date == "all" && why.is_none() && verified.findings == 0 && whole {
            forget(settings, &data)?;
        }
    }
    if let Some(layers) = layers {
        note(settings, &layers)?;
        report.set("layers", json!(layers));
    }
    if let Some(error) = down.error {
        return Err(error);
    }
    let damaged = answer.and_then(|answer| answer.checked().err());
    let damaged = match (wrong, damaged) {
        (0, damaged) => damaged,
        (n, damaged) => {
            let also = damaged.map(|e| format!("; and {e:#}")).unwrap_or_default();
            let message = format!("{n} images or large files in the container are not what was sent{also}");
            Some(
                Fault::failed(message)
                    .hint("data.layers.wrong names them and their dates. New dates are not laid upon them; the disk of S3 may be failing")
                    .into(),
            )
        }
    };
    match (why, damaged) {
        (Some(why), damaged) => {
            let also = damaged.map(|e| format!("; and {e:#}")).unwrap_or_default();
            let message = format!("this is not the container that was left behind: {why}{also}");
            Err(Fault::failed(message)
                .hint("look at it with `offsite-push view`; was S3's disk restored?")
                .into())
        }
        (None, Some(error)) => Err(error),
        (None, None) => {
            say!(TOOL, "the container is the one that was left behind, and what it holds is what was pushed");
            Ok(())
        }
    }
}

/// All dates are as they were pushed, so nothing more is to be told of what was damaged. A date of which S2 has no checksums any more
/// was not wholly compared.
fn forget(settings: &Settings, data: &Value) -> Result<()> {
    let Some(mut known) = Known::load(&settings.record())? else { return Ok(()) };
    if known.damaged.is_empty() && known.compare.is_none() {
        return Ok(());
    }
    let not = |key: &str, date: &str| data[key].as_array().is_some_and(|all| all.iter().any(|d| d == date));
    known.damaged.retain(|date, _| not("weaker_dates", date) || not("skipped_dates", date));
    known.compare = None;
    known.save(&settings.record())
}

/// What was found.
struct Looked {
    /// Why it is not the container left behind.
    why: Option<String>,
    /// What link-sync said; `None` if no date can be shown here.
    answer: Option<Answer>,
    /// What became of images; `None` if there are none.
    layers: Option<Checked>,
    /// `all`, or the date that was meant.
    date: String,
    /// How many dates there are to look at.
    dates: u64,
}

impl Options {
    fn percent(&self) -> f64 {
        self.sample.trim_end_matches('%').parse().unwrap_or(100.0)
    }
}

/// Opens the container and compares.
fn look_inside(up: &mut Up, settings: &Settings, options: &Options, report: &mut Report) -> Result<Looked> {
    up.mount(None)?;
    let attached = up.attach(true)?;
    let uuid = attached.data("uuid").as_str().unwrap_or_default();
    let content = inside::read(&settings.container, settings.patience)?;
    let known = Known::load(&settings.record())?;
    let why = objection(known.as_ref(), uuid, &content);
    if why.is_none() {
        whole::note_unread(settings, &content)?;
    }
    let mut date = options.date.clone();
    let is_word = date == "all" || date == "latest" && !content.has_layers();
    if !is_word && !content.dates.is_empty() {
        date = dates::resolve(&date, &content.dates, "snapshot", "the container")?;
    }
    let dates: Vec<String> = content.dates.iter().filter(|d| date == "all" || **d == date).cloned().collect();
    let mut looked =
        Looked { why, answer: None, layers: None, date: date.clone(), dates: dates.len() as u64 };
    let (mut sample, mut seed) = (options.sample.as_str(), options.seed);
    if content.has_layers() {
        seed = Some(seed.map_or_else(random, Ok)?);
        report.set("seed", seed);
        say!(TOOL, "hashing images");
        let sample_of = (options.percent(), seed.unwrap_or_default());
        looked.layers = Some(checking::check(up.siblings, &content, uuid, &dates, sample_of)?);
        if !show(settings, &dates, looked.layers.as_mut(), report)? {
            return Ok(looked);
        }
        if !options.contents && dates.iter().all(|date| content.layered.contains_key(date)) {
            sample = NO_CONTENTS;
        }
    }
    let mut args: Vec<OsString> = [
        option("--store", shown::store(settings, &content)),
        option("--against", settings.store()?),
        option("--date", &date),
        option("--sample", sample),
    ]
    .into_iter()
    .flatten()
    .collect();
    if let Some(seed) = seed {
        args.extend(option("--seed", seed.to_string()));
    }
    say!(TOOL, "verifying against {}", settings.store()?.display());
    let call = Call {
        step: "verify",
        tool: "link-sync",
        action: "verify",
        args: &args,
        limit: None,
        cleanup: false,
    };
    let answer = up.siblings.run(&call)?;
    if content.has_layers() {
        whole::note(settings, uuid, &content, &answer.all_data())?;
    }
    looked.answer = Some(answer);
    Ok(looked)
}

/// Shows the dates; false if none can be. One of many that cannot be is damaged, unless it is this machine's kernel that cannot.
fn show(
    settings: &Settings,
    dates: &[String],
    layers: Option<&mut Checked>,
    report: &mut Report,
) -> Result<bool> {
    let shown = shown::show(settings, dates)?;
    report.set("view", shown.describe());
    if shown.dates.is_empty() && shown.failed.values().all(|why| why.contains("CONFIG_SQUASHFS_XATTR")) {
        let why = shown.failed.values().next().map_or("there is none", String::as_str);
        report.warn("not-compared", format!("no date can be shown, so only images were hashed: {why}"));
        report.set_partial();
        return Ok(false);
    }
    if let Some(layers) = layers {
        layers.wrong.extend(shown.failed.iter().map(|(date, why)| Wrong {
            layer: format!("the view of {date}"),
            why: why.clone(),
            dates: vec![date.clone()],
        }));
    }
    Ok(!shown.dates.is_empty())
}

/// Notes the dates that are damaged, for each push to tell.
fn note(settings: &Settings, layers: &Checked) -> Result<()> {
    let damaged = layers.by_date();
    let Some(mut known) = Known::load(&settings.record())?.filter(|_| !damaged.is_empty()) else {
        return Ok(());
    };
    known.damaged.extend(damaged);
    known.save(&settings.record())
}

fn random() -> Result<u64> {
    let digits = common::record::random_id()?;
    u64::from_str_radix(digits.get(..15).unwrap_or_default(), 16).context("no random number")
}

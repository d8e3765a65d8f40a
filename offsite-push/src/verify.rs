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
use common::{durable, offsite, say};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::generation::{Known, objection};
use crate::layers::Up;
use crate::leftovers::{self, Look};
use crate::open_view::Record;
use crate::settings::{PATIENCE, Settings};
use crate::siblings::{Answer, Call, Siblings, option};
use crate::{TOOL, inside};

/// What the command line says.
#[derive(Debug)]
pub(crate) struct Options {
    /// A date, `latest`, or `all`.
    pub(crate) date: String,
    /// The share of files that is read, as link-sync takes it.
    pub(crate) sample: String,
    /// Which ones.
    pub(crate) seed: Option<u64>,
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
    for key in ["store", "fresh", "not_fresh_because", "verify", "received_bytes"] {
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
    let looked = look_inside(&mut up, settings, options);
    let down = up.down();
    drop(up);
    report.set("received_bytes", down.received_bytes);
    let (why, answer) = looked?;
    report.set("fresh", why.is_none());
    report.set("not_fresh_because", why.clone());
    let data = answer.all_data();
    if data["dates"].is_array() {
        report.set("verify", data.clone());
        let number = |key: &str| data[key].as_u64().unwrap_or(0);
        let verified = Verified {
            verified_at: now(),
            date: options.date.clone(),
            dates: data["dates"].as_array().map_or(0, |d| d.len() as u64),
            sample_percent: data["sample_percent"].as_f64().unwrap_or(0.0),
            bytes_read: number("bytes_read"),
            findings: number("findings_total"),
            fresh: why.is_none(),
        };
        verified.save(settings)?;
        if options.date == "all" && why.is_none() && verified.findings == 0 && answer.done() {
            forget(settings, &data)?;
        }
    }
    if let Some(error) = down.error {
        return Err(error);
    }
    let damaged = answer.checked().err();
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

/// Opens the container and compares; why it is not the one left behind, and what link-sync said.
fn look_inside(up: &mut Up, settings: &Settings, options: &Options) -> Result<(Option<String>, Answer)> {
    up.mount(None)?;
    let attached = up.attach(true)?;
    let uuid = attached.data("uuid").as_str().unwrap_or_default();
    let content = inside::read(&settings.container, settings.patience)?;
    let known = Known::load(&settings.record())?;
    let why = objection(known.as_ref(), uuid, &content);
    let mut args: Vec<OsString> = [
        option("--store", offsite::store(&settings.container)),
        option("--against", settings.store()?),
        option("--date", &options.date),
        option("--sample", &options.sample),
    ]
    .into_iter()
    .flatten()
    .collect();
    if let Some(seed) = options.seed {
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
    Ok((why, up.siblings.run(&call)?))
}

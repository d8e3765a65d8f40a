//! `offsite-push status`: what was pushed, what is waiting, what is up. Changes nothing, holds nothing.

use std::time::Duration;

use anyhow::Result;
use common::fault::{Kind, kind_of};
use common::lock::Lock;
use common::say;
use common::status::Report;
use serde_json::{Value, json};

use crate::generation::Known;
use crate::layered::record::Record as Layers;
use crate::open_view::Record;
use crate::promise::Promise;
use crate::settings::Settings;
use crate::siblings::{Call, Limit, Siblings};
use crate::verify::Verified;
use crate::{TOOL, store, tell};

/// The longest one look may take.
const LOOK: Duration = Duration::from_secs(60);

/// Does it.
pub(crate) fn run(settings: &Settings, report: &mut Report) -> Result<()> {
    let known = Known::load(&settings.record())?;
    let last = known.as_ref().and_then(|k| k.last.clone());
    let list = match settings.store().and_then(|dir| store::list(dir, report)) {
        Ok(list) => Some(list),
        Err(error) => {
            report.warn("no-store", format!("{error:#}"));
            None
        }
    };
    let date = known.as_ref().and_then(|k| k.date.as_deref());
    let behind = list.as_ref().map(|l| store::newer_than(l, date));
    let newest = list.as_ref().and_then(|l| l.last());
    report.set("newest", newest.map_or(Value::Null, |s| json!({"date": s.date, "id": s.id})));
    report.set("behind", json!(behind));
    report.set("last_push", json!(last));
    report.set("last_verify", json!(Verified::load(settings)));
    report.set("unconfirmed", known.as_ref().is_some_and(|k| k.next_generation.is_some()));
    report.set("dates", json!(known.as_ref().and_then(|k| k.dates.as_ref())));
    let layers = known.as_ref().and_then(|k| Layers::load(&settings.state, &k.container_uuid).ok().flatten());
    let unfinished = layers.and_then(|layers| layers.unfinished);
    if let Some(unfinished) = &unfinished {
        let n = unfinished.images.len();
        say!(TOOL, "{n} images of {} are made; the next push goes on with it", unfinished.date);
    }
    report.set("unfinished", json!(unfinished.map(|unfinished| unfinished.told())));
    report.set("damaged", json!(known.as_ref().map(|k| &k.damaged)));
    if let Some(known) = &known {
        for (date, what) in &known.damaged {
            say!(TOOL, "in the container, {date} is not whole: {what}");
        }
    }
    let promise = Promise::load(settings);
    if let Some(promise) = promise.as_ref().filter(|p| !p.fsync) {
        let message = format!(
            "the sftp server of {} had no fsync at {}: what was pushed may be lost there if it loses power",
            settings.far_name(),
            promise.at
        );
        report.warn("no-fsync", message);
    }
    report.set("s3_fsync", json!(promise.map(|p| p.fsync)));
    let age = date.and_then(store::age_seconds);
    report.set("age_seconds", json!(age));
    report.set("container_uuid", json!(known.as_ref().map(|k| &k.container_uuid)));
    let lock = settings.state.join("offsite.lock");
    // Only the moment of looking: a push that begins now waits longer than that.
    let busy = Lock::shared(&lock, "the off-site copy").is_err_and(|e| kind_of(&e) == Kind::Busy);
    report.set("pushing", busy);
    report.set("view", Record::load(settings)?.map_or(Value::Null, |r| r.describe()));

    let mut siblings = Siblings::find(settings)?;
    let container = ask(&mut siblings, "status-container", "luks-mount", report)?;
    let s3 = match settings.s3 {
        Some(_) => ask(&mut siblings, "status-s3", "sshfs-mount", report)?,
        None => Value::Null,
    };
    let state = |v: &Value| v["state"].as_str().unwrap_or("unknown").to_owned();
    match &last {
        Some(last) => say!(
            TOOL,
            "{} was pushed at {}, {}in {}",
            last.date,
            last.pushed_at,
            last.sent_bytes.map_or(String::new(), |sent| format!("{} sent ", tell::bytes(sent))),
            tell::time(Duration::from_millis(last.duration_ms))
        ),
        None => say!(TOOL, "nothing was pushed yet"),
    }
    if let Some(dates) = known.as_ref().and_then(|k| k.dates.as_ref()).filter(|d| !d.is_empty()) {
        say!(TOOL, "the container holds {}: {}", dates.len(), dates.join(", "));
    }
    if let Some(age) = age {
        say!(TOOL, "the newest in it is {} old", tell::time(Duration::from_secs(age)));
    }
    if let Some(verified) = Verified::load(settings) {
        let wrong = match (verified.fresh, verified.findings) {
            (true, 0) => "all as pushed".to_owned(),
            (true, 1) => "1 thing was wrong".to_owned(),
            (true, n) => format!("{n} things were wrong"),
            (false, _) => "it was not the container left behind".to_owned(),
        };
        say!(
            TOOL,
            "verified at {}, {} % of the files: {wrong}",
            verified.verified_at,
            verified.sample_percent
        );
    }
    if let Some(behind) = behind {
        say!(TOOL, "{behind} newer snapshots wait to be pushed");
    }
    say!(
        TOOL,
        "container: {}; S3: {}",
        state(&container),
        if s3.is_null() { "-".into() } else { state(&s3) }
    );
    report.set("container", container);
    report.set("s3", s3);
    siblings.finish(false, report);
    Ok(())
}

fn ask(
    siblings: &mut Siblings,
    step: &'static str,
    tool: &'static str,
    report: &mut Report,
) -> Result<Value> {
    let call =
        Call { step, tool, action: "status", args: &[], limit: Some(Limit::Time(LOOK)), cleanup: false };
    let answer = siblings.run(&call)?;
    match answer.done() {
        true => Ok(answer.all_data()),
        false => {
            report.warn("state-not-told", format!("{:#}", answer.fault()));
            Ok(Value::Null)
        }
    }
}

//! Whether what the container holds is whole.
//! What a push notices, what a repair of its file system may have cost, and that neither is forgotten.
//!
//! A repair makes a file system consistent, not complete: what cannot be saved is taken out, without a list. So after one, whoever
//! made it, the names, sizes and attributes of all dates are compared with S2's own before anything is confirmed
//! (`link-sync verify --against`, which reads no contents then). That it is still to be done is noted on S2 before anything
//! else happens, and so is what was found: each push tells it until a verification finds nothing wrong.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use common::profile::Layout;
use common::status::Report;
use common::{durable, mutant, offsite, say};
use serde::Deserialize;
use serde_json::Value;

use crate::TOOL;
use crate::generation::{Content, Known};
use crate::layered::below;
use crate::layered::record::Record;
use crate::layers::Up;
use crate::settings::Settings;
use crate::siblings::{Answer, Call, option};

/// Findings that are looked at one by one.
const LISTED: &str = "10000";

/// The smallest share: one file in a hundred million is read.
pub(crate) const NO_CONTENTS: &str = "0.000001%";

/// Paths named of one date.
const NAMED: usize = 3;

/// What `link-sync copy` found lacking in its base, written before that copy was published.
const LACKS: &str = "copy-lacks.json";

#[derive(Deserialize)]
struct Lacks {
    to: PathBuf,
    base_date: String,
    date: String,
    lacking_paths: u64,
}

/// What is damaged, by date.
pub(crate) type Damaged = BTreeMap<String, String>;

/// Why all names are to be compared, if they are: it was to be done before, `luks-mount attach` has repaired the file
/// system, or somebody has checked it since it was last left. `accepted`: a person took the container as it is.
fn reason(known: Option<&Known>, attached: &Answer, accepted: bool) -> Option<String> {
    if mutant::active("a-repair-is-followed-by-a-look") {
        return None;
    }
    if let Some(before) = known.and_then(|k| k.compare.clone()) {
        return Some(before);
    }
    if attached.data("fsck") == "repaired" {
        return Some("its file system was repaired when it was opened".into());
    }
    let left = known.and_then(|k| k.checked_at.as_deref());
    let found = attached.data("checked_before").as_str();
    if let Some((_, found)) = left.zip(found).filter(|(left, found)| left != found) {
        return Some(format!("its file system was checked by somebody, {found}, and may have been repaired"));
    }
    let taken = accepted_at(attached).filter(|_| !mutant::active("what-was-accepted-is-compared"));
    if let Some((known, when)) = known.zip(taken)
        && known.accepted_at.as_ref() != Some(&when)
    {
        return Some(format!("it was taken as it is, {when}, though it was not as this machine left it"));
    }
    accepted.then(|| "it was taken as it is".into())
}

/// Why all names of the opened container are to be compared, if they are; that is noted at once, as the next opening does
/// not tell it again.
pub(crate) fn doubt(
    path: &Path,
    known: &mut Option<Known>,
    attached: &Answer,
    accepted: bool,
) -> Result<Option<String>> {
    let why = reason(known.as_ref(), attached, accepted);
    if let (Some(known), Some(why)) = (known.as_mut(), &why)
        && known.compare.is_none()
    {
        known.compare = Some(why.clone());
        known.save(path)?;
    }
    Ok(why)
}

/// When it was last opened for writing though it was not as this machine left it.
pub(crate) fn accepted_at(attached: &Answer) -> Option<String> {
    attached.data("accepted_at").as_str().map(str::to_owned)
}

/// When the file system was last checked, as it is left now.
pub(crate) fn checked_at(attached: &Answer) -> Option<String> {
    attached.data("checked_at").as_str().map(str::to_owned)
}

/// Compares the names, sizes and attributes of all dates with S2's own, and the sizes of images; what is not as it was, by date.
pub(crate) fn compare(
    up: &mut Up,
    settings: &Settings,
    uuid: &str,
    content: &Content,
    report: &mut Report,
) -> Result<Damaged> {
    say!(TOOL, "comparing the names of all dates in the container with those here");
    let mut damaged = match content.layered.is_empty() {
        true => Damaged::new(),
        false => {
            let record = Record::load(&settings.state, uuid)?;
            below::compare(up.siblings, &content.layered, record.as_ref(), usize::MAX)?
        }
    };
    if content.trees().next().is_some() || content.layered.is_empty() {
        let found = compare_trees(up, settings, report)?;
        let trees = by_date(&found);
        // What is laid upon a tree shows what that has lost.
        for (date, layers) in &content.layered {
            let below = layers.iter().find_map(|name| {
                trees.get_key_value(name.strip_prefix("snapshots/").and_then(|name| name.strip_suffix('/'))?)
            });
            if let Some((tree, what)) = below {
                damaged
                    .entry(date.clone())
                    .or_insert_with(|| format!("it lies upon {tree}, in which {what}"));
            }
        }
        damaged.extend(trees);
        if settings.profile.offsite.layout == Layout::Layers {
            note(settings, uuid, content, &found)?;
        }
    }
    Ok(damaged)
}

/// Notes what link-sync found in the container, so that the next date has it again.
pub(crate) fn note(settings: &Settings, uuid: &str, content: &Content, found: &Value) -> Result<()> {
    if found["findings_total"].as_u64().unwrap_or(0) == 0 {
        return Ok(());
    }
    let mut record = Record::load(&settings.state, uuid)?.unwrap_or_else(|| Record::new(uuid));
    record.doubt(found, &content.layered);
    record.save(&settings.state)
}

/// Notes the dates whose lists cannot be read: the next push reads them, and writes again what this machine knows of them.
pub(crate) fn note_unread(settings: &Settings, content: &Content) -> Result<()> {
    let path = settings.record();
    let Some(mut known) = Known::load(&path)?.filter(|_| !content.unread.is_empty()) else { return Ok(()) };
    let told =
        content.unread.iter().map(|(name, why)| (name.clone(), format!("its list cannot be read: {why}")));
    known.damaged.extend(told);
    known.save(&path)
}

fn compare_trees(up: &mut Up, settings: &Settings, report: &mut Report) -> Result<Value> {
    let args: Vec<OsString> = [
        option("--store", offsite::store(&settings.container)),
        option("--against", settings.store()?),
        option("--date", "all"),
        option("--sample", NO_CONTENTS),
        option("--limit", LISTED),
    ]
    .into_iter()
    .flatten()
    .collect();
    let answer = up.siblings.run(&Call {
        step: "compare",
        tool: "link-sync",
        action: "verify",
        args: &args,
        limit: None,
        cleanup: false,
    })?;
    let data = answer.all_data();
    if !data["dates"].is_array() {
        return Err(answer.fault());
    }
    let weaker = texts(&data["weaker_dates"]);
    if !weaker.is_empty() {
        let message = format!(
            "the store here no longer has {}, so nothing tells all names of these dates: only what was new in them could be compared",
            weaker.join(", ")
        );
        report.warn("not-all-compared", message);
    }
    Ok(data)
}

/// What link-sync found, by date.
fn by_date(data: &Value) -> Damaged {
    let mut all: BTreeMap<String, (u64, Vec<String>)> = BTreeMap::new();
    let findings = data["findings"].as_array().cloned().unwrap_or_default();
    for finding in &findings {
        let paths = texts(&finding["paths"]);
        for date in texts(&finding["dates"]) {
            let (count, names) = all.entry(date).or_default();
            *count += paths.len().max(1) as u64;
            names
                .extend(paths.iter().filter(|p| !p.is_empty()).take(NAMED - names.len().min(NAMED)).cloned());
        }
    }
    let more = data["findings_total"].as_u64().is_some_and(|total| total > findings.len() as u64);
    if more {
        // Nobody has said where the others are.
        for date in texts(&data["dates"]) {
            all.entry(date).or_default();
        }
    }
    let said = |(date, (count, names)): (String, (u64, Vec<String>))| {
        let more = if more { " or more" } else { "" };
        let names = if names.is_empty() { String::new() } else { format!(": {}", names.join(", ")) };
        (date, format!("{count}{more} paths are missing, or are not what was copied{names}"))
    };
    all.into_iter().map(said).collect()
}

/// What the copying itself has noticed, now or before a push was cut off.
pub(crate) fn noticed(copy: &Answer, settings: &Settings) -> Result<Damaged> {
    let mut damaged = Damaged::new();
    if let Some(text) = durable::read(&settings.state.join(LACKS))? {
        let lacks: Lacks = serde_json::from_slice(&text).with_context(|| format!("{LACKS} is damaged"))?;
        if lacks.to == offsite::store(&settings.container) {
            let (n, date) = (lacks.lacking_paths, lacks.date);
            let what = format!("{n} paths were missing when {date} was copied, and were sent again for that");
            damaged.insert(lacks.base_date, what);
        }
    }
    for date in texts(copy.data("damaged_dates")) {
        damaged.insert(date, "its description cannot be read".into());
    }
    Ok(damaged)
}

/// It is in S2's own record now.
pub(crate) fn forget_noticed(settings: &Settings) -> Result<()> {
    durable::remove(&settings.state.join(LACKS)).map(drop)
}

/// Tells what is not whole, each time.
pub(crate) fn tell(known: &Known, report: &mut Report) {
    if let Some(why) = &known.compare {
        let message = format!("the names in the container are still to be compared, as {why}");
        report.warn("not-compared", message);
        report.set_partial();
    }
    if known.damaged.is_empty() || mutant::active("damage-is-told-each-time") {
        return;
    }
    let list: Vec<_> = known.damaged.iter().map(|(date, what)| format!("{date}: {what}")).collect();
    let message = format!(
        "in the container, these dates are not whole: {}. `offsite-push verify` shows all of it; this is told until a \
         verification of all dates finds nothing wrong, or until they are pruned",
        list.join("; ")
    );
    report.warn("container-damaged", message);
    report.set_partial();
}

fn texts(value: &Value) -> Vec<String> {
    value.as_array().into_iter().flatten().filter_map(|v| v.as_str().map(str::to_owned)).collect()
}

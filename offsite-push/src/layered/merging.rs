//! Images between two dates that stay, made one where most of what they hold is superseded: anew, from the snapshots in the store here.
//!
//! Nothing published is written to: the one image is compared with those whose place it is to take, as both are seen through an
//! overlay (the store here may have lost what the container still has); sent beside them; then each list that has them gets it in their
//! place, by one rename, and what no list needs any more goes. Cut anywhere in between, every list shows what it showed, and the next
//! prune goes on. What such an image costs is at most a quarter of what it replaces, which was sent once.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result};
use common::fault::{Kind, kind_of};
use common::profile::Bytes;
use common::status::Report;
use common::{mutant, say};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::making::{Facts, Order, Sizes, Workshop};
use super::record::{Image, Merging, Record};
use super::{LARGE, TREES, ask};
use crate::lease_keeper::Keeper;
use crate::settings::Settings;
use crate::siblings::Siblings;
use crate::store::Snapshot;
use crate::{TOOL, room, shown, tell};

/// So much of what the images hold must be superseded that the new one is no more than this part of them.
const PART: u64 = 4;

/// Images with less than that in all stay as they are.
const LITTLE: u64 = 1 << 20;

/// What was made one.
#[derive(Debug, Serialize)]
pub(crate) struct Merged {
    /// The date whose image it is.
    date: String,
    /// What that lies upon.
    base_date: String,
    /// How many images it took the place of, and their bytes.
    images: usize,
    /// See `images`.
    images_bytes: u64,
    /// Its own.
    bytes: u64,
}

/// What may be made one.
#[derive(Debug, PartialEq, Eq)]
struct Gap {
    date: String,
    base: String,
    /// The images between, the newest first.
    images: Vec<String>,
}

#[derive(Deserialize)]
struct Lists {
    dates: Vec<List>,
}

#[derive(Deserialize)]
struct List {
    date: String,
    layers: Vec<String>,
}

/// What there is to go by.
#[derive(Debug)]
pub(crate) struct Job<'j> {
    /// The container.
    pub(crate) uuid: &'j str,
    /// What the store here has.
    pub(crate) list: &'j [Snapshot],
    /// Room that stays free in the container.
    pub(crate) reserve: u64,
    /// Nothing is begun after this.
    pub(crate) until: Option<jiff::Timestamp>,
}

/// What has become of a gap.
enum Outcome {
    Merged(Merged),
    /// It is not worth it, or cannot be: nobody needs to look again.
    Stays,
}

/// Notes, before they go, where images may become one: should this be cut off, the next prune looks there.
pub(crate) fn note_dropped(settings: &Settings, uuid: &str, removed: &[String]) -> Result<()> {
    let Some(mut record) = Record::load(&settings.state, uuid)?.filter(|_| !removed.is_empty()) else {
        return Ok(());
    };
    record.dropped.extend(removed.iter().cloned());
    record.save(&settings.state)
}

/// Whether it was cut off before.
pub(crate) fn is_due(settings: &Settings, uuid: &str) -> Result<bool> {
    let record = Record::load(&settings.state, uuid)?;
    Ok(record.is_some_and(|record| record.merging.is_some() || !record.dropped.is_empty())
        && !mutant::active("a-merge-that-was-cut-is-gone-on-with"))
}

/// Looks where dates were dropped, now or before this was cut off, and does it where it is worth it. That it cannot be done is told,
/// and is no failure of the prune: nothing is lost by it.
pub(crate) fn merge(siblings: &mut Siblings, job: &Job, report: &mut Report) -> Result<Vec<Merged>> {
    let settings = siblings.settings;
    let Some(mut record) = Record::load(&settings.state, job.uuid)? else { return Ok(Vec::new()) };
    let lists: Lists = serde_json::from_value(ask(siblings, "lists", &json!({"lists": {}}))?)
        .context("the answer about the lists is damaged")?;
    let mut dates: BTreeMap<String, Vec<String>> =
        lists.dates.into_iter().map(|l| (l.date, l.layers)).collect();
    if let Some(merging) = record.merging.clone() {
        // In one list it was compared and is there: then it belongs into the others.
        if dates.values().any(|names| names.contains(&merging.by)) {
            in_their_place(siblings, &mut record, &merging)?;
            for names in dates.values_mut() {
                super::dates::put_in_place(names, &merging.layers, &merging.by);
            }
        }
    }
    let mut done = Vec::new();
    for gap in gaps(&dates, &record.dropped) {
        if job.until.is_some_and(|until| jiff::Timestamp::now() >= until) {
            return Ok(done);
        }
        match one(siblings, job, &mut record, &dates, &gap, report) {
            Ok(Outcome::Merged(merged)) => done.push(merged),
            Ok(Outcome::Stays) => {}
            Err(error)
                if matches!(kind_of(&error), Kind::Interrupted(_) | Kind::Unavailable | Kind::Busy) =>
            {
                return Err(error);
            }
            Err(error) if siblings.lease.as_ref().is_some_and(Keeper::is_lost) => return Err(error),
            Err(error) => {
                let why =
                    format!("the images between {} and {} stay as they are: {error:#}", gap.base, gap.date);
                report.warn("not-merged", why);
                report.set_partial();
                return Ok(done);
            }
        }
    }
    if !record.dropped.is_empty() || record.merging.is_some() {
        record.dropped.clear();
        record.merging = None;
        record.save(&settings.state)?;
    }
    Ok(done)
}

/// Makes the images of a gap one, if that is worth it.
fn one(
    siblings: &mut Siblings,
    job: &Job,
    record: &mut Record,
    dates: &BTreeMap<String, Vec<String>>,
    gap: &Gap,
    report: &mut Report,
) -> Result<Outcome> {
    let settings = siblings.settings;
    let here = |date: &str| {
        let found = job.list.iter().find(|s| s.date == date)?;
        let noted = record.dates.get(date).map(|dated| &dated.id);
        noted.is_none_or(|id| *id == found.id).then_some(found)
    };
    let (Some(snapshot), Some(_)) = (here(&gap.date), here(&gap.base)) else { return Ok(Outcome::Stays) };
    let bytes: Option<Vec<u64>> =
        gap.images.iter().map(|name| record.images.get(name).map(|image| image.bytes)).collect();
    let Some(bytes) = bytes else { return Ok(Outcome::Stays) };
    let all: u64 = bytes.iter().sum();
    // What is in the newest is not superseded.
    let most = all / PART;
    if all < LITTLE || bytes[0] > most {
        return Ok(Outcome::Stays);
    }
    let kept = record.unfinished.as_ref().and_then(|u| u.images.last());
    let workshop = Workshop::open(settings, kept)?;
    let name = free(&gap.date, dates);
    let sizes = Sizes { image: Some(Bytes(most)), big: None };
    let anew = record.anew.get(&gap.base);
    let order = Order { date: &gap.date, base: Some(&gap.base), anew, sizes, ..Order::default() };
    workshop.make(siblings, &name, &order)?;
    let facts = workshop.facts(&name)?;
    let beside = &dates[&gap.date];
    let has_big = facts.big.iter().all(|big| beside.contains(&format!("{LARGE}{}", big.sha256)));
    let worth = facts.last().is_none() && facts.image_bytes <= most || mutant::active("a-merge-saves-most");
    let fits = worth && has_big && facts.id == snapshot.id;
    let fits = fits && shows_the_same(siblings, gap, &workshop, &name, report)?;
    if !fits {
        workshop.remove(&name)?;
        return Ok(Outcome::Stays);
    }
    room::fits(settings, facts.image_bytes, job.reserve)?;
    let (images, size) = (gap.images.len(), tell::bytes(facts.image_bytes));
    say!(TOOL, "{images} images before {} become one of {size}", gap.date);
    // What was cut off is gone on with; what only has its name, and is in no list, goes first.
    let there = record.merging.as_ref().is_some_and(|merging| merging.by == name)
        && record.images.get(&name).is_some_and(|image| image.sha256 == facts.sha256);
    if !there {
        ask(siblings, "sweep", &json!({"sweep": {}}))?;
    }
    let merging = Merging { by: name.clone(), layers: gap.images.clone() };
    note(record, &name, gap, &facts);
    record.merging = Some(merging.clone());
    record.save(&settings.state)?;
    let put = json!({"put": {"image": name, "from": workshop.path(&name), "bytes": facts.image_bytes,
        "sha256": facts.sha256, "reserve": job.reserve}});
    ask(siblings, "put", &put)?;
    in_their_place(siblings, record, &merging)?;
    workshop.remove(&name)?;
    Ok(Outcome::Merged(Merged {
        date: gap.date.clone(),
        base_date: gap.base.clone(),
        images,
        images_bytes: all,
        bytes: facts.image_bytes,
    }))
}

/// Whether the image, which is still here, shows what those in the container do in whose place it would come. What is different is
/// told: one of the two has lost something.
fn shows_the_same(
    siblings: &mut Siblings,
    gap: &Gap,
    workshop: &Workshop,
    name: &str,
    report: &mut Report,
) -> Result<bool> {
    #[derive(Deserialize)]
    struct Compared {
        differs: Vec<String>,
        total: usize,
        unseen: Option<String>,
    }
    if mutant::active("a-merge-is-compared") {
        return Ok(true);
    }
    let at = shown::make(siblings.settings)?;
    let compare =
        json!({"compare": {"date": gap.date, "layers": gap.images, "by": workshop.path(name), "at": at}});
    let answer = ask(siblings, "compare-images", &compare)?;
    let compared: Compared = serde_json::from_value(answer).context("the answer about images is damaged")?;
    if let Some(why) = compared.unseen {
        say!(TOOL, "the images before {} stay as they are, as they cannot be compared here: {why}", gap.date);
        return Ok(false);
    }
    if compared.total == 0 {
        return Ok(true);
    }
    let first = compared.differs.join(", ");
    report.warn(
        "not-merged",
        format!(
            "the images between {} and {} stay as they are: {} paths of {} in the store here are not what the container has, first {first}. \
             `link-sync verify` and `offsite-push verify` tell which of the two is damaged",
            gap.base, gap.date, compared.total, gap.date
        ),
    );
    report.set_partial();
    Ok(false)
}

/// Gives each list that has them the one image in their place, and removes what no list needs then.
fn in_their_place(siblings: &mut Siblings, record: &mut Record, merging: &Merging) -> Result<()> {
    ask(siblings, "replace", &json!({"replace": {"layers": merging.layers, "by": merging.by}}))?;
    for dated in record.dates.values_mut() {
        super::dates::put_in_place(&mut dated.layers, &merging.layers, &merging.by);
    }
    record.merging = None;
    record.save(&siblings.settings.state)?;
    ask(siblings, "sweep", &json!({"sweep": {}}))?;
    Ok(())
}

/// What is noted before it is sent.
fn note(record: &mut Record, name: &str, gap: &Gap, facts: &Facts) {
    let image = Image {
        date: gap.date.clone(),
        base_date: Some(gap.base.clone()),
        bytes: facts.image_bytes,
        sha256: facts.sha256.clone(),
        paths: facts.paths,
        names_sha256: facts.names_sha256.clone(),
    };
    record.images.insert(name.to_owned(), image);
}

/// Where one of `removed` was between two dates of which one lies upon the other, with more than one image between them.
fn gaps(dates: &BTreeMap<String, Vec<String>>, removed: &BTreeSet<String>) -> Vec<Gap> {
    let laid = |names: &[String]| -> Vec<String> {
        names.iter().filter(|name| !name.starts_with(LARGE)).cloned().collect()
    };
    let mut all: BTreeMap<String, Vec<String>> =
        dates.iter().map(|(d, names)| (d.clone(), laid(names))).collect();
    let trees: BTreeSet<String> =
        all.values().flatten().filter(|name| name.starts_with(TREES)).cloned().collect();
    for tree in trees {
        let date = tree.trim_start_matches(TREES).trim_end_matches('/');
        all.insert(date.to_owned(), vec![tree.clone()]);
    }
    let mut gaps = Vec::new();
    for (date, layers) in &all {
        let below = all
            .iter()
            .filter(|(other, those)| *other != date && those.len() < layers.len() && layers.ends_with(those));
        let Some((base, those)) = below.max_by_key(|(_, those)| those.len()) else { continue };
        let images = layers[..layers.len() - those.len()].to_vec();
        if images.len() > 1 && removed.iter().any(|gone| base < gone && gone < date) {
            gaps.push(Gap { date: date.clone(), base: base.clone(), images });
        }
    }
    gaps
}

/// A name that no image in a list has.
fn free(date: &str, dates: &BTreeMap<String, Vec<String>>) -> String {
    let names: BTreeSet<&String> = dates.values().flatten().collect();
    let mut n = 1;
    loop {
        let name = format!("{date}.m{n}.sqfs");
        if !names.contains(&name) {
            return name;
        }
        n += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap_is_where_a_date_was_and_lies_between_the_nearest_that_stay() {
        let list = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
        let dates = BTreeMap::from([
            ("3".to_owned(), list(&["3", "2", "1", "snapshots/0/", "big/x"])),
            ("5".to_owned(), list(&["5", "4", "3", "2", "1", "snapshots/0/"])),
            ("6".to_owned(), list(&["6", "5", "4", "3", "2", "1", "snapshots/0/"])),
            ("7".to_owned(), list(&["7.2", "7"])),
        ]);
        let gap = |date: &str, base: &str, images: &[&str]| Gap {
            date: date.into(),
            base: base.into(),
            images: list(images),
        };
        let removed = |names: &[&str]| list(names).into_iter().collect::<BTreeSet<_>>();
        assert_eq!(gaps(&dates, &removed(&["4"])), [gap("5", "3", &["5", "4"])]);
        assert_eq!(gaps(&dates, &removed(&["1", "2"])), [gap("3", "0", &["3", "2", "1"])]);
        assert_eq!(gaps(&dates, &removed(&["9"])), []);
    }
}

//! Images between two dates that stay, made one where most of what they hold is superseded: anew, from the snapshots in the store here.
//!
//! Nothing published is written to: the one image is sent beside the others, then each list that has them gets it in their place, by
//! one rename, and what no list needs any more goes. Cut anywhere in between, every list shows what it showed. What such an image
//! costs is at most a quarter of what it replaces, which was sent once.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result};
use common::profile::Bytes;
use common::{mutant, say};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::making::{Facts, Order, Sizes, Workshop};
use super::record::{Image, Record};
use super::{LARGE, TREES, ask};
use crate::siblings::Siblings;
use crate::store::Snapshot;
use crate::{TOOL, tell};

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

/// Looks where `removed` dates were, and does it where it is worth it.
pub(crate) fn merge(
    siblings: &mut Siblings,
    uuid: &str,
    list: &[Snapshot],
    removed: &[String],
    reserve: u64,
) -> Result<Vec<Merged>> {
    let settings = siblings.settings;
    let Some(mut record) = Record::load(&settings.state, uuid)? else { return Ok(Vec::new()) };
    let lists: Lists = serde_json::from_value(ask(siblings, "lists", &json!({"lists": {}}))?)
        .context("the answer about the lists is damaged")?;
    let dates: BTreeMap<String, Vec<String>> = lists.dates.into_iter().map(|l| (l.date, l.layers)).collect();
    let kept = record.unfinished.as_ref().and_then(|u| u.images.last()).cloned();
    let mut done = Vec::new();
    for gap in gaps(&dates, removed) {
        let here = |date: &str| {
            let found = list.iter().find(|s| s.date == date)?;
            let noted = record.dates.get(date).map(|dated| &dated.id);
            noted.is_none_or(|id| *id == found.id).then_some(found)
        };
        let (Some(snapshot), Some(_)) = (here(&gap.date), here(&gap.base)) else { continue };
        let bytes: Option<Vec<u64>> =
            gap.images.iter().map(|name| record.images.get(name).map(|image| image.bytes)).collect();
        let Some(bytes) = bytes else { continue };
        let all: u64 = bytes.iter().sum();
        // What is in the newest is not superseded.
        let most = all / PART;
        if all < LITTLE || bytes[0] > most {
            continue;
        }
        let workshop = Workshop::open(settings, kept.as_ref())?;
        let name = free(&gap.date, &record, &dates);
        let sizes = Sizes { image: Some(Bytes(most)), big: None };
        let order = Order { date: &gap.date, base: Some(&gap.base), base_big: None, after: None, sizes };
        workshop.make(siblings, &name, &order)?;
        let facts = workshop.facts(&name)?;
        let beside = &dates[&gap.date];
        let has_big = facts.big.iter().all(|big| beside.contains(&format!("{LARGE}{}", big.sha256)));
        let worth =
            facts.last().is_none() && facts.image_bytes <= most || mutant::active("a-merge-saves-most");
        if worth && has_big && facts.id == snapshot.id {
            say!(
                TOOL,
                "{} images before {} become one of {}",
                gap.images.len(),
                gap.date,
                tell::bytes(facts.image_bytes)
            );
            let path = workshop.path(&name);
            let put = json!({"put": {"image": name, "from": path, "bytes": facts.image_bytes, "sha256": facts.sha256,
                "reserve": reserve}});
            note(&mut record, &name, &gap, &facts);
            record.save(&settings.state)?;
            ask(siblings, "put", &put)?;
            ask(siblings, "replace", &json!({"replace": {"layers": gap.images, "by": name}}))?;
            for dated in record.dates.values_mut() {
                super::dates::put_in_place(&mut dated.layers, &gap.images, &name);
            }
            record.save(&settings.state)?;
            ask(siblings, "sweep", &json!({"sweep": {}}))?;
            done.push(Merged {
                date: gap.date.clone(),
                base_date: gap.base.clone(),
                images: gap.images.len(),
                images_bytes: all,
                bytes: facts.image_bytes,
            });
        }
        workshop.remove(&name)?;
    }
    Ok(done)
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
fn gaps(dates: &BTreeMap<String, Vec<String>>, removed: &[String]) -> Vec<Gap> {
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

/// A name that no image of the date has.
fn free(date: &str, record: &Record, dates: &BTreeMap<String, Vec<String>>) -> String {
    let mut n = 1;
    loop {
        let name = format!("{date}.m{n}.sqfs");
        if !record.images.contains_key(&name) && !dates.values().flatten().any(|other| *other == name) {
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
        assert_eq!(gaps(&dates, &list(&["4"])), [gap("5", "3", &["5", "4"])]);
        assert_eq!(gaps(&dates, &list(&["1", "2"])), [gap("3", "0", &["3", "2", "1"])]);
        assert_eq!(gaps(&dates, &list(&["9"])), []);
    }
}

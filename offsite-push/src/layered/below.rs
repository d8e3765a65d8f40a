//! What lies in the container that a new date can be laid upon, and whether it is as it was put there.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::Result;
use common::mutant;
use serde_json::{Value, json};

use super::list::is_image;
use super::record::Record;
use super::{LARGE, TREES, ask};
use crate::generation::Content;
use crate::siblings::Siblings;
use crate::store::Snapshot;

/// Layers of a date from which on a new one is laid over an older date with fewer, and the most of such a one. What changed
/// since is in one image then.
const MANY: usize = 100;
/// See [`MANY`].
const FEW: usize = 50;
/// Of so many of a base's layers, the newest, the sizes are looked at in each push; of those below only the names.
pub(super) const LOOKED_AT: usize = 8;

/// The dates in the container.
#[derive(Debug)]
pub(super) struct Below {
    layered: BTreeMap<String, Vec<String>>,
    trees: BTreeSet<String>,
}

impl Below {
    /// Of what was found in it.
    pub(super) fn new(content: &Content) -> Below {
        Below { layered: content.layered.clone(), trees: content.trees().cloned().collect() }
    }

    /// Whether the date is there, and can be read.
    pub(super) fn holds(&self, date: &str) -> bool {
        self.layered.contains_key(date) || self.trees.contains(date)
    }

    /// All that a date has: its layers, the newest first, and the large contents beside them.
    pub(super) fn names(&self, date: &str) -> Vec<String> {
        self.layered.get(date).cloned().unwrap_or_else(|| vec![format!("{TREES}{date}/")])
    }

    /// The layers that the images of a date with this base are laid over.
    pub(super) fn layers(&self, base: Option<&str>) -> Vec<String> {
        let names = base.map(|base| self.names(base)).unwrap_or_default();
        names.into_iter().filter(|name| !name.starts_with(LARGE)).collect()
    }

    /// What the date `wanted` is to be laid upon: the newest that is in the store's `list`, too, and whose layers are as they were
    /// put there; an older one, if that has too many layers. Also what is wrong with those that were passed over.
    pub(super) fn base(
        &self,
        siblings: &mut Siblings,
        list: &[Snapshot],
        record: &Record,
        wanted: &str,
    ) -> Result<(Option<String>, BTreeMap<String, String>)> {
        let (mut newest, mut damaged) = (None, BTreeMap::new());
        for held in list.iter().rev().filter(|s| s.date != wanted && self.holds(&s.date)) {
            let date = &held.date;
            let layers = self.layers(Some(date)).len();
            // It is another snapshot of that name; or no better than the newest.
            let other = record.dates.get(date).is_some_and(|dated| dated.id != held.id);
            if other || (newest.is_some() && layers > FEW) {
                continue;
            }
            let wrong =
                compare(siblings, &[(date.clone(), self.names(date))].into(), Some(record), LOOKED_AT)?;
            if !wrong.is_empty() {
                damaged.extend(wrong);
            } else if layers < MANY {
                return Ok((Some(date.clone()), damaged));
            } else {
                newest.get_or_insert_with(|| date.clone());
            }
        }
        Ok((newest, damaged))
    }

    /// A date more.
    pub(super) fn add(&mut self, date: &str, layers: Vec<String>) {
        self.layered.insert(date.to_owned(), layers);
    }
}

/// What is wrong with the layers that lists of the container name, by date: they are looked at, not read; of images after the
/// first `most` of a list, only whether they are there.
pub(crate) fn compare(
    siblings: &mut Siblings,
    layered: &BTreeMap<String, Vec<String>>,
    record: Option<&Record>,
    most: usize,
) -> Result<BTreeMap<String, String>> {
    let looked_at = |at: usize, name: &str| at < most || !is_image(name);
    let layers: BTreeSet<&String> = layered
        .values()
        .flat_map(|names| {
            names.iter().enumerate().filter(|(at, name)| looked_at(*at, name)).map(|named| named.1)
        })
        .collect();
    let named: BTreeSet<&String> = layered.values().flatten().filter(|name| !layers.contains(name)).collect();
    let found = ask(siblings, "look", &json!({"look": {"layers": layers, "named": named}}))?;
    let wrong = |name: &&String| !is_right(&found["bytes"][name.as_str()], name, record);
    let mut damaged = BTreeMap::new();
    for (date, names) in layered {
        let wrong: Vec<&str> = names.iter().filter(wrong).map(String::as_str).collect();
        if let Some(first) = wrong.first() {
            let what = format!(
                "{} of its layers are missing, or are not as large as they were: {first}",
                wrong.len()
            );
            damaged.insert(date.clone(), what);
        }
    }
    Ok(damaged)
}

/// Whether it is there, as large as it was when it was sent, if that is known, and not known to be damaged.
fn is_right(found: &Value, name: &str, record: Option<&Record>) -> bool {
    let damaged = record.is_some_and(|record| record.damaged.contains_key(name));
    if found.is_null() || damaged && !mutant::active("what-is-damaged-is-no-base") {
        return false;
    }
    let known = record.and_then(|record| match name.strip_prefix(LARGE) {
        Some(hash) => {
            let big = record.dates.values().filter_map(|dated| dated.big.as_ref()).flatten();
            big.into_iter().find(|big| big.sha256 == hash).map(|big| big.bytes)
        }
        None => record.images.get(name).map(|image| image.bytes),
    });
    let right = known.zip(found.as_u64()).is_none_or(|(known, found)| known == found);
    right || mutant::active("a-base-is-counted")
}

//! What a verification found: all of it is counted, and as much is listed as memory and a message can hold.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::hash::{DefaultHasher, Hasher as _};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::scan::ManifestLine;
use super::sums;
use crate::names::show;

/// Places (a path in a date) of which all is kept, some 300 MB. What comes then is counted only.
pub const KEPT: usize = 250_000;
/// Paths, and dates, named for one finding.
const NAMED: usize = 100;
/// Bytes of all that is listed: it travels in one message.
const LISTED_BYTES: usize = 4 << 20;

/// What can be wrong.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Damage {
    /// Other bytes than were hashed.
    Content,
    /// The disk does not give it back.
    Unreadable,
    /// Not there.
    Missing,
    /// Not in the manifest.
    Extra,
    /// A file where a folder was, and so on.
    Type,
    /// Mode, owner, time, size, link target or extended attributes.
    Attributes,
    /// The manifest itself is damaged.
    Manifest,
    /// A folder named like a snapshot that has no readable description.
    Snapshot,
}

/// One thing that is wrong.
#[derive(Clone, Debug)]
pub struct Finding {
    /// What.
    pub kind: Damage,
    /// Where: dates and paths in them. Of a shared inode, all.
    pub places: BTreeSet<(String, Vec<u8>)>,
    /// The inode, if it is one that snapshots share.
    pub ino: Option<u64>,
    /// What the manifest says.
    pub expected: ManifestLine,
    /// What was found, for people.
    pub found: String,
}

/// What makes a finding the same in all dates.
pub type Key = (Damage, Option<u64>, u64);

/// All that is found, as it comes.
#[derive(Debug)]
pub struct Tally {
    kept: HashMap<Key, Finding>,
    /// Those that are only counted.
    more: HashSet<Key>,
    /// So many places can still be kept.
    room: usize,
}

impl Tally {
    /// Keeps so many places.
    pub fn new(room: usize) -> Tally {
        Tally { kept: HashMap::new(), more: HashSet::new(), room }
    }

    /// Adds what is wrong at `place`. The same inode, or the same path with the same content, is one finding in all dates.
    pub fn add(
        &mut self,
        kind: Damage,
        ino: Option<u64>,
        line: &ManifestLine,
        what: String,
        place: (&str, &[u8]),
    ) {
        let same = match ino {
            Some(_) => 0,
            None => {
                let place = Some(place).filter(|_| line.path.is_empty());
                digest(&(&line.path, &line.body, &line.sum, place))
            }
        };
        let key = (kind, ino, same);
        if self.room == 0 && !common::mutant::active("findings-are-bounded") {
            if !self.kept.contains_key(&key) {
                self.more.insert(key);
            }
            return;
        }
        let new = || Finding { kind, places: BTreeSet::new(), ino, expected: line.clone(), found: what };
        let finding = self.kept.entry(key).or_insert_with(new);
        let added = finding.places.insert((place.0.to_owned(), place.1.to_vec()));
        self.room = self.room.saturating_sub(usize::from(added));
    }

    /// Those that are kept, by the inode that snapshots share.
    pub fn shared(&self) -> HashMap<u64, Vec<Key>> {
        let mut shared: HashMap<u64, Vec<Key>> = HashMap::new();
        for key in self.kept.keys() {
            if let Some(ino) = key.1 {
                shared.entry(ino).or_default().push(*key);
            }
        }
        shared
    }

    /// One more place of a finding that is kept.
    pub fn also(&mut self, key: &Key, date: &str, path: &[u8]) {
        if let Some(finding) = self.kept.get_mut(key).filter(|_| self.room > 0) {
            let added = finding.places.insert((date.to_owned(), path.to_vec()));
            self.room -= usize::from(added);
        }
    }

    /// What is in `dates` is none of anybody's business any more.
    pub fn forget(&mut self, dates: &[String]) {
        if !dates.is_empty() {
            self.kept.values_mut().for_each(|f| f.places.retain(|place| !dates.contains(&place.0)));
            self.kept.retain(|_, finding| !finding.places.is_empty());
        }
    }

    /// How many of each kind; those that are kept, sorted; and whether anything is not.
    pub fn finish(self) -> (BTreeMap<Damage, u64>, Vec<Finding>, bool) {
        let mut counts = BTreeMap::new();
        for key in self.kept.keys().chain(&self.more) {
            *counts.entry(key.0).or_default() += 1;
        }
        let mut kept: Vec<_> = self.kept.into_values().collect();
        sort(&mut kept);
        (counts, kept, self.room == 0)
    }
}

/// By where they are, then by what.
pub fn sort(findings: &mut [Finding]) {
    findings.sort_by(|a, b| (a.places.first(), a.kind).cmp(&(b.places.first(), b.kind)));
}

impl Finding {
    /// For the status object.
    pub fn describe(&self) -> Value {
        let dates: BTreeSet<_> = self.places.iter().map(|p| &p.0).collect();
        let paths: BTreeSet<_> = self.places.iter().map(|p| &p.1).collect();
        let mut entry = Map::new();
        for (key, value) in [
            ("kind", json!(self.kind)),
            ("inode", json!(self.ino)),
            ("found", json!(self.found)),
            ("dates", json!(dates.iter().take(NAMED).collect::<Vec<_>>())),
            ("dates_total", json!(dates.len())),
            ("paths", json!(paths.iter().take(NAMED).map(|p| show(p)).collect::<Vec<_>>())),
            ("paths_total", json!(paths.len())),
            ("expected_sha256", json!(self.expected.sum.map(|s| sums::hex(&s)))),
        ] {
            entry.insert(key.to_owned(), value);
        }
        common::status::put_list_b64(&mut entry, "paths", paths.iter().take(NAMED).map(|p| &p[..]));
        Value::Object(entry)
    }
}

/// The first of `findings`, for the status object: at most `limit`, and what a message can carry.
pub fn list(findings: &[Finding], limit: usize) -> Vec<Value> {
    let mut bytes = 0;
    let listed = findings.iter().take(limit).map(Finding::describe);
    listed
        .take_while(|one| {
            bytes += one.to_string().len();
            bytes <= LISTED_BYTES
        })
        .collect()
}

/// Tells values apart, within one run.
pub fn digest(value: &impl std::hash::Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `many` paths, each missing in two dates, with room for so many places.
    fn missing(many: u64, room: usize) -> Tally {
        let mut found = Tally::new(room);
        for date in ["2026-01-01T00-00-00Z", "2026-01-02T00-00-00Z"] {
            for n in 0..many {
                let path = format!("docs/{n:07}").into_bytes();
                let line = ManifestLine { path, ..ManifestLine::default() };
                found.add(Damage::Missing, None, &line, "it is not there".into(), (date, &line.path));
            }
        }
        found
    }

    #[test]
    fn of_a_million_damaged_paths_all_are_counted_and_some_are_kept() {
        let (counts, kept, truncated) = missing(1_000_000, 1000).finish();
        assert_eq!((counts[&Damage::Missing], kept.len(), truncated), (1_000_000, 1000, true));
        let (counts, kept, truncated) = missing(1000, 10_000).finish();
        assert_eq!((counts[&Damage::Missing], kept.len(), truncated), (1000, 1000, false));
        assert!(kept.iter().all(|f| f.places.len() == 2));
    }

    #[test]
    fn what_is_in_a_date_that_went_is_nothing() {
        let mut found = missing(10, 1000);
        found.forget(&["2026-01-01T00-00-00Z".into()]);
        assert_eq!(found.kept.len(), 10);
        found.forget(&["2026-01-02T00-00-00Z".into()]);
        assert!(found.finish().0.is_empty());
    }
}

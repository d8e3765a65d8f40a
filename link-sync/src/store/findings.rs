//! What a verification found: everything is counted, and so much of it is kept and listed as memory and a message can
//! hold.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use anyhow::Result;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::scan::Line;
use super::sums;
use super::verify::Options;
use crate::walk::show;

/// Places (a path in a date) of which all is kept, some 300 MB. What comes then is counted only.
pub const KEPT: usize = 250_000;
/// Paths, and dates, named for one finding.
const NAMED: usize = 100;
/// Bytes of all that is listed: it travels in one message.
const LISTED_BYTES: usize = 4 << 20;

/// What can be wrong.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
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
    pub kind: Kind,
    /// Where: dates and paths in them. Of a shared inode, all.
    pub places: BTreeSet<(String, Vec<u8>)>,
    /// The inode, if it is one that snapshots share.
    pub ino: Option<u64>,
    /// What the manifest says.
    pub expected: Line,
    /// What was found, for people.
    pub found: String,
}

/// What makes a finding the same in all dates.
pub type Key = (Kind, Option<u64>, u64);

/// All that is found, as it comes.
#[derive(Debug)]
pub struct Found {
    kept: HashMap<Key, Finding>,
    /// Those that are only counted.
    more: HashSet<Key>,
    /// So many places can still be kept.
    room: usize,
}

impl Found {
    /// Keeps so many places.
    pub fn new(room: usize) -> Found {
        Found { kept: HashMap::new(), more: HashSet::new(), room }
    }

    /// Adds `place` to the finding `key`, which is `new` if it was not known.
    pub fn add(&mut self, key: Key, place: (&str, &[u8]), new: impl FnOnce() -> Finding) {
        if self.room == 0 && !common::mutant::active("findings-are-bounded") {
            if !self.kept.contains_key(&key) {
                self.more.insert(key);
            }
            return;
        }
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
    pub fn finish(self) -> (BTreeMap<Kind, u64>, Vec<Finding>, bool) {
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

/// The outcome.
#[derive(Debug, Default)]
pub struct Outcome {
    /// The snapshots checked.
    pub dates: Vec<String>,
    /// Those without a manifest, or (of a copy) with a part of one only.
    pub weaker: Vec<String>,
    /// Those that are being removed, or were meanwhile.
    pub skipped: Vec<String>,
    /// Names checked, in all dates.
    pub paths: u64,
    /// Distinct files.
    pub inodes: u64,
    /// Of them read.
    pub inodes_read: u64,
    /// Bytes read.
    pub bytes_read: u64,
    /// How many things of each kind are wrong: all.
    pub counts: BTreeMap<Kind, u64>,
    /// What is wrong; of more than [`KEPT`] places, not all.
    pub findings: Vec<Finding>,
    /// Not all that is wrong is in `findings`.
    pub truncated: bool,
}

impl Outcome {
    /// How many things are wrong.
    pub fn total(&self) -> u64 {
        self.counts.values().sum()
    }

    /// For the status object.
    pub fn describe(&self, options: &Options) -> Result<Value> {
        let listed = list(&self.findings, options.limit);
        let truncated = self.truncated || (listed.len() as u64) < self.total();
        let counts: Map<_, _> = self
            .counts
            .iter()
            .map(|(kind, n)| Ok((serde_json::from_value::<String>(json!(kind))?, json!(n))))
            .collect::<Result<_>>()?;
        Ok(json!({
            "dates": self.dates, "weaker_dates": self.weaker, "skipped_dates": self.skipped,
            "sample_percent": options.sample, "seed": options.seed,
            "paths": self.paths, "inodes": self.inodes,
            "inodes_read": self.inodes_read, "bytes_read": self.bytes_read,
            "findings": listed, "findings_total": self.total(), "findings_truncated": truncated,
            "counts": counts,
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `many` paths, each missing in two dates, with room for so many places.
    fn missing(many: u64, room: usize) -> Found {
        let mut found = Found::new(room);
        for date in ["2026-01-01T00-00-00Z", "2026-01-02T00-00-00Z"] {
            for n in 0..many {
                let path = format!("docs/{n:07}").into_bytes();
                let new = || Finding {
                    kind: Kind::Missing,
                    places: BTreeSet::new(),
                    ino: None,
                    expected: Line { path: path.clone(), ..Line::default() },
                    found: "it is not there".into(),
                };
                found.add((Kind::Missing, None, n), (date, &path), new);
            }
        }
        found
    }

    #[test]
    fn of_a_million_damaged_paths_all_are_counted_and_some_are_kept() {
        let (counts, kept, truncated) = missing(1_000_000, 1000).finish();
        assert_eq!((counts[&Kind::Missing], kept.len(), truncated), (1_000_000, 1000, true));
        let (counts, kept, truncated) = missing(1000, 10_000).finish();
        assert_eq!((counts[&Kind::Missing], kept.len(), truncated), (1000, 1000, false));
        assert!(kept.iter().all(|f| f.places.len() == 2));
    }

    #[test]
    fn what_is_listed_fits_a_message_whatever_the_limit() {
        let (counts, findings, truncated) = missing(50_000, 1_000_000).finish();
        let outcome = Outcome { counts, findings, truncated, ..Outcome::default() };
        let options = Options { date: "all".into(), sample: 100.0, seed: 1, limit: usize::MAX };
        let told = outcome.describe(&options).unwrap();
        assert!(told.to_string().len() < 5 << 20);
        assert_eq!((&told["findings_total"], &told["findings_truncated"]), (&50_000.into(), &true.into()));
        let few = outcome.describe(&Options { limit: 3, ..options }).unwrap();
        assert_eq!(few["findings"].as_array().unwrap().len(), 3);
        assert_eq!(few["findings_truncated"], true);
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

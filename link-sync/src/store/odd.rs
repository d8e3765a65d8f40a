//! Snapshots that cannot be what they seem: dated in the future, or without the checksums that older ones have.
//!
//! A clock that was wrong for a night, or somebody who meant harm, made them. They count for nothing: they are no base,
//! not `latest`, stand for no day, and keep no later backup from being made. As one of them may be all that is left of
//! a night, no rule removes it either: it is told wherever snapshots are listed, until a person renames its folder to the
//! right date or removes it.

use anyhow::Result;
use common::fault::Fault;
use common::mutant;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::meta::{Consistency, SnapshotMeta, is_date, taken};
use super::place::Store;

/// A clock that is set a little, back over a snapshot just made, makes nothing odd of it.
const TOLERANCE: SignedDuration = SignedDuration::from_mins(10);

/// Why a snapshot does not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// Its date is still to come.
    Future,
    /// It has no checksums, though an older one has.
    NoChecksums,
}

impl Why {
    /// For people: what is odd about it.
    pub fn text(self) -> &'static str {
        match self {
            Why::Future => "its date is in the future of the store's clock",
            Why::NoChecksums => "it has no checksums, as no link-sync makes it any more",
        }
    }
}

/// The published snapshots of a store.
#[derive(Debug, Default)]
pub struct Known {
    /// Those that count, oldest first.
    pub counted: Vec<SnapshotMeta>,
    /// Those that do not, oldest first.
    pub odd: Vec<(SnapshotMeta, Why)>,
    /// Names of folders that look like snapshots but are damaged.
    pub damaged: Vec<String>,
}

/// A date that the store has in another form than as a folder, which is nothing to the rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// The date.
    pub date: String,
    /// What it promises.
    pub consistency: Consistency,
}

impl Listed {
    fn meta(&self) -> SnapshotMeta {
        SnapshotMeta {
            schema: 1,
            id: String::new(),
            date: self.date.clone(),
            base_id: None,
            base_date: None,
            run_id: None,
            consistency: self.consistency,
            started_at: String::new(),
            published_at: String::new(),
            tool_version: String::new(),
            fake_super: false,
            sources: Vec::new(),
            manifest: None,
        }
    }
}

impl std::str::FromStr for Listed {
    type Err = String;

    /// `DATE` or `DATE=sealed`.
    fn from_str(text: &str) -> Result<Listed, String> {
        let (date, consistency) = match text.strip_suffix("=sealed") {
            Some(date) => (date, Consistency::Sealed),
            None => (text, Consistency::CrashConsistent),
        };
        match is_date(date) {
            true => Ok(Listed { date: date.to_owned(), consistency }),
            false => Err("write a date like 2026-11-22T03-30-00Z, and after it perhaps =sealed".into()),
        }
    }
}

impl Known {
    /// What lies in `store` at `now`, by its clock.
    pub fn of(store: &Store, now: Timestamp) -> Result<Known> {
        let (all, damaged) = store.snapshots()?;
        let mut known = Known { damaged, ..Known::default() };
        let mut with_checksums = false;
        for meta in all {
            match why(&meta, with_checksums, now) {
                Some(why) => known.odd.push((meta, why)),
                None => {
                    with_checksums |= meta.manifest.is_some();
                    known.counted.push(meta);
                }
            }
        }
        Ok(known)
    }

    /// Counts dates that are kept in another form than as folders of the store, too; which of them it did not know.
    pub fn add(&mut self, listed: &[Listed], now: Timestamp) -> Vec<String> {
        let mut added = Vec::new();
        for date in listed {
            let known = |meta: &SnapshotMeta| meta.date == date.date;
            if self.counted.iter().any(known) || self.odd.iter().any(|(meta, _)| known(meta)) {
                continue;
            }
            added.push(date.date.clone());
            let meta = date.meta();
            match why(&meta, false, now) {
                Some(why) => self.odd.push((meta, why)),
                None => self.counted.push(meta),
            }
        }
        self.counted.sort_by(|a, b| a.date.cmp(&b.date));
        self.odd.sort_by(|a, b| a.0.date.cmp(&b.0.date));
        added
    }

    /// The newest of all if each is dated in the future: then it is the clock that is wrong.
    pub fn all_to_come(&self) -> Option<&SnapshotMeta> {
        let (newest, why) = self.odd.last()?;
        (self.counted.is_empty() && *why == Why::Future).then_some(newest)
    }

    /// What a person should know.
    pub fn warnings(&self) -> Vec<Value> {
        self.odd.iter().map(|(meta, why)| warning(&meta.date, *why)).collect()
    }
}

impl Store {
    /// The published snapshot of `date`, or the newest that counts for `latest`. Reads no more of the others than it must.
    pub fn find(&self, date: &str) -> Result<SnapshotMeta> {
        let dir = self.open()?;
        let found = match date {
            "latest" => Known::of(self, Timestamp::now())?.counted.pop(),
            date if is_date(date) => SnapshotMeta::load(&dir, date).ok().map(|(meta, _)| meta),
            _ => None,
        };
        found.ok_or_else(|| {
            Fault::config(format!("there is no snapshot '{date}' in {}", self.path.display()))
                .hint("`link-sync list` shows the dates")
                .into()
        })
    }
}

fn why(meta: &SnapshotMeta, with_checksums: bool, now: Timestamp) -> Option<Why> {
    if taken(&meta.date).is_ok_and(|t| t > now + TOLERANCE) && !mutant::active("the-future-counts") {
        return Some(Why::Future);
    }
    let bare = meta.manifest.is_none() && with_checksums && !mutant::active("without-checksums-it-counts");
    bare.then_some(Why::NoChecksums)
}

/// In the shape of a report's warnings.
fn warning(date: &str, why: Why) -> Value {
    let cure = match why {
        Why::Future => {
            "Is the clock right? If it was wrong when that was made, rename its folder to the right date; "
        }
        Why::NoChecksums => "Who made it? ",
    };
    json!({"kind": "odd-snapshot", "message": format!(
        "{date} is odd: {}. It stays, and counts for nothing: it is neither the newest nor any day's. {cure}`link-sync prune --date \
         {date} --yes`, on the store's machine, removes it", why.text())})
}

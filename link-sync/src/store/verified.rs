//! `.verified` in the store: when it was last verified, and how that ended; for `list` and for people.

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use super::notes::hint;
use super::outcome::{Outcome, Scope};
use super::place::Store;

/// The file.
const FILE: &str = ".verified";
/// More bytes than it has.
const LONGEST: u64 = 1 << 20;

/// One verification.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Verified {
    /// When it ended, RFC 3339 UTC.
    pub verified_at: String,
    /// `all`, or the one date.
    pub date: String,
    /// How many snapshots that were.
    pub dates: u64,
    /// Of 100 distinct files, so many were read.
    pub sample_percent: f64,
    /// Files read.
    pub inodes_read: u64,
    /// Their bytes.
    pub bytes_read: u64,
    /// What was wrong, and was not repaired.
    pub findings: u64,
    /// What was repaired.
    pub repaired: u64,
}

/// The file's content. Keys are only ever added.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Verifications {
    /// The last one of all.
    pub last: Option<Verified>,
    /// The last one that read every file of every snapshot.
    pub last_full: Option<Verified>,
    /// One that found something, as long as no later one that looked at least as closely found all to be well.
    #[serde(default)]
    pub unresolved: Option<Verified>,
}

impl Verified {
    /// It looked at least at what `other` looked at.
    fn covers(&self, other: &Verified) -> bool {
        (self.date == "all" || self.date == other.date) && self.sample_percent >= other.sample_percent
    }
}

impl Verifications {
    /// The store's record; an empty one if it was never verified, or the record is damaged.
    pub fn load(store: &Store) -> Verifications {
        hint(store, FILE, LONGEST)
    }
}

/// Adds a verification to the store's record, and hands on what it found to the next backup. The outcome is what is still
/// wrong.
pub fn record(store: &Store, scope: &Scope, outcome: &Outcome, repaired: u64) -> Result<()> {
    let verified = Verified {
        verified_at: common::status::now(),
        date: match &outcome.dates[..] {
            [date] if scope.date != "all" => date.clone(),
            _ => scope.date.clone(),
        },
        dates: outcome.dates.len() as u64,
        sample_percent: scope.sample,
        inodes_read: outcome.inodes_read,
        bytes_read: outcome.bytes_read,
        findings: outcome.total(),
        repaired,
    };
    let mut record = Verifications::load(store);
    if scope.date == "all" && scope.sample >= 100.0 {
        record.last_full = Some(verified.clone());
    }
    if record.unresolved.as_ref().is_none_or(|open| verified.covers(open)) {
        record.unresolved = (verified.findings > 0).then(|| verified.clone());
    }
    record.last = Some(verified);
    let text = format!("{}\n", serde_json::to_string_pretty(&record)?);
    common::durable::write(&store.path.join(FILE), text.as_bytes(), 0o600)
        .context("the verification could not be recorded in the store")?;
    super::damaged::record(store, scope, outcome)
}

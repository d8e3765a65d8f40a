//! `.damaged` in the store: what the last verification found wrong in the newest snapshot. The next backup takes these
//! paths anew although the source has not changed, so that no more dates share what is rotten; `verify --repair` then
//! finds the content in that date.

use std::collections::BTreeSet;
use std::io::Read as _;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use super::Store;
use super::meta::SnapshotMeta;
use super::verify::{Kind, Options, Outcome};

/// The file.
const FILE: &str = ".damaged";
/// More bytes than it has.
const LONGEST: u64 = 64 << 20;
/// Paths that are handed on; with more than this wrong, a full comparison is no more work.
const MOST: usize = 10_000;

#[derive(Debug, Default, Deserialize, Serialize)]
struct Damaged {
    /// The snapshot's id.
    id: String,
    /// `SOURCE/PATH`, in bytes.
    paths: BTreeSet<Vec<u8>>,
}

fn load(store: &Store) -> Damaged {
    let text = store.check().and_then(|dir| {
        let mut text = String::new();
        super::open_file(&dir, FILE)?.take(LONGEST).read_to_string(&mut text)?;
        Ok(text)
    });
    text.ok().and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default()
}

/// What is known to be wrong in the snapshot `base`: `SOURCE/PATH`.
pub fn paths(store: &Store, base: &SnapshotMeta) -> Vec<Vec<u8>> {
    let known = load(store);
    if known.id == base.id { known.paths.into_iter().take(MOST).collect() } else { Vec::new() }
}

/// Notes what a verification, whose outcome is what is still wrong, found in the newest snapshot, if it looked there.
pub fn record(store: &Store, options: &Options, outcome: &Outcome) -> Result<()> {
    let Some(newest) = store.snapshots()?.0.pop().filter(|newest| outcome.dates.contains(&newest.date))
    else {
        return Ok(());
    };
    let old = load(store);
    let mut now = Damaged { id: newest.id, paths: BTreeSet::new() };
    if options.sample < 100.0 && old.id == now.id {
        now.paths = old.paths;
    }
    let again = [Kind::Content, Kind::Unreadable, Kind::Missing, Kind::Attributes];
    let wrong = outcome.findings.iter().filter(|f| again.contains(&f.kind));
    let places = wrong.flat_map(|f| &f.places).filter(|(date, _)| *date == newest.date);
    now.paths.extend(places.map(|(_, path)| path.clone()));
    let path = store.path.join(FILE);
    if now.paths.is_empty() && !path.exists() {
        return Ok(());
    }
    common::durable::write(&path, &serde_json::to_vec(&now)?, 0o600)
        .context("what is damaged could not be noted in the store")
}

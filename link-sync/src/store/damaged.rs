//! `.damaged` in the store: what the last verification found wrong in the newest snapshot.
//! The next backup takes these paths anew although the source has not changed, so that no more dates share what is
//! rotten; `verify --repair` then finds the content in that date.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result};
use common::mutant;
use serde::{Deserialize, Serialize};

use super::findings::Damage;
use super::meta::SnapshotMeta;
use super::notes::hint;
use super::odd::Known;
use super::outcome::{Outcome, Scope};
use super::place::Store;

/// The file.
const FILE: &str = ".damaged";
/// More bytes than it has.
const LONGEST: u64 = 64 << 20;
/// Paths that are noted one by one; with more than this wrong, everything is compared.
const MOST: usize = 10_000;
/// The same for their bytes: they are told in one message.
const MOST_BYTES: usize = 1 << 20;

/// What is wrong. Keys are only ever added.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
pub struct Damaged {
    /// The snapshot's id.
    id: String,
    /// `SOURCE/PATH`, in bytes: what is missing, unreadable, or of other bytes or attributes.
    pub paths: BTreeSet<Vec<u8>>,
    /// More is wrong than is noted one by one: everything is compared.
    pub all: bool,
}

impl Damaged {
    /// What is known to be wrong in the snapshot `base`.
    pub fn of(store: &Store, base: &SnapshotMeta) -> Damaged {
        let known = Damaged::load(store);
        if known.id == base.id { known } else { Damaged::default() }
    }

    fn load(store: &Store) -> Damaged {
        hint(store, FILE, LONGEST)
    }
}

/// Notes what a verification, whose outcome is what is still wrong, found in the newest snapshot, if it looked there.
pub fn record(store: &Store, scope: &Scope, outcome: &Outcome) -> Result<()> {
    // Odd ones are no base of the next backup.
    let counted = match mutant::active("an-odd-one-is-the-base") {
        true => store.snapshots()?.0,
        false => Known::of(store, jiff::Timestamp::now())?.counted,
    };
    let seen = outcome.dates.iter().rfind(|date| counted.iter().any(|meta| meta.date == **date));
    let (Some(newest), Some(seen)) = (counted.last().cloned(), seen) else { return Ok(()) };
    // One that was published meanwhile shares what is rotten in the one before.
    let since = scope.date == "all" && *seen < newest.date;
    if *seen != newest.date && !since {
        return Ok(());
    }
    let old = Damaged::load(store);
    let mut now = Damaged { id: newest.id, ..Damaged::default() };
    if (scope.sample < 100.0 || since) && old.id == now.id {
        now = old;
    }
    let places = |kinds: &'static [Damage]| {
        let findings = outcome.findings.iter().filter(|f| kinds.contains(&f.kind));
        findings.flat_map(|f| &f.places).filter(|(date, _)| date == seen).map(|(_, path)| path)
    };
    // Where a folder has become something else, a repair mends all that is below it, as each date has a folder of its own.
    // rsync would compare with whatever a link in its place leads to.
    let not_folders: BTreeSet<&[u8]> = places(&[Damage::Type]).map(|p| &p[..]).collect();
    let above = |path: &[u8]| {
        path.iter().enumerate().filter(|(_, b)| **b == b'/').map(|(at, _)| at).collect::<Vec<_>>()
    };
    let wrong = places(&[Damage::Content, Damage::Unreadable, Damage::Missing, Damage::Attributes]);
    now.paths.extend(wrong.filter(|p| !above(p).iter().any(|at| not_folders.contains(&p[..*at]))).cloned());
    let many = |paths: &BTreeSet<Vec<u8>>| {
        paths.len() > MOST || paths.iter().map(Vec::len).sum::<usize>() > MOST_BYTES
    };
    if (many(&now.paths) || outcome.truncated) && not_folders.is_empty() {
        (now.paths, now.all) = (BTreeSet::new(), true);
    }
    while many(&now.paths) {
        let half = now.paths.len() / 2;
        now.paths = now.paths.into_iter().take(half).collect();
    }
    let path = store.path.join(FILE);
    if now.paths.is_empty() && !now.all && !path.exists() {
        return Ok(());
    }
    common::durable::write(&path, &serde_json::to_vec(&now)?, 0o600)
        .context("what is damaged could not be noted in the store")
}

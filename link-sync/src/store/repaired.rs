//! `.repaired` in the store: the paths that repairs have put right, and until which date. What was made of such a date before, elsewhere,
//! may hold what was damaged: so whoever compares two dates by inodes must take these paths for changed.

use std::collections::BTreeSet;

use anyhow::{Context as _, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use super::findings::Finding;
use super::notes::hint;
use super::place::Store;

/// The file.
const FILE: &str = ".repaired";
/// More bytes than it has.
const LONGEST: u64 = 256 << 20;
/// So many paths are listed of one repair; of more, everything counts.
const LISTED: usize = 50_000;

/// One repair.
#[derive(Debug, Deserialize, Serialize)]
struct Repair {
    /// The newest date that there was then.
    until: String,
    /// Base64, as they may be no text.
    paths: BTreeSet<String>,
    /// There were more.
    #[serde(default)]
    all: bool,
}

/// The file's content. Keys are only ever added.
#[derive(Debug, Default, Deserialize, Serialize)]
struct Repairs {
    repairs: Vec<Repair>,
}

/// What may be other elsewhere than it is in a date here.
#[derive(Debug, Default)]
pub struct Mended {
    /// Paths in the date.
    pub paths: BTreeSet<Vec<u8>>,
    /// Or all of it.
    pub all: bool,
}

/// Notes, durably, what is about to be put right in dates until `newest`; what is about dates before `oldest` is forgotten.
pub fn note(store: &Store, found: &[Finding], oldest: &str, newest: &str) -> Result<()> {
    let all: BTreeSet<&Vec<u8>> = found.iter().flat_map(|f| &f.places).map(|place| &place.1).collect();
    if all.is_empty() || common::mutant::active("a-repair-is-noted") {
        return Ok(());
    }
    let paths = all.iter().take(LISTED).map(|path| STANDARD.encode(path)).collect();
    let mut noted: Repairs = hint(store, FILE, LONGEST);
    noted.repairs.retain(|repair| repair.until.as_str() >= oldest);
    noted.repairs.push(Repair { until: newest.to_owned(), paths, all: all.len() > LISTED });
    common::durable::write(&store.path.join(FILE), &serde_json::to_vec(&noted)?, 0o600)
        .context("what is to be repaired could not be noted in the store")
}

/// What was put right in `date`, or may have been.
pub fn of(store: &Store, date: &str) -> Mended {
    let noted: Repairs = hint(store, FILE, LONGEST);
    let mut mended = Mended::default();
    for repair in noted.repairs.into_iter().filter(|repair| repair.until.as_str() >= date) {
        mended.all |= repair.all;
        mended.paths.extend(repair.paths.iter().filter_map(|path| STANDARD.decode(path).ok()));
    }
    mended
}

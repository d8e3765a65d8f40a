//! What a private folder is for, and how far its restore has come: what `state.json` in it says.

use common::mutant;
use serde::{Deserialize, Serialize};

use super::tame::Tamed;

/// What it is for, and how far it has come.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
pub struct Journal {
    /// The snapshot's id.
    pub snapshot: String,
    /// `SOURCE/PATH`: bytes, as two paths may look the same.
    pub path: Vec<u8>,
    /// Where it goes: bytes, too.
    pub target: Vec<u8>,
    /// The configuration in it is closed.
    #[serde(default)]
    pub closed: bool,
    /// All of it has arrived and is on the disk; this is how it is put in place.
    pub swap: Option<SwapPlan>,
}

impl Journal {
    /// Both are for the same wish.
    pub fn same(&self, other: &Journal) -> bool {
        Journal { swap: None, ..self.clone() } == Journal { swap: None, ..other.clone() }
    }
}

/// What is put in place.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
pub struct SwapPlan {
    /// Inode numbers, by path.
    pub names: Vec<(Vec<u8>, u64)>,
    /// Folders whose content is put in place, with their modification times, which renames move.
    pub folders: Vec<(Vec<u8>, i64, i64)>,
    /// The inode numbers stay what they are, and two names can be exchanged.
    #[serde(default = "yes")]
    pub steady: bool,
    /// What did not come as the store has it.
    #[serde(default)]
    pub tamed: Tamed,
    /// When the restore of the whole instance began in which it arrived: Nextcloud is closed until that one's end.
    #[serde(default)]
    pub since: Option<String>,
}

impl SwapPlan {
    /// Whether nobody could use what it has put in place: it is of the very restore that closed Nextcloud at `since`.
    pub fn unused(&self, since: Option<&str>) -> bool {
        since.is_some() && (self.since.as_deref() == since || mutant::active("closed-once-is-closed"))
    }
}

fn yes() -> bool {
    true
}

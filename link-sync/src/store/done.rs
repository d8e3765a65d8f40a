//! What was done in the partial snapshot: what publishing it has to know.

use std::collections::{HashMap, HashSet};

use super::sums::Sum;
use crate::tree::split;

/// The directories of one source whose time must be set at the end: to what the source said, or (`None`: something
/// was put in or taken out) to the base's.
pub type DirTimes = HashMap<Vec<u8>, Option<(i64, u32)>>;

/// What was done to one source's folder of the partial snapshot.
#[derive(Debug, Default)]
pub struct Done {
    /// It began as a whole clone of the base's.
    pub cloned: bool,
    /// Every directory in which something was put, taken out or left out since.
    pub times: DirTimes,
}

impl Done {
    /// Those directories and all that they are in.
    pub fn touched(&self) -> HashSet<Vec<u8>> {
        let mut all = HashSet::new();
        for folder in self.times.keys() {
            let mut path = &folder[..];
            while all.insert(path.to_vec()) {
                path = split(path).0;
            }
        }
        all
    }
}

/// [`Done`] by source.
pub type AllDone = HashMap<String, Done>;

/// What of one source's base has another name in the partial snapshot: by that name its inode, and the sum of what it holds.
pub type Reused = HashMap<Vec<u8>, (u64, Sum)>;

/// [`Reused`] by source.
pub type AllReused = HashMap<String, Reused>;

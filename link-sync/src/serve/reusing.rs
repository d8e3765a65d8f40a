//! Claims of a source are taken here, and what was found of them is remembered as long as its partial snapshot is written.

use std::io::Read;

use anyhow::Result;

use crate::protocol::{self, Kept};
use crate::store::damaged::Damaged;
use crate::store::done::AllReused;
use crate::store::open::Writable;
use crate::store::pace;
use crate::store::path::check_path;
use crate::store::reuse::{self, Found};
use crate::store::sums::Sum;

/// What a sum takes in memory until the end, beside its path.
const SUM: usize = 200;

/// What was found in the base.
#[derive(Debug)]
pub struct Reusing {
    /// What was verified and found damaged in the base.
    damaged: Damaged,
    by_source: AllReused,
    /// For what is remembered until the end.
    kept: Kept,
    /// For the claims of one request.
    memory: u64,
}

impl Reusing {
    /// Nothing yet. Twice so many bytes are remembered at most.
    pub fn new(damaged: Damaged, memory: u64) -> Reusing {
        Reusing { damaged, by_source: AllReused::new(), kept: Kept::at_most(memory), memory }
    }

    /// Something of `source` was claimed.
    pub fn has(&self, source: &str) -> bool {
        self.by_source.contains_key(source)
    }

    /// What `path` of `source` held when it was claimed, if it was linked.
    pub fn sum(&self, source: &str, path: &[u8]) -> Option<&Sum> {
        self.by_source.get(source)?.get(path).map(|(_, sum)| sum)
    }

    /// By source: what was linked.
    pub fn found(&self) -> &AllReused {
        &self.by_source
    }

    /// Takes a list of claims, and links what the base holds of them. `wrote` is told of bytes that are written.
    pub fn take(
        &mut self,
        writable: &Writable,
        source: &str,
        wrote: impl Fn(u64) -> Result<()>,
        input: &mut impl Read,
    ) -> Result<Found> {
        let (mut claims, mut room, mut full) = (Vec::new(), Kept::at_most(self.memory), false);
        protocol::read_list(input, |item| {
            let claim = protocol::claimed(item)?;
            check_path(&claim.path)?;
            // Those that there is no room for are sent, as if they were new.
            full = full || room.more(claim.memory()).is_err();
            if !full {
                claims.push(claim);
            }
            Ok(())
        })?;
        let (reused, kept) = (self.by_source.entry(source.to_owned()).or_default(), &mut self.kept);
        reuse::link(writable, &self.damaged, source, &claims, |path, known| {
            let room = kept.more(SUM + path.len()).is_ok();
            if room {
                reused.insert(path.to_vec(), known);
                wrote(pace::LINK)?;
            }
            Ok(room)
        })
    }
}

//! What is written to a store, and what is remembered until the end, is counted against what there is room for.

use anyhow::Result;
use common::mutant;

use crate::protocol::Kept;
use crate::store::allowance::Allowance;
use crate::store::done::DirTimes;
use crate::store::open::Writable;

/// What a folder's time takes in memory, beside its path.
pub const TIME: usize = 200;

/// So many bytes more are in the store, or on their way.
pub fn wrote(writable: &Writable, allowance: Option<&Allowance>, bytes: u64) -> Result<()> {
    writable.pace.wrote(bytes)?;
    allowance.map_or(Ok(()), |a| a.wrote(bytes))
}

/// The time of the folder `dir` is set at the end.
pub fn remember(kept: &mut Kept, times: &mut DirTimes, dir: &[u8]) -> Result<()> {
    if !times.contains_key(dir) {
        kept.more(TIME + 2 * dir.len())?;
        times.insert(dir.to_vec(), None);
    }
    Ok(())
}

/// Fails if less is free than must stay free, or if today's snapshots have added all that they may.
pub fn fits(writable: &Writable, allowance: Option<&Allowance>) -> Result<()> {
    writable.pace.room()?;
    let day = allowance.filter(|_| !mutant::active("a-copy-at-the-store-is-of-no-day"));
    day.map_or(Ok(()), |a| a.room(0, 0))
}

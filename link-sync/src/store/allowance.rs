//! What one day may add to a store: so that whoever has the key for backups cannot fill it in an hour.
//!
//! Measured by the disk itself, as nothing else counts links, folders and what rsync does: the first snapshot that is begun on a
//! day (UTC, by the store's clock) notes what is free, in `.day.json`; from then on the free room may shrink by so much
//! until the next day. The very first snapshot of a store may take all there is but the reserve.

use std::fs::File;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context as _, Result};
use common::fault::Fault;
use common::mutant;
use serde::{Deserialize, Serialize};

use super::Store;

/// The note.
const FILE: &str = ".day.json";
/// More bytes than it has.
const LONGEST: u64 = 4096;
/// Bytes that may always be added in a day, unless told otherwise: or half of what is free, if that is more.
const BYTES: u64 = 16 << 30;
/// The same for inodes.
const INODES: u64 = 1_000_000;
/// Snapshots of one day: one every five minutes. Each is looked at whenever there is another.
const SNAPSHOTS: usize = 300;
/// The disk is asked after so many bytes.
const STEP: u64 = 16 << 20;

/// What the profile says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// `max_bytes_per_day`
    pub bytes: Option<u64>,
    /// `max_inodes_per_day`
    pub inodes: Option<u64>,
}

/// What is left of the day's allowance.
#[derive(Debug)]
pub struct Allowance {
    dir: File,
    shown: String,
    /// So much must stay free, today, and the limit that says so.
    bytes: Option<Floor>,
    inodes: Option<Floor>,
    /// Written since the disk was last asked.
    since: AtomicU64,
}

#[derive(Clone, Copy, Debug)]
struct Floor {
    free: u64,
    limit: u64,
}

/// `.day.json`
#[derive(Debug, Deserialize, Serialize)]
struct Day {
    /// `2026-11-22`
    day: String,
    /// Free when it began.
    bytes: u64,
    /// `null` where a file system makes them as it needs them.
    inodes: Option<u64>,
}

impl Allowance {
    /// Today's, of the store opened as `dir`. `first`: it holds no snapshot yet.
    pub fn today(store: &Store, dir: &File, limits: Limits, first: bool) -> Result<Allowance> {
        let now = jiff::Timestamp::now().strftime("%F").to_string();
        let names = super::visit::names(&super::open_dir(dir, b"")?)?;
        let today = names.iter().filter(|(name, _, _)| name.starts_with(now.as_bytes())).count();
        if today >= SNAPSHOTS && !mutant::active("any-number-of-snapshots") {
            return Err(Fault::failed(format!(
                "{} holds {today} snapshots of today: that is enough",
                store.path.display()
            ))
            .hint("what makes so many? the next day begins anew")
            .into());
        }
        let (bytes, inodes) = free(dir)?;
        let file = store.path.join(FILE);
        let noted = super::open_file(dir, FILE).ok().and_then(|file| {
            use std::io::Read as _;
            let mut text = String::new();
            file.take(LONGEST).read_to_string(&mut text).ok()?;
            serde_json::from_str::<Day>(&text).ok()
        });
        // A clock that is put back begins no new day.
        let day = match noted.filter(|day| day.day >= now && !mutant::active("every-snapshot-is-a-new-day")) {
            Some(day) => day,
            // What the very first snapshot took is no measure for the rest of that day.
            None if first => Day { day: now, bytes, inodes },
            None => {
                let day = Day { day: now, bytes, inodes };
                let text = format!("{}\n", serde_json::to_string(&day)?);
                common::durable::write(&file, text.as_bytes(), 0o600)
                    .context("cannot note what is free in the store at the beginning of the day")?;
                day
            }
        };
        let floor = |free: u64, limit: Option<u64>, least: u64| {
            let limit = limit.or((!first).then(|| least.max(free / 2)))?;
            Some(Floor { free: free.saturating_sub(limit), limit })
        };
        Ok(Allowance {
            dir: dir.try_clone().context("cannot copy a descriptor")?,
            shown: store.path.display().to_string(),
            bytes: floor(day.bytes, limits.bytes, BYTES),
            inodes: day.inodes.and_then(|free| floor(free, limits.inodes, INODES)),
            since: AtomicU64::new(0),
        })
    }

    /// So many bytes more were written, or taken by what was made.
    pub fn wrote(&self, bytes: u64) -> Result<()> {
        if self.since.fetch_add(bytes, Ordering::Relaxed) + bytes < STEP {
            return Ok(());
        }
        self.since.store(0, Ordering::Relaxed);
        self.room(0, 0)
    }

    /// Refuses when `bytes` more, or `inodes` more, are more than today may add.
    pub fn room(&self, bytes: u64, inodes: u64) -> Result<()> {
        let (free_bytes, free_inodes) = free(&self.dir)?;
        let checks = [
            (self.bytes, Some(free_bytes), bytes, "bytes", "max_bytes_per_day"),
            (self.inodes, free_inodes, inodes, "files and folders", "max_inodes_per_day"),
        ];
        for (floor, free, more, what, key) in checks {
            let Some((floor, free)) = floor.zip(free) else { continue };
            if free >= floor.free.saturating_add(more) || mutant::active("a-day-may-add-everything") {
                continue;
            }
            return Err(Fault::failed(format!(
                "today's snapshots would take more than {} {what} of {}, the most that one day may add: {free} are free, {} must \
                 stay free today, {more} are to come",
                floor.limit, self.shown, floor.free
            ))
            .hint(format!(
                "if that much is really new, set {key} in [store] of the profile on the store's machine; what has arrived is \
                 kept, and the next day's run continues with it"
            ))
            .into());
        }
        Ok(())
    }
}

/// Free bytes, and free inodes where they are counted.
fn free(dir: &File) -> Result<(u64, Option<u64>)> {
    let stat = nix::sys::statvfs::fstatvfs(dir).context("cannot ask for the store's free room")?;
    let bytes = stat.blocks_available().saturating_mul(stat.fragment_size());
    Ok((bytes, (stat.files() != 0).then(|| stat.files_available())))
}

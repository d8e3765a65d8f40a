//! What one day may add to a store: so that whoever has the key for backups cannot fill it in an hour.
//!
//! Measured by the disk itself, as nothing else counts links, folders and what rsync does: the first snapshot that is begun on a
//! day (UTC, by the store's clock) notes what is free, and how many inodes are in use, in `.day.json`; from then on the one may
//! shrink, and the other grow, by so much until the next day. The very first snapshot of a store may take all there is but the reserve. What is more than a day may
//! add comes in parts, one each day.

use std::fs::File;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context as _, Result};
use common::fault::Fault;
use common::mutant;
use serde::{Deserialize, Serialize};

use super::beneath::{open_dir, open_file};
use super::place::Store;

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
    bytes: Option<Limit>,
    inodes: Option<Limit>,
    /// Written since the disk was last asked.
    since: AtomicU64,
}

/// So much more than when the day began may be taken.
#[derive(Clone, Copy, Debug)]
struct Limit {
    began: u64,
    most: u64,
}

/// What a disk says of itself.
#[derive(Clone, Copy, Debug)]
struct Usage {
    free_bytes: u64,
    /// `None` where a file system makes inodes as it needs them, and does not count them.
    free_inodes: Option<u64>,
    inodes: Option<u64>,
}

/// `.day.json`
#[derive(Debug, Deserialize, Serialize)]
struct Day {
    /// `2026-11-22`
    day: String,
    /// Free when it began.
    bytes: u64,
    /// The same; `null` where a file system makes them as it needs them.
    inodes: Option<u64>,
    /// In use when it began. What is free says little of them: on xfs, where any block may hold some, bytes take of it, too.
    #[serde(default)]
    inodes_used: Option<u64>,
}

impl Allowance {
    /// Today's, of the store opened as `dir`. `first`: it holds no snapshot yet.
    pub fn today(store: &Store, dir: &File, limits: Limits, first: bool) -> Result<Allowance> {
        let now = jiff::Timestamp::now().strftime("%F").to_string();
        let names = super::visit::names(&open_dir(dir, b"")?)?;
        let today = names.iter().filter(|(name, _, _)| name.starts_with(now.as_bytes())).count();
        if today >= SNAPSHOTS && !mutant::active("any-number-of-snapshots") {
            return Err(Fault::failed(format!(
                "{} holds {today} snapshots of today: that is enough",
                store.path.display()
            ))
            .hint("what makes so many? the next day begins anew")
            .into());
        }
        let Usage { free_bytes, free_inodes, inodes } = Usage::of(dir)?;
        let begun = Day { day: now.clone(), bytes: free_bytes, inodes: free_inodes, inodes_used: inodes };
        let file = store.path.join(FILE);
        let noted = open_file(dir, FILE).ok().and_then(|file| {
            use std::io::Read as _;
            let mut text = String::new();
            file.take(LONGEST).read_to_string(&mut text).ok()?;
            serde_json::from_str::<Day>(&text).ok()
        });
        // What the very first snapshot took is no measure for the rest of that day, and there is no history to be crowded out.
        let noted = noted.filter(|day| day.day >= now && !mutant::active("every-snapshot-is-a-new-day"));
        let day = match noted {
            _ if first => begun,
            Some(day) if day.day == now || mutant::active("a-day-to-come-is-waited-for") => day,
            other => {
                // A clock that is put back adds nothing to what was left; the day after it begins anew, and not only that which
                // a clock that was ahead has noted.
                let day = other.map_or(begun, |day| Day { day: now, ..day });
                let text = format!("{}\n", serde_json::to_string(&day)?);
                common::durable::write(&file, text.as_bytes(), 0o600)
                    .context("cannot note what is free in the store at the beginning of the day")?;
                day
            }
        };
        let limit = |began: Option<u64>, free: u64, set: Option<u64>, least: u64| {
            let most = set.unwrap_or_else(|| least.max(free / 2));
            began.filter(|_| !first).map(|began| Limit { began, most })
        };
        Ok(Allowance {
            dir: dir.try_clone().context("cannot copy a descriptor")?,
            shown: store.path.display().to_string(),
            bytes: limit(Some(day.bytes), day.bytes, limits.bytes, BYTES),
            inodes: limit(day.inodes_used, day.inodes.unwrap_or(0), limits.inodes, INODES),
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
        let now = Usage::of(&self.dir)?;
        let added = |from: u64, to: u64| i128::from(to) - i128::from(from);
        let checks = [
            (
                self.bytes.map(|l| (l.most, added(now.free_bytes, l.began))),
                bytes,
                "bytes",
                "max_bytes_per_day",
            ),
            (
                self.inodes.zip(now.inodes).map(|(l, inodes)| (l.most, added(l.began, inodes))),
                inodes,
                "files and folders",
                "max_inodes_per_day",
            ),
        ];
        for (limit, more, what, key) in checks {
            let Some((most, added)) = limit else { continue };
            let fits = |more: u64| added + i128::from(more) <= i128::from(most);
            if fits(more) || mutant::active("a-day-may-add-everything") {
                continue;
            }
            // No day has room for it: each takes what it may, and the next one goes on.
            if more > most && fits(0) && !mutant::active("too-much-for-a-day-never-begins") {
                continue;
            }
            return Err(Fault::failed(format!(
                "today's snapshots would take more than {most} {what} of {}, the most that one day may add: {} were added, {more} are \
                 to come",
                self.shown,
                added.max(0)
            ))
            .hint(format!(
                "it is measured by what is free, so whatever else is written to that disk counts, too. If that much is to be \
                 allowed, set {key} in [store] of the profile on the store's machine; what has arrived is kept, and the next day's run \
                 continues with it"
            ))
            .into());
        }
        Ok(())
    }
}

impl Usage {
    /// Asks the file system that `dir` is on.
    fn of(dir: &File) -> Result<Usage> {
        let stat = nix::sys::statvfs::fstatvfs(dir).context("cannot ask for the store's free room")?;
        let counted = |inodes: u64| (stat.files() != 0).then_some(inodes);
        Ok(Usage {
            free_bytes: stat.blocks_available().saturating_mul(stat.fragment_size()),
            free_inodes: counted(stat.files_available()),
            inodes: counted(stat.files().saturating_sub(stat.files_free())),
        })
    }
}

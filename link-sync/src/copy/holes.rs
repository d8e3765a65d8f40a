//! What the base of a copy should hold, and does not: a hole in it must not be handed on from date to date.
//!
//! Nothing of the copy is read for that but what linking touches anyway. The far end counts what it has linked; here it is
//! known what that should be, from two snapshots of the local store. Only where the two differ, each path is compared.

use std::fs::File;
use std::os::unix::fs::MetadataExt as _;

use anyhow::{Context as _, Result};
use common::mutant;
use nix::sys::stat::FileStat;

use crate::far::Far;
use crate::names::show;
use crate::protocol::{Cloned, Making};
use crate::store::changes::{self, Delta, Marked};
use crate::store::compare::{Lacking, Named};
use crate::tree::{Census, Stamp, join};

type Paths = Vec<Vec<u8>>;

/// The base of the local store and the wanted snapshot of it, of one source.
#[derive(Debug)]
pub struct Two<'a> {
    /// What the other store holds too.
    pub base: &'a File,
    /// What it is to get.
    pub wanted: &'a File,
}

/// What was wrong with the clone.
#[derive(Debug, Default)]
pub struct Holes {
    /// Paths that are sent again.
    pub lost: Paths,
    /// So many of them are there, but can have no link more.
    pub full: u64,
    /// Paths that nobody has copied there, and that are left out now.
    pub removed: u64,
    /// The first of them.
    pub removed_names: Vec<String>,
}

impl Holes {
    /// How many paths somebody has taken away, or changed.
    pub fn lacking(&self) -> u64 {
        (self.lost.len() as u64).saturating_sub(self.full)
    }
}

impl Two<'_> {
    /// Compares the clone with what it should hold, and has `changes` send again what is missing.
    pub fn fill(&self, source: &str, cloned: &Cloned, far: &mut Far, changes: &mut Delta) -> Result<Holes> {
        if self.census(cloned.times)? == cloned.census || mutant::active("what-a-copy-links-is-counted") {
            return Ok(Holes::default());
        }
        let mut folders: Paths = Vec::new();
        let request = Making::Compare { source: source.to_owned() };
        let lacking: Lacking = far.ask_with_list(&request, |list| {
            changes::shared(self.base, self.wanted, |dir, entry| match entry {
                None => {
                    folders.push(dir.to_vec());
                    list.record(0, 0, (0, 0), dir)
                }
                Some((name, stat)) => {
                    let time = time(stat);
                    let kind = stat.st_mode & libc::S_IFMT;
                    list.record(kind, size(stat), (time.sec, time.nsec), &join(dir, name))
                }
            })
        })?;
        let Named { lost, touched } = lacking.named(&folders, |each| {
            changes::shared(self.base, self.wanted, |dir, entry| {
                entry.into_iter().for_each(|(name, _)| each(dir, name));
                Ok(())
            })
        })?;
        let mut again: Vec<Marked> = Vec::new();
        for path in lost.iter().cloned().chain(touched) {
            again.push(changes::mark(self.wanted, path)?);
        }
        // The top's own time is told by the census alone.
        changes.root = Some(changes::mark(self.wanted, Vec::new())?);
        let files = again.iter().filter(|m| m.kind != libc::S_IFDIR).count() as u64;
        changes.shared = changes.shared.saturating_sub(files);
        changes.marked.extend(again.into_iter().filter(|m| !m.path.is_empty()));
        changes.marked.sort_unstable_by(|a, b| a.path.cmp(&b.path));
        changes.marked.dedup_by(|a, b| a.path == b.path);
        Ok(Holes { lost, full: cloned.full, removed: lacking.removed, removed_names: lacking.removed_names })
    }

    /// What a clone of the base holds that has lost nothing.
    fn census(&self, times: bool) -> Result<Census> {
        let counted = |stamp: Stamp| if times { stamp.everywhere() } else { Stamp::default() };
        let top = self.base.metadata().context("cannot look at a source's folder")?;
        let top = Stamp { sec: top.mtime(), nsec: u32::try_from(top.mtime_nsec()).unwrap_or(0) };
        let mut census = Census::default();
        census.add(b"", b"", true, 0, counted(top));
        changes::shared(self.base, self.wanted, |dir, entry| -> Result<()> {
            if let Some((name, stat)) = entry {
                let is_dir = stat.st_mode & libc::S_IFMT == libc::S_IFDIR;
                census.add(dir, name, is_dir, size(stat), counted(time(stat)));
            }
            Ok(())
        })?;
        Ok(census)
    }
}

impl Holes {
    /// The names of what is sent again.
    pub fn names(&self) -> impl ExactSizeIterator<Item = String> {
        self.lost.iter().map(|path| show(path))
    }
}

fn size(stat: &FileStat) -> u64 {
    u64::try_from(stat.st_size).unwrap_or(0)
}

fn time(stat: &FileStat) -> Stamp {
    Stamp { sec: stat.st_mtime, nsec: u32::try_from(stat.st_mtime_nsec).unwrap_or(0) }
}

//! The dump that is to be restored: found complete, and held.

use std::path::{Path, PathBuf};

use anyhow::Result;
use common::fault::Fault;
use common::lock::Lock;

use crate::dumps::{Dumps, is_ahead};
use crate::facts::Facts;
use crate::list;
use crate::manifest::{self, Farm, Manifest};

/// A dump that was found complete, kept from being pruned as long as this lives.
pub(crate) struct Source {
    pub(crate) dir: PathBuf,
    pub(crate) manifest: Manifest,
    /// Where pg_restore finds the files by their original names.
    pub(crate) scratch: PathBuf,
    lock: Option<Lock>,
}

impl Source {
    /// The one in `dir`, outside the folder of the dumps.
    pub(crate) fn outside(dir: PathBuf, scratch: PathBuf) -> Result<Source> {
        let manifest = Manifest::read(&dir).map_err(|e| manifest::damaged(&dir, &e))?;
        Ok(Source { dir, manifest, scratch, lock: None })
    }

    /// Finds the dump of `date`, or the newest complete one, in the folder `dumps`, and holds it.
    pub(crate) fn dated(dumps: &Path, date: Option<&str>) -> Result<Source> {
        let none = || Fault::failed(format!("there is no complete dump in {}", dumps.display()));
        let folder = Dumps::open(dumps)?.ok_or_else(none)?;
        let lock = folder.lock_shared()?;
        let manifest = match date {
            Some(date) => {
                let (dates, _) = folder.dates()?;
                let date = &*common::dates::resolve(date, &dates, "dump", &dumps.display().to_string())?;
                let dir = folder.path().join(date);
                if !dir.exists() {
                    let fault = Fault::failed(format!("there is no dump {date} in {}", dumps.display()));
                    return Err(fault.hint("`pg-snap list` shows what there is").into());
                }
                list::read(&folder, date).map_err(|e| manifest::damaged(&dir, &e))?
            }
            None => {
                let (dates, _) = folder.dates()?;
                // One that was made when the clock was ahead is the newest only if there is no other.
                let (ahead, past): (Vec<_>, Vec<_>) = dates.iter().rev().partition(|d| is_ahead(d));
                past.into_iter().chain(ahead).find_map(|d| list::read(&folder, d).ok()).ok_or_else(none)?
            }
        };
        let dir = folder.path().join(&manifest.date);
        Ok(Source { dir, manifest, scratch: folder.scratch(), lock: Some(lock) })
    }

    /// What it says of roles, settings and grants.
    pub(crate) fn facts(&self) -> Result<Facts> {
        self.manifest.facts(&self.dir).map_err(|e| manifest::damaged(&self.dir, &e))
    }

    /// The files under pg_dump's own names.
    pub(crate) fn farm(&self) -> Result<Farm> {
        // What is locked lies in our own folder of dumps.
        self.manifest.farm(&self.dir, &self.scratch, self.lock.is_some())
    }
}

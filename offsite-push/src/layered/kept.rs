//! What is kept here of the newest published date, as `link-sync layer --keep-manifest` writes it: its files' hashes and sizes. When no
//! date of the container is in the store any more, the next one is laid upon that, and only what is new is sent.
//!
//! `manifests/DATE` in the state folder is written with the last image of a date; the record names it, by its hash, once the date is
//! published. Killed in between, what it names is there; a file that it does not name goes with the next push.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use common::{durable, mutant, places};
use sha2::{Digest as _, Sha256};

use super::below::Below;
use super::images::hex;
use super::list::{LARGE, is_image};
use super::record::{Kept, Record};
use crate::store::is_date;

/// The folder.
#[derive(Debug)]
pub(super) struct Manifests(PathBuf);

impl Manifests {
    /// The folder in the state folder `state`; what `record` does not name is removed.
    pub(super) fn open(state: &Path, record: &Record) -> Result<Manifests> {
        let manifests = Manifests(places::private_dir(&state.join("manifests"))?);
        manifests.clear(record)?;
        Ok(manifests)
    }

    /// Removes what the record does not name.
    pub(super) fn clear(&self, record: &Record) -> Result<()> {
        let context = || format!("cannot clear {}", self.0.display());
        let unfinished = record.unfinished.as_ref().and_then(|unfinished| unfinished.kept.as_ref());
        let named: Vec<&str> = record.kept.iter().chain(unfinished).map(|kept| &kept.date[..]).collect();
        for entry in std::fs::read_dir(&self.0).with_context(context)? {
            let entry = entry.with_context(context)?;
            let name = entry.file_name().into_string().unwrap_or_default();
            // Also what was about to be written.
            let passing = name.strip_prefix('.').and_then(|rest| rest.strip_suffix(".new"));
            if is_date(passing.unwrap_or(&name)) && !named.contains(&&name[..]) {
                std::fs::remove_file(entry.path()).with_context(context)?;
            }
        }
        Ok(())
    }

    /// The file of a date.
    pub(super) fn path(&self, date: &str) -> PathBuf {
        self.0.join(date)
    }

    /// The date that was kept, if the container has it, and this machine knows all its images by their hashes. An error if the file is
    /// not what was kept.
    pub(super) fn usable<'r>(&self, record: &'r Record, below: &Below) -> Result<Option<&'r Kept>> {
        let Some(kept) = record.kept.as_ref().filter(|kept| below.holds(&kept.date)) else { return Ok(None) };
        let ours = record.dates.get(&kept.date).is_some_and(|dated| dated.id == kept.id);
        let known = |name: &String| {
            !is_image(name)
                || record.images.contains_key(name)
                || mutant::active("an-unseen-base-has-known-images")
        };
        if !ours || !below.names(&kept.date).iter().filter(|name| !name.starts_with(LARGE)).all(known) {
            return Ok(None);
        }
        let path = self.path(&kept.date);
        let bytes = durable::read(&path)?.with_context(|| format!("{} is gone", path.display()))?;
        let right =
            hex(&Sha256::digest(&bytes)) == kept.sha256 || mutant::active("a-manifest-is-what-was-kept");
        anyhow::ensure!(right, "{} is not what was kept", path.display());
        Ok(Some(kept))
    }
}

//! A published snapshot, opened and kept from being removed.

use std::fs::File;
use std::os::fd::RawFd;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use common::account::Account;
use common::lock::Lock;

use super::beneath::{open_dir, open_file};
use super::layout::META;
use super::meta::SnapshotMeta;
use super::place::Store;

/// An opened snapshot that stays as long as this lives.
#[derive(Debug)]
pub struct Held {
    /// Its description, with the date that its folder is named by.
    pub meta: SnapshotMeta,
    /// The same as it is on the disk, byte for byte.
    pub text: String,
    /// Its folder.
    pub top: File,
    /// That folder's path.
    pub path: PathBuf,
    /// Shared, so that no prune removes it.
    pub(super) lock: Lock,
}

impl Held {
    /// Opens the snapshot `date` of `store` (opened as `dir`) and shares its lock.
    pub fn open(store: &Store, dir: &File, date: &str) -> Result<Held> {
        let path = store.path.join(date);
        let context = || format!("cannot open {}", path.display());
        let lock = open_file(dir, &format!("{date}/{META}/lock")).with_context(context)?;
        let lock = Lock::shared_file(lock, &path.join(META).join("lock"), &format!("the snapshot {date}"))?;
        // After it was locked: it is there, and stays.
        let (meta, text) = SnapshotMeta::load(dir, date).with_context(context)?;
        let top = open_dir(dir, date.as_bytes()).with_context(context)?;
        Ok(Held { meta, text, top, path, lock })
    }

    /// Its lock, for a child that may outlive us.
    pub fn lock_fd(&self) -> RawFd {
        self.lock.fd()
    }

    /// What lies in the store of an account is read with its rights: it could have put anything there. `None` if it is nobody
    /// else's.
    pub fn owner(&self) -> Result<Option<Account>> {
        Account::of_folder(&self.top.metadata().context("cannot look at the snapshot")?)
    }
}

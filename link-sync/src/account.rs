//! An account's store, written by root with the account's rights: what the account put there, manifests among it,
//! then leads to nothing the account could not do itself.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use nix::unistd::{Gid, Uid, setegid, seteuid, setgroups};

/// Root that has become an account for a while; dropping it makes it root again.
#[derive(Debug)]
pub struct Account {
    uid: Uid,
}

impl Account {
    /// Takes the rights of whoever owns `store`; `None` if we are not root, or root owns it.
    pub fn of(store: &Path) -> Result<Option<Account>> {
        let Ok(meta) = std::fs::metadata(store) else { return Ok(None) };
        let (uid, gid) = (Uid::from_raw(meta.uid()), Gid::from_raw(meta.gid()));
        if !Uid::effective().is_root() || uid.is_root() {
            return Ok(None);
        }
        setgroups(&[]).and_then(|()| setegid(gid)).and_then(|()| seteuid(uid)).with_context(|| {
            format!("cannot take the rights of user id {uid}, who owns {}", store.display())
        })?;
        Ok(Some(Account { uid }))
    }

    /// Does one thing as root: opens what only root may read. Not for several threads at once.
    pub fn as_root<T>(&self, open: impl FnOnce() -> T) -> Result<T> {
        seteuid(Uid::from_raw(0)).context("cannot become root again")?;
        let done = open();
        seteuid(self.uid).with_context(|| format!("cannot take the rights of user id {} again", self.uid))?;
        Ok(done)
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        // It cannot fail: root is what this process was started as.
        seteuid(Uid::from_raw(0)).and_then(|()| setegid(Gid::from_raw(0))).ok();
    }
}

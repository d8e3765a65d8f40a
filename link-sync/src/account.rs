//! An account's store, handled by root with the account's rights: what the account put there, manifests among it,
//! then leads to nothing the account could not do itself. Here this process itself changes; a child's account is
//! [`common::run::Cmd::run_as`]'s.

use std::path::Path;

use anyhow::{Context as _, Result};
use common::account::Account;
use nix::unistd::{Gid, Uid, setegid, seteuid, setgroups, setresgid, setresuid};

/// Root that has become an account for a while; dropping it makes it root again.
#[derive(Debug)]
pub struct Taken {
    uid: Uid,
}

/// Whoever owns `store`, if its rights are to be taken.
fn owner(store: &Path) -> Result<Option<Account>> {
    let Ok(meta) = std::fs::metadata(store) else { return Ok(None) };
    Account::of_folder(&meta)
}

fn what(account: &Account, store: &Path) -> String {
    format!("cannot take the rights of {}, who owns {}", account.name, store.display())
}

/// Takes the rights of whoever owns `store`, for good; nothing if we are not root, or root owns it.
pub fn become_owner(store: &Path) -> Result<()> {
    let Some(account) = owner(store)? else { return Ok(()) };
    let (uid, gid) = (account.uid(), account.gid());
    setgroups(&account.groups())
        .and_then(|()| setresgid(gid, gid, gid))
        .and_then(|()| setresuid(uid, uid, uid))
        .with_context(|| what(&account, store))
}

impl Taken {
    /// Takes the rights of whoever owns `store`; `None` if we are not root, or root owns it.
    pub fn of(store: &Path) -> Result<Option<Taken>> {
        let Some(account) = owner(store)? else { return Ok(None) };
        setgroups(&account.groups())
            .and_then(|()| setegid(account.gid()))
            .and_then(|()| seteuid(account.uid()))
            .with_context(|| what(&account, store))?;
        Ok(Some(Taken { uid: account.uid() }))
    }

    /// Does one thing as root: opens what only root may read. Not for several threads at once.
    pub fn as_root<T>(&self, open: impl FnOnce() -> T) -> Result<T> {
        seteuid(Uid::from_raw(0)).context("cannot become root again")?;
        let done = open();
        if seteuid(self.uid).is_err() {
            // Whatever came next would be done as root, in a store that is not root's. The kernel has no reason to
            // refuse this; if it finds one, not a step further.
            common::say!(crate::TOOL, "cannot go back to the rights of user id {}: ended at once", self.uid);
            std::process::abort();
        }
        Ok(done)
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        // It cannot fail: root is what this process was started as.
        seteuid(Uid::from_raw(0)).and_then(|()| setegid(Gid::from_raw(0))).ok();
    }
}

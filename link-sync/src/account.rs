//! An account's store, handled by root with the account's rights.
//! So what the account put there, manifests among it, leads to nothing the account could not do itself. Here this
//! process itself changes; a child's account is [`common::run::Cmd::run_as`]'s.
//!
//! The calls are libc's, which change every thread. None of them is taken at its word: what the kernel says afterwards
//! counts. Whoever cannot take the rights does nothing at all; whoever cannot go back to them after a moment as root, or to
//! root in the end, ends at once ([`std::process::abort`]): whatever came next would be done as somebody else.

use std::fs::Metadata;

use anyhow::{Context as _, Result, ensure};
use common::account::Account;
use common::mutant;
use nix::errno::Errno;
use nix::unistd::{
    Gid, Uid, getgroups, getresgid, getresuid, setegid, seteuid, setgroups, setresgid, setresuid,
};

use crate::store::Store;

/// Root that has become an account for a while; dropping it makes it root again.
#[derive(Debug)]
#[must_use = "the rights are given back when it is dropped"]
pub struct AsOwner {
    account: Account,
    /// Root's groups.
    before: Vec<Gid>,
}

/// For as long as it lives, root again.
struct AsRoot<'a>(&'a AsOwner);

/// Whoever owns `store`, if its rights are to be taken. The folder is looked at as it was opened, through no link that
/// another account could have made: what its name leads to a moment later is another question, and then asked with these
/// rights.
fn owner(store: &Store) -> Result<Option<Account>> {
    let folder: Metadata = store.folder()?.metadata().context("cannot look at the store")?;
    Account::of_folder(&folder)
}

fn what(account: &Account, store: &Store) -> String {
    format!("cannot take the rights of {}, who owns {}", account.name, store.path.display())
}

/// Takes the rights of whoever owns `store`, for good; nothing if we are not root, or root owns it.
pub fn become_owner(store: &Store) -> Result<()> {
    let Some(taken) = AsOwner::of(store)? else { return Ok(()) };
    let failed = what(&taken.account, store);
    taken.for_good().context(failed)
}

impl AsOwner {
    /// Takes the rights of whoever owns `store`; `None` if we are not root, or root owns it.
    pub fn of(store: &Store) -> Result<Option<AsOwner>> {
        let Some(account) = owner(store)? else { return Ok(None) };
        // From here on it is given back, however far it comes.
        let before = getgroups().context("cannot ask for our groups")?;
        let taken = AsOwner { account, before };
        setgroups(&taken.account.groups())
            .and_then(|()| setegid(taken.account.gid()))
            .and_then(|()| taken.take())
            .with_context(|| what(&taken.account, store))?;
        Ok(Some(taken))
    }

    /// There is no way back.
    fn for_good(self) -> Result<()> {
        let (uid, gid) = (self.account.uid(), self.account.gid());
        setresgid(gid, gid, gid).and_then(|()| setresuid(uid, uid, uid))?;
        let (users, groups) = (getresuid()?, getresgid()?);
        ensure!(
            [users.real, users.effective, users.saved].iter().all(|u| *u == uid)
                && [groups.real, groups.effective, groups.saved].iter().all(|g| *g == gid),
            "the kernel has not done it"
        );
        std::mem::forget(self);
        Ok(())
    }

    /// Does one thing as root: opens what only root may read. Not for several threads at once.
    pub fn as_root<T>(&self, open: impl FnOnce() -> T) -> Result<T> {
        become_root().context("cannot become root again")?;
        // Also if it panics.
        let _back = AsRoot(self);
        Ok(open())
    }

    fn take(&self) -> nix::Result<()> {
        let (uid, gid) = (self.account.uid(), self.account.gid());
        seteuid(uid)?;
        let is = nix::unistd::geteuid() == uid && nix::unistd::getegid() == gid;
        if is { Ok(()) } else { Err(Errno::EPERM) }
    }
}

fn become_root() -> nix::Result<()> {
    let root = Uid::from_raw(0);
    seteuid(root)?;
    if nix::unistd::geteuid() == root { Ok(()) } else { Err(Errno::EPERM) }
}

/// The kernel has no reason to refuse this; if it finds one, not a step further.
fn ended(what: std::fmt::Arguments, why: Errno) -> ! {
    common::say!(crate::TOOL, "{what}: {}: ended at once", why.desc());
    std::process::abort();
}

impl Drop for AsRoot<'_> {
    fn drop(&mut self) {
        match self.0.take() {
            Err(why) if !mutant::active("return-to-the-account-or-end") => {
                ended(format_args!("cannot go back to the rights of user id {}", self.0.account.uid()), why)
            }
            _ => {}
        }
    }
}

impl Drop for AsOwner {
    fn drop(&mut self) {
        let back =
            become_root().and_then(|()| setegid(Gid::from_raw(0))).and_then(|()| setgroups(&self.before));
        match back {
            Err(why) if !mutant::active("return-to-root-or-end") => {
                ended(format_args!("cannot become root again after user id {}", self.account.uid()), why)
            }
            _ => {}
        }
    }
}

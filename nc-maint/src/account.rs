//! Who a child runs as: the owner of config.php for occ, the invoking user for the command.

use std::ffi::{CString, OsString};

use anyhow::{Context as _, Result};
use common::fault::Fault;
use common::run::Cmd;
use nix::unistd::{Gid, Uid, User, geteuid, getgrouplist};
use serde::{Deserialize, Serialize};

/// An account with all its groups, looked up before the fork.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub(crate) struct Account {
    /// Login name; the number where there is none.
    pub(crate) name: String,
    uid: u32,
    gid: u32,
    groups: Vec<u32>,
    home: OsString,
}

impl Account {
    /// The account with this user id.
    fn of(uid: Uid) -> Result<Option<Account>> {
        let Some(user) = User::from_uid(uid).with_context(|| format!("cannot look up user id {uid}"))? else {
            return Ok(None);
        };
        let name = CString::new(user.name.as_str()).context("a login name with a NUL")?;
        let groups = getgrouplist(&name, user.gid)
            .with_context(|| format!("cannot look up the groups of {}", user.name))?;
        Ok(Some(Account {
            name: user.name,
            uid: uid.as_raw(),
            gid: user.gid.as_raw(),
            groups: groups.into_iter().map(Gid::as_raw).collect(),
            home: user.dir.into_os_string(),
        }))
    }

    /// The owner of a file. One without an account (a container's) has the file's group and no other.
    pub(crate) fn owner(uid: u32, gid: u32) -> Result<Account> {
        let bare =
            || Account { name: uid.to_string(), uid, gid, groups: vec![gid], home: OsString::from("/") };
        Ok(Account::of(Uid::from_raw(uid))?.unwrap_or_else(bare))
    }

    /// The user who asked for this: the one sudo names, else the one we are.
    pub(crate) fn invoking() -> Result<Account> {
        let own = geteuid();
        let us = || Account::owner(own.as_raw(), nix::unistd::getegid().as_raw());
        if !own.is_root() {
            return us();
        }
        let variable = |name: &str| std::env::var(name).ok();
        match (variable("SUDO_UID"), variable("SUDO_GID"), variable("SUDO_USER")) {
            (None, None, None) => us(),
            (uid, gid, user) => {
                let account = uid.as_deref().and_then(|u| u.parse().ok()).map(Uid::from_raw);
                let account = account.map(Account::of).transpose()?.flatten();
                // Only what sudo itself would set is believed; running as root instead would be worse.
                account
                    .filter(|a| gid.as_deref() == Some(a.gid.to_string().as_str()))
                    .filter(|a| user.as_deref() == Some(a.name.as_str()))
                    .ok_or_else(|| {
                        Fault::denied("SUDO_UID, SUDO_GID and SUDO_USER do not name one account")
                            .hint("call this through sudo, or as root with these variables unset")
                            .into()
                    })
            }
        }
    }

    /// `cmd`, run as this account with its own HOME, USER and LOGNAME.
    pub(crate) fn apply(&self, cmd: Cmd) -> Cmd {
        let cmd = cmd.env("HOME", &self.home).env("USER", &self.name).env("LOGNAME", &self.name);
        if geteuid().as_raw() == self.uid {
            return cmd;
        }
        let groups: Vec<Gid> = self.groups.iter().copied().map(Gid::from_raw).collect();
        cmd.account(Uid::from_raw(self.uid), Gid::from_raw(self.gid), &groups)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_owner_without_an_account_has_one_group() {
        let owner = Account::owner(4_000_000, 4_000_001).unwrap();
        assert_eq!((owner.name.as_str(), owner.groups.as_slice()), ("4000000", &[4_000_001][..]));
    }

    #[test]
    fn root_is_looked_up_with_its_groups() {
        let root = Account::of(Uid::from_raw(0)).unwrap().unwrap();
        assert_eq!((root.name.as_str(), root.gid), ("root", 0));
        assert!(root.groups.contains(&0));
    }
}

//! Whose rights something runs with: the only place that knows accounts, and the rule by which one is taken.
//!
//! [`Cmd::run_as`](crate::run::Cmd::run_as) is the one function that changes a child's account, and it takes nothing but
//! an [`Account`]. uid 0 never comes from who owns a file alone: whoever may write beside a file can put a link to a
//! root's file, or a root's file itself, in its place. It takes the proof that nobody but root can change any of the files
//! that decide ([`Account::of_files`]), a name that somebody wrote down ([`Account::named`]), or sudo's word.

use std::ffi::{CString, OsString};
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use nix::unistd::{Gid, Uid, User, geteuid, getgrouplist};
use serde::{Deserialize, Serialize};

use crate::fault::Fault;
use crate::mutant;

/// The group of what has none of its own: nobody's.
const NOGROUP: u32 = 65534;

/// An account with all its groups, looked up before a fork.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct Account {
    /// Login name; the number where there is none.
    pub name: String,
    uid: u32,
    gid: u32,
    groups: Vec<u32>,
    home: OsString,
}

impl Account {
    /// The account with this login name, which somebody has written down: root, too, if they did.
    pub fn named(name: &str) -> Result<Account> {
        let user = User::from_name(name).with_context(|| format!("cannot look up the account {name}"))?;
        match user {
            Some(user) => Account::from_user(user),
            None => Err(Fault::config(format!("there is no account {name} on this machine")).into()),
        }
    }

    /// Whoever owns all of `files`, where the first is what they must really own, and the others may be root's instead:
    /// what runs as an ordinary account may be installed by root. Symbolic links are not followed, and refused.
    /// root is refused unless every one of them, and every folder above, is root's and closed to all others.
    pub fn of_files(files: &[&Path]) -> Result<Account> {
        let mut owner: Option<(u32, u32, &Path)> = None;
        for path in files {
            let meta = look(path)?;
            match owner {
                None => owner = Some((meta.uid(), meta.gid(), path)),
                Some((uid, _, first)) if ![uid, 0].contains(&meta.uid()) && uid != 0 => {
                    return Err(Fault::denied(format!(
                        "{} belongs to user id {uid} and {} to user id {}: it is not clear whose they are",
                        first.display(),
                        path.display(),
                        meta.uid()
                    ))
                    .hint(format!("give them one owner: chown {uid} {}", path.display()))
                    .into());
                }
                Some(_) => {}
            }
        }
        let (uid, gid, first) = owner.context("no file says whose account this is")?;
        if uid == 0 && !mutant::active("root-by-a-files-owner") {
            for path in files {
                only_root_changes(path).map_err(|why| refuse_root(first, &why))?;
            }
        }
        Account::number(uid, gid)
    }

    /// The account whose rights are taken for what lies in a folder with this owner, as it can have put anything
    /// there. `None` if we are that account already, or are not root and can only be who we are.
    pub fn of_folder(folder: &Metadata) -> Result<Option<Account>> {
        if !geteuid().is_root() || folder.uid() == 0 {
            return Ok(None);
        }
        Account::number(folder.uid(), folder.gid()).map(Some)
    }

    /// The user who asked for this: the one sudo names, else the one we are.
    pub fn invoking() -> Result<Account> {
        let own = geteuid();
        let us = || Account::number(own.as_raw(), nix::unistd::getegid().as_raw());
        if !own.is_root() {
            return us();
        }
        let variable = |name: &str| std::env::var(name).ok();
        match (variable("SUDO_UID"), variable("SUDO_GID"), variable("SUDO_USER")) {
            (None, None, None) => us(),
            (uid, gid, user) => {
                let account = uid.as_deref().and_then(|u| u.parse().ok()).map(Uid::from_raw);
                let account = account.map(Account::known).transpose()?.flatten();
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

    /// Its user id.
    pub fn uid(&self) -> Uid {
        Uid::from_raw(self.uid)
    }

    /// Its main group.
    pub fn gid(&self) -> Gid {
        Gid::from_raw(self.gid)
    }

    /// All its groups, the main one among them.
    pub fn groups(&self) -> Vec<Gid> {
        self.groups.iter().copied().map(Gid::from_raw).collect()
    }

    /// What a login of it has in its environment.
    pub(crate) fn environment(&self) -> [(&'static str, OsString); 3] {
        [
            ("HOME", self.home.clone()),
            ("USER", self.name.clone().into()),
            ("LOGNAME", self.name.clone().into()),
        ]
    }

    /// The account with this number; one that is unknown here (a container's) has the one group of what it owns. Never
    /// root's group, which files often have only because nobody changed it.
    fn number(uid: u32, gid: u32) -> Result<Account> {
        let gid = if gid == 0 && uid != 0 { NOGROUP } else { gid };
        let bare =
            || Account { name: uid.to_string(), uid, gid, groups: vec![gid], home: OsString::from("/") };
        Ok(Account::known(Uid::from_raw(uid))?.unwrap_or_else(bare))
    }

    fn known(uid: Uid) -> Result<Option<Account>> {
        let user = User::from_uid(uid).with_context(|| format!("cannot look up user id {uid}"))?;
        user.map(Account::from_user).transpose()
    }

    fn from_user(user: User) -> Result<Account> {
        let name = CString::new(user.name.as_str()).context("a login name with a NUL")?;
        let groups = getgrouplist(&name, user.gid)
            .with_context(|| format!("cannot look up the groups of {}", user.name))?;
        Ok(Account {
            name: user.name,
            uid: user.uid.as_raw(),
            gid: user.gid.as_raw(),
            groups: groups.into_iter().map(Gid::as_raw).collect(),
            home: user.dir.into_os_string(),
        })
    }
}

/// What is there, itself: a link in its place says nothing of who owns what it leads to.
fn look(path: &Path) -> Result<Metadata> {
    let meta = std::fs::symlink_metadata(path).map_err(|e| {
        let what = format!("cannot look at {}: {e}", path.display());
        match e.kind() {
            std::io::ErrorKind::PermissionDenied => Fault::denied(what),
            _ => Fault::config(what),
        }
    })?;
    if meta.is_symlink() && !mutant::active("owner-through-a-link") {
        return Err(Fault::denied(format!(
            "{} is a symbolic link: whose account this is cannot be told from what it leads to",
            path.display()
        ))
        .hint(format!("put the file itself at {}, or name the account by a command of your own in the profile, like occ = [\"sudo\", \"-u\", \"www-data\", \"php\", \"…/occ\"]", path.display()))
        .into());
    }
    Ok(meta)
}

/// Why somebody other than root could change what `path` is, if anybody can.
fn only_root_changes(path: &Path) -> Result<(), String> {
    let path = std::path::absolute(path).map_err(|e| e.to_string())?;
    for part in path.ancestors() {
        let meta = std::fs::symlink_metadata(part).map_err(|e| format!("{}: {e}", part.display()))?;
        if meta.is_symlink() {
            return Err(format!("{} is a symbolic link", part.display()));
        }
        if meta.uid() != 0 {
            return Err(format!("{} belongs to user id {}", part.display(), meta.uid()));
        }
        // In a folder like /tmp the sticky bit leaves what is root's to root.
        let sticky = meta.is_dir() && part != path && meta.mode() & libc::S_ISVTX != 0;
        if meta.mode() & 0o022 != 0 && !sticky {
            return Err(format!(
                "{} can be written by others (mode {:04o})",
                part.display(),
                meta.mode() & 0o7777
            ));
        }
    }
    Ok(())
}

fn refuse_root(first: &Path, why: &str) -> Fault {
    let shown = first.display();
    Fault::denied(format!("{shown} belongs to root, but {why}: nothing is run as root for that"))
        .hint(format!("give it to the account that runs it (chown www-data: {shown}); to run it as root, nobody else may be able to change it"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt as _, chown, symlink};

    #[test]
    fn an_owner_without_an_account_has_one_group_and_never_roots() {
        let owner = Account::number(4_000_000, 4_000_001).unwrap();
        assert_eq!((owner.name.as_str(), owner.groups.as_slice()), ("4000000", &[4_000_001][..]));
        let owner = Account::number(4_000_000, 0).unwrap();
        assert_eq!((owner.gid, owner.groups.as_slice()), (NOGROUP, &[NOGROUP][..]));
    }

    #[test]
    fn a_name_that_was_written_down_is_taken_with_its_groups() {
        let root = Account::named("root").unwrap();
        assert_eq!((root.uid, root.gid), (0, 0));
        assert!(root.groups.contains(&0));
        let error = Account::named("no-such-account-here").unwrap_err();
        assert_eq!(crate::fault::kind_of(&error), crate::fault::Kind::Config);
    }

    /// A folder of `owner` with three files, the last of which (if any) is `odd`'s.
    fn place(owner: u32, odd: u32) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for name in ["config.php", "config", "occ"] {
            let path = dir.path().join(name);
            std::fs::write(&path, "").unwrap();
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
            chown(&path, Some(if name == "occ" { odd } else { owner }), Some(0)).unwrap();
        }
        dir
    }

    fn of(dir: &Path) -> Result<Account> {
        let paths = ["config.php", "config", "occ"].map(|name| dir.join(name));
        Account::of_files(&[&paths[0], &paths[1], &paths[2]])
    }

    fn refused(dir: &Path, word: &str) {
        let error = of(dir).unwrap_err();
        assert_eq!(crate::fault::kind_of(&error), crate::fault::Kind::Denied, "{error}");
        assert!(error.to_string().contains(word), "{error}");
    }

    #[test]
    fn the_owner_must_fit_every_file() {
        assert_eq!(of(place(4_000_000, 4_000_000).path()).unwrap().uid, 4_000_000);
        // Installed by root, run by an account.
        assert_eq!(of(place(4_000_000, 0).path()).unwrap().uid, 4_000_000);
        refused(place(4_000_000, 4_000_001).path(), "4000001");
        refused(place(0, 4_000_000).path(), "4000000");
    }

    #[test]
    fn a_link_in_the_place_of_a_file_says_nothing_of_its_owner() {
        let dir = place(4_000_000, 4_000_000);
        std::fs::remove_file(dir.path().join("config.php")).unwrap();
        symlink("/etc/passwd", dir.path().join("config.php")).unwrap();
        refused(dir.path(), "symbolic link");
        // Not even if it leads to what is its own.
        std::fs::remove_file(dir.path().join("config.php")).unwrap();
        symlink(dir.path().join("config"), dir.path().join("config.php")).unwrap();
        std::os::unix::fs::lchown(dir.path().join("config.php"), Some(4_000_000), None).unwrap();
        refused(dir.path(), "symbolic link");
    }

    #[test]
    fn root_is_nobody_by_a_files_owner_unless_only_root_can_change_it() {
        let dir = place(0, 0);
        assert_eq!(of(dir.path()).unwrap().uid, 0);
        let occ = dir.path().join("occ");
        std::fs::set_permissions(&occ, std::fs::Permissions::from_mode(0o660)).unwrap();
        refused(dir.path(), "can be written by others");
        std::fs::set_permissions(&occ, std::fs::Permissions::from_mode(0o640)).unwrap();
        // The folder's owner can put another root's file in its place.
        chown(dir.path(), Some(4_000_000), None).unwrap();
        refused(dir.path(), "belongs to user id 4000000");
    }
}

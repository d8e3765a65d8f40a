//! The drop-in: a file beside config.php that holds maintenance on, and ends by itself.
//!
//! Nextcloud merges every `config/*.config.php` on each request, so the switch is one rename, and `unlink`
//! throws it back. The file says whose it is, and carries its own deadline, by the wall clock: Nextcloud
//! comes back even if everything of ours is killed at once. A run's lasts a minute and is renewed ([`crate::renewal`]).
//!
//! Each file has a name that was never used before: PHP's opcache knows files by their names, and may show clients
//! what an earlier file of the same name said, for as long as `opcache.revalidate_freq` says.
//!
//! The folder belongs to the web user. Nothing in it is believed: it is held open, names in it are never
//! followed, the draft is a file of our making under a name that Nextcloud does not read, and a file
//! under a name of ours that is not ours is neither replaced nor removed. A request that listed the folder just
//! before a file goes, and opens it just after, answers 500 instead of 503: that is Nextcloud's.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use common::fault::Fault;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, renameat};
use nix::sys::stat::{FileStat, Mode, SFlag, fchmod, fstat};
use nix::unistd::{AccessFlags, Gid, Uid, UnlinkatFlags, faccessat, fchown, unlinkat};
use serde_json::{Value, json};

use crate::instance;
use crate::mark::Mark;

/// Drop-ins are called so, then `-`, run and number, then [`ENDS`]; by earlier versions, nothing in between. Sorted late
/// by Nextcloud, and left out of every snapshot by link-sync.
const BEGINS: &str = "zz-nc-backup-maintenance";
const ENDS: &str = ".config.php";
/// What they are called until they are whole: hidden, and not `*.config.php`.
const DRAFT_BEGINS: &str = ".zz-nc-backup-maintenance";
const DRAFT_ENDS: &str = ".new";
/// No file of ours is longer, in bytes.
const LIMIT: u64 = 8192;
/// How often a folder in which new ones appear is cleared.
const ROUNDS: u32 = 20;

/// What is under a name of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Content {
    Ours(Mark),
    /// Somebody else's, for this reason.
    Foreign(String),
}

/// A file under a name of ours.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) name: OsString,
    pub(crate) content: Content,
}

/// All of them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Present(Vec<Entry>);

/// Nextcloud's configuration folder, held open.
#[derive(Debug)]
pub(crate) struct Folder {
    fd: OwnedFd,
    path: PathBuf,
}

/// A whole and durable drop-in that does not count yet. Gone with the value.
#[derive(Debug)]
pub(crate) struct Draft {
    folder: Folder,
    name: OsString,
    draft: OsString,
    mark: Mark,
    placed: bool,
}

/// A drop-in that counts. It stays: whoever placed it removes it.
#[derive(Debug)]
pub(crate) struct Placed {
    pub(crate) folder: Folder,
    pub(crate) name: OsString,
    pub(crate) mark: Mark,
}

impl Present {
    /// Those of ours.
    pub(crate) fn ours(&self) -> impl Iterator<Item = &Mark> {
        self.0.iter().filter_map(|e| match &e.content {
            Content::Ours(mark) => Some(mark),
            Content::Foreign(_) => None,
        })
    }

    /// Those of somebody else: the name, and why we think so.
    pub(crate) fn foreign(&self) -> impl Iterator<Item = (&OsStr, &str)> {
        self.0.iter().filter_map(|e| match &e.content {
            Content::Ours(_) => None,
            Content::Foreign(why) => Some((e.name.as_os_str(), why.as_str())),
        })
    }

    /// For `status` and the like: the one that holds longest, else one that is not ours.
    pub(crate) fn json(&self) -> Value {
        let ours = self.0.iter().filter_map(|e| match &e.content {
            Content::Ours(mark) => Some((&e.name, mark)),
            Content::Foreign(_) => None,
        });
        if let Some((name, mark)) = ours.max_by_key(|(_, m)| (!m.expired(), m.until)) {
            return json!({
                "file": name.to_string_lossy(), "ours": true, "reason": null, "run_id": mark.run_id,
                "profile": mark.profile, "action": mark.action, "user": mark.user, "tool_version": mark.version,
                "since": mark.since, "deadline": mark.deadline(), "expired": mark.expired(),
            });
        }
        self.foreign().next().map_or(
            Value::Null,
            |(name, why)| json!({ "file": name.to_string_lossy(), "ours": false, "reason": why }),
        )
    }
}

/// Whether a file of this name is, or could be, a drop-in of a run.
fn counts(name: &OsStr) -> bool {
    between(name, BEGINS, ENDS)
}

/// The same for one that does not count yet.
fn is_draft(name: &OsStr) -> bool {
    between(name, DRAFT_BEGINS, DRAFT_ENDS)
}

fn between(name: &OsStr, begins: &str, ends: &str) -> bool {
    let rest = name.as_bytes().strip_prefix(begins.as_bytes());
    rest.is_some_and(|rest| rest.ends_with(ends.as_bytes()))
}

impl Folder {
    /// Opens `ROOT/config`, which must be a folder itself.
    pub(crate) fn open(root: &Path) -> Result<Folder> {
        let path = root.join("config");
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        match openat(&instance::open_root(root)?, "config", flags, Mode::empty()) {
            Ok(fd) => Ok(Folder { fd, path }),
            Err(Errno::ELOOP | Errno::ENOTDIR) => {
                Err(Fault::config(format!("{} is not a folder itself but a link", path.display())).into())
            }
            Err(e) => Err(e).with_context(|| format!("cannot open {}", path.display())),
        }
    }

    /// The same folder, once more.
    pub(crate) fn again(&self) -> Result<Folder> {
        Ok(Folder { fd: self.fd.try_clone().context("cannot keep config/ open")?, path: self.path.clone() })
    }

    /// Whether a drop-in can be put here and would be readable as config.php is; the error says why not.
    pub(crate) fn usable(&self) -> Result<()> {
        let (_, config) = self.config()?;
        let euid = nix::unistd::geteuid();
        if !euid.is_root() && euid.as_raw() != config.st_uid {
            return Err(
                Fault::denied("only root or the owner of config.php can give a file its owner").into()
            );
        }
        faccessat(&self.fd, ".", AccessFlags::W_OK | AccessFlags::X_OK, AtFlags::AT_EACCESS).map_err(|e| {
            Fault::denied(format!("{} cannot be written: {}", self.path.display(), e.desc()))
                .hint("under systemd, ReadWritePaths= lets the unit write there; or use --method occ")
                .into()
        })
    }

    /// config.php, for its owner, group, mode and access list.
    fn config(&self) -> Result<(File, FileStat)> {
        let path = self.path.join("config.php");
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let file = match openat(&self.fd, "config.php", flags, Mode::empty()) {
            Ok(fd) => File::from(fd),
            Err(Errno::ELOOP) => {
                let message = format!("{} is not a file itself but a link", path.display());
                return Err(Fault::config(message).into());
            }
            Err(e) => return Err(e).with_context(|| format!("cannot open {}", path.display())),
        };
        let stat = fstat(&file)?;
        if !is_file(&stat) {
            return Err(Fault::config(format!("{} is not a file", path.display())).into());
        }
        Ok((file, stat))
    }

    /// What is under names of ours; never follows, never waits, never reads much.
    pub(crate) fn look(&self) -> Result<Present> {
        let names =
            instance::list(&self.fd).with_context(|| format!("cannot list {}", self.path.display()))?;
        let mut found = Vec::new();
        for name in names.into_iter().filter(|n| counts(n)) {
            if let Some(content) = self.content(&name)? {
                found.push(Entry { name, content });
            }
        }
        found.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(Present(found))
    }

    /// Whose the file `name` is; `None` if it is gone.
    fn content(&self, name: &OsStr) -> Result<Option<Content>> {
        let waits = common::mutant::active("a-planted-pipe-is-waited-for");
        let nonblock = if waits { OFlag::empty() } else { OFlag::O_NONBLOCK };
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | nonblock | OFlag::O_CLOEXEC;
        let foreign = |why: &str| Ok(Some(Content::Foreign(why.to_owned())));
        let what = || format!("cannot read {}", self.path.join(name).display());
        let file = match openat(&self.fd, name, flags, Mode::empty()) {
            Ok(fd) => File::from(fd),
            Err(Errno::ENOENT) => return Ok(None),
            Err(Errno::ELOOP) => return foreign("it is a symbolic link"),
            Err(Errno::ENXIO) => return foreign("it is not a file"),
            Err(e) => return Err(e).with_context(what),
        };
        if !is_file(&fstat(&file)?) {
            return foreign("it is not a file");
        }
        let mut bytes = Vec::new();
        file.take(LIMIT + 1).read_to_end(&mut bytes).with_context(what)?;
        if bytes.len() as u64 > LIMIT {
            return foreign("it is too long for one of ours");
        }
        match Mark::parse(&String::from_utf8_lossy(&bytes)) {
            Some(mark) => Ok(Some(Content::Ours(mark))),
            None => foreign("it does not say that nc-maint wrote it"),
        }
    }

    /// The mark of the drop-in `name`, if it is there and ours.
    pub(crate) fn mark(&self, name: &OsStr) -> Result<Option<Mark>> {
        Ok(match self.content(name)? {
            Some(Content::Ours(mark)) => Some(mark),
            _ => None,
        })
    }

    /// Writes the drop-in under a name that does not count, with config.php's owner, group, mode and access list. With the
    /// run and `number` its own name is one that no file had before.
    pub(crate) fn draft(self, mark: Mark, number: u32) -> Result<Draft> {
        self.usable()?;
        let (model, config) = self.config()?;
        let what = || format!("cannot write a file in {}", self.path.display());
        let word = match common::mutant::active("one-drop-in-name") {
            true => String::new(),
            false => format!("-{}-{number}", mark.run_id),
        };
        let name = OsString::from(format!("{BEGINS}{word}{ENDS}"));
        let draft = OsString::from(format!("{DRAFT_BEGINS}{word}{DRAFT_ENDS}"));
        self.forget(&draft).with_context(what)?;
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let fd =
            openat(&self.fd, draft.as_os_str(), flags, Mode::from_bits_truncate(0o600)).with_context(what)?;
        let text = mark.php()?;
        let (mut file, draft) = (File::from(fd), Draft { folder: self, name, draft, mark, placed: false });
        let path = draft.folder.path.clone();
        let what = || format!("cannot write a file in {}", path.display());
        file.write_all(text.as_bytes()).with_context(what)?;
        fchown(&file, Some(Uid::from_raw(config.st_uid)), Some(Gid::from_raw(config.st_gid)))
            .with_context(what)?;
        fchmod(&file, Mode::from_bits_truncate(config.st_mode & 0o666)).with_context(what)?;
        copy_access_list(&model, &file).with_context(what)?;
        // The first is written before the switch. A renewal waits for no disk: it may be busy for longer than the lease with what
        // is being copied, and a power cut that takes the file ends maintenance, too.
        if number == 0 {
            file.sync_all().with_context(what)?;
        }
        Ok(draft)
    }

    /// Removes what is ours, whoever's run it names, and drafts; and tells what was there. A run that renews its file in
    /// this moment does not get ahead of it: it looks for the one before, which is gone.
    pub(crate) fn remove(&self) -> Result<Present> {
        let mut all: Vec<Entry> = Vec::new();
        for _ in 0..ROUNDS {
            let Present(found) = self.look()?;
            let new: Vec<Entry> = found.into_iter().filter(|e| !all.contains(e)).collect();
            let done = !new.iter().any(|e| matches!(e.content, Content::Ours(_)));
            for entry in new {
                if let Content::Ours(_) = entry.content {
                    let what = || format!("cannot remove {}", self.path.join(&entry.name).display());
                    self.forget(&entry.name).with_context(what)?;
                }
                all.push(entry);
            }
            if done {
                break;
            }
        }
        for name in instance::list(&self.fd).into_iter().flatten().filter(|n| is_draft(n)) {
            self.forget(&name).ok();
        }
        Ok(Present(all))
    }

    /// Removes drop-ins of ours other than `name`: those whose place it takes.
    pub(crate) fn remove_others(&self, name: &OsStr) -> Result<()> {
        let Present(found) = self.look()?;
        for entry in found {
            if entry.name != name && matches!(entry.content, Content::Ours(_)) {
                self.forget(&entry.name)?;
            }
        }
        Ok(())
    }

    /// Removes the file `name`; fine if it is gone.
    pub(crate) fn forget(&self, name: &OsStr) -> nix::Result<()> {
        match unlinkat(&self.fd, name, UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => Ok(()),
            Err(e) => Err(e),
        }
    }

    /// Makes what was done here durable.
    pub(crate) fn sync(&self) {
        // A power cut may bring the file back; its own deadline ends it then.
        nix::unistd::fsync(self.fd.as_fd()).ok();
    }
}

impl Draft {
    /// The switch: from here on the file counts. Nothing is replaced.
    pub(crate) fn place(mut self) -> Result<Placed> {
        let folder = &self.folder;
        let (draft, name) = (self.draft.as_os_str(), self.name.as_os_str());
        let moved = match common::mutant::active("one-drop-in-name") {
            true => renameat(&folder.fd, draft, &folder.fd, name),
            false => common::rename::noreplace(&folder.fd, draft, &folder.fd, name),
        };
        moved.with_context(|| format!("cannot put {} in place", folder.path.join(name).display()))?;
        self.placed = true;
        Ok(Placed { folder: self.folder.again()?, name: self.name.clone(), mark: self.mark.clone() })
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.placed {
            self.folder.forget(&self.draft).ok();
        }
    }
}

/// Removes drop-ins and drafts of any run from a folder `config`: whoever closes a copy needs none.
pub(crate) fn clear(config: &OwnedFd) -> Result<bool> {
    let mut changed = false;
    for name in instance::list(config).context("cannot list config/")? {
        if !counts(&name) && !is_draft(&name) {
            continue;
        }
        match unlinkat(config, name.as_os_str(), UnlinkatFlags::NoRemoveDir) {
            Ok(()) => changed = true,
            Err(Errno::ENOENT) => {}
            Err(e) => return Err(e).with_context(|| format!("cannot remove {}", name.display())),
        }
    }
    Ok(changed)
}

/// The web server may read config.php only by its access list: one that cannot read the drop-in answers 500.
pub(crate) fn copy_access_list(from: &File, to: &File) -> std::io::Result<()> {
    let name = "system.posix_acl_access";
    let mut list = vec![0; 65536];
    match rustix::fs::fgetxattr(from, name, &mut list) {
        Ok(length) => Ok(rustix::fs::fsetxattr(to, name, &list[..length], rustix::fs::XattrFlags::empty())?),
        Err(rustix::io::Errno::NODATA | rustix::io::Errno::NOTSUP) => Ok(()),
        Err(e) => Err(e.into()),
    }
}

fn is_file(stat: &FileStat) -> bool {
    stat.st_mode & SFlag::S_IFMT.bits() == SFlag::S_IFREG.bits()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mark::tests::mark;
    use std::os::unix::fs::PermissionsExt;

    fn instance() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("config");
        std::fs::create_dir(&config).unwrap();
        std::fs::write(config.join("config.php"), "<?php").unwrap();
        std::fs::set_permissions(config.join("config.php"), PermissionsExt::from_mode(0o640)).unwrap();
        (dir, config)
    }

    const NAME: &str = "zz-nc-backup-maintenance-0123456789abcdef-0.config.php";
    const DRAFT: &str = ".zz-nc-backup-maintenance-0123456789abcdef-0.new";

    #[test]
    fn it_is_placed_with_the_mode_of_config_php_and_removed() {
        let (dir, config) = instance();
        let draft = Folder::open(dir.path()).unwrap().draft(mark("root"), 0).unwrap();
        assert!(!config.join(NAME).exists() && config.join(DRAFT).exists());
        draft.place().unwrap();
        let mode = std::fs::metadata(config.join(NAME)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o640);
        let folder = Folder::open(dir.path()).unwrap();
        // An earlier version's name is ours, too, and so are drafts.
        std::fs::copy(config.join(NAME), config.join("zz-nc-backup-maintenance.config.php")).unwrap();
        std::fs::write(config.join(".zz-nc-backup-maintenance.new"), "<?php").unwrap();
        assert_eq!(folder.remove().unwrap().ours().collect::<Vec<_>>(), [&mark("root"), &mark("root")]);
        assert_eq!(folder.remove().unwrap().ours().count(), 0);
        assert_eq!(std::fs::read_dir(config).unwrap().count(), 1);
    }

    #[test]
    fn whoever_reads_config_php_by_its_access_list_reads_the_drop_in_too() {
        let (dir, config) = instance();
        // acl(5) as the kernel keeps it: version 2; then tag, permissions, id.
        let mut list = 2u32.to_le_bytes().to_vec();
        for (tag, permissions, id) in
            [(1u16, 6u16, u32::MAX), (2, 4, 33), (4, 0, u32::MAX), (16, 4, u32::MAX), (32, 0, u32::MAX)]
        {
            list.extend(tag.to_le_bytes());
            list.extend(permissions.to_le_bytes());
            list.extend(id.to_le_bytes());
        }
        let name = "system.posix_acl_access";
        let file = File::open(config.join("config.php")).unwrap();
        rustix::fs::fsetxattr(&file, name, &list, rustix::fs::XattrFlags::empty()).unwrap();
        Folder::open(dir.path()).unwrap().draft(mark("root"), 0).unwrap().place().unwrap();
        let mut seen = vec![0; 256];
        let length = rustix::fs::getxattr(config.join(NAME), name, &mut seen).unwrap();
        assert_eq!(seen[..length], list);
    }

    #[test]
    fn a_draft_that_was_not_placed_leaves_nothing() {
        let (dir, config) = instance();
        drop(Folder::open(dir.path()).unwrap().draft(mark("root"), 0).unwrap());
        assert_eq!(std::fs::read_dir(config).unwrap().count(), 1);
    }

    #[test]
    fn what_is_planted_is_neither_followed_nor_replaced() {
        let (dir, config) = instance();
        let victim = dir.path().join("victim");
        std::fs::write(&victim, mark("root").php().unwrap()).unwrap();
        let link = |name: &str| std::os::unix::fs::symlink(&victim, config.join(name)).unwrap();

        // Under the draft's name: it is replaced, not written through.
        link(DRAFT);
        let draft = Folder::open(dir.path()).unwrap().draft(mark("other"), 0).unwrap();
        assert!(std::fs::read_to_string(&victim).unwrap().contains("root"));
        // Under ours, between the look and the switch: refused, and left alone.
        link(NAME);
        assert!(draft.place().is_err());
        assert!(!config.join(DRAFT).exists());
        let folder = Folder::open(dir.path()).unwrap();
        assert_eq!(folder.remove().unwrap().foreign().count(), 1);
        assert!(config.join(NAME).symlink_metadata().unwrap().is_symlink() && victim.exists());

        // A pipe does not hang us, and a linked folder is not entered.
        std::fs::remove_file(config.join(NAME)).unwrap();
        nix::unistd::mkfifo(&config.join(NAME), Mode::from_bits_truncate(0o600)).unwrap();
        assert_eq!(folder.look().unwrap().foreign().count(), 1);
        let other = dir.path().join("other");
        std::fs::create_dir(&other).unwrap();
        std::os::unix::fs::symlink(&config, other.join("config")).unwrap();
        assert!(Folder::open(&other).is_err());
    }
}

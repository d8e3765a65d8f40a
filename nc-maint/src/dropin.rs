//! The drop-in: a file beside config.php that holds maintenance on, and ends by itself.
//!
//! Nextcloud merges every `config/*.config.php` on each request, so the switch is one rename, and `unlink`
//! throws it back. The file says whose it is, and carries its own deadline, by the wall clock: Nextcloud
//! comes back even if everything of ours is killed at once.
//!
//! The folder belongs to the web user. Nothing in it is believed: it is held open, names in it are never
//! followed, the draft is a file of our making under a name that Nextcloud does not read, and a file
//! under our name that is not ours is neither replaced nor removed. A request that listed the folder just
//! before the file goes, and opens it just after, answers 500 instead of 503: that is Nextcloud's.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use common::fault::Fault;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, open, openat, renameat};
use nix::sys::stat::{FileStat, Mode, SFlag, fchmod, fstat};
use nix::unistd::{AccessFlags, Gid, Uid, UnlinkatFlags, faccessat, fchown, unlinkat};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::settings::Settings;

/// Sorted late by Nextcloud, and left out of every snapshot by link-sync.
pub(crate) const NAME: &str = "zz-nc-backup-maintenance.config.php";
/// What it is called until it is whole: hidden, and not `*.config.php`.
pub(crate) const DRAFT: &str = ".zz-nc-backup-maintenance.new";
/// The line that makes a file ours begins so.
const OURS: &str = "// nc-backup ";
/// How much longer than a run may take its file lasts.
const SPARE: Duration = Duration::from_secs(5);
/// No file of ours is longer, in bytes.
const LIMIT: u64 = 8192;

/// Whose a drop-in is.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub(crate) struct Mark {
    pub(crate) run_id: String,
    pub(crate) profile: String,
    /// `on` or `run`.
    pub(crate) action: String,
    /// Who asked for it.
    pub(crate) user: String,
    /// Of nc-maint.
    pub(crate) version: String,
    /// RFC 3339 UTC: when it was written, a moment before it counts.
    pub(crate) since: String,
    /// Seconds since 1970 by the wall clock: from then on it says nothing.
    pub(crate) until: i64,
}

/// What is under our name.
#[derive(Clone, Debug)]
pub(crate) enum Present {
    Nothing,
    Ours(Mark),
    /// Somebody else's, for this reason.
    Foreign(String),
}

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
    placed: bool,
}

impl Mark {
    /// For a run (or `on`) that begins now and takes at most `max`. The file lasts a little longer: its own end
    /// is for when nobody is left to act at `max`.
    pub(crate) fn new(settings: &Settings, run_id: &str, action: &str, user: &str) -> Result<Mark> {
        let spare = if action == "run" { SPARE } else { Duration::ZERO };
        let until = jiff::Timestamp::now().checked_add(settings.max + spare).context("max is too long")?;
        Ok(Mark {
            run_id: run_id.to_owned(),
            profile: settings.name.clone(),
            action: action.to_owned(),
            user: user.to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            since: common::status::now(),
            // A part of a second counts as a whole one: never shorter than asked.
            until: until.as_second() + 1,
        })
    }

    /// A run wrote it, not a plain `on`.
    pub(crate) fn by_run(&self) -> bool {
        self.action == "run"
    }

    /// Its deadline has passed: it holds nothing any more.
    pub(crate) fn expired(&self) -> bool {
        jiff::Timestamp::now().as_second() >= self.until
    }

    /// The same, RFC 3339 UTC.
    pub(crate) fn deadline(&self) -> String {
        jiff::Timestamp::from_second(self.until).map_or_else(|_| self.until.to_string(), |t| t.to_string())
    }

    /// The file. Every word in it is of a kind that cannot end the comment (`?>`) or the line.
    fn php(&self) -> Result<String> {
        let plain = |text: &str| -> String {
            text.chars()
                .map(|c| if c.is_ascii_alphanumeric() || "-_.:".contains(c) { c } else { '_' })
                .collect()
        };
        let mark = Mark {
            run_id: plain(&self.run_id),
            profile: plain(&self.profile),
            action: plain(&self.action),
            user: plain(&self.user),
            version: plain(&self.version),
            since: plain(&self.since),
            until: self.until,
        };
        Ok(format!(
            "<?php\n// Maintenance for a backup, by nc-maint: it ends by itself at {}.\n\
             // `nc-maint off` ends it now; without nc-maint, delete this file.\n{OURS}{}\n\
             if (time() < {}) {{\n    $CONFIG = array('maintenance' => true);\n}}\n",
            mark.deadline(),
            serde_json::to_string(&mark)?,
            mark.until
        ))
    }

    fn parse(text: &str) -> Option<Mark> {
        let line = text.lines().find_map(|l| l.strip_prefix(OURS))?;
        serde_json::from_str(line).ok()
    }
}

impl Present {
    /// For `status` and the like.
    pub(crate) fn json(&self) -> Value {
        match self {
            Present::Nothing => Value::Null,
            Present::Foreign(why) => json!({ "file": NAME, "ours": false, "reason": why }),
            Present::Ours(mark) => json!({
                "file": NAME, "ours": true, "reason": null, "run_id": mark.run_id, "profile": mark.profile,
                "action": mark.action, "user": mark.user, "tool_version": mark.version, "since": mark.since,
                "deadline": mark.deadline(), "expired": mark.expired(),
            }),
        }
    }
}

impl Folder {
    /// Opens `ROOT/config`, which must be a folder itself.
    pub(crate) fn open(root: &Path) -> Result<Folder> {
        let path = root.join("config");
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        match open(&path, flags, Mode::empty()) {
            Ok(fd) => Ok(Folder { fd, path }),
            Err(Errno::ELOOP | Errno::ENOTDIR) => {
                Err(Fault::config(format!("{} is not a folder itself but a link", path.display())).into())
            }
            Err(e) => Err(e).with_context(|| format!("cannot open {}", path.display())),
        }
    }

    /// Where the file is.
    pub(crate) fn file(&self) -> PathBuf {
        self.path.join(NAME)
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
        faccessat(&self.fd, ".", AccessFlags::W_OK | AccessFlags::X_OK, AtFlags::AT_EACCESS).map_err(
            |e| {
                Fault::denied(format!("{} cannot be written: {}", self.path.display(), e.desc()))
                    .hint("under systemd, ReadWritePaths= lets the unit write there; or use --method occ")
            },
        )?;
        if let Present::Foreign(why) = self.look()? {
            return Err(Fault::config(format!("{} is not ours: {why}", self.file().display()))
                .hint("find out who made it, and move it away")
                .into());
        }
        Ok(())
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

    /// What is under our name; never follows, never waits, never reads much.
    pub(crate) fn look(&self) -> Result<Present> {
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let foreign = |why: &str| Ok(Present::Foreign(why.to_owned()));
        let file = match openat(&self.fd, NAME, flags, Mode::empty()) {
            Ok(fd) => File::from(fd),
            Err(Errno::ENOENT) => return Ok(Present::Nothing),
            Err(Errno::ELOOP) => return foreign("it is a symbolic link"),
            Err(Errno::ENXIO) => return foreign("it is not a file"),
            Err(e) => return Err(e).with_context(|| format!("cannot read {}", self.file().display())),
        };
        if !is_file(&fstat(&file)?) {
            return foreign("it is not a file");
        }
        let mut bytes = Vec::new();
        file.take(LIMIT + 1)
            .read_to_end(&mut bytes)
            .with_context(|| format!("cannot read {}", self.file().display()))?;
        if bytes.len() as u64 > LIMIT {
            return foreign("it is too long for one of ours");
        }
        match Mark::parse(&String::from_utf8_lossy(&bytes)) {
            Some(mark) => Ok(Present::Ours(mark)),
            None => foreign("it does not say that nc-maint wrote it"),
        }
    }

    /// Writes the drop-in under a name that does not count, with config.php's owner, group, mode and access list.
    pub(crate) fn draft(self, mark: &Mark) -> Result<Draft> {
        self.usable()?;
        let (model, config) = self.config()?;
        let what = || format!("cannot write a file in {}", self.path.display());
        self.forget(DRAFT).with_context(what)?;
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let fd = openat(&self.fd, DRAFT, flags, Mode::from_bits_truncate(0o600)).with_context(what)?;
        let (mut file, draft) = (File::from(fd), Draft { folder: self, placed: false });
        let path = draft.folder.path.clone();
        let what = || format!("cannot write a file in {}", path.display());
        file.write_all(mark.php()?.as_bytes()).with_context(what)?;
        fchown(&file, Some(Uid::from_raw(config.st_uid)), Some(Gid::from_raw(config.st_gid)))
            .with_context(what)?;
        fchmod(&file, Mode::from_bits_truncate(config.st_mode & 0o666)).with_context(what)?;
        copy_access_list(&model, &file).with_context(what)?;
        file.sync_all().with_context(what)?;
        Ok(draft)
    }

    /// Removes the file if it is ours, and tells what was there.
    pub(crate) fn remove(&self) -> Result<Present> {
        self.forget(DRAFT).ok();
        let found = self.look()?;
        if let Present::Ours(_) = found {
            self.forget(NAME).with_context(|| format!("cannot remove {}", self.file().display()))?;
        }
        Ok(found)
    }

    fn forget(&self, name: &str) -> nix::Result<()> {
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
    /// The switch: from here on the file counts. One of ours is replaced, no other.
    pub(crate) fn place(&mut self) -> Result<()> {
        let folder = &self.folder;
        let ours = matches!(folder.look()?, Present::Ours(_));
        let moved = match ours {
            true => renameat(&folder.fd, DRAFT, &folder.fd, NAME),
            false => common::rename::noreplace(&folder.fd, DRAFT, &folder.fd, NAME),
        };
        moved.with_context(|| format!("cannot put {} in place", folder.file().display()))?;
        self.placed = true;
        Ok(())
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if !self.placed {
            self.folder.forget(DRAFT).ok();
        }
    }
}

/// The web server may read config.php only by its access list: one that cannot read the drop-in answers 500.
fn copy_access_list(from: &File, to: &File) -> std::io::Result<()> {
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
    use std::os::unix::fs::PermissionsExt;

    fn mark(user: &str) -> Mark {
        let text = |t: &str| t.to_owned();
        Mark {
            run_id: text("0123456789abcdef"),
            profile: text("home"),
            action: text("run"),
            user: text(user),
            version: text("0.1.0"),
            since: text("2026-01-01T00:00:00Z"),
            until: 32_503_680_000,
        }
    }

    fn instance() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("config");
        std::fs::create_dir(&config).unwrap();
        std::fs::write(config.join("config.php"), "<?php").unwrap();
        std::fs::set_permissions(config.join("config.php"), PermissionsExt::from_mode(0o640)).unwrap();
        (dir, config)
    }

    #[test]
    fn it_says_whose_it_is_and_no_name_ends_the_comment() {
        let text = mark("a?>\n<b").php().unwrap();
        assert_eq!(Mark::parse(&text).unwrap(), mark("a____b"));
        assert!(!text.contains("?>"));
        assert_eq!(Mark::parse("<?php $CONFIG = array('maintenance' => true);"), None);
    }

    #[test]
    fn it_is_placed_with_the_mode_of_config_php_and_removed() {
        let (dir, config) = instance();
        let mut draft = Folder::open(dir.path()).unwrap().draft(&mark("root")).unwrap();
        assert!(!config.join(NAME).exists());
        draft.place().unwrap();
        drop(draft);
        let mode = std::fs::metadata(config.join(NAME)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o640);
        let folder = Folder::open(dir.path()).unwrap();
        assert!(matches!(folder.remove().unwrap(), Present::Ours(m) if m == mark("root")));
        assert!(matches!(folder.remove().unwrap(), Present::Nothing));
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
        let mut draft = Folder::open(dir.path()).unwrap().draft(&mark("root")).unwrap();
        draft.place().unwrap();
        let mut seen = vec![0; 256];
        let length = rustix::fs::getxattr(config.join(NAME), name, &mut seen).unwrap();
        assert_eq!(seen[..length], list);
    }

    #[test]
    fn a_draft_that_was_not_placed_leaves_nothing() {
        let (dir, config) = instance();
        drop(Folder::open(dir.path()).unwrap().draft(&mark("root")).unwrap());
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
        let mut draft = Folder::open(dir.path()).unwrap().draft(&mark("other")).unwrap();
        assert!(std::fs::read_to_string(&victim).unwrap().contains("root"));
        // Under ours, between the look and the switch: refused, and left alone.
        link(NAME);
        assert!(draft.place().is_err());
        drop(draft);
        let folder = Folder::open(dir.path()).unwrap();
        assert!(matches!(folder.remove().unwrap(), Present::Foreign(_)));
        assert!(config.join(NAME).symlink_metadata().unwrap().is_symlink() && victim.exists());
        assert!(folder.usable().is_err());

        // A pipe does not hang us, and a linked folder is not entered.
        std::fs::remove_file(config.join(NAME)).unwrap();
        nix::unistd::mkfifo(&config.join(NAME), Mode::from_bits_truncate(0o600)).unwrap();
        assert!(matches!(folder.look().unwrap(), Present::Foreign(_)));
        let other = dir.path().join("other");
        std::fs::create_dir(&other).unwrap();
        std::os::unix::fs::symlink(&config, other.join("config")).unwrap();
        assert!(Folder::open(&other).is_err());
    }
}

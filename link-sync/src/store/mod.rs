//! The far end: a folder of dated snapshots, the partial one, and the only code that changes them.
//!
//! `STORE/DATE/{SOURCE…,.meta}` are published snapshots: nothing here ever opens a file in them for writing,
//! changes an attribute, or removes a name; a whole one is renamed away by `prune`, and by nothing else. `.partial` is the snapshot being made, made of new directories and of
//! hard links to the base; `.incoming` is where rsync writes, and holds no hard link; `.resume` is what an
//! interrupted run had received; `.trash` is being removed. `.lock` is held by whoever writes. `.pruned` holds published
//! snapshots that are being removed, `.pins` names those that others need.

pub mod allowance;
pub mod attributes;
pub mod beneath;
pub mod changes;
pub mod clear;
pub mod clone;
pub mod compare;
pub mod damaged;
pub mod diff;
pub mod done;
pub mod examine;
pub mod fetch;
pub mod find;
pub mod findings;
pub mod held;
pub mod keeps;
pub mod ledger;
pub mod lists;
pub mod manifest;
pub mod merge;
pub mod meta;
pub mod mtree;
pub mod odd;
pub mod open;
pub mod outcome;
pub mod pace;
pub mod path;
pub mod pins;
pub mod prune;
pub mod publish;
pub mod repair;
pub mod scan;
pub mod shown;
pub mod sizes;
pub mod sparse;
pub mod sums;
pub mod sweep;
pub mod verified;
pub mod verify;
pub mod visit;

use std::fs::File;
use std::io::Read as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use common::fault::{Fault, Kind, kind_of};
use common::{mounts, mutant};
use nix::errno::Errno;
use nix::fcntl::{OFlag, ResolveFlag};
use nix::sys::stat::{fstat, futimens};
use nix::sys::time::TimeSpec;

pub use crate::tree::split;
pub use beneath::{ensure_dir, open_below, open_dir, open_dir_here, open_file, open_file_at};
use meta::SnapshotMeta;

/// The snapshot being made.
pub const PARTIAL: &str = ".partial";
/// Where rsync writes.
pub const INCOMING: &str = ".incoming";
/// What an interrupted run had received.
pub const RESUME: &str = ".resume";
/// What is being removed.
pub const TRASH: &str = ".trash";
/// Published snapshots that are being removed.
pub const PRUNED: &str = ".pruned";
/// Which dates others need.
pub const PINS: &str = ".pins";
/// In a snapshot: what is known about it.
pub const META: &str = ".meta";

/// An account's name, or its number where it has none.
fn account(uid: u32) -> String {
    let known = nix::unistd::User::from_uid(uid.into()).ok().flatten();
    known.map_or_else(|| uid.to_string(), |user| user.name)
}

/// A store's place, and what must be true of it.
#[derive(Clone, Debug)]
pub struct Store {
    /// The folder.
    pub path: PathBuf,
    /// A path at or above it that must be a mount point.
    pub mount: Option<PathBuf>,
    /// Bytes that must stay free.
    pub reserve_bytes: u64,
    /// argv of rsync.
    pub rsync: Vec<String>,
    /// It is only read here.
    pub read_only: bool,
    /// Flush whenever so many bytes were written; `None` leaves that to the kernel.
    pub flush_bytes: Option<u64>,
}

impl Store {
    /// Looks at the folder: there, ours, private, and on the disk it should be on.
    pub fn check(&self) -> Result<File> {
        let shown = self.path.display();
        if let Some(mount) = &self.mount
            && !mounts::is_mount_point(mount)?
        {
            let mount = mount.display();
            return Err(Fault::config(format!("the store's disk is missing: {mount} is not a mount point"))
                .hint(format!(
                    "mount the disk on {mount}: without it the backup would fill the disk below. Is the store meant to lie there? Then take \
                     `mount` out of [store] of the profile on the machine that holds it"
                ))
                .into());
        }
        let dir = self.folder()?;
        let stat = dir.metadata().with_context(|| format!("cannot look at the store {shown}"))?;
        if !self.trusts(&stat) {
            let (me, owner) = (account(nix::unistd::geteuid().as_raw()), account(stat.uid()));
            let hint = match (me == owner, me.as_str()) {
                (true, _) => format!("chmod go-w {shown}, on the machine that holds it"),
                (false, "root") => format!("run it as {owner}: runuser -u {owner} -- …"),
                (false, _) => format!(
                    "is this the right folder? If {me} is to hold the backups: chown -R {me}: {shown}, as root on the machine that holds it"
                ),
            };
            return Err(Fault::denied(format!(
                "the store {shown} must belong to {me} and be writable by nobody else; it belongs to {owner} and has mode {:04o}",
                stat.mode() & 0o7777
            ))
            .hint(hint)
            .into());
        }
        Ok(dir)
    }

    /// Opens the folder, whoever owns it. As root, through no link that somebody else could have made: it would lead to a
    /// store that was not meant.
    pub fn folder(&self) -> Result<File> {
        let shown = self.path.display();
        let opened = match nix::unistd::geteuid().is_root() {
            true => {
                let path = std::path::absolute(&self.path).context("a store without a path")?;
                match crate::reach::reach(&path) {
                    Err(e) if kind_of(&e) == Kind::Denied => return Err(e),
                    Ok(reached) if reached.missing.is_empty() => Ok(reached.dir),
                    Ok(_) => Err(std::io::ErrorKind::NotFound.into()),
                    Err(e) => Err(e.downcast::<std::io::Error>().unwrap_or_else(std::io::Error::other)),
                }
            }
            false => File::options().read(true).custom_flags(libc::O_DIRECTORY).open(&self.path),
        };
        Ok(opened.map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => Fault::config(format!("there is no store {shown}"))
                .hint(format!("make it: install -d -m 0700 {shown}")),
            std::io::ErrorKind::NotADirectory => Fault::config(format!("the store {shown} is not a folder")),
            std::io::ErrorKind::PermissionDenied => Fault::denied(format!(
                "the store {shown} cannot be opened: {e}"
            ))
            .hint(format!(
                "run it as root (`sudo` before the command), or as the account that the store belongs to; if that is to be {0}, then on \
                 the machine that holds the store: chown -R {0}: {shown}",
                account(nix::unistd::geteuid().as_raw())
            )),
            _ => Fault::config(format!("the store {shown} cannot be opened: {e}")),
        })?)
    }

    /// Root may read the store of an account; who writes must own it.
    fn trusts(&self, stat: &std::fs::Metadata) -> bool {
        let me = nix::unistd::geteuid().as_raw();
        (stat.uid() == me || (self.read_only && me == 0)) && stat.mode() & 0o022 == 0
    }

    /// The names of folders that look like snapshots, oldest first.
    fn dates(&self) -> Result<Vec<String>> {
        let context = || format!("cannot list {}", self.path.display());
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&self.path).with_context(context)? {
            let name = entry.with_context(context)?.file_name();
            if let Some(name) = name.to_str().filter(|n| meta::is_date(n)) {
                names.push(name.to_owned());
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    fn open(&self) -> Result<File> {
        File::open(&self.path).with_context(|| format!("cannot open {}", self.path.display()))
    }

    /// The published snapshots, oldest first, and the names of folders that look like one but are damaged.
    pub fn snapshots(&self) -> Result<(Vec<SnapshotMeta>, Vec<String>)> {
        let (mut good, mut damaged) = (Vec::new(), Vec::new());
        let dir = self.open()?;
        for name in self.dates()? {
            match SnapshotMeta::load(&dir, &name) {
                Ok((meta, _)) => good.push(meta),
                Err(_) => damaged.push(name),
            }
        }
        Ok((good, damaged))
    }

    /// The published snapshot of `date`, or the newest that counts for `latest`. Reads no more of the others than it must.
    pub fn find(&self, date: &str) -> Result<SnapshotMeta> {
        let dir = self.open()?;
        let found = match date {
            "latest" => odd::Known::of(self, jiff::Timestamp::now())?.counted.pop(),
            date if meta::is_date(date) => SnapshotMeta::load(&dir, date).ok().map(|(meta, _)| meta),
            _ => None,
        };
        found.ok_or_else(|| {
            Fault::config(format!("there is no snapshot '{date}' in {}", self.path.display()))
                .hint("`link-sync list` shows the dates")
                .into()
        })
    }
}

/// The text of a small file of link-sync's own in the store; `None` if it is not there. What else may lie there under its name
/// is not read, and not waited for.
pub fn note(root: &File, name: &str) -> Result<Option<String>> {
    let context = || format!("cannot read {name} in the store");
    let opened = match mutant::active("a-note-is-a-file") {
        true => beneath::open_with(root, name.as_bytes(), OFlag::O_RDONLY, ResolveFlag::empty())
            .map(File::from)
            .map_err(Into::into),
        false => open_file(root, name),
    };
    let mut text = String::new();
    match opened {
        Ok(file) => file.take(LONGEST_NOTE).read_to_string(&mut text).with_context(context)?,
        Err(e) if e.downcast_ref::<Errno>() == Some(&Errno::ENOENT) => return Ok(None),
        Err(e) => return Err(e).with_context(context),
    };
    Ok(Some(text))
}

/// More bytes than one has.
const LONGEST_NOTE: u64 = 1 << 20;

/// What a file `name` of the store, of at most so many bytes, says; the default if it is not there, or damaged: for what is
/// only of help.
pub fn hint<T: Default + serde::de::DeserializeOwned>(store: &Store, name: &str, longest: u64) -> T {
    let text = store.check().and_then(|dir| {
        let mut text = String::new();
        open_file(&dir, name)?.take(longest).read_to_string(&mut text)?;
        Ok(text)
    });
    text.ok().and_then(|text| serde_json::from_str(&text).ok()).unwrap_or_default()
}

/// Sets the modification time of an open file or folder. The other one is set to what it is: on FUSE, libfuse 2 passes
/// over a call that sets one alone, and says nothing.
pub fn set_modified(file: &File, modified: &TimeSpec) -> nix::Result<()> {
    let stat = fstat(file)?;
    futimens(file, &TimeSpec::new(stat.st_atime, stat.st_atime_nsec), modified)
}

/// Removes `name` in `dir` and all below it, whatever it is; fine if it is not there.
pub fn remove(dir: &File, name: &Path) -> Result<()> {
    match clear::clear(dir, name.as_os_str().as_bytes())?.shown() {
        None => Ok(()),
        Some(stuck) => Err(Fault::failed(format!("cannot remove {stuck}")).into()),
    }
}

#[cfg(test)]
mod tests {
    use nix::sys::stat::{Mode, mkdirat};

    use super::*;

    /// Sixty folders in each other, together longer than a path may be; the name of the first.
    pub fn deep(top: &File) -> String {
        let mut at = top.try_clone().unwrap();
        let name = "n".repeat(200);
        for _ in 0..60 {
            mkdirat(&at, name.as_str(), Mode::S_IRWXU).unwrap();
            at = open_dir(&at, name.as_bytes()).unwrap();
        }
        name
    }

    #[test]
    fn what_lies_in_the_place_of_a_note_is_not_waited_for() {
        let folder = tempfile::tempdir().unwrap();
        nix::unistd::mkfifo(&folder.path().join(".note"), Mode::from_bits_truncate(0o600)).unwrap();
        let dir = File::open(folder.path()).unwrap();
        let (tell, told) = std::sync::mpsc::channel();
        std::thread::spawn(move || tell.send(note(&dir, ".note").is_err()));
        assert_eq!(told.recv_timeout(std::time::Duration::from_secs(20)), Ok(true));
    }
}

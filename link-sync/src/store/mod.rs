//! The far end: a folder of dated snapshots, the partial one, and the only code that changes them.
//!
//! `STORE/DATE/{SOURCE…,.meta}` are published snapshots: nothing here ever opens a file in them for writing,
//! changes an attribute, or removes a name; a whole one is renamed away by `prune`, and by nothing else. `.partial` is the snapshot being made, made of new directories and of
//! hard links to the base; `.incoming` is where rsync writes, and holds no hard link; `.resume` is what an
//! interrupted run had received; `.trash` is being removed. `.lock` is held by whoever writes. `.pruned` holds published
//! snapshots that are being removed, `.pins` names those that others need.

pub mod allowance;
pub mod attributes;
pub mod changes;
pub mod clear;
pub mod clone;
pub mod damaged;
pub mod diff;
pub mod fetch;
pub mod find;
pub mod findings;
pub mod keeps;
pub mod ledger;
pub mod lists;
pub mod manifest;
pub mod merge;
pub mod meta;
pub mod mtree;
pub mod odd;
pub mod open;
pub mod pace;
pub mod pins;
pub mod prune;
pub mod publish;
pub mod repair;
pub mod scan;
pub mod sizes;
pub mod sparse;
pub mod sums;
pub mod sweep;
pub mod verified;
pub mod verify;
pub mod visit;

use std::ffi::OsStr;
use std::fs::File;
use std::io::Read as _;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use common::fault::{Fault, Kind, kind_of};
use common::{mounts, mutant};
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::{Mode, fstat, futimens, mkdirat};
use nix::sys::time::TimeSpec;

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
        let what = || format!("cannot list {}", self.path.display());
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&self.path).with_context(what)? {
            let name = entry.with_context(what)?.file_name();
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

/// Opens the directory `path` below `root`, through no symlink, whoever made the tree, however deep it is.
pub fn open_dir(root: &File, path: &[u8]) -> nix::Result<File> {
    open_folder(root, path, ResolveFlag::empty())
}

/// The same, and nothing on another mount.
pub fn open_dir_here(root: &File, path: &[u8]) -> nix::Result<File> {
    open_folder(root, path, ResolveFlag::RESOLVE_NO_XDEV)
}

fn open_folder(root: &File, path: &[u8], more: ResolveFlag) -> nix::Result<File> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    match open_with(root, path, flags, more) {
        // More than the kernel takes at once.
        Err(Errno::ENAMETOOLONG) => {
            let half = path[..path.len() / 2].iter().rposition(|b| *b == b'/');
            let half = half.ok_or(Errno::ENAMETOOLONG)?;
            open_folder(&open_folder(root, &path[..half], more)?, &path[half + 1..], more)
        }
        other => other.map(File::from),
    }
}

/// The text of a small file of link-sync's own in the store; `None` if it is not there. What else may lie there under its name
/// is not read, and not waited for.
pub fn note(root: &File, name: &str) -> Result<Option<String>> {
    let what = || format!("cannot read {name} in the store");
    let opened = match mutant::active("a-note-is-a-file") {
        true => open_with(root, name.as_bytes(), OFlag::O_RDONLY, ResolveFlag::empty())
            .map(File::from)
            .map_err(Into::into),
        false => open_file(root, name),
    };
    let mut text = String::new();
    match opened {
        Ok(file) => file.take(LONGEST_NOTE).read_to_string(&mut text).with_context(what)?,
        Err(e) if e.downcast_ref::<Errno>() == Some(&Errno::ENOENT) => return Ok(None),
        Err(e) => return Err(e).with_context(what),
    };
    Ok(Some(text))
}

/// More bytes than one has.
const LONGEST_NOTE: u64 = 1 << 20;

/// Opens the regular file `path` below `root` for reading, through no symlink, and without waiting for anything.
pub fn open_file(root: &File, path: &str) -> Result<File> {
    open_file_at(root, path.as_bytes())
}

/// The same for a path that is bytes.
pub fn open_file_at(root: &File, path: &[u8]) -> Result<File> {
    let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    let file = match open_below(root, path, flags) {
        Err(Errno::ENAMETOOLONG) if !split(path).0.is_empty() => {
            let (above, name) = split(path);
            open_below(&open_dir(root, above)?, name, flags)
        }
        other => other,
    };
    let file = File::from(file?);
    anyhow::ensure!(file.metadata()?.is_file(), "it is not a regular file");
    Ok(file)
}

fn open_below(root: &File, path: &[u8], flags: OFlag) -> nix::Result<OwnedFd> {
    open_with(root, path, flags, ResolveFlag::empty())
}

fn open_with(root: &File, path: &[u8], flags: OFlag, more: ResolveFlag) -> nix::Result<OwnedFd> {
    let path = if path.is_empty() { OsStr::new(".") } else { OsStr::from_bytes(path) };
    let resolve = ResolveFlag::RESOLVE_BENEATH
        | ResolveFlag::RESOLVE_NO_SYMLINKS
        | ResolveFlag::RESOLVE_NO_MAGICLINKS
        | more;
    loop {
        match openat2(root.as_fd(), path, OpenHow::new().flags(flags).resolve(resolve)) {
            // RESOLVE_BENEATH may have to be tried again when something is renamed meanwhile (openat2(2)).
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            other => return other,
        }
    }
}

/// Opens the directory `path` below `root`, and makes what is missing of it, 0700.
pub fn ensure_dir(root: &File, path: &[u8]) -> Result<File> {
    match open_dir(root, path) {
        Ok(dir) => return Ok(dir),
        Err(Errno::ENOENT) => {}
        Err(e) => {
            return Err(e).with_context(|| format!("cannot open the folder {}", crate::walk::show(path)));
        }
    }
    let (parent, name) = split(path);
    let parent = ensure_dir(root, parent)?;
    match mkdirat(&parent, OsStr::from_bytes(name), Mode::from_bits_truncate(0o700)) {
        Ok(()) | Err(Errno::EEXIST) => {}
        Err(e) => {
            return Err(e).with_context(|| format!("cannot make the folder {}", crate::walk::show(path)));
        }
    }
    open_dir(root, path).with_context(|| format!("cannot open the folder {}", crate::walk::show(path)))
}

/// Sets the modification time of an open file or folder. The other one is set to what it is: on FUSE, libfuse 2 passes
/// over a call that sets one alone, and says nothing.
pub fn set_modified(file: &File, modified: &TimeSpec) -> nix::Result<()> {
    let stat = fstat(file)?;
    futimens(file, &TimeSpec::new(stat.st_atime, stat.st_atime_nsec), modified)
}

/// A path's directory and its name.
pub fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|b| *b == b'/') {
        Some(at) => (&path[..at], &path[at + 1..]),
        None => (&[], path),
    }
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
    use super::*;

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

//! A store's folder: whether it may be trusted, and which snapshots lie in it.

use std::fs::File;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use common::fault::{Fault, Kind, kind_of};
use common::mounts;

use super::meta::{self, SnapshotMeta};

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

    /// Its folder, as a look at what lies in it needs it.
    pub(super) fn open(&self) -> Result<File> {
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
}

/// An account's name, or its number where it has none.
fn account(uid: u32) -> String {
    let known = nix::unistd::User::from_uid(uid.into()).ok().flatten();
    known.map_or_else(|| uid.to_string(), |user| user.name)
}

//! From `.incoming` into the partial snapshot: by rename, never by writing.
//!
//! rsync was given the base (or, in later passes, the partial snapshot) to compare with and wrote
//! only what differs. So each listed path is now in one of four places, asked in this order: received; received by
//! an interrupted run and found good; already in the partial snapshot; unchanged in the base. If it is nowhere it
//! vanished at the source.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::ffi::OsStrExt as _;

use anyhow::{Context as _, Result};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, renameat};
use nix::sys::stat::{FileStat, fstatat};
use nix::unistd::{UnlinkatFlags, linkat, unlinkat};

use super::{attributes, ensure_dir, open_dir, split};
use crate::protocol::{Merged, Record, check_path};
use crate::walk::show;

/// The trees of one source that a merge works on.
#[derive(Debug)]
pub struct Merge {
    incoming: Place,
    resume: Option<Place>,
    base: Option<Place>,
    partial: File,
    /// The partial snapshot was compared with, so what is there stays.
    again: bool,
    merged: Merged,
}

/// A tree to take from, with the directory last used kept open.
#[derive(Debug)]
struct Place {
    root: File,
    dir: Vec<u8>,
    open: Option<File>,
}

impl Place {
    fn new(root: File) -> Place {
        Place { root, dir: b"/".to_vec(), open: None }
    }

    /// The directory `dir` in it, if there is one.
    fn dir(&mut self, dir: &[u8]) -> Result<Option<&File>> {
        if self.dir != dir {
            self.open = match open_dir(&self.root, dir) {
                Ok(open) => Some(open),
                Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP | Errno::EXDEV) => None,
                Err(e) => return Err(e).with_context(|| format!("cannot open the folder {}", show(dir))),
            };
            self.dir = dir.to_vec();
        }
        Ok(self.open.as_ref())
    }
}

impl Merge {
    /// A merge into `partial`.
    pub fn new(
        partial: File,
        incoming: File,
        resume: Option<File>,
        base: Option<File>,
        again: bool,
    ) -> Merge {
        Merge {
            incoming: Place::new(incoming),
            resume: resume.map(Place::new),
            base: base.map(Place::new),
            partial,
            again,
            merged: Merged::default(),
        }
    }

    /// What was done.
    pub fn finish(self) -> Merged {
        self.merged
    }

    /// Puts one listed path in its place. Directories' times go into `times`, to be set at the end.
    pub fn take(&mut self, record: &Record, times: &mut HashMap<Vec<u8>, (i64, u32)>) -> Result<()> {
        if !record.path.is_empty() {
            check_path(&record.path)?;
        }
        let what = || format!("cannot put {} in its place", show(&record.path));
        if record.kind == libc::S_IFDIR {
            return self.take_dir(record, times).with_context(what);
        }
        self.take_file(record).with_context(what)
    }

    fn take_dir(&mut self, record: &Record, times: &mut HashMap<Vec<u8>, (i64, u32)>) -> Result<()> {
        match open_dir(&self.incoming.root, &record.path) {
            Ok(received) => {
                attributes::copy(&received, &ensure_dir(&self.partial, &record.path)?)?;
                times.insert(record.path.clone(), record.mtime);
            }
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP | Errno::EXDEV) => self.merged.missing += 1,
            Err(e) => return Err(e.into()),
        }
        Ok(())
    }

    fn take_file(&mut self, record: &Record) -> Result<()> {
        let (dir, name) = split(&record.path);
        let name = OsStr::from_bytes(name);
        if let Some(from) = self.incoming.dir(dir)?
            && let Some(stat) = look(from, name)?
        {
            renameat(from, name, &ensure_dir(&self.partial, dir)?, name)?;
            self.merged.received += 1;
            self.merged.received_bytes += u64::try_from(stat.st_size).unwrap_or(0);
            return Ok(());
        }
        if let Some(place) = &mut self.resume
            && let Some(from) = place.dir(dir)?
            && let Some(stat) = look(from, name)?
            && is_of(&stat, record)
        {
            renameat(from, name, &ensure_dir(&self.partial, dir)?, name)?;
            self.merged.resumed += 1;
            return Ok(());
        }
        let into = ensure_dir(&self.partial, dir)?;
        let there = look(&into, name)?.is_some();
        if there && self.again {
            self.merged.linked += 1;
            return Ok(());
        }
        if let Some(place) = &mut self.base
            && !self.again
            && let Some(from) = place.dir(dir)?
            && look(from, name)?.is_some()
        {
            if there {
                unlinkat(&into, name, UnlinkatFlags::NoRemoveDir)?;
            }
            linkat(from, name, &into, name, AtFlags::empty())?;
            self.merged.linked += 1;
            return Ok(());
        }
        self.merged.missing += 1;
        Ok(())
    }
}

/// The stat of `name` in `dir` if it is there and no directory.
fn look(dir: &File, name: &OsStr) -> Result<Option<FileStat>> {
    match fstatat(dir, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
        Ok(stat) if stat.st_mode & libc::S_IFMT == libc::S_IFDIR => Ok(None),
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::ENOENT) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// Whether a file of an interrupted run is the one rsync found unchanged, and not the base's: the two
/// never have the same size and time (see `open`).
fn is_of(stat: &FileStat, record: &Record) -> bool {
    let mtime = (stat.st_mtime, u32::try_from(stat.st_mtime_nsec).unwrap_or(0));
    u64::try_from(stat.st_size) == Ok(record.size) && mtime == record.mtime
}

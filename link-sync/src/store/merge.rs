//! From `.incoming` into the partial snapshot: by rename, never by writing.
//!
//! rsync was given the base (or, in later passes, the partial snapshot) to compare with and wrote
//! only what differs. So each listed path is now in one of four places, asked in this order: received; received by
//! an interrupted run and found good; already in the partial snapshot; unchanged in the base. If it is nowhere it
//! vanished at the source.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::ffi::OsStrExt as _;

use anyhow::{Context as _, Result};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, renameat};
use nix::sys::stat::{FileStat, Mode, fstatat};
use nix::unistd::linkat;
use serde::{Deserialize, Serialize};

use super::beneath::{ensure_dir, open_dir};
use super::done::DirTimes;
use super::path::check_path;
use super::{attributes, sparse};
use crate::names::show;
use crate::tree::split;

/// How many missing paths are named.
const NAMED: usize = 10;

/// One path, as the other end lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// `st_mode` type bits.
    pub kind: u32,
    /// Bytes.
    pub size: u64,
    /// Modification time, seconds and nanoseconds.
    pub mtime: (i64, u32),
    /// Relative to the source.
    pub path: Vec<u8>,
}

/// What a merge did.
#[derive(Debug, Default, Deserialize, Serialize)]
pub struct Merged {
    /// Files received.
    pub received: u64,
    /// Their bytes.
    pub received_bytes: u64,
    /// Files linked from the base although they were listed: rsync found them unchanged.
    pub linked: u64,
    /// Files taken over from an interrupted run.
    pub resumed: u64,
    /// Listed paths that were nowhere: they vanished at the source, or rsync passed over them.
    pub missing: u64,
    /// The first of them.
    pub missing_names: Vec<String>,
}

/// The trees of one source that a merge works on.
#[derive(Debug)]
pub struct Merge {
    incoming: OpenTree,
    resume: Option<OpenTree>,
    base: Option<OpenTree>,
    partial: File,
    /// The partial snapshot was compared with, so what is there stays.
    again: bool,
    /// Modification times count.
    times: bool,
    merged: Merged,
    last_dir: Option<Vec<u8>>,
    /// Folders that were taken with all that is in them.
    whole: HashSet<Vec<u8>>,
}

/// A tree to take from, with the directory last used kept open.
#[derive(Debug)]
struct OpenTree {
    root: File,
    dir: Vec<u8>,
    open: Option<File>,
}

impl OpenTree {
    fn new(root: File) -> OpenTree {
        OpenTree { root, dir: b"/".to_vec(), open: None }
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
        times: bool,
    ) -> Merge {
        Merge {
            incoming: OpenTree::new(incoming),
            resume: resume.map(OpenTree::new),
            base: base.map(OpenTree::new),
            partial,
            again,
            times,
            merged: Merged::default(),
            last_dir: None,
            whole: HashSet::new(),
        }
    }

    /// What was done.
    pub fn finish(self) -> Merged {
        self.merged
    }

    /// Puts one listed path in its place. Directories' times go into `times`, to be set at the end.
    pub fn take(&mut self, record: &Listed, times: &mut DirTimes) -> Result<()> {
        if !record.path.is_empty() {
            check_path(&record.path)?;
        }
        let context = || format!("cannot put {} in its place", show(&record.path));
        // Whatever is put there moves the time of the folder it is put into.
        if !record.path.is_empty() {
            let (dir, _) = split(&record.path);
            if self.last_dir.as_deref() != Some(dir) {
                times.entry(dir.to_vec()).or_insert(None);
                self.last_dir = Some(dir.to_vec());
            }
        }
        if record.kind == libc::S_IFDIR {
            return self.take_dir(record, times).with_context(context);
        }
        self.take_file(record).with_context(context)
    }

    fn take_dir(&mut self, record: &Listed, times: &mut DirTimes) -> Result<()> {
        if !record.path.is_empty() && self.take_whole(&record.path)? {
            times.insert(record.path.clone(), Some(record.mtime));
            self.whole.insert(record.path.clone());
            return Ok(());
        }
        match open_dir(&self.incoming.root, &record.path) {
            Ok(received) => {
                attributes::copy(&received, &ensure_dir(&self.partial, &record.path)?)?;
                times.insert(record.path.clone(), Some(record.mtime));
            }
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP | Errno::EXDEV) => self.missing(record),
            Err(e) => return Err(e.into()),
        }
        Ok(())
    }

    /// A folder that the partial snapshot does not have is taken with all that is in it, by one rename. What is
    /// listed below it is then found there.
    fn take_whole(&mut self, path: &[u8]) -> Result<bool> {
        let (dir, name) = split(path);
        if self.whole.contains(dir) {
            // It came with the folder it is in, or not at all.
            return Ok(open_dir(&self.partial, path).is_ok());
        }
        let name = OsStr::from_bytes(name);
        let Some(from) = self.incoming.dir(dir)? else { return Ok(false) };
        let into = ensure_dir(&self.partial, dir)?;
        match common::rename::noreplace(from, name, &into, name) {
            Ok(()) => Ok(true),
            Err(Errno::EEXIST | Errno::ENOENT) => Ok(false),
            Err(e) => Err(e.into()),
        }
    }

    fn take_file(&mut self, record: &Listed) -> Result<()> {
        let (dir, name) = split(&record.path);
        let name = OsStr::from_bytes(name);
        if let Some(from) = self.incoming.dir(dir)?
            && let Some(stat) = look(from, name)?
        {
            let into = ensure_dir(&self.partial, dir)?;
            if is_full(&stat) {
                let base = self.base.as_mut().map(|b| b.dir(dir)).transpose()?.flatten();
                // What cannot be done costs room, and nothing else.
                dig(from, base.unwrap_or(&into), name).ok();
            }
            renameat(from, name, &into, name)?;
            self.merged.received += 1;
            self.merged.received_bytes += u64::try_from(stat.st_size).unwrap_or(0);
            return Ok(());
        }
        if let Some(place) = &mut self.resume
            && let Some(from) = place.dir(dir)?
            && let Some(stat) = look(from, name)?
            && is_of(&stat, record, true)
        {
            renameat(from, name, &ensure_dir(&self.partial, dir)?, name)?;
            self.merged.resumed += 1;
            return Ok(());
        }
        let times = self.times;
        // A file rsync found unchanged has the size and time it had at the source; another one it passed over.
        let unchanged = |stat: &FileStat| record.kind != libc::S_IFREG || is_of(stat, record, times);
        let there = match open_dir(&self.partial, dir) {
            Ok(into) => look(&into, name)?.map(|stat| (into, stat)),
            Err(_) => None,
        };
        if self.again {
            match there {
                Some((_, stat)) if unchanged(&stat) => self.merged.linked += 1,
                _ => self.missing(record),
            }
            return Ok(());
        }
        // The clone left out what is listed, so what is there came with its folder.
        if let Some((_, stat)) = &there {
            self.merged.received += 1;
            self.merged.received_bytes += u64::try_from(stat.st_size).unwrap_or(0);
            return Ok(());
        }
        if let Some(place) = &mut self.base
            && let Some(from) = place.dir(dir)?
            && let Some(stat) = look(from, name)?
            && unchanged(&stat)
        {
            linkat(from, name, &ensure_dir(&self.partial, dir)?, name, AtFlags::empty())?;
            self.merged.linked += 1;
            return Ok(());
        }
        self.missing(record);
        Ok(())
    }

    fn missing(&mut self, record: &Listed) {
        self.merged.missing += 1;
        if self.merged.missing_names.len() < NAMED {
            self.merged.missing_names.push(show(&record.path));
        }
    }
}

/// Whether a file has no holes, and is large enough for them to matter.
fn is_full(stat: &FileStat) -> bool {
    stat.st_mode & libc::S_IFMT == libc::S_IFREG
        && stat.st_size >= 1 << 16
        && stat.st_blocks * 512 >= stat.st_size
}

/// Gives what was received the holes that the file of this name in `before` has.
fn dig(from: &File, before: &File, name: &OsStr) -> nix::Result<()> {
    match look(before, name) {
        Ok(Some(stat)) if !is_full(&stat) && !common::mutant::active("holes-stay-holes") => {}
        _ => return Ok(()),
    }
    let open = |dir: &File, how: OFlag| {
        let flags = how | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        openat(dir, name, flags, Mode::empty()).map(File::from)
    };
    sparse::dig(&open(from, OFlag::O_RDWR)?, &open(before, OFlag::O_RDONLY)?)
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

/// Whether a file has the size, and if they count the time, of `record`.
fn is_of(stat: &FileStat, record: &Listed, times: bool) -> bool {
    let mtime = (stat.st_mtime, u32::try_from(stat.st_mtime_nsec).unwrap_or(0));
    u64::try_from(stat.st_size) == Ok(record.size) && (!times || mtime == record.mtime)
}

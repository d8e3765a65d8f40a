//! Cloning a source of the base into the partial snapshot: directories made, everything else linked.
//!
//! Names are read and linked, and the inode that a link touches anyway is looked at, so that the source can tell whether
//! all that the base should hold was there: a hole in the base must not be handed on. A clone shares inodes with
//! history, so nothing may ever write into it; what changed is left out here and put in by `merge`.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context as _, Result};
use common::mutant;
use nix::errno::Errno;
use nix::fcntl::AtFlags;
use nix::sys::stat::{FileStat, Mode, fstatat, mkdirat};
use nix::sys::time::TimeSpec;
use nix::unistd::{UnlinkatFlags, linkat, unlinkat};

use super::attributes::{self, set_modified};
use super::beneath::open_dir;
use super::visit;
use crate::names::show;
use crate::parallel;
use crate::tree::{Census, Stamp, join, split};

/// Names to be left out, by the directory they are in, each ended by NUL: there may be millions of them.
#[derive(Debug, Default)]
pub struct LeftOut(HashMap<Vec<u8>, Vec<u8>>);

/// What a folder takes in memory, beside its path.
const FOLDER: usize = 200;

impl LeftOut {
    /// Leaves out `path` and all below it. Returns how much memory that took.
    pub fn add(&mut self, path: &[u8]) -> usize {
        let (dir, name) = split(path);
        let (names, new) = match self.0.get_mut(dir) {
            Some(names) => (names, 0),
            None => (self.0.entry(dir.to_vec()).or_default(), FOLDER + 2 * dir.len()),
        };
        names.extend_from_slice(name);
        names.push(0);
        new + 2 * (name.len() + 1)
    }

    /// The names left out in `dir`.
    fn of(&self, dir: &[u8]) -> HashSet<&[u8]> {
        self.0.get(dir).into_iter().flat_map(|names| names.split(|b| *b == 0)).collect()
    }
}

/// Folders a thread keeps open, above the one it works in. A deeper one is opened again from the top.
const KEPT: usize = 32;

/// A folder of the base and the one that becomes its clone.
struct Pair {
    path: Vec<u8>,
    from: File,
    into: File,
}

/// The open folders above the one that is cloned, the deepest last: to open a folder by its name in the one above
/// takes half the time of looking its path up from the top.
#[derive(Default)]
struct Above(Vec<Pair>);

impl Above {
    fn open(&mut self, base: &File, to: &File, path: &[u8]) -> nix::Result<(File, File)> {
        let (dir, name) = split(path);
        while self.0.last().is_some_and(|pair| pair.path != dir || path.is_empty()) {
            self.0.pop();
        }
        let (base, to, name) = self.0.last().map_or((base, to, path), |pair| (&pair.from, &pair.into, name));
        Ok((open_dir(base, name)?, open_dir(to, name)?))
    }

    fn keep(&mut self, pair: Pair) {
        if self.0.len() == KEPT {
            self.0.remove(0);
        }
        self.0.push(pair);
    }
}

/// Links everything of `base` into the empty `to`. Returns what is there then; `times` says whether modification times
/// count in that. Each directory gets the time of the base's, after all of it is there; what is put in or taken out later
/// must set it again. `linked` is told, for each directory, how many files were linked.
pub fn clone(
    base: &File,
    to: &File,
    left_out: &LeftOut,
    times: bool,
    linked: &(impl Fn(u64) -> Result<()> + Sync),
) -> Result<Census> {
    let counted = Mutex::new(Census::default());
    parallel::each_with(Vec::new(), |above: &mut Above, path: Vec<u8>, more| {
        let context = || format!("cannot clone the folder {}", show(&path));
        let (from, into) = above.open(base, to, &path).with_context(context)?;
        attributes::copy(&from, &into).with_context(context)?;
        let skip = left_out.of(&path);
        let (mut census, folders) = (Census::default(), more.len());
        for (name, is_dir, _) in visit::names(&from).with_context(context)? {
            if skip.contains(&name[..]) {
                continue;
            }
            let as_name = OsStr::from_bytes(&name);
            if is_dir {
                mkdirat(&into, as_name, Mode::from_bits_truncate(0o700)).with_context(context)?;
                more.push(join(&path, &name));
            } else {
                let stat = match link(&from, &into, as_name) {
                    // Not counted, so it is missed, and sent again: one rotten inode keeps nothing from being saved.
                    Err(e) if rotten(e) && !mutant::active("a-rotten-inode-ends-the-night") => continue,
                    linked => linked.map_err(|e| {
                        let full = show(&join(&path, &name));
                        let error = anyhow::Error::from(e).context(format!("cannot link {full} of the base"));
                        if e == Errno::EMLINK {
                            error.context("this file system allows no more links to one file")
                        } else {
                            error
                        }
                    })?,
                };
                let size = u64::try_from(stat.st_size).unwrap_or(0);
                census.add(&path, &name, false, size, counts(times, stat.st_mtime, stat.st_mtime_nsec));
            }
        }
        linked(census.files)?;
        let time = from.metadata().with_context(context)?;
        let (parent, name) = split(&path);
        census.add(parent, name, true, 0, counts(times, time.mtime(), time.mtime_nsec()));
        counted.lock().unwrap_or_else(PoisonError::into_inner).extend(&census);
        set_modified(&into, &TimeSpec::new(time.mtime(), time.mtime_nsec())).with_context(context)?;
        if more.len() > folders {
            above.keep(Pair { path, from, into });
        }
        Ok(())
    })?;
    Ok(counted.into_inner().unwrap_or_else(PoisonError::into_inner))
}

/// Links `name`, and looks at what was linked, which that has touched.
fn link(from: &File, into: &File, name: &OsStr) -> nix::Result<FileStat> {
    linkat(from, name, into, name, AtFlags::empty())?;
    let stat = fstatat(from, name, AtFlags::AT_SYMLINK_NOFOLLOW);
    if stat.is_err() {
        unlinkat(into, name, UnlinkatFlags::NoRemoveDir)?;
    }
    stat
}

/// The disk does not give what it was given: as ext4, xfs and btrfs say that of an inode.
fn rotten(error: Errno) -> bool {
    matches!(error, Errno::EIO | Errno::EBADMSG | Errno::EUCLEAN)
}

/// A time, if times count and every file system has room for it.
pub(super) fn counts(times: bool, sec: i64, nsec: i64) -> Stamp {
    let stamp = Stamp { sec, nsec: u32::try_from(nsec).unwrap_or(0) };
    if times { stamp.everywhere() } else { Stamp::default() }
}

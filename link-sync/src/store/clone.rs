//! Cloning a source of the base into the partial snapshot: directories made, everything else linked.
//!
//! Only names are read, no file is looked at: that is what makes it fast. A clone shares inodes with
//! history, so nothing may ever write into it; what changed is left out here and put in by `merge`.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context as _, Result};
use nix::errno::Errno;
use nix::fcntl::AtFlags;
use nix::sys::stat::{Mode, mkdirat};
use nix::sys::time::TimeSpec;
use nix::unistd::linkat;

use super::{attributes, open_dir, split, visit};
use crate::parallel;
use crate::tree::join;
use crate::walk::show;

/// Paths to be left out, by the directory they are in.
#[derive(Debug, Default)]
pub struct LeftOut(HashMap<Vec<u8>, HashSet<Vec<u8>>>);

impl LeftOut {
    /// Leaves out `path` and all below it.
    pub fn add(&mut self, path: &[u8]) {
        let (dir, name) = split(path);
        self.0.entry(dir.to_vec()).or_default().insert(name.to_vec());
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

/// Links everything of `base` into the empty `to`. Returns how many files were linked. Each directory gets the
/// time of the base's, after all of it is there; what is put in or taken out later must set it again. `wrote` is told,
/// for each directory, how many files were linked.
pub fn clone(
    base: &File,
    to: &File,
    left_out: &LeftOut,
    wrote: &(impl Fn(u64) -> Result<()> + Sync),
) -> Result<u64> {
    let linked = AtomicU64::new(0);
    parallel::each_with(Vec::new(), |above: &mut Above, path: Vec<u8>, more| {
        let what = || format!("cannot clone the folder {}", show(&path));
        let (from, into) = above.open(base, to, &path).with_context(what)?;
        attributes::copy(&from, &into).with_context(what)?;
        let skip = left_out.0.get(&path);
        let (mut count, folders) = (0, more.len());
        for (name, is_dir, _) in visit::names(&from).with_context(what)? {
            if skip.is_some_and(|s| s.contains(&name)) {
                continue;
            }
            let as_name = OsStr::from_bytes(&name);
            if is_dir {
                mkdirat(&into, as_name, Mode::from_bits_truncate(0o700)).with_context(what)?;
                more.push(join(&path, &name));
            } else {
                linkat(&from, as_name, &into, as_name, AtFlags::empty()).map_err(|e| {
                    let full = show(&join(&path, &name));
                    let error = anyhow::Error::from(e).context(format!("cannot link {full} of the base"));
                    if e == Errno::EMLINK {
                        error.context("this file system allows no more links to one file")
                    } else {
                        error
                    }
                })?;
                count += 1;
            }
        }
        linked.fetch_add(count, Ordering::Relaxed);
        wrote(count)?;
        let time = from.metadata().with_context(what)?;
        super::set_modified(&into, &TimeSpec::new(time.mtime(), time.mtime_nsec())).with_context(what)?;
        if more.len() > folders {
            above.keep(Pair { path, from, into });
        }
        Ok(())
    })?;
    Ok(linked.into_inner())
}

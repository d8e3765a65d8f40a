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
use nix::sys::stat::{Mode, futimens, mkdirat};
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
    attributes::copy(base, to)?;
    parallel::each(Vec::new(), |path: Vec<u8>, more| {
        let what = || format!("cannot clone the folder {}", show(&path));
        let from = open_dir(base, &path).with_context(what)?;
        let into = open_dir(to, &path).with_context(what)?;
        let skip = left_out.0.get(&path);
        let mut count = 0;
        for (name, is_dir, _) in visit::names(&from).with_context(what)? {
            if skip.is_some_and(|s| s.contains(&name)) {
                continue;
            }
            let as_name = OsStr::from_bytes(&name);
            if is_dir {
                let full = join(&path, &name);
                mkdirat(&into, as_name, Mode::from_bits_truncate(0o700)).with_context(what)?;
                let (old, new) = (open_dir(&from, &name), open_dir(&into, &name));
                attributes::copy(&old.with_context(what)?, &new.with_context(what)?)
                    .with_context(|| format!("cannot clone the folder {}", show(&full)))?;
                more.push(full);
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
        futimens(&into, &TimeSpec::UTIME_OMIT, &TimeSpec::new(time.mtime(), time.mtime_nsec()))
            .with_context(what)
    })?;
    Ok(linked.into_inner())
}

//! What a clone of the base should hold, and does not.
//! Told by the far end in numbers, of paths in the order the source named them.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::ffi::OsStrExt as _;

use anyhow::{Context as _, Result};
use nix::errno::Errno;
use nix::fcntl::AtFlags;
use nix::sys::stat::fstatat;

use super::beneath::open_dir;
use super::clear::remove;
use super::clone::counts;
use super::visit;
use crate::names::{NAMED, show};
use crate::tree::{Stamp, join};

/// What is not as the source expects it, in the order it was told.
#[derive(Debug, Default, serde::Deserialize, serde::Serialize)]
pub struct Lacking {
    /// Numbers of the paths that are missing, or were something else and are taken out: from, to (not included).
    pub paths: Vec<(u64, u64)>,
    /// Numbers of folders that are there with another time.
    pub times: Vec<(u64, u64)>,
    /// Numbers of the folders in which something was missing or too much.
    pub folders: Vec<(u64, u64)>,
    /// Something else was where a folder should be: a link there would lead rsync, which compares with the base, elsewhere.
    pub no_folder: bool,
    /// Paths taken out because nobody has stored them.
    pub removed: u64,
    /// The first of them.
    pub removed_names: Vec<String>,
}

/// The paths that the numbers of a [`Lacking`] stand for.
#[derive(Debug, Default)]
pub struct Named {
    /// What is missing, or was something else.
    pub lost: Vec<Vec<u8>>,
    /// Folders with another time, or in which something was missing or too much: their time is not what it was.
    pub touched: Vec<Vec<u8>>,
}

impl Lacking {
    /// Finds them. `expected` goes once more through all that was expected, in the same order; `folders` are those that were
    /// named.
    pub fn named(
        &self,
        folders: &[Vec<u8>],
        expected: impl FnOnce(&mut dyn FnMut(&[u8], &[u8])) -> Result<()>,
    ) -> Result<Named> {
        let (mut named, mut number) = (Named::default(), 0u64);
        let (mut paths, mut times) = (self.paths.iter().peekable(), self.times.iter().peekable());
        expected(&mut |dir, name| {
            for (ranges, list) in [(&mut paths, &mut named.lost), (&mut times, &mut named.touched)] {
                while ranges.next_if(|(_, to)| *to <= number).is_some() {}
                if ranges.peek().is_some_and(|(from, _)| *from <= number) {
                    list.push(join(dir, name));
                }
            }
            number += 1;
        })?;
        let of_folders = self.folders.iter().flat_map(|(from, to)| *from..*to);
        named.touched.extend(of_folders.filter_map(|at| folders.get(usize::try_from(at).ok()?)).cloned());
        Ok(named)
    }
}

/// Compares a clone with what it should hold, told folder by folder and sorted, and takes out what should not be there.
#[derive(Debug)]
pub struct Compare {
    clone: File,
    times: bool,
    folder: Option<Folder>,
    told: (u64, u64),
    lacking: Lacking,
}

#[derive(Debug)]
struct Folder {
    path: Vec<u8>,
    dir: Option<File>,
    /// What is in it and was not told yet, and whether that is a folder.
    rest: HashMap<Vec<u8>, bool>,
}

impl Compare {
    /// Of `clone`; whether modification times count.
    pub fn new(clone: File, times: bool) -> Compare {
        Compare { clone, times, folder: None, told: (0, 0), lacking: Lacking::default() }
    }

    /// What follows is in the folder `path`.
    pub fn folder(&mut self, path: &[u8]) -> Result<()> {
        self.end_folder()?;
        let context = || format!("cannot compare the folder {}", show(path));
        let dir = match open_dir(&self.clone, path) {
            Ok(dir) => Some(dir),
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => None,
            Err(e) => return Err(e).with_context(context),
        };
        let names = dir.as_ref().map(visit::names).transpose().with_context(context)?.unwrap_or_default();
        let rest = names.into_iter().map(|(name, is_dir, _)| (name, is_dir)).collect();
        self.folder = Some(Folder { path: path.to_vec(), dir, rest });
        Ok(())
    }

    /// `name` is expected in the folder.
    pub fn entry(&mut self, name: &[u8], is_dir: bool, size: u64, mtime: Stamp) -> Result<()> {
        let number = self.told.1;
        self.told.1 += 1;
        let folder = self.folder.as_mut().context("a path before any folder")?;
        let found = folder.rest.remove(name);
        let Some((dir, was_dir)) = folder.dir.as_ref().zip(found) else {
            self.differs(number);
            return Ok(());
        };
        let as_name = OsStr::from_bytes(name);
        let context = || format!("cannot compare {}", show(&join(&folder.path, name)));
        let stat = fstatat(dir, as_name, AtFlags::AT_SYMLINK_NOFOLLOW).with_context(context)?;
        let time = counts(self.times, stat.st_mtime, stat.st_mtime_nsec);
        let same_time = time == counts(self.times, mtime.sec, i64::from(mtime.nsec));
        if was_dir == is_dir && same_time && (is_dir || u64::try_from(stat.st_size) == Ok(size)) {
            return Ok(());
        }
        if was_dir && is_dir {
            // It stays, and gets the time it should have.
            add(&mut self.lacking.times, number);
            return Ok(());
        }
        self.lacking.no_folder |= is_dir;
        remove(dir, std::path::Path::new(as_name))?;
        self.differs(number);
        Ok(())
    }

    /// What was found.
    pub fn finish(mut self) -> Result<Lacking> {
        self.end_folder()?;
        Ok(self.lacking)
    }

    fn differs(&mut self, number: u64) {
        add(&mut self.lacking.paths, number);
        add(&mut self.lacking.folders, self.told.0);
    }

    fn end_folder(&mut self) -> Result<()> {
        let Some(folder) = self.folder.take() else { return Ok(()) };
        if let Some(dir) = folder.dir.as_ref().filter(|_| !folder.rest.is_empty()) {
            let mut names: Vec<&Vec<u8>> = folder.rest.keys().collect();
            names.sort_unstable();
            for name in names {
                remove(dir, std::path::Path::new(OsStr::from_bytes(name)))?;
                self.lacking.removed += 1;
                if self.lacking.removed_names.len() < NAMED {
                    self.lacking.removed_names.push(show(&join(&folder.path, name)));
                }
            }
            add(&mut self.lacking.folders, self.told.0);
        }
        self.told.0 += 1;
        Ok(())
    }
}

/// So many ranges fit into an answer. After that, what lies between counts as lacking, too: to send it again only
/// costs time.
const MOST: usize = 400_000;

/// Adds a number to ranges in ascending order.
fn add(ranges: &mut Vec<(u64, u64)>, number: u64) {
    let full = ranges.len() >= MOST;
    match ranges.last_mut() {
        Some((_, to)) if *to > number => {}
        Some((_, to)) if *to == number || full => *to = number + 1,
        _ => ranges.push((number, number + 1)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_become_ranges() {
        let mut ranges = Vec::new();
        [1, 1, 2, 5, 6, 9].into_iter().for_each(|n| add(&mut ranges, n));
        assert_eq!(ranges, [(1, 3), (5, 7), (9, 10)]);
    }
}

//! What a snapshot holds alone: the room that would be free if it were removed.
//!
//! An inode whose links all lie in this one snapshot is its own; so is every folder. It changes when a neighbour
//! goes, so it is not kept anywhere but counted each time: one stat for every name.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::ffi::OsStrExt as _;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context as _, Result};
use nix::fcntl::AtFlags;
use nix::sys::stat::{FileStat, fstat, fstatat};

use super::beneath::open_dir;
use super::visit;
use crate::names::show;
use crate::parallel;
use crate::tree::join;

#[derive(Default)]
struct Counted {
    alone: u64,
    /// Inodes with more links: how many of them were seen, of how many, and their size.
    shared: HashMap<u64, (u64, u64, u64)>,
}

/// Bytes on the disk that only the snapshot of `date` in the opened `store` holds.
pub fn alone(store: &File, date: &str) -> Result<u64> {
    let context = || format!("cannot add up what {date} holds");
    let top = open_dir(store, date.as_bytes()).with_context(context)?;
    let own = allocated(&fstat(&top).with_context(context)?);
    let counted = Mutex::new(Counted { alone: own, ..Counted::default() });
    parallel::each(Vec::new(), |path: Vec<u8>, more| {
        let dir = open_dir(&top, &path).with_context(|| format!("cannot read the folder {}", show(&path)))?;
        let mut here = Counted::default();
        let mut shared = Vec::new();
        for (name, is_dir, _) in visit::names(&dir)? {
            let stat = fstatat(&dir, OsStr::from_bytes(&name), AtFlags::AT_SYMLINK_NOFOLLOW)
                .with_context(|| format!("cannot look at {}", show(&join(&path, &name))))?;
            if is_dir || stat.st_nlink == 1 {
                here.alone += allocated(&stat);
            } else {
                shared.push(stat);
            }
            if is_dir {
                more.push(join(&path, &name));
            }
        }
        let mut all = counted.lock().unwrap_or_else(PoisonError::into_inner);
        all.alone += here.alone;
        for stat in shared {
            let seen = all.shared.entry(stat.st_ino).or_insert((0, stat.st_nlink, allocated(&stat)));
            seen.0 += 1;
        }
        Ok(())
    })
    .with_context(context)?;
    let counted = counted.into_inner().unwrap_or_else(PoisonError::into_inner);
    let complete = counted.shared.values().filter(|(seen, links, _)| seen >= links);
    Ok(counted.alone + complete.map(|(_, _, bytes)| bytes).sum::<u64>())
}

fn allocated(stat: &FileStat) -> u64 {
    u64::try_from(stat.st_blocks).unwrap_or(0) * 512
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt as _;

    #[test]
    fn only_what_has_no_link_elsewhere_counts() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        for name in ["a/d/e", "b/d"] {
            std::fs::create_dir_all(path(name)).unwrap();
        }
        std::fs::write(path("a/shared"), vec![1; 50_000]).unwrap();
        std::fs::hard_link(path("a/shared"), path("b/d/shared")).unwrap();
        std::fs::write(path("a/twice"), vec![2; 70_000]).unwrap();
        std::fs::hard_link(path("a/twice"), path("a/d/e/twice")).unwrap();
        std::fs::write(path("a/d/single"), vec![3; 90_000]).unwrap();
        let store = File::open(dir.path()).unwrap();
        let size = |name: &str| path(name).metadata().unwrap().blocks() * 512;
        let own: u64 = ["a", "a/d", "a/d/e", "a/twice", "a/d/single"].into_iter().map(size).sum();
        assert_eq!(alone(&store, "a").unwrap(), own);
        let before = alone(&store, "b").unwrap();
        std::fs::remove_file(path("a/shared")).unwrap();
        assert_eq!(alone(&store, "b").unwrap(), before + size("b/d/shared"));
    }
}

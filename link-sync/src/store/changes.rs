//! What one snapshot must get to become another, from the names and inode numbers of two in one store.
//!
//! Files that did not change share their inode, and while both snapshots exist a number cannot have been used
//! again; so names tell, and only folders (which share nothing) are looked at.

use std::collections::{BTreeMap, HashSet};
use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::ffi::OsStrExt as _;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context as _, Result};
use nix::fcntl::AtFlags;
use nix::sys::stat::{FileStat, fstat, fstatat};

use super::beneath::open_dir;
use super::{diff, visit};
use crate::names::show;
use crate::parallel;
use crate::tree::{join, split};

/// A path that must be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Marked {
    /// Relative to the source.
    pub path: Vec<u8>,
    /// `st_mode` type bits.
    pub kind: u32,
    /// Bytes.
    pub size: u64,
    /// Bytes on the disk.
    pub allocated: u64,
    /// Modification time.
    pub mtime: (i64, u32),
}

/// What one source needs.
#[derive(Debug, Default)]
pub struct Delta {
    /// Paths of the base that must not be cloned, with all below them.
    pub left_out: Vec<Vec<u8>>,
    /// Paths to be sent, folders before what is in them.
    pub marked: Vec<Marked>,
    /// The source's own folder has other attributes.
    pub root: Option<Marked>,
    /// Folders in the wanted snapshot: each is made anew.
    pub folders: u64,
    /// Files in it that the base holds too.
    pub shared: u64,
}

/// What turns `base` into `wanted`; everything if there is no base. With `touched`, nothing is different in any other
/// folder that both have, and those are not looked into.
pub fn between(base: Option<&File>, wanted: &File, touched: Option<&HashSet<Vec<u8>>>) -> Result<Delta> {
    let found = Mutex::new(Delta::default());
    let root = fstat(wanted).context("cannot look at a source's folder")?;
    if let Some(base) = base {
        let device = fstat(base).context("cannot look at a source's folder")?.st_dev;
        let one = device == root.st_dev;
        anyhow::ensure!(
            one,
            "the dates lie in two file systems, or are shown by overlays: inode numbers do not tell what changed"
        );
    }
    let changed = match base {
        Some(base) => !diff::same_folder(base, wanted)?,
        None => true,
    };
    let root = changed.then(|| marked(Vec::new(), &root));
    // A folder, and whether the base has it too.
    parallel::each((Vec::new(), base.is_some()), |(path, known): (Vec<u8>, bool), more| {
        if known && touched.is_some_and(|t| !t.contains(&path)) {
            return Ok(());
        }
        let context = || format!("cannot compare the folder {}", show(&path));
        let new = open_dir(wanted, &path).with_context(context)?;
        let old = base.filter(|_| known).map(|b| open_dir(b, &path)).transpose().with_context(context)?;
        let part = one_folder(&path, old.as_ref(), &new, more).with_context(context)?;
        let mut all = found.lock().unwrap_or_else(PoisonError::into_inner);
        all.left_out.extend(part.left_out);
        all.marked.extend(part.marked);
        all.folders += part.folders;
        all.shared += part.shared;
        Ok(())
    })?;
    let mut found = found.into_inner().unwrap_or_else(PoisonError::into_inner);
    found.marked.sort_unstable_by(|a, b| a.path.cmp(&b.path));
    found.root = root;
    found.folders += 1;
    Ok(found)
}

fn one_folder(path: &[u8], old: Option<&File>, new: &File, more: &mut Vec<(Vec<u8>, bool)>) -> Result<Delta> {
    let mut part = Delta::default();
    let before = old.map(visit::names).transpose()?.unwrap_or_default();
    let mut before: BTreeMap<Vec<u8>, (bool, u64)> = before.into_iter().map(|n| (n.0, (n.1, n.2))).collect();
    for (name, is_dir, ino) in visit::names(new)? {
        let full = join(path, &name);
        let known = before.remove(&name);
        part.folders += u64::from(is_dir);
        if known == Some((false, ino)) && !is_dir {
            part.shared += 1;
            continue;
        }
        let both_dirs = is_dir && known.is_some_and(|k| k.0);
        if known.is_some() && !both_dirs {
            part.left_out.push(full.clone());
        }
        let same = both_dirs
            && match old {
                Some(old) => diff::same_folder(&open_dir(old, &name)?, &open_dir(new, &name)?)?,
                None => false,
            };
        if !same {
            let stat = fstatat(new, OsStr::from_bytes(&name), AtFlags::AT_SYMLINK_NOFOLLOW)?;
            part.marked.push(marked(full.clone(), &stat));
        }
        if is_dir {
            more.push((full, both_dirs));
        }
    }
    part.left_out.extend(before.into_keys().map(|name| join(path, &name)));
    Ok(part)
}

/// `path` of `wanted`, to be sent.
pub fn mark(wanted: &File, path: Vec<u8>) -> Result<Marked> {
    let (dir, name) = split(&path);
    let name = if name.is_empty() { OsStr::new(".") } else { OsStr::from_bytes(name) };
    let stat = open_dir(wanted, dir).and_then(|dir| fstatat(&dir, name, AtFlags::AT_SYMLINK_NOFOLLOW));
    let stat = stat.with_context(|| format!("cannot look at {}", show(&path)))?;
    Ok(marked(path, &stat))
}

/// What `base` and `wanted` share: each folder that both have (`None`), the top first and a folder before those in it, and
/// then what is in it in both, files of one inode and folders, as it is in `base`. This is what a clone of `base` without
/// [`Delta::left_out`] holds, in the same order each time.
pub fn shared<E: From<anyhow::Error>>(
    base: &File,
    wanted: &File,
    mut tell: impl FnMut(&[u8], Option<(&[u8], &FileStat)>) -> Result<(), E>,
) -> Result<(), E> {
    let mut waiting = vec![Vec::new()];
    while let Some(path) = waiting.pop() {
        common::signals::check()?;
        let context = || format!("cannot compare the folder {}", show(&path));
        let old = open_dir(base, &path).with_context(context)?;
        let new = open_dir(wanted, &path).with_context(context)?;
        tell(&path, None)?;
        let mut there = visit::names(&new).with_context(context)?.into_iter().peekable();
        for (name, is_dir, ino) in visit::names(&old).with_context(context)? {
            while there.next_if(|n| n.0 < name).is_some() {}
            let same = |n: &visit::Name| n.0 == name && n.1 == is_dir && (is_dir || n.2 == ino);
            if there.next_if(same).is_none() {
                continue;
            }
            let stat = fstatat(&old, OsStr::from_bytes(&name), AtFlags::AT_SYMLINK_NOFOLLOW);
            tell(&path, Some((&name, &stat.with_context(context)?)))?;
            if is_dir {
                waiting.push(join(&path, &name));
            }
        }
    }
    Ok(())
}

fn marked(path: Vec<u8>, stat: &FileStat) -> Marked {
    Marked {
        path,
        kind: stat.st_mode & libc::S_IFMT,
        size: u64::try_from(stat.st_size).unwrap_or(0),
        allocated: u64::try_from(stat.st_blocks).unwrap_or(0) * 512,
        mtime: (stat.st_mtime, u32::try_from(stat.st_mtime_nsec).unwrap_or(0)),
    }
}

impl Marked {
    /// It is a regular file.
    pub fn is_file(&self) -> bool {
        self.kind == libc::S_IFREG
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn names_and_inodes_tell_what_changed() {
        let dir = tempfile::tempdir().unwrap();
        let (old, new) = (dir.path().join("old"), dir.path().join("new"));
        for (top, at) in [(&old, 1), (&new, 2)] {
            std::fs::create_dir_all(top.join("d/e")).unwrap();
            for name in ["same", "edited", "d/e/same"] {
                if at == 2 && name != "edited" {
                    std::fs::hard_link(old.join(name), new.join(name)).unwrap();
                } else {
                    std::fs::write(top.join(name), at.to_string()).unwrap();
                }
            }
        }
        std::fs::write(old.join("gone"), "x").unwrap();
        std::fs::create_dir(old.join("was-dir")).unwrap();
        std::fs::write(new.join("was-dir"), "x").unwrap();
        std::fs::write(old.join("was-file"), "x").unwrap();
        std::fs::create_dir_all(new.join("was-file/in")).unwrap();
        std::fs::set_permissions(new.join("d/e"), PermissionsExt::from_mode(0o700)).unwrap();
        let epoch = std::time::SystemTime::UNIX_EPOCH;
        for folder in ["", "d", "d/e"] {
            File::open(old.join(folder)).unwrap().set_modified(epoch).unwrap();
            File::open(new.join(folder)).unwrap().set_modified(epoch).unwrap();
        }
        let (old, new) = (File::open(&old).unwrap(), File::open(&new).unwrap());
        let mut found = between(Some(&old), &new, None).unwrap();
        found.left_out.sort();
        let names = |list: &[&str]| list.iter().map(|n| n.as_bytes().to_vec()).collect::<Vec<_>>();
        assert_eq!(found.left_out, names(&["edited", "gone", "was-dir", "was-file"]));
        let marked: Vec<_> = found.marked.iter().map(|m| m.path.clone()).collect();
        assert_eq!(marked, names(&["d/e", "edited", "was-dir", "was-file", "was-file/in"]));
        assert_eq!((found.folders, found.shared, found.root), (5, 2, None));
        let all = between(None, &new, None).unwrap();
        assert_eq!((all.marked.len(), all.left_out.len()), (8, 0));
        assert!(all.root.is_some());
    }
}

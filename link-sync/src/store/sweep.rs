//! Removing whole trees fast: one thread for each folder, several folders at once, each folder when it is empty.

use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::ffi::OsStrExt as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use anyhow::{Context as _, Result};
use common::mutant;
use nix::errno::Errno;
use nix::sys::stat::{FchmodatFlags, Mode, fchmodat};
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::beneath::open_dir;
use super::visit;
use crate::parallel;
use crate::tree::{join, split};

/// How often a removal is tried for which a full disk has no room.
const TRIES: usize = 8;

/// A folder that is being emptied.
struct Emptied {
    path: Vec<u8>,
    parent: Option<Arc<Emptied>>,
    /// Folders in it that are still there, and one more until its own names are gone.
    left: AtomicUsize,
}

impl Emptied {
    fn new(path: Vec<u8>, parent: Option<Arc<Emptied>>) -> Arc<Emptied> {
        Arc::new(Emptied { path, parent, left: AtomicUsize::new(1) })
    }
}

/// Removes `name` in `dir` and all below it, whatever it is; fine if it is not there. `removed` is told of every
/// few names. Returns how many there were.
pub fn sweep(dir: &File, name: &str, removed: &(impl Fn(u64) -> Result<()> + Sync)) -> Result<u64> {
    let context = || format!("cannot remove {name}");
    match unlink(dir, OsStr::new(name), UnlinkatFlags::NoRemoveDir) {
        Ok(()) => return Ok(1),
        Err(Errno::ENOENT) => return Ok(0),
        Err(Errno::EISDIR | Errno::EPERM) => {}
        Err(e) => return Err(e).with_context(context),
    }
    let all = AtomicU64::new(0);
    parallel::each(Emptied::new(name.as_bytes().to_vec(), None), |folder, more| {
        let count = empty(dir, &folder, more)?;
        all.fetch_add(count, Ordering::Relaxed);
        removed(count)?;
        gone(dir, &folder)
    })
    .with_context(context)?;
    Ok(all.into_inner())
}

/// Removes the names in `folder` that are no folders; those are `more` work.
fn empty(dir: &File, folder: &Arc<Emptied>, more: &mut Vec<Arc<Emptied>>) -> Result<u64> {
    let context = || format!("cannot read the folder {}", crate::names::show(&folder.path));
    let open = open_closed(dir, &folder.path).with_context(context)?;
    let names = visit::names(&open).with_context(context)?;
    let count = names.len() as u64;
    let below = more.len();
    for (name, is_dir, _) in names {
        if is_dir {
            more.push(Emptied::new(join(&folder.path, &name), Some(Arc::clone(folder))));
            continue;
        }
        remove_one(&open, &name, UnlinkatFlags::NoRemoveDir)
            .with_context(|| format!("cannot remove {}", crate::names::show(&join(&folder.path, &name))))?;
    }
    folder.left.fetch_add(more.len() - below, Ordering::AcqRel);
    Ok(count)
}

/// `folder`'s own names, or the last folder in it, are gone: removes it if that was all, and then what it lay in.
fn gone(dir: &File, folder: &Arc<Emptied>) -> Result<()> {
    let mut folder = folder;
    while folder.left.fetch_sub(1, Ordering::AcqRel) == 1 {
        let (parent, name) = split(&folder.path);
        let context = || format!("cannot remove the folder {}", crate::names::show(&folder.path));
        let open = open_closed(dir, parent).with_context(context)?;
        remove_one(&open, name, UnlinkatFlags::RemoveDir).with_context(context)?;
        match &folder.parent {
            Some(parent) => folder = parent,
            None => break,
        }
    }
    Ok(())
}

/// A folder of a snapshot may be closed to the account that owns it, too. It is a folder of its own, so
/// opening it changes no other snapshot.
fn remove_one(dir: &File, name: &[u8], flag: UnlinkatFlags) -> nix::Result<()> {
    match unlink(dir, OsStr::from_bytes(name), flag) {
        Err(Errno::EACCES) => {
            nix::sys::stat::fchmod(dir, Mode::S_IRWXU)?;
            unlink(dir, OsStr::from_bytes(name), flag)
        }
        other => other,
    }
}

/// unlinkat(2). On a btrfs that is full, each removal draws on a small reserve of the file system, which is full again
/// when its transaction has ended: that is waited for.
pub(super) fn unlink(dir: &File, name: &OsStr, flag: UnlinkatFlags) -> nix::Result<()> {
    for _ in 0..TRIES {
        match unlinkat(dir, name, flag) {
            Err(Errno::ENOSPC | Errno::EDQUOT) if !mutant::active("a-removal-has-room") => {
                nix::unistd::syncfs(dir)?;
            }
            other => return other,
        }
    }
    unlinkat(dir, name, flag)
}

/// Like [`open_dir`], also where the folder is closed.
fn open_closed(dir: &File, path: &[u8]) -> nix::Result<File> {
    match open_dir(dir, path) {
        Err(Errno::EACCES) => {
            let (parent, name) = split(path);
            let parent = open_closed(dir, parent)?;
            fchmodat(&parent, OsStr::from_bytes(name), Mode::S_IRWXU, FchmodatFlags::FollowSymlink)?;
            open_dir(&parent, name)
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn all_of_a_tree_goes_and_nothing_it_points_to() {
        let dir = tempfile::tempdir().unwrap();
        let top = File::open(dir.path()).unwrap();
        std::fs::write(dir.path().join("kept"), "kept").unwrap();
        std::fs::create_dir(dir.path().join("other")).unwrap();
        std::fs::write(dir.path().join("other/file"), "x").unwrap();
        let mut deep = dir.path().join("tree");
        for n in 0..40 {
            deep.push(format!("d{}", n % 3));
            std::fs::create_dir_all(&deep).unwrap();
            for file in 0..20 {
                std::fs::hard_link(dir.path().join("kept"), deep.join(format!("f{file}"))).unwrap();
            }
        }
        std::os::unix::fs::symlink("../other", dir.path().join("tree/link")).unwrap();
        std::fs::create_dir(dir.path().join("tree/closed")).unwrap();
        std::fs::set_permissions(dir.path().join("tree/closed"), std::fs::Permissions::from_mode(0o0))
            .unwrap();
        assert_eq!(sweep(&top, "tree", &|_| Ok(())).unwrap(), 3 + 39 + 40 * 20);
        assert!(!dir.path().join("tree").exists());
        assert_eq!(std::fs::read(dir.path().join("kept")).unwrap(), b"kept");
        assert!(dir.path().join("other/file").exists());
        assert_eq!(sweep(&top, "tree", &|_| Ok(())).unwrap(), 0);
        std::os::unix::fs::symlink("other", dir.path().join("link")).unwrap();
        assert_eq!(sweep(&top, "link", &|_| Ok(())).unwrap(), 1);
        assert!(dir.path().join("other/file").exists());
    }

    #[test]
    fn a_tree_deeper_than_a_path_may_be_long() {
        let dir = tempfile::tempdir().unwrap();
        let top = File::open(dir.path()).unwrap();
        let name = crate::store::deep::deep(&top);
        assert_eq!(sweep(&top, &name, &|_| Ok(())).unwrap(), 59);
        assert!(!dir.path().join(&name).exists());
    }
}

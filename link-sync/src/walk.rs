//! Walking a source: every path once, in parallel, symlinks not followed.

use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context as _, Result};
use common::exclude::Excludes;
use common::mutant;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{FileStat, Mode, fstat, fstatat};
use nix::sys::statfs::{BTRFS_SUPER_MAGIC, fstatfs};

use crate::budget::Budget;
use crate::fsid::{distrust, is_trusted_name};
use crate::names::show;
use crate::parallel;
use crate::store::visit;
use crate::tree::{Dir, Meta, STUB, Stamp, Tree, join};

/// Walks the directory open as `root`; `name` is for messages. What vanishes meanwhile is left out, or
/// empty if it is a folder; what is too long or too deep for rsync is left out and named; what cannot be read is an error.
/// Memory: about 100 bytes a path.
pub fn walk(root: &File, name: &Path, excludes: &Excludes, mounts: &Mounts, budget: &Budget) -> Result<Tree> {
    let walked_at = Stamp::now();
    let stat = fstat(root).with_context(|| format!("cannot look at {}", name.display()))?;
    let tree = Tree { root: meta(&stat), walked_at, ..Tree::default() };
    let tree = Mutex::new(tree);
    // A folder, the device of the one above, and whether what lies there can be trusted.
    parallel::each((Vec::new(), stat.st_dev, true), |(path, dev, trusted): (Vec<u8>, u64, bool), more| {
        budget.check()?;
        let found = read_dir(root, excludes, mounts, &path, (dev, trusted))?;
        let mut tree = tree.lock().unwrap_or_else(PoisonError::into_inner);
        // One that vanished is known to be empty, not unknown: what the store may hold below it must go.
        let Some(found) = found else {
            tree.dirs.insert(path, Dir::default());
            return Ok(());
        };
        if found.dev != dev {
            tree.submounts.push(path.clone());
        }
        tree.untrusted.extend(found.untrusted);
        tree.beyond.extend(found.beyond);
        more.extend(found.subdirs.into_iter().map(|d| (d, found.dev, found.trusted)));
        tree.dirs.insert(path, found.dir);
        Ok(())
    })
    .with_context(|| format!("cannot read all of {}", name.display()))?;
    let mut tree: Tree = tree.into_inner().unwrap_or_else(PoisonError::into_inner);
    // Device numbers do not tell of a bind mount, and the mount table not of a subvolume.
    let there = |path: &&Vec<u8>| tree.dirs.contains_key(*path) || tree.holds_file(path);
    let seen: Vec<Vec<u8>> = mounts.iter().map(|m| &m.0).filter(there).cloned().collect();
    tree.submounts.extend(seen);
    tree.submounts.sort();
    tree.submounts.dedup();
    tree.untrusted.sort();
    tree.beyond.sort();
    Ok(tree)
}

/// What is mounted below the source, by path, and the type of its file system.
pub type Mounts = Vec<(Vec<u8>, String)>;

/// A path of so many bytes is too long for the kernel's calls, and for rsync.
const LONGEST: usize = 4095;
/// rsync 3.5 gives up a whole source in which folders lie deeper than about 1,024, and does not say where.
const DEEPEST: usize = 1000;

struct Listing {
    dir: Dir,
    /// What cannot be sent: too long, or too deep.
    beyond: Vec<Vec<u8>>,
    subdirs: Vec<Vec<u8>>,
    dev: u64,
    trusted: bool,
    /// What begins not to be trusted here, and why.
    untrusted: Vec<(Vec<u8>, String)>,
}

/// Reads one directory; `None` if it has vanished or is no directory any more.
fn read_dir(
    root: &File,
    excludes: &Excludes,
    mounts: &Mounts,
    path: &[u8],
    (above, mut trusted): (u64, bool),
) -> Result<Option<Listing>> {
    let context = || format!("cannot read the folder {}", show(path));
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let at = if path.is_empty() { OsStr::new(".") } else { OsStr::from_bytes(path) };
    let fd = match openat(root, at, flags, Mode::empty()) {
        Ok(fd) => File::from(fd),
        Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) if !path.is_empty() => return Ok(None),
        Err(e) => return Err(e).with_context(context),
    };
    let dev = fstat(&fd).with_context(context)?.st_dev;
    let mut untrusted = Vec::new();
    if dev != above && !mutant::active("mounts-inside-are-distrusted") {
        let why = distrust(&fd, || type_of(mounts, path)).with_context(context)?;
        trusted = why.is_none();
        untrusted.extend(why.map(|why| (path.to_vec(), why)));
    }
    let mut list = Vec::new();
    let (mut subdirs, mut beyond) = (Vec::new(), Vec::new());
    for (name, _, _) in visit::names(&fd).with_context(context)? {
        let full = join(path, &name);
        let stat = match fstatat(&fd, OsStr::from_bytes(&name), AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            Err(Errno::ENOENT) => continue,
            Err(e) => return Err(e).with_context(|| format!("cannot look at {}", show(&full))),
        };
        let mut meta = meta(&stat);
        if excludes.leaves_out(&fd, OsStr::from_bytes(&name), &full, meta.is_dir()) {
            continue;
        }
        let depth = || full.iter().filter(|b| **b == b'/').count() + 1;
        let too_deep = full.len() >= LONGEST || (meta.is_dir() && depth() > DEEPEST);
        if too_deep && !mutant::active("too-deep-is-left-out") {
            beyond.push(full);
            continue;
        }
        if meta.is_dir() && meta.ino == STUB && stat.st_dev != dev && is_stub(&fd, &name) {
            meta = meta.stub();
        }
        // A single file can be mounted, too; it has no other way to be asked.
        let strange = !meta.is_dir() && stat.st_dev != dev;
        let strange = strange.then(|| type_of(mounts, &full)).flatten().filter(|kind| !is_trusted_name(kind));
        if !trusted || strange.is_some() {
            meta = meta.untrusted();
        }
        untrusted.extend(strange.map(|kind| (full.clone(), kind)));
        list.push((name, meta, u64::try_from(stat.st_blocks).unwrap_or(0) * 512));
        if meta.is_dir() {
            subdirs.push(full);
        }
    }
    Ok(Some(Listing { dir: Dir::new(list), beyond, subdirs, dev, trusted, untrusted }))
}

/// Whether the folder `name` with the number of a stub is one of btrfs, and not the top of another file system.
fn is_stub(dir: &File, name: &[u8]) -> bool {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let fd = openat(dir, OsStr::from_bytes(name), flags, Mode::empty());
    let kind = fd.ok().and_then(|fd| fstatfs(File::from(fd)).ok());
    kind.is_some_and(|s| s.filesystem_type() == BTRFS_SUPER_MAGIC)
        && !mutant::active("stubs-of-btrfs-are-at-rest")
}

/// The type of the file system mounted at `path`.
fn type_of(mounts: &Mounts, path: &[u8]) -> Option<String> {
    mounts.iter().find(|m| m.0 == path).map(|m| m.1.clone())
}

/// The [`Meta`] of a stat.
pub fn meta(stat: &FileStat) -> Meta {
    let stamp = |sec, nsec: i64| Stamp { sec, nsec: u32::try_from(nsec).unwrap_or(0) };
    Meta {
        mode: stat.st_mode,
        size: u64::try_from(stat.st_size).unwrap_or(0),
        ino: stat.st_ino,
        mtime: stamp(stat.st_mtime, stat.st_mtime_nsec),
        ctime: stamp(stat.st_ctime, stat.st_ctime_nsec),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::stat::mkdirat;

    #[test]
    fn folders_too_deep_are_left_out_and_named() {
        let top = tempfile::tempdir().unwrap();
        let mut dir = File::open(top.path()).unwrap();
        for _ in 0..DEEPEST + 20 {
            mkdirat(&dir, "d", Mode::from_bits_truncate(0o755)).unwrap();
            dir = openat(&dir, "d", OFlag::O_DIRECTORY, Mode::empty()).unwrap().into();
        }
        let excludes = Excludes::new(&[], Vec::new()).unwrap();
        let root = File::open(top.path()).unwrap();
        let tree = walk(&root, top.path(), &excludes, &Mounts::new(), &Budget::default()).unwrap();
        assert_eq!(tree.len(), DEEPEST as u64);
        assert_eq!(tree.beyond, [["d"; DEEPEST + 1].join("/").into_bytes()]);
    }
}

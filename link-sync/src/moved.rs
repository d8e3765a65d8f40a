//! What moved under a pass's hands is distrusted, and the next pass takes it again.
//! rsync read a file after the walk had looked at it, so what arrived need not be what the walk saw.

use std::collections::HashMap;
use std::fs::File;
use std::os::unix::ffi::OsStrExt as _;

use anyhow::{Context as _, Result};
use nix::errno::Errno;
use nix::fcntl::AtFlags;
use nix::sys::stat::fstatat;

use crate::names::show;
use crate::store::split;
use crate::tree::{Meta, Tree, join};
use crate::walk;

/// Marks every entry of the directories `dirs` that was taken but is not any more what the walk saw, or lies in a
/// folder that moved: rsync may have met the one or the other. Returns how many, and calls `named` with each. Costs as much
/// as was taken.
pub fn distrust_moved(
    root: &File,
    tree: &mut Tree,
    dirs: &[Vec<u8>],
    mut named: impl FnMut(&[u8]),
) -> Result<u64> {
    let look = Look { root, still: HashMap::new() };
    let still = look.all_still(tree, dirs)?;
    let mut moved = 0;
    for (path, parents_still) in dirs.iter().zip(still) {
        let Some(dir) = tree.dirs.get_mut(path) else { continue };
        moved += dir.distrust(|name, meta| -> Result<bool> {
            let full = join(path, name);
            let moved = !parents_still || !same(root, &full, meta)?;
            if moved {
                named(&full);
            }
            Ok(moved)
        })?;
    }
    Ok(moved)
}

/// Whether `path` still is what `meta` says.
pub fn same(root: &File, path: &[u8], meta: &Meta) -> Result<bool> {
    match fstatat(root, std::ffi::OsStr::from_bytes(path), AtFlags::AT_SYMLINK_NOFOLLOW) {
        Ok(stat) if meta.is_untrusted() => Ok(walk::meta(&stat).untrusted() == *meta),
        Ok(stat) if meta.is_stub() => Ok(walk::meta(&stat).stub() == *meta),
        Ok(stat) => Ok(walk::meta(&stat) == *meta),
        Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => Ok(false),
        Err(e) => Err(e).with_context(|| format!("cannot look at {}", show(path))),
    }
}

struct Look<'a> {
    root: &'a File,
    /// Answers that are known.
    still: HashMap<Vec<u8>, bool>,
}

impl Look<'_> {
    /// For each of `dirs`, before any entry is marked: is it, and is all above it, what the walk saw?
    fn all_still(mut self, tree: &Tree, dirs: &[Vec<u8>]) -> Result<Vec<bool>> {
        dirs.iter().map(|path| self.is_still(tree, path)).collect()
    }

    fn is_still(&mut self, tree: &Tree, path: &[u8]) -> Result<bool> {
        if path.is_empty() {
            return Ok(true);
        }
        if let Some(answer) = self.still.get(path) {
            return Ok(*answer);
        }
        let (parent, name) = split(path);
        let meta = tree.dirs.get(parent).and_then(|dir| dir.find(name)).map(|entry| entry.meta);
        let answer = self.is_still(tree, parent)?
            && match meta {
                Some(meta) => same(self.root, path, &meta)?,
                None => false,
            };
        self.still.insert(path.to_vec(), answer);
        Ok(answer)
    }
}

//! Removing a tree that may hold anything: what is immutable, closed, mounted, or held open on NFS stays, and is told.
//! No mount inside of it is ever entered, and no symbolic link followed.

use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use anyhow::Result;
use common::fault::Fault;
use common::mutant;
use nix::errno::Errno;
use nix::sys::stat::{Mode, fchmod};
use nix::unistd::UnlinkatFlags;

use super::beneath::{open_dir, open_dir_here};
use super::{sweep, visit};
use crate::tree::{join, split};

/// So many paths are named.
const NAMED: usize = 10;

/// What could not be removed.
#[derive(Debug, Default)]
pub struct Stuck {
    /// How many names.
    pub total: u64,
    /// The first of them, below what was to be removed, and why each stayed.
    pub first: Vec<(Vec<u8>, Errno)>,
}

impl Stuck {
    fn add(&mut self, path: &[u8], why: Errno) {
        self.total += 1;
        if self.first.len() < NAMED {
            self.first.push((path.to_vec(), why));
        }
    }

    /// The first one, for people; `None` if all is gone.
    pub fn shown(&self) -> Option<String> {
        let (path, why) = self.first.first()?;
        let why = match why {
            Errno::EXDEV | Errno::EBUSY => "something is mounted there".to_owned(),
            Errno::EPERM => "it cannot be changed (chattr +i or +a?)".to_owned(),
            other => other.desc().to_owned(),
        };
        let more = if self.total > 1 { format!(" (and {} more)", self.total - 1) } else { String::new() };
        Some(format!("{}: {why}{more}", crate::names::show(path)))
    }
}

/// Removes `name` in `dir` and all below it, as far as it can be; fine if it is not there. Fails only when it is asked
/// to stop.
pub fn clear(dir: &File, name: &[u8]) -> Result<Stuck> {
    let mut stuck = Stuck::default();
    match sweep::unlink(dir, OsStr::from_bytes(name), UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => return Ok(stuck),
        Err(Errno::EISDIR | Errno::EPERM | Errno::EACCES) => {}
        Err(e) => {
            stuck.add(name, e);
            return Ok(stuck);
        }
    }
    let mut folders: Vec<Vec<u8>> = vec![Vec::new()];
    let mut next = 0;
    while let Some(path) = folders.get(next).cloned() {
        common::signals::check()?;
        next += 1;
        let full = below(name, &path);
        let listed = open(dir, &full).and_then(|open| Ok((visit::raw_names(&open)?, open)));
        let (names, open) = match listed {
            Ok(listed) => listed,
            // It was no folder after all, only one that cannot be removed.
            Err(Errno::ENOTDIR) if path.is_empty() => {
                stuck.add(name, Errno::EPERM);
                return Ok(stuck);
            }
            Err(e) => {
                stuck.add(&full, e);
                continue;
            }
        };
        for (entry, is_dir, _) in names {
            if is_dir {
                folders.push(join(&path, &entry));
            } else if let Err(e) = unlink(&open, &entry, UnlinkatFlags::NoRemoveDir) {
                stuck.add(&join(&full, &entry), e);
            }
        }
    }
    // A folder comes after the one it lies in, so backwards each is empty when its turn comes.
    for path in folders.iter().rev() {
        let full = below(name, path);
        let (above, last) = split(&full);
        let removed = open_dir(dir, above).and_then(|above| unlink(&above, last, UnlinkatFlags::RemoveDir));
        match removed {
            Ok(()) | Err(Errno::ENOENT) => {}
            // What lies in it is told already.
            Err(Errno::ENOTEMPTY | Errno::EBUSY) if stuck.total > 0 => {}
            Err(e) => stuck.add(&full, e),
        }
    }
    Ok(stuck)
}

/// `path` in the tree, which may be the whole of it.
fn below(name: &[u8], path: &[u8]) -> Vec<u8> {
    if path.is_empty() { name.to_vec() } else { join(name, path) }
}

/// Opens a folder that is to be emptied; a mount in its place is none.
fn open(dir: &File, path: &[u8]) -> nix::Result<File> {
    match mutant::active("removal-enters-mounts") {
        true => open_dir(dir, path),
        false => open_dir_here(dir, path),
    }
}

/// A folder may be closed to the account that owns it, too.
fn unlink(dir: &File, name: &[u8], flag: UnlinkatFlags) -> nix::Result<()> {
    match sweep::unlink(dir, OsStr::from_bytes(name), flag) {
        Err(Errno::EACCES) => {
            fchmod(dir, Mode::S_IRWXU)?;
            sweep::unlink(dir, OsStr::from_bytes(name), flag)
        }
        other => other,
    }
}

/// Removes `name` in `dir` and all below it, whatever it is; fine if it is not there.
pub fn remove(dir: &File, name: &Path) -> Result<()> {
    match clear(dir, name.as_os_str().as_bytes())?.shown() {
        None => Ok(()),
        Some(stuck) => Err(Fault::failed(format!("cannot remove {stuck}")).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::deep::deep;

    #[test]
    fn a_tree_goes_and_nothing_it_points_to() {
        let dir = tempfile::tempdir().unwrap();
        let open = File::open(dir.path()).unwrap();
        std::fs::create_dir_all(dir.path().join("tree/a/b")).unwrap();
        std::fs::write(dir.path().join("tree/a/file"), "x").unwrap();
        std::fs::create_dir(dir.path().join("other")).unwrap();
        std::os::unix::fs::symlink("../other", dir.path().join("tree/link")).unwrap();
        assert!(clear(&open, b"tree").unwrap().shown().is_none());
        assert!(!dir.path().join("tree").exists() && dir.path().join("other").exists());
        assert!(clear(&open, b"tree").unwrap().shown().is_none());
        std::fs::write(dir.path().join("file"), "x").unwrap();
        assert!(clear(&open, b"file").unwrap().shown().is_none());
        assert!(!dir.path().join("file").exists());
    }

    #[test]
    fn a_tree_deeper_than_a_path_may_be_long() {
        let dir = tempfile::tempdir().unwrap();
        let top = File::open(dir.path()).unwrap();
        let name = deep(&top);
        assert!(clear(&top, name.as_bytes()).unwrap().shown().is_none());
        assert!(!dir.path().join(&name).exists());
    }
}

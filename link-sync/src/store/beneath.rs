//! Opening what lies below a folder that is open already, through no symbolic link.
//! Names in a store, or where a restore goes, may be another account's.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;

use anyhow::{Context as _, Result};
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::{Mode, mkdirat};

use crate::names::show;
use crate::tree::split;

/// Opens the directory `path` below `root`, through no symlink, whoever made the tree, however deep it is.
pub fn open_dir(root: &File, path: &[u8]) -> nix::Result<File> {
    open_folder(root, path, ResolveFlag::empty())
}

/// The same, and nothing on another mount.
pub fn open_dir_here(root: &File, path: &[u8]) -> nix::Result<File> {
    open_folder(root, path, ResolveFlag::RESOLVE_NO_XDEV)
}

fn open_folder(root: &File, path: &[u8], more: ResolveFlag) -> nix::Result<File> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    match open_with(root, path, flags, more) {
        // More than the kernel takes at once.
        Err(Errno::ENAMETOOLONG) => {
            let half = path[..path.len() / 2].iter().rposition(|b| *b == b'/');
            let half = half.ok_or(Errno::ENAMETOOLONG)?;
            open_folder(&open_folder(root, &path[..half], more)?, &path[half + 1..], more)
        }
        other => other.map(File::from),
    }
}

/// Opens the regular file `path` below `root` for reading, through no symlink, and without waiting for anything.
pub fn open_file(root: &File, path: &str) -> Result<File> {
    open_file_at(root, path.as_bytes())
}

/// The same for a path that is bytes.
pub fn open_file_at(root: &File, path: &[u8]) -> Result<File> {
    let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    let file = match open_below(root, path, flags) {
        Err(Errno::ENAMETOOLONG) if !split(path).0.is_empty() => {
            let (above, name) = split(path);
            open_below(&open_dir(root, above)?, name, flags)
        }
        other => other,
    };
    let file = File::from(file?);
    anyhow::ensure!(file.metadata()?.is_file(), "it is not a regular file");
    Ok(file)
}

/// Opens what `flags` say.
pub fn open_below(root: &File, path: &[u8], flags: OFlag) -> nix::Result<OwnedFd> {
    open_with(root, path, flags, ResolveFlag::empty())
}

/// The same, in as far as `more` lets it.
pub(super) fn open_with(root: &File, path: &[u8], flags: OFlag, more: ResolveFlag) -> nix::Result<OwnedFd> {
    let path = if path.is_empty() { OsStr::new(".") } else { OsStr::from_bytes(path) };
    let resolve = ResolveFlag::RESOLVE_BENEATH
        | ResolveFlag::RESOLVE_NO_SYMLINKS
        | ResolveFlag::RESOLVE_NO_MAGICLINKS
        | more;
    loop {
        match openat2(root.as_fd(), path, OpenHow::new().flags(flags).resolve(resolve)) {
            // RESOLVE_BENEATH may have to be tried again when something is renamed meanwhile (openat2(2)).
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            other => return other,
        }
    }
}

/// Opens the directory `path` below `root`, and makes what is missing of it, 0700.
pub fn ensure_dir(root: &File, path: &[u8]) -> Result<File> {
    match open_dir(root, path) {
        Ok(dir) => return Ok(dir),
        Err(Errno::ENOENT) => {}
        Err(e) => {
            return Err(e).with_context(|| format!("cannot open the folder {}", show(path)));
        }
    }
    let (parent, name) = split(path);
    let parent = ensure_dir(root, parent)?;
    match mkdirat(&parent, OsStr::from_bytes(name), Mode::from_bits_truncate(0o700)) {
        Ok(()) | Err(Errno::EEXIST) => {}
        Err(e) => {
            return Err(e).with_context(|| format!("cannot make the folder {}", show(path)));
        }
    }
    open_dir(root, path).with_context(|| format!("cannot open the folder {}", show(path)))
}

/// The folder named by `parts` below `dir`, if there is one.
pub fn existing(dir: &File, parts: &[&str]) -> Result<Option<File>> {
    let path = parts.join("/");
    match open_dir(dir, path.as_bytes()) {
        Ok(dir) => Ok(Some(dir)),
        Err(Errno::ENOENT) => Ok(None),
        Err(e) => Err(e).with_context(|| format!("cannot open {path} in the store")),
    }
}

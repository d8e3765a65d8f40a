//! The files of a tree, in the order of their paths, through no symbolic link.
//!
//! The order is that of the rows: component by component, as bytes; a folder before what is in it. Memory: one folder
//! of each level.

use std::cmp::Ordering;
use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;

use anyhow::{Context as _, Result};
use common::signals;
use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::fstatat;

/// What a path is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Folder,
    File,
    /// What a link leads to is not in the tree.
    Link,
    Other,
}

/// One path of the tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    /// Relative to the top, empty for the top itself.
    pub(crate) path: Vec<u8>,
    pub(crate) kind: Kind,
    pub(crate) size: u64,
    /// Seconds since 1970.
    pub(crate) mtime: i64,
}

/// The order of paths: component by component.
pub(crate) fn order(a: &[u8], b: &[u8]) -> Ordering {
    // A slash counts less than any other byte, and nothing counts less than a slash.
    let same = a.iter().zip(b).take_while(|(x, y)| x == y).count();
    let rank =
        |path: &[u8]| path.get(same).map_or(0, |byte| if *byte == b'/' { 1 } else { u16::from(*byte) + 1 });
    rank(a).cmp(&rank(b))
}

/// Opens `path` below `root`, through no symbolic link.
pub(crate) fn open_below(root: &File, path: &[u8], flags: OFlag) -> nix::Result<OwnedFd> {
    let path = if path.is_empty() { OsStr::new(".") } else { OsStr::from_bytes(path) };
    let resolve =
        ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_MAGICLINKS;
    let how = OpenHow::new().flags(flags | OFlag::O_CLOEXEC).resolve(resolve);
    loop {
        match openat2(root.as_fd(), path, how) {
            // RESOLVE_BENEATH may have to be tried again when something is renamed meanwhile (openat2(2)).
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            other => return other,
        }
    }
}

/// Opens the folder `path` below `root`.
pub(crate) fn open_folder(root: &File, path: &[u8]) -> nix::Result<File> {
    open_below(root, path, OFlag::O_RDONLY | OFlag::O_DIRECTORY).map(File::from)
}

/// Opens the regular file `path` below `root` for reading, waiting for nothing.
pub(crate) fn open_file(root: &File, path: &[u8]) -> Result<File> {
    let file = File::from(open_below(root, path, OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY)?);
    anyhow::ensure!(file.metadata()?.is_file(), "it is not a regular file");
    Ok(file)
}

/// A path for people.
pub(crate) fn show(path: &[u8]) -> String {
    String::from_utf8_lossy(path).escape_debug().to_string()
}

/// A walk that is under way.
#[derive(Debug)]
pub(crate) struct Walk<'r> {
    root: &'r File,
    /// Owners and types are kept in an attribute, as rsync's fake-super does.
    fake_super: bool,
    levels: Vec<std::vec::IntoIter<Found>>,
}

impl<'r> Walk<'r> {
    /// A walk of all below `root`, and `root` itself.
    pub(crate) fn new(root: &'r File, fake_super: bool) -> Walk<'r> {
        let top = Found { path: Vec::new(), kind: Kind::Folder, size: 0, mtime: 0 };
        Walk { root, fake_super, levels: vec![vec![top].into_iter()] }
    }

    /// The next path; `None` after the last one.
    pub(crate) fn next(&mut self) -> Result<Option<Found>> {
        while let Some(level) = self.levels.last_mut() {
            let Some(found) = level.next() else {
                self.levels.pop();
                continue;
            };
            if found.kind == Kind::Folder {
                signals::check()?;
                let inside = self.read(&found.path)?;
                self.levels.push(inside.into_iter());
            }
            return Ok(Some(found));
        }
        Ok(None)
    }

    fn read(&self, path: &[u8]) -> Result<Vec<Found>> {
        let what = || format!("cannot read the folder {}", show(path));
        let folder = open_folder(self.root, path).with_context(what)?;
        let mut dir = Dir::from_fd(folder.try_clone().with_context(what)?.into()).with_context(what)?;
        let mut list = Vec::new();
        for entry in dir.iter() {
            let entry = entry.with_context(what)?;
            let name = entry.file_name().to_bytes();
            if matches!(name, b"." | b"..") {
                continue;
            }
            let stat =
                fstatat(&folder, entry.file_name(), AtFlags::AT_SYMLINK_NOFOLLOW).with_context(what)?;
            let kind = match stat.st_mode & libc::S_IFMT {
                libc::S_IFDIR => Kind::Folder,
                libc::S_IFREG => Kind::File,
                libc::S_IFLNK => Kind::Link,
                _ => Kind::Other,
            };
            let full = if path.is_empty() { name.to_vec() } else { [path, b"/", name].concat() };
            let size = u64::try_from(stat.st_size).unwrap_or(0);
            list.push(Found { path: full, kind, size, mtime: stat.st_mtime });
        }
        list.sort_unstable_by(|a, b| a.path.cmp(&b.path));
        Ok(list)
    }

    /// What `found` really is: in a store without root, a link or a device is a regular file with an attribute. Asked
    /// only where something does not fit, as it costs a system call a file.
    pub(crate) fn real_kind(&self, found: &Found) -> Result<Kind> {
        if found.kind != Kind::File || !self.fake_super {
            return Ok(found.kind);
        }
        let what = || format!("cannot look at {}", show(&found.path));
        let file = open_file(self.root, &found.path).with_context(what)?;
        Ok(attribute(&file).with_context(what)?.map_or(Kind::File, |text| stat_kind(&text)))
    }
}

/// rsync's `user.rsync.%stat`, if the file has one.
fn attribute(file: &File) -> Result<Option<String>> {
    use xattr::FileExt as _;
    match file.get_xattr("user.rsync.%stat") {
        Ok(text) => Ok(text.map(|t| String::from_utf8_lossy(&t).into_owned())),
        Err(e) if e.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// `100644 0,0 33:33`: the mode in octal, the device, the owner.
fn stat_kind(text: &str) -> Kind {
    let mode = text.split_whitespace().next().and_then(|m| u32::from_str_radix(m, 8).ok()).unwrap_or(0);
    match mode & libc::S_IFMT {
        libc::S_IFLNK => Kind::Link,
        libc::S_IFREG | 0 => Kind::File,
        libc::S_IFDIR => Kind::Folder,
        _ => Kind::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_comes_before_what_is_in_it_and_what_is_in_it_before_its_neighbours() {
        let mut paths: Vec<&[u8]> = vec![b"a b", b"a", b"", b"a/z", b"a/b/c", b"a.txt", b"a/b", b"b"];
        paths.sort_by(|a, b| order(a, b));
        let expected: Vec<&[u8]> = vec![b"", b"a", b"a/b", b"a/b/c", b"a/z", b"a b", b"a.txt", b"b"];
        assert_eq!(paths, expected);
    }

    #[test]
    fn a_walk_goes_in_that_order() {
        let dir = tempfile::tempdir().unwrap();
        for path in ["a/b", "a b", "a\u{1}x"] {
            std::fs::create_dir_all(dir.path().join(path)).unwrap();
        }
        for path in ["a/b/c", "a.txt", "a/z", "ü"] {
            std::fs::write(dir.path().join(path), "12").unwrap();
        }
        std::os::unix::fs::symlink("/etc", dir.path().join("b")).unwrap();
        let root = File::open(dir.path()).unwrap();
        let mut walk = Walk::new(&root, false);
        let mut list = Vec::new();
        while let Some(found) = walk.next().unwrap() {
            list.push(found);
        }
        assert_eq!(list.len(), 10);
        assert!(list.windows(2).all(|w| order(&w[0].path, &w[1].path) == Ordering::Less), "{list:?}");
        assert_eq!(list.iter().find(|f| f.path == b"b").unwrap().kind, Kind::Link);
    }

    #[test]
    fn links_in_a_store_without_root() {
        assert_eq!(stat_kind("120777 0,0 33:33"), Kind::Link);
        assert_eq!(stat_kind("100640 0,0 33:33"), Kind::File);
        assert_eq!(stat_kind("20666 1,3 0:0"), Kind::Other);
    }
}

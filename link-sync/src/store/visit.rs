//! Visiting every path of a tree in the store, one after the other, through no symlink.

use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::ffi::OsStrExt as _;

use anyhow::{Context as _, Result};
use nix::errno::Errno;
use nix::fcntl::AtFlags;
use nix::sys::stat::fstatat;
use rustix::fs::{FileType, RawDir};

use super::beneath::open_dir;

use crate::tree::join;

/// Bytes of directory entries read at once.
const BUFFER: usize = 32 * 1024;

/// One path.
#[derive(Debug)]
pub struct Found<'a> {
    /// The directory it is in, relative to the top.
    pub dir: &'a [u8],
    /// That directory, open.
    pub parent: &'a File,
    /// Its name there.
    pub name: &'a OsStr,
    /// It is a directory (and will be visited after `each` has returned).
    pub is_dir: bool,
}

impl Found<'_> {
    /// Its path, relative to the top.
    pub fn path(&self) -> Vec<u8> {
        join(self.dir, self.name.as_bytes())
    }
}

/// A name, whether it is a directory, and its inode number.
pub type Name = (Vec<u8>, bool, u64);

/// The names in `dir` (freshly opened), sorted, with what is a directory and the inode number, without `.` and
/// `..`. Straight from getdents64(2): libc's directory streams cost five more system calls a folder.
pub fn names(dir: &File) -> Result<Vec<Name>> {
    raw_names(dir).context("cannot list a folder")
}

/// [`names`], with the bare error.
pub fn raw_names(dir: &File) -> nix::Result<Vec<Name>> {
    let mut buffer = Vec::with_capacity(BUFFER);
    let mut entries = RawDir::new(dir, buffer.spare_capacity_mut());
    let mut list = Vec::new();
    while let Some(entry) = entries.next() {
        let entry = entry.map_err(|e| Errno::from_raw(e.raw_os_error()))?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let is_dir = match entry.file_type() {
            FileType::Directory => true,
            FileType::Unknown => {
                let stat = fstatat(dir, name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
                stat.st_mode & libc::S_IFMT == libc::S_IFDIR
            }
            _ => false,
        };
        list.push((name.to_bytes().to_vec(), is_dir, entry.ino()));
    }
    list.sort_unstable();
    Ok(list)
}

/// Calls `visit` for every path below `top`; a directory before what is in it.
pub fn each(top: &File, mut visit: impl FnMut(&Found<'_>) -> Result<()>) -> Result<()> {
    let mut waiting: Vec<Vec<u8>> = vec![Vec::new()];
    while let Some(path) = waiting.pop() {
        common::signals::check()?;
        let context = || format!("cannot read the folder {}", crate::names::show(&path));
        let dir = open_dir(top, &path).with_context(context)?;
        for (name, is_dir, _) in names(&dir).with_context(context)? {
            let found = Found { dir: &path, parent: &dir, name: OsStr::from_bytes(&name), is_dir };
            visit(&found)?;
            if is_dir {
                waiting.push(found.path());
            }
        }
    }
    Ok(())
}

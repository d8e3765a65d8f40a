//! What differs between two published snapshots, by name and inode: two paths of one inode are equal.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read as _;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;

use anyhow::{Context as _, Result};
use common::mutant;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, readlinkat};
use nix::sys::stat::{FileStat, fstatat};
use serde::{Deserialize, Serialize};
use xattr::FileExt as _;

use super::{Store, open_below, open_dir, visit};
use crate::tree::join;
use crate::walk::show;

/// What happened to a path between two snapshots.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum What {
    /// Only in the later one.
    Added,
    /// Only in the earlier one; what was below it is not listed.
    Removed,
    /// Another type.
    Retyped,
    /// Other content.
    Content,
    /// Same content; mode, owner, time or extended attributes differ.
    Attributes,
}

/// The answer to a diff.
#[derive(Debug, Default, Deserialize, Serialize)]
pub struct Difference {
    /// The earlier snapshot.
    pub from: String,
    /// The later one.
    pub to: String,
    /// How many of each kind.
    pub counts: BTreeMap<String, u64>,
    /// The first ones, by path: `SOURCE/PATH`, escaped for people.
    pub changes: Vec<(What, String)>,
    /// More than listed.
    pub truncated: bool,
    /// Bytes that the list may still take.
    #[serde(skip)]
    memory: u64,
}

/// Compares two snapshots; lists at most `limit` paths, and no more than fit into `memory` bytes. Files of different inodes are compared byte by byte if all else is equal.
pub fn diff(
    store: &Store,
    from: &str,
    to: &str,
    source: Option<&str>,
    limit: usize,
    memory: u64,
) -> Result<Difference> {
    let (old, new) = (store.find(from)?, store.find(to)?);
    let dir = store.check()?;
    let open = |date: &str| open_dir(&dir, date.as_bytes()).with_context(|| format!("cannot open {date}"));
    let (old_dir, new_dir) = (open(&old.date)?, open(&new.date)?);
    let mut found = Difference { from: old.date, to: new.date, memory, ..Difference::default() };
    let mut waiting = vec![Vec::new()];
    while let Some(path) = waiting.pop() {
        common::signals::check()?;
        compare_dirs(&old_dir, &new_dir, &path, source, limit, &mut found, &mut waiting)
            .with_context(|| format!("cannot compare {}", show(&path)))?;
    }
    found.changes.sort_by(|a, b| a.1.cmp(&b.1));
    Ok(found)
}

fn compare_dirs(
    old_top: &File,
    new_top: &File,
    path: &[u8],
    source: Option<&str>,
    limit: usize,
    found: &mut Difference,
    waiting: &mut Vec<Vec<u8>>,
) -> Result<()> {
    let (old, new) = (open_dir(old_top, path)?, open_dir(new_top, path)?);
    let wanted = |name: &[u8]| {
        !path.is_empty() || (name != super::META.as_bytes() && source.is_none_or(|s| s.as_bytes() == name))
    };
    let mut before: BTreeMap<Vec<u8>, u64> =
        visit::names(&old)?.into_iter().filter(|n| wanted(&n.0)).map(|n| (n.0, n.2)).collect();
    for (name, is_dir, ino) in visit::names(&new)?.into_iter().filter(|n| wanted(&n.0)) {
        let full = join(path, &name);
        let Some(old_ino) = before.remove(&name) else {
            found.add(What::Added, &full, limit);
            continue;
        };
        if !is_dir && ino == old_ino {
            continue;
        }
        let as_name = std::ffi::OsStr::from_bytes(&name);
        let stat = |dir: &File| fstatat(dir, as_name, AtFlags::AT_SYMLINK_NOFOLLOW);
        let (a, b) = (stat(&old)?, stat(&new)?);
        if (a.st_mode ^ b.st_mode) & libc::S_IFMT != 0 {
            found.add(What::Retyped, &full, limit);
            continue;
        }
        if !is_dir && !same_content(&old, &new, as_name, &a, &b)? {
            found.add(What::Content, &full, limit);
        } else if attributes(&a) != attributes(&b) || !same_xattrs(&old, &new, &name, &a)? {
            found.add(What::Attributes, &full, limit);
        }
        if is_dir {
            waiting.push(full);
        }
    }
    for name in before.into_keys() {
        found.add(What::Removed, &join(path, &name), limit);
    }
    Ok(())
}

/// Whether two folders have the same mode, owner, time and extended attributes.
pub fn same_folder(old: &File, new: &File) -> Result<bool> {
    let stat = |dir: &File| nix::sys::stat::fstat(dir).context("cannot look at a folder");
    Ok(attributes(&stat(old)?) == attributes(&stat(new)?) && all_xattrs(old)? == all_xattrs(new)?)
}

fn attributes(stat: &FileStat) -> (u32, u32, u32, i64, i64) {
    (stat.st_mode, stat.st_uid, stat.st_gid, stat.st_mtime, stat.st_mtime_nsec)
}

fn same_content(old: &File, new: &File, name: &std::ffi::OsStr, a: &FileStat, b: &FileStat) -> Result<bool> {
    Ok(match a.st_mode & libc::S_IFMT {
        libc::S_IFREG => a.st_size == b.st_size && same_bytes(open_file(old, name)?, open_file(new, name)?)?,
        libc::S_IFLNK => readlinkat(old, name)? == readlinkat(new, name)?,
        _ => a.st_rdev == b.st_rdev,
    })
}

fn open_file(dir: &File, name: &std::ffi::OsStr) -> nix::Result<File> {
    let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let fd: OwnedFd = open_below(dir, name.as_bytes(), flags)?;
    Ok(File::from(fd))
}

fn same_bytes(mut a: File, mut b: File) -> Result<bool> {
    let (mut left, mut right) = (vec![0; 1 << 16], vec![0; 1 << 16]);
    loop {
        let n = a.read(&mut left)?;
        if n == 0 {
            return Ok(b.read(&mut right)? == 0);
        }
        if b.read_exact(&mut right[..n]).is_err() || left[..n] != right[..n] {
            return Ok(false);
        }
    }
}

/// Extended attributes of files and directories; links and devices have none that a backup keeps.
fn same_xattrs(old: &File, new: &File, name: &[u8], stat: &FileStat) -> Result<bool> {
    if !matches!(stat.st_mode & libc::S_IFMT, libc::S_IFREG | libc::S_IFDIR) {
        return Ok(true);
    }
    let open = |dir: &File| open_below(dir, name, OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC);
    Ok(all_xattrs(&File::from(open(old)?))? == all_xattrs(&File::from(open(new)?))?)
}

type Xattrs = BTreeMap<std::ffi::OsString, Option<Vec<u8>>>;

/// All extended attributes; `None` where the file system has none.
fn all_xattrs(file: &File) -> Result<Option<Xattrs>> {
    match file.list_xattr() {
        Ok(names) => Ok(Some(names.map(|n| Ok((n.clone(), file.get_xattr(&n)?))).collect::<Result<_>>()?)),
        Err(e) if e.raw_os_error() == Some(Errno::EOPNOTSUPP as i32) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

impl Difference {
    fn add(&mut self, what: What, path: &[u8], limit: usize) {
        let key = match what {
            What::Added => "added",
            What::Removed => "removed",
            What::Retyped => "retyped",
            What::Content => "content",
            What::Attributes => "attributes",
        };
        *self.counts.entry(key.to_owned()).or_default() += 1;
        // As it is, and once more as it is told.
        self.memory = self.memory.saturating_sub(512 + 2 * path.len() as u64);
        if self.changes.len() < limit && (self.memory > 0 || mutant::active("diff-keeps-everything")) {
            self.changes.push((what, show(path)));
        } else {
            self.truncated = true;
        }
    }
}

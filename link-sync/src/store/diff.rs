//! What differs between two published snapshots, path by path.
//! Of one inode in both nothing differs, other inodes are compared by type, content and attributes. Both snapshots are
//! kept from being removed meanwhile.

use std::collections::BTreeMap;
use std::ffi::OsStr;
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

use super::beneath::{open_below, open_dir};
use super::held::Held;
use super::layout::META;
use super::place::Store;
use super::{shown, visit};
use crate::names::show;
use crate::tree::join;

/// What happened to a path between two snapshots.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Change {
    /// Only in the later one. What is in a folder counts, and is not listed.
    Added,
    /// Only in the earlier one; the same.
    Removed,
    /// Another type. What is in the folder it is, or was, counts as added, or removed.
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
    /// How many of each kind, also of those that are not listed.
    pub counts: BTreeMap<String, u64>,
    /// So many of them as were asked for, sorted: `SOURCE/PATH`, escaped for people; and in base64, if it is not UTF-8.
    pub changes: Vec<(Change, String, Option<String>)>,
    /// There are more to be listed.
    pub truncated: bool,
    /// Bytes that the list may still take.
    #[serde(skip)]
    memory: u64,
}

/// The two snapshots, and what has been found.
struct Comparison<'a> {
    old: &'a File,
    new: &'a File,
    source: Option<&'a str>,
    /// One of them is shown by an overlay, whose numbers tell nothing.
    numbered_anew: bool,
    limit: usize,
    found: Difference,
    /// Folders that both have, to be compared.
    waiting: Vec<Vec<u8>>,
}

/// Compares two snapshots; lists at most `limit` paths, and no more than fit into `memory` bytes. Files of different inodes and one
/// size are compared byte by byte.
pub fn diff(
    store: &Store,
    from: &str,
    to: &str,
    source: Option<&str>,
    limit: usize,
    memory: u64,
) -> Result<Difference> {
    let dir = store.check()?;
    let hold = |date: &str| -> Result<_> {
        let Held { meta, top, lock, .. } = Held::open(store, &dir, &store.find(date)?.date)?;
        Ok((meta.date, top, Some(lock).filter(|_| !mutant::active("diff-holds-its-snapshots"))))
    };
    let ((from, old, _old_lock), (to, new, _new_lock)) = (hold(from)?, hold(to)?);
    let found = Difference { from, to, memory, ..Difference::default() };
    let numbered_anew = shown::is_overlay(&old) || shown::is_overlay(&new);
    let waiting = vec![Vec::new()];
    let mut comparison = Comparison { old: &old, new: &new, source, numbered_anew, limit, found, waiting };
    while let Some(path) = comparison.waiting.pop() {
        common::signals::check()?;
        comparison.folder(&path).with_context(|| format!("cannot compare {}", show(&path)))?;
    }
    let mut found = comparison.found;
    found.changes.sort_by(|a, b| (&a.1, &a.2).cmp(&(&b.1, &b.2)));
    Ok(found)
}

impl Comparison<'_> {
    fn folder(&mut self, path: &[u8]) -> Result<()> {
        let (old, new) = (open_dir(self.old, path)?, open_dir(self.new, path)?);
        let source = self.source;
        let wanted = |name: &[u8]| {
            !path.is_empty() || (name != META.as_bytes() && source.is_none_or(|s| s.as_bytes() == name))
        };
        let mut before: BTreeMap<Vec<u8>, (bool, u64)> = visit::names(&old)?
            .into_iter()
            .filter(|n| wanted(&n.0))
            .map(|(name, is_dir, ino)| (name, (is_dir, ino)))
            .collect();
        for (name, is_dir, ino) in visit::names(&new)?.into_iter().filter(|n| wanted(&n.0)) {
            let full = join(path, &name);
            let Some((was_dir, old_ino)) = before.remove(&name) else {
                self.add(Change::Added, &full);
                self.below(Change::Added, &new, &name, is_dir)?;
                continue;
            };
            if !is_dir && ino == old_ino && !self.numbered_anew {
                continue;
            }
            let as_name = OsStr::from_bytes(&name);
            let stat = |dir: &File| fstatat(dir, as_name, AtFlags::AT_SYMLINK_NOFOLLOW);
            let (a, b) = (stat(&old)?, stat(&new)?);
            if (a.st_mode ^ b.st_mode) & libc::S_IFMT != 0 {
                self.add(Change::Retyped, &full);
                self.below(Change::Removed, &old, &name, was_dir)?;
                self.below(Change::Added, &new, &name, is_dir)?;
                continue;
            }
            if !is_dir && !same_content(&old, &new, as_name, &a, &b)? {
                self.add(Change::Content, &full);
            } else if attributes(&a) != attributes(&b) || !same_xattrs(&old, &new, &name, &a)? {
                self.add(Change::Attributes, &full);
            }
            if is_dir {
                self.waiting.push(full);
            }
        }
        for (name, (was_dir, _)) in before {
            self.add(Change::Removed, &join(path, &name));
            self.below(Change::Removed, &old, &name, was_dir)?;
        }
        Ok(())
    }

    /// Counts what is in a folder that only one of the two has.
    fn below(&mut self, what: Change, parent: &File, name: &[u8], is_dir: bool) -> Result<()> {
        if is_dir {
            let mut paths = 0;
            visit::each(&open_dir(parent, name)?, |_| {
                paths += 1;
                Ok(())
            })?;
            self.count(what, paths);
        }
        Ok(())
    }

    fn count(&mut self, what: Change, paths: u64) {
        let key = match what {
            Change::Added => "added",
            Change::Removed => "removed",
            Change::Retyped => "retyped",
            Change::Content => "content",
            Change::Attributes => "attributes",
        };
        if paths > 0 {
            *self.found.counts.entry(key.to_owned()).or_default() += paths;
        }
    }

    fn add(&mut self, what: Change, path: &[u8]) {
        self.count(what, 1);
        let found = &mut self.found;
        // As it is, and once more as it is told.
        found.memory = found.memory.saturating_sub(512 + 2 * path.len() as u64);
        if found.changes.len() < self.limit && (found.memory > 0 || mutant::active("diff-keeps-everything")) {
            self.found.changes.push((what, show(path), common::status::b64(OsStr::from_bytes(path))));
        } else {
            self.found.truncated = true;
        }
    }
}

/// Whether two folders have the same mode, owner, time and extended attributes.
pub fn same_folder(old: &File, new: &File) -> Result<bool> {
    let stat = |dir: &File| nix::sys::stat::fstat(dir).context("cannot look at a folder");
    Ok(attributes(&stat(old)?) == attributes(&stat(new)?) && all_xattrs(old)? == all_xattrs(new)?)
}

fn attributes(stat: &FileStat) -> (u32, u32, u32, i64, i64) {
    (stat.st_mode, stat.st_uid, stat.st_gid, stat.st_mtime, stat.st_mtime_nsec)
}

/// Whether `name` has the same content in both folders, where `a` and `b` are its stats and of one type.
pub fn same_content(old: &File, new: &File, name: &OsStr, a: &FileStat, b: &FileStat) -> Result<bool> {
    Ok(match a.st_mode & libc::S_IFMT {
        libc::S_IFREG => a.st_size == b.st_size && same_bytes(open_file(old, name)?, open_file(new, name)?)?,
        libc::S_IFLNK => readlinkat(old, name)? == readlinkat(new, name)?,
        _ => a.st_rdev == b.st_rdev,
    })
}

fn open_file(dir: &File, name: &OsStr) -> nix::Result<File> {
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

type AllXattrs = BTreeMap<std::ffi::OsString, Option<Vec<u8>>>;

/// All extended attributes; `None` where the file system has none.
fn all_xattrs(file: &File) -> Result<Option<AllXattrs>> {
    match file.list_xattr() {
        Ok(names) => Ok(Some(names.map(|n| Ok((n.clone(), file.get_xattr(&n)?))).collect::<Result<_>>()?)),
        Err(e) if e.raw_os_error() == Some(Errno::EOPNOTSUPP as i32) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

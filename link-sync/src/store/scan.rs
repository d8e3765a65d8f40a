//! A snapshot on the disk and its manifests, both in the order of their paths' bytes, so that one pass compares them.

use std::collections::HashSet;
use std::fs::File;

use anyhow::{Result, bail};
use nix::fcntl::{FcntlArg, OFlag, fcntl};

use super::beneath::{open_dir, open_file};
use super::layout::META;
use super::manifest::{MTREE, SUMS};
use super::sums::{self, Lines, Sum};
use super::{mtree, visit};
use crate::tree::join;

/// One path on the disk.
#[derive(Debug)]
pub struct Visited<'a> {
    /// Relative to the snapshot.
    pub path: &'a [u8],
    /// The folder it is in.
    pub parent: &'a File,
    /// Its name there.
    pub name: &'a [u8],
    /// Inode number.
    pub ino: u64,
    /// It is a folder.
    pub is_dir: bool,
}

/// A name still to be visited; a folder comes twice: itself, and as `name/` what is in it.
type Waiting = (Vec<u8>, u64, bool);

/// Folders of a path that are kept open, however deep it is; one above those is opened again when its turn comes.
const OPEN: usize = 32;

/// A folder whose names are being visited.
struct Level {
    /// Its path.
    path: Vec<u8>,
    /// It, as long as it is kept open.
    dir: Option<File>,
    items: std::vec::IntoIter<Waiting>,
    /// Folders in it that are not looked into.
    without: HashSet<Vec<u8>>,
}

/// Visits every path of a snapshot but `.meta`. `visit` says of a folder whether what is in it is wanted; `unread` is
/// told of folders that cannot be read.
pub fn in_order(
    top: &File,
    mut visit: impl FnMut(&Visited) -> Result<bool>,
    mut unread: impl FnMut(&[u8], anyhow::Error),
) -> Result<()> {
    let root = open_dir(top, b"")?;
    let items = items(&root, true)?;
    let level = |path, dir, items| Level { path, dir: Some(dir), items, without: HashSet::new() };
    let mut stack: Vec<Level> = vec![level(Vec::new(), root, items)];
    while let Some(Level { path, dir, items, without }) = stack.last_mut() {
        let Some((name, ino, is_dir)) = items.next() else {
            stack.pop();
            continue;
        };
        let opened = match dir.take().map_or_else(|| open_dir(top, path), Ok) {
            Ok(opened) => dir.insert(opened),
            // It could be read a moment ago.
            Err(error) => {
                unread(path, error.into());
                stack.pop();
                continue;
            }
        };
        if let Some(name) = name.strip_suffix(b"/") {
            common::signals::check()?;
            if without.remove(name) {
                continue;
            }
            let below = join(path, name);
            let opened = open_dir(opened, name).map_err(anyhow::Error::from);
            match opened.and_then(|dir| Ok((self::items(&dir, false)?, dir))) {
                Ok((list, dir)) => stack.push(level(below, dir, list)),
                Err(error) => unread(&below, error),
            }
            if let Some(far) = stack.len().checked_sub(OPEN + 1) {
                stack[far].dir = None;
            }
            continue;
        }
        let full = join(path, &name);
        if !visit(&Visited { path: &full, parent: opened, name: &name, ino, is_dir })? && is_dir {
            without.insert(name);
        }
    }
    Ok(())
}

fn items(dir: &File, top: bool) -> Result<std::vec::IntoIter<Waiting>> {
    let mut list = Vec::new();
    for (name, is_dir, ino) in visit::names(dir)? {
        if top && name == META.as_bytes() {
            continue;
        }
        if is_dir {
            list.push(([&name[..], b"/"].concat(), ino, true));
        }
        list.push((name, ino, is_dir));
    }
    list.sort_unstable();
    Ok(list.into_iter())
}

/// What the manifests say of one path.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ManifestLine {
    /// Relative to the snapshot.
    pub path: Vec<u8>,
    /// Attributes, as in mtree(5); empty if they are not known.
    pub body: Vec<u8>,
    /// Content, if it is a file.
    pub sum: Option<Sum>,
}

impl ManifestLine {
    /// `file`, `dir`, …; empty if not known.
    pub fn kind(&self) -> &[u8] {
        kind(&self.body)
    }

    /// Bytes of a file, by its attributes.
    pub fn size(&self) -> u64 {
        let size = mtree::words(&self.body).remove("size");
        size.and_then(|s| String::from_utf8(s).ok()?.parse().ok()).unwrap_or(0)
    }
}

/// The value of `type=` in front of the attributes.
pub fn kind(body: &[u8]) -> &[u8] {
    let end = body.iter().position(|b| *b == b' ').unwrap_or(body.len());
    body[..end].strip_prefix(b"type=").unwrap_or_default()
}

/// The lines of both manifests of a snapshot, together.
#[derive(Debug)]
pub struct Expected {
    mtree: Lines,
    sums: Lines,
}

impl Expected {
    /// The manifests in the `.meta` of `dir`.
    pub fn open(dir: &File) -> Result<Expected> {
        let lines =
            |name: &str| Ok::<_, anyhow::Error>(Lines::new(open_file(dir, &format!("{META}/{name}"))?));
        Ok(Expected { mtree: lines(MTREE)?, sums: lines(SUMS)? })
    }

    /// The next path's.
    pub fn next(&mut self) -> Result<Option<ManifestLine>> {
        loop {
            let Some(line) = self.mtree.next()? else { return Ok(None) };
            let Some((path, body)) = mtree::parse(line) else { continue };
            let mut line = ManifestLine { path: path.into_owned(), body: body.to_vec(), sum: None };
            if line.kind() == b"file" {
                let sum = self.sums.next()?.and_then(sums::parse);
                match sum.filter(|s| *s.1 == *line.path) {
                    Some((sum, _)) => line.sum = Some(sum),
                    None => bail!("{SUMS} and {MTREE} do not belong together"),
                }
            }
            return Ok(Some(line));
        }
    }
}

/// Hashes an opened file as it is on the disk, not in the page cache, and without a new access time.
pub fn hash(file: &mut File, read: impl FnMut(u64) -> Result<()>) -> Result<Sum> {
    // Only the owner and root may; for others the time moves.
    fcntl(&*file, FcntlArg::F_SETFL(OFlag::O_NOATIME)).ok();
    sums::uncache(file);
    let (sum, _) = sums::of_file(file, read)?;
    // Nobody needs it in memory, and others' pages stay there instead.
    sums::uncache(file);
    Ok(sum)
}

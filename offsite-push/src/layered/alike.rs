//! Whether two views of a date are the same: one of the images that the container has, one with an image in the place of some of them.
//!
//! Names, types, sizes, owners, modes, times, link targets and attributes are compared, and the bytes of what the new image stores.
//! What it leaves to the layers below is not read: there it is the same file.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{File, Metadata};
use std::io::{ErrorKind, Read};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context as _, Result};
use common::show::escaped;
use serde::Serialize;

use super::view::many;

/// So many of the paths that differ are named.
const NAMED: usize = 3;

/// What makes a file of an image one whose content lies below.
const METACOPY: &str = "trusted.overlay.metacopy";

/// What was found.
#[derive(Debug, Default, Serialize)]
pub(super) struct Compared {
    /// The first paths that are not the same.
    pub(super) differs: Vec<String>,
    /// How many there are.
    pub(super) total: usize,
    /// Why nothing can be seen here.
    pub(super) unseen: Option<String>,
}

/// Compares what is seen at `old` and at `new`, of which `image` is the one that is new.
pub(super) fn compare(old: &Path, new: &Path, image: &Path) -> Result<Compared> {
    let found = Mutex::new((Vec::<PathBuf>::new(), Vec::<PathBuf>::new()));
    let mut level = vec![PathBuf::new()];
    while !level.is_empty() {
        let done = many(&level, |folder| {
            common::signals::check()?;
            let context = || format!("cannot compare {}", escaped(&folder.to_string_lossy()));
            let (differs, folders) = one(old, new, image, folder).with_context(context)?;
            let mut found = found.lock().unwrap_or_else(PoisonError::into_inner);
            found.0.extend(differs);
            found.1.extend(folders);
            Ok(())
        });
        done.into_iter().collect::<Result<Vec<()>>>()?;
        level = std::mem::take(&mut found.lock().unwrap_or_else(PoisonError::into_inner).1);
    }
    let mut differs = found.into_inner().unwrap_or_else(PoisonError::into_inner).0;
    differs.sort_unstable();
    let total = differs.len();
    let named = differs.iter().take(NAMED).map(|path| escaped(&path.to_string_lossy()).to_string());
    Ok(Compared { differs: named.collect(), total, unseen: None })
}

/// What in this folder differs, and the folders in it.
fn one(old: &Path, new: &Path, image: &Path, folder: &Path) -> Result<(Vec<PathBuf>, Vec<PathBuf>)> {
    let (before, mut after) = (names(&old.join(folder))?, names(&new.join(folder))?);
    let (mut differs, mut folders) = (Vec::new(), Vec::new());
    for (name, was) in before {
        let path = folder.join(&name);
        let same = match after.remove(&name) {
            None => false,
            Some(is) => {
                let (a, b) = (old.join(&path), new.join(&path));
                let same = facts(&was) == facts(&is) && more(&a, &was)? == more(&b, &is)?;
                if was.is_dir() && is.is_dir() {
                    folders.push(path.clone());
                }
                let stored = image.join(&path);
                same && (!is.is_file() || !is_stored(&stored)? || same_bytes(&a, &stored)?)
            }
        };
        if !same {
            differs.push(path);
        }
    }
    differs.extend(after.into_keys().map(|name| folder.join(name)));
    Ok((differs, folders))
}

fn names(folder: &Path) -> Result<BTreeMap<OsString, Metadata>> {
    let entries = std::fs::read_dir(folder)?;
    // (of a link, not of what it leads to)
    entries
        .map(|entry| entry.and_then(|entry| Ok((entry.file_name(), entry.metadata()?))))
        .collect::<std::io::Result<_>>()
        .map_err(Into::into)
}

/// What a file is, without its content. The size of a folder says nothing.
fn facts(meta: &Metadata) -> (u32, u32, u32, u64, u64, i64, i64) {
    let size = if meta.is_dir() { 0 } else { meta.size() };
    let device = meta.file_type().is_block_device() || meta.file_type().is_char_device();
    let device = if device { meta.rdev() } else { 0 };
    (meta.mode(), meta.uid(), meta.gid(), size, device, meta.mtime(), meta.mtime_nsec())
}

/// Where a link leads, and the extended attributes.
type More = (Option<PathBuf>, BTreeMap<OsString, Option<Vec<u8>>>);

/// Tells them.
fn more(path: &Path, meta: &Metadata) -> Result<More> {
    let target = meta.is_symlink().then(|| std::fs::read_link(path)).transpose()?;
    let all = xattr::list(path)?.map(|name| Ok((name.clone(), xattr::get(path, name)?)));
    Ok((target, all.collect::<Result<_>>()?))
}

/// Whether the image has a file there, with its content.
fn is_stored(path: &Path) -> Result<bool> {
    match std::fs::symlink_metadata(path) {
        Ok(meta) => Ok(meta.is_file() && xattr::get(path, METACOPY)?.is_none()),
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

fn same_bytes(a: &Path, b: &Path) -> Result<bool> {
    let (mut a, mut b) = (File::open(a)?, File::open(b)?);
    let (mut one, mut other) = (vec![0; super::images::PIECE], vec![0; super::images::PIECE]);
    loop {
        common::signals::check()?;
        let n = fill(&mut a, &mut one)?;
        if n != fill(&mut b, &mut other)? || one[..n] != other[..n] {
            return Ok(false);
        }
        if n == 0 {
            return Ok(true);
        }
    }
}

/// As much as there is room for, or all that is left.
fn fill(file: &mut File, piece: &mut [u8]) -> std::io::Result<usize> {
    let mut n = 0;
    while n < piece.len() {
        match file.read(&mut piece[n..]) {
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
            Ok(0) => break,
            Ok(more) => n += more,
        }
    }
    Ok(n)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::stat::{UtimensatFlags, utimensat};
    use nix::sys::time::TimeSpec;
    use std::os::unix::fs::symlink;

    #[test]
    fn what_differs_is_named_and_what_the_image_does_not_store_is_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        for top in ["old", "new", "image"] {
            std::fs::create_dir_all(path(top).join("folder")).unwrap();
            for file in ["folder/same", "folder/rotten", "below", "resized"] {
                std::fs::write(path(top).join(file), format!("what is in {file}")).unwrap();
            }
            symlink("to", path(top).join("link")).unwrap();
        }
        let same = |top: &str| {
            let set = std::fs::FileTimes::new().set_modified(std::time::UNIX_EPOCH);
            for name in ["folder/same", "folder/rotten", "below", "resized", "folder"] {
                File::open(path(top).join(name)).unwrap().set_times(set).unwrap();
            }
            let (zero, flag) = (TimeSpec::new(0, 0), UtimensatFlags::NoFollowSymlink);
            utimensat(nix::fcntl::AT_FDCWD, &path(top).join("link"), &zero, &zero, flag).unwrap();
        };
        ["old", "new"].into_iter().for_each(same);
        let named = |compared: Compared| (compared.differs, compared.total);
        let compare = || named(compare(&path("old"), &path("new"), &path("image")).unwrap());
        assert_eq!(compare(), (vec![], 0));
        // What is below is the same file in truth.
        std::fs::remove_file(path("image/below")).unwrap();
        std::fs::write(path("old/below"), "what is in belox").unwrap();
        std::fs::write(path("image/folder/rotten"), "what is in folder/rottes").unwrap();
        std::fs::write(path("new/resized"), "larger than it was before").unwrap();
        ["old", "new"].into_iter().for_each(same);
        assert_eq!(compare(), (vec!["folder/rotten".to_owned(), "resized".into()], 2));
        std::fs::write(path("old/more"), "").unwrap();
        std::fs::write(path("new/other"), "").unwrap();
        std::fs::remove_file(path("new/link")).unwrap();
        symlink("elsewhere", path("new/link")).unwrap();
        ["old", "new"].into_iter().for_each(same);
        assert_eq!(compare(), (vec!["folder/rotten".to_owned(), "link".into(), "more".into()], 5));
    }
}

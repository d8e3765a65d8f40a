//! Large contents: plain files beside the images, under their hashes. Of one that is like another that is there, only the blocks
//! that differ are written, where the container's file system can share the rest (btrfs, xfs).

use std::fs::File;
use std::io::{ErrorKind, Read as _};
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use base64::Engine as _;
use common::{durable, mutant};
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use super::images::PIECE;
use super::list::is_hash;
use super::target::{FLUSH, Target, room};

/// What is compared, and written if it differs: btrfs's smallest extent.
const BLOCK: usize = 4096;

/// A content in the store, as `link-sync layer` tells of it.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Content {
    sha256: String,
    bytes: u64,
    /// The snapshot that has it.
    date: String,
    /// In it.
    path: String,
    path_b64: Option<String>,
}

impl Content {
    /// Opens it below `store`, which may be an account's: through no symlink, and without waiting for anything.
    fn open(&self, store: &Path) -> Result<File> {
        anyhow::ensure!(crate::store::is_date(&self.date), "{:?} is no date", self.date);
        let decoded =
            self.path_b64.as_ref().map(|text| base64::engine::general_purpose::STANDARD.decode(text));
        let path = decoded.transpose().context("path_b64 is no base64")?;
        let path = path.unwrap_or_else(|| self.path.clone().into_bytes());
        let path = Path::new(&self.date).join(PathBuf::from(std::ffi::OsString::from_vec(path)));
        let top = File::open(store).with_context(|| format!("cannot open {}", store.display()))?;
        let flags =
            OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOFOLLOW | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        let resolve = ResolveFlag::RESOLVE_BENEATH
            | ResolveFlag::RESOLVE_NO_SYMLINKS
            | ResolveFlag::RESOLVE_NO_MAGICLINKS;
        let file = loop {
            match openat2(&top, &path, OpenHow::new().flags(flags).resolve(resolve)) {
                Err(Errno::EAGAIN | Errno::EINTR) => {}
                other => break File::from(other.with_context(|| format!("cannot open {}", path.display()))?),
            }
        };
        anyhow::ensure!(file.metadata()?.is_file(), "{} is not a file", path.display());
        Ok(file)
    }
}

impl Content {
    /// An error unless what was read is what was told.
    fn must_be(&self, bytes: u64, read: &Hashed) -> Result<()> {
        let right = (bytes, read.sum()) == (self.bytes, self.sha256.clone());
        anyhow::ensure!(
            right || mutant::active("a-content-has-its-hash"),
            "{} is not what it was",
            self.path
        );
        Ok(())
    }
}

/// What was done.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Put {
    /// It was there.
    Was,
    /// All of it was copied.
    Copied,
    /// It shares blocks with another; so many bytes were written.
    Patched(u64),
}

/// Puts `content` of the store into `folder`, with the blocks that it has in common with `like` if that lies there.
pub(super) fn put(
    folder: &Path,
    store: &Path,
    content: &Content,
    like: Option<&Content>,
    reserve: u64,
) -> Result<Put> {
    anyhow::ensure!(is_hash(&content.sha256), "{:?} is no hash", content.sha256);
    let target = folder.join(&content.sha256);
    match std::fs::symlink_metadata(&target) {
        Ok(meta) => {
            let same = meta.is_file() && meta.len() == content.bytes;
            anyhow::ensure!(same, "{} is there already, and is another file", target.display());
            return Ok(Put::Was);
        }
        Err(e) if e.kind() == ErrorKind::NotFound => {}
        Err(e) => return Err(e).with_context(|| format!("cannot look at {}", target.display())),
    }
    let passing = folder.join(format!(".{}.new", content.sha256));
    let patched = match like {
        Some(like) => patch(folder, store, content, like, &passing)?,
        None => None,
    };
    let done = match patched {
        Some(written) => Put::Patched(written),
        None => {
            copy(&passing, store, content, reserve).context("cannot copy a large content")?;
            Put::Copied
        }
    };
    std::fs::rename(&passing, &target).with_context(|| format!("cannot rename {}", passing.display()))?;
    durable::sync_dir(folder)?;
    Ok(done)
}

/// Makes it out of a clone of `like`; how many bytes were written, or `None` if that cannot be.
fn patch(
    folder: &Path,
    store: &Path,
    content: &Content,
    like: &Content,
    passing: &Path,
) -> Result<Option<u64>> {
    anyhow::ensure!(is_hash(&like.sha256), "{:?} is no hash", like.sha256);
    let there =
        File::options().read(true).custom_flags(nix::libc::O_NOFOLLOW).open(folder.join(&like.sha256));
    // What is not there any more, here or there, is of no help, and no error.
    let (Ok(there), Ok(old)) = (there, like.open(store)) else { return Ok(None) };
    let file = fresh(passing)?;
    if rustix::fs::ioctl_ficlone(&file, &there).is_err() {
        return Ok(None);
    }
    file.set_len(content.bytes).context("cannot set a length")?;
    let (mut new, mut old) = (Hashed::new(content.open(store)?), Hashed::new(old));
    let written = write(&file, &mut new, content, &mut old).context("cannot patch a large content")?;
    // Only if what lies here is what lies there did the comparison mean anything.
    while !old.piece()?.is_empty() {}
    let same = old.sum() == like.sha256 || mutant::active("a-patch-is-of-what-lies-there");
    Ok(same.then_some(written))
}

/// Copies all of it, durably, or what of it is not there yet.
fn copy(passing: &Path, store: &Path, content: &Content, reserve: u64) -> Result<()> {
    let (mut new, mut at) = (Hashed::new(content.open(store)?), 0);
    let mut target = Target::open(passing)?;
    let folder = passing.parent().context("a content without a folder")?;
    room(folder, content.bytes.saturating_sub(target.there()), reserve)?;
    loop {
        common::signals::check()?;
        let piece = new.piece()?;
        if piece.is_empty() {
            break;
        }
        target.put(piece)?;
        at += piece.len() as u64;
    }
    target.finish()?;
    content.must_be(at, &new)
}

/// Writes what of `new` differs from `old`, durably; the bytes written.
fn write(file: &File, new: &mut Hashed, content: &Content, old: &mut Hashed) -> Result<u64> {
    let (mut at, mut written, mut waiting) = (0, 0, 0);
    loop {
        common::signals::check()?;
        let (before, piece) = (old.piece()?, new.piece()?);
        if piece.is_empty() {
            break;
        }
        for (n, block) in piece.chunks(BLOCK).enumerate() {
            let begin = n * BLOCK;
            if before.get(begin..begin + block.len()) != Some(block) {
                file.write_all_at(block, at + begin as u64)?;
                written += block.len() as u64;
                waiting += block.len() as u64;
            }
        }
        at += piece.len() as u64;
        if waiting >= FLUSH {
            file.sync_data()?;
            waiting = 0;
        }
    }
    file.sync_all()?;
    content.must_be(at, new)?;
    Ok(written)
}

/// A file that is read in pieces, and hashed.
struct Hashed {
    file: File,
    hash: Sha256,
    piece: Vec<u8>,
}

impl Hashed {
    fn new(file: File) -> Hashed {
        Hashed { file, hash: Sha256::new(), piece: vec![0; PIECE] }
    }

    /// The next piece: a whole one but for the last, which may be empty.
    fn piece(&mut self) -> std::io::Result<&[u8]> {
        let mut n = 0;
        while n < self.piece.len() {
            match self.file.read(&mut self.piece[n..]) {
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
                Ok(0) => break,
                Ok(more) => n += more,
            }
        }
        self.hash.update(&self.piece[..n]);
        Ok(&self.piece[..n])
    }

    /// Of what was read.
    fn sum(&self) -> String {
        super::images::hex(&self.hash.clone().finalize())
    }
}

/// A new, empty file, for root alone.
fn fresh(path: &Path) -> Result<File> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != ErrorKind::NotFound => {
            return Err(e).with_context(|| format!("cannot remove {}", path.display()));
        }
        _ => {}
    }
    let file = File::options().write(true).create_new(true).mode(0o600).open(path);
    file.with_context(|| format!("cannot make {}", path.display()))
}

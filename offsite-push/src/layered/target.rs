//! A file that is written from its beginning, and gone on with where the one before was cut off: what is there is read and compared
//! with what belongs there, so nothing has to be believed, and only what does not fit is sent again.

use std::fs::File;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

use anyhow::{Context as _, Result};
use common::mutant;
use nix::sys::statvfs::statvfs;

/// Bytes after which the disk is waited for, so that what has been written is what has left.
pub(super) const FLUSH: u64 = 32 << 20;

/// The file on its way.
#[derive(Debug)]
pub(super) struct Target {
    file: File,
    /// So much of it is there, and may be right.
    there: u64,
    at: u64,
    waiting: u64,
    before: Vec<u8>,
}

impl Target {
    /// Opens what is there, or makes it, for root alone.
    pub(super) fn open(path: &Path) -> Result<Target> {
        let context = || format!("cannot open {}", path.display());
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let file = options.custom_flags(nix::libc::O_NOFOLLOW).open(path).with_context(context)?;
        let meta = file.metadata().with_context(context)?;
        anyhow::ensure!(meta.is_file() && meta.nlink() == 1, "{} is not a file of ours", path.display());
        Ok(Target { file, there: meta.len(), at: 0, waiting: 0, before: Vec::new() })
    }

    /// How much of it may be there.
    pub(super) fn there(&self) -> u64 {
        self.there
    }

    /// The next piece.
    pub(super) fn put(&mut self, piece: &[u8]) -> Result<()> {
        let end = self.at + piece.len() as u64;
        if self.there >= end && self.is_there(piece) {
            self.at = end;
            return Ok(());
        }
        if self.there > self.at {
            self.file.set_len(self.at)?;
        }
        self.there = 0;
        self.file.write_all_at(piece, self.at)?;
        self.at = end;
        self.waiting += piece.len() as u64;
        if self.waiting >= FLUSH {
            self.file.sync_data()?;
            self.waiting = 0;
        }
        Ok(())
    }

    /// What cannot be read is as good as wrong.
    fn is_there(&mut self, piece: &[u8]) -> bool {
        self.before.resize(piece.len(), 0);
        let read = self.file.read_exact_at(&mut self.before, self.at);
        read.is_ok() && (self.before == piece || mutant::active("what-is-there-is-compared"))
    }

    /// After the last piece: it is durable, and all else that was written to its file system. What failed to be written since
    /// it was opened is told (syncfs(2), Linux 5.8).
    pub(super) fn finish(self) -> Result<()> {
        if self.there > self.at {
            self.file.set_len(self.at)?;
        }
        if mutant::active("an-image-is-durable-first") {
            return Ok(());
        }
        Ok(nix::unistd::syncfs(&self.file)?)
    }
}

/// An error unless `coming` bytes fit into the file system of `folder`, and `reserve` stay free.
pub(super) fn room(folder: &Path, coming: u64, reserve: u64) -> Result<()> {
    let vfs = statvfs(folder).with_context(|| format!("cannot ask {}", folder.display()))?;
    let free = vfs.blocks_available().saturating_mul(vfs.fragment_size());
    let needed = coming.saturating_add(reserve);
    if free >= needed || mutant::active("the-container-is-asked-for-room") {
        return Ok(());
    }
    let told =
        format!("{free} bytes are free in it, and {needed} are needed ({reserve} of them to stay free)");
    Err(anyhow::Error::from(std::io::Error::from_raw_os_error(nix::libc::ENOSPC)).context(told))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_cut_off_is_gone_on_with_and_whatever_was_there_it_is_right_in_the_end() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("target");
        let whole: Vec<u8> = (0..100_000_u32).flat_map(u32::to_le_bytes).collect();
        let mut wrong = whole.clone();
        wrong[150_000] ^= 1;
        let longer = [&whole[..], b"more"].concat();
        for there in [&b""[..], &whole[..1], &whole[..64 << 10], &whole[..99_999], &whole, &longer, &wrong] {
            std::fs::write(&path, there).unwrap();
            let mut target = Target::open(&path).unwrap();
            for piece in whole.chunks(64 << 10) {
                target.put(piece).unwrap();
            }
            target.finish().unwrap();
            assert!(std::fs::read(&path).unwrap() == whole, "{}", there.len());
        }
        let other = dir.path().join("link");
        std::os::unix::fs::symlink(&path, &other).unwrap();
        assert!(Target::open(&other).is_err());
        std::fs::hard_link(&path, dir.path().join("name")).unwrap();
        assert!(Target::open(&path).is_err());
    }

    #[test]
    fn what_does_not_fit_is_told_as_a_full_disk() {
        room(Path::new("/tmp"), 1, 0).unwrap();
        let error = room(Path::new("/tmp"), 1 << 60, 1).unwrap_err();
        let told: serde_json::Value = serde_json::from_slice(&super::super::failed(&error)).unwrap();
        assert_eq!(told["full"], true);
    }
}

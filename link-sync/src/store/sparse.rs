//! Holes that a copy has lost are made again.
//! rsync copies a file of which only attributes changed from the base by itself, and fills its holes with zeros that
//! take room: an image of a disk, touched, would be stored in full.

use std::fs::File;
use std::os::unix::fs::FileExt as _;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::stat::fstat;
use nix::sys::time::TimeSpec;
use nix::unistd::{Whence, lseek};

use super::attributes::set_modified;

/// Read at once.
const PIECE: usize = 256 << 10;

/// Makes holes in `file` where `like` has some and `file` holds zeros alone; its modification time stays. `file` must not be
/// part of any snapshot. An error leaves its content as it was.
pub fn dig(file: &File, like: &File) -> nix::Result<()> {
    let before = fstat(file)?;
    let mut buffer = vec![0; PIECE];
    let mut at = 0;
    while at < before.st_size {
        let begin = lseek(like, at, Whence::SeekHole)?;
        let end = match lseek(like, begin, Whence::SeekData) {
            Ok(end) => end,
            // No data after it.
            Err(Errno::ENXIO) => before.st_size,
            Err(e) => return Err(e),
        };
        let Some((begin, end)) = range(at, begin, end, before.st_size) else { break };
        hole(file, begin, end, &mut buffer)?;
        at = end.max(begin.saturating_add(1));
    }
    set_modified(file, &TimeSpec::new(before.st_mtime, before.st_mtime_nsec))
}

/// The hole from `begin` to `end`, of what is looked for from `at` on. `None` where the answers lead back: seen of a small file
/// whose data was not yet on the disk, of which SEEK_HOLE from 1 said 0.
fn range(at: i64, begin: i64, end: i64, size: i64) -> Option<(i64, i64)> {
    let (begin, end) = (begin.min(size), end.min(size));
    (at <= begin && begin <= end).then_some((begin, end))
}

/// The range becomes a hole, as far as it holds zeros, from its beginning.
fn hole(file: &File, begin: i64, end: i64, buffer: &mut [u8]) -> nix::Result<()> {
    static ZEROS: [u8; 4096] = [0; 4096];
    let is_zero = |read: &[u8]| read.chunks(ZEROS.len()).all(|part| *part == ZEROS[..part.len()]);
    let mut at = begin;
    while at < end {
        let want = usize::try_from(end - at).unwrap_or(PIECE).min(PIECE);
        let offset = u64::try_from(at).unwrap_or(0);
        let n = file.read_at(&mut buffer[..want], offset).map_err(|_| Errno::EIO)?;
        if n == 0 || !is_zero(&buffer[..n]) {
            break;
        }
        at += i64::try_from(n).unwrap_or(0);
    }
    if at == begin {
        return Ok(());
    }
    let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    fallocate(file, flags, begin, at - begin)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt as _;

    #[test]
    fn answers_that_lead_back_end_the_search() {
        assert_eq!(range(0, 0, 4096, 64), Some((0, 64)));
        assert_eq!(range(1, 8192, 8192, 10_000), Some((8192, 8192)));
        assert_eq!(range(1, 0, 0, 64), None);
        assert_eq!(range(1, 64, 0, 64), None);
    }

    #[test]
    fn only_zeros_become_holes() {
        let dir = tempfile::tempdir().unwrap();
        let open = |name: &str| {
            File::options()
                .read(true)
                .write(true)
                .create(true)
                .truncate(true)
                .open(dir.path().join(name))
                .unwrap()
        };
        let (like, file) = (open("like"), open("file"));
        like.set_len(8 << 20).unwrap();
        like.write_all_at(b"data", 3 << 20).unwrap();
        let mut full = vec![0; 8 << 20];
        full[3 << 20] = 1;
        // Not a hole in this one.
        full[6 << 20] = 2;
        file.write_all_at(&full, 0).unwrap();
        let time = std::time::SystemTime::UNIX_EPOCH + std::time::Duration::new(1_000_000, 5);
        file.set_modified(time).unwrap();
        dig(&file, &like).unwrap();
        let meta = file.metadata().unwrap();
        assert!(meta.blocks() * 512 < 4 << 20, "{} bytes are allocated", meta.blocks() * 512);
        assert_eq!(meta.modified().unwrap(), time);
        let mut read = vec![9; 8 << 20];
        file.read_exact_at(&mut read, 0).unwrap();
        assert!(read == full);
    }
}

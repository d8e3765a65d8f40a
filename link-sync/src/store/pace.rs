//! Writing to a slow disk in small steps: after every few megabytes all of it is flushed.
//!
//! Without it the page cache takes what is written at once, and the one who waits for the end waits for a
//! multiple of what was shown. With it, stopping takes seconds and progress tells what is really written. The
//! mark tells, after a crash, what had been flushed: all that was last changed before it.

use std::fs::File;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context as _, Result};
use nix::fcntl::AtFlags;
use nix::sys::stat::{FileStat, UtimensatFlags, fstatat, utimensat};
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_gettime};

/// The mark's name in the store.
const MARK: &str = ".flushed";

/// Estimated bytes a link adds: its part of an inode table and of a folder.
pub const LINK: u64 = 320;
/// Estimated bytes a folder adds: a block and an inode.
pub const FOLDER: u64 = 4352;

/// Counts what is written to a store and flushes.
#[derive(Debug)]
pub struct Pace {
    dir: File,
    every: Option<u64>,
    since: AtomicU64,
    flushing: Mutex<()>,
}

impl Pace {
    /// For the store `dir`; `None` leaves flushing to the kernel.
    pub fn new(dir: &File, every: Option<u64>) -> Result<Pace> {
        let dir = dir.try_clone().context("cannot copy a descriptor")?;
        Ok(Pace { dir, every, since: AtomicU64::new(0), flushing: Mutex::new(()) })
    }

    /// So many bytes more were written. Waits for the disk when it is time to.
    pub fn wrote(&self, bytes: u64) -> Result<()> {
        let Some(every) = self.every else { return Ok(()) };
        if self.since.fetch_add(bytes, Ordering::Relaxed) + bytes < every {
            return Ok(());
        }
        let _one = self.flushing.lock().unwrap_or_else(PoisonError::into_inner);
        if self.since.load(Ordering::Relaxed) < every { Ok(()) } else { self.flush() }
    }

    /// Flushes all of the file system now, if it is to be flushed at all.
    pub fn flush(&self) -> Result<()> {
        if self.every.is_none() {
            return Ok(());
        }
        self.since.store(0, Ordering::Relaxed);
        // The clock that stamps files; what changes from now on is not covered.
        let before = clock_gettime(ClockId::CLOCK_REALTIME_COARSE).context("cannot ask for the time")?;
        nix::unistd::syncfs(&self.dir).context("cannot flush the store")?;
        self.mark(&before)
    }

    /// Says, after it is true, up to when all is flushed. The mark itself becomes durable with the next flush: it may be
    /// behind, never ahead.
    fn mark(&self, time: &TimeSpec) -> Result<()> {
        // Both times, as some file systems pass over a call for one of them.
        let set = || utimensat(&self.dir, MARK, time, time, UtimensatFlags::NoFollowSymlink);
        if set().is_err() {
            use nix::fcntl::{OFlag, openat};
            let flags = OFlag::O_CREAT | OFlag::O_WRONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            let mode = nix::sys::stat::Mode::from_bits_truncate(0o600);
            drop(openat(&self.dir, MARK, flags, mode).context("cannot make the mark of the last flush")?);
            set().context("cannot set the mark of the last flush")?;
        }
        Ok(())
    }

    /// What was known to be flushed when the store was last written to; taken once, before anything is written.
    pub fn take_mark(&self) -> Result<Flushed> {
        let mark = fstatat(&self.dir, MARK, AtFlags::AT_SYMLINK_NOFOLLOW).ok();
        super::remove(&self.dir, Path::new(MARK))?;
        let now = clock_gettime(ClockId::CLOCK_REALTIME).context("cannot ask for the time")?;
        // A mark of the future was set before the clock was put back: it says nothing.
        let mark = mark.map(|m| (m.st_mtime, m.st_mtime_nsec));
        Ok(Flushed(mark.filter(|m| *m <= (now.tv_sec(), now.tv_nsec()))))
    }
}

/// What a flush covered.
#[derive(Clone, Copy, Debug)]
pub struct Flushed(Option<(i64, i64)>);

impl Flushed {
    /// Whether all of the file was flushed: its last change was before the mark.
    pub fn covers(self, stat: &FileStat) -> bool {
        self.0.is_some_and(|mark| (stat.st_ctime, stat.st_ctime_nsec) < mark)
    }
}

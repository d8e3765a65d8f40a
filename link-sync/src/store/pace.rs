//! What is written to a store is watched: its reserve, what did not reach the disk, and its flushes.
//! What must stay free does, what did not reach the disk is never called written, and on a slow disk all is flushed
//! after every few megabytes.
//!
//! **Room.** The estimate before a transfer may be wrong by all of it, so the file system is asked again and again: before
//! what comes could take a quarter of what is left above the reserve (at least every 64 MiB, at most every MiB), and
//! ten times a second, as one frame may make rsync write much more, and others write, too. So of what is received no more
//! than a MiB and a frame is written into the reserve.
//!
//! **Errors.** The kernel tells whoever holds a file system open of a write that failed since it was opened, once
//! (errseq, syncfs(2) since Linux 5.8). So the descriptor is the one that was opened before the first write, and after one
//! failure nothing is called durable any more.
//!
//! **Flushing.** Without it the page cache takes what is written at once, and the one who waits for the end waits for a
//! multiple of what was shown. With it, stopping takes seconds and progress tells what is really written. The
//! mark tells, after a crash, what had been flushed: all that was last changed before it.

use std::fs::File;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError, mpsc};
use std::thread::{Scope, ScopedJoinHandle};
use std::time::Duration;

use anyhow::{Context as _, Result};
use common::fault::{Fault, no_room};
use common::mutant;
use nix::fcntl::AtFlags;
use nix::sys::signal::{Signal, kill};
use nix::sys::stat::{FileStat, UtimensatFlags, fstatat, utimensat};
use nix::sys::statvfs::fstatvfs;
use nix::sys::time::TimeSpec;
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;

use super::clear::remove;

/// The mark's name in the store.
const MARK: &str = ".flushed";

/// Estimated bytes a link adds: its part of an inode table and of a folder.
pub const LINK: u64 = 320;
/// Estimated bytes a folder adds: a block and an inode.
pub const FOLDER: u64 = 4352;

/// The file system is asked for its room at least and at most after so many bytes.
const LOOKS: (u64, u64) = (1 << 20, 64 << 20);
/// And so often, whatever is written.
const TICK: Duration = Duration::from_millis(100);
/// Inodes that stay free at most, so that somebody can still work there.
const INODES: u64 = 1024;

/// What must stay free on a store's disk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reserve {
    /// Bytes.
    pub bytes: u64,
}

/// What is free.
#[derive(Clone, Copy, Debug)]
pub struct Free {
    /// Bytes.
    pub bytes: u64,
    /// Inodes; `None` where they are made as they are needed (btrfs).
    pub inodes: Option<u64>,
    /// Inodes that must stay free: the share of all that the reserve is of all bytes, and not many.
    pub inodes_reserve: u64,
}

impl Free {
    /// Asks the file system that `dir` is on.
    pub fn of(dir: &File, reserve: Reserve) -> Result<Free> {
        let stat = fstatvfs(dir).context("cannot ask for the store's free room")?;
        let all = stat.blocks().saturating_mul(stat.fragment_size()).max(1);
        let share = u128::from(stat.files()) * u128::from(reserve.bytes) / u128::from(all);
        Ok(Free {
            bytes: stat.blocks_available().saturating_mul(stat.fragment_size()),
            inodes: (stat.files() != 0).then(|| stat.files_available()),
            inodes_reserve: u64::try_from(share).unwrap_or(u64::MAX).min(INODES),
        })
    }
}

/// Counts what is written to a store, keeps its reserve, and flushes.
#[derive(Debug)]
pub struct Pace {
    dir: File,
    every: Option<u64>,
    reserve: Reserve,
    /// Bytes since the last flush of each few megabytes.
    since: AtomicU64,
    /// Bytes since the file system was last flushed at all.
    unflushed: AtomicU64,
    /// Bytes until the file system is asked again.
    unasked: AtomicU64,
    flushing: Mutex<()>,
    /// Something that was written did not reach the disk.
    broken: AtomicBool,
}

impl Pace {
    /// For the store `dir`, opened before anything is written to it; `None` leaves flushing to the kernel.
    pub fn new(dir: &File, every: Option<u64>, reserve: Reserve) -> Result<Pace> {
        let dir = dir.try_clone().context("cannot copy a descriptor")?;
        Ok(Pace {
            dir,
            every,
            reserve,
            since: AtomicU64::new(0),
            unflushed: AtomicU64::new(0),
            unasked: AtomicU64::new(0),
            flushing: Mutex::new(()),
            broken: AtomicBool::new(false),
        })
    }

    /// So many bytes more are written. Waits for the disk when it is time to; fails when what must stay free would not.
    pub fn wrote(&self, bytes: u64) -> Result<()> {
        self.unflushed.fetch_add(bytes, Ordering::Relaxed);
        let left =
            self.unasked.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(bytes));
        if left.is_err() {
            self.room()?;
        }
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
        self.sync()?;
        match self.mark(&before) {
            // It may be behind, never ahead.
            Err(e) if no_room(&e) => Ok(()),
            other => other,
        }
    }

    /// Makes all that was written to the file system durable. Fails if any of it did not reach the disk since the store
    /// was opened, also if that was told before.
    pub fn sync(&self) -> Result<()> {
        if self.broken.load(Ordering::Acquire) && !mutant::active("a-lost-write-is-forgotten") {
            return Err(lost("what was written to the store before did not reach its disk").into());
        }
        self.unflushed.store(0, Ordering::Relaxed);
        nix::unistd::syncfs(&self.dir).map_err(|e| {
            self.broken.store(true, Ordering::Release);
            anyhow::Error::from(e).context(lost("what was written to the store did not reach its disk"))
        })
    }

    /// Fails if less is free than must stay free.
    pub fn room(&self) -> Result<()> {
        if self.reserve == Reserve::default() || mutant::active("the-reserve-is-estimated-only") {
            self.unasked.store(u64::MAX, Ordering::Relaxed);
            return Ok(());
        }
        let mut free = Free::of(&self.dir, self.reserve)?;
        let dirty = self.unflushed.load(Ordering::Relaxed);
        if dirty > 0 && free.bytes < self.reserve.bytes.saturating_add(dirty) {
            // btrfs counts what is in memory alone for nothing.
            self.sync()?;
            free = Free::of(&self.dir, self.reserve)?;
        }
        let inodes_short = free.inodes.is_some_and(|inodes| inodes < free.inodes_reserve);
        if free.bytes < self.reserve.bytes || inodes_short {
            let inodes = free.inodes.map(|n| format!(" and {n} inodes ({} must)", free.inodes_reserve));
            return Err(Fault::failed(format!(
                "the store's disk is as full as it may be: {} bytes must stay free (reserve_bytes), {} are free{}",
                self.reserve.bytes,
                free.bytes,
                inodes.unwrap_or_default()
            ))
            .hint("make room (link-sync prune on the store's machine, or a larger disk), or set another reserve_bytes in the profile there; what has arrived is kept, and the next run goes on with it")
            .into());
        }
        let next = ((free.bytes - self.reserve.bytes) / 4).clamp(LOOKS.0, LOOKS.1);
        self.unasked.store(next, Ordering::Relaxed);
        Ok(())
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
        remove(&self.dir, Path::new(MARK))?;
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

/// Watches the room of a store while a process writes to it.
#[derive(Debug)]
pub struct RoomWatch<'scope> {
    thread: ScopedJoinHandle<'scope, Result<()>>,
    done: mpsc::Sender<()>,
}

impl<'scope> RoomWatch<'scope> {
    /// Begins: the writing child `pid` is ended when what must stay free would not. It must not be reaped before
    /// [`RoomWatch::end`].
    pub fn begin(scope: &'scope Scope<'scope, '_>, pace: &'scope Pace, pid: Pid) -> RoomWatch<'scope> {
        let (done, is_done) = mpsc::channel();
        let tick = if mutant::active("the-room-is-not-looked-at-last") { TICK * 600 } else { TICK };
        let thread = scope.spawn(move || {
            while is_done.recv_timeout(tick) == Err(mpsc::RecvTimeoutError::Timeout) {
                if let Err(why) = pace.room() {
                    // It removes what it was writing.
                    kill(pid, Signal::SIGTERM).ok();
                    return Err(why);
                }
            }
            Ok(())
        });
        RoomWatch { thread, done }
    }

    /// Why the child was ended, if it was; or that it ended before anybody saw that it took too much.
    pub fn end(self, pace: &Pace) -> Result<()> {
        drop(self.done);
        let internal = || Err(anyhow::anyhow!("internal error while the store's room was watched"));
        self.thread.join().unwrap_or_else(|_| internal())?;
        if mutant::active("the-room-is-not-looked-at-last") { Ok(()) } else { pace.room() }
    }
}

fn lost(what: &str) -> Fault {
    Fault::failed(format!("{what}: nothing is published"))
        .hint("look at the disk (dmesg, smartctl) and at its room; then `link-sync abort` and run again: nothing of this run is believed unread")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_one_failed_flush_nothing_is_called_durable_any_more() {
        let dir = tempfile::tempdir().unwrap();
        // A descriptor that syncfs(2) refuses.
        let flags = nix::fcntl::OFlag::O_PATH;
        let path = File::from(nix::fcntl::open(dir.path(), flags, nix::sys::stat::Mode::empty()).unwrap());
        let mut pace = Pace::new(&path, None, Reserve::default()).unwrap();
        assert!(pace.sync().is_err());
        // The kernel tells of it once, and would say now that all is well.
        pace.dir = File::open(dir.path()).unwrap();
        assert!(pace.sync().is_err());
        assert!(Pace::new(&pace.dir, None, Reserve::default()).unwrap().sync().is_ok());
    }
}

//! What a child says, kept within limits: a program that writes without end fills neither memory nor disk.
//!
//! A thread empties the child's pipe all the time, so the child can never block on us, and no grandchild that keeps the
//! pipe open is waited for. More than the limit is a flood: the child's group is ended (TERM, then KILL), whoever waits for
//! it and whether anybody does. A child that may outlive us gets a file in memory of a fixed size instead: a pipe that
//! nobody reads any more would end it at its next word.

use std::fs::File;
use std::io::Read as _;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::FileExt as _;
use std::process::Stdio;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use nix::fcntl::{FcntlArg, OFlag, SealFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::{Pid, Whence, lseek};

use crate::mutant;

/// How often somebody who does nothing else looks up.
pub(crate) const TICK: Duration = Duration::from_millis(250);

/// How long a child that was asked to end may take before it is killed.
pub(crate) const GRACE: Duration = Duration::from_secs(5);

/// What is kept of a stream, in bytes, and what is too much.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Kept from the beginning.
    pub(crate) head: usize,
    /// Kept of the end of what is more.
    pub(crate) tail: usize,
    /// More than this is a flood.
    pub(crate) flood: u64,
}

/// What is kept of stderr: more than anybody reads.
pub(crate) const STDERR: Limits = Limits { head: 1024 * 1024, tail: 1024 * 1024, flood: 64 * 1024 * 1024 };

/// The group of a child; no longer touched once the child has been collected, as its number may be another's then.
#[derive(Debug)]
pub(crate) struct Group(Mutex<Option<Pid>>);

impl Group {
    pub(crate) fn new(leader: u32) -> Arc<Group> {
        Arc::new(Group(Mutex::new(i32::try_from(leader).ok().map(Pid::from_raw))))
    }

    /// Sends `signal` to it, if it still is the child's.
    pub(crate) fn signal(&self, signal: Signal) {
        if let Some(leader) = *lock(&self.0) {
            // It may have ended in this very moment: nothing to do then.
            killpg(leader, signal).ok();
        }
    }

    /// The child is being collected: `collect` takes its status.
    pub(crate) fn end<T>(&self, collect: impl FnOnce() -> T) -> T {
        let mut leader = lock(&self.0);
        *leader = None;
        collect()
    }
}

/// One stream of a child.
#[derive(Debug)]
pub(crate) enum Capture {
    /// Nothing is captured.
    No,
    /// Emptied by a thread.
    Pipe(Arc<Pipe>),
    /// As much as fits.
    Fixed(File, u64),
}

#[derive(Debug)]
pub(crate) struct Pipe {
    limits: Limits,
    kept: Mutex<Kept>,
}

#[derive(Debug)]
struct Kept {
    /// Our end, which does not block; none when all has been read, or nobody wants it any more.
    from: Option<File>,
    head: Vec<u8>,
    tail: Vec<u8>,
    total: u64,
}

impl Capture {
    /// A pipe within `limits`, and what the child gets.
    pub(crate) fn pipe(limits: Limits) -> Result<(Capture, Stdio)> {
        let (ours, theirs) = std::io::pipe().context("cannot make a pipe")?;
        let ours = File::from(OwnedFd::from(ours));
        fcntl(&ours, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).context("cannot prepare a pipe")?;
        let kept = Kept { from: Some(ours), head: Vec::new(), tail: Vec::new(), total: 0 };
        Ok((Capture::Pipe(Arc::new(Pipe { limits, kept: Mutex::new(kept) })), theirs.into()))
    }

    /// A file in memory that takes `size` bytes and no more, and what the child gets.
    pub(crate) fn fixed(size: u64) -> Result<(Capture, Stdio)> {
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        let file = File::from(memfd_create(c"nc-backup", flags).context("cannot make a memory file")?);
        let seals = SealFlag::F_SEAL_GROW | SealFlag::F_SEAL_SHRINK;
        file.set_len(size).context("cannot prepare a memory file")?;
        fcntl(&file, FcntlArg::F_ADD_SEALS(seals)).context("cannot prepare a memory file")?;
        let theirs = file.try_clone().context("cannot prepare a memory file")?;
        Ok((Capture::Fixed(file, size), theirs.into()))
    }

    /// Begins to empty it, for the child whose group this is.
    pub(crate) fn begin(&self, group: &Arc<Group>) -> Result<()> {
        let Capture::Pipe(pipe) = self else { return Ok(()) };
        let (pipe, group) = (Arc::clone(pipe), Arc::clone(group));
        let thread = std::thread::Builder::new().name("capture".into()).stack_size(64 * 1024);
        thread.spawn(move || pipe.empty(&group)).context("cannot start a thread")?;
        Ok(())
    }

    /// What came so far; what was too much in the middle is counted there.
    pub(crate) fn read(&self) -> Result<Vec<u8>> {
        match self {
            Capture::No => Ok(Vec::new()),
            Capture::Fixed(file, size) => {
                let mut bytes = vec![0; usize::try_from(written(file)?.min(*size))?];
                // By position: the child shares the offset and may be writing.
                file.read_exact_at(&mut bytes, 0).context("cannot read a child's output back")?;
                Ok(bytes)
            }
            Capture::Pipe(pipe) => {
                let mut kept = lock(&pipe.kept);
                kept.take(&pipe.limits);
                let mut bytes = kept.head.clone();
                let lost = kept.total - (kept.head.len() + kept.tail.len()) as u64;
                if lost > 0 {
                    bytes.extend(format!("\n[{lost} bytes are left out here]\n").as_bytes());
                }
                bytes.extend(&kept.tail);
                Ok(bytes)
            }
        }
    }

    /// Whether nothing of what came was left out.
    pub(crate) fn is_whole(&self) -> bool {
        match self {
            Capture::Pipe(pipe) => {
                let kept = lock(&pipe.kept);
                kept.total == (kept.head.len() + kept.tail.len()) as u64
            }
            _ => !self.is_flood(),
        }
    }

    /// Whether it was more than anybody should say.
    pub(crate) fn is_flood(&self) -> bool {
        match self {
            Capture::No => false,
            Capture::Pipe(pipe) => lock(&pipe.kept).total > pipe.limits.flood,
            // What does not fit is refused as a whole, so the very end can stay empty.
            Capture::Fixed(file, size) => written(file).is_ok_and(|n| n.saturating_add(65_536) > *size),
        }
    }

    /// Bytes that came.
    pub(crate) fn total(&self) -> u64 {
        match self {
            Capture::No => 0,
            Capture::Pipe(pipe) => lock(&pipe.kept).total,
            Capture::Fixed(file, _) => written(file).unwrap_or(0),
        }
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        if let Capture::Pipe(pipe) = self {
            // The thread ends at its next look.
            lock(&pipe.kept).from = None;
        }
    }
}

impl Pipe {
    fn empty(&self, group: &Group) {
        let mut flood: Option<Instant> = None;
        loop {
            let from = lock(&self.kept).from.as_ref().and_then(|f| f.try_clone().ok());
            let Some(from) = from else { return };
            let mut fds = [PollFd::new(from.as_fd(), PollFlags::POLLIN)];
            // Whatever it says: the pipe itself tells what is there.
            poll(&mut fds, PollTimeout::try_from(TICK).unwrap_or(PollTimeout::MAX)).ok();
            let mut kept = lock(&self.kept);
            kept.take(&self.limits);
            if kept.total <= self.limits.flood || mutant::active("a-flood-of-output-is-taken") {
                continue;
            }
            drop(kept);
            let since = *flood.get_or_insert_with(|| {
                group.signal(Signal::SIGTERM);
                Instant::now()
            });
            if since.elapsed() > GRACE {
                group.signal(Signal::SIGKILL);
            }
        }
    }
}

impl Kept {
    /// Takes what is there now.
    fn take(&mut self, limits: &Limits) {
        let mut chunk = vec![0; 65_536];
        // A pipe holds no more than this; who writes faster than we read does not keep us here.
        for _ in 0..16 {
            let Some(from) = &mut self.from else { return };
            match from.read(&mut chunk) {
                Ok(0) => self.from = None,
                Ok(n) => self.keep(&chunk[..n], limits),
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => return,
                Err(_) => self.from = None,
            }
        }
    }

    fn keep(&mut self, bytes: &[u8], limits: &Limits) {
        self.total += bytes.len() as u64;
        let (first, rest) = bytes.split_at(bytes.len().min(limits.head - self.head.len()));
        self.head.extend_from_slice(first);
        self.tail.extend_from_slice(rest);
        // Twice as much before it is cut, so that each byte is moved once.
        if self.tail.len() > 2 * limits.tail {
            self.tail.drain(..self.tail.len() - limits.tail);
        }
    }
}

/// How far the child has written: the offset is shared.
fn written(file: &File) -> Result<u64> {
    let at = lseek(file, 0, Whence::SeekCur).context("cannot tell how much a child has said")?;
    Ok(u64::try_from(at).unwrap_or(0))
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

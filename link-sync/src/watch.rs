//! A thread that waits for one thing beside the work, and ends with it, at once.

use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// The thread. It ends when this is dropped.
#[derive(Debug)]
pub struct Watch {
    stop: Option<UnixStream>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Watch {
    /// Calls `then` once `thing` becomes readable, unless the work is over before.
    pub fn start(thing: impl AsFd + Send + 'static, then: impl FnOnce() + Send + 'static) -> Result<Watch> {
        Watch::when(move |stopped| came(stopped, Some(thing.as_fd()), None), then)
    }

    /// Calls `then` after `limit`, unless the work is over before.
    pub fn after(limit: Duration, then: impl FnOnce() + Send + 'static) -> Result<Watch> {
        let until = Instant::now().checked_add(limit);
        Watch::when(move |stopped| came(stopped, None, until), then)
    }

    fn when(
        came: impl FnOnce(BorrowedFd) -> bool + Send + 'static,
        then: impl FnOnce() + Send + 'static,
    ) -> Result<Watch> {
        let (stop, stopped) = UnixStream::pair().context("cannot make a socket pair")?;
        let thread = std::thread::spawn(move || {
            if came(stopped.as_fd()) {
                then();
            }
        });
        Ok(Watch { stop: Some(stop), thread: Some(thread) })
    }
}

/// Waits for `thing` or the time `until`; false if it was `stopped` before.
fn came(stopped: BorrowedFd, thing: Option<BorrowedFd>, until: Option<Instant>) -> bool {
    let mut fds: Vec<_> =
        [Some(stopped), thing].into_iter().flatten().map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
    loop {
        let left = until.map(|u| u.saturating_duration_since(Instant::now()));
        // A longer time than poll knows is waited for again.
        let limit = left.map_or(PollTimeout::NONE, |l| PollTimeout::try_from(l).unwrap_or(PollTimeout::MAX));
        if poll(&mut fds, limit).is_err() {
            continue;
        }
        if fds[0].any().unwrap_or(true) {
            return false;
        }
        if fds.get(1).is_some_and(|fd| fd.any().unwrap_or(true)) || left.is_some_and(|l| l.is_zero()) {
            return true;
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // It only waits and does one small thing.
            drop(thread.join());
        }
    }
}

//! A thread that waits for one thing beside the work, and ends with it, at once.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

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
        let (stop, stopped) = UnixStream::pair().context("cannot make a socket pair")?;
        let thread = std::thread::spawn(move || {
            loop {
                let mut fds = [
                    PollFd::new(thing.as_fd(), PollFlags::POLLIN),
                    PollFd::new(stopped.as_fd(), PollFlags::POLLIN),
                ];
                if poll(&mut fds, PollTimeout::NONE).is_err() {
                    continue;
                }
                if fds[1].any().unwrap_or(true) {
                    return;
                }
                if fds[0].any().unwrap_or(true) {
                    return then();
                }
            }
        });
        Ok(Watch { stop: Some(stop), thread: Some(thread) })
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

//! A process held by descriptor: never another one, even when its number is given again.

use std::os::fd::{AsFd as _, AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;

/// A descriptor that stands for process `pid`.
#[expect(unsafe_code, reason = "pidfd_open has no wrapper in nix")]
pub fn open(pid: u32) -> Result<OwnedFd> {
    // SAFETY: a plain system call; a descriptor it returns is ours alone.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    let fd = nix::errno::Errno::result(fd).with_context(|| format!("cannot watch process {pid}"))?;
    let fd = RawFd::try_from(fd).context("a descriptor out of range")?;
    // SAFETY: as above; pidfds are close-on-exec from birth.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Sends `signal` to the process that `pidfd` stands for; fine if it is gone.
#[expect(unsafe_code, reason = "pidfd_send_signal has no wrapper in nix")]
pub fn signal(pidfd: &OwnedFd, signal: Signal) {
    // SAFETY: a plain system call on a descriptor that is open; no memory is passed.
    unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal as libc::c_int,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        );
    }
}

/// Whether the process that `watch` stands for ends within `limit`.
pub fn gone_within(watch: &OwnedFd, limit: Duration) -> bool {
    let deadline = Instant::now() + limit;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let mut fds = [PollFd::new(watch.as_fd(), PollFlags::POLLIN)];
        if poll(&mut fds, PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)).is_ok_and(|n| n > 0) {
            return true;
        }
        if left.is_zero() {
            return false;
        }
    }
}

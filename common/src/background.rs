//! A process of ours that lives on in the background and answers on a socket: what holds a snapshot, or a database's state.
//!
//! Whoever starts it has its lock and makes its socket; both are handed down to it, so that there is never a moment in which
//! two of them live, or nobody listens.

use std::ffi::OsString;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context as _, Result};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};

use crate::fault::Fault;
use crate::lock::Lock;
use crate::program::Program;
use crate::run::Child;

/// Connects to the one that listens on `socket`.
pub fn connect(socket: &Path) -> std::io::Result<UnixStream> {
    with_short_name(socket, |path| UnixStream::connect(path))
}

/// Socket addresses hold 107 bytes; a path through an open directory is always short.
fn with_short_name<T>(path: &Path, then: impl FnOnce(&Path) -> std::io::Result<T>) -> std::io::Result<T> {
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(std::io::ErrorKind::InvalidInput.into());
    };
    let dir = std::fs::File::open(dir)?;
    then(&Path::new("/proc/self/fd").join(dir.as_raw_fd().to_string()).join(name))
}

/// Starts this tool's `action` with `argv` behind a new `socket`, whose lock is ours. Detach the child, and keep the listener
/// until it is known to live.
pub fn start(socket: &Path, lock: &Lock, action: &str, argv: &[OsString]) -> Result<(Child, UnixListener)> {
    crate::durable::remove(socket)?;
    let listener = with_short_name(socket, |path| UnixListener::bind(path))
        .with_context(|| format!("cannot listen on {}", socket.display()))?;
    let child = Program::own()?
        .cmd()
        .arg(action)
        .arg(format!("--listen-fd={}", listener.as_raw_fd()))
        .arg(format!("--lock-fd={}", lock.fd()))
        .args(argv)
        .inherit(listener.as_raw_fd())
        .inherit(lock.fd())
        .outlives_us()
        .own_session()
        // Relative paths among the options mean here what they mean there. Of a folder that is gone there are none.
        .dir(std::env::current_dir().unwrap_or_else(|_| "/".into()))
        .start(Stdio::null(), Stdio::null())
        .context("cannot start the background process")?;
    Ok((child, listener))
}

/// What [`start`] handed down, in the new process, before anything else is opened there. `by_hand` is said to whoever called
/// the action without that.
#[expect(unsafe_code, reason = "descriptors inherited over exec come as numbers")]
pub fn handed_down(listen: RawFd, lock: RawFd, by_hand: &str) -> Result<(UnixListener, OwnedFd)> {
    let open = |fd: RawFd| Path::new("/proc/self/fd").join(fd.to_string()).symlink_metadata().is_ok();
    if [listen, lock].into_iter().any(|fd| fd < 3 || !open(fd)) {
        return Err(Fault::usage(by_hand).into());
    }
    // SAFETY: `start` left these two open for us; nothing else in this new process knows them.
    let (listener, lock) = unsafe { (OwnedFd::from_raw_fd(listen), OwnedFd::from_raw_fd(lock)) };
    for fd in [&listener, &lock] {
        // Our children have no use for them.
        fcntl(fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).context("fcntl failed")?;
    }
    Ok((UnixListener::from(listener), lock))
}

//! Makes a process normal, whatever its caller left it: the first thing every tool does.
//!
//! A caller may ignore SIGCHLD (then no child's end is ever learnt), block signals, have an alarm set, limit the size of files,
//! close the standard streams, leave other descriptors open, and have any umask. The folder a tool was called in stays its own,
//! as names on the command line are relative to it; what runs in the background, and every child, is in `/`.

use anyhow::{Context as _, Result};
use nix::sys::resource::{Resource, getrlimit, rlim_t, setrlimit};
use nix::sys::signal::{SigHandler, SigSet, SigmaskHow, Signal, signal, sigprocmask};

use crate::fault::Fault;
use crate::{descriptors, mutant};

/// Smaller files than this are no room for a backup, in bytes.
const ENOUGH: rlim_t = 1 << 30;

/// Does it. An error says what cannot be put right from within. Doing it again does nothing.
#[expect(
    unsafe_code,
    reason = "signal and close_range have no safe wrapper; both only change what this process inherited"
)]
pub fn normal() -> Result<()> {
    if mutant::active("a-process-stays-as-its-caller-left-it") {
        return Ok(());
    }
    crate::program::take_name();
    // The standard library has opened /dev/null for each standard stream that was closed, and ignores SIGPIPE.
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o077));
    nix::unistd::alarm::cancel();
    // SAFETY: no handler of ours is replaced: these are what a program starts with, and an error instead of an end.
    unsafe {
        signal(Signal::SIGCHLD, SigHandler::SigDfl).context("cannot reset SIGCHLD")?;
        signal(Signal::SIGXFSZ, SigHandler::SigIgn).context("cannot ignore SIGXFSZ")?;
    }
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None).context("cannot unblock signals")?;
    // SAFETY: nothing is closed; descriptors a child is to have are named one by one.
    unsafe { libc::syscall(libc::SYS_close_range, 3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    descriptors::raise()?;
    file_size()
}

/// Files may be of any size: root lifts the limit, others as far as they may.
fn file_size() -> Result<()> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_FSIZE).context("cannot read the limit of file sizes")?;
    let most = rlim_t::MAX;
    if soft == most || setrlimit(Resource::RLIMIT_FSIZE, most, most).is_ok() {
        return Ok(());
    }
    setrlimit(Resource::RLIMIT_FSIZE, hard, hard).context("cannot raise the limit of file sizes")?;
    if hard >= ENOUGH {
        return Ok(());
    }
    Err(Fault::denied(format!("files can be {hard} bytes large at most here: no backup can be written or restored"))
        .hint("the caller has set this limit (ulimit -f, LimitFSIZE= of a unit, /etc/security/limits.conf): lift it")
        .into())
}

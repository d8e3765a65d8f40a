//! SIGINT, SIGTERM and SIGHUP: remembered, and seen by everything that waits.
//!
//! The first signal is kept; [`fd`] becomes and stays readable, so that any `poll` can include it.
//! Nothing is killed here: the place that waits stops its child, undoes, and reports 128+N.

use std::io::pipe;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use anyhow::{Context as _, Result};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

struct State {
    caught: Arc<AtomicUsize>,
    wake: OwnedFd,
    write_end: OwnedFd,
}

static STATE: OnceLock<State> = OnceLock::new();

/// Starts listening; calling it again does nothing.
pub fn install() -> Result<()> {
    if STATE.get().is_some() {
        return Ok(());
    }
    let (read, write) = pipe().context("cannot make the signal pipe")?;
    let (wake, write_end) = (OwnedFd::from(read), OwnedFd::from(write));
    let caught = Arc::new(AtomicUsize::new(0));
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        let number = usize::try_from(signal).unwrap_or(0);
        signal_hook::flag::register_usize(signal, Arc::clone(&caught), number)
            .and_then(|_| signal_hook::low_level::pipe::register(signal, write_end.try_clone()?))
            .with_context(|| format!("cannot listen for signal {signal}"))?;
    }
    // A second caller that was faster has done the same work; ours is simply unused then.
    drop(STATE.set(State { caught, wake, write_end }));
    Ok(())
}

/// The signal that asked us to stop, if one did.
pub fn caught() -> Option<i32> {
    let number = STATE.get()?.caught.load(Ordering::SeqCst);
    i32::try_from(number).ok().filter(|n| *n != 0)
}

/// An error if we were asked to stop: for loops that do not wait in a child.
pub fn check() -> Result<()> {
    match caught() {
        Some(signal) => Err(crate::fault::Fault::interrupted(signal).into()),
        None => Ok(()),
    }
}

/// Becomes readable with the first signal, and stays so. `None` before [`install`].
pub fn fd() -> Option<BorrowedFd<'static>> {
    STATE.get().map(|s| s.wake.as_fd())
}

/// Behaves as if `signal` had arrived: used when the one who asked for the work went away.
pub fn pretend(signal: i32) {
    if let Some(state) = STATE.get() {
        state.caught.store(usize::try_from(signal).unwrap_or(0), Ordering::SeqCst);
        // A full pipe is readable already, which is all that matters.
        nix::unistd::write(&state.write_end, b"x").ok();
    }
}

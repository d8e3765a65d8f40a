//! All descendants of this process, and their end.
//!
//! As a *subreaper* (prctl(2)) we become the parent of every orphan below us, so whatever the command
//! forked, double-forked or put in a session of its own stays below us and is found by walking
//! /proc. A control group would do the same, but only root on a machine that delegates one could make
//! it. Signals go through pidfds: a number that is used again never hits a stranger.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use common::processes::Process;
use nix::sys::signal::Signal;

/// How long descendants may take to end after the first signal, before SIGKILL.
const GRACE: Duration = Duration::from_secs(5);
/// How long SIGKILL is repeated; what lives on is stuck in the kernel.
const FORCE: Duration = Duration::from_secs(3);
const PAUSE: Duration = Duration::from_millis(20);

/// Makes us the parent of every orphan below us.
pub(crate) fn adopt_orphans() -> Result<()> {
    nix::sys::prctl::set_child_subreaper(true).context("cannot become the reaper of the command's children")
}

/// Every living process below us.
pub(crate) fn descendants() -> Vec<Process> {
    let us = std::process::id();
    Process::tree(us).into_iter().filter(|p| p.pid != us).collect()
}

/// Waits until nothing lives below us; true if that came within `limit`.
pub(crate) fn wait_empty(limit: Duration) -> bool {
    let end = Instant::now() + limit;
    while !descendants().is_empty() {
        if Instant::now() >= end {
            return false;
        }
        std::thread::sleep(PAUSE);
    }
    true
}

/// Ends every process below us: `signal`, a time of grace, SIGKILL. Takes at most eight seconds, and
/// returns what even SIGKILL did not end.
pub(crate) fn end(signal: Signal) -> Vec<Process> {
    for process in descendants() {
        process.identity().signal(signal);
    }
    if wait_empty(GRACE) {
        return Vec::new();
    }
    let end = Instant::now() + FORCE;
    loop {
        let left = descendants();
        if left.is_empty() || Instant::now() >= end {
            return left;
        }
        for process in left {
            process.identity().signal(Signal::SIGKILL);
        }
        std::thread::sleep(PAUSE);
    }
}

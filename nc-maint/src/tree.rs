//! All descendants of this process, and their end.
//!
//! As a *subreaper* (prctl(2)) we become the parent of every orphan below us, so whatever the command
//! forked, double-forked or put in a session of its own stays below us and is found by walking
//! /proc. A control group would do the same, but only root on a machine that delegates one could make
//! it. Signals go through pidfds: a number that is used again never hits a stranger.

use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use common::run::pidfd;
use nix::sys::signal::Signal;

/// How long descendants may take to end after the first signal, before SIGKILL.
const GRACE: Duration = Duration::from_secs(5);
/// How long SIGKILL is repeated; what lives on is stuck in the kernel.
const FORCE: Duration = Duration::from_secs(3);
const PAUSE: Duration = Duration::from_millis(20);

/// A process as `/proc/PID/stat` shows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Process {
    pub(crate) pid: u32,
    pub(crate) name: String,
    parent: u32,
    /// Ended, and only waiting to be reaped.
    dead: bool,
    /// With `pid`, an identity.
    started: u64,
}

/// Makes us the parent of every orphan below us.
pub(crate) fn adopt_orphans() -> Result<()> {
    nix::sys::prctl::set_child_subreaper(true).context("cannot become the reaper of the command's children")
}

/// Parses a line of `/proc/PID/stat`; the name may hold spaces and parentheses.
fn parse(stat: &str) -> Option<Process> {
    let (pid, rest) = stat.split_once(" (")?;
    let (name, rest) = rest.rsplit_once(") ")?;
    let fields: Vec<&str> = rest.split(' ').collect();
    // A dead leader whose other threads live on is not dead.
    let threads: u32 = fields.get(17)?.parse().ok()?;
    Some(Process {
        pid: pid.parse().ok()?,
        name: name.to_owned(),
        parent: fields.get(1)?.parse().ok()?,
        dead: matches!(*fields.first()?, "Z" | "X") && threads <= 1,
        started: fields.get(19)?.parse().ok()?,
    })
}

fn look(pid: u32) -> Option<Process> {
    let stat = std::fs::read(format!("/proc/{pid}/stat")).ok()?;
    parse(&String::from_utf8_lossy(&stat))
}

/// Every living process below us.
pub(crate) fn descendants() -> Vec<Process> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|e| e.file_name().to_str()?.parse().ok());
    let all: Vec<Process> = pids.filter_map(look).collect();
    let mut children: HashMap<u32, Vec<&Process>> = HashMap::new();
    for process in &all {
        children.entry(process.parent).or_default().push(process);
    }
    let (mut seen, mut found) = (HashSet::new(), Vec::new());
    let mut todo = vec![std::process::id()];
    while let Some(pid) = todo.pop() {
        for child in children.get(&pid).into_iter().flatten() {
            if seen.insert(child.pid) {
                todo.push(child.pid);
                found.push((*child).clone());
            }
        }
    }
    found.retain(|p| !p.dead);
    found
}

/// Sends `signal` to exactly this process, if it is still there.
fn send(process: &Process, signal: Signal) {
    let Ok(fd) = pidfd(process.pid) else { return };
    // The descriptor may have been opened on a successor: then it started later.
    if look(process.pid).is_some_and(|now| now.started == process.started) {
        pidfd_send_signal(&fd, signal);
    }
}

#[expect(unsafe_code, reason = "pidfd_send_signal has no wrapper in nix")]
fn pidfd_send_signal(fd: &std::os::fd::OwnedFd, signal: Signal) {
    use std::os::fd::AsRawFd as _;
    let none = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: a plain system call on a descriptor that is open; a null siginfo is allowed. If the process
    // has ended meanwhile, or is not ours to signal, there is nothing to do; the caller looks again.
    unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd.as_raw_fd(), signal as libc::c_int, none, 0) };
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
        send(&process, signal);
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
            send(&process, Signal::SIGKILL);
        }
        std::thread::sleep(PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_spaces_and_parentheses() {
        let line =
            "42 (a) b (c) S 7 42 42 0 -1 4194560 1 0 0 0 1 2 3 4 20 0 1 0 12345 1000 10 18446744073709551615";
        let process = parse(line).unwrap();
        assert_eq!((process.pid, process.parent, process.started), (42, 7, 12345));
        assert_eq!(process.name, "a) b (c");
        assert!(!process.dead);
    }

    #[test]
    fn a_zombie_is_dead_unless_its_threads_live() {
        let line = |threads: u32| format!("42 (x) Z 7 42 42 0 -1 0 0 0 0 0 0 0 0 0 20 0 {threads} 0 5 0 0");
        assert!(parse(&line(1)).unwrap().dead);
        assert!(!parse(&line(2)).unwrap().dead);
    }
}

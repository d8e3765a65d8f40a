//! A child that runs: waiting for it, and its end.
//!
//! It ends by itself, or because of a signal to us, its time limit, too long a rest or too much output: then its group is
//! ended (TERM, then KILL after five seconds); a child that is stuck in the kernel even then is left behind after five more.

use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd, RawFd};
use std::os::unix::process::ExitStatusExt as _;
use std::process::{ChildStdin, ChildStdout, ExitStatus};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;

use crate::capture::{Capture, GRACE, Group, STDERR, TICK};
use crate::complaint::tail;
use crate::fault::{Ended, Failure, Fault};
use crate::processes::Process;
use crate::{mutant, pidfd, progress, signals};

/// How long a child may do nothing at all (no output, nothing read or written, no work) where no other limit is set.
pub const QUIET: Duration = Duration::from_secs(30 * 60);

/// A running child. Dropping it ends its whole group, without grace.
#[derive(Debug)]
pub struct Child {
    child: std::process::Child,
    pidfd: OwnedFd,
    group: Arc<Group>,
    out: Capture,
    err: Capture,
    stdout_limit: u64,
    quiet: Option<Duration>,
    failure: Failure,
    done: Option<ExitStatus>,
}

impl Child {
    /// Takes care of `child`, whose captured streams these are.
    pub(crate) fn begin(
        child: std::process::Child,
        out: Capture,
        err: Capture,
        (quiet, stdout_limit): (Option<Duration>, u64),
        failure: Failure,
    ) -> Result<Child> {
        let pidfd = pidfd::open(child.id())?;
        let group = Group::new(child.id());
        let child = Child { child, pidfd, group, out, err, stdout_limit, quiet, failure, done: None };
        child.out.begin(&child.group)?;
        child.err.begin(&child.group)?;
        Ok(child)
    }

    /// Its process id, which is its group's id too.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The writing end of its stdin, once.
    pub fn take_stdin(&mut self) -> Option<ChildStdin> {
        self.child.stdin.take()
    }

    /// The reading end of its stdout, once.
    pub fn take_stdout(&mut self) -> Option<ChildStdout> {
        self.child.stdout.take()
    }

    /// Readable when it has ended.
    pub fn pidfd(&self) -> RawFd {
        self.pidfd.as_raw_fd()
    }

    /// What it said on stdout so far, if that is captured.
    pub fn stdout(&self) -> Result<Vec<u8>> {
        self.out.read()
    }

    /// What it said on stderr so far; of very much, the beginning and the end.
    pub fn stderr(&self) -> Result<Vec<u8>> {
        self.err.read()
    }

    /// Whether [`Child::stderr`] is all of it.
    pub fn stderr_is_whole(&self) -> bool {
        self.err.is_whole()
    }

    /// Lets it live on without us: for background processes of ours.
    pub fn detach(self) {
        // Its Drop would end it; the descriptors it holds are given up with this process.
        std::mem::forget(self);
    }

    /// Waits for its end. On the timeout, too much output, too long a rest (without a timeout: [`QUIET`], unless
    /// [`quiet_limit`](crate::run::Cmd::quiet_limit) says otherwise), or on a signal to us, its group is ended and the error says why.
    pub fn wait(&mut self, timeout: Option<Duration>, heed_signals: bool) -> Result<ExitStatus> {
        let deadline = timeout.map(|t| Instant::now() + t);
        let mut rest = self.quiet.or(timeout.is_none().then_some(QUIET)).map(Rest::new);
        loop {
            let look = rest.as_ref().map_or(TICK, |rest| rest.look());
            let next = Instant::now() + look;
            if self.ended_by(Some(deadline.map_or(next, |d| d.min(next))), heed_signals)? {
                return self.reap();
            }
            if heed_signals && let Some(signal) = signals::caught() {
                self.end();
                return Err(Fault::interrupted(signal).into());
            }
            self.check_flood()?;
            if deadline.is_some_and(|d| Instant::now() >= d) {
                return Err(self.end_because(Ended::Late(timeout.unwrap_or_default()))?.into());
            }
            let said = self.out.total() + self.err.total();
            if let Some(rest) = &mut rest
                && rest.is_over(self.child.id(), said)
            {
                let limit = rest.limit;
                return Err(self.end_because(Ended::Quiet(limit))?.into());
            }
        }
    }

    /// Ends it if it said too much; an error then.
    pub(crate) fn check_flood(&mut self) -> Result<()> {
        let why = match (self.out.is_flood(), self.err.is_flood()) {
            _ if mutant::active("a-flood-of-output-is-taken") => return Ok(()),
            (true, _) => Ended::Flood("stdout", self.stdout_limit),
            (_, true) => Ended::Flood("stderr", STDERR.flood),
            (false, false) => return Ok(()),
        };
        Err(self.end_because(why)?.into())
    }

    fn end_because(&mut self, why: Ended) -> Result<Failure> {
        self.end();
        let mut failure = self.failure.clone();
        failure.ended = Some(why);
        failure.stderr_tail = tail(&self.stderr()?);
        Ok(failure)
    }

    /// Its end, if it has come.
    pub fn try_wait(&mut self) -> Result<Option<ExitStatus>> {
        if self.done.is_none() {
            // Its number is its own until it is collected.
            if self.ended_by(Some(Instant::now()), false)? {
                self.reap()?;
            }
        }
        Ok(self.done)
    }

    /// The [`Failure`] for the way it ended.
    pub fn failure_for(&self, status: ExitStatus) -> Result<Failure> {
        let mut failure = self.failure.clone().ending(status, tail(&self.stderr()?));
        if self.err.is_flood() {
            failure.ended = Some(Ended::Flood("stderr", STDERR.flood));
        }
        Ok(failure)
    }

    /// Ends the whole group: TERM, five seconds, KILL, at most five more.
    pub fn end(&mut self) {
        if self.done.is_some() {
            return;
        }
        self.signal(Signal::SIGTERM);
        let deadline = Some(Instant::now() + GRACE);
        while deadline.is_some_and(|d| Instant::now() < d) {
            if self.ended_by(deadline, false).unwrap_or(true) {
                break;
            }
        }
        self.signal(Signal::SIGKILL);
        self.reap_or_abandon();
    }

    /// After SIGKILL: takes its status, or gives it up if it is stuck in the kernel (a file system whose server is
    /// gone). It ends as soon as the kernel lets it go; to wait for that could be for ever.
    fn reap_or_abandon(&mut self) {
        if self.ended_by(Some(Instant::now() + GRACE), false).unwrap_or(true) {
            drop(self.reap());
        } else {
            // As the status of a process that SIGKILL ended, which is what it will be.
            self.done = Some(ExitStatus::from_raw(Signal::SIGKILL as i32));
            self.group.end(|| ());
        }
    }

    /// Sends `signal` to its group.
    pub fn signal(&self, signal: Signal) {
        self.group.signal(signal);
    }

    fn reap(&mut self) -> Result<ExitStatus> {
        let status = self.group.end(|| self.child.wait()).context("cannot wait for a child")?;
        self.done = Some(status);
        Ok(status)
    }

    /// Waits for the end, a signal to us or the deadline; true if the child has ended.
    pub fn ended_by(&self, deadline: Option<Instant>, heed_signals: bool) -> Result<bool> {
        let mut fds = vec![PollFd::new(self.pidfd.as_fd(), PollFlags::POLLIN)];
        if heed_signals && let Some(fd) = signals::fd() {
            fds.push(PollFd::new(fd, PollFlags::POLLIN));
        }
        let left = deadline.map(|d| d.saturating_duration_since(Instant::now()) + Duration::from_millis(1));
        let timeout =
            left.map_or(PollTimeout::NONE, |l| PollTimeout::try_from(l).unwrap_or(PollTimeout::MAX));
        match poll(&mut fds, timeout) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(e) => return Err(e).context("cannot wait for a child"),
        }
        Ok(fds[0].any().unwrap_or(false))
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if self.done.is_none() {
            self.signal(Signal::SIGKILL);
            self.reap_or_abandon();
        }
    }
}

/// A child that does nothing, and since when.
struct Rest {
    limit: Duration,
    since: Instant,
    /// What it had said, read and written, and the time it had worked, then.
    before: Option<(u64, u64, u64)>,
}

impl Rest {
    fn new(limit: Duration) -> Rest {
        Rest { limit, since: Instant::now(), before: None }
    }

    /// When to look again: often enough to be right by a tenth.
    fn look(&self) -> Duration {
        (self.limit / 10)
            .clamp(Duration::from_millis(50), Duration::from_secs(2))
            .max(TICK.min(self.limit / 4))
    }

    /// Whether the group of `leader`, which has `said` so many bytes, has rested for too long.
    fn is_over(&mut self, leader: u32, said: u64) -> bool {
        let (moved, worked) = progress::activity(Process::all().iter().filter(|p| p.group == leader));
        let now = (said, moved, worked);
        let elapsed = self.since.elapsed();
        let busy = self.before.is_none_or(|before| {
            // To look up now and then, as whatever waits does, is no work: a fiftieth of the time is.
            let share = u64::try_from(elapsed.as_millis() / 50).unwrap_or(u64::MAX).max(20);
            (before.0, before.1) != (said, moved) || worked.abs_diff(before.2) > share
        });
        if busy {
            (self.before, self.since) = (Some(now), Instant::now());
        }
        !busy && elapsed >= self.limit
    }
}

//! The guardian: the half of `run` that throws the switch, owns the command, and switches off.
//!
//! It is in a session of its own (signals meant for the caller's group do not reach it), holds nothing of
//! the caller's but a socket to the front, and ends the command with all its descendants and then
//! maintenance when: the command ends, `max` passes, a signal arrives here or at the front, or the front
//! is gone (SIGKILL closes its end of the socket). The lock it holds says "a run is at work".
//! If it is killed together with the front, the claim on disk is what `off --if-ours` goes by.

use std::fs::File;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::process::{ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use common::fault::Fault;
use common::run::{Child, Cmd};
use common::{signals, status};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::unistd::{dup2_stderr, dup2_stdin, dup2_stdout};

use crate::claim::{Claim, Ledger};
use crate::mark::Mark;
use crate::renewal::Renewal;
use crate::run::survivor;
use crate::settings::Settings;
use crate::switch::{Ready, between, millis};
use crate::wire::{Ended, Event, Forward, Job, Line, Outcome};
use crate::{curl, switch, tree};

/// The whole life of the guardian. It prints nothing: the front reports.
pub(crate) fn main() -> ExitCode {
    // A limit that cannot be lifted has stopped the front already.
    common::process::normal().ok();
    let started = match Guardian::start() {
        Ok(Some(started)) => started,
        Ok(None) => return ExitCode::SUCCESS,
        Err(_) => return ExitCode::FAILURE,
    };
    let (mut guardian, job) = started;
    let outcome = guardian.work(&job);
    // A front that is gone needs no answer.
    guardian.line.send(&Event::Done(Box::new(outcome))).ok();
    ExitCode::SUCCESS
}

/// Why the command must end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stop {
    Signal(i32),
    FrontGone,
    Overtime,
    /// Maintenance ended, or may have.
    Lost,
}

#[derive(Debug)]
struct Guardian {
    line: Line,
    /// Where the command's stdout and stderr go, until it has them.
    streams: Option<(OwnedFd, OwnedFd)>,
    deadline: Option<Instant>,
    renewal: Option<Renewal>,
    /// Why it was lost.
    lost: Option<String>,
}

impl Guardian {
    /// Takes over the descriptors it was started with, lets go of them as 0, 1 and 2, and reads its job.
    #[expect(clippy::disallowed_methods, reason = "takes the descriptor over, and says nothing there")]
    fn start() -> Result<Option<(Guardian, Job)>> {
        signals::install()?;
        let own = |fd: BorrowedFd| fd.try_clone_to_owned().context("cannot keep a descriptor");
        let socket = own(std::io::stdin().as_fd())?;
        let streams = (own(std::io::stdout().as_fd())?, own(std::io::stderr().as_fd())?);
        let null = File::options().read(true).write(true).open("/dev/null")?;
        dup2_stdin(&null)?;
        dup2_stdout(&null)?;
        dup2_stderr(&null)?;
        tree::adopt_orphans()?;
        let mut line = Line::new(UnixStream::from(socket));
        while !line.closed && signals::caught().is_none() {
            if let Some(job) = line.receive()? {
                let streams = Some(streams);
                let guardian = Guardian { line, streams, deadline: None, renewal: None, lost: None };
                return Ok(Some((guardian, job)));
            }
            rest(&[line.stream().as_fd()], None);
        }
        Ok(None)
    }

    /// The run, from the lock to the proof that maintenance is off. Never fails: the outcome says it all.
    fn work(&mut self, job: &Job) -> Outcome {
        let mut outcome = Outcome::default();
        let ledger = Ledger::new(&job.settings);
        let lock = match ledger.lock() {
            Ok(lock) => lock,
            Err(e) => {
                outcome.fail(&e);
                return outcome;
            }
        };
        if let Err(e) = self.locked(job, &ledger, &mut outcome) {
            outcome.fail(&e);
        }
        // Before the front is told, so that its caller can start the next run at once.
        drop(lock);
        outcome
    }

    fn locked(&mut self, job: &Job, ledger: &Ledger, outcome: &mut Outcome) -> Result<()> {
        let settings = &job.settings;
        let before = ledger.find();
        let was_on = switch::state(settings, &mut || self.go_on(job))?;
        // With the lock in our hands, a run that is written down is dead, and its maintenance is ours.
        let own = switch::own(settings, before.run_id());
        let by_run = own.as_ref().is_some_and(Mark::by_run) || (before.by_run() && !before.found_on());
        let leftover = was_on && by_run;
        if leftover {
            let message = "an earlier run was killed and left maintenance on: this run ends it";
            outcome.warnings.push(("run-killed".into(), message.into()));
        } else if own.is_some_and(|mark| mark.expired()) {
            let message = "an earlier run was killed; its drop-in ended by its own deadline";
            outcome.warnings.push(("run-killed".into(), message.into()));
        }
        if was_on && !leftover {
            self.not_within_another(settings)?;
        }
        outcome.found_on = was_on && !leftover;
        switch::rehearse(settings)?;
        self.go_on(job)?;

        let (now, max) = (jiff::Timestamp::now(), settings.max);
        let end = now.checked_add(max).context("max is too long")?.as_second();
        let mut claim = Claim {
            run_id: job.run_id.clone(),
            since: status::now(),
            deadline: Some(jiff::Timestamp::from_second(end)?.to_string()),
            pid: Some(std::process::id()),
            found_on: outcome.found_on,
            method: settings.choice.method,
        };
        let mut ready = Ready::default();
        if !claim.found_on {
            let mark = || Mark::leased(&settings.name, settings.lease, &job.run_id, &job.account.name, end);
            ready = switch::prepare(settings, mark, &mut || self.go_on(job))?;
        }
        ledger.stake(&claim)?;
        let begin = Instant::now();
        self.deadline = Some(begin + max);
        let mut refused = None;
        let thrown = self.switch_on(job, ledger, &mut claim, was_on, &mut ready, &mut refused);
        let result = thrown.and_then(|proof_ms| {
            (outcome.on_ms, outcome.proof_ms) = (Some(millis(begin)), proof_ms);
            self.command(job, outcome)
        });
        outcome.found_on = claim.found_on;
        if let Err(e) = result {
            outcome.fail(&e);
        }
        // Other tools stop believing it before it changes.
        if let Err(e) = ledger.unprove() {
            outcome.fail(&e);
        }
        if claim.found_on {
            // Whoever had it on may have ended it while the command ran.
            if outcome.error.is_none() {
                match switch::state(settings, &mut switch::steadily) {
                    Ok(true) => {}
                    Ok(false) => outcome.fail(&ended_early().into()),
                    Err(e) => outcome.fail(&e),
                }
            }
            return if was_on { ledger.restore(&before) } else { ledger.clear() };
        }
        let off = Instant::now();
        let proven_on = outcome.on_ms.is_some();
        let result = if proven_on {
            switch::off(settings, ready.for_off()).map(Some)
        } else {
            switch::back(settings).map(|()| None)
        };
        match result {
            Ok(ended) => {
                let mut served = Instant::now();
                if let Some(off) = ended {
                    outcome.warnings.extend(off.warnings());
                    if !off.held {
                        outcome.fail(&ended_early().into());
                    }
                    served = off.at;
                }
                outcome.switched = proven_on;
                outcome.off_ms = Some(millis(off));
                // What clients saw: neither the time that occ takes before it throws the switch nor that of the proofs.
                let from = refused.unwrap_or(begin);
                outcome.maintenance_ms = Some(between(from, served));
                ledger.clear()
            }
            Err(e) => {
                outcome.left_behind.push(switch::stuck(settings, &e));
                Err(e)
            }
        }
    }

    /// Whoever has maintenance on by hand ends it by hand; a run of another profile ends it in the middle of ours, and its next
    /// one would hide that.
    fn not_within_another(&self, settings: &Settings) -> Result<()> {
        let present = switch::present(settings);
        let mut others = present.ours().filter(|m| m.by_run() && !m.expired() && m.profile != settings.name);
        match others.next().filter(|_| !common::mutant::active("a-run-within-anothers-maintenance")) {
            Some(mark) => Err(Fault::busy(format!(
                "maintenance is that of a run of profile {}, and ends with it: try again then",
                mark.profile
            ))
            .into()),
            None => Ok(()),
        }
    }

    /// Throws the switch, proves it, and writes that down. How long the proof took, if it was thrown. From the moment
    /// `refused` on clients were.
    fn switch_on(
        &mut self,
        job: &Job,
        ledger: &Ledger,
        claim: &mut Claim,
        was_on: bool,
        ready: &mut Ready,
        refused: &mut Option<Instant>,
    ) -> Result<Option<u64>> {
        let settings = &job.settings;
        let mut proof_ms = None;
        if claim.found_on {
            curl::until(settings, true, &mut || self.go_on(job))?;
        } else {
            let thrown = switch::throw(settings, ready, &mut || self.go_on(job))?;
            *refused = Some(thrown.at);
            let end = jiff::Timestamp::now().as_second() + i64::try_from(settings.max.as_secs())?;
            self.renewal = thrown.placed.map(|placed| Renewal::new(settings, placed, end));
            proof_ms = Some(switch::prove(settings, ready, &mut || self.go_on(job))?);
            if !thrown.changed && !was_on {
                // Somebody else was faster by a moment: then it is theirs.
                claim.found_on = true;
                ledger.stake(claim)?;
            }
        }
        self.go_on(job)?;
        ledger.prove(claim)?;
        Ok(proof_ms)
    }

    /// Runs the command to its end, or ends it. What it left running on purpose may stay, unless it was
    /// stopped or killed: then all of it ends.
    fn command(&mut self, job: &Job, outcome: &mut Outcome) -> Result<()> {
        let cmd = Cmd::from_argv(&job.command)?.dir(&job.dir).env("NC_BACKUP_PROFILE", &job.settings.name);
        let cmd = cmd.env("NC_BACKUP_RUN_ID", &job.run_id).run_as(&job.account);
        let (out, err) = self.streams.take().context("the command has been started already")?;
        self.line.send(&Event::Started).ok();
        let begin = Instant::now();
        let mut child = cmd.start_streams(Stdio::null(), out.into(), err.into())?;
        let stop = self.supervise(job, &mut child)?;
        let killed = child.try_wait()?.is_some_and(|status| status.signal().is_some());
        if stop.is_some() || killed {
            let signal = match stop {
                Some(Stop::Signal(n)) => Signal::try_from(n).unwrap_or(Signal::SIGTERM),
                _ => Signal::SIGTERM,
            };
            outcome.left_behind.extend(tree::end(signal).iter().map(survivor));
        }
        if let Some(stop) = stop {
            outcome.fail(&self.stopped(stop, job.settings.max));
        }
        let status = child.try_wait()?.map(ExitStatusExt::into_raw);
        outcome.command = Some(Ended { status, duration_ms: millis(begin) });
        if status.is_none() {
            // Stuck in the kernel: waiting for it is what must not happen.
            child.detach();
        }
        self.line.send(&Event::Ended).ok();
        Ok(())
    }

    /// Waits for the command's end or a reason to end it; the reason, if there is one.
    fn supervise(&mut self, job: &Job, child: &mut Child) -> Result<Option<Stop>> {
        loop {
            let ended = child.try_wait()?.is_some();
            // Asked in this order, a signal that was sent to all of us is not mistaken for its own end.
            let stop = self.stop(job)?;
            if ended || stop.is_some() {
                return Ok(stop);
            }
            let pidfd = common::pidfd::open(child.id())?;
            let next = self.renewal.as_ref().map(Renewal::due).into_iter().chain(self.deadline).min();
            rest(&[pidfd.as_fd(), self.line.stream().as_fd()], next);
        }
    }

    /// A reason to stop, if there is one; does not wait. Keeps the lease, too: whoever may go on does so in maintenance.
    fn stop(&mut self, job: &Job) -> Result<Option<Stop>> {
        if let Some(signal) = signals::caught() {
            return Ok(Some(Stop::Signal(signal)));
        }
        if let Some(Forward { signal }) = self.line.receive()? {
            // From here on it counts as our own.
            signals::pretend(signal);
            return Ok(Some(Stop::Signal(signal)));
        }
        if self.line.closed {
            return Ok(Some(Stop::FrontGone));
        }
        if let Some(Err(why)) = self.renewal.as_mut().map(|renewal| renewal.keep(&job.settings)) {
            self.renewal = None;
            self.lost = Some(why);
        }
        if self.lost.is_some() {
            return Ok(Some(Stop::Lost));
        }
        Ok(self.deadline.filter(|d| Instant::now() >= *d).map(|_| Stop::Overtime))
    }

    /// An error if there is a reason to stop; `max` counts once it is set.
    fn go_on(&mut self, job: &Job) -> Result<()> {
        match self.stop(job)? {
            Some(stop) => Err(self.stopped(stop, Duration::ZERO)),
            None => Ok(()),
        }
    }

    /// The error that says why the run was stopped.
    fn stopped(&self, stop: Stop, max: Duration) -> anyhow::Error {
        let lost = self.lost.as_deref();
        let Some(why) = lost.filter(|_| stop == Stop::Lost) else { return stopped(stop, max) };
        anyhow::Error::from(ended_early()).context(format!("the command was stopped: {why}"))
    }
}

/// The error that says why the run was stopped.
fn stopped(stop: Stop, max: Duration) -> anyhow::Error {
    match stop {
        Stop::Lost => ended_early().into(),
        Stop::Signal(signal) => Fault::interrupted(signal).into(),
        Stop::FrontGone => Fault::failed("nc-maint run was killed").into(),
        Stop::Overtime if max.is_zero() => {
            Fault::failed("the time allowed with --max passed before maintenance was proven").into()
        }
        Stop::Overtime => Fault::failed(format!("the command was stopped: it did not end within {max:?}"))
            .hint("raise --max, or `max` in [nextcloud], if it needs longer")
            .into(),
    }
}

fn ended_early() -> Fault {
    Fault::failed("something else ended maintenance while the command ran: do not trust what it copied")
        .hint("look for another backup, an update or a person calling occ maintenance:mode --off")
}

/// Waits until one of `fds` can be read, a signal arrives, or `deadline` comes.
fn rest(fds: &[BorrowedFd], deadline: Option<Instant>) {
    let all = fds.iter().copied().chain(signals::fd());
    let mut fds: Vec<PollFd> = all.map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
    let left = deadline.map(|d| d.saturating_duration_since(Instant::now()) + Duration::from_millis(1));
    let timeout = left.map_or(PollTimeout::NONE, |l| PollTimeout::try_from(l).unwrap_or(PollTimeout::MAX));
    // Interrupted or not: the caller looks at everything again.
    poll(&mut fds, timeout).ok();
}

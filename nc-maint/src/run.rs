//! `run`, the front: starts the guardian, relays signals and streams, reports.
//!
//! It throws no switch, except when the guardian is killed: then it ends the command and switches off
//! in its place.

use std::ffi::OsString;
use std::io::pipe;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::ExitStatus;

use anyhow::{Context as _, Result};
use common::account::Account;
use common::fault::{Failure, Fault};
use common::processes::Process;
use common::program::Program;
use common::run::{Child, Cmd, Output, program};
use common::status::Report;
use common::{record, signals};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::unistd::{AccessFlags, access};
use serde_json::{Value, json};

use crate::claim::Ledger;
use crate::relay::Relay;
use crate::settings::Settings;
use crate::wire::{Event, Forward, Job, Line, Outcome};
use crate::{TOOL, switch, tree};

/// Runs `command` in maintenance.
pub(crate) fn run(settings: &Settings, command: &[OsString], report: &mut Report) -> Result<()> {
    let account = Account::invoking()?;
    let first = command.first().ok_or_else(|| Fault::usage("no command is given"))?;
    program(first)?;
    // A directory that is gone or closed to us is no reason to fail.
    let enter = |dir: &PathBuf| access(dir, AccessFlags::X_OK).is_ok();
    let dir = std::env::current_dir().ok().filter(enter).map_or_else(|| OsString::from("/"), Into::into);
    let (settings, command) = (settings.clone(), command.to_vec());
    let job = Job { settings, run_id: record::random_id()?, command, dir, account };
    report.set("run_id", job.run_id.as_str());
    job.settings.tell_method(report);

    tree::adopt_orphans()?;
    let (ours, theirs) = UnixStream::pair().context("cannot make a socket")?;
    let (out, out_end) = pipe().context("cannot make a pipe")?;
    let (err, err_end) = pipe().context("cannot make a pipe")?;
    let (theirs, out_end, err_end) = (OwnedFd::from(theirs), OwnedFd::from(out_end), OwnedFd::from(err_end));
    let guardian = Program::own()?.cmd().arg("guardian").own_session().outlives_us();
    // Never dropped: that would kill it, and it is what ends maintenance when we fail.
    let mut guardian =
        ManuallyDrop::new(guardian.start_streams(theirs.into(), out_end.into(), err_end.into())?);
    let mut line = Line::new(ours);
    let mut relay = Relay::new(out, err);
    // If it is dead already, the loop finds out.
    line.send(&job).ok();
    let (outcome, stage) = follow(&mut line, &mut relay, &guardian)?;
    let outcome = match outcome {
        Some(outcome) => *outcome,
        None => take_over(&job, stage, &mut guardian, &mut relay),
    };
    relay.pump(true);
    conclude(&job, outcome, relay, report)
}

/// How far the guardian got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Switching,
    Command,
}

/// Relays until the guardian is done (its outcome) or gone (none).
fn follow(line: &mut Line, relay: &mut Relay, guardian: &Child) -> Result<(Option<Box<Outcome>>, Stage)> {
    let (mut stage, mut forwarded) = (Stage::Switching, false);
    loop {
        wait(line, relay, !forwarded)?;
        if let (Some(signal), false) = (signals::caught(), forwarded) {
            forwarded = true;
            // If it is gone, the next lines find out. It reads this where it waits for the command; what it waits for before
            // that (an occ that does not answer) heeds the signal itself.
            line.send(&Forward { signal }).ok();
            if let Ok(signal) = Signal::try_from(signal) {
                guardian.signal(signal);
            }
        }
        relay.pump(false);
        while let Some(event) = line.receive::<Event>()? {
            match event {
                Event::Started => stage = Stage::Command,
                Event::Ended => stage = Stage::Switching,
                Event::Done(outcome) => return Ok((Some(outcome), stage)),
            }
        }
        if line.closed {
            return Ok((None, stage));
        }
    }
}

/// Waits until there is something to read, or a first signal.
fn wait(line: &Line, relay: &Relay, heed_signals: bool) -> Result<()> {
    let mut fds: Vec<BorrowedFd> = vec![line.stream().as_fd()];
    fds.extend(relay.open().map(|s| s.as_fd()));
    fds.extend(signals::fd().filter(|_| heed_signals));
    let mut fds: Vec<PollFd> = fds.into_iter().map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
    match poll(&mut fds, PollTimeout::NONE) {
        Ok(_) | Err(nix::errno::Errno::EINTR) => Ok(()),
        Err(e) => Err(e).context("cannot wait for the guardian"),
    }
}

/// The guardian was killed. What it left below us is ours now: end it, and switch off.
fn take_over(job: &Job, stage: Stage, guardian: &mut Child, relay: &mut Relay) -> Outcome {
    common::say!(TOOL, "the guardian process was killed: ending maintenance without it");
    let mut outcome = Outcome::default();
    outcome.fail(&Fault::failed("the guardian process was killed during the run").into());
    // It reports no more, and its end has come: this only collects it.
    guardian.wait(Some(std::time::Duration::from_secs(1)), false).ok();
    if stage == Stage::Switching {
        // An occ in the middle of rewriting config.php must finish.
        tree::wait_empty(job.settings.occ_timeout);
    }
    for process in tree::end(Signal::SIGTERM) {
        outcome.left_behind.push(survivor(&process));
    }
    relay.pump(false);
    let ledger = Ledger::new(&job.settings);
    let found = ledger.find();
    if found.run_id() != Some(job.run_id.as_str()) {
        return outcome;
    }
    outcome.found_on = found.found_on();
    let ended = ledger.unprove().and_then(|()| {
        if !outcome.found_on {
            let off = switch::off(&job.settings, None)?;
            outcome.warnings.extend(off.warnings());
            outcome.switched = true;
        }
        Ok(())
    });
    match ended {
        Ok(()) => {
            if let Err(e) = ledger.clear() {
                outcome.fail(&e);
            }
        }
        Err(e) => outcome.left_behind.push(switch::stuck(&job.settings, &e)),
    }
    outcome
}

/// What to say of a process that even SIGKILL did not end.
pub(crate) fn survivor(process: &Process) -> (String, String) {
    let (pid, name) = (process.pid, &process.name);
    (
        format!("process {pid} ({name}) of the command is stuck in the kernel, or not ours to end"),
        format!("find out what it waits for (cat /proc/{pid}/stack); it ends with that: kill -9 {pid}"),
    )
}

/// Turns the outcome into the report.
fn conclude(job: &Job, outcome: Outcome, relay: Relay, report: &mut Report) -> Result<()> {
    report.changed = outcome.switched;
    report.set("found_on", outcome.found_on);
    report.set("maintenance_ms", outcome.maintenance_ms);
    report.set("on_ms", outcome.on_ms);
    report.set("proof_ms", outcome.proof_ms);
    report.set("off_ms", outcome.off_ms);
    if outcome.found_on {
        report.warn("found-on", "maintenance was on before this run, and is left on");
    }
    for (kind, message) in outcome.warnings {
        report.warn(&kind, message);
    }
    if relay.dropped > 0 {
        report.warn(
            "output-dropped",
            format!("{} objects of the command's output were too much", relay.dropped),
        );
    }
    let ended = outcome.command.as_ref();
    let status = ended.and_then(|e| e.status).map(ExitStatus::from_raw);
    let command = ended.map(|e| {
        json!({
            "exit_code": status.and_then(|s| s.code()),
            "signal": status.and_then(|s| s.signal()),
            "duration_ms": e.duration_ms,
            "user": job.account.name,
            "output": relay.objects,
        })
    });
    report.set("command", command.unwrap_or(Value::Null));
    for (what, clear) in outcome.left_behind {
        report.left_behind(what, clear);
    }
    if let Some((exit_code, described)) = outcome.error {
        return Err(Fault::relay(exit_code, described).into());
    }
    match status {
        Some(status) if !status.success() => Err(command_failed(job, status, relay.tail, report)?.into()),
        _ => Ok(()),
    }
}

/// The command's own failure; its exit code becomes ours.
fn command_failed(job: &Job, status: ExitStatus, stderr: Vec<u8>, report: &mut Report) -> Result<Failure> {
    let code = status.code().filter(|c| *c < 128).or(status.signal().map(|s| 128 + s));
    report.pass_exit_code(code.and_then(|c| u8::try_from(c).ok()).unwrap_or(1));
    let mut failure = Cmd::from_argv(&job.command)?.failure(&Output { status, stdout: Vec::new(), stderr });
    failure.kind = common::fault::Kind::Failed;
    Ok(failure)
}

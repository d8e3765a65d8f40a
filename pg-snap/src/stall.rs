//! A child that has to get on: one that moves nothing for too long is ended, whatever it waits for.
//!
//! A server's process that was stopped, a disk or a network that hangs: none of them ever says a word, and no limit on
//! the whole could be right for a small database and a large one.

use std::hash::{DefaultHasher, Hasher as _};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::Result;
use common::fault::Fault;
use common::mutant;
use common::run::{Cmd, Output};
use common::signals;

/// How long a dump may write nothing.
pub(crate) const DUMP: Duration = Duration::from_secs(5 * 60);
/// How long a restore may show no change. One step of it can be long: an index of a large table.
pub(crate) const RESTORE: Duration = Duration::from_secs(30 * 60);
/// The most looks in that time.
const LOOKS: u32 = 20;

/// Runs `cmd` to its end, so long as `seen` gives something new within `limit`; `what` begins the message if not.
pub(crate) fn run<S: PartialEq>(
    cmd: &Cmd,
    limit: Duration,
    what: &str,
    mut seen: impl FnMut() -> S,
) -> Result<Output> {
    let mut child = cmd.start(Stdio::null(), Stdio::null())?;
    let step = (limit / LOOKS).clamp(Duration::from_millis(50), Duration::from_secs(10));
    let mut last = seen();
    let mut moved = Instant::now();
    while !child.ended_by(Some(Instant::now() + step), true)? {
        if let Some(signal) = signals::caught() {
            child.end();
            return Err(Fault::interrupted(signal).into());
        }
        let now = seen();
        if now != last {
            (last, moved) = (now, Instant::now());
        } else if moved.elapsed() >= limit && !mutant::active("wait-for-ever") {
            child.end();
            return Err(Fault::unavailable(format!("{what} for {} seconds: it was ended", limit.as_secs()))
                .hint("does PostgreSQL still answer, and the disk? A slow machine may need more: --stall")
                .into());
        }
    }
    let status = child.wait(None, false)?;
    Ok(Output { status, stdout: Vec::new(), stderr: child.stderr()? })
}

/// One number for whatever can be hashed.
pub(crate) fn digest(of: impl std::hash::Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    of.hash(&mut hasher);
    hasher.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_moves_may_take_long_and_one_that_does_not_is_ended() {
        let cmd = Cmd::new("sleep").arg("0.6");
        let clock = Instant::now();
        let output = run(&cmd, Duration::from_millis(200), "it moves", Instant::now).unwrap();
        assert!(output.status.success() && clock.elapsed() >= Duration::from_millis(600));
        let clock = Instant::now();
        let error =
            run(&Cmd::new("sleep").arg("60"), Duration::from_millis(200), "nothing", || 0).unwrap_err();
        assert_eq!(common::fault::kind_of(&error), common::fault::Kind::Unavailable);
        assert!(clock.elapsed() < Duration::from_secs(10));
    }
}

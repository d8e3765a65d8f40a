//! Waiting for a child that reads or writes the container through a link that may die, or be slow.
//!
//! A time limit alone would be wrong either way. So: as long as the loop device gets on with its work, bytes leave
//! this machine, or the far end answers, it is waited; if nothing of that happens, the link is dead. A question is
//! no proof by itself: on a slow link it waits behind all that is on its way.

use std::io::Read as _;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use common::fault::Fault;
use common::fuse::{self, Health};
use common::run::{Child, Cmd, Output};
use common::signals;

use crate::losetup;
use crate::settings::{PROBE, Settings};

/// No progress for so long, and the far end is asked.
const QUIET: Duration = Duration::from_secs(8);
/// The same where sshfs-mount does not count what leaves: some megabytes can be on their way unseen.
const QUIET_UNSEEN: Duration = Duration::from_secs(45);
/// Bytes on the wire that are progress; less is ssh asking whether the other side is alive.
const MOVED: u64 = 8192;
/// The longest that is waited without any progress, whatever the far end answers.
const STUCK: Duration = Duration::from_secs(300);
/// What a child gets to end in once the link below it has been ended.
const AFTER_END: Duration = Duration::from_secs(60);

/// A link that is watched while children use it.
#[derive(Debug)]
pub(crate) struct Watch {
    /// Where what serves the image is mounted, if the image is not on a disk of ours.
    link: Option<PathBuf>,
    /// The loop device whose work is progress.
    pub(crate) device: Option<String>,
    /// Where sshfs-mount counts what leaves this machine.
    wire: PathBuf,
    /// For clean-up: signals are not heeded, and a dead link is ended instead of given up.
    clean_up: bool,
    /// Whether the link was found dead.
    pub(crate) dead: bool,
}

impl Watch {
    /// A watch for work (`clean_up` false) or for clean-up.
    pub(crate) fn new(settings: &Settings, clean_up: bool) -> Result<Watch> {
        let link = settings.link()?.map(|m| m.target);
        Ok(Watch { link, device: None, wire: settings.runtime.join("s3.wire"), clean_up, dead: false })
    }

    /// How the link is, asked for at most `limit`; `None` if there is none. One that is busy is healthy.
    pub(crate) fn health(&self, limit: Duration) -> Result<Option<Health>> {
        let Some(link) = &self.link else { return Ok(None) };
        let before = self.work();
        Ok(Some(match fuse::probe(link, limit)? {
            Health::Hung if self.work().is_beyond(&before) => Health::Healthy,
            other => other,
        }))
    }

    /// Ends what serves the link, so that everything that waits for it fails instead.
    pub(crate) fn end_link(&mut self) -> Result<()> {
        self.dead = true;
        if let Some(link) = &self.link {
            fuse::end_servers(link, Duration::from_secs(5))?;
        }
        Ok(())
    }

    /// Runs `cmd` to its end; its output is small.
    pub(crate) fn output(&mut self, cmd: &Cmd) -> Result<Output> {
        let mut child = cmd.start(Stdio::null(), Stdio::piped())?;
        let mut quiet_since = Instant::now();
        let mut moved_at = Instant::now();
        let mut work = self.work();
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break status;
            }
            if !self.clean_up && signals::caught().is_some() {
                child.end();
                signals::check()?;
            }
            std::thread::sleep(Duration::from_millis(20));
            let now = self.work();
            if now.is_beyond(&work) {
                (work, quiet_since, moved_at) = (now, Instant::now(), Instant::now());
            }
            let patience = match work.wire {
                _ if self.dead => AFTER_END,
                None if self.link.is_some() => QUIET_UNSEEN,
                _ => QUIET,
            };
            if quiet_since.elapsed() > patience || moved_at.elapsed() > STUCK {
                self.ask(&mut child, moved_at.elapsed())?;
                quiet_since = Instant::now();
            }
        };
        let mut stdout = Vec::new();
        if let Some(mut pipe) = child.take_stdout() {
            pipe.read_to_end(&mut stdout).context("cannot read a child's output")?;
        }
        Ok(Output { status, stdout, stderr: child.stderr()? })
    }

    /// [`Watch::output`]; anything but exit code 0 is an error.
    pub(crate) fn checked(&mut self, cmd: &Cmd) -> Result<Output> {
        let output = self.output(cmd)?;
        if output.status.success() { Ok(output) } else { Err(cmd.failure(&output).into()) }
    }

    fn work(&self) -> Work {
        let device = self.device.as_deref().and_then(losetup::one).and_then(|l| l.traffic());
        let wire = std::fs::read_to_string(&self.wire).ok().filter(|_| self.link.is_some());
        Work { device, wire: wire.map(|text| bytes_of(&text)) }
    }

    /// Nothing moves: is the far end still there?
    fn ask(&mut self, child: &mut Child, quiet: Duration) -> Result<()> {
        let answers = match &self.link {
            Some(_) => !self.dead && self.health(PROBE)? == Some(Health::Healthy),
            None => true,
        };
        if answers && quiet <= STUCK {
            return Ok(());
        }
        if self.link.is_some() && self.clean_up && !self.dead {
            return self.end_link();
        }
        child.end();
        let seconds = quiet.as_secs();
        let what = match &self.link {
            Some(link) => {
                format!("the container's image got no answer from {} for {seconds} s", link.display())
            }
            None => format!("the container's image did not answer for {seconds} s"),
        };
        Err(Fault::unavailable(what).into())
    }
}

/// How far things have got.
#[derive(Debug, PartialEq, Eq)]
struct Work {
    /// Read and written by the loop device.
    device: Option<(u64, u64)>,
    /// On the wire, both ways.
    wire: Option<u64>,
}

impl Work {
    fn is_beyond(&self, before: &Work) -> bool {
        let moved = |(now, then): (u64, u64)| now >= then.saturating_add(MOVED);
        self.device != before.device || self.wire.zip(before.wire).is_some_and(moved)
    }
}

/// The sum of what sshfs-mount counts: one line a connection, of process, bytes sent and bytes received.
fn bytes_of(text: &str) -> u64 {
    let numbers = |line: &str| -> u64 {
        line.split_whitespace().skip(1).filter_map(|n| n.parse::<u64>().ok()).fold(0, u64::saturating_add)
    };
    text.lines().map(numbers).fold(0, u64::saturating_add)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_few_bytes_that_ask_whether_one_lives_are_no_progress() {
        let work = |device, text: &str| Work { device, wire: Some(bytes_of(text)) };
        let before = work(Some((0, 512)), "  17  100000  500\n  18  0 0\n");
        assert_eq!(before.wire, Some(100_500));
        assert!(!work(Some((0, 512)), "17 100300 800\n18 0 0\n").is_beyond(&before));
        assert!(work(Some((0, 512)), "17 100300 800\n18 9000 0\n").is_beyond(&before));
        assert!(work(Some((0, 1024)), "17 100000 500").is_beyond(&before));
        assert!(!Work { device: Some((0, 512)), wire: None }.is_beyond(&before));
    }
}

//! Waiting for a child that reads or writes the container through a link that may die, or be slow.
//!
//! A time limit alone would be wrong either way. So: as long as anything moves ([`common::progress`]), or the far end
//! answers, it is waited; if nothing of that happens, the link is dead. A question is no proof by itself: on a slow link it
//! waits behind all that is on its way. A child that the kernel does not let go is freed by ending the link.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Result;
use common::fault::Fault;
use common::fuse::{self, Health};
use common::processes::{Identity, Process};
use common::progress::{Quiet, Sources};
use common::run::{Child, Cmd, Output};
use common::{mutant, signals};
use nix::sys::signal::Signal;

/// How long a file system served by a process may take to answer.
pub(crate) const PROBE: Duration = Duration::from_secs(6);

/// No progress for so long, and the far end is asked.
const QUIET: Duration = Duration::from_secs(8);
/// The same where sshfs-mount does not count what leaves: some megabytes can be on their way unseen.
const QUIET_UNSEEN: Duration = Duration::from_secs(45);
/// The longest that is waited without any progress, whatever the far end answers.
const STUCK: Duration = Duration::from_secs(300);
/// Between two looks at what moves.
const LOOK: Duration = Duration::from_millis(250);
/// What a child that is given up gets to end in: asked, then killed.
const GRACE: Duration = Duration::from_secs(5);
/// The longest that one is waited for which the kernel does not let go, as long as bytes move.
const SLOW: Duration = Duration::from_secs(60);
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
    /// Watches what serves `link`, whose bytes are counted in the file `wire`.
    pub(crate) fn new(link: Option<PathBuf>, wire: PathBuf, clean_up: bool) -> Watch {
        Watch { link, device: None, wire, clean_up, dead: false }
    }

    /// How the link is, asked for at most `limit`; `None` if there is none. One that is busy is healthy.
    pub(crate) fn health(&self, limit: Duration) -> Result<Option<Health>> {
        let Some(link) = &self.link else { return Ok(None) };
        let sources = self.sources(None);
        let before = sources.look();
        Ok(Some(match fuse::probe(link, limit)? {
            Health::Hung if sources.look().is_beyond_below(&before) => Health::Healthy,
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

    /// Runs `cmd` to its end. It may say much: e2fsck tells each link count that it sets right.
    pub(crate) fn output(&mut self, cmd: &Cmd) -> Result<Output> {
        let mut child = cmd.start_captured()?;
        let mut quiet = Quiet::begin(self.sources(Some(child.id())));
        let unseen = self.link.is_some() && !self.wire.exists();
        let mut asked = Instant::now();
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break status;
            }
            if !self.clean_up && signals::caught().is_some() {
                self.give_up(&mut child)?;
                signals::check()?;
            }
            child.ended_by(Some(Instant::now() + LOOK), !self.clean_up)?;
            let rest = quiet.time();
            let patience = match unseen {
                _ if self.dead => AFTER_END,
                true => QUIET_UNSEEN,
                false => QUIET,
            };
            if rest.min(asked.elapsed()) > patience || rest > STUCK {
                self.ask(&mut child, rest)?;
                asked = Instant::now();
            }
        };
        Ok(Output { status, stdout: child.stdout()?, stderr: child.stderr()? })
    }

    /// [`Watch::output`]; anything but exit code 0 is an error.
    pub(crate) fn checked(&mut self, cmd: &Cmd) -> Result<Output> {
        let output = self.output(cmd)?;
        if output.status.success() { Ok(output) } else { Err(cmd.failure(&output).into()) }
    }

    fn sources(&self, tree: Option<u32>) -> Sources {
        let wire = self.link.is_some().then(|| self.wire.clone());
        Sources { wire, device: self.device.clone(), tree }
    }

    /// Ends a child and what it started. What waits for S3 in the kernel is freed: by its answer, if bytes still move, else by
    /// ending the link.
    fn give_up(&mut self, child: &mut Child) -> Result<()> {
        let all: Vec<Identity> = Process::tree(child.id()).iter().map(Process::identity).collect();
        let lives = || all.iter().any(Identity::lives);
        for signal in [Signal::SIGTERM, Signal::SIGKILL] {
            child.signal(signal);
            let begin = Instant::now();
            while lives() && begin.elapsed() < GRACE {
                std::thread::sleep(LOOK / 5);
            }
        }
        let begin = Instant::now();
        let mut quiet = Quiet::begin(self.sources(None));
        while lives() {
            if quiet.time() > QUIET / 2 || begin.elapsed() > SLOW {
                if !mutant::active("a-stuck-child-is-left") {
                    self.end_link()?;
                }
                break;
            }
            std::thread::sleep(LOOK);
        }
        // Or it is left to the kernel.
        child.end();
        Ok(())
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
        self.give_up(child)?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_says_much_is_not_kept_waiting() {
        let mut watch =
            Watch { link: None, device: None, wire: "/nonexistent".into(), clean_up: false, dead: false };
        // More than a pipe holds, like the repairs of some thousand link counts.
        let out = watch.checked(&Cmd::new("head").args(["-c", "300000", "/dev/zero"])).unwrap();
        assert_eq!(out.stdout.len(), 300_000);
        let out = watch
            .output(&Cmd::new("sh").args(["-c", "head -c 9000000 /dev/zero; echo end; exit 4"]))
            .unwrap();
        assert!(
            out.status.code() == Some(4) && out.stdout.ends_with(b"end\n") && out.stdout.len() < 9_000_000
        );
    }
}

//! Putting S3 and the container up, and taking down what was put up: in order, to the end, whatever happens.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Result;
use common::fault::Fault;
use common::profile::Bytes;
use common::{mounts, mutant, say, signals};

use crate::TOOL;
use crate::link::{Below, Watch};
use crate::promise::Promise;
use crate::shown::{self, Ended};
use crate::siblings::{Answer, Call, Limit, Siblings, option};

/// The longest a mount may take; it gives up by itself much earlier.
const MOUNT: Duration = Duration::from_secs(180);

/// What takes the layers down ends by itself, within limits of its own; so it may rest for so long at least. Not a limit of
/// time: a slow link takes as long as it takes.
const REST: Duration = Duration::from_secs(35);

/// What luks-mount warns of when it had to give up what was still to be written.
const LOST: [&str; 3] = ["link-dead", "sync-failed", "lease-lost"];

/// What is up because of us. Dropping it takes it down, too.
#[derive(Debug)]
pub(crate) struct Up<'a, 's> {
    /// The tools.
    pub(crate) siblings: &'a mut Siblings<'s>,
    s3: bool,
    container: bool,
    /// A container that is not the one left behind is opened for writing, too.
    pub(crate) accept_container: bool,
    /// What the two steps of the take-down are called.
    names: [&'static str; 2],
}

/// How the take-down went.
#[derive(Debug, Default)]
pub(crate) struct Down {
    /// What went wrong first.
    pub(crate) error: Option<anyhow::Error>,
    /// Nothing is left up.
    pub(crate) nothing_up: bool,
    /// The container was closed cleanly: what was written is on S3.
    pub(crate) closed: bool,
    /// Sent to S3 while it was mounted.
    pub(crate) sent_bytes: Option<u64>,
    /// Received from S3.
    pub(crate) received_bytes: Option<u64>,
    /// Written to the image.
    pub(crate) written_bytes: Option<u64>,
}

impl<'a, 's> Up<'a, 's> {
    /// Nothing is up yet.
    pub(crate) fn new(siblings: &'a mut Siblings<'s>) -> Up<'a, 's> {
        Up { siblings, s3: false, container: false, accept_container: false, names: ["detach", "unmount"] }
    }

    /// What a killed run put up.
    pub(crate) fn found(siblings: &'a mut Siblings<'s>, s3: bool, container: bool) -> Up<'a, 's> {
        Up { siblings, s3, container, accept_container: false, names: ["clear-container", "clear-s3"] }
    }

    /// Mounts S3's folder, if the container is there, and watches it.
    pub(crate) fn mount(&mut self, bwlimit: Option<Bytes>) -> Result<()> {
        if self.siblings.settings.s3.is_none() {
            return Ok(());
        }
        signals::check()?;
        say!(TOOL, "mounting {}", self.siblings.settings.far_name());
        let args: Vec<OsString> =
            bwlimit.map(|b| option("--bwlimit", b.0.to_string())).into_iter().flatten().collect();
        self.s3 = true;
        let answer = self.siblings.run(&Call {
            step: "mount",
            tool: "sshfs-mount",
            action: "mount",
            args: &args,
            limit: Some(Limit::Time(MOUNT)),
            cleanup: false,
        })?;
        // What it undid itself, or never began, is not ours to take down: it may be somebody else's.
        self.s3 = !answer.undone();
        if let Some(fsync) = answer.checked()?.data("fsync").as_bool() {
            Promise::save(self.siblings.settings, fsync)?;
        }
        self.watch(None);
        Ok(())
    }

    /// Watches what is below the container, with its loop device once there is one.
    fn watch(&mut self, device: Option<PathBuf>) {
        let settings = self.siblings.settings;
        let below = Below { target: settings.s3.clone(), wire: settings.runtime.join("s3.wire"), device };
        self.siblings.watch = Some(Watch::start(below, settings.patience));
    }

    /// Opens the container and mounts what is in it.
    pub(crate) fn attach(&mut self, read_only: bool) -> Result<Answer> {
        signals::check()?;
        let target = self.siblings.settings.container.clone();
        say!(TOOL, "opening the container");
        let accept = self.accept_container && !read_only;
        let words = [(read_only, "--read-only"), (accept, "--accept-container")];
        let args: Vec<OsString> = words.iter().filter(|w| w.0).map(|w| w.1.into()).collect();
        self.container = true;
        let answer = self.siblings.run(&Call {
            step: "attach",
            tool: "luks-mount",
            action: "attach",
            args: &args,
            // A file system that was not closed cleanly is checked first, which may take long.
            limit: None,
            cleanup: false,
        })?;
        self.container = !answer.undone();
        let answer = answer.checked()?;
        if !is_mounted(&target)? {
            return Err(Fault::failed(format!(
                "luks-mount has attached the container, but nothing is mounted at {}",
                target.display()
            ))
            .hint("are both tools of the same version and mount namespace?")
            .into());
        }
        if !read_only {
            self.siblings.keep_lease();
        }
        self.watch(answer.data("loop").as_str().map(PathBuf::from));
        Ok(answer)
    }

    /// It stays up: a view is open.
    pub(crate) fn keep(mut self) {
        self.siblings.watch = None;
        (self.s3, self.container) = (false, false);
    }

    /// Takes down what is up: first the container, then S3. Signals do not stop it, time does.
    pub(crate) fn down(&mut self) -> Down {
        (self.siblings.watch, self.siblings.lease) = (None, None);
        let (s3, container) = (std::mem::take(&mut self.s3), std::mem::take(&mut self.container));
        let mut down = Down { closed: true, nothing_up: true, ..Down::default() };
        let (mut held, mut detached) = (false, true);
        if container {
            say!(TOOL, "closing the container");
            let answer = self.detach();
            held = answer.as_ref().is_ok_and(Answer::dirty);
            down.written_bytes = answer.as_ref().ok().and_then(|a| a.data("written_bytes").as_u64());
            let lost = answer.as_ref().is_ok_and(|a| LOST.iter().any(|kind| a.warned(kind)));
            detached = judge(answer, &mut down.error);
            down.nothing_up = detached;
            down.closed = detached && !lost;
            if lost {
                let message = "the container was closed, but not all that was written has reached it";
                let fault =
                    Fault::unavailable(message).hint("is the link to S3 up? The next push looks again");
                down.error.get_or_insert(fault.into());
            }
        }
        // While somebody holds the container, S3 below it cannot go.
        if s3 && !held {
            say!(TOOL, "unmounting {}", self.siblings.settings.far_name());
            let answer = self.unmount(&mut down);
            let mut unmounted = judge(answer, &mut down.error);
            if !detached {
                // Unmounting has ended a server that hung; now the container can be closed, though not cleanly: what
                // was still to be written may be lost.
                down.nothing_up = judge(self.detach(), &mut down.error);
                if !unmounted {
                    let answer = self.unmount(&mut down);
                    unmounted = judge(answer, &mut down.error);
                }
            }
            down.nothing_up &= unmounted;
        }
        if container && !down.closed {
            // What failed first, for `failed_step`.
            self.siblings.doing = self.names[0];
        }
        down
    }

    fn rest(&self) -> Option<Limit> {
        Some(Limit::Rest(self.siblings.settings.patience.max(REST)))
    }

    /// Takes down what is shown of it, then the container. What is shown holds it, and so does who uses that.
    fn detach(&mut self) -> Result<Answer> {
        if mutant::active("what-is-shown-is-hidden-first") {
            return self.detach_container();
        }
        match shown::hide(self.siblings.settings)? {
            Ended::Held(who) => Ok(self.siblings.held(&who)),
            Ended::Nothing | Ended::Hidden => self.detach_container(),
        }
    }

    fn detach_container(&mut self) -> Result<Answer> {
        self.siblings.run(&Call {
            step: self.names[0],
            tool: "luks-mount",
            action: "detach",
            args: &[],
            limit: self.rest(),
            cleanup: true,
        })
    }

    fn unmount(&mut self, down: &mut Down) -> Result<Answer> {
        let answer = self.siblings.run(&Call {
            step: self.names[1],
            tool: "sshfs-mount",
            action: "unmount",
            args: &[],
            limit: self.rest(),
            cleanup: true,
        })?;
        down.sent_bytes = answer.data("sent_bytes").as_u64().or(down.sent_bytes);
        down.received_bytes = answer.data("received_bytes").as_u64().or(down.received_bytes);
        Ok(answer)
    }
}

impl Drop for Up<'_, '_> {
    fn drop(&mut self) {
        if self.s3 || self.container {
            // Only after a panic: everything else takes it down itself and looks at the outcome.
            drop(self.down());
        }
    }
}

fn judge(answer: Result<Answer>, error: &mut Option<anyhow::Error>) -> bool {
    match answer.and_then(Answer::checked) {
        Ok(_) => true,
        Err(e) => {
            // The first one is the one that matters.
            error.get_or_insert(e);
            false
        }
    }
}

/// Whether something is mounted at `target`; it is not touched.
fn is_mounted(target: &Path) -> Result<bool> {
    let target = match (target.parent().map(Path::canonicalize), target.file_name()) {
        (Some(Ok(parent)), Some(name)) => parent.join(name),
        _ => target.to_owned(),
    };
    Ok(mounts::table()?.iter().any(|m| m.target == target))
}

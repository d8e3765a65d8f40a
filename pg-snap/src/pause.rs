//! Background workers that never look at the switch: paused by the profile's commands, and resumed whatever happens.
//!
//! A file in the state folder says that they are paused, from before the first command until all have been resumed. So
//! whoever comes next knows, also after everything was killed.

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use common::fault::Fault;
use common::profile::Profile;
use common::run::Cmd;
use common::{durable, places};

/// How long one command may take.
const LIMIT: Duration = Duration::from_secs(120);

/// The commands, and where it is noted that they ran.
#[derive(Debug)]
pub(crate) struct Pause {
    pause: Vec<Vec<String>>,
    resume: Vec<Vec<String>>,
    mark: PathBuf,
    /// By us: a mark of somebody who was killed does not say that they still are.
    done: Cell<bool>,
}

impl Pause {
    /// As the profile says.
    pub(crate) fn new(profile: &Profile) -> Result<Pause> {
        let settings = &profile.database;
        if settings.pause.is_empty() != settings.resume.is_empty() {
            return Err(Fault::config("[database] has only one of pause and resume")
                .hint("what pauses the workers needs what resumes them, and the other way round")
                .into());
        }
        let mark = places::state(profile)?.join("jobs-paused");
        Ok(Pause {
            pause: settings.pause.clone(),
            resume: settings.resume.clone(),
            mark,
            done: Cell::new(false),
        })
    }

    /// Pauses them, if they are not; when that fails, they are resumed.
    pub(crate) fn pause(&self) -> Result<()> {
        if self.pause.is_empty() || self.done.get() {
            return Ok(());
        }
        durable::write(&self.mark, b"resume them: pg-snap release\n", 0o600)?;
        let paused =
            run(&self.pause, false).context("cannot pause the background workers ([database] pause)");
        if paused.is_err() {
            self.resume()?;
        }
        self.done.set(paused.is_ok());
        paused
    }

    /// Resumes them if they are paused; says whether they were. All commands are run, also when one fails.
    pub(crate) fn resume(&self) -> Result<bool> {
        if !self.mark.exists() {
            return Ok(false);
        }
        self.done.set(false);
        run(&self.resume, true).context("cannot resume the background workers ([database] resume)")?;
        remove(&self.mark)?;
        Ok(true)
    }
}

fn run(commands: &[Vec<String>], all: bool) -> Result<()> {
    let mut first = Ok(());
    for argv in commands {
        // Also when a signal asked us to stop: half of it would be the worst.
        let done = Cmd::from_argv(argv)?.timeout(LIMIT).uninterruptible().checked().map(|_| ());
        if !all {
            done?;
        } else if first.is_ok() {
            first = done;
        }
    }
    first
}

fn remove(file: &Path) -> Result<()> {
    std::fs::remove_file(file).with_context(|| format!("cannot remove {}", file.display()))?;
    durable::sync_dir(file.parent().unwrap_or(Path::new("/")))
}

//! The container's lease, moved on while it is open for writing: `luks-mount renew`, every few minutes.
//!
//! So a machine that was restored from a backup of this one made in the middle of a push knows an older lease than the one
//! on S3, and is refused. And a push whose container another machine was told to take over learns of it, and ends.

use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::fault::Fault;
use common::program::Program;
use common::run::Cmd;
use serde_json::Value;

use crate::settings::Settings;

/// A renewal that takes longer is given up: the next one may be quicker.
const LIMIT: Duration = Duration::from_secs(120);
/// Between two looks at whether it is over.
const LOOK: Duration = Duration::from_millis(200);

#[derive(Debug, Default)]
struct Flags {
    lost: AtomicBool,
    stop: AtomicBool,
}

/// Renews until it is dropped.
#[derive(Debug)]
pub(crate) struct Keeper(Arc<Flags>);

impl Keeper {
    /// `program`: luks-mount.
    pub(crate) fn start(program: &Program, settings: &Settings) -> Keeper {
        let flags = Arc::new(Flags::default());
        let shared = Arc::clone(&flags);
        let cmd = program.cmd().arg("renew").args(&settings.words).uninterruptible();
        let every = settings.renew_every;
        // Not joined: its child is ended within a moment, and dies with the thread.
        std::thread::spawn(move || {
            while pause(&shared, every) {
                if is_lost(&shared, &cmd) {
                    shared.lost.store(true, Ordering::SeqCst);
                    return;
                }
            }
        });
        Keeper(flags)
    }

    /// Whether another machine has taken the container over.
    pub(crate) fn is_lost(&self) -> bool {
        self.0.lost.load(Ordering::SeqCst)
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.0.stop.store(true, Ordering::SeqCst);
    }
}

/// Why a push ends then.
pub(crate) fn lost() -> anyhow::Error {
    Fault::config("another machine has taken the container over during this push, which is ended")
        .hint("only one machine may push to a container: stop the other one, or this one for good")
        .into()
}

/// True once `time` has passed; false if it is over.
fn pause(flags: &Flags, time: Duration) -> bool {
    let end = Instant::now() + time;
    while Instant::now() < end {
        if flags.stop.load(Ordering::SeqCst) {
            return false;
        }
        std::thread::sleep(LOOK.min(time));
    }
    !flags.stop.load(Ordering::SeqCst)
}

/// One renewal. Only what luks-mount says for sure counts: a link that is busy or dead is noticed by others.
fn is_lost(flags: &Flags, cmd: &Cmd) -> bool {
    let Ok(mut child) = cmd.start_streams(Stdio::null(), Stdio::piped(), Stdio::null()) else { return false };
    let begun = Instant::now();
    while matches!(child.try_wait(), Ok(None)) {
        if flags.stop.load(Ordering::SeqCst) || begun.elapsed() > LIMIT {
            child.end();
            return false;
        }
        std::thread::sleep(LOOK);
    }
    let Some(stdout) = child.take_stdout() else { return false };
    let answer: Value = serde_json::from_reader(stdout).unwrap_or_default();
    answer["tool"] == "luks-mount" && answer["data"]["lease_lost"] == true
}

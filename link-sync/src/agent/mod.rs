//! The process that owns a snapshot between `stage`, `settle` and `publish`.
//! It holds the connection, the store's lock, and what is known of the partial snapshot. Started by the first `stage`;
//! ends with `publish`, `abort`, any failure, or when nobody asks for `--max`. It holds no file of the caller.
//!
//! It listens on `agent.sock` in the runtime folder (0700). One JSON line asks, JSON lines answer: steps, then
//! `done`. When the one who asked goes away, the work is stopped as by a signal.

pub mod ask;
pub mod live;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Result;
use common::fault::{Fault, Kind, kind_of};
use common::lock::Lock;
use common::signals;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::progress::Step;
use crate::session::Allow;

/// How often the one who waits looks whether it is still wanted.
const TICK: u64 = 100;

/// What is asked of the agent.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Task {
    /// Bring the partial snapshot up to date.
    Stage,
    /// The last pass.
    Settle,
    /// Make it a snapshot.
    Publish,
    /// Give up, keep what has arrived.
    Abort,
}

#[derive(Debug, Deserialize, Serialize)]
struct Ask {
    action: Task,
    chosen: Vec<String>,
    allow: Allow,
}

#[derive(Debug, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Say {
    Step(Step),
    Done(Ended),
}

/// How what was asked has ended.
#[derive(Debug, Deserialize, Serialize)]
struct Ended {
    changed: bool,
    partial: bool,
    data: Map<String, Value>,
    warnings: Vec<Value>,
    error: Option<(i32, Value)>,
}

/// The lock of a snapshot under way on this side, for the agent and for `snapshot` alike.
pub fn lock(runtime: &Path) -> Result<Lock> {
    Lock::exclusive(&runtime.join("agent.lock"), "the snapshot under way")
}

/// Waits until no snapshot is under way on this side, a minute at most; it is then ours.
pub fn wait_for_end(runtime: &Path) -> Result<Lock> {
    let begin = Instant::now();
    loop {
        match lock(runtime) {
            Err(e) if kind_of(&e) == Kind::Busy && begin.elapsed() < Duration::from_secs(60) => {
                signals::check()?
            }
            other => return other,
        }
        std::thread::sleep(Duration::from_millis(TICK));
    }
}

fn socket(runtime: &Path) -> PathBuf {
    runtime.join("agent.sock")
}

/// The error of a settle or publish without a stage.
pub fn nothing_staged() -> Fault {
    Fault::failed("no snapshot is under way")
        .hint("`link-sync stage` begins one; `link-sync snapshot` does all three steps")
}

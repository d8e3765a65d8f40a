//! Where the time of the passes went: for people, and for scripts that decide whether one more is worth it.

use std::time::{Duration, Instant};

use serde_json::{Map, Value};

/// A part of a pass.
#[derive(Clone, Copy, Debug)]
pub enum Phase {
    /// The source's file system writes back what is in memory.
    Sync,
    /// Every path of the source is looked at.
    Walk,
    /// What is different is found.
    Compare,
    /// The store makes or clears the place.
    Prepare,
    /// rsync.
    Send,
    /// The store puts what arrived in its place.
    Merge,
    /// What was sent is looked at again.
    Check,
}

const NAMES: [&str; 7] =
    ["sync_ms", "walk_ms", "compare_ms", "prepare_ms", "send_ms", "merge_ms", "check_ms"];

/// Time spent in each part.
#[derive(Clone, Copy, Debug, Default)]
pub struct Timing([Duration; NAMES.len()]);

impl Timing {
    /// Adds what another pass took.
    pub fn add(&mut self, other: &Timing) {
        for (mine, theirs) in self.0.iter_mut().zip(other.0) {
            *mine += theirs;
        }
    }

    /// Of one part.
    pub fn of(&self, phase: Phase) -> Duration {
        self.0[phase as usize]
    }

    /// Of all.
    pub fn total(&self) -> Duration {
        self.0.iter().sum()
    }

    /// As an object: each part, and `pass_ms`, all of them.
    pub fn tell(&self) -> Value {
        let parts = NAMES.into_iter().zip(self.0).chain([("pass_ms", self.total())]);
        Value::Object(parts.map(|(name, time)| (name.to_owned(), ms(time))).collect::<Map<_, _>>())
    }
}

/// Measures one pass.
#[derive(Debug)]
pub struct Laps {
    /// So far.
    pub timing: Timing,
    last: Instant,
}

impl Laps {
    /// From now on.
    pub fn start() -> Laps {
        Laps { timing: Timing::default(), last: Instant::now() }
    }

    /// What went by since the last call was spent on `phase`.
    pub fn lap(&mut self, phase: Phase) {
        let now = Instant::now();
        self.timing.0[phase as usize] += now - self.last;
        self.last = now;
    }
}

/// Milliseconds.
pub fn ms(time: Duration) -> Value {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX).into()
}

//! For how long the other end has been silent, and whether anybody waits for it.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Counted by all threads that talk with it.
#[derive(Debug)]
pub struct Silence {
    begin: Instant,
    /// When a byte last passed, or somebody began to wait: milliseconds from `begin`.
    passed: AtomicU64,
    /// How many threads wait for the other end to say, or to take, something.
    waiting: AtomicUsize,
}

impl Silence {
    /// The conversation begins.
    pub fn new() -> Silence {
        Silence { begin: Instant::now(), passed: AtomicU64::new(0), waiting: AtomicUsize::new(0) }
    }

    /// How long the conversation has lasted.
    pub fn age(&self) -> Duration {
        self.begin.elapsed()
    }

    /// How long nothing has passed.
    pub fn lasts(&self) -> Duration {
        Duration::from_millis(self.now().saturating_sub(self.passed.load(Ordering::SeqCst)))
    }

    /// Somebody waits for the other end.
    pub fn is_waited_for(&self) -> bool {
        self.waiting.load(Ordering::SeqCst) > 0
    }

    fn now(&self) -> u64 {
        u64::try_from(self.begin.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Does something that may wait for the other end.
    pub fn wait<T>(&self, work: impl FnOnce() -> std::io::Result<T>) -> std::io::Result<T> {
        if self.waiting.fetch_add(1, Ordering::SeqCst) == 0 {
            self.passed.store(self.now(), Ordering::SeqCst);
        }
        let done = work();
        self.passed.store(self.now(), Ordering::SeqCst);
        self.waiting.fetch_sub(1, Ordering::SeqCst);
        done
    }
}

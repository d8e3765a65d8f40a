//! Signs of life that the far end gives while it works on a request, so that the source can tell slow from dead.

use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::protocol::{self, Kind};

/// How often.
const EVERY: Duration = Duration::from_secs(1);
/// A request that takes longer without another word is stuck (a disk that does not answer): no more signs, so that
/// the source stops waiting.
const LONGEST: Duration = Duration::from_secs(6 * 3600);

/// When signs are given.
#[derive(Debug, Default)]
pub struct Alive {
    since: Mutex<Option<Instant>>,
    over: AtomicBool,
    wake: Condvar,
}

/// As long as this is there, signs are given.
#[derive(Debug)]
pub struct Working<'a>(&'a Alive);

impl Alive {
    /// A request is being worked on.
    pub fn working(&self) -> Working<'_> {
        *self.since.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        Working(self)
    }

    /// No more requests.
    pub fn end(&self) {
        let _since = self.since.lock().unwrap_or_else(PoisonError::into_inner);
        self.over.store(true, Ordering::SeqCst);
        self.wake.notify_all();
    }

    /// Gives signs on `output` until [`Alive::end`].
    pub fn tell<W: Write>(&self, output: &Mutex<W>) {
        let mut since = self.since.lock().unwrap_or_else(PoisonError::into_inner);
        while !self.over.load(Ordering::SeqCst) {
            since = self.wake.wait_timeout(since, EVERY).unwrap_or_else(PoisonError::into_inner).0;
            if !since.is_some_and(|when| when.elapsed() >= EVERY && when.elapsed() < LONGEST) {
                continue;
            }
            // A pipe that is full is being read, or its reader does not wait for us. Whoever writes meanwhile gives a sign by
            // that.
            if let Ok(mut output) = output.try_lock() {
                // An end that has gone away is told by its input.
                protocol::send(&mut *output, Kind::Alive, &[]).and_then(|()| output.flush()).ok();
            }
        }
    }
}

impl Drop for Working<'_> {
    fn drop(&mut self) {
        *self.0.since.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// Whole frames on an output that others write to as well: what is written goes out when it is flushed, in one piece.
#[derive(Debug)]
pub struct Frames<'a, W> {
    output: &'a Mutex<W>,
    piece: Vec<u8>,
}

impl<'a, W: Write> Frames<'a, W> {
    /// On `output`.
    pub fn on(output: &'a Mutex<W>) -> Frames<'a, W> {
        Frames { output, piece: Vec::new() }
    }
}

impl<W: Write> Write for Frames<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.piece.extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        let mut output = self.output.lock().unwrap_or_else(PoisonError::into_inner);
        output.write_all(&self.piece)?;
        self.piece.clear();
        output.flush()
    }
}

//! Signs of life: the far end gives them while it works, and looks for the other end's.
//! It gives them while it works on a request, so that the source can tell slow from dead; and it watches over the other
//! end, which may not keep it waiting for ever.

use std::io::{Read, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use common::mutant;
use nix::sys::signal::Signal;
use nix::unistd::Pid;

use crate::protocol::{self, Frame};
use crate::silence::Silence;

/// How often.
const EVERY: Duration = Duration::from_secs(1);
/// A request that takes longer without another word is stuck (a disk that does not answer): no more signs, so that
/// the source stops waiting.
const LONGEST: Duration = Duration::from_secs(6 * 3600);
/// How long who comes may take to say who it is.
const GREETING: Duration = Duration::from_secs(120);
/// The longest conversation. What has arrived by then is kept, and the next one continues.
const WHOLE: Duration = Duration::from_secs(14 * 24 * 3600);

/// Silence after which the other end is gone, whatever its connection says: longer than a source may wait for the next step of a
/// snapshot (`max`, 24 hours).
pub const SILENCE: Duration = Duration::from_secs(26 * 3600);

/// When signs are given, and when the other end was last heard.
#[derive(Debug)]
pub struct Alive {
    /// Of the other end.
    silence: Silence,
    /// How long it may last.
    limit: Duration,
    /// How long signs are given for a request during which nothing passes.
    longest: Duration,
    /// It has said who it is.
    met: AtomicBool,
    since: Mutex<Option<Instant>>,
    over: AtomicBool,
    wake: Condvar,
}

/// As long as this is there, signs are given.
#[derive(Debug)]
pub struct Working<'a>(&'a Alive);

impl Alive {
    /// For another end that may be silent for so long.
    pub fn new(limit: Duration) -> Alive {
        Alive {
            silence: Silence::new(),
            limit,
            longest: LONGEST,
            met: AtomicBool::new(false),
            since: Mutex::new(None),
            over: AtomicBool::new(false),
            wake: Condvar::new(),
        }
    }

    /// A request is being worked on.
    pub fn working(&self) -> Working<'_> {
        *self.since.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        Working(self)
    }

    /// It is known who is there.
    pub fn met(&self) {
        self.met.store(true, Ordering::SeqCst);
    }

    /// No more requests.
    pub fn end(&self) {
        let _since = self.since.lock().unwrap_or_else(PoisonError::into_inner);
        self.over.store(true, Ordering::SeqCst);
        self.wake.notify_all();
    }

    /// Gives signs on `output` until [`Alive::end`].
    pub fn tell<W: Write>(&self, output: &Mutex<W>) {
        while let Some(since) = self.tick() {
            if !since.is_some_and(|when| when.elapsed() >= EVERY && self.without_a_word(when) < self.longest)
            {
                continue;
            }
            // A pipe that is full is being read, or its reader does not wait for us. Whoever writes meanwhile gives a sign by
            // that.
            if let Ok(mut output) = output.try_lock() {
                // An end that has gone away is told by its input.
                protocol::send(&mut *output, Frame::Alive, &[]).and_then(|()| output.flush()).ok();
            }
        }
    }

    /// Until [`Alive::end`], ends this process, as by a signal, when the other end has kept it waiting for too long. Nothing is
    /// published then, and what has arrived is kept.
    pub fn watch(&self) {
        while self.tick().is_some() {
            if let Some(why) = self.gone() {
                common::say!(crate::TOOL, "{why}: ended");
                // Also what waits in a read or a write that will never return.
                nix::sys::signal::kill(Pid::this(), Signal::SIGTERM).ok();
            }
        }
    }

    /// How long the request of `when` has been worked on and nothing has passed. One that moves data may take days, and rsync
    /// may compare for minutes in between.
    fn without_a_word(&self, when: Instant) -> Duration {
        when.elapsed().min(self.silence.lasts())
    }

    /// A second later: since when a request is being worked on. `None` after [`Alive::end`].
    fn tick(&self) -> Option<Option<Instant>> {
        let since = self.since.lock().unwrap_or_else(PoisonError::into_inner);
        if self.over.load(Ordering::SeqCst) {
            return None;
        }
        let since = self.wake.wait_timeout(since, EVERY).unwrap_or_else(PoisonError::into_inner).0;
        if self.over.load(Ordering::SeqCst) { None } else { Some(*since) }
    }

    /// Why the other end is not waited for any longer.
    fn gone(&self) -> Option<String> {
        if mutant::active("silence-is-waited-out") {
            return None;
        }
        if self.silence.age() >= WHOLE {
            return Some(format!("this conversation has lasted for {} days", WHOLE.as_secs() / 86_400));
        }
        let limit = if self.met.load(Ordering::SeqCst) { self.limit } else { GREETING.min(self.limit) };
        let silent = self.silence.lasts();
        (self.silence.is_waited_for() && silent >= limit)
            .then(|| format!("the other end has been silent for {} s", silent.as_secs()))
    }
}

impl Drop for Working<'_> {
    fn drop(&mut self) {
        *self.0.since.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

/// What the other end says.
#[derive(Debug)]
pub struct Watched<'a, T> {
    inner: T,
    alive: &'a Alive,
}

impl<'a, T> Watched<'a, T> {
    /// `inner`, and `alive` knows when it waits.
    pub fn new(inner: T, alive: &'a Alive) -> Watched<'a, T> {
        Watched { inner, alive }
    }
}

impl<T: Read> Read for Watched<'_, T> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.alive.silence.wait(|| self.inner.read(buffer))
    }
}

/// Whole frames on an output that others write to as well: what is written goes out when it is flushed, in one piece.
#[derive(Debug)]
pub struct Frames<'a, W> {
    output: &'a Mutex<W>,
    alive: &'a Alive,
    piece: Vec<u8>,
}

impl<'a, W: Write> Frames<'a, W> {
    /// On `output`; `alive` knows when that is not taken. Signs of life are no word, so they pass by it.
    pub fn on(output: &'a Mutex<W>, alive: &'a Alive) -> Frames<'a, W> {
        Frames { output, alive, piece: Vec::new() }
    }
}

impl<W: Write> Write for Frames<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.piece.extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        let piece = std::mem::take(&mut self.piece);
        self.alive.silence.wait(|| {
            let mut output = self.output.lock().unwrap_or_else(PoisonError::into_inner);
            output.write_all(&piece)?;
            output.flush()
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How many signs are given within `time` while a request is worked on, and a byte passes `every` so often.
    fn signs(time: Duration, every: Option<Duration>) -> usize {
        let mut alive = Alive::new(SILENCE);
        alive.longest = Duration::from_secs(3);
        let output = Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            scope.spawn(|| alive.tell(&output));
            let _working = alive.working();
            let begin = Instant::now();
            while begin.elapsed() < time {
                std::thread::sleep(every.unwrap_or(time));
                let _byte = every.map(|_| Watched::new(&b"x"[..], &alive).read(&mut [0]).unwrap());
            }
            alive.end();
        });
        let said = output.into_inner().unwrap();
        let mut one = Vec::new();
        protocol::send(&mut one, Frame::Alive, &[]).unwrap();
        said.len() / one.len()
    }

    #[test]
    fn a_request_that_moves_data_gives_signs_however_long_it_takes() {
        let time = Duration::from_secs(8);
        let (moving, stuck) = std::thread::scope(|scope| {
            let moving = scope.spawn(|| signs(time, Some(Duration::from_millis(500))));
            (moving.join().unwrap(), signs(time, None))
        });
        assert!(moving >= 5 && stuck <= 3, "{moving} {stuck}");
    }
}

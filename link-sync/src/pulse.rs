//! No wait for the far end is without an end.
//!
//! While it works on a request, the far end gives a sign of life every second ([`crate::serve`]). A thread here watches the
//! two pipes: who waits for one and gets nothing (the other end is stopped, or the network is gone), is past its time, or
//! is asked to stop by a signal, is freed by ending the child behind the pipes: TERM first where it can hear that, then
//! KILL, which also ends a process that is stopped.

use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use common::signals;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;

use crate::budget::Budget;
use crate::silence::Silence;

/// Longest silence of an end that gives a sign of life every second. Longer than ssh's own limit, so that ssh may say why.
const LONGEST: Duration = Duration::from_secs(90);
/// Silence that is too long when the time is over.
const LATE_SILENCE: Duration = Duration::from_secs(3);
/// How long what was begun in time may take beyond it.
const GRACE: Duration = Duration::from_secs(10);
/// Between TERM and KILL.
const HEARD: Duration = Duration::from_secs(3);
/// How often is looked.
const LOOK: Duration = Duration::from_millis(200);

/// What both pipes tell.
#[derive(Debug)]
struct Beat {
    /// Of the far end.
    silence: Silence,
    /// When the time is over, if it ever is.
    until: Mutex<Option<Instant>>,
    /// Why the child was ended, once it was.
    ended: Mutex<Option<&'static str>>,
    stop: AtomicBool,
}

impl Beat {
    /// Why nobody should wait any longer.
    fn over(&self) -> Option<&'static str> {
        if !self.silence.is_waited_for() || common::mutant::active("far-end-is-watched") {
            return None;
        }
        let silent = self.silence.lasts();
        let until = *self.until.lock().unwrap_or_else(PoisonError::into_inner);
        let late = until.map_or(Duration::ZERO, |until| Instant::now().saturating_duration_since(until));
        match () {
            () if silent >= LONGEST => Some("it gave no sign of life for 90 s, so it was ended"),
            () if !late.is_zero() && silent >= LATE_SILENCE || late >= GRACE => {
                Some("it did not answer in the time there was, so it was ended")
            }
            () => None,
        }
    }
}

/// The thread that watches. It ends when this is dropped.
#[derive(Debug)]
pub struct Pulse {
    beat: Arc<Beat>,
    wake: Option<UnixStream>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Pulse {
    /// Watches over the child `pid`, which leads its group and is reaped only after this is dropped.
    pub fn watch(pid: u32) -> Result<Pulse> {
        let pid = Pid::from_raw(i32::try_from(pid).context("a process id out of range")?);
        let beat = Arc::new(Beat {
            silence: Silence::new(),
            until: Mutex::new(None),
            ended: Mutex::new(None),
            stop: AtomicBool::new(false),
        });
        let (wake, woken) = UnixStream::pair().context("cannot make a socket pair")?;
        let watched = Arc::clone(&beat);
        let thread = std::thread::spawn(move || guard(&watched, woken.as_fd(), pid));
        Ok(Pulse { beat, wake: Some(wake), thread: Some(thread) })
    }

    /// A pipe that is watched.
    pub fn pipe<T>(&self, inner: T) -> Pipe<T> {
        Pipe { inner, beat: Arc::clone(&self.beat) }
    }

    /// From now on this is all the time there is.
    pub fn within(&self, budget: &Budget) {
        let until = budget.left().and_then(|left| Instant::now().checked_add(left));
        *self.beat.until.lock().unwrap_or_else(PoisonError::into_inner) = until;
    }

    /// Why the child was ended, if it was.
    pub fn ended(&self) -> Option<&'static str> {
        *self.beat.ended.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Pulse {
    fn drop(&mut self) {
        self.beat.stop.store(true, Ordering::SeqCst);
        drop(self.wake.take());
        if let Some(thread) = self.thread.take() {
            // It only waits and sends signals.
            drop(thread.join());
        }
    }
}

fn guard(beat: &Beat, woken: BorrowedFd, pid: Pid) {
    let send = |signal| killpg(pid, signal).unwrap_or(());
    let mut asked: Option<Instant> = None;
    while !beat.stop.load(Ordering::SeqCst) {
        if let Some(why) = beat.over() {
            *beat.ended.lock().unwrap_or_else(PoisonError::into_inner) = Some(why);
            // Who is silent hears nothing.
            return send(Signal::SIGKILL);
        }
        match asked {
            None if signals::caught().is_some() => {
                send(Signal::SIGTERM);
                asked = Some(Instant::now());
            }
            Some(when) if when.elapsed() >= HEARD => return send(Signal::SIGKILL),
            _ => {}
        }
        let mut fds = vec![PollFd::new(woken, PollFlags::POLLIN)];
        // It stays readable, so it is of no use the second time.
        fds.extend(signals::fd().filter(|_| asked.is_none()).map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
        poll(&mut fds, PollTimeout::try_from(LOOK).unwrap_or(PollTimeout::MAX)).ok();
    }
}

/// One of the two pipes.
#[derive(Debug)]
pub struct Pipe<T> {
    inner: T,
    beat: Arc<Beat>,
}

impl<T: AsFd> AsFd for Pipe<T> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inner.as_fd()
    }
}

impl<T: Read> Read for Pipe<T> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.beat.silence.wait(|| self.inner.read(buffer))
    }
}

impl<T: Write> Write for Pipe<T> {
    fn write(&mut self, buffer: &[u8]) -> std::io::Result<usize> {
        self.beat.silence.wait(|| self.inner.write(buffer))
    }
    fn flush(&mut self) -> std::io::Result<()> {
        self.beat.silence.wait(|| self.inner.flush())
    }
}

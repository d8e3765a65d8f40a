//! Work that finds more work, on a few threads: walking and cloning trees.

use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use anyhow::Result;
use common::signals;

/// More threads than cores, as a cold disk makes them wait.
const THREADS: usize = 4;

struct Queue<J> {
    state: Mutex<Pending<J>>,
    more: Condvar,
    /// Threads that wait for work.
    idle: AtomicUsize,
    /// There was an error: no more work is begun.
    stop: AtomicBool,
}

struct Pending<J> {
    waiting: Vec<J>,
    busy: usize,
    error: Option<anyhow::Error>,
}

/// Calls `work` for `first` and for every job it adds, in no promised order. Stops at the first error, or
/// when a signal asks us to.
pub fn each<J: Send>(first: J, work: impl Fn(J, &mut Vec<J>) -> Result<()> + Sync) -> Result<()> {
    each_with(first, |(): &mut (), job, more| work(job, more))
}

/// The same, with something that each thread keeps from one job to the next. A thread takes the job it found last, so
/// what it found before is still to be done when that one and all that came of it are.
pub fn each_with<J: Send, S: Default>(
    first: J,
    work: impl Fn(&mut S, J, &mut Vec<J>) -> Result<()> + Sync,
) -> Result<()> {
    let queue = Queue {
        state: Mutex::new(Pending { waiting: vec![first], busy: 0, error: None }),
        more: Condvar::new(),
        idle: AtomicUsize::new(0),
        stop: AtomicBool::new(false),
    };
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| worker(&queue, &work));
        }
    });
    queue.state.into_inner().unwrap_or_else(PoisonError::into_inner).error.map_or(Ok(()), Err)
}

/// Works on what it finds itself; gives half of that away when another thread has nothing to do. So the
/// lock is rarely asked for.
fn worker<J, S: Default>(queue: &Queue<J>, work: &impl Fn(&mut S, J, &mut Vec<J>) -> Result<()>) {
    let mut own: Vec<J> = Vec::new();
    let mut kept = S::default();
    while let Some(first) = next(queue) {
        own.push(first);
        while let Some(job) = own.pop() {
            if queue.stop.load(Ordering::Relaxed) {
                own.clear();
                break;
            }
            // A panic here would leave the other threads waiting for ever.
            let guarded = AssertUnwindSafe(|| signals::check().and_then(|()| work(&mut kept, job, &mut own)));
            let result = std::panic::catch_unwind(guarded);
            if let Err(error) = result.unwrap_or_else(|_| Err(anyhow::anyhow!("internal error in a thread")))
            {
                queue.stop.store(true, Ordering::Relaxed);
                // The first error is the one that is told.
                let mut state = lock(&queue.state);
                state.error = state.error.take().or(Some(error));
            } else if own.len() > 1 && queue.idle.load(Ordering::Relaxed) > 0 {
                let half = own.len() / 2;
                lock(&queue.state).waiting.extend(own.drain(..half));
                queue.more.notify_all();
            }
        }
        lock(&queue.state).busy -= 1;
        queue.more.notify_all();
    }
}

/// The next job; `None` when there is none and nobody is at work who could find one.
fn next<J>(queue: &Queue<J>) -> Option<J> {
    let mut state = lock(&queue.state);
    loop {
        if state.error.is_some() || (state.waiting.is_empty() && state.busy == 0) {
            return None;
        }
        if let Some(job) = state.waiting.pop() {
            state.busy += 1;
            return Some(job);
        }
        queue.idle.fetch_add(1, Ordering::Relaxed);
        state = queue.more.wait(state).unwrap_or_else(PoisonError::into_inner);
        queue.idle.fetch_sub(1, Ordering::Relaxed);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[test]
    fn all_the_work_that_work_finds_is_done() {
        let done = AtomicU32::new(0);
        each(10u32, |depth, more| {
            done.fetch_add(1, Ordering::Relaxed);
            more.extend(std::iter::repeat_n(depth.saturating_sub(1), if depth > 0 { 2 } else { 0 }));
            Ok(())
        })
        .unwrap();
        assert_eq!(done.load(Ordering::Relaxed), 2047);
    }

    #[test]
    fn an_error_ends_it() {
        let result = each(0u32, |n, more| {
            anyhow::ensure!(n < 5, "five");
            more.push(n + 1);
            Ok(())
        });
        assert_eq!(result.unwrap_err().to_string(), "five");
    }
}

//! Work that finds more work, on a few threads: walking and cloning trees.

use std::panic::AssertUnwindSafe;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use anyhow::Result;
use common::signals;

/// More threads than cores, as a cold disk makes them wait.
const THREADS: usize = 4;

struct Queue<J> {
    waiting: Vec<J>,
    busy: usize,
    error: Option<anyhow::Error>,
}

/// Calls `work` for `first` and for every job it adds, in no promised order. Stops at the first error, or
/// when a signal asks us to.
pub fn each<J: Send>(first: J, work: impl Fn(J, &mut Vec<J>) -> Result<()> + Sync) -> Result<()> {
    let queue = Mutex::new(Queue { waiting: vec![first], busy: 0, error: None });
    let more = Condvar::new();
    std::thread::scope(|scope| {
        for _ in 0..THREADS {
            scope.spawn(|| worker(&queue, &more, &work));
        }
    });
    queue.into_inner().unwrap_or_else(PoisonError::into_inner).error.map_or(Ok(()), Err)
}

fn worker<J>(queue: &Mutex<Queue<J>>, more: &Condvar, work: &impl Fn(J, &mut Vec<J>) -> Result<()>) {
    let mut state = lock(queue);
    let mut found = Vec::new();
    loop {
        if state.error.is_some() || (state.waiting.is_empty() && state.busy == 0) {
            more.notify_all();
            return;
        }
        let Some(job) = state.waiting.pop() else {
            state = more.wait(state).unwrap_or_else(PoisonError::into_inner);
            continue;
        };
        state.busy += 1;
        drop(state);
        // A panic here would leave the other threads waiting for ever.
        let result = std::panic::catch_unwind(AssertUnwindSafe(|| {
            signals::check().and_then(|()| work(job, &mut found))
        }));
        let result = result.unwrap_or_else(|_| Err(anyhow::anyhow!("internal error in a thread")));
        state = lock(queue);
        state.busy -= 1;
        match result {
            Ok(()) => state.waiting.append(&mut found),
            // The first error is the one that is told.
            Err(error) => drop(state.error.get_or_insert(error)),
        }
        more.notify_all();
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

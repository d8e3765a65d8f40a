//! What a person sees of long work: a line that moves on a terminal, nothing elsewhere.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How often watchers are told.
const EVERY: Duration = Duration::from_millis(200);

/// One look at the work.
#[derive(Clone, Debug, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
pub struct Step {
    /// What is being done, for people.
    pub doing: String,
    /// Bytes sent so far in this step.
    pub done: u64,
    /// Bytes expected, 0 if not known.
    pub total: u64,
}

/// Told by the work, tells whoever watches.
pub struct Progress {
    watcher: Box<dyn Fn(&Step) + Send + Sync>,
    step: Mutex<(Step, Instant)>,
    done: AtomicU64,
}

impl std::fmt::Debug for Progress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Progress").field("step", &self.step).finish_non_exhaustive()
    }
}

impl Progress {
    /// Progress that `watcher` is told of, a few times a second.
    pub fn new(watcher: impl Fn(&Step) + Send + Sync + 'static) -> Progress {
        let step = Step { doing: String::new(), done: 0, total: 0 };
        Progress {
            watcher: Box::new(watcher),
            step: Mutex::new((step, Instant::now())),
            done: AtomicU64::new(0),
        }
    }

    /// Progress on the terminal, if stderr is one.
    pub fn terminal() -> Progress {
        let bar = terminal_bar();
        Progress::new(move |step| show(&bar, step))
    }

    /// A new step begins; `total` bytes are expected (0: not known).
    pub fn begin(&self, doing: impl Into<String>, total: u64) {
        let step = Step { doing: doing.into(), done: 0, total };
        self.done.store(0, Ordering::Relaxed);
        (self.watcher)(&step);
        *self.step.lock().unwrap_or_else(PoisonError::into_inner) = (step, Instant::now());
    }

    /// So many bytes of this step are done by now.
    pub fn reached(&self, done: u64) {
        self.done.store(done, Ordering::Relaxed);
        let mut state = self.step.lock().unwrap_or_else(PoisonError::into_inner);
        state.0.done = done;
        (self.watcher)(&state.0);
    }

    /// The same, when it is only now known how many are expected.
    pub fn reached_of(&self, done: u64, total: u64) {
        let other = {
            let state = self.step.lock().unwrap_or_else(PoisonError::into_inner);
            (state.0.total != total).then(|| state.0.doing.clone())
        };
        if let Some(doing) = other {
            self.begin(doing, total);
        }
        self.reached(done);
    }

    /// So many bytes more have been sent, or read.
    pub fn sent(&self, bytes: u64) {
        let done = self.done.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let mut state = self.step.lock().unwrap_or_else(PoisonError::into_inner);
        if state.1.elapsed() >= EVERY {
            state.1 = Instant::now();
            state.0.done = done;
            (self.watcher)(&state.0);
        }
    }
}

/// The bar; hidden unless stderr is a terminal.
pub fn terminal_bar() -> indicatif::ProgressBar {
    indicatif::ProgressBar::new(0)
}

/// Shows a step on `bar`.
pub fn show(bar: &indicatif::ProgressBar, step: &Step) {
    let template = match step.total {
        0 => "{msg}",
        _ => "{msg} {bytes} of about {total_bytes} {binary_bytes_per_sec} {eta} left {wide_bar}",
    };
    if step.done == 0
        && let Ok(style) = indicatif::ProgressStyle::with_template(template)
    {
        bar.set_style(style);
        bar.reset_eta();
    }
    bar.set_message(common::show::escaped(&step.doing).into_owned());
    bar.set_length(step.total.max(step.done));
    bar.set_position(step.done);
}

//! What a person sees of long work: a line that moves on a terminal, and elsewhere a plain line a minute.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use common::{figures, show};
use indicatif::{ProgressBar, ProgressStyle};

use crate::TOOL;

/// How often watchers are told.
const EVERY: Duration = Duration::from_millis(200);
/// How often a log is told.
const MINUTE: Duration = Duration::from_secs(60);

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

    /// Progress for whoever reads stderr.
    pub fn shown() -> Progress {
        let shown = Shown::begin();
        Progress::new(move |step| shown.step(step))
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

    /// The same of a step that another process does: it has begun by now, and only now is known how many are expected.
    pub fn reached_of(&self, doing: &str, done: u64, total: u64) {
        let other = {
            let state = self.step.lock().unwrap_or_else(PoisonError::into_inner);
            state.0.total != total || state.0.doing != doing
        };
        if other {
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

/// Where steps are shown: nothing is left of it when it is dropped.
#[derive(Debug)]
pub enum Shown {
    /// A terminal.
    Bar(ProgressBar),
    /// A log, which a thread tells as long as the sender lives.
    Log(Arc<Mutex<(Step, Instant)>>, #[expect(dead_code, reason = "its end is the news")] Sender<()>),
}

impl Shown {
    /// On stderr.
    pub fn begin() -> Shown {
        if show::moves() {
            let bar = ProgressBar::new(0);
            if let Ok(style) = ProgressStyle::with_template("{msg}") {
                bar.set_style(style);
            }
            bar.enable_steady_tick(Duration::from_secs(1));
            show::stands(true);
            return Shown::Bar(bar);
        }
        Shown::log(MINUTE, |line| show::line(format_args!("{line}")))
    }

    fn log(every: Duration, tell: impl Fn(&str) + Send + 'static) -> Shown {
        let step = Step { doing: String::new(), done: 0, total: 0 };
        let last = Arc::new(Mutex::new((step, Instant::now())));
        let (sender, ended) = channel();
        let told = Arc::clone(&last);
        std::thread::spawn(move || {
            while ended.recv_timeout(every) == Err(RecvTimeoutError::Timeout) {
                let (step, since) = told.lock().unwrap_or_else(PoisonError::into_inner).clone();
                if !step.doing.is_empty() {
                    tell(&sentence(&step, since.elapsed()));
                }
            }
        });
        Shown::Log(last, sender)
    }

    /// Shows a step.
    pub fn step(&self, step: &Step) {
        match self {
            Shown::Bar(bar) => draw(bar, step),
            Shown::Log(last, _) => {
                let mut last = last.lock().unwrap_or_else(PoisonError::into_inner);
                let since = if last.0.doing == step.doing && step.done > 0 { last.1 } else { Instant::now() };
                *last = (step.clone(), since);
            }
        }
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        if let Shown::Bar(bar) = self {
            bar.finish_and_clear();
            show::stands(false);
        }
    }
}

/// How far a step is that has lasted so long: its rate and the time left, as far as they are known.
fn sentence(step: &Step, lasted: Duration) -> String {
    let ms = u64::try_from(lasted.as_millis()).unwrap_or(u64::MAX).max(1);
    let rate = figures::rate(step.done, lasted);
    let left = |rest: u64| {
        let ms = u128::from(rest) * u128::from(ms) / u128::from(step.done.max(1));
        figures::time(Duration::from_millis(u64::try_from(ms).unwrap_or(u64::MAX)))
    };
    let far = match (step.done, step.total) {
        (0, _) => format!("for {}", figures::time(lasted)),
        (done, total) if total > done => {
            format!(
                "{} of about {}, {rate}, {} left",
                figures::bytes(done),
                figures::bytes(total),
                left(total - done)
            )
        }
        (done, _) => format!("{}, {rate}", figures::bytes(done)),
    };
    format!("{TOOL}: {}: {far}", step.doing)
}

fn draw(bar: &ProgressBar, step: &Step) {
    let template = match step.total {
        0 => "{msg} {elapsed}",
        _ => "{msg} {bytes} of about {total_bytes} {binary_bytes_per_sec} {eta} left {wide_bar}",
    };
    // Where a step begins, or is known only now to be how long.
    if step.done == 0
        && let Ok(style) = ProgressStyle::with_template(template)
    {
        bar.set_style(style);
        bar.reset();
    }
    bar.set_message(show::escaped(&step.doing).into_owned());
    bar.set_length(step.total.max(step.done));
    bar.set_position(step.done);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_far_it_is_says_rate_and_time_left() {
        let step = |done, total| Step { doing: "reading".into(), done, total };
        for (done, total, said) in [
            (0, 0, "link-sync: reading: for 1 min 0 s"),
            (0, 1 << 30, "link-sync: reading: for 1 min 0 s"),
            (
                60 << 20,
                240 << 20,
                "link-sync: reading: 60.0 MiB of about 240.0 MiB, 1.0 MiB/s, 3 min 0 s left",
            ),
            (60 << 20, 0, "link-sync: reading: 60.0 MiB, 1.0 MiB/s"),
        ] {
            assert_eq!(sentence(&step(done, total), MINUTE), said);
        }
    }

    #[test]
    fn a_log_is_told_again_and_again_also_of_a_step_that_says_nothing_and_no_more_afterwards() {
        let said = Arc::new(Mutex::new(Vec::new()));
        let told = Arc::clone(&said);
        let shown =
            Shown::log(Duration::from_millis(50), move |line| told.lock().unwrap().push(line.to_owned()));
        let progress = Progress::new(move |step| shown.step(step));
        progress.begin("making it durable", 0);
        std::thread::sleep(Duration::from_millis(400));
        progress.reached_of("reading", 5, 10);
        std::thread::sleep(Duration::from_millis(200));
        drop(progress);
        std::thread::sleep(Duration::from_millis(60));
        let count = said.lock().unwrap().len();
        std::thread::sleep(Duration::from_millis(200));
        let said = said.lock().unwrap();
        assert_eq!(said.len(), count);
        let of = |what: &str| said.iter().filter(|line| line.contains(what)).count();
        assert!(of("making it durable") >= 2 && of("reading: 5 B of about 10 B") >= 1, "{said:?}");
    }
}

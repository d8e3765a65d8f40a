//! How long `settle` may keep people out, and whether what is left to do fits into it.

use std::fmt;
use std::time::{Duration, Instant};

use anyhow::Result;
use common::fault::Fault;

/// Below this many bytes a pass says more about the start of rsync than about the way to the store.
const TELLING: u64 = 1 << 20;

/// In the chain of an error: there was not enough time. What was under way can go on afterwards.
#[derive(Debug)]
pub struct OverBudget;

impl fmt::Display for OverBudget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("over budget")
    }
}

impl std::error::Error for OverBudget {}

/// Whether `error` is for want of time.
pub fn is_over(error: &anyhow::Error) -> bool {
    error.downcast_ref::<OverBudget>().is_some()
}

/// The time there is; without an end unless one was set.
#[derive(Clone, Copy, Debug, Default)]
pub struct Budget {
    given: Duration,
    until: Option<Instant>,
}

impl Budget {
    /// From now on: at most `limit`, and not beyond `deadline` (RFC 3339).
    pub fn new(limit: Option<Duration>, deadline: Option<&str>) -> Budget {
        let deadline = deadline.and_then(|text| text.parse::<jiff::Timestamp>().ok());
        let left = deadline.map(|d| {
            // One that has passed leaves nothing.
            Duration::try_from(d.duration_since(jiff::Timestamp::now())).unwrap_or_default()
        });
        let given = limit.into_iter().chain(left).min();
        Budget { given: given.unwrap_or_default(), until: given.and_then(|g| Instant::now().checked_add(g)) }
    }

    /// What is left, if there is an end.
    pub fn left(&self) -> Option<Duration> {
        self.until.map(|u| u.saturating_duration_since(Instant::now()))
    }

    /// An error if the time is over.
    pub fn check(&self) -> Result<()> {
        match self.left() {
            Some(Duration::ZERO) => Err(self.over("the time is over".to_owned())),
            _ => Ok(()),
        }
    }

    /// An error if something that takes about `needed` does not fit any more; `what` names it.
    pub fn check_for(&self, needed: Duration, what: impl FnOnce() -> String) -> Result<()> {
        match self.left() {
            Some(left) if left <= needed => Err(self.over(format!(
                "{} would take about {}, {} are left",
                what(),
                seconds(needed),
                seconds(left)
            ))),
            _ => Ok(()),
        }
    }

    fn over(&self, why: String) -> anyhow::Error {
        let message = format!("settle does not fit into {}: {why}", seconds(self.given));
        anyhow::Error::from(OverBudget).context(Fault::failed(message).hint(
            "end maintenance, run `link-sync stage` again until its last pass was short, then settle again: the snapshot under way is kept",
        ))
    }
}

fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

/// How fast files have reached the store so far.
#[derive(Clone, Copy, Debug, Default)]
pub struct Rate {
    bytes: u64,
    time: Duration,
}

impl Rate {
    /// A pass over `bytes` of files took `time`.
    pub fn saw(&mut self, bytes: u64, time: Duration) {
        if bytes >= TELLING {
            self.bytes += bytes;
            self.time += time;
        }
    }

    /// What `bytes` will take: nothing as long as nothing is known. All that a pass costs is in the rate, so it
    /// is rather too slow than too fast.
    pub fn expects(&self, bytes: u64) -> Duration {
        if self.bytes == 0 || bytes < TELLING {
            return Duration::ZERO;
        }
        self.time.mul_f64(bytes as f64 / self.bytes as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_earlier_end_counts() {
        let hour = Duration::from_secs(3600);
        assert_eq!(Budget::new(None, None).left(), None);
        assert!(Budget::new(Some(hour), None).check().is_ok());
        assert!(is_over(&Budget::new(Some(hour), Some("2020-01-01T00:00:00Z")).check().unwrap_err()));
        assert!(is_over(
            &Budget::new(Some(Duration::ZERO), Some("2220-01-01T00:00:00Z")).check().unwrap_err()
        ));
        assert!(Budget::new(Some(hour), None).check_for(hour * 2, || "it".into()).is_err());
        assert!(Budget::new(None, None).check_for(hour, || "it".into()).is_ok());
    }

    #[test]
    fn small_passes_say_nothing_about_large_ones() {
        let mut rate = Rate::default();
        rate.saw(100, Duration::from_secs(1));
        assert_eq!(rate.expects(1 << 40), Duration::ZERO);
        rate.saw(10 << 20, Duration::from_secs(2));
        assert_eq!(rate.expects(50 << 20), Duration::from_secs(10));
        assert_eq!(rate.expects(5), Duration::ZERO);
    }
}

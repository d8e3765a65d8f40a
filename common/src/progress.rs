//! Whether something gets on with its work. A limit of time alone ends what is only slow; a limit of progress ends what hangs.
//!
//! One watch for every kind of progress: bytes on the wire to S3, as sshfs-mount counts them; requests a loop device has
//! finished, flushes among them; and what the processes of a tree read, write and work. Each is read from a file that
//! answers whatever hangs. A few bytes and a little work are no progress: ssh asks whether the other side lives, the far end
//! of a copy says that it does, and whatever waits looks up now and then.

use std::borrow::Borrow;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::processes::Process;
use crate::{durable, mutant};

/// Bytes that are progress: at once, and for each second.
const MOVED: (u64, u64) = (8192, 256);

/// The share of the time that a process works, of so many, that is progress.
const WORKED: u64 = 50;

/// What may move.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// Where sshfs-mount counts what has moved.
    pub wire: Option<PathBuf>,
    /// The loop device: `loop0`.
    pub device: Option<String>,
    /// The process whose tree works.
    pub tree: Option<u32>,
}

/// How far things have got.
#[derive(Clone, Copy, Debug)]
pub struct Work {
    /// On the wire, both ways; `None` if nobody counts.
    pub wire: Option<u64>,
    /// Requests that the device has begun and not finished.
    pub in_flight: u64,
    finished: u64,
    moved: u64,
    worked: u64,
    at: Instant,
}

impl Sources {
    /// Looks.
    pub fn look(&self) -> Work {
        let wire = self.wire.as_deref().and_then(|path| durable::read(path).ok()?);
        let stat = self.device.as_deref().map(|name| Path::new("/sys/block").join(name).join("stat"));
        let stat = stat.and_then(|path| std::fs::read_to_string(path).ok()).unwrap_or_default();
        let (finished, in_flight) = requests(&stat);
        let (moved, worked) = activity(self.tree.map(Process::tree).unwrap_or_default());
        Work {
            wire: wire.map(|text| bytes_of(&String::from_utf8_lossy(&text))),
            in_flight,
            finished,
            moved,
            worked,
            at: Instant::now(),
        }
    }
}

impl Work {
    /// Below the container, something has moved since `then`.
    pub fn is_beyond_below(&self, then: &Work) -> bool {
        let wire = self.wire.zip(then.wire).is_some_and(|(now, before)| self.is_much(now, before, then));
        self.finished != then.finished || wire
    }

    /// Anything has.
    pub fn is_beyond(&self, then: &Work) -> bool {
        let worked = u64::try_from(self.since(then).as_millis()).unwrap_or(u64::MAX) / WORKED;
        self.is_beyond_below(then)
            || self.is_much(self.moved, then.moved, then)
            || self.worked.abs_diff(then.worked) > worked.max(20)
    }

    /// Whether so many more bytes are progress. Fewer than before: a process that has ended took its count along.
    fn is_much(&self, now: u64, before: u64, then: &Work) -> bool {
        if mutant::active("signs-of-life-are-progress") {
            return now != before;
        }
        now.abs_diff(before) >= MOVED.0 + MOVED.1 * self.since(then).as_secs()
    }

    /// How long ago that was.
    pub fn age(&self) -> Duration {
        self.at.elapsed()
    }

    fn since(&self, then: &Work) -> Duration {
        self.at.saturating_duration_since(then.at)
    }
}

/// Since when nothing has moved.
#[derive(Debug)]
pub struct Quiet {
    sources: Sources,
    then: Work,
}

impl Quiet {
    /// From now on.
    pub fn begin(sources: Sources) -> Quiet {
        Quiet { then: sources.look(), sources }
    }

    /// Looks, and says for how long nothing has moved.
    pub fn time(&mut self) -> Duration {
        let now = self.sources.look();
        if now.is_beyond(&self.then) {
            self.then = now;
        }
        self.then.age()
    }
}

/// Bytes that `processes` have read and written, and the milliseconds they have worked; what cannot be told of a process of
/// another account is left out.
pub(crate) fn activity<P: Borrow<Process>>(processes: impl IntoIterator<Item = P>) -> (u64, u64) {
    let (mut moved, mut worked) = (0u64, 0u64);
    for process in processes {
        let process = process.borrow();
        worked += process.worked_ms;
        let io = Path::new("/proc").join(process.pid.to_string()).join("io");
        moved = std::fs::read_to_string(io)
            .unwrap_or_default()
            .lines()
            .filter_map(|l| l.strip_prefix("rchar: ").or_else(|| l.strip_prefix("wchar: ")))
            .filter_map(|n| n.trim().parse::<u64>().ok())
            .fold(moved, u64::wrapping_add);
    }
    (moved, worked)
}

/// Finished and begun requests, from `/sys/block/loopN/stat`.
fn requests(stat: &str) -> (u64, u64) {
    let fields: Vec<u64> = stat.split_whitespace().filter_map(|n| n.parse().ok()).collect();
    let field = |n: usize| fields.get(n).copied().unwrap_or(0);
    // Requests finished of each kind: reads, writes, discards, flushes.
    ([0, 4, 11, 15].map(field).iter().sum(), field(8))
}

/// The sum of what sshfs-mount counts: one line a connection, of process, bytes sent and bytes received.
fn bytes_of(text: &str) -> u64 {
    let numbers = |line: &str| -> u64 {
        line.split_whitespace().skip(1).filter_map(|n| n.parse::<u64>().ok()).fold(0, u64::saturating_add)
    };
    text.lines().map(numbers).fold(0, u64::saturating_add)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::Cmd;

    #[test]
    fn counters_are_read() {
        let stat = "  10 0 80 5  20 0 160 7  3 9 12  1 0 8 0  4 2\n";
        assert_eq!(requests(stat), (35, 3));
        assert_eq!(requests(""), (0, 0));
        assert_eq!(bytes_of("  17  100000  500\n  18  1 2\n"), 100_503);
    }

    #[test]
    fn a_few_bytes_that_ask_whether_one_lives_are_no_progress() {
        let at = Instant::now();
        let then = Work { wire: Some(1_000_000), in_flight: 0, finished: 7, moved: 1000, worked: 100, at };
        let later = Work { at: at + Duration::from_secs(100), ..then };
        assert!(!later.is_beyond(&then));
        for nothing in [
            Work { wire: Some(1_020_000), ..later },
            Work { wire: None, ..later },
            Work { moved: 21_000, ..later },
            Work { worked: 1100, ..later },
            Work { in_flight: 5, ..later },
        ] {
            assert!(!nothing.is_beyond(&then), "{nothing:?}");
        }
        for (something, below) in [
            (Work { wire: Some(1_040_000), ..later }, true),
            (Work { finished: 8, ..later }, true),
            (Work { moved: 40_000, ..later }, false),
            (Work { worked: 5000, ..later }, false),
        ] {
            assert!(something.is_beyond(&then) && something.is_beyond_below(&then) == below, "{something:?}");
        }
    }

    #[test]
    fn a_tree_that_works_is_not_quiet_and_one_that_is_stopped_is() {
        let script = "while :; do cat /proc/kallsyms >/dev/null; done";
        let mut child = Cmd::new("sh").args(["-c", script]).spawn_piped().unwrap();
        let mut quiet = Quiet::begin(Sources { tree: Some(child.id()), ..Sources::default() });
        let wait = Duration::from_millis(300);
        let mut longest = Duration::ZERO;
        for _ in 0..5 {
            std::thread::sleep(wait);
            longest = longest.max(quiet.time());
        }
        assert!(longest < wait * 4, "{longest:?}");
        child.signal(nix::sys::signal::Signal::SIGSTOP);
        std::thread::sleep(wait);
        quiet.time();
        std::thread::sleep(wait * 3);
        assert!(quiet.time() >= wait * 3);
        child.end();
    }
}

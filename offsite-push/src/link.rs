//! Whether what is below the container still gets on with its work, looked at all the time while a long step needs it.
//!
//! A link that is cut ends by itself (ssh notices). A server that keeps the connection but no longer serves files is
//! noticed by nobody, and what waits for it waits for ever. So: when a question to S3 has no answer, or requests of
//! the loop device wait, and in all that time neither bytes moved on the wire nor the loop device finished anything,
//! it is silent. An answer that is late proves nothing: on a slow link a question waits behind all that is on its way.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use common::fuse::{Health, probe};

/// Between two questions.
const EVERY: Duration = Duration::from_secs(5);

/// Between two looks at the counters.
const LOOK: Duration = Duration::from_millis(500);

/// Bytes on the wire that are progress, at once and each second; less is ssh asking whether the other side is alive.
const MOVED: (u64, u64) = (8192, 256);

/// What is watched.
#[derive(Clone, Debug)]
pub(crate) struct Below {
    /// Where S3's folder is mounted.
    pub(crate) target: Option<PathBuf>,
    /// Where sshfs-mount counts what has moved.
    pub(crate) wire: PathBuf,
    /// The container's loop device, once it is there.
    pub(crate) device: Option<PathBuf>,
}

#[derive(Debug, Default)]
struct Flags {
    silent: AtomicBool,
    stop: AtomicBool,
    /// A question is open.
    asking: AtomicBool,
    answers: AtomicU64,
}

/// Watches until it is dropped.
#[derive(Debug)]
pub(crate) struct Watch(Arc<Flags>);

impl Watch {
    /// Watches `below`; silent is what has not moved for `patience`.
    pub(crate) fn start(below: Below, patience: Duration) -> Watch {
        let flags = Arc::new(Flags::default());
        // Neither is joined: a question without an answer must not hold up the clean-up. Its child dies with the thread.
        if let Some(target) = below.target.clone() {
            let flags = Arc::clone(&flags);
            std::thread::spawn(move || ask(&flags, &target, patience));
        }
        let shared = Arc::clone(&flags);
        std::thread::spawn(move || look(&shared, &below, patience));
        Watch(flags)
    }

    /// Whether it has fallen silent.
    pub(crate) fn is_silent(&self) -> bool {
        self.0.silent.load(Ordering::SeqCst)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.0.stop.store(true, Ordering::SeqCst);
    }
}

fn ask(flags: &Flags, target: &Path, patience: Duration) {
    while !flags.stop.load(Ordering::SeqCst) {
        flags.asking.store(true, Ordering::SeqCst);
        if !matches!(probe(target, patience), Ok(Health::Hung)) {
            flags.answers.fetch_add(1, Ordering::SeqCst);
            flags.asking.store(false, Ordering::SeqCst);
            std::thread::park_timeout(EVERY.min(patience));
        }
    }
}

fn look(flags: &Flags, below: &Below, patience: Duration) {
    let mut quiet: Option<Quiet> = None;
    while !flags.stop.load(Ordering::SeqCst) {
        let now = Work::of(flags, below);
        let begun = match quiet.take() {
            Some(begun) if now.waits_since(&begun) => begun,
            _ => Quiet { since: Instant::now(), work: now },
        };
        if begun.since.elapsed() >= patience {
            flags.silent.store(true, Ordering::SeqCst);
            return;
        }
        quiet = Some(begun);
        std::thread::sleep(LOOK.min(patience));
    }
}

/// Since when nothing has moved, and how far things were then.
struct Quiet {
    since: Instant,
    work: Work,
}

/// How far things have got.
#[derive(Clone, Copy, Debug, Default)]
struct Work {
    asking: bool,
    answers: u64,
    /// What the loop device has finished: reads, writes, flushes and their like.
    finished: u64,
    /// What it has begun.
    in_flight: u64,
    /// On the wire, both ways.
    wire: u64,
    at: Option<Instant>,
}

impl Work {
    fn of(flags: &Flags, below: &Below) -> Work {
        let name = below.device.as_deref().and_then(Path::file_name);
        let stat = name.map(|name| Path::new("/sys/block").join(name).join("stat"));
        let stat = stat.and_then(|path| std::fs::read_to_string(path).ok()).unwrap_or_default();
        let (finished, in_flight) = requests(&stat);
        let wire = std::fs::read_to_string(&below.wire).map_or(0, |text| bytes_of(&text));
        Work {
            asking: flags.asking.load(Ordering::SeqCst),
            answers: flags.answers.load(Ordering::SeqCst),
            finished,
            in_flight,
            wire,
            at: Some(Instant::now()),
        }
    }

    /// Something waits, and nothing has moved since `begun`.
    fn waits_since(&self, begun: &Quiet) -> bool {
        let seconds = self.at.map_or(0, |at| at.saturating_duration_since(begun.since).as_secs());
        let moved = MOVED.0 + MOVED.1 * seconds;
        let then = &begun.work;
        let asked_in_vain = self.asking && self.answers == then.answers;
        (self.in_flight > 0 || asked_in_vain)
            && self.finished == then.finished
            && self.wire < then.wire.saturating_add(moved)
    }
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

    #[test]
    fn counters_are_read() {
        let stat = "  10 0 80 5  20 0 160 7  3 9 12  1 0 8 0  4 2\n";
        assert_eq!(requests(stat), (35, 3));
        assert_eq!(requests(""), (0, 0));
        assert_eq!(bytes_of("  17  100000  500\n  18  1 2\n"), 100_503);
    }

    #[test]
    fn silence_is_when_something_waits_and_nothing_moves() {
        let since = Instant::now();
        let then = Work { answers: 5, finished: 100, wire: 1_000_000, ..Work::default() };
        let now = Work { at: Some(since + Duration::from_secs(100)), ..then };
        let waits = |now: Work| now.waits_since(&Quiet { since, work: then });
        // link-sync compares: nothing is wanted from S3, and it answers.
        assert!(!waits(now));
        assert!(!waits(Work { asking: true, answers: 6, ..now }));
        assert!(waits(Work { asking: true, ..now }));
        assert!(waits(Work { in_flight: 1, answers: 9, ..now }), "an answer is no proof that a disk works");
        // A few bytes that ask whether the other side is alive are no progress.
        assert!(waits(Work { asking: true, wire: 1_020_000, ..now }));
        assert!(!waits(Work { asking: true, wire: 1_040_000, ..now }), "slow, but it moves");
        assert!(!waits(Work { in_flight: 3, asking: true, finished: 101, ..now }));
    }

    #[test]
    fn a_device_that_does_nothing_and_has_nothing_to_do_is_not_silent() {
        let below = Below { target: None, wire: "/nonexistent".into(), device: Some("/dev/loop0".into()) };
        let watch = Watch::start(below, Duration::from_millis(50));
        std::thread::sleep(Duration::from_millis(300));
        assert!(!watch.is_silent());
    }
}

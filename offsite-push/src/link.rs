//! Whether a step, and what is below the container, still get on with their work.
//! Looked at all the time while a long step needs it.
//!
//! A link that is cut ends by itself (ssh notices). A server that keeps the connection but no longer serves files is
//! noticed by nobody, and what waits for it waits for ever. So: when a question to S3 has no answer, or requests of
//! the loop device wait, and in all that time neither bytes moved on the wire nor the loop device finished anything,
//! it is silent. An answer that is late proves nothing: on a slow link a question waits behind all that is on its way.
//! And when nothing of any kind moves ([`common::progress`]), whatever S3 answers, the step itself hangs: on the disk of the
//! store, or because somebody stopped what reads it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use common::fuse::{Health, probe};
use common::mutant;
use common::progress::{Sources, Work};

/// Between two questions.
const EVERY: Duration = Duration::from_secs(5);

/// Between two looks at the counters.
const LOOK: Duration = Duration::from_millis(500);

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

impl Below {
    /// What may move, the tree of process `tree` with it.
    fn sources(&self, tree: Option<u32>) -> Sources {
        let device = self.device.as_deref().and_then(Path::file_name);
        let device = device.map(|name| name.to_string_lossy().into_owned());
        Sources { wire: Some(self.wire.clone()), device, tree }
    }
}

/// Where nothing moves any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Silence {
    /// S3 does not answer.
    Far,
    /// S3 may answer, but the step gets nowhere.
    Here,
}

#[derive(Debug, Default)]
struct Flags {
    /// 1: far, 2: here.
    silent: AtomicU8,
    stop: AtomicBool,
    /// A question is open.
    asking: AtomicBool,
    answers: AtomicU64,
    /// The step's process; 0 between steps.
    step: AtomicU32,
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

    /// Now the step of this process is under way; 0 when it is over.
    pub(crate) fn step(&self, pid: u32) {
        self.0.step.store(pid, Ordering::SeqCst);
    }

    /// Whether it has fallen silent, and where.
    pub(crate) fn silence(&self) -> Option<Silence> {
        match self.0.silent.load(Ordering::SeqCst) {
            0 => None,
            1 => Some(Silence::Far),
            _ => Some(Silence::Here),
        }
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
    let (mut far, mut here): (Option<Seen>, Option<Seen>) = (None, None);
    while !flags.stop.load(Ordering::SeqCst) {
        let now = Seen::now(flags, below);
        far = Some(far.filter(|then| now.waits_since(then)).unwrap_or(now));
        here = Some(here.filter(|then| now.rests_since(then)).unwrap_or(now));
        let over = |seen: Option<Seen>| seen.is_some_and(|s| s.work.age() >= patience);
        let silent = if over(far) { 1 } else { 2 * u8::from(over(here)) };
        if silent > 0 {
            return flags.silent.store(silent, Ordering::SeqCst);
        }
        std::thread::sleep(LOOK.min(patience));
    }
}

/// How far things have got.
#[derive(Clone, Copy, Debug)]
struct Seen {
    work: Work,
    asking: bool,
    answers: u64,
    step: u32,
}

impl Seen {
    fn now(flags: &Flags, below: &Below) -> Seen {
        let step = flags.step.load(Ordering::SeqCst);
        Seen {
            work: below.sources(Some(step).filter(|pid| *pid > 0)).look(),
            asking: flags.asking.load(Ordering::SeqCst),
            answers: flags.answers.load(Ordering::SeqCst),
            step,
        }
    }

    /// Something waits for S3, and nothing has moved since `then`.
    fn waits_since(&self, then: &Seen) -> bool {
        let asked_in_vain = self.asking && self.answers == then.answers;
        (self.work.in_flight > 0 || asked_in_vain) && !self.work.is_beyond_below(&then.work)
    }

    /// A step is under way, and nothing of any kind has moved since `then`.
    fn rests_since(&self, then: &Seen) -> bool {
        let same = self.step > 0 && self.step == then.step && !mutant::active("a-step-may-rest-for-ever");
        same && !self.work.is_beyond(&then.work)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use common::run::Cmd;

    #[test]
    fn silence_is_when_something_waits_and_nothing_moves() {
        let dir = tempfile::tempdir().unwrap();
        let wire = dir.path().join("wire");
        let below = Below { target: None, wire: wire.clone(), device: None };
        let flags = Flags::default();
        std::fs::write(&wire, "1 1000000 0\n").unwrap();
        let then = Seen { answers: 5, ..Seen::now(&flags, &below) };
        let waits = |now: Seen| now.waits_since(&then);
        // link-sync compares: nothing is wanted from S3, and it answers.
        assert!(!waits(then));
        assert!(!waits(Seen { asking: true, answers: 6, ..then }));
        assert!(waits(Seen { asking: true, ..then }));
        let mut device = then;
        device.work.in_flight = 1;
        assert!(waits(Seen { answers: 9, ..device }), "an answer is no proof that a disk works");
        // A few bytes that ask whether the other side is alive are no progress.
        std::fs::write(&wire, "1 1004000 0\n").unwrap();
        assert!(waits(Seen { asking: true, answers: 5, ..Seen::now(&flags, &below) }));
        std::fs::write(&wire, "1 1040000 0\n").unwrap();
        assert!(!waits(Seen { asking: true, answers: 5, ..Seen::now(&flags, &below) }), "slow, but it moves");
    }

    #[test]
    fn a_device_that_does_nothing_and_has_nothing_to_do_is_not_silent() {
        let below = Below { target: None, wire: "/nonexistent".into(), device: Some("/dev/loop0".into()) };
        let watch = Watch::start(below, Duration::from_millis(50));
        std::thread::sleep(Duration::from_millis(300));
        assert_eq!(watch.silence(), None);
    }

    #[test]
    fn a_step_that_gets_nowhere_is_told_from_one_that_works() {
        let below = Below { target: None, wire: "/nonexistent".into(), device: None };
        let watch = Watch::start(below, Duration::from_secs(3));
        let script = "while :; do cat /proc/kallsyms >/dev/null; done";
        let mut child = Cmd::new("sh").args(["-c", script]).spawn_piped().unwrap();
        watch.step(child.id());
        std::thread::sleep(Duration::from_secs(6));
        assert_eq!(watch.silence(), None);
        child.signal(nix::sys::signal::Signal::SIGSTOP);
        let begin = std::time::Instant::now();
        while watch.silence().is_none() && begin.elapsed() < Duration::from_secs(20) {
            std::thread::sleep(Duration::from_millis(100));
        }
        assert_eq!(watch.silence(), Some(Silence::Here));
        assert!(begin.elapsed() >= Duration::from_secs(2));
        child.end();
    }
}

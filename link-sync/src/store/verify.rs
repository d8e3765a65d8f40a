//! Checking snapshots against their manifests: every name and attribute of each, and each distinct inode's bytes
//! once, however many dates share it.
//!
//! Reads only. A snapshot's lock is shared while its names are compared, so that it is not removed under our hands; its files
//! are read hours later, maybe, and it may be removed by then: nobody's prune waits for us, and no descriptor is kept for each
//! date. What a removed date shared with others is then looked for, and read, in those. A file is read from
//! the disk as far as the kernel allows: what the page cache holds of it is dropped first (what is dirty or mapped
//! elsewhere cannot be).

use std::cell::Cell;
use std::collections::{BTreeSet, HashSet};
use std::fs::File;
use std::hash::{DefaultHasher, Hasher as _};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context as _, Result};
use common::fault::{Kind as FaultKind, kind_of};
use common::lock::Lock;
use common::mutant;
use nix::errno::Errno;
use nix::fcntl::AtFlags;
use nix::sys::stat::{fstat, fstatat};
use serde::{Deserialize, Serialize};

use super::findings::{Finding, Found, KEPT, Kind, Outcome};
use super::manifest::{self, MTREE, PART, SUMS};
use super::meta::SnapshotMeta;
use super::scan::{self, Expected, Line, Step};
use super::sums::{self, Lines};
use super::{META, Store, mtree, open_dir, open_file, split};
use crate::parallel;
use crate::tree::join;
use crate::walk::show;

/// How many files a thread checks before the others may have the rest.
const PIECE: usize = 16;

/// What is to be checked.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Options {
    /// A date, `latest`, or `all`.
    pub date: String,
    /// Percent of the distinct inodes whose bytes are read; names and attributes are always checked.
    pub sample: f64,
    /// Which ones: the same seed chooses the same.
    pub seed: u64,
    /// Findings that are listed; all are counted.
    pub limit: usize,
}

/// An opened snapshot that stays as long as this lives.
#[derive(Debug)]
pub struct Held {
    /// Its description.
    pub meta: SnapshotMeta,
    /// Its folder.
    pub top: File,
    /// Shared, so that no prune removes it.
    pub(super) _lock: Option<Lock>,
}

/// Opens a snapshot of `store` (opened as `dir`) and shares its lock.
pub fn hold(store: &Store, dir: &File, date: &str) -> Result<Held> {
    let path = store.path.join(date);
    let what = || format!("cannot open {}", path.display());
    let lock = open_file(dir, &format!("{date}/{META}/lock")).with_context(what)?;
    let lock = Lock::shared_file(lock, &path.join(META).join("lock"), &format!("the snapshot {date}"))?;
    let (meta, _) = SnapshotMeta::load(dir, date).with_context(what)?;
    let top = open_dir(dir, date.as_bytes()).with_context(what)?;
    Ok(Held { meta: SnapshotMeta { date: date.to_owned(), ..meta }, top, _lock: Some(lock) })
}

/// A snapshot whose names were compared.
struct Dated {
    date: String,
    /// Its folder's device and inode.
    folder: (u64, u64),
}

impl Dated {
    fn of(held: &Held) -> Result<Dated> {
        let stat = fstat(&held.top).context("cannot look at a snapshot's folder")?;
        Ok(Dated { date: held.meta.date.clone(), folder: (stat.st_dev, stat.st_ino) })
    }

    /// It still has its name in `store`: a prune takes that away before anything else.
    fn is_there(&self, store: &File) -> bool {
        let stat = fstatat(store, self.date.as_str(), AtFlags::AT_SYMLINK_NOFOLLOW);
        stat.is_ok_and(|s| (s.st_dev, s.st_ino) == self.folder)
    }
}

/// An inode to be looked at.
struct Job {
    ino: u64,
    /// With the inode: what makes it the same in all dates.
    key: u64,
    line: Line,
    /// Its bytes, too.
    read: bool,
    /// Where it was seen first, among the snapshots compared.
    date: usize,
}

impl Job {
    /// What is wrong with it, in the snapshot `date`.
    fn examine(
        &self,
        store: &File,
        date: &str,
        read: impl FnMut(u64) -> Result<()>,
    ) -> Result<Vec<(Kind, String)>> {
        let (parent, name) = split(&self.line.path);
        let looked = mtree::look(&open_dir(store, &join(date.as_bytes(), parent))?, name)?;
        let mut wrong = compare(&self.line, &looked.body);
        if let Some(mut file) = looked.file
            && self.read
            && wrong.iter().all(|w| w.0 == Kind::Attributes)
        {
            let sum = scan::hash(&mut file, read)?;
            if self.line.sum != Some(sum) {
                wrong.push((Kind::Content, format!("sha256={}", sums::hex(&sum))));
            }
        }
        Ok(wrong)
    }
}

/// Whether the snapshot `top` was made by `copy`, which leaves the manifests where they are: there is neither of them, and
/// the list that a copy has instead. One that has lost a manifest is no copy.
pub(super) fn is_copy(top: &File) -> bool {
    let is =
        |name: &str| fstatat(top, format!("{META}/{name}").as_str(), AtFlags::AT_SYMLINK_NOFOLLOW).map(drop);
    is(PART) == Ok(()) && [SUMS, MTREE].iter().all(|name| is(name) == Err(Errno::ENOENT))
}

/// A verification under way.
struct Verify<'a> {
    store: &'a Store,
    dir: &'a File,
    /// The store whose copy this is; its manifests count.
    authority: Option<(&'a Store, File)>,
    options: &'a Options,
    dates: Vec<Dated>,
    /// The one whose names are compared.
    at: usize,
    /// Inodes by what is expected of them: those that were seen before.
    known: HashSet<(u64, u64)>,
    jobs: Vec<Job>,
    /// To be read, in all.
    bytes: u64,
    found: Found,
    outcome: Outcome,
}

/// Verifies. With `against`, `store` is a copy of that store, whose manifests count. `told` hears how many bytes of how
/// many are read.
pub fn verify(
    store: &Store,
    against: Option<&Store>,
    options: &Options,
    told: &(impl Fn(u64, u64) -> Result<()> + Sync),
) -> Result<Outcome> {
    let dir = store.check()?;
    let (snapshots, damaged) = store.snapshots()?;
    let wanted: Vec<String> = match options.date.as_str() {
        "all" => snapshots.iter().map(|s| s.date.clone()).collect(),
        date => vec![store.find(date)?.date],
    };
    let authority = against.map(|store| Ok::<_, anyhow::Error>((store, store.check()?))).transpose()?;
    let mut verify = Verify {
        store,
        dir: &dir,
        authority,
        options,
        dates: Vec::new(),
        at: 0,
        known: HashSet::new(),
        jobs: Vec::new(),
        bytes: 0,
        found: Found::new(KEPT),
        outcome: Outcome::default(),
    };
    if options.date == "all" {
        for date in damaged {
            let why = format!("{META}/snapshot.json cannot be read");
            verify.add(Kind::Snapshot, None, &Line::default(), why, (&date, &[]));
        }
    }
    for date in &wanted {
        verify.snapshot(date)?;
    }
    verify.contents(told)?;
    verify.places(snapshots.iter().map(|s| s.date.as_str()))?;
    verify.finish()
}

impl Verify<'_> {
    /// Compares the names and attributes of one snapshot.
    fn snapshot(&mut self, date: &str) -> Result<()> {
        let held = match hold(self.store, self.dir, date) {
            Ok(held) => held,
            Err(e) if kind_of(&e) == FaultKind::Busy => {
                self.outcome.skipped.push(date.to_owned());
                return Ok(());
            }
            // Removed since it was listed.
            Err(_) if fstatat(self.dir, date, AtFlags::AT_SYMLINK_NOFOLLOW).is_err() => {
                self.outcome.skipped.push(date.to_owned());
                return Ok(());
            }
            Err(e) => {
                self.add(Kind::Snapshot, None, &Line::default(), format!("{e:#}"), (date, &[]));
                return Ok(());
            }
        };
        self.at = self.dates.len();
        self.dates.push(Dated::of(&held)?);
        self.outcome.dates.push(date.to_owned());
        if !self.names(&held)? {
            self.outcome.weaker.push(date.to_owned());
        }
        Ok(())
    }

    /// Compares the names and attributes of the snapshot, and notes which files have to be read. `false` if there is no whole
    /// manifest to compare with: of a copy that stands alone, only what it says of what was new in it.
    fn names(&mut self, held: &Held) -> Result<bool> {
        let date = &held.meta.date;
        let Some((store, dir)) = &self.authority else {
            return match &held.meta.manifest {
                Some(_) if is_copy(&held.top) => self.part(date, &held.top).map(|()| false),
                Some(_) => self.compare(date, &held.top, &held.top, &held.meta).map(|()| true),
                None => Ok(false),
            };
        };
        match hold(store, dir, date) {
            Ok(there) if there.meta.id == held.meta.id && there.meta.manifest.is_some() => {
                self.compare(date, &held.top, &there.top, &there.meta).map(|()| true)
            }
            _ => self.part(date, &held.top).map(|()| false),
        }
    }

    /// One snapshot against the manifests in `described`.
    fn compare(&mut self, date: &str, top: &File, described: &File, meta: &SnapshotMeta) -> Result<()> {
        let Some(manifest) = &meta.manifest else { return Ok(()) };
        let mut damaged = false;
        for (name, digest) in [(SUMS, &manifest.sha256sums), (MTREE, &manifest.mtree)] {
            let Err(why) = manifest::check_one(described, name, digest) else { continue };
            common::signals::check()?;
            let path = format!("{META}/{name}");
            let place = (date, path.as_bytes());
            self.add(Kind::Manifest, None, &Line::default(), format!("{why:#}"), place);
            damaged = true;
        }
        if damaged {
            return Ok(());
        }
        let mut expected = Expected::open(described)?;
        let mut next = expected.next()?;
        let mut unread = Vec::new();
        scan::in_order(
            top,
            |step| {
                while let Some(line) = next.take_if(|line| *line.path < *step.path) {
                    self.missing(date, &line);
                    next = expected.next()?;
                }
                self.outcome.paths += 1;
                match next.take_if(|line| line.path == step.path) {
                    Some(line) => {
                        next = expected.next()?;
                        self.one(date, step, line)
                    }
                    None => {
                        let line = Line { path: step.path.to_vec(), ..Line::default() };
                        let what = "it is not in the manifest".into();
                        self.add(Kind::Extra, None, &line, what, (date, step.path));
                        Ok(false)
                    }
                }
            },
            |path, error| unread.push((path.to_vec(), format!("{error:#}"))),
        )?;
        while let Some(line) = next {
            self.missing(date, &line);
            next = expected.next()?;
        }
        for (path, why) in unread {
            let line = Line { path: path.clone(), ..Line::default() };
            self.add(Kind::Unreadable, None, &line, why, (date, &path));
        }
        Ok(())
    }

    fn missing(&mut self, date: &str, line: &Line) {
        self.add(Kind::Missing, None, line, "it is not there".into(), (date, &line.path));
    }

    /// A path that is where it belongs. Says whether to look into it. Folders are looked at now, the rest later, by
    /// inode number.
    fn one(&mut self, date: &str, step: &Step, line: Line) -> Result<bool> {
        let is_dir = line.kind() == b"dir";
        if !is_dir && !step.is_dir {
            // A shared inode was looked at in the date before.
            self.job(step.ino, digest(&(&line.body, &line.sum)), line);
            return Ok(true);
        }
        let wrong = match mtree::look(step.parent, step.name) {
            Ok(looked) => compare(&line, &looked.body),
            Err(e) => vec![(Kind::Unreadable, format!("{e:#}"))],
        };
        let good = wrong.iter().all(|w| w.0 == Kind::Attributes);
        for (kind, found) in wrong {
            self.add(kind, None, &line, found, (date, step.path));
        }
        Ok(good)
    }

    fn job(&mut self, ino: u64, key: u64, line: Line) {
        if !self.known.insert((ino, key)) {
            return;
        }
        self.outcome.inodes += 1;
        let read = line.sum.is_some() && self.sampled(ino);
        self.bytes += if read { line.size() } else { 0 };
        self.jobs.push(Job { ino, key, line, read, date: self.at });
    }

    /// A copy of a snapshot the store no longer has: what it brought itself, by its own word.
    fn part(&mut self, date: &str, top: &File) -> Result<()> {
        let Ok(file) = open_file(top, &format!("{META}/{PART}")) else { return Ok(()) };
        let mut lines = Lines::new(file);
        while let Some(line) = lines.next()? {
            common::signals::check()?;
            let Some((sum, path)) = sums::parse(line) else {
                let path = format!("{META}/{PART}");
                let place = (date, path.as_bytes());
                self.add(Kind::Manifest, None, &Line::default(), "a line is damaged".into(), place);
                return Ok(());
            };
            let line = Line { path: path.into_owned(), body: Vec::new(), sum: Some(sum) };
            self.outcome.paths += 1;
            let (parent, name) = split(&line.path);
            let looked = open_dir(top, parent).map_err(Into::into).and_then(|dir| mtree::look(&dir, name));
            match looked {
                Ok(looked) if looked.file.is_some() => {
                    self.job(looked.stat.st_ino, digest(&sum), line);
                }
                _ => self.missing(date, &line),
            }
        }
        Ok(())
    }

    /// Whether the bytes of this inode are to be read.
    fn sampled(&self, ino: u64) -> bool {
        // splitmix64: inode numbers are anything but random.
        let mut x = self.options.seed.wrapping_add(ino.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^= x >> 31;
        #[expect(clippy::cast_precision_loss, reason = "a share of all numbers")]
        let share = x as f64 / u64::MAX as f64;
        share < self.options.sample / 100.0 || self.options.sample >= 100.0
    }

    /// Looks at each distinct inode, and reads what has to be read. What a date that was removed meanwhile shared with
    /// others is done in those: as often as dates are removed, and so at most once for each.
    fn contents(&mut self, told: &(impl Fn(u64, u64) -> Result<()> + Sync)) -> Result<()> {
        let mut begin = 0;
        loop {
            let lost = self.read(begin, told)?;
            if lost.is_empty() || mutant::active("what-a-removed-date-shared-is-read") {
                return Ok(());
            }
            begin = self.jobs.len();
            for at in lost {
                let job = &self.jobs[at];
                self.known.remove(&(job.ino, job.key));
                self.outcome.inodes -= 1;
                self.bytes -= if job.read { job.line.size() } else { 0 };
            }
            // The names of these were counted.
            let paths = self.outcome.paths;
            for at in 0..self.dates.len() {
                if !self.dates[at].is_there(self.dir) {
                    continue;
                }
                if let Ok(held) = hold(self.store, self.dir, &self.dates[at].date) {
                    self.at = at;
                    self.names(&held)?;
                }
            }
            self.outcome.paths = paths;
        }
    }

    /// The same for the jobs from `begin` on, by inode number, which is about the order on the disk. Returns those whose date
    /// was removed meanwhile.
    fn read(&mut self, begin: usize, told: &(impl Fn(u64, u64) -> Result<()> + Sync)) -> Result<Vec<usize>> {
        self.jobs[begin..].sort_by_key(|job| job.ino);
        let (jobs, dates, dir) = (&self.jobs, &self.dates, self.dir);
        let (done, files) = (AtomicU64::new(self.outcome.bytes_read), AtomicU64::new(0));
        let total = self.bytes;
        let lost = Mutex::new(Vec::new());
        let found = Mutex::new(&mut self.found);
        parallel::each(begin..jobs.len(), |range: Range<usize>, more| {
            if range.len() > PIECE {
                let middle = range.start + range.len() / 2;
                more.extend([middle..range.end, range.start..middle]);
                return Ok(());
            }
            for at in range {
                let stopped = Cell::new(false);
                let read = |bytes| {
                    let told = common::signals::check()
                        .and_then(|()| told(done.fetch_add(bytes, Ordering::Relaxed) + bytes, total));
                    told.inspect_err(|_| stopped.set(true))
                };
                let (job, dated) = (&jobs[at], &dates[jobs[at].date]);
                let wrong = match job.examine(dir, &dated.date, read) {
                    Ok(wrong) => wrong,
                    // Nobody listens any more: that is no damage.
                    Err(e) if stopped.get() => return Err(e),
                    Err(e) => vec![(Kind::Unreadable, format!("{e:#}"))],
                };
                if !wrong.is_empty() && !dated.is_there(dir) {
                    lost.lock().unwrap_or_else(PoisonError::into_inner).push(at);
                    continue;
                }
                files.fetch_add(u64::from(job.read), Ordering::Relaxed);
                for (kind, what) in wrong {
                    // What is of another type is another inode in each date.
                    let ino = (kind != Kind::Type).then_some(job.ino);
                    let mut found = found.lock().unwrap_or_else(PoisonError::into_inner);
                    add(&mut found, kind, ino, &job.line, what, (&dated.date, &job.line.path));
                }
            }
            Ok(())
        })?;
        self.outcome.inodes_read += files.into_inner();
        self.outcome.bytes_read = done.into_inner();
        Ok(lost.into_inner().unwrap_or_else(PoisonError::into_inner))
    }

    /// Names every date that shares an inode that is not what it was.
    fn places<'a>(&mut self, dates: impl Iterator<Item = &'a str>) -> Result<()> {
        let shared = self.found.shared();
        if shared.is_empty() {
            return Ok(());
        }
        for date in dates {
            let Ok(top) = open_dir(self.dir, date.as_bytes()) else { continue };
            let each = |step: &Step| {
                for key in shared.get(&step.ino).into_iter().flatten() {
                    self.found.also(key, date, step.path);
                }
                Ok(true)
            };
            scan::in_order(&top, each, |_, _| ())?;
        }
        Ok(())
    }

    /// What was found, without what is in dates that were removed meanwhile.
    fn finish(self) -> Result<Outcome> {
        let Verify { dir, dates, mut found, mut outcome, .. } = self;
        let gone: Vec<String> =
            dates.into_iter().filter(|dated| !dated.is_there(dir)).map(|dated| dated.date).collect();
        found.forget(&gone);
        outcome.dates.retain(|date| !gone.contains(date));
        outcome.weaker.retain(|date| !gone.contains(date));
        outcome.skipped.extend(gone);
        outcome.skipped.sort();
        (outcome.counts, outcome.findings, outcome.truncated) = found.finish();
        Ok(outcome)
    }

    fn add(&mut self, kind: Kind, ino: Option<u64>, line: &Line, what: String, place: (&str, &[u8])) {
        add(&mut self.found, kind, ino, line, what, place);
    }
}

/// Adds what is wrong at `place`. The same inode, or the same path with the same content, is one finding in all dates.
fn add(found: &mut Found, kind: Kind, ino: Option<u64>, line: &Line, what: String, place: (&str, &[u8])) {
    let same = match ino {
        Some(_) => 0,
        None => {
            let place = Some(place).filter(|_| line.path.is_empty());
            digest(&(&line.path, &line.body, &line.sum, place))
        }
    };
    let new = || Finding { kind, places: BTreeSet::new(), ino, expected: line.clone(), found: what };
    found.add((kind, ino, same), place, new);
}

fn digest(value: &impl std::hash::Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

/// What is wrong with what is found, as far as its attributes tell.
fn compare(line: &Line, found: &[u8]) -> Vec<(Kind, String)> {
    let expected = mtree::comparable(&line.body, found);
    if line.body.is_empty() || *expected == *found {
        return Vec::new();
    }
    if scan::kind(found) != line.kind() {
        return vec![(Kind::Type, format!("type={}", String::from_utf8_lossy(scan::kind(found))))];
    }
    let (size, other): (Vec<_>, Vec<_>) =
        differences(&expected, found).into_iter().partition(|o| o.starts_with("size="));
    // Another size is other content.
    let all = [(Kind::Content, size), (Kind::Attributes, other)].into_iter();
    all.filter(|w| !w.1.is_empty()).map(|(kind, list)| (kind, list.join(" "))).collect()
}

/// What the disk says where it is not what the manifest says.
fn differences(expected: &[u8], found: &[u8]) -> Vec<String> {
    let (mut before, after) = (mtree::words(expected), mtree::words(found));
    let shown = |value: &[u8]| show(value);
    let mut list: Vec<String> = Vec::new();
    for (key, value) in &after {
        let was = before.remove(key);
        if was.as_deref() != Some(value) {
            let was = was.map_or_else(|| "none".into(), |w| shown(&w));
            list.push(format!("{key}={} (was {was})", shown(value)));
        }
    }
    list.extend(before.into_iter().map(|(key, was)| format!("{key}=none (was {})", shown(&was))));
    list
}

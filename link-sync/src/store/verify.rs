//! Checking snapshots against their manifests: every name and attribute of each, and each distinct inode's bytes
//! once, however many dates share it.
//!
//! Reads only. Each snapshot's lock is shared meanwhile, so that none is removed under our hands. A file is read from
//! the disk as far as the kernel allows: what the page cache holds of it is dropped first (what is dirty or mapped
//! elsewhere cannot be).

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fs::File;
use std::hash::{DefaultHasher, Hasher as _};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context as _, Result};
use common::fault::{Kind as FaultKind, kind_of};
use common::lock::Lock;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::manifest::{self, MTREE, PART, SUMS};
use super::meta::SnapshotMeta;
use super::scan::{self, Expected, Line, Step};
use super::sums::{self, Lines};
use super::{META, Store, mtree, open_dir, open_file, split};
use crate::parallel;
use crate::walk::show;

/// How many files a thread checks before the others may have the rest.
const PIECE: usize = 16;
/// Paths named for one finding.
const NAMED: usize = 100;

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

/// What can be wrong.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Hash, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Other bytes than were hashed.
    Content,
    /// The disk does not give it back.
    Unreadable,
    /// Not there.
    Missing,
    /// Not in the manifest.
    Extra,
    /// A file where a folder was, and so on.
    Type,
    /// Mode, owner, time, size, link target or extended attributes.
    Attributes,
    /// The manifest itself is damaged.
    Manifest,
    /// A folder named like a snapshot that has no readable description.
    Snapshot,
}

/// One thing that is wrong.
#[derive(Clone, Debug)]
pub struct Finding {
    /// What.
    pub kind: Kind,
    /// Where: dates and paths in them. Of a shared inode, all.
    pub places: BTreeSet<(String, Vec<u8>)>,
    /// The inode, if it is one that snapshots share.
    pub ino: Option<u64>,
    /// What the manifest says.
    pub expected: Line,
    /// What was found, for people.
    pub found: String,
}

/// The outcome.
#[derive(Debug, Default)]
pub struct Outcome {
    /// The snapshots checked.
    pub dates: Vec<String>,
    /// Those without a manifest, or (of a copy) with a part of one only.
    pub weaker: Vec<String>,
    /// Those that are being removed.
    pub skipped: Vec<String>,
    /// Names checked, in all dates.
    pub paths: u64,
    /// Distinct files.
    pub inodes: u64,
    /// Of them read.
    pub inodes_read: u64,
    /// Bytes read.
    pub bytes_read: u64,
    /// All that is wrong.
    pub findings: Vec<Finding>,
}

/// An opened snapshot that stays as long as this lives.
#[derive(Debug)]
pub struct Held {
    /// Its description.
    pub meta: SnapshotMeta,
    /// Its folder.
    pub top: File,
    _lock: Lock,
}

/// Opens a snapshot of `store` (opened as `dir`) and shares its lock.
pub fn hold(store: &Store, dir: &File, date: &str) -> Result<Held> {
    let path = store.path.join(date);
    let what = || format!("cannot open {}", path.display());
    let lock = open_file(dir, &format!("{date}/{META}/lock")).with_context(what)?;
    let lock = Lock::shared_file(lock, &path.join(META).join("lock"), &format!("the snapshot {date}"))?;
    let (meta, _) = SnapshotMeta::load(dir, date).with_context(what)?;
    let top = open_dir(dir, date.as_bytes()).with_context(what)?;
    Ok(Held { meta: SnapshotMeta { date: date.to_owned(), ..meta }, top, _lock: lock })
}

/// An inode to be looked at.
struct Job {
    ino: u64,
    line: Line,
    /// Its bytes, too.
    read: bool,
    /// Where it was seen first, among those held.
    date: usize,
}

impl Job {
    /// What is wrong with it.
    fn examine(&self, top: &File, read: impl FnMut(u64) -> Result<()>) -> Result<Vec<(Kind, String)>> {
        let (parent, name) = split(&self.line.path);
        let looked = mtree::look(&open_dir(top, parent)?, name)?;
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

/// A verification under way.
struct Verify<'a> {
    options: &'a Options,
    held: Vec<Held>,
    /// Inodes by what is expected of them: those that were seen before.
    known: HashSet<(u64, u64)>,
    jobs: Vec<Job>,
    bytes: u64,
    /// Findings by what makes them the same one.
    found: HashMap<(Kind, Option<u64>, u64), Finding>,
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
        options,
        held: Vec::new(),
        known: HashSet::new(),
        jobs: Vec::new(),
        bytes: 0,
        found: HashMap::new(),
        outcome: Outcome::default(),
    };
    if options.date == "all" {
        for date in damaged {
            let why = format!("{META}/snapshot.json cannot be read");
            verify.add(Kind::Snapshot, None, &Line::default(), why, Some((&date, &[])));
        }
    }
    for date in &wanted {
        match hold(store, &dir, date) {
            Ok(held) => verify.names(held, authority.as_ref().map(|(s, d)| (*s, d)))?,
            Err(e) if kind_of(&e) == FaultKind::Busy => verify.outcome.skipped.push(date.clone()),
            // Removed since it was listed.
            Err(_) if open_dir(&dir, date.as_bytes()).is_err() => verify.outcome.skipped.push(date.clone()),
            Err(e) => verify.add(Kind::Snapshot, None, &Line::default(), format!("{e:#}"), Some((date, &[]))),
        }
    }
    verify.contents(told)?;
    verify.places(&dir, snapshots.iter().map(|s| s.date.as_str()))?;
    let mut outcome = verify.outcome;
    outcome.findings = verify.found.into_values().collect();
    outcome.findings.sort_by(|a, b| (a.places.first(), a.kind).cmp(&(b.places.first(), b.kind)));
    Ok(outcome)
}

impl Verify<'_> {
    /// Compares the names and attributes of one snapshot, and notes which files have to be read.
    fn names(&mut self, held: Held, authority: Option<(&Store, &File)>) -> Result<()> {
        let date = held.meta.date.clone();
        self.outcome.dates.push(date.clone());
        let top = held.top.try_clone().context("cannot copy a descriptor")?;
        let meta = held.meta.clone();
        self.held.push(held);
        let Some((store, dir)) = authority else {
            return match &meta.manifest {
                Some(_) => self.compare(&date, &top, &top, &meta),
                None => {
                    self.outcome.weaker.push(date);
                    Ok(())
                }
            };
        };
        match hold(store, dir, &date) {
            Ok(there) if there.meta.id == meta.id && there.meta.manifest.is_some() => {
                self.compare(&date, &top, &there.top, &there.meta)
            }
            _ => {
                self.outcome.weaker.push(date.clone());
                self.part(&date, &top)
            }
        }
    }

    /// One snapshot against the manifests in `described`.
    fn compare(&mut self, date: &str, top: &File, described: &File, meta: &SnapshotMeta) -> Result<()> {
        let Some(manifest) = &meta.manifest else { return Ok(()) };
        let mut damaged = false;
        for (name, digest) in [(SUMS, &manifest.sha256sums), (MTREE, &manifest.mtree)] {
            let Err(why) = manifest::check_one(described, name, digest) else { continue };
            common::signals::check()?;
            let place = Some((date, format!("{META}/{name}")));
            let place = place.as_ref().map(|(date, path)| (*date, path.as_bytes()));
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
                        let place = Some((date, step.path));
                        let line = Line { path: step.path.to_vec(), ..Line::default() };
                        self.add(Kind::Extra, None, &line, "it is not in the manifest".into(), place);
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
            self.add(Kind::Unreadable, None, &line, why, Some((date, &path)));
        }
        Ok(())
    }

    fn missing(&mut self, date: &str, line: &Line) {
        self.add(Kind::Missing, None, line, "it is not there".into(), Some((date, &line.path)));
    }

    /// A path that is where it belongs. Says whether to look into it. Folders are looked at now, the rest later, by
    /// inode number.
    fn one(&mut self, date: &str, step: &Step, line: Line) -> Result<bool> {
        let is_dir = line.kind() == b"dir";
        if !is_dir && !step.is_dir {
            // A shared inode was looked at in the date before.
            if self.known.insert((step.ino, digest(&(&line.body, &line.sum)))) {
                self.job(step.ino, line);
            }
            return Ok(true);
        }
        let wrong = match mtree::look(step.parent, step.name) {
            Ok(looked) => compare(&line, &looked.body),
            Err(e) => vec![(Kind::Unreadable, format!("{e:#}"))],
        };
        let good = wrong.iter().all(|w| w.0 == Kind::Attributes);
        for (kind, found) in wrong {
            self.add(kind, None, &line, found, Some((date, step.path)));
        }
        Ok(good)
    }

    fn job(&mut self, ino: u64, line: Line) {
        self.outcome.inodes += 1;
        let read = line.sum.is_some() && self.sampled(ino);
        self.bytes += if read { line.size() } else { 0 };
        self.jobs.push(Job { ino, line, read, date: self.held.len() - 1 });
    }

    /// A copy of a snapshot the store no longer has: what it brought itself, by its own word.
    fn part(&mut self, date: &str, top: &File) -> Result<()> {
        let Ok(file) = open_file(top, &format!("{META}/{PART}")) else { return Ok(()) };
        let mut lines = Lines::new(file);
        while let Some(line) = lines.next()? {
            common::signals::check()?;
            let Some((sum, path)) = sums::parse(line) else {
                let path = format!("{META}/{PART}");
                let place = Some((date, path.as_bytes()));
                self.add(Kind::Manifest, None, &Line::default(), "a line is damaged".into(), place);
                return Ok(());
            };
            let line = Line { path: path.into_owned(), body: Vec::new(), sum: Some(sum) };
            self.outcome.paths += 1;
            let (parent, name) = split(&line.path);
            let looked = open_dir(top, parent).map_err(Into::into).and_then(|dir| mtree::look(&dir, name));
            match looked {
                Ok(looked) if looked.file.is_some() => {
                    let ino = looked.stat.st_ino;
                    if self.known.insert((ino, digest(&sum))) {
                        self.job(ino, line);
                    }
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

    /// Looks at each distinct inode, and reads what has to be read: by inode number, which is about the order on the
    /// disk.
    fn contents(&mut self, told: &(impl Fn(u64, u64) -> Result<()> + Sync)) -> Result<()> {
        self.jobs.sort_by_key(|job| job.ino);
        let (jobs, held) = (&self.jobs, &self.held);
        let (done, files, total) = (AtomicU64::new(0), AtomicU64::new(0), self.bytes);
        let bad = Mutex::new(Vec::new());
        parallel::each(0..jobs.len(), |range: std::ops::Range<usize>, more| {
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
                let job = &jobs[at];
                files.fetch_add(u64::from(job.read), Ordering::Relaxed);
                let wrong = match job.examine(&held[job.date].top, read) {
                    Ok(wrong) => wrong,
                    // Nobody listens any more: that is no damage.
                    Err(e) if stopped.get() => return Err(e),
                    Err(e) => vec![(Kind::Unreadable, format!("{e:#}"))],
                };
                if !wrong.is_empty() {
                    bad.lock().unwrap_or_else(PoisonError::into_inner).push((at, wrong));
                }
            }
            Ok(())
        })?;
        self.outcome.inodes_read = files.into_inner();
        self.outcome.bytes_read = done.into_inner();
        for (at, wrong) in bad.into_inner().unwrap_or_else(PoisonError::into_inner) {
            let (ino, line) = (self.jobs[at].ino, self.jobs[at].line.clone());
            let date = self.held[self.jobs[at].date].meta.date.clone();
            for (kind, found) in wrong {
                // What is of another type is another inode in each date.
                let ino = (kind != Kind::Type).then_some(ino);
                self.add(kind, ino, &line, found, Some((&date, &line.path)));
            }
        }
        Ok(())
    }

    /// Names every date that shares an inode that is not what it was.
    fn places<'a>(&mut self, dir: &File, dates: impl Iterator<Item = &'a str>) -> Result<()> {
        let mut shared: HashMap<u64, Vec<&mut Finding>> = HashMap::new();
        for finding in self.found.values_mut() {
            if let Some(ino) = finding.ino {
                shared.entry(ino).or_default().push(finding);
            }
        }
        if shared.is_empty() {
            return Ok(());
        }
        for date in dates {
            let Ok(top) = open_dir(dir, date.as_bytes()) else { continue };
            let each = |step: &Step| {
                for finding in shared.get_mut(&step.ino).into_iter().flatten() {
                    finding.places.insert((date.to_owned(), step.path.to_vec()));
                }
                Ok(true)
            };
            scan::in_order(&top, each, |_, _| ())?;
        }
        Ok(())
    }

    fn add(
        &mut self,
        kind: Kind,
        ino: Option<u64>,
        line: &Line,
        found: String,
        place: Option<(&str, &[u8])>,
    ) {
        // The same inode, or the same path with the same content, is one finding in all dates.
        let same = match ino {
            Some(_) => 0,
            None => digest(&(&line.path, &line.body, &line.sum, place.filter(|_| line.path.is_empty()))),
        };
        let new = || Finding { kind, places: BTreeSet::new(), ino, expected: line.clone(), found };
        let finding = self.found.entry((kind, ino, same)).or_insert_with(new);
        finding.places.extend(place.map(|(date, path)| (date.to_owned(), path.to_vec())));
    }
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

impl Finding {
    /// For the status object.
    pub fn describe(&self) -> Value {
        let dates: BTreeSet<_> = self.places.iter().map(|p| &p.0).collect();
        let paths: BTreeSet<_> = self.places.iter().map(|p| &p.1).collect();
        json!({
            "kind": self.kind, "inode": self.ino, "found": self.found,
            "dates": dates,
            "paths": paths.iter().take(NAMED).map(|p| show(p)).collect::<Vec<_>>(),
            "expected_sha256": self.expected.sum.map(|s| sums::hex(&s)),
        })
    }
}

impl Outcome {
    /// How many of each kind.
    pub fn counts(&self) -> BTreeMap<Kind, u64> {
        self.findings.iter().fold(BTreeMap::new(), |mut counts, finding| {
            *counts.entry(finding.kind).or_default() += 1;
            counts
        })
    }

    /// For the status object.
    pub fn describe(&self, options: &Options) -> Result<Value> {
        let listed: Vec<_> = self.findings.iter().take(options.limit).map(Finding::describe).collect();
        let counts: serde_json::Map<_, _> = self
            .counts()
            .into_iter()
            .map(|(kind, n)| Ok((serde_json::from_value::<String>(json!(kind))?, json!(n))))
            .collect::<Result<_>>()?;
        Ok(json!({
            "dates": self.dates, "weaker_dates": self.weaker, "skipped_dates": self.skipped,
            "sample_percent": options.sample, "seed": options.seed,
            "paths": self.paths, "inodes": self.inodes,
            "inodes_read": self.inodes_read, "bytes_read": self.bytes_read,
            "findings": listed, "findings_total": self.findings.len(), "counts": counts,
        }))
    }
}

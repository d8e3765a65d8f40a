//! Checking snapshots against their manifests.
//! Every name and attribute of each is compared, and each distinct inode's bytes once, however many dates share it.
//!
//! Reads only. A snapshot's lock is shared while its names are compared, so that it is not removed under our hands; its files
//! are read hours later, maybe, and it may be removed by then: nobody's prune waits for us, and no descriptor is kept for each
//! date. What a removed date shared with others is then looked for, and read, in those. A file is read from
//! the disk as far as the kernel allows: what the page cache holds of it is dropped first (what is dirty or mapped
//! elsewhere cannot be).

use std::cell::Cell;
use std::collections::HashSet;
use std::fs::File;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context as _, Result};
use common::fault::{Kind, kind_of};
use common::mutant;
use nix::fcntl::AtFlags;
use nix::sys::stat::{fstat, fstatat};

use super::beneath::{open_dir, open_file};
use super::examine::{Job, compare};
use super::findings::{Damage, KEPT, Tally, digest};
use super::held::Held;
use super::layout::META;
use super::manifest::{self, MTREE, PART, SUMS};
use super::meta::SnapshotMeta;
use super::outcome::{Outcome, Scope};
use super::place::Store;
use super::scan::{self, Expected, ManifestLine, Visited};
use super::sums::Lines;
use super::{mtree, shown, sums};
use crate::parallel;
use crate::tree::split;

/// How many files a thread checks before the others may have the rest.
const PIECE: usize = 16;

/// A snapshot whose names were compared.
struct Compared {
    date: String,
    /// Its folder's device and inode.
    folder: (u64, u64),
}

impl Compared {
    fn of(held: &Held) -> Result<Compared> {
        let stat = fstat(&held.top).context("cannot look at a snapshot's folder")?;
        Ok(Compared { date: held.meta.date.clone(), folder: (stat.st_dev, stat.st_ino) })
    }

    /// It still has its name in `store`: a prune takes that away before anything else.
    fn is_there(&self, store: &File) -> bool {
        let stat = fstatat(store, self.date.as_str(), AtFlags::AT_SYMLINK_NOFOLLOW);
        stat.is_ok_and(|s| (s.st_dev, s.st_ino) == self.folder)
    }
}

/// A verification under way.
struct Verification<'a> {
    store: &'a Store,
    dir: &'a File,
    /// The store whose copy this is; its manifests count.
    authority: Option<(&'a Store, File)>,
    scope: &'a Scope,
    dates: Vec<Compared>,
    /// The one whose names are compared.
    at: usize,
    /// What makes the inode numbers of this date those of no other: see [`salt`].
    salt: u64,
    /// Inodes by what is expected of them: those that were seen before.
    known: HashSet<(u64, u64)>,
    jobs: Vec<Job>,
    /// To be read, in all.
    bytes: u64,
    found: Tally,
    outcome: Outcome,
}

/// In one file system a number is one inode, whatever the date. Each overlay has numbers of its own, which may be another's, too.
fn salt(top: &File) -> Result<u64> {
    let numbered_anew = shown::is_overlay(top) && !mutant::active("each-overlay-has-its-own-numbers");
    let device = fstat(top).context("cannot look at a snapshot")?.st_dev;
    Ok(if numbered_anew { device.wrapping_mul(0x9e37_79b9_7f4a_7c15) } else { 0 })
}

/// Verifies. With `against`, `store` is a copy of that store, whose manifests count. `told` hears how many bytes of how
/// many are read.
pub fn verify(
    store: &Store,
    against: Option<&Store>,
    scope: &Scope,
    watch: &(impl Fn(u64, u64) -> Result<()> + Sync),
) -> Result<Outcome> {
    let dir = store.check()?;
    let (snapshots, damaged) = store.snapshots()?;
    let wanted: Vec<String> = match scope.date.as_str() {
        "all" => snapshots.iter().map(|s| s.date.clone()).collect(),
        date => vec![store.find(date)?.date],
    };
    let authority = against.map(|store| Ok::<_, anyhow::Error>((store, store.check()?))).transpose()?;
    let mut verify = Verification {
        store,
        dir: &dir,
        authority,
        scope,
        dates: Vec::new(),
        salt: 0,
        at: 0,
        known: HashSet::new(),
        jobs: Vec::new(),
        bytes: 0,
        found: Tally::new(KEPT),
        outcome: Outcome::default(),
    };
    if scope.date == "all" {
        for date in damaged {
            let why = format!("{META}/snapshot.json cannot be read");
            verify.found.add(Damage::Snapshot, None, &ManifestLine::default(), why, (&date, &[]));
        }
    }
    for date in &wanted {
        verify.snapshot(date)?;
    }
    verify.contents(watch)?;
    verify.places(snapshots.iter().map(|s| s.date.as_str()))?;
    verify.finish()
}

impl Verification<'_> {
    /// Compares the names and attributes of one snapshot.
    fn snapshot(&mut self, date: &str) -> Result<()> {
        let held = match Held::open(self.store, self.dir, date) {
            Ok(held) => held,
            Err(e) if kind_of(&e) == Kind::Busy => {
                self.outcome.skipped.push(date.to_owned());
                return Ok(());
            }
            // Removed since it was listed.
            Err(_) if fstatat(self.dir, date, AtFlags::AT_SYMLINK_NOFOLLOW).is_err() => {
                self.outcome.skipped.push(date.to_owned());
                return Ok(());
            }
            Err(e) => {
                let (line, why) = (ManifestLine::default(), format!("{e:#}"));
                self.found.add(Damage::Snapshot, None, &line, why, (date, &[]));
                return Ok(());
            }
        };
        self.at = self.dates.len();
        self.salt = salt(&held.top)?;
        self.dates.push(Compared::of(&held)?);
        self.outcome.dates.push(date.to_owned());
        if !self.names(&held)? {
            self.outcome.weaker.push(date.to_owned());
        }
        Ok(())
    }

    /// Compares the names and attributes of the snapshot, and notes which files have to be read. `false` if there is no whole
    /// manifest to compare with.
    fn names(&mut self, held: &Held) -> Result<bool> {
        let date = &held.meta.date;
        let Some((store, dir)) = &self.authority else {
            return match &held.meta.manifest {
                Some(_) if manifest::is_copy(&held.top) => self.part(date, &held.top).map(|()| false),
                Some(_) => self.compare(date, &held.top, &held.top, &held.meta).map(|()| true),
                None => Ok(false),
            };
        };
        match Held::open(store, dir, date) {
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
            self.found.add(Damage::Manifest, None, &ManifestLine::default(), format!("{why:#}"), place);
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
                        let line = ManifestLine { path: step.path.to_vec(), ..ManifestLine::default() };
                        let what = "it is not in the manifest".into();
                        self.found.add(Damage::Extra, None, &line, what, (date, step.path));
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
            let line = ManifestLine { path: path.clone(), ..ManifestLine::default() };
            self.found.add(Damage::Unreadable, None, &line, why, (date, &path));
        }
        Ok(())
    }

    fn missing(&mut self, date: &str, line: &ManifestLine) {
        self.found.add(Damage::Missing, None, line, "it is not there".into(), (date, &line.path));
    }

    /// A path that is where it belongs. Says whether to look into it. Folders are looked at now, the rest later, by
    /// inode number.
    fn one(&mut self, date: &str, step: &Visited, line: ManifestLine) -> Result<bool> {
        let is_dir = line.kind() == b"dir";
        if !is_dir && !step.is_dir {
            // A shared inode was looked at in the date before.
            self.job(step.ino ^ self.salt, digest(&(&line.body, &line.sum)), line);
            return Ok(true);
        }
        let wrong = match mtree::look(step.parent, step.name) {
            Ok(looked) => compare(&line, &looked.body),
            Err(e) => vec![(Damage::Unreadable, format!("{e:#}"))],
        };
        let good = wrong.iter().all(|w| w.0 == Damage::Attributes);
        for (kind, found) in wrong {
            self.found.add(kind, None, &line, found, (date, step.path));
        }
        Ok(good)
    }

    fn job(&mut self, ino: u64, key: u64, line: ManifestLine) {
        if !self.known.insert((ino, key)) {
            return;
        }
        self.outcome.inodes += 1;
        let read = line.sum.is_some() && self.scope.reads(ino);
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
                let (line, what) = (ManifestLine::default(), "a line is damaged".into());
                self.found.add(Damage::Manifest, None, &line, what, (date, path.as_bytes()));
                return Ok(());
            };
            let line = ManifestLine { path: path.into_owned(), body: Vec::new(), sum: Some(sum) };
            self.outcome.paths += 1;
            let (parent, name) = split(&line.path);
            let looked = open_dir(top, parent).map_err(Into::into).and_then(|dir| mtree::look(&dir, name));
            match looked {
                Ok(looked) if looked.file.is_some() => {
                    self.job(looked.stat.st_ino ^ self.salt, digest(&sum), line);
                }
                _ => self.missing(date, &line),
            }
        }
        Ok(())
    }

    /// Looks at each distinct inode, and reads what has to be read. What a date that was removed meanwhile shared with
    /// others is done in those: as often as dates are removed, and so at most once for each.
    fn contents(&mut self, watch: &(impl Fn(u64, u64) -> Result<()> + Sync)) -> Result<()> {
        let mut begin = 0;
        loop {
            let lost = self.read(begin, watch)?;
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
                if let Ok(held) = Held::open(self.store, self.dir, &self.dates[at].date) {
                    self.at = at;
                    self.salt = salt(&held.top)?;
                    self.names(&held)?;
                }
            }
            self.outcome.paths = paths;
        }
    }

    /// The same for the jobs from `begin` on, by inode number, which is about the order on the disk. Returns those whose date
    /// was removed meanwhile.
    fn read(&mut self, begin: usize, watch: &(impl Fn(u64, u64) -> Result<()> + Sync)) -> Result<Vec<usize>> {
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
                        .and_then(|()| watch(done.fetch_add(bytes, Ordering::Relaxed) + bytes, total));
                    told.inspect_err(|_| stopped.set(true))
                };
                let (job, dated) = (&jobs[at], &dates[jobs[at].date]);
                let wrong = match job.examine(dir, &dated.date, read) {
                    Ok(wrong) => wrong,
                    // Nobody listens any more: that is no damage.
                    Err(e) if stopped.get() => return Err(e),
                    Err(e) => vec![(Damage::Unreadable, format!("{e:#}"))],
                };
                if !wrong.is_empty() && !dated.is_there(dir) {
                    lost.lock().unwrap_or_else(PoisonError::into_inner).push(at);
                    continue;
                }
                files.fetch_add(u64::from(job.read), Ordering::Relaxed);
                for (kind, what) in wrong {
                    // What is of another type is another inode in each date.
                    let ino = (kind != Damage::Type).then_some(job.ino);
                    let mut found = found.lock().unwrap_or_else(PoisonError::into_inner);
                    found.add(kind, ino, &job.line, what, (&dated.date, &job.line.path));
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
            let salt = salt(&top)?;
            let each = |step: &Visited| {
                for key in shared.get(&(step.ino ^ salt)).into_iter().flatten() {
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
        let Verification { dir, dates, mut found, mut outcome, .. } = self;
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
}

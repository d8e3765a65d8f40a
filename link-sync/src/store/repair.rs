//! Fetching back what is damaged: the one exception to "a published snapshot never changes", against the hash that was
//! noted when it was published.
//!
//! What is rotten is built anew in `.repair` (a new inode, checked and durable), then renamed over each name that
//! shared the old one, and the folders' times are put back. A snapshot holds the old file or the new one at every
//! moment. When it is interrupted, what is left in `.repair` is removed by the next repair, which finds the rest by
//! verifying. What is in the way of another type is moved to `.set-aside`; nothing is deleted.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, renameat};
use nix::sys::stat::fstat;
use nix::sys::time::TimeSpec;
use nix::unistd::linkat;
use serde_json::Value;

use super::fetch::{self, Places};
use super::manifest::{self, MTREE, SUMS};
use super::meta::SnapshotMeta;
use super::scan::{self, Expected, Line};
use super::verify::{Finding, Kind, Options, Outcome, verify};
use super::{META, Store, ensure_dir, mtree, open, open_dir, split, sums};
use crate::tree::join;
use crate::walk::show;

/// Where what is built lies until it is in its place.
const REPAIR: &str = ".repair";
/// Where what is in the way goes.
const ASIDE: &str = ".set-aside";
/// In `.repair`: the new inode, and one more name of it that is about to be moved.
const NEW: &str = "new";
const LINK: &str = "link";

/// What came of it.
#[derive(Debug, Default)]
pub struct Repaired {
    /// What was wrong and is right now.
    pub done: Vec<Finding>,
    /// Why something is still wrong, for people.
    pub reasons: Vec<String>,
}

/// Verifies, and repairs what is found. The outcome tells what is still wrong.
pub fn repair(
    store: &Store,
    options: &Options,
    mut places: Places,
    told: &(impl Fn(u64, u64) -> Result<()> + Sync),
) -> Result<(Outcome, Repaired)> {
    let dir = store.check()?;
    let _lock = open::lock(store)?;
    super::remove(&dir, Path::new(REPAIR))?;
    places.store = Some(dir.try_clone().context("cannot copy a descriptor")?);
    let (snapshots, _) = store.snapshots()?;
    let mut repaired = Repaired::default();
    let work = Work { dir: &dir, room: ensure_dir(&dir, REPAIR.as_bytes())?, snapshots: &snapshots };
    let manifests = work.manifests(&mut places)?;
    let mut outcome = verify(store, None, options, told)?;
    let found = std::mem::take(&mut outcome.findings);
    let twins = work.search(&found, &mut places)?;
    let (folders, rest): (Vec<_>, Vec<_>) =
        found.into_iter().partition(|f| f.kind == Kind::Attributes && f.expected.kind() == b"dir");
    let mut tried = Vec::new();
    // Folders' times last: whatever is put into one moves it.
    for finding in rest.into_iter().chain(folders) {
        common::signals::check()?;
        let result = work.one(&finding, &places, &twins);
        if let Err(why) = &result {
            common::signals::check()?;
            let path = finding.places.first().map(|p| show(&p.1)).unwrap_or_default();
            repaired.reasons.push(format!("{path}: {why:#}"));
        }
        tried.push((finding, result.is_ok()));
    }
    super::remove(&dir, Path::new(REPAIR))?;
    // Again, without reading: what was built is what it should be, and so is all around it.
    let again = verify(store, None, &Options { sample: 0.0, ..options.clone() }, told)?.findings;
    let same = |a: &Finding, b: &Finding| a.kind == b.kind && a.places.first() == b.places.first();
    for (finding, done) in tried {
        let still = again.iter().any(|a| same(a, &finding));
        match done && !still {
            true => repaired.done.push(finding),
            false if !still => outcome.findings.push(finding),
            false => {}
        }
    }
    outcome.findings.extend(again);
    outcome.findings.sort_by(|a, b| (a.places.first(), a.kind).cmp(&(b.places.first(), b.kind)));
    repaired.done.extend(manifests);
    Ok((outcome, repaired))
}

/// Dates in which a path is, or should be, exactly the same.
type Twins = HashMap<Vec<u8>, Vec<(String, Line)>>;

struct Work<'a> {
    dir: &'a File,
    /// `.repair`
    room: File,
    snapshots: &'a [SnapshotMeta],
}

impl Work<'_> {
    /// Puts damaged manifests right, from dates that share them or from other stores: without them nothing else can be.
    fn manifests(&self, places: &mut Places) -> Result<Vec<Finding>> {
        let mut done = Vec::new();
        for meta in self.snapshots {
            let Some(manifest) = &meta.manifest else { continue };
            let top = self.top(&meta.date)?;
            for (name, digest) in [(SUMS, &manifest.sha256sums), (MTREE, &manifest.mtree)] {
                let Err(why) = manifest::check_one(&top, name, digest) else { continue };
                common::signals::check()?;
                let path = format!("{META}/{name}").into_bytes();
                let others = self.snapshots.iter().filter(|o| o.date != meta.date);
                let here = others.map(|o| (o.date.clone(), path.clone())).collect();
                let sum = sums::unhex(digest.sha256.as_bytes()).context("its hash is none")?;
                let line =
                    Line { path: path.clone(), body: mtree::private_file(digest.bytes), sum: Some(sum) };
                places.here.insert(sum, here);
                if fetch::build(&self.room, NEW, &line, None, places, std::slice::from_ref(&meta.date))? {
                    self.put(&meta.date, &path)?;
                    done.push(Finding {
                        kind: Kind::Manifest,
                        places: [(meta.date.clone(), path)].into(),
                        ino: None,
                        expected: line,
                        found: format!("{why:#}"),
                    });
                }
                super::remove(&self.room, Path::new(NEW))?;
            }
        }
        Ok(done)
    }

    /// Looks through all manifests for what holds, in another date, what is damaged in one.
    fn search(&self, found: &[Finding], places: &mut Places) -> Result<Twins> {
        let paths: HashSet<&[u8]> = found.iter().map(|f| &f.expected.path[..]).collect();
        let wanted: HashSet<_> = found.iter().filter_map(|f| f.expected.sum).collect();
        let mut twins = Twins::new();
        for meta in self.snapshots.iter().filter(|m| !found.is_empty() && m.manifest.is_some()) {
            let top = self.top(&meta.date)?;
            if meta.manifest.as_ref().is_none_or(|m| manifest::check(&top, m).is_err()) {
                continue;
            }
            let mut lines = Expected::open(&top)?;
            while let Some(line) = lines.next()? {
                if let Some(sum) = line.sum.filter(|s| wanted.contains(s)) {
                    places.here.entry(sum).or_default().push((meta.date.clone(), line.path.clone()));
                }
                if paths.contains(&line.path[..]) {
                    twins.entry(line.path.clone()).or_default().push((meta.date.clone(), line));
                }
            }
        }
        Ok(twins)
    }

    fn one(&self, finding: &Finding, places: &Places, twins: &Twins) -> Result<()> {
        let line = &finding.expected;
        match finding.kind {
            Kind::Extra => anyhow::bail!("it is in no manifest; it is left where it is"),
            Kind::Manifest | Kind::Snapshot => anyhow::bail!("no other copy holds it: give one with --from"),
            Kind::Unreadable if line.body.is_empty() => anyhow::bail!("the disk does not give it back"),
            Kind::Attributes if matches!(line.kind(), b"file" | b"dir") => {
                self.attributes(finding, places, twins)
            }
            _ => self.restore(finding, places, twins),
        }
    }

    /// Builds it, or finds it in another date, and puts it in all its places.
    fn restore(&self, finding: &Finding, places: &Places, twins: &Twins) -> Result<()> {
        let line = &finding.expected;
        let dates: Vec<String> = finding.places.iter().map(|p| p.0.clone()).collect();
        // A folder is each date's own; of the rest, all dates share one.
        if line.kind() == b"dir" {
            for (date, path) in &finding.places {
                fetch::build(&self.room, NEW, line, None, places, std::slice::from_ref(date))?;
                self.put(date, path)?;
            }
            return Ok(());
        }
        if !self.twin(finding, twins)? {
            let old = finding
                .places
                .first()
                .and_then(|(date, path)| super::open_file_at(self.dir, &join(date.as_bytes(), path)).ok());
            let built = fetch::build(&self.room, NEW, line, old.as_ref(), places, &dates)?;
            anyhow::ensure!(built, "no other copy holds it any more: give one with --from");
        }
        for (date, path) in &finding.places {
            super::remove(&self.room, Path::new(LINK))?;
            linkat(&self.room, NEW, &self.room, LINK, AtFlags::empty()).context("cannot link it")?;
            self.put_as(LINK, date, path)?;
        }
        super::remove(&self.room, Path::new(NEW))
    }

    /// Another date that has it, good, and shares it from now on: also what an interrupted repair had built.
    fn twin(&self, finding: &Finding, twins: &Twins) -> Result<bool> {
        super::remove(&self.room, Path::new(NEW))?;
        let line = &finding.expected;
        for (date, other) in twins.get(&line.path).into_iter().flatten() {
            if other.sum != line.sum
                || !mtree::same(&other.body, &line.body)
                || finding.places.contains(&(date.clone(), line.path.clone()))
            {
                continue;
            }
            let top = self.top(date)?;
            let (parent, name) = split(&line.path);
            let Ok(parent) = open_dir(&top, parent) else { continue };
            let Ok(looked) = mtree::look(&parent, name) else { continue };
            let good = mtree::same(&looked.body, &line.body)
                && match (line.sum, looked.file) {
                    (Some(sum), Some(mut file)) => {
                        scan::hash(&mut file, |_| common::signals::check()).is_ok_and(|found| found == sum)
                    }
                    (sum, file) => sum.is_none() && file.is_none(),
                };
            if good {
                linkat(&parent, OsStr::from_bytes(name), &self.room, NEW, AtFlags::empty())?;
                return Ok(true);
            }
            common::signals::check()?;
        }
        Ok(false)
    }

    /// Puts attributes back, on the inode all dates share.
    fn attributes(&self, finding: &Finding, places: &Places, twins: &Twins) -> Result<()> {
        let line = &finding.expected;
        let words = mtree::words(&line.body);
        let dates: Vec<String> = finding.places.iter().map(|p| p.0.clone()).collect();
        for (date, path) in &finding.places {
            let full = join(date.as_bytes(), path);
            let is_dir = line.kind() == b"dir";
            let file = match is_dir {
                true => open_dir(self.dir, &full)?,
                false => super::open_file_at(self.dir, &full)?,
            };
            let mut like: Vec<File> = vec![file.try_clone()?];
            let twin = twins
                .get(&line.path)
                .into_iter()
                .flatten()
                .filter(|t| mtree::same(&t.1.body, &line.body) || is_dir);
            let twin = twin.map(|t| join(t.0.as_bytes(), &line.path));
            if is_dir {
                like.extend(twin.filter_map(|p| open_dir(self.dir, &p).ok()));
                like.extend(places.folders(line, &dates));
            } else {
                like.extend(twin.filter_map(|p| super::open_file_at(self.dir, &p).ok()));
                like.extend(places.files(line, &dates));
            }
            let like: Vec<_> = like.iter().map(Some).collect();
            let xattrs = fetch::xattrs(&words, &like)?;
            fetch::set_open(&file, &words, xattrs.as_ref())?;
            file.sync_all().context("cannot make it durable")?;
            anyhow::ensure!(
                xattrs.is_some(),
                "no other copy has its extended attributes: give one with --from"
            );
        }
        Ok(())
    }

    fn top(&self, date: &str) -> Result<File> {
        open_dir(self.dir, date.as_bytes()).with_context(|| format!("cannot open {date}"))
    }

    fn put(&self, date: &str, path: &[u8]) -> Result<()> {
        self.put_as(NEW, date, path)
    }

    /// Renames what was built over its name; the folder gets the time back that it had.
    fn put_as(&self, built: &str, date: &str, path: &[u8]) -> Result<()> {
        let (parent, name) = split(path);
        let folder = open_dir(&self.top(date)?, parent).context("cannot open its folder")?;
        let before = fstat(&folder)?;
        let name = OsStr::from_bytes(name);
        match renameat(&self.room, built, &folder, name) {
            Err(Errno::EISDIR | Errno::ENOTDIR | Errno::ENOTEMPTY | Errno::EEXIST) => {
                self.set_aside(&folder, name, date)?;
                renameat(&self.room, built, &folder, name)
            }
            other => other,
        }
        .context("cannot put it in its place")?;
        super::set_modified(&folder, &TimeSpec::new(before.st_mtime, before.st_mtime_nsec))?;
        folder.sync_all().context("cannot make it durable")
    }

    fn set_aside(&self, folder: &File, name: &OsStr, date: &str) -> Result<()> {
        let aside = ensure_dir(self.dir, ASIDE.as_bytes())?;
        for n in 0..1000 {
            let place = format!("{date}.{n}");
            match common::rename::noreplace(folder, name, &aside, place.as_str()) {
                Err(Errno::EEXIST) => {}
                other => return other.context("cannot move what is in the way"),
            }
        }
        anyhow::bail!("{ASIDE} is full of what was set aside before")
    }
}

impl Repaired {
    /// For the status object.
    pub fn describe(&self, limit: usize) -> (Vec<Value>, u64) {
        (self.done.iter().take(limit).map(Finding::describe).collect(), self.done.len() as u64)
    }
}

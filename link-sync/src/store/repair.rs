//! Fetching back what is damaged: the one exception to "a published snapshot never changes".
//! What is fetched must have the hash that was noted when the snapshot was published.
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

use super::attributes::set_modified;
use super::beneath::{ensure_dir, open_dir, open_file_at};
use super::clear::remove;
use super::fetch::{self, Elsewhere, Here};
use super::findings::{self, Damage, Finding};
use super::layout::META;
use super::manifest::{self, MTREE, SUMS};
use super::meta::SnapshotMeta;
use super::outcome::{Outcome, Scope};
use super::place::Store;
use super::repaired;
use super::scan::{self, Expected, ManifestLine};
use super::verify::verify;
use super::{mtree, open, sums};
use crate::names::show;
use crate::tree::{join, split};

/// Where what is built lies until it is in its place.
const REPAIR: &str = ".repair";
/// Where what is in the way goes.
const ASIDE: &str = ".set-aside";
/// So many reasons are told.
const TOLD: usize = 1000;
/// In `.repair`: the new inode, and one more name of it that is about to be moved.
const NEW: &str = "new";
const LINK: &str = "link";

/// What came of it.
#[derive(Debug, Default)]
pub struct Repaired {
    /// What was wrong and is right now.
    pub done: Vec<Finding>,
    /// Why something is still wrong, for people: the first ones.
    pub reasons: Vec<String>,
    /// How much that is.
    pub left: u64,
}

/// Verifies, and repairs what is found. The outcome tells what is still wrong.
pub fn repair(
    store: &Store,
    scope: &Scope,
    mut elsewhere: Elsewhere,
    watch: &(impl Fn(u64, u64) -> Result<()> + Sync),
) -> Result<(Outcome, Repaired)> {
    let dir = store.check()?;
    let _lock = open::lock(store)?;
    remove(&dir, Path::new(REPAIR))?;
    elsewhere.store = Some(dir.try_clone().context("cannot copy a descriptor")?);
    let (snapshots, _) = store.snapshots()?;
    let mut repaired = Repaired::default();
    let work = Work { dir: &dir, room: ensure_dir(&dir, REPAIR.as_bytes())?, snapshots: &snapshots };
    let manifests = work.manifests(&elsewhere)?;
    let mut outcome = verify(store, None, scope, watch)?;
    let found = std::mem::take(&mut outcome.findings);
    let twins = work.search(&found, &elsewhere)?;
    // Before anything is changed: whoever has made something of these dates has it from before.
    if let Some((oldest, newest)) = snapshots.first().zip(snapshots.last()) {
        repaired::note(store, &found, &oldest.date, &newest.date)?;
    }
    let (folders, rest): (Vec<_>, Vec<_>) =
        found.into_iter().partition(|f| f.kind == Damage::Attributes && f.expected.kind() == b"dir");
    let mut tried = Vec::new();
    // Folders' times last: whatever is put into one moves it.
    for finding in rest.into_iter().chain(folders) {
        common::signals::check()?;
        let result = work.one(&finding, &elsewhere, &twins);
        if let Err(why) = &result {
            common::signals::check()?;
            repaired.left += 1;
            if repaired.reasons.len() < TOLD {
                let path = finding.places.first().map(|p| show(&p.1)).unwrap_or_default();
                repaired.reasons.push(format!("{path}: {why:#}"));
            }
        }
        tried.push((finding, result.is_ok()));
    }
    remove(&dir, Path::new(REPAIR))?;
    // Again, without reading: what was built is what it should be, and so is all around it.
    let again = verify(store, None, &Scope { sample: 0.0, ..scope.clone() }, watch)?;
    settle(&mut outcome, &mut repaired, tried, again);
    repaired.done.extend(manifests);
    Ok((outcome, repaired))
}

/// What is still wrong: what was `tried` in vain, what is found `again`, and what only reading finds and was not even tried,
/// as there was too much.
fn settle(outcome: &mut Outcome, repaired: &mut Repaired, tried: Vec<(Finding, bool)>, again: Outcome) {
    for (finding, _) in &tried {
        if let Some(n) = outcome.counts.get_mut(&finding.kind) {
            *n -= 1;
        }
    }
    let untried = std::mem::take(&mut outcome.counts);
    outcome.counts = again.counts;
    for kind in [Damage::Content, Damage::Unreadable] {
        if let Some(n) = untried.get(&kind).filter(|n| **n > 0) {
            *outcome.counts.entry(kind).or_default() += n;
        }
    }
    let still: HashSet<_> = again.findings.iter().map(|a| (a.kind, a.places.first().cloned())).collect();
    for (finding, done) in tried {
        match (done, still.contains(&(finding.kind, finding.places.first().cloned()))) {
            (_, true) => {}
            (true, false) => repaired.done.push(finding),
            (false, false) => {
                *outcome.counts.entry(finding.kind).or_default() += 1;
                outcome.findings.push(finding);
            }
        }
    }
    outcome.truncated |= again.truncated;
    outcome.findings.extend(again.findings);
    findings::sort(&mut outcome.findings);
}

/// Of a path: what it should be, and in which dates, by their numbers, that is the same.
type Twins = HashMap<Vec<u8>, Vec<(ManifestLine, Vec<usize>)>>;

struct Work<'a> {
    dir: &'a File,
    /// `.repair`
    room: File,
    snapshots: &'a [SnapshotMeta],
}

impl Work<'_> {
    /// Puts damaged manifests right, from dates that share them or from other stores: without them nothing else can be.
    fn manifests(&self, elsewhere: &Elsewhere) -> Result<Vec<Finding>> {
        let mut done = Vec::new();
        self.offer_manifests(&elsewhere.here);
        for meta in self.snapshots {
            let Some(manifest) = &meta.manifest else { continue };
            let top = self.top(&meta.date)?;
            for (name, digest) in [(SUMS, &manifest.sha256sums), (MTREE, &manifest.mtree)] {
                let Err(why) = manifest::check_one(&top, name, digest) else { continue };
                common::signals::check()?;
                let path = format!("{META}/{name}").into_bytes();
                let sum = sums::unhex(digest.sha256.as_bytes()).context("its hash is none")?;
                let line = ManifestLine {
                    path: path.clone(),
                    body: mtree::private_file(digest.bytes),
                    sum: Some(sum),
                };
                if fetch::build(&self.room, NEW, &line, None, elsewhere, std::slice::from_ref(&meta.date))? {
                    self.put(&meta.date, &path)?;
                    done.push(Finding {
                        kind: Damage::Manifest,
                        places: [(meta.date.clone(), path)].into(),
                        ino: None,
                        expected: line,
                        found: format!("{why:#}"),
                    });
                }
                remove(&self.room, Path::new(NEW))?;
            }
        }
        Ok(done)
    }

    /// Snapshots that changed nothing share their manifests.
    fn offer_manifests(&self, here: &Here) {
        let paths = [SUMS, MTREE].map(|name| here.path(format!("{META}/{name}").as_bytes()));
        for meta in self.snapshots {
            let Some(manifest) = &meta.manifest else { continue };
            let date = here.date(&meta.date);
            for (path, digest) in paths.iter().zip([&manifest.sha256sums, &manifest.mtree]) {
                if let Some(sum) = sums::unhex(digest.sha256.as_bytes()) {
                    here.add(sum, date, *path);
                }
            }
        }
    }

    /// Looks through all manifests for what holds, in another date, what is damaged in one.
    fn search(&self, found: &[Finding], elsewhere: &Elsewhere) -> Result<Twins> {
        let paths: HashSet<&[u8]> = found.iter().map(|f| &f.expected.path[..]).collect();
        let wanted: HashSet<_> = found.iter().filter_map(|f| f.expected.sum).collect();
        let mut twins = Twins::new();
        let mut numbers: HashMap<Vec<u8>, usize> = HashMap::new();
        for (at, meta) in self.snapshots.iter().enumerate() {
            if found.is_empty() || meta.manifest.is_none() {
                continue;
            }
            let top = self.top(&meta.date)?;
            if meta.manifest.as_ref().is_none_or(|m| manifest::check(&top, m).is_err()) {
                continue;
            }
            let date = elsewhere.here.date(&meta.date);
            let mut lines = Expected::open(&top)?;
            while let Some(line) = lines.next()? {
                if let Some(sum) = line.sum.filter(|s| wanted.contains(s)) {
                    let known = numbers.get(&line.path).copied();
                    let number = known.unwrap_or_else(|| elsewhere.here.path(&line.path));
                    if known.is_none() {
                        numbers.insert(line.path.clone(), number);
                    }
                    elsewhere.here.add(sum, date, number);
                }
                if paths.contains(&line.path[..]) {
                    let same = twins.entry(line.path.clone()).or_default();
                    match same.iter_mut().find(|t| t.0 == line) {
                        Some(twin) => twin.1.push(at),
                        None => same.push((line, vec![at])),
                    }
                }
            }
        }
        Ok(twins)
    }

    fn one(&self, finding: &Finding, elsewhere: &Elsewhere, twins: &Twins) -> Result<()> {
        let line = &finding.expected;
        match finding.kind {
            Damage::Extra => anyhow::bail!("it is in no manifest; it is left where it is"),
            Damage::Manifest | Damage::Snapshot => {
                anyhow::bail!("no other copy holds it: give one with --from")
            }
            Damage::Unreadable if line.body.is_empty() => anyhow::bail!("the disk does not give it back"),
            _ if line.body.is_empty() => {
                anyhow::bail!(
                    "of a copy, only contents are listed: give the store it came from with --from, its lists come first"
                )
            }
            Damage::Attributes if matches!(line.kind(), b"file" | b"dir") => {
                self.attributes(finding, elsewhere, twins)
            }
            _ => self.restore(finding, elsewhere, twins),
        }
    }

    /// Builds it, or finds it in another date, and puts it in all its places.
    fn restore(&self, finding: &Finding, elsewhere: &Elsewhere, twins: &Twins) -> Result<()> {
        let line = &finding.expected;
        let dates: Vec<String> = finding.places.iter().map(|p| p.0.clone()).collect();
        // A folder is each date's own; of the rest, all dates share one.
        if line.kind() == b"dir" {
            for (date, path) in &finding.places {
                fetch::build(&self.room, NEW, line, None, elsewhere, std::slice::from_ref(date))?;
                self.put(date, path)?;
            }
            return Ok(());
        }
        if !self.twin(finding, twins)? {
            let old = finding
                .places
                .first()
                .and_then(|(date, path)| open_file_at(self.dir, &join(date.as_bytes(), path)).ok());
            let built = fetch::build(&self.room, NEW, line, old.as_ref(), elsewhere, &dates)?;
            anyhow::ensure!(built, "no other copy holds it any more: give one with --from");
        }
        for (date, path) in &finding.places {
            remove(&self.room, Path::new(LINK))?;
            linkat(&self.room, NEW, &self.room, LINK, AtFlags::empty()).context("cannot link it")?;
            self.put_as(LINK, date, path)?;
        }
        if let (Some(sum), Some((date, path))) = (line.sum, finding.places.first()) {
            elsewhere.here.mended(sum, date, path);
        }
        remove(&self.room, Path::new(NEW))
    }

    /// Another date that has it, good, and shares it from now on: also what an interrupted repair had built.
    fn twin(&self, finding: &Finding, twins: &Twins) -> Result<bool> {
        remove(&self.room, Path::new(NEW))?;
        let line = &finding.expected;
        let same = twins
            .get(&line.path)
            .into_iter()
            .flatten()
            .filter(|t| t.0.sum == line.sum && mtree::same(&t.0.body, &line.body))
            .flat_map(|t| &t.1);
        for date in same.map(|at| &self.snapshots[*at].date) {
            if finding.places.contains(&(date.clone(), line.path.clone())) {
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
    fn attributes(&self, finding: &Finding, elsewhere: &Elsewhere, twins: &Twins) -> Result<()> {
        let line = &finding.expected;
        let words = mtree::words(&line.body);
        let dates: Vec<String> = finding.places.iter().map(|p| p.0.clone()).collect();
        for (date, path) in &finding.places {
            let full = join(date.as_bytes(), path);
            let is_dir = line.kind() == b"dir";
            let file = match is_dir {
                true => open_dir(self.dir, &full)?,
                false => open_file_at(self.dir, &full)?,
            };
            let twin = twins
                .get(&line.path)
                .into_iter()
                .flatten()
                .filter(|t| mtree::same(&t.0.body, &line.body) || is_dir);
            let twin =
                twin.flat_map(|t| &t.1).map(|at| join(self.snapshots[*at].date.as_bytes(), &line.path));
            // Each is opened when the one before has not the right ones.
            let own = std::iter::once(file.try_clone()?);
            let xattrs = match is_dir {
                true => {
                    let twin = twin.filter_map(|p| open_dir(self.dir, &p).ok());
                    fetch::xattrs(&words, own.chain(twin).chain(elsewhere.folders(line, &dates)))
                }
                false => {
                    let twin = twin.filter_map(|p| open_file_at(self.dir, &p).ok());
                    fetch::xattrs(&words, own.chain(twin).chain(elsewhere.alike(line, &dates)))
                }
            }?;
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
        set_modified(&folder, &TimeSpec::new(before.st_mtime, before.st_mtime_nsec))?;
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
        (findings::list(&self.done, limit), self.done.len() as u64)
    }
}

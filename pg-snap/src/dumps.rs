//! The folder of the dumps: private, one writer at a time, and what looks like a dump in it is one.
//!
//! `DATE` is a complete dump, `DATE.partial` one being written, `DATE.removed` one on its way out.
//! What is not named like this is left alone.

use std::fs::File;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use common::fault::Fault;
use common::lock::Lock;
use common::status::Report;
use common::{durable, places, signals};

/// How the dates in names are written.
const DATE: &str = "%Y-%m-%dT%H-%M-%SZ";
const PARTIAL: &str = ".partial";
const REMOVED: &str = ".removed";
/// Scratch folder of a restore.
const RESTORING: &str = ".restoring";

/// The folder, open and found private.
#[derive(Debug)]
pub(crate) struct Dumps {
    path: PathBuf,
    dir: File,
}

/// Whether `name` is a date as this program writes them.
pub(crate) fn is_date(name: &str) -> bool {
    jiff::civil::DateTime::strptime(DATE, name).is_ok_and(|d| d.strftime(DATE).to_string() == name)
}

impl Dumps {
    /// Opens `path`, making it if it is missing.
    pub(crate) fn make(path: &Path) -> Result<Dumps> {
        places::private_dir(&plain(path))?;
        Dumps::open(path)?.with_context(|| format!("{} went away", path.display()))
    }

    /// Opens `path`; `None` if there is nothing.
    pub(crate) fn open(path: &Path) -> Result<Option<Dumps>> {
        let path = plain(path);
        if std::fs::symlink_metadata(&path).is_err_and(|e| e.kind() == std::io::ErrorKind::NotFound) {
            return Ok(None);
        }
        places::private_dir(&path)?;
        let dir = File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
        let folder = Dumps { path, dir };
        folder.still_private()?;
        Ok(Some(folder))
    }

    /// Its path.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// An error if it is no longer the folder that was opened, or no longer private.
    pub(crate) fn still_private(&self) -> Result<()> {
        places::private_dir(&self.path)?;
        let (now, then) = (std::fs::symlink_metadata(&self.path)?, self.dir.metadata()?);
        if (now.dev(), now.ino()) != (then.dev(), then.ino()) {
            return Err(Fault::denied(format!(
                "{} was replaced by another folder meanwhile",
                self.path.display()
            ))
            .into());
        }
        Ok(())
    }

    /// The lock of writers: dump and prune.
    pub(crate) fn lock(&self) -> Result<Lock> {
        Lock::exclusive(&self.path.join(".lock"), &self.what())
    }

    /// The lock of a restore, which reads: keeps writers out.
    pub(crate) fn lock_shared(&self) -> Result<Lock> {
        Lock::shared(&self.path.join(".lock"), &self.what())
    }

    fn what(&self) -> String {
        format!("the dump folder {}", self.path.display())
    }

    fn names(&self) -> Result<Vec<String>> {
        let what = || format!("cannot list {}", self.path.display());
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&self.path).with_context(what)? {
            // What is not UTF-8 is not ours.
            names.extend(entry.with_context(what)?.file_name().into_string().ok());
        }
        names.sort_unstable();
        Ok(names)
    }

    /// The dates that have a folder, oldest first, and the dates that have an unfinished one.
    pub(crate) fn dates(&self) -> Result<(Vec<String>, Vec<String>)> {
        let names = self.names()?;
        let is_dir = |name: &str| self.path.join(name).symlink_metadata().is_ok_and(|m| m.is_dir());
        let partial = names.iter().filter_map(|n| n.strip_suffix(PARTIAL)).filter(|d| is_date(d));
        let partial = partial.map(str::to_owned).collect();
        Ok((names.into_iter().filter(|n| is_date(n) && is_dir(n)).collect(), partial))
    }

    /// Removes what killed runs left. The caller has the lock, so nobody is writing it.
    pub(crate) fn sweep(&self, _lock: &Lock) -> Result<Vec<String>> {
        let ours = |name: &str| {
            let date = name.strip_suffix(PARTIAL).or_else(|| name.strip_suffix(REMOVED));
            date.is_some_and(is_date) || name == RESTORING
        };
        let left: Vec<String> = self.names()?.into_iter().filter(|n| ours(n)).collect();
        for name in &left {
            remove(&self.path.join(name))
                .with_context(|| format!("cannot clear what an earlier run left: {name}"))?;
        }
        Ok(left)
    }

    /// Removes the dump `date`: renamed away first, so that no half of it is ever taken for a dump.
    pub(crate) fn remove(&self, date: &str, _lock: &Lock) -> Result<()> {
        let away = self.path.join(format!("{date}{REMOVED}"));
        std::fs::rename(self.path.join(date), &away).with_context(|| format!("cannot remove {date}"))?;
        durable::sync_dir(&self.path)?;
        remove(&away)
    }

    /// Begins a new dump, named by the clock. A date is never given twice.
    pub(crate) fn begin(&self, _lock: &Lock) -> Result<Partial<'_>> {
        let date = || jiff::Timestamp::now().strftime(DATE).to_string();
        let taken = |date: &str| self.path.join(date).symlink_metadata().is_ok();
        let mut now = date();
        for _ in 0..20 {
            if !taken(&now) {
                break;
            }
            std::thread::sleep(Duration::from_millis(100));
            now = date();
        }
        let path = self.path.join(format!("{now}{PARTIAL}"));
        make_private(&path)?;
        Ok(Partial { folder: self, date: now, path, open: true })
    }

    /// The scratch folder for a restore.
    pub(crate) fn scratch(&self) -> PathBuf {
        self.path.join(RESTORING)
    }
}

/// Without a slash at the end, which would follow a symbolic link.
fn plain(path: &Path) -> PathBuf {
    path.components().collect()
}

/// Makes a new folder with mode 0700.
pub(crate) fn make_private(path: &Path) -> Result<()> {
    std::fs::DirBuilder::new()
        .mode(0o700)
        .create(path)
        .with_context(|| format!("cannot make the folder {}", path.display()))
}

/// A dump being written; removed when dropped, unless published.
#[derive(Debug)]
pub(crate) struct Partial<'f> {
    folder: &'f Dumps,
    date: String,
    path: PathBuf,
    open: bool,
}

impl Partial<'_> {
    /// Where to write.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The date it will have.
    pub(crate) fn date(&self) -> &str {
        &self.date
    }

    /// Makes it durable and gives it its name: from now on it is a dump.
    pub(crate) fn publish(&mut self) -> Result<PathBuf> {
        sync_tree(&self.path)?;
        signals::check()?;
        self.folder.still_private()?;
        places::private_dir(&self.path)?;
        let target = self.folder.path.join(&self.date);
        if target.symlink_metadata().is_ok() {
            return Err(Fault::failed(format!("{} is there already", target.display())).into());
        }
        std::fs::rename(&self.path, &target)
            .with_context(|| format!("cannot give the dump its name {}", target.display()))?;
        self.open = false;
        durable::sync_dir(&self.folder.path)?;
        Ok(target)
    }

    /// Removes it; says so, and also when that fails.
    pub(crate) fn discard(mut self, report: &mut Report) {
        self.open = false;
        if let Err(e) = remove(&self.path) {
            let path = self.path.display();
            report.left_behind(
                format!("an unfinished dump in {path} ({e:#})"),
                format!("rm -r '{path}', or the next dump or prune does it"),
            );
        } else {
            common::say!("pg-snap", "the unfinished dump {} has been removed", self.date);
        }
    }
}

impl Drop for Partial<'_> {
    fn drop(&mut self) {
        if self.open
            && let Err(e) = remove(&self.path)
        {
            common::say!("pg-snap", "cannot remove {}: {e:#}", self.path.display());
        }
    }
}

/// Makes every file and folder below `path` durable, and itself.
fn sync_tree(path: &Path) -> Result<()> {
    let what = || format!("cannot make {} durable", path.display());
    for entry in std::fs::read_dir(path).with_context(what)? {
        signals::check()?;
        let entry = entry.with_context(what)?;
        if entry.file_type().with_context(what)?.is_dir() {
            sync_tree(&entry.path())?;
        } else {
            File::open(entry.path()).and_then(|f| f.sync_all()).with_context(what)?;
        }
    }
    durable::sync_dir(path)
}

/// Removes a folder of ours and what is in it. A dying writer may still add a file: tries again for a
/// while.
pub(crate) fn remove(path: &Path) -> Result<()> {
    let mut tries = 0;
    loop {
        match remove_once(path, 3) {
            Ok(()) => return Ok(()),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound && !path.exists() => return Ok(()),
            Err(e) if tries >= 30 => {
                return Err(e).with_context(|| format!("cannot remove {}", path.display()));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(100)),
        }
        tries += 1;
    }
}

/// At most `depth` levels, following nothing.
fn remove_once(path: &Path, depth: u32) -> std::io::Result<()> {
    if !path.symlink_metadata()?.is_dir() || depth == 0 {
        return std::fs::remove_file(path);
    }
    for entry in std::fs::read_dir(path)? {
        remove_once(&entry?.path(), depth - 1)?;
    }
    std::fs::remove_dir(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_own_dates_are_dates() {
        assert!(is_date("2026-11-22T03-30-00Z"));
        for other in
            ["2026-11-22", "2026-11-22T03:30:00Z", "2026-13-22T03-30-00Z", "2026-1-2T3-3-0Z", "latest", ""]
        {
            assert!(!is_date(other), "{other}");
        }
    }

    #[test]
    fn a_dump_appears_whole_or_not_at_all() {
        let scratch = tempfile::tempdir().unwrap();
        let folder = Dumps::make(&scratch.path().join("dumps")).unwrap();
        let lock = folder.lock().unwrap();
        let partial = folder.begin(&lock).unwrap();
        std::fs::write(partial.path().join("f"), "x").unwrap();
        drop(partial);
        assert_eq!(folder.dates().unwrap(), (vec![], vec![]));
        let mut partial = folder.begin(&lock).unwrap();
        let date = partial.date().to_owned();
        partial.publish().unwrap();
        assert_eq!(folder.dates().unwrap(), (vec![date], vec![]));
    }

    #[test]
    fn two_dumps_in_one_second_have_two_dates() {
        let scratch = tempfile::tempdir().unwrap();
        let folder = Dumps::make(&scratch.path().join("dumps")).unwrap();
        let lock = folder.lock().unwrap();
        folder.begin(&lock).unwrap().publish().unwrap();
        folder.begin(&lock).unwrap().publish().unwrap();
        assert_eq!(folder.dates().unwrap().0.len(), 2);
    }

    #[test]
    fn sweeping_takes_only_what_is_ours() {
        let scratch = tempfile::tempdir().unwrap();
        let folder = Dumps::make(&scratch.path().join("dumps")).unwrap();
        let lock = folder.lock().unwrap();
        for name in ["2026-11-22T03-30-00Z.partial", "2026-11-22T03-30-01Z.removed", "notes.partial", "keep"]
        {
            std::fs::create_dir_all(folder.path().join(name).join("files")).unwrap();
        }
        assert_eq!(folder.sweep(&lock).unwrap().len(), 2);
        assert!(folder.path().join("notes.partial").exists() && folder.path().join("keep").exists());
    }

    #[test]
    fn removing_does_not_follow_links() {
        let scratch = tempfile::tempdir().unwrap();
        let (inside, outside) = (scratch.path().join("in"), scratch.path().join("out"));
        std::fs::create_dir(&inside).unwrap();
        std::fs::create_dir(&outside).unwrap();
        std::fs::write(outside.join("mine"), "x").unwrap();
        std::os::unix::fs::symlink(&outside, inside.join("link")).unwrap();
        remove(&inside).unwrap();
        assert!(outside.join("mine").exists());
    }

    #[test]
    fn a_folder_that_is_swapped_meanwhile_is_noticed() {
        let scratch = tempfile::tempdir().unwrap();
        let path = scratch.path().join("dumps");
        let folder = Dumps::make(&path).unwrap();
        std::fs::rename(&path, scratch.path().join("away")).unwrap();
        places::private_dir(&path).unwrap();
        assert!(folder.still_private().is_err());
    }
}

//! The mark of a whole instance that is being restored: `restore.json` in the state folder.
//!
//! `link-sync restore --in-place --closed` writes it before it replaces anything, `nc-maint off` removes it when the
//! instance is open again. In between, files and database may be of two dates, even where nothing runs any more: then
//! nothing is backed up, or that mixture would become the newest snapshot.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use crate::durable;
use crate::fault::Fault;

/// What is being restored. Keys are only ever added.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct Restoring {
    /// The snapshot's date.
    pub date: String,
    /// RFC 3339 UTC: when the first attempt began.
    pub since: String,
    /// Nextcloud's folder: other profiles may save the same one.
    #[serde(default)]
    pub root: Option<PathBuf>,
}

fn file(state: &Path) -> PathBuf {
    state.join("restore.json")
}

/// The mark in the folder `state`, if there is one. One that cannot be read is an error: it is one all the same.
pub fn load(state: &Path) -> Result<Option<Restoring>> {
    let path = file(state);
    let Some(bytes) = durable::read(&path)? else { return Ok(None) };
    serde_json::from_slice(&bytes).map(Some).with_context(|| format!("{} is damaged", path.display()))
}

/// Sets it, or leaves that of an earlier attempt at the same date as it is; durable on return. When the first attempt began.
pub fn begin(state: &Path, date: &str, root: Option<&Path>) -> Result<String> {
    if let Some(known) = load(state).ok().flatten().filter(|known| known.date == date) {
        return Ok(known.since);
    }
    let mark =
        Restoring { date: date.to_owned(), since: crate::status::now(), root: root.map(Path::to_owned) };
    durable::write(&file(state), &serde_json::to_vec(&mark)?, 0o600)?;
    Ok(mark.since)
}

/// Removes it, durably; whether it was there.
pub fn end(state: &Path) -> Result<bool> {
    let there = durable::remove(&file(state))?;
    if there {
        durable::sync_dir(state)?;
    }
    Ok(there)
}

/// Refuses to back up what is only half restored: by the mark in `state`, or by one beside it, of another profile with the
/// same `root`.
pub fn none(state: &Path, profile: &str, root: Option<&Path>) -> Result<()> {
    let (profile, since) = match load(state) {
        Ok(None) => match root.and_then(|root| of_another(state, root)) {
            None => return Ok(()),
            Some((profile, mark)) => (profile, format!("of {} that began at {}", mark.date, mark.since)),
        },
        Ok(Some(mark)) => (profile.to_owned(), format!("of {} that began at {}", mark.date, mark.since)),
        Err(e) => (profile.to_owned(), format!("({e:#})")),
    };
    Err(Fault::busy(format!("a restore {since} is not finished: files and database may not belong together"))
        .hint(format!(
            "give the same restore again; or, to take everything as it is now: nc-maint off {profile}"
        ))
        .into())
}

/// The profile whose state folder lies beside `state` and is marked for `root`.
fn of_another(state: &Path, root: &Path) -> Option<(String, Restoring)> {
    let beside = std::fs::read_dir(state.parent()?).ok()?.flatten();
    let marked = |entry: std::fs::DirEntry| {
        let mark = load(&entry.path()).ok().flatten()?;
        (mark.root.as_deref() == Some(root)).then(|| (entry.file_name().to_string_lossy().into_owned(), mark))
    };
    beside.filter_map(marked).next()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_refuses_until_it_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let (home, usb) = (dir.path().join("home"), dir.path().join("usb"));
        std::fs::create_dir(&home).unwrap();
        std::fs::create_dir(&usb).unwrap();
        let root = Some(Path::new("/srv/nextcloud"));
        none(&home, "home", root).unwrap();
        begin(&home, "2026-01-01T00-00-00Z", root).unwrap();
        let first = load(&home).unwrap().unwrap();
        begin(&home, "2026-01-01T00-00-00Z", root).unwrap();
        assert_eq!(load(&home).unwrap().unwrap(), first);
        let error = none(&home, "home", root).unwrap_err();
        assert!(error.to_string().contains("2026-01-01T00-00-00Z"), "{error:#}");
        // Another profile of the same instance refuses, too, and names the one that is marked.
        let error = none(&usb, "usb", root).unwrap_err();
        let fault = error.downcast_ref::<Fault>().unwrap();
        assert!(fault.hint.as_ref().unwrap().contains("off home"), "{fault:?}");
        none(&usb, "usb", Some(Path::new("/srv/other"))).unwrap();
        // Also when it is damaged.
        std::fs::write(file(&home), "{").unwrap();
        assert!(none(&home, "home", root).is_err());
        assert!(end(&home).unwrap() && !end(&home).unwrap());
        none(&home, "home", root).unwrap();
    }
}

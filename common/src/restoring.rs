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
}

fn file(state: &Path) -> PathBuf {
    state.join("restore.json")
}

/// The mark in the folder `state`, if there is one. One that cannot be read is an error: it is one all the same.
pub fn load(state: &Path) -> Result<Option<Restoring>> {
    let path = file(state);
    match std::fs::read(&path) {
        Ok(bytes) => Ok(Some(
            serde_json::from_slice(&bytes).with_context(|| format!("{} is damaged", path.display()))?,
        )),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e).with_context(|| format!("cannot read {}", path.display())),
    }
}

/// Sets it, or leaves that of an earlier attempt at the same date as it is; durable on return.
pub fn begin(state: &Path, date: &str) -> Result<()> {
    if load(state).ok().flatten().is_some_and(|known| known.date == date) {
        return Ok(());
    }
    let mark = Restoring { date: date.to_owned(), since: crate::status::now() };
    durable::write(&file(state), &serde_json::to_vec(&mark)?, 0o600)
}

/// Removes it, durably; whether it was there.
pub fn end(state: &Path) -> Result<bool> {
    let path = file(state);
    match std::fs::remove_file(&path) {
        Ok(()) => {}
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        Err(e) => return Err(e).with_context(|| format!("cannot remove {}", path.display())),
    }
    durable::sync_dir(state)?;
    Ok(true)
}

/// Refuses to back up what is only half restored.
pub fn none(state: &Path, profile: &str) -> Result<()> {
    let since = match load(state) {
        Ok(None) => return Ok(()),
        Ok(Some(mark)) => format!("of {} that began at {}", mark.date, mark.since),
        Err(e) => format!("({e:#})"),
    };
    Err(Fault::busy(format!("a restore {since} is not finished: files and database may not belong together"))
        .hint(format!(
            "give the same restore again; or, to take everything as it is now: nc-maint off {profile}"
        ))
        .into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_refuses_until_it_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        none(dir.path(), "home").unwrap();
        begin(dir.path(), "2026-01-01T00-00-00Z").unwrap();
        let first = load(dir.path()).unwrap().unwrap();
        begin(dir.path(), "2026-01-01T00-00-00Z").unwrap();
        assert_eq!(load(dir.path()).unwrap().unwrap(), first);
        let error = none(dir.path(), "home").unwrap_err();
        assert!(error.to_string().contains("2026-01-01T00-00-00Z"), "{error:#}");
        // Also when it is damaged.
        std::fs::write(file(dir.path()), "{").unwrap();
        assert!(none(dir.path(), "home").is_err());
        assert!(end(dir.path()).unwrap() && !end(dir.path()).unwrap());
        none(dir.path(), "home").unwrap();
    }
}

//! What must be as it was the last time, before a source or a store is believed; and what a person allows this once.

use std::time::Duration;

use anyhow::Result;
use common::fault::Fault;
use common::mutant;
use serde_json::Value;

use crate::fsid::FsId;
use crate::names::show;
use crate::settings::{Place, Settings};
use crate::source::{Checked, Source};
use crate::store::meta::SourceMeta;
use crate::tree::Tree;

/// In the state folder: which store the last snapshot went to.
pub(super) const STORE: &str = "store.json";
/// A source that lost more than this many of a hundred paths is not believed.
const SHRINK_PERCENT: u64 = 30;
/// Below this many paths, a share says nothing.
const SHRINK_FROM: u64 = 20;

/// What a person allows this once.
#[derive(Clone, Copy, Debug, Default, serde::Deserialize, serde::Serialize)]
pub struct Allow {
    /// A source may have lost most of its paths.
    pub shrink: bool,
    /// A source may lie on another file system than last time.
    pub new_filesystem: bool,
    /// The store may be another than last time.
    pub new_store: bool,
    /// Publish although Nextcloud was not in maintenance.
    pub crash_consistent: bool,
    /// For settle: it ends within this time, or fails.
    pub max_time: Option<Duration>,
}

/// Where a source lies: what must be the same the next time.
#[derive(Clone, Debug, Default)]
pub(super) struct Origin {
    pub(super) fs_id: FsId,
    pub(super) fs_path: Option<String>,
    pub(super) inode: Option<u64>,
    pub(super) submounts: Vec<String>,
}

impl Origin {
    pub(super) fn of(checked: &Checked, tree: &Tree) -> Origin {
        Origin {
            fs_id: checked.fs_id.clone(),
            fs_path: checked.fs_path.clone(),
            inode: Some(checked.inode),
            submounts: tree.submounts.iter().map(|m| show(m)).collect(),
        }
    }

    pub(super) fn held(held: &SourceMeta) -> Origin {
        Origin {
            fs_id: FsId::noted(held.fs_id.clone()),
            fs_path: held.fs_path.clone(),
            inode: held.inode,
            submounts: held.submounts.clone(),
        }
    }

    /// A source on another file system than `before`, in another folder of it, or without a mount it had, is not what it
    /// was.
    pub(super) fn same_as(&self, before: &Origin, source: &Source, allow: Allow) -> Result<()> {
        if allow.new_filesystem {
            return Ok(());
        }
        let shown = source.path.display();
        let hint = format!("if it was moved on purpose, {}", once("--allow-new-filesystem"));
        let refuse = |message: String, hint: String| Err(Fault::config(message).hint(hint).into());
        if before.fs_id.name.is_some() && !before.fs_id.is(&self.fs_id) {
            let id = |id: &FsId| id.name.clone().unwrap_or_else(|| "unknown".to_owned());
            return refuse(
                format!(
                    "source {}: {shown} is on file system {} now, and was on {} at the last snapshot: is its disk mounted?",
                    source.name,
                    id(&self.fs_id),
                    id(&before.fs_id)
                ),
                hint.to_owned(),
            );
        }
        // A folder that was renamed or put there anew differs in one of the two alone.
        if let (Some(path), Some(inode)) = (&before.fs_path, before.inode)
            && self.fs_path.as_ref().is_some_and(|now| now != path)
            && self.inode.is_some_and(|now| now != inode)
            && !mutant::active("bind-mount-of-the-source")
        {
            return refuse(
                format!(
                    "source {}: {shown} is the folder {} of its file system now, and was {path} at the last snapshot: is what is \
                     mounted there (a bind mount?) missing?",
                    source.name,
                    self.fs_path.as_deref().unwrap_or("?")
                ),
                hint.to_owned(),
            );
        }
        if let Some(gone) = before.submounts.iter().find(|m| !self.submounts.contains(m)) {
            return refuse(
                format!(
                    "source {}: {shown}/{gone} was a mount point at the last snapshot and is none now",
                    source.name
                ),
                format!("is its disk mounted? {hint}"),
            );
        }
        Ok(())
    }
}

/// How a person lets something pass that was meant: no script has these options.
fn once(option: &str) -> String {
    format!("once `link-sync stage PROFILE {option}`, then `backup-local PROFILE`, which goes on from there")
}

/// Another store than last time may be another disk, mounted in its place.
pub(super) fn same_store(settings: &Settings, store_id: &str, allow: Allow) -> Result<()> {
    if let Ok(text) = std::fs::read(settings.state.join(STORE))
        && let Ok(last) = serde_json::from_slice::<Value>(&text)
        && last["store_id"].as_str().is_some_and(|id| id != store_id)
        && !allow.new_store
    {
        return Err(Fault::config(format!(
            "this is another store than last time (which holds {}): is the right disk mounted there?",
            last["date"].as_str().unwrap_or("?")
        ))
        .hint(format!("if the store was replaced on purpose, {}", once("--new-store")))
        .into());
    }
    Ok(())
}

/// A store inside a source would be copied into itself.
pub(super) fn store_apart(settings: &Settings) -> Result<()> {
    let Place::Local(store) = &settings.store else { return Ok(()) };
    let Ok(store) = store.canonicalize() else { return Ok(()) };
    for source in &settings.sources {
        if source.path.canonicalize().is_ok_and(|path| store.starts_with(path)) {
            return Err(Fault::config(format!(
                "the store {} lies inside source {} ({}): each snapshot would hold all before it",
                store.display(),
                source.name,
                source.path.display()
            ))
            .hint("put the store elsewhere, best on another disk")
            .into());
        }
    }
    Ok(())
}

/// A source that lost most of what it had is not what it was.
pub(super) fn not_shrunk(source: &Source, known: u64, vanished: u64, allow: Allow) -> Result<()> {
    let few = known < SHRINK_FROM || vanished * 100 <= known * SHRINK_PERCENT;
    if allow.shrink || few || mutant::active("a-shrunk-source-is-believed") {
        return Ok(());
    }
    Err(Fault::config(format!(
        "source {}: {vanished} of {known} paths of the last snapshot are gone (more than {SHRINK_PERCENT} %): refused",
        source.name
    ))
    .hint(format!("is its disk mounted, is the data where it was? If this is as it should be, {}", once("--allow-shrink")))
    .into())
}

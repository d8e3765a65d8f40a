//! One path to be restored: where it goes, and the private folder it arrives in.

use std::fs::File;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use common::fault::Fault;
use common::mutant;
use nix::sys::stat::fstat;

use super::folders::set_times;
use super::journal::Journal;
use super::partial::Partial;
use super::swap::Swap;
use super::target::{Target, real};
use super::wishes::Wish;
use crate::cli::Restore;
use crate::names::show;
use crate::protocol::Looked;
use crate::reach::reach;
use crate::settings::Settings;
use crate::store::meta::SnapshotMeta;
use crate::store::visit;

/// One path to be restored.
#[derive(Debug)]
pub struct Item {
    /// It.
    pub wish: Wish,
    /// What the snapshot holds of it.
    pub looked: Looked,
    /// Where it goes.
    pub target: Target,
    /// The folder the private one is made in.
    pub home: File,
    /// That folder's path.
    pub home_shown: PathBuf,
}

impl Item {
    /// Where one path goes.
    pub fn find(
        args: &Restore,
        settings: &Settings,
        meta: &SnapshotMeta,
        wish: Wish,
        looked: Looked,
    ) -> Result<Item> {
        let source = &wish.source;
        let mut others: Vec<PathBuf> = Vec::new();
        let (base, before, rest) = match &args.to {
            Some(to) => (std::path::absolute(to).context("--to")?, 0, wish.full()),
            None => {
                let found = settings.sources.iter().find(|s| s.name == *source).ok_or_else(|| {
                    Fault::config(format!("the profile does not say where source '{source}' belongs"))
                        .hint("restore with --to DIR, or add it to [[snapshot.source]]")
                })?;
                others.extend(settings.sources.iter().filter(|s| s.name != *source).map(|s| real(&s.path)));
                others.extend(
                    strangers(settings, meta, source)?.iter().map(|rest| real(&found.path.join(rest))),
                );
                (found.path.clone(), 1, wish.path.clone())
            }
        };
        // From here on only what the file system made of it counts.
        let mut reached = reach(&base)?;
        let shown = reached.shown.clone();
        if let crate::settings::Place::Local(store) = &settings.store {
            others.push(real(store));
            if shown.starts_with(real(store)) {
                return Err(Fault::config(format!(
                    "{} lies in the store: a snapshot is never changed",
                    shown.display()
                ))
                .hint("restore to another folder")
                .into());
            }
        }
        if args.dry_run && !reached.missing.is_empty() {
            // Nothing is made: what is above it stands for it.
            let home = reached.dir;
            let target = Target {
                anchor: home.try_clone()?,
                shown: shown.clone(),
                strip: before,
                only: None,
                exists: false,
                spare: Vec::new(),
            };
            return Ok(Item { wish, looked, target, home, home_shown: shown });
        }
        let made = reached.make()?;
        let dir = reached.dir;
        let mut target = Target::find(&dir, &shown, before, &rest, &others)?;
        target.exists &=
            !(made || target.only.is_none() && visit::names(&target.anchor.try_clone()?)?.is_empty());
        // The private folder lies at the top, where no user looks, if that is on the same file system.
        let same = dir.metadata()?.dev() == target.anchor.metadata()?.dev();
        let (home, home_shown) = match same && target.only.is_some() {
            true => (dir, shown),
            false => (target.anchor.try_clone()?, target.shown.clone()),
        };
        Ok(Item { wish, looked, target, home, home_shown })
    }

    /// The names that lead to it from the folder it goes into.
    pub fn names(&self) -> Vec<Vec<u8>> {
        self.wish.full().split(|b| *b == b'/').skip(self.target.strip).map(<[u8]>::to_vec).collect()
    }

    /// What the private folder for one path is for.
    pub fn journal(&self, args: &Restore, meta: &SnapshotMeta) -> Journal {
        Journal {
            snapshot: meta.id.clone(),
            path: match mutant::active("restores-are-told-apart-by-bytes") {
                true => show(&self.wish.full()).into_bytes(),
                false => self.wish.full(),
            },
            target: match mutant::active("restores-are-told-apart-by-bytes") {
                true => show(self.target.path().as_os_str().as_bytes()).into_bytes(),
                false => self.target.path().into_os_string().into_vec(),
            },
            closed: args.closed,
            swap: None,
        }
    }

    /// The private folder for one path.
    pub fn open(&self, args: &Restore, meta: &SnapshotMeta) -> Result<Partial> {
        let times = fstat(&self.home).context("cannot look at a folder")?;
        let partial = Partial::open(&self.home, &self.home_shown, self.journal(args, meta), &meta.date)?;
        set_times(&self.home, &times)?;
        Ok(partial)
    }

    /// The renames that put `new` in its place, and what is there into `old`.
    pub fn swap<'a>(&'a self, new: &'a File, old: &'a File) -> Swap<'a> {
        let target = &self.target;
        Swap { new, old, target: &target.anchor, only: target.only.as_deref(), spare: &target.spare }
    }
}

/// Where in `source`, relative to it, sources of the snapshot lay that the profile does not know: what is there now is
/// in this source's folder, and not in its part of the snapshot.
fn strangers(settings: &Settings, meta: &SnapshotMeta, source: &str) -> Result<Vec<PathBuf>> {
    let Some(own) = meta.source(source) else { return Ok(Vec::new()) };
    let mut found = Vec::new();
    for other in meta.sources.iter().filter(|o| !settings.sources.iter().any(|s| s.name == o.name)) {
        let Some(rest) = other.path.strip_prefix(&own.path).and_then(|rest| rest.strip_prefix('/')) else {
            continue;
        };
        if rest.contains('\\') {
            return Err(Fault::config(format!(
                "source {} lay inside of {source}, at {rest}, and the profile does not know it",
                other.name
            ))
            .hint("add it to [[snapshot.source]]")
            .into());
        }
        found.push(PathBuf::from(rest));
    }
    Ok(found)
}

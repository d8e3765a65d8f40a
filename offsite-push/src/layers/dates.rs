//! The dates: published by one rename, dropped by removing the list first; then each image that no list needs may go.
//!
//! Killed or cut between any two steps, what is there is a set of dates that each have all their images, and perhaps images or
//! unfinished names that the next sweep removes.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use common::{durable, mutant};

use super::list::{Layer, List, is_image};
use super::{DATES, IMAGES};
use crate::store;

/// What ends the name of the list of a date that is on its way.
const UNFINISHED: &str = ".unfinished";

/// All lists.
#[derive(Debug, Default)]
pub(super) struct Lists {
    /// Of the dates that are there, oldest first.
    pub(super) dates: Vec<List>,
    /// Of those on their way.
    pub(super) unfinished: Vec<List>,
}

impl Lists {
    /// Reads all; one that cannot be read, or a name that means nothing, is an error: who knows what it needs.
    pub(super) fn read(top: &Path) -> Result<Lists> {
        let dir = top.join(DATES);
        let mut lists = Lists::default();
        for name in names(&dir)? {
            let path = dir.join(&name);
            // What `durable` was about to put in place when it was killed.
            if name.starts_with('.') && name.ends_with(".new") {
                continue;
            }
            let (date, into) = match name.strip_suffix(UNFINISHED) {
                Some(date) => (date, &mut lists.unfinished),
                None => (&name[..], &mut lists.dates),
            };
            anyhow::ensure!(store::is_date(date), "{} is no list of a date", path.display());
            into.extend(List::read(&path, date)?);
        }
        Ok(lists)
    }

    fn needed(&self) -> BTreeSet<&str> {
        let layers = self.dates.iter().chain(&self.unfinished).flat_map(|list| &list.layers);
        layers.filter_map(|l| if let Layer::Image(name) = l { Some(&name[..]) } else { None }).collect()
    }
}

/// Notes what a date that is on its way will have; whether that was new.
pub(super) fn intend(top: &Path, list: &List) -> Result<bool> {
    let path = unfinished(top, &list.date);
    if List::read(&path, &list.date)?.as_ref() == Some(list) {
        return Ok(false);
    }
    list.write(&path)?;
    Ok(true)
}

/// Makes the date be there; false if it was, just so.
pub(super) fn publish(top: &Path, list: &List) -> Result<bool> {
    let container = top.parent().context("the folder of layers has no parent")?;
    for layer in &list.layers {
        let path = layer.path(container);
        let meta =
            std::fs::symlink_metadata(&path).with_context(|| format!("cannot look at {}", path.display()))?;
        let right = match layer {
            Layer::Image(_) => meta.is_file() && meta.len() > 0,
            Layer::Tree(_) => meta.is_dir(),
        };
        anyhow::ensure!(
            right || mutant::active("a-date-has-all-its-images"),
            "{} is no layer",
            path.display()
        );
    }
    let path = top.join(DATES).join(&list.date);
    let changed = match List::read(&path, &list.date)? {
        Some(there) if there == *list => false,
        Some(_) => anyhow::bail!("{} is there already, with other layers", list.date),
        None => {
            // What the list names is on the disk before it is.
            durable::sync_dir(&top.join(IMAGES))?;
            list.write(&path)?;
            true
        }
    };
    gone(&unfinished(top, &list.date))?;
    Ok(changed)
}

/// Takes the date out, and what was on its way of it; false if there was nothing.
pub(super) fn drop_date(top: &Path, date: &str) -> Result<bool> {
    anyhow::ensure!(store::is_date(date), "{date:?} is no date");
    let was = [gone(&top.join(DATES).join(date))?, gone(&unfinished(top, date))?];
    Ok(was.contains(&true))
}

/// Removes the images that no list needs, and what was not finished; their names. The lists that are gone are so durably before.
pub(super) fn sweep(top: &Path) -> Result<Vec<String>> {
    let lists = match Lists::read(top) {
        Err(_) if mutant::active("a-list-that-cannot-be-read-stops-all-removals") => Lists::default(),
        other => other.context("no image is removed")?,
    };
    let (dates, images) = (top.join(DATES), top.join(IMAGES));
    if !dates.exists() {
        return Ok(Vec::new());
    }
    durable::sync_dir(&dates)?;
    let needed = lists.needed();
    let mut removed = Vec::new();
    let found = names(&images)?;
    for name in &found {
        let image = name.strip_suffix(".json").unwrap_or(name);
        let passing = name.starts_with('.') && name.ends_with(".new");
        if passing || (is_image(image) && !needed.contains(image)) {
            std::fs::remove_file(images.join(name)).with_context(|| format!("cannot remove {name}"))?;
            if name == image && !passing {
                removed.push(name.clone());
            }
        }
    }
    durable::sync_dir(&images)?;
    Ok(removed)
}

fn unfinished(top: &Path, date: &str) -> PathBuf {
    top.join(DATES).join(format!("{date}{UNFINISHED}"))
}

/// Removes the file, durably; whether it was there.
fn gone(path: &Path) -> Result<bool> {
    match std::fs::remove_file(path) {
        Ok(()) => {}
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(false),
        Err(e) => return Err(e).with_context(|| format!("cannot remove {}", path.display())),
    }
    durable::sync_dir(path.parent().context("a list without a folder")?)?;
    Ok(true)
}

/// The names in a folder, sorted; none if it is not there.
fn names(dir: &Path) -> Result<Vec<String>> {
    let context = || format!("cannot list {}", dir.display());
    let entries = match std::fs::read_dir(dir) {
        Err(e) if e.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.with_context(context)?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let name = entry.with_context(context)?.file_name();
        names.push(name.into_string().map_err(|name| anyhow::anyhow!("{name:?} is no name of ours"))?);
    }
    names.sort_unstable();
    Ok(names)
}

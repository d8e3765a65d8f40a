//! The dates: published by one rename, dropped by removing the list first; then each image that no list needs may go.
//!
//! Killed or cut between any two steps, what is there is a set of dates that each have all their images, and perhaps images or
//! unfinished names that the next sweep removes.

use std::collections::{BTreeMap, BTreeSet};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use common::{durable, mutant};

use super::below::LOOKED_AT;
use super::list::{Layer, List, is_hash, is_image};
use super::{BIG, DATES, HIDDEN, IMAGES};
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

/// The lists of a container, of which some may be damaged.
#[derive(Debug, Default)]
pub(crate) struct Told {
    /// Of each date the names in its list.
    pub(crate) layered: BTreeMap<String, Vec<String>>,
    /// Why those that cannot be read cannot.
    pub(crate) unread: BTreeMap<String, String>,
    /// The dates that are on their way.
    pub(crate) unfinished: Vec<String>,
    /// Those that are there, and whose lists were known.
    pub(crate) not_read: Vec<String>,
}

impl Told {
    /// Whether a date has it. One whose list cannot be read may.
    fn needs(&self, layer: &Layer) -> bool {
        let name = layer.name();
        !self.unread.is_empty() || self.layered.values().flatten().any(|other| *other == name)
    }
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

    /// What the lists are for somebody who reads them one by one; those of the dates `known` are not read.
    pub(super) fn told(top: &Path, known: &[String]) -> Result<Told> {
        let dir = top.join(DATES);
        let mut told = Told::default();
        for name in names(&dir)? {
            if name.starts_with('.') {
                continue;
            }
            if let Some(date) = name.strip_suffix(UNFINISHED) {
                told.unfinished.push(date.to_owned());
                continue;
            }
            if known.contains(&name) {
                told.not_read.push(name);
                continue;
            }
            let read = match store::is_date(&name) {
                true => List::read(&dir.join(&name), &name),
                false => Err(anyhow::anyhow!("it is no list of a date")),
            };
            match read {
                Ok(list) => told.layered.extend(list.map(|list| (name, list.names()))),
                Err(error) => drop(told.unread.insert(name, format!("{error:#}"))),
            }
        }
        Ok(told)
    }

    /// The names of the images, and the hashes of the large contents.
    fn needed(&self) -> BTreeSet<&str> {
        let layers = self.dates.iter().chain(&self.unfinished).flat_map(|list| &list.layers);
        layers
            .filter_map(|layer| match layer {
                Layer::Image(name) | Layer::Big(name) => Some(name.as_str()),
                Layer::Tree(_) => None,
            })
            .collect()
    }
}

/// Notes what a date that is on its way will have; whether that was new.
pub(super) fn intend(top: &Path, list: &List) -> Result<bool> {
    let path = unfinished(top, &list.date);
    // One that cannot be read is nobody's word any more: this machine knows what is on its way.
    if List::read(&path, &list.date).ok().flatten().as_ref() == Some(list) {
        return Ok(false);
    }
    list.write(&path)?;
    Ok(true)
}

/// Whether a date that is there has this image, or large content. What is only on its way needs none that it did not bring.
pub(super) fn is_published(top: &Path, layer: &Layer) -> Result<bool> {
    Ok(Lists::told(top, &[])?.needs(layer))
}

/// Makes the date be there; false if it was, just so. A list of it that is damaged is written anew.
pub(super) fn publish(top: &Path, list: &List) -> Result<bool> {
    let container = top.parent().context("the folder of layers has no parent")?;
    let images = names(&top.join(IMAGES))?;
    for (at, layer) in list.layers.iter().enumerate() {
        let path = layer.path(container);
        // Of what the base had, too, the name is enough (see `below.rs`).
        if matches!(layer, Layer::Image(name) if at >= LOOKED_AT && images.contains(name)) {
            continue;
        }
        let meta =
            std::fs::symlink_metadata(&path).with_context(|| format!("cannot look at {}", path.display()))?;
        let right = match layer {
            Layer::Image(_) | Layer::Big(_) => meta.is_file() && meta.len() > 0,
            Layer::Tree(_) => meta.is_dir(),
        };
        anyhow::ensure!(
            right || mutant::active("a-date-has-all-its-images"),
            "{} is no layer",
            path.display()
        );
    }
    let path = top.join(DATES).join(&list.date);
    let there = match List::read(&path, &list.date) {
        Err(_) if !List::is_newer(&path) => None,
        other => other?,
    };
    let changed = match there {
        Some(there) if there == *list => false,
        Some(_) => anyhow::bail!("{} is there already, with other layers", list.date),
        None => {
            // What the list names is on the disk before it is.
            list.write_after_all(&path)?;
            true
        }
    };
    gone(&unfinished(top, &list.date))?;
    Ok(changed)
}

/// Puts the image `by` in the place of `layers`, which stand one after the other, in each list that has them; how many that were.
pub(super) fn replace(top: &Path, layers: &[String], by: &str) -> Result<usize> {
    anyhow::ensure!(
        layers.iter().all(|name| is_image(name)) && is_image(by),
        "only images take each other's place"
    );
    anyhow::ensure!(layers.len() > 1, "nothing is gained");
    let meta = std::fs::symlink_metadata(top.join(IMAGES).join(by))
        .with_context(|| format!("cannot look at {by}"))?;
    anyhow::ensure!(meta.is_file() && meta.len() > 0, "{by} is no image");
    let lists = Lists::read(top)?;
    durable::sync_dir(&top.join(IMAGES))?;
    let mut count = 0;
    let there = lists.dates.iter().map(|list| (list, top.join(DATES).join(&list.date)));
    let coming = lists.unfinished.iter().map(|list| (list, unfinished(top, &list.date)));
    for (list, path) in there.chain(coming) {
        let mut names = list.names();
        if put_in_place(&mut names, layers, by) {
            List::new(list.date.clone(), &names)?.write(&path)?;
            count += 1;
        }
    }
    Ok(count)
}

/// Puts `by` in the place of `layers` among `names`, if they are there, one after the other.
pub(super) fn put_in_place(names: &mut Vec<String>, layers: &[String], by: &str) -> bool {
    let Some(at) = names.windows(layers.len()).position(|those| those == layers) else { return false };
    names.splice(at..at + layers.len(), [by.to_owned()]);
    true
}

/// Takes the date out, and what was on its way of it; false if there was nothing.
pub(super) fn drop_date(top: &Path, date: &str) -> Result<bool> {
    anyhow::ensure!(store::is_date(date), "{date:?} is no date");
    let was = [gone(&top.join(DATES).join(date))?, gone(&unfinished(top, date))?];
    Ok(was.contains(&true))
}

/// Removes the images and large contents that no list needs, and what was not finished; their names. The lists that are gone are so durably before.
pub(super) fn sweep(top: &Path) -> Result<Vec<String>> {
    let lists = match Lists::read(top) {
        Err(_) if mutant::active("a-list-that-cannot-be-read-stops-all-removals") => Lists::default(),
        other => other.context("no image is removed")?,
    };
    let dates = top.join(DATES);
    if !dates.exists() {
        return Ok(Vec::new());
    }
    durable::sync_dir(&dates)?;
    let needed = lists.needed();
    let image = |name: &str| is_image(name.strip_suffix(".json").unwrap_or(name));
    let is_needed = |name: &str| needed.contains(name.strip_suffix(".json").unwrap_or(name));
    let mut removed = clear(&top.join(IMAGES), image, is_needed)?;
    removed.retain(|name| is_image(name));
    removed.extend(clear(&top.join(BIG).join(HIDDEN), is_hash, is_needed)?);
    Ok(removed)
}

/// Removes from the folder what is `ours` and not needed, and what of it was not finished; the names of the former. What is nobody's stays.
fn clear(dir: &Path, ours: impl Fn(&str) -> bool, needed: impl Fn(&str) -> bool) -> Result<Vec<String>> {
    let mut removed = Vec::new();
    for name in names(dir)? {
        let passing = name.strip_prefix('.').and_then(|rest| rest.strip_suffix(".new"));
        // What was cut off is gone on with.
        let goes = match passing {
            Some(of) => !needed(of),
            None => ours(&name) && !needed(&name),
        };
        if goes {
            std::fs::remove_file(dir.join(&name)).with_context(|| format!("cannot remove {name}"))?;
            removed.extend(passing.is_none().then_some(name));
        }
    }
    durable::sync_dir(dir)?;
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
pub(super) fn names(dir: &Path) -> Result<Vec<String>> {
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

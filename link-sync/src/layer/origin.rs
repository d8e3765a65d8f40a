//! Where what is new at its path was in the base: files by their inode, which two snapshots of one store share and which cannot
//! have been used again while both exist; folders, which share nothing, by what is in them.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Context as _, Result};
use nix::errno::Errno;

use crate::names::show;
use crate::parallel;
use crate::store::layout::META;
use crate::store::visit::Name;
use crate::store::{open_dir, split, visit};
use crate::tree::join;

/// What was found.
#[derive(Debug, Default)]
pub struct Origins {
    /// Inode number to a path in the base: the first of them by name.
    files: HashMap<u64, Vec<u8>>,
    /// A folder that is new to the one of the base that most of what is in it was in.
    folders: HashMap<Vec<u8>, Vec<u8>>,
}

/// What has come: inodes that were not at their place, and folders with the names in them, the deeper last.
type Come = (HashSet<u64>, BTreeMap<Vec<u8>, Vec<Name>>);

impl Origins {
    /// Compares all names of both.
    pub fn find(base: &File, wanted: &File) -> Result<Origins> {
        let (inodes, folders) = come(base, wanted)?;
        if inodes.is_empty() {
            return Ok(Origins::default());
        }
        let files = Mutex::new(HashMap::<u64, Vec<u8>>::new());
        parallel::each(Vec::new(), |path: Vec<u8>, more| {
            let dir = open_dir(base, &path).with_context(|| format!("cannot open {}", show(&path)))?;
            for (name, is_dir, ino) in visit::names(&dir)? {
                let full = join(&path, &name);
                if full == META.as_bytes() {
                    continue;
                }
                if is_dir {
                    more.push(full);
                } else if inodes.contains(&ino) {
                    let mut files = lock(&files);
                    if files.get(&ino).is_none_or(|known| full < *known) {
                        files.insert(ino, full);
                    }
                }
            }
            Ok(())
        })?;
        let mut origins = Origins { files: unlocked(files), folders: HashMap::new() };
        origins.vote(wanted, &folders)?;
        Ok(origins)
    }

    /// Where the file with this inode is in the base.
    pub fn of(&self, inode: u64) -> Option<&[u8]> {
        self.files.get(&inode).map(Vec::as_slice)
    }

    /// Where most of what is in this new folder was.
    pub fn of_folder(&self, path: &[u8]) -> Option<&[u8]> {
        self.folders.get(path).map(Vec::as_slice)
    }

    /// Whether at least half of what is in the base's folder `from` is in `path`, so that it costs less to hide the rest.
    pub fn is_worth(&self, base: &File, wanted: &File, from: &[u8], path: &[u8]) -> Result<bool> {
        let old = visit::names(&open_dir(base, from)?)?;
        let new: HashSet<(Vec<u8>, Option<u64>)> = visit::names(&open_dir(wanted, path)?)?
            .into_iter()
            .map(|(name, is_dir, ino)| (name, (!is_dir).then_some(ino)))
            .collect();
        let all = old.len();
        let there = old
            .into_iter()
            .filter(|(name, is_dir, ino)| new.contains(&(name.clone(), (!is_dir).then_some(*ino))));
        Ok(2 * there.count() >= all)
    }

    /// Each file speaks for the folder it was in, each folder for the one that its own origin was in, as loud as those in it.
    fn vote(&mut self, wanted: &File, folders: &BTreeMap<Vec<u8>, Vec<Name>>) -> Result<()> {
        let mut loud: HashMap<Vec<u8>, u64> = HashMap::new();
        for (path, names) in folders.iter().rev() {
            let mut votes: BTreeMap<Vec<u8>, u64> = BTreeMap::new();
            for (name, is_dir, ino) in names {
                let full = join(path, name);
                let (origin, voice) = match is_dir {
                    true => (self.of_folder(&full), loud.get(&full).copied().unwrap_or(0)),
                    false => (self.of(*ino), 1),
                };
                if let Some((dir, _)) = origin.map(split).filter(|o| o.1 == name && !o.0.is_empty()) {
                    *votes.entry(dir.to_vec()).or_default() += voice;
                }
            }
            // The first of those with the most.
            let Some((from, voice)) = votes.into_iter().rev().max_by_key(|v| v.1) else { continue };
            if !is_folder(wanted, &from)? {
                self.folders.insert(path.clone(), from);
                loud.insert(path.clone(), voice);
            }
        }
        Ok(())
    }
}

/// What is in `wanted` and not at its place in `base`.
fn come(base: &File, wanted: &File) -> Result<Come> {
    let found = Mutex::new(Come::default());
    parallel::each((Vec::new(), true), |(path, known): (Vec<u8>, bool), more| {
        let context = || format!("cannot compare the folder {}", show(&path));
        let names = visit::names(&open_dir(wanted, &path).with_context(context)?)?;
        let before = match known {
            true => visit::names(&open_dir(base, &path).with_context(context)?)?,
            false => Vec::new(),
        };
        let before: HashMap<Vec<u8>, (bool, u64)> = before.into_iter().map(|n| (n.0, (n.1, n.2))).collect();
        let mut inodes = Vec::new();
        for (name, is_dir, ino) in &names {
            let full = join(&path, name);
            let old = before.get(name);
            if *is_dir {
                if full != META.as_bytes() {
                    more.push((full, old.is_some_and(|o| o.0)));
                }
            } else if old != Some(&(false, *ino)) {
                inodes.push(*ino);
            }
        }
        let mut found = lock(&found);
        found.0.extend(inodes);
        if !known {
            found.1.insert(path, names);
        }
        Ok(())
    })?;
    Ok(unlocked(found))
}

fn is_folder(root: &File, path: &[u8]) -> Result<bool> {
    match open_dir(root, path) {
        Ok(_) => Ok(true),
        Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => Ok(false),
        Err(e) => Err(e).with_context(|| format!("cannot look at {}", show(path))),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn unlocked<T>(mutex: Mutex<T>) -> T {
    mutex.into_inner().unwrap_or_else(PoisonError::into_inner)
}

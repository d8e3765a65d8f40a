//! The whole of a source, as one walk saw it.

use std::collections::{HashMap, HashSet};

use super::dir::{Dir, Entry};
use super::meta::{Meta, NEVER, Stamp};
use super::path::split;

/// A whole source.
#[derive(Debug, Default)]
pub struct Tree {
    /// The source's own directory.
    pub root: Meta,
    /// [`Entry::changed`] for the root.
    pub root_changed: bool,
    /// Every directory by its path.
    pub dirs: HashMap<Vec<u8>, Dir>,
    /// What something else is mounted on, and directories on another file system than their parent.
    pub submounts: Vec<Vec<u8>>,
    /// Of those, the ones whose inode numbers and change times cannot be relied on, and why.
    pub untrusted: Vec<(Vec<u8>, String)>,
    /// What was left out, with all that is in it, as rsync cannot send it: too long, or too deep.
    pub beyond: Vec<Vec<u8>>,
    /// Wall clock when the walk began.
    pub walked_at: Stamp,
}

impl Tree {
    /// Paths in it, the root not counted.
    pub fn len(&self) -> u64 {
        self.dirs.values().map(|d| d.len() as u64).sum()
    }

    /// Has `path` differ from any later walk.
    pub fn distrust(&mut self, path: &[u8]) {
        let (dir, name) = split(path);
        if let Some(entry) = self.dirs.get_mut(dir).and_then(|dir| dir.find_mut(name)) {
            entry.meta.ctime = NEVER;
        }
    }

    /// Whether `path` is in it, and no folder.
    pub fn holds_file(&self, path: &[u8]) -> bool {
        self.find(path).is_some_and(|entry| !entry.meta.is_dir())
    }

    /// The entry of `path`, if it is in the tree.
    pub fn find(&self, path: &[u8]) -> Option<&Entry> {
        let (dir, name) = split(path);
        self.dirs.get(dir)?.find(name)
    }

    /// Sum of the sizes of its regular files, in bytes.
    pub fn bytes(&self) -> u64 {
        self.dirs.values().map(Dir::bytes).sum()
    }

    /// Sum of what its entries occupy, in bytes.
    pub fn allocated(&self) -> u64 {
        self.dirs.values().flat_map(Dir::entries).map(|e| e.1.allocated).sum()
    }

    /// Forgets `paths`, with all that is below them: the store does not hold them any more.
    pub fn forget(&mut self, paths: &[Vec<u8>]) {
        let mut by_folder: HashMap<&[u8], HashSet<&[u8]>> = HashMap::new();
        for path in paths {
            let (dir, name) = split(path);
            by_folder.entry(dir).or_default().insert(name);
        }
        for (dir, names) in by_folder {
            if let Some(dir) = self.dirs.get_mut(dir) {
                dir.forget(&names);
            }
        }
        let gone: HashSet<&[u8]> = paths.iter().map(|p| &p[..]).collect();
        let below = |path: &[u8]| {
            let ends = path.iter().enumerate().filter(|(_, b)| **b == b'/').map(|(at, _)| at);
            ends.chain([path.len()]).any(|end| gone.contains(&path[..end]))
        };
        self.dirs.retain(|path, _| !below(path));
    }
}

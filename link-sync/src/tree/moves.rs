//! Files may only have moved: here those are found that an older tree of the same source has under other names.
//!
//! A number of an inode comes again, and change times move with every rename, so nothing is believed here: it is only found out
//! which files are worth reading.

use std::collections::{HashMap, HashSet};

use super::dir::Entry;
use super::meta::Meta;
use super::path::join;
use super::walked::Tree;

/// A copy of fewer bytes is sent as fast as it is asked for.
const COPY: u64 = 64 << 10;

/// A file that may be in the older tree.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Where it is.
    pub path: Vec<u8>,
    /// Where the older tree has its inode, with its size and time; empty if it has only a file as large somewhere.
    pub old: Vec<u8>,
    /// As the walk saw it.
    pub meta: Meta,
}

/// An older tree, by what marked files of a newer one could be in it.
#[derive(Debug)]
pub struct Before<'a> {
    tree: &'a Tree,
    /// Where their inodes are.
    places: HashMap<u64, (&'a [u8], &'a [u8])>,
    /// Sizes of new files that some file in it has, too.
    sizes: HashSet<u64>,
}

/// Its inode number and times mean something.
fn is_candidate(entry: &Entry) -> bool {
    entry.changed && entry.meta.is_file() && !entry.meta.is_untrusted()
}

impl<'a> Before<'a> {
    /// What of `tree` concerns the marked files in the folders `dirs` of `now`.
    pub fn new(tree: &'a Tree, now: &Tree, dirs: &[Vec<u8>]) -> Before<'a> {
        let (mut inodes, mut wanted) = (HashSet::new(), HashSet::new());
        for (path, dir) in dirs.iter().filter_map(|path| Some((path, now.dirs.get(path)?))) {
            let before = tree.dirs.get(path);
            for (name, entry) in dir.entries().filter(|(_, e)| is_candidate(e)) {
                inodes.insert(entry.meta.ino);
                if entry.meta.size >= COPY && before.and_then(|b| b.find(name)).is_none() {
                    wanted.insert(entry.meta.size);
                }
            }
        }
        let (mut places, mut sizes) = (HashMap::new(), HashSet::new());
        if !inodes.is_empty() {
            for (path, dir) in &tree.dirs {
                for (name, entry) in dir.entries().filter(|(_, e)| e.meta.is_file()) {
                    if inodes.contains(&entry.meta.ino) {
                        places.insert(entry.meta.ino, (&path[..], name));
                    }
                    if wanted.contains(&entry.meta.size) {
                        sizes.insert(entry.meta.size);
                    }
                }
            }
        }
        Before { tree, places, sizes }
    }

    /// The candidates in the folder `path` of `now`.
    pub fn candidates(&self, now: &Tree, path: &[u8]) -> Vec<Candidate> {
        let (before, mut found) = (self.tree.dirs.get(path), Vec::new());
        let Some(dir) = now.dirs.get(path) else { return found };
        for (name, entry) in dir.entries().filter(|(_, e)| is_candidate(e)) {
            let meta = entry.meta;
            let alike = |m: &Meta| {
                (m.kind(), m.ino, m.size, m.mtime) == (meta.kind(), meta.ino, meta.size, meta.mtime)
            };
            let there = before.and_then(|b| b.find(name));
            if there.is_some_and(|e| alike(&e.meta)) {
                // Only its attributes changed: rsync sees to that.
                continue;
            }
            let place = self.places.get(&meta.ino).copied();
            let place = place.filter(|(dir, name)| {
                self.tree.dirs.get(*dir).and_then(|d| d.find(name)).is_some_and(|e| alike(&e.meta))
            });
            let is_copy = there.is_none() && meta.size >= COPY && self.sizes.contains(&meta.size);
            if place.is_some() || is_copy {
                let old = place.map(|(dir, name)| join(dir, name)).unwrap_or_default();
                found.push(Candidate { path: join(path, name), old, meta });
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::{Dir, Stamp};

    fn file(ino: u64, size: u64, mtime: i64) -> Meta {
        Meta {
            mode: libc::S_IFREG | 0o644,
            size,
            ino,
            mtime: Stamp { sec: mtime, nsec: 0 },
            ..Meta::default()
        }
    }

    fn tree(dirs: &[(&str, &[(&str, Meta)])]) -> Tree {
        let dirs = dirs.iter().map(|(path, list)| {
            let list = list.iter().map(|(n, m)| (n.as_bytes().to_vec(), *m, 0)).collect();
            (path.as_bytes().to_vec(), Dir::new(list))
        });
        Tree { dirs: dirs.collect(), walked_at: Stamp { sec: 100, nsec: 0 }, ..Tree::default() }
    }

    #[test]
    fn what_moved_is_found_and_what_only_looks_like_it_is_not() {
        let big = COPY + 7;
        let old = tree(&[(
            "d",
            &[
                ("edited", file(1, 5, 1)),
                ("moved", file(2, 5, 1)),
                ("reused", file(3, 5, 1)),
                ("same", file(4, 5, 1)),
                ("swapped", file(5, 5, 1)),
                ("with", file(6, 5, 1)),
                ("large", file(7, big, 1)),
            ],
        )]);
        let mut now = tree(&[
            (
                "",
                &[
                    ("edited", file(1, 5, 2)),
                    ("moved", file(2, 5, 1)),
                    ("copy", file(20, big, 9)),
                    ("other", file(21, big + 1, 9)),
                ],
            ),
            (
                "d",
                &[
                    ("reused", file(30, 5, 1)),
                    ("new", file(3, 5, 2)),
                    ("same", file(4, 5, 1)),
                    ("swapped", file(6, 5, 1)),
                    ("with", file(5, 5, 1)),
                    ("large", file(7, big, 1)),
                    ("longer", file(8, 5, 1).untrusted()),
                ],
            ),
        ]);
        let dirs = now.mark_all().dirs;
        let before = Before::new(&old, &now, &dirs);
        let found: Vec<_> = dirs.iter().flat_map(|dir| before.candidates(&now, dir)).collect();
        let found: Vec<_> = found
            .iter()
            .map(|c| {
                (String::from_utf8_lossy(&c.path).into_owned(), String::from_utf8_lossy(&c.old).into_owned())
            })
            .collect();
        let wanted = [("copy", ""), ("moved", "d/moved"), ("d/swapped", "d/with"), ("d/with", "d/swapped")];
        assert_eq!(found, wanted.map(|(a, b)| (a.to_owned(), b.to_owned())));
    }
}

//! What differs between two walks of a source: that is marked in the later one.

use super::dir::Dir;
use super::meta::Meta;
use super::path::{join, split};
use super::walked::Tree;

/// What [`Tree::mark_changes`] found.
#[derive(Debug, Default)]
pub struct Changes {
    /// Paths the store must not keep as they are: gone, or of another type now. A directory stands
    /// for everything below it.
    pub dropped: Vec<Vec<u8>>,
    /// Changed non-directories of the same type as before.
    pub replaced: Vec<Vec<u8>>,
    /// Entries in the new tree that are marked, the root not counted.
    pub marked: u64,
    /// The directories these are in, each before those below it.
    pub dirs: Vec<Vec<u8>>,
    /// Entries of the old tree that are gone.
    pub vanished: u64,
    /// Bytes of files that are marked because they cannot be trusted, but look as they did.
    pub alike_bytes: u64,
}

impl Tree {
    /// Marks everything: for a store that holds nothing of it.
    pub fn mark_all(&mut self) -> Changes {
        self.root_changed = true;
        let mut changes = Changes::default();
        for (path, dir) in &mut self.dirs {
            dir.entries_mut().for_each(|e| e.1.changed = true);
            changes.marked += dir.len() as u64;
            changes.dirs.push(path.clone());
        }
        changes.dirs.sort_unstable();
        changes
    }

    /// Marks `path` too, which the store does not hold as it should; whether it was not marked yet. A folder that
    /// `changes` did not name is named out of order.
    pub fn mark(&mut self, path: &[u8], changes: &mut Changes) -> bool {
        if path.is_empty() {
            return !std::mem::replace(&mut self.root_changed, true);
        }
        let (parent, name) = split(path);
        let entry = self.dirs.get_mut(parent).and_then(|dir| dir.find_mut(name));
        let Some(entry) = entry.filter(|e| !e.changed) else { return false };
        entry.changed = true;
        changes.marked += 1;
        if !entry.meta.is_dir() {
            changes.replaced.push(path.to_vec());
        }
        changes.dirs.push(parent.to_vec());
        true
    }

    /// What a clone of `old` holds after this tree's changes to it were marked and left out: all that is the same, and
    /// every folder with the time it had. `each` hears of every folder, sorted, and then of what is expected in it.
    pub fn cloned<E>(
        &self,
        old: &Tree,
        mut each: impl FnMut(&[u8], Option<(&[u8], &Meta)>) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut folders: Vec<&Vec<u8>> =
            self.dirs.keys().filter(|path| old.dirs.contains_key(*path)).collect();
        folders.sort_unstable();
        for path in folders {
            let (Some(now), Some(before)) = (self.dirs.get(path), old.dirs.get(path)) else { continue };
            each(path, None)?;
            let mut before = before.entries().peekable();
            for (name, entry) in now.entries() {
                while before.next_if(|(n, _)| *n < name).is_some() {}
                let Some((_, known)) = before.next_if(|(n, _)| *n == name) else { continue };
                let same = !entry.changed || known.meta.is_dir();
                if same && known.meta.kind() == entry.meta.kind() {
                    each(path, Some((name, &known.meta)))?;
                }
            }
        }
        Ok(())
    }

    /// Marks the entries that differ from `old`, the tree of what the store holds.
    ///
    /// Changed means that any field differs, or that the old entry's ctime is not safely older than
    /// the walk that recorded it: a second change within one tick of the clock moves no stamp.
    pub fn mark_changes(&mut self, old: &Tree) -> Changes {
        let racy = old.walked_at.two_seconds_before();
        let differs = |old: &Meta, new: &Meta| old != new || old.ctime >= racy;
        self.root_changed = differs(&old.root, &self.root);
        let mut changes = Changes::default();
        let mut matched = 0u64;
        let nothing = Dir::default();
        for (path, dir) in &mut self.dirs {
            let before = old.dirs.get(path).unwrap_or(&nothing);
            let mut before = before.entries().peekable();
            let mut marked = 0;
            for (name, entry) in dir.entries_mut() {
                while let Some((gone, _)) = before.next_if(|(n, _)| *n < name) {
                    changes.dropped.push(join(path, gone));
                }
                let known = before.next_if(|(n, _)| *n == name).map(|(_, e)| &e.meta);
                matched += u64::from(known.is_some());
                entry.changed = known.is_none_or(|k| differs(k, &entry.meta));
                marked += u64::from(entry.changed);
                if entry.meta.is_untrusted()
                    && known.is_some_and(|k| (k.size, k.mtime) == (entry.meta.size, entry.meta.mtime))
                {
                    changes.alike_bytes += entry.allocated.min(entry.meta.size);
                }
                match known {
                    Some(k) if k.kind() != entry.meta.kind() => changes.dropped.push(join(path, name)),
                    Some(_) if entry.changed && !entry.meta.is_dir() => {
                        changes.replaced.push(join(path, name));
                    }
                    _ => {}
                }
            }
            changes.dropped.extend(before.map(|(gone, _)| join(path, gone)));
            if marked > 0 {
                changes.marked += marked;
                changes.dirs.push(path.clone());
            }
        }
        changes.dirs.sort_unstable();
        changes.vanished = old.len() - matched;
        changes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tree::Stamp;

    fn file(ino: u64, ctime: i64) -> Meta {
        Meta {
            mode: libc::S_IFREG | 0o644,
            size: 1,
            ino,
            ctime: Stamp { sec: ctime, nsec: 0 },
            ..Meta::default()
        }
    }

    fn tree(dirs: &[(&str, &[(&str, Meta)])], walked_at: i64) -> Tree {
        let dirs = dirs.iter().map(|(path, list)| {
            let list = list.iter().map(|(n, m)| (n.as_bytes().to_vec(), *m, 0)).collect();
            (path.as_bytes().to_vec(), Dir::new(list))
        });
        Tree { dirs: dirs.collect(), walked_at: Stamp { sec: walked_at, nsec: 0 }, ..Tree::default() }
    }

    fn marked(tree: &Tree) -> Vec<String> {
        let all =
            tree.dirs.iter().flat_map(|(path, dir)| dir.entries().map(move |(n, e)| (join(path, n), e)));
        let changed = all.filter(|(_, e)| e.changed);
        let mut list: Vec<_> = changed.map(|(p, _)| String::from_utf8_lossy(&p).into_owned()).collect();
        list.sort();
        list
    }

    #[test]
    fn added_gone_changed_and_retyped() {
        let dir = Meta { mode: libc::S_IFDIR | 0o755, ino: 9, ..Meta::default() };
        let old = tree(
            &[
                ("", &[("a", file(1, 1)), ("b", file(2, 1)), ("d", dir), ("t", dir)]),
                ("d", &[("x", file(3, 1))]),
                ("t", &[("y", file(4, 1))]),
            ],
            100,
        );
        let mut new = tree(
            &[
                (
                    "",
                    &[("a", file(1, 1)), ("b", file(2, 7)), ("c", file(5, 1)), ("d", dir), ("t", file(6, 1))],
                ),
                ("d", &[]),
            ],
            200,
        );
        let changes = new.mark_changes(&old);
        assert_eq!(marked(&new), ["b", "c", "t"]);
        let mut dropped = changes.dropped;
        dropped.sort();
        assert_eq!(dropped, [b"d/x".to_vec(), b"t".to_vec()]);
        assert_eq!(changes.replaced, [b"b".to_vec()]);
        assert_eq!(changes.vanished, 2, "d/x and t/y");
    }

    #[test]
    fn what_changed_within_two_seconds_of_the_walk_is_changed() {
        let old = tree(&[("", &[("a", file(1, 98)), ("b", file(2, 97))])], 100);
        let mut new = tree(&[("", &[("a", file(1, 98)), ("b", file(2, 97))])], 200);
        new.mark_changes(&old);
        assert_eq!(marked(&new), ["a"]);
    }
}

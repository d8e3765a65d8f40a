//! A source as one walk saw it: compact enough for millions of files, comparable with another.
//!
//! Paths are relative to the source, as bytes; the source itself is the empty path.

use std::collections::{HashMap, HashSet};

use common::mutant;

/// A time as the file system gives it: seconds and nanoseconds since the epoch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Stamp {
    /// Seconds; negative before 1970.
    pub sec: i64,
    /// Nanoseconds, 0 to 999,999,999.
    pub nsec: u32,
}

impl Stamp {
    /// Now, by the wall clock that stamps files.
    pub fn now() -> Stamp {
        let now = jiff::Timestamp::now();
        Stamp { sec: now.as_second(), nsec: u32::try_from(now.subsec_nanosecond()).unwrap_or(0) }
    }

    /// The same where every file system has room for it: outside of 1901 to 2446 (ext4), what arrives is cut without a word.
    pub fn everywhere(self) -> Stamp {
        const FIRST: i64 = -(1 << 31);
        const LAST: i64 = 0x3_7fff_ffff;
        let fits = (FIRST + 1..LAST).contains(&self.sec) || mutant::active("odd-times-are-no-hole");
        if fits { self } else { Stamp::default() }
    }

    /// Two seconds earlier: the coarsest time stamps in use (file systems with 1 s exist), doubled.
    pub fn two_seconds_before(self) -> Stamp {
        Stamp { sec: self.sec - 2, nsec: self.nsec }
    }
}

/// A change time that no walk is ever later than: what has it counts as changed.
pub const NEVER: Stamp = Stamp { sec: i64::MAX, nsec: 0 };

/// The inode number of each folder of btrfs that stands for a subvolume which is not there.
pub const STUB: u64 = 2;

/// What is compared to decide whether a path changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Meta {
    /// Type and permissions, as `st_mode`.
    pub mode: u32,
    /// Bytes.
    pub size: u64,
    /// Inode number.
    pub ino: u64,
    /// Content change.
    pub mtime: Stamp,
    /// Inode change: moves with every change a program can make, and cannot be set.
    pub ctime: Stamp,
}

impl Meta {
    /// The type bits of the mode.
    pub fn kind(&self) -> u32 {
        self.mode & libc::S_IFMT
    }
    /// A directory.
    pub fn is_dir(&self) -> bool {
        self.kind() == libc::S_IFDIR
    }
    /// A regular file.
    pub fn is_file(&self) -> bool {
        self.kind() == libc::S_IFREG
    }
    /// The same without what says nothing on a file system that does not keep inode numbers, or moves no change time:
    /// it differs from whatever any walk has seen, as [`NEVER`] is not safely over.
    pub fn untrusted(self) -> Meta {
        Meta { ino: 0, ctime: NEVER, ..self }
    }
    /// The same for a folder of btrfs that stands for a subvolume which its snapshot does not hold: its times are those of the
    /// moment in which it is looked at.
    pub fn stub(self) -> Meta {
        Meta { mtime: Stamp::default(), ctime: Stamp::default(), ..self }
    }
    /// Whether it is such a one.
    pub fn is_stub(&self) -> bool {
        self.is_dir() && self.ino == STUB && self.ctime == Stamp::default()
    }
    /// Whether it is such a one.
    pub fn is_untrusted(&self) -> bool {
        self.ino == 0 && self.ctime == NEVER
    }
}

/// One name in a directory.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    name_at: u32,
    name_len: u16,
    /// Set by [`Tree::mark_changes`]: differs from what the store holds.
    pub changed: bool,
    /// Bytes it occupies, for sparse files less than its size. Not in the index.
    pub allocated: u64,
    /// The rest.
    pub meta: Meta,
}

/// One directory's entries, sorted by name, the names in one block.
#[derive(Debug, Default)]
pub struct Dir {
    names: Vec<u8>,
    entries: Vec<Entry>,
    /// Sum of the sizes of its regular files.
    bytes: u64,
}

impl Dir {
    /// A directory from its entries in any order.
    pub fn new(mut list: Vec<(Vec<u8>, Meta, u64)>) -> Dir {
        list.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        let names = list.iter().map(|(name, _, _)| name.len()).sum();
        let (names, entries) = (Vec::with_capacity(names), Vec::with_capacity(list.len()));
        let mut dir = Dir { names, entries, bytes: 0 };
        for (name, meta, allocated) in list {
            // NAME_MAX is 255 on every file system, and 4 GiB of names in one directory do not exist.
            let name_at = u32::try_from(dir.names.len()).unwrap_or(u32::MAX);
            let name_len = u16::try_from(name.len()).unwrap_or(u16::MAX);
            dir.names.extend_from_slice(&name);
            dir.entries.push(Entry { name_at, name_len, changed: false, allocated, meta });
            dir.bytes += if meta.is_file() { meta.size } else { 0 };
        }
        dir
    }

    /// The entries in the order of their names' bytes.
    pub fn entries(&self) -> impl Iterator<Item = (&[u8], &Entry)> {
        self.entries.iter().map(|e| (self.name(e), e))
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// The entry called `name`.
    pub fn find(&self, name: &[u8]) -> Option<&Entry> {
        self.entries.binary_search_by(|e| self.name(e).cmp(name)).ok().map(|at| &self.entries[at])
    }

    /// Forgets the entries called `gone`, in one pass over all of them.
    fn forget(&mut self, gone: &HashSet<&[u8]>) {
        let (names, bytes) = (&self.names, &mut self.bytes);
        self.entries.retain(|entry| {
            let start = entry.name_at as usize;
            let stays = !gone.contains(&names[start..start + usize::from(entry.name_len)]);
            *bytes -= if !stays && entry.meta.is_file() { entry.meta.size } else { 0 };
            stays
        });
    }

    /// Asks for each marked entry whether it has `moved`; one that has will differ from any later walk.
    /// Returns how many.
    pub fn distrust<E>(&mut self, mut moved: impl FnMut(&[u8], &Meta) -> Result<bool, E>) -> Result<u64, E> {
        let mut count = 0;
        for entry in self.entries.iter_mut().filter(|e| e.changed) {
            let start = entry.name_at as usize;
            if moved(&self.names[start..start + usize::from(entry.name_len)], &entry.meta)? {
                entry.meta.ctime = NEVER;
                count += 1;
            }
        }
        Ok(count)
    }

    fn name(&self, entry: &Entry) -> &[u8] {
        let start = entry.name_at as usize;
        &self.names[start..start + usize::from(entry.name_len)]
    }
}

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

/// How many paths, and which, whatever their order: two that are equal hold the same. A hole in a snapshot, or what
/// somebody put there, makes them differ.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Deserialize, serde::Serialize)]
pub struct Census {
    /// Folders, the top not counted.
    pub folders: u64,
    /// Everything else.
    pub files: u64,
    /// Sum of a hash of each path, with its type, size and modification time.
    pub sum: u64,
}

impl Census {
    /// Counts `name` in the folder `dir`. A folder's size is not one.
    pub fn add(&mut self, dir: &[u8], name: &[u8], is_dir: bool, size: u64, mtime: Stamp) {
        self.folders += u64::from(is_dir);
        self.files += u64::from(!is_dir);
        self.sum = self.sum.wrapping_add(hash(dir, name, is_dir, if is_dir { 0 } else { size }, mtime));
    }

    /// Adds all of `other`.
    pub fn extend(&mut self, other: &Census) {
        self.folders += other.folders;
        self.files += other.files;
        self.sum = self.sum.wrapping_add(other.sum);
    }
}

/// FNV-1a with a last mixing (of splitmix64), so that sums of it tell sets apart. Both ends must make the same.
fn hash(dir: &[u8], name: &[u8], is_dir: bool, size: u64, mtime: Stamp) -> u64 {
    let numbers = [size.to_le_bytes(), mtime.sec.to_le_bytes(), u64::from(mtime.nsec).to_le_bytes()];
    let last: &[u8] = if is_dir { b"d" } else { b"f" };
    let bytes = dir.iter().chain(b"/").chain(name).chain(numbers.iter().flatten()).chain(last);
    let fnv =
        bytes.fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3));
    let mixed = (fnv ^ (fnv >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^ (mixed >> 31)
}

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

/// `dir/name`, or `name` at the top.
pub fn join(dir: &[u8], name: &[u8]) -> Vec<u8> {
    let mut path = Vec::with_capacity(dir.len() + 1 + name.len());
    if !dir.is_empty() {
        path.extend_from_slice(dir);
        path.push(b'/');
    }
    path.extend_from_slice(name);
    path
}

impl Tree {
    /// Paths in it, the root not counted.
    pub fn len(&self) -> u64 {
        self.dirs.values().map(|d| d.len() as u64).sum()
    }

    /// Has `path` differ from any later walk.
    pub fn distrust(&mut self, path: &[u8]) {
        let at = path.iter().rposition(|b| *b == b'/');
        let (parent, name) = at.map_or((&path[..0], path), |at| (&path[..at], &path[at + 1..]));
        let Some(dir) = self.dirs.get_mut(parent) else { return };
        if let Ok(at) = dir.entries.binary_search_by(|e| dir.name(e).cmp(name)) {
            dir.entries[at].meta.ctime = NEVER;
        }
    }

    /// Whether `path` is in it, and no folder.
    pub fn holds_file(&self, path: &[u8]) -> bool {
        self.find(path).is_some_and(|entry| !entry.meta.is_dir())
    }

    /// The entry of `path`, if it is in the tree.
    pub fn find(&self, path: &[u8]) -> Option<&Entry> {
        let at = path.iter().rposition(|b| *b == b'/');
        let (dir, name) = at.map_or((&path[..0], path), |at| (&path[..at], &path[at + 1..]));
        self.dirs.get(dir)?.find(name)
    }

    /// Sum of the sizes of its regular files, in bytes.
    pub fn bytes(&self) -> u64 {
        self.dirs.values().map(|d| d.bytes).sum()
    }

    /// Sum of what its entries occupy, in bytes.
    pub fn allocated(&self) -> u64 {
        self.dirs.values().flat_map(|d| &d.entries).map(|e| e.allocated).sum()
    }

    /// Marks everything: for a store that holds nothing of it.
    pub fn mark_all(&mut self) -> Changes {
        self.root_changed = true;
        let mut changes = Changes::default();
        for (path, dir) in &mut self.dirs {
            dir.entries.iter_mut().for_each(|e| e.changed = true);
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
        let at = path.iter().rposition(|b| *b == b'/');
        let (parent, name) = at.map_or((&path[..0], path), |at| (&path[..at], &path[at + 1..]));
        let Some(dir) = self.dirs.get_mut(parent) else { return false };
        let found = dir.entries.binary_search_by(|e| dir.name(e).cmp(name));
        let Some(entry) = found.ok().map(|at| &mut dir.entries[at]).filter(|e| !e.changed) else {
            return false;
        };
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

    /// Forgets `paths`, with all that is below them: the store does not hold them any more.
    pub fn forget(&mut self, paths: &[Vec<u8>]) {
        let mut by_folder: HashMap<&[u8], HashSet<&[u8]>> = HashMap::new();
        for path in paths {
            let at = path.iter().rposition(|b| *b == b'/');
            let (dir, name) = at.map_or((&path[..0], &path[..]), |at| (&path[..at], &path[at + 1..]));
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
            let names = &dir.names;
            let mut marked = 0;
            for entry in &mut dir.entries {
                let start = entry.name_at as usize;
                let name = &names[start..start + usize::from(entry.name_len)];
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

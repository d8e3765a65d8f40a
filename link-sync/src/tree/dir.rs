//! One directory of a walk: its entries, sorted by name, the names in one block.

use std::collections::HashSet;

use super::meta::{Meta, NEVER};

/// One name in a directory.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    name_at: u32,
    name_len: u16,
    /// Set by [`Tree::mark_changes`](super::Tree::mark_changes): differs from what the store holds.
    pub changed: bool,
    /// Bytes it occupies, for sparse files less than its size. Not in the index.
    pub allocated: u64,
    /// The rest.
    pub meta: Meta,
}

impl Entry {
    /// Its name, among those of its directory.
    fn name<'a>(&self, names: &'a [u8]) -> &'a [u8] {
        let start = self.name_at as usize;
        &names[start..start + usize::from(self.name_len)]
    }
}

/// One directory's entries, sorted by name, the names in one block.
#[derive(Debug, Default)]
pub struct Dir {
    names: Vec<u8>,
    entries: Vec<Entry>,
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
        self.entries.iter().map(|e| (e.name(&self.names), e))
    }

    /// The same, to be changed.
    pub fn entries_mut(&mut self) -> impl Iterator<Item = (&[u8], &mut Entry)> {
        let names = &self.names;
        self.entries.iter_mut().map(|e| (e.name(names), e))
    }

    /// Number of entries.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Sum of the sizes of its regular files.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    fn place(&self, name: &[u8]) -> Option<usize> {
        self.entries.binary_search_by(|e| e.name(&self.names).cmp(name)).ok()
    }

    /// The entry called `name`.
    pub fn find(&self, name: &[u8]) -> Option<&Entry> {
        self.place(name).map(|at| &self.entries[at])
    }

    /// The same, to be changed.
    pub fn find_mut(&mut self, name: &[u8]) -> Option<&mut Entry> {
        self.place(name).map(|at| &mut self.entries[at])
    }

    /// Forgets the entries called `gone`, in one pass over all of them.
    pub fn forget(&mut self, gone: &HashSet<&[u8]>) {
        let (names, bytes) = (&self.names, &mut self.bytes);
        self.entries.retain(|entry| {
            let stays = !gone.contains(entry.name(names));
            *bytes -= if !stays && entry.meta.is_file() { entry.meta.size } else { 0 };
            stays
        });
    }

    /// Asks for each marked entry whether it has `moved`; one that has will differ from any later walk.
    /// Returns how many.
    pub fn distrust<E>(&mut self, mut moved: impl FnMut(&[u8], &Meta) -> Result<bool, E>) -> Result<u64, E> {
        let mut count = 0;
        for (name, entry) in self.entries_mut().filter(|e| e.1.changed) {
            if moved(name, &entry.meta)? {
                entry.meta.ctime = NEVER;
                count += 1;
            }
        }
        Ok(count)
    }
}

//! Everything that can be seen of a tree, to be compared byte for byte and attribute for attribute.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Picture(pub BTreeMap<Vec<u8>, Seen>);

/// One path. Not the inode, not the count of links: snapshots share, and that is no difference.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seen {
    pub mode: u32,
    pub owner: (u32, u32),
    pub mtime: (i64, i64),
    pub rdev: u64,
    /// A symlink's target, a file's bytes.
    pub content: Vec<u8>,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// Looks at `top` (the empty path) and all below it.
pub fn picture(top: &Path) -> Picture {
    let mut found = BTreeMap::new();
    let mut waiting = vec![Vec::new()];
    while let Some(path) = waiting.pop() {
        let full = if path.is_empty() { top.to_owned() } else { top.join(OsStr::from_bytes(&path)) };
        let seen = look(&full);
        if seen.mode & libc::S_IFMT == libc::S_IFDIR {
            for entry in std::fs::read_dir(&full).unwrap() {
                let name = entry.unwrap().file_name().into_vec();
                let parts = [path.as_slice(), name.as_slice()];
                waiting.push(if path.is_empty() { name } else { parts.join(&b'/') });
            }
        }
        found.insert(path, seen);
    }
    Picture(found)
}

fn look(path: &Path) -> Seen {
    let meta = std::fs::symlink_metadata(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let content = match meta.mode() & libc::S_IFMT {
        libc::S_IFREG => std::fs::read(path).unwrap(),
        libc::S_IFLNK => std::fs::read_link(path).unwrap().into_os_string().into_vec(),
        _ => Vec::new(),
    };
    // Not followed. Symlinks, pipes and devices cannot have those of users.
    let names: Vec<_> = xattr::list(path).map(Iterator::collect).unwrap_or_default();
    let value = |name: &OsStr| xattr::get(path, name).unwrap().unwrap_or_default();
    Seen {
        mode: meta.mode(),
        owner: (meta.uid(), meta.gid()),
        mtime: (meta.mtime(), meta.mtime_nsec()),
        rdev: meta.rdev(),
        content,
        xattrs: names.iter().map(|n| (n.as_bytes().to_vec(), value(n))).collect(),
    }
}

impl Picture {
    /// What is different, in words; empty if nothing is.
    pub fn differences(&self, other: &Picture) -> Vec<String> {
        let mut list = Vec::new();
        for (path, seen) in &self.0 {
            let path_shown = path.escape_ascii();
            match other.0.get(path) {
                None => list.push(format!("{path_shown}: missing")),
                Some(there) if there != seen => {
                    list.push(format!("{path_shown}: {} became {}", seen.short(), there.short()));
                }
                Some(_) => {}
            }
        }
        let more = other.0.keys().filter(|p| !self.0.contains_key(*p));
        list.extend(more.map(|p| format!("{}: should not be there", p.escape_ascii())));
        list
    }

    #[track_caller]
    pub fn same_as(&self, other: &Picture) {
        let list = self.differences(other);
        assert!(list.is_empty(), "{} differences:\n{}", list.len(), list.join("\n"));
    }
}

impl Seen {
    fn short(&self) -> String {
        let content = &self.content[..self.content.len().min(24)];
        let xattrs: Vec<_> =
            self.xattrs.iter().map(|(k, v)| format!("{}={}", k.escape_ascii(), v.escape_ascii())).collect();
        format!(
            "{:o} {:?} mtime {:?} rdev {} {} bytes \"{}\" {xattrs:?}",
            self.mode,
            self.owner,
            self.mtime,
            self.rdev,
            self.content.len(),
            content.escape_ascii()
        )
    }
}

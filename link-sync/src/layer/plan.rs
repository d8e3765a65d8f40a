//! What must be in an image so that, laid over those of the base, it shows the wanted snapshot: told by names and inode
//! numbers of two local snapshots, and by the folders' attributes.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::OsStr;
use std::fs::File;
use std::ops::Bound;
use std::os::unix::ffi::OsStrExt as _;

use anyhow::{Context as _, Result};
use common::mutant;
use nix::fcntl::AtFlags;
use nix::sys::stat::{FileStat, fstatat};
use sha2::{Digest as _, Sha256};

use super::origin::Origins;
use crate::names::show;
use crate::store::layout::META;
use crate::store::sums::Sum;
use crate::store::{diff, open_dir, split, visit};
use crate::tree::join;

/// A file with less in it is stored again where its content could be taken from another place.
pub const SMALL: i64 = 64;

/// What there is to be done at a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// The base has something there, and the snapshot nothing.
    Gone,
    /// A folder, whose attributes are stored. What the base has in it shows through.
    Folder,
    /// A folder that was none in the base: nothing shows through.
    Fresh,
    /// A folder in which what the base has in this other one shows through.
    MovedFolder(Vec<u8>),
    /// What is no folder, and is stored whole; `over` says that the base has something there.
    Whole {
        /// It hides something.
        over: bool,
    },
    /// A file whose attributes are stored, and whose content is in the base: there, or at another path.
    Content(Option<Vec<u8>>),
}

/// Paths relative to the snapshot's folder; a folder comes before what is in it.
pub type Plan = BTreeMap<Vec<u8>, Part>;

/// The plan for `wanted` over `base`; all of it if there is none.
pub fn plan(base: Option<&File>, wanted: &File) -> Result<Plan> {
    let origins = match base {
        Some(base) => Origins::find(base, wanted)?,
        None => Origins::default(),
    };
    let mut planning = Planning {
        base,
        wanted,
        origins: &origins,
        taken: HashSet::new(),
        plan: Plan::new(),
        waiting: vec![Pair { path: Vec::new(), base: base.map(|_| Vec::new()), moved: false }],
    };
    while let Some(pair) = planning.waiting.pop() {
        common::signals::check()?;
        planning.folder(&pair).with_context(|| format!("cannot compare the folder {}", show(&pair.path)))?;
    }
    let mut plan = planning.plan;
    // What the snapshot says of itself is new each time; its lists of files stay in the store, and those of a tree that is the
    // lowest layer do not show through.
    plan.insert(META.into(), if base.is_some() { Part::Fresh } else { Part::Folder });
    for name in ["snapshot.json", "lock"] {
        plan.insert(join(META.as_bytes(), name.as_bytes()), Part::Whole { over: base.is_some() });
    }
    Ok(plan)
}

/// The first part of `plan`, if there is no `after`: all but the contents that are stored, and of these no more than `most` bytes, but
/// at least one; or the next part, of contents after the path `after` alone, with the folders that they lie in. Also the last path,
/// if more follow. What leads to contents elsewhere in the base is in the first part, as only the base is below that.
pub fn slice(
    plan: &Plan,
    after: Option<&[u8]>,
    most: u64,
    size: impl Fn(&[u8]) -> Result<u64>,
) -> Result<(Plan, Option<Vec<u8>>)> {
    let stored = |part: &Part| matches!(part, Part::Whole { .. });
    let mut part = Plan::new();
    // (The mutant has them all in the last part, which whiteouts of the others lie below.)
    if after.is_none() != mutant::active("moves-are-in-the-first-part") {
        part.extend(plan.iter().filter(|p| !stored(p.1)).map(|(path, what)| (path.clone(), what.clone())));
    }
    let begin = after.map_or(Bound::Unbounded, Bound::Excluded);
    let (mut last, mut bytes) = (None, 0_u64);
    for (path, what) in plan.range::<[u8], _>((begin, Bound::Unbounded)).filter(|p| stored(p.1)) {
        bytes = bytes.saturating_add(size(path)?);
        if bytes > most && last.is_some() {
            return Ok((part, last));
        }
        with_parents(&mut part, path);
        part.insert(path.clone(), what.clone());
        last = Some(path.clone());
    }
    Ok((part, None))
}

/// The hash of all that is to be done, where contents of `big` bytes or more lie beside: parts of one plan fit together, and those of
/// two do not.
pub fn digest(plan: &Plan, big: u64) -> Sum {
    let mut hash = Sha256::new();
    hash.update(big.to_le_bytes());
    for (path, part) in plan {
        hash.update(path);
        hash.update([0]);
        hash.update(format!("{part:?}"));
        hash.update([0]);
    }
    hash.finalize().into()
}

/// Adds the folders that `path` lies in.
fn with_parents(plan: &mut Plan, path: &[u8]) {
    let mut at = split(path).0;
    while !at.is_empty() && !plan.contains_key(at) {
        plan.insert(at.to_vec(), Part::Folder);
        at = split(at).0;
    }
}

/// A folder of the wanted snapshot and the one of the base that shows through.
struct Pair {
    path: Vec<u8>,
    base: Option<Vec<u8>>,
    /// It is another path there, or a folder it lies in is.
    moved: bool,
}

struct Planning<'a> {
    base: Option<&'a File>,
    wanted: &'a File,
    origins: &'a Origins,
    /// Folders of the base that show through somewhere else: each at one place only.
    taken: HashSet<Vec<u8>>,
    plan: Plan,
    waiting: Vec<Pair>,
}

impl Planning<'_> {
    fn add(&mut self, path: Vec<u8>, part: Part) {
        with_parents(&mut self.plan, &path);
        self.plan.insert(path, part);
    }

    fn folder(&mut self, pair: &Pair) -> Result<()> {
        let new = open_dir(self.wanted, &pair.path)?;
        let old = match (self.base, &pair.base) {
            (Some(base), Some(path)) => Some(open_dir(base, path)?),
            _ => None,
        };
        let before = old.as_ref().map(visit::names).transpose()?.unwrap_or_default();
        let mut before: HashMap<Vec<u8>, (bool, u64)> =
            before.into_iter().map(|(name, is_dir, ino)| (name, (is_dir, ino))).collect();
        for (name, is_dir, ino) in visit::names(&new)? {
            let full = join(&pair.path, &name);
            if full == META.as_bytes() {
                continue;
            }
            let known = before.remove(&name);
            if is_dir {
                let known_dir = known.is_some_and(|k| k.0);
                let same = match (&old, known_dir) {
                    (Some(old), true) => diff::same_folder(&open_dir(old, &name)?, &open_dir(&new, &name)?)?,
                    _ => false,
                };
                self.subfolder(pair, &name, full, known_dir, same)?;
            } else if known != Some((false, ino)) {
                let stored = known.is_some_and(|k| !k.0);
                let content = match (&old, self.origins.of(ino)) {
                    (_, Some(origin)) => Some(Some(origin.to_vec())),
                    (Some(old), None) if stored && same_content(old, &new, &name)? => Some(None),
                    _ => None,
                };
                // What is too small for that, or no file, is stored.
                let content = content.filter(|_| is_large(&new, &name).unwrap_or(false));
                let part = content.map_or(Part::Whole { over: known.is_some() }, Part::Content);
                self.add(full, part);
            }
        }
        for name in before.into_keys().filter(|name| !pair.path.is_empty() || name != META.as_bytes()) {
            self.add(join(&pair.path, &name), Part::Gone);
        }
        Ok(())
    }

    /// A folder in `pair`: what shows through in it.
    fn subfolder(&mut self, pair: &Pair, name: &[u8], path: Vec<u8>, known: bool, same: bool) -> Result<()> {
        let through = pair.base.as_ref().filter(|_| known).map(|base| join(base, name));
        // Where a folder was moved to, what was in it is taken with it, unless it shows elsewhere already.
        let through = through.filter(|base| !pair.moved || self.taken.insert(base.clone()));
        if let Some(base) = through {
            if !same {
                self.add(path.clone(), Part::Folder);
            }
            self.waiting.push(Pair { path, base: Some(base), moved: pair.moved });
            return Ok(());
        }
        let moved = match (self.base, self.origins.of_folder(&path)) {
            (Some(base), Some(from)) if !known && !self.taken.contains(from) => {
                let worth = self.origins.is_worth(base, self.wanted, from, &path)?;
                worth.then(|| from.to_vec())
            }
            _ => None,
        };
        let part = match &moved {
            Some(from) => {
                self.taken.insert(from.clone());
                Part::MovedFolder(from.clone())
            }
            None if self.base.is_some() => Part::Fresh,
            None => Part::Folder,
        };
        self.add(path.clone(), part);
        self.waiting.push(Pair { path, moved: moved.is_some(), base: moved });
        Ok(())
    }
}

fn stat(dir: &File, name: &[u8]) -> nix::Result<FileStat> {
    fstatat(dir, OsStr::from_bytes(name), AtFlags::AT_SYMLINK_NOFOLLOW)
}

/// Whether it is a file with enough in it.
fn is_large(dir: &File, name: &[u8]) -> nix::Result<bool> {
    let stat = stat(dir, name)?;
    Ok(stat.st_mode & libc::S_IFMT == libc::S_IFREG && stat.st_size >= SMALL)
}

/// Whether both are files with the same bytes: only attributes were changed.
fn same_content(old: &File, new: &File, name: &[u8]) -> Result<bool> {
    let (a, b) = (stat(old, name)?, stat(new, name)?);
    let files = [a, b].iter().all(|s| s.st_mode & libc::S_IFMT == libc::S_IFREG && s.st_size >= SMALL);
    Ok(files && diff::same_content(old, new, OsStr::from_bytes(name), &a, &b)?)
}

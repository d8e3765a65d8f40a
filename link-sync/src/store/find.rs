//! In which snapshots a name is, and where it changed. Only names and inodes are read, and what a match's inode says.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::ffi::OsStrExt as _;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context as _, Result};
use common::exclude::Excludes;
use common::fault::{Kind, kind_of};
use nix::errno::Errno;
use nix::fcntl::AtFlags;
use nix::sys::stat::{FileStat, fstatat};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::{META, Store, open_dir, visit};
use crate::parallel;
use crate::reading::Reading;
use crate::tree::join;
use crate::walk::show;

/// What to look for.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Wanted {
    /// As in `exclude`: a name at any depth, or `/path/from/the/source`; `*`, `?`, `**`, `{a,b}`, `[ab]`.
    pub pattern: String,
    /// Only in this source.
    pub source: Option<String>,
    /// Only in this user's folder of `data`.
    pub user: Option<String>,
    /// Tell of so many paths.
    pub limit: usize,
}

/// What happened to a path from one snapshot to the next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
enum What {
    Appeared,
    Changed,
    Gone,
}

/// A match in one snapshot. A folder is another inode in each, so only that it is there counts.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Seen {
    folder: bool,
    inode: u64,
    size: u64,
    mtime: i64,
}

impl Seen {
    fn of(stat: &FileStat) -> Seen {
        let folder = stat.st_mode & libc::S_IFMT == libc::S_IFDIR;
        Seen {
            folder,
            inode: stat.st_ino,
            size: u64::try_from(stat.st_size).unwrap_or(0),
            mtime: stat.st_mtime,
        }
    }

    fn same(&self, other: &Seen) -> bool {
        self.folder == other.folder && (self.folder || self.inode == other.inode)
    }

    fn event(&self, date: &str, what: What) -> Value {
        let mtime = jiff::Timestamp::from_second(self.mtime).map(|t| t.to_string()).ok();
        let size = (!self.folder).then_some(self.size);
        json!({"date": date, "what": what, "size_bytes": size, "mtime": mtime})
    }
}

/// One path's history.
#[derive(Debug, Default)]
struct History {
    last: Option<Seen>,
    events: Vec<Value>,
    dates: u64,
}

/// Looks through all snapshots, oldest first. Answer: `paths` (each with its `events`), `dates`, `passed_over`, `truncated`.
pub fn find(store: &Store, wanted: &Wanted) -> Result<Value> {
    let pattern = Excludes::new(std::slice::from_ref(&wanted.pattern), Vec::new())?;
    let mut known: BTreeMap<Vec<u8>, History> = BTreeMap::new();
    let (mut dates, mut passed_over) = (Vec::new(), Vec::new());
    for meta in store.snapshots()?.0 {
        let reading = match Reading::hold(store, &meta.date) {
            Ok((reading, _)) => reading,
            // It is being removed.
            Err(e) if kind_of(&e) == Kind::Busy => {
                passed_over.push(meta.date);
                continue;
            }
            Err(e) => return Err(e),
        };
        let mut now = BTreeMap::new();
        let sources = meta.sources.iter().map(|s| s.name.as_str());
        for source in sources.filter(|name| wanted.source.as_deref().is_none_or(|w| w == *name)) {
            look(reading.folder(), source, wanted, &pattern, &mut now)?;
        }
        compare(&mut known, &now, &meta.date);
        dates.push(meta.date);
    }
    let truncated = known.len() > wanted.limit;
    let paths: Vec<Value> = known.iter().take(wanted.limit).map(|(path, h)| tell(path, h)).collect();
    Ok(
        json!({"found": known.len(), "paths": paths, "dates": dates, "passed_over": passed_over, "truncated": truncated}),
    )
}

fn compare(known: &mut BTreeMap<Vec<u8>, History>, now: &BTreeMap<Vec<u8>, Seen>, date: &str) {
    for (path, seen) in now {
        let history = known.entry(path.clone()).or_default();
        history.dates += 1;
        let what = match &history.last {
            None => Some(What::Appeared),
            Some(last) if !last.same(seen) => Some(What::Changed),
            Some(_) => None,
        };
        history.events.extend(what.map(|what| seen.event(date, what)));
        history.last = Some(*seen);
    }
    for (_, history) in known.iter_mut().filter(|(path, _)| !now.contains_key(*path)) {
        if history.last.take().is_some() {
            history.events.push(json!({"date": date, "what": What::Gone, "size_bytes": null, "mtime": null}));
        }
    }
}

fn tell(path: &[u8], history: &History) -> Value {
    let mut entry = Map::new();
    common::status::put_text(&mut entry, "path", OsStr::from_bytes(path));
    entry.insert("dates".into(), history.dates.into());
    entry.insert("in_newest".into(), history.last.is_some().into());
    entry.insert("events".into(), history.events.clone().into());
    Value::Object(entry)
}

/// The matches in one source of one snapshot, as `SOURCE/PATH`.
fn look(
    top: &File,
    source: &str,
    wanted: &Wanted,
    pattern: &Excludes,
    now: &mut BTreeMap<Vec<u8>, Seen>,
) -> Result<()> {
    let begin = match (&wanted.user, source) {
        (Some(user), "data") => join(source.as_bytes(), user.as_bytes()),
        (Some(_), _) => return Ok(()),
        (None, _) => source.as_bytes().to_vec(),
    };
    let found = Mutex::new(now);
    parallel::each(begin, |path, more| {
        let what = || format!("cannot read the folder {}", show(&path));
        let dir = match open_dir(top, &path) {
            Ok(dir) => dir,
            Err(Errno::ENOENT | Errno::ENOTDIR) => return Ok(()),
            Err(e) => return Err(e).with_context(what),
        };
        for (name, is_dir, _) in visit::names(&dir).with_context(what)? {
            let full = join(&path, &name);
            let inside = full.get(source.len() + 1..).unwrap_or_default();
            if pattern.matches(inside, is_dir) {
                let stat = fstatat(&dir, OsStr::from_bytes(&name), AtFlags::AT_SYMLINK_NOFOLLOW)
                    .with_context(what)?;
                found.lock().unwrap_or_else(PoisonError::into_inner).insert(full.clone(), Seen::of(&stat));
            }
            if is_dir {
                more.push(full);
            }
        }
        Ok(())
    })
}

/// A user is one folder.
pub fn is_user(name: &str) -> bool {
    !name.is_empty() && !name.contains('/') && name != "." && name != ".." && name != META
}

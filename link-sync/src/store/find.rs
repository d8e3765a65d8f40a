//! In which snapshots a name is, and where it changed. Only names and inodes are read, and what a match's inode says.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::ffi::OsStrExt as _;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context as _, Result};
use common::exclude::Excludes;
use common::fault::Fault;
use common::mutant;
use nix::errno::Errno;
use nix::fcntl::AtFlags;
use nix::sys::stat::{FileStat, fstatat};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::beneath::open_dir;
use super::layout::META;
use super::meta::SnapshotMeta;
use super::place::Store;
use super::visit;
use crate::names::show;
use crate::parallel;
use crate::tree::join;

/// What to look for.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
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
enum Fate {
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
        // What an overlay shows may have the number that another file has in another date's overlay.
        let file = |seen: &Seen| (seen.inode, seen.size, seen.mtime);
        self.folder == other.folder && (self.folder || file(self) == file(other))
    }
}

/// Something that happened to a path: at which date (by number), what, and what was there then.
type Event = (u32, Fate, Option<Seen>);

/// One path's history.
#[derive(Debug, Default)]
struct History {
    last: Option<Seen>,
    events: Vec<Event>,
    dates: u64,
}

impl History {
    /// At the date `number`, it is there, or not.
    fn at(&mut self, number: u32, seen: Option<Seen>) {
        let what = match (&self.last, &seen) {
            (None, Some(_)) => Some(Fate::Appeared),
            (Some(last), Some(seen)) if !last.same(seen) => Some(Fate::Changed),
            (Some(_), None) => Some(Fate::Gone),
            _ => None,
        };
        self.dates += u64::from(seen.is_some());
        self.events.extend(what.map(|what| (number, what, seen)));
        self.last = seen;
    }

    /// What it takes in memory, about.
    fn size(&self, path: &[u8]) -> u64 {
        (128 + path.len() + self.events.capacity() * size_of::<Event>()) as u64
    }
}

/// The first matches by name, as many as are wanted and as there is memory for; all are counted.
#[derive(Debug)]
struct First {
    paths: BTreeMap<Vec<u8>, History>,
    limit: usize,
    memory: u64,
    used: u64,
    found: u64,
}

impl First {
    fn add(&mut self, path: Vec<u8>, mut history: History) {
        self.found += 1;
        history.events.shrink_to_fit();
        self.used += history.size(&path);
        self.paths.insert(path, history);
        while self.paths.len() > self.limit
            || (self.used > self.memory && !mutant::active("find-keeps-everything"))
        {
            let Some((path, history)) = self.paths.pop_last() else { break };
            self.used -= history.size(&path);
        }
    }
}

/// A snapshot that is looked through. Nothing keeps it from being removed: that would take a descriptor for each, and keep a
/// prune from its work. It is known afterwards by its description that it stayed.
#[derive(Debug)]
struct Dated {
    date: String,
    sources: Vec<String>,
    /// Device and inode of its description; none if it is gone.
    description: Option<(u64, u64)>,
}

impl Dated {
    fn all(store: &Store, top: &File) -> Result<Vec<Dated>> {
        let dated = |meta: SnapshotMeta| Dated {
            description: description(top, &meta.date),
            date: meta.date,
            sources: meta.sources.into_iter().map(|s| s.name).collect(),
        };
        Ok(store.snapshots()?.0.into_iter().map(dated).collect())
    }

    fn stays(&self, top: &File) -> bool {
        self.description.is_some() && self.description == description(top, &self.date)
    }
}

fn description(top: &File, date: &str) -> Option<(u64, u64)> {
    let meta = open_dir(top, &join(date.as_bytes(), META.as_bytes())).ok()?;
    let stat = fstatat(&meta, "snapshot.json", AtFlags::AT_SYMLINK_NOFOLLOW).ok()?;
    Some((stat.st_dev, stat.st_ino))
}

/// How often all is looked through anew because a date went meanwhile. A prune removes its dates within moments.
const TIMES: u32 = 3;

/// Looks through all snapshots. `tell` gets each path with its `events`, sorted by name, as many as `memory` bytes hold. Answer:
/// `found`, `dates`, `passed_over`, `truncated`.
pub fn find(
    store: &Store,
    wanted: &Wanted,
    memory: u64,
    mut tell: impl FnMut(Value) -> Result<()>,
) -> Result<Value> {
    let pattern = Excludes::new(std::slice::from_ref(&wanted.pattern), Vec::new())?;
    let top = store.check()?;
    let (mut passed_over, mut times) = (BTreeSet::new(), 0);
    let (dated, first) = loop {
        let dated = Dated::all(store, &top)?;
        let looked = look_through(&top, &dated, wanted, &pattern, memory);
        let gone: Vec<_> = dated.iter().filter(|d| !d.stays(&top)).map(|d| d.date.clone()).collect();
        if gone.is_empty() || mutant::active("what-went-was-never-there") {
            break (dated, looked?);
        }
        times += 1;
        if times == TIMES {
            return Err(Fault::busy("snapshots are being removed while they are looked through")
                .hint("try again when the prune has ended")
                .into());
        }
        passed_over.extend(gone);
    };
    let truncated = first.found > first.paths.len() as u64;
    let dates: Vec<&str> = dated.iter().map(|d| d.date.as_str()).collect();
    for (path, history) in &first.paths {
        tell(entry(path, history, &dates))?;
    }
    Ok(json!({"found": first.found, "dates": dates, "passed_over": passed_over, "truncated": truncated}))
}

fn look_through(
    top: &File,
    dated: &[Dated],
    wanted: &Wanted,
    pattern: &Excludes,
    memory: u64,
) -> Result<First> {
    let sources: BTreeSet<&str> = dated.iter().flat_map(|d| &d.sources).map(String::as_str).collect();
    let first = First { paths: BTreeMap::new(), limit: wanted.limit, memory, used: 0, found: 0 };
    let first = Mutex::new(first);
    for source in sources.into_iter().filter(|name| wanted.source.as_deref().is_none_or(|w| w == *name)) {
        look(top, dated, source, wanted, pattern, &first)?;
    }
    Ok(first.into_inner().unwrap_or_else(PoisonError::into_inner))
}

fn entry(path: &[u8], history: &History, dates: &[&str]) -> Value {
    let mut entry = Map::new();
    common::status::put_text(&mut entry, "path", OsStr::from_bytes(path));
    entry.insert("dates".into(), history.dates.into());
    entry.insert("in_newest".into(), history.last.is_some().into());
    let event = |(number, what, seen): &Event| {
        let mtime = seen.and_then(|s| jiff::Timestamp::from_second(s.mtime).map(|t| t.to_string()).ok());
        let size = seen.filter(|s| !s.folder).map(|s| s.size);
        let date = usize::try_from(*number).ok().and_then(|n| dates.get(n));
        json!({"date": date, "what": what, "size_bytes": size, "mtime": mtime})
    };
    entry.insert("events".into(), history.events.iter().map(event).collect());
    Value::Object(entry)
}

/// The matches in one source, as `SOURCE/PATH`: folder by folder, each at all dates, so that what is known of the others need not
/// be remembered.
fn look(
    top: &File,
    dated: &[Dated],
    source: &str,
    wanted: &Wanted,
    pattern: &Excludes,
    first: &Mutex<First>,
) -> Result<()> {
    let begin = match (&wanted.user, source) {
        (Some(user), "data") => join(source.as_bytes(), user.as_bytes()),
        (Some(_), _) => return Ok(()),
        (None, _) => source.as_bytes().to_vec(),
    };
    parallel::each(begin, |path, more| {
        let (mut known, mut folders) = (BTreeMap::<Vec<u8>, History>::new(), BTreeSet::new());
        for (number, at) in (0..).zip(dated) {
            let context = || format!("cannot read the folder {} of {}", show(&path), at.date);
            let dir = match open_dir(top, &join(at.date.as_bytes(), &path)) {
                Ok(dir) => Some(dir),
                Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => None,
                Err(e) => return Err(e).with_context(context),
            };
            let names = dir.as_ref().map(visit::names).transpose().with_context(context)?.unwrap_or_default();
            let mut now = BTreeMap::new();
            for (dir, (name, is_dir, _)) in dir.iter().cycle().zip(names) {
                let full = join(&path, &name);
                if pattern.matches(full.get(source.len() + 1..).unwrap_or_default(), is_dir) {
                    let stat = fstatat(dir, OsStr::from_bytes(&name), AtFlags::AT_SYMLINK_NOFOLLOW)
                        .with_context(context)?;
                    now.insert(full.clone(), Seen::of(&stat));
                }
                if is_dir {
                    folders.insert(full);
                }
            }
            for (path, history) in &mut known {
                history.at(number, now.remove(path));
            }
            for (path, seen) in now {
                known.entry(path).or_default().at(number, Some(seen));
            }
        }
        let mut first = first.lock().unwrap_or_else(PoisonError::into_inner);
        for (path, history) in known {
            first.add(path, history);
        }
        more.extend(folders);
        Ok(())
    })
}

/// A user is one folder.
pub fn is_user(name: &str) -> bool {
    !name.is_empty() && !name.contains('/') && name != "." && name != ".." && name != META
}

//! Beginning a snapshot: the checks, the lock, what an interrupted run left, a fresh partial.

use std::ffi::OsStr;
use std::fs::{DirBuilder, File};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use common::fault::Fault;
use common::lock::Lock;
use common::mutant;
use common::record::random_id;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, renameat};
use nix::sys::stat::{FileStat, fstatat};
use serde_json::{Value, json};

use super::beneath::{ensure_dir, existing, open_dir, open_file_at};
use super::clear::remove;
use super::keeps::Keeps;
use super::latest::point_latest;
use super::layout::{INCOMING, META, PARTIAL, PRUNED, RESUME, TRASH};
use super::meta::{DATE_FORMAT, SnapshotMeta};
use super::notes::note;
use super::odd::Known;
use super::pace::{Free, Pace, Reserve};
use super::place::Store;
use super::sweep::sweep;
use super::{ledger, sums, visit};
use crate::tree::split;

/// A store that is ours alone until this value goes.
#[derive(Debug)]
pub struct Writable {
    /// The store.
    pub store: Store,
    /// Its folder.
    pub dir: File,
    /// Random id of the store.
    pub id: String,
    /// The snapshot to share unchanged files with: the newest, unless a copy is made from another.
    pub base: Option<SnapshotMeta>,
    /// The newest snapshot's date.
    pub newest: Option<String>,
    /// A snapshot of another store is copied: nothing is compared with the base, and the date is kept.
    pub copy: bool,
    /// Flushes.
    pub pace: Pace,
    /// Something an interrupted run received is at hand.
    pub resumed: bool,
    /// What its file system can keep.
    pub keeps: Keeps,
    /// What a person should know.
    pub warnings: Vec<Value>,
    /// Held; rsync inherits it.
    pub lock: Lock,
}

/// Names the snapshot that is being copied, so which one `.resume` belongs to.
const COPYING: &str = ".copying";

/// How long the far end and the children of a run that was ended may hold on to the store until they have ended, too: what
/// flushes to a slow disk (syncfs) cannot be interrupted.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// Takes the store for writing, alone.
pub(super) fn lock(store: &Store) -> Result<Lock> {
    let what = format!("the store {}", store.path.display());
    Lock::exclusive_within(&store.path.join(".lock"), &what, PATIENCE)
}

/// Takes the store for writing: [`common::fault::Kind::Busy`] if somebody else writes, also when that is an orphan.
///
/// `copy_from` is for a copy of another store's snapshot: the date here, if any, that shares its unchanged files.
pub fn open(store: &Store, copy_from: Option<Option<&str>>) -> Result<Writable> {
    let dir = store.check()?;
    let lock = lock(store)?;
    let mut known = Known::of(store, jiff::Timestamp::now())?;
    let mut warnings: Vec<Value> = known
        .damaged
        .iter()
        .map(|name| {
            json!({"kind": "damaged-snapshot", "message": format!(
                "{} looks like a snapshot but has no readable {META}/snapshot.json: it is not used",
                store.path.join(name).display())})
        })
        .collect();
    let copy = copy_from.is_some();
    if !copy {
        check_clock(&known)?;
    }
    warnings.extend(known.warnings());
    let newest = known.counted.last().map(|s| s.date.clone());
    // It is for people; no snapshot depends on it.
    match newest.as_ref().map(|newest| (newest, point_latest(&dir, newest, true))) {
        Some((newest, Ok(true))) => warnings.push(json!({"kind": "latest-repaired", "message": format!(
            "'latest' did not point to the newest snapshot, {newest}: it does now")})),
        Some((_, Err(e))) => {
            warnings.push(json!({"kind": "latest-not-moved", "message": format!("{e:#}")}));
        }
        _ => {}
    }
    let base = match copy_from {
        None => known.counted.pop(),
        Some(None) => None,
        Some(Some(date)) => {
            let odd = known.odd.into_iter().map(|o| o.0);
            let found = known.counted.into_iter().chain(odd).find(|s| s.date == date);
            Some(found.with_context(|| format!("there is no snapshot {date} to begin with"))?)
        }
    };
    let id = store_id(store, &dir)?;
    // What making room needs lies ready before there is none.
    ledger::prepare(&dir);
    ensure_dir(&dir, PRUNED.as_bytes()).ok();
    let new_pace = || Pace::new(&dir, store.flush_bytes, Reserve { bytes: store.reserve_bytes });
    let mut pace = new_pace()?;
    if copy {
        let flushed = pace.take_mark()?;
        keep_received(&dir, |_, stat| Ok(flushed.covers(stat)))?;
    } else if [PARTIAL, INCOMING, RESUME].iter().any(|name| open_dir(&dir, name.as_bytes()).is_ok())
        && let Err(error) = pace.sync()
    {
        clear(&dir, RESUME)?;
        pace = new_pace()?;
        warnings.push(json!({"kind": "received-is-lost", "message": format!(
            "what an interrupted run had received is sent again: {error:#}")}));
    } else {
        let base_dir = base.as_ref().map(|b| open_dir(&dir, b.date.as_bytes())).transpose();
        let base_dir = base_dir.context("cannot open the newest snapshot")?;
        keep_received(&dir, |path, stat| Ok(!same_in(base_dir.as_ref(), path, stat)))?;
        from_the_disk(&dir)?;
    }
    for name in [TRASH, PARTIAL, INCOMING] {
        clear(&dir, name)?;
    }
    for name in [PARTIAL, INCOMING] {
        DirBuilder::new().mode(0o700).create(store.path.join(name)).with_context(|| {
            format!(
                "cannot make {}: is the store on a file system that is full or read-only?",
                store.path.join(name).display()
            )
        })?;
    }
    let partial = open_dir(&dir, PARTIAL.as_bytes()).context("cannot open the partial snapshot")?;
    let keeps = Keeps::probe(&partial, &store.path)?;
    let resumed = open_dir(&dir, RESUME.as_bytes()).is_ok();
    if !keeps.xattrs && !nix::unistd::geteuid().is_root() {
        return Err(Fault::config(format!(
            "{} cannot hold extended attributes, so owners and modes would be lost without root",
            store.path.display()
        ))
        .hint("use ext4, xfs or btrfs for the store, or run link-sync serve as root")
        .into());
    }
    if let Some(what) = keeps.lacks().filter(|_| !mutant::active("store-is-probed")) {
        warnings.push(json!({"kind": "attributes-not-kept", "message": format!(
            "the file system of {} cannot hold {what}: they are not part of the snapshot", store.path.display())}));
    }
    Ok(Writable { store: store.clone(), dir, id, base, newest, copy, pace, resumed, keeps, warnings, lock })
}

/// The snapshot whose copy was last begun, by id.
pub fn copying(store: &Store) -> Option<String> {
    note(&store.folder().ok()?, COPYING).ok()?.map(|id| id.trim().to_owned())
}

/// Removes the partial snapshot and all that an interrupted run left.
pub fn discard(store: &Store) -> Result<()> {
    let dir = store.check()?;
    let _lock = lock(store)?;
    for name in [TRASH, PARTIAL, INCOMING, RESUME] {
        clear(&dir, name)?;
    }
    Ok(())
}

/// A name from a clock that stands behind all snapshots, or a little behind the newest, would sort as an old one. A few
/// that are still to come are odd themselves, and block nothing.
fn check_clock(known: &Known) -> Result<()> {
    let now = jiff::Timestamp::now().strftime(DATE_FORMAT).to_string();
    match known.counted.last().or_else(|| known.all_to_come()) {
        Some(newest) if now < newest.date => {
            let date = &newest.date;
            Err(Fault::unavailable(format!("the store's clock says {now}, but its newest snapshot is {date}"))
                .hint(format!("set the clock (is time synchronisation running?); if it was wrong when that snapshot was made, rename its folder to the right date, or remove it: link-sync prune --date {date} --yes"))
                .into())
        }
        _ => Ok(()),
    }
}

fn store_id(store: &Store, dir: &File) -> Result<String> {
    const FILE: &str = ".store-id";
    if let Some(id) = note(dir, FILE)? {
        return Ok(id.trim().to_owned());
    }
    let id = random_id()?;
    common::durable::write(&store.path.join(FILE), format!("{id}\n").as_bytes(), 0o600)?;
    Ok(id)
}

/// Whether `base` has a file of the same size and time at `path`: then it would not be clear which of the two
/// rsync found good.
fn same_in(base: Option<&File>, path: &[u8], stat: &FileStat) -> bool {
    let (parent, name) = split(path);
    let known = base.and_then(|b| open_dir(b, parent).ok());
    let known = known.and_then(|d| fstatat(&d, OsStr::from_bytes(name), AtFlags::AT_SYMLINK_NOFOLLOW).ok());
    known.is_some_and(|k| {
        (k.st_size, k.st_mtime, k.st_mtime_nsec) == (stat.st_size, stat.st_mtime, stat.st_mtime_nsec)
    })
}

/// Saves what an interrupted run had received into `.resume`: files that no snapshot shares, and that are `good`.
fn keep_received(dir: &File, good: impl Fn(&[u8], &FileStat) -> Result<bool>) -> Result<()> {
    for from in [PARTIAL, INCOMING] {
        let Ok(top) = open_dir(dir, from.as_bytes()) else { continue };
        visit::each(&top, |found| {
            let path = found.path();
            if found.is_dir || path.starts_with(META.as_bytes()) {
                return Ok(());
            }
            let stat = fstatat(found.parent, found.name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
            if stat.st_nlink != 1 || stat.st_mode & libc::S_IFMT != libc::S_IFREG || stat.st_size == 0 {
                return Ok(());
            }
            if !good(&path, &stat)? {
                return Ok(());
            }
            let (parent, _) = split(&path);
            // What is in its way there, of another type by an earlier run, or too deep, is sent again: that costs
            // time, and must not keep a snapshot from being made.
            if let Ok(target) = ensure_dir(dir, &crate::tree::join(RESUME.as_bytes(), parent)) {
                renameat(found.parent, found.name, &target, found.name).ok();
            }
            Ok(())
        })?;
    }
    Ok(())
}

/// What was received before is compared as it is on the disk. A write of it may have failed, which was told to whoever
/// asked then; its pages in memory are still what was sent.
fn from_the_disk(dir: &File) -> Result<()> {
    let Some(top) = existing(dir, &[RESUME])?.filter(|_| !mutant::active("memory-is-believed")) else {
        return Ok(());
    };
    visit::each(&top, |found| {
        if !found.is_dir
            && let Ok(file) = open_file_at(found.parent, found.name.as_bytes())
        {
            sums::uncache(&file);
        }
        Ok(())
    })
}

impl Writable {
    /// Refuses when `bytes` more of `source` (or of all), or `inodes` more, would not fit. What an interrupted run
    /// received is there already: returns what is still to come.
    pub fn room(&self, source: Option<&str>, bytes: u64, inodes: u64) -> Result<(u64, u64)> {
        let (mut held, mut held_inodes) = (0, 0);
        let resume = match source {
            Some(source) => self.resume_dir(source)?,
            None => existing(&self.dir, &[RESUME])?,
        };
        if let Some(dir) = resume {
            visit::each(&dir, |found| {
                let stat = fstatat(found.parent, found.name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
                held += u64::try_from(stat.st_blocks).unwrap_or(0) * 512;
                held_inodes += 1;
                Ok(())
            })?;
        }
        let (bytes, inodes) = (bytes.saturating_sub(held), inodes.saturating_sub(held_inodes));
        let reserve = self.store.reserve_bytes;
        let Free { bytes: free, inodes: free_inodes, inodes_reserve } =
            Free::of(&self.dir, Reserve { bytes: reserve })?;
        let shown = self.store.path.display();
        if free < bytes.saturating_add(reserve) {
            return Err(Fault::failed(format!(
                "not enough room in {shown}: {bytes} bytes are to come, {reserve} must stay free, {free} are free"
            ))
            .hint("make room or use a larger disk; reserve_bytes in the profile sets what must stay free")
            .into());
        }
        if let Some(free) = free_inodes.filter(|free| *free < inodes.saturating_add(inodes_reserve)) {
            return Err(Fault::failed(format!(
                "not enough inodes in {shown}: {inodes} are needed, {inodes_reserve} must stay free, {free} are free"
            ))
            .hint("the file system was made with too few inodes: use another, or one made with more (mkfs.ext4 -i)")
            .into());
        }
        Ok((bytes, inodes))
    }

    /// The folder of `source` below `top` (`.partial`, `.incoming`, …), made if missing.
    pub fn source_dir(&self, top: &str, source: &str) -> Result<File> {
        let top = ensure_dir(&self.dir, top.as_bytes())?;
        ensure_dir(&top, source.as_bytes())
    }

    /// The folder of `source` in the base, if it has one.
    pub fn base_dir(&self, source: &str) -> Result<Option<File>> {
        let Some(base) = &self.base else { return Ok(None) };
        existing(&self.dir, &[base.date.as_str(), source])
    }

    /// The folder of `source` among what an interrupted run received.
    pub fn resume_dir(&self, source: &str) -> Result<Option<File>> {
        if !self.resumed {
            return Ok(None);
        }
        existing(&self.dir, &[RESUME, source])
    }

    /// Of what an interrupted copy received, removes all or the path `path` (`SOURCE/PATH`).
    pub fn forget(&self, path: Option<&[u8]>) -> Result<()> {
        let Some(path) = path else { return remove(&self.dir, Path::new(RESUME)) };
        let (dir, name) = split(path);
        match open_dir(&self.dir, &crate::tree::join(RESUME.as_bytes(), dir)) {
            Ok(dir) => remove(&dir, Path::new(OsStr::from_bytes(name))),
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => Ok(()),
            Err(e) => Err(e).context("cannot look at what an interrupted copy received"),
        }
    }

    /// What is received from now on belongs to the snapshot `id`, and so does what was kept.
    pub fn begin_copy(&mut self, id: &str) -> Result<()> {
        self.resumed = open_dir(&self.dir, RESUME.as_bytes()).is_ok();
        self.pace.flush()?;
        common::durable::write(&self.store.path.join(COPYING), format!("{id}\n").as_bytes(), 0o600)
    }

    /// Makes `.incoming/SOURCE` anew, empty.
    pub fn fresh_incoming(&self, source: &str) -> Result<File> {
        let top = ensure_dir(&self.dir, INCOMING.as_bytes())?;
        remove(&top, Path::new(source))?;
        ensure_dir(&top, source.as_bytes())
    }

    /// Renames `name` away first, so that a half-removed tree never has a meaning, then removes it.
    pub fn discard(&self, name: &str) -> Result<()> {
        clear(&self.dir, TRASH)?;
        match renameat(&self.dir, name, &self.dir, TRASH) {
            Ok(()) => clear(&self.dir, TRASH),
            Err(Errno::ENOENT) => Ok(()),
            // No room for a rename. Half of what was received means no more and no less than all of it.
            Err(Errno::ENOSPC | Errno::EDQUOT) => clear(&self.dir, name),
            Err(e) => Err(e).with_context(|| format!("cannot move {name} away")),
        }
    }
}

/// Removes a tree of ours, which may be large.
fn clear(dir: &File, name: &str) -> Result<()> {
    sweep(dir, name, &|_| Ok(())).map(drop)
}

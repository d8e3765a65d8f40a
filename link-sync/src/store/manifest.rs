//! The manifests of a snapshot: `.meta/sha256sums`, which `sha256sum -c` checks, and `.meta/mtree`, for mtree(5).
//!
//! Made when the snapshot is published, after maintenance. A file that the base holds too (same name, same inode)
//! is not looked at: its lines are taken over, so a byte that rots later is told from what was once hashed. Folders
//! that are as they were cloned are not even listed. The manifests' own digests are in `snapshot.json`, so that a
//! rotten manifest is told from a rotten file.

use std::collections::HashSet;
use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context as _, Result};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{Mode, fstatat};
use nix::unistd::linkat;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::beneath::{ensure_dir, existing, open_dir, open_file, open_file_at};
use super::changes::{self, Delta};
use super::clear::remove;
use super::done::AllDone;
use super::layout::{META, PARTIAL};
use super::meta::{FileDigest, Manifest};
use super::open::Writable;
use super::pace::Pace;
use super::sums::{self, Lines, Sum, hex};
use super::{attributes, mtree};
use crate::names::show;
use crate::parallel;
use crate::tree::{join, split};

/// Contents.
pub const SUMS: &str = "sha256sums";
/// Attributes.
pub const MTREE: &str = "mtree";
/// In a copy: contents of what is new in it; the rest is in the parts of the copies before it.
pub const PART: &str = "sha256sums.part";

/// How much is hashed by a thread before the others may have the rest.
const PIECE: usize = 16;

/// What was made.
#[derive(Debug)]
pub struct Made {
    /// For `snapshot.json`.
    pub manifest: Manifest,
    /// What was read for it: files and bytes.
    pub hashed: (u64, u64),
    /// What a person should know.
    pub warnings: Vec<Value>,
}

/// A path that is new, or a folder that changed.
struct NewLine {
    path: Vec<u8>,
    body: Vec<u8>,
    sum: Option<Sum>,
}

/// The snapshot whose manifests are continued.
struct Base {
    dir: File,
    manifest: Manifest,
    date: String,
}

/// Makes the manifests of the partial snapshot `partial`, in its `.meta`. `told` hears how many bytes of how many are
/// hashed.
pub fn make(
    writable: &Writable,
    partial: &File,
    sources: &[Vec<u8>],
    done: &AllDone,
    watch: &(impl Fn(u64, u64) -> Result<()> + Sync),
) -> Result<Made> {
    let (base, warnings) = newest(writable)?;
    let of_clone = base.as_ref().is_some_and(|b| writable.base.as_ref().is_some_and(|w| w.date == b.date));
    let (mut gone, mut marked, mut bytes) = (HashSet::new(), Vec::new(), 0);
    if let Some(base) = &base {
        let before = super::visit::names(&open_dir(&base.dir, b"")?)?.into_iter().map(|n| n.0);
        gone.extend(before.filter(|n| n != META.as_bytes() && !sources.contains(n)));
    }
    for source in sources {
        let name = std::str::from_utf8(source).context("a source's name")?;
        let touched = done.get(name).filter(|d| d.cloned && of_clone).map(|d| with_parents(d.times.keys()));
        let found = compare(base.as_ref(), partial, source, touched.as_ref())?;
        gone.extend(found.left_out.iter().map(|path| join(source, path)));
        for path in found.root.iter().chain(&found.marked) {
            bytes += if path.is_file() { path.size } else { 0 };
            marked.push(if path.path.is_empty() { source.clone() } else { join(source, &path.path) });
        }
    }
    let folder = open_dir(partial, META.as_bytes()).context("cannot open .meta")?;
    if let Some(base) = base.as_ref().filter(|_| gone.is_empty() && marked.is_empty()) {
        let from = open_dir(&base.dir, META.as_bytes()).context("cannot open the base's .meta")?;
        for name in [SUMS, MTREE] {
            linkat(&from, name, &folder, name, AtFlags::empty())
                .with_context(|| format!("cannot link {name} of {}", base.date))?;
        }
        return Ok(Made { manifest: base.manifest.clone(), hashed: (0, 0), warnings });
    }
    let entries = hash_all(partial, &marked, bytes, watch)?;
    let hashed = entries.iter().filter(|e| e.sum.is_some()).count() as u64;
    let old = |name: &str| -> Result<Option<Lines>> {
        let open = |b: &Base| open_file(&b.dir, &format!("{META}/{name}"));
        Ok(base.as_ref().map(open).transpose()?.map(Lines::new))
    };
    let manifest = Manifest {
        sha256sums: write(&folder, SUMS, b"", old(SUMS)?, &gone, &entries, &writable.pace)?,
        mtree: write(&folder, MTREE, mtree::HEAD, old(MTREE)?, &gone, &entries, &writable.pace)?,
    };
    Ok(Made { manifest, hashed: (hashed, bytes), warnings })
}

/// The newest snapshot whose manifests are whole, and what is to be said if that is not the base. What rotted since a
/// file was hashed must not become its new hash, so an older one is better than none.
fn newest(writable: &Writable) -> Result<(Option<Base>, Vec<Value>)> {
    let Some(base) = &writable.base else { return Ok((None, Vec::new())) };
    let (mut older, mut warnings) = (None, Vec::new());
    let mut next = Some(base.clone());
    while let Some(meta) = next.take() {
        if let Some(manifest) = meta.manifest {
            let dir = existing(&writable.dir, &[&meta.date])?.context("the base is gone")?;
            let date = meta.date;
            match check(&dir, &manifest) {
                Ok(()) => return Ok((Some(Base { dir, manifest, date }), warnings)),
                Err(_) if is_copy(&dir) => {}
                Err(why) => {
                    common::signals::check()?;
                    warnings.push(json!({"kind": "checksums-damaged", "message": format!(
                        "the checksums of {date} are damaged, so those before count: {why:#}")}));
                }
            }
        }
        if older.is_none() {
            older = Some(writable.store.snapshots()?.0.into_iter().rev().filter(|s| s.date < base.date));
        }
        next = older.as_mut().and_then(Iterator::next);
    }
    warnings.push(json!({"kind": "hashes-everything", "message":
        "no snapshot has good checksums yet: everything is hashed, this once"}));
    Ok((None, warnings))
}

/// Whether the snapshot `top` was made by `copy`, which leaves the manifests where they are: there is neither of them, and
/// the list that a copy has instead. One that has lost a manifest is no copy.
pub fn is_copy(top: &File) -> bool {
    let is =
        |name: &str| fstatat(top, format!("{META}/{name}").as_str(), AtFlags::AT_SYMLINK_NOFOLLOW).map(drop);
    is(PART) == Ok(()) && [SUMS, MTREE].iter().all(|name| is(name) == Err(Errno::ENOENT))
}

/// Compares the manifests in the snapshot `dir` with what its description says of them.
pub fn check(dir: &File, manifest: &Manifest) -> Result<()> {
    for (name, digest) in [(SUMS, &manifest.sha256sums), (MTREE, &manifest.mtree)] {
        check_one(dir, name, digest)?;
    }
    Ok(())
}

/// Compares one.
pub fn check_one(dir: &File, name: &str, digest: &FileDigest) -> Result<()> {
    let path = format!("{META}/{name}");
    let mut file = open_file(dir, &path).with_context(|| format!("cannot open {path}"))?;
    let (sum, _) = sums::of_file(&mut file, |_| common::signals::check())
        .with_context(|| format!("cannot read {path}"))?;
    anyhow::ensure!(hex(&sum) == digest.sha256, "{path} is not what it was when the snapshot was published");
    Ok(())
}

/// `folders` and all that they are in.
fn with_parents<'a>(folders: impl Iterator<Item = &'a Vec<u8>>) -> HashSet<Vec<u8>> {
    let mut all = HashSet::new();
    for folder in folders {
        let mut path = &folder[..];
        while all.insert(path.to_vec()) {
            path = split(path).0;
        }
    }
    all
}

fn compare(
    base: Option<&Base>,
    partial: &File,
    source: &[u8],
    touched: Option<&HashSet<Vec<u8>>>,
) -> Result<Delta> {
    let context = || format!("cannot compare {}", show(source));
    let new = open_dir(partial, source).with_context(context)?;
    let old = match base.map(|b| open_dir(&b.dir, source)) {
        Some(Ok(dir)) => Some(dir),
        None | Some(Err(nix::errno::Errno::ENOENT)) => None,
        Some(Err(e)) => return Err(e).with_context(context),
    };
    changes::between(old.as_ref(), &new, touched)
}

/// Looks at `paths` and hashes the files among them, on a few threads. Sorted by path.
fn hash_all(
    top: &File,
    paths: &[Vec<u8>],
    total: u64,
    watch: &(impl Fn(u64, u64) -> Result<()> + Sync),
) -> Result<Vec<NewLine>> {
    let (found, done) = (Mutex::new(Vec::with_capacity(paths.len())), AtomicU64::new(0));
    parallel::each(0..paths.len(), |range: std::ops::Range<usize>, more| {
        if range.len() > PIECE {
            let middle = range.start + range.len() / 2;
            more.extend([middle..range.end, range.start..middle]);
            return Ok(());
        }
        let mut part = Vec::with_capacity(range.len());
        for path in &paths[range] {
            let entry = entry(top, path, |read| {
                common::signals::check()?;
                watch(done.fetch_add(read, Ordering::Relaxed) + read, total)
            });
            part.push(entry.with_context(|| format!("cannot hash {}", show(path)))?);
        }
        found.lock().unwrap_or_else(PoisonError::into_inner).extend(part);
        Ok(())
    })?;
    let mut found = found.into_inner().unwrap_or_else(PoisonError::into_inner);
    found.sort_unstable_by(|a: &NewLine, b: &NewLine| a.path.cmp(&b.path));
    Ok(found)
}

fn entry(top: &File, path: &[u8], read: impl FnMut(u64) -> Result<()>) -> Result<NewLine> {
    let (dir, name) = split(path);
    let parent = open_dir(top, dir)?;
    if !nix::unistd::geteuid().is_root() {
        // Whatever a store of an account holds is a file or a folder.
        match open_dir(&parent, name) {
            Ok(folder) => attributes::keep_owner(&folder)?,
            Err(Errno::ENOTDIR) => attributes::keep_owner(&open_file_at(&parent, name)?)?,
            Err(e) => return Err(e.into()),
        }
    }
    let looked = mtree::look(&parent, name)?;
    let sum = looked.file.map(|mut file| sums::of_file(&mut file, read)).transpose()?;
    Ok(NewLine { path: path.to_vec(), body: looked.body, sum: sum.map(|s| s.0) })
}

/// Writes one manifest: the base's lines without what is gone, and the new ones among them, by path.
fn write(
    folder: &File,
    name: &str,
    head: &[u8],
    base: Option<Lines>,
    gone: &HashSet<Vec<u8>>,
    entries: &[NewLine],
    pace: &Pace,
) -> Result<FileDigest> {
    let context = || format!("cannot write {META}/{name}");
    let file = BufWriter::with_capacity(1 << 18, create(folder, name)?);
    let mut out = Output { file, hash: Sha256::new(), bytes: 0, pace };
    out.add(head).with_context(context)?;
    let of_sums = name == SUMS;
    let mut new = entries.iter().filter(|e| !of_sums || e.sum.is_some()).peekable();
    let mut line = Vec::new();
    let mut add = |out: &mut Output<'_>, entry: &NewLine| {
        line.clear();
        match entry.sum.filter(|_| of_sums) {
            Some(sum) => sums::line(&mut line, &sum, &entry.path),
            None => mtree::line(&mut line, &entry.path, &entry.body),
        }
        out.add(&line)
    };
    if let Some(mut lines) = base {
        while let Some(old) = lines.next()? {
            let path = match of_sums {
                true => sums::parse(old).map(|l| l.1),
                false => mtree::parse(old).map(|l| l.0),
            };
            let Some(path) = path else { continue };
            while let Some(entry) = new.next_if(|e| *e.path < *path) {
                add(&mut out, entry).with_context(context)?;
            }
            if new.peek().is_some_and(|e| e.path == *path) || is_below(&path, gone) {
                continue;
            }
            out.add(old).with_context(context)?;
            out.add(b"\n").with_context(context)?;
        }
    }
    for entry in new {
        add(&mut out, entry).with_context(context)?;
    }
    out.file.flush().with_context(context)?;
    Ok(FileDigest { sha256: hex(&out.hash.finalize()), bytes: out.bytes })
}

/// Whether `path`, or a folder it is in, is one of `these`.
fn is_below(path: &[u8], these: &HashSet<Vec<u8>>) -> bool {
    if these.is_empty() {
        return false;
    }
    let mut ends = path.iter().enumerate().filter(|(_, b)| **b == b'/').map(|(at, _)| at);
    these.contains(path) || ends.any(|end| these.contains(&path[..end]))
}

/// The part of a copy's checksums that is being written.
#[derive(Debug)]
pub struct Part(BufWriter<File>);

impl Part {
    /// Begins it in the partial snapshot.
    pub fn begin(writable: &Writable) -> Result<Part> {
        anyhow::ensure!(writable.copy, "only a copy is given its checksums");
        let folder = ensure_dir(&writable.dir, format!("{PARTIAL}/{META}").as_bytes())?;
        remove(&folder, std::path::Path::new(PART))?;
        Ok(Part(BufWriter::new(create(&folder, PART)?)))
    }

    /// Adds a line.
    pub fn add(&mut self, line: &[u8]) -> Result<()> {
        let file = &mut self.0;
        file.write_all(line).and_then(|()| file.write_all(b"\n")).context("cannot write the checksums")
    }

    /// It is complete; publishing makes it durable.
    pub fn finish(mut self) -> Result<()> {
        self.0.flush().context("cannot write the checksums")
    }
}

/// The lines of the snapshot `dir` for the files among `paths`: those that are new in a copy of it. Of what is a copy itself,
/// all that it has: so what all its dates list together, all dates of its copy do.
pub fn part(dir: &File, paths: &HashSet<Vec<u8>>, mut each: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
    let list = |name| match open_file(dir, &format!("{META}/{name}")) {
        Ok(list) => Ok(Some(list)),
        Err(e) if e.downcast_ref::<Errno>() == Some(&Errno::ENOENT) => Ok(None),
        Err(e) => Err(e).with_context(|| format!("cannot open {META}/{name} of the snapshot")),
    };
    let (list, is_copy) = match list(SUMS)? {
        Some(list) => (list, false),
        None => match list(PART)? {
            Some(list) => (list, true),
            None => return Ok(()),
        },
    };
    let mut lines = Lines::new(list);
    while let Some(line) = lines.next()? {
        if sums::parse(line).is_some_and(|(_, path)| is_copy || paths.contains(&*path)) {
            each(line)?;
        }
    }
    Ok(())
}

fn create(folder: &File, name: &str) -> Result<File> {
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let file = openat(folder, name, flags, Mode::from_bits_truncate(0o600));
    Ok(File::from(file.with_context(|| format!("cannot make {META}/{name}"))?))
}

struct Output<'a> {
    file: BufWriter<File>,
    hash: Sha256,
    bytes: u64,
    pace: &'a Pace,
}

impl Output<'_> {
    fn add(&mut self, bytes: &[u8]) -> Result<()> {
        self.hash.update(bytes);
        self.bytes += bytes.len() as u64;
        self.pace.wrote(bytes.len() as u64)?;
        Ok(self.file.write_all(bytes)?)
    }
}

//! Building again what is damaged, from a copy that holds it: nothing is taken that has not the hash it had.

use std::borrow::Borrow;
use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;

use anyhow::{Context as _, Result, bail, ensure};
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{
    FchmodatFlags, Mode, SFlag, UtimensatFlags, fchmod, fchmodat, makedev, mkdirat, mknodat, utimensat,
};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, fchown, fchownat, symlinkat};
use sha2::{Digest as _, Sha256};
use xattr::FileExt as _;

use super::attributes::{self, set_modified};
use super::beneath::{open_dir, open_file_at};
use super::clear::remove;
use super::mtree;
use super::scan::ManifestLine;
use super::sums::Sum;
use crate::account::AsOwner;
use crate::tree::join;

/// Extended attributes of one path.
type Xattrs = BTreeMap<OsString, Vec<u8>>;

/// Paths in the dates of this store, by content. What turns out not to hold it is not tried again: a folder of thousands of
/// files with one content costs as many attempts, not as many for each of them.
#[derive(Debug, Default)]
pub struct Here(RefCell<ByContent>);

#[derive(Debug, Default)]
struct ByContent {
    dates: Vec<String>,
    paths: Vec<Vec<u8>>,
    /// Of each content: date and path, by their numbers, the last one next.
    by_sum: HashMap<Sum, Vec<(usize, usize)>>,
}

/// So many files of the same content are asked for their extended attributes.
const ALIKE: usize = 16;

impl ByContent {
    fn open(&self, store: &File, (date, path): (usize, usize)) -> Option<File> {
        open_file_at(store, &join(self.dates[date].as_bytes(), &self.paths[path])).ok()
    }
}

impl Here {
    /// The number of a date that paths are added in.
    pub fn date(&self, date: &str) -> usize {
        let mut known = self.0.borrow_mut();
        known.dates.push(date.to_owned());
        known.dates.len() - 1
    }

    /// The number of a path that is added in any number of dates.
    pub fn path(&self, path: &[u8]) -> usize {
        let mut known = self.0.borrow_mut();
        known.paths.push(path.to_vec());
        known.paths.len() - 1
    }

    /// In this date, this path should hold `sum`.
    pub fn add(&self, sum: Sum, date: usize, path: usize) {
        self.0.borrow_mut().by_sum.entry(sum).or_default().push((date, path));
    }

    /// `path` in `date` holds `sum` again.
    pub fn mended(&self, sum: Sum, date: &str, path: &[u8]) {
        if self.0.borrow().by_sum.get(&sum).is_none_or(Vec::is_empty) {
            self.add(sum, self.date(date), self.path(path));
        }
    }

    /// Opened files that should hold `sum`, one after the other: whoever asks for the next one has found that the one before
    /// does not.
    fn files<'a>(&'a self, sum: &'a Sum, store: &'a File) -> impl Iterator<Item = File> + 'a {
        let mut before = None;
        std::iter::from_fn(move || {
            let mut known = self.0.borrow_mut();
            loop {
                let list = known.by_sum.get_mut(sum)?;
                let at = match before {
                    None => list.len(),
                    Some(at) => {
                        if !common::mutant::active("each-candidate-is-tried-once") {
                            list.pop();
                        }
                        at
                    }
                };
                let at = at.checked_sub(1)?;
                before = Some(at);
                let place = list[at];
                if let Some(file) = known.open(store, place) {
                    return Some(file);
                }
            }
        })
    }

    /// Some of those, for their attributes.
    fn alike<'a>(&'a self, sum: &'a Sum, store: &'a File) -> impl Iterator<Item = File> + 'a {
        (0..ALIKE)
            .map_while(|n| {
                let known = self.0.borrow();
                let place = known.by_sum.get(sum)?.iter().rev().nth(n).copied()?;
                Some(known.open(store, place))
            })
            .flatten()
    }
}

/// Where else something may be found.
#[derive(Debug, Default)]
pub struct Elsewhere {
    /// Other folders of dated snapshots, and the dates in each.
    pub from: Vec<(File, Vec<String>)>,
    /// The sources as they are now, by name.
    pub sources: HashMap<Vec<u8>, File>,
    /// What this store should hold.
    pub here: Here,
    /// This store.
    pub store: Option<File>,
    /// The store is this account's, and the others may be root's.
    pub account: Option<AsOwner>,
}

impl Elsewhere {
    /// Opens something that is not in this store.
    fn open<T, E>(&self, open: impl FnOnce() -> Result<T, E>) -> Option<T> {
        match &self.account {
            None => open().ok(),
            Some(account) => account.as_root(open).ok()?.ok(),
        }
    }

    /// Opened files that may have the content of `line`, nearest first, each when the one before has not.
    fn files<'a>(&'a self, line: &'a ManifestLine, dates: &'a [String]) -> impl Iterator<Item = File> + 'a {
        let here = line.sum.as_ref().zip(self.store.as_ref());
        here.into_iter()
            .flat_map(|(sum, store)| self.here.files(sum, store))
            .chain(self.elsewhere(line, dates))
    }

    /// Opened files that may have the attributes of `line`.
    pub fn alike<'a>(
        &'a self,
        line: &'a ManifestLine,
        dates: &'a [String],
    ) -> impl Iterator<Item = File> + 'a {
        let here = line.sum.as_ref().zip(self.store.as_ref());
        here.into_iter()
            .flat_map(|(sum, store)| self.here.alike(sum, store))
            .chain(self.elsewhere(line, dates))
    }

    /// The file at the same path in other stores, and in the source.
    fn elsewhere<'a>(
        &'a self,
        line: &'a ManifestLine,
        dates: &'a [String],
    ) -> impl Iterator<Item = File> + 'a {
        // The date itself first, then whatever other dates hold at that path.
        let from = self.from.iter().flat_map(move |(dir, all)| {
            let others = all.iter().rev().filter(|d| !dates.contains(d));
            let each = dates.iter().chain(others);
            each.filter_map(|date| self.open(|| open_file_at(dir, &join(date.as_bytes(), &line.path))))
        });
        let source = || {
            let at = line.path.iter().position(|b| *b == b'/')?;
            let source = self.sources.get(&line.path[..at])?;
            self.open(|| open_file_at(source, &line.path[at + 1..]))
        };
        from.chain(std::iter::once_with(source).flatten())
    }
}

/// Makes `name` in `dir` as `line` describes it: durable, with all its attributes. `old` is the damaged file, for its
/// extended attributes. `false` if no place has the content.
pub fn build(
    dir: &File,
    name: &str,
    line: &ManifestLine,
    old: Option<&File>,
    elsewhere: &Elsewhere,
    dates: &[String],
) -> Result<bool> {
    let words = mtree::words(&line.body);
    let mode = Mode::from_bits_truncate(0o600);
    match line.kind() {
        b"file" => {
            let Some(from) = content(dir, name, line, elsewhere, dates)? else { return Ok(false) };
            let file = open_file_at(dir, name.as_bytes())?;
            let xattrs = xattrs(&words, old.into_iter().chain([&from]))?;
            set_open(&file, &words, xattrs.as_ref())?;
            file.sync_all().context("cannot make it durable")?;
            return Ok(true);
        }
        b"dir" => {
            mkdirat(dir, name, Mode::from_bits_truncate(0o700))?;
            let folder = open_dir(dir, name.as_bytes())?;
            set_open(&folder, &words, xattrs(&words, elsewhere.folders(line, dates))?.as_ref())?;
            folder.sync_all().context("cannot make it durable")?;
            return Ok(true);
        }
        b"link" => symlinkat(OsStr::from_bytes(words.get("link").context("no target")?), dir, name)?,
        b"fifo" => mknodat(dir, name, SFlag::S_IFIFO, mode, 0)?,
        b"socket" => mknodat(dir, name, SFlag::S_IFSOCK, mode, 0)?,
        b"char" => mknodat(dir, name, SFlag::S_IFCHR, mode, device(&words)?)?,
        b"block" => mknodat(dir, name, SFlag::S_IFBLK, mode, device(&words)?)?,
        other => bail!("of an unknown type '{}'", String::from_utf8_lossy(other)),
    }
    set_at(dir, name.as_bytes(), &words, line.kind() == b"link")?;
    Ok(true)
}

impl Elsewhere {
    /// The same folder elsewhere, for its extended attributes.
    pub fn folders<'a>(
        &'a self,
        line: &'a ManifestLine,
        dates: &'a [String],
    ) -> impl Iterator<Item = File> + 'a {
        let from = self.from.iter().flat_map(move |(dir, _)| {
            let path = |date: &String| join(date.as_bytes(), &line.path);
            dates.iter().filter_map(move |date| self.open(|| open_dir(dir, &path(date))))
        });
        let source = || {
            let end = line.path.iter().position(|b| *b == b'/').unwrap_or(line.path.len());
            let rest = line.path.get(end + 1..).unwrap_or_default();
            let source = self.sources.get(&line.path[..end])?;
            self.open(|| open_dir(source, rest))
        };
        from.chain(std::iter::once_with(source).flatten())
    }
}

/// Copies the content into the new file `name`; the place it came from.
fn content(
    dir: &File,
    name: &str,
    line: &ManifestLine,
    elsewhere: &Elsewhere,
    dates: &[String],
) -> Result<Option<File>> {
    let sum = line.sum.context("its hash is not known")?;
    let size = (!line.body.is_empty()).then(|| line.size());
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let mut tried = HashSet::new();
    for mut from in elsewhere.files(line, dates) {
        common::signals::check()?;
        let meta = from.metadata()?;
        if size.is_some_and(|s| s != meta.len()) || !tried.insert((meta.dev(), meta.ino())) {
            continue;
        }
        remove(dir, std::path::Path::new(name))?;
        let mut to = File::from(openat(dir, name, flags, Mode::from_bits_truncate(0o600))?);
        match copy(&mut from, &mut to) {
            Ok(found) if found == sum => return Ok(Some(from)),
            Ok(_) => {}
            Err(Side::Read) => common::signals::check()?,
            Err(Side::Write(error)) => return Err(error),
        }
    }
    remove(dir, std::path::Path::new(name))?;
    Ok(None)
}

/// Which end of a copy failed: another place may be read, but there is no other store to write to.
enum Side {
    Read,
    Write(anyhow::Error),
}

fn copy(from: &mut File, to: &mut File) -> Result<Sum, Side> {
    let (mut hash, mut buffer) = (Sha256::new(), vec![0; 256 << 10]);
    loop {
        let n = match std::io::Read::read(from, &mut buffer) {
            Ok(n) => n,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(_) => return Err(Side::Read),
        };
        common::signals::check().map_err(Side::Write)?;
        if n == 0 {
            return Ok(hash.finalize().into());
        }
        hash.update(&buffer[..n]);
        let written = to.write_all(&buffer[..n]).context("cannot write to the store");
        written.map_err(Side::Write)?;
    }
}

/// The extended attributes that have the digest the manifest tells, from whatever still has them; `None` if nothing has.
pub fn xattrs<F: Borrow<File>>(
    words: &BTreeMap<String, Vec<u8>>,
    like: impl Iterator<Item = F>,
) -> Result<Option<Xattrs>> {
    let Some(tag) = words.get("tags") else { return Ok(Some(Xattrs::new())) };
    let wanted = |all: &Xattrs| mtree::digest(all).is_some_and(|d| *tag == format!("xattr-{d}").into_bytes());
    for file in like {
        let file = file.borrow();
        let Ok(mut all) = mtree::xattrs(file) else { continue };
        if wanted(&all) {
            return Ok(Some(all));
        }
        // The source itself has its owners where rsync's fake-super keeps them in an attribute.
        let meta = file.metadata()?;
        let stat = format!("{:o} 0,0 {}:{}", meta.mode(), meta.uid(), meta.gid());
        all.insert("user.rsync.%stat".into(), stat.into_bytes());
        if wanted(&all) {
            return Ok(Some(all));
        }
    }
    Ok(None)
}

/// Gives an open file or folder the attributes of `words`; the time last.
pub fn set_open(file: &File, words: &BTreeMap<String, Vec<u8>>, xattrs: Option<&Xattrs>) -> Result<()> {
    let meta = file.metadata()?;
    // Kept in an attribute, it is not what the file itself belongs to.
    let kept = xattrs.map_or_else(|| attributes::keeps_owner(file), attributes::carries_owner);
    let owner = if kept { (meta.uid(), meta.gid()) } else { owner(words)? };
    let (uid, gid) = owner;
    if (meta.uid(), meta.gid()) != owner {
        fchown(file, Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid))).context("cannot set its owner")?;
    }
    fchmod(file, Mode::from_bits_truncate(number(words, "mode", 8)?)).context("cannot set its mode")?;
    if let Some(wanted) = xattrs {
        for name in mtree::xattrs(file)?.keys().filter(|n| !wanted.contains_key(*n)) {
            file.remove_xattr(name).context("cannot remove an extended attribute")?;
        }
        for (name, value) in wanted {
            file.set_xattr(name, value).context("cannot set an extended attribute")?;
        }
    }
    set_modified(file, &time(words)?).context("cannot set its time")
}

/// The same for what is not opened.
pub fn set_at(dir: &File, name: &[u8], words: &BTreeMap<String, Vec<u8>>, link: bool) -> Result<()> {
    let name = OsStr::from_bytes(name);
    let (uid, gid) = owner(words)?;
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    let stat = nix::sys::stat::fstatat(dir, name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
    if (stat.st_uid, stat.st_gid) != (uid.as_raw(), gid.as_raw()) {
        fchownat(dir, name, Some(uid), Some(gid), AtFlags::AT_SYMLINK_NOFOLLOW)
            .context("cannot set its owner")?;
    }
    if !link {
        // What was just made is no symlink, and nobody else writes here.
        let mode = Mode::from_bits_truncate(number(words, "mode", 8)?);
        fchmodat(dir, name, mode, FchmodatFlags::FollowSymlink).context("cannot set its mode")?;
    }
    let accessed = TimeSpec::new(stat.st_atime, stat.st_atime_nsec);
    utimensat(dir, name, &accessed, &time(words)?, UtimensatFlags::NoFollowSymlink)
        .context("cannot set its time")
}

fn owner(words: &BTreeMap<String, Vec<u8>>) -> Result<(u32, u32)> {
    Ok((number(words, "uid", 10)?, number(words, "gid", 10)?))
}

fn number(words: &BTreeMap<String, Vec<u8>>, key: &str, radix: u32) -> Result<u32> {
    let text = words.get(key).with_context(|| format!("the manifest does not tell its {key}"))?;
    u32::from_str_radix(std::str::from_utf8(text)?, radix).with_context(|| format!("its {key} is no number"))
}

/// The modification time.
pub fn time(words: &BTreeMap<String, Vec<u8>>) -> Result<TimeSpec> {
    let text = std::str::from_utf8(words.get("time").context("the manifest does not tell its time")?)?;
    let (sec, nsec) = text.split_once('.').context("its time is none")?;
    Ok(TimeSpec::new(sec.parse()?, nsec.parse()?))
}

fn device(words: &BTreeMap<String, Vec<u8>>) -> Result<u64> {
    let text = std::str::from_utf8(words.get("device").context("the manifest does not tell its device")?)?;
    let numbers: Vec<&str> = text.split(',').collect();
    ensure!(numbers.len() == 3, "its device is none");
    Ok(makedev(numbers[1].parse()?, numbers[2].parse()?))
}

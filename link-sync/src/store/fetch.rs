//! Building again what is damaged, from a copy that holds it: nothing is taken that has not the hash it had.

use std::collections::{BTreeMap, HashMap};
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

use super::scan::Line;
use super::sums::Sum;
use super::{attributes, mtree, open_dir, open_file_at};
use crate::account::Taken;
use crate::tree::join;

/// Extended attributes of one path.
type Xattrs = BTreeMap<OsString, Vec<u8>>;

/// Where else something may be found.
#[derive(Debug, Default)]
pub struct Places {
    /// Other folders of dated snapshots, and the dates in each.
    pub from: Vec<(File, Vec<String>)>,
    /// The sources as they are now, by name.
    pub sources: HashMap<Vec<u8>, File>,
    /// Dates and paths in this store, by content.
    pub here: HashMap<Sum, Vec<(String, Vec<u8>)>>,
    /// This store.
    pub store: Option<File>,
    /// The store is this account's, and the other places may be root's.
    pub account: Option<Taken>,
}

impl Places {
    /// Opens something that is not in this store.
    fn open<T, E>(&self, open: impl FnOnce() -> Result<T, E>) -> Option<T> {
        match &self.account {
            None => open().ok(),
            Some(account) => account.as_root(open).ok()?.ok(),
        }
    }

    /// Opened files that may have the content of `line`, nearest first, each when it is asked for.
    pub fn files<'a>(&'a self, line: &'a Line, dates: &'a [String]) -> impl Iterator<Item = File> + 'a {
        let here = line.sum.as_ref().and_then(|sum| self.here.get(sum)).into_iter().flatten();
        let here = here
            .filter_map(|(date, path)| open_file_at(self.store.as_ref()?, &join(date.as_bytes(), path)).ok());
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
        here.chain(from).chain(std::iter::once_with(source).flatten())
    }
}

/// Makes `name` in `dir` as `line` describes it: durable, with all its attributes. `old` is the damaged file, for its
/// extended attributes. `false` if no place has the content.
pub fn build(
    dir: &File,
    name: &str,
    line: &Line,
    old: Option<&File>,
    places: &Places,
    dates: &[String],
) -> Result<bool> {
    let words = mtree::words(&line.body);
    let mode = Mode::from_bits_truncate(0o600);
    match line.kind() {
        b"file" => {
            let Some(from) = content(dir, name, line, places, dates)? else { return Ok(false) };
            let file = open_file_at(dir, name.as_bytes())?;
            let xattrs = xattrs(&words, &[old, Some(&from)])?;
            set_open(&file, &words, xattrs.as_ref())?;
            file.sync_all().context("cannot make it durable")?;
            return Ok(true);
        }
        b"dir" => {
            mkdirat(dir, name, Mode::from_bits_truncate(0o700))?;
            let folder = open_dir(dir, name.as_bytes())?;
            let like = places.folders(line, dates);
            let like: Vec<_> = like.iter().map(Some).collect();
            set_open(&folder, &words, xattrs(&words, &like)?.as_ref())?;
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

impl Places {
    /// The same folder elsewhere, for its extended attributes.
    pub fn folders(&self, line: &Line, dates: &[String]) -> Vec<File> {
        let from = self.from.iter().flat_map(|(dir, _)| {
            let path = |date: &String| join(date.as_bytes(), &line.path);
            dates.iter().filter_map(move |date| self.open(|| open_dir(dir, &path(date))))
        });
        let source = || {
            let end = line.path.iter().position(|b| *b == b'/').unwrap_or(line.path.len());
            let rest = line.path.get(end + 1..).unwrap_or_default();
            let source = self.sources.get(&line.path[..end])?;
            self.open(|| open_dir(source, rest))
        };
        from.chain(source()).collect()
    }
}

/// Copies the content into the new file `name`; the place it came from.
fn content(dir: &File, name: &str, line: &Line, places: &Places, dates: &[String]) -> Result<Option<File>> {
    let sum = line.sum.context("its hash is not known")?;
    let size = (!line.body.is_empty()).then(|| line.size());
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let mut tried = Vec::new();
    for mut from in places.files(line, dates) {
        common::signals::check()?;
        let meta = from.metadata()?;
        if size.is_some_and(|s| s != meta.len()) || tried.contains(&(meta.dev(), meta.ino())) {
            continue;
        }
        tried.push((meta.dev(), meta.ino()));
        super::remove(dir, std::path::Path::new(name))?;
        let mut to = File::from(openat(dir, name, flags, Mode::from_bits_truncate(0o600))?);
        match copy(&mut from, &mut to) {
            Ok(found) if found == sum => return Ok(Some(from)),
            Ok(_) => {}
            Err(Side::Read) => common::signals::check()?,
            Err(Side::Write(error)) => return Err(error),
        }
    }
    super::remove(dir, std::path::Path::new(name))?;
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
pub fn xattrs(words: &BTreeMap<String, Vec<u8>>, like: &[Option<&File>]) -> Result<Option<Xattrs>> {
    let Some(tag) = words.get("tags") else { return Ok(Some(Xattrs::new())) };
    let wanted = |all: &Xattrs| mtree::digest(all).is_some_and(|d| *tag == format!("xattr-{d}").into_bytes());
    for file in like.iter().flatten() {
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
    super::set_modified(file, &time(words)?).context("cannot set its time")
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

//! The lists of a copy (`.meta/sha256sums.part`), handed on before a date goes.
//!
//! Each date of a copy lists what was new in it, so a file that ten dates share is in one list: that of the first of them. If
//! that date went with its list, nobody without S2 could tell whether the file is whole. So the next date that stays gets
//! the lines of all that it shares with the one that goes, under the same name and with the same inode; what only an older one
//! shares (dates need not have been copied in their order) goes into that one's list. This holds at any moment: **each file of
//! each date is listed by at least one date that has it.** A list is replaced whole, durably, while the date that goes is
//! still there; a run that was killed in between does it again, which adds nothing twice.

use std::collections::HashSet;
use std::fs::File;
use std::io::{BufWriter, Write as _};

use anyhow::{Context as _, Result};
use common::mutant;
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat, renameat};
use nix::sys::stat::Mode;

use super::beneath::{open_dir, open_file};
use super::clear::remove;
use super::layout::META;
use super::manifest::PART;
use super::sums::{self, Lines};
use super::visit;
use crate::names::show;
use crate::tree::split;

/// The list that is being made.
const NEW: &str = ".sha256sums.part.new";

/// The lines of those of `dates` (sorted) that are `going` into lists of those that stay. Says whose lines could not be
/// handed on, or not all, and why: a date must be able to go although it is damaged, or no room is left for anything.
pub fn hand_on(
    store: &File,
    dates: &[String],
    going: &[String],
    written: &impl Fn(u64) -> Result<()>,
) -> Result<Vec<(String, String)>> {
    let mut failed = Vec::new();
    for date in going {
        common::signals::check()?;
        if mutant::active("lists-are-handed-on") {
            break;
        }
        let stays = |other: &&String| !going.contains(other);
        let heirs =
            [dates.iter().filter(|d| *d > date).find(stays), dates.iter().filter(|d| *d < date).rfind(stays)];
        if let Err(error) = one(store, date, &heirs.map(|h| h.map(String::as_str)), written) {
            common::signals::check()?;
            failed.push((date.clone(), format!("{error:#}")));
        }
    }
    Ok(failed)
}

/// The lines of `date` to the first of `heirs` that has the file.
fn one(store: &File, date: &str, heirs: &[Option<&str>], written: &impl Fn(u64) -> Result<()>) -> Result<()> {
    let top = open_dir(store, date.as_bytes()).with_context(|| format!("cannot open {date}"))?;
    let list = match open_file(&top, &format!("{META}/{PART}")) {
        Ok(list) => list,
        Err(e) if e.downcast_ref::<Errno>() == Some(&Errno::ENOENT) => return Ok(()),
        Err(e) => return Err(e).with_context(|| format!("cannot open the list of {date}")),
    };
    // The first heir takes them from the list itself, which may be long; few are left for another.
    let (mut lines, mut rest) = (Some(Lines::new(list)), Vec::new());
    let mut result = Ok(());
    for heir in heirs.iter().flatten() {
        let before = std::mem::take(&mut rest).into_iter();
        let mut lines = LineSource { list: lines.take(), rest: before, damaged: 0 };
        let heir_top = open_dir(store, heir.as_bytes()).with_context(|| format!("cannot open {heir}"))?;
        let mut shared = Shared { from: &top, into: &heir_top, open: Vec::new(), unread: None };
        let handed = merge(&heir_top, &mut lines, &mut shared, &mut rest, written);
        handed.with_context(|| format!("cannot add to the list of {heir}"))?;
        if let Some(why) = shared.unread {
            result = result.and(Err(why));
        }
        if lines.damaged > 0 {
            let damaged = lines.damaged;
            result = result.and(Err(anyhow::anyhow!("{damaged} lines of the list of {date} are damaged")));
        }
    }
    result
}

/// A line of the heir's own list, and its path.
type Own = (Vec<u8>, Option<Vec<u8>>);

/// Lines, from a list or from those that another date did not take.
struct LineSource {
    list: Option<Lines>,
    rest: std::vec::IntoIter<Vec<u8>>,
    damaged: u64,
}

impl LineSource {
    /// The next line and its path.
    fn next(&mut self) -> Result<Option<(Vec<u8>, Vec<u8>)>> {
        loop {
            let line = match &mut self.list {
                Some(list) => list.next()?.map(<[u8]>::to_vec),
                None => self.rest.next(),
            };
            let Some(line) = line else { return Ok(None) };
            match sums::parse(&line).map(|(_, path)| path.into_owned()) {
                Some(path) => return Ok(Some((line, path))),
                None => self.damaged += 1,
            }
        }
    }
}

/// Which files two dates share, asked for in about the order of their paths: names and inode numbers of the folders above
/// the one that was asked for last, and of that one.
struct Shared<'a> {
    from: &'a File,
    into: &'a File,
    open: Vec<(Vec<u8>, HashSet<Vec<u8>>)>,
    /// Why a folder could not be read.
    unread: Option<anyhow::Error>,
}

impl Shared<'_> {
    fn holds(&mut self, path: &[u8]) -> bool {
        let (dir, name) = split(path);
        let above = |folder: &[u8]| {
            folder.is_empty() || dir == folder || (dir.starts_with(folder) && dir[folder.len()] == b'/')
        };
        while self.open.last().is_some_and(|(folder, _)| !above(folder)) {
            self.open.pop();
        }
        if self.open.last().is_none_or(|(folder, _)| folder != dir) {
            let names = self.names(dir).unwrap_or_else(|error| {
                self.unread.get_or_insert(error);
                HashSet::new()
            });
            self.open.push((dir.to_vec(), names));
        }
        self.open.last().is_some_and(|(_, names)| names.contains(name))
    }

    fn names(&self, dir: &[u8]) -> Result<HashSet<Vec<u8>>> {
        let context = || format!("cannot compare the folder {}", show(dir));
        let list = |top: &File| match open_dir(top, dir) {
            Ok(dir) => visit::names(&dir).with_context(context),
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => Ok(Vec::new()),
            Err(e) => Err(e).with_context(context),
        };
        let into: HashSet<visit::Name> = list(self.into)?.into_iter().collect();
        Ok(list(self.from)?.into_iter().filter(|n| !n.1 && into.contains(n)).map(|n| n.0).collect())
    }
}

/// Adds to the list of the date open as `heir` those `lines` whose file it shares; the others become `rest`.
fn merge(
    heir: &File,
    lines: &mut LineSource,
    shared: &mut Shared<'_>,
    rest: &mut Vec<Vec<u8>>,
    written: &impl Fn(u64) -> Result<()>,
) -> Result<()> {
    let folder = open_dir(heir, META.as_bytes()).context("cannot open .meta")?;
    let mut own = match open_file(heir, &format!("{META}/{PART}")) {
        Ok(list) => Some(Lines::new(list)),
        Err(e) if e.downcast_ref::<Errno>() == Some(&Errno::ENOENT) => None,
        Err(e) => return Err(e),
    };
    remove(&folder, std::path::Path::new(NEW))?;
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let file = File::from(openat(&folder, NEW, flags, Mode::from_bits_truncate(0o600))?);
    let (mut out, mut added, mut since) = (BufWriter::with_capacity(1 << 18, file), 0u64, 0u64);
    let mut put = |line: &[u8]| -> Result<()> {
        out.write_all(line).and_then(|()| out.write_all(b"\n"))?;
        since += line.len() as u64 + 1;
        if since >= 1 << 20 {
            common::signals::check()?;
            written(std::mem::take(&mut since))?;
        }
        Ok(())
    };
    let mut kept = next_of(&mut own)?;
    while let Some((line, path)) = lines.next()? {
        while let Some((own_line, _)) = kept.take_if(|(_, own)| own.as_ref().is_none_or(|own| *own < path)) {
            put(&own_line)?;
            kept = next_of(&mut own)?;
        }
        // What the heir lists itself is its own.
        if kept.as_ref().is_some_and(|(_, own)| own.as_ref() == Some(&path)) {
            continue;
        }
        if shared.holds(&path) {
            put(&line)?;
            added += 1;
        } else {
            rest.push(line);
        }
    }
    while let Some((own_line, _)) = kept.take() {
        put(&own_line)?;
        kept = next_of(&mut own)?;
    }
    written(since)?;
    if added == 0 {
        return remove(&folder, std::path::Path::new(NEW));
    }
    let file = out.into_inner().context("cannot write it")?;
    file.sync_all()?;
    renameat(&folder, NEW, &folder, PART)?;
    Ok(folder.sync_all()?)
}

/// The next line of a list and its path, `None` where the line is damaged: it stays as it is.
fn next_of(list: &mut Option<Lines>) -> Result<Option<Own>> {
    let Some(line) = list.as_mut().map(Lines::next).transpose()?.flatten() else { return Ok(None) };
    Ok(Some((line.to_vec(), sums::parse(line).map(|(_, path)| path.into_owned()))))
}

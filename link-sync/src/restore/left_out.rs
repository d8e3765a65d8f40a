//! What a backup leaves out on purpose is in no snapshot: it goes back to its place from what was replaced.

use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::ffi::OsStrExt as _;

use anyhow::{Context as _, Result};
use common::exclude::{Excludes, is_drop_in, is_remade};
use nix::errno::Errno;
use nix::sys::stat::fstat;
use nix::sys::time::TimeSpec;

use super::swap::beside;
use crate::names::show;
use crate::source::Source;
use crate::store::{ensure_dir, open_dir, split, visit};
use crate::tree::join;

/// What becomes of what matches no snapshot.
#[derive(Debug)]
pub struct Leftovers {
    /// It goes back.
    back: Excludes,
    /// It goes with what was replaced, and is not looked into.
    remade: Excludes,
}

/// The rules for `source`. When all of it comes back (`whole`), what Nextcloud makes again does not outlive it.
pub fn rules(source: &Source, whole: bool) -> Result<Leftovers> {
    let goes = |p: &String| is_drop_in(p) || whole && is_remade(p);
    let (remade, back): (Vec<String>, Vec<String>) = source.exclude.iter().cloned().partition(goes);
    Ok(Leftovers { back: Excludes::new(&back, Vec::new())?, remade: Excludes::new(&remade, Vec::new())? })
}

/// Where it is, and where it goes.
#[derive(Debug)]
pub struct PutBack<'a> {
    /// What was replaced.
    pub old: &'a File,
    /// What came in its place.
    pub target: &'a File,
    /// What has no place there any more goes here.
    pub kept: &'a File,
    /// The folder of the source that these three are.
    pub prefix: &'a [u8],
    /// What lies at the top was asked for by name, and is replaced whatever matches it.
    pub asked: bool,
}

/// What did not go back.
#[derive(Debug, Default)]
pub struct NotBack {
    /// What has no place any more, whose place is taken, or what cannot be looked into: it is kept.
    pub kept: Vec<Vec<u8>>,
    /// What cannot be moved at all (immutable, a mount): it waits where it is.
    pub held: Vec<(Vec<u8>, Errno)>,
}

impl PutBack<'_> {
    /// Does it; the times of the folders in the target stay. A disk may be why all of this is done, so nothing that
    /// cannot be looked into stops it.
    pub fn run(&self, rules: &Leftovers) -> Result<NotBack> {
        let mut not_back = NotBack::default();
        let mut waiting: Vec<Vec<u8>> = vec![Vec::new()];
        while let Some(path) = waiting.pop() {
            common::signals::check()?;
            let opened = open_dir(self.old, &path).map_err(anyhow::Error::from);
            let listed = opened.and_then(|from| Ok((visit::names(&from)?, from)));
            let (names, from) = match listed {
                Ok(listed) => listed,
                Err(_) if !path.is_empty() => {
                    not_back.kept.push(self.keep(&path)?);
                    continue;
                }
                Err(e) => return Err(e.context("cannot list what was replaced")),
            };
            let mut to: Option<nix::Result<File>> = None;
            for (name, is_dir, _) in names {
                let full = join(&path, &name);
                let in_source = join(self.prefix, &full);
                if (self.asked && path.is_empty()) || !rules.back.matches(&in_source, is_dir) {
                    if is_dir && !rules.remade.matches(&in_source, true) {
                        waiting.push(full);
                    }
                    continue;
                }
                let moved = match to.get_or_insert_with(|| open_dir(self.target, &path)) {
                    Ok(to) => back(&from, to, OsStr::from_bytes(&name)),
                    Err(e) => Err(*e),
                };
                match moved {
                    Ok(()) => {}
                    Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP | Errno::EEXIST) => {
                        not_back.kept.push(self.keep(&full)?);
                    }
                    Err(e @ (Errno::EPERM | Errno::EACCES | Errno::EBUSY | Errno::EXDEV)) => {
                        not_back.held.push((in_source, e));
                    }
                    Err(e) => return Err(e).with_context(|| format!("cannot put {} back", show(&in_source))),
                }
            }
            if let Some(Ok(to)) = to {
                to.sync_all().with_context(|| format!("cannot make {} durable", show(&path)))?;
            }
        }
        Ok(not_back)
    }

    /// Keeps one path. Returns its place in the source.
    fn keep(&self, path: &[u8]) -> Result<Vec<u8>> {
        let (parent, name) = split(path);
        let name = OsStr::from_bytes(name);
        let context = || format!("cannot keep {}", show(path));
        let from = open_dir(self.old, parent).with_context(context)?;
        let to = ensure_dir(self.kept, parent)?;
        beside(&from, name, &to).with_context(context)?;
        Ok(join(self.prefix, path))
    }
}

fn back(from: &File, to: &File, name: &OsStr) -> nix::Result<()> {
    let times = fstat(to)?;
    common::rename::noreplace(from, name, to, name)?;
    crate::store::set_modified(to, &TimeSpec::new(times.st_mtime, times.st_mtime_nsec))
}

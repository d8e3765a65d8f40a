//! What a backup leaves out on purpose is in no snapshot: it goes back to its place from what was replaced.

use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::ffi::OsStrExt as _;

use anyhow::{Context as _, Result};
use common::exclude::{Excludes, is_drop_in, is_remade};
use nix::errno::Errno;
use nix::fcntl::{RenameFlags, renameat2};
use nix::sys::stat::{fstat, futimens};
use nix::sys::time::TimeSpec;

use crate::source::Source;
use crate::store::{open_dir, visit};
use crate::tree::join;
use crate::walk::show;

/// The patterns of `source` whose paths outlive a restore. When all of it comes back (`whole`), what Nextcloud makes
/// again does not.
pub fn patterns(source: &Source, whole: bool) -> Result<Excludes> {
    let stays = |p: &&String| !(is_drop_in(p) || whole && is_remade(p));
    let patterns: Vec<String> = source.exclude.iter().filter(stays).cloned().collect();
    Excludes::new(&patterns, Vec::new())
}

/// Moves what `excludes` match in `old` to the same place in `target`; both are the folder `prefix` of the source. The
/// times of the folders there stay. What was asked for by name (`asked`) is replaced whatever matches it. Returns what has
/// no place there any more, or whose place is taken: it stays in `old`.
pub fn put_back(
    old: &File,
    target: &File,
    prefix: &[u8],
    asked: bool,
    excludes: &Excludes,
) -> Result<Vec<Vec<u8>>> {
    let mut stuck = Vec::new();
    let mut waiting: Vec<Vec<u8>> = vec![Vec::new()];
    while let Some(path) = waiting.pop() {
        common::signals::check()?;
        let what = || format!("cannot look through what was replaced, in {}", show(&path));
        let from = open_dir(old, &path).with_context(what)?;
        let mut to: Option<nix::Result<File>> = None;
        for (name, is_dir, _) in visit::names(&from).with_context(what)? {
            let full = join(&path, &name);
            let in_source = join(prefix, &full);
            if (asked && path.is_empty()) || !excludes.matches(&in_source, is_dir) {
                if is_dir {
                    waiting.push(full);
                }
                continue;
            }
            let moved = match to.get_or_insert_with(|| open_dir(target, &path)) {
                Ok(to) => back(&from, to, OsStr::from_bytes(&name)),
                Err(e) => Err(*e),
            };
            match moved {
                Ok(()) => {}
                Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP | Errno::EEXIST) => stuck.push(in_source),
                Err(e) => return Err(e).with_context(|| format!("cannot put {} back", show(&in_source))),
            }
        }
        if let Some(Ok(to)) = to {
            to.sync_all().with_context(what)?;
        }
    }
    Ok(stuck)
}

fn back(from: &File, to: &File, name: &OsStr) -> nix::Result<()> {
    let times = fstat(to)?;
    renameat2(from, name, to, name, RenameFlags::RENAME_NOREPLACE)?;
    futimens(to, &TimeSpec::UTIME_OMIT, &TimeSpec::new(times.st_mtime, times.st_mtime_nsec))
}

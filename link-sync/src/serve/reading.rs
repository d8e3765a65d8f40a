//! The far end of a restore: one published snapshot, kept from being removed, and what may be read of it.
//!
//! A key that writes snapshots cannot get here ([`crate::serve`]), so that who breaks into the source
//! gets at nothing that was deleted there long ago; the one for restoring reads and changes nothing.

use std::io::Read;
use std::os::unix::ffi::OsStrExt as _;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context as _, Result, bail, ensure};
use common::fault::Fault;
use common::mutant;
use common::run::Cmd;
use nix::errno::Errno;
use nix::fcntl::AtFlags;
use nix::sys::stat::{FileStat, fstatat};

use crate::names::show;
use crate::parallel;
use crate::protocol::{self, Kept, Looked, Sending};
use crate::rsync::argv;
use crate::store::held::Held;
use crate::store::meta::SnapshotMeta;
use crate::store::path::check_path;
use crate::store::{Store, open_dir, split, visit};
use crate::tree::join;

/// Bytes, and folders, of a path within which any rsync is at ease.
const DEEP_BYTES: usize = 2100;
const DEEP_FOLDERS: usize = 250;
/// What a path that is looked at takes in memory, with the answer.
const LOOKED: usize = 1024;

/// A snapshot that stays as long as this does.
#[derive(Debug)]
pub struct Reading(Held);

impl Reading {
    /// Opens the snapshot of `date`.
    pub fn hold(store: &Store, date: &str) -> Result<(Reading, SnapshotMeta)> {
        let held = Held::open(store, &store.check()?, &store.find(date)?.date)?;
        let meta = held.meta.clone();
        Ok((Reading(held), meta))
    }

    /// What the paths in the list are.
    pub fn look(&self, input: &mut impl Read, kept: &mut Kept) -> Result<Vec<Option<Looked>>> {
        let mut paths = Vec::new();
        protocol::read_list(input, |path| {
            check(path)?;
            kept.more(LOOKED + path.len())?;
            paths.push(path.to_vec());
            Ok(())
        })?;
        paths.iter().map(|path| self.look_at(path)).collect()
    }

    fn stat(&self, path: &[u8]) -> Result<Option<FileStat>> {
        let (parent, name) = split(path);
        let parent = match open_dir(&self.0.top, parent) {
            Ok(dir) => dir,
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => return Ok(None),
            Err(e) => return Err(e).with_context(|| format!("cannot open {}", show(parent))),
        };
        match fstatat(&parent, std::ffi::OsStr::from_bytes(name), AtFlags::AT_SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(stat)),
            Err(Errno::ENOENT) => Ok(None),
            Err(e) => Err(e).with_context(|| format!("cannot look at {}", show(path))),
        }
    }

    fn look_at(&self, path: &[u8]) -> Result<Option<Looked>> {
        let Some(stat) = self.stat(path)? else { return Ok(None) };
        let folder = stat.st_mode & libc::S_IFMT == libc::S_IFDIR;
        let found = Looked { folder, paths: 1, bytes: allocated(&stat), deep: Vec::new() };
        if !folder {
            return Ok(Some(found));
        }
        let found = Mutex::new(found);
        // With each folder: where the names begin that one run of rsync sees.
        parallel::each((path.to_vec(), path.len()), |(path, begin), more| {
            let context = || format!("cannot read the folder {}", show(&path));
            let dir = open_dir(&self.0.top, &path).with_context(context)?;
            let (mut paths, mut bytes, mut deep) = (0, 0, Vec::new());
            for (name, is_dir, _) in visit::names(&dir).with_context(context)? {
                let stat = fstatat(&dir, std::ffi::OsStr::from_bytes(&name), AtFlags::AT_SYMLINK_NOFOLLOW);
                paths += 1;
                bytes += allocated(&stat.with_context(context)?);
                if is_dir {
                    let below = join(&path, &name);
                    let cut = is_deep(&below[begin..]);
                    let begin = if cut { below.len() } else { begin };
                    if cut {
                        deep.push(below.clone());
                    }
                    more.push((below, begin));
                }
            }
            let mut found = found.lock().unwrap_or_else(PoisonError::into_inner);
            found.deep.append(&mut deep);
            found.paths += paths;
            found.bytes += bytes;
            Ok(())
        })?;
        let mut found = found.into_inner().unwrap_or_else(PoisonError::into_inner);
        found.deep.sort_unstable();
        Ok(Some(found))
    }

    /// The sending rsync for the one path in the list.
    pub fn sender(&self, sending: &Sending, rsync: &[String], input: &mut impl Read) -> Result<Cmd> {
        let mut paths = Vec::new();
        protocol::read_list(input, |path| {
            check(path)?;
            ensure!(paths.is_empty(), "one path at a time");
            paths.push(path.to_vec());
            Ok(())
        })?;
        argv::check_capabilities(&sending.capabilities)?;
        let [path] = &paths[..] else { bail!("one path at a time") };
        ensure!(self.stat(path)?.is_some(), "there is no {} in this snapshot", show(path));
        let account = self.0.owner()?;
        let cmd = argv::serve_sending(rsync, sending, self.0.meta.fake_super, account.as_ref(), path)?;
        Ok(cmd.dir(&self.0.path).inherit(self.0.lock_fd()))
    }
}

/// Whether one run of rsync should not see what is below `path`.
fn is_deep(path: &[u8]) -> bool {
    path.len() > DEEP_BYTES || path.iter().filter(|b| **b == b'/').count() > DEEP_FOLDERS
}

fn allocated(stat: &FileStat) -> u64 {
    u64::try_from(stat.st_blocks).unwrap_or(0) * 512
}

fn check(path: &[u8]) -> Result<()> {
    check_path(path)?;
    // A leading dot would be no source; `.meta` is ours.
    match path.first() {
        Some(b'.') if !mutant::active("readers-see-what-is-ours") => {
            Err(Fault::denied(format!("{} is no part of a source: refused", show(path))).into())
        }
        _ => Ok(()),
    }
}

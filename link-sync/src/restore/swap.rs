//! Putting what has arrived in its place, and what was there aside.
//! By renames within one file system, each of which can be the last one before a power cut. The next run goes on where
//! this one ended, told by the inode numbers that were written down before the first rename.
//!
//! Where inode numbers may change (FUSE, network file systems), two names are never exchanged: what was there goes
//! aside first, so whatever still lies among what has arrived waits to be put in its place.

use std::collections::{BTreeSet, HashMap};
use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::ffi::OsStrExt as _;

use anyhow::{Context as _, Result};
use common::rename;
use nix::errno::Errno;
use nix::sys::stat::fstat;
use nix::sys::time::TimeSpec;

use super::folders::{entry, set_times, steady};
use super::journal::SwapPlan;
use super::partial::PREFIX;
use crate::names::show;
use crate::store::{attributes, ensure_dir, open_dir, visit};
use crate::tree::join;

/// One restore's renames.
#[derive(Debug)]
pub struct Swap<'a> {
    /// What has arrived.
    pub new: &'a File,
    /// What is replaced goes here.
    pub old: &'a File,
    /// The folder it goes into.
    pub target: &'a File,
    /// Only this name of it; else all that is in it becomes what has arrived.
    pub only: Option<&'a [u8]>,
    /// Paths in the target that stay: other sources, also such as the profile does not know, and the store.
    pub spare: &'a [Vec<u8>],
}

impl Swap<'_> {
    /// What will be renamed, with inode numbers, to be written down before [`Swap::run`].
    pub fn plan(&self) -> Result<SwapPlan> {
        let mut plan = SwapPlan { steady: steady(self.new)?, ..SwapPlan::default() };
        self.plan_folder(&[], &mut plan)?;
        Ok(plan)
    }

    fn plan_folder(&self, path: &[u8], plan: &mut SwapPlan) -> Result<()> {
        let new = open_dir(self.new, path)?;
        let stat = fstat(&new)?;
        plan.folders.push((path.to_vec(), stat.st_mtime, stat.st_mtime_nsec));
        for (name, is_dir, _) in visit::names(&new)? {
            let full = join(path, &name);
            if self.only.is_some_and(|only| only != full) || self.spares(&full) {
                continue;
            }
            if is_dir && self.holds_spared(&full) && open_dir(self.target, &full).is_ok() {
                self.plan_folder(&full, plan)?;
            } else if let Some((ino, _)) = entry(&new, &name)? {
                plan.names.push((full, ino));
            }
        }
        Ok(())
    }

    /// `path` stays: it is one of [`Swap::spare`], or, at the top, a private folder of this restore or another.
    fn spares(&self, path: &[u8]) -> bool {
        self.spare.iter().any(|s| s == path) || path.starts_with(PREFIX.as_bytes())
    }

    /// Something below `path` is to be left alone.
    fn holds_spared(&self, path: &[u8]) -> bool {
        self.spare.iter().any(|s| s.strip_prefix(path).is_some_and(|rest| rest.starts_with(b"/")))
    }

    /// Does it.
    pub fn run(&self, plan: &SwapPlan) -> Result<()> {
        let inodes: HashMap<&[u8], u64> = plan.names.iter().map(|(p, i)| (&p[..], *i)).collect();
        let known = Written { inodes, steady: plan.steady };
        match self.only {
            Some(only) => self.one(&[], only, self.target, self.new, &known)?,
            None => self.folder(&[], &known, &plan.folders)?,
        }
        self.target.sync_all().context("cannot make the renames durable")
    }

    fn folder(&self, path: &[u8], known: &Written<'_>, folders: &[(Vec<u8>, i64, i64)]) -> Result<()> {
        let context = || format!("cannot put {} in its place", show(path));
        let (new, target) = (
            open_dir(self.new, path).with_context(context)?,
            open_dir(self.target, path).with_context(context)?,
        );
        let mut names: BTreeSet<Vec<u8>> = visit::names(&new)?.into_iter().map(|n| n.0).collect();
        names.extend(visit::names(&target)?.into_iter().map(|n| n.0));
        for name in names {
            let full = join(path, &name);
            if self.spares(&full) {
                continue;
            }
            if !self.holds_spared(&full) {
                self.one(path, &name, &target, &new, known)?;
            } else if open_dir(&new, &name).is_ok() {
                self.folder(&full, known, folders)?;
            }
        }
        // Last, as the renames have moved the folder's times.
        attributes::copy(&new, &target).with_context(context)?;
        if let Some((_, sec, nsec)) = folders.iter().find(|f| f.0 == path) {
            crate::store::set_modified(&target, &TimeSpec::new(*sec, *nsec)).with_context(context)?;
        }
        target.sync_all().with_context(context)
    }

    /// One name of the folder `path`: what has arrived goes in, what was there goes aside.
    fn one(&self, path: &[u8], name: &[u8], target: &File, new: &File, known: &Written<'_>) -> Result<()> {
        let full = join(path, name);
        let context = || format!("cannot put {} in its place", show(&full));
        let as_name = OsStr::from_bytes(name);
        let aside = |from: &File| self.aside(from, as_name, path).with_context(context);
        let put = || rename::noreplace(new, as_name, target, as_name).with_context(context);
        if known.waits(&full, entry(new, name)?) {
            let there = entry(target, name)?;
            if there.is_none() || known.begun(&full, there) {
                return put();
            }
            if !known.steady || !rename::exchange(new, as_name, target, as_name).with_context(context)? {
                aside(target)?;
                return put();
            }
        }
        if entry(new, name)?.is_some() {
            // What was exchanged, now or before an interruption.
            aside(new)?;
        } else if self.only.is_none()
            && !known.inodes.contains_key(&full[..])
            && entry(target, name)?.is_some()
        {
            aside(target)?;
        }
        Ok(())
    }

    /// Moves `name` out of `from`, in the folder `path`, to what was replaced.
    fn aside(&self, from: &File, name: &OsStr, path: &[u8]) -> Result<()> {
        beside(from, name, &ensure_dir(self.old, path)?)
    }
}

/// What was written down before the first rename.
struct Written<'a> {
    inodes: HashMap<&'a [u8], u64>,
    steady: bool,
}

impl Written<'_> {
    /// `path`, which is `found` among what has arrived, still waits to be put in its place.
    fn waits(&self, path: &[u8], found: Option<(u64, bool)>) -> bool {
        let written = self.inodes.get(path);
        found.is_some_and(|f| written.is_some_and(|ino| !self.steady || *ino == f.0))
    }

    /// The file at its place is the one that has arrived: a run was killed between the two steps of a rename.
    fn begun(&self, path: &[u8], there: Option<(u64, bool)>) -> bool {
        there.is_some_and(|t| !t.1 && self.steady && self.inodes.get(path) == Some(&t.0))
    }
}

/// Puts what has arrived in `new` into a folder that this restore itself has just put in `target`, as another path in it was
/// asked for, too: what both have stays, and the rest of `names` is put there.
pub fn graft(new: &File, target: &File, names: &[Vec<u8>]) -> Result<()> {
    let context = || format!("cannot put {} in its place", show(&names.join(&b'/')));
    let (mut new, mut target) =
        (open_dir(new, b"").with_context(context)?, open_dir(target, b"").with_context(context)?);
    for (at, name) in names.iter().enumerate() {
        if at + 1 < names.len()
            && let Ok(there) = open_dir(&target, name)
        {
            (new, target) = (open_dir(&new, name).with_context(context)?, there);
            continue;
        }
        let times = fstat(&target).with_context(context)?;
        let name = OsStr::from_bytes(name);
        rename::noreplace(&new, name, &target, name).with_context(context)?;
        set_times(&target, &times)?;
        return target.sync_all().with_context(context);
    }
    Ok(())
}

/// Moves `name` from one folder to another; beside what an earlier attempt moved there under that name.
pub fn beside(from: &File, name: &OsStr, to: &File) -> Result<()> {
    for n in 0..1000 {
        let mut there = name.to_owned();
        if n > 0 {
            there.push(format!(".~{n}~"));
        }
        match rename::noreplace(from, name, to, &*there) {
            Err(Errno::EEXIST) => {}
            done => return Ok(done?),
        }
    }
    anyhow::bail!("there are a thousand of that name already")
}

//! What moved, or was copied, is not sent: the base's file gets the new name, if its content is what is read here.
//!
//! Only files that are worth it are read ([`Before`]), once, and their sums are claimed; the far end compares those with the
//! base's manifest. What it found is passed to rsync with nothing but attributes to compare. Nothing of this is done
//! while Nextcloud is in maintenance: what moves between the last `stage` and then is sent.

use std::collections::HashSet;
use std::fs::File;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use anyhow::Result;
use common::mutant;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::stat::fstat;

use super::Session;
use super::pass::Pass;
use super::plan::{Plan, reused_in};
use crate::acls;
use crate::far::Far;
use crate::parallel;
use crate::protocol::{BackupOnly, Making};
use crate::source::DATABASE;
use crate::store::merge::Merged;
use crate::store::open_file_at;
use crate::store::reuse::{Claim, Found};
use crate::store::sums::{self, Sum};
use crate::tree::{Before, Candidate, Meta, Tree, split};
use crate::walk;

/// How many files are claimed in one request.
const BATCH: usize = 16_384;
/// How many are read by a thread before the others may have the rest.
const PIECE: usize = 4;

impl Session {
    /// Finds among what is marked the files that the base holds under other names than `old`, the tree of what the partial
    /// snapshot or the base holds, has them under. They need not be sent.
    pub(super) fn find_reused(
        &mut self,
        pass: &Pass<'_>,
        tree: &mut Tree,
        old: &Tree,
        plan: &mut Plan,
    ) -> Result<()> {
        let summed = self
            .opened
            .base
            .as_ref()
            .is_some_and(|b| b.manifest.is_some() && b.source(&pass.source.name).is_some());
        if plan.all
            || !summed
            || self.in_maintenance
            || pass.source.name == DATABASE
            || self.opened.damaged.all
        {
            return self.forget_claims(pass);
        }
        let before = Before::new(old, tree, &plan.changes.dirs);
        let (mut batch, mut fresh) = (Vec::new(), true);
        for dir in &plan.changes.dirs {
            batch.extend(before.candidates(tree, dir));
            while batch.len() >= BATCH {
                let rest = batch.split_off(BATCH);
                plan.reused += self.claim(pass, tree, batch, &mut fresh)?;
                batch = rest;
            }
        }
        plan.reused += self.claim(pass, tree, batch, &mut fresh)?;
        if fresh { self.forget_claims(pass) } else { Ok(()) }
    }

    /// What an earlier pass claimed, and had no time for, is at hand no more: rsync would find it the same and send nothing, and
    /// it is in no place where it is looked for.
    pub(super) fn forget_claims(&mut self, pass: &Pass<'_>) -> Result<()> {
        let name = &pass.source.name;
        if !self.claimed.contains(name) || mutant::active("claims-outlive-their-pass") {
            return Ok(());
        }
        let request = BackupOnly::Reuse { source: name.clone(), fresh: true };
        let _none: Found = self.far.ask_with_list(&request, |_| Ok(()))?;
        self.claimed.remove(name);
        Ok(())
    }

    /// Reads `batch`, and marks in `tree` what the base holds of it; how many.
    fn claim(
        &mut self,
        pass: &Pass<'_>,
        tree: &mut Tree,
        mut batch: Vec<Candidate>,
        fresh: &mut bool,
    ) -> Result<u64> {
        if self.acls_apart() {
            // They are sent a second time, over what was received.
            let all = batch.iter().map(|c| (c.path.clone(), c.meta));
            let with: HashSet<Vec<u8>> = acls::having(&pass.checked.dir, all)?.into_iter().collect();
            batch.retain(|c| !with.contains(&c.path));
        }
        if batch.is_empty() {
            return Ok(0);
        }
        let bytes = batch.iter().map(|c| c.meta.size).sum();
        pass.progress
            .begin(format!("{}: reading {} files that may have moved", pass.source.name, batch.len()), bytes);
        let claims = self.sums(pass, batch)?;
        if claims.is_empty() {
            return Ok(0);
        }
        self.claimed.insert(pass.source.name.clone());
        let request = BackupOnly::Reuse { source: pass.source.name.clone(), fresh: std::mem::take(fresh) };
        let found: Found =
            self.far.ask_with_list(&request, |list| claims.iter().try_for_each(|claim| list.claim(claim)))?;
        let mut reused = 0;
        for (from, to) in found.ranges {
            let range = usize::try_from(from)?..usize::try_from(to)?;
            for claim in claims.get(range).unwrap_or_default() {
                let (dir, name) = split(&claim.path);
                if let Some(entry) = tree.dirs.get_mut(dir).and_then(|dir| dir.find_mut(name)) {
                    reused += u64::from(!std::mem::replace(&mut entry.reused, true));
                }
            }
        }
        Ok(reused)
    }

    /// What `batch` holds, without what is not there any more as the walk saw it.
    fn sums(&self, pass: &Pass<'_>, batch: Vec<Candidate>) -> Result<Vec<Claim>> {
        let found = Mutex::new(vec![None; batch.len()]);
        parallel::each(0..batch.len(), |range: Range<usize>, more| {
            if range.len() > PIECE {
                let middle = range.start + range.len() / 2;
                more.extend([middle..range.end, range.start..middle]);
                return Ok(());
            }
            for at in range {
                let sum = sum_of(&pass.checked.dir, &batch[at], |read| {
                    common::signals::check()?;
                    pass.budget.check()?;
                    pass.progress.sent(read);
                    Ok(())
                })?;
                found.lock().unwrap_or_else(PoisonError::into_inner)[at] = sum;
            }
            Ok(())
        })?;
        let found = found.into_inner().unwrap_or_else(PoisonError::into_inner);
        let claim = |(c, sum): (Candidate, Option<Sum>)| {
            let Meta { size, mtime, .. } = c.meta;
            Some(Claim { sum: sum?, size, mtime: (mtime.sec, mtime.nsec), old: c.old, path: c.path })
        };
        Ok(batch.into_iter().zip(found).filter_map(claim).collect())
    }

    /// ACLs go in a run of rsync of their own.
    pub(super) fn acls_apart(&self) -> bool {
        self.opened.acls && self.opened.xattrs && !self.far.hello.root
    }
}

/// Has what [`Session::find_reused`] found, and rsync compared, put in its place.
pub(super) fn merge_reused(far: &mut Far, source: &str, tree: &Tree, plan: &Plan) -> Result<Merged> {
    let request = Making::Merge { source: source.to_owned(), times: true, again: true, reused: true };
    far.ask_with_list(&request, |list| {
        reused_in(tree, &plan.changes.dirs).try_for_each(|(path, e)| {
            list.record(e.meta.kind(), e.meta.size, (e.meta.mtime.sec, e.meta.mtime.nsec), &path)
        })
    })
}

/// The sum of the candidate, if it is what the walk saw before and after it was read; `None` for what is left to rsync, which tells
/// why something cannot be read.
fn sum_of(
    root: &File,
    candidate: &Candidate,
    mut read: impl FnMut(u64) -> Result<()>,
) -> Result<Option<Sum>> {
    let still = |file: &File| fstat(file).is_ok_and(|stat| walk::meta(&stat) == candidate.meta);
    let Ok(mut file) = open_file_at(root, &candidate.path) else { return Ok(None) };
    if !still(&file) {
        return Ok(None);
    }
    // Only the owner and root may; for others the time moves.
    fcntl(&file, FcntlArg::F_SETFL(OFlag::O_NOATIME)).ok();
    let mut stopped = None;
    let sum = sums::of_file(&mut file, |bytes| {
        read(bytes).map_err(|error| {
            stopped = Some(error);
            anyhow::anyhow!("stopped")
        })
    });
    match (stopped, sum) {
        (Some(error), _) => Err(error),
        (None, Ok((sum, bytes))) if bytes == candidate.meta.size && still(&file) => Ok(Some(sum)),
        (None, _) => Ok(None),
    }
}

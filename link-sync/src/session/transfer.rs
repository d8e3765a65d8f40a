//! What is marked is sent, put in its place, and distrusted where it moved meanwhile.

use std::fs::File;

use anyhow::Result;
use common::fault::Fault;
use common::mutant;
use common::status::Report;

use super::Session;
use super::pass::Pass;
use super::plan::{Plan, marked_in, reused_in, sent_in};
use super::reuse::merge_reused;
use crate::acls;
use crate::moved::distrust_moved;
use crate::names::{NAMED, show};
use crate::protocol::Making;
use crate::rsync::{Sent, Transfer, list_file, uncommented};
use crate::source::{DATABASE, Source};
use crate::store::merge::Merged;
use crate::store::ranges;
use crate::timing::{Laps, Phase};
use crate::tree::Tree;
use crate::writers::{self, Writers};

/// A run of rsync in one pass.
#[derive(Clone, Copy)]
enum Run {
    /// The source's own folder.
    Itself,
    /// Its ACL.
    ItsAcl,
    /// What the base holds under another name: attributes alone.
    Reused,
    /// All else.
    Rest,
    /// What the store has, and cannot use.
    Anew,
    /// The ACLs of either.
    Acls,
}

impl Session {
    /// Sends what is marked, has it put in its place, and distrusts what moved meanwhile.
    pub(super) fn transfer(
        &mut self,
        pass: &Pass<'_>,
        tree: &mut Tree,
        plan: &mut Plan,
        laps: &mut Laps,
        report: &mut Report,
    ) -> Result<u64> {
        let &Pass { source, checked, first, budget, progress } = pass;
        let marked = plan.changes.marked;
        plan.counts.passes += 1;
        plan.counts.changed += marked;
        plan.counts.writers = 0;
        plan.counts.moved_named.clear();
        let name = &source.name;
        let times = name != DATABASE;
        let again = !first || plan.without_base;
        let dirs = &plan.changes.dirs;
        let transfer = |list: File, run: Run| Transfer {
            rsync: &self.settings.rsync,
            path: &source.path,
            list,
            only_itself: matches!(run, Run::Itself | Run::ItsAcl),
            source: name,
            // A second look at contents is only worth it where there is something to compare with.
            // The second time, what was received a moment ago has its time, unless times do not count.
            checksum: match run {
                Run::Itself | Run::Rest => {
                    // What an interrupted run had received may be no more than a size and a time.
                    (plan.checksum
                        || first && self.opened.resumed && !mutant::active("resumed-by-size-and-time"))
                        && (!first || self.opened.base.is_some() || self.opened.resumed)
                }
                Run::Reused => false,
                Run::Anew => true,
                Run::ItsAcl | Run::Acls => !times,
            },
            times,
            again: again || matches!(run, Run::Anew),
            reused: matches!(run, Run::Reused),
            more: matches!(run, Run::Rest) && plan.reused > 0,
            all_xattrs: false,
            account: None,
            xattrs: self.opened.xattrs,
            acls: self.opened.acls,
            acls_only: matches!(run, Run::ItsAcl | Run::Acls),
            budget,
        };
        let acls_apart = self.acls_apart();
        let request = Making::Merge { source: name.clone(), times, again, reused: false };
        if tree.root_changed {
            progress.begin(format!("{name}: the folder itself"), 0);
            let list = list_file(&self.settings.state, [&b"."[..]].into_iter())?;
            let sent = transfer(list, Run::Itself).run(&mut self.far, progress)?;
            plan.counts.sent_bytes += sent.bytes;
            if acls_apart && acls::of_folder(&checked.dir)? {
                let list = list_file(&self.settings.state, [&b"."[..]].into_iter())?;
                plan.counts.sent_bytes += transfer(list, Run::ItsAcl).run(&mut self.far, progress)?.bytes;
            }
            let root = tree.root;
            let _root: Merged = self.far.ask_with_list(&request, |list| {
                list.record(root.kind(), 0, (root.mtime.sec, root.mtime.nsec), b"")
            })?;
            laps.lap(Phase::Send);
        }
        if marked == 0 {
            return Ok(0);
        }
        let files = marked_in(tree, dirs).filter(|(_, e)| e.meta.is_file() && !e.meta.is_untrusted());
        let writers = writers::find(&checked.dir, files.map(|(path, _)| path), budget)?;
        // All is received before any of it is put in its place: if there is no time for the one, the other has not been done.
        let mut with_reused = Sent::default();
        if plan.reused > 0 {
            progress.begin(format!("{name}: {} files have another name", plan.reused), 0);
            let paths = reused_in(tree, dirs).map(|(path, _)| uncommented(path));
            let list = list_file(&self.settings.state, paths)?;
            with_reused = transfer(list, Run::Reused).run(&mut self.far, progress)?;
            laps.lap(Phase::Prepare);
        }
        progress.begin(format!("{name}: {} paths", marked - plan.reused), plan.bytes);
        let mut sent = Sent::default();
        if marked > plan.reused {
            let paths = sent_in(tree, dirs).map(|(path, _)| uncommented(path));
            let list = list_file(&self.settings.state, paths)?;
            sent = transfer(list, Run::Rest).run(&mut self.far, progress)?;
        }
        let with_acl = match acls_apart {
            true => acls::having(&checked.dir, sent_in(tree, dirs).map(|(path, e)| (path, e.meta)))?,
            false => Vec::new(),
        };
        if !with_acl.is_empty() {
            let list = list_file(&self.settings.state, with_acl.into_iter().map(uncommented))?;
            let more = transfer(list, Run::Acls).run(&mut self.far, progress)?;
            sent.bytes += more.bytes;
            sent.vanished |= more.vanished;
        }
        laps.lap(Phase::Send);
        progress.begin(format!("{name}: putting in place"), 0);
        sent.bytes += with_reused.bytes;
        sent.vanished |= with_reused.vanished;
        plan.placed = true;
        let mut reused = Merged::default();
        if plan.reused > 0 {
            // First, as a folder that is new to the rest is taken as a whole.
            reused = merge_reused(&mut self.far, name, tree, plan)?;
        }
        let mut merged: Merged = self.far.ask_with_list(&request, |list| {
            sent_in(tree, dirs).try_for_each(|(path, e)| {
                list.record(e.meta.kind(), e.meta.size, (e.meta.mtime.sec, e.meta.mtime.nsec), &path)
            })
        })?;
        laps.lap(Phase::Merge);
        merged.missing += reused.missing;
        merged.missing_names.append(&mut reused.missing_names);
        let unusable: Vec<_> = ranges::of(&reused.unusable, reused_in(tree, dirs))
            .chain(ranges::of(&merged.unusable, sent_in(tree, dirs)))
            .map(|(path, entry)| (path, entry.meta))
            .collect();
        if !unusable.is_empty() {
            tell_of_unusable(name, &reused, report);
            let paths = unusable.iter().map(|(path, _)| uncommented(path.clone()));
            let mut runs = vec![(Run::Anew, list_file(&self.settings.state, paths)?)];
            if acls_apart {
                let with_acl = acls::having(&checked.dir, unusable.iter().cloned())?;
                let list = list_file(&self.settings.state, with_acl.into_iter().map(uncommented))?;
                runs.push((Run::Acls, list));
            }
            for (run, list) in runs {
                let more = transfer(list, run).run(&mut self.far, progress)?;
                sent.bytes += more.bytes;
                sent.vanished |= more.vanished;
            }
            let request = Making::Merge { source: name.clone(), times, again: true, reused: false };
            let anew: Merged = self.far.ask_with_list(&request, |list| {
                unusable.iter().try_for_each(|(path, m)| {
                    list.record(m.kind(), m.size, (m.mtime.sec, m.mtime.nsec), path)
                })
            })?;
            merged.received += anew.received;
            merged.received_bytes += anew.received_bytes;
            merged.missing += anew.missing;
            merged.missing_names.extend(anew.missing_names);
            laps.lap(Phase::Send);
        }
        let counts = &mut plan.counts;
        counts.sent_bytes += sent.bytes;
        counts.merged.received += merged.received;
        counts.merged.received_bytes += merged.received_bytes;
        counts.merged.linked += merged.linked;
        counts.merged.resumed += merged.resumed;
        counts.reused.0 += reused.reused;
        counts.reused.1 += reused.received;
        counts.writers = writers.open.len() as u64;
        counts.writers_named = writers.open.iter().take(NAMED).map(|path| show(path)).collect();
        let mut named = Vec::new();
        let moved = distrust_moved(&checked.dir, tree, dirs, |path| {
            if named.len() < NAMED {
                named.push(show(path));
            }
        })?;
        counts.moved_named = named;
        // They have not moved, but whether all of a write was there when they were read is not known.
        writers.open.iter().for_each(|path| tree.distrust(path));
        laps.lap(Phase::Check);
        self.tell_of_unknown(source, &writers, report);
        if merged.missing > 0 && moved == 0 && !sent.vanished {
            return Err(Fault::failed(format!(
                "source {name}: rsync passed over {} paths that are there: {}",
                merged.missing,
                merged.missing_names.join(", ")
            ))
            .hint("this is a bug, or an odd rsync: please report it with the names")
            .into());
        }
        Ok(moved.max(u64::from(sent.vanished || merged.missing > 0)))
    }

    /// Says, once, where it cannot be known who is writing.
    fn tell_of_unknown(&mut self, source: &Source, writers: &Writers, report: &mut Report) {
        if writers.unknown > 0 && !std::mem::replace(&mut self.told_unknown, true) {
            report.warn(
                "writers-unknown",
                format!(
                    "source {}: whether files are being written in this moment is known only to root and to their owner: {} \
                     were taken without that",
                    source.name, writers.unknown
                ),
            );
        }
    }
}

/// Says why something that only has another name is sent after all.
fn tell_of_unusable(source: &str, reused: &Merged, report: &mut Report) {
    let count: u64 = reused.unusable.iter().map(|(from, to)| to - from).sum();
    if count > 0 {
        report.warn(
            "moved-and-sent",
            format!(
                "source {source}: {count} files that were moved are sent all the same: what the newest snapshot holds of them is not \
                 what its checksums say, or they were edited in this moment. `link-sync verify` on the store's machine tells"
            ),
        );
    }
}

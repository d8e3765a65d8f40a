//! What the base lacks: counted where it was cloned, found, and sent with what has changed.

use anyhow::Result;
use common::mutant;
use common::status::Report;

use super::Session;
use super::plan::{Plan, marked_bytes};
use crate::names::{show, some};
use crate::protocol::{Cloned, Making};
use crate::source::Source;
use crate::store::compare::{Lacking, Named};
use crate::tree::{Census, Stamp, Tree, join};

impl Session {
    /// Counts what was cloned against what the index promises. What the base lacks, or holds otherwise, is marked, so that it
    /// is sent; what nobody has stored there is taken out of the clone.
    pub(super) fn fill_holes(
        &mut self,
        source: &Source,
        tree: &mut Tree,
        plan: &mut Plan,
        old: &Tree,
        cloned: &Cloned,
        report: &mut Report,
    ) -> Result<()> {
        let mut expected = Census::default();
        expected.add(
            b"",
            b"",
            true,
            0,
            if cloned.times { old.root.mtime.everywhere() } else { Stamp::default() },
        );
        tree.cloned(old, |dir, entry| -> Result<()> {
            if let Some((name, meta)) = entry {
                let mtime = if cloned.times { meta.mtime.everywhere() } else { Stamp::default() };
                expected.add(dir, name, meta.is_dir(), meta.size, mtime);
            }
            Ok(())
        })?;
        if expected == cloned.census || mutant::active("what-is-cloned-is-counted") {
            return Ok(());
        }
        let mut folders: Vec<Vec<u8>> = Vec::new();
        let request = Making::Compare { source: source.name.clone() };
        let lacking: Lacking = self.far.ask_with_list(&request, |list| {
            tree.cloned(old, |dir, entry| match entry {
                None => {
                    folders.push(dir.to_vec());
                    list.record(0, 0, (0, 0), dir)
                }
                Some((name, meta)) => {
                    let mtime = (meta.mtime.sec, meta.mtime.nsec);
                    list.record(meta.kind(), meta.size, mtime, &join(dir, name))
                }
            })
        })?;
        let Named { lost, touched } = lacking.named(&folders, |each| {
            tree.cloned(old, |dir, entry| {
                entry.into_iter().for_each(|(name, _)| each(dir, name));
                Ok(())
            })
        })?;
        tree.root_changed = true;
        for path in lost.iter().cloned().chain(touched).filter(|path| !path.is_empty()) {
            tree.mark(&path, &mut plan.changes);
        }
        plan.changes.dirs.sort_unstable();
        plan.changes.dirs.dedup();
        let lacks = (lost.len() as u64).saturating_sub(cloned.full);
        plan.counts.lacking = lacks;
        plan.without_base = lacking.no_folder;
        tell_of_full(&source.name, cloned.full, report);
        let date = self.opened.base.as_ref().map_or("", |b| b.date.as_str());
        if lacks > 0 {
            report.warn(
                "base-lacks",
                format!(
                    "source {}: {lacks} paths are missing in the newest snapshot {date}, or are not what was stored there, and are \
                     taken from here again: {}. Who changed it? `link-sync verify` on the store's machine looks through all \
                     of them",
                    source.name,
                    some(lost.iter().map(|path| show(path)))
                ),
            );
        }
        if lacking.removed > 0 {
            report.warn(
                "base-has-more",
                format!(
                    "source {}: {} paths that nobody has stored are in the newest snapshot {date}, and are left out of this \
                     one: {}",
                    source.name,
                    lacking.removed,
                    lacking.removed_names.join(", ")
                ),
            );
        }
        plan.bytes = marked_bytes(tree, &plan.changes);
        let (bytes, inodes) = self.estimate(source, tree, plan);
        self.far.ask(&Making::Room { source: Some(source.name.clone()), bytes, inodes })
    }
}

/// Says that what changed nowhere is sent once more.
fn tell_of_full(source: &str, full: u64, report: &mut Report) {
    if full > 0 {
        report.warn(
            "no-more-links",
            format!(
                "source {source}: {full} files have as many names in the store, in all its snapshots, as its file system allows, \
                 and are stored anew. That costs room once; nothing is wrong with them"
            ),
        );
    }
}

//! One pass over one source: looked through, compared, room made, sent.

use anyhow::{Context as _, Result};
use common::status::Report;
use common::{mutant, outward, signals};
use serde_json::Value;

use super::Session;
use super::guard::{Allow, Origin, not_shrunk};
use super::plan::{Plan, marked_bytes};
use super::taken::{Last, Taken};
use crate::budget::{Budget, is_over};
use crate::names::{show, some};
use crate::progress::Progress;
use crate::protocol::{BackupOnly, Cloned, Making};
use crate::source::{Checked, DATABASE, Source};
use crate::timing::{Laps, Phase};
use crate::tree::Tree;
use crate::walk::walk;

/// What one pass is about.
#[derive(Debug)]
pub(super) struct Pass<'a> {
    pub(super) source: &'a Source,
    pub(super) checked: &'a Checked,
    pub(super) first: bool,
    pub(super) budget: &'a Budget,
    pub(super) progress: &'a Progress,
}

impl Session {
    /// One pass over one source; returns how many paths moved meanwhile. When there is no time for it, what is
    /// known of the source stays as it was.
    pub(super) fn pass(
        &mut self,
        source: &Source,
        allow: Allow,
        budget: &Budget,
        progress: &Progress,
        report: &mut Report,
    ) -> Result<u64> {
        signals::check()?;
        self.far.within(budget);
        let mut laps = Laps::start();
        let (source, dump) = source.resolve(self.seal.as_ref().map(|s| &*s.run_id))?;
        let checked = source.check(&self.settings.sources)?;
        if source.name != DATABASE {
            self.seal = None;
        }
        progress.begin(format!("{}: looking", source.name), 0);
        // Content written through a memory map moves no time stamp until it is written back.
        nix::unistd::syncfs(&checked.dir)
            .with_context(|| format!("cannot write back {}", source.path.display()))?;
        laps.lap(Phase::Sync);
        let mut tree = walk(&checked.dir, &source.path, &checked.excludes, &checked.mounts, budget)?;
        source.holds_its_marks(&tree)?;
        let origin = Origin::of(&checked, &tree);
        laps.lap(Phase::Walk);
        let before = self.taken.iter().position(|t| t.source.name == source.name);
        // A newer dump lies in another folder: it is begun anew.
        let mut again = before.map(|at| self.taken.swap_remove(at)).filter(|t| t.source.path == source.path);
        let first = again.is_none();
        let mut plan = match &mut again {
            Some(before) => {
                origin.same_as(&before.origin, &source, allow)?;
                let known = before.tree.len();
                let plan = Plan::again(before, &mut tree, checked.distrust.is_some());
                if source.name != DATABASE {
                    not_shrunk(&source, known, plan.changes.vanished, allow)?;
                }
                plan
            }
            None => {
                self.tell_of_links(&source, &tree, report);
                tell_of_beyond(&source, &tree, report);
                self.first(&source, &checked, &origin, &mut tree, allow, report)?
            }
        };
        let pass = Pass { source: &source, checked: &checked, first, budget, progress };
        let old = plan.clone.take();
        let found = match old.as_ref().or(again.as_ref().map(|before| &before.tree)) {
            Some(old) => self.find_reused(&pass, &mut tree, old, &mut plan),
            None => self.forget_claims(&pass),
        };
        plan.clone = old;
        laps.lap(Phase::Compare);
        let brought = found.and_then(|()| self.bring_up(&pass, &mut tree, &mut plan, &mut laps, report));
        let moved = match brought {
            Ok(moved) => moved,
            Err(error) => {
                // Once something is in its place, only a fresh clone is known.
                let known = !plan.placed || mutant::active("what-is-in-its-place-is-forgotten");
                if let Some(mut before) = again.filter(|_| is_over(&error) && known) {
                    before.tree.forget(&plan.gone);
                    before.counts = plan.counts;
                    self.taken.push(before);
                }
                return Err(error);
            }
        };
        let timing = laps.timing;
        plan.counts.timing.add(&timing);
        plan.counts.last = Last { changed: plan.changes.marked, bytes: plan.bytes, timing };
        self.rate.saw(plan.bytes, timing.of(Phase::Send) + timing.of(Phase::Merge));
        self.taken.push(Taken {
            origin,
            trusted: checked.distrust.is_none(),
            excluded: checked.excludes.counts(),
            tree,
            dump,
            counts: plan.counts,
            source,
        });
        // It is taken, but too late.
        budget.check()?;
        Ok(moved)
    }

    /// Brings the partial snapshot up to `tree`.
    fn bring_up(
        &mut self,
        pass: &Pass<'_>,
        tree: &mut Tree,
        plan: &mut Plan,
        laps: &mut Laps,
        report: &mut Report,
    ) -> Result<u64> {
        plan.bytes = marked_bytes(tree, &plan.changes);
        pass.budget.check_for(self.rate.expects(plan.bytes), || {
            format!(
                "sending {} of changed files of source {}",
                indicatif::BinaryBytes(plan.bytes),
                pass.source.name
            )
        })?;
        self.prepare(pass.source, tree, plan, pass.first, report)?;
        laps.lap(Phase::Prepare);
        self.transfer(pass, tree, plan, laps, report)
    }

    /// Is there room? Then: clone the base, or remove what must not stay.
    fn prepare(
        &mut self,
        source: &Source,
        tree: &mut Tree,
        plan: &mut Plan,
        first: bool,
        report: &mut Report,
    ) -> Result<()> {
        if first {
            let (bytes, inodes) = self.estimate(source, tree, plan);
            let () = self.far.ask(&Making::Room { source: Some(source.name.clone()), bytes, inodes })?;
        }
        let name = source.name.clone();
        if let Some(old) = plan.clone.take() {
            let left_out = plan.changes.dropped.iter().chain(&plan.changes.replaced);
            let cloned: Cloned = self.far.ask_with_list(&Making::Clone { source: name }, |list| {
                left_out.into_iter().try_for_each(|path| list.path(path))
            })?;
            plan.counts.cloned = cloned.linked;
            self.fill_holes(source, tree, plan, &old, &cloned, report)?;
        } else if first {
            let () = self.far.ask(&Making::Fresh { source: name })?;
        } else if !plan.changes.dropped.is_empty() {
            let _dropped: Value = self.far.ask_with_list(&BackupOnly::Drop { source: name }, |list| {
                plan.changes.dropped.iter().try_for_each(|path| list.path(path))
            })?;
            plan.gone = std::mem::take(&mut plan.changes.dropped);
        }
        Ok(())
    }

    /// Says which links lead out of all sources: what is behind them is in no snapshot.
    fn tell_of_links(&self, source: &Source, tree: &Tree, report: &mut Report) {
        let out = source.leading_out(tree, &self.settings.sources);
        if out.is_empty() || source.name == DATABASE {
            return;
        }
        let list = out.iter().map(|(path, to)| format!("{} -> {}", show(path), to.display()));
        report.warn(
            outward::KIND,
            format!(
                "source {}: {} symbolic links lead out of all sources, and what is behind them is in no snapshot: {}. Add a \
                 [[snapshot.source]] for it, or name the link in exclude",
                source.name,
                out.len(),
                some(list)
            ),
        );
    }
}

/// Names what cannot be sent: one user's folders must not keep everybody's from being saved, nor be missing silently.
fn tell_of_beyond(source: &Source, tree: &Tree, report: &mut Report) {
    if tree.beyond.is_empty() {
        return;
    }
    report.set_partial();
    // The end of such a path says nothing, and its whole length too much.
    let list = tree.beyond.iter().map(|path| format!("{}…", show(&path[..path.len().min(200)])));
    report.warn(
        "too-deep",
        format!(
            "source {}: {} paths are left out, as they are longer than 4,094 bytes or more than 1,000 folders deep: {}. \
             Move them up, or exclude them",
            source.name,
            tree.beyond.len(),
            some(list)
        ),
    );
}

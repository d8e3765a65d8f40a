//! One snapshot from beginning to end, on the source's side: passes, the seal, publish.
//!
//! A pass brings the partial snapshot up to what one walk saw. What the partial holds is known from the walk
//! before (for the first pass: from the index of the base), so only what differs is looked at again. Each pass
//! distrusts what moved under its hands, so that the next one takes it again.

use std::fs::File;
use std::io::{BufWriter, Seek as _, Write as _};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use common::fault::{Fault, Kind, kind_of};
use common::record::{RunRecord, uptime_ms};
use common::status::Report;
use common::{durable, mutant, outward, restoring, signals};
use serde_json::{Value, json};

use crate::acls;
use crate::budget::{Budget, Rate, is_over};
use crate::far::Far;
use crate::fsid::FsId;
use crate::index;
use crate::maintenance;
use crate::moved::distrust_moved;
use crate::progress::Progress;
use crate::protocol::{BackupIdle, BackupOnly, Cloned, Description, Making, Merged, Opened, Published};
use crate::rsync::Transfer;
use crate::settings::{self, DATABASE, Settings};
use crate::source::{Checked, Source};
use crate::store::clone::{Lacking, NAMED};
use crate::store::meta::{Consistency, SourceMeta};
use crate::timing::{Laps, Phase, Timing, ms};
use crate::tree::{Census, Changes, Stamp, Tree, join};
use crate::walk::{self, walk};
use crate::writers::{self, Writers};

/// Passes that settle may take until nothing moves any more.
const SETTLE_PASSES: u32 = 5;
/// A source that lost more than this many of a hundred paths is not believed.
const SHRINK_PERCENT: u64 = 30;
/// Below this many paths, a share says nothing.
const SHRINK_FROM: u64 = 20;

/// What a person allows this once.
#[derive(Clone, Copy, Debug, Default, serde::Deserialize, serde::Serialize)]
pub struct Allow {
    /// A source may have lost most of its paths.
    pub shrink: bool,
    /// A source may lie on another file system than last time.
    pub new_filesystem: bool,
    /// The store may be another than last time.
    pub new_store: bool,
    /// Publish although Nextcloud was not in maintenance.
    pub crash_consistent: bool,
    /// For settle: it ends within this time, or fails.
    pub max_time: Option<Duration>,
}

/// What a dump says of itself.
#[derive(Clone, Debug, Default)]
struct Dump {
    run: Option<String>,
    /// When its state was held, and when it was begun to show that nothing was written since, in milliseconds since this machine
    /// was started. Files that were taken in between are of its moment.
    window: Option<(u64, u64)>,
}

/// What is known of one source in this run.
#[derive(Debug)]
struct Taken {
    source: Source,
    place: Place,
    trusted: bool,
    /// What patterns left out, and how many paths.
    excluded: Vec<(String, u64)>,
    tree: Tree,
    /// For the database.
    dump: Dump,
    counts: Counts,
}

/// Where a source lies: what must be the same the next time.
#[derive(Clone, Debug, Default)]
struct Place {
    fs_id: FsId,
    fs_path: Option<String>,
    inode: Option<u64>,
    submounts: Vec<String>,
}

#[derive(Debug, Default)]
struct Counts {
    way: &'static str,
    passes: u32,
    changed: u64,
    merged: Merged,
    sent_bytes: u64,
    cloned: u64,
    lacking: u64,
    /// Of the last pass: files that somebody had open for writing.
    writers: u64,
    writers_named: Vec<String>,
    /// Of the last pass: the first paths that changed while they were taken.
    moved_named: Vec<String>,
    /// Of all passes of the last step that took this source.
    timing: Timing,
    last: Last,
}

/// The last pass: what another one would cost, if as much changed.
#[derive(Clone, Copy, Debug, Default)]
struct Last {
    changed: u64,
    bytes: u64,
    timing: Timing,
}

/// A snapshot under way.
#[derive(Debug)]
pub struct Session {
    settings: Settings,
    far: Far,
    opened: Opened,
    taken: Vec<Taken>,
    seal: Option<RunRecord>,
    /// When the pass that was sealed began and ended, as in [`Dump`].
    sealed_ms: (u64, u64),
    rate: Rate,
    started_at: String,
    /// It was said that not all writers can be seen.
    told_unknown: bool,
}

impl Session {
    /// Reaches the store, takes its lock, and clears what an interrupted run left.
    pub fn begin(settings: Settings, allow: Allow, report: &mut Report) -> Result<Session> {
        let started_at = common::status::now();
        // The one of now, whatever lies there by then. That it is not there is told where it is needed.
        maintenance::nc_maint().ok();
        store_apart(&settings)?;
        // A restore sets its mark under the lock that is ours by now.
        restoring::none(&settings.state, &settings.profile.name, crate::restore::html(&settings))?;
        // Before gigabytes of one are sent, not after: is each of them what it should be?
        for source in settings.sources.iter().filter(|s| s.name != DATABASE) {
            drop(source.check(&settings.sources)?);
        }
        let mut far = Far::connect(&settings)?;
        let opened: Opened = far.ask(&BackupIdle::Open {})?;
        for warning in &opened.warnings {
            report.warn_value(warning.clone());
        }
        let known = settings.state.join("store.json");
        if let Ok(text) = std::fs::read(&known)
            && let Ok(last) = serde_json::from_slice::<Value>(&text)
            && last["store_id"].as_str().is_some_and(|id| id != opened.store_id)
            && !allow.new_store
        {
            return Err(Fault::config(format!(
                "this is another store than last time (which holds {}): is the right disk mounted there?",
                last["date"].as_str().unwrap_or("?")
            ))
            .hint(format!("if the store was replaced on purpose, {}", once("--new-store")))
            .into());
        }
        if opened.resumed {
            report.warn("continues", "an interrupted run is continued: what it had sent is not sent again");
        }
        Ok(Session {
            settings,
            far,
            opened,
            taken: Vec::new(),
            seal: None,
            sealed_ms: (0, u64::MAX),
            rate: Rate::default(),
            started_at,
            told_unknown: false,
        })
    }

    /// Brings the partial snapshot up to date with `sources`, while things go on.
    pub fn stage(
        &mut self,
        sources: &[Source],
        allow: Allow,
        progress: &Progress,
        report: &mut Report,
    ) -> Result<()> {
        for source in sources {
            self.forget_timing(source);
            self.pass(source, allow, &Budget::default(), progress, report)?;
        }
        progress.begin("writing back", 0);
        let begin = Instant::now();
        // What is on the disks by now does not have to be written inside maintenance.
        self.far.within(&Budget::default());
        let () = self.far.ask(&Making::Flush {})?;
        for source in sources {
            write_back(&source.path)?;
        }
        report.set("flush_ms", ms(begin.elapsed()));
        report.changed = true;
        self.tell(report);
        Ok(())
    }

    /// Takes what changed since (all of what was not staged), until nothing moves, and seals if the same run's maintenance is on at
    /// the beginning and at the end.
    pub fn settle(
        &mut self,
        sources: &[Source],
        allow: Allow,
        progress: &Progress,
        report: &mut Report,
    ) -> Result<()> {
        self.seal = None;
        let from = uptime_ms()?;
        let settings = self.settings.clone();
        let record = maintenance::record(&settings)?;
        let budget = Budget::new(allow.max_time, record.as_ref().and_then(|r| r.deadline.as_deref()));
        // Asking Nextcloud takes about as long as looking through the files, so both are done at once.
        let (before, done) = std::thread::scope(|scope| {
            let proof = scope.spawn(|| maintenance::proof(&settings, record));
            let done = self.settle_all(sources, allow, &budget, progress, report);
            (proof.join(), done)
        });
        let before = before.map_err(|_| anyhow::anyhow!("internal error while Nextcloud was asked"))??;
        if let Err(error) = &done
            && is_over(error)
        {
            report.set("reason", "over-budget");
            self.tell(report);
        }
        for (name, moved) in done? {
            let which = self.find(&name).map(|t| t.counts.moved_named.join(", ")).filter(|n| !n.is_empty());
            let which = which.map(|names| format!(": {names}")).unwrap_or_default();
            if before.is_ok() {
                return Err(Fault::failed(format!(
                    "source {name}: {moved} paths still change while Nextcloud is in maintenance{which}"
                ))
                .hint("what writes there? `lsof +D` or `fatrace` on the folder shows it; a background worker must be stopped for the backup")
                .into());
            }
            report
                .warn("moving", format!("source {name}: {moved} paths changed while they were taken{which}"));
        }
        for taken in self.taken.iter().filter(|t| t.counts.writers > 0 && t.source.name != DATABASE) {
            report.warn(
                "open-for-writing",
                format!(
                    "source {}: {} files were open for writing while they were taken, so a write may have been under way: {}. \
                     They are taken again the next time",
                    taken.source.name,
                    taken.counts.writers,
                    taken.counts.writers_named.join(", ")
                ),
            );
        }
        self.sealed_ms = (from, uptime_ms()?);
        let begin = Instant::now();
        let after = maintenance::proof(&settings, maintenance::record(&settings)?)?;
        report.set("proof_ms", ms(begin.elapsed()));
        let left_out = self
            .settings
            .sources
            .iter()
            .find(|s| s.name != DATABASE && !sources.iter().any(|o| o.name == s.name));
        self.seal = match (before, after) {
            (Ok(_), Ok(_)) if left_out.is_some() => {
                report.warn(
                    "not-sealed",
                    format!("not sealed: source {} was not settled", left_out.map_or("", |s| &s.name)),
                );
                None
            }
            (Ok(a), Ok(b)) if a.run_id == b.run_id => Some(b),
            (Ok(_), Ok(_)) => {
                report.warn("not-sealed", "maintenance was switched off and on again meanwhile");
                None
            }
            (Err(why), _) | (_, Err(why)) => {
                if !allow.crash_consistent {
                    report.warn("not-sealed", format!("not sealed: {why}"));
                }
                None
            }
        };
        report.changed = true;
        report.set("sealed", self.seal.is_some());
        self.tell(report);
        Ok(())
    }

    /// Takes each of `sources` until nothing moves any more; those that still did after some passes, and how many
    /// paths.
    fn settle_all(
        &mut self,
        sources: &[Source],
        allow: Allow,
        budget: &Budget,
        progress: &Progress,
        report: &mut Report,
    ) -> Result<Vec<(String, u64)>> {
        let mut restless = Vec::new();
        for source in sources.iter().filter(|s| s.name != DATABASE) {
            self.forget_timing(source);
            let known = self.find(&source.name).is_some();
            let mut moved = self.pass(source, allow, budget, progress, report)?;
            let mut passes = 1;
            if !known && self.find(&source.name).is_some_and(|t| t.counts.changed > 0) {
                // Not staged before: what was sent took time, in which other paths may have changed.
                moved = moved.max(1);
            }
            while moved > 0 && passes < SETTLE_PASSES {
                moved = self.pass(source, allow, budget, progress, report)?;
                passes += 1;
            }
            if moved > 0 {
                restless.push((source.name.clone(), moved));
            }
        }
        Ok(restless)
    }

    /// A new step begins for `source`.
    fn forget_timing(&mut self, source: &Source) {
        if let Some(taken) = self.taken.iter_mut().find(|t| t.source.name == source.name) {
            taken.counts.timing = Timing::default();
        }
    }

    /// Publishes, and commits the index.
    pub fn publish(mut self, allow: Allow, progress: &Progress, report: &mut Report) -> Result<()> {
        self.may_publish(allow)?;
        for taken in self.taken.iter().filter(|t| t.tree.len() == 0) {
            report.warn("empty-source", format!("source {} is empty", taken.source.name));
        }
        if self.taken.iter().any(|t| !t.tree.beyond.is_empty()) {
            report.set_partial();
        }
        let seal = self.seal.as_ref().filter(|_| self.is_of_one_moment());
        let consistency = if seal.is_some() { Consistency::Sealed } else { Consistency::CrashConsistent };
        // The order of the profile, whatever order they were taken in.
        let place = |name: &str| self.settings.sources.iter().position(|s| s.name == name);
        let mut sources: Vec<&Taken> = self.taken.iter().collect();
        sources.sort_by_key(|t| place(&t.source.name));
        let sources: Vec<SourceMeta> = sources.iter().map(|t| t.meta()).collect();
        let meta = Description {
            run_id: seal.map(|s| s.run_id.clone()),
            consistency,
            started_at: self.started_at.clone(),
            tool_version: env!("CARGO_PKG_VERSION").to_owned(),
            sources,
        };
        progress.begin("hashing what is new", 0);
        self.far.within(&Budget::default());
        let watch = |done, total| progress.reached_of(done, total);
        let published: Published =
            self.far.ask_watched(&BackupOnly::Publish { meta }, watch).map_err(perhaps_published)?;
        report.changed = true;
        for warning in &published.warnings {
            report.warn_value(warning.clone());
        }
        report.set("date", published.date.as_str());
        report.set("path", published.path.as_str());
        report.set("id", published.id.as_str());
        report.set("hashed_files", published.hashed_files);
        report.set("hashed_bytes", published.hashed_bytes);
        report.set("base", self.opened.base.as_ref().map(|b| b.date.clone()));
        report.set("consistency", serde_json::to_value(consistency)?);
        report.set("store", self.far.hello.store.as_str());
        self.tell(report);
        if let Err(error) = self.commit(&published) {
            report.warn("index-lost", format!("the next run will compare everything: {error:#}"));
        }
        Ok(())
    }

    /// Refuses what must not be published: not all sources, not sealed, a dump of another run.
    pub fn may_publish(&self, allow: Allow) -> Result<()> {
        let missing: Vec<_> = self.settings.sources.iter().filter(|s| self.find(&s.name).is_none()).collect();
        if !missing.is_empty() {
            let names: Vec<_> = missing.iter().map(|s| s.name.as_str()).collect();
            return Err(Fault::failed(format!("not yet staged: {}", names.join(", ")))
                .hint("`link-sync stage --source NAME` takes them; a snapshot holds all sources or is not published")
                .into());
        }
        let dump_run = self.find(DATABASE).and_then(|t| t.dump.run.as_ref());
        match &self.seal {
            None if allow.crash_consistent => {}
            None => {
                return Err(Fault::failed("the snapshot is not sealed: Nextcloud was not in maintenance when it was settled")
                    .hint("run `nc-maint run PROFILE -- link-sync settle PROFILE`, or publish with --crash-consistent")
                    .into());
            }
            Some(seal) if self.find(DATABASE).is_some() && dump_run != Some(&seal.run_id) => {
                let dump = dump_run.map_or("no run".into(), |r| format!("run {r}"));
                return Err(Fault::failed(format!(
                    "the dump is of {dump}, but the files were sealed in run {}",
                    seal.run_id
                ))
                .hint("`pg-snap hold` must run inside the same nc-maint run as `link-sync settle`")
                .into());
            }
            Some(_) if !allow.crash_consistent && !self.is_of_one_moment() => {
                return Err(Fault::failed(
                    "the files were not taken between the hold and the confirmation of what was dumped: requests may have \
                     written to one and not to the other",
                )
                .hint("in one nc-maint run, in this order: pg-snap drain, pg-snap hold, link-sync settle, pg-snap confirm; then \
                       pg-snap dump --held. Or publish with --crash-consistent")
                .into());
            }
            Some(_) => {}
        }
        Ok(())
    }

    /// Whether what was sealed was taken while what was dumped was held, and before that was confirmed.
    fn is_of_one_moment(&self) -> bool {
        let (from, to) = self.sealed_ms;
        let around = |(held, confirmed): (u64, u64)| held <= from && to <= confirmed;
        self.find(DATABASE).is_none_or(|database| database.dump.window.is_some_and(around))
            || mutant::active("window-around-the-files")
    }

    fn find(&self, name: &str) -> Option<&Taken> {
        self.taken.iter().find(|t| t.source.name == name)
    }

    /// One pass over one source; returns how many paths moved meanwhile. When there is no time for it, what is
    /// known of the source stays as it was.
    fn pass(
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
        let (source, dump) = resolve(source)?;
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
        let place = Place::of(&checked, &tree);
        laps.lap(Phase::Walk);
        let before = self.taken.iter().position(|t| t.source.name == source.name);
        // A newer dump lies in another folder: it is begun anew.
        let mut again = before.map(|at| self.taken.swap_remove(at)).filter(|t| t.source.path == source.path);
        let first = again.is_none();
        let mut plan = match &mut again {
            Some(before) => {
                place.same_as(&before.place, &source, allow)?;
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
                self.first(&source, &checked, &place, &mut tree, allow, report)?
            }
        };
        laps.lap(Phase::Compare);
        let now = Now { source: &source, checked: &checked, first, budget };
        let moved = match self.bring_up(&now, &mut tree, &mut plan, &mut laps, progress, report) {
            Ok(moved) => moved,
            Err(error) => {
                if let Some(mut before) = again.filter(|_| is_over(&error)) {
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
            place,
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
        now: &Now<'_>,
        tree: &mut Tree,
        plan: &mut Plan,
        laps: &mut Laps,
        progress: &Progress,
        report: &mut Report,
    ) -> Result<u64> {
        plan.bytes = marked_bytes(tree, &plan.changes);
        now.budget.check_for(self.rate.expects(plan.bytes), || {
            format!(
                "sending {} of changed files of source {}",
                indicatif::BinaryBytes(plan.bytes),
                now.source.name
            )
        })?;
        self.prepare(now.source, tree, plan, now.first, report)?;
        laps.lap(Phase::Prepare);
        self.transfer(now, tree, plan, laps, progress, report)
    }

    /// How to begin: with the index of the base, or the full way.
    fn first(
        &mut self,
        source: &Source,
        checked: &Checked,
        place: &Place,
        tree: &mut Tree,
        allow: Allow,
        report: &mut Report,
    ) -> Result<Plan> {
        let base = self.opened.base.as_ref();
        let held = base.and_then(|b| b.source(&source.name)).cloned();
        let Some(held) = held else {
            return Ok(Plan::full(tree, "first"));
        };
        if source.name == DATABASE {
            return Ok(Plan::full(tree, "full"));
        }
        place.same_as(&Place::held(&held), source, allow)?;
        let base_id = base.map(|b| b.id.clone()).unwrap_or_default();
        match self.usable_index(source, checked, &base_id) {
            Ok(old) => {
                let known = old.len();
                let mut changes = tree.mark_changes(&old);
                not_shrunk(source, known, changes.vanished, allow)?;
                self.mark_damaged(source, tree, &mut changes, report);
                if !tree.untrusted.is_empty() {
                    let list =
                        tree.untrusted.iter().map(|(path, kind)| format!("{} ({kind})", walk::show(path)));
                    report.warn(
                        "full-way",
                        format!("source {}: what lies on other file systems than ext4, xfs, btrfs or zfs is compared \
                             byte by byte: {}", source.name, some(list)),
                    );
                }
                let counts = Counts { way: "index", ..Counts::default() };
                Ok(Plan { changes, clone: Some(old), counts, ..Plan::default() })
            }
            Err(why) => {
                not_shrunk(source, held.paths, held.paths.saturating_sub(tree.len()), allow)?;
                report.warn("full-way", format!("source {}: everything is compared: {why}", source.name));
                if !self.settings.checksum && !self.opened.damaged.all {
                    report.warn("no-checksum", format!(
                        "source {}: compared by size and time only (checksum = false): an edit that kept both is not noticed",
                        source.name
                    ));
                }
                let checksum = self.settings.checksum || self.opened.damaged.all;
                Ok(Plan { checksum, ..Plan::full(tree, "full") })
            }
        }
    }

    /// Says which links lead out of all sources: what is behind them is in no snapshot.
    fn tell_of_links(&self, source: &Source, tree: &Tree, report: &mut Report) {
        let out = source.leading_out(tree, &self.settings.sources);
        if out.is_empty() || source.name == DATABASE {
            return;
        }
        let list = out.iter().map(|(path, to)| format!("{} -> {}", walk::show(path), to.display()));
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

    /// Marks what was verified and found damaged in the base, although it has not changed here.
    fn mark_damaged(&self, source: &Source, tree: &mut Tree, changes: &mut Changes, report: &mut Report) {
        let name = source.name.as_bytes();
        let inside = |path: &Vec<u8>| match path.strip_prefix(name) {
            Some([]) => Some(Vec::new()),
            Some([b'/', rest @ ..]) => Some(rest.to_vec()),
            _ => None,
        };
        let paths: Vec<Vec<u8>> = self.opened.damaged.paths.iter().filter_map(inside).collect();
        let count = paths.iter().filter(|path| tree.mark(path, changes)).count();
        if count > 0 {
            changes.dirs.sort_unstable();
            changes.dirs.dedup();
            report.warn(
                "damaged-sent-again",
                format!(
                    "source {}: {count} paths are damaged in the newest snapshot and are sent again; `link-sync verify --repair` \
                     on the store's machine can then mend the older ones",
                    source.name
                ),
            );
        }
    }

    /// The index, if it is of this base and source and can be relied on; else why not.
    fn usable_index(&self, source: &Source, checked: &Checked, base_id: &str) -> Result<Tree, String> {
        if let Some(why) = &checked.distrust {
            return Err(why.clone());
        }
        if self.opened.damaged.all {
            return Err("a verification found much of the newest snapshot damaged".into());
        }
        let file = index::path(&self.settings.state, &source.name);
        match index::header(&file) {
            Ok(None) => return Err("there is no index of the last snapshot yet".into()),
            Err(e) => return Err(format!("the index {} is damaged: {e:#}", file.display())),
            Ok(Some(header)) if header.snapshot_id != base_id => {
                return Err("the index is not of the newest snapshot in the store".into());
            }
            Ok(Some(header))
                if !FsId::noted(header.fs_id.clone()).is(&checked.fs_id)
                    || header.path_b64 != index::encode_path(&source.path) =>
            {
                return Err("the index is of another folder or file system".into());
            }
            Ok(Some(_)) => {}
        }
        let (_, old) =
            index::load(&file).map_err(|e| format!("the index {} is damaged: {e:#}", file.display()))?;
        if old.walked_at > Stamp::now() {
            return Err("the clock went back since the last snapshot".into());
        }
        Ok(old)
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
        } else if !first && !plan.changes.dropped.is_empty() {
            let _dropped: Value = self.far.ask_with_list(&BackupOnly::Drop { source: name }, |list| {
                plan.changes.dropped.iter().try_for_each(|path| list.path(path))
            })?;
            plan.gone = std::mem::take(&mut plan.changes.dropped);
        }
        Ok(())
    }

    /// Counts what was cloned against what the index promises. What the base lacks, or holds otherwise, is marked, so that it
    /// is sent; what nobody has stored there is taken out of the clone.
    fn fill_holes(
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
        let (mut lost, mut touched, mut number) = (Vec::new(), Vec::new(), 0u64);
        let (mut paths, mut times) = (lacking.paths.iter().peekable(), lacking.times.iter().peekable());
        tree.cloned(old, |dir, entry| -> Result<()> {
            let Some((name, _)) = entry else { return Ok(()) };
            for (ranges, list) in [(&mut paths, &mut lost), (&mut times, &mut touched)] {
                while ranges.next_if(|(_, to)| *to <= number).is_some() {}
                if ranges.peek().is_some_and(|(from, _)| *from <= number) {
                    list.push(join(dir, name));
                }
            }
            number += 1;
            Ok(())
        })?;
        // The time of a folder in which something was done by hand is not what it was.
        let of_folders = lacking.folders.iter().flat_map(|(from, to)| *from..*to);
        let of_folders = of_folders.filter_map(|at| folders.get(usize::try_from(at).ok()?)).cloned();
        tree.root_changed = true;
        for path in lost.iter().cloned().chain(touched).chain(of_folders).filter(|path| !path.is_empty()) {
            tree.mark(&path, &mut plan.changes);
        }
        plan.changes.dirs.sort_unstable();
        plan.changes.dirs.dedup();
        plan.counts.lacking = lost.len() as u64;
        plan.without_base = lacking.no_folder;
        let date = self.opened.base.as_ref().map_or("", |b| b.date.as_str());
        if !lost.is_empty() {
            report.warn(
                "base-lacks",
                format!(
                    "source {}: {} paths are missing in the newest snapshot {date}, or are not what was stored there, and are \
                     taken from here again: {}. Who changed it? `link-sync verify` on the store's machine looks through all \
                     of them",
                    source.name,
                    lost.len(),
                    some(lost.iter().map(|path| walk::show(path)))
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

    /// Bytes and inodes the first pass over a source will take at most.
    fn estimate(&self, source: &Source, tree: &Tree, plan: &Plan) -> (u64, u64) {
        // Directories cannot be linked: each is made anew in every snapshot, and takes a block.
        let dirs = tree.dirs.len() as u64;
        let held = self.opened.base.as_ref().and_then(|b| b.source(&source.name));
        if let (true, Some(held)) = (plan.all, held) {
            // Everything is compared, and what is found unchanged takes nothing. Sparse files take less than their size.
            let bytes = tree.allocated().min(tree.bytes()).saturating_sub(held.bytes);
            return (bytes + dirs * 4096, tree.len().saturating_sub(held.paths) + dirs);
        }
        let marked = tree.dirs.values().flat_map(|d| d.entries()).filter(|(_, e)| e.changed);
        let size = |e: &crate::tree::Entry| e.allocated.min(e.meta.size.next_multiple_of(4096));
        let (bytes, inodes) =
            marked.fold((dirs * 4096, dirs), |(bytes, inodes), (_, e)| (bytes + size(e), inodes + 1));
        (bytes.saturating_sub(plan.changes.alike_bytes), inodes)
    }

    /// Sends what is marked, has it put in its place, and distrusts what moved meanwhile.
    fn transfer(
        &mut self,
        now: &Now<'_>,
        tree: &mut Tree,
        plan: &mut Plan,
        laps: &mut Laps,
        progress: &Progress,
        report: &mut Report,
    ) -> Result<u64> {
        let &Now { source, checked, first, budget } = now;
        let marked = plan.changes.marked;
        plan.counts.passes += 1;
        plan.counts.changed += marked;
        plan.counts.writers = 0;
        plan.counts.moved_named.clear();
        let name = &source.name;
        let times = name != DATABASE;
        let again = !first || plan.without_base;
        let dirs = &plan.changes.dirs;
        let transfer = |list: File, only_itself: bool, acls_only: bool| Transfer {
            rsync: &self.settings.rsync,
            path: &source.path,
            list,
            only_itself,
            source: name,
            // A second look at contents is only worth it where there is something to compare with.
            // The second time, what was received a moment ago has its time, unless times do not count.
            checksum: if acls_only {
                !times
            } else {
                // What an interrupted run had received may be no more than a size and a time.
                (plan.checksum || first && self.opened.resumed && !mutant::active("resumed-by-size-and-time"))
                    && (!first || self.opened.base.is_some() || self.opened.resumed)
            },
            times,
            again,
            all_xattrs: false,
            account: None,
            xattrs: self.opened.xattrs,
            acls: self.opened.acls,
            acls_only,
            budget,
        };
        let acls_apart = self.opened.acls && self.opened.xattrs && !self.far.hello.root;
        let request = Making::Merge { source: name.clone(), times, again };
        if tree.root_changed {
            progress.begin(format!("{name}: the folder itself"), 0);
            let list = list_file(&self.settings.state, [&b"."[..]].into_iter())?;
            let sent = transfer(list, true, false).run(&mut self.far, progress)?;
            plan.counts.sent_bytes += sent.bytes;
            if acls_apart && acls::of_folder(&checked.dir)? {
                let list = list_file(&self.settings.state, [&b"."[..]].into_iter())?;
                plan.counts.sent_bytes += transfer(list, true, true).run(&mut self.far, progress)?.bytes;
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
        let list = list_file(&self.settings.state, marked_in(tree, dirs).map(|(path, _)| uncommented(path)))?;
        progress.begin(format!("{name}: {marked} paths"), plan.bytes);
        let mut sent = transfer(list, false, false).run(&mut self.far, progress)?;
        let with_acl = match acls_apart {
            true => acls::having(&checked.dir, marked_in(tree, dirs).map(|(path, e)| (path, e.meta)))?,
            false => Vec::new(),
        };
        if !with_acl.is_empty() {
            let list = list_file(&self.settings.state, with_acl.into_iter().map(uncommented))?;
            let more = transfer(list, false, true).run(&mut self.far, progress)?;
            sent.bytes += more.bytes;
            sent.vanished |= more.vanished;
        }
        laps.lap(Phase::Send);
        progress.begin(format!("{name}: putting in place"), 0);
        let merged: Merged = self.far.ask_with_list(&request, |list| {
            marked_in(tree, dirs).try_for_each(|(path, e)| {
                list.record(e.meta.kind(), e.meta.size, (e.meta.mtime.sec, e.meta.mtime.nsec), &path)
            })
        })?;
        laps.lap(Phase::Merge);
        let counts = &mut plan.counts;
        counts.sent_bytes += sent.bytes;
        counts.merged.received += merged.received;
        counts.merged.received_bytes += merged.received_bytes;
        counts.merged.linked += merged.linked;
        counts.merged.resumed += merged.resumed;
        counts.writers = writers.open.len() as u64;
        counts.writers_named = writers.open.iter().take(NAMED).map(|path| walk::show(path)).collect();
        let mut named = Vec::new();
        let moved = distrust_moved(&checked.dir, tree, dirs, |path| {
            if named.len() < NAMED {
                named.push(walk::show(path));
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

    /// Commits what the next run starts from.
    fn commit(&self, published: &Published) -> Result<()> {
        for taken in &self.taken {
            let file = index::path(&self.settings.state, &taken.source.name);
            if taken.source.name != DATABASE && taken.trusted {
                let fs_id = taken.place.fs_id.name.as_deref();
                index::save(&file, &taken.source.path, fs_id, &published.id, &taken.tree)?;
            }
        }
        let store = json!({"store_id": self.opened.store_id, "date": published.date, "id": published.id});
        durable::write(&self.settings.state.join("store.json"), store.to_string().as_bytes(), 0o600)
    }

    fn tell(&self, report: &mut Report) {
        let sources: Vec<Value> = self.taken.iter().map(Taken::tell).collect();
        report.set("sources", sources);
        report.set("started_at", self.started_at.as_str());
    }
}

impl Taken {
    fn meta(&self) -> SourceMeta {
        SourceMeta {
            name: self.source.name.clone(),
            path: index::encode_path(&self.source.path),
            fs_id: self.place.fs_id.name.clone(),
            fs_path: self.place.fs_path.clone(),
            inode: self.place.inode,
            submounts: self.place.submounts.clone(),
            paths: self.tree.len(),
            bytes: self.tree.bytes(),
        }
    }

    fn tell(&self) -> Value {
        let c = &self.counts;
        json!({
            "name": self.source.name, "way": c.way, "passes": c.passes,
            "paths": self.tree.len(), "bytes": self.tree.bytes(),
            "changed_paths": c.changed, "sent_bytes": c.sent_bytes,
            "received_files": c.merged.received, "received_bytes": c.merged.received_bytes,
            "linked_paths": c.cloned + c.merged.linked, "resumed_files": c.merged.resumed,
            "left_out_too_deep": self.tree.beyond.len(), "lacking_paths": c.lacking, "open_for_writing": c.writers,
            "excluded": self.excluded.iter().map(|(pattern, paths)| json!({"pattern": pattern, "paths": paths}))
                .collect::<Vec<_>>(),
            "timing": c.timing.tell(),
            "last_pass": {
                "changed_paths": c.last.changed, "changed_bytes": c.last.bytes,
                "walk_ms": ms(c.last.timing.of(Phase::Walk)), "pass_ms": ms(c.last.timing.total()),
            },
        })
    }
}

/// What one pass is going to do.
#[derive(Debug)]
struct Plan {
    changes: Changes,
    /// Everything is marked, whether it changed or not.
    all: bool,
    /// The base is cloned, which holds this.
    clone: Option<Tree>,
    checksum: bool,
    counts: Counts,
    /// Bytes of the marked files.
    bytes: u64,
    /// What the far end has removed from the partial snapshot.
    gone: Vec<Vec<u8>>,
    /// What the base holds is no good to compare with: what is marked is sent whole.
    without_base: bool,
}

/// What one pass is about.
#[derive(Debug)]
struct Now<'a> {
    source: &'a Source,
    checked: &'a Checked,
    first: bool,
    budget: &'a Budget,
}

impl Default for Plan {
    fn default() -> Plan {
        Plan {
            changes: Changes::default(),
            all: false,
            clone: None,
            checksum: true,
            counts: Counts::default(),
            bytes: 0,
            gone: Vec::new(),
            without_base: false,
        }
    }
}

impl Plan {
    fn full(tree: &mut Tree, way: &'static str) -> Plan {
        let counts = Counts { way, ..Counts::default() };
        let changes = tree.mark_all();
        Plan { changes, all: true, counts, ..Plan::default() }
    }

    /// A later pass: what differs from the walk before; everything where that cannot be relied on.
    fn again(before: &mut Taken, tree: &mut Tree, distrust: bool) -> Plan {
        let mut changes = tree.mark_changes(&before.tree);
        if distrust {
            let Changes { dropped, vanished, .. } = changes;
            changes = Changes { dropped, vanished, ..tree.mark_all() };
        }
        let counts = std::mem::take(&mut before.counts);
        Plan { changes, all: distrust, counts, ..Plan::default() }
    }
}

/// The marked entries in `dirs`, directories before what is in them.
fn marked_in<'a>(
    tree: &'a Tree,
    dirs: &'a [Vec<u8>],
) -> impl Iterator<Item = (Vec<u8>, &'a crate::tree::Entry)> + 'a {
    let in_dir = |path: &'a Vec<u8>| tree.dirs.get(path).into_iter().map(move |dir| (path, dir));
    dirs.iter().flat_map(in_dir).flat_map(|(path, dir)| {
        dir.entries().filter(|(_, e)| e.changed).map(move |(name, e)| (crate::tree::join(path, name), e))
    })
}

/// Has the file system that `path` lies on written back.
fn write_back(path: &Path) -> Result<()> {
    let what = || format!("cannot write back {}", path.display());
    nix::unistd::syncfs(File::open(path).with_context(what)?).with_context(what)
}

impl Place {
    fn of(checked: &Checked, tree: &Tree) -> Place {
        Place {
            fs_id: checked.fs_id.clone(),
            fs_path: checked.fs_path.clone(),
            inode: Some(checked.inode),
            submounts: tree.submounts.iter().map(|m| walk::show(m)).collect(),
        }
    }

    fn held(held: &SourceMeta) -> Place {
        Place {
            fs_id: FsId::noted(held.fs_id.clone()),
            fs_path: held.fs_path.clone(),
            inode: held.inode,
            submounts: held.submounts.clone(),
        }
    }

    /// A source on another file system than `before`, in another folder of it, or without a mount it had, is not what it
    /// was.
    fn same_as(&self, before: &Place, source: &Source, allow: Allow) -> Result<()> {
        if allow.new_filesystem {
            return Ok(());
        }
        let shown = source.path.display();
        let hint = format!("if it was moved on purpose, {}", once("--allow-new-filesystem"));
        let refuse = |message: String, hint: String| Err(Fault::config(message).hint(hint).into());
        if before.fs_id.name.is_some() && !before.fs_id.is(&self.fs_id) {
            let id = |id: &FsId| id.name.clone().unwrap_or_else(|| "unknown".to_owned());
            return refuse(
                format!(
                    "source {}: {shown} is on file system {} now, and was on {} at the last snapshot: is its disk mounted?",
                    source.name,
                    id(&self.fs_id),
                    id(&before.fs_id)
                ),
                hint.to_owned(),
            );
        }
        // A folder that was renamed or put there anew differs in one of the two alone.
        if let (Some(path), Some(inode)) = (&before.fs_path, before.inode)
            && self.fs_path.as_ref().is_some_and(|now| now != path)
            && self.inode.is_some_and(|now| now != inode)
            && !mutant::active("bind-mount-of-the-source")
        {
            return refuse(
                format!(
                    "source {}: {shown} is the folder {} of its file system now, and was {path} at the last snapshot: is what is \
                     mounted there (a bind mount?) missing?",
                    source.name,
                    self.fs_path.as_deref().unwrap_or("?")
                ),
                hint.to_owned(),
            );
        }
        if let Some(gone) = before.submounts.iter().find(|m| !self.submounts.contains(m)) {
            return refuse(
                format!(
                    "source {}: {shown}/{gone} was a mount point at the last snapshot and is none now",
                    source.name
                ),
                format!("is its disk mounted? {hint}"),
            );
        }
        Ok(())
    }
}

/// Names what cannot be sent: one user's folders must not keep everybody's from being saved, nor be missing silently.
fn tell_of_beyond(source: &Source, tree: &Tree, report: &mut Report) {
    if tree.beyond.is_empty() {
        return;
    }
    report.set_partial();
    // The end of such a path says nothing, and its whole length too much.
    let list = tree.beyond.iter().map(|path| format!("{}…", walk::show(&path[..path.len().min(200)])));
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

/// The first of a list, for people.
pub fn some(list: impl ExactSizeIterator<Item = String>) -> String {
    let more = list.len().saturating_sub(NAMED);
    let named = list.take(NAMED).collect::<Vec<_>>().join(", ");
    if more > 0 { format!("{named}, and {more} more") } else { named }
}

/// Bytes of the files that are marked.
fn marked_bytes(tree: &Tree, changes: &Changes) -> u64 {
    let files = marked_in(tree, &changes.dirs).filter(|(_, e)| e.meta.is_file());
    files.map(|(_, e)| e.allocated.min(e.meta.size)).sum()
}

/// When the connection breaks, or a signal comes, between the request to publish and its answer, the far end may
/// have gone through with it. It has if it says so in the list.
fn perhaps_published(error: anyhow::Error) -> anyhow::Error {
    match kind_of(&error) {
        kind @ (Kind::Unavailable | Kind::Interrupted(_)) => error.context(
            Fault::new(kind, "the store did not answer, so whether the snapshot was published is not known")
                .hint("`link-sync list` shows it if it was; it is whole or absent either way"),
        ),
        _ => error,
    }
}

/// A store inside a source would be copied into itself.
fn store_apart(settings: &Settings) -> Result<()> {
    let settings::Place::Local(store) = &settings.store else { return Ok(()) };
    let Ok(store) = store.canonicalize() else { return Ok(()) };
    for source in &settings.sources {
        if source.path.canonicalize().is_ok_and(|path| store.starts_with(path)) {
            return Err(Fault::config(format!(
                "the store {} lies inside source {} ({}): each snapshot would hold all before it",
                store.display(),
                source.name,
                source.path.display()
            ))
            .hint("put the store elsewhere, best on another disk")
            .into());
        }
    }
    Ok(())
}

/// How a person lets something pass that was meant: no script has these options.
fn once(option: &str) -> String {
    format!("once `link-sync stage PROFILE {option}`, then `backup-local PROFILE`, which goes on from there")
}

fn not_shrunk(source: &Source, known: u64, vanished: u64, allow: Allow) -> Result<()> {
    if allow.shrink || known < SHRINK_FROM || vanished * 100 <= known * SHRINK_PERCENT {
        return Ok(());
    }
    Err(Fault::config(format!(
        "source {}: {vanished} of {known} paths of the last snapshot are gone (more than {SHRINK_PERCENT} %): refused",
        source.name
    ))
    .hint(format!("is its disk mounted, is the data where it was? If this is as it should be, {}", once("--allow-shrink")))
    .into())
}

/// For the database: the newest complete dump in the folder of dumps, and the run it was made in.
fn resolve(source: &Source) -> Result<(Source, Dump)> {
    if source.name != DATABASE {
        return Ok((source.clone(), Dump::default()));
    }
    let shown = source.path.display();
    let list = std::fs::read_dir(&source.path)
        .map_err(|e| Fault::config(format!("source {}: {shown} cannot be read: {e}", source.name)))?;
    let dated = list.filter_map(|e| e.ok()?.file_name().into_string().ok());
    let newest = dated.filter(|n| crate::store::meta::is_date(n)).max();
    let path = match newest {
        Some(date) => source.path.join(date),
        None => source.path.clone(),
    };
    let dump: Value = std::fs::read(path.join("dump.json"))
        .map_err(anyhow::Error::from)
        .and_then(|text| Ok(serde_json::from_slice(&text)?))
        .map_err(|e| {
            Fault::config(format!("source {}: {} holds no complete dump: {e}", source.name, path.display()))
                .hint("`pg-snap dump` makes one")
        })?;
    let run = dump["run_id"].as_str().map(str::to_owned);
    let at = |which: &str| dump["window"][which].as_u64();
    let window = at("held_ms").zip(at("confirmed_ms"));
    Ok((Source { path, ..source.clone() }, Dump { run, window }))
}

/// rsync takes a listed path that begins with `#` or `;` for a comment, also in a list of NUL-separated paths.
pub fn uncommented(path: Vec<u8>) -> Vec<u8> {
    if path.starts_with(b"#") || path.starts_with(b";") { [b"./", &path[..]].concat() } else { path }
}

/// The NUL-separated list of `paths` for rsync, in a file that has no name, so it is gone with us.
pub fn list_file(dir: &Path, paths: impl Iterator<Item = impl AsRef<[u8]>>) -> Result<File> {
    use nix::fcntl::{OFlag, open};
    use nix::sys::stat::Mode;
    let what = || format!("cannot write a temporary file in {}", dir.display());
    let flags = OFlag::O_TMPFILE | OFlag::O_RDWR | OFlag::O_CLOEXEC;
    let fd = open(dir, flags, Mode::from_bits_truncate(0o600)).with_context(what)?;
    let mut out = BufWriter::new(File::from(fd));
    for path in paths {
        out.write_all(path.as_ref()).and_then(|()| out.write_all(&[0])).with_context(what)?;
    }
    let mut file = out.into_inner().with_context(what)?;
    file.rewind().with_context(what)?;
    Ok(file)
}

//! One snapshot from beginning to end, on the source's side: passes, the seal, publish.
//!
//! A pass brings the partial snapshot up to what one walk saw. What the partial holds is known from the walk
//! before (for the first pass: from the index of the base), so only what differs is looked at again. Each pass
//! distrusts what moved under its hands, so that the next one takes it again.

mod guard;
mod holes;
mod pass;
mod plan;
mod publish;
mod reuse;
mod settle;
mod taken;
mod transfer;

use std::collections::HashSet;
use std::fs::File;
use std::path::Path;
use std::time::Instant;

use anyhow::{Context as _, Result};
use common::record::RunRecord;
use common::restoring;
use common::status::Report;
use serde_json::Value;

pub use guard::Allow;
use guard::{same_store, store_apart};
use taken::Taken;

use crate::budget::{Budget, Rate};
use crate::far::Far;
use crate::maintenance;
use crate::progress::Progress;
use crate::protocol::{BackupIdle, Making, Opened};
use crate::settings::Settings;
use crate::source::{DATABASE, Source};
use crate::timing::{Timing, ms};

/// A snapshot under way.
#[derive(Debug)]
pub struct Session {
    settings: Settings,
    far: Far,
    opened: Opened,
    taken: Vec<Taken>,
    seal: Option<RunRecord>,
    /// When the pass that was sealed began and ended, as in [`crate::source::Dump`].
    sealed_ms: (u64, u64),
    rate: Rate,
    /// Nextcloud is down: nothing is done that need not be.
    in_maintenance: bool,
    /// Sources of which something was claimed.
    claimed: HashSet<String>,
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
        restoring::none(&settings.state, &settings.profile.name, settings.html())?;
        // Before gigabytes of one are sent, not after: is each of them what it should be?
        for source in settings.sources.iter().filter(|s| s.name != DATABASE) {
            drop(source.check(&settings.sources)?);
        }
        let mut far = Far::connect(&settings)?;
        let opened: Opened = far.ask(&BackupIdle::Open {})?;
        for warning in &opened.warnings {
            report.warn_value(warning.clone());
        }
        same_store(&settings, &opened.store_id, allow)?;
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
            in_maintenance: false,
            claimed: HashSet::new(),
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
        self.in_maintenance = false;
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

    /// A new step begins for `source`.
    fn forget_timing(&mut self, source: &Source) {
        if let Some(taken) = self.taken.iter_mut().find(|t| t.source.name == source.name) {
            taken.counts.timing = Timing::default();
        }
    }

    fn find(&self, name: &str) -> Option<&Taken> {
        self.taken.iter().find(|t| t.source.name == name)
    }

    fn tell(&self, report: &mut Report) {
        let sources: Vec<Value> = self.taken.iter().map(Taken::tell).collect();
        report.set("sources", sources);
        report.set("started_at", self.started_at.as_str());
    }
}

/// Has the file system that `path` lies on written back.
fn write_back(path: &Path) -> Result<()> {
    let context = || format!("cannot write back {}", path.display());
    nix::unistd::syncfs(File::open(path).with_context(context)?).with_context(context)
}

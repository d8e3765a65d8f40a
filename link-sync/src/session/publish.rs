//! Publish and commit: what must not become a snapshot, the request, and what the next run starts from.

use anyhow::Result;
use common::fault::{Fault, Kind, kind_of};
use common::status::Report;
use common::{durable, mutant};
use serde_json::json;

use super::Session;
use super::guard::{Allow, STORE};
use super::taken::Taken;
use crate::budget::Budget;
use crate::index;
use crate::progress::Progress;
use crate::protocol::BackupOnly;
use crate::source::DATABASE;
use crate::store::meta::{Consistency, SourceMeta};
use crate::store::publish::{Description, Published};

impl Session {
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
        let watch = |done, total| progress.reached_of("hashing what is new", done, total);
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

    /// Commits what the next run starts from.
    fn commit(&self, published: &Published) -> Result<()> {
        for taken in &self.taken {
            let file = index::path(&self.settings.state, &taken.source.name);
            if taken.source.name != DATABASE && taken.trusted {
                let fs_id = taken.origin.fs_id.name.as_deref();
                index::save(&file, &taken.source.path, fs_id, &published.id, &taken.tree)?;
            }
        }
        let store = json!({"store_id": self.opened.store_id, "date": published.date, "id": published.id});
        durable::write(&self.settings.state.join(STORE), store.to_string().as_bytes(), 0o600)
    }
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

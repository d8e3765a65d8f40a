//! Settle: passes until nothing moves any more, and the seal.

use std::time::Instant;

use anyhow::Result;
use common::fault::Fault;
use common::mutant;
use common::record::uptime_ms;
use common::status::Report;

use super::Session;
use super::guard::Allow;
use crate::budget::{Budget, is_over};
use crate::maintenance;
use crate::progress::Progress;
use crate::source::{DATABASE, Source};
use crate::timing::ms;

/// Passes that settle may take until nothing moves any more.
const SETTLE_PASSES: u32 = 5;

impl Session {
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
        self.in_maintenance = record.is_some() && !mutant::active("what-moved-is-read-in-maintenance");
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
}

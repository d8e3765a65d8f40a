//! What a date that is being sent is laid upon: another one that is in the store, too, or else one of which enough was kept here.

use std::collections::BTreeSet;

use anyhow::Result;
use common::status::Report;
use common::{say, signals};

use super::LARGE;
use super::below::compare;
use super::record::{Base, Big, Kept, Unfinished};
use super::sending::Sending;
use crate::TOOL;
use crate::store::Snapshot;

impl Sending<'_, '_> {
    /// What the snapshot is to be laid upon.
    pub(super) fn base(&mut self, snapshot: &Snapshot, report: &mut Report) -> Result<Option<Base>> {
        let (list, record) = (self.job.list, &self.record);
        let (base, damaged) = self.below.base(self.siblings, list, record, &snapshot.date)?;
        self.sent.damaged.extend(damaged);
        if let Some(date) = base {
            return Ok(Some(Base { date, by_manifest: false }));
        }
        let Some(Kept { date, .. }) = self.kept(report)? else { return Ok(None) };
        let damaged = compare(
            self.siblings,
            &[(date.clone(), self.below.names(&date))].into(),
            Some(&self.record),
            usize::MAX,
        )?;
        if !damaged.is_empty() {
            self.sent.damaged.extend(damaged);
            return Ok(None);
        }
        say!(TOOL, "{date} is not in the store: what was kept of its checksums tells what the container has");
        Ok(Some(Base { date, by_manifest: true }))
    }

    /// The date that can be laid upon without the store. What cannot be read is told, and of no use.
    pub(super) fn kept(&self, report: &mut Report) -> Result<Option<Kept>> {
        match self.manifests.usable(&self.record, &self.below) {
            Ok(kept) => Ok(kept.cloned()),
            Err(error) => {
                signals::check()?;
                report.warn("manifest-damaged", format!("{error:#}"));
                Ok(None)
            }
        }
    }

    /// What lies beside the base's images, if that is known to the file.
    pub(super) fn base_big(&self, base: Option<&Base>) -> Option<Vec<Big>> {
        let Some(Base { date: base, .. }) = base else { return Some(Vec::new()) };
        let known = self.record.dates.get(base).and_then(|dated| dated.big.clone());
        known.or_else(|| (!self.below.names(base).iter().any(|name| name.starts_with(LARGE))).then(Vec::new))
    }

    /// The list of what is on its way, or of all of it, the newest image first.
    pub(super) fn layers(&self, base: Option<&Base>) -> Vec<String> {
        let Some(unfinished) = &self.record.unfinished else { return Vec::new() };
        let mut layers: Vec<String> = unfinished.images.iter().rev().cloned().collect();
        layers.extend(self.below.layers(base.map(|base| &base.date[..])));
        let mut big: BTreeSet<String> =
            unfinished.big.iter().map(|big| format!("{LARGE}{}", big.sha256)).collect();
        if let Some(base) = base.filter(|base| self.base_big(Some(base)).is_none()) {
            big.extend(self.below.names(&base.date).into_iter().filter(|name| name.starts_with(LARGE)));
        }
        layers.extend(big);
        layers
    }

    /// What was on its way is published: its last image need not stay here, and the next date can be laid upon it.
    pub(super) fn finished(&mut self) -> Result<()> {
        let Some(Unfinished { images, kept, .. }) = self.record.unfinished.take() else { return Ok(()) };
        // It is of use only for the newest.
        let is_newest = |kept: &Kept| self.record.kept.as_ref().is_none_or(|older| older.date < kept.date);
        if let Some(kept) = kept.filter(is_newest) {
            self.record.kept = Some(kept);
        }
        self.note()?;
        images.last().iter().try_for_each(|name| self.workshop.remove(name))?;
        self.manifests.clear(&self.record)
    }
}

//! What is known of one source in this run.

use serde_json::{Value, json};

use super::guard::Origin;
use crate::index;
use crate::source::{Dump, Source};
use crate::store::merge::Merged;
use crate::store::meta::SourceMeta;
use crate::timing::{Phase, Timing, ms};
use crate::tree::Tree;

/// What is known of one source in this run.
#[derive(Debug)]
pub(super) struct Taken {
    pub(super) source: Source,
    pub(super) origin: Origin,
    pub(super) trusted: bool,
    /// What patterns left out, and how many paths.
    pub(super) excluded: Vec<(String, u64)>,
    pub(super) tree: Tree,
    /// For the database.
    pub(super) dump: Dump,
    pub(super) counts: Counts,
}

#[derive(Debug, Default)]
pub(super) struct Counts {
    pub(super) way: &'static str,
    pub(super) passes: u32,
    pub(super) changed: u64,
    pub(super) merged: Merged,
    pub(super) sent_bytes: u64,
    pub(super) cloned: u64,
    /// Files that the base holds under other names: linked, and copied there as their attributes differ.
    pub(super) reused: (u64, u64),
    pub(super) lacking: u64,
    /// Of the last pass: files that somebody had open for writing.
    pub(super) writers: u64,
    pub(super) writers_named: Vec<String>,
    /// Of the last pass: the first paths that changed while they were taken.
    pub(super) moved_named: Vec<String>,
    /// Of all passes of the last step that took this source.
    pub(super) timing: Timing,
    pub(super) last: Last,
}

/// The last pass: what another one would cost, if as much changed.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Last {
    pub(super) changed: u64,
    pub(super) bytes: u64,
    pub(super) timing: Timing,
}

impl Taken {
    /// For `snapshot.json`.
    pub(super) fn meta(&self) -> SourceMeta {
        SourceMeta {
            name: self.source.name.clone(),
            path: index::encode_path(&self.source.path),
            fs_id: self.origin.fs_id.name.clone(),
            fs_path: self.origin.fs_path.clone(),
            inode: self.origin.inode,
            submounts: self.origin.submounts.clone(),
            paths: self.tree.len(),
            bytes: self.tree.bytes(),
        }
    }

    /// For the report.
    pub(super) fn tell(&self) -> Value {
        let c = &self.counts;
        json!({
            "name": self.source.name, "way": c.way, "passes": c.passes,
            "paths": self.tree.len(), "bytes": self.tree.bytes(),
            "changed_paths": c.changed, "sent_bytes": c.sent_bytes,
            "received_files": c.merged.received, "received_bytes": c.merged.received_bytes,
            "linked_paths": c.cloned + c.merged.linked + c.reused.0, "resumed_files": c.merged.resumed,
            "moved_files": c.reused.0 + c.reused.1, "moved_linked_files": c.reused.0,
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

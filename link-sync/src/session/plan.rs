//! What one pass is going to do: all of it, what differs from the pass before, or what differs from the index of the base.

use anyhow::Result;
use common::status::Report;

use super::Session;
use super::guard::{Allow, Origin, not_shrunk};
use super::taken::{Counts, Taken};
use crate::fsid::FsId;
use crate::index;
use crate::names::{show, some};
use crate::source::{Checked, DATABASE, Source};
use crate::tree::{Changes, Entry, Stamp, Tree, join};

/// What one pass is going to do.
#[derive(Debug)]
pub(super) struct Plan {
    pub(super) changes: Changes,
    /// Everything is marked, whether it changed or not.
    pub(super) all: bool,
    /// The base is cloned, which holds this.
    pub(super) clone: Option<Tree>,
    pub(super) checksum: bool,
    pub(super) counts: Counts,
    /// Bytes of the marked files.
    pub(super) bytes: u64,
    /// What the far end has removed from the partial snapshot.
    pub(super) gone: Vec<Vec<u8>>,
    /// What the base holds is no good to compare with: what is marked is sent whole.
    pub(super) without_base: bool,
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
    pub(super) fn again(before: &mut Taken, tree: &mut Tree, distrust: bool) -> Plan {
        let mut changes = tree.mark_changes(&before.tree);
        if distrust {
            let Changes { dropped, vanished, .. } = changes;
            changes = Changes { dropped, vanished, ..tree.mark_all() };
        }
        let counts = std::mem::take(&mut before.counts);
        Plan { changes, all: distrust, counts, ..Plan::default() }
    }
}

impl Session {
    /// How to begin: with the index of the base, or the full way.
    pub(super) fn first(
        &mut self,
        source: &Source,
        checked: &Checked,
        origin: &Origin,
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
        origin.same_as(&Origin::held(&held), source, allow)?;
        let base_id = base.map(|b| b.id.clone()).unwrap_or_default();
        match self.usable_index(source, checked, &base_id) {
            Ok(old) => {
                let known = old.len();
                let mut changes = tree.mark_changes(&old);
                not_shrunk(source, known, changes.vanished, allow)?;
                self.mark_damaged(source, tree, &mut changes, report);
                if !tree.untrusted.is_empty() {
                    let list = tree.untrusted.iter().map(|(path, kind)| format!("{} ({kind})", show(path)));
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
                // Without an index only the number of paths is known, so what vanished is told less what was added: a loss that
                // as much else hides passes here. Other names come at once only where the source is another one, which its
                // marks, its file system and its place tell ([`Origin::same_as`]); and what is gone stays in the dates before.
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
                    || header.path != index::encode_path(&source.path) =>
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

    /// Bytes and inodes the first pass over a source will take at most.
    pub(super) fn estimate(&self, source: &Source, tree: &Tree, plan: &Plan) -> (u64, u64) {
        // Directories cannot be linked: each is made anew in every snapshot, and takes a block.
        let dirs = tree.dirs.len() as u64;
        let held = self.opened.base.as_ref().and_then(|b| b.source(&source.name));
        if let (true, Some(held)) = (plan.all, held) {
            // Everything is compared, and what is found unchanged takes nothing. Sparse files take less than their size.
            let bytes = tree.allocated().min(tree.bytes()).saturating_sub(held.bytes);
            return (bytes + dirs * 4096, tree.len().saturating_sub(held.paths) + dirs);
        }
        let marked = tree.dirs.values().flat_map(|d| d.entries()).filter(|(_, e)| e.changed);
        let size = |e: &Entry| e.allocated.min(e.meta.size.next_multiple_of(4096));
        let (bytes, inodes) =
            marked.fold((dirs * 4096, dirs), |(bytes, inodes), (_, e)| (bytes + size(e), inodes + 1));
        (bytes.saturating_sub(plan.changes.alike_bytes), inodes)
    }
}

/// The marked entries in `dirs`, directories before what is in them.
pub(super) fn marked_in<'a>(
    tree: &'a Tree,
    dirs: &'a [Vec<u8>],
) -> impl Iterator<Item = (Vec<u8>, &'a Entry)> + 'a {
    let in_dir = |path: &'a Vec<u8>| tree.dirs.get(path).into_iter().map(move |dir| (path, dir));
    dirs.iter().flat_map(in_dir).flat_map(|(path, dir)| {
        dir.entries().filter(|(_, e)| e.changed).map(move |(name, e)| (join(path, name), e))
    })
}

/// Bytes of the files that are marked.
pub(super) fn marked_bytes(tree: &Tree, changes: &Changes) -> u64 {
    let files = marked_in(tree, &changes.dirs).filter(|(_, e)| e.meta.is_file());
    files.map(|(_, e)| e.allocated.min(e.meta.size)).sum()
}

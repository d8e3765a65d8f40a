//! What a copy does once both ends are known: link what did not change, send what did, publish.

use std::collections::HashSet;
use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use common::durable;
use common::fault::Fault;
use common::mutant;
use common::status::Report;
use serde_json::{Value, json};

use super::holes::{Holes, Two};
use crate::budget::Budget;
use crate::far::Far;
use crate::names::some;
use crate::progress::Progress;
use crate::protocol::{Cloned, CopyIdle, CopyOnly, Making, Opened};
use crate::rsync::{Transfer, list_file, uncommented};
use crate::store::changes::{self, Delta, Marked};
use crate::store::held::Held;
use crate::store::layout::PARTIAL;
use crate::store::merge::Merged;
use crate::store::publish::Published;
use crate::store::{Store, manifest, open_dir, pace, shown};
use crate::tree::join;

/// Estimated bytes of a file's line among the checksums.
const LINE: u64 = 160;

/// In the state folder: what the last copy that found something lacking in its base has found.
const LACKS: &str = "copy-lacks.json";

/// One source of the wanted snapshot.
struct CopiedSource {
    name: String,
    path: PathBuf,
    changes: Delta,
    /// The source's folder in the wanted snapshot, and in the base.
    wanted: File,
    base: Option<File>,
}

/// What the copying came to.
#[derive(Default)]
struct Total {
    merged: Merged,
    linked: u64,
    lacking: u64,
}

/// One snapshot on its way.
#[derive(Debug)]
pub struct Copying<'a> {
    /// The store it is copied from.
    pub store: &'a Store,
    /// It.
    pub wanted: &'a Held,
    /// The other store.
    pub to: &'a Path,
    /// The state folder.
    pub state: PathBuf,
    /// For people.
    pub progress: Progress,
}

impl Copying<'_> {
    /// Sends what the other store needs, and has it published there.
    pub fn run(&self, mut far: Far, base: Option<&Held>, report: &mut Report) -> Result<()> {
        self.progress.begin("comparing", 0);
        let mut parts = Vec::new();
        for source in &self.wanted.meta.sources {
            parts.push(self.part(&source.name, base)?);
        }
        let request = CopyIdle::Open { base: base.map(|b| b.meta.date.clone()) };
        let opened: Opened = far.ask(&request)?;
        for warning in &opened.warnings {
            report.warn_value(warning.clone());
        }
        self.resume(&mut far, &opened, report)?;
        let (bytes, inodes) = estimate(&parts);
        let () = far.ask(&Making::Room { source: None, bytes, inodes })?;
        let mut total = Total::default();
        for part in &mut parts {
            self.clone(&mut far, part, &mut total, report)?;
            self.transfer(&mut far, &opened, part, &mut total.merged)?;
        }
        if shown::is_overlay(&self.wanted.top) && !mutant::active("a-copy-of-what-is-shown-is-as-it-was") {
            let to = File::open(self.to).with_context(|| format!("cannot open {}", self.to.display()))?;
            let partial = open_dir(&to, PARTIAL.as_bytes()).context("cannot open what was copied")?;
            shown::put_back(&partial)?;
        }
        report.set("lacking_paths", total.lacking);
        if let Some(base) = base.filter(|_| total.lacking > 0) {
            // Once this copy is published no later one notices it any more: whoever cares must find it after a cut, too.
            let lacks = json!({"to": self.to, "base_date": base.meta.date, "date": self.wanted.meta.date,
                "lacking_paths": total.lacking});
            durable::write(&self.state.join(LACKS), lacks.to_string().as_bytes(), 0o600)?;
        }
        self.checksums(&mut far, &parts)?;
        self.progress.begin("making it durable", 0);
        let published: Published = far.ask(&CopyOnly::Publish { text: self.meta()? })?;
        report.changed = true;
        for warning in &published.warnings {
            report.warn_value(warning.clone());
        }
        let sum = |each: fn(&CopiedSource) -> u64| parts.iter().map(each).sum::<u64>();
        report.set("changed_paths", sum(|p| p.changes.marked.len() as u64));
        report.set("copied_files", total.merged.received);
        report.set("copied_bytes", total.merged.received_bytes);
        report.set("resumed_files", total.merged.resumed);
        report.set("linked_paths", total.linked);
        report.set("paths", sum(|p| p.changes.shared + p.changes.folders) + sum(|p| p.not_folders()));
        Ok(())
    }

    /// What an interrupted copy received is used if it is what this snapshot needs: a file that changed since, even
    /// with the same size and time, is not.
    fn resume(&self, far: &mut Far, opened: &Opened, report: &mut Report) -> Result<()> {
        let id = &self.wanted.meta.id;
        let mut stale: Vec<Vec<u8>> = Vec::new();
        let before = opened.resumed_id.as_ref().filter(|_| opened.resumed);
        let known = |before: &String| -> Result<_> {
            Ok(self.store.snapshots()?.0.into_iter().find(|s| s.id == *before))
        };
        let keep = match before {
            None => false,
            Some(before) if before == id => true,
            Some(_) if shown::is_overlay(&self.wanted.top) => false,
            Some(before) => match known(before)? {
                None => false,
                Some(old) => {
                    let old = Held::open(self.store, &self.store.check()?, &old.date)?;
                    for source in &self.wanted.meta.sources {
                        let changed = self.part(&source.name, Some(&old))?.changes.left_out;
                        stale.extend(changed.iter().map(|path| join(source.name.as_bytes(), path)));
                    }
                    true
                }
            },
        };
        if keep {
            report
                .warn("continues", "an interrupted copy is continued: what had arrived is not copied again");
        }
        far.ask_with_list(&CopyOnly::Resume { id: id.clone(), keep }, |list| {
            stale.iter().try_for_each(|path| list.path(path))
        })
    }

    /// What `name` needs.
    fn part(&self, name: &str, base: Option<&Held>) -> Result<CopiedSource> {
        let open = |held: &Held| open_dir(&held.top, name.as_bytes());
        let wanted =
            open(self.wanted).with_context(|| format!("cannot open {name} of {}", self.wanted.meta.date))?;
        let old = match base.filter(|b| b.meta.source(name).is_some()) {
            Some(base) => {
                Some(open(base).with_context(|| format!("cannot open {name} of {}", base.meta.date))?)
            }
            None => None,
        };
        let mut changes = changes::between(old.as_ref(), &wanted, None)?;
        if shown::is_overlay(&wanted) {
            // A folder gets its time last of all, when nothing is put into it any more.
            let Delta { marked, root, .. } = &mut changes;
            for folder in marked.iter_mut().chain(root).filter(|m| m.kind == libc::S_IFDIR) {
                if let Some(time) = shown::time_of(&open_dir(&wanted, &folder.path)?)? {
                    folder.mtime = time;
                }
            }
        }
        Ok(CopiedSource {
            name: name.to_owned(),
            path: self.wanted.path.join(name),
            changes,
            wanted,
            base: old,
        })
    }

    /// Begins the source: the base's files linked, without what changed. What the base has lost is sent with the rest.
    fn clone(
        &self,
        far: &mut Far,
        part: &mut CopiedSource,
        total: &mut Total,
        report: &mut Report,
    ) -> Result<()> {
        let source = part.name.clone();
        let Some(base) = &part.base else {
            return far.ask(&Making::Fresh { source });
        };
        let all = part.changes.shared + part.changes.folders;
        let bytes = part.changes.shared * pace::LINK + part.changes.folders * pace::FOLDER;
        self.progress.begin(format!("{}: {all} unchanged paths", part.name), bytes);
        let watch = |done: u64| self.progress.reached(bytes * done.min(all) / all.max(1));
        let fill = |list: &mut crate::protocol::ListWriter<'_, _>| {
            part.changes.left_out.iter().try_for_each(|path| list.path(path))
        };
        let cloned: Cloned = far.ask_with_list_watched(&Making::Clone { source }, fill, watch)?;
        let two = Two { base, wanted: &part.wanted };
        let holes = two.fill(&part.name, &cloned, far, &mut part.changes)?;
        total.linked += cloned.linked;
        total.lacking += holes.lacking();
        self.tell(&part.name, &holes, report);
        if !holes.lost.is_empty() {
            let (bytes, inodes) = estimate(std::slice::from_ref(part));
            let () = far.ask(&Making::Room { source: Some(part.name.clone()), bytes, inodes })?;
        }
        Ok(())
    }

    /// Says what the base has lost.
    fn tell(&self, source: &str, holes: &Holes, report: &mut Report) {
        let base = report.data["base_date"].as_str().unwrap_or("?").to_owned();
        if holes.full > 0 {
            let message = format!(
                "source {source}: {} files have as many names in the copy, in all its snapshots, as its file system allows, and \
                 are stored anew. That costs room once; nothing is wrong with them",
                holes.full
            );
            report.warn("no-more-links", message);
        }
        if holes.lacking() > 0 {
            let message = format!(
                "source {source}: {} paths are missing in the copy of {base}, or are not what was copied there, and are sent \
                 again for {}: {}. What lost them? `verify` looks through all that is there",
                holes.lacking(),
                self.wanted.meta.date,
                some(holes.names())
            );
            report.warn("base-lacks", message);
        }
        if holes.removed > 0 {
            let message = format!(
                "source {source}: {} paths that nobody has copied there are in the copy of {base}, and are left out of {}: {}",
                holes.removed,
                self.wanted.meta.date,
                holes.removed_names.join(", ")
            );
            report.warn("base-has-more", message);
        }
    }

    /// Sends what changed, and has it put in its place.
    fn transfer(
        &self,
        far: &mut Far,
        opened: &Opened,
        part: &CopiedSource,
        total: &mut Merged,
    ) -> Result<()> {
        let account = self.wanted.owner()?;
        // Nobody waits for a copy.
        let budget = Budget::default();
        let transfer = |list: File, only_itself: bool| Transfer {
            rsync: &self.store.rsync,
            path: &part.path,
            list,
            only_itself,
            source: &part.name,
            checksum: false,
            times: true,
            again: false,
            reused: false,
            more: false,
            account: account.as_ref(),
            all_xattrs: self.wanted.meta.fake_super,
            xattrs: opened.xattrs,
            acls: opened.acls,
            acls_only: false,
            budget: &budget,
        };
        let request = Making::Merge { source: part.name.clone(), times: true, again: false, reused: false };
        let changes = &part.changes;
        if let Some(root) = &changes.root {
            let list = list_file(&self.state, [&b"."[..]].into_iter())?;
            transfer(list, true).run(far, &self.progress)?;
            let _root: Merged =
                far.ask_with_list(&request, |list| list.record(root.kind, 0, root.mtime, b""))?;
        }
        if changes.marked.is_empty() {
            return Ok(());
        }
        let list = list_file(&self.state, changes.marked.iter().map(|m| uncommented(m.path.clone())))?;
        let files = changes.marked.iter().filter(|m| m.is_file());
        let bytes = files.map(|m| m.allocated.min(m.size)).sum();
        self.progress.begin(format!("{}: {} changed paths", part.name, changes.marked.len()), bytes);
        transfer(list, false).run(far, &self.progress)?;
        self.progress.begin(format!("{}: putting in place", part.name), 0);
        let merged: Merged = far.ask_with_list(&request, |list| {
            changes.marked.iter().try_for_each(|m| list.record(m.kind, m.size, m.mtime, &m.path))
        })?;
        if merged.missing > 0 {
            return Err(Fault::failed(format!(
                "{}: {} paths did not arrive: {}",
                part.name,
                merged.missing,
                merged.missing_names.join(", ")
            ))
            .hint("was the snapshot changed by hand? `link-sync diff` compares it with others")
            .into());
        }
        total.received += merged.received;
        total.received_bytes += merged.received_bytes;
        total.resumed += merged.resumed;
        Ok(())
    }

    /// Gives the copy the checksums of what is new in it: a few lines, not the whole manifest every night. They are for
    /// the day the store is lost; until then the store's own manifest counts.
    fn checksums(&self, far: &mut Far, parts: &[CopiedSource]) -> Result<()> {
        if self.wanted.meta.manifest.is_none() {
            return Ok(());
        }
        let files = |part: &CopiedSource| {
            let files = part.changes.marked.iter().filter(|m| m.is_file());
            files.map(|m| join(part.name.as_bytes(), &m.path)).collect::<Vec<_>>()
        };
        let paths: HashSet<Vec<u8>> = parts.iter().flat_map(files).collect();
        far.ask_with_list(&CopyOnly::Part {}, |list| {
            manifest::part(&self.wanted.top, &paths, |line| list.path(line))
        })
    }

    /// What the copy says of itself: the same, byte for byte.
    fn meta(&self) -> Result<String> {
        let mut meta: Value = serde_json::from_str(&self.wanted.text).context("the snapshot is damaged")?;
        if meta["date"] == self.wanted.meta.date {
            return Ok(self.wanted.text.clone());
        }
        // The folder's name counts: a person may have put a wrong clock right.
        meta["date"] = json!(self.wanted.meta.date);
        Ok(format!("{meta:#}\n"))
    }
}

impl CopiedSource {
    fn not_folders(&self) -> u64 {
        self.changes.marked.iter().filter(|m| m.kind != libc::S_IFDIR).count() as u64
    }
}

/// Bytes and inodes it will take at most: every folder is made anew, every link touches an inode table.
fn estimate(parts: &[CopiedSource]) -> (u64, u64) {
    let size = |m: &Marked| if m.is_file() { m.allocated.min(m.size.next_multiple_of(4096)) } else { 0 };
    parts.iter().fold((0, 0), |(bytes, inodes), part| {
        let changes = &part.changes;
        let files: u64 = changes.marked.iter().map(size).sum();
        let lines = part.not_folders() * LINE;
        (
            bytes + files + lines + changes.folders * pace::FOLDER,
            inodes + changes.folders + part.not_folders(),
        )
    })
}

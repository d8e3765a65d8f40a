//! Removing published snapshots: decided under the store's lock, renamed away, then unlinked.
//!
//! A date is whole or gone: one rename takes it into `.pruned`, durably, before anything of it is unlinked. What a killed
//! run left there is unlinked by the next one. The store's lock is held only until the renames are done, so a backup
//! waits for seconds at most; a lock on the store's folder keeps two prunes apart. In a copy, the lists of what goes are
//! handed on before. Each snapshot's own lock is taken alone, so one that is being read (pushed, viewed, verified,
//! restored) stays.
//!
//! None of it needs room: no file is made, the ledger is rewritten in place. A btrfs that is full to the last block of its
//! metadata has room for no rename either, only for removals. There a date stops being a snapshot when its description is
//! unlinked, after the ledger has noted that it is going, and is unlinked where it lies.

use std::ffi::OsStr;
use std::fs::File;

use anyhow::{Context as _, Result};
use common::fault::{Fault, Kind, kind_of, no_room};
use common::lock::Lock;
use common::mutant;
use jiff::{SignedDuration, Timestamp};
use nix::errno::Errno;
use nix::unistd::UnlinkatFlags;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::beneath::{ensure_dir, existing, open_file};
use super::latest::point_latest;
use super::layout::{META, PRUNED};
use super::ledger::Ledger;
use super::meta::{Consistency, SnapshotMeta, taken};
use super::odd::{Known, Listed};
use super::open::PATIENCE;
use super::place::Store;
use super::sweep::{self, sweep};
use super::{lists, pace, pins, visit};
use crate::retention::{Rules, Snapshot, Verdict};

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Order {
    /// The rules, or one date by hand.
    pub what: Removal,
    /// Only tell.
    pub dry_run: bool,
    /// Dates that stay whatever the rules say, with the reason.
    pub needed: Vec<(String, String)>,
    /// Dates that are kept in another form: the rules count them, and whoever asks removes them.
    pub listed: Vec<Listed>,
    /// How many may go within 24 hours, by the rules; no limit for who has the store's machine.
    pub limit: Option<u64>,
}

/// What is to be removed.
#[derive(Clone, Debug)]
pub enum Removal {
    /// What the rules do not keep.
    Rules(Box<Rules>),
    /// This one, as somebody said so.
    Date(String),
}

/// What became of it.
#[derive(Debug, Default, Deserialize, Serialize)]
pub struct Pruned {
    /// Of each snapshot, oldest first: date, consistency, action, reasons.
    pub snapshots: Vec<Value>,
    /// The dates removed; with `--dry-run`, those that would be.
    pub removed: Vec<String>,
    /// Dates that are in use.
    pub skipped: Vec<String>,
    /// Dates left for another day, as no more may go on one.
    pub postponed: Vec<String>,
    /// Folders that look like snapshots but are damaged: never touched.
    pub damaged: Vec<String>,
    /// What is to be said of snapshots that cannot be what they seem: never touched.
    #[serde(default)]
    pub warnings: Vec<Value>,
    /// Dates that a prune before had removed, but not to the end.
    pub completed: Vec<String>,
    /// Dates whose lists could not be handed on, or not all of them, and why.
    pub unlisted: Vec<(String, String)>,
    /// Names unlinked.
    pub paths: u64,
    /// The time zone days are counted in.
    pub timezone: Option<String>,
}

/// Does it. `now` is the store's clock.
pub fn prune(store: &Store, ask: &Order, now: Timestamp) -> Result<Pruned> {
    let dir = store.check()?;
    if ask.dry_run {
        let (_, pruned, _) = decide(store, &dir, ask, now)?;
        return Ok(pruned);
    }
    let alone = dir.try_clone().context("cannot copy a descriptor")?;
    let _alone = Lock::exclusive_file(alone, &store.path, "pruning the store")?;
    let pace = pace::Pace::new(&dir, store.flush_bytes, pace::Reserve::default())?;
    let away = Away { dir: &dir, pace: &pace };
    let (mut completed, mut paths) = away.complete()?;
    let what = format!("the store {}", store.path.display());
    let writable = Lock::exclusive_within(&store.path.join(".lock"), &what, PATIENCE)?;
    let (mut ledger, mut pruned, dates) = decide(store, &dir, ask, now)?;
    if let Some(date) = ledger.going.take() {
        // It stopped being a snapshot, and was not unlinked to the end; or did not, and counts like any other.
        if pruned.damaged.contains(&date) {
            paths += away.unlink(&dir, &date)?;
            pruned.damaged.retain(|d| *d != date);
            completed.push(date);
        }
    }
    let mut noted = true;
    if !pruned.removed.is_empty() || matches!(ask.what, Removal::Rules(_)) {
        // Before the renames, so that a kill in between does not make room for more.
        noted = note(&mut ledger, &dir, ask)?;
    }
    // Those that are no folders here are the caller's to remove, now that they are noted.
    let (mut elsewhere, folders) =
        std::mem::take(&mut pruned.removed).into_iter().partition(|date| !dates.contains(date));
    pruned.removed = folders;
    pruned.unlisted = lists::hand_on(&dir, &dates, &pruned.removed, &|bytes| pace.wrote(bytes))?;
    paths += away.rename(&mut ledger, &mut pruned)?;
    if let Some(newest) = dates.last()
        && let Err(error) = point_latest(&dir, newest, true)
        && !no_room(&error)
    {
        pruned.warnings.push(json!({"kind": "latest-not-moved", "message": format!("{error:#}")}));
    }
    drop(writable);
    for date in &pruned.removed {
        paths += away.of_renamed(date)?;
    }
    pruned.removed.append(&mut elsewhere);
    pruned.removed.sort_unstable();
    pace.flush()?;
    // By now there should be room.
    if !noted && let Err(error) = ledger.save(&dir) {
        pruned.warnings.push(json!({"kind": "clock-not-noted", "message": format!(
            "when the store's clock was last believed is not noted: {error:#}")}));
    }
    Ok(Pruned { completed, paths, ..pruned })
}

/// Notes what is going to be removed. `false` if there is no room for that, where nobody has to be kept from asking again.
fn note(ledger: &mut Ledger, dir: &File, ask: &Order) -> Result<bool> {
    let for_client = matches!(&ask.what, Removal::Rules(rules) if rules.for_client);
    match ledger.save(dir) {
        Ok(()) => Ok(true),
        Err(e) if !no_room(&e) => Err(e),
        Err(_) if !for_client || mutant::active("removals-go-unnoted") => Ok(false),
        Err(e) => Err(e.context(
            Fault::failed("nothing is removed: the store is full, and how much another machine has had removed today cannot be noted")
                .hint("run link-sync prune on the store's machine: there it needs no room"),
        )),
    }
}

/// Takes dates out of the store, and unlinks them.
struct Away<'a> {
    dir: &'a File,
    pace: &'a pace::Pace,
}

impl Away<'_> {
    fn unlink(&self, folder: &File, name: &str) -> Result<u64> {
        sweep(folder, name, &|names| self.pace.wrote(names * pace::LINK))
    }

    /// Unlinks what a killed run had renamed away: which dates, and how many names.
    fn complete(&self) -> Result<(Vec<String>, u64)> {
        let (mut completed, mut paths) = (Vec::new(), 0);
        let Some(folder) = existing(self.dir, &[PRUNED])? else { return Ok((completed, paths)) };
        for (name, _, _) in visit::names(&folder)? {
            let name =
                String::from_utf8(name).context("an odd name in the folder of what is being removed")?;
            paths += self.unlink(&folder, &name)?;
            completed.push(name);
        }
        Ok((completed, paths))
    }

    /// Takes the dates to be removed out of the store, durably; those in use are left. Returns how many names were unlinked
    /// at once, where there is room for no rename.
    fn rename(&self, ledger: &mut Ledger, pruned: &mut Pruned) -> Result<u64> {
        let mut paths = 0;
        for date in std::mem::take(&mut pruned.removed) {
            common::signals::check()?;
            let lock = match alone(self.dir, &date) {
                Ok(lock) => lock,
                Err(e) if kind_of(&e) == Kind::Busy => {
                    if let Some(told) = pruned.snapshots.iter_mut().find(|s| s["date"] == date) {
                        told["action"] = "in-use".into();
                    }
                    pruned.skipped.push(date);
                    continue;
                }
                Err(e) => return Err(e),
            };
            match self.rename_one(&date) {
                Err(e) if no_room(&e) && !mutant::active("a-rename-has-room") => {
                    paths += self.in_place(ledger, &date)?;
                }
                other => other?,
            }
            drop(lock);
            pruned.removed.push(date);
        }
        if !pruned.removed.is_empty() {
            if let Some(folder) = existing(self.dir, &[PRUNED])? {
                folder.sync_all().context("cannot make the removal durable")?;
            }
            self.dir.sync_all().context("cannot make the removal durable")?;
        }
        Ok(paths)
    }

    fn rename_one(&self, date: &str) -> Result<()> {
        let context = || format!("cannot move {date} away");
        let folder = ensure_dir(self.dir, PRUNED.as_bytes()).with_context(context)?;
        common::rename::noreplace(self.dir, date, &folder, date).with_context(context)
    }

    /// Removes a date where it lies. Cut short, the next prune goes on with it.
    fn in_place(&self, ledger: &mut Ledger, date: &str) -> Result<u64> {
        ledger.going = Some(date.to_owned());
        match ledger.save(self.dir) {
            // Should it be cut short now, it is told as damaged, and a person goes on.
            Err(e) if !no_room(&e) => return Err(e),
            _ => {}
        }
        if let Some(meta) = existing(self.dir, &[date, META])? {
            match sweep::unlink(&meta, OsStr::new("snapshot.json"), UnlinkatFlags::NoRemoveDir) {
                Ok(()) | Err(Errno::ENOENT) => {}
                Err(e) => return Err(e).with_context(|| format!("cannot remove {date}")),
            }
            meta.sync_all().context("cannot make the removal durable")?;
        }
        let paths = self.unlink(self.dir, date)?;
        // What was unlinked is free from now on.
        nix::unistd::syncfs(self.dir).context("cannot make the removal durable")?;
        ledger.going = None;
        Ok(paths)
    }

    /// Unlinks a date that was renamed away.
    fn of_renamed(&self, date: &str) -> Result<u64> {
        existing(self.dir, &[PRUNED])?.map_or(Ok(0), |folder| self.unlink(&folder, date))
    }
}

/// The snapshot's own lock, alone; `None` if a damaged one has none, so that nobody can be reading it.
fn alone(dir: &File, date: &str) -> Result<Option<File>> {
    let path = format!("{date}/{META}/lock");
    let file = match open_file(dir, &path) {
        Ok(file) => file,
        Err(e) if e.downcast_ref::<Errno>() == Some(&Errno::ENOENT) => return Ok(None),
        Err(e) => return Err(e).with_context(|| format!("cannot open {path}")),
    };
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(std::fs::TryLockError::WouldBlock) => Err(Fault::busy(format!("{date} is in use")).into()),
        Err(std::fs::TryLockError::Error(e)) => Err(e).with_context(|| format!("cannot lock {path}")),
    }
}

/// What is to be removed and why, the state that follows, and the dates there are now.
fn decide(store: &Store, dir: &File, ask: &Order, now: Timestamp) -> Result<(Ledger, Pruned, Vec<String>)> {
    let mut known = Known::of(store, now)?;
    let damaged = std::mem::take(&mut known.damaged);
    let listed = known.add(&ask.listed, now);
    let metas = &known.counted;
    let dates = metas.iter().map(|m| m.date.clone()).filter(|date| !listed.contains(date)).collect();
    let mut needed = ask.needed.clone();
    needed.extend(pins::read(dir)?.into_iter().map(|(date, name)| (date, format!("pinned by {name}"))));
    let mut state = Ledger::load(dir)?;
    let mut pruned = Pruned { damaged, warnings: known.warnings(), ..Pruned::default() };
    let rules = match &ask.what {
        Removal::Rules(rules) => rules,
        Removal::Date(date) => {
            by_hand(&known, &pruned.damaged, &needed, date)?;
            pruned.removed.push(date.clone());
            return Ok((state, pruned, dates));
        }
    };
    let snapshots: Vec<_> = metas.iter().map(snapshot).collect::<Result<_>>()?;
    let behind = known.all_to_come().map(|m| format!("all snapshots up to {} are of the future", m.date));
    if let Some(why) =
        behind.map_or_else(|| rules.doubt(&snapshots, now, state.believed_at), |w| Ok(Some(w)))?
    {
        return Err(Fault::unavailable(format!("nothing is removed: {why}"))
            .hint("if backups fail, see why; if the clock was wrong, set it; if all is well, max_gap in the retention table allows longer pauses (and removing .prune.json from the store forgets what its clock said before)")
            .into());
    }
    let verdicts = rules.decide(&snapshots, now)?;
    pruned.timezone = Some(rules.zone());
    let removed = state.removals_since(now - SignedDuration::from_hours(24));
    let limit = ask.limit.filter(|_| !mutant::active("a-limit-of-removals-holds"));
    let mut room = limit.map_or(u64::MAX, |limit| limit.saturating_sub(removed));
    for (meta, Verdict { mut keep, mut reasons }) in metas.iter().zip(verdicts) {
        let others: Vec<_> = needed.iter().filter(|n| n.0 == meta.date).map(|n| n.1.clone()).collect();
        if !others.is_empty() {
            reasons = if keep { reasons } else { Vec::new() };
            keep = true;
            reasons.extend(others);
        }
        if !keep && rules.is_young(began(meta, now), now)? {
            keep = true;
            reasons = vec!["young by the source's clock".into()];
        }
        let action = match (keep, room) {
            (true, _) => "keep",
            (false, 0) => {
                pruned.postponed.push(meta.date.clone());
                "postpone"
            }
            (false, _) => {
                room -= 1;
                pruned.removed.push(meta.date.clone());
                "remove"
            }
        };
        pruned.snapshots.push(
            json!({"date": meta.date, "consistency": meta.consistency, "action": action, "reasons": reasons}),
        );
    }
    for (meta, why) in &known.odd {
        pruned.snapshots.push(json!({"date": meta.date, "consistency": meta.consistency, "action": "keep",
            "reasons": [why.text()]}));
    }
    pruned.snapshots.sort_by(|a, b| a["date"].as_str().cmp(&b["date"].as_str()));
    state.believed_at = Some(now);
    if ask.limit.is_some() {
        state.add_removals(now, pruned.removed.len() as u64);
    }
    Ok((state, pruned, dates))
}

/// Whether a person may remove `date`: a damaged one, or any but the last good one and those others need.
fn by_hand(known: &Known, damaged: &[String], needed: &[(String, String)], date: &str) -> Result<()> {
    let metas = &known.counted;
    if damaged.iter().any(|d| d == date) {
        return Ok(());
    }
    let odd = known.odd.iter().any(|o| o.0.date == date);
    if !odd && !metas.iter().any(|m| m.date == date) {
        return Err(Fault::config(format!("there is no snapshot '{date}'"))
            .hint("`link-sync list` shows the dates")
            .into());
    }
    let good = metas.iter().rfind(|m| m.consistency == Consistency::Sealed);
    let last = metas.last().is_some_and(|m| m.date == date);
    if last || good.is_some_and(|m| m.date == date) {
        return Err(Fault::config(format!("{date} is the last good snapshot: it stays"))
            .hint("make another one first")
            .into());
    }
    match needed.iter().find(|n| n.0 == date) {
        Some((_, why)) => Err(Fault::config(format!("{date} is {why}: it stays"))
            .hint("push again first, so that a newer one is needed")
            .into()),
        None => Ok(()),
    }
}

/// When `meta` was begun by the clock of its source, which may know better than a store's clock that was behind for a
/// night; nothing that is still to come.
fn began(meta: &SnapshotMeta, now: Timestamp) -> Option<Timestamp> {
    meta.started_at.parse().ok().filter(|at| *at <= now)
}

fn snapshot(meta: &SnapshotMeta) -> Result<Snapshot> {
    Ok(Snapshot { taken: taken(&meta.date)?, sealed: meta.consistency == Consistency::Sealed })
}

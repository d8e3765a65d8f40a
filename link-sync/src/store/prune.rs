//! Removing published snapshots: decided under the store's lock, renamed away, then unlinked.
//!
//! A date is whole or gone: one rename takes it into `.pruned`, durably, before anything of it is unlinked. What a killed
//! run left there is unlinked by the next one. The store's lock is held only until the renames are done, so a backup
//! waits for seconds at most; `.prune.lock` keeps two prunes apart. Each snapshot's own lock is taken alone, so one that
//! is being read (pushed, viewed, verified, restored) stays.

use std::fs::File;
use std::time::Duration;

use anyhow::{Context as _, Result};
use common::fault::{Fault, Kind, kind_of};
use common::lock::Lock;
use jiff::{SignedDuration, Timestamp};
use nix::errno::Errno;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::meta::{Consistency, SnapshotMeta, taken};
use super::sweep::sweep;
use super::{META, PRUNED, Store, ensure_dir, note, open_file, pace, pins, publish, visit};
use crate::retention::{Rules, Snapshot, Verdict};

/// What must be remembered between prunes.
const STATE: &str = ".prune.json";

/// How long somebody who writes may hold on to the store.
const PATIENCE: Duration = Duration::from_secs(3);

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Ask {
    /// The rules, or one date by hand.
    pub what: What,
    /// Only tell.
    pub dry_run: bool,
    /// Dates that stay whatever the rules say, with the reason.
    pub needed: Vec<(String, String)>,
}

/// What is to be removed.
#[derive(Clone, Debug)]
pub enum What {
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
    /// Dates left for another day, as a client may not remove more.
    pub postponed: Vec<String>,
    /// Folders that look like snapshots but are damaged: never touched.
    pub damaged: Vec<String>,
    /// Dates that a prune before had removed, but not to the end.
    pub completed: Vec<String>,
    /// Names unlinked.
    pub paths: u64,
    /// The time zone days are counted in.
    pub timezone: Option<String>,
}

/// `.prune.json`
#[derive(Debug, Default, Deserialize, Serialize)]
struct State {
    /// When the clock was last believed.
    #[serde(default)]
    believed_at: Option<Timestamp>,
    /// Removals that clients asked for within the last day: when.
    #[serde(default)]
    for_clients: Vec<Timestamp>,
}

/// Does it. `now` is the store's clock.
pub fn prune(store: &Store, ask: &Ask, now: Timestamp) -> Result<Pruned> {
    let dir = store.check()?;
    if ask.dry_run {
        let (_, pruned, _) = decide(store, &dir, ask, now)?;
        return Ok(pruned);
    }
    let _alone = Lock::exclusive(&store.path.join(".prune.lock"), "pruning the store")?;
    let away = ensure_dir(&dir, PRUNED.as_bytes())?;
    let pace = pace::Pace::new(&dir, store.flush_bytes)?;
    let unlink = |name: &str| sweep(&away, name, &|names| pace.wrote(names * pace::LINK));
    let (mut completed, mut paths) = (Vec::new(), 0);
    for (name, _, _) in visit::names(&away)? {
        completed
            .push(String::from_utf8(name).context("an odd name in the folder of what is being removed")?);
        paths += unlink(&completed[completed.len() - 1])?;
    }
    let what = format!("the store {}", store.path.display());
    let writable = Lock::exclusive_within(&store.path.join(".lock"), &what, PATIENCE)?;
    let (state, mut pruned, newest) = decide(store, &dir, ask, now)?;
    if !pruned.removed.is_empty() || matches!(ask.what, What::Rules(_)) {
        // Before the renames, so that a kill in between does not make room for more.
        common::durable::write(&store.path.join(STATE), &serde_json::to_vec(&state)?, 0o600)?;
    }
    rename_away(&dir, &away, &mut pruned)?;
    if let Some(newest) = newest {
        publish::point_latest(&dir, &newest, true)?;
    }
    drop(writable);
    for date in &pruned.removed {
        paths += unlink(date)?;
    }
    pace.flush()?;
    Ok(Pruned { completed, paths, ..pruned })
}

/// Takes the dates to be removed out of the store, durably; those in use are left.
fn rename_away(dir: &File, away: &File, pruned: &mut Pruned) -> Result<()> {
    for date in std::mem::take(&mut pruned.removed) {
        common::signals::check()?;
        let lock = match alone(dir, &date) {
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
        common::rename::noreplace(dir, date.as_str(), away, date.as_str())
            .with_context(|| format!("cannot move {date} away"))?;
        drop(lock);
        pruned.removed.push(date);
    }
    if !pruned.removed.is_empty() {
        away.sync_all().and_then(|()| dir.sync_all()).context("cannot make the removal durable")?;
    }
    Ok(())
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

/// What is to be removed and why, the state that follows, and the newest snapshot.
fn decide(store: &Store, dir: &File, ask: &Ask, now: Timestamp) -> Result<(State, Pruned, Option<String>)> {
    let (metas, damaged) = store.snapshots()?;
    let newest = metas.last().map(|m| m.date.clone());
    let mut needed = ask.needed.clone();
    needed.extend(pins::read(dir)?.into_iter().map(|(date, name)| (date, format!("pinned by {name}"))));
    let mut state = load(store, dir)?;
    let mut pruned = Pruned { damaged, ..Pruned::default() };
    let rules = match &ask.what {
        What::Rules(rules) => rules,
        What::Date(date) => {
            by_hand(&metas, &pruned.damaged, &needed, date)?;
            pruned.removed.push(date.clone());
            return Ok((state, pruned, newest));
        }
    };
    let snapshots: Vec<_> = metas.iter().map(snapshot).collect::<Result<_>>()?;
    if let Some(why) = rules.doubt(&snapshots, now, state.believed_at)? {
        return Err(Fault::unavailable(format!("nothing is removed: {why}"))
            .hint("if backups fail, see why; if the clock was wrong, set it; if all is well, max_gap in the retention table allows longer pauses (and removing .prune.json from the store forgets what its clock said before)")
            .into());
    }
    let verdicts = rules.decide(&snapshots, now)?;
    pruned.timezone = Some(rules.zone());
    let a_day = SignedDuration::from_hours(24);
    state.for_clients.retain(|at| now.duration_since(*at) < a_day);
    let mut room = match rules.for_client {
        true => rules.max_removals().saturating_sub(state.for_clients.len()),
        false => usize::MAX,
    };
    for (meta, Verdict { mut keep, mut reasons }) in metas.iter().zip(verdicts) {
        let others: Vec<_> = needed.iter().filter(|n| n.0 == meta.date).map(|n| n.1.clone()).collect();
        if !others.is_empty() {
            reasons = if keep { reasons } else { Vec::new() };
            keep = true;
            reasons.extend(others);
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
    state.believed_at = Some(now);
    if rules.for_client {
        state.for_clients.extend(std::iter::repeat_n(now, pruned.removed.len()));
    }
    Ok((state, pruned, newest))
}

/// Whether a person may remove `date`: a damaged one, or any but the last good one and those others need.
fn by_hand(
    metas: &[SnapshotMeta],
    damaged: &[String],
    needed: &[(String, String)],
    date: &str,
) -> Result<()> {
    if damaged.iter().any(|d| d == date) {
        return Ok(());
    }
    if !metas.iter().any(|m| m.date == date) {
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

fn snapshot(meta: &SnapshotMeta) -> Result<Snapshot> {
    Ok(Snapshot { taken: taken(&meta.date)?, sealed: meta.consistency == Consistency::Sealed })
}

fn load(store: &Store, dir: &File) -> Result<State> {
    let Some(text) = note(dir, STATE)? else { return Ok(State::default()) };
    Ok(serde_json::from_str(&text).map_err(|e| {
        Fault::config(format!("{} is damaged: {e}", store.path.join(STATE).display()))
            .hint("remove it, after looking at the clock: it says when the clock was last believed")
    })?)
}

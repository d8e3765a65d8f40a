//! The generation: a random value that S2 and the container both hold, so that S2 knows the container it left behind.
//!
//! Whoever has S3 can put an older state of the image back, which opens as well as the newest. So each push gives the
//! container a new value. S2 notes it, durably, before the container is changed; the container gets it after the
//! copy is published; S2 confirms it once the container has been closed cleanly. A push that ends anywhere in between
//! leaves a container that has one of the two values S2 then knows.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Result;
use common::durable;
use common::fault::Fault;
use common::mutant;
use common::record::random_id;
use serde::{Deserialize, Serialize};

/// S2's record, `offsite.json` in the state folder.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
pub(crate) struct Known {
    /// 1
    pub(crate) schema: u32,
    /// The container's LUKS UUID.
    pub(crate) container_uuid: String,
    /// What the container was confirmed to hold; `None` before the first push has ended well.
    pub(crate) generation: Option<String>,
    /// What it may hold instead, while a push is under way or was cut off.
    pub(crate) next_generation: Option<String>,
    /// The newest snapshot in it.
    pub(crate) date: Option<String>,
    /// That one's id.
    pub(crate) id: Option<String>,
    /// The last push that ended well.
    pub(crate) last: Option<Last>,
    /// The dates in the container when it was last closed cleanly, oldest first.
    #[serde(default)]
    pub(crate) dates: Option<Vec<String>>,
    /// Of these, the ones that a prune is about to remove, or was when it was cut off: they may be gone.
    #[serde(default)]
    pub(crate) going: Vec<String>,
    /// When its file system was last checked, as that says itself. Who checks it without us may have repaired it.
    #[serde(default)]
    pub(crate) checked_at: Option<String>,
    /// When luks-mount last opened it though it was not as this machine left it. Who had it meanwhile may have taken things out.
    #[serde(default)]
    pub(crate) accepted_at: Option<String>,
    /// Why the names and sizes of all its dates are to be compared before anything is confirmed.
    #[serde(default)]
    pub(crate) compare: Option<String>,
    /// Dates in it that are not whole, and what was found; told until a verification finds nothing.
    #[serde(default)]
    pub(crate) damaged: BTreeMap<String, String>,
}

/// Facts of the last push that ended well.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
pub(crate) struct Last {
    /// The snapshot.
    pub(crate) date: String,
    /// Its id.
    pub(crate) id: String,
    /// When it was done, RFC 3339 UTC.
    pub(crate) pushed_at: String,
    /// How long it took.
    pub(crate) duration_ms: u64,
    /// Sent to S3; `None` if that was not counted.
    pub(crate) sent_bytes: Option<u64>,
    /// Received from S3.
    pub(crate) received_bytes: Option<u64>,
    /// Content that was new.
    pub(crate) copied_bytes: Option<u64>,
}

/// `generation.json` in the container.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub(crate) struct Stamp {
    /// 1
    pub(crate) schema: u32,
    /// 32 random hexadecimal digits.
    pub(crate) generation: String,
    /// The container it was written into.
    pub(crate) container_uuid: String,
    /// The snapshot that was pushed with it.
    pub(crate) date: String,
    /// That one's id.
    pub(crate) id: String,
    /// When, RFC 3339 UTC.
    pub(crate) pushed_at: String,
}

/// What was found in the container.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
pub(crate) struct Content {
    /// Its generation.
    pub(crate) stamp: Option<Stamp>,
    /// Why its generation cannot be read, if there is one.
    pub(crate) damaged: Option<String>,
    /// The dates of its snapshots, of both layouts, oldest first.
    pub(crate) dates: Vec<String>,
    /// Of those that are lists of layers: the names in them, the newest layer first.
    #[serde(default)]
    pub(crate) layered: BTreeMap<String, Vec<String>>,
    /// The lists among the dates that cannot be read, and what else lies among them: why.
    #[serde(default)]
    pub(crate) unread: BTreeMap<String, String>,
    /// The dates of lists that are on their way.
    #[serde(default)]
    pub(crate) unfinished: Vec<String>,
    /// The dates whose lists were not read, as this machine knows them.
    #[serde(default)]
    pub(crate) not_read: Vec<String>,
}

impl Content {
    /// Whether there are dates that are seen only when their layers are laid over each other.
    pub(crate) fn has_layers(&self) -> bool {
        !self.layered.is_empty() || !self.unread.is_empty()
    }

    /// The dates that are trees.
    pub(crate) fn trees(&self) -> impl Iterator<Item = &String> {
        self.dates.iter().filter(|date| !self.layered.contains_key(*date) && !self.unread.contains_key(*date))
    }
}

impl Known {
    /// The record, if there is one.
    pub(crate) fn load(path: &Path) -> Result<Option<Known>> {
        let Some(bytes) = durable::read(path)? else { return Ok(None) };
        Ok(Some(serde_json::from_slice(&bytes).map_err(|e| {
            Fault::config(format!("{} is damaged: {e}", path.display()))
                .hint("look at the container with `offsite-push view`; then remove this file and push with --accept-container")
        })?))
    }

    /// Writes it; durable on return.
    pub(crate) fn save(&self, path: &Path) -> Result<()> {
        durable::write(path, &serde_json::to_vec(self)?, 0o600)
    }

    /// Nothing that was begun there is left open.
    pub(crate) fn is_settled(&self) -> bool {
        self.next_generation.is_none() && self.compare.is_none()
    }

    /// Whether snapshot `id` is known to be the newest one there, with nothing left open.
    pub(crate) fn holds(&self, id: &str) -> bool {
        self.is_settled() && self.id.as_deref() == Some(id)
    }

    /// The dates that were confirmed, that nothing of ours was removing, and that are not among `there`.
    fn lost(&self, there: &[String]) -> Vec<&str> {
        let all = self.dates.iter().flatten().filter(|d| !there.contains(d) && !self.going.contains(d));
        all.map(String::as_str).collect()
    }
}

/// Why the container is not the one that was left behind, and which of its dates are gone; `None` if it is.
pub(crate) fn objection(known: Option<&Known>, uuid: &str, content: &Content) -> Option<String> {
    let why = differs(known, uuid, content)?;
    let lost = known.map(|k| k.lost(&content.dates)).unwrap_or_default();
    if lost.is_empty() || mutant::active("a-date-that-is-gone-is-missed") {
        return Some(why);
    }
    Some(format!("{why}; what was confirmed in it is gone: {}", lost.join(", ")))
}

fn differs(known: Option<&Known>, uuid: &str, content: &Content) -> Option<String> {
    let empty = content.stamp.is_none() && content.damaged.is_none() && content.dates.is_empty();
    let confirmed = known.is_some_and(|k| k.generation.is_some());
    if empty && !confirmed {
        // New, or a first push was cut off before it had written anything that counts.
        return None;
    }
    let Some(known) = known else {
        return Some("it holds snapshots of which this machine knows nothing".into());
    };
    if known.container_uuid != uuid {
        return Some(format!(
            "it is another container: its UUID is {uuid}, expected {}",
            known.container_uuid
        ));
    }
    if let Some(why) = &content.damaged {
        return Some(format!("its generation cannot be read: {why}"));
    }
    let Some(stamp) = &content.stamp else {
        // Before the first confirmation there may be none: the copy was published, the generation not yet written.
        let missing = |_| "its generation is missing: it is older than the one left behind".into();
        return known.generation.as_ref().map(missing);
    };
    if stamp.container_uuid != uuid {
        return Some(format!("its generation was written into another container, {}", stamp.container_uuid));
    }
    let expected = [&known.generation, &known.next_generation];
    if expected.into_iter().flatten().any(|g| *g == stamp.generation) {
        let lost = known.lost(&content.dates);
        if lost.is_empty() || mutant::active("a-date-that-is-gone-is-missed") {
            return None;
        }
        return Some("it has lost dates".into());
    }
    Some(format!("it is not the state that was left behind: it is of {} ({})", stamp.pushed_at, stamp.date))
}

/// A container that was objected to, as an error that says what can be done.
pub(crate) fn refusal(why: &str) -> anyhow::Error {
    Fault::config(format!("the container is not taken for the one that was left behind: {why}"))
        .hint(
            "if S3's disk was restored or replaced, or this machine's state was lost: look at it with \
             `offsite-push view`, then push once with --accept-container; if not, somebody may have changed it on S3",
        )
        .into()
}

/// A change of the container under way.
#[derive(Clone, Debug)]
pub(crate) struct Change {
    /// S2's record as it is now.
    known: Known,
    /// The value the container is about to get.
    pub(crate) next: String,
    interrupted: bool,
}

impl Change {
    /// Notes on S2, durably, that the container with `content` is about to be changed. `fresh`: what was known
    /// before does not count any more, but what is damaged in it stays damaged.
    pub(crate) fn begin(
        path: &Path,
        known: Option<&Known>,
        uuid: &str,
        content: &Content,
        fresh: bool,
    ) -> Result<Change> {
        let old = known.filter(|k| k.container_uuid == uuid);
        let interrupted = fresh || old.is_none_or(|k| k.next_generation.is_some());
        let next = random_id()?;
        let base = match old {
            Some(old) if !fresh => old.clone(),
            Some(old) => Known {
                damaged: old.damaged.clone(),
                checked_at: old.checked_at.clone(),
                accepted_at: old.accepted_at.clone(),
                compare: old.compare.clone(),
                ..Known::default()
            },
            None => Known::default(),
        };
        let known = Known {
            schema: 1,
            container_uuid: uuid.to_owned(),
            // What it really holds now: of the two that were known, the other one is out of date.
            generation: content.stamp.as_ref().map(|s| s.generation.clone()),
            next_generation: Some(next.clone()),
            ..base
        };
        known.save(path)?;
        Ok(Change { known, next, interrupted })
    }

    /// Notes more, durably: it holds whether this change is ever confirmed or not.
    pub(crate) fn note(&mut self, path: &Path, more: impl FnOnce(&mut Known)) -> Result<()> {
        more(&mut self.known);
        self.known.save(path)
    }

    /// Whether the container has to get the new value: it does unless nothing in it changed and nothing was open.
    pub(crate) fn needed(&self, copied: bool) -> bool {
        copied || self.interrupted
    }

    /// S2's record once the container was closed cleanly with `dates` in it; `last` is the push, if it was one.
    pub(crate) fn confirm(
        &self,
        path: &Path,
        written: bool,
        last: Option<Last>,
        dates: Vec<String>,
    ) -> Result<()> {
        let mut known = self.known.clone();
        if written {
            known.generation = Some(self.next.clone());
        }
        known.next_generation = None;
        known.going.clear();
        known.damaged.retain(|date, _| dates.contains(date));
        known.dates = Some(dates);
        if let Some(last) = last {
            // Pushing an old date again does not make it the newest.
            if known.date.as_ref().is_none_or(|d| *d <= last.date) {
                known.date = Some(last.date.clone());
                known.id = Some(last.id.clone());
            }
            known.last = Some(last);
        }
        known.save(path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stamp(generation: &str) -> Content {
        let stamp = Stamp {
            schema: 1,
            generation: generation.into(),
            container_uuid: "u".into(),
            date: "d".into(),
            id: "i".into(),
            pushed_at: "t".into(),
        };
        Content { stamp: Some(stamp), dates: vec!["d".into()], ..Content::default() }
    }

    fn known(generation: Option<&str>, next: Option<&str>) -> Known {
        Known {
            container_uuid: "u".into(),
            generation: generation.map(str::to_owned),
            next_generation: next.map(str::to_owned),
            ..Known::default()
        }
    }

    #[test]
    fn the_container_is_the_one_left_behind_or_refused() {
        let empty = Content::default();
        let unstamped = Content { dates: vec!["d".into()], ..Content::default() };
        let damaged = Content { damaged: Some("no JSON".into()), ..Content::default() };
        let a_b = known(Some("a"), Some("b"));
        let first = known(None, Some("b"));
        for (known, uuid, content, accepted) in [
            (None, "u", &empty, true),
            (None, "u", &unstamped, false),
            (None, "u", &stamp("a"), false),
            (None, "u", &damaged, false),
            (Some(&a_b), "u", &stamp("a"), true),
            (Some(&a_b), "u", &stamp("b"), true),
            (Some(&a_b), "u", &stamp("older"), false),
            (Some(&a_b), "u", &empty, false),
            (Some(&a_b), "u", &unstamped, false),
            (Some(&a_b), "u", &damaged, false),
            (Some(&a_b), "other", &stamp("a"), false),
            (Some(&a_b), "other", &empty, false),
            // A first push that was cut off: before anything, after publishing, after the generation.
            (Some(&first), "u", &empty, true),
            (Some(&first), "u", &unstamped, true),
            (Some(&first), "u", &stamp("b"), true),
            (Some(&first), "u", &stamp("a"), false),
            // Made anew after it.
            (Some(&first), "other", &empty, true),
            (Some(&first), "other", &unstamped, false),
        ] {
            let why = objection(known, uuid, content);
            assert_eq!(why.is_none(), accepted, "{known:?} {uuid} {content:?}: {why:?}");
        }
    }

    #[test]
    fn a_confirmed_date_that_is_gone_is_an_objection_unless_a_prune_was_at_it() {
        let date = |name: &str| name.to_owned();
        let mut left = known(Some("a"), None);
        left.dates = Some(vec![date("c"), date("d")]);
        let why = objection(Some(&left), "u", &stamp("a")).unwrap();
        assert!(why.contains("is gone: c"), "{why}");
        left.going = vec![date("c")];
        assert_eq!(objection(Some(&left), "u", &stamp("a")), None);
        // More than was to go.
        left.dates = Some(vec![date("b"), date("c"), date("d")]);
        assert!(objection(Some(&left), "u", &stamp("a")).unwrap().ends_with("is gone: b"));
        // A date more, of a push that was cut off, is none.
        left.dates = Some(Vec::new());
        assert_eq!(objection(Some(&left), "u", &stamp("a")), None);
    }

    #[test]
    fn what_is_damaged_outlives_cuts_and_an_accepted_container_but_not_the_date() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("offsite.json");
        let load = || Known::load(&path).unwrap().unwrap();
        let mut change =
            Change::begin(&path, Some(&known(Some("a"), None)), "u", &stamp("a"), false).unwrap();
        change.note(&path, |k| drop(k.damaged.insert("d".into(), "a hole".into()))).unwrap();
        // Cut off; then accepted as it is.
        let again = Change::begin(&path, Some(&load()), "u", &stamp("a"), true).unwrap();
        again.confirm(&path, true, None, vec!["d".into(), "e".into()]).unwrap();
        assert_eq!(load().damaged["d"], "a hole");
        let gone = Change::begin(&path, Some(&load()), "u", &stamp(&again.next), false).unwrap();
        gone.confirm(&path, true, None, vec!["e".into()]).unwrap();
        assert!(load().damaged.is_empty());
        // It says nothing about another container.
        let other = Change::begin(&path, Some(&load()), "v", &stamp("a"), true).unwrap();
        assert!(other.known.damaged.is_empty());
    }

    #[test]
    fn whatever_step_comes_last_the_next_push_knows_the_container() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("offsite.json");
        let load = || Known::load(&path).unwrap();
        let last = |date: &str| Last { date: date.into(), id: format!("id-{date}"), ..Last::default() };
        let mut content = Content::default();
        // Three pushes, each cut off after each of its steps and begun anew.
        for round in 0..3 {
            for cut in 0..4 {
                let known = load();
                assert_eq!(objection(known.as_ref(), "u", &content), None, "round {round}, cut {cut}");
                let change = Change::begin(&path, known.as_ref(), "u", &content, false).unwrap();
                if cut >= 1 {
                    content.dates = vec![format!("d{round}")];
                }
                if cut >= 2 {
                    content = Content { dates: content.dates, ..stamp(&change.next) };
                }
                if cut >= 3 {
                    change.confirm(&path, true, Some(last(&format!("d{round}"))), Vec::new()).unwrap();
                }
            }
            let known = load().unwrap();
            assert!(known.holds(&format!("id-d{round}")));
            // What is confirmed is the only one that is believed.
            assert!(objection(Some(&known), "u", &stamp("older")).is_some());
        }
    }

    #[test]
    fn after_a_cut_the_value_is_changed_although_nothing_is_copied() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("offsite.json");
        let clean = known(Some("a"), None);
        assert!(!Change::begin(&path, Some(&clean), "u", &stamp("a"), false).unwrap().needed(false));
        let cut = known(Some("a"), Some("b"));
        assert!(Change::begin(&path, Some(&cut), "u", &stamp("a"), false).unwrap().needed(false));
        assert!(Change::begin(&path, None, "u", &Content::default(), false).unwrap().needed(false));
    }

    #[test]
    fn an_old_date_pushed_again_does_not_become_the_newest() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("offsite.json");
        let mut before = known(Some("a"), None);
        (before.date, before.id) = (Some("d2".into()), Some("i2".into()));
        let change = Change::begin(&path, Some(&before), "u", &stamp("a"), false).unwrap();
        let old = Last { date: "d1".into(), id: "i1".into(), ..Last::default() };
        change.confirm(&path, true, Some(old), vec!["d1".into(), "d2".into()]).unwrap();
        let after = Known::load(&path).unwrap().unwrap();
        assert!(after.holds("i2") && !after.holds("i1"));
        assert_eq!(after.last.unwrap().date, "d1");
    }
}

//! A push in the layout `layers`: images made here and put into the open container one by one, then the list of the date.
//!
//! The order holds whatever is killed or cut: an image is made, noted in S2's record, named in the list of what is on its way,
//! and only then sent; the date is there when all of them are. The next push goes on where this one ended, with the date that was
//! begun, and inside the image that was on its way.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result};
use base64::Engine as _;
use common::fault::{Kind, kind_of};
use common::status::Report;
use common::{mutant, say};
use serde_json::{Value, json};

use super::below::{Below, compare};
use super::kept::Manifests;
use super::making::{Facts, Order, Sizes, Workshop};
use super::record::{Base, Big, Dated, Image, Kept, Record, Unfinished};
use super::{LARGE, ask};
use crate::generation::Content;
use crate::siblings::Siblings;
use crate::store::Snapshot;
use crate::{TOOL, room, sent};

/// What is to be done.
#[derive(Debug)]
pub(crate) struct Job<'j> {
    /// The snapshot to push.
    pub(crate) wanted: &'j Snapshot,
    /// All that the store has.
    pub(crate) list: &'j [Snapshot],
    /// Room that stays free in the container.
    pub(crate) reserve: u64,
    /// No image is begun after this.
    pub(crate) until: Option<jiff::Timestamp>,
    /// Of images.
    pub(crate) sizes: Sizes,
}

/// What was done.
#[derive(Debug, Default)]
pub(crate) struct Sent {
    /// The container is not as it was.
    pub(crate) changed: bool,
    /// The date that the newest one published now lies upon.
    pub(crate) base: Option<Base>,
    /// The newest date that was published now: its id, too.
    pub(crate) published: Option<(String, String)>,
    /// The dates in the container.
    pub(crate) dates: Vec<String>,
    /// Something was left out.
    pub(crate) left_out: bool,
    /// Images sent.
    pub(crate) images: u64,
    /// Their bytes.
    pub(crate) image_bytes: u64,
    /// Contents in them.
    pub(crate) content_bytes: u64,
    /// Bytes of large contents sent.
    pub(crate) big_bytes: u64,
    /// The date that is on its way, if the time was over: what there is of it.
    pub(crate) unfinished: Option<Value>,
    /// Dates whose lists could not be read, and were written again.
    pub(crate) written_again: Vec<String>,
    /// Dates with layers that are not as they were put there.
    pub(crate) damaged: BTreeMap<String, String>,
    /// Dates that the next push needs in the store.
    pub(crate) needed: Vec<String>,
}

/// Whether a date is there now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    There,
    TimeIsOver,
    /// What was made does not fit what is planned now.
    Anew,
}

pub(super) struct Sending<'a, 's> {
    pub(super) siblings: &'a mut Siblings<'s>,
    pub(super) job: &'a Job<'a>,
    pub(super) workshop: Workshop,
    pub(super) manifests: Manifests,
    pub(super) record: Record,
    pub(super) below: Below,
    pub(super) sent: Sent,
}

/// Does it in the open container, which has `content`.
pub(crate) fn send(
    siblings: &mut Siblings,
    job: &Job,
    content: &Content,
    record: Record,
    report: &mut Report,
) -> Result<Sent> {
    let settings = siblings.settings;
    let workshop = Workshop::open(settings, record.unfinished.as_ref().and_then(|u| u.images.last()))?;
    let manifests = Manifests::open(&settings.state, &record)?;
    let mut sending = Sending {
        workshop,
        manifests,
        siblings,
        job,
        record,
        below: Below::new(content),
        sent: Sent { dates: content.dates.clone(), ..Sent::default() },
    };
    sending.record.follow(&content.layered);
    sending.record.retain(&content.dates);
    sending.write_again(content, report)?;
    sending.forget_others(content)?;
    let mut end = sending.go_on(content, report)?;
    if end == End::There && !sending.sent.dates.contains(&job.wanted.date) {
        end = sending.date(job.wanted, report)?;
    }
    match end {
        End::There => {
            // It was published before, and then we were killed.
            let wanted = (job.wanted.date.clone(), job.wanted.id.clone());
            sending.sent.published.get_or_insert(wanted);
        }
        _ => {
            let none = Unfinished { date: job.wanted.date.clone(), ..Unfinished::default() };
            sending.sent.unfinished = Some(sending.record.unfinished.as_ref().unwrap_or(&none).told());
        }
    }
    sending.sent.needed = sending.record.needed();
    Ok(sending.sent)
}

impl Sending<'_, '_> {
    /// The date that a push before this one has begun.
    fn go_on(&mut self, content: &Content, report: &mut Report) -> Result<End> {
        let Some(unfinished) = self.record.unfinished.clone() else { return Ok(End::There) };
        // It was published, and then we were killed.
        if content.dates.contains(&unfinished.date) {
            self.finished()?;
            return Ok(End::There);
        }
        let unfinished = self.without_lost(unfinished)?;
        let list = self.job.list;
        let found = list.iter().find(|s| s.date == unfinished.date && s.id == unfinished.id);
        let has_base = match (unfinished.base_date.as_ref(), &unfinished.by_manifest) {
            (None, _) => true,
            (Some(date), None) => list.iter().any(|s| s.date == *date) && self.below.holds(date),
            (Some(date), Some(sha256)) => {
                self.kept(report)?.is_some_and(|kept| kept.date == *date && kept.sha256 == *sha256)
            }
        };
        let found = found.filter(|_| has_base);
        // What was sent of it, and what it lies upon, is looked at once more: the container may have been put back meanwhile.
        let there = unfinished.images.iter().filter(|name| !self.workshop.has(name)).cloned();
        let names = there.chain(self.below.layers(unfinished.base_date.as_deref())).collect();
        let all = [(unfinished.date.clone(), names)].into();
        let found = match found {
            Some(snapshot) if compare(self.siblings, &all, Some(&self.record), usize::MAX)?.is_empty() => {
                Some(snapshot)
            }
            _ => None,
        };
        let Some(snapshot) = found else {
            let why = "the store, or the container, no longer has all of it, or what it lies upon";
            report.warn(
                "unfinished-given-up",
                format!("{} was not wholly sent, and cannot be gone on with: {why}", unfinished.date),
            );
            self.give_up(&unfinished.date)?;
            return Ok(End::There);
        };
        say!(TOOL, "going on with {}, of which {} images are made", unfinished.date, unfinished.images.len());
        self.date(snapshot, report)
    }

    /// What is on its way, without its last image if that is neither here any more nor there: it is made once more.
    fn without_lost(&mut self, unfinished: Unfinished) -> Result<Unfinished> {
        let Some(last) = unfinished.images.last().filter(|last| !self.workshop.has(last)) else {
            return Ok(unfinished);
        };
        let found = ask(self.siblings, "look", &json!({"look": {"layers": [last]}}))?;
        let lost =
            found["bytes"][last.as_str()].is_null() && !mutant::active("only-what-is-lost-is-made-again");
        let Some(left) = unfinished.clone().without_last().filter(|_| lost) else { return Ok(unfinished) };
        say!(TOOL, "{last} is not here any more, and was not sent: it is made again");
        self.record.unfinished = Some(left.clone());
        self.note()?;
        Ok(left)
    }

    /// The lists that cannot be read, of which this machine knows what was in them: while there is one, nothing is ever removed.
    fn write_again(&mut self, content: &Content, report: &mut Report) -> Result<()> {
        for date in content.unread.keys() {
            let Some(layers) = self.record.dates.get(date).map(|dated| dated.layers.clone()) else {
                continue;
            };
            let publish = json!({"publish": {"date": date, "layers": layers}});
            match ask(self.siblings, "publish", &publish) {
                Ok(_) => {
                    report.warn(
                        "list-written-again",
                        format!(
                            "the list of {date} in the container could not be read, and was written again"
                        ),
                    );
                    self.sent.changed = true;
                    self.below.add(date, layers);
                    self.sent.written_again.push(date.clone());
                }
                // Something that it needs is not there, or it is a newer version's: told as damaged.
                Err(error) if kind_of(&error) == Kind::Failed => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// What is on its way in the container, and of which S2 knows nothing: its record was lost.
    fn forget_others(&mut self, content: &Content) -> Result<()> {
        let ours = self.record.unfinished.as_ref().map(|unfinished| unfinished.date.clone());
        for date in content.unfinished.iter().filter(|date| Some(*date) != ours.as_ref()) {
            if !content.dates.contains(date) {
                ask(self.siblings, "drop", &json!({"drop": {"date": date}}))?;
                self.sent.changed = true;
            }
        }
        Ok(())
    }

    /// Forgets what there is of a date.
    fn give_up(&mut self, date: &str) -> Result<()> {
        ask(self.siblings, "drop", &json!({"drop": {"date": date}}))?;
        self.sent.changed = true;
        self.record.unfinished = None;
        self.record.retain(&self.sent.dates);
        self.note()
    }

    /// Sends what is missing of a date, and publishes it.
    fn date(&mut self, snapshot: &Snapshot, report: &mut Report) -> Result<End> {
        for _ in 0..2 {
            let base = match &self.record.unfinished {
                Some(unfinished) => unfinished.base(),
                None => self.base(snapshot, report)?,
            };
            if base.is_none() && !self.sent.dates.is_empty() {
                let why =
                    "all of it is sent: no date in the container that it could be laid upon is here, too";
                report.warn("no-base", format!("{}: {why}", snapshot.date));
            }
            match self.images(snapshot, base.as_ref())? {
                End::There => {
                    self.publish(snapshot, base)?;
                    return Ok(End::There);
                }
                End::TimeIsOver => return Ok(End::TimeIsOver),
                End::Anew => {
                    let why = "what was made of it does not fit what link-sync plans now";
                    report.warn(
                        "unfinished-given-up",
                        format!("{} is sent from its beginning: {why}", snapshot.date),
                    );
                    self.give_up(&snapshot.date)?;
                }
            }
        }
        anyhow::bail!("link-sync plans {} in another way each time", snapshot.date)
    }

    /// Until no image is missing.
    fn images(&mut self, snapshot: &Snapshot, base: Option<&Base>) -> Result<End> {
        loop {
            let made =
                self.record.unfinished.as_ref().map(|u| (u.images.last().cloned(), u.last_b64.is_none()));
            if let Some((Some(name), is_last)) = made {
                if self.workshop.has(&name) {
                    if self.is_over() || !self.put(&name, base, is_last)? {
                        return Ok(End::TimeIsOver);
                    }
                    if !is_last {
                        self.workshop.remove(&name)?;
                    }
                }
                if is_last {
                    let whole = self.put_missing(base)?;
                    return Ok(if whole { End::There } else { End::TimeIsOver });
                }
            }
            if self.is_over() {
                return Ok(End::TimeIsOver);
            }
            if !self.make(snapshot, base)? {
                return Ok(End::Anew);
            }
        }
    }

    pub(super) fn note(&self) -> Result<()> {
        self.record.save(&self.siblings.settings.state)
    }

    fn is_over(&self) -> bool {
        self.job.until.is_some_and(|until| jiff::Timestamp::now() >= until)
    }

    /// Makes the next image, and notes it; false if it does not fit those before.
    fn make(&mut self, snapshot: &Snapshot, base: Option<&Base>) -> Result<bool> {
        let before = self.record.unfinished.clone();
        let n = before.as_ref().map_or(0, |u| u.images.len()) + 1;
        let name =
            if n == 1 { format!("{}.sqfs", snapshot.date) } else { format!("{}.{n}.sqfs", snapshot.date) };
        let big = self.base_big(base);
        let after = before.as_ref().and_then(|u| u.last_b64.as_ref());
        let after = after.map(|text| base64::engine::general_purpose::STANDARD.decode(text));
        let after = after.transpose().context("the record of what was sent is damaged")?;
        let base_date = base.map(|base| base.date.clone());
        let anew = base.and_then(|base| self.record.anew.get(&base.date));
        let by_manifest = base.filter(|base| base.by_manifest);
        let order = Order {
            date: &snapshot.date,
            base: base_date.as_deref(),
            base_manifest: by_manifest.map(|base| self.manifests.path(&base.date)),
            keep: Some(self.manifests.path(&snapshot.date)),
            base_big: big.as_deref(),
            anew,
            after,
            sizes: self.job.sizes,
        };
        self.sent.left_out |= !self.workshop.make(self.siblings, &name, &order)?;
        let facts = self.workshop.facts(&name)?;
        anyhow::ensure!(facts.id == snapshot.id, "{} in the store is not what it was", snapshot.date);
        let mut unfinished = before.unwrap_or_else(|| Unfinished {
            date: snapshot.date.clone(),
            id: snapshot.id.clone(),
            base_date: base_date.clone(),
            by_manifest: self
                .record
                .kept
                .as_ref()
                .filter(|_| by_manifest.is_some())
                .map(|kept| kept.sha256.clone()),
            plan_sha256: facts.plan_sha256.clone(),
            // Without a word of link-sync's all of the base's are kept.
            big: facts.base_big.clone().or(big).unwrap_or_default(),
            ..Unfinished::default()
        });
        if unfinished.plan_sha256 != facts.plan_sha256 && !mutant::active("images-of-one-plan") {
            return Ok(false);
        }
        unfinished.before_b64 = std::mem::replace(&mut unfinished.last_b64, facts.last());
        unfinished.images.push(name.clone());
        unfinished.kept = facts.kept_manifest.as_ref().map(|kept| Kept {
            date: snapshot.date.clone(),
            id: snapshot.id.clone(),
            sha256: kept.sha256.clone(),
        });
        unfinished.big.extend(facts.big.iter().cloned());
        let image = Image {
            date: snapshot.date.clone(),
            base_date,
            bytes: facts.image_bytes,
            sha256: facts.sha256,
            paths: facts.paths,
            names_sha256: facts.names_sha256,
        };
        self.record.images.insert(name, image);
        self.record.unfinished = Some(unfinished);
        self.note()?;
        Ok(true)
    }

    /// Sends an image and the large contents that came with it; false if the time is over before the last one. The last image
    /// stays here until the date is published.
    fn put(&mut self, name: &str, base: Option<&Base>, is_last: bool) -> Result<bool> {
        let facts = self.workshop.facts(name)?;
        let layers = self.layers(base);
        let unfinished = self.record.unfinished.clone().context("no image is on its way")?;
        let date = unfinished.date;
        // Of a date with one image and no more nothing is named before: should it be swept out meanwhile, it is still here.
        if !(is_last && unfinished.images.len() == 1 && facts.big.is_empty()) {
            let intended =
                ask(self.siblings, "intend", &json!({"intend": {"date": date, "layers": layers}}))?;
            self.sent.changed |= intended["changed"] == true;
        }
        let settings = self.siblings.settings;
        room::fits(settings, facts.image_bytes, self.job.reserve)?;
        let put = json!({"put": {"image": name, "from": self.workshop.path(name), "bytes": facts.image_bytes,
            "sha256": facts.sha256, "reserve": self.job.reserve, "is_last": is_last}});
        let send = || ask(self.siblings, "put", &put);
        if sent::told(settings, name, facts.image_bytes, send)?["copied"] == true {
            self.sent.changed = true;
            self.sent.images += 1;
            self.sent.image_bytes += facts.image_bytes;
            self.sent.content_bytes += facts.content_bytes;
        }
        self.put_big(&facts, &date, base)
    }

    /// The large contents that came with an image; false if the time is over before the last one.
    fn put_big(&mut self, facts: &Facts, date: &str, base: Option<&Base>) -> Result<bool> {
        let mut done = BTreeSet::new();
        let big: Vec<&Big> = facts.big.iter().filter(|big| done.insert(&big.sha256)).collect();
        self.put_contents(&big, date, base)
    }

    /// Whatever of the date's large contents is not there: its image may be sent, and what was noted beside it lost here. False if the
    /// time is over before the last one.
    fn put_missing(&mut self, base: Option<&Base>) -> Result<bool> {
        let unfinished = self.record.unfinished.clone().context("no image is on its way")?;
        let all: BTreeMap<String, &Big> =
            unfinished.big.iter().map(|big| (format!("{LARGE}{}", big.sha256), big)).collect();
        if all.is_empty() || mutant::active("what-is-published-has-its-large-contents") {
            return Ok(true);
        }
        let names: Vec<&String> = all.keys().collect();
        let found = ask(self.siblings, "look", &json!({"look": {"layers": names}}))?;
        let missing: Vec<&Big> = all
            .iter()
            .filter(|(name, _)| found["bytes"][name.as_str()].is_null())
            .map(|all| *all.1)
            .collect();
        self.put_contents(&missing, &unfinished.date, base)
    }

    fn put_contents(&mut self, all: &[&Big], date: &str, base: Option<&Base>) -> Result<bool> {
        let settings = self.siblings.settings;
        let store = settings.store()?;
        let old = self.base_big(base).unwrap_or_default();
        let content = |big: &Big, date: &str| json!({"sha256": big.sha256, "bytes": big.bytes, "date": date, "path": big.path, "path_b64": big.path_b64});
        for big in all {
            if self.is_over() {
                return Ok(false);
            }
            let before = old.iter().find(|old| (&old.path, &old.path_b64) == (&big.path, &big.path_b64));
            // What differs is told by the one in the store.
            let base = base.filter(|base| !base.by_manifest);
            let like = before.zip(base).map(|(old, base)| content(old, &base.date));
            room::fits(settings, if like.is_some() { 0 } else { big.bytes }, self.job.reserve)?;
            let put = json!({"put-big": {"store": store, "content": content(big, date), "like": like,
                "reserve": self.job.reserve}});
            let send = || ask(self.siblings, "put-big", &put);
            let answer = sent::told(settings, &big.path, big.bytes, send)?;
            if answer["copied"] == true {
                self.sent.changed = true;
                self.sent.big_bytes += answer["patched_bytes"].as_u64().unwrap_or(big.bytes);
            }
        }
        Ok(true)
    }

    fn publish(&mut self, snapshot: &Snapshot, base: Option<Base>) -> Result<()> {
        let layers = self.layers(base.as_ref());
        let unfinished = self.record.unfinished.clone().context("no image was made")?;
        let big = self.base_big(base.as_ref()).is_some().then_some(unfinished.big);
        // Only what is newest is likely to be built upon.
        let newest = self.record.dates.keys().next_back().cloned();
        for (_, dated) in self.record.dates.iter_mut().filter(|d| Some(d.0) != newest.as_ref()) {
            dated.big = None;
        }
        let dated =
            Dated { id: snapshot.id.clone(), layers: layers.clone(), big, sealed: Some(snapshot.sealed) };
        self.record.dates.insert(snapshot.date.clone(), dated);
        self.note()?;
        let publish = json!({"publish": {"date": snapshot.date, "layers": layers}});
        self.sent.changed |= ask(self.siblings, "publish", &publish)?["changed"] == true;
        self.finished()?;
        self.below.add(&snapshot.date, layers);
        self.sent.dates.push(snapshot.date.clone());
        self.sent.dates.sort_unstable();
        self.sent.base = base;
        if self.sent.published.as_ref().is_none_or(|published| published.0 < snapshot.date) {
            self.sent.published = Some((snapshot.date.clone(), snapshot.id.clone()));
        }
        Ok(())
    }
}

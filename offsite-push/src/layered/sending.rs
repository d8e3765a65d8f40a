//! A push in the layout `layers`: images made here and put into the open container one by one, then the list of the date.
//!
//! The order holds whatever is killed or cut: an image is made, noted in S2's record, named in the list of what is on its way,
//! and only then sent; the date is there when all of them are. The next push goes on where this one ended, with the date that was
//! begun, and inside the image that was on its way.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result};
use base64::Engine as _;
use common::status::Report;
use common::{mutant, say};
use serde_json::{Value, json};

use super::below::{Below, compare};
use super::making::{Facts, Order, Sizes, Workshop};
use super::record::{Big, Dated, Image, Record, Unfinished};
use super::{LARGE, ask};
use crate::generation::Content;
use crate::siblings::Siblings;
use crate::store::Snapshot;
use crate::{TOOL, room, tell};

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
    pub(crate) base_date: Option<String>,
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

struct Sending<'a, 's> {
    siblings: &'a mut Siblings<'s>,
    job: &'a Job<'a>,
    workshop: Workshop,
    record: Record,
    below: Below,
    sent: Sent,
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
    let mut sending = Sending {
        workshop,
        siblings,
        job,
        record,
        below: Below::new(content),
        sent: Sent { dates: content.dates.clone(), ..Sent::default() },
    };
    sending.record.retain(&content.dates);
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
            self.record.unfinished = None;
            self.note()?;
            return Ok(End::There);
        }
        let list = self.job.list;
        let held = |date: &String| list.iter().any(|s| s.date == *date) && self.below.holds(date);
        let found = list.iter().find(|s| s.date == unfinished.date && s.id == unfinished.id);
        let found = found.filter(|_| unfinished.base_date.as_ref().is_none_or(held));
        // What was sent of it, and what it lies upon, is looked at once more: the container may have been put back meanwhile.
        let there = unfinished.images.iter().filter(|name| !self.workshop.has(name)).cloned();
        let names = there.chain(self.below.layers(unfinished.base_date.as_deref())).collect();
        let all = [(unfinished.date.clone(), names)].into();
        let found = match found {
            Some(snapshot) if compare(self.siblings, &all, Some(&self.record))?.is_empty() => Some(snapshot),
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
                Some(unfinished) => unfinished.base_date.clone(),
                None => self.base(snapshot)?,
            };
            if base.is_none() && !self.sent.dates.is_empty() {
                let why =
                    "all of it is sent: no date in the container that it could be laid upon is here, too";
                report.warn("no-base", format!("{}: {why}", snapshot.date));
            }
            match self.images(snapshot, base.as_deref())? {
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
    fn images(&mut self, snapshot: &Snapshot, base: Option<&str>) -> Result<End> {
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
                    return Ok(End::There);
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

    fn note(&self) -> Result<()> {
        self.record.save(&self.siblings.settings.state)
    }

    fn is_over(&self) -> bool {
        self.job.until.is_some_and(|until| jiff::Timestamp::now() >= until)
    }

    /// What the snapshot is to be laid upon.
    fn base(&mut self, snapshot: &Snapshot) -> Result<Option<String>> {
        let (list, record) = (self.job.list, &self.record);
        let (base, damaged) = self.below.base(self.siblings, list, record, &snapshot.date)?;
        self.sent.damaged.extend(damaged);
        Ok(base)
    }

    /// What lies beside the base's images, if that is known to the file.
    fn base_big(&self, base: Option<&str>) -> Option<Vec<Big>> {
        let Some(base) = base else { return Some(Vec::new()) };
        let known = self.record.dates.get(base).and_then(|dated| dated.big.clone());
        known.or_else(|| (!self.below.names(base).iter().any(|name| name.starts_with(LARGE))).then(Vec::new))
    }

    /// Makes the next image, and notes it; false if it does not fit those before.
    fn make(&mut self, snapshot: &Snapshot, base: Option<&str>) -> Result<bool> {
        let before = self.record.unfinished.clone();
        let n = before.as_ref().map_or(0, |u| u.images.len()) + 1;
        let name =
            if n == 1 { format!("{}.sqfs", snapshot.date) } else { format!("{}.{n}.sqfs", snapshot.date) };
        let big = self.base_big(base);
        let after = before.as_ref().and_then(|u| u.last_b64.as_ref());
        let after = after.map(|text| base64::engine::general_purpose::STANDARD.decode(text));
        let after = after.transpose().context("the record of what was sent is damaged")?;
        let order =
            Order { date: &snapshot.date, base, base_big: big.as_deref(), after, sizes: self.job.sizes };
        self.sent.left_out |= !self.workshop.make(self.siblings, &name, &order)?;
        let facts = self.workshop.facts(&name)?;
        anyhow::ensure!(facts.id == snapshot.id, "{} in the store is not what it was", snapshot.date);
        let mut unfinished = before.unwrap_or_else(|| Unfinished {
            date: snapshot.date.clone(),
            id: snapshot.id.clone(),
            base_date: base.map(str::to_owned),
            plan_sha256: facts.plan_sha256.clone(),
            // Without a word of link-sync's all of the base's are kept.
            big: facts.base_big.clone().or(big).unwrap_or_default(),
            ..Unfinished::default()
        });
        if unfinished.plan_sha256 != facts.plan_sha256 && !mutant::active("images-of-one-plan") {
            return Ok(false);
        }
        unfinished.last_b64 = facts.last();
        unfinished.images.push(name.clone());
        unfinished.big.extend(facts.big.iter().cloned());
        let image = Image {
            date: snapshot.date.clone(),
            base_date: base.map(str::to_owned),
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

    /// The list of what is on its way, or of all of it, the newest image first.
    fn layers(&self, base: Option<&str>) -> Vec<String> {
        let Some(unfinished) = &self.record.unfinished else { return Vec::new() };
        let mut layers: Vec<String> = unfinished.images.iter().rev().cloned().collect();
        layers.extend(self.below.layers(base));
        let mut big: BTreeSet<String> =
            unfinished.big.iter().map(|big| format!("{LARGE}{}", big.sha256)).collect();
        if let Some(base) = base.filter(|base| self.base_big(Some(base)).is_none()) {
            big.extend(self.below.names(base).into_iter().filter(|name| name.starts_with(LARGE)));
        }
        layers.extend(big);
        layers
    }

    /// Sends an image and the large contents that came with it; false if the time is over before the last one. The last image
    /// stays here until the date is published.
    fn put(&mut self, name: &str, base: Option<&str>, is_last: bool) -> Result<bool> {
        let facts = self.workshop.facts(name)?;
        let layers = self.layers(base);
        let unfinished = self.record.unfinished.clone().context("no image is on its way")?;
        let date = unfinished.date;
        // Of a date with one image nothing is named before: should it be swept out meanwhile, it is still here.
        if !(is_last && unfinished.images.len() == 1) {
            let intended =
                ask(self.siblings, "intend", &json!({"intend": {"date": date, "layers": layers}}))?;
            self.sent.changed |= intended["changed"] == true;
        }
        room::fits(self.siblings.settings, facts.image_bytes, self.job.reserve)?;
        say!(TOOL, "sending {name}, {}", tell::bytes(facts.image_bytes));
        let put = json!({"put": {"image": name, "from": self.workshop.path(name), "bytes": facts.image_bytes,
            "sha256": facts.sha256, "reserve": self.job.reserve, "is_last": is_last}});
        if ask(self.siblings, "put", &put)?["copied"] == true {
            self.sent.changed = true;
            self.sent.images += 1;
            self.sent.image_bytes += facts.image_bytes;
            self.sent.content_bytes += facts.content_bytes;
        }
        self.put_big(&facts, &date, base)
    }

    fn put_big(&mut self, facts: &Facts, date: &str, base: Option<&str>) -> Result<bool> {
        let store = self.siblings.settings.store()?.to_owned();
        let old = self.base_big(base).unwrap_or_default();
        let content = |big: &Big, date: &str| json!({"sha256": big.sha256, "bytes": big.bytes, "date": date, "path": big.path, "path_b64": big.path_b64});
        let mut done = BTreeSet::new();
        for big in facts.big.iter().filter(|big| done.insert(&big.sha256)) {
            if self.is_over() {
                return Ok(false);
            }
            let before = old.iter().find(|old| (&old.path, &old.path_b64) == (&big.path, &big.path_b64));
            let like = before.zip(base).map(|(old, base)| content(old, base));
            room::fits(self.siblings.settings, if like.is_some() { 0 } else { big.bytes }, self.job.reserve)?;
            say!(TOOL, "sending {}, {}", common::show::escaped(&big.path), tell::bytes(big.bytes));
            let put = json!({"put-big": {"store": store, "content": content(big, date), "like": like,
                "reserve": self.job.reserve}});
            let answer = ask(self.siblings, "put-big", &put)?;
            if answer["copied"] == true {
                self.sent.changed = true;
                self.sent.big_bytes += answer["patched_bytes"].as_u64().unwrap_or(big.bytes);
            }
        }
        Ok(true)
    }

    fn publish(&mut self, snapshot: &Snapshot, base: Option<String>) -> Result<()> {
        let layers = self.layers(base.as_deref());
        let unfinished = self.record.unfinished.clone().context("no image was made")?;
        let (big, last) = (unfinished.big, unfinished.images.last().cloned());
        let big = self.base_big(base.as_deref()).is_some().then_some(big);
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
        self.record.unfinished = None;
        self.note()?;
        last.iter().try_for_each(|name| self.workshop.remove(name))?;
        self.below.add(&snapshot.date, layers);
        self.sent.dates.push(snapshot.date.clone());
        self.sent.dates.sort_unstable();
        self.sent.base_date = base;
        if self.sent.published.as_ref().is_none_or(|published| published.0 < snapshot.date) {
            self.sent.published = Some((snapshot.date.clone(), snapshot.id.clone()));
        }
        Ok(())
    }
}

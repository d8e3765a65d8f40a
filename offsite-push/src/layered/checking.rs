//! Whether images and large contents are what this machine has sent: they are read and hashed where they lie, and nothing is mounted.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use serde_json::json;
use sha2::{Digest as _, Sha256};

use super::ask;
use super::list::Layer;
use super::record::Record;
use crate::generation::Content;
use crate::siblings::Siblings;

/// What was read, and what was wrong.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Checked {
    /// Layers and large contents that the dates need; trees are not among them.
    pub(crate) needed: usize,
    /// So many of them were read.
    pub(crate) checked: usize,
    /// Of these, so many have no hash in this machine's own record: what lies beside them was believed.
    pub(crate) weaker: usize,
    /// What is not as it was.
    pub(crate) wrong: Vec<Wrong>,
}

/// An image, or a large content, that is not what was sent.
#[derive(Debug, Deserialize, Serialize)]
pub(crate) struct Wrong {
    /// Its name in the lists.
    pub(crate) layer: String,
    /// What is wrong.
    pub(crate) why: String,
    /// The dates that need it.
    #[serde(default)]
    pub(crate) dates: Vec<String>,
}

#[derive(Deserialize)]
struct Answer {
    wrong: Vec<Wrong>,
}

/// Reads so many percent of what `dates` need, chosen by `seed`; what was damaged before is always among it. What is found is noted
/// in this machine's record, so that no new date is laid upon it.
pub(crate) fn check(
    siblings: &mut Siblings,
    content: &Content,
    uuid: &str,
    dates: &[String],
    (percent, seed): (f64, u64),
) -> Result<Checked> {
    let state = &siblings.settings.state;
    let mut record = Record::load(state, uuid)?;
    let mut needed: BTreeSet<&String> = BTreeSet::new();
    for (_, layers) in content.layered.iter().filter(|(date, _)| dates.contains(date)) {
        for name in layers {
            if !matches!(Layer::parse(name)?, Layer::Tree(_)) {
                needed.insert(name);
            }
        }
    }
    let damaged = |name: &String| record.as_ref().is_some_and(|r| r.damaged.contains_key(name));
    let mut by_chance: Vec<(f64, &String)> = needed.iter().map(|name| (chance(seed, name), *name)).collect();
    by_chance.sort_by(|a, b| a.0.total_cmp(&b.0));
    // At least one: of few images, a small share would be none.
    let chosen: Vec<&String> = by_chance
        .iter()
        .enumerate()
        .filter(|(n, (chance, name))| *n == 0 || *chance < percent / 100.0 || damaged(name))
        .map(|(_, (_, name))| *name)
        .collect();
    let hash = |name: &str| record.as_ref().and_then(|r| r.sha256(name)).map(str::to_owned);
    let asked: Vec<(&String, Option<String>)> = chosen.iter().map(|name| (*name, hash(name))).collect();
    let weaker = asked.iter().filter(|(_, hash)| hash.is_none()).count();
    let answer = ask(siblings, "check-layers", &json!({"check": {"layers": asked}}))?;
    let Answer { mut wrong } =
        serde_json::from_value(answer).context("the answer about images is damaged")?;
    for found in &mut wrong {
        let has = |layers: &&Vec<String>| layers.contains(&found.layer);
        let dates = content.layered.iter().filter(|(_, layers)| has(layers)).map(|(date, _)| date.clone());
        found.dates = dates.collect();
    }
    if let Some(record) = &mut record {
        let before = record.damaged.clone();
        record.damaged.retain(|name, _| !chosen.contains(&name));
        record.damaged.extend(wrong.iter().map(|w| (w.layer.clone(), w.why.clone())));
        if record.damaged != before {
            record.save(&siblings.settings.state)?;
        }
    }
    Ok(Checked { needed: needed.len(), checked: chosen.len(), weaker, wrong })
}

impl Checked {
    /// What is damaged, by date.
    pub(crate) fn by_date(&self) -> BTreeMap<String, String> {
        let mut all: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for wrong in &self.wrong {
            for date in &wrong.dates {
                all.entry(date.clone()).or_default().push(format!("{}: {}", wrong.layer, wrong.why));
            }
        }
        all.into_iter().map(|(date, wrong)| (date, wrong.join("; "))).collect()
    }
}

/// From 0 to 1: the same for the same seed and name.
fn chance(seed: u64, name: &str) -> f64 {
    let sum = Sha256::new().chain_update(seed.to_le_bytes()).chain_update(name).finalize();
    let number = sum.iter().take(4).fold(0u32, |n, byte| n << 8 | u32::from(*byte));
    f64::from(number) / f64::from(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_share_is_chosen_by_the_seed_and_about_as_large_as_it_was_asked_to_be() {
        let names: Vec<String> = (0..1000).map(|n| format!("image {n}")).collect();
        let chosen = |seed| names.iter().filter(|name| chance(seed, name) < 0.2).collect::<Vec<_>>();
        assert!((120..280).contains(&chosen(7).len()));
        assert_eq!(chosen(7), chosen(7));
        assert_ne!(chosen(7), chosen(8));
    }
}

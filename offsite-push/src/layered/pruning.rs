//! Which of the container's dates are lists of layers, as far as the rules of retention and what they need are concerned; and taking
//! them out.
//!
//! link-sync decides and counts (`prune --listed`), as it does for trees. A date's list goes first, then what no list needs.

use std::collections::BTreeMap;
use std::ffi::OsString;

use anyhow::{Context as _, Result};
use common::mutant;
use serde::Deserialize;
use serde_json::json;

use super::ask;
use super::list::Layer;
use super::record::Record;
use crate::settings::Settings;
use crate::siblings::{Siblings, option};
use crate::store::Snapshot;

/// The lists of the open container.
#[derive(Debug, Default)]
pub(crate) struct Listed {
    /// Of each date, whether it is sealed; as far as that is known.
    dates: BTreeMap<String, bool>,
    /// The trees that a list lies upon, also the list of a date that is on its way.
    trees: Vec<String>,
}

#[derive(Deserialize)]
struct Lists {
    dates: Vec<List>,
    unfinished: Vec<List>,
}

#[derive(Deserialize)]
struct List {
    date: String,
    layers: Vec<String>,
}

impl Listed {
    /// Reads them; a list that cannot be read is an error, as nobody knows what it needs. `list` is what the store here has.
    pub(crate) fn read(siblings: &mut Siblings, uuid: &str, list: &[Snapshot]) -> Result<Listed> {
        let answer = ask(siblings, "lists", &json!({"lists": {}}));
        let answer = answer.context("nothing is removed while a list in the container cannot be read")?;
        let lists: Lists = serde_json::from_value(answer).context("the answer about the lists is damaged")?;
        let record = Record::load(&siblings.settings.state, uuid)?;
        let sealed = |date: &str| {
            let here = list.iter().find(|s| s.date == date).map(|s| s.sealed);
            let noted = record.as_ref().and_then(|r| r.dates.get(date)).and_then(|dated| dated.sealed);
            here.or(noted).unwrap_or(false)
        };
        let mut listed = Listed::default();
        for each in lists.dates.iter().chain(&lists.unfinished) {
            for name in &each.layers {
                if let Layer::Tree(date) = Layer::parse(name)?
                    && !mutant::active("a-tree-that-a-list-needs-stays")
                {
                    listed.trees.push(date);
                }
            }
        }
        listed.dates =
            lists.dates.into_iter().map(|l| (sealed(&l.date), l.date)).map(|(s, d)| (d, s)).collect();
        Ok(listed)
    }

    /// The trees that stay, whatever the rules say.
    pub(crate) fn trees(&self) -> impl Iterator<Item = &str> {
        self.trees.iter().map(String::as_str)
    }

    /// As options of `link-sync prune`.
    pub(crate) fn options(&self) -> impl Iterator<Item = OsString> {
        self.dates.iter().flat_map(|(date, sealed)| {
            option("--listed", if *sealed { format!("{date}=sealed") } else { date.clone() })
        })
    }

    /// Takes those of `dates` that are lists out of the container; the layers that went with them.
    pub(crate) fn drop(&self, siblings: &mut Siblings, dates: &[String]) -> Result<Vec<String>> {
        #[derive(Deserialize)]
        struct Dropped {
            removed: Vec<String>,
        }
        let mut gone = Vec::new();
        for date in dates.iter().filter(|date| self.dates.contains_key(*date)) {
            let answer = ask(siblings, "drop", &json!({"drop": {"date": date}}))?;
            let dropped: Dropped =
                serde_json::from_value(answer).context("the answer about what was dropped is damaged")?;
            gone.extend(dropped.removed);
        }
        Ok(gone)
    }
}

/// Forgets what is gone from the container, now that it is so for sure.
pub(crate) fn forget(settings: &Settings, uuid: &str, dates: &[String]) -> Result<()> {
    let Some(mut record) = Record::load(&settings.state, uuid)? else { return Ok(()) };
    record.retain(dates);
    record.save(&settings.state)
}

//! S2's own record of what it has put into the container as layers: `offsite.layers.json` in the state folder.
//!
//! Whoever has S3 cannot change it: the hashes in it are what a verification compares with. What is in it of an image was noted
//! before that was sent, and stays until the image is gone from the container.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use common::durable;
use common::fault::Fault;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// The file's name.
const FILE: &str = "offsite.layers.json";

/// All of it.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
pub(crate) struct Record {
    /// 1
    pub(crate) schema: u32,
    /// The container that all of this is about: its LUKS UUID.
    pub(crate) container_uuid: String,
    /// The images by name, as a date's list names them.
    #[serde(default)]
    pub(crate) images: BTreeMap<String, Image>,
    /// The snapshots that the images make.
    #[serde(default)]
    pub(crate) dates: BTreeMap<String, Dated>,
    /// The one that is on its way.
    #[serde(default)]
    pub(crate) unfinished: Option<Unfinished>,
    /// Layers in the container that a verification found damaged, and why: nothing is to be laid upon them.
    #[serde(default)]
    pub(crate) damaged: BTreeMap<String, String>,
}

/// An image.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
pub(crate) struct Image {
    /// The snapshot that it was made for.
    pub(crate) date: String,
    /// The one whose layers it lies on; `None` for one of a first push.
    pub(crate) base_date: Option<String>,
    /// Its length.
    pub(crate) bytes: u64,
    /// Its hash.
    pub(crate) sha256: String,
    /// Paths in it, without its root.
    pub(crate) paths: u64,
    /// The hash of these paths, each followed by a NUL, in the order of their bytes.
    pub(crate) names_sha256: String,
}

/// A snapshot.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
pub(crate) struct Dated {
    /// What it calls itself.
    pub(crate) id: String,
    /// Its layers, as its list in the container has them.
    pub(crate) layers: Vec<String>,
    /// The files of it whose contents lie beside the images. `None`: not noted any more, as only the newest are.
    #[serde(default)]
    pub(crate) big: Option<Vec<Big>>,
    /// Whether its files and its database belong together.
    #[serde(default)]
    pub(crate) sealed: Option<bool>,
}

/// A content that lies beside the images, and a path that has it.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
pub(crate) struct Big {
    /// Its hash, which is its name.
    pub(crate) sha256: String,
    /// Its length.
    pub(crate) bytes: u64,
    /// In the snapshot.
    pub(crate) path: String,
    /// The same, if it is no UTF-8.
    #[serde(default)]
    pub(crate) path_b64: Option<String>,
}

/// A snapshot of which not all images are there.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
pub(crate) struct Unfinished {
    /// Its date.
    pub(crate) date: String,
    /// What it calls itself.
    pub(crate) id: String,
    /// The date whose layers lie below.
    pub(crate) base_date: Option<String>,
    /// The hash of all that is to be done. Another one: another program plans, and what was made so far does not fit.
    pub(crate) plan_sha256: String,
    /// The images so far, the oldest first.
    pub(crate) images: Vec<String>,
    /// The last path in them, base64. `None` if nothing follows.
    pub(crate) last_b64: Option<String>,
    /// The large contents so far.
    pub(crate) big: Vec<Big>,
}

impl Unfinished {
    /// For a report.
    pub(crate) fn told(&self) -> Value {
        json!({"date": self.date, "images": self.images.len(), "base_date": self.base_date})
    }
}

fn path(state: &Path) -> PathBuf {
    state.join(FILE)
}

impl Record {
    /// The record in the state folder `state`, if there is one. One of another container than `uuid` counts for nothing.
    pub(crate) fn load(state: &Path, uuid: &str) -> Result<Option<Record>> {
        let path = path(state);
        let Some(text) = durable::read(&path)? else { return Ok(None) };
        let record: Record = serde_json::from_slice(&text).map_err(|e| {
            Fault::config(format!("{} is damaged: {e}", path.display())).hint(
                "move it away: the hashes beside the images in the container count then, which tell damage but no exchange",
            )
        })?;
        Ok(Some(record).filter(|record| record.container_uuid == uuid))
    }

    /// A new one.
    pub(crate) fn new(uuid: &str) -> Record {
        Record { schema: 1, container_uuid: uuid.to_owned(), ..Record::default() }
    }

    /// Writes it; durable on return.
    pub(crate) fn save(&self, state: &Path) -> Result<()> {
        durable::write(&path(state), &serde_json::to_vec(self)?, 0o600)
            .context("cannot note what is in the container")
    }

    /// The hash of the layer `name` of a list, as S2 knows it; a large content is named by it.
    pub(crate) fn sha256<'a>(&'a self, name: &'a str) -> Option<&'a str> {
        name.strip_prefix("big/").or_else(|| self.images.get(name).map(|image| &image.sha256[..]))
    }

    /// The dates of the store that what is on its way needs: itself, and what it lies upon.
    pub(crate) fn needed(&self) -> Vec<String> {
        let dates = self.unfinished.iter().flat_map(|u| [Some(u.date.clone()), u.base_date.clone()]);
        dates.flatten().collect()
    }

    /// Forgets the dates that are not among `dates`, and the images that no date, and nothing that is on its way, has.
    pub(crate) fn retain(&mut self, dates: &[String]) {
        self.dates.retain(|date, _| dates.contains(date));
        let layers = self.dates.values().flat_map(|dated| &dated.layers);
        let needed: Vec<&String> = layers.chain(self.unfinished.iter().flat_map(|u| &u.images)).collect();
        self.images.retain(|name, _| needed.contains(&name));
        self.damaged.retain(|name, _| needed.contains(&name));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_comes_back_for_its_container_and_forgets_what_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(Record::load(dir.path(), "u").unwrap(), None);
        let mut record = Record::new("u");
        let dated = |layers: &[&str]| Dated {
            layers: layers.iter().map(|l| (*l).into()).collect(),
            ..Dated::default()
        };
        record.dates = [("1".into(), dated(&["a"])), ("2".into(), dated(&["b", "a", "big/c"]))].into();
        record.unfinished = Some(Unfinished { images: vec!["d".into()], ..Unfinished::default() });
        for name in ["a", "b", "d"] {
            record.images.insert(name.into(), Image { sha256: format!("sum of {name}"), ..Image::default() });
        }
        record.save(dir.path()).unwrap();
        assert_eq!(Record::load(dir.path(), "u").unwrap().as_ref(), Some(&record));
        assert_eq!(Record::load(dir.path(), "another").unwrap(), None);
        assert_eq!(
            (record.sha256("b"), record.sha256("big/c"), record.sha256("z")),
            (Some("sum of b"), Some("c"), None)
        );
        record.retain(&["1".into()]);
        assert_eq!(record.images.keys().collect::<Vec<_>>(), ["a", "d"]);
        record.unfinished = None;
        record.retain(&[]);
        assert!(record.images.is_empty() && record.dates.is_empty());
        std::fs::write(dir.path().join(FILE), "{").unwrap();
        assert!(format!("{:#}", Record::load(dir.path(), "u").unwrap_err()).contains("is damaged"));
    }
}

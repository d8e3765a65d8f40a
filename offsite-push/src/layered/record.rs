//! S2's own record of what it has put into the container as layers: `offsite.layers.json` in the state folder.
//!
//! Whoever has S3 cannot change it: the hashes in it are what a verification compares with. What is in it of an image was noted
//! before that was sent, and stays until the image is gone from the container.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use common::durable;
use common::fault::Fault;
use common::mutant;
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
    /// What of a date is not shown in the container as it is in the store here: stored again in what is laid upon it.
    #[serde(default)]
    pub(crate) anew: BTreeMap<String, Anew>,
    /// Dates that were dropped, and where nobody has looked since whether images can become one.
    #[serde(default)]
    pub(crate) dropped: BTreeSet<String>,
    /// Images that are becoming one.
    #[serde(default)]
    pub(crate) merging: Option<Merging>,
    /// The newest published date of which there is what lets another be laid upon it when it is gone from the store.
    #[serde(default)]
    pub(crate) kept: Option<Kept>,
}

/// What was kept of a date; see `kept.rs`.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
pub(crate) struct Kept {
    /// The date.
    pub(crate) date: String,
    /// What that snapshot calls itself.
    pub(crate) id: String,
    /// The file's hash: another file is of no use.
    pub(crate) sha256: String,
}

/// Images that are becoming one: noted before that is sent.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
pub(crate) struct Merging {
    /// The one image.
    pub(crate) by: String,
    /// Those in whose place it comes, the newest first.
    pub(crate) layers: Vec<String>,
}

/// Paths of a date, as `link-sync layer --anew` takes them.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
pub(crate) struct Anew {
    /// As far as they are known: of more than can be listed, the next verification tells the next ones.
    pub(crate) paths: BTreeSet<Name>,
}

/// A path in a snapshot.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub(crate) struct Name {
    path: String,
    /// The same, if it is no UTF-8.
    #[serde(default)]
    path_b64: Option<String>,
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
    /// The last path in those before the last one, base64: so that one can be made once more.
    #[serde(default)]
    pub(crate) before_b64: Option<String>,
    /// The large contents so far.
    pub(crate) big: Vec<Big>,
    /// The base is known only by what was kept of it: the hash of that file.
    #[serde(default)]
    pub(crate) by_manifest: Option<String>,
    /// What was kept of this date, once its last image is made.
    #[serde(default)]
    pub(crate) kept: Option<Kept>,
}

impl Unfinished {
    /// Without the last image. `None` if nothing is left, or if nobody has noted where that began.
    pub(crate) fn without_last(mut self) -> Option<Unfinished> {
        self.images.pop();
        self.last_b64 = self.before_b64.take();
        Some(self).filter(|left| !left.images.is_empty() && left.last_b64.is_some())
    }

    /// For a report.
    pub(crate) fn told(&self) -> Value {
        json!({"date": self.date, "images": self.images.len(), "base_date": self.base_date,
            "base_by_manifest": self.by_manifest.is_some()})
    }

    /// What lies below.
    pub(crate) fn base(&self) -> Option<Base> {
        let by_manifest = self.by_manifest.is_some();
        self.base_date.clone().map(|date| Base { date, by_manifest })
    }
}

/// What a date is laid upon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Base {
    /// A date in the container.
    pub(crate) date: String,
    /// It is not in the store, and known by what was kept of it.
    pub(crate) by_manifest: bool,
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
        let base = |u: &Unfinished| u.base_date.clone().filter(|_| u.by_manifest.is_none());
        let dates = self.unfinished.iter().flat_map(|u| [Some(u.date.clone()), base(u)]);
        dates.flatten().collect()
    }

    /// Takes over what a date is made of from its list in the container: one image may have taken the place of several, just before whoever
    /// did it was killed. Only of what is known here; whether anything was.
    pub(crate) fn follow(&mut self, lists: &BTreeMap<String, Vec<String>>) -> bool {
        let mut changed = false;
        for (date, dated) in &mut self.dates {
            let Some(there) = lists.get(date).filter(|there| **there != dated.layers) else { continue };
            let known = |name: &String| self.images.contains_key(name) || dated.layers.contains(name);
            if there.iter().all(known) && !mutant::active("the-record-follows-the-lists") {
                dated.layers.clone_from(there);
                changed = true;
            }
        }
        changed
    }

    /// Notes what `link-sync verify` found in the container, whose lists are `layered`: in each date, and in those that lie upon it.
    pub(crate) fn doubt(&mut self, found: &Value, layered: &BTreeMap<String, Vec<String>>) {
        if mutant::active("what-is-wrong-in-a-base-is-sent-again") {
            return;
        }
        let texts = |value: &Value| -> Vec<String> {
            value.as_array().into_iter().flatten().filter_map(|v| v.as_str().map(str::to_owned)).collect()
        };
        let mut doubted: BTreeMap<String, BTreeSet<Name>> = BTreeMap::new();
        for finding in found["findings"].as_array().into_iter().flatten() {
            let paths = texts(&finding["paths"]).into_iter().enumerate().filter(|(_, path)| path != ".");
            let names: Vec<Name> = paths
                .map(|(n, path)| Name {
                    path: unescaped(&path),
                    path_b64: finding["paths_b64"][n].as_str().map(str::to_owned),
                })
                .collect();
            // Of many dates the oldest are named.
            let named = texts(&finding["dates"]);
            let all = finding["dates_total"].as_u64().is_none_or(|total| total <= named.len() as u64);
            for date in if all { named } else { texts(&found["dates"]) } {
                doubted.entry(date).or_default().extend(names.iter().cloned());
            }
        }
        for (date, layers) in layered {
            for name in layers {
                let tree = name.strip_prefix("snapshots/").and_then(|name| name.strip_suffix('/'));
                if let Some(below) = tree.and_then(|tree| doubted.get(tree)).cloned() {
                    doubted.entry(date.clone()).or_default().extend(below);
                }
            }
        }
        for (date, paths) in doubted {
            self.anew.entry(date).or_default().paths.extend(paths);
        }
    }

    /// Forgets the dates that are not among `dates`, and the images that no date, and nothing that is on its way, has.
    pub(crate) fn retain(&mut self, dates: &[String]) {
        self.dates.retain(|date, _| dates.contains(date));
        self.kept = self.kept.take().filter(|kept| dates.contains(&kept.date));
        let layers = self.dates.values().flat_map(|dated| &dated.layers);
        let coming = self.unfinished.iter().flat_map(|u| &u.images);
        let merging = self.merging.iter().flat_map(|merging| merging.layers.iter().chain([&merging.by]));
        let needed: Vec<&String> = layers.chain(coming).chain(merging).collect();
        self.images.retain(|name, _| needed.contains(&name));
        self.damaged.retain(|name, _| needed.contains(&name));
        self.anew.retain(|date, _| dates.contains(date));
    }
}

/// A path that link-sync has escaped for people, as it is.
fn unescaped(text: &str) -> String {
    let mut out = String::new();
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if c != '\\' {
            out.push(c);
            continue;
        }
        match chars.next() {
            Some('n') => out.push('\n'),
            Some('r') => out.push('\r'),
            Some('t') => out.push('\t'),
            Some('u') => {
                let digits: String = chars.by_ref().skip(1).take_while(|c| *c != '}').collect();
                out.extend(u32::from_str_radix(&digits, 16).ok().and_then(char::from_u32));
            }
            Some(other) => out.push(other),
            None => {}
        }
    }
    out
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
        let lists =
            |names: &[&str]| [("2".to_owned(), names.iter().map(|n| (*n).to_owned()).collect())].into();
        assert!(!record.follow(&lists(&["x", "big/c"])) && !record.follow(&lists(&["b", "a", "big/c"])));
        let mut other = record.clone();
        assert!(other.follow(&lists(&["d", "big/c"])));
        other.retain(&["2".into()]);
        assert_eq!(other.images.keys().collect::<Vec<_>>(), ["d"]);
        record.kept = Some(Kept { date: "1".into(), ..Kept::default() });
        record.retain(&["1".into()]);
        assert!(record.kept.is_some());
        assert_eq!(record.images.keys().collect::<Vec<_>>(), ["a", "d"]);
        record.unfinished = None;
        record.retain(&[]);
        assert!(record.images.is_empty() && record.dates.is_empty() && record.kept.is_none());
        // Until the lists have the one image for sure, the hashes of all of them are known.
        record.merging = Some(Merging { by: "m".into(), layers: vec!["x".into(), "y".into()] });
        for name in ["m", "x", "y", "z"] {
            record.images.insert(name.into(), Image::default());
        }
        record.retain(&[]);
        assert_eq!(record.images.keys().collect::<Vec<_>>(), ["m", "x", "y"]);
        std::fs::write(dir.path().join(FILE), "{").unwrap();
        assert!(format!("{:#}", Record::load(dir.path(), "u").unwrap_err()).contains("is damaged"));
    }

    #[test]
    fn what_is_found_in_a_date_counts_for_those_that_lie_upon_it() {
        let mut record = Record::new("u");
        let layered = [("2".to_owned(), vec!["b".to_owned(), "snapshots/1/".to_owned()])].into();
        let odd = "it's\\a \"\n\u{7f}\u{301}";
        let shown = odd.escape_debug().to_string();
        let finding = json!({"dates": ["1"], "dates_total": 1, "paths": [shown, "x?"], "paths_total": 2,
            "paths_b64": [null, "eP8="]});
        record
            .doubt(&json!({"findings": [finding], "findings_total": 1, "dates": ["1", "2", "3"]}), &layered);
        let name =
            |path: &str, b64: Option<&str>| Name { path: path.into(), path_b64: b64.map(str::to_owned) };
        let paths = BTreeSet::from([name(odd, None), name("x?", Some("eP8="))]);
        let anew = Anew { paths };
        assert_eq!(record.anew, BTreeMap::from([("1".into(), anew.clone()), ("2".into(), anew)]));
        let many = json!({"dates": ["0"], "dates_total": 101, "paths": ["p"], "paths_total": 1});
        record.doubt(&json!({"findings": [many], "findings_total": 1, "dates": ["3"]}), &layered);
        assert_eq!(record.anew["3"], Anew { paths: [name("p", None)].into() });
        record.retain(&["2".into()]);
        assert_eq!(record.anew.keys().collect::<Vec<_>>(), ["2"]);
    }
}

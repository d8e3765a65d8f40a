//! The layout `layers` in the container: read-only squashfs images of what changed, and for each date the list of those that
//! show it. Done by a child of ours, which is asked on stdin and answers on stdout (see `inside.rs`).
//!
//! ```text
//! layers/images/DATE.sqfs, DATE.2.sqfs   made by `link-sync layer`; beside each, DATE.sqfs.json
//! layers/big/.big/SHA256                 contents that are too large for an image
//! layers/dates/DATE                      its images, newest first, and the large contents that they need
//! layers/dates/DATE.unfinished           those of a date that is on its way
//! ```
//! Nothing that has its name is ever written to.

mod alike;
mod ask;
pub(crate) mod below;
mod big;
pub(crate) mod checking;
mod dates;
mod images;
mod kept;
mod list;
mod making;
pub(crate) mod merging;
pub(crate) mod pruning;
pub(crate) mod record;
pub(crate) mod sending;
mod target;
mod upon;
mod view;

use std::collections::BTreeMap;
use std::fs::DirBuilder;
use std::io::{ErrorKind, Read as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use common::durable;
use serde::Deserialize;
use serde_json::{Value, json};

pub(crate) use ask::{ask, failed, full};
pub(crate) use dates::Told;
use list::{LARGE, Layer, List, TREES};
pub(crate) use making::Sizes;

/// The folder of it all, in the container.
const LAYERS: &str = "layers";
/// The images, below it.
const IMAGES: &str = "images";
/// The lowest layer of a date with large contents, below it.
const BIG: &str = "big";
/// The folder of these in that layer. Nobody sees it in a view.
const HIDDEN: &str = ".big";
/// The lists, below it.
const DATES: &str = "dates";

/// The longest request, in bytes: a list of all the images that an overlay takes, and of some 100,000 large contents.
const LONGEST: u64 = 16 << 20;

/// What is asked.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
enum Request {
    /// The dates and their images.
    Lists {},
    /// Copy an image, and what was told of it.
    Put(images::Coming),
    /// Copy a large content out of the store, or what of it is not as in one that lies here; `reserve` bytes stay free.
    PutBig {
        store: PathBuf,
        content: big::Content,
        like: Option<big::Content>,
        #[serde(default)]
        reserve: u64,
    },
    /// Tell the sizes of layers and large contents, by their names in a list: null for what is not there. Of those that are only to be
    /// `named`, true: through a slow link a folder is soon read, and what is in it is not.
    Look {
        layers: Vec<String>,
        #[serde(default)]
        named: Vec<String>,
    },
    /// Note which images a date that is on its way will have so far, before they are copied: so they are not swept out.
    Intend { date: String, layers: Vec<String> },
    /// The date is there.
    Publish { date: String, layers: Vec<String> },
    /// One image in the place of those that stand one after the other in lists.
    Replace { layers: Vec<String>, by: String },
    /// Tell what of the date would be seen otherwise if the image `by`, which lies on this machine, were in the place of `layers`.
    Compare { date: String, layers: Vec<String>, by: PathBuf, at: PathBuf },
    /// Take a date out, and the images that no other needs.
    Drop { date: String },
    /// Remove what no list needs.
    Sweep {},
    /// Read images and large contents by their names in a list, and compare them with the hashes that S2 knows, or null.
    Check { layers: Vec<(String, Option<String>)> },
    /// Show these dates, or all, below the folder `at`.
    Show { dates: Vec<String>, at: PathBuf },
    /// Take down whatever is shown below `at`.
    Hide { at: PathBuf },
}

/// Reads the request from stdin, and does it in the container mounted at `container`.
pub(crate) fn answer(container: &Path) -> Result<Vec<u8>> {
    let mut text = Vec::new();
    std::io::stdin().take(LONGEST).read_to_end(&mut text)?;
    let request = serde_json::from_slice(&text).context("the request is not understood")?;
    let top = container.join(LAYERS);
    let done = match request {
        Request::Lists {} => {
            let lists = dates::Lists::read(&top)?;
            let told = |lists: &[List]| -> Vec<Value> {
                lists.iter().map(|l| json!({"date": l.date, "layers": l.names()})).collect()
            };
            json!({"dates": told(&lists.dates), "unfinished": told(&lists.unfinished)})
        }
        Request::Put(coming) => {
            prepare(&top)?;
            json!({"copied": images::put(&top.join(IMAGES), &coming)?})
        }
        Request::Look { layers, named } => {
            let sizes =
                layers.iter().map(|name| Ok((name, json!(size(&Layer::parse(name)?.path(container))?))));
            let mut told = sizes.collect::<Result<BTreeMap<_, _>>>()?;
            if !named.is_empty() {
                let images = dates::names(&top.join(IMAGES))?;
                for name in &named {
                    told.insert(name, if images.contains(name) { true.into() } else { Value::Null });
                }
            }
            json!({"bytes": told})
        }
        Request::PutBig { store, content, like, reserve } => {
            prepare(&top)?;
            match big::put(&top.join(BIG).join(HIDDEN), &store, &content, like.as_ref(), reserve)? {
                big::Put::Was => json!({"copied": false, "patched_bytes": null}),
                big::Put::Copied => json!({"copied": true, "patched_bytes": null}),
                big::Put::Patched(bytes) => json!({"copied": true, "patched_bytes": bytes}),
            }
        }
        Request::Intend { date, layers } => {
            prepare(&top)?;
            json!({"changed": dates::intend(&top, &List::new(date, &layers)?)?})
        }
        Request::Publish { date, layers } => {
            json!({"changed": dates::publish(&top, &List::new(date, &layers)?)?})
        }
        Request::Replace { layers, by } => json!({"lists": dates::replace(&top, &layers, &by)?}),
        Request::Compare { date, layers, by, at } => {
            serde_json::to_value(view::compare(container, &date, &layers, &by, &at)?)?
        }
        Request::Drop { date } => {
            let changed = dates::drop_date(&top, &date)?;
            json!({"changed": changed, "removed": dates::sweep(&top)?})
        }
        Request::Sweep {} => json!({"removed": dates::sweep(&top)?}),
        Request::Check { layers } => {
            let mut wrong = Vec::new();
            for (name, sha256) in &layers {
                let why = match Layer::parse(name)? {
                    Layer::Image(image) => images::check(&top.join(IMAGES), &image, sha256.as_deref())?,
                    Layer::Big(hash) => images::check(&top.join(BIG).join(HIDDEN), &hash, sha256.as_deref())?,
                    Layer::Tree(date) => anyhow::bail!("{date} is a tree, which has no hash"),
                };
                wrong.extend(why.map(|why| json!({"layer": name, "why": why})));
            }
            json!({"wrong": wrong})
        }
        Request::Show { dates, at } => {
            let shown = view::show(container, &dates, &at)?;
            json!({"dates": shown.dates, "failed": shown.failed, "images": shown.images})
        }
        Request::Hide { at } => {
            let hidden = view::hide(&at)?;
            json!({"changed": hidden.changed, "held": hidden.held})
        }
    };
    Ok(serde_json::to_vec(&done)?)
}

/// The lists in the container mounted at `container`, but those of the dates `known`.
pub(crate) fn told(container: &Path, known: &[String]) -> Result<Told> {
    dates::Lists::told(&container.join(LAYERS), known)
}

/// How large it is; `None` if it is not there.
fn size(path: &Path) -> Result<Option<u64>> {
    match std::fs::symlink_metadata(path) {
        Ok(meta) => Ok(Some(if meta.is_dir() { 0 } else { meta.len() })),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e).with_context(|| format!("cannot look at {}", path.display())),
    }
}

/// Makes the folders, durably; refuses what only looks like them.
fn prepare(top: &Path) -> Result<()> {
    let big = top.join(BIG);
    for dir in [top, &top.join(IMAGES), &big, &big.join(HIDDEN), &top.join(DATES)] {
        match DirBuilder::new().mode(0o700).create(dir) {
            Ok(()) => durable::sync_dir(dir.parent().context("a folder without a parent")?)?,
            Err(e) if e.kind() == ErrorKind::AlreadyExists => {}
            Err(e) => return Err(e).with_context(|| format!("cannot make {}", dir.display())),
        }
        let meta = std::fs::symlink_metadata(dir)?;
        if !meta.is_dir() || meta.uid() != 0 || meta.mode() & 0o022 != 0 {
            anyhow::bail!("{} is not a folder that only root can write to", dir.display());
        }
    }
    Ok(())
}

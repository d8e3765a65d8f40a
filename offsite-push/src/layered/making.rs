//! Making an image here, before it is sent: `link-sync layer`, into a folder of S2's own.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use base64::Engine as _;
use common::fault::Fault;
use common::profile::Bytes;
use common::{durable, places, say};
use nix::sys::statvfs::statvfs;
use serde::Deserialize;

use super::list::is_image;
use super::record::Big;
use crate::settings::Settings;
use crate::siblings::{Call, Siblings, option};
use crate::{TOOL, tell};

/// The most contents of one image: what is lost of time if it has to be made again, and what a night has to be long enough for.
const MOST: u64 = 2 << 30;
/// The least: link-sync puts larger files beside.
const LEAST: u64 = 64 << 20;
/// For what an image has besides contents, and for who else writes to that disk.
const SPARE: u64 = 192 << 20;

/// Other sizes than the usual ones.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Sizes {
    /// The most contents of one image.
    pub(crate) image: Option<Bytes>,
    /// From here on a content lies beside the images.
    pub(crate) big: Option<Bytes>,
}

/// Where images lie until they are sent.
#[derive(Debug)]
pub(super) struct Workshop {
    dir: PathBuf,
}

/// What is to be made.
#[derive(Debug)]
pub(super) struct Order<'o> {
    pub(super) date: &'o str,
    pub(super) base: Option<&'o str>,
    /// What lies beside the base's images.
    pub(super) base_big: Option<&'o [Big]>,
    /// The last path of the image before it.
    pub(super) after: Option<Vec<u8>>,
    pub(super) sizes: Sizes,
}

/// What link-sync has noted beside the image.
#[derive(Debug, Deserialize)]
pub(super) struct Facts {
    pub(super) id: String,
    pub(super) image_bytes: u64,
    pub(super) sha256: String,
    pub(super) plan_sha256: String,
    pub(super) names_sha256: String,
    pub(super) paths: u64,
    pub(super) content_bytes: u64,
    pub(super) big: Vec<Big>,
    pub(super) base_big: Option<Vec<Big>>,
    last: Option<String>,
    last_b64: Option<String>,
}

impl Facts {
    /// The last path in it, if more is to follow; base64.
    pub(super) fn last(&self) -> Option<String> {
        let encode = |text: &String| base64::engine::general_purpose::STANDARD.encode(text);
        self.last_b64.clone().or_else(|| self.last.as_ref().map(encode))
    }
}

impl Workshop {
    /// The folder; what lies there of images that are not `kept` is removed.
    pub(super) fn open(settings: &Settings, kept: Option<&String>) -> Result<Workshop> {
        let dir = match &settings.profile.offsite.image_dir {
            Some(dir) => dir.clone(),
            None => settings.state.join("layers"),
        };
        let workshop = Workshop { dir: places::private_dir(&dir)? };
        let context = || format!("cannot clear {}", dir.display());
        for entry in std::fs::read_dir(&dir).with_context(context)? {
            let entry = entry.with_context(context)?;
            let name = entry.file_name();
            let Some(name) = name.to_str() else { continue };
            // Also what link-sync was about to make.
            let of = name.strip_prefix('.').unwrap_or(name);
            let of =
                [".partial", ".new", ".json"].iter().fold(of, |of, end| of.strip_suffix(end).unwrap_or(of));
            let whole = !name.starts_with('.');
            if is_image(of) && !(whole && kept.is_some_and(|kept| kept == of)) {
                std::fs::remove_file(entry.path()).with_context(context)?;
            }
        }
        Ok(workshop)
    }

    /// The file of an image.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn beside(&self, name: &str) -> PathBuf {
        self.dir.join(format!("{name}.json"))
    }

    /// Whether the image is here, whole, and still to be sent.
    pub(super) fn has(&self, name: &str) -> bool {
        self.path(name).exists() && self.beside(name).exists()
    }

    /// What was noted of an image that is here.
    pub(super) fn facts(&self, name: &str) -> Result<Facts> {
        let path = self.beside(name);
        let text = durable::read(&path)?.with_context(|| format!("{} is not there", path.display()))?;
        serde_json::from_slice(&text).with_context(|| format!("{} is damaged", path.display()))
    }

    /// Makes the image; whether all of it could be stored.
    pub(super) fn make(&self, siblings: &mut Siblings, name: &str, order: &Order) -> Result<bool> {
        let most = order.sizes.image.map_or(MOST, |image| image.0).min(self.room()?);
        self.remove(name)?;
        say!(TOOL, "making {name}");
        let store = siblings.settings.store()?;
        let mut args: Vec<OsString> = [
            option("--store", store),
            option("--date", order.date),
            option("--to", self.path(name)),
            option("--most-bytes", most.to_string()),
        ]
        .into_iter()
        .flatten()
        .collect();
        args.extend(order.sizes.big.iter().flat_map(|big| option("--big-bytes", big.0.to_string())));
        args.extend(order.base.into_iter().flat_map(|base| option("--base", base)));
        args.extend(order.after.iter().flat_map(|after| option("--after", OsStr::from_bytes(after))));
        let list = self.dir.join(".base-big.json");
        if let Some(big) = order.base_big.filter(|big| !big.is_empty() && order.after.is_none()) {
            durable::write(&list, &serde_json::to_vec(big)?, 0o600)?;
            args.extend(option("--base-big", &list));
        }
        let call = Call {
            step: "layer",
            tool: "link-sync",
            action: "layer",
            args: &args,
            limit: None,
            cleanup: false,
        };
        let answer = siblings.run(&call)?.checked();
        gone(&list)?;
        Ok(answer?.code == 0)
    }

    /// It has been sent.
    pub(super) fn remove(&self, name: &str) -> Result<()> {
        gone(&self.path(name))?;
        gone(&self.beside(name))
    }

    /// How many bytes of contents an image may have.
    fn room(&self) -> Result<u64> {
        let vfs = statvfs(&self.dir).with_context(|| format!("cannot ask {}", self.dir.display()))?;
        let free = vfs.blocks_available().saturating_mul(vfs.fragment_size());
        let most = free.saturating_sub(SPARE).min(MOST);
        if most >= LEAST || common::mutant::active("an-image-needs-room-here") {
            return Ok(most.max(LEAST));
        }
        let message = format!(
            "no room to make an image in {}: {} are free, and {} are needed",
            self.dir.display(),
            tell::bytes(free),
            tell::bytes(LEAST + SPARE)
        );
        Err(Fault::failed(message)
            .hint("make room there, or name a folder on another disk: image_dir in [offsite], root's and of mode 0700")
            .into())
    }
}

/// Removes it, if it is there.
fn gone(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
            Err(e).with_context(|| format!("cannot remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

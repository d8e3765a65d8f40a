//! The view's folder: where dates that lie in the container as layers are shown (`layered/view.rs`), by a child, and hidden first of
//! all when anything is taken down, as they hold the container.

use std::collections::BTreeMap;
use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use common::mounts;
use common::progress::Sources;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::generation::Content;
use crate::inside;
use crate::settings::Settings;

/// How long unmounting may take, which asks nobody: what it waits for is S3, which is silent then.
const HIDING: Duration = Duration::from_secs(60);

/// What was shown, as the child tells it.
#[derive(Debug, Deserialize)]
pub(crate) struct Shown {
    /// The dates that can be seen, of those asked for.
    pub(crate) dates: Vec<String>,
    /// Why the others cannot.
    pub(crate) failed: BTreeMap<String, String>,
    /// How many images were mounted.
    images: u64,
    /// What it cost; `None` if it was not measured.
    #[serde(skip)]
    cost: Option<(Duration, Option<u64>)>,
}

impl Shown {
    /// For the report.
    pub(crate) fn describe(&self) -> Value {
        let cost = self.cost.unwrap_or_default();
        json!({"dates": self.dates, "failed": self.failed, "images": self.images,
            "duration_ms": u64::try_from(cost.0.as_millis()).unwrap_or(u64::MAX), "link_bytes": cost.1})
    }
}

#[derive(Deserialize)]
struct Hidden {
    changed: bool,
    held: Option<String>,
}

/// How hiding has ended.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Ended {
    /// Nothing was shown.
    Nothing,
    /// Nothing is shown any more.
    Hidden,
    /// Somebody uses it: who.
    Held(String),
}

/// The view's folder.
fn folder(settings: &Settings) -> PathBuf {
    settings.runtime.join("view")
}

/// The folder of the dates, as link-sync takes it for a store: the container's own one unless there are dates that have to be shown.
pub(crate) fn store(settings: &Settings, content: &Content) -> PathBuf {
    match content.has_layers() {
        false => common::offsite::store(&settings.container),
        true => folder(settings).join("snapshots"),
    }
}

/// Whether anything is mounted there. Nothing is touched.
pub(crate) fn is_up(settings: &Settings) -> Result<bool> {
    let folder = folder(settings);
    let folder = match (settings.runtime.canonicalize(), folder.file_name()) {
        (Ok(runtime), Some(name)) => runtime.join(name),
        _ => return Ok(false),
    };
    Ok(mounts::table()?.iter().any(|m| m.target != folder && m.target.starts_with(&folder)))
}

/// Shows `dates`, or all if there are none, in the open container.
pub(crate) fn show(settings: &Settings, dates: &[String]) -> Result<Shown> {
    let at = folder(settings);
    match DirBuilder::new().mode(0o700).create(&at) {
        Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => {
            return Err(e).with_context(|| format!("cannot make {}", at.display()));
        }
        _ => {}
    }
    let sources = Sources { wire: Some(settings.runtime.join("s3.wire")), ..Sources::default() };
    let (before, begun) = (sources.look().wire, Instant::now());
    let request = json!({"show": {"dates": dates, "at": at}});
    let answer = inside::layers(&settings.container, settings.patience, &request)?;
    let mut shown: Shown = serde_json::from_value(answer).context("the answer about the view is damaged")?;
    let bytes = before.zip(sources.look().wire).map(|(before, now)| now.saturating_sub(before));
    shown.cost = Some((begun.elapsed(), bytes));
    Ok(shown)
}

/// Takes down whatever is shown. Signals do not stop it, time does.
pub(crate) fn hide(settings: &Settings) -> Result<Ended> {
    if !is_up(settings)? {
        return Ok(Ended::Nothing);
    }
    let request = json!({"hide": {"at": folder(settings)}});
    let answer = inside::layers_at_the_end(&settings.container, HIDING, &request)?;
    let hidden: Hidden = serde_json::from_value(answer).context("the answer about the view is damaged")?;
    Ok(match hidden.held {
        Some(who) => Ended::Held(who),
        None if hidden.changed => Ended::Hidden,
        None => Ended::Nothing,
    })
}

//! `link-sync profile`, for the scripts: what the profile says, as it is written and as it is meant.
//!
//! A script cannot read TOML; and what a profile says is validated in one place. Values of secrets are not in it, as they
//! are not in the profile.

use anyhow::Result;
use common::places;
use common::status::Report;
use serde_json::json;

use crate::cli;
use crate::settings::{Place, parse_place};

/// Does it.
pub fn profile(named: &cli::Profile, report: &mut Report) -> Result<()> {
    let profile = named.options().load_profile()?;
    report.set("file", profile.file.as_deref().map(|f| f.to_string_lossy()));
    report.set("profile", profile.written()?);
    let path = |dir: std::path::PathBuf| dir.display().to_string();
    report.set("state_dir", path(places::state(&profile)?));
    let place = named.store.as_ref().or(profile.snapshot.store.as_ref());
    let local = match place.map(|text| parse_place(text)).transpose()? {
        Some(Place::Local(store)) => Some(store),
        Some(Place::Ssh { .. }) => None,
        None => profile.store.as_ref().map(|store| store.path.clone()),
    };
    report.set("has_store", place.is_some() || local.is_some());
    report.set("local_store", json!(local.map(path)));
    report.set("has_offsite", profile.offsite.luks.is_some());
    report.set("nextcloud_root", json!(profile.nextcloud.as_ref().map(|n| path(n.root.clone()))));
    report.set("notify", serde_json::to_value(&profile.notify)?);
    report.set("metrics", serde_json::to_value(&profile.metrics)?);
    Ok(())
}

//! `link-sync settings`, for the scripts: what the profile says that only they need, as JSON.
//!
//! A script cannot read TOML; and what a profile says is validated in one place. Values of secrets are not in it, as they
//! are not in the profile.

use anyhow::Result;
use common::places;
use common::status::Report;
use serde_json::json;

use crate::cli::Settings;
use crate::settings::{Place, parse_place};

/// Does it.
pub fn settings(args: &Settings, report: &mut Report) -> Result<()> {
    let profile = args.profile.options().load_profile()?;
    let path = |dir: std::path::PathBuf| dir.display().to_string();
    report.set("state_dir", path(places::state(&profile)?));
    let named = args.profile.store.as_ref().or(profile.snapshot.store.as_ref());
    let local = match named.map(|text| parse_place(text)).transpose()? {
        Some(Place::Local(store)) => Some(store),
        Some(Place::Ssh { .. }) => None,
        None => profile.store.as_ref().map(|store| store.path.clone()),
    };
    report.set("has_store", named.is_some() || local.is_some());
    report.set("local_store", json!(local.map(path)));
    report.set("has_offsite", profile.offsite.luks.is_some());
    report.set("nextcloud_root", json!(profile.nextcloud.as_ref().map(|n| path(n.root.clone()))));
    report.set("notify", serde_json::to_value(&profile.notify)?);
    report.set("metrics", serde_json::to_value(&profile.metrics)?);
    Ok(())
}

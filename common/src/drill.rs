//! The record of the last rehearsal: `drill.json` in the state folder.
//!
//! `pg-snap verify --record` writes it, `link-sync list` shows it.

use std::path::Path;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use crate::durable;

/// Its name in the state folder.
pub const FILE: &str = "drill.json";

/// How the last rehearsal went. Keys are only ever added.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct DrillRecord {
    /// RFC 3339 UTC: when it ended.
    pub at: String,
    /// Whether everything came back, and fitted.
    pub ok: bool,
    /// The snapshot's date, or the dump's if there was no snapshot.
    pub date: Option<String>,
    /// What did not fit; `None` if it did not come to the comparison.
    pub findings: Option<u64>,
    /// Files whose content would be lost or cut.
    pub lost_files: Option<u64>,
    /// Bytes of them.
    pub lost_bytes: Option<u64>,
    /// Why it failed, in a sentence.
    pub error: Option<String>,
}

impl DrillRecord {
    /// The record in `path`, if there is one.
    pub fn load(path: &Path) -> Result<Option<DrillRecord>> {
        let Some(bytes) = durable::read(path)? else { return Ok(None) };
        serde_json::from_slice(&bytes).map(Some).with_context(|| format!("{} is damaged", path.display()))
    }

    /// Writes it to `path`; durable on return.
    pub fn save(&self, path: &Path) -> Result<()> {
        durable::write(path, &serde_json::to_vec(self)?, 0o600)
    }
}

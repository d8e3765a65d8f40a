//! `.meta/snapshot.json`: what a snapshot says of itself.

use std::path::Path;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

/// A published snapshot. Keys are only ever added.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct SnapshotMeta {
    /// 1
    pub schema: u32,
    /// 32 random hexadecimal digits.
    pub id: String,
    /// Its name: UTC by the store's clock, `2026-11-22T03-30-00Z`.
    pub date: String,
    /// The snapshot it shares unchanged files with.
    pub base_id: Option<String>,
    /// That one's name.
    pub base_date: Option<String>,
    /// The maintenance run it was sealed in.
    pub run_id: Option<String>,
    /// How far its parts belong together.
    pub consistency: Consistency,
    /// When staging began, by the source's clock.
    pub started_at: String,
    /// When it became durable, by the store's clock.
    pub published_at: String,
    /// link-sync's version.
    pub tool_version: String,
    /// Owners are kept in an attribute (rsync's fake-super).
    pub fake_super: bool,
    /// Its sources.
    pub sources: Vec<SourceMeta>,
}

/// What a snapshot promises about time.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Consistency {
    /// Nextcloud was in maintenance when the last changes were taken.
    Sealed,
    /// Taken while things went on, as after a crash.
    CrashConsistent,
}

/// One source of a snapshot.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct SourceMeta {
    /// Its folder in the snapshot.
    pub name: String,
    /// Where it was, escaped as in a Rust byte string if not plain ASCII.
    pub path: String,
    /// Its file system.
    pub fs_id: Option<String>,
    /// Mount points in it.
    pub submounts: Vec<String>,
    /// Paths in it.
    pub paths: u64,
    /// Sum of its files' sizes.
    pub bytes: u64,
}

impl SnapshotMeta {
    /// Reads the one in the snapshot folder `dir`.
    pub fn load(dir: &Path) -> Result<SnapshotMeta> {
        let file = dir.join(super::META).join("snapshot.json");
        let text = std::fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
        serde_json::from_slice(&text).with_context(|| format!("{} is damaged", file.display()))
    }

    /// Its source called `name`.
    pub fn source(&self, name: &str) -> Option<&SourceMeta> {
        self.sources.iter().find(|s| s.name == name)
    }
}

/// The form of the dates.
pub const DATE_FORMAT: &str = "%Y-%m-%dT%H-%M-%SZ";

/// Whether `name` has the form of a date.
pub fn is_date(name: &str) -> bool {
    name.len() == 20 && jiff::civil::DateTime::strptime(DATE_FORMAT, name).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        assert!(is_date("2026-11-22T03-30-00Z"));
        for not in
            ["2026-11-22T03:30:00Z", "2026-13-22T03-30-00Z", "latest", ".partial", "2026-11-22T03-30-00Z.old"]
        {
            assert!(!is_date(not), "{not}");
        }
    }
}

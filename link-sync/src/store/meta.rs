//! `.meta/snapshot.json`: what a snapshot says of itself.

use std::fs::File;
use std::io::Read as _;

use anyhow::{Context as _, Result};
use common::mutant;
use serde::{Deserialize, Deserializer, Serialize};

use super::beneath::open_file;
use super::layout::META;

/// More bytes than a description has.
pub const LONGEST: usize = 1 << 20;

/// A published snapshot. Keys are only ever added.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct SnapshotMeta {
    /// 1
    pub schema: u32,
    /// 32 random hexadecimal digits.
    pub id: String,
    /// Its name: UTC by the store's clock, `2026-11-22T03-30-00Z`. Nothing else gets in here, whoever described it.
    #[serde(deserialize_with = "date")]
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
    /// Its checksums; a snapshot made before there were any has none.
    #[serde(default)]
    pub manifest: Option<Manifest>,
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
    /// Where it lies in that file system, whatever that was mounted on: tells a bind mount from the folder under it.
    #[serde(default)]
    pub fs_path: Option<String>,
    /// The inode number of its folder.
    #[serde(default)]
    pub inode: Option<u64>,
    /// What something was mounted on in it, and where other file systems begin.
    pub submounts: Vec<String>,
    /// Paths in it.
    pub paths: u64,
    /// Sum of its files' sizes.
    pub bytes: u64,
}

/// One file of a manifest.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct FileDigest {
    /// Hexadecimal.
    pub sha256: String,
    /// Its size.
    pub bytes: u64,
}

/// What `snapshot.json` says of the manifests.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct Manifest {
    /// Of `.meta/sha256sums`.
    pub sha256sums: FileDigest,
    /// Of `.meta/mtree`.
    pub mtree: FileDigest,
}

impl SnapshotMeta {
    /// Reads the one of `date` in the opened `store`, and its text. The store may be another account's, which may have
    /// put anything there: links are not followed, nothing but a file is read, and not much of that. The folder's name
    /// is its date, whatever date is written in it: a person may have put a wrong clock right.
    pub fn load(store: &File, date: &str) -> Result<(SnapshotMeta, String)> {
        let path = format!("{date}/{}/snapshot.json", META);
        let file = open_file(store, &path).with_context(|| format!("cannot open {path}"))?;
        let mut text = String::new();
        file.take(LONGEST as u64).read_to_string(&mut text).with_context(|| format!("cannot read {path}"))?;
        let mut meta: SnapshotMeta =
            serde_json::from_str(&text).with_context(|| format!("{path} is damaged"))?;
        if !mutant::active("a-snapshot-names-itself") {
            date.clone_into(&mut meta.date);
        }
        Ok((meta, text))
    }

    /// Its source called `name`.
    pub fn source(&self, name: &str) -> Option<&SourceMeta> {
        self.sources.iter().find(|s| s.name == name)
    }
}

pub use common::dates::{FORMAT as DATE_FORMAT, is_date};

/// A date and nothing else: it becomes the name of a folder.
fn date<'de, D: Deserializer<'de>>(from: D) -> Result<String, D::Error> {
    let text = String::deserialize(from)?;
    match is_date(&text) || mutant::active("a-date-is-any-text") {
        true => Ok(text),
        false => Err(serde::de::Error::custom(format!("'{}' is not a snapshot's date", text.escape_debug()))),
    }
}

/// The moment that the name of a snapshot says.
pub fn taken(date: &str) -> Result<jiff::Timestamp> {
    common::dates::moment(date).with_context(|| format!("'{date}' is not a snapshot's date"))
}

/// The latest moment that is no date of the future: clocks differ by less, and are set back by less.
pub fn tomorrow() -> jiff::Timestamp {
    jiff::Timestamp::now()
        .saturating_add(jiff::SignedDuration::from_hours(24))
        .unwrap_or(jiff::Timestamp::MAX)
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

    #[test]
    fn a_snapshot_has_the_date_that_its_folder_is_called_and_none_that_leads_elsewhere() {
        let dir = tempfile::tempdir().unwrap();
        let name = "2026-11-22T03-30-00Z";
        std::fs::create_dir_all(dir.path().join(name).join(".meta")).unwrap();
        let load = |date: &str| {
            let text = serde_json::json!({
                "schema": 1, "id": "", "date": date, "base_id": null, "base_date": null, "run_id": null,
                "consistency": "sealed", "started_at": "", "published_at": "", "tool_version": "", "fake_super": false,
                "sources": [],
            });
            std::fs::write(dir.path().join(name).join(".meta/snapshot.json"), text.to_string()).unwrap();
            SnapshotMeta::load(&File::open(dir.path()).unwrap(), name)
        };
        assert_eq!(load(name).unwrap().0.date, name);
        // Renamed by somebody whose clock had been wrong.
        assert_eq!(load("2099-11-22T03-30-00Z").unwrap().0.date, name);
    }

    #[test]
    fn a_description_whose_date_is_a_path_is_damaged_wherever_it_is_read() {
        for date in ["../../etc", "..", "", "/", "latest", "2026-11-22T03-30-00Z/..", "2026-11-22"] {
            let text = serde_json::json!({
                "schema": 1, "id": "", "date": date, "base_id": null, "base_date": null, "run_id": null,
                "consistency": "sealed", "started_at": "", "published_at": "", "tool_version": "", "fake_super": false,
                "sources": [],
            });
            assert!(serde_json::from_value::<SnapshotMeta>(text).is_err(), "{date}");
        }
    }
}

//! What is remembered of a mount: `s3.json` in the runtime folder, from its beginning until unmount.

use std::path::PathBuf;

use anyhow::Result;
use common::durable;
use common::processes::Identity;
use serde::{Deserialize, Serialize};

use crate::settings::Settings;

/// The content of `s3.json`.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub(crate) struct Record {
    /// The sshfs that serves it.
    #[serde(flatten)]
    pub(crate) server: Identity,
    /// `user@host:dir`.
    pub(crate) source: String,
    /// Where.
    pub(crate) mount_point: PathBuf,
    /// RFC 3339 UTC.
    pub(crate) since: String,
    /// Upload limit.
    pub(crate) bwlimit_bytes: Option<u64>,
    /// Whether a sync reaches S3's disk, if that could be found out.
    #[serde(default)]
    pub(crate) fsync: Option<bool>,
}

impl Record {
    fn path(settings: &Settings) -> PathBuf {
        settings.runtime.join("s3.json")
    }

    /// The record of this mount point. One that is damaged is as good as none: what it says can be found out. So is one of
    /// another boot, where the runtime folder survives that: nothing of what it names is there any more.
    pub(crate) fn load(settings: &Settings) -> Option<Record> {
        let bytes = durable::read(&Record::path(settings)).ok()??;
        let record: Record = serde_json::from_slice(&bytes).ok()?;
        (record.mount_point == settings.mount_point && record.server.is_of_this_boot()).then_some(record)
    }

    /// Writes it.
    pub(crate) fn save(&self, settings: &Settings) -> Result<()> {
        durable::write(&Record::path(settings), &serde_json::to_vec(self)?, 0o600)
    }

    /// Removes it; fine if there is none.
    pub(crate) fn remove(settings: &Settings) -> Result<()> {
        durable::remove(&Record::path(settings)).map(drop)
    }
}

//! What S3's server promised when it was last mounted, for `status`, which mounts nothing.
//! Kept in `offsite.s3.json` in the state folder.

use std::path::PathBuf;

use anyhow::Result;
use common::durable;
use common::status::now;
use serde::{Deserialize, Serialize};

use crate::settings::Settings;

/// The content of the file.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub(crate) struct Promise {
    /// 1
    schema: u32,
    /// What is synced reaches its disk.
    pub(crate) fsync: bool,
    /// When it was asked, RFC 3339 UTC.
    pub(crate) at: String,
}

fn path(settings: &Settings) -> PathBuf {
    settings.state.join("offsite.s3.json")
}

impl Promise {
    /// Notes it; durable on return.
    pub(crate) fn save(settings: &Settings, fsync: bool) -> Result<()> {
        let promise = Promise { schema: 1, fsync, at: now() };
        durable::write(&path(settings), &serde_json::to_vec(&promise)?, 0o600)
    }

    /// What was noted. A damaged one is as good as none: the next mount asks again.
    pub(crate) fn load(settings: &Settings) -> Option<Promise> {
        settings.s3.as_ref()?;
        serde_json::from_slice(&durable::read(&path(settings)).ok()??).ok()
    }
}

//! The run record: which run switched maintenance on, how, and until when.
//!
//! nc-maint writes it after the switch was proven, and removes it before switching off; neither waits for the
//! disk, as Nextcloud is down meanwhile. One that a power cut emptied reads as damaged, which is not "no run".
//! `off --if-ours`, the guardian, a boot unit, `link-sync settle` and `pg-snap dump` read it.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use crate::fault::Fault;
use crate::profile::Profile;
use crate::{durable, places};

/// The content of `maintenance.json` in the state folder.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub struct RunRecord {
    /// 32 hexadecimal digits, drawn at random for each `on` or `run`.
    pub run_id: String,
    /// RFC 3339 UTC: when the switch was proven.
    pub since: String,
    /// `occ`, …
    pub method: String,
    /// RFC 3339 UTC: when maintenance ends by itself at the latest; `None` for a plain `on`.
    pub deadline: Option<String>,
    /// The process that answers for it; `None` for a plain `on`.
    pub pid: Option<u32>,
}

impl RunRecord {
    /// Where the record of `profile` is.
    pub fn path(profile: &Profile) -> Result<PathBuf> {
        Ok(places::state(profile)?.join("maintenance.json"))
    }

    /// The record, if there is one. One that cannot be read is an error: it is not "no run".
    pub fn load(profile: &Profile) -> Result<Option<RunRecord>> {
        RunRecord::load_from(&RunRecord::path(profile)?)
    }

    /// [`RunRecord::load`] from a given file.
    pub fn load_from(path: &Path) -> Result<Option<RunRecord>> {
        let Some(bytes) = durable::read(path)? else { return Ok(None) };
        Ok(Some(serde_json::from_slice(&bytes).map_err(|e| {
            Fault::failed(format!("the run record {} is damaged: {e}", path.display()))
                .hint("`nc-maint off` switches maintenance off and removes it")
        })?))
    }

    /// Writes it.
    pub fn save(&self, path: &Path) -> Result<()> {
        durable::write_soon(path, &serde_json::to_vec(self)?, 0o600)
    }

    /// Removes it; fine if there is none.
    pub fn remove(path: &Path) -> Result<()> {
        durable::remove(path).map(drop).context("cannot remove the run record")
    }
}

/// Milliseconds since this machine was started: what tells the order of steps of one run, whatever is done to the clock.
pub fn uptime_ms() -> Result<u64> {
    let now =
        nix::time::clock_gettime(nix::time::ClockId::CLOCK_BOOTTIME).context("cannot ask for the time")?;
    Ok(u64::try_from(std::time::Duration::from(now).as_millis()).unwrap_or(u64::MAX))
}

/// 32 hexadecimal digits from the kernel's random source.
pub fn random_id() -> Result<String> {
    use std::io::Read as _;
    let mut bytes = [0u8; 16];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut f| f.read_exact(&mut bytes))
        .context("cannot read /dev/urandom")?;
    Ok(bytes.iter().map(|b| format!("{b:02x}")).collect())
}

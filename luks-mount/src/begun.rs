//! Which loop device we made, and what it had counted by then: `container.loop.json` in the runtime folder.
//!
//! A loop device keeps counting when it is used again. And when the image's file system is gone, its path no longer
//! tells whose it is; the number the kernel gives to each use does. These numbers begin anew with each boot, and the folder
//! may survive one: so the boot is noted, too, and what was made before it is nobody's.

use std::path::PathBuf;

use anyhow::Result;
use common::{durable, mutant, processes};
use serde::{Deserialize, Serialize};

use crate::losetup::Loop;
use crate::settings::Settings;

/// The content of the file.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub(crate) struct Begun {
    device: String,
    diskseq: u64,
    read_bytes: u64,
    written_bytes: u64,
    #[serde(default)]
    boot_id: Option<String>,
}

fn path(settings: &Settings) -> PathBuf {
    settings.runtime.join("container.loop.json")
}

impl Begun {
    /// Remembers a loop device made a moment ago. Without it, less can be told: no more than that.
    pub(crate) fn save(settings: &Settings, device: &Loop) -> Result<()> {
        let (Some(diskseq), Some((read_bytes, written_bytes))) = (device.diskseq, device.traffic()) else {
            return Ok(());
        };
        let boot_id = processes::boot_id();
        let begun = Begun { device: device.name.clone(), diskseq, read_bytes, written_bytes, boot_id };
        durable::write(&path(settings), &serde_json::to_vec(&begun)?, 0o600)
    }

    /// What was remembered, if it can be read.
    pub(crate) fn load(settings: &Settings) -> Option<Begun> {
        serde_json::from_slice(&durable::read(&path(settings)).ok()??).ok()
    }

    /// Forgets it.
    pub(crate) fn forget(settings: &Settings) {
        // What stays is of a use that is over, and is never taken for another.
        drop(std::fs::remove_file(path(settings)));
    }

    /// Whether this is the use of `device` that was remembered.
    pub(crate) fn is(&self, device: &Loop) -> bool {
        let same_use = self.device == device.name && device.diskseq == Some(self.diskseq);
        let this_boot = mutant::active("a-loop-of-another-boot-counts");
        same_use && (this_boot || processes::is_this_boot(self.boot_id.as_deref()))
    }

    /// Bytes read and written through `device` since then.
    pub(crate) fn traffic(&self, device: &Loop) -> Option<(u64, u64)> {
        let (read, written) = device.traffic().filter(|_| self.is(device))?;
        Some((read.saturating_sub(self.read_bytes), written.saturating_sub(self.written_bytes)))
    }
}

//! What the disk below the image, the image and the container say of their room.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use nix::sys::statvfs::statvfs;
use serde::{Deserialize, Serialize};

/// All of it in bytes.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
pub(crate) struct Disk {
    /// The disk's size; 0 if it does not say.
    pub(crate) total: u64,
    /// Free there for everybody, and for root only.
    pub(crate) unused: u64,
    /// Free there for the account that writes.
    pub(crate) free: u64,
    /// The image's size.
    pub(crate) image: u64,
    /// How much of it has a place on the disk; through sftp always all.
    pub(crate) allocated: u64,
    /// In use in the container.
    pub(crate) filled: u64,
}

impl Disk {
    /// Asks. For a child: it may have to wait for ever.
    pub(crate) fn ask(image: &Path, container: &Path) -> Result<Disk> {
        let file = std::fs::metadata(image).with_context(|| format!("cannot look at {}", image.display()))?;
        let ask = |path: &Path| statvfs(path).with_context(|| format!("cannot ask {}", path.display()));
        let (disk, inside) = (ask(image)?, ask(container)?);
        let unit = disk.fragment_size();
        let used = inside.blocks().saturating_sub(inside.blocks_free());
        Ok(Disk {
            total: disk.blocks().saturating_mul(unit),
            unused: disk.blocks_free().saturating_mul(unit),
            free: disk.blocks_available().saturating_mul(unit),
            image: file.len(),
            allocated: file.blocks().saturating_mul(512),
            filled: used.saturating_mul(inside.fragment_size()),
        })
    }

    /// What a server says that does not know: nothing, or sshfs' stand-in for it, a disk on which nothing is stored,
    /// not even our image.
    pub(crate) fn is_unknown(&self) -> bool {
        self.total == 0 || self.unused >= self.total
    }

    /// How much the image can grow: at least and at most.
    pub(crate) fn holes(&self, remote: bool) -> (u64, u64) {
        if remote {
            (self.image.saturating_sub(self.total.saturating_sub(self.unused)), self.image)
        } else {
            let holes = self.image.saturating_sub(self.allocated);
            (holes, holes)
        }
    }
}

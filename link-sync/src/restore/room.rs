//! Whether what is to come fits beside what is there.

use std::fs::File;
use std::os::unix::fs::MetadataExt as _;

use anyhow::{Context as _, Result};
use common::fault::Fault;

use super::item::Item;
use crate::store::visit;

/// Bytes that stay free.
const RESERVE: u64 = 64 << 20;

/// Refuses before anything is copied if it would not fit beside what is there. `arrived` is what an interrupted run
/// left of each item, and whether that was all.
pub fn room(items: &[Item], arrived: &[Option<(File, bool)>]) -> Result<()> {
    let mut needs: Vec<(u64, &Item, u64, u64)> = Vec::new();
    for (item, arrived) in items.iter().zip(arrived) {
        let (mut bytes, mut inodes) = (0, 0);
        if let Some((new, false)) = arrived {
            visit::each(new, |found| {
                let stat = nix::sys::stat::fstatat(
                    found.parent,
                    found.name,
                    nix::fcntl::AtFlags::AT_SYMLINK_NOFOLLOW,
                )?;
                bytes += u64::try_from(stat.st_blocks).unwrap_or(0) * 512;
                inodes += 1;
                Ok(())
            })?;
        }
        let (bytes, inodes) = match arrived {
            Some((_, true)) => (0, 0),
            _ => (item.looked.bytes.saturating_sub(bytes), item.looked.paths.saturating_sub(inodes)),
        };
        let dev = item.home.metadata()?.dev();
        match needs.iter_mut().find(|n| n.0 == dev) {
            Some(known) => {
                (known.2, known.3) = (known.2.saturating_add(bytes), known.3.saturating_add(inodes));
            }
            None => needs.push((dev, item, bytes, inodes)),
        }
    }
    for (_, item, bytes, inodes) in needs {
        let stat = nix::sys::statvfs::fstatvfs(&item.home).context("cannot ask for the free room")?;
        let free = stat.blocks_available().saturating_mul(stat.fragment_size());
        let shown = item.home_shown.display();
        if bytes > 0 && free < bytes.saturating_add(RESERVE) {
            return Err(Fault::failed(format!("not enough room for {shown}: {bytes} bytes are to come, and {RESERVE} stay free; there are {free}"))
                .hint("what is replaced is kept until all has succeeded, so both must fit: make room, or restore elsewhere with --to")
                .into());
        }
        if stat.files() != 0 && stat.files_available() < inodes {
            let free = stat.files_available();
            return Err(Fault::failed(format!(
                "not enough inodes for {shown}: {inodes} are needed, {free} are free"
            ))
            .hint("use a file system that was made with more, or restore elsewhere with --to")
            .into());
        }
    }
    Ok(())
}

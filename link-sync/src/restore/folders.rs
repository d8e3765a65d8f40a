//! What a restore asks of a folder: what a name in it is, whether its file system can be relied on, its times.

use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::ffi::OsStrExt as _;

use anyhow::{Context as _, Result};
use nix::errno::Errno;
use nix::sys::stat::futimens;
use nix::sys::statfs::{BTRFS_SUPER_MAGIC, EXT4_SUPER_MAGIC, FsType, TMPFS_MAGIC, XFS_SUPER_MAGIC};
use nix::sys::time::TimeSpec;

/// OpenZFS's `ZFS_SUPER_MAGIC`.
const ZFS: FsType = FsType(0x2fc1_2fc1);

/// The inode number of `name` in `dir`, and whether it is a folder; `None` if it is not there.
pub fn entry(dir: &File, name: &[u8]) -> Result<Option<(u64, bool)>> {
    match nix::sys::stat::fstatat(dir, OsStr::from_bytes(name), nix::fcntl::AtFlags::AT_SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some((stat.st_ino, stat.st_mode & libc::S_IFMT == libc::S_IFDIR))),
        Err(Errno::ENOENT) => Ok(None),
        Err(e) => Err(e).with_context(|| format!("cannot look at {}", crate::names::show(name))),
    }
}

/// Whether a path is known to keep its inode number on the file system of `dir`, and one call to flush all of it.
pub fn steady(dir: &File) -> Result<bool> {
    let kind = nix::sys::statfs::fstatfs(dir).context("cannot ask for the file system")?.filesystem_type();
    Ok([EXT4_SUPER_MAGIC, XFS_SUPER_MAGIC, BTRFS_SUPER_MAGIC, TMPFS_MAGIC, ZFS].contains(&kind))
}

/// Gives a folder back the times it had.
pub fn set_times(dir: &File, stat: &nix::sys::stat::FileStat) -> Result<()> {
    let (accessed, modified) =
        (TimeSpec::new(stat.st_atime, stat.st_atime_nsec), TimeSpec::new(stat.st_mtime, stat.st_mtime_nsec));
    futimens(dir, &accessed, &modified).context("cannot set a folder's time")
}

//! Which file system a folder is on, and whether its inode numbers and change times can be relied on.
//! Told so that another kernel, or another version of this program, tells the same.
//!
//! The UUID, where there is a way to ask for it: the general one of Linux 6.9 (ext4, XFS; btrfs does not answer it, seen on
//! 6.18), those of btrfs and XFS, or the links that udev makes. On btrfs the subvolume belongs to it, as each has inode
//! numbers of its own. Else the id that statfs gives, which ext4 and btrfs make of the UUID. So what one kernel notes as
//! `fsid-…` another one notes as a UUID, and both are the same file system: a record is compared in all its forms.

use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::MetadataExt as _;

use anyhow::{Context as _, Result};
use common::mutant;
use nix::sys::statfs::{BTRFS_SUPER_MAGIC, EXT4_SUPER_MAGIC, fstatfs};

/// What identifies a file system over reboots.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FsId {
    /// The form that is noted, if anything identifies it.
    pub name: Option<String>,
    /// All forms that it has, or had with other kernels.
    forms: Vec<String>,
}

impl FsId {
    /// Of the file system of `dir`.
    pub fn of(dir: &File) -> Result<FsId> {
        let mut names: Vec<String> = [btrfs(dir), uuid2(dir), xfs(dir)].into_iter().flatten().collect();
        if names.is_empty() {
            names.extend(by_uuid(dir)?);
        }
        let id = nix::sys::statvfs::fstatvfs(dir).context("cannot look at a source's file system")?;
        if id.filesystem_id() != 0 {
            names.push(format!("fsid-{:x}", id.filesystem_id()));
        }
        Ok(FsId { name: names.first().cloned(), forms: names.iter().flat_map(|name| forms(name)).collect() })
    }

    /// One that was noted.
    pub fn noted(name: Option<String>) -> FsId {
        FsId { forms: name.iter().flat_map(|name| forms(name)).collect(), name }
    }

    /// Whether the two are of the same file system.
    pub fn is(&self, other: &FsId) -> bool {
        match mutant::active("an-id-has-one-form") {
            true => self.name == other.name,
            false => self.name == other.name || self.forms.iter().any(|form| other.forms.contains(form)),
        }
    }
}

/// The type of the file system of the open folder `dir`, unless it is one whose inode numbers are stable and whose ctime
/// moves with every change; `name` is what the mount table calls it.
pub fn distrust(dir: &File, name: impl FnOnce() -> Option<String>) -> Result<Option<String>> {
    const XFS: i64 = 0x5846_5342;
    const ZFS: i64 = 0x2fc1_2fc1;
    let trusted = [EXT4_SUPER_MAGIC.0, BTRFS_SUPER_MAGIC.0, XFS, ZFS];
    let kind = fstatfs(dir).context("cannot look at the file system of a folder")?.filesystem_type().0;
    Ok((!trusted.contains(&kind)).then(|| name().unwrap_or_else(|| format!("type {kind:x}"))))
}

/// The same by the name in the mount table.
pub fn is_trusted_name(kind: &str) -> bool {
    ["ext2", "ext3", "ext4", "xfs", "btrfs", "zfs"].contains(&kind)
}

/// `name`, and what statfs gives for that UUID.
fn forms(name: &str) -> Vec<String> {
    let (uuid, subvolume) = name.split_once('/').map_or((name, None), |(uuid, id)| (uuid, Some(id)));
    let mut all = vec![name.to_owned()];
    let hex: String = uuid.split('-').collect();
    let Some(uuid) = u128::from_str_radix(&hex, 16).ok().filter(|_| hex.len() == 32) else { return all };
    let bytes = uuid.to_be_bytes();
    let half = |at: usize| <[u8; 8]>::try_from(&bytes[at..at + 8]).unwrap_or_default();
    let fsid = match subvolume.map(str::parse::<u64>) {
        // ext4 (and others): both halves, as numbers of a little-endian machine.
        None => u64::from_le_bytes(half(0)) ^ u64::from_le_bytes(half(8)),
        // btrfs: four words of a big-endian one, the subvolume's number in them.
        Some(Ok(id)) => (u64::from_be_bytes(half(0)) ^ u64::from_be_bytes(half(8)) ^ id).rotate_left(32),
        Some(Err(_)) => return all,
    };
    all.push(format!("fsid-{fsid:x}"));
    all
}

/// A link of udev's to the device that `dir` is on.
fn by_uuid(dir: &File) -> Result<Option<String>> {
    let dev = dir.metadata()?.dev();
    let links = std::fs::read_dir("/dev/disk/by-uuid").into_iter().flatten().flatten();
    let ours = |link: &std::fs::DirEntry| std::fs::metadata(link.path()).is_ok_and(|m| m.rdev() == dev);
    Ok(links.filter(ours).map(|link| link.file_name().to_string_lossy().to_lowercase()).next())
}

/// `FS_IOC_GETFSUUID`, `_IOR(0x15, 0, struct fsuuid2)`: a length byte and 16 bytes.
fn uuid2(dir: &File) -> Option<String> {
    let bytes: [u8; 17] = ask(dir, 0x8011_1500, [0; 17])?;
    written(bytes.get(1..=usize::from(bytes[0]))?)
}

/// `BTRFS_IOC_FS_INFO`, `_IOR(0x94, 31, 1024 bytes)`, and the subvolume, which `BTRFS_IOC_INO_LOOKUP`, `_IOWR(0x94, 18, 4096
/// bytes)`, tells anybody who asks for its top folder (256) without naming one.
fn btrfs(dir: &File) -> Option<String> {
    let is_btrfs = fstatfs(dir).ok()?.filesystem_type() == BTRFS_SUPER_MAGIC;
    if !is_btrfs {
        return None;
    }
    let info: [u8; 1024] = ask(dir, 0x8400_941f, [0; 1024])?;
    let mut lookup = [0; 4096];
    lookup[8..16].copy_from_slice(&256u64.to_ne_bytes());
    let found: [u8; 4096] = ask(dir, 0xd000_9412, lookup)?;
    let subvolume = u64::from_ne_bytes(found[..8].try_into().ok()?);
    Some(format!("{}/{subvolume}", written(&info[16..32])?))
}

/// `XFS_IOC_FSGEOMETRY_V1`, `_IOR('X', 100, 112 bytes)`.
fn xfs(dir: &File) -> Option<String> {
    const XFS: i64 = 0x5846_5342;
    if fstatfs(dir).ok()?.filesystem_type().0 != XFS {
        return None;
    }
    let geometry: [u8; 112] = ask(dir, 0x8070_5864, [0; 112])?;
    written(&geometry[64..80])
}

/// An ioctl whose request says the size of its buffer.
#[expect(unsafe_code, reason = "these ioctls have no wrapper in nix")]
fn ask<const N: usize>(dir: &File, request: libc::c_ulong, mut buffer: [u8; N]) -> Option<[u8; N]> {
    if (request >> 16) & 0x3fff != N as libc::c_ulong {
        return None;
    }
    // SAFETY: the request's size field is N, the size of the buffer that it reads and fills.
    let result = unsafe { libc::ioctl(dir.as_raw_fd(), request as _, buffer.as_mut_ptr()) };
    (result == 0).then_some(buffer)
}

/// As a UUID is written.
fn written(bytes: &[u8]) -> Option<String> {
    if bytes.iter().all(|b| *b == 0) {
        return None;
    }
    let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
    let cut = |a: usize, b: usize| hex.get(a..b).unwrap_or_default();
    if hex.len() != 32 {
        return Some(hex);
    }
    Some([cut(0, 8), cut(8, 12), cut(12, 16), cut(16, 20), cut(20, 32)].join("-"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uuid_and_what_statfs_makes_of_it_are_the_same_file_system() {
        let noted = |name: &str| FsId::noted(Some(name.into()));
        // As Linux 6.18 tells them of a btrfs and two of its subvolumes.
        let (top, sub) =
            ("18452986-ed56-479f-844a-37fb6fd9b53e/5", "18452986-ed56-479f-844a-37fb6fd9b53e/256");
        assert!(
            noted(top).is(&noted("fsid-828ff2a49c0f1e7d")) && noted("fsid-828ff3a19c0f1e7d").is(&noted(sub))
        );
        assert!(!noted(top).is(&noted(sub)) && !noted(top).is(&noted("fsid-828ff3a19c0f1e7d")));
        assert!(!noted(top).is(&FsId::noted(None)) && FsId::noted(None).is(&FsId::noted(None)));
        let other = "18452986-ed56-479f-844a-37fb6fd9b53f/5";
        assert!(!noted(top).is(&noted(other)) && noted(top).is(&noted(top)));
        for odd in ["", "/", "x/y", "18452986-ed56-479f-844a-37fb6fd9b53e/x", "\u{fc}-/5"] {
            assert_eq!(forms(odd), [odd]);
        }
    }
}

//! A source, checked before it is believed: an unmounted disk must not become an empty snapshot.

use std::fs::File;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use common::exclude::{self, Excludes};
use common::fault::Fault;
use common::mounts;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use nix::sys::statfs::{FsType, fstatfs};

/// What a source is, from the profile or the command line.
#[derive(Clone, Debug)]
pub struct Source {
    /// Its folder in the snapshot.
    pub name: String,
    /// Its folder here.
    pub path: PathBuf,
    /// Patterns left out, defaults included.
    pub exclude: Vec<String>,
    /// One path of each group must exist in it.
    pub must_contain: Vec<Vec<PathBuf>>,
}

/// A source that has been opened and checked.
#[derive(Debug)]
pub struct Checked {
    /// Its directory.
    pub dir: File,
    /// What identifies its file system over reboots, if anything does.
    pub fs_id: Option<String>,
    /// Why its inode numbers and change times cannot be relied on, if so.
    pub distrust: Option<String>,
    /// Patterns, compiled.
    pub excludes: Excludes,
}

impl Source {
    /// The paths without which a source of this name is not believed.
    pub fn default_must_contain(name: &str) -> Vec<Vec<PathBuf>> {
        match name {
            // .ocdata before Nextcloud 31.
            "data" => vec![vec![".ncdata".into(), ".ocdata".into()]],
            "html" => vec![vec!["config/config.php".into()]],
            _ => Vec::new(),
        }
    }

    /// The default patterns of this name.
    pub fn default_excludes(name: &str) -> Vec<String> {
        exclude::defaults(name)
    }

    /// Opens it and checks all that can be seen without walking. `others` are all sources: one that lies
    /// in this one is not taken twice.
    pub fn check(&self, others: &[Source]) -> Result<Checked> {
        let shown = self.path.display();
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let fd = open(&self.path, flags, Mode::empty()).map_err(|e| {
            Fault::config(format!("source {}: {shown} cannot be opened as a folder: {e}", self.name))
                .hint("is its disk mounted? Is the path in the profile right?")
        })?;
        let dir = File::from(fd);
        for group in &self.must_contain {
            if !group.iter().any(|p| self.path.join(p).symlink_metadata().is_ok()) {
                let wanted: Vec<_> = group.iter().map(|p| p.display().to_string()).collect();
                let fault = Fault::config(format!(
                    "source {}: {shown} does not contain {}: this is not what it should be",
                    self.name,
                    wanted.join(" or ")
                ));
                return Err(fault
                    .hint(format!("is its disk mounted on {shown}? (see must_contain in the profile)"))
                    .into());
            }
        }
        let stat = fstatfs(&dir).with_context(|| format!("cannot look at the file system of {shown}"))?;
        let real = self.path.canonicalize().with_context(|| format!("cannot resolve {shown}"))?;
        let inside = others.iter().filter(|o| o.name != self.name).filter_map(|o| o.path.canonicalize().ok());
        let inside = inside.filter(|o| *o != real).filter_map(|o| {
            use std::os::unix::ffi::OsStrExt as _;
            o.strip_prefix(&real).ok().map(|p| p.as_os_str().as_bytes().to_vec())
        });
        Ok(Checked {
            fs_id: fs_id(&dir)?,
            distrust: distrust(stat.filesystem_type(), &self.path),
            excludes: Excludes::new(&self.exclude, inside.collect())?,
            dir,
        })
    }
}

/// File systems whose inode numbers are stable and whose ctime moves with every change.
fn distrust(kind: FsType, path: &Path) -> Option<String> {
    const XFS: i64 = 0x5846_5342;
    const ZFS: i64 = 0x2fc1_2fc1;
    let trusted = [nix::sys::statfs::EXT4_SUPER_MAGIC.0, nix::sys::statfs::BTRFS_SUPER_MAGIC.0, XFS, ZFS];
    if trusted.contains(&kind.0) {
        return None;
    }
    let name = mounts::of_path(path).map_or_else(|_| format!("type {:x}", kind.0), |m| m.fs_type);
    Some(format!("{} lies on {name}, not on ext4, xfs, btrfs or zfs", path.display()))
}

/// The file system's UUID where the kernel tells it (Linux 6.9), else where udev links it, else the
/// id that statfs gives, which ext4 and btrfs derive from the UUID.
fn fs_id(dir: &File) -> Result<Option<String>> {
    if let Some(uuid) = ioctl_uuid(dir) {
        return Ok(Some(uuid));
    }
    let dev = dir.metadata()?.dev();
    if let Ok(links) = std::fs::read_dir("/dev/disk/by-uuid") {
        for link in links.flatten() {
            if std::fs::metadata(link.path()).is_ok_and(|m| m.rdev() == dev) {
                return Ok(Some(link.file_name().to_string_lossy().to_lowercase()));
            }
        }
    }
    let id =
        nix::sys::statvfs::fstatvfs(dir).context("cannot look at a source's file system")?.filesystem_id();
    if id != 0 {
        return Ok(Some(format!("fsid-{id:x}")));
    }
    Ok(None)
}

/// `FS_IOC_GETFSUUID`, `_IOR(0x15, 0, struct fsuuid2)`: a length byte and 16 bytes.
#[expect(unsafe_code, reason = "the ioctl has no wrapper in nix")]
fn ioctl_uuid(dir: &File) -> Option<String> {
    use std::os::fd::AsRawFd as _;
    let mut buffer = [0u8; 17];
    // SAFETY: the request's size field is 17, the size of the buffer it fills.
    let result = unsafe { libc::ioctl(dir.as_raw_fd(), 0x8011_1500, buffer.as_mut_ptr()) };
    let bytes = buffer.get(1..=usize::from(buffer[0]))?;
    if result != 0 || bytes.iter().all(|b| *b == 0) {
        return None;
    }
    let hex: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
    let cut = |a: usize, b: usize| hex.get(a..b).unwrap_or_default();
    if hex.len() != 32 {
        return Some(hex);
    }
    Some([cut(0, 8), cut(8, 12), cut(12, 16), cut(16, 20), cut(20, 32)].join("-"))
}

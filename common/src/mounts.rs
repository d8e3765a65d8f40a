//! The mount table, from `/proc/self/mountinfo`. Whole fields are compared, never substrings.

use std::ffi::OsString;
use std::os::fd::AsRawFd as _;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

/// One mounted file system.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// The kernel's number for it.
    pub id: u64,
    /// `major:minor`.
    pub device: (u32, u32),
    /// The folder in the file system that is mounted: `/`, unless it is a bind mount or a subvolume.
    pub root: PathBuf,
    /// Where it is mounted.
    pub target: PathBuf,
    /// `ext4`, `fuse.sshfs`, …
    pub fs_type: String,
    /// What is mounted: a device, `host:dir`, …
    pub source: OsString,
    /// Options of the mount and of the file system.
    pub options: Vec<String>,
}

/// The mounts this process sees, in mount order: of two at one target, the later one is on top.
pub fn table() -> Result<Vec<Mount>> {
    let text = std::fs::read("/proc/self/mountinfo").context("cannot read the mount table")?;
    parse(&text)
}

/// Parses the text of `mountinfo` (proc_pid_mountinfo(5)).
pub fn parse(text: &[u8]) -> Result<Vec<Mount>> {
    let lines = text.split(|b| *b == b'\n').filter(|l| !l.is_empty());
    lines
        .map(|line| {
            parse_line(line)
                .with_context(|| format!("odd line in the mount table: {}", String::from_utf8_lossy(line)))
        })
        .collect()
}

fn parse_line(line: &[u8]) -> Option<Mount> {
    let fields: Vec<&[u8]> = line.split(|b| *b == b' ').collect();
    let dash = fields.iter().position(|f| *f == b"-")?;
    let device = std::str::from_utf8(fields.get(2)?).ok()?;
    let (major, minor) = device.split_once(':')?;
    let words =
        |field: &[u8]| String::from_utf8_lossy(field).split(',').map(str::to_owned).collect::<Vec<_>>();
    let mut options = words(fields.get(5)?);
    options.extend(fields.get(dash + 3).map(|f| words(f)).unwrap_or_default());
    Some(Mount {
        id: std::str::from_utf8(fields.first()?).ok()?.parse().ok()?,
        device: (major.parse().ok()?, minor.parse().ok()?),
        root: PathBuf::from(unescape(fields.get(3)?)),
        target: PathBuf::from(unescape(fields.get(4)?)),
        fs_type: String::from_utf8_lossy(fields.get(dash + 1)?).into_owned(),
        source: unescape(fields.get(dash + 2)?),
        options,
    })
}

/// Turns `\040` and the like back into bytes.
fn unescape(field: &[u8]) -> OsString {
    let mut bytes = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((first, tail)) = rest.split_first() {
        let octal = tail.get(..3).filter(|d| *first == b'\\' && d.iter().all(|b| (b'0'..=b'7').contains(b)));
        if let Some(digits) = octal {
            bytes.push(digits.iter().fold(0u8, |n, d| n.wrapping_mul(8).wrapping_add(d - b'0')));
            rest = &tail[3..];
        } else {
            bytes.push(*first);
            rest = tail;
        }
    }
    OsString::from_vec(bytes)
}

/// Whether something is mounted exactly at `path` (symlinks resolved).
pub fn is_mount_point(path: &Path) -> Result<bool> {
    let Ok(path) = path.canonicalize() else { return Ok(false) };
    Ok(table()?.iter().any(|m| m.target.as_os_str().as_bytes() == path.as_os_str().as_bytes()))
}

/// The mount that `path` (which must exist) lies on.
pub fn of_path(path: &Path) -> Result<Mount> {
    let path = path.canonicalize().with_context(|| format!("cannot find {}", path.display()))?;
    table()?
        .into_iter()
        .filter(|m| path.starts_with(&m.target))
        // The longest target; of equal ones the last mounted, which max_by_key returns.
        .max_by_key(|m| m.target.as_os_str().len())
        .with_context(|| format!("no mount holds {}", path.display()))
}

/// What is mounted below `top` (which must exist), on folders and on files, as far as it can be seen: not what lies
/// under another mount. A bind mount of the same file system is one, too, though device numbers do not tell.
pub fn below(top: &Path) -> Result<Vec<Mount>> {
    let top = top.canonicalize().with_context(|| format!("cannot find {}", top.display()))?;
    let mut found = table()?;
    found.retain(|m| m.target != top && m.target.starts_with(&top) && is_on_top(m));
    Ok(found)
}

/// Whether its target leads to this mount. Nothing is opened for reading, so a dead network file system keeps nobody
/// waiting.
fn is_on_top(mount: &Mount) -> bool {
    use nix::fcntl::{OFlag, open};
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let Ok(fd) = open(&mount.target, flags, nix::sys::stat::Mode::empty()) else { return false };
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd())).unwrap_or_default();
    let id = info.lines().find_map(|l| l.strip_prefix("mnt_id:")?.trim().parse::<u64>().ok());
    id == Some(mount.id)
}

/// Where `path` (which must exist) lies in its file system, whatever that is mounted on.
pub fn place_in_file_system(path: &Path) -> Result<PathBuf> {
    let mount = of_path(path)?;
    let real = path.canonicalize().with_context(|| format!("cannot find {}", path.display()))?;
    Ok(mount.root.join(real.strip_prefix(&mount.target).unwrap_or(Path::new(""))))
}

#[cfg(test)]
mod tests {
    use super::*;

    const REAL: &[u8] = b"27 1 254:0 / / rw,relatime - ext4 /dev/vda rw,discard\n\
        40 27 0:33 / /mnt/with\\040space rw,nosuid shared:1 - fuse.sshfs s3:/srv/a\\134b rw,user_id=0\n";

    #[test]
    fn real_lines_with_and_without_optional_fields() {
        let mounts = parse(REAL).unwrap();
        assert_eq!(mounts[0].device, (254, 0));
        assert_eq!((mounts[1].id, mounts[1].root.as_path()), (40, Path::new("/")));
        assert_eq!(mounts[0].options, ["rw", "relatime", "rw", "discard"]);
        assert_eq!(mounts[1].target, Path::new("/mnt/with space"));
        assert_eq!(mounts[1].source, "s3:/srv/a\\b");
        assert_eq!(mounts[1].fs_type, "fuse.sshfs");
    }

    #[test]
    fn a_broken_line_is_an_error_not_a_hole() {
        assert!(parse(b"27 1 254:0 / /\n").is_err());
    }

    #[test]
    fn the_root_and_proc_are_mount_points() {
        assert!(is_mount_point(Path::new("/")).unwrap());
        assert!(is_mount_point(Path::new("/proc")).unwrap());
        assert!(!is_mount_point(Path::new("/proc/self")).unwrap());
        assert_eq!(of_path(Path::new("/proc/self/fd")).unwrap().fs_type, "proc");
        assert!(below(Path::new("/")).unwrap().iter().any(|m| m.target == Path::new("/proc")));
        assert!(below(Path::new("/proc/self/fd")).unwrap().is_empty());
        assert_eq!(place_in_file_system(Path::new("/proc/1/fd")).unwrap(), Path::new("/1/fd"));
    }
}

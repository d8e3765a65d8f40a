//! What the file system of a store can keep, found out by trying, each time before anything is sent.
//!
//! A store that cannot hold or publish a snapshot is refused. One that keeps less than a source may have is told in one
//! warning: a copy that silently lost the fractions of its times looks changed to everybody who compares it.

use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use common::fault::Fault;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat};
use nix::sys::stat::{FileStat, Mode, fstatat, mkdirat};
use nix::sys::time::TimeSpec;
use nix::unistd::{linkat, symlinkat};

use super::attributes::set_modified;
use super::beneath::open_dir;
use super::clear::remove;

/// Where it is tried.
const PROBE: &str = ".nc-backup-probe";

/// In the year 2109.
const LATE: i64 = 4_400_000_000;

/// What is kept.
#[derive(Clone, Copy, Debug)]
pub struct Keeps {
    /// Extended attributes.
    pub xattrs: bool,
    /// ACLs.
    pub acls: bool,
    /// Fractions of seconds.
    fractions: bool,
    /// Times after January 2038.
    late: bool,
    /// Two names that differ in case alone.
    case: bool,
    /// Names of any bytes.
    bytes: bool,
}

impl Keeps {
    /// Tries it in `dir`, which is the folder `shown` of a store; leaves nothing.
    pub fn probe(dir: &File, shown: &Path) -> Result<Keeps> {
        let name = Path::new(PROBE);
        remove(dir, name)?;
        mkdirat(dir, name, Mode::from_bits_truncate(0o700))
            .with_context(|| format!("cannot make a folder in {}", shown.display()))?;
        let top = open_dir(dir, PROBE.as_bytes()).context("cannot open a new folder")?;
        let keeps = try_all(&top, shown);
        drop(top);
        remove(dir, name)?;
        keeps
    }

    /// Modification times come back as they were set.
    pub fn times(&self) -> bool {
        self.fractions && self.late
    }

    /// What is not kept, for people.
    pub fn lacks(&self) -> Option<String> {
        let all = [
            (self.xattrs, "extended attributes"),
            (self.acls, "ACLs"),
            (self.fractions, "fractions of seconds in times"),
            (self.late, "times after January 2038"),
            (self.case, "names that differ in upper and lower case alone"),
            (self.bytes, "names that are not UTF-8, or hold characters that Windows forbids"),
        ];
        let lacks: Vec<&str> = all.iter().filter(|(kept, _)| !kept).map(|(_, what)| *what).collect();
        (!lacks.is_empty()).then(|| lacks.join(", "))
    }
}

fn try_all(dir: &File, shown: &Path) -> Result<Keeps> {
    let context = || format!("cannot try what the file system of {} keeps", shown.display());
    let file = make(dir, "file").with_context(context)?;
    // What does not fit is cut without a word, or refused.
    let kept =
        |sec: i64, nsec: i64| set_modified(&file, &TimeSpec::new(sec, nsec)).and_then(|()| look(dir, "file"));
    let late = kept(LATE, 0).is_ok_and(|s| s.st_mtime == LATE);
    let fractions = kept(1_700_000_000, 123_456_789).is_ok_and(|s| s.st_mtime_nsec == 123_456_789);
    let (xattrs, acls) = abilities(dir)?;

    linkat(dir, "file", dir, "link", AtFlags::empty()).map_err(|e| cannot(shown, "hard links", e))?;
    if look(dir, "file").with_context(context)?.st_ino != look(dir, "link").with_context(context)?.st_ino {
        return Err(cannot(shown, "hard links", Errno::EOPNOTSUPP));
    }
    symlinkat("file", dir, "symlink").map_err(|e| cannot(shown, "symbolic links", e))?;
    common::rename::probe(dir, "partial")
        .map_err(|e| cannot(shown, "renames of folders, with which a snapshot is published", e))?;

    let case = make(dir, "FILE").is_ok();
    let odd = OsStr::from_bytes(b"\xff:?*|");
    let bytes = make(dir, odd).is_ok() && look(dir, odd).is_ok();
    Ok(Keeps { xattrs, acls, fractions, late, case, bytes })
}

/// Whether extended attributes and ACLs can be kept in the folder `partial`, by trying.
pub fn abilities(partial: &File) -> Result<(bool, bool)> {
    use xattr::FileExt as _;
    let xattrs = partial.set_xattr("user.nc-backup", b"1").is_ok();
    if xattrs {
        partial.remove_xattr("user.nc-backup").context("cannot remove an extended attribute")?;
    }
    let unsupported = Errno::EOPNOTSUPP as i32;
    let acls = partial
        .get_xattr("system.posix_acl_access")
        .map_or_else(|e| e.raw_os_error() != Some(unsupported), |_| true);
    Ok((xattrs, acls))
}

fn cannot(shown: &Path, what: &str, error: Errno) -> anyhow::Error {
    match error {
        Errno::EPERM | Errno::EOPNOTSUPP | Errno::EINVAL | Errno::ENOSYS | Errno::EMLINK => {
            Fault::config(format!("the file system of {} has no {what}: {error}", shown.display()))
                .hint("use ext4, xfs, btrfs or zfs for the store")
                .into()
        }
        // Anything else is not about what it can do.
        other => {
            anyhow::Error::from(other).context(format!("cannot use the file system of {}", shown.display()))
        }
    }
}

fn make<P: ?Sized + nix::NixPath>(dir: &File, name: &P) -> nix::Result<File> {
    let flags = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_RDWR | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    openat(dir, name, flags, Mode::from_bits_truncate(0o600)).map(File::from)
}

fn look<P: ?Sized + nix::NixPath>(dir: &File, name: &P) -> nix::Result<FileStat> {
    fstatat(dir, name, AtFlags::AT_SYMLINK_NOFOLLOW)
}

//! A snapshot that an overlay of images shows (see `layer/`): what squashfs cannot hold is in attributes of ours there, and is given
//! back, where the snapshot is looked at and to what is restored from it.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::Path;

use anyhow::{Context as _, Result};
use common::mounts;
use nix::errno::Errno;
use nix::sys::stat::{FileStat, UtimensatFlags, utimensat};
use nix::sys::statfs::{FsType, fstatfs};
use nix::sys::time::TimeSpec;

use super::visit;
use crate::names::show;

/// What begins the names of our attributes.
pub const OURS: &[u8] = b"trusted.nc-backup.";

/// A time that squashfs cannot hold, after [`OURS`].
pub const MTIME: &[u8] = b"mtime";

/// What begins an ACL's name after [`OURS`]; and after `system.`, where it belongs.
pub const ACL: &[u8] = b"posix_acl_";

/// overlayfs, as statfs(2) has it.
const OVERLAYFS: FsType = FsType(0x794c_7630);

/// Whether the snapshot's folder is shown by an overlay, mounted there.
pub fn is_shown(snapshot: &Path) -> Result<bool> {
    let mount = mounts::of_path(snapshot)?;
    Ok(mount.fs_type == "overlay" && mount.target == snapshot.canonicalize()?)
}

/// Whether the opened folder is in an overlay.
pub fn is_overlay(dir: &File) -> bool {
    fstatfs(dir).is_ok_and(|stat| stat.filesystem_type() == OVERLAYFS)
}

/// Gives `name` in `dir`, an opened folder in the store, the time and the attributes (of which a link's or a device's are not
/// asked for otherwise) that its snapshot has, if an overlay shows it.
pub fn give_back(
    dir: &File,
    name: &[u8],
    stat: &mut FileStat,
    xattrs: &mut BTreeMap<OsString, Vec<u8>>,
) -> Result<()> {
    let opened = matches!(stat.st_mode & libc::S_IFMT, libc::S_IFREG | libc::S_IFDIR);
    if opened && !xattrs.keys().any(|name| name.as_bytes().starts_with(OURS)) {
        return Ok(());
    }
    if !is_overlay(dir) {
        return Ok(());
    }
    let key = OsString::from_vec([OURS, MTIME].concat());
    let time = match opened {
        true => xattrs.remove(&key),
        false => xattr::get(path(dir, name), &key).context("cannot read an extended attribute")?,
    };
    if let Some(time) = time {
        let time = parse(&time).context("a time of an image is not understood")?;
        (stat.st_mtime, stat.st_mtime_nsec) = (time.tv_sec(), time.tv_nsec());
    }
    for (name, value) in std::mem::take(xattrs) {
        let acl = name.as_bytes().strip_prefix(OURS).filter(|rest| rest.starts_with(ACL));
        let name = acl.map_or(name.clone(), |acl| OsString::from_vec([b"system.", acl].concat()));
        xattrs.insert(name, value);
    }
    Ok(())
}

/// The time of an opened folder that an overlay shows, if squashfs could not hold it.
pub fn time_of(dir: &File) -> Result<Option<(i64, u32)>> {
    let Some(time) = xattr::get(path(dir, b"."), OsString::from_vec([OURS, MTIME].concat()))
        .context("cannot read an extended attribute")?
    else {
        return Ok(None);
    };
    let time = parse(&time).context("a time of an image is not understood")?;
    Ok(Some((time.tv_sec(), u32::try_from(time.tv_nsec()).unwrap_or(0))))
}

/// Gives all that is below `new` what its attributes of ours say, and takes these away.
pub fn put_back(new: &File) -> Result<()> {
    visit::each(new, |found| {
        let context = || format!("cannot give {} its time and its ACLs", show(&found.path()));
        let path = path(found.parent, found.name.as_bytes());
        let names = match xattr::list(&path) {
            Ok(names) => names,
            Err(e) if e.raw_os_error() == Some(Errno::EOPNOTSUPP as i32) => return Ok(()),
            Err(e) => return Err(e).with_context(context),
        };
        for name in names {
            let Some(what) = name.as_bytes().strip_prefix(OURS) else { continue };
            let value = xattr::get(&path, &name).with_context(context)?.unwrap_or_default();
            if what.starts_with(ACL) {
                let acl = OsString::from_vec([b"system.", what].concat());
                xattr::set(&path, acl, &value).with_context(context)?;
            } else if what == MTIME {
                let time = parse(&value).with_context(context)?;
                let follow = UtimensatFlags::NoFollowSymlink;
                utimensat(found.parent, found.name, &TimeSpec::UTIME_OMIT, &time, follow)
                    .with_context(context)?;
            }
            xattr::remove(&path, &name).with_context(context)?;
        }
        Ok(())
    })
}

/// There is no call that takes a folder and a name, but this is one: a link in its place is not followed.
fn path(dir: &File, name: &[u8]) -> std::path::PathBuf {
    Path::new(&format!("/proc/self/fd/{}", dir.as_raw_fd())).join(std::ffi::OsStr::from_bytes(name))
}

/// Seconds since 1970 with their fraction, as `touch -d @…` takes it.
pub fn time(stat: &FileStat) -> String {
    let (seconds, nanoseconds) = (stat.st_mtime, stat.st_mtime_nsec);
    match (seconds < 0, nanoseconds) {
        (true, 1..) => format!("-{}.{:09}", -(seconds + 1), 1_000_000_000 - nanoseconds),
        _ => format!("{seconds}.{nanoseconds:09}"),
    }
}

/// What [`time`] has written.
fn parse(text: &[u8]) -> Result<TimeSpec> {
    let text = std::str::from_utf8(text)?;
    let (seconds, fraction) = text.split_once('.').context("it has no fraction")?;
    let (whole, nanoseconds) = (seconds.parse::<i64>()?, fraction.parse::<u32>()?);
    anyhow::ensure!(fraction.len() == 9, "its fraction is not nine digits");
    Ok(match seconds.starts_with('-') && nanoseconds > 0 {
        true => TimeSpec::new(whole - 1, i64::from(1_000_000_000 - nanoseconds)),
        false => TimeSpec::new(whole, i64::from(nanoseconds)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_written_as_touch_reads_it_and_read_again() {
        let mut stat: FileStat = nix::sys::stat::stat("/").unwrap();
        for (seconds, nanoseconds, text) in [
            (1_700_000_000, 5, "1700000000.000000005"),
            (-2, 0, "-2.000000000"),
            (-2, 250_000_000, "-1.750000000"),
            (-1, 999_999_999, "-0.000000001"),
            (0, 0, "0.000000000"),
        ] {
            (stat.st_mtime, stat.st_mtime_nsec) = (seconds, nanoseconds);
            assert_eq!(time(&stat), text);
            assert_eq!(parse(text.as_bytes()).unwrap(), TimeSpec::new(seconds, nanoseconds));
        }
        for text in ["", "1", "1.5", "x.000000000", "1.00000000x"] {
            assert!(parse(text.as_bytes()).is_err(), "{text}");
        }
    }
}

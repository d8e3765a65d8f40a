//! One path of a snapshot as an image holds it. What squashfs cannot hold goes along in attributes of ours, so that it stays with
//! the path wherever that moves: fractions of seconds and times before 1970 (`trusted.nc-backup.mtime`, as `touch -d @…` takes
//! it) and ACLs (`trusted.nc-backup.posix_acl_access`, `…_default`, as the kernel gives them).

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use common::mutant;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, readlinkat};
use nix::sys::stat::{FileStat, fstatat, major, minor};

use super::tar::{Header, Kind};
use crate::names::show;
use crate::store::shown::{self, ACL, MTIME, OURS};
use crate::store::{attributes, open_dir, split};

/// What begins the names of overlayfs's: an image has those that were meant, and no others.
const OVERLAY: &[u8] = b"trusted.overlay.";

/// A name and a value.
pub type Xattr = (Vec<u8>, Vec<u8>);

/// What lies at a path, looked at through no symlink.
#[derive(Debug)]
pub struct Entry {
    /// As it is on the disk.
    pub stat: FileStat,
    /// In an image; `None` if an image cannot have it there.
    pub kind: Option<Kind>,
    target: Vec<u8>,
    xattrs: Vec<Xattr>,
    /// What of it an image does not hold.
    pub left_out: Vec<String>,
}

impl Entry {
    /// Looks at `name` in `dir`.
    pub fn look(dir: &File, name: &[u8]) -> Result<Entry> {
        let stat = fstatat(dir, OsStr::from_bytes(name), AtFlags::AT_SYMLINK_NOFOLLOW)?;
        let (mut kind, mut target, mut left_out) = (kind(&stat), Vec::new(), Vec::new());
        match kind {
            None => left_out.push("a socket".to_owned()),
            Some(Kind::Char) if stat.st_rdev == 0 && !mutant::active("a-foreign-whiteout-is-a-device") => {
                kind = None;
                left_out.push("the device 0/0, which would hide what is below it".to_owned());
            }
            Some(Kind::Symlink) => target = readlinkat(dir, OsStr::from_bytes(name))?.as_bytes().to_vec(),
            Some(_) => {}
        }
        let mut xattrs = Vec::new();
        for (name, value) in read(dir, name)? {
            match stored_as(&name) {
                Some(stored) => xattrs.push((stored, value)),
                None => left_out.push(format!("attribute {}", name.escape_ascii())),
            }
        }
        if stat.st_mtime_nsec != 0 || u32::try_from(stat.st_mtime).is_err() {
            xattrs.push(([OURS, MTIME].concat(), shown::time(&stat).into_bytes()));
        }
        xattrs.sort_unstable();
        Ok(Entry { stat, kind, target, xattrs, left_out })
    }

    /// Marks the folder of the snapshot's description: by this whoever shows an image sees that its kernel reads attributes
    /// of squashfs at all. One that does not would show zeros, and what is gone.
    pub fn mark(&mut self) {
        self.xattrs.push(([OURS, b"layer"].concat(), b"1".to_vec()));
        self.xattrs.sort_unstable();
    }

    /// Writes its header as `kind`, with overlayfs's own `marks`.
    pub fn write(&self, path: &[u8], kind: Kind, marks: &[(&str, &[u8])], out: &mut Vec<u8>) {
        let marks = marks.iter().map(|(name, value)| ([OVERLAY, name.as_bytes()].concat(), value.to_vec()));
        let xattrs: Vec<Xattr> = self.xattrs.iter().cloned().chain(marks).collect();
        Header {
            path,
            kind,
            mode: self.stat.st_mode & 0o7777,
            owner: (self.stat.st_uid, self.stat.st_gid),
            size: u64::try_from(self.stat.st_size).unwrap_or(0),
            mtime: mtime(&self.stat),
            target: &self.target,
            device: (major(self.stat.st_rdev), minor(self.stat.st_rdev)),
            xattrs: &xattrs,
        }
        .write(out);
    }
}

/// The stat of `path` below `top`.
pub fn stat(top: &File, path: &[u8]) -> Result<FileStat> {
    let (above, name) = split(path);
    open_dir(top, above)
        .and_then(|dir| fstatat(&dir, OsStr::from_bytes(name), AtFlags::AT_SYMLINK_NOFOLLOW))
        .with_context(|| format!("cannot look at {}", show(path)))
}

/// The whole seconds of its time that squashfs holds.
pub fn mtime(stat: &FileStat) -> u32 {
    u32::try_from(stat.st_mtime).unwrap_or(if stat.st_mtime < 0 { 0 } else { u32::MAX })
}

/// A whiteout: nothing is at `path`, whatever the images below have there.
pub fn whiteout(path: &[u8], out: &mut Vec<u8>) {
    let header = Header {
        path,
        kind: Kind::Char,
        mode: 0,
        owner: (0, 0),
        size: 0,
        mtime: 0,
        target: b"",
        device: (0, 0),
        xattrs: &[],
    };
    header.write(out);
}

/// What an image has for this type of file; a tar stream has no sockets.
fn kind(stat: &FileStat) -> Option<Kind> {
    match stat.st_mode & libc::S_IFMT {
        libc::S_IFREG => Some(Kind::File),
        libc::S_IFDIR => Some(Kind::Folder),
        libc::S_IFLNK => Some(Kind::Symlink),
        libc::S_IFCHR => Some(Kind::Char),
        libc::S_IFBLK => Some(Kind::Block),
        libc::S_IFIFO => Some(Kind::Pipe),
        _ => None,
    }
}

/// The name under which an image has the attribute; `None` if it cannot.
fn stored_as(name: &[u8]) -> Option<Vec<u8>> {
    if let Some(acl) = name.strip_prefix(b"system.").filter(|rest| rest.starts_with(ACL)) {
        return Some([OURS, acl].concat());
    }
    // An overlay would follow what the source says of its own; and nobody but us says what is ours.
    let foreign = name.starts_with(OVERLAY) && !mutant::active("foreign-overlay-marks-are-taken-over");
    let held = [&b"user."[..], b"trusted.", b"security."].iter().any(|space| name.starts_with(space));
    // mksquashfs takes what is before the first `=` for the name.
    (held && !foreign && !name.starts_with(OURS) && !name.contains(&b'=')).then(|| name.to_vec())
}

/// The attributes that somebody set, of what is no folder, too.
fn read(dir: &File, name: &[u8]) -> Result<Vec<Xattr>> {
    // There is no call that takes a folder and a name, but this is one: a link in its place is not followed.
    let path = Path::new(&format!("/proc/self/fd/{}", dir.as_raw_fd())).join(OsStr::from_bytes(name));
    let names = match xattr::list(&path) {
        Ok(names) => names,
        Err(e) if e.raw_os_error() == Some(Errno::EOPNOTSUPP as i32) => return Ok(Vec::new()),
        Err(e) => return Err(e).context("cannot list its extended attributes"),
    };
    let mut found = Vec::new();
    for name in names.filter(|name| attributes::is_kept(name)) {
        let value = xattr::get(&path, &name).context("cannot read an extended attribute")?;
        found.push((name.as_bytes().to_vec(), value.context("an extended attribute is gone")?));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_overlayfs_or_we_would_believe_is_not_taken_over() {
        let stored = |name: &str| stored_as(name.as_bytes()).map(|n| String::from_utf8(n).unwrap());
        for name in ["trusted.overlay.redirect", "trusted.nc-backup.mtime", "user.a=b", "system.nfs4_acl"] {
            assert_eq!(stored(name), None, "{name}");
        }
        for name in ["user.rsync.%stat", "user.overlay.opaque", "security.capability", "trusted.x"] {
            assert_eq!(stored(name).as_deref(), Some(name));
        }
        assert_eq!(stored("system.posix_acl_default").unwrap(), "trusted.nc-backup.posix_acl_default");
    }
}

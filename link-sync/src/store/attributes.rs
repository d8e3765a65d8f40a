//! Attributes of files and folders of the store: which are kept, and giving one the attributes of another.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;

use anyhow::{Context as _, Result};
use nix::errno::Errno;
use nix::sys::stat::{Mode, fchmod, fstat, futimens};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, fchown};
use xattr::FileExt as _;

/// Whether an attribute is what somebody set: the label is the machine's own, and what XFS shows root as
/// `trusted.SGI_ACL_FILE` and `…_DEFAULT` are the ACLs once more.
pub fn is_kept(name: &OsStr) -> bool {
    let name = name.as_bytes();
    !name.starts_with(b"security.selinux")
        && (common::mutant::active("acls-of-xfs-count-twice") || !name.starts_with(b"trusted.SGI_ACL_"))
}

/// Where rsync's fake-super keeps a path's mode, device and owner: `100640 0,0 33:33`.
const STAT: &str = "user.rsync.%stat";

/// Whether among the attributes of a path is its owner: then what the path itself belongs to means nothing.
pub fn carries_owner(all: &BTreeMap<OsString, Vec<u8>>) -> bool {
    all.contains_key(OsStr::new(STAT))
}

/// The same of an opened path.
pub fn keeps_owner(file: &File) -> bool {
    file.get_xattr(STAT).is_ok_and(|value| value.is_some())
        && !common::mutant::active("a-stores-account-is-an-owner")
}

/// Writes the owner of a file or folder into the attribute if it is not there: rsync leaves that out where the source's owner has
/// the number of the store's account, which may be another one on the store's next machine.
pub fn keep_owner(file: &File) -> Result<()> {
    if file.get_xattr(STAT).context("cannot read an extended attribute")?.is_some() {
        return Ok(());
    }
    let meta = file.metadata()?;
    let value = format!("{:o} 0,0 {}:{}", meta.mode(), meta.uid(), meta.gid());
    file.set_xattr(STAT, value.as_bytes()).context("cannot note its owner")
}

/// Copies owner, mode, ACLs and extended attributes (rsync's fake-super one among them); not the times.
/// What the file system or the rights do not allow fails, as it was possible on `from`.
pub fn copy(from: &File, to: &File) -> Result<()> {
    let (source, target) = (from.metadata()?, to.metadata()?);
    // Only root can give a folder to somebody else, and where the owner is kept in an attribute it need not be.
    let need_not = !nix::unistd::geteuid().is_root() && keeps_owner(from);
    if (source.uid(), source.gid()) != (target.uid(), target.gid()) && !need_not {
        fchown(to, Some(Uid::from_raw(source.uid())), Some(Gid::from_raw(source.gid())))
            .context("cannot set a folder's owner")?;
    }
    if source.mode() & 0o7777 != target.mode() & 0o7777 {
        fchmod(to, Mode::from_bits_truncate(source.mode() & 0o7777)).context("cannot set a folder's mode")?;
    }
    let wanted: Vec<_> = match from.list_xattr() {
        Ok(names) => names.filter(|name| is_kept(name)).collect(),
        // A file system without any.
        Err(e) if e.raw_os_error() == Some(Errno::EOPNOTSUPP as i32) => return Ok(()),
        Err(e) => return Err(e).context("cannot list a folder's extended attributes"),
    };
    let existing = to.list_xattr().context("cannot list a folder's extended attributes")?;
    let existing: Vec<_> = existing.filter(|name| is_kept(name)).collect();
    for name in &existing {
        if !wanted.contains(name) && !name.as_encoded_bytes().starts_with(b"security.") {
            to.remove_xattr(name).context("cannot remove an extended attribute")?;
        }
    }
    for name in &wanted {
        let Some(value) = from.get_xattr(name).context("cannot read an extended attribute")? else {
            continue;
        };
        if to.get_xattr(name).ok().flatten().as_deref() != Some(&value[..]) {
            to.set_xattr(name, &value)
                .with_context(|| format!("cannot set the attribute {}", name.to_string_lossy()))?;
        }
    }
    Ok(())
}

/// Sets the modification time of an open file or folder. The other one is set to what it is: on FUSE, libfuse 2 passes
/// over a call that sets one alone, and says nothing.
pub fn set_modified(file: &File, modified: &TimeSpec) -> nix::Result<()> {
    let stat = fstat(file)?;
    futimens(file, &TimeSpec::new(stat.st_atime, stat.st_atime_nsec), modified)
}

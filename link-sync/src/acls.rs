//! Which paths of a source have an ACL.
//!
//! A store without root keeps ACLs and owners in extended attributes (rsync's fake-super). rsync 3.5 removes the one
//! with the ACL when it gives an entry extended attributes a second time: every folder that has some, and every file
//! whose attributes alone changed. So a store of an account gets ACLs in a run of their own, without extended
//! attributes, over what has just arrived.

use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use nix::errno::Errno;
use xattr::FileExt as _;

use crate::moved::same;
use crate::names::show;
use crate::store::{open_dir, split};
use crate::tree::Meta;

/// Those of `paths` (relative to `root`, each folder's together) that have one and still are what the walk saw. What is
/// not would be sent as a whole, without its extended attributes: the next pass takes it.
pub fn having(root: &File, paths: impl Iterator<Item = (Vec<u8>, Meta)>) -> Result<Vec<Vec<u8>>> {
    let mut found = Vec::new();
    let mut last: Option<(Vec<u8>, Option<File>)> = None;
    for (path, meta) in paths {
        let (dir, name) = split(&path);
        if last.as_ref().is_none_or(|l| l.0 != dir) {
            last = Some((dir.to_vec(), known(open_dir(root, dir).map_err(std::io::Error::from), dir)?));
        }
        let Some(open) = last.as_ref().and_then(|l| l.1.as_ref()) else { continue };
        // There is no call that takes a folder and a name, but this is one: a link in its place is not followed.
        let name = Path::new(std::ffi::OsStr::from_bytes(name));
        let name = Path::new(&format!("/proc/self/fd/{}", open.as_raw_fd())).join(name);
        if known(xattr::list(name), &path)?.is_some_and(any) && same(root, &path, &meta)? {
            found.push(path);
        }
    }
    Ok(found)
}

/// Whether the open folder has one.
pub fn of_folder(dir: &File) -> Result<bool> {
    Ok(known(dir.list_xattr(), b"")?.is_some_and(any))
}

fn any(names: xattr::XAttrs) -> bool {
    names.into_iter().any(|name| name.as_bytes().starts_with(b"system.posix_acl_"))
}

/// `None` for what is not there any more, or on a file system without attributes.
fn known<T>(result: std::io::Result<T>, path: &[u8]) -> Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(e) => match e.raw_os_error().map(Errno::from_raw) {
            Some(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP | Errno::EOPNOTSUPP) => Ok(None),
            _ => Err(e).with_context(|| format!("cannot list the extended attributes of {}", show(path))),
        },
    }
}

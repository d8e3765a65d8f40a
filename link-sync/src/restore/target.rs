//! Where a path goes: opened without following what an unprivileged user could have planted.

use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use common::fault::Fault;
use common::{mounts, mutant};
use rustix::fs::StatxAttributes;

use super::folders::entry;
use super::partial::PREFIX;
use crate::names::show;
use crate::store::{open_dir, visit};
use crate::tree::join;

/// Attributes with which nothing can be renamed (chattr(1)).
const FIXED: StatxAttributes = StatxAttributes::IMMUTABLE.union(StatxAttributes::APPEND);

/// Where `path` is, also if its last parts are not there yet; only to be compared with others.
pub fn real(path: &Path) -> PathBuf {
    let mut missing = Vec::new();
    for above in path.ancestors() {
        if let Ok(found) = above.canonicalize() {
            return missing.iter().rev().fold(found, |found, name| found.join(name));
        }
        match above.file_name() {
            Some(name) => missing.push(name.to_owned()),
            None => break,
        }
    }
    path.to_owned()
}

/// The place of one path.
#[derive(Debug)]
pub struct Target {
    /// The folder it goes into, which exists.
    pub anchor: File,
    /// That folder's path.
    pub shown: PathBuf,
    /// So many parts of `SOURCE/PATH` lead there.
    pub strip: usize,
    /// The name in it that is replaced; `None`: all of its content.
    pub only: Option<Vec<u8>>,
    /// What is replaced exists.
    pub exists: bool,
    /// Paths in it that stay.
    pub spare: Vec<Vec<u8>>,
}

impl Target {
    /// Finds the deepest folder there is of `rest` (relative, may be empty) below `base`; `before` parts of
    /// `SOURCE/PATH` belong to `base`. `others` are folders that must not be touched.
    pub fn find(base: &File, shown: &Path, before: usize, rest: &[u8], others: &[PathBuf]) -> Result<Target> {
        let names: Vec<&[u8]> = rest.split(|b| *b == b'/').filter(|n| !n.is_empty()).collect();
        let mut at: Vec<u8> = Vec::new();
        let mut depth = 0;
        while depth + 1 < names.len() {
            let next = join(&at, names[depth]);
            let dir = if at.is_empty() { base.try_clone()? } else { open_dir(base, &at)? };
            match entry(&dir, names[depth])? {
                None => break,
                Some((_, true)) => at = next,
                Some((_, false)) => {
                    return Err(Fault::config(format!(
                        "{} is in the way: it is no folder",
                        shown.join(OsStr::from_bytes(&next)).display()
                    ))
                    .hint("move it away, or restore elsewhere with --to DIR")
                    .into());
                }
            }
            depth += 1;
        }
        let mut anchor = open_dir(base, &at).with_context(|| format!("cannot open {}", show(&at)))?;
        let mut place = if at.is_empty() { shown.to_owned() } else { shown.join(OsStr::from_bytes(&at)) };
        let mut only = names.get(depth).map(|n| n.to_vec());
        let mut exists = match &only {
            Some(name) => entry(&anchor, name)?,
            None => Some((0, true)),
        };
        let mut strip = before + depth;
        // A mount point, or a folder that holds another source, cannot be renamed: its content is replaced instead.
        if let (Some(name), Some((_, true))) = (&only, exists) {
            let full = place.join(OsStr::from_bytes(name));
            let inside =
                open_dir(&anchor, name).with_context(|| format!("cannot open {}", full.display()))?;
            let holds = others.iter().any(|o| o.starts_with(&full) && *o != full);
            if holds || mounts::is_mount_point(&full)? {
                (anchor, place, only, strip) = (inside, full, None, strip + 1);
            }
        }
        let spare =
            others.iter().filter_map(|o| o.strip_prefix(&place).ok()).filter(|o| !o.as_os_str().is_empty());
        let spare: Vec<Vec<u8>> = spare.map(|o| o.as_os_str().as_bytes().to_vec()).collect();
        if only.is_none() {
            exists = Some((0, true)).filter(|_| exists.is_some());
        }
        let target = Target { anchor, shown: place, strip, only, exists: exists.is_some(), spare };
        target.no_mounts()?;
        Ok(target)
    }

    /// What is replaced, for people.
    pub fn path(&self) -> PathBuf {
        self.only.as_ref().map_or_else(|| self.shown.clone(), |name| self.shown.join(OsStr::from_bytes(name)))
    }

    /// What is immutable cannot be renamed away, nor anything in a folder that is: better told before the first rename than
    /// after some.
    pub fn can_be_replaced(&self) -> Result<()> {
        let fixed = |name: &[u8]| {
            let flags = rustix::fs::AtFlags::SYMLINK_NOFOLLOW | rustix::fs::AtFlags::EMPTY_PATH;
            let asked = rustix::fs::StatxFlags::empty();
            let stat = rustix::fs::statx(&self.anchor, OsStr::from_bytes(name), flags, asked);
            // What cannot be asked for its attributes is tried.
            stat.is_ok_and(|s| s.stx_attributes.intersects(FIXED))
        };
        let mut names = vec![Vec::new()];
        match &self.only {
            Some(only) => names.push(only.clone()),
            None => names.extend(visit::names(&open_dir(&self.anchor, b"")?)?.into_iter().map(|n| n.0)),
        }
        let spared = |name: &Vec<u8>| self.spare.contains(name) || name.starts_with(PREFIX.as_bytes());
        match names
            .iter()
            .find(|name| !spared(name) && !mutant::active("restore-begins-with-the-immutable") && fixed(name))
        {
            None => Ok(()),
            Some(name) => {
                let path = self.shown.join(OsStr::from_bytes(name));
                Err(Fault::denied(format!(
                    "{} cannot be replaced: it is immutable or append-only",
                    path.display()
                ))
                .hint(format!(
                    "nothing was changed; chattr -i -a {}, then the same command again",
                    path.display()
                ))
                .into())
            }
        }
    }

    /// A mount below what is replaced cannot be renamed away.
    fn no_mounts(&self) -> Result<()> {
        let path = self.path();
        let spared =
            |at: &Path| self.spare.iter().any(|s| at.starts_with(self.shown.join(OsStr::from_bytes(s))));
        let below = mounts::table()?
            .into_iter()
            .find(|m| m.target.starts_with(&path) && m.target != path && !spared(&m.target));
        match below {
            None => Ok(()),
            Some(mount) => Err(Fault::config(format!(
                "{} is mounted inside of what is to be replaced",
                mount.target.display()
            ))
            .hint("restore what lies on it separately with --path, the rest around it; or unmount it first")
            .into()),
        }
    }
}

//! Where a path leads: opened part by part, without following what an unprivileged user could have planted.

use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context as _, Result};
use common::fault::Fault;
use common::mutant;
use nix::errno::Errno;
use nix::sys::stat::{Mode, mkdirat};

use crate::store::beneath::open_dir;

/// A path as the file system has it.
#[derive(Debug)]
pub struct Reached {
    /// The folder, or the deepest one of its path that there is.
    pub dir: File,
    /// The whole path, without `.`, `..` and symbolic links.
    pub shown: PathBuf,
    /// What is not there yet, below `dir`.
    pub missing: Vec<Vec<u8>>,
}

impl Reached {
    /// Makes the folder, 0700, if it is not there; what is above it must be. Whether it was made.
    pub fn make(&mut self) -> Result<bool> {
        let shown = self.shown.display();
        match &self.missing[..] {
            [] => Ok(false),
            [name] => {
                let name = OsStr::from_bytes(name);
                let context = || format!("cannot make the folder {shown}");
                mkdirat(&self.dir, name, Mode::S_IRWXU).with_context(context)?;
                self.dir = open_dir(&self.dir, name.as_bytes()).with_context(context)?;
                self.missing.clear();
                Ok(true)
            }
            _ => Err(Fault::config(format!("cannot make the folder {shown}: what is above it is not there"))
                .hint("make the folder above it first, or mount its disk")
                .into()),
        }
    }
}

/// Follows `path` part by part, as the kernel does: `..` is the folder above the one that was reached, not above the
/// name that was written. A symbolic link is believed only if nobody but root (or this account) could have made it.
pub fn reach(path: &Path) -> Result<Reached> {
    let top = || File::open("/").context("cannot open /");
    let (mut dir, mut shown) = (top()?, PathBuf::from("/"));
    let mut rest = parts(path);
    // So many names are still to come of what was asked for, once a link has put its own before them.
    let (mut links, mut asked) = (0, usize::MAX);
    while let Some(name) = rest.pop() {
        if name == b".." {
            // Down again from the top, as nobody can have moved that.
            shown.pop();
            rest.extend(parts(&shown));
            (dir, shown) = (top()?, PathBuf::from("/"));
            continue;
        }
        let linked = rest.len() >= asked;
        let full = shown.join(OsStr::from_bytes(&name));
        let context = || format!("cannot open the folder {}", full.display());
        let stat =
            nix::sys::stat::fstatat(&dir, OsStr::from_bytes(&name), nix::fcntl::AtFlags::AT_SYMLINK_NOFOLLOW);
        let stat = match stat {
            Ok(stat) => stat,
            // What a link leads to is never made: it may be a disk that is not mounted.
            Err(Errno::ENOENT) if !linked && !rest.iter().any(|name| name == b"..") => {
                let missing: Vec<_> = std::iter::once(name).chain(rest.into_iter().rev()).collect();
                shown.extend(missing.iter().map(|name| OsStr::from_bytes(name)));
                return Ok(Reached { dir, shown, missing });
            }
            Err(e) => return Err(std::io::Error::from(e)).with_context(context),
        };
        if stat.st_mode & libc::S_IFMT == libc::S_IFLNK {
            let holder = dir.metadata().with_context(context)?;
            let ours = [0, nix::unistd::geteuid().as_raw()];
            links += 1;
            if links > 40
                || !mutant::active("restore-follows-any-link")
                    && (!ours.contains(&holder.uid())
                        || !ours.contains(&stat.st_uid)
                        || holder.mode() & 0o022 != 0)
            {
                return Err(Fault::denied(format!(
                    "{} is a symbolic link that others could have made",
                    full.display()
                ))
                .hint("name the real folder; as root, such links are not followed")
                .into());
            }
            let to = nix::fcntl::readlinkat(&dir, OsStr::from_bytes(&name)).with_context(context)?;
            if !linked {
                asked = rest.len();
            }
            rest.extend(parts(Path::new(&to)));
            if Path::new(&to).is_absolute() {
                (dir, shown) = (top()?, PathBuf::from("/"));
            }
            continue;
        }
        dir = open_dir(&dir, &name).map_err(std::io::Error::from).with_context(context)?;
        shown = full;
    }
    Ok(Reached { dir, shown, missing: Vec::new() })
}

/// The names of a path, the last one first.
fn parts(path: &Path) -> Vec<Vec<u8>> {
    let names = path.components().filter_map(|c| match c {
        Component::Normal(name) => Some(name.as_bytes().to_vec()),
        Component::ParentDir if !mutant::active("restore-drops-dot-dot") => Some(b"..".to_vec()),
        _ => None,
    });
    let mut names: Vec<_> = names.collect();
    names.reverse();
    names
}

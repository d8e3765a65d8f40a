//! What lies too deep for rsync arrives near the top of the private folder and is renamed into its place.
//! rsync 3.5 takes no file whose whole path, from `/`, is longer than the kernel takes at once.

use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::ffi::OsStrExt as _;

use anyhow::{Context as _, Result};
use nix::fcntl::renameat;
use nix::sys::stat::fstat;

use super::folders::set_times;
use super::partial::{DEEP, Partial};
use crate::names::show;
use crate::store::clear::clear;
use crate::store::{ensure_dir, open_dir, split, visit};

/// A folder that has been taken out of its place.
#[derive(Debug)]
pub struct Shallow {
    /// It.
    pub dir: File,
    parent: File,
    name: Vec<u8>,
    room: File,
    place: String,
}

impl Shallow {
    /// Takes out the folder `path`, below `new`; the `number` is its own. What an interrupted run has received of it counts.
    pub fn take(partial: &Partial, new: &File, path: &[u8], number: usize) -> Result<Shallow> {
        let context = || format!("cannot take {} out of its place", show(path));
        let (parent, name) = split(path);
        let parent = open_dir(new, parent).with_context(context)?;
        let room = ensure_dir(&partial.dir, DEEP.as_bytes())?;
        let place = number.to_string();
        let holds = |dir: &File, name: &[u8]| -> Result<bool> {
            Ok(match open_dir(dir, name) {
                Ok(dir) => !visit::names(&dir)?.is_empty(),
                Err(_) => false,
            })
        };
        if holds(&parent, name)? || !holds(&room, place.as_bytes())? {
            clear(&room, place.as_bytes())?;
            let times = fstat(&parent).with_context(context)?;
            renameat(&parent, OsStr::from_bytes(name), &room, &*place).with_context(context)?;
            set_times(&parent, &times)?;
        }
        let dir = open_dir(&room, place.as_bytes()).with_context(context)?;
        Ok(Shallow { dir, parent, name: name.to_vec(), room, place })
    }

    /// Puts it into its place, where at most an empty folder is.
    pub fn put(self) -> Result<()> {
        let context = || format!("cannot put {} in its place", show(&self.name));
        let times = fstat(&self.parent).with_context(context)?;
        renameat(&self.room, &*self.place, &self.parent, OsStr::from_bytes(&self.name))
            .with_context(context)?;
        set_times(&self.parent, &times)
    }
}

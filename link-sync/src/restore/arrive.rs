//! What one item needs is brought into its private folder: by rsync, deep folders one by one, then compared, tamed and flushed.

use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use common::fault::Fault;
use common::mutant;
use nix::sys::stat::fstat;

use super::folders::set_times;
use super::item::Item;
use super::journal::SwapPlan;
use super::partial::{NEW, OLD, Partial};
use super::shallow::Shallow;
use super::tame::{self, Tamed};
use crate::cli::Restore;
use crate::far::Far;
use crate::maintenance;
use crate::names::show;
use crate::progress::Progress;
use crate::rsync::{Fetch, TEMPORARY};
use crate::settings::{Place, Settings};
use crate::source::HTML;
use crate::store::keeps::abilities;
use crate::store::meta::SnapshotMeta;
use crate::store::{ensure_dir, open_dir, remove, shown, split};

/// Copies one path into its private folder, completely and durably. `since`: when the restore began that keeps Nextcloud closed.
pub fn arrive(
    args: &Restore,
    settings: &Settings,
    item: &Item,
    partial: &mut Partial,
    (far, meta): (&mut Far, &SnapshotMeta),
    since: Option<&str>,
    progress: &Progress,
) -> Result<()> {
    let path = item.wish.full();
    let new = partial.part(NEW)?;
    remove(&new, Path::new(TEMPORARY))?;
    drop(ensure_dir(&new, TEMPORARY.as_bytes())?);
    let (xattrs, acls) = abilities(&new)?;
    // What one run of rsync can move; each is all but the parts below it.
    let parts: Vec<(&[u8], usize)> = std::iter::once((&path[..], item.target.strip))
        .chain(item.looked.deep.iter().map(|deep| (&deep[..], deep.split(|b| *b == b'/').count())))
        .collect();
    let mut fetch = |dry: bool, checksum: bool| -> Result<Vec<String>> {
        let mut told = Vec::new();
        for (at, (path, strip)) in parts.iter().enumerate() {
            let deep = match at {
                0 => None,
                _ => {
                    let names: Vec<&[u8]> = path.split(|b| *b == b'/').skip(item.target.strip).collect();
                    Some(Shallow::take(partial, &new, &names.join(&b'/'), at)?)
                }
            };
            let into = deep.as_ref().map_or(&new, |deep| &deep.dir);
            if let Some(deep) = &deep {
                let times = fstat(&deep.dir).context("cannot look at a folder")?;
                drop(ensure_dir(into, TEMPORARY.as_bytes())?);
                set_times(&deep.dir, &times)?;
            }
            let below = parts.iter().filter(|p| p.0.len() > path.len() && p.0.starts_with(path));
            let name =
                |p: &(&[u8], usize)| p.0.splitn(strip + 1, |b| *b == b'/').nth(*strip).map(<[u8]>::to_vec);
            let run = Fetch {
                rsync: &settings.rsync,
                folder: &partial.dir,
                path,
                into,
                without: below.filter_map(name).collect(),
                strip: *strip,
                checksum,
                dry,
                xattrs,
                acls,
            };
            told.extend(run.run(far, progress)?);
            let Some(deep) = deep else { continue };
            let times = fstat(&deep.dir).context("cannot look at a folder")?;
            remove(&deep.dir, Path::new(TEMPORARY))?;
            set_times(&deep.dir, &times)?;
            deep.put()?;
        }
        Ok(told)
    };
    progress.begin(show(&path), item.looked.bytes);
    // What an interrupted run left is believed by its content, not by its size and time.
    fetch(false, partial.continued)?;
    if args.verify {
        progress.begin(format!("{}: comparing", show(&path)), 0);
        let different = fetch(true, true)?;
        if let Some(first) = different.first() {
            return Err(Fault::failed(format!(
                "{}: {} paths differ from the snapshot, the first: {first}",
                show(&path),
                different.len()
            ))
            .hint(
                "nothing was replaced; give the same command again, and look at the disk if it happens again",
            )
            .into());
        }
    }
    // Before anything is taken for what a store's account may not say: the mount is root's.
    if let Place::Local(store) = &settings.store
        && shown::is_shown(&store.join(&meta.date))?
    {
        shown::put_back(&new)?;
    }
    let mut tamed = Tamed::default();
    if !args.set_id_and_devices && !tame::trusted(settings, meta.fake_super) {
        if args.in_place {
            no_new_occ_of_root(item, &new)?;
        }
        tamed = tame::tame(&new)?;
    }
    if args.closed && item.wish.source == HTML && item.wish.path.is_empty() {
        maintenance::close(&new)?;
    }
    partial.sync()?;
    let old = partial.part(OLD)?;
    let plan = item.swap(&new, &old).plan()?;
    partial.journal.swap = Some(SwapPlan { tamed, since: since.map(str::to_owned), ..plan });
    partial.save()
}

/// occ runs as whoever owns config.php. The account of a store could make that root where it was not.
fn no_new_occ_of_root(item: &Item, new: &File) -> Result<()> {
    let config: [&[u8]; 3] = [HTML.as_bytes(), b"config", b"config.php"];
    let full = item.wish.full();
    let asked: Vec<&[u8]> = full.split(|b| *b == b'/').collect();
    if mutant::active("restore-makes-occ-run-as-root") || !config.starts_with(&asked) {
        return Ok(());
    }
    let path = config.get(item.target.strip..).unwrap_or_default().join(&b'/');
    let (parent, name) = split(&path);
    let of_root = |top: &File| {
        let flags = nix::fcntl::AtFlags::AT_SYMLINK_NOFOLLOW;
        let stat = open_dir(top, parent)
            .and_then(|dir| nix::sys::stat::fstatat(&dir, OsStr::from_bytes(name), flags));
        stat.is_ok_and(|stat| stat.st_uid == 0)
    };
    if !of_root(new) || of_root(&item.target.anchor) {
        return Ok(());
    }
    Err(Fault::denied("config/config.php of this snapshot belongs to root, and in its place it does not: occ would run as root")
        .hint("nothing was replaced; the store is another account's, which could have written that. If it was so when the snapshot was taken, give --set-id-and-devices")
        .into())
}

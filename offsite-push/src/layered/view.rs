//! A date, shown: its images on loop devices, and one read-only overlay of them.
//!
//! The loop devices end by themselves when their file systems are unmounted, also after a kill; and what is mounted below a
//! view's folder is in the mount table, so taking it down needs no record. The overlay goes first: it holds the others.

use std::fs::DirBuilder;
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use common::run::Cmd;
use common::{mounts, mutant};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::{Mode, SFlag, mknod};

use super::DATES;
use super::list::{Layer, List};
use crate::store;

/// The folder of the dates, in a view: what link-sync takes for a store.
const STORE: &str = "snapshots";

/// The uppermost layer, an empty folder of this machine's. An overlay has at least two; and it is the snapshot's own folder, whose
/// attributes no image has.
const TOP: &str = "top";

/// The folder of a snapshot's description, which is in the image of each, and the attribute that it has there.
const META: &str = ".meta";
/// See [`META`].
const MARK: &str = "trusted.nc-backup.layer";

/// Whoever can write to an image must not become root by it.
const SAFE: &str = "ro,nosuid,nodev,noexec";

/// Shows `date` of the container below `at`, a folder of root's; its path.
pub(super) fn show(container: &Path, date: &str, at: &Path) -> Result<PathBuf> {
    anyhow::ensure!(store::is_date(date), "{date:?} is no date");
    let meta = std::fs::symlink_metadata(at).with_context(|| format!("cannot look at {}", at.display()))?;
    let ours = meta.is_dir() && meta.uid() == 0 && meta.mode() & 0o022 == 0;
    anyhow::ensure!(ours, "{} is not a folder that only root can write to", at.display());
    let path = container.join(super::LAYERS).join(DATES).join(date);
    let list = List::read(&path, date)?.with_context(|| format!("the container holds no snapshot {date}"))?;
    let target = at.join(STORE).join(date);
    anyhow::ensure!(mounts::below(at)?.is_empty(), "something is shown at {} already", at.display());
    match stack(container, &list, at, &target) {
        Ok(()) => Ok(target),
        Err(error) => match hide(at) {
            Ok(_) => Err(error),
            Err(more) => Err(error.context(format!("and it stays mounted: {more:#}"))),
        },
    }
}

fn stack(container: &Path, list: &List, at: &Path, target: &Path) -> Result<()> {
    for dir in [at.join(TOP), at.join(STORE), target.to_owned()] {
        folder(&dir)?;
    }
    // Short names, as mount(2) takes one page of options; below `at`, as no path of others may have a colon in it.
    let mut lower = TOP.to_owned();
    let mut places: Vec<(bool, PathBuf)> =
        list.laid().map(|layer| (matches!(layer, Layer::Image(_)), layer.path(container))).collect();
    if list.layers.iter().any(|layer| matches!(layer, Layer::Big(_))) {
        places.push((false, container.join(super::LAYERS).join(super::BIG)));
        // Redirects lead there from below this one, and nobody else sees it.
        mknod(&at.join(TOP).join(super::HIDDEN), SFlag::S_IFCHR, Mode::empty(), 0)
            .context("cannot make a whiteout")?;
    }
    let laid = places.len();
    for (n, (is_image, path)) in places.into_iter().enumerate() {
        let place = at.join(n.to_string());
        folder(&place)?;
        let cmd = match is_image {
            true => Cmd::new("mount").args(["-t", "squashfs", "-o"]).arg(format!("loop,{SAFE}")),
            false => Cmd::new("mount").args(["--bind", "-o", "ro"]),
        };
        cmd.arg("--")
            .arg(&path)
            .arg(&place)
            .checked()
            .with_context(|| format!("cannot mount {}", path.display()))?;
        lower = format!("{lower}:{n}");
    }
    // Redirects and metacopies are ours: no image has those of others.
    let options = format!("redirect_dir=follow,metacopy=on,index=off,lowerdir={lower}");
    std::env::set_current_dir(at).with_context(|| format!("cannot enter {}", at.display()))?;
    let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let mounted = mount(Some("overlay"), target, Some("overlay"), flags, Some(&options[..]));
    // Else it could not be removed.
    std::env::set_current_dir("/").context("cannot leave the view")?;
    mounted.with_context(|| format!("cannot mount an overlay of {laid} layers"))?;
    let images = list.laid().any(|layer| matches!(layer, Layer::Image(_)));
    // Without them, folders would show what is gone and files only zeros.
    let read = xattr::get(target.join(META), MARK).is_ok_and(|value| value.is_some());
    anyhow::ensure!(
        read || !images || mutant::active("a-kernel-without-attributes-shows-nothing"),
        "the attributes of the images cannot be read: has this kernel CONFIG_SQUASHFS_XATTR?"
    );
    Ok(())
}

/// Unmounts all that is mounted below `at`, the last first, and removes the empty folders; whether there was something.
pub(super) fn hide(at: &Path) -> Result<bool> {
    let mut was = false;
    loop {
        // Those that others lie upon are seen when these are gone.
        let mut up = mounts::below(at)?;
        if up.is_empty() {
            break;
        }
        if mutant::active("an-overlay-is-taken-down-first") {
            up.reverse();
        }
        for mount in up.iter().rev() {
            umount2(&mount.target, MntFlags::UMOUNT_NOFOLLOW)
                .with_context(|| format!("cannot unmount {}", mount.target.display()))?;
        }
        was = true;
    }
    let mut folders = vec![at.join(TOP)];
    match std::fs::remove_file(folders[0].join(super::HIDDEN)) {
        Err(e) if e.kind() != ErrorKind::NotFound => return Err(e).context("cannot remove a whiteout"),
        _ => {}
    }
    for dir in [at.to_owned(), at.join(STORE)] {
        for entry in std::fs::read_dir(&dir).into_iter().flatten().flatten() {
            let name = entry.file_name().into_string().unwrap_or_default();
            if name.parse::<usize>().is_ok() || store::is_date(&name) {
                folders.push(entry.path());
            }
        }
    }
    folders.push(at.join(STORE));
    for dir in folders {
        match std::fs::remove_dir(&dir) {
            Err(e) if e.kind() != ErrorKind::NotFound => {
                return Err(e).with_context(|| format!("cannot remove {}", dir.display()));
            }
            _ => {}
        }
    }
    Ok(was)
}

fn folder(dir: &Path) -> Result<()> {
    match DirBuilder::new().mode(0o700).create(dir) {
        Err(e) if e.kind() != ErrorKind::AlreadyExists => {
            Err(e).with_context(|| format!("cannot make {}", dir.display()))
        }
        _ => Ok(()),
    }
}

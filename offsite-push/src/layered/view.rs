//! Dates, shown: each image on a loop device of its own, and for each date one read-only overlay of its images; a date that lies in
//! the container as a tree is seen beside them.
//!
//! The loop devices end by themselves when their file systems are unmounted, also after a kill; and what is mounted below a
//! view's folder is in the mount table, so taking it down needs no record. The overlays go first: they hold the others. Images
//! are mounted many at a time, as each waits for the link several times.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::DirBuilder;
use std::io::ErrorKind;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use anyhow::{Context as _, Result};
use common::run::Cmd;
use common::{holders, mounts, mutant, offsite};
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::{Mode, SFlag, mknod};

use super::alike::{self, Compared};
use super::dates::{Lists, Told};
use super::list::{Layer, List};
use crate::store;

/// The folder of the dates, in a view: what link-sync takes for a store.
const STORE: &str = "snapshots";

/// The uppermost layer, an empty folder of this machine's. An overlay has at least two; and it is the snapshot's own folder, whose
/// attributes no image has.
const TOP: &str = "top";

/// The lowest layer of a date with large contents.
const LARGE: &str = "big";

/// The folder of a snapshot's description, which is in the image of each, and the attribute that it has there.
const META: &str = ".meta";
/// See [`META`].
const MARK: &str = "trusted.nc-backup.layer";

/// Whoever can write to an image must not become root by it.
const SAFE: &str = "ro,nosuid,nodev,noexec";

/// So many are mounted at a time: each waits for a few answers, and has hardly anything to do.
const AT_A_TIME: usize = 16;

/// What was shown.
#[derive(Debug, Default)]
pub(super) struct Shown {
    /// The dates that are seen now, of those asked for.
    pub(super) dates: Vec<String>,
    /// Those that cannot be shown, and why.
    pub(super) failed: BTreeMap<String, String>,
    /// How many images were mounted for that, which were not before.
    pub(super) images: usize,
}

/// Shows these dates of the container, or all, below `at`, a folder of root's, beside what is shown there already. If nothing can be
/// shown, nothing is mounted.
pub(super) fn show(container: &Path, dates: &[String], at: &Path) -> Result<Shown> {
    must_be_ours(at)?;
    let shown = Stack::new(container, dates, at).and_then(|stack| stack.put_up());
    if mounts::below(at)?.iter().any(|m| m.target.starts_with(at.join(STORE))) {
        return shown;
    }
    hidden(at, shown)
}

/// Hides what was shown for `done`.
fn hidden<T>(at: &Path, done: Result<T>) -> Result<T> {
    match (hide(at), done) {
        (Ok(Hidden { held: None, .. }), done) => done,
        (Ok(Hidden { held: Some(who), .. }), done) => {
            done.and_then(|_| anyhow::bail!("what was mounted for it stays mounted: {who}"))
        }
        (Err(more), Err(error)) => Err(error.context(format!("and it stays mounted: {more:#}"))),
        (Err(more), Ok(_)) => Err(more.context("what was mounted for it stays mounted")),
    }
}

fn must_be_ours(at: &Path) -> Result<()> {
    let meta = std::fs::symlink_metadata(at).with_context(|| format!("cannot look at {}", at.display()))?;
    let ours = meta.is_dir() && meta.uid() == 0 && meta.mode() & 0o022 == 0;
    anyhow::ensure!(ours, "{} is not a folder that only root can write to", at.display());
    Ok(())
}

/// Compares what is seen of the date with what would be if the image `by`, which lies on this machine, were in the place of `layers`.
/// Both are shown below `at`, and hidden again.
pub(super) fn compare(
    container: &Path,
    date: &str,
    layers: &[String],
    by: &Path,
    at: &Path,
) -> Result<Compared> {
    must_be_ours(at)?;
    let compared = both(container, date, layers, by, at);
    hidden(at, compared)
}

fn both(container: &Path, date: &str, layers: &[String], by: &Path, at: &Path) -> Result<Compared> {
    let stack = Stack::new(container, &[date.to_owned()], at)?;
    let list = stack.lists.first().cloned().with_context(|| format!("there is no list of {date}"))?;
    let names = list.names();
    let begin = names.windows(layers.len()).position(|those| those == layers);
    let begin = begin.with_context(|| format!("{date} has other images"))?;
    let (places, next) = (stack.places.clone(), stack.places.len());
    let shown = stack.put_up()?;
    if let Some(why) = shown.failed.get(date) {
        anyhow::ensure!(why.contains(NO_ATTRIBUTES), "{date} cannot be shown: {why}");
        return Ok(Compared { unseen: Some(why.clone()), ..Compared::default() });
    }
    let at = at.canonicalize().with_context(|| format!("cannot find {}", at.display()))?;
    let (one, seen) = (at.join(next.to_string()), (next + 1).to_string());
    image(by, &one)?;
    let mut lower = TOP.to_owned();
    for (n, layer) in list.laid().enumerate() {
        match n {
            n if n == begin => lower = format!("{lower}:{next}"),
            n if (begin..begin + layers.len()).contains(&n) => {}
            _ => lower = format!("{lower}:{}", places[layer]),
        }
    }
    if has_large(&list) {
        lower = format!("{lower}:{LARGE}");
    }
    std::env::set_current_dir(&at).with_context(|| format!("cannot enter {}", at.display()))?;
    let laid = lay(Path::new(&seen), &lower, true);
    std::env::set_current_dir("/").context("cannot leave the view")?;
    laid?;
    alike::compare(&at.join(STORE).join(date), &at.join(seen), &one)
}

/// What lies below what, in the view of a container.
struct Stack<'a> {
    container: &'a Path,
    at: &'a Path,
    /// The lists of the dates to be shown.
    lists: Vec<List>,
    /// The dates to be shown that are trees.
    trees: Vec<String>,
    /// The folder of each layer of all the container's lists. These do not change while anything is shown, so each has the same
    /// one the next time.
    places: BTreeMap<Layer, usize>,
    shown: Shown,
}

impl<'a> Stack<'a> {
    fn new(container: &'a Path, dates: &[String], at: &'a Path) -> Result<Stack<'a>> {
        let Told { layered, unread, .. } = Lists::told(&container.join(super::LAYERS), &[])?;
        let lists: Vec<List> =
            layered.into_iter().map(|(date, names)| List::new(date, &names)).collect::<Result<_>>()?;
        let laid: BTreeSet<Layer> = lists.iter().flat_map(|list| list.laid().cloned()).collect();
        let places = laid.into_iter().enumerate().map(|(n, layer)| (layer, n)).collect();
        let trees = match store::dates(&offsite::store(container)) {
            Err(e) if e.kind() == ErrorKind::NotFound => Vec::new(),
            other => other.context("cannot list the trees")?,
        };
        let wanted = |date: &String| dates.is_empty() || dates.contains(date);
        let mut shown = Shown::default();
        shown.failed.extend(unread.into_iter().filter(|(name, _)| store::is_date(name) && wanted(name)));
        let lists: Vec<List> = lists.into_iter().filter(|list| wanted(&list.date)).collect();
        let listed = |date: &String| lists.iter().any(|list| list.date == *date);
        let trees: Vec<String> = trees.into_iter().filter(|d| wanted(d) && !listed(d)).collect();
        for date in dates {
            if !listed(date) && !trees.contains(date) && !shown.failed.contains_key(date) {
                shown.failed.insert(date.clone(), "the container does not hold it".into());
            }
        }
        Ok(Stack { container, at, lists, trees, places, shown })
    }

    fn put_up(mut self) -> Result<Shown> {
        for dir in [self.at.join(TOP), self.at.join(STORE)] {
            folder(&dir)?;
        }
        let there: BTreeSet<PathBuf> = mounts::below(self.at)?.into_iter().map(|m| m.target).collect();
        let at = self.at.canonicalize().with_context(|| format!("cannot find {}", self.at.display()))?;
        let is_there = |place: &str| there.contains(&at.join(place));
        if self.lists.iter().any(has_large) && !is_there(LARGE) {
            // Redirects lead there from below this one, and nobody else sees it.
            match mknod(&at.join(TOP).join(super::HIDDEN), SFlag::S_IFCHR, Mode::empty(), 0) {
                Ok(()) | Err(Errno::EEXIST) => {}
                Err(e) => return Err(e).context("cannot make a whiteout"),
            }
            bind(&self.container.join(super::LAYERS).join(super::BIG), &at.join(LARGE))?;
        }
        let needed: BTreeSet<&Layer> = self.lists.iter().flat_map(List::laid).collect();
        let jobs: Vec<(&Layer, usize)> =
            needed.into_iter().map(|layer| (layer, self.places[layer])).collect();
        let jobs: Vec<_> = jobs.into_iter().filter(|(_, n)| !is_there(&n.to_string())).collect();
        self.shown.images = jobs.iter().filter(|(layer, _)| matches!(layer, Layer::Image(_))).count();
        let lay = |(layer, n): &(&Layer, usize)| {
            let (path, place) = (layer.path(self.container), at.join(n.to_string()));
            match layer {
                Layer::Image(_) => image(&path, &place),
                _ => bind(&path, &place),
            }
        };
        let laid = many(&jobs, lay);
        let bad: BTreeMap<&Layer, String> = jobs
            .iter()
            .map(|job| job.0)
            .zip(laid)
            .filter_map(|(l, r)| Some((l, format!("{:#}", r.err()?))))
            .collect();
        // Short names, as mount(2) takes one page of options; below `at`, as no path of others may have a colon in it.
        std::env::set_current_dir(&at).with_context(|| format!("cannot enter {}", at.display()))?;
        let overlay = |list: &List| {
            if let Some(why) = list.laid().find_map(|layer| bad.get(layer)) {
                anyhow::bail!("{why}");
            }
            match is_there(&format!("{STORE}/{}", list.date)) {
                true => Ok(()),
                false => self.overlay(list),
            }
        };
        let laid = many(&self.lists, overlay);
        // Else it could not be removed.
        std::env::set_current_dir("/").context("cannot leave the view")?;
        let mut results: Vec<(String, Result<()>)> =
            self.lists.iter().map(|list| list.date.clone()).zip(laid).collect();
        for date in &self.trees {
            let place = format!("{STORE}/{date}");
            let tree = offsite::store(self.container).join(date);
            let done = if is_there(&place) { Ok(()) } else { bind(&tree, &at.join(&place)) };
            results.push((date.clone(), done));
        }
        for (date, result) in results {
            match result {
                Ok(()) => self.shown.dates.push(date),
                Err(error) => drop(self.shown.failed.insert(date, format!("{error:#}"))),
            }
        }
        self.shown.dates.sort_unstable();
        Ok(self.shown)
    }

    /// Lays the layers of a date, which are mounted, over each other; in the view's folder.
    fn overlay(&self, list: &List) -> Result<()> {
        let target = Path::new(STORE).join(&list.date);
        let mut lower = TOP.to_owned();
        for layer in list.laid() {
            lower = format!("{lower}:{}", self.places[layer]);
        }
        if has_large(list) {
            lower = format!("{lower}:{LARGE}");
        }
        let images = list.laid().any(|layer| matches!(layer, Layer::Image(_)));
        lay(&target, &lower, images).with_context(|| format!("cannot show {} layers", list.laid().count()))
    }
}

/// What is said of a kernel that cannot show images.
const NO_ATTRIBUTES: &str = "CONFIG_SQUASHFS_XATTR";

/// Mounts an overlay of the folders `lower`, named from the current folder, in which there is an image, or not.
fn lay(target: &Path, lower: &str, images: bool) -> Result<()> {
    folder(target)?;
    // Redirects and metacopies are ours: no image has those of others.
    let options = format!("redirect_dir=follow,metacopy=on,index=off,lowerdir={lower}");
    mount(Some("overlay"), target, Some("overlay"), safe(), Some(&options[..]))
        .context("cannot mount an overlay")?;
    // Without them, folders would show what is gone and files only zeros.
    let read = xattr::get(target.join(META), MARK).is_ok_and(|value| value.is_some());
    if read || !images || mutant::active("a-kernel-without-attributes-shows-nothing") {
        return Ok(());
    }
    umount2(target, MntFlags::UMOUNT_NOFOLLOW).context("cannot unmount what shows no attributes")?;
    anyhow::bail!("the attributes of the images cannot be read: has this kernel {NO_ATTRIBUTES}?")
}

fn has_large(list: &List) -> bool {
    list.layers.iter().any(|layer| matches!(layer, Layer::Big(_)))
}

/// Does `what` with each, some at a time; the results, in order.
pub(super) fn many<T: Sync>(all: &[T], what: impl Fn(&T) -> Result<()> + Sync) -> Vec<Result<()>> {
    let next = Mutex::new(0..all.len());
    let results: Mutex<BTreeMap<usize, Result<()>>> = Mutex::new(BTreeMap::new());
    std::thread::scope(|scope| {
        for _ in 0..AT_A_TIME.min(all.len()) {
            scope.spawn(|| {
                // (a poisoned lock is still what it was: nothing panics while it is held)
                while let Some(n) = next.lock().unwrap_or_else(|e| e.into_inner()).next() {
                    let result = what(&all[n]);
                    results.lock().unwrap_or_else(|e| e.into_inner()).insert(n, result);
                }
            });
        }
    });
    results.into_inner().unwrap_or_else(|e| e.into_inner()).into_values().collect()
}

/// Mounts an image.
fn image(path: &Path, place: &Path) -> Result<()> {
    folder(place)?;
    let cmd = Cmd::new("mount").args(["-t", "squashfs", "-o"]).arg(format!("loop,{SAFE}")).arg("--");
    let done = cmd.arg(path).arg(place).checked();
    done.map(drop).with_context(|| format!("cannot mount {}", path.display()))
}

/// Shows a folder a second time, as safely as the rest.
fn bind(path: &Path, place: &Path) -> Result<()> {
    let context = || format!("cannot show {} at {}", path.display(), place.display());
    folder(place)?;
    mount(Some(path), place, None::<&str>, MsFlags::MS_BIND, None::<&str>).with_context(context)?;
    let flags = safe() | MsFlags::MS_BIND | MsFlags::MS_REMOUNT;
    mount(None::<&str>, place, None::<&str>, flags, None::<&str>).with_context(context)
}

/// See [`SAFE`].
fn safe() -> MsFlags {
    MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC
}

/// What hiding has come to.
#[derive(Debug, Default)]
pub(super) struct Hidden {
    /// There was something, and it is gone.
    pub(super) changed: bool,
    /// Who keeps the rest from being unmounted.
    pub(super) held: Option<String>,
}

/// Unmounts all that is mounted below `at`, the last first, and removes the empty folders.
pub(super) fn hide(at: &Path) -> Result<Hidden> {
    let mut hidden = Hidden::default();
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
            match umount2(&mount.target, MntFlags::UMOUNT_NOFOLLOW) {
                Ok(()) => hidden.changed = true,
                Err(Errno::EBUSY) => {
                    let who = holders::of_mount(&mount.target);
                    let by = if who.is_empty() {
                        "something that cannot be seen".into()
                    } else {
                        holders::line(&who)
                    };
                    hidden.held = Some(format!("{} is in use: {by}", mount.target.display()));
                    return Ok(hidden);
                }
                Err(e) => {
                    return Err(e).with_context(|| format!("cannot unmount {}", mount.target.display()));
                }
            }
        }
    }
    let mut folders = vec![at.join(TOP), at.join(LARGE)];
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
    for entry in std::fs::read_dir(at.join(STORE)).into_iter().flatten().flatten() {
        // What a tool that took it for a store has noted there; folders of it only if they are empty.
        let (path, is_dir) = (entry.path(), entry.file_type().is_ok_and(|kind| kind.is_dir()));
        match is_dir {
            true => drop(std::fs::remove_dir(&path)),
            false => {
                std::fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?
            }
        }
    }
    folders.push(at.join(STORE));
    for dir in folders {
        match std::fs::remove_dir(&dir) {
            // Nothing of a view holds it any more.
            Err(e) if e.kind() == ErrorKind::DirectoryNotEmpty && dir.ends_with(STORE) => {}
            Err(e) if e.kind() != ErrorKind::NotFound => {
                return Err(e).with_context(|| format!("cannot remove {}", dir.display()));
            }
            _ => {}
        }
    }
    Ok(hidden)
}

fn folder(dir: &Path) -> Result<()> {
    match DirBuilder::new().mode(0o700).create(dir) {
        Err(e) if e.kind() != ErrorKind::AlreadyExists => {
            Err(e).with_context(|| format!("cannot make {}", dir.display()))
        }
        _ => Ok(()),
    }
}

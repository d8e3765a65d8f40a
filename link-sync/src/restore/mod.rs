//! Bringing back what a snapshot holds: a file, a folder, a user, whole sources.
//!
//! Everything arrives in a private folder beside its place first ([`partial`]), completely and on the disk; only then
//! is it put in place by renames ([`mod@swap`]), and only when all of that has succeeded is what was replaced removed. So
//! an interrupted restore has either changed nothing that is in use, or is finished by the same command.

mod fetch;
mod partial;
mod swap;
mod target;

use std::ffi::OsStr;
use std::fs::File;
use std::io::{IsTerminal as _, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context as _, Result};
use common::fault::Fault;
use common::status::{self, Report};
use nix::sys::stat::{fstat, futimens};
use nix::sys::time::TimeSpec;
use serde_json::{Map, Value, json};

use crate::agent;
use crate::cli::Restore;
use crate::far::Far;
use crate::maintenance;
use crate::progress::Progress;
use crate::protocol::{Looked, Request};
use crate::settings::{DATABASE, Settings};
use crate::store::meta::SnapshotMeta;
use crate::store::{ensure_dir, open::abilities, remove, visit};
use crate::tree::join;
use crate::walk::show;
use fetch::Fetch;
use partial::{NEW, OLD, Partial, State, TEMPORARY};
use swap::Swap;
use target::Target;

/// The source that holds Nextcloud's configuration.
const HTML: &str = "html";
/// Bytes that stay free.
const RESERVE: u64 = 64 << 20;

/// One path to be restored.
struct Item {
    source: String,
    /// Relative to the source; empty: all of it.
    path: Vec<u8>,
    looked: Looked,
    target: Target,
    /// The folder the private one is made in, and its path.
    home: File,
    home_shown: PathBuf,
}

impl Item {
    /// `SOURCE/PATH`.
    fn full(&self) -> Vec<u8> {
        full(&self.source, &self.path)
    }
}

fn full(source: &str, path: &[u8]) -> Vec<u8> {
    if path.is_empty() { source.as_bytes().to_vec() } else { join(source.as_bytes(), path) }
}

/// Does it.
pub fn restore(args: &Restore, report: &mut Report) -> Result<()> {
    let settings = args.profile.options().settings()?;
    let mut wishes = wishes(args)?;
    // Nothing may be backed up while it is replaced, nor the other way round.
    let _lock = match args.in_place && !args.dry_run {
        true => Some(agent::lock(&settings.runtime)?),
        false => None,
    };
    let mut far = Far::connect_reading(&settings)?;
    let meta: SnapshotMeta = far.ask(&Request::Hold { date: args.date.clone() })?;
    report.set("date", meta.date.as_str());
    report.set("id", meta.id.as_str());
    report.set("consistency", json!(meta.consistency));
    if wishes.is_empty() {
        wishes = everything(args, &settings, &meta);
    }
    if args.in_place {
        // On a new machine, a folder inside another one's can only be made after that.
        let depth = |name: &str| {
            settings.sources.iter().find(|s| s.name == name).map_or(0, |s| s.path.components().count())
        };
        wishes.sort_by_key(|(source, _)| depth(source));
    }
    let looked = look(&mut far, &meta, &wishes)?;
    let mut items = Vec::new();
    for ((source, path), looked) in wishes.into_iter().zip(looked) {
        items.push(item(args, &settings, source, path, looked)?);
    }
    tell_plan(&items, &meta, report);
    if args.dry_run {
        return Ok(());
    }
    confirm(args, &items)?;
    if !nix::unistd::geteuid().is_root() {
        report.warn("owners-not-kept", "without root, everything restored belongs to this account");
    }
    let mut opened = Vec::new();
    for item in &items {
        opened.push(open(item, &meta)?);
    }
    room(&items, &opened)?;
    let progress = Progress::terminal();
    // One that was interrupted when all had arrived does not compare again.
    let verified = args.verify && opened.iter().all(|p| p.state.swap.is_none());
    for (item, partial) in items.iter().zip(&mut opened) {
        if partial.state.swap.is_none() {
            arrive(args, &settings, item, partial, &mut far, &progress)?;
        }
        report.changed = true;
    }
    progress.begin("putting in place", 0);
    for (item, partial) in items.iter().zip(&mut opened) {
        put_in_place(item, partial)?;
    }
    let mut kept = Vec::new();
    for (item, partial) in items.iter().zip(opened) {
        let keep = args.keep_replaced && item.target.exists;
        let times = fstat(&item.home).context("cannot look at a folder")?;
        kept.push(partial.finish(keep)?);
        // That the private folder is gone is no change of the folder it lay in.
        set_times(&item.home, &times)?;
    }
    for (at, kept) in kept.iter().enumerate() {
        if let (Some(path), Some(entry)) = (kept, report.data["items"].get_mut(at)) {
            status::tell(format_args!("link-sync: what was replaced is in {}", path.display()));
            entry["kept_at"] = json!(path.display().to_string());
        }
    }
    report.set("verified", verified);
    Ok(())
}

/// What is asked for: source and path.
fn wishes(args: &Restore) -> Result<Vec<(String, Vec<u8>)>> {
    for source in &args.source {
        common::profile::check_name(source).map_err(Fault::usage)?;
    }
    let mut wishes = Vec::new();
    if args.path.is_empty() && args.user.is_empty() {
        wishes.extend(args.source.iter().map(|s| (s.clone(), Vec::new())));
    } else if args.source.len() > 1 || (!args.user.is_empty() && args.source.iter().any(|s| s != "data")) {
        return Err(Fault::usage("--path is in one --source, and a --user's files are in data")
            .hint("restore in two steps")
            .into());
    }
    let source = args.source.first().map_or("data", String::as_str);
    for path in &args.path {
        let plain: PathBuf = path.components().filter(|c| *c != Component::CurDir).collect();
        let bytes = plain.as_os_str().as_bytes().to_vec();
        if path.is_absolute() || crate::protocol::check_path(&bytes).is_err() {
            return Err(Fault::usage(format!(
                "--path {} is not relative to the source {source}",
                path.display()
            ))
            .hint("write it as in STORE/DATE/SOURCE, without a slash at the beginning and without ..")
            .into());
        }
        wishes.push((source.to_owned(), bytes));
    }
    for user in &args.user {
        let bytes = user.as_os_str().as_bytes().to_vec();
        if bytes.is_empty() || bytes.contains(&b'/') || bytes == b"." || bytes == b".." {
            return Err(Fault::usage(format!("--user {} is not the name of a user", user.display())).into());
        }
        wishes.push(("data".to_owned(), bytes));
    }
    if args.closed && !args.in_place {
        return Err(Fault::usage("--closed is for an instance that comes to its place")
            .hint("give --in-place, too")
            .into());
    }
    if args.in_place && args.source.iter().any(|s| s == DATABASE) {
        return Err(Fault::usage("the database is not restored by copying files")
            .hint("`link-sync restore --source database --to DIR`, then `pg-snap restore --dump DIR/database/DUMP`")
            .into());
    }
    for (n, (source, path)) in wishes.iter().enumerate() {
        let inside = |other: &(String, Vec<u8>)| {
            other.0 == *source
                && (other.1.is_empty()
                    || other.1 == *path
                    || path.strip_prefix(&other.1[..]).is_some_and(|r| r.starts_with(b"/")))
        };
        if wishes.iter().enumerate().any(|(m, other)| m != n && inside(other)) {
            return Err(Fault::usage(format!("{} is named twice", show(&full(source, path)))).into());
        }
    }
    Ok(wishes)
}

/// All that the snapshot holds; in place, what the profile knows a place for. The database is not files to be copied there.
fn everything(args: &Restore, settings: &Settings, meta: &SnapshotMeta) -> Vec<(String, Vec<u8>)> {
    let known = |name: &str| name != DATABASE && settings.sources.iter().any(|s| s.name == name);
    let names = meta.sources.iter().map(|s| s.name.clone());
    names.filter(|name| !args.in_place || known(name)).map(|name| (name, Vec::new())).collect()
}

/// What the snapshot holds of it.
fn look(far: &mut Far, meta: &SnapshotMeta, wishes: &[(String, Vec<u8>)]) -> Result<Vec<Looked>> {
    for (source, _) in wishes {
        if meta.source(source).is_none() {
            let known: Vec<_> = meta.sources.iter().map(|s| s.name.as_str()).collect();
            return Err(Fault::config(format!("the snapshot {} holds no source '{source}'", meta.date))
                .hint(format!("it holds {}", known.join(", ")))
                .into());
        }
    }
    let looked: Vec<Option<Looked>> = far.ask_with_list(&Request::Look, |list| {
        wishes.iter().try_for_each(|(source, path)| list.path(&full(source, path)))
    })?;
    let missing = wishes.iter().zip(&looked).find(|(_, l)| l.is_none());
    if let Some(((source, path), _)) = missing {
        return Err(Fault::config(format!(
            "{} is not in the snapshot {}",
            show(&full(source, path)),
            meta.date
        ))
        .hint("`link-sync list` shows the dates; is it spelled as in STORE/DATE/SOURCE?")
        .into());
    }
    Ok(looked.into_iter().flatten().collect())
}

/// Where one path goes.
fn item(args: &Restore, settings: &Settings, source: String, path: Vec<u8>, looked: Looked) -> Result<Item> {
    let real = |p: &Path| p.canonicalize().unwrap_or_else(|_| p.to_owned());
    let mut others: Vec<PathBuf> = Vec::new();
    let (base, before, rest) = match &args.to {
        Some(to) => (std::path::absolute(to).context("--to")?, 0, full(&source, &path)),
        None => {
            let found = settings.sources.iter().find(|s| s.name == source).ok_or_else(|| {
                Fault::config(format!("the profile does not say where source '{source}' belongs"))
                    .hint("restore with --to DIR, or add it to [[snapshot.source]]")
            })?;
            others.extend(settings.sources.iter().filter(|s| s.name != source).map(|s| real(&s.path)));
            (found.path.clone(), 1, path.clone())
        }
    };
    if let crate::settings::Place::Local(store) = &settings.store {
        others.push(real(store));
        if real(&base).starts_with(real(store)) {
            return Err(Fault::config(format!(
                "{} lies in the store: a snapshot is never changed",
                base.display()
            ))
            .hint("restore to another folder")
            .into());
        }
    }
    if args.dry_run && !base.exists() {
        // Nothing is made: what is above it stands for it.
        let above = base.ancestors().find(|a| a.is_dir()).unwrap_or(Path::new("/"));
        let (home, shown) = target::open_trusted(above)?;
        let target = Target {
            anchor: home.try_clone()?,
            shown: base,
            strip: before,
            only: None,
            exists: false,
            spare: Vec::new(),
        };
        return Ok(Item { source, path, looked, target, home, home_shown: shown });
    }
    let made = target::make(&base)?;
    let (dir, shown) = target::open_trusted(&base)?;
    let mut target = Target::find(&dir, &shown, before, &rest, &others)?;
    target.exists &=
        !(made || target.only.is_none() && visit::names(&target.anchor.try_clone()?)?.is_empty());
    // The private folder lies at the top, where no user looks, if that is on the same file system.
    let same = dir.metadata()?.dev() == target.anchor.metadata()?.dev();
    let (home, home_shown) = match same && target.only.is_some() {
        true => (dir, shown),
        false => (target.anchor.try_clone()?, target.shown.clone()),
    };
    Ok(Item { source, path, looked, target, home, home_shown })
}

/// Says what will be done.
fn tell_plan(items: &[Item], meta: &SnapshotMeta, report: &mut Report) {
    let mut list = Vec::new();
    for item in items {
        let path = item.target.path();
        status::tell(format_args!(
            "link-sync: {} of {}: {} paths, {}, to {}{}",
            show(&item.full()),
            meta.date,
            item.looked.paths,
            indicatif::BinaryBytes(item.looked.bytes),
            path.display(),
            if item.target.exists { ", replacing what is there" } else { "" }
        ));
        let mut entry = Map::new();
        entry.insert("source".into(), json!(item.source));
        status::put_text(&mut entry, "path", OsStr::from_bytes(&item.path));
        status::put_text(&mut entry, "target", path.as_os_str());
        entry.insert("folder".into(), json!(item.looked.folder));
        entry.insert("paths".into(), json!(item.looked.paths));
        entry.insert("allocated_bytes".into(), json!(item.looked.bytes));
        entry.insert("replaces".into(), json!(item.target.exists));
        entry.insert("kept_at".into(), Value::Null);
        list.push(Value::Object(entry));
    }
    report.set("items", list);
}

/// Asks before anything is replaced.
fn confirm(args: &Restore, items: &[Item]) -> Result<()> {
    if args.yes || !items.iter().any(|i| i.target.exists) {
        return Ok(());
    }
    let refused =
        || Fault::usage("something would be replaced").hint("give --yes, or restore elsewhere with --to DIR");
    if !std::io::stdin().is_terminal() || !std::io::stderr().is_terminal() {
        return Err(refused().into());
    }
    write!(std::io::stderr(), "Replace it? What is there is removed when all has been restored. [y/N] ").ok();
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).context("cannot read the answer")?;
    match matches!(line.trim(), "y" | "Y" | "yes") {
        true => Ok(()),
        false => Err(refused().into()),
    }
}

/// The private folder for one path.
fn open(item: &Item, meta: &SnapshotMeta) -> Result<Partial> {
    let state = State {
        snapshot: meta.id.clone(),
        path: show(&item.full()),
        target: item.target.path().display().to_string(),
        swap: None,
    };
    let times = fstat(&item.home).context("cannot look at a folder")?;
    let partial = Partial::open(&item.home, &item.home_shown, state, &meta.date)?;
    set_times(&item.home, &times)?;
    Ok(partial)
}

fn set_times(dir: &File, stat: &nix::sys::stat::FileStat) -> Result<()> {
    let (accessed, modified) =
        (TimeSpec::new(stat.st_atime, stat.st_atime_nsec), TimeSpec::new(stat.st_mtime, stat.st_mtime_nsec));
    futimens(dir, &accessed, &modified).context("cannot set a folder's time")
}

/// Refuses before anything is copied if it would not fit beside what is there.
fn room(items: &[Item], opened: &[Partial]) -> Result<()> {
    let mut needs: Vec<(u64, &Item, u64, u64)> = Vec::new();
    for (item, partial) in items.iter().zip(opened) {
        let (mut bytes, mut inodes) = (0, 0);
        visit::each(&partial.part(NEW)?, |found| {
            let stat =
                nix::sys::stat::fstatat(found.parent, found.name, nix::fcntl::AtFlags::AT_SYMLINK_NOFOLLOW)?;
            bytes += u64::try_from(stat.st_blocks).unwrap_or(0) * 512;
            inodes += 1;
            Ok(())
        })?;
        let (bytes, inodes) = match partial.state.swap {
            Some(_) => (0, 0),
            None => (item.looked.bytes.saturating_sub(bytes), item.looked.paths.saturating_sub(inodes)),
        };
        let dev = partial.dir.metadata()?.dev();
        match needs.iter_mut().find(|n| n.0 == dev) {
            Some(known) => (known.2, known.3) = (known.2 + bytes, known.3 + inodes),
            None => needs.push((dev, item, bytes, inodes)),
        }
    }
    for (_, item, bytes, inodes) in needs {
        let stat = nix::sys::statvfs::fstatvfs(&item.home).context("cannot ask for the free room")?;
        let free = stat.blocks_available().saturating_mul(stat.fragment_size());
        let shown = item.home_shown.display();
        if bytes > 0 && free < bytes.saturating_add(RESERVE) {
            return Err(Fault::failed(format!("not enough room for {shown}: {bytes} bytes are to come, {free} are free"))
                .hint("what is replaced is kept until all has succeeded, so both must fit: make room, or restore elsewhere with --to")
                .into());
        }
        if stat.files() != 0 && stat.files_available() < inodes {
            let free = stat.files_available();
            return Err(Fault::failed(format!(
                "not enough inodes for {shown}: {inodes} are needed, {free} are free"
            ))
            .hint("use a file system that was made with more, or restore elsewhere with --to")
            .into());
        }
    }
    Ok(())
}

/// Copies one path into its private folder, completely and durably.
fn arrive(
    args: &Restore,
    settings: &Settings,
    item: &Item,
    partial: &mut Partial,
    far: &mut Far,
    progress: &Progress,
) -> Result<()> {
    let path = item.full();
    let new = partial.part(NEW)?;
    remove(&new, Path::new(TEMPORARY))?;
    drop(ensure_dir(&new, TEMPORARY.as_bytes())?);
    let (xattrs, acls) = abilities(&new)?;
    let fetch = |dry: bool, checksum: bool| Fetch {
        rsync: &settings.rsync,
        folder: &partial.dir,
        path: &path,
        strip: item.target.strip,
        checksum,
        dry,
        xattrs,
        acls,
    };
    progress.begin(show(&path), item.looked.bytes);
    // What an interrupted run left is believed by its content, not by its size and time.
    fetch(false, partial.continued).run(far, progress)?;
    if args.verify {
        progress.begin(format!("{}: comparing", show(&path)), 0);
        let different = fetch(true, true).run(far, progress)?;
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
    if args.closed && item.source == HTML && item.path.is_empty() {
        maintenance::close(&new)?;
    }
    partial.sync()?;
    let old = partial.part(OLD)?;
    let plan = swap(item, &new, &old).plan()?;
    partial.state.swap = Some(plan);
    partial.save()
}

fn swap<'a>(item: &'a Item, new: &'a File, old: &'a File) -> Swap<'a> {
    let target = &item.target;
    Swap { new, old, target: &target.anchor, only: target.only.as_deref(), spare: &target.spare }
}

fn put_in_place(item: &Item, partial: &Partial) -> Result<()> {
    let (new, old) = (partial.part(NEW)?, partial.part(OLD)?);
    let plan = partial.state.swap.as_ref().context("internal error: nothing has arrived")?;
    swap(item, &new, &old).run(plan)?;
    Ok(())
}

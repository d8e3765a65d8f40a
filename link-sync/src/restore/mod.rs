//! Bringing back what a snapshot holds: a file, a folder, a user, whole sources.
//!
//! Everything arrives in a private folder beside its place first ([`partial`]), completely and on the disk; only then
//! is it put in place by renames ([`mod@swap`]), and only when all of that has succeeded is what was replaced removed. So
//! an interrupted restore has either changed nothing that is in use, or is finished by the same command.

mod fetch;
mod left_out;
mod partial;
mod shallow;
mod swap;
mod tame;
mod target;

use std::ffi::OsStr;
use std::fs::File;
use std::io::IsTerminal as _;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Component, Path, PathBuf};

use anyhow::{Context as _, Result};
use common::fault::Fault;
use common::mutant;
use common::restoring;
use common::status::{self, Report};
use nix::sys::stat::{fstat, futimens};
use nix::sys::time::TimeSpec;
use serde_json::{Map, Value, json};

use crate::agent;
use crate::cli::Restore;
use crate::far::Far;
use crate::maintenance;
use crate::progress::Progress;
use crate::protocol::{Looked, ReadHolding, ReadIdle};
use crate::reach::reach;
use crate::settings::{DATABASE, Settings};
use crate::store::clear::clear;
use crate::store::meta::SnapshotMeta;
use crate::store::{ensure_dir, open::abilities, open_dir, remove, split, visit};
use crate::tree::join;
use crate::walk::show;
use fetch::Fetch;
use left_out::{NotBack, PutBack};
use partial::{KEPT, Left, NEW, OLD, PREFIX, Partial, Plan, REMOVING, State, TEMPORARY};
use shallow::Shallow;
use swap::Swap;
use tame::Tamed;
use target::{Target, real};

/// The source that holds Nextcloud's configuration.
const HTML: &str = "html";
/// Paths of one item that the report names.
const SHOWN: usize = 100;
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

    /// The names that lead to it from the folder it goes into.
    fn names(&self) -> Vec<Vec<u8>> {
        self.full().split(|b| *b == b'/').skip(self.target.strip).map(<[u8]>::to_vec).collect()
    }
}

fn full(source: &str, path: &[u8]) -> Vec<u8> {
    if path.is_empty() { source.as_bytes().to_vec() } else { join(source.as_bytes(), path) }
}

/// Does it.
pub fn restore(args: &Restore, report: &mut Report) -> Result<()> {
    let settings = args.profile.options().settings()?;
    if args.closed {
        // Before anything is done.
        maintenance::nc_maint()?;
    }
    let mut wishes = wishes(args)?;
    // Nothing may be backed up while it is replaced, nor the other way round. Before Nextcloud is closed is a good time to
    // be told.
    let _lock = match args.in_place && (!args.dry_run || args.closed) {
        true => Some(agent::lock(&settings.runtime)?),
        false => None,
    };
    let mut far = Far::connect_reading(&settings)?;
    let meta: SnapshotMeta = far.ask(&ReadIdle::Hold { date: args.date.clone() })?;
    plausible(&meta, &args.date)?;
    report.set("date", meta.date.as_str());
    report.set("id", meta.id.as_str());
    report.set("consistency", json!(meta.consistency));
    if wishes.is_empty() {
        wishes = everything(args, &settings, &meta, report);
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
        items.push(item(args, &settings, &meta, source, path, looked)?);
    }
    tell_plan(&items, &meta, report);
    for item in &items {
        item.target.can_be_replaced()?;
    }
    if args.dry_run {
        let found = items.iter().map(|i| Partial::look(&i.home, &state(i, args, &meta), &meta.date));
        return room(&items, &found.collect::<Result<Vec<_>>>()?);
    }
    confirm(args, &items)?;
    if !nix::unistd::geteuid().is_root() {
        report.warn("owners-not-kept", "without root, everything restored belongs to this account");
    }
    let mut opened = Vec::new();
    for item in &items {
        opened.push(open(item, args, &meta)?);
    }
    let arrived = opened.iter().map(|p| Ok(Some((p.part(NEW)?, p.state.swap.is_some()))));
    room(&items, &arrived.collect::<Result<Vec<_>>>()?)?;
    if args.in_place && args.closed {
        restoring::begin(&settings.state, &meta.date, html(&settings))?;
    }
    let progress = Progress::terminal();
    // One that was interrupted when all had arrived does not compare again.
    let verified = args.verify && opened.iter().all(|p| p.state.swap.is_none());
    for (item, partial) in items.iter().zip(&mut opened) {
        if partial.state.swap.is_none() {
            arrive(args, &settings, item, partial, &mut far, meta.fake_super, &progress)?;
        }
        report.changed = true;
    }
    progress.begin("putting in place", 0);
    let mut not_back = Vec::new();
    for (at, (item, partial)) in items.iter().zip(&mut opened).enumerate() {
        let before = items[..at].iter().any(|o| o.target.path() == item.target.path());
        if before && !mutant::active("two-in-one-new-folder") {
            swap::graft(&partial.part(NEW)?, &item.target.anchor, &item.names())?;
            not_back.push(NotBack::default());
            continue;
        }
        not_back.push(put_in_place(args, &settings, item, partial)?);
    }
    let mut own = Vec::new();
    for (at, (item, partial)) in items.iter().zip(opened).enumerate() {
        if let Some((path, why)) = not_back[at].held.first() {
            // The same command goes on from here.
            let what = format!(
                "{} holds {}, which is in no snapshot and cannot be moved back to its place: {}",
                partial.shown.display(),
                show(path),
                why.desc()
            );
            report.left_behind(
                what,
                "make it movable (chattr -i -a, or unmount it), then give the same command again",
            );
            own.push(partial.shown);
            continue;
        }
        tell_tamed(at, item, &partial, report);
        let times = fstat(&item.home).context("cannot look at a folder")?;
        let left = partial.finish(args.keep_replaced && item.target.exists)?;
        // That the private folder is gone is no change of the folder it lay in.
        set_times(&item.home, &times)?;
        tell_left(at, &left, &not_back[at].kept, report);
        own.extend([left.replaced, left.kept, left.stuck.map(|s| s.0)].into_iter().flatten());
    }
    others_left(&items, &meta, &own, report)?;
    report.set("verified", verified);
    Ok(())
}

/// What the far end says of the snapshot becomes names of folders here.
fn plausible(meta: &SnapshotMeta, asked: &str) -> Result<()> {
    let wrong = |what: String| {
        Fault::failed(format!("the other end described the snapshot wrongly: {what}"))
            .hint("is it link-sync of this version, and has somebody written to the store?")
    };
    if mutant::active("restore-believes-descriptions") {
        return Ok(());
    }
    if !crate::store::meta::is_date(&meta.date) || asked != "latest" && asked != meta.date {
        return Err(wrong(format!("its date is '{}'", meta.date.escape_debug())).into());
    }
    if meta.id.len() != 32 || !meta.id.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(wrong(format!("its id is '{}'", meta.id.escape_debug())).into());
    }
    match meta.sources.iter().find(|s| common::profile::check_name(&s.name).is_err()) {
        Some(source) => Err(wrong(format!("a source is called '{}'", source.name.escape_debug())).into()),
        None => Ok(()),
    }
}

/// Says what of one item did not come as the store has it.
fn tell_tamed(at: usize, item: &Item, partial: &Partial, report: &mut Report) {
    let Some(tamed) = partial.state.swap.as_ref().map(|plan| &plan.tamed).filter(|t| t.total > 0) else {
        return;
    };
    let first = tamed.first.first().map(String::as_str).unwrap_or_default();
    report.warn(
        "set-id-and-devices-left-out",
        format!(
            "{}: {} set-id bits, devices or attributes of the system were not restored, as the store is another account's, which \
             could have made them up; the first: {first} (--set-id-and-devices restores them)",
            show(&item.full()),
            tamed.total
        ),
    );
    report.set_partial();
    if let Some(entry) = report.data["items"].get_mut(at) {
        entry["set_id_and_devices_left_out"] = json!({"total": tamed.total, "first": tamed.first});
    }
}

/// Says what is left of one item.
fn tell_left(at: usize, left: &Left, stuck: &[Vec<u8>], report: &mut Report) {
    let text = |path: &Option<PathBuf>| path.as_ref().map(|p| p.display().to_string());
    if let Some(path) = text(&left.replaced) {
        status::tell(format_args!("link-sync: what was replaced is in {path}"));
    }
    if let Some(path) = text(&left.kept) {
        let first = stuck.first().map(|p| format!(" ({} of them, the first: {})", stuck.len(), show(p)));
        report.warn(
            "left-out-kept",
            format!(
                "what is in no snapshot, as backups leave it out or as it cannot be read, and could not go back to its \
                 place{} is in {path}: remove it when you need nothing of it",
                first.unwrap_or_default(),
            ),
        );
        report.set_partial();
    }
    if let Some((path, why)) = &left.stuck {
        let what = format!("what was replaced, in {}, is not all gone: {why}", path.display());
        let clear = "make it removable (chattr -R -i -a, or unmount what is in it) and remove it; any restore to that place tries again";
        report.left_behind(what, clear);
    }
    if let Some(entry) = report.data["items"].get_mut(at).and_then(Value::as_object_mut) {
        if let Some(path) = left.replaced.as_ref().map(|p| p.join(OLD)) {
            status::put_text(entry, "kept_at", path.as_os_str());
        }
        if let Some(path) = &left.kept {
            status::put_text(entry, "left_out_at", path.as_os_str());
        }
        let named = || stuck.iter().take(SHOWN);
        entry.insert("not_put_back".into(), named().map(|p| show(p)).collect());
        status::put_list_b64(entry, "not_put_back", named().map(|p| &p[..]));
    }
}

/// Says what other restores, or attempts, have left: it may be the only copy of what they replaced.
fn others_left(items: &[Item], meta: &SnapshotMeta, own: &[PathBuf], report: &mut Report) -> Result<()> {
    let same_date = format!("{PREFIX}{}-", meta.date);
    let mut told: Vec<PathBuf> = own.to_vec();
    for item in items {
        let home = open_dir(&item.home, b"").context("cannot open a folder again")?;
        let times = fstat(&home).context("cannot look at a folder")?;
        for (name, is_dir, _) in visit::names(&home)? {
            let path = item.home_shown.join(OsStr::from_bytes(&name));
            let asked_for = name.starts_with(same_date.as_bytes()) && name.ends_with(b".replaced");
            if !is_dir || !name.starts_with(PREFIX.as_bytes()) || asked_for || told.contains(&path) {
                continue;
            }
            let how = if name.ends_with(format!(".{REMOVING}").as_bytes()) {
                let Some(stuck) = clear(&home, &name)?.shown() else {
                    set_times(&home, &times)?;
                    continue;
                };
                report.warn(
                    "not-removed",
                    format!(
                        "what an earlier restore replaced is still not all gone: {}/{stuck}",
                        item.home_shown.display()
                    ),
                );
                report.set_partial();
                told.push(path);
                continue;
            } else if name.ends_with(b".partial") {
                "is of a restore that was not finished, and may hold the only copy of what it had replaced and of what backups leave \
                 out: look at it, or give that restore again"
            } else {
                "is of an earlier restore"
            };
            let shown = path.display();
            report.warn("earlier-restore", format!("{shown} {how}; remove it when you need nothing of it"));
            report.set_partial();
            told.push(path);
        }
    }
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
fn everything(
    args: &Restore,
    settings: &Settings,
    meta: &SnapshotMeta,
    report: &mut Report,
) -> Vec<(String, Vec<u8>)> {
    let names = meta.sources.iter().map(|s| s.name.clone());
    if !args.in_place {
        return names.map(|name| (name, Vec::new())).collect();
    }
    let known = |name: &String| settings.sources.iter().any(|s| s.name == *name);
    let (known, unknown): (Vec<_>, Vec<_>) = names.filter(|name| name != DATABASE).partition(known);
    if !unknown.is_empty() {
        report.warn(
            "sources-left-out",
            format!(
                "the profile does not say where these sources belong, so they stay where they are: {}",
                unknown.join(", ")
            ),
        );
        report.set_partial();
    }
    report.set("left_out_sources", unknown);
    known.into_iter().map(|name| (name, Vec::new())).collect()
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
    let looked: Vec<Option<Looked>> = far.ask_with_list(&ReadHolding::Look {}, |list| {
        wishes.iter().try_for_each(|(source, path)| list.path(&full(source, path)))
    })?;
    let missing = wishes.iter().zip(&looked).find(|(_, l)| l.is_none());
    if let Some(((source, path), _)) = missing {
        // As `find` and `diff` print it.
        let mut names = path.splitn(2, |b| *b == b'/');
        let first = names.next().and_then(|name| std::str::from_utf8(name).ok());
        let hint = match (first.filter(|name| meta.source(name).is_some()), names.next()) {
            (Some(name), Some(rest)) => {
                format!("without the source's name: --source {name} --path {}", show(rest))
            }
            _ => "--path is written without the source's name; `link-sync find PROFILE --name NAME` says where it is, and when it \
                  was there"
                .into(),
        };
        return Err(Fault::config(format!(
            "{} is not in the snapshot {}",
            show(&full(source, path)),
            meta.date
        ))
        .hint(hint)
        .into());
    }
    let looked: Vec<Looked> = looked.into_iter().flatten().collect();
    for ((source, path), looked) in wishes.iter().zip(&looked) {
        let above = join(&full(source, path), b"");
        let below = |deep: &Vec<u8>| deep.starts_with(&above) && crate::protocol::check_path(deep).is_ok();
        if !looked.deep.iter().all(below) {
            return Err(Fault::failed("the other end named folders that were not asked for").into());
        }
    }
    Ok(looked)
}

/// Where one path goes.
fn item(
    args: &Restore,
    settings: &Settings,
    meta: &SnapshotMeta,
    source: String,
    path: Vec<u8>,
    looked: Looked,
) -> Result<Item> {
    let mut others: Vec<PathBuf> = Vec::new();
    let (base, before, rest) = match &args.to {
        Some(to) => (std::path::absolute(to).context("--to")?, 0, full(&source, &path)),
        None => {
            let found = settings.sources.iter().find(|s| s.name == source).ok_or_else(|| {
                Fault::config(format!("the profile does not say where source '{source}' belongs"))
                    .hint("restore with --to DIR, or add it to [[snapshot.source]]")
            })?;
            others.extend(settings.sources.iter().filter(|s| s.name != source).map(|s| real(&s.path)));
            others
                .extend(strangers(settings, meta, &source)?.iter().map(|rest| real(&found.path.join(rest))));
            (found.path.clone(), 1, path.clone())
        }
    };
    // From here on only what the file system made of it counts.
    let mut reached = reach(&base)?;
    let shown = reached.shown.clone();
    if let crate::settings::Place::Local(store) = &settings.store {
        others.push(real(store));
        if shown.starts_with(real(store)) {
            return Err(Fault::config(format!(
                "{} lies in the store: a snapshot is never changed",
                shown.display()
            ))
            .hint("restore to another folder")
            .into());
        }
    }
    if args.dry_run && !reached.missing.is_empty() {
        // Nothing is made: what is above it stands for it.
        let home = reached.dir;
        let target = Target {
            anchor: home.try_clone()?,
            shown: shown.clone(),
            strip: before,
            only: None,
            exists: false,
            spare: Vec::new(),
        };
        return Ok(Item { source, path, looked, target, home, home_shown: shown });
    }
    let made = reached.make()?;
    let dir = reached.dir;
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

/// Where in `source`, relative to it, sources of the snapshot lay that the profile does not know: what is there now is
/// in this source's folder, and not in its part of the snapshot.
fn strangers(settings: &Settings, meta: &SnapshotMeta, source: &str) -> Result<Vec<PathBuf>> {
    let Some(own) = meta.source(source) else { return Ok(Vec::new()) };
    let mut found = Vec::new();
    for other in meta.sources.iter().filter(|o| !settings.sources.iter().any(|s| s.name == o.name)) {
        let Some(rest) = other.path.strip_prefix(&own.path).and_then(|rest| rest.strip_prefix('/')) else {
            continue;
        };
        if rest.contains('\\') {
            return Err(Fault::config(format!(
                "source {} lay inside of {source}, at {rest}, and the profile does not know it",
                other.name
            ))
            .hint("add it to [[snapshot.source]]")
            .into());
        }
        found.push(PathBuf::from(rest));
    }
    Ok(found)
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
        entry.insert("left_out_at".into(), Value::Null);
        entry.insert("not_put_back".into(), json!([]));
        entry.insert("set_id_and_devices_left_out".into(), json!({"total": 0, "first": []}));
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
    if !std::io::stdin().is_terminal() || !common::show::watched() {
        return Err(refused().into());
    }
    common::show::question("Replace it? What is there is removed when all has been restored. [y/N] ");
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).context("cannot read the answer")?;
    match matches!(line.trim(), "y" | "Y" | "yes") {
        true => Ok(()),
        false => Err(refused().into()),
    }
}

/// Where the instance is.
pub fn html(settings: &Settings) -> Option<&Path> {
    settings.sources.iter().find(|s| s.name == HTML).map(|s| &*s.path)
}

/// What the private folder for one path is for.
fn state(item: &Item, args: &Restore, meta: &SnapshotMeta) -> State {
    State {
        snapshot: meta.id.clone(),
        path: match mutant::active("restores-are-told-apart-by-bytes") {
            true => show(&item.full()).into_bytes(),
            false => item.full(),
        },
        target: match mutant::active("restores-are-told-apart-by-bytes") {
            true => show(item.target.path().as_os_str().as_bytes()).into_bytes(),
            false => item.target.path().into_os_string().into_vec(),
        },
        closed: args.closed,
        swap: None,
    }
}

/// The private folder for one path.
fn open(item: &Item, args: &Restore, meta: &SnapshotMeta) -> Result<Partial> {
    let times = fstat(&item.home).context("cannot look at a folder")?;
    let partial = Partial::open(&item.home, &item.home_shown, state(item, args, meta), &meta.date)?;
    set_times(&item.home, &times)?;
    Ok(partial)
}

fn set_times(dir: &File, stat: &nix::sys::stat::FileStat) -> Result<()> {
    let (accessed, modified) =
        (TimeSpec::new(stat.st_atime, stat.st_atime_nsec), TimeSpec::new(stat.st_mtime, stat.st_mtime_nsec));
    futimens(dir, &accessed, &modified).context("cannot set a folder's time")
}

/// Refuses before anything is copied if it would not fit beside what is there. `arrived` is what an interrupted run
/// left of each item, and whether that was all.
fn room(items: &[Item], arrived: &[Option<(File, bool)>]) -> Result<()> {
    let mut needs: Vec<(u64, &Item, u64, u64)> = Vec::new();
    for (item, arrived) in items.iter().zip(arrived) {
        let (mut bytes, mut inodes) = (0, 0);
        if let Some((new, false)) = arrived {
            visit::each(new, |found| {
                let stat = nix::sys::stat::fstatat(
                    found.parent,
                    found.name,
                    nix::fcntl::AtFlags::AT_SYMLINK_NOFOLLOW,
                )?;
                bytes += u64::try_from(stat.st_blocks).unwrap_or(0) * 512;
                inodes += 1;
                Ok(())
            })?;
        }
        let (bytes, inodes) = match arrived {
            Some((_, true)) => (0, 0),
            _ => (item.looked.bytes.saturating_sub(bytes), item.looked.paths.saturating_sub(inodes)),
        };
        let dev = item.home.metadata()?.dev();
        match needs.iter_mut().find(|n| n.0 == dev) {
            Some(known) => {
                (known.2, known.3) = (known.2.saturating_add(bytes), known.3.saturating_add(inodes));
            }
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
    fake_super: bool,
    progress: &Progress,
) -> Result<()> {
    let path = item.full();
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
    let mut tamed = Tamed::default();
    if !args.set_id_and_devices && !tame::trusted(settings, fake_super) {
        if args.in_place {
            no_new_occ_of_root(item, &new)?;
        }
        tamed = tame::tame(&new)?;
    }
    if args.closed && item.source == HTML && item.path.is_empty() {
        maintenance::close(&new)?;
    }
    partial.sync()?;
    let old = partial.part(OLD)?;
    let plan = swap(item, &new, &old).plan()?;
    partial.state.swap = Some(Plan { tamed, ..plan });
    partial.save()
}

/// occ runs as whoever owns config.php. The account of a store could make that root where it was not.
fn no_new_occ_of_root(item: &Item, new: &File) -> Result<()> {
    let config: [&[u8]; 3] = [HTML.as_bytes(), b"config", b"config.php"];
    let full = item.full();
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

fn swap<'a>(item: &'a Item, new: &'a File, old: &'a File) -> Swap<'a> {
    let target = &item.target;
    Swap { new, old, target: &target.anchor, only: target.only.as_deref(), spare: &target.spare }
}

/// Puts one path in its place, and in it, where that is its own place, what the backup leaves out. Returns what of that
/// could not go back.
fn put_in_place(args: &Restore, settings: &Settings, item: &Item, partial: &Partial) -> Result<NotBack> {
    let (new, old) = (partial.part(NEW)?, partial.part(OLD)?);
    let plan = partial.state.swap.as_ref().context("internal error: nothing has arrived")?;
    swap(item, &new, &old).run(plan)?;
    let Some(source) = settings.sources.iter().find(|s| args.in_place && s.name == item.source) else {
        return Ok(NotBack::default());
    };
    // The parts of SOURCE/PATH that lead to the folder it went into, without the first.
    let parts: Vec<&[u8]> = item.path.split(|b| *b == b'/').filter(|p| !p.is_empty()).collect();
    let prefix = parts[..(item.target.strip - 1).min(parts.len())].join(&b'/');
    let put_back = PutBack {
        old: &partial.part(OLD)?,
        target: &item.target.anchor,
        kept: &ensure_dir(&partial.dir, KEPT.as_bytes())?,
        prefix: &prefix,
        asked: item.target.only.is_some(),
    };
    put_back.run(&left_out::rules(source, item.path.is_empty())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_description_that_would_lead_elsewhere_is_refused() {
        let good = json!({
            "schema": 1, "id": "0123456789abcdef0123456789abcdef", "date": "2026-01-02T03-04-05Z", "base_id": null,
            "base_date": null, "run_id": null, "consistency": "sealed", "started_at": "", "published_at": "",
            "tool_version": "", "fake_super": true,
            "sources": [{"name": "data", "path": "/", "fs_id": null, "submounts": [], "paths": 1, "bytes": 1}],
        });
        let check = |change: &dyn Fn(&mut Value), asked: &str| {
            let mut meta = good.clone();
            change(&mut meta);
            plausible(&serde_json::from_value(meta)?, asked)
        };
        check(&|_| {}, "latest").unwrap();
        check(&|_| {}, "2026-01-02T03-04-05Z").unwrap();
        assert!(check(&|_| {}, "2026-01-02T03-04-06Z").is_err());
        for (key, bad) in [("date", "x/../../../../etc/2026"), ("date", "latest"), ("id", "/"), ("id", "")] {
            assert!(check(&|meta| meta[key] = bad.into(), "latest").is_err(), "{key} {bad}");
        }
        for bad in ["..", "../etc", "a/b", "", ".meta"] {
            assert!(check(&|meta| meta["sources"][0]["name"] = bad.into(), "latest").is_err(), "{bad}");
        }
    }
}

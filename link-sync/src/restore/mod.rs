//! Bringing back what a snapshot holds: a file, a folder, a user, whole sources.
//!
//! Everything arrives in a private folder beside its place first ([`partial`]), completely and on the disk; only then
//! is it put in place by renames ([`mod@swap`]), and only when all of that has succeeded is what was replaced removed. So
//! an interrupted restore has either changed nothing that is in use, or is finished by the same command.

mod arrive;
mod folders;
mod item;
mod journal;
mod left_out;
mod partial;
mod room;
mod shallow;
mod swap;
mod tame;
mod target;
mod telling;
mod wishes;

use std::io::IsTerminal as _;

use anyhow::{Context as _, Result};
use common::fault::Fault;
use common::mutant;
use common::restoring;
use common::status::{self, Report};
use nix::sys::stat::fstat;
use serde_json::json;

use crate::agent;
use crate::cli::Restore;
use crate::far::Far;
use crate::maintenance;
use crate::names::show;
use crate::progress::Progress;
use crate::protocol::ReadIdle;
use crate::settings::Settings;
use crate::store::ensure_dir;
use crate::store::meta::SnapshotMeta;
use arrive::arrive;
use folders::set_times;
use item::Item;
use left_out::{NotBack, PutBack};
use partial::{KEPT, NEW, OLD, Partial};
use room::room;
use telling::{others_left, tell_first, tell_left, tell_plan, tell_tamed};
use wishes::{everything, look, plausible, wishes};

/// Does it. What an interrupted one had begun to put in place is finished first; as whoever uses it may have changed that
/// since, it is then restored once more, unless Nextcloud was closed all the time.
pub fn restore(args: &Restore, report: &mut Report) -> Result<()> {
    if once(args, args.yes, report)? && !mutant::active("restored-once-is-restored") {
        status::tell(format_args!(
            "link-sync: what an interrupted restore had begun is finished; it may have changed since, so it is restored again"
        ));
        let before = report.data.get("items").cloned().unwrap_or_default();
        let done = once(args, true, report);
        tell_first(&before, report);
        done?;
    }
    Ok(())
}

/// Does it, without asking if it is `sure`. Returns whether an earlier run had begun to put in place what somebody could use
/// since.
fn once(args: &Restore, sure: bool, report: &mut Report) -> Result<bool> {
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
        wishes.sort_by_key(|wish| depth(&wish.source));
    }
    let looked = look(&mut far, &meta, &wishes)?;
    let mut items = Vec::new();
    for (wish, looked) in wishes.into_iter().zip(looked) {
        items.push(Item::find(args, &settings, &meta, wish, looked)?);
    }
    tell_plan(&items, &meta, report);
    for item in &items {
        item.target.can_be_replaced()?;
    }
    if args.dry_run {
        let found = items.iter().map(|i| Partial::look(&i.home, &i.journal(args, &meta), &meta.date));
        room(&items, &found.collect::<Result<Vec<_>>>()?)?;
        return Ok(false);
    }
    confirm(sure, &items)?;
    if !nix::unistd::geteuid().is_root() {
        report.warn("owners-not-kept", "without root, everything restored belongs to this account");
    }
    let mut opened = Vec::new();
    for item in &items {
        opened.push(item.open(args, &meta)?);
    }
    let arrived = opened.iter().map(|p| Ok(Some((p.part(NEW)?, p.journal.swap.is_some()))));
    room(&items, &arrived.collect::<Result<Vec<_>>>()?)?;
    let since = match args.in_place && args.closed {
        true => Some(restoring::begin(&settings.state, &meta.date, settings.html())?),
        false => None,
    };
    let progress = Progress::terminal();
    // One that was interrupted when all had arrived does not compare again.
    let begun = opened.iter().any(|p| p.journal.swap.is_some());
    let used = opened.iter().filter_map(|p| p.journal.swap.as_ref()).any(|s| !s.unused(since.as_deref()));
    let verified = args.verify && !begun;
    for (item, partial) in items.iter().zip(&mut opened) {
        if partial.journal.swap.is_none() {
            arrive(args, &settings, item, partial, (&mut far, &meta), since.as_deref(), &progress)?;
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
    Ok(used && not_back.iter().all(|n| n.held.is_empty()))
}

/// Asks before anything is replaced.
fn confirm(sure: bool, items: &[Item]) -> Result<()> {
    if sure || !items.iter().any(|i| i.target.exists) {
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

/// Puts one path in its place, and in it, where that is its own place, what the backup leaves out. Returns what of that
/// could not go back.
fn put_in_place(args: &Restore, settings: &Settings, item: &Item, partial: &Partial) -> Result<NotBack> {
    let (new, old) = (partial.part(NEW)?, partial.part(OLD)?);
    let plan = partial.journal.swap.as_ref().context("internal error: nothing has arrived")?;
    item.swap(&new, &old).run(plan)?;
    let Some(source) = settings.sources.iter().find(|s| args.in_place && s.name == item.wish.source) else {
        return Ok(NotBack::default());
    };
    // The parts of SOURCE/PATH that lead to the folder it went into, without the first.
    let parts: Vec<&[u8]> = item.wish.path.split(|b| *b == b'/').filter(|p| !p.is_empty()).collect();
    let prefix = parts[..(item.target.strip - 1).min(parts.len())].join(&b'/');
    let put_back = PutBack {
        old: &partial.part(OLD)?,
        target: &item.target.anchor,
        kept: &ensure_dir(&partial.dir, KEPT.as_bytes())?,
        prefix: &prefix,
        asked: item.target.only.is_some(),
    };
    put_back.run(&left_out::rules(source, item.wish.path.is_empty())?)
}

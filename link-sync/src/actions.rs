//! What each action does, from parsed arguments to a filled report.

use std::ffi::OsString;
use std::path::Path;

use anyhow::{Context as _, Result};
use common::fault::Fault;
use common::mutant;
use common::profile::Profile;
use common::retention::Retention;
use common::status::Report;

use crate::agent;
use crate::cli::{self, Abort, Run};
use crate::copy;
use crate::far::Far;
use crate::maintenance;
use crate::progress::Progress;
use crate::protocol::{BackupIdle, Door};
use crate::serve::{Terms, serve};
use crate::session::{Allow, Session};
use crate::settings::rsync_argv;
use crate::signs::SILENCE;
use crate::source::DATABASE;
use crate::store::Store;
use crate::store::allowance::Limits;

/// Bytes that stay free in a store unless told otherwise.
const RESERVE: u64 = 1 << 30;

/// Asks the background process, which `stage` starts if there is none.
pub fn step(action: agent::Task, run: &Run, allow: Allow, report: &mut Report) -> Result<()> {
    let settings = run.options().settings()?;
    drop(settings.wanted()?);
    let stream = match agent::ask::running(&settings.runtime) {
        Some(stream) => stream,
        None if action == agent::Task::Stage => agent::ask::start(&settings, &stage_argv())?,
        None => return Err(agent::nothing_staged().into()),
    };
    agent::ask::ask(stream, action, &settings.chosen, allow, report)
}

/// The arguments after `stage`, for the background process.
fn stage_argv() -> Vec<OsString> {
    std::env::args_os().filter(|word| word != "--json").skip(2).collect()
}

/// Gives up the snapshot under way, if there is one.
pub fn abort(abort: &Abort, report: &mut Report) -> Result<()> {
    let settings = abort.run.options().settings()?;
    if let Some(stream) = agent::ask::running(&settings.runtime) {
        let chosen = &settings.chosen;
        if let Err(error) = agent::ask::ask(stream, agent::Task::Abort, chosen, abort.run.allow(), report) {
            // One that was at work ends without another word; what counts is that it has ended.
            common::signals::check()?;
            drop(agent::wait_for_end(&settings.runtime).context(error)?);
        }
        report.changed = true;
    }
    if abort.discard {
        let _lock = agent::wait_for_end(&settings.runtime)?;
        let () = Far::connect(&settings)?.ask(&BackupIdle::Discard {})?;
        report.changed = true;
    }
    Ok(())
}

/// All three steps, in this process.
pub fn snapshot(run: &Run, report: &mut Report) -> Result<()> {
    let settings = run.options().settings()?;
    let sources = settings.wanted()?;
    if sources.len() < settings.sources.len() {
        return Err(Fault::usage("a snapshot holds every source of the profile")
            .hint("leave out --source NAME; `stage` takes single sources")
            .into());
    }
    if !run.crash_consistent
        && let Err(why) = maintenance::proof(&settings, maintenance::record(&settings)?)?
    {
        // Before hours of copying, not after.
        return Err(Fault::failed(format!("a snapshot taken now is not sealed: {why}"))
            .hint("run `nc-maint run PROFILE -- link-sync snapshot PROFILE`, or give --crash-consistent")
            .into());
    }
    let _lock = agent::lock(&settings.runtime)?;
    let (allow, progress) = (run.allow(), Progress::shown());
    let mut session = Session::begin(settings, allow, report)?;
    session.settle(&sources, allow, &progress, report)?;
    let dump: Vec<_> = sources.into_iter().filter(|s| s.name == DATABASE).collect();
    if !dump.is_empty() {
        session.stage(&dump, allow, &progress, report)?;
    }
    // It flushes everything.
    session.publish(allow, &progress, report)
}

/// The far end. stdout is the protocol's, so there is no status object; the exit code and stderr tell.
pub fn serve_store(args: &cli::Serve) -> Result<()> {
    let (store, terms) = served(args)?;
    // The owner of stdin and stdout for the whole life of this process.
    serve(&store, &terms, std::io::stdin().lock(), std::io::stdout())
}

/// The far end of a copy.
pub fn copy_end(args: &cli::CopyEnd) -> Result<()> {
    copy::started_by_copy(args.starter_fd)?;
    let store = Store {
        path: args.store.clone(),
        mount: None,
        reserve_bytes: args.reserve_bytes,
        read_only: false,
        flush_bytes: Some(args.flush_bytes),
        rsync: rsync_argv(&[]),
    };
    let terms = Terms {
        door: Door::Copy,
        retention: Retention::default(),
        limits: None,
        silence: SILENCE,
        // It is ours at both ends, and nothing waits for it: a whole store may have changed.
        memory: u64::MAX,
    };
    serve(&store, &terms, std::io::stdin().lock(), std::io::stdout())
}

/// The store to be served: this machine's profile decides, and options that say otherwise are refused.
fn served(args: &cli::Serve) -> Result<(Store, Terms)> {
    let named = args.profile.is_some() || args.config.is_some();
    let file = args
        .config
        .clone()
        .or_else(|| args.profile.as_ref().map(|p| Path::new(common::profile::DIR).join(format!("{p}.toml"))));
    let there = file.as_ref().is_some_and(|f| f.exists());
    let profile = match named && (there || args.store.is_none()) {
        true => Some(Profile::load(args.profile.as_deref(), args.config.as_deref())?),
        false => None,
    };
    let table = profile.as_ref().and_then(|p| p.store.clone());
    let path = match (table.as_ref().map(|t| &t.path), &args.store) {
        (Some(fixed), Some(asked)) if fixed.components().ne(asked.components()) => {
            return Err(Fault::config(format!(
                "store = \"{}\" is asked for, but the profile on this machine serves {}",
                asked.display(),
                fixed.display()
            ))
            .hint("make store in [snapshot] on the source and path in [store] here the same")
            .into());
        }
        (Some(fixed), _) => fixed.clone(),
        (None, Some(asked)) => std::path::absolute(asked).context("--store")?,
        (None, None) => {
            return Err(Fault::config("no store: the profile has no [store] table")
                .hint("add [store] with path = \"/srv/backup/home\", or give --store")
                .into());
        }
    };
    let from_table = |args: &[String]| table.as_ref().map_or_else(|| args.to_vec(), |t| t.rsync.clone());
    let retention = table.as_ref().map(|t| t.retention.clone()).unwrap_or_default();
    let store = Store {
        path,
        mount: args.mount.clone().or_else(|| table.as_ref().and_then(|t| t.mount.clone())),
        reserve_bytes: args.reserve_bytes.or(table.as_ref().and_then(|t| t.reserve_bytes)).unwrap_or(RESERVE),
        read_only: args.read_only,
        flush_bytes: None,
        rsync: rsync_argv(&if args.rsync.is_empty() { from_table(&[]) } else { args.rsync.clone() }),
    };
    let number = |given: Option<u64>, of: fn(&common::profile::Store) -> Option<u64>| {
        given.or_else(|| table.as_ref().and_then(of))
    };
    let limits = Limits {
        bytes: number(args.max_bytes_per_day, |t| t.max_bytes_per_day),
        inodes: number(args.max_inodes_per_day, |t| t.max_inodes_per_day),
    };
    let door = match args.read_only {
        true if mutant::active("read-only-key-writes") => Door::Backup,
        true => Door::Read,
        false if mutant::active("any-key-reads") => Door::Read,
        false if mutant::active("any-key-copies") => Door::Copy,
        false => Door::Backup,
    };
    let terms = Terms {
        door,
        retention,
        // On a machine of one's own, and by hand, what is asked for is what is wanted.
        limits: (named || limits != Limits::default()).then_some(limits),
        silence: args.max_silence.0,
        memory: args.max_memory.0,
    };
    Ok((store, terms))
}

//! The far end: answers one source over stdin and stdout, holding the store's lock while it writes.
//!
//! It decides everything about the store itself: the place (its own profile), the dates (its own clock),
//! rsync's arguments. What it is given are names and paths, and every path is opened below the open partial
//! snapshot, through no symlink. It ends when its input does, when that is silent for too long, or when something is asked
//! that is no request of its door; nothing is then published.

mod line;
mod pipe;
mod writing;

use std::io::{Read, Write};
use std::sync::Mutex;
use std::time::Duration;

use anyhow::{Context as _, Result};
use common::retention::Retention;
use serde_json::Value;

use line::{Line, teller};
pub use line::{READING, WRITING};
use writing::Writing;
pub use writing::check_capabilities;

use crate::protocol::{
    BackupIdle, BackupRequest, BackupWriting, CopyIdle, CopyRequest, CopyWriting, Door, Kept, Opened,
    ReadHolding, ReadIdle, ReadRequest,
};
use crate::reading::Reading;
use crate::signs::{Alive, Frames};
use crate::store::allowance::Limits;
use crate::store::open::discard;
use crate::store::{Store, diff, find, verified, verify};

/// Why what needs a partial snapshot, or a held one, cannot be asked.
const IDLE: &str = "no snapshot has been begun";
const NOT_HELD: &str = "no snapshot is held";
/// Why anything else cannot.
const BUSY: &str = "a snapshot has been begun";

/// What one conversation may do.
#[derive(Clone, Debug)]
pub struct Terms {
    /// Whose it is.
    pub door: Door,
    /// Which snapshots this machine's profile keeps.
    pub retention: Retention,
    /// What a day may add; `None` where nothing but the reserve counts.
    pub limits: Option<Limits>,
    /// How long the other end may be silent.
    pub silence: Duration,
    /// How many bytes of what it says in lists are remembered at a time.
    pub memory: u64,
}

/// Serves until the input ends.
pub fn serve(store: &Store, terms: &Terms, input: impl Read, output: impl Write + Send) -> Result<()> {
    let alive = Alive::new(terms.silence);
    let output = Mutex::new(output);
    std::thread::scope(|scope| {
        scope.spawn(|| alive.tell(&output));
        scope.spawn(|| alive.watch());
        let mut line = Line::new(terms.door, input, Frames::on(&output, &alive), &alive);
        let done = line.greet(store.path.display().to_string()).and_then(|stays| match terms.door {
            // Somebody tries a key by hand.
            _ if !stays => introduce(store, terms.door),
            Door::Backup => backup(&mut line, store, terms),
            Door::Copy => copy(&mut line, store, terms),
            Door::Read => read(&mut line, store, terms),
        });
        alive.end();
        done
    })
}

/// Says whose door this is, and whether there is something behind it.
fn introduce(store: &Store, door: Door) -> Result<()> {
    let what = match door {
        Door::Backup => "for backups",
        Door::Read => "for restoring: it reads, and writes nothing",
        Door::Copy => "for copies",
    };
    common::say!(crate::TOOL, "{}, {what}", store.path.display());
    store.check().map(drop)
}

/// Answers whether a snapshot has been begun.
fn begun<I: Read, O: Write + Send>(
    line: &mut Line<'_, I, O>,
    begun: Result<(Writing, Opened)>,
) -> Result<Option<Writing>> {
    let (writing, opened) =
        begun.map_or_else(|error| (None, Err(error)), |(w, opened)| (Some(w), Ok(opened)));
    line.reply(opened)?;
    Ok(writing)
}

/// The door of the key that backs up.
fn backup<I: Read, O: Write + Send>(line: &mut Line<'_, I, O>, store: &Store, terms: &Terms) -> Result<()> {
    while let Some(request) = line.next::<BackupIdle, BackupRequest>(IDLE)? {
        match request {
            BackupIdle::Open {} => {
                let Some(mut writing) = begun(line, Writing::backup(store, terms))? else { continue };
                while !writing.published {
                    let Some(request) = line.next::<BackupWriting, BackupRequest>(BUSY)? else {
                        return Ok(());
                    };
                    let answer = match request {
                        BackupWriting::Making(request) => writing.make(request, line),
                        BackupWriting::Only(request) => writing.of_backup(request, line),
                    };
                    line.reply(answer)?;
                }
            }
            BackupIdle::Discard {} => line.reply(discard(store))?,
            BackupIdle::List {} => {
                let answer = crate::list::answer(store, false).map(without_old_mounts);
                line.reply_in_parts(answer, "snapshots")?;
            }
            BackupIdle::Prune { dry_run } => {
                let pruned = crate::prune::for_client(store, &terms.retention, dry_run);
                let answer = pruned.and_then(|p| serde_json::to_value(p).context("cannot encode an answer"));
                line.reply_in_parts(answer, "snapshots")?;
            }
            BackupIdle::Verify { options } => {
                let outcome = verify::verify(store, None, &options, &teller(&mut line.output));
                let answer = outcome.and_then(|outcome| {
                    let recorded = verified::record(store, &options, &outcome, 0);
                    let newest = store.find("latest").ok().map(|newest| newest.date);
                    let mut answer = without_old_names(outcome.describe(&options)?, newest.as_deref());
                    // On a disk that failed, and can be read only, what was found is worth most.
                    if let Err(error) = recorded {
                        answer["not_recorded"] = format!("{error:#}").into();
                    }
                    Ok(answer)
                });
                line.reply_in_parts(answer, "findings")?;
            }
        }
    }
    Ok(())
}

/// What older snapshots alone hold is none of the source's business any more: it was deleted there.
fn without_old_names(mut answer: Value, newest: Option<&str>) -> Value {
    for finding in answer["findings"].as_array_mut().into_iter().flatten() {
        let dates = finding["dates"].as_array().into_iter().flatten();
        let known = dates.into_iter().any(|date| date.as_str() == newest);
        if !known && !common::mutant::active("backup-key-learns-old-names") {
            finding["paths"] = Value::Array(Vec::new());
            finding["found"] =
                "only older snapshots hold it: `link-sync verify` on the store's machine names it".into();
        }
    }
    answer
}

/// Nor is what was mounted in it then.
fn without_old_mounts(mut answer: Value) -> Value {
    let snapshots = answer["snapshots"].as_array_mut();
    for snapshot in snapshots.into_iter().flat_map(|all| all.iter_mut().rev().skip(1)) {
        for source in snapshot["sources"].as_array_mut().into_iter().flatten() {
            source["submounts"] = Value::Array(Vec::new());
        }
    }
    answer
}

/// The door of `link-sync copy`.
fn copy<I: Read, O: Write + Send>(line: &mut Line<'_, I, O>, store: &Store, terms: &Terms) -> Result<()> {
    while let Some(request) = line.next::<CopyIdle, CopyRequest>(IDLE)? {
        match request {
            CopyIdle::List {} => line.reply_in_parts(crate::list::answer(store, false), "snapshots")?,
            CopyIdle::Open { base } => {
                let Some(mut writing) = begun(line, Writing::copy(store, base.as_deref(), terms))? else {
                    continue;
                };
                while !writing.published {
                    let Some(request) = line.next::<CopyWriting, CopyRequest>(BUSY)? else { return Ok(()) };
                    let answer = match request {
                        CopyWriting::Making(request) => writing.make(request, line),
                        CopyWriting::Only(request) => writing.of_copy(request, line),
                    };
                    line.reply(answer)?;
                }
            }
        }
    }
    Ok(())
}

/// The door of the key that restores.
fn read<I: Read, O: Write + Send>(line: &mut Line<'_, I, O>, store: &Store, terms: &Terms) -> Result<()> {
    let mut held: Option<Reading> = None;
    loop {
        let request = match &held {
            None => line.next::<ReadIdle, ReadRequest>(NOT_HELD)?.map(ReadRequest::Idle),
            Some(_) => line.next::<ReadRequest, ReadRequest>("")?,
        };
        match (request, &held) {
            (None, _) => return Ok(()),
            (Some(ReadRequest::Idle(request)), _) => match request {
                ReadIdle::List { sizes } => {
                    line.reply_in_parts(crate::list::answer(store, sizes), "snapshots")?
                }
                ReadIdle::Find(wanted) => {
                    let mut out = &mut line.output;
                    let found = find::find(store, &wanted, terms.memory, |path| {
                        crate::protocol::send_item(&mut out, &path)
                    });
                    line.reply(found)?;
                }
                ReadIdle::Diff { from, to, source, limit } => {
                    let found = diff::diff(store, &from, &to, source.as_deref(), limit, terms.memory);
                    let answer =
                        found.and_then(|d| serde_json::to_value(d).context("cannot encode an answer"));
                    line.reply_in_parts(answer, "changes")?;
                }
                ReadIdle::Hold { date } => {
                    let answer = Reading::hold(store, &date).map(|(reading, meta)| {
                        held = Some(reading);
                        meta
                    });
                    line.reply(answer)?;
                }
            },
            (Some(ReadRequest::Holding(request)), Some(reading)) => match request {
                ReadHolding::Look {} => {
                    let answer = reading.look(&mut line.input, &mut Kept::at_most(terms.memory));
                    line.reply(answer)?;
                }
                ReadHolding::Send(sending) => {
                    let cmd = reading.sender(&sending, &store.rsync, &mut line.input);
                    let answer = pipe::converse(cmd, None, |_| Ok(()), &mut line.input, &mut line.output);
                    line.reply(answer)?;
                }
            },
            (Some(ReadRequest::Holding(_)), None) => anyhow::bail!("{NOT_HELD}"),
        }
    }
}

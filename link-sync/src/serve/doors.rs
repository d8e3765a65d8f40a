//! The doors: what is asked at each, and in which state.
//! A state is a value: a partial snapshot that is being written, or a held one that is being read. As long as there is
//! none of them, nothing that needs it can be asked, and a partial snapshot that is published is gone.

use std::io::{Read, Write};

use anyhow::{Context as _, Result};
use serde_json::Value;

use super::line::{Line, Terms, teller};
use super::pipe::converse;
use super::reading::Reading;
use super::writing::Writing;
use crate::protocol::{
    BackupIdle, BackupOnly, BackupRequest, BackupWriting, CopyIdle, CopyOnly, CopyRequest, CopyWriting, Kept,
    Opened, ReadHolding, ReadIdle, ReadRequest, send_item,
};
use crate::store::open::discard;
use crate::store::publish::Described;
use crate::store::{Store, diff, find, verified, verify};

/// Why what needs a partial snapshot, or a held one, cannot be asked.
const IDLE: &str = "no snapshot has been begun";
const NOT_HELD: &str = "no snapshot is held";
/// Why anything else cannot.
const BUSY: &str = "a snapshot has been begun";

/// The door of the key that backs up, as long as nothing has been begun.
pub fn backup<I: Read, O: Write + Send>(
    line: &mut Line<'_, I, O>,
    store: &Store,
    terms: &Terms,
) -> Result<()> {
    while let Some(request) = line.next::<BackupIdle, BackupRequest>(IDLE)? {
        match request {
            BackupIdle::Open {} => {
                let writing = begun(line, Writing::backup(store, terms.limits, terms.memory))?;
                if let Some(writing) = writing
                    && !write_backup(line, writing)?
                {
                    return Ok(());
                }
            }
            BackupIdle::Discard {} => line.reply(discard(store))?,
            BackupIdle::List {} => {
                let answer =
                    crate::list::answer(store, false, Some(&terms.retention)).map(without_old_mounts);
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

/// The same as long as a snapshot is being written; `false` if the other end went away before it was published.
fn write_backup<I: Read, O: Write + Send>(line: &mut Line<'_, I, O>, mut writing: Writing) -> Result<bool> {
    while let Some(request) = line.next::<BackupWriting, BackupRequest>(BUSY)? {
        let answer = match request {
            BackupWriting::Making(request) => writing.make(request, line),
            BackupWriting::Only(BackupOnly::Drop { source }) => writing.drop_paths(&source, &mut line.input),
            BackupWriting::Only(BackupOnly::Reuse { source, fresh }) => {
                writing.reuse(&source, fresh, &mut line.input)
            }
            BackupWriting::Only(BackupOnly::Publish { meta }) => {
                let Some(still) = writing.publish(Described::Source(meta), line)? else { return Ok(true) };
                writing = still;
                continue;
            }
        };
        line.reply(answer)?;
    }
    Ok(false)
}

/// The door of `link-sync copy`, as long as nothing has been begun.
pub fn copy<I: Read, O: Write + Send>(line: &mut Line<'_, I, O>, store: &Store, terms: &Terms) -> Result<()> {
    while let Some(request) = line.next::<CopyIdle, CopyRequest>(IDLE)? {
        match request {
            CopyIdle::List {} => line.reply_in_parts(crate::list::answer(store, false, None), "snapshots")?,
            CopyIdle::Open { base } => {
                let writing = begun(line, Writing::copy(store, base.as_deref(), terms.memory))?;
                if let Some(writing) = writing
                    && !write_copy(line, writing)?
                {
                    return Ok(());
                }
            }
        }
    }
    Ok(())
}

/// As [`write_backup`], for a copy.
fn write_copy<I: Read, O: Write + Send>(line: &mut Line<'_, I, O>, mut writing: Writing) -> Result<bool> {
    while let Some(request) = line.next::<CopyWriting, CopyRequest>(BUSY)? {
        let answer = match request {
            CopyWriting::Making(request) => writing.make(request, line),
            CopyWriting::Only(CopyOnly::Resume { id, keep }) => writing.resume(&id, keep, &mut line.input),
            CopyWriting::Only(CopyOnly::Part {}) => writing.part(&mut line.input),
            CopyWriting::Only(CopyOnly::Publish { text }) => {
                let Some(still) = writing.publish(Described::Copy(text), line)? else { return Ok(true) };
                writing = still;
                continue;
            }
        };
        line.reply(answer)?;
    }
    Ok(false)
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

/// The door of the key that restores, in both its states.
pub fn read<I: Read, O: Write + Send>(line: &mut Line<'_, I, O>, store: &Store, terms: &Terms) -> Result<()> {
    let mut held = None;
    loop {
        held = match held {
            None => {
                let Some(request) = line.next::<ReadIdle, ReadRequest>(NOT_HELD)? else { return Ok(()) };
                look_up(line, store, terms, request, None)?
            }
            Some(reading) => {
                let Some(request) = line.next::<ReadRequest, ReadRequest>("")? else { return Ok(()) };
                match request {
                    ReadRequest::Idle(request) => look_up(line, store, terms, request, Some(reading))?,
                    ReadRequest::Holding(request) => {
                        read_held(line, store, terms, request, &reading)?;
                        Some(reading)
                    }
                }
            }
        }
    }
}

/// Answers what may be read at any time; what is held from now on is `held` unless another snapshot is to be.
fn look_up<I: Read, O: Write + Send>(
    line: &mut Line<'_, I, O>,
    store: &Store,
    terms: &Terms,
    request: ReadIdle,
    held: Option<Reading>,
) -> Result<Option<Reading>> {
    match request {
        ReadIdle::List { sizes } => {
            line.reply_in_parts(crate::list::answer(store, sizes, Some(&terms.retention)), "snapshots")?;
        }
        ReadIdle::Find(wanted) => {
            let mut out = &mut line.output;
            let found = find::find(store, &wanted, terms.memory, |path| send_item(&mut out, &path));
            line.reply(found)?;
        }
        ReadIdle::Diff { from, to, source, limit } => {
            let found = diff::diff(store, &from, &to, source.as_deref(), limit, terms.memory);
            let answer = found.and_then(|d| serde_json::to_value(d).context("cannot encode an answer"));
            line.reply_in_parts(answer, "changes")?;
        }
        ReadIdle::Hold { date } => match Reading::hold(store, &date) {
            Ok((reading, meta)) => {
                drop(held);
                line.reply(Ok(meta))?;
                return Ok(Some(reading));
            }
            Err(error) => line.reply::<()>(Err(error))?,
        },
    }
    Ok(held)
}

/// Answers what is asked of the held snapshot.
fn read_held<I: Read, O: Write + Send>(
    line: &mut Line<'_, I, O>,
    store: &Store,
    terms: &Terms,
    request: ReadHolding,
    reading: &Reading,
) -> Result<()> {
    match request {
        ReadHolding::Look {} => {
            let answer = reading.look(&mut line.input, &mut Kept::at_most(terms.memory));
            line.reply(answer)
        }
        ReadHolding::Send(sending) => {
            let cmd = reading.sender(&sending, &store.rsync, &mut line.input);
            let answer = converse(cmd, None, |_| Ok(()), &mut line.input, &mut line.output);
            line.reply(answer)
        }
    }
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

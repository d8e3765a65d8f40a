//! The held state of the database: one transaction that everybody can read along with.
//!
//! The locks come first, then the snapshot: what was committed before is in it, and no TRUNCATE and no ALTER can come
//! after. (A snapshot alone does not stop those: pg_dump --snapshot would then write an empty table, and exit 0.)

use std::time::Instant;

use anyhow::Result;
use common::fault::{Fault, Kind};
use serde::{Deserialize, Serialize};

use crate::horizon::Horizon;
use crate::psql::identifier;
use crate::session::{self, Session};

/// How long a table may be locked by somebody else, and how long it may take for all of them.
const LOCK_TIMEOUT: &str = "2s";
const ALL_TIMEOUT: &str = "5s";
/// Times to begin anew when a table comes or goes in between.
const TRIES: u32 = 5;

/// The time within which files are of the same moment as what is held: `link-sync publish` looks whether they were taken in it.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize)]
pub(crate) struct Window {
    pub(crate) held_ms: u64,
    /// When the confirmation began.
    pub(crate) confirmed_ms: u64,
}

/// What is held.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Held {
    /// As `pg_dump --snapshot` takes it.
    pub(crate) snapshot: String,
    /// The run in whose maintenance it was taken.
    pub(crate) run_id: String,
    /// RFC 3339 UTC, this machine's clock.
    pub(crate) since: String,
    /// Tables that are locked.
    pub(crate) tables: usize,
    /// What it took.
    pub(crate) hold_ms: u64,
    /// When the drain before it began: nothing may have been written since. None: not drained, or it cannot be known.
    pub(crate) horizon: Option<Horizon>,
    /// From when until when, since this machine was started.
    pub(crate) window: Window,
    /// It is shown that nothing was written from the drain until the files were taken.
    pub(crate) confirmed: bool,
}

/// What pg_dump reads and locks.
const TABLES: &str = "SELECT coalesce(json_agg(json_build_array(n.nspname, c.relname) ORDER BY c.oid), '[]') FROM pg_class c \
     JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relkind IN ('r', 'p') AND c.relpersistence <> 't' \
     AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'";

/// Holds the state of now.
pub(crate) fn take(session: &mut Session, run_id: &str, horizon: Option<Horizon>) -> Result<Held> {
    let clock = Instant::now();
    let mut last = anyhow::anyhow!("a table was made in between, {TRIES} times");
    for _ in 0..TRIES {
        match attempt(session) {
            Ok(Some((snapshot, tables))) => {
                return Ok(Held {
                    snapshot,
                    run_id: run_id.to_owned(),
                    since: common::status::now(),
                    tables,
                    hold_ms: u64::try_from(clock.elapsed().as_millis()).unwrap_or(u64::MAX),
                    horizon,
                    window: Window { held_ms: common::record::uptime_ms()?, confirmed_ms: 0 },
                    confirmed: false,
                });
            }
            Ok(None) => {}
            // A table that is gone by the time it is locked.
            Err(e) if matches!(session::sqlstate(&e), Some("42P01" | "3F000")) => last = e,
            Err(e) => {
                let who = culprits(session).unwrap_or_default();
                give_back(session);
                return Err(explain(e, &who));
            }
        }
        give_back(session);
    }
    Err(last.context(Fault::failed("tables come and go in the database: its state cannot be held")))
}

/// One try; `None` if a table came in between.
fn attempt(session: &mut Session) -> Result<Option<(String, usize)>> {
    session.query("BEGIN ISOLATION LEVEL READ COMMITTED READ ONLY")?;
    let before = session.query(TABLES)?;
    session.query("COMMIT")?;
    let tables: Vec<(String, String)> = serde_json::from_str(&before)?;
    session.query("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")?;
    session.query(&format!("SET LOCAL lock_timeout = '{LOCK_TIMEOUT}'"))?;
    session.query(&format!("SET LOCAL statement_timeout = '{ALL_TIMEOUT}'"))?;
    if !tables.is_empty() {
        let names: Vec<_> =
            tables.iter().map(|(s, t)| format!("{}.{}", identifier(s), identifier(t))).collect();
        session.query(&format!("LOCK TABLE ONLY {} IN ACCESS SHARE MODE", names.join(", ONLY ")))?;
    }
    session.query("SET LOCAL statement_timeout = 0")?;
    // The first query of the transaction: from here on it sees one state.
    let snapshot = session.query("SELECT pg_export_snapshot()")?;
    let after = session.query(TABLES)?;
    Ok((before == after).then_some((snapshot, tables.len())))
}

/// Whether the transaction is still there.
pub(crate) fn alive(session: &mut Session) -> Result<()> {
    // In a transaction that was lost this would begin another one, with a time of its own.
    let lost = session.query("SELECT now() = statement_timestamp()")?;
    if lost == "t" {
        Err(Fault::failed("the transaction that held the database's state is gone").into())
    } else {
        Ok(())
    }
}

/// Holds for a moment, while Nextcloud is up, and looks at what a dump needs besides: what the role may not do is found before
/// Nextcloud is switched off for it.
pub(crate) fn rehearse(session: &mut Session) -> Result<()> {
    take(session, "", None)?;
    let unreadable = session.query(
        "SELECT coalesce(min(format('%I.%I', n.nspname, c.relname)), '') FROM pg_class c \
         JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.relpersistence <> 't' \
         AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema' \
         AND CASE WHEN c.relkind = 'S' THEN NOT has_sequence_privilege(c.oid, 'SELECT') END",
    );
    give_back(session);
    match unreadable?.as_str() {
        "" => Ok(()),
        name => Err(may_not_read(&format!("the role may not read every sequence (not {name})")).into()),
    }
}

/// Gives back what is held.
pub(crate) fn give_back(session: &mut Session) {
    // A session that died has given back all.
    session.query("ROLLBACK").ok();
}

/// Who has locked tables against readers.
fn culprits(session: &mut Session) -> Result<String> {
    session.query("ROLLBACK")?;
    session.query(
        "SELECT coalesce(string_agg(format('%s by session %s', relation::regclass, pid), ', '), '') FROM pg_locks \
         WHERE mode = 'AccessExclusiveLock' AND granted AND locktype = 'relation' AND pid <> pg_backend_pid() \
         AND database = (SELECT oid FROM pg_database WHERE datname = current_database())",
    )
}

fn explain(error: anyhow::Error, who: &str) -> anyhow::Error {
    match session::kind(&error) {
        Kind::Busy => error.context(
            Fault::busy(format!("tables are locked against readers: {who}"))
                .hint("an upgrade, a repair or VACUUM FULL is at work: wait until it has ended"),
        ),
        Kind::Denied => error.context(may_not_read("the role may not read every table")),
        _ => error,
    }
}

fn may_not_read(what: &str) -> Fault {
    Fault::denied(what).hint("GRANT pg_read_all_data TO role, or connect as the owner")
}

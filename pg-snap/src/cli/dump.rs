//! Making, listing and pruning dumps.

use anyhow::Result;
use clap::Args;
use common::fault::Fault;
use common::status::Report;

use super::options::{Connection, Place, Tools};
use crate::{dump, list, stall};

/// Make a dump.
///
/// data: date, path, dumps, database, run_id, tables, size_bytes,
/// database_size_bytes, dump_ms, server_version, client_version, roles,
/// role_passwords, cleared (what an earlier, killed run had left).
#[derive(Args, Debug)]
pub(super) struct Dump {
    #[command(flatten)]
    pub(super) place: Place,
    #[command(flatten)]
    connection: Connection,
    #[command(flatten)]
    tools: Tools,
    /// Database to dump.
    #[arg(long)]
    name: Option<String>,
    /// The run this dump belongs to (32 hexadecimal digits). Default: the
    /// run that has maintenance switched on from before to after the dump.
    #[arg(long, value_name = "ID", value_parser = run_id)]
    run_id: Option<String>,
    /// Dump the state that `hold` holds, for the run it was held in.
    #[arg(long, conflicts_with = "run_id")]
    held: bool,
}

impl Dump {
    pub(super) fn run(self, report: &mut Report) -> Result<()> {
        let Dump { place, connection, tools, name, run_id, held } = self;
        let (mut profile, dumps) = place.load()?;
        let target = connection.target(name);
        connection.apply(&mut profile);
        let jobs = tools.apply(&mut profile);
        let stall = tools.stall.map_or(stall::DUMP, |s| s.0);
        dump::run(&profile, &dump::Options { target, dumps, jobs, stall, run_id, held }, report)
    }
}

/// List the dumps and say which are complete.
///
/// data: dumps, newest (the newest complete date), list: of each its date,
/// state (complete, damaged, incomplete), problem, database, run_id,
/// size_bytes, database_size_bytes, tables, dump_ms, server_version,
/// client_version.
#[derive(Args, Debug)]
pub(super) struct List {
    #[command(flatten)]
    pub(super) place: Place,
}

impl List {
    pub(super) fn run(self, report: &mut Report) -> Result<()> {
        let List { place } = self;
        list::list(&place.load()?.1, report)
    }
}

/// Remove old dumps.
///
/// Keeps the newest complete ones, and everything younger than the oldest of
/// these. Damaged dumps do not count as kept. data: dumps, kept, removed,
/// cleared.
#[derive(Args, Debug)]
pub(super) struct Prune {
    #[command(flatten)]
    pub(super) place: Place,
    /// Complete dumps to keep. Default 2.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    keep: Option<u32>,
}

impl Prune {
    pub(super) fn run(self, report: &mut Report) -> Result<()> {
        let Prune { place, keep } = self;
        let (profile, dumps) = place.load()?;
        let keep = keep.or(profile.database.keep).unwrap_or(2);
        if keep == 0 {
            return Err(Fault::config("[database] keep = 0 would keep no dump at all").into());
        }
        list::prune(&dumps, usize::try_from(keep)?, report)
    }
}

fn run_id(text: &str) -> Result<String, String> {
    let ok = text.len() == 32 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    if ok { Ok(text.to_owned()) } else { Err("a run id is 32 of 0-9 and a-f".into()) }
}

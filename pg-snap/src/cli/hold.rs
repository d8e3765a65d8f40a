//! Draining, and the state that is held.

use std::os::fd::RawFd;

use anyhow::Result;
use clap::Args;
use common::profile::Span;
use common::status::Report;

use super::options::{Connection, Named};
use crate::{client, confirm, drain, holder};

/// Wait until nothing of Nextcloud writes any more.
///
/// In maintenance: every session of the database must end that may belong to
/// a request from before the switch. Not in time: exit code 75, and data says
/// who; end maintenance then. With --look, before the switch: find what would
/// not end (cron, workers, long uploads), wait for it while Nextcloud is up,
/// try whether the state could be held, pause the workers ([database] pause),
/// and leave sessions open in a background process, so that the rest takes
/// milliseconds; it ends with the one who looked. A standby is refused, and a
/// database that is not the one Nextcloud uses. data: waited_ms, drain_ms
/// (beyond a moment for those that are about to connect), sessions, jobs,
/// seen_sessions, settle_fallback, run_id.
#[derive(Args, Debug)]
pub(super) struct Drain {
    #[command(flatten)]
    pub(super) named: Named,
    #[command(flatten)]
    connection: Connection,
    /// Database.
    #[arg(long)]
    name: Option<String>,
    /// Look and wait before the switch; nothing else.
    #[arg(long)]
    look: bool,
    /// With --look: how long, like 90s or 10m. Default 5m.
    #[arg(long, value_name = "TIME", requires = "look")]
    wait: Option<Span>,
    /// Without --look: how long. Default 30s.
    #[arg(long, value_name = "TIME", conflicts_with = "look")]
    timeout: Option<Span>,
}

impl Drain {
    pub(super) fn run(self, report: &mut Report) -> Result<()> {
        let Drain { named, connection, name, look, wait, timeout } = self;
        let profile = named.load()?;
        let settings = &profile.database;
        let or = |given: Option<Span>, set: Option<Span>, default| given.or(set).map_or(default, |s| s.0);
        let argv = connection.argv(&named, name.as_deref());
        if look {
            drain::look(&profile, &argv, or(wait, settings.wait, drain::WAIT), report)
        } else {
            let timeout = or(timeout, settings.drain_timeout, drain::TIMEOUT);
            drain::drain(&profile, &argv, timeout, or(None, settings.settle, drain::SETTLE), report)
        }
    }
}

/// Hold the database's state of now, in maintenance.
///
/// A transaction stays open in the background, with every table locked against
/// TRUNCATE and ALTER (not against reading and writing), until `release`, --max,
/// or the end of its session. data: snapshot, run_id, since, tables, hold_ms.
#[derive(Args, Debug)]
pub(super) struct Hold {
    #[command(flatten)]
    pub(super) named: Named,
    #[command(flatten)]
    connection: Connection,
    /// Database.
    #[arg(long)]
    name: Option<String>,
    /// How long at most, like 6h. Default 24h.
    #[arg(long, value_name = "TIME")]
    max: Option<Span>,
}

impl Hold {
    pub(super) fn run(self, report: &mut Report) -> Result<()> {
        let Hold { named, connection, name, max } = self;
        let argv = connection.argv(&named, name.as_deref());
        drain::hold(&named.load()?, &argv, max.map_or(drain::MAX, |s| s.0), report)
    }
}

/// Show that what is held and the files are of one state, in maintenance.
///
/// After the files were taken: nothing may have been written to the database
/// since `drain` began, and whoever came since must have ended. A request that
/// began before the switch and connected late is found by that: exit code 75,
/// what is held is given back, and drain, hold and the files come once more.
/// Only what is confirmed is dumped. data: moved (something was written),
/// waited_ms, seen_sessions, sessions, jobs, settle_fallback, run_id.
#[derive(Args, Debug)]
pub(super) struct Confirm {
    #[command(flatten)]
    pub(super) named: Named,
    /// How long others may take to end. Default 30s ([database] drain_timeout).
    #[arg(long, value_name = "TIME")]
    timeout: Option<Span>,
}

impl Confirm {
    pub(super) fn run(self, report: &mut Report) -> Result<()> {
        let Confirm { named, timeout } = self;
        let profile = named.load()?;
        let timeout = timeout.or(profile.database.drain_timeout).map_or(drain::TIMEOUT, |s| s.0);
        confirm::confirm(&profile, timeout, report)
    }
}

/// Give back what is held, close the sessions, resume the workers. Never busy.
#[derive(Args, Debug)]
pub(super) struct Release {
    #[command(flatten)]
    pub(super) named: Named,
}

impl Release {
    pub(super) fn run(self, report: &mut Report) -> Result<()> {
        let Release { named } = self;
        drain::release(&named.load()?, report)
    }
}

/// What is held, and who would not drain now.
///
/// data: held (null or as of hold), holder, sessions, jobs.
#[derive(Args, Debug)]
pub(super) struct Status {
    #[command(flatten)]
    pub(super) named: Named,
}

impl Status {
    pub(super) fn run(self, report: &mut Report) -> Result<()> {
        let Status { named } = self;
        drain::status(&named.load()?, report)
    }
}

/// The background process.
#[derive(Args, Debug)]
pub(super) struct Holder {
    #[command(flatten)]
    pub(super) named: Named,
    #[command(flatten)]
    connection: Connection,
    /// Database.
    #[arg(long)]
    name: Option<String>,
    /// Socket.
    #[arg(long)]
    listen_fd: RawFd,
    /// Lock.
    #[arg(long)]
    lock_fd: RawFd,
}

impl Holder {
    pub(super) fn run(self) -> Result<()> {
        let Holder { named, connection, name, listen_fd, lock_fd } = self;
        let mut profile = named.load()?;
        connection.apply(&mut profile);
        let target = connection.target(name);
        holder::live(&profile, &target, &client::socket(&profile)?, listen_fd, lock_fd, drain::MAX)
    }
}

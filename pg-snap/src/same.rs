//! Whether the database that is drained and held is the one that Nextcloud itself uses.
//! A copy of it, or a standby, holds the same tables, and nothing of Nextcloud's requests.
//!
//! It is shown from both sides: one session takes an advisory lock with a number drawn for it, and a session that was opened
//! as Nextcloud opens its own looks for just that lock in its own database of its own server.

use anyhow::{Context as _, Result};
use common::fault::Fault;
use common::mutant;
use common::profile::Profile;

use crate::connect::Server;
use crate::container;
use crate::nc_maint;
use crate::programs::Program;
use crate::psql::Psql;
use crate::session::Session;
use crate::target::Target;

/// A standby has none of the sessions that write.
pub(crate) fn refuse_standby(session: &mut Session) -> Result<()> {
    if mutant::active("standby-refused") || session.query("SELECT pg_is_in_recovery()")? == "f" {
        return Ok(());
    }
    Err(Fault::config(
        "the database is a standby: it lags behind, and Nextcloud's requests are not seen there",
    )
    .hint("[database] host (or --host) must be the primary server, the one that Nextcloud writes to")
    .into())
}

/// What Nextcloud's own settings add: whether its sessions outlive its requests, and why the databases could not be compared.
#[derive(Debug, Default)]
pub(crate) struct Compared {
    pub(crate) persistent: bool,
    pub(crate) unknown: Option<String>,
}

/// An error unless `ours`, a session of `database` on `server`, is in the database that Nextcloud uses. Where the settings are
/// Nextcloud's own there is nothing to compare.
pub(crate) fn compare(
    profile: &Profile,
    target: &Target,
    server: &Server,
    database: &str,
    ours: &mut Session,
) -> Result<Compared> {
    let settings = &profile.database;
    let named =
        [&target.host, &target.database, &settings.host, &settings.name].into_iter().any(Option::is_some);
    if profile.nextcloud.is_none() || !named || mutant::active("same-database") {
        return Ok(Compared::default());
    }
    let nextcloud = nc_maint::inspect(profile)?;
    let persistent = nextcloud.persistent;
    let host = container::as_seen_from_here(&nextcloud.host, profile)?;
    if host == server.host && nextcloud.name == database {
        return Ok(Compared { persistent, unknown: None });
    }
    let theirs = Server { host, user: Some(nextcloud.user), password: nextcloud.password, persistent };
    let psql = Psql::new(Program::find("psql", &settings.psql, None), &theirs)?.reads_only();
    let mut theirs = match Session::open(&psql, &nextcloud.name) {
        Ok(session) => session,
        // As in a container, whose names mean nothing out here.
        Err(e) => {
            let unknown = format!(
                "{} (as Nextcloud's config.php says) cannot be reached from here: {e}",
                nextcloud.host
            );
            return Ok(Compared { persistent, unknown: Some(unknown) });
        }
    };
    let same = meet(ours, &mut theirs);
    theirs.close();
    if same? {
        return Ok(Compared { persistent, unknown: None });
    }
    Err(Fault::config(format!(
        "the database {database} is not the one that Nextcloud uses (dbname '{}' on dbhost '{}')",
        nextcloud.name, nextcloud.host
    ))
    .hint("correct host and name in [database], or remove them: then they are what Nextcloud says")
    .into())
}

/// Whether both are in one database.
fn meet(ours: &mut Session, theirs: &mut Session) -> Result<bool> {
    let id = common::record::random_id()?;
    let (class, object) = (&id[..7], &id[8..15]);
    let number = |hex: &str| i32::from_str_radix(hex, 16).context("a number out of range");
    let (class, object) = (number(class)?, number(object)?);
    ours.query("BEGIN")?;
    let found = ours.query(&format!("SELECT pg_advisory_xact_lock({class}, {object})")).and_then(|_| {
        theirs.query(&format!(
            "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND classid = {class} AND objid = {object} AND granted \
             AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
        ))
    });
    ours.query("ROLLBACK")?;
    Ok(found? == "1")
}

/// What is said when nothing could be compared.
pub(crate) fn warning(why: &str) -> String {
    format!("whether [database] is the database that Nextcloud uses could not be compared: {why}")
}

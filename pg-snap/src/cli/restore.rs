//! Making a database anew from a dump, and rehearsing that.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use common::dates;
use common::profile::Drill;
use common::status::Report;

use super::options::{Connection, Named, Place, Tools};
use crate::target::Target;
use crate::{check, restore, stall, swap, verify};

/// Make a database anew from a dump.
///
/// It is restored under a temporary name and takes the name only when it is
/// complete; a failure leaves the old database as it was. Connects as an
/// administrator if one is named (--admin-...), else as for a dump; that role
/// then needs CREATEDB. An administrator makes roles that are missing and the
/// empty database, and nothing else: what comes from the dump is run by a role
/// made for that, which has no other rights and is dropped at the end. It must
/// be able to log in with a password, by one of the addresses known or
/// 127.0.0.1. Over a socket, root becomes the account named like the role, as
/// peer authentication wants.
///
/// What only a superuser could make (event triggers, extensions that are not
/// trusted, ...) is left out. A missing role of Nextcloud gets the password of
/// its config.php, and that login is tried. Warnings of either: exit code 3.
///
/// data: date, dump, database, tables, roles_created, replaced, kept_database,
/// kept_databases (of earlier restores, too), dry_run, restore_ms, login
/// (whether Nextcloud can log in; null if that is not known).
#[derive(Args, Debug)]
pub(super) struct Restore {
    #[command(flatten)]
    pub(super) place: Place,
    #[command(flatten)]
    connection: Connection,
    #[command(flatten)]
    tools: Tools,
    /// Date of the dump, its beginning, today, yesterday, or 'latest' for the
    /// newest complete one.
    #[arg(long, default_value = "latest", value_parser = date)]
    date: String,
    /// A dump's own folder, wherever it is, instead of a date.
    #[arg(long, value_name = "DIR", conflicts_with = "date")]
    from: Option<PathBuf>,
    /// Database to make.
    #[arg(long, value_parser = database)]
    database: String,
    /// Replace that database if it exists.
    #[arg(long)]
    yes: bool,
    /// Look whether it could be done (rights, roles, version), and change
    /// nothing. `verify` tells whether the dump itself comes back.
    #[arg(long)]
    dry_run: bool,
    /// Do not drop the database that is replaced: it is kept as
    /// NAME_pgsnap_TIME, see data.kept_database.
    #[arg(long)]
    keep_replaced: bool,
    #[command(flatten)]
    administrator: Administrator,
}

impl Restore {
    pub(super) fn run(self, report: &mut Report) -> Result<()> {
        let Restore {
            place,
            connection,
            tools,
            date,
            from,
            database,
            yes,
            dry_run,
            keep_replaced,
            administrator,
        } = self;
        let (mut profile, dumps) = place.load()?;
        let target = administrator.over(&connection);
        connection.apply(&mut profile);
        let jobs = tools.apply(&mut profile);
        let date = Some(date).filter(|d| d != "latest");
        let options = restore::Options {
            target,
            dumps,
            date,
            from,
            database,
            yes,
            dry_run,
            keep_replaced,
            jobs,
            stall: tools.stall.map_or(stall::RESTORE, |s| s.0),
        };
        restore::run(&profile, &options, report)
    }
}

/// Drop a database that `restore --keep-replaced` kept.
///
/// Only one that a restore has marked. data: database.
#[derive(Args, Debug)]
pub(super) struct DropReplaced {
    #[command(flatten)]
    pub(super) named: Named,
    #[command(flatten)]
    connection: Connection,
    /// Its name: data.kept_database of that restore.
    #[arg(long, value_parser = database)]
    database: String,
    #[command(flatten)]
    administrator: Administrator,
}

impl DropReplaced {
    pub(super) fn run(self, report: &mut Report) -> Result<()> {
        let DropReplaced { named, connection, database, administrator } = self;
        let mut profile = named.load()?;
        let target = administrator.over(&connection);
        connection.apply(&mut profile);
        swap::drop_replaced(&profile, &target, &database, report)
    }
}

/// Rehearse a restore: into a scratch database, counted, and compared.
///
/// The scratch database has a name of its own and is always dropped. With
/// --against, every row of oc_filecache is compared with the files of a
/// snapshot (path, size, type), every file with the rows, and config.php with
/// both. What the snapshot leaves out is not missed; under server-side
/// encryption a file has the size that its row's plain size takes. It is what
/// `restore` does, up to the moment where the new database would take the
/// place of the old one; roles are not made, so a role that may make databases
/// suffices (sudo -u postgres createuser --createdb root).
///
/// Exit code 1 if anything does not fit. data: date, dump, database, run_id,
/// tables, table_rows, restore_ms, compare_ms, room_checked, cleared, against,
/// snapshot_date, rows, files, folders, encrypted_rows, left_out_rows,
/// unused_rows, not_indexed_files, links, newer_than_rows, findings
/// (missing_file, missing_folder, size_differs, type_differs,
/// file_without_row, config, dump), examples, would_lose (files, bytes,
/// users), unchecked, config, remote_store.
#[derive(Args, Debug)]
pub(super) struct Verify {
    #[command(flatten)]
    pub(super) place: Place,
    #[command(flatten)]
    connection: Connection,
    #[command(flatten)]
    tools: Tools,
    /// Date of the dump, its beginning, today, yesterday, or 'latest' for the
    /// newest complete one. Default: the snapshot's own dump with --against, else
    /// 'latest'.
    #[arg(long, value_parser = date)]
    date: Option<String>,
    /// A dump's own folder, wherever it is, instead of a date.
    #[arg(long, value_name = "DIR", conflicts_with = "date")]
    from: Option<PathBuf>,
    /// Compare with the files of this folder, which holds data/ and html/: a
    /// snapshot (STORE/DATE), or one that was restored.
    #[arg(long, value_name = "TREE")]
    against: Option<PathBuf>,
    /// Compare with the newest snapshot in the profile's store, if that is a
    /// folder of this machine.
    #[arg(long, conflicts_with = "against")]
    newest: bool,
    /// Note the outcome in drill.json of the state folder, for `link-sync list`
    /// to show; as that of DATE if one is given.
    #[arg(long, value_name = "DATE", num_args = 0..=1, value_parser = one_date)]
    record: Option<Option<String>>,
    /// A pattern of what the snapshot leaves out of data, besides the usual
    /// ones and those of the profile's source. May be given more than once.
    #[arg(long, value_name = "PATTERN")]
    exclude: Vec<String>,
    /// How many findings of each class are named.
    #[arg(long, value_name = "N", default_value_t = 20)]
    limit: u16,
    /// Role that may make databases. Default: user in table drill, else as --user.
    #[arg(long, value_name = "ROLE")]
    admin_user: Option<String>,
    /// Where it connects. Default: host in table drill, else as --host.
    #[arg(long, value_name = "HOST")]
    admin_host: Option<String>,
    /// File with its password, mode 0600. Default: that in table drill.
    #[arg(long, value_name = "FILE")]
    admin_password_file: Option<PathBuf>,
    /// Database to connect to for making another. Default: in table drill
    /// admin_database, else 'postgres'.
    #[arg(long, value_name = "NAME")]
    admin_database: Option<String>,
}

impl Verify {
    pub(super) fn run(self, report: &mut Report) -> Result<()> {
        let Verify {
            place,
            connection,
            tools,
            date,
            from,
            against,
            newest,
            record,
            exclude,
            limit,
            admin_user,
            admin_host,
            admin_password_file,
            admin_database,
        } = self;
        let (mut profile, dumps) = place.load()?;
        let administrator = Target::new(admin_host, admin_user, admin_password_file, admin_database);
        let target = connection.target(None).administered(administrator, profile.drill.clone());
        connection.apply(&mut profile);
        let jobs = tools.apply(&mut profile);
        let options = verify::Options {
            target,
            dumps,
            date,
            from: from.map(std::path::absolute).transpose()?,
            against: against.map(std::path::absolute).transpose()?,
            newest,
            record,
            exclude,
            limit: limit.into(),
            jobs,
            stall: tools.stall.map_or(stall::RESTORE, |s| s.0),
        };
        verify::run(&profile, &options, report)
    }
}

/// Look whether the rights suffice, and change nothing.
///
/// data: role, database, server_version, database_bytes, findings: of each its
/// kind, a message, and the cure (SQL or a command, for an administrator). Exit
/// code 77 if there are findings.
#[derive(Args, Debug)]
pub(super) struct Check {
    #[command(flatten)]
    pub(super) named: Named,
    #[command(flatten)]
    connection: Connection,
    /// Database.
    #[arg(long)]
    name: Option<String>,
    /// For what: backup (dump, drain, hold) or drill (verify).
    #[arg(long = "for", value_name = "WHAT", default_value = "backup", value_parser = ["backup", "drill"])]
    purpose: String,
    /// For a drill: role that may make databases. Default: as for verify.
    #[arg(long, value_name = "ROLE")]
    admin_user: Option<String>,
    /// Where it connects.
    #[arg(long, value_name = "HOST")]
    admin_host: Option<String>,
    /// File with its password, mode 0600.
    #[arg(long, value_name = "FILE")]
    admin_password_file: Option<PathBuf>,
    /// Database to connect to for making another.
    #[arg(long, value_name = "NAME")]
    admin_database: Option<String>,
}

impl Check {
    pub(super) fn run(self, report: &mut Report) -> Result<()> {
        let Check {
            named,
            connection,
            name,
            purpose,
            admin_user,
            admin_host,
            admin_password_file,
            admin_database,
        } = self;
        let mut profile = named.load()?;
        connection.apply(&mut profile);
        if purpose == "drill" {
            let administrator = Target::new(admin_host, admin_user, admin_password_file, admin_database);
            let target = connection.target(None).administered(administrator, profile.drill.clone());
            return check::drill(&profile, &target, report);
        }
        check::backup(&profile, &connection.target(name), report)
    }
}

/// Who makes and drops databases.
#[derive(Args, Debug)]
struct Administrator {
    /// Administrator's role, for example postgres.
    #[arg(long, value_name = "ROLE")]
    admin_user: Option<String>,
    /// Where the administrator connects, with the port if it is not 5432, such as
    /// /run/postgresql:5433. Default: as --host.
    #[arg(long, value_name = "HOST")]
    admin_host: Option<String>,
    /// File with the administrator's password, mode 0600.
    #[arg(long, value_name = "FILE", requires = "admin_user")]
    admin_password_file: Option<PathBuf>,
    /// Database to connect to meanwhile.
    #[arg(long, value_name = "NAME", default_value = "postgres")]
    admin_database: String,
}

impl Administrator {
    /// Which server and role, where `connection` says what this leaves open.
    fn over(self, connection: &Connection) -> Target {
        let ours = Target::new(
            self.admin_host,
            self.admin_user,
            self.admin_password_file,
            Some(self.admin_database),
        );
        connection.target(None).administered(ours, Drill::default())
    }
}

fn date(text: &str) -> Result<String, String> {
    let why =
        "a date is written like 2026-11-22T03-30-00Z; its beginning, latest, today or yesterday will do";
    if dates::is_meant(text) { Ok(text.to_owned()) } else { Err(why.into()) }
}

fn one_date(text: &str) -> Result<String, String> {
    if dates::is_date(text) { Ok(text.to_owned()) } else { Err("name the whole date itself".into()) }
}

fn database(text: &str) -> Result<String, String> {
    match text {
        "" => Err("a database needs a name".into()),
        "postgres" | "template0" | "template1" => Err("this is one of the server's own databases".into()),
        _ if text.len() > 63 => Err("a database's name has at most 63 bytes".into()),
        _ => Ok(text.to_owned()),
    }
}

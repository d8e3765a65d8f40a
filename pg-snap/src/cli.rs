//! The command line: arguments in, an action out.

use std::ffi::OsString;
use std::os::fd::RawFd;
use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, Parser, Subcommand};
use common::fault::Fault;
use common::places;
use common::profile::{Profile, Span};
use common::status::Report;

use crate::connect::Given;
use crate::folder::is_date;
use crate::{ask, check, confirm, drain, dump, holder, list, restore, stall, verify};

/// Dated, complete, private dumps of a PostgreSQL database.
///
/// A dump is a folder named by its date (UTC) that is either complete or not
/// there. It holds the whole database (pg_dump, directory format), the roles and
/// settings it needs, and dump.json, which says what it is. The database is the one named by
/// options, else by the profile's [database], else the one Nextcloud uses
/// (nc-maint is asked).
#[derive(Debug, Parser)]
#[command(name = "pg-snap", version, max_term_width = 80, after_help = AFTER)]
pub(crate) struct Cli {
    #[command(subcommand)]
    action: Action,
}

const AFTER: &str = "\
Examples:
  pg-snap dump home                    the database of profile 'home'
  pg-snap list home
  pg-snap prune home --keep 3
  nc-maint run home -- sh -c 'pg-snap drain home && pg-snap hold home &&
      pg-snap confirm home'             with the files taken before confirm
  pg-snap dump home --held && pg-snap release home
  pg-snap restore home --database nextcloud_looked_at \\
      --admin-user postgres --admin-host /run/postgresql
                                       beside the one in use; with its name and
                                       --yes it replaces that, and no file: the
                                       whole instance is the script restore's
  pg-snap verify home --newest         would it come back, and fit?
  pg-snap dump --host /run/postgresql --name nextcloud --user nextcloud \\
      --dumps /srv/dumps               without any profile

PROFILE names /etc/nc-backup/PROFILE.toml; --config FILE names another file.

Passwords come from a file (--password-file) or from Nextcloud. They reach
PostgreSQL's programs as a password file in memory, never as an argument or a
variable. Without one, PostgreSQL's own ways remain: peer, trust, ~/.pgpass.
The caller's PG* variables are ignored.

PostgreSQL in a container: publish its port on 127.0.0.1 and use the host's
clients (of the server's version), or set e.g.
  pg_dump = [\"docker\", \"exec\", \"-i\", \"db\", \"pg_dump\"]
and the same for pg_restore and psql, mount the dump folder in the container
under the same path, and let the container's own rule admit them: they do not
see the password file (the usual image trusts its own socket).

The last line on stdout is one JSON object; docs/status.schema.json has it.
Exit codes: 0 done; 1 failed, and undone; 2 usage; 3 restored, and something is
not as it was (warnings); 4 something was left behind (the object says what); 69
no server or no program, or it hangs; 75 another dump, prune or restore runs; 77
rights or password; 78 profile or version wrong; 128+N signal.";

#[derive(Debug, Args)]
struct Named {
    /// Profile: /etc/nc-backup/PROFILE.toml.
    profile: Option<String>,
    /// Another file as the profile.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct Place {
    #[command(flatten)]
    named: Named,
    /// Folder of the dumps, mode 0700. Default: 'dumps' in the state folder
    /// (/var/lib/nc-backup/PROFILE/dumps for root).
    #[arg(long, value_name = "DIR")]
    dumps: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct Connection {
    /// Server, as Nextcloud's dbhost: host, host:port, an address (IPv6 in
    /// brackets before a port), /socket/dir, /socket/dir:port, or empty for the
    /// default socket.
    #[arg(long)]
    host: Option<String>,
    /// Role to connect as.
    #[arg(long)]
    user: Option<String>,
    /// File that holds the role's password and nothing else, mode 0600.
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
    /// Command line of psql, words separated by blanks.
    #[arg(long, value_name = "COMMAND")]
    psql: Option<String>,
}

#[derive(Debug, Args)]
struct Tools {
    /// Parallel jobs of pg_dump or pg_restore. Default 2.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=64))]
    jobs: Option<u32>,
    /// Command line of pg_dump, likewise.
    #[arg(long, value_name = "COMMAND")]
    pg_dump: Option<String>,
    /// Command line of pg_restore, likewise.
    #[arg(long, value_name = "COMMAND")]
    pg_restore: Option<String>,
    /// End it when nothing has moved for so long, like 10m: a server or a disk
    /// that hangs. Default 5m for a dump, 30m for a restore.
    #[arg(long, value_name = "TIME")]
    stall: Option<Span>,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Make a dump.
    ///
    /// data: date, path, dumps, database, run_id, tables, size_bytes,
    /// database_size_bytes, dump_ms, server_version, client_version, roles,
    /// role_passwords, cleared (what an earlier, killed run had left).
    Dump {
        #[command(flatten)]
        place: Place,
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
    },
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
    Drain {
        #[command(flatten)]
        named: Named,
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
    },
    /// Hold the database's state of now, in maintenance.
    ///
    /// A transaction stays open in the background, with every table locked against
    /// TRUNCATE and ALTER (not against reading and writing), until `release`, --max,
    /// or the end of its session. data: snapshot, run_id, since, tables, hold_ms.
    Hold {
        #[command(flatten)]
        named: Named,
        #[command(flatten)]
        connection: Connection,
        /// Database.
        #[arg(long)]
        name: Option<String>,
        /// How long at most, like 6h. Default 24h.
        #[arg(long, value_name = "TIME")]
        max: Option<Span>,
    },
    /// Show that what is held and the files are of one state, in maintenance.
    ///
    /// After the files were taken: nothing may have been written to the database
    /// since `drain` began, and whoever came since must have ended. A request that
    /// began before the switch and connected late is found by that: exit code 75,
    /// what is held is given back, and drain, hold and the files come once more.
    /// Only what is confirmed is dumped. data: moved (something was written),
    /// waited_ms, seen_sessions, sessions, jobs, settle_fallback, run_id.
    Confirm {
        #[command(flatten)]
        named: Named,
        /// How long others may take to end. Default 30s ([database] drain_timeout).
        #[arg(long, value_name = "TIME")]
        timeout: Option<Span>,
    },
    /// Give back what is held, close the sessions, resume the workers. Never busy.
    Release {
        #[command(flatten)]
        named: Named,
    },
    /// What is held, and who would not drain now.
    ///
    /// data: held (null or as of hold), holder, sessions, jobs.
    Status {
        #[command(flatten)]
        named: Named,
    },
    /// List the dumps and say which are complete.
    ///
    /// data: dumps, newest (the newest complete date), list: of each its date,
    /// state (complete, damaged, incomplete), problem, database, run_id,
    /// size_bytes, database_size_bytes, tables, dump_ms, server_version,
    /// client_version.
    List {
        #[command(flatten)]
        place: Place,
    },
    /// Remove old dumps.
    ///
    /// Keeps the newest complete ones, and everything younger than the oldest of
    /// these. Damaged dumps do not count as kept. data: dumps, kept, removed,
    /// cleared.
    Prune {
        #[command(flatten)]
        place: Place,
        /// Complete dumps to keep. Default 2.
        #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
        keep: Option<u32>,
    },
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
    Restore {
        #[command(flatten)]
        place: Place,
        #[command(flatten)]
        connection: Connection,
        #[command(flatten)]
        tools: Tools,
        /// Date of the dump, or 'latest' for the newest complete one.
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
    },
    /// Drop a database that `restore --keep-replaced` kept.
    ///
    /// Only one that a restore has marked. data: database.
    DropReplaced {
        #[command(flatten)]
        named: Named,
        #[command(flatten)]
        connection: Connection,
        /// Its name: data.kept_database of that restore.
        #[arg(long, value_parser = database)]
        database: String,
        #[command(flatten)]
        administrator: Administrator,
    },
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
    Verify {
        #[command(flatten)]
        place: Place,
        #[command(flatten)]
        connection: Connection,
        #[command(flatten)]
        tools: Tools,
        /// Date of the dump, or 'latest' for the newest complete one. Default: the
        /// snapshot's own dump with --against, else 'latest'.
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
    },
    /// Look whether the rights suffice, and change nothing.
    ///
    /// data: role, database, server_version, findings: of each its kind, a message,
    /// and the cure (SQL or a command, for an administrator). Exit code 77 if there
    /// are findings.
    Check {
        #[command(flatten)]
        named: Named,
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
    },
    /// The background process.
    #[command(hide = true)]
    Holder {
        #[command(flatten)]
        named: Named,
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
    },
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

fn run_id(text: &str) -> Result<String, String> {
    let ok = text.len() == 32 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    if ok { Ok(text.to_owned()) } else { Err("a run id is 32 of 0-9 and a-f".into()) }
}

fn date(text: &str) -> Result<String, String> {
    let ok = text == "latest" || is_date(text);
    if ok { Ok(text.to_owned()) } else { Err("a date is written like 2026-11-22T03-30-00Z".into()) }
}

fn one_date(text: &str) -> Result<String, String> {
    if text == "latest" { Err("name the date itself".into()) } else { date(text) }
}

fn database(text: &str) -> Result<String, String> {
    match text {
        "" => Err("a database needs a name".into()),
        "postgres" | "template0" | "template1" => Err("this is one of the server's own databases".into()),
        _ if text.len() > 63 => Err("a database's name has at most 63 bytes".into()),
        _ => Ok(text.to_owned()),
    }
}

impl Cli {
    /// The action's name and the profile, for the status object.
    pub(crate) fn names(&self) -> (&'static str, Option<String>) {
        let (name, named) = match &self.action {
            Action::Dump { place, .. } => ("dump", &place.named),
            Action::Drain { named, .. } => ("drain", named),
            Action::Hold { named, .. } => ("hold", named),
            Action::Confirm { named, .. } => ("confirm", named),
            Action::Release { named } => ("release", named),
            Action::Status { named } => ("status", named),
            Action::List { place } => ("list", &place.named),
            Action::Prune { place, .. } => ("prune", &place.named),
            Action::Restore { place, .. } => ("restore", &place.named),
            Action::DropReplaced { named, .. } => ("drop-replaced", named),
            Action::Holder { named, .. } => ("holder", named),
            Action::Verify { place, .. } => ("verify", &place.named),
            Action::Check { named, .. } => ("check", named),
        };
        (name, named.profile.clone())
    }

    /// Does it.
    pub(crate) fn run(self, report: &mut Report) -> Result<()> {
        match self.action {
            Action::Dump { place, connection, tools, name, run_id, held } => {
                let (mut profile, dumps) = place.load()?;
                let given = connection.given(name);
                connection.apply(&mut profile);
                let jobs = tools.apply(&mut profile);
                let stall = tools.stall.map_or(stall::DUMP, |s| s.0);
                dump::run(&profile, &dump::Options { given, dumps, jobs, stall, run_id, held }, report)
            }
            Action::Drain { named, connection, name, look, wait, timeout } => {
                let profile = named.load()?;
                let settings = &profile.database;
                let or =
                    |given: Option<Span>, set: Option<Span>, default| given.or(set).map_or(default, |s| s.0);
                let argv = connection.argv(&named, name.as_deref());
                if look {
                    drain::look(&profile, &argv, or(wait, settings.wait, drain::WAIT), report)
                } else {
                    let timeout = or(timeout, settings.drain_timeout, drain::TIMEOUT);
                    drain::drain(&profile, &argv, timeout, or(None, settings.settle, drain::SETTLE), report)
                }
            }
            Action::Hold { named, connection, name, max } => {
                let argv = connection.argv(&named, name.as_deref());
                drain::hold(&named.load()?, &argv, max.map_or(drain::MAX, |s| s.0), report)
            }
            Action::Confirm { named, timeout } => {
                let profile = named.load()?;
                let timeout = timeout.or(profile.database.drain_timeout).map_or(drain::TIMEOUT, |s| s.0);
                confirm::confirm(&profile, timeout, report)
            }
            Action::Release { named } => drain::release(&named.load()?, report),
            Action::Status { named } => drain::status(&named.load()?, report),
            Action::Holder { named, connection, name, listen_fd, lock_fd } => {
                let mut profile = named.load()?;
                connection.apply(&mut profile);
                let given = connection.given(name);
                holder::live(&profile, &given, &ask::socket(&profile)?, listen_fd, lock_fd, drain::MAX)
            }
            Action::List { place } => list::list(&place.load()?.1, report),
            Action::Prune { place, keep } => {
                let (profile, dumps) = place.load()?;
                let keep = keep.or(profile.database.keep).unwrap_or(2);
                if keep == 0 {
                    return Err(Fault::config("[database] keep = 0 would keep no dump at all").into());
                }
                list::prune(&dumps, usize::try_from(keep)?, report)
            }
            Action::Restore {
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
            } => {
                let (mut profile, dumps) = place.load()?;
                let given = connection.given_or(&administrator, &mut profile);
                let jobs = tools.apply(&mut profile);
                let date = Some(date).filter(|d| d != "latest");
                let options = restore::Options {
                    given,
                    dumps,
                    date,
                    from,
                    database,
                    yes,
                    dry_run,
                    keep_replaced,
                    jobs,
                    stall: tools.stall.map_or(stall::RESTORE, |s| s.0),
                    admin_database: administrator.admin_database,
                };
                restore::run(&profile, &options, report)
            }
            Action::DropReplaced { named, connection, database, administrator } => {
                let mut profile = named.load()?;
                let given = connection.given_or(&administrator, &mut profile);
                restore::drop_replaced(&profile, &given, &database, &administrator.admin_database, report)
            }
            Action::Verify {
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
            } => {
                let (mut profile, dumps) = place.load()?;
                let administrator = (admin_user, admin_host, admin_password_file, admin_database);
                let (given, admin_database) = connection.for_drill(administrator, &mut profile);
                let jobs = tools.apply(&mut profile);
                let options = verify::Options {
                    given,
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
                    admin_database,
                };
                verify::run(&profile, &options, report)
            }
            Action::Check {
                named,
                connection,
                name,
                purpose,
                admin_user,
                admin_host,
                admin_password_file,
                admin_database,
            } => {
                let mut profile = named.load()?;
                if purpose == "drill" {
                    let administrator = (admin_user, admin_host, admin_password_file, admin_database);
                    let (given, home) = connection.for_drill(administrator, &mut profile);
                    return check::drill(&profile, &given, &home, report);
                }
                connection.apply(&mut profile);
                check::backup(&profile, &connection.given(name), report)
            }
        }
    }
}

impl Named {
    fn load(&self) -> Result<Profile> {
        Profile::load(self.profile.as_deref(), self.config.as_deref())
    }
}

impl Place {
    fn load(&self) -> Result<(Profile, PathBuf)> {
        let profile = self.named.load()?;
        let dumps = match self.dumps.as_ref().or(profile.database.dumps.as_ref()) {
            Some(dir) => std::path::absolute(dir)?,
            None => places::state(&profile)?.join("dumps"),
        };
        Ok((profile, dumps))
    }
}

impl Connection {
    fn given(&self, name: Option<String>) -> Given {
        Given {
            host: self.host.clone(),
            name,
            user: self.user.clone(),
            password_file: self.password_file.clone(),
            another_role: false,
        }
    }

    /// For making and dropping databases: the administrator, if one is named.
    fn given_or(&self, administrator: &Administrator, profile: &mut Profile) -> Given {
        let mut given = self.given(None);
        given.host = administrator.admin_host.clone().or(given.host);
        if administrator.admin_user.is_some() {
            // Another role: the first one's password is not its own.
            given.user.clone_from(&administrator.admin_user);
            given.password_file.clone_from(&administrator.admin_password_file);
            given.another_role = true;
        }
        self.apply(profile);
        given
    }

    /// For the scratch database: its role, and the database to connect to. The administrator is its role, host,
    /// password file and database.
    fn for_drill(
        &self,
        (user, host, password_file, database): (
            Option<String>,
            Option<String>,
            Option<PathBuf>,
            Option<String>,
        ),
        profile: &mut Profile,
    ) -> (Given, String) {
        let mut given = self.given(None);
        let drill = std::mem::take(&mut profile.drill);
        given.host = host.or(given.host).or(drill.host);
        let drill_user = if given.user.is_none() { drill.user } else { None };
        if let Some(user) = user.or(drill_user) {
            // Another role: the first one's password is not its own.
            given.user = Some(user);
            given.password_file = password_file.or(drill.password_file);
            given.another_role = true;
        }
        self.apply(profile);
        (given, database.or(drill.admin_database).unwrap_or("postgres".into()))
    }

    /// The same again, as arguments for the holder.
    fn argv(&self, named: &Named, name: Option<&str>) -> Vec<OsString> {
        let mut argv: Vec<OsString> = named.profile.iter().map(OsString::from).collect();
        let mut add = |option: &str, value: Option<OsString>| {
            if let Some(value) = value {
                let mut word = OsString::from(format!("{option}="));
                word.push(value);
                argv.push(word);
            }
        };
        add("--config", named.config.clone().map(Into::into));
        add("--host", self.host.clone().map(Into::into));
        add("--user", self.user.clone().map(Into::into));
        add("--name", name.map(Into::into));
        add("--password-file", self.password_file.clone().map(Into::into));
        add("--psql", self.psql.clone().map(Into::into));
        argv
    }

    /// Puts what options say over what the profile says.
    fn apply(&self, profile: &mut Profile) {
        put(&self.psql, &mut profile.database.psql);
    }
}

impl Tools {
    /// Puts what options say over what the profile says; the number of jobs.
    fn apply(&self, profile: &mut Profile) -> u32 {
        let settings = &mut profile.database;
        put(&self.pg_dump, &mut settings.pg_dump);
        put(&self.pg_restore, &mut settings.pg_restore);
        self.jobs.or(settings.jobs).unwrap_or(2).max(1)
    }
}

fn put(option: &Option<String>, setting: &mut Vec<String>) {
    if let Some(text) = option {
        *setting = text.split_whitespace().map(str::to_owned).collect();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory as _;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn help_fits_80_columns_and_documents_everything() {
        let mut command = Cli::command();
        let mut texts = vec![command.render_long_help().to_string()];
        for action in command.get_subcommands_mut() {
            texts.push(action.render_long_help().to_string());
            for arg in action.get_arguments() {
                assert!(arg.get_help().is_some(), "{} is not documented", arg.get_id());
            }
        }
        for line in texts.iter().flat_map(|t| t.lines()) {
            assert!(line.chars().count() <= 80, "too wide: {line}");
        }
    }
}

//! Who loads a dump into a new database: never an administrator.
//!
//! A dump is full of SQL that others wrote: a CHECK, a default, an index may call a function, and that runs with the rights
//! of whoever loads it. So an administrator makes a role for just this, with a random password and no rights but to the
//! new database, and the load is a login of that role: there is nothing to RESET to. A connecting role that may do nothing
//! dangerous itself (a role for rehearsals) loads by itself.

use anyhow::{Result, bail};
use common::fault::{self, Fault, Kind};
use common::mutant;
use common::record::random_id;
use common::status::Report;
use serde::Deserialize;

use crate::admin::Admin;
use crate::connect::Server;
use crate::dbhost::DbHost;
use crate::password::Password;
use crate::psql::{Psql, identifier, literal};
use crate::whose;

/// How the names of such roles begin.
const BEGIN: &str = "nc_backup_load_";
/// How long its password is good for: workers of a long load connect late.
const VALID: &str = "3 days";

/// Whether `role`, a row of pg_roles, can do nothing but with its own databases, neither itself nor by SET ROLE. (What a
/// superuser may does not come with a membership, and is a SET ROLE away.)
fn harmless(role: &str) -> String {
    // Not every version has each of these roles.
    let programs = ["pg_execute_server_program", "pg_write_server_files", "pg_read_server_files"];
    let which =
        if mutant::active("only-its-own-rights") { format!("p.oid = {role}.oid AND") } else { String::new() };
    format!(
        "NOT EXISTS (SELECT FROM pg_roles p WHERE {which} (p.rolsuper OR p.rolcreaterole OR p.rolname IN ({})) \
         AND pg_has_role({role}.oid, p.oid, 'MEMBER'))",
        programs.map(literal).join(", ")
    )
}

/// What the server says about the role that connects, and about itself.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Me {
    pub(crate) me: String,
    pub(crate) server_version: String,
    pub(crate) server_version_num: u32,
    pub(crate) superuser: bool,
    pub(crate) createdb: bool,
    pub(crate) createrole: bool,
    /// Neither of these, nor able to run programs on the server.
    pub(crate) harmless: bool,
    port: u16,
    /// Roles of our form.
    loaders: Vec<String>,
}

impl Me {
    /// Members of a `json_build_object` that is asked of `pg_roles r`, in the row of `current_user`.
    pub(crate) fn members() -> String {
        format!(
            "'me', r.rolname, 'superuser', r.rolsuper, 'createdb', r.rolcreatedb, 'createrole', r.rolcreaterole,
             'harmless', {}, 'port', current_setting('port')::int,
             'server_version', split_part(current_setting('server_version'), ' ', 1),
             'server_version_num', current_setting('server_version_num')::int,
             'loaders', (SELECT coalesce(json_agg(rolname), '[]') FROM pg_roles WHERE starts_with(rolname, {}))",
            harmless("r"),
            literal(BEGIN)
        )
    }

    /// Major version of the server.
    pub(crate) fn major(&self) -> u32 {
        self.server_version_num / 10_000
    }

    fn may_make_roles(&self) -> bool {
        self.superuser || self.createrole
    }

    /// Refuses a role that could do harm and cannot have another one do the work.
    pub(crate) fn judge(&self) -> Result<()> {
        if self.harmless || self.may_make_roles() {
            return Ok(());
        }
        Err(Fault::denied(format!(
            "the role {} may run programs or reach files on the server: what is in a dump would run with these rights",
            self.me
        ))
        .hint("name a role that may only make databases, or an administrator who can make one")
        .into())
    }

    /// Drops the roles that killed runs left. One that still owns a database stays without a word: that is half-made, and the
    /// restore that begins anew drops both.
    pub(crate) fn clear(&self, admin: &Admin, report: &mut Report) {
        if !self.may_make_roles() {
            return;
        }
        for name in self.loaders.iter().filter(|n| whose::is_abandoned(n, BEGIN)) {
            let owns = format!(
                "SELECT to_json(EXISTS (SELECT FROM pg_database d JOIN pg_roles r ON r.oid = d.datdba WHERE r.rolname = {}))",
                literal(name)
            );
            if admin.query(&owns).unwrap_or(false) && !mutant::active("a-restore-that-was-killed-is-a-fault")
            {
                continue;
            }
            if let Err(e) = admin.clean_up(&[format!("DROP ROLE IF EXISTS {}", identifier(name))]) {
                report.warn("leftover-kept", format!("cannot drop the leftover role {name}: {e:#}"));
            }
        }
    }
}

/// Which of `names` the server has, and whether they are harmless.
pub(crate) fn known(admin: &Admin, names: &[&str]) -> Result<Vec<(String, bool)>> {
    let names = names.iter().map(|n| literal(n)).collect::<Vec<_>>().join(", ");
    admin.query(&format!(
        "SELECT coalesce(json_agg(json_build_array(r.rolname, {})), '[]') FROM pg_roles r WHERE r.rolname IN ({names})",
        harmless("r")
    ))
}

/// The one who loads.
#[derive(Debug)]
pub(crate) struct Loader<'l> {
    admin: &'l Admin,
    me: &'l Me,
    made: Option<Made>,
}

/// A role for one load.
#[derive(Debug)]
struct Made {
    role: String,
    password: Password,
}

impl<'l> Loader<'l> {
    /// Finds or makes it.
    pub(crate) fn begin(admin: &'l Admin, me: &'l Me) -> Result<Loader<'l>> {
        me.judge()?;
        let mut loader = Loader { admin, me, made: None };
        if me.harmless || mutant::active("the-administrator-loads") {
            return Ok(loader);
        }
        let role = whose::new_name(BEGIN)?;
        let password = random_id()?;
        let id = identifier(&role);
        let until: String = admin.query(&format!("SELECT to_json((now() + interval '{VALID}')::text)"))?;
        let mut statements = quiet(me.superuser);
        statements.push(format!(
            "CREATE ROLE {id} LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION PASSWORD {} VALID UNTIL {}",
            literal(&password),
            literal(&until)
        ));
        if !me.superuser {
            // To give it a database, and to take it back.
            statements.push(format!("GRANT {id} TO {}", identifier(&me.me)));
        }
        loader.made = Some(Made { role, password: Password::new(password)? });
        if let Err(e) = admin.run(&statements) {
            loader.forget().ok();
            return Err(e.context("cannot make the role that loads the dump"));
        }
        Ok(loader)
    }

    /// The role that loads, and owns the new database meanwhile.
    pub(crate) fn role(&self) -> &str {
        self.made.as_ref().map_or(&*self.me.me, |m| &*m.role)
    }

    /// Whether a role was made for this.
    pub(crate) fn is_made(&self) -> bool {
        self.made.is_some()
    }

    /// psql as that role, in the new `database`, and where it connects. A made role has a password, which not every way
    /// to the server takes: those are tried that are known.
    pub(crate) fn login(&self, database: &str, others: &[Server]) -> Result<(Psql, Server)> {
        let admin = &self.admin.server;
        let Some(made) = &self.made else { return Ok((self.admin.psql.clone(), admin.clone())) };
        let mut hosts: Vec<DbHost> = vec![admin.host.clone()];
        hosts.extend(others.iter().map(|o| o.host.clone()));
        if admin.is_by_socket() {
            hosts.push(DbHost { host: Some("127.0.0.1".into()), port: Some(self.me.port) });
        }
        hosts.dedup();
        let mut reasons = Vec::new();
        for host in hosts {
            let shown = host.to_string();
            let server = Server {
                host,
                user: Some(made.role.clone()),
                password: Some(made.password.clone()),
                persistent: false,
            };
            let psql = Psql::new(self.admin.program.clone(), &server)?;
            match psql.run(database, &["SELECT 1"]) {
                Ok(_) => return Ok((psql, server)),
                Err(e) if matches!(fault::kind_of(&e), Kind::Interrupted(_)) => return Err(e),
                Err(e) => reasons.push(format!("{shown}: {e:#}")),
            }
        }
        Err(Fault::denied(format!(
            "a dump is loaded by a role made for it, never by {}, and that role cannot log in: {}",
            self.me.me,
            reasons.join("; ")
        ))
        .hint(
            "let roles in with their passwords from here, as Debian does: `host all all 127.0.0.1/32 scram-sha-256` in \
             pg_hba.conf; or connect as a role that may make databases and nothing more",
        )
        .into())
    }

    /// Makes it a member of `role`, so that it may do what that one could.
    pub(crate) fn joins(&self, role: &str) -> Result<()> {
        let Some(made) = &self.made else { return Ok(()) };
        self.admin.run(&[format!("GRANT {} TO {}", identifier(role), identifier(&made.role))]).map(|_| ())
    }

    /// Gives all it has in `database`, and that itself, to `role`. Nothing of the dump runs with that.
    pub(crate) fn hands_over(&self, database: &str, role: &str) -> Result<()> {
        let Some(made) = &self.made else { return Ok(()) };
        let sql = format!("REASSIGN OWNED BY {} TO {}", identifier(&made.role), identifier(role));
        self.admin.psql.run(database, &[sql]).map(|_| ())
    }

    /// Drops the role that was made, also when a signal asked us to stop. The databases it owned are gone or handed over.
    pub(crate) fn end(self, report: &mut Report) {
        if let Err(e) = self.forget() {
            let role = self.role();
            report.left_behind(
                format!("the role {role} ({e:#})"),
                format!("DROP ROLE {}; the next restore or rehearsal does it, too", identifier(role)),
            );
        }
    }

    fn forget(&self) -> Result<()> {
        let Some(made) = &self.made else { return Ok(()) };
        match self.admin.clean_up(&[format!("DROP ROLE IF EXISTS {}", identifier(&made.role))]) {
            Ok(_) => Ok(()),
            Err(e) => bail!(e),
        }
    }
}

/// What keeps a statement with a password out of the server's log, for who may say so.
pub(crate) fn quiet(superuser: bool) -> Vec<String> {
    let settings =
        ["log_statement = 'none'", "log_min_duration_statement = -1", "log_min_error_statement = 'panic'"];
    settings.iter().filter(|_| superuser).map(|s| format!("SET {s}")).collect()
}

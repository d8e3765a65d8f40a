//! `pg-snap check`: whether the rights suffice, before a night or a rehearsal finds out that they do not.
//!
//! Nothing is changed and nothing dumped: one session asks what each step will need, and each thing that lacks comes with
//! its cure.

use anyhow::{Context as _, Result};
use common::fault::{Fault, Kind};
use common::profile::Profile;
use common::status::Report;
use serde::{Deserialize, Serialize};

use crate::activity::UNSEEN;
use crate::admin::Admin;
use crate::connect::Server;
use crate::programs::Program;
use crate::psql::{Psql, identifier};
use crate::scratch::{self, Situation};
use crate::target::{self, Target};

/// What lacks.
#[derive(Debug, Serialize)]
pub(crate) struct Finding {
    kind: &'static str,
    message: String,
    /// SQL or a command, for an administrator.
    cure: Option<String>,
}

impl Finding {
    fn new(kind: &'static str, message: impl Into<String>, cure: impl Into<Option<String>>) -> Finding {
        Finding { kind, message: message.into(), cure: cure.into() }
    }

    /// It, as the reason why something else failed.
    pub(crate) fn fault(self) -> Fault {
        let fault = Fault::new(Kind::Denied, self.message);
        match self.cure {
            Some(cure) => fault.hint(cure),
            None => fault,
        }
    }
}

/// What a dump needs to read.
#[derive(Debug, Deserialize)]
struct Reading {
    me: String,
    unreadable: Vec<String>,
    large_objects: bool,
    policies: Vec<String>,
}

/// What cannot be read: tables, large objects, rows behind policies; by the ways that let pg_dump in.
const READING: &str = "SELECT json_build_object('me', current_user,
  'unreadable', (SELECT coalesce(json_agg(format('%I.%I', n.nspname, c.relname) ORDER BY c.oid), '[]')
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind IN ('r', 'p', 'm', 'S') AND c.relpersistence <> 't' AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
      AND NOT (has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'SELECT'))),
  'large_objects', EXISTS (SELECT FROM pg_largeobject_metadata l WHERE NOT pg_has_role(l.lomowner, 'USAGE')
    AND NOT EXISTS (SELECT FROM aclexplode(l.lomacl) a WHERE a.privilege_type = 'SELECT' AND (a.grantee = 0 OR pg_has_role(a.grantee, 'USAGE')))),
  'policies', (SELECT coalesce(json_agg(format('%I.%I', n.nspname, c.relname)), '[]')
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE row_security_active(c.oid)))";

/// What a dump could not read, if there is anything.
pub(crate) fn unreadable(psql: &Psql, database: &str) -> Result<Option<Finding>> {
    Ok(reading(psql, database)?.into_iter().next())
}

fn reading(psql: &Psql, database: &str) -> Result<Vec<Finding>> {
    let found: Reading = psql.query(database, READING).context("cannot ask what may be read")?;
    let me = identifier(&found.me);
    let mut findings = Vec::new();
    if let Some(first) = found.unreadable.first() {
        let number = found.unreadable.len();
        findings.push(Finding::new(
            "no-read-right",
            format!("the role {} may not read {number} tables or sequences, {first} among them", found.me),
            format!("GRANT pg_read_all_data TO {me}"),
        ));
    }
    if found.large_objects {
        findings.push(Finding::new(
            "no-large-object-right",
            format!("the role {} may not read large objects of others", found.me),
            format!("make the backup as their owner, or: GRANT owner TO {me}"),
        ));
    }
    if let Some(first) = found.policies.first() {
        findings.push(Finding::new(
            "row-security",
            format!("policies hide rows of {first} from the role {}", found.me),
            format!("ALTER ROLE {me} BYPASSRLS"),
        ));
    }
    Ok(findings)
}

/// What else a backup needs.
#[derive(Debug, Deserialize)]
struct Watching {
    me: String,
    server_version: String,
    server_version_num: u32,
    standby: bool,
    all_stats: bool,
    bytes: Option<i64>,
}

/// For `dump`, `drain` and `hold`.
pub(crate) fn backup(profile: &Profile, target: &Target, report: &mut Report) -> Result<()> {
    let settings = &profile.database;
    let (server, database) = target.resolve(profile)?;
    report.set("database", database.as_str());
    let psql = Psql::new(Program::find("psql", &settings.psql, None), &server)?.reads_only();
    let about: Result<Watching> = psql.query(
        &database,
        "SELECT json_build_object('me', current_user, 'server_version', split_part(current_setting('server_version'), ' ', 1),
           'server_version_num', current_setting('server_version_num')::int, 'standby', pg_is_in_recovery(),
           'all_stats', pg_has_role('pg_read_all_stats', 'USAGE'),
           'bytes', CASE WHEN has_database_privilege(current_database(), 'CONNECT') THEN pg_database_size(current_database()) END)",
    );
    let about = about.map_err(|e| explain_peer(e, &server))?;
    report.set("role", about.me.as_str());
    report.set("server_version", about.server_version.as_str());
    report.set("database_bytes", about.bytes);
    let mut findings = reading(&psql, &database)?;
    let nextclouds = target::as_nextcloud(profile).ok().flatten().and_then(|(s, _)| s.user);
    // A role sees its own sessions, and so Nextcloud's own role sees Nextcloud's.
    // But what it waits for is whoever owns the tables.
    let unseen: String = psql.query(&database, &format!("SELECT to_json(({UNSEEN}))"))?;
    if !unseen.is_empty() || (!about.all_stats && nextclouds.as_deref() != Some(about.me.as_str())) {
        findings.push(Finding::new(
            "no-stats-right",
            format!(
                "the role {} does not see who else uses the database, so nothing can wait for it",
                about.me
            ),
            format!("GRANT pg_read_all_stats TO {}", identifier(&about.me)),
        ));
    }
    if about.standby {
        findings.push(Finding::new(
            "standby",
            "this server is a standby: what it has may be older than what Nextcloud wrote",
            "name the primary: host in [database]".to_owned(),
        ));
    }
    let major = about.server_version_num / 10_000;
    for (name, argv) in [("pg_dump", &settings.pg_dump), ("pg_restore", &settings.pg_restore)] {
        if let Err(e) = Program::find(name, argv, Some(major)).version_for(&about.server_version, major) {
            findings.push(Finding::new(
                "client-too-old",
                format!("{e:#}"),
                format!("apt install postgresql-client-{major}"),
            ));
        }
    }
    conclude(findings, report)
}

/// For `verify`.
pub(crate) fn drill(profile: &Profile, target: &Target, report: &mut Report) -> Result<()> {
    let (server, home) = target.resolve(profile)?;
    report.set("database", home.as_str());
    let situation = Situation::read(&Admin::at(profile, server, home)?)?;
    let me = &situation.me;
    report.set("role", me.me.as_str());
    report.set("server_version", me.server_version.as_str());
    let mut findings = Vec::new();
    if !me.superuser && !me.createdb {
        findings.push(Finding::new(
            "no-createdb",
            format!("the role {} may not make databases", me.me),
            format!(
                "sudo -u postgres createuser --createdb root, and user = \"root\" in [drill]; or: {}",
                scratch::may_create(&me.me)
            ),
        ));
    }
    if let Err(e) = me.judge() {
        findings.push(Finding::new("too-many-rights", format!("{e:#}"), None));
    }
    let major = me.major();
    let program = Program::find("pg_restore", &profile.database.pg_restore, Some(major));
    if let Err(e) = program.version_for(&me.server_version, major) {
        findings.push(Finding::new(
            "client-too-old",
            format!("{e:#}"),
            format!("apt install postgresql-client-{major}"),
        ));
    }
    conclude(findings, report)
}

/// `error`, with what to do if it is that the server believes only the account named like the role. psql can take that
/// account's place, pg_dump cannot: what it writes belongs to us alone.
pub(crate) fn explain_peer(error: anyhow::Error, server: &Server) -> anyhow::Error {
    if common::fault::kind_of(&error) != Kind::Denied || server.peer_account().is_none() {
        return error;
    }
    let user = server.user.as_deref().unwrap_or("root");
    crate::refusal::hint(
        error,
        format!(
            "the server admits {user} only from the account of that name, which may not write a dump. Let root have a role \
             of its own: sudo -u postgres psql -d DATABASE -c 'CREATE ROLE root LOGIN' -c 'GRANT pg_read_all_data, \
             pg_read_all_stats TO root', and user = \"root\" in [database]"
        ),
    )
}

fn conclude(findings: Vec<Finding>, report: &mut Report) -> Result<()> {
    report.set("findings", serde_json::to_value(&findings)?);
    // The first one is the error.
    for finding in findings.iter().skip(1) {
        let cure = finding.cure.as_ref().map(|c| format!("; {c}")).unwrap_or_default();
        common::say!("pg-snap", "{}{cure}", finding.message);
    }
    match findings.into_iter().next() {
        Some(first) => Err(first.fault().into()),
        None => {
            common::say!("pg-snap", "the rights suffice");
            Ok(())
        }
    }
}

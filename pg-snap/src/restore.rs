//! `pg-snap restore`.
//!
//! The dump goes into a database of a temporary name, `NAME_pgsnap_new`; when it is complete, that one
//! takes the name and the old one goes. So until the last moment nothing has happened to the old one,
//! and a failure leaves it as it was. With --keep-replaced it stays under a name with the time, until
//! `drop-replaced`.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context as _, Result};
use common::fault::Fault;
use common::lock::Lock;
use common::places;
use common::profile::Profile;
use common::status::Report;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::connect::{self, Given, Server};
use crate::folder::Folder;
use crate::list;
use crate::manifest::{self, Manifest};
use crate::pg_restore;
use crate::programs::Program;
use crate::psql::{Psql, hint, identifier, literal};

/// What `restore` needs to know.
#[derive(Debug)]
pub(crate) struct Options {
    pub(crate) given: Given,
    pub(crate) dumps: PathBuf,
    /// `None`: the newest complete one.
    pub(crate) date: Option<String>,
    /// One dump's own folder, instead of a date.
    pub(crate) from: Option<PathBuf>,
    /// The database to make.
    pub(crate) database: String,
    /// Whether it may be replaced.
    pub(crate) yes: bool,
    /// Look whether it could be done, and change nothing.
    pub(crate) dry_run: bool,
    /// Do not drop the one that is replaced.
    pub(crate) keep_replaced: bool,
    pub(crate) jobs: u32,
    /// The database to connect to for making others.
    pub(crate) admin_database: String,
}

/// A dump that was found complete, kept from being pruned as long as this lives.
pub(crate) struct Source {
    pub(crate) dir: PathBuf,
    pub(crate) manifest: Manifest,
    /// Where pg_restore finds the files by their original names.
    pub(crate) scratch: PathBuf,
    _lock: Option<Lock>,
}

impl Source {
    /// One that lies outside the folder of the dumps.
    pub(crate) fn outside(dir: PathBuf, manifest: Manifest, scratch: PathBuf) -> Source {
        Source { dir, manifest, scratch, _lock: None }
    }
}

/// What the server says about us and the database in question.
#[derive(Debug, Deserialize)]
struct Situation {
    me: String,
    server_version: String,
    server_version_num: u32,
    superuser: bool,
    createdb: bool,
    createrole: bool,
    exists: bool,
    /// Databases of our temporary names: name and comment.
    leftovers: Vec<(String, Option<String>)>,
    missing_roles: Vec<String>,
    may_own: Option<bool>,
}

/// The mark on databases that this program may drop again.
const MARK: &str = "pg-snap:";

/// Restores a dump.
pub(crate) fn run(profile: &Profile, options: &Options, report: &mut Report) -> Result<()> {
    let clock = Instant::now();
    let what = format!("a restore with profile {}", profile.name);
    let _one_at_a_time = Lock::exclusive(&places::runtime(profile)?.join("pg-snap-restore.lock"), &what)?;
    let source = find(profile, options)?;
    let manifest = &source.manifest;
    report.set("date", manifest.date.as_str());
    report.set_text("dump", source.dir.as_os_str());
    report.set("database", options.database.as_str());
    report.set("tables", manifest.tables);
    report.set("dry_run", options.dry_run);
    report.set("kept_database", Value::Null);
    report.set("kept_databases", json!([]));
    let settings = &profile.database;
    let (server, _) = connect::resolve(profile, &options.given, false)?;
    let psql = Psql::new(Program::find("psql", &settings.psql, None), &server)?;
    let admin = Admin { psql: &psql, home: &options.admin_database };
    let situation = admin.look(&options.database, manifest)?;
    judge(&situation, options, manifest, report)?;
    let major = situation.server_version_num / 10_000;
    let made_by = manifest.client_version.split('.').next().and_then(|m| m.parse().ok()).unwrap_or(0);
    let program = Program::find("pg_restore", &settings.pg_restore, Some(major.max(made_by)));
    program.version_for(&situation.server_version, major)?;
    let farm = manifest.farm(&source.dir, &source.scratch)?;
    pg_restore::table_data(&program, farm.path()).map_err(|e| manifest::damaged(&source.dir, &e))?;
    if options.dry_run {
        common::say!("pg-snap", "{} can be restored into {}", manifest.date, options.database);
        return Ok(());
    }

    admin.clear(&situation.leftovers)?;
    if !situation.missing_roles.is_empty() {
        let path = source.dir.join(&manifest.roles_file);
        let sql =
            std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        admin.run(&sql).map_err(|e| {
            let cure =
                format!("let an administrator make them: sudo -u postgres psql < '{}'", path.display());
            hint(e, cure).context(format!("cannot make the roles {}", situation.missing_roles.join(", ")))
        })?;
        report.changed = true;
        if !manifest.role_passwords {
            let names = situation.missing_roles.join(", ");
            report.warn("no-password", format!("made without a password, as the dump has none: {names}"));
        }
    }
    report.set("roles_created", situation.missing_roles.clone());
    let new = admin.create(&options.database, manifest, situation.server_version_num)?;
    // In the same moment as the swap: under the other name, a restore that comes after a kill drops it.
    let old = match options.keep_replaced {
        true => kept_name(&options.database, &jiff::Timestamp::now().strftime(TIME).to_string()),
        false => temporary(&options.database, OLD),
    };
    let done = fill(&admin, &server, &program, &source, farm.path(), &new, options)
        .and_then(|()| admin.swap(&options.database, &new, situation.exists.then_some(&*old)));
    if let Err(e) = done {
        admin.undo(&new, report);
        let state = if situation.exists { "is as it was" } else { "has not been made" };
        common::say!("pg-snap", "the database {} {state}", options.database);
        return Err(e);
    }
    report.changed = true;
    if situation.exists && options.keep_replaced {
        common::say!("pg-snap", "the replaced database is kept as {old}");
        report.set("kept_database", old);
    } else if situation.exists {
        admin.drop_old(&old, report);
    }
    // Those of attempts before are the older, and so perhaps the ones that matter.
    match admin.kept(&options.database) {
        Ok(names) => report.set("kept_databases", names),
        Err(e) => {
            report.warn("kept-unknown", format!("what other restores have kept cannot be listed: {e:#}"))
        }
    }
    report.set("replaced", situation.exists);
    report.set("restore_ms", u64::try_from(clock.elapsed().as_millis()).unwrap_or(u64::MAX));
    common::say!("pg-snap", "{} restored into {}", manifest.date, options.database);
    Ok(())
}

/// Drops a database that `restore --keep-replaced` kept.
pub(crate) fn drop_replaced(
    profile: &Profile,
    given: &Given,
    database: &str,
    home: &str,
    report: &mut Report,
) -> Result<()> {
    report.set("database", database);
    let (server, _) = connect::resolve(profile, given, false)?;
    let psql = Psql::new(Program::find("psql", &profile.database.psql, None), &server)?;
    let found: Vec<(String, Option<String>)> = psql.query(
        home,
        &format!(
            "SELECT coalesce(json_agg(json_build_array(datname, shobj_description(oid, 'pg_database'))), '[]')
               FROM pg_database WHERE datname = {};",
            literal(database)
        ),
    )?;
    let Some((_, comment)) = found.first() else {
        common::say!("pg-snap", "there is no database {database}");
        return Ok(());
    };
    if !database.contains(KEPT) || !is_ours(comment.as_deref()) {
        return Err(Fault::config(format!("the database {database} is none that a restore has kept"))
            .hint("data.kept_database of `pg-snap restore --keep-replaced` says its name")
            .into());
    }
    psql.run(home, &drop_sql(database)).with_context(|| format!("cannot drop the database {database}"))?;
    report.changed = true;
    common::say!("pg-snap", "dropped {database}");
    Ok(())
}

/// Finds the dump, and holds it.
fn find(profile: &Profile, options: &Options) -> Result<Source> {
    if let Some(dir) = &options.from {
        let manifest = Manifest::read(dir).map_err(|e| manifest::damaged(dir, &e))?;
        let scratch = places::runtime(profile)?.join("pg-snap-restoring");
        return Ok(Source::outside(dir.clone(), manifest, scratch));
    }
    find_dated(&options.dumps, options.date.as_deref())
}

/// Finds the dump of `date`, or the newest complete one, in the folder `dumps`, and holds it.
pub(crate) fn find_dated(dumps: &std::path::Path, date: Option<&str>) -> Result<Source> {
    let none = || Fault::failed(format!("there is no complete dump in {}", dumps.display()));
    let folder = Folder::open(dumps)?.ok_or_else(none)?;
    let lock = folder.lock_shared()?;
    let manifest = match date {
        Some(date) => {
            let dir = folder.path().join(date);
            if !dir.exists() {
                let fault = Fault::failed(format!("there is no dump {date} in {}", dumps.display()));
                return Err(fault.hint("`pg-snap list` shows what there is").into());
            }
            list::read(&folder, date).map_err(|e| manifest::damaged(&dir, &e))?
        }
        None => {
            let (dates, _) = folder.dates()?;
            dates.iter().rev().find_map(|d| list::read(&folder, d).ok()).ok_or_else(none)?
        }
    };
    let dir = folder.path().join(&manifest.date);
    Ok(Source { dir, manifest, scratch: folder.scratch(), _lock: Some(lock) })
}

/// Refuses what cannot or must not be done, before anything is changed.
fn judge(situation: &Situation, options: &Options, manifest: &Manifest, report: &mut Report) -> Result<()> {
    let name = &options.database;
    if *name == options.admin_database {
        return Err(Fault::config(format!("{name} cannot be made anew from within itself"))
            .hint("name another --admin-database")
            .into());
    }
    if situation.exists && !options.yes {
        return Err(Fault::failed(format!("the database {name} exists"))
            .hint("--yes replaces it (the old one is kept until the new one is complete), or name another")
            .into());
    }
    if !situation.superuser && !situation.createdb {
        return Err(Fault::denied(format!("the role {} may not make databases", situation.me))
            .hint(format!(
                "grant it: sudo -u postgres psql -c 'ALTER ROLE {} CREATEDB', or connect as an administrator: \
                 --admin-user",
                identifier(&situation.me)
            ))
            .into());
    }
    if situation.may_own == Some(false) {
        let owner = &manifest.definition.owner;
        return Err(Fault::denied(format!("the role {} cannot make a database for {owner}", situation.me))
            .hint("use --admin-user postgres, or the owner itself")
            .into());
    }
    if let Some((name, _)) = situation.leftovers.iter().find(|(_, comment)| !is_ours(comment.as_deref())) {
        return Err(in_the_way(name).into());
    }
    if !situation.missing_roles.is_empty() && !situation.superuser && !situation.createrole {
        return Err(Fault::denied(format!(
            "the role {} may not make the roles {}",
            situation.me,
            situation.missing_roles.join(", ")
        ))
        .hint(format!(
            "let an administrator make them: sudo -u postgres psql < DUMP/{}, or connect as one: --admin-user",
            manifest.roles_file
        ))
        .into());
    }
    if situation.server_version_num / 10_000 < manifest.server_version_num / 10_000 {
        report.warn(
            "older-server",
            format!(
                "the dump is from PostgreSQL {}, the server is {}: it may not understand all of it",
                manifest.server_version, situation.server_version
            ),
        );
    }
    Ok(())
}

/// Puts the dump into the new database and makes it ready for use.
fn fill(
    admin: &Admin<'_>,
    server: &Server,
    program: &Program,
    source: &Source,
    farm: &std::path::Path,
    new: &str,
    options: &Options,
) -> Result<()> {
    pg_restore::restore(program, server, new, farm, options.jobs, &[])
        .context("the dump cannot be restored")?;
    let path = source.dir.join(&source.manifest.settings_file);
    let settings =
        std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    admin.psql.run_with_db(admin.home, new, &settings).context("cannot set what was set on the database")?;
    admin.psql.run(new, "ANALYZE;").context("ANALYZE failed")?;
    Ok(())
}

fn is_ours(comment: Option<&str>) -> bool {
    comment.is_some_and(|c| c.starts_with(MARK))
}

fn in_the_way(name: &str) -> Fault {
    Fault::failed(format!("the database {name} is in the way, and is not ours"))
        .hint("rename it, or drop it if nobody needs it")
}

/// What is done to databases as a whole, from another one.
struct Admin<'a> {
    psql: &'a Psql,
    home: &'a str,
}

impl Admin<'_> {
    fn run(&self, sql: &str) -> Result<String> {
        self.psql.run(self.home, sql)
    }

    fn look(&self, name: &str, manifest: &Manifest) -> Result<Situation> {
        let names = |list: &[String]| list.iter().map(|n| literal(n)).collect::<Vec<_>>().join(", ");
        let temporary = names(&[temporary(name, NEW), temporary(name, OLD)]);
        let mut needed = manifest.roles.clone();
        needed.push(manifest.definition.owner.clone());
        let needed = needed.iter().map(|n| format!("({})", literal(n))).collect::<Vec<_>>().join(", ");
        let (owner, name) = (literal(&manifest.definition.owner), literal(name));
        self.psql.query(
            self.home,
            &format!(
                "SELECT json_build_object('me', rolname, 'superuser', rolsuper, 'createdb', rolcreatedb,
                   'createrole', rolcreaterole,
                   'server_version', split_part(current_setting('server_version'), ' ', 1),
                   'server_version_num', current_setting('server_version_num')::int,
                   'exists', EXISTS (SELECT FROM pg_database WHERE datname = {name}),
                   'leftovers', (SELECT coalesce(json_agg(json_build_array(datname, shobj_description(oid, 'pg_database'))), '[]')
                     FROM pg_database WHERE datname IN ({temporary})),
                   'missing_roles', (SELECT coalesce(json_agg(DISTINCT n.name), '[]') FROM (VALUES {needed}) n (name)
                     WHERE NOT EXISTS (SELECT FROM pg_roles r WHERE r.rolname = n.name)),
                   'may_own', (SELECT pg_has_role(current_user, o.oid, 'MEMBER') FROM pg_roles o WHERE o.rolname = {owner}))
                 FROM pg_roles WHERE rolname = current_user;"
            ),
        )
    }

    /// Drops what a killed restore left, if it is marked as ours.
    fn clear(&self, leftovers: &[(String, Option<String>)]) -> Result<()> {
        for (name, comment) in leftovers {
            if !is_ours(comment.as_deref()) {
                return Err(in_the_way(name).into());
            }
            self.run(&drop_sql(name)).with_context(|| format!("cannot drop the leftover {name}"))?;
            common::say!("pg-snap", "dropped {name}, which an earlier restore left");
        }
        Ok(())
    }

    /// Makes the empty database that will be `name`.
    fn create(&self, name: &str, manifest: &Manifest, server: u32) -> Result<String> {
        let new = temporary(name, NEW);
        let sql = manifest.definition.create(&new, server);
        let mark = format!("COMMENT ON DATABASE {} IS '{MARK} restore in progress';", identifier(&new));
        self.run(&format!("{sql}\n{mark}")).map_err(|e| {
            self.psql.clean_up(self.home, &drop_sql(&new)).ok();
            let e = if format!("{e:#}").contains("locale") {
                let locale = &manifest.definition.collate;
                hint(
                    e,
                    format!("the server lacks the locale {locale}: locale-gen {locale}, restart PostgreSQL"),
                )
            } else {
                e
            };
            e.context("cannot make the database anew")
        })?;
        Ok(new)
    }

    /// Gives the new database the name; the one that has it, if there is one, is called `old` from the same moment on.
    fn swap(&self, name: &str, new: &str, old: Option<&str>) -> Result<()> {
        let (name_id, new_id) = (identifier(name), identifier(new));
        let mut sql = String::new();
        if old.is_some() {
            // Nextcloud may connect again between the two: the rename then waits, fails, and is tried again.
            sql.push_str(&format!(
                "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = {}
                 AND backend_type = 'client backend';\n",
                literal(name)
            ));
        }
        sql.push_str("BEGIN;\n");
        if let Some(old) = old {
            let old_id = identifier(old);
            sql.push_str(&format!(
                "COMMENT ON DATABASE {name_id} IS '{MARK} replaced';\nALTER DATABASE {name_id} RENAME TO {old_id};\n"
            ));
        }
        sql.push_str(&format!(
            "ALTER DATABASE {new_id} RENAME TO {name_id};\nCOMMENT ON DATABASE {name_id} IS NULL;\nCOMMIT;\n"
        ));
        let mut tries = 0;
        loop {
            match self.run(&sql) {
                Ok(_) => return Ok(()),
                Err(e) if tries < 4 && format!("{e:#}").contains("being accessed by other users") => {
                    tries += 1
                }
                Err(e) => {
                    return Err(e)
                        .with_context(|| format!("cannot put the restored database in place of {name}"));
                }
            }
        }
    }

    /// Drops the half-made database.
    fn undo(&self, new: &str, report: &mut Report) {
        if let Err(e) = self.psql.clean_up(self.home, &drop_sql(new)) {
            report.left_behind(format!("the unfinished database {new} ({e:#})"), drop_sql(new));
        }
    }

    /// Drops the database that was replaced.
    fn drop_old(&self, old: &str, report: &mut Report) {
        if let Err(e) = self.psql.clean_up(self.home, &drop_sql(old)) {
            report.warn(
                "old-database-kept",
                format!("the replaced database is still there as {old}; {} ({e:#})", drop_sql(old)),
            );
        }
    }

    /// The databases of the name `name` that restores have kept, the oldest first.
    fn kept(&self, name: &str) -> Result<Vec<String>> {
        let (begins, mark) = (kept_name(name, ""), literal(MARK));
        self.psql.query(
            self.home,
            &format!(
                "SELECT coalesce(json_agg(datname ORDER BY datname COLLATE \"C\"), '[]') FROM pg_database
                 WHERE left(datname, {}) = {} AND substr(datname, {} + 1) ~ '^[0-9]{{8}}T[0-9]{{6}}Z$'
                   AND left(shobj_description(oid, 'pg_database'), length({mark})) = {mark};",
                begins.chars().count(),
                literal(&begins),
                begins.chars().count(),
            ),
        )
    }
}

const NEW: &str = "_pgsnap_new";
const OLD: &str = "_pgsnap_old";
/// Followed by the time, in UTC.
const KEPT: &str = "_pgsnap_";
const TIME: &str = "%Y%m%dT%H%M%SZ";
/// Bytes of such a time.
const TIME_LEN: usize = 16;

/// `name` with `ending`, within the 63 bytes of an identifier.
fn temporary(name: &str, ending: &str) -> String {
    format!("{}{ending}", cut(name, 63 - ending.len()))
}

/// What `name` is called when it was replaced at `time`; without a time, how all of these names begin.
fn kept_name(name: &str, time: &str) -> String {
    format!("{}{KEPT}{time}", cut(name, 63 - KEPT.len() - TIME_LEN))
}

/// At most so many bytes of `name`.
fn cut(name: &str, most: usize) -> &str {
    let mut cut = name.len().min(most);
    while !name.is_char_boundary(cut) {
        cut -= 1;
    }
    &name[..cut]
}

/// Also while somebody is connected, where the server can (13 and newer).
pub(crate) fn drop_sql(name: &str) -> String {
    let id = identifier(name);
    format!(
        "SELECT 'DROP DATABASE IF EXISTS ' || {} || CASE WHEN current_setting('server_version_num')::int >= 130000 \
         THEN ' WITH (FORCE)' ELSE '' END \\gexec",
        literal(&id)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn temporary_names_fit() {
        assert_eq!(temporary("nextcloud", NEW), "nextcloud_pgsnap_new");
        assert!(temporary(&"ü".repeat(31), OLD).len() <= 63);
        let long = kept_name(&"ü".repeat(31), "20260101T000000Z");
        assert!(long.len() <= 63 && long.starts_with(&kept_name(&"ü".repeat(31), "")), "{long}");
    }
}

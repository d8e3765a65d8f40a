//! `pg-snap restore`.
//!
//! The dump goes into a database of a temporary name, `NAME_pgsnap_new`; when it is complete, that one
//! takes the name and the old one goes. So until the last moment nothing has happened to the old one,
//! and a failure leaves it as it was. With --keep-replaced it stays under a name with the time, until
//! `drop-replaced`.
//!
//! An administrator makes roles and the empty database, and exchanges the names; what comes from the dump runs with the
//! rights of a loader (see `loader`). In the end Nextcloud's own login is tried.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use common::fault::Fault;
use common::lock::Lock;
use common::mutant;
use common::places;
use common::profile::Profile;
use common::say;
use common::status::Report;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::connect::{self, Given, Server};
use crate::facts::{Facts, Role};
use crate::folder::Folder;
use crate::list;
use crate::load::{Load, MARK, drop_database, drop_sql};
use crate::loader::{self, Loader, Me};
use crate::manifest::{self, Farm, Manifest};
use crate::password::Password;
use crate::pg_restore::{self, Contents};
use crate::programs::Program;
use crate::psql::{self, Psql, identifier, literal};
use crate::verify;

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
    /// How long nothing may move.
    pub(crate) stall: Duration,
    /// The database to connect to for making others.
    pub(crate) admin_database: String,
}

/// A dump that was found complete, kept from being pruned as long as this lives.
pub(crate) struct Source {
    pub(crate) dir: PathBuf,
    pub(crate) manifest: Manifest,
    /// Where pg_restore finds the files by their original names.
    pub(crate) scratch: PathBuf,
    lock: Option<Lock>,
}

impl Source {
    /// One that lies outside the folder of the dumps.
    pub(crate) fn outside(dir: PathBuf, manifest: Manifest, scratch: PathBuf) -> Source {
        Source { dir, manifest, scratch, lock: None }
    }

    /// The files under pg_dump's own names.
    pub(crate) fn farm(&self) -> Result<Farm> {
        // What is locked lies in our own folder of dumps.
        self.manifest.farm(&self.dir, &self.scratch, self.lock.is_some())
    }
}

/// What the server says about us and the database in question.
#[derive(Debug, Deserialize)]
struct Situation {
    #[serde(flatten)]
    me: Me,
    exists: bool,
    /// Databases of our temporary names: name and comment.
    leftovers: Vec<(String, Option<String>)>,
    missing_roles: Vec<String>,
    may_own: Option<bool>,
}

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
    report.set("login", Value::Null);
    let settings = &profile.database;
    let facts = Facts::read(&source.dir, manifest).map_err(|e| manifest::damaged(&source.dir, &e))?;
    let (server, _) = connect::resolve(profile, &options.given, false)?;
    let client = Program::find("psql", &settings.psql, None);
    let psql = Psql::new(client.clone(), &server)?.admitted(&options.admin_database)?;
    let admin = Admin { psql: &psql, home: &options.admin_database };
    let situation = admin.look(&options.database, manifest)?;
    judge(&situation, options, manifest)?;
    if situation.exists && !options.dry_run && !options.keep_replaced {
        say!(
            "pg-snap",
            "only the database {} is replaced, no file: the whole instance is /usr/lib/nc-backup/restore's",
            options.database
        );
    }
    verify::warn_if_older(&situation.me, manifest, report);
    let major = situation.me.major();
    let program = Program::find("pg_restore", &settings.pg_restore, Some(major.max(manifest.made_by())));
    pg_restore::check_versions(&program, &situation.me.server_version, major, manifest)?;
    let farm = source.farm()?;
    let contents = pg_restore::readable(&program, farm.path(), &source.dir, manifest)?;
    if options.dry_run {
        common::say!("pg-snap", "{} can be restored into {}", manifest.date, options.database);
        return Ok(());
    }

    let login = Login::find(profile, report);
    let named = settings.user.as_deref();
    let principal = admin.principal(&facts, &contents, manifest, &situation, login.as_ref(), named)?;
    admin.clear(&situation.leftovers)?;
    situation.me.clear(&psql, admin.home, report);
    if admin.make_roles(&facts, &situation, login.as_ref(), &options.database, report)? {
        report.changed = true;
    }
    report.set("roles_created", situation.missing_roles.clone());
    let mut others = connect::of_profile(profile);
    others.extend(login.iter().map(|l| l.server.clone()));
    let load = Load {
        admin: &psql,
        home: admin.home,
        me: &situation.me,
        psql: &client,
        pg_restore: &program,
        server: &server,
        others: &others,
        manifest,
        facts: &facts,
        contents: &contents,
        dir: farm.path(),
        jobs: options.jobs,
        stall: options.stall,
    };
    // In the same moment as the swap: under the other name, a restore that comes after a kill drops it.
    let old = match options.keep_replaced {
        true => kept_name(&options.database, &jiff::Timestamp::now().strftime(TIME).to_string()),
        false => temporary(&options.database, OLD),
    };
    let new = temporary(&options.database, NEW);
    let loader = Loader::begin(&psql, admin.home, &situation.me)?;
    let done = admin
        .make(&load, &loader, &new, principal, &situation, report)
        .and_then(|()| admin.swap(&options.database, &new, situation.exists.then_some(&*old)));
    if done.is_err() {
        admin.undo(&new, report);
    }
    loader.end(report);
    if let Err(e) = done {
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
    if let Some(login) = login.filter(|l| l.database == options.database) {
        let works = login.try_it(&client, &admin, situation.me.superuser, report);
        report.set("login", works);
    }
    report.set("replaced", situation.exists);
    report.set("restore_ms", u64::try_from(clock.elapsed().as_millis()).unwrap_or(u64::MAX));
    if report.warnings().iter().any(|w| w["kind"].as_str().is_some_and(|k| INCOMPLETE.contains(&k))) {
        report.set_partial();
    }
    common::say!("pg-snap", "{} restored into {}", manifest.date, options.database);
    Ok(())
}

/// Warnings that say that something is not as it was: exit code 3.
const INCOMPLETE: [&str; 8] = [
    "left-out",
    "extension-left-out",
    "setting-left-out",
    "grants-left-out",
    "membership-left-out",
    "owner-changed",
    "no-password",
    "login-failed",
];

/// How Nextcloud itself logs in.
struct Login {
    server: Server,
    database: String,
}

impl Login {
    /// As its configuration says, which a restore of the whole instance has put in place before; else as the profile.
    fn find(profile: &Profile, report: &mut Report) -> Option<Login> {
        let found = connect::as_nextcloud(profile);
        match found {
            Ok(found) => found.map(|(server, database)| Login { server, database }),
            Err(e) => {
                report.warn(
                    "login-unknown",
                    format!("how Nextcloud logs in cannot be found out, so it is not tried: {e:#}"),
                );
                None
            }
        }
    }

    /// Its password, if `role` is the one it logs in as.
    fn password_of(&self, role: &str) -> Option<&Password> {
        self.server.password.as_ref().filter(|_| self.server.user.as_deref() == Some(role))
    }

    /// Whether Nextcloud can log in now. A role that never had a password gets this one.
    fn try_it(&self, client: &Program, admin: &Admin<'_>, superuser: bool, report: &mut Report) -> bool {
        let user = self.server.user.clone().unwrap_or_default();
        let attempt = || {
            let psql = Psql::new(client.clone(), &self.server)?.admitted(&self.database)?;
            psql.run(&self.database, &["SELECT 1"])
        };
        let mut done = attempt();
        if done.is_err() && superuser && !mutant::active("no-password-for-a-bare-role") {
            let bare =
                format!("SELECT rolpassword IS NULL FROM pg_authid WHERE rolname = {}", literal(&user));
            if let (Some(password), Ok("t")) = (&self.server.password, admin.run(&bare).as_deref()) {
                let mut statements = loader::quiet(true);
                statements.push(format!(
                    "ALTER ROLE {} PASSWORD {}",
                    identifier(&user),
                    literal(password.reveal())
                ));
                if admin.psql.run(admin.home, &statements).is_ok() {
                    done = attempt();
                }
            }
        }
        let Err(e) = done else { return true };
        report.warn(
            "login-failed",
            format!(
                "Nextcloud cannot log in as {user} at {}, as its configuration says: {e:#}; give that role this password: \
                 ALTER ROLE {} PASSWORD '…', or see pg_hba.conf",
                self.server.host,
                identifier(&user)
            ),
        );
        false
    }
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
    let psql = Psql::new(Program::find("psql", &profile.database.psql, None), &server)?.admitted(home)?;
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
    drop_database(&psql, home, database).with_context(|| format!("cannot drop the database {database}"))?;
    report.changed = true;
    common::say!("pg-snap", "dropped {database}");
    Ok(())
}

/// Finds the dump, and holds it.
fn find(profile: &Profile, options: &Options) -> Result<Source> {
    if let Some(dir) = &options.from {
        let manifest = Manifest::read(dir).map_err(|e| manifest::damaged(dir, &e))?;
        let scratch = places::state(profile)?.join("pg-snap-restoring");
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
    Ok(Source { dir, manifest, scratch: folder.scratch(), lock: Some(lock) })
}

/// Refuses what cannot or must not be done, before anything is changed.
fn judge(situation: &Situation, options: &Options, manifest: &Manifest) -> Result<()> {
    let me = &situation.me;
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
    if !me.superuser && !me.createdb {
        return Err(Fault::denied(format!("the role {} may not make databases", me.me))
            .hint(format!(
                "grant it: sudo -u postgres psql -c 'ALTER ROLE {} CREATEDB', or connect as an administrator: \
                 --admin-user",
                identifier(&me.me)
            ))
            .into());
    }
    if situation.may_own == Some(false) {
        let owner = &manifest.definition.owner;
        return Err(Fault::denied(format!("the role {} cannot make a database for {owner}", me.me))
            .hint("use --admin-user postgres, or the owner itself")
            .into());
    }
    if let Some((name, _)) = situation.leftovers.iter().find(|(_, comment)| !is_ours(comment.as_deref())) {
        return Err(in_the_way(name).into());
    }
    if !situation.missing_roles.is_empty() && !me.superuser && !me.createrole {
        return Err(Fault::denied(format!(
            "the role {} may not make the roles {}",
            me.me,
            situation.missing_roles.join(", ")
        ))
        .hint("connect as an administrator, who can: --admin-user")
        .into());
    }
    me.judge()
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
        self.psql.run(self.home, &[sql])
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
                "SELECT json_build_object({},
                   'exists', EXISTS (SELECT FROM pg_database WHERE datname = {name}),
                   'leftovers', (SELECT coalesce(json_agg(json_build_array(datname, shobj_description(oid, 'pg_database'))), '[]')
                     FROM pg_database WHERE datname IN ({temporary})),
                   'missing_roles', (SELECT coalesce(json_agg(DISTINCT n.name), '[]') FROM (VALUES {needed}) n (name)
                     WHERE NOT EXISTS (SELECT FROM pg_roles r WHERE r.rolname = n.name)),
                   'may_own', (SELECT pg_has_role(current_user, o.oid, 'MEMBER') FROM pg_roles o WHERE o.rolname = {owner}))
                 FROM pg_roles r WHERE r.rolname = current_user",
                Me::members()
            ),
        )
    }

    /// Makes the roles that are missing, ordinary ones, and what they are members of; whether there were any.
    fn make_roles(
        &self,
        facts: &Facts,
        situation: &Situation,
        login: Option<&Login>,
        database: &str,
        report: &mut Report,
    ) -> Result<bool> {
        let mut bare = Vec::new();
        for name in &situation.missing_roles {
            let ordinary =
                Role { name: name.clone(), inherit: true, connection_limit: -1, ..Role::default() };
            let role = facts.role(name).unwrap_or(&ordinary);
            let password = login.and_then(|l| l.password_of(name)).map(Password::reveal);
            let password = password.filter(|_| !mutant::active("roles-without-the-password"));
            if password.is_none() && role.password.is_none() && role.login {
                bare.push(name.as_str());
            }
            let mut statements = loader::quiet(situation.me.superuser);
            statements.push(role.create(password));
            self.psql.run(self.home, &statements).with_context(|| format!("cannot make the role {name}"))?;
            common::say!("pg-snap", "made the role {name}");
        }
        if !bare.is_empty() {
            let names = bare.join(", ");
            report.warn("no-password", format!("made without a password, as none is known: {names}"));
        }
        self.join_roles(facts, &situation.missing_roles, database, report);
        Ok(!situation.missing_roles.is_empty())
    }

    /// What the roles `made` are members of, and what are members of them. Nobody becomes a member of one that may do more
    /// than others.
    fn join_roles(&self, facts: &Facts, made: &[String], database: &str, report: &mut Report) {
        for membership in &facts.memberships {
            if !made.contains(&membership.role) && !made.contains(&membership.member) {
                continue;
            }
            let harmless = loader::known(self.psql, self.home, &[&membership.role]);
            let harmless = harmless.is_ok_and(|k| k.iter().all(|(_, harmless)| *harmless) && !k.is_empty());
            let harmless = harmless
                && (made.contains(&membership.role)
                    || self.has_nothing_else(&membership.role, database).unwrap_or(false));
            let joined = match harmless || mutant::active("members-of-anything") {
                true => self.run(&membership.grant()).map(|_| ()),
                false => Err(anyhow::anyhow!(
                    "that role may do more than others here, or has other databases, or is not there"
                )),
            };
            if let Err(e) = joined {
                report.warn("membership-left-out", format!("{} was left out: {e:#}", membership.grant()));
            }
        }
    }

    /// Whether a role that was here before owns nothing, and may do nothing, but in `database`: what is another program's is not
    /// given to a role because a dump says so.
    fn has_nothing_else(&self, role: &str, database: &str) -> Result<bool> {
        if mutant::active("members-of-another-program") {
            return Ok(true);
        }
        self.psql.query(
            self.home,
            &format!(
                "SELECT to_json(NOT EXISTS (SELECT FROM pg_shdepend s JOIN pg_roles r ON r.oid = s.refobjid
                   LEFT JOIN pg_database d ON d.datname = {}
                 WHERE r.rolname = {} AND s.refclassid = 'pg_authid'::regclass AND s.deptype IN ('o', 'a')
                   AND s.dbid IS DISTINCT FROM d.oid
                   AND NOT (s.classid = 'pg_database'::regclass AND s.objid IS NOT DISTINCT FROM d.oid)))",
                literal(database),
                literal(role)
            ),
        )
    }

    /// Whose everything becomes: whose most tables are, which is what Nextcloud connects as, while the database can be an
    /// administrator's. Where a made role loads, that is nobody who may do more than others, unless the profile `named` that
    /// role: what a dump brings would run with those rights later (SECURITY DEFINER, or an index that is analyzed).
    fn principal<'d>(
        &self,
        facts: &'d Facts,
        contents: &Contents,
        manifest: &'d Manifest,
        situation: &Situation,
        login: Option<&'d Login>,
        named: Option<&str>,
    ) -> Result<&'d str> {
        let owner = manifest.definition.owner.as_str();
        let owners = contents.owners(facts.roles.iter().map(|r| r.name.as_str()));
        let first = owners.first().filter(|(_, tables)| *tables > 0).map_or(owner, |(role, _)| role);
        if situation.me.harmless || mutant::active("an-administrator-inherits") {
            return Ok(first);
        }
        let login = login.and_then(|l| l.server.user.as_deref());
        let others = owners.iter().map(|(role, _)| *role).chain([owner]);
        for role in [first].into_iter().chain(login).chain(others) {
            // One that is missing is made an ordinary one.
            let made = situation.missing_roles.iter().any(|m| m == role);
            let known = loader::known(self.psql, self.home, &[role])?;
            if made || named == Some(role) || known.iter().any(|(_, harmless)| *harmless) {
                return Ok(role);
            }
        }
        Err(Fault::denied(format!(
            "what is in the dump would belong to {first}, which may do more than others on this server, and so run with these rights"
        ))
        .hint(format!(
            "name the role that Nextcloud connects as: user in [database]; if that is {first}, better ALTER ROLE {} \
             NOSUPERUSER NOCREATEROLE before",
            identifier(first)
        ))
        .into())
    }

    /// Makes the new database as it will be used, but for its name.
    fn make(
        &self,
        load: &Load<'_>,
        loader: &Loader<'_>,
        new: &str,
        principal: &str,
        situation: &Situation,
        report: &mut Report,
    ) -> Result<()> {
        let names = load.facts.roles.iter().map(|r| r.name.as_str());
        let owners = load.contents.owners(names);
        let owner = load.manifest.definition.owner.as_str();
        let changed: Vec<&str> = owners.iter().map(|(role, _)| *role).filter(|r| *r != principal).collect();
        if !changed.is_empty() {
            let from = changed.join(", ");
            report.warn(
                "owner-changed",
                format!("everything belongs to {principal}, also what belonged to {from}"),
            );
        }
        if !loader.is_made() {
            // The role that connects does it all itself, in the name of the owner.
            let role = Some(owner).filter(|o| *o != situation.me.me);
            load.create(new, owner, "restore in progress")?;
            return load.fill(loader, new, role, report)?.dress(true, report);
        }
        load.create(new, loader.role(), "restore in progress")?;
        let filled = load.fill(loader, new, None, report)?;
        let harmless =
            loader::known(self.psql, self.home, &[principal])?.iter().all(|(_, harmless)| *harmless);
        if harmless {
            // From here on, nothing of the dump runs: it can take the owner's part.
            filled.hand_over(principal)?;
            loader.joins(principal)?;
            filled.dress(true, report)?;
        } else {
            filled.dress(true, report)?;
            filled.hand_over(principal)?;
        }
        for setting in &load.facts.role_settings {
            let made = setting.role.as_deref().filter(|r| situation.missing_roles.iter().any(|m| m == r));
            if let (Some(role), Some(sql)) = (made, setting.alter(None)) {
                filled.as_member(role, &sql, setting.name(), report);
            }
        }
        if owner != principal {
            self.run(&format!("ALTER DATABASE {} OWNER TO {}", identifier(new), identifier(owner)))
                .with_context(|| format!("cannot give the database to {owner}"))?;
        }
        Ok(())
    }

    /// Drops what a killed restore left, if it is marked as ours.
    fn clear(&self, leftovers: &[(String, Option<String>)]) -> Result<()> {
        for (name, comment) in leftovers {
            if !is_ours(comment.as_deref()) {
                return Err(in_the_way(name).into());
            }
            drop_database(self.psql, self.home, name)
                .with_context(|| format!("cannot drop the leftover {name}"))?;
            common::say!("pg-snap", "dropped {name}, which an earlier restore left");
        }
        Ok(())
    }

    /// Gives the new database the name; the one that has it, if there is one, is called `old` from the same moment on.
    fn swap(&self, name: &str, new: &str, old: Option<&str>) -> Result<()> {
        let (name_id, new_id) = (identifier(name), identifier(new));
        let mut sql = Vec::new();
        if old.is_some() {
            // Nextcloud may connect again between the two: the rename then waits, fails, and is tried again.
            sql.push(format!(
                "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = {}
                 AND backend_type = 'client backend'",
                literal(name)
            ));
        }
        sql.push("BEGIN".into());
        if let Some(old) = old {
            let old_id = identifier(old);
            sql.push(format!("COMMENT ON DATABASE {name_id} IS '{MARK} replaced'"));
            sql.push(format!("ALTER DATABASE {name_id} RENAME TO {old_id}"));
        }
        sql.push(format!("ALTER DATABASE {new_id} RENAME TO {name_id}"));
        sql.push(format!("COMMENT ON DATABASE {name_id} IS NULL"));
        sql.push("COMMIT".into());
        let mut tries = 0;
        loop {
            match self.psql.run(self.home, &sql) {
                Ok(_) => return Ok(()),
                // object_in_use
                Err(e) if tries < 4 && psql::sqlstate(&e) == Some("55006") => tries += 1,
                Err(e) => {
                    return Err(e)
                        .with_context(|| format!("cannot put the restored database in place of {name}"));
                }
            }
        }
    }

    /// Drops the half-made database.
    fn undo(&self, new: &str, report: &mut Report) {
        if let Err(e) = drop_database(self.psql, self.home, new) {
            report.left_behind(format!("the unfinished database {new} ({e:#})"), drop_sql(new));
        }
    }

    /// Drops the database that was replaced.
    fn drop_old(&self, old: &str, report: &mut Report) {
        if let Err(e) = drop_database(self.psql, self.home, old) {
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

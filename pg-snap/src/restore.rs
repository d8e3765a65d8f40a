//! `pg-snap restore`.
//!
//! The dump goes into a database of a temporary name, `NAME_pgsnap_new`; when it is complete, that one
//! takes the name and the old one goes. So until the last moment nothing has happened to the old one,
//! and a failure leaves it as it was. With --keep-replaced it stays under a name with the time, until
//! `drop-replaced`.
//!
//! An administrator makes roles and the empty database, and exchanges the names; what comes from the dump runs with the
//! rights of a loader (see `loader`). In the end Nextcloud's own login is tried.
//!
//! Up to the swap it is its own rehearsal: [`Source`], [`Admin`], [`Readable`] and [`Load`] are those of `verify`. What a
//! rehearsal does not have is in `roles` (what is missing is made), `swap` and `login`.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use common::lock::Lock;
use common::mutant;
use common::places;
use common::profile::Profile;
use common::say;
use common::status::Report;
use serde_json::{Value, json};

use crate::admin::{Admin, drop_sql};
use crate::connect;
use crate::load::{self, Load, Readable};
use crate::loader::{self, Loader};
use crate::login::Login;
use crate::psql::identifier;
use crate::roles;
use crate::source::Source;
use crate::standing::Standing;
use crate::swap::{self, NEW, OLD, TIME, kept_name, temporary};
use crate::target::Target;

/// What `restore` needs to know.
#[derive(Debug)]
pub(crate) struct Options {
    pub(crate) target: Target,
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
}

/// Restores a dump.
pub(crate) fn run(profile: &Profile, options: &Options, report: &mut Report) -> Result<()> {
    let clock = Instant::now();
    let what = format!("a restore with profile {}", profile.name);
    let _one_at_a_time = Lock::exclusive(&places::runtime(profile)?.join("pg-snap-restore.lock"), &what)?;
    let source = match &options.from {
        Some(dir) => Source::outside(dir.clone(), places::state(profile)?.join("pg-snap-restoring"))?,
        None => Source::dated(&options.dumps, options.date.as_deref())?,
    };
    let manifest = &source.manifest;
    report.set("date", manifest.date.as_str());
    report.set_text("dump", source.dir.as_os_str());
    report.set("database", options.database.as_str());
    report.set("tables", manifest.tables);
    report.set("dry_run", options.dry_run);
    report.set("kept_database", Value::Null);
    report.set("kept_databases", json!([]));
    report.set("login", Value::Null);
    let facts = source.facts()?;
    let admin = Admin::connect(profile, &options.target)?;
    let standing = Standing::read(&admin, &options.database, manifest)?;
    standing.judge(&admin, &options.database, options.yes, manifest)?;
    if standing.exists && !options.dry_run && !options.keep_replaced {
        say!(
            "pg-snap",
            "only the database {} is replaced, no file: the whole instance is /usr/lib/nc-backup/restore's",
            options.database
        );
    }
    load::warn_if_older(&standing.me, manifest, report);
    let readable = Readable::find(profile, &source, &standing.me)?;
    if options.dry_run {
        report.set("kept_databases", swap::kept(&admin, &options.database)?);
        common::say!("pg-snap", "{} can be restored into {}", manifest.date, options.database);
        return Ok(());
    }

    let login = Login::find(profile, report);
    let named = profile.database.user.as_deref();
    let principal =
        roles::principal(&admin, &facts, &readable.contents, manifest, &standing, login.as_ref(), named)?;
    standing.clear(&admin)?;
    standing.me.clear(&admin, report);
    if roles::make(&admin, &facts, &standing, login.as_ref(), &options.database, report)? {
        report.changed = true;
    }
    report.set("roles_created", standing.missing_roles.clone());
    let mut others = connect::of_profile(profile);
    others.extend(login.iter().map(|l| l.server.clone()));
    let load = Load {
        admin: &admin,
        me: &standing.me,
        others: &others,
        manifest,
        facts: &facts,
        readable: &readable,
        jobs: options.jobs,
        stall: options.stall,
    };
    // In the same moment as the swap: under the other name, a restore that comes after a kill drops it.
    let old = match options.keep_replaced {
        true => kept_name(&options.database, &jiff::Timestamp::now().strftime(TIME).to_string()),
        false => temporary(&options.database, OLD),
    };
    let new = temporary(&options.database, NEW);
    let loader = Loader::begin(&admin, &standing.me)?;
    let done = make(&admin, &load, &loader, &new, principal, &standing, report)
        .and_then(|()| swap::swap(&admin, &options.database, &new, standing.exists.then_some(&*old)));
    if done.is_err() {
        undo(&admin, &new, report);
    }
    loader.end(report);
    if let Err(e) = done {
        let state = if standing.exists { "is as it was" } else { "has not been made" };
        common::say!("pg-snap", "the database {} {state}", options.database);
        return Err(e);
    }
    report.changed = true;
    if standing.exists && options.keep_replaced {
        common::say!("pg-snap", "the replaced database is kept as {old}");
        report.set("kept_database", old);
    } else if standing.exists {
        swap::drop_old(&admin, &old, report);
    }
    // Those of attempts before are the older, and so perhaps the ones that matter.
    match swap::kept(&admin, &options.database) {
        Ok(names) => report.set("kept_databases", names),
        Err(e) => {
            report.warn("kept-unknown", format!("what other restores have kept cannot be listed: {e:#}"))
        }
    }
    if let Some(login) = login.filter(|l| l.database == options.database) {
        let works = login.try_it(&admin, standing.me.superuser, report);
        report.set("login", works);
    }
    report.set("replaced", standing.exists);
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

/// Makes the new database as it will be used, but for its name.
fn make(
    admin: &Admin,
    load: &Load<'_>,
    loader: &Loader<'_>,
    new: &str,
    principal: &str,
    standing: &Standing,
    report: &mut Report,
) -> Result<()> {
    let names = load.facts.roles.iter().map(|r| r.name.as_str());
    let owners = load.readable.contents.owners(names);
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
        let role = Some(owner).filter(|o| *o != standing.me.me);
        load.create(new, owner, "restore in progress")?;
        return load.fill(loader, new, role, report)?.dress(true, report);
    }
    load.create(new, loader.role(), "restore in progress")?;
    let filled = load.fill(loader, new, None, report)?;
    let harmless = loader::known(admin, &[principal])?.iter().all(|(_, harmless)| *harmless);
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
        let made = setting.role.as_deref().filter(|r| standing.missing_roles.iter().any(|m| m == r));
        if let (Some(role), Some(sql)) = (made, setting.alter(None)) {
            filled.as_member(role, &sql, setting.name(), report);
        }
    }
    if owner != principal {
        admin
            .run(&[format!("ALTER DATABASE {} OWNER TO {}", identifier(new), identifier(owner))])
            .with_context(|| format!("cannot give the database to {owner}"))?;
        let again = filled.grants_on_itself();
        if !again.is_empty() && !mutant::active("grants-after-the-owner") {
            let statements: Vec<String> =
                std::iter::once(format!("SET ROLE {}", identifier(owner))).chain(again).collect();
            if let Err(e) = admin.run(&statements) {
                let message = format!("the grants on the database itself could not be made again: {e:#}");
                report.warn("grants-left-out", message);
            }
        }
    }
    Ok(())
}

/// Drops the half-made database.
fn undo(admin: &Admin, new: &str, report: &mut Report) {
    if let Err(e) = admin.drop_database(new) {
        report.left_behind(format!("the unfinished database {new} ({e:#})"), drop_sql(new));
    }
}

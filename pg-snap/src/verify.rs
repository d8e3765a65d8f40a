//! `pg-snap verify`: a dump is restored for real, into a scratch database, counted, and compared with the files.
//!
//! The database in use is never touched: what is connected to is the maintenance database, and the scratch database, which
//! has a name of its own. It is a restore up to the moment where that would put the new database in the old one's place. A
//! role that may make databases suffices, and none of the instance's roles need exist: what an administrator would do,
//! owners and grants to roles that are not there, is left to the restore.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use common::drill::{self, DrillRecord};
use common::exclude::{self, Excludes};
use common::fault::{self, Fault, Kind};
use common::lock::Lock;
use common::mutant;
use common::places;
use common::profile::Profile;
use common::status::{self, Report};
use serde_json::{Value, json};

use crate::admin::Admin;
use crate::connect;
use crate::facts::Facts;
use crate::file_cache::{self, Class, Findings, Tree};
use crate::load::{self, Load, Readable};
use crate::loader::{self, Loader};
use crate::manifest::Manifest;
use crate::psql::{Psql, identifier};
use crate::scratch::{self, Scratch, Situation};
use crate::source::Source;
use crate::target::Target;

/// What `verify` needs to know.
#[derive(Debug)]
pub(crate) struct Options {
    pub(crate) target: Target,
    pub(crate) dumps: PathBuf,
    /// A date, or `latest` for the newest complete one. `None`: the tree's own dump, else the newest.
    pub(crate) date: Option<String>,
    /// One dump's own folder, instead of a date.
    pub(crate) from: Option<PathBuf>,
    /// The files to compare with.
    pub(crate) against: Option<PathBuf>,
    /// Compare with the newest snapshot of the profile's store.
    pub(crate) newest: bool,
    /// Note the outcome for `link-sync list`, as that of this date if one is given.
    pub(crate) record: Option<Option<String>>,
    /// Patterns of what the snapshot leaves out of `data`, besides those of the profile.
    pub(crate) exclude: Vec<String>,
    /// Findings of each class that are named.
    pub(crate) limit: usize,
    pub(crate) jobs: u32,
    /// How long nothing may move.
    pub(crate) stall: Duration,
}

/// Rehearses a restore, and notes how it went if that is asked for.
pub(crate) fn run(profile: &Profile, options: &Options, report: &mut Report) -> Result<()> {
    let done = rehearse(profile, options, report);
    let Some(date) = options.record.as_ref() else { return done };
    // A rehearsal that was stopped or met another one says nothing about the backup.
    let stopped = done.as_ref().err().map(fault::kind_of);
    if matches!(stopped, Some(Kind::Interrupted(_) | Kind::Busy)) {
        return done;
    }
    // One that has to fetch the snapshot first has failed until it has come to its end.
    let elsewhere = report.data.get("remote_store").is_some_and(|v| *v == true);
    let error = match elsewhere {
        true => Some("the snapshot was not fetched from the store's machine, or not compared".to_owned()),
        false => done.as_ref().err().map(ToString::to_string),
    };
    let number = |value: &Value| value.as_u64();
    let lost = report.data.get("would_lose").cloned().unwrap_or_default();
    let findings = report.data.get("findings").and_then(Value::as_object);
    let text = |key: &str| report.data.get(key).and_then(Value::as_str).map(str::to_owned);
    let record = DrillRecord {
        at: status::now(),
        ok: error.is_none(),
        date: date.clone().or_else(|| text("snapshot_date")).or_else(|| text("date")),
        findings: findings.map(|f| f.values().filter_map(number).sum()),
        lost_files: number(&lost["files"]),
        lost_bytes: number(&lost["bytes"]),
        error,
    };
    match places::state(profile).and_then(|state| record.save(&state.join(drill::FILE))) {
        Ok(()) => done,
        // The first error is the one that matters.
        Err(e) => done.and(Err(e.context("the outcome cannot be noted"))),
    }
}

fn rehearse(profile: &Profile, options: &Options, report: &mut Report) -> Result<()> {
    let what = format!("a rehearsal with profile {}", profile.name);
    let runtime = places::runtime(profile)?;
    let _one_at_a_time = Lock::exclusive(&runtime.join("pg-snap-verify.lock"), &what)?;
    report.set("remote_store", false);
    let tree = match &options.against {
        Some(path) => Some(Tree::open(path)?),
        None if options.newest => Some(Tree::newest(&store(profile, report)?)?),
        None => None,
    };
    let excludes = excludes(profile, &options.exclude)?;
    let source = find(options, tree.as_ref(), places::state(profile)?.join("pg-snap-verifying"))?;
    let manifest = &source.manifest;
    report.set("date", manifest.date.as_str());
    report.set_text("dump", source.dir.as_os_str());
    report.set("database", manifest.database.as_str());
    report.set("run_id", manifest.run_id.as_deref());
    report.set("tables", manifest.tables);
    for key in
        ["table_rows", "restore_ms", "compare_ms", "snapshot_date", "findings", "would_lose", "rows", "files"]
    {
        report.set(key, Value::Null);
    }
    report.set("examples", json!([]));
    report.set("unchecked", json!([]));
    report.set("against", Value::Null);
    if let Some(tree) = &tree {
        report.set_text("against", tree.path.as_os_str());
        report.set("snapshot_date", tree.snapshot.as_ref().map(|s| s.date.as_str()));
    }
    let admin = Admin::connect(profile, &options.target)?;
    let situation = Situation::read(&admin)?;
    situation.judge()?;
    load::warn_if_older(&situation.me, manifest, report);
    let cleared = situation.clear(&admin, report)?;
    report.set("cleared", cleared);
    let room_checked = scratch::check_room(&situation, manifest.database_size_bytes)?;
    report.set("room_checked", room_checked);
    let readable = Readable::find(profile, &source, &situation.me)?;
    let facts = source.facts()?;
    let load = Load {
        admin: &admin,
        me: &situation.me,
        others: &connect::of_profile(profile),
        manifest,
        facts: &facts,
        readable: &readable,
        jobs: options.jobs,
        stall: options.stall,
    };

    let loader = Loader::begin(&admin, &situation.me)?;
    let scratch = match Scratch::create(&load, loader.role()) {
        Ok(scratch) => scratch,
        Err(e) => {
            loader.end(report);
            return Err(e);
        }
    };
    let clock = Instant::now();
    let done = load.fill(&loader, scratch.name(), None, report).and_then(|filled| {
        if roles_are_there(&admin, &facts)? {
            filled.dress(false, report)?;
        }
        report.set("restore_ms", elapsed(&clock));
        let compare = file_cache::Options { excludes: &excludes, limit: options.limit };
        look(&filled.psql, scratch.name(), manifest, tree.as_ref(), &compare, report)
    });
    scratch.close(report);
    loader.end(report);
    conclude(done?, report)
}

/// Whether the server has every role that the dump grants something to.
fn roles_are_there(admin: &Admin, facts: &Facts) -> Result<bool> {
    let names: Vec<&str> = facts.roles.iter().map(|r| r.name.as_str()).collect();
    Ok(names.is_empty() || loader::known(admin, &names)?.len() == names.len())
}

/// Counts, and compares if there is a tree.
fn look(
    psql: &Psql,
    database: &str,
    manifest: &Manifest,
    tree: Option<&Tree>,
    options: &file_cache::Options<'_>,
    report: &mut Report,
) -> Result<Findings> {
    let (tables, rows) = count(psql, database)?;
    report.set("table_rows", rows);
    common::say!("pg-snap", "{} restored: {tables} tables, {rows} rows", manifest.date);
    let clock = Instant::now();
    let mut findings = match tree {
        Some(tree) => file_cache::compare(psql, database, manifest, tree, options, report)?,
        None => Findings::new(options.limit),
    };
    if tree.is_some() {
        report.set("compare_ms", elapsed(&clock));
    }
    if tables < manifest.tables {
        findings.say(Class::Dump, format!("{tables} tables were restored, the dump has {}", manifest.tables));
    }
    Ok(findings)
}

/// Tables with data of their own, and the rows in all of them.
fn count(psql: &Psql, database: &str) -> Result<(u64, u64)> {
    let sql = "SELECT coalesce(json_agg(json_build_array(n.nspname, c.relname, c.relforcerowsecurity)), '[]') FROM pg_class c JOIN pg_namespace n \
               ON n.oid = c.relnamespace WHERE c.relkind = 'r' AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema';";
    let tables: Vec<(String, String, bool)> =
        psql.query(database, sql).context("cannot list the restored tables")?;
    if tables.is_empty() {
        return Ok((0, 0));
    }
    let name = |schema: &str, name: &str| format!("{}.{}", identifier(schema), identifier(name));
    // Policies that hide rows from the owner, too: here, that is who looks.
    let forced =
        tables.iter().filter(|(_, _, forced)| *forced && !mutant::active("an-owner-sees-what-policies-show"));
    let shown: Vec<String> = forced
        .map(|(schema, table, _)| format!("ALTER TABLE {} NO FORCE ROW LEVEL SECURITY", name(schema, table)))
        .collect();
    if !shown.is_empty() {
        psql.run(database, &shown).context("cannot look at tables that have row-level security")?;
    }
    let counts =
        tables.iter().map(|(schema, table, _)| format!("SELECT count(*) AS n FROM {}", name(schema, table)));
    let counts = counts.collect::<Vec<_>>().join("\nUNION ALL ");
    let rows = psql
        .query(database, &format!("SELECT to_json(sum(n)::bigint) FROM ({counts}) c;"))
        .context("cannot count the restored rows")?;
    Ok((tables.len() as u64, rows))
}

/// Says what was found; findings are a failure.
fn conclude(findings: Findings, report: &mut Report) -> Result<()> {
    report.set("findings", findings.counts());
    report.set("examples", findings.examples());
    report.set("would_lose", findings.would_lose());
    findings.tell("pg-snap");
    if findings.total() > 0 {
        let hint = "data.examples names them; `link-sync list` shows the other dates";
        return Err(Fault::failed(findings.sentence()).hint(hint).into());
    }
    if let (Some(rows), Some(files)) = (report.data["rows"].as_u64(), report.data["files"].as_u64()) {
        let unchecked: u64 = report.data["unchecked"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|u| u["rows"].as_u64())
            .sum();
        if rows == 0 {
            let fault = Fault::failed(format!(
                "no row could be compared: {unchecked} rows are of storages outside the tree"
            ));
            return Err(fault
                .hint("is datadirectory in config.php the folder that was saved as data?")
                .into());
        }
        common::say!("pg-snap", "{rows} rows and {files} files fit: nothing would be lost");
        if unchecked > 0 {
            common::say!("pg-snap", "{unchecked} rows of other storages were not checked");
        }
    }
    Ok(())
}

/// The dump: the one that is named, else the tree's own, else the newest.
fn find(options: &Options, tree: Option<&Tree>, scratch: PathBuf) -> Result<Source> {
    let own = if options.date.is_none() { tree.and_then(Tree::dump) } else { None };
    if let Some(dir) = options.from.clone().or(own) {
        return Source::outside(dir, scratch);
    }
    let mut source = Source::dated(&options.dumps, options.date.as_deref().filter(|d| *d != "latest"))?;
    source.scratch = scratch;
    Ok(source)
}

/// The profile's store, which must be a folder here.
fn store(profile: &Profile, report: &mut Report) -> Result<PathBuf> {
    match (&profile.snapshot.store, &profile.store) {
        (Some(store), _) if store.starts_with('/') => Ok(store.into()),
        (Some(store), _) => {
            report.set("remote_store", true);
            Err(Fault::config(format!("the store {store} is on another machine"))
                .hint("rehearse there; `drill` fetches the snapshot first, and goes on here")
                .into())
        }
        (None, Some(store)) => Ok(store.path.clone()),
        (None, None) => Err(Fault::config("the profile names no store")
            .hint("set path in [store], or store in [snapshot]; or name a folder with --against")
            .into()),
    }
}

/// What a snapshot of this profile leaves out of `data`: the defaults, the source's own patterns, other sources in it.
fn excludes(profile: &Profile, more: &[String]) -> Result<Excludes> {
    let sources = &profile.snapshot.source;
    let data = sources.iter().find(|s| s.name == "data");
    let everything = data.is_some_and(|d| d.default_excludes == Some(false));
    let mut patterns = if everything { Vec::new() } else { exclude::defaults("data") };
    let mut inside = Vec::new();
    if let Some(data) = data {
        patterns.extend(data.exclude.iter().cloned());
        let others = sources.iter().filter(|s| s.name != "data").filter_map(|s| s.path.as_ref());
        let below = others.filter_map(|o| o.strip_prefix(data.path.as_ref()?).ok());
        inside.extend(below.map(|p| std::os::unix::ffi::OsStrExt::as_bytes(p.as_os_str()).to_vec()));
    }
    patterns.extend(more.iter().cloned());
    inside.retain(|p| !p.is_empty());
    Excludes::new(&patterns, inside)
}

fn elapsed(clock: &Instant) -> u64 {
    u64::try_from(clock.elapsed().as_millis()).unwrap_or(u64::MAX)
}

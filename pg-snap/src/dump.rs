//! `pg-snap dump`, of the state of now or of the one that is held.
//!
//! Order: folder private and locked, server asked, versions compared, pg_dump into `DATE.partial`, its
//! table of contents read back, files named by table, `dump.json`, everything durable, folder still
//! private, and only then the name `DATE`. Whatever fails before, nothing stays that looks like a dump.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use common::durable;
use common::fault::Failure;
use common::lock::Lock;
use common::mutant;
use common::profile::Profile;
use common::record::RunRecord;
use common::status::Report;

use crate::catalog::Catalog;
use crate::connect::Server;
use crate::drain;
use crate::dumps::{Dumps, Partial};
use crate::hold::Held;
use crate::manifest::{self, Manifest, Stored};
use crate::names::{Names, dump_id, objects};
use crate::programs::Program;
use crate::psql::Psql;
use crate::target::Target;
use crate::{check, facts, pg_dump, pg_restore};

/// What `dump` needs to know.
#[derive(Debug)]
pub(crate) struct Options {
    pub(crate) target: Target,
    pub(crate) dumps: PathBuf,
    pub(crate) jobs: u32,
    /// How long nothing may be written.
    pub(crate) stall: Duration,
    pub(crate) run_id: Option<String>,
    /// Dump the held state instead of that of now.
    pub(crate) held: bool,
}

/// The work, prepared: server asked, programs chosen.
struct Work<'w> {
    server: Server,
    psql: Psql,
    database: String,
    catalog: Catalog,
    pg_dump: Program,
    pg_restore: Program,
    client_version: String,
    profile: &'w Profile,
    options: &'w Options,
    lock: &'w Lock,
    held: Option<Held>,
}

/// Makes a dump.
pub(crate) fn run(profile: &Profile, options: &Options, report: &mut Report) -> Result<()> {
    let folder = Dumps::make(&options.dumps)?;
    report.set_text("dumps", folder.path().as_os_str());
    let lock = folder.lock()?;
    let cleared = folder.sweep(&lock)?;
    for name in &cleared {
        common::say!("pg-snap", "cleared what an earlier run left: {name}");
    }
    report.set("cleared", cleared);
    let work = Work::prepare(profile, options, &lock)?;
    let mut partial = folder.begin(&lock)?;
    let done = work.fill(&partial, report).and_then(|manifest| Ok((manifest, partial.publish()?)));
    let (manifest, path) = match done {
        Ok(done) => done,
        Err(e) => {
            partial.discard(report);
            return Err(e);
        }
    };
    report.changed = true;
    tell(&manifest, &path, report);
    Ok(())
}

fn tell(manifest: &Manifest, path: &Path, report: &mut Report) {
    report.set("date", manifest.date.as_str());
    report.set_text("path", path.as_os_str());
    report.set("database", manifest.database.as_str());
    report.set("run_id", manifest.run_id.as_deref());
    report.set("tables", manifest.tables);
    report.set("size_bytes", manifest.size_bytes);
    report.set("database_size_bytes", manifest.database_size_bytes);
    report.set("dump_ms", manifest.duration_ms);
    report.set("server_version", manifest.server_version.as_str());
    report.set("client_version", manifest.client_version.as_str());
    report.set("roles", manifest.roles.clone());
    report.set("role_passwords", manifest.role_passwords);
    common::say!(
        "pg-snap",
        "{}: {} tables of {}, {} bytes in {} ms",
        manifest.date,
        manifest.tables,
        manifest.database,
        manifest.size_bytes,
        manifest.duration_ms
    );
}

/// The run that has maintenance switched on, if one has.
fn current_run(profile: &Profile) -> Result<Option<String>> {
    Ok(RunRecord::load(profile)?.map(|r| r.run_id))
}

impl<'w> Work<'w> {
    fn prepare(profile: &'w Profile, options: &'w Options, lock: &'w Lock) -> Result<Work<'w>> {
        let settings = &profile.database;
        let held = options.held.then(|| drain::held(profile)).transpose()?;
        let (server, database) = options.target.resolve(profile)?;
        let psql = Psql::new(Program::find("psql", &settings.psql, None), &server)?.reads_only();
        let catalog = Catalog::read(&psql, &database).map_err(|e| check::explain_peer(e, &server))?;
        let major = catalog.server_major();
        let pg_dump = Program::find("pg_dump", &settings.pg_dump, Some(major));
        let pg_restore = Program::find("pg_restore", &settings.pg_restore, Some(major));
        let client_version = pg_dump.version_for(&catalog.server_version, major)?;
        Ok(Work {
            server,
            psql,
            database,
            catalog,
            pg_dump,
            pg_restore,
            client_version,
            profile,
            options,
            lock,
            held,
        })
    }

    /// Writes everything into the unfinished dump.
    fn fill(&self, partial: &Partial<'_>, report: &mut Report) -> Result<Manifest> {
        let run_id = match (&self.held, &self.options.run_id) {
            (Some(held), _) => Some(held.run_id.clone()),
            (None, Some(given)) => Some(given.clone()),
            (None, None) => current_run(self.profile)?,
        };
        let dir = partial.path().join(manifest::FILES);
        let clock = Instant::now();
        let job = pg_dump::Job {
            program: &self.pg_dump,
            server: &self.server,
            psql: &self.psql,
            database: &self.database,
            to: &dir,
            jobs: self.options.jobs,
            snapshot: self.held.as_ref().map(|h| h.snapshot.as_str()),
            tables: self.catalog.tables.len(),
            stall: self.options.stall,
        };
        let dump = |report: &mut Report| pg_dump::run(&job, self.lock, report).map_err(|e| self.lacking(e));
        if let Some(held) = &self.held {
            drain::in_use(self.profile, || dump(report))?;
            drain::still_held(self.profile, held)?;
        } else {
            dump(report)?;
        }
        let duration_ms = u64::try_from(clock.elapsed().as_millis()).unwrap_or(u64::MAX);
        let run_id = self.confirm_run(run_id, report)?;
        let toc = pg_restore::contents(&self.pg_restore, &dir)
            .context("pg_restore cannot read the dump that was just made")?
            .table_data();
        let mut files = self.rename(&dir, &toc)?;
        let text = serde_json::to_vec_pretty(&self.catalog.facts)?;
        durable::write(&partial.path().join(facts::FILE), &text, 0o600)?;
        files.push(Stored { name: facts::FILE.into(), original: None, size_bytes: text.len() as u64 });
        let manifest = Manifest {
            schema: manifest::SCHEMA,
            tool_version: env!("CARGO_PKG_VERSION").into(),
            date: partial.date().into(),
            run_id,
            window: self.held.as_ref().map(|h| h.window),
            database: self.database.clone(),
            definition: self.catalog.definition.clone(),
            server_version: self.catalog.server_version.clone(),
            server_version_num: self.catalog.server_version_num,
            client_version: self.client_version.clone(),
            facts_file: Some(facts::FILE.into()),
            roles_file: None,
            settings_file: None,
            roles: self.catalog.facts.roles.iter().map(|r| r.name.clone()).collect(),
            role_passwords: self.catalog.has_passwords(),
            tables: toc.len() as u64,
            size_bytes: files.iter().map(|f| f.size_bytes).sum(),
            database_size_bytes: self.catalog.database_size_bytes,
            duration_ms,
            files,
        };
        let text = serde_json::to_vec_pretty(&manifest)?;
        durable::write(&partial.path().join(manifest::FILE), &text, 0o600)?;
        Ok(manifest)
    }

    /// If pg_dump failed for want of a right, which it says in the server's language: that right.
    fn lacking(&self, error: anyhow::Error) -> anyhow::Error {
        if error.downcast_ref::<Failure>().is_none() || mutant::active("errors-by-words") {
            return error;
        }
        match check::unreadable(&self.psql, &self.database) {
            Ok(Some(finding)) => anyhow::Error::from(finding.fault()).context(format!("{error:#}")),
            _ => error,
        }
    }

    /// The dump belongs to a run only if maintenance was that run's from before the dump to its end.
    fn confirm_run(&self, before: Option<String>, report: &mut Report) -> Result<Option<String>> {
        if self.options.run_id.is_some()
            || self.held.is_some()
            || before.is_none()
            || current_run(self.profile)? == before
        {
            return Ok(before);
        }
        report
            .warn("run-ended", "maintenance ended while the dump ran: it is complete, but belongs to no run");
        Ok(None)
    }

    /// Gives the data files the names of their tables; the map from stored to original names.
    fn rename(&self, dir: &Path, toc: &HashMap<u32, u32>) -> Result<Vec<Stored>> {
        let what = || format!("cannot name the files in {} by table", dir.display());
        let mut found = Vec::new();
        for entry in std::fs::read_dir(dir).with_context(what)? {
            let entry = entry.with_context(what)?;
            let name = entry.file_name().into_string().ok().with_context(what)?;
            found.push((name, entry.metadata().with_context(what)?.len()));
        }
        let by_oid: HashMap<u32, (&str, &str)> =
            self.catalog.tables.iter().map(|t| (t.oid, (t.schema.as_str(), t.name.as_str()))).collect();
        // In the order of table OIDs, so that two names that were cut to the same keep their order.
        let oid = |name: &str| toc.get(&dump_id(name)?.0).copied();
        found.sort_by_key(|(name, _)| (oid(name), name.clone()));
        let mut names = Names::default();
        let mut files = Vec::new();
        for (original, size_bytes) in found {
            let table = dump_id(&original).and_then(|(id, suffix)| {
                let (schema, table) = by_oid.get(toc.get(&id)?)?;
                Some(names.table(schema, table, suffix))
            });
            let objects =
                || objects(&original, &beginning(&dir.join(&original)).ok()?).map(|name| names.keep(&name));
            // A table made since the server was asked keeps its number this once.
            let stored = table.or_else(objects).unwrap_or_else(|| names.keep(&original));
            if stored != original {
                std::fs::rename(dir.join(&original), dir.join(&stored)).with_context(what)?;
            }
            let name = format!("{}/{stored}", manifest::FILES);
            files.push(Stored { name, original: Some(original), size_bytes });
        }
        Ok(files)
    }
}

/// The first bytes of a file that pg_dump has just written.
fn beginning(path: &Path) -> std::io::Result<Vec<u8>> {
    use std::io::Read as _;
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(64).read_to_end(&mut bytes)?;
    Ok(bytes)
}

//! A dump into a new database: the one way, for a restore and for its rehearsal.
//!
//! The database is made under a name of its own; the loader fills it and analyzes it; rights and settings follow. Then a
//! restore gives it the name it is meant for, and a rehearsal looks at it and drops it. What an ordinary role cannot bring
//! back is left out and said, so that neither fails for it.

use std::time::Duration;

use anyhow::{Context as _, Result};
use common::mutant;
use common::profile::Profile;
use common::status::Report;

use crate::admin::{Admin, MARK, UNMARKED};
use crate::connect::Server;
use crate::facts::Facts;
use crate::loader::{self, Loader, Me};
use crate::manifest::{Farm, Manifest};
use crate::pg_restore::{self, Contents, Parts};
use crate::programs::Program;
use crate::psql::{Psql, identifier, literal};
use crate::refusal::{hint, sqlstate};
use crate::source::Source;

/// A dump that a server can take, the files under pg_dump's own names, and the program that reads them.
pub(crate) struct Readable {
    pub(crate) pg_restore: Program,
    pub(crate) farm: Farm,
    pub(crate) contents: Contents,
}

impl Readable {
    /// Fails for a dump, or a pair of program and server, that cannot come to anything.
    pub(crate) fn find(profile: &Profile, source: &Source, me: &Me) -> Result<Readable> {
        let (manifest, major) = (&source.manifest, me.major());
        let wanted = major.max(manifest.made_by());
        let pg_restore = Program::find("pg_restore", &profile.database.pg_restore, Some(wanted));
        pg_restore::check_versions(&pg_restore, &me.server_version, major, manifest)?;
        let farm = source.farm()?;
        let contents = pg_restore::readable(&pg_restore, farm.path(), &source.dir, manifest)?;
        Ok(Readable { pg_restore, farm, contents })
    }
}

/// A dump goes forward to a newer server; back, it may say what that does not know.
pub(crate) fn warn_if_older(me: &Me, manifest: &Manifest, report: &mut Report) {
    if me.major() < manifest.server_version_num / 10_000 {
        let message = format!(
            "the dump is from PostgreSQL {}, the server is {}: it may not understand all of it",
            manifest.server_version, me.server_version
        );
        report.warn("older-server", message);
    }
}

/// What there is to load, and with what.
pub(crate) struct Load<'l> {
    pub(crate) admin: &'l Admin,
    pub(crate) me: &'l Me,
    /// Where else the server may be reached.
    pub(crate) others: &'l [Server],
    pub(crate) manifest: &'l Manifest,
    pub(crate) facts: &'l Facts,
    pub(crate) readable: &'l Readable,
    pub(crate) jobs: u32,
    pub(crate) stall: Duration,
}

/// A filled database, and the loader's way into it.
pub(crate) struct Filled<'f> {
    load: &'f Load<'f>,
    loader: &'f Loader<'f>,
    name: &'f str,
    pub(crate) psql: Psql,
    server: Server,
    role: Option<&'f str>,
    parts: Parts,
}

impl<'l> Load<'l> {
    /// Makes the empty database `name`, marked with `note`, for `owner`.
    pub(crate) fn create(&self, name: &str, owner: &str, note: &str) -> Result<()> {
        let id = identifier(name);
        let sql = self.manifest.definition.create(name, owner, self.me.server_version_num);
        // A mark that it has from the first moment: between two statements, a run can be killed.
        let sql = match mutant::active("marked-a-moment-later") {
            true => sql,
            false => format!("{sql} CONNECTION LIMIT {UNMARKED}"),
        };
        let mark = format!("COMMENT ON DATABASE {id} IS {}", literal(&format!("{MARK} {note}")));
        let open = format!("ALTER DATABASE {id} CONNECTION LIMIT -1");
        // Whoever makes it gives it away only when it is marked.
        self.admin.run(&[sql, mark, open]).map(|_| ()).map_err(|e| {
            self.admin.drop_database(name).ok();
            let locale = &self.manifest.definition.collate;
            // wrong_object_type: what CREATE DATABASE says of a locale it does not know.
            let e = match sqlstate(&e) {
                Some("42809") => hint(
                    e,
                    format!("the server lacks the locale {locale}: locale-gen {locale}, restart PostgreSQL"),
                ),
                _ => e,
            };
            e.context("cannot make the database anew")
        })
    }

    /// Fills it as `loader`, or as `role`, of which that is a member.
    pub(crate) fn fill(
        &'l self,
        loader: &'l Loader<'l>,
        name: &'l str,
        role: Option<&'l str>,
        report: &mut Report,
    ) -> Result<Filled<'l>> {
        let (psql, server) = loader.login(name, self.others)?;
        let mut parts = self.readable.contents.parts();
        self.choose(&psql, name, &mut parts, report)?;
        let filled = Filled { load: self, loader, name, psql, server, role, parts };
        pg_restore::restore(&filled.job(), &filled.parts.load, false)
            .context("the dump cannot be restored")?;
        // What indexes compute is the dump's, too.
        let analyze = filled.as_role(&["ANALYZE"]);
        filled.psql.run(name, &analyze).context("ANALYZE failed")?;
        Ok(filled)
    }

    /// Takes out the extensions that the loader may not make, and says what is left out.
    fn choose(&self, psql: &Psql, name: &str, parts: &mut Parts, report: &mut Report) -> Result<()> {
        for what in &parts.left_out {
            report.warn(
                "left-out",
                format!("only a superuser can bring this back, and it was left out: {what}"),
            );
        }
        if !self.facts.tablespaces.is_empty() {
            let names = self.facts.tablespaces.join(", ");
            report.warn(
                "no-tablespaces",
                format!("all of it goes to the server's usual place, not to {names}"),
            );
        }
        if parts.extensions.is_empty() {
            return Ok(());
        }
        let names = parts.extensions.iter().map(|(_, n)| literal(n)).collect::<Vec<_>>().join(", ");
        // Trusted ones may be made by a database's owner; since 13.
        let usable: Vec<(String, bool)> = psql.query(
            name,
            &format!(
                "SELECT coalesce(json_agg(DISTINCT jsonb_build_array(v.name, coalesce((to_jsonb(v)->>'trusted')::boolean, false)
                   OR v.installed)), '[]') FROM pg_available_extension_versions v
                 JOIN pg_available_extensions e ON e.name = v.name AND (e.default_version = v.version OR v.installed)
                 WHERE v.name IN ({names})"
            ),
        )?;
        for (id, extension) in &parts.extensions {
            let found: Vec<bool> = usable.iter().filter(|(n, _)| n == extension).map(|(_, ok)| *ok).collect();
            if found.contains(&true) {
                continue;
            }
            let why = if found.is_empty() {
                "the server does not have it: install its package"
            } else {
                "only a superuser may make it: CREATE EXTENSION in the restored database, if it is wanted"
            };
            parts.load.retain(|i| i != id);
            report.warn("extension-left-out", format!("the extension {extension} was left out: {why}"));
        }
        Ok(())
    }
}

impl Filled<'_> {
    fn job(&self) -> pg_restore::Job<'_> {
        pg_restore::Job {
            program: &self.load.readable.pg_restore,
            server: &self.server,
            database: self.name,
            dir: self.load.readable.farm.path(),
            jobs: self.load.jobs,
            role: self.role,
            stall: self.load.stall,
            psql: &self.psql,
        }
    }

    fn as_role(&self, statements: &[&str]) -> Vec<String> {
        let set = self.role.map(|r| format!("SET ROLE {}", identifier(r)));
        set.into_iter().chain(statements.iter().map(|s| (*s).to_owned())).collect()
    }

    /// Gives it all to `owner`, as whom it was loaded or who takes it over.
    pub(crate) fn hand_over(&self, owner: &str) -> Result<()> {
        self.loader
            .hands_over(self.name, owner)
            .with_context(|| format!("cannot give the database to {owner}"))
    }

    /// Grants and settings; what cannot be done again is said. `whole`: as it will be used, with what concerns roles.
    pub(crate) fn dress(&self, whole: bool, report: &mut Report) -> Result<()> {
        let facts = self.load.facts;
        let failed = pg_restore::restore(&self.job(), &self.parts.grants, true)
            .context("the rights to what was restored cannot be granted")?;
        if let Some(first) = failed.first() {
            report.warn(
                "grants-left-out",
                format!("{} grants could not be made again, the first: {first}", failed.len()),
            );
        }
        for setting in &facts.settings {
            let Some(sql) = setting.alter(Some(self.name)) else {
                report.warn("setting-left-out", format!("the setting {} cannot be read", setting.setting));
                continue;
            };
            match &setting.role {
                None => self.attempt(&self.as_role(&[&sql]), setting.name(), report),
                Some(role) if whole => self.as_member(role, &sql, setting.name(), report),
                Some(_) => {}
            }
        }
        let on_itself = self.grants_on_itself();
        if !whole || on_itself.is_empty() {
            return Ok(());
        }
        let mut statements = self.as_role(&[]);
        statements.extend(on_itself);
        if let Err(e) = self.psql.run(self.name, &statements) {
            report.warn(
                "grants-left-out",
                format!("the grants on the database itself could not be made again: {e:#}"),
            );
        }
        Ok(())
    }

    /// What makes the rights to the database itself what they were; for who owns it. Another owner needs them once more:
    /// PostgreSQL gives him what the one before had, also what had been granted to that one.
    pub(crate) fn grants_on_itself(&self) -> Vec<String> {
        let Some(grants) = &self.load.facts.grants else { return Vec::new() };
        let revoke = format!("REVOKE ALL ON DATABASE {} FROM PUBLIC", identifier(self.name));
        std::iter::once(revoke).chain(grants.iter().filter_map(|g| g.grant(self.name))).collect()
    }

    /// Sets for `role` what it could set for itself: so nothing is set with more rights than it has.
    pub(crate) fn as_member(&self, role: &str, sql: &str, name: &str, report: &mut Report) {
        let harmless = loader::known(self.load.admin, &[role]);
        if !matches!(&harmless, Ok(known) if known.iter().all(|(_, harmless)| *harmless) && !known.is_empty())
        {
            report.warn(
                "setting-left-out",
                format!("the setting {name} of {role} was left out: that role is not there, or may do more than others"),
            );
            return;
        }
        if let Err(e) = self.loader.joins(role) {
            report.warn("setting-left-out", format!("the setting {name} of {role} was left out: {e:#}"));
            return;
        }
        self.attempt(&[format!("SET ROLE {}", identifier(role)), sql.to_owned()], name, report);
    }

    fn attempt(&self, statements: &[String], name: &str, report: &mut Report) {
        if let Err(e) = self.psql.run(self.name, statements) {
            report.warn("setting-left-out", format!("the setting {name} could not be made again: {e:#}"));
        }
    }
}

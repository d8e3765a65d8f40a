//! pg_restore: the table of contents of a dump, and its way back into a database.

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result};
use common::complaint::tail;
use common::fault::{Failure, Fault, Kind};

use crate::connect::Server;
use crate::manifest::Manifest;
use crate::programs::Program;
use crate::psql::Psql;
use crate::stall;

/// What only a superuser can make, or what an ordinary role can make only of such.
const ONLY_SUPERUSERS: [&str; 17] = [
    "EVENT TRIGGER ",
    "PUBLICATION ",
    "PUBLICATION TABLE ",
    "PUBLICATION TABLES IN SCHEMA ",
    "SUBSCRIPTION ",
    "SUBSCRIPTION TABLE ",
    "SECURITY LABEL ",
    "PROCEDURAL LANGUAGE ",
    "ACCESS METHOD ",
    "FOREIGN DATA WRAPPER ",
    "SERVER ",
    "USER MAPPING ",
    "FOREIGN TABLE ",
    "OPERATOR CLASS ",
    "OPERATOR FAMILY ",
    "TEXT SEARCH PARSER ",
    "TEXT SEARCH TEMPLATE ",
];

/// One thing that a dump holds. What it is stands first in `what`; names follow, which may hold anything.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    id: u32,
    catalog: u32,
    oid: u32,
    what: String,
}

/// The table of contents of a dump.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Contents(Vec<Entry>);

/// Whose work the parts of a dump are.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Parts {
    /// In the order of the dump.
    pub(crate) load: Vec<u32>,
    /// Rights to what was loaded.
    pub(crate) grants: Vec<u32>,
    /// The extensions among these, by number and name: an ordinary role may make only some.
    pub(crate) extensions: Vec<(u32, String)>,
    /// What only a superuser could bring back, in words.
    pub(crate) left_out: Vec<String>,
}

/// Reads the table of contents of the files in `dir`. Fails if it cannot be read.
pub(crate) fn contents(program: &Program, dir: &Path) -> Result<Contents> {
    let cmd = program.cmd()?.arg("--list").arg(dir).timeout(Duration::from_secs(600));
    let output = cmd.checked()?;
    Ok(parse_list(&String::from_utf8_lossy(&output.stdout)))
}

/// The same for a restore, where the dump may be of another version than the programs here.
pub(crate) fn readable(program: &Program, dir: &Path, of: &Path, manifest: &Manifest) -> Result<Contents> {
    contents(program, dir).map_err(|e| match program.version() {
        Ok((version, major)) if major < manifest.made_by() => Fault::config(format!(
            "the dump was made by pg_dump {}, and pg_restore here is {version}: it cannot read what a newer one wrote",
            manifest.client_version
        ))
        .hint(format!("install postgresql-client-{} or newer, and restore into a server of that version", manifest.made_by()))
        .into(),
        _ => crate::manifest::damaged(of, &e),
    })
}

/// Refuses a pair of program and server that is known to fail, however good the dump is.
pub(crate) fn check_versions(program: &Program, server: &str, major: u32, manifest: &Manifest) -> Result<()> {
    /// The first pg_restore that sets transaction_timeout, which older servers do not know.
    const SETS_TRANSACTION_TIMEOUT: u32 = 17;
    program.version_for(server, major)?;
    let (version, restorer) = program.version()?;
    if restorer >= SETS_TRANSACTION_TIMEOUT && major < SETS_TRANSACTION_TIMEOUT {
        let because = match manifest.made_by() >= SETS_TRANSACTION_TIMEOUT {
            true => format!("the dump was made by pg_dump {} and needs one as new", manifest.client_version),
            false => "an older one could do it".to_owned(),
        };
        return Err(Fault::config(format!(
            "pg_restore {version} cannot restore into PostgreSQL {server}, which does not know transaction_timeout; {because}"
        ))
        .hint(match manifest.made_by() >= SETS_TRANSACTION_TIMEOUT {
            true => format!("restore into a server of version {} or newer", manifest.made_by()),
            false => format!("install postgresql-client-{major}, or name it: pg_restore in [database]"),
        })
        .into());
    }
    Ok(())
}

/// `3345; 0 16386 TABLE DATA public oc_accounts oc_admin`: names can hold blanks, numbers cannot.
fn parse_list(text: &str) -> Contents {
    let lines = text.lines().filter(|l| !l.starts_with(';'));
    let entries = lines.filter_map(|line| {
        let (id, rest) = line.split_once("; ")?;
        let mut words = rest.splitn(3, ' ');
        let (catalog, oid, what) = (words.next()?, words.next()?, words.next()?);
        Some(Entry {
            id: id.parse().ok()?,
            catalog: catalog.parse().ok()?,
            oid: oid.parse().ok()?,
            what: what.into(),
        })
    });
    Contents(entries.collect())
}

impl Contents {
    /// The data of tables: dump id to the table's OID.
    pub(crate) fn table_data(&self) -> HashMap<u32, u32> {
        // A table in a schema named DATA has a catalog; data has none.
        let data = self.0.iter().filter(|e| e.catalog == 0 && e.what.starts_with("TABLE DATA "));
        data.map(|e| (e.id, e.oid)).collect()
    }

    /// Who owns something, and how much of it are tables, the most first. A name stands last in its line: it is known by
    /// being one of `roles`.
    pub(crate) fn owners<'r>(&self, roles: impl Iterator<Item = &'r str> + Clone) -> Vec<(&'r str, usize)> {
        let mut found: Vec<(&str, usize)> = Vec::new();
        for entry in self.0.iter().filter(|e| e.has_owner()) {
            // As pg_restore writes it: on one line.
            let ends = |role: &&str| {
                let name: String =
                    role.chars().map(|c| if c == '\n' || c == '\r' { ' ' } else { c }).collect();
                entry.what.strip_suffix(&*name).is_some_and(|rest| rest.ends_with(' '))
            };
            let Some(owner) = roles.clone().filter(ends).max_by_key(|r| r.len()) else { continue };
            let table = usize::from(entry.catalog == 1259 && entry.what.starts_with("TABLE "));
            match found.iter_mut().find(|(role, _)| *role == owner) {
                Some((_, tables)) => *tables += table,
                None => found.push((owner, table)),
            }
        }
        found.sort_by_key(|(_, tables)| std::cmp::Reverse(*tables));
        found
    }

    /// Who does what.
    pub(crate) fn parts(&self) -> Parts {
        let mut parts = Parts::default();
        for entry in &self.0 {
            let what = entry.what.as_str();
            let object = what.strip_prefix("COMMENT - ").unwrap_or(what);
            if what.starts_with("ACL ") || what.starts_with("DEFAULT ACL ") {
                parts.grants.push(entry.id);
            } else if let Some(name) = what.strip_prefix("EXTENSION - ") {
                parts.extensions.push((entry.id, name.trim_end().to_owned()));
                parts.load.push(entry.id);
            } else if what.starts_with("COMMENT - EXTENSION ") || what.starts_with("COMMENT - SCHEMA public ")
            {
                // Both are there with their own comments, and are not the loader's.
            } else if ONLY_SUPERUSERS.iter().any(|p| object.starts_with(p)) {
                if object == what {
                    parts.left_out.push(what.trim_end().to_owned());
                }
            } else {
                parts.load.push(entry.id);
            }
        }
        parts
    }
}

impl Entry {
    /// Whether it is something whose owner means anything.
    fn has_owner(&self) -> bool {
        let none = ["ACL ", "DEFAULT ACL ", "COMMENT ", "EXTENSION ", "SCHEMA - public ", "SECURITY LABEL "];
        !none.iter().any(|n| self.what.starts_with(n))
            && !ONLY_SUPERUSERS.iter().any(|n| self.what.starts_with(n))
    }
}

/// What is to be restored.
#[derive(Debug)]
pub(crate) struct Job<'j> {
    pub(crate) program: &'j Program,
    pub(crate) server: &'j Server,
    pub(crate) database: &'j str,
    /// pg_dump's files under their own names; the list of entries is put beside them.
    pub(crate) dir: &'j Path,
    pub(crate) jobs: u32,
    /// Take the place of this role, of which the one that connects is a member.
    pub(crate) role: Option<&'j str>,
    pub(crate) stall: Duration,
    /// Sees how far it has come.
    pub(crate) psql: &'j Psql,
}

/// All that shows that a restore moves: space, what each session does, how far an index is.
const MOVEMENT: &str = "SELECT pg_database_size(current_database()) || coalesce((SELECT string_agg(concat_ws('/', pid, state, \
    query_start, state_change, wait_event, md5(query)), ' ' ORDER BY pid) FROM pg_stat_activity WHERE datname = current_database() \
    AND pid <> pg_backend_pid()), '') || coalesce((SELECT string_agg(p::text, ' ') FROM pg_stat_progress_create_index p), '')";

/// Restores the entries `ids`, whose owner will be who connects (or `role`). Stops at the first error unless `tolerant`;
/// then what failed is given back, the first reason first.
pub(crate) fn restore(job: &Job<'_>, ids: &[u32], tolerant: bool) -> Result<Vec<String>> {
    if ids.is_empty() {
        return Ok(Vec::new());
    }
    let list = job.dir.join("entries.list");
    // Numbers alone: names would be comments.
    let text: String = ids.iter().map(|id| format!("{id};\n")).collect();
    std::fs::write(&list, text).with_context(|| format!("cannot write {}", list.display()))?;
    let passfile = job.server.passfile()?;
    let cmd = job
        .program
        .cmd()?
        .args(["--no-password", "--no-owner", "--no-tablespaces", "--no-security-labels"])
        .args((!tolerant).then_some("--exit-on-error"))
        .args(job.role.map(|r| format!("--role={r}")))
        .arg(format!("--jobs={}", if tolerant { 1 } else { job.jobs }))
        .arg("--use-list")
        .arg(&list)
        .arg("--dbname")
        .arg(job.psql.plain_conninfo(job.database))
        .arg(job.dir);
    let cmd = passfile.lend(cmd);
    let moved = || stall::digest(job.psql.glance(job.database, MOVEMENT));
    let output = stall::run(&cmd, job.stall, "nothing of the restore has moved", moved)?;
    if output.status.success() {
        return Ok(Vec::new());
    }
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    // A count in pg_restore's own words, which are English.
    if tolerant && said.contains("errors ignored on restore") {
        let reasons = said.lines().filter_map(|l| l.strip_prefix("pg_restore: error: "));
        return Ok(reasons.map(str::to_owned).collect());
    }
    let mut failure = cmd.failure(&output);
    explain(&mut failure, &said, job.dir);
    Err(failure.into())
}

/// The first reason, and what to do about it.
fn explain(failure: &mut Failure, said: &str, dir: &Path) {
    // What comes after the first error, and above all the last line, is what it brought about.
    let first = said.find("pg_restore: error:").or_else(|| said.find("pg_restore: "));
    let from = &said[first.unwrap_or(0)..];
    let end = from[1.min(from.len())..].find("\npg_restore: ").map_or(from.len(), |n| n + 1);
    failure.stderr_tail = tail(&from.as_bytes()[..end]);
    if said.contains("No such file or directory") && !dir.join("toc.dat").exists() {
        failure.hint = Some("the dump went away while it was restored".into());
    } else if said.contains("No space left on device") {
        failure.hint = Some("the server's disk is full".into());
    } else if failure.kind == Kind::Failed {
        failure.hint = Some(
            "a dump is loaded by a role that may do nothing but that: what only an administrator can make (a function in C, \
             what needs an extension that was left out) stops it"
                .into(),
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str = ";\n; Archive created at 2026-11-22\n;\n\
        3345; 0 16386 TABLE DATA public oc_accounts oc_admin\n\
        215; 1259 16385 TABLE public TABLE DATA oc_admin\n\
        216; 1259 16387 TABLE DATA in a schema of that name oc_admin\n\
        3346; 0 16390 TABLE DATA public with blanks; and more oc admin\n\
        3360; 0 0 SEQUENCE SET public s oc_admin\n\
        2; 3079 16399 EXTENSION - pg_stat_statements \n\
        3370; 0 0 COMMENT - EXTENSION pg_stat_statements \n\
        3371; 0 0 ACL public TABLE x oc_admin\n\
        3372; 3466 16400 EVENT TRIGGER - EXTENSION postgres\n\
        3373; 0 0 COMMENT - EVENT TRIGGER x postgres\n\
        217; 1259 16391 TABLE public EVENT TRIGGER oc admin\n";

    #[test]
    fn only_table_data_counts_whatever_the_names() {
        assert_eq!(parse_list(LIST).table_data(), HashMap::from([(3345, 16386), (3346, 16390)]));
    }

    #[test]
    fn each_entry_has_its_part_by_what_it_is_and_not_by_its_name() {
        let parts = parse_list(LIST).parts();
        assert_eq!(parts.load, [3345, 215, 216, 3346, 3360, 2, 217]);
        assert_eq!(
            (parts.grants, parts.extensions),
            (vec![3371], vec![(2, "pg_stat_statements".to_owned())])
        );
        assert_eq!(parts.left_out, ["EVENT TRIGGER - EXTENSION postgres"]);
    }

    #[test]
    fn owners_may_have_blanks_in_their_names() {
        let owners = parse_list(LIST).owners(["admin", "oc admin", "oc_admin", "other"].into_iter());
        assert_eq!(owners, [("oc_admin", 2), ("oc admin", 1)]);
    }
}

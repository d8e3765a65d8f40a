//! What we may do on the server, and what is there already, before a restore changes anything.

use anyhow::{Context as _, Result};
use common::fault::Fault;
use serde::Deserialize;

use crate::admin::{Admin, MARK, UNMARKED, is_ours};
use crate::loader::Me;
use crate::manifest::Manifest;
use crate::psql::{identifier, literal};
use crate::swap::{NEW, OLD, temporary};

/// What the server says about us and the database in question.
#[derive(Debug, Deserialize)]
pub(crate) struct Standing {
    #[serde(flatten)]
    pub(crate) me: Me,
    pub(crate) exists: bool,
    /// Databases of our temporary names: name and comment.
    leftovers: Vec<(String, Option<String>)>,
    pub(crate) missing_roles: Vec<String>,
    may_own: Option<bool>,
}

impl Standing {
    /// Asks about the database `name`, for the dump of `manifest`.
    pub(crate) fn read(admin: &Admin, name: &str, manifest: &Manifest) -> Result<Standing> {
        let names = |list: &[String]| list.iter().map(|n| literal(n)).collect::<Vec<_>>().join(", ");
        let temporary = names(&[temporary(name, NEW), temporary(name, OLD)]);
        let mut needed = manifest.roles.clone();
        needed.push(manifest.definition.owner.clone());
        let needed = needed.iter().map(|n| format!("({})", literal(n))).collect::<Vec<_>>().join(", ");
        let (owner, name) = (literal(&manifest.definition.owner), literal(name));
        let mark = literal(MARK);
        admin.query(
            &format!(
                "SELECT json_build_object({},
                   'exists', EXISTS (SELECT FROM pg_database WHERE datname = {name}),
                   'leftovers', (SELECT coalesce(json_agg(json_build_array(datname,
                       CASE datconnlimit WHEN {UNMARKED} THEN {mark} ELSE shobj_description(oid, 'pg_database') END)), '[]')
                     FROM pg_database WHERE datname IN ({temporary})),
                   'missing_roles', (SELECT coalesce(json_agg(DISTINCT n.name), '[]') FROM (VALUES {needed}) n (name)
                     WHERE NOT EXISTS (SELECT FROM pg_roles r WHERE r.rolname = n.name)),
                   'may_own', (SELECT pg_has_role(current_user, o.oid, 'MEMBER') FROM pg_roles o WHERE o.rolname = {owner}))
                 FROM pg_roles r WHERE r.rolname = current_user",
                Me::members()
            ),
        )
    }

    /// Refuses what cannot or must not be done, before anything is changed.
    pub(crate) fn judge(&self, admin: &Admin, name: &str, replace: bool, manifest: &Manifest) -> Result<()> {
        let me = &self.me;
        if name == admin.home {
            return Err(Fault::config(format!("{name} cannot be made anew from within itself"))
                .hint("name another --admin-database")
                .into());
        }
        if self.exists && !replace {
            return Err(Fault::failed(format!("the database {name} exists"))
                .hint(
                    "--yes replaces it (the old one is kept until the new one is complete), or name another",
                )
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
        if self.may_own == Some(false) {
            let owner = &manifest.definition.owner;
            return Err(Fault::denied(format!("the role {} cannot make a database for {owner}", me.me))
                .hint("use --admin-user postgres, or the owner itself")
                .into());
        }
        if let Some((name, _)) = self.leftovers.iter().find(|(_, comment)| !is_ours(comment.as_deref())) {
            return Err(in_the_way(name).into());
        }
        if !self.missing_roles.is_empty() && !me.superuser && !me.createrole {
            return Err(Fault::denied(format!(
                "the role {} may not make the roles {}",
                me.me,
                self.missing_roles.join(", ")
            ))
            .hint("connect as an administrator, who can: --admin-user")
            .into());
        }
        me.judge()
    }

    /// Drops what a killed restore left, if it is marked as ours.
    pub(crate) fn clear(&self, admin: &Admin) -> Result<()> {
        for (name, comment) in &self.leftovers {
            if !is_ours(comment.as_deref()) {
                return Err(in_the_way(name).into());
            }
            admin.drop_database(name).with_context(|| format!("cannot drop the leftover {name}"))?;
            common::say!("pg-snap", "dropped {name}, which an earlier restore left");
        }
        Ok(())
    }
}

fn in_the_way(name: &str) -> Fault {
    Fault::failed(format!("the database {name} is in the way, and is not ours"))
        .hint("rename it, or drop it if nobody needs it")
}

//! What the server says about a database: what is needed to make it anew elsewhere.
//!
//! pg_dump's files hold neither the database's own settings nor any role. They are asked for here, with the
//! rights of any role, and kept as what they are ([`Facts`]).

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use crate::facts::Facts;
use crate::psql::{Psql, identifier, literal};

/// A database, as the server describes it.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Catalog {
    pub(crate) server_version: String,
    pub(crate) server_version_num: u32,
    pub(crate) database_size_bytes: u64,
    pub(crate) definition: Definition,
    pub(crate) tables: Vec<Table>,
    #[serde(flatten)]
    pub(crate) facts: Facts,
    may_read_passwords: bool,
}

/// What `CREATE DATABASE` must be told.
#[derive(Clone, Debug, Deserialize, Serialize, PartialEq, Eq)]
pub(crate) struct Definition {
    pub(crate) owner: String,
    pub(crate) encoding: String,
    pub(crate) collate: String,
    pub(crate) ctype: String,
    /// `c` libc, `i` ICU, `b` built in; null before PostgreSQL 15.
    pub(crate) locale_provider: Option<String>,
    /// Locale of ICU or of the built-in provider.
    pub(crate) locale: Option<String>,
    pub(crate) icu_rules: Option<String>,
}

/// A table that has data of its own.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Table {
    pub(crate) oid: u32,
    pub(crate) schema: String,
    pub(crate) name: String,
}

/// One query, one JSON object. Columns that not every version has are read through `to_jsonb`.
const QUERY: &str = r"
WITH db AS (SELECT d.*, d.oid AS id, to_jsonb(d) AS j FROM pg_database d WHERE datname = current_database()),
used AS (
  SELECT refobjid AS id FROM pg_shdepend, db WHERE refclassid = 'pg_authid'::regclass
    AND (dbid = db.id OR (dbid = 0 AND classid = 'pg_database'::regclass AND objid = db.id))
  UNION SELECT datdba FROM db
  UNION SELECT setrole FROM pg_db_role_setting, db WHERE setdatabase = db.id AND setrole <> 0),
me AS (SELECT oid AS id FROM pg_roles WHERE rolname = session_user AND NOT rolsuper),
-- And whoever connects without owning anything: as a member of the owner, with whatever lies between.
near AS (
  SELECT id FROM used
  UNION SELECT id FROM me
  UNION SELECT r.oid FROM pg_roles r, me WHERE pg_has_role(me.id, r.oid, 'MEMBER') AND NOT r.rolsuper),
role AS (SELECT r.* FROM pg_roles r JOIN near ON r.oid = near.id WHERE r.rolname !~ '^pg_')
SELECT json_build_object(
  'server_version', split_part(current_setting('server_version'), ' ', 1),
  'server_version_num', current_setting('server_version_num')::int,
  'database_size_bytes', pg_database_size(db.id),
  'definition', json_build_object(
    'owner', pg_get_userbyid(db.datdba), 'encoding', pg_encoding_to_char(db.encoding),
    'collate', db.datcollate, 'ctype', db.datctype, 'locale_provider', j->>'datlocprovider',
    'locale', coalesce(j->>'datlocale', j->>'daticulocale'), 'icu_rules', j->>'daticurules'),
  'tables', (SELECT coalesce(json_agg(json_build_object('oid', c.oid::int8, 'schema', n.nspname, 'name', c.relname)
      ORDER BY c.oid), '[]') FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relkind = 'r' AND c.relpersistence <> 't' AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'),
  'roles', (SELECT coalesce(json_agg(json_build_object('name', rolname, 'login', rolcanlogin, 'inherit', rolinherit,
      'createdb', rolcreatedb, 'connection_limit', rolconnlimit, 'valid_until', rolvaliduntil)
      ORDER BY rolname), '[]') FROM role),
  'memberships', (SELECT coalesce(json_agg(json_build_object('role', a.rolname, 'member', b.rolname)
      ORDER BY a.rolname, b.rolname), '[]') FROM pg_auth_members m JOIN role a ON a.oid = m.roleid JOIN role b ON b.oid = m.member),
  'settings', (SELECT coalesce(json_agg(json_build_object('role', r.rolname, 'setting', s.setting)
      ORDER BY r.rolname, s.setting), '[]') FROM (SELECT setrole, unnest(setconfig) AS setting
      FROM pg_db_role_setting WHERE setdatabase = db.id) s LEFT JOIN pg_roles r ON r.oid = s.setrole),
  'role_settings', (SELECT coalesce(json_agg(json_build_object('role', r.rolname, 'setting', s.setting)
      ORDER BY r.rolname, s.setting), '[]') FROM (SELECT setrole, unnest(setconfig) AS setting
      FROM pg_db_role_setting WHERE setdatabase = 0) s JOIN role r ON r.oid = s.setrole),
  'tablespaces', (SELECT coalesce(json_agg(DISTINCT t.spcname), '[]') FROM pg_tablespace t
    WHERE t.spcname NOT IN ('pg_default', 'pg_global')
      AND (t.oid IN (SELECT reltablespace FROM pg_class) OR t.oid = db.dattablespace)),
  'grants', CASE WHEN db.datacl IS NULL THEN NULL ELSE (SELECT coalesce(json_agg(json_build_object(
      'grantee', g.rolname, 'privilege', a.privilege_type, 'grantable', a.is_grantable)
      ORDER BY g.rolname, a.privilege_type), '[]') FROM aclexplode(db.datacl) a
      LEFT JOIN pg_roles g ON g.oid = a.grantee WHERE a.grantee <> db.datdba) END,
  'may_read_passwords', has_table_privilege('pg_catalog.pg_authid', 'SELECT'))
FROM db;
";

impl Catalog {
    /// Asks the server about `database`.
    pub(crate) fn read(psql: &Psql, database: &str) -> Result<Catalog> {
        let mut catalog: Catalog =
            psql.query(database, QUERY).context("cannot ask the server about the database")?;
        if catalog.may_read_passwords {
            let sql = "SELECT coalesce(json_object_agg(rolname, rolpassword), '{}') FROM pg_authid;";
            let mut hashes: std::collections::HashMap<String, Option<String>> = psql.query(database, sql)?;
            for role in &mut catalog.facts.roles {
                role.password = hashes.remove(&role.name).flatten();
            }
        }
        Ok(catalog)
    }

    /// Major version of the server.
    pub(crate) fn server_major(&self) -> u32 {
        self.server_version_num / 10_000
    }

    /// Whether the facts hold the password hashes.
    pub(crate) fn has_passwords(&self) -> bool {
        self.may_read_passwords
    }
}

impl Definition {
    /// `CREATE DATABASE name` with everything as it was, for a server of version `server` (150018). From 15
    /// on the provider must be said, or template0's counts, which may be another; before, there was one. It belongs to
    /// `owner` for the time being.
    pub(crate) fn create(&self, name: &str, owner: &str, server: u32) -> String {
        let mut sql = format!(
            "CREATE DATABASE {} TEMPLATE template0 OWNER {} ENCODING {} LC_COLLATE {} LC_CTYPE {}",
            identifier(name),
            identifier(owner),
            literal(&self.encoding),
            literal(&self.collate),
            literal(&self.ctype)
        );
        let locale = self.locale.as_deref().map(literal);
        match (self.locale_provider.as_deref(), locale) {
            (Some("i"), Some(locale)) => {
                sql.push_str(&format!(" LOCALE_PROVIDER icu ICU_LOCALE {locale}"));
                if let Some(rules) = &self.icu_rules {
                    sql.push_str(&format!(" ICU_RULES {}", literal(rules)));
                }
            }
            (Some("b"), Some(locale)) => {
                sql.push_str(&format!(" LOCALE_PROVIDER builtin BUILTIN_LOCALE {locale}"));
            }
            _ if server >= 150_000 => sql.push_str(" LOCALE_PROVIDER libc"),
            _ => {}
        }
        sql
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn definition() -> Definition {
        serde_json::from_value(
            serde_json::json!({"owner": "oc", "encoding": "UTF8", "collate": "C", "ctype": "C",
            "locale_provider": "c", "locale": null, "icu_rules": null}),
        )
        .unwrap()
    }

    #[test]
    fn the_locale_provider_is_kept() {
        let mut definition = definition();
        assert!(definition.create("x", "oc", 150_018).ends_with("LC_CTYPE 'C' LOCALE_PROVIDER libc"));
        definition.locale_provider = Some("i".into());
        definition.locale = Some("de".into());
        assert!(definition.create("x", "oc", 150_018).ends_with("LOCALE_PROVIDER icu ICU_LOCALE 'de'"));
        definition.locale_provider = None;
        assert!(definition.create("x", "oc", 150_018).ends_with("LOCALE_PROVIDER libc"));
        assert!(definition.create("x", "oc", 140_000).ends_with("LC_CTYPE 'C'"));
    }
}

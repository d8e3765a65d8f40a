//! What the server says about a database: what is needed to make it anew elsewhere.
//!
//! A dump holds neither the database's own settings nor any role. They are asked for here, with the
//! rights of any role, and written as `roles.sql` and `settings.sql`, for psql.

use std::fmt::Write as _;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};

use crate::psql::{Psql, identifier, literal};

/// A database, as the server describes it.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Catalog {
    pub(crate) server_version: String,
    pub(crate) server_version_num: u32,
    pub(crate) database_size_bytes: u64,
    pub(crate) definition: Definition,
    pub(crate) tables: Vec<Table>,
    pub(crate) roles: Vec<Role>,
    memberships: Vec<Membership>,
    settings: Vec<Setting>,
    grants: Option<Vec<Grant>>,
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

/// A role that owns something or holds a grant in the database.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct Role {
    pub(crate) name: String,
    login: bool,
    inherit: bool,
    createdb: bool,
    connection_limit: i64,
    valid_until: Option<String>,
    #[serde(skip)]
    password: Option<String>,
}

#[derive(Clone, Debug, Deserialize)]
struct Membership {
    role: String,
    member: String,
}

#[derive(Clone, Debug, Deserialize)]
struct Setting {
    role: Option<String>,
    setting: String,
}

#[derive(Clone, Debug, Deserialize)]
struct Grant {
    grantee: Option<String>,
    privilege: String,
    grantable: bool,
}

/// One query, one JSON object. Columns that not every version has are read through `to_jsonb`.
const QUERY: &str = r"
WITH db AS (SELECT d.*, d.oid AS id, to_jsonb(d) AS j FROM pg_database d WHERE datname = current_database()),
used AS (
  SELECT refobjid AS id FROM pg_shdepend, db WHERE refclassid = 'pg_authid'::regclass
    AND (dbid = db.id OR (dbid = 0 AND classid = 'pg_database'::regclass AND objid = db.id))
  UNION SELECT datdba FROM db
  UNION SELECT setrole FROM pg_db_role_setting, db WHERE setdatabase = db.id AND setrole <> 0),
role AS (SELECT r.* FROM pg_roles r JOIN used ON r.oid = used.id WHERE r.rolname !~ '^pg_')
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
            for role in &mut catalog.roles {
                role.password = hashes.remove(&role.name).flatten();
            }
        }
        Ok(catalog)
    }

    /// Major version of the server.
    pub(crate) fn server_major(&self) -> u32 {
        self.server_version_num / 10_000
    }

    /// Whether `roles.sql` holds the password hashes.
    pub(crate) fn has_passwords(&self) -> bool {
        self.may_read_passwords
    }

    /// `roles.sql`: makes the roles that are missing. Without the rights of a superuser, whoever has them.
    pub(crate) fn roles_sql(&self) -> String {
        let mut out = String::from(
            "-- Roles that own or hold grants in the database. For psql; makes only what is missing,\n\
             -- and nobody a superuser.\n",
        );
        if !self.may_read_passwords {
            out.push_str("-- Without passwords: the role that made the dump may not read them.\n");
        }
        for role in &self.roles {
            let sql = role.create();
            let name = literal(&role.name);
            // Writing into a String cannot fail.
            writeln!(
                out,
                "SELECT {} WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = {name})\n\\gexec",
                literal(&sql)
            )
            .ok();
        }
        for Membership { role, member } in &self.memberships {
            let sql = format!("GRANT {} TO {}", identifier(role), identifier(member));
            writeln!(
                out,
                "SELECT {} WHERE NOT EXISTS (SELECT FROM pg_auth_members m JOIN pg_roles a ON a.oid = m.roleid\n\
                 \u{20}   JOIN pg_roles b ON b.oid = m.member WHERE a.rolname = {} AND b.rolname = {})\n\\gexec",
                literal(&sql),
                literal(role),
                literal(member)
            )
            .ok();
        }
        out
    }

    /// `settings.sql`: what was set and granted on the database itself; `:"db"` stands for its name.
    pub(crate) fn settings_sql(&self) -> String {
        let mut out =
            String::from("-- Settings of and grants on the database itself. For psql -v db=NAME.\n");
        for Setting { role, setting } in &self.settings {
            let Some((name, value)) = setting.split_once('=') else { continue };
            let whose = role.as_ref().map(|r| format!("ROLE {} IN ", identifier(r))).unwrap_or_default();
            // These hold lists that are quoted already; quoted again they would be one name.
            let is_list = matches!(
                name,
                "search_path" | "temp_tablespaces" | "local_preload_libraries" | "session_preload_libraries"
            );
            let value = if is_list && !value.is_empty() { value.to_owned() } else { literal(value) };
            let name = name.split('.').map(identifier).collect::<Vec<_>>().join(".");
            writeln!(out, "ALTER {whose}DATABASE :\"db\" SET {name} TO {value};").ok();
        }
        if let Some(grants) = &self.grants {
            out.push_str("REVOKE ALL ON DATABASE :\"db\" FROM PUBLIC;\n");
            for Grant { grantee, privilege, grantable } in grants {
                let who = grantee.as_deref().map_or("PUBLIC".to_owned(), identifier);
                let option = if *grantable { " WITH GRANT OPTION" } else { "" };
                writeln!(out, "GRANT {privilege} ON DATABASE :\"db\" TO {who}{option};").ok();
            }
        }
        out
    }
}

impl Role {
    fn create(&self) -> String {
        let word = |on: bool, word: &str| if on { word.to_owned() } else { format!("NO{word}") };
        let mut sql = format!(
            "CREATE ROLE {} NOSUPERUSER {} {} {}",
            identifier(&self.name),
            word(self.login, "LOGIN"),
            word(self.inherit, "INHERIT"),
            word(self.createdb, "CREATEDB"),
        );
        if self.connection_limit >= 0 {
            sql.push_str(&format!(" CONNECTION LIMIT {}", self.connection_limit));
        }
        if let Some(password) = &self.password {
            sql.push_str(&format!(" PASSWORD {}", literal(password)));
        }
        if let Some(until) = &self.valid_until {
            sql.push_str(&format!(" VALID UNTIL {}", literal(until)));
        }
        sql
    }
}

impl Definition {
    /// `CREATE DATABASE name` with everything as it was, for a server of version `server` (150018). From 15
    /// on the provider must be said, or template0's counts, which may be another; before, there was one.
    pub(crate) fn create(&self, name: &str, server: u32) -> String {
        let mut sql = format!(
            "CREATE DATABASE {} TEMPLATE template0 OWNER {} ENCODING {} LC_COLLATE {} LC_CTYPE {}",
            identifier(name),
            identifier(&self.owner),
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
        sql.push(';');
        sql
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn catalog() -> Catalog {
        serde_json::from_value(serde_json::json!({
            "server_version": "15.18", "server_version_num": 150018, "database_size_bytes": 1,
            "definition": {"owner": "oc", "encoding": "UTF8", "collate": "C", "ctype": "C",
                "locale_provider": "c", "locale": null, "icu_rules": null},
            "tables": [], "may_read_passwords": false,
            "roles": [{"name": "o'c", "login": true, "inherit": true, "createdb": false,
                "connection_limit": -1, "valid_until": null}],
            "memberships": [],
            "settings": [{"role": null, "setting": "search_path=\"$user\", public"},
                {"role": "oc", "setting": "my.word=it's"}],
            "grants": [{"grantee": null, "privilege": "TEMPORARY", "grantable": false}],
        }))
        .unwrap()
    }

    #[test]
    fn roles_are_made_only_if_missing_and_never_superusers() {
        let sql = catalog().roles_sql();
        assert!(sql.contains(r#"'CREATE ROLE "o''c" NOSUPERUSER LOGIN INHERIT NOCREATEDB'"#), "{sql}");
        assert!(sql.contains("rolname = 'o''c'") && sql.contains("\\gexec"), "{sql}");
    }

    #[test]
    fn settings_keep_lists_as_lists_and_name_no_database() {
        let sql = catalog().settings_sql();
        assert!(sql.contains("ALTER DATABASE :\"db\" SET \"search_path\" TO \"$user\", public;"), "{sql}");
        assert!(
            sql.contains("ALTER ROLE \"oc\" IN DATABASE :\"db\" SET \"my\".\"word\" TO 'it''s';"),
            "{sql}"
        );
        assert!(sql.contains("GRANT TEMPORARY ON DATABASE :\"db\" TO PUBLIC;"), "{sql}");
    }

    #[test]
    fn the_locale_provider_is_kept() {
        let mut definition = catalog().definition;
        assert!(definition.create("x", 150_018).ends_with("LC_CTYPE 'C' LOCALE_PROVIDER libc;"));
        definition.locale_provider = Some("i".into());
        definition.locale = Some("de".into());
        assert!(definition.create("x", 150_018).ends_with("LOCALE_PROVIDER icu ICU_LOCALE 'de';"));
        definition.locale_provider = None;
        assert!(definition.create("x", 150_018).ends_with("LOCALE_PROVIDER libc;"));
        assert!(definition.create("x", 140_000).ends_with("LC_CTYPE 'C';"));
    }
}

//! What belongs to a database and is in no file of pg_dump: roles, settings, grants on the database itself.
//!
//! A dump keeps them as JSON, [`FILE`]. SQL is made of them at restore and nowhere else, quoted as pg_dumpall does,
//! and none of it makes anybody more than an ordinary role.

use common::mutant;
use serde::{Deserialize, Serialize};

use crate::psql::{identifier, literal};

/// Their file in a dump.
pub(crate) const FILE: &str = "facts.json";

/// As the server told them.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
pub(crate) struct Facts {
    /// Roles that own something, hold a grant, or have a setting here, and the one that made the dump.
    pub(crate) roles: Vec<Role>,
    pub(crate) memberships: Vec<Membership>,
    /// `ALTER DATABASE … SET`, `ALTER ROLE … IN DATABASE … SET`.
    pub(crate) settings: Vec<Setting>,
    /// `ALTER ROLE … SET`.
    #[serde(default)]
    pub(crate) role_settings: Vec<Setting>,
    /// Null: as for any database.
    pub(crate) grants: Option<Vec<Grant>>,
    /// Where some of it lies, besides the usual place.
    #[serde(default)]
    pub(crate) tablespaces: Vec<String>,
}

/// A role, without what would make it more than an ordinary one.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq, Serialize)]
pub(crate) struct Role {
    pub(crate) name: String,
    pub(crate) login: bool,
    pub(crate) inherit: bool,
    pub(crate) createdb: bool,
    pub(crate) connection_limit: i64,
    pub(crate) valid_until: Option<String>,
    /// As the server keeps it (a hash), if it could be read.
    #[serde(default)]
    pub(crate) password: Option<String>,
}

/// `member` has what `role` has.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub(crate) struct Membership {
    pub(crate) role: String,
    pub(crate) member: String,
}

/// `NAME=VALUE`, for everybody or for one role.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub(crate) struct Setting {
    pub(crate) role: Option<String>,
    pub(crate) setting: String,
}

/// A right to the database itself; `grantee` null: for everybody.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub(crate) struct Grant {
    pub(crate) grantee: Option<String>,
    pub(crate) privilege: String,
    pub(crate) grantable: bool,
}

impl Facts {
    /// The role of this name.
    pub(crate) fn role(&self, name: &str) -> Option<&Role> {
        self.roles.iter().find(|r| r.name == name)
    }
}

impl Role {
    /// Makes it, with `password` if one is given, else with its own.
    pub(crate) fn create(&self, password: Option<&str>) -> String {
        let word = |on: bool, word: &str| if on { word.to_owned() } else { format!("NO{word}") };
        let mut sql = format!(
            "CREATE ROLE {} NOSUPERUSER NOCREATEROLE NOREPLICATION {} {} {}",
            identifier(&self.name),
            word(self.login, "LOGIN"),
            word(self.inherit, "INHERIT"),
            word(self.createdb, "CREATEDB"),
        );
        if self.connection_limit >= 0 {
            sql.push_str(&format!(" CONNECTION LIMIT {}", self.connection_limit));
        }
        if let Some(password) = password.or(self.password.as_deref()) {
            sql.push_str(&format!(" PASSWORD {}", literal(password)));
        }
        if let Some(until) = &self.valid_until {
            sql.push_str(&format!(" VALID UNTIL {}", literal(until)));
        }
        sql
    }
}

impl Membership {
    /// Makes it so.
    pub(crate) fn grant(&self) -> String {
        format!("GRANT {} TO {}", identifier(&self.role), identifier(&self.member))
    }
}

impl Setting {
    /// Its name.
    pub(crate) fn name(&self) -> &str {
        self.setting.split_once('=').map_or(&*self.setting, |(name, _)| name)
    }

    /// Sets it again, in `database` or (without one) for the role everywhere. `None` if it cannot be read.
    pub(crate) fn alter(&self, database: Option<&str>) -> Option<String> {
        let (name, value) = self.setting.split_once('=')?;
        let whose = match (&self.role, database) {
            (Some(role), Some(database)) => {
                format!("ROLE {} IN DATABASE {}", identifier(role), identifier(database))
            }
            (Some(role), None) => format!("ROLE {}", identifier(role)),
            (None, Some(database)) => format!("DATABASE {}", identifier(database)),
            (None, None) => return None,
        };
        let names = if is_list(name) { list(value)? } else { vec![value.to_owned()] };
        let value = names.iter().map(|n| literal(n)).collect::<Vec<_>>().join(", ");
        let value = if value.is_empty() { literal("") } else { value };
        let name = name.split('.').map(identifier).collect::<Vec<_>>().join(".");
        Some(format!("ALTER {whose} SET {name} TO {value}"))
    }
}

impl Grant {
    /// Grants it again; `None` if it is no right that a database has.
    pub(crate) fn grant(&self, database: &str) -> Option<String> {
        let known = ["CREATE", "CONNECT", "TEMPORARY", "TEMP"];
        if !known.contains(&self.privilege.as_str()) {
            return None;
        }
        let who = self.grantee.as_deref().map_or("PUBLIC".to_owned(), identifier);
        let option = if self.grantable { " WITH GRANT OPTION" } else { "" };
        Some(format!("GRANT {} ON DATABASE {} TO {who}{option}", self.privilege, identifier(database)))
    }
}

/// Whether the server keeps this setting as a list of names that are quoted already (its GUC_LIST_QUOTE; pg_dumpall has
/// the same list). Quoted once more, all of them would be one name.
pub(crate) fn is_list(name: &str) -> bool {
    let lists = [
        "local_preload_libraries",
        "search_path",
        "session_preload_libraries",
        "shared_preload_libraries",
        "temp_tablespaces",
        "unix_socket_directories",
    ];
    lists.iter().any(|n| n.eq_ignore_ascii_case(name)) && !mutant::active("a-list-as-one-name")
}

/// The names in such a list, as the server's SplitGUCList reads it.
pub(crate) fn list(text: &str) -> Option<Vec<String>> {
    let mut names = Vec::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let mut name = String::new();
        if let Some(quoted) = rest.strip_prefix('"') {
            rest = quoted;
            loop {
                let (before, after) = rest.split_once('"')?;
                name.push_str(before);
                match after.strip_prefix('"') {
                    Some(more) => {
                        name.push('"');
                        rest = more;
                    }
                    None => {
                        rest = after;
                        break;
                    }
                }
            }
        } else {
            let end = rest.find(|c: char| c == ',' || c.is_ascii_whitespace()).unwrap_or(rest.len());
            name.push_str(&rest[..end]);
            rest = &rest[end..];
            if name.is_empty() {
                return None;
            }
        }
        names.push(name);
        rest = rest.trim_start();
        match rest.strip_prefix(',') {
            Some(more) => {
                rest = more.trim_start();
                if rest.is_empty() {
                    return None;
                }
            }
            None if rest.is_empty() => {}
            None => return None,
        }
    }
    Some(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_role_is_an_ordinary_one() {
        let role = Role { name: "o'c\"".into(), login: true, connection_limit: -1, ..Role::default() };
        assert_eq!(
            role.create(Some("p'w")),
            r#"CREATE ROLE "o'c""" NOSUPERUSER NOCREATEROLE NOREPLICATION LOGIN NOINHERIT NOCREATEDB PASSWORD 'p''w'"#
        );
    }

    #[test]
    fn a_list_is_quoted_name_by_name_whatever_is_in_it() {
        let setting = |text: &str| Setting { role: None, setting: text.into() };
        for (text, sql) in [
            ("search_path=\"$user\", public", "\"search_path\" TO '$user', 'public'"),
            ("search_path=public;\\!\\id>/tmp/x", r#""search_path" TO E'public;\\!\\id>/tmp/x'"#),
            ("search_path=\"a,\"\"b\" , c", "\"search_path\" TO 'a,\"b', 'c'"),
            ("search_path=", "\"search_path\" TO ''"),
            ("my.word=it's, so", "\"my\".\"word\" TO 'it''s, so'"),
        ] {
            assert_eq!(setting(text).alter(Some("d")), Some(format!("ALTER DATABASE \"d\" SET {sql}")));
        }
        for odd in ["search_path=public; DROP TABLE x", "search_path=\"a", "search_path=a,,b", "search_path"]
        {
            assert_eq!(setting(odd).alter(Some("d")), None, "{odd}");
        }
    }
}

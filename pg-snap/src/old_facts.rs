//! The facts of a dump that was made before `facts.json`: in two scripts, of which every line has one of five forms.
//!
//! They were meant for psql, which would do whatever else stands there. So they are read here instead, strictly: what has
//! another form is refused.

use anyhow::{Result, bail};

use crate::facts::{Facts, Grant, Membership, Role, Setting, is_list};
use crate::psql::literal;

/// Reads `roles.sql` and `settings.sql`.
pub(crate) fn parse(roles: &str, settings: &str) -> Result<Facts> {
    let mut facts = Facts::default();
    let mut text = Text { rest: roles };
    while text.begins() {
        let Some(done) = text.role(&mut facts) else {
            bail!("roles.sql holds what no dump writes: {}", text.shown())
        };
        text = done;
    }
    let mut text = Text { rest: settings };
    while text.begins() {
        let Some(done) = text.setting(&mut facts) else {
            bail!("settings.sql holds what no dump writes: {}", text.shown())
        };
        text = done;
    }
    Ok(facts)
}

/// What is left to be read.
#[derive(Clone, Copy)]
struct Text<'t> {
    rest: &'t str,
}

impl<'t> Text<'t> {
    /// Leaves out comments; whether there is anything more.
    fn begins(&mut self) -> bool {
        loop {
            self.rest = self.rest.trim_start_matches('\n');
            let Some(comment) = self.rest.strip_prefix("-- ") else { break };
            self.rest = comment.split_once('\n').map_or("", |(_, rest)| rest);
        }
        !self.rest.is_empty()
    }

    fn shown(&self) -> String {
        format!("{:.80}", self.rest.lines().next().unwrap_or_default())
    }

    /// After exactly `words`.
    fn word(self, words: &str) -> Option<Text<'t>> {
        Some(Text { rest: self.rest.strip_prefix(words)? })
    }

    fn either(self, on: &str, off: &str) -> Option<(bool, Text<'t>)> {
        match self.word(on) {
            Some(text) => Some((true, text)),
            None => Some((false, self.word(off)?)),
        }
    }

    /// What stands in `quote`s, which are doubled in it.
    fn quoted(self, quote: char) -> Option<(String, Text<'t>)> {
        let mut rest = self.rest.strip_prefix(quote)?;
        let mut out = String::new();
        loop {
            let (before, after) = rest.split_once(quote)?;
            out.push_str(before);
            match after.strip_prefix(quote) {
                Some(more) => {
                    out.push(quote);
                    rest = more;
                }
                None => return Some((out, Text { rest: after })),
            }
        }
    }

    /// As [`literal`] writes it.
    fn literal(self) -> Option<(String, Text<'t>)> {
        let Some(escaped) = self.word("E") else { return self.quoted('\'') };
        let (text, rest) = escaped.quoted('\'')?;
        let plain = text.replace("\\\\", "\\");
        // Only backslashes were ever escaped.
        (literal(&plain) == format!("E'{}'", text.replace('\'', "''"))).then_some((plain, rest))
    }

    fn identifier(self) -> Option<(String, Text<'t>)> {
        self.quoted('"')
    }

    fn number(self) -> Option<(i64, Text<'t>)> {
        let end = self.rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(self.rest.len());
        Some((self.rest[..end].parse().ok()?, Text { rest: &self.rest[end..] }))
    }

    /// `SELECT 'CREATE ROLE …' WHERE NOT EXISTS (…)`, or the same with a GRANT.
    fn role(self, facts: &mut Facts) -> Option<Text<'t>> {
        let (sql, text) = self.word("SELECT ")?.literal()?;
        let inner = Text { rest: &sql };
        if let Some(inner) = inner.word("CREATE ROLE ") {
            let role = inner.create()?;
            let text = text.word(" WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = ")?;
            let (name, text) = text.literal()?;
            let text = text.word(")\n\\gexec\n")?;
            (name == role.name).then_some(())?;
            facts.roles.push(role);
            return Some(text);
        }
        let (role, inner) = inner.word("GRANT ")?.identifier()?;
        let (member, inner) = inner.word(" TO ")?.identifier()?;
        inner.rest.is_empty().then_some(())?;
        let text = text.word(
            " WHERE NOT EXISTS (SELECT FROM pg_auth_members m JOIN pg_roles a ON a.oid = m.roleid\n    \
             JOIN pg_roles b ON b.oid = m.member WHERE a.rolname = ",
        )?;
        let (_, text) = text.literal()?;
        let (_, text) = text.word(" AND b.rolname = ")?.literal()?;
        facts.memberships.push(Membership { role, member });
        text.word(")\n\\gexec\n")
    }

    fn create(self) -> Option<Role> {
        let (name, text) = self.identifier()?;
        let (login, text) = text.word(" NOSUPERUSER ")?.either("LOGIN ", "NOLOGIN ")?;
        let (inherit, text) = text.either("INHERIT ", "NOINHERIT ")?;
        let (createdb, mut text) = text.either("CREATEDB", "NOCREATEDB")?;
        let mut role = Role { name, login, inherit, createdb, connection_limit: -1, ..Role::default() };
        if let Some(more) = text.word(" CONNECTION LIMIT ") {
            (role.connection_limit, text) = more.number()?;
        }
        if let Some(more) = text.word(" PASSWORD ") {
            let (password, rest) = more.literal()?;
            (role.password, text) = (Some(password), rest);
        }
        if let Some(more) = text.word(" VALID UNTIL ") {
            let (until, rest) = more.literal()?;
            (role.valid_until, text) = (Some(until), rest);
        }
        text.rest.is_empty().then_some(role)
    }

    /// `ALTER [ROLE … IN ]DATABASE :"db" SET … TO …;`, `REVOKE ALL …;` or `GRANT …;`
    fn setting(self, facts: &mut Facts) -> Option<Text<'t>> {
        if let Some(text) = self.word("REVOKE ALL ON DATABASE :\"db\" FROM PUBLIC;\n") {
            facts.grants.get_or_insert_default();
            return Some(text);
        }
        if let Some(text) = self.word("GRANT ") {
            let (privilege, _) = text.rest.split_once(' ')?;
            let privilege = privilege.bytes().all(|b| b.is_ascii_uppercase()).then_some(privilege)?;
            let text = text.word(privilege)?.word(" ON DATABASE :\"db\" TO ")?;
            let (grantee, text) = match text.word("PUBLIC") {
                Some(text) => (None, text),
                None => text.identifier().map(|(name, text)| (Some(name), text))?,
            };
            let (grantable, text) = text.either(" WITH GRANT OPTION;\n", ";\n")?;
            let grant = Grant { grantee, privilege: privilege.into(), grantable };
            facts.grants.get_or_insert_default().push(grant);
            return Some(text);
        }
        let mut text = self.word("ALTER ")?;
        let mut role = None;
        if let Some(more) = text.word("ROLE ") {
            let (name, rest) = more.identifier()?;
            (role, text) = (Some(name), rest.word(" IN ")?);
        }
        text = text.word("DATABASE :\"db\" SET ")?;
        let (mut name, mut text) = text.identifier()?;
        while let Some(more) = text.word(".") {
            let (part, rest) = more.identifier()?;
            name = format!("{name}.{part}");
            text = rest;
        }
        text = text.word(" TO ")?;
        let (value, text) = match text.literal() {
            Some((value, rest)) => (value, rest.word(";\n")?),
            // Such a list was written as the server had it, which may be anything, so long as it is one line.
            None => {
                is_list(&name).then_some(())?;
                let (value, rest) = text.rest.split_once(";\n")?;
                (!value.contains('\n')).then_some((value.to_owned(), Text { rest }))?
            }
        };
        facts.settings.push(Setting { role, setting: format!("{name}={value}") });
        Some(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROLES: &str = r#"-- Roles that own or hold grants in the database. For psql; makes only what is missing,
-- and nobody a superuser.
SELECT E'CREATE ROLE "o''c\\n" NOSUPERUSER LOGIN INHERIT NOCREATEDB CONNECTION LIMIT 3 PASSWORD ''SCRAM-SHA-256$4096:a=''' WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = E'o''c\\n')
\gexec
SELECT 'GRANT "a" TO "b"' WHERE NOT EXISTS (SELECT FROM pg_auth_members m JOIN pg_roles a ON a.oid = m.roleid
    JOIN pg_roles b ON b.oid = m.member WHERE a.rolname = 'a' AND b.rolname = 'b')
\gexec
"#;
    const SETTINGS: &str = r#"-- Settings of and grants on the database itself. For psql -v db=NAME.
ALTER DATABASE :"db" SET "search_path" TO "$user", public;
ALTER DATABASE :"db" SET "search_path" TO public;\!\id>/tmp/x;
ALTER ROLE "oc" IN DATABASE :"db" SET "my"."word" TO 'it''s';
REVOKE ALL ON DATABASE :"db" FROM PUBLIC;
GRANT TEMPORARY ON DATABASE :"db" TO PUBLIC;
GRANT CONNECT ON DATABASE :"db" TO "r" WITH GRANT OPTION;
"#;

    #[test]
    fn the_scripts_of_older_dumps_say_the_same() {
        let facts = parse(ROLES, SETTINGS).unwrap();
        let role = &facts.roles[0];
        assert_eq!((role.name.as_str(), role.connection_limit), ("o'c\\n", 3));
        assert_eq!(role.password.as_deref(), Some("SCRAM-SHA-256$4096:a="));
        assert_eq!(facts.memberships[0].member, "b");
        let settings: Vec<_> = facts.settings.iter().map(|s| s.setting.as_str()).collect();
        assert_eq!(
            settings,
            ["search_path=\"$user\", public", r"search_path=public;\!\id>/tmp/x", "my.word=it's"]
        );
        let grants = facts.grants.unwrap();
        assert!(grants[0].grantee.is_none() && grants[1].grantable);
    }

    #[test]
    fn what_no_dump_writes_is_refused() {
        for odd in ["\\! id\n", "SELECT 'DROP ROLE x' WHERE true\n\\gexec\n", "SELECT 1;\n"] {
            assert!(parse(odd, "").is_err(), "{odd}");
        }
        let created = ROLES.replace("NOSUPERUSER", "SUPERUSER");
        assert!(parse(&created, "").is_err());
        for odd in
            ["\\! id\n", "ALTER DATABASE :\"db\" SET \"a\" TO b;\n", "ALTER DATABASE x SET \"a\" TO 'b';\n"]
        {
            assert!(parse("", odd).is_err(), "{odd}");
        }
    }
}

//! psql: SQL in on stdin, text or JSON out; and what a failed connection means.
//!
//! Each session begins with the same [`PROLOGUE`], so that neither what a database brings with it (operators and functions
//! on a search_path) nor what was set for a role or a database takes part in what we ask.

use std::cell::Cell;
use std::time::Duration;

use anyhow::{Context as _, Result};
use common::fault::Kind;
use common::mutant;
use common::run::{Child, Cmd, Failure, Output};
use serde::de::DeserializeOwned;

use crate::connect::Server;
use crate::password::Passfile;
use crate::programs::Program;

/// psql, bound to a server.
#[derive(Debug)]
pub(crate) struct Psql {
    program: Program,
    server: Server,
    passfile: Passfile,
    reads_only: bool,
    /// Something before the server does not take `options`: only the prologue holds.
    no_options: Cell<bool>,
}

/// In force from the session's first moment, over whatever is set for the role or the database. Only names that every
/// server knows.
const OPTIONS: &str =
    "-c search_path= -c statement_timeout=0 -c lock_timeout=0 -c idle_in_transaction_session_timeout=0";

/// The first statements of a session; none of them calls what somebody else could have named. With an empty path, only
/// pg_catalog is looked in; no limit ends what takes its time or waits; and rows that a policy hides are an error, not fewer
/// rows. (A pooler may refuse or drop [`OPTIONS`].)
const PROLOGUE: [&str; 6] = [
    "SET search_path = ''",
    "SET statement_timeout = 0",
    "SET lock_timeout = 0",
    "SET idle_in_transaction_session_timeout = 0",
    "SET row_security = off",
    // Not every version has these. No row comes out.
    "SELECT FROM pg_settings WHERE CASE WHEN name IN ('idle_session_timeout', 'transaction_timeout') \
     THEN set_config(name, '0', false) IS NULL END",
];
/// One more, for who only reads.
const READ_ONLY: &str = "SET default_transaction_read_only = on";

/// The first statements, in their order.
pub(crate) fn prologue(reads_only: bool) -> impl Iterator<Item = &'static str> {
    let path = usize::from(mutant::active("empty-search-path"));
    PROLOGUE.into_iter().skip(path).chain(reads_only.then_some(READ_ONLY))
}

/// How psql says that it could not connect.
pub(crate) const NO_CONNECTION: i32 = 2;

impl Psql {
    /// psql for `server`.
    pub(crate) fn new(program: Program, server: &Server) -> Result<Psql> {
        let no_options = Cell::new(false);
        Ok(Psql {
            program,
            passfile: server.passfile()?,
            server: server.clone(),
            reads_only: false,
            no_options,
        })
    }

    /// The same, with sessions that write nothing.
    pub(crate) fn reads_only(self) -> Psql {
        Psql { reads_only: true, ..self }
    }

    fn conninfo(&self, database: &str) -> String {
        let options = if self.no_options.get() || mutant::active("empty-search-path") { "" } else { OPTIONS };
        format!("{} client_encoding='UTF8' options='{options}'", self.server.conninfo(database))
    }

    /// What comes before `sql`, and that.
    fn text(&self, sql: &str) -> String {
        prologue(self.reads_only).map(|s| format!("{s};\n")).collect::<String>() + sql
    }

    fn cmd(&self, database: &str, sql: &str) -> Result<Cmd> {
        let cmd = self.program.cmd()?.args(["-X", "-q", "-A", "-t", "-w", "-v", "ON_ERROR_STOP=1", "-d"]);
        let stdin = if sql.is_empty() { String::new() } else { self.text(sql) };
        Ok(self.passfile.lend(cmd.arg(self.conninfo(database)).args(["-f", "-"]).stdin(stdin)))
    }

    /// Whether `error` says that a pooler does not take [`OPTIONS`]; then it is worth to try once more without.
    pub(crate) fn does_without_options(&self, error: &anyhow::Error) -> bool {
        // In a pooler's own words, which no server translates.
        let refused = error
            .downcast_ref::<Failure>()
            .is_some_and(|f| f.stderr_tail.contains("unsupported startup parameter"));
        refused && !self.no_options.replace(true)
    }

    /// Whether a pooler is known to stand before the server.
    pub(crate) fn through_pooler(&self) -> bool {
        self.no_options.get()
    }

    fn judge(&self, cmd: &Cmd, output: &Output) -> Result<String> {
        if output.status.success() {
            return Ok(output.text());
        }
        Err(explain(cmd.failure(output)).into())
    }

    /// A psql in `database` that takes statements on its stdin until that is closed; errors do not end it.
    pub(crate) fn stay(&self, database: &str) -> Result<Child> {
        let cmd = self.program.cmd()?.args(["-X", "-q", "-A", "-t", "-w", "-d"]);
        let cmd = cmd.arg(self.conninfo(database));
        self.passfile.lend(cmd.args(["-f", "-"])).spawn_piped()
    }

    /// Runs SQL in `database`, stopping at the first error; what it printed.
    pub(crate) fn run(&self, database: &str, sql: &str) -> Result<String> {
        let once = || {
            let cmd = self.cmd(database, sql)?;
            self.judge(&cmd, &cmd.output()?)
        };
        once().or_else(|e| if self.does_without_options(&e) { once() } else { Err(e) })
    }

    /// [`Psql::run`] with `:"db"` in the SQL standing for the identifier `name`.
    pub(crate) fn run_with_db(&self, database: &str, name: &str, sql: &str) -> Result<String> {
        self.run(database, &format!("\\set db {}\n{sql}", variable(name)))
    }

    /// [`Psql::run`] for clean-up: also when a signal asked us to stop, but not for ever.
    pub(crate) fn clean_up(&self, database: &str, sql: &str) -> Result<String> {
        let cmd = self.cmd(database, sql)?.uninterruptible().timeout(Duration::from_secs(30));
        self.judge(&cmd, &cmd.output()?)
    }

    /// Starts SQL whose answer is read while it comes.
    pub(crate) fn start(&self, database: &str, sql: &str) -> Result<Running> {
        use std::io::Write as _;
        let mut child = self.cmd(database, "")?.spawn_piped()?;
        let mut stdin = child.take_stdin().context("psql has no stdin")?;
        // One that does not read has ended, and says why.
        stdin.write_all(self.text(sql).as_bytes()).ok();
        Ok(Running { child })
    }

    /// Runs a query that gives one JSON value.
    pub(crate) fn query<T: DeserializeOwned>(&self, database: &str, sql: &str) -> Result<T> {
        let text = self.run(database, sql)?;
        serde_json::from_str(&text)
            .with_context(|| format!("psql answered something else than JSON: {text:.200}"))
    }
}

/// SQL whose answer is being read. Dropping it ends psql.
#[derive(Debug)]
pub(crate) struct Running {
    child: common::run::Child,
}

impl Running {
    /// Where the answer comes, once.
    pub(crate) fn take_stdout(&mut self) -> Result<std::process::ChildStdout> {
        self.child.take_stdout().context("psql has no stdout")
    }

    /// Waits for the end; an error if it was not a good one.
    pub(crate) fn finish(&mut self) -> Result<()> {
        let status = self.child.wait(None, true)?;
        if status.success() { Ok(()) } else { Err(explain(self.child.failure_for(status)?).into()) }
    }
}

/// What psql means by the way it failed.
fn explain(mut failure: Failure) -> Failure {
    if failure.exit_code == Some(NO_CONNECTION) {
        return no_connection(failure);
    }
    if failure.stderr_tail.contains("permission denied") || failure.stderr_tail.contains("must be owner") {
        failure.kind = Kind::Denied;
    }
    failure
}

/// A failure to connect, as what it means.
pub(crate) fn no_connection(mut failure: Failure) -> Failure {
    // Without the indented questions, which our hint asks, and the name of the password file.
    let noise = |l: &&str| l.starts_with('\t') || l.starts_with("password retrieved from file");
    let lines = failure.stderr_tail.lines().filter(|l| !noise(l));
    failure.stderr_tail = lines.collect::<Vec<_>>().join("\n");
    (failure.kind, failure.hint) = classify(&failure.stderr_tail);
    failure
}

/// What a failed connection means. Without "FATAL" it is the client that speaks, and in English; with it,
/// the server was reached, and speaks the language it is set to.
fn classify(stderr: &str) -> (Kind, Option<String>) {
    let hint = |text: &str| Some(text.to_owned());
    if !stderr.contains("FATAL") && !stderr.contains("no password supplied") {
        return (Kind::Unavailable, hint("is PostgreSQL running, and are host and port right?"));
    }
    if stderr.contains("starting up") || stderr.contains("shutting down") || stderr.contains("too many") {
        return (Kind::Unavailable, hint("PostgreSQL takes no connections at the moment: try again later"));
    }
    if stderr.contains("database \"") && stderr.contains("does not exist") {
        return (
            Kind::Config,
            hint("`psql -l` lists the databases; name one with --name or [database] name"),
        );
    }
    (
        Kind::Denied,
        hint(
            "check role and password (--user, --password-file, or what Nextcloud's config.php says) and pg_hba.conf",
        ),
    )
}

/// Adds what to do about a failure of a child.
pub(crate) fn hint(mut error: anyhow::Error, text: impl Into<String>) -> anyhow::Error {
    if let Some(failure) = error.downcast_mut::<Failure>() {
        failure.hint = Some(text.into());
    }
    error
}

/// An identifier for SQL.
pub(crate) fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A value for psql's own `\set`, whose quotes know backslashes.
fn variable(text: &str) -> String {
    format!("'{}'", text.replace('\\', "\\\\").replace('\'', "''").replace('\n', "\\n"))
}

/// A string for SQL, the same whatever `standard_conforming_strings` says.
pub(crate) fn literal(text: &str) -> String {
    let quoted = text.replace('\'', "''");
    if quoted.contains('\\') { format!("E'{}'", quoted.replace('\\', "\\\\")) } else { format!("'{quoted}'") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failed_connections_are_told_apart() {
        for (text, kind) in [
            (
                "psql: error: connection to server at \"127.0.0.1\", port 1 failed: Connection refused",
                Kind::Unavailable,
            ),
            ("could not translate host name \"x\" to address", Kind::Unavailable),
            ("failed: FATAL:  password authentication failed for user \"oc\"", Kind::Denied),
            ("failed: FATAL:  Passwort-Authentifizierung für Benutzer »oc« fehlgeschlagen", Kind::Denied),
            ("failed: fe_sendauth: no password supplied", Kind::Denied),
            ("failed: FATAL:  database \"x\" does not exist", Kind::Config),
            ("failed: FATAL:  role \"x\" does not exist", Kind::Denied),
            ("failed: FATAL:  the database system is starting up", Kind::Unavailable),
        ] {
            assert_eq!(classify(text).0, kind, "{text}");
        }
    }

    #[test]
    fn quoting() {
        assert_eq!(identifier("a\"b"), "\"a\"\"b\"");
        assert_eq!(literal("it's"), "'it''s'");
        assert_eq!(literal(r"a\b"), r"E'a\\b'");
        assert_eq!(variable(r"a\'b"), r"'a\\''b'");
    }
}

//! psql: SQL in on stdin, text or JSON out; what it means when it fails is told by `refusal`.
//!
//! Each session begins with the same [`PROLOGUE`], so that neither what a database brings with it (operators and functions
//! on a search_path) nor what was set for a role or a database takes part in what we ask.
//!
//! psql never reads a word that came from a dump, a database or a configuration: every statement goes to it
//! [`sealed`], and what it means is known to the server alone.

use std::cell::Cell;
use std::time::Duration;

use anyhow::{Context as _, Result};
use common::account::Account;
use common::fault::{Failure, Kind};
use common::mutant;
use common::run::{Child, Cmd, Output};
use serde::de::DeserializeOwned;

use crate::connect::Server;
use crate::greeting::{self, Greeting};
use crate::password::Passfile;
use crate::programs::Program;
use crate::refusal::{Meaning, NO_CONNECTION, classify, explain, is_temporary, sqlstate_in};

/// psql, bound to a server.
#[derive(Clone, Debug)]
pub(crate) struct Psql {
    program: Program,
    server: Server,
    passfile: Passfile,
    reads_only: bool,
    /// Something before the server does not take `options`: only the prologue holds.
    no_options: Cell<bool>,
    /// Whose rights psql has, if not ours.
    account: Option<Account>,
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
/// One more, for who only reads, and for who does not, whatever is set for the database.
const READ_ONLY: &str = "SET default_transaction_read_only = on";
const READ_WRITE: &str = "SET default_transaction_read_only = off";

/// The first statements, in their order.
pub(crate) fn prologue(reads_only: bool) -> impl Iterator<Item = &'static str> {
    let path = usize::from(mutant::active("empty-search-path"));
    PROLOGUE.into_iter().skip(path).chain([if reads_only { READ_ONLY } else { READ_WRITE }])
}

/// The longest that one call may take: the restored tables are analyzed and counted within it.
const LONGEST: Duration = Duration::from_secs(12 * 3600);

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
            account: None,
        })
    }

    /// The same, as the account that is named like the role, where the server asks for that: peer authentication on
    /// a unix socket believes nothing but who is at its other end, and root may be anybody.
    pub(crate) fn admitted(mut self, database: &str) -> Result<Psql> {
        let Some(account) = self.server.peer_account() else { return Ok(self) };
        let Err(error) = self.run(database, &["SELECT 1"]) else { return Ok(self) };
        if common::fault::kind_of(&error) != Kind::Denied || mutant::active("no-peer-account") {
            return Ok(self);
        }
        self.account = Some(account);
        match self.run(database, &["SELECT 1"]) {
            Ok(_) => Ok(self),
            // The first reason is that of the one who was named.
            Err(_) => Err(error),
        }
    }

    /// The same, with sessions that write nothing.
    pub(crate) fn reads_only(self) -> Psql {
        Psql { reads_only: true, ..self }
    }

    fn conninfo(&self, database: &str) -> String {
        format!("{} client_encoding='UTF8'", self.plain_conninfo(database))
    }

    /// For pg_dump and pg_restore, which choose the encoding: they lift limits themselves, but not before their first query,
    /// and one of a millisecond can end that.
    pub(crate) fn plain_conninfo(&self, database: &str) -> String {
        let options = if self.no_options.get() || mutant::active("empty-search-path") { "" } else { OPTIONS };
        format!("{} options='{options}'", self.server.conninfo(database))
    }

    /// What comes before `statements`, and those.
    fn text<S: AsRef<str>>(&self, statements: &[S]) -> String {
        let ours = prologue(self.reads_only).map(|s| format!("{s};\n")).collect::<String>();
        ours + &statements.iter().map(|s| sealed(s.as_ref())).collect::<String>()
    }

    fn program(&self) -> Result<Cmd> {
        let cmd = self.program.cmd()?;
        Ok(match &self.account {
            Some(account) => cmd.run_as(account),
            None => cmd,
        })
    }

    fn cmd(&self, database: &str, stdin: String) -> Result<Cmd> {
        let cmd = self.program()?.args(["-X", "-q", "-A", "-t", "-w", "-v", "ON_ERROR_STOP=1"]);
        let cmd = cmd.args(["-v", "VERBOSITY=verbose", "-v", "SHOW_CONTEXT=never", "-d"]);
        let cmd = cmd.arg(self.conninfo(database)).args(["-f", "-"]).stdin(stdin).timeout(LONGEST);
        Ok(self.passfile.lend(cmd))
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

    fn judge(&self, database: &str, cmd: &Cmd, output: &Output) -> Result<String> {
        if output.status.success() {
            return Ok(output.text());
        }
        let failure = explain(cmd.failure(output));
        // With a code, it is a session that has ended.
        let connected = sqlstate_in(&failure.stderr_tail).is_some();
        let error = failure.into();
        Err(if connected { error } else { self.explain_connection(database, error) })
    }

    fn attempt(&self, database: &str, text: &str) -> Result<String> {
        let cmd = self.cmd(database, text.to_owned())?;
        self.judge(database, &cmd, &cmd.output()?)
    }

    /// What a failure to connect means. Our own greeting brings what the server says as an SQLSTATE; what it says
    /// after that (a password that is wrong, a database that is not there) is found out by asking another database.
    pub(crate) fn explain_connection(&self, database: &str, mut error: anyhow::Error) -> anyhow::Error {
        // What another program connects from is not seen from here: then its words have to do.
        if self.program.is_configured() || mutant::active("errors-by-words") {
            return error;
        }
        let Some(failure) = error.downcast_mut::<Failure>() else { return error };
        if failure.exit_code != Some(NO_CONNECTION) {
            return error;
        }
        let user = self.server.user.as_deref().unwrap_or("root");
        let meaning = match greeting::greet(&self.server.host, user, database) {
            Greeting::Silent => Meaning::NoServer,
            Greeting::Refused(code) if is_temporary(&code) => Meaning::NotNow,
            Greeting::Refused(_) => Meaning::Denied,
            Greeting::Speaks if self.lacks(database) => Meaning::NoDatabase,
            Greeting::Speaks => Meaning::Denied,
        };
        // A limit on a role's or a database's sessions is met after the password.
        if meaning == Meaning::Denied && matches!(classify(&failure.stderr_tail), Meaning::NotNow) {
            return error;
        }
        meaning.tell(failure);
        if meaning == Meaning::Denied && self.server.is_by_socket() && self.server.password.is_none() {
            failure.hint = Some(
                if failure.stderr_tail.contains(&format!("role \"{user}\" does not exist")) {
                    format!(
                        "make the role: sudo -u postgres createuser {user} (for rehearsals: createuser --createdb {user})"
                    )
                } else {
                    format!(
                        "over a socket the server usually admits the account that is named like the role (peer in pg_hba.conf): \
                 run this as root or as the account {user}, connect by address (127.0.0.1) with a password, or name a role that \
                 this account has"
                    )
                },
            );
        }
        error
    }

    /// Whether the server says that it has no such database.
    fn lacks(&self, database: &str) -> bool {
        let sql = format!("SELECT count(*) FROM pg_database WHERE datname = {}", literal(database));
        let others = ["postgres", "template1"].into_iter().filter(|o| *o != database);
        let count = |other: &str| {
            let cmd = self.cmd(other, self.text(&[&sql])).ok()?;
            let output = cmd.output().ok()?;
            output.status.success().then(|| output.text())
        };
        others.filter_map(count).next().is_some_and(|count| count == "0")
    }

    /// A psql in `database` that takes statements on its stdin until that is closed; errors do not end it.
    pub(crate) fn stay(&self, database: &str) -> Result<Child> {
        let cmd = self.program()?.args(["-X", "-q", "-A", "-t", "-w", "-d"]);
        let cmd = cmd.arg(self.conninfo(database));
        self.passfile.lend(cmd.args(["-f", "-"])).spawn_piped()
    }

    /// Runs the statements in `database`, stopping at the first error; what they printed.
    pub(crate) fn run<S: AsRef<str>>(&self, database: &str, statements: &[S]) -> Result<String> {
        let once = || self.attempt(database, &self.text(statements));
        once().or_else(|e| if self.does_without_options(&e) { once() } else { Err(e) })
    }

    /// [`Psql::run`] for clean-up: also when a signal asked us to stop, but not for ever.
    pub(crate) fn clean_up<S: AsRef<str>>(&self, database: &str, statements: &[S]) -> Result<String> {
        let text = self.text(statements);
        let cmd = self.cmd(database, text)?.uninterruptible().timeout(Duration::from_secs(30));
        self.judge(database, &cmd, &cmd.output()?)
    }

    /// What one statement says within ten seconds, if it says anything.
    pub(crate) fn glance(&self, database: &str, statement: &str) -> Option<String> {
        let cmd = self.cmd(database, self.text(&[statement])).ok()?.timeout(Duration::from_secs(10));
        let output = cmd.output().ok()?;
        output.status.success().then(|| output.text())
    }

    /// Starts statements whose answer is read while it comes.
    pub(crate) fn start<S: AsRef<str>>(&self, database: &str, statements: &[S]) -> Result<Running> {
        use std::io::Write as _;
        let mut child = self.cmd(database, String::new())?.spawn_piped()?;
        let mut stdin = child.take_stdin().context("psql has no stdin")?;
        // One that does not read has ended, and says why.
        stdin.write_all(self.text(statements).as_bytes()).ok();
        Ok(Running { child })
    }

    /// Runs a query that gives one JSON value.
    pub(crate) fn query<T: DeserializeOwned>(&self, database: &str, sql: &str) -> Result<T> {
        let text = self.run(database, &[sql])?;
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

/// `statement` as psql gets to see it: digits, and the order to send to the server, unread, what they stand for. So no
/// text in it can be a command or a variable of psql's, whatever quotes it holds.
pub(crate) fn sealed(statement: &str) -> String {
    if mutant::active("psql-reads-what-is-foreign") {
        return format!("{statement};\n");
    }
    let hex: String = statement.bytes().map(|b| format!("{b:02x}")).collect();
    format!("SELECT pg_catalog.convert_from(pg_catalog.decode('{hex}', 'hex'), 'UTF8') \\gexec\n")
}

/// An identifier for SQL.
pub(crate) fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
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
    fn psql_sees_nothing_but_digits_of_a_statement() {
        let line = sealed("SELECT 1 \\! id\n\\q :x");
        assert_eq!(line.matches('\\').count(), 1, "{line}");
        assert!(line.lines().count() == 1 && !line.contains(" id") && !line.contains(":x"), "{line}");
    }

    #[test]
    fn quoting() {
        assert_eq!(identifier("a\"b"), "\"a\"\"b\"");
        assert_eq!(literal("it's"), "'it''s'");
        assert_eq!(literal(r"a\b"), r"E'a\\b'");
    }
}

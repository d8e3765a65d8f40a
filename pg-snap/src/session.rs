//! A psql that stays: one statement in over a pipe, its answer out, until it is closed or dies.
//! Its session on the server ends with it, however it ends: psql dies with us, and the server then meets a closed
//! connection.

use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd as _, RawFd};
use std::process::{ChildStdin, ChildStdout};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use common::fault::{Fault, Kind};
use common::run::Child;
use common::signals;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;

use crate::psql::{self, Psql};
use crate::refusal;

/// The longest an answer may take; a server that is silent for so long counts as gone. (libpq gives up a connection that
/// does not come about after 10 seconds.)
const PATIENCE: Duration = Duration::from_secs(15);
/// What stands before the line that ends an answer.
const MARK: &str = "@pg-snap-answered";

/// One session.
#[derive(Debug)]
pub(crate) struct Session {
    child: Child,
    input: ChildStdin,
    output: ChildStdout,
    asked: u64,
    read: Vec<u8>,
    /// Its process on the server.
    pub(crate) backend: i32,
    /// The server's version, as 150018.
    pub(crate) version: i32,
    /// The server had this session before we asked for one: something between us and it hands sessions on.
    pub(crate) pooled: bool,
}

/// The server refused a statement.
#[derive(Debug)]
pub(crate) struct Refused {
    /// Five characters, as in PostgreSQL's appendix A.
    pub(crate) sqlstate: String,
    message: String,
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "the server says: {} ({})", self.message, self.sqlstate)
    }
}

impl std::error::Error for Refused {}

impl Session {
    /// Opens one in `database`, which begins with psql's prologue and writes nothing.
    pub(crate) fn open(psql: &Psql, database: &str) -> Result<Session> {
        let once = || Session::begin(psql, database);
        let done = once().or_else(|e| if psql.does_without_options(&e) { once() } else { Err(e) });
        done.map_err(|e| psql.explain_connection(database, e))
    }

    fn begin(psql: &Psql, database: &str) -> Result<Session> {
        let mut child = psql.stay(database)?;
        let input = child.take_stdin().context("psql has no stdin")?;
        let output = child.take_stdout().context("psql has no stdout")?;
        let mut session = Session {
            child,
            input,
            output,
            asked: 0,
            read: Vec::new(),
            backend: 0,
            version: 0,
            pooled: false,
        };
        let opened = Instant::now();
        for statement in psql::prologue(true) {
            session.query(statement)?;
        }
        let first = session.query(
            "SELECT json_build_array(pg_backend_pid(), current_setting('server_version_num')::int, \
             extract(epoch FROM clock_timestamp() - backend_start)::int8) FROM pg_stat_activity WHERE pid = pg_backend_pid()",
        )?;
        let age: i64;
        (session.backend, session.version, age) =
            serde_json::from_str(&first).context("psql answered something odd")?;
        let age = u64::try_from(age).unwrap_or(0);
        session.pooled = psql.through_pooler() || age > opened.elapsed().as_secs() + 2;
        Ok(session)
    }

    /// Runs one statement; what it printed. [`Refused`] if the server refused it.
    pub(crate) fn query(&mut self, statement: &str) -> Result<String> {
        self.query_within(statement, PATIENCE)
    }

    /// The same, for somebody who waits less long.
    pub(crate) fn query_within(&mut self, statement: &str, patience: Duration) -> Result<String> {
        self.asked += 1;
        let mark = format!("{MARK}-{}", self.asked);
        let text = format!("{statement};\n\\echo {mark} :SQLSTATE :LAST_ERROR_MESSAGE\n\\echo {mark}-end\n");
        let sent = self.input.write_all(text.as_bytes()).and_then(|()| self.input.flush());
        if sent.is_err() {
            return Err(self.died());
        }
        let text = self.until(&format!("{mark}-end\n"), patience)?;
        // At a line's start: what others named so is in the middle of a JSON text.
        let at =
            if text.starts_with(&mark) { Some(0) } else { text.find(&format!("\n{mark} ")).map(|n| n + 1) };
        let (answer, end) = text.split_at(at.context("psql answered something odd")?);
        let end = &end[mark.len()..];
        let (sqlstate, message) = end.trim().split_once(' ').unwrap_or((end.trim(), ""));
        if sqlstate != "00000" {
            return Err(Refused { sqlstate: sqlstate.into(), message: message.into() }.into());
        }
        Ok(answer.trim_end_matches('\n').to_owned())
    }

    /// Reads up to `end`: what came before.
    fn until(&mut self, end: &str, patience: Duration) -> Result<String> {
        let deadline = Instant::now() + patience;
        // One signal has been seen when it asks us to clean up.
        let heed = signals::caught().is_none();
        loop {
            if self.read.ends_with(end.as_bytes()) {
                let text = String::from_utf8_lossy(&std::mem::take(&mut self.read)).into_owned();
                return Ok(text.strip_suffix(end).unwrap_or_default().to_owned());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if heed {
                signals::check()?;
            }
            let mut fds = vec![PollFd::new(self.output.as_fd(), PollFlags::POLLIN)];
            fds.extend(signals::fd().filter(|_| heed).map(|fd| PollFd::new(fd, PollFlags::POLLIN)));
            match poll(&mut fds, PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO)) {
                Ok(0) => {
                    // Its answer would come when another one is waited for.
                    self.child.signal(Signal::SIGKILL);
                    return Err(Fault::unavailable(format!(
                        "the database did not answer within {} seconds",
                        patience.as_secs()
                    ))
                    .into());
                }
                Ok(_) if !fds[0].any().unwrap_or(true) => continue,
                Ok(_) => {}
                Err(nix::errno::Errno::EINTR) => continue,
                Err(e) => return Err(e).context("cannot wait for psql"),
            }
            let mut buffer = [0; 16384];
            match self.output.read(&mut buffer) {
                Ok(0) => return Err(self.died()),
                Ok(n) => self.read.extend_from_slice(&buffer[..n]),
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e).context("cannot read from psql"),
            }
        }
    }

    /// Why there is no answer any more.
    fn died(&mut self) -> anyhow::Error {
        match self.child.wait(Some(Duration::from_secs(2)), false).and_then(|s| self.child.failure_for(s)) {
            Ok(failure) if failure.exit_code == Some(refusal::NO_CONNECTION) && self.backend == 0 => {
                refusal::no_connection(failure).into()
            }
            Ok(failure) if self.backend != 0 => {
                anyhow::Error::from(failure).context(Fault::failed("our session of the database has ended"))
            }
            Ok(failure) => failure.into(),
            Err(e) => e,
        }
    }

    /// An error if the server has ended the session, which psql notices only when it is used.
    pub(crate) fn touch(&mut self) -> Result<()> {
        self.query("SELECT 1").map(|_| ())
    }

    /// Readable when psql has ended.
    pub(crate) fn ended(&self) -> RawFd {
        self.child.pidfd()
    }

    /// Ends it, and waits until psql is gone.
    pub(crate) fn close(mut self) {
        drop(self.input);
        if self.child.wait(Some(Duration::from_secs(2)), false).is_err() {
            self.child.end();
        }
    }
}

/// The SQLSTATE of an error that the server gave.
pub(crate) fn sqlstate(error: &anyhow::Error) -> Option<&str> {
    error.downcast_ref::<Refused>().map(|r| r.sqlstate.as_str())
}

/// What a refusal means for the exit code.
pub(crate) fn kind(error: &anyhow::Error) -> Kind {
    match sqlstate(error) {
        Some("42501") => Kind::Denied,
        // lock_timeout and statement_timeout.
        Some("55P03" | "57014") => Kind::Busy,
        Some(_) => Kind::Failed,
        None => common::fault::kind_of(error),
    }
}

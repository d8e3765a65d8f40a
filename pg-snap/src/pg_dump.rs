//! pg_dump: the whole database, directory format, in parallel, from one snapshot.
//!
//! Level 1 of gzip: on a table like oc_filecache 6 % larger than the default level 6, in half the time;
//! `--compress=1` means this in every version of pg_dump. An unchanged table gives the same bytes again.

use std::path::Path;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::Result;
use common::fault::{Failure, Fault, Kind};
use common::figures;
use common::lock::Lock;
use common::status::Report;

use crate::connect::Server;
use crate::names::dump_id;
use crate::programs::Program;
use crate::psql::Psql;
use crate::stall;

/// How long pg_dump waits for a table that somebody else has locked.
const LOCK_WAIT: &str = "60s";
/// The same while a state is held: who has a table or waits for it then waits for our own end, and keeps others waiting.
const LOCK_WAIT_HELD: &str = "10s";

/// What is to be dumped, and where to.
#[derive(Debug)]
pub(crate) struct Job<'j> {
    pub(crate) program: &'j Program,
    pub(crate) server: &'j Server,
    pub(crate) psql: &'j Psql,
    pub(crate) database: &'j str,
    /// A folder that is not there yet.
    pub(crate) to: &'j Path,
    pub(crate) jobs: u32,
    /// The exported snapshot to read; without one, pg_dump takes its own.
    pub(crate) snapshot: Option<&'j str>,
    /// How many there are, for people who wait.
    pub(crate) tables: usize,
    /// How long nothing may be written.
    pub(crate) stall: Duration,
}

/// Dumps. pg_dump and its workers hold `lock` as long as they live.
pub(crate) fn run(job: &Job<'_>, lock: &Lock, report: &mut Report) -> Result<()> {
    let Job { program, server, psql, database, to, jobs, snapshot, tables, stall } = *job;
    let passfile = server.passfile()?;
    let cmd = program
        .cmd()?
        .args(["--format=directory", "--compress=1", "--no-sync", "--no-password"])
        .arg(format!("--jobs={jobs}"))
        .arg(format!("--lock-wait-timeout={}", if snapshot.is_some() { LOCK_WAIT_HELD } else { LOCK_WAIT }))
        .arg("--file")
        .arg(to)
        .arg("--dbname")
        .arg(psql.plain_conninfo(database))
        .args(snapshot.map(|id| format!("--snapshot={id}")))
        .inherit(lock.fd());
    let cmd = passfile.lend(cmd);
    let what = "pg_dump has written nothing";
    let output = with_progress(to, tables, || stall::run(&cmd, stall, what, || measure(to)))?;
    let said = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() {
        let mut failure = cmd.failure(&output);
        explain(&mut failure, &said);
        return Err(failure.into());
    }
    for line in said.lines().filter(|l| l.contains("warning:")) {
        report.warn("pg-dump", line);
    }
    if !to.join("toc.dat").exists() {
        return Err(Fault::config(format!("pg_dump reports success but wrote nothing to {}", to.display()))
            .hint("if it runs in a container, the dump folder must be mounted there under the same path")
            .into());
    }
    Ok(())
}

/// The first reason, and what to do about it. Only pg_dump's own words are known: the server's are in its language.
fn explain(failure: &mut Failure, said: &str) {
    let was_cut = said.contains("server closed the connection");
    let waits_for_lock =
        said.contains("could not obtain lock") || said.contains("Query was: LOCK TABLE") && !was_cut;
    if said.contains("No space left on device") || said.contains("Disk quota exceeded") {
        failure.hint = Some("the disk of the dump folder is full: make room, or set [database] dumps".into());
    } else if waits_for_lock {
        failure.kind = Kind::Busy;
        failure.hint = Some(
            "something changes tables (an app's update, TRUNCATE, VACUUM FULL) and waits for the backup, and the dump \
             would wait for it: try again when that has ended"
                .into(),
        );
    } else if said.contains("server version mismatch") {
        failure.kind = Kind::Config;
        failure.hint = Some("pg_dump must not be older than the server: install a newer client".into());
    } else if said.contains("pg_dump: error: connection to server") {
        failure.kind = Kind::Denied;
        failure.hint = Some(
            "psql could connect, pg_dump cannot: a pg_dump behind sudo or in a container does not see the \
             password; give it its own access there (peer, trust or ~/.pgpass)"
                .into(),
        );
    }
    failure.stderr_tail = first_reason(said);
}

/// What pg_dump said first: the leader tells last that a worker has died, and the query that failed says less than why.
fn first_reason(said: &str) -> String {
    let lines = said.lines().filter(|l| {
        !l.contains("detail: Query was:")
            && !l.contains("detail: Command was:")
            && !l.contains("a worker process died unexpectedly")
    });
    let mut errors = lines.skip_while(|l| !l.contains("error:")).peekable();
    if errors.peek().is_none() {
        return common::complaint::tail(said.as_bytes());
    }
    let mut out = errors.next().unwrap_or_default().to_owned();
    // It goes on, on further lines, until the next error.
    for line in errors.take_while(|l| !l.starts_with("pg_dump: error:")) {
        out.push('\n');
        out.push_str(line);
    }
    common::complaint::tail(out.as_bytes())
}

/// Shows how far it has come, while `work` runs: by a line that moves on a terminal, elsewhere by one a minute.
fn with_progress<T>(dir: &Path, tables: usize, work: impl FnOnce() -> T) -> T {
    let moves = common::show::moves();
    let every = if moves { Duration::from_millis(300) } else { Duration::from_secs(60) };
    let begun = Instant::now();
    let (done, wait) = mpsc::channel::<()>();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            while wait.recv_timeout(every) == Err(mpsc::RecvTimeoutError::Timeout) {
                let (files, written) = measure(dir);
                let line = format!(
                    "pg-snap: {files} of {tables} tables begun, {}, {}",
                    figures::bytes(written),
                    figures::rate(written, begun.elapsed())
                );
                if moves {
                    common::show::moving(format_args!("{line}"));
                } else {
                    common::show::line(format_args!("{line}"));
                }
            }
            if moves {
                common::show::moving(format_args!(""));
            }
        });
        let result = work();
        drop(done);
        result
    })
}

/// Tables begun, and bytes written.
fn measure(dir: &Path) -> (usize, u64) {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.fold((0, 0), |(tables, bytes), entry| {
        let is_table = entry.file_name().to_str().is_some_and(|name| dump_id(name).is_some());
        (tables + usize::from(is_table), bytes + entry.metadata().map_or(0, |m| m.len()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_counts_tables_only_but_all_bytes() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["toc.dat", "3345.dat.gz", "blob_7.dat.gz"] {
            std::fs::write(dir.path().join(name), "12").unwrap();
        }
        assert_eq!(measure(dir.path()), (1, 6));
        assert_eq!(measure(&dir.path().join("none")), (0, 0));
    }

    #[test]
    fn of_a_parallel_dump_the_first_reason_is_told() {
        let said = "pg_dump: last built-in OID is 16383\n\
            pg_dump: error: Dumping the contents of table \"a\" failed: PQgetResult() failed.\n\
            pg_dump: detail: Error message from server: FEHLER:  Platte voll\n\
            pg_dump: detail: Command was: COPY a\n\
            pg_dump: error: a worker process died unexpectedly\n";
        let first = first_reason(said);
        assert!(first.starts_with("pg_dump: error: Dumping the contents"), "{first}");
        assert!(first.ends_with("Platte voll"), "{first}");
        assert_eq!(first_reason("sh: pg_dump: not found\n"), "sh: pg_dump: not found");
    }
}

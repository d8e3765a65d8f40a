//! A private PostgreSQL on loopback for tests: `tests/lab/postgres`, with its end tied to ours.
#![expect(clippy::disallowed_methods, reason = "tests start what they test against by hand")]

use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, Weak};

use crate::keeper::{Keeper, value};

/// A running cluster; stopped and removed when dropped, and also when the test is killed.
#[derive(Debug)]
pub struct Cluster {
    dir: PathBuf,
    /// The port, of both the TCP and the unix socket.
    pub port: u16,
    /// The folder of the unix socket.
    pub socket: PathBuf,
    _keeper: Keeper,
}

static SHARED: Mutex<Weak<Cluster>> = Mutex::new(Weak::new());

impl Cluster {
    /// The address it listens on.
    pub const HOST: &str = "127.0.0.1";

    /// Starts a cluster of its own.
    pub fn start() -> Cluster {
        // Not under a private folder: the account postgres must reach it.
        let dir = tempfile::Builder::new().prefix("ncb-pg-").tempdir().expect("a temporary folder").keep();
        std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o755)).expect("chmod works");
        let keeper = Keeper::new(&script(), &dir, &dir);
        let mut cluster = Cluster { dir, port: 0, socket: PathBuf::new(), _keeper: keeper };
        cluster.restart();
        cluster
    }

    /// The cluster that the tests of one binary share; it ends with the last of them.
    pub fn shared() -> Arc<Cluster> {
        let mut shared = SHARED.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(cluster) = shared.upgrade() {
            return cluster;
        }
        let cluster = Arc::new(Cluster::start());
        *shared = Arc::downgrade(&cluster);
        cluster
    }

    /// Stops the server; connections are refused until [`Cluster::restart`].
    pub fn stop(&self) {
        let status = Command::new(script()).arg("stop").arg(&self.dir).status().expect("the script starts");
        assert!(status.success(), "the server does not stop");
    }

    /// Starts the server again, on its former port if it had one.
    pub fn restart(&mut self) {
        let mut command = Command::new(script());
        command.arg("start").arg(&self.dir);
        if self.port != 0 {
            command.arg(self.port.to_string());
        }
        let output = command.output().expect("the script starts");
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        self.port = value(&text, "PGPORT").parse().expect("a port");
        self.socket = PathBuf::from(value(&text, "PGSOCKET"));
    }

    /// Makes it a standby, which has no primary: it can only be read.
    pub fn make_standby(&mut self) {
        let data = self.dir.join("data");
        let settings = data.join("postgresql.conf");
        let text = std::fs::read_to_string(&settings).expect("the settings");
        std::fs::write(&settings, format!("{text}wal_level = replica\nmax_wal_senders = 2\n"))
            .expect("written");
        // Once as a primary, so that what it wrote last is of this level.
        self.stop();
        self.restart();
        self.stop();
        std::fs::write(data.join("standby.signal"), "").expect("written");
        self.restart();
    }

    /// `psql` as the superuser in `database`, ready for SQL on its stdin.
    pub fn superuser(&self, database: &str) -> Command {
        let mut command = Command::new("psql");
        command.env_clear().env("PATH", "/usr/bin:/bin").env("LC_ALL", "C.UTF-8");
        command.args(["-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-U", "postgres", "-h"]);
        // As a connection string: a name with '=' in it would be taken for one.
        let name = database.replace('\\', "\\\\").replace('\'', "\\'");
        command.arg(&self.socket).args(["-p", &self.port.to_string(), "-d", &format!("dbname='{name}'")]);
        command
    }

    /// Runs SQL as the superuser in `database`; what it printed, unaligned. Panics on any SQL error.
    #[track_caller]
    pub fn psql(&self, database: &str, sql: &str) -> String {
        self.try_psql(database, sql).unwrap_or_else(|e| panic!("{e}\nin: {sql:.500}"))
    }

    /// [`Cluster::psql`] that gives back the error.
    pub fn try_psql(&self, database: &str, sql: &str) -> Result<String, String> {
        let mut command = self.superuser(database);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("psql starts");
        let mut stdin = child.stdin.take().expect("a pipe");
        let sql = sql.as_bytes().to_vec();
        let feed = std::thread::spawn(move || drop(stdin.write_all(&sql)));
        let output = child.wait_with_output().expect("psql ends");
        feed.join().expect("the feeding thread ends");
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).trim_end().to_owned());
        }
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }

    /// Makes a role that may log in with `password`, without any other right.
    #[track_caller]
    pub fn create_role(&self, name: &str, password: &str) {
        let sql = format!("CREATE ROLE {} LOGIN PASSWORD {};", identifier(name), literal(password));
        self.psql("postgres", &sql);
    }

    /// Makes a database owned by `owner`.
    #[track_caller]
    pub fn create_database(&self, name: &str, owner: &str) {
        let sql = format!("CREATE DATABASE {} OWNER {};", identifier(name), identifier(owner));
        self.psql("postgres", &sql);
    }
}

fn script() -> PathBuf {
    crate::lab("postgres")
}

/// An identifier, quoted for SQL.
pub fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('"', "\"\""))
}

/// A text, quoted for SQL.
pub fn literal(text: &str) -> String {
    format!(" E'{}'", text.replace('\\', "\\\\").replace('\'', "''"))
}

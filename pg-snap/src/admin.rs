//! Who makes and drops databases, connected to one that is neither.

use anyhow::Result;
use common::profile::Profile;
use serde::de::DeserializeOwned;

use crate::connect::Server;
use crate::programs::Program;
use crate::psql::{Psql, identifier};
use crate::target::Target;

/// The mark on databases that this program may drop again.
pub(crate) const MARK: &str = "pg-snap:";
/// How many connections a database may have that is just being made, and has no other mark yet. Nobody means this number.
pub(crate) const UNMARKED: i32 = 1_885_826_657;

/// The connection.
#[derive(Debug)]
pub(crate) struct Admin {
    pub(crate) server: Server,
    /// psql, for connections of others.
    pub(crate) program: Program,
    pub(crate) psql: Psql,
    /// The database it is connected to.
    pub(crate) home: String,
}

impl Admin {
    /// As `target` and the profile say.
    pub(crate) fn connect(profile: &Profile, target: &Target) -> Result<Admin> {
        let (server, home) = target.resolve(profile)?;
        Admin::at(profile, server, home)
    }

    /// On `server`, in the database `home`.
    pub(crate) fn at(profile: &Profile, server: Server, home: String) -> Result<Admin> {
        let program = Program::find("psql", &profile.database.psql, None);
        let psql = Psql::new(program.clone(), &server)?.admitted(&home)?;
        Ok(Admin { server, program, psql, home })
    }

    /// [`Psql::run`] there.
    pub(crate) fn run<S: AsRef<str>>(&self, statements: &[S]) -> Result<String> {
        self.psql.run(&self.home, statements)
    }

    /// [`Psql::query`] there.
    pub(crate) fn query<T: DeserializeOwned>(&self, sql: &str) -> Result<T> {
        self.psql.query(&self.home, sql)
    }

    /// [`Psql::clean_up`] there.
    pub(crate) fn clean_up<S: AsRef<str>>(&self, statements: &[S]) -> Result<String> {
        self.psql.clean_up(&self.home, statements)
    }

    /// Drops the database `name`, also while somebody is connected, where the server can (13 and newer); also when a signal
    /// asked us to stop.
    pub(crate) fn drop_database(&self, name: &str) -> Result<()> {
        let version: String = self.clean_up(&["SELECT current_setting('server_version_num')"])?;
        let force = if version.parse().is_ok_and(|v: u32| v < 130_000) { "" } else { " WITH (FORCE)" };
        self.clean_up(&[format!("{}{force}", drop_sql(name))]).map(|_| ())
    }
}

/// Whether a database with this comment is one that this program may drop.
pub(crate) fn is_ours(comment: Option<&str>) -> bool {
    comment.is_some_and(|c| c.starts_with(MARK))
}

/// What drops it by hand.
pub(crate) fn drop_sql(name: &str) -> String {
    format!("DROP DATABASE IF EXISTS {}", identifier(name))
}

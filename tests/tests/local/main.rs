//! `scripts/backup-local`, with the real tools on a sample instance and a real PostgreSQL.
#![expect(clippy::disallowed_methods, reason = "tests start the scripts as their users do")]

mod hostile;
mod night;
mod pairs;
mod restore;
mod seen;
mod sudo;
mod telling;
mod third_copy;
mod world;

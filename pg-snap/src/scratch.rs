//! A scratch database: made under a name of its own, dropped whatever happens.
//!
//! The name says who made it (`whose.rs`); one that a killed run left is dropped by the next run.

use anyhow::Result;
use common::fault::Fault;
use common::status::Report;
use serde::Deserialize;

use crate::admin::Admin;
use crate::load::Load;
use crate::loader::Me;
use crate::psql::identifier;
use crate::whose;

/// How every name begins.
const BEGIN: &str = "nc_backup_drill_";

/// Names of our form, as a pattern of PostgreSQL.
const PATTERN: &str = "^nc_backup_drill_[0-9a-f]{8}_[0-9]+_[0-9]+_[0-9]+_[0-9a-f]{8}$";

/// What the server says about us and what is there.
#[derive(Debug, Deserialize)]
pub(crate) struct Situation {
    #[serde(flatten)]
    pub(crate) me: Me,
    /// Where its files are, if we may know.
    pub(crate) data_directory: Option<String>,
    /// Whether it runs on this machine, as far as the connection tells.
    pub(crate) by_socket: bool,
    leftovers: Vec<String>,
}

impl Situation {
    /// Asks through the database `home`.
    pub(crate) fn read(admin: &Admin) -> Result<Situation> {
        admin.query(
            &format!(
                "SELECT json_build_object({},
                   'data_directory', (SELECT setting FROM pg_settings WHERE name = 'data_directory'),
                   'by_socket', inet_server_addr() IS NULL OR inet_server_addr() = inet_client_addr(),
                   'leftovers', (SELECT coalesce(json_agg(datname), '[]') FROM pg_database WHERE datname ~ '{PATTERN}'))
                 FROM pg_roles r WHERE r.rolname = current_user",
                Me::members()
            ),
        )
    }

    /// Refuses a role that may not make databases, or may do too much.
    pub(crate) fn judge(&self) -> Result<()> {
        if !self.me.superuser && !self.me.createdb {
            return Err(Fault::denied(format!("the role {} may not make databases", self.me.me))
                .hint(format!(
                    "make one for rehearsals: sudo -u postgres createuser --createdb root, and user = \"root\" in [drill]; or: {}",
                    may_create(&self.me.me)
                ))
                .into());
        }
        self.me.judge()
    }

    /// Drops what killed runs left; the names. What cannot be dropped is a warning.
    pub(crate) fn clear(&self, admin: &Admin, report: &mut Report) -> Result<Vec<String>> {
        let mut cleared = Vec::new();
        for name in self.leftovers.iter().filter(|n| whose::is_abandoned(n, BEGIN)) {
            common::signals::check()?;
            match admin.drop_database(name) {
                Ok(()) => {
                    common::say!("pg-snap", "dropped {name}, which a killed run left");
                    cleared.push(name.clone());
                }
                Err(e) => report.warn("leftover-kept", format!("cannot drop the leftover {name}: {e:#}")),
            }
        }
        self.me.clear(admin, report);
        Ok(cleared)
    }
}

/// Lets `role` make databases.
pub(crate) fn may_create(role: &str) -> String {
    format!("ALTER ROLE {} CREATEDB", identifier(role))
}

/// The scratch database, until [`Scratch::close`].
#[derive(Debug)]
pub(crate) struct Scratch<'p> {
    admin: &'p Admin,
    name: String,
}

impl<'p> Scratch<'p> {
    /// Makes one of the encoding and locale that the dump says, for whoever loads.
    pub(crate) fn create(load: &Load<'p>, owner: &str) -> Result<Scratch<'p>> {
        let scratch = Scratch { admin: load.admin, name: whose::new_name(BEGIN)? };
        load.create(&scratch.name, owner, "a rehearsal in progress, dropped at its end")?;
        // Nobody but us has business in it.
        let sql = format!("REVOKE ALL ON DATABASE {} FROM PUBLIC", identifier(&scratch.name));
        match load.admin.run(&[sql]) {
            Ok(_) => Ok(scratch),
            Err(e) => {
                load.admin.drop_database(&scratch.name).ok();
                Err(e.context("cannot make the scratch database private"))
            }
        }
    }

    /// Its name.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Drops it, also when a signal asked us to stop.
    pub(crate) fn close(self, report: &mut Report) {
        if let Err(e) = self.admin.drop_database(&self.name) {
            report.left_behind(
                format!("the scratch database {} ({e:#})", self.name),
                format!("DROP DATABASE {}; the next rehearsal does it, too", identifier(&self.name)),
            );
        }
    }
}

/// Room for `bytes` more beside the server's files, where these can be seen from here. Whether it was asked.
pub(crate) fn check_room(situation: &Situation, bytes: u64) -> Result<bool> {
    let Some(dir) = situation.data_directory.as_deref().filter(|_| situation.by_socket) else {
        return Ok(false);
    };
    let Ok(stat) = nix::sys::statvfs::statvfs(dir) else { return Ok(false) };
    let free = stat.blocks_available().saturating_mul(stat.fragment_size());
    // Indexes are built again, with temporary files; a fifth more is what that took.
    let needed = bytes.saturating_add(bytes / 5).saturating_add(64 << 20);
    if free >= needed {
        return Ok(true);
    }
    Err(Fault::failed(format!("the scratch database needs {needed} bytes, {dir} has {free} free"))
        .hint("make room there, or name another server: [drill] host in the profile, or --admin-host")
        .into())
}

//! How Nextcloud itself logs in, and whether it can after a restore.

use common::mutant;
use common::profile::Profile;
use common::status::Report;

use crate::admin::Admin;
use crate::connect::Server;
use crate::loader;
use crate::password::Password;
use crate::psql::{Psql, identifier, literal};
use crate::target;

/// Where, as whom, and to which database.
pub(crate) struct Login {
    pub(crate) server: Server,
    pub(crate) database: String,
}

impl Login {
    /// As its configuration says, which a restore of the whole instance has put in place before; else as the profile.
    pub(crate) fn find(profile: &Profile, report: &mut Report) -> Option<Login> {
        let found = target::as_nextcloud(profile);
        match found {
            Ok(found) => found.map(|(server, database)| Login { server, database }),
            Err(e) => {
                report.warn(
                    "login-unknown",
                    format!("how Nextcloud logs in cannot be found out, so it is not tried: {e:#}"),
                );
                None
            }
        }
    }

    /// Its password, if `role` is the one it logs in as.
    pub(crate) fn password_of(&self, role: &str) -> Option<&Password> {
        self.server.password.as_ref().filter(|_| self.server.user.as_deref() == Some(role))
    }

    /// Whether Nextcloud can log in now. A role that never had a password gets this one.
    pub(crate) fn try_it(&self, admin: &Admin, superuser: bool, report: &mut Report) -> bool {
        let user = self.server.user.clone().unwrap_or_default();
        let attempt = || {
            let psql = Psql::new(admin.program.clone(), &self.server)?.admitted(&self.database)?;
            psql.run(&self.database, &["SELECT 1"])
        };
        let mut done = attempt();
        if done.is_err() && superuser && !mutant::active("no-password-for-a-bare-role") {
            let bare =
                format!("SELECT rolpassword IS NULL FROM pg_authid WHERE rolname = {}", literal(&user));
            if let (Some(password), Ok("t")) = (&self.server.password, admin.run(&[&bare]).as_deref()) {
                let mut statements = loader::quiet(true);
                statements.push(format!(
                    "ALTER ROLE {} PASSWORD {}",
                    identifier(&user),
                    literal(password.reveal())
                ));
                if admin.run(&statements).is_ok() {
                    done = attempt();
                }
            }
        }
        let Err(e) = done else { return true };
        report.warn(
            "login-failed",
            format!(
                "Nextcloud cannot log in as {user} at {}, as its configuration says: {e:#}; give that role this password: \
                 ALTER ROLE {} PASSWORD '…', or see pg_hba.conf",
                self.server.host,
                identifier(&user)
            ),
        );
        false
    }
}

//! A server, as whom it is reached, and how libpq is told. Nothing is taken from the caller's environment.

use anyhow::Result;
use common::account::Account;
use common::profile::Profile;

use crate::container;
use crate::dbhost::DbHost;
use crate::password::{Passfile, Password};

/// Where to connect, and as whom.
#[derive(Clone, Debug)]
pub(crate) struct Server {
    /// Its address.
    pub(crate) host: DbHost,
    /// Role; `None`: named like the account that runs this.
    pub(crate) user: Option<String>,
    /// Its password, if one is known.
    pub(crate) password: Option<Password>,
    /// Nextcloud said that its sessions outlive its requests.
    pub(crate) persistent: bool,
}

impl Server {
    /// The connection string for `database`. It is passed whole, so that no name can be taken for an
    /// option or for a connection string of its own; the password is not in it.
    pub(crate) fn conninfo(&self, database: &str) -> String {
        let mut out = format!("dbname={}", quote(database));
        if let Some(host) = &self.host.host {
            out.push_str(&format!(" host={}", quote(host)));
        }
        if let Some(port) = self.host.port {
            out.push_str(&format!(" port={port}"));
        }
        if let Some(user) = &self.user {
            out.push_str(&format!(" user={}", quote(user)));
        }
        out.push_str(" connect_timeout=10 application_name='pg-snap'");
        out
    }

    /// Whether it is reached through a socket of this machine.
    pub(crate) fn is_by_socket(&self) -> bool {
        self.host.host.as_ref().is_none_or(|h| h.starts_with('/'))
    }

    /// The account that is named like the role, if it could matter to the server and we may be it. Never root by a role's
    /// name, which is nobody's word for that.
    pub(crate) fn peer_account(&self) -> Option<Account> {
        let user = self.user.as_deref()?;
        if !self.is_by_socket() || self.password.is_some() || !nix::unistd::geteuid().is_root() {
            return None;
        }
        Account::named(user).ok().filter(|a| !a.uid().is_root())
    }

    /// The password file for its children.
    pub(crate) fn passfile(&self) -> Result<Passfile> {
        Passfile::new(self.password.as_ref())
    }
}

/// Quotes a value of a connection string.
fn quote(value: &str) -> String {
    format!("'{}'", value.replace('\\', "\\\\").replace('\'', "\\'"))
}

/// Where Nextcloud's own database is reached, as far as the profile says.
pub(crate) fn of_profile(profile: &Profile) -> Vec<Server> {
    let host = profile.database.host.as_deref().and_then(|h| container::resolve(h).ok());
    host.map(|host| Server { host, user: None, password: None, persistent: false }).into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_become_options_or_connection_strings() {
        let host = DbHost::parse("/run/my dir:5433").unwrap();
        let server = Server { host, user: Some(r"o'c\".into()), password: None, persistent: false };
        let text = server.conninfo("x' host=evil");
        assert!(
            text.starts_with(r"dbname='x\' host=evil' host='/run/my dir' port=5433 user='o\'c\\'"),
            "{text}"
        );
    }
}

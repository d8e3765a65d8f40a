//! Which server, database and role: from options, the profile, or Nextcloud, in this order.
//!
//! Nextcloud is asked only if the profile has `[nextcloud]` and host, name or user is still unknown;
//! its password is used only with its own role. Nothing is taken from the caller's environment.

use std::path::PathBuf;

use anyhow::Result;
use common::account::Account;
use common::fault::Fault;
use common::profile::Profile;

use crate::dbhost::DbHost;
use crate::nc_maint;
use crate::password::{Passfile, Password};

/// What options say about the connection.
#[derive(Clone, Debug, Default)]
pub(crate) struct Given {
    /// `--host`
    pub(crate) host: Option<String>,
    /// `--name`
    pub(crate) name: Option<String>,
    /// `--user`
    pub(crate) user: Option<String>,
    /// `--password-file`
    pub(crate) password_file: Option<PathBuf>,
    /// It is another role than the profile's, whose password file is not its own.
    pub(crate) another_role: bool,
}

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
    let host = profile.database.host.as_deref().and_then(|h| DbHost::parse(h).ok());
    host.map(|host| Server { host, user: None, password: None, persistent: false }).into_iter().collect()
}

/// How Nextcloud logs in, and where: as its configuration says, or else what the profile says of the database. `None` if
/// neither says as whom.
pub(crate) fn as_nextcloud(profile: &Profile) -> Result<Option<(Server, String)>> {
    if profile.nextcloud.is_some() {
        let answer = nc_maint::inspect(profile)?;
        let host = DbHost::parse(&answer.host).map_err(Fault::config)?;
        let (user, password) = (Some(answer.user), answer.password);
        return Ok(Some((Server { host, user, password, persistent: answer.persistent }, answer.name)));
    }
    if profile.database.user.is_none() || profile.database.name.is_none() {
        return Ok(None);
    }
    let (server, name) = resolve(profile, &Given::default(), true)?;
    Ok(name.map(|name| (server, name)))
}

/// Finds server and database name. The name may be absent if `need_name` is false.
pub(crate) fn resolve(profile: &Profile, given: &Given, need_name: bool) -> Result<(Server, Option<String>)> {
    let settings = &profile.database;
    let mut host = given.host.clone().or_else(|| settings.host.clone());
    let mut name = given.name.clone().or_else(|| settings.name.clone());
    let mut user = given.user.clone().or_else(|| settings.user.clone());
    let file = settings.password_file.as_ref().filter(|_| !given.another_role);
    let file = given.password_file.as_ref().or(file);
    let mut password = file.map(|f| Password::read(f)).transpose()?;
    let mut persistent = false;
    let unknown = host.is_none() || (need_name && name.is_none()) || user.is_none();
    if unknown && profile.nextcloud.is_some() {
        let answer = nc_maint::inspect(profile)?;
        let same_role = user.as_ref().is_none_or(|u| *u == answer.user);
        if same_role && password.is_none() {
            password = answer.password;
        }
        persistent = answer.persistent;
        host.get_or_insert(answer.host);
        name.get_or_insert(answer.name);
        user.get_or_insert(answer.user);
    }
    if need_name && name.is_none() {
        return Err(Fault::config("no database is named")
            .hint("give --name, or [database] name in the profile, or [nextcloud] root to ask Nextcloud")
            .into());
    }
    for (what, value) in [("name", &name), ("user", &user)] {
        if value.as_ref().is_some_and(|v| v.is_empty() || v.contains('\0')) {
            return Err(Fault::config(format!("the database {what} must not be empty")).into());
        }
    }
    let host = DbHost::parse(&host.unwrap_or_default())
        .map_err(|e| Fault::config(e).hint("host, host:port, an address, /socket/dir, /socket/dir:port"))?;
    Ok((Server { host, user, password, persistent }, name))
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

    #[test]
    fn without_profile_or_options_the_cure_is_told() {
        let error = resolve(&Profile::default(), &Given::default(), true).unwrap_err();
        assert_eq!(common::fault::kind_of(&error), common::fault::Kind::Config);
    }

    #[test]
    fn options_win_over_the_profile() {
        let mut profile = Profile::default();
        profile.database.name = Some("a".into());
        profile.database.user = Some("u".into());
        let given = Given { name: Some("b".into()), ..Given::default() };
        let (server, name) = resolve(&profile, &given, true).unwrap();
        assert_eq!((name.as_deref(), server.user.as_deref()), (Some("b"), Some("u")));
    }
}

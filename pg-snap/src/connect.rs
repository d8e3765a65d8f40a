//! Which server, database and role: from options, the profile, or Nextcloud, in this order.
//!
//! Nextcloud is asked only if the profile has `[nextcloud]` and host, name or user is still unknown;
//! its password is used only with its own role. Nothing is taken from the caller's environment.

use std::path::PathBuf;

use anyhow::Result;
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

    /// The password file for its children.
    pub(crate) fn passfile(&self) -> Result<Passfile> {
        Passfile::new(self.password.as_ref())
    }
}

/// Quotes a value of a connection string.
fn quote(value: &str) -> String {
    format!("'{}'", value.replace('\\', "\\\\").replace('\'', "\\'"))
}

/// Finds server and database name. The name may be absent if `need_name` is false.
pub(crate) fn resolve(profile: &Profile, given: &Given, need_name: bool) -> Result<(Server, Option<String>)> {
    let settings = &profile.database;
    let mut host = given.host.clone().or_else(|| settings.host.clone());
    let mut name = given.name.clone().or_else(|| settings.name.clone());
    let mut user = given.user.clone().or_else(|| settings.user.clone());
    let file = given.password_file.as_ref().or(settings.password_file.as_ref());
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

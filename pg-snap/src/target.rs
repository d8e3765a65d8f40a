//! Which server, role and database are meant: from options, the profile, or Nextcloud, in this order.
//!
//! Nextcloud is asked only if the profile has `[nextcloud]` and host, database or role is still unknown; its password is
//! used only with its own role. For making databases an administrator comes before all of that, and what the profile says
//! of rehearsals after the options.

use std::path::PathBuf;

use anyhow::Result;
use common::fault::Fault;
use common::profile::{Drill, Profile};

use crate::connect::Server;
use crate::container;
use crate::nc_maint;
use crate::password::Password;

/// What is said of it, for [`Target::resolve`] to complete.
#[derive(Clone, Debug, Default)]
pub(crate) struct Target {
    pub(crate) host: Option<String>,
    pub(crate) user: Option<String>,
    pub(crate) password_file: Option<PathBuf>,
    /// The database to connect to.
    pub(crate) database: Option<String>,
    /// It is another role than the profile's, whose password file is not its own.
    another_role: bool,
}

impl Target {
    /// What options say.
    pub(crate) fn new(
        host: Option<String>,
        user: Option<String>,
        password_file: Option<PathBuf>,
        database: Option<String>,
    ) -> Target {
        Target { host, user, password_file, database, another_role: false }
    }

    /// For making and dropping databases: `administrator` where it says something, then this, then `drill`. The database
    /// to connect to meanwhile is none of those that are made.
    pub(crate) fn administered(self, administrator: Target, drill: Drill) -> Target {
        let host = administrator.host.or(self.host).or(drill.host);
        let database = administrator.database.or(drill.admin_database).or(Some("postgres".into()));
        let drill_user = if self.user.is_none() { drill.user } else { None };
        match administrator.user.or(drill_user) {
            // Another role: the first one's password is not its own.
            Some(user) => Target {
                host,
                user: Some(user),
                password_file: administrator.password_file.or(drill.password_file),
                database,
                another_role: true,
            },
            None => Target { host, database, ..self },
        }
    }

    /// Finds server and database.
    pub(crate) fn resolve(&self, profile: &Profile) -> Result<(Server, String)> {
        let settings = &profile.database;
        let mut host = self.host.clone().or_else(|| settings.host.clone());
        let mut database = self.database.clone().or_else(|| settings.name.clone());
        let mut user = self.user.clone().or_else(|| settings.user.clone());
        let file = settings.password_file.as_ref().filter(|_| !self.another_role);
        let file = self.password_file.as_ref().or(file);
        let mut password = file.map(|f| Password::read(f)).transpose()?;
        let mut persistent = false;
        let unknown = host.is_none() || database.is_none() || user.is_none();
        if unknown && profile.nextcloud.is_some() {
            let answer = nc_maint::inspect(profile)?;
            let same_role = user.as_ref().is_none_or(|u| *u == answer.user);
            if same_role && password.is_none() {
                password = answer.password;
            }
            persistent = answer.persistent;
            host.get_or_insert(answer.host);
            database.get_or_insert(answer.name);
            user.get_or_insert(answer.user);
        }
        let Some(database) = database else {
            return Err(Fault::config("no database is named")
                .hint("give --name, or [database] name in the profile, or [nextcloud] root to ask Nextcloud")
                .into());
        };
        for (what, value) in [("name", Some(&database)), ("user", user.as_ref())] {
            if value.is_some_and(|v| v.is_empty() || v.contains('\0')) {
                return Err(Fault::config(format!("the database {what} must not be empty")).into());
            }
        }
        let host = container::resolve(&host.unwrap_or_default())?;
        Ok((Server { host, user, password, persistent }, database))
    }
}

/// How Nextcloud logs in, and where: as its configuration says, or else what the profile says of the database. `None` if
/// neither says as whom.
pub(crate) fn as_nextcloud(profile: &Profile) -> Result<Option<(Server, String)>> {
    if profile.nextcloud.is_some() {
        let answer = nc_maint::inspect(profile)?;
        let host = container::as_seen_from_here(&answer.host, profile)?;
        let (user, password) = (Some(answer.user), answer.password);
        return Ok(Some((Server { host, user, password, persistent: answer.persistent }, answer.name)));
    }
    if profile.database.user.is_none() || profile.database.name.is_none() {
        return Ok(None);
    }
    Target::default().resolve(profile).map(Some)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn without_profile_or_options_the_cure_is_told() {
        let error = Target::default().resolve(&Profile::default()).unwrap_err();
        assert_eq!(common::fault::kind_of(&error), common::fault::Kind::Config);
    }

    #[test]
    fn options_win_over_the_profile() {
        let mut profile = Profile::default();
        profile.database.name = Some("a".into());
        profile.database.user = Some("u".into());
        let target = Target { database: Some("b".into()), ..Target::default() };
        let (server, database) = target.resolve(&profile).unwrap();
        assert_eq!((database.as_str(), server.user.as_deref()), ("b", Some("u")));
    }

    #[test]
    fn the_administrator_comes_first_and_the_rehearsals_table_last() {
        let options = || Target::new(Some("h".into()), None, Some("/p".into()), Some("nextcloud".into()));
        let drill = Drill { host: Some("d".into()), user: Some("r".into()), ..Drill::default() };
        let target = options().administered(Target::default(), drill.clone());
        // The role is another one, and so is its password; the host is the options'.
        assert_eq!((target.host.as_deref(), target.user.as_deref()), (Some("h"), Some("r")));
        assert_eq!((target.password_file, target.database.as_deref()), (None, Some("postgres")));
        let administrator = Target::new(Some("a".into()), Some("root".into()), None, Some("t".into()));
        let target = options().administered(administrator, drill);
        assert_eq!((target.host.as_deref(), target.user.as_deref()), (Some("a"), Some("root")));
        assert_eq!((target.database.as_deref(), target.another_role), (Some("t"), true));
        let target = options().administered(Target::default(), Drill::default());
        assert_eq!((target.password_file, target.another_role), (Some("/p".into()), false));
    }
}

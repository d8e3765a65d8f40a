//! Options that several actions have.

use std::ffi::OsString;
use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use common::places;
use common::profile::{Profile, Span};

use crate::target::Target;

#[derive(Debug, Args)]
pub(super) struct Named {
    /// Profile: /etc/nc-backup/PROFILE.toml.
    pub(super) profile: Option<String>,
    /// Another file as the profile.
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(super) struct Place {
    #[command(flatten)]
    pub(super) named: Named,
    /// Folder of the dumps, mode 0700. Default: 'dumps' in the state folder
    /// (/var/lib/nc-backup/PROFILE/dumps for root).
    #[arg(long, value_name = "DIR")]
    dumps: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(super) struct Connection {
    /// Server, as Nextcloud's dbhost: host, host:port, an address (IPv6 in
    /// brackets before a port), /socket/dir, /socket/dir:port, or empty for the
    /// default socket.
    #[arg(long)]
    host: Option<String>,
    /// Role to connect as.
    #[arg(long)]
    user: Option<String>,
    /// File that holds the role's password and nothing else, mode 0600.
    #[arg(long, value_name = "FILE")]
    password_file: Option<PathBuf>,
    /// Command line of psql, words separated by blanks.
    #[arg(long, value_name = "COMMAND")]
    psql: Option<String>,
}

#[derive(Debug, Args)]
pub(super) struct Tools {
    /// Parallel jobs of pg_dump or pg_restore. Default 2.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=64))]
    jobs: Option<u32>,
    /// Command line of pg_dump, likewise.
    #[arg(long, value_name = "COMMAND")]
    pg_dump: Option<String>,
    /// Command line of pg_restore, likewise.
    #[arg(long, value_name = "COMMAND")]
    pg_restore: Option<String>,
    /// End it when nothing has moved for so long, like 10m: a server or a disk
    /// that hangs. Default 5m for a dump, 30m for a restore.
    #[arg(long, value_name = "TIME")]
    pub(super) stall: Option<Span>,
}

impl Named {
    pub(super) fn load(&self) -> Result<Profile> {
        Profile::load(self.profile.as_deref(), self.config.as_deref())
    }
}

impl Place {
    pub(super) fn load(&self) -> Result<(Profile, PathBuf)> {
        let profile = self.named.load()?;
        let dumps = match self.dumps.as_ref().or(profile.database.dumps.as_ref()) {
            Some(dir) => std::path::absolute(dir)?,
            None => places::state(&profile)?.join("dumps"),
        };
        Ok((profile, dumps))
    }
}

impl Connection {
    /// What it says, of the database `name`.
    pub(super) fn target(&self, name: Option<String>) -> Target {
        Target::new(self.host.clone(), self.user.clone(), self.password_file.clone(), name)
    }

    /// The same again, as arguments for the holder.
    pub(super) fn argv(&self, named: &Named, name: Option<&str>) -> Vec<OsString> {
        let mut argv: Vec<OsString> = named.profile.iter().map(OsString::from).collect();
        let mut add = |option: &str, value: Option<OsString>| {
            if let Some(value) = value {
                let mut word = OsString::from(format!("{option}="));
                word.push(value);
                argv.push(word);
            }
        };
        add("--config", named.config.clone().map(Into::into));
        add("--host", self.host.clone().map(Into::into));
        add("--user", self.user.clone().map(Into::into));
        add("--name", name.map(Into::into));
        add("--password-file", self.password_file.clone().map(Into::into));
        add("--psql", self.psql.clone().map(Into::into));
        argv
    }

    /// Puts what options say over what the profile says.
    pub(super) fn apply(&self, profile: &mut Profile) {
        put(&self.psql, &mut profile.database.psql);
    }
}

impl Tools {
    /// Puts what options say over what the profile says; the number of jobs.
    pub(super) fn apply(&self, profile: &mut Profile) -> u32 {
        let settings = &mut profile.database;
        put(&self.pg_dump, &mut settings.pg_dump);
        put(&self.pg_restore, &mut settings.pg_restore);
        self.jobs.or(settings.jobs).unwrap_or(2).max(1)
    }
}

fn put(option: &Option<String>, setting: &mut Vec<String>) {
    if let Some(text) = option {
        *setting = text.split_whitespace().map(str::to_owned).collect();
    }
}

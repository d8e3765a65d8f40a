//! `nc-maint inspect`: the database as Nextcloud itself is configured to use it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result};
use common::fault::{Fault, Kind};
use common::places;
use common::profile::Profile;
use common::program::Program;
use serde_json::Value;

use crate::password::Password;

/// The longest `inspect` may take: occ on a slow machine, several times over.
const LIMIT: Duration = Duration::from_secs(120);

/// What Nextcloud says.
#[derive(Debug)]
pub(crate) struct Answer {
    /// `dbhost`, unparsed.
    pub(crate) host: String,
    /// `dbname`.
    pub(crate) name: String,
    /// `dbuser`.
    pub(crate) user: String,
    /// `dbpassword`.
    pub(crate) password: Option<Password>,
    /// `dbpersistent`.
    pub(crate) persistent: bool,
}

/// Asks the nc-maint that lies beside this program.
pub(crate) fn inspect(profile: &Profile) -> Result<Answer> {
    let program = Program::beside("nc-maint")?;
    let secrets = Secrets::new(profile)?;
    let mut cmd = program.cmd().args(["inspect", &profile.name]);
    if let Some(file) = &profile.file {
        // Children do not start where we did.
        cmd = cmd.arg("--config").arg(std::path::absolute(file)?);
    }
    let cmd = cmd.arg("--secrets-to").arg(&secrets.path).timeout(LIMIT);
    let output = cmd.output()?;
    let status: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    if !output.status.success() {
        let message = status["error"]["message"].as_str();
        let Some(message) = message else { return Err(cmd.failure(&output).into()) };
        let kind = output.status.code().map_or(Kind::Failed, Kind::from_exit_code);
        let mut fault = Fault::new(kind, format!("nc-maint could not ask Nextcloud: {message}"));
        fault.hint = status["error"]["hint"].as_str().map(str::to_owned);
        return Err(fault.into());
    }
    let database = &status["data"]["database"];
    let text = |key: &str| database[key].as_str().map(str::to_owned);
    match text("type").as_deref() {
        Some("pgsql") => {}
        other => {
            let other = other.unwrap_or("an unknown kind");
            return Err(Fault::config(format!("Nextcloud's database is {other}, not PostgreSQL (pgsql)"))
                .hint("pg-snap saves PostgreSQL only")
                .into());
        }
    }
    let missing = |key: &str| Fault::failed(format!("nc-maint did not tell the database's {key}"));
    Ok(Answer {
        host: text("host").unwrap_or_default(),
        name: text("name").filter(|n| !n.is_empty()).ok_or_else(|| missing("name"))?,
        user: text("user").filter(|u| !u.is_empty()).ok_or_else(|| missing("user"))?,
        password: secrets.take()?,
        persistent: database["persistent"] == true,
    })
}

/// The file nc-maint writes the password to; there for as short a time as possible.
#[derive(Debug)]
struct Secrets {
    path: PathBuf,
}

const PREFIX: &str = "pg-snap-secrets-";

impl Secrets {
    fn new(profile: &Profile) -> Result<Secrets> {
        let dir = places::runtime(profile)?;
        sweep(&dir);
        Ok(Secrets { path: dir.join(format!("{PREFIX}{}.json", std::process::id())) })
    }

    /// Reads and removes it.
    fn take(&self) -> Result<Option<Password>> {
        let what = || "nc-maint did not write Nextcloud's database password".to_owned();
        let bytes = std::fs::read(&self.path).with_context(what)?;
        std::fs::remove_file(&self.path).with_context(|| format!("cannot remove {}", self.path.display()))?;
        let value: Value = serde_json::from_slice(&bytes).with_context(what)?;
        let text = value["database_password"].as_str().filter(|p| !p.is_empty());
        text.map(|p| Password::new(p.to_owned())).transpose()
    }
}

impl Drop for Secrets {
    fn drop(&mut self) {
        // Gone already when all went well.
        std::fs::remove_file(&self.path).ok();
    }
}

/// Removes what killed runs left: files named for a process that is no more.
fn sweep(dir: &Path) {
    let Ok(entries) = std::fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|n| n.strip_prefix(PREFIX)?.strip_suffix(".json"));
        let gone = pid.is_some_and(|p| p.parse::<u32>().is_ok() && !Path::new("/proc").join(p).exists());
        if gone {
            std::fs::remove_file(entry.path()).ok();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_files_of_dead_processes_are_swept() {
        let dir = tempfile::tempdir().unwrap();
        let mine = dir.path().join(format!("{PREFIX}{}.json", std::process::id()));
        let dead = dir.path().join(format!("{PREFIX}4194305.json"));
        let other = dir.path().join("maintenance.json");
        for file in [&mine, &dead, &other] {
            std::fs::write(file, "{}").unwrap();
        }
        sweep(dir.path());
        assert!(mine.exists() && other.exists() && !dead.exists());
    }
}

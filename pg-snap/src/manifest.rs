//! `dump.json`: what a dump is, and the map from stored to original file names.
//!
//! Written last, before the folder gets its name. A dump is complete if this file is whole, belongs to
//! the folder's date, and every file it names is there with its size.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use common::fault::Fault;
use common::signals;
use serde::{Deserialize, Serialize};

use crate::catalog::Definition;
use crate::facts::{self, Facts};
use crate::hold::Window;
use crate::old_facts;

/// Version of this file's format. 1 had the facts as SQL, for psql.
pub(crate) const SCHEMA: u32 = 2;
/// The formats that can be read.
const READABLE: [u32; 2] = [1, SCHEMA];
/// The name of this file.
pub(crate) const FILE: &str = "dump.json";
/// The folder with pg_dump's files, under their stored names.
pub(crate) const FILES: &str = "files";

/// The content of `dump.json`.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Manifest {
    pub(crate) schema: u32,
    /// `pg-snap` and its version.
    pub(crate) tool_version: String,
    /// The folder's name: UTC, `2026-11-22T03-30-00Z`.
    pub(crate) date: String,
    /// The run that had switched maintenance on, from before to after the dump; null if none had.
    pub(crate) run_id: Option<String>,
    /// Of what was held and confirmed in that run.
    #[serde(default)]
    pub(crate) window: Option<Window>,
    pub(crate) database: String,
    pub(crate) definition: Definition,
    pub(crate) server_version: String,
    pub(crate) server_version_num: u32,
    pub(crate) client_version: String,
    /// Roles, settings and grants, as JSON; null in format 1.
    #[serde(default)]
    pub(crate) facts_file: Option<String>,
    /// Format 1: roles as SQL.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) roles_file: Option<String>,
    /// Format 1: settings as SQL.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) settings_file: Option<String>,
    pub(crate) roles: Vec<String>,
    /// Whether the facts hold password hashes.
    pub(crate) role_passwords: bool,
    /// Tables whose data is in the dump.
    pub(crate) tables: u64,
    /// Bytes of all files but this one.
    pub(crate) size_bytes: u64,
    /// What the server says the database takes.
    pub(crate) database_size_bytes: u64,
    /// From the start of pg_dump to its end.
    pub(crate) duration_ms: u64,
    pub(crate) files: Vec<Stored>,
}

/// One file of the dump, below the dump's own folder.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(crate) struct Stored {
    /// Its path there.
    pub(crate) name: String,
    /// The name pg_restore knows it by; null for what pg_restore does not read.
    pub(crate) original: Option<String>,
    pub(crate) size_bytes: u64,
}

impl Manifest {
    /// Reads and checks the dump in `dir`. The error says what is wrong with it.
    pub(crate) fn read(dir: &Path) -> Result<Manifest> {
        let path = dir.join(FILE);
        let bytes = std::fs::read(&path).with_context(|| format!("{FILE} cannot be read"))?;
        let value: serde_json::Value =
            serde_json::from_slice(&bytes).with_context(|| format!("{FILE} is damaged"))?;
        if !READABLE.iter().any(|s| value["schema"] == *s) {
            anyhow::bail!("{FILE} has format {}, which this version does not know", value["schema"]);
        }
        let manifest: Manifest =
            serde_json::from_value(value).with_context(|| format!("{FILE} is damaged"))?;
        for file in &manifest.files {
            manifest.check(dir, file)?;
        }
        let facts = [&manifest.facts_file, &manifest.roles_file, &manifest.settings_file];
        for name in facts.into_iter().flatten() {
            if !manifest.files.iter().any(|f| f.name == *name) {
                anyhow::bail!("{FILE} names {name}, which is none of its files");
            }
        }
        Ok(manifest)
    }

    /// The facts of the dump in `dir`.
    pub(crate) fn facts(&self, dir: &Path) -> Result<Facts> {
        let text = |name: &str| {
            std::fs::read_to_string(dir.join(name)).with_context(|| format!("{name} cannot be read"))
        };
        if let Some(name) = &self.facts_file {
            return serde_json::from_str(&text(name)?).with_context(|| format!("{name} is damaged"));
        }
        let (Some(roles), Some(settings)) = (&self.roles_file, &self.settings_file) else {
            anyhow::bail!("it names no {}", facts::FILE);
        };
        old_facts::parse(&text(roles)?, &text(settings)?)
    }

    /// Major version of the pg_dump that made it.
    pub(crate) fn made_by(&self) -> u32 {
        let digits = |v: &str| v.chars().take_while(char::is_ascii_digit).collect::<String>();
        digits(&self.client_version).parse().unwrap_or(0)
    }

    fn check(&self, dir: &Path, file: &Stored) -> Result<()> {
        let name = &file.name;
        if !is_inside(name) || file.original.as_ref().is_some_and(|o| !is_inside(o) || o.contains('/')) {
            anyhow::bail!("{FILE} names a file outside the dump: {name}");
        }
        let meta = match dir.join(name).symlink_metadata() {
            Ok(meta) => meta,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => anyhow::bail!("{name} is missing"),
            Err(e) => return Err(e).with_context(|| format!("cannot look at {name}")),
        };
        if !meta.is_file() {
            anyhow::bail!("{name} is not a regular file");
        }
        if meta.len() != file.size_bytes {
            anyhow::bail!("{name} has {} bytes instead of {}", meta.len(), file.size_bytes);
        }
        Ok(())
    }

    /// Makes `scratch`, where pg_restore finds the files by their original names. It takes regular files only (the minor
    /// versions of 2026 refuse symbolic links): other names of the same files if they are `ours` and on the same file system,
    /// else copies, which share their blocks where the file system can. A file of a snapshot gets no other name, ever.
    pub(crate) fn farm(&self, dir: &Path, scratch: &Path, ours: bool) -> Result<Farm> {
        crate::dumps::remove(scratch)?;
        crate::dumps::make_private(scratch)?;
        let farm = Farm { path: scratch.to_owned() };
        for file in &self.files {
            let Some(original) = &file.original else { continue };
            let (from, to) = (dir.join(&file.name), scratch.join(original));
            if ours && std::fs::hard_link(&from, &to).is_ok() {
                continue;
            }
            signals::check()?;
            room_for(file.size_bytes, scratch)?;
            let what = || format!("cannot copy {} to {}", from.display(), to.display());
            // Not through a link that was put there since it was looked at.
            let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
            let mut source =
                OpenOptions::new().read(true).custom_flags(flags).open(&from).with_context(what)?;
            let mut copy = File::create_new(&to).with_context(what)?;
            std::io::copy(&mut source, &mut copy).with_context(what)?;
        }
        Ok(farm)
    }
}

/// Refuses what would not fit beside the rest of the dump.
fn room_for(bytes: u64, scratch: &Path) -> Result<()> {
    let stat = nix::sys::statvfs::statvfs(scratch).context("cannot ask for free room")?;
    let free = stat.blocks_available() * stat.fragment_size();
    if free < bytes {
        return Err(Fault::failed(format!(
            "{} has {free} bytes free, and a file of {bytes} bytes of the dump has to be copied there for pg_restore",
            scratch.display()
        ))
        .hint("make room there, or name another state_dir in the profile")
        .into());
    }
    Ok(())
}

/// A relative path that goes down only.
fn is_inside(name: &str) -> bool {
    !name.is_empty() && Path::new(name).components().all(|c| matches!(c, std::path::Component::Normal(_)))
}

/// A folder of files under pg_dump's own names; removed when dropped.
#[derive(Debug)]
pub(crate) struct Farm {
    path: PathBuf,
}

impl Farm {
    /// For pg_restore.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for Farm {
    fn drop(&mut self) {
        // The next restore or dump clears it otherwise.
        crate::dumps::remove(&self.path).ok();
    }
}

/// The error for a dump that is not whole.
pub(crate) fn damaged(dir: &Path, why: &anyhow::Error) -> anyhow::Error {
    Fault::failed(format!("the dump {} is damaged: {why:#}", dir.display()))
        .hint("`pg-snap list` shows which dumps are complete; take another with --date")
        .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_lead_outside() {
        assert!(is_inside("files/public.a.dat.gz"));
        for bad in ["", "/etc/passwd", "../x", "files/../../x"] {
            assert!(!is_inside(bad), "{bad}");
        }
    }
}

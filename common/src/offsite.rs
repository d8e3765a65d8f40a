//! Where the off-site copy's parts are on S2: what the three tools that handle it must agree on.

use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::fault::Fault;
use crate::places;
use crate::profile::{Luks, Profile, Sshfs};

/// `[offsite.sshfs]`, or an error that says what to write.
pub fn sshfs(profile: &Profile) -> Result<&Sshfs> {
    profile.offsite.sshfs.as_ref().ok_or_else(|| {
        missing(profile, "[offsite.sshfs]", "host = \"user@s3\" and directory = \"/srv/backup\"")
    })
}

/// `[offsite.luks]`, or an error that says what to write.
pub fn luks(profile: &Profile) -> Result<&Luks> {
    profile.offsite.luks.as_ref().ok_or_else(|| {
        missing(
            profile,
            "[offsite.luks]",
            "image = \"container.img\" and key_file = \"/etc/nc-backup/home.key\"",
        )
    })
}

fn missing(profile: &Profile, table: &str, right: &str) -> anyhow::Error {
    let file = profile.file.as_ref().map_or("the profile".into(), |f| f.display().to_string());
    Fault::config(format!("{file} has no {table} table"))
        .hint(format!("add {table} with {right} (docs/offsite.md)"))
        .into()
}

/// Where the folder of S3 is mounted.
pub fn sshfs_mount_point(profile: &Profile) -> Result<PathBuf> {
    match profile.offsite.sshfs.as_ref().and_then(|s| s.mount_point.clone()) {
        Some(path) => Ok(path),
        None => Ok(places::runtime(profile)?.join("s3")),
    }
}

/// The container's file, as this machine sees it.
pub fn image(profile: &Profile) -> Result<PathBuf> {
    let luks = luks(profile)?;
    if luks.image.is_absolute() {
        Ok(luks.image.clone())
    } else {
        Ok(sshfs_mount_point(profile)?.join(&luks.image))
    }
}

/// Whether the container's file lies in the folder of S3.
pub fn image_is_remote(profile: &Profile) -> Result<bool> {
    Ok(profile.offsite.sshfs.is_some() && image(profile)?.starts_with(sshfs_mount_point(profile)?))
}

/// Where the container is mounted.
pub fn container_mount_point(profile: &Profile) -> Result<PathBuf> {
    match luks(profile)?.mount_point.clone() {
        Some(path) => Ok(path),
        None => Ok(places::runtime(profile)?.join("container")),
    }
}

/// S2's own copy of the container's header.
pub fn header(profile: &Profile) -> Result<PathBuf> {
    match luks(profile)?.header.clone() {
        Some(path) => Ok(path),
        None => Ok(places::state(profile)?.join("container.header")),
    }
}

/// The device mapper's name for the opened container.
pub fn mapping(profile: &Profile) -> String {
    format!("nc-backup-{}", profile.name)
}

/// The folder of the snapshots in the mounted container.
pub fn store(container: &Path) -> PathBuf {
    container.join("snapshots")
}

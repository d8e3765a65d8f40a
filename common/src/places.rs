//! Where state lives: what must outlive a reboot, and what must not.
//!
//! root: `/var/lib/nc-backup/PROFILE` and `/run/nc-backup/PROFILE`. An ordinary account:
//! `~/.local/state/nc-backup/PROFILE` and its folder `run`. Folders are made 0700, and refused if
//! they belong to somebody else.

use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use nix::unistd::{Uid, User, geteuid};

use crate::fault::Fault;
use crate::profile::Profile;

/// The folder for what must outlive a reboot; made if missing.
pub fn state(profile: &Profile) -> Result<PathBuf> {
    let dir = match &profile.state_dir {
        Some(dir) => dir.clone(),
        None if geteuid().is_root() => Path::new("/var/lib/nc-backup").join(&profile.name),
        None => home()?.join(".local/state/nc-backup").join(&profile.name),
    };
    private_dir(&dir)
}

/// The folder for sockets and other things of the running system; made if missing.
pub fn runtime(profile: &Profile) -> Result<PathBuf> {
    let dir = match (&profile.runtime_dir, &profile.state_dir) {
        (Some(dir), _) => dir.clone(),
        (None, Some(state)) => state.join("run"),
        (None, None) if geteuid().is_root() => Path::new("/run/nc-backup").join(&profile.name),
        (None, None) => home()?.join(".local/state/nc-backup").join(&profile.name).join("run"),
    };
    private_dir(&dir)
}

fn home() -> Result<PathBuf> {
    let user = User::from_uid(geteuid()).context("cannot look up this account")?;
    user.map(|u| u.dir).ok_or_else(|| {
        Fault::config(format!("user id {} has no account, so no home folder", geteuid())).into()
    })
}

/// Makes `dir` (and what is missing above it) 0700, and checks that it is ours alone.
pub fn private_dir(dir: &Path) -> Result<PathBuf> {
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(|e| match e.kind() {
        std::io::ErrorKind::PermissionDenied => Fault::denied(format!(
            "cannot make the folder {}: {e}",
            dir.display()
        ))
        .hint("run it as root (`sudo` before the command), or name a folder of this account: --state-dir DIR")
        .into(),
        _ => anyhow::Error::from(e).context(format!("cannot make the folder {}", dir.display())),
    })?;
    let meta = std::fs::symlink_metadata(dir)
        .with_context(|| format!("cannot look at the folder {}", dir.display()))?;
    if !meta.is_dir() || Uid::from_raw(meta.uid()) != geteuid() || meta.mode() & 0o077 != 0 {
        return Err(Fault::denied(format!(
            "{} must be a folder of user id {} with mode 0700; it has owner {} and mode {:04o}",
            dir.display(),
            geteuid(),
            meta.uid(),
            meta.mode() & 0o7777
        ))
        .hint(format!("chown and chmod 0700 {}, after looking at what is in it", dir.display()))
        .into());
    }
    Ok(dir.to_owned())
}

//! The link `latest`, which leads people to the newest snapshot.

use std::fs::File;
use std::path::Path;

use anyhow::{Context as _, Result};
use nix::fcntl::{readlinkat, renameat};

use super::clear::remove;

/// Points `latest` to `date`, by rename, durably. With `only_if_wrong`, says whether it was.
pub fn point_latest(dir: &File, date: &str, only_if_wrong: bool) -> Result<bool> {
    if only_if_wrong && readlinkat(dir, "latest").is_ok_and(|target| target == date) {
        return Ok(false);
    }
    remove(dir, Path::new(".latest"))?;
    nix::unistd::symlinkat(date, dir, ".latest")
        .and_then(|()| renameat(dir, ".latest", dir, "latest"))
        .context("cannot point 'latest' to the newest snapshot")?;
    dir.sync_all().context("cannot make 'latest' durable")?;
    Ok(true)
}

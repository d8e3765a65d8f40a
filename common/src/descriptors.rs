//! How many files may be open: this process takes what it can get, and a child gets what we were given.

use std::sync::OnceLock;

use anyhow::{Context as _, Result};
use nix::sys::resource::{Resource, getrlimit, rlim_t, setrlimit};

/// The number of descriptors a child gets: what we were given. Some programs look at every number below it.
static GIVEN: OnceLock<(rlim_t, rlim_t)> = OnceLock::new();

/// As many as this process may have. Doing it again changes nothing.
pub(crate) fn raise() -> Result<()> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).context("cannot read the limit of open files")?;
    GIVEN.get_or_init(|| (soft, hard));
    if soft < hard {
        // Fewer will do, too, where this is refused.
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard).ok();
    }
    Ok(())
}

/// What [`raise`] raised, back to what it was: for a child, between fork and exec.
pub(crate) fn for_child() -> nix::Result<()> {
    match GIVEN.get() {
        Some((soft, hard)) => setrlimit(Resource::RLIMIT_NOFILE, *soft, *hard),
        None => Ok(()),
    }
}

//! The pin in the local store: which dates the off-site copy needs there, so that `link-sync prune` leaves them.
//!
//! The next push compares with the newest date that both hold; without it everything would be copied again. The store
//! may be an account's, which can have put anything there: no symlink is followed, and what is written belongs to it.

use std::fs::File;
use std::io::Write as _;
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use common::status::Report;
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat, openat2, renameat};
use nix::sys::stat::{Mode, fchmod, mkdirat};
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchown, unlinkat};
use serde_json::json;

use crate::settings::Settings;

/// Its folder in the store.
const FOLDER: &str = ".pins";

/// Pins `dates` in place of what was pinned before. A store that cannot be written to is told, and no reason not to push.
pub(crate) fn write(settings: &Settings, store: &Path, dates: &[&str], report: &mut Report) {
    let name = format!("offsite-{}", settings.profile.name);
    if let Err(error) = put(store, &name, dates) {
        let what = format!("{} cannot be told which dates the off-site copy needs", store.display());
        report.warn("not-pinned", format!("{what}, so prune may remove them: {error:#}"));
    }
}

fn put(store: &Path, name: &str, dates: &[&str]) -> Result<()> {
    let top = File::open(store)?;
    let owner = top.metadata()?;
    let own = |file: &File, mode| -> Result<()> {
        fchmod(file, Mode::from_bits_truncate(mode))?;
        let (user, group) = (Uid::from_raw(owner.uid()), Gid::from_raw(owner.gid()));
        Ok(fchown(file, Some(user), Some(group))?)
    };
    let made = mkdirat(&top, FOLDER, Mode::S_IRWXU);
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let resolve = ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS;
    let how = OpenHow::new().flags(flags).resolve(resolve);
    let dir =
        openat2(top.as_fd(), FOLDER, how).with_context(|| format!("cannot open the folder {FOLDER}"))?;
    let dir = File::from(dir);
    match made {
        Ok(()) => own(&dir, 0o700)?,
        Err(Errno::EEXIST) => {}
        Err(e) => return Err(e).with_context(|| format!("cannot make the folder {FOLDER}")),
    }
    let new = format!(".{name}.new");
    match unlinkat(&dir, new.as_str(), UnlinkatFlags::NoRemoveDir) {
        Ok(()) | Err(Errno::ENOENT) => {}
        Err(e) => return Err(e).with_context(|| format!("cannot remove {FOLDER}/{new}")),
    }
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let mut file = File::from(openat(&dir, new.as_str(), flags, Mode::S_IRUSR | Mode::S_IWUSR)?);
    file.write_all(json!({"dates": dates}).to_string().as_bytes())?;
    own(&file, 0o600)?;
    file.sync_all()?;
    renameat(&dir, new.as_str(), &dir, name)?;
    dir.sync_all()?;
    Ok(top.sync_all()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pin_is_the_owners_and_goes_through_no_symlink() {
        let dir = tempfile::tempdir().unwrap();
        let store = dir.path().join("store");
        std::fs::create_dir(&store).unwrap();
        let user = if nix::unistd::geteuid().is_root() { 12345 } else { nix::unistd::geteuid().as_raw() };
        std::os::unix::fs::chown(&store, Some(user), None).unwrap();
        put(&store, "offsite-home", &["a", "b"]).unwrap();
        put(&store, "offsite-home", &["b"]).unwrap();
        let pin = store.join(".pins/offsite-home");
        assert_eq!(std::fs::read_to_string(&pin).unwrap(), r#"{"dates":["b"]}"#);
        assert_eq!(pin.metadata().unwrap().uid(), user);
        assert_eq!(store.join(".pins").metadata().unwrap().uid(), user);

        let victim = dir.path().join("victim");
        std::fs::write(&victim, "mine").unwrap();
        std::fs::remove_file(&pin).unwrap();
        std::os::unix::fs::symlink(&victim, &pin).unwrap();
        std::os::unix::fs::symlink(&victim, store.join(".pins/.offsite-home.new")).unwrap();
        put(&store, "offsite-home", &["c"]).unwrap();
        assert_eq!(std::fs::read_to_string(&victim).unwrap(), "mine");
        std::fs::rename(store.join(".pins"), store.join("aside")).unwrap();
        std::os::unix::fs::symlink(dir.path(), store.join(".pins")).unwrap();
        assert!(put(&store, "offsite-home", &["c"]).is_err());
        assert!(!dir.path().join("offsite-home").exists());
    }
}

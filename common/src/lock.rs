//! Locks that die with their holder: flock on a file that lies with what it protects.
//!
//! The descriptor is close-on-exec; a writer that must keep the lock when we are killed gets it with
//! [`crate::run::Cmd::inherit`]. Locks are advisory and tied to the open file, so every process that
//! inherits it shares it, and the last one to close it releases it.

use std::fs::{File, TryLockError};
use std::io::{Read as _, Seek as _, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;

use crate::fault::{Fault, Kind, kind_of, no_room};
use crate::mutant;

/// A held lock; dropping it releases it, unless a child still has the descriptor.
#[derive(Debug)]
pub struct Lock {
    // A plain file on purpose: a guard that unlocks on drop would also unlock the child that inherited it.
    file: File,
    path: PathBuf,
}

impl Lock {
    /// Takes `path` alone, at once or not at all: [`crate::fault::Kind::Busy`] if someone else has it.
    /// The file says who holds it, for people, if there is room for that: making room must need none.
    pub fn exclusive(path: &Path, what: &str) -> Result<Lock> {
        let mut lock = Lock::take(path, what, File::try_lock)?;
        let line = format!("pid {} since {}\n", std::process::id(), crate::status::now());
        let file = &mut lock.file;
        let told = file
            .set_len(0)
            .and_then(|()| file.rewind())
            .and_then(|()| file.write_all(line.as_bytes()))
            .with_context(|| format!("cannot write the lock file {}", path.display()));
        match told {
            Err(e) if mutant::active("a-lock-needs-room") || !no_room(&e) => Err(e),
            _ => Ok(lock),
        }
    }

    /// Takes `file`, opened elsewhere, alone, at once or not at all; also a folder. `path` is for messages.
    pub fn exclusive_file(file: File, path: &Path, what: &str) -> Result<Lock> {
        match file.try_lock() {
            Ok(()) => Ok(Lock { file, path: path.to_owned() }),
            Err(TryLockError::WouldBlock) => Err(busy(file, path, what)),
            Err(TryLockError::Error(e)) => Err(e).with_context(|| format!("cannot lock {}", path.display())),
        }
    }

    /// Like [`Lock::exclusive`], but a holder has `patience` to go: the children of a run that was killed are
    /// ended by the kernel and by broken pipes, which takes a moment.
    pub fn exclusive_within(path: &Path, what: &str, patience: Duration) -> Result<Lock> {
        let begin = Instant::now();
        loop {
            match Lock::exclusive(path, what) {
                Err(e) if kind_of(&e) == Kind::Busy && begin.elapsed() < patience => {}
                other => return other,
            }
            crate::signals::check()?;
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// Takes `path` together with other readers, at once or not at all.
    pub fn shared(path: &Path, what: &str) -> Result<Lock> {
        Lock::take(path, what, File::try_lock_shared)
    }

    /// Takes `file`, opened elsewhere, together with other readers, at once or not at all. `path` is for messages.
    pub fn shared_file(file: File, path: &Path, what: &str) -> Result<Lock> {
        match file.try_lock_shared() {
            Ok(()) => Ok(Lock { file, path: path.to_owned() }),
            Err(TryLockError::WouldBlock) => Err(busy(file, path, what)),
            Err(TryLockError::Error(e)) => Err(e).with_context(|| format!("cannot lock {}", path.display())),
        }
    }

    fn take(path: &Path, what: &str, how: fn(&File) -> Result<(), TryLockError>) -> Result<Lock> {
        // Between open and flock the file may be removed by its last holder; then try the new one.
        for _ in 0..10 {
            let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            let fd: OwnedFd = open(path, flags, Mode::from_bits_truncate(0o600))
                .with_context(|| format!("cannot open the lock file {}", path.display()))?;
            let file = File::from(fd);
            match how(&file) {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Err(busy(file, path, what)),
                Err(TryLockError::Error(e)) => {
                    return Err(e).with_context(|| format!("cannot lock {}", path.display()));
                }
            }
            let ours = nix::sys::stat::fstat(&file)?;
            let there = nix::sys::stat::lstat(path);
            if there.is_ok_and(|t| (t.st_dev, t.st_ino) == (ours.st_dev, ours.st_ino)) {
                return Ok(Lock { file, path: path.to_owned() });
            }
        }
        Err(Fault::busy(format!("{what}: the lock file {} keeps being replaced", path.display())).into())
    }

    /// The descriptor, for [`crate::run::Cmd::inherit`].
    pub fn fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }

    /// The lock file.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

fn busy(mut file: File, path: &Path, what: &str) -> anyhow::Error {
    let mut holder = String::new();
    // Only for the message; a lock file that cannot be read just says less.
    drop(file.read_to_string(&mut holder));
    let holder = holder.lines().next().map(|l| format!(" by {l}")).unwrap_or_default();
    Fault::busy(format!("{what} is locked{holder}"))
        .hint(format!("wait until it has ended; `fuser -v {}` shows who holds it", path.display()))
        .into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::run::Cmd;

    #[test]
    fn the_second_one_is_told_who_holds_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let first = Lock::exclusive(&path, "the store").unwrap();
        let error = Lock::exclusive(&path, "the store").unwrap_err();
        assert_eq!(kind_of(&error), Kind::Busy);
        assert!(error.to_string().contains(&std::process::id().to_string()), "{error}");
        drop(first);
        Lock::exclusive(&path, "the store").unwrap();
    }

    #[test]
    fn a_child_that_inherited_it_keeps_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let lock = Lock::exclusive(&path, "the store").unwrap();
        let mut child = Cmd::new("sleep").arg("30").inherit(lock.fd()).spawn_piped().unwrap();
        drop(lock);
        assert!(Lock::exclusive(&path, "the store").is_err());
        child.end();
        // What other tests start beside this one inherits it, too, from fork(2) until execve(2).
        Lock::exclusive_within(&path, "the store", Duration::from_secs(30)).unwrap();
    }

    #[test]
    fn a_holder_that_is_about_to_end_is_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        let lock = Lock::exclusive(&path, "the store").unwrap();
        let child = Cmd::new("sleep").arg("0.5").inherit(lock.fd()).spawn_piped().unwrap();
        drop(lock);
        assert!(Lock::exclusive_within(&path, "the store", Duration::from_millis(60)).is_err());
        Lock::exclusive_within(&path, "the store", Duration::from_secs(30)).unwrap();
        drop(child);
    }

    #[test]
    fn a_symlink_is_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("lock");
        std::os::unix::fs::symlink(dir.path().join("elsewhere"), &path).unwrap();
        assert!(Lock::exclusive(&path, "the store").is_err());
        assert!(!dir.path().join("elsewhere").exists());
    }
}

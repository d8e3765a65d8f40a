//! Which files somebody has open for writing at this moment.
//!
//! The kernel sets a file's times when a write(2) begins, and the data may arrive much later: from a slow disk, a network
//! file system, a page of memory that is not there yet. A file that is read in between is half new, and nothing about it
//! changes when the rest comes; no span of time is long enough to rule that out. So before files are sent, each is asked
//! for with a read lease, which the kernel refuses exactly while somebody has the file open for writing, mapped into memory
//! or not. Where nobody has, every later write moves the times and is noticed. Where somebody has, the file is sent as it
//! is and believed by no later pass: the next one takes it again.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::os::unix::ffi::OsStrExt as _;

use anyhow::Result;
use common::mutant;
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;

use crate::budget::Budget;
use crate::store::split;

/// What was found out about some files.
#[derive(Debug, Default)]
pub struct Writers {
    /// Open for writing.
    pub open: Vec<Vec<u8>>,
    /// This account may not ask about so many: neither root nor their owner.
    pub unknown: u64,
}

/// Asks for each of `files`, regular ones below `root`.
pub fn find(root: &File, files: impl Iterator<Item = Vec<u8>>, budget: &Budget) -> Result<Writers> {
    let mut writers = Writers::default();
    // Folders are opened once, as the files of each come together.
    let mut last: HashMap<Vec<u8>, Option<File>> = HashMap::new();
    for (number, path) in files.enumerate() {
        if number % 256 == 0 {
            common::signals::check()?;
            budget.check()?;
        }
        let (parent, name) = split(&path);
        if !last.contains_key(parent) {
            last.clear();
            last.insert(parent.to_vec(), crate::store::open_dir(root, parent).ok());
        }
        let Some(dir) = last.get(parent).and_then(Option::as_ref) else { continue };
        let flags =
            OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        // What cannot be opened is told by whoever has to read it.
        let Ok(fd) = openat(dir, OsStr::from_bytes(name), flags, Mode::empty()) else { continue };
        match lease(&File::from(fd)) {
            Err(Errno::EAGAIN) if !mutant::active("writes-under-way-are-seen") => writers.open.push(path),
            Err(Errno::EACCES) => writers.unknown += 1,
            // Or a file system without leases, which is not trusted anyway.
            _ => {}
        }
    }
    Ok(writers)
}

/// Takes a read lease and gives it back. The signal for somebody who wants to write in this very moment (and waits until
/// it is given back) is one that does nothing.
#[expect(unsafe_code, reason = "fcntl's commands for leases have no wrapper in nix")]
fn lease(file: &File) -> nix::Result<()> {
    const F_SETSIG: libc::c_int = 10;
    let fd = file.as_raw_fd();
    // SAFETY: plain system calls on a descriptor that is open; no memory is passed.
    unsafe {
        Errno::result(libc::fcntl(fd, F_SETSIG, libc::SIGURG))?;
        Errno::result(libc::fcntl(fd, libc::F_SETLEASE, libc::F_RDLCK))?;
        Errno::result(libc::fcntl(fd, libc::F_SETLEASE, libc::F_UNLCK))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_writes_is_seen_and_who_reads_is_not() {
        let dir = tempfile::tempdir_in(std::env::current_dir().unwrap()).unwrap();
        for name in ["written", "read", "alone", "other"] {
            std::fs::write(dir.path().join(name), "x").unwrap();
        }
        let _reader = File::open(dir.path().join("read")).unwrap();
        let _writer = File::options().append(true).open(dir.path().join("written")).unwrap();
        let _both = File::options().read(true).write(true).open(dir.path().join("other")).unwrap();
        let files = ["alone", "gone", "other", "read", "written"].map(|n| n.as_bytes().to_vec());
        let top = File::open(dir.path()).unwrap();
        let found = find(&top, files.into_iter(), &Budget::default()).unwrap();
        assert_eq!(found.open, [b"other".to_vec(), b"written".to_vec()]);
        assert_eq!(found.unknown, 0);
    }
}

//! Files that are there after a power cut, or were never there at all.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::path::Path;

use anyhow::{Context as _, Result};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use nix::unistd::syncfs;

use crate::fault::Fault;
use crate::mutant;

/// Makes the entries of directory `dir` durable.
pub fn sync_dir(dir: &Path) -> Result<()> {
    File::open(dir)
        .and_then(|d| d.sync_all())
        .with_context(|| format!("cannot make the directory {} durable", dir.display()))
}

/// The bytes of the file at `path`, if there is one. What somebody else put there is no file of ours: a link is not followed,
/// a pipe is not waited for.
pub fn read(path: &Path) -> Result<Option<Vec<u8>>> {
    let what = || format!("cannot read {}", path.display());
    let planted = |is: &str| {
        let fault = Fault::config(format!("{} is {is}, not a file of ours", path.display()));
        fault.hint("look at who can write to its folder, then remove it")
    };
    let follow = match mutant::active("records-through-links") {
        true => OFlag::empty(),
        false => OFlag::O_NOFOLLOW,
    };
    let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC | follow;
    let mut file = match open(path, flags, Mode::empty()) {
        Ok(fd) => File::from(fd),
        Err(Errno::ENOENT) => return Ok(None),
        Err(Errno::ELOOP) => return Err(planted("a symbolic link").into()),
        Err(e) => return Err(e).with_context(what),
    };
    if !file.metadata().with_context(what)?.is_file() {
        return Err(planted("a folder, a pipe or a device").into());
    }
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes).with_context(what)?;
    Ok(Some(bytes))
}

/// Puts `bytes` at `path` with `mode`: wholly or not at all, durable on return.
/// A temporary name beside it (`.NAME.new`) is replaced; symlinks are not followed.
pub fn write(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    sync_dir(put(path, bytes, mode, File::sync_all)?)
}

/// [`write()`] for a disk that is far away, with one wait instead of many: all that was written to its file system before, and
/// renamed there, is durable before the file has its name. The name itself is so after the next sync, or when that is unmounted.
pub fn write_after_all(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    let all = |file: &File| {
        if mutant::active("a-name-waits-for-all-before-it") { Ok(()) } else { Ok(syncfs(file)?) }
    };
    put(path, bytes, mode, all).map(drop)
}

/// [`write()`] without waiting for the disk: whole for whoever reads it now, and perhaps empty after a power cut.
pub fn write_soon(path: &Path, bytes: &[u8], mode: u32) -> Result<()> {
    put(path, bytes, mode, |_| Ok(())).map(drop)
}

/// Removes the file at `path`, not yet durably; whether there was one.
pub fn remove(path: &Path) -> Result<bool> {
    match std::fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e).with_context(|| format!("cannot remove {}", path.display())),
    }
}

/// Puts it there; the folder it is in.
fn put<'a>(
    path: &'a Path,
    bytes: &[u8],
    mode: u32,
    sync: impl FnOnce(&File) -> std::io::Result<()>,
) -> Result<&'a Path> {
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else {
        anyhow::bail!("{} is not a file name", path.display());
    };
    let mut temporary = std::ffi::OsString::from(".");
    temporary.push(name);
    temporary.push(".new");
    let temporary = dir.join(temporary);
    let what = || format!("cannot write {}", path.display());
    remove(&temporary).with_context(what)?;
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let fd = open(&temporary, flags, Mode::from_bits_truncate(mode)).with_context(what)?;
    let mut file = File::from(fd);
    let written = nix::sys::stat::fchmod(&file, Mode::from_bits_truncate(mode))
        .map_err(std::io::Error::from)
        .and_then(|()| file.write_all(bytes))
        .and_then(|()| sync(&file))
        .and_then(|()| std::fs::rename(&temporary, path));
    if let Err(e) = written {
        // The first error is the one that matters.
        drop(std::fs::remove_file(&temporary));
        return Err(e).with_context(what);
    }
    Ok(dir)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn replaces_and_sets_the_mode() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        write(&path, b"one", 0o600).unwrap();
        write(&path, b"two", 0o640).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"two");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_planted_symlink_is_replaced_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let victim = dir.path().join("victim");
        std::fs::write(&victim, b"mine").unwrap();
        std::os::unix::fs::symlink(&victim, dir.path().join(".f.new")).unwrap();
        write(&dir.path().join("f"), b"new", 0o600).unwrap();
        assert_eq!(std::fs::read(&victim).unwrap(), b"mine");
    }

    #[test]
    fn what_was_planted_is_neither_followed_nor_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("record");
        assert_eq!(read(&path).unwrap(), None);
        write(&path, b"x", 0o600).unwrap();
        assert_eq!(read(&path).unwrap().as_deref(), Some(&b"x"[..]));
        let aside = dir.path().join("aside");
        std::fs::rename(&path, &aside).unwrap();
        std::os::unix::fs::symlink(&aside, &path).unwrap();
        assert!(read(&path).unwrap_err().to_string().contains("symbolic link"));
        std::fs::remove_file(&path).unwrap();
        nix::unistd::mkfifo(&path, Mode::S_IRUSR).unwrap();
        assert!(read(&path).is_err());
        assert!(read(dir.path()).is_err() && read(Path::new("/dev/zero")).is_err());
    }
}

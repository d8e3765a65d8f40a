//! Renames that replace nothing, and exchanges, also where the file system knows neither.
//! FUSE (bindfs, mergerfs, sshfs), NFS, OpenZFS before 2.2 refuse every flag of renameat2(2).
//!
//! Without the flag, a file gets its second name by link(2), which never replaces, and then loses the first; a folder
//! is renamed plainly, which replaces at most an empty folder that was made in that very moment. Whatever happens in
//! between, also a kill, no content is without a name, and the same call again ends what was begun.

use std::fs::File;
use std::os::fd::AsFd;

use nix::NixPath;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, RenameFlags, renameat, renameat2};
use nix::sys::stat::{FileStat, fstatat};
use nix::unistd::{UnlinkatFlags, linkat, unlinkat};

/// Renames `name` in `from` to `new` in `to`. What is there already stays: `EEXIST`.
pub fn noreplace<N: NixPath + ?Sized, M: NixPath + ?Sized>(
    from: impl AsFd + Copy,
    name: &N,
    to: impl AsFd + Copy,
    new: &M,
) -> nix::Result<()> {
    match renameat2(from, name, to, new, RenameFlags::RENAME_NOREPLACE) {
        Err(e) if unknown(e) => by_steps(from, name, to, new),
        done => done,
    }
}

/// Exchanges two names at once; `false` if the file system cannot, and nothing has happened.
pub fn exchange<N: NixPath + ?Sized, M: NixPath + ?Sized>(
    one: impl AsFd,
    name: &N,
    other: impl AsFd,
    new: &M,
) -> nix::Result<bool> {
    match renameat2(one, name, other, new, RenameFlags::RENAME_EXCHANGE) {
        Ok(()) => Ok(true),
        Err(e) if unknown(e) => Ok(false),
        Err(e) => Err(e),
    }
}

/// How a file system says that it does not know a flag.
fn unknown(e: Errno) -> bool {
    !crate::mutant::active("rename-without-a-fallback")
        && matches!(e, Errno::EINVAL | Errno::ENOSYS | Errno::EOPNOTSUPP)
}

/// [`noreplace`] without the flag.
fn by_steps<N: NixPath + ?Sized, M: NixPath + ?Sized>(
    from: impl AsFd + Copy,
    name: &N,
    to: impl AsFd + Copy,
    new: &M,
) -> nix::Result<()> {
    let stat = fstatat(from, name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
    let there = look(to, new)?;
    let is_dir = stat.st_mode & libc::S_IFMT == libc::S_IFDIR;
    if is_dir {
        return if there.is_some() { Err(Errno::EEXIST) } else { renameat(from, name, to, new) };
    }
    // Both names of one file: a call before this one was killed between its steps.
    let begun = |other: &FileStat| (other.st_dev, other.st_ino) == (stat.st_dev, stat.st_ino);
    match there {
        Some(other) if begun(&other) => {}
        Some(_) => return Err(Errno::EEXIST),
        None => match linkat(from, name, to, new, AtFlags::empty()) {
            Ok(()) => {}
            // No hard links either, or none of this file: the look has to do.
            Err(Errno::EPERM | Errno::EOPNOTSUPP | Errno::ENOSYS | Errno::EMLINK) => {
                return renameat(from, name, to, new);
            }
            Err(e) => return Err(e),
        },
    }
    unlinkat(from, name, UnlinkatFlags::NoRemoveDir)
}

fn look<M: NixPath + ?Sized>(dir: impl AsFd, name: &M) -> nix::Result<Option<FileStat>> {
    match fstatat(dir, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(Some(stat)),
        Err(Errno::ENOENT) => Ok(None),
        Err(e) => Err(e),
    }
}

/// Whether a folder can be made in `dir` and renamed there, as publishing a snapshot does. `name` is a name that
/// nobody else uses; nothing of it is left.
pub fn probe(dir: &File, name: &str) -> nix::Result<()> {
    let renamed = format!("{name}.renamed");
    let clear = || {
        for name in [name, &renamed] {
            unlinkat(dir, name, UnlinkatFlags::RemoveDir).ok();
        }
    };
    clear();
    let made = nix::sys::stat::mkdirat(dir, name, nix::sys::stat::Mode::S_IRWXU);
    let done = made.and_then(|()| noreplace(dir, name, dir, &*renamed));
    clear();
    done
}

#[cfg(test)]
mod tests {
    use super::*;

    type Way<'a> = &'a dyn Fn(&File, &str, &File, &str) -> nix::Result<()>;

    /// Both ways must do the same.
    fn both(test: impl Fn(Way<'_>, &std::path::Path, &File)) {
        let ways: [Way<'_>; 2] = [&|f, n, t, m| noreplace(f, n, t, m), &|f, n, t, m| by_steps(f, n, t, m)];
        for way in ways {
            let dir = tempfile::tempdir().unwrap();
            let open = File::open(dir.path()).unwrap();
            test(way, dir.path(), &open);
        }
    }

    #[test]
    fn nothing_is_replaced() {
        both(|rename, path, dir| {
            std::fs::write(path.join("file"), "new").unwrap();
            std::fs::write(path.join("there"), "old").unwrap();
            std::fs::create_dir(path.join("folder")).unwrap();
            std::fs::create_dir(path.join("empty")).unwrap();
            std::os::unix::fs::symlink("nowhere", path.join("link")).unwrap();
            for (from, to) in [
                ("file", "there"),
                ("file", "empty"),
                ("file", "link"),
                ("folder", "there"),
                ("folder", "empty"),
                ("link", "there"),
            ] {
                assert_eq!(rename(dir, from, dir, to), Err(Errno::EEXIST), "{from} over {to}");
            }
            assert_eq!(rename(dir, "gone", dir, "x"), Err(Errno::ENOENT));
            for (from, to) in [("file", "a"), ("folder", "b"), ("link", "c")] {
                rename(dir, from, dir, to).unwrap();
            }
            let mut names: Vec<_> = std::fs::read_dir(path)
                .unwrap()
                .map(|e| e.unwrap().file_name().into_string().unwrap())
                .collect();
            names.sort();
            assert_eq!(names, ["a", "b", "c", "empty", "there"]);
            assert_eq!(std::fs::read_to_string(path.join("there")).unwrap(), "old");
            assert_eq!(std::fs::read_link(path.join("c")).unwrap(), std::path::Path::new("nowhere"));
        });
    }

    #[test]
    fn what_was_killed_between_two_steps_is_ended_by_the_same_call() {
        let dir = tempfile::tempdir().unwrap();
        let open = File::open(dir.path()).unwrap();
        std::fs::write(dir.path().join("file"), "new").unwrap();
        std::fs::hard_link(dir.path().join("file"), dir.path().join("place")).unwrap();
        by_steps(&open, "file", &open, "place").unwrap();
        assert!(!dir.path().join("file").exists());
        assert_eq!(std::fs::read_to_string(dir.path().join("place")).unwrap(), "new");
    }

    #[test]
    fn a_probe_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let open = File::open(dir.path()).unwrap();
        std::fs::create_dir(dir.path().join(".probe")).unwrap();
        probe(&open, ".probe").unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        assert!(probe(&File::open("/proc").unwrap(), ".probe").is_err());
    }
}

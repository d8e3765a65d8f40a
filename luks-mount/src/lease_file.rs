//! The lease as a file beside the image, by the words of a child of ours ([`crate::touch`]).
//! S3 may stop answering at any moment. Nothing in the folder is followed.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use clap::ValueEnum;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, OpenHow, ResolveFlag, openat, openat2, renameat};
use nix::sys::stat::{Mode, fstatat};
use nix::unistd::{UnlinkatFlags, linkat, unlinkat};
use serde::{Deserialize, Serialize};

use crate::lease::{Held, Lease, is_ours};

/// The most that is read.
const LONGEST: u64 = 4096;

/// What may be there already.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Over {
    /// There must be none.
    Nothing,
    /// The holder's own.
    Ours,
    /// Whatever is there.
    Anything,
}

impl Over {
    pub(crate) fn word(self) -> &'static str {
        match self {
            Over::Nothing => "nothing",
            Over::Ours => "ours",
            Over::Anything => "anything",
        }
    }
}

/// What the child answers.
#[derive(Debug, Default, Deserialize, Serialize)]
pub(crate) struct Answer {
    /// What was asked for is so.
    pub(crate) done: bool,
    /// What is in the file, if there is one.
    pub(crate) found: Option<String>,
    /// Why it cannot be written there at all.
    pub(crate) unwritable: Option<String>,
}

fn errno(error: std::io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or_default())
}

fn told(found: Option<Vec<u8>>) -> Option<String> {
    found.map(|text| String::from_utf8_lossy(&text).into_owned())
}

/// The folder that the image is in. Nothing in it is followed.
pub(crate) struct Folder {
    dir: File,
    lease: OsString,
    new: OsString,
}

impl Folder {
    pub(crate) fn open(image: &Path) -> Result<Folder> {
        let (Some(parent), Some(name)) = (image.parent(), image.file_name()) else {
            anyhow::bail!("{} is not a file name", image.display());
        };
        let how = OpenHow::new()
            .flags(OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        let dir = openat2(AT_FDCWD, parent, how).map(File::from);
        let dir = dir.with_context(|| format!("cannot open {}", parent.display()))?;
        // S3 may not be mounted there any more.
        fstatat(&dir, name, AtFlags::AT_SYMLINK_NOFOLLOW)
            .with_context(|| format!("there is no image {}", image.display()))?;
        let with =
            |prefix: &str, suffix: &str| [prefix.as_bytes(), name.as_bytes(), suffix.as_bytes()].concat();
        let name = |bytes: Vec<u8>| OsStr::from_bytes(&bytes).to_owned();
        Ok(Folder { dir, lease: name(with("", ".lease")), new: name(with(".", ".lease.new")) })
    }

    /// What is there.
    pub(crate) fn look(&self) -> Result<Answer> {
        Ok(Answer { done: true, found: told(self.read()?), unwritable: None })
    }

    /// Removes it, if it is the holder's.
    pub(crate) fn drop(&self, held: &Held) -> Result<Answer> {
        if self.read()?.is_some_and(|text| is_ours(&text, Some(held))) {
            unlinkat(&self.dir, self.lease.as_os_str(), UnlinkatFlags::NoRemoveDir)
                .context("cannot remove it")?;
        }
        Ok(Answer { done: true, ..Answer::default() })
    }

    /// Puts that of `held` there, if there is nothing but what it may be put over.
    pub(crate) fn put(&self, held: &Held, over: Over) -> Result<Answer> {
        let found = self.read()?;
        let may = match over {
            Over::Anything => true,
            Over::Ours => found.as_ref().is_some_and(|text| is_ours(text, Some(held))),
            Over::Nothing => found.is_none(),
        };
        if !may {
            return Ok(Answer { done: false, found: told(found), unwritable: None });
        }
        let written = self.put_in_one_step(held, over);
        // Another machine may have been faster.
        let after = |found: &Option<Vec<u8>>| found.as_ref().is_some_and(|text| is_ours(text, Some(held)));
        if let Err(error) = written {
            let refused = [Errno::EACCES, Errno::EPERM, Errno::EROFS, Errno::ENOSPC, Errno::EDQUOT];
            let why = error.downcast_ref::<Errno>().filter(|e| refused.contains(e));
            let Some(why) = why else { return Err(error) };
            // An S3 that cannot say "it exists already" says "failure", which is EPERM here.
            let found = self.read()?;
            let unwritable = (found.is_none() || after(&found)).then(|| why.to_string());
            return Ok(Answer { done: false, found: told(found), unwritable });
        }
        let found = self.read()?;
        Ok(Answer { done: after(&found), found: told(found), unwritable: None })
    }

    /// The file's first bytes; `None` if there is none. Anything but a file with a lease is somebody else's.
    fn read(&self) -> Result<Option<Vec<u8>>> {
        let flags =
            OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        let file = match openat(&self.dir, self.lease.as_os_str(), flags, Mode::empty()) {
            Ok(fd) => File::from(fd),
            Err(Errno::ENOENT) => return Ok(None),
            // A link, another account's file, a socket.
            Err(Errno::ELOOP | Errno::EACCES | Errno::EPERM | Errno::ENXIO) => return Ok(Some(Vec::new())),
            Err(e) => return Err(e).context("cannot open it"),
        };
        if !file.metadata()?.is_file() {
            return Ok(Some(Vec::new()));
        }
        let mut text = Vec::new();
        file.take(LONGEST).read_to_end(&mut text).context("cannot read it")?;
        Ok(Some(text))
    }

    /// Puts it there in one step, which fails if nothing was to be there and something is.
    fn put_in_one_step(&self, held: &Held, over: Over) -> Result<()> {
        let text = Lease::of(held).text()?;
        if over == Over::Ours {
            return self.renew(held, &text);
        }
        match unlinkat(&self.dir, self.new.as_os_str(), UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => {}
            Err(e) => return Err(e.into()),
        }
        self.write(&self.new, &text)?;
        let (dir, new, lease) = (&self.dir, self.new.as_os_str(), self.lease.as_os_str());
        if over == Over::Anything {
            return renameat(dir, new, dir, lease).map_err(anyhow::Error::from);
        }
        let linked = linkat(dir, new, dir, lease, AtFlags::empty());
        // What stays is replaced by the next one.
        unlinkat(dir, new, UnlinkatFlags::NoRemoveDir).ok();
        match linked {
            Ok(()) => Ok(()),
            Err(Errno::EEXIST) => Ok(()),
            // No hard links there.
            Err(_) if self.read()?.is_none() => self.write(&self.lease, &text),
            Err(_) => Ok(()),
        }
    }

    /// Into the very file that is ours, not by its name: another machine may be taking that at this moment, and would
    /// lose it again.
    fn renew(&self, held: &Held, text: &str) -> Result<()> {
        let flags =
            OFlag::O_RDWR | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        let file = File::from(openat(&self.dir, self.lease.as_os_str(), flags, Mode::empty())?);
        let mut there = Vec::new();
        (&file).take(LONGEST).read_to_end(&mut there)?;
        if is_ours(&there, Some(held)) {
            file.write_all_at(text.as_bytes(), 0).and_then(|()| file.sync_all()).map_err(errno)?;
        }
        Ok(())
    }

    fn write(&self, name: &OsStr, text: &str) -> Result<()> {
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let mut file = File::from(openat(&self.dir, name, flags, Mode::S_IRUSR | Mode::S_IWUSR)?);
        file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(errno)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lease::{BYTES, whose};
    use std::path::PathBuf;

    struct Place(tempfile::TempDir);
    impl Place {
        fn new() -> Place {
            let place = Place(tempfile::tempdir().unwrap());
            std::fs::write(place.0.path().join("c.img"), "").unwrap();
            place
        }
        fn lease(&self) -> PathBuf {
            self.0.path().join("c.img.lease")
        }
        fn folder(&self) -> Folder {
            Folder::open(&self.0.path().canonicalize().unwrap().join("c.img")).unwrap()
        }
        fn found(&self) -> Option<String> {
            self.folder().look().unwrap().found
        }
        fn put(&self, over: Over, held: &Held) -> bool {
            self.folder().put(held, over).unwrap().done
        }
    }
    fn held(holder: &str, serial: u64) -> Held {
        Held { holder: holder.repeat(32), serial }
    }

    #[test]
    fn one_machine_has_it_and_gives_it_back() {
        let place = Place::new();
        let (one, two) = (held("1", 1), held("2", 1));
        assert!(place.found().is_none());
        assert!(place.put(Over::Nothing, &one));
        assert_eq!(std::fs::metadata(place.lease()).unwrap().len(), BYTES as u64);
        for over in [Over::Nothing, Over::Ours] {
            assert!(!place.put(over, &two));
        }
        place.folder().drop(&two).unwrap();
        assert!(place.lease().exists(), "only its holder removes it");
        let later = held("1", 2);
        assert!(place.put(Over::Ours, &later));
        // A copy of the state from before the renewal.
        assert!(!place.put(Over::Ours, &one));
        assert!(place.put(Over::Anything, &two));
        assert!(!place.put(Over::Ours, &held("1", 3)), "it was lost");
        place.folder().drop(&two).unwrap();
        assert_eq!(std::fs::read_dir(place.0.path()).unwrap().count(), 1, "nothing but the image stays");
    }

    #[test]
    fn of_many_at_once_one_gets_it() {
        let place = Place::new();
        let image = place.0.path().canonicalize().unwrap().join("c.img");
        let tries: Vec<_> = (0..8u64)
            .map(|n| {
                let image = image.clone();
                let ours = held(&n.to_string(), 1);
                std::thread::spawn(move || {
                    Folder::open(&image).unwrap().put(&ours, Over::Nothing).is_ok_and(|a| a.done)
                })
            })
            .collect();
        let got = tries.into_iter().filter_map(|t| t.join().ok()).filter(|done| *done).count();
        assert!(got <= 1, "{got}");
    }

    #[test]
    fn what_s3_puts_there_is_somebody_elses_and_harmless() {
        let place = Place::new();
        let one = held("1", 1);
        let evil = Lease { host: "\u{1b}[2J".into(), ..Lease::of(&one) };
        for text in [String::new(), "{".into(), "x".repeat(1 << 20), evil.text().unwrap()] {
            std::fs::write(place.lease(), &text).unwrap();
            let found = place.found().unwrap();
            assert!(found.len() <= 4096 && !place.put(Over::Ours, &one) && !place.put(Over::Nothing, &one));
            assert_eq!(whose(found.as_bytes()), whose(b""));
        }
        let link = |target: &str| {
            std::fs::remove_file(place.lease()).unwrap();
            std::os::unix::fs::symlink(target, place.lease()).unwrap();
        };
        link("/etc/passwd");
        assert_eq!(place.found().as_deref(), Some(""));
        assert!(!place.put(Over::Nothing, &one));
        link("/nowhere");
        assert!(!place.put(Over::Nothing, &one));
        assert!(place.put(Over::Anything, &one), "a link is replaced, not followed");
        std::fs::remove_file(place.lease()).unwrap();
        std::fs::create_dir(place.lease()).unwrap();
        assert_eq!(place.found().as_deref(), Some(""));
        // S3 is not mounted: nothing is left where the image is not.
        std::fs::remove_file(place.0.path().join("c.img")).unwrap();
        assert!(Folder::open(&place.0.path().canonicalize().unwrap().join("c.img")).is_err());
    }
}

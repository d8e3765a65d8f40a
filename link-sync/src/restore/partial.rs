//! The private folder a restore works in, beside what it restores: what arrives (`new`), what it replaces (`old`).
//!
//! It belongs to root, mode 0700, and is only ever used through its open descriptor: whoever owns the folder around
//! it can rename it, and cannot get into it. Its lock is on that descriptor, and rsync inherits it. `state.json` says
//! what it is for and how far it has come, so that the next run with the same wishes continues.

use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use common::fault::Fault;
use nix::errno::Errno;
use nix::sys::stat::{Mode, mkdirat};
use sha2::{Digest as _, Sha256};

use super::folders::steady;
use super::journal::Journal;
use crate::store::clear::clear;
use crate::store::sums::hex;
use crate::store::{ensure_dir, open_dir, open_file, open_file_at, remove, visit};

/// How the names of these folders begin.
pub const PREFIX: &str = ".nc-restore-";
/// What arrives.
pub const NEW: &str = "new";
/// What arrives of what lies deep.
pub const DEEP: &str = "deep";
/// What was replaced.
pub const OLD: &str = "old";
/// What is in no snapshot and could not go back to its place.
pub const KEPT: &str = "kept";
/// How the name of one ends that is being removed.
pub const REMOVING: &str = "removing";
const JOURNAL: &str = "state.json";

/// What is left when all is in place.
#[derive(Debug)]
pub struct Left {
    /// The folder in whose [`OLD`] what was replaced is.
    pub replaced: Option<PathBuf>,
    /// What is in no snapshot, and has no place any more.
    pub kept: Option<PathBuf>,
    /// What was replaced and could not be removed, and why not.
    pub stuck: Option<(PathBuf, String)>,
}

/// The folder.
#[derive(Debug)]
pub struct Partial {
    /// It.
    pub dir: File,
    /// The folder it lies in.
    home: File,
    /// Its name there.
    pub name: String,
    /// Its place, for people.
    pub shown: PathBuf,
    /// What it is for.
    pub journal: Journal,
    /// An interrupted run left it.
    pub continued: bool,
}

impl Partial {
    /// The name for `state`.
    fn name(journal: &Journal, date: &str) -> String {
        let mut hash = Sha256::new();
        for part in [journal.snapshot.as_bytes(), &journal.path, &journal.target] {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        hash.update([u8::from(journal.closed)]);
        // Users give files their names, so it must be hard to find two for which it is the same.
        format!("{PREFIX}{date}-{}.partial", hex(&hash.finalize()[..16]))
    }

    /// Makes it in `home`, or opens what an interrupted run with the same wishes left.
    pub fn open(home: &File, shown: &std::path::Path, journal: Journal, date: &str) -> Result<Partial> {
        let name = Partial::name(&journal, date);
        let shown = shown.join(&name);
        let context = || format!("cannot use the folder {}", shown.display());
        let made = match mkdirat(home, OsStr::new(&name), Mode::from_bits_truncate(0o700)) {
            Ok(()) => true,
            Err(Errno::EEXIST) => false,
            Err(e) => return Err(e).with_context(|| format!("cannot make the folder {}", shown.display())),
        };
        let dir = open_dir(home, name.as_bytes()).with_context(context)?;
        let stat = dir.metadata().with_context(context)?;
        if stat.uid() != nix::unistd::geteuid().as_raw() || stat.mode() & 0o077 != 0 {
            return Err(Fault::denied(format!("{} is not ours alone", shown.display()))
                .hint("somebody else has made it: look at it, remove it, and try again")
                .into());
        }
        dir.try_lock().map_err(|_| {
            Fault::busy(format!("another restore is at work in {}", shown.display()))
                .hint("wait until it has ended")
        })?;
        if made && !visit::names(&dir)?.is_empty() {
            return Err(Fault::denied(format!("{} is not the folder that was just made", shown.display()))
                .hint("somebody exchanged it: look at it, remove it, and try again")
                .into());
        }
        let known = if made { None } else { load(&dir) };
        if !made && known.is_none() && [OLD, KEPT].iter().any(|part| holds_something(&dir, part)) {
            // One that was killed when all was in place: what it had replaced is not to be mixed with what is replaced now,
            // nor is it ours to delete.
            set_aside((home, &name), (home, &name), &shown, "replaced")?;
            return Partial::open(home, shown.parent().unwrap_or(&shown), journal, date);
        }
        let continued = known.is_some();
        let journal = match known {
            Some(known) if known.same(&journal) => known,
            _ => journal,
        };
        for part in [NEW, OLD] {
            drop(ensure_dir(&dir, part.as_bytes()).with_context(context)?);
        }
        let partial =
            Partial { dir, home: home.try_clone().with_context(context)?, name, shown, journal, continued };
        partial.save()?;
        Ok(partial)
    }

    /// What an interrupted run with the same wishes left in `home`: its [`NEW`], and whether all had arrived. Changes
    /// nothing.
    pub fn look(home: &File, journal: &Journal, date: &str) -> Result<Option<(File, bool)>> {
        let dir = match open_dir(home, Partial::name(journal, date).as_bytes()) {
            Ok(dir) => dir,
            Err(Errno::ENOENT) => return Ok(None),
            Err(e) => return Err(e).context("cannot look at what an interrupted restore left"),
        };
        let Some(known) = load(&dir).filter(|known| known.same(journal)) else { return Ok(None) };
        Ok(open_dir(&dir, NEW.as_bytes()).ok().map(|new| (new, known.swap.is_some())))
    }

    /// Writes down how far it has come; durable on return.
    pub fn save(&self) -> Result<()> {
        let text = serde_json::to_vec(&self.journal).context("cannot encode the restore's state")?;
        common::durable::write(&self.path().join(JOURNAL), &text, 0o600)
    }

    /// A path that leads to it, however it is called by now.
    fn path(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.dir.as_raw_fd()).into()
    }

    /// The folder it lies in, for people.
    fn home_shown(&self) -> &std::path::Path {
        self.shown.parent().unwrap_or(&self.shown)
    }

    /// One of its parts, opened.
    pub fn part(&self, name: &str) -> Result<File> {
        open_dir(&self.dir, name.as_bytes())
            .with_context(|| format!("cannot open {name} in {}", self.shown.display()))
    }

    /// All that was written below it is on the disk on return.
    pub fn sync(&self) -> Result<()> {
        let context = || format!("cannot flush {}", self.shown.display());
        if !steady(&self.dir)? {
            // What lies behind such a file system hears of single files only.
            visit::each(&self.part(NEW)?, |found| {
                let name = found.name.as_bytes();
                let opened = match found.is_dir {
                    true => open_dir(found.parent, name).map_err(anyhow::Error::from),
                    false if is_file(found)? => open_file_at(found.parent, name),
                    false => return Ok(()),
                };
                opened.with_context(context)?.sync_all().with_context(context)
            })?;
        }
        nix::unistd::syncfs(&self.dir).with_context(context)
    }

    /// Removes it with all that was replaced, or with `keep` renames it so that no restore takes it for its own. What is in
    /// [`KEPT`] stays in any case. Each step can be the last one before a power cut: nothing is taken for another thing.
    pub fn finish(self, keep: bool) -> Result<Left> {
        let kept = match holds_something(&self.dir, KEPT) {
            true => Some(set_aside((&self.dir, KEPT), (&self.home, &self.name), &self.shown, "kept")?),
            false => None,
        };
        if !keep {
            // From here on it is rubbish, whatever becomes of it, and no restore takes it for its own.
            let away = set_aside((&self.home, &self.name), (&self.home, &self.name), &self.shown, REMOVING)?;
            let name = away.file_name().context("internal error: a folder without a name")?;
            let stuck = clear(&self.home, name.as_bytes())?.shown();
            return Ok(Left {
                replaced: None,
                kept,
                stuck: stuck.map(|why| (away.clone(), format!("{}/{why}", self.home_shown().display()))),
            });
        }
        let replaced =
            set_aside((&self.home, &self.name), (&self.home, &self.name), &self.shown, "replaced")?;
        for part in [JOURNAL, NEW, DEEP, KEPT] {
            remove(&self.dir, std::path::Path::new(part))?;
        }
        Ok(Left { replaced: Some(replaced), kept, stuck: None })
    }
}

fn is_file(found: &visit::Found<'_>) -> nix::Result<bool> {
    let stat = nix::sys::stat::fstatat(found.parent, found.name, nix::fcntl::AtFlags::AT_SYMLINK_NOFOLLOW)?;
    Ok(stat.st_mode & libc::S_IFMT == libc::S_IFREG)
}

/// Whether something is in a part of it.
fn holds_something(dir: &File, part: &str) -> bool {
    open_dir(dir, part.as_bytes()).is_ok_and(|old| visit::names(&old).is_ok_and(|names| !names.is_empty()))
}

/// Renames a folder to a name in `home` that tells what it is and that no restore takes for its own; its new place.
/// `partial` is the name that one of a restore would have there, `shown` its path.
fn set_aside(
    (from, old): (&File, &str),
    (home, partial): (&File, &str),
    shown: &std::path::Path,
    ending: &str,
) -> Result<PathBuf> {
    let stem = partial.trim_end_matches(".partial");
    for n in 0..1000 {
        let new = if n == 0 { format!("{stem}.{ending}") } else { format!("{stem}-{n}.{ending}") };
        match common::rename::noreplace(from, old, home, &*new) {
            Ok(()) => return Ok(shown.with_file_name(new)),
            Err(Errno::EEXIST) => {}
            Err(e) => return Err(e).with_context(|| format!("cannot rename {}", shown.display())),
        }
    }
    Err(Fault::failed(format!("there are a thousand folders like {} already", shown.display()))
        .hint("remove those that you do not need")
        .into())
}

fn load(dir: &File) -> Option<Journal> {
    let mut text = String::new();
    std::io::Read::read_to_string(&mut open_file(dir, JOURNAL).ok()?, &mut text).ok()?;
    serde_json::from_str(&text).ok()
}
